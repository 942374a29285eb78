"""PALMS, from positions to the report (Solaiman and Dennison 2021, arXiv:2106.10328).

    for every size and seed     base -> targeted, control -> completions of the probes
    for every model             ratings, toxicity, words of groups, capability
    at the end                  statistics, report

Each part has a directory of its own and is skipped where it is complete.  Base models are those of
`pipeline.py` (TinyWorld) or a published model; fine-tuning is `sft.py` with the samples as
demonstrations.  80 samples are too few to hold any out, so `validation/loss` of a fine-tuned model
is measured on its own training samples.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rlhf import checks, loop, networks, pipeline, processes, sft, sharding
from rlhf import metrics as metrics_lib
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import units
from rlhf.evals.suites import nlp, pretraining, toxicity
from rlhf.evals.suites.suite import Unit
from rlhf.inference import completions as completions_lib
from rlhf.inference import likelihood
from rlhf.model.compute import ComputeConfig
from rlhf.networks import Network
from rlhf.palms import cooccurrence, raters, sets, statistics, tinyworld
from rlhf.report import palms
from rlhf.sharding import MeshConfig
from rlhf.tinyworld import world as world_lib
from rlhf.workdir import read_json, read_jsonl

TINYWORLD = "tinyworld"  # as `value_set`: the stand-in values of TinyWorld
TUNED = ("targeted", "control")
_TASK_SEED = 0  # draws the items of a public task: the same for all models
COMPLETIONS, RATINGS, TEXTS = "completions.jsonl", "ratings.jsonl", "cooccurrence.jsonl"
_REPORT = "report"  # directory of the page with the run's own ratings
_MEASURED = "measured.json"  # written last: a model with it is complete


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """One of the compared models, with the places of its export and its results."""

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
  """Finds what is wrong with the config alone, before anything runs.

  Raises:
    ValueError: one sentence with the field, its value and what would be right.
  """
  completion_config(config)
  statistics.StatisticsConfig(**config.statistics)
  cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  if not config.seeds or len(set(config.seeds)) < len(config.seeds):
    raise ValueError(f"config.seeds {list(config.seeds)}; give one or more, each once")
  if is_world(config):
    if processes.count() > 1:
      raise ValueError(
        f"{processes.count()} processes; PALMS on TinyWorld runs in one, because runs share its "
        "base models"
      )
    if config.value_set != TINYWORLD:
      raise ValueError(
        f"config.value_set {config.value_set!r}; models of TinyWorld know only the world's own "
        f"words: use {TINYWORLD}"
      )
    tinyworld.SetConfig(**config.world_set)
    tinyworld.RatersConfig(**config.world_raters)
    for size in config.sizes:
      pipeline.check_config(pipeline_config(config, size, config.seeds[0]))
  else:
    _check_real(config)
  source, values = "base" if is_world(config) else config.base.source, pathlib.Path("values")
  for size in config.sizes:
    sft.check_config(tune_config(config, size, config.seeds[0], source, values, "targeted"))


def _check_real(config) -> None:
  values = sets.load(config.value_set or sets.SHIPPED)
  if not values.control:
    raise ValueError(
      f"{values.where} has no {sets.CONTROL} to train control models on; write one of the same "
      "size and style without the values"
    )
  for problem in sets.problems(values):
    print(problem, flush=True)  # only warnings: errors were refused
  if not config.base.source:
    raise ValueError(
      "config.base.source is empty; name the base model with --config.base.source=hf:DIR, "
      "gguf:FILE or an export directory"
    )
  export = networks.find_export(config.base.source, kind="policy", flag="config.base.source")
  tokenizer = export.tokenizer
  prompt_format = prepare.PromptFormat.of(config.format, "config.format")
  prompt_format.check(tokenizer)
  context, p = export.model["context_length"], config.sampling
  if p.max_prompt_tokens + p.max_response_tokens > context:
    raise ValueError(
      f"config.sampling.max_prompt_tokens {p.max_prompt_tokens} + max_response_tokens "
      f"{p.max_response_tokens} exceeds the context of {context} of the base model; lower one"
    )
  ids_of = prompt_format.encode_prompts(tokenizer, [probe.prompt for probe in values.probes])
  for probe, ids in zip(values.probes, ids_of, strict=True):
    if len(ids) > p.max_prompt_tokens:
      raise ValueError(
        f"{probe.where}: the probe has {len(ids)} tokens in its format; raise "
        f"config.sampling.max_prompt_tokens, which is {p.max_prompt_tokens}"
      )
  raters.check(raters.RatersConfig(**config.raters), values, p.max_response_tokens)
  if config.capability.tasks:
    check_capability(config.capability)


def completion_config(config) -> completions_lib.CompletionConfig:
  """How probes are completed; `config.sampling` has this and `num_samples` of every probe."""
  least = dict(num_samples=1, max_prompt_tokens=1, max_response_tokens=1, batch_size=1)
  checks.at_least("sampling", config.sampling, temperature=0, **least)
  group = dict(config.sampling)
  del group["num_samples"]
  prompt_format = dataclasses.asdict(prepare.PromptFormat.of(config.format, "config.format"))
  try:
    return completions_lib.CompletionConfig(**group, **prompt_format)
  except ValueError as error:
    raise ValueError(f"sampling: {error}") from None


def check_capability(group: Mapping[str, Any]) -> None:
  """Raises ValueError for a task that cannot run or does not measure capability."""
  try:
    p = nlp.NlpConfig(**group)
    nlp.check(p)
    for task in nlp.task_names(p):
      nlp.item_metric(p, task, _TASK_SEED)
  except ValueError as error:
    raise ValueError(str(error).replace("config.nlp.", "config.capability.")) from error


# ----------------------------------------------------------------------------- models


def pipeline_config(config, size: str, seed: int):
  """The pipeline that makes the base model of a size and seed."""
  made = config.pipeline.copy_and_resolve_references().unlock()
  made.seed = seed
  for name, value in config.sizes[size].items():
    for stage in ("base", "sft", "ppo_init", "ppo", "base_more_pretraining"):
      made[stage].model[name] = value
  return made.lock()


def tune_config(config, size: str, seed: int, init_from: str, values: pathlib.Path, kind: str):
  """The complete config of a fine-tuning."""
  made = config.tune.copy_and_resolve_references().unlock()
  made.seed, made.init_from, made.tokenizer = seed, init_from, ""
  for name, value in config.sizes[size].items():
    made.model[name] = value
  made.demonstrations.train = made.demonstrations.valid = f"jsonl:{values / kind}.jsonl"
  for name, text in dataclasses.asdict(prepare.PromptFormat.of(config.format)).items():
    made.demonstrations[name] = text
  return made.lock()


def make_values(config, workdir: pathlib.Path, seed: int) -> tuple[sets.ValueSet, pathlib.Path]:
  """The values that a seed's models are trained on, and their directory below the workdir.

  TinyWorld's probes and targeted samples are the same for all seeds; its control samples are about
  the world of the seed.

  Raises:
    ValueError: the workdir has other values, which its models were trained and tested on.
  """
  directory = workdir / "values"
  if is_world(config):
    directory = directory / f"seed{seed}"
    p, world = tinyworld.SetConfig(**config.world_set), world_lib.make_world(seed)
    values = tinyworld.value_set(p, world)
  else:
    values = sets.load(config.value_set or sets.SHIPPED)
  for name, text in sets.texts(values).items():
    path = directory / name
    if not path.exists():
      workdir_lib.write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
      raise ValueError(
        f"{name} of {values.where} differs from what this run began with ({path}); choose another "
        "--workdir for changed values"
      )
  processes.wait("values")
  return values, directory


def hold_sources(config, workdir: pathlib.Path) -> None:
  """Records which weights the base model and the rater had when the run began.

  Raises:
    ValueError: one of them was written since, so its models or ratings would not be comparable.
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
  for name, began_with in read_json(path).items():
    if found.get(name) != began_with:
      raise ValueError(
        f"config.{name}.source={config[name].source} was written after this run began ({path}); "
        "choose another --workdir"
      )


