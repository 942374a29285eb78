"""All comparisons of a prompt as one batch element, or shuffled pairs: InstructGPT section 3.5.

  python -m launch.sweep configs/sweeps/kwise_vs_pairs.py --dry_run --config.init_from=... \\
      --config.comparisons.train=... --config.comparisons.valid=... \\
      --config.comparisons.demonstrations=...

What the paper says: shuffled into one set, a single pass over the pairs overfits, because each
completion takes part in up to K - 1 updates; grouped, it does not, and validation accuracy and log
loss are better.

The batch of the pairs is ours: 20 for every prompt of the other arm, so that a step sees about as
many comparisons (K from 4 to 9, all as frequent, gives 19.3 pairs a prompt).
"""

from rlhf.configs import models, sweeps

PAIRS_PER_PROMPT = 20


def _trials(prefix: str, batch_size: int, microbatch_size: int) -> list[sweeps.Trial]:
  return [
    {
      f"{prefix}pairs": pairs,
      f"{prefix}batch_size": batch_size * times,
      f"{prefix}microbatch_size": microbatch_size * times,
    }
    for pairs, times in ((False, 1), (True, PAIRS_PER_PROMPT))
  ]


def get_sweep(form: str = "6b") -> sweeps.Sweep:
  common: dict = dict(
    title="Comparisons grouped by prompt, or shuffled pairs",
    x_label="shuffled pairs",
    measures=("reward_accuracy", "reward_log_loss"),
    policies=("",),
  )
  if form in sweeps.PIPELINES:
    prefix = "reward_model.reward."
    sizes = (8, 2) if form == "tiny" else (8, 8)
    return sweeps.pipeline_sweep(
      form, trials=_trials(prefix, *sizes), x=f"{prefix}pairs", last_stage="reward_model", **common
    )
  models.get_model(form)  # an unknown size is named here
  return sweeps.Sweep(
    command="reward_model",
    config=f"configs/reward_model.py:{form}",
    seeds=(0, 1, 2),
    trials=_trials("reward.", 64, 16),
    x="reward.pairs",
    **common,
  )
