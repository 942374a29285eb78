"""What labelers say about answers: win rates against a baseline, Likert ratings, metadata rates.

Source: InstructGPT (arXiv:2203.02155) section 3.6 and Table 3.  Judges are functions that the
caller passes in, so the same code serves simulated labelers, a model as judge, and people whose
answers were collected elsewhere.

One run's judgements lie in `evaluation/preferences.jsonl`, one per line:

    {"prompt_index": 17, "policy": "ppo_ptx", "labeler": "t3", "group": "training",
     "win": 1, "likert": 6}

`win` is against the SFT baseline on the same prompt: 1 the policy's answer is better, 0.5 a tie,
0 the baseline's is better, null not compared (the baseline's own lines).  `likert` is 1-7 or null.
`group` is "training" or "heldout".  Every number of the report about preferences is computed from
these lines, so they can be pooled over runs later.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np

from rlhf.evals import statistics

GROUPS = ("training", "heldout")
WINS = (0, 0.5, 1)
LIKERT = (1, 2, 3, 4, 5, 6, 7)

# (prompt record, answer a, answer b) -> 1 where a is better, 0.5 for a tie, 0 where b is better,
# None where the judge does not judge this prompt.
Judge = Callable[[Mapping[str, Any], str, str], float | None]


def judge_answers(judges: Sequence[Judge], prompts: Sequence[Mapping[str, Any]],
                  answers_a: Sequence[str], answers_b: Sequence[str]) -> np.ndarray:
  """Asks every judge about every prompt.

  A judge whose attribute `order_sensitive` is true is asked in both orders, and a side wins only
  if it wins in both; otherwise it is a tie (Zheng et al. 2023, arXiv:2306.05685, section 3.4).

  Args:
    judges: L callables, see `Judge`.
    prompts: P prompt records.
    answers_a, answers_b: P answers each, to the same prompts.

  Returns:
    preferences_PL, float64: 1 where a is better, 0.5 tie, 0 where b is better, NaN not judged.

  Raises:
    ValueError: the lengths differ, or a judge returns another number.
  """
  if not len(prompts) == len(answers_a) == len(answers_b):
    raise ValueError(f"{len(prompts)} prompts, {len(answers_a)} answers a and {len(answers_b)} "
                     "answers b were given; each prompt needs one of each")
  rows = zip(prompts, answers_a, answers_b)
  wins = [[_ask(judge, prompt, a, b) for judge in judges] for prompt, a, b in rows]
  return np.array(wins, np.float64).reshape(len(prompts), len(judges))


def _ask(judge, prompt, answer_a, answer_b) -> float:
  """One judge's win for a, NaN where it does not judge."""
  win = _checked_win(judge(prompt, answer_a, answer_b))
  if getattr(judge, "order_sensitive", False):
    swapped = 1 - _checked_win(judge(prompt, answer_b, answer_a))
    both_judged = not math.isnan(win + swapped)
    win = win if win == swapped else (0.5 if both_judged else math.nan)
  return win


def _checked_win(win: float | None) -> float:
  if win is None or math.isnan(win):
    return math.nan
  if win not in WINS:
    raise ValueError(f"a judge returned {win!r}; use 1, 0.5 (tie), 0, or None for not judged")
  return float(win)


def win_rate(preferences_PL: statistics.ValuesByPrompt, *, num_resamples: int, seed: int,
             confidence: float = 0.95) -> statistics.Interval:
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
  return statistics.bootstrap_mean(preferences_PL, num_resamples=num_resamples, seed=seed,
                                   confidence=confidence)


def likert_mean(rating_PL: statistics.ValuesByPrompt, *, num_resamples: int, seed: int,
                confidence: float = 0.95) -> statistics.Interval:
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
  return statistics.bootstrap_mean(rating_PL, num_resamples=num_resamples, seed=seed,
                                   confidence=confidence)


