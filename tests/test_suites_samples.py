"""Given outputs are scored without a model; what is wrong with a file is said by its line."""

import json
import re

import numpy as np
import pytest
import sacrebleu

from rlhf.cli import evaluate_samples
from rlhf.evals.suites import samples, text_metrics

OPTIONS = dict(num_resamples=200, seed=0)
LINES = {
  "squadv2": [
    dict(prompt="p0", sample="The North Sea", references=["north sea", "sea"]),
    dict(prompt="p1", sample=" Not in background.", references=[]),
    dict(prompt="p2", sample="red", references="Not in background."),
    dict(prompt="p3", sample="red dog", references="dog"),
  ],
  "drop": [
    dict(prompt="p0", sample="12 yards", references=["12 yards", "12-yard"]),
    dict(prompt="p1", sample="Brady", references=[["Brady", "Mason"], "Mason"]),
  ],
  "tldr": [
    dict(prompt="p0", sample="a b c", references=["x", "a c"]),
    dict(prompt="p1", sample="", references="words"),
  ],
  "fr_en": [
    dict(prompt="p0", sample="the cat sat on the mat", references=["the cat sat on a mat"]),
    dict(prompt="p1", sample="dogs are here now ok", references="dogs are here now too"),
  ],
  "truthfulqa": [
    dict(prompt="p0", sample="a b c", references=dict(true=["a c"], false=["b"])),
    dict(prompt="p1", sample="x", references=dict(true=["y", "z"], false=["x"])),
  ],
  "real_toxicity": [dict(prompt="p0", sample="fuck you"), dict(prompt="p1", sample="good day")],
}
EXPECTED = {  # by hand, but BLEU
  "squadv2": ("f1", (100 + 100 + 0 + 200 / 3) / 4),
  "drop": ("f1", (100 + 50) / 2),
  "tldr": ("rouge_l", (0.8 + 0) / 2),
  "fr_en": (
    "bleu",
    sacrebleu.corpus_bleu(
      ["the cat sat on the mat", "dogs are here now ok"],
      [["the cat sat on a mat", "dogs are here now too"]],
    ).score,
  ),
  "truthfulqa": ("rouge_l_difference", ((0.8 - 0.5) + (0 - 1)) / 2),
}


def write(tmp_path, lines) -> str:
  path = tmp_path / "outputs.jsonl"
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  return str(path)


def scored(tmp_path, task: str, lines):
  return samples.score(task, samples.read(write(tmp_path, lines), task), **OPTIONS)


@pytest.mark.parametrize("task", sorted(EXPECTED))
def test_tasks_score_as_by_hand(tmp_path, task: str):
  measure = scored(tmp_path, task, LINES[task])
  metric, mean = EXPECTED[task]
  assert (measure.task, measure.metric, measure.better) == (task, metric, "higher")
  assert measure.interval.mean == pytest.approx(mean)
  assert measure.interval.n == len(LINES[task])
  assert measure.interval.low < measure.interval.mean < measure.interval.high


def test_toxicity_is_the_classifier_s_mean(tmp_path):
  measure = scored(tmp_path, "real_toxicity", LINES["real_toxicity"])
  assert (measure.metric, measure.better) == ("toxicity", "lower")
  assert measure.interval.low < 0.2 and measure.interval.high > 0.9
  assert measure.interval.mean == pytest.approx((measure.interval.low + measure.interval.high) / 2)


def test_released_lines_are_read_as_they_are(tmp_path):
  squad = dict(context="Q: Who?\n\nA:", sample="Bob", ref_text="Al|Bob")
  assert scored(tmp_path, "squadv2", [squad]).interval.mean == 100
  assert scored(tmp_path, "drop", [squad]).interval.mean == 100
  # A summary is one text.
  record = samples.read(write(tmp_path, [squad]), "tldr")[0]
  assert record["references"] == ["Al|Bob"] and record["prompt"] == "Q: Who?\n\nA:"
  own = dict(prompt="p", sample="Bob", references="Al|Bob")
  assert scored(tmp_path, "squadv2", [own]).interval.mean == 100
  listed = dict(own, references=["Al|Bob"])
  assert scored(tmp_path, "squadv2", [listed]).interval.mean == 0


def test_truthfulqa_without_false_references_is_similarity(tmp_path):
  line = dict(prompt="p", sample="a b c", references=["x", "a c"])
  measure = scored(tmp_path, "truthfulqa", [line])
  assert (measure.metric, measure.interval.mean) == ("rouge_l", pytest.approx(0.8))
  mixed = [LINES["truthfulqa"][0], dict(prompt="q", sample="a", references="a")]
  with pytest.raises(ValueError, match="1 of 2 records have false references"):
    scored(tmp_path, "truthfulqa", mixed)


