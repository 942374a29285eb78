"""Runs `rlhf check` on every size and prints a Markdown table of the results.

  rlhf check_table --output=results/check [--sizes=1.3b,175b] [--kinds=tpu,cuda]

Each size is checked on the smallest slice and the smallest set of nodes in `configs/meshes.py`
(`SMALLEST`). Sizes whose JSON file exists in the output folder are skipped, so an interrupted run
resumes.
"""

import functools
import json
import pathlib
import subprocess
import sys

from rlhf.cli.common import flags, startup
from rlhf.configs import meshes, models

GIB = 2**30


def path_of(folder: pathlib.Path, size: str, topology: str) -> pathlib.Path:
  return folder / f"{size}_{topology.replace(':', '-')}.json"


def check(folder: pathlib.Path, size: str, topology: str) -> None:
  """Runs one check in a process of its own; its output goes next to the JSON file."""
  path = path_of(folder, size, topology)
  print(f"{size} on {topology} ...", flush=True)
  unfinished = path.with_suffix(".unfinished")
  with open(path.with_suffix(".log"), "w", encoding="utf-8") as log:
    command = [sys.executable, "-m", "rlhf", "check"]
    command += [f"--config=configs/ppo.py:{size}", f"--topology={topology}", f"--json={unfinished}"]
    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
  if not unfinished.is_file():
    last = path.with_suffix(".log").read_text(encoding="utf-8").strip().splitlines()[-1:]
    raise ValueError(f"{size} on {topology} ended with status {done.returncode}: {' '.join(last)}")
  unfinished.rename(path)


def table(folder: pathlib.Path) -> str:
  """The Markdown table of all JSON files in the folder, in order of size."""
  lines = [
    "| size | topology | mesh (data x fsdp x tensor) | microbatch | resident | rollout, "
    "beside it | update, beside it | in all | of | |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for size in (*meshes.SMALLEST, *models.PUBLISHED):
    for path in sorted(folder.glob(f"{size}_*.json")):
      lines.append(row(size, json.loads(path.read_text(encoding="utf-8"))))
  return "\n".join(lines)


def row(size: str, report: dict) -> str:
  extra = {
    program["program"]: "-" if program["error"] else f"{program['extra'] / GIB:.1f}"
    for program in report["programs"]
  }
  mesh = " x ".join(str(number) for number in report["mesh"].values())
  total = "-" if report["total"] is None else f"{report['total'] / GIB:.1f}"
  verdict = "fits" if report["fits"] else "does not fit"
  return (
    f"| {size} | {report['topology']} | {mesh} | {report['microbatch_size']} "
    f"| {sum(report['resident'].values()) / GIB:.1f} | {extra['rollout']} "
    f"| {extra['update']} | {total} | {report['memory'] / GIB:.0f} | {verdict} |"
  )


@startup.command
def main(argv: list[str]) -> None:
  parser = flags.Parser("rlhf check_table", __doc__)
  parser.flag("output", "folder of the JSON files", flags.directory, required=True)
  for name, help, choices in (
    ("sizes", "joined by commas", list(meshes.SMALLEST)),
    ("kinds", "of hardware: cuda, tpu or both", ["cuda", "tpu"]),
  ):
    parser.flag(name, help, functools.partial(flags.names, choices=choices), choices)
  parser.switch("print_only", "print the table of the files that exist")
  arguments = parser.parse(argv)
  folder = pathlib.Path(arguments.output)
  folder.mkdir(parents=True, exist_ok=True)
  for kind in () if arguments.print_only else arguments.kinds:
    for size in arguments.sizes:
      topology = meshes.SMALLEST[size][kind == "cuda"]
      if not path_of(folder, size, topology).is_file():
        check(folder, size, topology)
  print(table(folder))
