"""The one training loop: restore, step, log, evaluate, checkpoint, stop on SIGTERM.

Of several processes each runs it; they take the same decisions, because every number that decides
is replicated over all devices, and stop at the same step, whichever of them SIGTERM reached.

Randomness: `step_key(seed, purpose, step)` folds the purpose and the step into the seed; no key is
stored, so a resumed run draws what the uninterrupted one would have drawn.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rlhf import checkpoint, checks, processes
from rlhf import metrics as metrics_lib
from rlhf.checkpoint import Checkpoints

# The streams of random numbers; a new one goes at the end, so that the others keep their draws.
PURPOSES = ("init", "train", "validate", "rollout", "head", "answer", "value", "lora")


def step_key(seed: int, purpose: str, step: int):
  """The key of one purpose at one step.

  Raises:
    ValueError: an unknown purpose.
  """
  if purpose not in PURPOSES:
    raise ValueError(f"purpose {purpose!r}; choose from {PURPOSES}")
  return _step_key(seed, PURPOSES.index(purpose), step)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step_key(seed: int, purpose: int, step):
  return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), step)


# Where runs in this context write a profile; None for nowhere.
_PROFILES: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar(
  "profiles", default=None
)
# The steps of a profile, counted from the start: the ones before them compile.
_FIRST_TRACED, _LAST_TRACED = 3, 5


@contextlib.contextmanager
def profiled(directory: str | os.PathLike | None):
  """Inside, every `run` writes a trace of its third to fifth step under DIRECTORY/NAME.

  XProf and TensorBoard's profile plugin read it; its names are the scopes of the code, such as
  rollout/decode and update/ptx.

  Args:
    directory: None for no trace.
  """
  token = _PROFILES.set(None if directory is None else pathlib.Path(directory))
  try:
    yield
  finally:
    _PROFILES.reset(token)


class Preempted(SystemExit):
  """SIGTERM arrived; the state was saved.  The exit status is the shell's 128 + 15."""

  def __init__(self):
    super().__init__(143)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """When the loop looks up from training.

  Attributes:
    log_every: steps between lines of `metrics.jsonl`.
    eval_every: steps between evaluations, which also run before the first and after the last.
  """

  log_every: int
  eval_every: int

  def __post_init__(self):
    checks.at_least("loop", self, log_every=1, eval_every=1)


@contextlib.contextmanager
def stop_question():
  """A function that says whether the run should save and stop; asked once a step.

  SIGTERM does not end the process meanwhile.  Elsewhere than in the main thread signals cannot be
  caught, and the answer of a single process is always no.
  """
  if processes.count() > 1:
    yield processes.stop_question()
    return
  flag = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield flag.is_set
    return
  before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
  try:
    yield flag.is_set
  finally:
    signal.signal(signal.SIGTERM, before)


def check_finite(step: int, numbers: Mapping[str, float], guarded: tuple[str, ...]) -> None:
  """Stops a run whose loss or gradient is no number any more.

  Raises:
    FloatingPointError: names the step and the quantity.
  """
  for name in guarded:
    if name in numbers and not math.isfinite(numbers[name]):
      raise FloatingPointError(
        f"step {step}: {name} is {numbers[name]}; the run stops here, its last checkpoint is "
        "from before; try a lower learning rate or look at the batch of this step"
      )


def _freed(state):
  """The shapes and layouts of `state`, whose arrays are deleted: two states may not fit."""
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=checkpoint.layout(x)), state
  )
  jax.tree.map(lambda x: x.delete(), state)
  return shapes


class Stream:
  """Batches in order of step, prefetched; a jump (after a restore) starts a new iterator."""

  def __init__(self, batches):
    self._batches, self._next, self._iterator = batches, None, None

  def __call__(self, step: int):
    if step != self._next:
      self._iterator, self._next = self._batches.iterate(step), step
    self._next += 1
    return next(self._iterator)


