"""Command lines: flags by argparse, and `--config=FILE[:ARGUMENT]` with its overrides.

An override is `--config.GROUP.FIELD=VALUE`, as in ml_collections: the config is locked, a value
must have its field's type, and an unknown field is an error that names the nearest one.
"""

import argparse
import difflib
import importlib.util
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_collections
from absl import flags as absl_flags
from ml_collections import config_flags

from rlhf import workdir as workdir_lib
from rlhf.cli.common import fields, startup

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
# The command that runs a config, by the config's `kind`.
COMMANDS = {
  **{name: f"rlhf train {name}" for name in ("sft", "reward_model", "ppo", "truth_judge")},
  "pipeline": "rlhf pipeline",
  "palms": "rlhf pipeline",
  "evaluation": "rlhf evaluate",
}


# ----------------------------------------------------------------------------- types of flags


def at_least(low: int) -> Callable[[str], int]:
  """A flag's type: whole numbers from `low`."""

  def whole_number(text: str) -> int:
    if int(text) < low:
      raise argparse.ArgumentTypeError(f"{text} is below {low}; use {low} or more")
    return int(text)

  return whole_number


def temperature(text: str) -> float:
  """A flag's type: a finite number from 0."""
  if not 0.0 <= float(text) < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} must be 0 or above")
  return float(text)


def share(text: str) -> float:
  """A flag's type: a number above 0 and up to 1."""
  if not 0.0 < float(text) <= 1.0:
    raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
  return float(text)


