"""Rows of token ids in batches of few shapes, so that few programs are compiled."""

from collections.abc import Callable, Iterator, Sequence

_SHORTEST = 16  # rows are padded at least to this length

Progress = Callable[[int, int], None] | None  # called with (items done, items in total)


def batches(rows: Sequence, batch_size: int, *, length_of: Callable) -> Iterator[list]:
  """Yields the longest rows first, so that running out of memory fails at once."""
  ordered = sorted(rows, key=length_of, reverse=True)
  for start in range(0, len(ordered), batch_size):
    yield ordered[start : start + batch_size]


def num_rows(batch_size: int, total: int) -> int:
  """Rows of every batch: `batch_size`, or the next power of two if `total` is smaller."""
  return min(batch_size, power_of_two(total))


def power_of_two(number: int) -> int:
  """The smallest power of two that is at least `number`."""
  return 2 ** max(number - 1, 0).bit_length()


def row_length(length: int, longest: int) -> int:
  """The smallest of 16, 24, 32, 48, 64, 96, ... that holds `length`; at most `longest`."""
  size = max(power_of_two(length), _SHORTEST)
  if size > _SHORTEST and length <= size * 3 // 4:
    size = size * 3 // 4
  return min(size, longest)
