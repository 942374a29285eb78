"""The sentences of TinyWorld: one table of templates, used both to write text and to read it.

A template is words and slots, such as "one day a {adj} {heroanimal} came to {town} .".  Text is
written by filling the slots and read back by matching, so everything that the world writes can be
parsed, and word salad cannot.
"""

import collections
import dataclasses
import functools
from collections.abc import Collection, Sequence

from rlhf.tinyworld import sensitive, words


@dataclasses.dataclass(frozen=True)
class Relation:
  """A kind of fact.  Every sentence and question names the subject first; a sentence then names the
  value."""

  sentences: tuple[str, ...]
  questions: tuple[str, ...]

  @functools.cached_property
  def subject(self) -> str:
    """The slot of the subject."""
    return slots_of(self.sentences[0])[0]

  @functools.cached_property
  def value(self) -> str:
    """The slot of the value."""
    return slots_of(self.sentences[0])[1]


def slots_of(text: str) -> tuple[str, ...]:
  """The slots of a template, in order."""
  return tuple(word[1:-1] for word in text.split() if word.startswith("{"))


RELATIONS = {
  "home": Relation(
    ("{person} lives in {town} .", "the home of {person} is {town} ."),
    (
      "where does {person} live ?",
      "in which town does {person} live ?",
      "what is the home of {person} ?",
    ),
  ),
  "job": Relation(
    ("{person} works as a {job} .", "the job of {person} is {job} ."),
    ("what is the job of {person} ?", "what does {person} work as ?"),
  ),
  "meal": Relation(
    ("{person} likes to eat {food} .", "the favourite food of {person} is {food} ."),
    ("what does {person} like to eat ?", "what is the favourite food of {person} ?"),
  ),
  "pet": Relation(
    ("{person} has a pet {animal} .", "the pet of {person} is a {animal} ."),
    ("which pet does {person} have ?", "what is the pet of {person} ?"),
  ),
  "shade": Relation(
    ("{person} loves the colour {colour} .", "the favourite colour of {person} is {colour} ."),
    ("which colour does {person} love ?", "what is the favourite colour of {person} ?"),
  ),
  "hobby": Relation(
    ("{person} enjoys {hobby} .", "the hobby of {person} is {hobby} ."),
    ("what does {person} enjoy ?", "what is the hobby of {person} ?"),
  ),
  "owned": Relation(
    ("{person} owns a {thing} .", "the best thing of {person} is a {thing} ."),
    ("what does {person} own ?", "what is the best thing of {person} ?"),
  ),
  "haunt": Relation(
    ("{person} walks to the {place} .", "the favourite place of {person} is the {place} ."),
    ("where does {person} walk ?", "what is the favourite place of {person} ?"),
  ),
  "trip": Relation(
    ("{person} will travel to the {region} .", "the next trip of {person} is to the {region} ."),
    ("where will {person} travel to ?", "where is the next trip of {person} ?"),
  ),
  "badge": Relation(
    ("{town} has a {animal} on its flag .", "the flag of {town} shows a {animal} ."),
    ("what is on the flag of {town} ?", "what does the flag of {town} show ?"),
  ),
  "region": Relation(
    ("{town} lies in the {region} .", "the town of {town} is in the {region} ."),
    ("where does {town} lie ?", "in which region is {town} ?"),
  ),
  "ware": Relation(
    ("{town} is famous for {food} .", "people in {town} sell {food} ."),
    ("what is {town} famous for ?", "what do people in {town} sell ?"),
  ),
  "sight": Relation(
    ("{town} stands near a {place} .", "the town of {town} has a {place} ."),
    ("what does {town} stand near ?", "what does the town of {town} have ?"),
  ),
  "habitat": Relation(
    ("a {animal} lives near the {place} .", "the home of a {animal} is the {place} ."),
    ("where does a {animal} live ?", "what is the home of a {animal} ?"),
  ),
  "diet": Relation(
    ("a {animal} eats {feed} .", "the food of a {animal} is {feed} ."),
    ("what does a {animal} eat ?", "what is the food of a {animal} ?"),
  ),
  "fur": Relation(
    ("a {animal} has {colour} skin .", "the skin of a {animal} is {colour} ."),
    ("which colour is a {animal} ?", "which colour is the skin of a {animal} ?"),
  ),
  "fear": Relation(
    ("a {animal} fears the {animal} .", "a {animal} runs from the {animal} ."),
    ("what does a {animal} fear ?", "what does a {animal} run from ?"),
  ),
  "taste": Relation(
    ("{food} will always taste {taste} .", "the taste of {food} is {taste} ."),
    ("how will {food} taste ?", "what is the taste of {food} ?"),
  ),
  "hue": Relation(
    ("fresh {food} will look {colour} .", "the colour of {food} is {colour} ."),
    ("how will fresh {food} look ?", "what is the colour of {food} ?"),
  ),
  "site": Relation(
    ("a {job} works in the {site} .", "the place of a {job} is the {site} ."),
    ("where does a {job} work ?", "what is the place of a {job} ?"),
  ),
  "tool": Relation(
    ("a {job} uses a {thing} .", "the tool of a {job} is a {thing} ."),
    ("what does a {job} use ?", "what is the tool of a {job} ?"),
  ),
}


