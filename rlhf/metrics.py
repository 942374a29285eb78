"""Metrics from the device to JSONL, TensorBoard and the console; only process 0 writes.

`metrics.jsonl` has one object per line and one line per step, in order. Two runs of one config give
equal files except for wall-clock values: `time` and every key that starts with `time` or `perf/`. A
non-finite number is written as null, and the line's `nonfinite` object has its value ("nan", "inf"
or "-inf"), so that every line is valid JSON.
"""

import collections
import datetime
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, TextIO

import jax
import numpy as np
import rich.console
import rich.progress
import tensorboardX

from rlhf import processes, types, workdir

FILE = "metrics.jsonl"
_NONFINITE = "nonfinite"
_RATE_WINDOW = 50  # updates that a rate is averaged over
_SECONDS_BETWEEN_LINES = 10.0  # of progress, where the console is not a terminal


def summarise(metrics: Mapping[str, types.Metric | Any]) -> dict[str, float]:
  """Every metric's value as a Python float, after ONE transfer from the device.

  Args:
    metrics: name -> Metric or scalar (Python, numpy or jax).

  Returns:
    name -> total / weight, divided in float64, or the scalar; NaN where the weight is 0.
  """
  found = {}
  for name, metric in jax.device_get(dict(metrics)).items():
    total, weight = metric, 1.0
    if isinstance(metric, types.Metric):
      total, weight = metric.total, float(metric.weight)
    found[name] = float(total) / weight if weight else math.nan
  return found


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a metrics file; non-finite numbers are floats again.

  A half-written last line, which a killed process leaves, is ignored.

  Raises:
    ValueError: any other line is not a JSON object; names the file and the line.
  """
  path = pathlib.Path(path)
  return [_decode(path, number, line) for number, line in enumerate(_whole_lines(path), 1)]


class Writer:
  """Appends to `directory/metrics.jsonl` and to TensorBoard files in `directory/tensorboard`.

  On processes other than 0 every method does nothing.
  """

  def __init__(self, directory: str | os.PathLike):
    self._path = pathlib.Path(directory) / FILE
    self._active = processes.is_main()
    self._file: TextIO | None = None
    self._tensorboard: Any = None
    self._last_step = -1
    if self._active:
      self._path.parent.mkdir(parents=True, exist_ok=True)
      self.truncate_after(None)

  def truncate_after(self, step: int | None) -> None:
    """Removes what was written after `step`, from whose checkpoint the run resumes.

    Args:
      step: lines of later steps are removed, in one atomic step, and hidden in TensorBoard; -1
        removes all, None keeps all. A half-written last line is always removed.
    """
    if not self._active:
      return
    self.close()
    kept, self._last_step = [], -1
    lines = _whole_lines(self._path) if self._path.exists() else []
    for number, line in enumerate(lines, 1):
      line_step = _decode(self._path, number, line)["step"]
      if step is None or line_step <= step:
        kept.append(line + "\n")
        self._last_step = max(self._last_step, line_step)
    text = "".join(kept)
    if self._path.exists() and self._path.stat().st_size != len(text.encode("utf-8")):
      workdir.write_text(self._path, text)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes and flushes one line: {"step": ..., "time": ..., **metrics}.

    Args:
      step: later than every step of the file.
      metrics: name -> number, as `summarise` returns; wall-clock values start with `time` or
        `perf/`.

    Raises:
      ValueError: the step is in the file already, or a metric is named `step`, `time` or
        `nonfinite`.
    """
    if not self._active:
      return
    if step <= self._last_step:
      raise ValueError(
        f"{self._path}: step {step} comes after step {self._last_step}; write each step once and "
        "in order, and call truncate_after when resuming"
      )
    taken = {"step", "time", _NONFINITE} & metrics.keys()
    if taken:
      raise ValueError(f"metric names {sorted(taken)} are reserved; choose other names")
    # Whole numbers stay whole, so that counts read as counts.
    numbers = {
      name: int(number) if isinstance(number, (int, np.integer)) else float(number)
      for name, number in metrics.items()
    }
    line: dict[str, Any] = {"step": int(step), "time": time.time()}
    line |= {name: number if math.isfinite(number) else None for name, number in numbers.items()}
    nonfinite = {name: str(number) for name, number in numbers.items() if not math.isfinite(number)}
    line |= {_NONFINITE: nonfinite} if nonfinite else {}
    if self._file is None:
      self._file = open(self._path, "a", encoding="utf-8")
      # purge_step hides what an interrupted run wrote after the checkpoint that this one resumes
      # from; the suffix keeps a run that is resumed within a second out of the same file.
      self._tensorboard = tensorboardX.SummaryWriter(
        str(self._path.parent / "tensorboard"),
        purge_step=self._last_step + 1,
        filename_suffix=f".{time.time_ns()}",
      )
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()
    self._last_step = step
    for name, number in numbers.items():
      self._tensorboard.add_scalar(name, number, step)

  def close(self) -> None:
    """Closes the files; `write` opens them again."""
    if self._file is not None:
      self._file.close()
      self._tensorboard.close()
    self._file = self._tensorboard = None

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *unused) -> None:
    self.close()