def directory(text: str) -> str:
  """A flag's type: a directory of this machine, which need not exist."""
  try:
    workdir_lib.check_local(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from None
  return text


def new_directory(text: str) -> str:
  """A flag's type: a directory of this machine that does not exist."""
  if pathlib.Path(directory(text)).exists():
    raise argparse.ArgumentTypeError(f"{text} exists; name a new directory")
  return text


def names(text: str, choices: Collection[str] | None = None) -> list[str]:
  """A flag's type: different names joined by commas, each one of the choices."""
  found = text.split(",")
  for name in found:
    if not name or found.count(name) > 1:
      problem = f"{name!r} is given twice" if name else "a name is empty"
      raise argparse.ArgumentTypeError(f"{text}: {problem}; join different names by single commas")
    if choices is not None and name not in choices:
      raise argparse.ArgumentTypeError(f"{name!r}; choose from {', '.join(choices)}")
  return found


# ----------------------------------------------------------------------------- the parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
  """Keeps the docstring's lines and shows defaults."""

  def _get_help_string(self, action: argparse.Action) -> str | None:
    shown = action.help and action.default not in (None, False, "", [], argparse.SUPPRESS)
    return f"{action.help} (default: %(default)s)" if shown else action.help


class Parser(argparse.ArgumentParser):
  """argparse with one sentence for a wrong flag, no abbreviated flags, and configs."""

  def __init__(self, prog: str, description: str | None = None, **more):
    super().__init__(
      prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter, **more
    )
    self._examples: Mapping[str, str] = {}
    self._outputs: list[tuple[str, str]] = []
    self._words: list[str] = []
    self.takes_overrides = False

  def flag(self, name: str, help: str, type: Callable = str, default: Any = None, **more) -> None:
    """Adds `--name`."""
    self.add_argument(f"--{name}", help=help, type=type, default=default, **more)

  def switch(self, name: str, help: str) -> None:
    """Adds `--name`, which takes no value and is off unless given."""
    self.add_argument(f"--{name}", help=help, action="store_true")

  def add_config(self, examples: str | Mapping[str, str], *, default: str | None = None) -> None:
    """Adds --config and its overrides.

    Args:
      examples: a config whose fields --help lists; for several algorithms, one for each name.
      default: the config where none is given; None where one is required.
    """
    self._examples = {"": examples} if isinstance(examples, str) else examples
    self.takes_overrides = True
    self.flag(
      "config",
      f"FILE[:ARGUMENT], such as {next(iter(self._examples.values()))}; --config.GROUP.FIELD=VALUE "
      "changes a field",
      default=default,
      required=default is None,
    )

  def add_workdir(self, help: str = "directory of the run") -> None:
    """Adds --workdir, which is required."""
    self.flag("workdir", help, directory, required=True)

  def add_cache_dir(self) -> None:
    """Adds --cache_dir."""
    help = "directory of tokenized data; the user's cache directory if not given"
    self.flag("cache_dir", help, directory)

  def add_profile(self) -> None:
    """Adds --profile."""
    self.flag("profile", "directory of an XProf trace of a few steps of every run", directory)

  def add_output(
    self, help: str, *, name: str = "output", file: str = "", required: bool = True
  ) -> None:
    """Adds --output and --overwrite; `parse` refuses an output that exists without the latter.

    Args:
      help: of --output.
      name: of the flag.
      file: where --output is a directory, the file in it that makes the output exist.
      required: whether the flag must be given.
    """
    self.flag(name, help, directory, required=required)
    if not self._outputs:
      self.switch("overwrite", "replace an output that exists")
    self._outputs.append((name, file))

  def parse(self, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `argv[1:]`; ends the program with one sentence where a flag is wrong."""
    words, overrides = split_overrides(argv[1:]) if self.takes_overrides else (argv[1:], [])
    self._words = list(words)
    arguments = self.parse_args(self._words)
    arguments.overrides = overrides
    self.check(arguments)
    return arguments

  def check(self, arguments: argparse.Namespace) -> None:
    """Ends the program where an output of `add_output` exists."""
    for name, file in self._outputs:
      given = getattr(arguments, name)
      if given is None:
        continue
      path = pathlib.Path(given) / file
      if path.is_dir():
        startup.fail(f"--{name}={given} is a directory; name a file")
      if path.exists() and not arguments.overwrite:
        startup.fail(f"--{name}={given}: {path} exists; name another, or add --overwrite")

  def format_help(self) -> str:
    """The flags and, for a command with a config, every field of it."""
    text = super().format_help()
    specs = [word.removeprefix("--config=") for word in self._words if word[:9] == "--config="]
    chosen = [spec for name, spec in self._examples.items() if not name or name in self._words]
    if specs or chosen:
      spec = (specs or chosen)[-1]
      text += f"\nfields of --config={spec}, changed by --config.FIELD=VALUE:\n"
      text += fields.describe(load_config(spec))
    elif self._examples:
      text += f"\n--help after one of {', '.join(self._examples)} lists the fields of its config\n"
    return text

  def error(self, message: str):
    startup.fail(f"{message}; see {self.prog} --help")


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
  """(other words, overrides); `--config VALUE` and `--config.FIELD VALUE` get an equals sign."""
  rest: list[str] = []
  overrides: list[str] = []
  waiting = None  # the list whose last word takes the next one as its value
  for word in words:
    if waiting is not None and not word.startswith("--"):
      waiting[-1] += f"={word}"
      waiting = None
      continue
    is_override = word.startswith(("--config.", "--noconfig."))
    target = overrides if is_override else rest
    target.append(word)
    waiting = target if (is_override or word == "--config") and "=" not in word else None
  return rest, overrides


# ----------------------------------------------------------------------------- configs


def find_file(spec: str, flag: str = "") -> tuple[pathlib.Path, list[str]]:
  """(file, [argument] or []) of FILE[:ARGUMENT].

  A file that is missing in the working directory is looked for among the shipped configs.

  Raises:
    ValueError: there is no such file.
  """
  file, colon, argument = spec.partition(":")
  path = pathlib.Path(file)
  if not path.is_file():
    path = CONFIGS.joinpath(*file.removeprefix("rlhf/").removeprefix("configs/").split("/"))
    if pathlib.Path(file).is_absolute() or not path.is_file():
      shipped = ", ".join(sorted(f"configs/{one.name}" for one in CONFIGS.glob("[a-z]*.py")))
      raise ValueError(f"{flag}{spec}: there is no file {file}; name your own or one of {shipped}")
  return path, [argument] if colon else []


def load_module(path: pathlib.Path) -> ModuleType:
  """The module of a Python file, which need not be importable by name.

  Raises:
    ValueError: it is not a Python file.
  """
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path} is not a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def load_config(spec: str, overrides: Sequence[str] = (), *kinds: str) -> ml_collections.ConfigDict:
  """The config of FILE[:ARGUMENT] with its overrides, locked.

  Args:
    spec: as --config gives it.
    overrides: `--config.GROUP.FIELD=VALUE` each.
    kinds: what the config may be; any, if none is given.

  Raises:
    ValueError: no such file, argument, field or value, or a config of another kind.
  """
  path, argument = find_file(spec, "--config=")
  module = load_module(path)
  if not hasattr(module, "get_config"):
    raise ValueError(f"--config={spec}: {path} has no function get_config")
  config = module.get_config(*argument)
  if kinds:
    check_kind(config, spec, *kinds)
  for word in overrides:
    check_field(config, word.partition("=")[0].removeprefix("--").removeprefix("no"))
  values = absl_flags.FlagValues()
  argv = ["rlhf", *(word for word in overrides if not set_to_none(config, word))]
  config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
  try:
    values(argv)
  except absl_flags.Error as error:
    raise ValueError(str(error).strip().splitlines()[-1].strip()) from None
  return config


def check_kind(config: ml_collections.ConfigDict, spec: str, *kinds: str) -> None:
  """Raises ValueError where a config is not of one of the kinds; names the command for it."""
  if "kind" not in config:
    raise ValueError(
      f"--config={spec}: the config has no field kind; add kind={kinds[0]!r} at its top"
    )
  if config.kind not in kinds:
    file = spec.partition(":")[0]
    use = f"use `{COMMANDS[config.kind]}`" if config.kind in COMMANDS else f"use {kinds[0]!r}"
    raise ValueError(f"{file} is a {config.kind} config, not {' or '.join(kinds)}; {use}")


def set_to_none(config: ml_collections.ConfigDict, word: str) -> bool:
  """Sets the field of `--config.GROUP.FIELD=None` where it may be None; whether it did."""
  name, _, value = word.partition("=")
  *groups, field = name.split(".")[1:]
  for group in groups:
    config = config[group]
  may_be_none = isinstance(
    dict(config.items(preserve_field_references=True))[field], ml_collections.FieldReference
  )
  if value == "None" and may_be_none:
    config[field] = None
    return True
  return False


def check_field(config: ml_collections.ConfigDict, name: str) -> None:
  """Raises ValueError where the config has no field `config.GROUP.FIELD`; names the nearest."""
  group, path = config, name.split(".")[1:]
  for depth, field in enumerate(path):
    known = list(group.keys()) if hasattr(group, "keys") else []
    if field not in known:
      where = ".".join(["config", *path[:depth]])
      close = difflib.get_close_matches(field, known, 1, 0.6)
      hint = (
        f"did you mean {close[0]!r}?"
        if close
        else (f"choose from {', '.join(sorted(known))}" if known else "it is a value, not a group")
      )
      raise ValueError(f"--{name}: {where} has no field {field!r}; {hint}")
    group = group[field]
