"""Files as their authors published them -> records.

Each reader yields `records.Item`s: a record, or a problem (a malformed line, which stops the run
unless the user asks to skip), or a known flaw of that data set (always counted, never fatal).
Files may be plain or end in .gz.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from rlhf.data import records
from rlhf.data.records import Item, Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class FormatOptions:
  """Named choices of the readers.

  Attributes:
    document_split: "text" only, where a document ends: "blank_line", "line" or "file".
    min_completions, max_completions: "alpaca_eval" only, K is drawn uniformly from this range;
      4 to 9 as in InstructGPT section 3.5.
    seed: "alpaca_eval" only, of that draw.
  """

  document_split: str = "blank_line"
  min_completions: int = 4
  max_completions: int = 9
  seed: int = 0

  def __post_init__(self):
    if self.document_split not in DOCUMENT_SPLITS:
      raise ValueError(
        f"document_split {self.document_split!r}; choose from {sorted(DOCUMENT_SPLITS)}"
      )
    if not 2 <= self.min_completions <= self.max_completions:
      raise ValueError(
        f"completions per comparison from {self.min_completions} to "
        f"{self.max_completions}; give 2 <= min_completions <= max_completions"
      )


def read(
  kind: str,
  path: str | pathlib.Path,
  format_name: str,
  *,
  on_bad: str = "stop",
  options: FormatOptions | None = None,
) -> tuple[list[dict], dict[str, int]]:
  """All records of `kind` in a file.

  Args:
    kind: a key of `records.KINDS`.
    path: the file; for "text" also a directory of .txt and .txt.gz files.
    format_name: a key of `FORMATS`.
    on_bad: what to do at a malformed line: "stop" raises, "skip" counts it and goes on.
    options: of the format; None takes the defaults.

  Returns:
    (records, counts): counts has "kept", then what was dropped or skipped, by reason.

  Raises:
    ValueError: a malformed line ("path:line: what was found; what would be right"), a file that
      cannot be read or holds no record, a kind that the format does not have, or a name that is
      not one of the choices.
  """
  if on_bad not in ("stop", "skip"):
    raise ValueError(f"on_bad {on_bad!r}; choose from ['skip', 'stop']")
  reader = choose_reader(kind, format_name)
  kept, counts = [], {"kept": 0}
  for item in reader(pathlib.Path(path), options if options is not None else FormatOptions()):
    problem = item.problem
    if problem is None and item.dropped is None:
      problem = records.find_problem(kind, item.record)
    if problem is not None:
      if on_bad == "stop":
        raise ValueError(f"{item.where}: {problem.message}")
      _count(counts, f"skipped ({problem.reason})")
    elif item.dropped is not None:
      _count(counts, f"dropped ({item.dropped})")
    else:
      kept.append(item.record)
  counts["kept"] = len(kept)
  if not kept:
    raise ValueError(
      f"{path} gave no {kind} ({records.describe_counts(format_name, counts)}); "
      "give a file that holds at least one"
    )
  return kept, counts


def choose_reader(kind: str, format_name: str) -> Callable:
  """The reader of a format for a kind; ValueError says the choices."""
  records.check_kind(kind)
  if format_name not in FORMATS:
    raise ValueError(f"format {format_name!r}; choose from {sorted(FORMATS)}")
  readers = FORMATS[format_name]
  if kind not in readers:
    raise ValueError(
      f"format {format_name!r} holds no {kind} records, only {sorted(readers)}; "
      f"formats for {kind}: {sorted(f for f in FORMATS if kind in FORMATS[f])}"
    )
  return readers[kind]


def _count(counts: dict[str, int], name: str) -> None:
  counts[name] = counts.get(name, 0) + 1


# ---- jsonl: the documented records, one object a line ----------------------------------------


def _read_jsonl(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
  del options
  yield from _read_json_lines(path)


def _read_json_lines(path: pathlib.Path) -> Iterator[Item]:
  for where, line in records.read_lines(path):
    value, problem = records.parse_json(line)
    yield Item(where=where, record=value, problem=problem)


def _read_objects(path: pathlib.Path) -> Iterator[Item]:
  """Objects of a JSONL file, or of a file that is one JSON list."""
  raw = records.read_bytes(path)
  if not raw.lstrip().startswith(b"["):
    yield from _read_json_lines(path)
    return
  values, problem = records.parse_json(raw)
  if problem is not None:
    raise ValueError(
      f"{path} starts like a JSON list but is {problem.message.split(';')[0]}; "
      "it must be one list of objects, or one object a line"
    )
  for number, value in enumerate(values, start=1):
    yield Item(where=f"{path}: item {number}", record=value)


def _convert(
  path: pathlib.Path, convert: Callable[[str, dict], Item], fields: tuple[str, ...]
) -> Iterator[Item]:
  """Applies `convert` to every object that has `fields`, all strings."""
  for item in _read_objects(path):
    problem = item.problem
    if problem is None:
      problem = _find_field_problem(item.record, fields)
    if problem is not None:
      yield Item(where=item.where, problem=problem)
    else:
      yield convert(item.where, item.record)


def _find_field_problem(value: object, fields: tuple[str, ...]) -> Problem | None:
  needs = f"it must be an object with the fields {', '.join(fields)}"
  if not isinstance(value, dict):
    return Problem("not an object", f"not a JSON object; {needs}")
  for field in fields:
    if field not in value:
      return Problem("missing field", f'no field "{field}"; {needs}')
    if not isinstance(value[field], str):
      return Problem("wrong type", f'"{field}" is not a string; it must be one')
  return None


# ---- text: plain text files --------------------------------------------------------------------

DOCUMENT_SPLITS = {
  "blank_line": lambda text: re.split(r"\n[^\S\n]*\n\s*", text),
  "line": lambda text: text.split("\n"),
  "file": lambda text: [text],
}


def _read_text(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
  files = [path]
  if path.is_dir():
    files = list_text_files(path)
  for file in files:
    try:
      text = records.read_bytes(file).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
      raise ValueError(f"{file} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
    documents = DOCUMENT_SPLITS[options.document_split](text)
    for number, document in enumerate(documents, start=1):
      if document.strip():
        yield Item(where=f"{file}: document {number}", record={"text": document.strip("\n")})


def list_text_files(directory: pathlib.Path) -> list[pathlib.Path]:
  """The .txt and .txt.gz files of a directory, by name."""
  files = sorted(f for f in directory.iterdir() if f.name.endswith((".txt", ".txt.gz")))
  if not files:
    raise ValueError(f"{directory} holds no .txt or .txt.gz file; name a directory that does")
  return files


# ---- hh: Anthropic's pairs of dialogues (Bai et al. 2022, arXiv:2204.05862) ---------------------

_ASSISTANT = "\n\nAssistant:"


def _split_dialogue(dialogue: str) -> tuple[str, str] | None:
  """(prompt, last reply), or None without a reply.

  The prompt ends before the last "Assistant:", so that `prompt_suffix` "\n\nAssistant:" gives the
  dialogue back.
  """
  start = dialogue.rfind(_ASSISTANT)
  if start < 0:
    return None
  return dialogue[:start].strip("\n"), dialogue[start + len(_ASSISTANT) :].strip()


def _convert_hh(kind: str) -> Callable[[str, dict], Item]:
  def convert(where: str, value: dict) -> Item:
    chosen, rejected = _split_dialogue(value["chosen"]), _split_dialogue(value["rejected"])
    if chosen is None or rejected is None:
      return Item(
        where=where,
        problem=Problem(
          "no reply", 'a dialogue without "\\n\\nAssistant:"; it must hold the reply after one'
        ),
      )
    if not chosen[0].strip():
      return Item(where=where, dropped="empty prompt")
    if kind == "prompt":
      return Item(where=where, record={"prompt": chosen[0]})
    if not chosen[1] or (kind == "comparison" and not rejected[1]):
      return Item(where=where, dropped="empty reply")
    if kind == "demonstration":
      return Item(where=where, record={"prompt": chosen[0], "completion": chosen[1]})
    if chosen[0] != rejected[0]:
      return Item(where=where, dropped="replies to different prompts")
    return Item(
      where=where,
      record={"prompt": chosen[0], "completions": [chosen[1], rejected[1]], "ranks": [1, 2]},
    )

  return convert


def _read_hh(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    del options
    return _convert(path, _convert_hh(kind), ("chosen", "rejected"))

  return reader


# ---- alpaca: instruction, input, output --------------------------------------------------------


def _alpaca_prompt(value: dict) -> str | None:
  """The instruction, and the input below it where there is one; None if the input is no text."""
  extra = value["input"] if "input" in value else ""
  if not isinstance(extra, str):
    return None
  return f"{value['instruction']}\n\n{extra}" if extra.strip() else value["instruction"]


def _convert_alpaca(kind: str) -> Callable[[str, dict], Item]:
  completion_fields = {
    "prompt": (),
    "demonstration": ("output",),
    "comparison": ("chosen", "rejected"),
  }[kind]

  def convert(where: str, value: dict) -> Item:
    if "output" not in value and "response" in value:  # GPTeacher's name for it
      value = dict(value, output=value["response"])
    problem = _find_field_problem(value, completion_fields)
    if problem is not None:
      return Item(where=where, problem=problem)
    prompt = _alpaca_prompt(value)
    if prompt is None:
      return Item(
        where=where,
        problem=Problem(
          "wrong type", '"input" is not a string; it must be one, empty where there is none'
        ),
      )
    if not prompt.strip():
      return Item(where=where, dropped="empty instruction")
    completions = [value[field] for field in completion_fields]
    if not all(completion.strip() for completion in completions):
      return Item(where=where, dropped="empty output")
    record = {"prompt": prompt}
    if kind == "demonstration":
      record["completion"] = completions[0]
    if kind == "comparison":
      record.update(completions=completions, ranks=[1, 2])
    return Item(where=where, record=record)

  return convert


def _read_alpaca(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    del options
    return _convert(path, _convert_alpaca(kind), ("instruction",))

  return reader


# ---- t0: P3 templates, completions that end in a literal end-of-text ---------------------------

_WRITTEN_EOT = "<|endoftext|>"


def _convert_t0(kind: str) -> Callable[[str, dict], Item]:
  def convert(where: str, value: dict) -> Item:
    if not value["prompt"].strip():
      return Item(where=where, dropped="empty prompt")
    record = {"prompt": value["prompt"].strip()}
    if kind == "demonstration":
      record["completion"] = value["completion"].removesuffix(_WRITTEN_EOT).strip()
      if not record["completion"]:
        return Item(where=where, dropped="empty completion")
    return Item(where=where, record=record)

  return convert


def _read_t0(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    del options
    return _convert(path, _convert_t0(kind), ("prompt", "completion"))

  return reader


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


def _find_candidates_problem(value: dict) -> Problem | None:
  if "candidates" not in value:
    return Problem("missing field", 'no field "candidates"; it must list the models\' outputs')
  if not isinstance(value["candidates"], list):
    return Problem("wrong type", '"candidates" is not a list; it must list the models\' outputs')
  for index, candidate in enumerate(value["candidates"]):
    name = f"candidates[{index}]"
    problem = _find_field_problem(candidate, ("output",))
    if problem is not None:
      return Problem(problem.reason, f"{name}: {problem.message}")
    preference = candidate["pref_vs_ref"] if "pref_vs_ref" in candidate else None
    if not isinstance(preference, (int, float)) or not 0 <= preference <= 1:
      return Problem(
        "preference",
        f'{name}: "pref_vs_ref" is {json.dumps(preference)[:40]}; it must be a number from 0 to 1',
      )
  return None


def _convert_alpaca_eval(kind: str, options: FormatOptions) -> Callable[[str, dict], Item]:
  def convert(where: str, value: dict) -> Item:
    if not value["instruction"].strip():
      return Item(where=where, dropped="empty instruction")
    if kind == "prompt":
      return Item(where=where, record={"prompt": value["instruction"]})
    problem = _find_candidates_problem(value)
    if problem is not None:
      return Item(where=where, problem=problem)
    candidates = [c for c in value["candidates"] if c["output"].strip()]
    if len(candidates) < options.min_completions:
      return Item(where=where, dropped=f"fewer than {options.min_completions} outputs")
    return Item(where=where, record=_draw_comparison(value["instruction"], candidates, options))

  return convert


def _read_alpaca_eval(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    return _convert(path, _convert_alpaca_eval(kind, options), ("instruction",))

  return reader


# ---- pandalm: pairs with the votes of three people (Wang et al. 2023, arXiv:2306.05087) ---------

_RESPONSES = ("response1", "response2")
_ANNOTATORS = ("annotator1", "annotator2", "annotator3")


def _majority_ranks(votes: list[int]) -> list[int]:
  """Ranks of two answers by the majority; a tie where most say so, or all three differ."""
  for vote, ranks in ((1, [1, 2]), (2, [2, 1])):
    if votes.count(vote) > len(votes) / 2:
      return ranks
  return [1, 1]


def _pandalm_response(value: object) -> object:
  """The published file holds the answers "True" and "False" as JSON's own true and false."""
  return str(value) if isinstance(value, bool) else value


