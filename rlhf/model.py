"""The GPT-3 transformer and its three faces: policy, value function and reward model.

Pre-LN decoder, learned positions, GELU, tied input and output embedding, residual-scaled
initialisation, dense and locally banded attention in alternation.  Source: Brown et al. 2020
section 2.1 (GPT-3), Radford et al. 2019 (GPT-2, from which the initialisation comes), InstructGPT
appendix C (the scalar head in place of the unembedding).

Parameters are float32; matrix products run in `cfg.dtype`; log-probs, values and scores are
float32.  Parameter tree:

  embed/token [V, D]   embed/position [T, D]   final_norm/{scale,bias} [D]
  blocks/layer_i/{attention_norm, attention/{qkv,out}, mlp_norm, mlp/{in,out}}   [L/pattern, ...]
  head/{kernel [D, 1], bias [1]}                                 value and reward models only
"""

import dataclasses
import functools
import math

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from rlhf import attention
from rlhf import sharding
from rlhf.types import Array, LmBatch, Metric, Params

# Which intermediate results of a block survive until its backward pass.
REMAT_POLICIES = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """Shape and numerics of one transformer.

  Attributes:
    vocab_size: number of token ids that exist, the pad id included.
    pad_id: never sampled: its logit is -inf, as are those of the rows added for alignment.
    context_length: number of learned positions.
    num_layers, num_heads, width: as in GPT-3's Table 2.1; feed-forward width is 4 * width.
    band_width: keys seen by a banded layer, itself included; None makes every layer dense.
      GPT-3 alternates dense and banded layers but does not disclose the width.
    band_first: the even layers (0, 2, ...) are the banded ones instead of the odd.  Not disclosed.
    init_std: standard deviation of matrices and token embedding; 0.02 in GPT-2.
    dtype: of matrix products, one of `DTYPES`.
    remat: one of `REMAT_POLICIES`.
    scan_unroll: repetitions of the pattern of layers that the compiler sees at once; speed, memory
      and time to compile depend on it, results do not.  Only without remat: what is recomputed
      stays in the loop, where the compiler cannot merge it with what it repeats.
    logprob_chunk: tokens of a row whose logits exist at once; [B, T, V] is never kept.
    attention: one of `attention.KERNELS`, or "auto" for the one of the platform; a call that it
      refuses goes to the reference.
    shard_sequence: the residual stream is split along time over the mesh axis `tensor`.
    decode_split: one of `sharding.DECODE_SPLITS`.
    decode_scan: sampling loops over the layers instead of unrolling them: minutes less to compile
      for a deep model, and slower where a layer is small.
  """
  vocab_size: int
  pad_id: int
  context_length: int
  num_layers: int
  num_heads: int
  width: int
  band_width: int | None
  band_first: bool
  init_std: float
  dtype: str
  remat: str
  scan_unroll: int
  logprob_chunk: int
  attention: str
  shard_sequence: bool
  decode_split: str
  decode_scan: bool

  def __post_init__(self):
    if self.width % self.num_heads:
      raise ValueError(f"width {self.width} does not divide over num_heads {self.num_heads}")
    if self.num_layers % self.pattern:
      raise ValueError(f"num_layers {self.num_layers} is odd; alternating dense and banded layers "
                       "need an even number, or band_width=None")
    if self.scan_unroll < 1:
      raise ValueError(f"scan_unroll {self.scan_unroll}; use 1 or more")
    if not 0 <= self.pad_id < self.vocab_size:
      raise ValueError(f"pad_id {self.pad_id} is outside the vocabulary of {self.vocab_size}")
    for field, choices in (("dtype", DTYPES), ("remat", REMAT_POLICIES),
                           ("attention", ("auto", *attention.KERNELS)),
                           ("decode_split", sharding.DECODE_SPLITS)):
      if getattr(self, field) not in choices:
        raise ValueError(f"{field} {getattr(self, field)!r}; choose from {sorted(choices)}")

  @property
  def pattern(self) -> int:
    """Layers in one repetition of the scanned pattern."""
    return 1 if self.band_width is None else 2

  @property
  def head_size(self) -> int:
    return self.width // self.num_heads

  @property
  def padded_vocab_size(self) -> int:
    """Embedding rows: a multiple of 128, because 50,257 divides over no mesh."""
    return -(-self.vocab_size // 128) * 128

  @property
  def num_block_params(self) -> int:
    """Parameters outside the embeddings: 12 L D^2 + 13 L D, and the last layer norm's 2 D."""
    return self.num_layers * (12 * self.width**2 + 13 * self.width) + 2 * self.width


@struct.dataclass(kw_only=True)
class Context:
  """What attention needs to know about the rows besides their hidden states.

  `padding` and `layout` are static: where rows may be padded, and how activations lie on the mesh.
  """
  position_BT: Array  # row of the position embedding
  key_mask_BS: Array
  query_segment_BT: Array | None
  key_segment_BS: Array | None
  write_index: Array | None  # slot of the cache where this call's keys and values go
  cache_index: Array | int | None  # entry of the cache's leading axis that belongs to this layer
  dropout_key_B: Array | None
  padding: str = struct.field(pytree_node=False)
  layout: sharding.Layout = struct.field(pytree_node=False)


@struct.dataclass(kw_only=True)
class Cache:
  """Keys and values of every layer, and which slots hold a token."""
  # {"layer_i": {"k", "v"}}, each [L/pattern, B, S, H, head_size]; where layers are unrolled, a
  # tuple of such trees with 1 in place of L/pattern.
  layers: tuple[Params, ...] | Params
  mask_BS: Array  # 1 on slots that hold a real token
  length: Array  # int32 scalar: slots filled so far


def _dense(cfg: ModelConfig, features, name: str, std: float, axis=-1) -> nn.DenseGeneral:
  return nn.DenseGeneral(features, axis=axis, dtype=DTYPES[cfg.dtype], name=name,
                         kernel_init=nn.initializers.normal(std))


def _norm(cfg: ModelConfig, name: str | None) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)


