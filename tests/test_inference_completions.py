"""Completions: of prompts in their format, and of ids and lines as they stand."""

import copy
import dataclasses

import helpers
import jax
import numpy as np
import pytest

from rlhf.inference import completions, sampling
from rlhf.networks import Network
from rlhf.tokenization import chat

CONTEXT = 40


@pytest.fixture(scope="module", autouse=True)
def quick():
  """What runs once need not be optimized."""
  static = ("cfg", "eot_id", "max_new_tokens", "temperature", "top_p", "num_slots")
  with pytest.MonkeyPatch.context() as patch:
    sample = helpers.quick_jit(sampling.sample.__wrapped__, static_argnames=static)
    patch.setattr(sampling, "sample", sample)
    yield


@pytest.fixture(scope="module")
def small() -> Network:
  return helpers.byte_network()


@pytest.fixture(scope="module")
def network() -> Network:
  return helpers.line_network(CONTEXT)


@pytest.fixture(scope="module")
def logits_of(network):
  return helpers.next_logprobs(network)


# ---------------------------------------------------------------------- prompts in their format

PROMPTS = ["a", "bcd", "the", "f", "gh"]


def ask(
  small: Network,
  prompts=PROMPTS,
  *,
  batch_size: int = 4,
  temperature: float = 1.5,
  top_p: float = 1.0,
  key: int = 0,
  **more,
) -> completions.Completions:
  p = completions.CompletionConfig(
    max_prompt_tokens=8,
    max_response_tokens=6,
    temperature=temperature,
    top_p=top_p,
    batch_size=batch_size,
    prompt_format="plain",
    prompt_suffix=":",
    completion_prefix=" ",
  )
  return completions.sample(small, prompts, p, jax.random.key(key), **more)


def id_lists(out: completions.Completions):
  return [[ids.tolist() for ids in of_prompt] for of_prompt in out.ids]


def test_completions_do_not_depend_on_the_batch(small: Network):
  out = ask(small, num_samples=3)
  assert [len(of_prompt) for of_prompt in out.ids] == [3] * 5
  other = ask(small, num_samples=3, batch_size=7)
  assert id_lists(other) == id_lists(out) and other.texts == out.texts
  assert other.finished == out.finished


def test_a_batch_has_few_more_rows_than_are_asked_for(small: Network, monkeypatch):
  rows, sample = [], sampling.sample
  monkeypatch.setattr(
    sampling,
    "sample",
    lambda cfg, params, prompts, *args, **kwargs: (
      rows.append(len(prompts.tokens_BP)) or sample(cfg, params, prompts, *args, **kwargs)
    ),
  )
  out = ask(small, num_samples=1)
  assert id_lists(ask(small, num_samples=1, batch_size=1000)) == id_lists(out)
  ask(small, PROMPTS[:1], batch_size=1000)
  assert rows == [8, 8, 1]


def test_sample_s_of_prompt_i_is_the_same_however_many_there_are(small: Network):
  out, uneven = ask(small, num_samples=3), ask(small, num_samples=[1, 3, 0, 2, 1])
  assert id_lists(uneven) == [of_prompt[:n] for of_prompt, n in zip(id_lists(out), [1, 3, 0, 2, 1])]
  assert id_lists(ask(small, PROMPTS[:2], num_samples=3)) == id_lists(out)[:2]
  assert len({tuple(ids) for ids in id_lists(out)[0]}) == 3  # samples differ from one another
  assert id_lists(ask(small, num_samples=3, key=1)) != id_lists(out)


def test_a_completion_is_its_text_and_all_its_ids(small: Network):
  tokenizer = small.tokenizer
  out = ask(small, num_samples=20)
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


def test_greedy_completions_repeat_themselves_and_progress_is_told(small: Network):
  seen = []
  tell = lambda *n: seen.append(n)
  out = ask(small, temperature=0.0, num_samples=2, batch_size=2, on_batch=tell)
  assert all(first.tolist() == second.tolist() for first, second in out.ids)
  sizes = [
    len(ids) - len(small.tokenizer.encode(prompt + ":"))
    for prompt, rows in zip(PROMPTS, out.ids)
    for ids in rows
  ]
  # (completions done, response tokens of these batches): five batches in two calls
  assert seen == [(6, sum(sizes[:6])), (10, sum(sizes[6:]))]


def test_a_nucleus_of_one_token_is_greedy(small: Network):
  assert id_lists(ask(small, top_p=1e-6)) == id_lists(ask(small, temperature=0.0))
  with pytest.raises(ValueError, match="top_p is 0.0; use a number above 0 and up to 1"):
    ask(small, top_p=0.0)


def test_a_completion_in_a_chat_ends_with_its_turn(small: Network):
  tokenizer = copy.copy(small.tokenizer)
  tokenizer.chat = chat.ChatTemplate(
    head=(),
    before="",
    after=":",
    tail=(),
    strips_left=False,
    strips_right=False,
    completion_prefix="",
    end="e",
  )
  p = completions.CompletionConfig(
    max_prompt_tokens=8,
    max_response_tokens=6,
    temperature=3.0,
    batch_size=20,
    prompt_format="chat",
    prompt_suffix="",
    completion_prefix="",
  )
  out = completions.sample(
    dataclasses.replace(small, tokenizer=tokenizer), ["a"], p, jax.random.key(0), num_samples=200
  )
  end_id = tokenizer.turn_end_id
  assert 0 < sum(out.finished[0]) < 200
  for text, ids, finished in zip(out.texts[0], out.ids[0], out.finished[0], strict=True):
    assert finished == (ids[-1] == end_id) and end_id not in ids[:-1]
    assert "e" not in text


