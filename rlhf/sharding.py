"""The only mesh constructor, and one table of rules: parameter path -> PartitionSpec.

Mesh axes: `data` (replicas of everything), `fsdp` (parameters and optimizer state are split, the
batch too) and `tensor` (heads, feed-forward width and vocabulary are split).

There are two layouts for one set of weights.  Training gathers each layer's weights over `fsdp`
when it is their turn.  Decoding would gather all of them for every token, so it has rules of its
own: weights stay where they are and the few activations of one token travel.
"""

import contextlib
import dataclasses
import math
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf.configs import meshes
from rlhf.types import Params

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

# The first rule whose pattern matches the whole path wins. `blocks/...` leaves carry the scanned
# layer axis in front, which is never split.
RULES: tuple[tuple[str, P], ...] = (
  (r"(embed|output)/token", P("tensor", "fsdp")),
  (r"embed/position", P(None, "fsdp")),
  (r"embed/project/kernel", P(None, "fsdp")),
  (r"output/project/kernel", P("fsdp", None)),
  (r"blocks/.*/(qkv|kv)/kernel", P(None, "fsdp", None, "tensor", None)),
  (r"blocks/.*/(qkv|kv)/bias", P(None, None, "tensor", None)),
  (r"blocks/.*/q/kernel", P(None, "fsdp", "tensor", None)),
  (r"blocks/.*/q/bias", P(None, "tensor", None)),
  (r"blocks/.*/attention/out/kernel", P(None, "tensor", None, "fsdp")),
  (r"blocks/.*/mlp/(in|gate)/kernel", P(None, "fsdp", "tensor")),
  (r"blocks/.*/mlp/(in|gate)/bias", P(None, "tensor")),
  (r"blocks/.*/mlp/out/kernel", P(None, "tensor", "fsdp")),
  (r"blocks/.*/out/bias", P(None, None)),
  (r"blocks/.*norm/(scale|bias)", P(None, None)),
  (r"final_norm/(scale|bias)", P(None)),
  (r"head/kernel", P(None, None)),
  (r"head/bias", P(None)),
  # Adapters lie as the axes of their kernels do; the rank is whole.
  (r"blocks/.*/(qkv|kv|q|in|gate)/lora_a", P(None, "fsdp", None)),
  (r"blocks/.*/attention/out/lora_a", P(None, "tensor", None, None)),
  (r"blocks/.*/mlp/out/lora_a", P(None, "tensor", None)),
  (r"blocks/.*/(qkv|kv)/lora_b", P(None, None, None, "tensor", None)),
  (r"blocks/.*/q/lora_b", P(None, None, "tensor", None)),
  (r"blocks/.*/mlp/(in|gate)/lora_b", P(None, None, "tensor")),
  (r"blocks/.*/out/lora_b", P(None, None, "fsdp")),
)

