"""Pools pipeline runs of several seeds into one table.

  rlhf pool runs/seed0 runs/seed1 runs/seed2 --output=runs/pooled

Writes OUTPUT/pooled.json, pooled.md and pooled.html, and prints the table.  Preferences are pooled
by a nested bootstrap (seeds, then prompts); other numbers as ratios of sums over the runs.
"""

import argparse
import pathlib

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, startup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = flags.Parser("rlhf pool", __doc__)
  parser.add_argument("workdirs", nargs="+", metavar="DIR", help="a finished pipeline run")
  parser.add_output("directory to write", file="pooled.json")
  return parser.parse(argv)


def check(arguments: argparse.Namespace) -> None:
  """Raises ValueError where a run has no report yet."""
  for workdir in arguments.workdirs:
    path = pathlib.Path(workdir) / "report" / "report.json"
    if not path.is_file():
      raise ValueError(
        f"{workdir} holds no report/report.json; name the workdir of a pipeline run "
        "that has finished"
      )
    report = workdir_lib.read_json(path)
    if not isinstance(report, dict) or "seed" not in report:
      raise ValueError(f"{path} has no seed; name the workdir of a pipeline run that has finished")


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  check(arguments)
  from rlhf.evals import pooling

  pooled = pooling.pooled_table(arguments.workdirs)
  page = pooling.write_pooled(arguments.output, pooled)
  print(pooling.pooled_markdown(pooled), end="")
  print(f"pooled: {page}", flush=True)
