"""A config's data field -> a random-access sequence of records.

    FORMAT[,OPTION=VALUE...]:PATH        a local file; formats are in `formats.FORMATS`
    NAME[/CONFIG][:VERSION][@SPLIT]      a public set of TensorFlow Datasets, downloaded or on disk;
                                         SPLIT is in tfds's own syntax, "train" unless given:
                                         "lm1b@train[:1%]"

A local file is read once: its records go into the cache, from where they are read when needed.
"""

import dataclasses
import functools
import hashlib
import json
import operator
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

from rlhf import extras
from rlhf import workdir as workdir_lib
from rlhf.data import cache, formats, records
from rlhf.data.records import LazySequence

_NUM_AT_ONCE = 1024  # public records read from disk together

_PUBLIC_SPEC = re.compile(r"(?P<builder>(?P<name>\w+)(/[\w.-]+)?(:[\d.*]+)?)(@(?P<split>.+))?")


def load(
  spec: str, kind: str, *, cache_dir: str | os.PathLike | None, on_bad: str = "stop"
) -> LazySequence:
  """Records of `kind` from `spec`; prints what was dropped and why.

  Args:
    spec: see the top of this file.
    kind: "demonstration", "comparison", "prompt" or "text".
    cache_dir: see `cache`; None keeps the records of a file in memory.
    on_bad: a malformed line: "stop" raises, "skip" counts it and goes on.

  Returns:
    records by number; with a fingerprint, unless they are in memory.

  Raises:
    ValueError: one sentence: an unknown format or name, a file that is missing or malformed, or a
      public set that cannot be loaded.  The cache has no entry of it then.
  """
  records.check_kind(kind)
  parsed = formats.parse_spec(spec)
  if parsed is None:
    found, counts = _load_public(spec, kind)
  else:
    found, counts = _load_file(kind, *parsed, cache_dir, on_bad)
  print(records.describe_counts(f"{kind} records from {spec}", counts), flush=True)
  return found


def check(spec: str, kind: str, *, field: str, on_bad: str = "stop") -> None:
  """Raises what `load` would raise, except for the network's errors, and writes nothing.

  Args:
    spec, kind, on_bad: as in `load`.
    field: of the config, for the sentence about a spec that was never set.
  """
  records.check_kind(kind)
  if not spec:
    raise ValueError(
      f"{field} is empty; give FORMAT:PATH with a format for {kind} records "
      f"({formats.formats_of(kind)}), or the name of a public tfds set"
    )
  parsed = formats.parse_spec(spec)
  if parsed is None:
    _parse_public(spec, kind)
  else:
    format_name, path, options = parsed
    counts: Counter[str] = Counter()
    for _ in formats.iterate(kind, path, format_name, counts, on_bad=on_bad, options=options):
      pass


def _load_file(
  kind: str,
  format_name: str,
  path: str,
  options: formats.FormatOptions,
  cache_dir: str | os.PathLike | None,
  on_bad: str,
) -> tuple[LazySequence, dict[str, int]]:
  formats.choose_reader(kind, format_name)
  key = None
  if cache_dir is not None:
    key = dict(
      content="records",
      kind=kind,
      format=format_name,
      options=dataclasses.asdict(options),
      on_bad=on_bad,
      files=_file_hashes(pathlib.Path(path), format_name),
    )

  def build(writer: cache.ArrayWriter) -> dict[str, int]:
    counts: Counter[str] = Counter()
    found = formats.iterate(kind, path, format_name, counts, on_bad=on_bad, options=options)
    end = 0
    for chunk in records.chunks(found):
      lines = [_to_line(kind, record) for record in chunk]
      ends = end + np.cumsum([len(line) for line in lines])
      end = int(ends[-1])
      writer.append("lines", np.frombuffer(b"".join(lines), np.uint8))
      writer.append("ends", ends)
    return counts

  arrays, counts = cache.load_or_build(cache_dir, key, build, f"reading of {path}")
  lines, ends = arrays["lines"], arrays["ends"]

  def get(index: int) -> dict:
    start = ends[index - 1] if index else 0
    return json.loads(lines[start : ends[index]].tobytes())

  return LazySequence(len(ends), get, None if key is None else workdir_lib.config_hash(key)), counts


