"""Starts a job on any cloud as a SkyPilot managed job, which finds machines and replaces lost ones.

  python -m launch.sky --topology=h100:4x8 --volume=gs://BUCKET:/runs -- \\
      ppo --config=configs/ppo.py:1.3b,h100:4x8 --workdir=/runs/ppo ...

--dry_run prints the task file and the command, --output=FILE writes the file; otherwise `sky jobs
launch` gets it.  Buckets are gs://, s3:// or what else SkyPilot mounts.  A TPU slice gets the shape
that the cloud gives to so many chips.
Source: the task schema of SkyPilot, sky/utils/schemas.py.
"""

import argparse
import pathlib
import re
import shlex
import sys
import tempfile

from rlhf import workdir as workdir_lib
from rlhf.cli import setup
from rlhf.cli.cluster import job as job_lib

INSTALL = "install SkyPilot with pip install 'skypilot[gcp]'"
# (name, how many of its units a chip is): v5p counts TensorCores, the others chips.
TPUS = {"v5e": ("tpu-v5litepod", 1), "v5p": ("tpu-v5p", 2), "v6e": ("tpu-v6e", 1)}
EXTRAS = {"tpu": "tpu", "cuda": "cuda12"}


def parser() -> setup.Parser:
  """The flags of this launcher."""
  flags = job_lib.parser(__doc__)
  flags.add_argument(
    "--volume",
    action="append",
    default=[],
    metavar="BUCKET:PATH",
    help="a bucket's address, and where it is mounted; may be repeated",
  )
  flags.add_argument("--infra", help="CLOUD[/REGION[/ZONE]]; the cheapest if not given")
  flags.add_argument("--spot", action="store_true", help="preemptible machines")
  flags.add_argument("--repository", help="address of the code; the remote origin if not given")
  flags.add_argument("--output", help="file to write the task to, instead of launching it")
  return flags


def volumes(flags: argparse.Namespace, job: job_lib.Job) -> dict[str, str]:
  """Mount path -> bucket.

  Raises:
    ValueError: a volume that is none, or a workdir that lies on none of them.
  """
  found = {}
  for text in flags.volume:
    match = re.fullmatch(r"([a-z0-9]+://[^:]+):(/.+)", text)
    if not match:
      raise ValueError(f"--volume={text} is not BUCKET:/PATH with an address such as gs://runs")
    found[match.group(2)] = match.group(1)
  if not any(pathlib.PurePosixPath(job.workdir).is_relative_to(path) for path in found):
    raise ValueError(
      f"--workdir={job.workdir} would be lost with its machine; mount a bucket with "
      "--volume=gs://BUCKET:/PATH and give a workdir below its path"
    )
  return found


def accelerators(job: job_lib.Job) -> str:
  """SkyPilot's name of the devices of one node; a TPU slice counts as one node.

  Raises:
    ValueError: it has no such hardware.
  """
  topology = job.topology
  job_lib.one_of(f"--topology={topology.name}", (*TPUS, "h100"), topology.kind, "SkyPilot")
  if topology.kind == "h100":
    return f"H100:{topology.shape[1]}"
  name, units = TPUS[topology.kind]
  return f"{name}-{topology.num_devices * units}"


def task(flags: argparse.Namespace, job: job_lib.Job, repository: str) -> dict:
  """The task as data."""
  if job.topology.platform == "tpu":
    join, num_nodes = job_lib.join_flags(job.topology.num_hosts, cluster="gcetpu"), 1
  else:
    num_nodes = job.topology.num_hosts
    join = job_lib.join_flags(
      num_nodes,
      process_id="$SKYPILOT_NODE_RANK",
      coordinator=f'"$(echo "$SKYPILOT_NODE_IPS" | head -n1)":{job_lib.PORT}',
    )
  words = job_lib.train_command(job, config_file=job_lib.in_repository)
  resources = {
    "accelerators": accelerators(job),
    "use_spot": flags.spot,
    # Lost machines are replaced in any case; 143 is a job that was told to save and end.
    "job_recovery": {"max_restarts_on_errors": flags.max_restarts, "recover_on_exit_codes": [143]},
  }
  if job.topology.kind == "v5e":  # SkyPilot's own choice for every v5 is that of v5p
    resources["accelerator_args"] = {"runtime_version": "v2-alpha-tpuv5-lite"}
  if flags.infra is not None:
    resources["infra"] = flags.infra
  return {
    "name": job.name,
    "workdir": {"url": repository, "ref": job.commit},
    "num_nodes": num_nodes,
    "resources": resources,
    "file_mounts": {
      path: {"source": bucket, "mode": "MOUNT"} for path, bucket in volumes(flags, job).items()
    },
    "setup": "\n".join(
      [
        "set -e",
        "python3 -m pip install --quiet uv",
        "python3 -m uv venv --python 3.12 ~/rlhf",
        ". ~/rlhf/bin/activate",
        f"python3 -m uv pip install --quiet -e '.[{EXTRAS[job.topology.platform]}]'",
      ]
    )
    + "\n",
    "run": f". ~/rlhf/bin/activate\nexec {' '.join([shlex.join(words), *join])}\n",
  }


def main(argv: list[str]) -> None:
  with setup.one_sentence_errors():
    flags, job = job_lib.read(parser(), argv)
    text = job_lib.to_yaml(task(flags, job, job_lib.source(job, flags.repository)))
    launch = ["sky", "jobs", "launch", "--yes", f"--name={job.name}"]
    if flags.dry_run or flags.output is not None:
      file = flags.output if flags.output is not None else f"{job.name}.yaml"
      if flags.dry_run:
        print(f"# {shlex.join([*launch, file])}\n{text}", end="")
      else:
        workdir_lib.write_text(file, text)
        print(f"task: {file}; {shlex.join([*launch, file])} starts it")
      return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      job_lib.run([*launch, file.name], INSTALL)


if __name__ == "__main__":
  main(sys.argv)
