"""What the trials of a sweep found: one row per trial and seed, then one per trial over its seeds.

A measure is read as values by prompt, so that an interval over seeds draws seeds and then prompts
(`statistics.bootstrap_over_seeds`).  A number of which a run has only one (a loss, a mean over
tasks) is a run with one prompt: its interval comes from the seeds alone, and with one seed has no
width.
"""

import csv
import functools
import io
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics
from rlhf.evals.preference import win_rates
from rlhf.evals.reward_models import calibration
from rlhf.report import page

Values = statistics.ValuesByPrompt
ENDS = ("mean", "low", "high")


# ----------------------------------------------------------------------------- one run's measures


def _wins(workdir, policy, group: str) -> Values:
  lines = win_rates.read_preferences(workdir / "evaluation" / "preference" / "preferences.jsonl")
  return win_rates.values_by_prompt(lines, policy=policy, group=group, field="win")


def _validation(workdir, policy, field: str) -> Values:
  """Of the last validation of a PPO run, whose prompts are held out."""
  found = sorted((workdir / policy / "validation").glob("step_*.jsonl"))
  if not found:
    raise ValueError(f"{workdir / policy} holds no validation/step_*.jsonl")
  return [[line[field]] for line in workdir_lib.read_jsonl(found[-1])]


def _gold(workdir, policy) -> Values:
  return [[line[policy]] for line in workdir_lib.read_jsonl(workdir / "evaluation" / "gold.jsonl")]


def _tax(workdir, policy) -> Values:
  losses = workdir_lib.done_result(workdir / "evaluation")["pretraining_nll"]
  return [[losses[policy] - losses["ppo_init"]]]


def _few_shot(workdir, policy) -> Values:
  tasks = workdir_lib.done_result(workdir / "evaluation")["few_shot_tasks"]
  return [[float(np.mean([cells[policy] for cells in tasks.values()]))]]


def _reward_dir(workdir: pathlib.Path) -> pathlib.Path:
  """The reward model of a pipeline, or of a run of that stage alone."""
  return workdir / "reward_model" if (workdir / "reward_model").is_dir() else workdir


def _accuracy(workdir, _) -> Values:
  saved = workdir_lib.read_json(_reward_dir(workdir) / "validation_scores.json")
  arrays = (np.asarray(saved[name]) for name in ("scores", "ranks", "valid"))
  gap_NC = calibration.score_gaps(*arrays)
  return np.where(np.isnan(gap_NC), np.nan, 0.5 * (1 + np.sign(gap_NC)))


def _log_loss(workdir, _) -> Values:
  return [[workdir_lib.done_result(_reward_dir(workdir))["validation/log_loss"]]]


# name: (what the plot's y axis says, reader of (workdir, policy))
MEASURES: dict[str, tuple[str, Callable[[pathlib.Path, str], Values]]] = {
  "win_rate_training": (
    "win rate against SFT,\ntraining labelers",
    functools.partial(_wins, group="training"),
  ),
  "win_rate_heldout": (
    "win rate against SFT,\nheld-out labelers",
    functools.partial(_wins, group="heldout"),
  ),
  "validation_reward": ("validation reward", functools.partial(_validation, field="reward")),
  "validation_kl": ("KL to the reference (nats)", functools.partial(_validation, field="kl")),
  "gold_score": ("gold score", _gold),
  "pretraining_tax": ("held-out pretraining loss\nminus PPO's start (nats)", _tax),
  "few_shot_mean": ("few-shot accuracy,\nmean of the tasks", _few_shot),
  "reward_accuracy": ("reward-model accuracy", _accuracy),
  "reward_log_loss": ("reward-model log loss (nats)", _log_loss),
}


# ----------------------------------------------------------------------------- all runs


def gather(
  runs: Iterable[Any], policies: Sequence[str], measures: Sequence[str]
) -> list[dict[str, Any]]:
  """Every measure of every policy of every run, of a `Sweep`.

  Args:
    runs: finished trials, of which `overrides` (without the seed), `seed` and `workdir` are read.

  Returns:
    {"overrides", "seed", "policy", "values": {measure: values by prompt}}, one per run and policy.
  """
  return [
    dict(
      overrides=dict(run.overrides),
      seed=run.seed,
      policy=policy,
      values={name: MEASURES[name][1](run.workdir, policy) for name in measures},
    )
    for run in runs
    for policy in policies
  ]


def mean(values: Values) -> float:
  """The ratio of sums that `statistics` takes for a mean."""
  return float(np.nanmean(np.concatenate([np.asarray(row, np.float64) for row in values])))


