"""The judge: its training, split by question, and what it refuses; the suite that it judges."""

import csv
import dataclasses
import functools
import json
import math

import commands
import helpers
import jax
import numpy as np
import pytest

from rlhf import checkpoint, networks, sharding
from rlhf.configs import truth_judge as judge_configs
from rlhf.evals.suites import suite, truth, truth_answers, truth_judge
from rlhf.evals.suites.truth_answers import AnswerData
from rlhf.inference import completions, likelihood
from rlhf.model import transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

NOUNS = [f"{kind} {number}" for number in range(15) for kind in ("cat", "dog", "owl", "ant")]
QUESTIONS = [f"What of {noun}?" for noun in NOUNS]


WORDS = {"true": ("good", "bad"), "informative": ("big", "wee")}


def labelled(aspect: str) -> list[dict]:
  """Whatever is good is true, and whatever is big is helpful: a rule that a tiny model learns."""
  return [
    {"prompt": truth.judge_prompt(aspect, question, f"It is {word}."), "completion": label}
    for question in QUESTIONS
    for word, label in zip(WORDS[aspect], (truth.YES, truth.NO))
  ]


def answer_data(**changes) -> AnswerData:
  fields = dict(
    true="jsonl:true.jsonl",
    informative="",
    test="",
    test_fraction=0.2,
    valid_fraction=0.1,
    num_valid=None,
    num_test=None,
    on_bad="stop",
  )
  return AnswerData(**(fields | changes))


# ----------------------------------------------------------------------------- the split


def test_a_question_is_in_one_part_whatever_is_asked_of_its_answers():
  p = answer_data(informative="jsonl:info.jsonl")
  answers = [
    truth_answers.read_answer(aspect, record, "x")
    for aspect in truth.ASKS
    for record in labelled(aspect)
  ]
  parts = truth_answers.split_answers(answers, p)
  questions = {name: {answer.question for answer in part} for name, part in parts.items()}
  assert sum(map(len, questions.values())) == len(QUESTIONS)
  assert len(set().union(*questions.values())) == len(QUESTIONS)
  assert sum(map(len, parts.values())) == len(answers) == 240
  assert 3 <= len(questions["test"]) <= 24 and 2 <= len(questions["valid"]) <= 14
  again = truth_answers.split_answers(answers[:120][::-1], answer_data())
  assert {answer.question for answer in again["test"]} == questions["test"]


def test_shares_of_many_questions():
  """A digest decides: 20 % and 10 % of 4,000, within four standard deviations."""
  p, ids = answer_data(), [truth.question_id(f"question {i}") for i in range(4000)]
  parts = [truth_answers.part_of(name, p, frozenset()) for name in ids]
  assert abs(parts.count("test") - 800) < 4 * math.sqrt(4000 * 0.2 * 0.8)
  assert abs(parts.count("valid") - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)


@pytest.mark.parametrize("name", ["questions.csv", "questions.jsonl"])
def test_named_questions_are_for_the_test(name, tmp_path):
  path = tmp_path / name
  named = ["what  of CAT 0?", "What of\ndog 1?"]  # neither case nor white space counts
  with open(path, "w", encoding="utf-8", newline="") as file:
    if name.endswith(".csv"):
      csv.writer(file).writerows([["Type", "Question"], *(["x", text] for text in named)])
    else:
      file.writelines(json.dumps({"context": text}) + "\n" for text in named)
  p = answer_data(test=str(path), test_fraction=0.0)
  answers = [truth_answers.read_answer("true", record, "x") for record in labelled("true")]
  parts = truth_answers.split_answers(answers, p)
  assert {answer.question for answer in parts["test"]} == {
    truth.question_id("What of cat 0?"),
    truth.question_id("What of dog 1?"),
  }
  assert len(parts["test"]) == 4


def test_nothing_left_to_train_on(tmp_path):
  commands.write_jsonl(tmp_path / "all.jsonl", [{"question": text} for text in QUESTIONS])
  answers = [truth_answers.read_answer("true", record, "x") for record in labelled("true")]
  with pytest.raises(ValueError, match="of the answers of answers.true none is left for 'train'"):
    truth_answers.split_answers(answers, answer_data(test=str(tmp_path / "all.jsonl")))


