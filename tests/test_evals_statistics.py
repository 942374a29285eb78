"""Bootstrap intervals: worked by hand, against scipy and the normal interval, and by property."""

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats

from rlhf.evals import statistics

SETTINGS = {"num_resamples": 4000, "seed": 0}


def interval(values, **settings):
  return statistics.bootstrap_mean(values, **{**SETTINGS, **settings})


def test_mean_is_a_ratio_of_sums_and_n_counts_prompts():
  result = interval([[1, 1, 1], [0]])
  assert result.mean == 0.75  # an average of the prompts' averages would be 0.5
  assert result.n == 2


@pytest.mark.parametrize("confidence, ends", [(0.4, (0.75, 0.75)), (0.6, (0.0, 1.0))])
def test_interval_of_two_prompts_is_the_exact_bootstrap_distribution(monkeypatch, confidence, ends):
  # Drawing two of {3 wins of 3, 0 of 1}: 0 with 1/4, 3/4 with 1/2, 1 with 1/4.
  monkeypatch.setattr(statistics, "CONFIDENCE", confidence)
  result = interval([[1, 1, 1], [0]])
  assert (result.low, result.high) == ends


@pytest.mark.parametrize("confidence, ends", [(0.4, (2, 2)), (0.6, (1, 3))])
def test_a_function_of_two_values_is_the_exact_bootstrap_distribution(
  monkeypatch, confidence, ends
):
  # Drawing two of {"a", "bbb"}: 1 with 1/4, 2 with 1/2, 3 with 1/4.
  mean_length = lambda texts: sum(map(len, texts)) / len(texts)
  monkeypatch.setattr(statistics, "CONFIDENCE", confidence)
  found = statistics.bootstrap_function(["a", "bbb"], mean_length, **SETTINGS)
  assert dataclasses.astuple(found) == (2, *ends, 2)
  with pytest.raises(ValueError, match="there is nothing to resample"):
    statistics.bootstrap_function([], mean_length, **SETTINGS)


def test_interval_near_the_normal_one():
  values = np.random.default_rng(1).normal(size=400)
  half = 1.96 * values.std() / np.sqrt(400)
  result = interval(values[:, None])
  assert result.low == pytest.approx(values.mean() - half, abs=0.1 * half)
  assert result.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_agrees_with_scipy_on_unequal_counts():
  rng = np.random.default_rng(2)
  values = [rng.random(rng.integers(1, 6)) for _ in range(150)]
  total, count = [row.sum() for row in values], [len(row) for row in values]
  expected = scipy.stats.bootstrap(
    (total, count),
    lambda t, c, axis: t.sum(axis=axis) / c.sum(axis=axis),
    paired=True,
    n_resamples=4000,
    method="percentile",
    rng=3,
  ).confidence_interval
  result = interval(values)
  width = expected.high - expected.low
  assert result.low == pytest.approx(expected.low, abs=0.06 * width)
  assert result.high == pytest.approx(expected.high, abs=0.06 * width)


def test_labelers_of_a_prompt_stay_together():
  one = np.random.default_rng(3).random((60, 1))
  copies = np.repeat(one, 5, axis=1)  # five labelers who always agree add no information
  assert interval(copies).low == pytest.approx(interval(one).low, abs=1e-12)
  assert interval(copies).high == pytest.approx(interval(one).high, abs=1e-12)


def test_nan_and_empty_rows_equal_leaving_them_out():
  values = [[1.0, np.nan, 0.0], [np.nan] * 3, [], [0.5]]
  assert interval(values) == interval([[1.0, 0.0], [0.5]])
  assert interval(np.array([[1, np.nan], [0, 1]])) == interval([[1], [0, 1]])


def test_chunks_do_not_change_the_draws(monkeypatch):
  values = np.random.default_rng(4).random((30, 3))
  whole = interval(values)
  monkeypatch.setattr(statistics, "_CHUNK_ENTRIES", 70)
  assert interval(values) == whole


def test_confidence_sets_the_width(monkeypatch):
  values = np.random.default_rng(5).random((100, 2))
  wide = interval(values)
  monkeypatch.setattr(statistics, "CONFIDENCE", 0.5)
  narrow = interval(values)
  assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_equal_seeds_give_equal_intervals_and_others_differ():
  values = np.random.default_rng(6).random((50, 2))
  assert interval(values) == interval(values)
  assert interval(values, seed=1) != interval(values)


def test_over_seeds_resamples_seeds():
  runs = {0: np.zeros((50, 2)), 1: np.ones((50, 2))}
  result = statistics.bootstrap_over_seeds(runs, **SETTINGS)
  # Both draws hit one seed with probability 1/2; prompts alone would give exactly [0.5, 0.5].
  assert (result.mean, result.low, result.high, result.n) == (0.5, 0.0, 1.0, 100)


