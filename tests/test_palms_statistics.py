"""Ratings of base, targeted and control models: by hand, against scipy, and by error rates."""

import itertools
import json
import math

import commands
import numpy as np
import pytest
import scipy.stats

from rlhf.cli import palms
from rlhf.palms import statistics

P = statistics.StatisticsConfig(num_resamples=400)


def row(**fields) -> dict:
  return (
    dict(
      model="m",
      kind="base",
      size=1000,
      seed=0,
      category="c",
      probe=0,
      sample=0,
      rater="r",
      rating=3,
    )
    | fields
  )


def table(kind: str, ratings_SP, *, size=1000, category="c", rater="r") -> list[dict]:
  """One rating for each seed and probe."""
  return [
    row(kind=kind, size=size, category=category, seed=s, probe=p, rater=rater, rating=float(rating))
    for (s, p), rating in np.ndenumerate(np.atleast_2d(ratings_SP))
  ]


def simulated(
  rng,
  effects: dict[float, float],
  *,
  num_seeds=3,
  categories=("a", "b"),
  num_probes=5,
  num_samples=1,
  probe_scale=0.4,
  seed_scale=0.0,
) -> list[dict]:
  """Ratings with a random effect of each probe, and of each model, on the difference."""
  rows = []
  for size, effect in effects.items():
    luck = rng.normal(size=(num_seeds, 2)) * seed_scale
    for category, probe in itertools.product(categories, range(num_probes)):
      shift = rng.normal() * probe_scale
      for kind, seed, sample in itertools.product(
        statistics.KINDS[:2], range(num_seeds), range(num_samples)
      ):
        targeted = kind == "targeted"
        rating = 3 + targeted * (effect + shift) + luck[seed, int(targeted)] + 0.1 * rng.normal()
        rows.append(
          row(
            kind=kind,
            size=size,
            seed=seed,
            category=category,
            probe=probe,
            sample=sample,
            rating=float(np.clip(rating, 1, 5)),
          )
        )
  return rows


def find(found, **fields):
  (one,) = [entry for entry in found if all(entry[name] == value for name, value in fields.items())]
  return one


# ----------------------------------------------------------------------------- means, differences


def test_means_and_differences_by_hand():
  rows = (
    table("base", [[1, 2, 3], [2, 2, 2]])
    + table("targeted", [[4, 4, 5], [3, 4, 5]])
    + table("base", [[5], [5]], category="d")
    + table("targeted", [[4], [5]], category="d")
  )
  analysis = statistics.analyse(rows, P)
  assert find(analysis["means"], kind="base", category="c")["rating"]["mean"] == 2
  mean = find(analysis["means"], kind="targeted", category="")["rating"]
  assert mean["mean"] == pytest.approx(34 / 8)
  both = find(analysis["comparisons"], category="c")
  assert (both["first"], both["second"], both["size"]) == ("targeted", "base", 1000)
  assert both["difference"]["mean"] == pytest.approx(25 / 6 - 2) and both["difference"]["n"] == 3
  assert both["by_seed"] == {"0": pytest.approx(13 / 3 - 2), "1": pytest.approx(2)}
  everything = find(analysis["comparisons"], category="")
  assert everything["difference"]["mean"] == pytest.approx(34 / 8 - 22 / 8)
  assert everything["difference"]["n"] == 4
  assert find(analysis["means"], kind="base", category="")["num_seeds"] == 2


def test_a_resample_takes_all_ratings_of_a_probe_together():
  """Three samples and three raters who agree add no information."""
  rng = np.random.default_rng(0)
  once = simulated(rng, {1e3: 0.5}, num_seeds=2)
  nine = [dict(line, sample=s, rater=r) for line in once for s in range(3) for r in "xyz"]
  for one, other in zip(
    statistics.analyse(once, P)["comparisons"],
    statistics.analyse(nine, P)["comparisons"],
    strict=True,
  ):
    assert one["difference"]["low"] == pytest.approx(other["difference"]["low"], abs=1e-12)
    assert one["difference"]["high"] == pytest.approx(other["difference"]["high"], abs=1e-12)
    assert (one["p_value"], one["p_sign_flip"]) == pytest.approx(
      (other["p_value"], other["p_sign_flip"])
    )


