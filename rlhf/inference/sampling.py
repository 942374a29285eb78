"""Sampling: prefill, cached decode, and the roll from left-padded to right-padded rows.

`sample` is the one program of rollouts, validation and evaluation: where their shapes are equal, it
is compiled once.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from rlhf import sharding
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.types import Array, Generation, Params, PromptBatch

_BLOCK = 128  # tokens


def row_keys(key, row_B) -> Array:
  """One key per global row, so that a mesh or a split of the batch draws the same tokens."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)


@functools.partial(
  jax.jit,
  static_argnames=("cfg", "eot_id", "max_new_tokens", "temperature", "top_p", "num_slots"),
)
def sample(
  cfg: ModelConfig,
  params: Params,
  prompts: PromptBatch,
  key,
  row_B,
  end_V=None,
  *,
  eot_id: int,
  max_new_tokens: int,
  temperature: float,
  top_p: float = 1.0,
  num_slots: int | None = None,
):
  """(`join` of prompts and their `generate`, finished_B); row b draws with fold_in(key, b)."""
  generation = generate(
    cfg,
    params,
    prompts,
    row_keys(key, row_B),
    eot_id=eot_id,
    end_V=end_V,
    max_new_tokens=max_new_tokens,
    temperature=temperature,
    top_p=top_p,
    num_slots=num_slots,
  )
  return join(prompts, generation, cfg.pad_id), generation.finished_B


@struct.dataclass
class _Slots:
  """Rows that are decoded together: G groups of devices by M slots."""

  cache: transformer.Cache
  episode_GM: Array  # which of its group's rows a slot decodes
  active_GM: Array  # bool; the response goes on
  token_GM: Array  # the last one drawn
  t_GM: Array  # tokens drawn so far
  next_G: Array  # how many of its rows a group has begun


