"""Every form of the transformer: what must hold whatever the config says.

That each form is the published one is `test_interop.py`'s business; here it is that all forms
decode as they read, ignore padding, shard and count their parameters.
"""

import dataclasses
import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf import optim, ppo, ppo_setup, sharding
from rlhf.configs import models as model_configs
from rlhf.model import architecture, layers, lora, transformer
from rlhf.sharding import MeshConfig

ROTARY = dict(positions="rotary", rope_base=100.0, rope_fraction=1.0)
LLAMA = ROTARY | dict(
  norm="rms",
  activation="swiglu",
  qkv_bias=False,
  attention_out_bias=False,
  mlp_bias=False,
  num_heads=4,
  num_kv_heads=2,
  head_size=8,
  mlp_width=24,
  tied_output=False,
  band_width=None,
)
FORMS = {
  "gpt3": {},
  "opt": dict(position_offset=2, activation="relu", band_width=None),
  "opt_350m": dict(
    position_offset=2,
    activation="relu",
    band_width=None,
    norm_placement="post",
    final_norm=False,
    embed_width=8,
  ),
  "neox": ROTARY
  | dict(
    rope_fraction=0.5,
    activation="gelu_exact",
    parallel_residual=True,
    tied_output=False,
    band_width=None,
  ),
  "llama": LLAMA
  | dict(
    rope_scaling="llama3",
    rope_factor=4.0,
    rope_low_freq_factor=1.0,
    rope_high_freq_factor=4.0,
    rope_original_context=8,
  ),
  "qwen3": LLAMA | dict(qk_norm=True, tied_output=True, num_kv_heads=1),
  "gemma3": LLAMA
  | dict(
    norm_offset=1.0,
    norm_placement="sandwich",
    qk_norm=True,
    activation="geglu",
    embed_scale=4.0,
    attention_scale=0.2,
    tied_output=True,
    band_width=3,
    num_layers=5,
    layer_pattern="banded,banded,dense",
    band_rope_base=10.0,
    rope_scaling="linear",
    rope_factor=8.0,
  ),
}
SCANNED = [dict(decode_scan=False), dict(decode_scan=True)]


def make(form: str, **changes):
  return helpers.model_config(**(dict(num_layers=4) | FORMS[form] | changes))


@functools.cache
def made(form: str):
  cfg = make(form)
  return cfg, helpers.make_params(cfg, 1)


