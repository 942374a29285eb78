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
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import requeue
from rlhf.cli.common import flags, startup


def minutes(text: str) -> float:
  """A flag's type: minutes, or SLURM's HH:MM:SS and DAYS-HH:MM:SS."""
  match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
  if match:
    days, hours, mins, seconds = (int(part) if part else 0 for part in match.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60
  if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
    raise argparse.ArgumentTypeError(f"{text!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
  return float(text)


def parser() -> flags.Parser:
  """The flags of this launcher."""
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
  return found


def add_limits(parser: flags.Parser) -> None:
  """The flags that `limits` hands to sbatch."""
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


def import_submitit() -> ModuleType:
  """Raises ValueError where it is not installed."""
  try:
    import submitit
  except ImportError:
    raise ValueError("submitit is not installed; pip install -e '.[slurm]'") from None
  return submitit


def check(arguments: argparse.Namespace, job: job_lib.Job) -> None:
  """Raises ValueError for what SLURM or the local executor cannot do."""
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


# ----------------------------------------------------------------------------- what is submitted


def environment(job: job_lib.Job, code: pathlib.Path) -> dict[str, str]:
  """Makes Python import the commit's code, and gives `cpu` its simulated devices."""
  is_cpu = job.topology.platform == "cpu"
  devices = startup.simulated_devices(job.topology.num_devices) if is_cpu else {}
  return job_lib.code_environment(code) | devices


def update(
  executor, arguments: argparse.Namespace, commit: str, variables: Mapping[str, str], **more: Any
) -> None:
  """Sets the parameters of submitit's executor.

  Args:
    executor: of `slurm_executor`.
    arguments: of `add_limits`, and --cpus_per_task.
    commit: that the job runs.
    variables: of its environment.
    more: further parameters; None stands for SLURM's own default.
  """
  srun = more.pop("srun_args", [])
  if arguments.cpus_per_task is not None:  # srun does not inherit it from sbatch
    srun = [f"--cpus-per-task={arguments.cpus_per_task}", *srun]
  parameters = dict(
    partition=arguments.partition,
    account=arguments.account,
    qos=arguments.qos,
    time=max(round(arguments.time), 1),
    signal_delay_s=arguments.save_seconds,
    ntasks_per_node=1,
    stderr_to_stdout=True,
    comment=f"rlhf {commit}",
    cpus_per_task=arguments.cpus_per_task,
    setup=[f"export {name}={shlex.quote(value)}" for name, value in variables.items()],
    srun_args=srun,
    **more,
  )
  executor.update_parameters(
    **{name: value for name, value in parameters.items() if value is not None}
  )


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


def slurm_executor(
  folder: pathlib.Path,
  max_restarts: int,
  *,
  instead: str,
  python: str | None = None,
  dry_run: bool = False,
):
  """submitit's executor, which does without srun for a dry run.

  Args:
    folder: of logs and scripts.
    max_restarts: of a job.
    instead: what to do where there is no SLURM.
    python: the interpreter on the nodes; this one if None.
    dry_run: whether nothing is submitted.

  Raises:
    ValueError: there is no submitit, or no SLURM.
  """
  executor: Any = import_submitit().SlurmExecutor

  class Anywhere(executor):
    @classmethod
    def affinity(cls) -> int:
      return 1

  kind = Anywhere if dry_run else executor
  try:
    return kind(folder, max_num_timeout=max_restarts, python=python)
  except RuntimeError:
    raise ValueError(
      f"there is no srun here; start from a node of a SLURM cluster, or {instead}"
    ) from None


def submit(executor, command: requeue.Requeued):
  """submitit's job.

  Raises:
    ValueError: sbatch refused it.
  """
  from submitit.core import utils

  try:
    return executor.submit(command)
  except (utils.FailedJobError, utils.FailedSubmissionError) as error:
    last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
    raise ValueError(f"sbatch: {''.join(last) if last else 'no message'}") from None


def print_dry_run(executor, command: list[str], job: job_lib.Job, folder: pathlib.Path) -> None:
  """Prints submitit's script, and the command that it runs on each node."""
  join = job_lib.join_flags(
    job.topology.num_hosts, coordinator_address="FIRST_NODE:PORT", process_id="SLURM_PROCID"
  )
  print(
    f"# commit {job.commit}\n# on each node: {shlex.join([*command, *join])}\n"
    f"# sbatch {folder}/%j_submission.sh"
  )
  print(executor._make_submission_file_text(executor._submitit_command_str, ""), end="")


def run_locally(
  arguments: argparse.Namespace,
  job: job_lib.Job,
  code: pathlib.Path,
  folder: pathlib.Path,
  command: requeue.Requeued,
) -> None:
  """Runs the job on this machine and waits for its end."""
  submitit = import_submitit()
  from submitit.core import utils

  executor = submitit.LocalExecutor(folder, max_num_timeout=arguments.max_restarts)
  executor.update_parameters(
    timeout_min=arguments.time,
    signal_delay_s=arguments.save_seconds,
    gpus_per_node=job.topology.num_devices if job.topology.kind == "h100" else 0,
    stderr_to_stdout=True,
  )
  with utils.environment_variables(**environment(job, code)):
    submitted = executor.submit(command)
  print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)
  submitted.wait()
  failure = submitted.exception()
  if failure is not None:
    last = [line for line in str(failure).splitlines() if line.strip()][-1]
    startup.fail(f"job {submitted.job_id}: {last.strip()}; read {submitted.paths.stdout}", 1)
  print("done", flush=True)


@startup.command
def main(argv: list[str]) -> None:
  arguments, job = job_lib.read(parser(), argv)
  check(arguments, job)
  import_submitit()
  folder = pathlib.Path(job.workdir).absolute() / "submitit"
  code = folder / f"code-{job.commit[:12]}"
  python = None if arguments.container is None else "python"
  command = job.command(
    sys.executable if python is None else python,
    config_file=functools.partial(job_lib.committed, code),
  )
  requeued = requeue.Requeued(command, restarts=arguments.max_restarts)
  if arguments.executor == "local":
    if arguments.dry_run:
      print(f"# commit {job.commit}\n{shlex.join(command)}")
      return
    job_lib.check_out(job.commit, code)
    run_locally(arguments, job, code, folder, requeued)
    return
  executor = slurm_executor(
    folder,
    arguments.max_restarts,
    instead="add --dry_run or --executor=local",
    python=python,
    dry_run=arguments.dry_run,
  )
  update(
    executor,
    arguments,
    job.commit,
    environment(job, code),
    job_name=job.name,
    nodes=job.topology.num_hosts,
    gpus_per_node=job.topology.shape[1] if job.topology.kind == "h100" else None,
    srun_args=container_flags(arguments, job),
    additional_parameters={
      "requeue": True,
      **dict(option.split("=", 1) for option in arguments.sbatch),
    },
  )
  if arguments.dry_run:
    print_dry_run(executor, command, job, folder)
    return
  job_lib.check_out(job.commit, code)
  submitted = submit(executor, requeued)
  print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)
