"""The page of a PALMS run: toxicity and capability over items and seeds."""

import numpy as np
import pytest

from rlhf.evals import statistics as evals_statistics
from rlhf.palms import report
from rlhf.palms import statistics

SETTINGS = dict(num_resamples=4000, seed=0, confidence=0.95)
BASE, TARGETED = np.array([0.4, 0.5, 0.9, 0.2, 0.6]), np.array([0.1, 0.3, 0.2, 0.2, 0.5])


def models(num_base: int, num_targeted: int) -> dict:
  """Every seed says the same: two samples of each of five probes."""
  return {(kind, 1000, seed): [[value - 0.05, value + 0.05] for value in mean]
          for kind, mean, count in (("base", BASE, num_base), ("targeted", TARGETED, num_targeted))
          for seed in range(count)}


def only(found: dict) -> dict:
  (difference,) = found["differences"]
  assert (difference["first"], difference["second"]) == ("targeted", "base")
  return difference


def test_equal_seeds_say_nothing_new_of_other_probes():
  one, three, beside = (only(report.compare(models(*counts), crossed=True, **SETTINGS))
                        for counts in ((1, 1), (3, 3), (1, 3)))
  for found in (one, three, beside):
    assert found["mean"] == pytest.approx(np.mean(TARGETED - BASE)) and found["n"] == 5
    half = (found["high"] - found["low"]) / 2
    assert half == pytest.approx(1.96 * np.std(TARGETED - BASE, ddof=1) / np.sqrt(5), rel=0.1)
  means = report.compare(models(3, 3), crossed=True, **SETTINGS)["means"]
  assert [mean["mean"] for mean in means] == pytest.approx([BASE.mean(), TARGETED.mean()])
  half = (means[0]["high"] - means[0]["low"]) / 2
  assert half == pytest.approx(1.96 * BASE.std(ddof=1) / np.sqrt(5), rel=0.1)


def test_items_of_a_world_of_its_own_belong_to_their_seed():
  values = models(3, 3)
  found = only(report.compare(values, crossed=False, **SETTINGS))
  expected = evals_statistics.paired_difference_over_seeds(
      {seed: (values["targeted", 1000, seed], values["base", 1000, seed]) for seed in range(3)},
      **SETTINGS)
  assert {name: found[name] for name in ("mean", "low", "high", "n")} == expected.as_dict()
  assert found["n"] == 15


def test_the_smallest_size_comes_first():
  rows = [[0.1, 0.2], [0.3, 0.4]]
  found = report.compare({(kind, size, 0): rows for size in (1000, 50, 200)
                          for kind in ("targeted", "base")}, crossed=True, **SETTINGS)
  assert [(mean["size"], mean["kind"]) for mean in found["means"]] == [
      (size, kind) for size in (50, 200, 1000) for kind in ("base", "targeted")]
  assert [difference["size"] for difference in found["differences"]] == [50, 200, 1000]


def test_seeds_that_do_not_go_together_are_refused():
  with pytest.raises(ValueError, match="has the seeds .* give the same seeds, or one model for all"):
    report.compare(models(2, 3), crossed=True, **SETTINGS)
  with pytest.raises(ValueError, match="the seeds 0, 1 have 1, 2 items"):
    statistics.group_of({0: [[1.0]], 1: [[1.0], [2.0]]})
