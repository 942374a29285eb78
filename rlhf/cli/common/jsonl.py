"""JSONL into the commands: a bad line is named by path:line, or skipped and counted."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from rlhf.data import formats, records
from rlhf.data.records import Problem


def split_format(spec: str) -> tuple[str, str]:
  """(format, path) of FORMAT:PATH; the format is jsonl where none is named."""
  name, colon, path = spec.partition(":")
  return (name, path) if colon and name in formats.FORMATS else ("jsonl", spec)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """An object of a JSONL file and where it stands, "path:line"."""

  where: str
  fields: dict[str, Any]


class Reader:
  """Reads lines and counts those that are skipped."""

  def __init__(self, path: str, on_bad: str):
    self.path, self._on_bad = path, on_bad
    self.counts: dict[str, int] = {"kept": 0}

  def read(self, check: Callable[[Any], None]) -> list[Line]:
    """The good lines, of whose values `check` raises no `Problem`.

    Raises:
      ValueError: the file cannot be read, has a bad line (unless those are skipped), or no line.
    """
    lines = []
    for where, text in records.read_lines(pathlib.Path(self.path)):
      try:
        value = records.parse_json(text)
        check(value)
        lines.append(Line(where=where, fields=value))
      except Problem as problem:
        self.skip(where, problem)
    return self.keep(lines)

  def skip(self, where: str, problem: Problem) -> None:
    """Raises ValueError with the problem, or counts it."""
    if self._on_bad == "stop":
      raise ValueError(f"{where}: {problem}")
    name = f"skipped ({problem.reason})"
    self.counts[name] = self.counts.get(name, 0) + 1

  def keep(self, lines: list[Line]) -> list[Line]:
    """Counts the lines that go on, of which there must be one."""
    self.counts["kept"] = len(lines)
    if not lines:
      raise ValueError(
        f"{self.path} has no usable line ({self.describe()}); give a file with at least one"
      )
    return lines

  def describe(self) -> str:
    """One line for the console."""
    return records.describe_counts("lines", self.counts)
