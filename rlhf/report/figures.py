"""The plots of all report pages, each an inline SVG string.

Text stays text, so it takes the page's typeface and can be searched and copied.  Equal data give
equal bytes.  matplotlib is imported inside the one function that draws, so that importing this
module stays cheap; no pyplot and no global state are touched.
"""

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

LABELS = {
  "base": "Base",
  "base_more_pretraining": "Base, more pretraining",
  "ppo_init": "PPO start",
  "sft": "SFT",
  "ppo": "PPO",
  "ppo_ptx": "PPO-ptx",
  "bigram": "Bigram counts",
  "chance": "Chance",
  "sft_last": "SFT, last epoch",
  "ppo_live": "PPO, live weights",
  "ppo_ptx_live": "PPO-ptx, live weights",
  "few_shot": "Base, few-shot",
  "targeted": "Values-targeted",
  "control": "Control",
}

# Okabe and Ito's palette, told apart with any common colour vision deficiency.
COLORS = {
  "base": "#8a8f98",
  "base_more_pretraining": "#4d535c",
  "ppo_init": "#009e73",
  "sft": "#e69f00",
  "ppo": "#d55e00",
  "ppo_ptx": "#0072b2",
  "few_shot": "#cc79a7",
  "targeted": "#0072b2",
  "control": "#e69f00",
}
_OTHER_COLORS = ("#56b4e9", "#b8a600", "#8b5fbf", "#7a4b2a")
_MARKERS = {
  "base": "s",
  "base_more_pretraining": "D",
  "ppo_init": "^",
  "sft": "v",
  "ppo": "X",
  "ppo_ptx": "o",
  "few_shot": "P",
  "targeted": "o",
  "control": "v",
}
_INK, _MUTED, _GRID = "#1f2933", "#5f6b7a", "#e4e8ee"

_STYLE: Any = {
  "svg.fonttype": "none",
  "svg.hashsalt": "rlhf-report",
  "text.parse_math": False,
  "font.family": "sans-serif",
  "font.size": 10.5,
  "axes.labelsize": 10.5,
  "axes.edgecolor": "#9aa5b1",
  "axes.linewidth": 0.8,
  "axes.labelcolor": _INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.axisbelow": True,
  "axes.unicode_minus": True,
  "text.color": _INK,
  "xtick.color": _MUTED,
  "ytick.color": _MUTED,
  "xtick.major.size": 0,
  "ytick.major.size": 0,
  "axes.grid": True,
  "grid.color": _GRID,
  "grid.linewidth": 0.8,
  "legend.frameon": False,
  "legend.fontsize": 10,
  "lines.linewidth": 1.8,
  "lines.solid_capstyle": "round",
}


def label(model: str) -> str:
  """The name a reader sees for a model's key, or for METHOD@SIZE."""
  if "@" in model:
    method, _, size = model.partition("@")
    return f"{label(method)} {size}"
  return LABELS[model] if model in LABELS else model.replace("_", " ")


def _pale(color: str) -> str:
  """The colour mixed with white; unlike transparency it hides the grid behind it."""
  mixed = [round(0.36 * int(color[i : i + 2], 16) + 0.64 * 255) for i in (1, 3, 5)]
  return "#" + "".join(f"{channel:02x}" for channel in mixed)


def _color_of(models: Sequence[str]) -> dict[str, str]:
  others = itertools.cycle(_OTHER_COLORS)
  return {model: COLORS[model] if model in COLORS else next(others) for model in models}


def _svg(name: str, draw: Callable[[Any], None], size: tuple[float, float] = (5.2, 3.1)) -> str:
  """Draws on one pair of axes and returns the SVG element, its ids prefixed by `name`."""
  return _as_svg(name, _drawn(lambda axes_M: draw(axes_M[0]), 1, size, "svg"))


def _panels(name: str, draw: Callable[[Any], None], num_panels: int, form: str) -> str | bytes:
  """As `_svg`, on panels above one another that share their x axis; or the bytes of a PNG file."""
  data = _drawn(draw, num_panels, (6.4, 0.6 + 2.1 * num_panels), form)
  return _as_svg(name, data) if form == "svg" else data


def _drawn(draw, num_panels: int, size: tuple[float, float], form: str) -> bytes:
  import matplotlib
  from matplotlib.figure import Figure

  buffer = io.BytesIO()
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots(num_panels, squeeze=False, sharex=True)[:, 0])
    if form == "svg":
      figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    else:
      figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
  return buffer.getvalue()