# Layers that fill no whole pattern have the rules of `blocks`, without the scanned axis.
_TAIL, _BLOCKS = "tail/", "blocks/"
# Outermost names of a network's parameters.
NETWORK = ("embed", "blocks", "tail", "final_norm", "output", "head")
# Over which axes decoding splits the weights: "tensor" keeps them whole on each `fsdp` device,
# which is faster where that fits; "fsdp_tensor" splits them over both.
DECODE_SPLITS = ("tensor", "fsdp_tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """How activations lie on the mesh: the axes of their rows, of time and of the residual width."""

  rows: tuple[str, ...] | str
  time: str | None = None
  width: str | None = None

  @property
  def residual_BTD(self) -> P:
    """Between blocks."""
    return P(self.rows, self.time, self.width)

  @property
  def heads_BTHd(self) -> P:
    """Queries, keys, values and what attention returns: rows on all their devices."""
    return P(BATCH_AXES, None, "tensor", None)

  @property
  def cache_BKSd(self) -> P:
    """Keys and values of the cache."""
    return P(BATCH_AXES, "tensor", None, None)

  @property
  def hidden_BTF(self) -> P:
    """Inside the feed-forward layer, and logits."""
    return P(self.rows, None, "tensor")


def train_layout(shard_sequence: bool) -> Layout:
  """Rows over data and fsdp; with `shard_sequence` the residual stream is split along time over
  `tensor` too, so that what a block saves for its backward pass is (Korthikanti et al. 2022)."""
  return Layout(rows=BATCH_AXES, time="tensor" if shard_sequence else None)


def decode_layout(decode_split: str) -> Layout:
  """Where weights are split over `fsdp`, the residual width lies over it instead of the rows."""
  if decode_split == "tensor":
    return Layout(rows=BATCH_AXES)
  return Layout(rows="data", width="fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Axis sizes; their product is the number of devices used.

  Attributes:
    data: replicas of the parameters; -1 takes the devices that are left.
    fsdp: shards of every parameter and of the batch.
    tensor: shards of heads, feed-forward units and the vocabulary.
  """

  data: int
  fsdp: int
  tensor: int


def make_mesh(cfg: MeshConfig, devices=None) -> Mesh:
  """A mesh with `Auto` axes (`jax.make_mesh` would make Explicit ones, and constraints then raise).

  Raises:
    ValueError: the axis sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=cfg.data, fsdp=cfg.fsdp, tensor=cfg.tensor)
  grid = np.asarray(devices).reshape([*meshes.check_mesh(sizes, len(devices)).values()])
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def path_name(path) -> str:
  """`blocks/layer_0/mlp/in/kernel` from a tree path."""
  return "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)


def param_spec(name: str) -> P:
  """The rule of one parameter.

  Raises:
    ValueError: no rule matches; a parameter is never replicated silently.
  """
  if name.startswith(_TAIL):
    return P(*param_spec(_BLOCKS + name.removeprefix(_TAIL))[1:])
  for pattern, spec in RULES:
    if re.fullmatch(pattern, name):
      return spec
  raise ValueError(f"parameter {name!r} has no sharding rule; add one to sharding.RULES")


def decode_spec(name: str, decode_split: str, *, stacked: bool) -> P:
  """The rule of one parameter of `model.decoding_params`; raises as `param_spec`.

  Args:
    decode_split: of `DECODE_SPLITS`.  Where it names `fsdp`, that axis splits the contraction.
    stacked: the leaves of `blocks` lead with the axis of the layers; else each is of one layer.
  """
  spec = param_spec(name)[1:] if name.startswith(_BLOCKS) and not stacked else param_spec(name)
  return P(*(None if axis == "fsdp" and decode_split == "tensor" else axis for axis in spec))


def check_divides(mesh: Mesh, params: Params) -> None:
  """Raises ValueError at the first parameter that does not divide over the axes of its rule."""
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = path_name(path)
    for size, axis in zip(leaf.shape, param_spec(name)):
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(
          f"{name} {list(leaf.shape)}: {size} does not divide over mesh.{axis} "
          f"{mesh.shape[axis]}; use a divisor of {size}"
        )


def param_shardings(mesh: Mesh, params: Params) -> Params:
  """A NamedSharding per leaf of one network."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: NamedSharding(mesh, param_spec(path_name(path))), params
  )


