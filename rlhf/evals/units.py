"""What was evaluated, and what is still missing: checkpoints by name, units of work, their results.

A unit is one task of one suite on one checkpoint.  Its directory, `WORKDIR/SUITE/CHECKPOINT/TASK/`,
holds `items.jsonl`, what the model was asked and what it did, and `result.json`, written last, with
the fingerprint of everything that decides the numbers: the suite's settings, the seed, and which
weights they were.  A unit with an equal fingerprint is never run again.

No jax here: the command line is checked before it is imported.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf import processes
from rlhf import workdir as workdir_lib
from rlhf.data import formats
from rlhf.evals import statistics
from rlhf.evals.measures import Measure

SUITES = ("preference", "pretraining", "nlp", "truth", "toxicity", "bias")
RESULT = "result.json"
ITEMS = "items.jsonl"
# The file whose change means other weights: of an export, the workdir of its stage, a published model.
_WITNESSES = (
  "export.json",
  "export/export.json",
  "model.safetensors",
  "model.safetensors.index.json",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
  """A checkpoint under the name by which the report calls it.

  Attributes:
    name: letters, digits and `._@+-`; `METHOD@SIZE` puts it on the line of its method, over the
      number of its parameters.
    source: an export directory, `hf:DIR` or `gguf:FILE`.
    prefix: text that stands before every prompt, a few-shot prefix; None for none.
  """

  name: str
  source: str
  prefix: str | None = None

  @property
  def method(self) -> str:
    return self.name.partition("@")[0]


def parse_candidates(specs: Sequence[str]) -> list[Candidate]:
  """`NAME=SOURCE`, or SOURCE alone, which is then called after its directory.

  Raises:
    ValueError: no spec, a name that cannot name a directory, or one that is given twice.
  """
  found: dict[str, Candidate] = {}
  for spec in specs:
    name, equals, source = spec.partition("=")
    if not equals:
      source, name = spec, default_name(spec)
    if not re.fullmatch(r"[\w.@+-]+", name, re.ASCII) or name.startswith("."):
      raise ValueError(
        f"--checkpoints: {name!r} cannot name a checkpoint; use letters, digits and "
        "._@+-, as in sft@1M=runs/sft/export"
      )
    if not source:
      raise ValueError(f"--checkpoints: {spec!r} names no directory; write NAME=SOURCE")
    if name in found:
      raise ValueError(f"--checkpoints has two called {name!r}; give them names: A=DIR,B=DIR")
    found[name] = Candidate(name=name, source=source)
  if not found:
    raise ValueError(
      "--checkpoints is empty; name one or more export directories, hf:DIR or "
      "gguf:FILE, separated by commas"
    )
  return list(found.values())


def default_name(source: str) -> str:
  """What a checkpoint without a name is called: the last part of its path that says something."""
  path = pathlib.PurePath(source.removeprefix("hf:").removeprefix("gguf:"))
  parts = [part for part in path.parts if part not in ("export", "/", "..", ".")]
  last = (parts if parts else ["checkpoint"])[-1]
  return re.sub(r"[^\w.@+-]", "_", last.removesuffix(".gguf"), flags=re.ASCII)


def with_prefixes(candidates: Sequence[Candidate], specs: Sequence[str]) -> list[Candidate]:
  """Gives checkpoints their few-shot prefixes: `NAME=FILE`.

  Raises:
    ValueError: an unknown name, or a file that cannot be read.
  """
  found = {candidate.name: candidate for candidate in candidates}
  for spec in specs:
    name, equals, path = spec.partition("=")
    if not equals or name not in found:
      raise ValueError(
        f"--prefixes: {spec!r}; write NAME=FILE with a NAME of --checkpoints: {', '.join(found)}"
      )
    if not pathlib.Path(path).is_file():
      raise ValueError(f"--prefixes: {name}={path}: there is no such file")
    prefix = pathlib.Path(path).read_text(encoding="utf-8")
    found[name] = dataclasses.replace(found[name], prefix=prefix)
  return list(found.values())


def identity(candidate: Candidate) -> dict[str, Any]:
  """Which weights these are: the path, and when they were written."""
  path = pathlib.Path(candidate.source.removeprefix("hf:").removeprefix("gguf:")).resolve()
  files = [path] if path.is_file() else [path / name for name in _WITNESSES]
  return dict(
    path=str(path),
    prefix=candidate.prefix,
    written=[file.stat().st_mtime_ns for file in files if file.is_file()],
  )


def task_directory(workdir: pathlib.Path, suite: str, candidate: str, task: str) -> pathlib.Path:
  """Where a unit lies."""
  return workdir / suite / candidate / re.sub(r"[^\w.@+-]", "-", task, flags=re.ASCII)


def group_settings(p: Any) -> dict[str, Any]:
  """What a suite's config says of each of its units: all but the list of units itself, and of an
  export that it names, such as a judge's, when that was written."""
  found = {
    name: value for name, value in dataclasses.asdict(p).items() if name not in ("tasks", "prompts")
  }
  for name, value in list(found.items()):
    if isinstance(value, str) and value:
      if written := identity(Candidate(name=name, source=value))["written"]:
        found[f"{name} written"] = written
  return found


