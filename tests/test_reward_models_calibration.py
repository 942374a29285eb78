"""Reward-model accuracy and calibration, against plain loops over pairs."""

import numpy as np
import pytest

from rlhf.evals.reward_models import calibration

SETTINGS = {"num_resamples": 500, "seed": 0}


def batch(n=40, k=5, seed=0):
  rng = np.random.default_rng(seed)
  score_NK = np.round(rng.normal(size=(n, k)), 1)  # rounding makes some scores equal
  rank_NK = rng.integers(1, 4, size=(n, k))
  valid_NK = (np.arange(k) < rng.integers(2, k + 1, size=(n, 1))).astype(int)
  return score_NK, rank_NK, valid_NK


def pairs_by_loop(score_NK, rank_NK, valid_NK):
  """(score of the better, score of the worse) of each untied pair."""
  found = []
  for score_K, rank_K, valid_K in zip(score_NK, rank_NK, valid_NK):
    for i in range(len(score_K)):
      for j in range(len(score_K)):
        if valid_K[i] and valid_K[j] and rank_K[i] < rank_K[j]:
          found.append((score_K[i], score_K[j]))
  return found


def test_accuracy_against_a_loop():
  pairs = pairs_by_loop(*batch())
  correct = sum(
    1.0 if better > worse else 0.5 if better == worse else 0.0 for better, worse in pairs
  )
  result = calibration.accuracy(*batch(), **SETTINGS)
  assert result.mean == pytest.approx(correct / len(pairs))
  assert calibration.num_untied_pairs(*batch()[1:]) == len(pairs)
  assert result.low < result.mean < result.high


def test_accuracy_pools_pairs_over_prompts():
  # Prompt 0: three pairs, all right. Prompt 1: one pair, wrong. Pooled 3/4, not (1 + 0) / 2.
  result = calibration.accuracy(
    np.array([[3.0, 2, 1], [1, 2, 0]]),
    np.array([[1, 2, 3], [1, 2, 1]]),
    np.array([[1, 1, 1], [1, 1, 0]]),
    **SETTINGS,
  )
  assert result.mean == 0.75
  assert result.n == 2


def test_ties_and_unused_slots_are_dropped():
  score_NK = np.array([[1.0, 0.0, np.nan], [1.0, 0.0, np.inf]])
  rank_NK, valid_NK = np.array([[1, 2, 1], [2, 2, 3]]), np.array([[1, 1, 0], [1, 1, 0]])
  result = calibration.accuracy(score_NK, rank_NK, valid_NK, **SETTINGS)
  assert (result.mean, result.n) == (1.0, 1)
  assert calibration.num_untied_pairs(rank_NK, valid_NK) == 1


def test_order_of_the_completions_does_not_matter():
  arrays = batch()
  flipped = tuple(array[:, ::-1] for array in arrays)
  assert calibration.accuracy(*arrays, **SETTINGS) == calibration.accuracy(*flipped, **SETTINGS)
  assert calibration.calibration_curve(*arrays)["expected_calibration_error"] == pytest.approx(
    calibration.calibration_curve(*flipped)["expected_calibration_error"]
  )


def test_length_baseline_prefers_the_longer():
  result = calibration.accuracy(
    np.array([[9, 4, 2]]), np.array([[1, 3, 2]]), np.ones((1, 3)), **SETTINGS
  )
  assert result.mean == pytest.approx(2 / 3)


def test_calibration_curve_by_hand():
  # Gaps 0.2 (right), -0.2 (wrong) and 5 (right): p = 0.5498 twice and 0.9933.
  score_NK = np.array([[0.2, 0.0], [0.0, 0.2], [5.0, 0.0]])
  curve = calibration.calibration_curve(
    score_NK, np.array([[1, 2]] * 3), np.ones((3, 2)), num_bins=5
  )
  first, last = curve["bins"][0], curve["bins"][-1]
  assert [b["n"] for b in curve["bins"]] == [2, 0, 0, 0, 1]
  assert (first["low"], first["high"]) == (0.5, 0.6) and last["high"] == 1
  assert first["predicted"] == pytest.approx(0.549834, abs=1e-6) and first["observed"] == 0.5
  assert last["predicted"] == pytest.approx(0.993307, abs=1e-6) and last["observed"] == 1
  assert curve["bins"][1]["predicted"] is None
  assert curve["expected_calibration_error"] == pytest.approx(
    2 / 3 * 0.049834 + 1 / 3 * 0.006693, abs=1e-6
  )
  assert curve["n"] == 3


def test_labels_drawn_from_the_prediction_are_calibrated_and_sharper_scores_are_not():
  rng = np.random.default_rng(0)
  score_NK = rng.normal(size=(20000, 2))
  first_wins = rng.random(20000) < 1 / (1 + np.exp(score_NK[:, 1] - score_NK[:, 0]))
  rank_NK = np.where(first_wins[:, None], [[1, 2]], [[2, 1]])
  valid_NK = np.ones((20000, 2))

  def error(scale):
    curve = calibration.calibration_curve(scale * score_NK, rank_NK, valid_NK)
    return curve["expected_calibration_error"]

  assert error(1) < 0.02
  assert error(4) > 0.1


def test_score_of_certainty_falls_in_the_last_bin():
  curve = calibration.calibration_curve(
    np.array([[900.0, -900.0]]), np.array([[1, 2]]), np.ones((1, 2))
  )
  assert curve["bins"][-1]["n"] == 1


def test_bad_input():
  ones = np.ones((1, 2))
  with pytest.raises(ValueError, match="must share one shape"):
    calibration.accuracy(np.ones((1, 3)), ones, ones, **SETTINGS)
  with pytest.raises(ValueError, match="not finite"):
    calibration.accuracy(np.array([[np.nan, 1]]), np.array([[1, 2]]), ones, **SETTINGS)
  with pytest.raises(ValueError, match="no untied pair"):
    calibration.calibration_curve(ones, ones, ones)
