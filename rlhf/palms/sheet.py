"""Blind rating sheets for people, and the ratings that come back.

`make` turns sampled completions into one offline HTML page per rater and the same sheet as CSV for
a spreadsheet.  Samples have opaque ids and an order of each rater's own; neither says which model
wrote them.  That is in the key, which raters must not see.  `read` joins what was handed in with
the key, as rows of `palms.statistics`.

PALMS had three raters for every sample, who rated from 1 to 5 how well it matches the stated
position (arXiv:2106.10328).
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.data import records
from rlhf.evals.preference import sheets as sheets_lib
from rlhf.palms import sets, statistics

KEY = "key.json"
_COLUMNS = ("sheet", "rater", "sample", "category", "position", "question", "completion", "rating")
_NEEDED = ("sheet", "rater", "sample", "rating")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetConfig:
  """Who rates.

  Attributes:
    raters: names for the sheets and their files.
    seed: of the ids and the orders, which also depend on everything shown and hidden.
  """

  raters: tuple[str, ...] = ("rater_1", "rater_2", "rater_3")
  seed: int = 0

  def __post_init__(self):
    if not self.raters or len(set(self.raters)) < len(self.raters):
      raise ValueError(f"raters {list(self.raters)}; give one or more different names")
    for name in self.raters:
      # A spreadsheet would turn "01" into 1.
      if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
        raise ValueError(
          f"rater {name!r} cannot name a file and a spreadsheet cell; use a letter and then "
          "letters, digits and ._-"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheets:
  """Result of `make`.

  Attributes:
    key: {"sheet", "raters", "samples": {id: the `statistics.COMPLETION_FIELDS`}}.
    pages, tables: rater -> HTML, CSV.
  """

  key: dict[str, Any]
  pages: dict[str, str]
  tables: dict[str, str]


# ----------------------------------------------------------------------------- to the raters


def read_completions(path: str | pathlib.Path, values: sets.ValueSet) -> list[dict[str, Any]]:
  """Reads completions to rate, one object per line:

      {the `statistics.COMPLETION_FIELDS`, "prompt": question, "completion": str}

  Raises:
    ValueError: the file cannot be read; or names a line that is bad, a duplicate, or of an unknown
      category.
  """
  lines: list[dict[str, Any]] = []
  seen: dict[tuple, str] = {}
  for where, line in sheets_lib.read_objects(path):
    statistics.check_completion(where, line, "prompt")
    if not isinstance(line.get("completion"), str):
      old = ' (older runs call it "answer": rename the field)' if "answer" in line else ""
      raise ValueError(f'{where}: no text in "completion"{old}; an empty completion is ""')
    try:
      values.category(line["category"])
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    first = seen.setdefault(statistics.completion_key(line), where)
    if first != where:
      raise ValueError(
        f"{where}: sample {line['sample']} of probe {line['probe']} by {line['model']} is already "
        f"in {first}; leave one out"
      )
    lines.append(line)
  if not lines:
    raise ValueError(f"{path} has no completions; give one JSON object per line")
  return lines


def make(lines: Sequence[Mapping[str, Any]], values: sets.ValueSet, p: SheetConfig) -> Sheets:
  """Blind sheets of completions, one per rater, and their key.

  Args:
    lines: see `read_completions`.
    values: with the position of every category.
  """
  shown = []
  for line in lines:
    category = values.category(line["category"])
    texts = dict(prompt=line["prompt"], completion=line["completion"])
    shown.append(dict(texts, title=category.title, position=category.position))
  everything = [list(pair) for pair in zip(map(dict, lines), shown)]
  content = json.dumps([p.seed, p.raters, values.title, everything], sort_keys=True)
  digest = hashlib.sha256(content.encode()).hexdigest()
  # Seeded by everything shown and hidden: the key of one sheet says nothing about the next.
  rng = np.random.default_rng(int(digest, 16))
  # A letter first: a spreadsheet would read 12e5 as a number.
  sheet = f"r{digest[:11]}"
  ids = [f"s{number:06x}" for number in rng.choice(16**6, size=len(lines), replace=False)]
  items = [dict(id=id_, **item) for id_, item in zip(ids, shown, strict=True)]
  templates = jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates")
  environment = jinja2.Environment(
    loader=templates, autoescape=True, undefined=jinja2.StrictUndefined
  )
  template = environment.get_template("sheet.html")
  pages, tables = {}, {}
  for rater in p.raters:
    ordered = [items[index] for index in rng.permutation(len(items))]
    who = dict(sheet=sheet, rater=rater)
    pages[rater] = template.render(data=dict(who, title=values.title, items=ordered))
    rows = [
      dict(item, **who, sample=item["id"], category=item["title"], question=item["prompt"])
      for item in ordered
    ]
    tables[rater] = sheets_lib.csv_text(_COLUMNS, rows)
  samples = {
    id_: {name: line[name] for name in statistics.COMPLETION_FIELDS}
    for id_, line in sorted(zip(ids, lines, strict=True), key=lambda pair: pair[0])
  }
  key = dict(sheet=sheet, raters=list(p.raters), samples=samples)
  return Sheets(key=key, pages=pages, tables=tables)


def write(sheets: Sheets, directory: str | pathlib.Path) -> None:
  """Writes `sheets/RATER.html` and `.csv` for the raters, and the key next to that folder."""
  directory = pathlib.Path(directory)
  for rater, page in sheets.pages.items():
    workdir_lib.write_text(directory / "sheets" / f"{rater}.html", page)
    workdir_lib.write_text(directory / "sheets" / f"{rater}.csv", sheets.tables[rater])
  workdir_lib.write_json(directory / KEY, sheets.key)


# ----------------------------------------------------------------------------- from the raters


def read_key(path: str | pathlib.Path) -> dict[str, Any]:
  """Reads the key that `write` wrote.

  Raises:
    ValueError: the file is missing or is not a key.
  """
  value = _read_json(pathlib.Path(path))
  if not {"sheet", "raters", "samples"} <= set(value):
    raise ValueError(
      f"{path} is not the key of a rating sheet; name the {KEY} that was written with the sheets"
    )
  return value


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a file; empty where there is none."""
  try:
    value = records.parse_json(records.read_bytes(path))
  except records.Problem:
    return {}
  return value if isinstance(value, dict) else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandedIn:
  """What the raters handed in.

  Attributes:
    rows: valid ratings, as rows of `palms.statistics`.
    problems: one sentence each, with file and row; fix them before using any rating.
    missing: one sentence for each rater who has not rated everything; the caller decides whether to
      continue without.
  """

  rows: list[dict[str, Any]]
  problems: list[str]
  missing: list[str]


