"""Records of local files through the cache, of public sets, and spec errors."""

import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf.data import formats, sources

RECORDS = {
  "demonstration": [
    {"prompt": "p", "completion": "c"},
    {
      "prompt": "ä\n",
      "completion": " 猫 ",
      "user": "u",
      "use_case": "chat",
      "task": {"n": [1, None], "deep": {"x": 0.5}},
    },
  ],
  "comparison": [
    {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]},
    {
      "prompt": "q",
      "completions": ["a", "b", "ç", "d"],
      "ranks": [1, 1, 2, 7],
      "labeler": "l",
      "user": "u",
    },
  ],
  "prompt": [{"prompt": "one"}, {"prompt": "two", "user": "u", "use_case": "rewrite"}],
  "text": [{"text": "a\n\nb"}, {"text": "\x00é", "source": "web"}],
}


def write(path: pathlib.Path, records: list) -> pathlib.Path:
  path.write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
  return path


@pytest.fixture
def load(tmp_path, capsys):
  """(records, what was printed) of a spec."""

  def load(spec: str, kind: str, **choices):
    capsys.readouterr()
    found = sources.load(spec, kind, cache_dir=tmp_path / "cache", **choices)
    return found, capsys.readouterr().out

  return load


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", sorted(RECORDS))
def test_records_come_back_as_they_were(tmp_path, capsys, kind: str, cached: bool):
  path = write(tmp_path / "x.jsonl", RECORDS[kind])
  found = sources.load(f"jsonl:{path}", kind, cache_dir=tmp_path / "cache" if cached else None)
  assert list(found) == RECORDS[kind]
  assert found[-1] == RECORDS[kind][1] and found[:1] == RECORDS[kind][:1]
  assert capsys.readouterr().out == f"{kind} records from jsonl:{path}: 2 kept\n"
  assert (found.fingerprint is not None) == cached == (tmp_path / "cache").exists()
  with pytest.raises(IndexError):
    found[2]


def test_an_empty_user_is_left_out(tmp_path, load):
  path = write(tmp_path / "x.jsonl", [{"user": "", "x": "", "prompt": "p"}])
  assert list(load(f"jsonl:{path}", "prompt")[0]) == [{"prompt": "p", "x": ""}]


def test_half_a_surrogate_pair_in_a_field_that_nothing_reads(tmp_path, load):
  path = write(tmp_path / "x.jsonl", [{"prompt": "p", "x": "\ud800"}])
  assert load(f"jsonl:{path}", "prompt")[0][0]["x"] == "\ud800"


def test_a_second_run_reads_what_the_first_one_wrote(tmp_path, load, monkeypatch):
  path = write(tmp_path / "x.jsonl", RECORDS["prompt"])
  first, first_line = load(f"jsonl:{path}", "prompt")
  monkeypatch.setattr(formats, "iterate", None)  # whoever reads the file again fails
  second, second_line = load(f"jsonl:{path}", "prompt")
  assert list(first) == list(second) and first_line == second_line
  copy = tmp_path / "copy.jsonl"
  copy.write_bytes(path.read_bytes())
  assert load(f"jsonl:{copy}", "prompt")[0].fingerprint == first.fingerprint


def test_the_cache_knows_contents_format_kind_and_options(tmp_path, load):
  path = write(tmp_path / "x.jsonl", [{"prompt": str(i), "completion": "c"} for i in range(20)])
  assert len(load(f"jsonl:{path}", "demonstration")[0]) == 20
  assert "completion" in load(f"jsonl:{path}", "prompt")[0][0]
  assert "completion" not in load(f"t0:{path}", "prompt")[0][0]
  write(path, [{"prompt": "new", "completion": "c"}])
  assert len(load(f"jsonl:{path}", "demonstration")[0]) == 1
  (tmp_path / "a.txt").write_text("one\ntwo")
  assert len(load(f"text:{tmp_path / 'a.txt'}", "text")[0]) == 1
  assert len(load(f"text,document_split=line:{tmp_path / 'a.txt'}", "text")[0]) == 2


def test_a_directory_of_text_is_known_by_all_its_files(tmp_path, load):
  directory = tmp_path / "texts"
  directory.mkdir()
  (directory / "a.txt").write_text("A")
  assert len(load(f"text:{directory}", "text")[0]) == 1
  (directory / "b.txt").write_text("B")
  assert len(load(f"text:{directory}", "text")[0]) == 2


def test_a_malformed_line_stops_and_leaves_no_entry(tmp_path, load):
  path = write(tmp_path / "x.jsonl", [{"prompt": "p"}, {"prompt": ""}])
  with pytest.raises(ValueError, match='x.jsonl:2: "prompt" is empty'):
    load(f"jsonl:{path}", "prompt")
  assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
  found, line = load(f"jsonl:{path}", "prompt", on_bad="skip")
  assert len(found) == 1 and line.endswith("1 kept, 1 skipped (empty text)\n")


