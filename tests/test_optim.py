"""Schedules, Adam, clipping, decay and gradient accumulation, by hand."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf import optim

# ----------------------------------------------------------------------------- schedules


def test_warm_up_starts_at_a_tenth_and_takes_its_steps():
  # PPO's: 10 iterations of 8 updates, then constant.
  cfg = helpers.optim_config(learning_rate=2.0, warmup_steps=80)
  schedule = optim.make_schedule(cfg, 1000)
  for step, expected in (
    (0, 0.2),
    (1, 0.2 + 1.8 / 80),
    (40, 1.1),
    (79, 2.0 - 1.8 / 80),
    (80, 2.0),
    (81, 2.0),
    (999, 2.0),
  ):
    assert float(schedule(step)) == pytest.approx(expected), step


def test_cosine_and_linear_end_at_their_final_ratio():
  for schedule, middle in (("cosine", 0.1 + 0.9 * 0.5), ("linear", 0.55)):
    cfg = helpers.optim_config(learning_rate=4.0, schedule=schedule, final_ratio=0.1)
    rate = optim.make_schedule(cfg, 100)
    assert float(rate(0)) == pytest.approx(4.0)
    assert float(rate(50)) == pytest.approx(4.0 * middle)
    assert float(rate(100)) == float(rate(150)) == pytest.approx(0.4)
  quarter = optim.make_schedule(
    helpers.optim_config(learning_rate=4.0, schedule="cosine", final_ratio=0.1), 100
  )(25)
  assert float(quarter) == pytest.approx(4 * (0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2))


def test_the_decay_spans_what_the_warm_up_leaves():
  cfg = helpers.optim_config(learning_rate=1.0, schedule="linear", final_ratio=0.0, warmup_steps=20)
  rate = optim.make_schedule(cfg, 120)
  assert float(rate(20)) == pytest.approx(1.0)
  assert float(rate(70)) == pytest.approx(0.5)
  assert float(rate(120)) == pytest.approx(0.0)


def test_an_unknown_schedule_is_named():
  with pytest.raises(ValueError, match="'exponential'; choose from .*cosine"):
    helpers.optim_config(schedule="exponential")


# ----------------------------------------------------------------------------- Adam


def adam_by_hand(cfg, param, grads, rate_of_step):
  """Adam of float64 scalars; eps outside the root of the corrected second moment."""
  m = v = 0.0
  for step, grad in enumerate(grads):
    m, v = cfg.b1 * m + (1 - cfg.b1) * grad, cfg.b2 * v + (1 - cfg.b2) * grad**2
    m_hat, v_hat = m / (1 - cfg.b1 ** (step + 1)), v / (1 - cfg.b2 ** (step + 1))
    change = m_hat / (np.sqrt(v_hat) + cfg.eps) + cfg.weight_decay * param
    param = param - rate_of_step(step) * change
  return param


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_by_hand(weight_decay: float):
  # eps is large, so that its place shows; so is the difference between the two betas.
  cfg = helpers.optim_config(
    learning_rate=0.5,
    schedule="linear",
    final_ratio=0.0,
    b1=0.8,
    b2=0.6,
    eps=0.3,
    weight_decay=weight_decay,
  )
  tx = optim.make_optimizer(cfg, 10)
  state = optim.init_train_state(tx, {"kernel": jnp.asarray([[2.0]])})
  assert int(state.step) == 0
  grads = [0.5, -2.0, 1.0, 0.25]
  for number, grad in enumerate(grads):
    state = optim.apply_gradient(tx, state, {"kernel": jnp.asarray([[grad]])})
    assert int(state.step) == number + 1
  expected = adam_by_hand(cfg, 2.0, grads, lambda step: 0.5 * (1 - step / 10))
  assert float(state.params["kernel"][0, 0]) == pytest.approx(expected, rel=1e-5)


def test_the_clip_is_of_the_global_norm():
  cfg = helpers.optim_config(learning_rate=0.1, b1=0.9, b2=0.99, eps=0.5, max_grad_norm=1.0)
  tx = optim.make_optimizer(cfg, 10)
  state = optim.init_train_state(tx, {"a": jnp.zeros(1), "b": jnp.zeros(1)})
  # The first gradient has norm 5 and is scaled to 1; the second has norm 0.5 and is left alone.
  for a, b in ((3.0, 4.0), (0.3, 0.4)):
    state = optim.apply_gradient(tx, state, {"a": jnp.asarray([a]), "b": jnp.asarray([b])})
  for name, grads in (("a", [0.6, 0.3]), ("b", [0.8, 0.4])):
    expected = adam_by_hand(cfg, 0.0, grads, lambda step: 0.1)
    assert float(state.params[name][0]) == pytest.approx(expected, rel=1e-5)


def test_weight_decay_spares_biases_and_norms():
  cfg = helpers.model_config()
  params = helpers.make_params(cfg, 0, head=True)
  tx = optim.make_optimizer(helpers.optim_config(learning_rate=0.1, weight_decay=0.5), 10)
  step = lambda params: optim.apply_gradient(
    tx, optim.init_train_state(tx, params), jax.tree.map(jnp.zeros_like, params)
  )
  state = helpers.quick_jit(step)(params)
  flat = lambda tree: dict(
    (jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  )
  before, after = flat(params), flat(state.params)
  spared = {"final_norm/bias", "final_norm/scale", "head/bias"}
  for layer in ("blocks/layer_0", "blocks/layer_1"):
    spared |= {
      f"{layer}/{norm}/{leaf}"
      for norm in ("attention_norm", "mlp_norm")
      for leaf in ("bias", "scale")
    }
    spared |= {
      f"{layer}/{part}/bias" for part in ("attention/qkv", "attention/out", "mlp/in", "mlp/out")
    }
  assert spared < before.keys()
  for name, leaf in before.items():
    factor = 1.0 if name in spared else 1 - 0.1 * 0.5
    np.testing.assert_allclose(after[name], factor * leaf, rtol=1e-5, err_msg=name)


def test_each_network_has_its_own_rate_and_its_own_clip():
  policy = helpers.optim_config(learning_rate=0.1, eps=0.5, max_grad_norm=1.0)
  value = dataclasses.replace(policy, learning_rate=0.01, max_grad_norm=10.0)
  tx = optim.per_network(
    {"policy": optim.make_optimizer(policy, 10), "value": optim.make_optimizer(value, 10)}
  )
  state = optim.init_train_state(tx, {"policy": {"w": jnp.zeros(1)}, "value": {"w": jnp.zeros(1)}})
  for _ in range(2):
    state = optim.apply_gradient(
      tx, state, {"policy": {"w": jnp.asarray([4.0])}, "value": {"w": jnp.asarray([3.0])}}
    )
  # Under one clip for both the norm would be 5, and the value network's gradient would shrink too.
  for name, cfg, grads in (("policy", policy, [1.0, 1.0]), ("value", value, [3.0, 3.0])):
    expected = adam_by_hand(cfg, 0.0, grads, lambda step, cfg=cfg: cfg.learning_rate)
    assert float(state.params[name]["w"][0]) == pytest.approx(expected, rel=1e-5), name
  assert int(state.step) == 2


# ----------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("num_microbatches", [1, 2, 5])
def test_the_accumulated_gradient_is_that_of_the_sum(num_microbatches: int):
  x = np.arange(1.0, 11.0, dtype=np.float32).reshape(num_microbatches, -1)
  y = np.float32(2) * x + 1

  def loss(params, microbatch):
    x_m, y_m = microbatch
    error = params["slope"] * x_m - y_m
    return jnp.sum(error**2), {"count": jnp.float32(x_m.shape[0]), "sum": jnp.sum(y_m)}

  gradient, metrics = jax.jit(lambda p: optim.accumulated_gradient(loss, p, (x, y)))(
    {"slope": jnp.float32(3.0)}
  )
  # d/ds sum (s x - 2 x - 1)^2 = 2 sum x (x - 1) at s = 3: 2 * (385 - 55).
  assert float(gradient["slope"]) == pytest.approx(660)
  assert float(metrics["count"]) == 10 and float(metrics["sum"]) == pytest.approx(120)


def test_one_update_for_all_networks_is_an_optax_transformation():
  tx = optim.per_network({"policy": optax.sgd(1.0), "value": optax.sgd(0.5)})
  params = {"policy": jnp.ones(2), "value": jnp.ones(2)}
  updates, _ = tx.update(params, tx.init(params))
  np.testing.assert_allclose(updates["policy"], -1)
  np.testing.assert_allclose(updates["value"], -0.5)
