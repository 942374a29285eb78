"""What is measured: a job that both processes are told, and the case that each makes of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

# Case -> the kinds of config that describe it.
CASES = {
  "generate": ("ppo",),
  "score": ("reward_model",),
  "sft_step": ("sft",),
  "rm_step": ("reward_model",),
  "ppo_iteration": ("ppo",),
  "data": ("sft",),
  "checkpoint": ("sft", "reward_model", "ppo"),
  "startup": ("sft", "reward_model", "ppo"),
}
# Cases whose own process needs no device.
WITHOUT_DEVICE = ("data", "startup")
# What a case can be compared with -> case -> the ways in which that runs it.
PEERS: dict[str, dict[str, tuple[str, ...]]] = {
  "transformers": {
    "generate": ("eager", "static cache, compiled"),
    "score": ("eager",),
    "sft_step": ("eager",),
    "rm_step": ("eager",),
  },
  "trl": {"ppo_iteration": ("PPOTrainer",)},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """One measurement, as JSON can hold it.

  Attributes:
    case: one of `CASES`.
    config: the resolved config, as `workdir.plain` returns it.
    vocab_size: tokens of the vocabulary, the last of which is end-of-text; a row for padding is
      added.
    completions: of each prompt, of a case with a config of a reward model.
    rows: records that the case `data` makes where the config names no file.
    end_share: share of the vocabulary whose tokens end a response, besides end-of-text.
    seed: of weights, inputs and sampling.
  """

  case: str
  config: dict[str, Any]
  vocab_size: int
  end_share: float
  completions: int
  rows: int
  seed: int = 0

  @property
  def pad_id(self) -> int:
    return self.vocab_size

  @property
  def eot_id(self) -> int:
    return self.vocab_size - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
  """What one run of a case did.

  Attributes:
    tokens: that were computed, padding included; None where the case is not counted in tokens.
    useful_tokens: of these, the ones that are no padding and do not follow a row's end.
    flops: model FLOPs, as `rlhf/model/flops.py` counts them; None where there are none.
    least_bytes: that the run must move at least between memory and processor; None where the case
      has no count.
    seconds: of each phase that the run tells apart.
    amount, unit: what each phase works through, such as a number of "rows"; 0 where that is not
      counted.
    peaks: peak bytes of host memory in each phase; empty where the phases share one process's.
    given: what another process needs for the same work, such as the sampled lengths.
  """

  tokens: int | None = None
  useful_tokens: int | None = None
  flops: float | None = None
  least_bytes: float | None = None
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  amount: float = 0
  unit: str = ""
  peaks: Mapping[str, int] = dataclasses.field(default_factory=dict)
  given: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A case that is ready to run.

  Attributes:
    model: its architecture, and how many parameters it has; empty where there is none.
    run: does the work once; takes what the other process's run gave.
    phases: seconds of phases that only programs of their own can tell apart; None where `run` tells
      all.
    export: writes the networks into a directory as Hugging Face checkpoints.
  """

  model: Mapping[str, Any]
  run: Callable[[Mapping[str, Any]], Work]
  phases: Callable[[], dict[str, float]] | None = None
  export: Callable[[str], None] | None = None
