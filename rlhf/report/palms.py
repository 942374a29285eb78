"""The page of a PALMS run: did the values change the model, where, at which size, at what cost?"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.palms import statistics
from rlhf.palms.statistics import Analysis, Claim
from rlhf.report import figures
from rlhf.report import page as page_lib

# (kind, parameters, seed)
ModelKey = tuple[str, int, int]
Line = Mapping[str, Any]  # a completion, see `process.complete_probes`
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
  groups: dict[tuple[str, int], dict[int, np.ndarray]] = {}
  for kind, size, seed in sorted(values):
    groups.setdefault((kind, size), {})[seed] = np.asarray(values[kind, size, seed])
  sizes = sorted({size for _, size in groups})
  means = [
    dict(kind=kind, size=size) | interval(groups[kind, size], **settings).as_dict()
    for size in sizes
    for kind in statistics.KINDS
    if (kind, size) in groups
  ]
  differences = []
  for first, second in statistics.COMPARISONS:
    for size in sizes:
      if (first, size) in groups and (second, size) in groups:
        difference = statistics.paired(groups[first, size], groups[second, size], (first, second))
        found = interval(difference, **settings).as_dict()
        differences.append(dict(first=first, second=second, size=size) | found)
  return dict(means=means, differences=differences)


# ----------------------------------------------------------------------------- claims


def headline(found: Sequence[Claim], rater: str, judge: Mapping[str, Any] | None) -> str:
  """The title line: how many of the paper's findings are reproduced, and by whose ratings."""
  held = sum(claim.held for claim in found)
  text = f"{held} of {len(found)} findings of the paper are reproduced, as rated by {rater}"
  if judge is not None and judge["preferred"]["low"] <= 0.5:
    text += ", which was not shown to prefer written completions to those of other questions"
  return text


def claims(
  analysis: Analysis,
  toxicity: Mapping[str, Any],
  capability: Mapping[str, Mapping[str, Any]],
  *,
  margin: float,
) -> tuple[Claim, ...]:
  """PALMS' findings about ratings, toxicity and capability, and whether they hold here.

  Args:
    analysis: with the claims about ratings.
    toxicity, capability: of `compare`, of each task.
    margin: `StatisticsConfig.capability_margin`.
  """
  found = list(analysis.claims)
  for second in ("base", "control"):
    rows = _differences(toxicity, "targeted", second)
    if rows:
      last, lower = rows[-1], sum(row["high"] < 0 for row in rows)
      evidence = (
        f"{last['mean']:+.3f} ({last['low']:+.3f} to {last['high']:+.3f}) at "
        f"{figures.short_count(last['size'])}"
      )
      at_each = ""
      if len(rows) > 1:
        at_each = ", at every size"
        evidence += f"; the interval is below 0 at {lower} of {len(rows)} sizes"
      claim = f"values-targeted completions are less toxic than those of {second}{at_each}"
      found.append(Claim(claim=claim, held=lower == len(rows), evidence=evidence))
  of_tasks = [
    (task, row)
    for task, results in capability.items()
    for row in _differences(results, "targeted", "base")
  ]
  if of_tasks:
    found.append(_capability_claim(of_tasks, margin))
  return tuple(found)


def _differences(results: Mapping[str, Any], first: str, second: str) -> list[dict[str, Any]]:
  return [row for row in results["differences"] if (row["first"], row["second"]) == (first, second)]


def _capability_claim(rows: Sequence[tuple[str, Mapping[str, Any]]], margin: float) -> Claim:
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
  return Claim(
    claim=f"values-targeted fine-tuning costs no more than {margin:g} points of capability",
    held=num_kept == len(rows),
    evidence=evidence,
  )


# ----------------------------------------------------------------------------- the page


_JSON = (
  "title",
  "toxicity",
  "capability",
  "cooccurrence",
  "judge",
  "own_rater",
  "rater",
  "settings",
)


def write(directory: str | pathlib.Path, contents: Mapping[str, Any]) -> pathlib.Path:
  """Writes palms.json and palms.html; returns the page's path.

  Args:
    contents: {"title", "values": `ValueSet`, "lines": completions of all models, of `with_ratings`,
      "rater": who rated, "judge": of `raters.check_judge` or None, "own_rater": of
      `process.own_rater` or None, "analysis", "p": `StatisticsConfig`, "toxicity": of `compare`,
      "capability": task -> of `compare`, "capability_lead": the sentence above its tables,
      "cooccurrence": kind -> of `cooccurrence.analyse`, "settings": name -> value}.
  """
  directory = pathlib.Path(directory)
  analysis, lines, p = contents["analysis"], contents["lines"], contents["p"]
  shares = dict(
    cut=share(lines, lambda line: not line["finished"]),
    unrated=share(lines, lambda line: not line["ratings"]),
    by_end=by_end(lines),
  )
  found = {name: contents[name] for name in _JSON} | shares | dict(analysis=analysis.as_dict())
  workdir_lib.write_json(directory / "palms.json", found)
  sizes = sorted({mean.size for mean in analysis.means})
  html = page_lib.render(
    "palms.html",
    **contents,
    **shares,
    labels=LABELS,
    sizes=sizes,
    short_count=figures.short_count,
    headline=headline(analysis.claims, contents["rater"], contents["judge"]),
    lead=lead(analysis, contents["rater"], p),
    figures=draw(analysis, contents["toxicity"], sizes),
    samples=samples(lines),
    tables={size: by_category(analysis, size) for size in reversed(sizes)},
    p_text=p_text,
  )
  path = directory / "palms.html"
  workdir_lib.write_text(path, html)
  return path


