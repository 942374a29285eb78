"""The case of our side that saves and restores what a training run checkpoints."""

import functools
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax

from rlhf import optim, ppo_setup, training
from rlhf.benchmark import random_networks
from rlhf.benchmark.job import Case, Job, Work
from rlhf.checkpoint import Checkpoints
from rlhf.model import lora
from rlhf.optim import OptimConfig
from rlhf.ppo_setup import Models, PpoConfig


def checkpoint(job: Job, config) -> Case:
  """Save and restore of the state of the config's algorithm, in the directory for temporary files."""
  groups = training.groups(config)
  make = random_networks.reward if config.kind == "reward_model" else random_networks.policy
  cfg, params = make(job, config, groups.mesh)
  model = random_networks.describe(cfg, params)
  init: Any
  arguments: tuple[Any, ...] = (params,)
  if config.kind == "ppo":
    reward, reward_params = random_networks.reward(job, config, groups.mesh)
    p = PpoConfig(**config.ppo)
    tx, _ = ppo_setup.make_optimizer(config, p)
    models = Models(policy=cfg, reward=reward)
    init = functools.partial(ppo_setup.init_state, models, p, tx, lora_cfg=groups.lora)
    arguments = (params, reward_params, jax.random.key(job.seed))
  else:
    trained = lora.split(groups.lora, params, jax.random.key(job.seed))[1]
    init = functools.partial(
      optim.init_train_state, optim.make_optimizer(OptimConfig(**config.optim), 1)
    )
    arguments = (trained,)
  with jax.set_mesh(groups.mesh):
    state, _ = training.place(groups.mesh, init, *arguments)
  del params, arguments
  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  shapes = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
  )

  def run(given: Mapping[str, Any]) -> Work:
    del given
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
      with Checkpoints(pathlib.Path(folder) / "checkpoints", groups.checkpoint) as checkpoints:
        began = time.perf_counter()
        checkpoints.save(1, state, metadata={})
        seconds["save, until training goes on"] = time.perf_counter() - began
        checkpoints.wait()
        seconds["save, until it is written"] = time.perf_counter() - began
        began = time.perf_counter()
        jax.block_until_ready(checkpoints.restore(shapes)[0])
        seconds["restore"] = time.perf_counter() - began
    return Work(seconds=seconds, amount=num_bytes, unit="bytes")

  return Case(model=model, run=run)
