"""The judge of TruthfulQA's answers: `configs/truth_judge.py:SIZE[,TOPOLOGY]`.

  rlhf train truth_judge --config=configs/truth_judge.py:imported --workdir=runs/judge \\
      --config.init_from=hf:DIR --config.lora.rank=16 --config.optim.learning_rate=2e-4 \\
      --config.answers.true=jsonl:finetune_truth.jsonl.gz \\
      --config.answers.informative=jsonl:finetune_info.jsonl.gz

`imported` in place of a SIZE: the shape of the network that `init_from` names.  One of the two files
may be left out.  A fifth of the questions, and those of `answers.test`, are held out, so that other
models can be asked them (`rlhf/evals/suites/truth.py`).

Lin et al. 2021 fine-tune GPT-3 6.7B; learning rates, epochs and shares of questions are ours.
"""

import ml_collections
from ml_collections import config_dict

from rlhf.configs import common, meshes, models

MAX_LENGTH = 128  # nearly all labelled answers have fewer tokens, and a row takes several


def get_config(argument: str = "imported") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.evals.suites.truth_judge.train`, laid out for a topology where one is named.

  Raises:
    ValueError: an unknown size or topology.
  """
  size, _, topology = argument.partition(",")
  shared = common.get_training("truth_judge", size)
  tiny = size in models.TINY
  config = ml_collections.ConfigDict(
    dict(
      **shared,
      init_from="",
      length=min(models.row_length(shared["model"]), MAX_LENGTH),
      sft=common.get_sft(16, num_epochs=2),
      answers=dict(
        true="",
        informative="",
        test="",
        test_fraction=0.2,
        valid_fraction=0.1,
        num_valid=common.filled(500, int),
        num_test=config_dict.placeholder(int),
        on_bad="stop",
      ),
      optim=common.get_optim(1e-3 if tiny else 1e-5),
      loop=dict(log_every=10, eval_every=200),
      checkpoint=common.get_checkpoint(every=200),
    )
  )
  meshes.lay_out(
    config, models.gpt3_name(size), topology, max_rows=16, microbatches=("sft.microbatch_size",)
  )
  return config.lock()
