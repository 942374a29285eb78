"""Rows of tokens, against plain loops and numbers worked out by hand."""

import dataclasses

import numpy as np
import pytest

from rlhf.data import packing as packing_lib
from rlhf.data import prepare
from rlhf.tokenization.tokenizer import EOT_TOKEN, Tokenizer

COLON = prepare.PromptFormat(prompt_suffix=":")

PAD = 99


def documents(*lists: list[int]) -> list[np.ndarray]:
  return [np.asarray(ids, np.int32) for ids in lists]


def sequence(num_prompt: int, *ids: int) -> prepare.TokenSequence:
  return prepare.TokenSequence(ids=np.asarray(ids, np.int32), num_prompt=num_prompt)


def pack_text(docs, *, packing="cut", attend=True, reset=False, length=4):
  """As GPT-3 packs, unless told otherwise."""
  return packing_lib.pack(
    np.concatenate(docs) if docs else np.zeros(0, np.int32),
    np.asarray([len(ids) for ids in docs]),
    length=length,
    pad_id=PAD,
    packing=packing,
    attend_across_documents=attend,
    reset_positions=reset,
  )


def pack_sequences(
  sequences, *, packing="best_fit", attend=False, reset=True, weight=0.0, length=8, pad_id=PAD
):
  return packing_lib.pack(
    np.concatenate([s.ids for s in sequences]),
    np.asarray([len(s.ids) for s in sequences]),
    num_prompt=np.asarray([s.num_prompt for s in sequences]),
    length=length,
    pad_id=pad_id,
    packing=packing,
    prompt_loss_weight=weight,
    attend_across_documents=attend,
    reset_positions=reset,
  )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train_bpe(["The cat sat on the mat. Answer: yes\n\n" * 9], 290)


# ---- pretraining text

TEXT = documents([1, 2, 3, 0], [4, 0], [5, 6, 7, 8, 0])


def test_text_as_gpt3_packs_it():
  rows = pack_text(TEXT, length=4)
  assert rows.tokens_BT.tolist() == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 8, 0, PAD]]
  assert rows.loss_mask_BT.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 0]]
  assert rows.segment_BT.tolist() == [[1] * 4, [1] * 4, [1, 1, 1, 0]]
  assert rows.position_BT.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 0]]
  assert [
    a.dtype for a in (rows.tokens_BT, rows.loss_mask_BT, rows.segment_BT, rows.position_BT)
  ] == [np.int32, np.float32, np.int32, np.int32]


