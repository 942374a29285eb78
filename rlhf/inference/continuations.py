"""How likely texts are as continuations of others, and what a policy writes after a text.

Texts here are token ids and nothing is put around them: this is for tasks that show a model a
document to go on from.  (`answers` asks in the prompt format in which a network was trained.)  Rows
are sorted by length and padded to few lengths, so that few programs are compiled; results do not
depend on it.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhf import processes, sharding
from rlhf.inference import sampling
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import Params, PromptBatch

_SHORTEST = 16  # rows are padded at least to this
OnBatch = Callable[[int], None]  # called with the number of requests that are done


class LogLikelihood(float):
  """The log-probability of a continuation, in nats: a float that also knows

  Attributes:
    num_tokens: how many tokens it is the sum of.
  """

  num_tokens: int

  def __new__(cls, logprob: float, num_tokens: int) -> "LogLikelihood":
    made = super().__new__(cls, logprob)
    made.num_tokens = num_tokens
    return made

  def __reduce__(self):
    return LogLikelihood, (float(self), self.num_tokens)


# ----------------------------------------------------------------------------- likelihood


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
  """A row that the model reads, and the requests that it answers.

  Continuations of one context that differ in their last token alone share a row: "yes" and "no".
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
  on_batch: OnBatch | None = None,
) -> list[tuple[LogLikelihood, bool]]:
  """log p(continuation | context) of each pair, and whether greedy decoding would write it.

  What is too long loses tokens from the left: `context_length` + 1 are left, as the model does not
  read the last one.

  Args:
    pairs: ids of (context, continuation); neither is empty.
    batch_size: rows at once.

  Raises:
    ValueError: a context or a continuation is empty, or a continuation alone is too long.
  """
  rows = _shared_rows(pairs, network.cfg.context_length)
  found: list[tuple[LogLikelihood, bool] | None] = [None] * len(pairs)
  done = 0
  for batch in _batches(rows, batch_size, length_of=lambda row: len(row.inputs)):
    logprob_BK, is_greedy_BK = _score_batch(network, batch, batch_size, len(rows))
    for row, logprob_K, is_greedy_K in zip(batch, logprob_BK, is_greedy_BK):  # then come fillers
      for place, request in enumerate(row.requests):
        num_tokens = len(pairs[request][1])
        found[request] = (LogLikelihood(logprob_K[place], num_tokens), bool(is_greedy_K[place]))
        done += 1
    if on_batch is not None:
      on_batch(done)
  return found


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
  num_filled = _num_rows(batch_size, num_rows)
  length = row_length(max(len(row.inputs) for row in batch), network.cfg.context_length)
  num_scored = max(row.num_scored for row in batch)
  num_scored = min(_power_of_two(num_scored), length) if num_scored else 0
  num_last = _power_of_two(max(len(row.last) for row in batch))
  tokens_BT = np.full((num_filled, length), network.cfg.pad_id, np.int32)
  mask_BT = np.zeros((num_filled, length), np.float32)
  slot_BC = np.zeros((num_filled, num_scored), np.int32)
  target_BC = np.zeros((num_filled, num_scored), np.int32)
  valid_BC = np.zeros((num_filled, num_scored), np.float32)
  end_B = np.zeros((num_filled,), np.int32)
  last_BK = np.zeros((num_filled, num_last), np.int32)
  mask_BT[len(batch) :, 0] = 1  # a filler has a token too
  for b, row in enumerate(batch):
    end, count = len(row.inputs), row.num_scored
    tokens_BT[b, :end], mask_BT[b, :end] = row.inputs, 1
    # The hidden state of slot t tells of token t + 1.
    slot_BC[b, :count] = np.arange(end - 1 - count, end - 1)
    target_BC[b, :count], valid_BC[b, :count] = row.inputs[end - count :], 1
    end_B[b], last_BK[b, : len(row.last)] = end - 1, row.last
  with sharding.on_mesh_of(network.params) as put:
    arrays = put((tokens_BT, mask_BT, slot_BC, target_BC, valid_BC, end_B, last_BK))
    return processes.to_host(
      _score(network.cfg, network.params, *arrays, with_padding=_has_own_padding(network))
    )


def _has_own_padding(network: Network) -> bool:
  """Whether padding is a token of a published model, which its own program gives a probability."""
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
    # Logits exist for so many tokens of each row at a time.
    chunks = [_chunked(x, cfg.logprob_chunk) for x in (slot_BC, target_BC, valid_BC)]
    logprob_NB, is_greedy_NB = jax.lax.map(scored, chunks)
    logprob_BK = logprob_BK + jnp.sum(logprob_NB, axis=0)[:, None]
    is_greedy_BK = is_greedy_BK & jnp.all(is_greedy_NB, axis=0)[:, None]
  return logprob_BK, is_greedy_BK


