"""Supervised fine-tuning, PPO's start, pretraining: `configs/sft.py:SIZE[,VARIANT[,TOPOLOGY]]`.

  rlhf train sft --config=configs/sft.py:1.3b --workdir=runs/sft \\
      --config.init_from=runs/base/export --config.demonstrations.train=jsonl:demos.jsonl \\
      --config.demonstrations.valid=jsonl:demos_valid.jsonl

`imported` in place of a SIZE: the shape of the network that `init_from` names, and no dropout, which
published models were not trained with: at 0.2 their outputs become noise.

VARIANT       what it is                                                        source
sft           16 epochs, dropout 0.2, cosine to 10 %, every epoch exported       InstructGPT C.1
init          2 epochs with 10 % pretraining data: PPO's start and reference     C.3, E.8
pretrain      text alone, 1 epoch                                               GPT-3 Table 2.1
flan          a mixture of instruction data sets, batch 64, LR 4e-6             C.5
t0            the same with batch 128, up to 1.28M examples                     C.5

             175B       6B and 1.3B
sft LR       5.03e-6    9.65e-6
sft batch    8          32
init LR      2.45e-6    1.04e-5 (6B), 5e-6 (1.3B)
init batch   8          32

flan and t0 are the paper's baselines on instruction collections, at 175B; that other sizes take the
same numbers is ours.  No example is read twice, cosine to 10 %, no dropout (not stated).  The paper
tried 4e-6 and 6e-6 (T0: 6e-6 with batch 64 and 1M examples) and took the checkpoint of the highest
reward, for both the one at 896k examples; so one is kept every 128,000, and `rlhf select`
chooses:

  rlhf train sft --config=configs/sft.py:1.3b,t0 --workdir=runs/t0 \\
      --config.init_from=runs/base/export --config.demonstrations.valid=t0:t0_valid.jsonl.gz \\
      --config.demonstrations.train="('t0:t0.jsonl.gz','alpaca:other.jsonl')" \\
      --config.demonstrations.weights="(3.0,1.0)"
  rlhf select --candidates=runs/t0/rows --reward_model=runs/rm \\
      --prompts=jsonl:prompts_valid.jsonl --output=runs/t0/selection.json

Their rows hold one example each, so that a batch is as many examples as in the paper; with
`demonstrations.packing` best_fit, batches and `sft.keep_rows` count packed rows.

Sizes that the paper does not have take the numbers of the nearest size it has: that is ours, as are
the tiny sizes' (found by a short sweep on TinyWorld).
"""

import ml_collections

from rlhf.configs import common, meshes, models

VARIANTS = ("sft", "init", "pretrain", "flan", "t0")
# size: (SFT learning rate, init learning rate, batch)
SMALL = (9.65e-6, 5e-6, 32)
PAPER = {
  "6.7b": (9.65e-6, 1.04e-5, 32),
  "13b": (9.65e-6, 1.04e-5, 32),
  "175b": (5.03e-6, 2.45e-6, 8),
}
TINY = (1e-3, 1e-3, 32)
# InstructGPT C.5: (learning rate, batch, examples at most).
COLLECTIONS = {"flan": (4e-6, 64, None), "t0": (4e-6, 128, 1_280_000)}
KEPT_EXAMPLES = 128_000  # ours
# GPT-3 Table 2.1.
PRETRAIN_LR = {
  "125m": 6e-4,
  "350m": 3e-4,
  "760m": 2.5e-4,
  "1.3b": 2e-4,
  "2.7b": 1.6e-4,
  "6.7b": 1.2e-4,
  "13b": 1e-4,
  "175b": 0.6e-4,
}


def get_config(argument: str = "1.3b") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.sft.train`.

  Raises:
    ValueError: an unknown size, variant or topology.
  """
  size, _, variant = argument.partition(",")
  variant, _, topology = variant.partition(",")
  variant = variant or "sft"
  if variant not in VARIANTS:
    raise ValueError(f"variant {variant!r}; choose from {', '.join(VARIANTS)}")
  shared = common.get_training("sft", size)
  size = models.gpt3_name(size)
  tiny = size in models.TINY
  sft_lr, init_lr, batch_size = TINY if tiny else PAPER[size] if size in PAPER else SMALL
  if variant == "pretrain":
    learning_rate = 3e-3 if tiny else PRETRAIN_LR[size if size in PRETRAIN_LR else "175b"]
    batch_size = 64 if tiny else 512
  elif variant in COLLECTIONS:
    rate, batch, max_examples = COLLECTIONS[variant]
    learning_rate, batch_size = (sft_lr, batch_size) if tiny else (rate, batch)
  else:
    learning_rate = sft_lr if variant == "sft" else init_lr
  config = ml_collections.ConfigDict(
    dict(
      **shared,
      init_from="",
      tokenizer="bpe:1024" if tiny else "gpt2:",
      length=models.row_length(shared["model"]),
      sft=common.get_sft(
        batch_size,
        num_epochs=16 if variant == "sft" else 2 if variant == "init" else 1,
        dropout_rate=0.2 if variant == "sft" and size != models.IMPORTED else 0.0,
      ),
      optim=common.get_optim(learning_rate),
      loop=dict(log_every=10, eval_every=100),
      checkpoint=common.get_checkpoint(every=200),
    )
  )
  config.sft.keep_epochs = variant == "sft"
  if variant != "pretrain":
    config.demonstrations = common.get_demonstrations(() if variant in COLLECTIONS else "")
  if variant in COLLECTIONS:
    config.demonstrations.packing = "one_per_row"
    config.demonstrations.max_examples = max_examples
    config.sft.keep_rows = 1_280 if tiny else KEPT_EXAMPLES
  if variant in ("init", "pretrain"):
    fraction = 0.1 if variant == "init" else 1.0
    config.text = common.get_text() | dict(valid="", fraction=fraction)
  if variant == "pretrain":
    config.optim.weight_decay = 0.1  # GPT-3 appendix B
    config.optim.warmup_steps = 50 if tiny else 375_000_000 // (batch_size * config.length)
  meshes.lay_out(config, size, topology, max_rows=batch_size, microbatches=("sft.microbatch_size",))
  return config.lock()
