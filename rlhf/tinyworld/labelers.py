"""Simulated labelers: people of TinyWorld who rank, compare and rate completions.

A labeler weighs the components of the gold score in their own way, has a taste for long or short
texts, and makes errors.  The utility of a completion to a labeler is

    utility = gold_score(marks, the labeler's weights)
              + length_taste * words / WORDS_PER_TASTE
              + noise_scale * noise(labeler, prompt, completion)

The noise is a fixed function of its arguments: a labeler who is asked twice gives the same answer,
and a completion keeps its noise in every comparison.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rlhf.tinyworld import gold, sensitive
from rlhf.tinyworld.world import World

# A length taste of 0.03 adds 0.03 to the utility for every 24 words, about one typical text.
WORDS_PER_TASTE = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelersConfig:
  """The population that labelers are drawn from.

  All scales are standard deviations in units of the gold score, which lies in [0, 1].

  Attributes:
    num_training, num_heldout: how many labelers of each group to draw.
    weight_spread: of the logarithm of each weight around `gold.GOLD_WEIGHTS`.
    length_taste_scale: of the taste for long completions.
    leniency_scale: of the bias added to a labeler's Likert ratings.
    noise_scale: of the noise per (labeler, prompt, completion); see `calibrate_noise`.
    tie_margin: completions whose utilities differ by no more than this are tied.
    seed: of the draw.
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
  """One person.

  `weights` (for training labels) and `evaluation_weights` (for the final evaluation) are in the
  order of `gold.COMPONENTS`; the scales are those of `LabelersConfig`.
  """

  id: str
  weights: tuple[float, ...]
  evaluation_weights: tuple[float, ...]
  length_taste: float
  bias: float
  noise_scale: float
  tie_margin: float


def make_labelers(cfg: LabelersConfig) -> tuple[tuple[Labeler, ...], tuple[Labeler, ...]]:
  """Draws (training, held-out) labelers from one population.  Raises ValueError for a bad field."""
  if cfg.num_training < 1:
    raise ValueError(f"num_training {cfg.num_training}; use at least 1")
  for name, value in dataclasses.asdict(cfg).items():
    if value < 0:
      raise ValueError(f"{name} {value}; use 0 or more")
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


class Marked(NamedTuple):
  """A completion of a prompt with its `gold.components`, the same for all labelers."""

  prompt: str
  text: str
  marks: Mapping[str, float]


def mark(world: World, task: dict, prompt: str, text: str) -> Marked:
  """Runs the gold scorer on a completion, once for all labelers."""
  return Marked(prompt, text, gold.components(world, task, prompt, text))


def utility(labeler: Labeler, completion: Marked, *, evaluation: bool) -> float:
  """The utility of a completion to a labeler; see the module's equation.

  Args:
    evaluation: use `evaluation_weights`, which count truth and harm more.
  """
  weights = labeler.evaluation_weights if evaluation else labeler.weights
  score = gold.gold_score(completion.marks, dict(zip(gold.COMPONENTS, weights)))
  taste = labeler.length_taste * len(completion.text.split()) / WORDS_PER_TASTE
  noise = labeler.noise_scale * standard_noise(labeler.id, completion.prompt, completion.text)
  return score + taste + noise


def ranks_of(utilities: Sequence[float], tie_margin: float) -> list[int]:
  """Ranks from 1 (best); ties are measured from the best utility of each rank."""
  order = sorted(range(len(utilities)), key=lambda index: -utilities[index])
  ranks, rank, leader = [0] * len(utilities), 0, None
  for index in order:
    if leader is None or leader - utilities[index] > tie_margin:
      rank, leader = rank + 1, utilities[index]
    ranks[index] = rank
  return ranks


def rank(labeler: Labeler, completions: Sequence[Marked], *, evaluation: bool) -> list[int]:
  """Ranks the completions of a prompt: 1 is best, equal ranks are ties."""
  utilities = [utility(labeler, one, evaluation=evaluation) for one in completions]
  return ranks_of(utilities, labeler.tie_margin)


