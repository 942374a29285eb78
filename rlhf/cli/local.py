"""Runs one job as several processes of this machine, with simulated CPU devices.

  rlhf local --num_processes=2 --devices_per_process=4 -- sft --config=... --workdir=...
  rlhf local --num_processes=2 --devices_per_process=4 -- pipeline --config=... ...

After `--` come the arguments of `rlhf train`, or `pipeline` and those of `rlhf pipeline`. Prints
the output of process 0. When a process fails, the others are ended, its last lines are shown, and
its exit status is this program's. SIGTERM and Ctrl-C go to all processes: after SIGTERM they save
at the same step and end with status 143; the same command resumes.
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
from typing import IO, Any

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import roll_call
from rlhf.cli.common import flags, startup

TAIL_LINES = 20
# How long the others may take to end by themselves after one has ended: a moment where all stop at
# the same mistake, longer after SIGTERM, until the last has left jax's shutdown.
SECONDS_AFTER_FAILURE = 5.0
SECONDS_AFTER_SIGTERM = 120.0
# The CPU's collectives announce every connection, from several threads into one line.
_NOISE = re.compile(
  r"\[Gloo\] Rank \d*|\d* is connected to \d+ peer ranks\. "
  r"Expected number of connected peer ranks is : \d*"
)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """(flags of this program, command of the processes)."""
  parser = flags.Parser("rlhf local", __doc__)
  parser.flag("num_processes", "processes to start", flags.at_least(1), 2)
  parser.flag("devices_per_process", "simulated CPU devices of each", flags.at_least(1), 4)
  own, words = job_lib.split(argv)
  arguments = parser.parse(own)
  command, _ = job_lib.parse_command(words)
  return arguments, command


def environment(process_id: int, num_processes: int, devices: int, port: int) -> dict[str, str]:
  """Of one process: its place in the job and its simulated devices."""
  return {
    **os.environ,
    **startup.simulated_devices(devices),
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
    """Starts them; processes other than 0 write their output to the directory `logs`."""
    port = roll_call.free_port()
    self._logs = logs
    self.processes: list[subprocess.Popen] = []
    self._threads: list[threading.Thread] = []
    self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
    for process_id in range(num_processes):
      with contextlib.ExitStack() as stack:
        outputs: dict[str, Any] = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if process_id:
          log = stack.enter_context(open(self.log(process_id), "wb"))
          outputs = dict(stdout=log, stderr=subprocess.STDOUT)
        process = subprocess.Popen(
          command,
          env=environment(process_id, num_processes, devices, port),
          stdin=subprocess.DEVNULL,
          start_new_session=True,  # so that Ctrl-C on the terminal reaches it once, from here
          **outputs,
        )
      if not process_id:
        self._start(show, process.stdout, sys.stdout)
        self._start(show, process.stderr, sys.stderr)
      self.processes.append(process)
      self._start(lambda i=process_id, p=process: self.ended.put((i, p.wait())))

  def _start(self, target, *arguments) -> None:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    self._threads.append(thread)

  def log(self, process_id: int) -> pathlib.Path:
    return self._logs / f"process_{process_id}.log"

  def send(self, number: int) -> None:
    """Sends a signal to all that still run."""
    for process in self.processes:
      if process.poll() is None:
        process.send_signal(number)

  def kill(self) -> None:
    """Ends all, and returns when they and the threads that show their output have ended."""
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
  """The text of a line, empty where it is only noise."""
  text = line.decode("utf-8", errors="replace")
  left = _NOISE.sub("", text)
  return text if left == text else left.lstrip() if left.strip(" \n0123456789") else ""


@contextlib.contextmanager
def forwarding(job: Job):
  """Passes SIGTERM and SIGINT on to the processes, while this program waits for their end."""
  before = {
    number: signal.signal(number, lambda number, _: job.send(number))
    for number in (signal.SIGTERM, signal.SIGINT)
  }
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def wait(job: Job) -> int:
  """Waits for the end of all; the exit status of the first that failed, or 0."""
  ended: dict[int, int] = {}
  failed, patience = None, None
  while len(ended) < len(job.processes):
    try:
      process_id, returncode = job.ended.get(timeout=patience)
    except queue.Empty:
      break
    # A process that a signal ended counts as in a shell: 128 + the signal.
    ended[process_id] = returncode if returncode >= 0 else 128 - returncode
    if failed is None and returncode:
      failed = process_id
      patience = SECONDS_AFTER_SIGTERM if ended[process_id] == 143 else SECONDS_AFTER_FAILURE
  still_running = len(job.processes) - len(ended)
  job.kill()
  if failed is None:
    return 0
  what = f"process {failed} of {len(job.processes)} ended with status {ended[failed]}"
  # Where process 0 came to the same end by itself, it has said why.
  if failed != 0 and ended.get(0) != ended[failed]:
    print(f"{what}; its last lines:\n{job.tail(failed)}", file=sys.stderr, flush=True)
  if ended[failed] not in (2, 143):
    others = f"; {still_running} still ran and were ended" if still_running else ""
    again = "run the same command to resume from the last checkpoint"
    print(f"error: {what}{others}; {again}", file=sys.stderr, flush=True)
  return ended[failed]


@startup.command
def main(argv: list[str]) -> None:
  arguments, command = parse(argv)
  with tempfile.TemporaryDirectory(prefix="rlhf_local_") as logs:
    job = Job(
      [sys.executable, "-m", "rlhf", *command],
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
