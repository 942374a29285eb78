"""The bigram baseline against counting."""

import collections
import math

import numpy as np
import pytest

from rlhf.data import packing
from rlhf.evals.suites import bigram


def rows_of(documents, length: int = 5):
  return packing.pack(
    np.concatenate([np.asarray(d, np.int32) for d in documents]),
    np.asarray([len(d) for d in documents]),
    length=length,
    pad_id=9,
    packing="cut",
    attend_across_documents=False,
    reset_positions=False,
  )


def bigram_by_counting(train, valid, vocab_size: int):
  """p(y | x) from dictionaries, and the mean over held-out targets."""
  pairs = lambda rows: [
    (int(rows.tokens_BT[b, t - 1]), int(rows.tokens_BT[b, t]))
    for b, t in zip(*np.nonzero(rows.loss_mask_BT))
  ]
  count = collections.Counter(pairs(train))
  unigram = collections.Counter(y for _, y in pairs(train))
  num = sum(unigram.values())

  def prob(x, y):
    p_y = (unigram[y] + 1) / (num + vocab_size)
    after = {b: n for (a, b), n in count.items() if a == x}
    if not after:
      return p_y
    return (count[x, y] + len(after) * p_y) / (sum(after.values()) + len(after))

  return prob, float(np.mean([-math.log(prob(x, y)) for x, y in pairs(valid)]))


def test_the_bigram_loss_against_counting():
  rng = np.random.default_rng(0)
  train = rows_of([[0, 1, 2, 1, 2, 0], [3, 1, 2], rng.integers(0, 5, 30)])
  # 7 and 8 were never seen, neither before nor behind another.
  valid = rows_of([[1, 2, 0, 4, 7, 1, 8, 8, 0], rng.integers(0, 9, 20)])
  prob, expected = bigram_by_counting(train, valid, 10)
  assert bigram.bigram_nll(train, valid, vocab_size=10) == pytest.approx(expected, rel=1e-9)
  assert sum(prob(1, y) for y in range(10)) == pytest.approx(1)  # as checked: probabilities


def test_the_bigram_model_beats_uniform_where_there_is_something_to_learn():
  cycle = rows_of([np.arange(300) % 7], length=50)
  assert bigram.bigram_nll(cycle, cycle, vocab_size=10) < 0.2 < math.log(10)
