"""Blind sheets out, filled sheets in, every mistake in them, and how far raters agree."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rlhf.evals.preference import agreement, ratings

SETTINGS = dict(num_resamples=300, seed=0)
PROMPTS = [{"prompt": f'prompt {index},\n"quoted"'} for index in range(4)]
COMPLETIONS = {
  "sft": [f"a{index}" for index in range(4)],
  "ppo": ["b0\nline", "b1\rline", "b2", "b3"],
}
# Two samples of prompt 0 and one of prompt 1.
SAMPLES = {
  "s1": ratings.Sample(prompt_index=0, policy="sft", prompt="p", completion="a"),
  "s2": ratings.Sample(prompt_index=0, policy="ppo", prompt="p", completion="b"),
  "s3": ratings.Sample(prompt_index=1, policy="ppo", prompt="q", completion="c"),
  "s4": ratings.Sample(prompt_index=0, policy="base", prompt="p", completion="d"),
}


def write_csv(path, lines):
  columns = list(dict.fromkeys(name for line in lines for name in line))
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, columns, restval="")
    writer.writeheader()
    writer.writerows(lines)
  return path


def filled(tmp_path, lines, name="sheet.csv"):
  return ratings.read([write_csv(tmp_path / name, lines)], SAMPLES)


# ----------------------------------------------------------------------------- sheets out


def sheets(tmp_path, **changes):
  settings = dict(completions=COMPLETIONS, baseline="sft", seed=0)
  ratings.write_sheets(tmp_path, PROMPTS, **settings | changes)
  read = lambda name: list(
    csv.DictReader(open(tmp_path / "blind" / name, encoding="utf-8-sig", newline=""))
  )
  return read("samples.csv"), read("pairs.csv"), ratings.read_key(tmp_path / "key.jsonl")


def test_sheets_hold_every_sample_once_and_the_key_says_whose_it_is(tmp_path):
  samples, pairs, key = sheets(tmp_path)
  assert {(s.policy, s.prompt_index) for s in key.values()} == set(
    itertools.product(COMPLETIONS, range(4))
  )
  assert {line["sample"] for line in samples} == set(key)
  for line in samples:
    sample = key[line["sample"]]
    assert (
      line["completion"] == sample.completion == COMPLETIONS[sample.policy][sample.prompt_index]
    )
    assert line["prompt"] == sample.prompt == PROMPTS[sample.prompt_index]["prompt"]
  assert len(pairs) == 4
  for line in pairs:
    a, b = key[line["sample_a"]], key[line["sample_b"]]
    assert a.prompt_index == b.prompt_index and {a.policy, b.policy} == {"sft", "ppo"}
    assert (line["completion_a"], line["completion_b"]) == (a.completion, b.completion)


def test_sheets_are_blind(tmp_path):
  prompts = [{"prompt": "p"}] * 200
  ratings.write_sheets(
    tmp_path, prompts, {"sft": ["a"] * 200, "ppo": ["b"] * 200}, baseline="sft", seed=0
  )
  text = (tmp_path / "blind" / "samples.csv").read_text()
  assert "sft" not in text and "ppo" not in text
  key = ratings.read_key(tmp_path / "key.jsonl")
  order = [
    key[line["sample"]]
    for line in csv.DictReader(open(tmp_path / "blind/samples.csv", encoding="utf-8-sig"))
  ]
  # Neither place nor side says who it is, as far as a half can be told from all.
  assert 60 < sum(sample.policy == "ppo" for sample in order[:200]) < 140
  assert sum(a.prompt_index == b.prompt_index for a, b in zip(order, order[1:])) < 20
  sides = [
    key[line["sample_a"]].policy
    for line in csv.DictReader(open(tmp_path / "blind/pairs.csv", encoding="utf-8-sig"))
  ]
  assert 60 < sides.count("ppo") < 140


def test_a_limit_takes_whole_prompts(tmp_path):
  samples, pairs, key = sheets(tmp_path, limit=2)
  assert len(samples) == len(key) == 4 and len(pairs) == 2


def test_sheets_that_may_be_filled_in_stay(tmp_path):
  sheets(tmp_path)
  with pytest.raises(ValueError, match=r"samples.csv exists and may have been filled in"):
    sheets(tmp_path)


def test_a_filled_sheet_comes_back_as_csv_and_as_jsonl(tmp_path):
  samples, pairs, key = sheets(tmp_path)
  samples[0] |= dict(rater="ann", likert="7", rank="1", hallucination="no", denigrates="YES")
  samples[1] |= dict(rater="bob", likert="2.0")
  pairs[0] |= dict(rater="ann", preference="Tie")
  paths = [
    write_csv(tmp_path / name, lines) for name, lines in (("one.csv", samples), ("two.csv", pairs))
  ]
  found = ratings.read(paths, key)
  assert found.raters == {"ann": "human", "bob": "human"}
  one, two = found.ratings
  assert (one.sample, one.likert, one.rank) == (samples[0]["sample"], 7, 1)
  assert one.metadata == {"hallucination": False, "denigrates": True}
  assert (two.likert, two.rank, two.metadata) == (2, None, {})
  assert [choice.win for choice in found.choices] == [0.5]
  # Rows count as in a spreadsheet, although prompts contain line breaks.
  assert one.where == f"{paths[0]}: row 2" and two.where == f"{paths[0]}: row 3"

  lines = [
    dict(
      sample=one.sample,
      rater="ann",
      likert=7,
      rank=1,
      hallucination=False,
      denigrates=True,
      notes=None,
    ),
    dict(sample=two.sample, rater="bob", likert=2),
  ]
  (tmp_path / "sheet.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  again = ratings.read([tmp_path / "sheet.jsonl"], key)
  for a, b in zip(again.ratings, found.ratings, strict=True):
    assert (a.sample, a.rater, a.likert, a.rank, a.metadata) == (
      b.sample,
      b.rater,
      b.likert,
      b.rank,
      b.metadata,
    )


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "line, sentence",
  [
    (dict(sample="s9", rater="ann", likert="3"), "unknown sample 's9'; the key of the sheets has"),
    (dict(rater="ann", likert="3"), 'no "sample"'),
    (dict(sample="s1", likert="3"), 'no "rater" for "likert"'),
    (dict(sample_a="s1", sample_b="s2", preference="a"), 'no "rater" for "preference"'),
    (dict(sample="s1", rater="ann", likert="8"), "\"likert\" is '8', outside its scale; choose"),
    (dict(sample="s1", rater="ann", likert="0"), "its scale; choose from 1, 2, 3, 4, 5, 6, 7"),
    (dict(sample="s1", rater="ann", likert="3.5"), "outside its scale"),
    (dict(sample="s1", rater="ann", likert="good"), "outside its scale"),
    (dict(sample="s1", rater="ann", rank="0"), "\"rank\" is '0', outside its scale"),
    (
      dict(sample="s1", rater="ann", hallucination="maybe"),
      "\"hallucination\" is 'maybe', outside",
    ),
    (dict(sample_a="s1", sample_b="s2", rater="ann", preference="c"), "\"preference\" is 'c'"),
    (dict(sample_a="s1", rater="ann", preference="a"), 'no "sample_b"'),
    (dict(sample_a="s1", sample_b="s1", rater="ann", preference="a"), "compared with itself"),
    (dict(sample_a="s1", sample_b="s3", rater="ann", preference="a"), "have different prompts"),
    (dict(sample_a="s1", sample_b="s2", rater="ann", likert="3"), "a row about two samples"),
    (dict(sample="s1", rater="ann", preference="a"), '"preference" in a row about one sample'),
    (
      dict(sample="s1", rater="ann", group="x", likert="3"),
      "\"group\" is 'x', outside its scale; choose from",
    ),
    (dict(sample="s1", rater="ann", likret="3"), "'likret' is unknown; did you mean 'likert'"),
    (dict(sample="s2", rater="bob", likert="3"), "bob rated s2 already at"),
    (dict(sample_a="s2", sample_b="s1", rater="bob", preference="a"), "bob rated s1 and s2"),
    (
      dict(sample="s1", rater="bob", group="heldout", likert="3"),
      "of group heldout here and of group",
    ),
  ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_mistakes_name_file_and_line(tmp_path, line, sentence, kind):
  good = [
    dict(sample="s2", rater="bob", likert="3"),
    dict(sample_a="s1", sample_b="s2", rater="bob", preference="b"),
  ]
  path = tmp_path / f"sheet.{kind}"
  if kind == "csv":
    write_csv(path, [*good, line])
  else:
    path.write_text("".join(json.dumps(one) + "\n" for one in [*good, line]))
  with pytest.raises(ValueError) as error:
    ratings.read([path], SAMPLES)
  # An unknown column of CSV is in every row.
  where = ":3" if kind == "jsonl" else ": row 2" if "likret" in line else ": row 4"
  assert str(error.value).startswith(f"{path}{where}: "), error.value
  assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, sentence",
  [
    ("sample,rater,likert\n", "has no rating (0 empty rows)"),
    ("sample,rater,likert\ns1,ann,\n", "has no rating (1 empty rows)"),
    ("sample,rater,rater\ns1,ann,3\n", ": row 1: two columns 'rater'"),
    ("sample,rater,likert\ns1,ann,3,4\n", ": row 2: 4 cells under 3 columns"),
    # Some spreadsheets drop empty cells at the end of a row.
    ("sample,rater,likert\ns1,ann\n", "has no rating (1 empty rows)"),
    ('sample,rater,likert\ns1,"ann,3\n', ": row 2: not CSV"),
  ],
)
def test_sheets_that_are_no_sheets(tmp_path, text, sentence):
  path = tmp_path / "sheet.csv"
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    ratings.read([path], SAMPLES)
  assert sentence in str(error.value)


def test_a_sheet_that_is_not_there_or_not_text(tmp_path):
  with pytest.raises(ValueError, match="none.csv does not exist"):
    ratings.read([tmp_path / "none.csv"], SAMPLES)
  (tmp_path / "x.csv").write_bytes(b"sample\n\xff\n")
  with pytest.raises(ValueError, match="x.csv is not UTF-8"):
    ratings.read([tmp_path / "x.csv"], SAMPLES)


@pytest.mark.parametrize(
  "change, sentence",
  [
    (lambda line: line.pop("policy"), 'no field "policy"; restore the key'),
    (
      lambda line: line.update(prompt_index="0"),
      "\"prompt_index\" is '0', which is no int; restore",
    ),
    (lambda line: line.update(sample="s1"), "a second sample s1"),
  ],
)
def test_a_damaged_key_is_refused(tmp_path, change, sentence):
  first = dict(sample="s1", prompt_index=0, policy="sft", prompt="p", completion="a")
  second = dict(first, sample="s2", policy="ppo")
  change(second)
  path = tmp_path / "key.jsonl"
  path.write_text(json.dumps(first) + "\n" + json.dumps(second) + "\n")
  with pytest.raises(ValueError) as error:
    ratings.read_key(path)
  assert str(error.value).startswith(f"{path}:2: ") and sentence in str(error.value)


def test_an_older_key_calls_completions_answers(tmp_path):
  path = tmp_path / "key.jsonl"
  path.write_text(
    json.dumps(dict(sample="s1", prompt_index=0, policy="sft", prompt="p", answer="a")) + "\n"
  )
  assert ratings.read_key(path) == {"s1": SAMPLES["s1"]}


def test_a_cell_is_no_formula(tmp_path):
  samples, _, key = sheets(tmp_path, completions={"sft": ["=1+1"] * 4, "ppo": ["b"] * 4})
  assert {line["completion"] for line in samples} == {"'=1+1", "b"}
  assert {sample.completion for sample in key.values()} == {"=1+1", "b"}


def test_completions_that_changed_since_are_refused():
  found = ratings.Ratings(samples=SAMPLES, raters={}, ratings=(), choices=())
  prompts, completions = [{"prompt": "p"}, {"prompt": "q"}], {"sft": ["a", "x"], "ppo": ["b", "c"]}
  ratings.check_same_texts(found, prompts, completions)  # nobody asks for base
  with pytest.raises(ValueError, match="s3 is not the completion of prompt 1 by ppo now"):
    ratings.check_same_texts(found, prompts, completions | {"ppo": ["b", "other"]})
  with pytest.raises(ValueError, match="s3 was rated on a prompt other than prompt 1"):
    ratings.check_same_texts(found, prompts[:1] + [{"prompt": "r"}], completions)


# ----------------------------------------------------------------------------- agreement


def test_ranks_are_choices_unless_the_pair_was_judged(tmp_path):
  found = filled(
    tmp_path,
    [
      dict(sample="s1", rater="ann", rank="1"),
      dict(sample="s2", rater="ann", rank="2"),
      dict(sample="s4", rater="ann", rank="2"),
      dict(sample="s3", rater="ann", rank="1"),
      dict(sample_a="s1", sample_b="s2", rater="ann", preference="b"),
    ],
  )
  wins = {(choice.sample_a, choice.sample_b): choice.win for choice in ratings.choices(found)}
  assert wins == {("s1", "s2"): 0.0, ("s1", "s4"): 1.0, ("s2", "s4"): 0.5}  # s3: another prompt


@pytest.mark.parametrize("ordered", [True, False])
def test_alpha_with_missing_ratings(ordered):
  """1 - observed / expected disagreement over pairs, each item's weighted by 1 / (ratings - 1)."""
  rng = np.random.default_rng(0)
  value_SL = rng.integers(1, 4, size=(12, 3)).astype(float)
  value_SL[rng.random(value_SL.shape) < 0.3] = math.nan
  distance = (lambda a, b: (a - b) ** 2) if ordered else (lambda a, b: float(a != b))
  units = [row[~np.isnan(row)] for row in value_SL]
  units = [unit for unit in units if len(unit) > 1]
  values = np.concatenate(units)
  observed = sum(
    distance(a, b) / (len(unit) - 1) for unit in units for a, b in itertools.permutations(unit, 2)
  )
  expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
  found = agreement.reliability(value_SL, list("abc"), ordered=ordered)
  assert found["alpha"] == pytest.approx(1 - observed / expected)
  assert found["num_samples"] == len(units)
  same = agreement.reliability(np.ones((3, 2)), list("ab"), ordered=ordered)
  assert same == dict(alpha=1.0, kappa={}, num_samples=3)
  alone = np.array([[1, 1], [1, 1], [2, math.nan]])  # the third item has no pair
  assert agreement.reliability(alone, list("ab"), ordered=ordered)["alpha"] == 1.0