def generate(
  cfg: ModelConfig,
  params: Params,
  prompts: PromptBatch,
  key_B,
  *,
  eot_id: int,
  max_new_tokens: int,
  temperature: float,
  top_p: float = 1.0,
  end_V=None,
  num_slots: int | None = None,
) -> Generation:
  """Samples one response per prompt until end-of-text or `max_new_tokens`.

  All prompts are read first, `num_slots` at once, and the first tokens drawn.  Then `num_slots`
  responses are decoded together; where one ends, the next prompt takes its slot, so that a batch
  of responses of many lengths costs what its tokens cost.  The cache of a slot is P columns for the
  prompt and R - 1 for the response, which all slots write in the same order round and round.

  PPO must leave `top_p` at 1: a filter makes the policy that is sampled another one than the
  policy that is scored, and the KL estimate could turn negative.

  Args:
    prompts: left-padded, every row with at least one token.
    key_B: one key per row (`row_keys`); token t of a row draws with fold_in(key, t).
    temperature: divides the logits; 0 takes the most likely token, whose log-prob is then that
      of the distribution at temperature 1.
    top_p: in (0, 1]; below 1, tokens come from the nucleus at that temperature (`nucleus`), and
      log-probs are those within it.
    end_V: bool over the padded vocabulary: further tokens that end a response, and stay in it.
    num_slots: rows decoded together; None for all.  It divides the rows.

  Returns:
    a `Generation`; rows are independent of one another, of their slots and of their padding beyond
    rounding.
  """
  num_rows, prompt_length = prompts.tokens_BP.shape
  num_chunks = 1 if num_slots is None else num_rows // num_slots
  num_groups = sharding.num_row_groups()
  if (num_rows // num_chunks) % num_groups:
    num_groups = 1  # rows that are not split
  num_ring = max(max_new_tokens - 1, 1)
  params = transformer.decoding_params(cfg, params)
  draw = functools.partial(_draw, temperature=temperature, top_p=top_p)

  def ends(token):
    return token == eot_id if end_V is None else (token == eot_id) | end_V[token]

  @jax.named_scope("rollout/prefill")
  def read(prompts, key_N, *, num_columns: int):
    logits_NV, cache = transformer.prefill(
      cfg, params, prompts.tokens_BP, prompts.mask_BP, num_slots=num_columns
    )
    return *draw(logits_NV, key_N, jnp.zeros(len(key_N), jnp.int32)), cache

  if num_chunks == 1:
    first_B, logprob_B, cache = read(prompts, key_B, num_columns=prompt_length + num_ring)
    waiting = None
  else:
    first_CN, logprob_CN, waiting = jax.lax.map(
      lambda part: read(*part, num_columns=prompt_length),
      sharding.split_microbatches((prompts, key_B), num_chunks),
    )
    first_B, logprob_B = sharding.merge_microbatches((first_CN, logprob_CN))
    cache = _with_ring(jax.tree.map(lambda leaf: leaf[0], waiting), prompt_length, num_ring)

  # The rows of a group are numbered as `split_microbatches` deals them out: the c-th of slot m is
  # number m C + c.
  to_groups = lambda x: x.reshape(num_groups, -1, *x.shape[1:])
  first_GQ, key_GQ = to_groups(first_B), to_groups(key_B)
  goes_on_GQ = ~ends(first_GQ) & (max_new_tokens > 1)
  num_queued = first_GQ.shape[1]
  num_each = num_queued // num_chunks
  episode_GM = jnp.broadcast_to(jnp.arange(num_each) * num_chunks, (num_groups, num_each))
  take = lambda x_GQ, index_GM: jnp.take_along_axis(x_GQ, index_GM, axis=1)
  slots = _Slots(
    cache=cache,
    episode_GM=episode_GM,
    active_GM=take(goes_on_GQ, episode_GM),
    token_GM=take(first_GQ, episode_GM),
    t_GM=jnp.ones_like(episode_GM),
    next_G=jnp.full(num_groups, num_each),
  )
  column = lambda x_GQ, fill: jnp.full((*x_GQ.shape, max_new_tokens), fill).at[..., 0].set(x_GQ)
  out = dict(
    tokens_GQR=column(first_GQ, cfg.pad_id),
    mask_GQR=column(jnp.ones(first_GQ.shape), 0.0),
    logprob_GQR=column(to_groups(logprob_B), 0.0),
  )

  def can_refill(slots):
    return jnp.any(~jnp.all(slots.active_GM, axis=1) & (slots.next_G < num_queued))

  @jax.named_scope("rollout/refill")
  def refill(slots):
    """One free slot of every group takes its group's next prompt."""
    slot_G = jnp.argmin(slots.active_GM, axis=1)
    free_G = ~jnp.all(slots.active_GM, axis=1) & (slots.next_G < num_queued)
    number_G = jnp.minimum(slots.next_G, num_queued - 1)
    chunk_G, place_G = number_G // num_each, number_G % num_each
    episode_G = place_G * num_chunks + chunk_G
    here_GM = free_G[:, None] & (jnp.arange(num_each) == slot_G[:, None])
    put = lambda x_GM, x_G: jnp.where(here_GM, x_G[:, None], x_GM)
    of_episode = lambda x_GQ: take(x_GQ, episode_G[:, None])[:, 0]
    return _Slots(
      cache=_move(slots.cache, waiting, slot_G, chunk_G, place_G, free_G),
      episode_GM=put(slots.episode_GM, episode_G),
      active_GM=put(slots.active_GM, of_episode(goes_on_GQ)),
      token_GM=put(slots.token_GM, of_episode(first_GQ)),
      t_GM=jnp.where(here_GM, 1, slots.t_GM),
      next_G=slots.next_G + free_G,
    )

  @jax.named_scope("rollout/decode")
  def step(carry):
    slots, out, number = carry
    if waiting is not None:
      slots = jax.lax.while_loop(can_refill, refill, slots)
    cache = slots.cache.replace(write_index=prompt_length + number % num_ring)
    logits_NV, cache = transformer.decode_step(cfg, params, cache, slots.token_GM.reshape(-1))
    key_GM = jax.vmap(lambda key_Q, row_M: key_Q[row_M])(key_GQ, slots.episode_GM)
    token_N, logprob_N = draw(logits_NV, key_GM.reshape(-1), slots.t_GM.reshape(-1))
    token_GM = token_N.reshape(slots.token_GM.shape)

    def write(whole_GQR, part_GM):
      # Finished slots write behind the end, where nothing is kept.
      t_GM = jnp.where(slots.active_GM, slots.t_GM, max_new_tokens)
      place = lambda whole, row, t, part: whole.at[row, t].set(part, mode="drop")
      return jax.vmap(place)(whole_GQR, slots.episode_GM, t_GM, part_GM.astype(whole_GQR.dtype))

    out = dict(
      tokens_GQR=write(out["tokens_GQR"], token_GM),
      mask_GQR=write(out["mask_GQR"], slots.active_GM),
      logprob_GQR=write(out["logprob_GQR"], logprob_N.reshape(token_GM.shape)),
    )
    slots = slots.replace(
      cache=cache,
      active_GM=slots.active_GM & ~ends(token_GM) & (slots.t_GM + 1 < max_new_tokens),
      token_GM=token_GM,
      t_GM=slots.t_GM + 1,
    )
    return slots, out, number + 1

  def going(carry):
    slots, _, _ = carry
    return jnp.any(slots.active_GM) | jnp.any(slots.next_G < num_queued)

  _, out, _ = jax.lax.while_loop(going, step, (slots, out, jnp.int32(0)))
  tokens_BR, mask_BR, logprob_BR = (
    out[name].reshape(num_rows, max_new_tokens)
    for name in ("tokens_GQR", "mask_GQR", "logprob_GQR")
  )
  last_B1 = jnp.sum(mask_BR.astype(jnp.int32), axis=1, keepdims=True) - 1
  return Generation(
    tokens_BR=tokens_BR,
    mask_BR=mask_BR,
    logprob_BR=logprob_BR,
    finished_B=ends(jnp.take_along_axis(tokens_BR, last_B1, axis=1)[:, 0]),
  )


def _with_ring(cache: transformer.Cache, num_filled: int, num_ring: int) -> transformer.Cache:
  """The cache with `num_ring` empty columns behind those of the prompts."""

  def widen(leaf):  # keys and values are [layers, N, K, S, d], masks and positions [N, S]
    if not leaf.ndim:
      return leaf
    widths = [(0, 0)] * leaf.ndim
    widths[-2 if leaf.ndim == 5 else -1] = (0, num_ring)
    return jnp.pad(leaf, widths)

  return jax.tree.map(widen, cache)


def _move(cache, waiting, slot_G, chunk_G, place_G, free_G):
  """Copies the cache of one waiting prompt of every group into a free slot of the group."""
  num_groups = len(slot_G)

  def move(leaf, source):
    """[..., N, ...] and [C, ..., N, ...]; the rows are the second axis of keys and values."""
    if not leaf.ndim:
      return leaf
    axis = 1 if leaf.ndim == 5 else 0
    columns = -2 if leaf.ndim == 5 else -1
    grouped = lambda x, at: x.reshape(*x.shape[:at], num_groups, -1, *x.shape[at + 1 :])
    whole, source = grouped(leaf, axis), grouped(source, axis + 1)

    def one_group(whole, source, slot, chunk, place, free):
      row = jax.lax.dynamic_index_in_dim(source, chunk, 0, keepdims=False)
      row = jax.lax.dynamic_index_in_dim(row, place, axis)
      if leaf.ndim == 2:  # what the ring held is forgotten
        row = jnp.pad(row, ((0, 0), (0, whole.shape[columns] - row.shape[columns])))
      start = [jnp.int32(0)] * whole.ndim
      start[axis] = slot
      old = jax.lax.dynamic_slice(whole, start, row.shape)
      return jax.lax.dynamic_update_slice(whole, jnp.where(free, row, old), start)

    moved = jax.vmap(one_group, in_axes=(axis, axis + 1, 0, 0, 0, 0), out_axes=axis)(
      whole, source, slot_G, chunk_G, place_G, free_G
    )
    return moved.reshape(leaf.shape)

  return jax.tree.map(move, cache, waiting)


def nucleus(logits_BV, top_p: float) -> Array:
  """Logits of the fewest most likely tokens that together have at least `top_p`; others are -inf.

  Source: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.  Of equally likely tokens at the
  border those with smaller ids are kept.

  The logit of the last token kept is found bit by bit, as the largest number such that the tokens
  at or above it have `top_p`: 32 sums over the vocabulary, which cost less than sorting it does.
  """
  prob_BV = jax.nn.softmax(logits_BV, axis=-1)
  number_BV = jnp.where(logits_BV == 0, 0.0, logits_BV.astype(jnp.float32))  # no -0
  bits_BV = jax.lax.bitcast_convert_type(number_BV, jnp.uint32)
  negative_BV = bits_BV >> 31 == 1
  # In the order of the numbers.
  order_BV = jnp.where(negative_BV, ~bits_BV, bits_BV | jnp.uint32(1 << 31))

  def narrow(step, border_B1):
    tried_B1 = border_B1 | (jnp.uint32(1 << 31) >> jnp.uint32(step))
    above_B1 = jnp.sum(jnp.where(order_BV >= tried_B1, prob_BV, 0.0), axis=-1, keepdims=True)
    return jnp.where(above_B1 >= top_p, tried_B1, border_B1)

  border_B1 = jax.lax.fori_loop(0, 32, narrow, jnp.zeros_like(order_BV[:, :1]))
  above_B1 = jnp.sum(jnp.where(order_BV > border_B1, prob_BV, 0.0), axis=-1, keepdims=True)
  tied_BV = jnp.where(order_BV == border_B1, prob_BV, 0.0)
  before_BV = above_B1 + jnp.cumsum(tied_BV, axis=-1) - tied_BV
  kept_BV = (order_BV > border_B1) | ((order_BV == border_B1) & (before_BV < top_p))
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def inverse_cdf(logits_BV, uniform_B2) -> tuple[Array, Array]:
  """Draws from softmax(logits) by inverting its cumulative distribution function in two levels.

  The first number picks a block of 128 tokens, the second a token in it.  A draw needs one pass of
  exponentials over the vocabulary and cumulative sums over V / 128 and 128 numbers, where adding
  Gumbel noise needs V random numbers and two logarithms of each.

  Args:
    logits_BV: -inf on tokens that are never drawn.
    uniform_B2: in [0, 1).

  Returns:
    (token_B, logprob_B), the log-prob of the token in the distribution.
  """
  num_rows, num_tokens = logits_BV.shape
  padding = -num_tokens % _BLOCK
  most_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
  weight_BV = jnp.pad(jnp.exp(logits_BV - most_B1), ((0, 0), (0, padding)))
  weight_BNb = weight_BV.reshape(num_rows, -1, _BLOCK)
  sum_BN = jnp.sum(weight_BNb, axis=-1)
  block_B1 = _invert(sum_BN, uniform_B2[:, :1])
  weight_Bb = jnp.take_along_axis(weight_BNb, block_B1[:, :, None], axis=1)[:, 0]
  token_B1 = block_B1 * _BLOCK + _invert(weight_Bb, uniform_B2[:, 1:])
  logit_B1 = jnp.take_along_axis(logits_BV, token_B1, axis=-1)
  logprob_B1 = logit_B1 - most_B1 - jnp.log(jnp.sum(sum_BN, axis=-1, keepdims=True))
  return token_B1[:, 0], logprob_B1[:, 0]


def _invert(weight_BN, uniform_B1) -> Array:
  """[B, 1]: the first place whose cumulative weight exceeds that share of the total."""
  total_BN = jnp.cumsum(weight_BN, axis=-1)
  within_BN = (total_BN > uniform_B1 * total_BN[:, -1:]) & (weight_BN > 0)
  first_B1 = jnp.argmax(within_BN, axis=-1, keepdims=True)
  # Rounding may leave none: then the last place with any weight.
  last_B1 = weight_BN.shape[1] - 1 - jnp.argmax(weight_BN[:, ::-1] > 0, axis=-1, keepdims=True)
  return jnp.where(jnp.any(within_BN, axis=-1, keepdims=True), first_B1, last_B1)


def _draw(logits_BV, key_B, t_B, *, temperature: float, top_p: float):
  """Token t of each row and its log-prob in the distribution that it is drawn from."""
  if temperature == 0.0:
    token_B = jnp.argmax(logits_BV, axis=-1)
    logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return token_B, jnp.take_along_axis(logprob_BV, token_B[:, None], axis=-1)[:, 0]
  logits_BV = logits_BV / temperature
  if top_p < 1.0:
    logits_BV = nucleus(logits_BV, top_p)
  uniform_B2 = jax.vmap(lambda key, t: jax.random.uniform(jax.random.fold_in(key, t), (2,)))(
    key_B, t_B
  )
  return inverse_cdf(logits_BV, uniform_B2)


def join(prompts: PromptBatch, generation: Generation, pad_id: int):
  """Prompt and response as right-padded rows of length T = P + R.

  Rows are rolled, not re-tokenised: the ids that were sampled are the ids that are scored.

  Returns:
    dict of tokens_BT, mask_BT, response_mask_BT, decode_logprob_BT.
  """
  num_padding_B = prompts.mask_BP.shape[1] - jnp.sum(prompts.mask_BP.astype(jnp.int32), axis=1)
  length = prompts.mask_BP.shape[1] + generation.mask_BR.shape[1]
  source_BT = jnp.arange(length)[None, :] + num_padding_B[:, None]
  inside_BT = source_BT < length

  def roll(prompt_part, response_part, fill):
    whole_BT = jnp.concatenate([prompt_part, response_part], axis=1)
    rolled_BT = jnp.take_along_axis(whole_BT, jnp.minimum(source_BT, length - 1), axis=1)
    return jnp.where(inside_BT, rolled_BT, fill)

  prompt_mask_BP = prompts.mask_BP.astype(jnp.float32)
  zeros_BP = jnp.zeros_like(prompt_mask_BP)
  mask_BT = roll(prompt_mask_BP, generation.mask_BR, 0.0)
  tokens_BT = roll(prompts.tokens_BP, generation.tokens_BR, pad_id)
  return dict(
    tokens_BT=jnp.where(mask_BT > 0, tokens_BT, pad_id),
    mask_BT=mask_BT,
    response_mask_BT=roll(zeros_BP, generation.mask_BR, 0.0),
    decode_logprob_BT=roll(zeros_BP, generation.logprob_BR, 0.0),
  )
