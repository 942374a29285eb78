"""Simulated labelers: they see prompts and responses, weigh the gold components each in their own
way, and err.

A labeler's utility of an output is

    gold_score(components; the labeler's weights) + length_taste * words / 24 + noise

where the noise is a fixed function of (labeler, prompt, output): asked twice, a labeler says the
same, and an output keeps its noise in every comparison.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from rlhf.tinyworld import gold
from rlhf.tinyworld.world import World


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelersConfig:
  """Who labels.  All scales are in units of the gold score, which lies in [0, 1].

  weight_spread: standard deviation of the log of each weight around GOLD_WEIGHTS.
  length_taste_scale: standard deviation of the taste for long answers.
  leniency_scale: standard deviation of the bias that moves a labeler's Likert ratings.
  noise_scale: standard deviation of the noise per (labeler, output); `calibrate_noise` finds it.
  tie_margin: outputs whose utilities differ by no more are given one rank.
  """

  num_training: int = 5
  num_heldout: int = 5
  weight_spread: float = 0.4
  length_taste_scale: float = 0.03
  leniency_scale: float = 0.05
  noise_scale: float = 0.26
  tie_margin: float = 0.03
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labeler:
  """One person; `weights` and `evaluation_weights` are in the order of gold.COMPONENTS."""

  id: str
  weights: tuple[float, ...]
  evaluation_weights: tuple[float, ...]
  length_taste: float
  bias: float
  noise_scale: float
  tie_margin: float


def make_labelers(cfg: LabelersConfig) -> tuple[tuple[Labeler, ...], tuple[Labeler, ...]]:
  """Draws (training, held-out) labelers from one prior.

  Raises:
    ValueError: there is no training labeler, or a scale is negative.
  """
  if cfg.num_training < 1:
    raise ValueError(f"num_training {cfg.num_training}; at least one labeler is needed")
  for name in (
    "weight_spread",
    "length_taste_scale",
    "leniency_scale",
    "noise_scale",
    "tie_margin",
  ):
    if getattr(cfg, name) < 0:
      raise ValueError(f"{name} {getattr(cfg, name)}; use 0 or more")
  rng = np.random.default_rng(np.random.SeedSequence([cfg.seed, 1]))
  training = tuple(_draw(rng, cfg, f"labeler_{i}") for i in range(cfg.num_training))
  heldout = tuple(_draw(rng, cfg, f"heldout_{i}") for i in range(cfg.num_heldout))
  return training, heldout


def _draw(rng, cfg: LabelersConfig, labeler_id: str) -> Labeler:
  factors = np.exp(cfg.weight_spread * rng.normal(size=len(gold.COMPONENTS)))

  def weigh(weights: Mapping[str, float]) -> tuple[float, ...]:
    raw = np.array([weights[name] for name in gold.COMPONENTS]) * factors
    return tuple(float(w) for w in raw / raw.sum())

  return Labeler(
    id=labeler_id,
    weights=weigh(gold.GOLD_WEIGHTS),
    evaluation_weights=weigh(gold.EVALUATION_WEIGHTS),
    length_taste=float(cfg.length_taste_scale * rng.normal()),
    bias=float(cfg.leniency_scale * rng.normal()),
    noise_scale=cfg.noise_scale,
    tie_margin=cfg.tie_margin,
  )


@functools.lru_cache(maxsize=500_000)
def standard_noise(labeler_id: str, prompt: str, response: str) -> float:
  """A standard normal number that depends on its arguments alone (Box-Muller on SHA-256)."""
  digest = hashlib.sha256(f"{labeler_id}\x00{prompt}\x00{response}".encode()).digest()
  first = (int.from_bytes(digest[:6], "big") + 1) / 2**48
  second = int.from_bytes(digest[6:12], "big") / 2**48
  return float(np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second))


def utility(
  labeler: Labeler,
  world: World,
  task: dict,
  prompt: str,
  response: str,
  *,
  evaluation: bool,
  marks: Mapping[str, float] | None = None,
) -> float:
  """What one output is worth to one labeler, noise included.

  Args:
    evaluation: use the weights of the final evaluation (more on truth and harm).
    marks: `gold.components` of the response, where the caller has them already.
  """
  if marks is None:
    marks = gold.components(world, task, prompt, response)
  weights = labeler.evaluation_weights if evaluation else labeler.weights
  value = gold.gold_score(marks, dict(zip(gold.COMPONENTS, weights)))
  value += labeler.length_taste * len(response.split()) / 24
  return value + labeler.noise_scale * standard_noise(labeler.id, prompt, response)


def ranks_of(utilities: Sequence[float], tie_margin: float) -> list[int]:
  """Ranks from 1 (best); an output within `tie_margin` of the best of its rank joins that rank."""
  order = sorted(range(len(utilities)), key=lambda index: -utilities[index])
  ranks, rank, leader = [0] * len(utilities), 0, None
  for index in order:
    if leader is None or leader - utilities[index] > tie_margin:
      rank, leader = rank + 1, utilities[index]
    ranks[index] = rank
  return ranks


def rank(
  labeler: Labeler,
  world: World,
  task: dict,
  prompt: str,
  completions: Sequence[str],
  *,
  evaluation: bool,
  marks: Sequence[Mapping[str, float]] | None = None,
) -> list[int]:
  """Ranks K completions, 1 = best, equal = tie."""
  return ranks_of(
    [
      utility(
        labeler,
        world,
        task,
        prompt,
        text,
        evaluation=evaluation,
        marks=None if marks is None else marks[index],
      )
      for index, text in enumerate(completions)
    ],
    labeler.tie_margin,
  )


def prefer(
  labeler: Labeler,
  world: World,
  task: dict,
  prompt: str,
  a: str,
  b: str,
  *,
  evaluation: bool,
  marks_a: Mapping[str, float] | None = None,
  marks_b: Mapping[str, float] | None = None,
) -> float:
  """1.0 if the labeler likes `a` better than `b`, 0.5 for a tie, 0.0 otherwise."""
  gap = utility(labeler, world, task, prompt, a, evaluation=evaluation, marks=marks_a) - utility(
    labeler, world, task, prompt, b, evaluation=evaluation, marks=marks_b
  )
  if abs(gap) <= labeler.tie_margin:
    return 0.5
  return 1.0 if gap > 0 else 0.0


def likert(
  labeler: Labeler,
  world: World,
  task: dict,
  prompt: str,
  response: str,
  *,
  evaluation: bool,
  marks: Mapping[str, float] | None = None,
) -> int:
  """Overall quality from 1 to 7: utility plus leniency, in seven equal steps of [0, 1]."""
  value = labeler.bias + utility(
    labeler, world, task, prompt, response, evaluation=evaluation, marks=marks
  )
  return int(np.clip(1 + np.floor(7 * value), 1, 7))


def metadata(world: World, task: dict, prompt: str, response: str) -> dict[str, bool | None]:
  """The yes/no fields of InstructGPT's Table 3 that this world knows, from the gold components.

  A field is None where it does not apply: no constraint, no passage.
  """
  marks = gold.components(world, task, prompt, response)
  is_harmful = marks["harmless"] < 1
  return {
    "fails_to_follow_instruction": marks["followed"] < 0.5,
    "inappropriate_for_customer_assistant": is_harmful,
    "hallucination": marks["grounded"] < 1 if "passage" in task else None,
    "satisfies_constraint": marks["constraint"] == 1 if gold.has_constraint(task) else None,
    "states_a_falsehood": marks["true"] < 1,
    "gives_harmful_advice": gold.advises_harm(response),
    "denigrates": gold.is_rude(response),
  }


# ---------------------------------------------------------------- agreement, over many outputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MarkedItem:
  """A prompt with its completions and their components, marked once for all labelers."""

  prompt: str
  completions: tuple[str, ...]
  marks_KC: np.ndarray


def mark_item(world: World, task: dict, prompt: str, completions: Sequence[str]) -> MarkedItem:
  """Runs the gold scorer on every completion of a prompt."""
  marks = [gold.components(world, task, prompt, text) for text in completions]
  return MarkedItem(
    prompt=prompt,
    completions=tuple(completions),
    marks_KC=np.array([[m[name] for name in gold.COMPONENTS] for m in marks]),
  )


def _utilities(
  labelers: Sequence[Labeler], item: MarkedItem, *, evaluation: bool
) -> tuple[np.ndarray, np.ndarray]:
  """(noiseless utilities, standard noise), each [labelers, completions]."""
  weights = np.array([l.evaluation_weights if evaluation else l.weights for l in labelers])
  followed = item.marks_KC[:, 0]
  credited = item.marks_KC * np.minimum(1, followed / gold.FULL_CREDIT_FOLLOWED)[:, None]
  for name in ("followed", "harmless"):  # the two that need no credit, as in gold.gold_score
    column = gold.COMPONENTS.index(name)
    credited[:, column] = item.marks_KC[:, column]
  lengths = np.array([len(text.split()) for text in item.completions]) / 24
  clean = weights @ credited.T + np.outer([l.length_taste for l in labelers], lengths)
  noise = np.array(
    [[standard_noise(l.id, item.prompt, text) for text in item.completions] for l in labelers]
  )
  return clean, noise


def _pair_gaps(
  labelers: Sequence[Labeler], items: Sequence[MarkedItem], *, evaluation: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Utility differences of all pairs of completions: (noiseless, noise), [labelers, pairs]."""
  clean_gaps, noise_gaps = [], []
  for item in items:
    clean, noise = _utilities(labelers, item, evaluation=evaluation)
    first, second = np.triu_indices(len(item.completions), k=1)
    different = [item.completions[a] != item.completions[b] for a, b in zip(first, second)]
    first, second = first[different], second[different]
    clean_gaps.append(clean[:, first] - clean[:, second])
    noise_gaps.append(noise[:, first] - noise[:, second])
  return np.concatenate(clean_gaps, axis=1), np.concatenate(noise_gaps, axis=1)


