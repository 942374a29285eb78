"""The page of a PALMS run: did the values change the model, where, at which size, at what cost?"""

import collections
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.palms import sets, statistics
from rlhf.report import figures
from rlhf.report import page as page_lib

# (kind, parameters, seed)
ModelKey = tuple[str, int, int]
Line = Mapping[str, Any]  # a completion, see `process.complete_probes`
Analysis = Mapping[str, Any]  # of `statistics.analyse`
LABELS = {"base": "base", "targeted": "values-targeted", "control": "control"}


def by_probe(lines: Sequence[Line], field: str) -> dict[ModelKey, list[float]]:
  """Model -> mean of a field over the samples of each probe, in order of the probes' numbers."""
  found: dict[ModelKey, dict[int, list[float]]] = {}
  for line in lines:
    of_model = found.setdefault((line["kind"], line["size"], line["seed"]), {})
    of_model.setdefault(line["probe"], []).append(line[field])
  return {
    model: [float(np.mean(values)) for _, values in sorted(of_probe.items())]
    for model, of_probe in found.items()
  }


def compare(
  values: Mapping[ModelKey, Sequence[float]], *, crossed: bool, **settings: Any
) -> dict[str, Any]:
  """Means by kind and size, and differences paired by item, over seeds and items.

  A kind with one model is compared with every seed of the other.

  Args:
    values: model -> a number for each item; items are the same for all models of a seed.
    crossed: whether items are also the same for all seeds, so that items and seeds are resampled
      independently; otherwise seeds are, and the items of each.
    settings: num_resamples, seed and confidence.

  Returns:
    {"means": [{"kind", "size", interval}], "differences": [{"first", "second", "size", interval}]},
    the smallest size first.
  """
  interval = statistics.crossed_interval if crossed else statistics.nested_interval
  groups: dict[tuple[str, int], dict[int, np.ndarray]] = collections.defaultdict(dict)
  for kind, size, seed in sorted(values):
    groups[kind, size][seed] = np.asarray(values[kind, size, seed])
  sizes = sorted({size for _, size in groups})
  of = lambda runs: interval(runs, **settings).as_dict()
  means = [
    dict(kind=kind, size=size) | of(groups[kind, size])
    for size in sizes
    for kind in statistics.KINDS
    if (kind, size) in groups
  ]
  differences = [
    dict(first=a, second=b, size=size)
    | of(statistics.paired(groups[a, size], groups[b, size], (a, b)))
    for a, b in statistics.COMPARISONS
    for size in sizes
    if (a, size) in groups and (b, size) in groups
  ]
  return dict(means=means, differences=differences)


# ----------------------------------------------------------------------------- claims


def claims(
  toxicity: Mapping[str, Any], capability: Mapping[str, Mapping[str, Any]], *, margin: float
) -> Iterator[dict[str, Any]]:
  """PALMS' findings about toxicity and capability, as `statistics.analyse` has those about ratings.

  Args:
    toxicity, capability: of `compare`, of each task.
    margin: `StatisticsConfig.capability_margin`.
  """
  for second in ("base", "control"):
    if rows := _differences(toxicity, "targeted", second):
      claim = f"values-targeted completions are less toxic than those of {second}"
      last, lower = rows[-1], sum(row["high"] < 0 for row in rows)
      evidence = f"{statistics.signed(last, 3)} at {figures.short_count(last['size'])}"
      if len(rows) > 1:
        claim += ", at every size"
        evidence += f"; the interval is below 0 at {lower} of {len(rows)} sizes"
      yield dict(claim=claim, held=lower == len(rows), evidence=evidence)
  of_tasks = [
    (task, row)
    for task, results in capability.items()
    for row in _differences(results, "targeted", "base")
  ]
  if of_tasks:
    yield _capability_claim(of_tasks, margin)


def _differences(results: Mapping[str, Any], first: str, second: str) -> list[dict[str, Any]]:
  return [row for row in results["differences"] if (row["first"], row["second"]) == (first, second)]


def _capability_claim(
  rows: Sequence[tuple[str, Mapping[str, Any]]], margin: float
) -> dict[str, Any]:
  """A claim of no loss needs a loss to be ruled out; too few items to see one are not enough.

  Where two models agree on n items, they may differ on as many as 3 in n others (the rule of
  three): no interval's lower end counts as above -3 / n.
  """

  def say(chosen, end: str) -> str:
    return ", ".join(
      f"{task} at {figures.short_count(row['size'])} {100 * row[end]:+.1f}" for task, row in chosen
    )

  rows = [(task, dict(row, low=min(row["low"], -3 / row["n"]))) for task, row in rows]
  num_kept = sum(100 * row["low"] >= -margin for _, row in rows)
  lost = [(task, row) for task, row in rows if row["high"] < 0]
  shown = f"{len(lost)} ({say(lost, 'mean')})" if lost else "none"
  evidence = (
    f"a loss of more than {margin:g} is ruled out in {num_kept} of {len(rows)} comparisons with "
    f"base; a loss of any size is shown in {shown}"
  )
  if num_kept < len(rows):
    worst = min(rows, key=lambda entry: entry[1]["low"])
    evidence += (
      f"; the largest loss that {worst[1]['n']:,} items leave open is {say([worst], 'low')}"
    )
  return dict(
    claim=f"values-targeted fine-tuning costs no more than {margin:g} points of capability",
    held=num_kept == len(rows),
    evidence=evidence,
  )


