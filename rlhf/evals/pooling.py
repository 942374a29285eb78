"""Several training seeds in one table: of pipelines (`launch.pool`) or of evaluations
(`launch.evaluate --pool`).

Pooled preferences use the nested bootstrap: seeds are drawn, then prompts within each drawn seed.
Other pooled numbers are ratios of sums over the runs, never averages of the runs' ratios.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics, units
from rlhf.evals.preference import comparison, win_rates
from rlhf.report import figures, page
from rlhf.report import pipeline as report_lib

_TAXES = {
  "pretraining_nll": "Pretraining loss recovered by PPO-ptx",
  "few_shot_mean": "Few-shot accuracy recovered by PPO-ptx",
}


# ----------------------------------------------------------------------------- evaluations


def pool_evaluations(
  workdirs: Sequence[pathlib.Path], **settings: Unpack[statistics.Settings]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The preferences of several runs of `launch.evaluate`.

  Args:
    workdirs: one for each training seed, whose checkpoints have the same names.
    settings: of the bootstrap.

  Returns:
    (checkpoints of the report, `comparison.Comparison.as_dict` over the seeds, with "baseline").

  Raises:
    ValueError: an evaluation has no preferences, has other checkpoints or another baseline than the
      first, or is named twice.
  """
  if len(set(workdirs)) < len(workdirs):
    raise ValueError("--pool names a directory twice; name each evaluation once")
  shown: list[dict[str, Any]] = []
  wanted: dict[str, Any] = {}
  num_left_out, simulated = 0, False
  rows, completions = {}, {}
  for run, directory in enumerate(workdirs):
    page_path = directory / "report" / "evaluation.json"
    data: dict[str, Any] = {"preference": None}
    if page_path.is_file():
      data = workdir_lib.read_json(page_path)
    done = directory / "preference" / units.RESULT  # exists where its files are of one run
    if data["preference"] is None or not done.is_file():
      raise ValueError(
        f"--pool: {directory} holds no report with preferences; name workdirs of "
        "launch.evaluate --suite=preference that have finished"
      )
    result = workdir_lib.read_json(done)
    names = [one["name"] for one in data["checkpoints"]]
    compared = {
      "checkpoints": names,
      "judged checkpoints": sorted(result.get("weights", names)),  # a failed one is on the page
      "baseline": result["comparison"]["baseline"],
    }
    if not wanted:
      shown, wanted = data["checkpoints"], compared
    for what, value in compared.items():
      if value != wanted[what]:
        raise ValueError(
          f"--pool: {directory} has the {what} {value}, the first has {wanted[what]}; pool "
          "evaluations of the same models of several seeds"
        )
    rows[run], completions[run] = comparison.read(directory / "preference")
    num_left_out += result["comparison"]["num_left_out"]
    simulated |= result["comparison"].get("simulated", False)
  pooled = comparison.Comparison(
    **comparison.summarise(
      rows, completions, wanted["checkpoints"], baseline=wanted["baseline"], **settings
    ),
    num_prompts=sum(len(next(iter(texts.values()))) for texts in completions.values()),
    num_left_out=num_left_out,
    simulated=simulated,
  )
  return shown, pooled.as_dict() | dict(baseline=wanted["baseline"])


# ----------------------------------------------------------------------------- pipelines


def pooled_table(workdirs: Sequence[str | pathlib.Path], **settings: int) -> dict[str, Any]:
  """Pools the preferences and the reports of finished pipelines.

  Args:
    workdirs: of runs of different seeds.  One without labelers takes part with its report alone.
    settings: as in `pool_reports`.

  Returns:
    See `pool_reports`.

  Raises:
    FileNotFoundError: a workdir has no report/report.json.
    ValueError: as `pool_reports`, or a file is malformed.
  """
  runs = []
  for workdir in map(pathlib.Path, workdirs):
    report = workdir_lib.read_json(workdir / "report" / "report.json")
    path = workdir / "evaluation" / "preference" / comparison.PREFERENCES
    if not path.is_file() and report["win_rate_vs_sft"] is not None:
      raise ValueError(
        f"{path} does not exist: an earlier version evaluated this run, or the file was moved; run "
        "the pipeline again"
      )
    rows = win_rates.read_preferences(path) if path.is_file() else []
    runs.append(dict(report=report, preferences=rows))
  return pool_reports(runs, **settings)


