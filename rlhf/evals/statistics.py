"""Bootstrap intervals over prompts: one seed, several seeds, and paired differences.

The unit that is resampled is the prompt.  Everything measured on a prompt (all labelers of it, all
pairs of its completions) is drawn together, because those values are not independent: resampling
single judgements would give intervals that are too narrow.

A mean is a ratio of sums, `sum of all values / number of all values`, and stays one inside every
resample.  A prompt with three judgements therefore weighs three times as much as a prompt with
one; averaging the prompts' averages would answer another question.

Intervals are percentile intervals (Efron and Tibshirani 1993, chapter 13).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

CONFIDENCE = 0.95
# Index entries of one chunk of resamples: 4 M int64 are 32 MB, whatever the number of prompts.
_CHUNK_ENTRIES = 4_000_000

# Values of one prompt each: a float array [P, L] with NaN for "not measured", or a ragged list.
ValuesByPrompt = np.ndarray | Sequence[Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean with its bootstrap interval.

  Attributes:
    mean: the ratio of sums over the data themselves, not over the resamples.
    low, high: ends of the percentile interval.
    n: number of prompts with at least one value: the units that are resampled.  It does not count
      judgements, of which one prompt can have several.
  """

  mean: float
  low: float
  high: float
  n: int

  def as_dict(self) -> dict[str, float | int]:
    """The four numbers under the keys that report.json uses."""
    return dataclasses.asdict(self)


class Settings(TypedDict):
  """Of a bootstrap.

  Attributes:
    num_resamples: draws; 2,000 settle a 95 % interval to about a tenth of its width.
    seed: of the resampling; equal seeds give equal intervals.
  """

  num_resamples: int
  seed: int


def bootstrap_mean(values_by_prompt: ValuesByPrompt, **settings: Unpack[Settings]) -> Interval:
  """Mean of all values, with an interval from resampling whole prompts.

      mean* = sum_{p in draw} total_p / sum_{p in draw} count_p

  Args:
    values_by_prompt: one row per prompt; a float array [P, L] with NaN where a value is missing,
      or a list of lists of any lengths.  Rows without a value are left out.
    settings: see `Settings`; so in all functions here.

  Returns:
    An `Interval` in the unit of the values.

  Raises:
    ValueError: no prompt has a value, a value is infinite, or num_resamples is 0.
  """
  return bootstrap_over_seeds({0: values_by_prompt}, **settings)


def bootstrap_over_seeds(
  values_by_seed: Mapping[int, ValuesByPrompt], **settings: Unpack[Settings]
) -> Interval:
  """Pooled mean over training runs: resamples the runs, then the prompts within each drawn run.

  The interval covers both the choice of prompts and the luck of the training seed.  With few
  seeds the second part is estimated from few units and is too small on average (by the factor
  (S - 1) / S in variance for S seeds): print the seeds beside the pooled row.

  Args:
    values_by_seed: training seed -> values by prompt, as in `bootstrap_mean`.

  Returns:
    An `Interval` whose `n` is the number of prompts over all seeds.

  Raises:
    ValueError: as `bootstrap_mean`, or there is no seed.
  """
  tables = [_sums_and_counts(values) for values in values_by_seed.values()]
  return _interval([table[table[:, 1] > 0] for table in tables], ratio, **settings)


def paired_difference(
  values_a: ValuesByPrompt, values_b: ValuesByPrompt, **settings: Unpack[Settings]
) -> Interval:
  """mean(a) - mean(b) on the same prompts; row p of both belongs to prompt p.

  Both means of a resample use the same draw of prompts, so what makes a prompt easy or hard for
  both cancels.  Prompts that lack a value on either side are left out of both.

  Args:
    values_a, values_b: as in `bootstrap_mean`, with one row per prompt in the same order.

  Returns:
    An `Interval` of the difference; `n` counts the prompts with values on both sides.

  Raises:
    ValueError: the numbers of rows differ, or as `bootstrap_mean`.
  """
  return paired_difference_over_seeds({0: (values_a, values_b)}, **settings)


def paired_difference_over_seeds(
  pairs_by_seed: Mapping[int, tuple[ValuesByPrompt, ValuesByPrompt]],
  **settings: Unpack[Settings],
) -> Interval:
  """`paired_difference` pooled over training runs, resampled as in `bootstrap_over_seeds`.

  Args:
    pairs_by_seed: training seed -> (values_a, values_b), as in `paired_difference`.

  Raises:
    ValueError: as `paired_difference`, or there is no seed.
  """
  tables = []
  for values_a, values_b in pairs_by_seed.values():
    if len(values_a) != len(values_b):
      raise ValueError(
        f"paired values have {len(values_a)} and {len(values_b)} prompts; row p of "
        "both must belong to the same prompt"
      )
    table_P4 = np.concatenate([_sums_and_counts(values_a), _sums_and_counts(values_b)], axis=1)
    tables.append(table_P4[(table_P4[:, 1] > 0) & (table_P4[:, 3] > 0)])
  return _interval(tables, ratio_difference, **settings)


