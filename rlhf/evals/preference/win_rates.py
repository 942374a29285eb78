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

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GROUPS = ("training", "heldout")
JUDGE_GROUPS = (*GROUPS, "human", "reward_model", "endpoint")
WINS = (0, 0.5, 1)
LIKERT = (1, 2, 3, 4, 5, 6, 7)
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


def metadata_values(
  metadata_by_prompt: Sequence[Sequence[Mapping[str, bool | None]]],
) -> dict[str, list[list[float]]]:
  """Label -> 1 and 0 by prompt, as `statistics` takes them, for the labels that were asked."""
  labels = sorted(
    {
      name
      for answers in metadata_by_prompt
      for answer in answers
      for name, value in answer.items()
      if value is not None
    }
  )
  return {
    name: [
      [float(value) for answer in answers if (value := answer.get(name)) is not None]
      for answers in metadata_by_prompt
    ]
    for name in labels
  }


def read_preferences(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads `preferences.jsonl`.

  Raises:
    ValueError: `path:line: what was found, what would be right`.
  """
  rows = []
  with pathlib.Path(path).open(encoding="utf-8") as file:
    for number, line in enumerate(file, start=1):
      try:
        rows.append(_checked_row(json.loads(line)))
      except ValueError as error:
        raise ValueError(f"{path}:{number}: {error}") from None
  return rows


def _checked_row(row: Any) -> dict[str, Any]:
  if not isinstance(row, dict):
    raise ValueError(f"found {type(row).__name__}; each line must be a JSON object")
  for field in ("prompt_index", "policy", "labeler", "group", "win", "likert"):
    if field not in row:
      raise ValueError(f'there is no field "{field}"')
  if not isinstance(row["prompt_index"], int):
    raise ValueError(f'"prompt_index" is {row["prompt_index"]!r}; use a whole number')
  for field, allowed in (
    ("group", JUDGE_GROUPS),
    ("win", (*WINS, None)),
    ("likert", (*LIKERT, None)),
  ):
    if row[field] not in allowed:
      raise ValueError(f'"{field}" is {row[field]!r}; choose from {list(allowed)}')
  if "metadata" in row:
    _check_metadata(row["metadata"])
  if "score" in row and not (type(row["score"]) in (int, float) and math.isfinite(row["score"])):
    raise ValueError(f'"score" is {row["score"]!r}; use a finite number')
  return row


def _check_metadata(metadata: Any) -> None:
  if not isinstance(metadata, dict):
    raise ValueError(f'"metadata" is {metadata!r}; use an object of labels')
  for label, value in metadata.items():
    if label not in METADATA:
      raise ValueError(f'"metadata" has {label!r}; choose from {sorted(METADATA)}')
    if value is not None and not isinstance(value, bool):
      raise ValueError(f'"metadata" says {value!r} of {label}; use true, false or null')


def values_by_prompt(
  rows: Sequence[Mapping[str, Any]], *, policy: str, group: str, field: str
) -> np.ndarray:
  """One policy's numbers from one group of labelers, as an array for `statistics`.

  The rows of the array are ALL prompts that occur in `rows`, in order of prompt_index, so arrays
  of two policies from the same `rows` are aligned and can be paired.

  Args:
    rows: of `read_preferences`.
    policy, group: which rows to take.
    field: "win", "likert" or "score".

  Returns:
    values_PL, float64, NaN where the labeler gave no such number on that prompt.

  Raises:
    ValueError: a labeler judged a policy twice on one prompt.
  """
  prompts = {index: p for p, index in enumerate(sorted({row["prompt_index"] for row in rows}))}
  chosen = [row for row in rows if row["policy"] == policy and row["group"] == group]
  labelers = {name: l for l, name in enumerate(sorted({row["labeler"] for row in chosen}))}
  values_PL = np.full((len(prompts), len(labelers)), np.nan)
  seen_PL = np.zeros(values_PL.shape, bool)
  for row in chosen:
    at = prompts[row["prompt_index"]], labelers[row["labeler"]]
    if seen_PL[at]:
      raise ValueError(
        f"labeler {row['labeler']} judged {policy} twice on prompt "
        f"{row['prompt_index']}; each judgement has one line"
      )
    seen_PL[at] = True
    values_PL[at] = math.nan if field not in row or row[field] is None else row[field]
  return values_PL


def metadata_by_prompt(
  rows: Sequence[Mapping[str, Any]], *, policy: str, group: str
) -> list[list[Mapping[str, bool | None]]]:
  """One policy's labels as `metadata_rates` takes them: per prompt, one mapping per labeler."""
  found: dict[int, list] = {index: [] for index in sorted({row["prompt_index"] for row in rows})}
  for row in rows:
    if row["policy"] == policy and row["group"] == group and "metadata" in row:
      found[row["prompt_index"]].append(row["metadata"])
  return list(found.values())
