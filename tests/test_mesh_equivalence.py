"""Losses and gradients of the three algorithms on meshes of 8 devices are those of one device."""

import dataclasses
import functools
import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf import metrics as metrics_lib
from rlhf import networks, optim, ppo, reward_model, sft, sharding
from rlhf.reward_model import RewardConfig
from rlhf.sft import SftConfig
from rlhf.sharding import MeshConfig
from rlhf.types import PpoState

# Heads, width and rows that 8 devices divide; one kind of layer, because compiling takes the time.
CFG = helpers.model_config(num_heads=8, context_length=8, band_width=None)
MODELS = ppo.Models(policy=CFG, reward=CFG)
ROWS, LENGTH = 16, 8
PPO = helpers.ppo_config(
  batch_size=ROWS,
  minibatch_size=ROWS,
  microbatch_size=8,
  max_prompt_tokens=4,
  max_response_tokens=4,
  ptx_coef=2.0,
  ptx_ratio=1,
  ptx_length=LENGTH,
  ptx_microbatch_size=8,
)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)]
mesh_ids = lambda sizes: "x".join(map(str, sizes))


@functools.cache
def mesh_of(sizes):
  return sharding.make_mesh(MeshConfig(**dict(zip(("data", "fsdp", "tensor"), sizes))))


def run_sft(state, batch, key):
  """Dropout is on: what it drops may not depend on the mesh either."""
  p = SftConfig(
    batch_size=ROWS,
    microbatch_size=8,
    num_epochs=1,
    max_steps=None,
    dropout_rate=0.2,
    keep_epochs=False,
    keep_rows=None,
  )
  return sft.sft_update(CFG, p, helpers.record_gradient(), state, batch, key, use_segments=True)


def run_reward(state, batch, key):
  del key
  p = RewardConfig(batch_size=ROWS, microbatch_size=8, num_epochs=1, pairs=False)
  return reward_model.reward_update(CFG, p, helpers.record_gradient(), state, batch)


def run_ppo(state, batch, key):
  ptx = jax.tree.map(lambda x: x[None], helpers.make_lm_batch(ROWS, LENGTH, 1))
  return ppo.ppo_update(
    MODELS, PPO, helpers.record_gradient(), state, batch, ptx, key, use_segments=True
  )


def start(name: str):
  """(state, batch) on the host's side."""
  tx = helpers.record_gradient()
  policy, reward = helpers.make_params(CFG, 0), helpers.make_params(CFG, 1, head=True)
  if name == "sft":
    return optim.init_train_state(tx, policy), helpers.make_lm_batch(ROWS, LENGTH, 0)
  if name == "reward_model":
    return optim.init_train_state(tx, reward), helpers.make_comparisons(ROWS, 3, LENGTH, 0)
  state = PpoState(
    train=optim.init_train_state(tx, {"policy": policy, "value": reward}),
    ema_params=policy,
    kl_coef=jnp.float32(0.1),
  )
  return state, helpers.make_ppo_batch(ROWS, LENGTH, 0)


RUNS = {"sft": run_sft, "reward_model": run_reward, "ppo_ptx": run_ppo}


def gradient_of(state):
  return state.train.opt_state if isinstance(state, PpoState) else state.opt_state


@functools.cache
def on_one_device(name: str):
  state, metrics = jax.device_get(helpers.quick_jit(RUNS[name])(*start(name), jax.random.key(0)))
  return gradient_of(state), metrics_lib.summarise(metrics)


@pytest.mark.parametrize("sizes", MESHES, ids=mesh_ids)
@pytest.mark.parametrize("name", RUNS)
def test_losses_and_gradients_equal_those_of_one_device(name: str, sizes):
  mesh, (state, batch) = mesh_of(sizes), start(name)
  layout = sharding.state_shardings(mesh, state)
  with jax.set_mesh(mesh):
    state = jax.device_put(state, layout)
    update = helpers.quick_jit(RUNS[name], out_shardings=(layout, None))
    state, metrics = update(state, sharding.put_batch(mesh, batch), jax.random.key(0))
  expected_gradient, expected_metrics = on_one_device(name)
  helpers.assert_leaves_close(gradient_of(state), expected_gradient)
  assert metrics_lib.summarise(metrics) == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)
  # Every leaf of parameters and gradient is in as many parts as its rule names devices.
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradient_of(state)):
    names = sharding.path_name(path).removeprefix("policy/").removeprefix("value/")
    axes = [axis for axis in sharding.param_spec(names) if axis is not None]
    parts = int(np.prod([mesh.shape[axis] for axis in axes]))
    assert leaf.addressable_shards[0].data.size * parts == leaf.size, names