def test_five_probes_under_three_equal_seeds_are_five():
  """Seeds that agree say nothing new of other probes: the interval is that of one seed."""
  base, targeted = np.full(5, 2.0), np.array([2, 3, 3, 4, 5.0])
  p = statistics.StatisticsConfig(num_resamples=4000)

  def ends(num_seeds: int):
    rows = table("base", [base] * num_seeds) + table("targeted", [targeted] * num_seeds)
    return find(statistics.analyse(rows, p)["comparisons"], category="c")["difference"]

  assert ends(3)["low"] == pytest.approx(ends(1)["low"], abs=0.1)
  assert ends(3)["high"] == pytest.approx(ends(1)["high"], abs=0.1)
  width = (ends(1)["high"] - ends(1)["low"]) / 2
  expected = 1.96 * targeted.std(ddof=1) / math.sqrt(5)  # n - 1 of n are drawn
  assert width == pytest.approx(expected, rel=0.1)


def test_seeds_are_resampled():
  """Three seeds that differ and probes that do not: all the width is the seeds'."""
  base, by_seed = np.full((3, 5), 2.0), np.array([2.0, 3.0, 4.0])
  rows = table("base", base) + table("targeted", base * 0 + by_seed[:, None])
  difference = find(statistics.analyse(rows, P)["comparisons"], category="c")["difference"]
  # All draws are the first, or the third seed.
  assert (difference["low"], difference["high"]) == (0.0, 2.0)
  mean = find(statistics.analyse(rows, P)["means"], kind="targeted", category="c")["rating"]
  assert (mean["low"], mean["high"]) == (2.0, 4.0)


def test_what_makes_a_probe_easy_for_both_cancels():
  rng = np.random.default_rng(1)
  easy = rng.uniform(1, 4, size=(1, 12))
  analysis = statistics.analyse(table("base", easy) + table("targeted", easy + 0.5), P)
  both = find(analysis["comparisons"], category="c")
  assert both["difference"]["low"] == pytest.approx(0.5) == both["difference"]["high"]
  alone = find(analysis["means"], kind="base", category="c")["rating"]
  assert alone["high"] - alone["low"] > 0.5


def test_probes_are_drawn_within_their_category():
  """All together, the share of a category does not vary: means of constants have no width."""
  rows = (
    table("base", [[1, 1]])
    + table("targeted", [[2, 2]])
    + table("base", [[1, 1, 1]], category="d")
    + table("targeted", [[5, 5, 5]], category="d")
  )
  both = find(statistics.analyse(rows, P)["comparisons"], category="")
  assert both["difference"]["low"] == both["difference"]["high"] == pytest.approx(14 / 5)


def test_one_base_stands_beside_every_seed_of_the_others():
  rows = table("base", [[1, 2, 3]]) + table("targeted", [[2, 3, 4], [3, 4, 5]])
  both = find(statistics.analyse(rows, P)["comparisons"], category="c")
  assert both["by_seed"] == {"0": 1.0, "1": 2.0}
  rows += [row(kind="base", seed=7, probe=p) for p in range(3)]
  with pytest.raises(
    ValueError, match=r"base of size 1000 has the seeds \[0, 7\], the other \[0, 1\]"
  ):
    statistics.analyse(rows, P)


# ----------------------------------------------------------------------------- missing ratings


def test_a_difference_is_of_the_same_probes_where_ratings_are_missing():
  """Equal at every probe, unequally many ratings: no difference, by whatever is computed."""
  rating_P = [2, 2, 2, 2, 5]
  rows = [
    row(kind=kind, probe=probe, sample=sample, rating=rating)
    for kind in ("base", "targeted")
    for probe, rating in enumerate(rating_P)
    for sample in range(3 if kind == "targeted" and probe < 4 else 9)
  ]
  both = find(statistics.analyse(rows, P)["comparisons"], category="c")
  assert [both["difference"][end] for end in ("mean", "low", "high")] == [0, 0, 0]
  assert (both["p_value"], both["effect_size"], both["by_seed"]) == (1.0, 0.0, {"0": 0.0})
  mean = find(statistics.analyse(rows, P)["means"], kind="targeted", category="c")["rating"]
  assert mean["mean"] == pytest.approx(np.mean(rating_P))


