"""Cases whose process needs no device: reading data, and starting programs."""

import contextlib
import dataclasses
import io
import json
import pathlib
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from rlhf import workdir
from rlhf.benchmark import inputs, measure
from rlhf.benchmark.job import Case, Job, Work

_TOKENS_PER_WORD = 12  # of a row, for half of a synthetic line: nearly all lines fit
_TOKENIZER_RECORDS = 1000  # that a new tokenizer learns from


def make(job: Job) -> Case:
  """The case; raises ValueError as the checks of its config."""
  return _MAKERS[job.case](job, ml_collections.ConfigDict(job.config))


def describe() -> dict[str, Any]:
  """Of the machine."""
  return dict(num_cores=measure.num_cores(), versions=dict(python=platform.python_version()))


def peak_device_bytes() -> None:
  return None


def ceilings() -> dict[str, float]:
  """None: a matmul and a copy do not bound these cases."""
  return {}


# ----------------------------------------------------------------------------- data


def data(job: Job, config) -> Case:
  """Reads, tokenises and packs demonstrations: in memory, with a new cache, and from that cache."""
  from rlhf.data import prepare, sources
  from rlhf.sft import DemonstrationData
  from rlhf.tokenization.tokenizer import Tokenizer

  if "demonstrations" not in config:
    raise ValueError(
      "--case=data packs demonstrations, and this variant of configs/sft.py has none; leave the "
      "variant out"
    )
  demos = DemonstrationData(**config.demonstrations)
  if demos.is_mixture:
    raise ValueError(
      "--case=data reads one file, and config.demonstrations.train is a mixture; leave the variant "
      "out"
    )
  if not config.tokenizer.partition(":")[2]:
    raise ValueError(
      f"config.tokenizer is {config.tokenizer!r} and names no files; add "
      "--config.tokenizer=bpe:1024, or name the directory"
    )
  folder = tempfile.TemporaryDirectory()
  spec = str(demos.train)
  if not spec:
    path = pathlib.Path(folder.name) / "demonstrations.jsonl"
    write_demonstrations(job, path, most_words=max(config.length // _TOKENS_PER_WORD, 2))
    spec = f"jsonl:{path}"

  def load(cache_dir: str | None) -> int:
    """Records read and packed."""
    with contextlib.redirect_stdout(io.StringIO()):  # what was kept, every time anew
      records = sources.load(spec, "demonstration", cache_dir=cache_dir, on_bad=demos.on_bad)
      prepare.demonstration_rows(
        records,
        tokenizer,
        length=config.length,
        prompt_format=prepare.PromptFormat.of(demos),
        packing=demos.packing,
        overlong=demos.overlong,
        prompt_loss_weight=demos.prompt_loss_weight,
        attend_across_documents=demos.attend_across_documents,
        reset_positions=demos.reset_positions,
        cache_dir=cache_dir,
      )
    return len(records)

  with contextlib.redirect_stdout(io.StringIO()):
    records = sources.load(spec, "demonstration", cache_dir=None, on_bad=demos.on_bad)
  texts = (record["prompt"] + record["completion"] for record in records[:_TOKENIZER_RECORDS])
  tokenizer = Tokenizer.from_spec(config.tokenizer, texts)
  del records

  def run(given: Mapping[str, Any]) -> Work:
    del given
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=folder.name) as cache_dir:
      for name, directory in (
        ("in memory", None),
        ("new cache", cache_dir),
        ("from the cache", cache_dir),
      ):
        measure.reset_peak()
        began = time.perf_counter()
        num_records = load(directory)
        seconds[name], peaks[name] = time.perf_counter() - began, measure.peak_bytes()
    return Work(seconds=seconds, peaks=peaks, amount=num_records, unit="rows")

  return Case(model={}, run=run)


def write_demonstrations(job: Job, path: pathlib.Path, *, most_words: int) -> None:
  """`job.rows` demonstrations of up to `most_words` made-up words on each side, as JSONL."""
  random = inputs.generator(job, 7)
  letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
  words = ["".join(random.choice(letters, size)) for size in random.integers(2, 9, 2000)]

  def text() -> str:
    return " ".join(random.choice(words, random.integers(1, most_words + 1)))

  with path.open("w", encoding="utf-8") as file:
    for _ in range(job.rows):
      file.write(f"{json.dumps(dict(prompt=text(), completion=text()))}\n")


# ----------------------------------------------------------------------------- startup

_STEPS = {"sft": "sft_step", "reward_model": "rm_step", "ppo": "ppo_iteration"}


def startup(job: Job, config) -> Case:
  """New programs: an import, --help, and the first step with an empty and with a filled cache."""
  step = dataclasses.replace(job, case=_STEPS[config.kind])

  def run(given: Mapping[str, Any]) -> Work:
    del given
    with tempfile.TemporaryDirectory() as folder:
      described = pathlib.Path(folder) / "job.json"
      workdir.write_json(described, dataclasses.asdict(step))
      first_step = ["-m", "rlhf.benchmark.first_step", str(described)]
      cache = str(pathlib.Path(folder) / "cache")
      found = {
        "import rlhf.ppo": measure.run_program(["-c", "import rlhf.ppo"]),
        "--help": measure.run_program(["-m", "rlhf", "--help"]),
        "first start": measure.run_program(first_step, JAX_COMPILATION_CACHE_DIR=cache),
        "second start": measure.run_program(first_step, JAX_COMPILATION_CACHE_DIR=cache),
      }
    return Work(
      seconds={name: seconds for name, (seconds, _) in found.items()},
      peaks={name: peak for name, (_, peak) in found.items()},
    )

  return Case(model={}, run=run)


_MAKERS: dict[str, Callable[..., Case]] = {"data": data, "startup": startup}
