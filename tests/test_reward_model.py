"""The reward model: where scores are read, the loss of a batch, the offset, one golden step."""

import functools
import itertools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EOT, PAD

from rlhf import optim, reward_model
from rlhf.data.prepare import ComparisonRows
from rlhf.model import transformer
from rlhf.reward_model import RewardConfig
from rlhf.types import ComparisonBatch

CFG = helpers.model_config()
# 8 prompts, K = 2..5 of 5 slots, with ties; the last has no untied pair.
BATCH = helpers.make_comparisons(8, 5, 12, 0)


def reward_config(**changes) -> RewardConfig:
  fields = dict(batch_size=8, microbatch_size=4, num_epochs=1, pairs=False)
  return RewardConfig(**(fields | changes))


@functools.cache
def params():
  return helpers.make_params(CFG, 0, head=True)


@functools.cache
def scores():
  return helpers.quick_jit(functools.partial(transformer.scores, CFG))


@functools.cache
def gradient_of(p: RewardConfig):
  tx = helpers.record_gradient()

  def run(params, batch):
    state, metrics = reward_model.reward_update(
      CFG, p, tx, optim.init_train_state(tx, params), batch
    )
    return state.opt_state, metrics

  return helpers.quick_jit(run)


def score_batch():
  """Of all completions of the batch."""
  score = helpers.quick_jit(functools.partial(reward_model.score_completions, CFG))
  return jax.device_get(score(params(), BATCH))


def score_alone(ids) -> float:
  """Of one row, padded to a length that no batch of these tests has."""
  return float(scores()(params(), *helpers.right_padded([ids], 13))[0])


# ----------------------------------------------------------------------------- scores


def test_the_score_is_read_at_the_last_real_token():
  """End-of-text may be the first response token, a later one or none; the prompt may hold one."""
  prompt = [5, EOT, 9]
  rows = [[*prompt, EOT], [*prompt, 4, EOT], [*prompt, 4, 6, 8], [*prompt, 4, EOT, 8, 11, 6, 2, 1]]
  tokens_BT, mask_BT = helpers.right_padded(rows, 10)

  def read(tokens_BT, mask_BT):
    hidden_BTD = transformer.forward(CFG, params(), tokens_BT, mask_BT)
    return transformer.scores(CFG, params(), tokens_BT, mask_BT), hidden_BTD

  score_B, hidden_BTD = jax.device_get(helpers.quick_jit(read)(tokens_BT, mask_BT))
  head = jax.device_get(params()["head"])
  for row, ids in enumerate(rows):
    expected = hidden_BTD[row, len(ids) - 1] @ head["kernel"][:, 0] + head["bias"][0]
    assert score_B[row] == pytest.approx(expected, abs=1e-5)
    assert score_B[row] == pytest.approx(score_alone(ids), abs=1e-5)
  assert len(set(np.round(score_B, 4))) == 4


def test_all_completions_of_a_prompt_are_scored_in_their_slots():
  score_BK = score_batch()
  assert score_BK.shape == (8, 5)
  for b, k in zip(*np.nonzero(BATCH.valid_BK)):
    ids = BATCH.tokens_BKT[b, k, : int(BATCH.mask_BKT[b, k].sum())]
    assert float(score_BK[b, k]) == pytest.approx(score_alone(ids), abs=1e-5)


def test_rows_of_any_length_are_scored_one_by_one():
  ids = [helpers.random_ids(np.random.default_rng(n), 1 + n) for n in range(7)]
  for batch_size in (3, 10):  # 3 leaves a batch of one, 10 is more than there are
    score_N = reward_model.score_rows(CFG, params(), ids, length=10, batch_size=batch_size)
    np.testing.assert_allclose(score_N, [score_alone(row) for row in ids], atol=1e-5)


# ----------------------------------------------------------------------------- loss


def enumerated(score_BK) -> float:
  """Eq. 1 over the batch: the mean over prompts with a pair."""
  of_prompts = []
  for b in range(len(BATCH.rank_BK)):
    shown = [k for k in range(BATCH.valid_BK.shape[1]) if BATCH.valid_BK[b, k]]
    pairs = [
      (i, j)
      for i, j in itertools.permutations(shown, 2)
      if BATCH.rank_BK[b, i] < BATCH.rank_BK[b, j]
    ]
    if pairs:
      of_prompts.append(
        sum(math.log1p(math.exp(score_BK[b, j] - score_BK[b, i])) for i, j in pairs)
        / math.comb(len(shown), 2)
      )
  return float(np.mean(of_prompts))


