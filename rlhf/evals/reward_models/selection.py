"""The candidate whose answers a reward model scores highest: a checkpoint, an epoch, a prefix.

InstructGPT selects so, on validation prompts: its SFT models (appendix C.1), its FLAN and T0
baselines (C.5), and the few-shot prefix of its prompted baseline (footnote 6).
"""

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

import numpy as np

from rlhf.evals import statistics

Candidate = TypeVar("Candidate", bound=Hashable)
Drawn = TypeVar("Drawn")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Generic[Candidate]):
  """Which candidate is best, and by how much.

  Attributes:
    best: of the highest mean score; the first of those that are equal.
    scores: candidate -> score_P of its answers, one per prompt, in the order of trial.
  """

  best: Candidate
  scores: dict[Candidate, np.ndarray]

  def mean(self, candidate: Candidate) -> float:
    return float(np.mean(self.scores[candidate]))

  def intervals(self, *, num_resamples: int, seed: int) -> dict[Candidate, statistics.Interval]:
    """Mean score of each candidate over prompts, with its bootstrap interval."""
    return {
      candidate: statistics.bootstrap_mean(score_P[:, None], num_resamples=num_resamples, seed=seed)
      for candidate, score_P in self.scores.items()
    }


def choose(
  candidates: Iterable[Candidate],
  answers_of: Callable[[Candidate], Drawn],
  score: Callable[[Drawn], np.ndarray],
  *,
  on_scored: Callable[[Candidate, float], None] | None = None,
) -> Choice[Candidate]:
  """Answers and scores candidate by candidate, so that one network is held at a time.

  Args:
    candidates: at least one, each once.
    answers_of: a candidate's answers to the prompts, the same prompts for all.
    score: what they are worth, one number per prompt.
    on_scored: is told each candidate's mean.

  Raises:
    ValueError: no candidate, one that is given twice, or scores of another number of prompts.
  """
  scores: dict[Candidate, np.ndarray] = {}
  for candidate in candidates:
    if candidate in scores:
      raise ValueError(f"candidate {candidate} is given twice; give each once")
    scores[candidate] = np.asarray(score(answers_of(candidate)), np.float64)
    first = next(iter(scores.values()))
    if scores[candidate].shape != first.shape or first.ndim != 1 or not len(first):
      raise ValueError(
        f"candidate {candidate} has scores {scores[candidate].shape}, where the "
        f"first has {first.shape}; score the same prompts for all"
      )
    if on_scored is not None:
      on_scored(candidate, float(np.mean(scores[candidate])))
  if not scores:
    raise ValueError("there is no candidate to choose from; give one or more")
  return Choice(
    best=max(scores, key=lambda candidate: float(np.mean(scores[candidate]))), scores=scores
  )
