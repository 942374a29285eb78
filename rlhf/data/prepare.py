"""Records -> rows of tokens: the one place where text becomes what a model sees.

    sequence = encode(prompt + prompt_suffix) + encode(completion_prefix + completion) + [eot]

The two parts are encoded apart, so that the prompt's tokens are the same in a demonstration, in a
comparison and when the policy is asked to answer.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from rlhf import types
from rlhf.data import packing as packing_lib
from rlhf.data.packing import TokenSequence
from rlhf.tokenizer import Tokenizer

PROMPT_SUFFIX = "\n\nAnswer:"
COMPLETION_PREFIX = " "


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRows:
  """Tokenised comparisons, ragged: padded only where a batch is made.

  Attributes:
    ids: [row][completion] int32, prompt + completion + end-of-text, at most `length` each.
    ranks: [row] int32, one per completion.
    records: the record of each row.
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
        tokens_BKT[b, k, :len(ids)] = ids
        mask_BKT[b, k, :len(ids)] = 1
      num = len(self.ranks[index])
      rank_BK[b, :num] = self.ranks[index]
      valid_BK[b, :num] = 1
    return types.ComparisonBatch(tokens_BKT=tokens_BKT, mask_BKT=mask_BKT, rank_BK=rank_BK,
                                 valid_BK=valid_BK)

  def pairs(self) -> "ComparisonRows":
    """Every untied pair as a row of its own, K = 2, the better completion first.

    Shuffled as independent rows they let a completion take part in up to K-1 updates of one
    epoch, which overfits (InstructGPT section 3.5): for that ablation, and for nothing else.
    """
    triples = [(row, i, j) for row, rank in enumerate(self.ranks)
               for i in range(len(rank)) for j in range(len(rank)) if rank[i] < rank[j]]
    if not triples:
      raise ValueError("no comparison has an untied pair; give ranks that differ")
    return dataclasses.replace(
        self, ids=[[self.ids[row][i], self.ids[row][j]] for row, i, j in triples],
        ranks=[np.asarray([1, 2], np.int32) for _ in triples],
        records=[self.records[row] for row, _, _ in triples], num_slots=2)


def demonstration_rows(records: Sequence[dict], tokenizer: Tokenizer, *, length: int,
                       prompt_suffix: str = PROMPT_SUFFIX,
                       completion_prefix: str = COMPLETION_PREFIX, packing: str = "best_fit",
                       overlong: str = "drop", prompt_loss_weight: float = 0.0,
                       attend_across_documents: bool = False, reset_positions: bool = True
                       ) -> tuple[types.LmBatch, dict[str, int]]:
  """Demonstrations as rows for LM training, with loss on completion and end-of-text.

  Args:
    records: demonstrations.
    tokenizer: text to ids.
    length: tokens per row.
    prompt_suffix, completion_prefix: see the top of this file.
    packing, prompt_loss_weight, attend_across_documents, reset_positions: as in
      `packing.pack_sequences`.
    overlong: a key of `OVERLONG_DEMONSTRATIONS`, for sequences of more than `length` tokens:
      "drop"; "truncate_left" (the prompt loses its start; dropped where the completion alone is
      too long); "truncate_right" (the end is lost, end-of-text with it; dropped where the prompt
      alone fills the row).

  Returns:
    (rows, counts): LmBatch of numpy arrays; counts of kept, truncated and dropped sequences, and
    of rows.

  Raises:
    ValueError: nothing fits into `length`, or an unknown name.
  """
  shorten = _choose("overlong", overlong, OVERLONG_DEMONSTRATIONS)
  sequences = tokenize_demonstrations(records, tokenizer, prompt_suffix=prompt_suffix,
                                      completion_prefix=completion_prefix)
  kept, counts = _fit(sequences, length, shorten)
  if not kept:
    raise ValueError(f"none of {len(records)} demonstrations fits into {length} tokens; use longer "
                     "rows or another overlong than " + repr(overlong))
  rows = packing_lib.pack_sequences(
      kept, length=length, pad_id=tokenizer.pad_id, packing=packing,
      prompt_loss_weight=prompt_loss_weight, attend_across_documents=attend_across_documents,
      reset_positions=reset_positions)
  counts["rows"] = len(rows.tokens_BT)
  return rows, counts


