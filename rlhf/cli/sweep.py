"""Runs a sweep: every trial of a file of configs/sweeps/, with every seed.

  rlhf sweep configs/sweeps/ptx_coef.py --dry_run
  rlhf sweep configs/sweeps/ptx_coef.py:tiny --local --jobs=2 --workdir=runs/ptx_coef
  rlhf sweep configs/sweeps/ptx_coef.py:tiny --slurm --workdir=runs/ptx_coef --gpus=8
  rlhf sweep configs/sweeps/ptx_coef.py:tiny --collect --workdir=runs/ptx_coef

--config.GROUP.FIELD=VALUE applies to all trials: use it for exports and data. Run the same command
again to resume: finished trials are skipped, failed ones continue. The exit status is 0 where all
trials are done (with --slurm: submitted), 1 where one is not, 2 where the command or a trial is
wrong, which is reported before anything starts.

--dry_run looks up every field of every trial and needs no jax. --dry_run --check also runs the
algorithms' own checks (divisibility, ranges, this machine's devices), as --local and --slurm do
before they start.

--slurm: trials run the commit that is checked out, from a clone in WORKDIR/slurm; paths of data are
relative to the current directory. As in `rlhf slurm`, a trial is asked to save before its time
limit, requeued, and resumes. A trial that squeue still lists is not submitted again; where squeue
does not answer, nothing is submitted.

  WORKDIR/trials/NAME/      workdir of a trial
  WORKDIR/shared/           pipeline stages that trials share; each runs once
  WORKDIR/logs/NAME.txt     output of a trial
  WORKDIR/results.csv summary.csv table.md plot.svg plot.png      written by --collect
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import getpass
import importlib
import operator
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf import stages
from rlhf import workdir as workdir_lib
from rlhf.cli.cluster import job as job_lib
from rlhf.cli.cluster import requeue, slurm
from rlhf.cli.common import flags, startup
from rlhf.configs import sweeps
from rlhf.report import sweeps as results

_POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """One run.

  Attributes:
    number: from 1.
    name: of its directory; made of its overrides.
    overrides: field -> value.
    seed: of the run.
    config: the result.
    command: argv, interpreter included.
    workdir: of the run.
    log: file of its output.
    shared: pipeline stage -> its directory, which trials share, in order.
    last: the file that the run writes last.
  """

  number: int
  name: str
  overrides: dict[str, Any]
  seed: int
  config: Any
  command: list[str]
  workdir: pathlib.Path
  log: pathlib.Path
  shared: dict[str, pathlib.Path]
  last: pathlib.Path

  def is_done(self) -> bool:
    return self.last.is_file()

  @property
  def state(self) -> str:
    return "done" if self.is_done() else "failed" if self.record.exists() else "to run"

  @property
  def missing(self) -> list[pathlib.Path]:
    """The shared stages that are not done, in order."""
    return [path for path in self.shared.values() if not workdir_lib.is_done(path)]

  @property
  def record(self) -> pathlib.Path:
    """The file that records a failed end."""
    return self.log.with_suffix(".json")


# ----------------------------------------------------------------------------- trials


def load_sweep(spec: str) -> sweeps.Sweep:
  """The sweep of `configs/sweeps/NAME.py[:FORM]`.

  Raises:
    ValueError: there is no such file or form, or the sweep has an unknown measure.
  """
  path, form = flags.find_file(spec)
  module = flags.load_module(path)
  if not hasattr(module, "get_sweep"):
    raise ValueError(f"{path} has no get_sweep(form); name one of configs/sweeps/")
  try:
    sweep = module.get_sweep(*form)
  except ValueError as error:
    raise ValueError(f"{spec}: {error}") from None
  for name in sweep.measures:
    if name not in results.MEASURES:
      raise ValueError(
        f"{spec}: there is no measure {name!r}; choose from {', '.join(results.MEASURES)}"
      )
  return sweep


def make_trials(sweep: sweeps.Sweep, common: Sequence[str], workdir: pathlib.Path) -> list[Trial]:
  """Every trial with every seed, each checked against the locked config, without jax.

  Raises:
    ValueError: names the trial, the field, what was found and what would be right.
  """
  base = flags.load_config(sweep.config, common, sweep.command)
  for key, what in sweep.required.items():
    if not functools.reduce(operator.getitem, key.split("."), base):
      raise ValueError(f"--config.{key} is missing; this sweep needs {what}")
  given = {argument.lstrip("-").partition("=")[0].removeprefix("config.") for argument in common}
  # Seed by seed: the whole curve shows with the first seed.
  pairs = [(overrides, seed) for seed in sweep.seeds for overrides in sweep.trials]
  trials = []
  for number, (overrides, seed) in enumerate(pairs, 1):
    name = trial_name(overrides, seed)
    try:
      for key in (*overrides, "seed"):
        if key in given:
          raise ValueError(f"--config.{key} is given, but the sweep sets it; leave it out")
      trials.append(_trial(sweep, common, workdir, number, name, overrides, seed))
    except ValueError as error:
      raise ValueError(f"trial {number} of {len(pairs)} ({name}): {error}") from None
  twice = [name for name, count in collections.Counter(t.name for t in trials).items() if count > 1]
  if twice:
    raise ValueError(f"two trials are {twice[0]}; give each point once")
  return trials


def trial_name(overrides: dict[str, Any], seed: int) -> str:
  """`ptx_coef=0.3,seed=1`, of characters that every file system takes."""
  parts = [f"{key.rpartition('.')[2]}={_text(value)}" for key, value in overrides.items()]
  return re.sub(r"[^A-Za-z0-9=,._+-]+", "_", ",".join([*parts, f"seed={seed}"]))


def _text(value: Any) -> str:
  return repr(value) if isinstance(value, float) else str(value)


def _trial(sweep, common, workdir, number, name, overrides, seed) -> Trial:
  directory = workdir / "trials" / name
  changes = [f"--config.{key}={_text(value)}" for key, value in overrides.items()]
  changes = [*common, *changes, f"--config.seed={seed}"]
  config = flags.load_config(sweep.config, changes)
  arguments = [f"--config={sweep.config}", f"--workdir={directory}", *changes]
  shared: dict[str, pathlib.Path] = {}
  if sweep.command == "pipeline":
    stages.check_name(config, sweep.last_stage)
    for stage, name_of_stage in stages.fingerprints(config).items():
      shared[stage] = workdir / "shared" / name_of_stage
      if stage == sweep.last_stage:
        break
    arguments += [f"--shared={workdir / 'shared'}", f"--last_stage={sweep.last_stage}"]
    command = ["pipeline", *arguments]
    whole = sweep.last_stage == "evaluation"
    last = directory / ("report/report.json" if whole else f"{sweep.last_stage}/{workdir_lib.DONE}")
  else:
    command, last = ["train", sweep.command, *arguments], directory / workdir_lib.DONE
  return Trial(
    number=number,
    name=name,
    overrides=overrides,
    seed=seed,
    config=config,
    shared=shared,
    command=[sys.executable, "-m", "rlhf", *command],
    workdir=directory,
    last=last,
    log=workdir / "logs" / f"{name}.txt",
  )


def check_configs(sweep: sweeps.Sweep, trials: Sequence[Trial]) -> None:
  """The algorithm's own checks of every trial; imports jax.

  Raises:
    ValueError: names the trial.
  """
  algorithm = importlib.import_module(f"rlhf.{sweep.command}")
  for trial in trials:
    try:
      algorithm.check_config(trial.config)
    except ValueError as error:
      raise ValueError(f"trial {trial.number} of {len(trials)} ({trial.name}): {error}") from None


# ----------------------------------------------------------------------------- dry run


def print_plan(trials: Sequence[Trial]) -> None:
  """Prints a line per trial, and how many stages are shared."""
  for trial in trials:
    command = shlex.join(["python", *trial.command[1:]])
    print(f"{trial.number:>3}/{len(trials)} {trial.state:<6} {trial.name}: {command}")
  places: dict[str, list[pathlib.Path]] = {}
  for trial in trials:
    for stage, path in trial.shared.items():
      places.setdefault(stage, []).append(path)
  if places:
    counts = (f"{name} {len(set(found))} for {len(found)} trials" for name, found in places.items())
    print(f"stages shared by equal config: {', '.join(counts)}")


# ----------------------------------------------------------------------------- local


def next_trial(waiting: Sequence[Trial], running: Sequence[Trial]) -> Trial | None:
  """The first trial whose next stage is not being made by a running one."""
  busy = {path for trial in running for path in trial.missing}
  return next((trial for trial in waiting if not busy.intersection(trial.missing[:1])), None)


def cores_of(slot: int, jobs: int) -> set[int]:
  """The cores of one of `jobs` equal shares; all of them where there are fewer cores than jobs."""
  cores = sorted(os.sched_getaffinity(0))
  share = cores[slot * len(cores) // jobs : (slot + 1) * len(cores) // jobs]
  return set(share if share else cores)


def start(trial: Trial, slot: int, jobs: int) -> subprocess.Popen:
  """The trial's process, its output appended to its log."""
  with requeue.open_log(trial.log) as log:
    process = subprocess.Popen(
      trial.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
    )
  if jobs > 1 and hasattr(os, "sched_setaffinity"):  # Linux
    with contextlib.suppress(ProcessLookupError):  # it has ended already
      os.sched_setaffinity(process.pid, cores_of(slot, jobs))  # before it starts any thread
  return process


