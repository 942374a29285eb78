"""The sentences of TinyWorld: one table of templates, used both to write text and to read it.

A template is words and slots, such as "one day a {adj} {heroanimal} came to {town} .".  Text is
written by filling the slots and read back by matching, so everything that the world writes can be
parsed, and word salad cannot.  The templates are in grammar.yaml.
"""

import collections
import dataclasses
import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rlhf.tinyworld import sensitive, tables, words

_TABLE = tables.read("grammar")

# Kind of free-form text -> the kinds of its first sentence, further sentences and last sentence.
SHAPES = {
  "story": ("opening", "middle", "ending"),
  "letter": ("letter", "letter_body", "letter_body"),
  "advert": ("advert", "advert_body", "advert_body"),
  "poem": ("poem", "poem", "poem"),
}
HERO_SLOTS = ("heroanimal", "heroperson")


def slots_of(text: str) -> tuple[str, ...]:
  """The slots of a template, in order."""
  return tuple(word[1:-1] for word in text.split() if word.startswith("{"))


@dataclasses.dataclass(frozen=True)
class Relation:
  """A kind of fact, with the slots of its subject and its value."""

  sentences: tuple[str, ...]
  questions: tuple[str, ...]
  subject: str
  value: str


RELATIONS = {
  name: Relation(texts["sentences"], texts["questions"], *slots_of(texts["sentences"][0]))
  for name, texts in _TABLE["relations"].items()
}


@dataclasses.dataclass(frozen=True)
class Template:
  """One sentence pattern.

  `kind` is its key in grammar.yaml, or "fact:RELATION", "polar:RELATION", "right:CATEGORY" or
  "wrong:CATEGORY".
  """

  kind: str
  text: str
  words: tuple[str, ...]
  slots: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sentence:
  """A sentence that was read.

  Attributes:
    words: with the punctuation.
    template: the one that it matches; None for word salad.
    values: the word of each slot of the template, in order.
  """

  words: tuple[str, ...]
  template: Template | None = None
  values: tuple[str, ...] = ()

  @property
  def kind(self) -> str:
    """The kind of its template; "" without one."""
    return self.template.kind if self.template else ""

  @property
  def hero(self) -> str | None:
    """The hero of the story, if the sentence names it."""
    slots = self.template.slots if self.template else ()
    return next((value for slot, value in zip(slots, self.values) if slot in HERO_SLOTS), None)

  @property
  def claim(self) -> tuple[str, str, str] | None:
    """(subject, relation, value) if the sentence states a fact."""
    if self.kind.startswith(("fact:", "polar:")):
      return self.values[0], self.kind.split(":")[1], self.values[1]
    return None


@functools.cache
def templates() -> dict[str, tuple[Template, ...]]:
  """Every template by kind."""
  texts: dict[str, Sequence[str]] = dict(_TABLE["sentences"])
  for kind, lines in _TABLE["hero_sentences"].items():
    texts[kind] = [
      line.replace("HERO", hero) for line in lines for hero in ("the {heroanimal}", "{heroperson}")
    ]
  for name, relation in RELATIONS.items():
    texts[f"fact:{name}"] = relation.sentences
    texts[f"polar:{name}"] = [
      f"{reply} , {line}" for line in relation.sentences for reply in ("yes", "no")
    ]
  for name, category in sensitive.CATEGORIES.items():
    texts[f"right:{name}"] = category.right
    texts[f"wrong:{name}"] = category.wrong
  return {
    kind: tuple(Template(kind, line, tuple(line.split()), slots_of(line)) for line in lines)
    for kind, lines in texts.items()
  }


def grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, tuple]:
  """Key -> its values, in their order."""
  table = collections.defaultdict(list)
  for key, value in pairs:
    table[key].append(value)
  return {key: tuple(values) for key, values in table.items()}


@functools.cache
def word_slots() -> dict[str, tuple[str, ...]]:
  """Word -> the slots it fits."""
  return grouped((word, slot) for slot, fitting in words.SLOTS.items() for word in fitting)


@functools.cache
def _trie() -> dict:
  """Nested dicts over template words; the key None holds the templates that end there."""
  root: dict = {}
  for group in templates().values():
    for template in group:
      node = root
      for word in template.words:
        node = node.setdefault(word, {})
      node.setdefault(None, template)
  return root


@functools.lru_cache(maxsize=200_000)
def parse(sentence: tuple[str, ...]) -> Sentence:
  """Reads one sentence, of whose words the last is "." or "?"."""

  def walk(node: dict, index: int, values: tuple[str, ...]) -> Sentence | None:
    if index == len(sentence):
      return Sentence(sentence, node[None], values) if None in node else None
    word = sentence[index]
    found = walk(node[word], index + 1, values) if word in node else None
    for slot in word_slots().get(word, ()):
      if found is None and f"{{{slot}}}" in node:
        found = walk(node[f"{{{slot}}}"], index + 1, (*values, word))
    return found

  return walk(_trie(), 0, ()) or Sentence(sentence)


def split_sentences(text_words: Sequence[str]) -> list[tuple[str, ...]]:
  """Cuts words after each "." or "?"; unfinished words at the end are a sentence too."""
  sentences, start = [], 0
  for index, word in enumerate(text_words):
    if word in (".", "?"):
      sentences.append(tuple(text_words[start : index + 1]))
      start = index + 1
  if start < len(text_words):
    sentences.append(tuple(text_words[start:]))
  return sentences


def fill(template: Template, values: Sequence[str]) -> str:
  """The template with its slots filled in order."""
  remaining = iter(values)
  return " ".join(next(remaining) if word.startswith("{") else word for word in template.words)


def pick(rng, items: Sequence, excluded: Collection = ()):
  """A uniform choice among the items that are not excluded.

  Several times faster than Generator.choice on short sequences.
  """
  item = items[int(rng.random() * len(items))]
  while item in excluded:
    item = items[int(rng.random() * len(items))]
  return item


def fill_freely(rng, text: str) -> str:
  """The text with a random word in each slot; a word may occur twice."""
  return " ".join(
    pick(rng, words.choices(word[1:-1])) if word.startswith("{") else word for word in text.split()
  )


def random_sentence(rng, kind: str, **given: str) -> str:
  """A random sentence of a kind; `given` fixes the first occurrence of the slots it names."""
  template = pick(rng, templates()[kind])
  return fill(template, random_values(rng, template, given))


def random_values(rng, template: Template, given: dict[str, str]) -> list[str]:
  """One word per slot of a template, without repetition."""
  given, reserved, values = dict(given), set(given.values()), []
  for slot in template.slots:
    if slot in given:
      values.append(given.pop(slot))
    else:
      values.append(pick(rng, words.choices(slot), {*values, *reserved}))
  return values
