"""report.json and report.html: what a run showed, on one self-contained page.

Every sentence and every number of the page is computed from the data.  A part that a data set
cannot give (your own data have no gold score and no labelers to ask again) is `None` or left out,
and the page says so.

`write_report` takes

    {"title": str,
     "report": {...},                     # report.json, see REPORT_SCHEMA; extra keys are kept
     "config_summary": {name: value},
     "prompt_format": str,                # how the base model was prompted
     "temperatures": {what: temperature},
     "paired_difference": {"training_labelers": interval, "heldout_labelers": interval},
     "curves": {"base": [(step, train nll, held-out nll)],
                "base_more_pretraining": the same,
                "sft": [{"epoch", "valid_nll", "score"}],
                "reward": {"ppo": [{"step", "reward", "kl", "gold"}], "ppo_ptx": [...]}},
                                     # and "reward_low", "reward_high", which are drawn as a band
     "calibration": calibration.calibration_curve(...),
     "samples": [{"prompt": str, "completions": {model: str}, "gold": {model: float} | None}],
     "notes": [str]}

An interval is {"mean", "low", "high", "n"}; its n counts prompts.  `reward_model.n` counts untied
pairs.  Besides the schema, `report` may hold, and the page then shows:

    "likert": {policy: {"training_labelers": interval, "heldout_labelers": interval}}
    "metadata": {policy: {label: interval}}
    "reward_model": {..., "accuracy_interval": interval, "length_baseline_accuracy": float}
    "reward": {policy: interval}      "reward_minus_sft": {policy: interval}
    "pretraining_nll_rise": {"ppo": interval, "ppo_ptx": interval}    of the loss since PPO's start
    "pretraining_nll": {..., "bigram": float}     "few_shot_tasks": {task: {..., "chance": float}}
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.report import figures, page
from rlhf.report.page import GROUP_LABELS, number, percent

# A smaller fall of the mean few-shot accuracy is not called a loss: an item or two of each task.
LEAST_LOSS = 0.01

_TAXED = ("ppo_init", "ppo", "ppo_ptx")
_INTERVAL = {"mean": float, "low": float, "high": float, "n": int}
_BY_GROUP = {group: _INTERVAL for group in GROUP_LABELS}

# Keys of report.json, all required.  "*" says what any further key holds; where there is none, a
# further key may hold anything.  A tuple lists alternatives.  Any value may be null.
REPORT_SCHEMA = {
  "win_rate_vs_sft": dict.fromkeys(("base", "ppo", "ppo_ptx", "*"), _BY_GROUP),
  "reward_model": {"accuracy": float, "accuracy_heldout_labelers": float, "n": int},
  "labelers": {"agreement_training": float, "agreement_heldout": float},
  "pretraining_nll": dict.fromkeys(
    ("base", "base_more_pretraining", "ppo_init", "sft", "ppo", "ppo_ptx", "*"), float
  ),
  "few_shot_tasks": {"*": {"*": float}},
  "gold_score": {"*": (float, {"*": float})},
  "first_minibatch_ratio_max_error": float,
  "wall_seconds": {"*": float},
  "seed": int,
}


def check_report_json(report: Mapping[str, Any]) -> None:
  """Checks a report against `REPORT_SCHEMA`; extra keys are allowed, null is allowed anywhere.

  Raises:
    ValueError: naming the key, what was found and what would be right.
  """
  if "init" in (report.get("pretraining_nll") or ()):
    raise ValueError(
      "report.pretraining_nll.init is now called ppo_init: an earlier version wrote this report; "
      "run the pipeline again"
    )
  _check(report, REPORT_SCHEMA, "report")


def _check(value: Any, schema: Any, where: str) -> None:
  if value is None:
    return
  if isinstance(schema, tuple):
    number, mapping = schema
    _check(value, mapping if isinstance(value, Mapping) else number, where)
  elif isinstance(schema, dict):
    if not isinstance(value, Mapping):
      raise ValueError(f"{where} is {value!r}; use an object or null")
    for key in schema:
      if key != "*" and key not in value:
        raise ValueError(f"{where} has no key {key!r}; write null where the data cannot give it")
    for key in value:
      if key in schema or "*" in schema:
        _check(value[key], schema[key if key in schema else "*"], f"{where}.{key}")
  elif isinstance(value, bool) or not isinstance(value, (int, schema)):
    kind = "a whole number" if schema is int else "a number"
    raise ValueError(f"{where} is {value!r}; use {kind} or null")
  elif not math.isfinite(value):
    raise ValueError(f"{where} is {value!r}; use a finite number or null")


def alignment_tax(report: Mapping[str, Any]) -> dict[str, Any]:
  """What PPO lost against its start and what PPO-ptx recovered of it.

      recovered = 1 - (loss of PPO-ptx) / (loss of PPO)

  where the loss is the rise of the pretraining NLL, or the fall of a few-shot accuracy, against
  "ppo_init", the model that both PPO runs started from.  Above 1, PPO-ptx is better than the start.

  Returns:
    {"pretraining_nll": entry, "few_shot_mean": entry, "few_shot_tasks": {task: entry}}, an entry
    being {"ppo_init", "ppo", "ppo_ptx", "recovered"} or None without numbers; "recovered" is None
    where PPO lost nothing, no more than LEAST_LOSS of an accuracy, or where the interval of the
    rise of the NLL, if there is one, includes 0.  `few_shot_mean` weighs every task equally.
  """
  tasks = report["few_shot_tasks"] or {}
  by_task = {task: _tax_entry(cells, sign=-1, least=LEAST_LOSS) for task, cells in tasks.items()}
  known = [entry for entry in by_task.values() if entry is not None]
  mean = None
  if known:
    mean = {model: sum(entry[model] for entry in known) / len(known) for model in _TAXED}
  nll = _tax_entry(report["pretraining_nll"], sign=1, least=0.0)
  rise = report.get("pretraining_nll_rise")
  if nll is not None and rise is not None and rise["ppo"]["low"] <= 0:
    nll["recovered"] = None
  return {
    "pretraining_nll": nll,
    "few_shot_mean": _tax_entry(mean, sign=-1, least=LEAST_LOSS),
    "few_shot_tasks": by_task,
  }


def _tax_entry(
  cells: Mapping[str, Any] | None, *, sign: int, least: float
) -> dict[str, Any] | None:
  if cells is None or any(cells.get(model) is None for model in _TAXED):
    return None
  lost_ppo, lost_ptx = (sign * (cells[model] - cells["ppo_init"]) for model in _TAXED[1:])
  recovered = 1 - lost_ptx / lost_ppo if lost_ppo > least else None
  return {**{model: cells[model] for model in _TAXED}, "recovered": recovered}


# ---- Sentences, from numbers alone.


def recovered_text(recovered: float) -> str:
  """`alignment_tax`'s "recovered"; a large multiple of a small loss says no more than that."""
  return "> " * (recovered > 2) + percent(min(recovered, 2.0), 0)