def _dropout(x_BTD, key_B, site, rate: float):
  """Zeroes entries with one key per (global row, site): mesh and microbatch cannot matter."""
  def one_row(x_TD, key):
    keep_TD = jax.random.bernoulli(jax.random.fold_in(key, site), 1.0 - rate, x_TD.shape)
    return jnp.where(keep_TD, x_TD / (1.0 - rate), 0.0)
  return jax.vmap(one_row)(x_BTD, key_B)


class Attention(nn.Module):
  """Multi-head attention over the row itself, or over the cache when one is given."""
  cfg: ModelConfig
  band_width: int | None

  @nn.compact
  def __call__(self, x_BTD, cache, context: Context):
    cfg = self.cfg
    qkv_BT3Hd = _dense(cfg, (3, cfg.num_heads, cfg.head_size), "qkv", cfg.init_std)(x_BTD)
    heads = context.layout.heads_BTHd
    query, key, value = (sharding.constrain(qkv_BT3Hd[:, :, i], *heads) for i in range(3))
    first_slot = 0
    if cache is not None:
      start = (context.cache_index, 0, context.write_index, 0, 0)
      write = lambda name, x: sharding.constrain(jax.lax.dynamic_update_slice(
          cache[name], x[None].astype(cache[name].dtype), start), None, *heads)
      cache = {"k": write("k", key), "v": write("v", value)}
      if context.key_mask_BS.shape[1] != x_BTD.shape[1]:  # a token against all that came before
        first_slot = context.write_index
        key, value = (jax.lax.dynamic_index_in_dim(cache[name], context.cache_index, keepdims=False)
                      for name in ("k", "v"))
    mixed_BTHd = attention.attention(
        cfg.attention, query, key, value, first_slot=first_slot, key_mask_BS=context.key_mask_BS,
        band_width=self.band_width, query_segment_BT=context.query_segment_BT,
        key_segment_BS=context.key_segment_BS, padding=context.padding)
    mixed_BTHd = sharding.constrain(mixed_BTHd, context.layout.rows, None, "tensor", None)
    out_std = cfg.init_std / math.sqrt(2 * cfg.num_layers)
    return _dense(cfg, cfg.width, "out", out_std, axis=(-2, -1))(mixed_BTHd), cache


