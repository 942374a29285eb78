"""Checkpoints by name, units that are run once, and the page that compares them."""

import dataclasses
import json
import os

import numpy as np
import pytest

from rlhf import workdir as workdir_lib
from rlhf.evals import measures, statistics, units
from rlhf.report import evaluation
from rlhf.report import page as page_lib


def interval(mean: float, n: int = 5) -> statistics.Interval:
  return statistics.Interval(mean=mean, low=mean - 0.1, high=mean + 0.1, n=n)


def test_a_measure_is_written_flat_and_read_back():
  measure = measures.Measure(task="sst", metric="accuracy", interval=interval(0.5), better="higher")
  assert measure.as_dict() == dict(
    task="sst",
    variant="",
    metric="accuracy",
    mean=0.5,
    low=0.4,
    high=0.6,
    n=5,
    better="higher",
    values=[],
  )
  unknown = measures.Measure.of_mean(
    [1, np.nan, 0], dict(seed=0, num_resamples=9), task="sst", metric="accuracy"
  )
  assert unknown.interval.mean == 0.5 and unknown.as_dict()["values"] == [1.0, None, 0.0]
  with pytest.raises(ValueError, match="better is 'more'"):
    measures.Measure(task="sst", metric="accuracy", interval=interval(0.5), better="more")


def test_checkpoints_have_the_names_that_were_given_or_those_of_their_directories():
  found = units.parse_candidates(
    ["ppo@1M=runs/a/export", "runs/sft/export", "hf:models/opt-125m", "gguf:dir/SmolLM2.Q4_1.gguf"]
  )
  assert [(one.name, one.source) for one in found] == [
    ("ppo@1M", "runs/a/export"),
    ("sft", "runs/sft/export"),
    ("opt-125m", "hf:models/opt-125m"),
    ("SmolLM2.Q4_1", "gguf:dir/SmolLM2.Q4_1.gguf"),
  ]
  assert found[0].method == "ppo" and found[1].method == "sft"


@pytest.mark.parametrize(
  "specs, sentence",
  [
    ([], "--checkpoints is empty"),
    (["a/b=runs/x"], "'a/b' cannot name a checkpoint"),
    ([".x=runs/x"], "cannot name a checkpoint"),
    (["a="], "names no directory"),
    (["runs/sft", "other/sft/export"], "two called 'sft'"),
  ],
)
def test_wrong_checkpoints_are_one_sentence(specs, sentence):
  with pytest.raises(ValueError, match=sentence):
    units.parse_candidates(specs)


def test_a_prefix_goes_to_its_checkpoint(tmp_path):
  (tmp_path / "prefix.txt").write_text("Q: a\nA: b\n\n", encoding="utf-8")
  candidates = units.parse_candidates(["base=runs/base", "few_shot=runs/base"])
  found = units.with_prefixes(candidates, [f"few_shot={tmp_path / 'prefix.txt'}"])
  assert [one.prefix for one in found] == [None, "Q: a\nA: b\n\n"]
  with pytest.raises(ValueError, match="a NAME of --checkpoints: base, few_shot"):
    units.with_prefixes(candidates, ["other=x.txt"])
  with pytest.raises(ValueError, match="there is no such file"):
    units.with_prefixes(candidates, ["base=x.txt"])


@pytest.fixture
def candidate(tmp_path):
  (tmp_path / "weights").mkdir()
  (tmp_path / "weights" / "export.json").write_text("{}", encoding="utf-8")
  return units.Candidate(name="a", source=str(tmp_path / "weights"))


def test_a_result_counts_only_for_what_it_was_made_of(candidate, tmp_path):
  settings = dict(seed=0, group=dict(limit=3))
  wanted = units.fingerprint(candidate, "sst", settings)
  directory = units.task_directory(tmp_path, "nlp", "a", "lm_eval:sst")
  assert directory == tmp_path / "nlp" / "a" / "lm_eval-sst"
  assert units.find_result(directory, wanted) is None
  measured = [measures.Measure(task="sst", metric="accuracy", interval=interval(0.5))]
  units.write_result(directory, wanted, measured, seconds=1.0)
  assert units.find_result(directory, wanted)["measures"] == [measured[0].as_dict()]

  others = [
    units.fingerprint(candidate, "rte", settings),
    units.fingerprint(candidate, "sst", settings | dict(seed=1)),
    units.fingerprint(
      units.Candidate(name="a", source=candidate.source, prefix="p"), "sst", settings
    ),
  ]
  os.utime(tmp_path / "weights" / "export.json", ns=(1, 1))  # written anew
  others.append(units.fingerprint(candidate, "sst", settings))
  assert len({wanted, *others}) == 5
  assert all(units.find_result(directory, other) is None for other in others)


