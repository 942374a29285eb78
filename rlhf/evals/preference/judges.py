"""Judges: functions from prompts and the completions of several policies to judgements.

    judge(prompts, completions, baseline) -> rows of preferences.jsonl

A judge is a group of simulated labelers, a reward model, people whose ratings were collected in
files, or a model behind an endpoint.  All return the same rows (`win_rates.py`), so every number
made of them is comparable.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf.data import prepare
from rlhf.evals import statistics
from rlhf.evals.preference import endpoint as endpoint_lib
from rlhf.evals.preference import ratings as ratings_lib
from rlhf.evals.preference import win_rates
from rlhf.inference import rewards
from rlhf.networks import Network
from rlhf.tinyworld import labelers as labelers_lib
from rlhf.tinyworld.labelers import Labeler
from rlhf.tinyworld.world import World

Row = dict[str, Any]
# (P prompt records, policy -> P completions, the policy that others are compared with) -> rows.
Judge = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Sequence[str]], str], list[Row]]


def _row(index: int, policy: str, labeler: str, group: str, win, likert, **more) -> Row:
  return dict(
    prompt_index=index, policy=policy, labeler=labeler, group=group, win=win, likert=likert, **more
  )


# ----------------------------------------------------------------------------- the judges


def simulated_labelers(
  world: World, training: Sequence[Labeler], heldout: Sequence[Labeler], *, evaluation: bool = True
) -> Judge:
  """TinyWorld's simulated labelers, who read prompts and completions and make mistakes.

  Prompt records need TinyWorld's "task".

  Args:
    world: that the prompts are about.
    training, heldout: the two groups.
    evaluation: whether to use the weights of the final evaluation (more on truth and harm).
  """
  known: dict[tuple[str, str], tuple[labelers_lib.Marked, dict]] = {}

  def look(record, text):
    """(marked completion, labels) of a completion, which the gold scorer reads once."""
    key = record["prompt"], text
    if key not in known:
      marked = labelers_lib.mark(world, record["task"], *key)
      known[key] = marked, labelers_lib.metadata(record["task"], marked)
    return known[key]

  def judge(prompts, completions, baseline):
    people = [("training", one) for one in training] + [("heldout", one) for one in heldout]
    rows = []
    for policy, texts in completions.items():
      for group, labeler in people:
        for index, (record, text) in enumerate(zip(prompts, texts, strict=True)):
          marked, labels = look(record, text)
          win = None
          if policy != baseline:
            other, _ = look(record, completions[baseline][index])
            win = labelers_lib.prefer(labeler, marked, other, evaluation=evaluation)
          likert = labelers_lib.likert(labeler, marked, evaluation=evaluation)
          rows.append(_row(index, policy, labeler.id, group, win, likert, metadata=labels))
    return rows

  return judge


def reward_model(
  network: Network, prompt_format: prepare.PromptFormat, *, name: str, batch_size: int
) -> Judge:
  """A reward model, which prefers the completion with the higher score; equal scores are a tie.

  As in training, every completion is scored with its end token, whether or not its policy produced
  one.  Each text is scored once, so equal completions have equal scores.

  Args:
    network: of kind "reward".
    prompt_format: that it was trained with.
    name: of the labeler in the rows.
    batch_size: texts scored at once; affects only speed and memory.
  """
  known: dict[tuple[str, str], float] = {}

  def judge(prompts, completions, baseline):
    texts = {
      policy: [(record["prompt"], text) for record, text in zip(prompts, column)]
      for policy, column in completions.items()
    }
    new = {text: None for column in texts.values() for text in column if text not in known}
    if new:
      scores = rewards.score_texts(network, prompt_format, list(new), batch_size=batch_size)
      known.update(zip(new, scores.tolist(), strict=True))
    rows = []
    for policy, column in texts.items():
      for index, text in enumerate(column):
        gap = known[text] - known[texts[baseline][index]]
        win = None if policy == baseline else 0.5 * (1 + float(np.sign(gap)))
        rows.append(_row(index, policy, name, "reward_model", win, None, score=known[text]))
    return rows

  return judge


def human_ratings(found: ratings_lib.Ratings) -> Judge:
  """People, by the sheets of `ratings.write_sheets` that they filled in.

  A win is a rater's comparison of the pair, or else follows from the two ranks that the rater gave;
  Likert ratings are not turned into wins.

  Args:
    found: of `ratings.read`.

  Raises (when it judges):
    ValueError: the sheets show other prompts or completions than these.
  """
  wins: dict[tuple[str, str | None, str | None], float] = {}
  for choice in ratings_lib.choices(found):
    wins[choice.rater, choice.sample_a, choice.sample_b] = choice.win
    wins.setdefault((choice.rater, choice.sample_b, choice.sample_a), 1 - choice.win)
  ids = {(sample.policy, sample.prompt_index): name for name, sample in found.samples.items()}
  rated = {(rating.rater, rating.sample): rating for rating in found.ratings}

  def judge(prompts, completions, baseline):
    ratings_lib.check_same_texts(found, prompts, completions)
    rows = []
    for policy in completions:
      for index in range(len(prompts)):
        sample, other = ids.get((policy, index)), ids.get((baseline, index))
        for rater, group in found.raters.items():
          rating = rated.get((rater, sample))
          win = None if policy == baseline else wins.get((rater, sample, other))
          if rating is not None or win is not None:
            likert = None if rating is None else rating.likert
            metadata = {} if rating is None else dict(rating.metadata)
            rows.append(_row(index, policy, rater, group, win, likert, metadata=metadata))
    return rows

  return judge


def endpoint(asker: endpoint_lib.Endpoint) -> Judge:
  """A model behind an OpenAI-compatible endpoint.

  Two completions are shown in both orders (`win_rates.both_orders`); equal completions are a tie
  and are not sent.  A reply without a verdict gives null.

  Raises (when it judges):
    ValueError: the endpoint fails permanently; earlier replies stay in its cache.
  """

  def judge(prompts, completions, baseline):
    everything = [
      (policy, index, record["prompt"], text, completions[baseline][index])
      for policy, column in completions.items()
      for index, (record, text) in enumerate(zip(prompts, column, strict=True))
    ]
    pairs = []
    for _, _, prompt, text, other in everything:
      if text != other:
        pairs += [(prompt, text, other), (prompt, other, text)]
    wins = asker.ask("pairwise", pairs)
    texts = [(prompt, text) for _, _, prompt, text, _ in everything]
    likert = asker.ask("likert", texts) if asker.p.likert else dict.fromkeys(texts)
    rows = []
    for policy, index, prompt, text, other in everything:
      win = None if policy == baseline else 0.5
      if text != other:
        swapped = wins[prompt, other, text]
        win = win_rates.both_orders(
          wins[prompt, text, other], None if swapped is None else 1 - swapped
        )
      rows.append(_row(index, policy, asker.p.model, "endpoint", win, likert[prompt, text]))
    return rows

  return judge


# ----------------------------------------------------------------------------- all pairs


def judge_pairs(
  judge: Judge,
  prompts: Sequence[Mapping[str, Any]],
  completions: Mapping[str, Sequence[str]],
  pairs: Sequence[tuple[str, str]],
) -> list[Row]:
  """Rows of policies compared with policies other than the baseline; each row names the other.

  Args:
    judge: called once for each pair.
    prompts, completions: as of a judge.
    pairs: (policy, baseline).

  Returns:
    Rows with a win and without what belongs to a single completion.
  """
  rows = []
  for policy, baseline in pairs:
    both = {policy: completions[policy], baseline: completions[baseline]}
    for row in judge(prompts, both, baseline):
      if row["win"] is not None:
        about = row["prompt_index"], policy, row["labeler"], row["group"]
        rows.append(_row(*about, row["win"], None, baseline=baseline))
  return rows


def win_rate_matrix(
  rows_by_seed: Mapping[int, Sequence[Row]],
  policies: Sequence[str],
  *,
  baseline: str,
  group: str,
  **settings: Unpack[statistics.Settings],
) -> dict[str, dict[str, statistics.Interval | None]]:
  """Win rate of every policy against every other, with bootstrap intervals over prompts.

  Seeds are nested: runs are resampled, then the prompts of each drawn run.  A pair is judged in one
  direction; the other is 1 minus that.

  Args:
    rows_by_seed: training seed -> rows; those without a "baseline" are against `baseline`.
    policies: which, in the order wanted.
    baseline: see `rows_by_seed`.
    group: one of `win_rates.JUDGE_GROUPS`.
    settings: of the bootstrap.

  Returns:
    policy -> other policy -> interval of the share of judgements that prefer the first; None on the
    diagonal and where nobody compared the two.

  Raises:
    ValueError: a labeler judged one pair of completions twice.
  """

  def wins(policy, other):
    against = {
      run: [row for row in rows if row.get("baseline", baseline) == other]
      for run, rows in rows_by_seed.items()
    }
    return win_rates.values_by_seed(against, policy=policy, group=group, field="win")

  matrix: dict[str, dict[str, statistics.Interval | None]] = {
    policy: dict.fromkeys(policies) for policy in policies
  }
  for policy, other in itertools.combinations(policies, 2):
    direct, reverse = wins(policy, other), wins(other, policy)
    if not direct:  # the direction that was judged, so that a rate is exactly the mean of its rows
      policy, other, direct, reverse = other, policy, reverse, direct
    if not direct:
      continue
    # Different runs may have judged a pair in different directions.
    merged = {run: 1 - win_PL for run, win_PL in reverse.items()} | direct
    found = statistics.bootstrap_over_seeds(dict(sorted(merged.items())), **settings)
    matrix[policy][other] = found
    matrix[other][policy] = statistics.Interval(
      mean=1 - found.mean, low=1 - found.high, high=1 - found.low, n=found.n
    )
  return matrix
