"""Starts a job on any cloud as a SkyPilot managed job.

  rlhf sky --topology=h100:4x8 --volume=gs://BUCKET:/runs -- \\
      ppo --config=configs/ppo.py:1.3b,h100:4x8 --workdir=/runs/ppo ...

SkyPilot finds machines and replaces lost ones. Volumes are gs://, s3:// or other buckets that
SkyPilot mounts. A TPU slice gets the shape that the cloud gives to this number of chips. Source:
the task schema of SkyPilot, sky/utils/schemas.py.
"""

import argparse
import shlex
from typing import Any

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.common import flags, startup

INSTALL = "install SkyPilot with pip install 'skypilot[gcp]'"
# (name, units of a chip): v5p counts TensorCores, the others chips.
TPUS = {"v5e": ("tpu-v5litepod", 1), "v5p": ("tpu-v5p", 2), "v6e": ("tpu-v6e", 1)}
SETUP = """set -e
python3 -m pip install --quiet uv
python3 -m uv venv --python 3.12 ~/rlhf
. ~/rlhf/bin/activate
python3 -m uv pip install --quiet -e '.[{extra}]'
"""


def parser() -> flags.Parser:
  """The flags of this launcher."""
  found = job_lib.parser("sky", __doc__)
  job_lib.add_remote(found, "a bucket's address")
  found.flag("infra", "CLOUD[/REGION[/ZONE]]; the cheapest if not given")
  found.switch("spot", "use preemptible machines")
  return found


def accelerators(job: job_lib.Job) -> str:
  """SkyPilot's name of the devices of one node; a TPU slice counts as one node."""
  job.check_hardware("SkyPilot", (*TPUS, "h100"))
  if job.topology.kind == "h100":
    return f"H100:{job.topology.shape[1]}"
  name, units = TPUS[job.topology.kind]
  return f"{name}-{job.topology.num_devices * units}"


def task(arguments: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  """The task as data."""
  num_hosts = job.topology.num_hosts
  if job.on_tpu:
    join = job_lib.join_flags(num_hosts, cluster="gcetpu")
  else:
    join = job_lib.join_flags(
      num_hosts,
      coordinator_address=f'"$(echo "$SKYPILOT_NODE_IPS" | head -n1)":{job_lib.PORT}',
      process_id="$SKYPILOT_NODE_RANK",
    )
  words = shlex.join(job.command(config_file=job_lib.in_repository))
  resources: dict[str, Any] = {
    "accelerators": accelerators(job),
    "use_spot": arguments.spot,
    # Lost machines are replaced in any case; 143 is a job that saved its state and ended.
    "job_recovery": {
      "max_restarts_on_errors": arguments.max_restarts,
      "recover_on_exit_codes": [143],
    },
  }
  if job.topology.kind == "v5e":  # SkyPilot would choose the runtime of v5p
    resources["accelerator_args"] = {"runtime_version": "v2-alpha-tpuv5-lite"}
  if arguments.infra is not None:
    resources["infra"] = arguments.infra
  mounted = job_lib.volumes(arguments.volume, r"[a-z0-9]+://[^:]+", job)
  return {
    "name": job.name,
    "workdir": {"url": repository, "ref": job.commit},
    "num_nodes": 1 if job.on_tpu else num_hosts,
    "resources": resources,
    "file_mounts": {path: {"source": bucket, "mode": "MOUNT"} for bucket, path in mounted},
    "setup": SETUP.format(extra="tpu" if job.on_tpu else "cuda12"),
    "run": f". ~/rlhf/bin/activate\nexec {' '.join([words, *join])}\n",
  }


@startup.command
def main(argv: list[str]) -> None:
  arguments, job = job_lib.read(parser(), argv)
  text = job_lib.to_yaml(task(arguments, job, job_lib.source(job, arguments.repository)))
  launch = ["sky", "jobs", "launch", "--yes", f"--name={job.name}"]
  job_lib.hand_over(arguments, text, launch, INSTALL)
