"""The transformer and its three faces: policy, value function and reward model.

Its architecture is what `ModelConfig` says, GPT-3's by default (`architecture.py`); its parts are
in `layers.py`.  Sources: Brown et al. 2020 section 2.1 (GPT-3), Radford et al. 2019 (GPT-2, from
which the initialisation comes), InstructGPT appendix C (the scalar head in place of the
unembedding).

Parameters are float32; matrix products run in `cfg.compute.dtype`; log-probs, values and scores are
float32.  Parameter tree:

  embed/token [V, D]   embed/position [T, D]   final_norm/{scale,bias} [D]
  blocks/layer_i/{attention_norm, attention/{qkv,out}, mlp_norm, mlp/{in,out}}   [L/pattern, ...]
  tail/layer_i/...                               layers that fill no whole pattern
  head/{kernel [D, 1], bias [1]}                 value and reward models only

and, where the config asks for them: attention/{q,kv} in place of qkv (fewer key heads than query
heads), attention/{q_norm,k_norm}, mlp/gate, {attention,mlp}_post_norm, embed/project and
output/project (`embed_width`), output/token (not tied); no position where positions are rotary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from rlhf import sharding
from rlhf.model import lora
from rlhf.model.architecture import ModelConfig
from rlhf.model.compute import REMAT_POLICIES
from rlhf.model.layers import Context, Embed, Pattern, make_norm
from rlhf.types import Array, LmBatch, Metric, Params


@struct.dataclass(kw_only=True)
class Cache:
  """Keys and values of every layer, and which slots hold a token."""

  # {"layer_i": {"k", "v"}}, each [L/pattern, B, K, S, head_size] for K key and value heads; where
  # layers are unrolled, a tuple of such trees with 1 in place of L/pattern.
  layers: tuple[Params, ...] | Params
  tail: Params  # the same, with 1, of the layers that fill no whole pattern
  mask_BS: Array  # 1 on slots that hold a real token
  position_BS: Array  # int32: of each such token in its row
  write_index: Array  # int32 scalar: the slot that the next token takes


class Transformer(nn.Module):
  """Tokens to the hidden states after the last norm, in float32."""

  cfg: ModelConfig
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, tokens_BT, context: Context):
    cfg = self.cfg
    x_BTD = Embed(cfg, name="embed")(tokens_BT, context.position_BT)
    x_BTD = sharding.constrain(x_BTD, *context.layout.residual_BTD)
    pattern = Pattern
    if REMAT_POLICIES[cfg.compute.remat] is not None:
      pattern = nn.remat(Pattern, policy=REMAT_POLICIES[cfg.compute.remat], prevent_cse=False)
    if cfg.num_patterns:
      blocks = nn.scan(
        pattern,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=cfg.num_patterns,
        unroll=min(cfg.compute.scan_unroll, cfg.num_patterns) if pattern is Pattern else 1,
      )
      x_BTD, _ = blocks(cfg, self.dropout_rate, cfg.pattern, name="blocks")(
        x_BTD, jnp.arange(cfg.num_patterns), None, context
      )
    if cfg.num_tail_layers:
      x_BTD, _ = pattern(cfg, self.dropout_rate, cfg.num_tail_layers, name="tail")(
        x_BTD, jnp.int32(cfg.num_patterns), None, context
      )
    x_BTD = make_norm(cfg, "final_norm")(x_BTD) if cfg.final_norm else x_BTD.astype(jnp.float32)
    return sharding.constrain(x_BTD, context.layout.rows, None, None)  # heads read whole rows


def init_params(cfg: ModelConfig, key) -> Params:
  """Parameters of a policy, float32."""
  tokens_BT = jnp.zeros((1, 2), jnp.int32)
  context = _row_context(cfg, jnp.ones((1, 2)), None, None, None)
  compute = dataclasses.replace(cfg.compute, attention="reference")  # no parameter depends on it
  cfg = dataclasses.replace(cfg, compute=compute)
  params = Transformer(cfg).init(key, tokens_BT, context)["params"]
  output = _init_output(cfg, key)
  return dict(params, output=output) if output else params


def _init_output(cfg: ModelConfig, key) -> Params:
  """What turns hidden states into logits, where that is not the token embedding itself."""
  # No other name reaches this key: flax folds the names of modules into `key`.
  token_key, project_key = jax.random.split(jax.random.fold_in(key, 1))
  normal = lambda key, *shape: cfg.init_std * jax.random.normal(key, shape)
  output: Params = {}
  if cfg.embed_width is not None:
    output["project"] = {"kernel": normal(project_key, cfg.width, cfg.embed_width)}
  if not cfg.tied_output:
    width = cfg.width if cfg.embed_width is None else cfg.embed_width
    output["token"] = normal(token_key, cfg.padded_vocab_size, width)
  return output


def init_head(cfg: ModelConfig, key) -> Params:
  """A scalar head: kernel ~ N(0, 1/(D+1)), bias 0.  Source: Stiennon et al. 2020, appendix B."""
  kernel_D1 = jax.random.normal(key, (cfg.width, 1)) * (cfg.width + 1) ** -0.5
  return {"kernel": kernel_D1, "bias": jnp.zeros((1,))}


def without_output(cfg: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
  """A policy's trunk for a scalar head: an output matrix of its own would never be trained."""
  if cfg.tied_output:
    return cfg, params
  kept = {name: leaf for name, leaf in params.items() if name != "output"}
  rest = {name: leaf for name, leaf in params["output"].items() if name != "token"}
  return dataclasses.replace(cfg, tied_output=True), kept | ({"output": rest} if rest else {})


