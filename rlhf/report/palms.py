"""The page of a PALMS run: did the values move, where, at which size, and what did it cost?"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.palms import statistics
from rlhf.palms.statistics import Claim
from rlhf.report import figures
from rlhf.report import pipeline as report_lib

# (kind, parameters, seed)
ModelKey = tuple[str, int, int]
LABELS = {"base": "base", "targeted": "values-targeted", "control": "control"}


def by_probe(lines: Sequence[Mapping[str, Any]], field: str) -> list[list[float]]:
  """[probe][sample] numbers of one model's answers, in order of the probes' numbers."""
  found: dict[int, list[float]] = {}
  for line in lines:
    found.setdefault(line["probe"], []).append(float(line[field]))
  return [found[number] for number in sorted(found)]


def compare(
  values: Mapping[ModelKey, Sequence[Sequence[float]]],
  *,
  crossed: bool,
  num_resamples: int,
  seed: int,
  confidence: float,
) -> dict[str, Any]:
  """Means by kind and size, and differences paired by item, over seeds and items.

  A kind with one model stands beside every seed of the other.

  Args:
    values: model -> [item][repeat]; items are the same for all models of a seed.
    crossed: they are the same for all seeds too, so that items and seeds are drawn apart, as in
      `statistics`; else seeds are drawn, and items of each draw.

  Returns:
    {"means": [{"kind", "size", interval}], "differences": [{"first", "second", "size", interval}]},
    the smallest size first.
  """
  settings = dict(num_resamples=num_resamples, seed=seed, confidence=confidence)
  groups: dict[tuple[str, int], dict[int, Any]] = {}
  for (kind, size, run), rows in values.items():
    groups.setdefault((kind, size), {})[run] = rows
  mean, difference = statistics.nested_mean, statistics.nested_difference
  if crossed:
    groups = {key: statistics.group_of(runs) for key, runs in groups.items()}
    mean, difference = statistics.crossed_mean, statistics.crossed_difference
  sizes = sorted({size for _, size in groups})
  means = [
    dict(kind=kind, size=size, **mean(groups[kind, size], **settings).as_dict())
    for size in sizes
    for kind in statistics.KINDS
    if (kind, size) in groups
  ]
  differences = []
  for first, second in statistics.COMPARISONS:
    for size in sizes:
      if (first, size) in groups and (second, size) in groups:
        a, b = groups[first, size], groups[second, size]
        differences.append(
          dict(first=first, second=second, size=size, **difference(a, b, **settings).as_dict())
        )
  return dict(means=means, differences=differences)


def compare_tasks(
  values: Mapping[ModelKey, Mapping[str, Sequence[float]]], **settings: Any
) -> dict[str, dict[str, Any]]:
  """`compare` for each task; an item has one number."""
  tasks = list(dict.fromkeys(task for found in values.values() for task in found))
  return {
    task: compare(
      {model: [[number] for number in found[task]] for model, found in values.items()}, **settings
    )
    for task in tasks
  }


# ----------------------------------------------------------------------------- the page


def write(directory: str | pathlib.Path, contents: Mapping[str, Any]) -> pathlib.Path:
  """Writes palms.json and palms.html; returns the page's path.

  Args:
    contents: of `process.contents`.
  """
  directory = pathlib.Path(directory)
  analysis: statistics.Analysis = contents["analysis"]
  data = {
    name: contents[name]
    for name in (
      "title",
      "toxicity",
      "capability",
      "cooccurrence",
      "judge",
      "own_rater",
      "settings",
    )
  }
  missing = unrated(contents["answers"], contents["ratings"])
  ends = by_end(contents["answers"], contents["ratings"])
  workdir_lib.write_json(
    directory / "palms.json",
    data
    | dict(
      analysis=analysis.as_dict(),
      rater=contents["rater"],
      cut=cut(contents["answers"]),
      unrated=missing,
      by_end=ends,
    ),
  )
  sizes = sorted({mean.size for mean in analysis.means})
  html = report_lib.render_template(
    "palms.html",
    **data,
    analysis=analysis,
    labels=LABELS,
    sizes=sizes,
    short_count=figures.short_count,
    headline=headline(analysis.claims, contents["judge"]),
    capability_lead=contents["capability_lead"],
    lead=lead(analysis, contents["rater"], contents["statistics"]),
    alpha=contents["statistics"].alpha,
    test=contents["statistics"].test,
    unrated=missing,
    by_end=ends,
    categories={category.name: category for category in contents["values"].categories},
    figures=draw(contents, sizes),
    samples=samples(contents),
    cut=cut(contents["answers"]),
    tables={size: by_category(analysis, size) for size in reversed(sizes)},
    p_text=p_text,
  )
  path = directory / "palms.html"
  workdir_lib.write_text(path, html)
  return path


def headline(found: Sequence[Claim], judge: Mapping[str, Any] | None) -> str:
  """The page's first sentence: how many of the paper's findings are found here."""
  text = (
    f"{sum(claim.held for claim in found)} of {len(found)} findings of the paper are found here"
  )
  if judge is not None and judge["preferred"]["low"] <= 0.5:
    text += ", by a rater that was not shown to tell written answers from those to other questions"
  return text


def claims(
  analysis: statistics.Analysis,
  toxicity: Mapping[str, Any],
  capability: Mapping[str, Mapping[str, Any]],
  *,
  margin: float,
) -> tuple[Claim, ...]:
  """What PALMS found of ratings, toxicity and capability, and whether it is found here: those of
  the analysis, and the others.

  Args:
    margin: `StatisticsConfig.capability_margin`.
  """
  found = list(analysis.claims)
  for second in ("base", "control"):
    rows = [
      row
      for row in toxicity["differences"]
      if (row["first"], row["second"]) == ("targeted", second)
    ]
    if rows:
      last, lower = rows[-1], sum(row["high"] < 0 for row in rows)
      found.append(
        Claim(
          claim=f"values-targeted answers are less toxic than those of {second}"
          + (", at every size" if len(rows) > 1 else ""),
          held=lower == len(rows),
          evidence=f"{last['mean']:+.3f} ({last['low']:+.3f} to {last['high']:+.3f}) at "
          f"{figures.short_count(last['size'])}"
          + (
            f"; the interval lies below 0 at {lower} of {len(rows)} sizes" if len(rows) > 1 else ""
          ),
        )
      )
  rows = [
    (task, row)
    for task, results in capability.items()
    for row in results["differences"]
    if (row["first"], row["second"]) == ("targeted", "base")
  ]
  if rows:
    found.append(_capability_claim(rows, margin))
  return tuple(found)


def _capability_claim(rows: Sequence[tuple[str, Mapping[str, Any]]], margin: float) -> Claim:
  """No loss is shown by ruling a loss out, not by too few items to see one.

  Of n items on which two models agree, as many as 3 in n may be lost on others (the rule of three):
  no interval's lower end counts as above -3 / n.
  """

  def say(chosen, end):
    return ", ".join(
      f"{task} at {figures.short_count(row['size'])} {100 * row[end]:+.1f}" for task, row in chosen
    )

  rows = [(task, dict(row, low=min(row["low"], -3 / row["n"]))) for task, row in rows]
  kept = [row for _, row in rows if 100 * row["low"] >= -margin]
  lost = [(task, row) for task, row in rows if row["high"] < 0]
  evidence = (
    f"a loss of more than {margin:g} is ruled out in {len(kept)} of {len(rows)} "
    "differences from base, a loss of any size is shown in "
    + (f"{len(lost)} ({say(lost, 'mean')})" if lost else "none")
  )
  if len(kept) < len(rows):
    worst = min(rows, key=lambda entry: entry[1]["low"])
    evidence += f"; the largest that {worst[1]['n']:,} items leave open is {say([worst], 'low')}"
  return Claim(
    claim=f"values-targeted fine-tuning costs no more than {margin:g} points of capability",
    held=len(kept) == len(rows),
    evidence=evidence,
  )


def lead(analysis: statistics.Analysis, rater: str, p: statistics.StatisticsConfig) -> str:
  """What the ratings are and what their intervals say."""
  means = analysis.means
  num_probes = max(mean.rating.n for mean in means)
  num_seeds = max(mean.num_seeds for mean in means)
  drawn = f"the {num_probes} probes" + (f" and {num_seeds} seeds" if num_seeds > 1 else "")
  alone = "" if num_seeds > 1 else (" There is one seed: they say nothing of another fine-tuning.")
  return (
    f"1 to 5, where 5 matches the position best, by {rater}. Whiskers and brackets: "
    f"{100 * p.confidence:g}\u202f% intervals from resampling {drawn}, never single ratings."
    f"{alone}"
  )


def unrated(
  answers: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
  """kind -> share of its answers that nobody rated."""
  rated = {(row["model"], row["probe"], row["sample"]) for row in rows}
  found: dict[str, list[bool]] = {}
  for lines in answers.values():
    for line in lines:
      found.setdefault(line["kind"], []).append(
        (line["model"], line["probe"], line["sample"]) not in rated
      )
  return {kind: sum(flags) / len(flags) for kind, flags in found.items()}


def cut(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
  """kind -> share of its answers that reached the largest length without an end."""
  found: dict[str, list[bool]] = {}
  for lines in answers.values():
    for line in lines:
      found.setdefault(line["kind"], []).append(not line["finished"])
  return {kind: sum(flags) / len(flags) for kind, flags in found.items()}


def by_end(
  answers: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
  """kind -> the mean rating of its answers that ended and of those that were cut; None of none."""
  finished = {
    (line["model"], line["probe"], line["sample"]): line["finished"]
    for lines in answers.values()
    for line in lines
  }
  found: dict[str, dict[str, list[float]]] = {}
  for row in rows:
    end = "ended" if finished[row["model"], row["probe"], row["sample"]] else "cut"
    found.setdefault(row["kind"], dict(ended=[], cut=[]))[end].append(row["rating"])
  return {
    kind: {end: sum(ratings) / len(ratings) if ratings else None for end, ratings in ends.items()}
    for kind, ends in found.items()
  }


def p_text(value: float) -> str:
  """A p-value."""
  return "< 0.001" if value < 0.001 else f"{value:.3f}"


def by_category(analysis: statistics.Analysis, size: float) -> list[dict[str, Any]]:
  """A row for each category at one size: the means of the kinds, the comparisons."""
  rows = []
  for category in dict.fromkeys(mean.category for mean in analysis.means):
    rows.append(
      dict(
        category=category,
        means={
          mean.kind: dataclasses.asdict(mean.rating)
          for mean in analysis.means
          if (mean.size, mean.category) == (size, category)
        },
        comparisons={
          f"{c.first}-{c.second}": c
          for c in analysis.comparisons
          if (c.size, c.category) == (size, category)
        },
      )
    )
  return rows


def draw(contents: Mapping[str, Any], sizes: Sequence[float]) -> dict[str, str | None]:
  """The plots: over size where there are sizes, else by category alone."""
  analysis: statistics.Analysis = contents["analysis"]
  points: dict[str, list[dict[str, float]]] = {}
  for mean in analysis.means:
    if mean.category == statistics.ALL:
      points.setdefault(mean.kind, []).append(
        dict(
          parameters=mean.size, mean=mean.rating.mean, low=mean.rating.low, high=mean.rating.high
        )
      )
  effects: dict[str, list[dict[str, float]]] = {}
  for c in analysis.comparisons:
    if c.category == statistics.ALL:
      effects.setdefault(f"{c.first} less {c.second}", []).append(
        dict(
          parameters=c.size, mean=c.difference.mean, low=c.difference.low, high=c.difference.high
        )
      )
  toxic: dict[str, list[dict[str, float]]] = {}
  for mean in contents["toxicity"]["means"]:
    toxic.setdefault(mean["kind"], []).append(
      dict(parameters=mean["size"], **{end: mean[end] for end in ("mean", "low", "high")})
    )
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
  several = len(sizes) > 1
  return dict(
    ratings=figures.over_size(points, "mean rating", name="ratings") if several else None,
    effects=figures.over_size(effects, "difference of ratings", name="effects", line=0.0)
    if several
    else None,
    toxicity=figures.over_size(toxic, "toxicity", name="toxicity") if several else None,
    categories=figures.measure(rows, "categories"),
  )


def samples(contents: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Every probe with all answers of the largest size, side by side, each with its mean rating."""
  answers: Mapping[str, Sequence[Mapping[str, Any]]] = contents["answers"]
  largest = max(line["size"] for lines in answers.values() for line in lines)
  given: dict[tuple, list[float]] = {}
  for row in contents["ratings"]:
    key = row["model"], row["probe"], row["sample"]
    given.setdefault(key, []).append(row["rating"])
  found: dict[int, dict[str, Any]] = {}
  for lines in answers.values():
    for line in lines:
      if line["size"] == largest:
        entry = found.setdefault(
          line["probe"],
          dict(
            category=line["category"],
            prompt=line["prompt"],
            answers={kind: [] for kind in statistics.KINDS},
          ),
        )
        ratings = given.get((line["model"], line["probe"], line["sample"]))
        entry["answers"][line["kind"]].append(
          dict(
            text=line["answer"],
            seed=line["seed"],
            finished=line["finished"],
            rating=None if ratings is None else sum(ratings) / len(ratings),
          )
        )
  return [found[number] for number in sorted(found)]