def test_a_probe_that_a_model_has_no_rating_of_is_left_out_for_all():
  rows = table("base", [[1, 2, 3]] * 2) + table("targeted", [[4, 4, 5]] * 2)
  rows = [
    line for line in rows if (line["kind"], line["probe"], line["seed"]) != ("targeted", 1, 1)
  ]
  analysis = statistics.analyse(rows, P)
  assert find(analysis["means"], kind="base", category="c")["rating"]["mean"] == 2
  both = find(analysis["comparisons"], category="c")
  assert both["difference"]["mean"] == pytest.approx(2.5) and both["difference"]["n"] == 2
  assert analysis["left_out"] == ("probe 1 (c) has no rating of targeted of size 1000, seed 1",)
  assert "left out: probe 1 (c)" in statistics.describe(analysis)


def test_what_no_model_has_a_rating_of_is_missed_too():
  rows = [
    line
    for kind, effect in (("base", 0), ("targeted", 2))
    for category in "cd"
    for line in table(
      kind, [[1 + effect * scale for scale in (0.9, 1, 1.1, 1.2)]] * 3, category=category
    )
  ]
  rated = [line for line in rows if line["category"] == "c" and line["probe"] != 3]
  analysis = statistics.analyse(rated, P, expected=rows)
  assert len(analysis["left_out"]) == 5
  assert (
    analysis["left_out"][1] == "probe 0 (d) has no rating of base of size 1000, seed 0 and 5 more"
  )
  every = next(claim for claim in analysis["claims"] if "in every category" in claim["claim"])
  assert not every["held"] and every["evidence"] == "shown in 1 of 2 categories; not rated: d"


def test_sizes_with_different_numbers_of_seeds_are_a_run_each():
  """Regressed run by run, these would fall by the sizes' means and rise by the runs."""
  rows = []
  for size, num_seeds, mean in ((1e3, 1, 1.0), (1e4, 8, 0.0), (1e5, 8, 0.6)):
    noise = np.random.default_rng(13).normal(size=(num_seeds, 6)) * 0.01
    rows += table("base", np.full((num_seeds, 6), 2.0), size=size)
    rows += table("targeted", 2 + mean + noise, size=size)
  line = find(statistics.analyse(rows, P)["slopes"], category="")
  assert line["slope"]["mean"] < 0 and line["verdict"] == "not shown"


def test_how_far_raters_agree():
  """alpha = 1 - sum_u m_u s_u^2 / (n s^2), with squared distances."""
  rng = np.random.default_rng(11)
  ratings_PR = np.clip(np.rint(3 + rng.normal(size=(12, 1)) + rng.normal(size=(12, 3))), 1, 5)
  rows = [
    row(kind=kind, probe=probe, rater=f"r{r}", rating=int(rating))
    for kind in ("base", "targeted")
    for (probe, r), rating in np.ndenumerate(ratings_PR)
  ]
  rows.append(row(probe=0, sample=1, rater="r0", rating=1))  # nobody else rated it
  found = statistics.analyse(rows, P)["raters"]
  values = np.tile(ratings_PR, (2, 1))
  expected = 1 - 3 * values.var(axis=1, ddof=1).sum() / (values.size * values.var(ddof=1))
  assert found["alpha"] == pytest.approx(expected) and found["num_completions"] == 24
  assert found["means"]["r1"] == pytest.approx(ratings_PR[:, 1].mean())
  alone = statistics.rater_agreement([line for line in rows if line["rater"] == "r0"])
  assert alone["alpha"] is None and alone["num_completions"] == 0


# ----------------------------------------------------------------------------- tests


