"""The size of the policy: the trials behind the paper's main figure (InstructGPT Fig. 1 and 3).

  python -m launch.sweep configs/sweeps/model_size.py:tiny --local --jobs=2 --workdir=runs/model_size

Three TinyWorld sizes (`configs/pipeline.py:sized`), 32 thousand, 397 thousand (that of `:tiny`) and
1.0M parameters outside the embeddings, every stage with the same number of tokens and the same
learning rates; three seeds.  As in the paper, reward and value model have one size for all policies
(there 6B, here that of `tiny`), whose base model is the middle policy's own.

A trial's win rates are against SFT of its own size; those of the figure are against the largest
SFT model, and are made from the trials' exports by `launch.evaluate` (`docs/evaluation.md`).

Widths, depths and the standard deviation at the start (about 0.7 / sqrt(width), as in
`configs/models.py`) are ours.
"""

from rlhf.configs import models, sweeps

SIZES = ("32k", "397k", "1M")  # of models.WORLD_SHAPES
TEST = {"7k": (2, 16, 1, 0.1), "25k": (*models.TINY["test"], 0.1)}
FIELDS = ("num_layers", "width", "num_heads", "init_std")
X = "base.model.width"


def shape_trial(shape: tuple) -> sweeps.Trial:
  """The shape of a policy, as overrides of a pipeline's config."""
  fields = dict(zip(FIELDS, shape, strict=True))
  return {f"base.model.{name}": value for name, value in fields.items()}


def get_sweep(form: str = "tiny") -> sweeps.Sweep:
  shapes = {name: models.WORLD_SHAPES[name] for name in SIZES} if form == "tiny" else TEST
  return sweeps.pipeline_sweep(
    form,
    config=f"configs/pipeline.py:sized{'_test' if form == 'test' else ''}",
    title="Size of the policy",
    x=X,
    x_label="width of the policy",
    trials=[shape_trial(shape) for shape in shapes.values()],
    policies=("ppo", "ppo_ptx"),
    measures=(*sweeps.POLICY_MEASURES, "reward_accuracy"),
  )