class Mlp(nn.Module):
  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BTD, layout: sharding.Layout):
    cfg = self.cfg
    hidden_BTF = nn.gelu(_dense(cfg, 4 * cfg.width, "in", cfg.init_std)(x_BTD), approximate=True)
    hidden_BTF = sharding.constrain(hidden_BTF, *layout.hidden_BTF)
    return _dense(cfg, cfg.width, "out", cfg.init_std / math.sqrt(2 * cfg.num_layers))(hidden_BTF)


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)); dropout on what is added."""
  cfg: ModelConfig
  band_width: int | None
  dropout_rate: float

  @nn.compact
  def __call__(self, x_BTD, layer_index, cache, context: Context):
    dtype = DTYPES[self.cfg.dtype]
    with jax.named_scope("attention"):
      normed = _norm(self.cfg, "attention_norm")(x_BTD).astype(dtype)
      added_BTD, cache = Attention(self.cfg, self.band_width, name="attention")(
          normed, cache, context)
      if self.dropout_rate > 0.0:
        added_BTD = _dropout(added_BTD, context.dropout_key_B, 2 * layer_index, self.dropout_rate)
      x_BTD = x_BTD + added_BTD
    with jax.named_scope("mlp"):
      added_BTD = Mlp(self.cfg, name="mlp")(
          _norm(self.cfg, "mlp_norm")(x_BTD).astype(dtype), context.layout)
      if self.dropout_rate > 0.0:
        added_BTD = _dropout(
            added_BTD, context.dropout_key_B, 2 * layer_index + 1, self.dropout_rate)
      x_BTD = x_BTD + added_BTD
    return sharding.constrain(x_BTD, *context.layout.residual_BTD), cache


class Pattern(nn.Module):
  """The repeating group of layers that is scanned: one dense layer, or one dense and one banded."""
  cfg: ModelConfig
  dropout_rate: float

  @nn.compact
  def __call__(self, x_BTD, pattern_index, caches, context: Context):
    new_caches = {}
    for i in range(self.cfg.pattern):
      banded = self.cfg.band_width is not None and (i == 0) == self.cfg.band_first
      name = f"layer_{i}"
      block = Block(self.cfg, self.cfg.band_width if banded else None, self.dropout_rate, name=name)
      x_BTD, new_caches[name] = block(
          x_BTD, pattern_index * self.cfg.pattern + i, None if caches is None else caches[name],
          context)
    return x_BTD, (None if caches is None else new_caches)


class Embed(nn.Module):
  cfg: ModelConfig

  @nn.compact
  def __call__(self, tokens_BT, position_BT):
    cfg = self.cfg
    token_VD = self.param(
        "token", nn.initializers.normal(cfg.init_std), (cfg.padded_vocab_size, cfg.width))
    # OpenAI's code draws positions with half the deviation of tokens (0.01 against 0.02).
    position_TD = self.param(
        "position", nn.initializers.normal(cfg.init_std / 2), (cfg.context_length, cfg.width))
    return (token_VD[tokens_BT] + position_TD[position_BT]).astype(DTYPES[cfg.dtype])


class Transformer(nn.Module):
  """Tokens to the hidden states after the last layer norm, in float32."""
  cfg: ModelConfig
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, tokens_BT, context: Context):
    cfg = self.cfg
    x_BTD = Embed(cfg, name="embed")(tokens_BT, context.position_BT)
    x_BTD = sharding.constrain(x_BTD, *context.layout.residual_BTD)
    pattern = Pattern
    if REMAT_POLICIES[cfg.remat] is not None:
      pattern = nn.remat(Pattern, policy=REMAT_POLICIES[cfg.remat], prevent_cse=False)
    num_patterns = cfg.num_layers // cfg.pattern
    blocks = nn.scan(
        pattern, variable_axes={"params": 0}, split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast), length=num_patterns,
        unroll=min(cfg.scan_unroll, num_patterns) if pattern is Pattern else 1)
    x_BTD, _ = blocks(cfg, self.dropout_rate, name="blocks")(
        x_BTD, jnp.arange(num_patterns), None, context)
    x_BTD = _norm(cfg, "final_norm")(x_BTD)
    return sharding.constrain(x_BTD, context.layout.rows, None, None)  # heads read whole rows


def init_params(cfg: ModelConfig, key) -> Params:
  """Parameters of a policy, float32."""
  tokens_BT = jnp.zeros((1, 2), jnp.int32)
  context = _row_context(cfg, jnp.ones((1, 2)), None, None, None)
  cfg = dataclasses.replace(cfg, attention="reference")  # no parameter depends on it
  return Transformer(cfg).init(key, tokens_BT, context)["params"]


def init_head(cfg: ModelConfig, key) -> Params:
  """A scalar head: kernel ~ N(0, 1/(D+1)), bias 0.  Source: Stiennon et al. 2020, appendix B."""
  kernel_D1 = jax.random.normal(key, (cfg.width, 1)) * (cfg.width + 1) ** -0.5
  return {"kernel": kernel_D1, "bias": jnp.zeros((1,))}


def _row_context(cfg: ModelConfig, mask_BT, segment_BT, position_BT, dropout_key_B) -> Context:
  if position_BT is None:
    position_BT = positions(mask_BT)
  return Context(
      position_BT=position_BT, key_mask_BS=mask_BT, query_segment_BT=segment_BT,
      key_segment_BS=segment_BT, write_index=None, cache_index=None,
      dropout_key_B=dropout_key_B, padding="right",
      layout=sharding.train_layout(cfg.shard_sequence))


def positions(mask_BT):
  """Position of each real token among the real tokens of its row; padding gets a valid dummy."""
  return jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)


def forward(cfg: ModelConfig, params: Params, tokens_BT, mask_BT, *, segment_BT=None,
            position_BT=None, dropout_rate: float = 0.0, dropout_key_B=None):
  """Hidden states after the last layer norm, float32 [B, T, D].

  Heads and log-probs work from these, in chunks.

  Args:
    mask_BT: 1 on real tokens.  Padding stands right; the reference and the splash kernel also take
      it on the left.
    segment_BT: attention stays inside a segment; None lets it cross packed documents.
    position_BT: None counts the real tokens of each row.
    dropout_rate, dropout_key_B: residual dropout (SFT only) and one key per row.
  """
  context = _row_context(cfg, mask_BT, segment_BT, position_BT, dropout_key_B)
  module = Transformer(cfg, dropout_rate)
  return module.apply({"params": _without_head(params)}, tokens_BT, context)


def _without_head(params: Params) -> Params:
  return {name: leaf for name, leaf in params.items() if name != "head"}


def logits(cfg: ModelConfig, params: Params, hidden_D):
  """Next-token logits [..., V], float32; -inf (-1e30) where no token may be sampled."""
  dtype = DTYPES[cfg.dtype]
  out_V = jnp.einsum("...D,VD->...V", hidden_D.astype(dtype),
                     params["embed"]["token"].astype(dtype), preferred_element_type=jnp.float32)
  token_V = jnp.arange(cfg.padded_vocab_size)
  return jnp.where((token_V < cfg.vocab_size) & (token_V != cfg.pad_id), out_V, -1e30)


def token_logprobs(cfg: ModelConfig, params: Params, hidden_BTD, tokens_BT, *, temperature):
  """Log probability of each token given those before it, and the entropy it was drawn from.

      logprob_t = log softmax(logits(h_{t-1}) / temperature)[token_t]

  This one function serves reference, old and new policy, with the sampling temperature applied
  to all.  Logits exist for `cfg.logprob_chunk` tokens of each row at a time, in the backward pass
  too.

  Returns:
    (logprob_BT, entropy_BT), float32, in nats; entry 0 is 0.
  """
  @functools.partial(jax.checkpoint, prevent_cse=False)
  def chunk_logprobs(hidden_BcD, target_Bc):
    logits_BcV = logits(cfg, params, hidden_BcD) / temperature
    normaliser_Bc = jax.nn.logsumexp(logits_BcV, axis=-1)
    picked_Bc = jnp.take_along_axis(logits_BcV, target_Bc[..., None], axis=-1)[..., 0]
    prob_BcV = jnp.exp(logits_BcV - normaliser_Bc[..., None])
    entropy_Bc = normaliser_Bc - jnp.sum(
        prob_BcV * jnp.where(logits_BcV > -1e29, logits_BcV, 0.0), axis=-1)
    return picked_Bc - normaliser_Bc, entropy_Bc

  hidden_BTD, target_BT = hidden_BTD[:, :-1], tokens_BT[:, 1:]
  num_rows, length = target_BT.shape
  chunk = min(cfg.logprob_chunk, length)
  num_chunks = -(-length // chunk)
  if num_chunks == 1:
    logprob_BT, entropy_BT = chunk_logprobs(hidden_BTD, target_BT)
  else:
    extra = num_chunks * chunk - length
    hidden_BTD = jnp.pad(hidden_BTD, ((0, 0), (0, extra), (0, 0)))
    target_BT = jnp.pad(target_BT, ((0, 0), (0, extra)))
    hidden_NBcD = hidden_BTD.reshape(num_rows, num_chunks, chunk, -1).swapaxes(0, 1)
    target_NBc = target_BT.reshape(num_rows, num_chunks, chunk).swapaxes(0, 1)
    out_NBc = jax.lax.map(lambda args: chunk_logprobs(*args), (hidden_NBcD, target_NBc))
    logprob_BT, entropy_BT = (
        x.swapaxes(0, 1).reshape(num_rows, -1)[:, :length] for x in out_NBc)
  first = ((0, 0), (1, 0))
  return jnp.pad(logprob_BT, first), jnp.pad(entropy_BT, first)


def scalar_head(params: Params, hidden_BTD):
  """The scalar of each position, float32 [B, T]: what the state *after* token t is worth."""
  head = params["head"]
  out_BT1 = jnp.einsum("BTD,DO->BTO", hidden_BTD, head["kernel"],
                       precision=jax.lax.Precision.HIGHEST)
  return out_BT1[..., 0] + head["bias"][0]


def state_values(params: Params, hidden_BTD):
  """value_BT in the house's index: entry t is the value of the state before token t was chosen."""
  return jnp.pad(scalar_head(params, hidden_BTD)[:, :-1], ((0, 0), (1, 0)))


