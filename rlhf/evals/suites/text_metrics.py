"""How right an answer is by the measures of public tasks: F1 of SQuAD and DROP, ROUGE-L, BLEU.

ROUGE-L and BLEU come from their reference packages.  SQuAD's and DROP's are scripts, not packages:
they are written out here after the authors' (evaluate-v2.0.py; drop_eval.py of AllenNLP), and tests
hold them to the same numbers.  All are numbers of one answer; units are those of the paper's Table
14: F1 and BLEU 0-100, ROUGE-L 0-1.
"""

import functools
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer
from scipy import optimize

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


# ----------------------------------------------------------------------------- SQuAD


def normalize(text: str) -> str:
  """Lower case, no punctuation, no articles, single spaces: SQuAD's idea of an equal answer."""
  text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
  return " ".join(_ARTICLES.sub(" ", text).split())


def squad_f1(answer: str, references: Sequence[str]) -> float:
  """F1 over words with the nearest reference, 0-100.  Source: Rajpurkar et al. 2018.

  Args:
    answer: "" where the model says that there is none.
    references: none (or only empty ones) where the question cannot be answered; then 100 is for an
      empty answer, and 0 for any other.
  """
  return max(
    _word_f1(normalize(answer).split(), normalize(reference).split())
    for reference in _known(references)
  )


def squad_exact(answer: str, references: Sequence[str]) -> float:
  """100 where the answer is a reference after `normalize`, else 0; arguments as in `squad_f1`."""
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
  spans = [answer] if isinstance(answer, str) else answer
  return max(
    (
      _aligned_f1(_bags(spans), _bags(reference))
      for reference in references
      if reference[0].strip()
    ),
    default=0.0,
  )


def _bags(spans: Sequence[str]) -> list[set[str]]:
  return [set(_normalize_drop(span).split()) for span in spans]


def _normalize_drop(text: str) -> str:
  """As `normalize`, but word by word (a hyphen parts words), with numbers as numbers."""
  words = []
  for word in re.split(" |-", text.lower()):
    if not _is_number(word):
      word = "".join(character for character in word if character not in _PUNCTUATION)
    if _is_number(word):
      word = str(float(word))
    words.append(" ".join(_ARTICLES.sub(" ", word).split()))
  return " ".join(word for word in words if word)


def _is_number(word: str) -> bool:
  try:
    float(word)
  except ValueError:
    return False
  return True


def _aligned_f1(answer: list[set[str]], reference: list[set[str]]) -> float:
  """Mean over the larger number of spans, at the best one-to-one alignment; 0-100, rounded."""
  score_RA = np.array([[_bag_f1(predicted, gold) for predicted in answer] for gold in reference])
  rows, columns = optimize.linear_sum_assignment(-score_RA)
  mean = score_RA[rows, columns].sum() / max(len(answer), len(reference))
  return 100.0 * round(float(mean), 2)


def _bag_f1(predicted: set[str], gold: set[str]) -> float:
  numbers = {word for word in gold if _is_number(word)}
  if numbers and not numbers & predicted:
    return 0.0
  num_same = len(gold & predicted)
  precision = num_same / len(predicted) if predicted else 1.0
  recall = num_same / len(gold) if gold else 1.0
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


# ----------------------------------------------------------------------------- ROUGE-L and BLEU


@functools.cache
def _rouge() -> rouge_scorer.RougeScorer:
  return rouge_scorer.RougeScorer(["rougeL"])  # no stemmer: the package's own default


def rouge_l(answer: str, references: Sequence[str]) -> float:
  """ROUGE-L (F measure, no stemming) with the nearest reference, 0-1.  Source: Lin 2004.

  Raises:
    ValueError: there is no reference.
  """
  if not references:
    raise ValueError("ROUGE-L needs a reference")
  return _rouge().score_multi(list(references), answer)["rougeL"].fmeasure


def bleu_statistics(answer: str, references: Sequence[str]) -> np.ndarray:
  """What BLEU counts in one answer, [10]: n-grams found and written, n = 1..4, and both lengths.

  Sums of these over answers give `bleu` of them all.
  """
  # `effective_order` changes the score of a sentence, which is not read, and silences a warning.
  counted = sacrebleu.BLEU(effective_order=True).sentence_score(answer, list(references))
  return np.array([*counted.counts, *counted.totals, counted.sys_len, counted.ref_len], np.float64)


def bleu(sums: np.ndarray) -> np.ndarray:
  """Corpus BLEU, 0-100, as sacrebleu gives it by default: 13a tokens, exponential smoothing.

  Args:
    sums: [..., 10] sums of `bleu_statistics`.
  """

  def one(row: np.ndarray) -> float:
    counts = [int(number) for number in row]
    return sacrebleu.BLEU.compute_bleu(
      counts[:4], counts[4:8], counts[8], counts[9], smooth_method="exp"
    ).score

  return np.apply_along_axis(one, -1, sums)
