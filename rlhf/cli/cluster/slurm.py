"""Submits a job to SLURM through submitit, restarted into its workdir.

  rlhf slurm --topology=h100:1x8 --partition=gpu --time=24:00:00 -- \\
      ppo --config=configs/ppo.py:1.3b,h100:1x8 --workdir=runs/ppo ...

One process runs on each node. --dry_run prints the sbatch script and the command. --executor=local
runs the same job on this machine (`cpu:8` has eight simulated devices). Needs submitit: `pip
install -e '.[slurm]'`.

WORKDIR/submitit holds the logs and a clone of the repository at the commit that the job runs; paths
of data are relative to the current directory. Both must be on a disk that the nodes share. At the
time limit the state is saved and the job requeued, --max_restarts times; SLURM itself requeues a
preempted job.
"""

import argparse
import functools
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import extras
from rlhf import workdir as workdir_lib
from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import requeue
from rlhf.cli.common import flags, startup

SUBMITIT = ("submitit", "slurm", "SLURM")  # the package, its extra and what needs it


def minutes(text: str) -> float:
  """A flag's type: minutes, or SLURM's HH:MM:SS and DAYS-HH:MM:SS."""
  match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
  if match:
    days, hours, mins, seconds = (int(part) if part else 0 for part in match.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60
  if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
    raise argparse.ArgumentTypeError(f"{text!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
  return float(text)


def read(argv: list[str]) -> tuple[argparse.Namespace, job_lib.Job]:
  """This launcher's flags and the job.

  Raises:
    ValueError: as `job.read`, or for what SLURM or the local executor cannot do.
  """
  found = job_lib.parser("slurm", __doc__)
  found.flag("executor", "where the job runs", default="slurm", choices=("slurm", "local"))
  add_limits(found)
  found.flag("cpus_per_task", "cores of a node", flags.at_least(1))
  found.flag(
    "container",
    "image for `srun --container-image` (pyxis) with Python, the requirements of setup.py and "
    "submitit",
  )
  found.flag(
    "container_mounts",
    "HOST:CONTAINER[,...] in addition to the current directory and the workdir, which are mounted",
  )
  found.add_argument(
    "--sbatch",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="another option of sbatch; may be repeated",
  )
  arguments, job = job_lib.read(found, argv)
  job.check_hardware("SLURM", ("h100", "cpu"))
  if arguments.executor == "local" and job.topology.num_hosts > 1:
    raise ValueError(
      f"--executor=local has one host and {job.topology.name} has "
      f"{job.topology.num_hosts}; use --executor=slurm"
    )
  check_limits(arguments)
  for option in arguments.sbatch:
    if not re.fullmatch(r"[a-z][-a-z]*=.+", option):
      raise ValueError(f"--sbatch={option} is not NAME=VALUE")
  workdir_lib.check(job.workdir, job.config)
  return arguments, job


def add_limits(parser: flags.Parser) -> None:
  """The flags that `executor` hands to sbatch."""
  parser.flag("partition", "of the cluster")
  parser.flag("account", "to charge")
  parser.flag("qos", "quality of service")
  parser.flag("time", "limit of one start: minutes, HH:MM:SS or D-HH:MM:SS", minutes, "24:00:00")
  parser.flag(
    "save_seconds",
    "how long before the limit the job is asked to save: longer than a step and a checkpoint take",
    flags.at_least(1),
    600,
  )


def check_limits(arguments: argparse.Namespace) -> None:
  """Raises ValueError where no time is left for anything but saving."""
  if arguments.time * 60 <= arguments.save_seconds:
    raise ValueError(
      f"--time is {arguments.time:g} minutes, and --save_seconds={arguments.save_seconds} of them "
      "are for saving; allow more time"
    )


# ----------------------------------------------------------------------------- what is submitted


def executor(
  folder: pathlib.Path,
  arguments: argparse.Namespace,
  commit: str,
  variables: Mapping[str, str],
  *,
  instead: str,
  python: str | None = None,
  srun_args: Sequence[str] = (),
  **more: Any,
) -> Any:
  """submitit's executor, which does without srun for a dry run.

  Args:
    folder: of logs and scripts.
    arguments: of `add_limits`; --max_restarts, --cpus_per_task and --dry_run.
    commit: that the job runs.
    variables: of its environment.
    instead: what to do where there is no SLURM.
    python: the interpreter on the nodes; this one if None.
    srun_args: flags of srun.
    more: further parameters of sbatch; None stands for SLURM's own default.

  Raises:
    ValueError: there is no submitit, or no SLURM.
  """
  kind: Any = extras.load(*SUBMITIT).SlurmExecutor

  class Anywhere(kind):
    @classmethod
    def affinity(cls) -> int:
      return 1

  try:
    made = (Anywhere if arguments.dry_run else kind)(
      folder, max_num_timeout=arguments.max_restarts, python=python
    )
  except RuntimeError:
    raise ValueError(
      f"there is no srun here; start from a node of a SLURM cluster, or {instead}"
    ) from None
  cores = arguments.cpus_per_task  # srun does not inherit it from sbatch
  made.update_parameters(
    partition=arguments.partition,
    account=arguments.account,
    qos=arguments.qos,
    time=max(round(arguments.time), 1),
    signal_delay_s=arguments.save_seconds,
    ntasks_per_node=1,
    stderr_to_stdout=True,
    comment=f"rlhf {commit}",
    cpus_per_task=cores,
    setup=[f"export {name}={shlex.quote(value)}" for name, value in variables.items()],
    srun_args=[*([] if cores is None else [f"--cpus-per-task={cores}"]), *srun_args],
    **more,
  )
  return made


def container_flags(arguments: argparse.Namespace, job: job_lib.Job) -> list[str]:
  """srun's flags for --container."""
  if arguments.container is None:
    return []
  here = [os.getcwd(), str(pathlib.Path(job.workdir).absolute())]
  more = [arguments.container_mounts] if arguments.container_mounts else []
  return [
    f"--container-image={arguments.container}",
    f"--container-mounts={','.join([*(f'{path}:{path}' for path in here), *more])}",
    f"--container-workdir={here[0]}",
  ]


def submit(executor, command: requeue.Requeued):
  """submitit's job.

  Raises:
    ValueError: sbatch refused it.
  """
  from submitit.core import utils

  try:
    return executor.submit(command)
  except (utils.FailedJobError, utils.FailedSubmissionError) as error:
    raise ValueError(f"sbatch: {last_line(error)}") from None


def last_line(error: Exception) -> str:
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[-1] if lines else "no message"


def run_locally(
  arguments: argparse.Namespace,
  job: job_lib.Job,
  variables: dict[str, str],
  folder: pathlib.Path,
  command: requeue.Requeued,
) -> None:
  """Runs the job on this machine and waits for its end."""
  from submitit.core import utils

  local = extras.load(*SUBMITIT).LocalExecutor(folder, max_num_timeout=arguments.max_restarts)
  local.update_parameters(
    timeout_min=arguments.time,
    signal_delay_s=arguments.save_seconds,
    gpus_per_node=job.topology.num_devices if job.topology.kind == "h100" else 0,
    stderr_to_stdout=True,
  )
  with utils.environment_variables(**variables):
    submitted = local.submit(command)
  print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)
  submitted.wait()
  failure = submitted.exception()
  if failure is not None:
    what = f"job {submitted.job_id}: {last_line(failure)}"
    startup.fail(f"{what}; read {submitted.paths.stdout}", 1)
  print("done", flush=True)


@startup.command
def main(argv: list[str]) -> None:
  arguments, job = read(argv)
  extras.require(*SUBMITIT)
  topology, folder = job.topology, pathlib.Path(job.workdir).absolute() / "submitit"
  code = folder / f"code-{job.commit[:12]}"
  is_local, is_gpu = arguments.executor == "local", topology.kind == "h100"
  variables = job_lib.code_environment(code)
  if not is_gpu:
    variables |= startup.simulated_devices(topology.num_devices)
  python = None if arguments.container is None else "python"
  command = job.command(
    sys.executable if python is None else python,
    config_file=functools.partial(job_lib.committed, code),
  )
  if is_local and arguments.dry_run:
    print(f"# commit {job.commit}\n{shlex.join(command)}")
    return
  requeued = requeue.Requeued(command, restarts=arguments.max_restarts)
  if is_local:
    job_lib.check_out(job.commit, code)
    run_locally(arguments, job, variables, folder, requeued)
    return
  more = dict(option.split("=", 1) for option in arguments.sbatch)
  slurm = executor(
    folder,
    arguments,
    job.commit,
    variables,
    instead="add --dry_run or --executor=local",
    python=python,
    srun_args=container_flags(arguments, job),
    job_name=job.name,
    nodes=topology.num_hosts,
    gpus_per_node=topology.shape[1] if is_gpu else None,
    additional_parameters={"requeue": True, **more},
  )
  if arguments.dry_run:
    place = job.join_flags("", "FIRST_NODE:PORT", "SLURM_PROCID")
    print(f"# commit {job.commit}\n# on each node: {shlex.join([*command, *place])}")
    print(f"# sbatch {folder}/%j_submission.sh")
    print(slurm._make_submission_file_text(slurm._submitit_command_str, ""), end="")
    return
  job_lib.check_out(job.commit, code)
  submitted = submit(slurm, requeued)
  print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)
