"""Answers of a policy to written prompts, whatever their number: what people and judges read."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from rlhf import processes, sharding
from rlhf.data import prepare
from rlhf.inference import sampling
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.types import Params, PromptBatch


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerConfig:
  """How answers are sampled.

  Attributes:
    max_prompt_tokens, max_response_tokens: P and R.
    temperature: 0 is greedy.
    batch_size: rows decoded at once, less where there are fewer; answers do not depend on it.
    prompt_format, prompt_suffix, completion_prefix: see `prepare.PromptFormat`.
    top_p: in (0, 1]; below 1 tokens come from the nucleus (`generate.nucleus`).
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
        f"top_p {self.top_p}; use a number above 0 and up to 1, which keeps all tokens"
      )
    prepare.PromptFormat.of(self)  # checks its names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
  """One entry per prompt.

  Attributes:
    texts: [prompt][sample] decoded, without the completion prefix.
    ids: [prompt][sample] prompt and response tokens, as a reward model reads them.
    finished: [prompt][sample] whether the end of an answer was reached.
  """

  texts: list[list[str]]
  ids: list[list[np.ndarray]]
  finished: list[list[bool]]


@functools.partial(
  jax.jit, static_argnames=("cfg", "eot_id", "max_new_tokens", "temperature", "top_p")
)
def _sample(
  cfg: ModelConfig,
  params: Params,
  prompts: PromptBatch,
  key,
  row_B,
  *,
  eot_id,
  max_new_tokens,
  temperature,
  top_p,
):
  key_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(row_B)
  generation = sampling.generate(
    cfg,
    params,
    prompts,
    key_B,
    eot_id=eot_id,
    max_new_tokens=max_new_tokens,
    temperature=temperature,
    top_p=top_p,
  )
  return sampling.join(prompts, generation, cfg.pad_id), generation.finished_B


def answer(
  network: Network,
  prompts: Sequence[str],
  p: AnswerConfig,
  key,
  *,
  num_samples: int | Sequence[int] = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> Answers:
  """Samples answers; sample s of prompt i always has the same random key.

  Args:
    network: a policy with its tokenizer.
    prompts: texts; every one must fit into `p.max_prompt_tokens`.
    num_samples: for every prompt, or one number for each.
    on_batch: called with (answers done, response tokens of this batch).

  Raises:
    ValueError: a prompt is too long, or prompt and answer exceed the context.
  """
  if p.max_prompt_tokens + p.max_response_tokens > network.cfg.context_length:
    raise ValueError(
      f"max_prompt_tokens {p.max_prompt_tokens} + max_response_tokens {p.max_response_tokens} "
      f"is longer than the context of {network.cfg.context_length}"
    )
  prompt_format = prepare.PromptFormat.of(p)
  end_id = prompt_format.end_id(network.tokenizer)
  counts = [num_samples] * len(prompts) if isinstance(num_samples, int) else list(num_samples)
  rows, kept, _ = prepare.prompt_rows(
    [{"prompt": text, "index": i} for i, text in enumerate(prompts)],
    network.tokenizer,
    max_prompt_tokens=p.max_prompt_tokens,
    prompt_format=prompt_format,
    overlong="drop",
  )
  if len(kept) < len(prompts):
    missing = sorted(set(range(len(prompts))) - {record["index"] for record in kept})[0]
    raise ValueError(
      f"prompt {missing} ({prompts[missing][:40]!r}...) is longer than "
      f"max_prompt_tokens {p.max_prompt_tokens} in its format; shorten or drop it"
    )
  owner = np.repeat(np.arange(len(prompts)), counts)
  sample = np.concatenate([np.arange(count) for count in counts]) if len(owner) else owner
  # A power of two, so that few shapes are compiled and rows divide over devices.
  batch_size = min(p.batch_size, 2 ** max(len(owner) - 1, 0).bit_length())
  # A prompt's keys depend on its own number and the sample's, not on how many the others have.
  row_key = owner * 4096 + sample
  out = Answers(
    texts=[[] for _ in prompts], ids=[[] for _ in prompts], finished=[[] for _ in prompts]
  )
  for start in range(0, len(owner), batch_size):
    real = owner[start : start + batch_size]
    picked = np.concatenate([real, np.full(batch_size - len(real), real[-1])])
    keys = np.resize(row_key[start : start + batch_size], batch_size)
    batch = PromptBatch(tokens_BP=rows.tokens_BP[picked], mask_BP=rows.mask_BP[picked])
    with sharding.on_mesh_of(network.params) as put:
      joined, finished_B = processes.to_host(
        _sample(
          network.cfg,
          network.params,
          put(batch),
          key,
          keys,
          eot_id=end_id,
          max_new_tokens=p.max_response_tokens,
          temperature=p.temperature,
          top_p=p.top_p,
        )
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
