"""Streams of batches: functions of (seed, step), the same for any number of processes."""

import collections

import numpy as np
import pytest

from rlhf import types
from rlhf.data import batches as batches_lib
from rlhf.data.prepare import ComparisonRows


def lm_rows(num: int, first: int = 0, length: int = 4) -> types.LmBatch:
  """Row i holds the number first + i everywhere."""
  tokens = np.repeat(np.arange(first, first + num, dtype=np.int32)[:, None], length, axis=1)
  ones = np.ones_like(tokens)
  return types.LmBatch(
    tokens_BT=tokens,
    loss_mask_BT=ones.astype(np.float32),
    segment_BT=ones,
    position_BT=ones * np.arange(length, dtype=np.int32),
  )


def numbers(batch: types.LmBatch) -> list[int]:
  assert (batch.tokens_BT == batch.tokens_BT[:, :1]).all()
  return batch.tokens_BT[:, 0].tolist()


def comparison_rows(num: int) -> ComparisonRows:
  ids = [[np.asarray([i, k], np.int32) for k in range(2 + i % 3)] for i in range(num)]
  ranks = [np.arange(1, len(row) + 1, dtype=np.int32) for row in ids]
  return ComparisonRows(
    ids=ids,
    ranks=ranks,
    records=[{"prompt": str(i)} for i in range(num)],
    num_slots=4,
    length=3,
    pad_id=99,
  )


def test_every_row_once_an_epoch_in_a_new_order_each():
  stream = batches_lib.Batches(lm_rows(10), batch_size=4, seed=0)
  assert stream.num_steps(1) == 3 and stream.num_steps(2) == 5
  seen = [n for step in range(5) for n in numbers(stream[step])]
  assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
  assert seen[:10] != seen[10:] and seen[:10] != list(range(10))


def test_a_batch_is_a_function_of_seed_and_step():
  stream, again = (batches_lib.Batches(lm_rows(50), batch_size=8, seed=3) for _ in range(2))
  forward = [numbers(stream[step]) for step in range(20)]
  assert [numbers(again[step]) for step in reversed(range(20))] == forward[::-1]
  other = batches_lib.Batches(lm_rows(50), batch_size=8, seed=4)
  assert [numbers(other[step]) for step in range(20)] != forward


def test_seeds_are_not_each_other_an_epoch_later():
  first, second = (batches_lib.Batches(lm_rows(20), batch_size=20, seed=s) for s in (0, 1))
  assert numbers(first[1]) != numbers(second[0])


