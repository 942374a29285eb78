"""A benchmark's report as a table for people."""

from typing import Any

GIB = 2**30
BUSY = 0.25  # of the cores, in programs that want to run


def describe(report: dict[str, Any]) -> str:
  """The table: one column per side, medians with their range."""
  sides = [("ours", report["ours"]), *report["peers"].items()]
  rows: list[tuple[str, ...]] = [("", *(name for name, _ in sides))]

  def add(title: str, cell) -> None:
    rows.append((title, *(cell(side) for _, side in sides)))

  add("seconds", lambda side: spread(side["wall_seconds"]))
  add("own CPU seconds", lambda side: spread(side["cpu_seconds"]))
  add("tokens/s", lambda side: spread(side["tokens_per_second"]))
  add("useful tokens/s", lambda side: spread(side["useful_tokens_per_second"]))
  for name in sides[0][1]["phases"]:
    add(f"seconds of {name}", lambda side, name=name: spread(side["phases"].get(name)))
  for name, numbers in sides[0][1]["amount_per_second"].items():
    size, unit = (2**20, "MiB") if sides[0][1]["unit"] == "bytes" else (1, sides[0][1]["unit"])
    rows.append((f"{unit}/s of {name}", spread(numbers, size)))
  for name, peak in sides[0][1]["peak_host_bytes_of_phases"].items():
    rows.append((f"peak GiB of {name}", gib(peak)))
  add("GFLOP/s of the model", lambda side: spread(side["flops_per_second"], 1e9))
  add("share of the matmul", lambda side: share(side["share_of_matmul"]))
  add("share of the copy", lambda side: share(side["share_of_copy"]))
  add("peak GiB of the host", lambda side: gib(side["peak_host_bytes"]))
  add("peak GiB of a device", lambda side: gib(side["peak_device_bytes"]))
  add("seconds, it / ours", lambda side: spread(side.get("ratio_wall")))
  add("CPU seconds, it / ours", lambda side: spread(side.get("ratio_cpu")))
  dashes = [row for row in rows if set(row[1:]) == {"-"}]
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  lines = [
    "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))])
    for row in rows
    if row not in dashes
  ]
  return "\n".join([title(report), "", *lines, "", *ceilings(report), *busy(report)])


def title(report: dict[str, Any]) -> str:
  """What was measured, on what."""
  model, ours = report["model"], report["ours"]
  parts = [
    f"{report['pairs']} runs after {report['warm_ups']} to warm up",
    f"{ours['num_devices']} x {ours['device']}" if "device" in ours else "",
    f"{ours['num_cores']} cores",
  ]
  if model is not None:
    parts.insert(
      0,
      f"{model['parameters']:,} parameters ({model['num_layers']} layers of width "
      f"{model['width']}, vocabulary {model['vocab_size']:,}, {model['dtype']})",
    )
  return f"{report['case']}: {', '.join(filter(None, parts))}"


def ceilings(report: dict[str, Any]) -> list[str]:
  """A line with what the machine reached in the same run, where the case has ceilings."""
  found = report["ceilings"]
  if "matmul_flops_per_second" not in found:
    return []
  return [
    f"ceilings of this machine: matmul {found['matmul_flops_per_second'] / 1e9:.4g} GFLOP/s in "
    f"float32, copy {found['copy_bytes_per_second'] / GIB:.3g} GiB/s"
  ]


def busy(report: dict[str, Any]) -> list[str]:
  """A line where other programs kept a fair share of the machine busy before the benchmark."""
  load, cores = report["load_before"], report["ours"]["num_cores"]
  if load is None or load < BUSY * cores:
    return []
  return [
    f"the machine was busy: a load of {load:.1f} on {cores} cores before the first run; seconds and "
    "ratios are of little worth, and threads that spin while they wait take CPU seconds"
  ]


def spread(numbers: dict[str, float] | None, unit: float = 1.0) -> str:
  """`median (low to high)`."""
  if numbers is None:
    return "-"
  median, low, high = (f"{numbers[name] / unit:.4g}" for name in ("median", "low", "high"))
  return f"{median} ({low} to {high})"


def share(number: float | None) -> str:
  return "-" if number is None else f"{number:.0%}"


def gib(number: int | None) -> str:
  return "-" if number is None else f"{number / GIB:.2f}"
