"""Several processes as one job: who writes, who waits, and how numbers come back whole.

Every process runs the same program in the same order on the same global arrays (`launch/` starts
them over `jax.distributed`).  Process 0 prints and writes what is not an array; where the others
read it, they wait.  With one process nothing here does anything.
"""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

# How long a process waits for another's work on the host: reading and tokenising data may take
# hours.  One that has died is noticed much sooner, by its missing heartbeat.
WAIT_SECONDS = 24 * 3600

# Every process calls the functions below in the same order, so counting makes names that agree.
_WAITS = itertools.count()
_STOP_QUESTIONS = itertools.count()


def count() -> int:
  """Processes of the job.

  jax is not imported for it: a program that has not imported it is alone.
  """
  jax = sys.modules.get("jax")
  return jax.process_count() if jax is not None and jax.distributed.is_initialized() else 1


def is_main() -> bool:
  """Whether this is process 0, which prints and writes."""
  return count() == 1 or sys.modules["jax"].process_index() == 0


def wait(name: str) -> None:
  """Returns when every process has come here; `name` is for error messages.

  The wait is the coordination service's and not a collective of the devices, whose own timeouts
  are too short for the work of a host.
  """
  if count() > 1:
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(
      key=f"rlhf_{next(_WAITS)}_{name}", timeout_ms=WAIT_SECONDS * 1000
    )


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
  """Process 0 runs the body before the others do: what it writes there, they find."""
  if not is_main():
    wait(name)
  yield
  if is_main():
    wait(name)


def to_host(tree: Any) -> Any:
  """`jax.device_get` that also brings back arrays whose parts lie on other processes' devices.

  A collective: every process calls it, and every one gets the whole numpy arrays.
  """
  import jax
  from jax.experimental import multihost_utils

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
      return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf

  return jax.device_get(jax.tree.map(whole, tree) if count() > 1 else tree)


def stop_question() -> Callable[[], bool]:
  """For several processes: a function that says whether all of them should stop now.

  Once SIGTERM has reached any of them, jax's preemption service, which catches the signal from
  `jax.distributed.initialize` on, agrees on the next question that nobody has asked yet; that one
  is answered True everywhere.  Every process asks once a step.
  """
  from jax.experimental import multihost_utils

  return lambda: multihost_utils.reached_preemption_sync_point(next(_STOP_QUESTIONS))
