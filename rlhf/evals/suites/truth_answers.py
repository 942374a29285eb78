"""Labelled answers to TruthfulQA's questions: what the judge of `truth_judge.py` is trained on.

Lin et al. 2021 hold out the answers of one family of models, so that a judge has seen every
question.  Here whole **questions** are held out: a digest of a question's text decides whether its
answers are for training, validation or the test, so all judges,
of either aspect and of any seed, leave the same questions for other models to answer.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from rlhf import checks, training
from rlhf.data import formats, prepare, sources
from rlhf.evals import statistics
from rlhf.evals.preference import sheets
from rlhf.evals.suites import truth
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch

_FORMAT = prepare.PromptFormat(prompt_format="plain", prompt_suffix="", completion_prefix="")
_NUM_RESAMPLES = 2000
_PROMPT = re.compile(r"Q: (?P<question>.+?)\nA: (?P<answer>.*)\n(?P<word>\S+)", re.DOTALL)
PARTS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerData:
  """Labelled answers: `FORMAT:PATH`, with prompts and completions as Lin et al. publish them.

  Attributes:
    true, informative: {"prompt": "Q: ...\\nA: ...\\nTrue:" (or "Helpful:"), "completion": " yes" or
      " no"}; one of the two may be empty.
    test: a file of questions that are for the test: CSV with a column Question (TruthfulQA's own),
      or JSON lines with a "question" or a "context"; empty for none.
    test_fraction, valid_fraction: of the other questions, the shares for the test and for
      validation; exact on average, as a digest decides.
    num_valid, num_test: answers of each aspect that are judged during training (validation
      questions) and after it (test questions); None judges all.
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
        f"questions to train on, with answers.test_fraction {self.test_fraction}"
      )
    checks.at_least("answers", self, num_valid=1, num_test=1)
    checks.choices("answers", self, on_bad=("stop", "skip"))

  @property
  def specs(self) -> dict[str, str]:
    """Aspect -> source of its answers, for the aspects that have one."""
    return {aspect: getattr(self, aspect) for aspect in truth.ASKS if getattr(self, aspect)}


@dataclasses.dataclass(frozen=True)
class Answer:
  """One labelled answer: its aspect, its question's id, the judge's prompt and the label."""

  aspect: str
  question: str
  prompt: str
  label: bool


# ----------------------------------------------------------------------------- reading


def read_answer(aspect: str, record: dict, where: str) -> Answer:
  """An answer of a record.

  Raises:
    ValueError: the prompt is not one of `truth.judge_prompt`, or the label is neither yes nor no.
  """
  match = _PROMPT.fullmatch(record["prompt"])
  if match is None or match["word"] != truth.ASKS[aspect]:
    raise ValueError(
      f"{where} has the prompt {record['prompt'][:60]!r}; answers.{aspect} needs "
      f"'Q: ...\\nA: ...\\n{truth.ASKS[aspect]}'"
    )
  label = record["completion"].strip()
  if label not in ("yes", "no"):
    raise ValueError(
      f"{where} has the completion {record['completion'][:20]!r}; it must be yes or no"
    )
  return Answer(
    aspect=aspect,
    question=truth.question_id(match["question"]),
    prompt=record["prompt"],
    label=label == "yes",
  )


def read_answers(aspect: str, records: Iterable[dict], spec: str, on_bad: str) -> list[Answer]:
  """The answers of records; a bad record raises as `read_answer`, or is left out."""
  answers, problems = [], []
  for number, record in enumerate(records, start=1):
    try:
      answers.append(read_answer(aspect, record, f"{spec}, record {number},"))
    except ValueError as error:
      if on_bad == "stop":
        raise
      problems.append(str(error))
  if problems:
    print(
      f"{len(problems):,} labelled answers skipped, the first because {problems[0]}", flush=True
    )
  return answers


def read_questions(path: str) -> frozenset[str]:
  """Ids of the questions in a file; see `AnswerData.test`.

  Raises:
    ValueError: the file cannot be read, or a line has no question.
  """
  if not path:
    return frozenset()
  read = sheets.read_csv if path.endswith(".csv") else sheets.read_objects
  questions = set()
  try:
    for where, row in read(path):
      fields = row if isinstance(row, dict) else {}
      found = [fields.get(name) for name in ("Question", "question", "context")]
      question = next((value for value in found if isinstance(value, str)), None)
      if question is None:
        raise ValueError(
          f"{where} has no question; give CSV with a column Question, or JSON lines with "
          '"question" or "context"'
        )
      questions.add(truth.question_id(question))
  except ValueError as error:
    raise ValueError(f"answers.test: {error}") from None
  if not questions:
    raise ValueError(f"answers.test={path} holds no question; leave the field empty for none")
  return frozenset(questions)


