"""Token sequences -> rows of a fixed length, with their masks, segments and positions.

Rows are `types.LmBatch`es of numpy arrays with one entry per row.  Everything here is a function
of its arguments alone: the number of processes never enters.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rlhf import types
from rlhf.data import cache, records
from rlhf.tokenization.tokenizer import Tokenizer

_CHUNK_TOKENS = 2**20  # laid out at once


def tokenize_documents(
  texts: Iterable[str], tokenizer: Tokenizer, *, max_tokens: int | None = None
) -> Iterator[np.ndarray]:
  """int32 ids of each text, begin-of-text before and end-of-text behind, up to `max_tokens`.

  The document that crosses the limit is cut there (without end-of-text).
  """
  total = 0
  for chunk in records.chunks(texts):
    for ids in tokenizer.encode_batch(chunk):
      document = np.asarray([*tokenizer.prefix_ids, *ids, tokenizer.eot_id], np.int32)
      if max_tokens is not None and total + len(document) >= max_tokens:
        yield document[: max_tokens - total]
        return
      yield document
      total += len(document)


def pack(
  ids: np.ndarray,
  sizes: np.ndarray,
  *,
  num_prompt: np.ndarray | None = None,
  length: int,
  pad_id: int,
  packing: str,
  prompt_loss_weight: float = 0.0,
  attend_across_documents: bool,
  reset_positions: bool,
  writer: cache.ArrayWriter | None = None,
) -> types.LmBatch:
  """Documents or demonstrations -> rows of `length`.

  Args:
    ids: int32, all sequences end to end, each with end-of-text at its end.
    sizes: tokens of each sequence.
    num_prompt: how many of them are the prompt's; sequences are then whole, of at most `length`.
    length: tokens per row.
    pad_id: fills the ends of rows.
    packing: a key of `TEXT_PACKINGS`, or of `PACKINGS` with `num_prompt`.
    prompt_loss_weight: loss weight of prompt tokens; all others have 1.
    attend_across_documents: True gives a row one segment; False gives each document its own, and
      then nothing predicts a document's first token.
    reset_positions: positions count from the start of the document's part in the row, not from
      the start of the row.
    writer: makes the arrays; None makes them in memory.

  Returns:
    LmBatch of numpy arrays with one entry per row.

  Raises:
    ValueError: there is no sequence, one is too long, or an unknown packing.
  """
  packings = TEXT_PACKINGS if num_prompt is None else PACKINGS
  if packing not in packings:
    raise ValueError(f"packing {packing!r}; choose from {sorted(packings)}")
  if not len(sizes):
    raise ValueError("no document to pack; give at least one")
  if num_prompt is not None and sizes.max() > length:
    raise ValueError(
      f"a sequence has {sizes.max()} tokens and a row {length}; drop or cut it before packing"
    )
  size, row, column = packings[packing](sizes, length)
  segment = np.ones(len(size), np.int32)
  if not attend_across_documents:
    segment = _number_within_row(row, column)
  num_prompt = np.zeros(len(size), np.int64) if num_prompt is None else num_prompt
  writer = cache.ArrayWriter() if writer is None else writer
  shape = (int(row.max()) + 1, length)
  tokens_BT: Any = writer.full("tokens_BT", shape, pad_id, np.int32)
  loss_mask_BT: Any = writer.full("loss_mask_BT", shape, 0, np.float32)
  segment_BT: Any = writer.full("segment_BT", shape, 0, np.int32)
  position_BT: Any = writer.full("position_BT", shape, 0, np.int32)
  end = np.cumsum(size)
  cuts = np.searchsorted(end, np.arange(_CHUNK_TOKENS, end[-1], _CHUNK_TOKENS))
  for first, last in itertools.pairwise(np.unique([0, *cuts, len(size)])):
    here = slice(first, last)  # of the pieces
    repeat = functools.partial(np.repeat, repeats=size[here])
    start = end[first] - size[first]
    index = np.arange(start, end[last - 1]) - repeat(end[here] - size[here])  # within the piece
    rows, columns = repeat(row[here]), repeat(column[here]) + index
    weight = np.where(index < repeat(num_prompt[here]), np.float32(prompt_loss_weight), 1)
    if not attend_across_documents:
      weight[index == 0] = 0  # nothing comes before a first token
    tokens_BT[rows, columns] = ids[start : end[last - 1]]
    loss_mask_BT[rows, columns] = weight
    segment_BT[rows, columns] = repeat(segment[here])
    position_BT[rows, columns] = index if reset_positions else columns
  loss_mask_BT[:, 0] = 0
  return types.LmBatch(
    tokens_BT=tokens_BT, loss_mask_BT=loss_mask_BT, segment_BT=segment_BT, position_BT=position_BT
  )


# ---- packings: (sizes, length) -> (size, row, column) of the pieces, in the order of the text ----

Pieces = tuple[np.ndarray, np.ndarray, np.ndarray]


def _cut_at_rows(sizes: np.ndarray, length: int) -> Pieces:
  """Documents end to end, cut where rows end."""
  total = sizes.sum()
  document_start = (np.cumsum(sizes) - sizes)[sizes > 0]
  start = np.union1d(document_start, np.arange(0, total, length))
  return np.diff(np.append(start, total)), start // length, start % length


def _cut_if_longer(sizes: np.ndarray, length: int) -> Pieces:
  """Documents stay whole where a row can hold them."""
  num_pieces = -(-sizes // length)
  number = np.arange(num_pieces.sum()) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
  size = np.minimum(np.repeat(sizes, num_pieces) - number * length, length)
  return size, *_best_fit(size, length)


def _one_per_row(sizes: np.ndarray, _length: int) -> Pieces:
  return sizes, np.arange(len(sizes)), np.zeros(len(sizes), np.int64)


def _number_within_row(row: np.ndarray, column: np.ndarray) -> np.ndarray:
  """1, 2, 3, ... for the pieces of each row, from left to right."""
  order = np.lexsort((column, row))
  sorted_row = row[order]
  number = np.empty(len(row), np.int32)
  number[order] = np.arange(len(row)) - np.searchsorted(sorted_row, sorted_row) + 1
  return number


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  """(row, column) of each sequence: best fit, longest first, equal lengths in their order."""
  row, column = np.empty(len(sizes), np.int64), np.empty(len(sizes), np.int64)
  rows_with_room: list[list[int]] = [[] for _ in range(length + 1)]  # by tokens still free
  occupied = 0  # bit r is set where rows_with_room[r] is not empty: the search is one shift
  num_rows = 0
  for i in np.argsort(-sizes, kind="stable"):
    size = int(sizes[i])
    fitting = occupied >> size
    if fitting:
      room = size + (fitting & -fitting).bit_length() - 1
      target = rows_with_room[room].pop()
      if not rows_with_room[room]:
        occupied &= ~(1 << room)
    else:
      room, target = length, num_rows
      num_rows += 1
    row[i], column[i] = target, length - room
    if room > size:
      rows_with_room[room - size].append(target)
      occupied |= 1 << (room - size)
  return row, column


# "cut" concatenates the documents and cuts where rows end, so that only the last row has padding
# (Brown et al. 2020, arXiv:2005.14165, appendix B).  "best_fit" puts the longest first,
# each into the fullest row that has room, and cuts only documents longer than a row: where rows are
# not much longer than documents, "cut" parts most answers from their questions.
TEXT_PACKINGS = {"cut": _cut_at_rows, "best_fit": _cut_if_longer}
PACKINGS = {"best_fit": _cut_if_longer, "one_per_row": _one_per_row}