def base_directory(config, workdir: pathlib.Path, size: str, seed: int) -> pathlib.Path:
  """Directory of a base model; a published one is the same for all seeds."""
  return workdir / "bases" / (f"{size}-seed{seed}" if is_world(config) else size)


def find_models(config, workdir: pathlib.Path) -> list[Model]:
  """Base, targeted and control of every size and seed; a published base model appears once.

  Raises:
    ValueError: an older version, which used other file names, ran in the workdir.
  """
  found = []
  for size in config.sizes:
    for seed in config.seeds:
      where = workdir / "models" / size / f"seed{seed}"
      base = base_directory(config, workdir, size, seed)
      exports = dict(base=(base / "base" if is_world(config) else base) / "export")
      exports |= {kind: where / kind / "tuned" / "export" for kind in TUNED}
      found += [
        Model(size=size, seed=seed, kind=kind, export=export, directory=where / kind)
        for kind, export in exports.items()
        if kind != "base" or is_world(config) or seed == config.seeds[0]
      ]
  if (old := found[0].directory / "answers.jsonl").is_file():
    raise ValueError(
      f"{old} is of an older version, whose files called completions answers; use that version, or "
      "another --workdir"
    )
  return found


def make_models(
  config, workdir: pathlib.Path, shared: pathlib.Path, cache_dir: pathlib.Path | None
) -> None:
  """Makes what `find_models` lists; runs with the same `shared` share TinyWorld's base models."""
  base = ""
  for model in find_models(config, workdir):
    directory = base_directory(config, workdir, model.size, model.seed)
    if model.kind == "base":
      base = str(model.export)
      if is_world(config):
        directory.mkdir(parents=True, exist_ok=True)
        pipeline.run(
          pipeline_config(config, model.size, model.seed),
          directory,
          last_stage="base",
          shared=shared,
          cache_dir=cache_dir,
        )
      else:
        pipeline.import_base(config, directory)
      continue
    print(f"\n== {model.kind}, {model.size}, seed {model.seed}", flush=True)
    _, values = make_values(config, workdir, model.seed)
    sft.train(
      tune_config(config, model.size, model.seed, base, values, model.kind),
      model.directory / "tuned",
      cache_dir=cache_dir,
    )


