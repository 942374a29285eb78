"""What every command does before its work: flags, environment, plain errors, the workdir."""

import argparse
import contextlib
import dataclasses
import difflib
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags

from rlhf import workdir as workdir_lib
from rlhf.cli.cluster import roll_call


def quiet_logs() -> None:
  """Environment belongs to the launchers: libraries stay quiet, compiled programs are kept."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  cache = pathlib.Path.home() / ".cache" / "rlhf" / "jax"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  absl_logging.set_verbosity(absl_logging.ERROR)
  logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # a NaN is in metrics.jsonl as such
  os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars beside ours
  logging.getLogger("lm_eval").setLevel(logging.ERROR)


def simulated_devices(count: int) -> dict[str, str]:
  """Environment of a program that is to see so many simulated CPU devices and no others."""
  flag = "--xla_force_host_platform_device_count="
  others = re.sub(rf"{flag}\d+", "", os.environ.get("XLA_FLAGS", ""))
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{others} {flag}{count}".strip()}


# ----------------------------------------------------------------------------- plain errors


_MOST_SAID = 300  # characters of an error that is not ours


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


def sentence_of(error: Exception) -> str:
  """Ours as they are; what others raise by its type and how it begins."""
  if isinstance(error, ValueError) and "\n" not in str(error):
    return str(error)
  said = " ".join(str(error).split()).strip("* ")
  return f"{type(error).__name__}: {said[:_MOST_SAID]}".rstrip(": ")


def fail(sentence: str, status: int = 2) -> None:
  """Prints the sentence and ends the program."""
  print(f"error: {sentence}", file=sys.stderr, flush=True)
  sys.exit(status)


# ----------------------------------------------------------------------------- several processes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """Where this process stands among those of its job."""

  coordinator_address: str
  num_processes: int
  process_id: int
  local_device_ids: list[int] | None


def define_process_flags(values: flags.FlagValues) -> None:
  """The flags of `join_processes`; what is not given comes from the environment."""
  define = lambda kind, *spec: getattr(flags, f"DEFINE_{kind}")(*spec, flag_values=values)
  define(
    "string",
    "coordinator_address",
    None,
    "HOST:PORT of process 0, with a free port; JAX_COORDINATOR_ADDRESS if not given.",
  )
  define("integer", "num_processes", None, "Processes of the job; JAX_NUM_PROCESSES if not given.")
  define(
    "integer", "process_id", None, "This process's number, from 0; JAX_PROCESS_ID if not given."
  )
  define(
    "string",
    "cluster",
    "",
    "Take what is not given from the cluster, as jax finds it: auto, "
    f"or one of {', '.join(CLUSTERS)}.",
  )
  define("integer", "connect_timeout", 1800, "Seconds to wait for all processes to start.")
  define("integer", "heartbeat_timeout", 120, "Seconds of silence after which a process is dead.")
  define("integer", "shutdown_timeout", 600, "Seconds to wait for all processes at the end.")


# jax's names; for Kubernetes it has none, only "auto".
CLUSTERS = ("slurm", "ompi", "mpi4py", "gcetpu", "gketpu")
_CLUSTER_ADVICE = (
  "start the job through its scheduler, or give --coordinator_address, "
  "--num_processes and --process_id"
)
_PROCESS_VARIABLES = {
  "coordinator_address": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}


def check_no_place(arguments: Sequence[str]) -> None:
  """For launchers, which tell every process its place themselves.

  Raises:
    ValueError: the job's own command line says it too.
  """
  for argument in arguments:
    name = argument.lstrip("-").partition("=")[0]
    if argument.startswith("-") and name in (*_PROCESS_VARIABLES, "cluster"):
      raise ValueError(
        f"--{name} stands behind --, but the launcher tells every process its place "
        "in the job; leave it out there"
      )


def find_place(values: flags.FlagValues) -> Place | None:
  """What flags, environment and, if asked, the cluster say; None for a job of one process.

  Raises:
    ValueError: something is missing or does not fit; names the flag.
  """
  given = {name: _process_setting(values, name) for name in _PROCESS_VARIABLES}
  for name in ("connect_timeout", "heartbeat_timeout", "shutdown_timeout"):
    if values[name].value < 1:
      raise ValueError(f"--{name}={values[name].value} is below 1 second; use 1 or more")
  local_device_ids = None
  if cluster := values["cluster"].value:
    if cluster not in ("auto", *CLUSTERS):
      raise ValueError(f"--cluster={cluster}; choose auto or one of {', '.join(CLUSTERS)}")
    *found, local_device_ids = _ask_cluster(cluster, given, values["connect_timeout"].value)
    # jax takes task i of a node to own its i-th device: true of one task per device only.
    num_tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if num_tasks is not None and num_tasks == os.environ.get("SLURM_STEP_NUM_NODES"):
      local_device_ids = None
    given = dict(zip(given, found, strict=True))
  if all(setting is None for setting in given.values()):
    if cluster:
      raise ValueError(
        f"--cluster={cluster}: jax finds no cluster in this environment; {_CLUSTER_ADVICE}"
      )
    return None
  for name, setting in given.items():
    if setting is None:
      others = " and ".join(f"--{other}" for other in given if given[other] is not None)
      raise ValueError(
        f"--{name} (or {_PROCESS_VARIABLES[name]}) is missing beside {others}; give "
        "all three, or --cluster=auto to take them from the cluster"
      )
  roll_call.split_address(given["coordinator_address"])
  if given["num_processes"] < 1:
    raise ValueError(f"--num_processes={given['num_processes']} is below 1; use 1 or more")
  if not 0 <= given["process_id"] < given["num_processes"]:
    raise ValueError(
      f"--process_id={given['process_id']} of --num_processes="
      f"{given['num_processes']}; use 0 to {given['num_processes'] - 1}"
    )
  return Place(**given, local_device_ids=local_device_ids) if given["num_processes"] > 1 else None


def _process_setting(values: flags.FlagValues, name: str) -> str | int | None:
  if values[name].value is not None:
    return values[name].value
  variable = _PROCESS_VARIABLES[name]
  text = os.environ.get(variable, "")
  if not text or name == "coordinator_address":
    return text if text else None
  if not text.isdigit():
    raise ValueError(f"{variable}={text} in the environment is not a whole number; set it to one")
  return int(text)


def _ask_cluster(cluster: str, given: dict, timeout: int):
  """(address, number, id, local devices) as jax's own detection completes what is given."""
  from jax._src import clusters  # the only way to ask it before connecting

  logging.getLogger("jax._src.clusters").setLevel(logging.CRITICAL)  # the sentence below says it
  try:
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(
      *given.values(), None, None if cluster == "auto" else cluster, timeout
    )
  except Exception as error:  # as many kinds as there are schedulers
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    raise ValueError(
      f"--cluster={cluster}: jax cannot tell this process's place from the "
      f"environment ({reason}); {_CLUSTER_ADVICE}"
    ) from error


