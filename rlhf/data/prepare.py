"""Records -> rows of tokens: the one place where text becomes what a model sees.

    sequence = PromptFormat.encode_prompts(prompt) + PromptFormat.encode_completions(completion)

The two parts are encoded apart, so that the prompt's tokens are the same in a demonstration, in a
comparison and when the policy is asked to answer.
"""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf import checks, types
from rlhf.data import cache
from rlhf.data import packing as packing_lib
from rlhf.data import records as records_lib
from rlhf.data.records import LazySequence
from rlhf.tokenization.tokenizer import Tokenizer

PROMPT_SUFFIX = "\n\nAnswer:"
COMPLETION_PREFIX = " "
PROMPT_FORMATS = ("plain", "chat")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFormat:
  """How a prompt becomes an answer's context, and a completion an answer.

      plain   prefix_ids + encode(prompt + prompt_suffix),
              encode(completion_prefix + completion) + [end-of-text]
      chat    the prompt as the user's turn in the tokenizer's chat template,
              encode(completion) + [the token that ends a turn there]

  Attributes:
    prompt_format: one of `PROMPT_FORMATS`.
    prompt_suffix, completion_prefix: of "plain"; empty with "chat", whose template has its own.
  """

  prompt_format: str = "plain"
  prompt_suffix: str = PROMPT_SUFFIX
  completion_prefix: str = COMPLETION_PREFIX

  def __post_init__(self):
    checks.choices("", self, prompt_format=PROMPT_FORMATS)
    if self.is_chat:
      for name in ("prompt_suffix", "completion_prefix"):
        if getattr(self, name):
          raise ValueError(
            f"{name} is {getattr(self, name)!r} with prompt_format chat, whose "
            "template has its own text around a prompt; make it an empty string"
          )

  @classmethod
  def of(cls, group, name: str = "") -> "PromptFormat":
    """The format in a dataclass or config group with its fields; errors say the group's `name`."""
    try:
      return cls(**{field.name: getattr(group, field.name) for field in dataclasses.fields(cls)})
    except ValueError as error:
      raise ValueError(f"{name}.{error}" if name else str(error)) from None

  @classmethod
  def trained_with(cls, export_config: Mapping[str, Any]) -> "PromptFormat":
    """The format of an export's own data; plain where the export does not say."""
    groups = ("demonstrations", "prompts", "comparisons")
    trained: Mapping[str, Any] = next(
      (export_config[name] for name in groups if name in export_config), {}
    )
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: trained[name] for name in names if name in trained})

  @property
  def is_chat(self) -> bool:
    return self.prompt_format == "chat"

  def check(self, tokenizer: Tokenizer) -> None:
    """Raises ValueError where the tokenizer has no chat template to put a prompt into."""
    if self.is_chat:
      tokenizer.chat  # pylint: disable=pointless-statement

  def encode_prompts(self, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Ids up to where the model answers.  Raises as `check`."""
    if self.is_chat:
      return tokenizer.encode_chat(prompts)
    encoded = tokenizer.encode_batch([prompt + self.prompt_suffix for prompt in prompts])
    return [[*tokenizer.prefix_ids, *ids] for ids in encoded]

  def encode_completions(self, tokenizer: Tokenizer, completions: Sequence[str]) -> list[list[int]]:
    """Ids of answers, `end_id` at the end of each.  Raises as `check`."""
    prefix, end_id = self._completion_prefix(tokenizer), self.end_id(tokenizer)
    encoded = tokenizer.encode_batch([prefix + text for text in completions], continues=True)
    return [[*ids, end_id] for ids in encoded]

  def decode_completion(self, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Text of a response: `encode_completions` undone, whether or not it came to its end."""
    end_id = self.end_id(tokenizer)
    text = tokenizer.decode([i for i in ids if i != end_id], continues=True)
    return text.removeprefix(self._completion_prefix(tokenizer))

  def end_id(self, tokenizer: Tokenizer) -> int:
    """Ends a completion, and stops a model that writes one."""
    return tokenizer.turn_end_id if self.is_chat else tokenizer.eot_id

  def num_around(self, tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids before and behind the prompt's own, which stay where a prompt loses its start.

    The suffix of "plain" is a part of the prompt's text, of which the end stays.
    """
    return tokenizer.num_around_chat if self.is_chat else (len(tokenizer.prefix_ids), 0)

  def describe(self) -> str:
    if self.is_chat:
      return "prompt in the model's chat template"
    return f"prompt + {self.prompt_suffix!r}"

  def _completion_prefix(self, tokenizer: Tokenizer) -> str:
    return tokenizer.chat.completion_prefix if self.is_chat else self.completion_prefix


PLAIN = PromptFormat()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRows:
  """Tokenised comparisons, ragged: padded only where a batch is made.

  Attributes:
    ids: [row][completion] int32, prompt + completion + end-of-text, at most `length` each.
    ranks: [row] int32, one per completion.
    records: the record of each row, with the completions that are shown and no others.
    num_slots: K of a batch; no row has more completions.
    length: T of a batch.
    pad_id: fills unused slots.
  """

  ids: Sequence[Sequence[np.ndarray]]
  ranks: Sequence[np.ndarray]
  records: Sequence[dict]
  num_slots: int
  length: int
  pad_id: int

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, indices: Sequence[int] | np.ndarray) -> types.ComparisonBatch:
    """The rows of `indices` as one padded batch of numpy arrays."""
    shape = (len(indices), self.num_slots, self.length)
    tokens_BKT: Any = np.full(shape, self.pad_id, np.int32)
    mask_BKT: Any = np.zeros(shape, np.float32)
    rank_BK: Any = np.zeros(shape[:2], np.int32)
    valid_BK: Any = np.zeros(shape[:2], np.float32)
    for b, index in enumerate(indices):
      for k, ids in enumerate(self.ids[index]):
        tokens_BKT[b, k, : len(ids)] = ids
        mask_BKT[b, k, : len(ids)] = 1
      num = len(self.ranks[index])
      rank_BK[b, :num] = self.ranks[index]
      valid_BK[b, :num] = 1
    return types.ComparisonBatch(
      tokens_BKT=tokens_BKT, mask_BKT=mask_BKT, rank_BK=rank_BK, valid_BK=valid_BK
    )

  def pairs(self) -> "ComparisonRows":
    """Every untied pair as a row of its own, K = 2, the better completion first.

    Shuffled as independent rows they let a completion take part in up to K-1 updates of one
    epoch, which overfits (InstructGPT section 3.5): for that ablation, and for nothing else.
    """
    found = []
    for row, rank in enumerate(self.ranks):
      better, worse = np.nonzero(rank[:, None] < rank[None, :])
      found.append(np.stack([np.full_like(better, row), better, worse], axis=1))
    triples = np.concatenate(found)
    if not len(triples):
      raise ValueError("no comparison has an untied pair; give ranks that differ")
    lazy = lambda get: LazySequence(len(triples), lambda index: get(*triples[index]))
    return dataclasses.replace(
      self,
      ids=lazy(lambda row, i, j: [self.ids[row][i], self.ids[row][j]]),
      ranks=lazy(lambda row, i, j: np.asarray([1, 2], np.int32)),
      records=lazy(lambda row, i, j: self.records[row]),
      num_slots=2,
    )


def _load_or_build(
  what: str,
  records: Sequence[dict],
  tokenizer: Tokenizer,
  settings: dict[str, Any],
  build: Callable[[cache.ArrayWriter], dict[str, Any]],
  cache_dir: str | os.PathLike | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Arrays from the cache where the records have a fingerprint, else in memory."""
  key = None
  if isinstance(records, LazySequence) and records.fingerprint:
    key = dict(
      content=what, records=records.fingerprint, tokenizer=tokenizer.fingerprint, settings=settings
    )
  return cache.load_or_build(cache_dir, key, build, f"tokenisation of {what}")


def demonstration_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  length: int,
  prompt_format: PromptFormat = PLAIN,
  packing: str = "best_fit",
  overlong: str = "drop",
  prompt_loss_weight: float = 0.0,
  attend_across_documents: bool = False,
  reset_positions: bool = True,
  cache_dir: str | os.PathLike | None = None,
) -> tuple[types.LmBatch, dict[str, int]]:
  """Demonstrations as rows for LM training, with loss on completion and end-of-text.

  Args:
    packing, prompt_loss_weight, attend_across_documents, reset_positions: as in `packing.pack`.
    overlong: a key of `OVERLONG_DEMONSTRATIONS`, for sequences of more than `length` tokens:
      "drop"; "truncate_left" (the prompt loses its start; dropped where no token of it would stay);
      "truncate_right" (the end is lost, end-of-text with it; dropped where the prompt alone fills
      the row).
    cache_dir: see `cache`; None makes the rows in memory, as for records without a fingerprint.

  Returns:
    (rows, counts): LmBatch of numpy arrays; counts of kept, truncated and dropped sequences, and
    of rows.

  Raises:
    ValueError: nothing fits into rows of `length` tokens, or an unknown name.
  """
  _check_overlong(overlong, OVERLONG_DEMONSTRATIONS)
  around = prompt_format.num_around(tokenizer)
  layout: dict[str, Any] = dict(
    length=length,
    packing=packing,
    prompt_loss_weight=prompt_loss_weight,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )

  def build(writer: cache.ArrayWriter) -> dict[str, int]:
    sequences = (
      sequence
      for chunk in records_lib.chunks(records)
      for sequence in tokenize_demonstrations(chunk, tokenizer, prompt_format=prompt_format)
    )
    counts = _write_fitting(writer, sequences, around, length, overlong)
    _check_kept(counts, records, "demonstrations", length, "length")
    _, sizes, num_prompt = writer.take("pieces").reshape(-1, 3).T
    rows = packing_lib.pack(
      writer.take("ids"),
      sizes,
      num_prompt=num_prompt,
      pad_id=tokenizer.pad_id,
      writer=writer,
      **layout,
    )
    counts["rows"] = len(rows.tokens_BT)
    return counts

  settings = layout | dict(overlong=overlong) | dataclasses.asdict(prompt_format)
  arrays, counts = _load_or_build("demonstrations", records, tokenizer, settings, build, cache_dir)
  return types.LmBatch(**arrays), counts


class TokenSequence(NamedTuple):
  """int32 ids of a tokenised demonstration, and how many of them are the prompt's."""

  ids: np.ndarray
  num_prompt: int


def tokenize_demonstrations(
  records: Sequence[dict], tokenizer: Tokenizer, *, prompt_format: PromptFormat = PLAIN
) -> list[TokenSequence]:
  """prompt + completion + end of each record, whatever its length."""
  prompts = prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in records])
  completions = prompt_format.encode_completions(tokenizer, [r["completion"] for r in records])
  return [
    TokenSequence(np.asarray([*prompt, *completion], np.int32), len(prompt))
    for prompt, completion in zip(prompts, completions, strict=True)
  ]


