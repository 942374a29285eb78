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
from rlhf.report.page import GROUP_LABELS, number, percent, points

# A smaller fall of the mean few-shot accuracy is not called a loss: an item or two of each task.
LEAST_LOSS = 0.01

_NUMBER = float
_INTERVAL = {"mean": float, "low": float, "high": float, "n": int}
_BY_GROUP = {group: _INTERVAL for group in GROUP_LABELS}

# Keys of report.json, all required.  "*" says what any further key holds; where there is none, a
# further key may hold anything.  A tuple lists alternatives.  Any value may be null.
REPORT_SCHEMA = {
  "win_rate_vs_sft": {policy: _BY_GROUP for policy in ("base", "ppo", "ppo_ptx", "*")},
  "reward_model": {"accuracy": _NUMBER, "accuracy_heldout_labelers": _NUMBER, "n": int},
  "labelers": {"agreement_training": _NUMBER, "agreement_heldout": _NUMBER},
  "pretraining_nll": {
    model: _NUMBER
    for model in ("base", "base_more_pretraining", "ppo_init", "sft", "ppo", "ppo_ptx", "*")
  },
  "few_shot_tasks": {"*": {"*": _NUMBER}},
  "gold_score": {"*": (_NUMBER, {"*": _NUMBER})},
  "first_minibatch_ratio_max_error": _NUMBER,
  "wall_seconds": {"*": _NUMBER},
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
  tasks = report["few_shot_tasks"] if report["few_shot_tasks"] is not None else {}
  by_task = {task: _tax_entry(cells, sign=-1, least=LEAST_LOSS) for task, cells in tasks.items()}
  known = [entry for entry in by_task.values() if entry is not None]
  mean = (
    {
      model: sum(entry[model] for entry in known) / len(known)
      for model in ("ppo_init", "ppo", "ppo_ptx")
    }
    if known
    else None
  )
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
  models = ("ppo_init", "ppo", "ppo_ptx")
  if cells is None or any(model not in cells or cells[model] is None for model in models):
    return None
  lost_ppo, lost_ptx = (sign * (cells[model] - cells["ppo_init"]) for model in models[1:])
  recovered = 1 - lost_ptx / lost_ppo if lost_ppo > least else None
  return {**{model: cells[model] for model in models}, "recovered": recovered}


# ---- Sentences, from numbers alone.


def recovered_text(recovered: float) -> str:
  """`alignment_tax`'s "recovered"; a large multiple of a small loss says no more than that."""
  return "> " * (recovered > 2) + percent(min(recovered, 2.0), 0)


def verdict(interval: Mapping[str, float], middle: float = 0.5) -> int:
  """1 where the whole interval lies above `middle`, -1 below, 0 where it includes it."""
  return int(interval["low"] > middle) - int(interval["high"] < middle)


def _known_groups(cells: Mapping[str, Any] | None) -> dict[str, Mapping[str, float]]:
  """Group of labelers -> interval, of the groups that judged."""
  cells = {} if cells is None else cells
  return {group: cells[group] for group in GROUP_LABELS if cells.get(group) is not None}


def _judged_policy(report) -> tuple[str, dict[str, Mapping[str, float]]]:
  """The policy that the headline is about, and its intervals by group; "" without labelers."""
  rates = report["win_rate_vs_sft"]
  for policy in ("ppo_ptx", "ppo"):
    if cells := _known_groups(None if rates is None else rates[policy]):
      return policy, cells
  return "", {}


def headline(report: Mapping[str, Any]) -> str:
  """The page's first sentence."""
  policy, cells = _judged_policy(report)
  if not policy:
    return _headline_without_labelers(report)
  name = figures.label(policy)
  verdicts = {GROUP_LABELS[group]: verdict(cell) for group, cell in cells.items()}
  if len(set(verdicts.values())) > 1:
    answers = ("no clear preference", "yes", "no")
    parts = [f"{group}: {answers[found]}" for group, found in verdicts.items()]
    return f"Is {name} preferred to SFT? {'; '.join(parts).capitalize()}."
  who = "training and held-out labelers" if len(cells) == 2 else next(iter(verdicts))
  return (
    f"{who.capitalize()} show no clear preference between {name} and SFT.",
    f"{name} is preferred to SFT by {who}.",
    f"SFT is preferred to {name} by {who}.",
  )[next(iter(verdicts.values()))]


def _reward_accuracy(report, ending: str = "") -> str | None:
  model = report["reward_model"]
  if model is None or model["accuracy"] is None:
    return None
  return (
    f"The reward model ranks {percent(model['accuracy'])} of held-out pairs as the "
    f"labelers did{ending}"
  )


def _headline_without_labelers(report) -> str:
  found, baseline = _reward_accuracy(report), _length_baseline(report)
  if found is None:
    return "This run has neither labelers to ask nor a reward-model accuracy to report."
  return found + (f"; the longer-completion rule gets {percent(baseline)}." if baseline else ".")


def _length_baseline(report) -> Any:
  model = report["reward_model"]
  return None if model is None else model.get("length_baseline_accuracy")


def findings(report: Mapping[str, Any], paired: Mapping[str, Any] | None = None) -> list[str]:
  """The sentences under the headline, one per claim that the data can speak to."""
  sentences = (
    _say_win_rates(report),
    _say_base(report),
    _say_paired(paired),
    _say_reward_model(report),
    _say_bigram(report),
    _say_pretraining(report),
    _say_few_shot(report),
  )
  return [sentence for sentence in sentences if sentence]


def _say_win_rates(report) -> str:
  policy, cells = _judged_policy(report)
  if not policy:
    return (
      "There are no win rates: this data set has no labelers who could compare new completions."
    )
  clauses = [
    f"{GROUP_LABELS[group].capitalize()} prefer {figures.label(policy)} to SFT in "
    f"{percent(cell['mean'])} of comparisons (95\u202f% interval {page.percent_range(cell)}, "
    f"{('which includes', 'above', 'below')[verdict(cell)]} 50\u202f%)"
    for group, cell in cells.items()
  ]
  return "; ".join(clauses).replace("; Held", "; held") + "."


def _say_base(report) -> str | None:
  rates = report["win_rate_vs_sft"]
  known = _known_groups(None if rates is None else rates["base"])
  if not known:
    return None
  shares = " and ".join(percent(cell["mean"]) for cell in known.values())
  return f"The base model, prompted, wins {shares} of comparisons against SFT."


def _say_paired(paired) -> str | None:
  cells = _known_groups(paired)
  if not cells:
    return None
  clauses = [
    f"{points(cell['mean'])} points with {GROUP_LABELS[group]} "
    f"({points(cell['low'])} to {points(cell['high'])})"
    for group, cell in cells.items()
  ]
  num_prompts = next(iter(cells.values()))["n"]
  return f"PPO-ptx minus PPO, paired over {num_prompts:,} prompts: {'; '.join(clauses)}."


def _say_reward_model(report) -> str | None:
  model, labelers = report["reward_model"], report["labelers"]
  num_pairs = model["n"] if model is not None else None
  found = _reward_accuracy(report, "" if num_pairs is None else f" ({num_pairs:,} untied pairs)")
  if found is None:
    return None
  if labelers is not None and labelers["agreement_training"] is not None:
    found += (
      f"; training labelers agree with one another in {percent(labelers['agreement_training'])}"
    )
  if _length_baseline(report) is not None:
    found += f"; preferring the longer completion gets {percent(_length_baseline(report))}"
  return found + "."


def _say_bigram(report) -> str | None:
  nll = report["pretraining_nll"]
  if nll is None or nll.get("bigram") is None or nll["base"] is None:
    return None
  return (
    f"The base model's loss on held-out pretraining text is {number(nll['base'])} nats per "
    f"token; bigram counts reach {number(nll['bigram'])}."
  )


def _say_pretraining(report) -> str | None:
  tax = alignment_tax(report)["pretraining_nll"]
  if tax is None:
    return None
  moved = (
    f"the loss on pretraining text from {number(tax['ppo_init'])} to {number(tax['ppo'])} "
    "nats per token"
  )
  rise = report.get("pretraining_nll_rise")
  if tax["recovered"] is None and rise is not None and tax["ppo"] > tax["ppo_init"]:
    interval = lambda cell: f"{number(cell['low'])} to {number(cell['high'])}"
    return (
      f"The rise of {moved} with PPO is not distinguishable from zero (95\u202f% interval "
      f"{interval(rise['ppo'])}), so there is no alignment tax on it to recover; with "
      f"PPO-ptx the loss changes by {number(rise['ppo_ptx']['mean'])} "
      f"({interval(rise['ppo_ptx'])})."
    )
  if tax["recovered"] is None:
    return f"PPO did not raise {moved}, so there is no alignment tax on it to recover."
  more = report["pretraining_nll"]["base_more_pretraining"]
  control = (
    ""
    if more is None
    else f"; the base model given the same extra pretraining tokens reaches {number(more)}"
  )
  return (
    f"PPO raised {moved}; PPO-ptx ends at {number(tax['ppo_ptx'])}, which recovers "
    f"{recovered_text(tax['recovered'])} of the rise{control}."
  )


def _say_few_shot(report) -> str | None:
  tax = alignment_tax(report)["few_shot_mean"]
  if tax is None:
    return None
  moved = f"{percent(tax['ppo_init'])} at the start to {percent(tax['ppo'])}"
  if tax["ppo_init"] <= tax["ppo"]:
    return f"Few-shot accuracy, averaged over the tasks, did not fall with PPO ({moved})."
  if tax["recovered"] is None:
    return (
      f"Few-shot accuracy, averaged over the tasks, fell by no more than a point with PPO "
      f"({moved}), so there is nothing to recover; with PPO-ptx it is {percent(tax['ppo_ptx'])}."
    )
  return (
    f"Few-shot accuracy, averaged over the tasks, fell with PPO from {moved}; with PPO-ptx "
    f"it is {percent(tax['ppo_ptx'])}, which recovers {percent(tax['recovered'], 0)}."
  )


def plateau(points: Sequence[Sequence[Any]]) -> str | None:
  """How far the held-out loss still moved in the last quarter of the steps, as a sentence."""
  held_out = [(step, loss) for step, _, loss in points if loss is not None]
  last_step = held_out[-1][0] if held_out else 0
  late = [(step, loss) for step, loss in held_out if step >= 0.75 * last_step]
  if len(late) < 2:
    return None
  (first_step, first), (_, last) = late[0], late[-1]
  moved = "rose" if last > first else "fell"
  return (
    f"From step {first_step:,} to {last_step:,} the held-out loss {moved} by "
    f"{number(abs(last - first))} nats per token ({percent(abs(last / first - 1))})."
  )


def _tiles(report, paired) -> list[dict[str, str]]:
  """The few numbers that matter, each with its interval or what to compare it to."""
  tiles = []
  add = lambda value, name, detail: tiles.append(dict(value=value, name=name, detail=detail))
  policy, cells = _judged_policy(report)
  for group, cell in cells.items():
    name = f"{figures.label(policy)} against SFT, {GROUP_LABELS[group]}"
    add(percent(cell["mean"]), name, f"95\u202f% interval {page.percent_range(cell)}")
  for group, cell in list(_known_groups(paired).items())[:1]:
    name = f"points, PPO-ptx minus PPO, {GROUP_LABELS[group]}"
    ends = f"{points(cell['low'])} to {points(cell['high'])}"
    add(points(cell["mean"]), name, f"95\u202f% interval {ends}")
  if _reward_accuracy(report) is not None:
    labelers, baseline = report["labelers"], _length_baseline(report)
    agreement = None if labelers is None else labelers["agreement_training"]
    detail = "" if baseline is None else f"longer completion: {percent(baseline)}"
    if agreement is not None:
      detail = f"labelers agree {percent(agreement)}"
    add(percent(report["reward_model"]["accuracy"]), "reward-model accuracy", detail)
  tax = alignment_tax(report)["pretraining_nll"]
  if tax is not None and tax["recovered"] is not None:
    rises = (tax[model] - tax["ppo_init"] for model in ("ppo", "ppo_ptx"))
    ppo, ptx = ("+" * (rise >= 0) + number(rise) for rise in rises)
    name = "of PPO's pretraining loss recovered by PPO-ptx"
    add(recovered_text(tax["recovered"]), name, f"{ppo} became {ptx} nats per token")
  return tiles


# ---- The page.


def _gold_columns(gold: Mapping[str, Any] | None) -> dict[str, dict[str, float | None]]:
  """Every model's gold score as {component: number}."""
  if gold is None:
    return {}
  return {
    model: dict(value) if isinstance(value, Mapping) else {"score": value}
    for model, value in gold.items()
    if value is not None
  }


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
  """Keys of all rows, in the order of their first appearance."""
  return list(dict.fromkeys(key for row in rows.values() if row is not None for key in row))


def _figures(report, curves, calibration) -> dict[str, Any]:
  def given(section):
    return curves[section] if section in curves and curves[section] is not None else {}

  reward = given("reward")
  sft_loss, sft_score = figures.sft_epochs(given("sft")) if given("sft") else (None, None)

  def if_known(draw, value):
    return draw(value) if value is not None else None

  return {
    "win_rates": if_known(figures.win_rates, report["win_rate_vs_sft"]),
    "reward": figures.reward_curve(reward, "reward", "reward-model score"),
    "kl": figures.reward_curve(reward, "kl", "KL to the reference (nats per response)"),
    "gold": figures.reward_curve(reward, "gold", "gold score"),
    "root_kl": figures.reward_against_root_kl(reward),
    "calibration": if_known(figures.calibration, calibration),
    "pretraining_nll": if_known(figures.pretraining_nll, report["pretraining_nll"]),
    "few_shot": if_known(figures.few_shot, report["few_shot_tasks"]),
    "base": figures.pretraining_curve(given("base"), "base") if given("base") else None,
    "base_end": figures.pretraining_end(given("base"), "base-end") if given("base") else None,
    "base_more_pretraining": figures.pretraining_curve(given("base_more_pretraining"), "base-more")
    if given("base_more_pretraining")
    else None,
    "sft_loss": sft_loss,
    "sft_score": sft_score,
  }


def render_html(data: Mapping[str, Any]) -> str:
  """The page as a string; see the module's docstring for `data`.

  Raises:
    ValueError: `data["report"]` is not a report, see `check_report_json`.
  """
  part = {
    "title": "RLHF report",
    "config_summary": {},
    "prompt_format": None,
    "temperatures": {},
    "paired_difference": None,
    "curves": {},
    "calibration": None,
    "samples": [],
    "notes": [],
    **{key: value for key, value in data.items() if value is not None},
  }
  report = part["report"]
  check_report_json(report)
  optional = {"likert": None, "metadata": None}
  extra = {key: report[key] if key in report else value for key, value in optional.items()}
  gold = _gold_columns(report["gold_score"])
  return page.render(
    "report.html",
    **{**part, **extra},
    simulated=report["win_rate_vs_sft"] is not None or report["labelers"] is not None,
    headline=headline(report),
    findings=findings(report, part["paired_difference"]),
    tiles=_tiles(report, part["paired_difference"]),
    tax=alignment_tax(report),
    figures=_figures(report, part["curves"], part["calibration"]),
    groups=GROUP_LABELS,
    recovered=recovered_text,
    gold=gold,
    gold_columns=_columns(gold),
    length_baseline=_length_baseline(report),
    few_shot_columns=_columns(report["few_shot_tasks"]) if report["few_shot_tasks"] else [],
    plateau=plateau(part["curves"]["base"]) if "base" in part["curves"] else None,
    metadata_columns=_columns(extra["metadata"]) if extra["metadata"] else [],
    sample_models=_sample_models(part["samples"]),
  )


def _sample_models(samples: Sequence[Mapping[str, Any]]) -> list[str]:
  return list(dict.fromkeys(model for sample in samples for model in sample["completions"]))


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
    "paired_difference": data["paired_difference"] if "paired_difference" in data else None,
  }
  directory = pathlib.Path(directory)
  workdir_lib.write_json(directory / "report.json", report)
  workdir_lib.write_text(directory / "report.html", html)
  return directory / "report.html"