def _as_svg(name: str, data: bytes) -> str:
  svg = data.decode("utf-8")
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", svg)
  svg = re.sub(r'^<svg([^>]*?) height="[^"]*"', r"<svg\1", svg)
  # Several SVG elements share one page, so their ids must not meet.
  return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", svg)


_DASHED = dict(linewidth=1, linestyle=(0, (4, 3)))
_GROUPS = ("training_labelers", "heldout_labelers")


def _percent_axis(axis) -> None:
  from matplotlib.ticker import FuncFormatter

  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def _interval(axes, places, cells, *, sideways: bool = False, **style) -> None:
  """Means with their intervals; `sideways` along x, at rows."""
  mean, low, high = (np.array([cell[end] for cell in cells]) for end in ("mean", "low", "high"))
  ends = np.maximum([mean - low, high - mean], 0)
  style = dict(capsize=3, elinewidth=1.4, linewidth=0, marker="o", markersize=6) | style
  if sideways:
    axes.errorbar(mean, places, xerr=ends, **style)
  else:
    axes.errorbar(places, mean, yerr=ends, **style)


def _dots(axes, x, y, color, **style) -> None:
  axes.plot(x, y, **(dict(linestyle="none", marker="o", markersize=3.5, color=color) | style))


def _row_axis(axes, names: Sequence[str]) -> None:
  """A row for each name, the first at the top."""
  axes.set_yticks(range(len(names)), [label(name) for name in names])
  axes.tick_params(axis="y", labelcolor=_INK)
  axes.set_ylim(len(names) - 0.5, -0.5)
  axes.grid(axis="y", visible=False)


def _column_axis(axes, names: Sequence[str]) -> None:
  """A column for each name, and a win rate against SFT as y."""
  axes.set_xticks(range(len(names)), [label(name).replace(", ", ",\n") for name in names])
  axes.tick_params(axis="x", labelsize=10.5, labelcolor=_INK)
  axes.grid(axis="x", visible=False)
  axes.axhline(0.5, color=_INK, zorder=3, **_DASHED)
  _percent_axis(axes.yaxis)
  axes.set_ylabel("win rate against SFT")


def _outside_legend(axes, num_columns: int = 3) -> None:
  axes.figure.legend(
    loc="outside upper left", ncols=num_columns, handletextpad=0.3, columnspacing=1.2
  )


def win_rates(win_rate_vs_sft: Mapping[str, Any]) -> str | None:
  """Bars with intervals, one pair (training, held-out labelers) per policy."""
  shown = {
    policy: cells
    for policy, cells in win_rate_vs_sft.items()
    if cells is not None and any(cells[group] for group in _GROUPS)
  }
  if not shown:
    return None
  color = _color_of(list(shown))

  def draw(axes):
    from matplotlib.patches import Patch

    _column_axis(axes, list(shown))
    highest = 0.0
    for x, (policy, cells) in enumerate(shown.items()):
      for offset, group in zip((-0.2, 0.2), _GROUPS):
        if cells[group] is not None:
          _bar(axes, x + offset, cells[group], color[policy], pale=group == "heldout_labelers")
          highest = max(highest, cells[group]["high"])
    axes.set_xlim(-0.6, len(shown) + 0.35)  # room for the words at the end of the line
    place = dict(ha="right", va="bottom", color=_INK, fontsize=9.5)
    axes.text(len(shown) + 0.33, 0.505, "SFT, 50 %", **place)
    axes.set_ylim(0, max(0.7, min(1.08, highest + 0.1)))
    axes.legend(
      [Patch(facecolor=face, edgecolor=_MUTED) for face in (_MUTED, _pale(_MUTED))],
      ["training labelers", "held-out labelers"],
      loc="upper left",
      ncols=2,
      bbox_to_anchor=(0, 1.13),
      borderaxespad=0,
      handlelength=1.2,
    )

  return _svg("win-rates", draw, (7.4, 3.6))


def _bar(axes, x, cell, color, pale) -> None:
  face = _pale(color) if pale else color
  axes.bar(x, cell["mean"], width=0.37, color=face, edgecolor=color, linewidth=1)
  _interval(axes, [x], [cell], color=_INK, capsize=4, capthick=1.3, marker="none", zorder=4)
  box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6}
  text = f"{100 * cell['mean']:.1f}"
  style = dict(ha="center", va="bottom", fontsize=10, color=_INK, zorder=5, bbox=box)
  axes.text(x, cell["high"] + 0.018, text, **style)


