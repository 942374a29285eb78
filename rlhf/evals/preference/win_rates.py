"""What judges say about answers: win rates against a baseline, Likert ratings, metadata rates.

Source: InstructGPT (arXiv:2203.02155) section 3.6 and Table 3.  `judges.py` has the judges; whoever
they are, what they say is one kind of row.

One run's judgements lie in `preferences.jsonl`, one per line:

    {"prompt_index": 17, "policy": "ppo_ptx", "labeler": "t3", "group": "training",
     "win": 1, "likert": 6, "metadata": {"hallucination": false}, "score": 0.7, "baseline": "sft"}

`win` is against the baseline's answer to the same prompt: 1 the policy's answer is better, 0.5 a
tie, 0 the baseline's is better, null not compared (the baseline's own lines).  `likert` is 1-7 or
null.  `group` is one of `JUDGE_GROUPS`.  The others are optional: `metadata` has labels of
`METADATA`, each true, false or null (not asked); `score` is a reward model's; `baseline` names
another baseline than the file's one, which is SFT in a pipeline.  Every number about preferences is
computed from these lines, so they can be pooled over runs later.
"""

import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics

GROUPS = ("training", "heldout")
JUDGE_GROUPS = (*GROUPS, "human", "reward_model", "endpoint")
WINS = (0, 0.5, 1)
LIKERT = (1, 2, 3, 4, 5, 6, 7)
# The yes/no labels of InstructGPT's Table 3 -> which answer is better, where one is.
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


def win_rate(
  preferences_PL: statistics.ValuesByPrompt,
  *,
  num_resamples: int,
  seed: int,
  confidence: float = 0.95,
) -> statistics.Interval:
  """Share of judgements that prefer a; a tie counts half to each side.

      win rate = (number of wins + 0.5 * number of ties) / number of judgements

  Args:
    preferences_PL: 1, 0.5 or 0; NaN where a labeler did not judge a prompt.
    num_resamples, seed, confidence: of the bootstrap over prompts, see `statistics`.

  Returns:
    An `Interval` in [0, 1]; `n` counts prompts.

  Raises:
    ValueError: an entry is another number, or nothing was judged.
  """
  _check_entries(preferences_PL, WINS, "a preference", "1, 0.5 (tie), 0 or NaN (not judged)")
  return statistics.bootstrap_mean(
    preferences_PL, num_resamples=num_resamples, seed=seed, confidence=confidence
  )


def likert_mean(
  rating_PL: statistics.ValuesByPrompt, *, num_resamples: int, seed: int, confidence: float = 0.95
) -> statistics.Interval:
  """Mean overall quality on the 1-7 scale (InstructGPT Table 3), with its interval.

  Args:
    rating_PL: whole numbers 1 (worst) to 7 (best); NaN where a labeler did not rate a prompt.
    num_resamples, seed, confidence: of the bootstrap over prompts, see `statistics`.

  Returns:
    An `Interval` in [1, 7]; `n` counts prompts.

  Raises:
    ValueError: an entry is another number, or nothing was rated.
  """
  _check_entries(rating_PL, LIKERT, "a Likert rating", "a whole number 1 to 7 or NaN (not rated)")
  return statistics.bootstrap_mean(
    rating_PL, num_resamples=num_resamples, seed=seed, confidence=confidence
  )


def metadata_rates(
  metadata_by_prompt: Sequence[Sequence[Mapping[str, bool | None]]],
  *,
  num_resamples: int,
  seed: int,
  confidence: float = 0.95,
) -> dict[str, statistics.Interval]:
  """How often each yes/no label of InstructGPT Table 3 was given.

  A label that is None or absent was not asked there and does not count: hallucination, say, is
  asked in closed-domain tasks only.

  Args:
    metadata_by_prompt: per prompt, one mapping label -> True, False or None per labeler.
    num_resamples, seed, confidence: of the bootstrap over prompts, see `statistics`.

  Returns:
    label -> `Interval` in [0, 1], for the labels that were asked at least once, sorted by name.
  """
  return {
    name: statistics.bootstrap_mean(
      values, num_resamples=num_resamples, seed=seed, confidence=confidence
    )
    for name, values in metadata_values(metadata_by_prompt).items()
  }


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
      [float(answer[name]) for answer in answers if name in answer and answer[name] is not None]
      for answers in metadata_by_prompt
    ]
    for name in labels
  }


