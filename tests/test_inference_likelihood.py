"""Held-out loss, log-likelihoods of continuations against one row at a time, few-shot tasks."""

import copy
import dataclasses
import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.inference import likelihood, row_batches
from rlhf.model import transformer
from rlhf.networks import Network

CFG = helpers.model_config()
CONTEXT = 40

# ----------------------------------------------------------------------------- held-out loss


@pytest.mark.parametrize("batch_size", [2, 7])
def test_the_loss_is_a_mean_over_tokens_whatever_the_batches(batch_size: int):
  """Five rows with different numbers of targets; the last batch is filled up, and not counted."""
  params, rows = helpers.make_params(CFG, 0), helpers.make_lm_batch(5, 12, 0)
  assert len(set(rows.loss_mask_BT.sum(axis=1))) > 2
  alone = [
    one_row_nll()(params, jax.tree.map(lambda x: x[row : row + 1], rows)) for row in range(5)
  ]
  total = sum(float(row.total) for row in alone)
  nll = likelihood.negative_log_likelihood(
    CFG, params, rows, batch_size=batch_size, use_segments=True
  )
  assert nll == pytest.approx(total / rows.loss_mask_BT.sum(), rel=1e-5)
  by_row = likelihood.loss_by_row(CFG, params, rows, batch_size=batch_size, use_segments=True)
  np.testing.assert_allclose(by_row, [[row.total, row.weight] for row in alone], rtol=1e-5)


@functools.cache
def one_row_nll():
  return helpers.quick_jit(functools.partial(transformer.lm_loss, CFG, use_segments=True))


# ----------------------------------------------------------------------------- few-shot tasks


@pytest.fixture(scope="module")
def small() -> Network:
  return helpers.byte_network()


@functools.cache
def logprobs(cfg):
  return helpers.quick_jit(functools.partial(transformer.policy_logprobs, cfg, temperature=1.0))


def mean_logprob(network: Network, prompt: str, choice: str) -> tuple[float, float]:
  """(sum, mean) over the choice's tokens, of the text alone, without padding."""
  ids = network.tokenizer.encode(prompt) + network.tokenizer.encode(choice)
  tokens_BT = np.full((1, 16), network.cfg.pad_id, np.int32)
  tokens_BT[0, : len(ids)] = ids
  logprob_BT, _ = logprobs(network.cfg)(
    network.params, tokens_BT, (np.arange(16) < len(ids))[None].astype(np.float32)
  )
  picked = np.asarray(logprob_BT[0, len(ids) - len(choice) : len(ids)])
  return picked.sum(), picked.mean()


ITEMS = [
  ("ab", ["x", "yzw", "uv"]),
  ("c", ["de", "f"]),
  ("q", ["rstuvw", "m", "nopq", "k"]),
  ("abc", ["a", "bb", "ccc"]),
  ("hello", [" you", " me"]),
  ("zz", ["yyyyy", "x"]),
]


def test_the_choice_of_the_highest_mean_log_probability_counts(small: Network):
  best_by_mean, best_by_sum = [], []
  for prompt, choices in ITEMS:
    sums, means = zip(*(mean_logprob(small, prompt, choice) for choice in choices))
    best_by_mean.append(int(np.argmax(means)))
    best_by_sum.append(int(np.argmax(sums)))
  assert best_by_mean != best_by_sum  # or this would not tell one from the other
  correct = lambda picks: likelihood.few_shot_correct(
    small,
    [
      {"prompt": prompt, "choices": choices, "answer": pick}
      for (prompt, choices), pick in zip(ITEMS, picks)
    ],
    delimiter="",
    batch_size=4,
  )
  assert correct(best_by_mean) == [True] * len(ITEMS)
  assert correct(best_by_sum) == [m == s for m, s in zip(best_by_mean, best_by_sum)]
  assert not any(correct([(pick + 1) % 2 if pick < 2 else 0 for pick in best_by_mean]))


def test_an_item_longer_than_the_context_is_refused(small: Network):
  with pytest.raises(ValueError, match="has 17 tokens and the network's context is 16"):
    likelihood.few_shot_correct(
      small,
      [{"prompt": "x" * 10, "choices": ["y" * 7, "z"], "answer": 0}],
      delimiter="",
      batch_size=2,
    )


