"""PPO-ptx: first ratio 1, ends, gradients by hand, one optimizer step, buffers, behaviour."""

import collections
import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf import metrics as metrics_lib
from rlhf import optim, ppo, ppo_setup
from rlhf.data import prepare
from rlhf.model import transformer
from rlhf.types import Metric, PpoState, Rollout

# Eight ids of which one is padding; the reward model is another network with other positions.
EOT, PAD, VOCAB = 4, 2, 8
CFG = helpers.model_config(vocab_size=VOCAB, pad_id=PAD)
REWARD_CFG = dataclasses.replace(CFG, context_length=12, layer_pattern="banded,dense")
MODELS = ppo.Models(policy=CFG, reward=REWARD_CFG)
KEY = jax.random.key(0)  # read only by a value network from scratch
PPO = helpers.ppo_config(max_prompt_tokens=6, max_response_tokens=5)
PPO_PTX = dataclasses.replace(PPO, ptx_coef=3.5)
LENGTH = 11
NAN = np.float32(np.nan)


@functools.cache
def nets():
  """(policy, reference, reward model): three different sets of parameters."""
  return (
    helpers.make_params(CFG, 1),
    helpers.make_params(CFG, 2),
    helpers.make_params(REWARD_CFG, 3, head=True),
  )


def make_prompts():
  prompts = helpers.make_prompts(PPO.batch_size, 6, 0)
  tokens_BP = np.where(prompts.mask_BP > 0, prompts.tokens_BP % VOCAB, PAD)
  tokens_BP = np.where((tokens_BP == PAD) & (prompts.mask_BP > 0), EOT, tokens_BP)
  return prompts.replace(tokens_BP=tokens_BP.astype(np.int32))


def ptx_rows(num_rows: int, seed: int, length: int = 13):
  batch = helpers.make_lm_batch(num_rows, length, seed)
  tokens_BT = np.where(batch.tokens_BT % VOCAB == PAD, EOT, batch.tokens_BT % VOCAB)
  return dataclasses.replace(batch, tokens_BT=tokens_BT.astype(np.int32))


def ptx_updates(p=PPO_PTX, seed: int = 0):
  """[updates, minibatch_size * 8, T] rows, as `load_ptx` gives them."""
  rows = ptx_rows(p.updates_per_iteration * p.num_ptx_per_minibatch, seed)
  return jax.tree.map(
    lambda x: x.reshape(p.updates_per_iteration, p.num_ptx_per_minibatch, -1), rows
  )


@functools.cache
def compiled_rollout():
  return helpers.quick_jit(functools.partial(ppo.rollout, MODELS, PPO, eot_id=EOT))


@functools.cache
def compiled_advantages(p=PPO):
  return helpers.quick_jit(functools.partial(ppo.advantages, p))


def adam():
  optimizer = optim.make_optimizer(
    helpers.optim_config(learning_rate=2e-2, eps=1e-4, max_grad_norm=1.0), 100
  )
  return optim.per_network({"policy": optimizer, "value": optimizer})


@functools.cache
def compiled_update():
  """As `train` compiles it: the state is donated, PPO and ptx make one step."""
  return helpers.quick_jit(
    functools.partial(ppo.update_and_control, MODELS, PPO_PTX, adam(), use_segments=True),
    donate_argnums=0,
  )


@functools.cache
def compiled_init():
  return helpers.quick_jit(functools.partial(ppo_setup.init_state, MODELS, PPO_PTX, adam()))


@functools.cache
def episodes() -> Rollout:
  policy, ref, reward = nets()
  return jax.device_get(
    compiled_rollout()(
      {"policy": policy, "value": helpers.make_params(REWARD_CFG, 4, head=True)},
      ref,
      reward,
      make_prompts(),
      jax.random.key(6),
    )
  )


@functools.cache
def compiled_logits(cfg):
  return helpers.quick_jit(
    lambda params, tokens_BT, mask_BT: transformer.logits(
      cfg, params, transformer.forward(cfg, params, tokens_BT, mask_BT)
    )
  )


def logprobs_by_softmax(cfg, params, tokens_BT, mask_BT, temperature: float):
  """log softmax(logits / T) in float64, from the logits of one full forward pass."""
  logits_BTV = compiled_logits(cfg)(params, tokens_BT, mask_BT)
  allowed = np.asarray([i for i in range(cfg.vocab_size) if i != cfg.pad_id])
  scaled = np.asarray(logits_BTV, np.float64)[..., allowed] / temperature
  scaled -= scaled.max(axis=-1, keepdims=True)
  logprob = scaled - np.log(np.exp(scaled).sum(axis=-1, keepdims=True))
  out = np.zeros(tokens_BT.shape)
  for b, t in zip(*np.nonzero(mask_BT[:, 1:])):
    out[b, t + 1] = logprob[b, t, np.flatnonzero(allowed == tokens_BT[b, t + 1])[0]]
  return out


# ----------------------------------------------------------------------------- rollout


def test_old_and_reference_log_probs_are_at_the_sampling_temperature():
  rollout, (policy, ref, _) = episodes(), nets()
  mask_BT = rollout.response_mask_BT
  for params, actual in ((policy, rollout.logprob_BT), (ref, rollout.ref_logprob_BT)):
    expected = logprobs_by_softmax(CFG, params, rollout.tokens_BT, rollout.mask_BT, 0.7)
    np.testing.assert_allclose(actual, expected * mask_BT, atol=2e-5)
  np.testing.assert_allclose(
    rollout.decode_logprob_BT, rollout.logprob_BT, atol=2e-5
  )  # decoding agrees with scoring
  assert np.abs(rollout.logprob_BT - rollout.ref_logprob_BT).max() > 0.1


