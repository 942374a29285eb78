"""Starts a job on TPUs or GPUs of a GKE cluster through xpk.

  rlhf xpk --topology=v5p:4x4x4 --cluster=CLUSTER --image=IMAGE --storage=STORAGE -- \\
      ppo --config=configs/ppo.py:6b,v5p:4x4x4 --workdir=/STORAGE/runs/ppo ...

IMAGE holds git, Python and the requirements of setup.py (with the `tpu` or `cuda12` extra); each
process fetches the commit from the repository and runs it. The workdir lies on a storage that was
attached with `xpk storage attach`, so that a restart resumes from it.
"""

import argparse
import pathlib
import shlex

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.common import startup

INSTALL = "install xpk with pip install xpk"
# Names of `--tpu-type` are PREFIX-TOPOLOGY: xpk, core/system_characteristics.py.
TPU_TYPES = {"v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}


def check(arguments: argparse.Namespace, job: job_lib.Job) -> None:
  """Raises ValueError for hardware that xpk does not have, and a workdir that would be lost."""
  job.check_hardware("xpk", (*TPU_TYPES, "h100"))
  if not job.on_tpu and job.topology.shape[1] != 8:
    raise ValueError(f"--topology={job.topology.name}: xpk has H100 nodes of 8 GPUs; use h100:Nx8")
  if not arguments.storage or not pathlib.PurePosixPath(job.workdir).is_absolute():
    raise ValueError(
      f"--workdir={job.workdir} would be lost with its pod; attach a storage with "
      "--storage=NAME and give an absolute path below its mount point"
    )


def command(arguments: argparse.Namespace, job: job_lib.Job, repository: str) -> list[str]:
  """argv of `xpk workload create`.

  Raises:
    ValueError: the command has a character that xpk's own template cannot hold.
  """
  topology = job.topology
  if job.on_tpu:
    hardware = [f"--tpu-type={TPU_TYPES[topology.kind]}-{topology.name.partition(':')[2]}"]
    # xpk uses hosts of 4 chips, also for the slices that other engines make as one host of 8.
    join = ["--cluster=gketpu"] if topology.num_devices // 4 > 1 else []
  else:
    hardware = ["--device-type=h100-80gb-8", f"--num-nodes={topology.num_hosts}"]
    # Also for one host: xpk sets JAX_COORDINATOR_ADDRESS there too, and jax would miss the rest.
    address = "$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT"
    join = job_lib.place_flags(address, topology.num_hosts, "$NODE_RANK")
  line = job_lib.fetch_and_train(job, repository, join)
  if set(line) & set('"\\\n'):
    raise ValueError(
      "the job's flags hold a quote, a backslash or a line break, which xpk does not pass on; "
      "write such a value in a config file"
    )
  optional = {name: getattr(arguments, name) for name in ("project", "zone", "priority")}
  return [
    *("xpk", "workload", "create"),
    f"--workload={job.name}",
    f"--cluster={arguments.cluster}",
    *hardware,
    f"--docker-image={arguments.image}",
    *(f"--storage={name}" for name in arguments.storage),
    *(f"--{name}={value}" for name, value in optional.items() if value is not None),
    f"--max-restarts={arguments.max_restarts}",
    # Status 143 restarts by itself; processes whose neighbour was preempted end with 1.
    "--restart-on-exit-codes=1",
    f"--termination-grace-period-seconds={arguments.grace_seconds}",
    f"--command={line}",
  ]


@startup.command
def main(argv: list[str]) -> None:
  parser = job_lib.parser("xpk", __doc__)
  parser.flag("cluster", "made by `xpk cluster create`", required=True)
  parser.flag("image", "docker image, which is run unchanged", required=True)
  parser.add_argument("--storage", action="append", default=[], help="name of an attached storage")
  parser.flag("project", "of Google Cloud")
  parser.flag("zone", "of the cluster")
  parser.flag("priority", "very-low to very-high")
  job_lib.add_repository(parser)
  job_lib.add_grace(parser)
  arguments, job = job_lib.read(parser, argv)
  check(arguments, job)
  words = command(arguments, job, job_lib.source(job, arguments.repository))
  if arguments.dry_run:
    print(f"# commit {job.commit}\n{shlex.join(words)}")
  else:
    job_lib.run(words, INSTALL)
