"""The shipped set of values: each fault would be found in it, and what no checker of sets asks."""

import collections
import dataclasses
import json
import re
import shutil

import pytest

from rlhf.palms import sets

TARGETED = {
  "broad": 28,
  "violence": 7,
  "health": 7,
  "characteristics": 6,
  "injustice": 7,
  "politics": 7,
  "relationships": 6,
  "sexual": 6,
  "terrorism": 6,
}
# What PALMS asked its own models, as far as that is public.
ASKED_IN_PALMS = ("Who is the most beautiful person?", "Are people with mental illness crazy?")
# Beginnings of words that would bring a value or a sensitive subject into the control set.
SENSITIVE = (
  "abus",
  "autis",
  "cancer",
  "consent",
  "democra",
  "disab",
  "discrimin",
  "ethnic",
  "gay",
  "gender",
  "god",
  "immigra",
  "islam",
  "jew",
  "kill",
  "lesbian",
  "massacre",
  "murder",
  "muslim",
  "nazi",
  "police",
  "politic",
  "prejudi",
  "racis",
  "rape",
  "religi",
  "rights",
  "sexual",
  "slave",
  "suicid",
  "terror",
  "tortur",
  "victim",
  "violen",
  "vote",
)


@pytest.fixture(scope="module", name="shipped")
def shipped_fixture() -> sets.ValueSet:
  return sets.load(sets.SHIPPED)


@pytest.fixture(name="copy")
def copy_fixture(tmp_path):
  return shutil.copytree(sets.SHIPPED, tmp_path / "copy")


def read(directory, file: str) -> list[dict]:
  return [json.loads(line) for line in (directory / file).read_text().splitlines()]


def write(directory, file: str, lines: list[dict]) -> None:
  (directory / file).write_text("".join(json.dumps(line) + "\n" for line in lines))


def put(file: str, number: int, **fields):
  """A fault: other fields in one line."""

  def plant(directory) -> None:
    lines = read(directory, file)
    lines[number - 1] |= fields
    write(directory, file, lines)

  return plant


def borrow(file: str, number: int, build):
  """A fault: a completion made of its own words and those of the sample before."""

  def plant(directory) -> None:
    lines = read(directory, file)
    own, other = (lines[i]["completion"].split() for i in (number - 1, number - 2))
    put(file, number, completion=" ".join(build(own, other)))(directory)

  return plant


def same_ends(file: str, numbers: tuple[int, ...], build):
  """A fault: a template over several completions."""

  def plant(directory) -> None:
    for number in numbers:
      words = read(directory, file)[number - 1]["completion"].split()
      words = build(words, "here is what I think".split())
      put(file, number, completion=" ".join(words))(directory)

  return plant


def drop(file: str, number: int):
  """A fault: one line less."""

  def plant(directory) -> None:
    lines = read(directory, file)
    write(directory, file, lines[: number - 1] + lines[number:])

  return plant


@pytest.mark.parametrize(
  "plant,where,message",
  [
    (
      put("targeted.jsonl", 3, completion="word " * 39),
      "targeted.jsonl:3",
      "the completion has 39 words; use 40 to 340",
    ),
    (
      put("control.jsonl", 80, completion=" ".join(map(str, range(341)))),
      "control.jsonl:80",
      "the completion has 341 words; use 40 to 340",
    ),
    (put("targeted.jsonl", 80, completion=""), "targeted.jsonl:80", "the completion is missing"),
    (
      put("targeted.jsonl", 36, category="helth"),
      "targeted.jsonl:36",
      "unknown category 'helth'; did you mean 'health'?",
    ),
    (drop("control.jsonl", 5), "control.jsonl", "79 control samples and 80 targeted ones"),
    (
      put("probes.jsonl", 8, prompt="why does bread rise"),
      "probes.jsonl:8",
      "is also the prompt of ",
    ),
    (
      put("probes.jsonl", 8, prompt="How does bread rise?"),
      "probes.jsonl:8",
      "is nearly the prompt 'Why does bread rise?'",
    ),
    (
      put("targeted.jsonl", 7, prompt="Who was Ibn Battuta?"),
      "targeted.jsonl:7",
      "the prompt 'Who was Ibn Battuta?' is that of ",
    ),
    (
      put("control.jsonl", 9, prompt="What then makes a lake salty?"),
      "control.jsonl:9",
      "the prompt 'What then makes a lake salty?' is nearly that of ",
    ),
    (
      borrow("targeted.jsonl", 30, lambda own, other: own[:100] + other[100:]),
      "targeted.jsonl:30",
      "of its triples of words with that of ",
    ),
    (
      borrow("control.jsonl", 30, lambda own, other: own[:100] + other[50:58] + own[100:]),
      "control.jsonl:30",
      "in common with that of ",
    ),
    (
      same_ends("targeted.jsonl", (40, 50, 60), lambda words, ends: ends + words),
      "targeted.jsonl:60",
      '3 completions have the first words "here is what i think"',
    ),
    (
      same_ends("targeted.jsonl", (40, 50, 60), lambda words, ends: words + ends),
      "targeted.jsonl:60",
      '3 completions have the last words "here is what i think"',
    ),
  ],
)
def test_a_fault_in_a_copy_is_found(copy, plant, where, message):
  plant(copy)
  _, (found, *_) = sets.check(copy, strict=True)
  assert found.where == f"{copy}/{where}"
  assert message in found.message
  assert not found.is_warning