def prompt_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  max_prompt_tokens: int,
  prompt_format: PromptFormat = PLAIN,
  overlong: str = "drop",
  cache_dir: str | os.PathLike | None = None,
) -> tuple[types.PromptBatch, Sequence[dict], dict[str, int]]:
  """Rows of the prompts of any records, left-padded.

  Args:
    max_prompt_tokens: P; what the format writes around a prompt counts.
    overlong: a key of `OVERLONG_PROMPTS`: "drop" (the paper filters prompts of more than 1k
      tokens, InstructGPT appendix C) or "truncate_left" (it loses its start; dropped where no
      token of it would stay).
    cache_dir: as in `demonstration_rows`.

  Returns:
    (rows, kept records in the order of the rows, counts).

  Raises:
    ValueError: no prompt fits, or an unknown name.
  """
  _check_overlong(overlong, OVERLONG_PROMPTS)
  around = prompt_format.num_around(tokenizer)

  def build(writer: cache.ArrayWriter) -> dict[str, int]:
    sequences = (
      TokenSequence(np.asarray(ids, np.int32), len(ids))
      for chunk in records_lib.chunks(records)
      for ids in prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in chunk])
    )
    counts = _write_fitting(writer, sequences, around, max_prompt_tokens, overlong)
    _check_kept(counts, records, "prompts", max_prompt_tokens, "max_prompt_tokens")
    flat = writer.take("ids")
    index, sizes, _ = writer.take("pieces").reshape(-1, 3).T
    writer.append("index", index)
    shape = (counts["kept"], max_prompt_tokens)
    tokens_BP = writer.full("tokens_BP", shape, tokenizer.pad_id, np.int32)
    mask_BP = writer.full("mask_BP", shape, 0, np.float32)
    end = 0
    for row, size in enumerate(sizes):
      end += size
      tokens_BP[row, max_prompt_tokens - size :] = flat[end - size : end]
      mask_BP[row, max_prompt_tokens - size :] = 1
    return counts

  settings = dict(max_prompt_tokens=max_prompt_tokens, overlong=overlong)
  settings |= dataclasses.asdict(prompt_format)
  arrays, counts = _load_or_build("prompts", records, tokenizer, settings, build, cache_dir)
  kept_records = records_lib.subset(records, arrays.pop("index"))
  return types.PromptBatch(**arrays), kept_records, counts


