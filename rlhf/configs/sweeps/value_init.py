"""Where the value network starts: the reward model (InstructGPT C.4), the policy, or from scratch.

  python -m launch.sweep configs/sweeps/value_init.py --dry_run

The paper prints no such comparison; the three points are ours.
"""

from rlhf.configs import sweeps

STARTS = ("reward_model", "policy", "scratch")


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(title="Start of the value network", x_label="the value network starts as")
  if form in sweeps.PIPELINES:
    key = "ppo.ppo.value_init"
    return sweeps.pipeline_sweep(
      form, trials=sweeps.grid(key, STARTS), x=key, policies=("ppo", "ppo_ptx"), **common
    )
  return sweeps.ppo_sweep(
    form, trials=sweeps.grid("ppo.value_init", STARTS), x="ppo.value_init", **common
  )
