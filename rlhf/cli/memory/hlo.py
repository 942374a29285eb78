"""Collectives in a compiled program's text: what kinds, how many bytes, how often."""

import collections
import math
import re

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(r"= (.*?) (%s)(-start)?\(" % "|".join(KINDS))
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|"
  r"(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_WHILE = re.compile(r"while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_CONSTANT = re.compile(r"s32\[\](?:\{[^}]*\})? constant\((\d+)\)")
_SHAPE = re.compile(r"\b(pred|bf16|[fsu](?:8|16|32|64))\[([\d,]*)\]")


def collectives(text: str) -> dict[str, dict[str, float]]:
  """Bytes and calls of each kind of collective on one device, for one run of the program.

  What stands in a loop counts as often as the loop runs: from the compiler's own count, else from
  the bound that the loop's condition compares with.  Loops that may end early (sampling) count in
  full.  A collective's bytes are those of its result.
  """
  computations, entry = _split(text)
  totals: dict[str, dict[str, float]] = collections.defaultdict(
    lambda: {"bytes": 0.0, "calls": 0.0}
  )
  _walk(computations, entry, 1.0, totals, ())
  return {kind: dict(totals[kind]) for kind in KINDS if kind in totals}


def _split(text: str) -> tuple[dict[str, list[str]], str]:
  """{computation: its lines}, and the entry's name."""
  computations: dict[str, list[str]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if line and not line[0].isspace():
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header.group(1), [])
        if line.startswith("ENTRY"):
          entry = header.group(1)
    elif current is not None:
      current.append(line)
  return computations, entry


def _walk(computations, name: str, times: float, totals, above: tuple[str, ...]) -> None:
  if name not in computations or name in above:
    return

  def count(kind: str, result: str, started: bool = False) -> None:
    totals[kind]["bytes"] += times * _result_bytes(result, kind, started)
    totals[kind]["calls"] += times

  for line in computations[name]:
    found = _COLLECTIVE.search(line)
    if found:
      count(found.group(2), found.group(1), bool(found.group(3)))
      continue
    loop = _WHILE.search(line)
    if loop:
      trips = _trip_count(line, computations, loop.group(1))
      _walk(computations, loop.group(2), times * trips, totals, (*above, name))
      continue
    if "async-done(" in line or "async-update(" in line:
      continue  # what was started is counted where it starts
    for called in _CALLED.finditer(line):
      for inner in (called.group(1) or called.group(2)).split(","):
        inner = inner.strip().lstrip("%")
        if inner.startswith("all-reduce-scatter"):  # a TPU's fused reduce-scatter
          count("reduce-scatter", line.split("= ", 1)[1].split(" fusion(")[0])
        else:
          _walk(computations, inner, times, totals, (*above, name))


def _trip_count(line: str, computations, condition: str) -> int:
  known = _TRIPS.search(line)
  if known:
    return int(known.group(1))
  bounds = [
    int(number) for text in computations.get(condition, ()) for number in _CONSTANT.findall(text)
  ]
  return max(bounds, default=1)


def _result_bytes(text: str, kind: str, started: bool) -> int:
  """Bytes of the result type that `text` begins with.

  A started collective's type is (operands, results), but an all-reduce's, which is its results.
  """
  shapes = _SHAPE.findall(text)
  if started and kind != "all-reduce":
    shapes = [shape for shape in shapes if shape[1] or shape[0] != "u32"]  # a permute's context
    shapes = shapes[len(shapes) // 2 :]
  return sum(_size(*shape) for shape in shapes)


def _size(dtype: str, dims: str) -> int:
  num_bytes = 1 if dtype == "pred" else int(dtype.lstrip("bfsu")) // 8
  return num_bytes * math.prod(int(dim) for dim in dims.split(",") if dim)
