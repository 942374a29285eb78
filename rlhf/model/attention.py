"""Causal attention, dense or locally banded: one function, three kernels.

  reference   plain `jax.numpy`, for every shape, mask and dtype: what the others are tested against
  splash      the Pallas kernel of TPUs (`jax.experimental.pallas.ops.tpu.splash_attention`)
  cudnn       the fused kernel of NVIDIA GPUs (`jax.nn.dot_product_attention`)

The fused kernels never keep the [T, S] weights.  `refusal` says what each of them does not do;
the reference does that instead.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from rlhf import sharding

KERNELS = ("reference", "splash", "cudnn")
# What "auto" means on each platform.
DEFAULTS = {"tpu": "splash", "gpu": "cudnn", "cuda": "cudnn", "cpu": "reference"}
_LANES = 128  # splash works on blocks of this many tokens


def choose(name: str, platform: str) -> str:
  """The kernel of a config's `attention` field on a platform; "auto" takes the platform's own.

  Raises:
    ValueError: an unknown name.
  """
  if name not in ("auto", *KERNELS):
    raise ValueError(f"attention {name!r}; choose from auto, {', '.join(KERNELS)}")
  if name != "auto":
    return name
  return DEFAULTS[platform] if platform in DEFAULTS else "reference"


def refusal(
  kernel: str, *, dtype, num_queries: int, num_keys: int, head_size: int, has_segments: bool
) -> str | None:
  """Why `kernel` cannot do this call, in a few words; None where it can."""
  if kernel == "reference":
    return None
  if jnp.dtype(dtype) == jnp.float32:
    return "float32"
  if num_queries != num_keys:
    return "one token against a cache"
  if kernel == "splash" and num_queries % _LANES:
    return f"{num_queries} tokens, not a multiple of {_LANES}"
  if kernel == "cudnn" and (head_size % 8 or head_size > 128):
    return f"heads of {head_size}, not a multiple of 8 up to 128"
  if kernel == "cudnn" and has_segments:
    return "segments"
  return None


def describe(kernel: str, cfg, num_queries: int, num_keys: int, *, has_segments: bool) -> str:
  """The kernel that attends in a network of shape `cfg`, and why where it is not `kernel`."""
  why = refusal(
    kernel,
    dtype=cfg.compute.dtype,
    num_queries=num_queries,
    num_keys=num_keys,
    head_size=cfg.head_size,
    has_segments=has_segments,
  )
  return kernel if why is None else f"reference ({why})"


def attention(
  kernel: str,
  query_BTHd,
  key_BSHd,
  value_BSHd,
  *,
  key_mask_BS,
  band_width: int | None,
  scale: float | None = None,
  query_segment_BT=None,
  key_segment_BS=None,
  padding: str = "left",
):
  """softmax(scale * q k^T) v of rows with themselves, over what each query sees (`attention_mask`).

  Args:
    kernel: "auto" or one of `KERNELS`; where it refuses the call, the reference does it.
    key_BSHd, value_BSHd: may have fewer heads than the queries: consecutive queries share one.
    scale: None for 1 / sqrt(head_size).
    padding: where rows may be padded, "left" or "right"; cuDNN's kernel needs to know.

  Returns:
    [B, T, H, head_size]; finite on queries that see no key, where nothing reads it.
  """
  kernel = choose(kernel, jax.default_backend())
  if not _divides(key_BSHd):
    kernel = "reference"
  scale = query_BTHd.shape[-1] ** -0.5 if scale is None else scale
  num_queries, num_keys = query_BTHd.shape[1], key_BSHd.shape[1]
  refused = refusal(
    kernel,
    dtype=query_BTHd.dtype,
    num_queries=num_queries,
    num_keys=num_keys,
    head_size=query_BTHd.shape[-1],
    has_segments=query_segment_BT is not None,
  )
  if kernel == "reference" or refused is not None:
    slot_1T = jnp.arange(num_keys)[None]
    seen_BTS = attention_mask(
      slot_1T,
      slot_1T,
      key_mask_BS,
      band_width=band_width,
      query_segment_BT=query_segment_BT,
      key_segment_BS=key_segment_BS,
    )
    to_heads = lambda x_BSHd: x_BSHd.swapaxes(1, 2)
    return attend(query_BTHd, to_heads(key_BSHd), to_heads(value_BSHd), seen_BTS, scale)
  if kernel == "cudnn":
    run = functools.partial(cudnn, band_width=band_width, scale=scale)
    if padding == "left":
      return _right_padded(run, query_BTHd, key_BSHd, value_BSHd, key_mask_BS)
    return run(query_BTHd, key_BSHd, value_BSHd)
  # Padding is a segment of its own: no real query sees it, on whichever side it stands.
  segment_BT = key_mask_BS.astype(jnp.int32)
  if query_segment_BT is not None:
    segment_BT = jnp.where(key_mask_BS > 0, query_segment_BT, 0).astype(jnp.int32)
  return splash(query_BTHd, key_BSHd, value_BSHd, segment_BT, band_width=band_width, scale=scale)


def _divides(key_BSHd) -> bool:
  """Whether rows and heads divide over the mesh: a fused kernel takes whole ones on each device."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return True
  num_rows, _, num_heads, _ = key_BSHd.shape
  return not (
    num_rows % (mesh.shape["data"] * mesh.shape["fsdp"]) or num_heads % mesh.shape["tensor"]
  )


