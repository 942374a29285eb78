"""The policy's learning rate, with and without pretraining gradients: InstructGPT E.9, Fig. 38.

  python -m launch.sweep configs/sweeps/policy_lr.py --dry_run

1.3b and 6b have the paper's seven points, 175b its two; each with gamma 27.8 and with 0.  Sizes
that the paper does not have take the seven.  What the paper shows: without pretraining gradients
all runs above 8.05e-6 diverged; with them the outcome hardly depends on the learning rate.

tiny has five points that are ours, about TinyWorld's 3e-4; its pipelines train PPO with and without
pretraining gradients, so both are measured.
"""

from rlhf.configs import sweeps

PAPER = (2.55e-6, 3.74e-6, 5.48e-6, 8.05e-6, 1.18e-5, 1.73e-5, 2.55e-5)
PAPER_175B = (2.55e-6, 3.74e-6)
TINY = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
TEST = (3e-4, 1e-3)


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(title="Policy learning rate", x_label="peak learning rate of the policy")
  if form in sweeps.PIPELINES:
    key = "ppo.policy_optim.learning_rate"
    return sweeps.pipeline_sweep(
      form,
      trials=sweeps.grid(key, TINY if form == "tiny" else TEST),
      x=key,
      policies=("ppo", "ppo_ptx"),
      **common,
    )
  key = "policy_optim.learning_rate"
  points = sweeps.grid(key, PAPER_175B if form == "175b" else PAPER)
  trials = sweeps.product(sweeps.grid("ppo.ptx_coef", [27.8, 0.0]), points)
  return sweeps.ppo_sweep(form, trials=trials, x=key, **common)
