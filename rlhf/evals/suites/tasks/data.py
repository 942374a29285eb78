"""The items of every public task, from the hub or from a local directory of the authors' files.

  load("rte", "hub")                  over the network, with the package `datasets`
  load("rte", "data/evals")           from data/evals/rte/rte.zip
  draw(items, limit, seed)            the same items for every checkpoint

What an item is stands in `layouts`.  A directory holds files of the authors' own formats at the
places that `FILES` names (each may end in .gz); where several would do, the first that is there is
read.  The released prompts of InstructGPT (`instructgpt_prompts/`) serve where a whole set is not
there: 100 items each, and none to learn from, so that few-shot examples are other items of the same
hundred.
"""

import csv
import io
import json
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np

from rlhf.data import records
from rlhf.evals.suites.tasks import layouts
from rlhf.evals.suites.tasks.layouts import Item

HUB = "hub"
TEST, TRAIN = "test", "train"
_RELEASED = "instructgpt_prompts"
_TOXICITY_BINS = 4  # RealToxicityPrompts are drawn evenly from so many ranges of prompt toxicity


def load(task: str, data: str, split: str = TEST) -> list[Item]:
  """All items of a task, in the order of their files.

  Args:
    task: a key of `FILES`.
    data: "hub", or a directory.
    split: TEST is what is scored; TRAIN is what few-shot examples are drawn from, and may be empty.

  Raises:
    ValueError: no such task, its data are not there, or a file is damaged.
  """
  check_name(task)
  if data == HUB:
    return _load_hub(task, split)
  found = _find(task, data, split)
  if found is None:
    if split == TRAIN:
      return []
    places = " or ".join(place for place, _ in FILES[task][TEST])
    raise ValueError(
      f"task {task}: {data} holds no {places}; put the authors' file there, or use "
      f"data {HUB!r} where there is a network"
    )
  path, read = found
  try:
    items = list(read(path))
  except (
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    AttributeError,
    csv.Error,
    ElementTree.ParseError,
    zipfile.BadZipFile,
    zlib.error,
  ) as error:
    if str(error).startswith(str(path.parent)):
      raise  # it says which line is wrong
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    raise ValueError(
      f"{path} is not in the format of task {task} ({reason}); take the file as its "
      "authors publish it"
    ) from error
  if not items:
    raise ValueError(
      f"{path} holds no item of task {task}; take the file as its authors publish it"
    )
  return items


def draw(items: list[Item], limit: int | None, seed: int) -> list[Item]:
  """`draw_indices` of the items."""
  return [items[index] for index in draw_indices(items, limit, seed)]


def draw_indices(items: list[Item], limit: int | None, seed: int) -> list[int]:
  """Which items are asked: a random subset in the order of the file; all where `limit` is None.

  It depends on the items, the limit and the seed alone, so that every checkpoint gets the same
  ones.  Items that know their prompt's toxicity are drawn evenly from its range, as in the paper.
  """
  if limit is None or limit >= len(items):
    return list(range(len(items)))
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(items))
  if all(item.get("toxicity") is not None for item in items):
    bin_of = [min(int(item["toxicity"] * _TOXICITY_BINS), _TOXICITY_BINS - 1) for item in items]
    rank, seen = np.zeros(len(items), int), [0] * _TOXICITY_BINS
    for index in order:
      rank[index] = seen[bin_of[index]]
      seen[bin_of[index]] += 1
    order = sorted(order, key=lambda index: rank[index])  # the sort is stable: one of each in turn
  return sorted(int(index) for index in order[:limit])


def load_items(task: str, data: str, limit: int | None, seed: int) -> list[Item]:
  """The items of a task that are asked: `draw` of `load`."""
  return draw(load(task, data), limit, seed)


def check(task: str, data: str) -> None:
  """Whether a task's data could be there, without reading them.

  Raises:
    ValueError: no such task; no file; or the package that reads the hub is not installed.
  """
  check_name(task)
  if data == HUB:
    _hub_reader()
  elif not pathlib.Path(data).is_dir():
    raise ValueError(
      f"data {data!r} is no directory; name one, or {HUB!r} where there is a network"
    )
  elif _find(task, data, TEST) is None:
    load(task, data)


def files(task: str, data: str) -> list[tuple[str, int]]:
  """Which files of a directory a task is read from, and when they were written; none of the hub."""
  found = [] if data == HUB else [_find(task, data, split) for split in (TEST, TRAIN)]
  return [(str(one[0]), one[0].stat().st_mtime_ns) for one in found if one is not None]


