"""Records -> rows of tokens: the one place where text becomes what a model sees.

    sequence = PromptFormat.encode_prompts(prompt) + PromptFormat.encode_completions(completion)

The two parts are encoded apart, so that the prompt's tokens are the same in a demonstration, in a
comparison and when the policy is asked to answer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf import types
from rlhf.data import packing as packing_lib
from rlhf.data.packing import TokenSequence
from rlhf.tokenization.tokenizer import Tokenizer

PROMPT_SUFFIX = "\n\nAnswer:"
COMPLETION_PREFIX = " "
PROMPT_FORMATS = ("plain", "chat")


class Around(NamedTuple):
  """How many ids a format writes before every prompt and behind it."""

  head: int
  tail: int


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
    if self.prompt_format not in PROMPT_FORMATS:
      raise ValueError(
        f"prompt_format {self.prompt_format!r}; choose from {', '.join(PROMPT_FORMATS)}"
      )
    if self.is_chat:
      for name in ("prompt_suffix", "completion_prefix"):
        if getattr(self, name):
          raise ValueError(
            f"{name} is {getattr(self, name)!r} with prompt_format chat, whose "
            "template has its own text around a prompt; make it an empty string"
          )

  @classmethod
  def of(cls, group, name: str = "") -> "PromptFormat":
    """The format in any dataclass or config group that has its three fields.

    Args:
      group: has the fields.
      name: of the group, for error messages.
    """
    try:
      return cls(**{field.name: getattr(group, field.name) for field in dataclasses.fields(cls)})
    except ValueError as error:
      raise ValueError(f"{name}.{error}" if name else str(error)) from None

  @classmethod
  def trained_with(cls, export_config: Mapping[str, Any]) -> "PromptFormat":
    """The format of an export's own data; this house's plain one where it does not say."""
    trained = [
      export_config[group]
      for group in ("demonstrations", "prompts", "comparisons")
      if group in export_config
    ]
    found = dataclasses.asdict(cls())
    if trained:  # exports made before there were formats have no prompt_format: plain
      found |= {name: trained[0][name] for name in found if name in trained[0]}
    return cls(**found)

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

  def num_around(self, tokenizer: Tokenizer) -> "Around":
    """Ids before and behind the prompt's own, which stay where a prompt loses its start.

    The suffix of "plain" is a part of the prompt's text, of which the end stays.
    """
    if self.is_chat:
      return Around(tokenizer.num_chat_head, tokenizer.num_chat_tail)
    return Around(len(tokenizer.prefix_ids), 0)

  def describe(self) -> str:
    return (
      "prompt in the model's chat template"
      if self.is_chat
      else (f"prompt + {self.prompt_suffix!r}")
    )

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

  ids: list[list[np.ndarray]]
  ranks: list[np.ndarray]
  records: list[dict]
  num_slots: int
  length: int
  pad_id: int

  def __len__(self) -> int:
    return len(self.ids)

  def take(self, indices: Sequence[int]) -> types.ComparisonBatch:
    """The rows of `indices` as one padded batch of numpy arrays."""
    shape = (len(indices), self.num_slots, self.length)
    tokens_BKT = np.full(shape, self.pad_id, np.int32)
    mask_BKT = np.zeros(shape, np.float32)
    rank_BK = np.zeros(shape[:2], np.int32)
    valid_BK = np.zeros(shape[:2], np.float32)
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
    triples = [
      (row, i, j)
      for row, rank in enumerate(self.ranks)
      for i in range(len(rank))
      for j in range(len(rank))
      if rank[i] < rank[j]
    ]
    if not triples:
      raise ValueError("no comparison has an untied pair; give ranks that differ")
    return dataclasses.replace(
      self,
      ids=[[self.ids[row][i], self.ids[row][j]] for row, i, j in triples],
      ranks=[np.asarray([1, 2], np.int32) for _ in triples],
      records=[self.records[row] for row, _, _ in triples],
      num_slots=2,
    )


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
) -> tuple[types.LmBatch, dict[str, int]]:
  """Demonstrations as rows for LM training, with loss on completion and end-of-text.

  Args:
    records: demonstrations.
    tokenizer: text to ids.
    length: tokens per row.
    prompt_format: how prompts and completions are written.
    packing, prompt_loss_weight, attend_across_documents, reset_positions: as in
      `packing.pack_sequences`.
    overlong: a key of `OVERLONG_DEMONSTRATIONS`, for sequences of more than `length` tokens:
      "drop"; "truncate_left" (the prompt loses its start; dropped where no token of it would stay);
      "truncate_right" (the end is lost, end-of-text with it; dropped where the prompt alone fills
      the row).

  Returns:
    (rows, counts): LmBatch of numpy arrays; counts of kept, truncated and dropped sequences, and
    of rows.

  Raises:
    ValueError: nothing fits into `length`, or an unknown name.
  """
  shorten = _choose("overlong", overlong, OVERLONG_DEMONSTRATIONS)
  sequences = tokenize_demonstrations(records, tokenizer, prompt_format=prompt_format)
  kept, counts = _fit(sequences, length, shorten)
  if not kept:
    raise ValueError(
      f"none of {len(records)} demonstrations fits into {length} tokens; use longer "
      "rows or another overlong than " + repr(overlong)
    )
  rows = packing_lib.pack_sequences(
    kept,
    length=length,
    pad_id=tokenizer.pad_id,
    packing=packing,
    prompt_loss_weight=prompt_loss_weight,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )
  counts["rows"] = len(rows.tokens_BT)
  return rows, counts


def tokenize_demonstrations(
  records: Sequence[dict], tokenizer: Tokenizer, *, prompt_format: PromptFormat = PLAIN
) -> list[TokenSequence]:
  """prompt + completion + end of each record, whatever its length."""
  prompts = prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in records])
  completions = prompt_format.encode_completions(tokenizer, [r["completion"] for r in records])
  around = prompt_format.num_around(tokenizer)
  return [
    TokenSequence(
      ids=np.asarray([*prompt, *completion], np.int32),
      num_prompt=len(prompt),
      num_head=around.head,
      num_tail=around.tail,
    )
    for prompt, completion in zip(prompts, completions, strict=True)
  ]


def prompt_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  max_prompt_tokens: int,
  prompt_format: PromptFormat = PLAIN,
  overlong: str = "drop",
) -> tuple[types.PromptBatch, list[dict], dict[str, int]]:
  """Prompts, left-padded.

  Args:
    records: anything with a "prompt".
    tokenizer: text to ids.
    max_prompt_tokens: P; what the format writes around a prompt counts.
    prompt_format: how prompts are written.
    overlong: a key of `OVERLONG_PROMPTS`: "drop" (the paper filters prompts of more than 1k
      tokens, InstructGPT appendix C) or "truncate_left" (it loses its start; dropped where no
      token of it would stay).

  Returns:
    (rows, kept records in the order of the rows, counts).

  Raises:
    ValueError: no prompt fits, or an unknown name.
  """
  shorten = _choose("overlong", overlong, OVERLONG_PROMPTS)
  encoded = prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in records])
  around = prompt_format.num_around(tokenizer)
  kept, kept_records, counts = [], [], {"kept": 0}
  for record, ids in zip(records, encoded, strict=True):
    if len(ids) > max_prompt_tokens:
      ids = shorten(ids, around, max_prompt_tokens)
      _count(
        counts,
        f"dropped (longer than {max_prompt_tokens} tokens)" if ids is None else "of them truncated",
      )
    if ids is not None:
      kept.append(ids)
      kept_records.append(record)
  counts["kept"] = len(kept)
  if not kept:
    raise ValueError(
      f"none of {len(records)} prompts fits into {max_prompt_tokens} tokens; raise "
      "max_prompt_tokens or truncate"
    )
  tokens_BP = np.full((len(kept), max_prompt_tokens), tokenizer.pad_id, np.int32)
  mask_BP = np.zeros((len(kept), max_prompt_tokens), np.float32)
  for row, ids in enumerate(kept):
    tokens_BP[row, max_prompt_tokens - len(ids) :] = ids
    mask_BP[row, max_prompt_tokens - len(ids) :] = 1
  return types.PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP), kept_records, counts


def comparison_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  length: int,
  num_slots: int | None = None,
  prompt_format: PromptFormat = PLAIN,
  overlong: str = "drop_completion",
) -> tuple[ComparisonRows, dict[str, int]]:
  """Comparisons, all completions of a prompt together.

  Args:
    records: comparisons.
    tokenizer: text to ids.
    length: T, for prompt + completion + end-of-text.
    num_slots: K of every batch; None takes the largest number of completions found.
    prompt_format: how prompts and completions are written.
    overlong: a key of `OVERLONG_COMPARISONS`, for completions that do not fit: "drop_completion"
      (the comparison goes where fewer than two are left), "drop_comparison",
      "truncate_completion" (its end is lost, end-of-text with it; the comparison goes where the
      prompt alone fills `length`), or "truncate_prompt" (as much of its start is lost, for every
      completion alike, as lets the longest completion fit; the comparison goes where nothing of the
      prompt would be left): what long dialogues want.

  Returns:
    (rows, counts).

  Raises:
    ValueError: a record has more than `num_slots` completions, nothing fits, or an unknown name.
  """
  shorten = _choose("overlong", overlong, OVERLONG_COMPARISONS)
  most = max((len(r["completions"]) for r in records), default=0)
  if num_slots is not None and most > num_slots:
    raise ValueError(
      f"a comparison has {most} completions and a batch num_slots={num_slots}; use at least {most}"
    )
  prompts = prompt_format.encode_prompts(tokenizer, [r["prompt"] for r in records])
  flat = iter(
    prompt_format.encode_completions(
      tokenizer, [text for r in records for text in r["completions"]]
    )
  )
  around = prompt_format.num_around(tokenizer)
  rows = ComparisonRows(
    ids=[],
    ranks=[],
    records=[],
    length=length,
    pad_id=tokenizer.pad_id,
    num_slots=most if num_slots is None else num_slots,
  )
  counts = {"kept": 0}
  for record, prompt in zip(records, prompts, strict=True):
    sequences = [np.asarray([*prompt, *next(flat)], np.int32) for _ in record["completions"]]
    shown = shorten(sequences, around, len(prompt), length)
    num_overlong = sum(len(ids) > length for ids in sequences)
    if len(shown) < 2:
      _count(counts, f"dropped (longer than {length} tokens)")
      continue
    if num_overlong:
      if overlong == "truncate_prompt":
        _count(counts, "prompts truncated")
      else:
        _count(
          counts,
          "completions truncated" if len(shown) == len(sequences) else "completions dropped",
          num_overlong,
        )
    ranks = np.asarray([record["ranks"][i] for i in shown], np.int32)
    if len(set(ranks.tolist())) == 1:
      _count(counts, "of them without an untied pair")
    rows.ids.append(list(shown.values()))
    rows.ranks.append(ranks)
    rows.records.append(
      dict(
        record,
        completions=[record["completions"][i] for i in shown],
        ranks=[record["ranks"][i] for i in shown],
      )
    )
  counts["kept"] = len(rows)
  if not len(rows):
    raise ValueError(
      f"none of {len(records)} comparisons fits into {length} tokens; use a greater "
      "length or truncate"
    )
  return rows, counts


def text_rows(
  records: Sequence[dict],
  tokenizer: Tokenizer,
  *,
  length: int,
  packing: str = "cut",
  attend_across_documents: bool = True,
  reset_positions: bool = False,
  max_tokens: int | None = None,
  shuffle_seed: int | None = None,
) -> tuple[types.LmBatch, dict[str, int]]:
  """Documents packed into rows, by default as GPT-3 does; see `packing.pack_text`.

  Args:
    records: texts.
    tokenizer: text to ids.
    length: tokens per row.
    packing, attend_across_documents, reset_positions: as in `packing.pack_text`.
    max_tokens: what comes after so many tokens is left out.
    shuffle_seed: takes the documents in a random order; None keeps theirs.

  Returns:
    (rows, counts of documents, tokens and rows).
  """
  texts = (record["text"] for record in records)
  if shuffle_seed is not None:
    order = np.random.default_rng(shuffle_seed).permutation(len(records))
    texts = (records[int(i)]["text"] for i in order)
  documents = packing_lib.tokenize_documents(texts, tokenizer, max_tokens=max_tokens)
  rows = packing_lib.pack_text(
    documents,
    length=length,
    pad_id=tokenizer.pad_id,
    packing=packing,
    attend_across_documents=attend_across_documents,
    reset_positions=reset_positions,
  )
  counts = {
    "kept": len(documents),
    "tokens": int(sum(len(d) for d in documents)),
    "rows": len(rows.tokens_BT),
  }
  if len(documents) < len(records):
    counts[f"dropped (beyond {max_tokens:,} tokens)"] = len(records) - len(documents)
  return rows, counts


def _choose(what: str, name: str, choices: dict):
  if name not in choices:
    raise ValueError(f"{what} {name!r}; choose from {sorted(choices)}")
  return choices[name]


def _count(counts: dict[str, int], name: str, number: int = 1) -> None:
  counts[name] = counts.get(name, 0) + number


def _fit(
  sequences: Sequence[TokenSequence], length: int, shorten
) -> tuple[list[TokenSequence], dict[str, int]]:
  kept, counts = [], {"kept": 0}
  for sequence in sequences:
    if len(sequence.ids) > length:
      sequence = shorten(sequence, length)
      _count(
        counts,
        f"dropped (longer than {length} tokens)" if sequence is None else "of them truncated",
      )
    if sequence is not None:
      kept.append(sequence)
  counts["kept"] = len(kept)
  return kept, counts


# ---- what to do with what is too long: name -> function ------------------------------------------


def _cut_left(sequence: TokenSequence, length: int) -> TokenSequence | None:
  excess, around = len(sequence.ids) - length, Around(sequence.num_head, sequence.num_tail)
  if not _leaves_prompt(sequence.num_prompt, around, excess):
    return None
  return dataclasses.replace(
    sequence,
    ids=_without_start(sequence.ids, around, excess),
    num_prompt=sequence.num_prompt - excess,
  )


def _cut_right(sequence: TokenSequence, length: int) -> TokenSequence | None:
  if sequence.num_prompt >= length:
    return None
  return dataclasses.replace(sequence, ids=sequence.ids[:length])


def _leaves_prompt(num_prompt: int, around: Around, excess: int) -> bool:
  """Whether a token of the prompt's own stays where it loses `excess`."""
  return excess < num_prompt - around.head - around.tail


