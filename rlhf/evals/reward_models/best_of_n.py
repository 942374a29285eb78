"""Best-of-n sampling: the expected score of the best of n completions, for every n <= N samples.

The best completion has the highest proxy score (a reward model's); its proxy score or another, such
as the gold score, is averaged over all subsets of n of the N samples, in closed form: see
`expected_best`.
"""

from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from rlhf.evals import statistics


def subset_weights(num_samples: int) -> np.ndarray:
  """weight_nN: share of the subsets of n of N samples whose best is the i-th worst.

      weight[n, i] = C(i - 1, n - 1) / C(N, n)         i = 1 (worst), ..., N (best)

  Computed from the best downwards, weight[n, N] = n / N and weight[n, i - 1] = weight[n, i] *
  (i - n) / (i - 1), so that no binomial coefficient grows beyond what a float holds.

  Args:
    num_samples: N, at least 1.

  Returns:
    float64 [N, N]; row n - 1 belongs to n and sums to 1; entry i - 1 to the i-th worst.
  """
  n_n1 = np.arange(1, num_samples + 1, dtype=np.float64)[:, None]
  i_N = np.arange(num_samples, 1, -1, dtype=np.float64)  # N, ..., 2
  ratio_nN = np.maximum(i_N - n_n1, 0) / (i_N - 1)
  from_best_nN = np.cumprod(np.concatenate([n_n1 / num_samples, ratio_nN], axis=1), axis=1)
  return from_best_nN[:, ::-1]


def expected_best(proxy_PN: np.ndarray, value_PN: np.ndarray) -> np.ndarray:
  """Unbiased estimates of E[value of the best of n by proxy], for n = 1, ..., N.

      sum_i C(i - 1, n - 1) / C(N, n) * value_(i)      samples in increasing order of proxy

  Samples of equal proxy score are the best equally often, so each has the mean value of its
  equals.  Source: Nakano et al. 2021, arXiv:2112.09332, appendix I; Gao et al. 2022,
  arXiv:2210.10760.

  Args:
    proxy_PN: float, scores of N samples of P prompts.
    value_PN: float, what is averaged; `proxy_PN` itself or another score.

  Returns:
    float64 [P, N]; column n - 1 belongs to n; n = 1 is the plain mean, n = N the highest's value.

  Raises:
    ValueError: the shapes differ or have no sample, or a score is not finite.
  """
  proxy_PN, value_PN = np.asarray(proxy_PN, np.float64), np.asarray(value_PN, np.float64)
  if proxy_PN.ndim != 2 or proxy_PN.shape != value_PN.shape or not proxy_PN.size:
    raise ValueError(
      f"proxy scores {proxy_PN.shape} and values {value_PN.shape} must share one "
      "shape [prompts, samples], each at least 1"
    )
  for name, array in (("proxy score", proxy_PN), ("value", value_PN)):
    if not np.isfinite(array).all():
      raise ValueError(f"a {name} is not finite; score every sample")
  sorted_PN = np.stack(
    [_in_order(proxy_N, value_N) for proxy_N, value_N in zip(proxy_PN, value_PN)]
  )
  return sorted_PN @ subset_weights(proxy_PN.shape[1]).T


def _in_order(proxy_N: np.ndarray, value_N: np.ndarray) -> np.ndarray:
  """Values in increasing order of proxy; values of equal proxy are replaced by their mean."""
  _, group_N = np.unique(proxy_N, return_inverse=True)  # 0 is the lowest
  mean_G = np.bincount(group_N, weights=value_N) / np.bincount(group_N)
  return mean_G[np.sort(group_N)]


def kl(n: int | np.ndarray) -> np.ndarray:
  """KL(best-of-n || policy) in nats, if no two samples are equal: log n - (n - 1) / n.

  Source: Stiennon et al. 2020, arXiv:2009.01325.  An upper bound where samples
  repeat.
  """
  n = np.asarray(n, np.float64)
  return np.log(n) - (n - 1) / n


def curve(
  proxy_PN: np.ndarray,
  gold_PN: np.ndarray | None,
  *,
  sizes: Sequence[int] | None = None,
  **settings: Unpack[statistics.Settings],
) -> list[dict[str, Any]]:
  """Proxy and gold score of best-of-n against its KL.

  Args:
    proxy_PN: scores by which the best is chosen.
    gold_PN: the true value of each sample, or None if it is unknown.
    sizes: the n to return; None takes 1, ..., N.
    settings: of the bootstrap over prompts.

  Returns:
    [{"n", "kl" (nats), "proxy": {"mean", "low", "high", "n"}, "gold": the same or None}].

  Raises:
    ValueError: as `expected_best`, or an n outside 1..N.
  """
  num_samples = np.shape(proxy_PN)[1] if np.ndim(proxy_PN) == 2 else 0
  sizes = range(1, num_samples + 1) if sizes is None else sizes
  outside = [n for n in sizes if not 1 <= n <= num_samples]
  if outside:
    raise ValueError(
      f"best of {outside[0]} cannot be estimated from {num_samples} samples; draw more samples, or "
      "choose a smaller n"
    )
  proxy_best_PN = expected_best(proxy_PN, proxy_PN)
  gold_best_PN = None if gold_PN is None else expected_best(proxy_PN, gold_PN)

  def interval(value_PN, n):
    return statistics.bootstrap_mean(value_PN[:, n - 1 : n], **settings).as_dict()

  return [
    dict(
      n=int(n),
      kl=float(kl(n)),
      proxy=interval(proxy_best_PN, n),
      gold=None if gold_best_PN is None else interval(gold_best_PN, n),
    )
    for n in sizes
  ]


def doubling_sizes(num_samples: int) -> list[int]:
  """1, 2, 4, ... and N: enough points for a plot, about equally spaced in KL."""
  return sorted({*(2**power for power in range(num_samples.bit_length())), num_samples})


def fit(root_kl_M: np.ndarray, gain_M: np.ndarray, form: str) -> tuple[float, float]:
  """(alpha, beta) of Gao et al.'s law of the gold score against d = sqrt(KL), by least squares.

      "best_of_n"   R(d) = d * (alpha - beta * d)
      "rl"          R(d) = d * (alpha - beta * log d)

  Source: Gao et al. 2022, arXiv:2210.10760.

  Args:
    root_kl_M: d in sqrt(nats); points at 0 carry no information.
    gain_M: gold score minus that of the initial policy.

  Raises:
    ValueError: an unknown form, or fewer than two different points above 0.
  """
  shapes = {"best_of_n": lambda d: -d, "rl": lambda d: -np.log(d)}
  if form not in shapes:
    raise ValueError(f"form {form!r}; choose from {sorted(shapes)}")
  d_M, gain_M = np.asarray(root_kl_M, np.float64), np.asarray(gain_M, np.float64)
  d_M, gain_M = d_M[d_M > 0], gain_M[d_M > 0]
  if len(np.unique(d_M)) < 2:
    raise ValueError("two different distances above 0 are needed to fit alpha and beta")
  design_M2 = d_M[:, None] * np.stack([np.ones_like(d_M), shapes[form](d_M)], axis=1)
  (alpha, beta), *_ = np.linalg.lstsq(design_M2, gain_M)
  return float(alpha), float(beta)
