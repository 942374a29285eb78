"""The items of every public task, from the hub or from a local directory of the authors' files.

  load("rte", "hub")                  over the network, with the package `datasets`
  load("rte", "data/evals")           from data/evals/rte/rte.zip
  draw(items, limit, seed)            the same items for every checkpoint

`layouts` describes items, and `sources.toml` says where they are.  If a test set is missing, the 100
prompts that InstructGPT's authors released are used; they have no training set, so few-shot
examples are other items of the same hundred.
"""

import csv
import dataclasses
import functools
import io
import json
import pathlib
import re
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from rlhf import extras
from rlhf.data import records
from rlhf.evals.preference import sheets
from rlhf.evals.suites.tasks import layouts
from rlhf.evals.suites.tasks.layouts import Item, Rows

HUB = "hub"
TEST, TRAIN = "test", "train"
_RELEASED = "instructgpt_prompts"
_TOXICITY_BINS = 4  # RealToxicityPrompts are drawn evenly from this many ranges of toxicity


def load(task: str, data: str, split: str = TEST) -> list[Item]:
  """All items of a task, in the order of their files.

  Args:
    task: a key of `SOURCES`.
    data: "hub", or a directory.
    split: TEST is scored; few-shot examples come from TRAIN, which may be empty.

  Raises:
    ValueError: an unknown task, missing data, or a damaged file.
  """
  if data == HUB:
    return _load_hub(task, split)
  found = _find(task, data, split)
  if found is None:
    if split == TRAIN:
      return []
    places = " or ".join(place for place, _, _ in _places(task, TEST))
    raise ValueError(
      f"task {task}: {data} holds no {places}; put the authors' file there, or use data {HUB!r}"
    )
  path, rows_of, items_of = found
  advice = "take the file as its authors publish it"
  try:
    items = list(items_of(rows_of(path)))
  except Exception as error:  # there are as many kinds as ways to damage a file
    if str(error).startswith(str(path.parent)):
      raise  # it names the line
    raise ValueError(
      f"{path} is not in the format of task {task} ({_one_line(error)}); {advice}"
    ) from error
  if not items:
    raise ValueError(f"{path} holds no item of task {task}; {advice}")
  return items


def draw(items: list[Item], limit: int | None, seed: int) -> list[Item]:
  """The items at `draw_indices`."""
  return [items[index] for index in draw_indices(items, limit, seed)]


def draw_indices(items: list[Item], limit: int | None, seed: int) -> list[int]:
  """A random subset of the items in their order, or all of them if `limit` is None.

  It depends only on the items, the limit and the seed, so that every checkpoint gets the same
  items.  Items with a prompt toxicity are drawn evenly from its range, as in the paper.
  """
  if limit is None or limit >= len(items):
    return list(range(len(items)))
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(items)).tolist()
  if all(item.get("toxicity") is not None for item in items):
    bin_of = [min(int(item["toxicity"] * _TOXICITY_BINS), _TOXICITY_BINS - 1) for item in items]
    rank, seen = np.zeros(len(items), int), [0] * _TOXICITY_BINS
    for index in order:
      rank[index] = seen[bin_of[index]]
      seen[bin_of[index]] += 1
    order = sorted(order, key=lambda index: rank[index])  # a stable sort: one of each bin in turn
  return sorted(order[:limit])


def load_items(task: str, data: str, limit: int | None, seed: int) -> list[Item]:
  """Loads the items of a task and draws those that are used."""
  return draw(load(task, data), limit, seed)


def check(task: str, data: str) -> None:
  """Raises ValueError if the data of a task cannot be there; does not read them."""
  _where(task)  # raises for an unknown task
  if data == HUB:
    extras.require("datasets", "evals", "data 'hub'")
  elif not pathlib.Path(data).is_dir():
    raise ValueError(f"data {data!r} is not a directory; name one, or {HUB!r}")
  elif _find(task, data, TEST) is None:
    load(task, data)


def files(task: str, data: str) -> list[tuple[str, int]]:
  """The files of a directory that a task is read from, with their modification times."""
  found = [] if data == HUB else [_find(task, data, split) for split in (TEST, TRAIN)]
  return [(str(one[0]), one[0].stat().st_mtime_ns) for one in found if one is not None]


def is_released(task: str, data: str) -> bool:
  """Whether all that a directory holds of a task are InstructGPT's released prompts."""
  found = None if data == HUB else _find(task, data, TEST)
  return found is not None and found[0].parent.name == _RELEASED


def _one_line(error: Exception) -> str:
  return " ".join(f"{type(error).__name__}: {error}".split())[:200]


# ----------------------------------------------------------------------------- files


def _text(path: pathlib.Path) -> str:
  return records.read_bytes(path).decode("utf-8-sig")


