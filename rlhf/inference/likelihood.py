"""What a policy finds likely: held-out loss, and few-shot tasks by log-probability of the choices.

Both are the measures of the alignment tax (InstructGPT section 4.2 and appendix D).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf import processes, sharding
from rlhf.data import batches
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch, Metric, Params


@functools.partial(jax.jit, static_argnames=("cfg", "use_segments"))
def _lm_loss(cfg: ModelConfig, params: Params, batch: LmBatch, use_segments: bool) -> Metric:
  return transformer.lm_loss(cfg, params, batch, use_segments=use_segments)


def negative_log_likelihood(
  cfg: ModelConfig, params: Params, rows: LmBatch, *, batch_size: int, use_segments: bool
) -> float:
  """Mean over all weighted targets of `rows`, in nats per token; no average of averages."""
  total = Metric(total=jnp.float32(0), weight=jnp.float32(0))
  with sharding.on_mesh_of(params) as put:
    for batch, _ in batches.fixed_batches(rows, batch_size):
      total = total + _lm_loss(cfg, params, put(batch), use_segments)
  total, weight = processes.to_host((total.total, total.weight))
  return float(total) / float(weight)


@functools.partial(jax.jit, static_argnames=("cfg", "use_segments"))
def _loss_by_row(cfg: ModelConfig, params: Params, batch: LmBatch, use_segments: bool):
  logprob_BT = transformer.lm_logprobs(cfg, params, batch, use_segments=use_segments)
  return jnp.stack(
    [-jnp.sum(logprob_BT * batch.loss_mask_BT, axis=1), jnp.sum(batch.loss_mask_BT, axis=1)], axis=1
  )


def loss_by_row(
  cfg: ModelConfig, params: Params, rows: LmBatch, *, batch_size: int, use_segments: bool
) -> np.ndarray:
  """Sum of the loss over the weighted targets of each row, in nats, and their number: [N, 2].

  Of the column sums, the ratio is `negative_log_likelihood`; rows can be resampled.
  """
  parts = []
  with sharding.on_mesh_of(params) as put:
    for batch, valid_B in batches.fixed_batches(rows, batch_size):
      table_B2 = processes.to_host(_loss_by_row(cfg, params, put(batch), use_segments))
      parts.append(np.asarray(table_B2, np.float64)[valid_B > 0])
  return np.concatenate(parts)


@functools.partial(jax.jit, static_argnames=("cfg",))
def _choice_logprob(cfg: ModelConfig, params: Params, tokens_BT, mask_BT, choice_mask_BT):
  logprob_BT, _ = transformer.policy_logprobs(cfg, params, tokens_BT, mask_BT, temperature=1.0)
  return jnp.sum(logprob_BT * choice_mask_BT, axis=1) / jnp.maximum(
    jnp.sum(choice_mask_BT, axis=1), 1.0
  )


def few_shot_accuracy(
  cfg: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  items: Sequence[dict],
  *,
  delimiter: str,
  batch_size: int,
) -> float:
  """Share of items that `few_shot_correct` finds right; takes and raises the same."""
  return float(
    np.mean(
      few_shot_correct(cfg, params, tokenizer, items, delimiter=delimiter, batch_size=batch_size)
    )
  )


def few_shot_correct(
  cfg: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  items: Sequence[dict],
  *,
  delimiter: str,
  batch_size: int,
) -> list[bool]:
  """Whether each item's right choice has the highest mean log-probability per token.

  Source: InstructGPT appendix D, which scores multiple-choice tasks so at temperature 1.

  Args:
    items: {"prompt": str, "choices": [str, ...], "answer": index}.
    delimiter: stands between prompt and choice, and is part of the choice's first token: a space
      where words are written apart, or the choices would be read as unfinished words.
    batch_size: (prompt, choice) rows at once.

  Raises:
    ValueError: an item does not fit into the context.
  """
  sequences, num_prompt, owner = [], [], []
  for index, item in enumerate(items):
    prompt = [*tokenizer.prefix_ids, *tokenizer.encode(item["prompt"])]
    for choice in item["choices"]:
      sequences.append(prompt + tokenizer.encode(delimiter + choice, continues=True))
      num_prompt.append(len(prompt))
      owner.append(index)
  longest = max(len(ids) for ids in sequences)
  if longest > cfg.context_length:
    raise ValueError(
      f"a few-shot item has {longest} tokens and the context {cfg.context_length}; use fewer shots"
    )
  num_rows = -(-len(sequences) // batch_size) * batch_size
  tokens_BT = np.full((num_rows, longest), cfg.pad_id, np.int32)
  mask_BT = np.zeros((num_rows, longest), np.float32)
  choice_mask_BT = np.zeros((num_rows, longest), np.float32)
  for row, (ids, start) in enumerate(zip(sequences, num_prompt, strict=True)):
    tokens_BT[row, : len(ids)] = ids
    mask_BT[row, : len(ids)] = 1
    choice_mask_BT[row, start : len(ids)] = 1
  with sharding.on_mesh_of(params) as put:
    logprob_B = np.concatenate(
      [
        processes.to_host(
          _choice_logprob(
            cfg,
            params,
            *put(tuple(x[i : i + batch_size] for x in (tokens_BT, mask_BT, choice_mask_BT))),
          )
        )
        for i in range(0, num_rows, batch_size)
      ]
    )
  best, chosen = {}, {}
  for row, index in enumerate(owner):
    if index not in best or logprob_B[row] > best[index]:
      best[index] = logprob_B[row]
      chosen[index] = row - owner.index(index)
  return [chosen[i] == item["answer"] for i, item in enumerate(items)]
