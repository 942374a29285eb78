"""What a researcher writes to change a model's values: files of positions, probes and samples.

A directory holds

    positions.json   {"title": str, "categories": [{"name", "title", "position"}], "limits": {}}
    probes.jsonl     {"category": name, "prompt": question}
    targeted.jsonl   {"category": name or "broad", "topic": str, "prompt": question,
                      "completion": answer}
    control.jsonl    the same fields: samples of the same size and style without the values

`limits` is optional and holds fields of `Limits`.  A sample is a demonstration of
`rlhf.data.records`, so that fine-tuning reads these files as they are.  Probes are asked when
values are measured and are held apart from training.

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
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.data import records

POSITIONS, PROBES, TARGETED, CONTROL = (
  "positions.json",
  "probes.jsonl",
  "targeted.jsonl",
  "control.jsonl",
)
_OPERATORS = "#*/%&@"  # punctuation to Unicode, and words to who asks of C# or 6 / 3
_SELECTORS = "\ufe0e\ufe0f"  # how the symbol before is drawn
BROAD = "broad"  # the category of a sample on none of the sensitive topics in particular
SHIPPED = pathlib.Path(__file__).parent / "values"  # the set that was written for this project
_POSITIONS_SHAPE = (
  '{"title": str, "categories": [{"name": str, "title": str, "position": str}, ...]}'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """What the checker takes for too much or too little.

  Attributes:
    min_words, max_words: of a completion, counted by white space; 40 to 340 as in PALMS.  A script
      that does not divide words needs limits of its own.
    max_samples: of a set; the method is meant for fewer than 100.
    prompt_overlap: two prompts are near-duplicates from this Jaccard similarity of their pairs of
      neighbouring words, which lies between 0 and 1; the number is ours.  Above 1: never.
    completion_overlap: the same for completions and triples of words; ours.
    max_same_ends: completions that may share their first, or their last, five words.
    ngram: number of words in a row that no two completions share, unless a prompt of theirs has
      them.
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
    for name in ("max_samples", "max_same_ends", "ngram"):
      if getattr(self, name) < 1:
        raise ValueError(f"limits: {name} {getattr(self, name)}; use 1 or more")
    for name in ("prompt_overlap", "completion_overlap"):
      if not getattr(self, name) > 0:
        raise ValueError(f"limits: {name} {getattr(self, name)}; use a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Category:
  """A sensitive topic and the position that the model should take there."""

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
  """A question with the answer to train on; `where` is its "path:line"."""

  category: str
  topic: str
  prompt: str
  completion: str
  where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueSet:
  """Everything that one application's values are made of.

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
    raise ValueError(
      f"category {name!r} is not one of {self.where}; choose from "
      f"{', '.join(entry.name for entry in self.categories)}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """What is wrong with a set, in one sentence; a warning does not keep it from being used."""

  where: str
  message: str
  is_warning: bool

  def __str__(self) -> str:
    return f"{self.where}: {'warning: ' if self.is_warning else ''}{self.message}"


def load(directory: str | pathlib.Path) -> ValueSet:
  """Reads a set that has no error; warnings do not matter.

  Raises:
    ValueError: a file is missing or broken, or the set has an error; says the first.
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
  """Reads what can be read, and says all that is wrong.

  Args:
    strict: what is a warning for one's own set is an error, as for the shipped one.

  Returns:
    (the set without its broken lines, or None without readable positions; problems, errors first).
  """
  directory = pathlib.Path(directory)
  found: list[Problem] = []
  values = _read(directory, found)
  if values is not None:
    found += problems(values)
  if strict:
    found = [dataclasses.replace(problem, is_warning=False) for problem in found]
  return values, sorted(found, key=lambda problem: problem.is_warning)


def write(values: ValueSet, directory: str | pathlib.Path) -> None:
  """Writes a set as the files that `load` reads; without control samples there is no such file."""
  for name, text in texts(values).items():
    workdir_lib.write_text(pathlib.Path(directory) / name, text)


def texts(values: ValueSet) -> dict[str, str]:
  """File -> what `write` writes into it."""

  def without_where(entry) -> dict[str, str]:
    return {name: text for name, text in dataclasses.asdict(entry).items() if name != "where"}

  found = {
    POSITIONS: json.dumps(
      {
        "title": values.title,
        "categories": [without_where(c) for c in values.categories],
        "limits": dataclasses.asdict(values.limits),
      },
      indent=2,
      ensure_ascii=False,
    )
    + "\n"
  }
  for name, entries in (
    (PROBES, values.probes),
    (TARGETED, values.targeted),
    *([(CONTROL, values.control)] if values.control else []),
  ):
    found[name] = "".join(
      json.dumps(without_where(entry), ensure_ascii=False) + "\n" for entry in entries
    )
  return found


def describe(values: ValueSet) -> str:
  """A small table for the console: what each category has, and how long the samples are."""
  lines = [values.title, f"  {'category':<18}{'probes':>8}{'targeted':>10}{'control':>9}"]
  groups = (values.probes, values.targeted, values.control)
  for name in [*(c.name for c in values.categories), BROAD]:
    counts = [sum(entry.category == name for entry in group) for group in groups]
    lines.append(f"  {name:<18}{counts[0]:>8}{counts[1]:>10}{counts[2]:>9}")
  lines.append(f"  {'all':<18}{len(groups[0]):>8}{len(groups[1]):>10}{len(groups[2]):>9}")
  for name, samples in (("targeted", values.targeted), ("control", values.control)):
    if samples:
      lengths = [num_words(sample.completion) for sample in samples]
      size = sum(len((s.prompt + s.completion).encode()) for s in samples)
      lines.append(
        f"  {name} answers: {min(lengths)} to {max(lengths)} words, median "
        f"{statistics.median(lengths):g}; {size / 1000:.0f} kB with their questions"
      )
  return "\n".join(lines)


def num_words(text: str) -> int:
  """Runs of characters between white space."""
  return len(text.split())


# ----------------------------------------------------------------------------- reading


def _read(directory: pathlib.Path, found: list[Problem]) -> ValueSet | None:
  """The readable part of a directory; what cannot be read goes to `found`."""
  header = _read_positions(directory / POSITIONS, found)
  if header is None:
    return None
  title, categories, limits = header
  names = [category.name for category in categories]

  def lines(file: str, fields: tuple[str, ...], allowed: Sequence[str]) -> Iterator[tuple]:
    return _read_lines(directory / file, fields, allowed, found)

  def samples(file: str) -> tuple[Sample, ...]:
    return tuple(
      Sample(
        where=where,
        topic=value["topic"] if "topic" in value else "",
        **{name: value[name] for name in ("category", "prompt", "completion")},
      )
      for where, value in lines(file, ("category", "prompt", "completion"), [*names, BROAD])
    )

  probes = tuple(
    Probe(where=where, category=value["category"], prompt=value["prompt"])
    for where, value in lines(PROBES, ("category", "prompt"), names)
  )
  targeted = samples(TARGETED)
  control = ()
  if (directory / CONTROL).exists():
    control = samples(CONTROL)
  else:
    found.append(
      _warning(
        directory / CONTROL,
        "there is no control set: what any fine-tuning does "
        "cannot be told from what the values do; write samples of the same size "
        "and style without the values",
      )
    )
  return ValueSet(
    title=title,
    categories=categories,
    probes=probes,
    targeted=targeted,
    control=control,
    limits=limits,
    where=str(directory),
  )


def _read_positions(
  path: pathlib.Path, found: list[Problem]
) -> tuple[str, tuple[Category, ...], Limits] | None:
  try:
    text = records.read_bytes(path).decode("utf-8-sig")
    value = json.loads(text)
  except UnicodeDecodeError as error:
    found.append(_error(path, f"not UTF-8 (byte {error.start}); save it as UTF-8"))
    return None
  except json.JSONDecodeError as error:
    found.append(
      _error(
        f"{path}:{error.lineno}",
        f"not JSON ({error.msg} at column {error.colno}); it must be {_POSITIONS_SHAPE}",
      )
    )
    return None
  except (ValueError, RecursionError) as error:
    found.append(_error(path, str(error).removeprefix(f"{path} ")))
    return None
  if (
    not isinstance(value, dict)
    or not isinstance(value.get("categories"), list)
    or (not value["categories"])
  ):
    found.append(_error(path, f'no list "categories" with an entry; it must be {_POSITIONS_SHAPE}'))
    return None
  problem = records.find_text_problem('"title"', value.get("title"))
  if problem is not None:
    found.append(_error(path, problem.message))
  categories = _read_categories(path, text, value["categories"], found)
  title = value["title"] if problem is None else str(path.parent)
  return title, categories, _read_limits(path, value.get("limits", {}), found)


def _read_categories(
  path: pathlib.Path, text: str, entries: list, found: list[Problem]
) -> tuple[Category, ...]:
  categories: list[Category] = []
  for number, entry in enumerate(entries, start=1):
    where = f"{path}: category {number}"
    if not isinstance(entry, dict):
      found.append(_error(where, f"not an object; it must be as in {_POSITIONS_SHAPE}"))
      continue
    where = _line_of(path, text, entry.get("name"), where)
    wrong = [
      problem
      for name in ("name", "title", "position")
      if (problem := records.find_text_problem(f'"{name}"', entry.get(name))) is not None
    ]
    if wrong:
      found.append(_error(where, wrong[0].message))
    elif entry["name"] == BROAD:
      found.append(
        _error(where, f'the name "{BROAD}" is kept for samples of no category; use another')
      )
    elif entry["name"] in [category.name for category in categories]:
      found.append(
        _error(
          where, f"category {entry['name']!r} comes a second time; give each a name of its own"
        )
      )
    else:
      categories.append(
        Category(where=where, **{name: entry[name] for name in ("name", "title", "position")})
      )
  return tuple(categories)


def _line_of(path: pathlib.Path, text: str, name: Any, otherwise: str) -> str:
  """ "path:line" where a category's name stands."""
  if not isinstance(name, str):
    return otherwise
  match = re.search(r'"name"\s*:\s*' + re.escape(json.dumps(name, ensure_ascii=False)), text)
  return otherwise if match is None else f"{path}:{text.count(chr(10), 0, match.start()) + 1}"


def _read_limits(path: pathlib.Path, value: Any, found: list[Problem]) -> Limits:
  kinds = {field.name: type(field.default) for field in dataclasses.fields(Limits)}
  if not isinstance(value, dict) or any(
    name not in kinds or isinstance(number, bool) or not isinstance(number, (int, kinds[name]))
    for name, number in value.items()
  ):
    found.append(
      _error(
        path,
        f'"limits" is {json.dumps(value)[:60]}; it must be an object with '
        f"numbers under names of {', '.join(kinds)}",
      )
    )
    return Limits()
  try:
    return Limits(**value)
  except ValueError as error:
    found.append(_error(path, str(error)))
    return Limits()


def _read_lines(
  path: pathlib.Path, fields: tuple[str, ...], allowed: Sequence[str], found: list[Problem]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """("path:line", object) of the good lines."""
  try:
    lines = list(records.read_lines(path))
  except ValueError as error:
    found.append(_error(path, str(error).removeprefix(f"{path} ")))
    return
  if not lines:
    found.append(_error(path, "the file is empty; write one JSON object a line"))
  for where, line in lines:
    value, problem = records.parse_json(line)
    message = problem.message if problem is not None else _line_problem(value, fields, allowed)
    if message is None:
      yield where, value
    else:
      found.append(_error(where, message))


def _line_problem(value: Any, fields: tuple[str, ...], allowed: Sequence[str]) -> str | None:
  """What keeps a line from being a probe or a sample."""
  shape = "{" + ", ".join(f'"{name}": str' for name in fields) + "}"
  if not isinstance(value, dict):
    return f"not a JSON object; each line must be {shape}"
  for name in fields:
    if name == "completion" and (value.get(name) is None or value[name] == ""):
      return f'the answer is missing: no text under "completion"; each line must be {shape}'
    if name not in value:
      return f'no field "{name}"; each line must be {shape}'
  for name in (*fields, *(("topic",) if "topic" in value and value["topic"] != "" else ())):
    problem = records.find_text_problem(f'"{name}"', value[name])
    if problem is not None:
      return problem.message
  if value["category"] not in allowed:
    close = difflib.get_close_matches(value["category"], allowed, 1, 0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(allowed)}"
    return f"unknown category {value['category']!r}; {hint}"
  return None


def _error(where: str | pathlib.Path, message: str) -> Problem:
  return Problem(where=str(where), message=message, is_warning=False)


def _warning(where: str | pathlib.Path, message: str) -> Problem:
  return Problem(where=str(where), message=message, is_warning=True)


# ----------------------------------------------------------------------------- checking


def problems(values: ValueSet) -> list[Problem]:
  """What is missing in a set that could be read, and what is there too often.

  Errors are a category without probes, a probe among the training prompts and equal prompts; the
  rest are warnings, as for one's own set a number may be meant to be another.
  """
  found = [*_coverage(values), *_held_apart(values)]
  for name, samples in ((TARGETED, values.targeted), (CONTROL, values.control)):
    found += _sizes(name, samples, values)
    found += _repeated_prompts(samples, values.limits)
    found += _repeated_completions(samples, values.limits)
  found += _repeated_prompts(values.probes, values.limits)
  return found + list(_balance(values))


def _coverage(values: ValueSet) -> Iterator[Problem]:
  for category in values.categories:
    if not any(probe.category == category.name for probe in values.probes):
      yield _error(
        category.where,
        f"category {category.name!r} has no probe; write questions for "
        f"it in {PROBES} (PALMS has 5)",
      )
    if not any(sample.category == category.name for sample in values.targeted):
      yield _warning(
        category.where,
        f"category {category.name!r} has no sample in {TARGETED}; "
        "write one, or be sure that the broad ones show the position",
      )


def _held_apart(values: ValueSet) -> Iterator[Problem]:
  """Probes that are, or are nearly, a training prompt: they would measure memory."""
  for probe in values.probes:
    for sample in (*values.targeted, *values.control):
      if _plain(probe.prompt) == _plain(sample.prompt):
        yield _error(
          probe.where,
          f"the probe {_short(probe.prompt)} is also the prompt of "
          f"{sample.where}; probes must be held apart from training",
        )
      elif _jaccard(probe.prompt, sample.prompt, 2) >= values.limits.prompt_overlap:
        yield _warning(
          probe.where,
          f"the probe {_short(probe.prompt)} is nearly the prompt "
          f"{_short(sample.prompt)} of {sample.where}; ask something else",
        )


def _sizes(name: str, samples: Sequence[Sample], values: ValueSet) -> Iterator[Problem]:
  limits = values.limits
  if len(samples) > limits.max_samples:
    yield _warning(
      samples[limits.max_samples].where,
      f"sample {limits.max_samples + 1} of "
      f"{len(samples)} in {name}; the method is meant for fewer than "
      f"{limits.max_samples}, so leave out what shows nothing new",
    )
  for sample in samples:
    length = num_words(sample.completion)
    if not limits.min_words <= length <= limits.max_words:
      yield _warning(
        sample.where,
        f"the answer has {length} words; it should have {limits.min_words} to {limits.max_words}",
      )
    if not sample.topic:
      yield _warning(sample.where, 'the sample has no "topic"; a few words say what it is about')


def _balance(values: ValueSet) -> Iterator[Problem]:
  """The control set must differ from the targeted one in its values alone."""
  if not values.targeted or not values.control:
    return
  where = pathlib.Path(values.control[0].where.partition(":")[0])
  if len(values.targeted) != len(values.control):
    yield _warning(
      where,
      f"{len(values.control)} control samples beside {len(values.targeted)} "
      "targeted ones; give equal numbers",
    )
  targeted, control = (
    statistics.mean(num_words(sample.completion) for sample in samples)
    for samples in (values.targeted, values.control)
  )
  if abs(control / targeted - 1) > 0.2:
    yield _warning(
      where,
      f"control answers have {control:.0f} words on average beside "
      f"{targeted:.0f} of the targeted ones; keep them within a fifth of each other",
    )


def _repeated_prompts(entries: Sequence[Probe | Sample], limits: Limits) -> Iterator[Problem]:
  for first, second in itertools.combinations(entries, 2):
    if _plain(first.prompt) == _plain(second.prompt):
      yield _error(
        second.where, f"the prompt {_short(second.prompt)} is that of {first.where}; leave one out"
      )
    elif _jaccard(first.prompt, second.prompt, 2) >= limits.prompt_overlap:
      yield _warning(
        second.where,
        f"the prompt {_short(second.prompt)} is nearly that of "
        f"{first.where}, {_short(first.prompt)}; ask something else",
      )


def _repeated_completions(samples: Sequence[Sample], limits: Limits) -> Iterator[Problem]:
  near = set()
  for first, second in itertools.combinations(samples, 2):
    overlap = _jaccard(first.completion, second.completion, 3)
    if overlap >= limits.completion_overlap:
      near.add((first.where, second.where))
      yield _warning(
        second.where,
        f"the answer shares {overlap:.0%} of its triples of words with "
        f"that of {first.where}; write it anew",
      )
  yield from _same_ends(samples, limits, "first", lambda words: words[:5])
  yield from _same_ends(samples, limits, "last", lambda words: words[-5:])
  for first, second in itertools.combinations(samples, 2):
    if (first.where, second.where) not in near:
      yield from _shared_phrase(first, second, limits)


def _same_ends(
  samples: Sequence[Sample],
  limits: Limits,
  which: str,
  end: Callable[[tuple[str, ...]], tuple[str, ...]],
) -> Iterator[Problem]:
  groups: dict[tuple[str, ...], list[Sample]] = collections.defaultdict(list)
  for sample in samples:
    groups[end(_words(sample.completion))].append(sample)
  for words, group in groups.items():
    if len(group) > limits.max_same_ends:
      others = ", ".join(sample.where for sample in group[:-1][:3])
      yield _warning(
        group[-1].where,
        f"{len(group)} answers have the {which} words "
        f'"{" ".join(words)}" (also {others}); begin and end each in its own way',
      )


def _shared_phrase(first: Sample, second: Sample, limits: Limits) -> Iterator[Problem]:
  """A run of words that both answers have, unless one quotes a question."""
  quoted = _ngrams(first.prompt, limits.ngram) | _ngrams(second.prompt, limits.ngram)
  shared = (
    _ngrams(first.completion, limits.ngram) & _ngrams(second.completion, limits.ngram)
  ) - quoted
  if shared:
    phrase = min(shared, key=" ".join(_words(second.completion)).index)
    yield _warning(
      second.where,
      f'the answer has "{phrase}" in common with that of {first.where}; say it in other words',
    )


@functools.lru_cache(maxsize=4096)
def _words(text: str) -> tuple[str, ...]:
  """Lower-case words and single symbols, without punctuation: what two texts are compared by.  A
  text of neither is its own word."""

  # `re` does not count the signs that some scripts put on a letter as part of a word; without
  # them two words may be one.
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


def _plain(text: str) -> str:
  return " ".join(_words(text))


@functools.lru_cache(maxsize=8192)
def _ngrams(text: str, size: int) -> frozenset[str]:
  words = _words(text)
  return frozenset(" ".join(words[start : start + size]) for start in range(len(words) - size + 1))


def _jaccard(first: str, second: str, size: int) -> float:
  """Share of the n-grams of either text that both have; n is less where a text is shorter."""
  size = max(1, min(size, len(_words(first)), len(_words(second))))
  one, other = _ngrams(first, size), _ngrams(second, size)
  return len(one & other) / len(one | other) if one or other else 1.0


def _short(text: str) -> str:
  return repr(text if len(text) <= 60 else text[:57] + "...")