def _without_start(ids: np.ndarray, around: Around, excess: int) -> np.ndarray:
  """`excess` ids fewer; what the format writes before a prompt stays."""
  return np.concatenate([ids[: around.head], ids[around.head + excess :]])


def _cut_prompt_left(ids: list[int], around: Around, length: int) -> list[int] | None:
  excess = len(ids) - length
  if not _leaves_prompt(len(ids), around, excess):
    return None
  return [*ids[: around.head], *ids[around.head + excess :]]


OVERLONG_DEMONSTRATIONS = {
  "drop": lambda sequence, length: None,
  "truncate_left": _cut_left,
  "truncate_right": _cut_right,
}

OVERLONG_PROMPTS = {
  "drop": lambda ids, around, length: None,
  "truncate_left": _cut_prompt_left,
}


def _drop_completions(
  sequences: list[np.ndarray], around: Around, num_prompt: int, length: int
) -> dict[int, np.ndarray]:
  del around, num_prompt
  return {i: ids for i, ids in enumerate(sequences) if len(ids) <= length}


def _drop_comparison(
  sequences: list[np.ndarray], around: Around, num_prompt: int, length: int
) -> dict[int, np.ndarray]:
  shown = _drop_completions(sequences, around, num_prompt, length)
  return shown if len(shown) == len(sequences) else {}


def _cut_completions(
  sequences: list[np.ndarray], around: Around, num_prompt: int, length: int
) -> dict[int, np.ndarray]:
  del around
  return {} if num_prompt >= length else {i: ids[:length] for i, ids in enumerate(sequences)}


def _cut_prompt(
  sequences: list[np.ndarray], around: Around, num_prompt: int, length: int
) -> dict[int, np.ndarray]:
  excess = max(max(len(ids) for ids in sequences) - length, 0)
  if excess and not _leaves_prompt(num_prompt, around, excess):
    return {}
  return {i: _without_start(ids, around, excess) for i, ids in enumerate(sequences)}


# (sequences of one prompt, ids around it, its ids with those, length) -> those to show, by their
# place in the record
OVERLONG_COMPARISONS = {
  "drop_completion": _drop_completions,
  "drop_comparison": _drop_comparison,
  "truncate_completion": _cut_completions,
  "truncate_prompt": _cut_prompt,
}
