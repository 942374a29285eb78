"""The plots of all report pages, each an inline SVG string, or None where there is nothing to plot.

Text stays text, so it takes the page's typeface and can be searched and copied.  Equal data give
equal bytes.  matplotlib is imported by the functions that draw, so that importing this module stays
cheap; no pyplot and no global state are touched.  The style is in report.mplstyle, names, colours
and markers of models are in models.yaml.
"""

import contextlib
import functools
import io
import itertools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

Cell = Mapping[str, float]  # an interval: mean, low, high
Points = Sequence[Mapping[str, Any]]

_FILES = pathlib.Path(__file__).parent
_OTHER_COLORS = ("#56b4e9", "#b8a600", "#8b5fbf", "#7a4b2a")
_INK, _MUTED, _GRID = "#1f2933", "#5f6b7a", "#e4e8ee"
_DASHED = dict(linewidth=1, linestyle=(0, (4, 3)))
_DOTTED = dict(linewidth=1, linestyle=(0, (2, 2)))
GROUP_LABELS = {"training_labelers": "training labelers", "heldout_labelers": "held-out labelers"}
_NATS = "loss (nats per token)"


# ----------------------------------------------------------------------------- models


@functools.cache
def models() -> dict[str, dict[str, str]]:
  """Model's key -> its label and, where it has one of its own, "color" and "marker"."""
  return yaml.safe_load((_FILES / "models.yaml").read_text(encoding="utf-8"))


def label(model: str) -> str:
  """The name a reader sees for a model's key, or for METHOD@SIZE."""
  if "@" in model:
    method, _, size = model.partition("@")
    return f"{label(method)} {size}"
  return models()[model]["label"] if model in models() else model.replace("_", " ")


def _colors(names: Sequence[str]) -> dict[str, str]:
  others = itertools.cycle(_OTHER_COLORS)
  return {name: models().get(name, {}).get("color") or next(others) for name in names}


def _marker(name: str) -> str:
  return models().get(name, {}).get("marker", "o")


def _pale(color: str) -> str:
  """The colour mixed with white; unlike transparency it hides the grid behind it."""
  mixed = [round(0.36 * int(color[i : i + 2], 16) + 0.64 * 255) for i in (1, 3, 5)]
  return "#" + "".join(f"{channel:02x}" for channel in mixed)


# ----------------------------------------------------------------------------- what all share


@contextlib.contextmanager
def _style() -> Iterator[None]:
  import matplotlib

  with matplotlib.rc_context(fname=_FILES / "report.mplstyle"):
    yield


def _axes(width: float = 5.2, height: float = 3.1) -> Any:
  return _panels(1, width, height)[0]


def _panels(num: int, width: float, height: float) -> np.ndarray:
  """[num] axes above one another, which share their x axis."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  return figure.subplots(num, squeeze=False, sharex=True)[:, 0]


def _svg(axes, name: str) -> str:
  """The SVG element of the axes' figure, as wide as its place, its ids prefixed by `name`."""
  buffer = io.BytesIO()
  axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  svg = buffer.getvalue().decode("utf-8")
  start, rest = svg[svg.index("<svg") :].split(">", 1)
  start = re.sub(r' (?:width|height)="[^"]*"', "", start)
  rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
  # Several SVG elements share one page, so their ids must not meet.
  return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", f"{start}>{rest}")


def _png(axes) -> bytes:
  buffer = io.BytesIO()
  axes.figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
  return buffer.getvalue()


def _intervals(axes, places, cells: Sequence[Cell], *, sideways: bool = False, **style) -> None:
  """Means with their intervals, if they have any; `sideways` along x, at rows."""
  mean = np.array([cell["mean"] for cell in cells])
  ends = None
  if all("low" in cell for cell in cells):
    low, high = (np.array([cell[end] for cell in cells]) for end in ("low", "high"))
    ends = np.maximum([mean - low, high - mean], 0)
  style = dict(capsize=3, elinewidth=1.4, linewidth=0, marker="o", markersize=6) | style
  if sideways:
    axes.errorbar(mean, places, xerr=ends, **style)
  else:
    axes.errorbar(places, mean, yerr=ends, **style)


def _dots(axes, x, y, color, **style) -> None:
  axes.plot(x, y, **(dict(linestyle="none", marker="o", markersize=3.5, color=color) | style))


