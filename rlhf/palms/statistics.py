"""Tests whether fine-tuning on values changed the ratings: means, differences, effect sizes.

A rating is one row {"model", "kind": "base" | "targeted" | "control", "size", "seed", "category",
"probe", "sample", "rater", "rating"}: what one rater gave one sampled completion of a probe.
`size` counts non-embedding parameters, `seed` is that of the fine-tuning.

Probes and seeds would be different ones in another experiment; samples and raters of a probe only
measure it more precisely.  So probes and seeds are resampled, never single ratings.  They are
crossed: every seed's model completes the same probes.  A resample therefore draws seeds and probes
independently and takes all ratings of each drawn pair together (the pigeonhole bootstrap, Owen
2007, arXiv:0712.1111).  Drawing probes anew within each seed, as `rlhf.evals.statistics` does for
prompts that belong to one run, would count five probes under three seeds as fifteen.  Probes are
drawn within their category, since categories are chosen and not sampled.  Models are paired: both
sides of a difference use the same draw.

Of n units n - 1 are drawn, each with the weight n / (n - 1) (Rao and Wu 1988): drawing n would make
the variance of 3 seeds a third too small.

Each model has one number per probe and seed, the mean of its ratings.  All of these have the same
weight in means, differences, tests and effect sizes, so a difference compares the same probes even
where ratings are missing.  A probe without any rating of some model is left out for all models and
reported.

Limitations: with 5 probes in a category and 3 seeds, percentile intervals are too narrow (a t
interval over five units is 40 % wider) and no test has much power.  An interval may exclude 0 while
the test, which accounts for the number of units, shows nothing.  Every result states its number of
units.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rlhf import checks
from rlhf.evals.preference import agreement, sheets
from rlhf.evals.statistics import Interval
from rlhf.report.figures import short_count

KINDS = ("base", "targeted", "control")
COMPARISONS = (("targeted", "base"), ("control", "base"), ("targeted", "control"))
TESTS = ("min_f", "sign_flip")
ALL = ""  # stands for all categories together
LOWEST, HIGHEST = 1, 5  # of the scale
_TOLERANCE = 1e-9  # two means that differ by less, in points, are equal

Runs = Mapping[int, np.ndarray]  # seed -> mean rating of each probe (or another number of an item)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
  """How ratings are analysed.

  Attributes:
    num_resamples: bootstrap resamples.
    num_flips: random sign flips, used where there are more than this many possible ones.
    seed: of resamples and flips.
    confidence: of the intervals.
    alpha: a difference is shown where its p-value, adjusted by Holm over categories, is below this.
    test: the p-value that decides.  "min_f" generalises over probes and seeds, and assumes that
      their means are approximately normal.  "sign_flip" assumes only exchangeable signs, but with 5
      probes cannot go below 2 / 2^5 = 0.0625, so it shows nothing in a single category.  Slopes
      always use min F'.
    capability_margin: in points of 100.  Fine-tuning costs no capability where the interval of
      every task excludes a larger loss.  This project's choice: PALMS' capability scores differ by
      about one point.
  """

  num_resamples: int = 2000
  num_flips: int = 10_000
  seed: int = 0
  confidence: float = 0.95
  alpha: float = 0.05
  test: str = "min_f"
  capability_margin: float = 2.0

  def __post_init__(self):
    checks.at_least("statistics", self, num_resamples=1, num_flips=1)
    checks.choices("statistics", self, test=TESTS)
    for name, high in (("confidence", 1), ("alpha", 1), ("capability_margin", 100)):
      if not 0 < getattr(self, name) < high:
        raise ValueError(
          f"statistics.{name} {getattr(self, name)}; use a number between 0 and {high}"
        )


# ----------------------------------------------------------------------------- ratings

_TEXT, _NUMBER = ((str,), "a text"), ((int, float), "a number")
_WHOLE, _NAME = ((int,), "a whole number"), ((int, str), "a whole number or a text")
_COMPLETION = {
  "model": _TEXT,
  "kind": _TEXT,
  "size": _NUMBER,
  "seed": _WHOLE,
  "category": _TEXT,
  "probe": _NAME,
  "sample": _NAME,
}
_MORE = {"prompt": _TEXT, "rater": _TEXT, "rating": _NUMBER}
# Which completion a row is about: these fields name it in completions, ratings and keys of sheets.
COMPLETION_FIELDS = tuple(_COMPLETION)


def completion_key(row: Mapping[str, Any]) -> tuple:
  """Names the completion of a row.  The model's name is not part of it: kind, size and seed are."""
  return tuple(row[name] for name in COMPLETION_FIELDS[1:])


