"""What fine-tuning costs elsewhere: the loss on held-out text, and few-shot tasks.

    loss      nats per token of held-out text; with training text also that of bigram counts
    TASK      share of a few-shot task's items whose right choice is the likeliest, and chance

Both are measures of the alignment tax.  Source: InstructGPT section 4.2 and appendix D.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import checks
from rlhf import workdir as workdir_lib
from rlhf.data import packing as packing_lib
from rlhf.data import prepare
from rlhf.evals import statistics, units
from rlhf.evals.measures import Measure
from rlhf.evals.suites import bigram, suite
from rlhf.inference import likelihood

LOSS = "loss"
# Stands between a few-shot prompt, which ends in ":", and a choice, as in pretraining text.
DELIMITER = " "
_FIELD = "config.pretraining"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
  """What is measured.

  Attributes:
    text: held-out text, FORMAT:PATH; empty for the few-shot tasks alone.
    train: text that bigrams are counted in, FORMAT:PATH; empty for no bigram baseline.
    max_train_tokens: of `train`; None takes all.
    length: tokens per row of text; None takes the context of each checkpoint.
    packing, attend_across_documents, reset_positions: how rows are made, as in pretraining; see
      `packing.pack_text`.
    few_shot: JSONL files of {"prompt", "choices", "answer": index}, a task each, named after its
      file without "few_shot_".
    text_batch_size: rows of text at once; affects speed and memory only.
  """

  text: str
  train: str
  max_train_tokens: int | None
  length: int | None
  packing: str
  attend_across_documents: bool
  reset_positions: bool
  few_shot: Sequence[str]
  text_batch_size: int

  def __post_init__(self):
    object.__setattr__(self, "few_shot", tuple(self.few_shot))
    if not self.text and not self.few_shot:
      raise ValueError(f"{_FIELD}.text and few_shot are empty; give one of them")
    checks.choices(_FIELD, self, packing=packing_lib.TEXT_PACKINGS)
    checks.at_least(_FIELD, self, max_train_tokens=1, length=2, text_batch_size=1)
    if len(self.tasks) < len(self.few_shot) or LOSS in self.tasks:
      raise ValueError(
        f"{_FIELD}.few_shot has the tasks {', '.join(self.tasks)}; give files of different names, "
        f"none called {LOSS}"
      )

  @property
  def tasks(self) -> dict[str, pathlib.Path]:
    """Few-shot task -> its file."""
    return {
      pathlib.Path(path).stem.removeprefix("few_shot_"): pathlib.Path(path)
      for path in self.few_shot
    }


def check(p: PretrainingConfig) -> None:
  """Raises ValueError where a file is missing or malformed."""
  for spec, field in ((p.text, "text"), (p.train, "train")):
    if spec:
      units.check_spec(spec, f"{_FIELD}.{field}")
  for path in p.tasks.values():
    _read_items(path)


def _read_items(path: pathlib.Path) -> list[dict[str, Any]]:
  if not path.is_file():
    raise ValueError(f"{_FIELD}.few_shot: {path} does not exist")
  items = workdir_lib.read_jsonl(path)
  for number, item in enumerate(items, start=1):
    known = all(name in item for name in ("prompt", "choices", "answer"))
    if not known or not 0 <= item["answer"] < len(item["choices"]):
      raise ValueError(
        f'{path}:{number}: a few-shot item needs "prompt", "choices" and "answer", the index of a '
        f"choice; found {sorted(item)}"
      )
  if not items:
    raise ValueError(f"{path} is empty; give one few-shot item per line")
  return items


def task_names(p: PretrainingConfig) -> tuple[str, ...]:
  """One unit of work for the text and for each few-shot task."""
  return (*((LOSS,) if p.text else ()), *p.tasks)


def data_files(p: PretrainingConfig, task: str) -> list[tuple[str, int]]:
  """What a unit is read from, and when that was written."""
  texts = [spec.partition(":")[2] for spec in (p.text, p.train) if spec]
  paths = texts if task == LOSS else [str(p.tasks[task])]
  return [(path, os.stat(path).st_mtime_ns) for path in paths]


def evaluate(p: PretrainingConfig, unit: suite.Unit) -> list[Measure]:
  """One task of one checkpoint; `items.jsonl` has a line for each row or item."""
  if unit.task == LOSS:
    return _loss(p, unit)
  items = _read_items(p.tasks[unit.task])
  correct = likelihood.few_shot_correct(
    unit.network, items, delimiter=DELIMITER, batch_size=unit.batch_size
  )
  unit.progress(len(items), len(items))
  unit.write(dict(item, correct=bool(right)) for item, right in zip(items, correct, strict=True))
  chance = [1 / len(item["choices"]) for item in items]
  return unit.means({"accuracy": (correct, "higher"), "chance": (chance, "")}, task=unit.task)


def _loss(p: PretrainingConfig, unit: suite.Unit) -> list[Measure]:
  network = unit.network
  pack = functools.partial(
    prepare.text_rows,
    tokenizer=network.tokenizer,
    length=network.cfg.context_length if p.length is None else p.length,
    packing=p.packing,
    attend_across_documents=p.attend_across_documents,
    reset_positions=p.reset_positions,
  )
  rows, _ = pack(units.read_records(p.text, "text", f"{_FIELD}.text"))
  loss_N2 = likelihood.loss_by_row(
    network.cfg,
    network.params,
    rows,
    batch_size=p.text_batch_size,
    use_segments=not p.attend_across_documents,
  )
  unit.progress(len(loss_N2), len(loss_N2))
  unit.write(dict(loss=loss, targets=num) for loss, num in loss_N2.tolist())
  interval = statistics.bootstrap_statistic(loss_N2, statistics.ratio, **unit.bootstrap)
  found = [Measure(task=LOSS, metric="nll", interval=interval, better="lower")]
  if p.train:
    # Counting takes longer than the loss of a small model: once for all that share a tokenizer.
    read = hashlib.sha256(rows.tokens_BT.tobytes() + str((p, network.cfg.vocab_size)).encode())
    path = unit.directory.parents[1] / f"bigram-{read.hexdigest()[:16]}.json"
    if not path.is_file():
      train_rows, _ = pack(
        units.read_records(p.train, "text", f"{_FIELD}.train"), max_tokens=p.max_train_tokens
      )
      nll = bigram.bigram_nll(train_rows, rows, vocab_size=network.cfg.vocab_size)
      workdir_lib.write_json(path, dict(nll=nll))
    nll = workdir_lib.read_json(path)["nll"]
    interval = statistics.Interval(mean=nll, low=nll, high=nll, n=len(loss_N2))
    found.append(Measure(task=LOSS, metric="bigram_nll", interval=interval))
  return found


def read_loss(directory: pathlib.Path) -> np.ndarray:
  """[N, 2]: the summed loss and the number of targets of each row, of a checkpoint's unit."""
  lines = workdir_lib.read_jsonl(directory / units.ITEMS)
  return np.asarray([[line["loss"], line["targets"]] for line in lines])


def rise(
  before_N2: np.ndarray, after_N2: np.ndarray, settings: Mapping[str, int]
) -> statistics.Interval:
  """Mean loss after minus before, on the same rows of `read_loss`."""
  table_N4 = np.concatenate([after_N2, before_N2], axis=1)
  return statistics.bootstrap_statistic(table_N4, statistics.ratio_difference, **settings)
