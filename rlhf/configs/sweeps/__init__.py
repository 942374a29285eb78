"""Sweeps: which trials there are, of which command, and what is plotted.

A file here has `get_sweep(form) -> Sweep`; `python -m launch.sweep configs/sweeps/NAME.py:FORM`
runs it.  FORM is a size of the GPT-3 family, for runs of one stage on one's own exports and data, or
`tiny` or `test`, for whole TinyWorld pipelines that share what they have in common.

A trial is a dict, dotted field of the config -> value; lists of trials are made with

    grid(key, values)     one trial per value
    product(a, b, ...)    every trial of a with every trial of b
    a + b                 the trials of a, then those of b
    zip_(a, b, ...)       the first of a with the first of b, the second with the second, ...
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Trial = dict[str, Any]
COMMANDS = ("pipeline", "sft", "reward_model", "ppo")
PIPELINES = ("tiny", "test")
POLICIES = ("ppo", "ppo_ptx")  # of a pipeline


def grid(key: str, values: Iterable[Any]) -> list[Trial]:
  """One trial per value of one field."""
  return [{key: value} for value in values]


def product(*lists: Sequence[Trial]) -> list[Trial]:
  """Every trial of each list with every trial of the others; the last list varies fastest.

  Raises:
    ValueError: two lists set the same field.
  """
  return [_merged(trials) for trials in itertools.product(*lists)]


def zip_(*lists: Sequence[Trial]) -> list[Trial]:
  """The n-th trials of all lists together.

  Raises:
    ValueError: the lists are not of one length, or two set the same field.
  """
  lengths = [len(trials) for trials in lists]
  if len(set(lengths)) > 1:
    raise ValueError(
      f"zip_ was given lists of {', '.join(map(str, lengths))} trials; make them equally long"
    )
  return [_merged(trials) for trials in zip(*lists)]


def _merged(trials: Iterable[Trial]) -> Trial:
  merged: Trial = {}
  for trial in trials:
    twice = sorted(merged.keys() & trial.keys())
    if twice:
      raise ValueError(f"{twice[0]} is set by two of the lists that are combined; leave it to one")
    merged |= trial
  return merged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """What `launch.sweep` runs and plots.

  Attributes:
    title: of the plot.
    command: "pipeline", or the algorithm of `launch.train`.
    config: of every trial, before its overrides: `configs/FILE.py:ARGUMENT`.
    trials: overrides, each run with every seed.
    seeds: values of the config's `seed`.
    x: the field along the plot's x axis, and `x_label` its name there; a list of numbers of which
      none is negative gets a logarithmic axis, where 0 has a place of its own.
    measures: what `--collect` gathers; names of `rlhf.report.sweeps.MEASURES`.
    policies: of a pipeline, whose answers are measured: "ppo" (always without pretraining
      gradients), "ppo_ptx" or both; ("",) where that is not a question.
    last_stage: of a pipeline; "evaluation" unless earlier stages say all.
    required: fields of the config that have to be given on the command line -> what they name.
  """

  title: str
  command: str
  config: str
  trials: Sequence[Trial]
  seeds: Sequence[int]
  x: str
  x_label: str
  measures: Sequence[str]
  policies: Sequence[str] = ("ppo_ptx",)
  last_stage: str = "evaluation"
  required: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.command not in COMMANDS:
      raise ValueError(f"command {self.command!r}; choose from {', '.join(COMMANDS)}")
    for name in ("trials", "seeds", "measures", "policies"):
      if not getattr(self, name):
        raise ValueError(f"{self.title}: {name} is empty; give at least one")
    known = POLICIES if self.command == "pipeline" else ()
    known += ("",) if self.command != "pipeline" or self.last_stage != "evaluation" else ()
    for policy in self.policies:
      if policy not in known:
        raise ValueError(
          f"{self.title}: there is no policy {policy!r} to measure; choose from "
          f"{', '.join(map(repr, known))}"
        )
    for number, trial in enumerate(self.trials, 1):
      if self.x not in trial:
        raise ValueError(
          f"{self.title}: trial {number} of {len(self.trials)} does not set "
          f"{self.x}, which is plotted along the x axis"
        )


POLICY_MEASURES = (
  "pretraining_tax",
  "few_shot_mean",
  "validation_reward",
  "win_rate_training",
  "win_rate_heldout",
)


def pipeline_sweep(form: str, **fields: Any) -> Sweep:
  """A sweep of TinyWorld pipelines, of three seeds at `tiny` and of one at `test`."""
  if form not in PIPELINES:
    raise ValueError(f"form {form!r}; choose from {', '.join(PIPELINES)}")
  defaults = dict(
    seeds=(0, 1, 2) if form == "tiny" else (0,),
    measures=POLICY_MEASURES,
    config=f"configs/pipeline.py:{form}",
  )
  return Sweep(command="pipeline", **defaults | fields)


def ppo_sweep(size: str, **fields: Any) -> Sweep:
  """A sweep of PPO alone, at a size of the GPT-3 family; one seed, as in the paper's figures.

  Exports and data go on the command line, for all trials alike: --config.policy_from=...
  --config.reward_from=... --config.prompts.train=... --config.prompts.valid=...
  --config.pretraining.train=...
  """
  defaults = dict(seeds=(0,), measures=("validation_reward", "validation_kl"), policies=("",))
  return Sweep(command="ppo", config=f"configs/ppo.py:{size}", **defaults | fields)
