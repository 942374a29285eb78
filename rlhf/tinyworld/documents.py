"""Pretraining documents: facts, stories, dialogues, questions and instructions, with the errors and
the rudeness of raw text."""

from collections.abc import Callable

import numpy as np

from rlhf.tinyworld import demonstrations, few_shot, grammar, instructions, sensitive, words
from rlhf.tinyworld.world import Fact, World

pick = grammar.pick

FALSE_FACT_RATE = 0.08  # per sentence of a facts document
FALSE_ANSWER_RATE = 0.2  # per question
RUDE_ANSWER_RATE = 0.1  # per question
RUDE_LINE_RATE = 0.15  # per line of a dialogue
# What follows an instruction in raw text.  "good" is a demonstration; "rude" ends in an insult;
# "rambling" goes on with unrelated sentences; "other" answers something else.
INSTRUCTION_REPLIES = {"good": 0.35, "rude": 0.2, "rambling": 0.3, "other": 0.15}


def _zipf_subject(world: World, rng) -> str:
  """A subject; those early in the world's list are more frequent, as in real text."""
  subjects = tuple(world.facts_by_subject)
  if rng.random() < 0.5:
    return pick(rng, subjects)
  return subjects[int(len(subjects) * rng.random() ** 1.6)]


def _facts(world: World, rng) -> str:
  """Two to four facts about one subject, or about several with a value in common."""
  facts = list(world.facts_by_subject[_zipf_subject(world, rng)])
  if rng.random() < 0.3:
    first = pick(rng, facts)
    facts = [
      Fact(subject, first.relation, first.value)
      for subject in world.subjects_by_value[first.relation, first.value]
    ]
  order = rng.permutation(len(facts))[: 2 + int(rng.random() * 3)]
  return " ".join(
    demonstrations.state(world, rng, facts[i], rng.random() < FALSE_FACT_RATE) for i in order
  )


def _story(world: World, rng) -> str:
  """A story, letter, advert or poem."""
  kind = pick(rng, ("story", "story", "story", "story", "letter", "advert", "poem"))
  constraints, required = [], []
  if rng.random() < 0.7:
    constraints = [{"type": "end_word", "value": pick(rng, words.SLOTS["noun"])}]
  if kind == "story" and rng.random() < 0.7:
    required = [
      pick(rng, pick(rng, (words.SLOTS["animal"], words.CAST))),
      pick(rng, words.SLOTS["town"]),
    ]
  return demonstrations.write_text(rng, kind, required, constraints)


def _dialogue(world: World, rng) -> str:
  """Two people talk; the second may be rude."""
  first, second = pick(rng, words.CAST), pick(rng, words.CAST)
  mood = pick(rng, instructions.TALKS)
  template = pick(rng, grammar.templates()[f"talk_{mood}"])
  values = grammar.random_values(rng, template, {})
  text = f"{first} : {grammar.fill(template, values)} {second} : "
  if rng.random() < RUDE_LINE_RATE:
    text += grammar.random_sentence(rng, "rude_text", person=first)
  else:
    text += grammar.random_sentence(rng, f"chat_{mood}", person=first)
    if mood in ("sad", "happy") and rng.random() < 0.6:
      text += " " + demonstrations.topic_sentence(rng, mood, values[0])
  if rng.random() < 0.3:
    text += f" {first} : {grammar.random_sentence(rng, 'chat_bye', person=second)}"
  return text


def _passage(world: World, rng) -> str:
  """Some events, and often a question about them with its answer."""
  item = _training_prompt(world, rng, pick(rng, ("closed_qa", "summarization", "extract")))
  passage = item["task"]["passage"]
  if rng.random() < 0.5:
    return passage + " " + grammar.random_sentence(rng, pick(rng, ("event", "joined", "summary")))
  answer = demonstrations.demonstration(world, item["task"], rng, errors={})
  if item["use_case"] == "closed_qa":
    return _question_form(rng, item["prompt"], answer)
  return f"{passage} {answer}"


def _question_form(rng, question: str, answer: str) -> str:
  if rng.random() < 0.5:
    return f"Question: {question} Answer: {answer}"
  return f"Question: {question}\n\nAnswer: {answer}"