def _convert_pandalm(kind: str) -> Callable[[str, dict], Item]:
  def convert(where: str, value: dict) -> Item:
    prompt = _alpaca_prompt(value)
    if prompt is None:
      return Item(
        where=where,
        problem=Problem(
          "wrong type", '"input" is not a string; it must be one, empty where there is none'
        ),
      )
    if not prompt.strip():
      return Item(where=where, dropped="empty instruction")
    if kind == "prompt":
      return Item(where=where, record={"prompt": prompt})
    value = value | {name: _pandalm_response(value[name]) for name in _RESPONSES if name in value}
    problem = _find_field_problem(value, _RESPONSES)
    if problem is not None:
      return Item(where=where, problem=problem)
    votes = [value[name] if name in value else None for name in _ANNOTATORS]
    for name, vote in zip(_ANNOTATORS, votes):
      if type(vote) is not int or vote not in (0, 1, 2):
        return Item(
          where=where,
          problem=Problem(
            "vote",
            f'"{name}" is {json.dumps(vote)[:40]}; it must be 1 or 2 for the better '
            "response, or 0 for a tie",
          ),
        )
    completions = [value[name] for name in _RESPONSES]
    if not all(completion.strip() for completion in completions):
      return Item(where=where, dropped="empty response")
    return Item(
      where=where,
      record={
        "prompt": prompt,
        "completions": completions,
        "ranks": _majority_ranks(votes),
        "votes": votes,
      },
    )

  return convert