def reward_curve(
  reward: Mapping[str, Sequence[Mapping[str, Any]]], quantity: str, unit: str
) -> str | None:
  """One quantity of the validation prompts against the PPO iteration, a line per run; a band where
  the points have its ends, QUANTITY_low and QUANTITY_high."""
  column = lambda name: {run: _points(points, "step", name) for run, points in reward.items()}
  low, high = column(f"{quantity}_low"), column(f"{quantity}_high")
  bands = {run: (*low[run], high[run][1]) for run in reward}
  return _lines(f"curve-{quantity}", column(quantity), "PPO iteration", unit, bands=bands)


def reward_against_root_kl(reward: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
  """Reward-model score bought per distance from the start (Gao et al. 2022 plot this)."""
  lines = {}
  for run, points in reward.items():
    kl, score = _points(points, "kl", "reward")
    # The sampled KL of nearly equal policies can come out below 0.
    lines[run] = np.sqrt(np.maximum(kl, 0)), score
  return _lines("root-kl", lines, "√KL to the reference (√nats)", "reward-model score", marker="o")


def over_optimization(
  curves: Mapping[str, Sequence[Mapping[str, Any]]], form: str = "svg"
) -> str | bytes | None:
  """Gold score, where it is known, above the proxy's, against the root of the KL; a line per curve.

  Bands are 95 % intervals.  Source: Gao et al. 2022, arXiv:2210.10760, who plot both so.

  Args:
    curves: name -> points as `best_of_n.curve` and `overoptimization.along_ppo` return them.
    form: "svg" or "png".

  Returns:
    the SVG element, or the bytes of the PNG file; None where there is no point.
  """
  curves = {name: points for name, points in curves.items() if points}
  if not curves:
    return None
  known = any(point["gold"] is not None for points in curves.values() for point in points)
  scores = (("gold", "gold score"),) * known + (("proxy", "proxy score\n(reward model)"),)
  color = _color_of(list(curves))

  def draw(axes_M):
    for axes, (score, y_label) in zip(axes_M, scores, strict=True):
      for name, points in curves.items():
        _band(
          axes,
          [point for point in points if point[score] is not None],
          score,
          color[name],
          label(name),
        )
      axes.set_ylabel(y_label)
      axes.margins(y=0.1)
    axes_M[-1].set_xlabel("√KL to the initial policy (√nats)")
    if len(curves) > 1:
      axes_M[-1].legend(loc="best")  # every curve has a proxy

  return _panels("over-optimization", draw, len(scores), form)


def _band(axes, points, score, color, name) -> None:
  if not points:
    return
  # The sampled KL of nearly equal policies can come out below 0.
  x = np.sqrt(np.maximum([point["kl"] for point in points], 0))
  mean, low, high = ([point[score][end] for point in points] for end in ("mean", "low", "high"))
  axes.fill_between(x, low, high, color=_pale(color), alpha=0.5, linewidth=0, zorder=1)
  axes.plot(x, mean, color=color, marker="o", markersize=3.5, label=name, zorder=2)


def _points(points, x, y):
  """Two float arrays of the points at which both quantities were measured."""
  kept = [
    (point[x], point[y])
    for point in points
    if x in point and y in point and point[x] is not None and point[y] is not None
  ]
  return tuple(np.array(kept, float).reshape(-1, 2).T)


def _lines(
  name, lines, x_label, y_label, marker=None, bands=None, colors=None, plain=False
) -> str | None:
  """A line per run; `plain` without an offset of the axis."""
  bands = {} if bands is None else bands
  lines = {run: (x, y) for run, (x, y) in lines.items() if len(x)}
  if not lines:
    return None
  color = _color_of(list(lines)) if colors is None else colors

  def draw(axes):
    for run, (x, y) in lines.items():
      if run in bands and len(bands[run][0]):
        axes.fill_between(*bands[run], color=_pale(color[run]), alpha=0.5, linewidth=0, zorder=1)
      style = dict(markersize=3.5, linestyle="--" if run == "ppo" else "-")
      alone = marker if marker or len(x) > 1 else "o"  # a line of one point is invisible
      axes.plot(x, y, color=color[run], label=label(run), marker=alone, **style)
    if plain:
      axes.ticklabel_format(useOffset=False)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(lines) > 1:
      axes.legend(loc="best")

  return _svg(name, draw)


def pretraining_curve(points: Sequence[Sequence[Any]], name: str) -> str | None:
  """Training and held-out loss of the base model; points are (step, train, held-out)."""
  by_column = [dict(enumerate(point)) for point in points]
  colors = {"training batch": "#b4bcc8", "held-out text": COLORS["ppo_ptx"]}
  lines = {text: _points(by_column, 0, place) for place, text in enumerate(colors, start=1)}
  return _lines(name, lines, "step", "loss (nats per token)", colors=colors)


def pretraining_end(points: Sequence[Sequence[Any]], name: str) -> str | None:
  """Held-out loss over the second half of the steps, which shows whether it still falls."""
  held_out = [(step, loss) for step, _, loss in points if loss is not None]
  half = held_out[-1][0] / 2 if held_out else 0
  end = [(step, loss) for step, loss in held_out if step >= half]
  if len(end) < 3:
    return None
  y_label = "held-out loss (nats per token)"
  return _lines(name, {"ppo_ptx": tuple(zip(*end))}, "step", y_label, marker="o", plain=True)


def sft_epochs(points: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
  """Held-out loss and reward-model score of the SFT baseline after each epoch."""
  loss = {"sft": _points(points, "epoch", "valid_nll")}
  score = {"sft": _points(points, "epoch", "score")}
  return (
    _lines("sft-loss", loss, "epoch", "held-out loss (nats per token)", marker="o"),
    _lines("sft-score", score, "epoch", "reward-model score", marker="o"),
  )


def calibration(curve: Mapping[str, Any]) -> str | None:
  """Observed agreement against predicted probability; areas of the dots grow with pair counts."""
  bins = [b for b in curve["bins"] if b["n"]]
  if not bins:
    return None
  size = [14 + 110 * b["n"] / max(other["n"] for other in bins) for b in bins]
  x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]

  def draw(axes):
    axes.plot([0.5, 1], [0.5, 1], color=_MUTED, **_DASHED)
    style = dict(ha="right", va="bottom", fontsize=9.5, color=_MUTED)
    axes.text(0.97, 0.985, "perfectly calibrated", **style)
    axes.plot(x, y, color=COLORS["ppo_ptx"], linewidth=1.2, alpha=0.6)
    style = dict(color=COLORS["ppo_ptx"], edgecolor="white", linewidth=0.8, zorder=3)
    axes.scatter(x, y, s=size, **style)
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.45, min(y) - 0.05), 1.04)
    _percent_axis(axes.xaxis)
    _percent_axis(axes.yaxis)
    axes.set_xlabel("predicted probability, σ(score difference)")
    axes.set_ylabel("pairs ranked as predicted")

  return _svg("calibration", draw)


