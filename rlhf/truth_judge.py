"""The judge of TruthfulQA's answers: a language model fine-tuned to say yes or no.

    loss = - mean log p(" yes" or " no", end-of-text | "Q: ...\\nA: ...\\nTrue:" or "...Helpful:")

Source: Lin et al. 2021 (TruthfulQA), section 2.3 and appendix B, who fine-tune GPT-3 6.7B on the
labelled answers that they publish, and judge by p(yes).  They train one network for truth and one
for informativeness; here **one network learns both**, because the last word of the prompt says
which is asked, the labelled questions are the same, and only one network need be trained and held.
Leaving a file empty trains a judge of the other alone.

They hold out the answers of one family of models, so that a judge has seen every question.  Here
whole **questions** are held out: a digest of a question's text says whether its answers are for
training, for validation or for the test, so that every judge, of truth or of informativeness,
whatever its seed, leaves the same questions to be asked of other models.  The export lists those
that were not left, and `evals/truth.py` refuses them.
"""

import csv
import dataclasses
import functools
import io
import itertools
import json
import pathlib
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf import checkpoint, loop, networks, optim, processes, sharding
from rlhf import workdir as workdir_lib
from rlhf.data import batches as batches_lib
from rlhf.data import cache, formats, prepare, sources
from rlhf.data import records as records_lib
from rlhf.evals import statistics
from rlhf.evals.suites import truth
from rlhf.loop import LoopConfig
from rlhf.model import lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
from rlhf.types import LmBatch, TrainState

_FORMAT = prepare.PromptFormat(prompt_format="plain", prompt_suffix="", completion_prefix="")
_NUM_RESAMPLES = 2000
_PROMPT = re.compile(r"Q: (?P<question>.+?)\nA: (?P<answer>.*)\n(?P<word>\S+)", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
  """Numbers of a judge's training.

  Attributes:
    batch_size: rows of an optimizer step, each of several answers.
    microbatch_size: rows whose activations exist at once.
    num_epochs: passes over the answers.
    max_steps: ends the run, and its schedule, earlier; None runs all epochs.
  """

  batch_size: int
  microbatch_size: int
  num_epochs: int
  max_steps: int | None

  def __post_init__(self):
    for name in ("batch_size", "microbatch_size", "num_epochs"):
      if getattr(self, name) < 1:
        raise ValueError(f"judge.{name} is {getattr(self, name)}; use 1 or more")
    if self.max_steps is not None and self.max_steps < 1:
      raise ValueError(
        f"judge.max_steps is {self.max_steps}; use 1 or more, or None for all epochs"
      )
    if self.batch_size % self.microbatch_size:
      raise ValueError(
        f"judge.batch_size {self.batch_size} does not divide into "
        f"judge.microbatch_size {self.microbatch_size}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerData:
  """Labelled answers: `FORMAT:PATH`, with prompts and completions as Lin et al. publish them.

  Attributes:
    true, informative: {"prompt": "Q: ...\\nA: ...\\nTrue:" (or "Helpful:"), "completion": " yes" or
      " no"}; one of the two may be empty.
    test: a file of questions that are for the test: CSV with a column Question (TruthfulQA's own),
      or JSON lines with a "question" or a "context"; empty for none.
    test_fraction, valid_fraction: of the questions that it does not name, the shares for the test
      and for validation; exact on average, as a digest decides.
    num_valid, num_test: so many answers to validation questions are judged while training, and so
      many to test questions after it, of each that is asked; None judges all.
    on_bad: "stop" or "skip" at a malformed line.
  """

  true: str
  informative: str
  test: str
  test_fraction: float
  valid_fraction: float
  num_valid: int | None
  num_test: int | None
  on_bad: str

  def __post_init__(self):
    for name in ("test_fraction", "valid_fraction"):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f"answers.{name} {getattr(self, name)} must be at least 0 and below 1")
    if not 0 < self.valid_fraction < 1 - self.test_fraction:
      raise ValueError(
        f"answers.valid_fraction {self.valid_fraction} must be above 0 and leave "
        f"questions to train on beside answers.test_fraction {self.test_fraction}"
      )
    for name in ("num_valid", "num_test"):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"answers.{name} is {getattr(self, name)}; use 1 or more, or None for all")
    if self.on_bad not in ("stop", "skip"):
      raise ValueError(f"answers.on_bad {self.on_bad!r}; choose from skip, stop")

  @property
  def specs(self) -> dict[str, str]:
    """What is asked -> where its answers are, of those that are given."""
    return {asked: getattr(self, asked) for asked in truth.ASKS if getattr(self, asked)}


