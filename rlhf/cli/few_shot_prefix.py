"""Chooses the few-shot prefix of a base model by the reward of its completions.

  rlhf few_shot_prefix --checkpoint=runs/base --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/prefix --prefixes=one.txt,two.txt
  rlhf few_shot_prefix --checkpoint=runs/base --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/prefix \\
      --demonstrations=jsonl:demonstrations.jsonl --num_prefixes=8 --num_shots=3

A prefix is a text file that is put before every prompt unchanged: examples in the model's prompt
format, each ended by a separator line (such as ###), which is also the last line of the file.
Completions are cut at such a line; the reward model reads prompt and completion without the prefix.
The second command draws candidates from demonstrations; both kinds can be given together.

  OUTPUT/candidate_N.txt   the prefixes that were tried
  OUTPUT/best.txt          the best of them
  OUTPUT/selection.json    the mean reward of each, with its 95 % interval over prompts

Source: InstructGPT, footnote 6.
"""

import argparse
import pathlib

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, jsonl, models, startup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf few_shot_prefix", __doc__)
  parser.flag("checkpoint", models.POLICY_HELP, required=True)
  parser.add_output("directory to write", file="selection.json")
  parser.flag("prefixes", "text files, joined by commas", flags.names, [])
  parser.flag("demonstrations", "FORMAT:FILE to draw candidates from")
  parser.flag("num_prefixes", "candidates to draw", flags.at_least(1), 8)
  parser.flag("num_shots", "examples of a drawn candidate", flags.at_least(1), 3)
  parser.flag(
    "max_prefix_tokens",
    "of a drawn candidate; if not given, half of the context without a completion; prompts that do "
    "not fit are left out",
    flags.at_least(1),
  )
  parser.flag("separator", "the line between drawn examples", default="###")
  models.add_selection(parser)
  arguments = parser.parse(argv)
  if not arguments.prefixes and arguments.demonstrations is None:
    parser.error("there is no candidate: give --prefixes, --demonstrations or both")
  if not arguments.separator.strip() or "\n" in arguments.separator:
    parser.error(f"--separator={arguments.separator!r} must be one line that is not blank")
  return arguments


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  policy = models.find(arguments.checkpoint, "checkpoint", "policy", arguments)
  found = candidates(policy, arguments)
  longest = max(found.values(), key=lambda prefix: len(policy.tokenizer.encode(prefix.text)))
  prompts = models.fitting_prompts([policy], arguments, prefix=longest.text)
  network = policy.load()
  sample = lambda name: models.sample_each(network, policy, prompts, arguments, found[name])
  choice = models.choose(found, sample, prompts, arguments)
  output, files = pathlib.Path(arguments.output), {}
  for number, (name, prefix) in enumerate(found.items(), 1):
    files[name] = f"candidate_{number}.txt"
    workdir_lib.write_text(output / files[name], prefix.text)
  workdir_lib.write_text(output / "best.txt", found[choice.best].text)
  more = dict(checkpoint=arguments.checkpoint, files=files)
  result = models.report(choice, "prefix", arguments, output / "selection.json", **more)
  print(f"{output / 'best.txt'}: {result}", flush=True)


def candidates(policy: models.Model, arguments: argparse.Namespace):
  """Name -> prefix: those of the files, then those that are drawn.

  Raises:
    ValueError: a file holds no prefix, or the examples of a drawn one do not fit.
  """
  from rlhf.data import formats
  from rlhf.inference import prefixes

  found = {path: prefixes.read(path) for path in arguments.prefixes}
  if arguments.demonstrations is not None:
    name, path = jsonl.split_format(arguments.demonstrations)
    room = arguments.max_prefix_tokens
    if room is None:
      room = (policy.context_length - arguments.max_response_tokens) // 2
    drawn = prefixes.draw(
      formats.read("demonstration", path, name, on_bad=arguments.on_bad)[0],
      policy.tokenizer,
      num_prefixes=arguments.num_prefixes,
      num_shots=arguments.num_shots,
      max_tokens=room,
      prompt_format=policy.prompt_format,
      separator=arguments.separator,
      seed=arguments.seed,
    )
    found |= {f"drawn {number}": prefix for number, prefix in enumerate(drawn, 1)}
  return found
