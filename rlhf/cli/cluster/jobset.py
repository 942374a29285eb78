"""Starts a job on a GKE cluster as a JobSet, on TPU slices or nodes of H100.

  rlhf jobset --topology=v5p:4x4x4 --image=IMAGE --volume=gs://BUCKET:/runs -- \\
      ppo --config=configs/ppo.py:6b,v5p:4x4x4 --workdir=/runs/ppo ...

IMAGE holds git, Python and the requirements of setup.py (with the `tpu` or `cuda12` extra); each
process fetches the commit from the repository and runs it. The workdir lies on a volume: a bucket
(through Cloud Storage FUSE; --service_account may write it) or a claim, CLAIM:/runs.

A JobSet restarts all its processes when one is preempted, --max_restarts times; exit status 2, a
mistake in the flags, ends it. Nodes of H100 communicate over plain TCP; `rlhf xpk` has GPUDirect.
Source: jobset.x-k8s.io/v1alpha2; node labels and resources as in GKE's guide to TPUs.
"""

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.common import startup

INSTALL = "install kubectl"
ACCELERATORS = {
  "v5e": "tpu-v5-lite-podslice",
  "v5p": "tpu-v5p-slice",
  "v6e": "tpu-v6e-slice",
  "h100": "nvidia-h100-80gb",
}
GPUS_OF_A_MACHINE = (1, 2, 4, 8)  # a3-highgpu-{1,2,4,8}g
SOURCE = r"gs://[a-z0-9][-_.a-z0-9]*|[a-z0-9][-.a-z0-9]*"  # a bucket or a claim


@startup.command
def main(argv: list[str]) -> None:
  parser = job_lib.parser("jobset", __doc__)
  parser.flag("image", "docker image", required=True)
  job_lib.add_remote(parser, "gs://BUCKET or a claim's name")
  parser.flag("service_account", "of Kubernetes, which may use the buckets")
  parser.flag("namespace", "of Kubernetes", default="default")
  job_lib.add_grace(parser)
  arguments, job = job_lib.read(parser, argv)
  job.check_hardware("GKE", ACCELERATORS)
  num_chips = job.topology.num_devices // job.topology.num_hosts
  if not job.on_tpu and num_chips not in GPUS_OF_A_MACHINE:
    raise ValueError(
      f"--topology={job.topology.name}: GKE has machines of 1, 2, 4 or 8 H100; use h100:Nx8"
    )
  repository = job_lib.source(job, arguments.repository)
  volumes = job_lib.volumes(arguments.volume, SOURCE, job)
  # A JobSet calls its pods NAME-workers-0-INDEX, below a service called NAME.
  address = f"{job.name}-workers-0-0.{job.name}:{job_lib.PORT}"
  join = job.join_flags("gketpu", address, "$JOB_COMPLETION_INDEX")
  text = job_lib.fill_in(
    "jobset.yaml",
    arguments=arguments,
    job=job,
    volumes=volumes,
    accelerator=ACCELERATORS[job.topology.kind],
    num_chips=num_chips,
    line=job_lib.fetch_and_train(job, repository, join),
  )
  job_lib.hand_over(arguments, text, ["kubectl", "apply", "-f"], INSTALL)