def verdict(interval: Mapping[str, float], middle: float = 0.5) -> int:
  """1 where the whole interval lies above `middle`, -1 below, 0 where it includes it."""
  return int(interval["low"] > middle) - int(interval["high"] < middle)


def _findings(report, paired) -> dict[str, Any]:
  """What the templates say about the tax and about preferences: "policy", whom the headline is
  about ("" without labelers), and intervals by group of labelers."""
  rates = report["win_rate_vs_sft"] or {}
  known = {policy: figures.known_groups(cells) for policy, cells in rates.items()}
  policy = next((policy for policy in ("ppo_ptx", "ppo") if known.get(policy)), "")
  judged = known.get(policy, {})
  return dict(
    tax=alignment_tax(report),
    recovered=recovered_text,
    policy=policy,
    judged=judged,
    verdicts={group: verdict(cell) for group, cell in judged.items()},
    base=known.get("base"),
    paired=figures.known_groups(paired),
  )


def sentences(report: Mapping[str, Any], paired: Mapping[str, Any] | None = None) -> list[str]:
  """The page's headline, and the sentences under it: one per claim that the data can speak to."""
  return page.paragraphs("findings.txt", report=report, **_findings(report, paired))


def plateau(points: Sequence[Sequence[Any]]) -> str | None:
  """How far the held-out loss still moved in the last quarter of the steps, as a sentence."""
  held_out = [(step, loss) for step, _, loss in points if loss is not None]
  late = [(step, loss) for step, loss in held_out if step >= 0.75 * held_out[-1][0]]
  if len(late) < 2:
    return None
  (first_step, first), (last_step, last) = late[0], late[-1]
  return (
    f"From step {first_step:,} to {last_step:,} the held-out loss "
    f"{'rose' if last > first else 'fell'} by {number(abs(last - first))} nats per token "
    f"({percent(abs(last / first - 1))})."
  )


