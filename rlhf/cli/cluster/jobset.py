"""Starts a job on a Kubernetes cluster of GKE as a JobSet: TPU slices, or nodes of H100.

  python -m launch.jobset --topology=v5p:4x4x4 --image=IMAGE --volume=gs://BUCKET:/runs -- \\
      ppo --config=configs/ppo.py:6b,v5p:4x4x4 --workdir=/runs/ppo ...

--dry_run prints the manifest, --output=FILE writes it; otherwise `kubectl apply` gets it.  IMAGE
holds git, Python and what setup.py requires (with the `tpu` or `cuda12` extra); each process
fetches the commit from the repository and runs it.  The workdir lies on a volume: a bucket (through
Cloud Storage FUSE, --service_account names who may write it) or a claim, CLAIM:/runs.

A JobSet restarts all its processes when one is preempted, --max_restarts times; exit status 2, a
mistake in the flags, ends it.  Nodes of H100 talk over plain TCP here; launch.xpk has GPUDirect.
Source: jobset.x-k8s.io/v1alpha2; node labels and resources as in GKE's guide to TPUs.
"""

import argparse
import pathlib
import re
import sys

from rlhf import workdir as workdir_lib
from rlhf.cli import setup
from rlhf.cli.cluster import job as job_lib

INSTALL = "install kubectl"
TPU_ACCELERATORS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
GPUS_OF_A_MACHINE = (1, 2, 4, 8)  # a3-highgpu-{1,2,4,8}g
WORKERS = "workers"


def parser() -> setup.Parser:
  """The flags of this launcher."""
  flags = job_lib.parser(__doc__)
  flags.add_argument("--image", required=True, help="docker image")
  flags.add_argument(
    "--volume",
    action="append",
    default=[],
    metavar="SOURCE:PATH",
    help="gs://BUCKET or a claim's name, and where it is mounted; may be repeated",
  )
  flags.add_argument("--service_account", help="of Kubernetes, that may use the buckets")
  flags.add_argument("--namespace", default="default", help="of Kubernetes")
  flags.add_argument("--repository", help="address of the code; the remote origin if not given")
  flags.add_argument(
    "--grace_seconds",
    type=setup.at_least(1),
    default=600,
    help="from the SIGTERM of a preemption to the end, where the cloud allows it",
  )
  flags.add_argument("--output", help="file to write the manifest to, instead of applying it")
  return flags


def volumes(flags: argparse.Namespace, job: job_lib.Job) -> list[tuple[str, str]]:
  """(source, mount path) of each volume.

  Raises:
    ValueError: a volume that is none, or a workdir that lies on none of them.
  """
  found = []
  for text in flags.volume:
    match = re.fullmatch(r"(gs://[a-z0-9][-_.a-z0-9]*|[a-z0-9][-.a-z0-9]*):(/.+)", text)
    if not match:
      raise ValueError(f"--volume={text} is not gs://BUCKET:/PATH or CLAIM:/PATH")
    found.append(match.groups())
  if not any(pathlib.PurePosixPath(job.workdir).is_relative_to(path) for _, path in found):
    raise ValueError(
      f"--workdir={job.workdir} would be lost with its pod; mount a volume with "
      "--volume=gs://BUCKET:/PATH and give a workdir below its path"
    )
  return found


def check(job: job_lib.Job) -> None:
  """Raises ValueError for hardware that GKE does not have."""
  topology = job.topology
  job_lib.one_of(f"--topology={topology.name}", (*TPU_ACCELERATORS, "h100"), topology.kind, "GKE")
  if topology.kind == "h100" and topology.shape[1] not in GPUS_OF_A_MACHINE:
    raise ValueError(
      f"--topology={topology.name}: GKE has machines of 1, 2, 4 or 8 H100; use h100:Nx8"
    )


# ----------------------------------------------------------------------------- the manifest


