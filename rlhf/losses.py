"""Array maths of the three steps, and nothing else: no model, no config, no randomness.

Every function takes and returns float32.  Masks are 1 on the entries that count; what lies outside
a mask may hold anything, NaN included, and never reaches a result or a gradient.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf.types import Metric


def masked(x, mask):
  """`x` where the mask is set and 0 elsewhere; a NaN outside the mask does not survive it."""
  return jnp.where(mask > 0, x, 0.0)


def masked_metric(x, mask) -> Metric:
  """The mask-weighted sum of `x` with its weight, so that microbatches add exactly."""
  return Metric(total=jnp.sum(masked(x, mask) * mask), weight=jnp.sum(mask))


def masked_mean(x, mask):
  """Mean of `x` over the entries under `mask`; 0 where the mask is empty."""
  metric = masked_metric(x, mask)
  return metric.total / jnp.maximum(metric.weight, 1.0)


def whiten(x, mask, *, shift_mean: bool, epsilon: float = 1e-8):
  """Scales `x` to unit variance over the whole masked batch, and to mean 0 if asked.

      y = (x - mean) * rsqrt(var + epsilon)  [+ mean, where shift_mean is False]

  The variance is the population variance.  Source: Ziegler et al. 2019 (released code), which
  whitens advantages with and rewards without the shift.

  Args:
    x: float32, any shape.
    mask: same shape; 1 on entries that count.
    shift_mean: subtract the mean too.
  """
  chex.assert_equal_shape([x, mask])
  mean = masked_mean(x, mask)
  variance = masked_mean(jnp.square(masked(x, mask) - mean), mask)
  centred = (masked(x, mask) - mean) * jax.lax.rsqrt(variance + epsilon)
  return masked(centred if shift_mean else centred + mean, mask)


def gae(reward_BT, value_BT, mask_BT, *, gamma: float, lam: float):
  """Advantages and returns of each response by generalised advantage estimation.

      delta_t = r_t + gamma * V_{t+1} - V_t        A_t = delta_t + gamma * lam * A_{t+1}
      return_t = A_t + V_t

  The value after the last response token is 0: an episode ends at end-of-text or at the length
  limit alike.  Source: Schulman et al. 2016, arXiv:1506.02438, eq. 16.

  Args:
    reward_BT: float32, in reward-model units; only entries under the mask are read.
    value_BT: float32, value of the state *before* token t was chosen.
    mask_BT: 1 on response tokens, 0 elsewhere; one contiguous run per row.
    gamma: discount in [0, 1]; InstructGPT uses 1.
    lam: in [0, 1].

  Returns:
    (advantage_BT, return_BT), float32, 0 outside the mask.  Advantages are not whitened.

  Raises:
    AssertionError: the three arrays differ in shape, or rewards or values are not floating point.
  """
  chex.assert_equal_shape([reward_BT, value_BT, mask_BT])
  chex.assert_type([reward_BT, value_BT], jnp.float32)
  reward_BT, value_BT = masked(reward_BT, mask_BT), masked(value_BT, mask_BT)
  next_value_BT = jnp.pad(value_BT[:, 1:], ((0, 0), (0, 1)))
  delta_BT = reward_BT + gamma * next_value_BT - value_BT

  def backward(advantage_B, inputs):
    delta_B, mask_B = inputs
    advantage_B = mask_B * (delta_B + gamma * lam * advantage_B)
    return advantage_B, advantage_B

  _, advantage_TB = jax.lax.scan(
    backward,
    jnp.zeros_like(delta_BT[:, 0]),
    (delta_BT.T, mask_BT.astype(jnp.float32).T),
    reverse=True,
  )
  advantage_BT = advantage_TB.T
  return advantage_BT, masked(advantage_BT + value_BT, mask_BT)


def shaped_rewards(score_B, logprob_BT, ref_logprob_BT, response_mask_BT, kl_coef):
  """Per-token rewards: the KL penalty everywhere and the score on the last response token.

      r_t = -kl_coef * (log pi(y_t) - log pi_ref(y_t))  +  [t is the last token] * score

  Source: InstructGPT eq. 2 and appendix C.4; Ziegler et al. 2019 (released code).

  Returns:
    (reward_BT, kl_BT), float32, 0 outside the mask; kl_BT is the plain log ratio (the estimator
    "k1"), in nats.

  Raises:
    AssertionError: scores are not float32; an integer buffer would truncate fractional rewards.
  """
  chex.assert_type([score_B, logprob_BT, ref_logprob_BT], jnp.float32)
  chex.assert_equal_shape([logprob_BT, ref_logprob_BT, response_mask_BT])
  kl_BT = masked(logprob_BT - ref_logprob_BT, response_mask_BT)
  score_BT = last_token_mask(response_mask_BT) * score_B[:, None]
  return -kl_coef * kl_BT + score_BT, kl_BT


def last_token_mask(mask_BT):
  """1 on the last set entry of each row's mask; a row with no set entry stays 0."""
  later_BT = jnp.cumsum(mask_BT[:, ::-1], axis=1)[:, ::-1] - mask_BT
  return ((mask_BT > 0) & (later_BT == 0)).astype(jnp.float32)


