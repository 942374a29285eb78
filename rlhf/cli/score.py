"""A reward model scores JSONL.

  python -m launch.score --reward_model=runs/rm --input=answers.jsonl --output=scored.jsonl

A line {"prompt", "completions": [texts], ...} gets "scores": [numbers]; a line {"prompt",
"completion", ...} gets "score": number; everything else travels along.  Texts are tokenised as in
training, each ended by end-of-text.  Where lines hold "ranks" too, the share of untied pairs in
which the better-ranked text scores higher is printed.

--input=FORMAT:FILE reads comparisons as their authors published them (pandalm:FILE, llmbar:FILE,
hh:FILE, alpaca_eval:FILE, ...): the agreement of a reward model with PandaLM's annotators, for
example, whose majority is the rank.

--calibration=FILE.svg draws how often pairs are ranked as predicted against the predicted
probability, sigmoid(|score difference|), and prints the expected calibration error.
"""

import argparse
import sys
from typing import Any

import numpy as np

from rlhf.cli import jsonl, setup

NUM_RESAMPLES = 2000  # of the accuracy's bootstrap over prompts


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument(
    "--reward_model",
    required=True,
    help="export directory of a reward model, the workdir of its stage, or hf:DIR",
  )
  parser.add_argument(
    "--input", required=True, help="JSONL to score, or FORMAT:FILE of comparisons"
  )
  parser.add_argument("--output", required=True, help="JSONL to write; whole or not at all")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument("--calibration", help="SVG to draw where lines are ranked")
  parser.add_argument(
    "--batch_size",
    type=setup.at_least(1),
    default=64,
    help="texts scored at once; changes nothing but speed and memory",
  )
  parser.add_argument(
    "--on_bad",
    choices=jsonl.ON_BAD,
    default="stop",
    help="at a bad line, or a text that is too long: stop, or skip and count",
  )
  setup.add_prompt_format(parser)
  return parser.parse_args(argv[1:])


def find_problem(value: Any):
  """What keeps a JSON value from being scored; an empty completion is an answer like others."""
  from rlhf.data import records
  from rlhf.data.records import Problem

  problem = records.find_problem("prompt", value)
  if problem is not None:
    return problem
  shape = 'give "completions": [str, ...] or "completion": str'
  if "completions" not in value and "completion" not in value:
    return Problem("missing field", f'no field "completions" or "completion"; {shape}')
  texts = value["completions"] if "completions" in value else [value["completion"]]
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    return Problem("wrong type", f"what is to be scored is not text; {shape}")
  if not texts:
    return Problem("no completion", '"completions" is empty; give one or more')
  if "ranks" in value and "completions" in value:
    ranks = value["ranks"]
    if not isinstance(ranks, list) or not all(type(rank) is int for rank in ranks):
      return Problem("wrong type", '"ranks" is not a list of integers; 1 is the best, equal a tie')
    if len(ranks) != len(texts):
      return Problem(
        "ranks of another length",
        f"{len(ranks)} ranks for {len(texts)} completions; give one rank per completion",
      )
  return None


def read(arguments: argparse.Namespace) -> tuple[jsonl.Reader, list[jsonl.Line]]:
  """What is to be scored, and who counts the lines that are left out."""
  from rlhf.data import formats

  format_name, colon, path = arguments.input.partition(":")
  if not colon or format_name not in formats.FORMATS or format_name == "jsonl":
    path = path if format_name == "jsonl" and colon else arguments.input
    reader = jsonl.Reader(path, arguments.on_bad)
    return reader, reader.read(find_problem)
  found, counts = formats.read("comparison", path, format_name, on_bad=arguments.on_bad)
  reader = jsonl.Reader(arguments.input, arguments.on_bad)
  reader.counts |= counts
  return reader, [
    jsonl.Line(where=f"{path}: comparison {number}", fields=record)
    for number, record in enumerate(found, 1)
  ]


def texts_of(fields: dict[str, Any]) -> list[str]:
  return fields["completions"] if "completions" in fields else [fields["completion"]]


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    jsonl.check_output(arguments.output, arguments.overwrite)
    if arguments.calibration is not None:
      jsonl.check_output(arguments.calibration, arguments.overwrite, flag="calibration")
    reader, lines = read(arguments)
    network, prompt_format = load(arguments)
    lines, ids = tokenize(network, prompt_format, reader, lines)
    print(f"{arguments.reward_model}: {prompt_format.describe()}", file=sys.stderr, flush=True)
    scores = score(network, ids, arguments.batch_size)
    out = []
    for line, numbers in zip(lines, scores, strict=True):
      new = {"scores": numbers} if "completions" in line.fields else {"score": numbers[0]}
      out.append({**line.fields, **new})
    jsonl.write(arguments.output, out)
    mean = np.mean([number for numbers in scores for number in numbers])
    print(f"{arguments.output}: {reader.describe()}, mean score {mean:.4g}", flush=True)
    ranked = [line for line in out if "ranks" in line and "scores" in line]
    if ranked:
      print(accuracy(ranked), flush=True)
    if arguments.calibration is not None:
      print(draw_calibration(arguments.calibration, ranked), flush=True)


