"""A policy answers: at the prompt, or from JSONL to JSONL.

  python -m launch.generate --checkpoint=runs/ppo
  python -m launch.generate --checkpoint=runs/ppo --prompts=prompts.jsonl --output=answers.jsonl \\
      --num_samples=4 --temperature=1 --seed=0

The first reads a prompt a line and prints the answer; Ctrl-D ends it.  The second reads
{"prompt": str, ...} and writes {"prompt", "completions": [K texts], "finished": [K booleans], ...}:
the input's other fields travel along, and `finished` says whether end-of-text was reached.

A second round of comparisons: let people add to every line "ranks": [K integers], 1 for the best
and equal for a tie, and train on the file:

  python -m launch.generate --checkpoint=runs/ppo --prompts=new.jsonl --output=to_rank.jsonl \\
      --num_samples=6 --drop_empty
  python -m launch.train reward_model --config=configs/reward_model.py:6b --workdir=runs/rm2 \\
      --config.comparisons.train=jsonl:ranked.jsonl ...

An empty answer cannot be ranked: --drop_empty leaves it out, and with it every prompt that is left
with fewer than two answers.
"""

import argparse
import dataclasses
import sys
from typing import Any

from rlhf.cli import jsonl, setup

MAX_SAMPLES = 4096  # samples of a prompt that have random numbers of their own
# Memory and time go by the length of the longest answer: more has to be asked for.
DEFAULT_RESPONSE_TOKENS = 512
LENGTH_MULTIPLE = 64  # prompts are padded to a multiple of this
# What belongs to other completions of that prompt, and so does not travel along.
REPLACED = ("completions", "finished", "ranks", "labeler", "scores", "score")


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument(
    "--checkpoint",
    required=True,
    help="export directory of a policy, the workdir of its stage, hf:DIR or gguf:FILE",
  )
  parser.add_argument("--prompts", help="JSONL to answer; without it you type the prompts")
  parser.add_argument("--output", help="JSONL to write; written whole or not at all")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument("--num_samples", type=setup.at_least(1), default=1, help="K of each prompt")
  parser.add_argument("--temperature", type=setup.temperature, default=1.0, help="0 is greedy")
  parser.add_argument(
    "--top_p",
    type=setup.share,
    default=1.0,
    help="draw from the fewest most likely tokens that have this probability together; 1 keeps all",
  )
  parser.add_argument(
    "--max_response_tokens",
    type=setup.at_least(1),
    help=f"of an answer; if not given {DEFAULT_RESPONSE_TOKENS}, or half the "
    "context where that is less; prompts have the rest of the context, and use "
    "no more memory than the longest needs",
  )
  parser.add_argument("--seed", type=setup.at_least(0), default=0)
  parser.add_argument(
    "--batch_size",
    type=setup.at_least(1),
    default=64,
    help="answers decoded at once; changes nothing but speed and memory",
  )
  parser.add_argument(
    "--on_bad",
    choices=jsonl.ON_BAD,
    default="stop",
    help="at a bad line, or a prompt that is too long: stop, or skip and count",
  )
  parser.add_argument(
    "--drop_empty",
    action="store_true",
    help="leave out empty answers, and prompts with fewer than two others",
  )
  setup.add_prompt_format(parser)
  arguments = parser.parse_args(argv[1:])
  if (arguments.prompts is None) != (arguments.output is None):
    parser.error("--prompts and --output go together: give both, or neither to type prompts")
  if arguments.num_samples > MAX_SAMPLES:
    parser.error(f"--num_samples={arguments.num_samples} is above {MAX_SAMPLES}")
  return arguments


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    reader = None
    if arguments.prompts is not None:
      from rlhf.data import records

      jsonl.check_output(arguments.output, arguments.overwrite)
      reader = jsonl.Reader(arguments.prompts, arguments.on_bad)
      lines = reader.read(lambda value: records.find_problem("prompt", value))
    network, p = load(arguments)
    if reader is None:
      converse(network, p, arguments)
    else:
      write_answers(network, p, arguments, reader, lines)