def test_text_with_documents_apart():
  rows = pack_text(TEXT, length=4, attend=False, reset=True)
  assert rows.tokens_BT.tolist() == [[1, 2, 3, 0], [4, 0, 5, 6], [7, 8, 0, PAD]]
  assert rows.segment_BT.tolist() == [[1] * 4, [1, 1, 2, 2], [1, 1, 1, 0]]
  assert rows.position_BT.tolist() == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 2, 0]]
  # Nothing comes before the 5: its document starts there.
  assert rows.loss_mask_BT.tolist() == [[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]


@pytest.mark.parametrize("attend, reset", [(True, True), (False, False)])
def test_the_two_choices_are_independent(attend: bool, reset: bool):
  rows = pack_text(TEXT, length=4, attend=attend, reset=reset)
  assert rows.position_BT[1].tolist() == ([0, 1, 0, 1] if reset else [0, 1, 2, 3])
  assert rows.segment_BT[1].tolist() == ([1] * 4 if attend else [1, 1, 2, 2])
  assert rows.loss_mask_BT[1].tolist() == ([0, 1, 1, 1] if attend else [0, 1, 0, 1])


def test_text_against_a_plain_loop():
  rng = np.random.default_rng(0)
  docs = [rng.integers(1, 50, size=rng.integers(1, 40)).astype(np.int32) for _ in range(60)]
  length = 16
  rows = pack_text(docs, length=length, attend=False, reset=True)
  tokens = np.full(rows.tokens_BT.size, PAD)
  segment, position, mask = (np.zeros(rows.tokens_BT.size) for _ in range(3))
  slot, number = 0, 0
  for doc in docs:
    fresh = True
    for token in doc:
      if slot % length == 0:
        number, fresh = 0, True
      if fresh:
        number, place, fresh = number + 1, 0, False
      tokens[slot], segment[slot], position[slot] = token, number, place
      mask[slot] = place > 0
      slot, place = slot + 1, place + 1
  for found, expected in (
    (rows.tokens_BT, tokens),
    (rows.segment_BT, segment),
    (rows.position_BT, position),
    (rows.loss_mask_BT, mask),
  ):
    np.testing.assert_array_equal(found.ravel(), expected)


def test_best_fit_keeps_documents_whole_and_cuts_only_those_longer_than_a_row():
  text = documents([1, 2, 3, 0], [4, 0], [5, 6, 7, 8, 0])
  rows = pack_text(
    text,
    length=4,
    packing="best_fit",
    attend=False,
    reset=True,
  )
  assert rows.tokens_BT.tolist() == [[1, 2, 3, 0], [5, 6, 7, 8], [4, 0, 0, PAD]]
  assert rows.segment_BT.tolist() == [[1] * 4, [1] * 4, [1, 1, 2, 0]]
  assert rows.position_BT.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 0, 0]]
  assert rows.loss_mask_BT.tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]]
  rng = np.random.default_rng(0)
  docs = [np.append(rng.integers(1, 50, size=rng.integers(1, 16)), 0) for _ in range(200)]
  rows = pack_text(
    docs,
    length=16,
    packing="best_fit",
    attend=False,
    reset=True,
  )
  pieces = [
    tuple(row[segment == n])
    for row, segment in zip(rows.tokens_BT, rows.segment_BT)
    for n in range(1, segment.max() + 1)
  ]
  assert sorted(pieces) == sorted(tuple(doc) for doc in docs)
  assert (rows.segment_BT > 0).mean() > 0.9


def test_an_unknown_packing_of_text_is_named():
  with pytest.raises(ValueError, match="packing 'tight'; choose from .*best_fit.*cut"):
    pack_text(TEXT, length=4, packing="tight")


def test_documents_end_in_end_of_text_and_stop_at_the_limit(tokenizer: Tokenizer):
  texts = ["The cat"] * 400
  docs = list(packing_lib.tokenize_documents(texts, tokenizer))
  one = tokenizer.encode("The cat") + [tokenizer.eot_id]
  assert len(docs) == 400 and all(d.tolist() == one for d in docs)
  some = packing_lib.tokenize_documents(texts, tokenizer, max_tokens=len(one) + 1)
  assert [d.tolist() for d in some] == [one, one[:1]]
  assert sum(
    len(d) for d in packing_lib.tokenize_documents(texts, tokenizer, max_tokens=10**9)
  ) == 400 * len(one)


def test_text_rows_are_counted(tokenizer: Tokenizer):
  records = [{"text": c * 3} for c in "abcdefgh"]
  _, counts = prepare.text_rows(records, tokenizer, length=8)
  total = sum(len(tokenizer.encode(r["text"])) + 1 for r in records)
  assert counts == {"kept": 8, "tokens": total, "rows": -(-total // 8)}
  _, counts = prepare.text_rows(records, tokenizer, length=8, max_tokens=9)
  assert counts["tokens"] == 9 and counts["kept"] + counts["dropped (beyond 9 tokens)"] == 8


@pytest.mark.parametrize("packing", ["cut", "best_fit"])
def test_rows_do_not_depend_on_how_many_tokens_are_laid_out_at_once(packing: str, monkeypatch):
  rng = np.random.default_rng(0)
  docs = [rng.integers(1, 50, size=rng.integers(1, 40)).astype(np.int32) for _ in range(60)]
  choices = dict(packing=packing, attend=False, reset=True, length=16)
  whole = pack_text(docs, **choices)
  monkeypatch.setattr(packing_lib, "_CHUNK_TOKENS", 37)
  chunked = pack_text(docs, **choices)
  for name in ("tokens_BT", "loss_mask_BT", "segment_BT", "position_BT"):
    np.testing.assert_array_equal(getattr(chunked, name), getattr(whole, name))


# ---- demonstrations


def test_one_sequence_per_row():
  rows = pack_sequences(
    [sequence(2, 1, 2, 3, 0), sequence(1, 4, 5, 0)],
    length=5,
    packing="one_per_row",
    weight=0.5,
  )
  assert rows.tokens_BT.tolist() == [[1, 2, 3, 0, PAD], [4, 5, 0, PAD, PAD]]
  assert rows.loss_mask_BT.tolist() == [[0, 0.5, 1, 1, 0], [0, 1, 1, 0, 0]]
  assert rows.segment_BT.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]
  assert rows.position_BT.tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 0]]