def test_scores_and_values_of_every_episode_are_those_of_its_tokens_alone():
  rollout = episodes()
  _, _, reward = nets()
  value_params = helpers.make_params(REWARD_CFG, 4, head=True)

  def alone(tokens_BT, mask_BT):
    return (
      transformer.scores(REWARD_CFG, reward, tokens_BT, mask_BT),
      transformer.values(REWARD_CFG, value_params, tokens_BT, mask_BT),
    )

  alone = helpers.quick_jit(alone)
  for row in range(PPO.batch_size):
    size = int(rollout.mask_BT[row].sum())
    ids = rollout.tokens_BT[row, :size]
    ended = ids[-1] == EOT and rollout.response_mask_BT[row, size - 1] == 1
    assert bool(rollout.finished_B[row]) == ended
    score_B, value_BT = alone(*helpers.right_padded([ids], 12))  # another length, other rows
    assert rollout.score_B[row] == pytest.approx(float(score_B[0]), abs=2e-5)
    np.testing.assert_allclose(
      rollout.value_BT[row],
      np.asarray(value_BT)[0, :LENGTH] * rollout.response_mask_BT[row],
      atol=2e-5,
    )
  assert 0 < rollout.finished_B.sum() < PPO.batch_size


def test_only_sampling_is_random():
  policy, ref, reward = nets()
  params = {"policy": policy, "value": reward}
  names = helpers.primitives(
    jax.make_jaxpr(functools.partial(ppo.rollout, MODELS, PPO, eot_id=EOT))(
      params, ref, reward, make_prompts(), jax.random.key(0)
    )
  )
  assert "random_bits" in names
  rows = episodes()
  names = helpers.primitives(
    jax.make_jaxpr(functools.partial(ppo.score_rows, MODELS, PPO))(
      params, ref, reward, rows.tokens_BT, rows.mask_BT, rows.response_mask_BT
    )
  )
  assert not names & {"random_bits", "threefry2x32"} and "dot_general" in names
  batch, ptx = helpers.make_ppo_batch(4, LENGTH, 0), ptx_rows(32, 0)
  gradient = jax.make_jaxpr(
    functools.partial(ppo.minibatch_gradient, MODELS, PPO_PTX, use_segments=True)
  )(params, batch, ptx)
  assert not helpers.primitives(gradient) & {"random_bits", "random_fold_in", "threefry2x32"}


# ----------------------------------------------------------------------------- advantages


def ends_rollout() -> Rollout:
  """End-of-text at the first, a middle and the last response position, and missing."""
  rng = np.random.default_rng(0)
  num_response = np.asarray([1, 3, 5, 5])
  slot_T = np.arange(LENGTH)
  mask_BT = (slot_T < (3 + num_response)[:, None]).astype(np.float32)
  response_mask_BT = (mask_BT * (slot_T >= 3)).astype(np.float32)
  inside = lambda x: np.where(response_mask_BT > 0, x, NAN).astype(np.float32)
  noise = lambda scale: inside(scale * rng.standard_normal((4, LENGTH)))
  logprob_BT = noise(1.0) - 2
  return Rollout(
    tokens_BT=np.zeros((4, LENGTH), np.int32),
    mask_BT=mask_BT,
    response_mask_BT=response_mask_BT,
    logprob_BT=logprob_BT,
    decode_logprob_BT=logprob_BT + noise(0.01),
    ref_logprob_BT=logprob_BT + noise(0.3),
    value_BT=noise(1.0),
    score_B=np.asarray([0.7, -0.3, 1.9, 0.25], np.float32),
    finished_B=np.asarray([True, True, True, False]),
  )


