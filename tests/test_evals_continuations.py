"""How likely continuations are, and what is written after a text: against one row at a time."""

import dataclasses

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf import sharding
from rlhf.inference import continuations
from rlhf.model import transformer
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

CONTEXT = 40


@pytest.fixture(scope="module", autouse=True)
def quick():
  """What runs once need not be optimized."""
  with pytest.MonkeyPatch.context() as patch:
    for name, static in (
      ("_score", ("cfg", "with_padding")),
      ("_write", ("cfg", "eot_id", "max_new_tokens", "temperature")),
    ):
      patch.setattr(
        continuations,
        name,
        helpers.quick_jit(getattr(continuations, name).__wrapped__, static_argnames=static),
      )
    yield


@pytest.fixture(scope="module")
def network() -> Network:
  """Its tokens are bytes, among them some that hold a line break and more."""
  tokenizer = Tokenizer.train_bpe(["ab ab\n\nab ab\n\n"] * 3, 264)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids,
    pad_id=tokenizer.pad_id,
    context_length=CONTEXT,
    logprob_chunk=3,
    num_layers=1,
  )
  return Network(cfg=cfg, params=helpers.make_params(cfg, seed=0), tokenizer=tokenizer, metadata={})


@pytest.fixture(scope="module")
def logits_of(network):
  """ids -> [T, V] next-token log-probs, one row of one shape."""

  @helpers.quick_jit
  def run(tokens_1T, mask_1T):
    hidden_1TD = transformer.forward(network.cfg, network.params, tokens_1T, mask_1T)
    return jax.nn.log_softmax(transformer.logits(network.cfg, network.params, hidden_1TD))[0]

  def of(ids) -> np.ndarray:
    tokens_1T, mask_1T = np.zeros((1, CONTEXT), np.int32), np.zeros((1, CONTEXT), np.float32)
    tokens_1T[0, : len(ids)], mask_1T[0, : len(ids)] = ids, 1
    return np.asarray(run(tokens_1T, mask_1T))[: len(ids)]

  return of


def expected_pair(logits_of, context, continuation) -> tuple[float, bool]:
  whole = [*context, *continuation][-(CONTEXT + 1) :]
  logprob_TV = logits_of(whole[:-1])[-len(continuation) :]
  picked = logprob_TV[np.arange(len(continuation)), whole[-len(continuation) :]]
  return float(picked.sum()), bool((logprob_TV.argmax(1) == whole[-len(continuation) :]).all())


def ids(seed: int, length: int) -> list[int]:
  return np.random.default_rng(seed).integers(2, 256, length).tolist()


def pairs(logits_of) -> list[tuple[list[int], list[int]]]:
  """Short and long; ends that differ in one token; some greedy; some too long for the context."""
  shared = ids(0, 11)
  greedy = int(logits_of(shared)[-1].argmax())
  second = int(logits_of([*shared, greedy])[-1].argmax())
  return [
    (shared, [greedy]),
    (shared, [greedy + 1]),
    (shared, [5, 9]),
    (shared, [5, 10]),
    (shared[:-1], [shared[-1], greedy]),
    (shared, [greedy, second]),
    (ids(1, 1), ids(2, 7)),
    (ids(3, CONTEXT - 4), ids(4, 5)),
    (ids(5, 2 * CONTEXT), ids(6, 9)),
  ]


def test_pairs_have_the_likelihood_of_one_row_at_a_time(network, logits_of):
  asked = pairs(logits_of)
  asked.append((ids(7, 3), ids(8, CONTEXT)))
  found = continuations.loglikelihoods(network, asked, batch_size=3)
  expected = [expected_pair(logits_of, *pair) for pair in asked]
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5)
  assert [x for _, x in found] == [x for _, x in expected]
  assert {x for _, x in expected} == {True, False}
  assert [x.num_tokens for x, _ in found] == [len(continuation) for _, continuation in asked]


def test_the_batch_changes_nothing_and_progress_is_told(network, logits_of):
  asked, told = pairs(logits_of), []
  few = continuations.loglikelihoods(network, asked, batch_size=3, on_batch=told.append)
  many = continuations.loglikelihoods(network, asked, batch_size=16)
  np.testing.assert_allclose([x for x, _ in few], [x for x, _ in many], rtol=1e-5)
  assert told == sorted(told) and told[-1] == len(asked)


def test_ends_of_one_token_share_a_row(network):
  shared = ids(0, 11)
  rows = continuations._shared_rows(
    [(shared, [7]), (shared, [8]), (shared, [7, 8]), (shared[:-1], [shared[-1], 9])], CONTEXT
  )
  assert [row.requests for row in rows] == [[0, 1], [2], [3]]


def split_over(network: Network, **axes: int) -> Network:
  mesh = sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[: np.prod([*axes.values()])])
  return dataclasses.replace(
    network, params=jax.device_put(network.params, sharding.param_shardings(mesh, network.params))
  )


def test_rows_split_over_a_mesh_give_the_same(network, logits_of, monkeypatch):
  asked, rows = pairs(logits_of)[:6], []
  score = continuations._score
  monkeypatch.setattr(
    continuations,
    "_score",
    lambda cfg, params, tokens_BT, *rest, **options: (
      rows.append(tokens_BT.addressable_shards[0].data.shape[0]),
      score(cfg, params, tokens_BT, *rest, **options),
    )[1],
  )
  found = continuations.loglikelihoods(
    split_over(network, data=2, fsdp=2, tensor=1), asked, batch_size=4
  )
  expected = [expected_pair(logits_of, *pair) for pair in asked]
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5)
  assert set(rows) == {1}


