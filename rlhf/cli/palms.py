"""Change a model's values with a small set of samples, and measure it (PALMS).

  python -m launch.palms check --values=DIR
      what is missing in positions, probes and samples; without --values the set of this project

  python -m launch.palms sheet --completions=completions.jsonl --values=DIR --output=DIR
      blind rating sheets for three raters, one HTML page and one CSV each, and their key

  python -m launch.palms ratings --sheets=DIR --key=DIR/key.json --output=ratings.jsonl
      what the raters handed in, joined with the key

  python -m launch.palms statistics --ratings=ratings.jsonl --output=statistics.json
      base against targeted against control: means, tests, effect of size

  python -m launch.palms report --workdir=runs/palms --ratings=ratings.jsonl --output=runs/palms/people
      the page of a finished `launch.pipeline --config=configs/palms.py:...` with these ratings, or,
      by --rater=SOURCE in their place, with those of another judge

`python -m launch.palms COMMAND --help` lists the flags of one.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable

import ml_collections

from rlhf import workdir as workdir_lib
from rlhf.cli import jsonl, setup
from rlhf.palms import sets
from rlhf.palms import sheet as sheet_lib
from rlhf.palms import statistics as statistics_lib

_MOST_SHOWN = 20  # problems of handed-in sheets; the rest are counted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
  """A subcommand: its flags, and what it does."""

  about: str
  add_flags: Callable[[argparse.ArgumentParser], None]
  run: Callable[[argparse.Namespace], None]


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  parser = setup.Parser(__doc__)
  commands = parser.add_subparsers(
    dest="command", required=True, metavar="COMMAND", parser_class=setup.Parser
  )
  for name, command in COMMANDS.items():
    command.add_flags(commands.add_parser(name, doc=command.about, help=command.about))
  arguments = parser.parse_args(argv[1:])
  with setup.one_sentence_errors():
    COMMANDS[arguments.command].run(arguments)


# ----------------------------------------------------------------------------- check


def _check_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--values",
    default=str(sets.SHIPPED),
    help="directory of positions.json, probes.jsonl, targeted.jsonl and control.jsonl",
  )
  parser.add_argument("--strict", action="store_true", help="take warnings for errors")


def _check(arguments: argparse.Namespace) -> None:
  if not pathlib.Path(arguments.values).is_dir():
    raise ValueError(
      f"--values={arguments.values} is no directory; name one that holds {sets.POSITIONS}"
    )
  values, problems = sets.check(arguments.values, strict=arguments.strict)
  if values is not None:
    print(sets.describe(values))
  for problem in problems:
    print(problem)
  num_errors = sum(not problem.is_warning for problem in problems)
  print(f"{num_errors} errors, {len(problems) - num_errors} warnings", flush=True)
  if num_errors:
    sys.exit(2)


# ----------------------------------------------------------------------------- sheet


def _sheet_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--completions",
    required=True,
    help="JSONL: model, kind, size, seed, category, probe, sample, prompt, completion",
  )
  parser.add_argument("--values", default=str(sets.SHIPPED), help="directory of the positions")
  parser.add_argument("--output", required=True, help="directory to write, which must be new")
  parser.add_argument("--raters", default="3", help="how many, or their names: anna,ben,cleo")
  parser.add_argument("--seed", type=setup.at_least(0), default=0, help="of ids and orders")


def _sheet(arguments: argparse.Namespace) -> None:
  directory = pathlib.Path(arguments.output)
  if directory.exists():
    raise ValueError(
      f"--output={directory} exists; name a new directory, as ratings of older "
      "sheets would lose their key"
    )
  p = sheet_lib.SheetConfig(raters=_raters(arguments.raters), seed=arguments.seed)
  values = sets.load(arguments.values)
  lines = sheet_lib.read_completions(arguments.completions, values)
  sheet_lib.write(sheet_lib.make(lines, values, p), directory)
  print(
    f"{directory / 'sheets'}: {len(lines)} samples for each of {', '.join(p.raters)}, as "
    f"HTML and CSV\n{directory / sheet_lib.KEY}: which sample is which model's; raters must "
    "not see it",
    flush=True,
  )


def _raters(text: str) -> tuple[str, ...]:
  if not text.isdigit():
    return tuple(name.strip() for name in text.split(","))
  if int(text) < 1:
    raise ValueError(f"--raters={text} is below 1; use 1 or more")
  return tuple(f"rater_{number + 1}" for number in range(int(text)))


# ----------------------------------------------------------------------------- ratings


def _ratings_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--sheets",
    required=True,
    help="CSV and JSON files that were handed in, or directories of them, with commas between",
  )
  parser.add_argument("--key", required=True, help="key.json of these sheets")
  parser.add_argument("--output", required=True, help="JSONL to write; whole or not at all")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument(
    "--incomplete", action="store_true", help="go on though ratings or raters are missing"
  )


def _ratings(arguments: argparse.Namespace) -> None:
  jsonl.check_output(arguments.output, arguments.overwrite)
  key = sheet_lib.read_key(arguments.key)
  handed_in = sheet_lib.read(sheet_lib.find_exports(arguments.sheets.split(",")), key)
  fatal = handed_in.problems + ([] if arguments.incomplete else handed_in.missing)
  for sentence in fatal[:_MOST_SHOWN]:
    print(f"error: {sentence}", file=sys.stderr)
  if len(fatal) > _MOST_SHOWN:
    print(f"error: and {len(fatal) - _MOST_SHOWN} more", file=sys.stderr)
  if fatal:
    if not handed_in.problems:
      print("--incomplete goes on without what is missing", file=sys.stderr)
    sys.exit(2)
  if not handed_in.rows:
    raise ValueError(f"--sheets={arguments.sheets} holds no rating")
  for sentence in handed_in.missing:
    print(f"missing: {sentence}")
  jsonl.write(arguments.output, handed_in.rows)
  print(
    f"{arguments.output}: {len(handed_in.rows)} ratings of {len(key['samples'])} samples by "
    f"{len({row['rater'] for row in handed_in.rows})} raters",
    flush=True,
  )


# ----------------------------------------------------------------------------- statistics


def _statistics_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--ratings", required=True, help="JSONL as `ratings` writes it")
  parser.add_argument("--output", help="JSON to write: every mean, difference and slope")
  parser.add_argument("--overwrite", action="store_true", help="replace an output that exists")
  parser.add_argument(
    "--test",
    choices=statistics_lib.TESTS,
    default="min_f",
    help="decides what is shown: min_f over probes and seeds, sign_flip over probes",
  )
  parser.add_argument("--seed", type=setup.at_least(0), default=0, help="of the resampling")


def _statistics(arguments: argparse.Namespace) -> None:
  if arguments.output is not None:
    jsonl.check_output(arguments.output, arguments.overwrite)
  rows = statistics_lib.read_rows(arguments.ratings)
  try:
    analysis = statistics_lib.analyse(
      rows, statistics_lib.StatisticsConfig(test=arguments.test, seed=arguments.seed)
    )
  except ValueError as error:
    raise ValueError(f"--ratings={arguments.ratings}: {error}") from error
  print(statistics_lib.describe(analysis), flush=True)
  if arguments.output is not None:
    workdir_lib.write_json(arguments.output, analysis.as_dict())


# ----------------------------------------------------------------------------- report


def _report_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="of a PALMS run that is finished")
  who = parser.add_mutually_exclusive_group(required=True)
  who.add_argument("--ratings", help="JSONL as `ratings` writes it, of the run's own completions")
  who.add_argument(
    "--rater",
    help="who rates them anew: an export directory, hf:DIR, gguf:FILE, "
    "or reward:SOURCE, with the other settings of the run's config.raters",
  )
  parser.add_argument("--output", required=True, help="directory to write, which must be new")


def _report(arguments: argparse.Namespace) -> None:
  if pathlib.Path(arguments.output).exists():
    raise ValueError(f"--output={arguments.output} exists; name a new directory")
  from rlhf.palms import process  # brings jax, which the other commands can do without

  config = pathlib.Path(arguments.workdir) / "config.json"
  if not config.is_file():
    raise ValueError(
      f"--workdir={arguments.workdir} has no config.json; name the workdir of a PALMS run"
    )
  config = ml_collections.ConfigDict(workdir_lib.read_json(config))
  if "cooccurrence" not in config:
    raise ValueError(
      f"--workdir={arguments.workdir} is no PALMS run; name one of "
      "launch.pipeline --config=configs/palms.py:..."
    )
  if arguments.rater is not None:
    try:
      process.rate_again(config, arguments.workdir, arguments.rater, arguments.output)
    except ValueError as error:
      raise ValueError(str(error).replace("config.raters.source", "--rater")) from error
    return
  rows = statistics_lib.read_rows(arguments.ratings)
  try:
    process.report_of(config, arguments.workdir, rows, arguments.output)
  except ValueError as error:
    raise ValueError(f"--ratings={arguments.ratings}: {error}") from error


COMMANDS = {
  "check": Command(
    about="Says what is missing in a set of values.", add_flags=_check_flags, run=_check
  ),
  "sheet": Command(
    about="Makes blind rating sheets of completions.", add_flags=_sheet_flags, run=_sheet
  ),
  "ratings": Command(
    about="Reads what the raters handed in.", add_flags=_ratings_flags, run=_ratings
  ),
  "statistics": Command(
    about="Compares base, targeted and control models.",
    add_flags=_statistics_flags,
    run=_statistics,
  ),
  "report": Command(
    about="Draws a run's page with other ratings.", add_flags=_report_flags, run=_report
  ),
}


if __name__ == "__main__":
  main(sys.argv)