def advantages_by_hand(p, r: Rollout, kl_coef: float):
  """Rewards, whitening and GAE entry by entry, in float64."""
  mask = r.response_mask_BT > 0
  score = r.score_B.astype(np.float64)
  for row in np.flatnonzero(~r.finished_B):
    if p.missing_end == "replace":
      score[row] = p.missing_end_penalty
    if p.missing_end == "subtract":
      score[row] -= p.missing_end_penalty
  kl, reward = np.zeros(mask.shape), np.zeros(mask.shape)
  for row, t in zip(*np.nonzero(mask)):
    kl[row, t] = float(r.logprob_BT[row, t]) - float(r.ref_logprob_BT[row, t])
    reward[row, t] = -kl_coef * kl[row, t]
  for row in range(len(mask)):
    reward[row, np.flatnonzero(mask[row])[-1]] += score[row]
  used = reward.copy()
  if p.whiten_rewards:
    mean, deviation = used[mask].mean(), np.sqrt(used[mask].var() + 1e-8)
    used[mask] = (used[mask] - mean) / deviation + mean
  advantage, returns = helpers.gae_loop(used, r.value_BT, r.response_mask_BT, p.gamma, p.lam)
  if p.whiten_advantages:
    advantage[mask] = (advantage[mask] - advantage[mask].mean()) / np.sqrt(
      advantage[mask].var() + 1e-8
    )
  return dict(score=score, kl=kl, reward=reward, advantage=advantage, returns=returns)


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(whiten_rewards=True),
    dict(whiten_advantages=False, gamma=1.0, lam=0.95),
    dict(missing_end="replace", missing_end_penalty=-1.5),
    dict(missing_end="subtract", missing_end_penalty=0.6),
    dict(missing_end="none", missing_end_penalty=9.0),
  ],
  ids=str,
)
def test_advantages_by_hand(changes):
  p, r = dataclasses.replace(PPO, **changes), ends_rollout()
  batch, metrics = jax.device_get(compiled_advantages(p)(r, jnp.float32(0.3)))
  by_hand = advantages_by_hand(p, r, 0.3)
  np.testing.assert_allclose(batch.advantage_BT, by_hand["advantage"], atol=1e-5)
  np.testing.assert_allclose(batch.return_BT, by_hand["returns"], atol=1e-5)
  assert batch.advantage_BT.dtype == batch.return_BT.dtype == np.float32
  for name in ("tokens_BT", "mask_BT", "response_mask_BT"):
    np.testing.assert_array_equal(getattr(batch, name), getattr(r, name))
  np.testing.assert_array_equal(batch.old_logprob_BT, r.logprob_BT)
  np.testing.assert_array_equal(batch.old_value_BT, r.value_BT)

  numbers, mask = metrics_lib.summarise(metrics), r.response_mask_BT > 0
  gap = np.abs(r.logprob_BT - r.decode_logprob_BT)[mask]
  kl_of_token = by_hand["kl"][mask]
  for name, expected in {
    "objective/kl": by_hand["kl"].sum(axis=1).mean(),
    "objective/kl_k3": (np.exp(-kl_of_token) - 1 + kl_of_token).sum() / 4,
    "objective/kl_token_min": min(0.0, kl_of_token.min()),
    "objective/kl_coef": 0.3,
    "objective/score": r.score_B.mean(),
    "objective/score_after_penalty": by_hand["score"].mean(),
    "objective/reward": by_hand["reward"].sum(axis=1).mean(),
    "rollout/response_tokens": 14 / 4,
    "rollout/finished": 0.75,
    "rollout/decode_gap": gap.mean(),
    "rollout/decode_gap_max": gap.max(),
    "ppo/returns/mean": by_hand["returns"][mask].mean(),
    "ppo/value/old": r.value_BT[mask].mean(),
  }.items():
    assert numbers[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_the_penalty_for_a_missing_end_replaces_or_subtracts_by_name():
  score_B, finished_B = np.float32([0.5, 0.5]), np.asarray([True, False])
  penalty = functools.partial(dataclasses.replace, PPO, missing_end_penalty=2.0)
  for name, expected in (("none", [0.5, 0.5]), ("replace", [0.5, 2.0]), ("subtract", [0.5, -1.5])):
    np.testing.assert_array_equal(
      ppo.final_scores(penalty(missing_end=name), score_B, finished_B), expected
    )


# ----------------------------------------------------------------------------- gradient


@functools.cache
def gradient(p):
  return helpers.quick_jit(functools.partial(ppo.minibatch_gradient, MODELS, p, use_segments=True))


@functools.cache
def minibatch():
  """Four episodes with 1, 4, 7 and 3 response tokens; some ratios and values are clipped."""
  policy, _, reward = nets()
  batch = helpers.make_ppo_batch(
    4,
    LENGTH,
    0,
    logprob_BT=lambda tokens_BT, mask_BT: logprobs_by_softmax(
      CFG, policy, safe_ids(tokens_BT), mask_BT, 0.7
    ),
  )
  assert len(set(batch.response_mask_BT.sum(axis=1))) == 4
  return batch.replace(tokens_BT=safe_ids(batch.tokens_BT)), {"policy": policy, "value": reward}


def safe_ids(tokens_BT):
  """Into this file's vocabulary, padding left out."""
  tokens_BT = tokens_BT % VOCAB
  return np.where(tokens_BT == PAD, EOT, tokens_BT).astype(np.int32)


@functools.cache
def gradient_by_hand():
  """d/d params of eq. 2 as it is written, with the weight of every token as an argument."""
  batch, _ = minibatch()
  ptx = ptx_rows(32, 5)

  def loss(params, weight_BT, ptx_weight_BT):
    mask_BT = batch.response_mask_BT > 0
    logprob_BT, _ = transformer.policy_logprobs(
      CFG, params["policy"], batch.tokens_BT, batch.mask_BT, temperature=0.7
    )
    ratio_BT = jnp.exp(jnp.where(mask_BT, logprob_BT - batch.old_logprob_BT, 0))
    gain_BT = jnp.minimum(
      ratio_BT * batch.advantage_BT, jnp.clip(ratio_BT, 0.8, 1.2) * batch.advantage_BT
    )
    value_BT = transformer.values(REWARD_CFG, params["value"], batch.tokens_BT, batch.mask_BT)
    near_BT = jnp.clip(value_BT, batch.old_value_BT - 0.2, batch.old_value_BT + 0.2)
    error_BT = jnp.maximum((value_BT - batch.return_BT) ** 2, (near_BT - batch.return_BT) ** 2)
    hidden_BTD = transformer.forward(
      CFG,
      params["policy"],
      ptx.tokens_BT,
      (ptx.segment_BT > 0) * 1.0,
      segment_BT=ptx.segment_BT,
      position_BT=ptx.position_BT,
    )
    ptx_logprob_BT, _ = transformer.token_logprobs(
      CFG, params["policy"], hidden_BTD, ptx.tokens_BT, temperature=1.0
    )
    of_ppo = jnp.sum(jnp.where(mask_BT, -gain_BT + 0.5 * 0.5 * error_BT, 0) * weight_BT)
    return of_ppo - 3.5 * jnp.sum(ptx_logprob_BT * ptx_weight_BT)

  return helpers.quick_jit(jax.grad(loss)), ptx


def test_token_means_by_hand():
  """Every token of the minibatch weighs the same, and so does every pretraining token."""
  (batch, params), (by_hand, ptx) = minibatch(), gradient_by_hand()
  actual, _, _ = gradient(PPO_PTX)(params, batch, ptx)
  helpers.assert_leaves_close(
    actual,
    by_hand(
      params,
      np.full((4, LENGTH), 1 / batch.response_mask_BT.sum(), np.float32),
      ptx.loss_mask_BT / ptx.loss_mask_BT.sum(),
    ),
    2e-5,
  )


SEQUENCE_MEANS = dataclasses.replace(
  PPO_PTX, policy_reduction="sequence_mean", ptx_reduction="sequence_mean", microbatch_size=1
)


def test_sequence_means_by_hand():
  """Sums within a response or an example, means over them."""
  (batch, params), (by_hand, ptx) = minibatch(), gradient_by_hand()
  actual, _, _ = gradient(SEQUENCE_MEANS)(params, batch, ptx)
  helpers.assert_leaves_close(
    actual, by_hand(params, np.full((4, LENGTH), 1 / 4, np.float32), ptx.loss_mask_BT / 32), 2e-5
  )


def test_the_gradient_of_ppo_ptx_is_that_of_ppo_plus_the_coefficient_times_that_of_the_text():
  (batch, params), (by_hand, ptx) = minibatch(), gradient_by_hand()
  both, metrics, _ = gradient(PPO_PTX)(params, batch, ptx)
  none = np.zeros((4, LENGTH), np.float32), np.zeros((32, 13), np.float32)
  alone = by_hand(params, none[0] + 1 / batch.response_mask_BT.sum(), none[1])
  text = by_hand(params, none[0], ptx.loss_mask_BT / ptx.loss_mask_BT.sum())
  helpers.assert_leaves_close(
    both["policy"], jax.tree.map(jnp.add, alone["policy"], text["policy"]), 2e-5
  )
  helpers.assert_leaves_close(both["value"], alone["value"], 2e-5)
  share = optax.tree.norm(text["policy"]) / optax.tree.norm(both["policy"])
  assert 0.1 < float(share) < 10  # neither of the two hides the other
  assert float(metrics["ppo/ptx/sequences"]) == 32 == 8 * 4
  nll = float(metrics["ppo/ptx/nll"].total / metrics["ppo/ptx/nll"].weight)
  assert 1 < nll < 10 and float(metrics["ppo/ptx/nll"].weight) == ptx.loss_mask_BT.sum()


def test_any_microbatch_size_gives_the_same_gradient_and_metrics():
  (batch, params), (_, ptx) = minibatch(), gradient_by_hand()
  small, small_metrics, small_error = gradient(PPO_PTX)(params, batch, ptx)
  whole, metrics, error = gradient(
    dataclasses.replace(PPO_PTX, microbatch_size=4, ptx_microbatch_size=32)
  )(params, batch, ptx)
  helpers.assert_leaves_close(small, whole)
  helpers.assert_leaves_close(small["value"], whole["value"])
  assert float(small_error) == pytest.approx(float(error), rel=1e-5)
  numbers = metrics_lib.summarise(small_metrics)
  assert numbers == pytest.approx(metrics_lib.summarise(metrics), rel=1e-5)
  assert 0 < numbers["ppo/policy/clipfrac"] < 1 and 0 < numbers["ppo/value/clipfrac"] < 1
  # The ratio error is a maximum over microbatches, not a sum.
  mask_BT = batch.response_mask_BT
  logprob_BT = logprobs_by_softmax(CFG, params["policy"], batch.tokens_BT, batch.mask_BT, 0.7)
  ratio_BT = np.exp((logprob_BT - batch.old_logprob_BT) * mask_BT)
  assert float(error) == pytest.approx(np.abs(ratio_BT - 1).max(), rel=1e-4)
  assert numbers["ppo/policy/ratio"] == pytest.approx(ratio_BT[mask_BT > 0].mean(), rel=1e-4)


def test_a_shared_trunk_gets_the_gradient_of_both_losses():
  p = dataclasses.replace(PPO, value_network="shared", value_clip=None, microbatch_size=4)
  batch, params = minibatch()
  params = {"policy": params["policy"], "value": {"head": params["value"]["head"]}}

  def by_hand(params):
    mask_BT = batch.response_mask_BT > 0
    logprob_BT, _ = transformer.policy_logprobs(
      CFG, params["policy"], batch.tokens_BT, batch.mask_BT, temperature=0.7
    )
    value_BT = transformer.values(
      CFG, {**params["policy"], **params["value"]}, batch.tokens_BT, batch.mask_BT
    )
    ratio_BT = jnp.exp(jnp.where(mask_BT, logprob_BT - batch.old_logprob_BT, 0))
    gain_BT = jnp.minimum(
      ratio_BT * batch.advantage_BT, jnp.clip(ratio_BT, 0.8, 1.2) * batch.advantage_BT
    )
    loss_BT = -gain_BT + 0.5 * 0.5 * (value_BT - batch.return_BT) ** 2
    return jnp.sum(jnp.where(mask_BT, loss_BT, 0)) / batch.response_mask_BT.sum()

  actual, _, _ = gradient(p)(params, batch, None)
  helpers.assert_leaves_close(actual, helpers.quick_jit(jax.grad(by_hand))(params), 2e-5)


def test_without_a_coefficient_there_is_no_trace_of_pretraining():
  """13 is the length of pretraining rows and of nothing else."""
  state = jax.eval_shape(compiled_init(), nets()[0], nets()[2], KEY)
  batch = helpers.make_ppo_batch(8, LENGTH, 0)

  def sizes(p, ptx_batches):
    jaxpr = jax.make_jaxpr(functools.partial(ppo.ppo_update, MODELS, p, adam(), use_segments=True))(
      state, batch, ptx_batches, jax.random.key(0)
    )
    return {
      size
      for equation in helpers.equations(jaxpr.jaxpr)
      for variable in (*equation.invars, *equation.outvars)
      for size in variable.aval.shape
    }

  assert {13, LENGTH} <= sizes(PPO_PTX, ptx_updates())
  without = sizes(dataclasses.replace(PPO_PTX, ptx_coef=0.0), None)
  assert 13 not in without and LENGTH in without


# ----------------------------------------------------------------------------- all minibatches


def rows_update(p, monkeypatch, key):
  """Runs `ppo_update` with a gradient that says which rows it was given, and ones as updates."""

  def fake(models, p, params, batch, ptx_batch, frozen, *, use_segments):
    row_b = batch.tokens_BT[:, 0].astype(jnp.float32)
    grads = {
      "policy": {"rows": row_b, "ptx": ptx_batch.tokens_BT[:, 0] * 1.0},
      "value": {"rows": row_b},
    }
    return grads, {"count": jnp.float32(1), "rows": jnp.sum(row_b)}, row_b[0]

  monkeypatch.setattr(ppo, "minibatch_gradient", fake)
  num_updates = p.updates_per_iteration
  params = {
    "policy": {"rows": jnp.zeros(p.minibatch_size), "ptx": jnp.zeros(2)},
    "value": {"rows": jnp.zeros(p.minibatch_size)},
  }

  def remember(grads, history, params=None):
    history = jax.tree.map(lambda h, g: jnp.concatenate([h[1:], g[None]]), history, grads)
    return jax.tree.map(jnp.ones_like, grads), history

  tx = optax.GradientTransformation(
    lambda params: jax.tree.map(lambda x: jnp.zeros((num_updates, *x.shape)), params), remember
  )
  state = PpoState(
    train=optim.init_train_state(tx, params),
    kl_coef=jnp.float32(0.1),
    ema_params=jax.tree.map(lambda x: x + 5.0, params["policy"]),
  )
  batch = helpers.make_ppo_batch(p.batch_size, 6, 0).replace(
    tokens_BT=np.tile(np.arange(p.batch_size, dtype=np.int32)[:, None], (1, 6))
  )
  ptx = dataclasses.replace(
    ptx_rows(num_updates * 2, 0),
    tokens_BT=np.tile(np.arange(num_updates * 2, dtype=np.int32)[:, None], (1, 13)),
  )
  ptx = jax.tree.map(lambda x: x.reshape(num_updates, 2, -1), ptx)
  return jax.device_get(
    ppo.ppo_update(
      None, p, tx, state, *jax.tree.map(jnp.asarray, (batch, ptx)), key, use_segments=True
    )
  )


def test_every_row_is_in_one_minibatch_of_every_epoch_and_the_order_is_new(monkeypatch):
  p = dataclasses.replace(PPO, num_epochs=3, minibatch_size=2)
  state, metrics = rows_update(p, monkeypatch, jax.random.key(0))
  order = state.train.opt_state["policy"]["rows"].reshape(3, 8)
  for epoch in order:
    assert sorted(epoch.tolist()) == list(range(8))
  assert len({tuple(epoch) for epoch in [*order.tolist(), list(range(8))]}) == 4
  other, _ = rows_update(p, monkeypatch, jax.random.key(1))
  assert not np.array_equal(other.train.opt_state["policy"]["rows"].reshape(3, 8)[0], order[0])
  # Pretraining rows are read in their order, each once, anew in every epoch.
  assert state.train.opt_state["policy"]["ptx"].reshape(-1).tolist() == list(range(24))
  assert int(state.train.step) == 12 == p.updates_per_iteration
  assert metrics["count"] == 12 and metrics["rows"] == 3 * 28  # sums over the updates
  assert metrics["ppo/ratio_error_first"] == order[0, 0]  # of the first, not the largest
  norms = np.linalg.norm(state.train.opt_state["value"]["rows"], axis=1)
  assert metrics["ppo/grad_norm/value"] == pytest.approx(norms.max())


def test_the_moving_average_follows_every_optimizer_step(monkeypatch):
  """The parameters go 0, 1, 2, 3, 4; the average starts at 5."""
  p = dataclasses.replace(PPO, minibatch_size=2, ema_decay=0.9)
  state, _ = rows_update(p, monkeypatch, jax.random.key(0))
  np.testing.assert_allclose(state.train.params["policy"]["rows"], 4.0)
  expected = 5.0
  for parameter in (1.0, 2.0, 3.0, 4.0):
    expected = 0.9 * expected + 0.1 * parameter
  np.testing.assert_allclose(state.ema_params["rows"], expected, rtol=1e-6)
  assert set(state.ema_params) == {"rows", "ptx"}  # the policy's, not the value network's


# ----------------------------------------------------------------------------- one iteration


def run_iteration(state, ref, reward, key, *, ptx):
  rollout_key, update_key = jax.random.split(key)
  rollout = compiled_rollout()(state.train.params, ref, reward, make_prompts(), rollout_key)
  batch, metrics = compiled_advantages()(rollout, state.kl_coef)
  state, update_metrics = compiled_update()(state, batch, ptx, metrics["objective/kl"], update_key)
  return state, metrics | update_metrics


def test_a_profile_names_the_parts_of_an_iteration():
  policy, ref, reward = nets()
  params = {"policy": policy, "value": reward}
  collect = jax.jit(functools.partial(ppo.collect, MODELS, PPO, eot_id=EOT))
  lowered = collect.lower(params, ref, reward, make_prompts(), jnp.float32(0.1), KEY)
  text = lowered.as_text(debug_info=True)
  for name in ("rollout/prefill", "rollout/decode", "score/policy", "score/reference"):
    assert f"{name}/" in text, name
  kl = Metric(total=jnp.float32(1), weight=jnp.float32(1))
  state = jax.eval_shape(compiled_init(), policy, reward, KEY)
  lowered = compiled_update().lower(
    state, helpers.make_ppo_batch(8, LENGTH, 1), ptx_updates(), kl, KEY
  )
  text = lowered.as_text(debug_info=True)
  for name in ("update/ppo", "update/ptx", "update/optimizer"):
    assert f"{name}/" in text, name


def test_the_ratio_of_the_first_minibatch_is_1():
  """From rollout to update; two minibatches of two microbatches, temperature 0.7."""
  policy, ref, reward = nets()
  start = compiled_init()(policy, reward, KEY)
  state, metrics = run_iteration(start, ref, reward, jax.random.key(3), ptx=ptx_updates())
  numbers = metrics_lib.summarise(metrics)
  assert numbers["ppo/ratio_error_first"] < 1e-5
  assert numbers["ppo/policy/approxkl"] > 1e-7  # the second minibatch follows a step
  assert int(state.train.step) == 2 == PPO.num_minibatches  # one step for both gradients
  assert numbers["ppo/ptx/sequences"] == 8 * PPO.batch_size
  # Old log-probs that are another policy's, or at another temperature, are seen.
  rollout = compiled_rollout()(state.train.params, ref, reward, make_prompts(), jax.random.key(0))
  batch, metrics = compiled_advantages()(rollout, state.kl_coef)
  off = batch.replace(old_logprob_BT=batch.old_logprob_BT + 0.01)
  _, metrics = compiled_update()(
    state, off, ptx_updates(), metrics["objective/kl"], jax.random.key(0)
  )
  assert float(metrics["ppo/ratio_error_first"]) == pytest.approx(1 - np.exp(-0.01), rel=1e-2)


def pointers(*trees) -> list[int]:
  return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trees)]


