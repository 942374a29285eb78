"""What every command does before its work: flags to environment, claim the workdir, plain errors."""

import contextlib
import os
import pathlib
import sys

from absl import flags

from rlhf import workdir as workdir_lib


def quiet_logs() -> None:
  """Environment belongs to the launchers: libraries stay quiet, compiled programs are kept."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
  cache = pathlib.Path.home() / ".cache" / "rlhf" / "jax"
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
  from absl import logging
  logging.set_verbosity(logging.ERROR)


def parse_flags(argv: list[str]) -> list[str]:
  """`app.run`'s parser, with one sentence where absl would print a traceback of the config file."""
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
    for prefix in ("ValueError: ", "AttributeError: ", "KeyError: ", "TypeError: "):
      last = last.removeprefix(prefix)
    print(f"error: {last}", file=sys.stderr, flush=True)
    sys.exit(2)


@contextlib.contextmanager
def one_sentence_errors():
  """A mistake of the user's ends the program with one sentence and status 2, not a traceback."""
  try:
    yield
  except (ValueError, FloatingPointError) as error:
    if os.environ.get("RLHF_TRACEBACK"):
      raise
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2 if isinstance(error, ValueError) else 1)


def claim(config, workdir: str) -> None:
  """Writes the resolved config, the command and the git commit; refuses another config's run."""
  resumed = workdir_lib.prepare(workdir, workdir_lib.config_to_dict(config),
                                workdir_lib.default_command())
  print(f"workdir {workdir}: {'going on' if resumed else 'new run'}", flush=True)
