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

import argparse
from typing import Any

import yaml

from rlhf.cli.cluster import job as job_lib
from rlhf.cli.common import flags, startup

INSTALL = "install kubectl"
TPU_ACCELERATORS = {"v5e": "tpu-v5-lite-podslice", "v5p": "tpu-v5p-slice", "v6e": "tpu-v6e-slice"}
GPUS_OF_A_MACHINE = (1, 2, 4, 8)  # a3-highgpu-{1,2,4,8}g
BUCKET = r"gs://[a-z0-9][-_.a-z0-9]*"
# What every job has in common; `manifest` adds the rest.
MANIFEST = """
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata: {}
spec:
  network: {enableDNSHostnames: true}
  failurePolicy:
    maxRestarts: null
    rules:
    - {name: mistake, action: FailJobSet, onJobFailureReasons: [PodFailurePolicy]}
  replicatedJobs:
  - name: workers
    replicas: 1
    template:
      spec:
        parallelism: null
        completions: null
        completionMode: Indexed
        backoffLimit: 0  # the JobSet restarts, not the Job: one process alone cannot join again
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: rlhf, operator: In, values: [2]}
        template: null
"""


def parser() -> flags.Parser:
  """The flags of this launcher."""
  found = job_lib.parser("jobset", __doc__)
  found.flag("image", "docker image", required=True)
  job_lib.add_remote(found, "gs://BUCKET or a claim's name")
  found.flag("service_account", "of Kubernetes, which may use the buckets")
  found.flag("namespace", "of Kubernetes", default="default")
  job_lib.add_grace(found)
  return found


def check(job: job_lib.Job) -> None:
  """Raises ValueError for hardware that GKE does not have."""
  topology = job.topology
  job.check_hardware("GKE", (*TPU_ACCELERATORS, "h100"))
  if topology.kind == "h100" and topology.shape[1] not in GPUS_OF_A_MACHINE:
    raise ValueError(
      f"--topology={topology.name}: GKE has machines of 1, 2, 4 or 8 H100; use h100:Nx8"
    )


def manifest(arguments: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  """The JobSet as data."""
  data = yaml.safe_load(MANIFEST)
  annotations = {"rlhf/commit": job.commit}
  if job.on_tpu:  # a slice is a node pool of its own
    annotations["alpha.jobset.sigs.k8s.io/exclusive-topology"] = "cloud.google.com/gke-nodepool"
  data["metadata"] = {
    "name": job.name,
    "namespace": arguments.namespace,
    "annotations": annotations,
  }
  data["spec"]["failurePolicy"]["maxRestarts"] = arguments.max_restarts
  pods = data["spec"]["replicatedJobs"][0]["template"]["spec"]
  pods["parallelism"] = pods["completions"] = job.topology.num_hosts
  pods["template"] = _pod(arguments, job, repository)
  return data


def _pod(arguments: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  mounted = job_lib.volumes(arguments.volume, rf"{BUCKET}|[a-z0-9][-.a-z0-9]*", job)
  if job.on_tpu:
    join = job_lib.join_flags(job.topology.num_hosts, cluster="gketpu")
  else:
    join = job_lib.join_flags(
      job.topology.num_hosts,
      coordinator_address=f"{job.name}-workers-0-0.{job.name}:{job_lib.PORT}",
      process_id="$JOB_COMPLETION_INDEX",
    )
  selector, resource, num_chips = _hardware(job)
  mounts = [{"name": f"volume-{i}", "mountPath": path} for i, (_, path) in enumerate(mounted)]
  claims = [_volume(f"volume-{i}", name) for i, (name, _) in enumerate(mounted)]
  container: dict[str, Any] = {
    "name": "rlhf",
    "image": arguments.image,
    "command": ["bash", "-c", job_lib.fetch_and_train(job, repository, join)],
    "resources": {"limits": {resource: num_chips}},
    "volumeMounts": mounts,
  }
  if not job.on_tpu:
    # NCCL shares memory between the GPUs of a node; a container's own /dev/shm has 64 MiB.
    mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    claims.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    container["env"] = [{"name": "LD_LIBRARY_PATH", "value": "/usr/local/nvidia/lib64"}]
  spec = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": arguments.grace_seconds,
    "nodeSelector": selector,
    "tolerations": [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}],
    "containers": [container],
    "volumes": claims,
  }
  if arguments.service_account is not None:
    spec["serviceAccountName"] = arguments.service_account
  buckets = any(name.startswith("gs://") for name, _ in mounted)
  return {
    "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"} if buckets else {}},
    "spec": spec,
  }


def _hardware(job: job_lib.Job) -> tuple[dict[str, str], str, int]:
  """(node labels, name of the resource, its number on a host)."""
  kind, shape = job.topology.kind, job.topology.shape
  label = "cloud.google.com/gke"
  if kind == "h100":
    machine = f"a3-highgpu-{shape[1]}g"
    labels = {
      f"{label}-accelerator": "nvidia-h100-80gb",
      "node.kubernetes.io/instance-type": machine,
    }
    return labels, "nvidia.com/gpu", shape[1]
  labels = {
    f"{label}-tpu-accelerator": TPU_ACCELERATORS[kind],
    f"{label}-tpu-topology": "x".join(map(str, shape)),
  }
  return labels, "google.com/tpu", job.topology.num_devices // job.topology.num_hosts


def _volume(name: str, source: str) -> dict:
  if not source.startswith("gs://"):
    return {"name": name, "persistentVolumeClaim": {"claimName": source}}
  attributes = {"bucketName": source.removeprefix("gs://"), "mountOptions": "implicit-dirs"}
  driver = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
  return {"name": name, "csi": driver}


@startup.command
def main(argv: list[str]) -> None:
  arguments, job = job_lib.read(parser(), argv)
  check(job)
  data = manifest(arguments, job, job_lib.source(job, arguments.repository))
  job_lib.hand_over(arguments, job_lib.to_yaml(data), ["kubectl", "apply", "-f"], INSTALL)
