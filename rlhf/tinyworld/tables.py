"""Reads TinyWorld's words and sentences from the YAML files beside this module."""

import functools
import importlib.resources
from typing import Any

import yaml


@functools.cache
def read(name: str) -> dict[str, Any]:
  """The mappings of NAME.yaml, with a tuple for each list and for the lines of each block (`|`).

  BaseLoader leaves every scalar a string: "no" and "on" are words here, not booleans.
  """
  path = importlib.resources.files(__package__) / f"{name}.yaml"
  return _frozen(yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader))


def _frozen(node: Any) -> Any:
  if isinstance(node, dict):
    return {key: _frozen(value) for key, value in node.items()}
  if isinstance(node, list):
    return tuple(node)
  return tuple(node.splitlines()) if node.endswith("\n") else node
