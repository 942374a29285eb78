"""`continuations` for texts: the line that a model writes next, and how likely a completion is.

No prompt format is written around a context: InstructGPT's appendix D puts all there is into it.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf.inference import continuations
from rlhf.networks import Network

# Called with (items done, items in all).
Progress = Callable[[int, int], None] | None


def lines(
  network: Network,
  contexts: Sequence[str],
  *,
  temperature: float,
  max_response_tokens: int,
  batch_size: int,
  seed: int,
  progress: Progress = None,
) -> list[str]:
  """A continuation of each context, up to its first line break (InstructGPT appendix D).

  Args:
    network: a policy.
    temperature: 0 takes the likeliest token each time.
    max_response_tokens: a continuation ends there, if it has not ended before.
    batch_size: rows decoded at once; continuations do not depend on it.
    seed: of the samples; sample i belongs to context i.

  Raises:
    ValueError: a context and its continuation exceed what the network can read.
  """
  ids = context_ids(network, contexts)
  longest = max(map(len, ids))
  if longest + max_response_tokens > network.cfg.context_length:
    raise ValueError(
      f"a context has {longest} tokens and max_response_tokens is "
      f"{max_response_tokens}; the network reads {network.cfg.context_length} in "
      "all: lower max_response_tokens, or leave the network out of this suite"
    )
  texts = continuations.write(
    network,
    ids,
    jax.random.key(seed),
    max_new_tokens=max_response_tokens,
    stops=("\n",),
    temperature=temperature,
    batch_size=batch_size,
    on_batch=_counted(progress, len(ids)),
  )
  return [text.strip() for text in texts]


def logprobs(
  network: Network, pairs: Sequence[tuple[str, str]], *, batch_size: int, progress: Progress = None
) -> np.ndarray:
  """log p(completion | context) in nats, summed over the completion's tokens, at temperature 1.

  Args:
    network: a policy.
    pairs: (context, completion); a context may be empty, and a space between the two stands at the
      start of the completion.
    batch_size: rows at once; results do not depend on it.

  Returns:
    logprob_N, float64.

  Raises:
    ValueError: a pair is longer than what the network can read, or a completion is empty.
  """
  found = continuations.loglikelihoods(
    network, encode(network, pairs), batch_size=batch_size, on_batch=_counted(progress, len(pairs))
  )
  return np.asarray([float(logprob) for logprob, _ in found])


def encode(network: Network, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
  """Ids of (context, completion), encoded apart: a context has the same tokens before everything.

  Raises:
    ValueError: as `logprobs`.
  """
  rows = []
  for (context, text), before in zip(
    pairs, context_ids(network, [context for context, _ in pairs]), strict=True
  ):
    ids = network.tokenizer.encode(text, continues=bool(context))
    if not ids:
      raise ValueError(f"an empty completion stands after {context[-40:]!r}; give at least a word")
    if len(before) + len(ids) > network.cfg.context_length:
      raise ValueError(
        f"{(context + text)[:40]!r}... has {len(before) + len(ids)} tokens and the "
        f"network reads {network.cfg.context_length}; leave it out of this suite"
      )
    rows.append((before, ids))
  return rows


def context_ids(network: Network, contexts: Sequence[str]) -> list[list[int]]:
  """Ids of contexts as the tokenizer begins texts.

  Where there would be none, end-of-text stands: without a token before it the first token of a
  completion would have no probability.
  """
  tokenizer = network.tokenizer
  return [
    [*tokenizer.prefix_ids, *ids] or [tokenizer.eot_id]
    for ids in tokenizer.encode_batch(list(contexts))
  ]


def _counted(progress: Progress, total: int) -> Callable[[int], None] | None:
  return None if progress is None else lambda done: progress(done, total)