def find_exports(names: Iterable[str]) -> list[pathlib.Path]:
  """The CSV and JSON files among the names and in the directories among them.

  Raises:
    ValueError: a name is neither, or a directory has none.
  """
  found: list[pathlib.Path] = []
  for path in map(pathlib.Path, names):
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    files = [file for file in files if file.suffix in (".csv", ".json") and file.name != KEY]
    if not files:
      raise ValueError(f"{path} has no .csv or .json file; name what the raters handed in")
    found += files
  return found


def read(paths: Sequence[pathlib.Path], key: Mapping[str, Any]) -> HandedIn:
  """Joins what was handed in with the key.

  Problems are a row without a rater, a rating outside 1 to 5, a sample or a rater that the key does
  not have, a row of another sheet, and a sample that a rater rated twice.

  Raises:
    ValueError: a file is not what its name says.
  """
  rows: list[dict[str, Any]] = []
  problems: list[str] = []
  rated: dict[tuple[str, str], str] = {}
  blank: dict[tuple[str, str], str] = {}
  for where, cells in (row for path in paths for row in _read_export(path)):
    rater, sample = pair = cells["rater"], cells["sample"]
    message = _problem(cells, key)
    if message is None and cells["rating"] and pair in rated:
      message = f"sample {sample} is rated twice by {rater}, first in {rated[pair]}; keep one"
    if message is not None:
      problems.append(f"{where}: {message}")
    elif cells["rating"]:
      rated[pair] = where
      rating = round(float(cells["rating"]))
      rows.append({**key["samples"][sample], "rater": rater, "rating": rating})
    else:
      blank.setdefault(pair, where)
  missing = []
  for rater in key["raters"]:
    gaps = [sample for sample in key["samples"] if (rater, sample) not in rated]
    shown = [sample for sample in gaps if (rater, sample) in blank]
    more = "; it is the only one missing" if len(gaps) == 1 else f"; {len(gaps)} are missing in all"
    if len(gaps) == len(key["samples"]):
      missing.append(f"{rater} has handed in no rating; {len(gaps)} are missing")
    elif shown:
      where = blank[rater, shown[0]]
      missing.append(f"{where}: no rating of sample {shown[0]} by {rater}{more}")
    elif gaps:
      missing.append(f"{rater} has not rated sample {gaps[0]}{more}")
  return HandedIn(rows=rows, problems=problems, missing=missing)


def _problem(cells: Mapping[str, str], key: Mapping[str, Any]) -> str | None:
  """What is wrong with a single row; a missing rating is not."""
  if cells["sheet"] != key["sheet"]:
    return (
      f"the row belongs to sheet {cells['sheet']!r}, the key to {key['sheet']!r}; give the key "
      "that was made with the sheet"
    )
  if cells["rater"] not in key["raters"]:
    what = f"unknown rater {cells['rater']!r}" if cells["rater"] else "no rater"
    return f"{what}; the key has {', '.join(key['raters'])}"
  if cells["sample"] not in key["samples"]:
    return f"unknown sample {cells['sample']!r}; the key has no such id"
  if cells["rating"] and not re.fullmatch(r"[1-5](\.0*)?", cells["rating"]):
    return (
      f"the rating of sample {cells['sample']} is {cells['rating'][:20]!r}; it must be a whole "
      f"number from {statistics.LOWEST} to {statistics.HIGHEST}"
    )
  return None


def _read_export(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  """("path: row 3", the needed cells) of every row."""
  if path.suffix == ".json":
    page = _read_json(path)
    ratings = page.get("ratings")
    if not isinstance(ratings, list) or not all(isinstance(row, dict) for row in ratings):
      raise ValueError(
        f'{path}: not an export of the sheet, {{"sheet", "rater", "ratings": [{{"sample", '
        '"rating"}]}; download it from the sheet again'
      )
    rows: Iterable = (
      (f"{path}: rating {number}", page | row) for number, row in enumerate(ratings, start=1)
    )
  else:
    rows = sheets_lib.read_csv(path, needed=_NEEDED)
  for where, row in rows:
    yield where, {name: sheets_lib.cell_text(row.get(name)) for name in _NEEDED}