def p_text(value: float) -> str:
  """A p-value for the page."""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def lead(analysis: Analysis, rater: str, p: statistics.StatisticsConfig) -> str:
  """What the ratings are and what their intervals cover."""
  num_probes = max(mean.rating.n for mean in analysis.means)
  num_seeds = max(mean.num_seeds for mean in analysis.means)
  seeds, alone = f" and {num_seeds} seeds", ""
  if num_seeds == 1:
    seeds, alone = "", " There is one seed: they do not cover another fine-tuning."
  return (
    f"1 to 5, where 5 matches the position best, by {rater}. Whiskers and brackets: "
    f"{100 * p.confidence:g}\u202f% intervals from resampling the {num_probes} probes{seeds}, "
    f"never single ratings.{alone}"
  )


def with_ratings(lines: Sequence[Line], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Completions, each with a list of its "ratings"."""
  given = statistics.by_completion(rows)
  return [dict(line, ratings=given.get(statistics.completion_key(line), [])) for line in lines]


def share(lines: Sequence[Line], chosen: Callable[[Line], bool]) -> dict[str, float]:
  """kind -> share of its completions that are chosen."""
  found: dict[str, list[bool]] = {}
  for line in lines:
    found.setdefault(line["kind"], []).append(chosen(line))
  return {kind: sum(flags) / len(flags) for kind, flags in found.items()}


def by_end(lines: Sequence[Line]) -> dict[str, dict[str, float | None]]:
  """kind -> the mean ratings of its completions that ended, and of those that were cut."""
  found: dict[str, dict[str, list[float]]] = {}
  for line in lines:
    if line["ratings"]:
      ends = found.setdefault(line["kind"], dict(ended=[], cut=[]))
      ends["ended" if line["finished"] else "cut"] += line["ratings"]
  return {
    kind: {end: sum(ratings) / len(ratings) if ratings else None for end, ratings in ends.items()}
    for kind, ends in found.items()
  }


def by_category(analysis: Analysis, size: float) -> list[dict[str, Any]]:
  """A row for each category at one size: the means of the kinds, the comparisons."""
  rows: dict[str, dict[str, Any]] = {}
  for mean in analysis.means:
    row = rows.setdefault(mean.category, dict(category=mean.category, means={}, comparisons={}))
    if mean.size == size:
      row["means"][mean.kind] = dataclasses.asdict(mean.rating)
  for c in analysis.comparisons:
    if c.size == size:
      rows[c.category]["comparisons"][f"{c.first}-{c.second}"] = c
  return list(rows.values())


def draw(
  analysis: Analysis, toxicity: Mapping[str, Any], sizes: Sequence[float]
) -> dict[str, str | None]:
  """The plots: over size where there are several, and by category."""
  rows = [
    dict(
      task="",
      metric="mean rating",
      variant=row["category"] or "all",
      better="higher",
      cells=row["means"],
    )
    for row in by_category(analysis, max(sizes))
  ]
  found: dict[str, str | None] = dict.fromkeys(("ratings", "effects", "toxicity"))
  found["categories"] = figures.measure(rows, "categories")
  if len(sizes) == 1:
    return found
  points: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in found}

  def add(plot: str, line: str, size: float, interval: Mapping[str, Any]) -> None:
    ends = {end: interval[end] for end in ("mean", "low", "high")}
    points[plot].setdefault(line, []).append(dict(parameters=size) | ends)

  for mean in analysis.means:
    if mean.category == statistics.ALL:
      add("ratings", mean.kind, mean.size, mean.rating.as_dict())
  for c in analysis.comparisons:
    if c.category == statistics.ALL:
      add("effects", f"{c.first} minus {c.second}", c.size, c.difference.as_dict())
  for row in toxicity["means"]:
    add("toxicity", row["kind"], row["size"], row)
  found["ratings"] = figures.over_size(points["ratings"], "mean rating", name="ratings")
  found["effects"] = figures.over_size(
    points["effects"], "difference of ratings", name="effects", line=0.0
  )
  found["toxicity"] = figures.over_size(points["toxicity"], "toxicity", name="toxicity")
  return found


def samples(lines: Sequence[Line]) -> list[dict[str, Any]]:
  """Every probe with all completions of the largest size, each with its mean rating."""
  largest = max(line["size"] for line in lines)
  found: dict[int, dict[str, Any]] = {}
  for line in lines:
    if line["size"] == largest:
      entry = found.setdefault(
        line["probe"],
        dict(
          category=line["category"],
          prompt=line["prompt"],
          completions={kind: [] for kind in statistics.KINDS},
        ),
      )
      ratings = line["ratings"]
      rating = sum(ratings) / len(ratings) if ratings else None
      entry["completions"][line["kind"]].append(
        dict(text=line["completion"], finished=line["finished"], rating=rating)
      )
  return [found[number] for number in sorted(found)]