def test_prompts_and_completions_must_fit(small: Network):
  with pytest.raises(ValueError, match="prompt 1 .'abcdefgh'...*max_prompt_tokens 8"):
    ask(small, ["a", "abcdefgh"])
  p = completions.CompletionConfig(
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
    completions.sample(small, ["a"], p, jax.random.key(0))


# ----------------------------------------------------------------------------- ids and lines


def random_ids(seed: int, length: int) -> list[int]:
  return np.random.default_rng(seed).integers(2, 256, length).tolist()


@pytest.mark.slow
def test_writing_on_a_mesh_gives_the_same(network):
  contexts = [random_ids(seed, 1 + 2 * seed) for seed in range(6)]
  options = dict(max_new_tokens=6, stops=["\n"], batch_size=4)
  split = helpers.split_over(network, data=2, fsdp=2, tensor=2)
  assert completions.sample_ids(
    split, contexts, jax.random.key(0), **options
  ) == completions.sample_ids(network, contexts, jax.random.key(0), **options)


def greedy(logits_of, context, count: int) -> list[int]:
  written = []
  for _ in range(count):
    written.append(int(logits_of([*context, *written])[-1].argmax()))
  return written


def test_texts_are_greedy_and_end_at_the_stop(network, logits_of):
  contexts = [random_ids(seed, 1 + 2 * seed) for seed in range(6)]
  told = []
  found = completions.sample_ids(
    network,
    contexts,
    jax.random.key(0),
    max_new_tokens=8,
    batch_size=4,
    progress=lambda *n: told.append(n),
  )
  whole = [network.tokenizer.decode(greedy(logits_of, context, 8)) for context in contexts]
  assert found == [text.split("<|endoftext|>")[0] for text in whole] and told == [(4, 6), (6, 6)]
  stop = next(character for text in whole for character in text[1:])
  cut = completions.sample_ids(
    network, contexts, jax.random.key(0), max_new_tokens=8, batch_size=4, stops=["", stop]
  )
  assert cut == [text.split(stop)[0] for text in found] and cut != found


def test_a_token_that_holds_a_stop_ends_its_row(network):
  end_V = completions._ending_tokens(network, ["\n"])
  tokenizer = network.tokenizer
  holding = {token for token in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([token])}
  assert len(holding) > 1 and np.flatnonzero(end_V).tolist() == sorted(holding | {tokenizer.eot_id})


def test_a_row_that_ended_is_not_decoded_further(network, monkeypatch):
  """All rows end at their first token, so nothing follows in any."""
  every_V = np.ones(network.cfg.padded_vocab_size, bool)
  monkeypatch.setattr(completions, "_ending_tokens", lambda *_: every_V)
  seen = []
  text = completions._text
  monkeypatch.setattr(
    completions,
    "_text",
    lambda tokenizer, ids, stops: (seen.append(len(ids)), text(tokenizer, ids, stops))[1],
  )
  completions.sample_ids(network, [[5], [6, 7]], jax.random.key(0), max_new_tokens=8, batch_size=2)
  assert seen == [1, 1]


def test_samples_belong_to_their_request(network):
  contexts = [random_ids(seed, 3 + seed) for seed in range(5)]
  options = dict(max_new_tokens=5, temperature=1.0)
  draw = lambda batch_size, seed: completions.sample_ids(
    network, contexts, jax.random.key(seed), batch_size=batch_size, **options
  )
  assert draw(4, 0) == draw(8, 0) != draw(8, 1)


def test_contexts_lose_their_beginning(network):
  long = random_ids(0, 3 * CONTEXT)
  options = dict(max_new_tokens=6, batch_size=1)
  assert completions.sample_ids(
    network, [long], jax.random.key(0), **options
  ) == completions.sample_ids(network, [long[-(CONTEXT - 6) :]], jax.random.key(0), **options)
  with pytest.raises(ValueError, match="40 new tokens leave no room for a prompt"):
    completions.sample_ids(network, [long], jax.random.key(0), max_new_tokens=40, batch_size=1)
  with pytest.raises(ValueError, match="context 1 is empty"):
    completions.sample_ids(network, [[1], []], jax.random.key(0), max_new_tokens=4, batch_size=1)


def test_lines_end_at_their_break(network, monkeypatch):
  given = {}

  def write(network, contexts, key, **settings):
    given.update(settings, contexts=contexts)
    return [" one", "three "]

  monkeypatch.setattr(completions, "sample_ids", write)
  seen = []
  texts = completions.sample_lines(
    network,
    ["a", ""],
    temperature=0.0,
    max_response_tokens=5,
    batch_size=2,
    seed=0,
    progress=lambda *numbers: seen.append(numbers),
  )
  assert texts == ["one", "three"]
  assert given["contexts"] == [network.tokenizer.encode("a"), [network.tokenizer.eot_id]]
  assert (given["stops"], given["max_new_tokens"], given["temperature"]) == (("\n",), 5, 0.0)
  given["progress"](2, 2)
  assert seen == [(2, 2)]


def test_a_context_that_leaves_no_room_is_refused(network):
  with pytest.raises(
    ValueError,
    match="36 tokens and max_response_tokens is 5.*context is 40",
  ):
    completions.sample_lines(
      network, ["a", "b" * 36], temperature=0.0, max_response_tokens=5, batch_size=2, seed=0
    )
