"""The pretraining coefficient gamma: InstructGPT Fig. 33 (1.3B).

  python -m launch.sweep configs/sweeps/ptx_coef.py --dry_run
  python -m launch.sweep configs/sweeps/ptx_coef.py:tiny --local --jobs=1 --workdir=runs/ptx_coef
  python -m launch.sweep configs/sweeps/ptx_coef.py:tiny --collect --workdir=runs/ptx_coef

A size of the GPT-3 family has the paper's twelve points.  What the paper shows: what PPO costs in
few-shot accuracy comes back as gamma grows and is back from about 20 on, while the validation
reward falls from -0.61 to -1.55.

tiny has seven points that are ours, 0 among them (PPO without pretraining gradients), about the
coefficient 1 that belongs to TinyWorld's rewards and losses.  Nearly all of a trial is shared: only
PPO-ptx and its evaluation run once per point.
"""

from rlhf.configs import sweeps

# Read off Fig. 33: each 1.67 times the one before.
PAPER = (0.463, 0.773, 1.29, 2.15, 3.59, 5.99, 10.0, 16.7, 27.8, 46.5, 77.5, 129.0)
TINY = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TEST = (0.0, 1.0)


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(title="Pretraining coefficient", x_label="pretraining coefficient γ")
  if form in sweeps.PIPELINES:
    key = "ppo.ppo.ptx_coef"
    points = TINY if form == "tiny" else TEST
    return sweeps.pipeline_sweep(form, trials=sweeps.grid(key, points), x=key, **common)
  key = "ppo.ptx_coef"
  return sweeps.ppo_sweep(form, trials=sweeps.grid(key, PAPER), x=key, **common)
