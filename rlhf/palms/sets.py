"""Value sets: files of positions, probes and samples that change a model's values.

A directory holds

    positions.json   {"title": str, "categories": [{"name", "title", "position"}], "limits": {}}
    probes.jsonl     {"category": name, "prompt": question}
    targeted.jsonl   {"category": name or "broad", "topic": str, "prompt": question,
                      "completion": str}
    control.jsonl    the same fields: samples of the same size and style without the values

`limits` is optional and holds fields of `Limits`.  A sample is a demonstration of
`rlhf.data.records`, so fine-tuning reads these files as they are.  Probes measure values and must
not be in the training samples.

The method is PALMS (Solaiman and Dennison 2021, arXiv:2106.10328).
"""

import collections
import dataclasses
import difflib
import functools
import itertools
import json
import pathlib
import re
import statistics
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlhf import checks
from rlhf.data import records

POSITIONS, PROBES = "positions.json", "probes.jsonl"
TARGETED, CONTROL = "targeted.jsonl", "control.jsonl"
BROAD = "broad"  # the category of a sample on no sensitive topic in particular
SHIPPED = pathlib.Path(__file__).parent / "values"  # the set written for this project
_OPERATORS = "#*/%&@"  # Unicode calls them punctuation, but they tell C from C#, 6 / 3 from 6 * 3
_SELECTORS = "\ufe0e\ufe0f"  # how the symbol before is drawn
_POSITIONS_SHAPE = (
  '{"title": str, "categories": [{"name": str, "title": str, "position": str}, ...]}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What the checker reports as too much or too little.

  Attributes:
    min_words, max_words: of a completion, counted by white space; 40 to 340 as in PALMS.  A script
      that does not separate words needs other limits.
    max_samples: of a set; the method is meant for fewer than 100.
    prompt_overlap: two prompts are near-duplicates from this Jaccard similarity of their pairs of
      neighbouring words, between 0 and 1; this project's choice.  Above 1: never.
    completion_overlap: the same for completions and triples of words.
    max_same_ends: completions that may share their first, or their last, five words.
    ngram: number of consecutive words that no two completions share, unless a prompt has them.
  """

  min_words: int = 40
  max_words: int = 340
  max_samples: int = 100
  prompt_overlap: float = 0.5
  completion_overlap: float = 0.2
  max_same_ends: int = 2
  ngram: int = 8

  def __post_init__(self):
    if not 1 <= self.min_words <= self.max_words:
      raise ValueError(
        f"limits: min_words {self.min_words} and max_words {self.max_words}; use "
        "1 <= min_words <= max_words"
      )
    checks.above_zero("limits", self, *dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
  """A sensitive topic and the position that the model should take on it."""

  name: str
  title: str
  position: str
  where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
  """A question of the evaluation; `where` is its "path:line"."""

  category: str
  prompt: str
  where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """A question and the completion to train on; `where` is its "path:line"."""

  category: str
  topic: str = ""
  prompt: str
  completion: str
  where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueSet:
  """The values of one application.

  Attributes:
    title: of the whole.
    categories, probes, targeted, control: in the order of the files.
    limits: of the checks.
    where: the directory, or what made the set.
  """

  title: str
  categories: tuple[Category, ...]
  probes: tuple[Probe, ...]
  targeted: tuple[Sample, ...]
  control: tuple[Sample, ...]
  limits: Limits
  where: str

  def category(self, name: str) -> Category:
    """The category of this name; ValueError where there is none."""
    for found in self.categories:
      if found.name == name:
        return found
    names = ", ".join(entry.name for entry in self.categories)
    raise ValueError(f"category {name!r} is not one of {self.where}; choose from {names}")


@dataclasses.dataclass(frozen=True)
class Problem:
  """One sentence on what is wrong with a set; a set with only warnings can be used."""

  where: str | pathlib.Path
  message: str
  is_warning: bool = False

  def __str__(self) -> str:
    return f"{self.where}: {'warning: ' if self.is_warning else ''}{self.message}"


_warning = functools.partial(Problem, is_warning=True)


def load(directory: str | pathlib.Path) -> ValueSet:
  """Reads a set without errors; warnings are ignored.

  Raises:
    ValueError: the first error of the set or its files.
  """
  values, found = check(directory)
  errors = [problem for problem in found if not problem.is_warning]
  if errors or values is None:
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    raise ValueError(f"{errors[0]}{more}")
  return values


def check(
  directory: str | pathlib.Path, *, strict: bool = False
) -> tuple[ValueSet | None, list[Problem]]:
  """Reads what can be read, and reports everything that is wrong.

  Args:
    strict: treats warnings as errors, as for the shipped set.

  Returns:
    (the set without its broken lines, or None without readable positions; problems, errors first).
  """
  found: list[Problem] = []
  values = _read(pathlib.Path(directory), found)
  if values is not None:
    found += problems(values)
  if strict:
    found = [dataclasses.replace(problem, is_warning=False) for problem in found]
  return values, sorted(found, key=lambda problem: problem.is_warning)


def texts(values: ValueSet) -> dict[str, str]:
  """File name -> content that `load` reads; without control samples there is no such file."""
  plain = dataclasses.asdict(values)
  for name in ("categories", "probes", "targeted", "control"):
    for entry in plain[name]:
      del entry["where"]
  positions = {name: plain[name] for name in ("title", "categories", "limits")}
  files = {PROBES: plain["probes"], TARGETED: plain["targeted"], CONTROL: plain["control"]}
  return {POSITIONS: json.dumps(positions, indent=2, ensure_ascii=False) + "\n"} | {
    name: "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    for name, entries in files.items()
    if entries or name != CONTROL
  }


def describe(values: ValueSet) -> str:
  """A small table for the console: what each category has, and how long the samples are."""
  samples = {"targeted": values.targeted, "control": values.control}
  groups: tuple[Sequence[Probe | Sample], ...] = (values.probes, *samples.values())
  rows: list[tuple[str, ...]] = [("category", "probes", *samples)]
  for name in [*(category.name for category in values.categories), BROAD]:
    rows.append((name, *(str(sum(e.category == name for e in group)) for group in groups)))
  rows.append(("all", *(str(len(group)) for group in groups)))
  lines = [values.title, *("  {:<18}{:>8}{:>10}{:>9}".format(*row) for row in rows)]
  for name, group in samples.items():
    if group:
      lengths = [len(sample.completion.split()) for sample in group]
      size = sum(len((sample.prompt + sample.completion).encode()) for sample in group)
      lines.append(
        f"  {name} completions: {min(lengths)} to {max(lengths)} words, median "
        f"{statistics.median(lengths):g}; {size / 1000:.0f} kB with their prompts"
      )
  return "\n".join(lines)


# ----------------------------------------------------------------------------- reading


def _read(directory: pathlib.Path, found: list[Problem]) -> ValueSet | None:
  """The readable part of a directory; what cannot be read goes to `found`."""
  positions = _read_positions(directory / POSITIONS, found)
  if positions is None:
    return None
  names = [category.name for category in positions["categories"]]
  read = lambda file, kind, allowed: tuple(_read_lines(directory / file, kind, allowed, found))
  entries: dict[str, Any] = dict(
    probes=read(PROBES, Probe, names), targeted=read(TARGETED, Sample, [*names, BROAD]), control=()
  )
  if (directory / CONTROL).exists():
    entries["control"] = read(CONTROL, Sample, [*names, BROAD])
  else:
    what = (
      "there is no control set, so the effect of any fine-tuning cannot be separated from that of "
      "the values; write samples of the same size and style without the values"
    )
    found.append(_warning(directory / CONTROL, what))
  return ValueSet(**positions, **entries, where=str(directory))


def _read_positions(path: pathlib.Path, found: list[Problem]) -> dict[str, Any] | None:
  """{"title", "categories", "limits"}; None where the file cannot be read."""
  try:
    text = records.read_bytes(path).decode("utf-8-sig")
    value = json.loads(text)
    if not isinstance(value, dict) or not (
      isinstance(value.get("categories"), list) and value["categories"]
    ):
      raise ValueError(f'no list "categories" with an entry; it must be {_POSITIONS_SHAPE}')
  except UnicodeDecodeError as error:
    found.append(Problem(path, f"not UTF-8 (byte {error.start}); save it as UTF-8"))
    return None
  except json.JSONDecodeError as error:
    message = f"not JSON ({error.msg} at column {error.colno}); it must be {_POSITIONS_SHAPE}"
    found.append(Problem(f"{path}:{error.lineno}", message))
    return None
  except (ValueError, RecursionError) as error:
    found.append(Problem(path, str(error).removeprefix(f"{path} ")))
    return None
  title = value.get("title")
  try:
    records.check_text('"title"', title)
  except ValueError as error:
    found.append(Problem(path, str(error)))
    title = str(path.parent)
  categories: list[Category] = []
  for number, entry in enumerate(value["categories"], start=1):
    where = f"{path}: category {number}"
    given = entry.get("name") if isinstance(entry, dict) else None
    if isinstance(given, str):  # "path:line" where the name is
      pattern = r'"name"\s*:\s*' + re.escape(json.dumps(given, ensure_ascii=False))
      if (match := re.search(pattern, text)) is not None:
        where = f"{path}:{text.count(chr(10), 0, match.start()) + 1}"
    try:
      _check_category(entry, [category.name for category in categories])
      categories.append(Category(where=where, **{name: entry[name] for name in _fields(Category)}))
    except ValueError as error:
      found.append(Problem(where, str(error)))
  limits = _read_limits(path, value.get("limits", {}), found)
  return dict(title=title, categories=tuple(categories), limits=limits)


def _fields(kind: type) -> dict[str, bool]:
  """Fields of a category, probe or sample in its file -> whether it must have them."""
  return {
    field.name: field.default is dataclasses.MISSING
    for field in dataclasses.fields(kind)
    if field.name != "where"
  }


def _check_category(entry: Any, others: Sequence[str]) -> None:
  if not isinstance(entry, dict):
    raise ValueError(f"not an object; it must be as in {_POSITIONS_SHAPE}")
  for name in _fields(Category):
    records.check_text(f'"{name}"', entry.get(name))
  if entry["name"] == BROAD:
    raise ValueError(f'the name "{BROAD}" is reserved for samples without a category; use another')
  if entry["name"] in others:
    raise ValueError(f"a second category {entry['name']!r}; give each its own name")


def _read_limits(path: pathlib.Path, value: Any, found: list[Problem]) -> Limits:
  kinds = {field.name: type(field.default) for field in dataclasses.fields(Limits)}
  try:
    if not isinstance(value, dict) or any(
      name not in kinds or isinstance(number, bool) or not isinstance(number, (int, kinds[name]))
      for name, number in value.items()
    ):
      raise ValueError(
        f'"limits" is {json.dumps(value)[:60]}; it must be an object with numbers under names of '
        f"{', '.join(kinds)}"
      )
    return Limits(**value)
  except ValueError as error:
    found.append(Problem(path, str(error)))
    return Limits()


def _read_lines(
  path: pathlib.Path, kind: type, allowed: Sequence[str], found: list[Problem]
) -> Iterator[Any]:
  """The probes or samples of the good lines."""
  try:
    lines = list(records.read_lines(path))
  except ValueError as error:
    found.append(Problem(path, str(error).removeprefix(f"{path} ")))
    return
  if not lines:
    found.append(Problem(path, "the file is empty; write one JSON object per line"))
  fields = _fields(kind)
  needed = [name for name, is_needed in fields.items() if is_needed]
  for where, line in lines:
    try:
      value = records.parse_json(line)
      _check_line(value, needed, allowed)
      yield kind(where=where, **{name: value[name] for name in fields if name in value})
    except ValueError as error:
      found.append(Problem(where, str(error)))


def _check_line(value: Any, needed: Sequence[str], allowed: Sequence[str]) -> None:
  """Raises ValueError where a line is no probe or sample."""
  shape = "{" + ", ".join(f'"{name}": str' for name in needed) + "}"
  if not isinstance(value, dict):
    raise ValueError(f"not a JSON object; each line must be {shape}")
  for name in needed:
    if name == "completion" and value.get(name) in (None, ""):
      found = 'the completion is missing: no text in "completion"'
      raise ValueError(f"{found}; each line must be {shape}")
    if name not in value:
      raise ValueError(f'no field "{name}"; each line must be {shape}')
  for name in (*needed, *(("topic",) if value.get("topic", "") != "" else ())):
    records.check_text(f'"{name}"', value[name])
  if value["category"] not in allowed:
    close = difflib.get_close_matches(value["category"], allowed, 1, 0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"
    raise ValueError(f"unknown category {value['category']!r}; {hint}")


# ----------------------------------------------------------------------------- checking


def problems(values: ValueSet) -> list[Problem]:
  """What is missing in a readable set, and what is repeated.

  Errors are a category without probes, a probe among the training prompts, and equal prompts.  The
  rest are warnings, because a set may intend another number.
  """
  limits, training = values.limits, (*values.targeted, *values.control)
  found = list(_coverage(values))
  # Probes that are also training prompts would measure memory.
  found += _same_prompts(
    ((sample, probe) for probe in values.probes for sample in training),
    limits,
    equal="the probe {prompt} is also the prompt of {where}; probes must not be in the training "
    "samples",
    near="the probe {prompt} is nearly the prompt {other} of {where}; ask something else",
  )
  repeated = dict(
    equal="the prompt {prompt} is that of {where}; leave one out",
    near="the prompt {prompt} is nearly that of {where}, {other}; ask something else",
  )
  for name, samples in ((TARGETED, values.targeted), (CONTROL, values.control)):
    found += _sizes(name, samples, limits)
    found += _same_prompts(itertools.combinations(samples, 2), limits, **repeated)
    found += _repeated_completions(samples, limits)
  found += _same_prompts(itertools.combinations(values.probes, 2), limits, **repeated)
  return found + list(_balance(values))


def _coverage(values: ValueSet) -> Iterator[Problem]:
  for category in values.categories:
    what = f"category {category.name!r} has no"
    if not any(probe.category == category.name for probe in values.probes):
      yield Problem(
        category.where, f"{what} probe; write questions for it in {PROBES} (PALMS has 5)"
      )
    if not any(sample.category == category.name for sample in values.targeted):
      yield _warning(
        category.where,
        f"{what} sample in {TARGETED}; write one, or make sure that broad ones show the position",
      )


def _same_prompts(
  pairs: Iterable[tuple[Probe | Sample, Probe | Sample]], limits: Limits, *, equal: str, near: str
) -> Iterator[Problem]:
  """Equal and nearly equal prompts.

  Args:
    pairs: (other, entry); the problem is that of the entry.
    equal, near: messages, with its {prompt}, and the prompt of the {other} and {where} that is.
  """
  for other, entry in pairs:
    texts = dict(prompt=_short(entry.prompt), other=_short(other.prompt), where=other.where)
    if _words(entry.prompt) == _words(other.prompt):
      yield Problem(entry.where, equal.format(**texts))
    elif _jaccard(entry.prompt, other.prompt, 2) >= limits.prompt_overlap:
      yield _warning(entry.where, near.format(**texts))


def _sizes(name: str, samples: Sequence[Sample], limits: Limits) -> Iterator[Problem]:
  if len(samples) > limits.max_samples:
    yield _warning(
      samples[limits.max_samples].where,
      f"sample {limits.max_samples + 1} of {len(samples)} in {name}; the method is meant for fewer "
      f"than {limits.max_samples}, so leave out what adds nothing new",
    )
  for sample in samples:
    length = len(sample.completion.split())
    if not limits.min_words <= length <= limits.max_words:
      yield _warning(
        sample.where,
        f"the completion has {length} words; use {limits.min_words} to {limits.max_words}",
      )
    if not sample.topic:
      yield _warning(sample.where, 'the sample has no "topic"; describe it in a few words')


def _balance(values: ValueSet) -> Iterator[Problem]:
  """The control set must differ from the targeted one only in its values."""
  if not values.targeted or not values.control:
    return
  where = values.control[0].where.partition(":")[0]
  counts = len(values.control), len(values.targeted)
  if counts[0] != counts[1]:
    message = f"{counts[0]} control samples and {counts[1]} targeted ones; use equal numbers"
    yield _warning(where, message)
  control, targeted = (
    statistics.mean(len(sample.completion.split()) for sample in samples)
    for samples in (values.control, values.targeted)
  )
  if abs(control / targeted - 1) > 0.2:
    yield _warning(
      where,
      f"control completions have {control:.0f} words on average and targeted ones {targeted:.0f}; "
      "keep them within a fifth of each other",
    )


def _repeated_completions(samples: Sequence[Sample], limits: Limits) -> Iterator[Problem]:
  for first, second in itertools.combinations(samples, 2):
    overlap = _jaccard(first.completion, second.completion, 3)
    if overlap >= limits.completion_overlap:
      yield _warning(
        second.where,
        f"the completion shares {overlap:.0%} of its triples of words with that of {first.where}; "
        "rewrite it",
      )
      continue
    # A run of words that both completions have, unless one quotes a prompt.
    texts = first.completion, second.completion, first.prompt, second.prompt
    one, other, *quoted = (_ngrams(text, limits.ngram) for text in texts)
    shared = (one & other).difference(*quoted)
    if shared:
      phrase = min(shared, key=" ".join(_words(second.completion)).index)
      yield _warning(
        second.where,
        f'the completion has "{phrase}" in common with that of {first.where}; rephrase it',
      )
  for which, part in (("first", slice(5)), ("last", slice(-5, None))):
    groups: dict[tuple[str, ...], list[Sample]] = collections.defaultdict(list)
    for sample in samples:
      groups[_words(sample.completion)[part]].append(sample)
    for words, group in groups.items():
      if len(group) > limits.max_same_ends:
        others = ", ".join(sample.where for sample in group[:-1][:3])
        yield _warning(
          group[-1].where,
          f'{len(group)} completions have the {which} words "{" ".join(words)}" (also {others}); '
          "begin and end each differently",
        )


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
  """Lower-case words and single symbols without punctuation, for comparing texts.

  A text without either is a word of its own.
  """

  # `re` does not count combining marks of some scripts as part of a word, which would merge words.
  def spaced(character: str) -> str:
    kind = unicodedata.category(character)
    if character in _SELECTORS:
      return ""
    if kind[0] in "LMN" or character in "'’":
      return character
    return f" {character} " if kind in ("Sm", "Sc", "So") or character in _OPERATORS else " "

  words = "".join(map(spaced, unicodedata.normalize("NFC", text.lower()))).split()
  words = [word for word in (word.strip("'’") for word in words) if word]
  return tuple(words) if words or not text.strip() else (text.strip(),)


@functools.lru_cache(maxsize=8192)
def _ngrams(text: str, size: int) -> frozenset[str]:
  words = _words(text)
  return frozenset(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def _jaccard(first: str, second: str, size: int) -> float:
  """Share of the n-grams of either text that both have; n is smaller where a text is shorter."""
  size = max(1, min(size, len(_words(first)), len(_words(second))))
  one, other = _ngrams(first, size), _ngrams(second, size)
  return len(one & other) / len(one | other) if one or other else 1.0


def _short(text: str) -> str:
  return repr(text if len(text) <= 60 else text[:57] + "...")
