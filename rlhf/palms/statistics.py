"""Whether fine-tuning on values moved the ratings: means, differences, tests, effect of size.

A rating is one row {"model", "kind": "base" | "targeted" | "control", "size", "seed", "category",
"probe", "sample", "rater", "rating"}: what one rater gave one sampled answer of one model to one
probe.  `size` counts non-embedding parameters, `seed` is of the fine-tuning.

What varies, and would be another in another experiment, are the probes and the seeds; a probe's
samples and raters only measure it better.  So probes and seeds are resampled, never single ratings.
They are crossed: every seed's model answers the same probes.  A resample therefore draws seeds and
probes apart, and takes all ratings of each drawn pair together (the pigeonhole bootstrap, Owen
2007, arXiv:0712.1111); drawing probes anew within each seed, as `rlhf.evals.statistics` does for
prompts of which each run has its own, would count five probes under three seeds as fifteen.  Probes
are drawn within their category, since the categories are chosen and not a sample.  Models are
paired: both sides of a difference have the same draw.

Of n units n - 1 are drawn, each with the weight n / (n - 1) (Rao and Wu 1988): drawing n would make
the variance of 3 seeds a third too small.

A probe and seed has one number for a model, the mean of its ratings, and all of these weigh the
same, in means, differences, tests and effect sizes alike: where a rating is missing, a difference
stays one of the same probes.  A probe that a model has no rating of at all is left out for all
models, and the results say so.

How this gets hurt: with 5 probes of a category and 3 seeds, percentile intervals are still too
narrow (a t interval over five units is wider by 40 %), and no test can be sharp: an interval may
leave 0 out where the test, which knows how few the units are, shows nothing.  The number of units
stands beside every result.
"""

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from rlhf.data import records
from rlhf.evals.preference import ratings as ratings_lib
from rlhf.evals.statistics import Interval
from rlhf.report.figures import short_count