def pretraining_nll(nll: Mapping[str, float | None]) -> str | None:
  """Held-out pretraining loss, one row per model, with the PPO start as the line to compare to."""
  known = {model: value for model, value in nll.items() if value is not None and model != "chance"}
  if not known:
    return None
  color, start = _color_of(list(known)), known.get("ppo_init")

  def draw(axes):
    _row_axis(axes, list(known))
    for row, (model, value) in enumerate(known.items()):
      if start is not None:
        axes.plot([start, value], [row, row], color=color[model], linewidth=3, alpha=0.45)
      _dots(axes, value, row, color[model], marker=_MARKERS.get(model, "P"), markersize=8)
      # Text goes away from the start line, so that the bar does not run through it.
      left = start is not None and value < start
      style = dict(va="center", textcoords="offset points", ha="right" if left else "left")
      axes.annotate(f"{value:.3f}", (value, row), (-9 if left else 9, 0), fontsize=10, **style)
    if start is not None:
      axes.axvline(start, color=COLORS["ppo_init"], zorder=1, **_DASHED)
    low, high = min(known.values()), max(known.values())
    room = 0.24 * ((high - low) or 0.1)
    axes.set_xlim(low - room, high + room)
    axes.set_xlabel("loss on held-out pretraining text (nats per token)")

  return _svg("pretraining-nll", draw)


