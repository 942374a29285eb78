"""Your own files, cleaned and split into the data sets of a pipeline.

Source of the rules: InstructGPT (arXiv:2203.02155) section 3.2 and appendix A.2.
"""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import checks
from rlhf import workdir as workdir_lib
from rlhf.data import hygiene, sources
from rlhf.data import records as records_lib
from rlhf.data.records import concatenate


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesConfig:
  """Your own data: `FORMAT:PATH` or tfds names, several where a field is a tuple.

  Attributes:
    text, demonstrations, comparisons, prompts: where each kind comes from; `base.text.max_tokens`
      limits how much of the text is read.
    valid_fraction, test_fraction: of users (of prompts, where there are no users; of documents for
      text).
    max_demonstrations, max_comparisons, max_prompts: size of a random subset; None takes all.
    max_completions: per comparison; a random subset where a comparison has more.
    prefix_length: prompts that share this many first characters are duplicates; not stated in the
      paper.
    max_prompts_per_user: 200 in InstructGPT section 3.2; prompts without a user are all kept.
    on_bad: "stop" or "skip" at a malformed line.
  """

  text: Sequence[str]
  demonstrations: Sequence[str]
  comparisons: Sequence[str]
  prompts: Sequence[str]
  valid_fraction: float
  test_fraction: float
  max_demonstrations: int | None
  max_comparisons: int | None
  max_prompts: int | None
  max_completions: int | None
  prefix_length: int
  max_prompts_per_user: int
  on_bad: str

  def __post_init__(self):
    if not (
      0 < self.valid_fraction
      and 0 < self.test_fraction
      and self.valid_fraction + self.test_fraction < 1
    ):
      raise ValueError(
        f"files.valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction}; use "
        "numbers above 0 that leave something to train on"
      )
    checks.choices("files", self, on_bad=("stop", "skip"))
    checks.at_least("files", self, max_demonstrations=1, max_comparisons=1, max_prompts=1)
    checks.at_least("files", self, max_completions=2, prefix_length=1, max_prompts_per_user=1)

  @property
  def sources(self) -> dict[str, tuple[str, Sequence[str]]]:
    """Field -> (kind of record, where it comes from)."""
    return dict(
      text=("text", self.text),
      demonstrations=("demonstration", self.demonstrations),
      comparisons=("comparison", self.comparisons),
      prompts=("prompt", self.prompts),
    )


def check(cfg: FilesConfig) -> None:
  """Reads the files line by line and keeps nothing; raises as `write` would."""
  for field, (kind, specs) in cfg.sources.items():
    for spec in specs:
      sources.check(spec, kind, field=f"config.files.{field}", on_bad=cfg.on_bad)


def write(cfg: FilesConfig, directory: pathlib.Path, seed: int) -> dict[str, int]:
  """Reads, cleans and splits the files into the names that TinyWorld writes.

  Prompts are deduplicated by long common prefix, capped per user and split by user.  The prompts of
  the reward model, of PPO and of the test set are disjoint.

  Returns:
    name -> lines written.

  Raises:
    ValueError: a file is malformed, or nothing is left of a data set.
  """

  directory.mkdir(parents=True, exist_ok=True)
  # Records are read from disk, so that memory does not grow with the files.
  with tempfile.TemporaryDirectory(dir=directory) as cache_dir:
    return _write(cfg, directory, seed, cache_dir)


def _write(cfg: FilesConfig, directory: pathlib.Path, seed: int, cache_dir: str) -> dict[str, int]:
  def read(field):
    kind, specs = cfg.sources[field]
    return records_lib.concatenate(
      *(sources.load(spec, kind, cache_dir=cache_dir, on_bad=cfg.on_bad) for spec in specs)
    )

  def subset(records, limit=None):
    order = np.random.default_rng(seed).permutation(len(records))
    return records_lib.subset(records, order[:limit])

  def clean(field):
    records, distinct = hygiene.deduplicate_by_prefix(read(field), cfg.prefix_length)
    records, capped = hygiene.cap_per_user(records, cfg.max_prompts_per_user)
    for counts in (distinct, capped):
      print(records_lib.describe_counts(field, counts), flush=True)
    limit = getattr(cfg, f"max_{field}")
    return records if limit is None else subset(records, limit)

  two = dict(train=1.0 - cfg.valid_fraction, valid=cfg.valid_fraction)
  three = dict(two, train=two["train"] - cfg.test_fraction, test=cfg.test_fraction)
  prompts, comparisons, demonstrations = (
    hygiene.split_by_user(clean(field), fractions, seed)
    for field, fractions in (("prompts", three), ("comparisons", two), ("demonstrations", two))
  )
  if (most := cfg.max_completions) is not None:
    limited = lambda records: records_lib.LazySequence(
      len(records), lambda i: fewer_completions(records[i], most, seed + i)
    )
    comparisons = {name: limited(records) for name, records in comparisons.items()}
  texts = subset(read("text"))
  num_valid = max(1, int(len(texts) * cfg.valid_fraction))

  # Test and validation prompts are kept; what overlaps is taken out of the training sets.
  held_out = concatenate(prompts["test"], prompts["valid"])
  comparisons["valid"] = hygiene.remove_overlap(comparisons["valid"], held_out)
  reserved = concatenate(held_out, comparisons["valid"])
  comparisons["train"] = hygiene.remove_overlap(comparisons["train"], reserved)
  prompts["train"] = hygiene.remove_overlap(
    prompts["train"], concatenate(reserved, comparisons["train"])
  )
  demonstrations["train"] = hygiene.remove_overlap(demonstrations["train"], reserved)
  demonstrations["valid"] = hygiene.remove_overlap(demonstrations["valid"], demonstrations["train"])
  hygiene.check_disjoint(
    reward_model=concatenate(comparisons["train"], comparisons["valid"]),
    ppo=prompts["train"],
    test=prompts["test"],
    validation=prompts["valid"],
  )
  written = {
    "pretraining_train": records_lib.subset(texts, range(num_valid, len(texts))),
    "pretraining_valid": records_lib.subset(texts, range(min(num_valid, len(texts)))),
    **{f"demonstrations_{part}": demonstrations[part] for part in two},
    **{f"comparisons_{part}": comparisons[part] for part in two},
    "prompts_ppo": prompts["train"],
    "prompts_ppo_valid": prompts["valid"],
    "prompts_test": prompts["test"],
  }
  for name, lines in written.items():
    if not lines:
      raise ValueError(
        f"nothing is left for {name} after cleaning and splitting; give more data "
        "or other fractions"
      )
    workdir_lib.write_jsonl(directory / f"{name}.jsonl", lines)
  return {name: len(lines) for name, lines in written.items()}


def fewer_completions(record: Mapping[str, Any], limit: int, seed: int) -> dict[str, Any]:
  """A comparison with at most `limit` of its completions, in their order and with their ranks."""
  kept = np.sort(np.random.default_rng(seed).permutation(len(record["completions"]))[:limit])
  return dict(
    record, **{name: [record[name][int(i)] for i in kept] for name in ("completions", "ranks")}
  )
