"""Does a reward model agree with labelers it has never seen?  Folds over groups of labelers.

Labelers are dealt into groups with about equal data.  In each fold one group is held out: a reward
model is trained on the others' comparisons and tested on other comparisons of those same labelers,
and on those of the held-out group.  Source: InstructGPT section 4.1 and appendix E.2, with 5
groups and 3 seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evals import statistics
from rlhf.evals.reward_models import calibration

# InstructGPT section 4.1: (mean, standard error) of the accuracy in per cent, 6B, 5 folds, 3 seeds.
PAPER = {"own": (72.4, 0.4), "heldout": (69.6, 0.9)}
TESTS = tuple(PAPER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
  """One split; no prompt of `own` or `heldout` stands in `train`.

  Attributes:
    heldout_labelers: the group whose comparisons are not trained on.
    train: comparisons of the other groups' labelers.
    own: other comparisons of those labelers, on prompts that are not trained on.
    heldout: comparisons of the held-out group.
  """

  heldout_labelers: tuple[str, ...]
  train: list[dict]
  own: list[dict]
  heldout: list[dict]


def deal(counts: Mapping[str, int], num_groups: int) -> tuple[tuple[str, ...], ...]:
  """Labelers in groups of about equal data: the one with most goes to the group with least.

  Args:
    counts: labeler -> comparisons.
    num_groups: how many.

  Returns:
    `num_groups` groups of labelers, each in order; equal counts are taken in order of id, so the
    same labelers are always dealt alike.

  Raises:
    ValueError: fewer than two groups, or fewer labelers than groups.
  """
  if num_groups < 2:
    raise ValueError(f"{num_groups} groups of labelers; use 2 or more, one of them is held out")
  if len(counts) < num_groups:
    raise ValueError(
      f"{len(counts)} labelers cannot be dealt into {num_groups} groups; use "
      "comparisons of more labelers, or fewer folds"
    )
  groups: list[list[str]] = [[] for _ in range(num_groups)]
  load = [0] * num_groups
  for labeler in sorted(counts, key=lambda labeler: (-counts[labeler], labeler)):
    least = load.index(min(load))
    groups[least].append(labeler)
    load[least] += counts[labeler]
  return tuple(tuple(sorted(group)) for group in groups)


def split(
  records: Sequence[Mapping[str, Any]], *, num_folds: int, test_fraction: float, seed: int
) -> list[Fold]:
  """All folds.

  Prompts are drawn for testing first, the same in every fold, so that what several labelers ranked
  is never both trained on and tested on.

  Args:
    records: comparisons, each with a "labeler".
    num_folds: groups of labelers.
    test_fraction: of the prompts, whose comparisons by trained labelers are for testing.
    seed: of the draw of prompts.

  Raises:
    ValueError: a record has no labeler, a fraction that is not between 0 and 1, a part of a fold
      that comes out empty, or as `deal`.
  """
  if not 0 < test_fraction < 1:
    raise ValueError(f"test_fraction {test_fraction}; use a number between 0 and 1, such as 0.1")
  counts: dict[str, int] = {}
  for number, record in enumerate(records, 1):
    if "labeler" not in record or not record["labeler"]:
      raise ValueError(
        f'comparison {number} has no "labeler"; folds over labelers need one in every comparison'
      )
    counts[record["labeler"]] = counts.get(record["labeler"], 0) + 1
  groups = deal(counts, num_folds)
  prompts = sorted({record["prompt"] for record in records})
  order = np.random.default_rng(seed).permutation(len(prompts))
  tested = {prompts[i] for i in order[: max(1, round(test_fraction * len(prompts)))]}
  return [_fold(records, group, tested) for group in groups]


def _fold(records, group: tuple[str, ...], tested: set[str]) -> Fold:
  inside = [record for record in records if record["labeler"] not in group]
  train = [record for record in inside if record["prompt"] not in tested]
  trained = {record["prompt"] for record in train}
  parts = dict(
    train=train,
    own=[record for record in inside if record["prompt"] in tested],
    heldout=[
      record for record in records if record["labeler"] in group and record["prompt"] not in trained
    ],
  )
  for name, found in parts.items():
    if not found:
      raise ValueError(
        f"the fold that holds {', '.join(group)} out has no comparison for its part "
        f"{name!r}; give more comparisons, or another test_fraction"
      )
  return Fold(heldout_labelers=group, **parts)


def correct(scores: Mapping[str, Any]) -> np.ndarray:
  """[prompts, pairs] 1 where a pair is ranked right, 0 where wrong, NaN where there is none.

  Args:
    scores: {"scores", "ranks", "valid"}, as `reward_model` writes them.
  """
  gap_NC = calibration.score_gaps(
    *(np.asarray(scores[name]) for name in ("scores", "ranks", "valid"))
  )
  return np.where(np.isnan(gap_NC), np.nan, 0.5 * (1 + np.sign(gap_NC)))


def summarise(
  runs: Mapping[tuple[int, int], Mapping[str, np.ndarray]], *, num_resamples: int, seed: int
) -> dict[str, Any]:
  """Accuracy on both tests over all folds and seeds.

  The seeds of a fold have its labelers and its prompts in common, so a prompt is drawn with the
  results of all seeds: more seeds are no more labelers.  Intervals draw folds and then prompts
  within a fold (`statistics.bootstrap_over_seeds`); that of the difference draws folds alone, each
  with both its tests.  `standard_error` is the paper's form of it: between seeds, of the mean over
  folds; None with one seed.

  Args:
    runs: (fold, seed) -> {"own", "heldout"}: what `correct` returns, the same prompts in the same
      order for all seeds of a fold.

  Returns:
    {"own", "heldout": {"mean", "low", "high", "n", "standard_error", "paper"}, "difference": {...},
    "runs": [{"fold", "seed", "own", "heldout"}]}; accuracies in [0, 1], the paper's as it prints
    them; `n` counts the prompts of all folds.

  Raises:
    ValueError: two seeds of a fold have other numbers of prompts.
  """
  settings = dict(num_resamples=num_resamples, seed=seed)
  table = [
    dict(fold=fold, seed=number, **{test: float(np.nanmean(values[test])) for test in TESTS})
    for (fold, number), values in sorted(runs.items())
  ]
  by_fold = {test: _by_fold(runs, test) for test in TESTS}
  result: dict[str, Any] = {}
  for test in TESTS:
    pooled = statistics.bootstrap_over_seeds(by_fold[test], **settings)
    result[test] = pooled.as_dict() | dict(
      standard_error=_standard_error(table, test), paper=PAPER[test]
    )
  sums_F4 = np.asarray(
    [
      [
        number
        for test in TESTS
        for number in (np.nansum(by_fold[test][fold]), np.sum(~np.isnan(by_fold[test][fold])))
      ]
      for fold in by_fold["own"]
    ]
  )
  result["difference"] = statistics.bootstrap_statistic(
    sums_F4, lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3], **settings
  ).as_dict()
  return result | dict(runs=table)


def _by_fold(runs, test: str) -> dict[int, np.ndarray]:
  """fold -> [prompts, pairs of all its seeds]."""
  found: dict[int, list[np.ndarray]] = {}
  for (fold, _), values in sorted(runs.items()):
    found.setdefault(fold, []).append(values[test])
  for fold, columns in found.items():
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
      raise ValueError(
        f"the seeds of fold {fold} have {counts} prompts in their test {test!r}; "
        "all seeds of a fold are tested on the same prompts"
      )
  return {fold: np.concatenate(columns, axis=1) for fold, columns in found.items()}


def _standard_error(table: Sequence[Mapping[str, Any]], test: str) -> float | None:
  by_seed: dict[int, list[float]] = {}
  for row in table:
    by_seed.setdefault(row["seed"], []).append(row[test])
  means = [float(np.mean(values)) for values in by_seed.values()]
  return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None


def describe(summary: Mapping[str, Any]) -> str:
  """The result as a table, beside the paper's numbers."""
  names = {"own": "own groups' labelers", "heldout": "held-out group"}
  lines = [f"{'':24}{'accuracy':>10}{'95 % interval':>22}{'paper (6B)':>16}"]
  for test, name in names.items():
    cell, (mean, error) = summary[test], summary[test]["paper"]
    interval = f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}"
    lines.append(f"{name:24}{100 * cell['mean']:>8.1f} %{interval:>22}{f'{mean} ± {error}':>16}")
  cell = summary["difference"]
  interval = f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}"
  gap = PAPER["own"][0] - PAPER["heldout"][0]
  lines.append(f"{'difference':24}{100 * cell['mean']:>8.1f} %{interval:>22}{gap:>16.1f}")
  return "\n".join(lines)
