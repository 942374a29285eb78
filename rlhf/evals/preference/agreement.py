"""How far raters agree: Krippendorff's alpha, Cohen's kappa, and how often two say the same."""

import itertools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, Unpack

import numpy as np

from rlhf.evals import statistics
from rlhf.evals.preference import win_rates


def table(
  entries: Iterable[tuple[Hashable, str, float]], raters: Sequence[str]
) -> tuple[list[Any], np.ndarray]:
  """Ratings as a table.

  Args:
    entries: (item, rater, value).
    raters: names of the L columns.

  Returns:
    (the S items in order of appearance, value_SL with NaN where a rater did not rate an item).
  """
  entries = list(entries)
  row = {item: s for s, item in enumerate(dict.fromkeys(item for item, _, _ in entries))}
  column = {rater: number for number, rater in enumerate(raters)}
  value_SL = np.full((len(row), len(column)), np.nan)
  for item, rater, value in entries:
    value_SL[row[item], column[rater]] = value
  return list(row), value_SL


def reliability(
  value_SL: np.ndarray, raters: Sequence[str], *, ordered: bool
) -> dict[str, Any] | None:
  """Krippendorff's alpha of all raters and Cohen's kappa of each two; None without two raters.

  Args:
    value_SL: see `table`.
    raters: names of the columns.
    ordered: whether values are numbers, whose distances are squared, or labels.
  """
  # Imported here: sklearn takes seconds.
  import krippendorff
  from sklearn.metrics import cohen_kappa_score

  known_SL = ~np.isnan(value_SL)
  several_S = known_SL.sum(axis=1) > 1
  if not several_S.any():
    return None
  alpha = 1.0  # where all agree on one value
  if len(np.unique(value_SL[known_SL & several_S[:, None]])) > 1:
    level: Literal["interval", "nominal"] = "interval" if ordered else "nominal"
    alpha = float(krippendorff.alpha(reliability_data=value_SL.T, level_of_measurement=level))
  kappa = {}
  for i, j in itertools.combinations(range(len(raters)), 2):
    both_S = known_SL[:, i] & known_SL[:, j]
    # Twice the value is a whole number: sklearn wants labels.
    a, b = (np.rint(2 * value_SL[both_S, place]).astype(int) for place in (i, j))
    if len(set(a) | set(b)) > 1:
      kappa[f"{raters[i]} & {raters[j]}"] = float(
        cohen_kappa_score(a, b, weights="quadratic" if ordered else None)
      )
  return dict(alpha=alpha, kappa=kappa, num_samples=int(several_S.sum()))


def same_choice(
  value_CL: np.ndarray, prompts: Sequence[int], **settings: Unpack[statistics.Settings]
) -> dict[str, Any] | None:
  """How often two raters of one comparison said the same, with an interval over prompts.

      sum_c sum_values C(n_cv, 2) / sum_c C(n_c, 2)

  Args:
    value_CL: wins of C comparisons by L raters, NaN where not judged.
    prompts: of each comparison.
    settings: of the bootstrap.
  """
  counts_VC = np.array([(value_CL == value).sum(axis=1) for value in win_rates.WINS])
  agreed_C = (counts_VC * (counts_VC - 1) // 2).sum(axis=0)
  counts_C = counts_VC.sum(axis=0)
  all_C = counts_C * (counts_C - 1) // 2
  _, prompt_C = np.unique(prompts, return_inverse=True)
  table_P2 = np.stack(
    [np.bincount(prompt_C, weights=column) for column in (agreed_C, all_C)], axis=1
  )
  table_P2 = table_P2[table_P2[:, 1] > 0]
  if not len(table_P2):
    return None
  return statistics.bootstrap_statistic(table_P2, statistics.ratio, **settings).as_dict()
