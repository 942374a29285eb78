"""A network as rater: the expectation of five numbers, and what it asks of the network."""

import ml_collections
import numpy as np
import pytest
from test_preference_endpoint import server  # noqa: F401  # a fixture

from rlhf import networks, sharding
from rlhf.configs import common
from rlhf.evals.preference import comparison
from rlhf.inference import likelihood, rewards
from rlhf.model.compute import ComputeConfig
from rlhf.palms import raters, sets

ASKED = [("be kind", "who ?", "rex {x} ."), ("be kind", "who ?", " no "), ("be just", "why ?", "")]

VALUES = sets.load(sets.SHIPPED)


def config(source, **changes) -> raters.RatersConfig:
  return raters.RatersConfig(
    **dict(
      source=str(source),
      prompt="{position} {question} {answer}",
      dtype="float32",
      batch_size=4,
      endpoint={},
    )
    | changes
  )


def test_the_expectation_by_hand():
  even = np.log([[0.1, 0.1, 0.1, 0.1, 0.1], [0.0001, 0.0, 0.0, 0.0003, 0.0]] + np.full(5, 1e-30))
  np.testing.assert_allclose(raters.expected_ratings(even), [3.0, (1 + 3 * 4) / 4])


def test_a_network_rates(session_inputs, tmp_path):
  """Each number's log-probability is asked for by itself here."""
  found = raters.rate(config(session_inputs.policy), ASKED, tmp_path)
  network = networks.load(
    session_inputs.policy,
    ComputeConfig(),
    sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1)),
    kind="policy",
    flag="x",
  )
  for rated, context in zip(
    found, ("be kind who ? rex {x} .", "be kind who ? no", "be just why ? "), strict=True
  ):
    logprob_K = np.concatenate(
      [
        likelihood.logprobs(network, [(context, f" {number}")], batch_size=1)
        for number in raters.RATINGS
      ]
    )
    weight_K = np.exp(logprob_K)
    assert rated == {"model": pytest.approx(weight_K @ raters.RATINGS / weight_K.sum(), rel=1e-4)}
  assert len({rated["model"] for rated in found}) == 3
  assert raters.rate(config("never loaded"), [], tmp_path) == []


def test_what_cannot_rate(session_inputs):
  with pytest.raises(ValueError, match="raters.source is ''; name who rates"):
    config("")
  with pytest.raises(ValueError, match="raters.prompt has no {answer}"):
    config("x", prompt="{position} {question}")
  with pytest.raises(ValueError, match="config.raters.source=.* is a reward export; it must be"):
    raters.check(config(session_inputs.reward), VALUES, 8)
  with pytest.raises(
    ValueError,
    match=r"reads \d+ tokens, but a position, a question and a completion "
    r"need up to \d+; use a rater with a longer context",
  ):
    raters.check(config(session_inputs.policy), VALUES, 1000)


def test_a_reward_model_rates_by_rank(session_inputs, tmp_path):
  asked = [*ASKED, ("other", "who ?", " no ")]
  found = raters.rate(config(f"reward:{session_inputs.reward}"), asked, tmp_path)
  network, prompt_format = comparison.load_reward(str(session_inputs.reward))
  score_N = rewards.score_texts(
    network, prompt_format, [entry[1:] for entry in asked], batch_size=4
  )
  assert [rated["reward_model"] for rated in found] == raters.ranked_ratings(score_N).tolist()
  assert found[1] == found[3]  # the position is not read
  assert raters.ranked_ratings(np.asarray([0.3, -2.0, 0.3, 9.0])).tolist() == [3.0, 1.5, 3.0, 4.5]
  raters.check(config(f"reward:{session_inputs.reward}"), VALUES, 8)
  with pytest.raises(ValueError, match="config.raters.source=.* is a policy export; it must be"):
    raters.check(config(f"reward:{session_inputs.policy}"), VALUES, 8)


def test_an_endpoint_rates(tmp_path, server, monkeypatch):
  replies = {"rex {x} .": "Rating: 4", "no": "no idea", "": "2"}
  server.reply = lambda messages, number: replies[
    messages[0]["content"].partition("A: ")[2].strip()
  ]
  p = config(
    "endpoint",
    prompt="{position} {question} A: {answer}",
    endpoint=dict(
      ml_collections.ConfigDict(common.get_endpoint()),
      base_url=server.url,
      model="m",
      api_key_variable="",
      max_attempts=1,
    ),
  )
  assert raters.rate(p, ASKED, tmp_path) == [{"endpoint": 4.0}, {}, {"endpoint": 2.0}]
  assert len(server.requests) == 3 and p.describe() == f"m at {server.url}"
  raters.rate(p, ASKED, tmp_path)
  assert len(server.requests) == 3
  monkeypatch.delenv("NO_SUCH_KEY", raising=False)
  with pytest.raises(ValueError, match="NO_SUCH_KEY is not set in the environment"):
    raters.check(
      config("endpoint", endpoint=dict(p.endpoint, api_key_variable="NO_SUCH_KEY")), VALUES, 8
    )
  monkeypatch.setattr(raters.processes, "count", lambda: 2)
  with pytest.raises(ValueError, match="2 processes would each ask the endpoint"):
    raters.check(p, VALUES, 8)