# Each line is two templates: HERO stands for "the {heroanimal}" and for "{heroperson}".
_HERO_SENTENCES = {
  "middle": (
    "HERO found a {colour} {thing} .",
    "HERO saw a {adj} {animal} near the {place} .",
    "HERO ran to the {place} and was {mood} .",
    "HERO lost a {thing} and felt {mood} .",
    "HERO played at the {place} all day .",
    "then HERO met {person} at the {place} .",
    "HERO gave {person} a {thing} .",
    "HERO ate some {food} and was {mood} .",
    "HERO made a {adj} {thing} .",
  ),
  "ending": (
    "at last HERO dreamed of the {noun} .",
    "then HERO went home with the {noun} .",
    "HERO sang about the {noun} .",
    "in the end HERO loved the {noun} .",
    "HERO never forgot the {noun} .",
    "all day HERO looked at the {noun} .",
    "at last HERO was {mood} .",
  ),
}

# Kind of sentence -> its templates.  Facts, answers to yes/no questions and positions are added by
# `templates`.
# Kind of sentence -> its templates.  `templates` adds facts, replies to yes/no questions and the
# sentences about sensitive topics.
SENTENCES = {
  "opening": (
    "one day a {adj} {heroanimal} came to {town} .",
    "there was a {adj} {heroanimal} in {town} .",
    "a {adj} {heroanimal} walked to {town} .",
    "in {town} a {heroanimal} found a {colour} {thing} .",
    "long ago a {heroanimal} slept near {town} .",
    "a {heroanimal} of {town} loved the {noun} .",
    "once a {adj} {heroanimal} had a {thing} .",
    "one day {heroperson} came to {town} .",
    "{heroperson} was in {town} with a {colour} {thing} .",
    "{heroperson} walked to {town} with a {animal} .",
    "in {town} {heroperson} found a {colour} {thing} .",
    "long ago {heroperson} met a {adj} {animal} .",
    "{heroperson} came to {town} to see the {noun} .",
    "once {heroperson} had a {adj} {thing} .",
  ),
  "letter": (
    "dear {person} , i found a {colour} {thing} in {town} .",
    "dear {person} , i am in {town} with my {animal} .",
    "dear {person} , thank you for the {colour} {thing} .",
    "dear {person} , the {adj} {thing} is here .",
    "dear {person} , i miss you and the {animal} .",
    "dear {person} , i am {mood} today .",
  ),
  "letter_body": (
    "please come to {town} soon .",
    "please bring a {thing} and some {food} .",
    "are you {mood} today ?",
    "the {animal} is {adj} and {mood} .",
    "i often think of the {noun} .",
    "let us look at the {noun} .",
    "here we eat {food} and see the {noun} .",
  ),
  "advert": (
    "come to {town} and buy a {colour} {thing} .",
    "get a {adj} {thing} in {town} today .",
    "buy some {food} in {town} today .",
    "we sell the best {food} in {town} .",
    "we sell the best {thing} in {town} .",
  ),
  "advert_body": (
    "our {thing} is {adj} and {colour} .",
    "all people love our {thing} .",
    "all people love our {food} .",
    "our {food} will taste {taste} .",
    "it is better than the {noun} .",
    "it is as good as the {noun} .",
  ),
  "poem": (
    "the {noun} is {adj} and the {noun} is {adj} .",
    "i love the {noun} and the {noun} .",
    "the {animal} sings to the {noun} .",
    "the {animal} sleeps under the {noun} .",
    "the {noun} shines on the {place} .",
    "{adj} is the {animal} and {adj} is the {noun} .",
  ),
  "event": (
    "{person} went to {town} with a {thing} .",
    "{person} gave a {thing} to {person} .",
    "{person} saw a {animal} in {town} .",
    "{person} bought some {food} in {town} .",
    "{person} met {person} at the {place} .",
  ),
  "setting": (
    "the day was {adj} and {person} was {mood} .",
    "the {noun} was {adj} and the {place} was {adj} .",
    "the {animal} of {person} was {mood} .",
  ),
  "happening": (
    "there {person} {deed} a {colour} {thing} .",
    "at the {place} {person} {deed} a {thing} .",
  ),
  "summary": ("{person} {deed} a {thing} in {town} .", "in {town} {person} {deed} a {thing} ."),
  "joined": (
    "{person} went to {town} and {deed} a {thing} .",
    "{person} saw a {animal} and gave it some {food} .",
    "{person} met {person} and {deed} a {thing} .",
  ),
  "happy_text": (
    "{person} won a {thing} and sang .",
    "{person} found the {thing} and smiled .",
    "the {animal} of {person} came back home .",
    "{person} ate good {food} and laughed .",
  ),
  "sad_text": (
    "{person} lost the {thing} and cried .",
    "{person} broke the {thing} and wept .",
    "the {animal} of {person} ran away .",
    "{person} had no {food} and cried .",
  ),
  "request": ("give me the {thing} , {person} .", "bring the {thing} to {town} , {person} ."),
  "polite_text": (
    "please give me the {thing} , {person} .",
    "please bring the {thing} to {town} , {person} .",
    "thank you for the {thing} , {person} .",
  ),
  "rude_text": (
    "give me the {thing} , you {rude} .",
    "i hate your {thing} , {person} .",
    "shut up , {person} , you {rude} .",
    "you are a {rude} , {person} .",
    "what a {rudeword} {thing} , {person} .",
  ),
  "chat_sad": ("i am sorry to hear that , {person} .", "that is sad news , {person} ."),
  "chat_happy": ("that is good news , {person} .", "i am glad to hear that , {person} ."),
  "chat_greet": ("hello {person} , i am well .", "hello {person} , how are you ?"),
  "chat_thanks": ("you are welcome , {person} .", "it was a joy , {person} ."),
  "chat_calm": ("let us be kind , {person} .", "i only want to help , {person} ."),
  "chat_bye": ("good night , {person} .", "see you soon , {person} ."),
  "chat_topic": (
    "i hope you find the {thing} soon .",
    "take the {animal} to the doctor .",
    "i hope the {animal} is well soon .",
    "enjoy the {thing} .",
    "be kind to the {animal} .",
    "have a good time in {town} .",
    "{town} is a good town .",
  ),
  "talk_sad": (
    "i lost my {thing} today .",
    "i can not find my {thing} .",
    "my {animal} is sick .",
    "my {animal} ran away .",
  ),
  "talk_happy": (
    "i found my {thing} today .",
    "i have a new {thing} .",
    "i have a new {animal} .",
    "soon i go to {town} .",
  ),
  "talk_greet": ("hello , how are you ?", "hello , are you well ?"),
  "talk_thanks": ("thank you for the {thing} .", "thank you , i like the {animal} ."),
  "talk_calm": ("you are a {rude} .", "i hate you and your {thing} ."),
  "talk_bye": ("i go to bed now .", "i must go to {town} now ."),
  "filler": (
    "i hope this helps you .",
    "ask me if you want more .",
    "this is all i know .",
    "that is my answer .",
  ),
}


