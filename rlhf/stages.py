"""Which stages a pipeline has, what each reads of the config, and which stages it builds on.

Pipelines that differ elsewhere than in what a stage reads can share it: `fingerprints` says whether
they do.  The table cannot say too little: `pipeline.run` gives a stage no other fields than
those it lists (`view`).

No jax here: a launcher decides by this table what the trials of a sweep share.
"""

import copy

from rlhf import workdir as workdir_lib

_NETWORK = (
  "seed",
  "base.mesh",
  "base.model",
  "base.compute",
  "format",
  "ppo.ppo.max_prompt_tokens",
  "ppo.ppo.max_response_tokens",
  "evaluation.batch_size",
)  # to draw answers
# Stage -> dotted fields of the config that it reads.  A field may be absent: one's own files have
# no labelers, TinyWorld has no files.
READS = {
  "data": ("seed", "world", "files"),
  "base": ("seed", "base"),
  "sft": ("seed", "format", "sft"),
  "init": ("seed", "format", "init"),
  "comparisons": (*_NETWORK, "world", "labelers", "comparisons", "sft.sft.num_epochs"),
  "reward_base": ("seed", "base"),
  "reward_model": (
    "seed",
    "format",
    "world",
    "reward_init",
    "reward_model",
    "base.model",
    "sft.sft.num_epochs",
  ),
  "selection": (
    *_NETWORK,
    "sft.sft.num_epochs",
    "evaluation.temperature",
    "evaluation.num_selection_prompts",
  ),
  "ppo": ("seed", "format", "kl_reference", "ppo"),
  "ppo_ptx": ("seed", "format", "kl_reference", "ppo"),
  "base_more_pretraining": (
    "seed",
    "base_more_pretraining",
    "ppo.ppo.num_iterations",
    "ppo.ppo.num_epochs",
    "ppo.ppo.batch_size",
    "ppo.ppo.minibatch_size",
    "ppo.ppo.ptx_ratio",
    "ppo.ppo.ptx_length",
  ),
  "evaluation": ("",),  # everything
}
# Stages that are the same program: equal configs of these are one stage.
KINDS = {"reward_base": "base", "ppo_ptx": "ppo"}


def names(config) -> list[str]:
  """The stages of a config, in order."""
  absent = set()
  if "world" not in config:
    absent.add("comparisons")  # they are given, as a file
  if reward_start(config) != "reward_base":
    absent.add("reward_base")
  return [name for name in READS if name not in absent]


def check_name(config, name: str) -> None:
  """Raises ValueError where `name` is no stage of the config."""
  if name not in names(config):
    raise ValueError(f"last_stage {name!r}; choose from {', '.join(names(config))}")


def reward_start(config) -> str:
  """The stage whose export the reward model starts from."""
  if config["reward_init"] == "sft":
    return "sft"
  same = config["reward_model"]["model"] == config["base"]["model"]
  return "base" if same else "reward_base"


def inputs(config, name: str) -> tuple[str, ...]:
  """The stages whose directories a stage reads; `evaluation` reads all."""
  compared = ("comparisons",) if "world" in config else ()
  reference = ("base",) if config["kl_reference"] == "base" else ()
  table = {
    "data": (),
    "base": ("data",),
    "sft": ("data", "base"),
    "init": ("data", "base"),
    "comparisons": ("data", "sft"),
    "reward_base": ("data",),
    "reward_model": ("data", *compared, reward_start(config)),
    "selection": ("data", "sft", "reward_model"),
    "ppo": ("data", "init", "reward_model", *reference),
    "ppo_ptx": ("data", "init", "reward_model", *reference),
    "base_more_pretraining": ("data", "base"),
  }
  return table[name] if name in table else tuple(table)


def view(config, name: str):
  """A copy of a pipeline's config with what the stage reads, and no more.

  In it PPO without pretraining gradients has the coefficient 0, and the reward model's own base
  model the reward model's shape.
  """
  kept = config.copy_and_resolve_references().unlock()
  _restrict(kept, name, config)
  return kept.lock()


def _restrict(kept, name: str, config) -> None:
  """Makes a copy of the config the stage's view; dicts will do for both."""
  _keep(kept, READS[name], "")
  if name == "ppo":
    kept["ppo"]["ppo"]["ptx_coef"] = 0.0
  if name == "reward_base":
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

  Of the stages that pipelines can share, which are all but the evaluation, in order.
  """
  plain = workdir_lib.config_to_dict(config)
  found: dict[str, str] = {}
  for name in names(config)[:-1]:
    kept = copy.deepcopy(plain)
    _restrict(kept, name, plain)
    content = dict(config=kept, inputs={other: found[other] for other in inputs(config, name)})
    kind = KINDS[name] if name in KINDS else name
    found[name] = f"{kind}-{workdir_lib.config_hash(content)}"
  return found
