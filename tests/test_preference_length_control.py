"""Stiennon's length-controlled win rate, against scikit-learn and against what was put in."""

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from rlhf.evals.preference import length_control

SETTINGS = dict(baseline="sft", group="training", num_resamples=200, seed=0)


def judged(policy, wins, labeler="a", group="training"):
  return [
    dict(prompt_index=index, policy=policy, labeler=labeler, group=group, win=win)
    for index, win in enumerate(wins)
  ]


def simulated(theta, gamma, num_prompts, seed, num_labelers=3):
  """(rows, answers) of policies whose wins follow the model."""
  rng = np.random.default_rng(seed)
  answers = {"sft": ["x" * n for n in rng.integers(5, 60, num_prompts)]}
  rows = []
  for name, value in theta.items():
    lengths = rng.integers(20, 200, num_prompts)  # longer than the baseline's
    answers[name] = ["x" * n for n in lengths]
    ratio = np.log(lengths / [len(text) for text in answers["sft"]])
    for labeler in range(num_labelers):
      wins = rng.random(num_prompts) < special.expit(value + gamma * ratio)
      rows += judged(name, wins.astype(float), f"l{labeler}")
  return rows, answers


def test_coefficients_are_those_of_scikit_learn():
  rows, answers = simulated({"ppo": 0.4, "base": -1.0}, 0.8, 60, seed=0)
  rows += judged("ppo", [0.5] * 60, "undecided")
  found = length_control.length_controlled_win_rates(
    {0: rows}, {0: answers}, ["base", "sft", "ppo"], **SETTINGS
  )
  features, wins, weights = [], [], []
  for row in rows:
    index = row["prompt_index"]
    ratio = np.log(len(answers[row["policy"]][index]) / len(answers["sft"][index]))
    for win, weight in ((1, row["win"]), (0, 1 - row["win"])):  # a tie is half of each
      features.append([row["policy"] == "ppo", row["policy"] == "base", ratio])
      wins.append(win)
      weights.append(weight)
  fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=1000).fit(
    features, wins, sample_weight=weights
  )
  ppo, base, _ = fitted.coef_[0]
  for pair, logit in {
    ("ppo", "sft"): ppo,
    ("base", "sft"): base,
    ("ppo", "base"): ppo - base,
    ("sft", "ppo"): -ppo,
  }.items():
    assert found[pair[0]][pair[1]].mean == pytest.approx(special.expit(logit), abs=1e-4), pair
  assert found["ppo"]["ppo"] is None


def test_what_length_alone_won_is_taken_away():
  rows, answers = simulated({"long": 0.0}, 2.0, 400, seed=1)
  plain = np.mean([row["win"] for row in rows])
  found = length_control.length_controlled_win_rates(
    {0: rows}, {0: answers}, ["sft", "long"], **SETTINGS
  )["long"]["sft"]
  assert plain > 0.8
  assert found.low < 0.5 < found.high and found.high - found.low < 0.25
  assert found.n == 400


def test_at_equal_lengths_it_is_the_plain_win_rate():
  rows = judged("ppo", [1, 1, 1, 0, 0.5]) + judged("ppo", [1] * 5, group="heldout")
  answers = {"ppo": ["aaaa"] * 5, "sft": ["bbbb"] * 5}
  found = length_control.length_controlled_win_rates(
    {0: rows}, {0: answers}, ["sft", "ppo"], **SETTINGS
  )
  assert found["ppo"]["sft"].mean == pytest.approx(0.7, abs=1e-3)
  assert found["sft"]["ppo"].mean == pytest.approx(0.3, abs=1e-3)


def test_a_policy_that_always_wins_has_a_finite_estimate_and_an_empty_answer_a_length():
  answers = {"ppo": ["aaaa", "a", ""], "sft": ["", "b", "bb"]}
  found = length_control.length_controlled_win_rates(
    {0: judged("ppo", [1, 1, 1])}, {0: answers}, ["sft", "ppo"], **SETTINGS
  )["ppo"]["sft"]
  assert 0.9 < found.low <= found.mean <= found.high < 1


def test_seeds_are_nested_and_who_was_not_judged_has_none():
  never, always = judged("ppo", [0.0] * 30), judged("ppo", [1.0] * 30)
  answers = {"ppo": ["aa"] * 30, "sft": ["bb"] * 30}
  found = length_control.length_controlled_win_rates(
    {0: never, 1: always}, {0: answers, 1: answers}, ["sft", "ppo", "base"], **SETTINGS
  )
  cell = found["ppo"]["sft"]
  assert cell.mean == pytest.approx(0.5) and cell.n == 60
  assert cell.low < 0.01 and cell.high > 0.99  # a draw can hold one seed twice
  assert found["base"]["sft"] is None and found["ppo"]["base"] is None
  assert (
    length_control.length_controlled_win_rates({0: []}, {0: answers}, ["sft", "ppo"], **SETTINGS)[
      "ppo"
    ]["sft"]
    is None
  )
