"""Random inputs of both sides: numpy alone, the same in every process for the same seed."""

from typing import Any

import numpy as np

from rlhf.benchmark.job import Job


def generator(job: Job, stream: int) -> np.random.Generator:
  """Random numbers of one kind of input."""
  return np.random.default_rng((job.seed, stream))


def tokens(job: Job, *shape: int, stream: int) -> np.ndarray:
  """Token ids, int32; neither end-of-text nor padding."""
  found = generator(job, stream).integers(0, job.eot_id, shape)
  return found.astype(np.int32)


def prompts(job: Job, num_rows: int, length: int) -> tuple[Any, Any]:
  """Left-padded prompts of half to all of `length` tokens: (tokens_BP, mask_BP)."""
  lengths_B = generator(job, 0).integers(max(length // 2, 1), length + 1, num_rows)
  mask_BP = np.arange(length)[None] >= length - lengths_B[:, None]
  tokens_BP = np.where(mask_BP, tokens(job, num_rows, length, stream=1), job.pad_id)
  return tokens_BP.astype(np.int32), mask_BP.astype(np.float32)


def ending_tokens(job: Job) -> np.ndarray:
  """Bool over the vocabulary: the share of tokens that end a response besides end-of-text."""
  return generator(job, 2).random(job.vocab_size) < job.end_share
