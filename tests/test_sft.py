"""SFT: its loss by hand, any microbatch size, dropout, and one step that never changes."""

import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf import optim, sft
from rlhf.model import transformer
from rlhf.sft import SftConfig

CFG = helpers.model_config()
BATCH = helpers.make_lm_batch(8, 12, 0)
KEY = jax.random.key(1)


def sft_config(**changes) -> SftConfig:
  fields = dict(
    batch_size=8,
    microbatch_size=4,
    num_epochs=1,
    max_steps=None,
    dropout_rate=0.0,
    keep_epochs=False,
    keep_rows=None,
  )
  return SftConfig(**(fields | changes))


PLAIN, DROPPING = sft_config(), sft_config(microbatch_size=8, dropout_rate=0.3)


@functools.cache
def gradient_of(p: SftConfig):
  """(params, batch, key) -> (gradient, metrics), through `sft_update` itself."""
  tx = helpers.record_gradient()

  def run(params, batch, key):
    state, metrics = sft.sft_update(
      CFG, p, tx, optim.init_train_state(tx, params), batch, key, use_segments=True
    )
    return state.opt_state, metrics

  return helpers.quick_jit(run)


def test_the_loss_is_a_mean_over_the_targets_of_the_whole_batch():
  params = helpers.make_params(CFG, 0)

  def by_hand(params):
    logits = lambda b: transformer.logits(
      CFG,
      params,
      transformer.forward(
        CFG,
        params,
        b.tokens_BT,
        (b.segment_BT > 0) * 1.0,
        segment_BT=b.segment_BT,
        position_BT=b.position_BT,
      ),
    )
    logprob_BTV = jax.nn.log_softmax(logits(BATCH))[:, :-1]
    target_BT = jnp.asarray(BATCH.tokens_BT)[:, 1:]
    nll_BT = -jnp.take_along_axis(logprob_BTV, target_BT[..., None], axis=-1)[..., 0]
    return jnp.sum(nll_BT * BATCH.loss_mask_BT[:, 1:]) / BATCH.loss_mask_BT.sum()

  loss, expected = helpers.quick_jit(jax.value_and_grad(by_hand))(params)
  actual, metrics = gradient_of(PLAIN)(params, BATCH, KEY)
  helpers.assert_leaves_close(actual, expected)
  metric = metrics["train/loss"]
  assert float(metric.total / metric.weight) == pytest.approx(float(loss), rel=1e-5)
  assert float(metric.weight) == BATCH.loss_mask_BT.sum()
  norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))
  assert float(metrics["train/grad_norm"]) == pytest.approx(norm, rel=1e-5)


def test_any_microbatch_size_gives_the_same_gradient():
  """Rows have different numbers of targets, so that a mean of means differs; dropout belongs to the
  row's place in the global batch."""
  params = helpers.make_params(CFG, 1)
  targets = BATCH.loss_mask_BT.sum(axis=1)
  assert len({targets[part::4].sum() for part in range(4)}) > 2
  whole, whole_metrics = gradient_of(DROPPING)(params, BATCH, KEY)
  gradient, metrics = gradient_of(dataclasses.replace(DROPPING, microbatch_size=2))(
    params, BATCH, KEY
  )
  helpers.assert_leaves_close(gradient, whole)
  for name in ("total", "weight"):
    assert float(getattr(metrics["train/loss"], name)) == pytest.approx(
      float(getattr(whole_metrics["train/loss"], name)), rel=1e-5
    )


def test_dropout_acts_and_its_key_decides():
  params = helpers.make_params(CFG, 2)
  loss = lambda p, key: float(gradient_of(p)(params, BATCH, key)[1]["train/loss"].total)
  assert loss(PLAIN, KEY) == loss(PLAIN, jax.random.key(2))
  assert loss(DROPPING, KEY) == loss(DROPPING, KEY)
  assert len({loss(PLAIN, KEY), loss(DROPPING, KEY), loss(DROPPING, jax.random.key(2))}) == 3
  # Equal rows of one batch drop different entries: it matters which of them is weighed.
  same = jax.tree.map(lambda x: x[np.zeros(8, int)], BATCH)
  of_row = lambda row: same.replace(
    loss_mask_BT=same.loss_mask_BT * (np.arange(8) == row)[:, None].astype(np.float32)
  )
  weighed = [
    float(gradient_of(DROPPING)(params, of_row(row), KEY)[1]["train/loss"].total)
    for row in range(8)
  ]
  assert len(set(weighed)) == 8


def test_without_dropout_nothing_is_random():
  params = helpers.make_params(CFG, 0)
  drawn = lambda p: (
    "random_bits"
    in helpers.primitives(jax.make_jaxpr(gradient_of(p).__wrapped__)(params, BATCH, KEY))
  )
  assert not drawn(PLAIN) and drawn(DROPPING)


@functools.cache
def adam_step():
  """(state before, one compiled step): weight decay, a clip that acts, dropout, microbatches."""
  tx = optim.make_optimizer(
    helpers.optim_config(learning_rate=2e-2, eps=1e-4, weight_decay=0.01, max_grad_norm=0.5), 100
  )
  p = sft_config(dropout_rate=0.1)
  step = helpers.quick_jit(functools.partial(sft.sft_update, CFG, p, tx, use_segments=True))
  return optim.init_train_state(tx, helpers.make_params(CFG, 4)), step


def test_golden_step():
  """To write the file anew: RLHF_UPDATE_GOLDEN=1 pytest -k golden_step"""
  before, step = adam_step()
  after, metrics = step(before, BATCH, KEY)
  helpers.check_golden(
    "sft",
    {
      "loss": metrics["train/loss"].total / metrics["train/loss"].weight,
      "grad_norm": metrics["train/grad_norm"],
      **helpers.summary("params", after.params),
    },
  )
  assert int(after.step) == 1  # of two microbatches
  moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.params, before.params)
  assert min(jax.tree.leaves(moved)) > 1e-4


def test_the_loss_falls_on_a_toy():
  """Counting upwards: the next id is one more than the last."""
  tokens_BT = (np.arange(12) + np.arange(8)[:, None]) % 12 + 8
  toy = dataclasses.replace(
    BATCH,
    tokens_BT=tokens_BT.astype(np.int32),
    segment_BT=np.ones((8, 12), np.int32),
    position_BT=np.tile(np.arange(12, dtype=np.int32), (8, 1)),
    loss_mask_BT=np.tile(np.float32([0] + [1] * 11), (8, 1)),
  )
  state, step = adam_step()
  losses = []
  for number in range(80):
    state, metrics = step(state, toy, jax.random.fold_in(KEY, number))
    losses.append(float(metrics["train/loss"].total / metrics["train/loss"].weight))
  assert losses[0] > 2.0 and np.mean(losses[-5:]) < 0.2
  assert int(state.step) == 80


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(microbatch_size=3), "sft.batch_size 8 does not divide into sft.microbatch_size 3"),
    (dict(microbatch_size=0), "sft.microbatch_size"),
    (dict(dropout_rate=1.0), "sft.dropout_rate 1.0 must be at least 0 and below 1"),
  ],
  ids=str,
)
def test_impossible_numbers_are_refused(changes, message: str):
  with pytest.raises(ValueError, match=message):
    sft_config(**changes)
