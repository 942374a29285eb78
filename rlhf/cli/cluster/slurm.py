"""Submits a job to SLURM through submitit: one process on each node, restarted into its workdir.

  python -m launch.slurm --topology=h100:1x8 --partition=gpu --time=24:00:00 -- \\
      ppo --config=configs/ppo.py:1.3b,h100:1x8 --workdir=runs/ppo ...

--dry_run prints the sbatch script and the command.  --executor=local runs the same job on this
machine (`cpu:8` has eight simulated devices).  Needs `pip install -e '.[slurm]'`.

WORKDIR/submitit holds the logs and a clone of the repository at the commit, which the job runs;
paths of data are read from the current directory.  Both must be on a disk that the nodes share.
At the time limit the state is saved and the job requeued, --max_restarts times; a preempted job is
requeued by SLURM itself.
"""

import argparse
import functools
import os
import pathlib
import re
import shlex
import sys
from types import ModuleType

from rlhf import workdir as workdir_lib
from rlhf.cli import setup
from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import requeue


def minutes(text: str) -> float:
  """A type of argparse: minutes, or SLURM's HH:MM:SS and DAYS-HH:MM:SS."""
  match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", text)
  if match:
    days, hours, mins, seconds = (int(part) if part else 0 for part in match.groups())
    return days * 1440 + hours * 60 + mins + seconds / 60
  if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
    raise argparse.ArgumentTypeError(f"{text!r} is no time; write minutes, HH:MM:SS or D-HH:MM:SS")
  return float(text)


def parser() -> setup.Parser:
  """The flags of this launcher."""
  flags = job_lib.parser(__doc__)
  flags.add_argument("--executor", choices=("slurm", "local"), default="slurm")
  add_limits(flags)
  flags.add_argument("--cpus_per_task", type=setup.at_least(1), help="cores of a node")
  flags.add_argument(
    "--container",
    help="image for `srun --container-image` (pyxis) with Python, "
    "this project's dependencies and submitit",
  )
  flags.add_argument(
    "--container_mounts",
    help="HOST:CONTAINER[,...] beside the current directory "
    "and the workdir, which are mounted where they are",
  )
  flags.add_argument(
    "--sbatch",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="another option of sbatch; may be repeated",
  )
  return flags


def add_limits(flags: setup.Parser) -> None:
  """The flags that `limits` hands to sbatch."""
  flags.add_argument("--partition", help="of the cluster")
  flags.add_argument("--account", help="that is charged")
  flags.add_argument("--qos", help="quality of service")
  flags.add_argument(
    "--time",
    type=minutes,
    default="24:00:00",
    help="limit of one start: minutes, HH:MM:SS or DAYS-HH:MM:SS",
  )
  flags.add_argument(
    "--save_seconds",
    type=setup.at_least(1),
    default=600,
    help="how long before the limit the job is asked to save: longer than a step "
    "and a checkpoint take together",
  )


def check_limits(flags: argparse.Namespace) -> None:
  """Raises ValueError where no time is left for anything but saving."""
  if flags.time * 60 <= flags.save_seconds:
    raise ValueError(
      f"--time is {flags.time:g} minutes, and --save_seconds={flags.save_seconds} "
      "of them are for saving; allow more time"
    )


def import_submitit() -> ModuleType:
  """Raises ValueError where it is not installed."""
  try:
    import submitit
  except ImportError:
    raise ValueError("submitit is not installed; pip install -e '.[slurm]'") from None
  return submitit


def check(flags: argparse.Namespace, job: job_lib.Job) -> None:
  """Raises ValueError for what SLURM or the local executor cannot do."""
  job_lib.one_of(f"--topology={job.topology.name}", ("h100", "cpu"), job.topology.kind, "SLURM")
  if flags.executor == "local" and job.topology.num_hosts > 1:
    raise ValueError(
      f"--executor=local has one host and {job.topology.name} has "
      f"{job.topology.num_hosts}; use --executor=slurm"
    )
  check_limits(flags)
  for option in flags.sbatch:
    if not re.fullmatch(r"[a-z][-a-z]*=.+", option):
      raise ValueError(f"--sbatch={option} is not NAME=VALUE")
  workdir_lib.check(job.workdir, job.config)


# ----------------------------------------------------------------------------- what is submitted


def environment(job: job_lib.Job, code: pathlib.Path) -> dict[str, str]:
  """What makes Python import the commit's code, and gives `cpu` its simulated devices."""
  devices = (
    setup.simulated_devices(job.topology.num_devices) if job.topology.platform == "cpu" else {}
  )
  return job_lib.code_environment(code) | devices


def exports(variables: dict[str, str]) -> list[str]:
  """Lines of a shell."""
  return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def limits(flags: argparse.Namespace) -> dict:
  """Arguments of `SlurmExecutor.update_parameters` from the flags of `add_limits`."""
  return dict(
    partition=flags.partition,
    account=flags.account,
    qos=flags.qos,
    time=max(round(flags.time), 1),
    signal_delay_s=flags.save_seconds,
    ntasks_per_node=1,
    stderr_to_stdout=True,
  )