def run_local(trials: Sequence[Trial], jobs: int) -> list[Trial]:
  """Runs the unfinished trials, `jobs` at a time; returns those that failed.

  SIGTERM and Ctrl-C are passed on to the trials, which save their state and end.
  """
  waiting = [trial for trial in trials if not trial.is_done()]
  print(
    f"{len(trials) - len(waiting)} of {len(trials)} trials are done, {len(waiting)} to run",
    flush=True,
  )
  running: dict[int, tuple[Trial, subprocess.Popen, float]] = {}
  failed = []
  with _stopping(running):
    while waiting or running:
      for slot in range(jobs):
        trial = next_trial(waiting, [other for other, _, _ in running.values()])
        if slot not in running and trial is not None:
          waiting.remove(trial)
          again = ", which failed before" if trial.record.exists() else ""
          print(
            f"{trial.number}/{len(trials)} {trial.name}: started{again}, log {trial.log}",
            flush=True,
          )
          running[slot] = trial, start(trial, slot, jobs), time.monotonic()
      time.sleep(_POLL_SECONDS)
      for slot, (trial, process, began) in list(running.items()):
        if process.poll() is not None:
          del running[slot]
          if not finish(trial, process.returncode, len(trials), time.monotonic() - began):
            failed.append(trial)
  return failed


