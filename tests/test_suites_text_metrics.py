"""F1 of SQuAD and DROP, ROUGE-L and BLEU: worked by hand, and equal to the reference programs."""

import itertools

import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from rlhf.evals.suites import text_metrics
from rlhf.evals.suites.tasks import data


def test_squad_f1_by_hand():
  # Articles, case and punctuation count for nothing: {north, sea} of {north, sea} and {sea}.
  assert text_metrics.squad_f1("The North Sea!", ["north sea"]) == 100
  assert text_metrics.squad_f1("north sea", ["sea", "baltic"]) == pytest.approx(100 * 2 / 3)
  # A word counts as often as it is in both: 2 of 3 words, 2 of 2.
  assert text_metrics.squad_f1("no no no", ["no, no"]) == pytest.approx(80)
  assert text_metrics.squad_f1("dog", ["cat"]) == 0
  assert text_metrics.squad_exact("a cat.", ["dog", "Cat"]) == 100
  assert text_metrics.squad_exact("a cat here", ["dog", "Cat"]) == 0


@pytest.mark.parametrize(
  "answer, references, f1",
  [
    ("", [], 100),
    ("x", [], 0),
    ("", ["x"], 0),
    ("the", [], 100),
    ("", ["x", "the"], 0),
    ("x", ["", "the"], 0),
  ],
)
def test_questions_without_an_answer(answer, references, f1):
  assert text_metrics.squad_f1(answer, references) == f1
  assert text_metrics.squad_exact(answer, references) == f1


def test_squad_equals_the_reference_program_on_real_lines(shared_data):
  """Means over 400 answers, from transformers 4.57.1's squad_metrics (after evaluate-v2.0.py),
  which later releases no longer have: compute_f1 and compute_exact, the best of the references
  that are not empty once normalised."""
  items = data.load("squadv2", str(shared_data / "evals"))
  first = lambda item, place: (item["references"] or [""])[place]
  scores = [
    (
      text_metrics.squad_f1(answer, item["references"]),
      text_metrics.squad_exact(answer, item["references"]),
    )
    for item, following in zip(items, items[1:] + items[:1])
    for answer in (first(item, -1) + " of the Sea!", first(following, 0), "", item["target"])
  ]
  assert np.mean(scores, axis=0) == pytest.approx([39.73732142857142, 31.75])


def test_drop_f1_by_hand():
  # A wrong number spoils its span: {12.0, yards} has only "yards" of {15.0, yards}.
  assert text_metrics.drop_f1("15 yards", [["12 yards"]]) == 0
  assert text_metrics.drop_f1("12.0-yards", [["12 yards"]]) == 100
  # Spans are matched one to one, the missing one counts 0: (1 + 0) / 2.
  assert text_metrics.drop_f1("Tom Brady", [["Tom Brady", "Derrick Mason"]]) == 50
  assert text_metrics.drop_f1(["b c", "d"], [["d", "b"]]) == 83  # (1 + .667) / 2, rounded
  assert text_metrics.drop_f1("a bit", [["x"], ["bit"]]) == 100
  assert text_metrics.drop_f1("", [[""]]) == 0  # an empty reference is none


def test_drop_equals_lm_eval_on_real_lines(shared_data):
  utils = pytest.importorskip("lm_eval.tasks.drop.utils")
  items = data.load("drop", str(shared_data / "evals"))
  for item, following in zip(items, items[1:] + items[:1]):
    both = [item["references"][0] + following["references"][0]]
    for answer, references in itertools.product(
      (
        item["target"],
        following["target"],
        item["target"] + " 12",
        "",
        item["prompt"][-90:],
        "the 5,000.0 yards-long",
      ),
      (item["references"], both),
    ):
      gold = dict(answers=[tuple(spans) for spans in references])
      assert text_metrics.drop_f1(answer, references) == pytest.approx(
        100 * utils.process_results(gold, [answer])["f1"]
      )


def test_rouge_l_is_the_package_s_best(shared_data):
  # By hand: the longest common run of words in order is "a c"; 2 of 3 and 2 of 2.
  assert text_metrics.rouge_l("a b c", ["a c"]) == pytest.approx(0.8)
  assert text_metrics.rouge_l("summaries", ["summary"]) == 0  # no stemming
  items = data.load("tldr", str(shared_data / "evals"))[:30]
  scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
  for item, following in zip(items, items[1:]):
    references = [item["references"][0], following["references"][0]]
    answer = item["prompt"][:200]
    assert text_metrics.rouge_l(answer, references) == max(
      scorer.score(reference, answer)["rougeL"].fmeasure for reference in references
    )
  with pytest.raises(ValueError, match="needs a reference"):
    text_metrics.rouge_l("a", [])


def test_bleu_of_sums_is_corpus_bleu(shared_data):
  items = data.load("fr_en", str(shared_data / "evals"))
  references = [item["references"][0] for item in items]
  answers = [
    f"{following[:30]} {reference[5:50]}"
    for reference, following in zip(references, references[1:] + references[:1])
  ]
  answers[3] = ""
  table_PC = np.stack(
    [
      text_metrics.bleu_statistics(answer, [reference])
      for answer, reference in zip(answers, references)
    ]
  )
  expected = lambda rows: (
    sacrebleu.corpus_bleu([answers[row] for row in rows], [[references[row] for row in rows]]).score
  )
  draws = [range(100), [3, 5, 5, 8], [3]]
  sums_RC = np.stack([table_PC[list(rows)].sum(axis=0) for rows in draws])
  np.testing.assert_allclose(text_metrics.bleu(sums_RC), [expected(rows) for rows in draws])
  assert float(text_metrics.bleu(sums_RC[0])) == pytest.approx(expected(draws[0]))


def test_bleu_is_smoothed_where_no_four_words_agree():
  counted = text_metrics.bleu_statistics("a b c x e", ["a b c y e"])
  assert counted[3] == 0
  assert float(text_metrics.bleu(counted)) == pytest.approx(
    sacrebleu.corpus_bleu(["a b c x e"], [["a b c y e"]]).score
  )


def test_bleu_takes_several_references():
  references = ["the cat sat on the mat today", "a cat was sitting on the mat"]
  counted = text_metrics.bleu_statistics("the cat was sitting on a mat", references)
  assert float(text_metrics.bleu(counted)) == pytest.approx(
    sacrebleu.corpus_bleu(
      ["the cat was sitting on a mat"], [[reference] for reference in references]
    ).score
  )
