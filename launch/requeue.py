"""The program that submitit runs on each node: the training command, resubmitted when it is ended.

submitit asks for a checkpoint by a signal (SIGUSR2, some minutes before the time limit); the
training loop saves at SIGTERM and ends with status 143, and the same command goes on.  Here the two
meet.

  signal                 what happens
  SIGUSR2                SIGTERM to the command; when it has saved, submitit requeues the job
  SIGTERM                SIGTERM to the command, and no requeue of our own: the scheduler requeues
                         what it preempts, and a cancelled job must not come back
  none, but status 143   somebody ended the command alone: requeued
"""

from collections.abc import Sequence
import signal
import subprocess
import time

from launch import job as job_lib

ENDED = (143, -signal.SIGTERM)  # saved, or ended before it could


class Requeued:
  """A command in submitit's form: called on a node, and asked for its successor by `checkpoint`.

  Attributes:
    command: argv, the same for every node; where there are several, each adds its place to it.
    patience: seconds to wait, once the command has ended, for what the scheduler does next.
  """

  def __init__(self, command: Sequence[str], patience: float = 120.0):
    self.command, self.patience = list(command), patience

  def __call__(self) -> None:
    """Runs the command to its end.

    Raises:
      RuntimeError: it failed, or it was ended and nobody requeues it.
    """
    import submitit
    here = submitit.JobEnvironment()
    asks = signal.Signals[f"SIG{here.USR_SIG}"]
    requeue, received = signal.getsignal(asks), set()
    # A scheduler may signal every process of the job; unhandled, SIGUSR2 ends a program at once.
    child = subprocess.Popen([*self.command, *_join_flags(here)],
                             preexec_fn=lambda: signal.signal(asks, signal.SIG_IGN))

    def save(number, _):
      received.add(number)
      child.send_signal(signal.SIGTERM)

    for number in (asks, signal.SIGTERM):
      signal.signal(number, save)
    status = child.wait()
    if status == 0:
      return
    if status not in ENDED:
      raise RuntimeError(f"the command ended with status {status}; its own message is above")
    if signal.SIGTERM in received:
      self._wait(lambda: asks in received)
    if asks in received or not received:
      requeue(asks, None)  # ends task 0; the others return and are ended with the job
      self._wait(lambda: False)
    raise RuntimeError("SIGTERM ended the command after it had saved its state; submit the same "
                       "command to go on")

  def checkpoint(self):
    """What submitit submits next: the same command, which goes on from the workdir."""
    from submitit.helpers import DelayedSubmission
    return DelayedSubmission(self)

  def _wait(self, condition) -> None:
    deadline = time.monotonic() + self.patience
    while not condition() and time.monotonic() < deadline:
      time.sleep(0.5)


def _join_flags(here) -> list[str]:
  """The place of this task.

  Not jax's own detection of SLURM: that is for one process on each GPU, and hides the others.
  """
  port = 61440 + int(here.raw_job_id) % 4096  # as jax chooses it: jobs on one node differ
  return job_lib.join_flags(here.num_tasks, coordinator=f"{here.hostnames[0]}:{port}",
                            process_id=str(here.global_rank))
