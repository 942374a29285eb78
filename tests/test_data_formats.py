"""Published formats, on small files made here and on the real ones."""

import gzip
import json
import re

import numpy as np
import pytest

from rlhf.data import formats
from rlhf.data.formats import FormatOptions


def write(path, *values: object):
  path.write_text("\n".join(json.dumps(v) for v in values), encoding="utf-8")
  return path


# ---- hh


def dialogue(reply: str, question: str = "Why?") -> str:
  return f"\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: {question}\n\nAssistant:{reply}"


PROMPT = "Human: Hi\n\nAssistant: Hello.\n\nHuman: Why?"


def test_hh_splits_at_the_last_reply(tmp_path):
  path = write(
    tmp_path / "hh.jsonl", {"chosen": dialogue(" Because."), "rejected": dialogue(" No.")}
  )
  assert formats.read("comparison", path, "hh")[0] == [
    {"prompt": PROMPT, "completions": ["Because.", "No."], "ranks": [1, 2]}
  ]
  assert formats.read("demonstration", path, "hh")[0] == [
    {"prompt": PROMPT, "completion": "Because."}
  ]
  assert formats.read("prompt", path, "hh")[0] == [{"prompt": PROMPT}]


def test_hh_drops_what_is_no_comparison_and_counts_it(tmp_path):
  path = write(
    tmp_path / "hh.jsonl",
    {"chosen": dialogue(" a"), "rejected": dialogue(" b")},
    {"chosen": dialogue(" a"), "rejected": dialogue(" b", "Where?")},
    {"chosen": dialogue(" a"), "rejected": dialogue("  ")},
    {"chosen": dialogue(""), "rejected": dialogue(" b")},
  )
  kept, counts = formats.read("comparison", path, "hh")
  assert len(kept) == 1
  assert counts == {
    "kept": 1,
    "dropped (replies to different prompts)": 1,
    "dropped (empty reply)": 2,
  }


@pytest.mark.parametrize(
  "value, message",
  [
    ({"chosen": "x"}, 'no field "rejected"; it must be an object with the fields chosen, rejected'),
    ({"chosen": "x", "rejected": None}, '"rejected" is not a string'),
    ({"chosen": "x", "rejected": dialogue("a")}, "a dialogue without"),
    ("chosen", "not a JSON object"),
  ],
)
def test_hh_malformed(tmp_path, value, message):
  with pytest.raises(ValueError, match=f"hh.jsonl:1: {message}"):
    formats.read("comparison", write(tmp_path / "hh.jsonl", value), "hh")


# ---- alpaca


def test_alpaca_lines_and_lists(tmp_path):
  values = [
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Sing.", "input": "", "output": "La"},
    {"instruction": "Play.", "response": "Now"},
    {"instruction": "Rest.", "input": "", "output": " "},
  ]
  (tmp_path / "list.json").write_text("\n" + json.dumps(values))
  for path in (write(tmp_path / "a.jsonl", *values), tmp_path / "list.json"):
    kept, counts = formats.read("demonstration", path, "alpaca")
    assert kept == [
      {"prompt": "Add.\n\n1 2", "completion": "3"},
      {"prompt": "Sing.", "completion": "La"},
      {"prompt": "Play.", "completion": "Now"},
    ]
    assert counts == {"kept": 3, "dropped (empty output)": 1}
    assert len(formats.read("prompt", path, "alpaca")[0]) == 4


def test_alpaca_malformed(tmp_path):
  path = write(tmp_path / "a.jsonl", {"instruction": "x", "input": 3, "output": "y"})
  with pytest.raises(ValueError, match='a.jsonl:1: "input" is not a string'):
    formats.read("demonstration", path, "alpaca")
  (tmp_path / "l.json").write_text('[{"instruction": "x", "output": "y"}, {"instruction": "x"}]')
  with pytest.raises(ValueError, match='l.json: item 2: no field "output"'):
    formats.read("demonstration", tmp_path / "l.json", "alpaca")
  (tmp_path / "l.json").write_text('[{"instruction": "x"')
  with pytest.raises(ValueError, match="l.json starts like a JSON list but is not JSON"):
    formats.read("demonstration", tmp_path / "l.json", "alpaca")


