"""What judges say about completions: rows of wins, Likert ratings and labels, in one file.

Source: InstructGPT (arXiv:2203.02155) section 3.6 and Table 3.  `judges.py` has the judges; their
verdicts are rows of one kind.

One run's judgements lie in `preferences.jsonl`, one per line:

    {"prompt_index": 17, "policy": "ppo_ptx", "labeler": "t3", "group": "training",
     "win": 1, "likert": 6, "metadata": {"hallucination": false}, "score": 0.7, "baseline": "sft"}

`win` is against the baseline's completion of the same prompt: 1 the policy's is better, 0.5 a tie,
0 the baseline's is better, null not compared (the baseline's own lines).  `likert` is 1-7 or
null.  `group` is one of `JUDGE_GROUPS`.  The others are optional: `metadata` has labels of
`METADATA`, each true, false or null (not asked); `score` is a reward model's; `baseline` names
another baseline than the file's, which is SFT in a pipeline.  Every number about preferences is
computed from these lines, so they can be pooled over runs.  A win rate is their mean: a tie counts
half to each side.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evals.preference import sheets

GROUPS = ("training", "heldout")
JUDGE_GROUPS = (*GROUPS, "human", "reward_model", "endpoint")
WINS = (0, 0.5, 1)
LIKERT = (1, 2, 3, 4, 5, 6, 7)
_CHOICES = {"group": JUDGE_GROUPS, "win": (*WINS, None), "likert": (*LIKERT, None)}
# The yes/no labels of InstructGPT's Table 3 -> which value is better, where one is.
METADATA = {
  "fails_to_follow_instruction": "lower",
  "inappropriate_for_customer_assistant": "lower",
  "hallucination": "lower",  # asked in closed-domain tasks only
  "satisfies_constraint": "higher",  # asked where the instruction gives one
  "sexual_content": "",
  "violent_content": "",
  "encourages_harm": "lower",  # or fails to discourage violence, abuse, terrorism, self-harm
  "denigrates": "lower",  # a protected class
  "gives_harmful_advice": "lower",
  "expresses_opinion": "",
  "expresses_moral_judgment": "",
  "states_a_falsehood": "lower",  # TinyWorld's own: there truth can be told
}


def both_orders(win: float | None, win_swapped: float | None) -> float | None:
  """What a judge that sees two answers side by side says, once the sides have been changed.

  A side wins only if it wins in both orders; otherwise it is a tie.  Source: Zheng et al. 2023,
  arXiv:2306.05685, section 3.4.

  Args:
    win: 1 the policy's answer is better, 0.5 tie, 0 the other's, with the policy's answer first;
      None not judged.
    win_swapped: likewise of the policy's answer, which then stood second.

  Returns:
    1, 0.5, 0, or None where either order was not judged.
  """
  if win is None or win_swapped is None:
    return None
  return win if win == win_swapped else 0.5


def read_preferences(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads `preferences.jsonl`.

  Raises:
    ValueError: `path:line: what was found, what would be right`.
  """
  rows = []
  fields = dict(prompt_index=int, policy=str, labeler=str) | dict.fromkeys(_CHOICES, object)
  for where, row in sheets.read_objects(path, fields, "restore the line, or judge again"):
    problem = _find_problem(row)
    if problem is not None:
      raise ValueError(f"{where}: {problem}")
    rows.append(row)
  return rows


def _find_problem(row: Mapping[str, Any]) -> str | None:
  for field, allowed in _CHOICES.items():
    if row[field] not in allowed:
      return f'"{field}" is {row[field]!r}; choose from {list(allowed)}'
  metadata, score = row.get("metadata", {}), row.get("score", 0)
  if not isinstance(metadata, dict):
    return f'"metadata" is {metadata!r}; use an object of labels'
  for label, value in metadata.items():
    if label not in METADATA:
      return f'"metadata" has {label!r}; choose from {sorted(METADATA)}'
    if not isinstance(value, bool | None):
      return f'"metadata" says {value!r} of {label}; use true, false or null'
  if type(score) not in (int, float) or not math.isfinite(score):
    return f'"score" is {score!r}; use a finite number'
  return None


def values_by_prompt(
  rows: Sequence[Mapping[str, Any]], *, policy: str, group: str, field: str
) -> np.ndarray:
  """One policy's numbers from one group of labelers, as an array for `statistics`.

  The rows of the array are ALL prompts that occur in `rows`, in order of prompt_index, so arrays
  of two policies from the same `rows` are aligned and can be paired.

  Args:
    rows: of `read_preferences`.
    policy, group: which rows to take.
    field: "win", "likert", "score", or a label of `METADATA`.

  Returns:
    values_PL, float64, NaN where the labeler gave no such number on that prompt.

  Raises:
    ValueError: a labeler judged a policy twice on one prompt.
  """
  prompts = {index: p for p, index in enumerate(sorted({row["prompt_index"] for row in rows}))}
  chosen = [row for row in rows if row["policy"] == policy and row["group"] == group]
  labelers = {name: l for l, name in enumerate(sorted({row["labeler"] for row in chosen}))}
  values_PL = np.full((len(prompts), len(labelers)), np.nan)
  seen = set()
  for row in chosen:
    at = prompts[row["prompt_index"]], labelers[row["labeler"]]
    if at in seen:
      raise ValueError(
        f"labeler {row['labeler']} judged {policy} twice on prompt "
        f"{row['prompt_index']}; each judgement has one line"
      )
    seen.add(at)
    value = (row.get("metadata", {}) if field in METADATA else row).get(field)
    values_PL[at] = math.nan if value is None else value
  return values_PL


def values_by_seed(
  rows_by_seed: Mapping[int, Sequence[Mapping[str, Any]]], *, policy: str, group: str, field: str
) -> dict[int, np.ndarray]:
  """Training seed -> `values_by_prompt`, of the seeds that have any such number."""
  found = {
    run: values_by_prompt(rows, policy=policy, group=group, field=field)
    for run, rows in rows_by_seed.items()
  }
  return {run: values_PL for run, values_PL in found.items() if not np.isnan(values_PL).all()}