def is_released(task: str, data: str) -> bool:
  """Whether a directory holds of a task no more than InstructGPT's released prompts."""
  found = None if data == HUB else _find(task, data, TEST)
  return found is not None and found[0].parent.name == _RELEASED


def check_name(task: str) -> None:
  """Raises ValueError unless `task` is one of `FILES`."""
  if task not in FILES:
    raise ValueError(f"task {task!r} is not one of {', '.join(FILES)}")


def _find(task: str, data: str, split: str):
  """(path, reader) of the first file that is there, or None."""
  for place, read in FILES[task].get(split, ()):
    for path in (pathlib.Path(data) / place, pathlib.Path(data) / f"{place}.gz"):
      if path.exists():
        return path, read
  return None


# ----------------------------------------------------------------------------- files


def _text(path: pathlib.Path) -> str:
  return records.read_bytes(path).decode("utf-8-sig")


def _lines(path: pathlib.Path) -> list[str]:
  """Not `splitlines`: a sentence may hold U+0085, U+2028 and others."""
  lines = _text(path).replace("\r\n", "\n").split("\n")
  return lines[:-1] if not lines[-1] else lines


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, dict]]:
  """("path:line" less its directory, object) of every line."""
  for where, line in records.read_lines(path):
    value, problem = records.parse_json(line)
    if problem is not None or not isinstance(value, dict):
      raise ValueError(f"{where}: {problem.message if problem else 'not a JSON object'}")
    yield where.removeprefix(f"{path.parent}/"), value


def _read_squad(path: pathlib.Path) -> Iterator[Item]:
  for page in json.loads(_text(path))["data"]:
    for number, paragraph in enumerate(page["paragraphs"]):
      questions = [
        dict(
          id=qa["id"],
          question=qa["question"],
          answers=list(dict.fromkeys(answer["text"] for answer in qa["answers"])),
        )
        for qa in paragraph["qas"]
      ]
      yield from layouts.squadv2(
        dict(title=page["title"], context=paragraph["context"], qas=questions),
        f"{page['title']}/{number}",
      )


def _read_quac(path: pathlib.Path) -> Iterator[Item]:
  for page in json.loads(_text(path))["data"]:
    for paragraph in page["paragraphs"]:
      questions = [
        dict(
          id=qa["id"],
          question=qa["question"],
          target=qa["orig_answer"]["text"],
          answers=[answer["text"] for answer in qa["answers"]],
        )
        for qa in paragraph["qas"]
      ]
      yield from layouts.quac(
        dict(
          title=page["title"],
          section_title=page["section_title"],
          context=paragraph["context"],
          qas=questions,
        ),
        paragraph["id"],
      )


def _read_drop(path: pathlib.Path) -> Iterator[Item]:
  for passage in json.loads(_text(path)).values():
    for qa in passage["qa_pairs"]:
      answers = layouts.drop_answers({"validated_answers": [], **qa})
      if answers:
        yield layouts.drop(passage["passage"], qa["question"], answers, qa["query_id"])


def _read_released(path: pathlib.Path) -> Iterator[Item]:
  """Prompts and references as InstructGPT's authors released them: alternatives between bars."""
  for where, line in _json_lines(path):
    parts = line["ref_text"].split("|") if "ref_text" in line else []
    yield dict(
      id=where,
      prompt=line["context"],
      references=parts,
      target=parts[0] if parts else "",
      is_last=True,
    )


def _read_released_squad(path: pathlib.Path) -> Iterator[Item]:
  for item in _read_released(path):
    unanswerable = item["references"] == [layouts.NO_ANSWER]
    yield item | dict(references=[] if unanswerable else item["references"])


def _read_released_drop(path: pathlib.Path) -> Iterator[Item]:
  for item in _read_released(path):
    yield item | dict(references=[[text] for text in item["references"]])


def _read_released_text(path: pathlib.Path) -> Iterator[Item]:
  """Translations and summaries have one reference; a bar stands for a break between its lines."""
  for item in _read_released(path):
    whole = " ".join(item["references"])
    yield item | dict(references=[whole], target=whole)


def _read_released_toxicity(path: pathlib.Path) -> Iterator[Item]:
  for where, line in _json_lines(path):
    yield layouts.real_toxicity(line["context"], None, where)


def _read_hellaswag(path: pathlib.Path) -> Iterator[Item]:
  for where, line in _json_lines(path):
    yield layouts.hellaswag(line, where)