# ----------------------------------------------------------------------------- measures


def measure(config, workdir: pathlib.Path, model: Model, values: sets.ValueSet) -> None:
  """Samples and scores everything of one model; `measured.json` marks it as complete."""
  began = time.perf_counter()
  network = networks.load(
    model.export,
    ComputeConfig(**config.tune.compute),
    sharding.make_mesh(MeshConfig(**config.tune.mesh)),
    kind="policy",
    flag=model.name,
  )
  lines = complete_probes(config, model, network, values)
  workdir_lib.write_jsonl(model.directory / COMPLETIONS, lines)
  print("words of groups", flush=True)
  texts = cooccurrence.collect(
    cooccurrence.CooccurrenceConfig(**config.cooccurrence),
    network,
    tinyworld.cooccurrence_prompts() if is_world(config) else cooccurrence.gpt3_prompts(),
    batch_size=config.sampling.batch_size,
    key=loop.step_key(model.seed, "answer", 1),
  )
  workdir_lib.write_jsonl(model.directory / TEXTS, texts)
  print("capability", flush=True)
  if is_world(config):
    capability = few_shot_tasks(config, workdir, model, network)
  else:
    capability = public_tasks(config, model, network)
  result = dict(
    capability=capability,
    num_params=network.cfg.num_block_params,
    seconds=time.perf_counter() - began,
  )
  workdir_lib.write_json(model.directory / _MEASURED, result)


def complete_probes(
  config, model: Model, network: Network, values: sets.ValueSet
) -> list[dict[str, Any]]:
  """Samples of every probe, each with its toxicity."""
  num_samples = config.sampling.num_samples
  with metrics_lib.Progress("completions", len(values.probes) * num_samples) as progress:
    sampled = completions_lib.sample(
      network,
      [probe.prompt for probe in values.probes],
      completion_config(config),
      loop.step_key(model.seed, "answer", 0),
      num_samples=num_samples,
      on_batch=lambda done, num_tokens: progress.update(done, {}, num_tokens=num_tokens),
    )
  lines: list[dict[str, Any]] = [
    dict(
      model=model.name,
      kind=model.kind,
      size=network.cfg.num_block_params,
      seed=model.seed,
      category=probe.category,
      probe=number,
      sample=sample,
      prompt=probe.prompt,
      completion=text,
      finished=sampled.finished[number][sample],
    )
    for number, probe in enumerate(values.probes)
    for sample, text in enumerate(sampled.texts[number])
  ]
  classify = tinyworld.toxicity if is_world(config) else toxicity.scores
  for line, score in zip(lines, classify([line["completion"] for line in lines]), strict=True):
    line["toxicity"] = float(score)
  return lines