def test_the_state_starts_as_its_networks_in_buffers_of_its_own():
  policy, _, reward = nets()
  state = compiled_init()(policy, reward, KEY)
  equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  equal(state.train.params["policy"], policy)
  equal(state.ema_params, policy)
  equal(state.train.params["value"], reward)  # the value network starts as the reward model
  assert float(state.kl_coef) == pytest.approx(0.1) and int(state.train.step) == 0
  for state in (
    state,  # compiled or not
    ppo_setup.init_state(MODELS, PPO_PTX, adam(), policy, reward, KEY),
  ):
    all_pointers = pointers(state.train.params, state.ema_params, policy, reward)
    assert len(set(all_pointers)) == len(all_pointers)


def test_a_shared_value_head_starts_at_0():
  policy, _, reward = nets()
  wide = dict(reward, head={"kernel": jnp.ones((24, 1)), "bias": jnp.ones(1)})
  state = ppo_setup.init_state(
    MODELS, dataclasses.replace(PPO, value_network="shared"), adam(), policy, wide, KEY
  )
  assert state.train.params["value"].keys() == {"head"}
  np.testing.assert_array_equal(state.train.params["value"]["head"]["kernel"], np.zeros((16, 1)))
  np.testing.assert_array_equal(state.train.params["value"]["head"]["bias"], [0])


