"""The transformer against a plain loop in float64, and all that must not change its output."""

import dataclasses
import functools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import PAD, VOCAB

from rlhf.model import transformer

CFG = helpers.model_config()
# Two repetitions of (dense, banded): the order of the scan shows.
DEEP = helpers.model_config(num_layers=4)


# ----------------------------------------------------------------------------- the loop


def layer_norm(x, norm):
  x = x - x.mean()
  return x / np.sqrt((x**2).mean() + 1e-5) * norm["scale"] + norm["bias"]


def gelu(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def is_banded(cfg, layer: int) -> bool:
  return cfg.layer_kinds[layer % cfg.pattern] == "banded"


def hidden_loop(cfg, params, ids):
  """Hidden states [T, D] of one sequence without padding: token by token, head by head."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = [params["embed"]["token"][i] + params["embed"]["position"][t] for t, i in enumerate(ids)]
  per_pattern = 1 if cfg.band_width is None else 2
  for layer in range(cfg.num_layers):
    p = jax.tree.map(
      lambda leaf: leaf[layer // per_pattern], params["blocks"][f"layer_{layer % per_pattern}"]
    )
    qkv = [
      np.einsum(
        "D,DcHd->cHd", layer_norm(x_t, p["attention_norm"]), p["attention"]["qkv"]["kernel"]
      )
      + p["attention"]["qkv"]["bias"]
      for x_t in x
    ]
    for t in range(len(x)):
      first = max(0, t - cfg.band_width + 1) if is_banded(cfg, layer) else 0
      for head in range(cfg.num_heads):
        logit = np.asarray([qkv[t][0, head] @ qkv[s][1, head] for s in range(first, t + 1)])
        weight = np.exp(logit / math.sqrt(cfg.width / cfg.num_heads))
        mixed = sum(w * qkv[s][2, head] for w, s in zip(weight / weight.sum(), range(first, t + 1)))
        x[t] = x[t] + mixed @ p["attention"]["out"]["kernel"][head]
      x[t] = x[t] + p["attention"]["out"]["bias"]
    for t in range(len(x)):
      inner = layer_norm(x[t], p["mlp_norm"]) @ p["mlp"]["in"]["kernel"] + p["mlp"]["in"]["bias"]
      x[t] = x[t] + gelu(inner) @ p["mlp"]["out"]["kernel"] + p["mlp"]["out"]["bias"]
  return np.stack([layer_norm(x_t, params["final_norm"]) for x_t in x])


def logprob_loop(cfg, params, ids, temperature: float = 1.0):
  """Log probability and entropy of each next token: [T-1]."""
  hidden, token_VD = hidden_loop(cfg, params, ids), np.asarray(params["embed"]["token"], np.float64)
  samplable = [i for i in range(cfg.vocab_size) if i != cfg.pad_id]
  logprob, entropy = [], []
  for t in range(len(ids) - 1):
    logit = token_VD[samplable] @ hidden[t] / temperature
    p = np.exp(logit - logit.max()) / np.exp(logit - logit.max()).sum()
    logprob.append(np.log(p[samplable.index(ids[t + 1])]))
    entropy.append(-(p * np.log(p)).sum())
  return np.asarray(logprob), np.asarray(entropy)


@functools.cache
def read(cfg):
  """One compiled function for all that a network says of rows; the temperature is an argument."""

  def everything(params, tokens_BT, mask_BT, temperature=1.0):
    hidden_BTD = transformer.forward(cfg, params, tokens_BT, mask_BT)
    logprob_BT, entropy_BT = transformer.policy_logprobs(
      cfg, params, tokens_BT, mask_BT, temperature=temperature
    )
    return dict(
      hidden=hidden_BTD,
      logprob=logprob_BT,
      entropy=entropy_BT,
      value=transformer.values(cfg, params, tokens_BT, mask_BT),
      score=transformer.scores(cfg, params, tokens_BT, mask_BT),
    )

  return helpers.quick_jit(everything)


def whole(ids):
  """One row without padding."""
  return np.asarray([ids], np.int32), np.ones((1, len(ids)), np.float32)


def sequence(length: int, seed: int) -> list[int]:
  return helpers.random_ids(np.random.default_rng(seed), length).tolist()


@pytest.mark.parametrize(
  "changes",
  [{}, {"layer_pattern": "banded,dense"}, {"band_width": None}, {"band_width": 1}],
  ids=str,
)
def test_hidden_states_against_a_plain_loop(changes):
  """Layer i has its own weights in their order, and is dense or banded as the parity says."""
  cfg = helpers.replace(DEEP, **changes)
  params, ids = helpers.make_params(cfg, 1), sequence(10, 0)
  hidden = helpers.quick_jit(functools.partial(transformer.forward, cfg))(params, *whole(ids))
  np.testing.assert_allclose(hidden[0], hidden_loop(cfg, params, ids), atol=2e-5)
  assert hidden.dtype == jnp.float32


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_log_probs_and_entropy_against_a_plain_loop(temperature: float):
  params, ids = helpers.make_params(CFG, 2, head=True), sequence(9, 1)
  out = read(CFG)(params, *whole(ids), temperature)
  expected_logprob, expected_entropy = logprob_loop(CFG, params, ids, temperature)
  np.testing.assert_allclose(out["logprob"][0], [0, *expected_logprob], atol=2e-5)
  np.testing.assert_allclose(out["entropy"][0], [0, *expected_entropy], atol=2e-5)


def test_values_are_of_the_state_before_and_scores_of_the_last_token():
  params, ids = helpers.make_params(CFG, 3, head=True), sequence(9, 2)
  scalar = hidden_loop(CFG, params, ids) @ np.asarray(params["head"]["kernel"])[:, 0]
  scalar = scalar + float(params["head"]["bias"][0])
  out = read(CFG)(params, *whole(ids), 1.0)
  np.testing.assert_allclose(out["value"][0], [0, *scalar[:-1]], atol=2e-5)
  np.testing.assert_allclose(out["score"], scalar[-1:], atol=2e-5)


# ----------------------------------------------------------------------------- the same, anywhere


SEQUENCES = [sequence(size, 10 + size) for size in (2, 5, 9, 8, 12)]
LENGTH = 14


def every_way():
  """(name, (tokens_BT, mask_BT), for each row: (its sequence, the slot of its first token))."""
  for number in (0, 2, 4):
    yield f"alone {number}", whole(SEQUENCES[number]), [(number, 0)]
  yield "right", helpers.right_padded(SEQUENCES, LENGTH), [(n, 0) for n in range(5)]
  rows = helpers.left_padded(SEQUENCES, LENGTH)
  yield (
    "left",
    (rows.tokens_BP, rows.mask_BP),
    [(n, LENGTH - len(SEQUENCES[n])) for n in range(5)],
  )
  order = [3, 1, 1, 4, 0, 2]
  yield (
    "another batch",
    helpers.right_padded([SEQUENCES[n] for n in order], LENGTH + 2),
    [(n, 0) for n in order],
  )


def test_what_is_said_of_a_sequence_is_the_same_wherever_it_stands():
  """Learned positions and bands break here first; one layer is dense and the other banded."""
  params = helpers.make_params(CFG, 4, head=True)
  logprobs = [logprob_loop(CFG, params, ids)[0] for ids in SEQUENCES]
  scalars = [
    hidden_loop(CFG, params, ids) @ np.asarray(params["head"]["kernel"], np.float64)[:, 0]
    + np.asarray(params["head"]["bias"], np.float64)[0]
    for ids in SEQUENCES
  ]
  for name, rows, places in every_way():
    out = read(CFG)(params, *rows, 1.0)
    for row, (number, start) in enumerate(places):
      inside = slice(start + 1, start + len(SEQUENCES[number]))
      close = functools.partial(np.testing.assert_allclose, atol=2e-5, err_msg=name)
      close(out["logprob"][row, inside], logprobs[number])
      close(out["value"][row, inside], scalars[number][:-1])
      if name != "left":  # scores read right-padded rows
        close(out["score"][row], scalars[number][-1])


def test_later_tokens_change_nothing_before_them():
  params, ids = helpers.make_params(CFG, 6, head=True), sequence(12, 3)
  other = [*ids[:7], (ids[7] + 1) % VOCAB, *ids[8:]]
  first, second = (
    np.asarray(read(CFG)(params, *whole(row), 1.0)["hidden"][0]) for row in (ids, other)
  )
  np.testing.assert_array_equal(first[:7], second[:7])
  assert np.abs(first - second)[7:].max(axis=1).min() > 1e-4


def test_positions_count_real_tokens():
  mask = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]], np.float32)
  np.testing.assert_array_equal(transformer.positions(mask), [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]])


# ----------------------------------------------------------------------------- cache


@pytest.mark.parametrize("decode_scan", [False, True])
@pytest.mark.parametrize("layer_pattern", ["dense,banded", "banded,dense"])
def test_prefill_and_decode_equal_the_full_forward_pass(layer_pattern: str, decode_scan: bool):
  cfg = helpers.replace(DEEP, layer_pattern=layer_pattern, decode_scan=decode_scan)
  params = helpers.make_params(cfg, 7)
  prompts = helpers.left_padded([ids[:-1] for ids in SEQUENCES], 12)
  num_steps = 4
  continuation_BR = helpers.random_ids(np.random.default_rng(0), (5, num_steps))
  rows = helpers.right_padded(
    [[*ids[:-1], *more] for ids, more in zip(SEQUENCES, continuation_BR)], 12 + num_steps
  )
  hidden_BTD = helpers.quick_jit(functools.partial(transformer.forward, cfg))(params, *rows)
  full_BTV = np.asarray(transformer.logits(cfg, params, hidden_BTD))

  prefill = helpers.quick_jit(functools.partial(transformer.prefill, cfg, num_slots=12 + num_steps))
  step = helpers.quick_jit(functools.partial(transformer.decode_step, cfg))
  laid_out = helpers.quick_jit(functools.partial(transformer.decoding_params, cfg))(params)
  logits_BV, cache = prefill(laid_out, prompts.tokens_BP, prompts.mask_BP)
  for t in range(num_steps + 1):
    for row, ids in enumerate(SEQUENCES):
      np.testing.assert_allclose(
        logits_BV[row], full_BTV[row, len(ids) - 2 + t], rtol=1e-5, atol=5e-5, err_msg=str(t)
      )
    if t < num_steps:
      logits_BV, cache = step(laid_out, cache, continuation_BR[:, t])


# ----------------------------------------------------------------------------- log-probs


def test_padding_and_rows_beyond_the_vocabulary_have_no_probability():
  params = helpers.make_params(CFG, 8)
  logits_V = np.asarray(transformer.logits(CFG, params, jnp.ones(CFG.width)))
  assert logits_V.shape == (128,) and logits_V.dtype == np.float32
  allowed = [i for i in range(VOCAB) if i != PAD]
  excluded = [PAD, *range(VOCAB, 128)]
  assert (logits_V[excluded] == np.float32(-1e30)).all()
  np.testing.assert_allclose(
    logits_V[allowed],
    np.asarray(params["embed"]["token"])[allowed].sum(axis=1),
    rtol=1e-5,
    atol=1e-5,
  )
  assert jax.nn.softmax(logits_V)[np.asarray(allowed)].sum() == pytest.approx(1)


def test_a_flat_model_has_the_entropy_of_the_ids_that_exist():
  params = jax.tree.map(np.zeros_like, jax.device_get(helpers.make_params(CFG, 0, head=True)))
  out = read(CFG)(params, *whole(sequence(9, 1)), 1.0)
  np.testing.assert_allclose(out["entropy"], [[0, *[math.log(VOCAB - 1)] * 8]], rtol=1e-6)
  np.testing.assert_allclose(out["logprob"], -out["entropy"], rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 11, 12])
def test_chunks_of_any_size_give_the_same_log_probs_and_gradients(chunk: int):
  """11 targets: 4 does not divide them, and 12 is more than there are."""
  params = helpers.make_params(CFG, 9)
  tokens_BT, _ = helpers.right_padded([sequence(12, 4), sequence(12, 5)], 12)
  hidden_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 16)), jnp.float32)
  weight_BT = jnp.asarray(np.random.default_rng(1).normal(size=(2, 12)), jnp.float32)

  def weighted(cfg, hidden_BTD, params):
    logprob_BT, entropy_BT = transformer.token_logprobs(
      cfg, params, hidden_BTD, tokens_BT, temperature=0.8
    )
    return jnp.sum(logprob_BT * weight_BT), (logprob_BT, entropy_BT)

  def run(chunk):
    cfg = helpers.replace(CFG, logprob_chunk=chunk)
    gradient = jax.grad(functools.partial(weighted, cfg), argnums=(0, 1), has_aux=True)
    return helpers.quick_jit(gradient)(hidden_BTD, params)

  gradient, outputs = run(chunk)
  whole_gradient, whole_outputs = run(64)
  for actual, expected in zip(outputs, whole_outputs):
    assert actual.shape == (2, 12)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
  helpers.assert_leaves_close(gradient[0], whole_gradient[0])
  helpers.assert_leaves_close(gradient[1]["embed"], whole_gradient[1]["embed"])


@pytest.mark.parametrize("chunk", [3, 64])
def test_log_probs_of_responses_are_those_of_whole_rows(chunk):
  """Values and gradients, for responses that begin early, end at the last token, or are short."""
  cfg = helpers.replace(CFG, logprob_chunk=chunk)
  params, length, most = helpers.make_params(cfg, 0), 12, 5
  tokens_BT, mask_BT = helpers.right_padded([sequence(12, 4), sequence(6, 5), sequence(9, 6)], 12)
  first_B1, last_B1 = np.array([[7], [1], [8]]), np.array([[12], [6], [9]])
  slot_T = np.arange(length)
  response_mask_BT = ((slot_T >= first_B1) & (slot_T < last_B1)).astype(np.float32)
  weight_BT = np.random.default_rng(0).standard_normal(mask_BT.shape) * response_mask_BT

  def plain(params):
    found = transformer.policy_logprobs(cfg, params, tokens_BT, mask_BT, temperature=0.7)
    return [x_BT * response_mask_BT for x_BT in found]

  def of_responses(params):
    hidden_BTD = transformer.forward(cfg, params, tokens_BT, mask_BT)
    return transformer.response_logprobs(
      cfg, params, hidden_BTD, tokens_BT, response_mask_BT, max_tokens=most, temperature=0.7
    )

  for x_BT, y_BT in zip(of_responses(params), plain(params), strict=True):
    np.testing.assert_allclose(x_BT, y_BT, atol=1e-5)
  loss = lambda function: lambda params: sum(jnp.sum(x * weight_BT) for x in function(params))
  helpers.assert_leaves_close(
    *(helpers.quick_jit(jax.grad(loss(function)))(params) for function in (of_responses, plain))
  )
  shapes = [
    v.aval.shape
    for e in helpers.equations(jax.make_jaxpr(jax.grad(loss(of_responses)))(params).jaxpr)
    for v in e.outvars
    if v.aval.shape[-1:] == (cfg.padded_vocab_size,)
  ]
  assert max(shape[-2] for shape in shapes if len(shape) > 2) == min(chunk, most)


def test_no_more_than_a_chunk_of_logits_exists_at_once():
  cfg = helpers.replace(CFG, logprob_chunk=4)
  params, rows = helpers.make_params(cfg, 0), helpers.right_padded([sequence(12, 4)] * 3, 12)
  loss = lambda p: jnp.sum(transformer.policy_logprobs(cfg, p, *rows, temperature=1.0)[0])
  shapes = [
    v.aval.shape
    for e in helpers.equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    for v in e.outvars
    if v.aval.shape[-1:] == (cfg.padded_vocab_size,)
  ]
  assert max(math.prod(shape) for shape in shapes) == 3 * 4 * 128


# ----------------------------------------------------------------------------- language-model loss


def test_lm_loss_of_packed_documents():
  """With segments each document is read alone; without, they are one sequence."""
  cfg = dataclasses.replace(CFG, band_width=None)
  params, batch = helpers.make_params(cfg, 10), helpers.make_lm_batch(4, 12, 0)
  weight_BT = batch.loss_mask_BT * np.random.default_rng(2).random((4, 12)).astype(np.float32)
  weight_BT[0, 3] = 0.5  # a document's first token, which nothing precedes within its segment
  crossing = dataclasses.replace(
    batch, loss_mask_BT=weight_BT, position_BT=np.tile(np.arange(12, dtype=np.int32), (4, 1))
  )
  split = dataclasses.replace(batch, loss_mask_BT=batch.loss_mask_BT * weight_BT)
  loss = lambda **choice: helpers.quick_jit(functools.partial(transformer.lm_loss, cfg, **choice))
  nll = loss(use_segments=False)(params, crossing)
  expected = 0.0
  for row in range(4):
    size = int((batch.segment_BT[row] > 0).sum())
    logprob, _ = logprob_loop(cfg, params, batch.tokens_BT[row, :size].tolist())
    expected -= logprob @ weight_BT[row, 1:size]
  assert float(nll.total) == pytest.approx(expected, rel=1e-5)
  assert float(nll.weight) == pytest.approx(weight_BT.sum(), rel=1e-6)

  nll = loss(use_segments=True)(params, split)
  expected = 0.0
  for row in range(4):
    for segment in (1, 2):
      slots = np.flatnonzero(batch.segment_BT[row] == segment)
      logprob, _ = logprob_loop(cfg, params, batch.tokens_BT[row, slots].tolist())
      expected -= logprob @ np.asarray(split.loss_mask_BT)[row, slots[1:]]
  assert float(nll.total) == pytest.approx(expected, rel=1e-5)


# ----------------------------------------------------------------------------- precision and memory


def test_bfloat16_multiplies_in_bfloat16_and_reports_float32():
  half = helpers.replace(CFG, dtype="bfloat16")
  params = helpers.make_params(CFG, 11, head=True)
  rows = helpers.right_padded(SEQUENCES, LENGTH)
  actual, expected = read(half)(params, *rows, 1.0), read(CFG)(params, *rows, 1.0)
  for name, leaf in actual.items():
    assert leaf.dtype == jnp.float32, name
    assert 1e-6 < np.abs(np.asarray(leaf - expected[name])).max() < 0.3, name
  products = [
    e
    for e in helpers.equations(
      jax.make_jaxpr(functools.partial(transformer.forward, half))(params, *rows).jaxpr
    )
    if e.primitive.name == "dot_general"
  ]
  assert {e.invars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}
  logits = jax.eval_shape(functools.partial(transformer.logits, half), params, jnp.ones((3, 16)))
  assert logits.dtype == jnp.float32
  shapes = jax.eval_shape(functools.partial(transformer.init_params, half), jax.random.key(0))
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def lm_gradient(cfg, batch):
  return jax.grad(lambda params: transformer.lm_loss(cfg, params, batch, use_segments=True).total)


def test_unrolled_layers_give_the_same_gradients():
  """Unrolled, no loop over layers is left; more repetitions than there are unroll all."""
  dense = dataclasses.replace(CFG, band_width=None)
  params, batch = helpers.make_params(dense, 12), helpers.make_lm_batch(3, 12, 1)
  gradient = lambda scan_unroll: lm_gradient(helpers.replace(dense, scan_unroll=scan_unroll), batch)
  looped = helpers.quick_jit(gradient(1))(params)
  for scan_unroll in (2, 5):
    helpers.assert_leaves_close(helpers.quick_jit(gradient(scan_unroll))(params), looped)
  loops = {
    scan_unroll: helpers.quick_jit(gradient(scan_unroll))
    .lower(params)
    .as_text()
    .count("stablehlo.while")
    for scan_unroll in (1, 2)
  }
  assert loops[1] > loops[2] == 0
  kept = lm_gradient(helpers.replace(dense, scan_unroll=2, remat="block"), batch)
  # What is recomputed stays in its loop: unrolled, the compiler would keep it after all.
  assert helpers.quick_jit(kept).lower(params).as_text().count("stablehlo.while") == loops[1]


def test_remat_policies_give_equal_gradients():
  dense = dataclasses.replace(CFG, band_width=None)
  params, batch = helpers.make_params(dense, 12), helpers.make_lm_batch(3, 12, 1)
  gradient = lambda remat: lm_gradient(helpers.replace(dense, remat=remat, scan_unroll=2), batch)
  gradients = {
    name: helpers.quick_jit(gradient(name))(params) for name in transformer.REMAT_POLICIES
  }
  for name in ("block", "dots"):
    helpers.assert_leaves_close(gradients[name], gradients["none"])

  assert len(gradients) == 3
  names = {
    name: [
      e.primitive.name for e in helpers.equations(jax.make_jaxpr(gradient(name))(params).jaxpr)
    ]
    for name in gradients
  }
  tanhs, products = (
    {name: found.count(which) for name, found in names.items()} for which in ("tanh", "dot_general")
  )
  assert tanhs["block"] == tanhs["dots"] > tanhs["none"]  # recomputed in the backward pass
  assert products["block"] > products["dots"] >= products["none"]  # "dots" keeps matrix products


# ----------------------------------------------------------------------------- dropout

NUM_SITES = 2 * DEEP.num_layers
ROW_KEYS = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(3), row))(jnp.arange(6))


@functools.cache
def dropout_forward(rate: float = 0.25):
  def forward(params, key_B):
    tokens_BT = jnp.ones((key_B.shape[0], 8), jnp.int32)
    return transformer.forward(
      DEEP, params, tokens_BT, jnp.ones((key_B.shape[0], 8)), dropout_rate=rate, dropout_key_B=key_B
    )

  return helpers.quick_jit(forward)


def constant_params(added: dict[int, float], first_entry: float = 0.0):
  """A model whose site s (attention of layer s // 2, or its MLP) adds a constant, or nothing."""
  params = jax.tree.map(np.zeros_like, jax.device_get(helpers.make_params(DEEP, 0)))
  params["final_norm"]["scale"] += 1
  params["embed"]["token"][:, 0] = first_entry
  for site, constant in added.items():
    layer, part = site // 2, ("attention", "mlp")[site % 2]
    params["blocks"][f"layer_{layer % 2}"][part]["out"]["bias"][layer // 2] = constant
  return params


def test_every_layer_and_sub_block_draws_its_own_dropout():
  """Two sites that add 1 and 3 give four different sums, unless they drop the same entries."""
  for first in range(NUM_SITES):
    for second in range(first):
      hidden_BTD = dropout_forward()(constant_params({first: 1.0, second: 3.0}), ROW_KEYS)
      different = [len(np.unique(np.round(x, 4))) for x in np.asarray(hidden_BTD).reshape(-1, 16)]
      assert max(different) == 4, (first, second)


def test_dropout_keeps_its_share_and_scales_what_it_keeps():
  hidden_BTD = np.asarray(dropout_forward()(constant_params({5: 1.0}, first_entry=10.0), ROW_KEYS))
  dropped = hidden_BTD.min(axis=-1, keepdims=True)
  kept = hidden_BTD[..., 1:] > dropped + 1e-3
  assert kept.mean() == pytest.approx(0.75, abs=0.05)
  # After the norm, distances keep their ratios: (1 / 0.75) to 10, or to 10 + 1 / 0.75.
  ratio = ((hidden_BTD - dropped)[..., 1:] / (hidden_BTD - dropped)[..., :1])[kept]
  scaled = 1 / 0.75
  near = np.minimum(np.abs(ratio - scaled / 10), np.abs(ratio - scaled / (10 + scaled)))
  assert near.max() < 1e-4


def test_dropout_belongs_to_the_key_of_the_row_and_not_to_its_place():
  params = helpers.make_params(DEEP, 13)
  whole = np.asarray(dropout_forward()(params, ROW_KEYS))
  np.testing.assert_allclose(dropout_forward()(params, ROW_KEYS[::-1])[::-1], whole, atol=1e-5)
  np.testing.assert_allclose(dropout_forward()(params, ROW_KEYS[:2]), whole[:2], atol=1e-5)
  assert np.abs(whole[0] - whole[1]).max() > 0.1  # equal tokens, other keys


# ----------------------------------------------------------------------------- parameters


def test_initial_deviations():
  cfg = helpers.model_config(
    width=64, num_layers=8, init_std=0.05, context_length=256, dtype="bfloat16"
  )
  params = helpers.quick_jit(functools.partial(transformer.init_params, cfg))(jax.random.key(0))
  layer = params["blocks"]["layer_1"]
  into = layer["mlp"]["in"]["kernel"]
  residual = 0.05 / math.sqrt(2 * 8)
  for leaf, std in (
    (params["embed"]["token"], 0.05),
    (params["embed"]["position"], 0.025),
    (layer["attention"]["qkv"]["kernel"], 0.05),
    (into, 0.05),
    (layer["attention"]["out"]["kernel"], residual),
    (layer["mlp"]["out"]["kernel"], residual),
  ):
    assert np.std(leaf) == pytest.approx(std, rel=0.05)
  for repetition in range(1, 4):  # each repetition of the scanned pattern draws its own
    assert not np.array_equal(into[0], into[repetition])
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = path[-1].key
    assert leaf.dtype == jnp.float32
    if name in ("bias", "scale"):
      assert (leaf == (name == "scale")).all()


def test_the_scalar_head_starts_with_deviation_of_one_over_width_plus_one():
  head = transformer.init_head(helpers.model_config(width=1024), jax.random.key(0))
  assert head["kernel"].shape == (1024, 1) and head["bias"].shape == (1,)
  assert np.std(head["kernel"]) == pytest.approx(1025**-0.5, rel=0.1)
  assert not head["bias"].any()


@pytest.mark.parametrize(
  "cfg",
  [CFG, DEEP, helpers.model_config(num_layers=4, band_width=None, width=24)],
  ids=["2", "4", "dense"],
)
def test_the_count_of_parameters(cfg):
  shapes = jax.eval_shape(functools.partial(transformer.init_params, cfg), jax.random.key(0))
  embed = shapes.pop("embed")
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == cfg.num_block_params
  assert embed["token"].shape == (128, cfg.width)  # 20 ids, in rows of 128
  assert embed["position"].shape == (16, cfg.width)


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(num_heads=3), "width 16 does not divide over num_heads 3"),
    (dict(num_kv_heads=3), "num_heads 2 does not divide into groups for num_kv_heads 3"),
    (dict(layer_pattern="dense,local"), "layer_pattern 'dense,local' names 'local'"),
    (dict(layer_pattern="dense"), "band_width 3 without a banded layer"),
    (dict(positions="rotary"), "rope_base is None, with positions 'rotary'.*give a number"),
    (dict(rope_base=1e4), "rope_base is 10000.0, with positions 'learned'.*use None"),
    (dict(rope_scaling="linear"), "rope_factor is None.*give a number"),
    (dict(rope_scaling="linear", rope_factor=2.0), "need positions='rotary'"),
    (dict(positions="rotary", rope_base=1e4, rope_fraction=0.4), "rotates 3 of head_size 8"),
    (dict(norm_placement="post", parallel_residual=True), "norm_placement 'post' with parallel"),
    (dict(pad_id=20), "pad_id 20 is outside the vocabulary of 20"),
    (dict(dtype="int8"), "dtype 'int8'; choose from"),
    (dict(remat="everything"), "remat 'everything'; choose from"),
    (dict(scan_unroll=0), "scan_unroll is 0; use 1 or more"),
  ],
  ids=lambda x: str(x)[:20],
)
def test_impossible_models_are_refused(changes, message: str):
  with pytest.raises(ValueError, match=message):
    helpers.model_config(**changes)