def load_answers(p: AnswerData, cache_dir: pathlib.Path | None) -> list[Answer]:
  """All labelled answers that the config names."""
  answers = []
  for aspect, spec in p.specs.items():
    records = sources.load(spec, "demonstration", cache_dir=cache_dir, on_bad=p.on_bad)
    answers += read_answers(aspect, records, spec, p.on_bad)
  return answers


def check(p: AnswerData) -> None:
  """Reads the files and keeps nothing; raises ValueError as training would later."""
  if not p.specs:
    raise ValueError(
      "config.answers.true and config.answers.informative are both empty; give one "
      "or both as FORMAT:PATH, such as jsonl:finetune_truth.jsonl"
    )
  answers, is_all = [], True
  for aspect, spec in p.specs.items():
    sources.check(spec, "demonstration", field=f"config.answers.{aspect}", on_bad=p.on_bad)
    name, _, path = spec.partition(":")
    if name in formats.FORMATS:
      found, _ = formats.read("demonstration", path, name, on_bad=p.on_bad)
      answers += read_answers(aspect, found, spec, p.on_bad)
    else:
      is_all = False  # a public set is downloaded when training begins
  if is_all:
    split_answers(answers, p)


# ----------------------------------------------------------------------------- splitting


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
  """The answers of each of `PARTS`; no question has answers in two.

  Raises:
    ValueError: no answer of an aspect is left for training or for validation.
  """
  test = read_questions(p.test)
  parts: dict[str, list[Answer]] = {name: [] for name in PARTS}
  for answer in answers:
    parts[part_of(answer.question, p, test)].append(answer)
  for name, aspect in itertools.product(("train", "valid"), p.specs):
    if not any(answer.aspect == aspect for answer in parts[name]):
      raise ValueError(
        f"of the answers of answers.{aspect} none is left for {name!r}: their "
        "questions are for the test or for the other part; give answers to more "
        "questions, or other fractions"
      )
  return parts


def draw(answers: Sequence[Answer], number: int | None, seed: int) -> list[Answer]:
  """Draws `number` answers of each aspect at random; all where it is None."""
  kept = []
  for aspect in truth.ASKS:
    of_aspect = [answer for answer in answers if answer.aspect == aspect]
    order = np.random.default_rng(seed).permutation(len(of_aspect))[:number]
    kept += [of_aspect[i] for i in sorted(order)]
  return kept


# ----------------------------------------------------------------------------- tokens and accuracy


def tokenise(answers: Sequence[Answer], tokenizer: Tokenizer, *, length: int) -> LmBatch:
  """Answers packed into rows, none of which sees another; the loss is on yes or no alone."""
  return training.printed(
    "labelled answers",
    *prepare.demonstration_rows(_records(answers), tokenizer, length=length, prompt_format=_FORMAT),
  )


def that_fit(answers: Sequence[Answer], tokenizer: Tokenizer, *, length: int) -> list[Answer]:
  """Those that `tokenise` keeps: prompt, label and end-of-text in `length` tokens."""
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
    {"prompt": answer.prompt, "completion": truth.YES if answer.label else truth.NO}
    for answer in answers
  ]


def accuracy(
  network: Network, answers: Sequence[Answer], *, batch_size: int, seed: int
) -> dict[str, dict[str, statistics.Interval]]:
  """Aspect -> `truth.held_out_accuracy` of a judge on answers to unseen questions."""
  found = {}
  for aspect in truth.ASKS:
    of_aspect = [answer for answer in answers if answer.aspect == aspect]
    if of_aspect:
      score_N = truth.judge(network, [answer.prompt for answer in of_aspect], batch_size=batch_size)
      found[aspect] = truth.held_out_accuracy(
        score_N > 0.5,
        np.array([answer.label for answer in of_aspect]),
        [answer.question for answer in of_aspect],
        num_resamples=_NUM_RESAMPLES,
        seed=seed,
      )
  return found