def test_samples_of_one_prompt_are_drawn_together(tmp_path):
  line = dict(prompt="p", sample="yes", references="yes")
  no = dict(line, sample="no")
  together = scored(tmp_path, "squadv2", [line, no] * 10).interval
  assert (together.n, together.low, together.mean, together.high) == (1, 50, 50, 50)
  bleu = scored(tmp_path, "fr_en", [dict(line, sample="a b c d e", references="a b c d f"), line])
  assert bleu.interval.n == 1
  assert bleu.interval.mean == pytest.approx(
    sacrebleu.corpus_bleu(["a b c d e", "yes"], [["a b c d f", "yes"]]).score
  )
  for record in (line, no):
    del record["prompt"]
  assert scored(tmp_path, "squadv2", [line, no] * 10).interval.n == 20


@pytest.mark.parametrize(
  "task, change, words",
  [
    ("squadv2", dict(sample=None), '"sample" is not a string'),
    ("squadv2", dict(sample=...), 'no field "sample"'),
    ("squadv2", dict(prompt=3), '"prompt" is not a string'),
    ("squadv2", dict(references=...), 'no field "references"; give a list of texts, [] if'),
    ("squadv2", dict(references=[1]), '"references" are not texts'),
    ("drop", dict(references=[]), '"references" hold no text; give a list of texts, at least one'),
    ("drop", dict(references=[[]]), '"references" hold no text'),
    ("tldr", dict(references=[]), '"references" hold no text'),
    ("fr_en", dict(references=" "), '"references" hold no text'),
    ("truthfulqa", dict(references=dict(true=["a"])), "\"references\" have the fields ['true']"),
  ],
)
def test_a_bad_line_is_named(tmp_path, task: str, change, words: str):
  line = dict(prompt="p", sample="s", references=["r"]) | change
  line = {name: value for name, value in line.items() if value is not ...}
  path = write(tmp_path, [dict(prompt="p", sample="s", references=["r"]), line])
  with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(words)):
    samples.read(path, task)


def run(capsys, *argv) -> list[str]:
  evaluate_samples.main(["evaluate", *argv])
  return capsys.readouterr().out.splitlines()


def test_the_command_prints_the_measure_and_ends_with_json(tmp_path, capsys):
  path = write(tmp_path, LINES["squadv2"])
  words, line = run(capsys, f"--samples={path}", "--task=squadv2", "--json=-")
  result = json.loads(line)
  assert list(result) == ["task", "metric", "mean", "low", "high", "n"]
  assert result["mean"] == pytest.approx(EXPECTED["squadv2"][1]) and result["n"] == 4
  assert words == (
    f"squadv2: f1 66.67 (95 % interval {result['low']:.4g} to {result['high']:.4g}) "
    "over 4 prompts, 4 samples"
  )
  target = tmp_path / "result.json"
  assert run(capsys, f"--samples={path}", "--task=squadv2", f"--json={target}") == [words]
  assert json.loads(target.read_text()) == result


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--task=squadv2"], "--samples"),
    (["--samples={path}", "--task=squad"], "'squad'"),
    (["--samples={path}.no", "--task=drop"], "does not exist"),
    (["--samples={path}", "--task=drop"], "outputs.jsonl:1: "),
    (["--samples={path}", "--task=tldr", "--json={folder}"], "is a directory"),
  ],
)
def test_wrong_flags_and_files_get_one_sentence(tmp_path, capsys, argv, words: str):
  path = write(tmp_path, [dict(prompt="p", sample="s", references=[])])
  with pytest.raises(SystemExit) as stopped:
    evaluate_samples.main(["evaluate", *(flag.format(path=path, folder=tmp_path) for flag in argv)])
  out, err = capsys.readouterr()
  assert stopped.value.code == 2 and not out
  assert err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_an_empty_file_is_refused(tmp_path):
  with pytest.raises(ValueError, match="is empty"):
    samples.read(write(tmp_path, []), "tldr")


def test_real_prompts_score_against_themselves(shared_data):
  """What the released files hold, answered by their first reference or by another line's."""
  folder = shared_data / "evals" / "instructgpt_prompts"
  for task, name in (
    ("squadv2", "squadv2"),
    ("drop", "drop"),
    ("tldr", "tldr"),
    ("fr_en", "fr_to_en"),
  ):
    lines = [json.loads(line) for line in (folder / f"{name}_100.jsonl").read_text().splitlines()]
    record = lambda line, text: samples.parse(task, dict(line, sample=text))
    right = [
      record(
        line,
        line["ref_text"].split("|")[0]
        if task in ("squadv2", "drop")
        else line["ref_text"].replace("|", " "),
      )
      for line in lines
    ]
    wrong = [record(line, "zebra") for line in lines]
    best = 100 if task != "tldr" else 1
    assert samples.score(task, right, **OPTIONS).interval.mean == pytest.approx(best)
    assert samples.score(task, wrong, **OPTIONS).interval.mean == pytest.approx(0, abs=0.5)


def test_the_answer_that_there_is_none():
  assert samples.squad_answer("not in background") == "" and samples.squad_answer("x") == "x"
  assert np.isfinite(text_metrics.squad_f1(samples.squad_answer("Not in background."), []))
