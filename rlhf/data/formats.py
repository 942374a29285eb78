"""Files as their authors published them -> records.

A data field names a file as

    FORMAT[,OPTION=VALUE...]:PATH      jsonl:mine.jsonl      text,document_split=line:corpus.txt.gz

Files may be plain or end in .gz, and are read line by line; only a file that is one JSON list is
parsed as a whole.  A reader yields ("path:line", value) where the value is a record, a
`records.Problem` (a malformed line: it stops the run unless the user asks to skip it) or a
`records.Flaw` (known of that data set: always counted, never fatal).
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from rlhf import checks
from rlhf.data import records
from rlhf.data.records import Flaw, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormatOptions:
  """Options of the formats, as in `text,document_split=line:PATH`.

  Attributes:
    document_split: "text" only, where a document ends: "blank_line", "line", "file", or
      "end_of_text" for files with a line "<|endoftext|>" after each document, such as TinyStories.
    min_completions, max_completions: "alpaca_eval" only, K is drawn uniformly from this range;
      4 to 9 as in InstructGPT section 3.5.
    seed: "alpaca_eval" only, of that draw.
  """

  document_split: str = "blank_line"
  min_completions: int = 4
  max_completions: int = 9
  seed: int = 0

  def __post_init__(self):
    checks.choices("", self, document_split=DOCUMENT_SPLITS)
    if not 2 <= self.min_completions <= self.max_completions:
      raise ValueError(
        f"completions per comparison from {self.min_completions} to "
        f"{self.max_completions}; give 2 <= min_completions <= max_completions"
      )


# format -> its options
OPTIONS = {
  "text": ("document_split",),
  "alpaca_eval": ("min_completions", "max_completions", "seed"),
}

Reader = Callable[[pathlib.Path, FormatOptions], Iterator[tuple[str, Any]]]


def parse_spec(spec: str) -> tuple[str, str, FormatOptions] | None:
  """(format, path, options) of `FORMAT[,OPTION=VALUE...]:PATH`; None if no format is named.

  Raises ValueError for an option that the format does not have, or a bad value.
  """
  head, colon, path = spec.partition(":")
  format_name, *choices = head.split(",")
  if not colon or format_name not in FORMATS:
    return None
  allowed = OPTIONS[format_name] if format_name in OPTIONS else ()
  options: dict[str, Any] = {}
  for choice in choices:
    name, _, value = choice.partition("=")
    if name not in allowed:
      raise ValueError(
        f"{spec}: format {format_name} has no option {name!r}; "
        f"its options: {', '.join(allowed) or 'none'}"
      )
    is_text = name == "document_split"
    if not is_text and not value.isdecimal():
      raise ValueError(f"{spec}: {name} is {value!r}; give a whole number")
    options[name] = value if is_text else int(value)
  try:
    return format_name, path, FormatOptions(**options)
  except ValueError as error:
    raise ValueError(f"{spec}: {error}") from None


def read(
  kind: str,
  path: str | pathlib.Path,
  format_name: str,
  *,
  on_bad: str = "stop",
  options: FormatOptions | None = None,
) -> tuple[list[dict], Counter[str]]:
  """All records of a file as (records, counts); see `iterate`."""
  counts: Counter[str] = Counter()
  return list(iterate(kind, path, format_name, counts, on_bad=on_bad, options=options)), counts


def iterate(
  kind: str,
  path: str | pathlib.Path,
  format_name: str,
  counts: Counter[str],
  *,
  on_bad: str = "stop",
  options: FormatOptions | None = None,
) -> Iterator[dict]:
  """The records of `kind` in a file, one at a time.

  Args:
    kind: a key of `records.FIELDS`.
    path: the file; for "text" also a directory of .txt and .txt.gz files.
    format_name: a key of `FORMATS`.
    counts: empty; gets "kept" and what was dropped or skipped, by reason.
    on_bad: what to do at a malformed line: "stop" raises, "skip" counts it and goes on.
    options: of the format; None takes the defaults.

  Raises:
    ValueError: a malformed line ("path:line: what was found; what would be right"), a file that
      cannot be read or holds no record, a kind that the format does not have, or a name that is
      not one of the choices.
  """
  if on_bad not in ("stop", "skip"):
    raise ValueError(f"on_bad {on_bad!r}; choose from ['skip', 'stop']")
  reader = choose_reader(kind, format_name)
  counts["kept"] = 0
  for where, value in reader(pathlib.Path(path), FormatOptions() if options is None else options):
    try:
      if isinstance(value, Problem):
        raise value
      records.check_record(kind, value)
    except Problem as problem:
      is_flaw = isinstance(problem, Flaw)
      if on_bad == "stop" and not is_flaw:
        raise ValueError(f"{where}: {problem}") from None
      counts[f"{'dropped' if is_flaw else 'skipped'} ({problem.reason})"] += 1
    else:
      counts["kept"] += 1
      yield value
  if not counts["kept"]:
    raise ValueError(
      f"{path} gave no {kind} ({records.describe_counts(format_name, counts)}); "
      "give a file that holds at least one"
    )


def choose_reader(kind: str, format_name: str) -> Reader:
  """The reader of a format for a kind; ValueError says the choices."""
  records.check_kind(kind)
  if format_name not in FORMATS:
    raise ValueError(f"format {format_name!r}; choose from {sorted(FORMATS)}")
  readers = FORMATS[format_name]
  if kind not in readers:
    raise ValueError(
      f"format {format_name!r} holds no {kind} records, only {sorted(readers)}; "
      f"formats for {kind}: {formats_of(kind)}"
    )
  return readers[kind]


def formats_of(kind: str) -> list[str]:
  """The formats that hold records of a kind."""
  return sorted(name for name in FORMATS if kind in FORMATS[name])


# ---- jsonl: the documented records, one object a line ----------------------------------------


def _read_jsonl(path: pathlib.Path, _options: FormatOptions) -> Iterator[tuple[str, Any]]:
  for where, line in records.read_lines(path):
    try:
      yield where, records.parse_json(line)
    except Problem as problem:
      yield where, problem


# ---- objects with other fields, converted one by one ---------------------------------------------

# (kind, object, options) -> what it holds, for any kind; raises `Problem` and `Flaw`
Converter = Callable[[str, dict, FormatOptions], dict[str, Any]]


def _readers(convert: Converter, fields: tuple[str, ...], *kinds: str) -> dict[str, Reader]:
  """Readers of objects that all have `fields`, which are strings."""

  def read(kind: str, path: pathlib.Path, options: FormatOptions) -> Iterator[tuple[str, Any]]:
    others = {field for names in records.FIELDS.values() for field in names}
    others -= set(records.FIELDS[kind])
    for where, value in _read_objects(path, options):
      try:
        if isinstance(value, Problem):
          raise value
        _check_fields(value, fields)
        found = convert(kind, value, options)
        yield where, {name: found[name] for name in found if name not in others}
      except Problem as problem:
        yield where, problem

  return {kind: functools.partial(read, kind) for kind in kinds}


def _read_objects(path: pathlib.Path, options: FormatOptions) -> Iterator[tuple[str, Any]]:
  """Objects of a JSONL file, or of a file that is one JSON list."""
  _, first_line = next(records.read_lines(path), ("", b""))
  if not first_line.lstrip().startswith(b"["):
    yield from _read_jsonl(path, options)
    return
  try:
    values = records.parse_json(records.read_bytes(path))
  except Problem as problem:
    raise ValueError(
      f"{path} starts like a JSON list but is {str(problem).split(';')[0]}; "
      "it must be one list of objects, or one object a line"
    ) from None
  for number, value in enumerate(values, start=1):
    yield f"{path}: item {number}", value


def _check_fields(value: Any, fields: tuple[str, ...], name: str = "") -> None:
  """Raises the `Problem` of a value that is no object with these fields, all of them strings."""
  needs = f"it must be an object with the fields {', '.join(fields)}"
  if not isinstance(value, dict):
    raise Problem("not an object", f"{name}not a JSON object; {needs}")
  for field in fields:
    if field not in value:
      raise Problem("missing field", f'{name}no field "{field}"; {needs}')
    if not isinstance(value[field], str):
      raise Problem("wrong type", f'{name}"{field}" is not a string; it must be one')


def _check_texts(what: str, texts: Iterable[str]) -> None:
  """Raises the `Flaw` of a text with nothing in it."""
  if not all(text.strip() for text in texts):
    raise Flaw(f"empty {what}")


# ---- text: plain text files --------------------------------------------------------------------

_WRITTEN_EOT = "<|endoftext|>"


def _split_at_blank_lines(lines: Iterator[str]) -> Iterator[str]:
  """Also drops the white space before a document's first line."""
  document: list[str] = []
  is_between = False
  for line in lines:
    if is_between:
      line = line.lstrip()
      if line:
        document, is_between = [line], False
    elif document and line.isspace() and line.endswith("\n"):
      yield "".join(document)
      is_between = True
    else:
      document.append(line)
  if not is_between:
    yield "".join(document)


