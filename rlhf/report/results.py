"""What the stages of a pipeline found, as the parts of report.json and the curves of its page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import metrics as metrics_lib
from rlhf import networks, stages
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import statistics, units
from rlhf.evals.preference import comparison, win_rates
from rlhf.evals.suites import pretraining
from rlhf.model.architecture import ModelConfig
from rlhf.networks import Network
from rlhf.tinyworld import gold
from rlhf.tinyworld.world import World, make_world
from rlhf.workdir import read_jsonl

Bootstrap = Mapping[str, int]  # num_resamples and seed
POLICIES = ("base", "sft", "ppo", "ppo_ptx")  # whose ratings and samples are shown
PPO_RUNS = ("ppo", "ppo_ptx")
SHOWN_SAMPLES = 30


# ----------------------------------------------------------------------------- the whole report


def contents(config, workdir: pathlib.Path, reward: Network) -> dict[str, Any]:
  """What `report.pipeline.write_report` takes, from what the stages of a run left."""
  done = {name: workdir_lib.done_result(workdir / name) for name in stages.table(config)}
  seconds = {name: result["seconds"] for name, result in done.items()}
  evaluated, stage = done["evaluation"], workdir / "evaluation"
  paired, num_prompts, _ = (
    evaluated.pop(name) for name in ("paired_difference", "num_prompts", "seconds")
  )
  accuracy, calibration = reward_accuracy(config, workdir, reward)
  samples = read_jsonl(stage / "preference" / "completions.jsonl")[:SHOWN_SAMPLES]
  labelers: dict[str, float] | None = None
  golds: list[Any] = [None] * len(samples)
  if stages.in_tinyworld(config):
    golds = read_jsonl(stage / "gold.jsonl")
    labelers = {
      name: done["comparisons"][name] for name in ("agreement_training", "agreement_heldout")
    }
  report = dict(
    reward_model=accuracy,
    labelers=labelers,
    first_minibatch_ratio_max_error=max(
      done[name]["first_minibatch_ratio_max_error"] for name in PPO_RUNS
    ),
    wall_seconds=seconds | {"total": sum(seconds.values())},
    seed=config.seed,
    paired_difference_ppo_ptx_minus_ppo=paired,
    num_test_prompts=num_prompts,
    **evaluated,
  )
  prompt_format = prepare.PromptFormat.of(config.format)
  return dict(
    title=config.title,
    report=report,
    config_summary=summary(config),
    prompt_format=f"{prompt_format.describe()}, for every model alike",
    temperatures={
      "base": config.evaluation.base_temperature,
      "sft, ppo, ppo_ptx": config.evaluation.temperature,
      "rollouts": config.ppo.ppo.temperature,
    },
    paired_difference=paired,
    curves=dict(
      base=loss_curve(workdir / "base"),
      base_more_pretraining=loss_curve(workdir / "base_more_pretraining"),
      sft=sft_epochs(workdir / "sft", done["selection"]["scores"]),
      reward={name: reward_curve(config, workdir, name) for name in PPO_RUNS},
    ),
    calibration=calibration,
    samples=[
      dict(
        prompt=line["prompt"],
        completions={name: line["completions"][name] for name in POLICIES},
        gold=None if scores is None else {name: scores[name] for name in POLICIES},
      )
      for line, scores in zip(samples, golds)
    ],
    notes=notes(config, done["selection"]["epoch"], done["selection"]["num_prompts"]),
  )


def bootstrap_settings(config) -> dict[str, int]:
  return dict(num_resamples=config.evaluation.num_resamples, seed=config.seed)


def reward_accuracy(
  config, workdir: pathlib.Path, reward: Network
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Accuracy on validation comparisons, by training and held-out labelers, and calibration."""
  choices: dict[str, Any] = dict(
    network=reward,
    prompt_format=prepare.PromptFormat.of(config.format),
    batch_size=config.reward_model.reward.batch_size,
    length=config.reward_model.length,
    overlong=config.reward_model.comparisons.overlong,
    **bootstrap_settings(config),
  )
  valid = read_jsonl(workdir / stages.comparison_files(config)["valid"])
  found = comparison.reward_accuracy(valid, **choices)
  again, heldout = workdir / "comparisons" / "valid_heldout.jsonl", None
  if again.exists():
    heldout = comparison.reward_accuracy(read_jsonl(again), **choices)["accuracy"]["mean"]
  accuracy = dict(
    accuracy=found["accuracy"]["mean"],
    accuracy_heldout_labelers=heldout,
    n=found["num_pairs"],
    accuracy_interval=found["accuracy"],
    length_baseline_accuracy=found["length_baseline_accuracy"]["mean"],
  )
  return accuracy, found["calibration"]