def labeler_agreement(preference_CL: np.ndarray) -> float | None:
  """Share of pairs of labelers who agree, over comparisons that both decided.

  For a comparison with w labelers for a and l for b (ties and NaN left out):

      agreement = sum_c [C(w, 2) + C(l, 2)] / sum_c C(w + l, 2)

  Source: InstructGPT section 3.4, which reports 72.6 % for its training labelers.

  Args:
    preference_CL: comparisons by labelers; 1 a is better, 0 b is better, 0.5 tie, NaN not judged.

  Returns:
    In [0, 1]; None where no comparison was decided by two labelers.
  """
  _check_entries(preference_CL, WINS, "a preference", "1, 0.5 (tie), 0 or NaN (not judged)")
  wins_C = (np.asarray(preference_CL) == 1).sum(axis=1)
  losses_C = (np.asarray(preference_CL) == 0).sum(axis=1)

  def pairs(count_C):
    return (count_C * (count_C - 1) // 2).sum()

  num_pairs = pairs(wins_C + losses_C)
  return float((pairs(wins_C) + pairs(losses_C)) / num_pairs) if num_pairs else None


def _check_entries(values_by_prompt, allowed, name, expected) -> None:
  flat = np.concatenate([np.asarray(row, np.float64) for row in values_by_prompt] or [np.zeros(0)])
  wrong = flat[~np.isnan(flat) & ~np.isin(flat, allowed)]
  if wrong.size:
    raise ValueError(f"{name} of {wrong[0]:g} was found; use {expected}")


def preference_rows(
  policy: str, group: str, labelers: Sequence[str], win_PL: np.ndarray, likert_PL: np.ndarray
) -> list[dict[str, Any]]:
  """The lines of `preferences.jsonl` for one policy and one group of labelers.

  Args:
    policy: "base", "sft", "ppo", "ppo_ptx".
    group: "training" or "heldout".
    labelers: L names.
    win_PL: against the SFT baseline; NaN not compared.
    likert_PL: NaN not rated.

  Returns:
    Rows in prompt order; a judgement with neither number has no row.
  """
  rows = []
  for index in range(len(win_PL)):
    for labeler, win, likert in zip(labelers, win_PL[index], likert_PL[index], strict=True):
      if not (math.isnan(win) and math.isnan(likert)):
        rows.append(
          {
            "prompt_index": index,
            "policy": policy,
            "labeler": labeler,
            "group": group,
            "win": None if math.isnan(win) else float(win),
            "likert": None if math.isnan(likert) else int(likert),
          }
        )
  return rows


def write_preferences(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes rows of the format in the module's docstring, one JSON object a line; all or none."""
  workdir_lib.write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


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


def win_rate_table(
  rows: Sequence[Mapping[str, Any]], policies: Sequence[str], *, num_resamples: int, seed: int
) -> dict[str, dict[str, dict | None]]:
  """`win_rate_vs_sft` of report.json: policy -> "<group>_labelers" -> interval, null without data.

  Args:
    rows: of `read_preferences`.
    policies: which policies, in the order wanted.
    num_resamples, seed: of the bootstrap over prompts.
  """
  return _table(rows, policies, "win", win_rate, num_resamples, seed)


def likert_table(
  rows: Sequence[Mapping[str, Any]], policies: Sequence[str], *, num_resamples: int, seed: int
) -> dict[str, dict[str, dict | None]]:
  """`likert` of report.json, shaped as `win_rate_table`."""
  return _table(rows, policies, "likert", likert_mean, num_resamples, seed)


def _table(rows, policies, field, mean, num_resamples, seed):
  def cell(policy, group):
    values_PL = values_by_prompt(rows, policy=policy, group=group, field=field)
    if np.isnan(values_PL).all():
      return None
    return mean(values_PL, num_resamples=num_resamples, seed=seed).as_dict()

  return {
    policy: {f"{group}_labelers": cell(policy, group) for group in GROUPS} for policy in policies
  }


def paired_difference_table(
  rows: Sequence[Mapping[str, Any]], *, policy: str, against: str, num_resamples: int, seed: int
) -> dict[str, dict | None]:
  """Win rate of `policy` minus that of `against`, paired by prompt, per group of labelers.

  Both win rates are against SFT.

  Returns:
    "<group>_labelers" -> interval of the difference in [-1, 1], or null without data.
  """

  def cell(group):
    a_PL, b_PL = (
      values_by_prompt(rows, policy=name, group=group, field="win") for name in (policy, against)
    )
    if np.isnan(a_PL).all() or np.isnan(b_PL).all():
      return None
    return statistics.paired_difference(
      a_PL, b_PL, num_resamples=num_resamples, seed=seed
    ).as_dict()

  return {f"{group}_labelers": cell(group) for group in GROUPS}