def pool_reports(
  runs: Sequence[Mapping[str, Any]], *, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
  """Pools runs that differ in their seed.

  Args:
    runs: {"report": a report.json, "preferences": rows of `win_rates.read_preferences`} each.
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
  by_seed = dict(sorted(zip(seeds, runs)))
  reports = {number: run["report"] for number, run in by_seed.items()}
  for report in reports.values():
    report_lib.check_report_json(report)
  rows = {
    number: [row for row in run["preferences"] if row["group"] in win_rates.GROUPS]
    for number, run in by_seed.items()
  }
  judged = [row["policy"] for found in rows.values() for row in found if row["win"] is not None]
  settings = dict(num_resamples=num_resamples, seed=seed)

  def wins(policy, group):
    return win_rates.values_by_seed(rows, policy=policy, group=group, field="win")

  def over_seeds(statistic: Callable[..., statistics.Interval], values):
    if not values:
      return None
    of = lambda part: statistic(part, **settings).as_dict()
    return dict(
      per_seed={number: of({number: value}) for number, value in values.items()}, pooled=of(values)
    )

  def difference(group):
    a, b = wins("ppo_ptx", group), wins("ppo", group)
    pairs = {number: (a[number], b[number]) for number in a if number in b}
    return over_seeds(statistics.paired_difference_over_seeds, pairs)

  return dict(
    seeds=list(reports),
    win_rate_vs_sft={
      policy: {
        f"{group}_labelers": over_seeds(statistics.bootstrap_over_seeds, wins(policy, group))
        for group in win_rates.GROUPS
      }
      for policy in dict.fromkeys(judged)
    },
    paired_difference={f"{group}_labelers": difference(group) for group in win_rates.GROUPS},
    reward_model_accuracy=_pooled_accuracy(reports),
    labeler_agreement=dict(
      per_seed={
        number: None if report["labelers"] is None else report["labelers"]["agreement_training"]
        for number, report in reports.items()
      }
    ),
    recovered={measure: _pooled_recovered(reports, measure) for measure in _TAXES},
  )


def _pooled_accuracy(reports):
  models = {number: report["reward_model"] for number, report in reports.items()}
  per_seed = {number: model and model["accuracy"] for number, model in models.items()}
  known = [models[number] for number, share in per_seed.items() if share is not None]
  pairs = sum(model["n"] or 0 for model in known)
  correct = sum(model["accuracy"] * (model["n"] or 0) for model in known)
  return dict(per_seed=per_seed, pooled=correct / pairs if pairs else None, n=pairs)


def _pooled_recovered(reports, measure):
  """1 - (summed loss of PPO-ptx) / (summed loss of PPO): a ratio of sums over the seeds."""
  entries = {
    number: report_lib.alignment_tax(report)[measure] for number, report in reports.items()
  }
  known = [entry for entry in entries.values() if entry is not None]
  lost_ppo, lost_ptx = (
    sum(entry[model] - entry["ppo_init"] for entry in known) for model in ("ppo", "ppo_ptx")
  )
  # A loss is a rise of the NLL and a fall of an accuracy.
  harmed = (
    lost_ppo > 0 if measure == "pretraining_nll" else lost_ppo < -report_lib.LEAST_LOSS * len(known)
  )
  return dict(
    per_seed={number: entry and entry["recovered"] for number, entry in entries.items()},
    pooled=1 - lost_ptx / lost_ppo if harmed else None,
  )


# ----------------------------------------------------------------------------- the table


def _rows(pooled: Mapping[str, Any]) -> list[dict[str, Any]]:
  """The table's rows: a name, one text per seed, the pooled text, and prompts or pairs."""
  num_of = lambda cell: None if cell is None else cell["pooled"]["n"]
  cells = [
    (f"{figures.label(policy)} against SFT, {page.GROUP_LABELS[group]}", cell, page.interval)
    for policy, groups in pooled["win_rate_vs_sft"].items()
    for group, cell in groups.items()
  ] + [
    (f"PPO-ptx minus PPO in points, {page.GROUP_LABELS[group]}", cell, page.points_interval)
    for group, cell in pooled["paired_difference"].items()
  ]
  accuracy = pooled["reward_model_accuracy"]
  found = [(name, cell, text, num_of(cell)) for name, cell, text in cells] + [
    ("Reward-model accuracy", accuracy, page.percent, accuracy["n"]),
    ("Agreement of training labelers", pooled["labeler_agreement"], page.percent, None),
    *((name, pooled["recovered"][key], page.percent, None) for key, name in _TAXES.items()),
  ]
  rows = []
  for name, cell, text, num in found:
    per_seed = {} if cell is None else cell["per_seed"]
    if any(value is not None for value in per_seed.values()):
      values = [*(per_seed.get(seed) for seed in pooled["seeds"]), cell.get("pooled")]
      *seeds, pool = ("–" if value is None else text(value) for value in values)
      rows.append(dict(name=name, seeds=seeds, pooled=pool, n="" if num is None else f"{num:,}"))
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
  directory = pathlib.Path(directory)
  html = page.render(
    "pooled.html",
    title=title,
    simulated=bool(pooled["win_rate_vs_sft"]),
    seeds=pooled["seeds"],
    rows=_rows(pooled),
    figure=figures.win_rates(pooled["win_rate_vs_sft"]),
  )
  workdir_lib.write_json(directory / "pooled.json", pooled)
  workdir_lib.write_text(directory / "pooled.md", pooled_markdown(pooled))
  workdir_lib.write_text(directory / "pooled.html", html)
  return directory / "pooled.html"
