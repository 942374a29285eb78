"""lm-eval (EleutherAI's harness) on our networks: runs its tasks unchanged, without torch.

  from lm_eval import evaluator
  evaluator.simple_evaluate(model=harness.HarnessModel(network, batch_size=32), tasks=["piqa"])

Texts become ids as in lm-eval's own `hf` model: context and continuation are encoded together and
split where the context's own ids end, spaces at the end of a context go to the continuation, texts
that are too long lose tokens from the left, and an empty context is begin-of-text, or end-of-text
if there is none.  So log-likelihoods equal those of `hf` for the same weights.

This module imports lm-eval, which the extra `evals` installs.
"""

from collections.abc import Sequence
from typing import Any

import jax
from lm_eval import utils
from lm_eval.api import model as lm_eval_model
from lm_eval.api import samplers
from lm_eval.api.instance import Instance
from lm_eval.models import utils as model_utils

from rlhf.inference import completions, likelihood, row_batches
from rlhf.networks import Network

MAX_GEN_TOKS = 256  # lm-eval's default
_SPARE = 64  # items that are tried first, beyond the number wanted
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = {"until", "do_sample", "temperature", *_LENGTHS}


class OtherItems(samplers.ContextSampler):
  """Few-shot examples from the test set itself.

  Never the item in question, nor another of its paragraph, whose text may hold the answer, nor one
  whose right answer is unknown.
  """

  def sample(
    self, n: int, eval_doc: dict[str, Any] | None = None, df: Any = None, **unused: Any
  ) -> list[dict[str, Any]]:
    """`n` items at random.

    Raises:
      ValueError: there are too few others.
    """
    docs, found = self.fewshot_docs(), []
    for size in (n + _SPARE, len(docs)):  # all are tried only if those do not suffice
      found = [
        doc for doc in self.rnd.sample(docs, min(size, len(docs))) if self._is_other(doc, eval_doc)
      ][:n]
      if len(found) == n:
        return found
    raise ValueError(
      f"{n} examples are wanted, but of {len(docs)} items only {len(found)} can be one; lower "
      "config.nlp.num_fewshot, or put the training set next to the test set"
    )

  @staticmethod
  def _is_other(doc: dict[str, Any], item: dict[str, Any] | None) -> bool:
    if not doc.get("is_referent", True):
      return False
    same = "paragraph" if "paragraph" in doc else "id"
    return item is None or doc[same] != item[same]


class HarnessModel(lm_eval_model.TemplateLM):
  """A policy behind lm-eval's interface."""

  def __init__(
    self,
    network: Network,
    *,
    batch_size: int,
    seed: int = 0,
    chat: bool = False,
    progress: row_batches.Progress = None,
  ):
    """Wraps a network, which stays on its mesh.

    Args:
      batch_size: rows at once; results do not depend on it.
      seed: of tasks that sample; greedy ones do not use it.
      chat: texts come through `apply_chat_template`, so special tokens in them are encoded as such.
      progress: called with (requests done, requests of this call).

    Raises:
      ValueError: `chat` is set, but the tokenizer has no usable chat template.
    """
    super().__init__()
    self._network, self._batch_size = network, batch_size
    self._key, self._chat, self._progress = jax.random.key(seed), chat, progress
    if chat:
      network.tokenizer.chat  # raises if there is none

  # ---- the tokenizer

  @property
  def eot_token_id(self) -> int:
    return self._network.tokenizer.eot_id

  @property
  def prefix_token_id(self) -> int:
    """Replaces an empty context."""
    begin = self._network.tokenizer.bos_id
    return self._network.tokenizer.eot_id if begin is None else begin

  @property
  def max_length(self) -> int:
    return self._network.cfg.context_length

  @property
  def max_gen_toks(self) -> int:
    return MAX_GEN_TOKS

  @property
  def tokenizer_name(self) -> str:
    return type(self._network.tokenizer).__name__

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **unused: Any
  ) -> list[int]:
    """Ids after the tokenizer's prefix (begin-of-text), unless `add_special_tokens` is False."""
    tokenizer = self._network.tokenizer
    if self._chat:
      ids = tokenizer.encode_with_specials(string)
      if add_special_tokens is None and ids[:1] == list(tokenizer.prefix_ids[:1]):
        return ids  # the template has written it
    else:
      ids = tokenizer.encode(string)
    return ids if add_special_tokens is False else [*tokenizer.prefix_ids, *ids]

  def chat_template(self, chat_template: bool | str = False) -> str | None:
    """The template's source, which lm-eval records."""
    return self._network.tokenizer.chat_template if chat_template else None

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """The text that the model's own template makes of turns."""
    return self._network.tokenizer.render_chat(
      chat_history, add_generation_prompt=add_generation_prompt
    )

  # ---- requests

  def loglikelihood(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """As lm-eval encodes contexts and continuations, without its progress bar."""
    return super().loglikelihood(requests, disable_tqdm=True)

  def _loglikelihood_tokens(
    self, requests: Sequence[tuple[Any, list[int], list[int]]], **unused: Any
  ) -> list[Any]:
    pairs = [(context, continuation) for _, context, continuation in requests]
    return likelihood.loglikelihoods(
      self._network, pairs, batch_size=self._batch_size, progress=self._progress
    )

  def loglikelihood_rolling(
    self, requests: list[Instance], disable_tqdm: bool = False
  ) -> list[float]:
    """Log-probabilities of whole texts, in windows of the context that do not overlap."""
    windows, owner = [], []
    for index, request in enumerate(requests):
      for pair in utils.get_rolling_token_windows(
        token_list=self.tok_encode(request.args[0]),
        prefix_token=self.prefix_token_id,
        max_seq_len=self.max_length,
        context_len=1,
      ):
        windows.append((None, *utils.make_disjoint_window(pair)))
        owner.append(index)
    totals = [0.0] * len(requests)
    for index, (logprob, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
      totals[index] += logprob
    return totals

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Texts up to the first of the strings in `until`, greedy unless a task samples.

    Raises:
      ValueError: a task's way of sampling is not supported.
    """
    groups: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
      groups.setdefault(self._settings(request.args[1]), []).append(index)
    texts: list[str] = [""] * len(requests)
    for number, ((stops, max_new_tokens, temperature), members) in enumerate(groups.items()):
      contexts = [
        self.tok_encode(requests[index].args[0]) or [self.prefix_token_id] for index in members
      ]
      written = completions.sample_ids(
        self._network,
        contexts,
        jax.random.fold_in(self._key, number),
        max_new_tokens=max_new_tokens,
        stops=stops,
        temperature=temperature,
        batch_size=self._batch_size,
        progress=self._progress,
      )
      for index, text in zip(members, written, strict=True):
        texts[index] = text
    return texts

  def _settings(self, options: dict[str, Any]) -> tuple[tuple[str, ...], int, float]:
    """(stops, max_new_tokens, temperature) of a task's generation_kwargs, as lm-eval reads them."""
    options = {name: value for name, value in options.items() if value is not None}
    unknown = sorted(name for name in set(options) - _KNOWN if options[name] is not False)
    if unknown:
      raise ValueError(
        f"generation_kwargs {unknown[0]!r} of the task is not supported; choose from "
        f"{', '.join(sorted(_KNOWN))}"
      )
    options = {"temperature": 1.0 if options.get("do_sample") else 0.0} | options
    found = model_utils.normalize_gen_kwargs(options, self.max_gen_toks)
    return tuple(found["until"]), found["max_gen_toks"], found["temperature"]
