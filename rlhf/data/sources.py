"""A config's data field -> a random-access sequence of records.

    FORMAT:PATH                          a file of one's own; formats are in `formats.FORMATS`
    NAME[/CONFIG][:VERSION][@SPLIT]      a public set of TensorFlow Datasets, for those who have a
                                         network (or the set on disk); SPLIT is tfds's own syntax,
                                         "train" unless given: "lm1b@train[:1%]"

A file goes through a tfds builder into array_record, once: the directory is named by a hash of its
contents and of every choice, and a second run reads it from there.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.data import formats, records
from rlhf.data.formats import FormatOptions

# kind -> tfds name -> record field -> the set's fields, joined by a blank line where not empty.
# tfds has no set of ranked completions.
PUBLIC_SETS: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
  "demonstration": {
    "databricks_dolly": {"prompt": ("instruction", "context"), "completion": ("response",)},
    "gsm8k": {"prompt": ("question",), "completion": ("answer",)},
    "natural_instructions": {"prompt": ("definition", "input"), "completion": ("output",)},
  },
  "comparison": {},
  "prompt": {
    "databricks_dolly": {"prompt": ("instruction", "context")},
    "gsm8k": {"prompt": ("question",)},
    "natural_instructions": {"prompt": ("definition", "input")},
    "real_toxicity_prompts": {"prompt": ("prompt/text",)},
  },
  "text": {
    "c4": {"text": ("text",)},
    "lm1b": {"text": ("text",)},
    "pg19": {"text": ("book_text",)},
    "tiny_shakespeare": {"text": ("text",)},
    "wiki40b": {"text": ("text",)},
    "wikipedia": {"text": ("text",)},
  },
}
_NUM_AT_ONCE = 1024  # records read from disk together

_PUBLIC_SPEC = re.compile(r"(?P<builder>(?P<name>\w+)(/[\w.-]+)?(:[\d.*]+)?)(@(?P<split>.+))?")


class RecordSource(Sequence):
  """Records by number, read from disk when asked for.

  Attributes:
    counts: how many were kept, and dropped or skipped for which reason.
  """

  def __init__(
    self,
    source: Sequence,
    convert: Callable[[dict], dict],
    counts: dict[str, int],
    indices: np.ndarray | None = None,
  ):
    """Records `convert(source[i])`, for i in `indices` or for all."""
    self._source = source
    self._convert = convert
    self._indices = np.arange(len(source)) if indices is None else indices
    self.counts = counts

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index):
    if isinstance(index, slice):
      # One read for all of them: one by one, array_record takes six times as long.
      found = self._source.__getitems__([int(i) for i in self._indices[index]])
      return [self._convert(example) for example in found]
    return self._convert(self._source[int(self._indices[index])])

  def __iter__(self) -> Iterator[dict]:
    for start in range(0, len(self), _NUM_AT_ONCE):
      yield from self[start : start + _NUM_AT_ONCE]


def load(
  spec: str,
  kind: str,
  *,
  data_dir: str | os.PathLike,
  on_bad: str = "stop",
  max_records: int | None = None,
  seed: int = 0,
  options: FormatOptions | None = None,
  public_dir: str | None = None,
  log: Callable[[str], None] = print,
) -> RecordSource:
  """Records of `kind` from `spec`; what was dropped and why is logged.

  Args:
    spec: see the top of this file.
    kind: "demonstration", "comparison", "prompt" or "text".
    data_dir: where array_record files of one's own data are kept.
    on_bad: a malformed line: "stop" raises, "skip" counts it and goes on.
    max_records: keeps a random subset of so many; None keeps all.
    seed: of that subset.
    options: of the format; None takes the defaults.
    public_dir: where tfds keeps public sets; None leaves it to tfds.
    log: receives one line.

  Raises:
    ValueError: one sentence: an unknown format or name, a file that is missing or malformed, or a
      public set that cannot be had.  Nothing was written then.
  """
  records.check_kind(kind)
  if max_records is not None and max_records < 1:
    raise ValueError(f"max_records {max_records} keeps nothing; use at least 1, or None for all")
  format_name, colon, path = spec.partition(":")
  if colon and format_name in formats.FORMATS:
    source = _load_file(
      kind,
      path,
      format_name,
      data_dir=data_dir,
      on_bad=on_bad,
      max_records=max_records,
      seed=seed,
      options=FormatOptions() if options is None else options,
    )
  else:
    source = _load_public(spec, kind, max_records=max_records, seed=seed, public_dir=public_dir)
  log(records.describe_counts(f"{kind} records from {spec}", source.counts))
  return source


def check(spec: str, kind: str, *, field: str, on_bad: str = "stop") -> None:
  """Raises what `load` would raise but for the network, and writes nothing.

  Args:
    spec, kind, on_bad: as in `load`.
    field: of the config, for the sentence about a spec that was never set.
  """
  records.check_kind(kind)
  if not spec:
    raise ValueError(
      f"{field} is empty; give FORMAT:PATH with a format for {kind} records "
      f"({_formats_of(kind)}), or the name of a public tfds set"
    )
  format_name, colon, path = spec.partition(":")
  if colon and format_name in formats.FORMATS:
    formats.choose_reader(kind, format_name)
    formats.read(kind, path, format_name, on_bad=on_bad)
  else:
    _parse_public(spec, kind)


def _load_file(
  kind: str,
  path: str,
  format_name: str,
  *,
  data_dir: str | os.PathLike,
  on_bad: str,
  max_records: int | None,
  seed: int,
  options: FormatOptions,
) -> RecordSource:
  formats.choose_reader(kind, format_name)
  # Imported here: tfds takes half a second, and most commands fail or finish before it is needed.
  from rlhf.data import builders

  choices = {
    "kind": kind,
    "format": format_name,
    "on_bad": on_bad,
    "max_records": max_records,
    "seed": seed,
    "options": dataclasses.asdict(options),
  }
  name = _content_hash(pathlib.Path(path), choices)
  with _quiet_tfds():
    config = builders.RecordsConfig(
      name=name,
      path=path,
      format_name=format_name,
      on_bad=on_bad,
      options=options,
      max_records=max_records,
      sample_seed=seed,
    )
    open_builder = lambda: builders.BUILDERS[kind](config=config, data_dir=os.fspath(data_dir))
    builder = open_builder()
    if not builder.data_path.exists():
      preloaded = builders.read(kind, config)  # its errors, before anything is made
      pathlib.Path(data_dir).mkdir(parents=True, exist_ok=True)
      # Processes that share `data_dir` may want the same file at the same time.
      with workdir_lib.alone(pathlib.Path(data_dir) / f"{name}.lock", f"reading of {path}"):
        builder = open_builder()
        if not builder.data_path.exists():
          builder.preloaded = preloaded
          builder.download_and_prepare(file_format="array_record")
    source = builder.as_data_source("train")
  return RecordSource(
    source,
    lambda example: builders.from_example(kind, example),
    dict(builder.info.metadata["counts"]),
  )


def _content_hash(path: pathlib.Path, choices: dict) -> str:
  """Names what a builder makes: the same bytes read by the same choices."""
  digest = hashlib.sha256(json.dumps(choices, sort_keys=True).encode())
  is_text_directory = choices["format"] == "text" and path.is_dir()
  for file in formats.list_text_files(path) if is_text_directory else [path]:
    digest.update(f"\n{file.name}\n".encode())
    try:
      with open(file, "rb") as opened:
        digest.update(hashlib.file_digest(opened, "sha256").digest())
    except OSError as error:
      raise ValueError(
        f"{file} cannot be read ({error.strerror}); the data field must be "
        f"FORMAT:PATH with a file that exists, FORMAT one of "
        f"{sorted(formats.FORMATS)}"
      ) from error
  return digest.hexdigest()[:20]


def _formats_of(kind: str) -> list[str]:
  return sorted(name for name in formats.FORMATS if kind in formats.FORMATS[name])


def _parse_public(spec: str, kind: str) -> re.Match:
  match = _PUBLIC_SPEC.fullmatch(spec)
  if match is None or match["name"] not in PUBLIC_SETS[kind]:
    public = sorted(PUBLIC_SETS[kind]) if PUBLIC_SETS[kind] else "none"
    raise ValueError(
      f"{spec!r} is neither FORMAT:PATH with a format for {kind} records "
      f"({_formats_of(kind)}) nor a public tfds set of them ({public})"
    )
  return match


def _load_public(
  spec: str, kind: str, *, max_records: int | None, seed: int, public_dir: str | None
) -> RecordSource:
  match = _parse_public(spec, kind)
  source = _open_public(match["builder"], match["split"] or "train", public_dir)
  fields = PUBLIC_SETS[kind][match["name"]]
  counts, indices = {"kept": len(source)}, None
  if max_records is not None and len(source) > max_records:
    indices = np.sort(np.random.default_rng(seed).permutation(len(source))[:max_records])
    counts = {"kept": max_records, "left out (max_records)": len(source) - max_records}
  return RecordSource(source, lambda example: _map_fields(fields, example), counts, indices)


def _open_public(name: str, split: str, public_dir: str | None) -> Sequence:
  # Imported here: see `_load_file`.
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder(name, **({} if public_dir is None else {"data_dir": public_dir}))
    if not builder.data_path.exists():
      builder.download_and_prepare(file_format="array_record")
    return builder.as_data_source(split)
  except Exception as error:  # tfds fails in as many ways as there are hosts and versions
    reason = str(error).strip().split("\n")[0]
    raise ValueError(
      f"the public tfds set {name!r} (split {split!r}) cannot be had "
      f"({type(error).__name__}: {reason}); prepare it as array_record where there "
      "is a network, or give FORMAT:PATH"
    ) from error


def _map_fields(fields: dict[str, tuple[str, ...]], example: dict) -> dict:
  return {
    name: "\n\n".join(filter(None, (_text_at(example, path) for path in paths)))
    for name, paths in fields.items()
  }


def _text_at(example: dict, path: str) -> str:
  value = example
  for step in path.split("/"):
    value = value[step]
  return value.decode("utf-8")


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Keeps tfds's progress bars and its talk of downloads off the console: nothing is downloaded."""
  import tensorflow_datasets as tfds
  from absl import logging

  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)
    tfds.enable_progress_bar()
