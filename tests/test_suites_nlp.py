"""The suite of public tasks: what is measured on which items, what is written, what is refused."""

import importlib.util
import json
import types

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from rlhf.evals.suites import nlp, suite
from rlhf.evals.suites.tasks import data as data_lib
from rlhf.inference import completions, likelihood

OPTIONS = dict(num_resamples=100, seed=4, batch_size=2)


def config(folder, *tasks: str, **changes) -> nlp.NlpConfig:
  fields = dict(tasks=tasks, data=str(folder), limit=8, num_fewshot=1, chat=False)
  return nlp.NlpConfig(**(fields | changes))


def evaluate(p, task: str, network, directory, **more):
  unit = suite.Unit(task=task, network=network, directory=directory, **OPTIONS, **more)
  return nlp.evaluate(p, unit)


class Letters:
  """A tokenizer whose ids are characters."""

  eot_id, bos_id, prefix_ids, chat_template = 0, None, (), None

  def encode(self, text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.fixture
def network(monkeypatch):
  """A model that likes yes better than no, and writes what stands after the last colon."""

  def loglikelihoods(network, pairs, *, batch_size, progress):
    found = []
    for _, continuation in pairs:
      logprob = -1.0 if "y" in map(chr, continuation) else -2.0
      total = likelihood.LogLikelihood(logprob * len(continuation), len(continuation))
      found.append((total, True))
    if progress is not None:
      progress(len(pairs), len(pairs))
    return found

  def write(network, contexts, key, *, progress, **options):
    return [" Not in background." for _ in contexts]

  monkeypatch.setattr(likelihood, "loglikelihoods", loglikelihoods)
  monkeypatch.setattr(completions, "sample_ids", write)
  cfg = types.SimpleNamespace(context_length=10**5)
  return types.SimpleNamespace(tokenizer=Letters(), cfg=cfg, params=None, metadata={})


def lines_of(directory) -> list[dict]:
  return [json.loads(line) for line in (directory / "items.jsonl").read_text().splitlines()]


def test_a_choice_is_measured_on_the_drawn_items(network, shared_data, tmp_path):
  folder, told = shared_data / "evals", []
  tell = lambda *numbers: told.append(numbers)
  found = evaluate(config(folder, "rte"), "rte", network, tmp_path, progress=tell)
  drawn = data_lib.load_items("rte", str(folder), 8, seed=4)
  share = np.mean([item["answer"] == 0 for item in drawn])  # the model says yes
  assert [(x.task, x.metric, x.variant, x.better) for x in found] == [
    ("rte", "acc", "1-shot", "higher"),
    ("rte", "acc_norm", "1-shot", "higher"),
  ]
  assert found[0].interval.mean == pytest.approx(share) and found[0].interval.n == 8
  assert found[0].interval.low < share < found[0].interval.high
  lines = lines_of(tmp_path)
  assert [line["id"] for line in lines] == [item["id"] for item in drawn]
  for line, item in zip(lines, drawn):
    assert line["prompt"].endswith(f"\n\n{item['prompt']}") and line["choices"] == [" yes", " no"]
    assert (line["logprobs"], line["num_tokens"]) == ([-4.0, -6.0], [4, 3])
    assert line["scores"]["acc"] == float(item["answer"] == 0)
  assert told == [(16, 16)]


def test_written_answers_and_examples_of_the_same_hundred(network, shared_data, tmp_path):
  folder = shared_data / "evals"
  p = config(folder, "squadv2", num_fewshot=None, limit=30)
  f1, exact = evaluate(p, "squadv2", network, tmp_path)
  lines = lines_of(tmp_path)
  share = np.mean([not line["references"] for line in lines])
  assert (f1.variant, f1.metric, exact.metric) == ("4-shot", "f1", "exact")
  assert f1.interval.mean == exact.interval.mean == pytest.approx(100 * share) and 0 < share < 1
  for line in lines:
    assert line["sample"] == " Not in background." and line["prompt"].count("Title: ") == 5
    own = line["prompt"][line["prompt"].rindex("Title: ") :]
    assert own not in line["prompt"][: -len(own)]  # an item is no example for itself


def test_the_metric_that_says_how_able_a_model_is(shared_data):
  p = config(shared_data / "evals", "rte")
  assert [nlp.item_metric(p, task, 4) for task in ("rte", "squadv2")] == [
    ("acc", 1.0),
    ("f1", 100.0),
  ]
  with pytest.raises(ValueError, match="whose metric is bleu; name a task .* mean of one of acc,"):
    nlp.item_metric(p, "fr_en", 4)


def test_bleu_is_of_the_corpus(network, shared_data, tmp_path):
  p = config(shared_data / "evals", "fr_en", limit=20)
  (bleu,) = evaluate(p, "fr_en", network, tmp_path)
  from rlhf.evals.suites import text_metrics

  sums = np.sum([line["scores"]["bleu"] for line in lines_of(tmp_path)], axis=0)
  assert bleu.interval.mean == pytest.approx(float(text_metrics.bleu(sums)))
  assert bleu.interval.n == 20 and bleu.metric == "bleu"


@pytest.mark.parametrize("task", ["cnn_dm", "tldr"])
@pytest.mark.parametrize("num_fewshot, shown", [(None, 0), (0, 0), (2, 2)])
def test_summaries_have_as_many_examples_as_asked(
  network, shared_data, tmp_path, task, num_fewshot, shown
):
  p = config(shared_data / "evals", task, num_fewshot=num_fewshot, limit=4)
  (rouge,) = evaluate(p, task, network, tmp_path)
  assert rouge.variant == f"{shown}-shot"
  assert all(line["prompt"].count("TL;DR:") == shown + 1 for line in lines_of(tmp_path))


def test_all_items_where_there_is_no_limit(network, shared_data, tmp_path):
  p = config(shared_data / "evals", "sst", limit=None, num_fewshot=0)
  acc, _ = evaluate(p, "sst", network, tmp_path)
  assert acc.interval.n == 872


@pytest.mark.slow  # lm-eval reads thousands of task files
def test_other_tasks_of_lm_eval_are_measured_too(network, tmp_path, monkeypatch):
  """Its own task `arithmetic_1dc`, with rows in place of the hub's."""
  import datasets

  rows = datasets.Dataset.from_list(
    [dict(context=f"{number}+{number}=", completion=str(2 * number)) for number in range(9)]
  )
  monkeypatch.setattr(datasets, "load_dataset", lambda **options: dict(validation=rows))
  p = config(tmp_path, "lm_eval:arithmetic_1dc", limit=5, num_fewshot=None)
  nlp.check(p)
  with pytest.raises(ValueError, match="tasks names lm_eval:no_such, which lm-eval does not have"):
    nlp.check(config(tmp_path, "lm_eval:no_such"))
  (acc,) = evaluate(p, "lm_eval:arithmetic_1dc", network, tmp_path)
  assert (acc.task, acc.metric, acc.variant) == ("lm_eval:arithmetic_1dc", "acc", "0-shot")
  assert acc.interval.n == 5 and acc.interval.mean == 1
  numbers = data_lib.draw_indices([{}] * 9, 5, seed=4)
  assert [line["id"] for line in lines_of(tmp_path)] == numbers

  def fail(**options):
    raise ConnectionError("no way\nthere")

  monkeypatch.setattr(datasets, "load_dataset", fail)
  with pytest.raises(
    ValueError,
    match="lm_eval:arithmetic_1dc cannot be loaded .ConnectionError: "
    "no way there.; its data come from the hub",
  ):
    evaluate(p, "lm_eval:arithmetic_1dc", network, tmp_path)


def test_intervals_of_what_is_no_mean():
  """The largest of the drawn values, which a mean of resampled sums could not give."""
  values = [(1, 2.0), (2, 5.0), (3, 3.0)]
  largest = lambda drawn: max(value for _, value in drawn)
  found, of_items = nlp._interval(values, largest, num_resamples=300, seed=0)
  assert of_items == ()
  assert (found.mean, found.n, found.high) == (5.0, 3, 5.0) and found.low in (2.0, 3.0)


def test_what_is_no_mean_is_computed_a_hundred_times_at_most():
  """As many items as the largest public tasks have, without a table of items by items."""
  calls = []

  def middle(drawn):
    calls.append(len(drawn))
    return drawn[len(drawn) // 2]

  found, values = nlp._interval([1.0] * 40_000, middle, num_resamples=2000, seed=0)
  assert calls == [40_000] * (nlp.MOST_RESAMPLES + 1) and (found.low, found.n) == (1, 40_000)
  assert values == ()


def test_scores_that_are_not_known_are_left_out(network, shared_data, tmp_path):
  from rlhf.evals.suites.tasks import functions

  item = dict(choices=["a", "b"], answer=0)
  assert np.isnan(functions.choice(item, [(-1.0, False), (-2.0, False)])["acc"])
  with pytest.raises(ValueError, match="nothing to average"):
    nlp._interval([float("nan")], None, num_resamples=10, seed=0)


@pytest.mark.parametrize(
  "changes, words",
  [
    (dict(tasks=()), r"config.nlp.tasks is \[\]; name one or more"),
    (dict(tasks=("rte", "rte")), "name each once"),
    (dict(tasks=("squad",)), "config.nlp.tasks names 'squad'; choose from squadv2, drop"),
    (dict(limit=0), "config.nlp.limit is 0; use 1 or more"),
    (dict(num_fewshot=-1), "config.nlp.num_fewshot is -1; use 0 or more"),
  ],
)
def test_wrong_configs_are_refused(tmp_path, changes, words: str):
  with pytest.raises(ValueError, match=words):
    config(tmp_path, **(dict(tasks=("rte",)) | changes))


def test_what_is_missing_is_said_before_a_network_is_loaded(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="config.nlp.data: task rte: .* holds no rte/rte.zip"):
    nlp.check(config(tmp_path, "rte"))
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    ValueError, match=r"nlp needs the package lm_eval; pip install 'rlhf-jax\[evals\]'"
  ):
    nlp.check(config(tmp_path, "rte"))


def test_notes_say_where_there_are_but_the_released_prompts(shared_data):
  folder = shared_data / "evals"
  assert len(nlp.notes(config(folder, "rte", "lm_eval:piqa"))) == 1
  assert len(nlp.notes(config("hub", "squadv2"))) == 1
  assert nlp.notes(config(folder, "rte", "squadv2", "drop"))[1].startswith("Of squadv2, drop only")


def test_names_are_the_units(tmp_path):
  assert nlp.task_names(config(tmp_path, "rte", "lm_eval:piqa")) == ("rte", "lm_eval:piqa")
