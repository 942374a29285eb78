"""Prepares and analyses PALMS: changing a model's values with few samples.

  rlhf palms check --values=DIR
      lists what is missing in positions, probes and samples; without --values, the shipped set

  rlhf palms sheet --completions=completions.jsonl --values=DIR --output=DIR
      writes blind rating sheets for three raters, one HTML page and one CSV each, and their key

  rlhf palms ratings --sheets=DIR --key=DIR/key.json --output=ratings.jsonl
      joins the sheets that raters handed in with the key

  rlhf palms statistics --ratings=ratings.jsonl --output=statistics.json
      compares base, targeted and control models: means, tests, effect sizes

  rlhf palms report --workdir=runs/palms --ratings=ratings.jsonl --output=runs/palms/people
      writes the page of a finished `rlhf pipeline --config=configs/palms.py:...` with these ratings
      or, with --rater=SOURCE, with those of another judge

`rlhf palms COMMAND --help` lists the flags of one.
"""

import argparse
import contextlib
import pathlib
import sys

import ml_collections

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, startup
from rlhf.palms import sets

_MAX_SHOWN = 20  # problems of handed-in sheets; the others are counted


@startup.command
def main(argv: list[str]) -> None:
  arguments = _parser().parse_args(argv[1:])
  arguments.parser.check(arguments)
  arguments.run(arguments)


def _parser() -> flags.Parser:
  """A parser with a subparser for each command."""
  parser = flags.Parser("rlhf palms", __doc__)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")

  def add(name: str, about: str, run) -> flags.Parser:
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(run=run, parser=command)
    return command

  check = add("check", "Lists what is missing in a set of values.", _check)
  check.flag(
    "values",
    "directory of positions.json, probes.jsonl, targeted.jsonl and control.jsonl",
    default=str(sets.SHIPPED),
  )
  check.switch("strict", "treat warnings as errors")

  sheet = add("sheet", "Writes blind rating sheets.", _sheet)
  sheet.flag(
    "completions",
    "JSONL of model, kind, size, seed, category, probe, sample, prompt and completion",
    required=True,
  )
  sheet.flag("values", "directory of the positions", default=str(sets.SHIPPED))
  sheet.flag("output", "directory to write, which must be new", flags.new_directory, required=True)
  sheet.flag("raters", "how many, or their names: anna,ben,cleo", default="3")
  sheet.flag("seed", "of ids and orders", flags.at_least(0), 0)

  ratings = add("ratings", "Reads the sheets that raters handed in.", _ratings)
  ratings.flag(
    "sheets", "CSV and JSON files, or directories of them, joined by commas", required=True
  )
  ratings.flag("key", "key.json of these sheets", required=True)
  ratings.add_output("JSONL to write")
  ratings.switch("incomplete", "go on where ratings or raters are missing")

  statistics = add("statistics", "Compares base, targeted and control models.", _statistics)
  statistics.flag("ratings", "JSONL as `ratings` writes it", required=True)
  statistics.add_output("JSON to write: every mean, difference and slope", required=False)
  statistics.flag(
    "test",
    "decides what is shown: min_f over probes and seeds, sign_flip over probes",
    default="min_f",
    choices=("min_f", "sign_flip"),
  )
  statistics.flag("seed", "of the resampling", flags.at_least(0), 0)

  report = add("report", "Writes a run's page with other ratings.", _report)
  report.flag("workdir", "of a finished PALMS run", required=True)
  who = report.add_mutually_exclusive_group(required=True)
  who.add_argument("--ratings", help="JSONL as `ratings` writes it, of the run's own completions")
  who.add_argument(
    "--rater",
    help="another judge: an export directory, hf:DIR, gguf:FILE or reward:SOURCE, with the other "
    "settings of the run's config.raters",
  )
  report.flag("output", "directory to write, which must be new", flags.new_directory, required=True)
  return parser


