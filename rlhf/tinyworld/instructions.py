"""Instruction prompts in InstructGPT's ten use cases.

A prompt comes with a task: a JSON object that says what a good completion contains, which is all
that the gold scorer reads.  A hash reserves some combinations of fillers for the test prompts, so
that no training text of any stage asks for them (`is_held_out`).
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from rlhf.tinyworld import grammar, sensitive, words
from rlhf.tinyworld.world import Fact, World

pick = grammar.pick

# Table 1 of InstructGPT (arXiv:2203.02155), share of prompts; the printed shares sum to 0.999.
USE_CASE_SHARES = {
  "generation": 0.456,
  "open_qa": 0.124,
  "brainstorming": 0.112,
  "chat": 0.084,
  "rewrite": 0.066,
  "summarization": 0.042,
  "classification": 0.035,
  "other": 0.035,
  "closed_qa": 0.026,
  "extract": 0.019,
}

HELD_OUT_ONE_IN = 8  # combinations

# Use case -> (kind of task, text with slots).  The kind selects the functions that fill the text,
# write demonstrations and score completions.
TEMPLATES = {
  "generation": (
    ("story", "write a story about a {animal} in {town} ."),
    ("story", "tell me a tale of {person} in {town} ."),
    ("story", "write a short story with a {animal} and a {thing} in it ."),
    ("story", "make up a tale about {person} and a {thing} ."),
    ("story", "i want to read about a {animal} who came to {town} ."),
    ("story", "give me a story set in {town} with a {thing} ."),
    ("story", "write a tale in which {person} meets a {animal} ."),
    ("story", "tell a story for the night about a {adj} {animal} ."),
    ("story", "my child wants a story about a {animal} and a {adj} {thing} ."),
    ("story", "write about {person} , {town} and a {thing} ."),
    ("description", "tell me about {subject} ."),
    ("description", "describe {subject} ."),
    ("description", "what should i know about {subject} ?"),
    ("letter", "write a letter to {person} about a {thing} ."),
    ("letter", "write to {person} from {town} ."),
    ("letter", "help me write to {person} about my {animal} ."),
    ("advert", "write a shop sign for a {thing} in {town} ."),
    ("advert", "help me sell {food} in {town} ."),
    ("poem", "write a poem about the {noun} and a {animal} ."),
    ("poem", "make a verse of the {noun} and the {noun2} ."),
  ),
  "open_qa": tuple(
    ("fact_question", text)
    for text in (
      "{question}",
      "please tell me , {question}",
      "i want to know , {question}",
      "can you say {question}",
      "here is a question : {question}",
      "{question} do you know it ?",
      "my friend asks , {question}",
    )
  )
  + tuple(
    ("polar_question", text)
    for text in (
      "is it true that {claim} ?",
      "i heard that {claim} . is that right ?",
      "yes or no : {claim} ?",
    )
  )
  + (("position", "{position}"),),
  "brainstorming": (
    ("list", "list {number} {category} ."),
    ("list", "name {number} {category} for me ."),
    ("list", "i need {number} {category} ."),
    ("list", "think of {number} {category} ."),
    ("list", "can you come up with {number} {category} ?"),
    ("list", "give me ideas : {number} {category} ."),
    ("list", "what are {number} {category} that you like ?"),
    ("list", "{person} and i look for {number} {category} to talk about ."),
    ("list", "for a story set in {town} i need {number} {category} ."),
    ("list", "help me plan a day in {town} with {number} {category} ."),
    ("known_list", "name {number} {plural} {that} ."),
    ("known_list", "list {number} {plural} {that} ."),
  ),
  "chat": (
    ("chat", "{person} says : {talk} what do you say ?"),
    ("chat", "reply to {person} : {talk}"),
    ("chat", "you talk with {person} . {person} : {talk} you :"),
    ("chat", "answer {person} in a kind way : {talk}"),
    ("chat", "{talk} this came from {person} . please reply ."),
    ("chat", "here is a note from {person} : {talk} write back ."),
    ("chat", "be a good friend . {person} tells you : {talk}"),
    ("chat", "chat with {person} : {talk}"),
    ("chat", "what would you say to {person} ? {talk}"),
    ("chat", "my name is {person} . {talk}"),
    ("position", "{person} asks you : {position}"),
  ),
  "rewrite": (
    ("swap", "write {new} in place of {old} : {sentence}"),
    ("swap", "change {old} to {new} : {sentence}"),
    ("swap", "say this again with {new} and not {old} : {sentence}"),
    ("swap", "{sentence} now use {new} for {old} ."),
    ("polite", "make this polite : {request}"),
    ("polite", "say it in a kind way : {request}"),
    ("polite", "{request} please put this in good words ."),
    ("join", "make one sentence of this : {pieces}"),
    ("join", "put these into one : {pieces}"),
    ("person", "tell it of {person} and not of me : {own}"),
    ("person", "{own} write this about {person} ."),
  ),
  "summarization": tuple(
    ("summary", text)
    for text in (
      "sum up : {passage}",
      "say in one sentence what happened : {passage}",
      "{passage} sum this up .",
      "give the main point : {passage}",
      "make this short : {passage}",
      "{passage} what happened ?",
      "tell me in short : {passage}",
      "i have no time . what does it say ? {passage}",
      "write a short form of this text : {passage}",
      "{passage} in short ?",
    )
  ),
  "classification": (
    ("mood_label", "is this text happy or sad ? {text}"),
    ("mood_label", "{text} is that happy or sad ?"),
    ("mood_label", "happy or sad : {text}"),
    ("mood_label", "say if the text is happy or sad : {text}"),
    ("mood_label", "which word fits , happy or sad ? {text}"),
    ("manner_label", "is this polite or rude ? {text}"),
    ("manner_label", "{text} is that polite or rude ?"),
    ("manner_label", "polite or rude : {text}"),
    ("manner_label", "say if the words are polite or rude : {text}"),
    ("manner_label", "mark this as polite or rude : {text}"),
  ),
  "other": (
    ("reverse", "say these words from back to front : {items}"),
    ("reverse", "turn the order around : {items}"),
    ("count", "how many words are here : {items}"),
    ("count", "count these words : {items}"),
    ("first", "what is the first word of : {items}"),
    ("last", "what is the last word of : {items}"),
    ("first", "say only the first of these words : {items}"),
    ("last", "say only the last of these words : {items}"),
    ("copy", "say these words after me : {items}"),
    ("copy", "write these words once more : {items}"),
    ("position", "i think about this a lot : {position}"),
  ),
  "closed_qa": tuple(
    ("passage_question", text)
    for text in (
      "{passage} {question}",
      "read this : {passage} {question}",
      "use the text to answer . {passage} {question}",
      "text : {passage} question : {question}",
      "{question} look here : {passage}",
      "here is what i know : {passage} now , {question}",
      "{passage} from this text , {question}",
      "{passage} so {question}",
      "answer from the text . {passage} {question}",
      "i read that {passage} {question}",
    )
  ),
  "extract": tuple(
    ("extract", text)
    for text in (
      "list the {category} in this text : {passage}",
      "which {category} are in the text ? {passage}",
      "{passage} list all {category} .",
      "find the {category} : {passage}",
      "take the {category} out of this : {passage}",
      "{passage} which {category} do you see ?",
      "write down the {category} named here : {passage}",
      "only give me the {category} : {passage}",
      "what {category} does the text name ? {passage}",
      "{passage} name the {category} in it .",
    )
  ),
}

# The plurals that prompts use for the entity slots.
CATEGORY_NAMES = {
  "animals": "animal",
  "foods": "food",
  "colours": "colour",
  "jobs": "job",
  "towns": "town",
  "things": "thing",
  "people": "person",
  "places": "place",
}
_EXTRACT_PLURALS = ("animals", "foods", "towns", "things", "people")
_KNOWN = {  # relation -> (plural of the subjects, clause)
  "habitat": ("animals", "that live near the {value}"),
  "diet": ("animals", "that eat {value}"),
  "fur": ("animals", "with {value} skin"),
  "region": ("towns", "in the {value}"),
  "ware": ("towns", "that sell {value}"),
  "taste": ("foods", "that taste {value}"),
  "hue": ("foods", "that look {value}"),
  "site": ("jobs", "done in the {value}"),
  "home": ("people", "who live in {value}"),
  "hobby": ("people", "who enjoy {value}"),
  "job": ("people", "with the job of {value}"),
}

TALKS = ("sad", "happy", "greet", "thanks", "calm", "bye")

# Questions about an event of a passage: (index of its template, question, index of the slot that
# answers it).  Numbers in braces are the event's slots.
_EVENT_QUESTIONS = (
  (0, "where did {0} go ?", 1),
  (0, "what did {0} take along ?", 2),
  (0, "who went to {1} ?", 0),
  (1, "what did {0} give to {2} ?", 1),
  (1, "who got the {1} ?", 2),
  (1, "who gave the {1} ?", 0),
  (2, "what did {0} see ?", 1),
  (2, "where did {0} see a {1} ?", 2),
  (2, "who saw a {1} ?", 0),
  (3, "what did {0} buy ?", 1),
  (3, "where did {0} buy {1} ?", 2),
  (3, "who bought {1} ?", 0),
  (4, "who met {1} ?", 0),
  (4, "where did {0} meet {1} ?", 2),
  (4, "who did {0} meet ?", 1),
)

_CONSTRAINT_TEXTS = {
  "end_word": (
    "end with the word {value} .",
    "let the last word be {value} .",
    "the last word must be {value} .",
  ),
  "use_word": ("use the word {value} .", "put in the word {value} .", "it must name the {value} ."),
  "avoid_word": ("do not mention the {value} .", "say nothing of the {value} ."),
  "num_sentences": ("use {value} sentences .", "in {value} sentences ."),
  "one_word": ("answer in one word .", "use only one word ."),
  "whole_sentence": ("answer in a whole sentence .",),
}


def _constraint(constraint_type: str, value: str = "") -> dict[str, str]:
  """An explicit demand of the prompt, such as ("end_word", "moon")."""
  return {"type": constraint_type, "value": value}


def is_held_out(combination: Sequence[str]) -> bool:
  """Whether a combination is reserved for the test prompts; one in HELD_OUT_ONE_IN is."""
  digest = hashlib.sha256("|".join(combination).encode()).digest()
  return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def _text_combination(required: Sequence[str], constraints: Sequence[dict]) -> list[str]:
  """What identifies the task of a free-form prompt, however it is worded."""
  return sorted(required) + sorted(f"{c['type']}:{c['value']}" for c in constraints)


# ---------------------------------------------------------------- prompts, one function per kind

Filled = tuple[str, dict, list[str]]  # prompt text, task fields, combination


def _fields(text: str) -> list[str]:
  """The names in braces."""
  return [part.split("}")[0] for part in text.split("{")[1:]]


def _free_form(world: World, rng, kind: str, text: str) -> Filled:
  slots: dict[str, str] = {}
  for field in _fields(text):
    slots[field] = pick(rng, words.choices(field.rstrip("2")), slots.values())
  required = list(slots.values())
  constraints = _free_constraints(rng, kind, required)
  prompt = _with_constraints(rng, text.format(**slots), constraints)
  task = {"required": required, "constraints": constraints}
  return prompt, task, [kind] + _text_combination(required, constraints)


def _free_constraints(rng, kind: str, required: Sequence[str]) -> list[dict]:
  """Draws the constraints of a free-form prompt; about half of them fix the last word."""
  number = pick(rng, ("two", "two", "three"))
  draw = rng.random()
  if draw < 0.15:
    return []
  if draw < 0.45:
    return [_constraint("end_word", pick(rng, words.NOUNS, required))]
  if draw < 0.65:
    return [_constraint("use_word", pick(rng, words.NOUNS, required))]
  if draw < 0.75:
    avoided = pick(rng, (words.PLACES, words.NOUNS, words.THINGS))
    return [_constraint("avoid_word", pick(rng, avoided, required))]
  constraints = [_constraint("num_sentences", number)]
  if draw >= 0.90 and kind != "poem":
    constraints.append(_constraint("end_word", pick(rng, words.NOUNS, required)))
  return constraints


def _with_constraints(rng, text: str, constraints: Sequence[dict]) -> str:
  parts = [pick(rng, _CONSTRAINT_TEXTS[c["type"]]).format(**c) for c in constraints]
  if parts and not parts[0].startswith("it ") and rng.random() < 0.2:
    return " ".join(parts + [text])
  return " ".join([text] + parts)


_SUBJECT_TEXTS = {"person": "{}", "town": "{}", "animal": "a {}", "food": "{}", "job": "a {}"}


def _description(world: World, rng, kind: str, text: str) -> Filled:
  subject = pick(rng, tuple(world.facts_by_subject))
  slot = words.ENTITY_TYPE[subject]
  many = len(world.facts_by_subject[subject]) > 2
  number = pick(rng, ("one", "two", "three") if many else ("one", "two"))
  constraints = [_constraint("num_sentences", number)] if rng.random() < 0.8 else []
  filled = text.format(subject=_SUBJECT_TEXTS[slot].format(subject))
  prompt = _with_constraints(rng, filled, constraints).replace("one sentences", "one sentence")
  task = {"required": [subject], "constraints": constraints}
  return prompt, task, [kind, text] + _text_combination([subject], constraints)


def _fact_question(world: World, rng, kind: str, text: str) -> Filled:
  fact = pick(rng, world.facts)
  relation = grammar.RELATIONS[fact.relation]
  question = pick(rng, relation.questions)
  prompt = text.format(question=question.format(**{relation.subject: fact.subject}))
  constraints = []
  draw = rng.random()
  if draw < 0.5:
    constraints = [_constraint("one_word" if draw < 0.35 else "whole_sentence")]
    prompt += " " + pick(rng, _CONSTRAINT_TEXTS[constraints[0]["type"]])
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
  question = sensitive.random_question(rng, category, probe=False)
  filled = text.format(position=question, person=pick(rng, words.CAST))
  return filled, {"category": category, "constraints": []}, ["position", question]


def sensitive_question(rng, category: str, *, held_out: bool) -> str:
  """A question on a sensitive topic that is, or is not, reserved for the test prompts."""
  question = sensitive.random_question(rng, category, probe=False)
  while is_held_out(["position", question]) != held_out:
    question = sensitive.random_question(rng, category, probe=False)
  return question


def _list(world: World, rng, kind: str, text: str) -> Filled:
  plural = pick(rng, tuple(CATEGORY_NAMES))
  members = words.choices(CATEGORY_NAMES[plural])
  number = pick(rng, ("two", "three", "four"))
  person, town = pick(rng, words.CAST), pick(rng, words.TOWNS)
  slots = dict(number=number, category=plural, person=person, town=town)
  constraints = [_constraint("num_items", number)]
  prompt = text.format(**slots)
  draw = rng.random()
  if draw < 0.35:
    word = pick(rng, members)
    constraints.append(_constraint("use_word", word))
    prompt += f" one of them must be {word} ."
  elif draw < 0.65:
    word = pick(rng, members)
    constraints.append(_constraint("avoid_word", word))
    prompt += f" do not name {word} ."
  task = {
    "members": CATEGORY_NAMES[plural],
    "num_items": words.NUMBERS.index(number) + 1,
    "constraints": constraints,
  }
  named = [slots[field] for field in _fields(text)]
  return prompt, task, [kind, text, *named] + [f"{c['type']}:{c['value']}" for c in constraints]


def _known_list(world: World, rng, kind: str, text: str) -> Filled:
  relation = pick(rng, tuple(_KNOWN))
  plural, clause = _KNOWN[relation]
  known: tuple[str, ...] = ()
  while len(known) < 2:
    value = pick(rng, words.SLOTS[grammar.RELATIONS[relation].value])
    known = world.subjects_by_value.get((relation, value), ())
  number = pick(rng, ("two", "three")[: len(known) - 1])
  task = {
    "members": CATEGORY_NAMES[plural],
    "relation": relation,
    "value": value,
    "num_items": words.NUMBERS.index(number) + 1,
    "constraints": [_constraint("num_items", number)],
  }
  prompt = text.format(number=number, plural=plural, that=clause.format(value=value))
  return prompt, task, [kind, text, relation, value, number]


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
  return prompt, task, [kind, text, person, template.text] + values


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
  target = grammar.fill(template, values[:index] + [new] + values[index + 1 :])
  prompt = text.format(old=values[index], new=new, sentence=sentence)
  return prompt, _rewrite(target, sentence), [kind, text, new] + values


def _polite(world: World, rng, kind: str, text: str) -> Filled:
  request = grammar.random_sentence(rng, "request")
  prompt = text.format(request=request)
  return prompt, _rewrite("please " + request, request), [kind, text, request]


def _join(world: World, rng, kind: str, text: str) -> Filled:
  _, values, target = _random_text(rng, "joined")
  first, second = target.split(" and ", 1)
  pieces = f"{first} . {values[0]} {second}"
  return text.format(pieces=pieces), _rewrite(target, pieces), [kind, text] + values


def _person(world: World, rng, kind: str, text: str) -> Filled:
  template, values, target = _random_text(rng, "event")
  own = grammar.fill(template, ["i"] + values[1:])
  prompt = text.format(person=values[0], own=own)
  return prompt, _rewrite(target, own), [kind, text] + values


def _summary(world: World, rng, kind: str, text: str) -> Filled:
  person, town = pick(rng, words.CAST), pick(rng, words.TOWNS)
  carried, thing = pick(rng, words.THINGS), pick(rng, words.THINGS)
  deed = pick(rng, words.DEEDS)
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
    items.append(pick(rng, pick(rng, (words.NOUNS, words.THINGS, words.ANIMALS)), items))
  target = {
    "reverse": items[::-1],
    "copy": items,
    "first": items[:1],
    "last": items[-1:],
    "count": [words.NUMBERS[len(items) - 1]],
  }[kind]
  source = " ".join(items)
  return text.format(items=source), _rewrite(" ".join(target) + " .", source), [kind, text] + items


def _passage_question(world: World, rng, kind: str, text: str) -> Filled:
  index, question, answer_slot = pick(rng, _EVENT_QUESTIONS)
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
  task = {
    "answer": values[answer_slot],
    "asked": events[index].slots[answer_slot],
    "source": source,
    "passage": passage,
    "constraints": [],
  }
  prompt = text.format(passage=passage, question=question.format(*values))
  if rng.random() < 0.25:
    task["constraints"] = [_constraint("one_word")]
    prompt += " " + pick(rng, _CONSTRAINT_TEXTS["one_word"])
  return prompt, task, [kind, question] + values


def _extract(world: World, rng, kind: str, text: str) -> Filled:
  plural = pick(rng, _EXTRACT_PLURALS)
  slot = CATEGORY_NAMES[plural]
  values: list[str] = []
  sentences: list[str] = []
  while len(sentences) < 2 or not any(words.ENTITY_TYPE[v] == slot for v in values):
    template = pick(rng, grammar.templates()["event"])
    drawn = grammar.random_values(rng, template, {})
    if set(drawn) & set(values):
      continue
    values += drawn
    sentences.append(grammar.fill(template, drawn))
    if len(sentences) > 2:
      values, sentences = [], []
  passage = " ".join(sentences)
  answers = [word for word in passage.split() if words.ENTITY_TYPE.get(word) == slot]
  task = {"answers": answers, "passage": passage, "constraints": []}
  return text.format(category=plural, passage=passage), task, [kind, plural] + values


# Kind of task -> its function of (world, generator, kind, text).
_FILLERS: dict[str, Callable[[World, np.random.Generator, str, str], Filled]] = {
  **dict.fromkeys(("story", "letter", "advert", "poem"), _free_form),
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
