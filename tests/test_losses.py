"""The array maths against numbers by hand and plain float64 loops."""

import itertools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf import losses

# Compiled, because one program for each function is made faster than one for each operation.
whiten = helpers.quick_jit(losses.whiten, static_argnames="shift_mean")
gae = helpers.quick_jit(losses.gae)
shaped_rewards = helpers.quick_jit(losses.shaped_rewards)
policy_loss = helpers.quick_jit(losses.policy_loss)
value_loss = helpers.quick_jit(losses.value_loss, static_argnames="clip")
comparison_loss = helpers.quick_jit(losses.comparison_loss)

NAN = np.float32(np.nan)
rng = np.random.default_rng(0)


def f32(x) -> np.ndarray:
  return np.asarray(x, np.float32)


def runs_mask(starts, ends, length: int) -> np.ndarray:
  """1 on [start, end) of each row."""
  slot = np.arange(length)
  return f32([(slot >= s) & (slot < e) for s, e in zip(starts, ends, strict=True)])


# ----------------------------------------------------------------------------- masks and means


def test_masked_means_pass_over_what_lies_outside():
  x, mask = f32([[1, NAN, 4], [NAN, NAN, 10]]), f32([[1, 0, 1], [0, 0, 1]])
  np.testing.assert_array_equal(losses.masked(x, mask), [[1, 0, 4], [0, 0, 10]])
  metric = losses.masked_metric(x, mask)
  assert (float(metric.total), float(metric.weight)) == (15.0, 3.0)
  assert float(losses.masked_mean(x, mask)) == 5.0
  assert float(losses.masked_mean(x, np.zeros_like(mask))) == 0.0
  grad = jax.grad(lambda x: losses.masked_mean(x, mask))(x)
  np.testing.assert_allclose(grad, mask / 3)


def test_masks_weigh_where_they_are_fractions():
  metric = losses.masked_metric(f32([2, 6]), f32([0.5, 1]))
  assert (float(metric.total), float(metric.weight)) == (7.0, 1.5)


def test_metrics_of_unequal_parts_add_up_to_that_of_the_whole():
  x, mask = f32([[1, 2, 3], [9, 9, 9]]), f32([[1, 1, 1], [1, 0, 0]])
  whole, parts = losses.masked_metric(x, mask), [losses.masked_metric(*row) for row in zip(x, mask)]
  total = parts[0] + parts[1]
  assert float(total.total / total.weight) == float(whole.total / whole.weight) == 15 / 4
  assert np.mean([float(p.total / p.weight) for p in parts]) == 5.5  # what a mean of means says