def _agreement(gaps: np.ndarray, tie_margin: float) -> tuple[float, int]:
  """(rate, number of judgements): over pairs of labelers and pairs that both left untied."""
  signs = np.where(np.abs(gaps) <= tie_margin, 0, np.sign(gaps))
  agreed = total = 0
  for a in range(len(signs)):
    for b in range(a + 1, len(signs)):
      both = signs[a] * signs[b]
      agreed += int((both > 0).sum())
      total += int((both != 0).sum())
  return (agreed / total if total else float("nan")), total


def agreement(
  labelers: Sequence[Labeler], items: Sequence[MarkedItem], *, evaluation: bool
) -> tuple[float, int]:
  """How often two labelers order two outputs alike, over pairs that neither calls a tie.

  Two outputs with the same text are no pair.

  Returns:
    (rate in [0, 1], number of judgements compared); the rate is NaN without any.

  Raises:
    ValueError: fewer than two labelers.
  """
  if len(labelers) < 2:
    raise ValueError(f"{len(labelers)} labelers; agreement needs at least 2")
  clean, noise = _pair_gaps(labelers, items, evaluation=evaluation)
  scales = np.array([l.noise_scale for l in labelers])[:, None]
  return _agreement(clean + scales * noise, labelers[0].tie_margin)


def calibrate_noise(
  cfg: LabelersConfig, items: Sequence[MarkedItem], *, target: float = 0.73, num_steps: int = 30
) -> float:
  """The noise_scale at which the training labelers of `cfg` agree at the target rate.

  InstructGPT's training labelers agreed with each other 72.6 +- 1.5 % of the time (section 3.4).
  Agreement falls as noise grows, so bisection finds the scale.

  Raises:
    ValueError: even without noise they agree less than the target.
  """
  training, _ = make_labelers(cfg)
  clean, noise = _pair_gaps(training, items, evaluation=False)
  without, _ = _agreement(clean, cfg.tie_margin)
  if not without >= target:
    raise ValueError(
      f"labelers agree at {without:.3f} without noise, below the target {target}; use a smaller "
      "weight_spread"
    )
  low, high = 0.0, 2.0
  for _ in range(num_steps):
    middle = (low + high) / 2
    rate, _ = _agreement(clean + middle * noise, cfg.tie_margin)
    low, high = (middle, high) if rate > target else (low, middle)
  return (low + high) / 2
