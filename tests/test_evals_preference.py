"""Win rates, ratings and labels from judgements, and the file they are kept in."""

import json
import math

import helpers
import numpy as np
import pytest

from rlhf import workdir as workdir_lib
from rlhf.evals.preference import win_rates

SETTINGS = {"num_resamples": 500, "seed": 0}
NAN = math.nan


@pytest.mark.parametrize(
  "win, swapped, both",
  [
    (1, 1, 1),
    (0, 0, 0),
    (0.5, 0.5, 0.5),  # an opinion of the answers stays
    (1, 0, 0.5),
    (0, 1, 0.5),  # one of the places is a tie
    (1, 0.5, 0.5),
    (0.5, 0, 0.5),
    (None, 1, None),
    (0, None, None),
  ],
)
def test_a_side_wins_only_if_it_wins_in_both_orders(win, swapped, both):
  assert win_rates.both_orders(win, swapped) == both


def test_labels_count_only_where_they_were_asked():
  rows = [
    row | {"metadata": metadata}
    for row, metadata in zip(
      rows_of(), [{"hallucination": True}, {"hallucination": None}, {"denigrates": False}]
    )
  ]
  of = dict(policy="ppo", group="training")
  np.testing.assert_array_equal(
    win_rates.values_by_prompt(rows, field="hallucination", **of), [[1, NAN], [NAN, NAN]]
  )
  np.testing.assert_array_equal(
    win_rates.values_by_prompt(rows, field="denigrates", **of), [[NAN, NAN], [NAN, 0]]
  )
  assert list(win_rates.values_by_seed({0: rows, 1: rows_of()}, field="denigrates", **of)) == [0]


def rows_of(policy="ppo", win=((1, 0), (NAN, 0.5)), likert=((7, 1), (NAN, 4)), group="training"):
  return helpers.preference_rows(policy, group, ["a", "b"], np.array(win), np.array(likert))


def test_preferences_survive_the_file(tmp_path):
  rows = rows_of() + rows_of("sft", win=((NAN, NAN), (NAN, NAN)), likert=((3, 4), (5, 6)))
  path = tmp_path / "evaluation" / "preferences.jsonl"
  workdir_lib.write_jsonl(path, rows)
  back = win_rates.read_preferences(path)
  assert back == rows
  assert back[0] == {
    "prompt_index": 0,
    "policy": "ppo",
    "labeler": "a",
    "group": "training",
    "win": 1.0,
    "likert": 7,
  }
  values = {"group": "training", "rows": back}
  np.testing.assert_array_equal(
    win_rates.values_by_prompt(policy="ppo", field="win", **values), [[1, 0], [NAN, 0.5]]
  )
  np.testing.assert_array_equal(
    win_rates.values_by_prompt(policy="sft", field="likert", **values), [[3, 4], [5, 6]]
  )


def test_what_a_row_may_hold_beside_survives_the_file(tmp_path):
  more = {"metadata": {"hallucination": None, "denigrates": False}, "score": 0.5, "baseline": "x"}
  rows = [row | more for row in rows_of()]
  workdir_lib.write_jsonl(tmp_path / "preferences.jsonl", rows)
  assert win_rates.read_preferences(tmp_path / "preferences.jsonl") == rows
  for field, value in (("hallucination", NAN), ("denigrates", 0)):
    np.testing.assert_array_equal(
      win_rates.values_by_prompt(rows, policy="ppo", group="training", field=field),
      [[value, value], [NAN, value]],
    )
  np.testing.assert_array_equal(
    win_rates.values_by_prompt(rows, policy="ppo", group="training", field="score"),
    [[0.5, 0.5], [NAN, 0.5]],
  )


def test_values_of_two_policies_are_aligned_by_prompt():
  judged = ((9, "ppo", 1), (2, "ppo_ptx", 0), (9, "ppo_ptx", 1))
  rows = [
    {
      "prompt_index": i,
      "policy": policy,
      "labeler": "a",
      "group": "training",
      "win": win,
      "likert": None,
    }
    for i, policy, win in judged
  ]

  def values(policy):
    return win_rates.values_by_prompt(rows, policy=policy, group="training", field="win")

  np.testing.assert_array_equal(values("ppo"), [[NAN], [1]])
  np.testing.assert_array_equal(values("ppo_ptx"), [[0], [1]])


def test_a_judgement_written_twice_is_refused():
  with pytest.raises(ValueError, match="labeler a judged ppo twice on prompt 0"):
    win_rates.values_by_prompt(rows_of() + rows_of(), policy="ppo", group="training", field="win")


@pytest.mark.parametrize(
  "line, message",
  [
    ("not json", "preferences.jsonl:2: "),
    ("[1]", "2: found list, not an object; restore the line"),
    ('{"prompt_index": 1}', '2: no field "policy"; restore the line, or judge again'),
    ("group", "2: \"group\" is 'x'; choose from"),
    ("win", "2: \"win\" is 'x'; choose from"),
    ("likert", "2: \"likert\" is 'x'; choose from"),
    ("prompt_index", "2: \"prompt_index\" is 'x', which is no int"),
    ('"metadata": {"halucination": true}', "2: \"metadata\" has 'halucination'; choose from"),
    ('"metadata": {"hallucination": 1}', '2: "metadata" says 1 of hallucination; use true'),
    ('"metadata": [1]', '2: "metadata" is [1]; use an object'),
    ('"score": NaN', '2: "score" is nan; use a finite number'),
    ('"score": true', '2: "score" is True; use a finite number'),
  ],
)
def test_bad_lines_name_file_and_line(tmp_path, line, message):
  good = rows_of()[0]
  bad = json.dumps({**good, line: "x"}) if line in good else line
  if line.startswith('"'):
    bad = f"{json.dumps(good)[:-1]}, {line}}}"
  path = tmp_path / "preferences.jsonl"
  path.write_text(json.dumps(good) + "\n" + bad + "\n")
  with pytest.raises(ValueError) as error:
    win_rates.read_preferences(path)
  assert message in str(error.value)