def state_shardings(mesh: Mesh, state) -> Params:
  """Shardings of a whole train state: a leaf follows the parameter whose path its own ends in.

  Optimizer moments repeat the parameter tree, EMA weights too; counters and scalars replicate
  because they have no axis to split.
  """

  def sharding_of(path, leaf):
    if leaf.ndim == 0:
      return NamedSharding(mesh, P())
    names = path_name(path).split("/")
    starts = [i for i, name in enumerate(names) if name in NETWORK]
    if not starts:
      raise ValueError(f"state leaf {path_name(path)!r} follows no parameter; it has no sharding")
    return NamedSharding(mesh, param_spec("/".join(names[starts[0] :])))

  return jax.tree_util.tree_map_with_path(sharding_of, state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `data` and `fsdp`; every other axis whole."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def check_rows(mesh: Mesh, num_rows: int, name: str) -> None:
  """Raises ValueError unless the rows of `name` divide over data * fsdp."""
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
  if num_rows % num_shards:
    raise ValueError(
      f"{name} of {num_rows} rows does not divide over data*fsdp = "
      f"{num_shards} devices; use a multiple of {num_shards}"
    )


def local_rows(mesh: Mesh, num_rows: int, devices=None) -> slice:
  """The rows of a global batch that this process's devices hold, as one range.

  Where the mesh puts rows of other processes between them, the range has those too: what a process
  makes is then more than it keeps.  With an axis that is not of the batch, processes share rows.

  Args:
    num_rows: of the global batch; it divides over data * fsdp.
    devices: whose rows; by default those of this process.
  """
  check_rows(mesh, num_rows, "batch")
  devices = mesh.local_devices if devices is None else devices
  places = batch_sharding(mesh).devices_indices_map((num_rows,))
  bounds = [places[device][0].indices(num_rows) for device in devices]
  return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def put_batch(mesh: Mesh, batch, num_rows: int | None = None, *, axis: int = 0):
  """Places host arrays with rows split over the mesh.

  Args:
    batch: this process's `local_rows` of the global batch; all of it where `num_rows` is None.
    num_rows: of the global batch.
    axis: of the rows.

  Raises:
    ValueError: the number of rows does not divide over data * fsdp.
  """
  layout = NamedSharding(mesh, P(*(None,) * axis, BATCH_AXES))
  first = 0 if num_rows is None else local_rows(mesh, num_rows).start

  def put(x):
    total = x.shape[axis] if num_rows is None else num_rows
    check_rows(mesh, total, "batch")

    def part(index):
      start, stop, _ = index[axis].indices(total)
      return x[(*(slice(None),) * axis, slice(start - first, stop - first))]

    return jax.make_array_from_callback(
      (*x.shape[:axis], total, *x.shape[axis + 1 :]), layout, part
    )

  return jax.tree.map(put, batch)


def mesh_of(params: Params) -> Mesh | None:
  """The mesh on which `params` lie, if they lie on one."""
  lies = getattr(jax.tree.leaves(params)[0], "sharding", None)
  mesh = lies.mesh if isinstance(lies, NamedSharding) else None
  return mesh if isinstance(mesh, Mesh) else None


@contextlib.contextmanager
def on_mesh_of(params: Params):
  """Sets the mesh on which `params` lie, for programs that evaluation runs outside a training loop.

  Yields:
    a function that splits the rows of a host's whole batch over that mesh; a batch whose rows do
    not divide stays as it is.
  """
  mesh = mesh_of(params)
  if mesh is None or mesh.size == 1:
    yield lambda batch: batch
    return
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]

  def place(x):
    return x if x.shape[0] % num_shards else put_batch(mesh, np.asarray(x))

  with jax.set_mesh(mesh):
    yield lambda batch: jax.tree.map(place, batch)


def constrain(x, *axes):
  """Pins an activation's layout when a mesh is set (`jax.set_mesh`); elsewhere it is `x`."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, P(*axes))


def constrain_decoding(params: Params, decode_split: str, *, stacked: bool) -> Params:
  """Lays the weights of `model.decoding_params` out as `decode_spec` says, where a mesh is set."""

  def lay_out(path, leaf):
    return constrain(leaf, *decode_spec(path_name(path), decode_split, stacked=stacked))

  return jax.tree_util.tree_map_with_path(lay_out, params)


def num_row_groups() -> int:
  """Over how many groups of devices the mesh in use splits rows; 1 without a mesh."""
  sizes = jax.sharding.get_abstract_mesh().shape
  return math.prod(sizes.get(axis, 1) for axis in BATCH_AXES)


def split_microbatches(tree, num_microbatches: int):
  """[B, ...] -> [M, B/M, ...], row r going to microbatch r mod M, so that no row changes device."""

  def split(x):
    rows = x.shape[0] // num_microbatches
    if rows * num_microbatches != x.shape[0]:
      raise ValueError(f"{x.shape[0]} rows do not divide into {num_microbatches} microbatches")
    return x.reshape(rows, num_microbatches, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(split, tree)


def merge_microbatches(tree):
  """The inverse of `split_microbatches`."""
  return jax.tree.map(
    lambda x: x.swapaxes(0, 1).reshape(x.shape[0] * x.shape[1], *x.shape[2:]), tree
  )