def test_over_seeds_resamples_prompts_within_a_seed():
  values = np.random.default_rng(7).random((80, 1))
  result = statistics.bootstrap_over_seeds({0: values, 1: values}, **SETTINGS)
  # Equal runs: what is left is the variance of a mean of 160 prompts.
  half = 1.96 * values.std() / np.sqrt(160)
  assert (result.high - result.low) / 2 == pytest.approx(half, rel=0.1)
  single = statistics.bootstrap_over_seeds({5: values}, **SETTINGS)
  assert single == interval(values)


def test_over_seeds_pools_by_size():
  result = statistics.bootstrap_over_seeds({0: [[1]] * 30, 1: [[0]] * 10}, **SETTINGS)
  assert result.mean == 0.75


def test_paired_difference_cancels_the_prompt():
  b = np.random.default_rng(8).random((40, 3))
  result = statistics.paired_difference(b + 0.25, b, **SETTINGS)
  assert result.mean == pytest.approx(0.25)
  assert (result.low, result.high) == (pytest.approx(0.25), pytest.approx(0.25))
  assert result.n == 40
  flipped = statistics.paired_difference(b, b + 0.25, **SETTINGS)
  assert flipped.mean == pytest.approx(-0.25)


def test_paired_difference_by_hand_with_missing_values():
  a = [[1, 1], [0], [np.nan], [1]]
  b = [[0], [0, 1], [1], [np.nan]]
  result = statistics.paired_difference(a, b, **SETTINGS)  # the last two prompts lack one side
  assert result.mean == pytest.approx(2 / 3 - 1 / 3)
  assert result.n == 2


def test_paired_difference_over_seeds_is_nested():
  zero, one = np.zeros((20, 1)), np.ones((20, 1))
  pairs = {0: (one, zero), 1: (zero, zero)}
  result = statistics.paired_difference_over_seeds(pairs, **SETTINGS)
  assert (result.mean, result.low, result.high, result.n) == (0.5, 0.0, 1.0, 40)


@pytest.mark.parametrize(
  "values, settings, message",
  [
    ([], {}, "nothing to average"),
    ([[np.nan], []], {}, "nothing to average"),
    ([[np.inf]], {}, "infinite"),
    ([[1.0]], {"num_resamples": 0}, "num_resamples is 0"),
  ],
)
def test_bad_input(values, settings, message):
  with pytest.raises(ValueError, match=message):
    interval(values, **settings)


def test_bad_pairs_and_no_seed():
  with pytest.raises(ValueError, match="2 and 1 prompts"):
    statistics.paired_difference([[1], [0]], [[1]], **SETTINGS)
  with pytest.raises(ValueError, match="nothing to average"):
    statistics.bootstrap_over_seeds({}, **SETTINGS)


def test_a_statistic_of_sums_is_bootstrapped_over_rows():
  table = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]])
  ratio = lambda sums: sums[..., 0] / sums[..., 1]
  interval = statistics.bootstrap_statistic(table, ratio, num_resamples=4000, seed=0)
  assert interval.mean == pytest.approx(4 / 11)
  assert interval.n == 3
  # All 27 draws of three rows, worked out: the ends of the interval are draws that can be made.
  draws = sorted(
    ratio(table[list(picks)].sum(axis=0)) for picks in itertools.product(range(3), repeat=3)
  )
  assert any(interval.low == pytest.approx(draw) for draw in draws[:2])
  assert any(interval.high == pytest.approx(draw) for draw in draws[-2:])


def test_a_mean_is_the_statistic_of_its_sums():
  values = np.array([[1.0, 2.0], [5.0, 3.0], [0.0, 4.0], [2.0, 2.0]])
  table = np.stack([values.sum(axis=1), np.full(4, 2.0)], axis=1)
  ratio = lambda sums: sums[..., 0] / sums[..., 1]
  settings = dict(num_resamples=200, seed=3)
  assert statistics.bootstrap_statistic(table, ratio, **settings) == statistics.bootstrap_mean(
    values, **settings
  )


@pytest.mark.parametrize("table", [np.zeros((0, 2)), np.zeros(3), np.array([[np.nan, 1.0]])])
def test_a_table_without_rows_or_with_holes_is_refused(table):
  with pytest.raises(ValueError, match="table"):
    statistics.bootstrap_statistic(table, lambda sums: sums[..., 0], num_resamples=10, seed=0)


def test_equal_values_have_an_interval_without_width():
  found = statistics.bootstrap_mean([[0.1]] * 7, num_resamples=50, seed=0)
  assert found.low == found.mean == found.high