def _lines(path: pathlib.Path) -> list[str]:
  """Not `splitlines`: a sentence may hold U+0085, U+2028 and others."""
  lines = _text(path).replace("\r\n", "\n").split("\n")
  return lines[:-1] if not lines[-1] else lines


def _read_json_lines(path: pathlib.Path) -> Rows:
  """(FILE:LINE, object) of every line."""
  for where, value in sheets.read_objects(path, {}, "each line must be one"):
    yield where.removeprefix(f"{path.parent}/"), value


def _read_csv(path: pathlib.Path, **options: Any) -> Rows:
  rows = csv.DictReader(io.StringIO(_text(path), newline=""), **options)
  return ((f"{path.name}:{number}", row) for number, row in enumerate(rows, start=1))


def _read_squad(path: pathlib.Path) -> Rows:
  for page in json.loads(_text(path))["data"]:
    for paragraph in page["paragraphs"]:
      for qa in paragraph["qas"]:
        answers = dict(text=[answer["text"] for answer in qa["answers"]])
        yield qa["id"], dict(qa, title=page["title"], context=paragraph["context"], answers=answers)


def _read_quac(path: pathlib.Path) -> Rows:
  for page in json.loads(_text(path))["data"]:
    for paragraph in page["paragraphs"]:
      qas = paragraph["qas"]
      yield (
        paragraph["id"],
        dict(
          wikipedia_page_title=page["title"],
          section_title=page["section_title"],
          context=paragraph["context"],
          turn_ids=[qa["id"] for qa in qas],
          questions=[qa["question"] for qa in qas],
          answers=dict(texts=[[answer["text"] for answer in qa["answers"]] for qa in qas]),
          orig_answers=dict(texts=[qa["orig_answer"]["text"] for qa in qas]),
        ),
      )


def _read_drop(path: pathlib.Path) -> Rows:
  for passage in json.loads(_text(path)).values():
    for qa in passage["qa_pairs"]:
      yield qa["query_id"], dict(validated_answers=[], passage=passage["passage"]) | qa


def _read_rte(path: pathlib.Path, part: str) -> Rows:
  """RTE 1 to 3: the challenges' test sets are scored, their dev sets give few-shot examples."""
  with zipfile.ZipFile(path) as archive:
    for name in sorted(archive.namelist()):
      if not name.endswith(f"_{part}.xml"):
        continue
      for pair in ElementTree.fromstring(archive.read(name)).iter("pair"):
        label = (pair.get("entailment") or pair.get("value") or "").upper()
        premise, hypothesis = (" ".join(pair.findtext(tag, "").split()) for tag in ("t", "h"))
        yield (
          f"{pathlib.PurePath(name).stem}:{pair.get('id')}",
          dict(
            sentence1=premise,
            sentence2=hypothesis,
            label={"YES": 0, "TRUE": 0, "NO": 1, "FALSE": 1}[label],
          ),
        )


def _read_sst(path: pathlib.Path) -> Rows:
  for number, line in enumerate(_lines(path), start=1):
    sentence, label = line.rsplit("\t", 1)
    if number == 1 and label == "label":
      continue  # the heading of GLUE's files
    if label not in ("0", "1"):
      raise ValueError(f"{path}:{number}: the label is {label!r}; it must be 0 or 1")
    yield f"{path.name}:{number}", dict(sentence=sentence, label=int(label))


def _read_wsc(path: pathlib.Path) -> Rows:
  for where, line in _read_json_lines(path):
    yield where, dict(line["target"], text=line["text"], label=line["label"])


def _read_aligned(path: pathlib.Path) -> Rows:
  """A French text and the English one next to it, a sentence a line."""
  english_path = path.with_name(path.name.replace(".fr", ".en"))
  french, english = _lines(path), _lines(english_path)
  if len(french) != len(english):
    raise ValueError(
      f"{path} has {len(french)} lines and {english_path} {len(english)}; line n of both must be "
      "one sentence"
    )
  for number, (fr, en) in enumerate(zip(french, english), start=1):
    yield f"{path.name}:{number}", dict(translation=dict(fr=fr, en=en))


# In the T0 mixture the article follows a request, up to the end of the prompt.
_T0_ARTICLE = re.compile(r"\n\nArticle: (.*)", re.DOTALL)


def _read_t0_summaries(path: pathlib.Path) -> Rows:
  for where, line in _read_json_lines(path):
    article = _T0_ARTICLE.search(line["prompt"])
    if article is None:
      raise ValueError(
        f'{path.parent}/{where}: no "Article:" in the prompt; take the T0 mixture\'s '
        "cnn_dailymail file"
      )
    summary = line["completion"].removesuffix("<|endoftext|>")
    yield where, dict(article=article[1], highlights=summary)


