"""The files of a published model: safetensors, of which slices are read, and new directories.

No file stays open between reads: what a process has mapped of a file counts as its memory.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from rlhf.interop.layout import Read
from rlhf.tokenization.published import read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# Suffixes of pickles, which may run arbitrary code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = ("F64", "F32", "F16", "BF16")


def save(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes one file, with the metadata that `transformers` looks for."""
  safetensors.numpy.save_file(dict(tensors), path, metadata={"format": "pt"})
  # The library makes the file readable for its owner only; the directory has the umask's mode.
  path.chmod(path.parent.stat().st_mode & 0o666)


def check_target(directory: pathlib.Path) -> None:
  """Raises ValueError if something would be overwritten."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f"{directory} exists already; name a new directory")


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A temporary directory that becomes `directory` if the context ends without an error.

  Raises:
    ValueError: `directory` is not empty.
  """
  directory = pathlib.Path(directory).absolute()
  check_target(directory)
  temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    if directory.is_dir():
      directory.rmdir()
    os.replace(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


class SafetensorsFiles:
  """The tensors of `model.safetensors`, or of the files that its index names."""

  def __init__(self, directory: str | os.PathLike):
    """Reads names and shapes.

    Raises:
      ValueError: no such file, only a pickle, or a file that is incomplete or damaged.
    """
    self.directory = pathlib.Path(directory)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self._file_of: dict[str, pathlib.Path] = {}
    for path in self._paths():
      with _opened(path) as file:
        for name in file.keys():
          tensor = file.get_slice(name)
          if name in self.shapes:
            raise ValueError(
              f"{path} and {self._file_of[name].name} both hold {name}; each tensor "
              "must be in one file"
            )
          if tensor.get_dtype() not in _DTYPES:
            raise ValueError(
              f"{path}: {name} is {tensor.get_dtype()}; tensors must be one of {', '.join(_DTYPES)}"
            )
          self.shapes[name] = tuple(tensor.get_shape())
          self._file_of[name] = path

  def _paths(self) -> list[pathlib.Path]:
    if (self.directory / SINGLE).is_file():
      return [self.directory / SINGLE]
    index = self.directory / INDEX
    if not index.is_file():
      refuse_pickles(self.directory)
      raise ValueError(
        f"{self.directory} holds neither {SINGLE} nor {INDEX}; name the directory "
        "of a Hugging Face model"
      )
    names = read_json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
      raise ValueError(f"{index} has no weight_map; it must give the file of each tensor")
    paths = [self.directory / name for name in sorted(set(names.values()))]
    for path in paths:
      if path.parent != self.directory or path.suffix != ".safetensors":
        raise ValueError(f"{index} names {path.name!r}; it must name safetensors files beside it")
      if not path.is_file():
        raise ValueError(f"{index} names {path.name}, which is not there; download the whole model")
    return paths

  @contextlib.contextmanager
  def opened(self) -> Iterator[Read]:
    """A function that reads slices until the context ends; opens each file at its first one."""
    with contextlib.ExitStack() as stack:
      files: dict[pathlib.Path, Any] = {}

      def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
        path = self._file_of[name]
        if path not in files:
          files[path] = stack.enter_context(_opened(path))
        return np.asarray(files[path].get_slice(name)[index], np.float32)

      yield read


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  try:
    with safetensors.safe_open(path, "numpy") as file:
      yield file
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(
      f"{path} is not a complete safetensors file ({error}); download it again"
    ) from None


def refuse_pickles(path: pathlib.Path) -> None:
  """Raises ValueError if `path` is a pickle, or a directory that contains one."""
  for file in sorted(path.iterdir()) if path.is_dir() else [path]:
    if file.suffix in PICKLES:
      raise ValueError(
        f"{file} is a pickle, which can run code when it is read; convert it to safetensors where "
        "you trust it (save_pretrained of transformers does)"
      )