def run(
  *,
  name: str,
  workdir: str | os.PathLike,
  cfg: LoopConfig,
  checkpoints: Checkpoints,
  state: Any,
  total_steps: int,
  train_step: Callable[[Any, int], tuple[Any, Mapping[str, Any]]],
  evaluate: Callable[[Any, int], Mapping[str, float]],
  after_step: Callable[[Any, int], None] | None = None,
  tokens_per_step: int,
  headline: tuple[str, ...],
  guarded: tuple[str, ...],
  metadata: Mapping[str, Any],
) -> Any:
  """Trains from the newest checkpoint, or from `state`, to `total_steps`.

  Step s is the s-th call of `train_step`, counted from 1; the line `step: 0` of `metrics.jsonl`
  holds the evaluation before the first.  Every line is a function of (config, step) but for the
  keys that the clock decides, so an interrupted run writes the lines of an uninterrupted one.

  Args:
    train_step: (state, steps done before) -> (state, metrics); it may donate the state.
    evaluate: (state, steps done) -> numbers; joins the line of its step.
    after_step: (state, steps done) -> None; for exports at chosen steps.
    headline: metrics that the progress line shows.
    guarded: metrics that must be finite.
    metadata: what every checkpoint remembers beside the state.

  Returns:
    the state after `total_steps`.

  Raises:
    FloatingPointError: a guarded metric is not finite.
    Preempted: SIGTERM; the state has been saved.
  """
  workdir = pathlib.Path(workdir)
  first = 0
  if checkpoints.latest() is not None:
    state, saved = checkpoints.restore(_freed(state))  # lands where `state` lay
    first = saved["step"]

  with (
    stop_question() as asked_to_stop,
    metrics_lib.Writer(workdir) as writer,
    metrics_lib.Progress(name, total_steps, start=first) as progress,
    contextlib.ExitStack() as trace,
  ):
    # The line of step `first` was written before its checkpoint; later ones are from a lost future.
    writer.truncate_after(first if first else -1)
    if first:
      progress.note(f"{name}: goes on from step {first} of {total_steps}")
    else:
      numbers = evaluate(state, 0)
      check_finite(0, numbers, guarded)
      writer.write(0, numbers)

    profiles, stops = _PROFILES.get(), False
    if profiles is not None and total_steps < first + _FIRST_TRACED:
      progress.note(f"{name}: no profile: it begins at step {first + _FIRST_TRACED}")
    for step in range(first + 1, total_steps + 1):
      if profiles is not None and step == first + _FIRST_TRACED:
        jax.block_until_ready(state)
        trace.enter_context(jax.profiler.trace(profiles / name))
      began = time.perf_counter()
      with jax.profiler.StepTraceAnnotation(name, step_num=step):
        state, metrics = train_step(state, step - 1)
      if step == first + _LAST_TRACED:
        jax.block_until_ready(state)
        trace.close()
      last, save = step == total_steps, checkpoints.due(step)
      evaluates = last or step % cfg.eval_every == 0
      stops = asked_to_stop()  # once: the signal may come between two lines
      if evaluates or save or stops or step % cfg.log_every == 0:
        numbers = metrics_lib.summarise(metrics)
        check_finite(step, numbers, guarded)
        if evaluates:
          numbers |= evaluate(state, step)
          check_finite(step, numbers, guarded)
        progress.update(
          step,
          {key: numbers[key] for key in headline if key in numbers},
          num_tokens=tokens_per_step,
        )
        if evaluates or step % cfg.log_every == 0:
          timing = {"perf/seconds": time.perf_counter() - began}
          if math.isfinite(progress.tokens_per_second):  # not at the first step, which compiles
            timing["perf/tokens_per_second"] = progress.tokens_per_second
          writer.write(step, numbers | timing)
      else:
        progress.update(step, {}, num_tokens=tokens_per_step)
      if after_step is not None:
        after_step(state, step)
      if save or last or stops:
        checkpoints.save(step, state, metadata=dict(metadata, step=step), metrics=numbers)
      if stops:
        break
    checkpoints.wait()
    # Also where it came after the last step: what follows is not started.
    if stops or asked_to_stop():
      progress.note(
        f"{name}: SIGTERM; saved step {checkpoints.latest()}, run the same command to go on"
      )
      raise Preempted()
  return state
