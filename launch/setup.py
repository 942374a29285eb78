"""What every command does before its work: flags, environment, plain errors, the workdir."""

import argparse
from collections.abc import Sequence
import contextlib
import difflib
import logging
import os
import pathlib
import sys

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from rlhf import workdir as workdir_lib


def quiet_logs() -> None:
  """Environment belongs to the launchers: libraries stay quiet, compiled programs are kept."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  cache = pathlib.Path.home() / ".cache" / "rlhf" / "jax"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # a NaN is in metrics.jsonl as such


# ----------------------------------------------------------------------------- plain errors


@contextlib.contextmanager
def one_sentence_errors():
  """A mistake of the user's ends the program with one sentence and status 2, not a traceback.

  A run that stops because a number is no longer finite ends with status 1.  Errors of more than
  one line are not ours: they keep their traceback, as all do where RLHF_TRACEBACK is set.
  """
  try:
    yield
  except (ValueError, FloatingPointError) as error:
    if os.environ.get("RLHF_TRACEBACK") or "\n" in str(error):
      raise
    fail(str(error), 2 if isinstance(error, ValueError) else 1)


def fail(sentence: str, status: int = 2) -> None:
  """Prints the sentence and ends the program."""
  print(f"error: {sentence}", file=sys.stderr, flush=True)
  sys.exit(status)


# ----------------------------------------------------------------------------- flags with a config


def parse_flags(argv: list[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
  """`app.run`'s parser, with one sentence where absl would print a traceback of the config file."""
  try:
    check_overrides(argv)
    return flag_values(argv)
  except flags.Error as error:
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    for prefix in ("ValueError: ", "AttributeError: ", "KeyError: ", "TypeError: "):
      last = last.removeprefix(prefix)
    fail(last)
  except ValueError as error:
    fail(str(error))


def check_overrides(argv: Sequence[str]) -> None:
  """Looks every --config.GROUP.FIELD up in the config file before its value is parsed.

  Raises:
    ValueError: there is no such file or field; names the nearest field.
  """
  paths = [following if argument in ("--config", "-config") else argument.partition("=")[2]
           for argument, following in zip(argv, [*argv[1:], ""])
           if argument in ("--config", "-config") or argument.startswith(("--config=", "-config="))]
  if not paths:
    return
  file = paths[-1].partition(":")[0]
  if not pathlib.Path(file).is_file():
    raise ValueError(f"--config={paths[-1]}: there is no file {file}; name one of configs/")
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
      "config", None, flag_values=values, sys_argv=[argv[0], f"--config={paths[-1]}"])
  values([argv[0], f"--config={paths[-1]}"])
  for argument in argv[1:]:
    name = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and name.startswith("config."):
      check_field(holder.value, name)


def check_field(config, name: str) -> None:
  """Raises ValueError where the config has no field `config.GROUP.FIELD`; names the nearest."""
  group, path = config, name.split(".")[1:]
  for depth, field in enumerate(path):
    known = list(group.keys()) if hasattr(group, "keys") else []
    if field not in known:
      where = ".".join(["config", *path[:depth]])
      close = difflib.get_close_matches(field, known, 1, 0.6)
      hint = f"did you mean {close[0]!r}?" if close else (
          f"choose from {', '.join(sorted(known))}" if known else "it is a value, not a group")
      raise ValueError(f"--{name}: {where} has no field {field!r}; {hint}")
    group = group[field]


def read_config(argv: Sequence[str], usage: str) -> tuple[list[str], object, str]:
  """(positional arguments, config, workdir) of a command line with --config and --workdir.

  Ends the program with one sentence where a flag is wrong, and after printing `usage` for --help.
  """
  argv = list(argv)
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(usage)
    sys.exit(0)
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  workdir = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
  rest = parse_flags(argv, values)[1:]
  for flag, example in ((config, "configs/sft.py:1.3b"), (workdir, "runs/sft")):
    if not flag.value:
      fail(f"--{flag.name} is missing; give for example --{flag.name}={example}")
  return rest, config.value, workdir.value


def claim(config, workdir: str) -> None:
  """Writes the resolved config, the command and the git commit; refuses another config's run."""
  resumed = workdir_lib.prepare(workdir, workdir_lib.config_to_dict(config),
                                workdir_lib.default_command())
  print(f"workdir {workdir}: {'going on' if resumed else 'new run'}", flush=True)


# ----------------------------------------------------------------------------- flags without one


class Parser(argparse.ArgumentParser):
  """argparse with one sentence for a wrong flag, and no guessing of abbreviated ones."""

  def __init__(self, doc: str):
    super().__init__(description=doc, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)

  def error(self, message: str):
    fail(f"{message}; --help lists the flags")


def at_least(low: int):
  """A type of argparse: whole numbers from `low`."""
  def parse(text: str) -> int:
    if int(text) < low:
      raise argparse.ArgumentTypeError(f"{text} is below {low}")
    return int(text)
  parse.__name__ = "whole number"
  return parse


def temperature(text: str) -> float:
  """A type of argparse: 0 for the most likely token, or above."""
  if not 0.0 <= float(text) < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} must be 0 or above")
  return float(text)


# ----------------------------------------------------------------------------- exports


def find_export(directory: str, flag: str) -> pathlib.Path:
  """An export directory, or the export of a stage's workdir.

  Raises:
    ValueError: it is neither.
  """
  for candidate in (pathlib.Path(directory), pathlib.Path(directory) / "export"):
    if (candidate / "export.json").is_file():
      return candidate
  found = "holds no export" if pathlib.Path(directory).is_dir() else "does not exist"
  raise ValueError(f"--{flag}={directory} {found}; name an export directory, or the workdir of a "
                   "stage that has finished")


def affixes(export_config: dict, arguments: argparse.Namespace) -> dict[str, str]:
  """prompt_suffix and completion_prefix: by flag, else as in training, else this house's own."""
  from rlhf.data import prepare
  trained = [export_config[group] for group in ("demonstrations", "prompts", "comparisons")
             if group in export_config]
  found = {"prompt_suffix": prepare.PROMPT_SUFFIX, "completion_prefix": prepare.COMPLETION_PREFIX}
  for name in found:
    given = getattr(arguments, name)
    if given is not None:
      found[name] = given
    elif trained:
      found[name] = trained[0][name]
  return found


def add_affixes(parser: Parser) -> None:
  """The flags of `affixes`."""
  parser.add_argument("--prompt_suffix",
                      help="put behind every prompt; as in training if not given")
  parser.add_argument("--completion_prefix",
                      help="put before every completion; as in training if not given")
