"""Sampling: where a response ends, what can be sampled, and that rows do not touch one another."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlhf.inference import sampling
from rlhf.model import transformer
from rlhf.types import Generation, PromptBatch

# Seven ids of which one is padding: end-of-text comes soon, late and never.
EOT, PAD, VOCAB = 4, 2, 7
CFG = helpers.model_config(vocab_size=VOCAB, pad_id=PAD)
P, R, T = 6, 5, 0.7
SAMPLABLE = (0, 1, 3, 4, 5, 6)


@functools.cache
def sampler(temperature: float = T, num_new: int = R, top_p: float = 1.0):
  return helpers.quick_jit(
    functools.partial(
      sampling.generate,
      CFG,
      eot_id=EOT,
      max_new_tokens=num_new,
      temperature=temperature,
      top_p=top_p,
    )
  )


@functools.cache
def refilled(num_slots: int, temperature: float = T):
  run = functools.partial(
    sampling.generate,
    CFG,
    eot_id=EOT,
    max_new_tokens=R,
    temperature=temperature,
    num_slots=num_slots,
  )
  return jax.device_get(helpers.quick_jit(run)(params(), pad_left(IDS), keys(NUM)))


@functools.cache
def params():
  return helpers.make_params(CFG, 2)


@functools.cache
def flat_params():
  """Every id that exists is equally likely."""
  return jax.tree.map(np.zeros_like, jax.device_get(params()))


def prompt_ids(num_rows: int) -> list[np.ndarray]:
  """1 to P tokens; end-of-text is among them, and is the last token of every fourth prompt."""
  rng = np.random.default_rng(0)
  ids = [rng.choice(SAMPLABLE, size=1 + row % P) for row in range(num_rows)]
  for row in range(num_rows):
    ids[row][-1] = EOT if row % 4 == 0 else 5
  return ids


def pad_left(ids, length: int = P) -> PromptBatch:
  batch = helpers.left_padded(ids, length)
  return batch.replace(tokens_BP=np.where(batch.mask_BP > 0, batch.tokens_BP, PAD).astype(np.int32))


def keys(num_rows: int, first_row: int = 0):
  return sampling.row_keys(jax.random.key(5), first_row + jnp.arange(num_rows))


NUM = 48
IDS = prompt_ids(NUM)


@functools.cache
def sampled() -> Generation:
  return jax.device_get(sampler()(params(), pad_left(IDS), keys(NUM)))


@functools.cache
def joined():
  return jax.device_get(sampling.join(pad_left(IDS), sampled(), PAD))


# ----------------------------------------------------------------------------- ends


def test_a_response_runs_up_to_and_including_its_first_end_of_text():
  out, ends = sampled(), set()
  for row in range(NUM):
    found = np.flatnonzero(out.tokens_BR[row] == EOT)
    size = found[0] + 1 if len(found) else R
    ends.add(size if len(found) else "missing")
    np.testing.assert_array_equal(out.mask_BR[row], np.arange(R) < size)
    assert bool(out.finished_B[row]) == bool(len(found))
    assert (out.tokens_BR[row, size:] == PAD).all() and not out.logprob_BR[row, size:].any()
    assert (out.logprob_BR[row, :size] < 0).all()
  assert {1, 2, 3, R, "missing"} <= ends  # first, middle and last position, and nowhere


def test_an_end_of_text_in_the_prompt_ends_nothing():
  out = sampled()
  assert (out.mask_BR[:, 0] == 1).all()
  last_is_end = np.asarray([ids[-1] == EOT for ids in IDS])
  assert last_is_end.sum() == NUM // 4 and (out.mask_BR[last_is_end].sum(axis=1) > 1).any()


def test_sampling_stops_when_every_row_has_ended():
  always = jax.tree.map(np.copy, flat_params())
  always["final_norm"]["bias"] += 1
  always["embed"]["token"][EOT] = 1
  out = sampler(0.0)(always, pad_left(IDS[:6]), keys(6))
  np.testing.assert_array_equal(out.tokens_BR, [[EOT] + [PAD] * (R - 1)] * 6)
  np.testing.assert_array_equal(out.mask_BR, [[1] + [0] * (R - 1)] * 6)
  assert np.asarray(out.finished_B).all()


# ----------------------------------------------------------------------------- what is sampled


def test_padding_and_ids_beyond_the_vocabulary_are_never_sampled():
  """Flat logits: 122 of 128 rows of the embedding would be drawn, if they could be."""
  out = jax.device_get(sampler()(flat_params(), pad_left(IDS), keys(NUM)))
  drawn = out.tokens_BR[out.mask_BR > 0]
  assert set(drawn.tolist()) == set(SAMPLABLE)
  np.testing.assert_allclose(out.logprob_BR[out.mask_BR > 0], np.log(1 / 6), rtol=1e-6)


def test_the_share_of_a_token_is_its_probability_at_the_temperature():
  num = 4096
  prompts = pad_left([IDS[1]] * num)
  out = sampler(0.5, 1)(params(), prompts, keys(num))
  logits_V, _ = helpers.quick_jit(functools.partial(transformer.prefill, CFG, num_slots=P))(
    transformer.decoding_params(CFG, params()), prompts.tokens_BP[:1], prompts.mask_BP[:1]
  )
  logits_V = np.asarray(logits_V[0], np.float64)[list(SAMPLABLE)] / 0.5
  expected = np.exp(logits_V) / np.exp(logits_V).sum()
  share = np.asarray([(np.asarray(out.tokens_BR) == token).mean() for token in SAMPLABLE])
  assert np.abs(share - expected).max() < 4 * np.sqrt(0.25 / num)
  assert expected.max() - expected.min() > 0.2  # or this would show nothing


def test_temperature_0_takes_the_most_likely_token_of_the_full_forward_pass():
  out = jax.device_get(sampler(0.0)(params(), pad_left(IDS[:6]), keys(6)))
  rows = jax.device_get(sampling.join(pad_left(IDS[:6]), out, PAD))
  logits_BTV = np.asarray(
    helpers.quick_jit(
      lambda tokens_BT, mask_BT: transformer.logits(
        CFG, params(), transformer.forward(CFG, params(), tokens_BT, mask_BT)
      )
    )(rows["tokens_BT"], rows["mask_BT"])
  )
  for row, t in zip(*np.nonzero(rows["response_mask_BT"])):
    assert rows["tokens_BT"][row, t] == logits_BTV[row, t - 1].argmax()
    logits_V = logits_BTV[row, t - 1].astype(np.float64)  # the log-prob is that at temperature 1
    assert rows["decode_logprob_BT"][row, t] == pytest.approx(
      -np.log(np.exp(logits_V - logits_V.max()).sum()), abs=1e-4
    )


def test_the_nucleus_is_the_smallest_set_with_the_probability():
  probs = np.float32(
    [[0.1, 0.4, 0.05, 0.25, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2], [0.9, 0.05, 0.03, 0.01, 0.01]]
  )
  kept = lambda top_p: np.isfinite(sampling.nucleus(np.log(probs), top_p))
  # By hand: .4 + .25 = .65 reaches .6 and does not reach .7; ties go to smaller ids.
  np.testing.assert_array_equal(kept(0.6), [[0, 1, 0, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(kept(0.7), [[0, 1, 0, 1, 1], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
  np.testing.assert_array_equal(kept(1e-6).sum(axis=1), [1, 1, 1])
  zeros = np.float32([[-0.0, 0.0, -0.0, 0.0]])  # equally likely
  np.testing.assert_array_equal(np.isfinite(sampling.nucleus(zeros, 0.4)), [[1, 1, 0, 0]])
  logits = np.asarray(sampling.nucleus(np.log(probs), 0.6))
  np.testing.assert_array_equal(logits[kept(0.6)], np.log(probs)[kept(0.6)])


def test_samples_come_from_the_nucleus_with_its_probabilities():
  num = 4096
  prompts = pad_left([IDS[1]] * num)
  logits_V, _ = helpers.quick_jit(functools.partial(transformer.prefill, CFG, num_slots=P))(
    transformer.decoding_params(CFG, params()), prompts.tokens_BP[:1], prompts.mask_BP[:1]
  )
  prob_V = np.exp(np.asarray(logits_V[0], np.float64) / 0.5)
  prob_V /= prob_V.sum()
  order = np.argsort(-prob_V)
  top_p = prob_V[order[:2]].sum() + 0.5 * prob_V[order[2]]  # three tokens, by a safe margin
  out = jax.device_get(sampler(0.5, 1, float(top_p))(params(), prompts, keys(num)))
  expected_V = np.zeros_like(prob_V)
  expected_V[order[:3]] = prob_V[order[:3]] / prob_V[order[:3]].sum()
  share_V = np.bincount(out.tokens_BR[:, 0], minlength=len(prob_V)) / num
  assert set(np.flatnonzero(share_V)) == set(order[:3])
  assert np.abs(share_V - expected_V).max() < 4 * np.sqrt(0.25 / num)
  np.testing.assert_allclose(
    out.logprob_BR[:, 0], np.log(expected_V[out.tokens_BR[:, 0]]), atol=1e-4
  )


@functools.cache
def gpt2_sized_draws(top_p: float):
  """(prob_V, token_N, logprob_N): many draws of one distribution over 50,257 tokens."""
  num_tokens, num_draws = 50_257, 200_000
  rng = np.random.default_rng(0)
  logits_V = np.full(50_304, -1e30, np.float32)  # as the embedding's padding is masked
  # By Zipf's law, with tokens of equal rank far apart and some that are all but impossible.
  logits_V[rng.permutation(num_tokens)] = -1.1 * np.log(np.arange(1, num_tokens + 1))
  logits_V[rng.integers(num_tokens, size=500)] = -60
  cut_V = sampling.nucleus(logits_V[None], top_p)[0] if top_p < 1 else logits_V
  prob_V = np.exp(np.asarray(cut_V, np.float64))
  prob_V /= prob_V.sum()

  def draw(key):
    uniform_B2 = jax.random.uniform(key, (1000, 2))
    return sampling.inverse_cdf(jnp.broadcast_to(cut_V, (1000, len(logits_V))), uniform_B2)

  keys_N = jax.random.split(jax.random.key(11), num_draws // 1000)
  tokens, logprobs = jax.device_get(helpers.quick_jit(lambda k: jax.lax.map(draw, k))(keys_N))
  return prob_V, tokens.ravel(), logprobs.ravel()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_draws_over_a_large_vocabulary_have_its_distribution(top_p):
  """Chi-square over the tokens that are expected at least five times and the rest together."""
  prob_V, token_N, logprob_N = gpt2_sized_draws(top_p)
  assert (prob_V[token_N] > 0).all()
  expected_V = prob_V * len(token_N)
  found_V = np.bincount(token_N, minlength=len(prob_V))
  common_V = expected_V >= 5
  groups = lambda x_V: np.append(x_V[common_V], x_V[~common_V].sum())
  expected, found = groups(expected_V), groups(found_V)
  assert len(expected) > 2000
  used = expected > 0
  assert scipy.stats.chisquare(found[used], expected[used], sum_check=False).pvalue > 1e-3
  # The two levels: shares of blocks, and of places within blocks.
  for number_V in (np.arange(len(prob_V)) // 128, np.arange(len(prob_V)) % 128):
    expected = np.bincount(number_V, expected_V)
    found, used = np.bincount(number_V, found_V), expected >= 5
    assert not found[expected == 0].any()
    assert (
      scipy.stats.chisquare(
        found[used], expected[used] * found[used].sum() / expected[used].sum()
      ).pvalue
      > 1e-3
    )
  np.testing.assert_allclose(logprob_N, np.log(prob_V[token_N]), atol=2e-5)


def test_ends_of_the_unit_interval_draw_tokens_that_exist():
  logits_BV = np.full((2, 300), -np.inf, np.float32)
  logits_BV[:, [130, 131, 290]] = 0, 1, 2
  below_1 = np.nextafter(np.float32(1), np.float32(0))
  token_B, logprob_B = sampling.inverse_cdf(logits_BV, np.float32([[0, 0], [below_1, below_1]]))
  np.testing.assert_array_equal(token_B, [130, 290])
  weights = np.exp([0.0, 1.0, 2.0])
  np.testing.assert_allclose(logprob_B, np.log(weights[[0, 2]] / weights.sum()), rtol=1e-6)


def test_log_probs_while_decoding_are_those_of_scoring_at_the_same_temperature():
  rows = joined()
  mask_BT = rows["response_mask_BT"]
  logprobs = helpers.quick_jit(
    lambda temperature: transformer.policy_logprobs(
      CFG, params(), rows["tokens_BT"], rows["mask_BT"], temperature=temperature
    )[0]
  )
  gap = lambda temperature: np.abs(
    (np.asarray(logprobs(temperature)) - rows["decode_logprob_BT"]) * mask_BT
  ).max()
  assert gap(T) < 2e-5 and gap(1.0) > 0.1


# ----------------------------------------------------------------------------- keys


def test_a_row_draws_the_same_whatever_is_around_it():
  """Alone, in another place of another batch, behind more padding: the same tokens."""
  out = sampled()
  order = [7, 3, 40, 11, 12, 5]
  variants = {
    "alone": (pad_left([IDS[3]]), keys(1, first_row=3), [3]),
    "the second half": (pad_left(IDS[24:30]), keys(6, first_row=24), list(range(24, 30))),
    "another order": (pad_left([IDS[n] for n in order]), keys(NUM)[np.asarray(order)], order),
    "more padding": (pad_left(IDS[:6], P + 3), keys(6), list(range(6))),
  }
  for name, (prompts, key_B, rows) in variants.items():
    other = jax.device_get(sampler()(params(), prompts, key_B))
    np.testing.assert_array_equal(other.tokens_BR, out.tokens_BR[rows], err_msg=name)
    np.testing.assert_allclose(other.logprob_BR, out.logprob_BR[rows], atol=2e-5, err_msg=name)
    np.testing.assert_array_equal(other.finished_B, out.finished_B[rows], err_msg=name)


@pytest.mark.parametrize("num_slots", [1, 4, 16])
def test_slots_that_are_refilled_draw_the_same(num_slots):
  """Rows that end at once, late and never go through few slots, the ring several times round."""
  out, other = sampled(), refilled(num_slots)
  np.testing.assert_array_equal(other.tokens_BR, out.tokens_BR)
  np.testing.assert_array_equal(other.mask_BR, out.mask_BR)
  np.testing.assert_array_equal(other.finished_B, out.finished_B)
  np.testing.assert_allclose(other.logprob_BR, out.logprob_BR, atol=2e-5)


def test_refilled_slots_decode_no_more_steps_than_needed(monkeypatch):
  """Four slots are busy until their queue is empty, and then for one response at most."""
  calls, step = [], transformer.decode_step

  def counted(*args):
    jax.debug.callback(lambda: calls.append(1))
    return step(*args)

  monkeypatch.setattr(transformer, "decode_step", counted)
  run = functools.partial(
    sampling.generate, CFG, eot_id=EOT, max_new_tokens=R, temperature=T, num_slots=4
  )
  out = jax.block_until_ready(jax.jit(run)(params(), pad_left(IDS), keys(NUM)))
  jax.effects_barrier()
  num_steps = np.asarray(out.mask_BR).sum() - NUM  # the first tokens come from the prompts
  assert num_steps / 4 <= len(calls) <= num_steps / 4 + R


def test_rows_and_tokens_have_keys_of_their_own():
  prompts = pad_left([IDS[1]] * NUM)
  out = jax.device_get(sampler()(flat_params(), prompts, keys(NUM)))
  assert len({tuple(row) for row in out.tokens_BR.tolist()}) > 16  # one prompt, many responses
  unended = out.tokens_BR[out.mask_BR.sum(axis=1) >= 3]
  assert len(unended) > 4 and any(len(set(row[:3].tolist())) > 1 for row in unended)
  # Equal keys give equal rows: nothing else is random.
  same = jax.device_get(sampler()(flat_params(), prompts, keys(NUM)[np.zeros(NUM, int)]))
  assert len({tuple(row) for row in same.tokens_BR.tolist()}) == 1


def test_row_keys_are_of_the_global_row():
  data = jax.random.key_data
  np.testing.assert_array_equal(data(keys(4, first_row=2)), data(keys(6))[2:])
  assert len({tuple(key) for key in np.asarray(data(keys(100))).tolist()}) == 100


# ----------------------------------------------------------------------------- join


def test_join_rolls_prompt_and_response_to_the_left():
  rows, out = joined(), sampled()
  for row, ids in enumerate(IDS):
    size, start = int(out.mask_BR[row].sum()), len(ids)
    rest = P + R - start - size
    response = out.tokens_BR[row, :size].tolist()
    assert rows["tokens_BT"][row].tolist() == [*ids.tolist(), *response, *[PAD] * rest]
    assert rows["mask_BT"][row].tolist() == [1] * (start + size) + [0] * rest
    assert rows["response_mask_BT"][row].tolist() == [0] * start + [1] * size + [0] * rest
    np.testing.assert_array_equal(
      rows["decode_logprob_BT"][row],
      np.float32([*[0] * start, *out.logprob_BR[row, :size], *[0] * rest]),
    )


def test_join_by_hand():
  prompts = PromptBatch(
    tokens_BP=np.asarray([[9, 9, 5], [1, 2, 3], [9, 4, 7]]),
    mask_BP=np.asarray([[0, 0, 1], [1, 1, 1], [0, 1, 1]], np.float32),
  )
  generation = Generation(
    tokens_BR=np.asarray([[6, 7], [7, 9], [4, 5]]),
    mask_BR=np.asarray([[1, 1], [1, 0], [1, 1]], np.float32),
    logprob_BR=np.asarray([[-1, -2], [-3, 0], [-4, -5]], np.float32),
    finished_B=np.asarray([True, True, False]),
  )
  rows = sampling.join(prompts, generation, 9)
  np.testing.assert_array_equal(
    rows["tokens_BT"], [[5, 6, 7, 9, 9], [1, 2, 3, 7, 9], [4, 7, 4, 5, 9]]
  )
  np.testing.assert_array_equal(
    rows["mask_BT"], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]
  )
  np.testing.assert_array_equal(
    rows["response_mask_BT"], [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 1, 0]]
  )
  np.testing.assert_array_equal(
    rows["decode_logprob_BT"], [[0, -1, -2, 0, 0], [0, 0, 0, -3, 0], [0, 0, -4, -5, 0]]
  )
  assert rows["mask_BT"].dtype == jnp.float32
