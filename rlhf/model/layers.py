"""The parts of a block: projections, norms, rotary positions, attention and the feed-forward layer.

Every part reads from `ModelConfig` which of its forms it takes.  Matrix products run in
`cfg.compute.dtype`; norms and rotations in float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from rlhf import sharding
from rlhf.model import attention
from rlhf.model.architecture import ACTIVATIONS, ModelConfig
from rlhf.types import Array


@struct.dataclass(kw_only=True)
class Context:
  """What attention needs to know about the rows besides their hidden states.

  `padding` and `layout` are static: where rows may be padded, and how activations lie on the mesh.
  """

  position_BT: Array  # of each token among the real tokens of its row (or of its document)
  key_mask_BS: Array
  key_position_BS: Array | None  # of the tokens in the cache, where there is one
  query_segment_BT: Array | None
  key_segment_BS: Array | None
  write_index: Array | None  # slot of the cache where this call's keys and values go
  cache_index: Array | int | None  # entry of the cache's leading axis that belongs to this layer
  dropout_key_B: Array | None
  padding: str = struct.field(pytree_node=False)
  layout: sharding.Layout = struct.field(pytree_node=False)


class Dense(nn.Module):
  """x W + b over the last `num_in` axes; where W has an adapter beside it, x W + s (x A) B + b.

  Source of the adapter, with s = `cfg.lora_scale`: Hu et al. 2021 (LoRA), section 4.1.
  """

  cfg: ModelConfig
  features: tuple[int, ...]
  std: float
  use_bias: bool
  num_in: int = 1

  @nn.compact
  def __call__(self, x):
    dtype = self.cfg.compute.dtype
    kernel = self.param(
      "kernel", nn.initializers.normal(self.std), (*x.shape[x.ndim - self.num_in :], *self.features)
    )
    multiply = functools.partial(_contract, num_in=self.num_in)
    out = multiply(x.astype(dtype), kernel.astype(dtype))
    if self.has_variable("params", "lora_a"):
      down, up = (self.get_variable("params", name).astype(dtype) for name in ("lora_a", "lora_b"))
      out += self.cfg.lora_scale * _contract(multiply(x.astype(dtype), down), up, num_in=1)
    if self.use_bias:
      out += self.param("bias", nn.initializers.zeros, self.features).astype(dtype)
    return out


def _contract(x, kernel, *, num_in: int):
  """The last `num_in` axes of x with the first of the kernel."""
  axes = tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in))
  return jax.lax.dot_general(x, kernel, (axes, ((), ())))


class RmsNorm(nn.Module):
  """x / sqrt(mean(x^2) + eps) * (offset + scale), in float32."""

  epsilon: float
  offset: float

  @nn.compact
  def __call__(self, x):
    x = x.astype(jnp.float32)
    scale = self.param("scale", nn.initializers.constant(1.0 - self.offset), (x.shape[-1],))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(mean_square + self.epsilon) * (self.offset + scale)


def make_norm(cfg: ModelConfig, name: str | None) -> nn.Module:
  """A norm over the last axis, float32."""
  if cfg.norm == "rms":
    return RmsNorm(cfg.norm_eps, cfg.norm_offset, name=name)
  return nn.LayerNorm(epsilon=cfg.norm_eps, dtype=jnp.float32, name=name)


# ----------------------------------------------------------------------------- positions


def rope_frequencies(cfg: ModelConfig, kind: str) -> np.ndarray:
  """Radians per position of each pair of rotated dimensions, float32 [rotary_size / 2].

      f_i = base^(-2i / rotary_size)

  then scaled; see `ModelConfig.rope_scaling`.  Source: Su et al. 2021, section 3.2; "llama3" as in
  the published Llama 3.1 models.
  """
  own_base = kind == "banded" and cfg.band_rope_base is not None
  base = cfg.band_rope_base if own_base else cfg.rope_base
  assert base is not None  # `ModelConfig` has checked it, and the numbers below
  frequency_f = base ** -(np.arange(0, cfg.rotary_size, 2) / cfg.rotary_size)
  if cfg.rope_scaling == "none" or own_base:
    return frequency_f.astype(np.float32)
  assert cfg.rope_factor is not None
  if cfg.rope_scaling == "linear":
    return (frequency_f / cfg.rope_factor).astype(np.float32)
  low, high = cfg.rope_low_freq_factor, cfg.rope_high_freq_factor
  assert cfg.rope_original_context is not None and low is not None and high is not None
  turns_f = cfg.rope_original_context * frequency_f / (2 * math.pi)  # within the original context
  kept_f = np.clip((turns_f - low) / (high - low), 0.0, 1.0)
  return (frequency_f * (kept_f + (1 - kept_f) / cfg.rope_factor)).astype(np.float32)


def rotate(x_BTHd, position_BT, frequency_f):
  """Rotates pair (i, i + rotary_size / 2) of every head by position * frequency_i."""
  half = frequency_f.shape[0]
  angle_BT1f = position_BT[..., None, None].astype(jnp.float32) * frequency_f
  cos, sin = jnp.cos(angle_BT1f), jnp.sin(angle_BT1f)
  first, second = (x_BTHd[..., i * half : (i + 1) * half].astype(jnp.float32) for i in range(2))
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(
    [*(part.astype(x_BTHd.dtype) for part in turned), x_BTHd[..., 2 * half :]], axis=-1
  )


# ----------------------------------------------------------------------------- sub-layers


class Attention(nn.Module):
  """Multi-head attention over the row itself, or over the cache when one is given."""

  cfg: ModelConfig
  kind: str

  @nn.compact
  def __call__(self, x_BTD, cache, context: Context):
    cfg, heads = self.cfg, context.layout.heads_BTHd
    query, key, value = (sharding.constrain(x, *heads) for x in self._project(x_BTD))
    if cfg.qk_norm:
      query, key = (
        RmsNorm(cfg.norm_eps, cfg.norm_offset, name=name)(x).astype(x.dtype)
        for name, x in (("q_norm", query), ("k_norm", key))
      )
    if cfg.positions == "rotary":
      frequency_f = rope_frequencies(cfg, self.kind)
      query, key = (rotate(x, context.position_BT, frequency_f) for x in (query, key))
    if cache is not None:
      assert context.cache_index is not None and context.write_index is not None
      start = (context.cache_index, 0, 0, context.write_index, 0)
      write = lambda whole, x_BTKd: sharding.constrain(
        jax.lax.dynamic_update_slice(whole, x_BTKd.swapaxes(1, 2)[None].astype(whole.dtype), start),
        None,
        *context.layout.cache_BKSd,
      )
      cache = {"k": write(cache["k"], key), "v": write(cache["v"], value)}
    band_width = cfg.band_width if self.kind == "banded" else None
    if cache is not None and context.key_mask_BS.shape[1] != x_BTD.shape[1]:
      # A token against all that came before.
      key, value = (
        jax.lax.dynamic_index_in_dim(cache[name], context.cache_index, keepdims=False)
        for name in ("k", "v")
      )
      seen_BTS = attention.attention_mask(
        context.position_BT, context.key_position_BS, context.key_mask_BS, band_width=band_width
      )
      scale = cfg.head_size**-0.5 if cfg.attention_scale is None else cfg.attention_scale
      mixed_BTHd = attention.attend(query, key, value, seen_BTS, scale)
    else:
      mixed_BTHd = attention.attention(
        cfg.compute.attention,
        query,
        key,
        value,
        key_mask_BS=context.key_mask_BS,
        band_width=band_width,
        scale=cfg.attention_scale,
        query_segment_BT=context.query_segment_BT,
        key_segment_BS=context.key_segment_BS,
        padding=context.padding,
      )
    mixed_BTHd = sharding.constrain(mixed_BTHd, context.layout.rows, None, "tensor", None)
    out_std = cfg.init_std / math.sqrt(2 * cfg.num_layers)
    return Dense(cfg, (cfg.width,), out_std, cfg.attention_out_bias, num_in=2, name="out")(
      mixed_BTHd
    ), cache

  def _project(self, x_BTD):
    """Queries, keys and values; in one product where there are as many of each."""
    cfg = self.cfg
    dense = functools.partial(Dense, cfg, std=cfg.init_std, use_bias=cfg.qkv_bias)
    if cfg.num_kv_heads == cfg.num_heads:
      qkv_BT3Hd = dense(features=(3, cfg.num_heads, cfg.head_size), name="qkv")(x_BTD)
      return [qkv_BT3Hd[:, :, i] for i in range(3)]
    kv_BT2Kd = dense(features=(2, cfg.num_kv_heads, cfg.head_size), name="kv")(x_BTD)
    query_BTHd = dense(features=(cfg.num_heads, cfg.head_size), name="q")(x_BTD)
    return [query_BTHd, kv_BT2Kd[:, :, 0], kv_BT2Kd[:, :, 1]]


class Mlp(nn.Module):
  """out(act(in(x))), or out(act(gate(x)) * in(x)) where the activation is gated."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, layout: sharding.Layout):
    cfg = self.cfg
    act, is_gated = ACTIVATIONS[cfg.activation]
    dense = functools.partial(Dense, cfg, use_bias=cfg.mlp_bias)
    hidden_BTF = dense((cfg.mlp_width,), cfg.init_std, name="in")(x_BTD)
    if is_gated:
      hidden_BTF *= act(dense((cfg.mlp_width,), cfg.init_std, name="gate")(x_BTD))
    else:
      hidden_BTF = act(hidden_BTF)
    hidden_BTF = sharding.constrain(hidden_BTF, *layout.hidden_BTF)
    return dense((cfg.width,), cfg.init_std / math.sqrt(2 * cfg.num_layers), name="out")(hidden_BTF)


