"""Optimizers and learning-rate schedules from `OptimConfig`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf import checks
from rlhf.types import Params, TrainState

SCHEDULES = {
  "constant": lambda cfg, steps: optax.constant_schedule(cfg.learning_rate),
  "cosine": lambda cfg, steps: optax.cosine_decay_schedule(
    cfg.learning_rate, steps, alpha=cfg.final_ratio
  ),
  "linear": lambda cfg, steps: optax.linear_schedule(
    cfg.learning_rate, cfg.learning_rate * cfg.final_ratio, steps
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
  """Adam with decoupled weight decay, a warm-up and a schedule.

  Attributes:
    learning_rate: the peak.
    schedule: what follows the warm-up: one of `SCHEDULES`.
    warmup_steps: linear warm-up, in optimizer steps.
    warmup_init_ratio: the warm-up starts at this fraction of the peak.
    final_ratio: "cosine" and "linear" end at this fraction of the peak.
    b1, b2, eps: Adam's; eps is added outside the square root of the bias-corrected second moment.
    weight_decay: on matrices and embeddings, never on biases and layer norms.
    max_grad_norm: global-norm clip of this network's gradient.
  """

  learning_rate: float
  schedule: str
  warmup_steps: int
  warmup_init_ratio: float
  final_ratio: float
  b1: float
  b2: float
  eps: float
  weight_decay: float
  max_grad_norm: float

  def __post_init__(self):
    checks.choices("", self, schedule=SCHEDULES)
    checks.above_zero("", self, "learning_rate", "eps", "max_grad_norm")
    checks.at_least("", self, warmup_steps=0, weight_decay=0)


def make_schedule(cfg: OptimConfig, total_steps: int) -> optax.Schedule:
  """Learning rate of optimizer step 0, 1, ...; the decay spans what the warm-up leaves."""
  after = SCHEDULES[cfg.schedule](cfg, max(total_steps - cfg.warmup_steps, 1))
  if cfg.warmup_steps == 0:
    return after
  warmup = optax.linear_schedule(
    cfg.learning_rate * cfg.warmup_init_ratio, cfg.learning_rate, cfg.warmup_steps
  )
  return optax.join_schedules([warmup, after], [cfg.warmup_steps])


def decay_mask(params: Params) -> Params:
  """True on matrices and embeddings: the leaves that weight decay may shrink."""

  def decays(path, _):
    return str(path[-1].key) not in ("bias", "scale")

  return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(cfg: OptimConfig, total_steps: int) -> optax.GradientTransformation:
  """Clip by global norm, then Adam(W) under the schedule."""
  schedule = make_schedule(cfg, total_steps)
  if cfg.weight_decay == 0.0:
    adam = optax.adam(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps)
  else:
    adam = optax.adamw(
      schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay, mask=decay_mask
    )
  return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), adam)


def per_network(
  transforms: dict[str, optax.GradientTransformation],
) -> optax.GradientTransformation:
  """One optimizer for a dict of networks: each has its own learning rate and its own clip."""

  def init(params):
    return {name: tx.init(params[name]) for name, tx in transforms.items()}

  def update(grads, state, params=None):
    updates, new_state = {}, {}
    for name, tx in transforms.items():
      updates[name], new_state[name] = tx.update(
        grads[name], state[name], None if params is None else params[name]
      )
    return updates, new_state

  return optax.GradientTransformation(init, update)


def accumulated_gradient(
  loss_fn: Callable[[Params, Any], tuple[Any, Any]], params: Params, microbatches: Any
) -> tuple[Params, Any]:
  """Gradient of the SUM of `loss_fn` over microbatches, and the sum of what it reports.

  Divide by whole-batch weights inside `loss_fn`: then any number of microbatches gives the same
  gradient, where a mean of means would not.

  Args:
    loss_fn: (params, microbatch) -> (scalar, metrics); metrics is a tree that adds up.
    microbatches: a tree whose leaves lead with the number of microbatches.
  """
  gradient = jax.grad(loss_fn, has_aux=True)
  if jax.tree.leaves(microbatches)[0].shape[0] == 1:
    return gradient(params, jax.tree.map(lambda x: x[0], microbatches))

  def add(carry, microbatch):
    return jax.tree.map(jnp.add, carry, gradient(params, microbatch)), None

  shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], microbatches))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, zeros, microbatches)[0]


def init_train_state(tx: optax.GradientTransformation, params: Params) -> TrainState:
  return TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params))


def apply_gradient(
  tx: optax.GradientTransformation, state: TrainState, grads: Params
) -> TrainState:
  """ONE optimizer step."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  return TrainState(
    step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
  )
