"""evaluation.json and evaluation.html: checkpoints compared, on one self-contained page.

`write` takes what the suites measured and makes a table and a plot of every task and metric; where
checkpoints are called METHOD@SIZE, the plot is over the number of parameters, as in the paper's
main figure (InstructGPT Fig. 1).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.evals import units
from rlhf.report import figures, page

TITLES = {
  "preference": "Preference: what raters say about completions of the same prompts",
  "pretraining": "Pretraining text and few-shot tasks",
  "nlp": "Public NLP tasks",
  "truth": "Truth",
  "toxicity": "Toxicity",
  "bias": "Bias",
}
SHOWN_SAMPLES = 30


def write(
  workdir: pathlib.Path,
  *,
  title: str,
  checkpoints: Sequence[Mapping[str, Any]],
  measures: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
  compared: Mapping[str, Any] | None = None,
  notes: Sequence[str] = (),
  bootstrap: Mapping[str, int] | None = None,
) -> pathlib.Path:
  """Writes both files to WORKDIR/report; returns the page's path.

  Args:
    workdir: of the evaluation; its first completions in `preference` are shown.
    checkpoints: {"name", "source", "parameters"} in the order wanted.
    measures: suite -> checkpoint -> `Measure.as_dict()` of all its tasks, but for `compared`.
    compared: what judges said, as `comparison.Comparison.as_dict`.
    notes: sentences for the end of the page.
    bootstrap: settings of the intervals of differences from the first checkpoint; without them
      there are no differences.
  """
  directory, completions = workdir / "report", workdir / "preference" / "completions.jsonl"
  differences, preference, samples = {}, None, []
  if bootstrap is not None:
    differences = {
      suite: units.differences(values, checkpoints[0]["name"], **bootstrap)
      for suite, values in measures.items()
    }
  tables = {suite: units.by_measure(found) for suite, found in measures.items()}
  if compared is not None:
    rows = units.by_measure(compared["measures"])
    add_baseline(rows, compared["baseline"])
    tables = {"preference": rows} | tables
    preference = {name: part for name, part in compared.items() if name != "measures"}
    notes = [*notes, *page.paragraphs("notes.txt", compared=compared)]
    samples = workdir_lib.read_jsonl(completions)[:SHOWN_SAMPLES] if completions.is_file() else []
  data = dict(
    title=title,
    checkpoints=list(checkpoints),
    suites=tables,
    differences=differences,
    notes=list(notes),
    preference=preference,
  )
  workdir_lib.write_json(directory / "evaluation.json", data)
  parameters = {one["name"]: one["parameters"] for one in checkpoints}
  judged = {} if compared is None else compared
  html = page.render(
    "evaluation.html",
    title=title,
    simulated=judged.get("simulated", False),
    checkpoints=checkpoints,
    matrix=matrix(judged.get("matrix", {})),
    samples=samples,
    reward_models=judged.get("reward_models", {}),
    calibration=figures.calibration,
    notes=notes,
    sections=[
      section(suite, rows, parameters, differences.get(suite, ()))
      for suite, rows in tables.items()
      if rows
    ],
    cell=page.short_interval,
    count=count_text,
  )
  workdir_lib.write_text(directory / "evaluation.html", html)
  return directory / "evaluation.html"


def matrix(rows_by_judges: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
  """judges -> checkpoint -> other -> interval, where more pairs than those with one baseline were
  judged."""
  found = {}
  for judges, rows in rows_by_judges.items():
    known = {a: {b: cell for b, cell in row.items() if cell is not None} for a, row in rows.items()}
    if sum(len(row) > 1 for row in known.values()) > 1:
      found[judges] = known
  return found


def add_baseline(rows: Sequence[dict[str, Any]], baseline: str) -> None:
  """Gives the baseline its win rate against itself, which is a half by definition."""
  for row in rows:
    if row["metric"] == "win_rate":
      num = max(cell["n"] for cell in row["cells"].values())
      row["cells"][baseline] = dict(mean=0.5, low=0.5, high=0.5, n=num)


def section(
  suite: str,
  rows: Sequence[Mapping[str, Any]],
  parameters: Mapping[str, int | None],
  differences: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """A suite's part of the page: its tables by task, and a plot for each task and metric."""
  blocks: list[dict[str, Any]] = []
  for task in dict.fromkeys(row["task"] for row in (*rows, *differences)):
    of_task = [row for row in rows if row["task"] == task]
    metrics = dict.fromkeys(row["metric"] for row in of_task)
    drawn = [
      dict(svg=svg, name=f"{task}, {figures.label(metric)}{of}")
      for at, metric in enumerate(metrics)
      for svg, of in plots(
        f"{suite}-{len(blocks)}-{at}",
        [row for row in of_task if row["metric"] == metric],
        parameters,
      )
    ]
    changes = [row for row in differences if row["task"] == task]
    blocks.append(dict(task=task, rows=of_task, differences=changes, plots=drawn))
  names = [name for name in parameters if any(name in row["cells"] for row in rows)]
  return dict(suite=suite, title=TITLES.get(suite, suite), names=names, blocks=blocks)


def plots(
  name: str, rows: Sequence[Mapping[str, Any]], parameters: Mapping[str, int | None]
) -> list[tuple[str, str]]:
  """(SVG, what is added to its name): over the size where there are sizes, else dots."""
  if len({cell["mean"] for row in rows for cell in row["cells"].values()}) < 2:
    return []  # there is nothing to see
  if not has_sizes(parameters):
    svg = figures.measure(rows, name)
    return [] if svg is None else [(svg, "")]
  found = []
  for number, row in enumerate(rows):
    variant = f", {row['variant']}" if row["variant"] else ""
    svg = figures.over_size(
      size_points(row, parameters),
      figures.label(row["metric"]) + variant,
      name=f"{name}-{number}",
      line=0.5 if row["metric"] == "win_rate" else None,
      percent=row["metric"] == "win_rate",
    )
    if svg is not None:
      found.append((svg, variant))
  return found


def has_sizes(parameters: Mapping[str, int | None]) -> bool:
  """Whether a method stands at several sizes."""
  sizes = {
    (name.partition("@")[0], count) for name, count in parameters.items() if count is not None
  }
  return len({method for method, _ in sizes}) < len(sizes)


def size_points(
  row: Mapping[str, Any], parameters: Mapping[str, int | None]
) -> dict[str, list[dict[str, float]]]:
  """method -> points of `figures.over_size`."""
  points: dict[str, list[dict[str, float]]] = {}
  for name, cell in row["cells"].items():
    if (count := parameters[name]) is not None:
      points.setdefault(name.partition("@")[0], []).append(dict(cell, parameters=count))
  return points


def count_text(rows: Sequence[Mapping[str, Any]], name: str) -> str:
  """The largest number of prompts behind a checkpoint's cells."""
  known = [row["cells"][name]["n"] for row in rows if name in row["cells"]]
  return f"{max(known):,}" if known else "\u2013"
