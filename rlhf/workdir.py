"""The directory of a run: what makes it this run's, and which of its stages are done.

Every file here is written beside its final name and renamed, so that a reader never sees half a
file, whenever the writer is killed.  Of several processes only process 0 writes.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import filelock

from rlhf import processes

DONE = "done.json"
_CONFIG = "config.json"
_NUM_DIFFERENCES_SHOWN = 3
_ABSENT = object()


def plain(value: Any) -> Any:
  """`value` as JSON gives it back: tuples are lists, keys are strings, NaN and inf are None.

  Mappings are whatever has `items()`, such as a ConfigDict, whose unset placeholders are None.

  Raises:
    ValueError: a leaf that JSON cannot hold.
  """
  if hasattr(value, "items"):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  if hasattr(value, "item") and getattr(value, "shape", None) == ():
    return plain(value.item())  # numpy and jax scalars
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise ValueError(
    f"{value!r} is a {type(value).__name__}, which JSON has no word for; "
    "use numbers, strings, booleans, None, lists and dicts"
  )


def config_hash(config: Mapping[str, Any]) -> str:
  """Sixteen hex digits that depend on every key and value, and not on their order."""
  text = json.dumps(plain(config), sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def write_text(path: str | os.PathLike, text: str | Iterable[str]) -> None:
  """Writes a UTF-8 file in one atomic step; the directory is made where it is missing.

  Args:
    text: the whole text, or its parts, which are then not held in memory together.
  """
  if not processes.is_main():
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(temporary, "w", encoding="utf-8") as file:
      file.writelines([text] if isinstance(text, str) else text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes `plain(value)`, indented, in one atomic step."""
  write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: str | os.PathLike, lines: Iterable[Mapping[str, Any]]) -> None:
  """Writes one JSON object per line, in one atomic step.

  Raises:
    ValueError: a value is NaN or infinite, which JSON does not have.
  """
  write_text(path, (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    ValueError: the file is not JSON; names the file and the line.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path}:{error.lineno}: not JSON ({error.msg}); restore the file, or delete "
      "what it belongs to and run again"
    ) from None