def _line(axes, x, y, low=None, high=None, *, color, **style) -> None:
  """A line, in a band where it has the ends of its intervals."""
  if low is not None:
    axes.fill_between(x, low, high, color=_pale(color), alpha=0.5, linewidth=0, zorder=1)
  axes.plot(x, y, color=color, markersize=3.5, **style)


@_style()
def _lines(
  name: str, lines, x_label: str, y_label: str, *, marker=None, colors=None, plain: bool = False
) -> str | None:
  """A line per run.

  Args:
    lines: run -> (x, y) or (x, y, low, high).
    marker: of each point.
    colors: run -> colour, for other names than models'.
    plain: whether the y axis has no offset.
  """
  lines = {run: line for run, line in lines.items() if len(line[0])}
  if not lines:
    return None
  colors = _colors(list(lines)) if colors is None else colors
  axes = _axes()
  for run, line in lines.items():
    one = "o" if len(line[0]) == 1 else None  # a line of one point is invisible
    style = dict(linestyle="--" if run == "ppo" else "-", marker=marker or one)
    _line(axes, *line, color=colors[run], label=label(run), **style)
  if plain:
    axes.ticklabel_format(useOffset=False)
  axes.set(xlabel=x_label, ylabel=y_label)
  if len(lines) > 1:
    axes.legend(loc="best")
  return _svg(axes, name)


def _known(points: Iterable[Mapping[Any, Any]], *fields) -> tuple[np.ndarray, ...]:
  """A float array for each field, of the points at which all of them were measured."""
  rows = [[point.get(field) for field in fields] for point in points]
  kept = [row for row in rows if None not in row]
  return tuple(np.array(kept, float).reshape(-1, len(fields)).T)


def _root(kl) -> np.ndarray:
  """The sampled KL of nearly equal policies can come out below 0."""
  return np.sqrt(np.maximum(kl, 0))


def _percent_axis(axis) -> None:
  axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _row_axis(axes, names: Sequence[str]) -> None:
  """A row for each name, the first at the top."""
  axes.set_yticks(range(len(names)), [label(name) for name in names])
  axes.tick_params(axis="y", labelcolor=_INK)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.grid(axis="y", visible=False)


def _model_rows(axes, rows: Sequence[tuple[str, Mapping[str, Cell]]]) -> None:
  """A row for each (name, model -> cell), with a mark for each model.

  METHOD@SIZE has its method's colour; its marker is that of the size, where there are several.
  """
  names = list(dict.fromkeys(model for _, cells in rows for model in cells))
  method = {name: name.partition("@")[0] for name in names}
  size = {name: name.partition("@")[2] for name in names}
  colors = _colors(list(dict.fromkeys(method.values())))
  markers = dict(zip(dict.fromkeys(size.values()), itertools.cycle("osD^vXP")))
  _row_axis(axes, [name for name, _ in rows])
  offsets = np.linspace(-0.32, 0.32, len(names)) if len(names) > 1 else [0]
  for offset, name in zip(offsets, names):
    known = [
      (place + offset, cells[name]) for place, (_, cells) in enumerate(rows) if name in cells
    ]
    marker = markers[size[name]] if len(markers) > 1 else _marker(method[name])
    style: Any = dict(color=colors[method[name]], marker=marker, capsize=2.5, label=label(name))
    _intervals(axes, *zip(*known), sideways=True, **style)


def _outside_legend(axes, num_columns: int = 3) -> None:
  axes.figure.legend(
    loc="outside upper left", ncols=num_columns, handletextpad=0.3, columnspacing=1.2
  )


# ----------------------------------------------------------------------------- preferences