def test_an_item_begins_with_the_tokenizers_prefix(small: Network):
  tokenizer = copy.copy(small.tokenizer)
  tokenizer.prefix_ids = (tokenizer.eot_id,)
  with pytest.raises(ValueError, match="has 17 tokens and the network's context is 16"):
    likelihood.few_shot_correct(
      dataclasses.replace(small, tokenizer=tokenizer),
      [{"prompt": "x" * 10, "choices": ["y" * 6, "z"], "answer": 0}],
      delimiter="",
      batch_size=2,
    )


def test_a_choice_is_read_behind_its_delimiter(small: Network):
  items = lambda space: [
    {"prompt": prompt, "choices": [space + c for c in choices], "answer": 0}
    for prompt, choices in ITEMS
  ]
  correct = functools.partial(likelihood.few_shot_correct, small, batch_size=4)
  with_space = correct(items(""), delimiter=" ")
  assert with_space == correct(items(" "), delimiter="")
  assert with_space != correct(items(""), delimiter="")


# ----------------------------------------------------------------------------- continuations


@pytest.fixture(scope="module", autouse=True)
def quick():
  """What runs once need not be optimized."""
  with pytest.MonkeyPatch.context() as patch:
    score = helpers.quick_jit(
      likelihood._score.__wrapped__, static_argnames=("cfg", "with_padding")
    )
    patch.setattr(likelihood, "_score", score)
    yield


@pytest.fixture(scope="module")
def network() -> Network:
  return helpers.line_network(CONTEXT)


@pytest.fixture(scope="module")
def logits_of(network):
  return helpers.next_logprobs(network)


def ids(seed: int, length: int) -> list[int]:
  return np.random.default_rng(seed).integers(2, 256, length).tolist()


def expected_pair(logits_of, context, continuation) -> tuple[float, bool]:
  whole = [*context, *continuation][-(CONTEXT + 1) :]
  logprob_TV = logits_of(whole[:-1])[-len(continuation) :]
  picked = logprob_TV[np.arange(len(continuation)), whole[-len(continuation) :]]
  return float(picked.sum()), bool((logprob_TV.argmax(1) == whole[-len(continuation) :]).all())


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
  found = likelihood.loglikelihoods(network, asked, batch_size=3)
  expected = [expected_pair(logits_of, *pair) for pair in asked]
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5)
  assert [x for _, x in found] == [x for _, x in expected]
  assert {x for _, x in expected} == {True, False}
  assert [x.num_tokens for x, _ in found] == [len(continuation) for _, continuation in asked]


def test_the_batch_changes_nothing_and_progress_is_told(network, logits_of):
  asked, told = pairs(logits_of), []
  few = likelihood.loglikelihoods(network, asked, batch_size=3, progress=lambda *n: told.append(n))
  many = likelihood.loglikelihoods(network, asked, batch_size=16)
  np.testing.assert_allclose([x for x, _ in few], [x for x, _ in many], rtol=1e-5)
  assert told == sorted(told) and told[-1] == (len(asked), len(asked))


def test_ends_of_one_token_share_a_row(network):
  shared = ids(0, 11)
  rows = likelihood._shared_rows(
    [(shared, [7]), (shared, [8]), (shared, [7, 8]), (shared[:-1], [shared[-1], 9])], CONTEXT
  )
  assert [row.requests for row in rows] == [[0, 1], [2], [3]]


def test_rows_split_over_a_mesh_give_the_same(network, logits_of, monkeypatch):
  asked, rows = pairs(logits_of)[:6], []
  score = likelihood._score
  monkeypatch.setattr(
    likelihood,
    "_score",
    lambda cfg, params, tokens_BT, *rest, **options: (
      rows.append(tokens_BT.addressable_shards[0].data.shape[0]),
      score(cfg, params, tokens_BT, *rest, **options),
    )[1],
  )
  found = likelihood.loglikelihoods(
    helpers.split_over(network, data=2, fsdp=2, tensor=1), asked, batch_size=4
  )
  expected = [expected_pair(logits_of, *pair) for pair in asked]
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=1e-5)
  assert set(rows) == {1}


def test_padding_of_a_published_model_has_a_probability(network):
  published = dataclasses.replace(network, metadata={"imported": {}})
  ((plain, _),) = likelihood.loglikelihoods(network, [([9], [12])], batch_size=1)
  ((whole, _),) = likelihood.loglikelihoods(published, [([9], [12])], batch_size=1)
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
    likelihood.loglikelihoods(network, [([1], [2]), pair], batch_size=2)


def test_lengths_are_few():
  sizes = {row_batches.row_length(length, 100) for length in range(1, 101)}
  assert sizes == {16, 24, 32, 48, 64, 96, 100}
  assert all(row_batches.row_length(length, 100) >= length for length in range(1, 101))