def dropout(x_BTD, key_B, site, rate: float):
  """Zeroes entries with one key per (global row, site): mesh and microbatch cannot matter."""

  def one_row(x_TD, key):
    keep_TD = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x_TD.shape)
    return jnp.where(keep_TD, x_TD / (1.0 - rate), 0.0)

  return jax.vmap(one_row)(x_BTD, key_B)


class Block(nn.Module):
  """Attention and the feed-forward layer, each added to the residual stream.

      pre         x + f(norm(x))               post    norm(x + f(x))
      sandwich    x + norm(f(norm(x)))         dropout on what is added

  In parallel form both read the block's input.
  """

  cfg: ModelConfig
  kind: str
  dropout_rate: float

  @nn.compact
  def __call__(self, x_BTD, layer_index, cache, context: Context):
    cfg = self.cfg
    with jax.named_scope("attention"):
      added_BTD, cache = Attention(cfg, self.kind, name="attention")(
        self._read("attention_norm", x_BTD), cache, context
      )
      attended_BTD = self._add("attention", x_BTD, added_BTD, 2 * layer_index, context)
    with jax.named_scope("mlp"):
      added_BTD = Mlp(cfg, name="mlp")(
        self._read("mlp_norm", x_BTD if cfg.parallel_residual else attended_BTD), context.layout
      )
      x_BTD = self._add("mlp", attended_BTD, added_BTD, 2 * layer_index + 1, context)
    return sharding.constrain(x_BTD, *context.layout.residual_BTD), cache

  def _read(self, norm: str, x_BTD):
    """What a sub-layer sees of the residual stream."""
    if self.cfg.norm_placement == "post":
      return x_BTD
    return make_norm(self.cfg, norm)(x_BTD).astype(self.cfg.compute.dtype)

  def _add(self, part: str, x_BTD, added_BTD, site, context: Context):
    """The residual stream with what a sub-layer adds to it."""
    dtype = self.cfg.compute.dtype
    if self.cfg.norm_placement == "sandwich":
      added_BTD = make_norm(self.cfg, f"{part}_post_norm")(added_BTD).astype(dtype)
    if self.dropout_rate > 0.0:
      added_BTD = dropout(added_BTD, context.dropout_key_B, site, self.dropout_rate)
    x_BTD = x_BTD + added_BTD
    if self.cfg.norm_placement == "post":
      x_BTD = make_norm(self.cfg, f"{part}_norm")(x_BTD).astype(dtype)
    return x_BTD