def tokenize_demonstrations(records: Sequence[dict], tokenizer: Tokenizer, *,
                            prompt_suffix: str = PROMPT_SUFFIX,
                            completion_prefix: str = COMPLETION_PREFIX) -> list[TokenSequence]:
  """prompt + completion + end-of-text of each record, whatever its length."""
  prompts = tokenizer.encode_batch([r["prompt"] + prompt_suffix for r in records])
  completions = tokenizer.encode_batch([completion_prefix + r["completion"] for r in records])
  return [TokenSequence(ids=np.asarray([*prompt, *completion, tokenizer.eot_id], np.int32),
                        num_prompt=len(prompt))
          for prompt, completion in zip(prompts, completions, strict=True)]


def prompt_rows(records: Sequence[dict], tokenizer: Tokenizer, *, max_prompt_tokens: int,
                prompt_suffix: str = PROMPT_SUFFIX, overlong: str = "drop"
                ) -> tuple[types.PromptBatch, list[dict], dict[str, int]]:
  """Prompts, left-padded.

  Args:
    records: anything with a "prompt".
    tokenizer: text to ids.
    max_prompt_tokens: P; the suffix counts.
    prompt_suffix: see the top of this file.
    overlong: a key of `OVERLONG_PROMPTS`: "drop" (the paper filters prompts of more than 1k
      tokens, InstructGPT appendix C) or "truncate_left".

  Returns:
    (rows, kept records in the order of the rows, counts).

  Raises:
    ValueError: no prompt fits, or an unknown name.
  """
  shorten = _choose("overlong", overlong, OVERLONG_PROMPTS)
  encoded = tokenizer.encode_batch([r["prompt"] + prompt_suffix for r in records])
  kept, kept_records, counts = [], [], {"kept": 0}
  for record, ids in zip(records, encoded, strict=True):
    if len(ids) > max_prompt_tokens:
      ids = shorten(ids, max_prompt_tokens)
      _count(counts, f"dropped (longer than {max_prompt_tokens} tokens)" if ids is None
             else "of them truncated")
    if ids is not None:
      kept.append(ids)
      kept_records.append(record)
  counts["kept"] = len(kept)
  if not kept:
    raise ValueError(f"none of {len(records)} prompts fits into {max_prompt_tokens} tokens; raise "
                     "max_prompt_tokens or truncate")
  tokens_BP = np.full((len(kept), max_prompt_tokens), tokenizer.pad_id, np.int32)
  mask_BP = np.zeros((len(kept), max_prompt_tokens), np.float32)
  for row, ids in enumerate(kept):
    tokens_BP[row, max_prompt_tokens - len(ids):] = ids
    mask_BP[row, max_prompt_tokens - len(ids):] = 1
  return types.PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP), kept_records, counts