def bootstrap_statistic(
  table_PC: np.ndarray,
  statistic: Callable[[np.ndarray], np.ndarray],
  **settings: Unpack[Settings],
) -> Interval:
  """A statistic of column sums, such as corpus BLEU, with an interval from resampling prompts.

  Args:
    table_PC: one row per prompt, whose columns add up over prompts (matches, lengths, ...).
    statistic: sums [..., C] -> values [...].

  Returns:
    An `Interval` whose `n` is the number of rows.

  Raises:
    ValueError: the table is empty or holds a number that is not finite, or num_resamples is 0.
  """
  table_PC = np.asarray(table_PC, np.float64)
  if table_PC.ndim != 2 or not len(table_PC):
    raise ValueError(f"the table has shape {table_PC.shape}; give one row per prompt")
  if not np.isfinite(table_PC).all():
    raise ValueError("the table holds a number that is not finite")
  return _interval([table_PC], statistic, **settings)


def bootstrap_function(
  values: Sequence[Any],
  function: Callable[[list[Any]], float],
  **settings: Unpack[Settings],
) -> Interval:
  """Any function of the prompts' values, called for every resample: for what no sums can give.

  Args:
    values: one of each prompt, of any type.
    function: list of values -> number.

  Returns:
    An `Interval` whose `n` is the number of values.

  Raises:
    ValueError: there is no value, or num_resamples is 0.
  """
  if not len(values):
    raise ValueError("there is nothing to resample: no prompt has a value")
  num, rng = len(values), np.random.default_rng(settings["seed"])
  draws_R = [
    float(function([values[place] for place in rng.integers(num, size=num)]))
    for _ in range(settings["num_resamples"])
  ]
  return percentile_interval(float(function(list(values))), draws_R, num)


def percentile_interval(mean: float, draws_R: Sequence[float] | np.ndarray, num: int) -> Interval:
  """The interval of R resampled values; where all are equal, rounding does not put it beside the
  mean."""
  if not len(draws_R):
    raise ValueError("num_resamples is 0; use at least 1")
  tail = (1 - CONFIDENCE) / 2
  low, high = (
    mean if math.isclose(end, mean, rel_tol=1e-12) else float(end)
    for end in np.quantile(draws_R, [tail, 1 - tail])
  )
  return Interval(mean=mean, low=low, high=high, n=num)


def _sums_and_counts(values_by_prompt: ValuesByPrompt) -> np.ndarray:
  """[P, 2] float64: the sum and the number of each prompt's values that are not NaN."""
  lengths_P = [len(row) for row in values_by_prompt]
  flat = np.concatenate([np.asarray(row, np.float64) for row in values_by_prompt] or [np.zeros(0)])
  if np.isinf(flat).any():
    raise ValueError("an infinite value was found; use NaN for values that were not measured")
  known = ~np.isnan(flat)
  prompt = np.repeat(np.arange(len(lengths_P)), lengths_P)[known]
  columns = [np.bincount(prompt, w, minlength=len(lengths_P)) for w in (flat[known], None)]
  return np.stack(columns, axis=1)


def ratio(sums: np.ndarray) -> np.ndarray:
  """Of two column sums, as a statistic of `bootstrap_statistic`."""
  return sums[..., 0] / sums[..., 1]


def ratio_difference(sums: np.ndarray) -> np.ndarray:
  """The ratio of the first two of four column sums minus that of the others."""
  return ratio(sums) - ratio(sums[..., 2:])


def _interval(tables, statistic, *, num_resamples, seed) -> Interval:
  """Statistic of the pooled sums, and its percentile interval over nested resamples.

  Args:
    tables: [P, C] of each run.  An unjudged prompt is no row: it would change nothing but the size
      of a draw.
  """
  if not tables or any(not len(table) for table in tables):
    raise ValueError("there is nothing to average: a run has no prompt with a value")
  mean = statistic(np.sum([table.sum(axis=0) for table in tables], axis=0))
  draws_R = statistic(_nested_sums(tables, num_resamples, np.random.default_rng(seed)))
  return percentile_interval(float(mean), draws_R, sum(len(table) for table in tables))


def _nested_sums(tables, num_resamples, rng) -> np.ndarray:
  """[R, C] column sums: as many runs drawn as there are, then each drawn run's prompts redrawn."""
  sums_RC = np.zeros((num_resamples, tables[0].shape[1]))
  for _ in tables:  # one draw of a run for every run there is
    drawn_R = rng.integers(len(tables), size=num_resamples)
    for run, table_PC in enumerate(tables):
      rows = np.flatnonzero(drawn_R == run)
      sums_RC[rows] += _resampled_sums(table_PC, len(rows), rng)
  return sums_RC


def _resampled_sums(table_PC, num_resamples, rng) -> np.ndarray:
  """[R, C] column sums of as many rows, drawn with replacement, as the table has."""
  num_prompts = len(table_PC)
  rows_per_chunk = max(1, _CHUNK_ENTRIES // num_prompts)
  sums = [np.zeros((0, table_PC.shape[1]))]
  for start in range(0, num_resamples, rows_per_chunk):
    size = (min(rows_per_chunk, num_resamples - start), num_prompts)
    drawn_RP = rng.integers(num_prompts, size=size)
    sums.append(np.stack([column_P[drawn_RP].sum(axis=1) for column_P in table_PC.T], axis=1))
  return np.concatenate(sums)
