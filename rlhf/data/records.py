"""The four kinds of record, and what makes a line of JSONL one of them.

    demonstration  {"prompt": str, "completion": str, "user": str (optional)}
    comparison     {"prompt": str, "completions": [str, ...] (2 or more), "ranks": [int, ...],
                    "labeler": str (optional), "user": str (optional)}
                   one rank per completion; 1 is best, equal ranks are ties
    prompt         {"prompt": str, "user": str (optional)}
    text           {"text": str}

A line may hold other fields: they travel with the record, and nothing in this room reads them.
"""

import contextlib
import gzip
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

# kind -> field -> what it holds
FIELDS = {
  "demonstration": {"prompt": "str", "completion": "str", "user": "str (optional)"},
  "comparison": {
    "prompt": "str",
    "completions": "[str, ...]",
    "ranks": "[int, ...]",
    "user": "str (optional)",
    "labeler": "str (optional)",
  },
  "prompt": {"prompt": "str", "user": "str (optional)"},
  "text": {"text": "str"},
}
_OPTIONAL = ("user", "labeler")


class Problem(ValueError):
  """What was found in a line, and what would be right; its `reason` in a few words is counted."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


class Flaw(Problem):
  """A flaw that a published data set is known to have, such as an empty reply: only counted."""

  def __init__(self, reason: str):
    super().__init__(reason, reason)


class LazySequence(Sequence):
  """A sequence whose items are made when they are read.

  Attributes:
    fingerprint: of the items, for caches; None where they have none.
  """

  def __init__(self, length: int, get: Callable[[int], Any], fingerprint: str | None = None):
    """`get(i)` makes item i of 0 .. length - 1."""
    self._length = length
    self._get = get
    self.fingerprint = fingerprint

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self._get(i) for i in range(*index.indices(self._length))]
    return self._get(range(self._length)[int(index)])  # a range raises IndexError


def subset(items: Sequence, indices: Sequence[int] | np.ndarray) -> LazySequence:
  """The items at `indices`, in their order."""
  indices = np.asarray(indices, np.int64)
  return LazySequence(len(indices), lambda i: items[int(indices[i])])


def concatenate(*parts: Sequence) -> LazySequence:
  """All items of all parts."""
  ends = np.cumsum([len(part) for part in parts])

  def get(index: int):
    number = int(np.searchsorted(ends, index, side="right"))
    return parts[number][index - (int(ends[number]) - len(parts[number]))]

  return LazySequence(int(ends[-1]), get)


_MAX_CHUNK_ITEMS, _MAX_CHUNK_CHARACTERS = 1024, 2_000_000


def chunks(items: Iterable) -> Iterator[list]:
  """Lists of records or texts, each small enough to be tokenised at once."""
  chunk: list = []
  num_characters = 0
  for item in items:
    chunk.append(item)
    num_characters += _num_characters(item)
    if len(chunk) == _MAX_CHUNK_ITEMS or num_characters >= _MAX_CHUNK_CHARACTERS:
      yield chunk
      chunk, num_characters = [], 0
  if chunk:
    yield chunk


def _num_characters(value: object) -> int:
  if isinstance(value, str):
    return len(value)
  if isinstance(value, dict):
    return sum(map(_num_characters, value.values()))
  return sum(map(_num_characters, value)) if isinstance(value, list) else 0


def check_kind(kind: str) -> None:
  """Raises ValueError unless `kind` names a kind of record."""
  if kind not in FIELDS:
    raise ValueError(f"record kind {kind!r}; choose from {sorted(FIELDS)}")


def check_record(kind: str, value: object) -> None:
  """Raises the `Problem` that keeps a parsed JSON value from being a record of `kind`."""
  if not isinstance(value, dict):
    found = f"a JSON {_type_name(value)}, not an object"
    raise Problem("not an object", f"{found}; {_shape(kind)}")
  for field in FIELDS[kind]:
    if field not in value and field not in _OPTIONAL:
      raise Problem("missing field", f'no field "{field}"; {_shape(kind)}')
  for field in FIELDS[kind]:
    if field in _OPTIONAL and value.get(field, "") == "":  # an empty user or labeler is none
      continue
    check = {"completions": _check_completions, "ranks": _check_ranks}.get(field, check_text)
    check(f'"{field}"', value[field])
  if kind == "comparison" and len(value["ranks"]) != len(value["completions"]):
    raise Problem(
      "ranks of another length",
      f"{len(value['ranks'])} ranks for {len(value['completions'])} completions; "
      "give one rank per completion",
    )


def _shape(kind: str) -> str:
  parts = [f'"{field}": {holds}' for field, holds in FIELDS[kind].items()]
  return f"a {kind} is {{{', '.join(parts)}}}"


def parse_json(line: bytes | str) -> Any:
  """The value of one line of JSON; raises `Problem`."""
  try:
    # A byte order mark is no part of the text.
    text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
    return json.loads(text)
  except UnicodeDecodeError as error:
    found = f"not UTF-8 (byte {error.start})"
  except json.JSONDecodeError as error:
    found = f"not JSON ({error.msg} at column {error.colno})"
  except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
    found = f"not readable JSON ({error})"
  raise Problem("not JSON", f"{found}; each line must be one JSON object")


def check_text(name: str, value: object) -> None:
  """Raises the `Problem` that keeps `value` from being a text with something in it."""
  if not isinstance(value, str):
    raise Problem("wrong type", f"{name} is a JSON {_type_name(value)}; it must be a string")
  if not value.strip():
    raise Problem("empty text", f"{name} is empty; it must hold text")
  try:
    value.encode("utf-8")
  except UnicodeEncodeError as error:
    raise Problem(
      "not Unicode",
      f"{name} holds half a surrogate pair at character {error.start}; it must be valid Unicode",
    ) from None


def _check_list(name: str, value: object, items: str) -> list:
  if not isinstance(value, list):
    found = f"{name} is a JSON {_type_name(value)}"
    raise Problem("wrong type", f"{found}; it must be a list of {items}")
  return value


def _check_completions(name: str, value: object) -> None:
  completions = _check_list(name, value, "strings")
  if len(completions) < 2:
    found = f"{name} has {len(completions)} of them"
    raise Problem("one completion", f"{found}; a comparison needs 2 or more")
  for index, completion in enumerate(completions):
    check_text(f"{name}[{index}]", completion)


def _check_ranks(name: str, value: object) -> None:
  for index, rank in enumerate(_check_list(name, value, "integers")):
    is_integer = isinstance(rank, int) and not isinstance(rank, bool)
    if is_integer and 1 <= rank < 2**31:
      continue
    found = f"{name}[{index}] is {json.dumps(rank)[:40]}"
    if is_integer:
      raise Problem("rank out of range", f"{found}; ranks count from 1, the best")
    needs = "ranks are integers, 1 for the best, equal for a tie"
    raise Problem("rank not an integer", f"{found}; {needs}")


def _type_name(value: object) -> str:
  names = {
    dict: "object",
    list: "list",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
  }
  return names[type(value)]


@contextlib.contextmanager
def open_file(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A file to read bytes from, unpacked if its name ends in .gz.

  Raises:
    ValueError: it cannot be read.
  """
  is_packed = path.suffix == ".gz"
  try:
    file: IO[bytes] = gzip.open(path) if is_packed else open(path, "rb")  # type: ignore[assignment]
  except FileNotFoundError as error:
    raise ValueError(f"{path} does not exist; name a file that does") from error
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); name a readable file") from error
  with file:
    try:
      yield file
    except (OSError, EOFError, zlib.error) as error:
      if not is_packed:
        raise
      raise ValueError(
        f"{path} is not a whole gzip file ({error}); compress it anew or drop the .gz from its name"
      ) from error


def read_bytes(path: pathlib.Path) -> bytes:
  """A whole file; see `open_file`."""
  with open_file(path) as file:
    return file.read()


def read_lines(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
  """("path:line", line) of every line that is not blank; lines count from 1."""
  with open_file(path) as file:
    for number, line in enumerate(file, start=1):
      if line.strip():
        yield f"{path}:{number}", line.removesuffix(b"\n")


def describe_counts(what: str, counts: Mapping[str, int]) -> str:
  """One line for the console: "comparisons: 1830 kept, 4 dropped (replies to two prompts)"."""
  parts = [f"{number:,} {name}" for name, number in counts.items() if number or name == "kept"]
  return f"{what}: {', '.join(parts)}"