@pytest.mark.parametrize("num_processes", [2, 4, 8])
def test_processes_make_shares_of_the_same_batches(num_processes: int):
  shares = [
    slice(p * 8 // num_processes, (p + 1) * 8 // num_processes) for p in range(num_processes)
  ]

  def streams(build):
    return build(), *(build(share=share) for share in shares)

  lm = streams(lambda **k: batches_lib.Batches(lm_rows(21), batch_size=8, seed=1, **k))
  mixed = streams(
    lambda **k: batches_lib.Batches(
      lm_rows(21), other_rows=lm_rows(9, first=100), fraction=0.3, batch_size=8, seed=1, **k
    )
  )
  for whole, *parts in (lm, mixed):
    for step in (0, 1, 7):
      gathered = [n for part in parts for n in numbers(part[step])]
      assert gathered == numbers(whole[step])
  whole, *parts = streams(
    lambda **k: batches_lib.Batches(comparison_rows(21), batch_size=8, seed=1, **k)
  )
  np.testing.assert_array_equal(
    np.concatenate([part[5].tokens_BKT for part in parts]), whole[5].tokens_BKT
  )


def test_a_share_may_be_any_places():
  places = np.asarray([6, 0, 3])
  whole, part = (
    batches_lib.Batches(lm_rows(21), batch_size=8, seed=1, **k) for k in ({}, {"share": places})
  )
  assert numbers(part[4]) == [numbers(whole[4])[place] for place in places]


def test_iterating_from_a_step_gives_the_steps():
  stream = batches_lib.Batches(lm_rows(10), batch_size=4, seed=0)
  batches = stream.iterate(3)
  for step in range(3, 12):
    assert numbers(next(batches)) == numbers(stream[step])


def test_indices_say_which_rows_a_batch_has():
  rows = types.PromptBatch(
    tokens_BP=np.arange(14, dtype=np.int32)[:, None] + np.zeros((1, 2)),
    mask_BP=np.ones((14, 2), np.float32),
  )
  stream = batches_lib.Batches(rows, batch_size=4, seed=0)
  for step in range(9):
    assert stream[step].tokens_BP[:, 0].tolist() == stream._indices[step].tolist()


def test_more_rows_in_a_batch_than_there_are():
  stream = batches_lib.Batches(lm_rows(3), batch_size=8, seed=0)
  counts = collections.Counter(numbers(stream[0]) + numbers(stream[1]) + numbers(stream[2]))
  assert counts == {0: 8, 1: 8, 2: 8}


def test_mixed_rows_are_the_fraction_of_all_and_spread_evenly():
  stream = batches_lib.Batches(
    lm_rows(70), other_rows=lm_rows(25, first=1000), fraction=0.1, batch_size=32, seed=0
  )
  main, other = [], []
  for step in range(50):
    found = numbers(stream[step])
    here = [n for n in found if n >= 1000]
    assert len(here) in (3, 4) and len(found) == 32
    assert stream._indices[step].tolist() == [n - 930 if n >= 1000 else n for n in found]
    main += [n for n in found if n < 1000]
    other += here
  assert len(other) == 160 and len(main) == 1440
  assert sorted(main[:70]) == sorted(main[70:140]) == list(range(70))
  assert sorted(other[:25]) == sorted(other[25:50]) == list(range(1000, 1025))
  assert stream.num_steps(1) == 3  # 70 rows at 28.8 a batch
  assert stream.num_steps(3) == 8


def test_mixing_nothing_is_the_plain_stream():
  mixed = batches_lib.Batches(
    lm_rows(10), other_rows=lm_rows(5, first=50), fraction=0.0, batch_size=4, seed=2
  )
  plain = batches_lib.Batches(lm_rows(10), batch_size=4, seed=2)
  assert [numbers(mixed[s]) for s in range(9)] == [numbers(plain[s]) for s in range(9)]


def test_two_sets_of_one_size_are_not_paired():
  stream = batches_lib.Batches(
    lm_rows(20), other_rows=lm_rows(20, first=100), fraction=0.5, batch_size=40, seed=0
  )
  found = numbers(stream[0])
  assert found[:20] != [n - 100 for n in found[20:]]


def test_bad_mixtures():
  with pytest.raises(ValueError, match="fraction 1.0 of other rows; it must be at least 0"):
    batches_lib.Batches(lm_rows(4), other_rows=lm_rows(4), fraction=1.0, batch_size=2, seed=0)
  with pytest.raises(ValueError, match="rows of 4 and of 5 tokens cannot share a batch"):
    batches_lib.Batches(
      lm_rows(4), other_rows=lm_rows(4, length=5), fraction=0.5, batch_size=2, seed=0
    )


def test_comparisons_in_one_batch_element_or_as_shuffled_pairs():
  rows = comparison_rows(9)  # three of K = 2, 3 and 4 each: 1 + 3 + 6 pairs
  whole = batches_lib.Batches(rows, batch_size=3, seed=0)
  assert whole.num_steps(1) == 3
  shown = sum(whole[step].valid_BK.sum() for step in range(3))
  assert shown == 3 * (2 + 3 + 4) and whole[0].tokens_BKT.shape == (3, 4, 3)
  pairs = batches_lib.Batches(rows.pairs(), batch_size=3, seed=0)
  assert pairs.num_rows == 30 and pairs.num_steps(1) == 10
  assert pairs[0].tokens_BKT.shape == (3, 2, 3) and pairs[0].rank_BK.tolist() == [[1, 2]] * 3
  prompts = [pairs[step].tokens_BKT[b, 0, 0] for step in range(10) for b in range(3)]
  assert collections.Counter(prompts) == {i: (1, 3, 6)[i % 3] for i in range(9)}


def test_fixed_batches_show_every_row_once_in_order():
  found = list(batches_lib.fixed_batches(lm_rows(10), 4))
  assert [valid.tolist() for _, valid in found] == [[1] * 4, [1] * 4, [1, 1, 0, 0]]
  shown = [n for batch, valid in found for n, v in zip(numbers(batch), valid) if v]
  assert shown == list(range(10))
  last = found[-1][0]
  assert last.tokens_BT.shape == (4, 4) and last.loss_mask_BT.sum() == 2 * 4
  assert last.loss_mask_BT.dtype == np.float32


def test_fixed_batches_of_comparisons_and_prompts():
  ((batch, valid),) = batches_lib.fixed_batches(comparison_rows(3), 4)
  assert valid.tolist() == [1, 1, 1, 0] and batch.valid_BK.sum(axis=1).tolist() == [2, 3, 4, 0]
  prompts = types.PromptBatch(tokens_BP=np.ones((3, 2), np.int32), mask_BP=np.ones((3, 2)))
  ((batch, valid),) = batches_lib.fixed_batches(prompts, 4)
  assert batch.mask_BP.all() and valid.tolist() == [1, 1, 1, 0]
