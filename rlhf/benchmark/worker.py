"""One side of a benchmark in a process of its own: a line of JSON in, a line of JSON out.

  python -m rlhf.benchmark.worker

A line is {"call": NAME, ...arguments}; the answer is {"result": ...}, or {"error": sentence} for a
ValueError. The process ends when its standard input does. Whatever libraries print goes to standard
error.
"""

import dataclasses
import json
import os
import sys
from typing import Any

from rlhf.benchmark import measure
from rlhf.benchmark.job import WITHOUT_DEVICE, Case, Job


class Worker:
  """What the process can be asked."""

  def __init__(self) -> None:
    self._side: Any = None
    self._case: Case | None = None

  def prepare(self, side: str, job: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Imports the side's libraries, makes the network and the inputs.

    Args:
      side: "ours", or a name of `job.PEERS`.
      job: the fields of a `Job`.
      more: further arguments of the side's `make`.
    """
    if side == "transformers":
      from rlhf.benchmark import transformers_peer as found
    elif side == "trl":
      from rlhf.benchmark import trl_peer as found  # type: ignore[no-redef]
    elif job["case"] in WITHOUT_DEVICE:
      from rlhf.benchmark import host_cases as found  # type: ignore[no-redef]
    else:
      from rlhf.benchmark import ours as found  # type: ignore[no-redef]
    self._side = found
    self._case = self._side.make(Job(**job), **more)
    assert self._case is not None
    return dict(model=dict(self._case.model), **self._side.describe())

  @property
  def case(self) -> Case:
    assert self._case is not None, "prepare comes first"
    return self._case

  def run(self, given: dict[str, Any]) -> dict[str, Any]:
    """One run, measured."""
    work, wall, cpu = measure.timed(lambda: self.case.run(given))
    return dataclasses.asdict(work) | dict(wall=wall, cpu=cpu)

  def phases(self) -> dict[str, float]:
    """Seconds of the phases that need programs of their own; empty where there are none."""
    return {} if self.case.phases is None else self.case.phases()

  def export(self, directory: str) -> None:
    """Writes the networks as Hugging Face checkpoints."""
    assert self.case.export is not None
    self.case.export(directory)

  def ceilings(self) -> dict[str, float]:
    """FLOPs and bytes a second of a matmul and a copy."""
    return self._side.ceilings()

  def reset_peak(self) -> None:
    """Starts the peak of host memory anew."""
    measure.reset_peak()

  def memory(self) -> dict[str, int | None]:
    """Peak bytes of host and device since `reset_peak`; a device's since the process started."""
    return dict(host=measure.peak_bytes(), device=self._side.peak_device_bytes())


CALLS = ("prepare", "run", "phases", "export", "ceilings", "reset_peak", "memory")


def main() -> None:
  replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  worker = Worker()
  for line in sys.stdin:
    arguments = json.loads(line)
    name = arguments.pop("call")
    assert name in CALLS, name
    try:
      answer = {"result": getattr(worker, name)(**arguments)}
    except ValueError as error:
      if os.environ.get("RLHF_TRACEBACK") or "\n" in str(error):
        raise
      answer = {"error": str(error)}
    print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
  main()
