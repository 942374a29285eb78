"""Log-likelihoods under a policy: held-out loss, continuations of contexts, and few-shot choices.

Held-out loss and few-shot tasks measure the alignment tax (InstructGPT section 4.2, appendix D).
Contexts and continuations are read unchanged, with no prompt format around them.  Rows are
padded to few lengths, so that few programs are compiled; results do not depend on it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf import processes, sharding
from rlhf.data import batches
from rlhf.inference import row_batches
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
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


# ----------------------------------------------------------------------------- continuations


class LogLikelihood(float):
  """The log-probability of a continuation in nats, with its number of tokens.

  Attributes:
    num_tokens: tokens that the log-probability is summed over.
  """

  num_tokens: int

  def __new__(cls, logprob: float, num_tokens: int) -> "LogLikelihood":
    made = super().__new__(cls, logprob)
    made.num_tokens = num_tokens
    return made

  def __reduce__(self):
    return LogLikelihood, (float(self), self.num_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """A row that the model reads, and the requests that it serves.

  Continuations of one context that differ only in their last token share a row: "yes" and "no".
  """

  inputs: tuple[int, ...]  # all but the last token
  num_scored: int  # how many of the inputs belong to the continuation
  requests: list[int]
  last: list[int]  # of each request


def loglikelihoods(
  network: Network,
  pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
  *,
  batch_size: int,
  progress: row_batches.Progress = None,
) -> list[tuple[LogLikelihood, bool]]:
  """log p(continuation | context) of each pair, and whether greedy decoding would write it.

  Pairs that are too long lose tokens from the left: `context_length` + 1 are kept, because the
  model does not read the last one.

  Args:
    pairs: ids of (context, continuation); neither is empty.
    batch_size: rows at once; results do not depend on it.
    progress: called with (pairs done, pairs in total).

  Raises:
    ValueError: a context or a continuation is empty, or a continuation alone is too long.
  """
  rows = _shared_rows(pairs, network.cfg.context_length)
  found: dict[int, tuple[LogLikelihood, bool]] = {}
  for batch in row_batches.batches(rows, batch_size, length_of=lambda row: len(row.inputs)):
    logprob_BK, is_greedy_BK = _score_batch(network, batch, batch_size, len(rows))
    for row, logprob_K, is_greedy_K in zip(
      batch, logprob_BK, is_greedy_BK
    ):  # filler rows come last
      for place, request in enumerate(row.requests):
        num_tokens = len(pairs[request][1])
        found[request] = (LogLikelihood(logprob_K[place], num_tokens), bool(is_greedy_K[place]))
    if progress is not None:
      progress(len(found), len(pairs))
  return [found[request] for request in range(len(pairs))]


def _shared_rows(pairs, context_length: int) -> list[_Row]:
  rows: dict[tuple, _Row] = {}
  for request, (context, continuation) in enumerate(pairs):
    if not len(context) or not len(continuation):
      raise ValueError(
        f"pair {request} has {len(context)} context tokens and {len(continuation)} "
        "continuation tokens; both need at least one"
      )
    if len(continuation) > context_length:
      raise ValueError(
        f"continuation {request} has {len(continuation)} tokens and the model's "
        f"context {context_length}; cut it"
      )
    whole = [*context, *continuation][-(context_length + 1) :]
    row = _Row(inputs=tuple(whole[:-1]), num_scored=len(continuation) - 1, requests=[], last=[])
    row = rows.setdefault((row.inputs, row.num_scored), row)
    row.requests.append(request)
    row.last.append(whole[-1])
  return list(rows.values())


def _score_batch(network: Network, batch: Sequence[_Row], batch_size: int, num_rows: int):
  """(logprob_BK, is_greedy_BK) of rows, on the host; K is at least the most requests of a row."""
  num_filled = row_batches.num_rows(batch_size, num_rows)
  length = row_batches.row_length(max(len(row.inputs) for row in batch), network.cfg.context_length)
  num_scored = max(row.num_scored for row in batch)
  num_scored = min(row_batches.power_of_two(num_scored), length) if num_scored else 0
  num_last = row_batches.power_of_two(max(len(row.last) for row in batch))
  tokens_BT = np.full((num_filled, length), network.cfg.pad_id, np.int32)
  mask_BT = np.zeros((num_filled, length), np.float32)
  slot_BC = np.zeros((num_filled, num_scored), np.int32)
  target_BC = np.zeros((num_filled, num_scored), np.int32)
  valid_BC = np.zeros((num_filled, num_scored), np.float32)
  end_B = np.zeros((num_filled,), np.int32)
  last_BK = np.zeros((num_filled, num_last), np.int32)
  mask_BT[len(batch) :, 0] = 1  # a filler row needs a token too
  for b, row in enumerate(batch):
    end, count = len(row.inputs), row.num_scored
    tokens_BT[b, :end], mask_BT[b, :end] = row.inputs, 1
    # The hidden state of slot t predicts token t + 1.
    slot_BC[b, :count] = np.arange(end - 1 - count, end - 1)
    target_BC[b, :count], valid_BC[b, :count] = row.inputs[end - count :], 1
    end_B[b], last_BK[b, : len(row.last)] = end - 1, row.last
  with sharding.on_mesh_of(network.params) as put:
    arrays = put((tokens_BT, mask_BT, slot_BC, target_BC, valid_BC, end_B, last_BK))
    return processes.to_host(
      _score(network.cfg, network.params, *arrays, with_padding=_has_own_padding(network))
    )


def _has_own_padding(network: Network) -> bool:
  """Whether the padding token belongs to a published model's vocabulary and has a probability."""
  return "imported" in network.metadata and network.cfg.pad_id < network.tokenizer.vocab_size