def test_effect_size_by_hand():
  # Means 4 and 2; variances 1 and 4 with P - 1; d = 2 / sqrt(2.5).
  assert statistics.effect_size(np.array([3, 4, 5]), np.array([0, 2, 4])) == pytest.approx(
    2 / math.sqrt(2.5)
  )
  assert statistics.effect_size(np.array([3, 3.0]), np.array([1, 1.0])) is None
  assert statistics.effect_size(np.array([3.0]), np.array([1.0])) is None


def test_the_effect_size_is_of_probe_means():
  rng = np.random.default_rng(2)
  rows = simulated(rng, {1e3: 1.0}, num_probes=20, num_samples=4)
  both = find(statistics.analyse(rows, P)["comparisons"], category="a")
  means = {
    kind: [
      np.mean(
        [r["rating"] for r in rows if (r["kind"], r["category"], r["probe"]) == (kind, "a", probe)]
      )
      for probe in range(20)
    ]
    for kind in ("base", "targeted")
  }
  expected = statistics.effect_size(np.array(means["targeted"]), np.array(means["base"]))
  assert both["effect_size"] == pytest.approx(expected)


def test_min_f_with_one_seed_is_the_paired_t_test():
  rng = np.random.default_rng(3)
  difference = rng.normal(0.4, size=8)
  assert statistics.min_f(difference[None]) == pytest.approx(
    scipy.stats.ttest_1samp(difference, 0).pvalue
  )


def test_min_f_by_hand():
  difference_SP = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
  # Over probes: 1.5, 2.5, 3.5: mean 2.5, variance 1: F1 = 6.25 / (1 / 3) = 18.75 with 2 degrees.
  # Over seeds: 2, 3: variance 1/2: F2 = 6.25 / (1 / 4) = 25 with 1.
  f = 18.75 * 25 / 43.75
  degrees = 43.75**2 / (18.75**2 / 1 + 25**2 / 2)
  over_both, over_seeds = scipy.stats.f.sf(f, 1, degrees), scipy.stats.f.sf(25, 1, 1)
  assert statistics.min_f(difference_SP) == pytest.approx(max(over_both, over_seeds))
  # Both F are large, and their degrees of freedom nearly those of the probes: the seeds decide.
  sure_SP = np.add.outer([2.0, 2.4, 2.8], np.tile([-0.1, 0.1], 20))
  assert statistics.min_f(sure_SP) == pytest.approx(
    scipy.stats.ttest_1samp([2.0, 2.4, 2.8], 0).pvalue
  )


@pytest.mark.parametrize(
  "difference_SP,expected",
  [
    (np.zeros((3, 5)), 1.0),
    (np.ones((3, 5)), 2 / 2**5),
    (np.ones((1, 2)), 0.5),
    (np.array([[1.0]]), 1.0),
    (np.array([[1.0, 1.0], [2.0, 2.0]]), "seeds"),
    (np.array([[1.0, 2.0], [1.0, 2.0]]), "probes"),
  ],
)
def test_min_f_where_something_does_not_vary(difference_SP, expected):
  if isinstance(expected, str):  # the other factor decides
    expected = scipy.stats.ttest_1samp([1.0, 2.0], 0).pvalue
  assert statistics.min_f(difference_SP) == pytest.approx(expected)


@pytest.mark.parametrize("num_seeds, num_probes", [(3, 5), (2, 5), (2, 40)])
def test_min_f_errs_no_more_often_than_it_says(num_seeds, num_probes):
  """Probes and seeds that differ by chance alone; a test over single ratings errs most times."""
  rng, num, wrong, naive = np.random.default_rng(4), 1000, 0, 0
  for _ in range(num):
    cell_SP = rng.normal(size=(num_seeds, 1)) * 0.5 + rng.normal(size=(1, num_probes)) * 0.5
    ratings_SPN = cell_SP[:, :, None] + rng.normal(size=(num_seeds, num_probes, 9)) * 0.3
    wrong += statistics.min_f(ratings_SPN.mean(axis=2)) < 0.05
    naive += scipy.stats.ttest_1samp(ratings_SPN.ravel(), 0).pvalue < 0.05
  assert wrong / num < 0.05 + 3 * math.sqrt(0.05 * 0.95 / num) and naive / num > 0.5