@contextlib.contextmanager
def _naming(flag: str, path: str):
  """Names the flag in errors of the body."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"--{flag}={path}: {error}") from error


def _check(arguments: argparse.Namespace) -> None:
  if not pathlib.Path(arguments.values).is_dir():
    raise ValueError(
      f"--values={arguments.values} is not a directory; name one that holds {sets.POSITIONS}"
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


def _sheet(arguments: argparse.Namespace) -> None:
  from rlhf.palms import sheet as sheet_lib

  p = sheet_lib.SheetConfig(raters=_raters(arguments.raters), seed=arguments.seed)
  values = sets.load(arguments.values)
  lines = sheet_lib.read_completions(arguments.completions, values)
  directory = pathlib.Path(arguments.output)
  sheet_lib.write(sheet_lib.make(lines, values, p), directory)
  print(
    f"{directory / 'sheets'}: {len(lines)} samples for each of {', '.join(p.raters)}, as HTML "
    f"and CSV\n{directory / sheet_lib.KEY}: which sample is which model's; raters must not see it",
    flush=True,
  )


def _raters(text: str) -> tuple[str, ...]:
  if not text.isdigit():
    return tuple(name.strip() for name in text.split(","))
  if int(text) < 1:
    raise ValueError(f"--raters={text} is below 1; use 1 or more")
  return tuple(f"rater_{number + 1}" for number in range(int(text)))


def _ratings(arguments: argparse.Namespace) -> None:
  from rlhf.palms import sheet as sheet_lib

  key = sheet_lib.read_key(arguments.key)
  handed_in = sheet_lib.read(sheet_lib.find_exports(arguments.sheets.split(",")), key)
  fatal = handed_in.problems + ([] if arguments.incomplete else handed_in.missing)
  for sentence in fatal[:_MAX_SHOWN]:
    print(f"error: {sentence}", file=sys.stderr)
  if len(fatal) > _MAX_SHOWN:
    print(f"error: and {len(fatal) - _MAX_SHOWN} more", file=sys.stderr)
  if fatal:
    if not handed_in.problems:
      print("add --incomplete to go on without what is missing", file=sys.stderr)
    sys.exit(2)
  if not handed_in.rows:
    raise ValueError(f"--sheets={arguments.sheets} holds no rating")
  for sentence in handed_in.missing:
    print(f"missing: {sentence}")
  workdir_lib.write_jsonl(arguments.output, handed_in.rows)
  print(
    f"{arguments.output}: {len(handed_in.rows)} ratings of {len(key['samples'])} samples by "
    f"{len({row['rater'] for row in handed_in.rows})} raters",
    flush=True,
  )


def _statistics(arguments: argparse.Namespace) -> None:
  from rlhf.palms import statistics as statistics_lib

  rows = statistics_lib.read_rows(arguments.ratings)
  p = statistics_lib.StatisticsConfig(test=arguments.test, seed=arguments.seed)
  with _naming("ratings", arguments.ratings):
    analysis = statistics_lib.analyse(rows, p)
  print(statistics_lib.describe(analysis), flush=True)
  if arguments.output is not None:
    workdir_lib.write_json(arguments.output, analysis)


def _report(arguments: argparse.Namespace) -> None:
  path = pathlib.Path(arguments.workdir) / "config.json"
  config = ml_collections.ConfigDict(workdir_lib.read_json(path) if path.is_file() else {})
  if "kind" not in config or config.kind != "palms":
    raise ValueError(
      f"--workdir={arguments.workdir} is not a PALMS run; name the workdir of "
      "`rlhf pipeline --config=configs/palms.py:...`"
    )
  from rlhf.palms import process, statistics

  if arguments.rater is not None:
    try:
      process.rate_again(config, arguments.workdir, arguments.rater, arguments.output)
    except ValueError as error:
      raise ValueError(str(error).replace("config.raters.source", "--rater")) from error
    return
  rows = statistics.read_rows(arguments.ratings)
  with _naming("ratings", arguments.ratings):
    process.report_of(config, arguments.workdir, rows, arguments.output)