def _split_at_end_of_text(lines: Iterator[str]) -> Iterator[str]:
  for is_end, document in itertools.groupby(lines, lambda line: line.strip() == _WRITTEN_EOT):
    if not is_end:
      yield "".join(document)


DOCUMENT_SPLITS: dict[str, Callable[[Iterator[str]], Iterator[str]]] = {
  "blank_line": _split_at_blank_lines,
  "line": lambda lines: lines,
  "file": lambda lines: iter(["".join(lines)]),
  "end_of_text": _split_at_end_of_text,
}


def _read_text(path: pathlib.Path, options: FormatOptions) -> Iterator[tuple[str, Any]]:
  for file in list_text_files(path) if path.is_dir() else [path]:
    documents = DOCUMENT_SPLITS[options.document_split](_read_text_lines(file))
    for number, document in enumerate(documents, start=1):
      if document.strip():
        yield f"{file}: document {number}", {"text": document.strip("\n")}


def _read_text_lines(path: pathlib.Path) -> Iterator[str]:
  """Lines with their "\n"."""
  num_bytes = 0
  with records.open_file(path) as file:
    for line in file:
      try:
        text = line.decode("utf-8" if num_bytes else "utf-8-sig")
      except UnicodeDecodeError as error:
        raise ValueError(
          f"{path} is not UTF-8 at byte {num_bytes + error.start}; convert it to UTF-8"
        ) from error
      num_bytes += len(line)
      yield text[:-2] + "\n" if text.endswith("\r\n") else text