def test_sign_flips_by_hand():
  flip = lambda *values: statistics.sign_flip(np.array(values), num_flips=1000, seed=0)
  # Sums of +-1 +-2 +-3: 6, 4, 2, 0, 0, -2, -4, -6; at least 4 either way: 4 of 8.
  assert flip(-1, 2, 3) == 4 / 8
  assert flip(1, 1, 1, 1, 1) == 2 / 32 == statistics.smallest_sign_flip(5, 1000)
  assert flip(0, 0, 0) == 1.0


def test_random_sign_flips_agree_with_all_of_them():
  differences = np.random.default_rng(5).normal(0.3, size=16)
  exact = scipy.stats.permutation_test(
    (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
  ).pvalue
  drawn = statistics.sign_flip(differences, num_flips=20_000, seed=1)
  assert drawn == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 20_000))
  assert statistics.sign_flip(differences + 9, num_flips=99, seed=1) == 1 / 100


def test_holm_by_hand():
  # Ordered .01 .02 .03 .2 times 4 3 2 1: .04 .06 .06 .2; .03 may not come out below .02.
  assert statistics.holm([0.03, 0.01, 0.2, 0.02]) == pytest.approx([0.06, 0.04, 0.2, 0.06])
  assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]


def test_categories_are_judged_by_holm():
  rng = np.random.default_rng(6)
  rows = simulated(rng, {1e3: 0.45}, categories=tuple("abcdefgh"), probe_scale=0.3)
  analysis = statistics.analyse(rows, P)
  made = [c for c in analysis["comparisons"] if c["category"]]
  assert [c["p_holm"] for c in made] == pytest.approx(statistics.holm([c["p_value"] for c in made]))
  assert [c["p_sign_flip_holm"] for c in made] == pytest.approx(
    statistics.holm([c["p_sign_flip"] for c in made])
  )
  assert [c["verdict"] == "higher" for c in made] == [c["p_holm"] < 0.05 for c in made]
  assert any(c["p_value"] < 0.05 <= c["p_holm"] for c in made)  # or this would show nothing
  flips = statistics.analyse(rows, statistics.StatisticsConfig(num_resamples=10, test="sign_flip"))
  assert {c["verdict"] for c in flips["comparisons"] if c["category"]} == {"not shown"}
  assert find(flips["comparisons"], category="")["verdict"] == "higher"
  for found, name in ((analysis, "p_holm"), (flips, "p_sign_flip_holm")):
    assert [c["p_decides"] for c in found["comparisons"]] == [c[name] for c in found["comparisons"]]


def test_verdicts_have_a_direction():
  lower = table("targeted", [[1, 1.2, 1.1, 1]]) + table("base", [[4, 4, 4.1, 4.2]])
  assert find(statistics.analyse(lower, P)["comparisons"], category="c")["verdict"] == "lower"


# ----------------------------------------------------------------------------- size


def test_slope_by_hand():
  rows = []
  for size, effect in ((1e3, 0.0), (1e4, 1.0), (1e5, 1.0)):
    rows += table("base", [[2, 3]], size=size) + table(
      "targeted", [[2 + effect, 3 + effect]], size=size
    )
  (line,) = [s for s in statistics.analyse(rows, P)["slopes"] if s["category"] == ""]
  assert line["slope"]["mean"] == pytest.approx(0.5)  # of 0, 1, 1 over 3, 4, 5
  assert line["slope"]["low"] == line["slope"]["high"] == pytest.approx(0.5)
  assert line["sizes"] == (1e3, 1e4, 1e5)


