"""The four kinds of record as TensorFlow Datasets builders that write array_record files.

A builder reads a file of one of our formats, keeps its order, and writes one split, "train".
Nothing here needs TensorFlow.  tfds wants builders inside a package that `importlib_resources` can
open, and it registers them by class name: `tfds.builder("comparisons", config=..., data_dir=...)`.
"""

import dataclasses
import json
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from rlhf.data import formats, records

_TEXT = tfds.features.Text
_VERSION = "1.0.0"


@dataclasses.dataclass(kw_only=True)
class RecordsConfig(tfds.core.BuilderConfig):
  """What a builder reads; `name` also names the directory, so it must be a hash of all this.

  Attributes:
    path, format_name, on_bad, options: as in `formats.read`.
    max_records: keeps a random subset of so many, in the file's order; None keeps all.
    sample_seed: of that subset.
  """

  path: str
  format_name: str
  on_bad: str = "stop"
  options: formats.FormatOptions = dataclasses.field(default_factory=formats.FormatOptions)
  max_records: int | None = None
  sample_seed: int = 0


def read(kind: str, config: RecordsConfig) -> tuple[list[dict], dict[str, int]]:
  """(records, counts) of what a config names; raises what `formats.read` raises."""
  found, counts = formats.read(
    kind, config.path, config.format_name, on_bad=config.on_bad, options=config.options
  )
  if config.max_records is not None and len(found) > config.max_records:
    rng = np.random.default_rng(config.sample_seed)
    chosen = np.sort(rng.permutation(len(found))[: config.max_records])
    counts["left out (max_records)"] = len(found) - len(chosen)
    counts["kept"] = len(chosen)
    found = [found[i] for i in chosen]
  return found, counts


def _features(kind: str) -> tfds.features.FeaturesDict:
  special = {
    "completions": tfds.features.Sequence(_TEXT()),
    "ranks": tfds.features.Sequence(np.int32),
  }
  names = (*records.FIELDS[kind], *records.OPTIONAL_FIELDS[kind])
  features = {name: special[name] if name in special else _TEXT() for name in names}
  return tfds.features.FeaturesDict({**features, "extra": _TEXT()})


def to_example(kind: str, record: dict) -> dict:
  """A record as tfds stores it: absent optional fields are "", other fields are JSON in "extra"."""
  names = (*records.FIELDS[kind], *records.OPTIONAL_FIELDS[kind])
  example = {name: record[name] if name in record else "" for name in names}
  extra = {name: value for name, value in record.items() if name not in names}
  return {**example, "extra": json.dumps(extra) if extra else ""}


def from_example(kind: str, example: dict) -> dict:
  """The inverse of `to_example`, from what a tfds data source gives."""
  record = {}
  for name in records.FIELDS[kind]:
    value = example[name]
    if name == "completions":
      record[name] = [text.decode("utf-8") for text in value]
    elif name == "ranks":
      record[name] = [int(rank) for rank in value]
    else:
      record[name] = value.decode("utf-8")
  for name in records.OPTIONAL_FIELDS[kind]:
    if example[name]:
      record[name] = example[name].decode("utf-8")
  if example["extra"]:
    record.update(json.loads(example["extra"]))
  return record


class _RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the four have in common; each names its kind."""

  VERSION = tfds.core.Version(_VERSION)
  KIND = ""
  # (records, counts) that the caller has read already, to have its errors before anything is
  # written; None reads them here.
  preloaded: tuple[list[dict], dict[str, int]] | None = None

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"{self.KIND} records: {records.KINDS[self.KIND]}",
      features=_features(self.KIND),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    del dl_manager  # the file is already here
    found, counts = self.preloaded or read(self.KIND, self.builder_config)
    self.info.metadata["counts"] = counts
    return {"train": self._generate_examples(found)}

  def _generate_examples(self, found: list[dict]) -> Iterator[tuple[int, dict]]:
    for index, record in enumerate(found):
      yield index, to_example(self.KIND, record)


class Demonstrations(_RecordsBuilder):
  """Prompts with the answer that a person wrote."""

  KIND = "demonstration"


class Comparisons(_RecordsBuilder):
  """Prompts with K >= 2 completions and their ranks."""

  KIND = "comparison"


class Prompts(_RecordsBuilder):
  """Prompts alone."""

  KIND = "prompt"


class PretrainingText(_RecordsBuilder):
  """Documents."""

  KIND = "text"


BUILDERS = {
  builder.KIND: builder for builder in (Demonstrations, Comparisons, Prompts, PretrainingText)
}
