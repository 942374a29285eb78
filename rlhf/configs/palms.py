"""PALMS: `configs/palms.py:NAME`, for `rlhf pipeline`.

  rlhf pipeline --config=configs/palms.py:tiny --workdir=runs/palms
  rlhf pipeline --config=configs/palms.py:tiny --workdir=runs/palms \\
      --shared=runs/model_size/shared              # base models of the sweep over sizes, if it has run
  rlhf pipeline --config=configs/palms.py:1.3b --workdir=runs/palms \\
      --config.base.source=runs/base/export --config.raters.source=runs/judge/export

tiny       TinyWorld at five sizes with three seeds, rule-based raters
test       the same at test size, to show that all parts fit
smollm2    SmolLM2-135M-Instruct with adapters: --config.base.source=gguf:FILE --config.raters.source=...
SIZE       one size of the GPT-3 family, `SIZE,TOPOLOGY` laid out for one; the base model is given.
           Runs of several sizes are compared by `rlhf palms statistics` on their ratings.jsonl.

The appendix of the paper with its fine-tuning settings could not be read.  Where a number is not of
it, it is ours, and this is why:

num_epochs 4, prompt_loss_weight 0.01   defaults of OpenAI's fine-tuning API of 2022, which the paper
                                        tells its readers to use
learning rate                           a tenth of that of pretraining: the multiplier 0.1 of the
                                        same API, documented as 0.05 to 0.2
batch_size 8, one sample a row          the API takes 1 for so small a file, which divides over no
                                        mesh; 40 steps in all.  TinyWorld's 8 rows are packed
temperature 1, top_p 0.9                those of GPT-3's section 6.2, which PALMS uses for its
                                        co-occurrence; the probes' own are not known
TinyWorld's learning rate 1e-3          tried with --config.seeds='(0,)' and
                                        --config.tune.optim.learning_rate.  At 397k parameters
                                        targeted completions were rated 3.94 with 3e-4 and 4.09 with
                                        1e-3 (base 3.42); at 32k 3.46 with 1e-3 and 3.57 with 3e-3,
                                        which unlearned facts (few-shot categories right 34 % of the
                                        time, 57 % with 1e-3).  Seed 0 and the same probes are in
                                        the results too

Of the paper: 80 samples, 40 probes, 3 samples of each, 3 raters, a scale from 1 to 5.
"""

import ml_collections
from ml_collections import config_dict

from rlhf.configs import common, meshes, models, pipeline, sft
from rlhf.configs.sweeps import model_size

NAMES = ("tiny", "test", "smollm2")
TUNE_BATCH = 8
EPOCHS = 4
PROMPT_LOSS_WEIGHT = 0.01
LEARNING_RATE_MULTIPLIER = 0.1


def _tune(argument: str, learning_rate: float) -> ml_collections.ConfigDict:
  """Fine-tuning on a set of samples; the process fills in data, format, seed and start."""
  config = pipeline.unfilled(sft.get_config(argument))
  del config["tokenizer"]  # the base model's
  config.sft.update(batch_size=TUNE_BATCH, num_epochs=EPOCHS, dropout_rate=0.0, keep_epochs=False)
  config.sft.microbatch_size = TUNE_BATCH
  config.demonstrations.prompt_loss_weight = PROMPT_LOSS_WEIGHT
  config.demonstrations.overlong = "truncate_right"
  config.optim.learning_rate = learning_rate
  config.loop.log_every, config.loop.eval_every = 1, 20
  return config


def _shape(shape: tuple) -> dict[str, float]:
  return dict(zip(model_size.FIELDS, shape, strict=True))


def _common(title: str) -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    dict(
      kind="palms",
      title=title,
      seeds=(0,),
      value_set="",
      format=common.get_format(),
      sampling=dict(
        num_samples=3,
        temperature=1.0,
        top_p=0.9,
        max_prompt_tokens=64,
        max_response_tokens=200,
        batch_size=60,
      ),
      cooccurrence=dict(
        num_samples=800,
        max_response_tokens=50,
        temperature=1.0,
        top_p=0.9,
        num_favoured=100,
        num_skewed=10,
        smoothing=1.0,
      ),
      statistics=dict(
        num_resamples=2000,
        num_flips=10_000,
        seed=0,
        confidence=0.95,
        alpha=0.05,
        test="min_f",
        capability_margin=2.0,
      ),
    )
  )


def get_tiny() -> ml_collections.ConfigDict:
  """TinyWorld: its stand-in values, raters by rule, five sizes up to 1M parameters."""
  config = _common("PALMS on TinyWorld")
  config.seeds = (0, 1, 2)
  config.value_set = "tinyworld"
  config.pipeline = pipeline.get_config("sized")
  config.sizes = {name: _shape(shape) for name, shape in models.WORLD_SHAPES.items()}
  config.tune = _tune("tiny", 1e-3)
  config.tune.model.band_width, config.tune.model.context_length = None, 128
  config.sampling.update(max_prompt_tokens=36, max_response_tokens=28, batch_size=120)
  config.cooccurrence.update(num_samples=100, max_response_tokens=12)
  config.world_set = dict(num_samples=80, num_probes=5, seed=0)
  config.world_raters = dict(num_raters=3, noise_scale=0.6, leniency_scale=0.2, seed=0)
  return config