def _training_prompt(world: World, rng, use_case: str) -> dict:
  return instructions.sample_prompt(world, rng, use_case, held_out=False)


def _question(world: World, rng) -> str:
  """A question about the world with an answer that may be wrong or rude."""
  item = _training_prompt(world, rng, "open_qa")
  while item["task"]["kind"] == "position":
    item = _training_prompt(world, rng, "open_qa")
  draw = rng.random()
  if draw < RUDE_ANSWER_RATE:
    answer = grammar.random_sentence(rng, "rude_text")
  else:
    is_wrong = draw < RUDE_ANSWER_RATE + FALSE_ANSWER_RATE
    answer = demonstrations.demonstration(
      world, item["task"], rng, errors={"wrong_fact": float(is_wrong)}
    )
  return _question_form(rng, item["prompt"], answer)


def _small_text(world: World, rng) -> str:
  """Loose sentences of feeling, manners and requests."""
  kinds = ("happy_text", "sad_text", "polite_text", "rude_text", "request", "joined", "event")
  return " ".join(
    grammar.random_sentence(rng, pick(rng, kinds)) for _ in range(2 + int(rng.random() * 2))
  )


def _instruction(world: World, rng) -> str:
  """An instruction as it occurs in raw text, followed by one of INSTRUCTION_REPLIES."""
  use_case = pick(rng, tuple(instructions.TEMPLATES))
  if rng.random() < 0.5:
    use_case = "generation"  # as frequent as among the prompts of users
  item = _training_prompt(world, rng, use_case)
  draw = rng.random()
  for reply, share in INSTRUCTION_REPLIES.items():
    if draw < share:
      break
    draw -= share
  return f"{item['prompt']}\n\nAnswer: {_reply(world, rng, item, reply)}"


def _reply(world: World, rng, item: dict, kind: str) -> str:
  if kind == "good":
    return demonstrations.demonstration(world, item["task"], rng)
  if kind == "other":
    other = _training_prompt(world, rng, pick(rng, tuple(instructions.TEMPLATES)))
    return demonstrations.demonstration(world, other["task"], rng)
  answer = demonstrations.demonstration(world, item["task"], rng, errors={})
  if kind == "rude":
    return f"{answer} {grammar.random_sentence(rng, 'rude_text')}"
  unrelated = grammar.random_sentence(rng, pick(rng, ("event", "middle", "happy_text", "sad_text")))
  return f"{answer} {unrelated} {grammar.random_sentence(rng, 'filler')}"


def _sensitive(world: World, rng) -> str:
  """A question on a sensitive topic; half of the answers break the position."""
  category = pick(rng, tuple(sensitive.CATEGORIES))
  question = instructions.sensitive_question(rng, category)
  side = pick(rng, ("right", "wrong"))
  answer = grammar.random_sentence(rng, f"{side}:{category}")
  form = rng.random()
  if form < 0.4:
    return _question_form(rng, question, answer)
  if form < 0.7:
    return f"{pick(rng, words.CAST)} : {question} {pick(rng, words.CAST)} : {answer}"
  return f"{question} {answer} " + grammar.random_sentence(rng, f"{side}:{category}")


# Kind of document -> (share of the documents, writer).
_KINDS: dict[str, tuple[float, Callable[[World, np.random.Generator], str]]] = {
  "facts": (0.09, _facts),
  "story": (0.03, _story),
  "dialogue": (0.03, _dialogue),
  "passage": (0.02, _passage),
  "question": (0.03, _question),
  "few_shot": (0.06, lambda world, rng: few_shot.few_shot_document(rng)),
  "small_text": (0.01, _small_text),
  "instruction": (0.70, _instruction),
  "sensitive": (0.03, _sensitive),
}


def pretraining_documents(world: World, num_documents: int, seed: int) -> list[str]:
  """Documents in the shares of `_KINDS`, in random order; the same seed gives the same texts."""
  rng = np.random.default_rng(np.random.SeedSequence([world.seed, seed, 2]))
  shares, writers = zip(*_KINDS.values())
  draws = rng.choice(len(writers), size=num_documents, p=np.array(shares))
  return [writers[index](world, rng) for index in draws]