def _to_line(kind: str, record: dict) -> bytes:
  """A record as JSON, its own fields first; an empty user or labeler is left out."""
  names = records.FIELDS[kind]
  ordered = {name: record[name] for name in names if record.get(name, "") != ""}
  text = json.dumps(
    ordered | {name: record[name] for name in record if name not in names}, ensure_ascii=False
  )
  return text.encode("utf-8", "surrogatepass")  # half a pair may be in a field that nothing reads


def _file_hashes(path: pathlib.Path, format_name: str) -> list[str]:
  is_directory = format_name == "text" and path.is_dir()
  try:
    found = []
    for file in formats.list_text_files(path) if is_directory else [path]:
      stat = file.stat()
      found.append(file.suffix + _file_hash(file, stat.st_size, stat.st_mtime_ns))
    return found
  except OSError as error:
    raise ValueError(
      f"{error.filename} cannot be read ({error.strerror}); the data field must be "
      f"FORMAT:PATH with a file that exists, FORMAT one of {sorted(formats.FORMATS)}"
    ) from error


@functools.lru_cache(maxsize=256)
def _file_hash(path: pathlib.Path, size: int, mtime_ns: int) -> str:
  """Of the content; size and time make a file that has changed another one to the lru_cache."""
  del size, mtime_ns
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


# ---- public sets ----------------------------------------------------------------------------


@functools.cache
def _public_sets() -> dict[str, dict[str, dict[str, list[str]]]]:
  path = pathlib.Path(__file__).with_name("public_sets.yaml")
  return yaml.safe_load(path.read_text(encoding="utf-8"))


def _parse_public(spec: str, kind: str) -> re.Match:
  match, known = _PUBLIC_SPEC.fullmatch(spec), _public_sets()[kind]
  if match is None or match["name"] not in known:
    raise ValueError(
      f"{spec!r} is neither FORMAT:PATH with a format for {kind} records "
      f"({formats.formats_of(kind)}) nor a public tfds set of them ({sorted(known) or 'none'})"
    )
  return match


class _PublicRecords(LazySequence):
  """Records of a tfds data source."""

  def __init__(self, source: Any, fields: dict[str, list[str]], fingerprint: str):
    super().__init__(len(source), lambda i: _map_fields(fields, source[i]), fingerprint)
    self._source = source
    self._fields = fields

  def __iter__(self) -> Iterator[dict]:
    # One by one, array_record takes six times as long.
    for start in range(0, len(self), _NUM_AT_ONCE):
      indices = range(start, min(start + _NUM_AT_ONCE, len(self)))
      for example in self._source.__getitems__(list(indices)):
        yield _map_fields(self._fields, example)


def _load_public(spec: str, kind: str) -> tuple[LazySequence, dict[str, int]]:
  tfds = extras.load("tensorflow_datasets", "tfds", f"the public set {spec}")
  match = _parse_public(spec, kind)
  name, split = match["builder"], match["split"] or "train"
  try:
    builder = tfds.builder(name)
    if not builder.data_path.exists():
      builder.download_and_prepare(file_format="array_record")
    source = builder.as_data_source(split)
  except Exception as error:  # tfds fails in as many ways as there are hosts and versions
    reason = str(error).strip().split("\n")[0]
    raise ValueError(
      f"the public tfds set {name!r} (split {split!r}) cannot be loaded "
      f"({type(error).__name__}: {reason}); prepare it as array_record where there "
      "is a network, or give FORMAT:PATH"
    ) from error
  key = dict(
    content="public",
    set=builder.info.full_name,
    split=split,
    kind=kind,
    num_records=len(source),
    num_bytes=int(builder.info.dataset_size),
  )
  fields = _public_sets()[kind][match["name"]]
  found = _PublicRecords(source, fields, workdir_lib.config_hash(key))
  return found, {"kept": len(found)}


def _map_fields(fields: dict[str, list[str]], example: Any) -> dict:
  text_at = lambda path: functools.reduce(operator.getitem, path.split("/"), example).decode(
    "utf-8"
  )
  return {name: "\n\n".join(filter(None, map(text_at, paths))) for name, paths in fields.items()}