def policy_logprobs(cfg: ModelConfig, params: Params, tokens_BT, mask_BT, *, temperature):
  """`token_logprobs` of whole rows; the one way in which any policy is scored."""
  hidden_BTD = forward(cfg, params, tokens_BT, mask_BT)
  return token_logprobs(cfg, params, hidden_BTD, tokens_BT, temperature=temperature)


def values(cfg: ModelConfig, params: Params, tokens_BT, mask_BT):
  """Values [B, T] of a separate value network."""
  return state_values(params, forward(cfg, params, tokens_BT, mask_BT))


def scores(cfg: ModelConfig, params: Params, tokens_BT, mask_BT):
  """Reward [B] of right-padded rows, read at the last real token.

  Source: InstructGPT section 3.5 and appendix C.2; the bias holds the demonstrations-at-zero
  offset.
  """
  scalar_BT = scalar_head(params, forward(cfg, params, tokens_BT, mask_BT))
  last_B = jnp.sum(mask_BT.astype(jnp.int32), axis=1) - 1
  return jnp.take_along_axis(scalar_BT, last_B[:, None], axis=1)[:, 0]


def lm_loss(cfg: ModelConfig, params: Params, batch: LmBatch, *, use_segments: bool,
            dropout_rate: float = 0.0, dropout_key_B=None) -> Metric:
  """Negative log-likelihood of packed rows: (sum over weighted targets, sum of weights), in nats.

  Args:
    use_segments: keep attention inside each document; otherwise it crosses them, as in GPT-3.
  """
  hidden_BTD = forward(
      cfg, params, batch.tokens_BT, (batch.segment_BT > 0).astype(jnp.float32),
      segment_BT=batch.segment_BT if use_segments else None, position_BT=batch.position_BT,
      dropout_rate=dropout_rate, dropout_key_B=dropout_key_B)
  logprob_BT, _ = token_logprobs(cfg, params, hidden_BTD, batch.tokens_BT, temperature=1.0)
  return Metric(total=-jnp.sum(logprob_BT * batch.loss_mask_BT), weight=jnp.sum(batch.loss_mask_BT))


