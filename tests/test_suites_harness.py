"""lm-eval's requests on our networks: ids, windows and settings; tests against `hf` need torch."""

import dataclasses
import json

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval")

import helpers
from lm_eval import evaluator
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api.instance import Instance

from rlhf.evals.suites import harness, nlp
from rlhf.evals.suites.tasks import functions
from rlhf.inference import completions, likelihood, sampling
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

CONTEXT = 24
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
  "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def network() -> Network:
  tokenizer = Tokenizer.train_bpe(["ab ab\n\nab ab yes no\n\n"] * 3, 264)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, context_length=CONTEXT, num_layers=1
  )
  return Network(cfg=cfg, params=helpers.make_params(cfg, seed=0), tokenizer=tokenizer, metadata={})


@pytest.fixture
def asked(monkeypatch) -> list:
  """What reaches the network, which answers from the ids alone: nothing compiles."""
  seen = []

  def loglikelihoods(network, pairs, *, batch_size, progress):
    seen.extend((list(context), list(continuation)) for context, continuation in pairs)
    return [(likelihood.LogLikelihood(-sum(b) / 100 - len(a), len(b)), False) for a, b in pairs]

  def write(network, contexts, key, **options):
    seen.append((contexts, options))
    return [f"text {len(context)}" for context in contexts]

  monkeypatch.setattr(likelihood, "loglikelihoods", loglikelihoods)
  monkeypatch.setattr(completions, "sample_ids", write)
  return seen


def requests(kind: str, *arguments) -> list[Instance]:
  return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def with_tokenizer(network: Network, **changes) -> Network:
  inner = network.tokenizer._inner
  return dataclasses.replace(
    network, tokenizer=Tokenizer(inner, eot_token="<|endoftext|>", pad_token="<|pad|>", **changes)
  )


def test_spaces_go_to_the_continuation(network, asked):
  encode = network.tokenizer.encode
  harness.HarnessModel(network, batch_size=2).loglikelihood(
    requests("loglikelihood", ("ab  ", "ab"), ("ab\n", " yes"), ("", "ab"))
  )
  eot = network.tokenizer.eot_id
  whole = encode("ab  ab")
  assert asked[0] == (encode("ab"), whole[len(encode("ab")) :])
  assert asked[1] == (encode("ab"), encode("ab\n yes")[len(encode("ab")) :])
  assert asked[2] == ([eot], encode("ab"))


def test_a_prefix_begins_texts_and_stands_for_an_empty_context(network, asked):
  begins = with_tokenizer(network, bos_token="<|pad|>", prefix_ids=[5])
  encode, bos = network.tokenizer.encode, begins.tokenizer.bos_id
  model = harness.HarnessModel(begins, batch_size=2)
  model.loglikelihood(requests("loglikelihood", ("ab", " no"), ("", "ab")))
  assert asked == [
    ([5, *encode("ab")], encode("ab no")[len(encode("ab")) :]),
    ([bos], encode("ab")),
  ]
  assert model.prefix_token_id == bos != harness.HarnessModel(network, batch_size=2).prefix_token_id


def test_answers_are_float_pairs_that_know_their_length(network, asked):
  ((logprob, is_greedy),) = harness.HarnessModel(network, batch_size=2).loglikelihood(
    requests("loglikelihood", ("ab", " yes no"))
  )
  assert isinstance(logprob, float) and is_greedy is False
  assert logprob.num_tokens == len(asked[0][1]) and json.loads(json.dumps(logprob)) == logprob


def test_long_texts_come_in_windows_that_do_not_overlap(network, asked):
  text = "xyz" * CONTEXT
  ids = network.tokenizer.encode(text)
  totals = harness.HarnessModel(network, batch_size=2).loglikelihood_rolling(
    requests("loglikelihood_rolling", (text,), ("x",))
  )
  eot = network.tokenizer.eot_id
  windows = asked[:-1]
  assert [i for _, part in windows for i in part] == ids and asked[-1] == ([eot], ids[:1])
  assert windows[0][0] == [eot] and all(len(a) + len(b) <= CONTEXT + 1 for a, b in windows)
  assert totals[0] == pytest.approx(sum(-sum(b) / 100 - len(a) for a, b in windows))
  assert totals[1] == pytest.approx(-ids[0] / 100 - 1)


def test_settings_are_those_of_the_task(network, asked):
  told = []
  model = harness.HarnessModel(
    network, batch_size=2, progress=lambda *numbers: told.append(numbers)
  )
  found = model.generate_until(
    requests(
      "generate_until",
      ("a", dict(until=["\n"], do_sample=False, temperature=0.7, max_gen_toks=5)),
      ("ab", dict(until="x", max_new_tokens=7)),
      ("abc", dict(until=["\n"], max_gen_toks=5, temperature=0.0)),
      ("", dict(do_sample=True)),
    )
  )
  assert found == ["text 1", "text 1", "text 2", "text 1"]
  settings = [
    (len(contexts), tuple(options["stops"]), options["max_new_tokens"], options["temperature"])
    for contexts, options in asked
  ]
  assert settings == [(2, ("\n",), 5, 0.0), (1, ("x",), 7, 0.0), (1, (), 256, 1.0)]
  assert asked[2][0] == [[network.tokenizer.eot_id]]
  with pytest.raises(ValueError, match="generation_kwargs 'top_p' of the task is not supported"):
    model.generate_until(requests("generate_until", ("a", dict(until=[], top_p=0.9))))


