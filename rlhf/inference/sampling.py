"""Sampling: prefill, cached decode, and the roll from left-padded to right-padded rows."""

import jax
import jax.numpy as jnp

from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.types import Array, Generation, Params, PromptBatch

_BLOCK = 128  # tokens


def row_keys(key, first_row, num_rows: int) -> Array:
  """One key per global row, so that a mesh or a split of the batch draws the same tokens."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(first_row + jnp.arange(num_rows))


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
) -> Generation:
  """Samples one response per prompt until end-of-text or `max_new_tokens`.

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

  Returns:
    a `Generation`; rows are independent of one another and of their padding beyond rounding.
  """
  num_rows, prompt_length = prompts.tokens_BP.shape
  params = transformer.decoding_params(cfg, params)
  logits_BV, cache = transformer.prefill(
    cfg, params, prompts.tokens_BP, prompts.mask_BP, num_slots=prompt_length + max_new_tokens
  )
  empty_BR = jnp.zeros((num_rows, max_new_tokens))
  carry = dict(
    t=jnp.int32(0),
    logits_BV=logits_BV,
    cache=cache,
    tokens_BR=jnp.full((num_rows, max_new_tokens), cfg.pad_id, jnp.int32),
    mask_BR=empty_BR,
    logprob_BR=empty_BR,
    finished_B=jnp.zeros((num_rows,), bool),
  )

  def going(carry):
    return (carry["t"] < max_new_tokens) & ~jnp.all(carry["finished_B"])

  def step(carry):
    t, alive_B = carry["t"], ~carry["finished_B"]
    token_B, logprob_B = _draw(carry["logits_BV"], key_B, t, temperature, top_p)
    token_B = jnp.where(alive_B, token_B, cfg.pad_id)
    logits_BV, cache = transformer.decode_step(cfg, params, carry["cache"], token_B)
    ends_B = token_B == eot_id
    if end_V is not None:
      ends_B |= end_V[token_B]
    write = lambda whole, part_B: jax.lax.dynamic_update_slice(
      whole, part_B[:, None].astype(whole.dtype), (0, t)
    )
    return dict(
      t=t + 1,
      logits_BV=logits_BV,
      cache=cache,
      tokens_BR=write(carry["tokens_BR"], token_B),
      mask_BR=write(carry["mask_BR"], alive_B),
      logprob_BR=write(carry["logprob_BR"], jnp.where(alive_B, logprob_B, 0.0)),
      finished_B=carry["finished_B"] | (alive_B & ends_B),
    )

  carry = jax.lax.while_loop(going, step, carry)
  return Generation(
    tokens_BR=carry["tokens_BR"],
    mask_BR=carry["mask_BR"],
    logprob_BR=carry["logprob_BR"],
    finished_B=carry["finished_B"],
  )


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


def _draw(logits_BV, key_B, t, temperature: float, top_p: float):
  """One token per row and its log-prob in the distribution that it is drawn from."""
  if temperature == 0.0:
    token_B = jnp.argmax(logits_BV, axis=-1)
    logprob_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    return token_B, jnp.take_along_axis(logprob_BV, token_B[:, None], axis=-1)[:, 0]
  logits_BV = logits_BV / temperature
  if top_p < 1.0:
    logits_BV = nucleus(logits_BV, top_p)
  uniform_B2 = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), (2,)))(key_B)
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
