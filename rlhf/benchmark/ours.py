"""Our side: each case through the functions that `rlhf train` and the other commands run."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf import networks, ppo_setup, processes, sharding, training
from rlhf.benchmark import inputs, measure
from rlhf.benchmark.job import Case, Job, Work
from rlhf.inference import sampling
from rlhf.model import flops, transformer
from rlhf.model.architecture import ModelConfig
from rlhf.ppo_setup import PpoConfig
from rlhf.types import Params, PromptBatch

_MATMUL_SIZE = {"cpu": 2048}  # rows of a square matrix; accelerators take more to fill
_LARGE_MATMUL = 8192
_COPY_BYTES = 2**28
_CEILING_REPEATS = 5


def make(job: Job) -> Case:
  """The case with its network and inputs; raises ValueError as the checks of its config."""
  # `workdir.plain` leaves dicts and lists, which the dataclasses of config groups take as they are.
  import ml_collections

  return _MAKERS[job.case](job, ml_collections.ConfigDict(job.config))


def describe() -> dict[str, Any]:
  """Of the libraries and the device."""
  device = jax.devices()[0]
  return dict(
    platform=device.platform,
    device=device.device_kind,
    num_devices=jax.device_count(),
    num_cores=measure.num_cores(),
    versions=dict(jax=jax.__version__),
  )


def peak_device_bytes() -> int | None:
  """The largest peak of a device's memory; None where the device does not count it."""
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
  found = [peak for peak in peaks if peak is not None]
  return max(found) if found else None


def ceilings() -> dict[str, float]:
  """The best of several runs on one device: a square float32 matmul, and a copy (read + write)."""
  size = _MATMUL_SIZE.get(jax.default_backend(), _LARGE_MATMUL)
  square = jnp.ones((size, size))
  array = jnp.ones(_COPY_BYTES // 4)
  matmul = jax.jit(jnp.matmul)
  copy = jax.jit(lambda x: x + 1)

  def best(function: Callable[[], Any]) -> float:
    jax.block_until_ready(function())
    return min(
      measure.timed(lambda: jax.block_until_ready(function()))[1] for _ in range(_CEILING_REPEATS)
    )

  return dict(
    matmul_flops_per_second=2 * size**3 / best(lambda: matmul(square, square)),
    copy_bytes_per_second=2 * _COPY_BYTES / best(lambda: copy(array)),
  )


# ----------------------------------------------------------------------------- networks


def _policy(job: Job, config, mesh: Mesh) -> tuple[ModelConfig, Params]:
  """A network with random weights, each leaf made in its layout."""
  cfg = dataclasses.replace(
    networks.configured(config), vocab_size=job.vocab_size + 1, pad_id=job.pad_id
  )
  init = functools.partial(transformer.init_params, cfg)
  key = jax.random.key(job.seed)
  layout = sharding.param_shardings(mesh, jax.eval_shape(init, key))
  return cfg, jax.jit(init, out_shardings=layout)(key)


def _model(cfg: ModelConfig, params: Params) -> dict[str, Any]:
  """What a report says of a network."""
  return dict(
    num_layers=cfg.num_layers,
    width=cfg.width,
    num_heads=cfg.num_heads,
    vocab_size=cfg.vocab_size - 1,
    layer_pattern=",".join(cfg.layer_kinds),
    dtype=cfg.compute.dtype,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    block_parameters=cfg.num_block_params,
  )


# ----------------------------------------------------------------------------- generate


def _generate(job: Job, config) -> Case:
  """`sampling.generate` on a batch of prompts, as a rollout of PPO calls it."""
  ppo_setup.check_config(config)
  p, mesh = PpoConfig(**config.ppo), training.groups(config).mesh
  cfg, params = _policy(job, config, mesh)
  tokens_BP, mask_BP = inputs.prompts(job, p.batch_size, p.max_prompt_tokens)
  ends_V = None
  if job.end_share:
    ends_V = np.zeros(cfg.padded_vocab_size, bool)
    ends_V[: job.vocab_size] = inputs.ending_tokens(job)
  generate = jax.jit(
    functools.partial(
      sampling.generate,
      cfg,
      eot_id=job.eot_id,
      max_new_tokens=p.max_response_tokens,
      temperature=p.temperature,
    )
  )

  def run(given: Mapping[str, Any]) -> Work:
    del given
    began = time.perf_counter()
    with jax.set_mesh(mesh):
      prompts = sharding.put_batch(mesh, PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP))
      key_B = sampling.row_keys(jax.random.key(job.seed), 0, p.batch_size)
      called = time.perf_counter()
      generation = jax.block_until_ready(generate(params, prompts, key_B, end_V=ends_V))
      rollout = time.perf_counter() - called
      lengths_B = processes.to_host(generation.mask_BR).sum(axis=1).astype(int)
    num_steps = int(lengths_B.max())
    return Work(
      tokens=p.batch_size * num_steps,
      useful_tokens=int(lengths_B.sum()),
      flops=flops.generate_flops(cfg, p.batch_size, p.max_prompt_tokens, num_steps),
      least_bytes=_decoding_bytes(cfg, p.batch_size, p.max_prompt_tokens, num_steps),
      seconds=dict(rollout=rollout, host=time.perf_counter() - began - rollout),
      given=dict(lengths=lengths_B.tolist()),
    )

  return Case(model=_model(cfg, params), run=run)


def _decoding_bytes(cfg: ModelConfig, num_rows: int, prompt_length: int, num_steps: int) -> float:
  """Bytes that decoding must read: at each step the blocks, the output matrix in float32, and the
  keys and values of the tokens before it."""
  assert cfg.num_kv_heads is not None and cfg.head_size is not None
  itemsize = jnp.dtype(cfg.compute.dtype).itemsize
  weights = cfg.num_block_params * itemsize + 4 * cfg.padded_vocab_size * cfg.width
  slot = 2 * cfg.num_layers * cfg.num_kv_heads * cfg.head_size * itemsize
  slots = num_steps * prompt_length + num_steps * (num_steps + 1) / 2
  return num_steps * weights + num_rows * slots * slot


_MAKERS = {
  "generate": _generate,
}
