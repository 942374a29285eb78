"""The loop on a toy: when it logs, evaluates and saves, and what an interruption may change."""

import itertools
import json
import math
import os
import pathlib
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf import checkpoint, loop, metrics
from rlhf.data import batches as batches_lib
from rlhf.loop import LoopConfig
from rlhf.types import LmBatch, Metric

TOTAL = 12
NUMBERS = np.arange(7.0)  # the rows of the toy's data


class Interrupted(Exception):
  """Stands for a kill: it leaves the loop wherever it is raised."""


def toy_batches() -> batches_lib.Batches:
  fields = ("tokens_BT", "loss_mask_BT", "segment_BT", "position_BT")
  rows = LmBatch(**{name: NUMBERS[:, None] for name in fields})
  return batches_lib.Batches(rows, batch_size=2, seed=5)


@jax.jit
def toy_update(state, batch_B, key):
  noise = jax.random.normal(key, state["x"].shape)
  x = state["x"] * 0.9 + jnp.mean(batch_B) + noise
  return {"x": x, "step": state["step"] + 1}, {
    "train/loss": Metric(total=jnp.sum(x), weight=jnp.float32(x.size))
  }


def fresh_state():
  return {"x": jnp.zeros(3), "step": jnp.int32(0)}


def run_toy(
  workdir: pathlib.Path,
  *,
  total: int = TOTAL,
  log_every: int = 2,
  eval_every: int = 5,
  save_every: int = 4,
  keep_last: int = 100,
  best_metric: str = "",
  before_step=None,
  break_loss_at=None,
  break_validation_at=None,
  evaluated=None,
  after_step=None,
  state=None,
):
  """Runs the toy in `workdir`; `before_step(step)` may interrupt before step `step`."""
  next_batch = loop.Stream(toy_batches())

  def train_step(state, step):
    if before_step is not None:
      before_step(step + 1)
    state, numbers = toy_update(state, next_batch(step).tokens_BT, loop.step_key(3, "train", step))
    if step + 1 == break_loss_at:
      numbers["train/loss"] = jnp.float32(math.nan)
    return state, numbers

  def evaluate(state, step):
    if evaluated is not None:
      evaluated.append(step)
    value = float(state["x"][0])
    return {"validation/loss": math.inf if step == break_validation_at else value}

  keep = checkpoint.CheckpointConfig(
    every=save_every,
    keep_last=keep_last,
    keep_every=None,
    best_metric=best_metric,
    best_is_lower=True,
  )
  with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
    return loop.run(
      name="toy",
      workdir=workdir,
      cfg=LoopConfig(log_every=log_every, eval_every=eval_every),
      checkpoints=checkpoints,
      state=fresh_state() if state is None else state,
      total_steps=total,
      train_step=train_step,
      evaluate=evaluate,
      after_step=after_step,
      tokens_per_step=10,
      headline=("train/loss",),
      guarded=("train/loss", "train/absent", "validation/loss"),
      metadata={"seed": 3},
    )


def interrupt_at(wanted: int):
  def before_step(step):
    if step == wanted:
      raise Interrupted()

  return before_step


def lines(workdir: pathlib.Path) -> list[dict]:
  return [
    {key: value for key, value in line.items() if not key.startswith(("time", "perf/"))}
    for line in metrics.read(workdir / "metrics.jsonl")
  ]


def saved_steps(workdir: pathlib.Path) -> list[int]:
  return sorted(
    int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
  )


# ----------------------------------------------------------------------------- keys


def test_step_keys_differ_between_purposes_and_steps_and_seeds():
  keys = {
    tuple(jax.random.key_data(loop.step_key(seed, purpose, step)).tolist())
    for seed, purpose, step in itertools.product((0, 1), loop.PURPOSES, range(20))
  }
  assert len(keys) == 2 * len(loop.PURPOSES) * 20


def test_step_keys_are_a_function_of_their_arguments():
  first, second = (jax.random.key_data(loop.step_key(4, "rollout", 7)) for _ in range(2))
  np.testing.assert_array_equal(first, second)


def test_unknown_purpose():
  with pytest.raises(ValueError, match="purpose 'dropout'; choose from"):
    loop.step_key(0, "dropout", 1)


# ----------------------------------------------------------------------------- cadence


