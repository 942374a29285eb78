"""Clocks, memory, and the spread of repeated numbers; nothing here imports jax or torch.

Own CPU seconds are the user and system time of a process and all its threads
(`time.process_time`), and of programs that it starts and waits for: what other programs do on the machine does not count, except for the caches
and the clock frequency that are shared with them.
"""

import contextlib
import ctypes
import gc
import os
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def num_cores() -> int:
  """Cores that this process may run on."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_seconds() -> float:
  """Of this process and its threads, and of the programs that it started and waited for."""
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + ended.ru_utime + ended.ru_stime


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
  """(what it returns, seconds, own CPU seconds)."""
  wall, cpu = time.perf_counter(), cpu_seconds()
  found = function()
  return found, time.perf_counter() - wall, cpu_seconds() - cpu


def run_program(words: list[str], **variables: str) -> tuple[float, int]:
  """(seconds, peak bytes of host memory) of a Python program; its output is dropped.

  Args:
    words: after the interpreter.
    variables: of its environment, beside those of this process.

  Raises:
    ValueError: it fails; what it said stands above.
  """
  began = time.perf_counter()
  program = subprocess.Popen(
    [sys.executable, *words], env=os.environ | variables, stdout=subprocess.DEVNULL
  )
  _, status, used = os.wait4(program.pid, 0)
  program.returncode = os.waitstatus_to_exitcode(status)
  if program.returncode:
    raise ValueError(f"`python {' '.join(words)[:60]}` ended with status {program.returncode}")
  return time.perf_counter() - began, _in_bytes(used.ru_maxrss)


def _in_bytes(peak: int) -> int:
  """`ru_maxrss` is in KiB, except for macOS."""
  return peak if sys.platform == "darwin" else peak * 1024


def load_average() -> float | None:
  """Programs that wanted to run in the last minute, this one among them; None where unknown."""
  return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def reset_peak() -> None:
  """Starts the process's peak memory anew at what it holds now, where the system can."""
  gc.collect()
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).malloc_trim(0)  # what was freed since the start goes back to the system
  try:
    _CLEAR.write_text("5")
  except OSError:
    pass


def peak_bytes() -> int:
  """The largest resident memory of this process since `reset_peak`; elsewhere than on Linux, since
  it started."""
  if _STATUS.is_file():
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
    if found is not None:
      return int(found.group(1)) * 1024
  return _in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def spread(numbers: Iterable[float]) -> dict[str, Any]:
  """The median and the range of numbers."""
  found = list(numbers)
  return dict(median=statistics.median(found), low=min(found), high=max(found))


def ratios(first: Iterable[float], second: Iterable[float]) -> dict[str, Any]:
  """`first` divided by `second`, pair by pair, with their median and range."""
  pairs = [a / b for a, b in zip(first, second, strict=True)]
  return spread(pairs) | dict(pairs=pairs)
