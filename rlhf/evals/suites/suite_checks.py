"""What the suites of truth, toxicity and bias share: checks of their configs, and `items.jsonl`."""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rlhf import workdir
from rlhf.evals.suites.tasks import data as data_lib


def check_variants(names: Iterable[str], choices: Iterable[str], field: str) -> None:
  """Raises ValueError where a config's list of variants is empty, doubled or names an unknown one."""
  choices = list(choices)
  if isinstance(names, str) or not list(names):
    raise ValueError(f"{field} is {names!r}; give a list of one or more of {', '.join(choices)}")
  for name in names:
    if name not in choices:
      raise ValueError(f"{field} names {name!r}; choose from {', '.join(choices)}")
  if len(set(names)) < len(list(names)):
    raise ValueError(f"{field} is {', '.join(names)}; name each once")


def check_at_least(number: float | None, least: float, field: str) -> None:
  """Raises ValueError where a number of a config, None for all of something, is too small."""
  if number is not None and not number >= least:
    raise ValueError(f"{field} is {number}; use {least} or more")


def check_data(task: str, data: str, field: str) -> None:
  """Raises ValueError where the data of a task cannot be there; names the config's field."""
  try:
    data_lib.check(task, data)
  except ValueError as error:
    raise ValueError(f"{field}: {error}") from None


def write_items(directory: str | os.PathLike, items: Iterable[Mapping[str, Any]]) -> None:
  """Writes `directory/items.jsonl`, whole or not at all."""
  text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
  workdir.write_text(pathlib.Path(directory) / "items.jsonl", text)