def test_alpaca_with_a_chosen_and_a_rejected_answer(tmp_path):
  path = write(
    tmp_path / "a.jsonl", {"instruction": "x", "input": "", "chosen": "good", "rejected": "bad"}
  )
  assert formats.read("comparison", path, "alpaca")[0] == [
    {"prompt": "x", "completions": ["good", "bad"], "ranks": [1, 2]}
  ]


# ---- t0


def test_t0_strips_the_written_end_of_text(tmp_path):
  path = write(
    tmp_path / "t0.jsonl",
    {"prompt": "Q <|endoftext|> ?\n", "completion": "A<|endoftext|>", "template": "t"},
    {"prompt": "Q", "completion": " <|endoftext|>"},
  )
  kept, counts = formats.read("demonstration", path, "t0")
  assert kept == [{"prompt": "Q <|endoftext|> ?", "completion": "A"}]
  assert counts == {"kept": 1, "dropped (empty completion)": 1}


# ---- alpaca_eval


def candidates(*preferences: float) -> list[dict]:
  return [
    {"model": str(i), "output": f"output {i}", "pref_vs_ref": p} for i, p in enumerate(preferences)
  ]


def test_alpaca_eval_ranks_by_preference_with_ties(tmp_path):
  preference = {f"output {i}": p for i, p in enumerate((0.5, 0.9, 0.5, 0.0, 1))}
  path = write(
    tmp_path / "e.jsonl", {"instruction": "x", "candidates": candidates(*preference.values())}
  )
  options = FormatOptions(min_completions=5, max_completions=5)
  record = formats.read("comparison", path, "alpaca_eval", options=options)[0][0]
  assert sorted(record["completions"]) == sorted(preference)
  rank = dict(zip(record["completions"], record["ranks"]))
  assert rank == {"output 4": 1, "output 1": 2, "output 0": 3, "output 2": 3, "output 3": 4}


def test_alpaca_eval_draws_k_from_the_seed_and_the_prompt_alone(tmp_path):
  values = [
    {"instruction": f"prompt {i}", "candidates": candidates(*[0.1] * 12)} for i in range(300)
  ]
  path = write(tmp_path / "e.jsonl", *values)
  kept = formats.read("comparison", path, "alpaca_eval")[0]
  assert {len(r["completions"]) for r in kept} == {4, 5, 6, 7, 8, 9}
  assert all(len(set(r["completions"])) == len(r["completions"]) for r in kept)
  reverse = write(tmp_path / "r.jsonl", *values[::-1])
  assert formats.read("comparison", reverse, "alpaca_eval")[0] == kept[::-1]
  other = formats.read("comparison", path, "alpaca_eval", options=FormatOptions(seed=1))[0]
  assert other != kept


def test_alpaca_eval_empty_outputs_and_too_few(tmp_path):
  few = candidates(0.1, 0.2, 0.3, 0.4)
  few[1]["output"] = ""
  path = write(
    tmp_path / "e.jsonl",
    {"instruction": "x", "candidates": few},
    {"instruction": "y", "candidates": candidates(0.1, 0.2, 0.3, 0.4)},
  )
  kept, counts = formats.read("comparison", path, "alpaca_eval")
  assert [r["prompt"] for r in kept] == ["y"]
  assert counts == {"kept": 1, "dropped (fewer than 4 outputs)": 1}


@pytest.mark.parametrize(
  "value, message",
  [
    ({"instruction": "x"}, 'no field "candidates"'),
    ({"instruction": "x", "candidates": {}}, '"candidates" is not a list'),
    ({"instruction": "x", "candidates": [{"model": "m"}]}, r'candidates\[0\]: no field "output"'),
    (
      {"instruction": "x", "candidates": [{"output": "m"}]},
      r'candidates\[0\]: "pref_vs_ref" is null; it must be a number from 0 to 1',
    ),
    ({"instruction": "x", "candidates": candidates(1.5)}, r'candidates\[0\]: "pref_vs_ref" is 1.5'),
  ],
)
def test_alpaca_eval_malformed(tmp_path, value, message):
  with pytest.raises(ValueError, match=f"e.jsonl:1: {message}"):
    formats.read("comparison", write(tmp_path / "e.jsonl", value), "alpaca_eval")