def _row_context(cfg: ModelConfig, mask_BT, segment_BT, position_BT, dropout_key_B) -> Context:
  if position_BT is None:
    position_BT = positions(mask_BT)
  return Context(
    position_BT=position_BT,
    key_mask_BS=mask_BT,
    key_position_BS=None,
    query_segment_BT=segment_BT,
    key_segment_BS=segment_BT,
    write_index=None,
    cache_index=None,
    dropout_key_B=dropout_key_B,
    padding="right",
    layout=sharding.train_layout(cfg.compute.shard_sequence),
  )


def positions(mask_BT):
  """Position of each real token among the real tokens of its row; padding gets a valid dummy."""
  return jnp.maximum(jnp.cumsum(mask_BT.astype(jnp.int32), axis=1) - 1, 0)


def forward(
  cfg: ModelConfig,
  params: Params,
  tokens_BT,
  mask_BT,
  *,
  segment_BT=None,
  position_BT=None,
  dropout_rate: float = 0.0,
  dropout_key_B=None,
):
  """Hidden states after the last norm, float32 [B, T, D].

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
  trunk = {name: leaf for name, leaf in params.items() if name not in ("head", "output")}
  return module.apply({"params": trunk}, tokens_BT, context)


def logits(cfg: ModelConfig, params: Params, hidden_D, *, with_padding: bool = False):
  """Next-token logits [..., V], float32; -inf (-1e30) where no token may be sampled.

  Args:
    with_padding: leave the padding token its logit, as the programs of published models do.
  """
  dtype = cfg.compute.dtype
  if cfg.embed_width is not None:
    hidden_D = hidden_D.astype(dtype) @ params["output"]["project"]["kernel"].astype(dtype)
  token_VD = params["embed" if cfg.tied_output else "output"]["token"]
  out_V = jnp.einsum(
    "...D,VD->...V",
    hidden_D.astype(dtype),
    token_VD.astype(dtype),
    preferred_element_type=jnp.float32,
  )
  token_V = jnp.arange(cfg.padded_vocab_size)
  allowed_V = token_V < cfg.vocab_size
  if not with_padding:
    allowed_V &= token_V != cfg.pad_id
  return jnp.where(allowed_V, out_V, -1e30)


def token_logprobs(cfg: ModelConfig, params: Params, hidden_BTD, tokens_BT, *, temperature):
  """Log probability of each token given those before it, and the entropy it was drawn from.

      logprob_t = log softmax(logits(h_{t-1}) / temperature)[token_t]

  This one function serves reference, old and new policy, with the sampling temperature applied
  to all.  Logits exist for `cfg.compute.logprob_chunk` tokens of each row at a time, in the backward pass
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
      prob_BcV * jnp.where(logits_BcV > -1e29, logits_BcV, 0.0), axis=-1
    )
    return picked_Bc - normaliser_Bc, entropy_Bc

  hidden_BTD, target_BT = hidden_BTD[:, :-1], tokens_BT[:, 1:]
  num_rows, length = target_BT.shape
  chunk = min(cfg.compute.logprob_chunk, length)
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
    logprob_BT, entropy_BT = (x.swapaxes(0, 1).reshape(num_rows, -1)[:, :length] for x in out_NBc)
  first = ((0, 0), (1, 0))
  return jnp.pad(logprob_BT, first), jnp.pad(entropy_BT, first)


def policy_logprobs(cfg: ModelConfig, params: Params, tokens_BT, mask_BT, *, temperature):
  """`token_logprobs` of whole rows."""
  hidden_BTD = forward(cfg, params, tokens_BT, mask_BT)
  return token_logprobs(cfg, params, hidden_BTD, tokens_BT, temperature=temperature)