def parameters(flags: argparse.Namespace, job: job_lib.Job, code: pathlib.Path) -> dict:
  """Arguments of `SlurmExecutor.update_parameters`."""
  others = dict(option.split("=", 1) for option in flags.sbatch)
  srun = []
  if flags.cpus_per_task is not None:  # srun does not take it over from sbatch
    srun.append(f"--cpus-per-task={flags.cpus_per_task}")
  if flags.container is not None:
    here = [os.getcwd(), str(pathlib.Path(job.workdir).absolute())]
    mounts = ",".join(
      [f"{path}:{path}" for path in here]
      + ([flags.container_mounts] if flags.container_mounts else [])
    )
    srun += [
      f"--container-image={flags.container}",
      f"--container-mounts={mounts}",
      f"--container-workdir={here[0]}",
    ]
  gpus = job.topology.shape[1] if job.topology.kind == "h100" else None
  found = dict(
    **limits(flags),
    job_name=job.name,
    comment=f"rlhf {job.commit}",
    nodes=job.topology.num_hosts,
    gpus_per_node=gpus,
    cpus_per_task=flags.cpus_per_task,
    setup=exports(environment(job, code)),
    srun_args=srun,
    additional_parameters={"requeue": True, **others},
  )
  return {name: value for name, value in found.items() if value is not None}


def slurm_executor(
  folder: pathlib.Path,
  max_restarts: int,
  *,
  instead: str,
  python: str | None = None,
  dry_run: bool = False,
):
  """submitit's executor; for a dry run it does without srun.

  Args:
    instead: what to do where there is no SLURM.
    python: a shell's word for the interpreter on the nodes; this one's path if None.

  Raises:
    ValueError: there is no submitit, or no SLURM.
  """
  submitit = import_submitit()

  class Anywhere(submitit.SlurmExecutor):
    @classmethod
    def affinity(cls) -> int:
      return 1

  kind = Anywhere if dry_run else submitit.SlurmExecutor
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
  """The script as submitit writes it, and the command that it runs on each node."""
  join = job_lib.join_flags(
    job.topology.num_hosts, coordinator="FIRST_NODE:PORT", process_id="SLURM_PROCID"
  )
  print(
    f"# commit {job.commit}\n# on each node: {shlex.join([*command, *join])}\n"
    f"# sbatch {folder}/%j_submission.sh"
  )
  print(executor._make_submission_file_text(executor._submitit_command_str, ""), end="")


def run_locally(
  submitit: ModuleType,
  flags,
  job,
  code: pathlib.Path,
  folder: pathlib.Path,
  command: requeue.Requeued,
) -> None:
  """Runs the job on this machine and waits for its end."""
  from submitit.core import utils

  executor = submitit.LocalExecutor(folder, max_num_timeout=flags.max_restarts)
  gpus = job.topology.num_devices if job.topology.kind == "h100" else 0
  executor.update_parameters(
    timeout_min=flags.time,
    signal_delay_s=flags.save_seconds,
    gpus_per_node=gpus,
    stderr_to_stdout=True,
  )
  with utils.environment_variables(**environment(job, code)):
    submitted = executor.submit(command)
  print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)
  submitted.wait()
  failure = submitted.exception()
  if failure is not None:
    last = [line for line in str(failure).splitlines() if line.strip()][-1]
    setup.fail(f"job {submitted.job_id}: {last.strip()}; read {submitted.paths.stdout}", 1)
  print("done", flush=True)


def main(argv: list[str]) -> None:
  with setup.one_sentence_errors():
    flags, job = job_lib.read(parser(), argv)
    check(flags, job)
    submitit = import_submitit()
    folder = pathlib.Path(job.workdir).absolute() / "submitit"
    code = folder / f"code-{job.commit[:12]}"

    python = sys.executable if flags.container is None else "python"
    command = job_lib.train_command(
      job, python, config_file=functools.partial(job_lib.committed, code)
    )
    local = flags.executor == "local"
    if not local:
      executor = slurm_executor(
        folder,
        flags.max_restarts,
        instead="add --dry_run or --executor=local",
        python=None if flags.container is None else "python",
        dry_run=flags.dry_run,
      )
      executor.update_parameters(**parameters(flags, job, code))
    if flags.dry_run:
      if local:
        print(f"# commit {job.commit}\n{shlex.join(command)}")
      else:
        print_dry_run(executor, command, job, folder)
      return
    job_lib.check_out(job.commit, code)
    requeued = requeue.Requeued(command, restarts=flags.max_restarts)
    if local:
      run_locally(submitit, flags, job, code, folder, requeued)
    else:
      submitted = submit(executor, requeued)
      print(f"job {submitted.job_id}: {submitted.paths.stdout}", flush=True)


if __name__ == "__main__":
  main(sys.argv)