def finish(trial: Trial, status: int, num_trials: int, seconds: float) -> bool:
  """Prints and records a trial's end; returns whether it is done."""
  where = f"{trial.number}/{num_trials} {trial.name}"
  if status == 0 and trial.is_done():
    trial.record.unlink(missing_ok=True)
    print(f"{where}: done in {seconds:.0f} s", flush=True)
    return True
  workdir_lib.write_json(trial.record, dict(exit_status=status, log=str(trial.log)))
  lines = trial.log.read_text(encoding="utf-8", errors="replace").split("\n")
  last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
  print(f"{where}: FAILED with exit status {status}: {last}; see {trial.log}", flush=True)
  return False


@contextlib.contextmanager
def _stopping(running):
  def stop(*_):
    raise KeyboardInterrupt

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield
  except KeyboardInterrupt:
    print(f"stopping {len(running)} trials; run the same command again to resume", flush=True)
    sys.exit(143)
  finally:
    for _, process, _ in running.values():
      process.terminate()
    for _, process, _ in running.values():
      process.wait()
    signal.signal(signal.SIGTERM, before)


# ----------------------------------------------------------------------------- SLURM


def queued_jobs(trials: Sequence[Trial], folder: pathlib.Path) -> dict[str, str]:
  """Trial -> id of its SLURM job, where an earlier call submitted one that has not ended.

  Asks squeue, the scheduler's own list of this user's jobs. sacct, which submitit asks, learns of a
  job with a delay and may be unreachable; a trial would be submitted twice, into one workdir.

  Raises:
    ValueError: squeue cannot say; nothing has been submitted.
  """
  tickets = {
    trial.name: workdir_lib.read_json(ticket_of(trial, folder))["job_id"]
    for trial in trials
    if not trial.is_done() and ticket_of(trial, folder).exists()
  }
  if not tickets:
    return {}
  question = ["squeue", f"--user={getpass.getuser()}", "--noheader", "--format=%i"]
  try:
    done = subprocess.run(question, capture_output=True, text=True, check=False)
    trouble = "" if done.returncode == 0 else f"status {done.returncode}, {done.stderr.strip()}"
  except OSError as error:
    trouble = str(error)
  if trouble:
    raise ValueError(
      f"{shlex.join(question)} cannot say which of {len(tickets)} jobs that were submitted before "
      f"are still queued ({' '.join(trouble.split())}); nothing is submitted, run the same command "
      "when it answers"
    )
  queued = set(done.stdout.split())
  return {name: job_id for name, job_id in tickets.items() if job_id in queued}