def test_chat_templates_write_special_tokens(network, asked):
  inner = network.tokenizer._inner.from_str(network.tokenizer._inner.to_str())
  inner.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  tokenizer = Tokenizer(
    inner, eot_token="<|endoftext|>", pad_token="<|pad|>", chat_template=TEMPLATE
  )
  chatting = dataclasses.replace(network, tokenizer=tokenizer)
  model = harness.HarnessModel(chatting, batch_size=2, chat=True)
  turns = [
    dict(role="user", content="ab"),
    dict(role="assistant", content="yes"),
    dict(role="user", content="no"),
  ]
  text = model.apply_chat_template(turns)
  assert text == (
    "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    "<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\n"
  )
  ids = model.tok_encode(text)
  assert ids.count(inner.token_to_id("<|im_start|>")) == 4
  assert ids.count(inner.token_to_id("<|im_end|>")) == 3
  assert model.tok_encode("<|im_end|>") == [inner.token_to_id("<|im_end|>")]
  plain = harness.HarnessModel(chatting, batch_size=2)
  assert inner.token_to_id("<|im_end|>") not in plain.tok_encode("<|im_end|>")
  open_turn = model.apply_chat_template(turns[:2], add_generation_prompt=False)
  assert open_turn.endswith("assistant\nyes")
  assert model.chat_template(True) == TEMPLATE and model.chat_template(False) is None
  with pytest.raises(ValueError, match="has no chat_template"):
    harness.HarnessModel(network, batch_size=2, chat=True)


def test_begin_of_text_stands_once_where_a_template_writes_it(network):
  begins = dataclasses.replace(
    network,
    tokenizer=Tokenizer(
      network.tokenizer._inner,
      eot_token="<|endoftext|>",
      pad_token="<|pad|>",
      bos_token="<|endoftext|>",
      prefix_ids=[network.tokenizer.eot_id],
      chat_template=TEMPLATE,
    ),
  )
  model = harness.HarnessModel(begins, batch_size=2, chat=True)
  ids = network.tokenizer.encode("ab")
  eot = network.tokenizer.eot_id
  assert model.tok_encode("<|endoftext|>ab") == model.tok_encode("ab") == [eot, *ids]
  assert model.tok_encode("ab", add_special_tokens=False) == ids


def test_the_network_itself_is_asked(network, monkeypatch):
  """From texts to numbers, compiled once each: test_inference_* checks the numbers."""
  for module, name, static in (
    (likelihood, "_score", ("cfg", "with_padding")),
    (
      sampling,
      "sample",
      ("cfg", "eot_id", "max_new_tokens", "temperature", "top_p", "num_slots"),
    ),
  ):
    quick = helpers.quick_jit(getattr(module, name).__wrapped__, static_argnames=static)
    monkeypatch.setattr(module, name, quick)
  model = harness.HarnessModel(network, batch_size=2)
  ((logprob, _),) = model.loglikelihood(requests("loglikelihood", ("ab ab", " yes")))
  encode = network.tokenizer.encode
  context, whole = encode("ab ab"), encode("ab ab yes")
  ((expected, _),) = likelihood.loglikelihoods(
    network, [(context, whole[len(context) :])], batch_size=2
  )
  assert logprob == expected < 0
  (text,) = model.generate_until(requests("generate_until", ("ab", dict(max_gen_toks=4))))
  assert (
    text
    == completions.sample_ids(
      network, [encode("ab")], jax.random.key(9), max_new_tokens=4, batch_size=2
    )[0]
  )


# ----------------------------------------------------------------------------- task files


def test_every_task_file_is_known_to_lm_eval():
  manager = lm_eval_tasks.TaskManager(include_path=str(nlp.TASK_DIR), include_defaults=False)
  assert set(manager.all_tasks) == {nlp.PREFIX + name for name in nlp.TASKS}
  assert set(nlp.TASKS) <= set(nlp.data_lib.SOURCES)


