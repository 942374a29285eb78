"""What every evaluation suite gives back: one number of one checkpoint, with its interval."""

from collections.abc import Mapping
import dataclasses
from typing import Any

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
  """
  task: str
  metric: str
  interval: statistics.Interval
  variant: str = ""
  better: str = ""

  def __post_init__(self):
    if self.better not in BETTER:
      raise ValueError(f"better is {self.better!r}; choose from {BETTER}")

  def as_dict(self) -> dict[str, Any]:
    """Flat, as in `result.json`."""
    return dict(task=self.task, variant=self.variant, metric=self.metric,
                **self.interval.as_dict(), better=self.better)

  @classmethod
  def from_dict(cls, fields: Mapping[str, Any]) -> "Measure":
    """The inverse of `as_dict`."""
    interval = statistics.Interval(**{name: fields[name] for name in ("mean", "low", "high", "n")})
    return cls(task=fields["task"], variant=fields["variant"], metric=fields["metric"],
               interval=interval, better=fields["better"])
