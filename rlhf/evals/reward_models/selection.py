"""Selects the candidate (checkpoint, epoch, prefix) with the highest mean reward.

InstructGPT does so on validation prompts for its SFT models (appendix C.1), its FLAN and T0
baselines (C.5), and the few-shot prefix of its prompted baseline (footnote 6).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Unpack

import numpy as np

from rlhf.evals import statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """The best candidate and all scores.

  Attributes:
    best: has the highest mean score; the first of equals.
    scores: candidate -> score_P of its completions, one per prompt, in the order of trial.
  """

  best: Any
  scores: dict[Any, np.ndarray]

  def mean(self, candidate) -> float:
    return float(np.mean(self.scores[candidate]))

  def intervals(self, **settings: Unpack[statistics.Settings]) -> dict[Any, statistics.Interval]:
    """Mean score of each candidate over prompts, with its bootstrap interval."""
    return {
      candidate: statistics.bootstrap_mean(score_P[:, None], **settings)
      for candidate, score_P in self.scores.items()
    }


def choose(
  candidates: Iterable,
  score: Callable[[Any], np.ndarray],
  *,
  on_scored: Callable[[Any, float], None] = lambda candidate, mean: None,
) -> Choice:
  """Scores candidate by candidate, so that one network is in memory at a time.

  Args:
    candidates: at least one, each once; anything that a dict can have as a key.
    score: a candidate's rewards of completions, one per prompt, the same prompts for all.
    on_scored: called with each candidate and its mean.

  Raises:
    ValueError: no candidate, a candidate given twice, or scores of different numbers of prompts.
  """
  scores: dict[Any, np.ndarray] = {}
  for candidate in candidates:
    if candidate in scores:
      raise ValueError(f"candidate {candidate} is given twice; give each once")
    scores[candidate] = np.asarray(score(candidate), np.float64)
    first = next(iter(scores.values()))
    if scores[candidate].shape != first.shape or first.ndim != 1 or not len(first):
      raise ValueError(
        f"candidate {candidate} has scores {scores[candidate].shape}, but the first has "
        f"{first.shape}; score the same prompts for all"
      )
    on_scored(candidate, float(np.mean(scores[candidate])))
  if not scores:
    raise ValueError("there is no candidate; give one or more")
  best = max(scores, key=lambda candidate: float(np.mean(scores[candidate])))
  return Choice(best=best, scores=scores)
