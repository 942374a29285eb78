"""The program that submitit runs on each node: a training command that is requeued when it ends.

submitit asks for a checkpoint with SIGUSR2, some minutes before the time limit; the training loop
saves at SIGTERM and ends with status 143, and the same command resumes. This module connects the
two.

  signal                 what happens
  SIGUSR2                SIGTERM to the command; when it has saved, submitit requeues the job
  SIGTERM                SIGTERM to the command, and no requeue of our own: the scheduler requeues
                         what it preempts, and a cancelled job must not come back
  none, but status 143   only the command was ended: requeued

Restarts are counted here. submitit counts only those after 80 % of the time limit, or in its last
ten minutes: a job that is asked to save earlier would be requeued for ever.
"""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import time
from typing import IO, Any

from rlhf import workdir as workdir_lib
from rlhf.cli.cluster import job as job_lib

ENDED = (143, -signal.SIGTERM)  # saved, or ended before it could


@dataclasses.dataclass
class Requeued:
  """A command in submitit's form: called on a node, then asked for its successor by `checkpoint`.

  Attributes:
    command: argv, the same for every node; with several nodes, each appends its place.
    restarts: how many times we may still requeue it.
    patience: seconds to wait, once the command has ended, for what the scheduler does next.
    log: file to which the command's output is appended; None for this program's own output.
    record: file that records a failed end; None for no file.
  """

  command: list[str]
  _: dataclasses.KW_ONLY
  restarts: int
  patience: float = 120.0
  log: pathlib.Path | None = None
  record: pathlib.Path | None = None

  def __call__(self) -> None:
    """Runs the command to its end.

    Raises:
      RuntimeError: it failed, or was ended and is not requeued.  A failure is recorded.
    """
    import submitit

    here = submitit.JobEnvironment()
    asks = signal.Signals[f"SIG{here.USR_SIG}"]
    requeue: Any = signal.getsignal(asks)
    received: set[int] = set()
    # A scheduler may signal every process of the job; unhandled, SIGUSR2 ends a program at once.
    with contextlib.nullcontext() if self.log is None else open_log(self.log) as log:
      child = subprocess.Popen(
        [*self.command, *_place_flags(here)],
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(asks, signal.SIG_IGN),
      )

    def save(number, _):
      received.add(number)
      child.send_signal(signal.SIGTERM)

    for number in (asks, signal.SIGTERM):
      signal.signal(number, save)
    status = child.wait()
    if status == 0:
      if self.record is not None:
        self.record.unlink(missing_ok=True)
      return
    if status not in ENDED:
      self._write_record(status)
      where = "its own message is above" if self.log is None else f"see {self.log}"
      raise RuntimeError(f"the command ended with status {status}; {where}")
    if signal.SIGTERM in received:
      self._wait(lambda: asks in received)
    if asks in received or not received:
      requeue(asks, None)  # ends task 0; the others return and are ended with the job
      self._wait(lambda: False)
    raise RuntimeError(
      "SIGTERM ended the command after it had saved its state; submit the same command to resume"
    )

  def checkpoint(self):
    """What submitit submits next: the same command, which goes on from the workdir.

    Raises:
      RuntimeError: no restart is left, which is recorded.
    """
    if not self.restarts:
      self._write_record(143)
      raise RuntimeError(
        "the command has saved its state and no restart is left (--max_restarts); "
        "submit the same command to resume"
      )
    from submitit.helpers import DelayedSubmission

    return DelayedSubmission(dataclasses.replace(self, restarts=self.restarts - 1))

  def _write_record(self, status: int) -> None:
    if self.record is not None:
      workdir_lib.write_json(self.record, dict(exit_status=status, log=str(self.log)))

  def _wait(self, condition) -> None:
    deadline = time.monotonic() + self.patience
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.5)


def open_log(path: pathlib.Path) -> IO[str]:
  """A file to which a command's output is appended."""
  path.parent.mkdir(parents=True, exist_ok=True)
  return open(path, "a", encoding="utf-8")


def _place_flags(here) -> list[str]:
  """The place of this task; nothing where it is alone.

  jax's own detection of SLURM is for one process on each GPU, and would hide the other GPUs.
  """
  if here.num_tasks == 1:
    return []
  port = 61440 + int(here.raw_job_id) % 4096  # as jax chooses it: jobs on one node differ
  return job_lib.place_flags(f"{here.hostnames[0]}:{port}", here.num_tasks, str(here.global_rank))