def comparison_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  length: int,
  prompt_format: PromptFormat = PLAIN,
  overlong: str = "drop_completion",
  cache_dir: str | os.PathLike | None = None,
) -> tuple[ComparisonRows, dict[str, int]]:
  """Comparisons, all completions of a prompt together.

  Args:
    length: T, for prompt + completion + end-of-text.
    overlong: a key of `OVERLONG_COMPARISONS`, for completions that do not fit: "drop_completion"
      (the comparison goes where fewer than two are left), "drop_comparison",
      "truncate_completion" (its end is lost, end-of-text with it; the comparison goes where the
      prompt alone fills `length`), or "truncate_prompt" (as much of its start is lost, for every
      completion alike, as lets the longest completion fit; the comparison goes where nothing of the
      prompt would be left): what long dialogues want.
    cache_dir: as in `demonstration_rows`.

  Returns:
    (rows, counts); batches have as many slots as the record with the most completions needs.

  Raises:
    ValueError: nothing fits, or an unknown name.
  """
  _check_overlong(overlong, OVERLONG_COMPARISONS)
  around = prompt_format.num_around(tokenizer)

  def build(writer: cache.ArrayWriter) -> dict[str, Any]:
    counts = Counter(kept=0)
    most, num_tokens, num_sequences = 0, 0, 0
    for name in ("ends", "row_ends"):
      writer.append(name, np.zeros(1, np.int64))
    for index, (given, sequences, num_prompt) in enumerate(tokenize()):
      most = max(most, len(sequences))
      shown = _shorten(sequences, num_prompt, around, length, overlong)
      if len(shown) < 2:
        counts[f"dropped (longer than {length} tokens)"] += 1
        continue
      counts["kept"] += 1
      num_overlong = sum(len(ids) > length for ids in sequences)
      if num_overlong and overlong == "truncate_prompt":
        counts["prompts truncated"] += 1
      elif num_overlong:
        what = "truncated" if len(shown) == len(sequences) else "dropped"
        counts[f"completions {what}"] += num_overlong
      ranks = np.asarray([given[i] for i in shown], np.int32)
      if (ranks == ranks[0]).all():
        counts["of them without an untied pair"] += 1
      ends = num_tokens + np.cumsum([len(ids) for ids in shown.values()])
      num_tokens, num_sequences = int(ends[-1]), num_sequences + len(shown)
      writer.append("ids", np.concatenate(list(shown.values())))
      writer.append("ends", ends)
      writer.append("ranks", ranks)
      writer.append("places", np.asarray(list(shown)))
      writer.append("row_ends", np.asarray([num_sequences]))
      writer.append("index", np.asarray([index]))
    _check_kept(counts, records, "comparisons", length, "length")
    return {"counts": counts, "most": most}

  def tokenize() -> Iterator[tuple[list[int], list[np.ndarray], int]]:
    """(ranks, prompt + completion of each, how many ids are the prompt's) of every record."""
    for chunk in records_lib.chunks(records):
      prompts = prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in chunk])
      texts = [text for r in chunk for text in r["completions"]]
      completions = iter(prompt_format.encode_completions(tokenizer, texts))
      for record, prompt in zip(chunk, prompts, strict=True):
        own = itertools.islice(completions, len(record["completions"]))
        sequences = [np.asarray([*prompt, *completion], np.int32) for completion in own]
        yield record["ranks"], sequences, len(prompt)

  settings = dict(length=length, overlong=overlong) | dataclasses.asdict(prompt_format)
  arrays, facts = _load_or_build("comparisons", records, tokenizer, settings, build, cache_dir)
  ids, ends, row_ends = arrays["ids"], arrays["ends"], arrays["row_ends"]
  of_row = lambda row: slice(row_ends[row], row_ends[row + 1])

  def shown_record(row: int) -> dict:
    record, places = records[int(arrays["index"][row])], arrays["places"][of_row(row)]
    return record | {name: [record[name][i] for i in places] for name in ("completions", "ranks")}

  def shown_ids(row: int) -> list[np.ndarray]:
    first, last = int(row_ends[row]), int(row_ends[row + 1])
    return [ids[start:end] for start, end in itertools.pairwise(ends[first : last + 1])]

  num_rows = len(arrays["index"])
  rows = ComparisonRows(
    ids=LazySequence(num_rows, shown_ids),
    ranks=LazySequence(num_rows, lambda row: arrays["ranks"][of_row(row)]),
    records=LazySequence(num_rows, shown_record),
    num_slots=facts["most"],
    length=length,
    pad_id=tokenizer.pad_id,
  )
  return rows, facts["counts"]