def test_cadence_of_lines_evaluations_and_checkpoints(tmp_path):
  evaluated, after = [], []
  run_toy(
    tmp_path, total=11, evaluated=evaluated, after_step=lambda state, step: after.append(step)
  )
  assert evaluated == [0, 5, 10, 11]
  steps_with = lambda name: [line["step"] for line in lines(tmp_path) if name in line]
  assert steps_with("step") == [0, 2, 4, 5, 6, 8, 10, 11]
  assert steps_with("validation/loss") == [0, 5, 10, 11]
  assert steps_with("train/loss") == [2, 4, 5, 6, 8, 10, 11]
  assert saved_steps(tmp_path) == [4, 8, 11]
  assert after == list(range(1, 12))


def test_a_rate_is_written_once_it_is_known_and_never_as_nan(tmp_path):
  run_toy(tmp_path, total=3, log_every=1)
  rates = {
    line["step"]: line.get("perf/tokens_per_second")
    for line in metrics.read(tmp_path / "metrics.jsonl")
  }
  assert rates[0] is None and rates[1] is None  # the first step compiles
  assert rates[2] > 0 and rates[3] > 0


@pytest.mark.parametrize("total, traced", [(TOTAL, True), (4, True), (2, False)])
def test_a_profile_is_of_a_few_steps_and_changes_nothing(tmp_path, capsys, total, traced):
  with loop.profiled(tmp_path / "profiles"):
    run_toy(tmp_path / "a", total=total)
  run_toy(tmp_path / "b", total=total)
  assert lines(tmp_path / "a") == lines(tmp_path / "b")
  found = list((tmp_path / "profiles").rglob("*.xplane.pb"))
  assert len(found) == traced  # one of the first run, none of the second
  assert ("no profile: it begins at step 3" in capsys.readouterr().out) == (not traced)


def test_a_checkpoint_remembers_step_and_metadata(tmp_path):
  state = run_toy(tmp_path)
  keep = checkpoint.CheckpointConfig(
    every=1, keep_last=9, keep_every=None, best_metric="", best_is_lower=True
  )
  with checkpoint.Checkpoints(tmp_path / "checkpoints", keep) as checkpoints:
    restored, metadata = checkpoints.restore(state, step=8)
  assert metadata == {"seed": 3, "step": 8}
  assert int(restored["step"]) == 8


def test_the_best_checkpoint_is_kept_where_a_metric_names_it(tmp_path):
  run_toy(tmp_path, total=20, save_every=5, keep_last=1, best_metric="validation/loss")
  values = {
    line["step"]: line["validation/loss"]
    for line in lines(tmp_path)
    if "validation/loss" in line and line["step"] > 0
  }
  assert saved_steps(tmp_path) == sorted({20, min(values, key=values.get)})


def test_the_stream_goes_on_and_jumps():
  batches = toy_batches()
  stream = loop.Stream(batches)
  for step in (0, 1, 2, 9, 10, 4, 5):
    np.testing.assert_array_equal(stream(step).tokens_BT, batches[step].tokens_BT)


@pytest.mark.parametrize("field", ["log_every", "eval_every"])
def test_config_of_zero_steps(field):
  with pytest.raises(ValueError, match=f"loop.{field} is 0; use 1 or more"):
    LoopConfig(**({"log_every": 1, "eval_every": 1} | {field: 0}))


# ----------------------------------------------------------------------------- going on


# 0: before the first step; 5: after the save at 4; 8: before the save at 8; 12: the last step.
@pytest.mark.parametrize("steps", [(1,), (5,), (8,), (12,), (3, 7, 11), (5, 5)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path, steps):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  expected = run_toy(whole)
  for step in steps:
    with pytest.raises(Interrupted):
      run_toy(broken, before_step=interrupt_at(step))
  state = run_toy(broken)
  assert np.asarray(state["x"]).tobytes() == np.asarray(expected["x"]).tobytes()
  assert int(state["step"]) == TOTAL
  assert lines(broken) == lines(whole)
  assert saved_steps(broken) == saved_steps(whole)


def test_an_interruption_during_the_evaluation_loses_nothing(tmp_path):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run_toy(whole)

  class Evaluated(list):
    def append(self, step):
      if step == 10:
        raise Interrupted()

  with pytest.raises(Interrupted):
    run_toy(broken, evaluated=Evaluated())
  run_toy(broken)
  assert lines(broken) == lines(whole)


def test_a_resumed_run_keeps_one_state(tmp_path):
  run_toy(tmp_path, total=4)
  state = fresh_state()
  run_toy(tmp_path, total=8, state=state)
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  first = fresh_state()
  run_toy(tmp_path / "other", total=4, state=first)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(first))