def test_agreement_by_hand(tmp_path):
  lines = [
    dict(sample_a="s1", sample_b="s2", rater="ann", preference="a"),
    dict(sample_a="s2", sample_b="s1", rater="bob", preference="b"),  # the same
    dict(sample_a="s1", sample_b="s2", rater="cat", preference="b"),
    dict(sample_a="s1", sample_b="s4", rater="ann", preference="tie"),
    dict(sample_a="s1", sample_b="s4", rater="bob", preference="a"),
    dict(sample="s1", rater="ann", likert="1", hallucination="yes"),
    dict(sample="s1", rater="bob", likert="3", hallucination="yes"),
    dict(sample="s2", rater="ann", likert="5", hallucination="no"),
    dict(sample="s2", rater="bob", likert="7", hallucination="yes"),
  ]
  said = filled(tmp_path, lines)
  pairs, preference_CL = ratings.comparison_table(said)
  assert pairs == [("s1", "s2"), ("s1", "s4")]
  np.testing.assert_array_equal(preference_CL, [[1, 1, 0], [0.5, 1, math.nan]])
  found = ratings.agreement(said, **SETTINGS)
  # Decided: ann and bob alike, cat against both: 1 of 3; the tie leaves the second pair out.
  assert found["preference"]["agreement"]["mean"] == pytest.approx(1 / 3)
  assert found["preference"]["with_ties"]["mean"] == pytest.approx(1 / 4)
  assert found["preference"]["num_comparisons"] == 2
  assert found["preference"]["agreement"]["n"] == 1  # both pairs are of prompt 0
  # Krippendorff by hand: squared distances; observed (4 + 4) / 2, expected over all 4 ratings.
  values = [1, 3, 5, 7]
  expected = np.mean([(a - b) ** 2 for a, b in itertools.permutations(values, 2)])
  assert found["likert"]["alpha"] == pytest.approx(1 - 4 / expected)
  assert found["likert"]["num_samples"] == 2
  assert found["metadata"]["hallucination"]["kappa"]["ann & bob"] == pytest.approx(
    cohen_kappa_score([1, 0], [1, 1])
  )


