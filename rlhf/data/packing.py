"""Token sequences -> rows of a fixed length, with their masks, segments and positions.

Rows are `types.LmBatch`es of numpy arrays with one entry per row.  Everything here is a function
of its arguments alone: the number of processes never enters.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from rlhf import types
from rlhf.tokenization.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenSequence:
  """A tokenised demonstration.

  Attributes:
    ids: int32, prompt + completion + end-of-text.
    num_prompt: how many of the ids are the prompt's; 0 where the whole text is learned.
    num_head, num_tail: how many of those the prompt's format writes before and behind every prompt.
  """

  ids: np.ndarray
  num_prompt: int
  num_head: int = 0
  num_tail: int = 0


def tokenize_documents(
  texts: Iterable[str], tokenizer: Tokenizer, *, max_tokens: int | None = None
) -> list[np.ndarray]:
  """int32 ids of each text, begin-of-text before and end-of-text behind, up to `max_tokens`.

  The document that crosses the limit is cut there (without end-of-text).
  """
  documents, total, texts = [], 0, iter(texts)
  while chunk := list(itertools.islice(texts, 256)):  # so that a limit saves the work behind it
    for ids in tokenizer.encode_batch(chunk):
      document = np.asarray([*tokenizer.prefix_ids, *ids, tokenizer.eot_id], np.int32)
      if max_tokens is not None and total + len(document) >= max_tokens:
        documents.append(document[: max_tokens - total])
        return documents
      documents.append(document)
      total += len(document)
  return documents


def pack_text(
  documents: Sequence[np.ndarray],
  *,
  length: int,
  pad_id: int,
  packing: str = "cut",
  attend_across_documents: bool = True,
  reset_positions: bool = False,
) -> types.LmBatch:
  """Documents -> rows of `length`.

  The defaults are GPT-3's: sequences are packed "without special masking", documents being told
  apart by end-of-text alone (Brown et al. 2020, arXiv:2005.14165, appendix B).

  Args:
    documents: int32 ids, each with end-of-text at its end.
    length: tokens per row.
    pad_id: fills the ends of rows.
    packing: a key of `TEXT_PACKINGS`: "cut" concatenates the documents and cuts where rows end, so
      that only the last row has padding; "best_fit" keeps documents whole, as `pack_sequences`
      does, and cuts only those longer than a row.  Where rows are not much longer than documents,
      "cut" parts most answers from their questions.
    attend_across_documents: True gives a row one segment; False gives each document its own, and
      then nothing predicts a document's first token.
    reset_positions: positions count from the start of the document's part in the row, not from
      the start of the row.

  Returns:
    LmBatch of numpy arrays; loss weight 1 on every target.

  Raises:
    ValueError: there is no document, or an unknown packing.
  """
  if packing not in TEXT_PACKINGS:
    raise ValueError(f"packing {packing!r}; choose from {sorted(TEXT_PACKINGS)}")
  if not documents:
    raise ValueError("no document to pack; give at least one")
  size, row, column = TEXT_PACKINGS[packing](np.asarray([len(d) for d in documents]), length)
  return _lay_out(
    np.concatenate(documents),
    np.ones(size.sum(), np.float32),
    size,
    row,
    column,
    num_rows=int(row.max()) + 1,
    length=length,
    pad_id=pad_id,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )


def _cut_at_rows(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(size, row, column) of the pieces of documents that stand end to end."""
  flat = np.arange(sizes.sum())
  is_start = (flat % length) == 0
  is_start[(np.cumsum(sizes) - sizes)[sizes > 0]] = True
  start = np.flatnonzero(is_start)
  return np.diff(np.append(start, len(flat))), start // length, start % length


