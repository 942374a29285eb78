"""From published examples to items: the text that a model reads, and what is right.

An item is a dict of

  id          str, of the example, or of its place in the file
  prompt      the text that the model continues, without a space at its end
  references  texts that answer it; an unanswerable question has none
  target      the answer when the item is an example for another one (few-shot)

or, for multiple choice, of `prompt`, `choices` (each follows the prompt and a space) and `answer`
(the index of the right one); in the bias tasks, of `prompt` and two `choices` that follow it as
they are.  A layout takes rows with the hub's columns, each with a name that can serve as the id.

Where InstructGPT's authors released prompts (SQuADv2, DROP, Fr-En, TL;DR, RealToxicityPrompts) the
layouts are theirs.  Those of QuAC and WSC follow GPT-3's (Brown et al. 2020, appendix G); RTE,
SST and HellaSwag are worded here, as the paper only describes what they ask.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

NO_ANSWER = "Not in background."  # SQuADv2
UNKNOWN = "I don't know"  # QuAC
Item = dict[str, Any]
Row = Mapping[str, Any]
Rows = Iterable[tuple[str, Row]]  # (name, columns as on the hub)


# ----------------------------------------------------------------------------- questions on a text


def _turns(
  prompt: str, where: str, questions: Sequence[tuple[str, str, list[str], str]]
) -> Iterator[Item]:
  """One item per question; its prompt has the questions before it with their answers.

  Args:
    where: names the text.
    questions: (id, question, references, target).
  """
  for number, (name, question, references, target) in enumerate(questions, start=1):
    prompt += f"\n\nQ: {question}\n\nA:"
    yield dict(
      id=str(name),
      prompt=prompt,
      references=references,
      target=target,
      paragraph=where,
      is_last=number == len(questions),
    )
    prompt += f" {target}"


def squadv2(rows: Rows) -> Iterator[Item]:
  """Questions on one paragraph follow one another, and become items together."""
  paragraph = lambda named: (named[1]["title"], named[1]["context"])
  for (title, context), group in itertools.groupby(rows, paragraph):
    questions = []
    for name, row in group:
      references = list(dict.fromkeys(row["answers"]["text"]))
      target = references[0] if references else NO_ANSWER
      questions.append((row.get("id", name), row["question"], references, target))
    yield from _turns(
      f"Title: {title}\n\nBackground: {context}", f"{title}/{questions[0][0]}", questions
    )


def quac(rows: Rows) -> Iterator[Item]:
  """One item per turn of a dialogue; "CANNOTANSWER" is "I don't know"."""
  known = lambda text: UNKNOWN if text == "CANNOTANSWER" else text
  for name, row in rows:
    context = row["context"].removesuffix("CANNOTANSWER").rstrip()
    questions = [
      (turn, question, list(dict.fromkeys(map(known, texts))), known(target))
      for turn, question, texts, target in zip(
        row["turn_ids"],
        row["questions"],
        row["answers"]["texts"],
        row["orig_answers"]["texts"],
        strict=True,
      )
    ]
    yield from _turns(
      f"TITLE: {row['wikipedia_page_title']} - {row['section_title']}\nPARAGRAPH: {context}",
      row.get("dialogue_id", name),
      questions,
    )


def drop(rows: Rows) -> Iterator[Item]:
  """A reference is a list of spans, mostly of one; questions without an answer are left out."""
  for _, row in rows:
    if answers := drop_answers(row):
      yield dict(
        id=row["query_id"],
        prompt=f"Passage: {row['passage']}\nQuestion: {row['question']}\nAnswer:",
        references=answers,
        target=", ".join(answers[0]),
      )


def drop_answers(example: Row) -> list[list[str]]:
  """The distinct answers of an example and its validators, each as spans."""
  validated = example["validated_answers"]
  if isinstance(validated, Mapping):  # columns, as on the hub
    validated = [dict(zip(validated, row)) for row in zip(*validated.values(), strict=True)]
  found = []
  for answer in [example["answer"], *validated]:
    date = answer["date"]
    if str(answer["number"]):
      spans = [str(answer["number"])]
    elif answer["spans"]:
      spans = list(answer["spans"])
    else:
      spans = [" ".join(date[part] for part in ("day", "month", "year") if date.get(part))]
    if spans not in found and any(span.strip() for span in spans):
      found.append(spans)
  return found


# ----------------------------------------------------------------------------- choices


def hellaswag(row: Row, name: str) -> Item:
  """Brackets are markup of the WikiHow pages, not text."""

  def clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()

  context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
  return dict(
    id=name,
    prompt=clean(f"{row['activity_label']}: {context}"),
    choices=[clean(ending) for ending in row["endings"]],
    answer=int(row["label"]),
  )


def rte(row: Row, name: str) -> Item:
  prompt = f"{row['sentence1']}\nQuestion: {row['sentence2']} Yes or no?\nAnswer:"
  return dict(id=name, prompt=prompt, choices=["yes", "no"], answer=int(row["label"]))


def sst(row: Row, name: str) -> Item:
  return dict(
    id=name,
    prompt=f"Text: {row['sentence'].strip()}\nLabel:",
    choices=["positive", "negative"],
    answer=1 - int(row["label"]),
  )


def wsc(row: Row, name: str) -> Item:
  """The model names what the pronoun refers to; `is_referent` says whether `noun` is right.

  Args:
    row: of SuperGLUE, with word indices: {"text", "span1_text", "span2_index", "span2_text",
      "label"}.
  """
  words = row["text"].split()
  place, pronoun = row["span2_index"], row["span2_text"]
  marked = words[place].replace(pronoun, f"*{pronoun}*", 1)
  passage = " ".join([*words[:place], marked, *words[place + 1 :]])
  prompt = (
    f"Passage: {passage}\nQuestion: In the passage above, what does the pronoun "
    f'"*{pronoun}*" refer to?\nAnswer:'
  )
  return dict(
    id=name,
    prompt=prompt,
    references=[row["span1_text"]],
    target=row["span1_text"],
    is_referent=bool(row["label"]),
  )


# ----------------------------------------------------------------------------- written answers


def translation(row: Row, name: str) -> Item:
  french, english = row["translation"]["fr"], row["translation"]["en"]
  return dict(id=name, prompt=f"French: {french}\nEnglish:", references=[english], target=english)


def _summary(text: str, reference: str, name: str) -> Item:
  return dict(
    id=name,
    prompt=f"{text.strip()}\n\nTL;DR:",
    references=[reference],
    target=" ".join(reference.split()),
  )


def cnn_dm(row: Row, name: str) -> Item:
  return _summary(row["article"], row["highlights"], name)


_POST = re.compile(r"\nPOST: (.*?)(\n*TL;DR:)?\s*$", re.DOTALL)


def tldr(row: Row, name: str) -> Item:
  post = _POST.search(row["prompt"])
  return _summary(post[1] if post else row["prompt"], row["label"].strip(), name)


def truthfulqa(row: Row, name: str) -> Item:
  """`prompt` is the question alone: `prompts.truthfulqa` makes the whole prompt."""
  references = dict(true=list(row["correct_answers"]), false=list(row["incorrect_answers"]))
  return dict(
    id=name,
    prompt=row["question"],
    target=row["best_answer"],
    references=references,
    type=row["type"],
    category=row["category"],
  )


def real_toxicity(row: Row, name: str) -> Item:
  """`toxicity` is the prompt's own, in [0, 1], or None if it is unknown."""
  prompt = row["prompt"]
  return dict(id=name, prompt=prompt["text"], references=[], toxicity=prompt["toxicity"])


