"""PPO-ptx: `configs/ppo.py:SIZE[,TOPOLOGY]`.

  rlhf train ppo --config=configs/ppo.py:1.3b --workdir=runs/ppo \\
      --config.policy_from=runs/init/export --config.reward_from=runs/rm/export \\
      --config.prompts.train=jsonl:prompts.jsonl --config.prompts.valid=jsonl:prompts_valid.jsonl \\
      --config.pretraining.train=text:corpus.txt

`imported` in place of a SIZE: the shape of the network that `policy_from` names.

TOPOLOGY, for example v5p:4x4x8 or h100:32x8, sets mesh, microbatches and layout as
`configs/meshes.py` recommends for it; `rlhf check` has its compiler say whether that
fits.

number                        value          source
episodes                      256,000        InstructGPT C.4 (500 iterations of 512)
batch / minibatch             512 / 64       C.4
inner epochs                  1              C.4
temperature                   1              C.4
reward models                 one            C.2; `reward_others` names more, of the same shape, and
                              `ppo.reward_ensemble` says how they are one (Coste et al. 2023)
KL coefficient beta           0.02, fixed    C.4, E.7
ptx coefficient gamma         27.8           C.4 (0 is PPO without pretraining gradients)
ptx examples per episode      8              C.4
clip of the ratio             0.2            C.4
GAE gamma / lambda            1 / 0.95       C.4 (no discount) / Stiennon et al. 2020, Ziegler code
warm-up                       10 iterations from 1/10 of the peak, then constant     C.4
EMA of the policy             0.992          C.4
policy learning rate          1.18e-5, 1.18e-5, 2.55e-6 (1.3B, 6B, 175B): not printed in the paper;
                              the points of highest Likert in its Fig. 38, read off the figure
value learning rate           9e-6 (1.3B, 6B), 5e-6 (175B)                           C.4
value clip, value weight      0.2, 0.1       Ziegler et al. 2019 (released code)
whitened advantages           yes            Ziegler et al. 2019 (released code)
value network                 separate, from the reward model (6B)                   C.4
KL reference                  the initial policy (`reference_from` empty)            C.4; Fig. 34
                              has the pretrained model
Adam                          0.9 / 0.95     appendix C;  eps 1e-8 and clip 1.0 are GPT-3's
reductions of both losses     token mean     ours: the paper does not say
missing end-of-text           no penalty     ours: the paper names none
adaptive KL target, horizon   6 nats, 10,000 episodes: Ziegler et al. 2019; used by "adaptive" only
"""

import ml_collections
from ml_collections import config_dict

from rlhf.configs import common, meshes, models

# size: (policy learning rate, value learning rate)
PAPER = {
  "1.3b": (1.18e-5, 9e-6),
  "6.7b": (1.18e-5, 9e-6),
  "13b": (1.18e-5, 9e-6),
  "175b": (2.55e-6, 5e-6),
}


def warm_up(config: ml_collections.ConfigDict) -> None:
  """Warms both learning rates up over 10 iterations, whose steps follow from the batch sizes."""
  p = config.ppo
  for optim in (config.policy_optim, config.value_optim):
    optim.warmup_steps = 10 * p.num_epochs * (p.batch_size // p.minibatch_size)


def get_config(argument: str = "1.3b") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.ppo.train`.

  Raises:
    ValueError: an unknown size or topology.
  """
  size, _, topology = argument.partition(",")
  shared = common.get_training("ppo", size)
  name = models.gpt3_name(size)
  tiny = name in models.TINY
  policy_lr, value_lr = PAPER[name] if name in PAPER else PAPER["1.3b"]
  length = models.row_length(shared["model"])
  ppo = dict(
    batch_size=512,
    minibatch_size=64,
    microbatch_size=64 if tiny else 16,
    num_epochs=1,
    num_iterations=500,
    max_prompt_tokens=length // 2,
    max_response_tokens=length // 2,
    rollout_slots=config_dict.placeholder(int),
    temperature=1.0,
    reward_ensemble="mean",
    reward_variance_coef=0.0,
    kl_coef=0.02,
    kl_controller="fixed",
    kl_target=6.0,
    kl_horizon=10_000.0,
    gamma=1.0,
    lam=0.95,
    policy_clip=0.2,
    value_clip=common.filled(0.2, float),
    value_coef=0.1,
    value_network="separate",
    value_init="reward_model",
    whiten_advantages=True,
    whiten_rewards=False,
    missing_end="none",
    missing_end_penalty=0.0,
    policy_reduction="token_mean",
    ptx_coef=27.8,
    ptx_ratio=8,
    ptx_length=length,
    ptx_microbatch_size=64 if tiny else 16,
    ptx_reduction="token_mean",
    ema_decay=0.992,
    alarm_ratio_error=1e-3 if tiny else 0.1,
    alarm_kl=100.0,
    alarm_decode_gap=0.05,
  )
  config = ml_collections.ConfigDict(
    dict(
      **shared,
      policy_from="",
      reward_from="",
      reward_others=(),
      reference_from="",
      ppo=ppo,
      prompts=dict(
        train="", valid="", num_valid=512, overlong="drop", **common.get_format(), on_bad="stop"
      ),
      pretraining=common.get_text(),
      policy_optim=common.get_optim(policy_lr, schedule="constant"),
      value_optim=common.get_optim(value_lr, schedule="constant"),
      loop=dict(log_every=1, eval_every=10),
      checkpoint=common.get_checkpoint(every=10),
    )
  )
  warm_up(config)
  meshes.lay_out(
    config,
    name,
    topology,
    max_rows=config.ppo.minibatch_size,
    microbatches=("ppo.microbatch_size", "ppo.ptx_microbatch_size"),
  )
  return config.lock()