@pytest.mark.parametrize(
  "name, shots, prompt, continuation",
  [
    ("rte", 1, "Yes or no?\nAnswer: {target}\n\n", " yes"),
    (
      "sst",
      2,
      "For each text, say whether its sentiment is positive or negative.\n\nText: ",
      " positive",
    ),
    ("squadv2", 1, 'say "Not in background."\n\nTitle: ', None),
    ("fr_en", 2, "Translate each French text into English.\n\nFrench: ", None),
    ("tldr", 0, "\n\nTL;DR:", None),
  ],
)
def test_prompts_are_laid_out_as_in_the_paper(
  network, asked, shared_data, name, shots, prompt, continuation
):
  manager = lm_eval_tasks.TaskManager(
    include_path=str(nlp.TASK_DIR),
    include_defaults=False,
    metadata=dict(data=str(shared_data / "evals"), limit=3, seed=0),
  )
  found = evaluator.simple_evaluate(
    model=harness.HarnessModel(network, batch_size=2),
    tasks=[nlp.PREFIX + name],
    num_fewshot=shots,
    task_manager=manager,
    bootstrap_iters=0,
  )
  samples = found["samples"][nlp.PREFIX + name]
  assert len(samples) == 3
  for sample in samples:
    text, doc = sample["arguments"][0][0], sample["doc"]
    assert text.endswith(doc["prompt"]) and prompt.split("{")[0] in text
    assert text == text.rstrip()
    if continuation is not None:
      assert sample["arguments"][0][1] == continuation
    if name == "squadv2":  # the question's own passage comes last, after the example's
      assert text.count("Title: ") == 2
    if name == "fr_en":
      assert text.count("French: ") == 3 and sample["arguments"][0][1]["until"] == ["\n"]


def test_examples_are_whole_paragraphs_of_the_training_set(tmp_path):
  question = lambda name: dict(id=name, question=f"{name}?", answers=[])
  page = lambda *names: json.dumps(
    dict(
      data=[dict(title="T", paragraphs=[dict(context="c", qas=[question(name) for name in names])])]
    )
  )
  (tmp_path / "squadv2").mkdir()
  (tmp_path / "squadv2" / "train-v2.0.json").write_text(page("A", "B"))
  (tmp_path / "squadv2" / "dev-v2.0.json").write_text(page("C", "D"))
  found = functions.dataset("squadv2", str(tmp_path), config_source="unused")
  assert [item["id"] for item in found["shots"]] == ["B"]
  assert [item["id"] for item in found["test"]] == ["C", "D"]


def test_items_of_the_test_set_are_examples_for_others_alone():
  """Not for their own paragraph; and of a pronoun that is not the noun no answer is known."""
  docs = [dict(id=str(number), paragraph=f"p{number // 40}") for number in range(80)]
  sampler = harness.OtherItems(docs, rnd=0)
  for _ in range(5):
    found = sampler.sample(3, eval_doc=docs[1])
    assert {doc["paragraph"] for doc in found} == {"p1"} and len({doc["id"] for doc in found}) == 3
  assert len(sampler.sample(40, eval_doc=docs[1])) == 40
  with pytest.raises(ValueError, match="41 examples are wanted, but of 80 items only 40"):
    sampler.sample(41, eval_doc=docs[1])
  docs = [dict(id=str(number), is_referent=number % 2 == 0) for number in range(8)]
  sampler = harness.OtherItems(docs, rnd=0)
  assert {doc["id"] for doc in sampler.sample(3, eval_doc=docs[0])} == {"2", "4", "6"}
  assert harness.OtherItems(docs, rnd=1).sample(2) != harness.OtherItems(docs, rnd=2).sample(2)


# ----------------------------------------------------------------------------- scores of one item


def test_the_choice_is_that_of_highest_mean_per_token():
  pair = lambda logprob, count: (likelihood.LogLikelihood(logprob, count), False)
  item = dict(choices=["aaaaaaaaaa", "b"], answer=0)
  # Means -1 and -2; by characters -0.3 and -2.
  assert functions.choice(item, [pair(-3.0, 3), pair(-2.0, 1)]) == dict(acc=1.0, acc_norm=1.0)
  # Means -3 and -2, though by characters -0.3 and -2.
  assert functions.choice(item, [pair(-3.0, 1), pair(-2.0, 1)]) == dict(acc=0.0, acc_norm=1.0)
  others = functions.choice(item, [(-3.0, False), (-2.0, False)])
  assert np.isnan(others["acc"]) and others["acc_norm"] == 1.0


@pytest.mark.parametrize(
  "answer, is_referent, acc",
  [
    (" the old man", True, 1),
    ("man", True, 1),
    ("the old man and his dog", True, 1),
    ("the dog", True, 0),
    ("", True, 0),
    ("man", False, 0),
    ("the dog", False, 1),
  ],
)
def test_wsc_matches_the_noun(answer: str, is_referent: bool, acc: float):
  item = dict(references=["The old man"], is_referent=is_referent)
  assert functions.wsc(item, [answer]) == {"acc": acc}


def test_texts_are_scored_by_their_measures():
  assert functions.squadv2(dict(references=[]), [" Not in background."]) == dict(f1=100, exact=100)
  assert functions.quac(dict(references=["I don't know"]), ["I don't know."])["f1"] == 100
  assert functions.drop(dict(references=[["3"]]), [" 3"])["f1"] == 100
  assert functions.rouge_l(dict(references=["a c"]), ["a b c"])["rouge_l"] == pytest.approx(0.8)
  counted = functions.bleu(dict(references=["a b c d e"]), [" a b c d e"])["bleu"]
  assert functions.corpus_bleu([counted, counted]) == pytest.approx(100)