def list_text_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The .txt and .txt.gz files of a directory, by name."""
  files = sorted(f for f in directory.iterdir() if f.name.endswith((".txt", ".txt.gz")))
  if not files:
    raise ValueError(f"{directory} holds no .txt or .txt.gz file; name a directory that does")
  return files


# ---- hh: Anthropic's pairs of dialogues (Bai et al. 2022, arXiv:2204.05862) ---------------------

_ASSISTANT = "\n\nAssistant:"


def _split_dialogue(dialogue: str) -> tuple[str, str]:
  """(prompt, last reply).

  The prompt ends before the last "Assistant:", so that `prompt_suffix` "\n\nAssistant:" gives the
  dialogue back.
  """
  prompt, assistant, reply = dialogue.rpartition(_ASSISTANT)
  if not assistant:
    raise Problem(
      "no reply", 'a dialogue without "\\n\\nAssistant:"; it must hold the reply after one'
    )
  return prompt.strip("\n"), reply.strip()


def _convert_hh(kind: str, value: dict, _options: FormatOptions) -> dict[str, Any]:
  prompt, chosen = _split_dialogue(value["chosen"])
  other_prompt, rejected = _split_dialogue(value["rejected"])
  _check_texts("prompt", [prompt])
  replies = {"prompt": [], "demonstration": [chosen], "comparison": [chosen, rejected]}[kind]
  _check_texts("reply", replies)
  if kind == "comparison" and prompt != other_prompt:
    raise Flaw("replies to different prompts")
  return {"prompt": prompt, "completion": chosen, "completions": replies, "ranks": [1, 2]}


# ---- alpaca: instruction, input, output --------------------------------------------------------


def _alpaca_prompt(value: dict) -> str:
  """The instruction, and the input below it where there is one."""
  extra = value["input"] if "input" in value else ""
  if not isinstance(extra, str):
    raise Problem(
      "wrong type", '"input" is not a string; it must be one, empty where there is none'
    )
  prompt = f"{value['instruction']}\n\n{extra}" if extra.strip() else value["instruction"]
  _check_texts("instruction", [prompt])
  return prompt


def _convert_alpaca(kind: str, value: dict, _options: FormatOptions) -> dict[str, Any]:
  fields = {"prompt": (), "demonstration": ("output",), "comparison": ("chosen", "rejected")}[kind]
  if "output" not in value and "response" in value:  # GPTeacher's name for it
    value = dict(value, output=value["response"])
  _check_fields(value, fields)
  prompt = _alpaca_prompt(value)
  completions = [value[field] for field in fields]
  _check_texts("output", completions)
  completion = "".join(completions[:1])
  return {"prompt": prompt, "completion": completion, "completions": completions, "ranks": [1, 2]}


# ---- t0: P3 templates, completions that end in a literal end-of-text ---------------------------


def _convert_t0(kind: str, value: dict, _options: FormatOptions) -> dict[str, Any]:
  prompt = value["prompt"].strip()
  completion = value["completion"].removesuffix(_WRITTEN_EOT).strip()
  _check_texts("prompt", [prompt])
  if kind == "demonstration":
    _check_texts("completion", [completion])
  return {"prompt": prompt, "completion": completion}


# ---- alpaca_eval: many models' outputs, each with a preference against one reference -----------


def _draw_comparison(prompt: str, candidates: list[dict], options: FormatOptions) -> dict:
  """K of the candidates, K and which drawn from (seed, prompt) alone; ranked by preference."""
  digest = hashlib.sha256(f"{options.seed}\n{prompt}".encode()).digest()
  rng = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
  num = int(rng.integers(options.min_completions, options.max_completions + 1))
  drawn = rng.permutation(len(candidates))[:num]
  preferences = [float(candidates[i]["pref_vs_ref"]) for i in drawn]
  levels = sorted(set(preferences), reverse=True)
  return {
    "prompt": prompt,
    "completions": [candidates[i]["output"] for i in drawn],
    "ranks": [levels.index(p) + 1 for p in preferences],
  }


def _convert_alpaca_eval(kind: str, value: dict, options: FormatOptions) -> dict[str, Any]:
  prompt = value["instruction"]
  _check_texts("instruction", [prompt])
  if kind == "prompt":
    return {"prompt": prompt}
  needs = "it must list the models' outputs"
  if "candidates" not in value:
    raise Problem("missing field", f'no field "candidates"; {needs}')
  if not isinstance(value["candidates"], list):
    raise Problem("wrong type", f'"candidates" is not a list; {needs}')
  for index, candidate in enumerate(value["candidates"]):
    name = f"candidates[{index}]: "
    _check_fields(candidate, ("output",), name)
    preference = candidate.get("pref_vs_ref")
    if not isinstance(preference, (int, float)) or not 0 <= preference <= 1:
      found = f'{name}"pref_vs_ref" is {json.dumps(preference)[:40]}'
      raise Problem("preference", f"{found}; it must be a number from 0 to 1")
  candidates = [c for c in value["candidates"] if c["output"].strip()]
  if len(candidates) < options.min_completions:
    raise Flaw(f"fewer than {options.min_completions} outputs")
  return _draw_comparison(prompt, candidates, options)


# ---- pandalm: pairs with the votes of three people (Wang et al. 2023, arXiv:2306.05087) ---------


def _check_choice(value: dict, field: str, allowed: tuple[int, ...], what: str, needs: str) -> int:
  """A person's judgement of a pair, 1 or 2 for the better one."""
  choice = value.get(field)
  if type(choice) is not int or choice not in allowed:
    found = f'"{field}" is {json.dumps(choice)[:40]}'
    raise Problem(what, f"{found}; it must be 1 or 2 for the better {needs}")
  return choice