def fingerprint(candidate: Candidate, task: str, settings: Mapping[str, Any]) -> str:
  """Equal for units whose numbers would be equal."""
  return workdir_lib.config_hash(dict(weights=identity(candidate), task=task, settings=settings))


def find_result(directory: pathlib.Path, wanted: str) -> dict[str, Any] | None:
  """The result of a unit that is done with this fingerprint."""
  path = directory / RESULT
  if not path.is_file():
    return None
  result = workdir_lib.read_json(path)
  return result if result["fingerprint"] == wanted else None


def write_result(
  directory: pathlib.Path, wanted: str, measures: Sequence[Measure], **others: Any
) -> dict[str, Any]:
  """Marks a unit as done, in one atomic step."""
  result = dict(fingerprint=wanted, measures=[measure.as_dict() for measure in measures], **others)
  workdir_lib.write_json(directory / RESULT, result)
  return workdir_lib.plain(result)


def begin(directory: pathlib.Path) -> None:
  """Makes a unit's directory and removes the mark that it is done; process 0 alone writes."""
  if processes.is_main():
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT).unlink(missing_ok=True)


def print_measures(measures: Sequence[Measure]) -> None:
  """A console line for each number."""
  for measure in measures:
    name, interval = " ".join(filter(None, (measure.variant, measure.metric))), measure.interval
    print(
      f"  {name:<44}{interval.mean:10.4g}  [{interval.low:.4g}, {interval.high:.4g}]  "
      f"n {interval.n:,}",
      flush=True,
    )


def check_spec(spec: str, field: str) -> tuple[str, str]:
  """(format, path) of FORMAT:PATH.

  Raises:
    ValueError: it is none, or there is no such file.
  """
  name, colon, path = spec.partition(":")
  if not colon or name not in formats.FORMATS:
    raise ValueError(
      f"{field} {spec!r}; give FORMAT:PATH with FORMAT one of {', '.join(sorted(formats.FORMATS))}"
    )
  if not pathlib.Path(path).is_file():
    raise ValueError(f"{field}: {path} does not exist")
  return name, path


def read_records(spec: str, kind: str, field: str) -> list[dict[str, Any]]:
  """Records of FORMAT:PATH; raises ValueError with the config's field in front."""
  name, path = check_spec(spec, field)
  try:
    return formats.read(kind, path, name)[0]
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from None


def by_measure(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
  """Rows of a table: one for each (task, variant, metric), with a cell for each checkpoint.

  Args:
    results: checkpoint -> the `measures` of all its tasks.

  Returns:
    {"task", "variant", "metric", "better", "cells": {checkpoint: interval}} in order of appearance.
  """
  rows: dict[tuple[str, str, str], dict[str, Any]] = {}
  for name, found in results.items():
    for measure in found:
      key = measure["task"], measure["variant"], measure["metric"]
      row = rows.setdefault(
        key, dict(zip(("task", "variant", "metric"), key), better=measure["better"], cells={})
      )
      row["cells"][name] = {field: measure[field] for field in ("mean", "low", "high", "n")}
  return list(rows.values())


def differences(
  results: Mapping[str, Sequence[Mapping[str, Any]]],
  reference: str,
  **settings: Unpack[statistics.Settings],
) -> list[dict[str, Any]]:
  """Rows as of `by_measure`: mean of a checkpoint less that of the reference, on the same items.

  What makes an item easy or hard for both cancels, so that these intervals are narrower than those
  of the means beside one another.  Numbers that are no mean of items' values (BLEU) have none.

  Args:
    results: as in `by_measure`, of units that were asked the same items in the same order.
    reference: a checkpoint; where it was not measured, there is no row.
    settings: of the bootstrap over items.
  """
  key = lambda measure: (measure["task"], measure["variant"], measure["metric"])
  values_of = lambda measure: np.asarray(measure["values"], np.float64)[:, None]  # null is NaN
  base = {key(measure): values_of(measure) for measure in results.get(reference, ())}
  compared: dict[str, list[dict[str, Any]]] = {}
  for name, found in results.items():
    for measure in found if name != reference else ():
      own_N1, base_N1 = values_of(measure), base.get(key(measure))
      if base_N1 is None or len(base_N1) != len(own_N1) or np.isnan(own_N1 + base_N1).all():
        continue
      difference = statistics.paired_difference(own_N1, base_N1, **settings)
      compared.setdefault(name, []).append(dict(measure, **difference.as_dict()))
  return by_measure(compared)
