"""Demonstrations: the completions that people of this world write."""

import dataclasses
from collections.abc import Sequence

from rlhf.tinyworld import grammar, words
from rlhf.tinyworld.world import Fact, World

pick = grammar.pick

# Demonstrators make errors, at these rates; "rude" is the rate among texts that are not padded.
DEMONSTRATION_ERRORS = {
  "misses_constraint": 0.08,
  "wrong_fact": 0.05,
  "padded_out": 0.5,
  "rude": 0.15,
}


def _by_type(constraints: Sequence[dict]) -> dict[str, str]:
  """Type of constraint -> value, of a task's list of constraints."""
  return {constraint["type"]: constraint["value"] for constraint in constraints}


def write_text(rng, kind: str, required: Sequence[str], constraints: Sequence[dict]) -> str:
  """A text of a free-form kind that contains the required words and meets the constraints.

  Sentences are chosen one after another among those with a slot for a missing word; the best of
  eight attempts is returned.
  """
  attempts: list[tuple[str, int]] = []
  for _ in range(8):
    attempts.append(_attempt_text(rng, kind, required, constraints))
    if attempts[-1][1] == 0:
      break
  return min(attempts, key=lambda attempt: attempt[1])[0]


def _attempt_text(rng, kind, required, constraints) -> tuple[str, int]:
  end_word, use_word, avoided, asked = (
    _by_type(constraints).get(name)
    for name in ("end_word", "use_word", "avoid_word", "num_sentences")
  )
  num_sentences = words.number(asked) if asked else pick(rng, (2, 2, 2, 3))
  missing = list(required) + ([use_word] if use_word else [])
  hero = _choose_hero(rng, required) if kind == "story" else None
  first, between, last = grammar.SHAPES[kind]
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
  return pick(rng, pick(rng, (words.CAST, words.SLOTS["animal"])))


def _fits(template: grammar.Template, word: str, hero: str | None) -> bool:
  """Whether a slot of the template takes the word."""
  if word == hero:
    return any(slot in grammar.HERO_SLOTS for slot in template.slots)
  return any(word in words.SLOTS[slot] for slot in template.slots if slot not in grammar.HERO_SLOTS)


def _choose_template(rng, shape: str, missing, hero, *, must_end: bool) -> grammar.Template:
  candidates = list(grammar.templates()[shape])
  if hero is not None:
    candidates = [t for t in candidates if f"hero{words.ENTITY_TYPE[hero]}" in t.slots]
  if must_end:
    candidates = [t for t in candidates if t.words[-2] == "{noun}"]
  fits = [sum(_fits(t, word, hero) for word in missing) for t in candidates]
  # Usually a template that takes the most missing words, sometimes any that takes one: for variety.
  least = max(fits) if rng.random() < 0.8 else min(1, max(fits))
  return pick(rng, [t for t, fit in zip(candidates, fits) if fit >= least])


def _choose_values(rng, template, missing, hero, avoided, end_word) -> list[str]:
  values: list[str] = []
  for slot in template.slots:
    wanted = [w for w in missing if w in words.SLOTS[slot] and w not in values and w != hero]
    if slot in grammar.HERO_SLOTS:
      values.append(hero)
    elif wanted:
      values.append(wanted[0])
    else:
      values.append(pick(rng, words.choices(slot), (*values, avoided, end_word, hero)))
  return values


def format_list(items: Sequence[str]) -> str:
  """A list such as "a , b and c ."."""
  if len(items) == 1:
    return f"{items[0]} ."
  return " , ".join(items[:-1]) + f" and {items[-1]} ."


def topic_sentence(rng, mood: str, topic: str) -> str:
  """A kind sentence about the thing, animal or town that made someone "sad" or "happy"."""
  for_sad = ("i hope", "take the")
  fitting = [
    t
    for t in grammar.templates()["chat_topic"]
    if topic in words.SLOTS[t.slots[0]] and t.text.startswith(for_sad) == (mood == "sad")
  ]
  return grammar.fill(pick(rng, fitting), (topic,))


