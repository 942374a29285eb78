"""Checks of numbers and names in a config group, for the dataclass that reads it."""

from collections.abc import Iterable
from typing import Any


def at_least(group: str, p: Any, **least: float) -> None:
  """Raises ValueError where a field is too small; None, for all or none of something, is not."""
  for name, number in least.items():
    value = getattr(p, name)
    if value is not None and not value >= number:
      raise ValueError(f"{group}.{name} is {value}; use {number} or more")


def choices(group: str, p: Any, **known: Iterable[str]) -> None:
  """Raises ValueError where a field is none of the names that are known."""
  for name, names in known.items():
    if getattr(p, name) not in names:
      raise ValueError(f"{group}.{name} {getattr(p, name)!r}; choose from {sorted(names)}")


def divides(group: str, p: Any, whole: str, part: str) -> None:
  """Raises ValueError where one field is not a multiple of another."""
  if getattr(p, whole) % getattr(p, part):
    raise ValueError(
      f"{group}.{whole} {getattr(p, whole)} does not divide into {group}.{part} "
      f"{getattr(p, part)}; use a multiple of {getattr(p, part)}"
    )
