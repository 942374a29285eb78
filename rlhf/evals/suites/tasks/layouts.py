"""From one published example to one item: the text that a model reads, and what is right.

An item is a dict of

  id          str, of the example, or of its place in the file
  prompt      the text up to where the model goes on, without a space at its end
  references  texts that answer it; an unanswerable question has none
  target      the answer where the item is an example for another one (few-shot)

or, where the answer is one of a few texts, of `prompt`, `choices` (each follows the prompt and a
space) and `answer` (the index of the right one), or, in the bias tasks, of `prompt` and two
`choices` that follow the prompt as they are.

Where InstructGPT's authors released prompts (SQuADv2, DROP, Fr-En, TL;DR, RealToxicityPrompts) the
layouts are theirs.  Those of QuAC and WSC follow GPT-3's (Brown et al. 2020, appendix G); RTE,
SST and HellaSwag are worded here, as the paper says only what is asked of them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NO_ANSWER = "Not in background."  # SQuADv2
UNKNOWN = "I don't know"  # QuAC
Item = dict[str, Any]


def squadv2(paragraph: Mapping[str, Any], where: str) -> Iterator[Item]:
  """One item per question; those before it stand in its prompt with their answers.

  Args:
    paragraph: {"title", "context", "qas": [{"id", "question", "answers": [str]}]}.
  """
  prompt = f"Title: {paragraph['title']}\n\nBackground: {paragraph['context']}"
  for number, question in enumerate(paragraph["qas"]):
    answers = list(question["answers"])
    target = answers[0] if answers else NO_ANSWER
    prompt += f"\n\nQ: {question['question']}\n\nA:"
    yield dict(
      id=str(question.get("id", f"{where}/{number}")),
      prompt=prompt,
      references=answers,
      target=target,
      paragraph=where,
      is_last=number == len(paragraph["qas"]) - 1,
    )
    prompt += f" {target}"


def quac(paragraph: Mapping[str, Any], where: str) -> Iterator[Item]:
  """One item per turn of a dialogue, as `squadv2`; "CANNOTANSWER" is "I don't know"."""
  title = f"{paragraph['title']} - {paragraph['section_title']}"
  context = paragraph["context"].removesuffix("CANNOTANSWER").rstrip()
  prompt = f"TITLE: {title}\nPARAGRAPH: {context}"
  known = lambda text: UNKNOWN if text == "CANNOTANSWER" else text
  for number, question in enumerate(paragraph["qas"]):
    references = list(dict.fromkeys(known(text) for text in question["answers"]))
    target = known(question["target"])
    prompt += f"\n\nQ: {question['question']}\n\nA:"
    yield dict(
      id=str(question.get("id", f"{where}/{number}")),
      prompt=prompt,
      references=references,
      target=target,
      paragraph=where,
      is_last=number == len(paragraph["qas"]) - 1,
    )
    prompt += f" {target}"


def drop(passage: str, question: str, answers: Sequence[Sequence[str]], name: str) -> Item:
  """A reference is a list of spans, mostly of one."""
  return dict(
    id=name,
    prompt=f"Passage: {passage}\nQuestion: {question}\nAnswer:",
    references=[list(spans) for spans in answers],
    target=", ".join(answers[0]),
  )


def drop_answers(example: Mapping[str, Any]) -> list[list[str]]:
  """The answer of an example and those of its validators, each as spans; no two are equal."""
  validated = example["validated_answers"]
  if isinstance(validated, Mapping):  # columns, as the hub has them
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


def hellaswag(example: Mapping[str, Any], name: str) -> Item:
  """Brackets are marks of the WikiHow pages, not text."""

  def clean(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()

  context = f"{example['ctx_a']} {example['ctx_b'].capitalize()}"
  return dict(
    id=name,
    prompt=clean(f"{example['activity_label']}: {context}"),
    choices=[clean(ending) for ending in example["endings"]],
    answer=int(example["label"]),
  )


def rte(premise: str, hypothesis: str, is_entailed: bool, name: str) -> Item:
  prompt = f"{premise}\nQuestion: {hypothesis} Yes or no?\nAnswer:"
  return dict(id=name, prompt=prompt, choices=["yes", "no"], answer=0 if is_entailed else 1)


def sst(sentence: str, is_positive: bool, name: str) -> Item:
  return dict(
    id=name,
    prompt=f"Text: {sentence.strip()}\nLabel:",
    choices=["positive", "negative"],
    answer=0 if is_positive else 1,
  )


def wsc(example: Mapping[str, Any], name: str) -> Item:
  """The model names what the pronoun stands for; `is_referent` says whether `noun` is right.

  Args:
    example: of SuperGLUE, with word indices: {"text", "span1_text", "span2_index", "span2_text",
      "label"}.
  """
  words = example["text"].split()
  place, pronoun = example["span2_index"], example["span2_text"]
  marked = words[place].replace(pronoun, f"*{pronoun}*", 1)
  passage = " ".join([*words[:place], marked, *words[place + 1 :]])
  prompt = (
    f"Passage: {passage}\nQuestion: In the passage above, what does the pronoun "
    f'"*{pronoun}*" refer to?\nAnswer:'
  )
  return dict(
    id=name,
    prompt=prompt,
    references=[example["span1_text"]],
    target=example["span1_text"],
    is_referent=bool(example["label"]),
  )


def translation(french: str, english: str, name: str) -> Item:
  return dict(id=name, prompt=f"French: {french}\nEnglish:", references=[english], target=english)


def summary(text: str, reference: str, name: str) -> Item:
  return dict(
    id=name,
    prompt=f"{text.strip()}\n\nTL;DR:",
    references=[reference],
    target=" ".join(reference.split()),
  )


def truthfulqa(example: Mapping[str, Any], name: str) -> Item:
  """`prompt` is the question alone: `prompts.TRUTHFULQA` says how it is asked.

  Args:
    example: {"type", "category", "question", "best_answer", "correct_answers": [str],
      "incorrect_answers": [str]}.
  """
  return dict(
    id=name,
    prompt=example["question"],
    target=example["best_answer"],
    references={
      "true": list(example["correct_answers"]),
      "false": list(example["incorrect_answers"]),
    },
    type=example["type"],
    category=example["category"],
  )


def winogender(template: str, male: str, female: str) -> Item:
  """The sentence is cut before the pronoun; the two endings differ in nothing else.

  Raises:
    ValueError: the sentences do not differ.
  """
  male_words, female_words = male.split(" "), female.split(" ")
  place = next(
    (i for i, pair in enumerate(zip(male_words, female_words)) if pair[0] != pair[1]), None
  )
  if place is None:
    raise ValueError(f"{template}: both sentences are {male!r}; they must differ in the pronoun")
  occupation, participant, answer = template.split(".")[:3]
  endings = [" " + " ".join(words[place:]) for words in (male_words, female_words)]
  return dict(
    id=template,
    prompt=" ".join(male_words[:place]),
    choices=endings,
    occupation=occupation,
    participant=participant,
    answer_index=int(answer),
  )


def crows_pairs(example: Mapping[str, Any], name: str) -> Item:
  """`choices` are the sentences that say more and less of a stereotype."""
  return dict(
    id=name,
    prompt="",
    choices=[example["sent_more"], example["sent_less"]],
    bias_type=example["bias_type"],
    direction=example["stereo_antistereo"],
  )


def real_toxicity(prompt: str, toxicity: float | None, name: str) -> Item:
  """`toxicity` is the prompt's own, in [0, 1], where it is known."""
  return dict(id=name, prompt=prompt, references=[], toxicity=toxicity)
