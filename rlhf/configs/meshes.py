"""Names of hardware, and the mesh, batch and kernels recommended for every size.

A topology is written `KIND:SHAPE`:

  cpu:8            simulated devices of one laptop
  v5e:4x4          a TPU slice: chips along each axis of its torus (v5e, v6e: two axes; v5p: three)
  v5p:8x8x16
  h100:16x8        nodes x GPUs of a node

No jax here: launchers check names and sizes on a login node.
"""

import dataclasses
import math
import re

# kind: (platform, axes of the shape, chips on a host, HBM of a device in bytes)
KINDS = {
  "cpu": ("cpu", 1, None, None),
  "v5e": ("tpu", 2, 4, 16 * 2**30),
  "v5p": ("tpu", 3, 4, 95 * 2**30),
  "v6e": ("tpu", 2, 4, 32 * 2**30),
  "h100": ("cuda", 2, 8, 80 * 10**9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
  """A slice of TPUs, nodes of GPUs, or simulated CPU devices.

  Attributes:
    kind: one of `KINDS`.
    shape: chips along each axis; nodes and GPUs of a node.
    platform: "tpu", "cuda" or "cpu".
    memory_bytes: of one device; None where the machine decides.
  """

  kind: str
  shape: tuple[int, ...]

  @property
  def platform(self) -> str:
    return KINDS[self.kind][0]

  @property
  def num_devices(self) -> int:
    return math.prod(self.shape)

  @property
  def num_hosts(self) -> int:
    """Hosts of the slice; a TPU slice of up to 8 chips of v5e or v6e is one host."""
    if self.kind == "h100":
      return self.shape[0]
    chips_per_host = KINDS[self.kind][2]
    if chips_per_host is None or (
      len(self.shape) == 2 and self.platform == "tpu" and self.num_devices <= 8
    ):
      return 1
    return max(self.num_devices // chips_per_host, 1)

  @property
  def memory_bytes(self) -> int | None:
    return KINDS[self.kind][3]

  @property
  def name(self) -> str:
    return f"{self.kind}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str) -> Topology:
  """`v5p:8x8x16` as a `Topology`.

  Raises:
    ValueError: an unknown kind, or a shape with the wrong number of axes.
  """
  kind, _, shape = text.partition(":")
  if kind not in KINDS:
    raise ValueError(
      f"topology {text!r} has no known kind; choose from {', '.join(KINDS)}, "
      "for example v5p:4x4x4 or h100:4x8"
    )
  num_axes = KINDS[kind][1]
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){%d}" % (num_axes - 1), shape):
    example = {1: "8", 2: "4x4", 3: "4x4x4"}[num_axes] if kind != "h100" else "4x8"
    raise ValueError(
      f"topology {text!r} needs {num_axes} numbers above 0 joined by x, for example "
      f"{kind}:{example}"
    )
  topology = Topology(kind=kind, shape=tuple(int(size) for size in shape.split("x")))
  if kind == "h100" and topology.shape[1] > 8:
    raise ValueError(f"topology {text!r} has {topology.shape[1]} GPUs in a node; 8 at most")
  return topology


def check_mesh(mesh, num_devices: int) -> dict[str, int]:
  """The axis sizes of a config's `mesh` group on a number of devices, with -1 resolved.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  fixed = mesh["fsdp"] * mesh["tensor"]
  data = num_devices // fixed if mesh["data"] == -1 else mesh["data"]
  if data < 1 or data * fixed != num_devices:
    raise ValueError(
      f"mesh data={mesh['data']} fsdp={mesh['fsdp']} tensor={mesh['tensor']} does not use "
      f"exactly the {num_devices} devices there are; choose sizes whose product is {num_devices}"
    )
  return {"data": data, "fsdp": mesh["fsdp"], "tensor": mesh["tensor"]}


def check_config(config, topology: Topology) -> None:
  """Whether a training or pipeline config can be laid out on a topology.

  Args:
    config: a mapping with the groups `mesh`, `model` and those of an algorithm; or of a pipeline,
      whose groups are such mappings.

  Raises:
    ValueError: the mesh does not use exactly the devices; a batch does not divide over data * fsdp;
      the heads do not divide over tensor.
  """
  if "mesh" not in config:
    for stage, group in config.items():
      if hasattr(group, "items") and "mesh" in group:
        try:
          check_config(group, topology)
        except ValueError as error:
          raise ValueError(f"stage {stage}: {error}") from None
    return
  try:
    axes = check_mesh(config["mesh"], topology.num_devices)
  except ValueError as error:
    raise ValueError(f"{topology.name}: {error}") from None
  num_shards = axes["data"] * axes["fsdp"]
  # The attention kernels of accelerators take whole rows; the reference pads what is missing.
  fused = topology.platform != "cpu" and config["compute"]["dtype"] != "float32"
  for group in ("sft", "reward", "ppo"):
    names = ("batch_size", "minibatch_size") + (
      ("microbatch_size", "ptx_microbatch_size") if fused else ()
    )
    for name in names:
      if group in config and name in config[group] and config[group][name] % num_shards:
        raise ValueError(
          f"{topology.name}: {group}.{name} {config[group][name]} does not divide "
          f"over data*fsdp = {num_shards} devices; use a multiple of {num_shards}"
        )
  check_heads(config["model"], axes["tensor"], f"{topology.name}: model.")


def check_heads(model, tensor: int, prefix: str) -> None:
  """Raises ValueError where query or key heads do not divide over `tensor`.

  A model without a shape (`:imported`) is checked when its source is read.
  """
  for name in ("num_heads", "num_kv_heads"):
    heads = model[name] if name in model else None
    if heads is not None and heads % tensor:
      raise ValueError(
        f"{prefix}{name} {heads} does not divide over mesh.tensor {tensor}; use a "
        f"divisor of {heads}"
      )


# ----------------------------------------------------------------------------- recommendations

# size: a slice and a set of nodes for PPO-ptx at the paper's batch, small ones of those on which it
# fits; docs/meshes_and_memory.md says which of them `rlhf check` has confirmed.
SMALLEST = {
  "125m": ("v5e:2x4", "h100:1x1"),
  "350m": ("v5e:4x8", "h100:1x2"),
  "760m": ("v5e:4x8", "h100:1x4"),
  "1.3b": ("v5p:2x2x2", "h100:1x8"),
  "2.7b": ("v5p:2x2x4", "h100:2x8"),
  "6.7b": ("v5p:2x2x4", "h100:2x8"),
  "13b": ("v5p:2x2x4", "h100:4x8"),
  "175b": ("v5p:4x4x8", "h100:16x8"),
}
# large size: (tensor on TPU, tensor on GPU), at least; up to 512 GPUs it stays inside a node of 8.
TENSOR = {"6.7b": (1, 2), "13b": (2, 4), "175b": (8, 8)}


def recommend(size: str, topology: Topology, max_rows: int) -> tuple[dict[str, dict], int]:
  """Layout for a size on a topology: fields of the groups `mesh` and `compute`, and the microbatch.

  Rows are split over `fsdp`; `tensor` grows where there are more devices than rows in a batch, and
  with it the residual stream is split along time.  Ours throughout.

  Args:
    max_rows: of an optimizer step; InstructGPT C.4 has 64 episodes in a minibatch.

  Raises:
    ValueError: the devices do not divide into rows and `tensor`.
  """
  num_devices = topology.num_devices
  large = size in TENSOR
  tensor = TENSOR[size][topology.platform == "cuda"] if large else 1
  tensor = max(tensor, -(-num_devices // max_rows))
  tensor = min(tensor, num_devices)
  rows = num_devices // tensor
  if num_devices % tensor or max_rows % rows:
    raise ValueError(
      f"topology {topology.name}: {num_devices} devices do not divide into shards of rows that "
      f"divide a batch of {max_rows} and a tensor axis of {tensor}; use a power of two"
    )
  layout: dict[str, dict] = {
    "mesh": dict(data=1, fsdp=rows, tensor=tensor),
    "compute": dict(shard_sequence=tensor > 1, decode_split="fsdp_tensor" if large else "tensor"),
  }
  return layout, rows if large else min(2 * rows, max_rows)


def lay_out(config, size: str, topology: str, *, max_rows: int, microbatches: tuple[str, ...]):
  """Puts the recommendation for a topology into a config, if `topology` names one.

  Args:
    microbatches: GROUP.FIELD names.

  Raises:
    ValueError: a size without a recommendation; an unknown topology, or one over which rows or
      heads do not divide.
  """
  if not topology:
    return
  if size not in SMALLEST:
    raise ValueError(f"size {size!r} has no recommended mesh; choose from {', '.join(SMALLEST)}")
  layout, microbatch = recommend(size, parse_topology(topology), max_rows)
  for group, fields in layout.items():
    config[group].update(fields)
  check_heads(config["model"], layout["mesh"]["tensor"], f"topology {topology}: model.")
  for name in microbatches:
    group, field = name.split(".")
    config[group][field] = microbatch
