"""Gold and proxy along a PPO run, and the plot of both."""

import json

import numpy as np
import pytest

from rlhf.evals.reward_models import overoptimization
from rlhf.report import figures

SETTINGS = dict(num_resamples=100, seed=0)


@pytest.fixture
def stage(tmp_path):
  """Two validations of two prompts."""
  (tmp_path / "validation").mkdir()
  for step, rewards, kls in ((0, (1.0, 3.0), (0.5, -1.5)), (10, (4.0, 8.0), (2.0, 6.0))):
    lines = [
      dict(prompt=f"p{i}", response="x" * (step + i), reward=reward, kl=kl)
      for i, (reward, kl) in enumerate(zip(rewards, kls))
    ]
    (tmp_path / "validation" / f"step_{step:06d}.jsonl").write_text(
      "".join(json.dumps(line) + "\n" for line in lines)
    )
  return tmp_path


def test_points_are_means_over_the_validation_prompts(stage):
  def gold(prompts, answers):
    assert list(prompts) == ["p0", "p1"]
    return np.asarray([len(answer) for answer in answers])

  first, last = overoptimization.along_ppo(stage, gold, **SETTINGS)
  assert (first["step"], first["kl"], last["step"], last["kl"]) == (0, -0.5, 10, 4.0)
  assert (first["proxy"]["mean"], first["gold"]["mean"]) == (2.0, 0.5)
  assert (last["proxy"]["mean"], last["gold"]["mean"], last["gold"]["n"]) == (6.0, 10.5, 2)
  assert overoptimization.along_ppo(stage, None, **SETTINGS)[0]["gold"] is None
  with pytest.raises(ValueError, match="holds no validation/step_"):
    overoptimization.along_ppo(stage / "validation", None, **SETTINGS)


def test_the_plot_has_gold_where_it_is_known(stage):
  curves = {
    "ppo": overoptimization.along_ppo(stage, lambda p, a: np.ones(2), **SETTINGS),
    "best of n": overoptimization.along_ppo(stage, None, **SETTINGS),
  }
  svg, png = figures.over_optimization(curves)
  for text in ("gold score", "proxy score", "√KL to the initial policy", "PPO", "best of n"):
    assert f">{text}" in svg, text
  assert "gold score" not in figures.over_optimization({"best of n": curves["best of n"]})[0]
  assert png.startswith(b"\x89PNG")
  assert figures.over_optimization({"ppo": []}) is None