@pytest.mark.parametrize("value_init", ["policy", "scratch"])
def test_a_value_network_may_start_elsewhere_than_the_reward_model(value_init: str):
  """At value 0, in the shape of what it starts from; the seed's key makes one from scratch."""
  policy, _, reward = nets()
  p = dataclasses.replace(PPO, value_init=value_init)
  start = lambda seed: ppo_setup.init_value(MODELS, p, policy, reward, jax.random.key(seed))
  trunk = {name: leaf for name, leaf in start(0).items() if name != "head"}
  if value_init == "policy":
    jax.tree.map(np.testing.assert_array_equal, trunk, policy)
    assert not set(pointers(trunk)) & set(pointers(policy))
  else:
    assert jax.tree.map(jnp.shape, start(0)) == jax.tree.map(jnp.shape, reward)
    assert not np.array_equal(trunk["embed"]["token"], reward["embed"]["token"])
    assert not np.array_equal(trunk["embed"]["token"], start(1)["embed"]["token"])
  tokens_BT = safe_ids(helpers.make_ppo_batch(4, LENGTH, 1).tokens_BT)
  value_BT = ppo.policy_and_values(
    MODELS, p, {"policy": policy, "value": start(0)}, tokens_BT, *[jnp.ones(tokens_BT.shape)] * 2
  )[2]
  np.testing.assert_array_equal(value_BT, np.zeros(tokens_BT.shape))


