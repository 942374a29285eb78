"""What each field of a config is: the "Attributes:" of the dataclass that reads it.

`fields.yaml` says which dataclass reads which group, and describes the other fields. The sources
are parsed and not imported, so that --help needs no jax and takes a fraction of a second.
"""

import ast
import functools
import pathlib
import re
import textwrap

import ml_collections
import yaml

SOURCES = pathlib.Path(__file__).resolve().parents[2]
WIDTH, INDENT = 100, 34  # columns of a line, and those before a description


def describe(config: ml_collections.ConfigDict) -> str:
  """Every field with its value and description; groups with equal fields are listed once."""
  sections: dict[tuple, list[tuple[str, ml_collections.ConfigDict]]] = {}
  _collect(config, "", sections)
  return "".join(_section(found) for found in sections.values())


def _collect(group: ml_collections.ConfigDict, path: str, sections: dict) -> None:
  subgroups = [name for name in group if isinstance(group[name], ml_collections.ConfigDict)]
  leaves = tuple(name for name in group if name not in subgroups)
  if leaves:
    sections.setdefault((path.rpartition(".")[2], leaves), []).append((path, group))
  for name in subgroups:
    _collect(group[name], f"{path}.{name}".lstrip("."), sections)


def _section(found: list[tuple[str, ml_collections.ConfigDict]]) -> str:
  """The fields of one group, or of equal groups at several places."""
  paths = [path for path, _ in found]
  lines = textwrap.wrap(", ".join(paths), WIDTH, initial_indent="  ", subsequent_indent="  ")
  for name in found[0][1]:
    values = {repr(group[name]) for _, group in found}
    if not isinstance(found[0][1][name], ml_collections.ConfigDict):
      shown = f"    {name} ({values.pop() if len(values) == 1 else 'several values'})"
      text = description(paths[0], name)
      body = textwrap.wrap(text if text else "", WIDTH - INDENT)
      fits = len(shown) < INDENT - 1
      lines += [shown.ljust(INDENT) + "".join(body[:1])] if fits else [shown]
      lines += [" " * INDENT + line for line in body[fits:]]
  return "\n" + "\n".join(lines) + "\n"


def description(path: str, field: str) -> str | None:
  """What the field of the group at `path` is; None where nothing says it."""
  known = _known()
  for group in reversed(path.split(".")):
    for name in known["classes"].get(group, ()):
      if field in attributes(name):
        return attributes(name)[field]
  return known["fields"].get(field)


@functools.cache
def _known() -> dict[str, dict]:
  path = pathlib.Path(__file__).with_suffix(".yaml")
  return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def attributes(class_name: str) -> dict[str, str]:
  """Field -> description, from the "Attributes:" of every class of rlhf with this name."""
  found: dict[str, str] = {}
  for text in _sources():
    for match in re.finditer(rf"^class {class_name}\b.*\n(?:[ \t].*\n|\n)*", text, re.MULTILINE):
      node = ast.parse(match.group()).body[0]
      assert isinstance(node, ast.ClassDef)
      found |= _parse(ast.get_docstring(node) or "")
  return found


@functools.cache
def _sources() -> list[str]:
  return [path.read_text(encoding="utf-8") for path in sorted(SOURCES.rglob("*.py"))]


def _parse(docstring: str) -> dict[str, str]:
  """The entries `name, name: text` below "Attributes:"."""
  _, _, section = docstring.partition("Attributes:\n")
  found: dict[str, str] = {}
  names: list[str] = []
  for line in section.splitlines():
    entry = re.match(r"  (\w+(?:, \w+)*): +(.*)|  (\w+(?:, \w+)*):$", line)
    if entry:
      names = (entry.group(1) or entry.group(3)).split(", ")
      found |= {name: entry.group(2) or "" for name in names}
    elif line and not line.startswith("  "):
      break
    else:
      for name in names:
        found[name] = f"{found[name]} {line.strip()}".strip()
  return found