def state(world: World, rng, fact: Fact, wrong: bool) -> str:
  """A sentence with the fact, or with something false in its place."""
  if wrong:
    fact = dataclasses.replace(fact, value=world.wrong_value(rng, fact))
  return world.sentence(rng, fact)


def _describe(world: World, rng, task: dict, wrong: bool) -> str:
  facts = world.facts_by_subject[task["required"][0]]
  asked = _by_type(task["constraints"]).get("num_sentences")
  order = rng.permutation(len(facts))[: words.number(asked) if asked else 2]
  return " ".join(
    state(world, rng, facts[index], wrong and i == 0) for i, index in enumerate(order)
  )


def _list(world: World, rng, task: dict, wrong: bool) -> str:
  candidates = words.choices(task["members"])
  if "relation" in task and not wrong:
    candidates = world.subjects_by_value[task["relation"], task["value"]]
  constraints = _by_type(task["constraints"])
  avoided, used = constraints.get("avoid_word"), constraints.get("use_word")
  members = [word for word in candidates if word != avoided]
  items = [members[i] for i in rng.permutation(len(members))[: task["num_items"]]]
  if used is not None and used not in items:
    items[int(rng.random() * len(items))] = used
  return format_list(items)


def _chat(rng, task: dict) -> str:
  kind = f"chat_{task['mood']}"
  first = grammar.random_sentence(rng, kind, person=task["person"])
  asked = _by_type(task["constraints"]).get("num_sentences")
  if asked == "one" or (not task["topic"] and asked is None):
    return first
  if task["topic"]:
    return f"{first} {topic_sentence(rng, task['mood'], task['topic'][0])}"
  other = first
  while other == first:
    other = grammar.random_sentence(rng, kind, person=task["person"])
  return f"{first} {other}"


def _write(world: World, rng, task: dict, wrong: bool) -> str:
  """A completion without errors, except that it states something false if `wrong`."""
  one_word = "one_word" in _by_type(task["constraints"])
  match task["kind"]:
    case "story" | "letter" | "advert" | "poem":
      return write_text(rng, task["kind"], task["required"], task["constraints"])
    case "description":
      return _describe(world, rng, task, wrong)
    case "fact_question":
      fact = world.fact(task["subject"], task["relation"])
      if one_word:
        return f"{world.wrong_value(rng, fact) if wrong else fact.value} ."
      return state(world, rng, fact, wrong)
    case "polar_question":
      if wrong:
        return "no ." if task["answer"] == "yes" else "yes ."
      if rng.random() < 0.3:
        return f"{task['answer']} ."
      fact = world.fact(task["subject"], task["relation"])
      return f"{task['answer']} , {world.sentence(rng, fact)}"
    case "position":
      return grammar.random_sentence(rng, f"right:{task['category']}")
    case "list" | "known_list":
      return _list(world, rng, task, wrong)
    case "chat":
      return _chat(rng, task)
    case "summary":
      given = dict(zip(("person", "deed", "thing", "town"), task["required"]))
      return grammar.random_sentence(rng, "summary", **given)
    case "mood_label" | "manner_label":
      return f"{task['answer']} ."
    case "passage_question":
      return f"{task['answer']} ." if one_word or rng.random() < 0.5 else task["source"]
    case "extract":
      return format_list(task["answers"])
    case _:  # rewriting and word games
      return task["target"]


def demonstration(
  world: World, task: dict, rng, *, errors: dict[str, float] = DEMONSTRATION_ERRORS
) -> str:
  """A person's completion of a task, with errors at the given rates.

  Args:
    errors: rates in [0, 1], with the keys of DEMONSTRATION_ERRORS; {} for a flawless writer.
  """

  def errs(name: str) -> bool:
    return name in errors and rng.random() < errors[name]

  wrong = errs("wrong_fact")
  if errs("misses_constraint"):
    task = {**task, "constraints": []}
  text = _write(world, rng, task, wrong)
  if errs("padded_out"):
    text += " " + grammar.random_sentence(rng, "filler")
  elif errs("rude"):
    text += " " + grammar.random_sentence(rng, "rude_text")
  return text
