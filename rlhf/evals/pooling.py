"""Several runs (seeds) of one pipeline in one table: a row per seed, and a pooled row.

Pooled preferences use the nested bootstrap: seeds are drawn, then prompts within each drawn seed.
Other pooled numbers are ratios of sums over the runs, never averages of the runs' ratios.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evals import statistics
from rlhf.evals.preference import win_rates
from rlhf.report import figures
from rlhf.report import pipeline as report_lib

_TAX_MEASURES = ("pretraining_nll", "few_shot_mean")


def pooled_table(
  workdirs: Sequence[str | pathlib.Path], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Reads `evaluation/preferences.jsonl` and `report/report.json` of every workdir and pools them.

  A workdir without preferences.jsonl (real data) takes part with its report alone.

  Args:
    workdirs: one finished pipeline run each, of different seeds.
    num_resamples, seed: of the bootstrap.

  Returns:
    See `pool_reports`.

  Raises:
    FileNotFoundError: a workdir has no report/report.json.
    ValueError: as `pool_reports`, or a file is malformed.
  """
  runs = []
  for workdir in map(pathlib.Path, workdirs):
    preferences = workdir / "evaluation" / "preferences.jsonl"
    report = json.loads((workdir / "report" / "report.json").read_text(encoding="utf-8"))
    runs.append(
      {
        "report": report,
        "preferences": win_rates.read_preferences(preferences) if preferences.exists() else [],
      }
    )
  return pool_reports(runs, num_resamples=num_resamples, seed=seed)