def test_a_units_settings_are_all_but_the_list_of_units(candidate, tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Config:
    tasks: tuple
    judge: str
    limit: int

  (tmp_path / "stage" / "export").mkdir(parents=True)
  (tmp_path / "stage" / "export" / "export.json").write_text("{}", encoding="utf-8")
  for source, export in ((candidate.source, "weights"), (str(tmp_path / "stage"), "stage/export")):
    settings = lambda: units.group_settings(Config(tasks=("a",), judge=source, limit=3))
    before = settings()
    assert before["limit"] == 3 and "tasks" not in before
    os.utime(tmp_path / export / "export.json", ns=(1, 1))  # the judge was trained anew
    assert settings() != before


def rows_of(*found):
  return [
    measures.Measure(
      task=task, variant=variant, metric="entropy", interval=interval(mean), better="higher"
    ).as_dict()
    for task, variant, mean in found
  ]


def test_measures_become_rows_with_a_cell_for_each_checkpoint():
  rows = units.by_measure(
    {
      "a": rows_of(("crows", "basic", 0.4), ("crows", "biased", 0.3)),
      "b": rows_of(("crows", "basic", 0.5)),
    }
  )
  assert [(row["variant"], sorted(row["cells"])) for row in rows] == [
    ("basic", ["a", "b"]),
    ("biased", ["a"]),
  ]
  assert rows[0]["cells"]["b"] == dict(mean=0.5, low=0.4, high=0.6, n=5)


def test_differences_are_of_the_same_items():
  def of(*values, metric="entropy"):
    return measures.Measure.of_mean(
      values, dict(num_resamples=200, seed=1), task="crows", metric=metric
    ).as_dict()

  whole = measures.Measure(task="fr_en", metric="bleu", interval=interval(20.0)).as_dict()
  hard = np.asarray([0.0, 1.0, 0.0, 1.0, 0.5, 0.2])
  rows = units.differences(
    {
      "a": [of(*hard), of(1, 0, metric="share"), whole, of(1, np.nan, metric="known")],
      "b": [of(*hard + 0.25), of(1, metric="share"), whole, of(np.nan, 1, metric="known")],
      "c": [of(*hard - 0.125)],
    },
    "a",
    num_resamples=200,
    seed=1,
  )
  assert [(row["task"], row["metric"]) for row in rows] == [("crows", "entropy")]
  assert {name: cell["mean"] for name, cell in rows[0]["cells"].items()} == {
    "b": pytest.approx(0.25),
    "c": pytest.approx(-0.125),
  }
  assert rows[0]["cells"]["b"]["low"] == pytest.approx(0.25)  # what the items share cancels
  assert rows[0]["cells"]["b"]["n"] == 6
  assert units.differences({"b": [of(1, 2)]}, "a", num_resamples=9, seed=1) == []
  assert (
    page_lib.short_interval(dict(mean=0.25, low=-0.1, high=0.0), True) == "+0.250 [\u22120.100, 0]"
  )


def test_the_page_shows_every_number_and_escapes_what_models_say(tmp_path):
  basic = {
    name: [dict(one, values=[value, 1.0]) for one in rows_of(("crows", "basic", value))]
    for name, value in (("a", 0.4), ("b", 0.9))
  }
  workdir_lib.write_jsonl(
    tmp_path / "preference" / "completions.jsonl",
    [dict(prompt="hi", completions={"a": "<script>alert(1)</script>", "b": " "})],
  )
  page = evaluation.write(
    tmp_path,
    title="Two",
    checkpoints=[
      dict(name="a", source="x", parameters=1000),
      dict(name="b", source="y", parameters=1000),
    ],
    measures={
      "bias": {"a": basic["a"], "b": [*rows_of(("crows", "", 0.52)), *basic["b"]]},
    },
    compared=dict(
      num_prompts=12,
      num_left_out=1,
      endpoint=None,
      reward_models={},
      measures={},
      agreement=dict(preference=dict(agreement=interval(0.7).as_dict(), with_ties=None)),
      baseline="a",
      matrix={
        "training": {a: {b: interval(0.7).as_dict() for b in "abc" if a != b} for a in "abc"}
      },
    ),
    notes=["Said once."],
    bootstrap=dict(num_resamples=50, seed=0),
  )
  html = page.read_text(encoding="utf-8")
  assert "Minus a, on the same items" in html and "+0.250 [0, +0.500]" in html
  assert "0.400 [0.300, 0.500]" in html and "0.520 [0.420, 0.620]" in html
  for text in (
    "70.0",
    "Said once.",
    "(empty)",
    "12 prompts were judged",
    "1 were too long",
    "70.0% [60.0%, 80.0%] of the comparisons that both decided.",
  ):
    assert text in html
  assert "<script>" not in html and "&lt;script&gt;" in html
  assert html.count("<svg") == 1  # one metric of one task
  saved = json.loads((tmp_path / "report" / "evaluation.json").read_text(encoding="utf-8"))
  assert saved["suites"]["bias"][0]["cells"]["a"]["mean"] == 0.4


def test_methods_at_several_sizes_are_lines_over_the_size():
  parameters = {"sft@32k": 32_000, "sft@1M": 1_000_000, "base@1M": 1_000_000, "judge": None}
  assert evaluation.has_sizes(parameters)
  assert not evaluation.has_sizes({"sft": 32_000, "ppo": 32_000})
  row = dict(
    task="t",
    variant="",
    metric="win_rate",
    better="higher",
    cells={name: interval(0.5).as_dict() for name in parameters},
  )
  points = evaluation.size_points(row, parameters)
  assert [point["parameters"] for point in points["sft"]] == [32_000, 1_000_000]
  assert sorted(points) == ["base", "sft"]
  assert not evaluation.plots("x", [row], parameters)  # all are equal
  evaluation.add_baseline([row], "sft@1M")
  row["cells"]["base@1M"]["mean"] = 0.4
  ((svg, _),) = evaluation.plots("x", [row], parameters)
  assert "32k" in svg and "1.0M" in svg


@pytest.mark.parametrize(
  "value, text",
  [(0.5274, "0.527"), (52.74, "52.7"), (-0.0312, "\u22120.0312"), (0, "0"), (1234.4, "1234")],
)
def test_numbers_have_three_digits_that_count(value, text):
  assert page_lib.short(value) == text
