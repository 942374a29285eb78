"""Judges: simulated labelers and people, their rows, and win rates of all pairs."""

import itertools

import numpy as np
import pytest

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics
from rlhf.evals.preference import judges, ratings, win_rates
from rlhf.tinyworld import demonstrations, instructions, labelers
from rlhf.tinyworld.world import make_world

SETTINGS = dict(num_resamples=400, seed=0)
WORLD = make_world(0)
TRAINING, HELDOUT = labelers.make_labelers(labelers.LabelersConfig(num_training=2, num_heldout=1))


@pytest.fixture(scope="module")
def prompts():
  return instructions.instruction_prompts(
    WORLD, 6, np.random.default_rng(0), held_out=False, seen=set()
  )


@pytest.fixture(scope="module")
def completions(prompts):
  return {
    "base": ["what"] * len(prompts),
    "sft": ["rex is a goat ."] * len(prompts),
    "ppo": ["rex is a goat .", *["no " * (i + 1) for i in range(1, len(prompts))]],
  }


# ----------------------------------------------------------------------------- simulated labelers


def test_simulated_labelers_say_what_each_of_them_says(prompts, completions):
  rows = judges.simulated_labelers(WORLD, TRAINING, HELDOUT)(prompts, completions, "sft")
  assert len(rows) == len(completions) * len(prompts) * 3
  people = {one.id: one for one in (*TRAINING, *HELDOUT)}
  for row in rows:
    record, text = prompts[row["prompt_index"]], completions[row["policy"]][row["prompt_index"]]
    labeler, other = people[row["labeler"]], completions["sft"][row["prompt_index"]]
    one, other = (
      labelers.mark(WORLD, record["task"], record["prompt"], said) for said in (text, other)
    )
    assert row["win"] == (
      None if row["policy"] == "sft" else labelers.prefer(labeler, one, other, evaluation=True)
    )
    assert row["likert"] == labelers.likert(labeler, one, evaluation=True)
    assert row["metadata"] == labelers.metadata(record["task"], one)
    assert row["group"] == ("training" if row["labeler"].startswith("labeler") else "heldout")
  same_text = [row for row in rows if row["policy"] == "ppo" and row["prompt_index"] == 0]
  assert {row["win"] for row in same_text} == {0.5}


def test_their_labels_are_known_ones(prompts, completions, tmp_path):
  rows = judges.simulated_labelers(WORLD, TRAINING, HELDOUT)(prompts, completions, "sft")
  workdir_lib.write_jsonl(tmp_path / "rows.jsonl", rows)
  assert win_rates.read_preferences(tmp_path / "rows.jsonl") == rows


def test_training_weights_are_other_weights(prompts):
  """Completions of other prompts follow no instruction, but some of them are true."""
  rng, people = (
    np.random.default_rng(0),
    labelers.make_labelers(labelers.LabelersConfig(num_training=20))[0],
  )
  good = [demonstrations.demonstration(WORLD, record["task"], rng) for record in prompts]
  texts = {"sft": good, "ppo": [*good[1:], good[0]], "base": [*good[2:], *good[:2]]}
  rows = judges.simulated_labelers(WORLD, people, (), evaluation=False)(prompts, texts, "sft")
  by_name, changed = {one.id: one for one in people}, {"likert": 0, "win": 0}
  for row in rows:
    index, labeler = row["prompt_index"], by_name[row["labeler"]]
    one, other = (
      labelers.mark(WORLD, prompts[index]["task"], prompts[index]["prompt"], texts[name][index])
      for name in (row["policy"], "sft")
    )
    say = {
      "likert": lambda final: labelers.likert(labeler, one, evaluation=final),
      "win": lambda final: labelers.prefer(labeler, one, other, evaluation=final),
    }
    for name in ("likert", *(["win"] if row["policy"] != "sft" else [])):
      assert row[name] == say[name](False)
      changed[name] += row[name] != say[name](True)
  assert changed["likert"] and changed["win"]


# ----------------------------------------------------------------------------- people