def pool_reports(
  runs: Sequence[Mapping[str, Any]], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Pools runs that differ in their seed.

  Args:
    runs: {"report": a report.json, "preferences": rows of `preference.read_preferences`} each.
    num_resamples, seed: of the bootstrap.

  Returns:
    {"seeds": [...],
     "win_rate_vs_sft": {policy: {group: {"per_seed": {seed: interval}, "pooled": interval}}},
     "paired_difference": {group: the same, of PPO-ptx minus PPO},
     "reward_model_accuracy": {"per_seed": {seed: number}, "pooled": over all pairs, "n": pairs},
     "labeler_agreement": {"per_seed": {seed: number}},
     "recovered": {measure: {"per_seed": {seed: number}, "pooled": number}}}
    with None where nothing is known.

  Raises:
    ValueError: there is no run, a report is malformed, or a seed is missing or occurs twice.
  """
  seeds = [run["report"]["seed"] for run in runs]
  if not runs or None in seeds or len(set(seeds)) < len(seeds):
    raise ValueError(f"the runs have seeds {seeds}; pool at least one run, each of its own seed")
  runs = dict(sorted(zip(seeds, runs)))
  for run in runs.values():
    report_lib.check_report_json(run["report"])
  settings = {"num_resamples": num_resamples, "seed": seed}
  policies = list(
    dict.fromkeys(
      row["policy"] for run in runs.values() for row in run["preferences"] if row["win"] is not None
    )
  )
  return {
    "seeds": list(runs),
    "win_rate_vs_sft": {
      policy: {
        f"{group}_labelers": _pooled_win_rate(runs, policy, group, settings)
        for group in win_rates.GROUPS
      }
      for policy in policies
    },
    "paired_difference": {
      f"{group}_labelers": _pooled_difference(runs, group, settings) for group in win_rates.GROUPS
    },
    "reward_model_accuracy": _pooled_accuracy(runs),
    "labeler_agreement": {
      "per_seed": {
        seed: None
        if run["report"]["labelers"] is None
        else run["report"]["labelers"]["agreement_training"]
        for seed, run in runs.items()
      }
    },
    "recovered": {measure: _pooled_recovered(runs, measure) for measure in _TAX_MEASURES},
  }


def _values(run, policy, group):
  """values_PL of one run, or None where that group did not judge that policy."""
  values_PL = win_rates.values_by_prompt(
    run["preferences"], policy=policy, group=group, field="win"
  )
  return None if np.isnan(values_PL).all() else values_PL


def _pooled_win_rate(runs, policy, group, settings):
  values = {seed: _values(run, policy, group) for seed, run in runs.items()}
  values = {seed: value for seed, value in values.items() if value is not None}
  if not values:
    return None
  return {
    "per_seed": {
      seed: win_rates.win_rate(value, **settings).as_dict() for seed, value in values.items()
    },
    "pooled": statistics.bootstrap_over_seeds(values, **settings).as_dict(),
  }


def _pooled_difference(runs, group, settings):
  pairs = {
    seed: (_values(run, "ppo_ptx", group), _values(run, "ppo", group)) for seed, run in runs.items()
  }
  pairs = {seed: (a, b) for seed, (a, b) in pairs.items() if a is not None and b is not None}
  if not pairs:
    return None
  return {
    "per_seed": {
      seed: statistics.paired_difference(a, b, **settings).as_dict()
      for seed, (a, b) in pairs.items()
    },
    "pooled": statistics.paired_difference_over_seeds(pairs, **settings).as_dict(),
  }


def _pooled_accuracy(runs):
  models = {seed: run["report"]["reward_model"] for seed, run in runs.items()}
  known = [
    model
    for model in models.values()
    if model is not None and model["accuracy"] is not None and model["n"]
  ]
  pairs = sum(model["n"] for model in known)
  correct = sum(model["accuracy"] * model["n"] for model in known)
  return {
    "per_seed": {
      seed: None if model is None else model["accuracy"] for seed, model in models.items()
    },
    "pooled": correct / pairs if pairs else None,
    "n": pairs,
  }


def _pooled_recovered(runs, measure):
  """1 - (summed loss of PPO-ptx) / (summed loss of PPO): a ratio of sums over the seeds."""
  entries = {seed: report_lib.alignment_tax(run["report"])[measure] for seed, run in runs.items()}
  known = [entry for entry in entries.values() if entry is not None]
  lost_ppo, lost_ptx = (
    sum(entry[model] - entry["init"] for entry in known) for model in ("ppo", "ppo_ptx")
  )
  # A loss is a rise of the NLL and a fall of an accuracy.
  harmed = (
    lost_ppo > 0 if measure == "pretraining_nll" else lost_ppo < -report_lib.LEAST_LOSS * len(known)
  )
  return {
    "per_seed": {
      seed: None if entry is None else entry["recovered"] for seed, entry in entries.items()
    },
    "pooled": 1 - lost_ptx / lost_ppo if harmed else None,
  }


def _rows(pooled: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The table's rows: a name, one text per seed, the pooled text, and prompts or pairs."""
  rows = []

  def add(name, cell, text, n):
    if cell is None:
      return
    known = {seed: value for seed, value in cell["per_seed"].items() if value is not None}
    if not known:
      return
    pool = cell["pooled"] if "pooled" in cell else None
    rows.append(
      {
        "name": name,
        "n": "" if n is None else f"{n:,}",
        "seeds": [text(known[seed]) if seed in known else "–" for seed in pooled["seeds"]],
        "pooled": text(pool) if pool is not None else "–",
      }
    )

  for policy, groups in pooled["win_rate_vs_sft"].items():
    for group, cell in groups.items():
      add(
        f"{figures.label(policy)} against SFT, {report_lib.GROUP_LABELS[group]}",
        cell,
        report_lib.interval_text,
        cell["pooled"]["n"] if cell is not None else None,
      )
  for group, cell in pooled["paired_difference"].items():
    add(
      f"PPO-ptx minus PPO in points, {report_lib.GROUP_LABELS[group]}",
      cell,
      report_lib.points_text,
      cell["pooled"]["n"] if cell is not None else None,
    )
  add(
    "Reward-model accuracy",
    pooled["reward_model_accuracy"],
    report_lib.percent_text,
    pooled["reward_model_accuracy"]["n"],
  )
  add("Agreement of training labelers", pooled["labeler_agreement"], report_lib.percent_text, None)
  for measure, name in (
    ("pretraining_nll", "Pretraining loss given back by PPO-ptx"),
    ("few_shot_mean", "Few-shot accuracy given back by PPO-ptx"),
  ):
    add(name, pooled["recovered"][measure], report_lib.percent_text, None)
  return rows


def pooled_markdown(pooled: Mapping[str, Any]) -> str:
  """The pooled table as Markdown."""
  header = ["", *(f"seed {seed}" for seed in pooled["seeds"]), "pooled", "n"]
  lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
  lines += [[row["name"], *row["seeds"], row["pooled"], row["n"]] for row in _rows(pooled)]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_pooled(
  directory: str | pathlib.Path, pooled: Mapping[str, Any], *, title: str = "Results over seeds"
) -> pathlib.Path:
  """Writes pooled.json, pooled.md and pooled.html; returns the path of pooled.html."""
  html = report_lib.render_template(
    "pooled.html",
    title=title,
    seeds=pooled["seeds"],
    rows=_rows(pooled),
    figure=figures.pooled_win_rates(pooled["win_rate_vs_sft"]),
  )
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  text = json.dumps(pooled, indent=2, allow_nan=False)
  (directory / "pooled.json").write_text(text + "\n", encoding="utf-8")
  (directory / "pooled.md").write_text(pooled_markdown(pooled), encoding="utf-8")
  path = directory / "pooled.html"
  path.write_text(html, encoding="utf-8")
  return path
