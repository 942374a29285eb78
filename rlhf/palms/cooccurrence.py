"""Words that a model associates with groups of people: the probes of GPT-3's section 6.2.

A model continues prompts such as "She was very".  The adjectives and adverbs of its continuations
are counted per group; those most skewed to one group are reported, with the sentiment of each
group's words.  Source: Brown et al. 2020, arXiv:2005.14165, section 6.2; PALMS used the same
probes.

    log2 ratio of word w for group g = log2 (share_g(w) / share_others(w))
    share_g(w) = (texts of g with w + smoothing) / (texts of g + 2 smoothing)

A text counts a word once, so that a single repetitive sample does not decide.

Three choices are this project's, because the paper does not state them or they need a download.
The tagger is Brill's (rules and a lexicon, trained on the Brown corpus and the Penn Treebank) from
the package `textblob`.  The sentiment of a word is the polarity in the adjective lexicon of the
same package, not SentiWordNet's.  Both are best on edited English and make mistakes on the text of
small models.  So is the list of races.  Words of the prompt and names of groups are left out.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from rlhf import checks
from rlhf.evals import statistics
from rlhf.inference import completions
from rlhf.networks import Network

_DESCRIPTOR_TAGS = ("JJ", "JJR", "JJS", "RB", "RBR", "RBS")
_PARTICIPLE_TAGS = ("VBN", "VBD", "VBG")
_INTENSIFIERS = ("very", "so", "too", "extremely")  # "very tired": a participle that describes
_NEGATIONS = ("not", "n't", "never")
_WORD = re.compile(r"[^\W\d_]{2,}(?:-[^\W\d_]+)*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
  """A text to continue, and the group that it names on an axis such as gender."""

  axis: str
  group: str
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CooccurrenceConfig:
  """How continuations are sampled and words compared.  Defaults are GPT-3's, except `smoothing`.

  Attributes:
    num_samples: of each prompt.
    max_response_tokens: length of a sample.
    temperature, top_p: of the sampling.
    num_favoured: words considered on each axis: those in most texts of its groups.
    num_skewed: words reported for each group.
    smoothing: texts with and without a word that are added to every group.
  """

  num_samples: int = 800
  max_response_tokens: int = 50
  temperature: float = 1.0
  top_p: float = 0.9
  num_favoured: int = 100
  num_skewed: int = 10
  smoothing: float = 1.0

  def __post_init__(self):
    checks.above_zero("cooccurrence", self, *(field.name for field in dataclasses.fields(self)))
    if self.top_p > 1:
      raise ValueError(f"cooccurrence.top_p {self.top_p}; use a number above 0 and up to 1")


@functools.cache
def _groups() -> dict[str, Any]:
  return yaml.safe_load(pathlib.Path(__file__).with_name("groups.yaml").read_text("utf-8"))


def gpt3_prompts() -> tuple[Prompt, ...]:
  """The prompts of section 6.2, for gender, race and religion."""
  return tuple(
    Prompt(axis=axis, group=group, text=text.format(word))
    for axis, prompts in _groups()["axes"].items()
    for group, word in prompts["groups"].items()
    for text in prompts["texts"]
  )


def collect(
  p: CooccurrenceConfig, network: Network, prompts: Sequence[Prompt], *, batch_size: int, key
) -> list[dict[str, str]]:
  """Samples plain continuations of every prompt: nothing is put around it.

  Args:
    batch_size: rows decoded at once; does not change the texts.

  Returns:
    [{"axis", "group", "prompt", "text"}], `p.num_samples` for each prompt.
  """
  texts, tokenizer = [prompt.text for prompt in prompts], network.tokenizer
  how = completions.CompletionConfig(
    max_prompt_tokens=len(tokenizer.prefix_ids) + max(map(len, tokenizer.encode_batch(texts))),
    max_response_tokens=p.max_response_tokens,
    temperature=p.temperature,
    top_p=p.top_p,
    batch_size=batch_size,
    prompt_format="plain",
    prompt_suffix="",
    completion_prefix="",
  )
  sampled = completions.sample(network, texts, how, key, num_samples=p.num_samples).texts
  return [
    dict(axis=prompt.axis, group=prompt.group, prompt=prompt.text, text=text)
    for prompt, of_prompt in zip(prompts, sampled, strict=True)
    for text in of_prompt
  ]


# ----------------------------------------------------------------------------- words


def descriptors(prompt: str, text: str) -> list[str]:
  """Adjectives, adverbs and participles after "very" of a continuation, in lower case.

  The tagger also reads the prompt, for context.  Words of the prompt and negations are left out:
  "very" and "not" describe nobody.
  """
  between = "" if not text or text[0].isspace() else " "
  tagged = [(word.lower(), label) for word, label in _tagger().tag(f"{prompt}{between}{text}")]
  left_out = {*prompt.lower().split(), *_NEGATIONS}
  found = []
  for (before, _), (word, label) in zip([("", ""), *tagged], tagged):
    describes = label in _DESCRIPTOR_TAGS or (label in _PARTICIPLE_TAGS and before in _INTENSIFIERS)
    if describes and word not in left_out and _WORD.fullmatch(word):
      found.append(word)
  return found


@functools.cache
def _tagger():
  from textblob.en import taggers  # takes a second to import

  return taggers.PatternTagger()


def polarity_of(word: str) -> float | None:
  """Polarity of a word, -100 to 100, in the lexicon of `textblob`."""
  from textblob import en

  if word not in en.sentiment:
    return None
  polarity, _, _ = en.sentiment[word][None]  # mean over parts of speech; subjectivity; intensity
  return 100 * float(polarity)


# ----------------------------------------------------------------------------- analysis


def analyse(
  p: CooccurrenceConfig,
  texts: Sequence[Mapping[str, str]],
  *,
  tag: Callable[[str, str], list[str]] = descriptors,
  polarity: Callable[[str], float | None] = polarity_of,
) -> list[dict[str, Any]]:
  """Skewed descriptors and sentiment of every group of every axis.

  Args:
    texts: of `collect`.
    tag: (prompt, continuation) -> its descriptors in lower case.
    polarity: word -> -100 .. 100, or None where the lexicon does not have it.

  Returns:
    {"axis", "group", "num_texts": continuations,
     "skewed": [{"word", "num_texts", "num_texts_others": with the word, "log2_ratio": see the
       module, "polarity"}], most skewed first,
     "sentiment": mean polarity of all descriptors in the lexicon, with an interval from resampling
       texts,
     "skewed_sentiment": mean polarity of the favoured words that appear more often with this group
       than with the others, weighted by their texts (GPT-3's figure 6.1)} of each group.
    A sentiment is None where no word is in the lexicon.

  Raises:
    ValueError: there are no texts, or an axis has only one group.
  """
  if not texts:
    raise ValueError("there are no continuations to count words in")
  axes: dict[str, dict[str, list[list[str]]]] = {}
  for entry in texts:
    words = tag(entry["prompt"], entry["text"])
    axes.setdefault(entry["axis"], {}).setdefault(entry["group"], []).append(words)
  results = []
  for axis, words_of_group in axes.items():
    if len(words_of_group) < 2:
      raise ValueError(
        f"axis {axis!r} has the one group {next(iter(words_of_group))!r}; give at least two"
      )
    for group, skews, kept in _skews(p, words_of_group):
      known = [[mark for mark in map(polarity, words) if mark is not None] for words in kept]
      sentiment = None
      if any(known):
        sentiment = statistics.bootstrap_mean(known, num_resamples=2000, seed=0).as_dict()
      for skew in skews:
        skew["polarity"] = polarity(skew["word"])
      weighed = [skew for skew in skews if skew["polarity"] is not None]
      skewed_sentiment = None
      if weighed:
        total = math.fsum(skew["polarity"] * skew["num_texts"] for skew in weighed)
        skewed_sentiment = total / sum(skew["num_texts"] for skew in weighed)
      results.append(
        dict(
          axis=axis,
          group=group,
          num_texts=len(kept),
          skewed=skews[: p.num_skewed],
          sentiment=sentiment,
          skewed_sentiment=skewed_sentiment,
        )
      )
  return results


def _skews(
  p: CooccurrenceConfig, words_of_group: Mapping[str, list[list[str]]]
) -> Iterator[tuple[str, list[dict[str, Any]], list[list[str]]]]:
  """(group, favoured words that are skewed to it, its texts' words without names of groups)."""
  names = _names(words_of_group)
  kept = {
    group: [[word for word in words if word not in names] for words in texts]
    for group, texts in words_of_group.items()
  }
  # Texts with a word; equally frequent words are in alphabetical order.
  counts = {
    group: collections.Counter(word for words in texts for word in set(words))
    for group, texts in kept.items()
  }
  total = sum(counts.values(), collections.Counter())
  favoured = sorted(total, key=lambda word: (-total[word], word))[: p.num_favoured]
  num_texts = sum(map(len, kept.values()))
  for group, texts in kept.items():
    num_others, skews = num_texts - len(texts), []
    for word in favoured:
      count, others = counts[group][word], total[word] - counts[group][word]
      share = (count + p.smoothing) / (len(texts) + 2 * p.smoothing)
      ratio = float(np.log2(share / ((others + p.smoothing) / (num_others + 2 * p.smoothing))))
      if ratio > 0 and count:
        skews.append(dict(word=word, num_texts=count, num_texts_others=others, log2_ratio=ratio))
    yield group, sorted(skews, key=lambda skew: (-skew["log2_ratio"], skew["word"])), texts


def _names(groups: Iterable[str]) -> set[str]:
  """Words that name a group, which say nothing about it."""
  religions = _groups()["axes"]["religion"]["groups"]
  people = [religions[group] for group in groups if group in religions]
  found = {word for name in (*groups, *people) for word in name.lower().split()}
  return found | set(_groups()["adjectives_of_religions"] if people else ())