def attention_mask(
  query_place_BT,
  key_place_BS,
  key_mask_BS,
  *,
  band_width: int | None,
  query_segment_BT=None,
  key_segment_BS=None,
):
  """Which keys each query may see, as bool [B, T, S].

  The key at place k is seen from place q when it is real, k <= q, both belong to the same segment
  (where segments are given), and, in a banded layer, q - k < band_width.  Places are slots of the
  row or positions among its real tokens: these are contiguous, so padding on either side changes no
  distance.  Source of the band: Child et al. 2019 ("local" attention of the Sparse Transformer), to
  which GPT-3 section 2.1 refers.

  Args:
    query_place_BT, key_place_BS: int32; one row serves all.
  """
  distance_BTS = query_place_BT[:, :, None] - key_place_BS[:, None, :]
  near_BTS = distance_BTS >= 0
  if band_width is not None:
    near_BTS &= distance_BTS < band_width
  seen_BTS = near_BTS & (key_mask_BS[:, None, :] > 0)
  if query_segment_BT is not None:
    seen_BTS &= query_segment_BT[:, :, None] == key_segment_BS[:, None, :]
  return seen_BTS


def attend(query_BTHd, key_BKSd, value_BKSd, seen_BTS, scale: float):
  """The reference: softmax(scale * q k^T) v over the keys that are seen.

  Keys and values have their heads first, as the cache keeps them: what a head reads is contiguous.
  Softmax runs in float32: bfloat16 loses its tail.  A query that sees no key (padding) returns a
  finite value that nothing reads.
  """
  shape = query_BTHd.shape
  num_groups = key_BKSd.shape[1]
  # G query heads share each of the K key heads; with as many of both, G is 1.
  query_BTKGd = (query_BTHd * scale).reshape(*shape[:2], num_groups, -1, shape[-1])
  logits_BKGTS = jnp.einsum(
    "BTKGd,BKSd->BKGTS", query_BTKGd, key_BKSd, preferred_element_type=jnp.float32
  )
  logits_BKGTS = jnp.where(seen_BTS[:, None, None], logits_BKGTS, -1e30)
  weight_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1).astype(value_BKSd.dtype)
  return jnp.einsum("BKGTS,BKSd->BTKGd", weight_BKGTS, value_BKSd).reshape(shape)


