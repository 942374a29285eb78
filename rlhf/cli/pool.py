"""Pools pipeline runs of several seeds into one table.

  python -m launch.pool runs/seed0 runs/seed1 runs/seed2 --output=runs/pooled

Writes OUTPUT/pooled.json, pooled.md and pooled.html, and prints the table.  Preferences are pooled
by a nested bootstrap (seeds, then prompts); other numbers as ratios of sums over the runs.
"""

import argparse
import pathlib
import sys

from rlhf import workdir as workdir_lib
from rlhf.cli import setup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags, checked as far as they can be alone."""
  parser = setup.Parser(__doc__)
  parser.add_argument("workdirs", nargs="+", metavar="DIR", help="a finished pipeline run")
  parser.add_argument("--output", required=True, help="directory to write")
  parser.add_argument("--overwrite", action="store_true", help="replace a table that exists")
  return parser.parse_args(argv[1:])


def check(arguments: argparse.Namespace) -> None:
  """Raises ValueError where a run has no report yet, or the table exists."""
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
  table = pathlib.Path(arguments.output) / "pooled.json"
  if table.exists() and not arguments.overwrite:
    raise ValueError(f"{table} exists; name another --output, or add --overwrite")


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  arguments = parse(argv)
  with setup.one_sentence_errors():
    check(arguments)
    from rlhf.evals import pooling

    pooled = pooling.pooled_table(arguments.workdirs)
    page = pooling.write_pooled(arguments.output, pooled)
    print(pooling.pooled_markdown(pooled), end="")
    print(f"pooled: {page}", flush=True)


if __name__ == "__main__":
  main(sys.argv)