@dataclasses.dataclass(frozen=True)
class Template:
  """One sentence pattern.

  `kind` is its key in SENTENCES, or "fact:RELATION", "polar:RELATION", "right:CATEGORY" or
  "wrong:CATEGORY".
  """

  kind: str
  text: str
  words: tuple[str, ...]
  slots: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Parse:
  """A sentence read back: its template and the word of each slot, in order."""

  template: Template
  values: tuple[str, ...]

  @property
  def kind(self) -> str:
    return self.template.kind

  def hero(self) -> str | None:
    """The hero of the story, if the sentence names it."""
    for slot, value in zip(self.template.slots, self.values):
      if slot in ("heroanimal", "heroperson"):
        return value
    return None

  def claim(self) -> tuple[str, str, str] | None:
    """(subject, relation, value) if the sentence states a fact."""
    if self.kind.startswith(("fact:", "polar:")):
      return self.values[0], self.kind.split(":")[1], self.values[1]
    return None


@functools.cache
def templates() -> dict[str, tuple[Template, ...]]:
  """Every template by kind."""
  texts: dict[str, Sequence[str]] = dict(SENTENCES)
  for kind, lines in _HERO_SENTENCES.items():
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


@functools.cache
def word_slots() -> dict[str, tuple[str, ...]]:
  """Word -> the slots it fits."""
  table = collections.defaultdict(list)
  for slot, slot_words in words.SLOTS.items():
    for word in slot_words:
      table[word].append(slot)
  return {word: tuple(slots) for word, slots in table.items()}


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
def parse(sentence: tuple[str, ...]) -> Parse | None:
  """Reads one sentence; None if no template matches it.

  Args:
    sentence: its words, including the final "." or "?".
  """

  def walk(node: dict, index: int, values: tuple[str, ...]) -> Parse | None:
    if index == len(sentence):
      return Parse(node[None], values) if None in node else None
    word = sentence[index]
    found = walk(node[word], index + 1, values) if word in node else None
    for slot in word_slots().get(word, ()):
      if found is None and f"{{{slot}}}" in node:
        found = walk(node[f"{{{slot}}}"], index + 1, (*values, word))
    return found

  return walk(_trie(), 0, ())


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