def policy_loss(logprob_BT, old_logprob_BT, advantage_BT, mask_BT, *, clip: float):
  """The clipped surrogate of each token, to minimise.

      ratio_t = exp(log pi(y_t) - log pi_old(y_t))
      loss_t  = -min(ratio_t * A_t, clip(ratio_t, 1 - clip, 1 + clip) * A_t)

  Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.

  Returns:
    (loss_BT, aux): unreduced, 0 outside the mask; aux holds `ratio_BT` (1 outside the mask),
    `clipped_BT` (1 where the clip is active) and `approx_kl_BT` = 0.5 * (log ratio)^2.
  """
  chex.assert_equal_shape([logprob_BT, old_logprob_BT, advantage_BT, mask_BT])
  log_ratio_BT = masked(logprob_BT - old_logprob_BT, mask_BT)
  advantage_BT = masked(advantage_BT, mask_BT)
  ratio_BT = jnp.exp(log_ratio_BT)
  plain_BT = ratio_BT * advantage_BT
  clipped_BT = jnp.clip(ratio_BT, 1.0 - clip, 1.0 + clip) * advantage_BT
  aux = dict(
    ratio_BT=ratio_BT,
    clipped_BT=(clipped_BT < plain_BT).astype(jnp.float32),
    approx_kl_BT=0.5 * jnp.square(log_ratio_BT),
  )
  return -jnp.minimum(plain_BT, clipped_BT), aux


def value_loss(value_BT, old_value_BT, return_BT, mask_BT, *, clip: float | None):
  """Squared error of the value function, clipped around the old values unless `clip` is None.

      loss_t = 0.5 * max((V_t - R_t)^2, (clip(V_t, V_old - clip, V_old + clip) - R_t)^2)

  Source: Ziegler et al. 2019 (released code).

  Returns:
    (loss_BT, clipped_BT), unreduced, 0 outside the mask.
  """
  chex.assert_equal_shape([value_BT, old_value_BT, return_BT, mask_BT])
  value_BT, old_value_BT, return_BT = (
    masked(x, mask_BT) for x in (value_BT, old_value_BT, return_BT)
  )
  plain_BT = jnp.square(value_BT - return_BT)
  if clip is None:
    return 0.5 * plain_BT, jnp.zeros_like(plain_BT)
  near_BT = old_value_BT + jnp.clip(value_BT - old_value_BT, -clip, clip)
  near_BT = jnp.square(near_BT - return_BT)
  return 0.5 * jnp.maximum(plain_BT, near_BT), (near_BT > plain_BT).astype(jnp.float32)


def comparison_loss(score_BK, rank_BK, valid_BK):
  """The reward-model loss on rankings of K completions.

      loss = mean over prompts of  1/C(K,2) * sum over untied pairs of -log sigmoid(r_w - r_l)

  K counts the completions that were shown, ties included; a tied pair adds nothing to the sum.
  A prompt without an untied pair has weight 0 in the mean.  Source: InstructGPT eq. 1 and
  section 3.5 (all comparisons of a prompt are one batch element), C.2 (ties are dropped).

  Args:
    score_BK: float32 rewards; entries that are not valid may hold anything.
    rank_BK: int, 1 is best; equal ranks are ties.
    valid_BK: 1 where a completion was shown.

  Returns:
    (loss, aux): loss is a `Metric` (sum over prompts, number of prompts with a pair); aux holds
    `accuracy` and `log_loss` as `Metric`s over all untied pairs, and `margin`, the mean reward
    difference between winner and loser.
  """
  chex.assert_equal_shape([score_BK, rank_BK, valid_BK])
  chex.assert_type(score_BK, jnp.float32)
  valid_BK = valid_BK.astype(jnp.float32)
  score_BK = masked(score_BK, valid_BK)
  # [B, K, K]: entry (i, j) is the pair in which i was ranked above j.
  wins_BKK = (rank_BK[:, :, None] < rank_BK[:, None, :]).astype(jnp.float32)
  wins_BKK = wins_BKK * valid_BK[:, :, None] * valid_BK[:, None, :]
  margin_BKK = score_BK[:, :, None] - score_BK[:, None, :]
  nll_BKK = masked(-jax.nn.log_sigmoid(margin_BKK), wins_BKK)

  num_shown_B = jnp.sum(valid_BK, axis=1)
  num_all_pairs_B = num_shown_B * (num_shown_B - 1.0) / 2.0
  has_pair_B = (jnp.sum(wins_BKK, axis=(1, 2)) > 0).astype(jnp.float32)
  loss_B = jnp.sum(nll_BKK, axis=(1, 2)) / jnp.maximum(num_all_pairs_B, 1.0)
  loss = Metric(total=jnp.sum(loss_B * has_pair_B), weight=jnp.sum(has_pair_B))
  # A margin of exactly 0 is a coin toss, so a constant model scores 50 %.
  correct_BKK = (margin_BKK > 0) + 0.5 * (margin_BKK == 0)
  aux = dict(
    accuracy=masked_metric(correct_BKK, wins_BKK),
    log_loss=masked_metric(nll_BKK, wins_BKK),
    margin=masked_metric(margin_BKK, wins_BKK),
  )
  return loss, aux


def next_kl_coef(kl_coef, observed_kl, *, target: float, horizon: float, num_episodes: int):
  """The proportional controller of the KL coefficient.

      error = clip(observed_kl / target - 1, -0.2, 0.2)
      kl_coef <- kl_coef * (1 + error * num_episodes / horizon)

  Source: Ziegler et al. 2019, section 2.2, and its code.

  Args:
    observed_kl: mean over episodes of the KL summed over each response, in nats.
    target: nats per response.
    horizon: in episodes.
    num_episodes: episodes since the last call.
  """
  error = jnp.clip(observed_kl / target - 1.0, -0.2, 0.2)
  return kl_coef * (1.0 + error * num_episodes / horizon)