def response_logprobs(
  cfg: ModelConfig,
  params: Params,
  hidden_BTD,
  tokens_BT,
  response_mask_BT,
  *,
  max_tokens: int,
  temperature,
):
  """`token_logprobs` of each row's response; entries elsewhere are 0.

  Only the states from which the response is predicted get logits: `max_tokens` of each row.

  Args:
    response_mask_BT: 1 on consecutive tokens, of which none is a row's first.
  """
  length = tokens_BT.shape[1]
  before_B1 = jnp.maximum(jnp.argmax(response_mask_BT > 0, axis=1, keepdims=True) - 1, 0)
  place_BR = jnp.minimum(before_B1 + jnp.arange(max_tokens + 1), length - 1)
  found = token_logprobs(
    cfg,
    params,
    jnp.take_along_axis(hidden_BTD, place_BR[:, :, None], axis=1, mode="clip"),
    jnp.take_along_axis(tokens_BT, place_BR, axis=1, mode="clip"),
    temperature=temperature,
  )
  place_BT = jnp.arange(length) - before_B1
  within_BT = (place_BT > 0) & (response_mask_BT > 0)
  spread = lambda x_BR: jnp.where(
    within_BT, jnp.take_along_axis(x_BR, place_BT, axis=1, mode="clip"), 0.0
  )
  return jax.tree.map(spread, found)


def scalar_head(params: Params, hidden_BTD):
  """The scalar of each position, float32 [B, T]: what the state *after* token t is worth."""
  head = params["head"]
  out_BT1 = jnp.einsum(
    "BTD,DO->BTO", hidden_BTD, head["kernel"], precision=jax.lax.Precision.HIGHEST
  )
  return out_BT1[..., 0] + head["bias"][0]


def state_values(params: Params, hidden_BTD):
  """value_BT, indexed as `types.py` says: entry t is the value of the state before token t."""
  return jnp.pad(scalar_head(params, hidden_BTD)[:, :-1], ((0, 0), (1, 0)))


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


def lm_logprobs(
  cfg: ModelConfig,
  params: Params,
  batch: LmBatch,
  *,
  use_segments: bool,
  dropout_rate: float = 0.0,
  dropout_key_B=None,
) -> Array:
  """Log-probability of each token of packed rows [B, T], in nats; entry 0 of a row is 0.

  Args:
    use_segments: keep attention inside each document; otherwise it crosses them, as in GPT-3.
  """
  hidden_BTD = forward(
    cfg,
    params,
    batch.tokens_BT,
    (batch.segment_BT > 0).astype(jnp.float32),
    segment_BT=batch.segment_BT if use_segments else None,
    position_BT=batch.position_BT,
    dropout_rate=dropout_rate,
    dropout_key_B=dropout_key_B,
  )
  logprob_BT, _ = token_logprobs(cfg, params, hidden_BTD, batch.tokens_BT, temperature=1.0)
  return logprob_BT


def lm_loss(
  cfg: ModelConfig,
  params: Params,
  batch: LmBatch,
  *,
  use_segments: bool,
  dropout_rate: float = 0.0,
  dropout_key_B=None,
) -> Metric:
  """Negative log-likelihood of packed rows: (sum over weighted targets, sum of weights), in nats.

  Args:
    use_segments: as in `lm_logprobs`.
  """
  logprob_BT = lm_logprobs(
    cfg,
    params,
    batch,
    use_segments=use_segments,
    dropout_rate=dropout_rate,
    dropout_key_B=dropout_key_B,
  )
  return Metric(total=-jnp.sum(logprob_BT * batch.loss_mask_BT), weight=jnp.sum(batch.loss_mask_BT))


def empty_cache(cfg: ModelConfig, num_rows: int, num_slots: int) -> Cache:
  heads = sharding.decode_layout(cfg.compute.decode_split).cache_BKSd

  def zeros(stacked: int):
    shape = (stacked, num_rows, cfg.num_kv_heads, num_slots, cfg.head_size)
    return sharding.constrain(jnp.zeros(shape, cfg.compute.dtype), None, *heads)

  def layers(count: int, stacked: int) -> Params:
    return {f"layer_{i}": {"k": zeros(stacked), "v": zeros(stacked)} for i in range(count)}

  return Cache(
    layers=layers(cfg.pattern, cfg.num_patterns)
    if cfg.compute.decode_scan
    else tuple(layers(cfg.pattern, 1) for _ in range(cfg.num_patterns)),
    tail=layers(cfg.num_tail_layers, 1),
    mask_BS=jnp.zeros((num_rows, num_slots), jnp.float32),
    position_BS=jnp.zeros((num_rows, num_slots), jnp.int32),
    write_index=jnp.int32(0),
  )