KINDS = ("base", "targeted", "control")
COMPARISONS = (("targeted", "base"), ("control", "base"), ("targeted", "control"))
TESTS = ("min_f", "sign_flip")
ALL = ""  # the category of what is over all categories
LOWEST, HIGHEST = 1, 5  # of the scale
_MOST_EXACT = 14  # probes up to which all 2^P sign flips are tried
_TOLERANCE = 1e-9  # below this, in points, two means are the same number


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatisticsConfig:
  """How the ratings are analysed.

  Attributes:
    num_resamples: of the bootstrap.
    num_flips: random sign flips where there are too many probes to try all.
    seed: of both.
    confidence: of the intervals.
    alpha: a difference is shown where its p-value, by Holm over the categories, is below this.
    test: whose p-value decides that.  "min_f" holds over probes and over seeds, and assumes that
      their means are about normal.  "sign_flip" assumes no more than that signs are exchangeable, but
      with 5 probes it cannot give less than 2 / 2^5 = 0.0625, and so shows nothing in a category.
      Slopes are tested by min F' whatever this says.
    capability_margin: points of a hundred.  Fine-tuning is said to cost no more capability where
      the interval of every task leaves a greater loss out; ours, as PALMS' table of capabilities
      differs by about a point.
  """

  num_resamples: int = 2000
  num_flips: int = 10_000
  seed: int = 0
  confidence: float = 0.95
  alpha: float = 0.05
  test: str = "min_f"
  capability_margin: float = 2.0

  def __post_init__(self):
    for name in ("num_resamples", "num_flips"):
      if getattr(self, name) < 1:
        raise ValueError(f"statistics.{name} {getattr(self, name)}; use 1 or more")
    for name in ("confidence", "alpha"):
      if not 0 < getattr(self, name) < 1:
        raise ValueError(f"statistics.{name} {getattr(self, name)}; use a number between 0 and 1")
    if self.test not in TESTS:
      raise ValueError(f"statistics.test {self.test!r}; choose from {TESTS}")
    if not 0 < self.capability_margin < 100:
      raise ValueError(
        f"statistics.capability_margin {self.capability_margin}; use points of a hundred, such as 2"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean:
  """The mean rating of one kind and size; `category` is empty for all together."""

  kind: str
  size: float
  category: str
  rating: Interval
  num_seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """`first` minus `second` on the same probes.

  Attributes:
    first, second, size, category: which models, and where; `category` is empty for all together.
    difference: in points of the scale; `n` counts probes.
    by_seed: the difference of each seed.
    effect_size: see `effect_size`; None where the probes' means do not vary.
    p_value: of `min_f` over probes and seeds, over probes alone where there is one seed.
    p_holm: the same by Holm over the categories of this comparison and size.
    p_sign_flip, p_sign_flip_holm: of `sign_flip` over probes.
    smallest_p_sign_flip: the least that the latter can be with so many probes.
    p_decides: the one of these by which the verdict goes.
    verdict: "higher", "lower", or "not shown".
  """

  first: str
  second: str
  size: float
  category: str
  difference: Interval
  by_seed: dict[str, float]
  effect_size: float | None
  p_value: float
  p_holm: float
  p_sign_flip: float
  p_sign_flip_holm: float
  smallest_p_sign_flip: float
  p_decides: float
  verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slope:
  """How a difference changes with size.

  Attributes:
    slope: points of the scale per factor of ten in parameters; `n` counts probes.  The interval
      takes the sizes as given.
    sizes: over which the line goes.
    p_value, p_holm: of `min_f_of_slope`; the second by Holm over the categories.
    verdict: "rises", "falls", or "not shown", by `p_holm`: of the difference as a signed number.
  """

  first: str
  second: str
  category: str
  slope: Interval
  sizes: tuple[float, ...]
  p_value: float
  p_holm: float
  verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """Something the paper says, and whether it held here."""

  claim: str
  held: bool
  evidence: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
  """Everything, in the order: size, then category with all together first.

  Attributes:
    raters: how far they agree, of `rater_agreement`.
    left_out: a sentence for each probe that is left out, as a model has no rating of it.
  """

  means: tuple[Mean, ...]
  comparisons: tuple[Comparison, ...]
  slopes: tuple[Slope, ...]
  claims: tuple[Claim, ...]
  raters: dict[str, Any]
  left_out: tuple[str, ...]

  def as_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


# ----------------------------------------------------------------------------- ratings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
  """The models of one kind and size: the mean rating of each seed and probe."""

  seeds: tuple[int, ...]
  mean_SP: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings:
  """All rows as tables; probes are in the order in which their categories appear.

  Attributes:
    groups: (kind, size) -> its models.
    category_P: of each probe.
    probe_P: its name.
    left_out: a sentence for each probe that a model has no rating of.
    lost: categories of which no probe is left.
  """

  groups: dict[tuple[str, float], Group]
  category_P: np.ndarray
  probe_P: tuple[Any, ...]
  left_out: tuple[str, ...]
  lost: tuple[str, ...]

  @property
  def categories(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(self.category_P.tolist()))

  @property
  def sizes(self) -> tuple[float, ...]:
    return tuple(sorted({size for _, size in self.groups}))

  def places(self, category: str) -> np.ndarray:
    """Numbers of a category's probes; of all for `ALL`."""
    if category == ALL:
      return np.arange(len(self.category_P))
    return np.flatnonzero(self.category_P == category)


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
  """Rows of a JSONL file, checked one by one.

  Raises:
    ValueError: the file cannot be read or has a bad line; names it.
  """
  rows = []
  for where, line in records.read_lines(pathlib.Path(path)):
    value, problem = records.parse_json(line)
    if problem is not None:
      raise ValueError(f"{where}: {problem.message}")
    check_row(where, value)
    rows.append(value)
  if not rows:
    raise ValueError(f"{path} holds no rating; give one JSON object a line")
  return rows


_NUMBER, _WHOLE, _TEXT, _NAME = "a number", "a whole number", "a text", "a whole number or a text"
_TYPES = {_NUMBER: (int, float), _WHOLE: int, _TEXT: str, _NAME: (int, str)}
_FIELDS = {
  "model": _TEXT,
  "kind": _TEXT,
  "size": _NUMBER,
  "seed": _WHOLE,
  "category": _TEXT,
  "probe": _NAME,
  "sample": _NAME,
  "rater": _TEXT,
  "rating": _NUMBER,
}


def check_fields(where: str, row: Any, fields: Mapping[str, str], what: str) -> None:
  """Raises ValueError, which begins with `where`, unless a row has the fields with their types."""
  if not isinstance(row, Mapping):
    raise ValueError(f"{where}: not an object; {what} has {', '.join(fields)}")
  for name, kind in fields.items():
    if name not in row or row[name] is None or row[name] == "":
      raise ValueError(f"{where}: no {name}; {what} has {', '.join(fields)}")
    if not isinstance(row[name], _TYPES[kind]) or isinstance(row[name], bool):
      raise ValueError(f"{where}: {name} is {row[name]!r:.40}; it must be {kind}")


def check_model(where: str, row: Mapping[str, Any]) -> None:
  """Raises ValueError where the kind or the size of a row's model is none."""
  if row["kind"] not in KINDS:
    raise ValueError(f"{where}: kind {row['kind']!r}; choose from {', '.join(KINDS)}")
  if not 0 < row["size"] < math.inf:
    raise ValueError(f"{where}: size {row['size']}; give the number of non-embedding parameters")


def check_row(where: str, row: Any) -> None:
  """Raises ValueError, which begins with `where`, where a row is no rating."""
  check_fields(where, row, _FIELDS, "a rating")
  check_model(where, row)
  if not LOWEST <= row["rating"] <= HIGHEST:
    raise ValueError(f"{where}: rating {row['rating']} is outside {LOWEST} to {HIGHEST}")


def tabulate(rows: Iterable[Mapping[str, Any]], asked: Iterable[Mapping[str, Any]] = ()) -> Ratings:
  """Rows as tables.

  Args:
    asked: "kind", "size", "seed", "category" and "probe" of what should have ratings; what no model
      has a rating of is not missed without it.

  Raises:
    ValueError: there is no row, a row is bad or doubled, an answer is rated twice by one rater, or
      there is no probe that every model has a rating of.
  """
  rows, asked = list(rows), list(asked)
  if not rows:
    raise ValueError("there are no ratings to analyse")
  seen: dict[tuple, int] = {}
  for number, row in enumerate(rows, start=1):
    check_row(f"rating {number}", row)
    key = tuple(
      row[name] for name in ("kind", "size", "seed", "category", "probe", "sample", "rater")
    )
    if key in seen:
      raise ValueError(
        f"rating {number}: {row['rater']} rated sample {row['sample']} of probe "
        f"{row['probe']} ({row['category']}) by {row['model']} already in rating "
        f"{seen[key]}; leave one out"
      )
    seen[key] = number
  order = list(dict.fromkeys(row["category"] for row in (*asked, *rows)))
  found = sorted(
    dict.fromkeys((row["category"], row["probe"]) for row in (*asked, *rows)),
    key=lambda probe: order.index(probe[0]),
  )
  models: dict[tuple[str, float], dict[int, dict[tuple, list[float]]]] = {}
  for row in (*asked, *rows):
    models.setdefault((row["kind"], float(row["size"])), {}).setdefault(row["seed"], {})
  for row in rows:
    models[row["kind"], float(row["size"])][row["seed"]].setdefault(
      (row["category"], row["probe"]), []
    ).append(float(row["rating"]))
  lacking = {
    probe: [
      (*group, seed)
      for group, runs in models.items()
      for seed in sorted(runs)
      if probe not in runs[seed]
    ]
    for probe in found
  }
  probes = [probe for probe in found if not lacking[probe]]
  left_out = tuple(_left_out(*probe, lacking[probe]) for probe in found if lacking[probe])
  if not probes:
    raise ValueError(
      "there is no probe that every model has a rating of, and all must answer the "
      f"same: {left_out[0]}"
    )
  groups = {
    group: Group(
      seeds=tuple(sorted(runs)),
      mean_SP=np.array([[np.mean(runs[seed][probe]) for probe in probes] for seed in sorted(runs)]),
    )
    for group, runs in models.items()
  }
  kept = [category for category, _ in probes]
  return Ratings(
    groups=groups,
    category_P=np.array(kept),
    probe_P=tuple(probe for _, probe in probes),
    left_out=left_out,
    lost=tuple(category for category in order if category not in kept),
  )


def _left_out(category: str, probe: Any, lacking: Sequence[tuple[str, float, int]]) -> str:
  kind, size, seed = lacking[0]
  others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
  return (
    f"probe {probe!r} ({category}) has no rating of {kind} of size {size:g}, seed {seed}{others}"
  )


def rater_agreement(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
  """How far raters agree on single answers.

  Returns:
    {"means": {rater: its mean rating}, "num_answers": rated by two or more, "alpha": Krippendorff's,
    with squared distances (1 is agreement, 0 is chance); None where no answer has two ratings}.
  """
  rows = list(rows)
  by_rater: dict[str, list[float]] = {}
  place: dict[tuple, int] = {}
  for row in rows:
    by_rater.setdefault(row["rater"], []).append(float(row["rating"]))
    place.setdefault(_answer(row), len(place))
  raters = sorted(by_rater)
  value_SL = np.full((len(place), len(raters)), np.nan)
  for row in rows:
    value_SL[place[_answer(row)], raters.index(row["rater"])] = row["rating"]
  found = ratings_lib.reliability(value_SL, raters, ordered=True) if len(raters) > 1 else None
  return dict(
    means={rater: float(np.mean(by_rater[rater])) for rater in raters},
    num_answers=0 if found is None else found["num_samples"],
    alpha=None if found is None else found["alpha"],
  )


def _answer(row: Mapping[str, Any]) -> tuple:
  return tuple(row[name] for name in ("kind", "size", "seed", "category", "probe", "sample"))


# ----------------------------------------------------------------------------- resampling


def _paired(ratings: Ratings, kind: str, other: str, size: float) -> tuple[Group, Group]:
  """Both groups with the same seeds; a kind with one model stands beside each seed of the other."""
  first, second = ratings.groups[kind, size], ratings.groups[other, size]
  return _same_seeds(first, second, (f"{kind} of size {size:g}", f"{other} of size {size:g}"))


def _same_seeds(first: Group, second: Group, names: tuple[str, str]) -> tuple[Group, Group]:
  seeds = max(first.seeds, second.seeds, key=len)

  def spread(name: str, group: Group) -> Group:
    if len(group.seeds) == 1 or group.seeds == seeds:
      return Group(
        seeds=seeds, mean_SP=np.broadcast_to(group.mean_SP, (len(seeds), group.mean_SP.shape[1]))
      )
    raise ValueError(
      f"{name} has the seeds {group.seeds} beside {seeds}; give the same seeds, or "
      "one model for all of them"
    )

  return spread(names[0], first), spread(names[1], second)


def _probe_draws(ratings: Ratings, num_resamples: int, rng) -> np.ndarray:
  """[R, P] weights of the probes, drawn within each category."""
  weight_RP = np.zeros((num_resamples, len(ratings.category_P)))
  for category in ratings.categories:
    places = ratings.places(category)
    weight_RP[:, places] = _draws(len(places), num_resamples, rng)
  return weight_RP


def _draws(num_units: int, num_resamples: int, rng) -> np.ndarray:
  """[R, N] weights of units that add up to N: n - 1 of them drawn; one alone is kept."""
  if num_units == 1:
    return np.ones((num_resamples, 1))
  counts_RN = rng.multinomial(num_units - 1, np.full(num_units, 1 / num_units), size=num_resamples)
  return counts_RN * (num_units / (num_units - 1))


def _mean(group: Group, seeds_RS, probes_RP, places) -> np.ndarray:
  """[R] mean over the drawn seeds and probes."""
  weight_RP = probes_RP[:, places]
  totals_R = np.sum((seeds_RS @ group.mean_SP[:, places]) * weight_RP, axis=1)
  return totals_R / (seeds_RS.sum(axis=1) * weight_RP.sum(axis=1))


def _interval(value: float, draws_R: np.ndarray, num_probes: int, confidence: float) -> Interval:
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws_R, [tail, 1 - tail])
  return Interval(mean=float(value), low=float(low), high=float(high), n=num_probes)


# ----------------------------------------------------------------------------- other numbers


def group_of(values_by_seed: Mapping[int, Sequence[Sequence[float]]]) -> Group:
  """Any numbers of the models of one kind and size as a table: seed -> [item][repeat].

  Raises:
    ValueError: the seeds have different numbers of items.
  """
  runs = dict(sorted(values_by_seed.items()))
  if len({len(rows) for rows in runs.values()}) > 1:
    raise ValueError(
      f"the seeds {', '.join(map(str, runs))} have "
      f"{', '.join(str(len(rows)) for rows in runs.values())} items; items that are "
      "crossed with seeds are the same for all"
    )
  return Group(
    seeds=tuple(runs), mean_SP=np.array([[np.mean(row) for row in rows] for rows in runs.values()])
  )


def crossed_mean(group: Group, *, num_resamples: int, seed: int, confidence: float) -> Interval:
  """The mean over seeds and items, both drawn; `n` counts items, which are one category here."""
  items_RP, seeds_RS, places = _crossed_draws(group, num_resamples, seed)
  return _interval(
    group.mean_SP.mean(), _mean(group, seeds_RS, items_RP, places), len(places), confidence
  )


def crossed_difference(
  first: Group, second: Group, *, num_resamples: int, seed: int, confidence: float
) -> Interval:
  """`first` minus `second` with the same draws; a group of one seed stands beside all of the other.

  Raises:
    ValueError: the seeds do not go together.
  """
  pair = _same_seeds(first, second, ("the first", "the second"))
  items_RP, seeds_RS, places = _crossed_draws(pair[0], num_resamples, seed)
  draws_R = np.subtract(*(_mean(group, seeds_RS, items_RP, places) for group in pair))
  return _interval(_cells(pair, places).mean(), draws_R, len(places), confidence)


def nested_mean(
  values_by_seed: Mapping[int, Sequence[Sequence[float]]],
  *,
  num_resamples: int,
  seed: int,
  confidence: float,
) -> Interval:
  """The mean over seeds of which each has items of its own; `n` counts all items."""
  tables = [np.array([np.mean(row) for row in rows]) for _, rows in sorted(values_by_seed.items())]
  return _nested(tables, num_resamples, seed, confidence)


def nested_difference(
  first: Mapping[int, Sequence[Sequence[float]]],
  second: Mapping[int, Sequence[Sequence[float]]],
  *,
  num_resamples: int,
  seed: int,
  confidence: float,
) -> Interval:
  """`first` minus `second` on the items of each seed; one of a single seed stands beside all.

  Raises:
    ValueError: the seeds, or the numbers of items of one, do not go together.
  """
  seeds = sorted(max(first, second, key=len))
  of = lambda side, run: side[run] if len(side) > 1 else next(iter(side.values()))
  if any(1 < len(side) and sorted(side) != seeds for side in (first, second)) or any(
    len(of(first, run)) != len(of(second, run)) for run in seeds
  ):
    raise ValueError(f"the seeds {sorted(first)} and {sorted(second)} do not have the same items")
  tables = [
    np.array([np.mean(a) - np.mean(b) for a, b in zip(of(first, run), of(second, run))])
    for run in seeds
  ]
  return _nested(tables, num_resamples, seed, confidence)


def _nested(
  tables: Sequence[np.ndarray], num_resamples: int, seed: int, confidence: float
) -> Interval:
  """Of [items] per seed: all but one of the seeds are drawn, and for each draw items of it anew.

  What items add is counted in the seeds' differences as well, so that the interval is rather too
  wide where seeds differ by their items alone.
  """
  rng = np.random.default_rng(seed)
  totals_R, counts_R = np.zeros(num_resamples), np.zeros(num_resamples)
  for _ in range(max(len(tables) - 1, 1)):
    drawn_R = rng.integers(len(tables), size=num_resamples)
    for number, table in enumerate(tables):
      chosen_R = drawn_R == number
      totals_R[chosen_R] += _draws(len(table), int(chosen_R.sum()), rng) @ table
      counts_R[chosen_R] += len(table)
  return _interval(
    np.concatenate(tables).mean(), totals_R / counts_R, sum(map(len, tables)), confidence
  )


def _crossed_draws(group: Group, num_resamples: int, seed: int):
  rng = np.random.default_rng(seed)
  num_seeds, num_items = group.mean_SP.shape
  return (
    _draws(num_items, num_resamples, rng),
    _draws(num_seeds, num_resamples, rng),
    np.arange(num_items),
  )


# ----------------------------------------------------------------------------- tests


def effect_size(first_P: np.ndarray, second_P: np.ndarray) -> float | None:
  """Cohen's d on the probes' means, with the two variances averaged.

      d = (mean_p a_p - mean_p b_p) / sqrt((s_a^2 + s_b^2) / 2)

  a_p and b_p are a probe's means over seeds, s^2 their variance over probes with P - 1.
  Means of many ratings vary less than single ratings, so this is larger than a d of ratings.

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

  min F' is a lower bound of the quasi F ratio of two crossed random factors: what must hold over
  other probes and over other seeds alike (Clark 1973, "The language-as-fixed-effect fallacy").  Its
  degrees of freedom grow towards those of the probes where both F are large, so that with two or
  three seeds it alone would err more often than it says; hence the largest of the three.

  With one seed it is the t test over probes, which says nothing about other seeds; with one probe
  it is 1.  Where all differences are the same number, nothing tells how they would vary: the
  p-value is then that of flipping the signs of the probes, 2 / 2^P.

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
  """`min_f` for the slope of a mean difference on x: F1 over the probes' slopes, F2 over the runs.

  F1 is t^2 of the probes' slopes (over the means of the seeds) with P - 1 degrees of freedom; F2 is
  that of the regression of the N runs' means (over probes) with N - 2, so that runs off the line
  count against it.  Two runs lie on every line, and show nothing: 1.  Runs must be made apart:
  those that share a base model are one.

  Args:
    difference_KSP: of each size, seed and probe.
    x_K: what is regressed on.
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
  """Of min F' and both F; one that is infinite has units that do not vary, or only one of them."""
  both = [(f_probes, num_probes - 1), (f_runs, degrees_runs)]
  found = [(f, degrees) for f, degrees in both if math.isfinite(f)]
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

  If the two models were the same to a probe, its difference could as well have the other sign.  All
  2^P ways are tried where P is at most 14; else `num_flips` random ones, with the one observed
  counted among them.
  """
  difference_P = np.asarray(difference_P, np.float64)
  observed = abs(difference_P.sum()) - _TOLERANCE
  if len(difference_P) <= _MOST_EXACT:
    signs = np.array(list(itertools.product((1, -1), repeat=len(difference_P))))
    return float(np.mean(np.abs(signs @ difference_P) >= observed))
  signs = np.random.default_rng(seed).choice((1, -1), size=(num_flips, len(difference_P)))
  hits = int(np.sum(np.abs(signs @ difference_P) >= observed))
  return (hits + 1) / (num_flips + 1)


def smallest_sign_flip(num_probes: int, num_flips: int) -> float:
  """The least that `sign_flip` can give: all differences have one sign."""
  return 2 / 2**num_probes if num_probes <= _MOST_EXACT else 1 / (num_flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
  """p-values that may be held against alpha one by one, though there are several (Holm 1979).

  p_(k) -> max over j <= k of min(1, (m - j + 1) p_(j)),  p_(1) <= ... <= p_(m)
  """
  adjusted, highest = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
    highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
    adjusted[index] = highest
  return adjusted


# ----------------------------------------------------------------------------- analysis


def analyse(
  rows: Iterable[Mapping[str, Any]], p: StatisticsConfig, *, asked: Iterable[Mapping[str, Any]] = ()
) -> Analysis:
  """Means, differences with their tests, and slopes over size.

  Comparisons are made at the sizes at which both kinds are; slopes where there are two such sizes.
  All together, a category with more probes weighs more.

  Args:
    rows: ratings.
    asked: of `tabulate`.

  Raises:
    ValueError: as `tabulate`, or the seeds of two kinds do not go together.
  """
  rows = list(rows)
  ratings = tabulate(rows, asked)
  rng = np.random.default_rng(p.seed)
  probes_RP = _probe_draws(ratings, p.num_resamples, rng)
  means = _means(ratings, probes_RP, p, rng)
  comparisons, slopes = [], []
  for first, second in COMPARISONS:
    sizes = [
      size
      for size in ratings.sizes
      if (first, size) in ratings.groups and (second, size) in ratings.groups
    ]
    draws = {}  # size -> category -> [R] differences
    for size in sizes:
      made, draws[size] = _compare(ratings, first, second, size, probes_RP, p, rng)
      comparisons += made
    if len(sizes) > 1:
      slopes += _slopes(first, second, ratings, draws, p)
  return Analysis(
    means=tuple(means),
    comparisons=tuple(comparisons),
    slopes=tuple(slopes),
    claims=tuple(_claims(comparisons, slopes, ratings.lost)),
    raters=rater_agreement(rows),
    left_out=ratings.left_out,
  )


def _means(ratings: Ratings, probes_RP, p: StatisticsConfig, rng) -> list[Mean]:
  found = []
  for size in ratings.sizes:
    for kind in KINDS:
      if (kind, size) not in ratings.groups:
        continue
      group = ratings.groups[kind, size]
      seeds_RS = _draws(len(group.seeds), p.num_resamples, rng)
      for category in (ALL, *ratings.categories):
        places = ratings.places(category)
        value = group.mean_SP[:, places].mean()
        draws_R = _mean(group, seeds_RS, probes_RP, places)
        found.append(
          Mean(
            kind=kind,
            size=size,
            category=category,
            num_seeds=len(group.seeds),
            rating=_interval(value, draws_R, len(places), p.confidence),
          )
        )
  return found


def _compare(
  ratings: Ratings, first: str, second: str, size: float, probes_RP, p: StatisticsConfig, rng
) -> tuple[list[Comparison], dict[str, np.ndarray]]:
  """The comparison in each category and in all, and the resampled differences."""
  pair = _paired(ratings, first, second, size)
  seeds_RS = _draws(len(pair[0].seeds), p.num_resamples, rng)
  made, draws = [], {}
  for category in (ALL, *ratings.categories):
    places = ratings.places(category)
    sides = [_mean(group, seeds_RS, probes_RP, places) for group in pair]
    draws[category] = sides[0] - sides[1]
    made.append(
      _comparison(
        pair,
        places,
        draws[category],
        p,
        dict(first=first, second=second, size=size, category=category),
      )
    )
  return [made[0], *_with_holm(made[1:], p)], draws


def _comparison(
  pair: tuple[Group, Group], places, draws_R, p: StatisticsConfig, names: dict[str, Any]
) -> Comparison:
  """One comparison, before Holm."""
  cells_SP = _cells(pair, places)
  p_value = min_f(cells_SP)
  p_flip = sign_flip(cells_SP.mean(axis=0), num_flips=p.num_flips, seed=p.seed)
  return _decided(
    Comparison(
      **names,
      difference=_interval(cells_SP.mean(), draws_R, len(places), p.confidence),
      by_seed={
        str(seed): float(d) for seed, d in zip(pair[0].seeds, cells_SP.mean(axis=1), strict=True)
      },
      effect_size=effect_size(*(group.mean_SP[:, places].mean(axis=0) for group in pair)),
      p_value=p_value,
      p_holm=p_value,
      p_sign_flip=p_flip,
      p_sign_flip_holm=p_flip,
      smallest_p_sign_flip=smallest_sign_flip(len(places), p.num_flips),
      p_decides=1.0,
      verdict="",
    ),
    p,
  )


def _with_holm(made: Sequence[Comparison], p: StatisticsConfig) -> list[Comparison]:
  adjusted = zip(made, holm([c.p_value for c in made]), holm([c.p_sign_flip for c in made]))
  return [
    _decided(dataclasses.replace(c, p_holm=one, p_sign_flip_holm=other), p)
    for c, one, other in adjusted
  ]


def _decided(c: Comparison, p: StatisticsConfig) -> Comparison:
  """With the verdict of the p-value that the config chose."""
  p_value = c.p_holm if p.test == "min_f" else c.p_sign_flip_holm
  verdict = "not shown" if p_value >= p.alpha else "higher" if c.difference.mean > 0 else "lower"
  return dataclasses.replace(c, p_decides=p_value, verdict=verdict)


def _slopes(
  first: str,
  second: str,
  ratings: Ratings,
  draws: Mapping[float, Mapping[str, np.ndarray]],
  p: StatisticsConfig,
) -> list[Slope]:
  """Least squares of the difference on log10 size; seeds are drawn apart at each size."""
  sizes = tuple(draws)
  pairs = [_paired(ratings, first, second, size) for size in sizes]
  # Of one base beside several tuned models all differences of a size have what is peculiar to it,
  # those between its tuned models as well.
  shared = any(
    len({len(group.seeds) for (_, size), group in ratings.groups.items() if size == wanted}) > 1
    for wanted in sizes
  )
  weight_K = _slope_weights(np.log10(sizes))
  found = []
  for category in (ALL, *ratings.categories):
    places = ratings.places(category)
    value_K = [_cells(pair, places).mean() for pair in pairs]
    draws_R = np.stack([draws[size][category] for size in sizes], axis=1) @ weight_K
    p_value = min_f_of_slope(_runs(pairs, places, shared), np.log10(sizes))
    found.append(
      Slope(
        first=first,
        second=second,
        category=category,
        sizes=sizes,
        p_value=p_value,
        p_holm=p_value,
        slope=_interval(np.dot(weight_K, value_K), draws_R, len(places), p.confidence),
        verdict="",
      )
    )
  adjusted = [found[0].p_value, *holm([line.p_value for line in found[1:]])]
  return [
    dataclasses.replace(
      line,
      p_holm=p_holm,
      verdict="not shown" if p_holm >= p.alpha else ("rises" if line.slope.mean > 0 else "falls"),
    )
    for line, p_holm in zip(found, adjusted, strict=True)
  ]


def _runs(pairs: Sequence[tuple[Group, Group]], places, shared: bool) -> np.ndarray:
  """[K, S, P] differences of the runs of each size; the one mean of its seeds, where they share a
  base, or sizes have different numbers of them."""
  cells = [_cells(pair, places) for pair in pairs]
  if shared or len({len(table) for table in cells}) > 1:
    cells = [table.mean(axis=0, keepdims=True) for table in cells]
  return np.stack(cells)


def _cells(pair: tuple[Group, Group], places) -> np.ndarray:
  """[S, P] difference of each seed and probe."""
  return pair[0].mean_SP[:, places] - pair[1].mean_SP[:, places]


def _claims(
  comparisons: Sequence[Comparison], slopes: Sequence[Slope], lost: Sequence[str]
) -> list[Claim]:
  """What PALMS found of the ratings, each over all sizes: what fails is said to fail."""
  found = []
  for second in ("base", "control"):
    chosen = [c for c in comparisons if (c.first, c.second) == ("targeted", second)]
    overall = [c for c in chosen if c.category == ALL]
    if not overall:
      continue
    found.append(
      Claim(
        claim=f"values-targeted is rated above {second}, over all categories" + _at_each(overall),
        held=all(c.verdict == "higher" for c in overall),
        evidence=f"{_range(overall[-1].difference, '+')} points at {short_count(overall[-1].size)}"
        + _failing(
          "at",
          [short_count(c.size) for c in overall if c.verdict != "higher"]
          if len(overall) > 1
          else [],
        ),
      )
    )
    single = [c for c in chosen if c.category != ALL]
    largest = [c for c in single if c.size == overall[-1].size]
    found.append(
      Claim(
        claim=f"values-targeted is rated above {second} in every category" + _at_each(overall),
        held=not lost and all(c.verdict == "higher" for c in single),
        evidence=f"shown in {sum(c.verdict == 'higher' for c in single)} of "
        f"{len(single) + len(lost) * len(overall)} categories"
        + (
          f" and sizes, at {short_count(overall[-1].size)} in "
          f"{sum(c.verdict == 'higher' for c in largest)} of {len(largest) + len(lost)}"
          if len(overall) > 1
          else ""
        )
        + _failing("in", [c.category for c in largest if c.verdict != "higher"])
        + (f"; not rated: {', '.join(lost)}" if lost else ""),
      )
    )
    for slope in slopes:
      if (slope.first, slope.second, slope.category) == ("targeted", second, ALL):
        found.append(
          Claim(
            claim=f"the effect of values-targeted against {second} grows with size",
            # A harm that shrinks rises too.
            held=slope.verdict == "rises" and overall[-1].verdict == "higher",
            evidence=f"{_range(slope.slope, '+')} points for ten times the parameters over "
            f"{len(slope.sizes)} sizes, p {slope.p_value:.3g}",
          )
        )
  return found


def _at_each(overall: Sequence[Comparison]) -> str:
  return ", at every size" if len(overall) > 1 else ""


def _failing(where: str, names: Sequence[str]) -> str:
  """The end of a sentence: what was not shown, if anything."""
  return f"; not shown {where} {', '.join(names)}" if names else ""


def describe(analysis: Analysis) -> str:
  """The results over all categories, and the claims, for the console."""
  lines = []
  for mean in analysis.means:
    if mean.category == ALL:
      lines.append(
        f"{mean.kind:<9} {short_count(mean.size):>9}  {_range(mean.rating, '')}  "
        f"({mean.rating.n} probes, {mean.num_seeds} "
        f"seed{'' if mean.num_seeds == 1 else 's'})"
      )
  for c in analysis.comparisons:
    if c.category == ALL:
      size = "none" if c.effect_size is None else f"{c.effect_size:+.2f}"
      lines.append(
        f"{c.first} - {c.second} at {short_count(c.size)}: "
        f"{_range(c.difference, '+')}, effect size {size}, p {c.p_value:.2g} (sign flips "
        f"{c.p_sign_flip:.2g}): {c.verdict}"
      )
  if analysis.raters["alpha"] is not None:
    lines.append(
      f"raters: Krippendorff's alpha {analysis.raters['alpha']:.2f} over "
      f"{analysis.raters['num_answers']:,} answers"
    )
  lines += [f"left out: {sentence}" for sentence in analysis.left_out]
  lines += [f"{'held' if c.held else 'FAILED'}: {c.claim}: {c.evidence}" for c in analysis.claims]
  return "\n".join(lines)


def _range(interval: Interval, sign: str) -> str:
  return f"{interval.mean:{sign}.2f} ({interval.low:{sign}.2f} to {interval.high:{sign}.2f})"