def manifest(flags: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  """The JobSet as data."""
  num_hosts = job.topology.num_hosts
  pods = {
    "parallelism": num_hosts,
    "completions": num_hosts,
    "completionMode": "Indexed",
    # The JobSet restarts, not the Job: a process alone cannot join the others again.
    "backoffLimit": 0,
    "podFailurePolicy": {
      "rules": [
        {
          "action": "FailJob",
          "onExitCodes": {"containerName": "rlhf", "operator": "In", "values": [2]},
        }
      ]
    },
    "template": _pod(flags, job, repository),
  }
  annotations = {"rlhf/commit": job.commit}
  if job.topology.platform == "tpu":  # a slice is a node pool of its own
    annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": job.name, "namespace": flags.namespace, "annotations": annotations},
    "spec": {
      "network": {"enableDNSHostnames": True},
      "failurePolicy": {
        "maxRestarts": flags.max_restarts,
        "rules": [
          {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
        ],
      },
      "replicatedJobs": [{"name": WORKERS, "replicas": 1, "template": {"spec": pods}}],
    },
  }


def _pod(flags: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  mounted = volumes(flags, job)
  if job.topology.platform == "tpu":
    join = job_lib.join_flags(job.topology.num_hosts, cluster="gketpu")
  else:
    join = job_lib.join_flags(
      job.topology.num_hosts,
      process_id="$JOB_COMPLETION_INDEX",
      coordinator=f"{job.name}-{WORKERS}-0-0.{job.name}:{job_lib.PORT}",
    )
  selector, resource, num_chips = _hardware(job)
  container = {
    "name": "rlhf",
    "image": flags.image,
    "command": ["bash", "-c", job_lib.fetch_and_train(job, repository, join)],
    "resources": {"limits": {resource: num_chips}},
    "volumeMounts": [
      {"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(mounted)
    ],
  }
  claims = [_volume(f"volume-{i}", name) for i, (name, _) in enumerate(mounted)]
  if job.topology.platform == "cuda":
    # NCCL shares memory between the GPUs of a node; a container's own /dev/shm has 64 MiB.
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    claims.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    container["env"] = [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}]
  spec = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": flags.grace_seconds,
    "nodeSelector": selector,
    "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
    "containers": [container],
    "volumes": claims,
  }
  if flags.service_account is not None:
    spec["serviceAccountName"] = flags.service_account
  buckets = any(name.startswith("gs://") for name, _ in mounted)
  return {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"} if buckets else {}},
    "spec": spec,
  }


def _hardware(job: job_lib.Job) -> tuple[dict[str, str], str, int]:
  """(node labels, name of the resource, how many of it on a host)."""
  kind, shape = job.topology.kind, job.topology.shape
  if kind == "h100":
    return (
      {
        "cloud.google.com/gke-accelerator": "nvidia-h100-80gb",
        "node.kubernetes.io/instance-type": f"a3-highgpu-{shape[1]}g",
      },
      "nvidia.com/gpu",
      shape[1],
    )
  return (
    {
      "cloud.google.com/gke-tpu-accelerator": TPU_ACCELERATORS[kind],
      "cloud.google.com/gke-tpu-topology": "x".join(map(str, shape)),
    },
    "google.com/tpu",
    job.topology.num_devices // job.topology.num_hosts,
  )


def _volume(name: str, source: str) -> dict:
  if source.startswith("gs://"):
    return {
      "name": name,
      "csi": {
        "driver": "gcsfuse.csi.storage.gke.io",
        "volumeAttributes": {
          "bucketName": source.removeprefix("gs://"),
          "mountOptions": "implicit-dirs",
        },
      },
    }
  return {"name": name, "persistentVolumeClaim": {"claimName": source}}


def main(argv: list[str]) -> None:
  with setup.one_sentence_errors():
    flags, job = job_lib.read(parser(), argv)
    check(job)
    data = manifest(flags, job, job_lib.source(job, flags.repository))
    text = job_lib.to_yaml(data)
    if flags.dry_run:
      print(text, end="")
    elif flags.output is not None:
      workdir_lib.write_text(flags.output, text)
      print(f"manifest: {flags.output}; kubectl apply -f {flags.output} starts it")
    else:
      job_lib.run(["kubectl", "apply", "-f", "-"], INSTALL, text)


if __name__ == "__main__":
  main(sys.argv)
