"""The report's plots, each an inline SVG string.

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

_STYLE = {
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


def _percent_axis(axis) -> None:
  from matplotlib.ticker import FuncFormatter

  axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def win_rates(win_rate_vs_sft: Mapping[str, Any]) -> str | None:
  """Bars with intervals, one pair (training, held-out labelers) per policy."""
  groups = ("training_labelers", "heldout_labelers")
  policies = [
    policy
    for policy, cells in win_rate_vs_sft.items()
    if cells is not None and any(cells[group] for group in groups)
  ]
  if not policies:
    return None
  color = _color_of(policies)

  def draw(axes):
    for offset, group in zip((-0.2, 0.2), groups):
      for x, policy in enumerate(policies):
        cell = win_rate_vs_sft[policy][group]
        if cell is not None:
          _bar(axes, x + offset, cell, color[policy], pale=group == "heldout_labelers")
    axes.axhline(0.5, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=3)
    axes.set_xlim(-0.6, len(policies) + 0.35)  # room for the words at the end of the line
    axes.text(
      len(policies) + 0.33, 0.505, "SFT, 50 %", ha="right", va="bottom", color=_INK, fontsize=9.5
    )
    axes.set_xticks(
      range(len(policies)), [label(policy).replace(", ", ",\n") for policy in policies]
    )
    axes.tick_params(axis="x", labelsize=10.5, labelcolor=_INK)
    axes.grid(axis="x", visible=False)
    tops = [
      cell["high"]
      for policy in policies
      for cell in win_rate_vs_sft[policy].values()
      if isinstance(cell, Mapping)
    ]
    axes.set_ylim(0, max(0.7, min(1.08, max(tops) + 0.1)))
    _percent_axis(axes.yaxis)
    axes.set_ylabel("win rate against SFT")
    _group_legend(axes)

  return _svg("win-rates", draw, (7.4, 3.6))


def _bar(axes, x, cell, color, pale) -> None:
  axes.bar(
    x, cell["mean"], width=0.37, color=_pale(color) if pale else color, edgecolor=color, linewidth=1
  )
  axes.errorbar(
    x,
    cell["mean"],
    yerr=[[cell["mean"] - cell["low"]], [cell["high"] - cell["mean"]]],
    color=_INK,
    linewidth=1.3,
    capsize=4,
    capthick=1.3,
    zorder=4,
  )
  axes.text(
    x,
    cell["high"] + 0.018,
    f"{100 * cell['mean']:.1f}",
    ha="center",
    va="bottom",
    fontsize=10,
    color=_INK,
    zorder=5,
    bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6},
  )


def _group_legend(axes) -> None:
  from matplotlib.patches import Patch

  handles = [Patch(facecolor=face, edgecolor=_MUTED) for face in (_MUTED, _pale(_MUTED))]
  axes.legend(
    handles,
    ["training labelers", "held-out labelers"],
    loc="upper left",
    ncols=2,
    bbox_to_anchor=(0, 1.13),
    borderaxespad=0,
    handlelength=1.2,
  )


def reward_curve(
  reward: Mapping[str, Sequence[Mapping[str, Any]]], quantity: str, unit: str
) -> str | None:
  """One quantity of the validation prompts against the PPO iteration, a line per run; a band where
  the points have its ends, QUANTITY_low and QUANTITY_high."""
  lines = {run: _points(points, "step", quantity) for run, points in reward.items()}
  ends = {
    run: (
      *_points(points, "step", f"{quantity}_low"),
      _points(points, "step", f"{quantity}_high")[1],
    )
    for run, points in reward.items()
  }
  return _lines(f"curve-{quantity}", lines, "PPO iteration", unit, bands=ends)


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
  return np.array([a for a, _ in kept], float), np.array([b for _, b in kept], float)


def _lines(name, lines, x_label, y_label, marker=None, bands=None) -> str | None:
  bands = {} if bands is None else bands
  lines = {run: (x, y) for run, (x, y) in lines.items() if len(x)}
  if not lines:
    return None
  color = _color_of(list(lines))

  def draw(axes):
    for run, (x, y) in lines.items():
      alone = marker if marker or len(x) > 1 else "o"  # a line of one point is invisible
      if run in bands and len(bands[run][0]):
        axes.fill_between(*bands[run], color=_pale(color[run]), alpha=0.5, linewidth=0, zorder=1)
      axes.plot(
        x,
        y,
        color=color[run],
        label=label(run),
        marker=alone,
        markersize=3.5,
        linestyle="--" if run == "ppo" else "-",
      )
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if len(lines) > 1:
      axes.legend(loc="best")

  return _svg(name, draw)


def pretraining_curve(points: Sequence[Sequence[float | None]], name: str) -> str | None:
  """Training and held-out loss of the base model; points are (step, train, held-out)."""
  columns = {
    text: _points([dict(enumerate(point)) for point in points], 0, column)
    for column, text in ((1, "training batch"), (2, "held-out text"))
  }
  columns = {text: (x, y) for text, (x, y) in columns.items() if len(x)}
  if not columns:
    return None

  def draw(axes):
    for text, (x, y) in columns.items():
      held_out = text == "held-out text"
      axes.plot(
        x,
        y,
        color=COLORS["ppo_ptx"] if held_out else "#b4bcc8",
        linewidth=2.0 if held_out else 1.0,
        label=text,
      )
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(loc="upper right")

  return _svg(name, draw)


def pretraining_end(points: Sequence[Sequence[float | None]], name: str) -> str | None:
  """Held-out loss over the second half of the steps, where a plateau shows or does not."""
  held_out = [(step, loss) for step, _, loss in points if loss is not None]
  half = held_out[-1][0] / 2 if held_out else 0
  end = [(step, loss) for step, loss in held_out if step >= half]
  if len(end) < 3:
    return None

  def draw(axes):
    axes.plot(*zip(*end), color=COLORS["ppo_ptx"], linewidth=2.0, marker="o", markersize=3.5)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.ticklabel_format(useOffset=False)

  return _svg(name, draw)


def sft_epochs(points: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
  """Held-out loss and reward-model score of the SFT baseline after each epoch."""
  loss = _points(points, "epoch", "valid_nll")
  score = _points(points, "epoch", "score")
  return (
    _lines("sft-loss", {"sft": loss}, "epoch", "held-out loss (nats per token)", marker="o"),
    _lines("sft-score", {"sft": score}, "epoch", "reward-model score", marker="o"),
  )


def calibration(curve: Mapping[str, Any]) -> str | None:
  """Observed agreement against predicted probability; areas of the dots grow with pair counts."""
  bins = [b for b in curve["bins"] if b["n"]]
  if not bins:
    return None
  most = max(b["n"] for b in bins)

  def draw(axes):
    axes.plot([0.5, 1], [0.5, 1], color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(
      0.97, 0.985, "perfectly calibrated", ha="right", va="bottom", fontsize=9.5, color=_MUTED
    )
    x, y = [b["predicted"] for b in bins], [b["observed"] for b in bins]
    axes.plot(x, y, color=COLORS["ppo_ptx"], linewidth=1.2, alpha=0.6)
    axes.scatter(
      x,
      y,
      s=[14 + 110 * b["n"] / most for b in bins],
      color=COLORS["ppo_ptx"],
      edgecolor="white",
      linewidth=0.8,
      zorder=3,
    )
    axes.set_xlim(0.48, 1.02)
    axes.set_ylim(min(0.45, min(y) - 0.05), 1.04)
    _percent_axis(axes.xaxis)
    _percent_axis(axes.yaxis)
    axes.set_xlabel("predicted probability, σ(score difference)")
    axes.set_ylabel("pairs ranked as predicted")

  return _svg("calibration", draw)


def pretraining_nll(nll: Mapping[str, float | None]) -> str | None:
  """Held-out pretraining loss, one row per model, with the PPO start as the line to compare to."""
  models = [model for model in nll if nll[model] is not None and model != "chance"]
  if not models:
    return None
  color = _color_of(models)

  def draw(axes):
    start = nll["ppo_init"] if "ppo_init" in nll else None
    low, high = min(nll[m] for m in models), max(nll[m] for m in models)
    room = (high - low) or 0.1
    for row, model in enumerate(models):
      value = nll[model]
      if start is not None:
        axes.plot([start, value], [row, row], color=color[model], linewidth=3, alpha=0.45)
      axes.plot(
        value,
        row,
        marker=_MARKERS[model] if model in _MARKERS else "P",
        markersize=8,
        color=color[model],
        linestyle="none",
      )
      # Text goes away from the start line, so that the bar does not run through it.
      left = start is not None and value < start
      axes.annotate(
        f"{value:.3f}",
        (value, row),
        (-9 if left else 9, 0),
        va="center",
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=10,
      )
    if start is not None:
      axes.axvline(start, color=COLORS["ppo_init"], linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(models)), [label(model) for model in models])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.invert_yaxis()
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(low - 0.24 * room, high + 0.24 * room)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("loss on held-out pretraining text (nats per token)")

  return _svg("pretraining-nll", draw)


def few_shot(tasks: Mapping[str, Mapping[str, float | None]]) -> str | None:
  """Accuracy of each model, one row per task."""
  names = [task for task, cells in tasks.items() if cells is not None]
  models = list(
    dict.fromkeys(
      model for task in names for model, value in tasks[task].items() if value is not None
    )
  )
  if not models:
    return None
  shown = [model for model in models if model != "chance"]
  color = _color_of(shown)
  spread = np.linspace(-0.3, 0.3, len(shown)) if len(shown) > 1 else [0.0]

  def draw(axes):
    for offset, model in zip(spread, shown):
      rows = [
        row
        for row, task in enumerate(names)
        if model in tasks[task] and tasks[task][model] is not None
      ]
      axes.plot(
        [tasks[names[row]][model] for row in rows],
        [row + offset for row in rows],
        linestyle="none",
        marker=_MARKERS[model] if model in _MARKERS else "P",
        markersize=7,
        color=color[model],
        label=label(model),
      )
    for row, task in enumerate(names):
      if "chance" in tasks[task] and tasks[task]["chance"] is not None:
        axes.plot(
          [tasks[task]["chance"]] * 2,
          [row - 0.42, row + 0.42],
          color=_INK,
          linewidth=1,
          linestyle=(0, (2, 2)),
          label="Chance" if row == 0 else None,
        )
      if row:
        axes.axhline(row - 0.5, color=_GRID, linewidth=0.8)
    axes.set_yticks(range(len(names)), [label(task) for task in names])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="y", visible=False)
    _percent_axis(axes.xaxis)
    axes.set_xlabel("accuracy")
    axes.figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.2)

  return _svg("few-shot", draw, (5.2, max(2.6, 1.4 + 0.5 * len(names))))


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
    for (policy, group), cell in cells.items():
      training = group == "training_labelers"
      x = policies.index(policy) + (-0.16 if training else 0.16)
      pool = cell["pooled"]
      axes.errorbar(
        x,
        pool["mean"],
        color=color[policy],
        capsize=4,
        linewidth=1.8,
        markersize=8,
        yerr=[[pool["mean"] - pool["low"]], [pool["high"] - pool["mean"]]],
        marker="o",
        markerfacecolor=color[policy] if training else "white",
      )
      seeds = [one["mean"] for one in cell["per_seed"].values()]
      axes.plot(
        [x + 0.09] * len(seeds),
        seeds,
        linestyle="none",
        marker="o",
        markersize=3.5,
        color=color[policy],
        alpha=0.7,
      )
      axes.annotate(
        f"{100 * pool['mean']:.1f}",
        (x, pool["high"]),
        (0, 6),
        ha="center",
        textcoords="offset points",
        fontsize=10,
      )
    axes.axhline(0.5, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xticks(range(len(policies)), [label(policy) for policy in policies])
    axes.tick_params(axis="x", labelsize=11, labelcolor=_INK)
    axes.set_xlim(-0.6, len(policies) - 0.4)
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    _percent_axis(axes.yaxis)
    axes.set_ylabel("win rate against SFT")

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
        axes.axhline(0, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
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
  means = [cell["pooled"]["mean"] for cell in cells]
  ends = [
    [cell["pooled"]["mean"] - cell["pooled"]["low"] for cell in cells],
    [cell["pooled"]["high"] - cell["pooled"]["mean"] for cell in cells],
  ]
  axes.errorbar(
    places,
    means,
    yerr=ends,
    color=color,
    marker="o",
    markersize=5.5,
    capsize=3,
    linewidth=0,
    elinewidth=1.4,
    label=label(name),
    zorder=3,
  )
  from_zero = 1 if rows[0]["overrides"][x] == 0 and places[0] > 0 else 0
  axes.plot(places[from_zero:], means[from_zero:], color=color, zorder=2)
  axes.plot(
    places[: from_zero + 1],
    means[: from_zero + 1],
    color=color,
    linewidth=1,
    linestyle=(0, (2, 2)),
    zorder=2,
  )
  for place, cell in zip(places, cells):
    seeds = list(cell["per_seed"].values())
    if len(seeds) > 1:
      axes.plot(
        [place] * len(seeds),
        seeds,
        linestyle="none",
        marker="o",
        markersize=2.6,
        color=color,
        alpha=0.55,
        zorder=2,
      )


def _sweep_axis(axes_M, position, ticks) -> None:
  for axes in axes_M:
    if ticks != "names":
      axes.set_xscale("log")
      axes.minorticks_off()
    axes.set_xticks(
      list(position.values()),
      [f"{value:g}" if isinstance(value, float) else str(value) for value in position],
      rotation=30 if len(position) > 7 else 0,
    )
  if ticks == "names":
    axes_M[-1].set_xlim(-0.5, len(position) - 0.5)
  if ticks == "log and 0":  # the axis is broken between 0 and the smallest number
    zero, least = position[0], min(value for value in position if value > 0)
    for axes in axes_M:
      axes.plot(
        [(zero * least) ** 0.5],
        [0],
        marker=[(-1, -1), (1, 1)],
        markersize=9,
        color=_INK,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        linestyle="none",
        zorder=5,
      )
      axes.plot(
        [(zero * least) ** 0.5 * (least / zero) ** 0.06],
        [0],
        marker=[(-1, -1), (1, 1)],
        markersize=9,
        color=_INK,
        transform=axes.get_xaxis_transform(),
        clip_on=False,
        linestyle="none",
        zorder=5,
      )


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
  spread = np.linspace(-0.32, 0.32, len(models)) if len(models) > 1 else [0.0]

  def draw(axes):
    for offset, model in zip(spread, models):
      known = [
        (place, row["cells"][model]) for place, row in enumerate(rows) if model in row["cells"]
      ]
      means = [cell["mean"] for _, cell in known]
      ends = [
        [cell["mean"] - cell["low"] for _, cell in known],
        [cell["high"] - cell["mean"] for _, cell in known],
      ]
      axes.errorbar(
        means,
        [place + offset for place, _ in known],
        xerr=np.maximum(ends, 0),
        color=color[model],
        marker=marker[model],
        markersize=6,
        capsize=2.5,
        linewidth=0,
        elinewidth=1.4,
        label=label(model),
      )
    axes.set_yticks(range(len(rows)), [label(row["variant"]) for row in rows])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.08)
    better = {"higher": " (higher is better)", "lower": " (lower is better)", "": ""}
    axes.set_xlabel(label(rows[0]["metric"]) + better[rows[0]["better"]])
    if len(models) > 1:
      axes.figure.legend(loc="outside upper left", ncols=3, handletextpad=0.3, columnspacing=1.2)

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
      means = np.array([point["mean"] for point in found])
      ends = [
        means - [point["low"] for point in found],
        np.array([point["high"] for point in found]) - means,
      ]
      axes.errorbar(
        [point["parameters"] for point in found],
        means,
        yerr=np.maximum(ends, 0),
        color=color[method],
        marker=_MARKERS[method] if method in _MARKERS else "P",
        markersize=6,
        capsize=3,
        elinewidth=1.3,
        label=label(method),
      )
    if line is not None:
      axes.axhline(line, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
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
      axes.figure.legend(
        loc="outside upper left",
        columnspacing=1.2,
        ncols=3 if max(map(len, points)) > 12 else len(points),
      )

  return _svg(name, draw, (6.2, 3.9))


def short_count(count: float) -> str:
  """1,040,256 is 1.0M."""
  for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
    if count >= size:
      return f"{count / size:.1f}{unit}" if count < 10 * size else f"{count / size:.0f}{unit}"
  return f"{count:.0f}"
