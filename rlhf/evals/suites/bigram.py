"""A bigram model of tokens: the loss that a language model has to beat."""

import numpy as np

from rlhf.types import LmBatch


def bigram_nll(train: LmBatch, valid: LmBatch, *, vocab_size: int) -> float:
  """Held-out negative log-likelihood of an interpolated bigram model, in nats per token.

      p(y | x) = (c(x, y) + t(x) * p(y)) / (c(x) + t(x))        p(y) = (c(y) + 1) / (n + V)

  with t(x) the number of different tokens seen after x (Witten and Bell 1991), so nothing is
  tuned.  Rows are read as the transformer reads them: entry t is predicted from entry t-1 of its
  row, where the loss mask is set.

  Args:
    train, valid: packed rows.
    vocab_size: V.
  """

  def pairs(rows: LmBatch):
    counted = rows.loss_mask_BT[:, 1:] > 0
    return (
      rows.tokens_BT[:, :-1][counted].astype(np.int64),
      rows.tokens_BT[:, 1:][counted].astype(np.int64),
    )

  first, second = pairs(train)
  seen, count = np.unique(first * vocab_size + second, return_counts=True)
  count_x = np.bincount(first, minlength=vocab_size)
  types_x = np.bincount(seen // vocab_size, minlength=vocab_size)
  unigram_V = (np.bincount(second, minlength=vocab_size) + 1.0) / (len(second) + vocab_size)
  first, second = pairs(valid)
  place = np.minimum(np.searchsorted(seen, first * vocab_size + second), len(seen) - 1)
  count_xy = np.where(seen[place] == first * vocab_size + second, count[place], 0)
  # A context that was never seen (c = t = 0) leaves the unigram.
  prob = np.where(
    count_x[first] > 0,
    (count_xy + types_x[first] * unigram_V[second])
    / np.maximum(count_x[first] + types_x[first], 1),
    unigram_V[second],
  )
  return float(-np.log(prob).mean())