def _cut_if_longer(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(size, row, column) of documents that stay whole where a row can hold them."""
  index = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # within the document
  start = np.flatnonzero(index % length == 0)
  size = np.diff(np.append(start, len(index)))
  return size, *_best_fit(size, length)


def pack_sequences(
  sequences: Sequence[TokenSequence],
  *,
  length: int,
  pad_id: int,
  packing: str = "best_fit",
  prompt_loss_weight: float = 0.0,
  attend_across_documents: bool = False,
  reset_positions: bool = True,
) -> types.LmBatch:
  """Whole sequences -> rows; a sequence is never cut.

  Args:
    sequences: each at most `length` long.
    length: tokens per row.
    pad_id: fills the ends of rows.
    packing: a key of `PACKINGS`: "best_fit" (longest first, each into the fullest row that has
      room) or "one_per_row".
    prompt_loss_weight: loss weight of prompt tokens; completion and end-of-text have 1.
    attend_across_documents, reset_positions: as in `pack_text`.

  Returns:
    LmBatch of numpy arrays.

  Raises:
    ValueError: no sequence, one that is too long, or an unknown packing.
  """
  if packing not in PACKINGS:
    raise ValueError(f"packing {packing!r}; choose from {sorted(PACKINGS)}")
  if not sequences:
    raise ValueError("no sequence to pack; give at least one")
  sizes = np.asarray([len(s.ids) for s in sequences])
  if sizes.max() > length:
    raise ValueError(
      f"a sequence has {sizes.max()} tokens and a row {length}; drop or cut it before packing"
    )
  row, column = PACKINGS[packing](sizes, length)
  num_prompt = np.asarray([s.num_prompt for s in sequences])
  index = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  is_prompt = index < np.repeat(num_prompt, sizes)
  weight = np.where(is_prompt, np.float32(prompt_loss_weight), np.float32(1))
  return _lay_out(
    np.concatenate([s.ids for s in sequences]),
    weight,
    sizes,
    row,
    column,
    num_rows=int(row.max()) + 1,
    length=length,
    pad_id=pad_id,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )


def _lay_out(
  ids: np.ndarray,
  weight: np.ndarray,
  size: np.ndarray,
  row: np.ndarray,
  column: np.ndarray,
  *,
  num_rows: int,
  length: int,
  pad_id: int,
  attend_across_documents: bool,
  reset_positions: bool,
) -> types.LmBatch:
  """Puts pieces of text into rows.

  Args:
    ids, weight: of all tokens, piece after piece.
    size, row, column: of each piece: its number of tokens, its row, its first column.
  """
  index = np.arange(len(ids)) - np.repeat(np.cumsum(size) - size, size)  # within the piece
  row_of = np.repeat(row, size)
  column_of = np.repeat(column, size) + index
  tokens_BT = np.full((num_rows, length), pad_id, np.int32)
  loss_mask_BT = np.zeros((num_rows, length), np.float32)
  segment_BT = np.zeros((num_rows, length), np.int32)
  position_BT = np.zeros((num_rows, length), np.int32)
  if attend_across_documents:
    segment = np.ones(len(size), np.int32)
  else:
    segment = _number_within_row(row, column)
    weight = np.where(index == 0, np.float32(0), weight)  # nothing comes before a first token
  tokens_BT[row_of, column_of] = ids
  loss_mask_BT[row_of, column_of] = weight
  loss_mask_BT[:, 0] = 0
  segment_BT[row_of, column_of] = np.repeat(segment, size)
  position_BT[row_of, column_of] = index if reset_positions else column_of
  return types.LmBatch(
    tokens_BT=tokens_BT, loss_mask_BT=loss_mask_BT, segment_BT=segment_BT, position_BT=position_BT
  )


def _number_within_row(row: np.ndarray, column: np.ndarray) -> np.ndarray:
  """1, 2, 3, ... for the pieces of each row, from left to right."""
  order = np.lexsort((column, row))
  sorted_row = row[order]
  first = np.concatenate([[True], sorted_row[1:] != sorted_row[:-1]])
  begin = np.maximum.accumulate(np.where(first, np.arange(len(row)), 0))
  number = np.empty(len(row), np.int32)
  number[order] = np.arange(len(row)) - begin + 1
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


def _one_per_row(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
  del length
  return np.arange(len(sizes)), np.zeros(len(sizes), np.int64)


PACKINGS = {"best_fit": _best_fit, "one_per_row": _one_per_row}
TEXT_PACKINGS = {"cut": _cut_at_rows, "best_fit": _cut_if_longer}