@pytest.mark.slow
def test_writing_on_a_mesh_gives_the_same(network):
  contexts = [ids(seed, 1 + 2 * seed) for seed in range(6)]
  options = dict(max_new_tokens=6, stops=["\n"], batch_size=4)
  split = split_over(network, data=2, fsdp=2, tensor=2)
  assert continuations.write(split, contexts, jax.random.key(0), **options) == continuations.write(
    network, contexts, jax.random.key(0), **options
  )


def test_padding_of_a_published_model_has_a_probability(network):
  published = dataclasses.replace(network, metadata={"imported": {}})
  ((plain, _),) = continuations.loglikelihoods(network, [([9], [12])], batch_size=1)
  ((whole, _),) = continuations.loglikelihoods(published, [([9], [12])], batch_size=1)
  forward = helpers.quick_jit(transformer.forward, static_argnums=0)
  hidden_D = forward(network.cfg, network.params, jnp.array([[9]]), jnp.ones((1, 1)))[0, 0]
  token_VD = network.params["embed"]["token"][: network.cfg.vocab_size]
  logit_V = np.asarray(token_VD @ hidden_D, np.float64)
  assert whole == pytest.approx(logit_V[12] - np.log(np.exp(logit_V).sum()), rel=1e-5)
  share = np.exp(logit_V[network.cfg.pad_id]) / np.exp(logit_V).sum()
  assert plain - whole == pytest.approx(-np.log1p(-share), rel=2e-2)


@pytest.mark.parametrize(
  "pair, words",
  [
    (([], [1]), "0 context tokens"),
    (([1], []), "0 continuation tokens"),
    (([1], [2] * (CONTEXT + 1)), "41 tokens and the model's context 40"),
  ],
)
def test_impossible_pairs_are_refused(network, pair, words: str):
  with pytest.raises(ValueError, match=words):
    continuations.loglikelihoods(network, [([1], [2]), pair], batch_size=2)


# ----------------------------------------------------------------------------- writing


def greedy(logits_of, context, count: int) -> list[int]:
  written = []
  for _ in range(count):
    written.append(int(logits_of([*context, *written])[-1].argmax()))
  return written


def test_texts_are_greedy_and_end_at_the_stop(network, logits_of):
  contexts = [ids(seed, 1 + 2 * seed) for seed in range(6)]
  told = []
  found = continuations.write(
    network, contexts, jax.random.key(0), max_new_tokens=8, batch_size=4, on_batch=told.append
  )
  whole = [network.tokenizer.decode(greedy(logits_of, context, 8)) for context in contexts]
  assert found == [text.split("<|endoftext|>")[0] for text in whole] and told == [4, 6]
  stop = next(character for text in whole for character in text[1:])
  cut = continuations.write(
    network, contexts, jax.random.key(0), max_new_tokens=8, batch_size=4, stops=["", stop]
  )
  assert cut == [text.split(stop)[0] for text in found] and cut != found


def test_a_token_that_holds_a_stop_ends_its_row(network):
  end_V = continuations._ending_tokens(network, ["\n"])
  tokenizer = network.tokenizer
  holding = {token for token in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([token])}
  assert len(holding) > 1 and np.flatnonzero(end_V).tolist() == sorted(holding | {tokenizer.eot_id})


def test_a_row_that_ended_is_not_decoded_further(network, monkeypatch):
  """All rows end at their first token, so nothing follows in any."""
  every_V = np.ones(network.cfg.padded_vocab_size, bool)
  monkeypatch.setattr(continuations, "_ending_tokens", lambda *_: every_V)
  seen = []
  text = continuations._text
  monkeypatch.setattr(
    continuations,
    "_text",
    lambda tokenizer, ids, stops: (seen.append(len(ids)), text(tokenizer, ids, stops))[1],
  )
  continuations.write(network, [[5], [6, 7]], jax.random.key(0), max_new_tokens=8, batch_size=2)
  assert seen == [1, 1]


def test_samples_belong_to_their_request(network):
  contexts = [ids(seed, 3 + seed) for seed in range(5)]
  options = dict(max_new_tokens=5, temperature=1.0)
  draw = lambda batch_size, seed: continuations.write(
    network, contexts, jax.random.key(seed), batch_size=batch_size, **options
  )
  assert draw(4, 0) == draw(8, 0) != draw(8, 1)


def test_contexts_lose_their_beginning(network):
  long = ids(0, 3 * CONTEXT)
  options = dict(max_new_tokens=6, batch_size=1)
  assert continuations.write(network, [long], jax.random.key(0), **options) == continuations.write(
    network, [long[-(CONTEXT - 6) :]], jax.random.key(0), **options
  )
  with pytest.raises(ValueError, match="40 new tokens leave no room for a prompt"):
    continuations.write(network, [long], jax.random.key(0), max_new_tokens=40, batch_size=1)
  with pytest.raises(ValueError, match="context 1 is empty"):
    continuations.write(network, [[1], []], jax.random.key(0), max_new_tokens=4, batch_size=1)


def test_lengths_are_few():
  sizes = {continuations.row_length(length, 100) for length in range(1, 101)}
  assert sizes == {16, 24, 32, 48, 64, 96, 100}
  assert all(continuations.row_length(length, 100) >= length for length in range(1, 101))
