"""What all report pages share: templates, and how numbers are written."""

import functools
import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2

from rlhf.report import figures
from rlhf.report.figures import GROUP_LABELS, Cell


@functools.cache
def _environment() -> jinja2.Environment:
  """Templates next to this file; in pages everything that is not marked safe is escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    autoescape=jinja2.select_autoescape(disabled_extensions=("txt", "md"), default=True),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    percent=percent,
    number=number,
    points=points,
    range=percent_range,
    label=figures.label,
    count=lambda value: f"{value:,}",
    columns=columns,
  )
  environment.globals.update(models=figures.models(), groups=GROUP_LABELS)
  return environment


def render(name: str, **values: Any) -> str:
  """A page or text from a template of this package."""
  return _environment().get_template(name).render(**values)


def paragraphs(name: str, **values: Any) -> list[str]:
  """The paragraphs of a text, each on one line."""
  found = re.split(r"\n\s*\n", render(name, **values).strip())
  return [re.sub(r"[ \n]+", " ", paragraph.strip()) for paragraph in found if paragraph.strip()]


def columns(rows: Iterable[Mapping[str, Any] | None]) -> list[str]:
  """Keys of all rows, in the order of their first appearance."""
  return list(dict.fromkeys(key for row in rows if row is not None for key in row))


def minus(text: str) -> str:
  """A true minus sign, and no minus before a number that rounds to zero."""
  if text.startswith("-") and not text.strip("-0."):
    text = text[1:]
  return text.replace("-", "\u2212")


def number(value: float, digits: int = 3) -> str:
  return minus(f"{value:.{digits}f}")


def percent(value: float, digits: int = 1) -> str:
  """A share as a percentage."""
  return number(100 * value, digits) + "\u202f%"  # narrow no-break space


def percent_range(cell: Cell, digits: int = 1) -> str:
  low, high = (number(100 * cell[end], digits) for end in ("low", "high"))
  return f"{low} to {high}\u202f%"


def points(value: float) -> str:
  """A difference of shares in percentage points, with its sign."""
  return ("+" if 100 * value >= 0.05 else "") + number(100 * value, 1)


def interval(cell: Cell) -> str:
  """An interval of shares in one table cell."""
  return f"{percent(cell['mean'])} [{percent_range(cell)}]"


def points_interval(cell: Cell) -> str:
  """An interval of differences, in percentage points, in one table cell."""
  return f"{points(cell['mean'])} [{points(cell['low'])} to {points(cell['high'])}]"


def short(value: float) -> str:
  """Three significant digits, with a true minus sign."""
  if value == 0 or not math.isfinite(value):
    return f"{value:g}"
  digits = max(0, 2 - math.floor(math.log10(abs(value))))
  return f"{value:.{min(digits, 4)}f}".replace("-", "\u2212")


def short_interval(cell: Cell | None, signed: bool = False) -> str:
  """A mean with its interval; a difference is signed."""
  if cell is None:
    return "\u2013"
  mean, low, high = (
    ("+" if signed and cell[end] > 0 else "") + short(cell[end]) for end in ("mean", "low", "high")
  )
  return f"{mean} [{low}, {high}]"