def test_reference_and_reward_model_do_not_move_under_donation():
  """The functions as `train` compiles them, on real buffers, for two iterations."""
  policy, _, reward = nets()
  # The reference IS the start of the policy, and the reward model that of the value network.
  ref, reward = jax.tree.map(jnp.copy, (policy, reward))
  before = jax.tree.map(np.array, (ref, reward))
  state = compiled_init()(ref, reward, KEY)
  for number in range(2):
    old_leaves = jax.tree.leaves((state.train.params, state.ema_params))
    state, metrics = run_iteration(state, ref, reward, jax.random.key(number), ptx=ptx_updates())
    assert all(leaf.is_deleted() for leaf in old_leaves)  # donation took place
    numbers = metrics_lib.summarise(metrics)  # and took none of the metrics with it
    assert numbers["objective/kl_coef"] == pytest.approx(0.1)
    if number == 0:
      assert numbers["objective/kl"] == pytest.approx(0, abs=1e-5)
  assert abs(numbers["objective/kl"]) > 1e-3
  jax.tree.map(np.testing.assert_array_equal, jax.device_get((ref, reward)), before)
  assert not set(pointers(state)) & set(pointers(ref, reward))
  moved = lambda new, old: min(
    jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), new, old))
  )
  assert moved(state.train.params["policy"], before[0]) > 1e-3
  assert moved(state.train.params["value"], before[1]) > 1e-3
  assert moved(state.ema_params, before[0]) > 1e-4


def test_validation_says_of_an_episode_what_the_rollout_says(monkeypatch):
  policy, ref, reward = nets()
  rollout = episodes()

  def sample(models, p, params, prompts, key, *, eot_id):
    assert params is policy_seen[0] and eot_id == EOT
    return dict(
      tokens_BT=rollout.tokens_BT,
      mask_BT=rollout.mask_BT,
      response_mask_BT=rollout.response_mask_BT,
    ), rollout.finished_B

  monkeypatch.setattr(ppo, "sample", sample)
  policy_seen = []

  def run(policy, ref, reward):
    policy_seen.append(policy)
    return ppo.validation_rollout(MODELS, PPO, policy, ref, reward, None, None, eot_id=EOT)

  out = jax.device_get(helpers.quick_jit(run)(policy, ref, reward))
  np.testing.assert_array_equal(out["tokens_BT"], rollout.tokens_BT)
  np.testing.assert_array_equal(out["mask_BT"], rollout.response_mask_BT)
  np.testing.assert_allclose(out["reward"], rollout.score_B, atol=2e-5)
  np.testing.assert_allclose(
    out["kl"], (rollout.logprob_BT - rollout.ref_logprob_BT).sum(axis=1), atol=1e-4
  )
  np.testing.assert_array_equal(out["response_tokens"], rollout.response_mask_BT.sum(axis=1))
  np.testing.assert_array_equal(out["finished"], rollout.finished_B)