def _convert_pandalm(kind: str, value: dict, _options: FormatOptions) -> dict[str, Any]:
  """Ranks by the majority; a tie where most say so, or all three differ."""
  prompt = _alpaca_prompt(value)
  if kind == "prompt":
    return {"prompt": prompt}
  names = ("response1", "response2")
  # The published file holds the responses "True" and "False" as JSON's own true and false.
  responses = {name: value[name] for name in names if name in value}
  responses = {name: str(r) if isinstance(r, bool) else r for name, r in responses.items()}
  _check_fields(responses, names)
  votes = [
    _check_choice(value, f"annotator{i}", (0, 1, 2), "vote", "response, or 0 for a tie")
    for i in (1, 2, 3)
  ]
  completions = [responses[name] for name in names]
  _check_texts("response", completions)
  ranks = [1 + (votes.count(2) > 1), 1 + (votes.count(1) > 1)]
  return {"prompt": prompt, "completions": completions, "ranks": ranks, "votes": votes}


# ---- llmbar: pairs of which one is better beyond doubt (Zeng et al. 2023, arXiv:2310.07641) -----


def _convert_llmbar(kind: str, value: dict, _options: FormatOptions) -> dict[str, Any]:
  _check_texts("instruction", [value["input"]])
  if kind == "prompt":
    return {"prompt": value["input"]}
  _check_fields(value, ("input", "output_1", "output_2"))
  label = _check_choice(value, "label", (1, 2), "label", "output")
  completions = [value["output_1"], value["output_2"]]
  _check_texts("output", completions)
  return {"prompt": value["input"], "completions": completions, "ranks": [label, 3 - label]}


_PAIRS = ("comparison", "prompt")

# format -> kind -> reader(path, options)
FORMATS: dict[str, dict[str, Reader]] = {
  "jsonl": {kind: _read_jsonl for kind in records.FIELDS},
  "text": {"text": _read_text},
  "hh": _readers(_convert_hh, ("chosen", "rejected"), *_PAIRS, "demonstration"),
  "alpaca": _readers(_convert_alpaca, ("instruction",), *_PAIRS, "demonstration"),
  "t0": _readers(_convert_t0, ("prompt", "completion"), "prompt", "demonstration"),
  "alpaca_eval": _readers(_convert_alpaca_eval, ("instruction",), *_PAIRS),
  "pandalm": _readers(_convert_pandalm, ("instruction",), *_PAIRS),
  "llmbar": _readers(_convert_llmbar, ("input",), *_PAIRS),
}