def metadata_rates(metadata_by_prompt: Sequence[Sequence[Mapping[str, bool | None]]], *,
                   num_resamples: int, seed: int,
                   confidence: float = 0.95) -> dict[str, statistics.Interval]:
  """How often each yes/no label of InstructGPT Table 3 was given.

  A label that is None or absent was not asked there and does not count: hallucination, say, is
  asked in closed-domain tasks only.

  Args:
    metadata_by_prompt: per prompt, one mapping label -> True, False or None per labeler.
    num_resamples, seed, confidence: of the bootstrap over prompts, see `statistics`.

  Returns:
    label -> `Interval` in [0, 1], for the labels that were asked at least once, sorted by name.
  """
  labels = sorted({name for answers in metadata_by_prompt for answer in answers
                   for name, value in answer.items() if value is not None})
  def values(name):
    return [[float(answer[name]) for answer in answers
             if name in answer and answer[name] is not None] for answers in metadata_by_prompt]
  return {name: statistics.bootstrap_mean(values(name), num_resamples=num_resamples, seed=seed,
                                          confidence=confidence) for name in labels}


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


def preference_rows(policy: str, group: str, labelers: Sequence[str], win_PL: np.ndarray,
                    likert_PL: np.ndarray) -> list[dict[str, Any]]:
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
        rows.append({"prompt_index": index, "policy": policy, "labeler": labeler, "group": group,
                     "win": None if math.isnan(win) else float(win),
                     "likert": None if math.isnan(likert) else int(likert)})
  return rows


def write_preferences(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes rows of the format in the module's docstring, one JSON object a line."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", encoding="utf-8") as file:
    for row in rows:
      file.write(json.dumps(row, allow_nan=False) + "\n")


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
  for field, allowed in (("group", GROUPS), ("win", (*WINS, None)), ("likert", (*LIKERT, None))):
    if row[field] not in allowed:
      raise ValueError(f'"{field}" is {row[field]!r}; choose from {list(allowed)}')
  return row


def values_by_prompt(rows: Sequence[Mapping[str, Any]], *, policy: str, group: str,
                     field: str) -> np.ndarray:
  """One policy's numbers from one group of labelers, as an array for `statistics`.

  The rows of the array are ALL prompts that occur in `rows`, in order of prompt_index, so arrays
  of two policies from the same `rows` are aligned and can be paired.

  Args:
    rows: of `read_preferences`.
    policy, group: which rows to take.
    field: "win" or "likert".

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
      raise ValueError(f"labeler {row['labeler']} judged {policy} twice on prompt "
                       f"{row['prompt_index']}; each judgement has one line")
    seen_PL[at] = True
    values_PL[at] = math.nan if row[field] is None else row[field]
  return values_PL


def win_rate_table(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], *,
                   num_resamples: int, seed: int) -> dict[str, dict[str, dict | None]]:
  """`win_rate_vs_sft` of report.json: policy -> "<group>_labelers" -> interval, null without data.

  Args:
    rows: of `read_preferences`.
    policies: which policies, in the order wanted.
    num_resamples, seed: of the bootstrap over prompts.
  """
  return _table(rows, policies, "win", win_rate, num_resamples, seed)


def likert_table(rows: Sequence[Mapping[str, Any]], policies: Sequence[str], *,
                 num_resamples: int, seed: int) -> dict[str, dict[str, dict | None]]:
  """`likert` of report.json, shaped as `win_rate_table`."""
  return _table(rows, policies, "likert", likert_mean, num_resamples, seed)


def _table(rows, policies, field, mean, num_resamples, seed):
  def cell(policy, group):
    values_PL = values_by_prompt(rows, policy=policy, group=group, field=field)
    if np.isnan(values_PL).all():
      return None
    return mean(values_PL, num_resamples=num_resamples, seed=seed).as_dict()
  return {policy: {f"{group}_labelers": cell(policy, group) for group in GROUPS}
          for policy in policies}


def paired_difference_table(rows: Sequence[Mapping[str, Any]], *, policy: str, against: str,
                            num_resamples: int, seed: int) -> dict[str, dict | None]:
  """Win rate of `policy` minus that of `against`, paired by prompt, per group of labelers.

  Both win rates are against SFT.

  Returns:
    "<group>_labelers" -> interval of the difference in [-1, 1], or null without data.
  """
  def cell(group):
    a_PL, b_PL = (values_by_prompt(rows, policy=name, group=group, field="win")
                  for name in (policy, against))
    if np.isnan(a_PL).all() or np.isnan(b_PL).all():
      return None
    return statistics.paired_difference(a_PL, b_PL, num_resamples=num_resamples,
                                        seed=seed).as_dict()
  return {f"{group}_labelers": cell(group) for group in GROUPS}
