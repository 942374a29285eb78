"""Scores of a reward model: one scalar per completion.  `rlhf/reward_model.py` trains it."""

from collections.abc import Sequence

import jax
import numpy as np

from rlhf import processes, sharding
from rlhf.data import batches as batches_lib
from rlhf.data import prepare
from rlhf.inference import row_batches
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.types import ComparisonBatch, Params

_scores = jax.jit(transformer.scores, static_argnames=("cfg",))


def score_completions(cfg: ModelConfig, params: Params, batch: ComparisonBatch):
  """Rewards [B, K]: one forward pass per completion, not one per pair."""
  num_prompts, num_slots, length = batch.tokens_BKT.shape
  flat = lambda x: x.reshape(num_prompts * num_slots, length)
  score = transformer.scores(cfg, params, flat(batch.tokens_BKT), flat(batch.mask_BKT))
  return score.reshape(num_prompts, num_slots)


_completion_scores = jax.jit(score_completions, static_argnames=("cfg",))


def score_rows(
  cfg: ModelConfig, params: Params, ids: Sequence[Sequence[int]], *, length: int, batch_size: int
) -> np.ndarray:
  """Rewards [N] of token sequences (prompt + response), padded to one shape on the way."""
  scores = []
  for start in range(0, len(ids), batch_size):
    part = ids[start : start + batch_size]
    tokens_BT = np.full((batch_size, length), cfg.pad_id, np.int32)
    mask_BT = np.zeros((batch_size, length), np.float32)
    mask_BT[:, 0] = 1  # filler rows read one pad; their scores are dropped
    for row, sequence in enumerate(part):
      tokens_BT[row, : len(sequence)] = sequence
      mask_BT[row, : len(sequence)] = 1
    with sharding.on_mesh_of(params) as put:
      score_B = processes.to_host(_scores(cfg, params, *put((tokens_BT, mask_BT))))
    scores.append(score_B[: len(part)])
  return np.concatenate(scores)


def score_sequences(
  network: Network, ids: Sequence[Sequence[int]], *, batch_size: int, name: str = "the reward model"
) -> np.ndarray:
  """`score_rows` of sequences of many lengths, the longest first, so that a few long ones do not
  pad all others and running out of memory fails at once.

  Raises:
    FloatingPointError: a score is not finite.
  """
  lengths = np.asarray([len(sequence) for sequence in ids])
  order, score_N = np.argsort(-lengths, kind="stable"), np.zeros(len(ids), np.float32)
  for start in range(0, len(ids), batch_size):
    places = order[start : start + batch_size]
    score_N[places] = score_rows(
      network.cfg,
      network.params,
      [ids[place] for place in places],
      length=row_batches.row_length(int(lengths[places[0]]), network.cfg.context_length),
      batch_size=batch_size,
    )
  if not np.isfinite(score_N).all():
    raise FloatingPointError(
      f"{int((~np.isfinite(score_N)).sum())} of {len(ids)} scores of {name} "
      "are not finite; its weights are broken, train it again"
    )
  return score_N


def score_comparisons(cfg: ModelConfig, params: Params, rows, *, batch_size: int):
  """(score_NK, rank_NK, valid_NK) of all rows as numpy arrays, one batch in memory at a time."""
  parts = []
  for batch, valid_B in batches_lib.fixed_batches(rows, batch_size):
    with sharding.on_mesh_of(params) as put:
      score_BK = processes.to_host(_completion_scores(cfg, params, put(batch)))
    assert isinstance(batch, ComparisonBatch)
    real = valid_B > 0
    parts.append((score_BK[real], batch.rank_BK[real], batch.valid_BK[real]))
  return tuple(np.concatenate(arrays) for arrays in zip(*parts))


def score_texts(
  network: Network,
  prompt_format: prepare.PromptFormat,
  texts: Sequence[tuple[str, str]],
  *,
  batch_size: int,
  name: str = "the reward model",
) -> np.ndarray:
  """Rewards [N] of (prompt, completion) in the training format, each with end-of-text.

  Completions that do not fit are cut to the context and counted on the console: encoded again, and
  with end-of-text, a completion can have more tokens than it was sampled with.

  Raises:
    ValueError: a prompt alone fills the context.
    FloatingPointError: a score is not finite.
  """
  sequences = prepare.tokenize_demonstrations(
    [{"prompt": prompt, "completion": text} for prompt, text in texts],
    network.tokenizer,
    prompt_format=prompt_format,
  )
  limit = network.cfg.context_length
  for (prompt, _), sequence in zip(texts, sequences, strict=True):
    if sequence.num_prompt >= limit:
      raise ValueError(
        f"the prompt {prompt[:40]!r}... has {sequence.num_prompt} tokens for "
        f"{name}, whose context is {limit}; leave it out"
      )
  num_cut = sum(len(sequence.ids) > limit for sequence in sequences)
  if num_cut:
    print(f"{num_cut} of {len(texts)} completions are cut to the context of {name}", flush=True)
  ids = [sequence.ids[:limit].tolist() for sequence in sequences]
  return score_sequences(network, ids, batch_size=batch_size, name=name)
