"""The KL coefficient beta without pretraining gradients, towards the pretrained model: InstructGPT
Fig. 34 (1.3B, gamma 0).

  python -m launch.sweep configs/sweeps/kl_coef_pretrained_ref.py --dry_run \\
      --config.reference_from=runs/base/export

A size of the GPT-3 family has the paper's nine points; `reference_from` is the pretrained model's
export.  What the paper shows: no beta, up to 100 times its own of 0.02, brings the few-shot
accuracy back that pretraining gradients bring back, and large ones cost reward.

tiny has the paper's points times 7.5, which takes its 0.02 to TinyWorld's 0.15; that is ours.
"""

from rlhf.configs import sweeps

# Read off Fig. 34: each 3.73 times the one before.
PAPER = (5.4e-5, 2.0e-4, 7.5e-4, 2.8e-3, 1.04e-2, 3.9e-2, 0.144, 0.537, 2.0)
TINY = (4.05e-4, 1.5e-3, 5.6e-3, 0.021, 0.078, 0.29, 1.08, 4.0, 15.0)
TEST = (0.0, 0.15)


def get_sweep(form: str = "1.3b") -> sweeps.Sweep:
  common = dict(
    title="KL coefficient: pretrained model as reference, no pretraining gradients",
    x_label="KL coefficient β",
  )
  if form in sweeps.PIPELINES:
    key = "ppo.ppo.kl_coef"
    trials = sweeps.product(
      sweeps.grid(key, TINY if form == "tiny" else TEST),
      sweeps.grid("ppo.ppo.ptx_coef", [0.0]),
      sweeps.grid("kl_reference", ["base"]),
    )
    return sweeps.pipeline_sweep(form, trials=trials, x=key, **common)
  trials = sweeps.product(sweeps.grid("ppo.kl_coef", PAPER), sweeps.grid("ppo.ptx_coef", [0.0]))
  return sweeps.ppo_sweep(
    form,
    trials=trials,
    x="ppo.kl_coef",
    **common,
    required={
      "reference_from": "the pretrained model's export as reference, for example "
      "--config.reference_from=runs/base/export"
    },
  )