def notes(config, epoch: int, num_prompts: int) -> list[str]:
  """What a reader must know about the compared models."""
  return [
    f"SFT is epoch {epoch} of {config.sft.sft.num_epochs}, the one whose completions of "
    f"{num_prompts} validation prompts have the highest mean reward; the last epoch is shown too.",
    f"PPO and PPO-ptx are the exponential moving averages of their weights (decay "
    f"{config.ppo.ppo.ema_decay} per optimizer step); the live weights are shown too.",
  ]


def summary(config) -> dict[str, Any]:
  """The few settings that a reader of the report wants first."""
  p, shape, source = config.ppo.ppo, config.base.model, config.base.get("source")
  if source:
    shape = networks.find_export(source, kind="policy", flag="config.base.source").model
  return {
    "non-embedding parameters": f"{ModelConfig(**shape).num_block_params:,}",
    **({"base model": source} if source else {}),
    **({"adapters": f"rank {config.ppo.lora.rank}"} if config.ppo.lora.rank else {}),
    "PPO batch / minibatch / iterations": f"{p.batch_size} / {p.minibatch_size} / "
    f"{p.num_iterations}",
    "KL coefficient": p.kl_coef,
    "ptx coefficient": p.ptx_coef,
    "pretraining examples per episode": p.ptx_ratio,
    "EMA decay": p.ema_decay,
    "policy learning rate": config.ppo.policy_optim.learning_rate,
    "seed": config.seed,
  }


# ----------------------------------------------------------------------------- the evaluation


def preferences(directory: pathlib.Path, compared: Mapping[str, Any], settings: Bootstrap):
  """What labelers prefer and mark, from the directory of the suite `preference` and its
  `evaluation.Found.compared`; all None without labelers."""
  rows = win_rates.read_preferences(directory / "preferences.jsonl")
  num_prompts, names = compared["num_prompts"], list(compared["measures"])
  if not any(row["group"] in win_rates.GROUPS for row in rows):
    absent = ("win_rate_vs_sft", "likert", "metadata", "paired_difference")
    return dict(num_prompts=num_prompts) | dict.fromkeys(absent)
  cells = {
    (row["metric"], row["variant"]): row["cells"] for row in units.by_measure(compared["measures"])
  }

  def by_group(metric, names):
    return {
      name: {f"{group}_labelers": cells[metric, group][name] for group in win_rates.GROUPS}
      for name in names
    }

  def difference(group):
    a_PL, b_PL = (
      win_rates.values_by_prompt(rows, policy=name, group=group, field="win")
      for name in ("ppo_ptx", "ppo")
    )
    return statistics.paired_difference(a_PL, b_PL, **settings).as_dict()

  return dict(
    num_prompts=num_prompts,
    win_rate_vs_sft=by_group("win_rate", [name for name in names if name != compared["baseline"]]),
    likert=by_group("likert", POLICIES),
    metadata={
      name: {
        label: cells[label, "training"][name]
        for label in sorted(win_rates.METADATA)
        if name in cells.get((label, "training"), ())
      }
      for name in names
    },
    paired_difference={f"{group}_labelers": difference(group) for group in win_rates.GROUPS},
  )


def compare_rewards(scores: Mapping[str, np.ndarray], settings: Bootstrap) -> dict[str, Any]:
  """Mean reward of each policy's completions, and the difference to SFT's, paired by prompt."""
  column = {name: np.asarray(score_N)[:, None] for name, score_N in scores.items()}
  return dict(
    reward={
      name: statistics.bootstrap_mean(score_N1, **settings).as_dict()
      for name, score_N1 in column.items()
    },
    reward_minus_sft={
      name: statistics.paired_difference(score_N1, column["sft"], **settings).as_dict()
      for name, score_N1 in column.items()
      if name != "sft"
    },
  )


