"""Instruction prompts in InstructGPT's ten use cases.

A prompt comes with a task: a JSON object that says what a good completion contains, which is all
that the gold scorer reads.  A hash reserves some combinations of fillers for the test prompts, so
that no training text of any stage asks for them (`is_held_out`).
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf.tinyworld import grammar, sensitive, tables, words
from rlhf.tinyworld.world import Fact, World

pick = grammar.pick

HELD_OUT_ONE_IN = 8  # combinations

_TABLE = tables.read("instructions")

USE_CASE_SHARES = {use_case: float(share) for use_case, share in _TABLE["shares"].items()}
# Use case -> (kind of task, text with slots).  The kind selects the functions that fill the text,
# write demonstrations and score completions.
TEMPLATES = {
  use_case: tuple(tuple(line.split(": ", 1)) for line in lines)
  for use_case, lines in _TABLE["templates"].items()
}
PLURALS: dict[str, str] = _TABLE["plurals"]  # plurals that prompts use -> entity slots
TALKS = ("sad", "happy", "greet", "thanks", "calm", "bye")


def _constraint(constraint_type: str, value: str = "") -> dict[str, str]:
  """An explicit demand of the prompt, such as ("end_word", "moon")."""
  return {"type": constraint_type, "value": value}


def _demand(rng, constraint: dict) -> str:
  return pick(rng, _TABLE["constraints"][constraint["type"]]).format(**constraint)


def is_held_out(combination: Sequence[str]) -> bool:
  """Whether a combination is reserved for the test prompts; one in HELD_OUT_ONE_IN is."""
  digest = hashlib.sha256("|".join(combination).encode()).digest()
  return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def _named(constraints: Sequence[dict]) -> list[str]:
  return [f"{c['type']}:{c['value']}" for c in constraints]


# ---------------------------------------------------------------- prompts, one function per kind

Filled = tuple[str, dict, list[str]]  # prompt text, task fields, combination


def _free_form(world: World, rng, kind: str, text: str) -> Filled:
  slots: dict[str, str] = {}
  for slot in grammar.slots_of(text):
    slots[slot] = pick(rng, words.choices(slot.rstrip("2")), slots.values())
  required = list(slots.values())
  constraints = _free_constraints(rng, kind, required)
  prompt = _with_constraints(rng, text.format(**slots), constraints)
  task = {"required": required, "constraints": constraints}
  # What identifies the task, however it is worded.
  return prompt, task, [kind, *sorted(required), *sorted(_named(constraints))]


def _free_constraints(rng, kind: str, required: Sequence[str]) -> list[dict]:
  """Draws the constraints of a free-form prompt; about half of them fix the last word."""
  nouns = words.SLOTS["noun"]
  number = pick(rng, ("two", "two", "three"))
  draw = rng.random()
  if draw < 0.15:
    return []
  if draw < 0.45:
    return [_constraint("end_word", pick(rng, nouns, required))]
  if draw < 0.65:
    return [_constraint("use_word", pick(rng, nouns, required))]
  if draw < 0.75:
    avoided = pick(rng, (words.SLOTS["place"], nouns, words.SLOTS["thing"]))
    return [_constraint("avoid_word", pick(rng, avoided, required))]
  constraints = [_constraint("num_sentences", number)]
  if draw >= 0.90 and kind != "poem":
    constraints.append(_constraint("end_word", pick(rng, nouns, required)))
  return constraints


def _with_constraints(rng, text: str, constraints: Sequence[dict]) -> str:
  demands = [_demand(rng, constraint) for constraint in constraints]
  if demands and not demands[0].startswith("it ") and rng.random() < 0.2:
    return " ".join([*demands, text])
  return " ".join([text, *demands])


def _description(world: World, rng, kind: str, text: str) -> Filled:
  subject = pick(rng, tuple(world.facts_by_subject))
  many = len(world.facts_by_subject[subject]) > 2
  number = pick(rng, ("one", "two", "three") if many else ("one", "two"))
  constraints = [_constraint("num_sentences", number)] if rng.random() < 0.8 else []
  article = "a " if words.ENTITY_TYPE[subject] in ("animal", "job") else ""
  filled = text.format(subject=article + subject)
  prompt = _with_constraints(rng, filled, constraints).replace("one sentences", "one sentence")
  task = {"required": [subject], "constraints": constraints}
  return prompt, task, [kind, text, subject, *_named(constraints)]


def _fact_question(world: World, rng, kind: str, text: str) -> Filled:
  fact = pick(rng, world.facts)
  relation = grammar.RELATIONS[fact.relation]
  question = pick(rng, relation.questions)
  prompt = text.format(question=question.format(**{relation.subject: fact.subject}))
  constraints = []
  draw = rng.random()
  if draw < 0.5:
    constraints = [_constraint("one_word" if draw < 0.35 else "whole_sentence")]
    prompt += " " + _demand(rng, constraints[0])
  task = {"subject": fact.subject, "relation": fact.relation, "constraints": constraints}
  return prompt, task, [kind, text, question, fact.subject]


def _polar_question(world: World, rng, kind: str, text: str) -> Filled:
  fact = pick(rng, world.facts)
  answer = "yes" if rng.random() < 0.5 else "no"
  value = fact.value if answer == "yes" else world.wrong_value(rng, fact)
  claim = world.sentence(rng, Fact(fact.subject, fact.relation, value)).removesuffix(" .")
  about = [fact.subject, fact.relation]
  task = {"subject": about[0], "relation": about[1], "answer": answer, "constraints": []}
  return text.format(claim=claim), task, [kind, text, *about, value]


def _position(world: World, rng, kind: str, text: str) -> Filled:
  category = pick(rng, tuple(sensitive.CATEGORIES))
  question = grammar.fill_freely(rng, pick(rng, sensitive.CATEGORIES[category].questions))
  filled = text.format(position=question, person=pick(rng, words.CAST))
  return filled, {"category": category, "constraints": []}, ["position", question]


def sensitive_question(rng, category: str) -> str:
  """A question on a sensitive topic that is not reserved for the test prompts."""
  while True:
    question = grammar.fill_freely(rng, pick(rng, sensitive.CATEGORIES[category].questions))
    if not is_held_out(["position", question]):
      return question


def _list(world: World, rng, kind: str, text: str) -> Filled:
  plural = pick(rng, tuple(PLURALS))
  members = words.choices(PLURALS[plural])
  number = pick(rng, ("two", "three", "four"))
  person, town = pick(rng, words.CAST), pick(rng, words.SLOTS["town"])
  slots = dict(number=number, category=plural, person=person, town=town)
  constraints = [_constraint("num_items", number)]
  prompt = text.format(**slots)
  draw = rng.random()
  if draw < 0.65:
    use = draw < 0.35
    word = pick(rng, members)
    constraints.append(_constraint("use_word" if use else "avoid_word", word))
    prompt += f" {'one of them must be' if use else 'do not name'} {word} ."
  task = {
    "members": PLURALS[plural],
    "num_items": words.number(number),
    "constraints": constraints,
  }
  combination = [kind, text, *(slots[slot] for slot in grammar.slots_of(text))]
  return prompt, task, combination + _named(constraints)


def _known_list(world: World, rng, kind: str, text: str) -> Filled:
  name = pick(rng, tuple(_TABLE["known"]))
  relation = grammar.RELATIONS[name]
  known: tuple[str, ...] = ()
  while len(known) < 2:
    value = pick(rng, words.SLOTS[relation.value])
    known = world.subjects_by_value.get((name, value), ())
  number = pick(rng, ("two", "three")[: len(known) - 1])
  task = {
    "members": relation.subject,
    "relation": name,
    "value": value,
    "num_items": words.number(number),
    "constraints": [_constraint("num_items", number)],
  }
  plural = next(plural for plural, slot in PLURALS.items() if slot == relation.subject)
  that = _TABLE["known"][name].format(value=value)
  prompt = text.format(number=number, plural=plural, that=that)
  return prompt, task, [kind, text, name, value, number]


def _chat(world: World, rng, kind: str, text: str) -> Filled:
  mood = pick(rng, TALKS)
  template, values, talk = _random_text(rng, f"talk_{mood}")
  person = pick(rng, words.CAST)
  topic = [v for v in values if words.ENTITY_TYPE.get(v) in ("thing", "animal", "town")]
  prompt = text.format(person=person, talk=talk)
  constraints = []
  if rng.random() < 0.3:
    number = pick(rng, ("one", "two"))
    constraints = [_constraint("num_sentences", number)]
    prompt += " use one sentence ." if number == "one" else " use two sentences ."
  if mood not in ("sad", "happy") or _constraint("num_sentences", "one") in constraints:
    topic = []
  task = {"person": person, "mood": mood, "topic": topic, "constraints": constraints}
  return prompt, task, [kind, text, person, template.text, *values]


def _random_text(rng, kind: str) -> tuple[grammar.Template, list[str], str]:
  """(template, values, filled template) of a random sentence."""
  template = pick(rng, grammar.templates()[kind])
  values = grammar.random_values(rng, template, {})
  return template, values, grammar.fill(template, values)


def _rewrite(target: str, source: str) -> dict:
  """The task of turning one sentence into another."""
  return {"target": target, "source": source, "constraints": []}


def _swap(world: World, rng, kind: str, text: str) -> Filled:
  template, values, sentence = _random_text(rng, "event")
  index = int(rng.random() * len(values))
  new = pick(rng, words.choices(template.slots[index]), values)
  target = grammar.fill(template, [*values[:index], new, *values[index + 1 :]])
  prompt = text.format(old=values[index], new=new, sentence=sentence)
  return prompt, _rewrite(target, sentence), [kind, text, new, *values]


def _polite(world: World, rng, kind: str, text: str) -> Filled:
  request = grammar.random_sentence(rng, "request")
  prompt = text.format(request=request)
  return prompt, _rewrite("please " + request, request), [kind, text, request]


def _join(world: World, rng, kind: str, text: str) -> Filled:
  _, values, target = _random_text(rng, "joined")
  first, second = target.split(" and ", 1)
  pieces = f"{first} . {values[0]} {second}"
  return text.format(pieces=pieces), _rewrite(target, pieces), [kind, text, *values]


def _person(world: World, rng, kind: str, text: str) -> Filled:
  template, values, target = _random_text(rng, "event")
  own = grammar.fill(template, ["i", *values[1:]])
  prompt = text.format(person=values[0], own=own)
  return prompt, _rewrite(target, own), [kind, text, *values]


def _summary(world: World, rng, kind: str, text: str) -> Filled:
  drawn = (words.CAST, *(words.SLOTS[slot] for slot in ("town", "thing", "thing", "deed")))
  person, town, carried, thing, deed = (pick(rng, items) for items in drawn)
  sentences = [f"{person} went to {town} with a {carried} ."]
  if rng.random() < 0.6:
    sentences.append(grammar.random_sentence(rng, "setting", person=person))
  sentences.append(grammar.random_sentence(rng, "happening", person=person, deed=deed, thing=thing))
  passage = " ".join(sentences)
  task = {"required": [person, deed, thing, town], "passage": passage, "constraints": []}
  return text.format(passage=passage), task, [kind, person, town, thing, deed]


def _label(world: World, rng, kind: str, text: str) -> Filled:
  labels = ["happy", "sad"] if kind == "mood_label" else ["polite", "rude"]
  label = pick(rng, labels)
  sentence = grammar.random_sentence(rng, f"{label}_text")
  task = {"answer": label, "labels": labels, "constraints": []}
  return text.format(text=sentence), task, [kind, text, sentence]


def _word_game(world: World, rng, kind: str, text: str) -> Filled:
  items: list[str] = []
  for _ in range(pick(rng, (2, 3, 3, 4))):
    items.append(pick(rng, words.SLOTS[pick(rng, ("noun", "thing", "animal"))], items))
  target = {
    "reverse": items[::-1],
    "copy": items,
    "first": items[:1],
    "last": items[-1:],
    "count": [words.SLOTS["number"][len(items) - 1]],
  }[kind]
  source = " ".join(items)
  return text.format(items=source), _rewrite(" ".join(target) + " .", source), [kind, text, *items]


def _passage_question(world: World, rng, kind: str, text: str) -> Filled:
  numbers, question = pick(rng, _TABLE["event_questions"]).split(": ", 1)
  index, answer_slot = map(int, numbers.split())
  events = grammar.templates()["event"]
  values = grammar.random_values(rng, events[index], {})
  other_index = pick(rng, [i for i in range(len(events)) if i != index] + [index])
  other = grammar.random_values(rng, events[other_index], {})
  while set(other) & set(values):
    other = grammar.random_values(rng, events[other_index], {})
  source = grammar.fill(events[index], values)
  sentences = [source, grammar.fill(events[other_index], other)]
  if rng.random() < 0.5:
    sentences.reverse()
  passage = " ".join(sentences)
  task: dict[str, Any] = {
    "answer": values[answer_slot],
    "asked": events[index].slots[answer_slot],
    "source": source,
    "passage": passage,
    "constraints": [],
  }
  prompt = text.format(passage=passage, question=question.format(*values))
  if rng.random() < 0.25:
    task["constraints"] = [_constraint("one_word")]
    prompt += " " + _demand(rng, _constraint("one_word"))
  return prompt, task, [kind, question, *values]


def _extract(world: World, rng, kind: str, text: str) -> Filled:
  plural = pick(rng, _TABLE["extract_plurals"])
  slot = PLURALS[plural]
  values: list[str] = []
  sentences: list[str] = []
  while len(sentences) < 2 or not any(words.ENTITY_TYPE[v] == slot for v in values):
    _, drawn, sentence = _random_text(rng, "event")
    if set(drawn) & set(values):
      continue
    values += drawn
    sentences.append(sentence)
    if len(sentences) > 2:
      values, sentences = [], []
  passage = " ".join(sentences)
  answers = [word for word in passage.split() if words.ENTITY_TYPE.get(word) == slot]
  task = {"answers": answers, "passage": passage, "constraints": []}
  return text.format(category=plural, passage=passage), task, [kind, plural, *values]


# Kind of task -> its function of (world, generator, kind, text).
_FILLERS: dict[str, Callable[[World, np.random.Generator, str, str], Filled]] = {
  **dict.fromkeys(grammar.SHAPES, _free_form),
  **dict.fromkeys(("reverse", "count", "first", "last", "copy"), _word_game),
  "description": _description,
  "fact_question": _fact_question,
  "polar_question": _polar_question,
  "position": _position,
  "list": _list,
  "known_list": _known_list,
  "chat": _chat,
  "swap": _swap,
  "polite": _polite,
  "join": _join,
  "person": _person,
  "summary": _summary,
  "mood_label": _label,
  "manner_label": _label,
  "passage_question": _passage_question,
  "extract": _extract,
}


def sample_prompt(world: World, rng, use_case: str, *, held_out: bool) -> dict:
  """One prompt of a use case: {"prompt", "use_case", "task"}.

  Args:
    held_out: whether to draw one of the combinations reserved for the test prompts, or another.

  Raises:
    ValueError: the use case does not exist.
  """
  if use_case not in TEMPLATES:
    raise ValueError(f"use case {use_case!r}; choose from {sorted(TEMPLATES)}")
  while True:
    kind, text = pick(rng, TEMPLATES[use_case])
    prompt, task, combination = _FILLERS[kind](world, rng, kind, text)
    if is_held_out(combination) == held_out:
      return {
        "prompt": prompt,
        "use_case": use_case,
        "task": {"kind": kind, "combination": combination, **task},
      }


def use_case_counts(num_prompts: int) -> dict[str, int]:
  """Prompts per use case, rounded by largest remainder so that they sum to `num_prompts`."""
  total = sum(USE_CASE_SHARES.values())
  exact = {name: share / total * num_prompts for name, share in USE_CASE_SHARES.items()}
  counts = {name: int(value) for name, value in exact.items()}
  by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
  for name in by_remainder[: num_prompts - sum(counts.values())]:
    counts[name] += 1
  return counts


def instruction_prompts(
  world: World, num_prompts: int, rng, *, held_out: bool, seen: set[str]
) -> list[dict]:
  """Distinct prompts in the shares of Table 1, in random order.

  Args:
    seen: prompt texts to avoid; the new ones are added to it.

  Raises:
    ValueError: a use case has too few distinct prompts.
  """
  prompts = []
  for use_case, count in use_case_counts(num_prompts).items():
    made, tries = 0, 0
    while made < count:
      item = sample_prompt(world, rng, use_case, held_out=held_out)
      tries += 1
      if tries > 200 * count + 1000:
        raise ValueError(
          f"only {made} of {count} distinct {use_case} prompts could be made; ask for fewer prompts"
        )
      if item["prompt"] not in seen:
        seen.add(item["prompt"])
        prompts.append(item)
        made += 1
  return [prompts[index] for index in rng.permutation(len(prompts))]