def test_min_f_of_a_slope_by_hand():
  """Two probes whose slopes are 1 and 2, four runs off the line."""
  x_K, probes = np.array([0.0, 1.0]), np.array([1.0, 2.0])
  noise_KS = np.array([[0.2, -0.2], [0.3, -0.3]])
  cells = x_K[:, None, None] * probes + noise_KS[:, :, None]
  f_probes = 1.5**2 / (0.5 / 2)
  runs = scipy.stats.linregress([0, 0, 1, 1], [0.2, -0.2, 1.8, 1.2])
  f_runs = (runs.slope / runs.stderr) ** 2
  f = f_probes * f_runs / (f_probes + f_runs)
  degrees = (f_probes + f_runs) ** 2 / (f_probes**2 / 2 + f_runs**2 / 1)
  assert statistics.min_f_of_slope(cells, x_K) == pytest.approx(
    max(scipy.stats.f.sf(f, 1, degrees), scipy.stats.f.sf(f_probes, 1, 1), runs.pvalue)
  )
  assert statistics.min_f_of_slope(cells.mean(axis=1, keepdims=True), x_K) == 1.0  # two runs
  assert statistics.min_f_of_slope(cells * 0, x_K) == 1.0


def test_min_f_of_a_slope_errs_no_more_often_than_it_says():
  rng, num, wrong = np.random.default_rng(10), 300, 0
  for _ in range(num):
    cells = (
      rng.normal(size=(5, 3, 1))
      + rng.normal(size=(1, 1, 5))
      + np.arange(5)[:, None, None] * rng.normal(size=(1, 1, 5)) * 0.3
    )
    wrong += statistics.min_f_of_slope(cells, np.arange(5.0)) < 0.05
  assert wrong / num < 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)


@pytest.mark.parametrize("num_sizes", [2, 5])
def test_seeds_beside_one_base_are_one_run_of_a_slope(num_sizes):
  """What is peculiar to the base of each size is in all its seeds: it must not look sure."""
  rng, num = np.random.default_rng(12), 120
  p = statistics.StatisticsConfig(num_resamples=1, num_flips=1)
  wrong = {pair: 0 for pair in statistics.COMPARISONS}
  for _ in range(num):
    rows = []
    for size in 10.0 ** np.arange(3, 3 + num_sizes):
      luck = 0.2 * rng.normal(size=3)  # of the base, and of what both kinds of samples do to it
      noise = lambda: 0.1 * rng.normal(size=(3, 12))
      rows += table("base", 3 + luck[0] + noise()[:1], size=size)
      rows += table("targeted", 3.5 + luck[1] + noise(), size=size)
      rows += table("control", 3.2 + luck[2] + noise(), size=size)
    for line in statistics.analyse(rows, p)["slopes"]:
      if line["category"] == "":
        wrong[line["first"], line["second"]] += line["p_value"] < 0.05
  assert max(wrong.values()) / num < 0.05 + 3 * math.sqrt(0.05 * 0.95 / num)


def test_a_slope_that_is_chance_is_not_shown():
  rng = np.random.default_rng(7)
  grows = statistics.analyse(simulated(rng, {1e3: 0.0, 1e4: 0.5, 1e5: 1.0}), P)
  flat = statistics.analyse(simulated(rng, {1e3: 0.5, 1e4: 0.5, 1e5: 0.5}, seed_scale=0.3), P)
  falls = statistics.analyse(simulated(rng, {1e3: 1.0, 1e4: 0.5, 1e5: 0.0}), P)
  assert [find(a["slopes"], category="")["verdict"] for a in (grows, flat, falls)] == [
    "rises",
    "not shown",
    "falls",
  ]
  lines = [line for line in grows["slopes"] if line["category"]]
  assert [line["p_holm"] for line in lines] == statistics.holm([line["p_value"] for line in lines])
  assert max(line["p_holm"] - line["p_value"] for line in lines) > 0


def test_seeds_at_two_sizes_are_drawn_apart():
  """A seed that is lucky at both sizes is two runs: their luck does not cancel in the slope."""
  luck = np.array([[0.0], [1.0]])
  rows = []
  for size in (1e3, 1e4):
    rows += table("base", [[2, 2], [2, 2]], size=size) + table(
      "targeted", 2 + luck + [[0, 0]], size=size
    )
  (line,) = [s for s in statistics.analyse(rows, P)["slopes"] if s["category"] == "c"]
  assert line["slope"]["mean"] == 0 and line["slope"]["low"] == -1 and line["slope"]["high"] == 1


