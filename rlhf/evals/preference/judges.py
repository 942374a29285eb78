"""Who judges: one function from prompts and the answers of several policies to ratings.

    judge(prompts, answers, baseline) -> rows of preferences.jsonl

A judge may be simulated labelers, a reward model, people whose ratings were collected in a file, or
a model behind an endpoint; the rows, and so every number made of them, are of one kind
(`preference.py`).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.data import prepare
from rlhf.evals import statistics
from rlhf.evals.preference import endpoint as endpoint_lib
from rlhf.evals.preference import ratings as ratings_lib
from rlhf.evals.preference import win_rates
from rlhf.inference import rewards
from rlhf.networks import Network
from rlhf.tinyworld import gold
from rlhf.tinyworld import labelers as labelers_lib
from rlhf.tinyworld.labelers import Labeler
from rlhf.tinyworld.world import World

Row = dict[str, Any]
# (P prompt records, policy -> P answers, the policy that the others are compared with) -> rows.
Judge = Callable[[Sequence[Mapping[str, Any]], Mapping[str, Sequence[str]], str], list[Row]]


def check_answers(
  prompts: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]], baseline: str
) -> None:
  """Raises ValueError unless every policy has one answer to each prompt and one is the baseline."""
  if baseline not in answers:
    raise ValueError(f"the baseline {baseline!r} has no answers; choose from {list(answers)}")
  for policy, texts in answers.items():
    if len(texts) != len(prompts):
      raise ValueError(
        f"{policy} has {len(texts)} answers to {len(prompts)} prompts; each prompt needs one"
      )


# ----------------------------------------------------------------------------- the judges


def simulated_labelers(
  world: World, training: Sequence[Labeler], heldout: Sequence[Labeler], *, evaluation: bool = True
) -> Judge:
  """TinyWorld's labelers, who see prompts and answers and err.

  Prompt records need TinyWorld's "task".

  Args:
    world: in which the prompts were made.
    training, heldout: the two groups.
    evaluation: use the weights of the final evaluation (more on truth and harm).
  """
  known: dict[tuple[str, str], tuple[dict, dict]] = {}

  def look(record, text):
    """(components, labels) of an answer, which the gold scorer reads once."""
    key = record["prompt"], text
    if key not in known:
      asked = world, record["task"], record["prompt"], text
      known[key] = gold.components(*asked), labelers_lib.metadata(*asked)
    return known[key]

  def judge(prompts, answers, baseline):
    check_answers(prompts, answers, baseline)
    for index, record in enumerate(prompts):
      if "task" not in record:
        raise ValueError(
          f'prompt {index} ({record["prompt"][:40]!r}) has no "task"; only '
          "prompts of TinyWorld can be judged by its labelers"
        )
    rows = []
    for policy, texts in answers.items():
      for group, people in (("training", training), ("heldout", heldout)):
        for labeler in people:
          for index, (record, text) in enumerate(zip(prompts, texts, strict=True)):
            about = labeler, world, record["task"], record["prompt"], text
            marks, labels = look(record, text)
            other = answers[baseline][index]
            win = (
              None
              if policy == baseline
              else labelers_lib.prefer(
                *about, other, marks_a=marks, marks_b=look(record, other)[0], evaluation=evaluation
              )
            )
            likert = labelers_lib.likert(*about, marks=marks, evaluation=evaluation)
            rows.append(
              dict(
                prompt_index=index,
                policy=policy,
                labeler=labeler.id,
                group=group,
                win=win,
                likert=likert,
                metadata=labels,
              )
            )
    return rows

  return judge


def reward_model(
  network: Network, prompt_format: prepare.PromptFormat, *, name: str, batch_size: int
) -> Judge:
  """A reward model, which prefers the answer with the higher score; equal scores are a tie.

  Every answer is scored with its end, as in training, whether or not its policy came to it.  Each
  text is scored once, so two equal answers have equal scores.

  Args:
    network: of kind "reward".
    prompt_format: that it was trained with.
    name: of the labeler in the rows.
    batch_size: texts scored at once; changes nothing but speed and memory.
  """
  known: dict[tuple[str, str], float] = {}

  def judge(prompts, answers, baseline):
    check_answers(prompts, answers, baseline)
    texts = {
      policy: [(record["prompt"], text) for record, text in zip(prompts, column)]
      for policy, column in answers.items()
    }
    new = list(
      dict.fromkeys(text for column in texts.values() for text in column if text not in known)
    )
    if new:
      scores = rewards.score_texts(network, prompt_format, new, batch_size=batch_size)
      known.update(zip(new, scores.tolist(), strict=True))
    rows = []
    for policy, column in texts.items():
      for index, text in enumerate(column):
        gap = known[text] - known[texts[baseline][index]]
        rows.append(
          dict(
            prompt_index=index,
            policy=policy,
            labeler=name,
            group="reward_model",
            win=None if policy == baseline else 0.5 * (1 + float(np.sign(gap))),
            likert=None,
            score=known[text],
          )
        )
    return rows

  return judge


def human_ratings(found: ratings_lib.Ratings) -> Judge:
  """People, by what they wrote into the sheets that `ratings.write_sheets` made.

  A win is what a rater said of the pair, or else follows from the two ranks that they gave; Likert
  ratings are not turned into wins.

  Args:
    found: of `ratings.read`.

  Raises (when it judges):
    ValueError: the sheets show other prompts or answers than these.
  """
  choices = {
    (choice.rater, choice.sample_a, choice.sample_b): choice.win
    for choice in ratings_lib.choices(found)
  }

  def compared(rater, sample, other):
    """1, 0.5, 0 for `sample`, or None."""
    if (rater, sample, other) in choices:
      return choices[rater, sample, other]
    win = choices.get((rater, other, sample))
    return None if win is None else 1 - win

  def judge(prompts, answers, baseline):
    check_answers(prompts, answers, baseline)
    ratings_lib.check_same_texts(found, prompts, answers)
    ids = {(sample.policy, sample.prompt_index): name for name, sample in found.samples.items()}
    rated = {(rating.rater, rating.sample): rating for rating in found.ratings}
    rows = []
    for policy in answers:
      for index in range(len(prompts)):
        sample, other = ids.get((policy, index)), ids.get((baseline, index))
        for rater, group in found.raters.items():
          rating = rated.get((rater, sample))
          win = None if policy == baseline else compared(rater, sample, other)
          if rating is not None or win is not None:
            rows.append(
              dict(
                prompt_index=index,
                policy=policy,
                labeler=rater,
                group=group,
                win=win,
                likert=None if rating is None else rating.likert,
                metadata={} if rating is None else dict(rating.metadata),
              )
            )
    return rows

  return judge


def endpoint(asker: endpoint_lib.Endpoint) -> Judge:
  """A model behind an OpenAI-compatible endpoint.

  Two answers are shown in both orders (`preference.both_orders`); equal answers are a tie and cost
  nothing.  What it did not judge in the form asked for has null.

  Raises (when it judges):
    ValueError: the endpoint fails for good; answers so far are in its cache.
  """

  def judge(prompts, answers, baseline):
    check_answers(prompts, answers, baseline)
    pairs, texts = [], []
    for policy, column in answers.items():
      for index, (record, text) in enumerate(zip(prompts, column, strict=True)):
        other = answers[baseline][index]
        texts.append((record["prompt"], text))
        if text != other:
          pairs += [(record["prompt"], text, other), (record["prompt"], other, text)]
    wins = asker.compare(pairs)
    likert = asker.rate(texts)
    rows = []
    for policy, column in answers.items():
      for index, (record, text) in enumerate(zip(prompts, column, strict=True)):
        prompt, other = record["prompt"], answers[baseline][index]
        win = None if policy == baseline else 0.5
        if text != other:
          swapped = wins[prompt, other, text]
          win = win_rates.both_orders(
            wins[prompt, text, other], None if swapped is None else 1 - swapped
          )
        rows.append(
          dict(
            prompt_index=index,
            policy=policy,
            labeler=asker.p.model,
            group="endpoint",
            win=win,
            likert=likert[prompt, text],
          )
        )
    return rows

  return judge


# ----------------------------------------------------------------------------- any against any


def judge_pairs(
  judge: Judge,
  prompts: Sequence[Mapping[str, Any]],
  answers: Mapping[str, Sequence[str]],
  pairs: Sequence[tuple[str, str]],
) -> list[Row]:
  """Rows of policies compared with others than the one baseline, which each row names.

  Args:
    judge: asked once for each pair.
    prompts, answers: as of a judge.
    pairs: (policy, baseline).

  Returns:
    Rows with a win, and without what belongs to an answer alone.
  """
  rows = []
  for policy, baseline in pairs:
    both = {policy: answers[policy], baseline: answers[baseline]}
    rows += [
      dict(
        prompt_index=row["prompt_index"],
        policy=policy,
        labeler=row["labeler"],
        group=row["group"],
        win=row["win"],
        likert=None,
        baseline=baseline,
      )
      for row in judge(prompts, both, baseline)
      if row["win"] is not None
    ]
  return rows


def win_rate_matrix(
  rows_by_seed: Mapping[int, Sequence[Row]],
  policies: Sequence[str],
  *,
  baseline: str,
  group: str,
  num_resamples: int,
  seed: int,
) -> dict[str, dict[str, statistics.Interval | None]]:
  """Win rate of every policy against every other, with bootstrap intervals over prompts.

  Seeds are nested: runs are resampled, then the prompts of each drawn run.  A pair that was judged
  one way round is not judged again the other way: there it is 1 minus.

  Args:
    rows_by_seed: training seed -> rows; those without a "baseline" are against `baseline`.
    policies: which, in the order wanted.
    baseline: see `rows_by_seed`.
    group: one of `preference.JUDGE_GROUPS`.
    num_resamples, seed: of the bootstrap.

  Returns:
    policy -> other policy -> interval of the share of judgements that prefer the first; None on the
    diagonal and where nobody compared the two.

  Raises:
    ValueError: a labeler judged one pair of answers twice.
  """
  by_pair: dict[tuple[str, str], dict[int, list[Row]]] = {}
  for run, rows in rows_by_seed.items():
    for row in rows:
      if row["group"] == group and row["win"] is not None:
        pair = row["policy"], row.get("baseline", baseline)
        by_pair.setdefault(pair, {}).setdefault(run, []).append(row)

  def values(policy, other):
    return {
      run: win_rates.values_by_prompt(rows, policy=policy, group=group, field="win")
      for run, rows in by_pair.get((policy, other), {}).items()
    }

  matrix = {policy: {other: None for other in policies} for policy in policies}
  for a, b in itertools.combinations(policies, 2):
    # The way round that was judged, so that a rate is exactly the one of its rows.
    policy, other = (a, b) if (a, b) in by_pair else (b, a)
    # A pair judged in some runs one way round and in some the other is still one pair.
    wins = {run: 1 - win_PL for run, win_PL in values(other, policy).items()}
    wins |= values(policy, other)
    if wins:
      found = statistics.bootstrap_over_seeds(
        dict(sorted(wins.items())), seed=seed, num_resamples=num_resamples
      )
      matrix[policy][other] = found
      matrix[other][policy] = statistics.Interval(
        mean=1 - found.mean, low=1 - found.high, high=1 - found.low, n=found.n
      )
  return matrix