def test_a_finished_run_takes_no_further_step(tmp_path):
  expected = run_toy(tmp_path)
  before = (tmp_path / "metrics.jsonl").read_text()
  state = run_toy(tmp_path, before_step=interrupt_at(TOTAL + 1))
  np.testing.assert_array_equal(state["x"], expected["x"])
  assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_run_without_a_checkpoint_starts_over(tmp_path):
  with pytest.raises(Interrupted):
    run_toy(tmp_path, before_step=interrupt_at(4))
  assert [line["step"] for line in lines(tmp_path)] == [0, 2]
  steps = []
  run_toy(tmp_path, before_step=steps.append)
  assert steps == list(range(1, TOTAL + 1))


def test_a_half_written_line_is_written_again(tmp_path):
  with pytest.raises(Interrupted):
    run_toy(tmp_path, before_step=interrupt_at(7))
  path = tmp_path / "metrics.jsonl"
  path.write_text(path.read_text() + '{"step": 7, "tra')
  run_toy(tmp_path)
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [
    0,
    2,
    4,
    5,
    6,
    8,
    10,
    12,
  ]


# ----------------------------------------------------------------------------- not finite


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with pytest.raises(FloatingPointError, match="^step 6: train/loss is nan; the run stops here"):
    run_toy(tmp_path, break_loss_at=6)
  assert [line["step"] for line in lines(tmp_path)] == [0, 2, 4, 5]
  assert saved_steps(tmp_path) == [4]


def test_a_loss_that_is_not_finite_is_never_saved(tmp_path):
  """At a step that is saved but not logged."""
  with pytest.raises(FloatingPointError, match="step 4: train/loss is nan"):
    run_toy(tmp_path, break_loss_at=4, log_every=100, eval_every=100)
  assert saved_steps(tmp_path) == []


@pytest.mark.parametrize("step", [0, 5])
def test_a_validation_loss_that_is_not_finite_stops_the_run(tmp_path, step):
  with pytest.raises(FloatingPointError, match=f"step {step}: validation/loss is inf"):
    run_toy(tmp_path, break_validation_at=step)
  written = lines(tmp_path) if (tmp_path / "metrics.jsonl").exists() else []
  assert [line["step"] for line in written] == [0, 2, 4][:step]


def test_only_guarded_numbers_stop_the_run():
  loop.check_finite(1, {"rollout/other": math.nan, "train/loss": 1.0}, ("train/loss", "absent"))
  with pytest.raises(FloatingPointError, match="step 9: train/grad_norm is -inf"):
    loop.check_finite(9, {"train/grad_norm": -math.inf}, ("train/grad_norm",))


# ----------------------------------------------------------------------------- SIGTERM


def terminate_at(wanted: int):
  def before_step(step):
    if step == wanted:
      os.kill(os.getpid(), signal.SIGTERM)

  return before_step


@pytest.mark.parametrize("step", [1, 3, 5, 8, TOTAL])
def test_sigterm_saves_that_step_and_exits_with_143(tmp_path, capsys, step):
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  run_toy(whole)
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(SystemExit) as stopped:
    run_toy(broken, before_step=terminate_at(step))
  assert stopped.value.code == 143
  assert signal.getsignal(signal.SIGTERM) is before
  assert saved_steps(broken)[-1] == step
  assert f"toy: SIGTERM; saved step {step}, run the same command" in capsys.readouterr().out
  run_toy(broken)
  assert lines(broken) == lines(whole)


def test_sigterm_does_not_save_what_is_not_finite(tmp_path):
  with pytest.raises(FloatingPointError, match="step 3: train/loss is nan"):
    run_toy(tmp_path, before_step=terminate_at(3), break_loss_at=3, log_every=100, eval_every=100)
  assert saved_steps(tmp_path) == []


def test_sigterm_after_the_last_step_starts_nothing_else(tmp_path):
  """It comes in the last evaluation: what would follow, an export or a stage, waits as well."""

  class Evaluated(list):
    def append(self, step):
      if step == TOTAL:
        os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(SystemExit) as stopped:
    run_toy(tmp_path, evaluated=Evaluated())
  assert stopped.value.code == 143
  assert saved_steps(tmp_path)[-1] == TOTAL


def test_sigterm_between_two_lines_of_the_loop_still_saves_the_next_step(tmp_path):
  """It comes after the loop has looked: that step's numbers are not made, so it is the next's."""

  def after_step(state, step):
    del state
    if step == 3:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(SystemExit):
    run_toy(tmp_path, after_step=after_step, log_every=100, eval_every=100, save_every=100)
  assert saved_steps(tmp_path) == [4]


def test_outside_the_main_thread_the_flag_is_never_set():
  found = []

  def use():
    with loop.stop_question() as asked_to_stop:
      found.append(asked_to_stop())

  thread = threading.Thread(target=use)
  thread.start()
  thread.join()
  assert found == [False]