@pytest.mark.parametrize(
  "record,message",
  [
    (
      {"prompt": "Q: Why?\nA: So.\nHelpful:", "completion": " yes"},
      r"l:1 has the prompt .*; answers.true needs 'Q: ...\\nA: ...\\nTrue:'",
    ),
    ({"prompt": "Why?", "completion": " yes"}, "l:1 has the prompt 'Why\\?'"),
    (
      {"prompt": "Q: Why?\nA: So.\nTrue:", "completion": " maybe"},
      "l:1 has the completion ' maybe'; it must be yes or no",
    ),
  ],
  ids=str,
)
def test_a_record_that_is_no_labelled_answer(record, message):
  with pytest.raises(ValueError, match=message):
    truth_answers.read_answer("true", record, "l:1")


@pytest.mark.parametrize(
  "text,message",
  [
    ("{\n", "answers.test: .*test.jsonl:1: not JSON"),
    ('{"answer": "x"}\n', "test.jsonl:1 has no question; give"),
    ("\n", "holds no question; leave the field empty"),
  ],
  ids=repr,
)
def test_a_file_of_questions_that_is_none(text, message, tmp_path):
  path = tmp_path / "test.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    truth_answers.read_questions(str(path))
  with pytest.raises(ValueError, match="answers.test: .*nowhere.csv does not exist"):
    truth_answers.read_questions(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(valid_fraction=0.0), "answers.valid_fraction 0.0 must be above 0"),
    (dict(valid_fraction=0.5, test_fraction=0.5), "leave questions to train on"),
    (dict(test_fraction=1.0), "answers.test_fraction 1.0 must be at least 0 and below 1"),
    (dict(num_valid=0), "answers.num_valid is 0; use 1 or more"),
    (dict(num_test=0), "answers.num_test is 0; use 1 or more"),
    (dict(on_bad="ignore"), "answers.on_bad 'ignore'; choose from ..skip., .stop.."),
  ],
  ids=str,
)
def test_impossible_data_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    answer_data(**changes)


# ----------------------------------------------------------------------------- scores and accuracy


def test_accuracy_by_hand():
  """Of 3 that are so 2 are found, of 1 that is not 0; always yes would be right 3 times of 4."""
  found = truth.held_out_accuracy(
    [True, True, False, True],
    [True, True, True, False],
    ["a", "a", "b", "b"],
    num_resamples=200,
    seed=0,
  )
  means = {name: interval.mean for name, interval in found.items()}
  assert means == pytest.approx({"accuracy": 0.5, "balanced_accuracy": 1 / 3, "majority": 0.75})
  # Answers to one question are drawn together: of two questions, one right twice and one wrong.
  assert found["accuracy"].n == 2
  assert (found["accuracy"].low, found["accuracy"].high) == (0.0, 1.0)


def test_a_score_is_yes_against_no_alone(monkeypatch):
  """The rest of the vocabulary does not count, nor do probabilities too small to be held."""
  logprobs = {" yes": math.log(0.03), " no": math.log(0.01)}
  monkeypatch.setattr(
    likelihood,
    "logprobs",
    lambda network, pairs, **_: np.asarray(
      [logprobs[text] - 900 * (prompt == "low") for prompt, text in pairs]
    ),
  )
  np.testing.assert_allclose(truth.judge(None, ["a", "low"], batch_size=2), [0.75, 0.75])


# ----------------------------------------------------------------------------- training


