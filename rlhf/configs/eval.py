"""Evaluation: `configs/eval.py[:NAME]`, for `launch.evaluate`.

  python -m launch.evaluate --checkpoints=A,B --suite=nlp,bias --workdir=runs/evaluation \\
      --config.nlp.data=DIR --config.bias.data=DIR

default    the paper's tasks and settings at full size, data from the hub
quick      100 items of each task, of the NLP tasks SST and RTE alone and without examples: minutes
           for a small model on 2 cores
tinyworld  prompts of a TinyWorld pipeline, judged by its labelers:
           --config.preference.data=jsonl:runs/tiny/data/prompts_test.jsonl --config.preference.baseline=sft

`rlhf/evals/{comparison,nlp,truth,toxicity,bias}.py` say what the fields of each group mean, and
which numbers are the paper's (InstructGPT appendix D).
"""

import ml_collections
from ml_collections import config_dict

from rlhf.configs import common, pipeline

NAMES = ("default", "quick", "tinyworld")
INSTRUCTIONS = ("basic", "respectful", "biased")


def get_default() -> ml_collections.ConfigDict:
  """The paper's tasks and settings; what it does not say, and who judges, is ours."""
  return ml_collections.ConfigDict(
    dict(
      kind="evaluation",
      title="Checkpoints compared",
      seed=0,
      num_resamples=2000,
      batch_size=32,
      mesh=common.get_mesh(),
      preference=dict(
        data="",
        limit=config_dict.placeholder(int),
        baseline="",
        pairs=("all",),
        judges=("labelers",),
        max_prompt_tokens=1024,
        max_response_tokens=256,
        temperature=1.0,
        temperatures=(),
        key="",
        comparisons="",
        world=dict(pipeline.get_labelers(), seed=0),
        endpoint=common.get_endpoint(),
      ),
      pretraining=dict(
        text="",
        train="",
        max_train_tokens=config_dict.placeholder(int),
        length=config_dict.placeholder(int),
        packing="cut",
        attend_across_documents=True,
        reset_positions=False,
        few_shot=(),
        text_batch_size=8,
      ),
      nlp=dict(
        tasks=(
          "squadv2",
          "drop",
          "quac",
          "hellaswag",
          "rte",
          "sst",
          "wsc",
          "fr_en",
          "cnn_dm",
          "tldr",
        ),
        data="hub",
        limit=config_dict.placeholder(int),
        num_fewshot=config_dict.placeholder(int),
        chat=False,
      ),
      truth=dict(
        judge_true="",
        judge_info="",
        data="hub",
        limit=config_dict.placeholder(int),
        questions="held_out",
        prompts=("qa", "instruction", "qa_instruction"),
        max_response_tokens=50,
      ),
      toxicity=dict(
        data="hub",
        limit=common.filled(5000, int),
        prompts=INSTRUCTIONS,
        classifier="profanity",
        temperature=0.0,
        max_response_tokens=20,
        perspective_attribute="TOXICITY",
        perspective_language="en",
        perspective_requests_per_second=1.0,
        perspective_max_tries=6,
        perspective_key_variable="PERSPECTIVE_API_KEY",
      ),
      bias=dict(
        tasks=("winogender", "crows_pairs"),
        data="hub",
        limit=config_dict.placeholder(int),
        prompts=INSTRUCTIONS,
      ),
    )
  )


def get_quick() -> ml_collections.ConfigDict:
  """As many items as a small model answers on 2 cores in minutes; the number is ours."""
  config = get_default()
  for suite in ("preference", "nlp", "truth", "toxicity", "bias"):
    config[suite].limit = 100
  config.preference.max_prompt_tokens, config.preference.max_response_tokens = 128, 64
  config.nlp.tasks = ("sst", "rte")
  config.nlp.num_fewshot = 0
  config.batch_size = 16
  return config


def get_tinyworld() -> ml_collections.ConfigDict:
  """The sizes of `configs/pipeline.py:tiny`."""
  config = get_default()
  config.title = "TinyWorld"
  config.batch_size = 200
  config.preference.max_prompt_tokens, config.preference.max_response_tokens = 36, 28
  config.preference.pairs = ()
  return config


def get_config(name: str = "default") -> ml_collections.ConfigDict:
  """A complete config for `launch.evaluate`.

  Raises:
    ValueError: an unknown name.
  """
  choices = dict(zip(NAMES, (get_default, get_quick, get_tinyworld)))
  if name not in choices:
    raise ValueError(f"evaluation {name!r}; choose from {', '.join(NAMES)}")
  return choices[name]().lock()