def read_jsonl(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The objects of a file that `write_jsonl` wrote."""
  # Not `splitlines`: a text may hold U+2028 and other ends of lines that JSON leaves as they are.
  lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
  return [json.loads(line) for line in lines if line]


def check_local(path: str | os.PathLike) -> None:
  """Raises ValueError where a path is the address of a bucket, such as gs://runs.

  As a path it would silently become a local directory named "gs:".
  """
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
    raise ValueError(
      f"{path} is not a directory of this machine; mount the bucket, for example with gcsfuse or "
      "rclone, and name the mounted directory"
    )


def check(workdir: str | os.PathLike, config: Mapping[str, Any]) -> bool:
  """Whether `workdir` holds a run of `config` to go on with; writes nothing.

  Raises:
    ValueError: `workdir` is a file or not local, or holds another config's run.
  """
  check_local(workdir)
  workdir = pathlib.Path(workdir)
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a directory")
  config, resumed = plain(config), (workdir / _CONFIG).exists()
  if resumed:
    _check_same_config(workdir, read_json(workdir / _CONFIG), config)
  return resumed


def prepare(workdir: str | os.PathLike, config: Mapping[str, Any]) -> bool:
  """Claims `workdir`, which is made where it is missing, for the run of `config`, before step 0.

  Writes `config.json` (the resolved config), `command.txt` (this program's argv, interpreter
  included) and `git.txt`, one line for each start. A directory that already holds the run of an
  equal config is left to be resumed.

  Returns:
    Whether there was a run to go on with.

  Raises:
    ValueError: `workdir` is a file, or holds another config's run. Nothing has been written.
  """
  workdir = pathlib.Path(workdir)
  resumed = check(workdir, config)
  _append_line(workdir / "command.txt", shlex.join(sys.orig_argv))
  _append_line(workdir / "git.txt", git_version())
  if not resumed:  # last: a directory without config.json is not a run's yet
    write_json(workdir / _CONFIG, config)
  return resumed


def is_done(stage_dir: str | os.PathLike) -> bool:
  """Whether the stage ran to its end, so that it can be skipped."""
  return (pathlib.Path(stage_dir) / DONE).is_file()


def mark_done(stage_dir: str | os.PathLike, result: Mapping[str, Any]) -> None:
  """Records that the stage ran to its end, and what it found (JSON-able).

  Every process calls it and goes on when the file is there.
  """
  write_json(pathlib.Path(stage_dir) / DONE, result)
  processes.wait("done")


def done_result(stage_dir: str | os.PathLike) -> dict[str, Any]:
  """What `mark_done` was given.

  Raises:
    ValueError: the stage is not done.
  """
  if not is_done(stage_dir):
    raise ValueError(f"{stage_dir} holds no {DONE}: its stage has not finished; run it to its end")
  return read_json(pathlib.Path(stage_dir) / DONE)


def once(stage_dir: str | os.PathLike, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """What a stage found: `make()`, recorded with its seconds, unless the stage is done already."""
  if is_done(stage_dir):
    return done_result(stage_dir)
  began = time.perf_counter()
  found = make()
  found["seconds"] = time.perf_counter() - began
  mark_done(stage_dir, found)
  return found


@contextlib.contextmanager
def alone(path: str | os.PathLike, what: str):
  """Keeps other processes out while the body runs; waits, and says so, while one is in.

  Args:
    path: of the lock file, on a file system that all of them see and that has `flock`.
    what: is being run, for the line that is printed.
  """
  lock = filelock.FileLock(path)
  try:
    held = lock.acquire(timeout=0)
  except filelock.Timeout:
    print(f"{what}: another process is running it; waiting", flush=True)
    held = lock.acquire()
  with held:
    yield


def git_version() -> str:
  """`COMMIT`, or `COMMIT dirty` with uncommitted changes, or `unknown` outside a repository."""
  root = pathlib.Path(__file__).resolve().parent.parent
  top = _git(root, "rev-parse", "--show-toplevel")
  commit = _git(root, "rev-parse", "--verify", "HEAD")
  # An installed package may lie inside someone else's repository, whose commit says nothing.
  if not top or not commit or pathlib.Path(top).resolve() != root:
    return "unknown"
  return f"{commit} dirty" if _git(root, "status", "--porcelain") else commit


def _git(root: pathlib.Path, *args: str) -> str:
  try:
    done = subprocess.run(
      ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=30, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return ""
  return done.stdout.strip()


def _append_line(path: pathlib.Path, line: str) -> None:
  before = path.read_text(encoding="utf-8") if path.exists() else ""
  write_text(path, before + line + "\n")


def _check_same_config(workdir: pathlib.Path, old: Any, new: Any) -> None:
  differences = _differences(old, new)
  if not differences:
    return
  shown = ", ".join(
    f"{key} is {_show(a)} there and {_show(b)} here"
    for key, a, b in differences[:_NUM_DIFFERENCES_SHOWN]
  )
  num_more = len(differences) - _NUM_DIFFERENCES_SHOWN
  more = f" (and {num_more} more)" if num_more > 0 else ""
  what, remedy = "holds the run of another config", "delete this one"
  if "kind" in new and "kind" not in old:  # configs have had a kind since 0.2
    what = "was written by an earlier version of rlhf, whose config differs"
    remedy = "finish this run with the commit in its git.txt"
  raise ValueError(f"{workdir} {what}: {shown}{more}; choose another --workdir, or {remedy}")


def _differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
  """(dotted key, old value, new value) of every leaf that is not the same in both."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    # A bool equals an int in Python, but not in JSON.
    same = old == new and isinstance(old, bool) == isinstance(new, bool)
    return [] if same else [(prefix, old, new)]
  found = []
  for key in sorted(old.keys() | new.keys()):
    dotted = f"{prefix}.{key}" if prefix else key
    found += _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), dotted)
  return found


def _show(value: Any) -> str:
  return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