def empty_cache(cfg: ModelConfig, num_rows: int, num_slots: int) -> Cache:
  num_patterns = cfg.num_layers // cfg.pattern
  stacked = num_patterns if cfg.decode_scan else 1
  shape = (stacked, num_rows, num_slots, cfg.num_heads, cfg.head_size)
  heads = sharding.decode_layout(cfg.decode_split).heads_BTHd
  zeros = lambda: sharding.constrain(jnp.zeros(shape, DTYPES[cfg.dtype]), None, *heads)
  tree = lambda: {f"layer_{i}": {"k": zeros(), "v": zeros()} for i in range(cfg.pattern)}
  return Cache(layers=tree() if cfg.decode_scan else tuple(tree() for _ in range(num_patterns)),
               mask_BS=jnp.zeros((num_rows, num_slots), jnp.float32), length=jnp.int32(0))


def decoding_params(cfg: ModelConfig, params: Params) -> Params:
  """A policy's weights as sampling wants them, made once for a rollout.

  Matrices are in `cfg.dtype` and lie as `sharding.DECODE_RULES` say; unless `cfg.decode_scan`, each
  repetition of the pattern of layers is a tree of its own.
  Embeddings and layer norms stay float32, so that the numbers are those of `forward`.
  """
  def cast(path, leaf):
    return leaf if "norm" in sharding.path_name(path) else leaf.astype(DTYPES[cfg.dtype])
  stacked = blocks = jax.tree_util.tree_map_with_path(cast, params["blocks"])
  if not cfg.decode_scan:
    take = lambda index: jax.tree.map(lambda leaf: leaf[index], stacked)
    blocks = tuple(take(index) for index in range(cfg.num_layers // cfg.pattern))
  return sharding.constrain_decoding(
      dict(embed=params["embed"], blocks=blocks, final_norm=params["final_norm"]),
      cfg.decode_split, stacked=cfg.decode_scan)


def _cached_forward(cfg, params, cache: Cache, tokens_BT, mask_BT, position_BT, *, fresh: bool):
  """Runs tokens through the model, writing slots [length, length + T) of the cache.

  The layers are unrolled, each with a cache of its own, or looped over with the stacked caches as
  the loop's carry, of which each layer writes its new slots only: as inputs and outputs of a scan
  they would be copied whole for every token.

  Args:
    fresh: nothing is in the cache yet, so the tokens attend to one another only.
  """
  mask_BS = jax.lax.dynamic_update_slice(
      cache.mask_BS, mask_BT.astype(jnp.float32), (0, cache.length))
  context = Context(
      position_BT=position_BT, key_mask_BS=mask_BT.astype(jnp.float32) if fresh else mask_BS,
      query_segment_BT=None, key_segment_BS=None, write_index=cache.length, cache_index=0,
      dropout_key_B=None, padding="left",
      # Many tokens at once are worth gathering a layer's weights for, as in training.
      layout=sharding.train_layout(False) if fresh else sharding.decode_layout(cfg.decode_split))
  x_BTD = Embed(cfg).apply({"params": params["embed"]}, tokens_BT, position_BT)
  x_BTD = sharding.constrain(x_BTD, *context.layout.residual_BTD)
  run = lambda pattern_params, x_BTD, index, layers, context: Pattern(cfg, 0.0).apply(
      {"params": pattern_params}, x_BTD, index, layers, context)
  if cfg.decode_scan:
    def one_pattern(index, carry):
      pattern_params = jax.tree.map(
          lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params["blocks"])
      return run(pattern_params, carry[0], index, carry[1], context.replace(cache_index=index))
    x_BTD, layers = jax.lax.fori_loop(
        0, cfg.num_layers // cfg.pattern, one_pattern, (x_BTD, cache.layers))
  else:
    layers = []
    for index, (pattern_params, pattern_cache) in enumerate(zip(params["blocks"], cache.layers)):
      x_BTD, pattern_cache = run(pattern_params, x_BTD, index, pattern_cache, context)
      layers.append(pattern_cache)
    layers = tuple(layers)
  hidden_BTD = _norm(cfg, None).apply({"params": params["final_norm"]}, x_BTD)
  return hidden_BTD, Cache(
      layers=layers, mask_BS=mask_BS, length=cache.length + tokens_BT.shape[1])


def prefill(cfg: ModelConfig, params: Params, tokens_BP, mask_BP, *, num_slots: int):
  """Reads left-padded prompts; returns the logits of the first response token and the cache.

  Args:
    params: `decoding_params`.
  """
  cache = empty_cache(cfg, tokens_BP.shape[0], num_slots)
  hidden_BPD, cache = _cached_forward(cfg, params, cache, tokens_BP, mask_BP, positions(mask_BP),
                                      fresh=True)
  return logits(cfg, params, hidden_BPD[:, -1]), cache


def decode_step(cfg: ModelConfig, params: Params, cache: Cache, token_B):
  """Appends one token to every row; returns the logits of the next and the cache.

  Args:
    params: `decoding_params`.
  """
  position_B1 = jnp.sum(cache.mask_BS.astype(jnp.int32), axis=1, keepdims=True)
  hidden_B1D, cache = _cached_forward(
      cfg, params, cache, token_B[:, None], jnp.ones_like(position_B1), position_B1, fresh=False)
  return logits(cfg, params, hidden_B1D[:, 0]), cache