def test_without_two_raters_there_is_no_agreement(tmp_path):
  found = filled(
    tmp_path,
    [
      dict(sample_a="s1", sample_b="s2", rater="ann", preference="a"),
      dict(sample="s1", rater="ann", likert="3", hallucination="no"),
    ],
  )
  assert ratings.agreement(found, **SETTINGS) == {
    "preference": None,
    "likert": None,
    "metadata": {"hallucination": None},
  }


def test_pandalm_annotators(shared_data):
  path = shared_data / "preferences" / "pandalm_3annotators.jsonl.gz"
  found = ratings.read_pandalm(path)
  _, preference_CL = ratings.comparison_table(found)
  assert preference_CL.shape == (770, 3)
  agreed = ratings.agreement(found, **SETTINGS)["preference"]
  pairs = [preference_CL[:, pair].T for pair in ((0, 1), (0, 2), (1, 2))]
  decided = [np.isin(a, (0, 1)) & np.isin(b, (0, 1)) for a, b in pairs]
  both = np.concatenate([(a == b)[known] for (a, b), known in zip(pairs, decided)])
  assert agreed["agreement"]["mean"] == pytest.approx(both.mean())
  assert agreed["agreement"]["mean"] == pytest.approx(0.9492, abs=1e-4)
  same = np.mean([preference_CL[:, i] == preference_CL[:, j] for i, j in ((0, 1), (0, 2), (1, 2))])
  assert agreed["with_ties"]["mean"] == pytest.approx(same)
  assert agreed["alpha"] == pytest.approx(0.8625, abs=1e-4)
  assert agreed["num_comparisons"] == 770 and not math.isnan(agreed["agreement"]["low"])


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(annotator2=3), '"annotator2" is 3; use 0 for a tie, 1 or 2'),
    (dict(response1=...), 'no field "response1"'),
  ],
)
def test_pandalm_lines_that_are_none(tmp_path, change, sentence):
  line = dict(
    instruction="i",
    input="",
    response1="a",
    response2="b",
    cmp_key="m_n",
    annotator1=0,
    annotator2=1,
    annotator3=2,
  )
  path = tmp_path / "pandalm.jsonl"
  path.write_text(json.dumps(line) + "\n")
  found = ratings.read_pandalm(path)
  assert [choice.win for choice in found.choices] == [0.5, 1, 0]
  assert found.samples["0:2"] == ratings.Sample(
    prompt_index=0, policy="n", prompt="i", completion="b"
  )
  line = {name: value for name, value in (line | change).items() if value is not ...}
  path.write_text(json.dumps(line) + "\n")
  with pytest.raises(ValueError) as error:
    ratings.read_pandalm(path)
  assert str(error.value).startswith(f"{path}:1: ") and sentence in str(error.value)
