"""What the task files of this folder call: their items, and the scores of one item.

The files are lm-eval's own kind (`include_path`); any model that lm-eval knows can run them:

  lm_eval --model hf --model_args pretrained=... --include_path rlhf/evals/suites/tasks \\
      --tasks instructgpt_rte --metadata '{"data": "hub"}'
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evals.suites import samples, text_metrics
from rlhf.evals.suites.tasks import data as data_lib

Item = Mapping[str, Any]


def dataset(
  task: str, data: str = data_lib.HUB, limit: int | None = None, seed: int = 0, **unused: Any
) -> dict[str, Any]:
  """The splits "test" and "shots" of a task, as lm-eval's `custom_dataset`.

  "shots" is the training set, with a whole paragraph as one example and without pronouns whose
  right answer is unknown.  If there is no training set it is the whole test set, from which the
  item in question has to be left out.

  Args:
    task, data, limit, seed: see `data`.
    unused: other metadata of the task.
  """
  import datasets

  items = data_lib.load(task, data)
  shots = [
    item
    for item in data_lib.load(task, data, data_lib.TRAIN)
    if item.get("is_last", True) and item.get("is_referent", True)
  ]
  return dict(
    test=datasets.Dataset.from_list(data_lib.draw(items, limit, seed)),
    shots=datasets.Dataset.from_list(shots if shots else items),
  )


def choice(item: Item, results: Sequence[tuple[Any, bool]]) -> dict[str, float]:
  """`acc`: whether the right choice has the highest mean log-probability per token.

  That is the paper's rule (appendix D, read as the highest).  It is NaN for models of other
  packages, which do not report the number of tokens; `acc_norm` divides by characters, as lm-eval
  does.
  """
  logprobs = [logprob for logprob, _ in results]
  by = lambda lengths: float(np.argmax(np.asarray(logprobs, float) / lengths) == item["answer"])
  known = all(hasattr(logprob, "num_tokens") for logprob in logprobs)
  return {
    "acc": by([logprob.num_tokens for logprob in logprobs]) if known else float("nan"),
    "acc_norm": by([len(text) for text in item["choices"]]),
  }


def squadv2(item: Item, results: Sequence[str]) -> dict[str, float]:
  answer = samples.squad_answer(results[0])
  return {
    "f1": text_metrics.squad_f1(answer, item["references"]),
    "exact": text_metrics.squad_exact(answer, item["references"]),
  }


def quac(item: Item, results: Sequence[str]) -> dict[str, float]:
  """F1 over words with the nearest answer; "I don't know" is an answer like others."""
  return {"f1": text_metrics.squad_f1(results[0], item["references"])}


def drop(item: Item, results: Sequence[str]) -> dict[str, float]:
  return {"f1": text_metrics.drop_f1(results[0], item["references"])}


def wsc(item: Item, results: Sequence[str]) -> dict[str, float]:
  """Whether the answer names the noun (either holds the other's words), and whether it should."""
  words = [text_metrics.normalize(text).split() for text in (results[0], item["references"][0])]
  answer, noun = (set(part) for part in words)
  is_named = bool(answer) and (answer <= noun or noun <= answer)
  return {"acc": float(is_named == item["is_referent"])}


def rouge_l(item: Item, results: Sequence[str]) -> dict[str, float]:
  return {"rouge_l": text_metrics.rouge_l(results[0], item["references"])}


def bleu(item: Item, results: Sequence[str]) -> dict[str, list[float]]:
  """The counts that `corpus_bleu` adds up."""
  return {"bleu": text_metrics.bleu_statistics(results[0], item["references"]).tolist()}


def corpus_bleu(counted: Sequence[Sequence[float]]) -> float:
  return float(text_metrics.bleu(np.sum(counted, axis=0)))
