"""Cases of our side without training: sampling, and scores of a reward model."""

import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf import ppo_setup, processes, reward_model, sharding, training
from rlhf.benchmark import inputs, random_networks
from rlhf.benchmark.job import Case, Job, Work
from rlhf.inference import rewards, sampling
from rlhf.model import flops
from rlhf.model.architecture import ModelConfig
from rlhf.ppo_setup import PpoConfig
from rlhf.types import PromptBatch


def generate(job: Job, config) -> Case:
  """`sampling.generate` on a batch of prompts, as a rollout of PPO calls it."""
  ppo_setup.check_config(config)
  p, mesh = PpoConfig(**config.ppo), training.groups(config).mesh
  cfg, params = random_networks.policy(job, config, mesh)
  tokens_BP, mask_BP = inputs.prompts(job, p.batch_size, p.max_prompt_tokens)
  ends_V = None
  if job.end_share:
    ends_V = np.zeros(cfg.padded_vocab_size, bool)
    ends_V[: job.vocab_size] = inputs.ending_tokens(job)
  sample = jax.jit(
    functools.partial(
      sampling.generate,
      cfg,
      eot_id=job.eot_id,
      max_new_tokens=p.max_response_tokens,
      temperature=p.temperature,
      num_slots=p.num_slots,
    )
  )

  def run(given: Mapping[str, Any]) -> Work:
    del given
    began = time.perf_counter()
    with jax.set_mesh(mesh):
      prompts = sharding.put_batch(mesh, PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP))
      key_B = sampling.row_keys(jax.random.key(job.seed), np.arange(p.batch_size))
      called = time.perf_counter()
      generation = jax.block_until_ready(sample(params, prompts, key_B, end_V=ends_V))
      rollout = time.perf_counter() - called
      lengths_B = processes.to_host(generation.mask_BR).sum(axis=1).astype(int)
    # Steps of a row: to the end of the longest, or on average where slots are refilled.
    num_batches = p.batch_size // p.num_slots
    num_steps = int(lengths_B.max()) if num_batches == 1 else round(lengths_B.mean())
    least_bytes = _decoding_bytes(cfg, p.num_slots, p.max_prompt_tokens, num_steps)
    return Work(
      tokens=p.batch_size * num_steps,
      useful_tokens=int(lengths_B.sum()),
      flops=flops.generate_flops(cfg, p.batch_size, p.max_prompt_tokens, num_steps),
      least_bytes=num_batches * least_bytes,
      seconds=dict(rollout=rollout, host=time.perf_counter() - began - rollout),
      given=dict(lengths=lengths_B.tolist()),
    )

  return Case(
    model=random_networks.describe(cfg, params),
    run=run,
    export=functools.partial(random_networks.export, cfg, params, "policy"),
  )


def _decoding_bytes(cfg: ModelConfig, num_rows: int, prompt_length: int, num_steps: int) -> float:
  """Bytes that decoding must read: at each step the blocks, the output matrix in float32, and the
  keys and values of the tokens before it."""
  assert cfg.num_kv_heads is not None and cfg.head_size is not None
  itemsize = jnp.dtype(cfg.compute.dtype).itemsize
  weights = cfg.num_block_params * itemsize + 4 * cfg.padded_vocab_size * cfg.width
  slot = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_size * itemsize
  slots = num_steps * prompt_length + num_steps * (num_steps + 1) / 2
  return num_steps * weights + num_rows * slots * slot


def score(job: Job, config) -> Case:
  """`rewards.score_rows` on `reward.batch_size` x completions sequences, as `rlhf score` calls it."""
  reward_model.check_config(config)
  batch_size, length = config.reward.batch_size, config.length
  cfg, params = random_networks.reward(job, config, training.groups(config).mesh)
  sequences = inputs.sequences(job, batch_size * job.completions, length)
  num_tokens = sum(map(len, sequences))

  def run(given: Mapping[str, Any]) -> Work:
    del given
    began = time.perf_counter()
    rewards.score_rows(cfg, params, sequences, length=length, batch_size=batch_size)
    return Work(
      tokens=len(sequences) * length,
      useful_tokens=num_tokens,
      flops=flops.forward_flops(cfg, len(sequences), length, num_logits=0),
      seconds=dict(score=time.perf_counter() - began),
    )

  return Case(
    model=random_networks.describe(cfg, params),
    run=run,
    export=functools.partial(random_networks.export, cfg, params, "reward"),
  )