def test_the_loss_and_the_gradient_against_enumeration():
  # (prompt, winner, loser, 1 / C(K, 2)) of every untied pair.
  pairs = [
    (b, i, j, 1 / math.comb(int(BATCH.valid_BK[b].sum()), 2))
    for b in range(8)
    for i, j in itertools.permutations(np.flatnonzero(BATCH.valid_BK[b]), 2)
    if BATCH.rank_BK[b, i] < BATCH.rank_BK[b, j]
  ]
  prompt, winner, loser, weight = (np.asarray(column) for column in zip(*pairs))
  num_prompts = len(set(prompt))

  def by_hand(params):
    score_BK = transformer.scores(
      CFG, params, BATCH.tokens_BKT.reshape(40, 12), BATCH.mask_BKT.reshape(40, 12)
    ).reshape(8, 5)
    return (
      jnp.sum(weight * jax.nn.softplus(score_BK[prompt, loser] - score_BK[prompt, winner]))
      / num_prompts
    )

  expected = helpers.quick_jit(jax.grad(by_hand))(params())
  gradient, metrics = gradient_of(reward_config())(params(), BATCH)
  helpers.assert_leaves_close(gradient, expected)
  score_BK = score_batch()
  assert num_prompts == 7
  assert float(metrics["train/loss"].total / 7) == pytest.approx(enumerated(score_BK), rel=1e-5)
  assert float(metrics["train/loss"].weight) == 7
  assert float(reward_model.num_prompts_with_pair(BATCH)) == 7
  reward = metrics["train/reward"]
  assert float(reward.total / reward.weight) == pytest.approx(
    score_BK[BATCH.valid_BK > 0].mean(), rel=1e-5
  )


def test_any_microbatch_size_gives_the_same_gradient():
  """Prompts have 2 to 5 completions; one of them has no pair and would upset a mean of means."""
  whole, whole_metrics = gradient_of(reward_config(microbatch_size=8))(params(), BATCH)
  for microbatch_size in (1, 4):
    gradient, metrics = gradient_of(reward_config(microbatch_size=microbatch_size))(params(), BATCH)
    helpers.assert_leaves_close(gradient, whole)
    for name in ("train/loss", "train/accuracy", "train/margin", "train/log_loss"):
      assert float(metrics[name].total) == pytest.approx(
        float(whole_metrics[name].total), rel=1e-5, abs=1e-6
      ), name
      assert float(metrics[name].weight) == float(whole_metrics[name].weight), name


def test_a_batch_without_any_pair_moves_nothing():
  tied = BATCH.replace(rank_BK=np.ones_like(BATCH.rank_BK))
  gradient, metrics = gradient_of(reward_config())(params(), tied)
  assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
  assert float(metrics["train/loss"].weight) == 0


def test_unused_slots_give_no_gradient_and_nothing_is_random():
  other = BATCH.replace(
    tokens_BKT=np.where(BATCH.valid_BK[..., None] > 0, BATCH.tokens_BKT, 11).astype(np.int32),
    mask_BKT=np.where(BATCH.valid_BK[..., None] > 0, BATCH.mask_BKT, 1).astype(np.float32),
    rank_BK=np.where(BATCH.valid_BK > 0, BATCH.rank_BK, -5).astype(np.int32),
  )
  helpers.assert_leaves_close(
    gradient_of(reward_config())(params(), other)[0],
    gradient_of(reward_config())(params(), BATCH)[0],
  )
  assert "random_bits" not in helpers.primitives(
    jax.make_jaxpr(gradient_of(reward_config()).__wrapped__)(params(), BATCH)
  )


# ----------------------------------------------------------------------------- validation, offset


def as_rows() -> ComparisonRows:
  num_shown_B = BATCH.valid_BK.sum(axis=1).astype(int)
  return ComparisonRows(
    ids=[
      [BATCH.tokens_BKT[b, k, : int(BATCH.mask_BKT[b, k].sum())] for k in range(num)]
      for b, num in enumerate(num_shown_B)
    ],
    ranks=[BATCH.rank_BK[b, :num] for b, num in enumerate(num_shown_B)],
    records=[{}] * 8,
    num_slots=5,
    length=12,
    pad_id=PAD,
  )