def few_shot(tasks: Mapping[str, Mapping[str, float | None]]) -> str | None:
  """Accuracy of each model, one row per task."""
  known = {
    task: {model: value for model, value in cells.items() if value is not None}
    for task, cells in tasks.items()
    if cells is not None
  }
  models = list(dict.fromkeys(model for cells in known.values() for model in cells))
  if not models:
    return None
  shown = [model for model in models if model != "chance"]
  color = _color_of(shown)

  def draw(axes):
    _row_axis(axes, list(known))
    for offset, model in zip(_spread(len(shown), 0.3), shown):
      rows = [(row, cells[model]) for row, cells in enumerate(known.values()) if model in cells]
      x, y = [value for _, value in rows], [row + offset for row, _ in rows]
      marker = _MARKERS.get(model, "P")
      _dots(axes, x, y, color[model], marker=marker, markersize=7, label=label(model))
    for row, cells in enumerate(known.values()):
      if "chance" in cells:
        style = dict(color=_INK, linewidth=1, linestyle=(0, (2, 2)))
        ends = [cells["chance"]] * 2, [row - 0.42, row + 0.42]
        axes.plot(*ends, label="Chance" if row == 0 else None, **style)
      if row:
        axes.axhline(row - 0.5, color=_GRID, linewidth=0.8)
    axes.set_xlim(-0.02, 1.02)
    _percent_axis(axes.xaxis)
    axes.set_xlabel("accuracy")
    _outside_legend(axes)

  return _svg("few-shot", draw, (5.2, max(2.6, 1.4 + 0.5 * len(known))))


def _spread(number: int, half: float) -> np.ndarray:
  """Places around 0 for several marks of one row."""
  return np.linspace(-half, half, number) if number > 1 else np.zeros(1)


def pooled_win_rates(pooled: Mapping[str, Any]) -> str | None:
  """Pooled win rates with nested intervals; small dots are the single seeds."""
  cells = {
    (policy, group): cell
    for policy, groups in pooled.items()
    for group, cell in groups.items()
    if cell is not None
  }
  policies = list(dict.fromkeys(policy for policy, _ in cells))
  if not policies:
    return None
  color = _color_of(policies)

  def draw(axes):
    _column_axis(axes, policies)
    for (policy, group), cell in cells.items():
      training = group == "training_labelers"
      x = policies.index(policy) + (-0.16 if training else 0.16)
      pool, seeds = cell["pooled"], [one["mean"] for one in cell["per_seed"].values()]
      face = color[policy] if training else "white"
      style = dict(capsize=4, elinewidth=1.8, markersize=8, markerfacecolor=face)
      _interval(axes, [x], [pool], color=color[policy], **style)
      _dots(axes, [x + 0.09] * len(seeds), seeds, color[policy], alpha=0.7)
      style = dict(ha="center", textcoords="offset points", fontsize=10)
      axes.annotate(f"{100 * pool['mean']:.1f}", (x, pool["high"]), (0, 6), **style)
    axes.set_xlim(-0.6, len(policies) - 0.4)
    axes.margins(y=0.15)

  return _svg("pooled-win-rates", draw, (7.4, 3.6))


def sweep(
  pooled: Sequence[Mapping[str, Any]],
  x: str,
  x_label: str,
  y_labels: Mapping[str, str],
  title: str,
  form: str = "svg",
) -> str | bytes:
  """A panel per measure against the field that the sweep varies, a line per policy.

  Points are means with their 95 % intervals, small dots the single seeds.  Where a second field
  varies too, each of its values has a line of its own.  Numbers of which none is negative lie on a
  logarithmic axis; 0, which such an axis does not have, stands left of a break, and the line to it
  is dashed.

  Args:
    pooled: as `sweeps.pool` returns it.
    x: the field; `x_label`, `y_labels` (measure -> text): of the axes.
    form: "svg" or "png".

  Returns:
    the SVG element, or the bytes of the PNG file.
  """
  lines: dict[str, list[Mapping[str, Any]]] = {}
  for row in pooled:
    lines.setdefault(_line_name(row, pooled, x), []).append(row)
  position, ticks = _positions([row["overrides"][x] for row in pooled])
  color = _color_of(list(lines))

  def draw(axes_M):
    for axes, (measure, y_label) in zip(axes_M, y_labels.items(), strict=True):
      for name, rows in lines.items():
        _sweep_line(axes, rows, x, measure, position, color[name], name)
      if "tax" in measure:
        axes.axhline(0, color=_MUTED, zorder=1, **_DASHED)
      axes.set_ylabel(y_label)
      axes.margins(y=0.12)
    axes_M[-1].set_xlabel(x_label)
    _sweep_axis(axes_M, position, ticks)
    axes_M[0].set_title(title, loc="left", fontsize=12, color=_INK)
    if len(lines) > 1:
      axes_M[0].legend(loc="best")

  return _panels("sweep", draw, len(y_labels), form)


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


