"""What commands share that let policies answer and reward models score: flags, prompts, loading.

Reward models read prompt and answer as text, in the format of their own training, so that they may
have another tokenizer than the policy.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.cli import jsonl, setup

LENGTH_MULTIPLE = 64  # rows are padded to a multiple of this: few shapes to compile
NUM_RESAMPLES = 2000  # of bootstraps over prompts

# (prompt, answer) pairs -> one score each.
Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]


# ----------------------------------------------------------------------------- reward models


def add_reward_flags(parser: setup.Parser, *, all_rules: bool = False) -> None:
  """Which reward models score, and how they are combined unless `all_rules` are tried."""
  from rlhf.inference import ensembles

  parser.add_argument(
    "--reward_model",
    required=True,
    help="export directory of a reward model, the workdir of its stage or "
    "hf:DIR; several, joined by commas, are an ensemble",
  )
  if not all_rules:
    parser.add_argument(
      "--ensemble",
      choices=ensembles.RULES,
      default="mean",
      help="how several reward models are combined",
    )
  parser.add_argument(
    "--variance_coef", type=setup.temperature, default=0.5, help="lambda of mean_minus_variance"
  )


def load_reward_models(arguments: argparse.Namespace) -> dict[str, Score]:
  """Each reward model of --reward_model as a scoring function, by the name that it was given.

  Raises:
    ValueError: one is named twice, or is none.
  """
  names = split_list(arguments.reward_model, "reward_model")
  return {name: load_reward_model(name, arguments.batch_size) for name in names}


def load_reward_model(name: str, batch_size: int) -> Score:
  """Scores (prompt, answer) as `rewards.score_texts`, in the format of the model's training."""
  from rlhf import networks, sharding
  from rlhf.data import prepare
  from rlhf.inference import rewards

  directory = setup.find_network(name, "reward_model")
  export = networks.find_export(directory, kind="reward", flag="--reward_model")
  prompt_format = prepare.PromptFormat.trained_with(export.config)
  prompt_format.check(networks.tokenizer_of(export))
  network = networks.load(
    directory,
    export.compute,
    _mesh(sharding),
    kind="reward",
    flag="--reward_model",
  )
  return functools.partial(
    rewards.score_texts,
    network,
    prompt_format,
    batch_size=batch_size,
    name=f"the reward model {name}",
  )


def ensemble(members: dict[str, Score], arguments: argparse.Namespace) -> Score:
  """All reward models as one, by --ensemble and --variance_coef."""
  from rlhf.inference import ensembles

  return ensembles.as_one(
    list(members.values()), arguments.ensemble, variance_coef=arguments.variance_coef
  )


def _mesh(sharding):
  return sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))


def split_list(text: str, flag: str) -> list[str]:
  """Names joined by commas.

  Raises:
    ValueError: one is empty, or given twice.
  """
  names = text.split(",")
  for name in names:
    if not name or names.count(name) > 1:
      problem = f"{name!r} is given twice" if name else "a name is empty"
      raise ValueError(f"--{flag}={text}: {problem}; join different names by single commas")
  return names


# ----------------------------------------------------------------------------- policies


def add_answer_flags(parser: setup.Parser) -> None:
  """How policies are asked."""
  parser.add_argument(
    "--prompts", required=True, help="JSONL or FORMAT:FILE of prompts, such as validation prompts"
  )
  parser.add_argument(
    "--num_prompts", type=setup.at_least(1), help="takes the first so many; all if not given"
  )
  parser.add_argument("--temperature", type=setup.temperature, default=1.0, help="0 is greedy")
  parser.add_argument(
    "--max_response_tokens",
    type=setup.at_least(1),
    default=256,
    help="of an answer; prompts have the rest of the context",
  )
  parser.add_argument("--seed", type=setup.at_least(0), default=0)
  parser.add_argument(
    "--batch_size",
    type=setup.at_least(1),
    default=64,
    help="answers at once; changes nothing but speed and memory",
  )
  parser.add_argument(
    "--on_bad", choices=jsonl.ON_BAD, default="stop", help="at a bad line: stop, or skip and count"
  )
  setup.add_prompt_format(parser)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
  """A policy that was found, and is loaded when it is its turn.

  Attributes:
    name: as the user gave it, or as it lies in a directory that was given.
    source: what `networks.load` takes.
    export: what it says of itself.
    prompt_format: how it is asked.
  """

  name: str
  source: str | pathlib.Path
  export: Any
  prompt_format: Any

  @functools.cached_property
  def tokenizer(self):
    from rlhf import networks

    return networks.tokenizer_of(self.export)

  @property
  def context_length(self) -> int:
    return self.export.model["context_length"]

  def load(self):
    """The network, on a mesh of all devices."""
    from rlhf import networks, sharding

    return networks.load(
      self.source, self.export.compute, _mesh(sharding), kind="policy", flag=self.name
    )


