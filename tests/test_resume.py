"""A run that was killed and started again ends as one that was never interrupted, bit for bit."""

import json
import pathlib
import random
import signal
import time

import commands
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from rlhf import checkpoint

ALGORITHMS = ("sft", "reward_model", "ppo", "truth_judge")
SEED = 0  # of the moments; another one kills at other moments of the same runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def uninterrupted(inputs, tmp_path_factory):
  """algorithm -> workdir of its uninterrupted run, made when first asked for."""
  done: dict[str, pathlib.Path] = {}

  def get(algorithm: str) -> pathlib.Path:
    if algorithm not in done:
      workdir = tmp_path_factory.mktemp("uninterrupted") / algorithm
      commands.finish(
        "launch.train", *commands.train_flags(inputs, algorithm), f"--workdir={workdir}"
      )
      done[algorithm] = workdir
    return done[algorithm]

  return get


# ----------------------------------------------------------------------------- what is compared


def final_state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the newest checkpoint, by path."""
  steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(workdir.absolute() / "checkpoints" / str(max(steps)) / "state")
  return flat(state) | {"step of the checkpoint": np.asarray(max(steps))}


def flat(tree) -> dict[str, np.ndarray]:
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def results(workdir: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
  """The arrays of a finished run: its last checkpoint and each of its exports."""
  exports = sorted(path.parent for path in workdir.rglob("export.json"))
  found = {str(path.relative_to(workdir)): flat(checkpoint.load_params(path)) for path in exports}
  return found | {"checkpoint": final_state(workdir)}


def texts(workdir: pathlib.Path) -> dict[str, object]:
  """What a finished run wrote as text, without what the clock decides."""
  done = json.loads((workdir / "done.json").read_text())
  done.pop("seconds")
  validation = {path.name: path.read_text() for path in sorted(workdir.glob("validation/*.jsonl"))}
  return {
    "metrics": commands.untimed(workdir / "metrics.jsonl"),
    "done": done,
    "validation": validation,
  }


def assert_same_run(workdir: pathlib.Path, reference: pathlib.Path) -> None:
  """Equal arrays (bits, not values: NaN and -0 count), equal lines, and no step twice."""
  steps = [line["step"] for line in commands.untimed(workdir / "metrics.jsonl")]
  assert steps == sorted(set(steps))
  assert texts(workdir) == texts(reference)
  found, expected = results(workdir), results(reference)
  assert found.keys() == expected.keys()
  for name, arrays in expected.items():
    assert found[name].keys() == arrays.keys(), name
    for path, array in arrays.items():
      other = found[name][path]
      assert (other.dtype, other.shape) == (array.dtype, array.shape), (name, path)
      assert other.tobytes() == array.tobytes(), f"{name}: {path} differs"


# ----------------------------------------------------------------------------- moments


def last_step(workdir: pathlib.Path) -> int:
  """Of metrics.jsonl; -1 where there is none."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  return json.loads(lines[-1])["step"] if lines else -1


def saves(workdir: pathlib.Path) -> tuple[int, bool]:
  """(newest whole checkpoint, whether one is being written under its temporary name)."""
  directory = workdir / "checkpoints"
  names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
  return (
    max([int(name) for name in names if name.isdigit()], default=0),
    any("orbax-checkpoint-tmp" in name for name in names),
  )


def moment(kind: str, workdir: pathlib.Path, every: int, nth: int, rng: random.Random):
  """A condition that comes true in the course of the run, later for a later `nth` interruption.

  lines    any time after a line of metrics.jsonl
  rollout  just after such a line of a step that is not saved: the next thing is a rollout
  save     while a checkpoint is being written
  """
  step = every * (1 + 2 * nth) + rng.randint(0, every)
  if kind == "save":
    return lambda: saves(workdir)[0] >= step - every and saves(workdir)[1]
  if kind == "rollout":
    return lambda: last_step(workdir) >= step and last_step(workdir) % every
  return lambda: last_step(workdir) >= step


DELAYS = {"lines": 0.15, "rollout": 0.02, "save": 0.02}  # at most so many seconds after it
EVERY = {
  "sft": 4,
  "reward_model": 3,
  "ppo": 2,
  "truth_judge": 3,
}  # steps between saves, in `commands.train_flags`


def interrupt(
  inputs,
  algorithm: str,
  workdir: pathlib.Path,
  kind: str,
  with_signal: signal.Signals,
  *,
  seed: int = SEED,
  nth: int = 0,
) -> tuple[int, str]:
  """Starts a run and signals it at a drawn moment; (exit status, what it printed)."""
  rng = random.Random(f"{seed} {algorithm} {kind} {nth}")
  flags = (*commands.train_flags(inputs, algorithm), f"--workdir={workdir}")
  with commands.started("launch.train", *flags) as process:
    commands.wait_until(moment(kind, workdir, EVERY[algorithm], nth, rng), process)
    time.sleep(rng.uniform(0.0, DELAYS[kind]))
    process.send_signal(with_signal)
    text = process.communicate()[0]
  assert not (workdir / "done.json").exists(), "it was done before the signal; choose a longer run"
  return process.returncode, text