def _read_tldr(path: pathlib.Path) -> Rows:
  """Webis-TLDR-17: {"content", "summary"} a line."""
  for where, line in _read_json_lines(path):
    yield where, dict(prompt=line["content"], label=line["summary"])


def _read_truthfulqa(path: pathlib.Path) -> Rows:
  split = lambda text: [part.strip() for part in text.split(";") if part.strip()]
  for where, row in _read_csv(path):
    columns = {name.lower().replace(" ", "_"): value for name, value in row.items()}
    for name in ("correct_answers", "incorrect_answers"):
      columns[name] = split(columns[name])
    yield where, columns


# ----------------------------------------------------------------------------- sources


def _each(layout: Callable[[layouts.Row, str], Item]) -> Callable[[Rows], Iterator[Item]]:
  return lambda rows: (layout(row, name) for name, row in rows)


@dataclasses.dataclass(frozen=True)
class Source:
  """How the files of a task become items.

  Attributes:
    read: from a file to rows with the hub's columns.
    items: from rows to items.
    released: from the rows of InstructGPT's file to items.
    read_train: `read` for the training set, if it differs.
  """

  read: Callable[[pathlib.Path], Rows]
  items: Callable[[Rows], Iterator[Item]]
  released: Callable[[Rows], Iterator[Item]] | None = None
  read_train: Callable[[pathlib.Path], Rows] | None = None


SOURCES = {
  "squadv2": Source(_read_squad, layouts.squadv2, _each(layouts.released_squad)),
  "drop": Source(_read_drop, layouts.drop, _each(layouts.released_drop)),
  "quac": Source(_read_quac, layouts.quac),
  "hellaswag": Source(_read_json_lines, _each(layouts.hellaswag)),
  "rte": Source(
    functools.partial(_read_rte, part="test"),
    _each(layouts.rte),
    read_train=functools.partial(_read_rte, part="dev"),
  ),
  "sst": Source(_read_sst, _each(layouts.sst)),
  "wsc": Source(_read_wsc, _each(layouts.wsc)),
  "fr_en": Source(_read_aligned, _each(layouts.translation), _each(layouts.released_text)),
  "cnn_dm": Source(_read_t0_summaries, _each(layouts.cnn_dm)),
  "tldr": Source(_read_tldr, _each(layouts.tldr), _each(layouts.released_text)),
  "truthfulqa": Source(_read_truthfulqa, _each(layouts.truthfulqa)),
  "winogender": Source(
    functools.partial(_read_csv, delimiter="\t", quoting=csv.QUOTE_NONE), layouts.winogender
  ),
  "crows_pairs": Source(_read_csv, _each(layouts.crows_pairs)),
  "real_toxicity": Source(
    _read_json_lines, _each(layouts.real_toxicity), _each(layouts.released_toxicity)
  ),
}


@functools.cache
def _all_sources() -> dict[str, dict[str, Any]]:
  return tomllib.loads(pathlib.Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))


def _where(task: str) -> dict[str, Any]:
  """The entry of a task in `sources.toml`."""
  if task not in SOURCES:
    raise ValueError(f"task {task!r} is not one of {', '.join(SOURCES)}")
  return _all_sources()[task]


def _places(task: str, split: str) -> list[tuple[str, Callable, Callable]]:
  """(place in a directory, file to rows, rows to items); the first that exists is read."""
  where, source = _where(task), SOURCES[task]
  read = source.read_train if split == TRAIN and source.read_train else source.read
  found = [(where[split], read, source.items)] if split in where else []
  if split == TEST and source.released is not None:
    found.append((f"{_RELEASED}/{where['released']}", _read_json_lines, source.released))
  return found


def _find(task: str, data: str, split: str) -> tuple[pathlib.Path, Callable, Callable] | None:
  """(path, file to rows, rows to items) of the first place that exists."""
  for place, rows_of, items_of in _places(task, split):
    for path in (pathlib.Path(data) / place, pathlib.Path(data) / f"{place}.gz"):
      if path.exists():
        return path, rows_of, items_of
  return None


def _load_hub(task: str, split: str) -> list[Item]:
  hub = _where(task)["hub"]
  if split not in hub:
    return []
  datasets = extras.load("datasets", "evals", "data 'hub'")
  try:
    rows = datasets.load_dataset(
      hub["address"], hub.get("configuration"), split=hub[split], revision=hub.get("revision")
    )
    return list(SOURCES[task].items((str(i), row) for i, row in enumerate(rows)))
  except Exception as error:  # there are as many kinds as ways for a network to fail
    raise ValueError(
      f"task {task}: {hub['address']} of the hub cannot be read ({_one_line(error)}); try again "
      "with a network, or name a local directory as data"
    ) from error