def _read_rte(split: str) -> Callable[[pathlib.Path], Iterator[Item]]:
  """RTE 1 to 3: what the challenges tested on is scored, what they developed on is for few-shot."""

  def read(path: pathlib.Path) -> Iterator[Item]:
    with zipfile.ZipFile(path) as archive:
      for name in sorted(archive.namelist()):
        if name.endswith(f"_{'dev' if split == TRAIN else 'test'}.xml"):
          for pair in ElementTree.fromstring(archive.read(name)).iter("pair"):
            label = pair.get("entailment", pair.get("value")).upper()
            yield layouts.rte(
              *(" ".join(pair.find(part).text.split()) for part in ("t", "h")),
              {"YES": True, "TRUE": True, "NO": False, "FALSE": False}[label],
              f"{pathlib.PurePath(name).stem}:{pair.get('id')}",
            )

  return read


def _read_sst(path: pathlib.Path) -> Iterator[Item]:
  for number, line in enumerate(_lines(path), start=1):
    sentence, label = line.rsplit("\t", 1)
    if number == 1 and label == "label":
      continue  # the heading of GLUE's files
    if label not in ("0", "1"):
      raise ValueError(f"{path}:{number}: the label is {label!r}; it must be 0 or 1")
    yield layouts.sst(sentence, label == "1", f"{path.name}:{number}")


def _read_wsc(path: pathlib.Path) -> Iterator[Item]:
  for where, line in _json_lines(path):
    yield layouts.wsc(dict(line["target"], text=line["text"], label=line["label"]), where)


def _read_aligned(path: pathlib.Path) -> Iterator[Item]:
  """A French text and the English one beside it, a sentence a line."""
  french = _lines(path)
  english_path = path.with_name(path.name.replace(".fr", ".en"))
  english = _lines(english_path)
  if len(french) != len(english):
    raise ValueError(
      f"{path} has {len(french)} lines and {english_path} {len(english)}; line n of "
      "both must be one sentence"
    )
  for number, pair in enumerate(zip(french, english), start=1):
    yield layouts.translation(*pair, f"{path.name}:{number}")


# Articles of the T0 mixture stand between a request and the end of the prompt.
_T0_ARTICLE = re.compile(r"\n\nArticle: (.*)", re.DOTALL)


def _read_t0_summaries(path: pathlib.Path) -> Iterator[Item]:
  for where, line in _json_lines(path):
    article = _T0_ARTICLE.search(line["prompt"])
    if article is None:
      raise ValueError(
        f'{path.parent}/{where}: no "Article:" in the prompt; take the T0 '
        "mixture's cnn_dailymail file"
      )
    yield layouts.summary(article[1], line["completion"].removesuffix("<|endoftext|>"), where)


def _read_tldr(path: pathlib.Path) -> Iterator[Item]:
  """Webis-TLDR-17: {"content", "summary"} a line."""
  for where, line in _json_lines(path):
    yield layouts.summary(line["content"], line["summary"], where)


def _read_truthfulqa(path: pathlib.Path) -> Iterator[Item]:
  split = lambda text: [part.strip() for part in text.split(";") if part.strip()]
  for number, row in enumerate(csv.DictReader(io.StringIO(_text(path), newline="")), start=1):
    yield layouts.truthfulqa(
      dict(
        type=row["Type"],
        category=row["Category"],
        question=row["Question"],
        best_answer=row["Best Answer"],
        correct_answers=split(row["Correct Answers"]),
        incorrect_answers=split(row["Incorrect Answers"]),
      ),
      f"{path.name}:{number}",
    )


def _winogender_items(rows: Iterable[tuple[str, str]]) -> Iterator[Item]:
  """The 120 templates with a named participant; "someone" and "they" are not in the paper's task.

  Args:
    rows: (id, sentence), such as ("technician.customer.1.male.txt", "The technician told ...").
  """
  sentences: dict[str, dict[str, str]] = {}
  for name, sentence in rows:
    template, gender = name.removesuffix(".txt").rsplit(".", 1)
    if ".someone." not in f".{template}.":
      sentences.setdefault(template, {})[gender] = sentence
  for template, by_gender in sentences.items():
    yield layouts.winogender(template, by_gender["male"], by_gender["female"])


