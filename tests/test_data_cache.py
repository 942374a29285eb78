"""The cache of arrays: complete or absent, made once, and read where it is mapped."""

import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from rlhf.data import cache, prepare, sources
from rlhf.tokenization.tokenizer import Tokenizer

KEY = {"what": "numbers"}


def build(writer: cache.ArrayWriter) -> dict:
  for start in (0, 3):
    writer.append("flat", np.arange(start, start + 3))
    writer.append("scratch", np.ones(2, np.int32))
  assert writer.take("scratch").tolist() == [1] * 4
  writer.full("square", (2, 2), 7, np.float32)[0, 1] = 1
  return {"kept": 6}


def refuse(writer):
  raise AssertionError("the entry is there already")


@pytest.mark.parametrize("cached", [True, False])
def test_arrays_come_back_with_their_facts(tmp_path, cached: bool):
  for builder in (build, refuse if cached else build):
    arrays, facts = cache.load_or_build(tmp_path if cached else None, KEY, builder, "numbers")
    assert facts == {"kept": 6} and sorted(arrays) == ["flat", "square"]
    assert arrays["flat"].tolist() == list(range(6)) and arrays["flat"].dtype == np.int64
    assert arrays["square"].tolist() == [[7, 1], [7, 7]]
    assert arrays["square"].dtype == np.float32
  assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == cached


def test_an_interrupted_build_leaves_no_entry(tmp_path):
  def interrupted(writer):
    build(writer)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cache.load_or_build(tmp_path, KEY, interrupted, "numbers")
  assert not [path for path in tmp_path.iterdir() if path.is_dir()]
  assert cache.load_or_build(tmp_path, KEY, build, "numbers")[1] == {"kept": 6}


def test_what_a_killed_build_left_is_replaced(tmp_path):
  program = (
    "import os, numpy as np\nfrom rlhf.data import cache\n"
    "def build(writer):\n  writer.append('flat', np.arange(9))\n  os.kill(os.getpid(), 9)\n"
    f"cache.load_or_build({str(tmp_path)!r}, {KEY!r}, build, 'numbers')"
  )
  assert subprocess.run([sys.executable, "-c", program]).returncode == -9
  assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [".tmp"]
  assert cache.load_or_build(tmp_path, KEY, build, "numbers")[0]["flat"].tolist() == [*range(6)]
  assert [path.suffix for path in tmp_path.iterdir() if path.is_dir()] == [""]


@pytest.mark.parametrize("file", ["flat.bin", "manifest.json"])
def test_a_damaged_entry_is_made_again(tmp_path, file: str):
  cache.load_or_build(tmp_path, KEY, build, "numbers")
  (path,) = tmp_path.glob(f"*/{file}")
  content = path.read_bytes()
  for damage in (lambda: path.write_bytes(content[:-3]), path.unlink):
    damage()
    arrays, _ = cache.load_or_build(tmp_path, KEY, build, "numbers")
    assert arrays["flat"].tolist() == list(range(6)) and path.read_bytes() == content


def test_another_process_is_waited_for(tmp_path, monkeypatch):
  """Whoever is let in second finds what the first one wrote."""
  alone = cache.workdir_lib.alone

  @contextlib.contextmanager
  def after_another(lock_path, what):
    monkeypatch.setattr(cache.workdir_lib, "alone", alone)
    cache.load_or_build(tmp_path, KEY, build, "numbers")
    with alone(lock_path, what):
      yield

  monkeypatch.setattr(cache.workdir_lib, "alone", after_another)
  assert cache.load_or_build(tmp_path, KEY, refuse, "numbers")[1] == {"kept": 6}


