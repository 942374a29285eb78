"""Chooses the checkpoint whose completions have the highest reward.

  rlhf select --candidates=runs/t0/rows,runs/t0/export --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/t0/selection.json

--candidates joins policies by commas; a directory of exports (WORKDIR/epochs, WORKDIR/rows) stands
for all exports in it. --output gets the best candidate, and the mean reward of each with its 95 %
interval over prompts. Several reward models are an ensemble.

InstructGPT selects its SFT models (appendix C.1), FLAN and T0 (C.5) in this way.
"""

import argparse
import pathlib

from rlhf.cli.common import flags, models, startup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf select", __doc__)
  parser.flag("candidates", "policies, joined by commas", flags.names, required=True)
  parser.add_output("JSON to write")
  models.add_selection(parser)
  return parser.parse(argv)


def expand(names: list[str]) -> list[str]:
  """The candidates; a directory of exports becomes the exports in it, in order of their names.

  Raises:
    ValueError: one comes twice.
  """
  found: list[str] = []
  for name in names:
    directory = pathlib.Path(name)
    if any((directory / place / "export.json").is_file() for place in ("", "export")):
      found.append(name)
    else:
      inside = sorted(str(path.parent) for path in directory.glob("*/export.json"))
      found += inside if inside else [name]
  for name in found:
    if found.count(name) > 1:
      raise ValueError(f"--candidates={','.join(names)}: {name} comes twice; give each once")
  return found


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  policies = {
    name: models.find(name, "candidates", "policy", arguments)
    for name in expand(arguments.candidates)
  }
  prompts = models.fitting_prompts(list(policies.values()), arguments)
  sample = lambda name: models.sample_each(
    policies[name].load(), policies[name], prompts, arguments
  )
  choice = models.choose(policies, sample, prompts, arguments)
  result = models.report(choice, "candidate", arguments, arguments.output)
  print(f"{arguments.output}: {result}", flush=True)
