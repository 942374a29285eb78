"""Measures of one answer to a public task: F1 of SQuAD and DROP, ROUGE-L, BLEU.

ROUGE-L and BLEU come from their reference packages, DROP's F1 from lm-eval, which has its authors'
script.  SQuAD's is written after its authors' evaluate-v2.0.py, and a test checks that both give
the same numbers.  Units are those of the paper's Table 14: F1 and BLEU 0-100, ROUGE-L 0-1.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

from rlhf import extras

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


# ----------------------------------------------------------------------------- SQuAD


def normalize(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces: SQuAD's notion of equal answers."""
  text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def squad_f1(answer: str, references: Sequence[str]) -> float:
  """F1 over words with the nearest reference, 0-100.  Source: Rajpurkar et al. 2018.

  Args:
    answer: "" if the model says that there is no answer.
    references: none, or only empty ones, if the question cannot be answered; then an empty answer
      scores 100 and any other 0.
  """
  return max(
    _word_f1(normalize(answer).split(), normalize(reference).split())
    for reference in _known(references)
  )


def squad_exact(answer: str, references: Sequence[str]) -> float:
  """100 if the answer equals a reference after `normalize`, else 0; arguments as in `squad_f1`."""
  return 100.0 * any(normalize(answer) == normalize(reference) for reference in _known(references))


def _known(references: Sequence[str]) -> Sequence[str]:
  return [reference for reference in references if normalize(reference)] or [""]


def _word_f1(answer: Sequence[str], reference: Sequence[str]) -> float:
  if not answer or not reference:
    return 100.0 * (answer == reference)
  num_same = (Counter(answer) & Counter(reference)).total()
  if not num_same:
    return 0.0
  precision, recall = num_same / len(answer), num_same / len(reference)
  return 100.0 * 2 * precision * recall / (precision + recall)


# ----------------------------------------------------------------------------- DROP


def drop_f1(answer: str | Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """F1 over words with the nearest reference, spans matched one to one, 0-100.

  A span that holds numbers gets nothing unless one of them is right.  As in the authors' script the
  F1 of a reference is rounded to a whole number.  Source: Dua et al. 2019, section 5.

  Args:
    answer: one span, or several.
    references: each a list of spans; one whose first span is empty does not count.
  """
  drop = extras.load("lm_eval.tasks.drop.utils", "evals", "F1 of DROP")
  spans = [answer] if isinstance(answer, str) else list(answer)
  return 100.0 * float(drop.process_results(dict(answers=references), spans)["f1"])


# ----------------------------------------------------------------------------- ROUGE-L and BLEU


@functools.cache
def _rouge():
  scorer = extras.load("rouge_score.rouge_scorer", "evals", "ROUGE-L")
  return scorer.RougeScorer(["rougeL"])  # no stemmer: the package's own default


def rouge_l(answer: str, references: Sequence[str]) -> float:
  """ROUGE-L (F measure, no stemming) with the nearest reference, 0-1.  Source: Lin 2004.

  Raises:
    ValueError: there is no reference.
  """
  if not references:
    raise ValueError("ROUGE-L needs a reference")
  return _rouge().score_multi(list(references), answer)["rougeL"].fmeasure


def bleu_statistics(answer: str, references: Sequence[str]) -> np.ndarray:
  """BLEU's counts of one answer, [10]: n-grams found and written, n = 1..4, and both lengths.

  `bleu` of their sum over answers is the corpus BLEU.
  """
  # `effective_order` changes the score of a sentence, which is unused, and silences a warning.
  scorer = extras.load("sacrebleu", "evals", "BLEU").BLEU(effective_order=True)
  counted = scorer.sentence_score(answer, list(references))
  return np.array([*counted.counts, *counted.totals, counted.sys_len, counted.ref_len], np.float64)


def bleu(sums: np.ndarray) -> np.ndarray:
  """Corpus BLEU, 0-100, as sacrebleu gives it by default: 13a tokens, exponential smoothing.

  Args:
    sums: [..., 10] sums of `bleu_statistics`.
  """
  compute = extras.load("sacrebleu", "evals", "BLEU").BLEU.compute_bleu

  def one(row: np.ndarray) -> float:
    counts = [int(number) for number in row]
    return compute(counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp").score

  return np.apply_along_axis(one, -1, sums)
