"""Cross-validation over labelers: does a reward model agree with labelers it has never seen?

Labelers are split into groups with about equal data.  In each fold one group is held out: a reward
model is trained on the others' comparisons and tested on further comparisons of those same
labelers, and on those of the held-out group.  Source: InstructGPT section 4.1 and appendix E.2,
with 5 groups and 3 seeds.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf.evals import statistics
from rlhf.evals.reward_models import calibration

# InstructGPT section 4.1: (mean, standard error) of the accuracy in per cent, 6B, 5 folds, 3 seeds.
PAPER = {"own": (72.4, 0.4), "heldout": (69.6, 0.9)}
TESTS = tuple(PAPER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fold:
  """One split; no prompt of `own` or `heldout` is in `train`.

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
  """Groups of labelers with about equal data: the next largest goes to the smallest group.

  Args:
    counts: labeler -> comparisons.
    num_groups: number of groups.

  Returns:
    `num_groups` sorted groups of labelers; equal counts are taken in order of id, so the result
    does not depend on the order of `counts`.

  Raises:
    ValueError: fewer than two groups, or fewer labelers than groups.
  """
  if num_groups < 2:
    raise ValueError(f"{num_groups} groups of labelers; use 2 or more, as one of them is held out")
  if len(counts) < num_groups:
    raise ValueError(
      f"{len(counts)} labelers cannot be split into {num_groups} groups; use comparisons of more "
      "labelers, or fewer folds"
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

  Test prompts are drawn first, the same for every fold, so that no prompt that several labelers
  ranked is used for both training and testing.

  Args:
    records: comparisons, each with a "labeler".
    num_folds: groups of labelers.
    test_fraction: share of the prompts that are for testing.
    seed: of the draw of prompts.

  Raises:
    ValueError: a record has no labeler, the fraction is not between 0 and 1, a part of a fold is
      empty, or as `deal`.
  """
  if not 0 < test_fraction < 1:
    raise ValueError(f"test_fraction {test_fraction}; use a number between 0 and 1, such as 0.1")
  for number, record in enumerate(records, 1):
    if not record.get("labeler"):
      raise ValueError(
        f'comparison {number} has no "labeler"; folds over labelers need one in every comparison'
      )
  counts = collections.Counter(record["labeler"] for record in records)
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
        f"the fold that holds out {', '.join(group)} has no comparison in its part {name!r}; give "
        "more comparisons, or another test_fraction"
      )
  return Fold(heldout_labelers=group, **parts)


def correct(scores: Mapping[str, Any]) -> np.ndarray:
  """`calibration.correct` of {"scores", "ranks", "valid"}, as `reward_model` writes them."""
  return calibration.correct(*(np.asarray(scores[name]) for name in ("scores", "ranks", "valid")))


def summarise(
  runs: Mapping[tuple[int, int], Mapping[str, np.ndarray]], **settings: Unpack[statistics.Settings]
) -> dict[str, Any]:
  """Accuracy on both tests over all folds and seeds.

  The seeds of a fold share its labelers and prompts, so a prompt is drawn with the results of all
  seeds: more seeds are not more labelers.  Intervals draw folds and then prompts within a fold
  (`statistics.bootstrap_over_seeds`); that of the difference draws folds alone, each with both its
  tests.  `standard_error` is the paper's: between seeds, of the mean over folds; None for one seed.

  Args:
    runs: (fold, seed) -> {"own", "heldout"}: what `correct` returns, the same prompts in the same
      order for all seeds of a fold.
    settings: of the bootstrap.

  Returns:
    {"own", "heldout": {"mean", "low", "high", "n", "standard_error", "paper"}, "difference": {...},
    "runs": [{"fold", "seed", "own", "heldout"}]}; accuracies in [0, 1], the paper's as it prints
    them; `n` counts the prompts of all folds.

  Raises:
    ValueError: two seeds of a fold have different numbers of prompts.
  """
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
  own, heldout = ([value_PC.ravel() for value_PC in by_fold[test].values()] for test in TESTS)
  result["difference"] = statistics.paired_difference(own, heldout, **settings).as_dict()
  return result | dict(runs=table)


def _by_fold(runs, test: str) -> dict[int, np.ndarray]:
  """fold -> [prompts, pairs of all its seeds]."""
  found: dict[int, list[np.ndarray]] = collections.defaultdict(list)
  for (fold, _), values in sorted(runs.items()):
    found[fold].append(values[test])
  for fold, columns in found.items():
    counts = [len(column) for column in columns]
    if len(set(counts)) > 1:
      raise ValueError(
        f"the seeds of fold {fold} have {counts} prompts in their test {test!r}; test all seeds of "
        "a fold on the same prompts"
      )
  return {fold: np.concatenate(columns, axis=1) for fold, columns in found.items()}


def _standard_error(table: Sequence[Mapping[str, Any]], test: str) -> float | None:
  by_seed: dict[int, list[float]] = collections.defaultdict(list)
  for row in table:
    by_seed[row["seed"]].append(row[test])
  means = [float(np.mean(values)) for values in by_seed.values()]
  return float(np.std(means, ddof=1) / np.sqrt(len(means))) if len(means) > 1 else None


def describe(summary: Mapping[str, Any]) -> str:
  """The result as a table, with the paper's numbers."""
  lines = [f"{'':24}{'accuracy':>10}{'95 % interval':>22}{'paper (6B)':>16}"]
  gap = PAPER["own"][0] - PAPER["heldout"][0]
  for name, part, paper in (
    ("own groups' labelers", "own", "{} ± {}".format(*summary["own"]["paper"])),
    ("held-out group", "heldout", "{} ± {}".format(*summary["heldout"]["paper"])),
    ("difference", "difference", f"{gap:.1f}"),
  ):
    cell = summary[part]
    interval = f"{100 * cell['low']:.1f} to {100 * cell['high']:.1f}"
    lines.append(f"{name:24}{100 * cell['mean']:>8.1f} %{interval:>22}{paper:>16}")
  return "\n".join(lines)