def _sweep_line(axes, rows, x, measure, position, color, name) -> None:
  rows = sorted(rows, key=lambda row: position[row["overrides"][x]])
  places = [position[row["overrides"][x]] for row in rows]
  cells = [row["measures"][measure] for row in rows]
  pooled = [cell["pooled"] for cell in cells]
  means = [cell["mean"] for cell in pooled]
  _interval(axes, places, pooled, color=color, markersize=5.5, label=label(name), zorder=3)
  from_zero = 1 if rows[0]["overrides"][x] == 0 and places[0] > 0 else 0
  axes.plot(places[from_zero:], means[from_zero:], color=color, zorder=2)
  style = dict(color=color, linewidth=1, linestyle=(0, (2, 2)), zorder=2)
  axes.plot(places[: from_zero + 1], means[: from_zero + 1], **style)
  for place, cell in zip(places, cells):
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


def measure(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
  """One metric of one task: a row per way of asking, a dot with its interval per checkpoint.

  Args:
    rows: of `units.by_measure`, with one task and one metric.
    name: of the figure; makes its ids unique on the page.
  """
  models = list(dict.fromkeys(model for row in rows for model in row["cells"]))
  if not models:
    return None
  color, marker = _model_styles(models)

  def draw(axes):
    _row_axis(axes, [row["variant"] for row in rows])
    for offset, model in zip(_spread(len(models), 0.32), models):
      known = [(at, row["cells"][model]) for at, row in enumerate(rows) if model in row["cells"]]
      places, cells = [at + offset for at, _ in known], [cell for _, cell in known]
      style = dict(color=color[model], marker=marker[model], capsize=2.5, label=label(model))
      _interval(axes, places, cells, sideways=True, **style)
    axes.margins(x=0.08)
    better = {"higher": " (higher is better)", "lower": " (lower is better)", "": ""}
    axes.set_xlabel(label(rows[0]["metric"]) + better[rows[0]["better"]])
    if len(models) > 1:
      _outside_legend(axes)

  height = 1.0 + 0.22 * (len(models) + 2) // 3 + len(rows) * max(0.4, 0.15 * len(models))
  return _svg(name, draw, (5.2, max(1.9, height)))


def _model_styles(models: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
  """(colour, marker) of each; `METHOD@SIZE` has its method's colour and its size's marker."""
  methods = list(dict.fromkeys(model.partition("@")[0] for model in models))
  sizes = list(dict.fromkeys(model.partition("@")[2] for model in models))
  colors, markers = _color_of(methods), dict(zip(sizes, itertools.cycle("osD^vXP")))
  return (
    {model: colors[model.partition("@")[0]] for model in models},
    {model: markers[model.partition("@")[2]] for model in models},
  )


def over_size(
  points: Mapping[str, Sequence[Mapping[str, float]]],
  y_label: str,
  *,
  name: str,
  line: float | None = None,
  percent: bool = False,
) -> str | None:
  """A quantity against the number of parameters, a line per method (InstructGPT Fig. 1).

  Args:
    points: method -> [{"parameters", "mean", "low", "high"}].
    y_label: of the axis.
    name: of the figure; makes its ids unique on the page.
    line: a level that is drawn across, such as 0.5.
    percent: whether the axis is in per cent.
  """
  points = {
    method: sorted(found, key=lambda point: point["parameters"])
    for method, found in points.items()
    if found
  }
  if not points:
    return None
  color = _color_of(list(points))

  def draw(axes):
    for method, found in points.items():
      marker, counts = _MARKERS.get(method, "P"), [point["parameters"] for point in found]
      style = dict(color=color[method], marker=marker, linewidth=1.8, label=label(method))
      _interval(axes, counts, found, **style)
    if line is not None:
      axes.axhline(line, color=_INK, zorder=1, **_DASHED)
    axes.set_xscale("log")
    axes.minorticks_off()
    ticks = sorted({point["parameters"] for found in points.values() for point in found})
    axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
    axes.margins(x=0.08, y=0.12)
    if percent:
      _percent_axis(axes.yaxis)
    axes.set_xlabel("parameters outside the embeddings")
    axes.set_ylabel(y_label)
    if len(points) > 1:
      _outside_legend(axes, 3 if max(map(len, points)) > 12 else len(points))

  return _svg(name, draw, (6.2, 3.9))


def short_count(count: float) -> str:
  """1,040,256 is 1.0M."""
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= size:
      return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
  return f"{count:.0f}"
