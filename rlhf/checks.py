"""Checks of numbers and names in a config group, for the dataclass that reads it.

The group is empty where a caller of the dataclass says it.
"""

import math
from collections.abc import Iterable
from typing import Any


def at_least(group: str, p: Any, **least: float) -> None:
  """Raises ValueError where a field is too small or infinite; None, for all or none, is neither."""
  for name, number in least.items():
    value = getattr(p, name)
    if value is not None and not number <= value < math.inf:
      raise ValueError(f"{_named(group, name)} is {value}; use {number} or more")


def above_zero(group: str, p: Any, *names: str) -> None:
  """Raises ValueError where a field is not above 0."""
  for name in names:
    if not getattr(p, name) > 0:
      raise ValueError(f"{_named(group, name)} is {getattr(p, name)}; use a number above 0")


def choices(group: str, p: Any, **known: Iterable[str]) -> None:
  """Raises ValueError where a field is none of the names that are known."""
  for name, names in known.items():
    if getattr(p, name) not in names:
      raise ValueError(f"{_named(group, name)} {getattr(p, name)!r}; choose from {sorted(names)}")


def divides(group: str, p: Any, whole: str, part: str) -> None:
  """Raises ValueError where one field is not a multiple of another."""
  if getattr(p, whole) % getattr(p, part):
    raise ValueError(
      f"{group}.{whole} {getattr(p, whole)} does not divide into {group}.{part} "
      f"{getattr(p, part)}; use a multiple of {getattr(p, part)}"
    )


def _named(group: str, name: str) -> str:
  return f"{group}.{name}" if group else name
