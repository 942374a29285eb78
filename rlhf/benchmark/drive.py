"""Runs a benchmark: starts one process for each side, and drives them in alternation.

Each side has a process of its own, so that CPU seconds and peak memory are its own. Both inherit
this process's CPU affinity, and only one of them works at a time.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from rlhf.benchmark import measure
from rlhf.benchmark.job import PEERS, Job

WARM_UPS = 2  # runs of each side that are not counted: they compile, and fill caches

Result = dict[str, Any]
Side = Callable[..., Any]


@contextlib.contextmanager
def process(name: str) -> Iterator[Side]:
  """A worker process, as a function (call, arguments) -> result; it ends with the context.

  Args:
    name: of the side, for error messages.

  Raises:
    ValueError: the sentence of a ValueError in the worker, or that it ended.
  """
  worker = subprocess.Popen(
    [sys.executable, "-m", "rlhf.benchmark.worker"],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    encoding="utf-8",
  )
  assert worker.stdin is not None and worker.stdout is not None
  requests, replies = worker.stdin, worker.stdout

  def ask(call: str, **arguments: Any) -> Any:
    try:
      print(json.dumps({"call": call, **arguments}), file=requests, flush=True)
    except BrokenPipeError:
      pass  # it has ended: there is no reply
    line = replies.readline()
    if not line:
      raise ValueError(
        f"the process of {name} ended with status {worker.wait()} during {call!r}; the lines above "
        "say why, unless the system stopped it for want of memory"
      )
    answer = json.loads(line)
    if "error" in answer:
      raise ValueError(answer["error"])
    return answer["result"]

  try:
    yield ask
  finally:
    with contextlib.suppress(BrokenPipeError):
      requests.close()
    try:
      worker.wait(timeout=60)
    except subprocess.TimeoutExpired:
      worker.kill()
      worker.wait()
    replies.close()


def run(job: Job, *, against: str | None, pairs: int, note: Callable[[str], None]) -> Result:
  """The report of a benchmark, as --json has it.

  Args:
    job: what is measured.
    against: one of `PEERS`; None for our side alone.
    pairs: measured runs of each side.
    note: is called with a line on what goes on.

  Raises:
    ValueError: as the checks of the case's config, or a process ended.
  """
  load = measure.load_average()  # of the other programs: this one has not begun
  with contextlib.ExitStack() as stack:
    sides = {"ours": stack.enter_context(process("ours"))}
    note("ours: makes the network")
    described = {"ours": sides["ours"]("prepare", side="ours", job=dataclasses.asdict(job))}
    if against is not None:
      directory = stack.enter_context(tempfile.TemporaryDirectory())
      sides["ours"]("export", directory=directory)
      for variant in PEERS[against][job.case]:
        name = f"{against}, {variant}"
        note(f"{name}: reads the network")
        sides[name] = stack.enter_context(process(name))
        described[name] = sides[name](
          "prepare",
          side=against,
          job=dataclasses.asdict(job),
          directory=directory,
          platform=described["ours"]["platform"],
          variant=variant,
        )
    note(f"warm-up: {WARM_UPS} runs of each side")
    given = warm_up(sides["ours"], {})
    for name in list(sides)[1:]:
      warm_up(sides[name], given)
    runs: dict[str, list[Result]] = {name: [] for name in sides}
    for number in range(pairs):
      for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
        runs[name].append(sides[name]("run", given=given))
      walls = "; ".join(f"{name} {runs[name][-1]['wall']:.4g} s" for name in sides)
      note(f"run {number + 1} of {pairs}: {walls}")
    memory = {name: side("memory") for name, side in sides.items()}
    phases = {name: [side("phases") for _ in range(pairs)] for name, side in sides.items()}
    of = {name: side("ceilings") for name, side in sides.items()}  # last: it takes memory
  best = {key: max(found[key] for found in of.values()) for key in of["ours"]}
  reports = {
    name: summarise(runs[name], phases[name], memory[name], described[name], best) for name in sides
  }
  ours = reports.pop("ours")
  peers = {name: peer | compare(ours, peer) for name, peer in reports.items()}
  fastest = min(peers, key=lambda name: peers[name]["wall_seconds"]["median"], default=None)
  peer = None if fastest is None else peers[fastest]
  return dict(
    case=job.case,
    model=described["ours"]["model"] or None,
    pairs=pairs,
    warm_ups=WARM_UPS,
    load_before=load,
    ours=ours,
    peer=None if peer is None else dict(name=fastest, **peer),
    peers=peers,
    ratio_cpu=None if peer is None else peer["ratio_cpu"],
    ratio_wall=None if peer is None else peer["ratio_wall"],
    ceilings=best | dict(of=of),
  )


def warm_up(side: Side, given: Result) -> Result:
  """Runs a side uncounted; returns what the other sides need for the same work."""
  for _ in range(WARM_UPS):
    done = side("run", given=given)
  side("reset_peak")
  return dict(done["given"], flops=done["flops"], least_bytes=done["least_bytes"])


def compare(ours: Result, peer: Result) -> Result:
  """The peer's seconds divided by ours, pair by pair: above 1, ours takes less."""
  return {
    name: measure.ratios(peer[key]["runs"], ours[key]["runs"])
    for name, key in (("ratio_cpu", "cpu_seconds"), ("ratio_wall", "wall_seconds"))
  }


def summarise(
  runs: list[Result],
  phases: list[dict[str, float]],
  memory: dict[str, int | None],
  described: Result,
  ceilings: dict[str, float],
) -> Result:
  """The numbers of one side: medians with their range over its runs."""
  last = runs[-1]
  seconds = [{**run["seconds"], **more} for run, more in zip(runs, phases, strict=True)]

  def rate(key: str) -> Result | None:
    """Of what a run does, a second; None where the case has no such number."""
    return None if last[key] is None else measure.spread(run[key] / run["wall"] for run in runs)

  def share(key: str, ceiling: str) -> float | None:
    found = rate(key)
    return None if found is None or ceiling not in ceilings else found["median"] / ceilings[ceiling]

  def runs_of(key: str) -> Result:
    numbers = [run[key] for run in runs]
    return measure.spread(numbers) | dict(runs=numbers)

  return dict(
    {key: value for key, value in described.items() if key != "model"},
    wall_seconds=runs_of("wall"),
    cpu_seconds=runs_of("cpu"),
    tokens=last["tokens"],
    useful_tokens=last["useful_tokens"],
    tokens_per_second=rate("tokens"),
    useful_tokens_per_second=rate("useful_tokens"),
    phases={name: measure.spread(run[name] for run in seconds) for name in seconds[0]},
    amount=last["amount"],
    unit=last["unit"],
    amount_per_second={
      name: measure.spread(run["amount"] / run["seconds"][name] for run in runs)
      for name in last["seconds"]
      if last["amount"]
    },
    peak_host_bytes_of_phases={
      name: max(run["peaks"][name] for run in runs) for name in last["peaks"]
    },
    peak_host_bytes=memory["host"],
    peak_device_bytes=memory["device"],
    flops=last["flops"],
    flops_per_second=rate("flops"),
    share_of_matmul=share("flops", "matmul_flops_per_second"),
    share_of_copy=share("least_bytes", "copy_bytes_per_second"),
  )
