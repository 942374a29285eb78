"""The three steps of InstructGPT in a row, and the report.

    data -> base -> sft (16 epochs) -> comparisons -> reward_model -> best SFT epoch
                 -> ppo_init (2 epochs + pretraining mix) -> ppo, ppo_ptx
                 -> base_more_pretraining
                                                      -> evaluation -> report

`stages.py` has the table of stages: what each reads and builds on.  Each stage has a directory
under the workdir; a stage that is done is skipped, one that was interrupted goes on.  The data are
TinyWorld's (`config.world`) or your own files (`config.files`); the stages are the same, but only
TinyWorld has labelers that can be asked again.
"""

import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import checkpoint, checks, loop, networks, ppo, processes, reward_model, sft, sharding
from rlhf import metrics as metrics_lib
from rlhf import stages as stages_lib
from rlhf import workdir as workdir_lib
from rlhf.data import cache, prepare, splits
from rlhf.data import records as records_lib
from rlhf.evals import evaluation, units
from rlhf.evals.preference.comparison import PreferenceConfig
from rlhf.evals.reward_models import selection
from rlhf.evals.suites.pretraining import PretrainingConfig
from rlhf.evals.units import Candidate
from rlhf.inference import completions, rewards
from rlhf.inference.completions import CompletionConfig
from rlhf.model.compute import ComputeConfig
from rlhf.networks import Network
from rlhf.report import pipeline as report_lib
from rlhf.report import results
from rlhf.sharding import MeshConfig
from rlhf.stages import Stage
from rlhf.tinyworld import labelers as labelers_lib
from rlhf.tinyworld import world as world_lib
from rlhf.tinyworld import write as write_lib
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.workdir import read_jsonl

