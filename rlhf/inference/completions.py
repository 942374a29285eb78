"""Completions sampled from a policy: of prompts in their format, or of token ids and raw text.

Rows are padded to few shapes, so that few programs are compiled; samples depend neither on the
shapes nor on the batch size.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rlhf import processes, sharding
from rlhf.data import prepare
from rlhf.inference import likelihood, row_batches, sampling
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import PromptBatch

_NUM_QUEUED = 4  # at most so many batches of prompts are read before they are decoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionConfig:
  """How completions are sampled.

  Attributes:
    max_prompt_tokens, max_response_tokens: P and R.
    temperature: 0 is greedy.
    batch_size: rows decoded at once; completions do not depend on it.
    prompt_format, prompt_suffix, completion_prefix: see `prepare.PromptFormat`.
    top_p: in (0, 1]; below 1 tokens come from the nucleus (`sampling.nucleus`).
  """

  max_prompt_tokens: int
  max_response_tokens: int
  temperature: float
  batch_size: int
  prompt_format: str
  prompt_suffix: str
  completion_prefix: str
  top_p: float = 1.0

  def __post_init__(self):
    if not 0.0 < self.top_p <= 1.0:
      raise ValueError(
        f"top_p is {self.top_p}; use a number above 0 and up to 1, which keeps all tokens"
      )
    prepare.PromptFormat.of(self)  # checks its names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completions:
  """One entry per prompt.

  Attributes:
    texts: [prompt][sample] decoded, without the completion prefix.
    ids: [prompt][sample] prompt and completion tokens, as a reward model reads them.
    finished: [prompt][sample] whether the completion reached its end.
  """

  texts: list[list[str]]
  ids: list[list[np.ndarray]]
  finished: list[list[bool]]


def _draw(
  network: Network,
  ids: Sequence[Sequence[int]],
  length: int,
  key,
  row_B: np.ndarray,
  **options: Any,
):
  """`sampling.sample` of rows of ids, left-padded to `length`; arrays of the host in and out."""
  tokens_BP = np.full((len(ids), length), network.cfg.pad_id, np.int32)
  mask_BP = np.zeros((len(ids), length), np.float32)
  for b, row in enumerate(ids):
    tokens_BP[b, length - len(row) :], mask_BP[b, length - len(row) :] = row, 1
  with sharding.on_mesh_of(network.params) as put:
    prompts = PromptBatch(**put(dict(tokens_BP=tokens_BP, mask_BP=mask_BP)))
    return processes.to_host(
      sampling.sample(network.cfg, network.params, prompts, key, row_B, **options)
    )


def sample(
  network: Network,
  prompts: Sequence[str],
  p: CompletionConfig,
  key,
  *,
  num_samples: int | Sequence[int] = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> Completions:
  """Samples completions; sample s of prompt i always has the same random key.

  Args:
    network: a policy with its tokenizer.
    prompts: texts; each must fit into `p.max_prompt_tokens`.
    num_samples: for every prompt, or one number for each.
    on_batch: called with (completions done, completion tokens of this batch).

  Raises:
    ValueError: a prompt is too long, or prompt and completion exceed the context.
  """
  if p.max_prompt_tokens + p.max_response_tokens > network.cfg.context_length:
    raise ValueError(
      f"max_prompt_tokens {p.max_prompt_tokens} + max_response_tokens {p.max_response_tokens} "
      f"is longer than the context of {network.cfg.context_length}"
    )
  prompt_format = prepare.PromptFormat.of(p)
  counts = [num_samples] * len(prompts) if isinstance(num_samples, int) else list(num_samples)
  encoded = prompt_format.encode_prompts(network.tokenizer, prompts)
  for index, ids in enumerate(encoded):
    if len(ids) > p.max_prompt_tokens:
      raise ValueError(
        f"prompt {index} ({prompts[index][:40]!r}...) has {len(ids)} tokens in its format, more "
        f"than max_prompt_tokens {p.max_prompt_tokens}; shorten or drop it"
      )
  owner = np.repeat(np.arange(len(prompts)), counts)
  number = np.concatenate([np.arange(count) for count in counts]) if len(owner) else owner
  # A power of two, so that few shapes are compiled and rows divide over devices.
  num_slots = row_batches.num_rows(p.batch_size, len(owner))
  # Several batches at once: where a completion ends, the next prompt takes its slot.
  num_batches = -(-len(owner) // num_slots)
  num_calls = -(-num_batches // _NUM_QUEUED)
  batch_size = num_slots * -(-num_batches // max(num_calls, 1))
  # The keys of a prompt depend on its own index and the sample's, not on the other prompts' counts.
  row_key = owner * 4096 + number
  out = Completions(
    texts=[[] for _ in prompts], ids=[[] for _ in prompts], finished=[[] for _ in prompts]
  )
  for start in range(0, len(owner), batch_size):
    real = owner[start : start + batch_size]
    picked = np.concatenate([real, np.full(batch_size - len(real), real[-1])])
    keys = np.resize(row_key[start : start + batch_size], batch_size)
    joined, finished_B = _draw(
      network,
      [encoded[index] for index in picked],
      p.max_prompt_tokens,
      key,
      keys,
      eot_id=prompt_format.end_id(network.tokenizer),
      max_new_tokens=p.max_response_tokens,
      temperature=p.temperature,
      top_p=p.top_p,
      num_slots=num_slots,
    )
    num_tokens = 0
    for row, index in enumerate(real):
      response = joined["tokens_BT"][row][joined["response_mask_BT"][row] > 0]
      num_tokens += len(response)
      out.texts[index].append(prompt_format.decode_completion(network.tokenizer, response))
      out.ids[index].append(joined["tokens_BT"][row][joined["mask_BT"][row] > 0])
      out.finished[index].append(bool(finished_B[row]))
    if on_batch is not None:
      on_batch(start + len(real), num_tokens)
  return out


# ----------------------------------------------------------------------------- without a format


def sample_ids(
  network: Network,
  contexts: Sequence[Sequence[int]],
  key,
  *,
  max_new_tokens: int,
  stops: Sequence[str] = (),
  temperature: float = 0.0,
  batch_size: int,
  progress: row_batches.Progress = None,
) -> list[str]:
  """Continues each context of token ids up to the first stop.

  A row ends at the first token whose text holds a stop, or at an end of text; texts are then cut
  before the stop.  Contexts that leave too little room lose tokens from the left.

  Args:
    contexts: ids, at least one token each.
    key: request i draws with fold_in(key, i); unused at temperature 0.
    max_new_tokens: the most tokens that are written.
    stops: strings that end a text and are not part of it.
    temperature: 0 is greedy.
    progress: called with (contexts done, contexts in total).

  Raises:
    ValueError: a context is empty, or `max_new_tokens` leaves no room for one.
  """
  room = network.cfg.context_length - max_new_tokens
  if room < 1:
    raise ValueError(
      f"{max_new_tokens} new tokens leave no room for a prompt in the context of "
      f"{network.cfg.context_length}; use fewer"
    )
  for request, ids in enumerate(contexts):
    if not len(ids):
      raise ValueError(f"context {request} is empty; it needs at least one token")
  cut = [(request, list(ids)[-room:]) for request, ids in enumerate(contexts)]
  stops = [stop for stop in stops if stop]
  end_V = _ending_tokens(network, stops)
  texts: list[str] = [""] * len(contexts)
  done = 0
  for batch in row_batches.batches(cut, batch_size, length_of=lambda pair: len(pair[1])):
    length = row_batches.row_length(max(len(ids) for _, ids in batch), room)
    filled = [*batch, *[batch[-1]] * (row_batches.num_rows(batch_size, len(cut)) - len(batch))]
    joined, _ = _draw(
      network,
      [ids for _, ids in filled],
      length,
      key,
      np.array([request for request, _ in filled], np.int32),
      end_V=end_V,
      eot_id=network.tokenizer.eot_id,
      max_new_tokens=max_new_tokens,
      temperature=temperature,
    )
    for b, (request, _) in enumerate(batch):
      response = joined["tokens_BT"][b][joined["response_mask_BT"][b] > 0]
      texts[request] = _text(network.tokenizer, response, stops)
    done += len(batch)
    if progress is not None:
      progress(done, len(contexts))
  return texts


def sample_lines(
  network: Network,
  contexts: Sequence[str],
  *,
  temperature: float,
  max_response_tokens: int,
  batch_size: int,
  seed: int,
  progress: row_batches.Progress = None,
) -> list[str]:
  """Continues each context up to its first line break, with no prompt format around it.

  Source: InstructGPT appendix D, which writes the whole prompt into the context.

  Args:
    network: a policy.
    temperature: 0 is greedy.
    max_response_tokens: the most tokens of a completion.
    batch_size: rows decoded at once; completions do not depend on it.
    seed: of the samples; sample i belongs to context i.

  Raises:
    ValueError: a context and its completion exceed the network's context.
  """
  ids = likelihood.context_ids(network, contexts)
  longest = max(map(len, ids))
  if longest + max_response_tokens > network.cfg.context_length:
    raise ValueError(
      f"a context has {longest} tokens and max_response_tokens is {max_response_tokens}, but the "
      f"network's context is {network.cfg.context_length}; lower max_response_tokens, or leave the "
      "network out of this suite"
    )
  texts = sample_ids(
    network,
    ids,
    jax.random.key(seed),
    max_new_tokens=max_response_tokens,
    stops=("\n",),
    temperature=temperature,
    batch_size=batch_size,
    progress=progress,
  )
  return [text.strip() for text in texts]


def _ending_tokens(network: Network, stops: Sequence[str]) -> np.ndarray:
  """[V] bool: the tokens that end a row."""
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
