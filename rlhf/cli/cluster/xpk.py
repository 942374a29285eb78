"""Starts a job on TPUs or GPUs of a GKE cluster through xpk.

  python -m launch.xpk --topology=v5p:4x4x4 --cluster=CLUSTER --image=IMAGE --storage=STORAGE -- \\
      ppo --config=configs/ppo.py:6b,v5p:4x4x4 --workdir=/STORAGE/runs/ppo ...

IMAGE holds git, Python and what setup.py requires (with the `tpu` or `cuda12` extra); each process
fetches the commit from the repository and runs it.  The workdir lies on a storage that was attached
with `xpk storage attach`, so that a restart goes on from it.  --dry_run prints the command.
"""

import argparse
import pathlib
import shlex
import sys

from rlhf.cli import setup
from rlhf.cli.cluster import job as job_lib

INSTALL = "install xpk with pip install xpk"
# Names of `--tpu-type` are PREFIX-TOPOLOGY: xpk, core/system_characteristics.py.
TPU_TYPES = {"v5e": "v5litepod", "v5p": "v5p", "v6e": "v6e"}


def parser() -> setup.Parser:
  """The flags of this launcher."""
  flags = job_lib.parser(__doc__)
  flags.add_argument("--cluster", required=True, help="that `xpk cluster create` made")
  flags.add_argument("--image", required=True, help="docker image that is run as it is")
  flags.add_argument("--storage", action="append", default=[], help="name of an attached storage")
  flags.add_argument("--project", help="of Google Cloud")
  flags.add_argument("--zone", help="of the cluster")
  flags.add_argument("--priority", help="very-low to very-high")
  flags.add_argument("--repository", help="address of the code; the remote origin if not given")
  flags.add_argument(
    "--grace_seconds",
    type=setup.at_least(1),
    default=600,
    help="from the SIGTERM of a preemption to the end, where the cloud allows it",
  )
  return flags


def check(flags: argparse.Namespace, job: job_lib.Job) -> None:
  """Raises ValueError for hardware that xpk does not have, and for a workdir that would be lost."""
  topology = job.topology
  job_lib.one_of(f"--topology={topology.name}", (*TPU_TYPES, "h100"), topology.kind, "xpk")
  if topology.kind == "h100" and topology.shape[1] != 8:
    raise ValueError(f"--topology={topology.name}: xpk has H100 nodes of 8 GPUs; use h100:Nx8")
  if not flags.storage or not pathlib.PurePosixPath(job.workdir).is_absolute():
    raise ValueError(
      f"--workdir={job.workdir} would be lost with its pod; attach a storage with "
      "--storage=NAME and give an absolute path below its mount point"
    )


def command(flags: argparse.Namespace, job: job_lib.Job, repository: str) -> list[str]:
  """argv of `xpk workload create`.

  Raises:
    ValueError: the command has a character that xpk's own template cannot hold.
  """
  if job.topology.platform == "tpu":
    hardware = [f"--tpu-type={TPU_TYPES[job.topology.kind]}-{job.topology.name.partition(':')[2]}"]
    # xpk makes every slice of full hosts, those too that other engines make as one host of 8 chips.
    num_hosts = max(job.topology.num_devices // job.topology.chips_per_host, 1)
    join = job_lib.join_flags(num_hosts, cluster="gketpu")
  else:
    hardware = ["--device-type=h100-80gb-8", f"--num-nodes={job.topology.num_hosts}"]
    join = job_lib.join_flags(
      job.topology.num_hosts,
      process_id="$NODE_RANK",
      even_alone=True,  # xpk sets these
      coordinator="$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT",
    )
  line = job_lib.fetch_and_train(job, repository, join)
  if set(line) & set('"\\\n'):
    raise ValueError(
      "the job's flags hold a quote, a backslash or a line break, which xpk does "
      "not pass on; write such a value in a config file"
    )
  return [
    "xpk",
    "workload",
    "create",
    f"--workload={job.name}",
    f"--cluster={flags.cluster}",
    *hardware,
    f"--docker-image={flags.image}",
    *(f"--storage={name}" for name in flags.storage),
    *(
      f"--{name}={value}"
      for name, value in (
        ("project", flags.project),
        ("zone", flags.zone),
        ("priority", flags.priority),
      )
      if value is not None
    ),
    f"--max-restarts={flags.max_restarts}",
    # Status 143 restarts by itself; 1 is how processes end whose neighbour was preempted.
    "--restart-on-exit-codes=1",
    f"--termination-grace-period-seconds={flags.grace_seconds}",
    f"--command={line}",
  ]


def main(argv: list[str]) -> None:
  with setup.one_sentence_errors():
    flags, job = job_lib.read(parser(), argv)
    check(flags, job)
    words = command(flags, job, job_lib.source(job, flags.repository))
    if flags.dry_run:
      print(f"# commit {job.commit}\n{shlex.join(words)}")
    else:
      job_lib.run(words, INSTALL)


if __name__ == "__main__":
  main(sys.argv)