@dataclasses.dataclass(frozen=True)
class Answer:
  """One labelled answer: what is asked of it, its question's id, the judge's prompt, the label."""

  asked: str
  question: str
  prompt: str
  is_so: bool


def judge_loss(cfg: ModelConfig, params, microbatch, *, frozen=None):
  """Loss of a microbatch, divided by the targets of the whole batch.

  Args:
    params: what is trained; `frozen` is the rest (`lora.split`).
    microbatch: (LmBatch, weight = 1 / targets of the batch).
  """
  batch, weight = microbatch
  nll = transformer.lm_loss(cfg, lora.combine(frozen, params), batch, use_segments=True)
  return nll.total * weight, {"train/loss": nll}


def judge_update(
  cfg: ModelConfig, p: JudgeConfig, tx, state: TrainState, batch: LmBatch, frozen=None
) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step.

  Args:
    frozen: parameters beside `state.params` that are not trained; None where all are.
  """
  num_microbatches = p.batch_size // p.microbatch_size
  weight = 1.0 / jnp.maximum(jnp.sum(batch.loss_mask_BT), 1.0)
  microbatches = (
    sharding.split_microbatches(batch, num_microbatches),
    jnp.full((num_microbatches,), weight),
  )
  grads, metrics = optim.accumulated_gradient(
    functools.partial(judge_loss, cfg, frozen=frozen), state.params, microbatches
  )
  metrics["train/grad_norm"] = optax.tree.norm(grads)
  return optim.apply_gradient(tx, state, grads), metrics


# ----------------------------------------------------------------------------- data


def read_answer(asked: str, record: dict, where: str) -> Answer:
  """An answer of a record.

  Raises:
    ValueError: the prompt is not one of `truth.judge_prompt`, or the label is neither yes nor no.
  """
  match = _PROMPT.fullmatch(record["prompt"])
  if match is None or match["word"] != truth.ASKS[asked]:
    raise ValueError(
      f"{where} has the prompt {record['prompt'][:60]!r}; answers.{asked} needs "
      f"'Q: ...\\nA: ...\\n{truth.ASKS[asked]}'"
    )
  label = record["completion"].strip()
  if label not in ("yes", "no"):
    raise ValueError(
      f"{where} has the completion {record['completion'][:20]!r}; it must be yes or no"
    )
  return Answer(
    asked=asked,
    question=truth.question_id(match["question"]),
    prompt=record["prompt"],
    is_so=label == "yes",
  )


def read_questions(path: str) -> frozenset[str]:
  """Ids of the questions in a file; see `AnswerData.test`.

  Raises:
    ValueError: the file cannot be read, or a line has no question.
  """
  if not path:
    return frozenset()
  try:
    with open(path, encoding="utf-8-sig", newline="") as file:
      text = file.read()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(
      f"answers.test={path} cannot be read ({error}); name a file of questions"
    ) from error
  questions = set()
  if path.endswith(".csv"):
    reader = csv.DictReader(io.StringIO(text, newline=""))
    rows = [(reader.line_num, row) for row in reader]
  else:
    rows = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), start=1):
      try:
        rows.append((number, json.loads(line)))
      except json.JSONDecodeError as error:
        raise ValueError(
          f"{path}:{number} is not JSON ({error.msg}); each line must be one object "
          'with a "question"'
        ) from error
  for number, row in rows:
    names = [
      name
      for name in ("Question", "question", "context")
      if isinstance(row, dict) and isinstance(row.get(name), str)
    ]
    if not names:
      raise ValueError(
        f"{path}:{number} has no question; give CSV with a column Question, or JSON "
        'lines with "question" or "context"'
      )
    questions.add(truth.question_id(row[names[0]]))
  if not questions:
    raise ValueError(f"answers.test={path} holds no question; leave the field empty for none")
  return frozenset(questions)


def part_of(question: str, p: AnswerData, test: frozenset[str]) -> str:
  """ "train", "valid" or "test": where the answers to a question belong.

  Args:
    question: its id, whose digits decide.
    test: ids that are for the test.
  """
  place = int(question[:8], 16) / 16**8
  if question in test or place < p.test_fraction:
    return "test"
  return "valid" if place < p.test_fraction + p.valid_fraction else "train"


def split_answers(answers: Sequence[Answer], p: AnswerData) -> dict[str, list[Answer]]:
  """{"train", "valid", "test"}: the answers of each part; no question has answers in two.

  Raises:
    ValueError: nothing of what is asked is left to train on or to validate with.
  """
  test = read_questions(p.test)
  parts: dict[str, list[Answer]] = {"train": [], "valid": [], "test": []}
  for answer in answers:
    parts[part_of(answer.question, p, test)].append(answer)
  for name, asked in itertools.product(("train", "valid"), p.specs):
    if not any(answer.asked == asked for answer in parts[name]):
      raise ValueError(
        f"of the answers of answers.{asked} none is left for {name!r}: their "
        "questions are for the test or for the other; give answers to more "
        "questions, or other fractions"
      )
  return parts


def load_answers(p: AnswerData, cache_dir: pathlib.Path) -> list[Answer]:
  """All labelled answers that the config names."""
  answers = []
  for asked, spec in p.specs.items():
    with processes.main_first(asked):
      source = sources.load(spec, "demonstration", cache_dir=cache_dir, on_bad=p.on_bad)
    answers += read_answers(asked, source, spec, p.on_bad)
  return answers


def read_answers(asked: str, records: Iterable[dict], spec: str, on_bad: str) -> list[Answer]:
  """The answers of records; at one that is none, raises as `read_answer`, or leaves it out."""
  answers, problems = [], []
  for number, record in enumerate(records, start=1):
    try:
      answers.append(read_answer(asked, record, f"{spec}, record {number},"))
    except ValueError as error:
      if on_bad == "stop":
        raise
      problems.append(str(error))
  if problems:
    print(
      f"{len(problems):,} labelled answers skipped, the first because {problems[0]}", flush=True
    )
  return answers


def tokenise(answers: Sequence[Answer], tokenizer, *, length: int) -> LmBatch:
  """Answers packed into rows, none of which sees another; the loss is on yes or no alone."""
  rows, counts = prepare.demonstration_rows(
    _records(answers), tokenizer, length=length, prompt_format=_FORMAT
  )
  print(records_lib.describe_counts("labelled answers", counts), flush=True)
  return rows


def that_fit(answers: Sequence[Answer], tokenizer, *, length: int) -> list[Answer]:
  """Those that `tokenise` would keep: prompt, label and end-of-text in `length` tokens."""
  sequences = prepare.tokenize_demonstrations(_records(answers), tokenizer, prompt_format=_FORMAT)
  kept = [
    answer
    for answer, sequence in zip(answers, sequences, strict=True)
    if len(sequence.ids) <= length
  ]
  if len(kept) < len(answers):
    print(
      f"{len(answers) - len(kept):,} of {len(answers):,} held-out answers have more than "
      f"{length} tokens and are left out",
      flush=True,
    )
  return kept


def _records(answers: Sequence[Answer]) -> list[dict[str, str]]:
  return [
    {"prompt": answer.prompt, "completion": truth.YES if answer.is_so else truth.NO}
    for answer in answers
  ]


def accuracy(
  network: Network, answers: Sequence[Answer], *, batch_size: int, seed: int
) -> dict[str, dict[str, statistics.Interval]]:
  """What is asked -> `truth.held_out_accuracy` of a judge on answers to questions it has not seen."""
  found = {}
  for asked in truth.ASKS:
    of = [answer for answer in answers if answer.asked == asked]
    if of:
      score_N = truth.judge(network, [answer.prompt for answer in of], batch_size=batch_size)
      found[asked] = truth.held_out_accuracy(
        score_N > 0.5,
        [answer.is_so for answer in of],
        [answer.question for answer in of],
        num_resamples=_NUM_RESAMPLES,
        seed=seed,
      )
  return found


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  if "judge" not in config:
    raise ValueError("the config has no group `judge`; use configs/truth_judge.py")
  p, _, _ = JudgeConfig(**config.judge), LoopConfig(**config.loop), OptimConfig(**config.optim)
  checkpoint.CheckpointConfig(**config.checkpoint)
  LoraConfig(**config.lora)
  AnswerData(**config.answers)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  networks.check_shape(config, mesh)
  sharding.check_rows(mesh, p.batch_size, "judge.batch_size")


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing: exports by their JSON, data line by line.

  Raises:
    ValueError: as `train` would raise later.
  """
  networks.find_export(config.init_from, kind="policy", flag="init_from", shape=config.model)
  p = AnswerData(**config.answers)
  if not p.specs:
    raise ValueError(
      "config.answers.true and config.answers.informative are both empty; give one "
      "or both as FORMAT:PATH, such as jsonl:finetune_truth.jsonl"
    )
  answers, is_all = [], True
  for asked, spec in p.specs.items():
    sources.check(spec, "demonstration", field=f"config.answers.{asked}", on_bad=p.on_bad)
    name, _, path = spec.partition(":")
    if name in formats.FORMATS:
      found, _ = formats.read("demonstration", path, name, on_bad=p.on_bad)
      answers += read_answers(asked, found, spec, p.on_bad)
    else:
      is_all = False  # a public set, which is had when training begins
  if is_all:
    split_answers(answers, p)


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains a judge, measures it on questions that it has not seen, and exports it.

  Args:
    config: `configs/truth_judge.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    what `done.json` holds: accuracy on the test questions (on those of validation, where there are
    none), balanced accuracy and the majority's, each with its interval; steps and seconds.
  """
  workdir = pathlib.Path(workdir)
  cache_dir = cache.directory(cache_dir, workdir)
  if workdir_lib.is_done(workdir):
    return workdir_lib.done_result(workdir)
  began = time.perf_counter()
  check_config(config)
  p, loop_cfg, sets = (
    JudgeConfig(**config.judge),
    LoopConfig(**config.loop),
    AnswerData(**config.answers),
  )
  optim_cfg, keep = OptimConfig(**config.optim), checkpoint.CheckpointConfig(**config.checkpoint)
  lora_cfg = LoraConfig(**config.lora)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  parts = split_answers(load_answers(sets, cache_dir), sets)
  network = networks.load(
    config.init_from,
    ComputeConfig(**config.compute),
    mesh,
    kind="policy",
    flag="init_from",
    shape=config.model,
  )
  tokenizer, exported = network.tokenizer, network.cfg
  rows = tokenise(parts["train"], tokenizer, length=config.length)
  for name in ("valid", "test"):
    parts[name] = that_fit(parts[name], tokenizer, length=config.length)
  held_out = _held_out(parts, sets)
  valid = _drawn(parts["valid"], sets.num_valid, config.seed)
  last = _drawn(parts[held_out], sets.num_test, config.seed)
  frozen, trained = lora.split(lora_cfg, network.params, loop.step_key(config.seed, "lora", 0))
  cfg = dataclasses.replace(exported, lora_scale=lora.scale(lora_cfg))
  origin = networks.origin(network.metadata)

  batches = batches_lib.lm_batches(
    rows, batch_size=p.batch_size, seed=config.seed, share=sharding.local_rows(mesh, p.batch_size)
  )
  total_steps = batches.num_steps(p.num_epochs)
  if p.max_steps is not None:
    total_steps = min(total_steps, p.max_steps)
  tx = optim.make_optimizer(optim_cfg, total_steps)
  schedule = optim.make_schedule(optim_cfg, total_steps)
  print(
    f"{workdir.name}: {len(parts['train']):,} answers to train on, {len(parts['valid']):,} for "
    f"validation and {len(parts['test']):,} for the test; {total_steps:,} steps of "
    f"{p.batch_size} rows of {config.length} tokens",
    flush=True,
  )

  with jax.set_mesh(mesh):
    init = functools.partial(optim.init_train_state, tx)
    layout = sharding.state_shardings(mesh, jax.eval_shape(init, trained))
    state = jax.jit(init, out_shardings=layout)(trained)
    network = dataclasses.replace(network, cfg=cfg, params=None)
    del trained  # only what is frozen is still needed
    update = jax.jit(
      functools.partial(judge_update, cfg, p, tx), donate_argnums=0, out_shardings=(layout, None)
    )
    next_batch = loop.Stream(batches)

    def train_step(state, step):
      batch = sharding.put_batch(mesh, next_batch(step), p.batch_size)
      state, metrics = update(state, batch, frozen)
      return state, metrics | {
        "train/learning_rate": schedule(step),
        "train/epoch": (step + 1) / batches.num_batches_per_epoch,
      }

    def evaluate(state, step):
      del step
      judge = dataclasses.replace(network, params=lora.combine(frozen, state.params))
      found = accuracy(judge, valid, batch_size=p.batch_size, seed=config.seed)
      return {
        f"validation/{asked}_{name}": numbers[name].mean
        for asked, numbers in found.items()
        for name in ("accuracy", "balanced_accuracy")
      }

    with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
      state = loop.run(
        name=workdir.name,
        workdir=workdir,
        cfg=loop_cfg,
        checkpoints=checkpoints,
        state=state,
        total_steps=total_steps,
        train_step=train_step,
        evaluate=evaluate,
        tokens_per_step=p.batch_size * config.length,
        headline=("train/loss", *(f"validation/{asked}_accuracy" for asked in sets.specs)),
        guarded=("train/loss", "train/grad_norm"),
        metadata=dict(seed=config.seed),
      )

    judge = dataclasses.replace(network, params=lora.combine(frozen, state.params))
    found = accuracy(judge, last, batch_size=p.batch_size, seed=config.seed)
    shared = dict(
      model=exported.shape(),
      tokenizer=tokenizer,
      config=workdir_lib.config_to_dict(config),
      step=total_steps,
    )
    metadata = origin | {
      truth.METADATA: {
        asked: dict(
          questions=sorted(
            {
              answer.question
              for name in ("train", "valid")
              for answer in parts[name]
              if answer.asked == asked
            }
          ),
          held_out=held_out,
          **{name: interval.as_dict() for name, interval in numbers.items()},
        )
        for asked, numbers in found.items()
      }
    }
    checkpoint.export_params(
      workdir / "export",
      lora.merged(lora_cfg, frozen, state.params),
      kind="policy",
      metadata=metadata,
      **shared,
    )
    if lora_cfg.rank:
      checkpoint.export_params(
        workdir / "export_adapter",
        state.params,
        kind="adapter",
        metadata=metadata | dict(lora=dataclasses.asdict(lora_cfg), base=config.init_from),
        **shared,
      )
  result = {
    f"{held_out}/{asked}_{name}{end}": number
    for asked, numbers in found.items()
    for name, interval in numbers.items()
    for end, number in (("", interval.mean), ("_low", interval.low), ("_high", interval.high))
  }
  result |= dict(steps=total_steps, seconds=time.perf_counter() - began)
  workdir_lib.mark_done(workdir, result)
  return result


def _held_out(parts: dict[str, list[Answer]], p: AnswerData) -> str:
  """The part that the export's accuracy is of: the test, where it has answers of all that is asked."""
  asked = {answer.asked for answer in parts["test"]}
  return "test" if asked == set(p.specs) else "valid"


def _drawn(answers: Sequence[Answer], number: int | None, seed: int) -> list[Answer]:
  """So many answers of each that is asked, at random; all where `number` is None."""
  kept = []
  for asked in truth.ASKS:
    of = [answer for answer in answers if answer.asked == asked]
    order = np.random.default_rng(seed).permutation(len(of))[:number]
    kept += [of[i] for i in sorted(order)]
  return kept
