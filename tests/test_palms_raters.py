"""A network as rater: the expectation of five numbers, and what it asks of the network."""

import numpy as np
import pytest

from rlhf import networks
from rlhf import sharding
from rlhf.evals import completions
from rlhf.palms import raters
from rlhf.palms import sets

ASKED = [("be kind", "who ?", "rex {x} ."), ("be kind", "who ?", " no "), ("be just", "why ?", "")]

VALUES = sets.load(sets.SHIPPED)


def config(source, **changes) -> raters.RatersConfig:
  return raters.RatersConfig(**dict(
      source=str(source), prompt="{position} {question} {answer}", dtype="float32",
      batch_size=4) | changes)


def test_the_expectation_by_hand():
  even = np.log([[0.1, 0.1, 0.1, 0.1, 0.1], [0.0001, 0.0, 0.0, 0.0003, 0.0]] + np.full(5, 1e-30))
  np.testing.assert_allclose(raters.expected_ratings(even), [3.0, (1 + 3 * 4) / 4])


def test_a_network_rates(session_inputs):
  """Each number's log-probability is asked for by itself here."""
  found = raters.rate(config(session_inputs.policy), ASKED)
  network = networks.load(
      session_inputs.policy, networks.export_numerics(networks.find_export(
          session_inputs.policy, {}, kind="policy", flag="x")) | {"dtype": "float32"},
      sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1)), kind="policy", flag="x")
  for rated, context in zip(found, ("be kind who ? rex {x} .", "be kind who ? no", "be just why ? "),
                            strict=True):
    logprob_K = np.concatenate([completions.logprobs(network, [(context, f" {number}")], batch_size=1)
                                for number in raters.RATINGS])
    weight_K = np.exp(logprob_K)
    assert rated == {"model": pytest.approx(weight_K @ raters.RATINGS / weight_K.sum(), rel=1e-4)}
  assert len({rated["model"] for rated in found}) == 3
  assert raters.rate(config("never loaded"), []) == []


def test_what_cannot_rate(session_inputs):
  with pytest.raises(ValueError, match="raters.source is empty"):
    config("")
  with pytest.raises(ValueError, match="raters.prompt has no {answer}"):
    config("x", prompt="{position} {question}")
  with pytest.raises(ValueError, match="config.raters.source=.* is a reward export; it must be"):
    raters.check(config(session_inputs.reward), VALUES, 8)
  with pytest.raises(ValueError, match=r"reads \d+ tokens, and a position, a question and an answer "
                                       r"have up to \d+; take a rater with a longer context"):
    raters.check(config(session_inputs.policy), VALUES, 1000)