def join_processes(values: flags.FlagValues = flags.FLAGS) -> None:
  """Connects this process to the others of its job, if there are any.

  Must come before anything that makes jax look for devices.  Afterwards only process 0 prints:
  standard output of the others goes nowhere, their errors go to standard error.
  """
  place = find_place(values)
  if place is None:
    return
  try:
    roll_call.hold(
      place.coordinator_address,
      num_processes=place.num_processes,
      process_id=place.process_id,
      seconds=values["connect_timeout"].value,
    )
  except roll_call.MissingProcess as error:
    fail(str(error), 1)
  import jax

  jax.distributed.initialize(
    **dataclasses.asdict(place),
    cluster_detection_method="deactivate",
    initialization_timeout=values["connect_timeout"].value,
    heartbeat_timeout_seconds=values["heartbeat_timeout"].value,
    shutdown_timeout_seconds=values["shutdown_timeout"].value,
  )
  if place.process_id != 0:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


@contextlib.contextmanager
def ends_at_once():
  """One of several processes that fails ends without waiting for the others, who then end as well.

  A plain exit waits for all of them in jax's shutdown, where they never come.  After SIGTERM all
  leave together.
  """
  try:
    yield
  except BaseException as error:
    from rlhf import processes

    stopped = isinstance(error, SystemExit)
    if processes.count() == 1 or (stopped and error.code in (None, 0, 143)):
      raise
    if not stopped:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    code = error.code if stopped and isinstance(error.code, int) else 1
    os._exit(130 if isinstance(error, KeyboardInterrupt) else code)


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
  paths = [
    following if argument in ("--config", "-config") else argument.partition("=")[2]
    for argument, following in zip(argv, [*argv[1:], ""])
    if argument in ("--config", "-config") or argument.startswith(("--config=", "-config="))
  ]
  if not paths:
    return
  file = paths[-1].partition(":")[0]
  if not pathlib.Path(file).is_file():
    raise ValueError(f"--config={paths[-1]}: there is no file {file}; name one of configs/")
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", None, flag_values=values, sys_argv=[argv[0], f"--config={paths[-1]}"]
  )
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
      hint = (
        f"did you mean {close[0]!r}?"
        if close
        else (f"choose from {', '.join(sorted(known))}" if known else "it is a value, not a group")
      )
      raise ValueError(f"--{name}: {where} has no field {field!r}; {hint}")
    group = group[field]