def get_test() -> ml_collections.ConfigDict:
  """Everything once, in seconds."""
  config = get_tiny()
  config.title = "PALMS on TinyWorld, test size"
  config.seeds = (0, 1)
  config.pipeline = pipeline.get_config("sized_test")
  config.sizes = {name: _shape(shape) for name, shape in model_size.TEST.items()}
  config.tune = _tune("test", 1e-3)
  config.tune.model.context_length = 128
  config.tune.sft.num_epochs = 1
  config.sampling.update(num_samples=2, max_response_tokens=12, batch_size=40)
  config.cooccurrence.update(num_samples=4, max_response_tokens=4)
  config.statistics.update(num_resamples=200, num_flips=200)
  return config


def _get_real(title: str, argument: str, learning_rate: float) -> ml_collections.ConfigDict:
  config = _common(title)
  config.tune = _tune(argument, learning_rate)
  config.tune.demonstrations.packing = "one_per_row"  # packed, 80 samples would be 14 rows of 2,048
  groups = ("mesh", "model", "compute")
  config.base = dict(source="") | {
    name: config.tune[name].copy_and_resolve_references() for name in groups
  }
  config.sizes = {"given": {}}
  config.raters = dict(
    source="",
    prompt="",
    dtype=config.tune.compute.dtype,
    batch_size=16,
    endpoint=common.get_endpoint(),
  )
  config.capability = dict(
    tasks=("sst", "rte"),
    data="hub",
    limit=config_dict.placeholder(int),
    num_fewshot=config_dict.placeholder(int),
    chat=False,
  )
  return config


def get_smollm2() -> ml_collections.ConfigDict:
  """SmolLM2-135M-Instruct on 2 cores: adapters of rank 16, its own chat template.

    rlhf pipeline --config=configs/palms.py:smollm2 --workdir=runs/palms_smollm2 \\
        --config.base.source=gguf:SmolLM2-135M-Instruct.Q4_1.gguf \\
        --config.raters.source=gguf:SmolLM2-135M-Instruct.Q4_1.gguf \\
        --config.capability.data=DIR

  DIR holds SST-2 and RTE as their authors publish them (`docs/evaluation.md`), or is hub.  About an
  hour on two CPU cores; `results/palms_smollm2` is seed 0 of it.  The capability check needs the
  extra `evals`.  The learning rate is that of `configs/pipeline.py:smollm2`, as adapters need one
  of their own.
  """
  config = _get_real("PALMS on SmolLM2-135M-Instruct", "imported", 2e-4)
  config.format.update(prompt_format="chat", prompt_suffix="", completion_prefix="")
  config.tune.length = 480  # the longest sample of this project has 471 tokens in its template
  config.tune.compute.update(dtype="float32", remat="none", logprob_chunk=64)
  config.base.compute.update(dtype="float32", remat="none", logprob_chunk=64)
  config.tune.lora.update(rank=16, alpha=32.0)
  config.tune.sft.microbatch_size = 2
  config.tune.loop.eval_every = 40  # before and after: it reads the training samples once more
  config.raters.dtype = "float32"
  config.raters.batch_size = 4
  config.sampling.update(max_prompt_tokens=96, max_response_tokens=256, batch_size=30)
  config.cooccurrence.update(num_samples=20, max_response_tokens=20)
  config.capability.limit = 100
  config.capability.num_fewshot = 0
  return config


def get_size(argument: str) -> ml_collections.ConfigDict:
  """A size of the GPT-3 family, with the learning rate of its pretraining."""
  size, _, topology = argument.partition(",")
  name = models.gpt3_name(size)
  if name not in models.GPT3:
    raise ValueError(f"size {size!r}; choose from {', '.join((*NAMES, *models.GPT3))}")
  config = _get_real(
    f"PALMS at {size}", f"{size},sft", LEARNING_RATE_MULTIPLIER * sft.PRETRAIN_LR[name]
  )
  if topology:
    meshes.lay_out(
      config.tune, name, topology, max_rows=TUNE_BATCH, microbatches=("sft.microbatch_size",)
    )
    for group in ("mesh", "compute"):
      config.base[group] = config.tune[group].copy_and_resolve_references()
  return config


def get_config(name: str = "tiny") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.palms.process.run`.

  Raises:
    ValueError: an unknown name, size or topology.
  """
  choices = dict(zip(NAMES, (get_tiny, get_test, get_smollm2)))
  return (choices[name]() if name in choices else get_size(name)).lock()