def load(arguments: argparse.Namespace):
  """(network, PromptFormat) of the flags."""
  from rlhf import networks, sharding

  directory = setup.find_network(arguments.reward_model, "reward_model")
  export = networks.find_export(directory, kind="reward", flag="--reward_model")
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  prompt_format = setup.prompt_format(export.config, arguments)
  prompt_format.check(networks.tokenizer_of(export))
  network = networks.load(directory, export.compute, mesh, kind="reward", flag="--reward_model")
  return network, prompt_format


def tokenize(
  network, prompt_format, reader: jsonl.Reader, lines: list[jsonl.Line]
) -> tuple[list[jsonl.Line], list[list[np.ndarray]]]:
  """(lines that fit the context, [line][completion] token ids)."""
  from rlhf.data import prepare
  from rlhf.data.records import Problem

  length = network.cfg.context_length
  kept, ids = [], []
  for line in lines:
    sequences = [
      sequence.ids
      for sequence in prepare.tokenize_demonstrations(
        [{"prompt": line.fields["prompt"], "completion": text} for text in texts_of(line.fields)],
        network.tokenizer,
        prompt_format=prompt_format,
      )
    ]
    longest = max(map(len, sequences))
    if longest > length:
      reader.skip(
        line.where,
        Problem(
          "too long",
          f"prompt and completion have {longest} tokens; at most {length} fit the reward model",
        ),
      )
    else:
      kept.append(line)
      ids.append(sequences)
  return reader.keep(kept), ids


def score(network, ids: list[list[np.ndarray]], batch_size: int) -> list[list[float]]:
  """[line][completion] rewards."""
  from rlhf.inference import rewards

  flat = [sequence for sequences in ids for sequence in sequences]
  score_N = rewards.score_sequences(network, flat, batch_size=batch_size)
  numbers = iter(score_N.tolist())
  return [[next(numbers) for _ in sequences] for sequences in ids]


def arrays(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(scores, ranks, valid) [N, K] of ranked lines."""
  most = max(len(line["scores"]) for line in lines)
  padded = lambda rows, fill: np.asarray([[*row, *[fill] * (most - len(row))] for row in rows])
  return (
    padded([line["scores"] for line in lines], 0.0),
    padded([line["ranks"] for line in lines], 0),
    padded([[1] * len(line["scores"]) for line in lines], 0),
  )


def draw_calibration(path: str, lines: list[dict[str, Any]]) -> str:
  """Writes the plot; returns a line with the expected calibration error.

  Raises:
    ValueError: no line has an untied pair.
  """
  from rlhf import workdir as workdir_lib
  from rlhf.evals.reward_models import calibration
  from rlhf.report import figures

  if not lines or not calibration.num_untied_pairs(*arrays(lines)[1:]):
    raise ValueError(
      f'--calibration={path}: no line has "ranks" with an untied pair, so there '
      "is nothing to draw; the scores are written"
    )
  curve = calibration.calibration_curve(*arrays(lines))
  workdir_lib.write_text(path, figures.calibration(curve) + "\n")
  return (
    f"{path}: expected calibration error {curve['expected_calibration_error']:.3f} over "
    f"{curve['n']:,} untied pairs"
  )


def accuracy(lines: list[dict[str, Any]]) -> str:
  """One line: how often scores agree with the ranks."""
  from rlhf.evals.reward_models import calibration

  score_NK, rank_NK, valid_NK = arrays(lines)
  num_pairs = calibration.num_untied_pairs(rank_NK, valid_NK)
  if not num_pairs:
    return "accuracy: no untied pair among the ranks"
  interval = calibration.accuracy(score_NK, rank_NK, valid_NK, num_resamples=NUM_RESAMPLES, seed=0)
  return (
    f"accuracy {interval.mean:.1%} (95 % interval {interval.low:.1%} to {interval.high:.1%}) "
    f"over {num_pairs:,} untied pairs of {interval.n:,} prompts"
  )


if __name__ == "__main__":
  main(sys.argv)