def test_an_ensemble_rewards_by_its_rule_in_rollout_and_validation():
  """One reward model scores as ever; several as `ensembles` combine what each says alone."""
  policy, ref, reward = nets()
  members = (
    reward,
    helpers.make_params(REWARD_CFG, 8, head=True),
    helpers.make_params(REWARD_CFG, 9, head=True),
  )
  rows = episodes()
  score_E = [
    transformer.scores(REWARD_CFG, member, rows.tokens_BT, rows.mask_BT) for member in members
  ]
  score_EB = np.asarray(score_E)
  expected = {
    "min": score_EB.min(axis=0),
    "mean_minus_variance": score_EB.mean(axis=0) - 0.5 * score_EB.var(axis=0),
  }
  assert np.abs(expected["min"] - score_EB[0]).max() > 0.1
  for rule, score_B in expected.items():
    p = dataclasses.replace(PPO, reward_ensemble=rule, reward_variance_coef=0.5)
    judged = lambda *params: (
      ppo.score_rows(
        MODELS,
        p,
        {"policy": policy, "value": reward},
        ref,
        params,
        rows.tokens_BT,
        rows.mask_BT,
        rows.response_mask_BT,
      )[-1],
      ppo.reward_scores(MODELS, p, params[0], rows.tokens_BT, rows.mask_BT),
    )
    several_B, one_B = helpers.quick_jit(judged)(*members)
    np.testing.assert_allclose(several_B, score_B, atol=2e-5)
    np.testing.assert_allclose(one_B, score_EB[0], atol=2e-5)
  with pytest.raises(ValueError, match="ppo.reward_ensemble 'max'; choose from mean, min"):
    dataclasses.replace(PPO, reward_ensemble="max")
  with pytest.raises(ValueError, match="rm2 has num_layers 3, but reward_from has 2"):
    ppo_setup.check_member(REWARD_CFG, dataclasses.replace(REWARD_CFG, num_layers=3), "rm2")


def test_validation_lines_are_of_the_first_prompts_and_their_records():
  class Letters:
    """A tokenizer of one letter an id."""

    eot_id = 26

    def decode(self, ids, continues):
      return " " + "".join(chr(97 + i) for i in ids)

  calls = []

  def run_rollout(batch, key):
    calls.append(jax.random.key_data(key).tolist())
    first_B = batch.tokens_BP[:, -1]
    return dict(
      tokens_BT=np.stack([first_B, first_B + 1, first_B + 9], axis=1),
      mask_BT=np.tile([1, 1, 0], (len(first_B), 1)),
      reward=first_B / 2,
      kl=first_B / 4,
      response_tokens=np.full(len(first_B), 2),
      finished=first_B % 2 == 0,
    )

  rows = helpers.left_padded([[n] for n in range(10)], 2)
  lines = ppo.validate(
    run_rollout,
    rows,
    [{"prompt": f"prompt {n}"} for n in range(15)],
    Letters(),
    batch_size=4,
    key=jax.random.key(0),
    prompt_format=prepare.PLAIN,
  )
  assert [line["prompt"] for line in lines] == [f"prompt {n}" for n in range(10)]
  assert [line["response"] for line in lines] == [chr(97 + n) + chr(98 + n) for n in range(10)]
  assert [line["reward"] for line in lines] == [n / 2 for n in range(10)]
  assert [line["kl"] for line in lines] == [n / 4 for n in range(10)]
  assert [line["finished"] for line in lines] == [float(n % 2 == 0) for n in range(10)]
  assert len(calls) == 3 and len({tuple(key) for key in calls}) == 3  # a key for each batch


# ----------------------------------------------------------------------------- KL coefficient


def test_the_adaptive_coefficient_moves_once_an_iteration_by_its_episodes(monkeypatch):
  state = PpoState(train=None, ema_params=None, kl_coef=jnp.float32(0.2))
  assert ppo.next_state(PPO, state, 99.0).kl_coef is state.kl_coef  # fixed
  p = dataclasses.replace(PPO, kl_controller="adaptive", kl_target=6.0, kl_horizon=100.0)
  monkeypatch.setattr(ppo, "ppo_update", lambda *args, **more: (state, {}))
  # 8 episodes of 6.6 nats on average: 10 % over the target.
  new, _ = ppo.update_and_control(
    None, p, None, state, None, None, Metric(total=8 * 6.6, weight=8.0), None, use_segments=True
  )
  assert float(new.kl_coef) == pytest.approx(0.2 * (1 + 0.1 * 8 / 100), rel=1e-5)


# ----------------------------------------------------------------------------- behaviour


def no_text():
  """Pretraining rows without a target: their gradient is 0, and the compiled update is the same."""
  rows = ptx_updates()
  return dataclasses.replace(rows, loss_mask_BT=np.zeros_like(rows.loss_mask_BT))


def last_token_reward(token: int):
  """A reward model that looks at the last token only: 1 for `token`, about 0 for the others."""
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), nets()[2])
  params["embed"]["token"][:VOCAB] = np.eye(VOCAB, 16) * 4
  params["final_norm"]["scale"] += 1
  params["head"]["kernel"][:, 0] = np.eye(16)[token] / np.sqrt(15)
  return jax.tree.map(jnp.asarray, params)


def run_ppo(policy, ref, reward, num_iterations: int, kl_coef: float):
  state = compiled_init()(policy, reward, KEY).replace(kl_coef=jnp.float32(kl_coef))
  history = collections.defaultdict(list)
  for number in range(num_iterations):
    state, metrics = run_iteration(state, ref, reward, jax.random.key(number), ptx=no_text())
    for name, value in metrics_lib.summarise(metrics).items():
      history[name].append(value)
  return history


def test_ppo_raises_a_reward():
  """Only a last token of 7 is rewarded."""
  start = jax.tree.map(lambda x: 0.5 * x, nets()[0])  # flat enough to try it
  history = run_ppo(start, start, last_token_reward(7), 20, kl_coef=0.0)
  score = history["objective/score"]
  assert np.mean(score[:3]) < 0.6 and np.mean(score[-3:]) > 0.9
  assert history["ppo/ratio_error_first"] == pytest.approx([0] * 20, abs=1e-5)  # every iteration