def test_best_fit_fills_the_fullest_row_that_has_room():
  # Longest first: 6 opens row 0 (2 free), 5 opens row 1 (3 free), 2 fits both and fills row 0.
  sequences = [sequence(1, 1, 1), sequence(1, *[2] * 5), sequence(0, 3), sequence(1, *[4] * 6)]
  rows = pack_sequences(sequences, length=8)
  assert rows.tokens_BT.tolist() == [[4] * 6 + [1, 1], [2] * 5 + [3, PAD, PAD]]
  assert rows.segment_BT.tolist() == [[1] * 6 + [2, 2], [1] * 5 + [2, 0, 0]]
  assert rows.position_BT.tolist() == [[*range(6), 0, 1], [*range(5), 0, 0, 0]]
  assert rows.loss_mask_BT.tolist() == [[0] + [1] * 5 + [0, 1], [0] + [1] * 4 + [0, 0, 0]]


def test_packed_sequences_may_see_each_other_by_choice():
  rows = pack_sequences(
    [sequence(1, 1, 2, 0), sequence(1, 3, 0)],
    length=5,
    attend=True,
    reset=False,
    weight=0.25,
  )
  assert rows.segment_BT.tolist() == [[1] * 5]
  assert rows.position_BT.tolist() == [[0, 1, 2, 3, 4]]
  assert rows.loss_mask_BT.tolist() == [[0, 1, 1, 0.25, 1]]