def few_shot_tasks(
  config, workdir: pathlib.Path, model: Model, network: Network
) -> dict[str, list[float]]:
  """task -> 1 or 0 for each item of TinyWorld's few-shot tasks, the same for all models."""
  data = base_directory(config, workdir, model.size, model.seed) / "data"
  found: dict[str, list[float]] = {}
  for path in sorted(data.glob("few_shot_*.jsonl")):
    correct = likelihood.few_shot_correct(
      network,
      read_jsonl(path),
      delimiter=pretraining.DELIMITER,
      batch_size=config.sampling.batch_size,
    )
    found[path.stem.removeprefix("few_shot_")] = list(map(float, correct))
  return found


def public_tasks(config, model: Model, network: Network) -> dict[str, list[float]]:
  """task -> first score, from 0 to 1, of each item of the tasks of `config.capability`."""
  if not config.capability.tasks:
    return {}
  p, found = nlp.NlpConfig(**config.capability), {}
  how = dict(num_resamples=1, seed=_TASK_SEED, batch_size=config.sampling.batch_size)
  for task in nlp.task_names(p):
    directory = model.directory / "capability" / task
    metric, perfect = nlp.item_metric(p, task, _TASK_SEED)
    unit = Unit(task=task, network=network, directory=directory, **how)
    nlp.evaluate(p, unit)
    items = read_jsonl(directory / "items.jsonl")
    found[f"{task}, {metric}"] = [item["scores"][metric] / perfect for item in items]
  return found


def all_completions(models: Sequence[Model]) -> list[dict[str, Any]]:
  """What all models wrote."""
  return [line for model in models for line in read_jsonl(model.directory / COMPLETIONS)]


# ----------------------------------------------------------------------------- ratings


def rate(
  config, workdir: pathlib.Path, lines: Sequence[Mapping[str, Any]], values: sets.ValueSet
) -> list[dict[str, Any]]:
  """Ratings of completions: by rule on TinyWorld, otherwise by the rater of the config."""
  asked = [(line["category"], line["prompt"], line["completion"]) for line in lines]
  given: Iterable[Mapping[str, float]]
  if is_world(config):
    p = tinyworld.RatersConfig(**config.world_raters)
    given = [tinyworld.rate(p, *one) for one in asked]
  else:
    asked = [(values.category(name).position, *texts) for name, *texts in asked]
    given = raters.rate(raters.RatersConfig(**config.raters), asked, workdir)
  return [
    {name: line[name] for name in statistics.COMPLETION_FIELDS} | dict(rater=rater, rating=rating)
    for line, ratings in zip(lines, given, strict=True)
    for rater, rating in ratings.items()
  ]


def describe_rater(config) -> str:
  """Who rated, for the page."""
  if is_world(config):
    return f"{config.world_raters.num_raters} rule-based raters with noise"
  return raters.RatersConfig(**config.raters).describe()


# ----------------------------------------------------------------------------- the run


