"""Records through tfds and array_record, the cache, public sets, and spec errors."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rlhf.data import builders, formats, sources

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


def load(spec: str, kind: str, tmp_path, **choices):
  lines = []
  found = sources.load(spec, kind, data_dir=tmp_path / "array_records", log=lines.append, **choices)
  return found, lines


@pytest.mark.parametrize("kind", sorted(RECORDS))
def test_records_come_back_as_they_were(tmp_path, kind: str):
  path = write(tmp_path / "x.jsonl", RECORDS[kind])
  found, lines = load(f"jsonl:{path}", kind, tmp_path)
  assert list(found) == RECORDS[kind]
  assert found[-1] == RECORDS[kind][1] and found[:1] == RECORDS[kind][:1]
  assert lines == [f"{kind} records from jsonl:{path}: 2 kept"]
  with pytest.raises(IndexError):
    found[2]


def test_the_files_are_array_records_in_the_order_of_the_lines(tmp_path):
  texts = [{"text": str(i)} for i in range(500)]
  found, _ = load(f"jsonl:{write(tmp_path / 'x.jsonl', texts)}", "text", tmp_path)
  assert list(found) == texts
  assert list((tmp_path / "array_records").rglob("pretraining_text-train.array_record*"))


def test_a_second_run_reads_what_the_first_one_wrote(tmp_path, monkeypatch):
  path = write(tmp_path / "x.jsonl", RECORDS["prompt"])
  first, first_lines = load(f"jsonl:{path}", "prompt", tmp_path)
  monkeypatch.setattr(builders, "read", None)  # whoever reads the file again fails
  second, second_lines = load(f"jsonl:{path}", "prompt", tmp_path)
  assert list(first) == list(second) and first_lines == second_lines


def test_a_file_that_another_process_is_reading_is_waited_for(tmp_path, monkeypatch):
  """Whoever is let in second finds what the first one wrote."""
  path = write(tmp_path / "x.jsonl", RECORDS["prompt"])
  alone, prepare, times = sources.workdir_lib.alone, builders.Prompts.download_and_prepare, []

  @contextlib.contextmanager
  def after_another(lock_path, what):
    monkeypatch.setattr(sources.workdir_lib, "alone", alone)
    load(f"jsonl:{path}", "prompt", tmp_path)
    with alone(lock_path, what):
      yield

  monkeypatch.setattr(sources.workdir_lib, "alone", after_another)
  monkeypatch.setattr(
    builders.Prompts,
    "download_and_prepare",
    lambda self, **choices: (times.append(1), prepare(self, **choices)),
  )
  found, lines = load(f"jsonl:{path}", "prompt", tmp_path)
  assert list(found) == RECORDS["prompt"] and len(times) == 1
  assert lines == [f"prompt records from jsonl:{path}: 2 kept"]


def test_the_cache_knows_contents_format_kind_and_choices(tmp_path):
  path = write(tmp_path / "x.jsonl", [{"prompt": str(i), "completion": "c"} for i in range(20)])
  assert len(load(f"jsonl:{path}", "demonstration", tmp_path)[0]) == 20
  assert "completion" in load(f"jsonl:{path}", "prompt", tmp_path)[0][0]
  assert "completion" not in load(f"t0:{path}", "prompt", tmp_path)[0][0]
  some = load(f"jsonl:{path}", "demonstration", tmp_path, max_records=5)
  assert len(some[0]) == 5 and some[1][0].endswith("5 kept, 15 left out (max_records)")
  assert list(load(f"jsonl:{path}", "demonstration", tmp_path, max_records=5)[0]) == list(some[0])
  other = load(f"jsonl:{path}", "demonstration", tmp_path, max_records=5, seed=1)[0]
  assert list(other) != list(some[0])
  write(path, [{"prompt": "new", "completion": "c"}])
  assert len(load(f"jsonl:{path}", "demonstration", tmp_path)[0]) == 1


def test_options_reach_the_reader(tmp_path):
  (tmp_path / "a.txt").write_text("one\ntwo")
  assert len(load(f"text:{tmp_path / 'a.txt'}", "text", tmp_path)[0]) == 1
  options = formats.FormatOptions(document_split="line")
  assert len(load(f"text:{tmp_path / 'a.txt'}", "text", tmp_path, options=options)[0]) == 2


def test_a_malformed_line_stops_before_anything_is_written(tmp_path):
  path = write(tmp_path / "x.jsonl", [{"prompt": "p"}, {"prompt": ""}])
  with pytest.raises(ValueError, match='x.jsonl:2: "prompt" is empty'):
    load(f"jsonl:{path}", "prompt", tmp_path)
  assert not (tmp_path / "array_records").exists()
  found, lines = load(f"jsonl:{path}", "prompt", tmp_path, on_bad="skip")
  assert len(found) == 1 and lines[0].endswith("1 kept, 1 skipped (empty text)")


def test_a_builder_reads_a_file_by_itself(tmp_path):
  config = builders.RecordsConfig(
    name="mine", format_name="jsonl", path=str(write(tmp_path / "x.jsonl", RECORDS["comparison"]))
  )
  builder = builders.Comparisons(config=config, data_dir=tmp_path / "tfds")
  builder.download_and_prepare(file_format="array_record")
  example = builder.as_data_source("train")[1]
  assert builders.from_example("comparison", example) == RECORDS["comparison"][1]
  assert builder.info.metadata["counts"] == {"kept": 2}


def test_no_tensorflow_and_nothing_on_the_console_but_the_counts(tmp_path, repository):
  path = write(tmp_path / "x.jsonl", RECORDS["text"])
  program = (
    "import sys\nfrom rlhf.data import sources\n"
    f"found = sources.load({f'jsonl:{path}'!r}, 'text', data_dir={str(tmp_path)!r})\n"
    "print(len(found), 'tensorflow' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=repository
  )
  assert done.stdout == f"text records from jsonl:{path}: 2 kept\n2 False\n"
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
def public_dir(tmp_path) -> str:
  directory = str(tmp_path / "public")
  Gsm8k(data_dir=directory).download_and_prepare(file_format="array_record")
  return directory


def test_public_sets_by_name_and_split(tmp_path, public_dir: str):
  found, lines = load("gsm8k", "demonstration", tmp_path, public_dir=public_dir)
  assert len(found) == 8 and lines == ["demonstration records from gsm8k: 8 kept"]
  assert found[3] == {"prompt": "3 + é?", "completion": "3"}
  assert list(load("gsm8k@test", "prompt", tmp_path, public_dir=public_dir)[0]) == [
    {"prompt": "0 + é?"},
    {"prompt": "1 + é?"},
  ]
  part, _ = load("gsm8k:1.0.0@train[50%:]", "prompt", tmp_path, public_dir=public_dir)
  assert len(part) == 4
  some, lines = load("gsm8k", "prompt", tmp_path, public_dir=public_dir, max_records=3)
  assert len(some) == 3 and lines[0].endswith("3 kept, 5 left out (max_records)")


def test_a_public_set_that_cannot_be_had(tmp_path, public_dir: str, monkeypatch):
  with pytest.raises(ValueError, match=r"public tfds set 'gsm8k' \(split 'dev'\) cannot be had"):
    load("gsm8k@dev", "prompt", tmp_path, public_dir=public_dir)

  def unreachable(*args, **kwargs):
    raise ConnectionError("no route to host\nmore")

  monkeypatch.setattr(tfds, "builder", unreachable)
  with pytest.raises(ValueError, match="'lm1b' .*ConnectionError: no route to host.*FORMAT:PATH"):
    load("lm1b", "text", tmp_path)


def test_fields_are_joined_where_not_empty():
  fields = sources.PUBLIC_SETS["demonstration"]["databricks_dolly"]
  example = {"instruction": b"I", "context": b"", "response": b"R", "category": b"x"}
  assert sources._map_fields(fields, example) == {"prompt": "I", "completion": "R"}
  assert sources._map_fields(fields, dict(example, context=b"C"))["prompt"] == "I\n\nC"
  toxic = sources.PUBLIC_SETS["prompt"]["real_toxicity_prompts"]
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
def test_bad_specs(tmp_path, spec: str, kind: str, message: str):
  with pytest.raises(ValueError, match=message):
    load(spec, kind, tmp_path)
  assert not (tmp_path / "array_records").exists()


def test_no_records_wanted(tmp_path):
  with pytest.raises(ValueError, match="max_records 0 keeps nothing"):
    load("jsonl:x", "text", tmp_path, max_records=0)


def test_real_comparisons_through_array_record(shared_data, tmp_path):
  path = shared_data / "preferences" / "alpaca_eval_v2.jsonl.gz"
  found, _ = load(f"alpaca_eval:{path}", "comparison", tmp_path)
  assert list(found) == formats.read("comparison", path, "alpaca_eval")[0]
  assert {len(r["ranks"]) for r in found} == {4, 5, 6, 7, 8, 9}