# ---- pandalm and llmbar


def vote(*votes: int, **changes) -> dict:
  return {
    "instruction": "Add.",
    "input": "1 2",
    "response1": "3",
    "response2": "4",
    **{f"annotator{i}": v for i, v in enumerate(votes, 1)},
    **changes,
  }


def test_pandalm_ranks_by_the_majority(tmp_path):
  votes = ((1, 1, 1), (2, 1, 2), (1, 0, 2), (0, 1, 0), (1, 0, 1))
  path = write(
    tmp_path / "p.jsonl",
    *(vote(*three) for three in votes),
    vote(1, 1, 1, response2=" "),
    vote(2, 2, 2, response1=True),
  )
  kept, counts = formats.read("comparison", path, "pandalm")
  assert [record["ranks"] for record in kept] == [[1, 2], [2, 1], [1, 1], [1, 1], [1, 2], [2, 1]]
  assert kept[0] == {
    "prompt": "Add.\n\n1 2",
    "completions": ["3", "4"],
    "ranks": [1, 2],
    "votes": [1, 1, 1],
  }
  assert kept[-1]["completions"] == ["True", "4"]
  assert counts == {"kept": 6, "dropped (empty response)": 1}
  assert len(formats.read("prompt", path, "pandalm")[0]) == 7


def test_llmbar_ranks_by_the_label(tmp_path):
  value = {"input": "Add.", "output_1": "3", "output_2": "4", "subset": "Natural"}
  path = write(tmp_path / "l.jsonl", {**value, "label": 1}, {**value, "label": 2})
  kept, _ = formats.read("comparison", path, "llmbar")
  assert kept == [
    {"prompt": "Add.", "completions": ["3", "4"], "ranks": ranks} for ranks in ([1, 2], [2, 1])
  ]


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("pandalm", vote(1, 1), '"annotator3" is null; it must be 1 or 2 for the better response'),
    ("pandalm", vote(1, 3, 1), '"annotator2" is 3'),
    ("pandalm", vote(1, 1, 1, response1=3), '"response1" is not a string'),
    ("pandalm", vote(1, 1, 1, input=3), '"input" is not a string'),
    ("llmbar", {"input": "x", "output_1": "a", "output_2": "b", "label": 0}, '"label" is 0; it'),
    ("llmbar", {"input": "x", "output_1": "a", "label": 1}, 'no field "output_2"'),
  ],
)
def test_malformed_pairs(tmp_path, name, value, message):
  with pytest.raises(ValueError, match=f"v.jsonl:1: {message}"):
    formats.read("comparison", write(tmp_path / "v.jsonl", value), name)


def test_options_are_checked():
  with pytest.raises(ValueError, match=r"document_split 'page'; choose from \['blank_line'"):
    FormatOptions(document_split="page")
  with pytest.raises(ValueError, match="completions per comparison from 5 to 4"):
    FormatOptions(min_completions=5, max_completions=4)


# ---- text