def read_config(
  argv: Sequence[str], usage: str, *, join: bool = True
) -> tuple[list[str], object, str]:
  """(positional arguments, config, workdir) of a command line with --config and --workdir.

  Also joins the other processes of the job, if there are any.  Ends the program with one sentence
  where a flag is wrong, and after printing `usage` for --help.
  """
  argv = list(argv)
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(usage)
    sys.exit(0)
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  workdir = flags.DEFINE_string("workdir", None, "Directory of the run.", flag_values=values)
  define_process_flags(values)
  rest = parse_flags(argv, values)[1:]
  for flag, example in ((config, "configs/sft.py:1.3b"), (workdir, "runs/sft")):
    if not flag.value:
      fail(f"--{flag.name} is missing; give for example --{flag.name}={example}")
  if join:
    join_processes(values)
  return rest, config.value, workdir.value


def claim(config, workdir: str) -> None:
  """Writes the resolved config, the command and the git commit; refuses another config's run."""
  resumed = workdir_lib.prepare(
    workdir, workdir_lib.config_to_dict(config), workdir_lib.default_command()
  )
  print(f"workdir {workdir}: {'going on' if resumed else 'new run'}", flush=True)


# ----------------------------------------------------------------------------- flags without one


class Parser(argparse.ArgumentParser):
  """argparse with one sentence for a wrong flag, and no guessing of abbreviated ones."""

  def __init__(self, doc: str, **more):
    super().__init__(
      description=doc,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      **more,
    )

  def error(self, message: str):
    fail(f"{message}; --help lists the flags")


def at_least(low: int):
  """A type of argparse: whole numbers from `low`."""

  def parse(text: str) -> int:
    if int(text) < low:
      raise argparse.ArgumentTypeError(f"{text} is below {low}; use {low} or more")
    return int(text)

  parse.__name__ = "whole number"
  return parse


def temperature(text: str) -> float:
  """A type of argparse: 0 for the most likely token, or above."""
  if not 0.0 <= float(text) < float("inf"):
    raise argparse.ArgumentTypeError(f"{text} must be 0 or above")
  return float(text)


def share(text: str) -> float:
  """A type of argparse: above 0 and up to 1."""
  if not 0.0 < float(text) <= 1.0:
    raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
  return float(text)


# ----------------------------------------------------------------------------- exports


def find_network(source: str, flag: str) -> str | pathlib.Path:
  """`hf:DIR` and `gguf:FILE` as they are, else `find_export`."""
  from rlhf.interop import reading

  if reading.is_source(source):
    return source
  try:
    return find_export(source, flag)
  except ValueError as error:
    if (meant := reading.meant_source(source)) is None:
      raise
    raise ValueError(f"--{flag}={source} is a published model; write --{flag}={meant}") from error


def find_export(directory: str, flag: str) -> pathlib.Path:
  """An export directory, or the export of a stage's workdir.

  Raises:
    ValueError: it is neither.
  """
  for candidate in (pathlib.Path(directory), pathlib.Path(directory) / "export"):
    if (candidate / "export.json").is_file():
      return candidate
  found = "holds no export" if pathlib.Path(directory).is_dir() else "does not exist"
  raise ValueError(
    f"--{flag}={directory} {found}; name an export directory, or the workdir of a "
    "stage that has finished"
  )


def prompt_format(export_config: dict, arguments: argparse.Namespace):
  """`prepare.PromptFormat`: by flag, else as in training, else this house's own.

  With --prompt_format, the texts that are not given are that format's own defaults: those of
  training belong to the format of training.

  Raises:
    ValueError: the flags contradict one another.
  """
  from rlhf.data import prepare

  found = dataclasses.asdict(prepare.PromptFormat.trained_with(export_config))
  if arguments.prompt_format not in (None, found["prompt_format"]):
    found = (
      dataclasses.asdict(prepare.PLAIN)
      if arguments.prompt_format == "plain"
      else dict(prompt_suffix="", completion_prefix="")
    )  # the name is given
  given = {
    name: getattr(arguments, name)
    for name in ("prompt_format", "prompt_suffix", "completion_prefix")
  }
  return prepare.PromptFormat(
    **(found | {name: text for name, text in given.items() if text is not None})
  )


def add_prompt_format(parser: Parser) -> None:
  """The flags of `prompt_format`."""
  parser.add_argument(
    "--prompt_format",
    choices=("plain", "chat"),
    help="plain, or the model's chat template; as in training if not given",
  )
  parser.add_argument(
    "--prompt_suffix", help="put behind every prompt; as in training if not given"
  )
  parser.add_argument(
    "--completion_prefix", help="put before every completion; as in training if not given"
  )