def cudnn(query_BTHd, key_BSHd, value_BSHd, *, band_width: int | None, scale: float):
  """cuDNN's kernel.  Rows are right-padded: causality alone keeps real queries from the padding."""
  window = None if band_width is None else (band_width - 1, 0)
  return jax.nn.dot_product_attention(
    query_BTHd,
    key_BSHd,
    value_BSHd,
    is_causal=True,
    local_window_size=window,
    scale=scale,
    implementation="cudnn",
  )


def _right_padded(run, query_BTHd, key_BTHd, value_BTHd, mask_BT):
  """`run` on rows whose real tokens are moved to the front, and its result moved back.

  Real tokens are contiguous, so causality and bands are the same.
  """
  length = mask_BT.shape[1]
  padding_B1 = jnp.argmax(mask_BT > 0, axis=1)[:, None]
  slot_T = jnp.arange(length)[None, :]
  front_BT, back_BT = (slot_T + padding_B1) % length, (slot_T - padding_B1) % length
  move = lambda x_BTHd, slot_BT: jnp.take_along_axis(x_BTHd, slot_BT[..., None, None], axis=1)
  parts = (move(x, front_BT) for x in (query_BTHd, key_BTHd, value_BTHd))
  return move(run(*parts), back_BT)


def splash(
  query_BTHd,
  key_BSHd,
  value_BSHd,
  segment_BT,
  *,
  band_width: int | None,
  scale: float,
  interpret: bool = False,
):
  """The Pallas kernel of TPUs; rows and heads go to the devices that hold them.

  Args:
    segment_BT: int32; a query sees the keys of its own segment only.
    interpret: run the kernel's program on any platform, slowly: for tests.
  """
  to_heads = lambda x_BTHd: x_BTHd.swapaxes(1, 2)
  run = functools.partial(_splash_rows, band_width=band_width, interpret=interpret)
  heads = P(sharding.BATCH_AXES, "tensor")
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:
    run = jax.shard_map(
      run, in_specs=(heads, heads, heads, P(sharding.BATCH_AXES)), out_specs=heads, check_vma=False
    )
  return run(
    to_heads(query_BTHd) * scale, to_heads(key_BSHd), to_heads(value_BSHd), segment_BT
  ).swapaxes(1, 2)


def _splash_rows(query_BHTd, key_BKTd, value_BKTd, segment_BT, *, band_width, interpret):
  num_rows, num_heads, length, size = query_BHTd.shape
  num_groups = key_BKTd.shape[1]
  make = (
    splash_attention.make_splash_mha
    if num_groups == num_heads
    else splash_attention.make_splash_mqa
  )
  kernel = _splash_kernel(
    make,
    num_heads // num_groups if num_groups != num_heads else num_heads,
    length,
    band_width,
    interpret,
  )
  one_row = lambda q, k, v, s: kernel(q, k, v, splash_attention.SegmentIds(q=s, kv=s))
  if num_groups == num_heads:
    return jax.vmap(one_row)(query_BHTd, key_BKTd, value_BKTd, segment_BT)
  query_BKGTd = query_BHTd.reshape(num_rows, num_groups, -1, length, size)
  mixed_BKGTd = jax.vmap(jax.vmap(one_row, in_axes=(0, 0, 0, None)))(
    query_BKGTd, key_BKTd, value_BKTd, segment_BT
  )
  return mixed_BKGTd.reshape(query_BHTd.shape)


def _splash_kernel(make, num_heads: int, length: int, band_width: int | None, interpret: bool):
  """The kernel for one mask; blocks of up to 512 tokens, forward and backward."""
  shape = (length, length)
  mask = (
    splash_attention.CausalMask(shape)
    if band_width is None
    else splash_attention.LocalMask(shape, window_size=(band_width - 1, 0), offset=0)
  )
  block = int(np.gcd(length, 512))
  sizes = splash_attention.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  return make(
    mask=splash_attention.MultiHeadMask([mask] * num_heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
