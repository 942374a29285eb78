"""Files that people rate in: CSV that any spreadsheet opens, and what comes back as CSV or JSON.

The replies of services that judge are kept as JSON lines too, in a cache.
"""

import csv
import io
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.data import records


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
  """A CSV file with a header; a missing cell is empty.

  The byte order mark tells spreadsheets that it is UTF-8, and no cell is read as a formula, which a
  model may have written.
  """
  out = io.StringIO(newline="")
  # Line ends "\r\n" are needed so that texts with either character are quoted.
  writer = csv.writer(out)
  writer.writerow(columns)
  for row in rows:
    cells = [row.get(name, "") for name in columns]
    writer.writerow([f"'{cell}" if cell.startswith(_FORMULA) else cell for cell in cells])
  return "\ufeff" + out.getvalue()


_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def read_csv(
  path: str | pathlib.Path, *, needed: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
  """("path: row 3", column -> stripped cell) of every row that is not blank.

  Rows count as in a spreadsheet.  Some spreadsheets separate by semicolon or tab, change the case
  of the header, or drop empty cells at the end of a row.

  Args:
    needed: columns that the header must have.

  Raises:
    ValueError: names the row that is not CSV, or the column that is missing or appears twice.
  """
  try:
    text = records.read_bytes(pathlib.Path(path)).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from None
  separator = max(",;\t", key=text.partition("\n")[0].count)
  rows: list[list[str]] = []
  try:
    for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
      rows.append([cell.strip() for cell in cells])
  except csv.Error as error:
    raise ValueError(
      f"{path}: row {len(rows) + 1}: not CSV ({error}); save the sheet as CSV again"
    ) from None
  header = [cell.lower() for cell in rows[0]] if rows else []
  missing = [name for name in needed if name not in header]
  twice = [name for name in header if name and header.count(name) > 1]
  if missing or twice:
    what = f"no column {missing[0]!r}" if missing else f"two columns {twice[0]!r}"
    raise ValueError(
      f"{path}: row 1: {what}; the header must have {', '.join(needed) or 'each once'}"
    )
  for number, cells in enumerate(rows[1:], start=2):
    where = f"{path}: row {number}"
    if any(cells[len(header) :]):
      raise ValueError(
        f"{where}: {len(cells)} cells under {len(header)} columns; use one per column"
      )
    if any(cells):
      yield where, dict(itertools.zip_longest(header, cells[: len(header)], fillvalue=""))


def read_objects(
  path: str | pathlib.Path, fields: Mapping[str, type] | None = None, remedy: str = ""
) -> Iterator[tuple[str, Any]]:
  """("path:line", value) of every line of a JSONL file.

  Args:
    fields: the type of each field that a line must have; `object` is any.  None takes any JSON.
    remedy: what to do about a line without them, for the message.

  Raises:
    ValueError: names the line that is not JSON, or whose fields are missing or of another type.
  """
  for where, line in records.read_lines(pathlib.Path(path)):
    try:
      value = records.parse_json(line)
    except records.Problem as problem:
      raise ValueError(f"{where}: {problem}{f'; {remedy}' if remedy else ''}") from None
    if fields is not None and not isinstance(value, dict):
      raise ValueError(f"{where}: found {type(value).__name__}, not an object; {remedy}")
    for name, kind in ({} if fields is None else fields).items():
      if name not in value:
        raise ValueError(f'{where}: no field "{name}"; {remedy}')
      if kind is not object and type(value[name]) is not kind:
        raise ValueError(
          f'{where}: "{name}" is {value[name]!r}, which is no {kind.__name__}; {remedy}'
        )
    yield where, value


def read_cache(path: pathlib.Path, fields: Mapping[str, type], remedy: str) -> list[dict[str, Any]]:
  """The lines of a cache.  Cuts off a last line that a killed run left incomplete.

  Raises:
    ValueError: as `read_objects`, at another line.
  """
  if not path.exists():
    return []
  complete, _, rest = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
  if rest:
    workdir_lib.write_text(path, complete + "\n" if complete else "")
  return [line for _, line in read_objects(path, fields, remedy)]


def append_to_cache(path: pathlib.Path, line: Mapping[str, Any]) -> None:
  """Adds a line; creates the file with its directory where missing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(line) + "\n")  # ASCII can hold any text that JSON can


def cell_text(value: Any) -> str:
  """A JSON value as a CSV cell: "" for null, yes or no for booleans."""
  if value is None:
    return ""
  if isinstance(value, bool):
    return "yes" if value else "no"
  return value.strip() if isinstance(value, str) else json.dumps(value)
