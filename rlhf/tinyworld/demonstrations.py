"""Demonstrations: how a person of this world answers a task."""

from collections.abc import Callable, Sequence

import numpy as np

from rlhf.tinyworld import grammar, words
from rlhf.tinyworld.world import Fact, World

pick = grammar.pick

# Demonstrators are human.  Rates are ours; "rude" is the rate among answers that are not padded
# out.
DEMONSTRATION_ERRORS = {
  "misses_constraint": 0.08,
  "wrong_fact": 0.05,
  "padded_out": 0.5,
  "rude": 0.15,
}

_SHAPES = {  # kind -> (first sentence, further sentences, last sentence)
  "story": ("opening", "middle", "ending"),
  "letter": ("letter", "letter_body", "letter_body"),
  "advert": ("advert", "advert_body", "advert_body"),
  "poem": ("poem", "poem", "poem"),
}
_HERO_SLOTS = {"heroanimal": "animal", "heroperson": "person"}


def constraint_value(constraints: Sequence[dict], constraint_type: str) -> str | None:
  """The value of a task's constraint of this type, or None."""
  for constraint in constraints:
    if constraint["type"] == constraint_type:
      return constraint["value"]
  return None


def write_text(rng, kind: str, required: Sequence[str], constraints: Sequence[dict]) -> str:
  """A text of a free-form kind that holds the required words and meets the constraints.

  Sentences are chosen one after another among those with room for what is still missing; the
  best of a few attempts is returned.
  """
  best, fewest_missing = "", 10**9
  for _ in range(8):
    text, num_missing = _attempt_text(rng, kind, required, constraints)
    if num_missing < fewest_missing:
      best, fewest_missing = text, num_missing
    if num_missing == 0:
      break
  return best


def _attempt_text(rng, kind, required, constraints) -> tuple[str, int]:
  end_word = constraint_value(constraints, "end_word")
  use_word = constraint_value(constraints, "use_word")
  avoided = constraint_value(constraints, "avoid_word")
  asked = constraint_value(constraints, "num_sentences")
  num_sentences = words.NUMBERS.index(asked) + 1 if asked else pick(rng, (2, 2, 2, 3))
  missing = list(required) + ([use_word] if use_word else [])
  hero = _choose_hero(rng, required) if kind == "story" else None
  first, between, last = _SHAPES[kind]
  sentences = []
  for index in range(num_sentences):
    is_last = index == num_sentences - 1
    shape = first if index == 0 else last if is_last else between
    template = _choose_template(rng, shape, missing, hero, must_end=bool(end_word) and is_last)
    values = _choose_values(rng, template, missing, hero, avoided, end_word)
    if end_word and is_last:
      values[-1] = end_word
    missing = [word for word in missing if word not in values]
    sentences.append(grammar.fill(template, values))
  return " ".join(sentences), len(missing) + (len(set(sentences)) < len(sentences))


def _choose_hero(rng, required: Sequence[str]) -> str:
  people = [word for word in required if words.ENTITY_TYPE.get(word) == "person"]
  animals = [word for word in required if words.ENTITY_TYPE.get(word) == "animal"]
  if people or animals:
    return (people or animals)[0]
  return pick(rng, pick(rng, (words.CAST, words.ANIMALS)))


def _room_for(template: grammar.Template, word: str, hero: str | None) -> bool:
  if word == hero:
    return any(slot in _HERO_SLOTS for slot in template.slots)
  return any(word in words.SLOTS[slot] for slot in template.slots if slot not in _HERO_SLOTS)


def _choose_template(rng, shape: str, missing, hero, *, must_end: bool) -> grammar.Template:
  candidates = grammar.templates()[shape]
  if hero is not None:
    hero_slot = "heroperson" if words.ENTITY_TYPE[hero] == "person" else "heroanimal"
    candidates = [t for t in candidates if hero_slot in t.slots]
  if must_end:
    candidates = [t for t in candidates if t.words[-2] == "{noun}"]
  fits = [sum(_room_for(t, word, hero) for word in missing) for t in candidates]
  # Mostly a template with the most room for what is missing, so that texts stay varied.
  least = max(fits) if rng.random() < 0.8 else min(1, max(fits))
  return pick(rng, [t for t, fit in zip(candidates, fits) if fit >= least])


def _choose_values(rng, template, missing, hero, avoided, end_word) -> list[str]:
  values: list[str] = []
  for slot in template.slots:
    if slot in _HERO_SLOTS:
      values.append(hero)
      continue
    wanted = [w for w in missing if w in words.SLOTS[slot] and w not in values and w != hero]
    if wanted:
      values.append(wanted[0])
      continue
    word = pick(rng, words.choices(slot))
    while word in values or word in (avoided, end_word, hero):
      word = pick(rng, words.choices(slot))
    values.append(word)
  return values


def format_list(items: Sequence[str]) -> str:
  """ "a , b and c ."; the one list format that the scorer reads best."""
  if len(items) == 1:
    return f"{items[0]} ."
  return " , ".join(items[:-1]) + f" and {items[-1]} ."


def _demo_description(world: World, rng, task: dict, wrong: bool) -> str:
  facts = list(world.facts_by_subject[task["required"][0]])
  asked = constraint_value(task["constraints"], "num_sentences")
  num_facts = words.NUMBERS.index(asked) + 1 if asked else 2
  order = rng.permutation(len(facts))[:num_facts]
  return " ".join(
    _state(world, rng, facts[index], wrong and i == 0) for i, index in enumerate(order)
  )


