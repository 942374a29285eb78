"""The stages of a pipeline in one table: what each runs, what it reads and what it builds on.

Order, checks, stage configs, execution and fingerprints follow from `table`.  Pipelines that differ
only in fields that a stage does not read can share the stage (`fingerprints`).  The table cannot
list too little, because a stage is given no other fields than those it lists (`view`).

No jax here: a launcher uses this table to find what the trials of a sweep share.
"""

import copy
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from rlhf import workdir as workdir_lib

# Fields of a stage's config -> values.  A path lies under the run's workdir; .jsonl files are data.
Fields = dict[str, Any]

_TEXT: Fields = {
  "text.train": pathlib.PurePath("data/pretraining_train.jsonl"),
  "text.valid": pathlib.PurePath("data/pretraining_valid.jsonl"),
}
_BASE = pathlib.PurePath("base/export")
# Fields of `config.ppo.ppo` that `extra_steps` reads.
_PTX = ("num_iterations", "num_epochs", "batch_size", "minibatch_size", "ptx_ratio", "ptx_length")
_EPOCHS = "sft.sft.num_epochs"
# What drawing completions takes.
_SAMPLING = (
  "seed",
  "base.mesh",
  "base.model",
  "base.compute",
  "format",
  "ppo.ppo.max_prompt_tokens",
  "ppo.ppo.max_response_tokens",
  "evaluation.batch_size",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One stage of a pipeline.

  Attributes:
    name: of the stage, and of its directory in the workdir.
    title: printed when the stage begins.
    algorithm: the module whose `train` runs it; empty where pipeline.py has a function for it.
    group: the config group that it trains with, where that is another stage's.  Stages of one group
      whose settings are equal are the same program and are shared across their names.
    reads: dotted fields of the config that it reads; "" is everything.  A field may be absent:
      your own files have no labelers, TinyWorld has no files.
    inputs: stages whose directories it reads.
    fields: makes what earlier stages and the pipeline's shared settings fill into the stage's
      config, from the view of the config.
  """

  name: str
  title: str
  algorithm: str = ""
  group: str = ""
  reads: tuple[str, ...]
  inputs: tuple[str, ...] = ()
  fields: Callable[[Any], Fields] = lambda view: {}

  @property
  def kind(self) -> str:
    """Stages of one kind and of equal settings are the same program."""
    return self.group if self.group else self.name


def table(config) -> dict[str, Stage]:
  """The stages of a config by name, in order."""
  compared = ("comparisons",) if in_tinyworld(config) else ()  # your own files have comparisons
  start = reward_start(config)
  reference = ("base",) if config["kl_reference"] == "base" else ()
  base: dict[str, Any] = dict(
    reads=("seed", "base"), inputs=("data",), fields=lambda view: {"init_from": ""} | _TEXT
  )
  ppo: dict[str, Any] = dict(
    algorithm="ppo",
    group="ppo",
    reads=("seed", "format", "kl_reference", "ppo"),
    inputs=("data", "ppo_init", "reward_model", *reference),
    fields=_ppo_fields,
  )
  found = [
    Stage(name="data", title="data", reads=("seed", "world", "files")),
    Stage(
      name="base",
      title="base: pretraining from scratch, or a published model",
      algorithm="" if base_is_published(config) else "sft",
      **base,
    ),
    Stage(
      name="sft",
      title="step 1: supervised fine-tuning, the baseline",
      algorithm="sft",
      reads=("seed", "format", "sft"),
      inputs=("data", "base"),
      fields=_demonstration_fields,
    ),
    Stage(
      name="ppo_init",
      title="step 1: PPO's initial policy",
      algorithm="sft",
      reads=("seed", "format", "ppo_init"),
      inputs=("data", "base"),
      fields=lambda view: _demonstration_fields(view) | _TEXT,
    ),
    Stage(
      name="comparisons",
      title="step 2: comparisons",
      reads=(*_SAMPLING, "world", "labelers", "comparisons", _EPOCHS),
      inputs=("data", "sft"),
    ),
    Stage(
      name="reward_base",
      title="step 2: pretraining of the reward model's own base",
      algorithm="sft",
      group="base",
      **base,
    ),
    Stage(
      name="reward_model",
      title="step 2: reward model",
      algorithm="reward_model",
      reads=("seed", "format", "world", "reward_init", "reward_model", "base.model", _EPOCHS),
      inputs=("data", *compared, start),
      fields=_reward_model_fields,
    ),
    Stage(
      name="selection",
      title="step 2: the SFT epoch of highest reward",
      reads=(*_SAMPLING, _EPOCHS, "evaluation.temperature", "evaluation.num_selection_prompts"),
      inputs=("data", "sft", "reward_model"),
    ),
    Stage(name="ppo", title="step 3: PPO", **ppo),
    Stage(name="ppo_ptx", title="step 3: PPO-ptx", **ppo),
    Stage(
      name="base_more_pretraining",
      title="the base model on as many more tokens of pretraining text",
      algorithm="sft",
      reads=("seed", "base_more_pretraining", *(f"ppo.ppo.{name}" for name in _PTX)),
      inputs=("data", "base"),
      fields=_more_pretraining_fields,
    ),
  ]
  absent = {"comparisons", "reward_base"} - {*compared, start}
  stages = {stage.name: stage for stage in found if stage.name not in absent}
  last = Stage(name="evaluation", title="evaluation", reads=("",), inputs=tuple(stages))
  return stages | {last.name: last}


# ----------------------------------------------------------------------------- what is filled in


def _demonstration_fields(config) -> Fields:
  return {
    "init_from": _BASE,
    "tokenizer": "",
    "demonstrations.train": pathlib.PurePath("data/demonstrations_train.jsonl"),
    "demonstrations.valid": pathlib.PurePath("data/demonstrations_valid.jsonl"),
  } | _format_fields(config, "demonstrations")


def _reward_model_fields(config) -> Fields:
  start = reward_start(config)
  return {
    "init_from": last_epoch(config) if start == "sft" else pathlib.PurePath(start, "export"),
    **{f"comparisons.{part}": path for part, path in comparison_files(config).items()},
    "comparisons.demonstrations": pathlib.PurePath("data/demonstrations_train.jsonl"),
  } | _format_fields(config, "comparisons")


def _ppo_fields(config) -> Fields:
  return {
    "policy_from": pathlib.PurePath("ppo_init/export"),
    "reward_from": pathlib.PurePath("reward_model/export"),
    "reference_from": _BASE if config["kl_reference"] == "base" else "",
    "prompts.train": pathlib.PurePath("data/prompts_ppo.jsonl"),
    "prompts.valid": pathlib.PurePath("data/prompts_ppo_valid.jsonl"),
    "pretraining.train": _TEXT["text.train"],
  } | _format_fields(config, "prompts")


def _more_pretraining_fields(config) -> Fields:
  # Another seed than the base model's: not the order of its first epoch once more.
  return {
    "seed": config["seed"] + 1,
    "init_from": _BASE,
    "tokenizer": "",
    "sft.max_steps": extra_steps(config),
  } | _TEXT


def _format_fields(config, group: str) -> Fields:
  return {f"{group}.{name}": text for name, text in config["format"].items()}


def comparison_files(config) -> dict[str, pathlib.PurePath]:
  """Ranked completions to train and to validate on: collected in TinyWorld, else your own."""
  name = "comparisons/{}.jsonl" if in_tinyworld(config) else "data/comparisons_{}.jsonl"
  return {part: pathlib.PurePath(name.format(part)) for part in ("train", "valid")}


def in_tinyworld(config) -> bool:
  """Whether the data are TinyWorld's, and not your own files."""
  return "world" in config


def base_is_published(config) -> bool:
  """Whether the base model is read from `config.base.source`, and not trained from scratch."""
  return "source" in config["base"]


def reward_start(config) -> str:
  """The stage whose export the reward model starts from."""
  if config["reward_init"] == "sft":
    return "sft"
  same = config["reward_model"]["model"] == config["base"]["model"]
  return "base" if same else "reward_base"


def last_epoch(config) -> pathlib.PurePath:
  """The export of the last SFT epoch."""
  return epoch_export(config["sft"]["sft"]["num_epochs"])


def epoch_export(epoch: int) -> pathlib.PurePath:
  """The export of an SFT epoch, counted from 1."""
  return pathlib.PurePath("sft", "epochs", f"{epoch:02d}")


def extra_steps(config) -> int:
  """Steps in which the base model reads as many tokens of text as PPO-ptx does, padding included,
  rounded up."""
  p = config["ppo"]["ppo"]
  updates = p["num_iterations"] * p["num_epochs"] * (p["batch_size"] // p["minibatch_size"])
  tokens = updates * p["minibatch_size"] * p["ptx_ratio"] * p["ptx_length"]
  more = config["base_more_pretraining"]
  return -(-tokens // (more["sft"]["batch_size"] * more["length"]))


def stage_config(config, stage: Stage, workdir: pathlib.Path):
  """The complete config of a stage that an algorithm trains, from the stage's `view`."""
  made = config[stage.kind].copy_and_resolve_references().unlock()
  made.seed = config.seed
  for field, value in stage.fields(config).items():
    *groups, leaf = field.split(".")
    target = made
    for group in groups:
      target = target[group]
    if isinstance(value, pathlib.PurePath):
      value = f"{'jsonl:' if value.suffix == '.jsonl' else ''}{workdir / value}"
    target[leaf] = value
  return made.lock()


# ----------------------------------------------------------------------------- what is shared


def view(config, name: str):
  """A copy of a pipeline's config with the fields that the stage reads, and no others.

  In it PPO without pretraining gradients has the coefficient 0, and the reward model's own base
  model has the reward model's shape.
  """
  kept = config.copy_and_resolve_references().unlock()
  _restrict(kept, table(config)[name], config)
  return kept.lock()


def _restrict(kept, stage: Stage, config) -> None:
  """Makes a copy of the config the stage's view; takes ConfigDicts or dicts."""
  _keep(kept, stage.reads, "")
  if stage.name == "ppo":
    kept["ppo"]["ppo"]["ptx_coef"] = 0.0
  if stage.name == "reward_base":
    kept["base"]["model"] = config["reward_model"]["model"]


def _keep(group, paths: tuple[str, ...], prefix: str) -> None:
  for field in list(group):
    path = prefix + field
    if "" in paths or path in paths:
      continue
    if any(wanted.startswith(path + ".") for wanted in paths):
      _keep(group[field], paths, path + ".")
    else:
      del group[field]


def fingerprints(config) -> dict[str, str]:
  """Stage -> `KIND-HASH`, equal for stages that would come out equal.

  Of all stages that pipelines can share, which are all but the evaluation, in order.
  """
  plain = workdir_lib.plain(config)
  found: dict[str, str] = {}
  for name, stage in table(config).items():
    if name != "evaluation":
      kept = copy.deepcopy(plain)
      _restrict(kept, stage, plain)
      content = dict(config=kept, inputs={other: found[other] for other in stage.inputs})
      found[name] = f"{stage.kind}-{workdir_lib.config_hash(content)}"
  return found


# ----------------------------------------------------------------------------- checks


def check_name(config, name: str) -> None:
  """Raises ValueError where the config has no such stage."""
  if name not in table(config):
    raise ValueError(f"last_stage {name!r}; choose from {', '.join(table(config))}")


def check_workdir(workdir) -> None:
  """Raises ValueError where an earlier version wrote the run, with a stage of another name."""
  if (pathlib.Path(workdir) / "init").exists():
    raise ValueError(
      f"{workdir} was written by an earlier version, in which the stage ppo_init was called init; "
      "choose another --workdir"
    )