def alignment_tax(
  directory: pathlib.Path, measures: Mapping[str, Sequence[Mapping[str, Any]]], settings: Bootstrap
) -> dict[str, Any]:
  """Held-out loss, its rise with PPO, and few-shot accuracy, from the directory of the suite
  `pretraining` and its measures by checkpoint."""
  rows = {(row["task"], row["metric"]): row["cells"] for row in units.by_measure(measures)}
  means = lambda task, metric: {name: cell["mean"] for name, cell in rows[task, metric].items()}
  baseline = next(iter(means(pretraining.LOSS, "bigram_nll").values()))
  tasks = dict.fromkeys(task for task, metric in rows if metric == "accuracy")
  by_row = {
    name: pretraining.read_loss(directory / name / pretraining.LOSS)
    for name in ("ppo_init", "ppo", "ppo_ptx")
  }
  return dict(
    pretraining_nll=dict(bigram=baseline) | means(pretraining.LOSS, "nll"),
    few_shot_tasks={
      task: means(task, "accuracy") | dict(chance=next(iter(means(task, "chance").values())))
      for task in tasks
    }
    or None,
    pretraining_nll_rise={
      name: pretraining.rise(by_row["ppo_init"], by_row[name], settings).as_dict()
      for name in ("ppo", "ppo_ptx")
    },
  )


def gold_scores(directory: pathlib.Path, world: World) -> tuple[dict[str, Any], list[Any]]:
  """The world's own scores of all completions in the directory of the suite `preference`.

  Returns:
    (model -> mean score under the training and the evaluation weights, a line of scores by model
    for each prompt).
  """
  lines = read_jsonl(directory / "completions.jsonl")
  marks = {
    name: [
      gold.components(world, line["task"], line["prompt"], line["completions"][name])
      for line in lines
    ]
    for name in lines[0]["completions"]
  }
  both = dict(training_weights=gold.GOLD_WEIGHTS, evaluation_weights=gold.EVALUATION_WEIGHTS)
  means = {
    name: {
      which: float(np.mean([gold.gold_score(mark, weights) for mark in found]))
      for which, weights in both.items()
    }
    for name, found in marks.items()
  }
  by_prompt = [
    {name: gold.gold_score(found[index]) for name, found in marks.items()}
    for index in range(len(lines))
  ]
  return means, by_prompt


# ----------------------------------------------------------------------------- curves


def reward_curve(config, workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """Reward with its interval, KL and, in TinyWorld, gold score on held-out prompts along the PPO
  run of the stage `name`."""
  world = make_world(config.seed) if stages.in_tinyworld(config) else None
  valid = read_jsonl(workdir / "data" / "prompts_ppo_valid.jsonl")
  tasks = {record["prompt"]: record.get("task") for record in valid}
  points = []
  for path in sorted((workdir / name / "validation").glob("step_*.jsonl")):
    lines = read_jsonl(path)
    rewards = [[line["reward"]] for line in lines]
    reward = statistics.bootstrap_mean(rewards, **bootstrap_settings(config))
    golds = None if world is None else [_gold(world, tasks, line) for line in lines]
    points.append(
      dict(
        step=int(path.stem.removeprefix("step_")),
        gold=None if golds is None else float(np.mean(golds)),
        reward=reward.mean,
        reward_low=reward.low,
        reward_high=reward.high,
        kl=float(np.mean([line["kl"] for line in lines])),
      )
    )
  return points


def _gold(world: World, tasks: Mapping[str, Any], line: Mapping[str, Any]) -> float:
  prompt = line["prompt"]
  return gold.gold_score(gold.components(world, tasks[prompt], prompt, line["response"]))


def loss_curve(stage: pathlib.Path) -> list[tuple[int, float | None, float | None]]:
  """(step, training loss, validation loss) of an LM stage; empty for a base that was imported."""
  if not (stage / metrics_lib.FILE).is_file():
    return []
  return [
    (line["step"], line.get("train/loss"), line.get("validation/loss"))
    for line in metrics_lib.read(stage / metrics_lib.FILE)
  ]


def sft_epochs(stage: pathlib.Path, scores: Mapping[str, float]) -> list[dict[str, Any]]:
  """Validation loss and reward of each SFT epoch; `scores` is what `selection` found."""
  losses = {step: loss for step, _, loss in loss_curve(stage) if loss is not None}
  return [
    dict(epoch=int(epoch), score=score, valid_nll=epoch_loss(losses, int(epoch), len(scores)))
    for epoch, score in scores.items()
  ]


def epoch_loss(losses: Mapping[int, float], epoch: int, num_epochs: int) -> float | None:
  """Validation loss at the end of an epoch, from the evaluation nearest to it."""
  last = max(losses)
  target = last * epoch / num_epochs
  nearest = min(losses, key=lambda step: abs(step - target))
  return losses[nearest] if abs(nearest - target) <= last / num_epochs / 2 else None
