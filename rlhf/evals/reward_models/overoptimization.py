"""Gold and proxy score along a PPO run, against the distance from the reference.

`best_of_n.curve` gives the same points for best-of-n sampling; `figures.over_optimization` draws
both.  A proxy score that keeps rising while the gold score falls is over-optimised (Gao et al.
2022, arXiv:2210.10760).
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics

# (prompts, completions) -> one score each.
GoldScores = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def along_ppo(
  stage: pathlib.Path, gold: GoldScores | None, **settings: Unpack[statistics.Settings]
) -> list[dict[str, Any]]:
  """Means over the validation prompts of a PPO run, one point per validation.

  Args:
    stage: workdir of the run, which holds `validation/step_*.jsonl`.
    gold: scores completions; None if the gold score is unknown.
    settings: of the bootstrap over prompts.

  Returns:
    [{"step", "kl" (nats per response, sampled), "proxy": {"mean", "low", "high", "n"}, "gold": the
    same or None}], in order of step.

  Raises:
    ValueError: the run holds no validation.
  """
  found = sorted((pathlib.Path(stage) / "validation").glob("step_*.jsonl"))
  if not found:
    raise ValueError(f"{stage} holds no validation/step_*.jsonl; name the workdir of a PPO run")

  def interval(values):
    return statistics.bootstrap_mean(np.asarray(values)[:, None], **settings).as_dict()

  points = []
  for path in found:
    lines = workdir_lib.read_jsonl(path)
    column = lambda name: [line[name] for line in lines]
    points.append(
      dict(
        step=int(path.stem.removeprefix("step_")),
        kl=float(np.mean(column("kl"))),
        proxy=interval(column("reward")),
        gold=None if gold is None else interval(gold(column("prompt"), column("response"))),
      )
    )
  return points