@functools.partial(jax.jit, static_argnames=("cfg", "with_padding"))
def _score(
  cfg: ModelConfig,
  params: Params,
  tokens_BT,
  mask_BT,
  slot_BC,
  target_BC,
  valid_BC,
  end_B,
  last_BK,
  *,
  with_padding: bool,
):
  hidden_BTD = transformer.forward(cfg, params, tokens_BT, mask_BT)
  take = lambda slot_BC: jnp.take_along_axis(hidden_BTD, slot_BC[..., None], axis=1)

  def logprobs(hidden_BcD):
    logits_BcV = transformer.logits(cfg, params, hidden_BcD, with_padding=with_padding)
    return jax.nn.log_softmax(logits_BcV, axis=-1)

  def scored(chunk):
    slot_Bc, target_Bc, valid_Bc = chunk
    logprob_BcV = logprobs(take(slot_Bc))
    picked_Bc = jnp.take_along_axis(logprob_BcV, target_Bc[..., None], axis=-1)[..., 0]
    is_greedy_Bc = (jnp.argmax(logprob_BcV, axis=-1) == target_Bc) | (valid_Bc == 0)
    return jnp.sum(picked_Bc * valid_Bc, axis=1), jnp.all(is_greedy_Bc, axis=1)

  last_BV = logprobs(take(end_B[:, None]))[:, 0]
  logprob_BK = jnp.take_along_axis(last_BV, last_BK, axis=1)
  is_greedy_BK = jnp.argmax(last_BV, axis=-1)[:, None] == last_BK
  if slot_BC.shape[1]:
    # Logits of only `logprob_chunk` tokens of each row exist at a time.
    chunks = [_chunked(x, cfg.compute.logprob_chunk) for x in (slot_BC, target_BC, valid_BC)]
    logprob_NB, is_greedy_NB = jax.lax.map(scored, chunks)
    logprob_BK = logprob_BK + jnp.sum(logprob_NB, axis=0)[:, None]
    is_greedy_BK = is_greedy_BK & jnp.all(is_greedy_NB, axis=0)[:, None]
  return logprob_BK, is_greedy_BK


def _chunked(x_BC, chunk: int):
  """[N, B, c], padded with zeros, so that padding is not valid."""
  num_rows, length = x_BC.shape
  chunk = min(chunk, length)
  num_chunks = -(-length // chunk)
  x_BC = jnp.pad(x_BC, ((0, 0), (0, num_chunks * chunk - length)))
  return x_BC.reshape(num_rows, num_chunks, chunk).swapaxes(0, 1)


# ----------------------------------------------------------------------------- texts


def context_ids(network: Network, contexts: Sequence[str]) -> list[list[int]]:
  """Ids of contexts as the tokenizer begins texts.

  An empty context is end-of-text: the first token of a continuation needs a token before it.
  """
  tokenizer = network.tokenizer
  return [
    [*tokenizer.prefix_ids, *ids] or [tokenizer.eot_id]
    for ids in tokenizer.encode_batch(list(contexts))
  ]


def encode(network: Network, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
  """Ids of (context, continuation), encoded apart: the ids of a context never vary.

  Raises:
    ValueError: a pair is longer than the network's context, or a continuation is empty.
  """
  rows = []
  contexts = context_ids(network, [context for context, _ in pairs])
  for (context, text), before in zip(pairs, contexts, strict=True):
    ids = network.tokenizer.encode(text, continues=bool(context))
    if not ids:
      raise ValueError(f"the continuation of {context[-40:]!r} is empty; it needs at least a word")
    if len(before) + len(ids) > network.cfg.context_length:
      raise ValueError(
        f"{(context + text)[:40]!r}... has {len(before) + len(ids)} tokens and the network's "
        f"context is {network.cfg.context_length}; shorten it (fewer shots), or leave it out"
      )
    rows.append((before, ids))
  return rows


def logprobs(
  network: Network,
  pairs: Sequence[tuple[str, str]],
  *,
  batch_size: int,
  progress: row_batches.Progress = None,
) -> np.ndarray:
  """log p(continuation | context) in nats, summed over the continuation's tokens, temperature 1.

  Args:
    pairs: (context, continuation); a context may be empty, and a space between the two belongs to
      the continuation.
    batch_size, progress: see `loglikelihoods`.

  Returns:
    logprob_N, float64.

  Raises:
    ValueError: as `encode`.
  """
  found = loglikelihoods(network, encode(network, pairs), batch_size=batch_size, progress=progress)
  return np.asarray([float(logprob) for logprob, _ in found])


def few_shot_correct(
  network: Network, items: Sequence[dict], *, delimiter: str, batch_size: int
) -> list[bool]:
  """Whether each item's right choice has the highest mean log-probability per token.

  Source: InstructGPT appendix D, which scores multiple-choice tasks this way at temperature 1.

  Args:
    items: {"prompt": str, "choices": [str, ...], "answer": index}.
    delimiter: separates prompt and choice, and is part of the choice's first token: a space
      for languages that separate words, or the choices would be read as unfinished words.
    batch_size: (prompt, choice) rows at once.

  Raises:
    ValueError: an item does not fit into the context.
  """
  pairs = [(item["prompt"], delimiter + choice) for item in items for choice in item["choices"]]
  found = iter(loglikelihoods(network, encode(network, pairs), batch_size=batch_size))
  correct = []
  for item in items:
    means = [
      logprob / logprob.num_tokens for logprob, _ in itertools.islice(found, len(item["choices"]))
    ]
    correct.append(int(np.argmax(means)) == item["answer"])
  return correct