# ----------------------------------------------------------------------------- the page


def write(
  directory: str | pathlib.Path,
  contents: Mapping[str, Any],
  *,
  analysis: Analysis,
  lines: Sequence[Line],
  values: sets.ValueSet,
  p: statistics.StatisticsConfig,
  capability_lead: str,
) -> pathlib.Path:
  """Writes palms.json and palms.html; returns the page's path.

  Args:
    contents: {"title", "toxicity": of `compare`, "capability": task -> of `compare`,
      "cooccurrence": kind -> of `cooccurrence.analyse`, "judge": of `raters.check_judge` or None,
      "own_rater": of `process.own_rater` or None, "rater": who rated, "settings": name -> value}.
    lines: completions of all models, of `with_ratings`.
    values: whose positions the page shows.
    capability_lead: the sentence above the tables of capability.
  """
  directory = pathlib.Path(directory)
  shown = {**contents, **by_kind(lines)}
  workdir_lib.write_json(directory / "palms.json", shown | dict(analysis=analysis))
  sizes = sorted({mean["size"] for mean in analysis["means"]})
  html = page_lib.render(
    "palms.html",
    **shown,
    simulated=False,
    analysis=analysis,
    lines=lines,
    values=values,
    p=p,
    capability_lead=capability_lead,
    labels=LABELS,
    sizes=sizes,
    short_count=figures.short_count,
    figures=draw(analysis, contents["toxicity"], sizes),
    tables={size: by_category(analysis, size) for size in reversed(sizes)},
  )
  path = directory / "palms.html"
  workdir_lib.write_text(path, html)
  return path


def with_ratings(lines: Sequence[Line], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Completions, each with a list of its "ratings"."""
  given = statistics.by_completion(rows)
  return [dict(line, ratings=given.get(statistics.completion_key(line), [])) for line in lines]


def by_kind(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
  """What became of the completions of each kind.

  Returns:
    {"cut", "unrated": kind -> share of its completions, "by_end": kind -> mean ratings of those
    that ended and of those that were cut}.
  """
  found: dict[str, dict[str, Any]] = dict(cut={}, unrated={}, by_end={})
  for kind in dict.fromkeys(line["kind"] for line in lines):
    chosen = [line for line in lines if line["kind"] == kind]
    found["cut"][kind] = sum(not line["finished"] for line in chosen) / len(chosen)
    found["unrated"][kind] = sum(not line["ratings"] for line in chosen) / len(chosen)
    ends: dict[str, list[float]] = dict(ended=[], cut=[])
    for line in chosen:
      ends["ended" if line["finished"] else "cut"] += line["ratings"]
    if any(ends.values()):
      found["by_end"][kind] = {end: sum(r) / len(r) if r else None for end, r in ends.items()}
  return found


def by_category(analysis: Analysis, size: float) -> list[dict[str, Any]]:
  """A row for each category at one size: the means of the kinds, the comparisons."""
  rows: dict[str, dict[str, Any]] = {}
  for mean in analysis["means"]:
    category = mean["category"]
    row = rows.setdefault(category, dict(category=category, means={}, comparisons={}))
    if mean["size"] == size:
      row["means"][mean["kind"]] = mean["rating"]
  for c in analysis["comparisons"]:
    if c["size"] == size:
      rows[c["category"]]["comparisons"][f"{c['first']}-{c['second']}"] = c
  return list(rows.values())


def draw(
  analysis: Analysis, toxicity: Mapping[str, Any], sizes: Sequence[float]
) -> dict[str, str | None]:
  """The plots: over size where there are several, and by category."""
  shape = dict(task="", metric="mean rating", better="higher")
  rows = [
    dict(shape, variant=row["category"] or "all", cells=row["means"])
    for row in by_category(analysis, max(sizes))
  ]
  found: dict[str, str | None] = dict.fromkeys(("ratings", "effects", "toxicity"))
  found["categories"] = figures.measure(rows, "categories")
  if len(sizes) == 1:
    return found
  over_size: dict[str, dict[str, list]] = {name: collections.defaultdict(list) for name in found}
  for m in analysis["means"]:
    if m["category"] == statistics.ALL:
      over_size["ratings"][m["kind"]].append(dict(m["rating"], parameters=m["size"]))
  for c in analysis["comparisons"]:
    if c["category"] == statistics.ALL:
      line = f"{c['first']} minus {c['second']}"
      over_size["effects"][line].append(dict(c["difference"], parameters=c["size"]))
  for row in toxicity["means"]:
    over_size["toxicity"][row["kind"]].append(dict(row, parameters=row["size"]))
  for name, y_label, level in (
    ("ratings", "mean rating", None),
    ("effects", "difference of ratings", 0.0),
    ("toxicity", "toxicity", None),
  ):
    found[name] = figures.over_size(over_size[name], y_label, name=name, line=level)
  return found