def find_policy(name: str, flag: str, arguments: argparse.Namespace) -> Policy:
  """Raises ValueError where `name` is no policy, or the format does not go with it."""
  from rlhf import networks

  source = setup.find_network(name, flag)
  export = networks.find_export(source, kind="policy", flag=f"--{flag}")
  policy = Policy(
    name=name,
    source=source,
    export=export,
    prompt_format=setup.prompt_format(export.config, arguments),
  )
  policy.prompt_format.check(policy.tokenizer)
  return policy


def read_prompts(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """The records of --prompts.

  Raises:
    ValueError: the file cannot be read, has a bad line, or no good one.
  """
  from rlhf.data import formats, records

  name, colon, path = arguments.prompts.partition(":")
  if not colon or name not in formats.FORMATS:
    name, path = "jsonl", arguments.prompts
  found, counts = formats.read("prompt", path, name, on_bad=arguments.on_bad)
  print(records.describe_counts("prompts", counts), flush=True)
  return found


def fitting(
  records: Sequence[dict[str, Any]],
  policies: Sequence[Policy],
  arguments: argparse.Namespace,
  *,
  prefix: str = "",
) -> list[dict[str, Any]]:
  """Prompts that fit into every policy's context beside an answer; the others are counted.

  Args:
    prefix: is put before each prompt.

  Raises:
    ValueError: none does.
  """
  lengths = np.zeros((len(policies), len(records)), int)
  for row, policy in enumerate(policies):
    lengths[row] = prompt_lengths(policy, [prefix + record["prompt"] for record in records])
  room = np.asarray([policy.context_length for policy in policies]) - arguments.max_response_tokens
  kept = [record for record, fits in zip(records, (lengths <= room[:, None]).all(axis=0)) if fits]
  if not kept:
    raise ValueError(
      f"none of {len(records)} prompts fits beside --max_response_tokens="
      f"{arguments.max_response_tokens} into a context of "
      f"{min(policy.context_length for policy in policies)}; use fewer"
    )
  if len(kept) < len(records):
    print(
      f"prompts: {len(records) - len(kept)} dropped (too long for a policy's context)", flush=True
    )
  return kept[: arguments.num_prompts]


def prompt_lengths(policy: Policy, prompts: Sequence[str]) -> list[int]:
  """Tokens of each prompt in the policy's format."""
  return [len(ids) for ids in policy.prompt_format.encode_prompts(policy.tokenizer, prompts)]


def answer_config(policy: Policy, prompts: Sequence[str], arguments: argparse.Namespace):
  """`CompletionConfig` with no more room for prompts than the longest needs."""
  from rlhf.inference.completions import CompletionConfig

  longest = max(prompt_lengths(policy, prompts))
  room = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
  return CompletionConfig(
    max_prompt_tokens=min(room, policy.context_length - arguments.max_response_tokens),
    max_response_tokens=arguments.max_response_tokens,
    temperature=arguments.temperature,
    batch_size=arguments.batch_size,
    **dataclasses.asdict(policy.prompt_format),
  )


def report(choice, kind: str, arguments: argparse.Namespace, **more: Any) -> dict[str, Any]:
  """What a selection writes: the best candidate, and each one's mean reward with its interval."""
  intervals = choice.intervals(num_resamples=NUM_RESAMPLES, seed=arguments.seed)
  num_prompts = len(choice.scores[choice.best])
  return {
    "best": choice.best,
    "num_prompts": num_prompts,
    "candidates": [{kind: name, **interval.as_dict()} for name, interval in intervals.items()],
    "reward_model": arguments.reward_model.split(","),
    "ensemble": arguments.ensemble,
    "temperature": arguments.temperature,
    "seed": arguments.seed,
    **more,
  }