def test_claims_say_what_failed():
  rng = np.random.default_rng(8)
  rows = simulated(rng, {1e3: 0.0, 1e4: 1.5}, probe_scale=0.2, num_probes=8)
  overall, every, grows = statistics.analyse(rows, P)["claims"]
  assert (
    overall["claim"] == "values-targeted is rated above base, over all categories, at every size"
  )
  assert not overall["held"] and overall["evidence"].endswith("at 10k; not shown at 1.0k")
  assert every["claim"] == "values-targeted is rated above base in every category, at every size"
  assert not every["held"] and every["evidence"] == (
    "shown in 2 of 4 categories and sizes, at 10k in 2 of 2"
  )
  assert (
    grows["held"] and grows["claim"] == "the effect of values-targeted against base grows with size"
  )
  described = statistics.describe(statistics.analyse(rows, P))
  assert "FAILED: values-targeted is rated above base in every category, at every size" in described
  rows = simulated(rng, {1e4: 1.5}, probe_scale=0.2, num_probes=8)
  assert [(c["claim"], c["held"]) for c in statistics.analyse(rows, P)["claims"]] == [
    ("values-targeted is rated above base, over all categories", True),
    ("values-targeted is rated above base in every category", True),
  ]


def test_a_harm_that_shrinks_is_no_effect_that_grows():
  rows = simulated(
    np.random.default_rng(8), {1e3: -1.5, 1e4: -1.0, 1e5: -0.5}, probe_scale=0.2, num_probes=8
  )
  analysis = statistics.analyse(rows, P)
  assert find(analysis["slopes"], category="")["verdict"] == "rises"
  assert not any(claim["held"] for claim in analysis["claims"])


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "fields,expected",
  [
    ({"rating": 6}, "rating 6 is outside 1 to 5"),
    ({"rating": 0.5}, "rating 0.5 is outside 1 to 5"),
    ({"rating": None}, "no rating; a row has model, kind, size"),
    ({"rating": "4"}, "rating is '4'; it must be a number"),
    ({"rating": True}, "rating is True; it must be a number"),
    ({"rater": ""}, "no rater"),
    ({"seed": 0.5}, "seed is 0.5; it must be a whole number"),
    ({"kind": "values"}, "kind 'values'; choose from base, targeted, control"),
    ({"size": 0}, "size 0; give the number of non-embedding parameters"),
  ],
)
def test_bad_rows_are_named(tmp_path, fields, expected):
  path = commands.write_jsonl(tmp_path / "ratings.jsonl", [row(), row(probe=1, **fields)])
  with pytest.raises(ValueError) as error:
    statistics.read_rows(path)
  assert str(error.value).startswith(f"{path}:2: {expected}")


def test_doubled_and_missing_ratings_are_named():
  with pytest.raises(
    ValueError,
    match=r"rating 2: r rated sample 0 of probe 0 \(c\) by m already "
    "in rating 1",
  ):
    statistics.tabulate([row(), row(rating=4)])
  with pytest.raises(
    ValueError,
    match=r"no probe has a rating of every model, and all "
    r"must complete the same: probe 0 \(c\) has no rating of "
    "targeted of size 1000, seed 0",
  ):
    statistics.tabulate([row(), row(kind="targeted", probe=1)])
  with pytest.raises(ValueError, match="there are no ratings"):
    statistics.analyse([], P)


def test_the_command_writes_what_a_report_needs(tmp_path, capsys):
  rows = simulated(np.random.default_rng(9), {1e3: 0.5})
  path = commands.write_jsonl(tmp_path / "ratings.jsonl", rows)
  flags = [f"--ratings={path}", f"--output={tmp_path}/statistics.json"]
  palms.main(["palms", "statistics", *flags])
  assert "targeted - base at 1.0k: +" in capsys.readouterr().out
  written = json.loads((tmp_path / "statistics.json").read_text())
  assert written["comparisons"][0]["difference"].keys() == {"mean", "low", "high", "n"}
  assert {"means", "comparisons", "slopes", "claims", "raters", "left_out"} == written.keys()
  with pytest.raises(SystemExit) as end:
    palms.main(["palms", "statistics", *flags])
  assert end.value.code == 2 and "exists; name another" in capsys.readouterr().err