class Pattern(nn.Module):
  """One repetition of the layers that are scanned, or its first `num_layers`."""

  cfg: ModelConfig
  dropout_rate: float
  num_layers: int

  @nn.compact
  def __call__(self, x_BTD, pattern_index, caches, context: Context):
    new_caches = {}
    for i in range(self.num_layers):
      name = f"layer_{i}"
      x_BTD, new_caches[name] = Block(
        self.cfg, self.cfg.layer_kinds[i], self.dropout_rate, name=name
      )(
        x_BTD,
        pattern_index * self.cfg.pattern + i,
        None if caches is None else caches[name],
        context,
      )
    return x_BTD, (None if caches is None else new_caches)


class Embed(nn.Module):
  """Token embeddings, scaled and projected where the config says so, and learned positions."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, tokens_BT, position_BT):
    cfg = self.cfg
    width = cfg.width if cfg.embed_width is None else cfg.embed_width
    token_VD = self.param(
      "token", nn.initializers.normal(cfg.init_std), (cfg.padded_vocab_size, width)
    )
    x_BTD = token_VD[tokens_BT]
    if cfg.embed_scale != 1.0:
      x_BTD = x_BTD * cfg.embed_scale
    if cfg.embed_width is not None:
      x_BTD = Dense(cfg, (cfg.width,), cfg.init_std, False, name="project")(x_BTD)
    if cfg.positions == "learned":
      # OpenAI's code draws positions with half the deviation of tokens (0.01 against 0.02).
      position_TD = self.param(
        "position",
        nn.initializers.normal(cfg.init_std / 2),
        (cfg.context_length + cfg.position_offset, cfg.width),
      )
      x_BTD = x_BTD + position_TD[position_BT + cfg.position_offset]
    return x_BTD.astype(cfg.compute.dtype)
