"""Sweeps: the algebra of trials, what trials share, checks before anything starts, and results."""

import contextlib
import csv
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import commands
import numpy as np
import pytest

from rlhf import stages
from rlhf import workdir as workdir_lib
from rlhf.cli import sweep as launch_sweep
from rlhf.cli.common import flags as flags_lib
from rlhf.configs import pipeline as pipeline_configs
from rlhf.configs import sweeps
from rlhf.report import figures
from rlhf.report import sweeps as results

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = sorted(
  path for path in (ROOT / "configs" / "sweeps").glob("*.py") if path.name != "__init__.py"
)
COEF = "ppo.ppo.ptx_coef"

# ----------------------------------------------------------------------------- algebra


def test_trials_are_combined_by_three_functions():
  a, b = sweeps.grid("a", [1, 2]), sweeps.grid("b", "xy")
  assert a == [{"a": 1}, {"a": 2}]
  assert sweeps.product(a, b) == [
    {"a": 1, "b": "x"},
    {"a": 1, "b": "y"},
    {"a": 2, "b": "x"},
    {"a": 2, "b": "y"},
  ]
  assert sweeps.zip_(a, b) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
  assert a == [{"a": 1}, {"a": 2}]  # none changes what it is given
  assert sweeps.product(a + sweeps.grid("a", [3]), sweeps.zip_(b)) == [
    {"a": n, "b": x} for n in (1, 2, 3) for x in "xy"
  ]


def test_combinations_that_say_two_things_are_refused():
  a = sweeps.grid("a", [1, 2])
  for combine in (sweeps.product, sweeps.zip_):
    with pytest.raises(ValueError, match="a is set by two of the lists"):
      combine(a, a)
  with pytest.raises(ValueError, match="lists of 2, 3 trials; make them equally long"):
    sweeps.zip_(a, sweeps.grid("b", "xyz"))


# ----------------------------------------------------------------------------- the shipped ones


def forms(path: pathlib.Path) -> list[str]:
  whole = path.stem in ("reward_model_size", "model_size")
  return ["", *sweeps.PIPELINES, *([] if whole else ["6b", "175b"])]


def required(path, form: str) -> list[str]:
  """Flags without which a shipped sweep is refused."""
  return (
    ["--config.reference_from=runs/base/export"]
    if path.stem == "kl_coef_pretrained_ref" and form not in sweeps.PIPELINES
    else []
  )


