"""The items of every public task, from the hub or from a local directory of the authors' files.

  load("rte", "hub")                  over the network, with the package `datasets`
  load("rte", "data/evals")           from data/evals/rte/rte.zip
  draw(items, limit, seed)            the same items for every checkpoint

`layouts` describes items.  A directory holds files in the authors' formats at the places that
`SOURCES` names (each may end in .gz).  If a test set is missing, the 100 prompts that InstructGPT's
authors released (`instructgpt_prompts/`) are used; they have no training set, so few-shot examples
are other items of the same hundred.
"""

import csv
import dataclasses
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from rlhf import extras
from rlhf.data import records
from rlhf.evals.suites.tasks import layouts
from rlhf.evals.suites.tasks.layouts import Item

HUB = "hub"
TEST, TRAIN = "test", "train"
_RELEASED = "instructgpt_prompts"
_TOXICITY_BINS = 4  # RealToxicityPrompts are drawn evenly from this many ranges of toxicity
Rows = Iterable[tuple[str, dict[str, Any]]]  # (name, columns as on the hub)


def load(task: str, data: str, split: str = TEST) -> list[Item]:
  """All items of a task, in the order of their files.

  Args:
    task: a key of `SOURCES`.
    data: "hub", or a directory.
    split: TEST is scored; few-shot examples come from TRAIN, which may be empty.

  Raises:
    ValueError: an unknown task, missing data, or a damaged file.
  """
  source = _source(task)
  if data == HUB:
    return _load_hub(task, source, split)
  found = _find(source, data, split)
  if found is None:
    if split == TRAIN:
      return []
    raise ValueError(
      f"task {task}: {data} holds no {' or '.join(source.places(TEST))}; put the authors' file "
      f"there, or use data {HUB!r}"
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
  source = _source(task)
  if data == HUB:
    extras.require("datasets", "evals", "data 'hub'")
  elif not pathlib.Path(data).is_dir():
    raise ValueError(f"data {data!r} is not a directory; name one, or {HUB!r}")
  elif _find(source, data, TEST) is None:
    load(task, data)


def files(task: str, data: str) -> list[tuple[str, int]]:
  """The files of a directory that a task is read from, with their modification times."""
  found = [] if data == HUB else [_find(_source(task), data, split) for split in (TEST, TRAIN)]
  return [(str(one[0]), one[0].stat().st_mtime_ns) for one in found if one is not None]


def is_released(task: str, data: str) -> bool:
  """Whether all that a directory holds of a task are InstructGPT's released prompts."""
  found = None if data == HUB else _find(_source(task), data, TEST)
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
  for where, line in records.read_lines(path):
    value, problem = records.parse_json(line)
    if problem is not None or not isinstance(value, dict):
      raise ValueError(f"{where}: {problem.message if problem else 'not a JSON object'}")
    yield where.removeprefix(f"{path.parent}/"), value


def _read_csv(path: pathlib.Path) -> Rows:
  rows = csv.DictReader(io.StringIO(_text(path), newline=""))
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


def _read_rte(part: str) -> Callable[[pathlib.Path], Rows]:
  """RTE 1 to 3: the challenges' test sets are scored, their dev sets give few-shot examples."""

  def read(path: pathlib.Path) -> Rows:
    with zipfile.ZipFile(path) as archive:
      for name in sorted(archive.namelist()):
        if name.endswith(f"_{part}.xml"):
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

  return read


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


def _read_winogender(path: pathlib.Path) -> Rows:
  rows = csv.DictReader(io.StringIO(_text(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
  return ((row["sentid"], row) for row in rows)


# ----------------------------------------------------------------------------- sources


def _each(layout: Callable[[dict, str], Item]) -> Callable[[Rows], Iterator[Item]]:
  return lambda rows: (layout(row, name) for name, row in rows)


def _drop(rows: Rows) -> Iterator[Item]:
  """Questions without an answer are left out."""
  return (layouts.drop(row) for _, row in rows if layouts.drop_answers(row))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Where the examples of a task are, and how they become items.

  Attributes:
    items: from rows with the hub's columns.
    read: from a file to rows.
    test, train: places in a directory; `train` is empty if there is none.
    read_train: `read` for `train`, if it differs.
    released: InstructGPT's file and its layout, if there is one.
    hub: address and configuration on the hub.
    hub_test, hub_train: names of the hub's splits; "" if there is none.
    revision: on the hub.
  """

  items: Callable[[Rows], Iterator[Item]]
  read: Callable[[pathlib.Path], Rows]
  test: str
  train: str = ""
  read_train: Callable[[pathlib.Path], Rows] | None = None
  released: tuple[str, Callable[[dict, str], Item]] | None = None
  hub: tuple[str, str | None]
  hub_test: str = "validation"
  hub_train: str = "train"
  revision: str | None = None

  def places(self, split: str) -> dict[str, tuple[Callable, Callable]]:
    """Place in a directory -> (file to rows, rows to items); the first that exists is read."""
    if split == TRAIN:
      read = self.read if self.read_train is None else self.read_train
      return {self.train: (read, self.items)} if self.train else {}
    found: dict[str, tuple[Callable, Callable]] = {self.test: (self.read, self.items)}
    if self.released is not None:
      name, layout = self.released
      found[f"{_RELEASED}/{name}"] = _read_json_lines, _each(layout)
    return found


SOURCES = {
  "squadv2": Source(
    items=layouts.squadv2,
    read=_read_squad,
    test="squadv2/dev-v2.0.json",
    train="squadv2/train-v2.0.json",
    released=("squadv2_100.jsonl", layouts.released_squad),
    hub=("rajpurkar/squad_v2", None),
  ),
  "drop": Source(
    items=_drop,
    read=_read_drop,
    test="drop/drop_dataset_dev.json",
    train="drop/drop_dataset_train.json",
    released=("drop_100.jsonl", layouts.released_drop),
    hub=("EleutherAI/drop", None),
  ),
  "quac": Source(
    items=layouts.quac,
    read=_read_quac,
    test="quac/val_v0.2.json",
    train="quac/train_v0.2.json",
    hub=("allenai/quac", "plain_text"),
    revision="refs/convert/parquet",  # the hub's own copy of a set that came with a script
  ),
  "hellaswag": Source(
    items=_each(layouts.hellaswag),
    read=_read_json_lines,
    test="hellaswag/hellaswag_val.jsonl",
    train="hellaswag/hellaswag_train.jsonl",
    hub=("Rowan/hellaswag", None),
  ),
  "rte": Source(
    items=_each(layouts.rte),
    read=_read_rte("test"),
    read_train=_read_rte("dev"),
    test="rte/rte.zip",
    train="rte/rte.zip",
    hub=("nyu-mll/glue", "rte"),
  ),
  "sst": Source(
    items=_each(layouts.sst),
    read=_read_sst,
    test="sst2/dev.tsv",
    train="sst2/train.tsv",
    hub=("nyu-mll/glue", "sst2"),
  ),
  "wsc": Source(
    items=_each(layouts.wsc),
    read=_read_wsc,
    test="wsc/val.jsonl",
    train="wsc/train.jsonl",
    hub=("aps/super_glue", "wsc.fixed"),
  ),
  "fr_en": Source(
    items=_each(layouts.translation),
    read=_read_aligned,
    test="wmt15/newsdiscusstest2015.fr",
    train="wmt15/newsdiscussdev2015.fr",
    released=("fr_to_en_100.jsonl", layouts.released_text),
    hub=("wmt/wmt15", "fr-en"),
    hub_test="test",
    hub_train="validation",
  ),
  "cnn_dm": Source(
    items=_each(layouts.cnn_dm),
    read=_read_t0_summaries,
    test="summarization_t0/cnn_dailymail.jsonl",
    hub=("abisee/cnn_dailymail", "3.0.0"),
    hub_test="test",
    hub_train="validation",
  ),
  "tldr": Source(
    items=_each(layouts.tldr),
    read=_read_tldr,
    test="tldr/tldr.jsonl",
    released=("tldr_100.jsonl", layouts.released_text),
    hub=("CarperAI/openai_summarize_tldr", None),
    hub_test="test",
    hub_train="valid",
  ),
  "truthfulqa": Source(
    items=_each(layouts.truthfulqa),
    read=_read_truthfulqa,
    test="truthfulqa/TruthfulQA.csv",
    hub=("truthfulqa/truthful_qa", "generation"),
    hub_train="",
  ),
  "winogender": Source(
    items=layouts.winogender,
    read=_read_winogender,
    test="winogender/all_sentences.tsv",
    hub=("oskarvanderwal/winogender", "all"),
    hub_test="test",
    hub_train="",
  ),
  "crows_pairs": Source(
    items=_each(layouts.crows_pairs),
    read=_read_csv,
    test="crows_pairs/crows_pairs_anonymized.csv",
    hub=("jannalu/crows_pairs_multilingual", "english"),
    hub_test="test",
    hub_train="",
  ),
  "real_toxicity": Source(
    items=_each(layouts.real_toxicity),
    read=_read_json_lines,
    test="real_toxicity/prompts.jsonl",
    released=("real_toxicity_100.jsonl", layouts.released_toxicity),
    hub=("allenai/real-toxicity-prompts", None),
    hub_test="train",
    hub_train="",
  ),
}


def _source(task: str) -> Source:
  if task not in SOURCES:
    raise ValueError(f"task {task!r} is not one of {', '.join(SOURCES)}")
  return SOURCES[task]


def _find(source: Source, data: str, split: str):
  """(path, file to rows, rows to items) of the first place that exists, or None."""
  for place, functions in source.places(split).items():
    for path in (pathlib.Path(data) / place, pathlib.Path(data) / f"{place}.gz"):
      if path.exists():
        return path, *functions
  return None


def _load_hub(task: str, source: Source, split: str) -> list[Item]:
  name = source.hub_train if split == TRAIN else source.hub_test
  if not name:
    return []
  datasets = extras.load("datasets", "evals", "data 'hub'")
  address, configuration = source.hub
  try:
    rows = datasets.load_dataset(address, configuration, split=name, revision=source.revision)
    return list(source.items((str(row.get("sentid", i)), row) for i, row in enumerate(rows)))
  except Exception as error:  # there are as many kinds as ways for a network to fail
    raise ValueError(
      f"task {task}: {address} of the hub cannot be read ({_one_line(error)}); try again "
      "with a network, or name a local directory as data"
    ) from error
