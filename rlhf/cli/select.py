"""Chooses the checkpoint whose answers to validation prompts a reward model scores highest.

  python -m launch.select --candidates=runs/t0/rows,runs/t0/export --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/t0/selection.json

--candidates: exports of policies, workdirs of their stages, hf:DIR or gguf:FILE, joined by commas;
a directory of exports (WORKDIR/epochs, WORKDIR/rows) stands for all that lie in it.  --output gets
the best one and the mean reward of each with its 95 % interval over prompts.

InstructGPT selects so: its SFT models (appendix C.1), FLAN and T0 (C.5).  Several reward models are
an ensemble.
"""

import argparse
import pathlib
import sys

from rlhf.cli import jsonl, scoring, setup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument("--candidates", required=True, help="policies, joined by commas")
  parser.add_argument("--output", required=True, help="JSON to write")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  scoring.add_reward_flags(parser)
  scoring.add_answer_flags(parser)
  return parser.parse_args(argv[1:])


def expand(text: str) -> list[str]:
  """The candidates, with those in a directory of exports in order of their names.

  Raises:
    ValueError: one is empty or comes twice.
  """
  found: list[str] = []
  for name in scoring.split_list(text, "candidates"):
    directory = pathlib.Path(name)
    if any((directory / place / "export.json").is_file() for place in ("", "export")):
      found.append(name)
    else:
      inside = sorted(str(path.parent) for path in directory.glob("*/export.json"))
      found += inside if inside else [name]
  for name in found:
    if found.count(name) > 1:
      raise ValueError(f"--candidates={text}: {name} comes twice; give each once")
  return found


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    jsonl.check_output(arguments.output, arguments.overwrite)
    policies = {
      name: scoring.find_policy(name, "candidates", arguments)
      for name in expand(arguments.candidates)
    }
    records = scoring.fitting(scoring.read_prompts(arguments), list(policies.values()), arguments)
    score = scoring.ensemble(scoring.load_reward_models(arguments), arguments)
    choice = choose(policies, [record["prompt"] for record in records], score, arguments)
    from rlhf import workdir as workdir_lib

    workdir_lib.write_json(arguments.output, scoring.report(choice, "candidate", arguments))
    print(
      f"{arguments.output}: {choice.best} of {len(policies)} has the highest reward "
      f"{choice.mean(choice.best):.4g} over {len(records)} prompts",
      flush=True,
    )


def choose(
  policies: dict[str, scoring.Policy],
  prompts: list[str],
  score: scoring.Score,
  arguments: argparse.Namespace,
):
  """`selection.Choice` among the policies, one of them in memory at a time."""
  from rlhf import loop
  from rlhf.evals.reward_models import selection
  from rlhf.inference import completions

  def texts_of(name: str) -> list[tuple[str, str]]:
    policy = policies[name]
    drawn = completions.sample(
      policy.load(),
      prompts,
      scoring.answer_config(policy, prompts, arguments),
      loop.step_key(arguments.seed, "validate", 0),
    )
    return [(prompt, texts[0]) for prompt, texts in zip(prompts, drawn.texts, strict=True)]

  return selection.choose(
    policies,
    texts_of,
    score,
    on_scored=lambda name, mean: print(f"{name}  mean reward {mean:.4g}", flush=True),
  )


if __name__ == "__main__":
  main(sys.argv)
