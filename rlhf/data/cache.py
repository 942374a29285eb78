"""Memory-mapped arrays on disk, made once for each fingerprint and shared by all runs.

    CACHE_DIR/FINGERPRINT/manifest.json     facts, and the dtype and shape of each array
    CACHE_DIR/FINGERPRINT/NAME.bin          an array as raw bytes

An entry is written under another name and then renamed, so that it is complete or absent.  Nothing
removes entries: delete them, or the whole directory, whenever the space is needed.  The time of an
entry's manifest is when a run last read it.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np

from rlhf import workdir as workdir_lib

VERSION = 1  # raise it when an entry's content changes: entries of other versions are not read
_MANIFEST = "manifest.json"


def directory(cache_dir: str | os.PathLike | None, workdir: str | os.PathLike) -> pathlib.Path:
  """The cache of a run; made where it is missing.

  Args:
    cache_dir: what the user named; None takes `$XDG_CACHE_HOME/rlhf/data` (`~/.cache/rlhf/data`),
      or `WORKDIR/cache` where that cannot be written.
    workdir: of the run.

  Raises:
    ValueError: `cache_dir` cannot be written.
  """
  if cache_dir is not None:
    found = pathlib.Path(cache_dir)
    if not _is_writable(found):
      raise ValueError(f"--cache_dir={found} cannot be written; name a directory that can")
    return found
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  found = pathlib.Path(home) / "rlhf" / "data"
  return found if _is_writable(found) else pathlib.Path(workdir) / "cache"


def _is_writable(path: pathlib.Path) -> bool:
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError:
    return False
  return os.access(path, os.W_OK | os.X_OK)


class ArrayWriter:
  """Arrays that are being made, as files of a directory, or in memory where there is none."""

  def __init__(self, directory: pathlib.Path | None = None):
    self._directory = directory
    self._arrays: dict[str, np.ndarray] = {}
    self._parts: dict[str, list[np.ndarray]] = {}
    self._files: dict[str, tuple[BinaryIO, np.dtype]] = {}

  def append(self, name: str, values: np.ndarray) -> None:
    """Adds to a one-dimensional array; all its parts have one dtype."""
    if self._directory is None:
      self._parts.setdefault(name, []).append(values)
      return
    if name not in self._files:
      self._files[name] = open(_path(self._directory, name), "wb"), values.dtype
    self._files[name][0].write(values.tobytes())

  def full(self, name: str, shape: tuple[int, ...], value: int, dtype) -> np.ndarray:
    """A new array to write into."""
    if self._directory is None:
      array = np.full(shape, value, dtype)
    else:
      path = _path(self._directory, name)
      num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
      with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):  # a full disk raises here, and kills a mapped write
          os.posix_fallocate(file.fileno(), 0, num_bytes)
        else:
          file.truncate(num_bytes)
      array = _map(path, dtype, shape, "r+")
      if value:
        array[:] = value
    self._arrays[name] = array
    return array

  def take(self, name: str) -> np.ndarray:
    """What was appended under a name, which is then no part of the result."""
    array = self._end(name)
    if self._directory is not None:
      _path(self._directory, name).unlink()  # the mapping keeps the content
    return array

  def finish(self) -> dict[str, np.ndarray]:
    """All arrays; on disk when this returns."""
    for name in (*self._parts, *self._files):
      self._arrays[name] = self._end(name)
    if self._directory is not None:
      for name in self._arrays:
        with open(_path(self._directory, name), "rb") as file:
          os.fsync(file.fileno())
    return self._arrays

  def close(self) -> None:
    for file, _ in self._files.values():
      file.close()

  def _end(self, name: str) -> np.ndarray:
    if self._directory is None:
      return np.concatenate(self._parts.pop(name))
    file, dtype = self._files.pop(name)
    file.close()
    path = _path(self._directory, name)
    return _map(path, dtype, (path.stat().st_size // dtype.itemsize,), "r")


def load_or_build(
  cache_dir: str | os.PathLike | None,
  key: Mapping[str, Any] | None,
  build: Callable[[ArrayWriter], dict[str, Any]],
  what: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """The arrays of a cache entry; they are made if it is absent or damaged.

  Args:
    cache_dir: of all entries; None makes the arrays in memory.
    key: everything that the arrays depend on, JSON-able; None makes them in memory.
    build: writes the arrays and returns facts about them, JSON-able.
    what: is being made, for the line that says that another process is making it.

  Returns:
    (name -> array, facts).  Arrays from the cache are memory-mapped and read-only.

  Raises:
    ValueError: the cache cannot be written, or as `build`; the entry is absent then.
  """
  if cache_dir is None or key is None:
    writer = ArrayWriter()
    facts = build(writer)
    return writer.finish(), facts
  parent = pathlib.Path(cache_dir)
  name = workdir_lib.config_hash({"cache version": VERSION, **key})
  found = _load(parent / name)
  if found is not None:
    return found
  try:
    parent.mkdir(parents=True, exist_ok=True)
    with workdir_lib.alone(parent / f"{name}.lock", what):
      found = _load(parent / name)
      if found is None:
        _build(parent, name, build)
        found = _load(parent / name)
  except OSError as error:
    raise ValueError(
      f"the data cache {parent} cannot be written ({error.strerror}); free space there, or name "
      "another directory with --cache_dir"
    ) from error
  assert found is not None
  return found


def _build(parent: pathlib.Path, name: str, build) -> None:
  """Makes an entry; the caller has its lock, so what an earlier writer left is nobody's."""
  temporary = parent / f".{name}.tmp"
  for path in (temporary, parent / name):
    shutil.rmtree(path, ignore_errors=True)
  temporary.mkdir()
  writer = ArrayWriter(temporary)
  try:
    facts = build(writer)
    arrays = {name: (str(a.dtype), a.shape) for name, a in writer.finish().items()}
    with open(temporary / _MANIFEST, "w", encoding="utf-8") as file:
      json.dump({"arrays": arrays, "facts": facts}, file)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, parent / name)
  finally:
    writer.close()
    shutil.rmtree(temporary, ignore_errors=True)


def _load(entry: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
  """The arrays and facts of an entry; None if it is absent or a file has another size."""
  try:
    manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
    arrays = {}
    for name, (dtype, shape) in manifest["arrays"].items():
      path = _path(entry, name)
      if path.stat().st_size != math.prod(shape) * np.dtype(dtype).itemsize:
        return None
      arrays[name] = _map(path, dtype, tuple(shape), "r")
    with contextlib.suppress(PermissionError):  # another user's entry
      os.utime(entry / _MANIFEST)
  except (FileNotFoundError, json.JSONDecodeError):
    return None
  return arrays, manifest["facts"]


def _path(entry: pathlib.Path, name: str) -> pathlib.Path:
  return entry / f"{name}.bin"


def _map(path: pathlib.Path, dtype, shape: tuple[int, ...], mode) -> np.ndarray:
  # A plain array over the mapping: `np.memmap` itself makes every slice of it slow.
  return np.asarray(np.memmap(path, dtype, mode, shape=shape))
