"""The KL coefficient beta with pretraining gradients, towards PPO's start: InstructGPT Fig. 36.

  python -m launch.sweep configs/sweeps/kl_coef_ptx.py --dry_run

A size of the GPT-3 family has the paper's seven points, 0 among them.  What the paper shows (Likert
ratings): best at 0.01 to 0.02, far below it at 0 and below it at 2.

tiny has the paper's points times 7.5, which takes its 0.02 to TinyWorld's 0.15; that is ours.  Its
pipelines train PPO with and without pretraining gradients, so both are measured.
"""

from rlhf.configs import sweeps

PAPER = (0.0, 7.5e-4, 0.0104, 0.02, 0.03, 0.144, 2.0)
TINY = (0.0, 5.6e-3, 0.078, 0.15, 0.225, 1.08, 15.0)
TEST = (0.0, 0.15)


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(title="KL coefficient", x_label="KL coefficient β")
  if form in sweeps.PIPELINES:
    key = "ppo.ppo.kl_coef"
    return sweeps.pipeline_sweep(
      form,
      trials=sweeps.grid(key, TINY if form == "tiny" else TEST),
      x=key,
      policies=("ppo", "ppo_ptx"),
      measures=(*sweeps.POLICY_MEASURES, "gold_score"),
      **common,
    )
  return sweeps.ppo_sweep(form, trials=sweeps.grid("ppo.kl_coef", PAPER), x="ppo.kl_coef", **common)
