"""Length-controlled win rates: the win rate if all completions were equally long.

Stiennon's logistic estimator.  One logistic regression, over all comparisons with the baseline, of
the preference on the identity of the two policies and the log ratio of their completions' lengths,

    P(a's completion is preferred) = sigmoid(theta_a - theta_b + gamma * log(length_a / length_b))

where b is always the baseline; then, for any two policies, the prediction with the log ratio at 0:

    length-controlled win rate of a over c = sigmoid(theta_a - theta_c)

Direct comparisons of two other policies are not used: their length-controlled rate follows from the
comparison of each with the baseline and can differ from their own comparisons.

Source: Stiennon et al. 2020, arXiv:2009.01325, appendix F.  AlpacaEval 2 (Dubois et al. 2024,
arXiv:2404.04475) answers the same question with another generalised linear model, whose length term
is the difference of the lengths and which has further features; the two numbers are not comparable.

theta of the baseline is 0, a tie counts half for each side, and lengths are in characters, at least
1.  A penalty of PENALTY / 2 * (sum theta^2 + gamma^2) on the summed log-likelihood keeps the
estimate finite where one side always wins, and changes no other number visibly.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf.evals import statistics

PENALTY = 1e-3
_NUM_STEPS = 50
_LARGEST_STEP = 2.0  # of a coefficient in one Newton step, far from the optimum
_TOLERANCE = 1e-9
_CHUNK_ENTRIES = 2_000_000  # of one array [resamples, policies, prompts]


def length_controlled_win_rates(
  rows_by_seed: Mapping[int, Sequence[Mapping[str, Any]]],
  completions_by_seed: Mapping[int, Mapping[str, Sequence[str]]],
  policies: Sequence[str],
  *,
  baseline: str,
  group: str,
  **settings: Unpack[statistics.Settings],
) -> dict[str, dict[str, statistics.Interval | None]]:
  """Every policy against every other at equal length, with bootstrap intervals over prompts.

  Args:
    rows_by_seed: training seed -> rows of `preferences.jsonl` against the baseline.
    completions_by_seed: training seed -> policy -> completions by prompt_index.
    policies: which, the baseline among them or not.
    baseline: of the rows.
    group: of judges, one of `win_rates.JUDGE_GROUPS`.
    settings: of the bootstrap: runs, then the prompts of each drawn run.

  Returns:
    policy -> other -> interval; None on the diagonal and where a policy was not judged.  `n` counts
    the prompts on which either was compared with the baseline.
  """
  rows_by_seed = {
    run: [
      row
      for row in rows
      if row["group"] == group
      and row["win"] is not None
      and row.get("baseline", baseline) == baseline
    ]
    for run, rows in rows_by_seed.items()
  }
  judged = list(dict.fromkeys(row["policy"] for rows in rows_by_seed.values() for row in rows))
  found: dict[str, dict[str, statistics.Interval | None]] = {
    policy: dict.fromkeys(policies) for policy in policies
  }
  if not judged:
    return found
  tables = [
    _table(rows, completions_by_seed[run], judged, baseline)
    for run, rows in rows_by_seed.items()
    if rows
  ]
  win_KP, weight_KP, log_ratio_KP = (np.concatenate(arrays, axis=1) for arrays in zip(*tables))
  data_1K = _estimate(win_KP, weight_KP, log_ratio_KP, np.ones((1, win_KP.shape[1])))
  count_RP = _nested_counts([table[0].shape[1] for table in tables], **settings)
  size = max(1, _CHUNK_ENTRIES // max(1, win_KP.size))
  draws_RK = np.concatenate(
    [
      _estimate(win_KP, weight_KP, log_ratio_KP, count_RP[start : start + size])
      for start in range(0, len(count_RP), size)
    ]
  )
  place = {name: k for k, name in enumerate([*judged, baseline])}
  # The last column is the baseline's: theta is 0, and nothing is compared with itself.
  data_1K, draws_RK = (np.pad(theta_RK, ((0, 0), (0, 1))) for theta_RK in (data_1K, draws_RK))
  compared_KP = np.pad(weight_KP > 0, ((0, 1), (0, 0)))
  for policy, other in itertools.permutations([name for name in policies if name in place], 2):
    a, b = place[policy], place[other]
    found[policy][other] = statistics.percentile_interval(
      float(_sigmoid(data_1K[0, a] - data_1K[0, b])),
      _sigmoid(draws_RK[:, a] - draws_RK[:, b]),
      int((compared_KP[a] | compared_KP[b]).sum()),
    )
  return found


def _table(rows, completions, policies, baseline):
  """(mean win, number of judgements, log ratio of lengths), each [K, P], of one run."""
  prompts = {index: p for p, index in enumerate(sorted({row["prompt_index"] for row in rows}))}
  place = {policy: k for k, policy in enumerate(policies)}
  total_KP, weight_KP, log_ratio_KP = np.zeros((3, len(policies), len(prompts)))
  for row in rows:
    at = place[row["policy"]], prompts[row["prompt_index"]]
    total_KP[at] += row["win"]
    weight_KP[at] += 1
    own, other = (
      max(1, len(completions[name][row["prompt_index"]])) for name in (row["policy"], baseline)
    )
    log_ratio_KP[at] = np.log(own / other)
  return total_KP / np.maximum(weight_KP, 1), weight_KP, log_ratio_KP


def _nested_counts(sizes: Sequence[int], *, num_resamples: int, seed: int) -> np.ndarray:
  """[R, P]: how often each prompt is drawn, for concatenated runs of `sizes` prompts."""
  ends, rng = np.cumsum(sizes), np.random.default_rng(seed)
  count_RP = np.zeros((num_resamples, ends[-1]))
  for r in range(num_resamples):
    for run in rng.integers(len(sizes), size=len(sizes)):
      drawn = rng.integers(sizes[run], size=sizes[run])
      count_RP[r, ends[run] - sizes[run] : ends[run]] += np.bincount(drawn, minlength=sizes[run])
  return count_RP


def _sigmoid(x):
  return 0.5 * (1 + np.tanh(0.5 * x))  # does not overflow


def _estimate(win_KP, weight_KP, log_ratio_KP, count_RP) -> np.ndarray:
  """theta_RK of the regression in which prompt p counts count_RP[r, p] times, by Newton's method.

  The Hessian is diagonal in theta with one border, gamma's, so a step needs no matrix.
  """
  weight_RKP = weight_KP * count_RP[:, None, :]
  theta_RK, gamma_R = np.zeros(weight_RKP.shape[:2]), np.zeros(len(count_RP))
  for _ in range(_NUM_STEPS):
    logit_RKP = theta_RK[..., None] + gamma_R[:, None, None] * log_ratio_KP
    p_RKP = _sigmoid(logit_RKP)
    residual_RKP = weight_RKP * (win_KP - p_RKP)
    curvature_RKP = weight_RKP * p_RKP * (1 - p_RKP)
    slope_RK = residual_RKP.sum(axis=2) - PENALTY * theta_RK
    slope_R = (residual_RKP * log_ratio_KP).sum(axis=(1, 2)) - PENALTY * gamma_R
    diagonal_RK = curvature_RKP.sum(axis=2) + PENALTY
    border_RK = (curvature_RKP * log_ratio_KP).sum(axis=2)
    corner_R = (curvature_RKP * log_ratio_KP**2).sum(axis=(1, 2)) + PENALTY
    schur_R = corner_R - (border_RK**2 / diagonal_RK).sum(axis=1)
    step_R = (slope_R - (border_RK * slope_RK / diagonal_RK).sum(axis=1)) / schur_R
    step_RK = (slope_RK - border_RK * step_R[:, None]) / diagonal_RK
    largest_R = np.maximum(np.abs(step_RK).max(axis=1), np.abs(step_R))
    scale_R = np.minimum(1, _LARGEST_STEP / np.maximum(largest_R, _LARGEST_STEP))
    theta_RK += scale_R[:, None] * step_RK
    gamma_R += scale_R * step_R
    if largest_R.max() < _TOLERANCE:
      break
  return theta_RK