def test_the_defaults_are_the_configs_of_gpt_3():
  """The fields stand in `configs/models.py` too, where people override them."""
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(architecture.ModelConfig)
    if field.default is not dataclasses.MISSING
  }
  assert defaults.pop("lora_scale") == 0.0  # `lora.LoraConfig` says it
  for name in ("vocab_size", "pad_id", "compute"):  # of the tokenizer, and of another group
    del defaults[name]
  assert defaults == model_configs.GPT3_ARCHITECTURE


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_is_counted_and_has_both_rules(form: str):
  cfg, params = made(form)
  paths = [
    (sharding.path_name(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  ]
  for name, leaf in paths:
    assert len(sharding.param_spec(name)) == leaf.ndim, name
    stacked = name.startswith("blocks/")
    assert len(sharding.decode_spec(name, "fsdp_tensor", stacked=False)) == leaf.ndim - stacked
    assert len(sharding.decode_spec(name, "fsdp_tensor", stacked=True)) == leaf.ndim, name
  outside = sum(leaf.size for name, leaf in paths if not name.startswith(("embed", "output")))
  assert outside == cfg.num_block_params
  assert ("tail" in params) == (form == "gemma3")


# Scanned decoding differs from unrolled only around the block, so some forms show it.
@pytest.mark.parametrize(
  "form,scanned",
  [
    *((form, SCANNED[0]) for form in FORMS),
    *((form, SCANNED[1]) for form in ("gpt3", "llama", "gemma3")),
  ],
  ids=str,
)
def test_decoding_reads_as_the_whole_row_does(form: str, scanned):
  """Left-padded prompts of different lengths, then token by token."""
  cfg, params = made(form)
  cfg = helpers.replace(cfg, **scanned)
  prompts = helpers.make_prompts(3, 6, 0)
  rng = np.random.default_rng(0)
  answer_BR = np.stack([helpers.random_ids(rng, 4) for _ in range(3)])

  @helpers.quick_jit
  def decode(params, prompts, answer_BR):
    params = transformer.decoding_params(cfg, params)
    logits_BV, cache = transformer.prefill(
      cfg, params, prompts.tokens_BP, prompts.mask_BP, num_slots=10
    )
    found = [logits_BV]
    for r in range(4):
      logits_BV, cache = transformer.decode_step(cfg, params, cache, answer_BR[:, r])
      found.append(logits_BV)
    return jnp.stack(found, axis=1)

  tokens_BT = np.concatenate([prompts.tokens_BP, answer_BR], axis=1)
  mask_BT = np.concatenate([prompts.mask_BP, np.ones((3, 4))], axis=1).astype(np.float32)
  whole = helpers.quick_jit(
    lambda params, tokens_BT, mask_BT: transformer.logits(
      cfg, params, transformer.forward(cfg, params, tokens_BT, mask_BT)
    )
  )
  expected_BRV = whole(params, tokens_BT, mask_BT)[:, 5:]
  np.testing.assert_allclose(decode(params, prompts, answer_BR), expected_BRV, atol=3e-5)
  # Padding on the other side changes nothing either.
  num_real = int(mask_BT[1].sum())
  right = np.zeros_like(tokens_BT), np.zeros_like(mask_BT)
  right[0][1, :num_real], right[1][1, :num_real] = tokens_BT[1][mask_BT[1] > 0], 1
  np.testing.assert_allclose(whole(params, *right)[1, num_real - 1], expected_BRV[1, -1], atol=3e-5)


@pytest.mark.parametrize(
  "form", [pytest.param("opt_350m", marks=pytest.mark.slow), "llama", "gemma3"]
)
def test_gradients_are_the_same_on_a_mesh(form: str):
  cfg, params = made(form)
  cfg = helpers.replace(cfg, remat="block")
  batch = helpers.make_lm_batch(8, 12, 0)
  gradient = lambda params, batch: jax.grad(
    lambda params: transformer.lm_loss(cfg, params, batch, use_segments=True).total
  )(params)
  expected = helpers.quick_jit(gradient)(params, batch)
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.param_shardings(mesh, params))
    actual = helpers.quick_jit(gradient)(placed, sharding.put_batch(mesh, batch))
  helpers.assert_leaves_close(actual, expected)


def test_rotation_depends_on_distance_alone_and_leaves_what_is_not_rotated():
  cfg = make("neox")
  frequency_f = layers.rope_frequencies(cfg, "dense")
  np.testing.assert_allclose(frequency_f, 100.0 ** -(np.arange(0, 4, 2) / 4), rtol=1e-6)
  query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def product(t, s):
    place = lambda x, position: layers.rotate(x, jnp.full((1, 1), position), frequency_f)
    return float(jnp.sum(place(query, t) * place(key, s)))

  assert product(9, 4) == pytest.approx(product(5, 0), abs=1e-5)
  assert abs(product(9, 4) - product(9, 0)) > 1e-2
  turned = layers.rotate(query, jnp.full((1, 1), 3), frequency_f)
  np.testing.assert_array_equal(turned[..., 4:], query[..., 4:])
  assert np.abs(turned[..., :4] - query[..., :4]).min() > 1e-3


def test_frequencies_are_scaled_as_named():
  """Dense layers only, where banded ones have a base of their own (Gemma 3)."""
  gemma = make("gemma3", head_size=16)
  plain = 100.0 ** -(np.arange(0, 16, 2) / 16)
  np.testing.assert_allclose(layers.rope_frequencies(gemma, "dense"), plain / 8, rtol=1e-6)
  np.testing.assert_allclose(
    layers.rope_frequencies(gemma, "banded"), 10.0 ** -(np.arange(0, 16, 2) / 16), rtol=1e-6
  )
  llama = make("llama", head_size=16, rope_original_context=100)
  found, wavelength = layers.rope_frequencies(llama, "dense"), 2 * math.pi / plain
  short, long = wavelength < 100 / 4, wavelength > 100 / 1
  assert short.any() and long.any() and not (short | long).all()
  np.testing.assert_allclose(found[short], plain[short], rtol=1e-6)
  np.testing.assert_allclose(found[long], plain[long] / 4, rtol=1e-6)
  between = ~(short | long)
  smooth = (100 / wavelength[between] - 1) / (4 - 1)
  np.testing.assert_allclose(
    found[between], (1 - smooth) * plain[between] / 4 + smooth * plain[between], rtol=1e-6
  )


# ----------------------------------------------------------------------------- adapters


@functools.cache
def adapted(form: str):
  """A network and adapters that are not 0, as training would leave them."""
  cfg, params = made(form)
  lora_cfg = lora.LoraConfig(rank=2, alpha=3.0, targets="attention,mlp")
  adapters = lora.init_adapters(lora_cfg, params, jax.random.key(2))
  for leaf in jax.tree.leaves(adapters):
    assert leaf.dtype == jnp.float32
  moved = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), adapters
  )
  return helpers.replace(cfg, lora_scale=lora.scale(lora_cfg)), params, adapters, moved


