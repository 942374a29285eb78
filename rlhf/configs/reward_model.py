"""The reward model: `configs/reward_model.py:SIZE[,TOPOLOGY]`.

  rlhf train reward_model --config=configs/reward_model.py:6b --workdir=runs/rm \\
      --config.init_from=runs/sft/export --config.comparisons.train=jsonl:ranked.jsonl \\
      --config.comparisons.valid=jsonl:ranked_valid.jsonl \\
      --config.comparisons.demonstrations=jsonl:demos.jsonl

`imported` in place of a SIZE: the shape of the network that `init_from` names.

InstructGPT C.2: one epoch, learning rate 9e-6, cosine to 10 %, batches of 64 prompts with K = 4..9
ranked outputs each (up to 64 * 36 = 2,304 comparisons); ties dropped.  The paper finds the result
insensitive to the learning rate and very sensitive to the number of epochs.  One 6B model serves
every policy size.
"""

import ml_collections

from rlhf.configs import common, meshes, models


def get_config(argument: str = "6b") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.reward_model.train`, laid out for a topology where one is named.

  Raises:
    ValueError: an unknown size or topology.
  """
  size, _, topology = argument.partition(",")
  shared = common.get_training("reward_model", size)
  tiny = size in models.TINY
  config = ml_collections.ConfigDict(
    dict(
      **shared,
      init_from="",
      length=models.row_length(shared["model"]),
      reward=dict(batch_size=16 if tiny else 64, microbatch_size=16, num_epochs=1, pairs=False),
      comparisons=dict(
        train="",
        valid="",
        demonstrations="",
        overlong="drop_completion",
        overlong_demonstrations="drop",
        **common.get_format(),
        on_bad="stop",
      ),
      optim=common.get_optim(1e-3 if tiny else 9e-6),
      loop=dict(log_every=5, eval_every=50),
      checkpoint=common.get_checkpoint(every=50),
    )
  )
  meshes.lay_out(
    config,
    models.gpt3_name(size),
    topology,
    max_rows=config.reward.batch_size,
    microbatches=("reward.microbatch_size",),
  )
  return config.lock()