def text_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  length: int,
  packing: str = "cut",
  attend_across_documents: bool = True,
  reset_positions: bool = False,
  max_tokens: int | None = None,
  cache_dir: str | os.PathLike | None = None,
) -> tuple[types.LmBatch, dict[str, int]]:
  """Documents packed into rows, by default as GPT-3 does: sequences are packed "without special
  masking", documents being told apart by end-of-text alone (Brown et al. 2020, arXiv:2005.14165,
  appendix B).

  Args:
    packing, attend_across_documents, reset_positions: as in `packing.pack`.
    max_tokens: reading stops after this number of tokens.
    cache_dir: as in `demonstration_rows`.

  Returns:
    (rows, counts of documents, tokens and rows).
  """
  layout: dict[str, Any] = dict(
    length=length,
    packing=packing,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )

  def build(writer: cache.ArrayWriter) -> dict[str, int]:
    counts = {"kept": 0, "tokens": 0}
    texts = (record["text"] for record in records)
    for ids in packing_lib.tokenize_documents(texts, tokenizer, max_tokens=max_tokens):
      counts["kept"] += 1
      counts["tokens"] += len(ids)
      writer.append("ids", ids)
      writer.append("sizes", np.asarray([len(ids)]))
    rows = packing_lib.pack(
      writer.take("ids"), writer.take("sizes"), pad_id=tokenizer.pad_id, writer=writer, **layout
    )
    counts["rows"] = len(rows.tokens_BT)
    if counts["kept"] < len(records):
      counts[f"dropped (beyond {max_tokens:,} tokens)"] = len(records) - counts["kept"]
    return counts

  settings = layout | dict(max_tokens=max_tokens)
  arrays, counts = _load_or_build("text", records, tokenizer, settings, build, cache_dir)
  return types.LmBatch(**arrays), counts