def pool(
  gathered: Sequence[Mapping[str, Any]], first: Mapping[str, Any], *, num_resamples: int = 2000
) -> list[dict[str, Any]]:
  """Over the seeds of each trial.

  Args:
    first: overrides of the sweep's first trial, whether it is among those gathered or not.

  Returns:
    {"overrides", "policy", "seeds", "measures": {name: {"per_seed": {seed: mean},
    "pooled": {"mean", "low", "high", "n"}, "difference": the same or None}}}, in the order in which
    the trials first occur.  "difference" is the mean minus that of the first trial's same policy,
    over the seeds that both have, with seeds and prompts drawn for both together: what a seed's
    data and reward model make higher or lower for all trials cancels.

  Raises:
    ValueError: a trial has two runs of one seed.
  """
  # Trial and policy -> seed -> measure -> values by prompt.
  by_seed: dict[tuple[str, str], dict[int, Mapping[str, Values]]] = {}
  trials = {}
  for row in gathered:
    key = str(row["overrides"]), row["policy"]
    trials[key] = row["overrides"]
    seeds = by_seed.setdefault(key, {})
    if row["seed"] in seeds:
      raise ValueError(f"{row['overrides']} has several runs of one seed; collect each once")
    seeds[row["seed"]] = row["values"]
  settings = dict(num_resamples=num_resamples, seed=0)

  def measured(name: str, seeds, start) -> dict[str, Any]:
    values = {number: seeds[number][name] for number in sorted(seeds)}
    pairs = {
      number: (value, start[number][name])
      for number, value in values.items()
      if number in start and len(value) == len(start[number][name])
    }
    return dict(
      per_seed={number: mean(value) for number, value in values.items()},
      pooled=statistics.bootstrap_over_seeds(values, **settings).as_dict(),
      difference=statistics.paired_difference_over_seeds(pairs, **settings).as_dict()
      if pairs
      else None,
    )

  starts = {key[1]: seeds for key, seeds in by_seed.items() if trials[key] == first}
  pooled = []
  for (trial, policy), seeds in by_seed.items():
    overrides = trials[trial, policy]
    start = {} if overrides == first else starts.get(policy, {})
    names = next(iter(seeds.values()))
    measures = {name: measured(name, seeds, start) for name in names}
    pooled.append(dict(overrides=overrides, policy=policy, seeds=sorted(seeds), measures=measures))
  return pooled


# ----------------------------------------------------------------------------- files and table


def runs_csv(gathered: Sequence[Mapping[str, Any]]) -> str:
  """One line per run and policy: overrides, seed, policy, means."""
  empty = dict.fromkeys(_keys(gathered), "")
  return _csv(
    empty
    | row["overrides"]
    | dict(seed=row["seed"], policy=row["policy"])
    | {name: repr(mean(values)) for name, values in row["values"].items()}
    for row in gathered
  )


def pooled_csv(pooled: Sequence[Mapping[str, Any]]) -> str:
  """One line per trial, policy and measure: mean, difference to the first trial, 95 % intervals."""
  empty = dict.fromkeys(_keys(pooled), "")
  return _csv(
    empty
    | row["overrides"]
    | dict(policy=row["policy"], measure=name)
    | {end: repr(cell["pooled"][end]) for end in ENDS}
    | {
      f"difference_{end}": "" if cell["difference"] is None else repr(cell["difference"][end])
      for end in ENDS
    }
    | dict(seeds=" ".join(map(str, row["seeds"])))
    for row in pooled
    for name, cell in row["measures"].items()
  )


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  return page.columns(row["overrides"] for row in rows)


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
  rows, buffer = list(rows), io.StringIO()
  writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  return buffer.getvalue()


def tables(pooled: Sequence[Mapping[str, Any]], x: str, first: Mapping[str, Any]) -> str:
  """Markdown: the means, and the differences to the first trial where there are others; where the
  first is missing, a line says that there are none."""
  text = _table(pooled, x, "pooled")
  if not any(row["overrides"] == first for row in pooled):
    point = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in first.items())
    return (
      f"{text}\nNo differences: the sweep's first trial ({point}) is not finished with any seed.\n"
    )
  others = [
    row
    for row in pooled
    if any(cell["difference"] is not None for cell in row["measures"].values())
  ]
  if not others:
    return text
  minus = _table(others, x, "difference")
  return f"{text}\nMinus the first trial, paired by seed and prompt:\n\n{minus}"


def _table(pooled: Sequence[Mapping[str, Any]], x: str, field: str) -> str:
  """A line per trial and policy, `mean [low, high]` in the measures' own units."""
  text = lambda row, key: str(row["overrides"].get(key, ""))
  varied = [key for key in _keys(pooled) if key == x or len({text(row, key) for row in pooled}) > 1]
  policy = ["policy"] if len({row["policy"] for row in pooled}) > 1 else []
  names = list(pooled[0]["measures"])
  header = [*(key.rpartition(".")[2] for key in varied), *policy, *names, "seeds"]
  lines = [header, ["---"] * len(header)]
  for row in pooled:
    found = (row["measures"][name][field] for name in names)
    cells = ["{mean:.3f} [{low:.3f}, {high:.3f}]".format(**cell) if cell else "" for cell in found]
    start = [text(row, key) for key in varied] + [row[key] for key in policy]
    lines.append([*start, *cells, str(len(row["seeds"]))])
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)