def test_people_judge_by_their_sheets():
  people_prompts = [{"prompt": "p"}, {"prompt": "q"}]
  texts = {"sft": ["a", "b"], "ppo": ["c", "d"], "base": ["e", "f"]}
  samples = {
    f"{policy}{index}": ratings.Sample(
      prompt_index=index,
      policy=policy,
      prompt=people_prompts[index]["prompt"],
      completion=texts[policy][index],
    )
    for policy in texts
    for index in (0, 1)
  }
  rate = lambda sample, rater, **more: ratings.Rating(
    where="", sample=sample, rater=rater, **dict(likert=None, rank=None, metadata={}) | more
  )
  found = ratings.Ratings(
    samples=samples,
    raters={"ann": "human", "bob": "heldout"},
    ratings=(
      rate("ppo0", "ann", likert=6, metadata={"hallucination": False}),
      rate("sft1", "bob", rank=2),
      rate("ppo1", "bob", rank=1, likert=3),
      rate("base1", "bob", rank=2),
    ),
    choices=(
      ratings.Choice(where="", sample_a="sft0", sample_b="ppo0", rater="ann", win=1.0),
      ratings.Choice(where="", sample_a="base1", sample_b="sft1", rater="bob", win=1.0),
    ),
  )
  rows = judges.human_ratings(found)(people_prompts, texts, "sft")
  said = {(row["policy"], row["prompt_index"], row["labeler"]): row for row in rows}
  assert set(said) == {("ppo", 0, "ann"), ("ppo", 1, "bob"), ("sft", 1, "bob"), ("base", 1, "bob")}
  assert said["ppo", 0, "ann"] == dict(
    prompt_index=0,
    policy="ppo",
    labeler="ann",
    group="human",
    win=0.0,
    likert=6,
    metadata={"hallucination": False},
  )
  assert said["ppo", 1, "bob"]["win"] == 1.0 and said["ppo", 1, "bob"]["group"] == "heldout"
  assert said["base", 1, "bob"]["win"] == 1.0  # what was said of the pair, not the equal ranks
  assert said["sft", 1, "bob"]["win"] is None
  against_ppo = judges.human_ratings(found)(people_prompts, texts, "ppo")
  assert {(row["policy"], row["win"]) for row in against_ppo if row["win"] is not None} == {
    ("sft", 1.0),
    ("sft", 0.0),
    ("base", 0.0),
  }
  with pytest.raises(ValueError, match="not the completion of prompt 1 by ppo now"):
    judges.human_ratings(found)(people_prompts, texts | {"ppo": ["c", "x"]}, "sft")


# ----------------------------------------------------------------------------- all pairs


def longer_wins(prompts, completions, baseline):
  """A judge: the longer completion wins."""
  return [
    dict(
      prompt_index=index,
      policy=policy,
      labeler="a",
      group="training",
      likert=4,
      win=None
      if policy == baseline
      else 0.5 * (1 + float(np.sign(len(text) - len(completions[baseline][index])))),
    )
    for policy, texts in completions.items()
    for index, text in enumerate(texts)
  ]


TEXTS = {"sft": ["aa", "aa", "aa"], "ppo": ["aaa", "aaa", "a"], "base": ["a", "aa", "a"]}
PAIR_PROMPTS = [{"prompt": str(index)} for index in range(3)]


def test_pairs_beside_the_baseline_name_theirs():
  rows = judges.judge_pairs(longer_wins, PAIR_PROMPTS, TEXTS, [("ppo", "base")])
  assert rows == [
    dict(
      prompt_index=index,
      policy="ppo",
      labeler="a",
      group="training",
      win=win,
      likert=None,
      baseline="base",
    )
    for index, win in enumerate((1, 1, 0.5))
  ]


def test_the_matrix_by_hand():
  rows = longer_wins(PAIR_PROMPTS, TEXTS, "sft")
  rows += judges.judge_pairs(longer_wins, PAIR_PROMPTS, TEXTS, [("ppo", "base")])
  matrix = judges.win_rate_matrix(
    {0: rows}, ["base", "sft", "ppo", "other"], baseline="sft", group="training", **SETTINGS
  )
  mean = {
    (a, b): None if cell is None else cell.mean
    for a, row in matrix.items()
    for b, cell in row.items()
  }
  expected = {("ppo", "sft"): 2 / 3, ("base", "sft"): (0 + 0.5 + 0) / 3, ("ppo", "base"): 2.5 / 3}
  for (a, b), rate in expected.items():
    assert mean[a, b] == pytest.approx(rate) and mean[b, a] == pytest.approx(1 - rate)
  assert all(
    mean[a, b] is None for a, b in itertools.product(matrix, matrix) if a == b or "other" in (a, b)
  )
  cell, mirror = matrix["ppo"]["sft"], matrix["sft"]["ppo"]
  assert (mirror.low, mirror.high, mirror.n) == (1 - cell.high, 1 - cell.low, 3)
  direct = statistics.bootstrap_mean([[1], [1], [0]], **SETTINGS)
  assert cell == direct
  heldout = judges.win_rate_matrix(
    {0: rows}, ["sft", "ppo"], baseline="sft", group="heldout", **SETTINGS
  )
  assert heldout["ppo"]["sft"] is None


def test_the_matrix_nests_seeds():
  always = [
    dict(prompt_index=i, policy="ppo", labeler="a", group="training", win=1.0, likert=None)
    for i in range(20)
  ]
  never = [row | dict(win=0.0) for row in always]
  matrix = judges.win_rate_matrix(
    {0: always, 1: never}, ["ppo", "sft"], baseline="sft", group="training", **SETTINGS
  )
  cell = matrix["ppo"]["sft"]
  assert (cell.mean, cell.low, cell.high, cell.n) == (0.5, 0, 1, 40)


def test_a_pair_judged_from_either_side_is_one_pair():
  rows = [dict(prompt_index=0, policy="ppo", labeler="a", group="training", win=1.0, likert=None)]
  mirrored = [
    dict(
      prompt_index=0,
      policy="sft",
      labeler="a",
      group="training",
      win=0.0,
      likert=None,
      baseline="ppo",
    )
  ]
  for by_seed in ({0: rows}, {0: mirrored}, {0: rows, 1: mirrored}):
    matrix = judges.win_rate_matrix(
      by_seed, ["sft", "ppo"], baseline="sft", group="training", **SETTINGS
    )
    assert matrix["ppo"]["sft"].mean == 1 and matrix["ppo"]["sft"].n == len(by_seed)