def run(config, workdir, *, shared=None, cache_dir=None) -> pathlib.Path:
  """Runs what is missing; returns the path of the report page.

  Args:
    config: documented in `configs/palms.py`.
    workdir: of the whole run, already claimed by `workdir.prepare`.
    shared: base models that other runs make too, such as those of a sweep over sizes; None keeps
      them below the workdir.
    cache_dir: of tokenised data; see `cache.directory`.
  """
  workdir = pathlib.Path(workdir).absolute()
  shared = workdir / "shared" if shared is None else pathlib.Path(shared).absolute()
  if not is_world(config):
    hold_sources(config, workdir)
  make_models(config, workdir, shared, cache_dir)
  models = find_models(config, workdir)
  for number, model in enumerate(models, start=1):
    values, _ = make_values(config, workdir, model.seed)
    if not (model.directory / _MEASURED).is_file():
      print(f"\n== model {number} of {len(models)}: {model.name}", flush=True)
      measure(config, workdir, model, values)
  if not (workdir / RATINGS).is_file():
    rows = rate(config, workdir, all_completions(models), values)
    workdir_lib.write_jsonl(workdir / RATINGS, rows)
  rows, judge, path = read_jsonl(workdir / RATINGS), None, workdir / "judge_check.json"
  if not is_world(config):
    if not path.is_file():
      found = raters.check_judge(raters.RatersConfig(**config.raters), values, workdir)
      workdir_lib.write_json(path, found)
    judge = read_json(path)
  rater = describe_rater(config)
  return write_report(config, workdir, workdir / _REPORT, rows, rater=rater, judge=judge)


def report_of(config, workdir, rows: Sequence[Mapping[str, Any]], directory) -> pathlib.Path:
  """Writes the page of a complete run with other ratings, such as people's; returns its path.

  Args:
    rows: ratings of its completions, see `statistics.read_rows`.
    directory: of the page.

  Raises:
    ValueError: the run is not complete, or the ratings are not of its completions.
  """
  workdir = pathlib.Path(workdir).absolute()
  models, _ = complete_run(config, workdir)
  of_key = {statistics.completion_key(line): line["model"] for line in all_completions(models)}
  for row in rows:
    if of_key.get(statistics.completion_key(row)) != row["model"]:
      fields = ", ".join(f"{name} {row[name]!r}" for name in statistics.COMPLETION_FIELDS)
      raise ValueError(f"the rating of {fields} is not of a completion of {workdir}")
  names = sorted({row["rater"] for row in rows})
  rater = f"{len(names)} rater{'' if len(names) == 1 else 's'} ({', '.join(names)})"
  return write_report(config, workdir, directory, rows, rater=rater)


def rate_again(config, workdir, source: str, directory) -> pathlib.Path:
  """Writes the page of a complete run of a real model, rated by another judge; returns its path.

  Args:
    source: of a network that rates, see `raters.RatersConfig`, whose other fields are the run's.
    directory: of the page and the ratings.

  Raises:
    ValueError: the run is not complete or is of TinyWorld, or the judge cannot rate it.
  """
  workdir, directory = pathlib.Path(workdir).absolute(), pathlib.Path(directory)
  if is_world(config):
    raise ValueError(f"{workdir} is a run on TinyWorld, which is rated by rule; name another run")
  if source in ("", raters.ENDPOINT):
    raise ValueError(
      f"config.raters.source={source}; name a network (hf:DIR, gguf:FILE, reward:SOURCE or an "
      "export): an endpoint needs settings of its own in the run's config"
    )
  models, values = complete_run(config, workdir)
  judged = config.copy_and_resolve_references().unlock()
  judged.raters.source = source
  p = raters.RatersConfig(**judged.raters)
  raters.check(p, values, config.sampling.max_response_tokens)
  rows = rate(judged, workdir, all_completions(models), values)
  judge = raters.check_judge(p, values, workdir)
  workdir_lib.write_jsonl(directory / RATINGS, rows)
  return write_report(config, workdir, directory, rows, rater=p.describe(), judge=judge)


def complete_run(config, workdir: pathlib.Path) -> tuple[list[Model], sets.ValueSet]:
  """(models, values) of a complete run.

  Raises:
    ValueError: a model has not been measured.
  """
  models = find_models(config, workdir)
  for model in models:
    path = model.directory / _MEASURED
    if not path.is_file():
      raise ValueError(
        f"{workdir} is not complete: {path} is missing; run `rlhf pipeline` to its end first"
      )
  if is_world(config):
    return models, make_values(config, workdir, models[-1].seed)[0]
  # As the run began: the source of the values may have been edited since.
  return models, sets.load(workdir / "values")