def trials_of(path, form: str, *common: str, workdir="runs/x"):
  sweep = launch_sweep.load_sweep(f"{path}:{form}" if form else str(path))
  return sweep, launch_sweep.make_trials(sweep, common, pathlib.Path(workdir))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_trial_of_a_shipped_sweep_passes_every_check(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  for form in forms(path):
    sweep, trials = trials_of(path, form, *required(path, form))
    assert len(trials) == len(sweep.trials) * len(sweep.seeds)
    launch_sweep.check_configs(sweep, trials)
    # What the parent checked is what the trial's own command line says.
    for trial in trials[:1] + trials[-1:]:
      words, overrides = flags_lib.split_overrides(trial.command[4:])
      assert {f"--config={sweep.config}", f"--workdir={trial.workdir}"} <= set(words)
      config = flags_lib.load_config(sweep.config, overrides)
      assert workdir_lib.plain(config) == workdir_lib.plain(trial.config)


def test_points_of_the_paper():
  points = lambda name, form, key: [
    trial[key]
    for trial in launch_sweep.load_sweep(f"{ROOT}/configs/sweeps/{name}.py:{form}").trials
  ]
  ptx = points("ptx_coef", "1.3b", "ppo.ptx_coef")
  assert len(ptx) == 12 and (ptx[0], ptx[8], ptx[-1]) == (0.463, 27.8, 129.0)
  assert np.allclose(np.diff(np.log(ptx)), np.log(1.67), atol=0.01)
  pretrained = points("kl_coef_pretrained_ref", "1.3b", "ppo.kl_coef")
  assert len(pretrained) == 9 and (pretrained[0], pretrained[-1]) == (5.4e-5, 2.0)
  assert set(points("kl_coef_pretrained_ref", "1.3b", "ppo.ptx_coef")) == {0.0}
  assert set(points("kl_coef_pretrained_ref", "tiny", "kl_reference")) == {"base"}
  assert points("kl_coef_ptx", "1.3b", "ppo.kl_coef") == [0, 7.5e-4, 0.0104, 0.02, 0.03, 0.144, 2]
  assert len(points("policy_lr", "1.3b", "policy_optim.learning_rate")) == 14
  assert len(points("policy_lr", "175b", "policy_optim.learning_rate")) == 4
  assert points("episodes", "1.3b", "ppo.num_iterations")[3] * 512 == 2**18


def test_checks_need_no_jax():
  program = (
    "import sys; from rlhf.cli import sweep\n"
    f"for more in {[[str(path), *required(path, '')] for path in SHIPPED]}:\n"
    "  assert sweep.main(['sweep', *more, '--dry_run']) == 0\n"
    "print('jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  lines = done.stdout.splitlines()
  assert lines[-1] == "False"
  assert sum(line.lstrip().startswith("1/") for line in lines) == len(SHIPPED)


# ----------------------------------------------------------------------------- wrong trials


@pytest.fixture
def sixty(tmp_path, monkeypatch):
  """sixty(key, value): a sweep file whose trial 37 of 60 sets that as well."""
  monkeypatch.chdir(ROOT)

  def write(key, value) -> str:
    path = tmp_path / "sixty.py"
    path.write_text(
      "from rlhf.configs import sweeps\n"
      "def get_sweep(form='tiny'):\n"
      f"  trials = sweeps.grid('{COEF}', [float(n) for n in range(60)])\n"
      f"  trials[36][{key!r}] = {value!r}\n"
      f"  return sweeps.pipeline_sweep(form, title='Sixty', trials=trials, x='{COEF}',\n"
      "                                x_label='coefficient', seeds=(0,))\n"
    )
    return str(path)

  return write


@pytest.mark.parametrize(
  "key,value,message",
  [
    ("ppo.ppo.kl_coeff", 0.1, "config.ppo.ppo has no field 'kl_coeff'; did you mean 'kl_coef'?"),
    ("ppo.ppo.kl_coef", "high", "config.ppo.ppo.kl_coef=high: could not convert string to float"),
    ("ppo.ppo.num_iterations", 2.5, "num_iterations=2.5: invalid literal for int()"),
    ("ppo.ppo.num_iterations", True, "num_iterations=True: invalid literal for int()"),
    ("ppo.ppo.whiten_rewards", 2, "whiten_rewards=2: ('Non-boolean argument"),
    ("ppo.ppo.kl_coef", None, "kl_coef=None: could not convert string to float: 'None'"),
    ("world", 1, "--config.world=1: Failed to parse '1' as a ConfigDict"),
  ],
  ids=str,
)
def test_a_wrong_trial_is_named_before_anything_starts(
  key, value, message, sixty, tmp_path, capsys
):
  workdir = tmp_path / "runs"
  for mode in ("--dry_run", "--local"):
    with pytest.raises(SystemExit) as stopped:
      launch_sweep.main(["sweep", sixty(key, value), mode, f"--workdir={workdir}"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error
    assert "trial 37 of 60 (ptx_coef=36.0," in error
  assert not workdir.exists()


def test_a_value_out_of_range_is_named_before_anything_starts(tmp_path, capfd, monkeypatch):
  """By the algorithm itself, in a process that ends before the first trial."""
  monkeypatch.chdir(ROOT)
  spec, workdir = tmp_path / "sizes.py", tmp_path / "runs"
  spec.write_text(
    "from rlhf.configs import sweeps\n"
    "def get_sweep():\n"
    "  return sweeps.ppo_sweep('test', title='Sizes', x='ppo.minibatch_size',\n"
    "      trials=sweeps.grid('ppo.minibatch_size', [64, 65]), x_label='size')\n"
  )
  with pytest.raises(SystemExit) as stopped:
    launch_sweep.main(["sweep", str(spec), "--local", f"--workdir={workdir}"])
  error = capfd.readouterr().err
  assert stopped.value.code == 2 and not workdir.exists()
  assert "trial 2 of 2 (minibatch_size=65,seed=0): ppo.batch_size 512 does not divide" in error


@pytest.mark.parametrize(
  "arguments,message",
  [
    (["configs/sweeps/ptx.py", "--dry_run"], "there is no file configs/sweeps/ptx.py"),
    (["configs/ppo.py", "--dry_run"], "configs/ppo.py has no get_sweep"),
    (["README.md", "--dry_run"], "README.md is not a Python file"),
    (["configs/sweeps/ptx_coef.py:huge", "--dry_run"], "size 'huge'; choose from 125m"),
    (["configs/sweeps/reward_model_size.py:1.3b", "--dry_run"], "form '1.3b'; choose from gpt3"),
    (["configs/sweeps/ptx_coef.py", "--local"], "--workdir is missing"),
    (["configs/sweeps/ptx_coef.py"], "one of the arguments --dry_run --local --slurm --collect"),
    (["configs/sweeps/ptx_coef.py", "--dry_run", "--jbos=2"], "unrecognized arguments: --jbos=2"),
    (
      ["configs/sweeps/ptx_coef.py", "--local", "--workdir=x", "--jobs=0"],
      "argument --jobs: 0 is below 1; use 1 or more",
    ),
    (
      ["configs/sweeps/kl_coef_pretrained_ref.py", "--dry_run"],
      "--config.reference_from is missing; this sweep needs the pretrained model's export",
    ),
    (
      ["configs/sweeps/ptx_coef.py", "--local", "--workdir=x", "--allow_dirty"],
      "--allow_dirty is for --slurm",
    ),
    (
      ["configs/sweeps/ptx_coef.py", "--local", "--workdir=x", "--check"],
      "--check is for --dry_run",
    ),
    (
      ["configs/sweeps/ptx_coef.py", "--slurm", "--workdir=x", "--time=5"],
      "--time is 5 minutes, and --save_seconds=600 of them are for saving",
    ),
    (["configs/sweeps/ptx_coef.py", "--dry_run", "--config.ppo.gama=1"], "did you mean 'gamma'?"),
    (
      ["configs/sweeps/ptx_coef.py", "--dry_run", "--config.ppo.ptx_coef=1"],
      "--config.ppo.ptx_coef is given, but the sweep sets it",
    ),
    (
      ["configs/sweeps/ptx_coef.py:tiny", "--collect", "--workdir=nowhere"],
      "nowhere holds no finished trial of the 21",
    ),
  ],
  ids=str,
)
def test_wrong_commands_end_with_one_sentence(arguments, message, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit) as stopped:
    launch_sweep.main(["sweep", *arguments])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("measures", ("win_rate",), "there is no measure 'win_rate'; choose from win_rate_training"),
    ("measures", (), "measures is empty"),
    ("policies", (), "policies is empty"),
    ("policies", ("ppo-ptx",), "no policy 'ppo-ptx' to measure; choose from 'ppo', 'ppo_ptx'"),
    ("policies", ("",), "there is no policy '' to measure"),
    ("x", "ppo.ppo.ptx_coeff", "trial 1 of 1 does not set ppo.ppo.ptx_coeff"),
  ],
  ids=str,
)
def test_what_only_the_collection_needs_is_checked_before_anything_starts(
  field, value, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(ROOT)
  spec = tmp_path / "wrong.py"
  fields = dict(title="Wrong", trials=[{COEF: 1.0}], x=COEF, x_label="x") | {field: value}
  spec.write_text(
    "from rlhf.configs import sweeps\ndef get_sweep():\n"
    f"  return sweeps.pipeline_sweep('test', **{fields!r})\n"
  )
  with pytest.raises(SystemExit) as stopped:
    launch_sweep.main(["sweep", str(spec), "--dry_run"])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1


def test_another_configs_trial_is_refused(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  _, trials = trials_of(
    SHIPPED[SHIPPED.index(ROOT / "configs/sweeps/ptx_coef.py")], "test", workdir=tmp_path
  )
  other = workdir_lib.plain(trials[1].config)
  other["ppo"]["ppo"]["kl_coef"] = 7.0
  workdir_lib.prepare(trials[1].workdir, other)
  with pytest.raises(SystemExit):
    launch_sweep.main(
      ["sweep", "configs/sweeps/ptx_coef.py:test", "--local", f"--workdir={tmp_path}"]
    )
  assert "holds the run of another config: ppo.ppo.kl_coef is 7.0 there" in capsys.readouterr().err


def test_flags_for_all_trials_reach_each():
  _, trials = trials_of(ROOT / "configs/sweeps/ptx_coef.py", "", "--config.policy_from=runs/init")
  assert {trial.config.policy_from for trial in trials} == {"runs/init"}
  assert all("--config.policy_from=runs/init" in trial.command for trial in trials)


# ----------------------------------------------------------------------------- what is shared


def changed_stages(**changes) -> set[str]:
  """The stages that are others where these fields of the test pipeline are others."""
  config = pipeline_configs.get_config("test")
  before = stages.fingerprints(config)
  config = config.copy_and_resolve_references().lock()
  config.update_from_flattened_dict({key.replace("__", "."): changes[key] for key in changes})
  after = stages.fingerprints(config)
  return {name for name in after if name not in before or before[name] != after[name]}


PPO_STAGES = {"ppo", "ppo_ptx"}
AFTER_REWARD = {"reward_model", "selection"} | PPO_STAGES
ALL = set(stages.table(pipeline_configs.get_config("test"))) - {"evaluation"}


@pytest.mark.parametrize(
  "changes,expected",
  [
    (dict(ppo__ppo__ptx_coef=0.5), {"ppo_ptx"}),
    (dict(ppo__ppo__kl_coef=0.5), PPO_STAGES),
    (dict(ppo__ppo__num_iterations=5), PPO_STAGES | {"base_more_pretraining"}),
    (dict(ppo__policy_optim__learning_rate=1e-4), PPO_STAGES),
    (dict(kl_reference="base"), PPO_STAGES),
    (dict(reward_model__reward__pairs=True), AFTER_REWARD),
    (dict(reward_init="base"), AFTER_REWARD),
    (dict(reward_init="base", reward_model__model__width=16), AFTER_REWARD | {"reward_base"}),
    (dict(comparisons__temperature=0.5), AFTER_REWARD | {"comparisons"}),
    (dict(labelers__noise_scale=0.5), AFTER_REWARD | {"comparisons"}),
    (dict(ppo_init__optim__learning_rate=1e-4), PPO_STAGES | {"ppo_init"}),
    (dict(sft__optim__learning_rate=1e-4), AFTER_REWARD | {"sft", "comparisons"}),
    (dict(base__optim__learning_rate=1e-4), ALL - {"data"}),
    (dict(base_more_pretraining__optim__learning_rate=1e-4), {"base_more_pretraining"}),
    (dict(evaluation__temperature=0.5), {"selection"}),
    (dict(evaluation__num_resamples=9, title="x"), set()),
    (dict(world__num_users=9), ALL),
    (dict(seed=1), ALL),
  ],
  ids=lambda part: ",".join(sorted(part)) if isinstance(part, set) else str(part),
)
def test_a_stage_is_shared_by_what_it_reads_and_no_more(changes, expected):
  assert changed_stages(**changes) == expected


def test_stages_that_are_one_program_share_across_their_names():
  config = pipeline_configs.get_config("test").copy_and_resolve_references().lock()
  names = stages.fingerprints(config)
  assert names["ppo"] != names["ppo_ptx"] and len(set(names.values())) == len(names)
  config.update_from_flattened_dict({COEF: 0.0})
  assert stages.fingerprints(config)["ppo_ptx"] == names["ppo"]
  config.update_from_flattened_dict({"reward_init": "base"})
  config.update_from_flattened_dict({"reward_model.model.width": 16})
  own_base = stages.fingerprints(config)["reward_base"]
  small = pipeline_configs.get_config("test").copy_and_resolve_references().lock()
  small.update_from_flattened_dict({"base.model.width": 16})
  assert own_base == stages.fingerprints(small)["base"] != names["base"]


def leaves(group, prefix=""):
  for field in group:
    if hasattr(group[field], "items"):
      yield from leaves(group[field], f"{prefix}{field}.")
    else:
      yield prefix + field


@pytest.mark.parametrize("name", pipeline_configs.NAMES)
def test_a_stage_is_given_what_it_reads_and_no_more(name: str):
  config = pipeline_configs.get_config(name)
  seen = set()
  for name, stage in stages.table(config).items():
    view = stages.view(config, name)
    found = set(leaves(view))
    assert found == {
      leaf
      for leaf in leaves(config)
      if any(field in ("", leaf) or leaf.startswith(f"{field}.") for field in stage.reads)
    }, name
    assert view.is_locked
    seen |= found if name != "evaluation" else set()
  assert set(leaves(config)) - seen == {
    "kind",
    "title",
    "evaluation.base_temperature",
    "evaluation.num_resamples",
  }
  assert ("comparisons" in stages.table(config)) == ("world" in config)


# ----------------------------------------------------------------------------- processes


def fake_trial(tmp_path, number: int, program: str, shared=()) -> launch_sweep.Trial:
  return launch_sweep.Trial(
    number=number,
    name=f"t{number}",
    overrides={},
    seed=0,
    config=None,
    command=[sys.executable, "-c", program],
    workdir=tmp_path / f"t{number}",
    log=tmp_path / "logs" / f"t{number}.txt",
    last=tmp_path / f"t{number}" / "done.json",
    shared={str(i): tmp_path / "shared" / name for i, name in enumerate(shared)},
  )


FINISHES = (
  "import pathlib, sys; p = pathlib.Path({path!r}); p.mkdir(exist_ok=True); "
  "(p / 'runs').open('a').write('x'); print('said'); {more}"
  "(p / 'done.json').write_text('1')"
)


def test_done_trials_are_skipped_and_failed_ones_reported_and_resumed(tmp_path, capsys):
  program = lambda n, more="": FINISHES.format(path=str(tmp_path / f"t{n}"), more=more)
  fails_once = "print('no luck'); sys.exit(3) if (p / 'runs').stat().st_size < 2 else None; "
  trials = [
    fake_trial(tmp_path, 1, program(1)),
    fake_trial(tmp_path, 2, program(2, fails_once)),
    fake_trial(tmp_path, 3, program(3)),
    fake_trial(tmp_path, 4, "print('ends well, writes nothing')"),
  ]
  failed = launch_sweep.run_local(trials, jobs=2)
  out = capsys.readouterr().out
  assert failed == [trials[1], trials[3]] and "0 of 4 trials are done, 4 to run" in out
  assert f"2/4 t2: FAILED with exit status 3: no luck; see {trials[1].log}" in out
  assert [trial.state for trial in trials] == ["done", "failed", "done", "failed"]
  assert launch_sweep.run_local(trials[:3], jobs=1) == []
  out = capsys.readouterr().out
  assert "2 of 3 trials are done, 1 to run" in out and "started, which failed before" in out
  assert trials[1].state == "done"
  assert [len((trial.workdir / "runs").read_text()) for trial in trials[:3]] == [1, 2, 1]
  assert trials[1].log.read_text().count("said") == 2  # the first try's log is kept


def test_trials_do_not_start_only_to_wait_for_a_stage_that_another_makes(tmp_path):
  a, b, c = (
    fake_trial(tmp_path, n, "", shared)
    for n, shared in ((1, ("base-1", "ppo-1")), (2, ("base-1", "ppo-2")), (3, ("base-2", "ppo-3")))
  )
  assert launch_sweep.next_trial([a, b, c], []) is a
  assert launch_sweep.next_trial([b, c], [a]) is c
  assert launch_sweep.next_trial([b], [a]) is None
  workdir_lib.mark_done(tmp_path / "shared" / "base-1", {})
  assert launch_sweep.next_trial([b, c], [a]) is b
  assert launch_sweep.next_trial([], [a]) is None


def test_jobs_have_cores_of_their_own(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4}, raising=False)
  assert [launch_sweep.cores_of(slot, 2) for slot in (0, 1)] == [{0, 1}, {2, 3, 4}]
  assert launch_sweep.cores_of(3, 8) == {1} and launch_sweep.cores_of(0, 8) == {0, 1, 2, 3, 4}


def test_sigterm_ends_the_trials_too(tmp_path):
  program = (
    "import pathlib, sys; sys.path[:0] = ['tests']; import test_cli_sweep as t; "
    f"p = pathlib.Path({str(tmp_path)!r}); from rlhf.cli import sweep; "
    'sweep.run_local([t.fake_trial(p, 1, "import signal, sys, time; '
    "signal.signal(signal.SIGTERM, lambda *a: (print('saved'), sys.exit(143))); "
    "print('up', flush=True); time.sleep(60)\")], 1)"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  log = tmp_path / "logs" / "t1.txt"
  commands.wait_until(lambda: log.exists() and "up" in log.read_text(), process)
  process.send_signal(signal.SIGTERM)
  out = process.communicate(timeout=60)[0]
  assert process.returncode == 143 and "run the same command again" in out
  assert "saved" in log.read_text()


def test_a_stage_is_entered_by_one_process_and_freed_by_a_dead_one(tmp_path):
  """Each process says when it is in, and stays until it is told to go, or is killed."""
  log = tmp_path / "log"
  program = (
    "import sys; from rlhf import workdir\n"
    "def write(word): open(sys.argv[1] + '/log', 'a').write(sys.argv[2] + word + ' ')\n"
    "with workdir.alone(sys.argv[1] + '/base.lock', 'base'):\n"
    "  write('in'); print('in', flush=True); sys.stdin.read(); write('out')"
  )
  with contextlib.ExitStack() as stack:

    def enter(name: str, says: str):
      process = stack.enter_context(
        subprocess.Popen(
          [sys.executable, "-c", program, str(tmp_path), name],
          cwd=ROOT,
          text=True,
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
        )
      )
      stack.callback(process.kill)
      assert process.stdout.readline() == says
      return process

    waits = "base: another process is running it; waiting\n"
    a, b = enter("a", "in\n"), enter("b", waits)
    time.sleep(0.3)  # in which one that did not wait would say so
    a.stdin.close()
    assert b.stdout.readline() == "in\n"
    c = enter("c", waits)
    b.kill()
    assert c.stdout.readline() == "in\n"
    c.stdin.close()
    c.wait()
  assert log.read_text().split() == ["ain", "aout", "bin", "cin", "cout"]


# Saves at SIGTERM, which the first start asks for as SLURM does before a time limit.
ASKED_TO_SAVE = """if True:
  import os, pathlib, signal, sys, time
  path = pathlib.Path({path!r})
  path.mkdir(exist_ok=True)
  def save(*_):
    (path / "saved").touch()
    print("saved")
    sys.exit(143)
  signal.signal(signal.SIGTERM, save)
  if not (path / "saved").exists():
    os.kill(os.getpid(), signal.SIGUSR2)  # SLURM signals every process of a job
    os.kill(os.getppid(), signal.SIGUSR2)
    time.sleep(60)
  print("went on")
  (path / "done.json").write_text("1")
"""


def test_submitted_trials_outlive_their_time_limit_and_leave_log_and_record(tmp_path):
  submitit = pytest.importorskip("submitit")
  program = lambda n, more="": FINISHES.format(path=str(tmp_path / f"t{n}"), more=more)
  trials = [
    fake_trial(tmp_path, 1, ASKED_TO_SAVE.format(path=str(tmp_path / "t1"))),
    fake_trial(tmp_path, 2, program(2)),
    fake_trial(tmp_path, 3, "print('no luck'); raise SystemExit(5)"),
    fake_trial(tmp_path, 4, program(4)),
  ]
  trials[1].last.parent.mkdir()
  trials[1].last.write_text("{}")
  workdir_lib.write_json(trials[3].record, dict(exit_status=1))  # it failed before
  executor = submitit.LocalExecutor(tmp_path / "jobs")
  executor.update_parameters(timeout_min=60, signal_delay_s=30)
  jobs = {
    trial.number: job
    for trial, job in launch_sweep.submit(
      trials, executor, code=tmp_path, max_restarts=1, queued={}
    )
  }
  assert list(jobs) == [1, 3, 4]  # the second is done
  failures = {number: job.exception() for number, job in jobs.items()}
  assert failures[1] is None and failures[4] is None
  assert f"ended with status 5; see {trials[2].log}" in str(failures[3])
  assert [trial.state for trial in trials] == ["done", "done", "failed", "done"]
  assert not trials[3].record.exists()
  assert trials[0].log.read_text().split("\n") == ["saved", "went on", ""]
  assert trials[2].log.read_text() == "no luck\n"
  assert workdir_lib.read_json(trials[2].record) == dict(exit_status=5, log=str(trials[2].log))


def test_submitted_trials_wait_for_what_they_share(tmp_path):
  given = []

  class Executor:
    folder = tmp_path / "jobs"

    def update_parameters(self, **parameters):
      given.append(parameters["additional_parameters"])

    def submit(self, command):
      return types.SimpleNamespace(job_id=str(100 + len(given)))

  shared = (("base-1", "ppo-1"), ("base-1", "ppo-2"), ("base-2", "ppo-3"), ("base-2", "ppo-4"))
  trials = [fake_trial(tmp_path / "new", n, "", names) for n, names in enumerate(shared, 1)]
  options = dict(code=tmp_path, max_restarts=1)
  launch_sweep.submit(trials, Executor(), queued={}, **options)
  assert given == [
    {"requeue": True},
    {"requeue": True, "dependency": "afterany:101"},
    {"requeue": True},
    {"requeue": True, "dependency": "afterany:103"},
  ]
  # Once more: two are queued still; of the others one waits for the queued one that it needs.
  again = launch_sweep.submit(trials, Executor(), queued={"t1": "101", "t3": "103"}, **options)
  assert [trial.number for trial, _ in again] == [2, 4]
  assert given[4:] == given[1::2][:2]
  # A trial waits for everyone that makes a stage of its own, each named once.
  given.clear()
  many = [
    fake_trial(tmp_path / "many", n, "", names)
    for n, names in enumerate(
      (("base-1", "sft-1"), ("base-2", "ppo-2"), ("base-1", "sft-1", "ppo-2")), 1
    )
  ]
  launch_sweep.submit(many, Executor(), queued={}, **options)
  assert given[-1]["dependency"] == "afterany:101:102"


# ----------------------------------------------------------------------------- results


def write_results(trial: launch_sweep.Trial, level: float) -> None:
  """A finished pipeline in which PPO-ptx wins `level` of the time and loses `level` nats."""
  evaluation = trial.workdir / "evaluation"
  workdir_lib.mark_done(
    evaluation,
    dict(
      pretraining_nll=dict(ppo_init=1.0, ppo=3.0, ppo_ptx=1.0 + level),
      few_shot_tasks={"a": dict(ppo=0.0, ppo_ptx=level), "b": dict(ppo=0.0, ppo_ptx=1.0)},
    ),
  )
  lines = [
    dict(
      prompt_index=i,
      policy=policy,
      labeler=f"{group}0",
      group=group,
      likert=4,
      win=1 if policy == "ppo_ptx" and i < 10 * level else 0,
    )
    for i in range(10)
    for policy in ("ppo", "ppo_ptx")
    for group in ("training", "heldout")
  ]
  text = lambda lines: "".join(json.dumps(line) + "\n" for line in lines)
  workdir_lib.write_text(evaluation / "preference" / "preferences.jsonl", text(lines))
  workdir_lib.write_text(evaluation / "gold.jsonl", text([dict(ppo=0, ppo_ptx=level)] * 3))
  for step, reward in ((2, 99.0), (10, -level)):  # the last step counts
    workdir_lib.write_text(
      trial.workdir / "ppo_ptx" / "validation" / f"step_{step:06d}.jsonl",
      text([dict(reward=reward - 1, kl=level), dict(reward=reward + 1, kl=0)]),
    )
  workdir_lib.write_json(trial.workdir / "report" / "report.json", {})


def test_results_are_gathered_over_seeds(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  spec = "configs/sweeps/ptx_coef.py:tiny"
  sweep, trials = trials_of(ROOT / "configs/sweeps/ptx_coef.py", "tiny", workdir=tmp_path)
  for trial in trials[:-1]:
    write_results(trial, level=0.5 + 0.1 * trial.seed)
  command = ["sweep", spec, "--collect", f"--workdir={tmp_path}"]
  assert launch_sweep.main(command) == 1  # one is missing
  out = capsys.readouterr().out
  assert "21/21 ptx_coef=10.0,seed=2: to run; not in the table" in out and "20 of 21 trials" in out
  write_results(trials[-1], level=0.7)
  assert launch_sweep.main(command) == 0
  out = capsys.readouterr().out
  assert "| 0.03 | 0.600 [0.500, 0.700] | 0.800 [0.750, 0.850] | -0.600 " in out
  rows = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
  assert len(rows) == 21 and rows[8]["seed"] == "1" and rows[8][COEF] == "0.03"
  assert float(rows[8]["pretraining_tax"]) == pytest.approx(0.6)
  assert float(rows[8]["few_shot_mean"]) == pytest.approx(0.8)
  assert float(rows[8]["validation_reward"]) == pytest.approx(-0.6)
  assert float(rows[8]["win_rate_training"]) == pytest.approx(0.6)
  pooled = list(csv.DictReader(io.StringIO((tmp_path / "summary.csv").read_text())))
  assert len(pooled) == 7 * len(sweep.measures)
  win = next(row for row in pooled if row["measure"] == "win_rate_heldout")
  assert float(win["mean"]) == pytest.approx(0.6) and win["seeds"] == "0 1 2"
  assert float(win["low"]) < 0.5 and float(win["high"]) > 0.7  # over seeds and prompts
  svg = (tmp_path / "plot.svg").read_text()
  assert svg.count("pretraining coefficient γ") == 1 and "validation reward" in svg
  assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_reward_models_results_are_gathered(tmp_path, capsys, monkeypatch):
  """Of pairs, so that a prompt with more of them weighs more; by stage alone or in a pipeline."""
  monkeypatch.chdir(ROOT)
  for form, stage in (("6b", ""), ("tiny", "reward_model")):
    workdir = tmp_path / form
    _, trials = trials_of(ROOT / "configs/sweeps/kwise_vs_pairs.py", form, workdir=workdir)
    for trial in trials:
      workdir_lib.write_json(
        trial.workdir / stage / "validation_scores.json",
        dict(
          scores=[[3.0, 2.0, 1.0], [1.0, 2.0, 9.0]],
          ranks=[[1, 2, 3], [1, 2, 3]],
          valid=[[1, 1, 1], [1, 1, 0]],
        ),
      )
      workdir_lib.mark_done(trial.workdir / stage, {"validation/log_loss": 0.5})
    assert (
      launch_sweep.main(
        ["sweep", f"configs/sweeps/kwise_vs_pairs.py:{form}", "--collect", f"--workdir={workdir}"]
      )
      == 0
    )
    table = capsys.readouterr().out
    assert re.search(r"\| False \| .* 0\.750 \[.* 0\.500 \[0\.500, 0\.500\] \| 3 \|", table), table


def test_the_axis_is_logarithmic_and_0_stands_beside_a_break():
  position, ticks = figures._positions([0.0, 0.1, 1.0, 10.0])
  assert ticks == "log and 0"
  assert (position[0], position[0.1], position[10.0]) == (pytest.approx(0.01), 0.1, 10.0)
  assert figures._positions([1.0, 4, 1.0]) == ({1.0: 1.0, 4: 4.0}, "log")
  for values in (["a", "b"], [False, True], [-1.0, 1.0], [3.0]):
    position, ticks = figures._positions(values)
    assert ticks == "names" and list(position.values()) == list(range(len(values)))


def test_differences_to_the_first_trial_cancel_what_a_seed_has_of_its_own():
  """Seeds 10 apart, trials 1 apart: the difference is sure where the mean is not."""
  rng = np.random.default_rng(0)
  gathered = [
    dict(
      overrides={"a": a},
      seed=seed,
      policy="",
      values={"m": (10.0 * seed + a + prompts)[:, None], "one": [[10.0 * seed - a]]},
    )
    for seed in range(3)
    for prompts in [rng.normal(size=50)]
    for a in (1, 2, 4)
    if (a, seed) != (2, 0)
  ]
  # In the order in which they first occur.
  first, third, second = results.pool(gathered, {"a": 1}, num_resamples=200)
  assert first["measures"]["m"]["difference"] is None
  for row, difference, seeds in ((third, 3.0, 3), (second, 1.0, 2)):
    cell = row["measures"]["m"]
    assert cell["pooled"]["high"] - cell["pooled"]["low"] > 5 and len(row["seeds"]) == seeds
    assert [cell["difference"][end] for end in results.ENDS] == pytest.approx([difference] * 3)
    one = row["measures"]["one"]["difference"]
    assert [one[end] for end in results.ENDS] == pytest.approx([-difference] * 3)
  text = results.tables([first, third], "a", {"a": 1})
  assert "Minus the first trial, paired by seed and prompt:" in text
  assert text.splitlines()[-1] == "| 4 | 3.000 [3.000, 3.000] | -3.000 [-3.000, -3.000] | 3 |"
  lines = list(csv.DictReader(io.StringIO(results.pooled_csv([first, third]))))
  assert lines[0]["difference_mean"] == "" and float(lines[2]["difference_mean"]) == (
    pytest.approx(3.0)
  )
  assert "ifference" not in results.tables([first], "a", {"a": 1})


def test_differences_are_to_the_sweeps_first_trial_and_to_no_other(tmp_path, capsys, monkeypatch):
  """The first of the others to be finished is not taken in its place; nor is one out of order."""
  gathered = [
    dict(overrides={"a": a}, seed=0, policy="", values={"m": [[float(a)]]}) for a in (4, 2, 1)
  ]
  pooled = results.pool(gathered, {"a": 1}, num_resamples=20)
  assert [
    row["measures"]["m"]["difference"] and row["measures"]["m"]["difference"]["mean"]
    for row in pooled
  ] == [3.0, 1.0, None]
  pooled = results.pool(gathered[:2], {"a": 1}, num_resamples=20)
  assert [row["measures"]["m"]["difference"] for row in pooled] == [None, None]
  text = results.tables(pooled, "a", {"a": 1})
  assert text.splitlines()[-1] == (
    "No differences: the sweep's first trial (a 1) is not finished with any seed."
  )
  assert "Minus" not in text
  monkeypatch.chdir(ROOT)
  _, trials = trials_of(ROOT / "configs/sweeps/ptx_coef.py", "test", workdir=tmp_path)
  write_results(trials[1], level=0.5)
  launch_sweep.main(
    ["sweep", "configs/sweeps/ptx_coef.py:test", "--collect", f"--workdir={tmp_path}"]
  )
  assert "first trial (ptx_coef 0.0) is not finished" in capsys.readouterr().out


def test_two_runs_of_one_seed_are_not_pooled():
  row = dict(overrides={"a": 1}, seed=0, policy="", values={"m": [[1.0]]})
  with pytest.raises(ValueError, match="several runs of one seed"):
    results.pool([row, row], {"a": 1})


# ----------------------------------------------------------------------------- a real sweep


@pytest.mark.slow
def test_a_sweep_runs_what_trials_share_once(tmp_path):
  command = ("launch.sweep", "configs/sweeps/ptx_coef.py:test", f"--workdir={tmp_path}")
  text = commands.finish(*command, "--local", "--jobs=2")
  assert text.count(": done in") == 2
  shared = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "shared").glob("*-*/"))
  # With the coefficient 0, ppo_ptx is ppo; with 1 it is another run of PPO.
  table = stages.table(pipeline_configs.get_config("test"))
  assert shared == sorted(table[name].kind for name in ALL)
  zero, one = ((tmp_path / "trials" / f"ptx_coef={x},seed=0") for x in (0.0, 1.0))
  assert (zero / "base").resolve() == (one / "base").resolve()
  assert (zero / "ppo_ptx").resolve() == (zero / "ppo").resolve() == (one / "ppo").resolve()
  assert (one / "ppo_ptx").resolve() != (one / "ppo").resolve()
  # Every stage began once: its console lines are in one of the logs.
  logs = [path.read_text() for path in (tmp_path / "logs").glob("*.txt")]
  for stage, times in (("base", 1), ("sft", 1), ("reward_model", 1), ("ppo", 1), ("ppo_ptx", 1)):
    assert sum(len(re.findall(rf"^{stage}  1/", log, re.M)) for log in logs) == times, stage
  files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("done.json")}
  assert "2 of 2 trials are done, 0 to run" in commands.finish(*command, "--local")
  assert {path: path.stat().st_mtime_ns for path in files} == files
  assert "2 of 2 trials" in commands.finish(*command, "--collect")
  report = json.loads((zero / "report" / "report.json").read_text())
  assert report["pretraining_nll"]["ppo"] == report["pretraining_nll"]["ppo_ptx"]


@pytest.mark.slow
def test_a_pipeline_with_a_reward_model_of_its_own_size_and_the_base_as_reference(tmp_path):
  text = commands.finish(
    "launch.pipeline",
    "--config=configs/pipeline.py:test",
    f"--workdir={tmp_path / 'run'}",
    "--config.reward_init=base",
    "--config.reward_model.model.width=16",
    "--config.kl_reference=base",
    "--config.ppo.ppo.value_init=policy",
    "--last_stage=ppo",
  )
  assert "report:" not in text and not (tmp_path / "run" / "ppo_ptx").exists()
  export = lambda stage: workdir_lib.read_json(tmp_path / "run" / stage / "export" / "export.json")
  assert export("reward_base")["model"]["width"] == export("reward_model")["model"]["width"] == 16
  assert export("reward_model")["config"]["init_from"].endswith("run/reward_base/export")
  assert export("ppo")["config"]["reference_from"].endswith("run/base/export")
  assert export("ppo")["model"]["width"] == 32
  metrics = commands.read_jsonl(tmp_path / "run" / "ppo" / "metrics.jsonl")
  first = next(line for line in metrics if "objective/kl" in line)
  assert first["objective/kl"] != 0  # the base model is not where PPO starts
