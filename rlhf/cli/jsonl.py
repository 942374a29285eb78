"""JSONL in and out of the commands: bad lines by path:line, output whole or not at all."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.data import records
from rlhf.data.records import Problem

ON_BAD = ("stop", "skip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """An object of a JSONL file and where it stands, "path:line"."""

  where: str
  fields: dict[str, Any]


class Reader:
  """Reads lines and counts those that were skipped; `on_bad` as in the data fields of a config."""

  def __init__(self, path: str, on_bad: str):
    self.path, self._on_bad = path, on_bad
    self.counts: dict[str, int] = {"kept": 0}

  def read(self, find_problem: Callable[[Any], Problem | None]) -> list[Line]:
    """The good lines.

    Raises:
      ValueError: the file cannot be read, has a bad line (unless those are skipped), or no line.
    """
    lines = []
    for where, text in records.read_lines(pathlib.Path(self.path)):
      value, problem = records.parse_json(text)
      problem = find_problem(value) if problem is None else problem
      if problem is None:
        lines.append(Line(where=where, fields=value))
      else:
        self.skip(where, problem)
    return self.keep(lines)

  def skip(self, where: str, problem: Problem) -> None:
    """Raises ValueError with the problem, or counts it."""
    if self._on_bad == "stop":
      raise ValueError(f"{where}: {problem.message}")
    name = f"skipped ({problem.reason})"
    self.counts[name] = self.counts.get(name, 0) + 1

  def keep(self, lines: list[Line]) -> list[Line]:
    """The lines that go on; at least one."""
    self.counts["kept"] = len(lines)
    if not lines:
      raise ValueError(
        f"{self.path} gave nothing ({self.describe()}); give a file with at least one good line"
      )
    return lines

  def describe(self) -> str:
    """One line for the console."""
    return records.describe_counts("lines", self.counts)


def check_output(path: str | pathlib.Path, overwrite: bool, *, flag: str = "output") -> None:
  """Before any work: an output that is there stays, unless the user says otherwise.

  Raises:
    ValueError: it exists and `overwrite` is off, or is a directory.
  """
  output = pathlib.Path(path)
  if output.is_dir():
    raise ValueError(f"--{flag}={path} is a directory; name a file")
  if output.exists() and not overwrite:
    raise ValueError(f"--{flag}={path} exists; name another file, or add --overwrite")


def write(path: str, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes every line, or no file."""
  workdir_lib.write_text(
    path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  )