@pytest.mark.parametrize("form", ["gpt3", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_adapters_start_at_nothing_and_merge_to_what_they_compute(form: str):
  cfg, params, adapters, moved = adapted(form)
  tokens_BT = np.asarray([helpers.random_ids(np.random.default_rng(1), 9)])
  mask_BT = np.ones((1, 9))
  read = helpers.quick_jit(lambda params: transformer.forward(cfg, params, tokens_BT, mask_BT))
  plain = read(params)
  np.testing.assert_allclose(read(lora.combine(params, adapters)), plain, atol=1e-6)
  beside = read(lora.combine(params, moved))
  assert np.abs(beside - plain).max() > 1e-2
  merged = lora.merge(lora.combine(params, moved), cfg.lora_scale)
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  np.testing.assert_allclose(read(merged), beside, atol=2e-5)


@pytest.mark.parametrize("form", ["gpt3", "gemma3"])
def test_every_adapter_has_the_layout_of_its_kernel(form: str):
  _, params, adapters, _ = adapted(form)
  for path, leaf in jax.tree_util.tree_leaves_with_path(adapters):
    name = sharding.path_name(path)
    spec = sharding.param_spec(name)
    assert len(spec) == leaf.ndim, name
    kernel = sharding.param_spec(f"{name.rpartition('/')[0]}/kernel")
    kept = [axis for axis in (spec[:-1] if name.endswith("lora_a") else spec[1:]) if axis]
    assert kept and all(axis in kernel for axis in kept), name
  count = lambda tree: len(jax.tree.leaves(tree))
  per_layer = {"gpt3": 4, "gemma3": 6}[form]
  assert count(adapters) == 2 * per_layer * len(
    [layer for part in ("blocks", "tail") if part in params for layer in params[part]]
  )


def test_without_adapters_an_export_copies_nothing():
  _, params = made("gpt3")
  frozen, trained = lora.split(lora.NO_ADAPTERS, params, jax.random.key(0))
  assert frozen is None and lora.merged(lora.NO_ADAPTERS, frozen, trained) is params


@pytest.mark.parametrize("form", ["llama", "opt_350m"])
def test_a_scalar_head_has_no_output_matrix_beside_it(form: str):
  """It would never be trained, and its optimizer state be kept."""
  cfg, params = made(form)
  small, trunk = transformer.without_output(cfg, params)
  assert small.tied_output and "token" not in (trunk["output"] if "output" in trunk else {})
  tokens_BT = np.asarray([helpers.random_ids(np.random.default_rng(1), 9)])
  hidden = [
    helpers.quick_jit(functools.partial(transformer.forward, c))(p, tokens_BT, np.ones((1, 9)))
    for c, p in ((cfg, params), (small, trunk))
  ]
  np.testing.assert_array_equal(*hidden)
  value = ppo_setup.init_value(
    ppo.Models(policy=cfg, reward=small),
    helpers.ppo_config(value_init="policy"),
    params,
    dict(trunk, head={}),
    None,
  )
  assert set(value) == set(trunk) | {"head"}


def test_adapters_of_attention_alone_and_of_names_that_are_none():
  _, params = made("gpt3")
  cfg = lora.LoraConfig(rank=1, alpha=1.0, targets="attention")
  adapters = lora.init_adapters(cfg, params, jax.random.key(0))
  assert set(adapters["blocks"]["layer_0"]) == {"attention"}
  assert set(adapters["blocks"]["layer_0"]["attention"]) == {"qkv", "out"}
  with pytest.raises(ValueError, match="lora.targets 'q_proj' names 'q_proj'"):
    lora.LoraConfig(rank=1, alpha=1.0, targets="q_proj")
  with pytest.raises(ValueError, match="'kernel' is both frozen and trained"):
    lora.combine(params, {"blocks": {"layer_0": {"mlp": {"in": {"kernel": 0}}}}})


@pytest.mark.parametrize(
  "value_network,value_init",
  [
    ("separate", "reward_model"),
    pytest.param("separate", "policy", marks=pytest.mark.slow),
    pytest.param("shared", "reward_model", marks=pytest.mark.slow),
  ],
)
def test_ppo_trains_adapters_beside_the_reference_itself(value_network: str, value_init: str):
  """No second copy: the frozen arrays are those of the reference and of the reward model; the first
  ratio is 1; what is not an adapter or a head has no optimizer state and does not move."""
  cfg, policy = made("llama")
  cfg = helpers.replace(cfg, lora_scale=1.5)
  reward = helpers.make_params(cfg, 3, head=True)
  models = ppo.Models(policy=cfg, reward=cfg)
  p = helpers.ppo_config(value_network=value_network, value_init=value_init)
  lora_cfg = lora.LoraConfig(rank=2, alpha=3.0, targets="attention,mlp")
  tx = optim.per_network(
    {name: optim.make_optimizer(helpers.optim_config(), 10) for name in ("policy", "value")}
  )
  state = ppo_setup.init_state(models, p, tx, policy, reward, jax.random.key(1), lora_cfg)
  frozen = ppo_setup.frozen_networks(p, lora_cfg, policy, reward)
  assert frozen["policy"]["embed"]["token"] is policy["embed"]["token"]
  if value_network == "separate":
    origin = reward if value_init == "reward_model" else policy
    assert frozen["value"]["embed"]["token"] is origin["embed"]["token"]
  names = {
    sharding.path_name(path).rpartition("/")[2]
    for path, _ in jax.tree_util.tree_leaves_with_path(state.train.params["policy"])
  }
  assert names == set(lora.LEAVES)
  if value_network == "separate" and value_init == "reward_model":
    np.testing.assert_array_equal(
      state.train.params["value"]["head"]["kernel"], reward["head"]["kernel"]
    )

  collect = helpers.quick_jit(functools.partial(ppo.collect, models, p, eot_id=helpers.EOT))
  batch, metrics = collect(
    state.train.params,
    policy,
    reward,
    helpers.make_prompts(p.batch_size, p.max_prompt_tokens, 0),
    state.kl_coef,
    jax.random.key(2),
    frozen,
  )
  assert float(metrics["objective/kl"].total) == 0.0  # the adapters' product is 0
  ptx = jax.tree.map(
    lambda x: jnp.asarray(x).reshape(p.updates_per_iteration, -1, x.shape[-1]),
    helpers.make_lm_batch(p.updates_per_iteration * p.num_ptx_per_minibatch, p.ptx_length, 0),
  )
  update = helpers.quick_jit(
    functools.partial(ppo.update_and_control, models, p, tx, use_segments=False)
  )
  new, metrics = update(state, batch, ptx, metrics["objective/kl"], jax.random.key(3), frozen)
  assert float(metrics["ppo/ratio_error_first"]) < 1e-5
  moved = jax.tree.map(
    lambda a, b: float(jnp.abs(a - b).max()), new.train.params, state.train.params
  )
  assert all(value > 0 for value in jax.tree.leaves(moved["policy"]))
  merged = lora.merged(lora_cfg, frozen["policy"], new.ema_params)
  assert jax.tree.structure(merged) == jax.tree.structure(policy)
