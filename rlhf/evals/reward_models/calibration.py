"""How often a reward model ranks as labelers do, and whether it is calibrated.

Every unordered pair of valid completions of a prompt whose ranks differ counts once; ties in rank
are dropped, as in training (InstructGPT section 3.5 and appendix C.2).  Rank 1 is best.  Equal
scores count half.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf.evals import statistics


def score_gaps(score_NK: np.ndarray, rank_NK: np.ndarray, valid_NK: np.ndarray) -> np.ndarray:
  """score(better) - score(worse) of each untied pair.

  Args:
    score_NK: float, scores of K completions of N prompts; only valid entries are read.
    rank_NK: 1 is best, equal ranks are ties.
    valid_NK: 1 for completions that were shown.

  Returns:
    gap_NC, float64, C = K * (K - 1) / 2; NaN if the pair is tied or a slot is unused.

  Raises:
    ValueError: the shapes differ, or a valid score is not finite.
  """
  score_NK = np.asarray(score_NK, np.float64)
  rank_NK, valid_NK = np.asarray(rank_NK, np.int64), np.asarray(valid_NK).astype(bool)
  if not score_NK.shape == rank_NK.shape == valid_NK.shape or score_NK.ndim != 2:
    raise ValueError(
      f"scores {score_NK.shape}, ranks {rank_NK.shape} and valid {valid_NK.shape} "
      "must share one shape [prompts, completions]"
    )
  if not np.isfinite(score_NK[valid_NK]).all():
    raise ValueError("a score of a valid completion is not finite")
  first, second = np.triu_indices(score_NK.shape[1], k=1)
  score_NK = np.where(valid_NK, score_NK, 0)  # an unused slot may hold anything, inf included
  sign_NC = np.sign(rank_NK[:, second] - rank_NK[:, first])  # +1: the first is better
  untied_NC = valid_NK[:, first] & valid_NK[:, second] & (sign_NC != 0)
  return np.where(untied_NC, sign_NC * (score_NK[:, first] - score_NK[:, second]), np.nan)


def correct(score_NK: np.ndarray, rank_NK: np.ndarray, valid_NK: np.ndarray) -> np.ndarray:
  """[N, C] 1 where a pair is ranked right, 0 where wrong, NaN where `score_gaps` is."""
  gap_NC = score_gaps(score_NK, rank_NK, valid_NK)
  return np.where(np.isnan(gap_NC), np.nan, 0.5 * (1 + np.sign(gap_NC)))


def num_untied_pairs(rank_NK: np.ndarray, valid_NK: np.ndarray) -> int:
  """Number of unordered pairs of valid completions whose ranks differ."""
  return int((~np.isnan(score_gaps(np.zeros(np.shape(rank_NK)), rank_NK, valid_NK))).sum())


def accuracy(
  score_NK: np.ndarray,
  rank_NK: np.ndarray,
  valid_NK: np.ndarray,
  **settings: Unpack[statistics.Settings],
) -> statistics.Interval:
  """Share of untied pairs in which the better-ranked completion has the higher score.

  Pairs are pooled over prompts: a prompt with 36 pairs weighs 36 times a prompt with one.  Of
  `length_arrays` it is the baseline that a reward model must beat: "the longer one is better".

  Args:
    score_NK, rank_NK, valid_NK: see `score_gaps`.
    settings: of the bootstrap over prompts.

  Returns:
    An `Interval` in [0, 1]; `n` counts prompts with an untied pair (`num_untied_pairs` counts the
    pairs).

  Raises:
    ValueError: as `score_gaps`, or there is no untied pair.
  """
  return statistics.bootstrap_mean(correct(score_NK, rank_NK, valid_NK), **settings)


def arrays(
  lines: Sequence[Mapping[str, Any]], score_of: Callable[[Mapping[str, Any]], Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(scores, ranks, valid) [N, K] of lines with "ranks"; `score_of` gives the scores of a line."""
  scores, ranks = [score_of(line) for line in lines], [line["ranks"] for line in lines]
  most = max(map(len, ranks))
  pad = lambda rows: np.asarray([[*row, *[0] * (most - len(row))] for row in rows])
  return pad(scores), pad(ranks), pad([[1] * len(row) for row in ranks])


def length_arrays(
  comparisons: Sequence[Mapping[str, Any]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """`arrays` with lengths in characters: whole, though a reward model may have read them cut."""
  return arrays(comparisons, lambda line: [len(text) for text in line["completions"]])


def calibration_curve(
  score_NK: np.ndarray, rank_NK: np.ndarray, valid_NK: np.ndarray, *, num_bins: int = 10
) -> dict[str, Any]:
  """Predicted against observed preference, in bins of equal width.

  A pair is taken in the direction the model prefers, so its prediction

      p = sigmoid(|score difference|)   lies in [0.5, 1]

  and the observation is how often the labeler agreed.  Taking each pair in both directions would
  mirror the curve about (0.5, 0.5) and add nothing.

      ECE = sum_bins n_bin / n * |mean predicted - observed|

  Source of ECE: Guo et al. 2017, arXiv:1706.04599, section 2.

  Args:
    score_NK, rank_NK, valid_NK: see `score_gaps`.
    num_bins: over [0.5, 1]; the last bin includes 1.

  Returns:
    {"bins": [{"low", "high", "predicted", "observed", "n"}], "expected_calibration_error", "n"};
    n counts pairs; "predicted" and "observed" are None in an empty bin.

  Raises:
    ValueError: as `score_gaps`, or there is no untied pair.
  """
  gap_NC = score_gaps(score_NK, rank_NK, valid_NK)
  gap_C = gap_NC[~np.isnan(gap_NC)]
  if not gap_C.size:
    raise ValueError("there is no untied pair to calibrate on")
  predicted_C = 1 / (1 + np.exp(-np.abs(gap_C)))
  agreed_C = 0.5 * (1 + np.sign(gap_C))
  bin_C = np.minimum(((predicted_C - 0.5) * 2 * num_bins).astype(int), num_bins - 1)
  count, predicted, observed = (
    np.bincount(bin_C, weights=weight, minlength=num_bins)
    for weight in (None, predicted_C, agreed_C)
  )
  edges = np.linspace(0.5, 1, num_bins + 1)
  bins = [
    dict(
      low=float(low),
      high=float(high),
      n=int(n),
      predicted=float(sum_predicted / n) if n else None,
      observed=float(sum_observed / n) if n else None,
    )
    for low, high, n, sum_predicted, sum_observed in zip(
      edges[:-1], edges[1:], count, predicted, observed, strict=True
    )
  ]
  error = float(np.abs(predicted - observed).sum() / gap_C.size)
  return {"bins": bins, "expected_calibration_error": error, "n": int(gap_C.size)}
