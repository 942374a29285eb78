"""Held-out loss, few-shot tasks, the bigram baseline, and answers to written prompts."""

import collections
import copy
import dataclasses
import functools
import math

import helpers
import jax
import numpy as np
import pytest

from rlhf.data import packing
from rlhf.evals.suites import bigram
from rlhf.inference import completions, likelihood
from rlhf.model import transformer
from rlhf.networks import Network
from rlhf.tokenization import chat
from rlhf.tokenization.tokenizer import Tokenizer

CFG = helpers.model_config()


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
def network() -> Network:
  """Bytes in, bytes out; the prompts of these tests are a few letters long."""
  tokenizer = Tokenizer.train_bpe(["abc"], 258)
  cfg = helpers.model_config(vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id)
  return Network(cfg=cfg, params=helpers.make_params(cfg, 1), tokenizer=tokenizer, metadata={})


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


def test_the_choice_of_the_highest_mean_log_probability_counts(network: Network):
  best_by_mean, best_by_sum = [], []
  for prompt, choices in ITEMS:
    sums, means = zip(*(mean_logprob(network, prompt, choice) for choice in choices))
    best_by_mean.append(int(np.argmax(means)))
    best_by_sum.append(int(np.argmax(sums)))
  assert best_by_mean != best_by_sum  # or this would not tell one from the other
  accuracy = lambda picks: likelihood.few_shot_accuracy(
    network.cfg,
    network.params,
    network.tokenizer,
    [
      {"prompt": prompt, "choices": choices, "answer": pick}
      for (prompt, choices), pick in zip(ITEMS, picks)
    ],
    delimiter="",
    batch_size=4,
  )
  assert accuracy(best_by_mean) == 1.0
  assert accuracy(best_by_sum) == np.mean([m == s for m, s in zip(best_by_mean, best_by_sum)])
  assert accuracy([(pick + 1) % 2 if pick < 2 else 0 for pick in best_by_mean]) == 0.0


def test_an_item_longer_than_the_context_is_refused(network: Network):
  with pytest.raises(ValueError, match="a few-shot item has 17 tokens and the context 16"):
    likelihood.few_shot_accuracy(
      network.cfg,
      network.params,
      network.tokenizer,
      [{"prompt": "x" * 10, "choices": ["y" * 7, "z"], "answer": 0}],
      delimiter="",
      batch_size=2,
    )


def test_an_item_begins_with_the_tokenizers_prefix(network: Network):
  tokenizer = copy.copy(network.tokenizer)
  tokenizer.prefix_ids = (tokenizer.eot_id,)
  with pytest.raises(ValueError, match="a few-shot item has 17 tokens and the context 16"):
    likelihood.few_shot_accuracy(
      network.cfg,
      network.params,
      tokenizer,
      [{"prompt": "x" * 10, "choices": ["y" * 6, "z"], "answer": 0}],
      delimiter="",
      batch_size=2,
    )


def test_a_choice_is_read_behind_its_delimiter(network: Network):
  items = lambda space: [
    {"prompt": prompt, "choices": [space + c for c in choices], "answer": 0}
    for prompt, choices in ITEMS
  ]
  accuracy = functools.partial(
    likelihood.few_shot_accuracy, network.cfg, network.params, network.tokenizer, batch_size=4
  )
  with_space = accuracy(items(""), delimiter=" ")
  assert with_space == accuracy(items(" "), delimiter="")
  assert with_space != accuracy(items(""), delimiter="")


# ----------------------------------------------------------------------------- bigram


def rows_of(documents, length: int = 5):
  return packing.pack_text(
    [np.asarray(d, np.int32) for d in documents],
    length=length,
    pad_id=9,
    attend_across_documents=False,
  )


def bigram_by_counting(train, valid, vocab_size: int):
  """p(y | x) from dictionaries, and the mean over held-out targets."""
  pairs = lambda rows: [
    (int(rows.tokens_BT[b, t - 1]), int(rows.tokens_BT[b, t]))
    for b, t in zip(*np.nonzero(rows.loss_mask_BT))
  ]
  count = collections.Counter(pairs(train))
  unigram = collections.Counter(y for _, y in pairs(train))
  num = sum(unigram.values())

  def prob(x, y):
    p_y = (unigram[y] + 1) / (num + vocab_size)
    after = {b: n for (a, b), n in count.items() if a == x}
    if not after:
      return p_y
    return (count[x, y] + len(after) * p_y) / (sum(after.values()) + len(after))

  return prob, float(np.mean([-math.log(prob(x, y)) for x, y in pairs(valid)]))


def test_the_bigram_loss_against_counting():
  rng = np.random.default_rng(0)
  train = rows_of([[0, 1, 2, 1, 2, 0], [3, 1, 2], rng.integers(0, 5, 30)])
  # 7 and 8 were never seen, neither before nor behind another.
  valid = rows_of([[1, 2, 0, 4, 7, 1, 8, 8, 0], rng.integers(0, 9, 20)])
  prob, expected = bigram_by_counting(train, valid, 10)
  assert bigram.bigram_nll(train, valid, vocab_size=10) == pytest.approx(expected, rel=1e-9)
  assert sum(prob(1, y) for y in range(10)) == pytest.approx(1)  # as checked: probabilities


def test_the_bigram_model_beats_uniform_where_there_is_something_to_learn():
  cycle = rows_of([np.arange(300) % 7], length=50)
  assert bigram.bigram_nll(cycle, cycle, vocab_size=10) < 0.2 < math.log(10)


# ----------------------------------------------------------------------------- answers

PROMPTS = ["a", "bcd", "the", "f", "gh"]


