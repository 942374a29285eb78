"""Low-rank adapters: train (alpha / rank) A B beside a frozen matrix.

    y = x W + (alpha / rank) (x A) B,      A [in, rank] ~ N(0, 1 / in),  B [rank, out] = 0

Source: Hu et al. 2021 (LoRA), section 4.1.  Adapters are leaves `lora_a` and `lora_b` beside the
`kernel` that they adapt.  PPO's moving average is that of A and of B, whose product is not quite
the average of the products.  What is trained and what is frozen are two trees; `combine` joins them
for a forward pass, where `layers.Dense` reads both.  Without adapters the frozen tree is empty, and
the same code trains everything.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from rlhf import checks
from rlhf.types import Params

# What can be adapted: name -> projections, by the parameter tree's names.
TARGETS = {"attention": ("qkv", "q", "kv", "attention/out"), "mlp": ("in", "gate", "mlp/out")}
LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """What is adapted.

  Attributes:
    rank: of the adapters; 0 trains every parameter.
    alpha: the adapters' product is multiplied by alpha / rank.
    targets: of `TARGETS`, separated by commas.
  """

  rank: int
  alpha: float
  targets: str

  def __post_init__(self):
    if self.rank < 0:
      raise ValueError(f"lora.rank {self.rank}; use 0 for none, or more")
    checks.above_zero("lora", self, "alpha")
    for name in self.targets.split(","):
      if name not in TARGETS:
        raise ValueError(
          f"lora.targets {self.targets!r} names {name!r}; separate some of "
          f"{', '.join(TARGETS)} by commas"
        )


NO_ADAPTERS = LoraConfig(rank=0, alpha=1.0, targets="attention")


def scale(cfg: LoraConfig) -> float:
  """alpha / rank, `ModelConfig.lora_scale`; 0 without adapters."""
  return cfg.alpha / cfg.rank if cfg.rank else 0.0


def split(cfg: LoraConfig, params: Params, key) -> tuple[Params | None, Params]:
  """(what is frozen, what is trained) of a network: new adapters, and its head where it has one.

  With rank 0 all of it is trained, and None frozen.
  """
  if not cfg.rank:
    return None, params
  trunk = {name: leaf for name, leaf in params.items() if name != "head"}
  adapters = init_adapters(cfg, trunk, key)
  return trunk, adapters | {name: params[name] for name in params if name == "head"}


def adapts(cfg: LoraConfig, path: tuple[str, ...]) -> bool:
  """Whether the projection at a path of the parameter tree gets an adapter."""
  ends = [tuple(end.split("/")) for name in cfg.targets.split(",") for end in TARGETS[name]]
  return path[0] in ("blocks", "tail") and any(path[-len(end) :] == end for end in ends)


def init_adapters(cfg: LoraConfig, params: Params, key) -> Params:
  """Adapters for the projections of a network, float32; their product is 0."""
  adapters: Params = {}
  for number, path in enumerate(sorted(_projections(params))):
    if not adapts(cfg, path):
      continue
    kernel = _get(params, path)["kernel"]
    stacked = kernel.shape[:1] if path[0] == "blocks" else ()
    in_shape, out_shape = _split_shape(path, kernel.shape[len(stacked) :])
    lora_a = jax.random.normal(jax.random.fold_in(key, number), (*stacked, *in_shape, cfg.rank))
    _put(
      adapters,
      path,
      {
        "lora_a": lora_a / math.sqrt(math.prod(in_shape)),
        "lora_b": jnp.zeros((*stacked, cfg.rank, *out_shape)),
      },
    )
  return adapters


def combine(frozen: Params | None, trained: Params) -> Params:
  """One tree of two; a leaf is in one of them.  Arrays are not touched."""
  if frozen is None:
    return trained
  joined = dict(frozen)
  for name, value in trained.items():
    if name in joined and not isinstance(value, dict):
      raise ValueError(f"parameter {name!r} is both frozen and trained")
    joined[name] = combine(joined[name], value) if name in joined else value
  return joined


def merged(cfg: LoraConfig, frozen: Params | None, trained: Params) -> Params:
  """What `split` took apart, as one network without adapters; itself where nothing is frozen."""
  if frozen is None:
    return trained
  return _merge_jit(combine(frozen, trained), scale(cfg))


def merge(params: Params, scale: float, *, stacked: bool = False) -> Params:
  """Multiplies adapters out into their kernels: W + scale A B.  A tree without any stays as it is.

  Args:
    stacked: the leaves lead with the axis of the layers; found by itself below `blocks`.
  """
  merged = {}
  for name, value in params.items():
    if isinstance(value, dict):
      merged[name] = merge(value, scale, stacked=stacked or name == "blocks")
    elif name not in LEAVES:
      merged[name] = value
  if "lora_a" in params:
    multiply = lambda a, b: jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
    product = (jax.vmap(multiply) if stacked else multiply)(params["lora_a"], params["lora_b"])
    merged["kernel"] = params["kernel"] + scale * product
  return merged


_merge_jit = jax.jit(merge, static_argnames=("scale", "stacked"))


def _split_shape(path: tuple[str, ...], shape: tuple[int, ...]):
  """(inputs, outputs) of a kernel's shape: attention's output contracts heads and head size."""
  num_in = 2 if path[-2:] == ("attention", "out") else 1
  return shape[:num_in], shape[num_in:]


def _projections(params: Params, path: tuple[str, ...] = ()):
  for name, value in params.items():
    if isinstance(value, dict):
      if "kernel" in value:
        yield (*path, name)
      yield from _projections(value, (*path, name))


def _get(tree: Params, path: tuple[str, ...]) -> Params:
  for name in path:
    tree = tree[name]
  return tree


def _put(tree: Params, path: tuple[str, ...], value: Params) -> None:
  for name in path[:-1]:
    tree = tree.setdefault(name, {})
  tree[path[-1]] = value
