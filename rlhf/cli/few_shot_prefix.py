"""Chooses the few-shot prefix whose answers a reward model scores highest: the prompted base model.

  python -m launch.few_shot_prefix --checkpoint=runs/base --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/prefix --prefixes=one.txt,two.txt
  python -m launch.few_shot_prefix --checkpoint=runs/base --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/prefix \\
      --demonstrations=jsonl:demonstrations.jsonl --num_prefixes=8 --num_shots=3

A prefix is a text file that is put before every prompt as it stands: examples written as the model
is asked, each ended by a line that separates them (such as ###), which is the last line of the
file.  Answers are cut at such a line; the reward model reads prompt and answer without the prefix.
The second command draws candidates from demonstrations; both kinds can be given together.

  OUTPUT/candidate_N.txt   the prefixes that were tried
  OUTPUT/best.txt          the best of them
  OUTPUT/selection.json    the mean reward of each, with its 95 % interval over prompts

InstructGPT, footnote 6.
"""

import argparse
import pathlib
import sys

from rlhf.cli import jsonl, scoring, setup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument(
    "--checkpoint",
    required=True,
    help="export directory of a policy, the workdir of its stage, hf:DIR or gguf:FILE",
  )
  parser.add_argument("--output", required=True, help="directory to write")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument("--prefixes", help="text files, joined by commas")
  parser.add_argument("--demonstrations", help="FORMAT:FILE to draw candidates from")
  parser.add_argument("--num_prefixes", type=setup.at_least(1), default=8, help="to draw")
  parser.add_argument("--num_shots", type=setup.at_least(1), default=3, help="examples of each")
  parser.add_argument(
    "--max_prefix_tokens",
    type=setup.at_least(1),
    help="of a drawn prefix; if not given half of what the context has beside an "
    "answer; prompts that then do not fit are left out",
  )
  parser.add_argument("--separator", help="the line between drawn examples; ### if not given")
  scoring.add_reward_flags(parser)
  scoring.add_answer_flags(parser)
  arguments = parser.parse_args(argv[1:])
  if arguments.prefixes is None and arguments.demonstrations is None:
    parser.error("there is no candidate: give --prefixes, --demonstrations or both")
  if arguments.separator is not None and (
    not arguments.separator.strip() or "\n" in arguments.separator
  ):
    parser.error(f"--separator={arguments.separator!r} must be one line that is not blank")
  return arguments


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    output = pathlib.Path(arguments.output)
    jsonl.check_output(output / "selection.json", arguments.overwrite)
    policy = scoring.find_policy(arguments.checkpoint, "checkpoint", arguments)
    records = scoring.read_prompts(arguments)
    prefixes = candidates(policy, arguments)
    longest = max(prefixes.values(), key=lambda prefix: len(policy.tokenizer.encode(prefix.text)))
    records = scoring.fitting(records, [policy], arguments, prefix=longest.text)
    score = scoring.ensemble(scoring.load_reward_models(arguments), arguments)
    choice = choose(policy, prefixes, [record["prompt"] for record in records], score, arguments)
    write(output, prefixes, choice, arguments)
    print(
      f"{output / 'best.txt'}: {choice.best} of {len(prefixes)} has the highest reward "
      f"{choice.mean(choice.best):.4g} over {len(records)} prompts",
      flush=True,
    )


def candidates(policy: scoring.Policy, arguments: argparse.Namespace):
  """Name -> prefix: those of the files, then those that are drawn.

  Raises:
    ValueError: a file holds no prefix, or so many examples do not fit.
  """
  from rlhf.data import formats
  from rlhf.inference import prefixes

  found = {}
  if arguments.prefixes is not None:
    found = {
      path: prefixes.read(path) for path in scoring.split_list(arguments.prefixes, "prefixes")
    }
  if arguments.demonstrations is not None:
    name, colon, path = arguments.demonstrations.partition(":")
    if not colon or name not in formats.FORMATS:
      name, path = "jsonl", arguments.demonstrations
    demonstrations, _ = formats.read("demonstration", path, name, on_bad=arguments.on_bad)
    room = arguments.max_prefix_tokens
    if room is None:
      room = (policy.context_length - arguments.max_response_tokens) // 2
    drawn = prefixes.draw(
      demonstrations,
      policy.tokenizer,
      num_prefixes=arguments.num_prefixes,
      num_shots=arguments.num_shots,
      max_tokens=room,
      prompt_format=policy.prompt_format,
      separator=arguments.separator if arguments.separator is not None else prefixes.SEPARATOR,
      seed=arguments.seed,
    )
    found |= {f"drawn {number}": prefix for number, prefix in enumerate(drawn, 1)}
  return found


def choose(
  policy: scoring.Policy,
  candidates,
  prompts: list[str],
  score: scoring.Score,
  arguments: argparse.Namespace,
):
  """`selection.Choice` among the prefixes."""
  from rlhf import loop
  from rlhf.evals.reward_models import selection
  from rlhf.inference import prefixes

  network = policy.load()

  def texts_of(name: str) -> list[tuple[str, str]]:
    p = scoring.answer_config(policy, candidates[name].prompts(prompts), arguments)
    drawn = prefixes.sample(
      network, candidates[name], prompts, p, loop.step_key(arguments.seed, "validate", 0)
    )
    return [(prompt, texts[0]) for prompt, texts in zip(prompts, drawn.texts, strict=True)]

  return selection.choose(
    candidates,
    texts_of,
    score,
    on_scored=lambda name, mean: print(f"{name}  mean reward {mean:.4g}", flush=True),
  )


def write(output: pathlib.Path, prefixes, choice, arguments: argparse.Namespace) -> None:
  """All files; `selection.json` last."""
  from rlhf import workdir as workdir_lib

  for number, prefix in enumerate(prefixes.values(), 1):
    workdir_lib.write_text(output / f"candidate_{number}.txt", prefix.text)
  workdir_lib.write_text(output / "best.txt", prefixes[choice.best].text)
  workdir_lib.write_json(
    output / "selection.json",
    scoring.report(
      choice,
      "prefix",
      arguments,
      checkpoint=arguments.checkpoint,
      files={name: f"candidate_{number}.txt" for number, name in enumerate(prefixes, 1)},
    ),
  )


if __name__ == "__main__":
  main(sys.argv)
