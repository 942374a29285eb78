"""The rating sheet: what people rate, blind, and what they hand in.

`make` turns sampled answers into one page per rater, a file without any network that a browser
opens, and the same sheet as CSV for a spreadsheet.  Samples have opaque ids and an order of each
rater's own; neither says which model an answer is from.  That is in the key, which raters must not
see.  `read` takes what was handed in, with the key, to the rows of `palms.statistics`.

PALMS had three raters for every sample, who rated from 1 to 5 how well it matches the stated
position (arXiv:2106.10328).
"""

import collections
import csv
import dataclasses
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.data import records
from rlhf.palms import sets, statistics

KEY = "key.json"
_MODEL_FIELDS = ("model", "kind", "size", "seed", "category", "probe", "sample")
_ANSWER_FIELDS = {
  "model": "a text",
  "kind": "a text",
  "size": "a number",
  "seed": "a whole number",
  "category": "a text",
  "probe": "a whole number or a text",
  "sample": "a whole number or a text",
  "prompt": "a text",
}
_COLUMNS = ("sheet", "rater", "sample", "category", "position", "question", "answer", "rating")
_NEEDED = ("sheet", "rater", "sample", "rating")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SheetConfig:
  """Who rates.

  Attributes:
    raters: names that stand on the sheets and in their files' names.
    seed: of the ids and the orders, with all that is shown and all that is hidden.
  """

  raters: tuple[str, ...] = ("rater_1", "rater_2", "rater_3")
  seed: int = 0

  def __post_init__(self):
    if not self.raters or len(set(self.raters)) < len(self.raters):
      raise ValueError(f"raters {list(self.raters)}; give each a name of their own")
    for name in self.raters:
      # "01" would come back from a spreadsheet as 1.
      if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", name):
        raise ValueError(
          f"rater {name!r} cannot name a file and a spreadsheet's cell; use a "
          "letter and then letters, digits and ._-"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sheets:
  """What `make` gives.

  Attributes:
    key: {"sheet", "raters", "samples": {id: {"model", "kind", "size", "seed", "category", "probe",
      "sample"}}}.
    pages, tables: rater -> HTML, CSV.
  """

  key: dict[str, Any]
  pages: dict[str, str]
  tables: dict[str, str]


# ----------------------------------------------------------------------------- to the raters


def read_answers(path: str | pathlib.Path, values: sets.ValueSet) -> list[dict[str, Any]]:
  """Answers to rate, one object a line: `statistics`' fields of a model and its sample, and

      {..., "prompt": question, "answer": str}

  Raises:
    ValueError: the file cannot be read, or a line is bad, doubled or of an unknown category; names
      it.
  """
  answers, seen = [], {}
  for where, line in records.read_lines(pathlib.Path(path)):
    value, problem = records.parse_json(line)
    if problem is not None:
      raise ValueError(f"{where}: {problem.message}")
    statistics.check_fields(where, value, _ANSWER_FIELDS, "an answer")
    statistics.check_model(where, value)
    if not isinstance(value.get("answer"), str):
      raise ValueError(f'{where}: no text under "answer"; an empty answer is ""')
    try:
      values.category(value["category"])
    except ValueError as error:
      raise ValueError(f"{where}: {error}") from error
    key = tuple(value[name] for name in _MODEL_FIELDS)
    if key in seen:
      raise ValueError(
        f"{where}: sample {value['sample']} of probe {value['probe']} by "
        f"{value['model']} is already in {seen[key]}; leave one out"
      )
    seen[key] = where
    answers.append(value)
  if not answers:
    raise ValueError(f"{path} holds no answer; give one JSON object a line")
  return answers


def make(answers: Sequence[Mapping[str, Any]], values: sets.ValueSet, p: SheetConfig) -> Sheets:
  """Blind sheets of the answers, one per rater, and the key to them.

  Args:
    answers: as `read_answers` gives them.
    values: with the position of every category.
  """
  content = json.dumps(
    [
      p.seed,
      p.raters,
      values.title,
      [[dict(answer), _shown(answer, values)] for answer in answers],
    ],
    sort_keys=True,
  )
  digest = hashlib.sha256(content.encode()).hexdigest()
  # Of all that is shown and hidden: who knows the key of one sheet knows nothing of the next.
  rng = np.random.default_rng(int(digest, 16))
  # A letter first: a spreadsheet would take 12e5 for a number.
  sheet = f"r{digest[:11]}"
  ids = [f"s{number:06x}" for number in rng.choice(16**6, size=len(answers), replace=False)]
  items = [dict(id=id_, **_shown(answer, values)) for id_, answer in zip(ids, answers, strict=True)]
  pages, tables = {}, {}
  for rater in p.raters:
    ordered = [items[index] for index in rng.permutation(len(items))]
    data = dict(sheet=sheet, rater=rater, title=values.title, items=ordered)
    pages[rater] = _template().render(data=data)
    tables[rater] = _table(data)
  samples = {
    id_: {name: answer[name] for name in _MODEL_FIELDS}
    for id_, answer in sorted(zip(ids, answers, strict=True), key=lambda pair: pair[0])
  }
  return Sheets(
    key=dict(sheet=sheet, raters=list(p.raters), samples=samples), pages=pages, tables=tables
  )


def write(sheets: Sheets, directory: str | pathlib.Path) -> None:
  """Writes `sheets/RATER.html` and `.csv` for the raters, and last the key beside that folder."""
  directory = pathlib.Path(directory)
  for rater, page in sheets.pages.items():
    workdir_lib.write_text(directory / "sheets" / f"{rater}.html", page)
    # The byte order mark is how spreadsheets know UTF-8.
    workdir_lib.write_text(directory / "sheets" / f"{rater}.csv", "\ufeff" + sheets.tables[rater])
  workdir_lib.write_json(directory / KEY, sheets.key)


def _shown(answer: Mapping[str, Any], values: sets.ValueSet) -> dict[str, str]:
  """What a rater reads."""
  category = values.category(answer["category"])
  return dict(
    title=category.title,
    position=category.position,
    prompt=answer["prompt"],
    answer=answer["answer"],
  )


def _template() -> jinja2.Template:
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template("sheet.html")


def _table(data: Mapping[str, Any]) -> str:
  out = io.StringIO()
  # Its line ends, "\r\n", are what makes it quote texts with either of them.
  writer = csv.writer(out)
  writer.writerow(_COLUMNS)
  for item in data["items"]:
    writer.writerow(
      [
        data["sheet"],
        data["rater"],
        item["id"],
        *(_as_text(item[name]) for name in ("title", "position", "prompt", "answer")),
        "",
      ]
    )
  return out.getvalue()


def _as_text(text: str) -> str:
  """A cell that no spreadsheet takes for a formula: a model may have written one."""
  return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


# ----------------------------------------------------------------------------- from the raters


def read_key(path: str | pathlib.Path) -> dict[str, Any]:
  """The key that `write` wrote.

  Raises:
    ValueError: it is not there, or is no key.
  """
  path = pathlib.Path(path)
  value, problem = records.parse_json(records.read_bytes(path))
  if (
    problem is not None
    or not isinstance(value, dict)
    or not ({"sheet", "raters", "samples"} <= set(value))
  ):
    raise ValueError(
      f"{path} is no key of a rating sheet; name the {KEY} that was written beside the sheets"
    )
  return value


@dataclasses.dataclass(frozen=True, kw_only=True)
class HandedIn:
  """What the raters gave.

  Attributes:
    rows: of `palms.statistics`, of all that is well.
    problems: one sentence each, with the file and the row: nothing may be believed before they are
      mended.
    missing: one sentence for each rater who has not rated everything; it is for the reader to say
      whether the rest will do.
  """

  rows: list[dict[str, Any]]
  problems: list[str]
  missing: list[str]


def find_exports(names: Iterable[str]) -> list[pathlib.Path]:
  """The CSV and JSON files among the names, those of a directory included.

  Raises:
    ValueError: a name is neither, or a directory holds none.
  """
  found = []
  for name in names:
    path = pathlib.Path(name)
    if path.is_dir():
      inside = sorted(
        file for file in path.iterdir() if file.suffix in (".csv", ".json") and file.name != KEY
      )
      if not inside:
        raise ValueError(
          f"{name} holds no .csv or .json file; name a directory of files that the raters handed in"
        )
      found += inside
    elif path.suffix in (".csv", ".json") and path.is_file():
      found.append(path)
    else:
      raise ValueError(f"{name} is no .csv or .json file; name what the raters handed in")
  return found


def read(paths: Sequence[pathlib.Path], key: Mapping[str, Any]) -> HandedIn:
  """Joins what was handed in with the key.

  Problems are a row without a rater or a rating, a rating outside 1 to 5, a sample or a rater that
  the key does not know, a row of another sheet, and a sample that one rater rated twice.

  Raises:
    ValueError: a file cannot be read as what its name says.
  """
  rows, problems = [], []
  rated: dict[tuple[str, str], str] = {}
  blank: dict[tuple[str, str], str] = {}
  for path in paths:
    for where, fields in _read_export(path):
      message = _problem(fields, key)
      pair = fields["rater"], fields["sample"]
      if message is None and not fields["rating"]:
        blank.setdefault(pair, where)
        continue
      if message is None and pair in rated:
        message = f"sample {pair[1]} is rated twice by {pair[0]}, first in {rated[pair]}; keep one"
      if message is None:
        rated[pair] = where
        rows.append(
          {**key["samples"][pair[1]], "rater": pair[0], "rating": round(float(fields["rating"]))}
        )
      else:
        problems.append(f"{where}: {message}")
  return HandedIn(rows=rows, problems=problems, missing=_missing(key, rated, blank))


def _problem(fields: Mapping[str, str], key: Mapping[str, Any]) -> str | None:
  """What is wrong with a row by itself; that it has no rating yet is not."""
  if fields["sheet"] != key["sheet"]:
    return (
      f"the row belongs to sheet {fields['sheet']!r}, the key to {key['sheet']!r}; give the "
      "key that was made with the sheet"
    )
  if not fields["rater"]:
    return f"no rater; it must be one of {', '.join(key['raters'])}"
  if fields["rater"] not in key["raters"]:
    return f"unknown rater {fields['rater']!r}; the key has {', '.join(key['raters'])}"
  if fields["sample"] not in key["samples"]:
    return f"unknown sample {fields['sample']!r}; the key has none of this id"
  if fields["rating"] and not re.fullmatch(r"[1-5](\.0*)?", fields["rating"]):
    return (
      f"the rating of sample {fields['sample']} is {fields['rating'][:20]!r}; it must be a "
      f"whole number from {statistics.LOWEST} to {statistics.HIGHEST}"
    )
  return None


def _missing(
  key: Mapping[str, Any], rated: Mapping[tuple[str, str], str], blank: Mapping[tuple[str, str], str]
) -> list[str]:
  """One sentence for each rater with gaps, which names the first."""
  found = []
  for rater in key["raters"]:
    pairs = [(rater, sample) for sample in key["samples"] if (rater, sample) not in rated]
    in_file = [pair for pair in pairs if pair in blank]
    if len(pairs) == len(key["samples"]):
      found.append(f"{rater} has handed in no rating; {len(pairs)} are missing")
    elif in_file:
      found.append(
        f"{blank[in_file[0]]}: no rating of sample {in_file[0][1]} by {rater}; "
        f"{_in_all(len(pairs))}"
      )
    elif pairs:
      found.append(f"{rater} has not rated sample {pairs[0][1]}; {_in_all(len(pairs))}")
  return found


def _in_all(count: int) -> str:
  return "it is the only one missing" if count == 1 else f"{count} are missing in all"


def _read_export(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  """("path: row 3", the four fields as text) of every row."""
  return _read_json(path) if path.suffix == ".json" else _read_csv(path)


def _read_json(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  value, problem = records.parse_json(records.read_bytes(path))
  if (
    problem is not None
    or not isinstance(value, dict)
    or (
      not isinstance(value.get("ratings"), list)
      or not all(isinstance(row, dict) for row in value["ratings"])
    )
  ):
    raise ValueError(
      f'{path}: not what the sheet exports, {{"sheet", "rater", "ratings": '
      '[{"sample", "rating"}]}; download it from the sheet again'
    )

  def text(holder: Mapping[str, Any], name: str) -> str:
    found = holder.get(name)
    return "" if found is None else str(found).strip()

  return [
    (
      f"{path}: rating {number}",
      dict(
        sheet=text(value, "sheet"),
        rater=text(value, "rater"),
        sample=text(row, "sample"),
        rating=text(row, "rating"),
      ),
    )
    for number, row in enumerate(value["ratings"], start=1)
  ]


def _read_csv(path: pathlib.Path) -> list[tuple[str, dict[str, str]]]:
  try:
    text = records.read_bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8"
    ) from error
  header = text.partition("\n")[0]
  separator = max(",;\t", key=header.count)  # spreadsheets of some countries write ;
  try:
    lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
  except csv.Error as error:
    raise ValueError(f"{path} is not CSV ({error}); save it as CSV again") from error
  names = [name.strip().lower() for name in lines[0]] if lines else []
  missing = [name for name in _NEEDED if name not in names]
  doubled = [name for name, count in collections.Counter(names).items() if count > 1 and name]
  if missing or doubled:
    what = f"no column {missing[0]!r}" if missing else f"two columns {doubled[0]!r}"
    raise ValueError(f"{path}: {what} in its first row; it must have {', '.join(_NEEDED)}")
  found = []
  for number, cells in enumerate(lines[1:], start=2):
    if any(cell.strip() for cell in cells):
      cells = [*cells, *[""] * (len(names) - len(cells))]
      found.append(
        (f"{path}: row {number}", {name: cells[names.index(name)].strip() for name in _NEEDED})
      )
  return found
