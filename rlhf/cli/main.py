"""The `rlhf` command, also run as `python -m rlhf` and `python -m launch.COMMAND`."""

import ast
import importlib
import pathlib
import sys

from rlhf.cli.common import startup

# Command -> module, in the order in which `rlhf --help` lists them.
COMMANDS = {
  "pipeline": "rlhf.cli.pipeline",
  "train": "rlhf.cli.train",
  "generate": "rlhf.cli.generate",
  "score": "rlhf.cli.score",
  "evaluate": "rlhf.cli.evaluate",
  "palms": "rlhf.cli.palms",
  "convert": "rlhf.cli.convert",
  "select": "rlhf.cli.select",
  "few_shot_prefix": "rlhf.cli.few_shot_prefix",
  "best_of_n": "rlhf.cli.best_of_n",
  "folds": "rlhf.cli.folds",
  "pool": "rlhf.cli.pool",
  "sweep": "rlhf.cli.sweep",
  "main_figure": "rlhf.cli.main_figure",
  "benchmark": "rlhf.cli.benchmark",
  "check": "rlhf.cli.memory.check",
  "check_table": "rlhf.cli.memory.check_table",
  "local": "rlhf.cli.local",
  "slurm": "rlhf.cli.cluster.slurm",
  "xpk": "rlhf.cli.cluster.xpk",
  "jobset": "rlhf.cli.cluster.jobset",
  "sky": "rlhf.cli.cluster.sky",
}


def summary(module: str) -> str:
  """The first line of a module's docstring, which is read and not imported."""
  path = pathlib.Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
  docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
  return docstring.splitlines()[0] if docstring else ""


def describe() -> str:
  """What `rlhf --help` prints."""
  lines = [f"  {name:<16}{summary(module)}" for name, module in COMMANDS.items()]
  return "\n".join(["usage: rlhf COMMAND ...; rlhf COMMAND --help lists its flags", "", *lines])


def run(*words: str) -> None:
  """Runs the command line, after `words`, and ends with its exit status."""
  words = (*words, *sys.argv[1:])
  name = words[0] if words else "--help"
  if name in ("--help", "-h"):
    print(describe())
    return
  if name not in COMMANDS:
    startup.fail(f"there is no command {name!r}; choose from {', '.join(COMMANDS)}")
  sys.exit(importlib.import_module(COMMANDS[name]).main(words))
