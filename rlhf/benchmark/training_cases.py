"""Cases of our side that train one network: a step of SFT, and of the reward model."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rlhf import loop, reward_model, sft, sharding, training
from rlhf import metrics as metrics_lib
from rlhf import optim as optim_lib
from rlhf.benchmark import inputs, random_networks
from rlhf.benchmark.job import Case, Job, Work
from rlhf.data import batches as batches_lib
from rlhf.model import flops
from rlhf.model.architecture import ModelConfig
from rlhf.optim import OptimConfig
from rlhf.types import ComparisonBatch, LmBatch

_NUM_STEPS = 1000  # over which schedules decay
TRAINED = 3  # forward passes that one with its backward pass is counted as


def check_whole(config) -> None:
  """Raises ValueError where the config trains adapters."""
  if config.lora.rank:
    raise ValueError(
      f"config.lora.rank is {config.lora.rank}; the benchmark trains whole networks, use 0"
    )


def lm_rows(job: Job, num_rows: int, length: int, *, stream: int) -> LmBatch:
  """Full rows of text, each a document of its own."""
  shape = (num_rows, length)
  rows: Any = dict(
    tokens_BT=inputs.tokens(job, *shape, stream=stream),
    loss_mask_BT=np.broadcast_to(np.arange(length) > 0, shape).astype(np.float32),
    segment_BT=np.ones(shape, np.int32),
    position_BT=np.broadcast_to(np.arange(length, dtype=np.int32), shape),
  )
  return LmBatch(**rows)


def _train_step(
  config,
  cfg: ModelConfig,
  params,
  update: Callable,
  next_batch: Callable[[int], Any],
  batch_size: int,
  work: Callable[[Any], Work],
  kind: str,
) -> Case:
  """One optimizer step a run, as `training.train_network` makes it.

  Args:
    update: (tx, state, batch, key) -> (state, metrics).
    next_batch: step -> a batch on the host.
    work: a batch on the host -> what the step does.
    kind: "policy" or "reward".
  """
  mesh = training.groups(config).mesh
  tx = optim_lib.make_optimizer(OptimConfig(**config.optim), _NUM_STEPS)
  init = functools.partial(optim_lib.init_train_state, tx)
  with jax.set_mesh(mesh):
    state, layout = training.place(mesh, init, params)
  update = jax.jit(functools.partial(update, tx), donate_argnums=0, out_shardings=(layout, None))
  model = random_networks.describe(cfg, params)
  kept: dict[str, Any] = dict(state=state, step=0, params=params)
  del params, state

  def run(given: Mapping[str, Any]) -> Work:
    del given
    kept.pop("params", None)  # they are for the export alone
    began = time.perf_counter()
    step = kept["step"]
    rows = next_batch(step)
    with jax.set_mesh(mesh):
      batch = sharding.put_batch(mesh, rows, batch_size)
      key = loop.step_key(config.seed, "train", step)
      called = time.perf_counter()
      state, metrics = update(kept["state"], batch, key)
      jax.block_until_ready((state, metrics))
    updated = time.perf_counter() - called
    kept.update(state=state, step=step + 1)
    metrics_lib.summarise(metrics)
    seconds = dict(update=updated, host=time.perf_counter() - began - updated)
    return dataclasses.replace(work(rows), seconds=seconds)

  def export(directory: str) -> None:
    random_networks.export(cfg, kept["params"], kind, directory)

  return Case(model=model, run=run, export=export)


def sft_step(job: Job, config) -> Case:
  """`sft.sft_update` on full rows of text."""
  sft.check_config(config)
  check_whole(config)
  p, mesh = sft.SftConfig(**config.sft), training.groups(config).mesh
  cfg, params = random_networks.policy(job, config, mesh)
  rows = lm_rows(job, inputs.NUM_BATCHES * p.batch_size, config.length, stream=3)
  batches = batches_lib.Batches(
    rows,
    batch_size=p.batch_size,
    seed=job.seed,
    share=sharding.local_rows(mesh, p.batch_size),
  )
  num_tokens = p.batch_size * config.length
  forward = flops.forward_flops(cfg, p.batch_size, config.length, num_logits=config.length)
  return _train_step(
    config,
    cfg,
    params,
    functools.partial(sft.sft_update, cfg, p, use_segments=False),
    loop.Stream(batches),
    p.batch_size,
    lambda rows: Work(tokens=num_tokens, useful_tokens=num_tokens, flops=TRAINED * forward),
    "policy",
  )


def rm_step(job: Job, config) -> Case:
  """`reward_model.reward_update` on prompts with K ranked completions each."""
  reward_model.check_config(config)
  check_whole(config)
  p, length = reward_model.RewardConfig(**config.reward), config.length
  cfg, params = random_networks.reward(job, config, training.groups(config).mesh)
  tokens_BKT, mask_BKT, rank_BK = inputs.comparisons(job, p.batch_size, job.completions, length)
  batch = ComparisonBatch(
    tokens_BKT=tokens_BKT, mask_BKT=mask_BKT, rank_BK=rank_BK, valid_BK=np.ones_like(rank_BK)
  )
  forward = flops.forward_flops(cfg, p.batch_size * job.completions, length, num_logits=0)
  work = Work(tokens=mask_BKT.size, useful_tokens=int(mask_BKT.sum()), flops=TRAINED * forward)
  return _train_step(
    config,
    cfg,
    params,
    functools.partial(reward_model.reward_update, cfg, p),
    lambda step: batch,
    p.batch_size,
    lambda rows: work,
    "reward",
  )
