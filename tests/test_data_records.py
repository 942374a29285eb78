"""Each way a line can be wrong, and the words that say so."""

import gzip
import json

import pytest

from rlhf.data import formats, records

DEMONSTRATION = {"prompt": "p", "completion": "c"}
COMPARISON = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 1]}


def write(path, *lines: object):
  """JSONL; a string is written as it is."""
  text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
  path.write_text("\n".join(text) + "\n", encoding="utf-8")
  return path


def changed(record: dict, **fields: object) -> dict:
  return {k: v for k, v in dict(record, **fields).items() if v is not ...}


GOOD = [
  ("demonstration", DEMONSTRATION),
  ("demonstration", changed(DEMONSTRATION, user="u", task={"n": [1, None]}, use_case="chat")),
  ("comparison", COMPARISON),
  ("comparison", changed(COMPARISON, labeler="l", user="", ranks=[5, 5, 5])),
  ("prompt", {"prompt": " ä "}),
  ("text", {"text": "t"}),
]


@pytest.mark.parametrize("kind, record", GOOD)
def test_good_records(tmp_path, kind: str, record: dict):
  path = write(tmp_path / "x.jsonl", record, "", record)
  assert formats.read(kind, path, "jsonl") == ([record, record], {"kept": 2})


BAD = [
  (
    "demonstration",
    "{'prompt': 'p'}",
    "not JSON",
    r"not JSON \(Expecting property name .*\); each line must be one JSON object",
  ),
  ("demonstration", '{"prompt": "p"', "not JSON", "each line must be one JSON object"),
  ("demonstration", "[" * 100_000, "not JSON", "not readable JSON"),
  (
    "demonstration",
    '["p", "c"]',
    "not an object",
    "a JSON list, not an object; a demonstration is",
  ),
  ("demonstration", "null", "not an object", "a JSON null, not an object"),
  (
    "demonstration",
    {"prompt": "p"},
    "missing field",
    'no field "completion"; a demonstration is {"prompt": str, "completion": str',
  ),
  (
    "demonstration",
    changed(DEMONSTRATION, prompt=5),
    "wrong type",
    '"prompt" is a JSON number; it must be a string',
  ),
  (
    "demonstration",
    changed(DEMONSTRATION, user=7),
    "wrong type",
    '"user" is a JSON number; it must be a string',
  ),
  (
    "demonstration",
    changed(DEMONSTRATION, completion=" \n"),
    "empty text",
    '"completion" is empty; it must hold text',
  ),
  (
    "demonstration",
    '{"prompt": "a\\ud800", "completion": "c"}',
    "not Unicode",
    '"prompt" holds half a surrogate pair at character 1',
  ),
  (
    "comparison",
    changed(COMPARISON, completions=["a"], ranks=[1]),
    "one completion",
    '"completions" has 1 of them; a comparison needs 2 or more',
  ),
  (
    "comparison",
    changed(COMPARISON, completions="abc"),
    "wrong type",
    '"completions" is a JSON string; it must be a list of strings',
  ),
  (
    "comparison",
    changed(COMPARISON, completions=["a", "b", None]),
    "wrong type",
    r'"completions"\[2\] is a JSON null; it must be a string',
  ),
  (
    "comparison",
    changed(COMPARISON, completions=["a", "", "c"]),
    "empty text",
    r'"completions"\[1\] is empty; it must hold text',
  ),
  (
    "comparison",
    changed(COMPARISON, ranks=[1, 2]),
    "ranks of another length",
    "2 ranks for 3 completions; give one rank per completion",
  ),
  (
    "comparison",
    changed(COMPARISON, ranks=[1, 2, 1.5]),
    "rank not an integer",
    r'"ranks"\[2\] is 1.5; ranks are integers',
  ),
  (
    "comparison",
    changed(COMPARISON, ranks=[1, 2, True]),
    "rank not an integer",
    r'"ranks"\[2\] is true; ranks are integers',
  ),
  (
    "comparison",
    changed(COMPARISON, ranks=[0, 1, 2]),
    "rank out of range",
    r'"ranks"\[0\] is 0; ranks count from 1',
  ),
  ("comparison", changed(COMPARISON, ranks={}), "wrong type", '"ranks" is a JSON object'),
  ("comparison", changed(COMPARISON, labeler=3), "wrong type", '"labeler" is a JSON number'),
  ("comparison", changed(COMPARISON, ranks=...), "missing field", 'no field "ranks"'),
  ("prompt", {"text": "t"}, "missing field", 'no field "prompt"; a prompt is'),
  ("text", {"text": ["t"]}, "wrong type", '"text" is a JSON list; it must be a string'),
]


