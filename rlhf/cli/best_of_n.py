"""Best-of-n from samples that are there, beside PPO: gold and proxy score against sqrt(KL).

  python -m launch.generate --checkpoint=runs/sft --prompts=prompts.jsonl --num_samples=64 \\
      --output=samples.jsonl
  python -m launch.best_of_n --samples=samples.jsonl --reward_model=runs/rm0,runs/rm1,runs/rm2 \\
      --gold=runs/gold_rm --ppo=runs/ppo --output=runs/best_of_n

The expected score of the best of n, for every n up to the number of samples, is the unbiased
estimate from all of them (Nakano et al. 2021), with 95 % intervals over prompts.  With several
reward models, the first alone stands beside the three ways to combine them: mean, min, and mean
less --variance_coef times their variance (Coste et al. 2023).

--gold     what answers are worth: a reward model's export that the proxies were not trained on, or
           tinyworld:SEED (samples and prompts then need TinyWorld's "task").  Without it the field
           "gold" of each line, one number per completion, is taken where it is there.
--ppo      workdirs of PPO runs, whose validations give a curve each; with tinyworld:SEED,
           --ppo_prompts names the file of their validation prompts.

  OUTPUT/scored.jsonl             the samples with their scores
  OUTPUT/best_of_n.json           all curves, and Gao et al.'s law (2022) fitted to each gold score
  OUTPUT/over_optimization.svg .png
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.cli import jsonl, scoring, setup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument(
    "--samples",
    required=True,
    help='JSONL of {"prompt", "completions": [N texts]}, as launch.generate writes it',
  )
  parser.add_argument("--output", required=True, help="directory to write")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument("--gold", help="export of a reward model, or tinyworld:SEED")
  parser.add_argument("--ppo", help="workdirs of PPO runs, joined by commas")
  parser.add_argument("--ppo_prompts", help="JSONL of their validation prompts, with tasks")
  parser.add_argument(
    "--batch_size",
    type=setup.at_least(1),
    default=64,
    help="texts scored at once; changes nothing but speed and memory",
  )
  parser.add_argument(
    "--on_bad", choices=jsonl.ON_BAD, default="stop", help="at a bad line: stop, or skip and count"
  )
  scoring.add_reward_flags(parser, all_rules=True)
  arguments = parser.parse_args(argv[1:])
  world = arguments.gold is not None and arguments.gold.startswith("tinyworld:")
  if world and not arguments.gold.removeprefix("tinyworld:").isdigit():
    parser.error(f"--gold={arguments.gold}: give the world's seed, such as tinyworld:0")
  if (arguments.ppo_prompts is not None) != (world and arguments.ppo is not None):
    parser.error("--ppo_prompts goes with --ppo and --gold=tinyworld:SEED: give all, or not it")
  return arguments


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    output = pathlib.Path(arguments.output)
    jsonl.check_output(output / "best_of_n.json", arguments.overwrite)
    lines = read(arguments)
    gold = gold_scorer(arguments, lines)
    stages = (
      []
      if arguments.ppo is None
      else [pathlib.Path(name) for name in scoring.split_list(arguments.ppo, "ppo")]
    )
    members = scoring.load_reward_models(arguments)
    texts = [(line["prompt"], text) for line in lines for text in line["completions"]]
    table = lambda scores: np.asarray(scores, np.float64).reshape(len(lines), -1)
    proxy_EPN = np.stack([table(score(texts)) for score in members.values()])
    gold_PN = None
    if gold is not None:
      gold_PN = table(gold([prompt for prompt, _ in texts], [text for _, text in texts]))
    elif "gold" in lines[0]:
      gold_PN = table([line["gold"] for line in lines])
    curves = best_of_n_curves(list(members), proxy_EPN, gold_PN, arguments.variance_coef)
    curves |= ppo_curves(stages, gold)
    write(output, lines, list(members), proxy_EPN, gold_PN, curves)
    print(describe(curves), flush=True)
    for name, law in gold_laws(curves).items():
      shape = "d" if law["form"] == "best_of_n" else "log d"
      print(
        f"{name}: gold gains d * ({law['alpha']:.3f} - {law['beta']:.3f} * {shape}) at "
        "d = sqrt(KL), by least squares",
        flush=True,
      )
    print(f"{output}: best_of_n.json, over_optimization.svg, scored.jsonl", flush=True)


def read(arguments: argparse.Namespace) -> list[dict[str, Any]]:
  """The lines of --samples; all have as many completions as the first.

  Raises:
    ValueError: one has another number, or "gold" scores that do not go with them.
  """
  from rlhf.cli import score

  reader = jsonl.Reader(arguments.samples, arguments.on_bad)
  lines = reader.read(score.find_problem)
  num_samples = len(score.texts_of(lines[0].fields))
  if num_samples < 2 or "completions" not in lines[0].fields:
    raise ValueError(
      f'{lines[0].where} has no list "completions" of two or more samples; make '
      "them with launch.generate --num_samples=N"
    )
  has_gold = "gold" in lines[0].fields
  for line in lines:
    found = len(score.texts_of(line.fields))
    if found != num_samples:
      raise ValueError(
        f"{line.where} has {found} completions, and the first line {num_samples}; "
        "give as many samples of every prompt"
      )
    if has_gold != ("gold" in line.fields):
      raise ValueError(
        f'{line.where}: "gold" stands in some lines and not in others; give it in all or none'
      )
    gold = line.fields["gold"] if has_gold else [0.0] * found
    if (
      not isinstance(gold, list)
      or len(gold) != found
      or not all(isinstance(number, (int, float)) and np.isfinite(number) for number in gold)
    ):
      raise ValueError(
        f'{line.where}: "gold" must be a list of {found} numbers, one for each completion'
      )
  return [line.fields for line in lines]


def gold_scorer(
  arguments: argparse.Namespace, lines: Sequence[dict[str, Any]]
) -> Callable[[Sequence[str], Sequence[str]], np.ndarray] | None:
  """(prompts, answers) -> gold scores, or None without --gold.

  Raises:
    ValueError: TinyWorld is asked about a prompt without a task.
  """
  if arguments.gold is None:
    return None
  if not arguments.gold.startswith("tinyworld:"):
    score = scoring.load_reward_model(arguments.gold, arguments.batch_size)
    return lambda prompts, answers: score(list(zip(prompts, answers, strict=True)))
  from rlhf.data import formats
  from rlhf.tinyworld import gold
  from rlhf.tinyworld import world as world_lib

  world = world_lib.make_world(int(arguments.gold.removeprefix("tinyworld:")))
  records = list(lines)
  if arguments.ppo_prompts is not None:
    records += formats.read("prompt", arguments.ppo_prompts, "jsonl")[0]
  tasks = {record["prompt"]: record["task"] for record in records if "task" in record}

  def score_texts(prompts, answers):
    for prompt in prompts:
      if prompt not in tasks:
        raise ValueError(
          f'--gold={arguments.gold}: the prompt {prompt[:40]!r} has no "task"; give '
          "TinyWorld's own prompts, and those of PPO's validation by --ppo_prompts"
        )
    return np.asarray(
      [
        gold.gold_score(gold.components(world, tasks[prompt], prompt, answer))
        for prompt, answer in zip(prompts, answers, strict=True)
      ]
    )

  return score_texts


def best_of_n_curves(
  names: Sequence[str], proxy_EPN: np.ndarray, gold_PN: np.ndarray | None, variance_coef: float
) -> dict[str, list[dict[str, Any]]]:
  """Of the first reward model and, where there are several, of each way to combine them."""
  from rlhf.evals.reward_models import best_of_n
  from rlhf.inference import ensembles

  proxies = {"best of n": proxy_EPN[0]}
  if len(names) > 1:
    proxies = {"best of n, one model": proxy_EPN[0]} | {
      f"best of n, {rule.replace('_', ' ')} of {len(names)}": ensembles.combine(
        proxy_EPN, rule, variance_coef=variance_coef
      )
      for rule in ensembles.RULES
    }
  return {
    name: best_of_n.curve(proxy_PN, gold_PN, num_resamples=scoring.NUM_RESAMPLES, seed=0)
    for name, proxy_PN in proxies.items()
  }


def ppo_curves(stages: Sequence[pathlib.Path], gold) -> dict[str, list[dict[str, Any]]]:
  """Of each PPO run, by the name of its directory, or its path where two have one name."""
  from rlhf.evals.reward_models import overoptimization

  names = [stage.name for stage in stages]
  return {
    stage.name if names.count(stage.name) == 1 else str(stage): overoptimization.along_ppo(
      stage, gold, num_resamples=scoring.NUM_RESAMPLES, seed=0
    )
    for stage in stages
  }


def write(output: pathlib.Path, lines, names, proxy_EPN, gold_PN, curves) -> None:
  """All files; `best_of_n.json` last."""
  from rlhf import workdir as workdir_lib
  from rlhf.report import figures

  scored = []
  for number, line in enumerate(lines):
    more = {"scores": {name: proxy_PN[number].tolist() for name, proxy_PN in zip(names, proxy_EPN)}}
    if gold_PN is not None:
      more["gold"] = gold_PN[number].tolist()
    scored.append({**line, **more})
  jsonl.write(output / "scored.jsonl", scored)
  shown = {name: plotted(points) for name, points in curves.items()}
  workdir_lib.write_text(output / "over_optimization.svg", figures.over_optimization(shown) + "\n")
  (output / "over_optimization.png").write_bytes(figures.over_optimization(shown, "png"))
  workdir_lib.write_json(
    output / "best_of_n.json",
    dict(
      num_prompts=len(lines),
      num_samples=proxy_EPN.shape[2],
      reward_models=names,
      curves=curves,
      gold_laws=gold_laws(curves),
    ),
  )


def gold_laws(curves) -> dict[str, dict[str, Any]]:
  """Form, alpha and beta of each curve's gold score less its first, where the points say them."""
  from rlhf.evals.reward_models import best_of_n

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
  from rlhf.evals.reward_models import best_of_n

  if "n" not in points[0]:
    return points
  sizes = best_of_n.doubling_sizes(points[-1]["n"])
  return [point for point in points if point["n"] in sizes]


def describe(curves) -> str:
  """A table: n or step, KL, proxy and gold with their intervals."""
  cell = lambda score: (
    "" if score is None else (f"{score['mean']:.3f} [{score['low']:.3f}, {score['high']:.3f}]")
  )
  lines = []
  for name, points in curves.items():
    lines += [name, f"  {'n' if 'n' in points[0] else 'step':>6}{'KL':>8}  {'proxy':<26}gold"]
    lines += [
      f"  {point['n'] if 'n' in point else point['step']:>6}{point['kl']:>8.2f}  "
      f"{cell(point['proxy']):<26}{cell(point['gold'])}"
      for point in plotted(points)
    ]
  return "\n".join(lines)


if __name__ == "__main__":
  main(sys.argv)
