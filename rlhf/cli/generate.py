"""Samples completions from a policy, on the terminal or from JSONL to JSONL.

  rlhf generate --checkpoint=runs/ppo
  rlhf generate --checkpoint=runs/ppo --prompts=prompts.jsonl --output=completions.jsonl \\
      --num_samples=4 --temperature=1 --seed=0

The first reads one prompt a line and prints completions until Ctrl-D. The second reads lines
{"prompt": str, ...} and writes {"prompt", "completions": [K texts], "finished": [K booleans], ...}:
other fields are copied, and `finished` says whether the completion reached end-of-text.

For a second round of comparisons, let people add "ranks" to every line, a list of K integers, 1 for
the best and equal for ties, and train on the file:

  rlhf generate --checkpoint=runs/ppo --prompts=new.jsonl --output=to_rank.jsonl --num_samples=6 \\
      --drop_empty
  rlhf train reward_model --config=configs/reward_model.py:6b --workdir=runs/rm2 \\
      --config.comparisons.train=jsonl:ranked.jsonl ...

An empty completion cannot be ranked: --drop_empty leaves it out, and every prompt with fewer than
two others.
"""

import argparse
import sys
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, jsonl, models, startup

MAX_SAMPLES = 4096  # samples of a prompt that have random numbers of their own
DEFAULT_RESPONSE_TOKENS = 512  # memory and time grow with the longest completion
# Fields that describe other completions of the prompt, and so are not copied.
REPLACED = ("completions", "finished", "ranks", "labeler", "scores", "score")


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf generate", __doc__)
  parser.flag("checkpoint", models.POLICY_HELP, required=True)
  parser.flag("prompts", "JSONL of prompts; without it you type them")
  parser.add_output("JSONL to write", required=False)
  parser.flag("num_samples", "completions of each prompt", flags.at_least(1), 1)
  parser.flag("top_p", "sample from the most likely tokens with this total mass", flags.share, 1.0)
  parser.switch("drop_empty", "drop empty completions, and prompts with fewer than two others")
  models.add_sampling(
    parser, None, f"if not given {DEFAULT_RESPONSE_TOKENS}, or half the context where that is less"
  )
  arguments = parser.parse(argv)
  if (arguments.prompts is None) != (arguments.output is None):
    parser.error("--prompts and --output go together: give both, or neither to type prompts")
  if arguments.num_samples > MAX_SAMPLES:
    parser.error(f"--num_samples={arguments.num_samples} is above {MAX_SAMPLES}")
  return arguments


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  reader = None
  if arguments.prompts is not None:
    from rlhf.data import records

    reader = jsonl.Reader(arguments.prompts, arguments.on_bad)
    lines = reader.read(lambda value: records.check_record("prompt", value))
  policy = find(arguments)
  if reader is None:
    converse(policy, arguments)
  else:
    write_completions(policy, arguments, reader, lines)