@pytest.mark.parametrize("kind, line, reason, message", BAD)
def test_bad_lines_stop_the_run_naming_path_and_line(tmp_path, kind, line, reason, message):
  good = next(record for other, record in GOOD if other == kind)
  path = write(tmp_path / "x.jsonl", good, "", line, good)
  with pytest.raises(ValueError, match=rf"^\S*x.jsonl:3: .*{message}") as error:
    formats.read(kind, path, "jsonl")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind, line, reason, message", BAD)
def test_bad_lines_are_skipped_and_counted_on_request(tmp_path, kind, line, reason, message):
  good = next(record for other, record in GOOD if other == kind)
  path = write(tmp_path / "x.jsonl", good, line, good, line)
  kept, counts = formats.read(kind, path, "jsonl", on_bad="skip")
  assert kept == [good, good]
  assert counts == {"kept": 2, f"skipped ({reason})": 2}


def test_a_byte_that_is_not_utf8(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
  with pytest.raises(ValueError, match=r"x.jsonl:2: not UTF-8 \(byte 10\)"):
    formats.read("text", tmp_path / "x.jsonl", "jsonl")


def test_byte_order_mark_and_windows_line_ends(tmp_path):
  (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n')
  assert formats.read("text", tmp_path / "x.jsonl", "jsonl")[0] == [{"text": "a"}, {"text": "b"}]


def test_gz_reads_like_the_plain_file(tmp_path):
  path = tmp_path / "x.jsonl.gz"
  path.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": ""}'))
  with pytest.raises(ValueError, match='x.jsonl.gz:2: "text" is empty'):
    formats.read("text", path, "jsonl")
  assert formats.read("text", path, "jsonl", on_bad="skip")[0] == [{"text": "a"}]


@pytest.mark.parametrize("raw", [b"plain", gzip.compress(b'{"text": "a"}', mtime=0)[:-9]])
def test_a_broken_gz(tmp_path, raw: bytes):
  (tmp_path / "x.jsonl.gz").write_bytes(raw)
  with pytest.raises(ValueError, match="x.jsonl.gz is not a whole gzip file"):
    formats.read("text", tmp_path / "x.jsonl.gz", "jsonl")


def test_files_without_a_record(tmp_path):
  with pytest.raises(ValueError, match="absent.jsonl does not exist"):
    formats.read("text", tmp_path / "absent.jsonl", "jsonl")
  with pytest.raises(ValueError, match="x.jsonl gave no text"):
    formats.read("text", write(tmp_path / "x.jsonl", ""), "jsonl")
  with pytest.raises(ValueError, match=r"gave no text \(jsonl: 0 kept, 2 skipped \(not JSON\)\)"):
    formats.read("text", write(tmp_path / "x.jsonl", "?", "!"), "jsonl", on_bad="skip")
  with pytest.raises(ValueError, match="cannot be read"):
    formats.read("text", tmp_path, "jsonl")


def test_unknown_names(tmp_path):
  path = write(tmp_path / "x.jsonl", {"text": "t"})
  with pytest.raises(ValueError, match=r"format 'csv'; choose from \['alpaca'"):
    formats.read("text", path, "csv")
  with pytest.raises(ValueError, match=r"record kind 'pair'; choose from \['comparison'"):
    formats.read("pair", path, "jsonl")
  with pytest.raises(ValueError, match=r"on_bad 'warn'; choose from \['skip', 'stop'\]"):
    formats.read("text", path, "jsonl", on_bad="warn")
  with pytest.raises(
    ValueError,
    match="format 't0' holds no comparison records, only "
    r"\['demonstration', 'prompt'\]; formats for comparison",
  ):
    formats.read("comparison", path, "t0")


def test_counts_in_words():
  counts = {"kept": 1830, "dropped (empty reply)": 2, "skipped (not JSON)": 0}
  assert records.describe_counts("comparisons", counts) == (
    "comparisons: 1,830 kept, 2 dropped (empty reply)"
  )