@pytest.mark.parametrize("batch_size", [3, 8])
def test_validation_counts_every_prompt_once(batch_size: int):
  score_NK, rank_NK, valid_NK = reward_model.score_comparisons(
    CFG, params(), as_rows(), batch_size=batch_size
  )
  assert score_NK.shape == rank_NK.shape == valid_NK.shape == (8, 5)
  np.testing.assert_array_equal(rank_NK, BATCH.rank_BK * BATCH.valid_BK)
  np.testing.assert_array_equal(valid_NK, BATCH.valid_BK)
  numbers = reward_model.validation_metrics(score_NK, rank_NK, valid_NK)
  assert numbers["validation/loss"] == pytest.approx(enumerated(score_NK), rel=1e-5)
  right = [
    score_NK[b, i] > score_NK[b, j]
    for b in range(8)
    for i, j in itertools.permutations(range(5), 2)
    if valid_NK[b, i] and valid_NK[b, j] and rank_NK[b, i] < rank_NK[b, j]
  ]
  assert numbers["validation/accuracy"] == pytest.approx(np.mean(right))


def test_the_offset_makes_demonstrations_score_0_and_changes_no_difference():
  ids = [helpers.random_ids(np.random.default_rng(n), 3 + n) for n in range(5)]
  score = functools.partial(reward_model.score_rows, CFG, length=10, batch_size=5)
  before = score(params(), ids)
  centred = reward_model.with_zero_mean(params(), float(before.mean()))
  after = score(centred, ids)
  assert abs(before.mean()) > 0.1 and after.mean() == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(after - after[0], before - before[0], atol=1e-5)
  assert float(params()["head"]["bias"][0]) == pytest.approx(0.4)  # the old ones are as they were


# ----------------------------------------------------------------------------- learning


@functools.cache
def adam_step():
  tx = optim.make_optimizer(helpers.optim_config(eps=1e-4), 100)
  step = helpers.quick_jit(functools.partial(reward_model.reward_update, CFG, reward_config(), tx))
  return optim.init_train_state(tx, params()), step


def test_golden_step():
  """To write the file anew: RLHF_UPDATE_GOLDEN=1 pytest -k golden_step"""
  before, step = adam_step()
  after, metrics = step(before, BATCH)
  ratio = lambda metric: metric.total / metric.weight
  helpers.check_golden(
    "reward_model",
    {
      **{name: ratio(metrics[name]) for name in metrics if name != "train/grad_norm"},
      "grad_norm": metrics["train/grad_norm"],
      **helpers.summary("params", after.params),
    },
  )
  assert int(after.step) == 1  # of two microbatches


def test_a_toy_rule_is_learned():
  """The more 5s an answer has, the better."""

  def batch_of(seed: int):
    rng = np.random.default_rng(seed)
    shape = BATCH.tokens_BKT.shape
    tokens_BKT = np.where(
      rng.random(shape) < rng.random((*shape[:2], 1)), 5, helpers.random_ids(rng, shape)
    ).astype(np.int32)
    return ComparisonBatch(
      tokens_BKT=tokens_BKT,
      mask_BKT=np.ones(shape, np.float32),
      rank_BK=-(tokens_BKT == 5).sum(axis=2).astype(np.int32),
      valid_BK=np.ones(shape[:2], np.float32),
    )

  state, step = adam_step()
  accuracy = []
  for seed in range(60):  # every batch is new
    state, metrics = step(state, batch_of(seed))
    accuracy.append(float(metrics["train/accuracy"].total / metrics["train/accuracy"].weight))
  assert accuracy[0] < 0.7 and np.mean(accuracy[-5:]) > 0.9


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(microbatch_size=3), "reward.batch_size 8 does not divide into reward.microbatch_size 3"),
    (dict(microbatch_size=0), "reward.microbatch_size"),
  ],
  ids=str,
)
def test_impossible_numbers_are_refused(changes, message: str):
  with pytest.raises(ValueError, match=message):
    reward_config(**changes)


def test_scores_are_float32_also_where_the_model_is_not():
  half = helpers.model_config(dtype="bfloat16")
  shape = jax.eval_shape(functools.partial(reward_model.score_completions, half), params(), BATCH)
  assert shape.dtype == jnp.float32