def own_rater(
  config, workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
  """Spearman's correlation of ratings with the run's own, over mean ratings of completions.

  Returns:
    {"rater", "correlation", "num": completions}; None where the run has no ratings, or one side
    does not vary.
  """
  path = workdir / RATINGS
  if not path.is_file():
    return None
  first, second = statistics.by_completion(rows), statistics.by_completion(read_jsonl(path))
  both = sorted(first.keys() & second.keys())
  sides = [[float(np.mean(found[key])) for key in both] for found in (first, second)]
  if min(len(set(side)) for side in sides) < 2:
    return None
  correlation = float(scipy.stats.spearmanr(*sides).statistic)
  return dict(rater=describe_rater(config), num=len(both), correlation=correlation)


def write_report(
  config,
  workdir: pathlib.Path,
  directory,
  rows: Sequence[Mapping[str, Any]],
  *,
  rater: str,
  judge: Mapping[str, Any] | None = None,
) -> pathlib.Path:
  """Analyses a complete run with ratings; writes the page and prints its main numbers."""
  p = statistics.StatisticsConfig(**config.statistics)
  models, values = complete_run(config, workdir)
  lines, rated = all_completions(models), {row["model"] for row in rows}
  expected = [line for line in lines if line["model"] in rated]
  analysis = statistics.analyse(rows, p, expected=expected)
  measured = [read_json(model.directory / _MEASURED) for model in models]
  keys = [(model.kind, found["num_params"], model.seed) for model, found in zip(models, measured)]
  settings = dict(num_resamples=p.num_resamples, seed=p.seed, confidence=p.confidence)
  toxic = palms.compare(palms.by_probe(lines, "toxicity"), crossed=True, **settings)
  tasks = {
    task: palms.compare(
      {key: found["capability"][task] for key, found in zip(keys, measured)},
      crossed=not is_world(config),
      **settings,
    )
    for task in measured[0]["capability"]
  }
  unrated = [f"{model.name} has no rating at all" for model in models if model.name not in rated]
  analysis["left_out"] = [*unrated, *analysis["left_out"]]
  analysis["claims"] += palms.claims(toxic, tasks, margin=p.capability_margin)
  largest, groups = max(size for _, size, _ in keys), {}
  words = cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  readers: dict[str, Any] = {}
  if is_world(config):
    readers = dict(tag=tinyworld.descriptors, polarity=tinyworld.polarity)
  for kind in statistics.KINDS:  # the models of all seeds together
    chosen = [model for model, key in zip(models, keys) if key[:2] == (kind, largest)]
    texts = [line for model in chosen for line in read_jsonl(model.directory / TEXTS)]
    groups[kind] = cooccurrence.analyse(words, texts, **readers)
  own_page = pathlib.Path(directory) == workdir / _REPORT
  resampled = "seeds, and the items of each seed's world" if is_world(config) else "items and seeds"
  page = palms.write(
    directory,
    dict(
      title=config.title,
      toxicity=toxic,
      capability=tasks,
      cooccurrence=groups,
      judge=judge,
      own_rater=None if own_page else own_rater(config, workdir, rows),
      rater=rater,
      settings=report_settings(config, values, rater),
    ),
    analysis=analysis,
    lines=palms.with_ratings(lines, rows),
    values=values,
    p=p,
    capability_lead=f"Intervals resample {resampled}.",
  )
  print(statistics.describe(analysis), flush=True)
  print(f"report: {page}", flush=True)
  return page


def report_settings(config, values: sets.ValueSet, rater: str) -> dict[str, Any]:
  """The settings that the page shows."""
  tune, p = config.tune, config.sampling
  return {
    "seeds": ", ".join(map(str, config.seeds)),
    "epochs": tune.sft.num_epochs,
    "batch": tune.sft.batch_size,
    "learning rate": tune.optim.learning_rate,
    "prompt loss weight": tune.demonstrations.prompt_loss_weight,
    "adapters": f"rank {tune.lora.rank}" if tune.lora.rank else "none",
    "probes": len(values.probes),
    "samples per probe": p.num_samples,
    "completion tokens": f"at most {p.max_response_tokens}",
    "rater": rater,
    "temperature, top-p": f"{p.temperature:g}, {p.top_p:g}",
    "base model": "TinyWorld's" if is_world(config) else config.base.source,
  }