def test_local_files_need_no_tensorflow_datasets(tmp_path, repository):
  path = write(tmp_path / "x.jsonl", RECORDS["text"])
  program = (
    "import sys\nfrom rlhf.data import sources\n"
    f"found = sources.load({f'jsonl:{path}'!r}, 'text', cache_dir={str(tmp_path / 'cache')!r})\n"
    "print(len(found), {'tensorflow', 'tensorflow_datasets'} & set(sys.modules))"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=repository
  )
  assert done.stdout == f"text records from jsonl:{path}: 2 kept\n2 set()\n"
  assert not done.stderr


# ---- public sets: prepared here, as someone with a network would have them


class Gsm8k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Stands in for the public set of that name."""

  VERSION = tfds.core.Version("1.0.0")
  pkg_dir_path = pathlib.Path(__file__).parent

  def _info(self):
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=(tfds.features.FeaturesDict({"question": text, "answer": text, "number": np.int32})),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(8), "test": self._generate_examples(2)}

  def _generate_examples(self, num: int):
    for i in range(num):
      yield i, {"question": f"{i} + é?", "answer": f"{i}", "number": i}


@pytest.fixture
def public(tmp_path, monkeypatch):
  directory = str(tmp_path / "public")
  Gsm8k(data_dir=directory).download_and_prepare(file_format="array_record")
  monkeypatch.setattr(tfds, "builder", functools.partial(tfds.builder, data_dir=directory))


def test_public_sets_by_name_and_split(load, public):
  found, line = load("gsm8k", "demonstration")
  assert len(found) == 8 and line == "demonstration records from gsm8k: 8 kept\n"
  assert found[3] == {"prompt": "3 + é?", "completion": "3"} and list(found) == found[:]
  other, _ = load("gsm8k@test", "demonstration")
  assert other.fingerprint != found.fingerprint
  assert list(load("gsm8k@test", "prompt")[0]) == [{"prompt": "0 + é?"}, {"prompt": "1 + é?"}]
  assert len(load("gsm8k:1.0.0@train[50%:]", "prompt")[0]) == 4


def test_a_public_set_that_cannot_be_loaded(load, public, monkeypatch):
  with pytest.raises(ValueError, match=r"'gsm8k' \(split 'dev'\) cannot be loaded"):
    load("gsm8k@dev", "prompt")

  def unreachable(*args, **kwargs):
    raise ConnectionError("no route to host\nmore")

  monkeypatch.setattr(tfds, "builder", unreachable)
  with pytest.raises(ValueError, match="'lm1b' .*ConnectionError: no route to host.*FORMAT:PATH"):
    load("lm1b", "text")


def test_fields_are_joined_where_not_empty():
  fields = sources._public_sets()["demonstration"]["databricks_dolly"]
  example = {"instruction": b"I", "context": b"", "response": b"R", "category": b"x"}
  assert sources._map_fields(fields, example) == {"prompt": "I", "completion": "R"}
  assert sources._map_fields(fields, dict(example, context=b"C"))["prompt"] == "I\n\nC"
  toxic = sources._public_sets()["prompt"]["real_toxicity_prompts"]
  assert sources._map_fields(toxic, {"prompt": {"text": b"T"}}) == {"prompt": "T"}


@pytest.mark.parametrize(
  "spec, kind, message",
  [
    (
      "csv:x",
      "text",
      r"'csv:x' is neither FORMAT:PATH with a format for text records "
      r"\(\['jsonl', 'text'\]\) nor a public tfds set of them \(\['c4', ",
    ),
    ("imagenet", "prompt", "'imagenet' is neither"),
    ("x", "comparison", r"nor a public tfds set of them \(none\)"),
    ("", "text", "'' is neither"),
    ("jsonl:absent.jsonl", "text", r"absent.jsonl cannot be read \(No such file or directory\)"),
    ("jsonl:", "text", "cannot be read"),
    ("hh:absent", "text", r"format 'hh' holds no text records, only"),
    ("jsonl:x", "pair", "record kind 'pair'; choose from"),
  ],
)
def test_bad_specs(tmp_path, load, spec: str, kind: str, message: str):
  with pytest.raises(ValueError, match=message):
    load(spec, kind)
  assert not (tmp_path / "cache").exists()


def test_a_cached_file_gives_what_it_holds(shared_data, load):
  path = shared_data / "preferences" / "alpaca_eval_v2.jsonl.gz"
  found, _ = load(f"alpaca_eval:{path}", "comparison")
  assert list(found) == formats.read("comparison", path, "alpaca_eval")[0]
  assert {len(r["ranks"]) for r in found} == {4, 5, 6, 7, 8, 9}
  few, _ = load(f"alpaca_eval,min_completions=2,max_completions=3:{path}", "comparison")
  assert {len(r["ranks"]) for r in few} == {2, 3}
