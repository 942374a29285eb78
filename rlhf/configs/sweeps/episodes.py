"""How long PPO runs: InstructGPT E.11, Fig. 35 (1.3B with pretraining gradients).

  python -m launch.sweep configs/sweeps/episodes.py --dry_run

The paper follows one run of 512k episodes; here each length is a run of its own, at about the
lengths of Fig. 35: 65k, 131k, ... 512k episodes, in iterations of 512.  What the paper shows: more
than 256k episodes did not help.

tiny has five lengths that are ours, from 640 to 10,240 episodes in iterations of 64.
"""

from rlhf.configs import sweeps

PAPER = (128, 256, 384, 512, 640, 768, 896, 1000)
TINY = (10, 20, 40, 80, 160)
TEST = (2, 4)


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(title="Episodes", x_label="PPO iterations")
  if form in sweeps.PIPELINES:
    key = "ppo.ppo.num_iterations"
    return sweeps.pipeline_sweep(
      form,
      trials=sweeps.grid(key, TINY if form == "tiny" else TEST),
      x=key,
      policies=("ppo", "ppo_ptx"),
      **common,
    )
  return sweeps.ppo_sweep(
    form, trials=sweeps.grid("ppo.num_iterations", PAPER), x="ppo.num_iterations", **common
  )