def _chunked(x_BC, chunk: int):
  """[N, B, c], padded with zeros: with a validity of 0, too."""
  num_rows, length = x_BC.shape
  chunk = min(chunk, length)
  num_chunks = -(-length // chunk)
  x_BC = jnp.pad(x_BC, ((0, 0), (0, num_chunks * chunk - length)))
  return x_BC.reshape(num_rows, num_chunks, chunk).swapaxes(0, 1)


# ----------------------------------------------------------------------------- writing


def write(
  network: Network,
  contexts: Sequence[Sequence[int]],
  key,
  *,
  max_new_tokens: int,
  stops: Sequence[str] = (),
  temperature: float = 0.0,
  batch_size: int,
  on_batch: OnBatch | None = None,
) -> list[str]:
  """What the policy writes after each context, up to the first stop.

  A row ends at the first token whose text holds a stop, or at an end of text; texts are then cut
  before the stop.  Contexts that leave no room lose tokens from the left.

  Args:
    contexts: ids, of at least one token each.
    key: request i draws with fold_in(key, i); unused at temperature 0.
    max_new_tokens: at most so many tokens are written.
    stops: strings that end a text and are no part of it.
    temperature: 0 is greedy.

  Raises:
    ValueError: a context is empty, or `max_new_tokens` leaves no room for one.
  """
  room = network.cfg.context_length - max_new_tokens
  if room < 1:
    raise ValueError(
      f"{max_new_tokens} new tokens leave no room for a prompt in the context of "
      f"{network.cfg.context_length}; ask for fewer"
    )
  for request, ids in enumerate(contexts):
    if not len(ids):
      raise ValueError(f"context {request} is empty; it needs at least one token")
  cut = [(request, list(ids)[-room:]) for request, ids in enumerate(contexts)]
  stops = [stop for stop in stops if stop]
  end_V = _ending_tokens(network, stops)
  texts: list[str] = [""] * len(contexts)
  done = 0
  for batch in _batches(cut, batch_size, length_of=lambda pair: len(pair[1])):
    length = row_length(max(len(ids) for _, ids in batch), room)
    filled = [*batch, *[batch[-1]] * (_num_rows(batch_size, len(cut)) - len(batch))]
    prompts = PromptBatch(
      tokens_BP=np.full((len(filled), length), network.cfg.pad_id, np.int32),
      mask_BP=np.zeros((len(filled), length), np.float32),
    )
    for b, (_, ids) in enumerate(filled):
      prompts.tokens_BP[b, length - len(ids) :], prompts.mask_BP[b, length - len(ids) :] = ids, 1
    request_B = np.array([request for request, _ in filled], np.int32)
    with sharding.on_mesh_of(network.params) as put:
      tokens_BR, mask_BR = processes.to_host(
        _write(
          network.cfg,
          network.params,
          put(prompts),
          key,
          put(request_B),
          end_V,
          eot_id=network.tokenizer.eot_id,
          max_new_tokens=max_new_tokens,
          temperature=temperature,
        )
      )
    for b, (request, _) in enumerate(batch):
      texts[request] = _text(network.tokenizer, tokens_BR[b][mask_BR[b] > 0], stops)
    done += len(batch)
    if on_batch is not None:
      on_batch(done)
  return texts


@functools.partial(jax.jit, static_argnames=("cfg", "eot_id", "max_new_tokens", "temperature"))
def _write(
  cfg: ModelConfig,
  params: Params,
  prompts: PromptBatch,
  key,
  request_B,
  end_V,
  *,
  eot_id,
  max_new_tokens,
  temperature,
):
  key_B = jax.vmap(lambda request: jax.random.fold_in(key, request))(request_B)
  generation = sampling.generate(
    cfg,
    params,
    prompts,
    key_B,
    eot_id=eot_id,
    end_V=end_V,
    max_new_tokens=max_new_tokens,
    temperature=temperature,
  )
  return generation.tokens_BR, generation.mask_BR


def _ending_tokens(network: Network, stops: Sequence[str]) -> np.ndarray:
  """[V] bool: the tokens after which a row need not go on."""
  end_V = np.zeros(network.cfg.padded_vocab_size, bool)
  end_V[list(network.tokenizer.end_ids)] = True
  if stops:
    for token, text in enumerate(_token_texts(network.tokenizer)):
      end_V[token] |= any(stop in text for stop in stops)
  return end_V


@functools.lru_cache(maxsize=4)
def _token_texts(tokenizer: Tokenizer) -> tuple[str, ...]:
  return tuple(tokenizer.decode([token], continues=True) for token in range(tokenizer.vocab_size))


def _text(tokenizer: Tokenizer, ids: Sequence[int], stops: Sequence[str]) -> str:
  ends = [place for place, token in enumerate(ids) if int(token) in tokenizer.end_ids]
  text = tokenizer.decode(ids[: ends[0]] if ends else ids, continues=True)
  for stop in stops:
    text = text.split(stop)[0]
  return text


# ----------------------------------------------------------------------------- batches


def _batches(rows: Sequence, batch_size: int, length_of) -> Iterator[list]:
  """The longest first, so that what does not fit into memory fails at once."""
  ordered = sorted(rows, key=length_of, reverse=True)
  for start in range(0, len(ordered), batch_size):
    yield ordered[start : start + batch_size]


def _num_rows(batch_size: int, num_rows: int) -> int:
  """Rows of every batch: `batch_size`, or the next power of two where there are fewer in all."""
  return min(batch_size, _power_of_two(num_rows))


def _power_of_two(number: int) -> int:
  return 2 ** max(number - 1, 0).bit_length()


def row_length(length: int, longest: int) -> int:
  """The least of 16, 24, 32, 48, 64, 96, ... that holds the length; at most `longest`."""
  size = max(_power_of_two(length), _SHORTEST)
  if size > _SHORTEST and length <= size * 3 // 4:
    size = size * 3 // 4
  return min(size, longest)
