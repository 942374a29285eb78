"""Asks `launch.check` about every size and prints a Markdown table of the answers.

  python -m launch.check_table --output=results/check [--sizes=1.3b,175b] [--kinds=tpu,cuda]

Each size is checked on the smallest slice and set of nodes that `configs/meshes.py` names
(`SMALLEST`); a JSON file in the output folder that is there already is not made again, so an
interrupted run goes on.  `--print_only` prints the table of what is there.
"""

import json
import pathlib
import subprocess
import sys

from rlhf.cli import setup
from rlhf.configs import meshes, models

GIB = 2**30


def path_of(folder: pathlib.Path, size: str, topology: str) -> pathlib.Path:
  return folder / f"{size}_{topology.replace(':', '-')}.json"


def check(folder: pathlib.Path, size: str, topology: str) -> None:
  """Runs one check in a process of its own, its output beside the JSON file."""
  path = path_of(folder, size, topology)
  print(f"{size} on {topology} ...", flush=True)
  unfinished = path.with_suffix(".unfinished")
  with open(path.with_suffix(".log"), "w", encoding="utf-8") as log:
    status = subprocess.run(
      [
        sys.executable,
        "-m",
        "launch.check",
        f"--config=configs/ppo.py:{size}",
        f"--topology={topology}",
        f"--json={unfinished}",
      ],
      stdout=log,
      stderr=subprocess.STDOUT,
      check=False,
    ).returncode
  if not unfinished.is_file():
    last = path.with_suffix(".log").read_text(encoding="utf-8").strip().splitlines()[-1:]
    raise ValueError(f"{size} on {topology} ended with status {status}: {' '.join(last)}")
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


def main(argv: list[str]) -> None:
  parser = setup.Parser(__doc__)
  parser.add_argument("--output", required=True, help="folder of the JSON files")
  parser.add_argument("--sizes", default=",".join(meshes.SMALLEST))
  parser.add_argument("--kinds", default="cuda,tpu")
  parser.add_argument("--print_only", action="store_true")
  arguments = parser.parse_args(argv[1:])
  with setup.one_sentence_errors():
    for size in arguments.sizes.split(","):
      if size not in meshes.SMALLEST:
        raise ValueError(f"--sizes: {size!r}; choose from {', '.join(meshes.SMALLEST)}")
    for kind in arguments.kinds.split(","):
      if kind not in ("cuda", "tpu"):
        raise ValueError(f"--kinds: {kind!r}; choose from cuda, tpu")
    folder = pathlib.Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in () if arguments.print_only else arguments.kinds.split(","):
      for size in arguments.sizes.split(","):
        topology = meshes.SMALLEST[size][kind == "cuda"]
        if not path_of(folder, size, topology).is_file():
          check(folder, size, topology)
    print(table(folder))


if __name__ == "__main__":
  main(sys.argv)
