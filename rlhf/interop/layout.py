"""How the tensors of a file hold one leaf of our parameter tree, to read slices and to write.

A layout is a pattern in the notation of einops, from the axes of a tensor in the file to the axes
of our leaf.  For example,

    Row("attention/out/kernel", {"out.weight": "width (heads head_size) -> heads head_size width"})

says that the file has a matrix [width, heads * head_size], which we keep as [heads, head_size,
width].  In parentheses, the last axis varies fastest.  Where a leaf stacks several tensors, its
axis `tensor` counts them: three matrices `(heads head_size) width -> width tensor heads head_size`
make our `qkv` [width, 3, heads, head_size].  `axis_sizes` lists the other axes.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.model.transformer import ModelConfig

# (tensor, slice of every axis) -> the values there, in any floating dtype.
Read = Callable[[str, tuple[slice, ...]], np.ndarray]
Axes = tuple[tuple[str, ...], ...]  # the named axes that make up each axis of an array


@dataclasses.dataclass(frozen=True)
class Row:
  """A leaf and the tensors that hold it.

  Attributes:
    leaf: path in our tree; within a layer, without `blocks/layer_i/`.
    tensors: name in the file -> layout; within a layer, without the layer's prefix.
    offset: added to the numbers of the file to get ours.
  """

  leaf: str
  tensors: Mapping[str, str]
  offset: float = 0.0

  @property
  def stack_axis(self) -> int | None:
    """The axis of the leaf that counts the tensors, if there is one."""
    leaf_axes = parse(next(iter(self.tensors.values())))[1]
    return leaf_axes.index(("tensor",)) if ("tensor",) in leaf_axes else None


def axis_sizes(cfg: ModelConfig, num_rows: int) -> dict[str, int]:
  """The size of every named axis; `num_rows` are the rows of the file's embedding."""
  assert cfg.head_size and cfg.num_kv_heads and cfg.mlp_width  # ModelConfig resolves them
  return dict(
    width=cfg.width,
    embed=cfg.width if cfg.embed_width is None else cfg.embed_width,
    mlp=cfg.mlp_width,
    heads=cfg.num_heads,
    kv_heads=cfg.num_kv_heads,
    head_size=cfg.head_size,
    part=2,  # the two dimensions of a head that are rotated together
    frequency=cfg.head_size // 2,  # one for each such pair
    qkv=3,  # query, key and value in one tensor
    vocab=num_rows,
    positions=cfg.context_length + cfg.position_offset,
    one=1,
  )


@functools.cache
def parse(layout: str) -> tuple[Axes, Axes]:
  """(axes of the file, axes of the leaf)."""
  file_axes, leaf_axes = (
    tuple(tuple(axis.strip("()").split()) for axis in re.findall(r"\([^)]*\)|\S+", side))
    for side in layout.split("->")
  )
  return file_axes, leaf_axes


def file_shapes(row: Row, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
  """The shape that each of the row's tensors must have."""
  return {
    tensor: tuple(math.prod(sizes[name] for name in names) for names in parse(layout)[0])
    for tensor, layout in row.tensors.items()
  }


def read_block(
  row: Row, sizes: Mapping[str, int], index: Sequence[slice], shape: Sequence[int], read: Read
) -> np.ndarray:
  """Reads the part of a leaf at `index`, float32; `shape` is the whole leaf's.

  Only the slices of the file that hold the part are read, except where it is not contiguous on an
  axis of the file (GPT-2's fused projections): then all of that axis.  Rows of the leaf beyond the
  file's vocabulary are 0.
  """
  bounds = [part.indices(size)[:2] for part, size in zip(index, shape, strict=True)]
  block = np.zeros([stop - start for start, stop in bounds], np.float32)
  tensors, parts = list(row.tensors.items()), [block]
  if row.stack_axis is not None:
    tensors = tensors[slice(*bounds.pop(row.stack_axis))]
    parts = list(np.moveaxis(block, row.stack_axis, 0))
  for (tensor, layout), part in zip(tensors, parts, strict=True):
    file_axes, leaf_axes = _axes_of_one(layout)
    wanted: dict[str, slice] = {}
    for names, (start, stop) in zip(leaf_axes, bounds, strict=True):
      if names == ("vocab",):
        start, stop = min(start, sizes["vocab"]), min(stop, sizes["vocab"])
      # Several names on an axis of ours are the dimensions of a head, which no mesh splits.
      wanted |= {n: slice(start, stop) if len(names) == 1 else slice(sizes[n]) for n in names}
    wanted = {name: slice(*where.indices(sizes[name])) for name, where in wanted.items()}
    if all(where.start < where.stop for where in wanted.values()):
      values = _regroup(_read_named(read, tensor, file_axes, sizes, wanted), file_axes, leaf_axes)
      part[tuple(slice(size) for size in values.shape)] = values
  if row.offset:
    block += np.float32(row.offset)
  return block


def _axes_of_one(layout: str) -> tuple[Axes, Axes]:
  """As `parse`, without the axis that counts tensors."""
  file_axes, leaf_axes = parse(layout)
  return file_axes, tuple(names for names in leaf_axes if names != ("tensor",))


def _read_named(
  read: Read, tensor: str, axes: Axes, sizes: Mapping[str, int], wanted: Mapping[str, slice]
) -> np.ndarray:
  """The wanted part of a tensor, with an axis for each name."""
  index, shape, cut = [], [], []
  for outer, *inner in axes:
    size = math.prod(sizes[name] for name in inner)
    start, stop = wanted[outer].start, wanted[outer].stop
    index.append(slice(start * size, stop * size))
    shape += [stop - start, *(sizes[name] for name in inner)]
    cut += [slice(None), *(wanted[name] for name in inner)]
  return read(tensor, tuple(index)).reshape(shape)[tuple(cut)]


def _regroup(values: np.ndarray, old: Axes, new: Axes) -> np.ndarray:
  """From an array with an axis for each name of `old` to one with the axes `new`."""
  names = [name for group in old for name in group]
  size = dict(zip(names, values.shape, strict=True))
  values = values.transpose([names.index(name) for group in new for name in group])
  return values.reshape([math.prod(size[name] for name in group) for group in new])


def write_tensors(row: Row, sizes: Mapping[str, int], leaf: np.ndarray) -> dict[str, np.ndarray]:
  """The tensors of a whole leaf: the inverse of `read_block`, without the rows beyond `vocab`."""
  parts = [leaf] if row.stack_axis is None else np.moveaxis(leaf, row.stack_axis, 0)
  written = {}
  for (tensor, layout), part in zip(row.tensors.items(), parts, strict=True):
    file_axes, leaf_axes = _axes_of_one(layout)
    part = part[tuple(slice(sizes["vocab"] if n == ("vocab",) else None) for n in leaf_axes)]
    part = part.reshape([sizes[name] for names in leaf_axes for name in names])
    part = _regroup(part, leaf_axes, file_axes)
    written[tensor] = np.ascontiguousarray(part - np.float32(row.offset) if row.offset else part)
  return written