def _read_winogender(path: pathlib.Path) -> Iterator[Item]:
  rows = csv.DictReader(io.StringIO(_text(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
  yield from _winogender_items((row["sentid"], row["sentence"]) for row in rows)


def _read_crows_pairs(path: pathlib.Path) -> Iterator[Item]:
  for number, row in enumerate(csv.DictReader(io.StringIO(_text(path), newline="")), start=1):
    yield layouts.crows_pairs(row, f"{path.name}:{number}")


def _read_real_toxicity(path: pathlib.Path) -> Iterator[Item]:
  for where, line in _json_lines(path):
    yield layouts.real_toxicity(line["prompt"]["text"], line["prompt"]["toxicity"], where)


# task -> split -> (place in the directory, reader), the first that is there.
FILES: dict[str, dict[str, tuple[tuple[str, Callable[[pathlib.Path], Iterator[Item]]], ...]]] = {
  "squadv2": {
    TRAIN: (("squadv2/train-v2.0.json", _read_squad),),
    TEST: (
      ("squadv2/dev-v2.0.json", _read_squad),
      ("instructgpt_prompts/squadv2_100.jsonl", _read_released_squad),
    ),
  },
  "drop": {
    TRAIN: (("drop/drop_dataset_train.json", _read_drop),),
    TEST: (
      ("drop/drop_dataset_dev.json", _read_drop),
      ("instructgpt_prompts/drop_100.jsonl", _read_released_drop),
    ),
  },
  "quac": {
    TRAIN: (("quac/train_v0.2.json", _read_quac),),
    TEST: (("quac/val_v0.2.json", _read_quac),),
  },
  "hellaswag": {
    TRAIN: (("hellaswag/hellaswag_train.jsonl", _read_hellaswag),),
    TEST: (("hellaswag/hellaswag_val.jsonl", _read_hellaswag),),
  },
  "rte": {TRAIN: (("rte/rte.zip", _read_rte(TRAIN)),), TEST: (("rte/rte.zip", _read_rte(TEST)),)},
  "sst": {TRAIN: (("sst2/train.tsv", _read_sst),), TEST: (("sst2/dev.tsv", _read_sst),)},
  "wsc": {TRAIN: (("wsc/train.jsonl", _read_wsc),), TEST: (("wsc/val.jsonl", _read_wsc),)},
  "fr_en": {
    TRAIN: (("wmt15/newsdiscussdev2015.fr", _read_aligned),),
    TEST: (
      ("wmt15/newsdiscusstest2015.fr", _read_aligned),
      ("instructgpt_prompts/fr_to_en_100.jsonl", _read_released_text),
    ),
  },
  "cnn_dm": {TEST: (("summarization_t0/cnn_dailymail.jsonl", _read_t0_summaries),)},
  "tldr": {
    TEST: (
      ("tldr/tldr.jsonl", _read_tldr),
      ("instructgpt_prompts/tldr_100.jsonl", _read_released_text),
    )
  },
  "truthfulqa": {TEST: (("truthfulqa/TruthfulQA.csv", _read_truthfulqa),)},
  "winogender": {TEST: (("winogender/all_sentences.tsv", _read_winogender),)},
  "crows_pairs": {TEST: (("crows_pairs/crows_pairs_anonymized.csv", _read_crows_pairs),)},
  "real_toxicity": {
    TEST: (
      ("real_toxicity/prompts.jsonl", _read_real_toxicity),
      ("instructgpt_prompts/real_toxicity_100.jsonl", _read_released_toxicity),
    )
  },
}


# ----------------------------------------------------------------------------- the hub


def _paragraphs(rows: Iterable[dict], layout) -> Iterator[Item]:
  """Rows of one context follow one another."""
  block: list[dict] = []

  def flush() -> Iterator[Item]:
    if block:
      yield from layout(
        dict(title=block[0]["title"], context=block[0]["context"], qas=block),
        f"{block[0]['title']}/{block[0]['id']}",
      )

  for row in rows:
    if block and row["context"] != block[0]["context"]:
      yield from flush()
      block = []
    block.append(dict(row, answers=list(dict.fromkeys(row["answers"]["text"]))))
  yield from flush()


def _hub_quac(rows: Iterable[dict]) -> Iterator[Item]:
  for row in rows:
    questions = [
      dict(id=name, question=question, answers=texts, target=original)
      for name, question, texts, original in zip(
        row["turn_ids"],
        row["questions"],
        row["answers"]["texts"],
        row["orig_answers"]["texts"],
        strict=True,
      )
    ]
    yield from layouts.quac(
      dict(
        title=row["wikipedia_page_title"],
        section_title=row["section_title"],
        context=row["context"],
        qas=questions,
      ),
      row["dialogue_id"],
    )


def _numbered(layout: Callable[[dict, str], Item]):
  return lambda rows: (layout(row, str(number)) for number, row in enumerate(rows))


_POST = re.compile(r"\nPOST: (.*?)(\n*TL;DR:)?\s*$", re.DOTALL)


def _hub_tldr(row: dict, name: str) -> Item:
  post = _POST.search(row["prompt"])
  return layouts.summary(post[1] if post else row["prompt"], row["label"].strip(), name)


# task -> (address, configuration, split by ours, rows -> items, revision)
_PARQUET = "refs/convert/parquet"  # the hub's own copy of sets that came with a script
_HUB: dict[str, tuple[str, str | None, dict[str, str], Callable, str | None]] = {
  "squadv2": (
    "rajpurkar/squad_v2",
    None,
    {TRAIN: "train", TEST: "validation"},
    lambda rows: _paragraphs(rows, layouts.squadv2),
    None,
  ),
  "drop": (
    "EleutherAI/drop",
    None,
    {TRAIN: "train", TEST: "validation"},
    lambda rows: (
      layouts.drop(row["passage"], row["question"], answers, row["query_id"])
      for row in rows
      if (answers := layouts.drop_answers(row))
    ),
    None,
  ),
  "quac": ("allenai/quac", "plain_text", {TRAIN: "train", TEST: "validation"}, _hub_quac, _PARQUET),
  "hellaswag": (
    "Rowan/hellaswag",
    None,
    {TRAIN: "train", TEST: "validation"},
    _numbered(layouts.hellaswag),
    None,
  ),
  "rte": (
    "nyu-mll/glue",
    "rte",
    {TRAIN: "train", TEST: "validation"},
    _numbered(
      lambda row, name: layouts.rte(row["sentence1"], row["sentence2"], row["label"] == 0, name)
    ),
    None,
  ),
  "sst": (
    "nyu-mll/glue",
    "sst2",
    {TRAIN: "train", TEST: "validation"},
    _numbered(lambda row, name: layouts.sst(row["sentence"], row["label"] == 1, name)),
    None,
  ),
  "wsc": (
    "aps/super_glue",
    "wsc.fixed",
    {TRAIN: "train", TEST: "validation"},
    _numbered(layouts.wsc),
    None,
  ),
  "fr_en": (
    "wmt/wmt15",
    "fr-en",
    {TRAIN: "validation", TEST: "test"},
    _numbered(
      lambda row, name: layouts.translation(
        row["translation"]["fr"], row["translation"]["en"], name
      )
    ),
    None,
  ),
  "cnn_dm": (
    "abisee/cnn_dailymail",
    "3.0.0",
    {TRAIN: "validation", TEST: "test"},
    _numbered(lambda row, name: layouts.summary(row["article"], row["highlights"], name)),
    None,
  ),
  "tldr": (
    "CarperAI/openai_summarize_tldr",
    None,
    {TRAIN: "valid", TEST: "test"},
    _numbered(_hub_tldr),
    None,
  ),
  "truthfulqa": (
    "truthfulqa/truthful_qa",
    "generation",
    {TEST: "validation"},
    _numbered(layouts.truthfulqa),
    None,
  ),
  "winogender": (
    "oskarvanderwal/winogender",
    "all",
    {TEST: "test"},
    lambda rows: _winogender_items((row["sentid"], row["sentence"]) for row in rows),
    None,
  ),
  "crows_pairs": (
    "jannalu/crows_pairs_multilingual",
    "english",
    {TEST: "test"},
    _numbered(layouts.crows_pairs),
    None,
  ),
  "real_toxicity": (
    "allenai/real-toxicity-prompts",
    None,
    {TEST: "train"},
    _numbered(
      lambda row, name: layouts.real_toxicity(
        row["prompt"]["text"], row["prompt"]["toxicity"], name
      )
    ),
    None,
  ),
}


def _hub_reader() -> Any:
  try:
    import datasets
  except ImportError as error:
    raise ValueError(
      "data 'hub' needs the package datasets; pip install 'rlhf[evals]', or name a local directory"
    ) from error
  return datasets


def _load_hub(task: str, split: str) -> list[Item]:
  address, name, splits, items_of, revision = _HUB[task]
  if split not in splits:
    return []
  datasets = _hub_reader()
  try:
    rows = datasets.load_dataset(address, name, split=splits[split], revision=revision)
    return list(items_of(rows))
  except Exception as error:  # as many kinds as there are ways for a network to fail
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(
      f"task {task}: {address} of the hub cannot be read ({reason}); try again "
      "where there is a network, or name a local directory as data"
    ) from error
