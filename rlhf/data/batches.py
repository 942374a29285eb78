"""Rows -> endless streams of batches, each a function of (seed, step) alone.

A stream answers `stream[step]` for any step, so that resuming needs no state but the step, and
another number of processes reads the same global batches, each process the rows that its devices
hold (`share`).  An epoch is a permutation of the rows drawn from (seed, epoch); batches go on over
the border of epochs, so that after E epochs every row was seen E times.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator

import numpy as np

from rlhf import types
from rlhf.data.prepare import ComparisonRows

# Places in the global batch: those whose rows a process makes.
Share = slice | np.ndarray
WHOLE = slice(None)
Rows = types.LmBatch | types.PromptBatch | ComparisonRows


def num_rows(rows: Rows) -> int:
  """How many rows there are."""
  if isinstance(rows, ComparisonRows):
    return len(rows)
  return len(getattr(rows, dataclasses.fields(rows)[0].name))


def take_rows(rows: Rows, indices: np.ndarray):
  """The batch that the rows of `indices` make, as numpy arrays."""
  if isinstance(rows, ComparisonRows):
    return rows.take(indices)
  return _map_arrays(lambda array: array[indices], rows)


def _map_arrays(function: Callable[..., np.ndarray], *rows):
  """Applies a function to the arrays of one name; `jax.tree.map` without jax."""
  names = [field.name for field in dataclasses.fields(rows[0])]
  arrays = {name: function(*(getattr(row, name) for row in rows)) for name in names}
  return dataclasses.replace(rows[0], **arrays)


# ---- the order of rows ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def _permutation(num: int, seed: int, epoch: int) -> np.ndarray:
  # Seeded by both numbers: grain's own shuffle uses seed + epoch, so that two runs with seeds 0
  # and 1 would see the same epochs, one behind the other.
  return np.random.default_rng((seed, epoch)).permutation(num)


def _ordered_rows(num: int, seed: int, start: int, stop: int) -> np.ndarray:
  """The rows at positions start .. stop - 1 of the endless order of training."""
  position = np.arange(start, stop)
  epoch = position // num
  out = np.empty(len(position), np.int64)
  for e in np.unique(epoch):
    here = epoch == e
    out[here] = _permutation(num, seed, int(e))[position[here] % num]
  return out


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Indices:
  """A random-access source of grain: step -> the row numbers of that global batch, endless.

  With `num_other` rows of a second set, their numbers follow those of the first; after `step`
  batches it has given floor(step * batch_size * fraction) of them, spread evenly.
  """

  num: int
  num_other: int
  seed: int
  fraction: float
  batch_size: int

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, step: int) -> np.ndarray:
    start, stop = (int(s * self.batch_size * self.fraction) for s in (step, step + 1))
    first, last = step * self.batch_size - start, (step + 1) * self.batch_size - stop
    main = _ordered_rows(self.num, self.seed, first, last)
    if not self.num_other:
      return main
    # Another stream of random numbers, so that rows of two sets of one size are not paired.
    other = _ordered_rows(self.num_other, self.seed + 2**32, start, stop)
    return np.concatenate([main, self.num + other])


class Batches:
  """An endless, random-access stream of batches.

  Attributes:
    num_rows: of the (main) rows.
    batch_size: rows of the global batch.
  """

  def __init__(
    self,
    rows: Rows,
    *,
    batch_size: int,
    seed: int,
    share: Share = WHOLE,
    other_rows: types.LmBatch | None = None,
    fraction: float = 0.0,
  ):
    """Batches of shuffled rows.

    Args:
      rows: of training; with comparisons, `rows.pairs()` makes every untied pair an element.
      batch_size: rows of the global batch; with fewer rows in all, a batch holds some twice.
      seed: of the order.
      share: places in the global batch whose rows this process makes; see `sharding.local_rows`.
      other_rows: a second set of packed rows of the same length, for example the 10 % of
        pretraining text among demonstrations (InstructGPT E.8).
      fraction: of all ROWS that are `other_rows`, in [0, 1); exact over the run, and within one row
        in every batch, which has them at its end.  Where rows are packed, shares of tokens differ.

    Raises:
      ValueError: `batch_size` is below 1, lengths differ, or the fraction is out of range.
    """
    # Imported here: grain takes more than a second, and only training needs it.
    import grain

    if batch_size < 1:
      raise ValueError(f"batch_size is {batch_size}; use 1 or more")
    self.num_rows = num_rows(rows)
    self.batch_size = batch_size
    self._main_share = batch_size * (1 - fraction)
    if not 0 <= fraction < 1:
      raise ValueError(f"fraction {fraction} of other rows; it must be at least 0 and below 1")
    if other_rows is not None:
      assert isinstance(rows, types.LmBatch), "only packed rows are mixed"
      length, other_length = rows.tokens_BT.shape[1], other_rows.tokens_BT.shape[1]
      if length != other_length:
        raise ValueError(
          f"rows of {length} and of {other_length} tokens cannot share a batch; pack both to one "
          "length"
        )
    self._indices = _Indices(
      num=self.num_rows,
      num_other=0 if other_rows is None else num_rows(other_rows),
      seed=seed,
      fraction=fraction,
      batch_size=batch_size,
    )

    def gather(indices: np.ndarray):
      indices = indices[share]
      if other_rows is None:
        return take_rows(rows, indices)
      is_main = indices < self.num_rows
      first = take_rows(rows, indices[is_main])
      second = take_rows(other_rows, indices[~is_main] - self.num_rows)
      return _map_arrays(lambda *arrays: np.concatenate(arrays), first, second)

    self._dataset = grain.MapDataset.source(self._indices).map(gather)
    self._read_options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)

  def num_steps(self, num_epochs: float) -> int:
    """Batches until every (main) row was seen `num_epochs` times, rounded up."""
    return int(np.ceil(num_epochs * self.num_rows / self._main_share - 1e-9))

  def __getitem__(self, step: int):
    """This process's rows of the batch of a step, as numpy arrays."""
    return self._dataset[step]

  def iterate(self, start_step: int = 0) -> Iterator:
    """Batches from `start_step` on, made ahead of time in a thread."""
    return iter(self._dataset[start_step:].to_iter_dataset(self._read_options))


def fixed_batches(rows: Rows, batch_size: int) -> Iterator[tuple[Rows, np.ndarray]]:
  """All rows once, in order, for evaluation: nothing is dropped.

  Yields:
    (batch, valid_B): the last batch is filled with its last row again; valid_B is 1 on real rows
    and 0 on those, which also carry no loss mask and no valid completion.
  """
  total = num_rows(rows)
  for start in range(0, total, batch_size):
    position = np.arange(start, start + batch_size)
    valid_B = (position < total).astype(np.float32)
    batch = take_rows(rows, np.minimum(position, total - 1))
    if isinstance(batch, types.LmBatch):
      batch = dataclasses.replace(batch, loss_mask_BT=batch.loss_mask_BT * valid_B[:, None])
    if isinstance(batch, types.ComparisonBatch):
      batch = dataclasses.replace(batch, valid_BK=batch.valid_BK * valid_B[:, None])
    yield batch, valid_B