COMPARED = (*results.POLICIES, "sft_last", "ppo_live", "ppo_ptx_live")  # on the test prompts
TAXED = ("base", "base_more_pretraining", "ppo_init", "sft", "ppo", "ppo_ptx")
ALGORITHMS = dict(sft=sft, reward_model=reward_model, ppo=ppo)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonsConfig:
  """How outputs are drawn for ranking: K from `min_completions` to `max_completions` a prompt
  (InstructGPT: 4 to 9, section 3.5) from the last SFT epoch."""

  min_completions: int
  max_completions: int
  temperature: float

  def __post_init__(self):
    if not 2 <= self.min_completions <= self.max_completions:
      raise ValueError(
        f"comparisons.min_completions {self.min_completions} and max_completions "
        f"{self.max_completions}; use 2 <= min_completions <= max_completions"
      )
    if self.temperature <= 0:
      raise ValueError(
        f"comparisons.temperature {self.temperature}; use a number above 0, or all "
        "completions of a prompt are the same"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """The final comparison.

  Attributes:
    temperature: of every fine-tuned policy; InstructGPT's samples are drawn at 1 (appendix F).
    base_temperature: of the base model; 0.7 there.
    num_selection_prompts: validation prompts on which the SFT epoch is chosen by reward.
    num_resamples: of the bootstrap.
    batch_size: rows at once; changes nothing but speed and memory.
  """

  temperature: float
  base_temperature: float
  num_selection_prompts: int
  num_resamples: int
  batch_size: int

  def __post_init__(self):
    checks.at_least("evaluation", self, temperature=0, base_temperature=0)
    checks.at_least("evaluation", self, num_selection_prompts=1, num_resamples=1, batch_size=1)


# ----------------------------------------------------------------------------- the run


def run(
  config, workdir, *, last_stage: str = "evaluation", shared=None, cache_dir=None
) -> pathlib.Path | None:
  """Runs what is not done yet; returns the path of the report page.

  Args:
    config: `configs/pipeline.py` documents it.
    workdir: of the whole run, already claimed by `workdir.prepare`.
    last_stage: of `stages.table(config)`, after which the run ends; the report needs all stages.
    shared: a directory in which stages of equal fingerprint are run once for all pipelines that
      name it; the workdir then links to them.  One process per pipeline: it waits for a stage that
      another pipeline is running.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    the page, or None where the run ended at an earlier stage.

  Raises:
    ValueError: this config has no stage `last_stage`, or an earlier version wrote the workdir.
  """
  workdir = pathlib.Path(workdir).absolute()
  shared = None if shared is None else pathlib.Path(shared).absolute()
  cache_dir = cache.directory(cache_dir, workdir if shared is None else shared)
  stages_lib.check_workdir(workdir)
  stages_lib.check_name(config, last_stage)
  table = stages_lib.table(config)
  names = list(table)
  for name in names[: names.index(last_stage) + 1]:
    if not workdir_lib.is_done(workdir / name):
      print(f"\n== {table[name].title}", flush=True)
    with contextlib.ExitStack() as stack:
      if shared is not None and name != "evaluation":
        stack.enter_context(shared_stage(config, name, workdir, shared))
      # Only what the stage is known to read: so equal fingerprints mean equal stages.
      run_stage(stages_lib.view(config, name), table[name], workdir, cache_dir)
  if last_stage != "evaluation":
    return None
  # All processes score the comparisons; process 0 writes.
  contents = results.contents(config, workdir, load_reward(config, workdir))
  if processes.is_main():
    report_lib.write_report(workdir / "report", contents)
  page = workdir / "report" / "report.html"
  print(f"report: {page}", flush=True)
  return page


def run_stage(config, stage: Stage, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  """One stage, from its view of the config; returns at once where it is done."""
  directory = workdir / stage.name
  if stage.algorithm:
    made = stages_lib.stage_config(config, stage, workdir)
    ALGORITHMS[stage.algorithm].train(made, directory, cache_dir=cache_dir)
  elif stage.name == "data":
    prepare_data(config, directory)
  elif stage.name == "base":
    import_base(config, directory)
  else:
    workdir_lib.once(directory, lambda: OWN_STAGES[stage.name](config, workdir))


def shared_stage(config, name: str, workdir: pathlib.Path, shared: pathlib.Path):
  """Makes WORKDIR/NAME a link to the stage's directory under `shared`; returns its lock.

  The lock is the operating system's: it ends with the process that holds it, however that ends.
  A stage that is in the workdir itself stays there.
  """
  directory = shared / stages_lib.fingerprints(config)[name]
  directory.mkdir(parents=True, exist_ok=True)
  link = workdir / name
  if not link.exists():
    link.unlink(missing_ok=True)  # a link whose target was deleted
    link.symlink_to(os.path.relpath(directory, workdir))
  return workdir_lib.alone(shared / f"{directory.name}.lock", name)


# ----------------------------------------------------------------------------- data and base


def prepare_data(config, directory: pathlib.Path) -> None:
  """The stage `data`: process 0 writes the files, the others read them."""
  with processes.main_first("data"):
    if workdir_lib.is_done(directory):
      return
    began = time.perf_counter()
    directory.mkdir(parents=True, exist_ok=True)
    if stages_lib.in_tinyworld(config):
      world = write_lib.WorldConfig(seed=config.seed, **config.world)
      paths = write_lib.write(world, directory)
      counts = {name: sum(1 for _ in open(path, encoding="utf-8")) for name, path in paths.items()}
    else:
      counts = splits.write(splits.FilesConfig(**config.files), directory, config.seed)
    print("data: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()), flush=True)
    # Not `mark_done`, in which every process takes part.
    seconds = time.perf_counter() - began
    workdir_lib.write_json(directory / workdir_lib.DONE, dict(counts=counts, seconds=seconds))


def make_labelers(config):
  """(training, held-out) labelers of TinyWorld."""
  cfg = labelers_lib.LabelersConfig(seed=config.seed, **config.labelers)
  return labelers_lib.make_labelers(cfg)


def import_base(config, directory: pathlib.Path) -> None:
  """The stage `base` for a published model: read once and exported for all stages."""

  def read_and_export() -> dict[str, Any]:
    network = load(config, config.base.source, "policy")
    checkpoint.export_params(
      directory / "export",
      network.params,
      model=network.cfg.shape(),
      kind="policy",
      tokenizer=network.tokenizer,
      config=workdir_lib.plain(config),
      step=0,
      metadata=network.metadata,
    )
    size = f"{network.cfg.num_block_params:,} parameters outside the embeddings"
    print(f"base: {size}, from {config.base.source}", flush=True)
    return {}

  workdir_lib.once(directory, read_and_export)


# ----------------------------------------------------------------------------- networks


def prompt_format(config) -> prepare.PromptFormat:
  """How prompts are put to every model: the pipeline's one format."""
  return prepare.PromptFormat.of(config.format, "config.format")


def load(config, directory, kind: str) -> Network:
  """A policy or a reward model, computing as the base model does."""
  compute, mesh = ComputeConfig(**config.base.compute), MeshConfig(**config.base.mesh)
  return networks.load(directory, compute, sharding.make_mesh(mesh), kind=kind, flag=kind)


def load_reward(config, workdir: pathlib.Path) -> Network:
  return load(config, workdir / "reward_model" / "export", "reward")


def completion_config(config, temperature: float) -> CompletionConfig:
  return CompletionConfig(
    max_prompt_tokens=config.ppo.ppo.max_prompt_tokens,
    max_response_tokens=config.ppo.ppo.max_response_tokens,
    temperature=temperature,
    batch_size=config.evaluation.batch_size,
    **dataclasses.asdict(prompt_format(config)),
  )


def fitting(config, network: Network, records: Sequence[dict]) -> Sequence[dict]:
  """Records whose prompt fits into `max_prompt_tokens`; the others are counted."""
  _, kept, counts = prepare.prompt_rows(
    records,
    network.tokenizer,
    max_prompt_tokens=config.ppo.ppo.max_prompt_tokens,
    prompt_format=prompt_format(config),
    overlong="drop",
  )
  if len(kept) < len(records):
    print(records_lib.describe_counts("prompts", counts), flush=True)
  return kept


# ----------------------------------------------------------------------------- step 2


def collect_comparisons(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `comparisons`: outputs of the last SFT epoch, ranked by simulated labelers.

  One training labeler ranks each prompt (InstructGPT section 3.4: "most comparisons are only
  labeled by 1 contractor"); held-out labelers rank the validation outputs once more.
  """
  p = ComparisonsConfig(**config.comparisons)
  world = world_lib.make_world(config.seed)
  training, heldout = make_labelers(config)
  network = load(config, workdir / stages_lib.last_epoch(config), "policy")
  counts: dict[str, Any] = {}
  sources = dict(train="prompts_reward_model", valid="prompts_reward_model_valid")
  for stream, (name, source) in enumerate(sources.items()):
    records = fitting(config, network, read_jsonl(workdir / "data" / f"{source}.jsonl"))
    rng = np.random.default_rng([config.seed, stream])
    num_completions = rng.integers(p.min_completions, p.max_completions + 1, size=len(records))
    with metrics_lib.Progress(f"comparisons {name}", int(num_completions.sum())) as progress:
      drawn = completions.sample(
        network,
        [record["prompt"] for record in records],
        completion_config(config, p.temperature),
        loop.step_key(config.seed, "rollout", stream),
        num_samples=num_completions.tolist(),
        on_batch=lambda done, num: progress.update(done, {}, num_tokens=num),
      )
    who = rng.integers(len(training), size=len(records))
    rankings, again, items, num_empty = [], [], [], 0
    for index, record in enumerate(records):
      texts = [text for text in drawn.texts[index] if text.strip()]
      num_empty += len(drawn.texts[index]) - len(texts)
      if len(texts) < 2:
        continue
      marked = [labelers_lib.mark(world, record["task"], record["prompt"], text) for text in texts]
      rankings.append(ranked(training[who[index]], record, marked))
      if name == "valid":
        again.append(ranked(heldout[index % len(heldout)], record, marked))
        items.append(marked)
    workdir_lib.write_jsonl(workdir / "comparisons" / f"{name}.jsonl", rankings)
    if again:
      workdir_lib.write_jsonl(workdir / "comparisons" / "valid_heldout.jsonl", again)
      counts |= {
        f"agreement_{label}": labelers_lib.agreement(people, items, evaluation=False)[0]
        for label, people in (("training", training), ("heldout", heldout))
      }
    counts[name] = dict(
      prompts=len(rankings), completions=int(num_completions.sum()), dropped_empty=num_empty
    )
  print(f"comparisons: {counts}", flush=True)
  return counts


def ranked(
  labeler: labelers_lib.Labeler,
  record: Mapping[str, Any],
  completions: Sequence[labelers_lib.Marked],
) -> dict[str, Any]:
  """One comparison record."""
  return dict(
    prompt=record["prompt"],
    completions=[one.text for one in completions],
    ranks=labelers_lib.rank(labeler, completions, evaluation=False),
    labeler=labeler.id,
    user=record["user"],
    task=record["task"],
  )


def select_sft(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `selection`: the epoch whose completions of validation prompts score highest.

  Source: InstructGPT appendix C.1: "final SFT model selection based on the RM score on the
  validation set", because validation loss overfits after one epoch while preference goes on rising.
  """
  reward = load_reward(config, workdir)
  valid = read_jsonl(workdir / "data" / "prompts_ppo_valid.jsonl")
  epoch_network = lambda epoch: load(config, workdir / stages_lib.epoch_export(epoch), "policy")
  records = fitting(config, epoch_network(1), valid)[: config.evaluation.num_selection_prompts]

  def score_epoch(epoch: int) -> np.ndarray:
    drawn = completions.sample(
      epoch_network(epoch),
      [record["prompt"] for record in records],
      completion_config(config, config.evaluation.temperature),
      loop.step_key(config.seed, "validate", 0),
    )
    return score(config, reward, [ids[0] for ids in drawn.ids])

  choice = selection.choose(range(1, config.sft.sft.num_epochs + 1), score_epoch)
  print(
    f"sft: epoch {choice.best} of {len(choice.scores)} has the highest reward "
    f"{choice.mean(choice.best):.3f}",
    flush=True,
  )
  return dict(
    epoch=choice.best,
    num_prompts=len(records),
    scores={str(epoch): choice.mean(epoch) for epoch in choice.scores},
  )


def score(config, reward: Network, ids: Sequence[Any]) -> np.ndarray:
  """Rewards of prompts with completions, as they were sampled: without an end where they have none."""
  return rewards.score_rows(
    reward.cfg,
    reward.params,
    ids,
    length=config.ppo.ppo.max_prompt_tokens + config.ppo.ppo.max_response_tokens,
    batch_size=config.evaluation.batch_size,
  )


# ----------------------------------------------------------------------------- evaluation


def policy_paths(config, workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name of every compared model -> its export."""
  selected = workdir_lib.done_result(workdir / "selection")["epoch"]
  return {name: workdir / name / "export" for name in TAXED} | dict(
    sft=workdir / stages_lib.epoch_export(selected),
    sft_last=workdir / stages_lib.last_epoch(config),
    ppo_live=workdir / "ppo" / "export_live",
    ppo_ptx_live=workdir / "ppo_ptx" / "export_live",
  )


def evaluate(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `evaluation`: the suites `preference` and `pretraining` of `rlhf evaluate`."""
  stage = workdir / "evaluation"
  paths = policy_paths(config, workdir)
  settings = evaluation.Settings(
    seed=config.seed,
    num_resamples=config.evaluation.num_resamples,
    batch_size=config.evaluation.batch_size,
    mesh=sharding.make_mesh(MeshConfig(**config.base.mesh)),
    workdir=stage,
  )

  def run_suite(name, group, models):
    candidates = [Candidate(name=model, source=str(paths[model])) for model in models]
    return evaluation.run(candidates, {name: group}, settings)

  compared = run_suite("preference", preference_config(config, workdir), COMPARED).compared
  taxed = run_suite("pretraining", pretraining_config(config, workdir), TAXED).measures
  processes.wait("evaluation")  # the other processes read what process 0 wrote
  result = results.preferences(stage / "preference", compared, settings.bootstrap)
  result |= results.compare_rewards(sampled_rewards(config, workdir), settings.bootstrap)
  result |= results.alignment_tax(stage / "pretraining", taxed["pretraining"], settings.bootstrap)
  result["gold_score"] = None
  if stages_lib.in_tinyworld(config):
    result["gold_score"], by_prompt = results.gold_scores(
      stage / "preference", world_lib.make_world(config.seed)
    )
    workdir_lib.write_jsonl(stage / "gold.jsonl", by_prompt)
  return result


def sampled_rewards(config, workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Model -> rewards of its completions of the test prompts, scored as in PPO."""
  reward = load_reward(config, workdir)
  found = {}
  for name in COMPARED:
    unit = workdir / "evaluation" / "preference" / name / evaluation.COMPLETIONS
    lines = read_jsonl(unit / units.ITEMS)
    found[name] = score(config, reward, [line["tokens"] for line in lines if line["tokens"]])
  return found


def preference_config(config, workdir: pathlib.Path) -> PreferenceConfig:
  """Every policy against SFT on the test prompts, judged by labelers or else the reward model."""
  p = config.ppo.ppo
  world = stages_lib.in_tinyworld(config)
  return PreferenceConfig(
    data=f"jsonl:{workdir / 'data' / 'prompts_test.jsonl'}",
    limit=None,
    baseline="sft",
    pairs=(),
    judges=("labelers",) if world else (f"reward:{workdir / 'reward_model' / 'export'}",),
    max_prompt_tokens=p.max_prompt_tokens,
    max_response_tokens=p.max_response_tokens,
    temperature=config.evaluation.temperature,
    temperatures=(f"base={config.evaluation.base_temperature!r}",),
    key="",
    comparisons="",
    world=dict(config.labelers, seed=config.seed) if world else {},
    endpoint={},
  )


def pretraining_config(config, workdir: pathlib.Path) -> PretrainingConfig:
  """Held-out text in rows as the base model was trained on, and all few-shot tasks."""
  data, text = workdir / "data", config.base.text
  return PretrainingConfig(
    text=f"jsonl:{data / 'pretraining_valid.jsonl'}",
    train=f"jsonl:{data / 'pretraining_train.jsonl'}",
    max_train_tokens=text.max_tokens,
    length=config.base.length,
    packing=text.packing,
    attend_across_documents=text.attend_across_documents,
    reset_positions=text.reset_positions,
    few_shot=[str(path) for path in sorted(data.glob("few_shot_*.jsonl"))],
    text_batch_size=config.base.sft.batch_size,
  )


# Stage -> function of its view of the config and the workdir; returns what done.json holds.
OWN_STAGES: dict[str, Callable[[Any, pathlib.Path], dict[str, Any]]] = dict(
  comparisons=collect_comparisons, selection=select_sft, evaluation=evaluate
)


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong in any stage, before the first one runs.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  for field, choices in (("reward_init", ("sft", "base")), ("kl_reference", ("ppo_init", "base"))):
    if config[field] not in choices:
      raise ValueError(f"config.{field} {config[field]!r}; choose from {', '.join(choices)}")
  if config.base.get("source") == "":
    raise ValueError(
      "config.base.source is empty; name the published model with "
      "--config.base.source=hf:DIR, gguf:FILE or an export directory"
    )
  for name, stage in stages_lib.table(config).items():
    if stage.algorithm:
      _check_stage(config, stages_lib.view(config, name), stage)
  for name, size in config.reward_model.model.items():
    if config.reward_init == "sft" and size != config.sft.model.get(name):
      raise ValueError(
        f"config.reward_model.model.{name} {size} is not the {config.sft.model.get(name)} of the "
        "SFT model that it starts from; make them equal, or set --config.reward_init=base"
      )
  if not config.sft.sft.keep_epochs or config.sft.sft.max_steps is not None:
    raise ValueError(
      "config.sft: the baseline is chosen among whole epochs; leave "
      "sft.keep_epochs True and sft.max_steps None"
    )
  prompt_format(config).check(base_tokenizer(config))
  EvaluationConfig(**config.evaluation)
  if not stages_lib.in_tinyworld(config):
    splits.FilesConfig(**config.files)
    return
  write_lib.WorldConfig(seed=config.seed, **config.world)
  ComparisonsConfig(**config.comparisons)
  for name, people in zip(("num_training", "num_heldout"), make_labelers(config)):
    if len(people) < 2:
      raise ValueError(
        f"labelers.{name} {len(people)}; use 2 or more, so that agreement between labelers can be "
        "measured"
      )


def _check_stage(config, view, stage: Stage) -> None:
  """Raises ValueError where the stage's algorithm would refuse its config."""
  made = stages_lib.stage_config(view, stage, pathlib.Path())
  if stages_lib.base_is_published(config):  # every stage has its shape
    with made.unlocked():
      made[networks.start_field(made)] = config.base.source
  try:
    ALGORITHMS[stage.algorithm].check_config(made)
  except ValueError as error:
    raise ValueError(f"config.{stage.kind}: {error}") from None


def base_tokenizer(config) -> Tokenizer:
  """The tokenizer of a published base model, or one of the kind that the base stage will make."""
  if not stages_lib.base_is_published(config):
    return Tokenizer.from_spec(config.base.tokenizer, ["any text"])
  found = networks.find_export(config.base.source, kind="policy", flag="config.base.source")
  return found.tokenizer


def check_inputs(config) -> None:
  """Reads your own files line by line and keeps nothing; raises ValueError as the stage `data`."""
  if not stages_lib.in_tinyworld(config):
    splits.check(splits.FilesConfig(**config.files))
