"""Plots best-of-n and PPO: gold and proxy score against the square root of the KL.

  rlhf generate --checkpoint=runs/sft --prompts=prompts.jsonl --num_samples=64 \\
      --output=samples.jsonl
  rlhf best_of_n --samples=samples.jsonl --reward_model=runs/rm0,runs/rm1,runs/rm2 \\
      --gold=runs/gold_rm --ppo=runs/ppo --output=runs/best_of_n

The expected score of the best of n, for every n up to the number of samples, is the unbiased
estimate from all samples (Nakano et al. 2021), with 95 % intervals over prompts. Several reward
models give one curve for the first alone and one for each ensemble: mean, min, and mean minus
--variance_coef times the variance (Coste et al. 2023).

--gold     the true value of a completion: a reward model that the proxies were not trained on, or
           tinyworld:SEED (samples and prompts then need TinyWorld's "task"). Without it, the field
           "gold" of the lines, one number per completion, is used where it exists.
--ppo      workdirs of PPO runs, each of whose validations gives a curve; with tinyworld:SEED,
           --ppo_prompts names the file of their validation prompts.

  OUTPUT/scored.jsonl             the samples with their scores
  OUTPUT/best_of_n.json           all curves, and Gao et al.'s law (2022) fitted to each gold score
  OUTPUT/over_optimization.svg .png
"""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.cli import score
from rlhf.cli.common import flags, jsonl, models, startup
from rlhf.evals.reward_models import best_of_n, overoptimization
from rlhf.inference import ensembles

WORLD = "tinyworld:"


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf best_of_n", __doc__)
  parser.flag("samples", 'JSONL of {"prompt", "completions": [N texts]}', required=True)
  parser.add_output("directory to write", file="best_of_n.json")
  parser.flag("gold", f"a reward model, or {WORLD}SEED")
  parser.flag("ppo", "workdirs of PPO runs, joined by commas", flags.names, [])
  parser.flag("ppo_prompts", "JSONL of their validation prompts, with tasks")
  models.add_reward_models(parser, all_rules=True)
  models.add_batch_size(parser)
  arguments = parser.parse(argv)
  world = arguments.gold is not None and arguments.gold.startswith(WORLD)
  if world and not arguments.gold.removeprefix(WORLD).isdigit():
    parser.error(f"--gold={arguments.gold}: give the world's seed, such as {WORLD}0")
  if (arguments.ppo_prompts is not None) != (world and bool(arguments.ppo)):
    parser.error(f"--ppo_prompts is for --ppo with --gold={WORLD}SEED: give all three, or not it")
  return arguments


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  output = pathlib.Path(arguments.output)
  lines = read(arguments)
  gold = gold_scorer(arguments, lines)
  members = models.load_reward_models(arguments)
  texts = [(line["prompt"], text) for line in lines for text in line["completions"]]
  table = lambda scores: np.asarray(scores, np.float64).reshape(len(lines), -1)
  proxy_EPN = np.stack([table(score(texts)) for score in members.values()])
  gold_PN = None
  if gold is not None:
    gold_PN = table(gold([prompt for prompt, _ in texts], [text for _, text in texts]))
  elif "gold" in lines[0]:
    gold_PN = table([line["gold"] for line in lines])
  curves = best_of_n_curves(list(members), proxy_EPN, gold_PN, arguments.variance_coef)
  curves |= ppo_curves([pathlib.Path(name) for name in arguments.ppo], gold)
  laws = gold_laws(curves)
  write(output, lines, list(members), proxy_EPN, gold_PN, curves, laws)
  print(describe(curves), flush=True)
  for name, law in laws.items():
    shape = "d" if law["form"] == "best_of_n" else "log d"
    print(
      f"{name}: gold gains d * ({law['alpha']:.3f} - {law['beta']:.3f} * {shape}) at "
      "d = sqrt(KL), by least squares",
      flush=True,
    )
  print(f"{output}: best_of_n.json, over_optimization.svg, scored.jsonl", flush=True)