def decoding_params(cfg: ModelConfig, params: Params) -> Params:
  """A policy's weights as sampling wants them, made once for a rollout.

  Matrices are in `cfg.compute.dtype`, adapters are multiplied out into them, and they lie as
  `sharding.decode_spec` says; unless `cfg.compute.decode_scan`, each repetition of the pattern of layers is
  a tree of its own.  Embeddings and norms stay float32, so that the numbers are those of `forward`.
  """

  def cast(path, leaf):
    return leaf if "norm" in sharding.path_name(path) else leaf.astype(cfg.compute.dtype)

  found = lora.merge(params, cfg.lora_scale)
  for name in ("blocks", "tail"):
    if name in found:
      found[name] = jax.tree_util.tree_map_with_path(cast, found[name])
  if not cfg.compute.decode_scan:
    stacked = found["blocks"] if cfg.num_patterns else {}
    take = lambda index: jax.tree.map(lambda leaf: leaf[index], stacked)
    found["blocks"] = tuple(take(index) for index in range(cfg.num_patterns))
  return sharding.constrain_decoding(
    found, cfg.compute.decode_split, stacked=cfg.compute.decode_scan
  )


def _cached_forward(cfg, params, cache: Cache, tokens_BT, mask_BT, position_BT, *, fresh: bool):
  """Runs tokens through the model, writing T slots of the cache from `write_index` on.

  The layers are unrolled, each with a cache of its own, or looped over with the stacked caches as
  the loop's carry, of which each layer writes its new slots only: as inputs and outputs of a scan
  they would be copied whole for every token.

  Args:
    fresh: nothing is in the cache yet, so the tokens attend to one another only.
  """
  start = (0, cache.write_index)
  mask_BS = jax.lax.dynamic_update_slice(cache.mask_BS, mask_BT.astype(jnp.float32), start)
  position_BS = jax.lax.dynamic_update_slice(cache.position_BS, position_BT, start)
  context = Context(
    position_BT=position_BT,
    key_mask_BS=mask_BT.astype(jnp.float32) if fresh else mask_BS,
    key_position_BS=position_BS,
    query_segment_BT=None,
    key_segment_BS=None,
    write_index=cache.write_index,
    cache_index=0,
    dropout_key_B=None,
    padding="left",
    # Many tokens at once are worth gathering a layer's weights for, as in training.
    layout=sharding.train_layout(False)
    if fresh
    else sharding.decode_layout(cfg.compute.decode_split),
  )
  x_BTD = Embed(cfg).apply({"params": params["embed"]}, tokens_BT, position_BT)
  x_BTD = sharding.constrain(x_BTD, *context.layout.residual_BTD)

  def run(layer_params, x_BTD, index, layers, context):
    return Pattern(cfg, 0.0, len(layers)).apply(
      {"params": layer_params}, x_BTD, index, layers, context
    )

  if cfg.compute.decode_scan:

    def one_pattern(index, carry):
      pattern_params = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), params["blocks"]
      )
      return run(pattern_params, carry[0], index, carry[1], context.replace(cache_index=index))

    x_BTD, layers = jax.lax.fori_loop(0, cfg.num_patterns, one_pattern, (x_BTD, cache.layers))
  else:
    layers = []
    for index, (pattern_params, pattern_cache) in enumerate(zip(params["blocks"], cache.layers)):
      x_BTD, pattern_cache = run(pattern_params, x_BTD, index, pattern_cache, context)
      layers.append(pattern_cache)
    layers = tuple(layers)
  tail = cache.tail
  if tail:
    x_BTD, tail = run(params["tail"], x_BTD, cfg.num_patterns, tail, context)
  hidden_BTD = x_BTD.astype(jnp.float32)
  if cfg.final_norm:
    hidden_BTD = make_norm(cfg, None).apply({"params": params["final_norm"]}, x_BTD)
  return hidden_BTD, Cache(
    layers=layers,
    tail=tail,
    mask_BS=mask_BS,
    position_BS=position_BS,
    write_index=cache.write_index + tokens_BT.shape[1],
  )


def prefill(cfg: ModelConfig, params: Params, tokens_BP, mask_BP, *, num_slots: int):
  """Reads left-padded prompts; returns the logits of the first response token and the cache.

  Args:
    params: `decoding_params`.
  """
  cache = empty_cache(cfg, tokens_BP.shape[0], num_slots)
  hidden_BPD, cache = _cached_forward(
    cfg, params, cache, tokens_BP, mask_BP, positions(mask_BP), fresh=True
  )
  return logits(cfg, params, hidden_BPD[:, -1]), cache


def decode_step(cfg: ModelConfig, params: Params, cache: Cache, token_B):
  """Appends one token to every row; returns the logits of the next and the cache.

  Args:
    params: `decoding_params`.
  """
  position_B1 = jnp.sum(cache.mask_BS.astype(jnp.int32), axis=1, keepdims=True)
  hidden_B1D, cache = _cached_forward(
    cfg, params, cache, token_B[:, None], jnp.ones_like(position_B1), position_B1, fresh=False
  )
  return logits(cfg, params, hidden_B1D[:, 0]), cache