def ticket_of(trial: Trial, folder: pathlib.Path) -> pathlib.Path:
  """The file that holds the id of the trial's last job."""
  return folder / "tickets" / f"{trial.name}.json"


def submit(
  trials: Sequence[Trial],
  executor,
  *,
  code: pathlib.Path,
  max_restarts: int,
  queued: Mapping[str, str],
) -> list[tuple[Trial, Any]]:
  """Submits the trials that are neither done nor queued; returns (trial, job) of each.

  A trial is asked to save before its time limit, requeued, and resumes in its workdir. One that
  shares an unfinished stage with an earlier one waits in the queue until that one has ended,
  instead of holding devices while it waits for the stage.

  Args:
    trials: all of them.
    executor: of submitit; its folder has the tickets.
    code: the clone that the trials run.
    max_restarts: of a trial.
    queued: of `queued_jobs`.
  """
  folder, jobs = pathlib.Path(executor.folder), []
  makers: dict[pathlib.Path, str] = {}
  for trial in trials:
    if trial.is_done():
      continue
    if trial.name in queued:
      job_id = queued[trial.name]
      print(f"{trial.name}: job {job_id} is queued; not submitted again", flush=True)
    else:
      needed = [makers[path] for path in trial.shared.values() if path in makers]
      waits = {"dependency": f"afterany:{':'.join(dict.fromkeys(needed))}"} if needed else {}
      executor.update_parameters(
        job_name=re.sub(r"\W", "_", trial.name), additional_parameters={"requeue": True, **waits}
      )
      # The commit's copy of the config file.
      command = job_lib.with_config_file(trial.command, functools.partial(job_lib.committed, code))
      requeued = requeue.Requeued(
        command, restarts=max_restarts, log=trial.log, record=trial.record
      )
      job = slurm.submit(executor, requeued)
      job_id = job.job_id
      workdir_lib.write_json(ticket_of(trial, folder), dict(job_id=job_id))
      jobs.append((trial, job))
    for path in trial.missing:
      makers.setdefault(path, job_id)
  return jobs


def submit_to_slurm(
  arguments: argparse.Namespace, trials: Sequence[Trial], workdir: pathlib.Path
) -> None:
  """Checks all, then submits.

  Raises:
    ValueError: a mistake, before anything is submitted or written; or sbatch refuses a trial: those
      before it are queued, and the same command continues with the others.
  """
  slurm.check_limits(arguments)
  folder = workdir / "slurm"
  commit = job_lib.commit(arguments.allow_dirty)
  code = folder / f"code-{commit[:12]}"
  executor = slurm.executor(
    folder,
    arguments,
    commit,
    job_lib.code_environment(code),
    instead="run the trials here with --local",
    nodes=1,
    gpus_per_node=arguments.gpus,
  )
  run_checks(arguments, startup.simulated_devices(max(arguments.gpus, 1)))
  queued = queued_jobs(trials, folder)
  job_lib.check_out(commit, code)
  for trial, job in submit(
    trials, executor, code=code, max_restarts=arguments.max_restarts, queued=queued
  ):
    print(
      f"{trial.number}/{len(trials)} {trial.name}: job {job.job_id}, log {trial.log}", flush=True
    )


# ----------------------------------------------------------------------------- collect