def _read_pandalm(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    del options
    return _convert(path, _convert_pandalm(kind), ("instruction",))

  return reader


# ---- llmbar: pairs of which one is better beyond doubt (Zeng et al. 2023, arXiv:2310.07641) -----


def _convert_llmbar(kind: str) -> Callable[[str, dict], Item]:
  def convert(where: str, value: dict) -> Item:
    if not value["input"].strip():
      return Item(where=where, dropped="empty instruction")
    if kind == "prompt":
      return Item(where=where, record={"prompt": value["input"]})
    label = value["label"] if "label" in value else None
    if type(label) is not int or label not in (1, 2):
      return Item(
        where=where,
        problem=Problem(
          "label", f'"label" is {json.dumps(label)[:40]}; it must be 1 or 2 for the better output'
        ),
      )
    completions = [value["output_1"], value["output_2"]]
    if not all(completion.strip() for completion in completions):
      return Item(where=where, dropped="empty output")
    return Item(
      where=where,
      record={
        "prompt": value["input"],
        "completions": completions,
        "ranks": [1, 2] if label == 1 else [2, 1],
      },
    )

  return convert


def _read_llmbar(kind: str) -> Callable:
  def reader(path: pathlib.Path, options: FormatOptions) -> Iterator[Item]:
    del options
    needed = ("input",) if kind == "prompt" else ("input", "output_1", "output_2")
    return _convert(path, _convert_llmbar(kind), needed)

  return reader


# format -> kind -> reader(path, options)
FORMATS: dict[str, dict[str, Callable[[pathlib.Path, FormatOptions], Iterator[Item]]]] = {
  "jsonl": {kind: _read_jsonl for kind in records.KINDS},
  "text": {"text": _read_text},
  "hh": {kind: _read_hh(kind) for kind in ("comparison", "prompt", "demonstration")},
  "alpaca": {kind: _read_alpaca(kind) for kind in ("comparison", "prompt", "demonstration")},
  "t0": {kind: _read_t0(kind) for kind in ("prompt", "demonstration")},
  "alpaca_eval": {kind: _read_alpaca_eval(kind) for kind in ("comparison", "prompt")},
  "pandalm": {kind: _read_pandalm(kind) for kind in ("comparison", "prompt")},
  "llmbar": {kind: _read_llmbar(kind) for kind in ("comparison", "prompt")},
}
