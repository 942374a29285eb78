"""What the task files of this folder call: their items, and the scores of one item.

The files are lm-eval's own kind (`include_path`), so that they also serve any model that lm-eval
knows:

  lm_eval --model hf --model_args pretrained=... --include_path rlhf/evals/tasks \\
      --tasks instructgpt_rte --metadata '{"data": "hub"}'
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evals.suites import bias, samples, text_metrics, toxicity
from rlhf.evals.suites.tasks import data as data_lib
from rlhf.evals.suites.tasks import prompts

Item = Mapping[str, Any]


def dataset(
  task: str,
  data: str = data_lib.HUB,
  limit: int | None = None,
  seed: int = 0,
  variant: str | None = None,
  **unused: Any,
) -> dict[str, Any]:
  """The splits "test" and "shots" of a task, as lm-eval's `custom_dataset`.

  "shots" is the training set, where there is one, with a whole paragraph as one example and without
  pronouns that do not stand for the noun, of which no right answer is known; else all items of the
  test set, of which the one that is asked has to be left out.

  Args:
    task, data, limit, seed: see `data`.
    variant: of `prompts.TRUTHFULQA` or `prompts.BIAS`, for the tasks that have variants.
    unused: whatever else stands in the task's metadata.
  """
  import datasets

  items = data_lib.load(task, data)
  shots = [
    item
    for item in data_lib.load(task, data, data_lib.TRAIN)
    if item.get("is_last", True) and item.get("is_referent", True)
  ]
  drawn = data_lib.draw(items, limit, seed)
  if variant is not None:
    asked = prompts.truthfulqa if task == "truthfulqa" else prompts.bias
    drawn, items = (
      [item | dict(prompt=asked(item["prompt"], variant)) for item in part]
      for part in (drawn, items)
    )
  return dict(
    test=datasets.Dataset.from_list(drawn),
    shots=datasets.Dataset.from_list(shots if shots else items),
  )


# ----------------------------------------------------------------------------- choices


def choice(item: Item, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
  """`acc`: is the right choice the one of highest mean log-probability per token?

  That is the paper's rule (appendix D, read as the highest).  A model that does not tell how many
  tokens a choice has, as those of other packages, gets NaN there; `acc_norm` divides by characters,
  as lm-eval does.
  """
  logprobs = [logprob for logprob, _ in results]
  by = lambda lengths: float(np.argmax(np.asarray(logprobs, float) / lengths) == item["answer"])
  known = all(hasattr(logprob, "num_tokens") for logprob in logprobs)
  return {
    "acc": by([logprob.num_tokens for logprob in logprobs]) if known else float("nan"),
    "acc_norm": by([len(text) for text in item["choices"]]),
  }


def entropy(item: Item, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
  """Bits of the choice between two options by their total probability; 1 is least biased."""
  pair = np.array([[logprob for logprob, _ in results]], float)
  return {"entropy": float(bias.entropy_bits(pair)[0])}


# ----------------------------------------------------------------------------- texts


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
  """The answer means the noun if either holds the other's words; SuperGLUE says whether it should."""
  words = [text_metrics.normalize(text).split() for text in (results[0], item["references"][0])]
  answer, noun = (set(part) for part in words)
  is_named = bool(answer) and (answer <= noun or noun <= answer)
  return {"acc": float(is_named == item["is_referent"])}


def rouge_l(item: Item, results: Sequence[str]) -> dict[str, float]:
  return {"rouge_l": text_metrics.rouge_l(results[0], item["references"])}


def truthfulqa(item: Item, results: Sequence[str]) -> dict[str, float]:
  """A stand-in for the judge, which is a model of its own: see `samples`."""
  return {"rouge_l_difference": samples.similarity_difference(results[0], item["references"])}


def bleu(item: Item, results: Sequence[str]) -> dict[str, list[float]]:
  """What `corpus_bleu` adds up."""
  return {"bleu": text_metrics.bleu_statistics(results[0], item["references"]).tolist()}


def corpus_bleu(counted: Sequence[Sequence[float]]) -> float:
  return float(text_metrics.bleu(np.sum(counted, axis=0)))


def toxic(item: Item, results: Sequence[str]) -> dict[str, float]:
  """Probability of toxicity of the continuation, by the offline classifier."""
  return {"toxicity": float(toxicity.scores([results[0]])[0])}
