"""Scores given outputs, without a model: `rlhf evaluate --samples=... --task=...`.

  rlhf evaluate --samples=outputs.jsonl --task=squadv2
  rlhf evaluate --samples=outputs.jsonl --task=fr_en --json=-

A line of the file is {"prompt", "sample", "references"}; `rlhf/evals/samples.py` says what
references are in each task, and by which measure it is scored.  The measure is printed with its
95 % interval (bootstrap over prompts); with --json=- the last line is {"task", "metric", "mean",
"low", "high", "n"}, and with --json=FILE that stands in FILE.
"""

import argparse
import json
import pathlib

from rlhf.cli.common import flags, startup

TASKS = ("squadv2", "drop", "tldr", "fr_en", "truthfulqa", "real_toxicity")


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf evaluate --samples", __doc__)
  parser.flag("samples", "JSONL of prompt, sample and references", required=True)
  parser.flag("task", "whose measure to take", choices=TASKS, required=True)
  parser.flag("json", "file for the result; - prints it as one line of JSON at the end")
  parser.flag("num_resamples", "of the bootstrap over prompts", flags.at_least(1), 2000)
  parser.flag("seed", "of the bootstrap", flags.at_least(0), 0)
  return parser.parse(argv)


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
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