SHAPE = dict(context_length=64, num_layers=1, num_heads=2, width=32, band_width=None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A judge of both, from a tiny scratch model: (directory, config, done.json)."""
  directory = tmp_path_factory.mktemp("judge")
  for aspect in truth.ASKS:
    commands.write_jsonl(directory / f"{aspect}.jsonl", labelled(aspect))
  tokenizer = Tokenizer.train_bpe(
    [line["prompt"] + line["completion"] for aspect in truth.ASKS for line in labelled(aspect)], 300
  )
  config = judge_configs.get_config("test").unlock()
  config.model.update(SHAPE)
  cfg = ModelConfig(vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, **config.model)
  params = helpers.quick_jit(functools.partial(transformer.init_params, cfg))(jax.random.key(0))
  checkpoint.export_params(
    directory / "base",
    params,
    kind="policy",
    step=0,
    model=cfg.shape(),
    tokenizer=tokenizer,
    config={},
    metadata={},
  )
  config.init_from = str(directory / "base")
  for aspect in truth.ASKS:
    config.answers[aspect] = f"jsonl:{directory / aspect}.jsonl"
  config.sft.num_epochs, config.answers.num_valid = 12, 8
  config.optim.learning_rate = 1e-2
  config.loop.eval_every = 1000
  result = truth_judge.train(config, directory / "run")
  return directory, config, result


def test_it_learns_both_rules_and_says_how_well_on_questions_it_has_not_seen(trained, capsys):
  directory, config, result = trained
  for aspect in truth.ASKS:
    assert result[f"test/{aspect}_accuracy"] > 0.9
    assert result[f"test/{aspect}_accuracy_low"] <= result[f"test/{aspect}_accuracy"]
    assert result[f"test/{aspect}_majority"] == 0.5
  first, *_, last = commands.read_jsonl(directory / "run" / "metrics.jsonl")
  assert first["validation/true_accuracy"] < 0.8 < last["validation/true_accuracy"]
  export = checkpoint.load_export(directory / "run" / "export")
  parts = truth_answers.split_answers(
    [
      truth_answers.read_answer(aspect, record, "x")
      for aspect in truth.ASKS
      for record in labelled(aspect)
    ],
    AnswerData(**config.answers),
  )
  seen = {answer.question for name in ("train", "valid") for answer in parts[name]}
  for aspect in truth.ASKS:
    judgement = export.metadata[truth.METADATA][aspect]
    assert set(judgement["questions"]) == seen and judgement["held_out"] == "test"
    assert judgement["accuracy"]["mean"] == result[f"test/{aspect}_accuracy"]
    assert judgement["accuracy"]["n"] == len(QUESTIONS) - len(seen)
  assert truth_judge.train(config, directory / "run") == result  # a finished stage is not run again
  capsys.readouterr()


def test_what_a_judge_reads_is_what_it_was_trained_on(trained):
  """The row of one answer, up to its label, is what `completions` scores."""
  directory, config, _ = trained
  network = load(directory / "base", config)
  for aspect in truth.ASKS:
    answer = truth_answers.read_answer(aspect, labelled(aspect)[0], "x")
    rows = truth_answers.tokenise([answer], network.tokenizer, length=64)
    ((context, label),) = likelihood.encode(network, [(answer.prompt, truth.YES)])
    end = len(context) + len(label)
    assert rows.tokens_BT[0, :end].tolist() == [*context, *label]
    on = np.flatnonzero(rows.loss_mask_BT[0])
    assert on[0] == len(context) and on[-1] == end  # the label, and the end-of-text behind it


def load(directory, config) -> Network:
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  return networks.load(directory, ComputeConfig(), mesh, kind="policy", flag="x")


def test_answers_that_are_too_long_are_left_out_and_said(trained, capsys):
  directory, config, _ = trained
  network = load(directory / "base", config)
  short = truth_answers.read_answer("true", labelled("true")[0], "x")
  long = dataclasses.replace(short, prompt=truth.judge_prompt("true", "What?", "zq" * 30))
  assert truth_answers.that_fit([short, long], network.tokenizer, length=40) == [short]
  assert "1 of 2 held-out answers have more than 40 tokens" in capsys.readouterr().out


@pytest.mark.slow
def test_adapters_alone_can_be_trained(trained, tmp_path, capsys):
  directory, config, _ = trained
  config = config.copy_and_resolve_references().unlock()
  config.lora.rank, config.sft.max_steps, config.answers.informative = 2, 2, ""
  truth_judge.train(config, tmp_path / "run")
  export = checkpoint.load_export(tmp_path / "run" / "export_adapter")
  assert export.kind == "adapter" and set(export.metadata[truth.METADATA]) == {"true"}
  capsys.readouterr()


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"init_from": ""}, "init_from is empty; name the export directory"),
    ({"answers.true": "", "answers.informative": ""}, "config.answers.true and config.answers.inf"),
    ({"answers.true": "jsonl:nowhere.jsonl"}, "nowhere.jsonl"),
    ({"answers.true": "{directory}/informative.jsonl"}, "record 1, has the prompt .* answers.true"),
    ({"answers.test": "{directory}/nowhere.csv"}, "answers.test: .*nowhere.csv does not exist"),
    ({"answers.valid_fraction": 0.001}, "answers.true none is left for 'valid'"),
  ],
  ids=str,
)
def test_bad_input_is_named_before_anything_is_made(trained, changes, message, capsys):
  directory, config, _ = trained
  config = config.copy_and_resolve_references().unlock()
  for name, value in changes.items():
    if isinstance(value, str) and value.startswith("{directory}"):
      value = value.format(directory=directory)
      value = f"jsonl:{value}" if value.endswith("jsonl") else value
    config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=message):
    truth_judge.check_inputs(config)


def test_what_is_wrong_is_left_out_where_that_is_asked_for(capsys):
  found = truth_answers.read_answers(
    "true", [*labelled("informative")[:2], *labelled("true")[:3]], "jsonl:x", "skip"
  )
  assert len(found) == 3
  assert "2 labelled answers skipped, the first because jsonl:x, record 1, has the prompt" in (
    capsys.readouterr().out
  )


# ----------------------------------------------------------------------------- the suite


@pytest.fixture
def data(tmp_path):
  """TruthfulQA's file with the questions of this test."""
  (tmp_path / "truthfulqa").mkdir()
  with open(tmp_path / "truthfulqa" / "TruthfulQA.csv", "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(
      [
        "Type",
        "Category",
        "Question",
        "Best Answer",
        "Correct Answers",
        "Incorrect Answers",
        "Source",
      ]
    )
    writer.writerows(["A", "B", text, "Yes", "Yes; Sure", "No", "C"] for text in QUESTIONS)
  return tmp_path


def truth_config(trained, data, **changes) -> truth.TruthConfig:
  judge = str(trained[0] / "run" / "export")
  fields = dict(
    judge_true=judge,
    judge_info=str(trained[0] / "run"),
    data=str(data),
    limit=4,
    questions="held_out",
    prompts=("qa", "qa_instruction"),
    max_response_tokens=8,
  )
  return truth.TruthConfig(**(fields | changes))


def test_a_unit_judges_answers_to_questions_that_the_judge_has_not_seen(
  trained, data, tmp_path, monkeypatch
):
  directory, config, result = trained
  contexts = []

  def lines(network, given, **settings):
    assert settings["temperature"] == 0.0
    contexts.extend(given)
    return ["It is good.", "It is bad.", "It is good.", "It is bad."]

  monkeypatch.setattr(completions, "sample_lines", lines)
  p = truth_config(trained, data)
  truth.check(p)
  assert len({directory for _, directory in p.judges.values()}) == 1  # an export, and its stage
  assert truth.task_names(p) == ("truthfulqa-qa", "truthfulqa-qa_instruction")
  unit = suite.Unit(
    task="truthfulqa-qa",
    network=load(directory / "base", config),
    directory=tmp_path / "out",
    num_resamples=50,
    seed=0,
    batch_size=16,
  )
  measures = truth.evaluate(p, unit)
  assert [(m.metric, m.variant, m.better) for m in measures] == [
    ("true", "qa", "higher"),
    ("informative", "qa", "higher"),
    ("true_and_informative", "qa", "higher"),
  ]
  assert measures[0].interval.mean == 0.5 and measures[0].interval.n == 4
  items = commands.read_jsonl(tmp_path / "out" / "items.jsonl")
  seen = checkpoint.load_export(p.judge_true).metadata[truth.METADATA]["true"]["questions"]
  assert not {truth.question_id(item["question"]) for item in items} & set(seen)
  assert items[0]["true"] > 0.5 > items[3]["true"]
  assert 0 < items[0]["informative"] < 1 and items[0]["references"]["false"] == ["No"]
  assert contexts[0].startswith("Q: What is human life expectancy")
  assert contexts[0].endswith(f"\n\nQ: {items[0]['question']}\nA:")
  note, _ = truth.notes(p)
  assert (
    note.startswith(f"The judge of 'true' agrees with people on {result['test/true_accuracy']:.1%}")
    and "50.0%" in note
  )


def test_questions_that_the_judge_was_trained_on_are_refused(trained, data):
  with pytest.raises(
    ValueError,
    match="config.truth.questions is all, but a judge was trained on "
    r"answers to \d+ of the 60 questions",
  ):
    truth.check(truth_config(trained, data, questions="all"))
  path = data / "truthfulqa" / "TruthfulQA.csv"
  export = checkpoint.load_export(trained[0] / "run" / "export")
  seen = set(export.metadata[truth.METADATA]["true"]["questions"])
  header, *rows = path.read_text().splitlines()
  path.write_text(
    "\n".join(
      [header, *(row for row, text in zip(rows, QUESTIONS) if truth.question_id(text) in seen)]
    )
    + "\n"
  )
  with pytest.raises(ValueError, match="the judges were trained on answers to every question of"):
    truth.check(truth_config(trained, data))


def test_a_policy_is_no_judge(trained, data):
  base = str(trained[0] / "base")
  with pytest.raises(
    ValueError,
    match="config.truth.judge_info=.*base was not trained to say "
    "whether an answer is informative: it is no judge; train",
  ):
    truth.check(truth_config(trained, data, judge_info=base))
  with pytest.raises(ValueError, match="config.truth.judge_true: .* does not exist"):
    truth.check(truth_config(trained, data, judge_true=str(data / "nowhere")))
  with pytest.raises(ValueError, match="config.truth.data: .* is not a directory"):
    truth.check(truth_config(trained, data / "nowhere"))


def test_shares_by_hand():
  """Three of four are true, two informative, one both; one half itself is no yes."""
  found = truth.measured([0.9, 0.6, 0.51, 0.5], [0.2, 0.1, 0.8, 0.9])
  shares = {metric: value_N.mean() for metric, (value_N, _) in found.items()}
  assert shares == {"true": 0.75, "informative": 0.5, "true_and_informative": 0.25}


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(prompts=("help",)), "config.truth.prompts names 'help'; choose from qa, instruction"),
    (dict(questions="some"), "config.truth.questions 'some'; choose from .'all', 'held_out'"),
    (dict(limit=0), "config.truth.limit is 0"),
    (dict(max_response_tokens=0), "is 0; use 1"),
  ],
  ids=str,
)
def test_impossible_settings_are_refused(changes, message):
  fields = dict(
    judge_true="a",
    judge_info="b",
    data="d",
    limit=None,
    questions="all",
    prompts=("qa",),
    max_response_tokens=5,
  )
  with pytest.raises(ValueError, match=message):
    truth.TruthConfig(**(fields | changes))


def test_the_published_answers(shared_data):
  """Every labelled answer is read, and most questions of TruthfulQA can be told from them."""
  p, num_yes = answer_data(), {}
  for aspect, name in (("true", "truth"), ("informative", "info")):
    path = shared_data / "evals" / "truthfulqa" / f"finetune_{name}.jsonl.gz"
    found, _ = truth_answers.sources.formats.read("demonstration", path, "jsonl")
    answers = [truth_answers.read_answer(aspect, record, name) for record in found]
    num_yes[aspect] = len(answers), sum(answer.label for answer in answers)
    parts = truth_answers.split_answers(
      answers,
      dataclasses.replace(
        p, true="x" if aspect == "true" else "", informative="" if aspect == "true" else "x"
      ),
    )
    counts = {name: len({answer.question for answer in part}) for name, part in parts.items()}
    assert sum(counts.values()) == 817 and 120 < counts["test"] < 210
  assert num_yes == {"true": (22434, 9484), "informative": (22434, 18076)}