def load(arguments: argparse.Namespace):
  """(network, CompletionConfig of the flags, with the longest prompt that fits)."""
  from rlhf import networks, sharding
  from rlhf.inference.completions import CompletionConfig

  directory = setup.find_network(arguments.checkpoint, "checkpoint")
  export = networks.find_export(directory, kind="policy", flag="--checkpoint")
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  context_length = export.model["context_length"]
  max_response_tokens = arguments.max_response_tokens
  if max_response_tokens is None:
    max_response_tokens = min(DEFAULT_RESPONSE_TOKENS, context_length // 2)
  if max_response_tokens >= context_length:
    raise ValueError(
      f"--max_response_tokens={max_response_tokens} leaves no room for a prompt in "
      f"the context of {context_length}; use less"
    )
  prompt_format = setup.prompt_format(export.config, arguments)
  prompt_format.check(networks.tokenizer_of(export))
  network = networks.load(directory, export.compute, mesh, kind="policy", flag="--checkpoint")
  p = CompletionConfig(
    max_prompt_tokens=context_length - max_response_tokens,
    max_response_tokens=max_response_tokens,
    temperature=arguments.temperature,
    top_p=arguments.top_p,
    batch_size=arguments.batch_size,
    **dataclasses.asdict(prompt_format),
  )
  return network, p


def fitted(p, longest: int):
  """`p` with no more room for prompts than one of `longest` tokens needs; answers stay the same."""
  room = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
  return dataclasses.replace(p, max_prompt_tokens=min(room, p.max_prompt_tokens))


def announce(p, arguments: argparse.Namespace) -> None:
  """Says how answers are drawn, beside them."""
  from rlhf.data import prepare

  nucleus = f"top_p {p.top_p:g}, " if p.top_p < 1 else ""
  print(
    f"{arguments.checkpoint}: {prepare.PromptFormat.of(p).describe()}, temperature "
    f"{p.temperature:g}, {nucleus}at most {p.max_prompt_tokens} + {p.max_response_tokens} "
    "tokens",
    file=sys.stderr,
    flush=True,
  )


def converse(network, p, arguments: argparse.Namespace) -> None:
  """Answers what is typed until the input ends."""
  from rlhf import loop
  from rlhf.inference import completions

  turn, room = 0, 1
  announce(p, arguments)
  while True:
    try:
      prompt = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
      return
    if not prompt:
      continue
    (length,) = lengths(network, p, [prompt])
    problem = too_long(p, length)
    if problem is not None:
      print(f"error: {problem}", file=sys.stderr, flush=True)
      continue
    while room < length:  # doubled, as every length is compiled anew
      room *= 2
    drawn = completions.sample(
      network,
      [prompt],
      fitted(p, room),
      loop.step_key(arguments.seed, "answer", turn),
      num_samples=arguments.num_samples,
    )
    turn += 1
    for text, finished in zip(drawn.texts[0], drawn.finished[0], strict=True):
      print(text if finished else f"{text} [...]", flush=True)


def lengths(network, p, prompts: list[str]) -> list[int]:
  """Tokens of each prompt in its format."""
  from rlhf.data import prepare

  encoded = prepare.PromptFormat.of(p).encode_prompts(network.tokenizer, prompts)
  return [len(ids) for ids in encoded]


def too_long(p, length: int) -> str | None:
  """What is wrong with the length of a prompt, or None."""
  if length <= p.max_prompt_tokens:
    return None
  return (
    f"the prompt has {length} tokens in its format; at most {p.max_prompt_tokens} fit "
    f"beside {p.max_response_tokens} of the answer"
  )


def write_answers(
  network, p, arguments: argparse.Namespace, reader: jsonl.Reader, lines: list[jsonl.Line]
) -> None:
  """JSONL to JSONL."""
  from rlhf import loop, metrics
  from rlhf.data.records import Problem
  from rlhf.inference import completions

  fitting, longest = [], 1
  found = lengths(network, p, [line.fields["prompt"] for line in lines])
  for line, length in zip(lines, found, strict=True):
    problem = too_long(p, length)
    if problem is None:
      fitting.append(line)
      longest = max(longest, length)
    else:
      reader.skip(line.where, Problem("prompt too long", problem))
  lines = reader.keep(fitting)
  announce(p, arguments)
  with metrics.Progress("generate", len(lines) * arguments.num_samples) as progress:
    drawn = completions.sample(
      network,
      [line.fields["prompt"] for line in lines],
      fitted(p, longest),
      loop.step_key(arguments.seed, "answer", 0),
      num_samples=arguments.num_samples,
      on_batch=lambda done, total: progress.update(done, {}, num_tokens=0),
    )
  out = [
    answered(line.fields, texts, finished)
    for line, texts, finished in zip(lines, drawn.texts, drawn.finished, strict=True)
  ]
  if arguments.drop_empty:
    out = drop_empty(out, reader.counts)
  jsonl.write(arguments.output, out)
  print(f"{arguments.output}: {reader.describe()}", flush=True)


def answered(fields: dict[str, Any], texts: list[str], finished: list[bool]) -> dict[str, Any]:
  """An output line: the answers, and what of the input line does not belong to other answers."""
  others = {name: value for name, value in fields.items() if name not in ("prompt", *REPLACED)}
  return {"prompt": fields["prompt"], "completions": texts, "finished": finished, **others}


def drop_empty(lines: list[dict[str, Any]], counts: dict[str, int]) -> list[dict[str, Any]]:
  """Leaves out what people cannot rank, and counts it."""
  kept, num_empty = [], 0
  for line in lines:
    places = [i for i, text in enumerate(line["completions"]) if text.strip()]
    num_empty += len(line["completions"]) - len(places)
    if len(places) >= 2:
      kept.append(
        {
          **line,
          "completions": [line["completions"][i] for i in places],
          "finished": [line["finished"][i] for i in places],
        }
      )
  counts |= {
    "kept": len(kept),
    "dropped (fewer than two answers)": len(lines) - len(kept),
    "empty answers dropped": num_empty,
  }
  return kept


if __name__ == "__main__":
  main(sys.argv)