def collect(sweep: sweeps.Sweep, trials: Sequence[Trial], workdir: pathlib.Path) -> bool:
  """Gathers the trials that are done; returns whether all are.

  Raises:
    ValueError: no trial is done.
  """
  from rlhf.report import figures

  done = [trial for trial in trials if trial.is_done()]
  if not done:
    raise ValueError(f"{workdir} holds no finished trial of the {len(trials)}; run them first")
  gathered = results.gather(done, sweep.policies, sweep.measures)
  pooled = results.pool(gathered, sweep.trials[0])
  labels = {name: results.MEASURES[name][0] for name in sweep.measures}
  # Win rates are of pipelines in TinyWorld, whose labelers are programs.
  simulated = any(name.startswith("win_rate") for name in sweep.measures)
  title = sweep.title + (" (simulated labelers)" if simulated else "")
  svg, png = figures.sweep(pooled, sweep.x, sweep.x_label, labels, title)
  table = results.tables(pooled, sweep.x, sweep.trials[0])
  for name, text in (
    ("results.csv", results.runs_csv(gathered)),
    ("table.md", table),
    ("summary.csv", results.pooled_csv(pooled)),
    ("plot.svg", svg),
  ):
    workdir_lib.write_text(workdir / name, text)
  (workdir / "plot.png").write_bytes(png)
  print(table, end="")
  for trial in trials:
    if not trial.is_done():
      print(f"{trial.number}/{len(trials)} {trial.name}: {trial.state}; not in the table")
  print(
    f"{len(done)} of {len(trials)} trials: {workdir}/results.csv, summary.csv, table.md, "
    "plot.svg, plot.png"
  )
  return len(done) == len(trials)


# ----------------------------------------------------------------------------- command line


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, and the overrides for all trials."""
  parser = flags.Parser("rlhf sweep", __doc__)
  parser.takes_overrides = True
  parser.add_argument("sweep", help="configs/sweeps/NAME.py[:FORM]")
  mode = parser.add_mutually_exclusive_group(required=True)
  mode.add_argument("--dry_run", action="store_true", help="check and print every trial")
  mode.add_argument("--local", action="store_true", help="run the trials on this machine")
  mode.add_argument("--slurm", action="store_true", help="submit the trials to SLURM")
  mode.add_argument("--collect", action="store_true", help="gather the results")
  parser.switch("check", "with --dry_run: also run the algorithms' own checks, which import jax")
  parser.flag("workdir", "directory of the sweep", flags.directory)
  parser.flag("jobs", "local trials at a time", flags.at_least(1), 1)
  parser.flag("gpus", "of a trial on SLURM", flags.at_least(0), 0)
  parser.flag("cpus_per_task", "cores of a trial on SLURM", flags.at_least(1), 8)
  slurm.add_limits(parser)
  job_lib.add_commit_and_restarts(parser)
  arguments = parser.parse(argv)
  if arguments.allow_dirty and not arguments.slurm:
    parser.error("--allow_dirty is for --slurm, whose trials run a commit; leave it out")
  if arguments.check and not arguments.dry_run:
    parser.error("--check is for --dry_run; --local and --slurm always check")
  if not arguments.workdir and not arguments.dry_run:
    parser.error("--workdir is missing; give for example --workdir=runs/sweep")
  return arguments


def run_checks(arguments: argparse.Namespace, variables: Mapping[str, str]) -> None:
  """Runs --dry_run --check in a process of its own, which frees the accelerators at its end; the
  variables are added to its environment."""
  command = [sys.executable, "-m", "rlhf", "sweep", arguments.sweep, "--dry_run", "--check"]
  done = subprocess.run(
    [*command, f"--workdir={arguments.workdir}", *arguments.overrides],
    stdout=subprocess.DEVNULL,
    check=False,
    env={**os.environ, **variables},
  )
  if done.returncode:
    sys.exit(done.returncode)


@startup.command
def main(argv: list[str]) -> int:
  arguments = parse(argv)
  workdir = pathlib.Path(arguments.workdir or "runs/sweep").absolute()
  sweep = load_sweep(arguments.sweep)
  trials = make_trials(sweep, arguments.overrides, workdir)
  for trial in trials:
    workdir_lib.check(trial.workdir, workdir_lib.plain(trial.config))
  if arguments.dry_run:
    if arguments.check:
      check_configs(sweep, trials)
    print_plan(trials)
    return 0
  if arguments.collect:
    return 0 if collect(sweep, trials, workdir) else 1
  if arguments.slurm:
    submit_to_slurm(arguments, trials, workdir)
    return 0
  run_checks(arguments, {})
  failed = run_local(trials, arguments.jobs)
  for trial in failed:
    print(f"failed: {trial.name}; see {trial.log}; the same command resumes it", flush=True)
  return 1 if failed else 0