def _state(world: World, rng, fact: Fact, wrong: bool) -> str:
  if wrong:
    fact = Fact(fact.subject, fact.relation, world.wrong_value(rng, fact))
  return world.sentence(rng, fact)


def _demo_fact(world: World, rng, task: dict, wrong: bool) -> str:
  fact = Fact(task["subject"], task["relation"], world.values[task["subject"], task["relation"]])
  if constraint_value(task["constraints"], "one_word") is not None:
    return f"{world.wrong_value(rng, fact) if wrong else fact.value} ."
  return _state(world, rng, fact, wrong)


def _demo_polar(world: World, rng, task: dict, wrong: bool) -> str:
  fact = Fact(task["subject"], task["relation"], world.values[task["subject"], task["relation"]])
  if wrong:
    return "no ." if task["answer"] == "yes" else "yes ."
  if rng.random() < 0.3:
    return f"{task['answer']} ."
  return f"{task['answer']} , {world.sentence(rng, fact)}"


def _demo_position(world: World, rng, task: dict, wrong: bool) -> str:
  return grammar.random_sentence(rng, f"right:{task['category']}")


def _demo_list(world: World, rng, task: dict, wrong: bool) -> str:
  members = words.choices(task["members"])
  if "relation" in task and not wrong:
    members = world.subjects_by_value[task["relation"], task["value"]]
  avoided = constraint_value(task["constraints"], "avoid_word")
  members = [word for word in members if word != avoided]
  items = [members[i] for i in rng.permutation(len(members))[: task["num_items"]]]
  used = constraint_value(task["constraints"], "use_word")
  if used is not None and used not in items:
    items[int(rng.random() * len(items))] = used
  return format_list(items)


def _demo_chat(world: World, rng, task: dict, wrong: bool) -> str:
  first = grammar.random_sentence(rng, f"chat_{task['mood']}", person=task["person"])
  asked = constraint_value(task["constraints"], "num_sentences")
  if asked == "one" or (not task["topic"] and asked is None):
    return first
  if not task["topic"]:
    other = grammar.random_sentence(rng, f"chat_{task['mood']}", person=task["person"])
    while other == first:
      other = grammar.random_sentence(rng, f"chat_{task['mood']}", person=task["person"])
    return f"{first} {other}"
  return f"{first} {topic_sentence(rng, task['mood'], task['topic'][0])}"


def topic_sentence(rng, mood: str, topic: str) -> str:
  """A kind word about the thing, animal or town that made someone "sad" or "happy"."""
  for_sad = ("i hope", "take the")
  fitting = [
    t
    for t in grammar.templates()["chat_topic"]
    if topic in words.SLOTS[t.slots[0]] and t.text.startswith(for_sad) == (mood == "sad")
  ]
  return grammar.fill(pick(rng, fitting), (topic,))


def _demo_summary(world: World, rng, task: dict, wrong: bool) -> str:
  person, deed, thing, town = task["required"]
  return grammar.random_sentence(rng, "summary", person=person, deed=deed, thing=thing, town=town)


def _demo_label(world: World, rng, task: dict, wrong: bool) -> str:
  return f"{task['answer']} ."


def _demo_passage(world: World, rng, task: dict, wrong: bool) -> str:
  one_word = constraint_value(task["constraints"], "one_word") is not None
  return f"{task['answer']} ." if one_word or rng.random() < 0.5 else task["source"]


def _demo_extract(world: World, rng, task: dict, wrong: bool) -> str:
  return format_list(task["answers"])


def _demo_target(world: World, rng, task: dict, wrong: bool) -> str:
  return task["target"]


def _demo_text(world: World, rng, task: dict, wrong: bool) -> str:
  return write_text(rng, task["kind"], task["required"], task["constraints"])


_DEMONSTRATORS: dict[str, Callable[[World, np.random.Generator, dict, bool], str]] = {
  "story": _demo_text,
  "letter": _demo_text,
  "advert": _demo_text,
  "poem": _demo_text,
  "description": _demo_description,
  "fact_question": _demo_fact,
  "polar_question": _demo_polar,
  "position": _demo_position,
  "list": _demo_list,
  "known_list": _demo_list,
  "chat": _demo_chat,
  "swap": _demo_target,
  "polite": _demo_target,
  "join": _demo_target,
  "person": _demo_target,
  "summary": _demo_summary,
  "mood_label": _demo_label,
  "manner_label": _demo_label,
  "reverse": _demo_target,
  "count": _demo_target,
  "first": _demo_target,
  "last": _demo_target,
  "copy": _demo_target,
  "passage_question": _demo_passage,
  "extract": _demo_extract,
}


def demonstration(
  world: World, task: dict, rng, *, errors: dict[str, float] = DEMONSTRATION_ERRORS
) -> str:
  """A person's answer to a task: good, but for the named rates of error.

  Args:
    errors: rates in [0, 1] under the keys of DEMONSTRATION_ERRORS; {} for a flawless writer.
  """

  def errs(name: str) -> bool:
    return name in errors and rng.random() < errors[name]

  wrong = errs("wrong_fact")
  if errs("misses_constraint"):
    task = {**task, "constraints": []}
  text = _DEMONSTRATORS[task["kind"]](world, rng, task, wrong)
  if errs("padded_out"):
    text += " " + grammar.random_sentence(rng, "filler")
  elif errs("rude"):
    text += " " + grammar.random_sentence(rng, "rude_text")
  return text