def known_groups(cells: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
  """Group of labelers -> cell, of the groups that judged."""
  cells = {} if cells is None else cells
  return {group: cells[group] for group in GROUP_LABELS if cells.get(group) is not None}


@_style()
def win_rates(rates: Mapping[str, Any]) -> str | None:
  """Bars with intervals, one pair (training, held-out labelers) per policy.

  Args:
    rates: policy -> group -> the win rate against SFT, an interval; or over seeds, {"pooled":
      interval, "per_seed": {seed: interval}}, with a dot for each seed.  Any may be None.
  """
  known = {policy: kept for policy, cells in rates.items() if (kept := known_groups(cells))}
  if not known:
    return None
  colors, highest = _colors(list(known)), 0.0
  axes = _axes(7.4, 3.6)
  for place, (policy, cells) in enumerate(known.items()):
    for group, found in cells.items():
      cell, color = found.get("pooled", found), colors[policy]
      pale = group == "heldout_labelers"
      x, face = (place + 0.2, _pale(color)) if pale else (place - 0.2, color)
      axes.bar(x, cell["mean"], width=0.37, color=face, edgecolor=color, linewidth=1)
      _intervals(axes, [x], [cell], color=_INK, capsize=4, capthick=1.3, marker="none", zorder=4)
      seeds = [one["mean"] for one in found.get("per_seed", {}).values()]
      if seeds:
        _dots(axes, [x + 0.12] * len(seeds), seeds, _INK, markeredgecolor="white", zorder=4)
      box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
      style = dict(ha="center", va="bottom", fontsize=10, color=_INK, zorder=5, bbox=box)
      axes.text(x, cell["high"] + 0.018, f"{100 * cell['mean']:.1f}", **style)
      highest = max(highest, cell["high"], *seeds)
  _win_rate_axes(axes, list(known), highest)
  return _svg(axes, "win-rates")


def _win_rate_axes(axes, policies: Sequence[str], highest: float) -> None:
  from matplotlib.patches import Patch

  axes.set_xticks(range(len(policies)), [label(name).replace(", ", ",\n") for name in policies])
  axes.tick_params(axis="x", labelsize=10.5, labelcolor=_INK)
  axes.grid(axis="x", visible=False)
  axes.axhline(0.5, color=_INK, zorder=3, **_DASHED)
  axes.set_xlim(-0.6, len(policies) + 0.35)  # room for the words at the end of the line
  place = dict(ha="right", va="bottom", color=_INK, fontsize=9.5)
  axes.text(len(policies) + 0.33, 0.505, "SFT, 50 %", **place)
  axes.set(ylim=(0, max(0.7, min(1.08, highest + 0.1))), ylabel="win rate against SFT")
  _percent_axis(axes.yaxis)
  axes.legend(
    [Patch(facecolor=face, edgecolor=_MUTED) for face in (_MUTED, _pale(_MUTED))],
    list(GROUP_LABELS.values()),
    loc="upper left",
    ncols=2,
    bbox_to_anchor=(0, 1.13),
    borderaxespad=0,
    handlelength=1.2,
  )


# ----------------------------------------------------------------------------- along training


def reward_curve(reward: Mapping[str, Points], quantity: str, unit: str) -> str | None:
  """One quantity of the validation prompts against the PPO iteration, a line per run; in a band
  where the points have its ends, QUANTITY_low and QUANTITY_high."""
  lines = {}
  for run, points in reward.items():
    banded = _known(points, "step", quantity, f"{quantity}_low", f"{quantity}_high")
    lines[run] = banded if len(banded[0]) else _known(points, "step", quantity)
  return _lines(f"curve-{quantity}", lines, "PPO iteration", unit)


def reward_against_root_kl(reward: Mapping[str, Points]) -> str | None:
  """Reward-model score bought per distance from the start (Gao et al. 2022 plot this)."""
  known = {run: _known(points, "kl", "reward") for run, points in reward.items()}
  lines = {run: (_root(kl), score) for run, (kl, score) in known.items()}
  return _lines("root-kl", lines, "√KL to the reference (√nats)", "reward-model score", marker="o")


@_style()
def over_optimization(curves: Mapping[str, Points]) -> tuple[str, bytes] | None:
  """Gold score, where it is known, above the proxy's, against the root of the KL; a line per curve.

  Bands are 95 % intervals.  Source: Gao et al. 2022, arXiv:2210.10760, who plot both so.

  Args:
    curves: name -> points as `best_of_n.curve` and `overoptimization.along_ppo` return them.

  Returns:
    (the SVG element, the bytes of the PNG file), or None where there is no point.
  """
  curves = {name: points for name, points in curves.items() if points}
  if not curves:
    return None
  known = any(point["gold"] is not None for points in curves.values() for point in points)
  scores = (("gold", "gold score"),) * known + (("proxy", "proxy score\n(reward model)"),)
  colors = _colors(list(curves))
  axes_M = _panels(len(scores), 6.4, 0.6 + 2.1 * len(scores))
  for axes, (score, y_label) in zip(axes_M, scores, strict=True):
    for name, points in curves.items():
      if scored := [point for point in points if point[score] is not None]:
        ends = ([point[score][end] for point in scored] for end in ("mean", "low", "high"))
        x = _root([point["kl"] for point in scored])
        _line(axes, x, *ends, color=colors[name], marker="o", label=label(name), zorder=2)
    axes.set_ylabel(y_label)
    axes.margins(y=0.1)
  axes_M[-1].set_xlabel("√KL to the initial policy (√nats)")
  if len(curves) > 1:
    axes_M[-1].legend(loc="best")  # every curve has a proxy
  return _svg(axes_M[0], "over-optimization"), _png(axes_M[0])


def pretraining_curve(points: Sequence[Sequence[Any]], name: str) -> str | None:
  """Training and held-out loss of the base model; points are (step, train, held-out)."""
  colors = {"training batch": "#b4bcc8", "held-out text": models()["ppo_ptx"]["color"]}
  columns = [dict(enumerate(point)) for point in points]
  lines = {text: _known(columns, 0, place) for place, text in enumerate(colors, start=1)}
  return _lines(name, lines, "step", _NATS, colors=colors)


def pretraining_end(points: Sequence[Sequence[Any]], name: str) -> str | None:
  """Held-out loss over the second half of the steps, which shows whether it still falls."""
  step, loss = _known([dict(enumerate(point)) for point in points], 0, 2)
  late = step >= step.max(initial=0) / 2
  if late.sum() < 3:
    return None
  lines = {"ppo_ptx": (step[late], loss[late])}
  return _lines(name, lines, "step", f"held-out {_NATS}", marker="o", plain=True)


def sft_epochs(points: Points) -> tuple[str | None, str | None]:
  """Held-out loss and reward-model score of the SFT baseline after each epoch."""
  loss, score = ({"sft": _known(points, "epoch", field)} for field in ("valid_nll", "score"))
  return (
    _lines("sft-loss", loss, "epoch", f"held-out {_NATS}", marker="o"),
    _lines("sft-score", score, "epoch", "reward-model score", marker="o"),
  )


# ----------------------------------------------------------------------------- finished models


@_style()
def calibration(curve: Mapping[str, Any]) -> str | None:
  """Observed agreement against predicted probability; areas of the dots grow with pair counts."""
  bins = [b for b in curve["bins"] if b["n"]]
  if not bins:
    return None
  color = models()["ppo_ptx"]["color"]
  size = [14 + 110 * b["n"] / max(other["n"] for other in bins) for b in bins]
  x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
  axes = _axes()
  axes.plot([0.5, 1], [0.5, 1], color=_MUTED, **_DASHED)
  place = dict(ha="right", va="bottom", fontsize=9.5, color=_MUTED)
  axes.text(0.97, 0.985, "perfectly calibrated", **place)
  axes.plot(x, y, color=color, linewidth=1.2, alpha=0.6)
  axes.scatter(x, y, s=size, color=color, edgecolor="white", linewidth=0.8, zorder=3)
  axes.set(xlim=(0.48, 1.02), ylim=(min(0.45, min(y) - 0.05), 1.04))
  axes.set(xlabel="predicted probability, σ(score difference)", ylabel="pairs ranked as predicted")
  _percent_axis(axes.xaxis)
  _percent_axis(axes.yaxis)
  return _svg(axes, "calibration")


@_style()
def pretraining_nll(nll: Mapping[str, float | None]) -> str | None:
  """Held-out pretraining loss, one row per model, with the PPO start as the line to compare to."""
  known = {model: value for model, value in nll.items() if value is not None and model != "chance"}
  if not known:
    return None
  colors, start = _colors(list(known)), known.get("ppo_init")
  axes = _axes()
  _row_axis(axes, list(known))
  for row, (model, value) in enumerate(known.items()):
    if start is not None:
      axes.plot([start, value], [row, row], color=colors[model], linewidth=3, alpha=0.45)
    _dots(axes, value, row, colors[model], marker=_marker(model), markersize=8)
    # Text goes away from the start line, so that the bar does not run through it.
    left = start is not None and value < start
    style = dict(va="center", textcoords="offset points", ha="right" if left else "left")
    axes.annotate(f"{value:.3f}", (value, row), (-9 if left else 9, 0), fontsize=10, **style)
  if start is not None:
    axes.axvline(start, color=models()["ppo_init"]["color"], zorder=1, **_DASHED)
  low, high = min(known.values()), max(known.values())
  room = 0.24 * ((high - low) or 0.1)
  axes.set_xlim(low - room, high + room)
  axes.set_xlabel("loss on held-out pretraining text (nats per token)")
  return _svg(axes, "pretraining-nll")


@_style()
def few_shot(tasks: Mapping[str, Mapping[str, float | None]]) -> str | None:
  """Accuracy of each model, one row per task."""
  rows = [
    (task, {model: dict(mean=value) for model, value in cells.items() if value is not None})
    for task, cells in tasks.items()
    if cells is not None
  ]
  if not any(cells for _, cells in rows):
    return None
  axes = _axes(5.2, max(2.6, 1.4 + 0.5 * len(rows)))
  chances = [cells.pop("chance", None) for _, cells in rows]
  _model_rows(axes, rows)
  for row, chance in enumerate(chances):
    if chance is not None:
      name = "Chance" if row == 0 else None
      axes.plot(2 * [chance["mean"]], [row - 0.42, row + 0.42], color=_INK, label=name, **_DOTTED)
    if row:
      axes.axhline(row - 0.5, color=_GRID, linewidth=0.8)
  axes.set(xlim=(-0.02, 1.02), xlabel="accuracy")
  _percent_axis(axes.xaxis)
  _outside_legend(axes)
  return _svg(axes, "few-shot")


@_style()
def measure(rows: Points, name: str) -> str | None:
  """One metric of one task: a row per way of asking, a dot with its interval per checkpoint.

  Args:
    rows: of `units.by_measure`, with one task and one metric.
    name: of the figure; makes its ids unique on the page.
  """
  num_models = len({model for row in rows for model in row["cells"]})
  if not num_models:
    return None
  height = 1.0 + 0.22 * (num_models + 2) // 3 + len(rows) * max(0.4, 0.15 * num_models)
  axes = _axes(5.2, max(1.9, height))
  _model_rows(axes, [(row["variant"], row["cells"]) for row in rows])
  axes.margins(x=0.08)
  better = f" ({rows[0]['better']} is better)" if rows[0]["better"] else ""
  axes.set_xlabel(label(rows[0]["metric"]) + better)
  if num_models > 1:
    _outside_legend(axes)
  return _svg(axes, name)


@_style()
def over_size(
  points: Mapping[str, Sequence[Cell]],
  y_label: str,
  *,
  name: str,
  line: float | None = None,
  percent: bool = False,
) -> str | None:
  """A quantity against the number of parameters, a line per method (InstructGPT Fig. 1).

  Args:
    points: method -> [{"parameters", "mean", "low", "high"}].
    name: of the figure; makes its ids unique on the page.
    line: a level that is drawn across, such as 0.5.
    percent: whether the axis is in per cent.
  """
  count = lambda point: point["parameters"]
  points = {method: sorted(found, key=count) for method, found in points.items() if found}
  if not points:
    return None
  colors = _colors(list(points))
  axes = _axes(6.2, 3.9)
  for method, found in points.items():
    style: Any = dict(color=colors[method], marker=_marker(method), label=label(method))
    _intervals(axes, list(map(count, found)), found, linewidth=1.8, **style)
  if line is not None:
    axes.axhline(line, color=_INK, zorder=1, **_DASHED)
  axes.set_xscale("log")
  axes.minorticks_off()
  ticks = sorted({count(point) for found in points.values() for point in found})
  axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
  axes.margins(x=0.08, y=0.12)
  if percent:
    _percent_axis(axes.yaxis)
  axes.set(xlabel="parameters outside the embeddings", ylabel=y_label)
  if len(points) > 1:
    _outside_legend(axes, 3 if max(map(len, points)) > 12 else len(points))
  return _svg(axes, name)


def short_count(count: float) -> str:
  """1,040,256 is 1.0M."""
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= size:
      return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
  return f"{count:.0f}"


# ----------------------------------------------------------------------------- sweeps


@_style()
def sweep(
  pooled: Points, x: str, x_label: str, y_labels: Mapping[str, str], title: str
) -> tuple[str, bytes]:
  """A panel per measure against the field that the sweep varies, a line per policy.

  Points are means with their 95 % intervals, small dots the single seeds.  Where a second field
  varies too, each of its values has a line of its own.  Numbers of which none is negative lie on a
  logarithmic axis; 0, which such an axis does not have, stands left of a break, and the line to it
  is dashed.

  Args:
    pooled: as `sweeps.pool` returns it.
    x: the field; `x_label`, `y_labels` (measure -> text): of the axes.

  Returns:
    (the SVG element, the bytes of the PNG file).
  """
  lines: dict[str, list[Mapping[str, Any]]] = {}
  for row in pooled:
    lines.setdefault(_line_name(row, pooled, x), []).append(row)
  position, ticks = _positions([row["overrides"][x] for row in pooled])
  colors = _colors(list(lines))
  axes_M = _panels(len(y_labels), 6.4, 0.6 + 2.1 * len(y_labels))
  for axes, (measured, y_label) in zip(axes_M, y_labels.items(), strict=True):
    for name, rows in lines.items():
      cells = {position[row["overrides"][x]]: row["measures"][measured] for row in rows}
      from_zero = ticks == "log and 0" and min(cells) == position[0]
      _sweep_line(axes, dict(sorted(cells.items())), colors[name], label(name), int(from_zero))
    if "tax" in measured:
      axes.axhline(0, color=_MUTED, zorder=1, **_DASHED)
    axes.set_ylabel(y_label)
    axes.margins(y=0.12)
  axes_M[-1].set_xlabel(x_label)
  _sweep_axis(axes_M, position, ticks)
  axes_M[0].set_title(title, loc="left", fontsize=12, color=_INK)
  if len(lines) > 1:
    axes_M[0].legend(loc="best")
  return _svg(axes_M[0], "sweep"), _png(axes_M[0])


def _line_name(row, pooled, x) -> str:
  """Of the policy, where several are compared, and of what varies beside x with it."""
  policies = {other["policy"] for other in pooled}
  parts = [row["policy"]] if len(policies) > 1 else []
  twins = [
    other
    for other in pooled
    if other["overrides"][x] == row["overrides"][x] and other["policy"] == row["policy"]
  ]
  parts += [
    f"{key.rpartition('.')[2]} {value}"
    for key, value in row["overrides"].items()
    if key != x and len({str(twin["overrides"].get(key)) for twin in twins}) > 1
  ]
  return ", ".join(parts) if parts else (row["policy"] or "mean")


def _positions(values) -> tuple[dict[Any, float], str]:
  """(value -> place on the axis, "log", "log and 0" or "names")."""
  distinct = list(dict.fromkeys(values))
  numbers = all(
    isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
    for value in distinct
  )
  if not numbers or len(distinct) < 2 or max(distinct) == 0:
    return {value: float(place) for place, value in enumerate(distinct)}, "names"
  positive = sorted(value for value in distinct if value > 0)
  position = {value: float(value) for value in positive}
  if 0 not in distinct:
    return position, "log"
  gaps = [b / a for a, b in zip(positive, positive[1:])]
  position[0] = positive[0] / max(float(np.median(gaps)) if gaps else 3.0, 3.0)
  return position, "log and 0"


def _sweep_line(axes, cells: Mapping[float, Any], color, name: str, from_zero: int) -> None:
  """A line over place -> cell; `from_zero` is 1 where the first place is that of 0, else 0."""
  places, pooled = list(cells), [cell["pooled"] for cell in cells.values()]
  means = [cell["mean"] for cell in pooled]
  _intervals(axes, places, pooled, color=color, markersize=5.5, label=name, zorder=3)
  axes.plot(places[from_zero:], means[from_zero:], color=color, zorder=2)
  axes.plot(places[: from_zero + 1], means[: from_zero + 1], color=color, zorder=2, **_DOTTED)
  for place, cell in cells.items():
    seeds = list(cell["per_seed"].values())
    if len(seeds) > 1:
      _dots(axes, [place] * len(seeds), seeds, color, markersize=2.6, alpha=0.55, zorder=2)


def _sweep_axis(axes_M, position, ticks) -> None:
  names = [f"{value:g}" if isinstance(value, float) else str(value) for value in position]
  for axes in axes_M:
    if ticks != "names":
      axes.set_xscale("log")
      axes.minorticks_off()
    axes.set_xticks(list(position.values()), names, rotation=30 if len(position) > 7 else 0)
  if ticks == "names":
    axes_M[-1].set_xlim(-0.5, len(position) - 0.5)
  if ticks == "log and 0":  # the axis is broken between 0 and the smallest number
    zero, least = position[0], min(value for value in position if value > 0)
    middle = (zero * least) ** 0.5
    for axes in axes_M:
      style = dict(markersize=9, transform=axes.get_xaxis_transform(), clip_on=False, zorder=5)
      for place in (middle, middle * (least / zero) ** 0.06):
        _dots(axes, [place], [0], _INK, marker=[(-1, -1), (1, 1)], **style)