# ---- The page.


def _figures(report, curves, calibration) -> dict[str, str | None]:
  base, more, sft = (curves.get(name) or [] for name in ("base", "base_more_pretraining", "sft"))
  reward = curves.get("reward") or {}
  sft_loss, sft_score = figures.sft_epochs(sft)
  return dict(
    win_rates=figures.win_rates(report["win_rate_vs_sft"] or {}),
    reward=figures.reward_curve(reward, "reward", "reward-model score"),
    kl=figures.reward_curve(reward, "kl", "KL to the reference (nats per response)"),
    gold=figures.reward_curve(reward, "gold", "gold score"),
    root_kl=figures.reward_against_root_kl(reward),
    calibration=calibration and figures.calibration(calibration),
    pretraining_nll=figures.pretraining_nll(report["pretraining_nll"] or {}),
    few_shot=figures.few_shot(report["few_shot_tasks"] or {}),
    base=figures.pretraining_curve(base, "base"),
    base_end=figures.pretraining_end(base, "base-end"),
    base_more_pretraining=figures.pretraining_curve(more, "base-more"),
    sft_loss=sft_loss,
    sft_score=sft_score,
  )


def render_html(data: Mapping[str, Any]) -> str:
  """The page as a string; see the module's docstring for `data`.

  Raises:
    ValueError: `data["report"]` is not a report, see `check_report_json`.
  """
  part: dict[str, Any] = dict(
    title="RLHF report",
    config_summary={},
    prompt_format=None,
    temperatures={},
    paired_difference=None,
    curves={},
    calibration=None,
    samples=[],
    notes=[],
  )
  part |= {key: value for key, value in data.items() if value is not None}
  report, paired = part["report"], part["paired_difference"]
  check_report_json(report)
  headline, *findings = sentences(report, paired)
  gold = {
    model: value if isinstance(value, Mapping) else {"score": value}
    for model, value in (report["gold_score"] or {}).items()
    if value is not None
  }
  return page.render(
    "report.html",
    **part,
    simulated=report["win_rate_vs_sft"] is not None or report["labelers"] is not None,
    headline=headline,
    findings=findings,
    figures=_figures(report, part["curves"], part["calibration"]),
    gold=gold,
    plateau=plateau(part["curves"].get("base") or ()),
    **_findings(report, paired),
  )


def write_report(directory: str | pathlib.Path, data: Mapping[str, Any]) -> pathlib.Path:
  """Writes report.json and report.html.

  report.json is `data["report"]` and two keys more: "paired_difference" as given, and
  "alignment_tax" as computed here.

  Args:
    directory: made if it is absent.
    data: see the module's docstring.

  Returns:
    The path of report.html.

  Raises:
    ValueError: see `check_report_json`; nothing is written then.
  """
  html = render_html(data)
  report = {
    **data["report"],
    "alignment_tax": alignment_tax(data["report"]),
    "paired_difference": data.get("paired_difference"),
  }
  directory = pathlib.Path(directory)
  workdir_lib.write_json(directory / "report.json", report)
  workdir_lib.write_text(directory / "report.html", html)
  return directory / "report.html"