def test_a_sequence_that_is_split_over_tensor_changes_no_gradient():
  mesh, (state, batch) = mesh_of((2, 2, 2)), start("ppo_ptx")
  cfg = helpers.replace(CFG, shard_sequence=True, remat="block")
  layout = sharding.state_shardings(mesh, state)

  def run(state, batch, key):
    ptx = jax.tree.map(lambda x: x[None], helpers.make_lm_batch(ROWS, LENGTH, 1))
    return ppo.ppo_update(
      ppo.Models(policy=cfg, reward=cfg),
      PPO,
      helpers.record_gradient(),
      state,
      batch,
      ptx,
      key,
      use_segments=True,
    )

  with jax.set_mesh(mesh):
    update = helpers.quick_jit(run, out_shardings=(layout, None))
    state, metrics = update(
      jax.device_put(state, layout), sharding.put_batch(mesh, batch), jax.random.key(0)
    )
  helpers.assert_leaves_close(gradient_of(state), on_one_device("ppo_ptx")[0])
  assert metrics_lib.summarise(metrics) == pytest.approx(
    on_one_device("ppo_ptx")[1], rel=1e-5, abs=1e-6
  )


def test_parameters_after_a_step_of_gradient_descent_are_those_of_one_device():
  """Plain gradient descent: Adam would divide rounding errors by themselves."""
  tx = optax.sgd(0.5)
  p = SftConfig(
    batch_size=ROWS,
    microbatch_size=8,
    num_epochs=1,
    max_steps=None,
    dropout_rate=0.0,
    keep_epochs=False,
    keep_rows=None,
  )
  begin = lambda: optim.init_train_state(tx, helpers.make_params(CFG, 0))
  batch = helpers.make_lm_batch(ROWS, LENGTH, 0)

  def step(state, batch):
    return sft.sft_update(CFG, p, tx, state, batch, jax.random.key(0), use_segments=True)[0]

  expected, before = helpers.quick_jit(step)(begin(), batch).params, begin().params
  mesh = mesh_of((2, 2, 2))
  with jax.set_mesh(mesh):
    state = jax.device_put(begin(), sharding.state_shardings(mesh, begin()))
    actual = helpers.quick_jit(step)(state, sharding.put_batch(mesh, batch)).params
  helpers.assert_leaves_close(actual, expected)
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), jax.device_get(expected), before)
  assert min(jax.tree.leaves(moved)) > 0


def test_a_network_is_born_in_its_layout():
  mesh = mesh_of((2, 2, 2))
  tokenizer = types.SimpleNamespace(num_ids=CFG.vocab_size, pad_id=CFG.pad_id)
  params = networks.create(CFG, tokenizer, jax.random.key(0), mesh).params
  token, kernel = params["embed"]["token"], params["blocks"]["layer_0"]["mlp"]["in"]["kernel"]
  assert token.addressable_shards[0].data.shape == (64, 8)
  assert kernel.addressable_shards[0].data.shape == (2, 8, 32)
  one = networks.create(
    CFG,
    tokenizer,
    jax.random.key(0),
    sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]),
  ).params
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-6),
    jax.device_get(params),
    jax.device_get(one),
  )


def episodes(rollout_slots=None, **decoding):
  """(networks, prompts, function of both and a key that rolls out)."""
  p = dataclasses.replace(PPO, rollout_slots=rollout_slots)
  cfg = helpers.replace(CFG, vocab_size=10, **decoding)  # end-of-text comes now and then
  models = ppo.Models(policy=cfg, reward=cfg)
  policy, ref = helpers.make_params(cfg, 0), helpers.make_params(cfg, 1)
  reward = helpers.make_params(cfg, 2, head=True)
  prompts = helpers.make_prompts(ROWS, 4, 0)
  tokens_BP = np.where(prompts.tokens_BP >= 10, 8, prompts.tokens_BP).astype(np.int32)
  prompts = prompts.replace(tokens_BP=tokens_BP)

  def run(params, ref, reward, prompts, key):
    return ppo.rollout(models, p, params, ref, reward, prompts, key, eot_id=helpers.EOT)

  return ({"policy": policy, "value": reward}, ref, reward), prompts, run


@functools.cache
def episodes_on_one_device():
  nets, prompts, run = episodes()
  return jax.device_get(helpers.quick_jit(run)(*nets, prompts, jax.random.key(0)))


@pytest.mark.parametrize(
  "decoding",
  [
    dict(decode_split="tensor", decode_scan=False),
    dict(decode_split="fsdp_tensor", decode_scan=True),
    dict(decode_split="tensor", decode_scan=True, rollout_slots=ROWS // 2),
    dict(decode_split="tensor", decode_scan=False, rollout_slots=4),
  ],
  ids=["tensor", "fsdp_tensor", "half the slots", "a slot on each device"],
)
def test_episodes_are_the_same_on_a_mesh(decoding):
  """Tokens are drawn with the keys of their rows, and the scores are those of one device."""
  (nets, prompts, run), expected = episodes(**decoding), episodes_on_one_device()
  mesh = mesh_of((2, 2, 2))
  with jax.set_mesh(mesh):
    placed = [jax.device_put(net, sharding.state_shardings(mesh, net)) for net in nets]
    actual = jax.device_get(
      helpers.quick_jit(run)(*placed, sharding.put_batch(mesh, prompts), jax.random.key(0))
    )
  assert 0 < expected.finished_B.sum() < ROWS
  for field in dataclasses.fields(expected):
    np.testing.assert_allclose(
      getattr(actual, field.name), getattr(expected, field.name), atol=3e-5, err_msg=field.name
    )