# ----------------------------------------------------------------------------- bias


def winogender(rows: Rows) -> Iterator[Item]:
  """The 120 templates with a named participant, without "someone" and "they", as in the paper.

  Each sentence is cut before the pronoun; the two endings differ in nothing else.

  Args:
    rows: {"sentid", such as "technician.customer.1.male.txt", "sentence"}.

  Raises:
    ValueError: two sentences do not differ.
  """
  sentences: dict[str, dict[str, list[str]]] = {}
  for _, row in rows:
    template, gender = row["sentid"].removesuffix(".txt").rsplit(".", 1)
    if ".someone." not in f".{template}.":
      sentences.setdefault(template, {})[gender] = row["sentence"].split(" ")
  for template, words in sentences.items():
    male, female = words["male"], words["female"]
    place = next((i for i, (a, b) in enumerate(zip(male, female)) if a != b), None)
    if place is None:
      raise ValueError(
        f"{template}: both sentences are {' '.join(male)!r}; the pronoun must differ"
      )
    occupation, participant, answer = template.split(".")[:3]
    yield dict(
      id=template,
      prompt=" ".join(male[:place]),
      choices=[" " + " ".join(ending[place:]) for ending in (male, female)],
      occupation=occupation,
      participant=participant,
      answer_index=int(answer),
    )


def crows_pairs(row: Row, name: str) -> Item:
  """`choices` are the sentences that express more and less of a stereotype."""
  return dict(
    id=name,
    prompt="",
    choices=[row["sent_more"], row["sent_less"]],
    bias_type=row["bias_type"],
    direction=row["stereo_antistereo"],
  )


# ------------------------------------------------- prompts that InstructGPT's authors released


def _released(row: Row, name: str, references: list, target: str) -> Item:
  return dict(id=name, prompt=row["context"], references=references, target=target, is_last=True)


def released_squad(row: Row, name: str) -> Item:
  """Bars separate alternatives."""
  parts = row["ref_text"].split("|")
  return _released(row, name, [] if parts == [NO_ANSWER] else parts, parts[0])


def released_drop(row: Row, name: str) -> Item:
  parts = row["ref_text"].split("|")
  return _released(row, name, [[text] for text in parts], parts[0])


def released_text(row: Row, name: str) -> Item:
  """Translations and summaries have one reference; a bar is a line break in it."""
  whole = " ".join(row["ref_text"].split("|"))
  return _released(row, name, [whole], whole)


def released_toxicity(row: Row, name: str) -> Item:
  return dict(id=name, prompt=row["context"], references=[], toxicity=None)
