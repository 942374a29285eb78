"""Our side: each case through the functions that `rlhf train` and the other commands run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from rlhf.benchmark import checkpoint_case, inference_cases, measure, ppo_case, training_cases
from rlhf.benchmark.job import Case, Job

_MATMUL_SIZE = {"cpu": 2048}  # rows of a square matrix; accelerators take more to fill
_LARGE_MATMUL = 8192
_COPY_BYTES = 2**28
_CEILING_REPEATS = 10
_MAKERS = {
  "generate": inference_cases.generate,
  "score": inference_cases.score,
  "sft_step": training_cases.sft_step,
  "rm_step": training_cases.rm_step,
  "ppo_iteration": ppo_case.ppo_iteration,
  "checkpoint": checkpoint_case.checkpoint,
}


def make(job: Job) -> Case:
  """The case with its network and inputs; raises ValueError as the checks of its config."""
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
