"""Starts a job on any cloud as a SkyPilot managed job.

  rlhf sky --topology=h100:4x8 --volume=gs://BUCKET:/runs -- \\
      ppo --config=configs/ppo.py:1.3b,h100:4x8 --workdir=/runs/ppo ...

SkyPilot finds machines and replaces lost ones. Volumes are gs://, s3:// or other buckets that
SkyPilot mounts. A TPU slice gets the shape that the cloud gives to this number of chips. Source:
the task schema of SkyPilot, sky/utils/schemas.py.
"""

import shlex

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.common import startup

INSTALL = "install SkyPilot with pip install 'skypilot[gcp]'"
# kind: (SkyPilot's name, units of a chip): v5p counts TensorCores, the others chips.
TPUS = {"v5e": ("tpu-v5litepod", 1), "v5p": ("tpu-v5p", 2), "v6e": ("tpu-v6e", 1)}


@startup.command
def main(argv: list[str]) -> None:
  parser = job_lib.parser("sky", __doc__)
  job_lib.add_remote(parser, "a bucket's address")
  parser.flag("infra", "CLOUD[/REGION[/ZONE]]; the cheapest if not given")
  parser.switch("spot", "use preemptible machines")
  arguments, job = job_lib.read(parser, argv)
  repository = job_lib.source(job, arguments.repository)
  words = shlex.join(job.command(config_file=job_lib.in_repository))
  job.check_hardware("SkyPilot", (*TPUS, "h100"))
  if job.on_tpu:
    name, units = TPUS[job.topology.kind]
    accelerators = f"{name}-{job.topology.num_devices * units}"
  else:
    accelerators = f"H100:{job.topology.shape[1]}"
  address = f'"$(echo "$SKYPILOT_NODE_IPS" | head -n1)":{job_lib.PORT}'
  text = job_lib.fill_in(
    "sky.yaml",
    arguments=arguments,
    job=job,
    repository=repository,
    accelerators=accelerators,
    volumes=job_lib.volumes(arguments.volume, r"[a-z0-9]+://[^:]+", job),
    line=" ".join([words, *job.join_flags("gcetpu", address, "$SKYPILOT_NODE_RANK")]),
  )
  launch = ["sky", "jobs", "launch", "--yes", f"--name={job.name}"]
  job_lib.hand_over(arguments, text, launch, INSTALL)
