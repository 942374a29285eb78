"""Best-of-n against all subsets, its KL by hand, ensembles by hand."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf.evals.reward_models import best_of_n
from rlhf.inference import ensembles

SETTINGS = dict(num_resamples=200, seed=0)


def by_subsets(proxy_N, value_N, n: int) -> float:
  """Mean over all subsets of n, and over the best of each where several have the highest proxy."""
  found = []
  for subset in itertools.combinations(range(len(proxy_N)), n):
    highest = max(proxy_N[i] for i in subset)
    found.append(np.mean([value_N[i] for i in subset if proxy_N[i] == highest]))
  return float(np.mean(found))


@pytest.mark.parametrize("ties", [False, True])
def test_the_estimator_is_the_mean_over_all_subsets(ties: bool):
  rng = np.random.default_rng(0)
  proxy_PN, gold_PN = rng.normal(size=(3, 7)), rng.normal(size=(3, 7))
  if ties:
    proxy_PN = np.round(proxy_PN)
    assert all(len(set(row)) < 6 for row in proxy_PN)
  for value_PN in (proxy_PN, gold_PN):
    best_PN = best_of_n.expected_best(proxy_PN, value_PN)
    for p, n in itertools.product(range(3), range(1, 8)):
      assert best_PN[p, n - 1] == pytest.approx(by_subsets(proxy_PN[p], value_PN[p], n), abs=1e-12)


def test_weights_are_binomials_and_stay_finite():
  weight_nN = best_of_n.subset_weights(6)
  for n, i in itertools.product(range(1, 7), range(1, 7)):
    assert weight_nN[n - 1, i - 1] == pytest.approx(math.comb(i - 1, n - 1) / math.comb(6, n))
  many_nN = best_of_n.subset_weights(2000)
  np.testing.assert_allclose(many_nN.sum(axis=1), 1, rtol=1e-9)


def test_kl_by_hand():
  """Stiennon et al. 2020 round 8, 64 and 512 to 1.2, 3.2 and 5.2 nats."""
  assert best_of_n.kl(1) == 0
  assert best_of_n.kl(2) == pytest.approx(0.6931471805599453 - 0.5)
  assert [round(float(best_of_n.kl(n)), 1) for n in (8, 64, 512)] == [1.2, 3.2, 5.2]


def test_the_curve_has_the_means_of_the_estimates_and_intervals_over_prompts():
  rng = np.random.default_rng(1)
  proxy_PN, gold_PN = rng.normal(size=(40, 8)), rng.normal(size=(40, 8))
  points = best_of_n.curve(proxy_PN, gold_PN, **SETTINGS)
  assert [point["n"] for point in points] == list(range(1, 9))
  assert points[0]["gold"]["mean"] == pytest.approx(gold_PN.mean())
  assert points[-1]["proxy"]["mean"] == pytest.approx(proxy_PN.max(axis=1).mean())
  chosen = gold_PN[np.arange(40), proxy_PN.argmax(axis=1)]
  assert points[-1]["gold"]["mean"] == pytest.approx(chosen.mean())
  assert points[3]["kl"] == pytest.approx(math.log(4) - 0.75)
  for point in points:
    assert point["gold"]["low"] < point["gold"]["mean"] < point["gold"]["high"]
    assert point["gold"]["n"] == 40
  some = best_of_n.curve(proxy_PN, None, sizes=[2, 8], **SETTINGS)
  assert [point["n"] for point in some] == [2, 8] and some[0]["gold"] is None
  assert some[0]["proxy"] == points[1]["proxy"]
  assert best_of_n.doubling_sizes(8) == [1, 2, 4, 8]
  assert best_of_n.doubling_sizes(11) == [1, 2, 4, 8, 11]


@pytest.mark.parametrize(
  "proxy,gold,message",
  [
    (np.zeros((2, 3)), np.zeros((2, 4)), "must share one shape"),
    (np.zeros((2, 0)), np.zeros((2, 0)), "must share one shape"),
    (np.full((2, 3), np.nan), np.zeros((2, 3)), "a proxy score is not finite"),
    (np.zeros((2, 3)), np.full((2, 3), np.inf), "a value is not finite"),
  ],
)
def test_impossible_scores_are_refused(proxy, gold, message: str):
  with pytest.raises(ValueError, match=message):
    best_of_n.expected_best(proxy, gold)


def test_more_than_the_samples_is_refused():
  with pytest.raises(ValueError, match="best of 4 cannot be estimated from 3 samples"):
    best_of_n.curve(np.zeros((2, 3)), None, sizes=[1, 4], **SETTINGS)


@pytest.mark.parametrize(
  "form,law",
  [("best_of_n", lambda d: d * (1.5 - 0.25 * d)), ("rl", lambda d: d * (0.75 - 0.5 * np.log(d)))],
)
def test_the_laws_are_found_again(form: str, law):
  d_M = np.asarray([0.0, 0.5, 1.0, 2.0, 3.0])
  gain_M = np.concatenate([[0.0], law(d_M[1:])])
  found = best_of_n.fit(d_M, gain_M, form)
  assert found == pytest.approx({"best_of_n": (1.5, 0.25), "rl": (0.75, 0.5)}[form])
  with pytest.raises(ValueError, match="two different distances"):
    best_of_n.fit(np.asarray([0, 1, 1]), np.zeros(3), form)


# ----------------------------------------------------------------------------- ensembles


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_ensembles_by_hand(array):
  score_EN = array([[1.0, -2.0], [3.0, 0.0], [5.0, 5.0]])
  assert ensembles.combine(score_EN, "mean").tolist() == [3.0, 1.0]
  assert ensembles.combine(score_EN, "min").tolist() == [1.0, -2.0]
  # Variances: (4 + 0 + 4) / 3 and (9 + 1 + 16) / 3.
  np.testing.assert_allclose(
    ensembles.combine(score_EN, "mean_minus_variance", variance_coef=0.5),
    [3 - 0.5 * 8 / 3, 1 - 0.5 * 26 / 3],
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    ensembles.combine(score_EN, "mean_minus_variance", variance_coef=0.0), [3, 1]
  )


def test_impossible_ensembles_are_refused():
  score_EN = np.zeros((2, 3))
  with pytest.raises(
    ValueError, match="ensemble 'max'; choose from mean, min, mean_minus_variance"
  ):
    ensembles.combine(score_EN, "max")
  with pytest.raises(ValueError, match="variance_coef -1.0; use 0 or more"):
    ensembles.combine(score_EN, "mean_minus_variance", variance_coef=-1.0)
