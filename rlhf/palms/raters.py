"""Automatic raters: how well a completion matches a position, from 1 to 5.

A policy reads position, question and completion and is asked for a number; its rating is the
expectation over the five:

    rating = sum_{r = 1..5} r p(r) / sum_{r = 1..5} p(r)

where p(r) is the probability of the text " r" after the request for a rating.  A model behind an
OpenAI-compatible endpoint gets the same request and writes its number.  A reward model reads only
question and completion, not the position, and has no scale:

    rating = 1 + 4 (rank - 1/2) / N

where rank is that of its score among the N completions rated together, lowest first, ties shared.

All three are this project's; the paper's raters are people (`sheet.py`).  `check_judge` measures
whether such a rater recognises at least which completion belongs to a question, a low bar.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rlhf import checks, networks, processes
from rlhf import metrics as metrics_lib
from rlhf.evals import statistics
from rlhf.evals.preference import comparison
from rlhf.evals.preference import endpoint as endpoint_lib
from rlhf.inference import likelihood, rewards
from rlhf.palms import sets

RATINGS = endpoint_lib.POSITION_SCALE
ENDPOINT, REWARD = "endpoint", "reward:"  # sources other than policies
_FLAG = "config.raters.source"
PROMPT = pathlib.Path(__file__).parent / "templates" / "rating_prompt.txt"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RatersConfig:
  """Who rates.

  Attributes:
    source: a policy (an export directory, hf:DIR or gguf:FILE), reward:SOURCE for a reward model,
      or "endpoint".
    prompt: has {position}, {question} and {answer}; empty for that in the file `PROMPT`.
    dtype: of a policy's matrix products.
    batch_size: completions that a network rates at once; does not change ratings.
    endpoint: see `endpoint.EndpointConfig`; its own prompts are not used.
  """

  source: str
  prompt: str
  dtype: str
  batch_size: int
  endpoint: Mapping[str, Any]

  def __post_init__(self):
    object.__setattr__(self, "endpoint", dict(self.endpoint))
    if self.source in ("", REWARD):
      raise ValueError(
        f"raters.source is {self.source!r}; name who rates: an export directory, hf:DIR, "
        "gguf:FILE, reward:SOURCE or endpoint"
      )
    if self.source == ENDPOINT:
      endpoint_lib.EndpointConfig(**self.endpoint)
    for name in ("position", "question", "answer"):
      if self.prompt and f"{{{name}}}" not in self.prompt:
        raise ValueError(
          f"raters.prompt has no {{{name}}}; it needs {{position}}, {{question}} and {{answer}}"
        )
    checks.at_least("raters", self, batch_size=1)

  @property
  def network(self) -> str:
    """The source of the network that rates; empty for an endpoint."""
    return "" if self.source == ENDPOINT else self.source.removeprefix(REWARD)

  def describe(self) -> str:
    """Who rates, for the page."""
    if self.source == ENDPOINT:
      return f"{self.endpoint['model']} at {self.endpoint['base_url']}"
    return f"{'a reward model' if self.source.startswith(REWARD) else 'a network'}, {self.network}"


def check(p: RatersConfig, values: sets.ValueSet, max_response_tokens: int) -> None:
  """Raises ValueError where the rater is missing or its context is too short.

  Args:
    values: whose positions, probes and samples it will read.
    max_response_tokens: of the completions; the rater may need as many tokens of its own.
  """
  if p.source == ENDPOINT:
    if processes.count() > 1:
      raise ValueError(
        f"{processes.count()} processes would each ask the endpoint of {_FLAG}; run one process, "
        "or name a network that rates"
      )
    endpoint_lib.check(endpoint_lib.EndpointConfig(**p.endpoint))
    return
  if p.source.startswith(REWARD):  # truncates what is too long, and reports it
    comparison.find_reward(p.network, _FLAG)
    return
  found = networks.find_export(p.source, kind="policy", flag=_FLAG)
  tokenizer = found.tokenizer
  position = lambda entry: values.category(entry.category).position
  samples = [sample for sample in values.targeted if sample.category != sets.BROAD]
  asked = [(position(probe), probe.prompt, "") for probe in values.probes]
  written = [(position(sample), sample.prompt, sample.completion) for sample in samples]
  longest_asked, longest_written = (
    max((len(ids) for ids in tokenizer.encode_batch(contexts(p, texts))), default=0)
    for texts in (asked, written)
  )
  length = max(longest_asked + max_response_tokens, longest_written) + 2
  if length > found.model["context_length"]:
    raise ValueError(
      f"config.raters.source={p.source} reads {found.model['context_length']} tokens, but a "
      f"position, a question and a completion need up to {length}; use a rater with a longer "
      "context, or shorter completions"
    )


def contexts(p: RatersConfig, asked: Sequence[tuple[str, str, str]]) -> list[str]:
  """What the rater reads of each (position, question, completion)."""
  text = p.prompt if p.prompt else PROMPT.read_text("utf-8").removesuffix("\n")
  # Not `format`: a completion may contain braces.
  return [
    text.replace("{position}", position)
    .replace("{question}", question)
    .replace("{answer}", completion.strip())
    for position, question, completion in asked
  ]


def rate(
  p: RatersConfig, asked: Sequence[tuple[str, str, str]], directory: str | pathlib.Path
) -> list[dict[str, float]]:
  """Rates completions.

  Args:
    asked: (position, question, completion).
    directory: keeps `endpoint.jsonl`, the replies of an endpoint so far.

  Returns:
    {rater: a number from 1 to 5} for each; empty where an endpoint gave none.

  Raises:
    ValueError: the rater cannot be loaded or reached, or a completion is too long for it.
  """
  if not asked:
    return []
  if p.source == ENDPOINT:
    questions = [(context,) for context in contexts(p, asked)]
    with metrics_lib.Progress("rated", len(set(questions))) as progress:
      asker = endpoint_lib.Endpoint(
        endpoint_lib.EndpointConfig(**p.endpoint),
        pathlib.Path(directory) / comparison.CACHE,
        on_answer=lambda done, total: progress.update(done, {}, num_tokens=0),
      )
      try:
        found = asker.ask("position", questions)
      finally:
        print(asker.describe(), flush=True)  # replies before a failure were paid for too
    ratings = [found[question] for question in questions]
    return [{} if rating is None else {"endpoint": float(rating)} for rating in ratings]
  if p.source.startswith(REWARD):
    network, prompt_format = comparison.load_reward(p.network, _FLAG)
    texts = [entry[1:] for entry in asked]
    score_N = rewards.score_texts(network, prompt_format, texts, batch_size=p.batch_size)
    return [{"reward_model": rating} for rating in ranked_ratings(score_N).tolist()]
  export = networks.find_export(p.source, kind="policy", flag=_FLAG)
  compute = dataclasses.replace(export.compute, dtype=p.dtype)
  network = networks.load(p.source, compute, kind="policy", flag=_FLAG)
  pairs = [(context, f" {rating}") for context in contexts(p, asked) for rating in RATINGS]
  with metrics_lib.Progress("rated", len(asked)) as progress:
    logprob_N = likelihood.logprobs(
      network,
      pairs,
      batch_size=p.batch_size,
      progress=lambda done, total: progress.update(done // len(RATINGS), {}, num_tokens=0),
    )
  logprob_NK = logprob_N.reshape(len(asked), len(RATINGS))
  return [{"model": rating} for rating in expected_ratings(logprob_NK).tolist()]


def ranked_ratings(score_N: np.ndarray) -> np.ndarray:
  """The second equation at the top of this file, float64 [N]."""
  return 1 + 4 * (scipy.stats.rankdata(score_N) - 0.5) / len(score_N)


def expected_ratings(logprob_NK: np.ndarray) -> np.ndarray:
  """The first equation at the top of this file, float64 [N]."""
  weight_NK = np.exp(logprob_NK - logprob_NK.max(axis=1, keepdims=True))
  return weight_NK @ np.asarray(RATINGS, np.float64) / weight_NK.sum(axis=1)


def check_judge(
  p: RatersConfig, values: sets.ValueSet, directory: str | pathlib.Path
) -> dict[str, Any] | None:
  """Checks whether the rater prefers written completions to those of other questions.

  Each targeted sample with a category is rated along with the same question and the completion of a
  sample of the next category (of the next sample, where there is one category).  A rater that
  recognises only which completion is about the question passes too: the check says nothing about
  values.

  Returns:
    {"preferred": interval of the share of samples where it does, ties half, "written", "swapped":
    mean ratings, "num": samples}; None with fewer than two such samples, or none with both ratings.
  """
  samples = [sample for sample in values.targeted if sample.category != sets.BROAD]
  if len(samples) < 2:
    return None
  of_category = {
    category.name: [sample for sample in samples if sample.category == category.name]
    for category in values.categories
  }
  names = [name for name, found in of_category.items() if found]
  asked = []
  for sample in samples:
    number = of_category[sample.category].index(sample) + (len(names) == 1)
    following = of_category[names[(names.index(sample.category) + 1) % len(names)]]
    other = following[number % len(following)]
    position = values.category(sample.category).position
    asked += [(position, sample.prompt, one.completion) for one in (sample, other)]
  given = [next(iter(rated.values()), np.nan) for rated in rate(p, asked, directory)]
  rating_N2 = np.asarray(given, np.float64).reshape(-1, 2)
  rating_N2 = rating_N2[~np.isnan(rating_N2).any(axis=1)]
  if not len(rating_N2):
    return None
  preferred_N1 = 0.5 * (1 + np.sign(rating_N2[:, :1] - rating_N2[:, 1:]))
  interval = statistics.bootstrap_mean(preferred_N1, num_resamples=2000, seed=0)
  written, swapped = rating_N2.mean(axis=0).tolist()
  return dict(preferred=interval.as_dict(), written=written, swapped=swapped, num=len(rating_N2))