def comparison_rows(records: Sequence[dict], tokenizer: Tokenizer, *, length: int,
                    num_slots: int | None = None, prompt_suffix: str = PROMPT_SUFFIX,
                    completion_prefix: str = COMPLETION_PREFIX, overlong: str = "drop_completion"
                    ) -> tuple[ComparisonRows, dict[str, int]]:
  """Comparisons, all completions of a prompt together.

  Args:
    records: comparisons.
    tokenizer: text to ids.
    length: T, for prompt + completion + end-of-text.
    num_slots: K of every batch; None takes the largest number of completions found.
    prompt_suffix, completion_prefix: see the top of this file.
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
    raise ValueError(f"a comparison has {most} completions and a batch num_slots={num_slots}; "
                     f"use at least {most}")
  prompts = tokenizer.encode_batch([r["prompt"] + prompt_suffix for r in records])
  flat = iter(tokenizer.encode_batch(
      [completion_prefix + text for r in records for text in r["completions"]]))
  rows = ComparisonRows(ids=[], ranks=[], records=[], length=length, pad_id=tokenizer.pad_id,
                        num_slots=most if num_slots is None else num_slots)
  counts = {"kept": 0}
  for record, prompt in zip(records, prompts, strict=True):
    sequences = [np.asarray([*prompt, *next(flat), tokenizer.eot_id], np.int32)
                 for _ in record["completions"]]
    shown = shorten(sequences, len(prompt), length)
    num_overlong = sum(len(ids) > length for ids in sequences)
    if len(shown) < 2:
      _count(counts, f"dropped (longer than {length} tokens)")
      continue
    if num_overlong:
      if overlong == "truncate_prompt":
        _count(counts, "prompts truncated")
      else:
        _count(counts, "completions truncated" if len(shown) == len(sequences)
               else "completions dropped", num_overlong)
    ranks = np.asarray([record["ranks"][i] for i in shown], np.int32)
    if len(set(ranks.tolist())) == 1:
      _count(counts, "of them without an untied pair")
    rows.ids.append(list(shown.values()))
    rows.ranks.append(ranks)
    rows.records.append(record)
  counts["kept"] = len(rows)
  if not len(rows):
    raise ValueError(f"none of {len(records)} comparisons fits into {length} tokens; use a greater "
                     "length or truncate")
  return rows, counts


def text_rows(records: Sequence[dict], tokenizer: Tokenizer, *, length: int, packing: str = "cut",
              attend_across_documents: bool = True, reset_positions: bool = False,
              max_tokens: int | None = None, shuffle_seed: int | None = None
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
      documents, length=length, pad_id=tokenizer.pad_id, packing=packing,
      attend_across_documents=attend_across_documents, reset_positions=reset_positions)
  counts = {"kept": len(documents), "tokens": int(sum(len(d) for d in documents)),
            "rows": len(rows.tokens_BT)}
  if len(documents) < len(records):
    counts[f"dropped (beyond {max_tokens:,} tokens)"] = len(records) - len(documents)
  return rows, counts


def decode_completion(ids: Sequence[int], tokenizer: Tokenizer, *,
                      completion_prefix: str = COMPLETION_PREFIX) -> str:
  """Text of a response: what `completion_prefix` added to every completion is taken off again."""
  return tokenizer.decode(ids).removeprefix(completion_prefix)


def _choose(what: str, name: str, choices: dict):
  if name not in choices:
    raise ValueError(f"{what} {name!r}; choose from {sorted(choices)}")
  return choices[name]


def _count(counts: dict[str, int], name: str, number: int = 1) -> None:
  counts[name] = counts.get(name, 0) + number


def _fit(sequences: Sequence[TokenSequence], length: int, shorten
         ) -> tuple[list[TokenSequence], dict[str, int]]:
  kept, counts = [], {"kept": 0}
  for sequence in sequences:
    if len(sequence.ids) > length:
      sequence = shorten(sequence, length)
      _count(counts, f"dropped (longer than {length} tokens)" if sequence is None
             else "of them truncated")
    if sequence is not None:
      kept.append(sequence)
  counts["kept"] = len(kept)
  return kept, counts


# ---- what to do with what is too long: name -> function ------------------------------------------


def _cut_left(sequence: TokenSequence, length: int) -> TokenSequence | None:
  excess = len(sequence.ids) - length
  if excess >= sequence.num_prompt:  # a token of the prompt must stay: the first has no loss
    return None
  return TokenSequence(ids=sequence.ids[excess:], num_prompt=sequence.num_prompt - excess)


def _cut_right(sequence: TokenSequence, length: int) -> TokenSequence | None:
  if sequence.num_prompt >= length:
    return None
  return TokenSequence(ids=sequence.ids[:length], num_prompt=sequence.num_prompt)


OVERLONG_DEMONSTRATIONS = {
    "drop": lambda sequence, length: None,
    "truncate_left": _cut_left,
    "truncate_right": _cut_right,
}

OVERLONG_PROMPTS = {
    "drop": lambda ids, length: None,
    "truncate_left": lambda ids, length: ids[-length:],
}


def _drop_completions(sequences: list[np.ndarray], num_prompt: int, length: int
                      ) -> dict[int, np.ndarray]:
  del num_prompt
  return {i: ids for i, ids in enumerate(sequences) if len(ids) <= length}


def _drop_comparison(sequences: list[np.ndarray], num_prompt: int, length: int
                     ) -> dict[int, np.ndarray]:
  shown = _drop_completions(sequences, num_prompt, length)
  return shown if len(shown) == len(sequences) else {}


def _cut_completions(sequences: list[np.ndarray], num_prompt: int, length: int
                     ) -> dict[int, np.ndarray]:
  return {} if num_prompt >= length else {i: ids[:length] for i, ids in enumerate(sequences)}


def _cut_prompt(sequences: list[np.ndarray], num_prompt: int, length: int
                ) -> dict[int, np.ndarray]:
  excess = max(max(len(ids) for ids in sequences) - length, 0)
  return {} if excess >= num_prompt else {i: ids[excess:] for i, ids in enumerate(sequences)}


# (sequences of one prompt, its tokens, length) -> those to show, by their place in the record
OVERLONG_COMPARISONS = {
    "drop_completion": _drop_completions,
    "drop_comparison": _drop_comparison,
    "truncate_completion": _cut_completions,
    "truncate_prompt": _cut_prompt,
}
