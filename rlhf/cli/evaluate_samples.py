"""Scores given outputs, without a model: `launch.evaluate --samples=... --task=...`.

  python -m launch.evaluate --samples=outputs.jsonl --task=squadv2
  python -m launch.evaluate --samples=outputs.jsonl --task=fr_en --json=-

A line of the file is {"prompt", "sample", "references"}; `rlhf/evals/samples.py` says what
references are in each task, and by which measure it is scored.  The measure is printed with its
95 % interval (bootstrap over prompts); with --json=- the last line is {"task", "metric", "mean",
"low", "high", "n"}, and with --json=FILE that stands in FILE.
"""

import argparse
import json
import pathlib
import sys

from rlhf.cli import setup

TASKS = ("squadv2", "drop", "tldr", "fr_en", "truthfulqa", "real_toxicity")


def parse(argv: list[str]) -> argparse.Namespace:
  parser = setup.Parser(__doc__)
  parser.add_argument("--samples", required=True, help="JSONL of prompt, sample and references")
  parser.add_argument("--task", required=True, choices=TASKS, help="whose measure to take")
  parser.add_argument(
    "--json", help="- prints the result as one line of JSON at the end; else a file to write it to"
  )
  parser.add_argument(
    "--num_resamples", type=setup.at_least(1), default=2000, help="of the bootstrap over prompts"
  )
  parser.add_argument("--seed", type=setup.at_least(0), default=0, help="of the bootstrap")
  return parser.parse_args(argv[1:])


def main(argv: list[str]) -> None:
  arguments = parse(argv)
  with setup.one_sentence_errors():
    if arguments.json not in (None, "-") and pathlib.Path(arguments.json).is_dir():
      raise ValueError(f"--json={arguments.json} is a directory; name a file, or - to print")
    from rlhf.evals.suites import samples

    found = samples.read(arguments.samples, arguments.task)
    measure = samples.score(
      arguments.task, found, num_resamples=arguments.num_resamples, seed=arguments.seed
    )
    interval = measure.interval
    print(
      f"{measure.task}: {measure.metric} {interval.mean:.4g} (95 % interval "
      f"{interval.low:.4g} to {interval.high:.4g}) over {interval.n:,} prompts, "
      f"{len(found):,} samples",
      flush=True,
    )
    line = json.dumps(dict(task=measure.task, metric=measure.metric, **interval.as_dict()))
    if arguments.json == "-":
      print(line, flush=True)
    elif arguments.json is not None:
      from rlhf import workdir as workdir_lib

      workdir_lib.write_text(arguments.json, line + "\n")


if __name__ == "__main__":
  main(sys.argv)
