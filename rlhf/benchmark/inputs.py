"""Random inputs of both sides: numpy alone, the same in every process for the same seed."""

from typing import Any

import numpy as np

from rlhf.benchmark.job import Job

NUM_BATCHES = 4  # of data that a case goes through again and again


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


def sequences(job: Job, num_rows: int, length: int) -> list[Any]:
  """Token ids of rows of half to all of `length` tokens."""
  lengths_N = generator(job, 4).integers(max(length // 2, 1), length + 1, num_rows)
  tokens_NT = tokens(job, num_rows, length, stream=5)
  return [row[:size] for row, size in zip(tokens_NT, lengths_N, strict=True)]


def padded(job: Job, rows: list[Any], length: int) -> tuple[Any, Any]:
  """Rows of token ids, right-padded: (tokens_NT, mask_NT)."""
  tokens_NT = np.full((len(rows), length), job.pad_id, np.int32)
  mask_NT = np.zeros(tokens_NT.shape, np.float32)
  for row, ids in enumerate(rows):
    tokens_NT[row, : len(ids)] = ids
    mask_NT[row, : len(ids)] = 1
  return tokens_NT, mask_NT


def comparisons(job: Job, num_prompts: int, num_slots: int, length: int) -> tuple[Any, Any, Any]:
  """Ranked completions, right-padded, each of a rank of its own: (tokens_BKT, mask_BKT, rank_BK)."""
  shape = (num_prompts, num_slots, length)
  tokens_NT, mask_NT = padded(job, sequences(job, num_prompts * num_slots, length), length)
  order = generator(job, 6)
  rank_BK = np.stack([order.permutation(num_slots) + 1 for _ in range(num_prompts)])
  return tokens_NT.reshape(shape), mask_NT.reshape(shape), rank_BK.astype(np.int32)