def test_the_penalty_alone_pulls_the_policy_back_to_its_reference():
  policy, ref, reward = nets()
  nothing = jax.tree.map(jnp.zeros_like, reward)
  near = jax.tree.map(lambda a, b: 0.5 * (a + b), policy, ref)
  kl = run_ppo(near, ref, nothing, 30, kl_coef=1.0)["objective/kl"]
  assert np.mean(kl[-3:]) < 0.5 * np.mean(kl[:3]) and np.mean(kl[:3]) > 0.5


def test_golden_step():
  """To write the file anew: RLHF_UPDATE_GOLDEN=1 pytest -k golden_step"""
  policy, _, reward = nets()
  batch = helpers.make_ppo_batch(
    8,
    LENGTH,
    1,
    logprob_BT=lambda tokens_BT, mask_BT: logprobs_by_softmax(
      CFG, policy, safe_ids(tokens_BT), mask_BT, 0.7
    ),
  )
  batch = batch.replace(tokens_BT=safe_ids(batch.tokens_BT))
  kl = Metric(total=jnp.float32(1), weight=jnp.float32(1))
  state, metrics = compiled_update()(
    compiled_init()(policy, reward, KEY), batch, ptx_updates(seed=3), kl, jax.random.key(4)
  )
  helpers.check_golden(
    "ppo",
    {
      **metrics_lib.summarise(metrics),
      **helpers.summary("params", state.train.params),
      **helpers.summary("ema", state.ema_params),
    },
  )


# ----------------------------------------------------------------------------- numbers and warnings


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(minibatch_size=3), "ppo.batch_size 8 does not divide into ppo.minibatch_size 3"),
    (dict(microbatch_size=3), "ppo.minibatch_size 4 does not divide into ppo.microbatch_size 3"),
    (dict(ptx_coef=-1.0), "ppo.ptx_coef -1.0 is negative"),
    (dict(ptx_coef=1.0, ptx_microbatch_size=5), "32 pretraining examples"),
    (dict(ema_decay=1.0), "ppo.ema_decay 1.0 must be at least 0 and below 1"),
    (dict(lam=1.5), "ppo.lam 1.5 must be at least 0 and at most 1"),
    (dict(gamma=-0.1), "ppo.gamma -0.1 must be at least 0 and at most 1"),
    (dict(temperature=0.0), "ppo.temperature 0.0 is not above 0"),
    (dict(value_network="both"), "ppo.value_network 'both'; choose from"),
    (dict(value_init="reward"), "ppo.value_init 'reward'; choose from"),
    (dict(kl_controller="pid"), "ppo.kl_controller 'pid'; choose from"),
    (dict(missing_end="add"), "ppo.missing_end 'add'; choose from"),
    (dict(policy_reduction="mean"), "ppo.policy_reduction 'mean'; choose from"),
    (dict(ptx_reduction="mean"), "ppo.ptx_reduction 'mean'; choose from"),
  ],
  ids=str,
)
def test_impossible_numbers_are_refused(changes, message: str):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(PPO, **changes)


def test_prompt_and_response_must_fit_into_both_networks():
  ppo_setup.check_lengths(PPO, MODELS)
  for p, message in (
    (dataclasses.replace(PPO, max_response_tokens=7), "longer than the reward model's context"),
    (dataclasses.replace(PPO, max_response_tokens=11), "longer than the policy's context of 16"),
    (dataclasses.replace(PPO, ptx_coef=1.0, ptx_length=17), "ppo.ptx_length 17 is longer"),
  ):
    with pytest.raises(ValueError, match=message):
      ppo_setup.check_lengths(p, MODELS)


def test_alarms_ring_above_their_limits():
  quiet = {"ppo/ratio_error_first": 1e-3, "objective/kl": 100.0, "rollout/decode_gap": 0.05}
  assert ppo_setup.alarms(PPO, quiet) == []
  for name in quiet:
    lines = ppo_setup.alarms(PPO, quiet | {name: quiet[name] * 1.1})
    assert len(lines) == 1 and name in lines[0]


def test_a_run_too_short_for_its_moving_average_warns():
  # 3 / (1 - 0.992) = 375 updates; an iteration has 2.
  p = dataclasses.replace(PPO, ema_decay=0.992, num_iterations=187)
  assert "374 updates are fewer than 3/(1 - ema_decay) = 375" in ppo_setup.warn_short_run(p)
  assert ppo_setup.warn_short_run(dataclasses.replace(p, num_iterations=188)) is None


def test_sizes_as_a_table():
  table = ppo_setup.resolved_sizes(dataclasses.replace(PPO_PTX, num_iterations=500))
  numbers = {
    line.strip().rsplit(None, 1)[0]: int(line.rsplit(None, 1)[1].replace(",", ""))
    for line in table.splitlines()
  }
  assert numbers == {
    "episodes per iteration": 8,
    "episodes per optimizer step": 4,
    "episodes per microbatch": 2,
    "optimizer steps per iteration": 2,
    "pretraining examples per optimizer step": 32,
    "iterations": 500,
    "episodes in all": 4000,
  }
  assert ppo_setup.tokens_per_iteration(PPO) == 8 * 11
  assert ppo_setup.tokens_per_iteration(PPO_PTX) == 8 * 11 + 64 * 13


def test_a_reward_model_is_asked_as_it_was_trained():
  asked = prepare.PromptFormat(prompt_suffix="\n\nAssistant:")
  ppo_setup.check_read_as_trained(asked, {}, "hf:x")  # does not say
  ppo_setup.check_read_as_trained(asked, {"comparisons": {"prompt_suffix": "\n\nAssistant:"}}, "rm")
  with pytest.raises(
    ValueError, match="reward_from=rm was trained on prompt .* 'Q:', and config.prompts asks prompt"
  ):
    ppo_setup.check_read_as_trained(asked, {"comparisons": {"prompt_suffix": "Q:"}}, "rm")