class Progress:
  """A stage's progress on the console: step, tokens/s, time left, a few numbers.

  On a terminal one line is redrawn in place; elsewhere a plain line is printed now and then.
  Processes other than 0 print nothing. Use as a context manager.
  """

  def __init__(self, stage: str, total: int, *, start: int = 0):
    """
    Args:
      stage: name shown.
      total: the step at which the stage is done.
      start: the first step, when resumed.
    """
    self._stage, self._total, self._active = stage, total, processes.is_main()
    self._console = rich.console.Console(highlight=False)
    # (clock, step, tokens so far); the first step, which compiles, does not enter the rates.
    self._history: collections.deque[tuple] = collections.deque(maxlen=_RATE_WINDOW)
    self._step, self._num_tokens, self._last_line = start, 0, -math.inf
    self._bar: rich.progress.Progress | None = None

  def __enter__(self) -> "Progress":
    if self._active and self._console.is_terminal:
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[text]}", markup=False),
        console=self._console,
      )
      self._bar.add_task(self._stage, total=self._total, completed=self._step, text="")
      self._bar.start()
    return self

  def __exit__(self, *unused) -> None:
    if self._bar is not None:
      self._bar.stop()
      self._bar = None

  @property
  def tokens_per_second(self) -> float:
    """Over the last updates; NaN before the second."""
    return self._rate(2)

  @property
  def seconds_left(self) -> float:
    """At the pace of the last updates; NaN before the second."""
    pace = self._rate(1)
    return (self._total - self._step) / pace if pace > 0 else math.nan

  def update(self, step: int, numbers: Mapping[str, float], *, num_tokens: int) -> None:
    """Shows that `step` is done.

    Args:
      step: steps done so far.
      numbers: name -> value, the few to show, in order.
      num_tokens: consumed since the last update.
    """
    self._step, self._num_tokens = step, self._num_tokens + num_tokens
    now = time.monotonic()
    self._history.append((now, step, self._num_tokens))
    if not self._active:
      return
    shown = "  ".join(f"{name} {number:.4g}" for name, number in numbers.items())
    text = f"{self._left()}  {shown}".rstrip()
    if self._bar is not None:
      self._bar.update(self._bar.task_ids[0], completed=step, text=text)
    elif now - self._last_line >= _SECONDS_BETWEEN_LINES or step >= self._total:
      self._last_line = now
      self.note(f"{self._stage}  {step}/{self._total}  {text}")

  def note(self, text: str) -> None:
    """Prints a line that stays."""
    if self._active:
      self._console.print(text, markup=False, soft_wrap=True)

  def _rate(self, column: int) -> float:
    if len(self._history) < 2:
      return math.nan
    first, last = self._history[0], self._history[-1]
    seconds = last[0] - first[0]
    return (last[column] - first[column]) / seconds if seconds > 0 else math.nan

  def _left(self) -> str:
    if not math.isfinite(self.tokens_per_second + self.seconds_left):
      return "starting"
    # A stage that counts no tokens has no rate of them to show.
    rate = f"{self.tokens_per_second:,.0f} tokens/s  " if self._num_tokens else ""
    return f"{rate}{datetime.timedelta(seconds=round(self.seconds_left))} left"


def _decode(path: pathlib.Path, number: int, line: str) -> dict[str, Any]:
  try:
    decoded = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}:{number}: not JSON ({error.msg}); delete the line") from None
  if not isinstance(decoded, dict) or "step" not in decoded:
    raise ValueError(f"{path}:{number}: no object with a step; delete the line")
  nonfinite = decoded.pop(_NONFINITE, {})
  return decoded | {name: float(text) for name, text in nonfinite.items()}


def _whole_lines(path: pathlib.Path) -> list[str]:
  """Lines that end in a newline: a line without one was cut off by a kill."""
  return path.read_text(encoding="utf-8").split("\n")[:-1]