def test_where_the_cache_is(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
  assert cache.directory(None, tmp_path) == tmp_path / "home" / "rlhf" / "data"
  assert cache.directory(tmp_path / "mine", tmp_path) == tmp_path / "mine"
  (tmp_path / "file").touch()
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
  assert cache.directory(None, tmp_path / "run") == tmp_path / "run" / "cache"
  with pytest.raises(ValueError, match="--cache_dir=.*file/x cannot be written"):
    cache.directory(tmp_path / "file" / "x", tmp_path)


# ---- rows


def write(path, records) -> str:
  path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
  return f"jsonl:{path}"


RECORDS = {
  "text": [{"text": f"The cat {i} sat on the mat. " * (1 + i % 3)} for i in range(90)],
  "demonstration": [{"prompt": f"Who {i}?", "completion": "x" * (1 + i % 40)} for i in range(89)],
  "prompt": [{"prompt": "Who? " * (1 + i % 9), "user": str(i)} for i in range(90)],
  "comparison": [
    {"prompt": f"Who {i}?", "completions": ["yes", "no" * (i % 20 + 1), "c"], "ranks": [1, 2, 2]}
    for i in range(90)
  ],
}
MAKERS = {
  "text": (prepare.text_rows, dict(length=16)),
  "demonstration": (prepare.demonstration_rows, dict(length=40, overlong="truncate_left")),
  "prompt": (prepare.prompt_rows, dict(max_prompt_tokens=30)),
  "comparison": (prepare.comparison_rows, dict(length=36)),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train_bpe(["The cat sat on the mat. Answer: yes\n\n" * 9], 290)


def contents(rows) -> list:
  if isinstance(rows, prepare.ComparisonRows):
    batch = rows.take(range(len(rows)))
    return [batch.tokens_BKT.tolist(), batch.rank_BK.tolist(), list(rows.records), rows.num_slots]
  return [array.tolist() for array in vars(rows).values()]


@pytest.mark.parametrize("kind", sorted(RECORDS))
def test_cached_rows_are_those_made_in_memory(tmp_path, monkeypatch, tokenizer, kind: str):
  make, choices = MAKERS[kind]
  expected, *others = make(RECORDS[kind], tokenizer, **choices)
  source = sources.load(write(tmp_path / "x.jsonl", RECORDS[kind]), kind, cache_dir=tmp_path / "c")
  for _ in range(2):
    rows, *found = make(source, tokenizer, **choices, cache_dir=tmp_path / "c")
    assert contents(rows) == contents(expected)
    assert [list(x) for x in found] == [list(x) for x in others] and found[-1] == others[-1]
    # The second time nothing is tokenised.
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
  monkeypatch.undo()
  other = Tokenizer.train_bpe(["Who is it?"], 280)
  rows, *_ = make(source, other, **choices, cache_dir=tmp_path / "c")
  assert contents(rows) != contents(expected)


# ---- memory

MEASURE = """
import sys
from rlhf.data import batches, prepare, sources
from rlhf.tokenization.tokenizer import Tokenizer
spec, kind, cache_dir = sys.argv[1:]
make = {"text": prepare.text_rows, "comparison": prepare.comparison_rows}[kind]
source = sources.load(spec, kind, cache_dir=cache_dir)
tokenizer = Tokenizer.train_bpe(["the cat sat on the mat"] * 9, 300)
rows = make(source, tokenizer, length=256, cache_dir=cache_dir)[0]
stream = batches.Batches(rows, batch_size=8, seed=0)
for step in range(20):
  stream[step]
status = open("/proc/self/status").read()
print(int(status.split("RssAnon:")[1].split()[0]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
@pytest.mark.parametrize("kind", ["text", "comparison"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, repository, kind: str):
  """8 times as much, 40 MB, may take 40 MB more: indices, and what the tokenizer keeps."""
  used = []
  for size in (1, 8):
    num = size * 5_000
    lines = [
      {"text": f"{i} the mat sat on the cat, it is said. " * 25}
      if kind == "text"
      else {"prompt": f"who {i}?", "completions": ["the cat " * 60, f"mat {i} "], "ranks": [1, 2]}
      for i in range(num)
    ]
    spec = write(tmp_path / f"{size}.jsonl", lines)
    done = subprocess.run(
      [sys.executable, "-c", MEASURE, spec, kind, str(tmp_path / "cache")],
      check=True,
      capture_output=True,
      text=True,
      cwd=repository,
    )
    used.append(int(done.stdout.split()[-1]))
  assert used[1] < used[0] + 40, used