def ask(
  network: Network,
  prompts=PROMPTS,
  *,
  batch_size: int = 4,
  temperature: float = 1.5,
  top_p: float = 1.0,
  key: int = 0,
  **more,
) -> completions.Answers:
  p = completions.AnswerConfig(
    max_prompt_tokens=8,
    max_response_tokens=6,
    temperature=temperature,
    top_p=top_p,
    batch_size=batch_size,
    prompt_format="plain",
    prompt_suffix=":",
    completion_prefix=" ",
  )
  return completions.answer(network, prompts, p, jax.random.key(key), **more)


def id_lists(out: completions.Answers):
  return [[ids.tolist() for ids in of_prompt] for of_prompt in out.ids]


def test_answers_do_not_depend_on_the_batch(network: Network):
  out = ask(network, num_samples=3)
  assert [len(of_prompt) for of_prompt in out.ids] == [3] * 5
  other = ask(network, num_samples=3, batch_size=7)
  assert id_lists(other) == id_lists(out) and other.texts == out.texts
  assert other.finished == out.finished


def test_a_batch_has_few_more_rows_than_are_asked_for(network: Network, monkeypatch):
  rows, sample = [], completions._sample
  monkeypatch.setattr(
    completions,
    "_sample",
    lambda cfg, params, prompts, *args, **kwargs: (
      rows.append(len(prompts.tokens_BP)) or sample(cfg, params, prompts, *args, **kwargs)
    ),
  )
  out = ask(network, num_samples=1)
  assert id_lists(ask(network, num_samples=1, batch_size=1000)) == id_lists(out)
  ask(network, PROMPTS[:1], batch_size=1000)
  assert rows == [4, 4, 8, 1]


def test_sample_s_of_prompt_i_is_the_same_however_many_there_are(network: Network):
  out, uneven = ask(network, num_samples=3), ask(network, num_samples=[1, 3, 0, 2, 1])
  assert id_lists(uneven) == [of_prompt[:n] for of_prompt, n in zip(id_lists(out), [1, 3, 0, 2, 1])]
  assert id_lists(ask(network, PROMPTS[:2], num_samples=3)) == id_lists(out)[:2]
  assert len({tuple(ids) for ids in id_lists(out)[0]}) == 3  # samples differ from one another
  assert id_lists(ask(network, num_samples=3, key=1)) != id_lists(out)


def test_an_answer_is_its_text_and_all_its_ids(network: Network):
  tokenizer = network.tokenizer
  out = ask(network, num_samples=20)
  finished = []
  for prompt, texts, rows, ends in zip(PROMPTS, out.texts, out.ids, out.finished, strict=True):
    asked = tokenizer.encode(prompt + ":")
    for text, ids, end in zip(texts, rows.copy(), ends, strict=True):
      assert ids[: len(asked)].tolist() == asked
      response = ids[len(asked) :].tolist()
      assert 1 <= len(response) <= 6 and tokenizer.pad_id not in response
      assert end == (response[-1] == tokenizer.eot_id) and tokenizer.eot_id not in response[:-1]
      assert end or len(response) == 6
      assert text == tokenizer.decode(response).removeprefix(" ")
      finished.append(end)
  assert not all(finished)


def test_greedy_answers_repeat_themselves_and_progress_is_told(network: Network):
  seen = []
  out = ask(network, temperature=0.0, num_samples=2, on_batch=lambda *n: seen.append(n))
  assert all(first.tolist() == second.tolist() for first, second in out.ids)
  sizes = [
    len(ids) - len(network.tokenizer.encode(prompt + ":"))
    for prompt, rows in zip(PROMPTS, out.ids)
    for ids in rows
  ]
  # (answers done, response tokens of the batch)
  assert seen == [(4, sum(sizes[:4])), (8, sum(sizes[4:8])), (10, sum(sizes[8:]))]


def test_a_nucleus_of_one_token_is_greedy(network: Network):
  assert id_lists(ask(network, top_p=1e-6)) == id_lists(ask(network, temperature=0.0))
  with pytest.raises(ValueError, match="top_p 0.0; use a number above 0 and up to 1"):
    ask(network, top_p=0.0)


def test_an_answer_in_a_chat_ends_with_its_turn(network: Network):
  tokenizer = copy.copy(network.tokenizer)
  tokenizer.chat = chat.ChatTemplate(
    head=(),
    before="",
    after=":",
    tail=(),
    strips_left=False,
    strips_right=False,
    answer_prefix="",
    end="e",
  )
  p = completions.AnswerConfig(
    max_prompt_tokens=8,
    max_response_tokens=6,
    temperature=1.5,
    batch_size=20,
    prompt_format="chat",
    prompt_suffix="",
    completion_prefix="",
  )
  out = completions.answer(
    dataclasses.replace(network, tokenizer=tokenizer), ["a"], p, jax.random.key(0), num_samples=200
  )
  end_id = tokenizer.turn_end_id
  assert 0 < sum(out.finished[0]) < 200
  for text, ids, finished in zip(out.texts[0], out.ids[0], out.finished[0], strict=True):
    assert finished == (ids[-1] == end_id) and end_id not in ids[:-1]
    assert "e" not in text


def test_prompts_and_answers_must_fit(network: Network):
  with pytest.raises(ValueError, match="prompt 1 .'abcdefgh'...*max_prompt_tokens 8"):
    ask(network, ["a", "abcdefgh"])
  p = completions.AnswerConfig(
    max_prompt_tokens=8,
    max_response_tokens=9,
    temperature=1.0,
    batch_size=4,
    prompt_format="plain",
    prompt_suffix=":",
    completion_prefix=" ",
  )
  with pytest.raises(
    ValueError, match="max_prompt_tokens 8 . max_response_tokens 9 is longer than the context of 16"
  ):
    completions.answer(network, ["a"], p, jax.random.key(0))
