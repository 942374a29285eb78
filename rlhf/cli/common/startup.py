"""What every command does around its work: environment, one-sentence errors, the workdir."""

import contextlib
import functools
import logging
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import logging as absl_logging

from rlhf import processes
from rlhf import workdir as workdir_lib

_MAX_FOREIGN_ERROR = 300  # characters of another library's error


def command(main: Callable[[list[str]], Any]) -> Callable[[list[str]], Any]:
  """Decorates a command's `main(argv)`: quiet libraries, one-sentence errors, a prompt end."""

  @functools.wraps(main)
  def run(argv: list[str]):
    quiet_logs()
    with end_at_once(), one_sentence_errors():
      return main(list(argv))

  return run


def quiet_logs() -> None:
  """Silences libraries and turns on jax's compilation cache; the environment comes first."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  cache = pathlib.Path.home() / ".cache" / "rlhf" / "jax"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars would interleave with ours
  absl_logging.set_verbosity(absl_logging.ERROR)
  # tensorboardX warns of every NaN, which metrics.jsonl records anyway.
  logging.getLogger("tensorboardX").setLevel(logging.ERROR)
  logging.getLogger("lm_eval").setLevel(logging.ERROR)


def simulated_devices(count: int) -> dict[str, str]:
  """Environment variables that give a program `count` simulated CPU devices and no others."""
  flag = "--xla_force_host_platform_device_count="
  others = re.sub(rf"{flag}\d+", "", os.environ.get("XLA_FLAGS", ""))
  return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{others} {flag}{count}".strip()}


@contextlib.contextmanager
def one_sentence_errors():
  """Ends the program with one sentence, not a traceback, where the user made a mistake.

  The exit status is 2; it is 1 where a run stops because a number is no longer finite. Errors of
  several lines come from other libraries and keep their traceback, as do all errors with
  RLHF_TRACEBACK set.
  """
  try:
    yield
  except (ValueError, FloatingPointError) as error:
    if os.environ.get("RLHF_TRACEBACK") or "\n" in str(error):
      raise
    fail(str(error), 2 if isinstance(error, ValueError) else 1)


def sentence_of(error: Exception) -> str:
  """One line for any error: our own sentence, or the type and the beginning of a foreign one."""
  if isinstance(error, ValueError) and "\n" not in str(error):
    return str(error)
  text = " ".join(str(error).split()).strip("* ")
  return f"{type(error).__name__}: {text[:_MAX_FOREIGN_ERROR]}".rstrip(": ")


def fail(sentence: str, status: int = 2) -> None:
  """Prints the sentence and ends the program."""
  print(f"error: {sentence}", file=sys.stderr, flush=True)
  sys.exit(status)


@contextlib.contextmanager
def end_at_once():
  """Makes one of several processes that fails end without waiting for the others.

  A plain exit waits for the others in jax's shutdown, which they never reach; when one process has
  ended, jax ends the others too. After SIGTERM all leave together.
  """
  try:
    yield
  except BaseException as error:
    stopped = isinstance(error, SystemExit)
    if processes.count() == 1 or (stopped and error.code in (None, 0, 143)):
      raise
    if not stopped:
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
    os._exit(130 if isinstance(error, KeyboardInterrupt) else code)


def claim(config, workdir: str, check_inputs: Callable[[Any], Any] | None = None) -> None:
  """Records the config, the command and the git commit in the workdir of a new or resumed run.

  Args:
    check_inputs: reads the files that the config names; called for a new run, before the workdir
      is made.

  Raises:
    ValueError: as `workdir.check` and `check_inputs`; nothing has been written.
  """
  settings = workdir_lib.plain(config)
  if not workdir_lib.check(workdir, settings) and check_inputs is not None:
    check_inputs(config)
  resumed = workdir_lib.prepare(workdir, settings)
  print(f"workdir {workdir}: {'going on' if resumed else 'new run'}", flush=True)
