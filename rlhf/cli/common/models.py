"""Models named on the command line: how they are found and loaded, prompted and scored.

Reward models read prompt and completion as text, in the format of their own training, so that their
tokenizer need not be the policy's.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, jsonl
from rlhf.evals.reward_models import selection
from rlhf.inference import ensembles

LENGTH_MULTIPLE = 64  # rows are padded to a multiple of this: few shapes to compile
NUM_RESAMPLES = 2000  # of bootstraps over prompts
POLICY_HELP = "a policy: an export directory, the workdir of its stage, hf:DIR or gguf:FILE"
REWARD_HELP = "a reward model: an export directory, the workdir of its stage, or hf:DIR"

# (prompt, completion) pairs -> one score each.
Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]


# ----------------------------------------------------------------------------- finding and loading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A model that has been found, and is loaded when it is needed.

  Attributes:
    name: as given on the command line.
    flag: that named it.
    kind: "policy" or "reward".
    export: its description, `checkpoint.Export` or `reading.Source`.
    prompt_format: how it reads prompts.
  """

  name: str
  flag: str
  kind: str
  export: Any
  prompt_format: Any

  @functools.cached_property
  def tokenizer(self):
    return self.export.tokenizer

  @property
  def context_length(self) -> int:
    return self.export.model["context_length"]

  def lengths(self, prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt in the model's format."""
    return [len(ids) for ids in self.prompt_format.encode_prompts(self.tokenizer, prompts)]

  def load(self):
    """The network, on a mesh of all devices."""
    from rlhf import networks

    return networks.load(self.name, kind=self.kind, flag=f"--{self.flag}")


def find(name: str, flag: str, kind: str, arguments: argparse.Namespace | None = None) -> Model:
  """Looks a model up without loading its weights.

  Args:
    name, flag, kind: as in `Model`.
    arguments: of `add_prompt_format`; None for the format of the model's training.

  Raises:
    ValueError: there is no such model, it is of another kind, or has no such prompt format.
  """
  from rlhf import networks
  from rlhf.data import prepare

  export = networks.find_export(name, kind=kind, flag=f"--{flag}")
  trained = prepare.PromptFormat.trained_with(export.config)
  model = Model(
    name=name,
    flag=flag,
    kind=kind,
    export=export,
    prompt_format=trained if arguments is None else prompt_format(trained, arguments),
  )
  model.prompt_format.check(model.tokenizer)
  return model


# ----------------------------------------------------------------------------- prompts


def add_prompt_format(parser: flags.Parser) -> None:
  """The flags of `prompt_format`."""
  parser.flag(
    "prompt_format",
    "plain, or the model's chat template; as in training if not given",
    choices=("plain", "chat"),
  )
  parser.flag("prompt_suffix", "text after every prompt; as in training if not given")
  parser.flag("completion_prefix", "text before every completion; as in training if not given")


def prompt_format(trained, arguments: argparse.Namespace):
  """The `prepare.PromptFormat` of the flags; what is not given is as in training.

  With another --prompt_format than in training, what is not given has that format's defaults.

  Raises:
    ValueError: the flags contradict one another.
  """
  from rlhf.data import prepare

  found = dataclasses.asdict(trained)
  if arguments.prompt_format == "plain" and trained.is_chat:
    found = dataclasses.asdict(prepare.PLAIN)
  elif arguments.prompt_format == "chat" and not trained.is_chat:
    found = dict.fromkeys(found, "")
  given = {name: getattr(arguments, name) for name in found}
  return prepare.PromptFormat(
    **found | {name: text for name, text in given.items() if text is not None}
  )


def add_sampling(
  parser: flags.Parser,
  max_response_tokens: int | None = 256,
  note: str = "prompts have the rest of the context",
) -> None:
  """The flags of every command that samples completions."""
  parser.flag("temperature", "0 is greedy", flags.temperature, 1.0)
  parser.flag(
    "max_response_tokens", f"of a completion; {note}", flags.at_least(1), max_response_tokens
  )
  parser.flag("seed", "of sampling", flags.at_least(0), 0)
  add_batch_size(parser)
  add_prompt_format(parser)


def add_batch_size(parser: flags.Parser) -> None:
  """--batch_size and --on_bad."""
  parser.flag(
    "batch_size", "rows at once; changes only speed and memory", flags.at_least(1), default=64
  )
  parser.flag(
    "on_bad", "at a bad line: stop, or skip it and count", default="stop", choices=("stop", "skip")
  )


def completion_config(model: Model, longest: int, arguments: argparse.Namespace, **more):
  """`CompletionConfig` with no more room for prompts than one of `longest` tokens needs."""
  from rlhf.inference.completions import CompletionConfig

  room = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
  return CompletionConfig(
    max_prompt_tokens=min(room, model.context_length - arguments.max_response_tokens),
    max_response_tokens=arguments.max_response_tokens,
    temperature=arguments.temperature,
    batch_size=arguments.batch_size,
    **dataclasses.asdict(model.prompt_format),
    **more,
  )


# ----------------------------------------------------------------------------- reward models


def add_reward_models(parser: flags.Parser, *, all_rules: bool = False) -> None:
  """Which reward models score and, unless `all_rules` are tried, how they are combined."""
  parser.flag(
    "reward_model",
    f"{REWARD_HELP}; several, joined by commas, are an ensemble",
    flags.names,
    required=True,
  )
  if not all_rules:
    parser.flag(
      "ensemble", "how rewards are combined", choices=tuple(ensembles.RULES), default="mean"
    )
  parser.flag("variance_coef", "lambda of mean_minus_variance", flags.temperature, 0.5)


def load_reward_models(arguments: argparse.Namespace) -> dict[str, Score]:
  """Each reward model of --reward_model as a scoring function, by its name."""
  return {
    name: load_reward_model(name, "reward_model", arguments.batch_size)
    for name in arguments.reward_model
  }


def load_reward_model(name: str, flag: str, batch_size: int) -> Score:
  """`rewards.score_texts` of a reward model, in the format of its training."""
  from rlhf.inference import rewards

  model = find(name, flag, "reward")
  return functools.partial(
    rewards.score_texts,
    model.load(),
    model.prompt_format,
    batch_size=batch_size,
    name=f"the reward model {name}",
  )


# ----------------------------------------------------------------------------- selection by reward


def add_selection(parser: flags.Parser) -> None:
  """The flags of a selection among candidates by the reward of their completions."""
  parser.flag("prompts", "JSONL or FORMAT:FILE of validation prompts", required=True)
  parser.flag("num_prompts", "takes the first N; all if not given", flags.at_least(1))
  add_reward_models(parser)
  add_sampling(parser)


def fitting_prompts(
  policies: Sequence[Model], arguments: argparse.Namespace, *, prefix: str = ""
) -> list[str]:
  """The prompts that fit, with a completion, into every policy's context; counts the others.

  Args:
    policies: at least one.
    arguments: of `add_selection`.
    prefix: is put before each prompt.

  Raises:
    ValueError: no prompt fits, or as `formats.read`.
  """
  from rlhf.data import formats, records

  name, path = jsonl.split_format(arguments.prompts)
  found, counts = formats.read("prompt", path, name, on_bad=arguments.on_bad)
  print(records.describe_counts("prompts", counts), flush=True)
  prompts = [record["prompt"] for record in found]
  lengths = np.stack(
    [policy.lengths([prefix + prompt for prompt in prompts]) for policy in policies]
  )
  room = np.asarray([policy.context_length for policy in policies]) - arguments.max_response_tokens
  kept = [prompt for prompt, fits in zip(prompts, (lengths.T <= room).all(axis=1)) if fits]
  if not kept:
    raise ValueError(
      f"none of {len(prompts)} prompts fits with --max_response_tokens="
      f"{arguments.max_response_tokens} into a context of "
      f"{min(policy.context_length for policy in policies)}; use fewer"
    )
  if len(kept) < len(prompts):
    print(
      f"prompts: {len(prompts) - len(kept)} dropped (too long for a policy's context)", flush=True
    )
  return kept[: arguments.num_prompts]


def sample_each(network, policy: Model, prompts: list[str], arguments, prefix=None):
  """`Completions` of the prompts, one each, behind the prefix if there is one."""
  from rlhf import loop
  from rlhf.inference import prefixes

  longest = max(policy.lengths(prompts if prefix is None else prefix.prompts(prompts)))
  config = completion_config(policy, longest, arguments)
  key = loop.step_key(arguments.seed, "validate", 0)
  return prefixes.sample(network, prefix, prompts, config, key)


def choose(
  candidates: dict[str, Any],
  sample: Callable[[str], Any],
  prompts: Sequence[str],
  arguments: argparse.Namespace,
):
  """`selection.Choice`: the candidate whose completions have the highest mean reward.

  Args:
    candidates: by name.
    sample: name -> its completions of the prompts, one each.
    arguments: of `add_selection`.
  """
  members = load_reward_models(arguments)

  def score(name: str) -> np.ndarray:
    texts = [(prompt, drawn[0]) for prompt, drawn in zip(prompts, sample(name).texts, strict=True)]
    score_EP = np.stack([member(texts) for member in members.values()])
    return ensembles.combine(score_EP, arguments.ensemble, variance_coef=arguments.variance_coef)

  return selection.choose(
    candidates,
    score,
    on_scored=lambda name, mean: print(f"{name}  mean reward {mean:.4g}", flush=True),
  )


def report(
  choice, kind: str, arguments: argparse.Namespace, path: str | pathlib.Path, **more: Any
) -> str:
  """Writes the best candidate, and each one's mean reward with its interval; returns a sentence."""
  intervals = choice.intervals(num_resamples=NUM_RESAMPLES, seed=arguments.seed)
  found = {
    "best": choice.best,
    "num_prompts": len(choice.scores[choice.best]),
    "candidates": [{kind: name, **interval.as_dict()} for name, interval in intervals.items()],
    "reward_model": arguments.reward_model,
    "ensemble": arguments.ensemble,
    "temperature": arguments.temperature,
    "seed": arguments.seed,
    **more,
  }
  workdir_lib.write_json(path, found)
  return (
    f"{choice.best} of {len(intervals)} has the highest reward {choice.mean(choice.best):.4g} over "
    f"{found['num_prompts']} prompts"
  )