def test_last_token_mask_at_first_middle_last_and_nowhere():
  mask = f32([[0, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
  np.testing.assert_array_equal(
    losses.last_token_mask(mask), [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
  )


# ----------------------------------------------------------------------------- whitening


def test_whiten_by_hand():
  # 1, 3, 5 and 7: mean 4, population variance 5 (the sample variance would be 20/3).
  x, mask = f32([[1, NAN, 3], [5, 7, NAN]]), f32([[1, 0, 1], [1, 1, 0]])
  by_hand = f32([[-3, 0, -1], [1, 3, 0]]) / math.sqrt(5)
  np.testing.assert_allclose(whiten(x, mask, shift_mean=True), by_hand, rtol=1e-5)
  np.testing.assert_allclose(whiten(x, mask, shift_mean=False), by_hand + 4 * mask, rtol=1e-5)


def test_whitening_under_a_mask_equals_whitening_what_the_mask_keeps():
  x = f32(rng.normal(3, 2, (5, 7)))
  mask = runs_mask([0, 1, 2, 6, 3], [7, 4, 2, 7, 6], 7)
  for shift_mean in (True, False):
    sliced = x[mask > 0]
    expected = whiten(sliced, np.ones_like(sliced), shift_mean=shift_mean)
    actual = whiten(np.where(mask > 0, x, NAN), mask, shift_mean=shift_mean)
    np.testing.assert_allclose(np.asarray(actual)[mask > 0], expected, rtol=1e-5)
    assert not np.asarray(actual)[mask == 0].any()


def test_whitened_advantages_forget_a_shift_and_a_scale():
  x, mask = f32(rng.normal(size=(4, 6))), runs_mask([0, 0, 2, 1], [6, 3, 5, 6], 6)
  whitened = whiten(x, mask, shift_mean=True)
  for other in (x + 100, 7 * x):
    np.testing.assert_allclose(whiten(other, mask, shift_mean=True), whitened, atol=1e-4)
  assert np.mean(np.asarray(whitened)[mask > 0]) == pytest.approx(0, abs=1e-6)
  assert np.var(np.asarray(whitened)[mask > 0]) == pytest.approx(1, abs=1e-5)
  # Rewards keep their mean: it is what tells a good batch from a bad one.
  kept = np.asarray(whiten(x + 100, mask, shift_mean=False))[mask > 0]
  assert kept.mean() == pytest.approx((x + 100)[mask > 0].mean(), rel=1e-4)


def test_whitening_a_constant_is_finite():
  same = np.full((2, 3), 5, np.float32)
  np.testing.assert_allclose(whiten(same, np.ones_like(same), shift_mean=True), 0)


# ----------------------------------------------------------------------------- advantages


@pytest.mark.parametrize("gamma,lam", [(0.9, 0.8), (1.0, 0.95), (1.0, 1.0), (0.5, 0.0)])
def test_gae_against_a_plain_loop_with_nan_outside_the_mask(gamma: float, lam: float):
  # Responses at the start, in the middle and at the end of their rows, of one token, and none.
  mask = runs_mask([0, 2, 5, 3, 0, 1], [3, 6, 8, 4, 0, 8], 8)
  reward, value = (np.where(mask > 0, f32(rng.normal(size=mask.shape)), NAN) for _ in range(2))
  advantage, returns = gae(reward, value, mask, gamma=gamma, lam=lam)
  expected_advantage, expected_returns = helpers.gae_loop(reward, value, mask, gamma, lam)
  np.testing.assert_allclose(advantage, expected_advantage, atol=2e-6)
  np.testing.assert_allclose(returns, expected_returns, atol=2e-6)
  assert advantage.dtype == returns.dtype == jnp.float32


def test_gae_by_hand():
  # Values behind the response are numbers too, and must not bootstrap it.
  reward, value = f32([[9, 0, 1, 9]]), f32([[9, 2, 4, 9]])
  advantage, returns = gae(reward, value, f32([[0, 1, 1, 0]]), gamma=0.5, lam=0.5)
  # Last token: 1 - 4 = -3.  Before it: 0 + 0.5 * 4 - 2 + 0.25 * -3 = -0.75.
  np.testing.assert_allclose(advantage, [[0, -0.75, -3, 0]])
  np.testing.assert_allclose(returns, [[0, 1.25, 1, 0]])


def test_an_undiscounted_return_is_the_sum_of_rewards_to_come():
  mask = runs_mask([1, 0], [5, 6], 6)
  reward, value = f32(rng.normal(size=mask.shape)), f32(rng.normal(size=mask.shape))
  _, returns = gae(reward, value, mask, gamma=1.0, lam=1.0)
  to_come = np.cumsum((reward * mask)[:, ::-1], axis=1)[:, ::-1] * mask
  np.testing.assert_allclose(returns, to_come, atol=1e-5)


def test_integer_rewards_raise_where_they_would_be_truncated():
  mask = np.ones((1, 2), np.float32)
  with pytest.raises(AssertionError):
    gae(np.ones((1, 2), np.int32), mask, mask, gamma=1.0, lam=1.0)
  with pytest.raises(AssertionError):
    gae(mask, np.ones((1, 2), np.int32), mask, gamma=1.0, lam=1.0)
  with pytest.raises(AssertionError):
    shaped_rewards(np.ones(1, np.int32), mask, mask, mask, 0.1)
  with pytest.raises(AssertionError):
    gae(mask, mask, mask[:, :1], gamma=1.0, lam=1.0)


# ----------------------------------------------------------------------------- rewards


def test_rewards_with_the_end_at_the_first_middle_and_last_position_and_missing():
  # Two prompt tokens; end-of-text after 1, 2 and 3 response tokens; the fourth row never ends.
  mask = runs_mask([2, 2, 2, 2], [3, 4, 5, 5], 5)
  inside = lambda x: np.where(mask > 0, f32(x), NAN)
  logprob, ref = inside(np.full((4, 5), -1.0)), inside(np.full((4, 5), -1.5))
  score = f32([0.7, -0.3, 1.9, 0.25])  # fractions: an integer buffer would hold 0, 0, 1, 0
  reward, kl = shaped_rewards(score, logprob, ref, mask, 0.2)
  # Each response token costs 0.2 * (-1 - -1.5) = 0.1; the score comes on the last of them.
  expected = [
    [0, 0, 0.7 - 0.1, 0, 0],
    [0, 0, -0.1, -0.3 - 0.1, 0],
    [0, 0, -0.1, -0.1, 1.9 - 0.1],
    [0, 0, -0.1, -0.1, 0.25 - 0.1],
  ]
  np.testing.assert_allclose(reward, expected, atol=1e-6)
  np.testing.assert_allclose(kl, 0.5 * mask)
  assert reward.dtype == jnp.float32


def test_the_kl_penalty_pulls_a_policy_towards_its_reference():
  """Two tokens: the expected PPO gradient at ratio 1 is the gradient of beta * KL(pi || ref)."""
  logits, ref_logits, beta = jnp.asarray([0.3, -0.4]), jnp.asarray([-1.0, 1.2]), 0.7
  ref = jax.nn.log_softmax(ref_logits)
  one = np.ones((2, 1), np.float32)  # one episode for each token, of one token each

  def ppo(logits):
    logprob = jax.nn.log_softmax(logits)[:, None]
    old = jax.lax.stop_gradient(logprob)
    reward, _ = losses.shaped_rewards(f32([0, 0]), old, ref[:, None], one, beta)
    advantage, _ = losses.gae(reward, 0 * one, one, gamma=1.0, lam=1.0)
    loss, _ = losses.policy_loss(logprob, old, advantage, one, clip=0.2)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(old)) * loss)  # expectation over the two tokens

  p = np.exp(0.3) / (np.exp(0.3) + np.exp(-0.4))
  q = np.exp(-1.0) / (np.exp(-1.0) + np.exp(1.2))
  # d KL / d logit_0 = p (1-p) [log(p/q) - log((1-p)/(1-q))], and minus that for the other.
  slope = beta * p * (1 - p) * (np.log(p / q) - np.log((1 - p) / (1 - q)))
  gradient = jax.grad(ppo)(logits)
  np.testing.assert_allclose(gradient, [slope, -slope], rtol=1e-5)
  assert slope > 0  # a descent step lowers the logit that the reference finds less likely


# ----------------------------------------------------------------------------- policy loss


def test_policy_loss_by_hand_on_both_sides_of_the_clip():
  ratio = f32([[0.5, 0.9, 1.0, 1.1, 2.0], [0.5, 0.9, 1.0, 1.1, 2.0]])
  advantage = f32([[3, 3, 3, 3, 3], [-2, -2, -2, -2, -2]])
  mask = np.ones_like(ratio)
  old = f32(rng.normal(size=ratio.shape))

  def total(logprob):
    return jnp.sum(losses.policy_loss(logprob, old, advantage, mask, clip=0.2)[0])

  loss, aux = policy_loss(old + np.log(ratio), old, advantage, mask, clip=0.2)
  # With a positive advantage the gain stops at ratio 1.2; with a negative one, at 0.8.
  np.testing.assert_allclose(loss, [[-1.5, -2.7, -3, -3.3, -3.6], [1.6, 1.8, 2, 2.2, 4]], rtol=1e-5)
  np.testing.assert_array_equal(aux["clipped_BT"], [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]])
  np.testing.assert_allclose(aux["ratio_BT"], ratio, rtol=1e-5)
  np.testing.assert_allclose(aux["approx_kl_BT"], 0.5 * np.log(ratio) ** 2, atol=1e-6)
  # d loss / d logprob = -ratio * advantage, and 0 where the clip holds.
  expected = -ratio * advantage
  expected[0, 4] = expected[1, 0] = 0
  np.testing.assert_allclose(jax.grad(total)(old + np.log(ratio)), expected, rtol=1e-5)


def test_policy_loss_reads_nothing_outside_the_mask():
  mask = f32([[0, 1, 0]])
  x = f32([[NAN, -1, NAN]])
  loss, aux = policy_loss(x, x, x, mask, clip=0.2)
  np.testing.assert_allclose(loss, [[0, 1, 0]])
  np.testing.assert_allclose(aux["ratio_BT"], 1)
  assert not np.asarray(aux["clipped_BT"]).any() and not np.asarray(aux["approx_kl_BT"]).any()
  gradient = jax.grad(lambda y: jnp.sum(losses.policy_loss(y, x, x, mask, clip=0.2)[0]))(x)
  np.testing.assert_allclose(gradient, [[0, 1, 0]])


# ----------------------------------------------------------------------------- value loss


def test_value_loss_by_hand():
  old, returns = f32([[1, 1, 1, 1]]), f32([[2, 2, 0, 1.05]])
  value = f32([[1.1, 1.5, 1.5, 1.5]])
  mask = np.ones_like(value)
  loss, clipped = value_loss(value, old, returns, mask, clip=0.2)
  # 1.1 is inside the range; 1.5 is read as 1.2, and the worse of the two errors counts.
  by_hand = 0.5 * np.square(f32([[0.9, 0.8, 1.5, 0.45]]))
  np.testing.assert_allclose(loss, by_hand, rtol=1e-5)
  np.testing.assert_array_equal(clipped, [[0, 1, 0, 0]])
  gradient = jax.grad(lambda v: jnp.sum(losses.value_loss(v, old, returns, mask, clip=0.2)[0]))(
    value
  )
  np.testing.assert_allclose(gradient, [[-0.9, 0, 1.5, 0.45]], rtol=1e-5)
  below, _ = value_loss(f32([[0.5]]), f32([[1]]), f32([[0]]), f32([[1]]), clip=0.2)
  np.testing.assert_allclose(below, [[0.5 * 0.8**2]], rtol=1e-5)


def test_value_loss_without_a_clip_and_outside_the_mask():
  mask = f32([[1, 0]])
  value, old, returns = f32([[1.5, NAN]]), f32([[1, NAN]]), f32([[2, NAN]])
  for clip, expected in ((None, 0.125), (0.2, 0.32)):
    total = lambda v: jnp.sum(losses.value_loss(v, old, returns, mask, clip=clip)[0])
    loss, clipped = value_loss(value, old, returns, mask, clip=clip)
    np.testing.assert_allclose(loss, [[expected, 0]], rtol=1e-5)
    np.testing.assert_array_equal(clipped, [[clip is not None, 0]])
    assert np.isfinite(jax.grad(total)(value)).all()


# ----------------------------------------------------------------------------- comparisons


def comparison_enumerated(score, rank, valid):
  """(loss summed over prompts, prompts with a pair, log losses and margins of all pairs)."""
  total, num_prompts, nll, margins = 0.0, 0, [], []
  for scores, ranks, valids in zip(score, rank, valid, strict=True):
    shown = [k for k in range(len(valids)) if valids[k]]
    pairs = [(i, j) for i, j in itertools.permutations(shown, 2) if ranks[i] < ranks[j]]
    if not pairs:
      continue
    of_prompt = [math.log1p(math.exp(-float(scores[i] - scores[j]))) for i, j in pairs]
    margins += [float(scores[i] - scores[j]) for i, j in pairs]
    nll += of_prompt
    total += sum(of_prompt) / math.comb(len(shown), 2)
    num_prompts += 1
  return total, num_prompts, nll, margins


def test_comparison_loss_against_enumeration_with_ties_and_unequal_k():
  num_prompts, num_slots = 40, 6
  score = f32(rng.normal(size=(num_prompts, num_slots)))
  rank = rng.integers(1, 4, size=score.shape)
  valid = f32(rng.random(score.shape) < 0.7)  # holes in the middle too, and prompts with 0 or 1
  valid[0], rank[0] = 1, 2  # all tied
  valid[1], valid[2] = 0, [0, 0, 1, 0, 0, 0]
  score = np.where(valid > 0, score, NAN)
  total, num_with_pair, nll, margins = comparison_enumerated(score, rank, valid)
  loss, aux = comparison_loss(score, rank, valid)
  assert num_with_pair < num_prompts
  assert float(loss.total) == pytest.approx(total, rel=1e-5)
  assert float(loss.weight) == num_with_pair
  for name, of_pair in (
    ("log_loss", nll),
    ("margin", margins),
    ("accuracy", [m > 0 for m in margins]),
  ):
    assert float(aux[name].total) == pytest.approx(sum(of_pair), rel=1e-4), name
    assert float(aux[name].weight) == len(nll), name


def test_the_loss_is_divided_by_the_pairs_of_the_completions_shown():
  # Ranks 1, 1, 2: two untied pairs out of C(3, 2) = 3; at equal scores each costs log 2.
  loss, _ = comparison_loss(f32([[0, 0, 0, 8]]), np.asarray([[1, 1, 2, 9]]), f32([[1, 1, 1, 0]]))
  assert float(loss.total) == pytest.approx(2 * math.log(2) / 3)
  # A plain pair is K = 2, whichever of the two is the better.
  for rank, margin in (([1, 2], 1.5), ([2, 1], -1.5)):
    loss, aux = comparison_loss(f32([[2.0, 0.5]]), np.asarray([rank]), f32([[1, 1]]))
    assert float(loss.total) == pytest.approx(math.log1p(math.exp(-margin)))
    assert float(aux["margin"].total) == pytest.approx(margin)
    assert float(aux["accuracy"].total) == (margin > 0)


def test_comparison_gradient_by_hand_and_none_through_unused_slots():
  score = f32([[0.5, -0.5, NAN], [1, 1, 1]])
  rank, valid = np.asarray([[2, 1, 1], [1, 1, 1]]), f32([[1, 1, 0], [1, 1, 1]])
  gradient = jax.grad(lambda s: losses.comparison_loss(s, rank, valid)[0].total)(score)
  wrong = 1 / (1 + math.exp(-1.0))  # sigmoid of minus the winner's margin of -1
  np.testing.assert_allclose(gradient, [[wrong, -wrong, 0], [0, 0, 0]], rtol=1e-5)


def test_equal_scores_are_a_coin_toss():
  _, aux = comparison_loss(f32([[3, 3, 3]]), np.asarray([[1, 2, 3]]), f32([[1, 1, 1]]))
  assert float(aux["accuracy"].total) == 1.5 and float(aux["accuracy"].weight) == 3


def test_scores_of_another_type_raise():
  with pytest.raises(AssertionError):
    comparison_loss(np.zeros((1, 2), np.float16), np.asarray([[1, 2]]), f32([[1, 1]]))


# ----------------------------------------------------------------------------- KL coefficient


@pytest.mark.parametrize(
  "observed,error",
  [
    (6.0, 0.0),
    (6.6, 0.1),
    (5.4, -0.1),  # proportional
    (60.0, 0.2),
    (0.0, -0.2),
  ],
)  # and clipped
def test_the_kl_coefficient_moves_in_proportion_and_within_limits(observed: float, error: float):
  new = losses.next_kl_coef(0.15, observed, target=6.0, horizon=10_000, num_episodes=512)
  assert float(new) == pytest.approx(0.15 * (1 + error * 512 / 10_000), rel=1e-5)
