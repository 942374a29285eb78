"""Scores JSONL with a reward model.

  rlhf score --reward_model=runs/rm --input=completions.jsonl --output=scored.jsonl

A line {"prompt", "completions": [texts], ...} gets "scores": [numbers]; a line {"prompt",
"completion", ...} gets "score": number; other fields are copied. Texts are tokenized as in
training, each with end-of-text. Where lines also have "ranks", the accuracy over untied pairs is
printed.

--input=FORMAT:FILE reads comparisons as their authors published them (pandalm:FILE, llmbar:FILE,
hh:FILE, alpaca_eval:FILE, ...), for example to measure how often a reward model agrees with the
majority of PandaLM's annotators.

--calibration=FILE.svg plots how often the higher score is ranked better against the predicted
probability, sigmoid(|score difference|), and prints the expected calibration error.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, jsonl, models, startup
from rlhf.evals.reward_models import calibration


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf score", __doc__)
  parser.flag("reward_model", models.REWARD_HELP, required=True)
  parser.flag("input", "JSONL to score, or FORMAT:FILE of comparisons", required=True)
  parser.add_output("JSONL to write")
  parser.add_output("SVG to write where lines are ranked", name="calibration", required=False)
  models.add_batch_size(parser)
  models.add_prompt_format(parser)
  return parser.parse(argv)


def check(value: Any) -> None:
  """Raises the `Problem` that keeps a JSON value from being scored; an empty completion can be."""
  from rlhf.data import records
  from rlhf.data.records import Problem

  records.check_record("prompt", value)
  shape = 'give "completions": [str, ...] or "completion": str'
  if "completions" not in value and "completion" not in value:
    raise Problem("missing field", f'no field "completions" or "completion"; {shape}')
  texts = texts_of(value)
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise Problem("wrong type", f"the completions are not text; {shape}")
  if not texts:
    raise Problem("no completion", '"completions" is empty; give one or more')
  if "ranks" in value and "completions" in value:
    ranks = value["ranks"]
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
      raise Problem("wrong type", '"ranks" is not a list of integers; 1 is the best, equal a tie')
    if len(ranks) != len(texts):
      raise Problem(
        "ranks of another length",
        f"{len(ranks)} ranks for {len(texts)} completions; give one rank per completion",
      )


def texts_of(fields: dict[str, Any]) -> list[str]:
  return fields["completions"] if "completions" in fields else [fields["completion"]]


def read(arguments: argparse.Namespace) -> tuple[jsonl.Reader, list[jsonl.Line]]:
  """The lines to score, and the reader that counts those that are left out."""
  from rlhf.data import formats

  name, path = jsonl.split_format(arguments.input)
  reader = jsonl.Reader(path, arguments.on_bad)
  if name == "jsonl":
    return reader, reader.read(check)
  found, counts = formats.read("comparison", path, name, on_bad=arguments.on_bad)
  reader.counts |= counts
  return reader, [
    jsonl.Line(where=f"{path}: comparison {number}", fields=record)
    for number, record in enumerate(found, 1)
  ]


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  from rlhf.inference import rewards

  reader, lines = read(arguments)
  model = models.find(arguments.reward_model, "reward_model", "reward", arguments)
  lines, ids = tokenize(model, reader, lines)
  print(f"{model.name}: {model.prompt_format.describe()}", file=sys.stderr, flush=True)
  flat: list[Any] = list(itertools.chain(*ids))
  score_N = rewards.score_sequences(model.load(), flat, batch_size=arguments.batch_size)
  numbers = iter(score_N.tolist())
  out = []
  for line, sequences in zip(lines, ids, strict=True):
    scores = list(itertools.islice(numbers, len(sequences)))
    new = {"scores": scores} if "completions" in line.fields else {"score": scores[0]}
    out.append({**line.fields, **new})
  workdir_lib.write_jsonl(arguments.output, out)
  print(f"{arguments.output}: {reader.describe()}, mean score {score_N.mean():.4g}", flush=True)
  ranked = [line for line in out if "ranks" in line and "scores" in line]
  arrays = calibration.arrays(ranked, lambda line: line["scores"]) if ranked else ()
  num_pairs = calibration.num_untied_pairs(*arrays[1:]) if ranked else 0
  if ranked:
    print(accuracy(arrays, num_pairs), flush=True)
  if arguments.calibration is not None:
    print(draw_calibration(arguments.calibration, arrays, num_pairs), flush=True)


def tokenize(
  model: models.Model, reader: jsonl.Reader, lines: list[jsonl.Line]
) -> tuple[list[jsonl.Line], list[list[np.ndarray]]]:
  """(lines that fit the context, [line][completion] token ids)."""
  from rlhf.data import prepare
  from rlhf.data.records import Problem

  kept, ids = [], []
  for line in lines:
    sequences = [
      sequence.ids
      for sequence in prepare.tokenize_demonstrations(
        [{"prompt": line.fields["prompt"], "completion": text} for text in texts_of(line.fields)],
        model.tokenizer,
        prompt_format=model.prompt_format,
      )
    ]
    longest = max(map(len, sequences))
    if longest > model.context_length:
      sentence = (
        f"prompt and completion have {longest} tokens; at most {model.context_length} fit the "
        "reward model"
      )
      reader.skip(line.where, Problem("too long", sentence))
    else:
      kept.append(line)
      ids.append(sequences)
  return reader.keep(kept), ids


def draw_calibration(path: str, arrays: Sequence[np.ndarray], num_pairs: int) -> str:
  """Writes the plot; returns a line with the expected calibration error.

  Raises:
    ValueError: no line has an untied pair.
  """
  from rlhf.report import figures

  if not num_pairs:
    raise ValueError(
      f'--calibration={path}: no line has "ranks" with an untied pair, so there is nothing to '
      "plot; the scores are written"
    )
  curve = calibration.calibration_curve(*arrays)
  workdir_lib.write_text(path, f"{figures.calibration(curve)}\n")
  return (
    f"{path}: expected calibration error {curve['expected_calibration_error']:.3f} over "
    f"{curve['n']:,} untied pairs"
  )


def accuracy(arrays: Sequence[np.ndarray], num_pairs: int) -> str:
  """One line: how often scores agree with the ranks."""
  if not num_pairs:
    return "accuracy: the ranks have no untied pair"
  interval = calibration.accuracy(*arrays, num_resamples=models.NUM_RESAMPLES, seed=0)
  return (
    f"accuracy {interval.mean:.1%} (95 % interval {interval.low:.1%} to {interval.high:.1%}) "
    f"over {num_pairs:,} untied pairs of {interval.n:,} prompts"
  )
