"""The size of the reward model (and with it of the value network).

  python -m launch.sweep configs/sweeps/reward_model_size.py --dry_run \\
      --config.comparisons.train=... --config.comparisons.valid=... \\
      --config.comparisons.demonstrations=...

InstructGPT C.2 has 6B and an unstable 175B; Stiennon et al. 2020 train 160M to 13B and find +1.8 %
of accuracy per doubling.  Our points are the GPT-3 family up to 13B, each from the pretrained model
of its size, which must lie in runs/base_SIZE/export.  The learning rate is that of 6B throughout.

tiny has four shapes that are ours; every reward model starts from a base model of its own shape
(`reward_init` "base"), which the pipeline pretrains first.
"""

from rlhf.configs import models, sweeps

SIZES = ("125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b")
TINY = ((1, 32, 1), (1, 64, 2), (2, 128, 4), (2, 192, 6))
TEST = ((2, 16, 1), (2, 32, 2))
FORMS = ("gpt3", *sweeps.PIPELINES)


def _shapes(prefix: str, shapes) -> list[sweeps.Trial]:
  """(num_layers, width, num_heads) as overrides."""
  return [
    {f"{prefix}width": width, f"{prefix}num_layers": layers, f"{prefix}num_heads": heads}
    for layers, width, heads in shapes
  ]


def get_sweep(form: str = "gpt3") -> sweeps.Sweep:
  common: dict = dict(title="Size of the reward model", x_label="width of the reward model")
  accuracy = ("reward_accuracy", "reward_log_loss")
  if form in sweeps.PIPELINES:
    prefix = "reward_model.model."
    shapes = _shapes(prefix, TINY if form == "tiny" else TEST)
    return sweeps.pipeline_sweep(
      form,
      trials=sweeps.product(shapes, [{"reward_init": "base"}]),
      x=f"{prefix}width",
      measures=(*accuracy, *sweeps.POLICY_MEASURES),
      **common,
    )
  if form not in FORMS:
    raise ValueError(f"form {form!r}; choose from {', '.join(FORMS)}")
  trials = sweeps.zip_(
    _shapes("model.", [models.GPT3[size] for size in SIZES]),
    sweeps.grid("init_from", [f"runs/base_{size}/export" for size in SIZES]),
  )
  return sweeps.Sweep(
    command="reward_model",
    config="configs/reward_model.py:6b",
    seeds=(0,),
    trials=trials,
    x="model.width",
    measures=accuracy,
    policies=("",),
    **common,
  )
