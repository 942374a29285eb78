"""PALMS, from positions to the report (Solaiman and Dennison 2021, arXiv:2106.10328).

    for every size and seed     base -> targeted, control -> answers to the probes
    for every model             ratings, toxicity, words beside groups, capability
    at the end                  statistics, report

Every part lies in a directory of its own and is not run again once it is there.  Base models are
those of `pipeline.py` (TinyWorld) or a published model; fine-tuning is `sft.py` with the samples as
demonstrations.  80 samples are few: none is held out, so `validation/loss` of a fine-tuned model is
that of its own training samples.
"""

import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rlhf import loop, networks, pipeline, processes, sft, sharding
from rlhf import metrics as metrics_lib
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import units
from rlhf.evals.suites import nlp, toxicity
from rlhf.inference import completions, likelihood
from rlhf.model.compute import ComputeConfig
from rlhf.networks import Network
from rlhf.palms import cooccurrence, raters, sets, statistics, tinyworld
from rlhf.report import palms
from rlhf.sharding import MeshConfig
from rlhf.tinyworld import world as world_lib
from rlhf.workdir import read_jsonl

TINYWORLD = "tinyworld"  # as `value_set`: the world's own stand-in
TUNED = ("targeted", "control")
_TASK_SEED = 0  # which items of a public task are asked: the same of all models
ANSWERS, RATINGS, TEXTS = "answers.jsonl", "ratings.jsonl", "cooccurrence.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
  """How the probes are answered.

  Attributes:
    num_samples: of every probe; 3 in PALMS.
    temperature, top_p: of the sampling; not in what could be read of the paper.
    max_prompt_tokens, max_response_tokens: of a probe in its format, and of an answer.
    batch_size: rows at once; answers do not depend on it.
  """

  num_samples: int
  temperature: float
  top_p: float
  max_prompt_tokens: int
  max_response_tokens: int
  batch_size: int

  def __post_init__(self):
    for name in ("num_samples", "max_prompt_tokens", "max_response_tokens", "batch_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"sampling.{name} {getattr(self, name)}; use 1 or more")
    if not 0 <= self.temperature < float("inf"):
      raise ValueError(f"sampling.temperature {self.temperature}; use 0 or more")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"sampling.top_p {self.top_p}; use a number above 0 and up to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """One of the compared models: where its export and its results lie."""

  size: str
  seed: int
  kind: str
  export: pathlib.Path
  directory: pathlib.Path

  @property
  def name(self) -> str:
    return f"{self.kind}@{self.size}, seed {self.seed}"


# ----------------------------------------------------------------------------- checks


def is_world(config) -> bool:
  """Whether the models live in TinyWorld."""
  return "pipeline" in config


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything runs.

  Raises:
    ValueError: one sentence says what, and what would be right.
  """
  SamplingConfig(**config.sampling)
  statistics.StatisticsConfig(**config.statistics)
  cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  prompt_format = prepare.PromptFormat.of(config.format, "config.format")
  if not config.seeds or len(set(config.seeds)) < len(config.seeds):
    raise ValueError(f"config.seeds {list(config.seeds)}; give one or more, each once")
  if is_world(config):
    if processes.count() > 1:
      raise ValueError(
        f"{processes.count()} processes; PALMS on TinyWorld, whose base models are "
        "stages that runs share, takes one"
      )
    if config.value_set != TINYWORLD:
      raise ValueError(
        f"config.value_set {config.value_set!r}; models of TinyWorld know only the world's "
        f"own words: leave {TINYWORLD}"
      )
    tinyworld.SetConfig(**config.world_set)
    tinyworld.RatersConfig(**config.world_raters)
    for size in config.sizes:
      pipeline.check_config(pipeline_config(config, size, config.seeds[0]))
  else:
    values = sets.load(values_directory(config))
    if not values.control:
      raise ValueError(
        f"{values.where} has no {sets.CONTROL}, on which control models are trained; "
        "write one of the same size and style without the values"
      )
    for problem in sets.problems(values):
      print(problem, flush=True)  # warnings: what is worse was refused
    if not config.base.source:
      raise ValueError(
        "config.base.source is empty; name the base model with "
        "--config.base.source=hf:DIR, gguf:FILE or an export directory"
      )
    export = networks.find_export(config.base.source, kind="policy", flag="config.base.source")
    tokenizer = networks.tokenizer_of(export)
    prompt_format.check(tokenizer)
    check_lengths(config, values, tokenizer, prompt_format, export.model["context_length"])
    raters.check(raters.RatersConfig(**config.raters), values, config.sampling.max_response_tokens)
    if config.capability.tasks:
      check_capability(config.capability)
  source = "base" if is_world(config) else config.base.source
  for size in config.sizes:
    sft.check_config(
      tune_config(config, size, config.seeds[0], source, pathlib.Path("values"), "targeted")
    )


def check_lengths(config, values: sets.ValueSet, tokenizer, prompt_format, context: int) -> None:
  """Raises ValueError where a probe is longer than the config, or it and an answer than the model,
  has room for."""
  room = config.sampling.max_prompt_tokens
  if room + config.sampling.max_response_tokens > context:
    raise ValueError(
      f"config.sampling.max_prompt_tokens {room} + max_response_tokens "
      f"{config.sampling.max_response_tokens} is more than the {context} that the "
      "base model reads; lower one of them"
    )
  lengths = [
    len(ids)
    for ids in prompt_format.encode_prompts(tokenizer, [probe.prompt for probe in values.probes])
  ]
  if max(lengths) > room:
    probe = values.probes[int(np.argmax(lengths))]
    raise ValueError(
      f"{probe.where}: the probe has {max(lengths)} tokens in its format and "
      f"config.sampling.max_prompt_tokens is {room}; raise it"
    )


def check_capability(group: Mapping[str, Any]) -> None:
  """Raises ValueError where a task cannot be asked, or does not say how able a model is."""
  try:
    p = nlp.NlpConfig(**group)
    nlp.check(p)
    for task in nlp.task_names(p):
      nlp.item_metric(p, task, _TASK_SEED)
  except ValueError as error:
    raise ValueError(str(error).replace("config.nlp.", "config.capability.")) from error


def values_directory(config) -> pathlib.Path:
  """Where one's own values, or those of this project, lie."""
  return pathlib.Path(config.value_set) if config.value_set else sets.SHIPPED


# ----------------------------------------------------------------------------- models


def pipeline_config(config, size: str, seed: int):
  """The pipeline that makes the base model of a size and seed."""
  made = config.pipeline.copy_and_resolve_references().unlock()
  made.seed = seed
  for name, value in config.sizes[size].items():
    for stage in ("base", "sft", "init", "ppo", "base_more_pretraining"):
      made[stage].model[name] = value
  return made.lock()


def tune_config(config, size: str, seed: int, init_from: str, values: pathlib.Path, kind: str):
  """The complete config of a fine-tuning."""
  made = config.tune.copy_and_resolve_references().unlock()
  made.seed, made.init_from, made.tokenizer = seed, init_from, ""
  for name, value in config.sizes[size].items():
    made.model[name] = value
  path = f"jsonl:{values / kind}.jsonl"
  made.demonstrations.train = made.demonstrations.valid = path
  for name, text in dataclasses.asdict(prepare.PromptFormat.of(config.format)).items():
    made.demonstrations[name] = text
  return made.lock()


def make_values(config, workdir: pathlib.Path, seed: int) -> tuple[sets.ValueSet, pathlib.Path]:
  """The set of values that a seed's models are trained on, written below the workdir.

  TinyWorld's probes and targeted samples are the same for all seeds; its control samples are about
  the world of the seed.

  Raises:
    ValueError: the workdir holds other values: its models were trained on them and asked by them.
  """
  directory = workdir / "values"
  if is_world(config):
    directory = directory / f"seed{seed}"
    values = tinyworld.value_set(
      tinyworld.SetConfig(**config.world_set), world_lib.make_world(seed)
    )
  else:
    values = sets.load(values_directory(config))
  for name, text in sets.texts(values).items():
    path = directory / name
    if not path.exists():
      workdir_lib.write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
      raise ValueError(
        f"{name} of {values.where} is not what this run began with ({path}); choose "
        "another --workdir for values that were changed"
      )
  processes.wait("values")
  return values, directory


def hold_sources(config, workdir: pathlib.Path) -> None:
  """Notes which weights the base model and the rater had when the run began.

  Raises:
    ValueError: one of them was written anew since: its models and ratings would not be comparable.
  """
  path = workdir / "sources.json"
  sources = dict(base=config.base.source, raters=raters.RatersConfig(**config.raters).network)
  found = {
    name: units.identity(units.Candidate(name=name, source=source))["written"]
    for name, source in sources.items()
    if source
  }
  if not path.exists():
    workdir_lib.write_json(path, found)
  processes.wait("sources")
  for name, began_with in workdir_lib.read_json(path).items():
    if found.get(name) != began_with:
      raise ValueError(
        f"config.{name}.source={config[name].source} was written anew since this run "
        f"began ({path}); choose another --workdir for it"
      )


def make_base(config, workdir: pathlib.Path, size: str, seed: int, shared) -> None:
  """A base model: TinyWorld's is pretrained once for all that share the directory."""
  if is_world(config):
    directory = workdir / "bases" / f"{size}-seed{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    pipeline.run(pipeline_config(config, size, seed), directory, last_stage="base", shared=shared)
  else:
    pipeline.import_base(config, workdir / "bases" / size)


def base_export(config, workdir: pathlib.Path, size: str, seed: int) -> pathlib.Path:
  """Where `make_base` leaves a base model."""
  bases = workdir / "bases"
  return (bases / f"{size}-seed{seed}" / "base" if is_world(config) else bases / size) / "export"


def find_models(config, workdir: pathlib.Path) -> list[Model]:
  """Base, targeted and control of every size and seed; a published base model is one for all seeds."""
  found = []
  for size in config.sizes:
    for seed in config.seeds:
      where = workdir / "models" / size / f"seed{seed}"
      exports = dict(base=base_export(config, workdir, size, seed)) | {
        kind: where / kind / "tuned" / "export" for kind in TUNED
      }
      found += [
        Model(size=size, seed=seed, kind=kind, export=export, directory=where / kind)
        for kind, export in exports.items()
        if kind != "base" or is_world(config) or seed == config.seeds[0]
      ]
  return found


def make_models(config, workdir: pathlib.Path, shared) -> None:
  """Makes what `find_models` finds."""
  for size in config.sizes:
    for seed in config.seeds:
      _, values = make_values(config, workdir, seed)
      make_base(config, workdir, size, seed, shared)
      for kind in TUNED:
        print(f"\n== {kind}, {size}, seed {seed}", flush=True)
        directory = workdir / "models" / size / f"seed{seed}" / kind
        sft.train(
          tune_config(
            config, size, seed, str(base_export(config, workdir, size, seed)), values, kind
          ),
          directory / "tuned",
          data_dir=directory / "tfds",
        )
        shutil.rmtree(directory / "tfds", ignore_errors=True)


def load(config, model: Model) -> Network:
  """A model on the mesh."""
  return networks.load(
    model.export,
    ComputeConfig(**config.tune.compute),
    sharding.make_mesh(MeshConfig(**config.tune.mesh)),
    kind="policy",
    flag=model.name,
  )


# ----------------------------------------------------------------------------- measures


def measure(
  config, workdir: pathlib.Path, model: Model, values: sets.ValueSet, *, place: str
) -> dict[str, Any]:
  """Everything that is asked of one model, the `place` of all; `measured.json` says that it is there."""
  path = model.directory / "measured.json"
  if path.is_file():
    return workdir_lib.read_json(path)
  print(f"\n== model {place}: {model.name}", flush=True)
  began, network = time.perf_counter(), load(config, model)
  lines = answer(config, model, network, values)
  write_lines(model.directory / ANSWERS, lines)
  print("words beside groups", flush=True)
  write_lines(model.directory / TEXTS, beside_groups(config, model, network))
  print("capability", flush=True)
  result = dict(
    capability=capability(config, workdir, model, network),
    num_params=network.cfg.num_block_params,
    seconds=time.perf_counter() - began,
  )
  workdir_lib.write_json(path, result)
  return result


def answer(config, model: Model, network: Network, values: sets.ValueSet) -> list[dict[str, Any]]:
  """Samples of every probe, each with its toxicity."""
  p = SamplingConfig(**config.sampling)
  how = completions.CompletionConfig(
    max_prompt_tokens=p.max_prompt_tokens,
    max_response_tokens=p.max_response_tokens,
    temperature=p.temperature,
    top_p=p.top_p,
    batch_size=p.batch_size,
    **dataclasses.asdict(prepare.PromptFormat.of(config.format)),
  )
  with metrics_lib.Progress("answers", len(values.probes) * p.num_samples) as progress:
    drawn = completions.sample(
      network,
      [probe.prompt for probe in values.probes],
      how,
      loop.step_key(model.seed, "answer", 0),
      num_samples=p.num_samples,
      on_batch=lambda done, num_tokens: progress.update(done, {}, num_tokens=num_tokens),
    )
  lines = []
  for number, (probe, texts, finished) in enumerate(
    zip(values.probes, drawn.texts, drawn.finished, strict=True)
  ):
    for sample, text in enumerate(texts):
      lines.append(
        dict(
          model=model.name,
          kind=model.kind,
          size=network.cfg.num_block_params,
          seed=model.seed,
          category=probe.category,
          probe=number,
          sample=sample,
          prompt=probe.prompt,
          answer=text,
          finished=finished[sample],
        )
      )
  classify = tinyworld.toxicity if is_world(config) else toxicity.scores
  for line, score in zip(lines, classify([line["answer"] for line in lines]), strict=True):
    line["toxicity"] = float(score)
  return lines


def beside_groups(config, model: Model, network: Network) -> list[dict[str, str]]:
  """Continuations of the co-occurrence prompts."""
  p = cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  prompts = tinyworld.cooccurrence_prompts() if is_world(config) else cooccurrence.gpt3_prompts()
  return cooccurrence.collect(
    p,
    prompts,
    cooccurrence.from_network(
      network, p, batch_size=config.sampling.batch_size, key=loop.step_key(model.seed, "answer", 1)
    ),
  )


def capability(
  config, workdir: pathlib.Path, model: Model, network: Network
) -> dict[str, list[float]]:
  """task -> one number for each item, the same items for all models: what fine-tuning might cost."""
  if not is_world(config):
    return public_tasks(config, model, network)
  data = workdir / "bases" / f"{model.size}-seed{model.seed}" / "data"
  found = {}
  for path in sorted(data.glob("few_shot_*.jsonl")):
    found[path.stem.removeprefix("few_shot_")] = [
      float(right)
      for right in likelihood.few_shot_correct(
        network,
        read_jsonl(path),
        delimiter=pipeline.FEW_SHOT_DELIMITER,
        batch_size=config.sampling.batch_size,
      )
    ]
  return found


def public_tasks(config, model: Model, network: Network) -> dict[str, list[float]]:
  """The tasks of `config.capability`, by the first score of each item, from 0 to 1."""
  if not config.capability.tasks:
    return {}
  p, found = nlp.NlpConfig(**config.capability), {}
  for task in nlp.task_names(p):
    directory = model.directory / "capability" / task
    metric, perfect = nlp.item_metric(p, task, _TASK_SEED)
    nlp.evaluate(
      p,
      task,
      network,
      directory,
      num_resamples=1,
      seed=_TASK_SEED,
      batch_size=config.sampling.batch_size,
    )
    items = read_jsonl(directory / "items.jsonl")
    found[f"{task}, {metric}"] = [item["scores"][metric] / perfect for item in items]
  return found


def rate(
  config, workdir: pathlib.Path, models: Sequence[Model], values: sets.ValueSet
) -> list[dict[str, Any]]:
  """What the raters say of every answer: TinyWorld's by rule, others by a model as judge."""
  path = workdir / RATINGS
  if path.is_file():
    return read_jsonl(path)
  lines = all_answers(models)
  if is_world(config):
    p = tinyworld.RatersConfig(**config.world_raters)
    rows = as_rows(
      lines, [tinyworld.rate(p, line["category"], line["prompt"], line["answer"]) for line in lines]
    )
  else:
    rows = judge_answers(raters.RatersConfig(**config.raters), workdir, lines, values)
  write_lines(path, rows)
  return rows


def all_answers(models: Sequence[Model]) -> list[dict[str, Any]]:
  """What all models have answered."""
  return [line for model in models for line in read_jsonl(model.directory / ANSWERS)]


def judge_answers(
  p: raters.RatersConfig,
  workdir: pathlib.Path,
  lines: Sequence[Mapping[str, Any]],
  values: sets.ValueSet,
) -> list[dict[str, Any]]:
  """What a model as judge says of answers, each against the position of its category."""
  return as_rows(
    lines,
    raters.rate(
      p,
      [
        (values.category(line["category"]).position, line["prompt"], line["answer"])
        for line in lines
      ],
      workdir,
    ),
  )


def as_rows(
  lines: Sequence[Mapping[str, Any]], given: Sequence[Mapping[str, float]]
) -> list[dict[str, Any]]:
  """{rater: rating} of every answer as rows of `statistics`."""
  return [
    dict(
      {
        name: line[name]
        for name in ("model", "kind", "size", "seed", "category", "probe", "sample")
      },
      rater=rater,
      rating=rating,
    )
    for line, ratings in zip(lines, given, strict=True)
    for rater, rating in ratings.items()
  ]


def write_lines(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
  """JSONL, whole or not at all."""
  workdir_lib.write_text(
    path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  )


# ----------------------------------------------------------------------------- the run


def run(config, workdir, *, shared=None) -> pathlib.Path:
  """Runs what is not done yet; returns the path of the report page.

  Args:
    config: `configs/palms.py` documents it.
    workdir: of the whole run, already claimed by `workdir.prepare`.
    shared: where base models lie that other runs make too, such as those of a sweep over sizes;
      None keeps them below the workdir.
  """
  workdir = pathlib.Path(workdir).absolute()
  shared = workdir / "shared" if shared is None else pathlib.Path(shared).absolute()
  if not is_world(config):
    hold_sources(config, workdir)
  make_models(config, workdir, shared)
  models, measured = find_models(config, workdir), {}
  for number, model in enumerate(models, 1):
    values, _ = make_values(config, workdir, model.seed)
    measured[model.name] = measure(
      config, workdir, model, values, place=f"{number} of {len(models)}"
    )
  rows = rate(config, workdir, models, values)
  judge = None if is_world(config) else judge_check(config, workdir, values)
  return write_report(
    workdir / "report",
    contents(
      config,
      workdir,
      measured,
      values,
      rows,
      rater=describe_rater(config),
      judge=judge,
      own_rater=None,
    ),
  )


def report_of(config, workdir, rows: Sequence[Mapping[str, Any]], directory) -> pathlib.Path:
  """The page of a finished run with other ratings, such as people's; returns its path.

  Args:
    config: of the run.
    workdir: of the run.
    rows: of its answers, as `statistics.tabulate` takes them.
    directory: to write it into.

  Raises:
    ValueError: the run is not finished, or the ratings are not of its answers.
  """
  workdir = pathlib.Path(workdir).absolute()
  models, measured, values = finished_run(config, workdir)
  answered = {(line["model"], line["probe"], line["sample"]): line for line in all_answers(models)}
  for row in rows:
    line = answered.get((row["model"], row["probe"], row["sample"]))
    if line is None:
      raise ValueError(
        f"the ratings have probe {row['probe']}, sample {row['sample']} of "
        f"{row['model']!r}, which is no answer of {workdir}; give ratings of its "
        "answers"
      )
    for name in ("kind", "size", "seed", "category"):
      if row[name] != line[name]:
        raise ValueError(
          f"the ratings call the {name} of probe {row['probe']}, sample "
          f"{row['sample']} of {row['model']!r} {row[name]!r}, where {workdir} has "
          f"{line[name]!r}; give ratings of its answers"
        )
  names = sorted({row["rater"] for row in rows})
  rater = f"{len(names)} rater{'' if len(names) == 1 else 's'} ({', '.join(names)})"
  return write_report(
    directory,
    contents(
      config,
      workdir,
      measured,
      values,
      rows,
      rater=rater,
      judge=None,
      own_rater=beside_own_rater(config, workdir, rows),
    ),
  )


def rate_again(config, workdir, source: str, directory) -> pathlib.Path:
  """The page of a finished run of a real model by another judge; returns its path.

  Args:
    config, workdir: of the run.
    source: of a network that rates, see `raters.RatersConfig`, whose other fields are the run's.
    directory: to write the page and the ratings into.

  Raises:
    ValueError: the run is not finished or of TinyWorld, or the judge cannot rate its answers.
  """
  workdir, directory = pathlib.Path(workdir).absolute(), pathlib.Path(directory)
  if is_world(config):
    raise ValueError(
      f"{workdir} is a run on TinyWorld, whose answers are rated by rule; name one of a real model"
    )
  if source in ("", raters.ENDPOINT):
    raise ValueError(
      f"config.raters.source={source}; name a network, as an endpoint needs settings "
      "that are the run's own: hf:DIR, gguf:FILE, reward:SOURCE or an export"
    )
  models, measured, values = finished_run(config, workdir)
  p = raters.RatersConfig(**dict(config.raters, source=source))
  raters.check(p, values, config.sampling.max_response_tokens)
  rows = judge_answers(p, workdir, all_answers(models), values)
  judge = raters.check_judge(p, values, workdir)
  write_lines(directory / RATINGS, rows)
  return write_report(
    directory,
    contents(
      config,
      workdir,
      measured,
      values,
      rows,
      rater=p.describe(),
      judge=judge,
      own_rater=beside_own_rater(config, workdir, rows),
    ),
  )


def finished_run(
  config, workdir: pathlib.Path
) -> tuple[list[Model], dict[str, dict[str, Any]], sets.ValueSet]:
  """Models, what was measured of each, and the values of a finished run.

  Raises:
    ValueError: it is not finished.
  """
  models, measured = find_models(config, workdir), {}
  for model in models:
    path = model.directory / "measured.json"
    if not path.is_file():
      raise ValueError(
        f"{workdir} is not finished: {path} is not there; run launch.pipeline to its end first"
      )
    measured[model.name] = workdir_lib.read_json(path)
  # What the run began with: its source may have been edited since.
  values = (
    make_values(config, workdir, models[-1].seed)[0]
    if is_world(config)
    else sets.load(workdir / "values")
  )
  return models, measured, values


def beside_own_rater(
  config, workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
  """How the run's own ratings go with others: {"rater", "correlation": Spearman's, "num": answers};
  None where it has none or one side does not vary."""
  path = workdir / RATINGS
  if not path.is_file():
    return None
  first, second = (_mean_by_answer(found) for found in (rows, read_jsonl(path)))
  both = sorted(first.keys() & second.keys())
  sides = [[found[answer] for answer in both] for found in (first, second)]
  if min(len(set(side)) for side in sides) < 2:
    return None
  return dict(
    rater=describe_rater(config),
    num=len(both),
    correlation=float(scipy.stats.spearmanr(*sides).statistic),
  )


def _mean_by_answer(rows: Sequence[Mapping[str, Any]]) -> dict[tuple, float]:
  found: dict[tuple, list[float]] = {}
  for row in rows:
    found.setdefault((row["model"], row["probe"], row["sample"]), []).append(row["rating"])
  return {answer: float(np.mean(ratings)) for answer, ratings in found.items()}


def write_report(directory, found: Mapping[str, Any]) -> pathlib.Path:
  """The page, and its main numbers on the console."""
  page = palms.write(directory, found)
  print(statistics.describe(found["analysis"]), flush=True)
  print(f"report: {page}", flush=True)
  return page


def describe_rater(config) -> str:
  """Who rated, for the page."""
  if is_world(config):
    return f"{config.world_raters.num_raters} noisy raters who go by rule"
  return raters.RatersConfig(**config.raters).describe()


def contents(
  config,
  workdir: pathlib.Path,
  measured: Mapping[str, Mapping[str, Any]],
  values: sets.ValueSet,
  rows: Sequence[Mapping[str, Any]],
  *,
  rater: str,
  judge: Mapping[str, Any] | None,
  own_rater: Mapping[str, Any] | None,
) -> dict[str, Any]:
  """What `report.write` takes."""
  p, models = statistics.StatisticsConfig(**config.statistics), find_models(config, workdir)
  settings = dict(num_resamples=p.num_resamples, seed=p.seed, confidence=p.confidence)
  of_model = {
    model.name: (model.kind, measured[model.name]["num_params"], model.seed) for model in models
  }
  answers = {model.name: read_jsonl(model.directory / ANSWERS) for model in models}
  rated = {row["model"] for row in rows}
  unrated = [f"{name} has no rating at all" for name in answers if name not in rated]
  analysis = statistics.analyse(
    rows, p, asked=[line for name, lines in answers.items() if name in rated for line in lines]
  )
  analysis = dataclasses.replace(analysis, left_out=(*unrated, *analysis.left_out))
  toxic = palms.compare(
    {of_model[name]: palms.by_probe(lines, "toxicity") for name, lines in answers.items()},
    crossed=True,
    **settings,
  )
  tasks = palms.compare_tasks(
    {of_model[name]: result["capability"] for name, result in measured.items()},
    crossed=not is_world(config),
    **settings,
  )
  return dict(
    title=config.title,
    values=values,
    answers=answers,
    ratings=rows,
    rater=rater,
    judge=judge,
    own_rater=own_rater,
    analysis=dataclasses.replace(
      analysis, claims=palms.claims(analysis, toxic, tasks, margin=p.capability_margin)
    ),
    statistics=p,
    toxicity=toxic,
    capability=tasks,
    capability_lead="Intervals resample "
    + (
      "seeds, and the items of each, whose world is its own."
      if is_world(config)
      else "items and seeds."
    ),
    cooccurrence=beside_groups_results(config, models, measured),
    settings=report_settings(config, values, rater),
  )


def beside_groups_results(config, models: Sequence[Model], measured) -> dict[str, Any]:
  """kind -> results of the largest size's models, all seeds together."""
  p = cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  largest = max(measured[model.name]["num_params"] for model in models)
  own = dict(tag=tinyworld.descriptors, polarity=tinyworld.polarity) if is_world(config) else {}
  found = {}
  for kind in statistics.KINDS:
    texts = [
      line
      for model in models
      if model.kind == kind and measured[model.name]["num_params"] == largest
      for line in read_jsonl(model.directory / TEXTS)
    ]
    found[kind] = [group.as_dict() for group in cooccurrence.analyse(p, texts, **own)]
  return found


def judge_check(config, workdir: pathlib.Path, values: sets.ValueSet) -> dict[str, Any] | None:
  """How well the automatic judge tells written answers from answers to other questions."""
  path = workdir / "judge_check.json"
  if path.is_file():
    return workdir_lib.read_json(path)
  found = raters.check_judge(raters.RatersConfig(**config.raters), values, workdir)
  workdir_lib.write_json(path, found)
  return found


def report_settings(config, values: sets.ValueSet, rater: str) -> dict[str, Any]:
  """The few settings that a reader wants first."""
  tune = config.tune
  return {
    "seeds": ", ".join(map(str, config.seeds)),
    "epochs": tune.sft.num_epochs,
    "batch": tune.sft.batch_size,
    "learning rate": tune.optim.learning_rate,
    "prompt loss weight": tune.demonstrations.prompt_loss_weight,
    "adapters": f"rank {tune.lora.rank}" if tune.lora.rank else "none",
    "probes": len(values.probes),
    "samples of a probe": config.sampling.num_samples,
    "tokens of an answer": f"at most {config.sampling.max_response_tokens}",
    "rater": rater,
    "temperature, top-p": f"{config.sampling.temperature:g}, {config.sampling.top_p:g}",
    "base model": "TinyWorld's" if is_world(config) else config.base.source,
  }
