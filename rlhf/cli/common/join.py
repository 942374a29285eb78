"""Several processes as one job: where a process finds its place, and how it joins the others."""

import argparse
import logging
import os
import sys
from typing import Any

from rlhf.cli.cluster import roll_call
from rlhf.cli.common import flags, startup

CLUSTERS = (
  "slurm",
  "ompi",
  "mpi4py",
  "gcetpu",
  "gketpu",
)  # jax's names; Kubernetes has only "auto"
_VARIABLES = {
  "coordinator_address": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}
_ADVICE = "give --coordinator_address, --num_processes and --process_id"


def add_flags(parser: flags.Parser) -> None:
  """The flags that `find_place` and `join` read."""
  parser.flag("coordinator_address", "HOST:PORT of process 0; else JAX_COORDINATOR_ADDRESS")
  parser.flag("num_processes", "processes of the job; else JAX_NUM_PROCESSES", flags.at_least(1))
  parser.flag("process_id", "number of this process; else JAX_PROCESS_ID", flags.at_least(0))
  parser.flag(
    "cluster",
    "let jax find what is not given; Kubernetes is found by auto",
    choices=("auto", *CLUSTERS),
  )
  seconds = flags.at_least(1)
  parser.flag("connect_timeout", "seconds to wait for all processes to start", seconds, 1800)
  parser.flag("heartbeat_timeout", "seconds of silence after which a process is dead", seconds, 120)
  parser.flag("shutdown_timeout", "seconds to wait for all processes at the end", seconds, 600)


def check_no_place(arguments: argparse.Namespace) -> None:
  """Raises ValueError where a launcher's job has a flag that the launcher sets for each process."""
  for name in (*_VARIABLES, "cluster"):
    if getattr(arguments, name) is not None:
      raise ValueError(
        f"--{name} is given after --, but the launcher sets it for each process; leave it out"
      )


def find_place(arguments: argparse.Namespace) -> dict[str, Any] | None:
  """This process's place from flags, environment and cluster; None for a job of one process.

  Returns:
    Arguments of `jax.distributed.initialize`.

  Raises:
    ValueError: something is missing or does not fit; names the flag.
  """
  place: dict[str, Any] = {name: _setting(arguments, name) for name in _VARIABLES}
  local_device_ids = None
  if arguments.cluster is not None:
    *found, local_device_ids = _ask_cluster(arguments, place)
    # jax assumes that task i of a node owns its i-th device: only right for one task per device.
    num_tasks = os.environ.get("SLURM_STEP_NUM_TASKS")
    if num_tasks is not None and num_tasks == os.environ.get("SLURM_STEP_NUM_NODES"):
      local_device_ids = None
    place = dict(zip(place, found, strict=True))
  missing = [name for name, setting in place.items() if setting is None]
  if len(missing) == len(place):
    if arguments.cluster is not None:
      raise ValueError(
        f"--cluster={arguments.cluster}: jax finds no cluster in this environment; start the job "
        f"through its scheduler, or {_ADVICE}"
      )
    return None
  if missing:
    given = " and ".join(f"--{name}" for name in place if name not in missing)
    raise ValueError(
      f"--{missing[0]} (or {_VARIABLES[missing[0]]}) is missing, but {given} is given; give all "
      "three, or --cluster=auto to take them from the cluster"
    )
  roll_call.split_address(place["coordinator_address"])
  if not 0 <= place["process_id"] < place["num_processes"]:
    raise ValueError(
      f"--process_id={place['process_id']} does not fit --num_processes={place['num_processes']}; "
      f"use 0 to {place['num_processes'] - 1}"
    )
  return place | dict(local_device_ids=local_device_ids) if place["num_processes"] > 1 else None


def _setting(arguments: argparse.Namespace, name: str) -> str | int | None:
  given = getattr(arguments, name)
  if given is not None:
    return given
  variable = _VARIABLES[name]
  text = os.environ.get(variable, "")
  if not text or name == "coordinator_address":
    return text if text else None
  if not text.isdigit():
    raise ValueError(f"{variable}={text} in the environment is not a whole number; set it to one")
  return int(text)


def _ask_cluster(arguments: argparse.Namespace, place: dict):
  """(address, number, id, local devices): what is given, completed by jax's own detection."""
  cluster = arguments.cluster
  try:
    from jax._src import clusters  # jax has no public way to ask before it connects
  except ImportError:
    raise ValueError(
      f"--cluster={cluster}: this version of jax cannot be asked for the cluster; {_ADVICE}"
    ) from None
  logging.getLogger("jax._src.clusters").setLevel(logging.CRITICAL)  # the error below says it
  try:
    detect: Any = clusters.ClusterEnv.auto_detect_unset_distributed_params
    return detect(
      *place.values(), None, None if cluster == "auto" else cluster, arguments.connect_timeout
    )
  except Exception as error:  # the kind depends on the scheduler
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    raise ValueError(
      f"--cluster={cluster}: jax cannot find this process's place in the environment ({reason}); "
      f"start the job through its scheduler, or {_ADVICE}"
    ) from error


def join(arguments: argparse.Namespace) -> None:
  """Connects this process to the others of its job, if there are any.

  Must be called before jax looks for devices. Afterwards only process 0 prints: standard output of
  the others is discarded, their errors go to standard error.
  """
  place = find_place(arguments)
  if place is None:
    return
  try:
    roll_call.hold(
      place["coordinator_address"],
      num_processes=place["num_processes"],
      process_id=place["process_id"],
      seconds=arguments.connect_timeout,
    )
  except roll_call.MissingProcess as error:
    startup.fail(str(error), 1)
  import jax

  jax.distributed.initialize(
    **place,
    cluster_detection_method="deactivate",
    initialization_timeout=arguments.connect_timeout,
    heartbeat_timeout_seconds=arguments.heartbeat_timeout,
    shutdown_timeout_seconds=arguments.shutdown_timeout,
  )
  if place["process_id"] != 0:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")