def test_every_sequence_is_in_the_rows_once_and_whole():
  rng = np.random.default_rng(1)
  sequences = []
  for i in range(500):
    num_prompt, total = sorted(rng.integers(1, 20, size=2) + np.arange(2))
    sequences.append(sequence(num_prompt, *(i * 100 + np.arange(total))))
  rows = pack_sequences(sequences, length=32, pad_id=-1)
  found = []
  for b in range(len(rows.tokens_BT)):
    for number in range(1, rows.segment_BT[b].max() + 1):
      here = rows.segment_BT[b] == number
      ids = rows.tokens_BT[b, here]
      original = sequences[ids[0] // 100]
      assert ids.tolist() == original.ids.tolist()
      assert rows.position_BT[b, here].tolist() == list(range(len(ids)))
      expected = [float(t >= max(1, original.num_prompt)) for t in range(len(ids))]
      assert rows.loss_mask_BT[b, here].tolist() == expected
      found.append(ids[0] // 100)
  assert sorted(found) == list(range(500))
  total = sum(len(s.ids) for s in sequences)
  assert len(rows.tokens_BT) <= 1.05 * total / 32
  padding = rows.segment_BT == 0
  assert (rows.tokens_BT[padding] == -1).all() and not rows.loss_mask_BT[padding].any()


def test_packing_errors():
  with pytest.raises(ValueError, match=r"packing 'dense'; choose from \['best_fit', 'one_per_row'"):
    pack_sequences([sequence(1, 1, 2)], length=4, packing="dense")
  with pytest.raises(ValueError, match="a sequence has 5 tokens and a row 4"):
    pack_sequences([sequence(1, *range(5))], length=4)
  with pytest.raises(ValueError, match="no document to pack"):
    pack_text([], length=4)


def test_a_prompt_that_contains_end_of_text_changes_no_mask():
  rows = pack_sequences([sequence(4, 1, 0, 2, 0, 3, 0)], length=8)
  assert rows.loss_mask_BT.tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]
  assert rows.segment_BT.tolist() == [[1] * 6 + [0, 0]]


def test_demonstrations_are_prompt_suffix_prefix_completion_and_end(tokenizer: Tokenizer):
  records = [{"prompt": f"The {EOT_TOKEN} cat", "completion": "sat"}]
  rows, counts = prepare.demonstration_rows(records, tokenizer, length=64, packing="one_per_row")
  prompt = tokenizer.encode(f"The {EOT_TOKEN} cat\n\nAnswer:")
  answer = tokenizer.encode(" sat") + [tokenizer.eot_id]
  ids = rows.tokens_BT[0, : len(prompt) + len(answer)].tolist()
  assert ids == prompt + answer and ids.count(tokenizer.eot_id) == 1
  assert rows.loss_mask_BT[0].sum() == len(answer)
  assert rows.loss_mask_BT[0, len(prompt) : len(ids)].all()
  assert counts == {"kept": 1, "rows": 1}
  colon = prepare.PromptFormat(prompt_suffix=":", completion_prefix="\n")
  other, _ = prepare.demonstration_rows(records, tokenizer, length=64, prompt_format=colon)
  assert tokenizer.decode(other.tokens_BT[0]) == f"The {EOT_TOKEN} cat:\nsat"


def test_the_prompt_has_the_same_tokens_everywhere(tokenizer: Tokenizer):
  record = {"prompt": "The cat", "completion": "sat", "completions": ["sat", "on"], "ranks": [1, 2]}
  prompts, _, _ = prepare.prompt_rows([record], tokenizer, max_prompt_tokens=40)
  asked = prompts.tokens_BP[0][prompts.mask_BP[0] == 1]
  demonstrations, _ = prepare.demonstration_rows([record], tokenizer, length=48)
  comparisons, _ = prepare.comparison_rows([record], tokenizer, length=48)
  for ids in (demonstrations.tokens_BT[0], *comparisons.ids[0]):
    assert ids[: len(asked)].tolist() == asked.tolist()


def _overlong(tokenizer: Tokenizer, overlong: str, length: int = 30):
  records = [
    {"prompt": "a", "completion": "b"},
    {"prompt": "x" * 40, "completion": "b"},
    {"prompt": "a", "completion": "y" * 40},
  ]
  rows, counts = prepare.demonstration_rows(
    records, tokenizer, length=length, prompt_format=COLON, overlong=overlong, packing="one_per_row"
  )
  texts = [tokenizer.decode(row[s == 1]) for row, s in zip(rows.tokens_BT, rows.segment_BT)]
  return rows, texts, counts


def test_overlong_demonstrations(tokenizer: Tokenizer):
  _, texts, counts = _overlong(tokenizer, "drop")
  assert texts == ["a: b"]
  assert counts == {"kept": 1, "dropped (longer than 30 tokens)": 2, "rows": 1}
  rows, texts, counts = _overlong(tokenizer, "truncate_left")
  assert texts == ["a: b", "x" * 26 + ": b"]
  assert counts == {
    "kept": 2,
    "of them truncated": 1,
    "dropped (longer than 30 tokens)": 1,
    "rows": 2,
  }
  assert rows.loss_mask_BT[1].tolist() == [0.0] * 27 + [1.0] * 3  # " ", "b", end-of-text
  # The third is " ", 40 times "y" and end-of-text: it wants one token of the prompt before it.
  assert _overlong(tokenizer, "truncate_left", length=42)[1] == ["a: b", "x" * 38 + ": b"]
  assert _overlong(tokenizer, "truncate_left", length=43)[1][2] == ": " + "y" * 40
  rows, texts, counts = _overlong(tokenizer, "truncate_right")
  assert texts == ["a: b", "a: " + "y" * 27]
  assert counts == {
    "kept": 2,
    "dropped (longer than 30 tokens)": 1,
    "of them truncated": 1,
    "rows": 2,
  }
  assert tokenizer.eot_id not in rows.tokens_BT[1]
  assert rows.loss_mask_BT[1].tolist() == [0.0] * 2 + [1.0] * 28
  with pytest.raises(ValueError, match=r"overlong 'cut'; choose from \['drop', 'truncate_left'"):
    _overlong(tokenizer, "cut")
  with pytest.raises(ValueError, match="none of 3 demonstrations fits into 4 tokens"):
    _overlong(tokenizer, "drop", length=4)


# ---- prompts


def test_prompts_are_left_padded_and_keep_their_records(tokenizer: Tokenizer):
  records = [
    {"prompt": "abc", "task": 1},
    {"prompt": "z" * 30, "task": 2},
    {"prompt": EOT_TOKEN, "task": 3},
  ]
  rows, kept, counts = prepare.prompt_rows(
    records, tokenizer, max_prompt_tokens=16, prompt_format=COLON
  )
  assert [r["task"] for r in kept] == [1, 3]
  assert counts == {"kept": 2, "dropped (longer than 16 tokens)": 1}
  ids = tokenizer.encode("abc:")
  assert rows.tokens_BP[0].tolist() == [tokenizer.pad_id] * (16 - len(ids)) + ids
  assert rows.mask_BP[0].tolist() == [0] * (16 - len(ids)) + [1] * len(ids)
  assert tokenizer.decode(rows.tokens_BP[1]) == f"{EOT_TOKEN}:"
  rows, kept, counts = prepare.prompt_rows(
    records, tokenizer, max_prompt_tokens=16, prompt_format=COLON, overlong="truncate_left"
  )
  assert len(kept) == 3 and counts == {"kept": 3, "of them truncated": 1}
  assert tokenizer.decode(rows.tokens_BP[1]) == "z" * 15 + ":"
  with pytest.raises(ValueError, match="none of 3 prompts fits into 2 tokens"):
    prepare.prompt_rows(records, tokenizer, max_prompt_tokens=2)
  with pytest.raises(ValueError, match=r"overlong 'x'; choose from \['drop', 'truncate_left'\]"):
    prepare.prompt_rows(records, tokenizer, max_prompt_tokens=16, overlong="x")


def test_a_decoded_response_loses_one_prefix(tokenizer: Tokenizer):
  ids = [*tokenizer.encode("  sat"), tokenizer.eot_id, tokenizer.pad_id]
  assert prepare.PLAIN.decode_completion(tokenizer, ids) == " sat"
  assert prepare.PromptFormat(completion_prefix="").decode_completion(tokenizer, ids) == "  sat"
  assert prepare.PLAIN.decode_completion(tokenizer, [tokenizer.eot_id]) == ""


# ---- comparisons

COMPARISONS = [
  {"prompt": "p", "completions": ["a", "w" * 40, "c"], "ranks": [2, 1, 2]},
  {"prompt": "q", "completions": ["w" * 40, "b"], "ranks": [1, 2]},
  {"prompt": "r", "completions": ["a", "b"], "ranks": [2, 1]},
]


def _comparisons(tokenizer: Tokenizer, **choices):
  return prepare.comparison_rows(COMPARISONS, tokenizer, length=20, prompt_format=COLON, **choices)


def test_comparisons_keep_completions_together(tokenizer: Tokenizer):
  rows, counts = _comparisons(tokenizer)
  assert counts == {
    "kept": 2,
    "completions dropped": 1,
    "of them without an untied pair": 1,
    "dropped (longer than 20 tokens)": 1,
  }
  assert [r["prompt"] for r in rows.records] == ["p", "r"]
  batch = rows.take([1, 0])
  assert batch.tokens_BKT.shape == (2, 3, 20) and batch.tokens_BKT.dtype == np.int32
  assert batch.rank_BK.tolist() == [[2, 1, 0], [2, 2, 0]]
  assert batch.valid_BK.tolist() == [[1, 1, 0], [1, 1, 0]]
  ids = tokenizer.encode("r:") + tokenizer.encode(" a") + [tokenizer.eot_id]
  assert batch.tokens_BKT[0, 0].tolist() == ids + [tokenizer.pad_id] * (20 - len(ids))
  assert batch.mask_BKT[0, 0].tolist() == [1] * len(ids) + [0] * (20 - len(ids))
  assert not batch.mask_BKT[:, 2].any() and (batch.tokens_BKT[:, 2] == tokenizer.pad_id).all()


def test_overlong_comparisons(tokenizer: Tokenizer):
  rows, counts = _comparisons(tokenizer, overlong="drop_comparison")
  assert [r["prompt"] for r in rows.records] == ["r"]
  assert counts == {"kept": 1, "dropped (longer than 20 tokens)": 2}
  rows, counts = _comparisons(tokenizer, overlong="truncate_completion")
  assert counts == {"kept": 3, "completions truncated": 2}
  assert len(rows.ids[0][1]) == 20 and tokenizer.eot_id not in rows.ids[0][1]
  assert rows.ranks[0].tolist() == [2, 1, 2]
  with pytest.raises(ValueError, match=r"overlong 'drop'; choose from \['drop_comparison'"):
    _comparisons(tokenizer, overlong="drop")
  with pytest.raises(ValueError, match="none of 3 comparisons fits into 3 tokens"):
    prepare.comparison_rows(COMPARISONS, tokenizer, length=3)


def test_a_long_prompt_loses_its_start_before_every_completion_alike(tokenizer: Tokenizer):
  records = [
    {"prompt": "abcdefgh", "completions": ["i", "jklm"], "ranks": [1, 2]},
    {"prompt": "n", "completions": ["o", "p"], "ranks": [2, 1]},
    {"prompt": "q", "completions": ["r", "stuvwxy"], "ranks": [2, 1]},
  ]
  rows, counts = prepare.comparison_rows(
    records,
    tokenizer,
    length=8,
    prompt_format=prepare.PromptFormat(prompt_suffix="", completion_prefix=""),
    overlong="truncate_prompt",
  )
  texts = [[tokenizer.decode(ids[:-1]) for ids in row] for row in rows.ids]
  assert texts == [["fghi", "fghjklm"], ["no", "np"]]
  assert all(ids[-1] == tokenizer.eot_id and len(ids) <= 8 for row in rows.ids for ids in row)
  assert counts == {"kept": 2, "prompts truncated": 1, "dropped (longer than 8 tokens)": 1}


def test_more_slots_than_needed(tokenizer: Tokenizer):
  rows = dataclasses.replace(_comparisons(tokenizer)[0], num_slots=9)
  assert rows.take([0]).valid_BK.tolist() == [[1, 1] + [0] * 7]


def test_every_untied_pair_becomes_a_row(tokenizer: Tokenizer):
  records = [{"prompt": "p", "completions": ["a", "b", "c", "d"], "ranks": [3, 1, 1, 2]}]
  rows, _ = prepare.comparison_rows(records, tokenizer, length=20, prompt_format=COLON)
  pairs = rows.pairs()
  texts = [tuple(tokenizer.decode(ids)[-1] for ids in row) for row in pairs.ids]
  assert sorted(texts) == [("b", "a"), ("b", "d"), ("c", "a"), ("c", "d"), ("d", "a")]
  assert pairs.num_slots == 2 and {tuple(r) for r in pairs.ranks} == {(1, 2)}
  assert list(pairs.records) == records * 5
  tied, _ = prepare.comparison_rows([dict(records[0], ranks=[1] * 4)], tokenizer, length=20)
  with pytest.raises(ValueError, match="no comparison has an untied pair"):
    tied.pairs()
