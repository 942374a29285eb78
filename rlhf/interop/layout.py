"""One leaf of our parameter tree <-> the tensors of a file that hold it, in either direction.

A layout is written like `(H e) D -> D s H e`: left the axes of each tensor in the file, right those
of the leaf.  Names in brackets share one axis, the last of them running fastest; `s` counts the
tensors of the row.  So the row

    Row("attention/qkv/kernel", ("q.weight", "k.weight", "v.weight"), "(H e) D -> D s H e")

says that `qkv/kernel` [D, 3, H, e] is three matrices [H * e, D], transposed and stacked.

Axes: D width, E embedding width, F feed-forward width, H query heads, K key and value heads, e head
size (= t * f with t = 2), c the three projections that a file fuses, V vocabulary, T rows of the
position table, o one.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.model.transformer import ModelConfig

# (tensor, slice of every axis) -> the values there, in any floating dtype.
Read = Callable[[str, tuple[slice, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """A leaf, the tensors that hold it, and how.

  Attributes:
    leaf: path in our tree, of a layer without `blocks/layer_i/`.
    tensors: names in the file, of a layer without what leads to it.
    layout: see the module; one for each tensor where the file keeps them differently.
    offset: is added to the file's numbers to get ours.
  """

  leaf: str
  tensors: tuple[str, ...]
  layout: str | tuple[str, ...]
  offset: float = 0.0

  @property
  def layouts(self) -> tuple[str, ...]:
    """One for each tensor."""
    return (self.layout,) * len(self.tensors) if isinstance(self.layout, str) else self.layout

  @property
  def is_stacked(self) -> bool:
    """Whether the leaf has an axis that counts the tensors."""
    return self.stack_axis is not None

  @property
  def stack_axis(self) -> int | None:
    """The leaf's axis that counts the tensors."""
    leaf_axes = parse(self.layouts[0])[1]
    return leaf_axes.index(("s",)) if ("s",) in leaf_axes else None


def axis_sizes(cfg: ModelConfig, num_rows: int) -> dict[str, int]:
  """The size of every named axis; `num_rows` is that of the file's vocabulary."""
  return dict(
    D=cfg.width,
    E=cfg.width if cfg.embed_width is None else cfg.embed_width,
    F=cfg.mlp_width,
    H=cfg.num_heads,
    K=cfg.num_kv_heads,
    e=cfg.head_size,
    t=2,
    f=cfg.head_size // 2,
    c=3,
    V=num_rows,
    T=cfg.context_length + cfg.position_offset,
    o=1,
  )


@functools.cache
def parse(layout: str) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
  """(axes of the file, axes of the leaf), each a tuple of the names that share the axis."""
  sides = []
  for side in layout.split("->"):
    parts = re.findall(r"\(([^)]*)\)|(\S+)", side)
    sides.append(tuple(tuple((group if group else name).split()) for group, name in parts))
  file_axes, leaf_axes = sides
  return file_axes, leaf_axes