def read(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """The lines of --samples; all have the same number of completions.

  Raises:
    ValueError: one has another number, or "gold" scores that do not match them.
  """
  lines = jsonl.Reader(arguments.samples, arguments.on_bad).read(score.check)
  first = lines[0]
  num_samples, has_gold = len(score.texts_of(first.fields)), "gold" in first.fields
  if num_samples < 2 or "completions" not in first.fields:
    raise ValueError(
      f'{first.where} has no list "completions" of two or more samples; make them with '
      "`rlhf generate --num_samples=N`"
    )
  for line in lines:
    found = len(score.texts_of(line.fields))
    if found != num_samples:
      raise ValueError(
        f"{line.where} has {found} completions, but the first line has {num_samples}; give the "
        "same number for every prompt"
      )
    if has_gold != ("gold" in line.fields):
      raise ValueError(f'{line.where}: give "gold" in all lines or in none')
    gold = line.fields["gold"] if has_gold else [0.0] * found
    is_number = lambda value: isinstance(value, (int, float)) and np.isfinite(value)
    if not isinstance(gold, list) or len(gold) != found or not all(map(is_number, gold)):
      raise ValueError(
        f'{line.where}: "gold" must be a list of {found} numbers, one for each completion'
      )
  return [line.fields for line in lines]


def gold_scorer(
  arguments: argparse.Namespace, lines: Sequence[dict[str, Any]]
) -> Callable[[Sequence[str], Sequence[str]], np.ndarray] | None:
  """(prompts, completions) -> gold scores, or None without --gold."""
  if arguments.gold is None:
    return None
  if not arguments.gold.startswith(WORLD):
    reward = models.load_reward_model(arguments.gold, "gold", arguments.batch_size)
    return lambda prompts, texts: reward(list(zip(prompts, texts, strict=True)))
  from rlhf.data import formats
  from rlhf.tinyworld import gold
  from rlhf.tinyworld import world as world_lib

  world = world_lib.make_world(int(arguments.gold.removeprefix(WORLD)))
  records = list(lines)
  if arguments.ppo_prompts is not None:
    records += formats.read("prompt", arguments.ppo_prompts, "jsonl")[0]
  tasks = {record["prompt"]: record["task"] for record in records if "task" in record}

  def score_texts(prompts, texts):
    for prompt in prompts:
      if prompt not in tasks:
        raise ValueError(
          f'--gold={arguments.gold}: the prompt {prompt[:40]!r} has no "task"; give TinyWorld\'s '
          "own prompts, and those of PPO's validation with --ppo_prompts"
        )
    return np.asarray(
      [
        gold.gold_score(gold.components(world, tasks[prompt], prompt, text))
        for prompt, text in zip(prompts, texts, strict=True)
      ]
    )

  return score_texts


def best_of_n_curves(
  names: Sequence[str], proxy_EPN: np.ndarray, gold_PN: np.ndarray | None, variance_coef: float
) -> dict[str, list[dict[str, Any]]]:
  """One curve for the first reward model and, where there are several, one for each ensemble."""
  proxies = {"best of n" if len(names) == 1 else "best of n, one model": proxy_EPN[0]}
  for rule in ensembles.RULES if len(names) > 1 else ():
    name = f"best of n, {rule.replace('_', ' ')} of {len(names)}"
    proxies[name] = ensembles.combine(proxy_EPN, rule, variance_coef=variance_coef)
  return {
    name: best_of_n.curve(proxy_PN, gold_PN, num_resamples=models.NUM_RESAMPLES, seed=0)
    for name, proxy_PN in proxies.items()
  }


def ppo_curves(stages: Sequence[pathlib.Path], gold) -> dict[str, list[dict[str, Any]]]:
  """One curve for each PPO run, by the name of its directory, or its path where names are equal."""
  names = [stage.name for stage in stages]
  return {
    stage.name if names.count(stage.name) == 1 else str(stage): overoptimization.along_ppo(
      stage, gold, num_resamples=models.NUM_RESAMPLES, seed=0
    )
    for stage in stages
  }


def write(output: pathlib.Path, lines, names, proxy_EPN, gold_PN, curves, laws) -> None:
  """All files; `best_of_n.json` last."""
  from rlhf.report import figures

  scored = []
  for number, line in enumerate(lines):
    scores = {name: proxy_PN[number].tolist() for name, proxy_PN in zip(names, proxy_EPN)}
    gold = {} if gold_PN is None else {"gold": gold_PN[number].tolist()}
    scored.append({**line, "scores": scores, **gold})
  workdir_lib.write_jsonl(output / "scored.jsonl", scored)
  shown = {name: plotted(points) for name, points in curves.items()}
  plots = figures.over_optimization(shown)
  assert plots is not None
  svg, png = plots
  workdir_lib.write_text(output / "over_optimization.svg", svg + "\n")
  (output / "over_optimization.png").write_bytes(png)
  workdir_lib.write_json(
    output / "best_of_n.json",
    dict(
      num_prompts=len(lines),
      num_samples=proxy_EPN.shape[2],
      reward_models=names,
      curves=curves,
      gold_laws=laws,
    ),
  )


def gold_laws(curves) -> dict[str, dict[str, Any]]:
  """Form, alpha and beta of each curve's gain in gold score, where its points determine them."""
  found = {}
  for name, points in curves.items():
    d_M = np.sqrt(np.maximum([point["kl"] for point in points], 0))
    if points[0]["gold"] is not None and len(set(d_M[d_M > 0])) >= 2:
      gain_M = np.asarray([point["gold"]["mean"] for point in points]) - points[0]["gold"]["mean"]
      form = "best_of_n" if "n" in points[0] else "rl"
      alpha, beta = best_of_n.fit(d_M, gain_M, form)
      found[name] = dict(form=form, alpha=alpha, beta=beta)
  return found


def plotted(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The points that a plot shows: of best-of-n, those whose n doubles."""
  if "n" not in points[0]:
    return points
  sizes = best_of_n.doubling_sizes(points[-1]["n"])
  return [point for point in points if point["n"] in sizes]


def describe(curves) -> str:
  """A table: n or step, KL, proxy and gold with their intervals."""
  cell = lambda score: (
    "" if score is None else f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
  )
  lines = []
  for name, points in curves.items():
    first = "n" if "n" in points[0] else "step"
    lines += [name, f"  {first:>6}{'KL':>8}  {'proxy':<26}gold"]
    lines += [
      f"  {point[first]:>6}{point['kl']:>8.2f}  {cell(point['proxy']):<26}{cell(point['gold'])}"
      for point in plotted(points)
    ]
  return "\n".join(lines)