def prefer(labeler: Labeler, a: Marked, b: Marked, *, evaluation: bool) -> float:
  """1.0 if the labeler prefers `a` to `b`, 0.5 for a tie, 0.0 otherwise."""
  value_a, value_b = (utility(labeler, one, evaluation=evaluation) for one in (a, b))
  gap = value_a - value_b
  return 0.5 if abs(gap) <= labeler.tie_margin else float(gap > 0)


def likert(labeler: Labeler, completion: Marked, *, evaluation: bool) -> int:
  """Overall quality from 1 to 7: seven equal steps of utility plus bias over [0, 1]."""
  value = labeler.bias + utility(labeler, completion, evaluation=evaluation)
  return int(np.clip(1 + np.floor(7 * value), 1, 7))


def metadata(task: dict, completion: Marked) -> dict[str, bool | None]:
  """The yes/no metadata of InstructGPT's Table 3 that apply to this world.

  A field is None where it does not apply: the prompt has no constraint, or no passage.
  """
  marks = completion.marks
  return {
    "fails_to_follow_instruction": marks["followed"] < 0.5,
    "inappropriate_for_customer_assistant": marks["harmless"] < 1,
    "hallucination": marks["grounded"] < 1 if "passage" in task else None,
    "satisfies_constraint": marks["constraint"] == 1 if task["constraints"] else None,
    "states_a_falsehood": marks["true"] < 1,
    "gives_harmful_advice": sensitive.breaks_a_position(completion.text),
    "denigrates": sensitive.is_rude(completion.text),
  }


def agreement(
  labelers: Sequence[Labeler], items: Sequence[Sequence[Marked]], *, evaluation: bool
) -> tuple[float, int]:
  """How often two labelers prefer the same completion, over pairs that neither calls a tie.

  Args:
    items: the completions of each prompt; two that have the same text are not a pair.

  Returns:
    (rate in [0, 1], number of judgements compared); the rate is NaN without any.

  Raises:
    ValueError: fewer than two labelers.
  """
  if len(labelers) < 2:
    raise ValueError(f"{len(labelers)} labelers; agreement needs at least 2")
  gaps = []
  for labeler in labelers:
    valued = [
      [(one.text, utility(labeler, one, evaluation=evaluation)) for one in item] for item in items
    ]
    pairs = itertools.chain.from_iterable(itertools.combinations(item, 2) for item in valued)
    gaps.append([value_a - value_b for (a, value_a), (b, value_b) in pairs if a != b])
  gap_LP = np.array(gaps)
  sign_LP = np.where(np.abs(gap_LP) <= labelers[0].tie_margin, 0, np.sign(gap_LP))
  products = np.array(
    [first_P * second_P for first_P, second_P in itertools.combinations(sign_LP, 2)]
  )
  agreed, total = int((products > 0).sum()), int((products != 0).sum())
  return (agreed / total if total else float("nan")), total


def calibrate_noise(
  cfg: LabelersConfig, items: Sequence[Sequence[Marked]], *, target: float = 0.73
) -> float:
  """The `noise_scale` at which the training labelers of `cfg` agree at the target rate.

  InstructGPT's training labelers agreed with each other 72.6 +- 1.5 % of the time (section 3.4).
  Agreement falls as noise grows, so the scale is found by bisection, to 0.001.

  Args:
    items: as of `agreement`.

  Raises:
    ValueError: even without noise they agree less often than the target.
  """

  def rate(noise_scale: float) -> float:
    training, _ = make_labelers(dataclasses.replace(cfg, noise_scale=noise_scale))
    return agreement(training, items, evaluation=False)[0]

  if not (without := rate(0.0)) >= target:
    raise ValueError(
      f"labelers agree at {without:.3f} without noise, below the target {target}; use a smaller "
      "weight_spread"
    )
  low, high = 0.0, 2.0
  while high - low > 1e-3:
    middle = (low + high) / 2
    low, high = (middle, high) if rate(middle) > target else (low, middle)
  return (low + high) / 2
