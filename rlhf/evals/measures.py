"""What every evaluation suite returns: numbers of one checkpoint, each with its interval."""

import dataclasses
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf.evals import statistics

BETTER = ("higher", "lower", "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
  """One number of one checkpoint.

  Attributes:
    task: what was done, such as "squadv2".
    metric: what was measured there, such as "f1".
    interval: in the unit of the paper's Table 14: F1 and BLEU 0-100, ROUGE-L, accuracies, rates and
      toxicity 0-1, entropies in bits.
    variant: how it was asked, such as "respectful"; empty where there is one way.
    better: "higher", "lower", or empty where neither is.
    values: of each item, in the same order for every checkpoint, where the number is their mean;
      empty where it is not, such as BLEU.  NaN, null in files, where an item has none.
  """

  task: str
  metric: str
  interval: statistics.Interval
  variant: str = ""
  better: str = ""
  values: tuple[float, ...] = ()

  def __post_init__(self):
    if self.better not in BETTER:
      raise ValueError(f"better is {self.better!r}; choose from {BETTER}")

  @classmethod
  def of_mean(cls, values: ArrayLike, bootstrap: statistics.Settings, **fields: str) -> "Measure":
    """The mean of one value for each item, with its bootstrap interval over items."""
    value_N = np.asarray(values, np.float64)
    interval = statistics.bootstrap_mean(value_N[:, None], **bootstrap)
    return cls(interval=interval, values=tuple(value_N.tolist()), **fields)

  def as_dict(self) -> dict[str, Any]:
    """Flat, as in `result.json`."""
    return dict(
      task=self.task,
      variant=self.variant,
      metric=self.metric,
      **self.interval.as_dict(),
      better=self.better,
      values=[None if math.isnan(value) else value for value in self.values],
    )