def file_shapes(row: Row, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
  """The shape that each of the row's tensors must have."""
  return {
    tensor: tuple(_size(names, sizes) for names in parse(layout)[0])
    for tensor, layout in zip(row.tensors, row.layouts, strict=True)
  }


def _size(names: Sequence[str], sizes: Mapping[str, int]) -> int:
  return math.prod(sizes[name] for name in names)


def read_block(
  row: Row, sizes: Mapping[str, int], index: Sequence[slice], shape: Sequence[int], read: Read
) -> np.ndarray:
  """Part of a leaf, float32, from the slices of the file that hold it and no more.

  Rows of the leaf behind the file's vocabulary are 0.

  Args:
    row: the leaf's.
    sizes: of `axis_sizes`.
    index: the part, a slice for each axis of the leaf.
    shape: of the whole leaf.
    read: reads a slice of a tensor.
  """
  ranges = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
  block = np.zeros([stop - start for start, stop in ranges], np.float32)
  numbers, parts = range(len(row.tensors)), [block]
  if row.is_stacked:
    numbers = range(*ranges.pop(row.stack_axis))
    parts = np.moveaxis(block, row.stack_axis, 0)
  for number, part in zip(numbers, parts, strict=True):
    _fill(part, row.tensors[number], row.layouts[number], sizes, ranges, read)
  if row.offset:
    block += np.float32(row.offset)
  return block


def _fill(
  part: np.ndarray,
  tensor: str,
  layout: str,
  sizes: Mapping[str, int],
  ranges: Sequence[tuple[int, int]],
  read: Read,
) -> None:
  """Reads one tensor's share into `part`; what the file has not is left as it is."""
  file_axes, leaf_axes = parse(layout)
  leaf_axes = [names for names in leaf_axes if names != ("s",)]
  wanted: dict[str, tuple[int, int]] = {}
  for names, (start, stop) in zip(leaf_axes, ranges, strict=True):
    if names == ("V",):
      start, stop = min(start, sizes["V"]), min(stop, sizes["V"])
    # Several names on an axis of ours are a head's dimensions, which no mesh splits.
    wanted |= {name: (start, stop) if len(names) == 1 else (0, sizes[name]) for name in names}
  count = {name: stop - start for name, (start, stop) in wanted.items()}
  if 0 in count.values():
    return
  values = _read_runs(read, tensor, [_runs(names, sizes, wanted) for names in file_axes])
  flat = [name for names in file_axes for name in names]
  order = [flat.index(name) for names in leaf_axes for name in names]
  values = values.reshape([count[name] for name in flat]).transpose(order)
  filled = [_size(names, count) for names in leaf_axes]
  part[tuple(slice(size) for size in filled)] = values.reshape(filled)


def _runs(
  names: Sequence[str], sizes: Mapping[str, int], wanted: Mapping[str, tuple[int, int]]
) -> list[slice]:
  """The contiguous pieces of a file's axis that hold the wanted part of its names."""
  partial = [i for i, name in enumerate(names) if wanted[name] != (0, sizes[name])]
  split = partial[-1] if partial else 0
  inner = _size(names[split + 1 :], sizes)
  first, last = wanted[names[split]]
  found = []
  for position in itertools.product(*(range(*wanted[name]) for name in names[:split])):
    start = 0
    for number, name in zip(position, names[:split], strict=True):
      start = start * sizes[name] + number
    start *= sizes[names[split]]
    found.append(slice((start + first) * inner, (start + last) * inner))
  return found


def _read_runs(read: Read, tensor: str, runs: Sequence[Sequence[slice]]) -> np.ndarray:
  """The pieces of a tensor, joined."""

  def joined(chosen: tuple[slice, ...]) -> np.ndarray:
    axis = len(chosen)
    if axis == len(runs):
      return read(tensor, chosen)
    pieces = [joined((*chosen, run)) for run in runs[axis]]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis)

  return joined(())


def write_tensors(row: Row, sizes: Mapping[str, int], leaf: np.ndarray) -> dict[str, np.ndarray]:
  """The tensors of a whole leaf: the inverse of `read_block`, without the rows behind V."""
  parts = np.moveaxis(leaf, row.stack_axis, 0) if row.is_stacked else [leaf]
  written = {}
  for tensor, layout, part in zip(row.tensors, row.layouts, parts, strict=True):
    file_axes, leaf_axes = parse(layout)
    leaf_axes = [names for names in leaf_axes if names != ("s",)]
    part = part[tuple(slice(sizes["V"]) if names == ("V",) else slice(None) for names in leaf_axes)]
    flat = [name for names in leaf_axes for name in names]
    order = [flat.index(name) for names in file_axes for name in names]
    part = part.reshape([sizes[name] for name in flat]).transpose(order)
    part = part.reshape([_size(names, sizes) for names in file_axes])
    written[tensor] = np.ascontiguousarray(part - np.float32(row.offset) if row.offset else part)
  return written