def find(arguments: argparse.Namespace) -> models.Model:
  """The policy; fills in --max_response_tokens where it is not given."""
  policy = models.find(arguments.checkpoint, "checkpoint", "policy", arguments)
  if arguments.max_response_tokens is None:
    arguments.max_response_tokens = min(DEFAULT_RESPONSE_TOKENS, policy.context_length // 2)
  if arguments.max_response_tokens >= policy.context_length:
    raise ValueError(
      f"--max_response_tokens={arguments.max_response_tokens} leaves no room for a prompt in "
      f"the context of {policy.context_length}; use less"
    )
  return policy


def sample(
  network, policy: models.Model, prompts: list[str], longest: int, turn: int, arguments, **more
):
  """`Completions` of the prompts, the longest of which has `longest` tokens."""
  from rlhf import loop
  from rlhf.inference import completions

  return completions.sample(
    network,
    prompts,
    models.completion_config(policy, longest, arguments, top_p=arguments.top_p),
    loop.step_key(arguments.seed, "answer", turn),
    num_samples=arguments.num_samples,
    **more,
  )


def announce(policy: models.Model, arguments: argparse.Namespace) -> None:
  """Prints how completions are sampled to standard error."""
  nucleus = f"top_p {arguments.top_p:g}, " if arguments.top_p < 1 else ""
  room = policy.context_length - arguments.max_response_tokens
  print(
    f"{policy.name}: {policy.prompt_format.describe()}, temperature {arguments.temperature:g}, "
    f"{nucleus}at most {room} + {arguments.max_response_tokens} tokens",
    file=sys.stderr,
    flush=True,
  )


def too_long(policy: models.Model, arguments: argparse.Namespace, length: int) -> str | None:
  """The error for a prompt of `length` tokens, or None where it fits."""
  room = policy.context_length - arguments.max_response_tokens
  if length <= room:
    return None
  return (
    f"the prompt has {length} tokens in its format; at most {room} fit with "
    f"{arguments.max_response_tokens} of the completion"
  )


def converse(policy: models.Model, arguments: argparse.Namespace) -> None:
  """Completes what is typed until the input ends."""
  network, turn, room = policy.load(), 0, 1
  announce(policy, arguments)
  while True:
    try:
      prompt = input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
      return
    if not prompt:
      continue
    (length,) = policy.lengths([prompt])
    problem = too_long(policy, arguments, length)
    if problem is not None:
      print(f"error: {problem}", file=sys.stderr, flush=True)
      continue
    while room < length:  # doubled, because each length is compiled
      room *= 2
    drawn = sample(network, policy, [prompt], room, turn, arguments)
    turn += 1
    for text, finished in zip(drawn.texts[0], drawn.finished[0], strict=True):
      print(text if finished else f"{text} [...]", flush=True)


def write_completions(
  policy: models.Model,
  arguments: argparse.Namespace,
  reader: jsonl.Reader,
  lines: list[jsonl.Line],
) -> None:
  """JSONL to JSONL; fields that describe other completions are not copied."""
  from rlhf import metrics
  from rlhf.data.records import Problem

  fitting, longest = [], 1
  lengths = policy.lengths([line.fields["prompt"] for line in lines])
  for line, length in zip(lines, lengths, strict=True):
    problem = too_long(policy, arguments, length)
    if problem is None:
      fitting.append(line)
      longest = max(longest, length)
    else:
      reader.skip(line.where, Problem("prompt too long", problem))
  records = [line.fields for line in reader.keep(fitting)]
  network = policy.load()
  announce(policy, arguments)
  prompts = [fields["prompt"] for fields in records]
  with metrics.Progress("generate", len(prompts) * arguments.num_samples) as progress:
    show = lambda done, total: progress.update(done, {}, num_tokens=0)
    drawn = sample(network, policy, prompts, longest, 0, arguments, on_batch=show)
  out = [
    dict(prompt=fields["prompt"], completions=texts, finished=finished)
    | {name: value for name, value in fields.items() if name not in ("prompt", *REPLACED)}
    for fields, texts, finished in zip(records, drawn.texts, drawn.finished, strict=True)
  ]
  if arguments.drop_empty:
    out = drop_empty(out, reader.counts)
  workdir_lib.write_jsonl(arguments.output, out)
  print(f"{arguments.output}: {reader.describe()}", flush=True)


def drop_empty(lines: list[dict[str, Any]], counts: dict[str, int]) -> list[dict[str, Any]]:
  """Leaves out what people cannot rank, and counts it."""
  kept, num_empty = [], 0
  for line in lines:
    places = [i for i, text in enumerate(line["completions"]) if text.strip()]
    num_empty += len(line["completions"]) - len(places)
    if len(places) >= 2:
      shown = {name: [line[name][i] for i in places] for name in ("completions", "finished")}
      kept.append(line | shown)
  counts |= {
    "kept": len(kept),
    "dropped (fewer than two completions)": len(lines) - len(kept),
    "empty completions dropped": num_empty,
  }
  return kept
