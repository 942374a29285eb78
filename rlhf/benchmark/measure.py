"""Clocks, memory, and the spread of repeated numbers; nothing here imports jax or torch.

Own CPU seconds are the user and system time of a process and all its threads
(`time.process_time`): what other programs do on the machine does not count, except for the caches
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
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR = pathlib.Path("/proc/self/clear_refs")


def num_cores() -> int:
  """Cores that this process may run on."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def timed(function: Callable[[], Any]) -> tuple[Any, float, float]:
  """(what it returns, seconds, own CPU seconds)."""
  wall, cpu = time.perf_counter(), time.process_time()
  found = function()
  return found, time.perf_counter() - wall, time.process_time() - cpu


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
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def spread(numbers: Iterable[float]) -> dict[str, Any]:
  """The median and the range of numbers."""
  found = list(numbers)
  return dict(median=statistics.median(found), low=min(found), high=max(found))


def ratios(first: Iterable[float], second: Iterable[float]) -> dict[str, Any]:
  """`first` divided by `second`, pair by pair, with their median and range."""
  pairs = [a / b for a, b in zip(first, second, strict=True)]
  return spread(pairs) | dict(pairs=pairs)