# ---- what to do with what is too long ------------------------------------------------------------

OVERLONG_DEMONSTRATIONS = ("drop", "truncate_left", "truncate_right")
OVERLONG_PROMPTS = ("drop", "truncate_left")
OVERLONG_COMPARISONS = (
  "drop_comparison",
  "drop_completion",
  "truncate_completion",
  "truncate_prompt",
)


def _check_overlong(name: str, choices: Sequence[str]) -> None:
  if name not in choices:
    raise ValueError(f"overlong {name!r}; choose from {list(choices)}")


def _shorten(
  sequences: Sequence[np.ndarray],
  num_prompt: int,
  around: tuple[int, int],
  length: int,
  overlong: str,
) -> dict[int, np.ndarray]:
  """What is kept of sequences that share a prompt, by their place; empty if they are dropped.

  Args:
    sequences: prompt and completion.
    num_prompt, around: ids of the prompt, and those of them that its format writes.
    length: of a sequence, at most.
    overlong: one of the choices above.
  """
  excess = max(len(ids) for ids in sequences) - length
  if excess <= 0:
    return dict(enumerate(sequences))
  if overlong == "drop_completion":
    return {i: ids for i, ids in enumerate(sequences) if len(ids) <= length}
  if overlong in ("truncate_right", "truncate_completion") and num_prompt < length:
    return {i: ids[:length] for i, ids in enumerate(sequences)}
  # A token of the prompt's own must stay, and what the format writes before it.
  head, tail = around
  left = overlong in ("truncate_left", "truncate_prompt")
  if left and excess < num_prompt - head - tail:
    return {i: np.delete(ids, slice(head, head + excess)) for i, ids in enumerate(sequences)}
  return {}


def _write_fitting(
  writer: cache.ArrayWriter,
  sequences: Iterable[TokenSequence],
  around: tuple[int, int],
  length: int,
  overlong: str,
) -> Counter[str]:
  """Writes "ids", and "pieces": (place, ids, the prompt's ids) of each that is kept; counts all."""
  counts = Counter(kept=0)
  for index, (ids, num_prompt) in enumerate(sequences):
    shown = _shorten([ids], num_prompt, around, length, overlong)
    if not shown:
      counts[f"dropped (longer than {length} tokens)"] += 1
      continue
    counts["kept"] += 1
    num_lost = len(ids) - len(shown[0])
    if num_lost:
      counts["of them truncated"] += 1
    num_prompt -= num_lost if overlong == "truncate_left" else 0
    writer.append("ids", shown[0])
    writer.append("pieces", np.asarray([index, len(shown[0]), num_prompt]))
  return counts


def _check_kept(counts: Mapping[str, int], records: Sequence, what: str, length: int, field: str):
  if not counts["kept"]:
    raise ValueError(
      f"none of {len(records)} {what} fits into {length} tokens; raise {field}, or choose another "
      "overlong"
    )