def test_text_splits(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(b"one\r\nline\r\n \t\r\n\r\ntwo\n\n  indented\n")
  split = {
    name: [
      r["text"]
      for r in formats.read("text", path, "text", options=FormatOptions(document_split=name))[0]
    ]
    for name in ("blank_line", "line", "file")
  }
  assert split["blank_line"] == ["one\nline", "two", "indented"]
  assert split["line"] == ["one", "line", "two", "  indented"]
  assert split["file"] == ["one\nline\n \t\n\ntwo\n\n  indented"]


@pytest.mark.parametrize("name", ["blank_line", "line", "file"])
def test_text_read_by_line_splits_as_the_whole_text_does(tmp_path, name: str):
  split = {
    "blank_line": lambda text: re.split(r"\n[^\S\n]*\n\s*", text),
    "line": lambda text: text.split("\n"),
    "file": lambda text: [text],
  }[name]
  rng = np.random.default_rng(0)
  pieces = ["\n", "\n", " ", "\t", "\r\n", "\x0b", "\u2028", "a", "é"]
  for _ in range(300):
    text = "".join(rng.choice(pieces, size=12)) + "x"
    (tmp_path / "a.txt").write_bytes(text.encode())
    options = FormatOptions(document_split=name)
    found = formats.read("text", tmp_path / "a.txt", "text", options=options)[0]
    expected = [d.strip("\n") for d in split(text.replace("\r\n", "\n")) if d.strip()]
    assert [record["text"] for record in found] == expected


def test_written_end_of_text_splits_documents(tmp_path):
  (tmp_path / "stories.txt").write_text("One.\n\nTwo.\n<|endoftext|>\n\nThree.\n<|endoftext|>\n")
  options = FormatOptions(document_split="end_of_text")
  found = formats.read("text", tmp_path / "stories.txt", "text", options=options)[0]
  assert found == [{"text": "One.\n\nTwo."}, {"text": "Three."}]


def test_specs_are_parsed():
  assert formats.parse_spec("jsonl:a:b.jsonl") == ("jsonl", "a:b.jsonl", FormatOptions())
  assert formats.parse_spec("lm1b") is None and formats.parse_spec("gsm8k:1.0.0") is None
  assert formats.parse_spec("alpaca_eval,min_completions=2,max_completions=3:x")[2] == (
    FormatOptions(min_completions=2, max_completions=3)
  )
  for spec, named in (
    ("jsonl,seed=1:x", "jsonl has no option 'seed'; its options: none"),
    ("text,split=line:x", "'split'; its options: document_split"),
    ("alpaca_eval,seed=a:x", "seed is 'a'"),
    ("text,document_split=page:x", "document_split 'page'; choose from .*'end_of_text'"),
  ):
    with pytest.raises(ValueError, match=named):
      formats.parse_spec(spec)


def test_text_of_a_directory(tmp_path):
  (tmp_path / "b.txt").write_text("B")
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"A"))
  (tmp_path / "c.md").write_text("C")
  assert formats.read("text", tmp_path, "text")[0] == [{"text": "A"}, {"text": "B"}]
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match="empty holds no .txt or .txt.gz file"):
    formats.read("text", tmp_path / "empty", "text")


def test_text_that_is_not_utf8(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match="a.txt is not UTF-8 at byte 3"):
    formats.read("text", tmp_path / "a.txt", "text")


# ---- the real files; numbers counted by hand from the files


@pytest.mark.parametrize(
  "kind, format_name, path, counts",
  [
    (
      "comparison",
      "hh",
      "preferences/hh_harmless.jsonl.gz",
      {"kept": 1830, "dropped (empty reply)": 2, "dropped (replies to different prompts)": 4},
    ),
    ("comparison", "alpaca_eval", "preferences/alpaca_eval_v2.jsonl.gz", {"kept": 640}),
    ("comparison", "alpaca_eval", "preferences/alpaca_eval_v1.jsonl.gz", {"kept": 640}),
    ("comparison", "alpaca", "preferences/politeness.jsonl.gz", {"kept": 881}),
    (
      "comparison",
      "pandalm",
      "preferences/pandalm_3annotators.jsonl.gz",
      {"kept": 741, "dropped (empty response)": 29},
    ),
    (
      "comparison",
      "llmbar",
      "preferences/llmbar.jsonl.gz",
      {"kept": 980, "dropped (empty output)": 1},
    ),
    ("demonstration", "alpaca", "demonstrations/alpaca_small/alpaca_en_demo.jsonl", {"kept": 999}),
    (
      "demonstration",
      "alpaca",
      "demonstrations/gpteacher/codegen-instruct.jsonl.gz",
      {"kept": 4535},
    ),
    (
      "demonstration",
      "t0",
      "demonstrations/t0/t0_p3_templates.jsonl.gz",
      {"kept": 53785, "dropped (empty completion)": 1400},
    ),
    ("text", "text", "pretraining/gutenberg_books.txt.gz", {"kept": 24}),
  ],
)
def test_real_files(shared_data, kind, format_name, path, counts):
  kept, found = formats.read(kind, shared_data / path, format_name)
  assert found == counts and len(kept) == counts["kept"]
