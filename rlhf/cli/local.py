"""Runs one job as several processes of this machine, with simulated CPU devices.

  python -m launch.local --num_processes=2 --devices_per_process=4 -- sft --config=... --workdir=...
  python -m launch.local --num_processes=2 --devices_per_process=4 -- pipeline --config=... ...

What follows `--` is what launch.train takes; with `pipeline` as its first word, what
launch.pipeline takes.  Shows what process 0 prints.  When a process fails, the others are ended,
the last lines of the one that failed are shown, and its exit status is this program's.  SIGTERM and
Ctrl-C go to all of them: after SIGTERM they save the same step and end with status 143; the same
command goes on.
"""

import argparse
import contextlib
import os
import pathlib
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO

from rlhf.cli import setup
from rlhf.cli.cluster import roll_call

TAIL_LINES = 20
# How long the others may take to end by themselves after one has ended: where all stop at the same
# mistake a moment, after SIGTERM until the last has left jax's shutdown.
SECONDS_AFTER_FAILURE = 5.0
SECONDS_AFTER_SIGTERM = 120.0
# The CPU's collectives announce every connection, from several threads into one line.
_NOISE = re.compile(
  r"\[Gloo\] Rank \d*|\d* is connected to \d+ peer ranks\. "
  r"Expected number of connected peer ranks is : \d*"
)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """(flags of this program, module and arguments of the processes)."""
  argv = list(argv[1:])
  cut = argv.index("--") if "--" in argv else len(argv)
  parser = setup.Parser(__doc__)
  parser.add_argument("--num_processes", type=setup.at_least(1), default=2)
  parser.add_argument(
    "--devices_per_process", type=setup.at_least(1), default=4, help="simulated CPU devices of each"
  )
  arguments = parser.parse_args(argv[:cut])
  job = argv[cut + 1 :]
  if not job:
    parser.error(
      "nothing stands behind `--`; put what launch.train takes there, for example "
      "-- sft --config=configs/sft.py:tiny --workdir=runs/sft"
    )
  try:
    setup.check_no_place(job)
  except ValueError as error:
    setup.fail(str(error))
  if job[0] == "pipeline":
    return arguments, ["launch.pipeline", *job[1:]]
  return arguments, ["launch.train", *job]


def environment(process_id: int, num_processes: int, devices: int, port: int) -> dict[str, str]:
  """Of one process: its place in the job and its simulated devices."""
  return {
    **os.environ,
    **setup.simulated_devices(devices),
    "PYTHONUNBUFFERED": "1",
    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
    "JAX_NUM_PROCESSES": str(num_processes),
    "JAX_PROCESS_ID": str(process_id),
  }


class Job:
  """The started processes.

  Attributes:
    processes: by process id.
    ended: receives (process id, exit status) in the order in which they end.
  """

  def __init__(self, command: list[str], num_processes: int, devices: int, logs: pathlib.Path):
    """
    Args:
      command: of every process.
      devices: of every process.
      logs: where the output of the processes other than 0 goes.
    """
    port = roll_call.free_port()
    self._logs, self.processes, self._threads = logs, [], []
    self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
    for process_id in range(num_processes):
      variables = environment(process_id, num_processes, devices, port)
      # A session of its own: Ctrl-C of the terminal reaches it once, from here.
      options = dict(env=variables, stdin=subprocess.DEVNULL, start_new_session=True)
      if process_id == 0:
        process = subprocess.Popen(
          command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
          self._start(show, source, target)
      else:
        with open(self.log(process_id), "wb") as log:
          process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
      self.processes.append(process)
      self._start(lambda i=process_id, p=process: self.ended.put((i, p.wait())))

  def _start(self, target, *arguments) -> None:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    self._threads.append(thread)

  def log(self, process_id: int) -> pathlib.Path:
    return self._logs / f"process_{process_id}.log"

  def send(self, number: int) -> None:
    """A signal to all that still run."""
    for process in self.processes:
      if process.poll() is None:
        process.send_signal(number)

  def kill(self) -> None:
    """Ends all, and returns when they and what shows their output have ended."""
    self.send(signal.SIGKILL)
    for thread in self._threads:
      thread.join()

  def tail(self, process_id: int) -> str:
    """The last lines of a process's output."""
    with open(self.log(process_id), "rb") as log:
      lines = [text for line in log if (text := readable(line)).strip()]
    return "".join(lines[-TAIL_LINES:]).rstrip()


def show(source: IO[bytes], target: IO[str]) -> None:
  """Copies lines as they come."""
  with source:
    for line in source:
      target.write(readable(line))
      target.flush()


def readable(line: bytes) -> str:
  """The text of a line, empty where it is nothing but noise."""
  text = line.decode("utf-8", errors="replace")
  left = _NOISE.sub("", text)
  return text if left == text else left.lstrip() if left.strip(" \n0123456789") else ""


@contextlib.contextmanager
def forwarding(job: Job):
  """SIGTERM and SIGINT go to the processes, and this program waits for what they make of it."""
  before = {
    number: signal.signal(number, lambda number, _: job.send(number))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def exit_status(returncode: int) -> int:
  """A process that a signal ended counts as in a shell: 128 + the signal."""
  return returncode if returncode >= 0 else 128 - returncode


def wait(job: Job) -> int:
  """Waits for the end of all; the exit status of the first that failed, or 0."""
  ended: dict[int, int] = {}
  failed, patience = None, None
  while len(ended) < len(job.processes):
    try:
      process_id, returncode = job.ended.get(timeout=patience)
    except queue.Empty:
      break
    ended[process_id] = exit_status(returncode)
    if failed is None and returncode:
      failed = process_id
      patience = SECONDS_AFTER_SIGTERM if ended[process_id] == 143 else SECONDS_AFTER_FAILURE
  still_running = len(job.processes) - len(ended)
  job.kill()
  if failed is None:
    return 0
  # Where process 0 came to the same end by itself, it has said why.
  if failed != 0 and ended.get(0) != ended[failed]:
    print(
      f"process {failed} of {len(job.processes)} ended with status {ended[failed]}; its last "
      f"lines:\n{job.tail(failed)}",
      file=sys.stderr,
      flush=True,
    )
  if ended[failed] not in (2, 143):
    what = f"; {still_running} still ran and were ended" if still_running else ""
    print(
      f"error: process {failed} of {len(job.processes)} ended with status {ended[failed]}{what}"
      "; run the same command to go on from the last checkpoint",
      file=sys.stderr,
      flush=True,
    )
  return ended[failed]


def main(argv: list[str]) -> None:
  arguments, command = parse(argv)
  with tempfile.TemporaryDirectory(prefix="rlhf_local_") as logs:
    job = Job(
      [sys.executable, "-m", *command],
      arguments.num_processes,
      arguments.devices_per_process,
      pathlib.Path(logs),
    )
    try:
      with forwarding(job):
        status = wait(job)
    finally:
      job.kill()
  sys.exit(status)


if __name__ == "__main__":
  main(sys.argv)