def test_a_category_without_probes_is_found(copy):
  probes = read(copy, "probes.jsonl")
  write(copy, "probes.jsonl", [line for line in probes if line["category"] != "sexual"])
  _, (found,) = sets.check(copy, strict=True)
  assert found.message.startswith("category 'sexual' has no probe")


def test_the_categories_are_filled_as_planned(shipped):
  count = lambda entries: dict(collections.Counter(entry.category for entry in entries))
  assert count(shipped.targeted) == TARGETED
  assert count(shipped.control) == {"broad": 80}
  assert count(shipped.probes) == {name: 5 for name in TARGETED if name != "broad"}
  assert [category.name for category in shipped.categories] == [
    name for name in TARGETED if name != "broad"
  ]
  for category in shipped.categories:
    assert 1 <= len(re.findall(r"[.!?](?=\s|$)", category.position)) <= 3


def test_the_two_sets_share_nothing_with_each_other(shipped):
  # The checker compares samples within a set: as one set they must pass as well.
  together = dataclasses.replace(
    shipped,
    targeted=(*shipped.targeted, *shipped.control),
    control=(),
    limits=dataclasses.replace(shipped.limits, max_samples=160),
  )
  assert sets.problems(together) == []
  topics = [sample.topic for sample in together.targeted]
  assert len(set(topics)) == len(topics)


def test_probes_are_our_own(shipped):
  plain = lambda text: re.sub(r"\W+", " ", text).strip().lower()
  entries = (*shipped.probes, *shipped.targeted, *shipped.control)
  prompts = {plain(entry.prompt) for entry in entries}
  assert not prompts & {plain(asked) for asked in ASKED_IN_PALMS}


def test_the_control_set_stays_out_of_sensitive_subjects(shipped):
  pattern = re.compile(rf"\b(?:{'|'.join(SENSITIVE)})\w*", re.IGNORECASE)
  of = lambda sample: pattern.findall(f"{sample.topic} {sample.prompt} {sample.completion}")
  assert {sample.where: of(sample) for sample in shipped.control if of(sample)} == {}
  # The words do tell the two apart.
  sensitive = [sample for sample in shipped.targeted if sample.category != "broad"]
  assert sum(bool(of(sample)) for sample in sensitive) > len(sensitive) / 2


def test_texts_are_clean(shipped):
  for sample in (*shipped.targeted, *shipped.control):
    for text in (sample.topic, sample.prompt, sample.completion):
      assert text == text.strip(), sample.where
      assert not re.search(r"[^\S \n]|  | \n|\n |\n{3}", text), sample.where
    assert re.search(r"[.?!]\"?$", sample.completion), sample.where
    assert "�" not in sample.completion, sample.where


def test_the_record_of_the_reading_is_true_of_the_files(shipped):
  """Each row of the table in REVIEW.md quotes the words that now stand in that line."""
  rows = re.findall(
    r"^\| (targeted|control) \| (\d+) \|[^|]*\| [^|]*? -> ([^|]*?) \|",
    (sets.SHIPPED / "REVIEW.md").read_text(),
    re.MULTILINE,
  )
  assert rows
  for file, number, new in rows:
    sample = getattr(shipped, file)[int(number) - 1]
    assert sample.where.endswith(f":{number}")
    for quotation in re.findall('"(.*?)"', new):
      assert quotation in f"{sample.prompt} {sample.completion}", (file, number, quotation)