def check_killed(
  inputs,
  reference: pathlib.Path,
  workdir: pathlib.Path,
  algorithm: str,
  kinds: list[str],
  seed: int = SEED,
) -> None:
  """Kills at a moment of each kind, going on each time, and compares the end with `reference`."""
  for nth, kind in enumerate(kinds):
    status, text = interrupt(inputs, algorithm, workdir, kind, signal.SIGKILL, seed=seed, nth=nth)
    assert status == -signal.SIGKILL, text
  text = commands.finish(
    "launch.train", *commands.train_flags(inputs, algorithm), f"--workdir={workdir}"
  )
  assert f"workdir {workdir}: going on" in text
  assert_same_run(workdir, reference)


def check_terminated(
  inputs, reference: pathlib.Path, workdir: pathlib.Path, algorithm: str
) -> None:
  """SIGTERM: exit status 143, the state of that step saved, and the same end after going on."""
  status, text = interrupt(inputs, algorithm, workdir, "lines", signal.SIGTERM)
  assert status == 143, text
  assert "run the same command to go on" in text and "Traceback" not in text
  saved = int(text.partition("SIGTERM; saved step ")[2].partition(",")[0])
  assert saves(workdir) == (saved, False)
  assert saved >= last_step(workdir)
  again = commands.finish(
    "launch.train", *commands.train_flags(inputs, algorithm), f"--workdir={workdir}"
  )
  assert f"goes on from step {saved} of" in again
  assert_same_run(workdir, reference)


# ----------------------------------------------------------------------------- tests


@pytest.mark.parametrize(
  "algorithm,kind",
  [
    ("sft", "save"),
    pytest.param("reward_model", "lines", marks=pytest.mark.slow),
    pytest.param("ppo", "rollout", marks=pytest.mark.slow),
    pytest.param("truth_judge", "lines", marks=pytest.mark.slow),
  ],
)
def test_a_killed_run_ends_as_if_it_had_not_been(
  inputs, uninterrupted, workdir_path, algorithm, kind
):
  check_killed(inputs, uninterrupted(algorithm), workdir_path, algorithm, [kind])


def test_sigterm_saves_the_step_and_ends_with_143(inputs, uninterrupted, workdir_path):
  check_terminated(inputs, uninterrupted("sft"), workdir_path, "sft")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["reward_model", "ppo"])
def test_sigterm_of_the_others(inputs, uninterrupted, workdir_path, algorithm):
  check_terminated(inputs, uninterrupted(algorithm), workdir_path, algorithm)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_run_killed_twice(inputs, uninterrupted, workdir_path, algorithm, seed):
  kinds = random.Random(f"{seed} {algorithm}").sample(sorted(DELAYS), 2)
  check_killed(inputs, uninterrupted(algorithm), workdir_path, algorithm, kinds, seed)


# ----------------------------------------------------------------------------- adapters


@pytest.mark.slow
def test_adapters_go_through_all_three_steps_and_a_kill(inputs, tmp_path):
  """SFT, reward model and PPO with adapters, each from the merged export of the one before;
  checkpoints hold what is trained and no more, and a killed PPO ends as if it had not been."""
  rank = dict(lora__rank=2)

  def run(algorithm: str, name: str, **changes) -> pathlib.Path:
    flags = commands.train_flags(inputs, algorithm, **rank, **changes)
    commands.finish("launch.train", *flags, f"--workdir={tmp_path / name}")
    return tmp_path / name

  sft_run = run("sft", "sft", sft__max_steps=8)
  merged, adapters = (
    flat(checkpoint.load_params(sft_run / name)) for name in ("export", "export_adapter")
  )
  start = flat(checkpoint.load_params(inputs.policy))
  moved = {name for name in start if (merged[name] != start[name]).any()}
  assert moved and all("kernel" in name for name in moved)
  assert all("lora_" in name for name in adapters)
  state = final_state(sft_run)
  assert not any("'kernel'" in name or "'embed'" in name for name in state)

  policy = sft_run / "export"
  reward_run = run("reward_model", "rm", init_from=policy, reward__num_epochs=1)
  head = {
    name for name in flat(checkpoint.load_params(reward_run / "export_adapter")) if "head" in name
  }
  assert len(head) == 2
  changes = dict(policy_from=policy, reward_from=reward_run / "export", ppo__num_iterations=6)
  ppo_run = run("ppo", "ppo", **changes)
  lines = commands.untimed(ppo_run / "metrics.jsonl")
  first = next(line for line in lines if "objective/kl" in line)
  assert first["objective/kl"] == 0.0 and first["ppo/ratio_error_first"] < 1e-5

  flags = (
    *commands.train_flags(inputs, "ppo", **rank, **changes),
    f"--workdir={tmp_path / 'killed'}",
  )
  with commands.started("launch.train", *flags) as process:
    commands.wait_until(lambda: last_step(tmp_path / "killed") >= 3, process)
    process.kill()
    process.communicate()
  commands.finish("launch.train", *flags)
  assert_same_run(tmp_path / "killed", ppo_run)