def by_completion(rows: Iterable[Mapping[str, Any]]) -> dict[tuple, list[float]]:
  """`completion_key` -> its ratings."""
  found: dict[tuple, list[float]] = collections.defaultdict(list)
  for row in rows:
    found[completion_key(row)].append(row["rating"])
  return found


def check_completion(where: str, row: Any, *more: str) -> None:
  """Checks the fields that name a completion, and `more` of "prompt", "rater" and "rating".

  Raises:
    ValueError: names the place and the field that is missing or wrong.
  """
  fields = _COMPLETION | {name: _MORE[name] for name in more}
  needed = f"a row has {', '.join(fields)}"
  if not isinstance(row, Mapping):
    raise ValueError(f"{where}: not an object; {needed}")
  for name, (types, described) in fields.items():
    if row.get(name) in (None, ""):
      raise ValueError(f"{where}: no {name}; {needed}")
    if not isinstance(row[name], types) or isinstance(row[name], bool):
      raise ValueError(f"{where}: {name} is {row[name]!r:.40}; it must be {described}")
  if row["kind"] not in KINDS:
    raise ValueError(f"{where}: kind {row['kind']!r}; choose from {', '.join(KINDS)}")
  if not 0 < row["size"] < math.inf:
    raise ValueError(f"{where}: size {row['size']}; give the number of non-embedding parameters")


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Reads and checks the ratings of a JSONL file.

  Raises:
    ValueError: the file cannot be read or has a bad line; names it.
  """
  rows = []
  for where, row in sheets.read_objects(path):
    check_completion(where, row, "rater", "rating")
    if not LOWEST <= row["rating"] <= HIGHEST:
      raise ValueError(f"{where}: rating {row['rating']} is outside {LOWEST} to {HIGHEST}")
    rows.append(row)
  if not rows:
    raise ValueError(f"{path} has no ratings; give one JSON object per line")
  return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings:
  """Ratings as tables.  Probes are ordered by category, categories by first appearance.

  Attributes:
    groups: (kind, size) -> seed -> mean rating of each probe.
    places: category -> indices of its probes; `ALL` first.
    left_out: one sentence per probe that a model has no rating of.
    lost: categories without any probe left.
  """

  groups: dict[tuple[str, float], dict[int, np.ndarray]]
  places: dict[str, np.ndarray]
  left_out: tuple[str, ...]
  lost: tuple[str, ...]


def tabulate(
  rows: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]] = ()
) -> Ratings:
  """Rows as tables.

  Args:
    expected: completions that should have ratings.  Without them, a probe that nobody rated for any
      model goes unnoticed.

  Raises:
    ValueError: there is no row, a rater rated a completion twice, or no probe has a rating of every
      model.
  """
  if not rows:
    raise ValueError("there are no ratings to analyse")
  seen: dict[tuple, int] = {}
  for number, row in enumerate(rows, start=1):
    first = seen.setdefault((*completion_key(row), row["rater"]), number)
    if first != number:
      raise ValueError(
        f"rating {number}: {row['rater']} rated sample {row['sample']} of probe {row['probe']} "
        f"({row['category']}) by {row['model']} already in rating {first}; leave one out"
      )
  probes: dict[str, dict] = {}  # category -> its probes, as keys
  seeds: dict[tuple[str, float], set[int]] = {}  # (kind, size) -> its seeds
  for row in (*expected, *rows):
    probes.setdefault(row["category"], {})[row["probe"]] = None
    seeds.setdefault((row["kind"], float(row["size"])), set()).add(row["seed"])
  given = collections.defaultdict(list)  # (kind, size, seed, category, probe) -> ratings
  for row in rows:
    given[completion_key(row)[:-1]].append(float(row["rating"]))
  kept: list[tuple] = []
  left_out: list[str] = []
  for probe in ((category, name) for category, names in probes.items() for name in names):
    lacking = [
      f"{kind} of size {size:g}, seed {seed}"
      for (kind, size), of_group in seeds.items()
      for seed in sorted(of_group)
      if (kind, size, seed, *probe) not in given
    ]
    if lacking:
      more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
      left_out.append(f"probe {probe[1]!r} ({probe[0]}) has no rating of {lacking[0]}{more}")
    else:
      kept.append(probe)
  if not kept:
    raise ValueError(
      f"no probe has a rating of every model, and all must complete the same: {left_out[0]}"
    )
  category_P = np.array([category for category, _ in kept])
  places = {name: np.flatnonzero(category_P == name) for name in probes if name in category_P}
  return Ratings(
    groups={
      group: {
        seed: np.array([np.mean(given[*group, seed, *probe]) for probe in kept])
        for seed in sorted(of_group)
      }
      for group, of_group in seeds.items()
    },
    places={ALL: np.arange(len(kept))} | places,
    left_out=tuple(left_out),
    lost=tuple(name for name in probes if name not in places),
  )


def rater_agreement(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """Agreement of raters on single completions.

  Returns:
    {"means": {rater: mean rating}, "num_completions": rated by two or more, "alpha": Krippendorff's
    with squared distances (1 is perfect, 0 is chance); None where no completion has two ratings}.
  """
  entries = [(completion_key(row), row["rater"], float(row["rating"])) for row in rows]
  raters = sorted({rater for _, rater, _ in entries})
  _, value_SL = agreement.table(entries, raters)
  found = agreement.reliability(value_SL, raters, ordered=True)
  return dict(
    means=dict(zip(raters, np.nanmean(value_SL, axis=0).tolist(), strict=True)),
    num_completions=0 if found is None else found["num_samples"],
    alpha=None if found is None else found["alpha"],
  )


# ----------------------------------------------------------------------------- resampling


def paired(first: Runs, second: Runs, names: tuple[str, str] = ("the first", "the second")) -> Runs:
  """`first` minus `second` of every seed; a single model is compared with every seed of the other.

  Raises:
    ValueError: the seeds, or the numbers of items of a seed, differ.
  """
  seeds = sorted(second if len(second) > len(first) else first)
  for name, runs in zip(names, (first, second)):
    if len(runs) > 1 and sorted(runs) != seeds:
      raise ValueError(
        f"{name} has the seeds {sorted(runs)}, the other {seeds}; give the same seeds, or one "
        "model for all of them"
      )
  found = {}
  for seed in seeds:
    a, b = (runs[seed] if len(runs) > 1 else next(iter(runs.values())) for runs in (first, second))
    if len(a) != len(b):
      raise ValueError(
        f"seed {seed} has {len(a)} items of {names[0]} and {len(b)} of {names[1]}; give equal ones"
      )
    found[seed] = a - b
  return found


def crossed_interval(runs: Runs, *, num_resamples: int, seed: int, confidence: float) -> Interval:
  """Mean over seeds and items that all seeds share, both resampled; `n` counts items.

  Raises:
    ValueError: the seeds have different numbers of items.
  """
  counts = [len(values) for values in runs.values()]
  if len(set(counts)) > 1:
    raise ValueError(
      f"the seeds {', '.join(map(str, runs))} have {', '.join(map(str, counts))} items; items that "
      "are crossed with seeds must be the same for all"
    )
  table_SP, rng = np.stack(list(runs.values())), np.random.default_rng(seed)
  items_RP = _draws(counts[0], num_resamples, rng)
  seeds_RS = _draws(len(counts), num_resamples, rng)
  return _interval(
    table_SP.mean(), _resampled_means(table_SP, seeds_RS, items_RP), counts[0], confidence
  )


def nested_interval(runs: Runs, *, num_resamples: int, seed: int, confidence: float) -> Interval:
  """Mean over seeds that each have items of their own; `n` counts all items.

  All but one of the seeds are drawn, and for each draw its items anew.  The variation of items also
  counts in the differences between seeds, so the interval is somewhat too wide where seeds differ
  only by their items.
  """
  rng, tables = np.random.default_rng(seed), list(runs.values())
  totals_R, counts_R = np.zeros(num_resamples), np.zeros(num_resamples)
  for _ in range(max(len(tables) - 1, 1)):
    drawn_R = rng.integers(len(tables), size=num_resamples)
    for number, table in enumerate(tables):
      chosen_R = drawn_R == number
      totals_R[chosen_R] += _draws(len(table), int(chosen_R.sum()), rng) @ table
      counts_R[chosen_R] += len(table)
  values = np.concatenate(tables)
  return _interval(values.mean(), totals_R / counts_R, len(values), confidence)


def _draws(num_units: int, num_resamples: int, rng) -> np.ndarray:
  """[R, N] weights that add up to N: n - 1 units are drawn; a single unit is kept."""
  if num_units == 1:
    return np.ones((num_resamples, 1))
  counts_RN = rng.multinomial(num_units - 1, np.full(num_units, 1 / num_units), size=num_resamples)
  return counts_RN * (num_units / (num_units - 1))


def _resampled_means(table_SP, seeds_RS, probes_RP) -> np.ndarray:
  """[R] mean over the drawn seeds and probes."""
  totals_R = np.sum((seeds_RS @ table_SP) * probes_RP, axis=1)
  return totals_R / (seeds_RS.sum(axis=1) * probes_RP.sum(axis=1))


def _interval(value: float, draws_R: np.ndarray, num_units: int, confidence: float) -> Interval:
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws_R, [tail, 1 - tail])
  return Interval(mean=float(value), low=float(low), high=float(high), n=num_units)


# ----------------------------------------------------------------------------- tests


def effect_size(first_P: np.ndarray, second_P: np.ndarray) -> float | None:
  """Cohen's d of the probes' means, with the two variances averaged.

      d = (mean_p a_p - mean_p b_p) / sqrt((s_a^2 + s_b^2) / 2)

  a_p and b_p are a probe's means over seeds, s^2 their variance over probes (P - 1 degrees of
  freedom).  Means of many ratings vary less than single ratings, so this exceeds a d of ratings.

  Returns:
    d in standard deviations, or None where there are fewer than two probes or neither side varies.
  """
  sides = [np.asarray(side, np.float64) for side in (first_P, second_P)]
  if len(sides[0]) < 2:
    return None
  spread = math.sqrt(sum(side.var(ddof=1) for side in sides) / 2)
  return float((sides[0].mean() - sides[1].mean()) / spread) if spread > _TOLERANCE else None


def min_f(difference_SP: np.ndarray) -> float:
  """p-value of a mean difference, with probes and seeds both random.

      F1 = t^2 over probes (their means over seeds), F2 = t^2 over seeds (their means over probes)
      min F' = F1 F2 / (F1 + F2),  df = 1 and (F1 + F2)^2 / (F1^2 / df_seeds + F2^2 / df_probes)
      p = max(p of min F', p of F1, p of F2)

  min F' is a lower bound of the quasi F ratio of two crossed random factors: it asks for an effect
  that generalises to other probes and other seeds (Clark 1973, "The language-as-fixed-effect
  fallacy").  Where both F are large, its degrees of freedom approach those of the probes, so that
  with two or three seeds it alone would exceed its error rate; hence the largest of the three.

  With one seed it is the t test over probes and says nothing about other seeds; with one probe it
  is 1.  Where all differences are equal, their variation is unknown and the p-value is that of
  flipping the signs of the probes, 2 / 2^P.

  Args:
    difference_SP: first minus second, of each seed and probe.
  """
  difference_SP = np.asarray(difference_SP, np.float64)
  num_seeds, num_probes = difference_SP.shape
  if num_probes < 2 or abs(difference_SP.mean()) < _TOLERANCE:
    return 1.0
  f_probes = _squared_t(difference_SP.mean(axis=0))
  f_seeds = _squared_t(difference_SP.mean(axis=1)) if num_seeds > 1 else math.inf
  return _largest_p(f_probes, f_seeds, num_seeds - 1, num_probes)


def min_f_of_slope(difference_KSP: np.ndarray, x_K: np.ndarray) -> float:
  """`min_f` of the slope of a mean difference on x: F1 over the probes' slopes, F2 over the runs.

  F1 is t^2 of the probes' slopes (over the means of the seeds) with P - 1 degrees of freedom; F2 is
  that of the regression of the N runs' means (over probes) with N - 2, so that runs off the line
  count against it.  Two runs always lie on a line and show nothing: the result is 1.  Runs must be
  independent: those that share a base model are one.

  Args:
    difference_KSP: of each size, seed and probe.
    x_K: the regressor.
  """
  difference_KSP, x_K = np.asarray(difference_KSP, np.float64), np.asarray(x_K, np.float64)
  num_sizes, num_seeds, num_probes = difference_KSP.shape
  num_runs, slope_P = num_sizes * num_seeds, _slope_weights(x_K) @ difference_KSP.mean(axis=1)
  if num_probes < 2 or num_runs < 3 or abs(slope_P.mean()) < _TOLERANCE:
    return 1.0
  runs = scipy.stats.linregress(np.repeat(x_K, num_seeds), difference_KSP.mean(axis=2).ravel())
  f_runs = (runs.slope / runs.stderr) ** 2 if runs.stderr > _TOLERANCE else math.inf
  return _largest_p(_squared_t(slope_P), f_runs, num_runs - 2, num_probes)


def _largest_p(f_probes: float, f_runs: float, degrees_runs: int, num_probes: int) -> float:
  """Largest p-value of min F' and both F; an infinite F has units that do not vary, or only one."""
  both = [(f_probes, num_probes - 1), (f_runs, degrees_runs)]
  found: list[tuple[float, float]] = [(f, degrees) for f, degrees in both if math.isfinite(f)]
  if not found:
    return 2 / 2**num_probes
  if len(found) == 2:
    degrees = (f_probes + f_runs) ** 2 / (f_probes**2 / degrees_runs + f_runs**2 / (num_probes - 1))
    found.append((f_probes * f_runs / (f_probes + f_runs), degrees))
  return max(float(scipy.stats.f.sf(f, 1, degrees)) for f, degrees in found)


def _slope_weights(x_K: np.ndarray) -> np.ndarray:
  """[K] weights with which values add up to their least-squares slope on x."""
  centred_K = x_K - np.mean(x_K)
  return centred_K / np.sum(centred_K**2)


def _squared_t(values: np.ndarray) -> float:
  variance = values.var(ddof=1) / len(values)
  return float(values.mean() ** 2 / variance) if variance > _TOLERANCE**2 else math.inf


def sign_flip(difference_P: np.ndarray, *, num_flips: int, seed: int) -> float:
  """Two-sided p-value of a mean difference over probes, by flipping the signs of whole probes.

  If the models do not differ on a probe, its difference could equally have the other sign.  All 2^P
  combinations are tried where they are at most `num_flips`, otherwise `num_flips` random ones.
  """
  if len(difference_P) < 2:
    return 1.0
  return float(
    scipy.stats.permutation_test(
      (np.asarray(difference_P, np.float64),),
      lambda values, axis: np.abs(np.mean(values, axis=axis)),
      permutation_type="samples",
      n_resamples=num_flips,
      alternative="greater",
      rng=np.random.default_rng(seed),
    ).pvalue
  )


def smallest_sign_flip(num_probes: int, num_flips: int) -> float:
  """The smallest p-value that `sign_flip` can give: all differences have one sign."""
  return 2 / 2**num_probes if 2**num_probes <= num_flips else 1 / (num_flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values adjusted for multiple comparisons (Holm 1979).

  p_(k) -> max over j <= k of min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)
  """
  order = np.argsort(p_values, kind="stable")
  multiplied = np.arange(len(order), 0, -1) * np.asarray(p_values)[order]
  adjusted = np.empty(len(order))
  adjusted[order] = np.maximum.accumulate(np.minimum(1, multiplied))
  return adjusted.tolist()


# ----------------------------------------------------------------------------- analysis

# category -> ([S, P] numbers of its probes, [R] resampled means, interval); `ALL` first.
ByCategory = dict[str, tuple[np.ndarray, np.ndarray, Interval]]


def analyse(
  rows: Sequence[Mapping[str, Any]],
  p: StatisticsConfig,
  *,
  expected: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Means, differences with their tests, and slopes over size.

  Kinds are compared at the sizes that both have; slopes need two such sizes.  In the results over
  all categories, a category with more probes has more weight.

  Args:
    rows: ratings, as `read_rows` checks them.
    expected: see `tabulate`.

  Returns:
    {"means": [{"kind", "size", "category", "rating": interval, "num_seeds"}],
     "comparisons": of `_compare`, "slopes": of `_slopes`,
     "claims": findings of the paper, [{"claim", "held": whether it is reproduced, "evidence"}],
     "raters": of `rater_agreement`,
     "left_out": one sentence per probe that is left out because a model has no rating of it}.
    An interval is that of `Interval.as_dict`; its "n" counts probes.  Lists are ordered by size,
    then by category; the category of all together, `ALL`, is first.

  Raises:
    ValueError: as `tabulate`, or the seeds of two kinds do not match.
  """
  ratings, rng = tabulate(rows, expected), np.random.default_rng(p.seed)
  groups, places = ratings.groups, ratings.places
  sizes = sorted({size for _, size in groups})
  probes_RP = np.zeros((p.num_resamples, len(places[ALL])))
  for category, of_category in places.items():
    if category != ALL:
      probes_RP[:, of_category] = _draws(len(of_category), p.num_resamples, rng)

  def by_category(runs: Runs) -> ByCategory:
    table_SP = np.stack(list(runs.values()))
    seeds_RS = _draws(len(table_SP), p.num_resamples, rng)
    found = {}
    for category, of_category in places.items():
      cells_SP = table_SP[:, of_category]
      draws_R = _resampled_means(cells_SP, seeds_RS, probes_RP[:, of_category])
      interval = _interval(cells_SP.mean(), draws_R, len(of_category), p.confidence)
      found[category] = cells_SP, draws_R, interval
    return found

  means = [
    dict(kind=kind, size=size, category=category, rating=rating.as_dict(), num_seeds=len(cells_SP))
    for size in sizes
    for kind in KINDS
    if (kind, size) in groups
    for category, (cells_SP, _, rating) in by_category(groups[kind, size]).items()
  ]
  comparisons: list[dict[str, Any]] = []
  slopes: list[dict[str, Any]] = []
  for first, second in COMPARISONS:
    by_size: dict[float, ByCategory] = {}
    for size in sizes:
      if (first, size) in groups and (second, size) in groups:
        names = f"{first} of size {size:g}", f"{second} of size {size:g}"
        difference = paired(groups[first, size], groups[second, size], names)
        by_size[size] = by_category(difference)
        comparisons += _compare(ratings, first, second, size, list(difference), by_size[size], p)
    if len(by_size) > 1:
      slopes += _slopes(ratings, first, second, by_size, p)
  return dict(
    means=means,
    comparisons=comparisons,
    slopes=slopes,
    claims=list(_claims(comparisons, slopes, ratings.lost)),
    raters=rater_agreement(rows),
    left_out=ratings.left_out,
  )


def _holm_by_category(p_values: Sequence[float]) -> list[float]:
  """The first, of all categories, is a comparison of its own."""
  return [p_values[0], *holm(p_values[1:])]


def _compare(
  ratings: Ratings,
  first: str,
  second: str,
  size: float,
  seeds: Sequence[int],
  by_category: ByCategory,
  p: StatisticsConfig,
) -> Iterator[dict[str, Any]]:
  """`first` minus `second` on the same probes, in all categories and in each.

  Yields:
    {"first", "second", "size", "category",
     "difference": interval, in points of the scale, "by_seed": the difference of each seed,
     "effect_size": see `effect_size`; None where the probes' means do not vary,
     "p_value": of `min_f`, "p_holm": adjusted by Holm over the categories,
     "p_sign_flip": of `sign_flip` over probes, "p_sign_flip_holm",
     "smallest_p_sign_flip": the smallest value "p_sign_flip" can take with this many probes,
     "p_decides": the p-value behind the verdict,
     "verdict": "higher", "lower", or "not shown"}.
  """
  tables = [cells_SP for cells_SP, _, _ in by_category.values()]
  flip = lambda cells_SP: sign_flip(cells_SP.mean(axis=0), num_flips=p.num_flips, seed=p.seed)
  p_values = dict(min_f=list(map(min_f, tables)), sign_flip=list(map(flip, tables)))
  adjusted = {test: _holm_by_category(values) for test, values in p_values.items()}
  sides = [np.mean(list(ratings.groups[kind, size].values()), axis=0) for kind in (first, second)]
  for number, (category, (cells_SP, _, difference)) in enumerate(by_category.items()):
    places, p_decides = ratings.places[category], adjusted[p.test][number]
    verdict = "higher" if difference.mean > 0 else "lower"
    yield dict(
      first=first,
      second=second,
      size=size,
      category=category,
      difference=difference.as_dict(),
      by_seed=dict(zip(map(str, seeds), cells_SP.mean(axis=1).tolist(), strict=True)),
      effect_size=effect_size(*(side[places] for side in sides)),
      p_value=p_values["min_f"][number],
      p_holm=adjusted["min_f"][number],
      p_sign_flip=p_values["sign_flip"][number],
      p_sign_flip_holm=adjusted["sign_flip"][number],
      smallest_p_sign_flip=smallest_sign_flip(len(places), p.num_flips),
      p_decides=p_decides,
      verdict=verdict if p_decides < p.alpha else "not shown",
    )


def _slopes(
  ratings: Ratings,
  first: str,
  second: str,
  by_size: Mapping[float, ByCategory],
  p: StatisticsConfig,
) -> list[dict[str, Any]]:
  """Least squares of the difference on log10 size; seeds are drawn independently at each size.

  Returns:
    [{"first", "second", "category",
      "slope": interval, in points of the scale per factor of ten in parameters, with fixed sizes,
      "sizes": that the line covers,
      "p_value": of `min_f_of_slope`, "p_holm": adjusted by Holm over the categories,
      "verdict": "rises", "falls", or "not shown", for the signed difference, by "p_holm"}].
  """
  sizes, x_K = tuple(by_size), np.log10(list(by_size))
  # Seeds are runs of their own only where every kind has as many.  Where several tuned models share
  # one base, all differences of a size contain that base's peculiarities, even those between its
  # tuned models; then, as with unequal numbers over sizes, the mean of the seeds is one run.
  num_seeds = [
    {len(runs) for (_, at), runs in ratings.groups.items() if at == size} for size in sizes
  ]
  one_run = any(len(numbers) > 1 for numbers in num_seeds) or len(set.union(*num_seeds)) > 1
  slopes, p_values = [], []
  for category, places in ratings.places.items():
    cells, draws, intervals = zip(*(by_size[size][category] for size in sizes))
    slope = np.dot(_slope_weights(x_K), [interval.mean for interval in intervals])
    draws_R = np.stack(draws, axis=1) @ _slope_weights(x_K)
    slopes.append(_interval(slope, draws_R, len(places), p.confidence))
    if one_run:
      cells = tuple(table.mean(axis=0, keepdims=True) for table in cells)
    p_values.append(min_f_of_slope(np.stack(cells), x_K))
  return [
    dict(
      first=first,
      second=second,
      category=category,
      slope=slope.as_dict(),
      sizes=sizes,
      p_value=p_value,
      p_holm=p_holm,
      verdict="not shown" if p_holm >= p.alpha else ("rises" if slope.mean > 0 else "falls"),
    )
    for category, slope, p_value, p_holm in zip(
      ratings.places, slopes, p_values, _holm_by_category(p_values), strict=True
    )
  ]


def _claims(
  comparisons: Sequence[Mapping[str, Any]],
  slopes: Sequence[Mapping[str, Any]],
  lost: Sequence[str],
) -> Iterator[dict[str, Any]]:
  """PALMS' findings about ratings, each over all sizes."""
  for second in ("base", "control"):
    chosen = [c for c in comparisons if (c["first"], c["second"]) == ("targeted", second)]
    overall = [c for c in chosen if c["category"] == ALL]
    if not overall:
      continue
    last, several = overall[-1], len(overall) > 1
    single = [c for c in chosen if c["category"] != ALL]
    largest = [c for c in single if c["size"] == last["size"]]
    above = f"values-targeted is rated above {second}"
    at_each, at_largest = ", at every size" if several else "", f"at {short_count(last['size'])}"
    failed_at = [short_count(c["size"]) for c in overall if c["verdict"] != "higher"]
    failed_in = [c["category"] for c in largest if c["verdict"] != "higher"]
    evidence = f"{signed(last['difference'])} points {at_largest}"
    if several and failed_at:
      evidence += f"; not shown at {', '.join(failed_at)}"
    yield dict(
      claim=f"{above}, over all categories{at_each}", held=not failed_at, evidence=evidence
    )
    num_shown = sum(c["verdict"] == "higher" for c in single)
    evidence = f"shown in {num_shown} of {len(single) + len(lost) * len(overall)} categories"
    if several:
      num_largest = f"{len(largest) - len(failed_in)} of {len(largest) + len(lost)}"
      evidence += f" and sizes, {at_largest} in {num_largest}"
    for what, names in (("not shown in", failed_in), ("not rated:", lost)):
      evidence += f"; {what} {', '.join(names)}" if names else ""
    yield dict(
      claim=f"{above} in every category{at_each}",
      held=not lost and num_shown == len(single),
      evidence=evidence,
    )
    for s in slopes:
      if (s["first"], s["second"], s["category"]) == ("targeted", second, ALL):
        yield dict(
          claim=f"the effect of values-targeted against {second} grows with size",
          # A harm that shrinks also rises.
          held=s["verdict"] == "rises" and last["verdict"] == "higher",
          evidence=f"{signed(s['slope'])} points for ten times the parameters over "
          f"{len(s['sizes'])} sizes, p {s['p_value']:.3g}",
        )


def signed(interval: Mapping[str, float], digits: int = 2) -> str:
  """A difference and its interval, with signs."""
  mean, low, high = (f"{interval[end]:+.{digits}f}" for end in ("mean", "low", "high"))
  return f"{mean} ({low} to {high})"


def describe(analysis: Mapping[str, Any]) -> str:
  """The results of `analyse` over all categories and the claims, for the console."""
  lines = []
  for m in analysis["means"]:
    if m["category"] == ALL:
      mean, low, high, num_probes = m["rating"].values()
      lines.append(
        f"{m['kind']:<9} {short_count(m['size']):>9}  {mean:.2f} ({low:.2f} to {high:.2f})  "
        f"({num_probes} probes, {m['num_seeds']} seed{'' if m['num_seeds'] == 1 else 's'})"
      )
  for c in analysis["comparisons"]:
    if c["category"] == ALL:
      effect = "none" if c["effect_size"] is None else f"{c['effect_size']:+.2f}"
      lines.append(
        f"{c['first']} - {c['second']} at {short_count(c['size'])}: {signed(c['difference'])}, "
        f"effect size {effect}, p {c['p_value']:.2g} (sign flips {c['p_sign_flip']:.2g}): "
        f"{c['verdict']}"
      )
  if analysis["raters"]["alpha"] is not None:
    lines.append(
      f"raters: Krippendorff's alpha {analysis['raters']['alpha']:.2f} over "
      f"{analysis['raters']['num_completions']:,} completions"
    )
  lines += [f"left out: {sentence}" for sentence in analysis["left_out"]]
  for claim in analysis["claims"]:
    held = "held" if claim["held"] else "FAILED"
    lines.append(f"{held}: {claim['claim']}: {claim['evidence']}")
  return "\n".join(lines)
