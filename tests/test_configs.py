"""Configs build, fit their dataclasses, have the sizes they say and no knob that does nothing."""

import ast
import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence

import helpers
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from rlhf import checkpoint, networks, optim, ppo, ppo_setup, reward_model, sft, sharding, training
from rlhf.configs import models as model_configs
from rlhf.configs import pipeline as pipeline_configs
from rlhf.configs import ppo as ppo_configs
from rlhf.configs import reward_model as reward_configs
from rlhf.configs import sft as sft_configs
from rlhf.configs import truth_judge as judge_configs
from rlhf.data import batches as batches_lib
from rlhf.data import sources
from rlhf.evals.suites import truth, truth_answers, truth_judge
from rlhf.inference import likelihood
from rlhf.loop import LoopConfig
from rlhf.model import lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.networks import Network
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
from rlhf.tokenization import chat
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import PpoState, TrainState

ROOT = pathlib.Path(__file__).resolve().parent.parent

# ----------------------------------------------------------------------------- every argument

ARGUMENTS = (
  [
    (sft_configs, f"{size},{variant}")
    for size in model_configs.SIZES
    for variant in sft_configs.VARIANTS
  ]
  + [(sft_configs, size) for size in model_configs.SIZES]
  + [
    (module, size)
    for module in (reward_configs, ppo_configs, judge_configs)
    for size in model_configs.SIZES
  ]
  + [(pipeline_configs, name) for name in pipeline_configs.NAMES]
)
ALGORITHMS = {
  sft_configs: sft,
  reward_configs: reward_model,
  ppo_configs: ppo,
  judge_configs: truth_judge,
}


def leaves(config, path=()):
  """Dotted name of every leaf."""
  for name in config:
    if isinstance(config[name], ml_collections.ConfigDict):
      yield from leaves(config[name], (*path, name))
    else:
      yield ".".join((*path, name))


@pytest.mark.parametrize(
  "module",
  [sft_configs, reward_configs, ppo_configs, judge_configs, pipeline_configs],
  ids=lambda module: module.__name__,
)
def test_every_config_builds_is_locked_and_passes_its_own_checks(module):
  for other, argument in ARGUMENTS:
    if other is not module:
      continue
    config = module.get_config(argument)
    assert config.is_locked, argument
    groups = [group for group in config.values() if isinstance(group, ml_collections.ConfigDict)]
    for group in (config, *groups):  # a misspelt field is an error everywhere
      with pytest.raises((KeyError, AttributeError)):
        group.lenght = 1
    if module in ALGORITHMS:
      ALGORITHMS[module].check_config(config)
  assert module.get_config().is_locked  # the default argument


@pytest.mark.parametrize(
  "get_config,argument,message",
  [
    (sft_configs.get_config, "1.4b", "size '1.4b'; choose from 125m, 350m"),
    (sft_configs.get_config, "tiny,sfft", "variant 'sfft'; choose from sft, init, pretrain"),
    (reward_configs.get_config, "huge", "size 'huge'; choose from"),
    (ppo_configs.get_config, "", "size ''; choose from"),
    (pipeline_configs.get_config, "tinny", "pipeline 'tinny'; choose from tiny, real, test"),
  ],
)
def test_an_unknown_argument_is_named_with_those_there_are(get_config, argument, message):
  with pytest.raises(ValueError, match=message):
    get_config(argument)


# Group -> the dataclass that it becomes; the model's ids come from the tokenizer.
GROUPS = {
  "lora": lora.LoraConfig,
  "mesh": MeshConfig,
  "optim": OptimConfig,
  "policy_optim": OptimConfig,
  "value_optim": OptimConfig,
  "loop": LoopConfig,
  "checkpoint": checkpoint.CheckpointConfig,
  "sft": sft.SftConfig,
  "text": training.TextData,
  "demonstrations": sft.DemonstrationData,
  "reward": reward_model.RewardConfig,
  "comparisons": reward_model.ComparisonData,
  "answers": truth_answers.AnswerData,
  "ppo": ppo.PpoConfig,
  "prompts": ppo_setup.PromptData,
  "pretraining": training.TextData,
  "model": functools.partial(transformer.ModelConfig, vocab_size=2, pad_id=0),
  "compute": ComputeConfig,
}


def test_every_group_is_its_dataclass_field_for_field():
  """A field too many or one that is missing raises in the constructor."""
  for module, argument in ARGUMENTS:
    if module not in ALGORITHMS:
      continue
    config = module.get_config(argument)
    groups = [name for name in config if isinstance(config[name], ml_collections.ConfigDict)]
    for name in groups:
      GROUPS[name](**config[name])
    assert set(groups) <= set(GROUPS) and len(groups) >= 5


# ----------------------------------------------------------------------------- sizes

# Brown et al. 2020, Table 2.1, corrected: parameters in all, with 50,257 ids and 2,048 positions.
NAMED = {
  "125m": 125e6,
  "350m": 356e6,
  "760m": 760e6,
  "1.3b": 1.3e9,
  "2.7b": 2.7e9,
  "6.7b": 6.7e9,
  "13b": 13e9,
  "175b": 175e9,
}


@functools.cache
def shapes_of(size: str):
  cfg = transformer.ModelConfig(vocab_size=50_258, pad_id=50_257, **model_configs.get_model(size))
  shapes = jax.eval_shape(functools.partial(transformer.init_params, cfg), jax.random.key(0))
  shapes["head"] = jax.eval_shape(functools.partial(transformer.init_head, cfg), jax.random.key(0))
  return cfg, shapes


PUBLISHED = {"opt-6.7b": 6.66e9, "opt-175b": 175e9, "llama3.1-8b": 8.03e9, "llama3.1-70b": 70.6e9}


@pytest.mark.parametrize("size", PUBLISHED)
def test_a_published_size_has_the_parameters_of_its_name(size: str):
  """Those of the published files; OPT's position table has two rows more than its context."""
  vocab_size, pad_id = model_configs.PUBLISHED[size]["ids"]
  cfg = transformer.ModelConfig(
    vocab_size=vocab_size, pad_id=pad_id, **model_configs.get_model(size)
  )
  shapes = jax.eval_shape(functools.partial(transformer.init_params, cfg), jax.random.key(0))
  count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
  assert count == pytest.approx(PUBLISHED[size], rel=0.003)
  assert size in model_configs.REWARD_SIZES
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    spec = sharding.param_spec(sharding.path_name(path))
    assert all(axis is None or dim % 8 == 0 for axis, dim in zip(spec, leaf.shape)), path


@pytest.mark.parametrize(
  "size", [size for size in model_configs.SIZES if size not in model_configs.PUBLISHED]
)
def test_a_size_has_the_parameters_of_its_name_and_a_rule_for_each(size: str):
  cfg, shapes = shapes_of(size)
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  embed, head = count(shapes["embed"]), count(shapes["head"])
  assert head == cfg.width + 1
  assert embed == (50_304 + cfg.context_length) * cfg.width  # ids in rows of 128
  blocks = count(shapes) - embed - head
  assert (
    blocks
    == cfg.num_block_params
    == (cfg.num_layers * (12 * cfg.width**2 + 13 * cfg.width) + 2 * cfg.width)
  )
  name = model_configs.ALIASES[size] if size in model_configs.ALIASES else size
  if name in NAMED:
    assert blocks + embed == pytest.approx(NAMED[name], rel=0.025)
    assert cfg.context_length == 2048 and cfg.head_size * cfg.num_heads == cfg.width
    assert (
      model_configs.get_compute(size)["dtype"] == "bfloat16"
      and cfg.band_width == 256
      and cfg.num_layers % 2 == 0
    )
  paths = [sharding.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
  for path, leaf in zip(paths, jax.tree.leaves(shapes), strict=True):
    spec = sharding.param_spec(path)  # raises where there is no rule
    assert len(spec) == len(leaf.shape), path
    if name in NAMED:  # what is split divides over 8 devices of that axis (125m has 12 heads: 4)
      ways = 4 if cfg.num_heads % 8 else 8
      assert all(axis is None or dim % ways == 0 for axis, dim in zip(spec, leaf.shape)), path


def test_the_table_of_gpt_3():
  """Layers, width and heads, with XL's heads and 13B's width as corrected."""
  table = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 16),
    "1.3b": (24, 2048, 16),
    "2.7b": (32, 2560, 32),
    "6.7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "175b": (96, 12288, 96),
  }
  for size, expected in table.items():
    cfg, _ = shapes_of(size)
    assert (cfg.num_layers, cfg.width, cfg.num_heads) == expected, size
  assert shapes_of("6b")[0] == shapes_of("6.7b")[0]


def test_numbers_of_the_paper():
  """InstructGPT appendix C; a change here is a departure from the paper."""
  config = ppo_configs.get_config("1.3b")
  p = config.ppo
  assert (p.batch_size, p.minibatch_size, p.num_epochs, p.num_iterations) == (512, 64, 1, 500)
  assert (p.temperature, p.kl_coef, p.kl_controller, p.policy_clip) == (1.0, 0.02, "fixed", 0.2)
  assert (p.ptx_coef, p.ptx_ratio, p.ema_decay, p.gamma, p.lam) == (27.8, 8, 0.992, 1.0, 0.95)
  assert p.value_network == "separate" and p.whiten_advantages and p.value_clip == 0.2
  for optimizer in (config.policy_optim, config.value_optim):
    assert optimizer.schedule == "constant" and optimizer.warmup_steps == 10 * 8
    assert (optimizer.warmup_init_ratio, optimizer.b1, optimizer.b2) == (0.1, 0.9, 0.95)
  assert config.value_optim.learning_rate == 9e-6
  assert ppo_configs.get_config("175b").value_optim.learning_rate == 5e-6
  reward = reward_configs.get_config("6b")
  assert (reward.reward.batch_size, reward.reward.num_epochs) == (64, 1)
  assert (reward.optim.learning_rate, reward.optim.schedule) == (9e-6, "cosine")
  assert reward.optim.final_ratio == 0.1 and not reward.reward.pairs
  for size, batch_size, sft_rate, init_rate in (
    ("1.3b", 32, 9.65e-6, 5e-6),
    ("6b", 32, 9.65e-6, 1.04e-5),
    ("175b", 8, 5.03e-6, 2.45e-6),
  ):
    tuned, init = sft_configs.get_config(size), sft_configs.get_config(f"{size},init")
    assert (tuned.sft.batch_size, tuned.sft.num_epochs, tuned.sft.dropout_rate) == (
      batch_size,
      16,
      0.2,
    )
    assert tuned.sft.keep_epochs and tuned.optim.learning_rate == sft_rate
    assert (init.sft.batch_size, init.sft.num_epochs, init.text.fraction) == (batch_size, 2, 0.1)
    assert init.optim.learning_rate == init_rate and tuned.optim.warmup_steps == 0
  flan, t0 = (sft_configs.get_config(f"175b,{variant}") for variant in ("flan", "t0"))
  assert (flan.sft.batch_size, t0.sft.batch_size) == (64, 128)
  assert (flan.demonstrations.max_examples, t0.demonstrations.max_examples) == (None, 1_280_000)
  for collection in (flan, t0):
    assert collection.optim.learning_rate == 4e-6 and collection.sft.num_epochs == 1
    assert (collection.optim.schedule, collection.optim.final_ratio) == ("cosine", 0.1)
    assert 896_000 % collection.sft.keep_rows == 0


# ----------------------------------------------------------------------------- no dead knobs
#
# 1. A run of `train` up to its first step, with the heavy parts replaced by ones that write down
#    what they are given, must differ where a leaf differs.
# 2. What only the step itself reads is given to it whole, as a dataclass, and each field of that
#    must change the program that is traced from it (or the number that is computed).

TEXTS = [
  "The cat sat on the mat, and the dog sat by it.",
  "A b c.",
  "One two three four five six.",
  "zzz",
] * 3
DEMONSTRATIONS = [
  {"prompt": "hi", "completion": "you"},
  {"prompt": "a", "completion": "b c"},
  {"prompt": "a prompt that is too long for a row", "completion": "ok"},
  {"prompt": "c", "completion": "an answer that is too long for a row"},
] * 4
COMPARISONS = [
  {"prompt": "p", "completions": ["x", "yy", "z"], "ranks": [1, 2, 2]},
  {
    "prompt": "q",
    "completions": ["one", "an answer that is much too long for it", "two"],
    "ranks": [2, 1, 3],
  },
] * 4
PROMPTS = [{"prompt": "a"}, {"prompt": "bc"}, {"prompt": "a prompt too long for its slots"}] * 4
JUDGED = {
  asked: [
    {
      "prompt": truth.judge_prompt(asked, question, "b"),
      "completion": " no" if question < "m" else " yes",
    }
    for question in "abcdefghijklmnopqrstuvwxyz"
  ]
  for asked in truth.ASKS
}
RECORDS = {
  "text": [{"text": text} for text in TEXTS],
  "demonstration": DEMONSTRATIONS,
  "comparison": COMPARISONS,
  "prompt": PROMPTS,
  # Two sources of a mixture, by their names.
  **{
    name: [{"prompt": f"{name} {i}", "completion": "b"} for i in range(12)]
    for name in ("one", "two")
  },
}


class Stop(Exception):
  """The first step has been reached."""


def digest(value) -> str:
  """Of arrays, nested in whatever holds them."""
  if dataclasses.is_dataclass(value):
    return digest([getattr(value, field.name) for field in dataclasses.fields(value)])
  if isinstance(value, dict):
    return digest(sorted(value.items()))
  if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
    return hashlib.sha1("".join(digest(item) for item in value).encode()).hexdigest()
  if isinstance(value, np.ndarray):
    return hashlib.sha1(value.tobytes() + str(value.shape).encode()).hexdigest()
  return hashlib.sha1(repr(value).encode()).hexdigest()


CHAT = chat.ChatTemplate(
  head=(),
  before="Q",
  after="",
  tail=("A",),
  strips_left=False,
  strips_right=False,
  completion_prefix="",
  end=None,
)


def dry_run(algorithm, config, workdir, monkeypatch) -> tuple[list[str], tuple]:
  """(what the parts of `train` were given, the arguments of its step)."""
  seen, step = [], []

  def replace(owner, name, keep, replacement=None):
    """Writes down what `keep(args, kwargs, result)` makes of each call."""
    original = getattr(owner, name) if replacement is None else replacement

    def wrapper(*args, **kwargs):
      result = original(*args, **kwargs)
      seen.append(f"{name}: {keep(args, kwargs, result)}")
      return result

    monkeypatch.setattr(owner, name, wrapper)

  def load(directory, compute, mesh, *, kind, flag, shape=None):
    fields = dict(sft_configs.get_config("test").model) | dict(shape if shape else {})
    cfg = transformer.ModelConfig(vocab_size=258, pad_id=1, compute=compute, **fields)
    return Network(cfg=cfg, params={directory: jnp.zeros(())}, tokenizer=tokenizer(), metadata={})

  def create(cfg, tokenizer, key, mesh):
    cfg = dataclasses.replace(cfg, vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id)
    return Network(cfg=cfg, params={}, tokenizer=tokenizer, metadata={})

  def read(spec, kind, *, cache_dir, on_bad):
    return (JUDGED if spec in JUDGED else RECORDS)[spec if spec in {**JUDGED, **RECORDS} else kind]

  def train_network(config, workdir, groups, trainee, update, batches, **given):
    step.extend(update.args)
    evaluate, after_step = given.pop("evaluate"), given.pop("after_step", None)
    cursor = batches.num_steps(1), digest(batches[0])
    seen.append(f"train_network: {groups} {cursor} {config.optim} {config.seed} {given}")
    evaluate({})
    state = TrainState(step=jnp.int32(0), params={}, opt_state={})
    for number in range(1, given["total_steps"] + 1 if after_step else 0):
      after_step(state, number)
    raise Stop

  def run(config, workdir, groups, *, state, train_step, evaluate, **given):
    seen.append(f"run: {groups} {given}")
    evaluate(state, 0)
    train_step(state, 0)

  def collect(*args, **kwargs):
    step.extend(args)
    raise Stop

  ppo_state = PpoState(
    train=TrainState(step=jnp.int32(0), params={"policy": {}}, opt_state={}),
    ema_params={},
    kl_coef=jnp.float32(0),
  )
  given = lambda args, kwargs, result: (args, kwargs)
  with_rows = lambda args, kwargs, result: (digest(args[2]), kwargs)
  monkeypatch.setattr(Tokenizer, "chat", CHAT)
  replace(sharding, "make_mesh", given)
  replace(networks, "load", given, load)
  replace(networks, "create", lambda args, kwargs, _: (args[0], args[1].num_ids), create)
  replace(sources, "load", lambda args, kwargs, _: (args, kwargs["on_bad"]), read)
  replace(training, "printed", lambda args, kwargs, rows: digest(rows))
  replace(checkpoint, "export_params", lambda args, kwargs, _: args[0].name, lambda *_, **__: None)
  monkeypatch.setattr(training, "train_network", train_network)
  if algorithm is ppo:
    monkeypatch.setattr(training, "run", run)
    monkeypatch.setattr(ppo, "collect", collect)
    replace(optim, "make_optimizer", given)
    replace(batches_lib, "Batches", lambda args, kwargs, found: digest(found[0]))
    replace(
      ppo_setup, "init_state", lambda args, kwargs, _: kwargs, lambda *args, **kwargs: ppo_state
    )
    numbers = dict.fromkeys(ppo.VALIDATION, 0)
    replace(
      ppo,
      "validate",
      lambda args, kwargs, _: (digest(args[1]), kwargs),
      lambda *args, **kwargs: [numbers],
    )
  elif algorithm is reward_model:
    scores = np.zeros((1, 2)), np.asarray([[1, 2]]), np.ones((1, 2))
    replace(reward_model, "score_comparisons", with_rows, lambda *args, **kwargs: scores)
  elif algorithm is truth_judge:
    monkeypatch.setattr(truth_answers, "read_questions", lambda path: frozenset())
    replace(truth_answers, "draw", lambda args, kwargs, _: args[1])
    replace(
      truth_answers, "accuracy", lambda args, kwargs, _: (args[1], kwargs), lambda *_, **__: {}
    )
  else:
    replace(likelihood, "negative_log_likelihood", with_rows, lambda *args, **kwargs: 0.0)
  with pytest.raises(Stop):
    algorithm.train(config, workdir)
  return seen, tuple(step)


@functools.cache
def tokenizer() -> Tokenizer:
  return Tokenizer.train_bpe(TEXTS, 258)


def small_config(name: str):
  """The `test` size with every group that the algorithm has, and data of a few tokens."""
  config = {
    "sft": lambda: sft_configs.get_config("test,init"),
    "reward_model": lambda: reward_configs.get_config("test"),
    "truth_judge": lambda: judge_configs.get_config("test"),
    "ppo": lambda: ppo_configs.get_config("test"),
  }[name]()
  config = config.unlock()
  config.model.context_length = 40
  if "length" in config:
    config.length = 40
  if name == "sft":
    config.tokenizer = "bpe:258"
    config.sft.batch_size, config.sft.microbatch_size = 8, 4
  if name == "reward_model":
    config.reward.batch_size, config.reward.microbatch_size = 8, 4
    config.init_from = "base"
  if name == "truth_judge":
    config.sft.batch_size, config.sft.microbatch_size, config.init_from = 8, 4, "base"
    config.answers.update(true="true", informative="informative", num_valid=1, num_test=3)
  if name == "ppo":
    config.policy_from, config.reward_from = "init", "rm"
    p = config.ppo
    p.batch_size, p.minibatch_size, p.microbatch_size, p.ptx_microbatch_size = 16, 8, 4, 8
    p.max_prompt_tokens, p.max_response_tokens, p.ptx_length, p.num_iterations = 20, 12, 24, 4
  return config


# Values that work as well as those they replace; other numbers double, and other truths turn.
OTHER = {
  "seed": 1,
  "init_from": "elsewhere",
  "policy_from": "elsewhere",
  "reward_from": "elsewhere",
  "reference_from": "elsewhere",
  "ppo.rollout_slots": 2,
  "reward_others": ("elsewhere",),
  "tokenizer": "bpe:270",
  "length": 36,
  "model.context_length": 60,
  "model.init_std": 0.1,
  "compute.dtype": "bfloat16",
  "compute.remat": "block",
  "compute.logprob_chunk": 7,
  "compute.scan_unroll": 1,
  "model.band_width": 8,
  "compute.attention": "splash",
  "compute.decode_split": "fsdp_tensor",
  "model.layer_pattern": "dense,banded",
  "model.num_kv_heads": 2,
  "model.head_size": 8,
  "model.mlp_width": 24,
  "model.positions": "rotary",
  "model.position_offset": 2,
  "model.rope_base": 50.0,
  "model.rope_fraction": 0.5,
  "model.band_rope_base": 7.0,
  "model.rope_scaling": "linear",
  "model.rope_factor": 3.0,
  "model.rope_low_freq_factor": 2.0,
  "model.rope_high_freq_factor": 5.0,
  "model.rope_original_context": 16,
  "model.norm": "rms",
  "model.norm_offset": 1.0,
  "model.norm_placement": "post",
  "model.activation": "swiglu",
  "model.attention_scale": 0.3,
  "model.embed_width": 8,
  "lora.rank": 2,
  "lora.targets": "mlp",
  "mesh.data": 8,
  "mesh.fsdp": 2,
  "mesh.tensor": 2,
  "sft.max_steps": 1,
  "sft.dropout_rate": 0.3,
  "sft.microbatch_size": 2,
  "sft.batch_size": 16,
  "text.fraction": 0.5,
  "text.max_tokens": 70,
  "pretraining.max_tokens": 70,
  "text.packing": "best_fit",
  "pretraining.packing": "best_fit",
  "demonstrations.packing": "one_per_row",
  "demonstrations.overlong": "truncate_left",
  "demonstrations.prompt_loss_weight": 0.25,
  "demonstrations.max_examples": 9,
  "demonstrations.weights": (1.0, 2.0),
  "sft.keep_rows": 8,
  "comparisons.overlong": "truncate_completion",
  "comparisons.overlong_demonstrations": "truncate_right",
  "prompts.overlong": "truncate_left",
  "reward.microbatch_size": 2,
  "reward.batch_size": 16,
  "answers.true": "",
  "answers.informative": "",
  "answers.test": "other",
  "answers.test_fraction": 0.25,
  "answers.on_bad": "skip",
  "checkpoint.keep_every": 5,
  "checkpoint.best_metric": "validation/loss",
  **{
    f"{group}.{name}": value
    for group in ("optim", "policy_optim", "value_optim")
    for name, value in dict(
      schedule="linear", warmup_steps=3, final_ratio=0.2, b1=0.8, b2=0.9, weight_decay=0.1
    ).items()
  },
  **{
    f"{group}.{field}": value
    for group in ("demonstrations", "comparisons", "prompts")
    for field, value in (
      ("prompt_suffix", " :"),
      ("completion_prefix", "  "),
      ("prompt_format", "chat"),
    )
  },
  **{
    f"{group}.{field}": "other"
    for group in ("text", "demonstrations", "comparisons", "prompts", "pretraining")
    for field in ("train", "valid", "demonstrations")
  },
  **{
    f"{group}.on_bad": "skip"
    for group in ("text", "demonstrations", "comparisons", "prompts", "pretraining")
  },
  "ppo.ptx_coef": 5.0,
  "ppo.minibatch_size": 16,
  "ppo.microbatch_size": 2,
  "ppo.temperature": 0.5,
  "ppo.kl_controller": "adaptive",
  "ppo.gamma": 0.5,
  "ppo.lam": 0.5,
  "ppo.value_clip": None,
  "ppo.value_network": "shared",
  "ppo.value_init": "scratch",
  "ppo.missing_end": "replace",
  "ppo.missing_end_penalty": -1.0,
  "ppo.policy_reduction": "sequence_mean",
  "ppo.ptx_reduction": "sequence_mean",
  "ppo.ema_decay": 0.5,
  "ppo.max_prompt_tokens": 16,
  "ppo.max_response_tokens": 10,
  "ppo.ptx_length": 20,
  "ppo.reward_ensemble": "min",
  "ppo.reward_variance_coef": 0.5,
}


# Fields that a field needs beside it, in the config and in the changed one.
ROTARY = dict(positions="rotary", rope_base=100.0, rope_fraction=1.0)
LLAMA3 = ROTARY | dict(
  rope_scaling="llama3",
  rope_factor=2.0,
  rope_low_freq_factor=1.0,
  rope_high_freq_factor=4.0,
  rope_original_context=32,
)
NEEDED = {
  "demonstrations.weights": dict(train=("one", "two"), weights=(1.0, 1.0), packing="one_per_row"),
  "model.num_kv_heads": dict(num_heads=4),
  "model.norm_offset": dict(norm="rms"),
  "model.rope_base": ROTARY,
  "model.rope_fraction": ROTARY,
  "model.band_rope_base": ROTARY,
  **{f"model.{name}": LLAMA3 for name in LLAMA3 if name not in ROTARY},
}
# Fields that only the changed one needs.
NEEDED_BY_CHANGE = {
  "model.positions": ROTARY,
  "model.rope_scaling": dict(
    rope_low_freq_factor=None, rope_high_freq_factor=None, rope_original_context=None
  ),
}


def changed(name: str, value):
  if name in OTHER:
    return OTHER[name]
  if isinstance(value, bool):
    return not value
  assert isinstance(value, (int, float)) and value != 0, f"say in OTHER what else {name} could be"
  return value * 2


def set_leaf(config, name: str, value) -> None:
  *groups, field = name.split(".")
  for group in groups:
    config = config[group]
  with config.unlocked(), config.ignore_type():
    config[field] = value


def get_leaf(config, name: str):
  return functools.reduce(lambda group, field: group[field], name.split("."), config)


# What the step reads of each group: group -> fields, each with the view that it must change.
def jaxpr_of(function, *args) -> str:
  jaxpr = jax.make_jaxpr(function)(*args)
  return f"{jaxpr}\n{digest([np.asarray(const) for const in jaxpr.consts])}"


@functools.cache
def model_view(cfg, part: str) -> str:
  """Initialisation, the gradient of the loss, or a decode step."""
  if part == "init":
    return jaxpr_of(functools.partial(transformer.init_params, cfg), jax.random.key(0))
  params = jax.eval_shape(functools.partial(transformer.init_params, cfg), jax.random.key(0))
  batch = helpers.make_lm_batch(8, 128 if cfg.context_length >= 128 else 12, 0)
  prompts = helpers.make_prompts(8, 4, 0)
  gradient = jax.grad(
    lambda params: transformer.lm_loss(cfg, params, batch, use_segments=True).total
  )

  def two_tokens(params):
    params = transformer.decoding_params(cfg, params)
    _, cache = transformer.prefill(cfg, params, prompts.tokens_BP, prompts.mask_BP, num_slots=5)
    return transformer.decode_step(cfg, params, cache, prompts.tokens_BP[:, 0])

  with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
    return jaxpr_of(gradient if part == "gradient" else two_tokens, params)


@functools.cache
def optim_view(cfg) -> str:
  tx = optim.make_optimizer(cfg, 100)
  params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
  state = tx.init(params)
  return jaxpr_of(lambda grads: tx.update(grads, state, params), params)


@functools.cache
def small_nets():
  cfg = helpers.model_config(num_layers=1, band_width=None)
  return ppo.Models(policy=cfg, reward=cfg), helpers.make_params(cfg, 0, head=True)


@functools.cache
def sft_view(p) -> str:
  models, params = small_nets()
  state = optim.init_train_state(optax.sgd(1.0), params)
  update = functools.partial(sft.sft_update, models.policy, p, optax.sgd(1.0), use_segments=True)
  return jaxpr_of(update, state, helpers.make_lm_batch(8, 12, 0), jax.random.key(0))


@functools.cache
def reward_view(p) -> str:
  models, params = small_nets()
  state = optim.init_train_state(optax.sgd(1.0), params)
  return jaxpr_of(
    functools.partial(reward_model.reward_update, models.reward, p, optax.sgd(1.0)),
    state,
    helpers.make_comparisons(8, 3, 8, 0),
  )


@functools.cache
def gradient_view(p) -> str:
  models, params = small_nets()
  policy = {name: leaf for name, leaf in params.items() if name != "head"}
  value = {"head": params["head"]} if p.value_network == "shared" else params
  return jaxpr_of(
    functools.partial(ppo.minibatch_gradient, models, p, use_segments=True),
    {"policy": policy, "value": value},
    helpers.make_ppo_batch(8, 11, 0),
    helpers.make_lm_batch(p.num_ptx_per_minibatch, 13, 0),
  )


@functools.cache
def rollout_view(p) -> str:
  models, params = small_nets()
  rollout = functools.partial(ppo.rollout, models, p, eot_id=helpers.EOT)
  policy = {name: leaf for name, leaf in params.items() if name != "head"}
  return jaxpr_of(
    rollout,
    {"policy": policy, "value": params},
    policy,
    (params, params),
    helpers.make_prompts(p.batch_size, 5, 0),
    jax.random.key(0),
  )


@functools.cache
def advantages_view(p) -> str:
  ones = jnp.ones((4, 6))
  rollout = ppo.Rollout(
    tokens_BT=ones.astype(jnp.int32),
    mask_BT=ones,
    response_mask_BT=ones,
    logprob_BT=ones,
    decode_logprob_BT=ones,
    ref_logprob_BT=ones,
    value_BT=ones,
    score_B=ones[:, 0],
    finished_B=ones[:, 0] > 0,
  )
  return jaxpr_of(functools.partial(ppo.advantages, p), rollout, jnp.float32(0.1))


def update_view(p, monkeypatch) -> str:
  """The order of rows, the steps and the moving average; the gradient itself is left out."""

  def gradient(models, p, params, batch, ptx, frozen, **unused):
    return params, {"count": jnp.float32(1)}, jnp.sum(batch.advantage_BT)

  monkeypatch.setattr(ppo, "minibatch_gradient", gradient)
  params = {"policy": {"w": jnp.ones(2)}, "value": {"w": jnp.ones(2)}}
  tx = optax.sgd(1.0)
  state = PpoState(
    train=TrainState(step=jnp.int32(0), params=params, opt_state=tx.init(params)),
    ema_params=params["policy"],
    kl_coef=jnp.float32(0.1),
  )
  return jaxpr_of(
    functools.partial(ppo.ppo_update, None, p, tx, use_segments=True),
    state,
    jax.tree.map(jnp.asarray, helpers.make_ppo_batch(p.batch_size, 6, 0)),
    None,
    jax.random.key(0),
  )


@functools.cache
def control_view(p) -> str:
  state = lambda kl_coef: PpoState(train=None, ema_params=None, kl_coef=kl_coef)
  moves = jaxpr_of(lambda kl_coef, kl: ppo.next_state(p, state(kl_coef), kl).kl_coef, 0.1, 5.0)
  start = ppo_setup.init_state(
    None,
    dataclasses.replace(p, value_network="separate"),
    optax.sgd(1.0),
    {"w": jnp.ones(1)},
    {"w": jnp.ones(1)},
    None,
  )
  return f"{moves} {start.kl_coef}"


@functools.cache
def value_view(p) -> str:
  models, params = small_nets()
  policy = {name: leaf for name, leaf in params.items() if name != "head"}
  return jaxpr_of(
    functools.partial(ppo_setup.init_value, models, p), policy, params, jax.random.key(0)
  )


def alarm_view(p) -> str:
  high = {"ppo/ratio_error_first": 150.0, "objective/kl": 150.0, "rollout/decode_gap": 150.0}
  return str(ppo_setup.alarms(p, high))


PPO_VIEWS = {
  "reward_ensemble": rollout_view,
  "reward_variance_coef": rollout_view,
  "temperature": rollout_view,
  "max_response_tokens": rollout_view,
  "rollout_slots": rollout_view,
  "microbatch_size": gradient_view,
  "policy_clip": gradient_view,
  "value_clip": gradient_view,
  "value_coef": gradient_view,
  "value_network": gradient_view,
  "value_init": value_view,
  "policy_reduction": gradient_view,
  "ptx_coef": gradient_view,
  "ptx_microbatch_size": gradient_view,
  "ptx_reduction": gradient_view,
  "ptx_ratio": gradient_view,
  "gamma": advantages_view,
  "lam": advantages_view,
  "whiten_advantages": advantages_view,
  "whiten_rewards": advantages_view,
  "missing_end": advantages_view,
  "missing_end_penalty": advantages_view,
  "minibatch_size": update_view,
  "num_epochs": update_view,
  "ema_decay": update_view,
  "kl_coef": control_view,
  "kl_controller": control_view,
  "kl_target": control_view,
  "kl_horizon": control_view,
  "alarm_ratio_error": alarm_view,
  "alarm_kl": alarm_view,
  "alarm_decode_gap": alarm_view,
}
# Switched on, so that what belongs to them shows.
PPO_SWITCHES = {
  "kl_target": dict(kl_controller="adaptive"),
  "kl_horizon": dict(kl_controller="adaptive"),
  "reward_variance_coef": dict(reward_ensemble="mean_minus_variance"),
  "missing_end_penalty": dict(missing_end="replace"),
}
OPTIM_SWITCHES = {"warmup_init_ratio": dict(warmup_steps=5), "final_ratio": dict(schedule="cosine")}
# One pattern of two layers leaves nothing to unroll.
# The kernels of accelerators take whole blocks of half precision.
MODEL_SWITCHES = {
  "scan_unroll": dict(band_width=None),
  "attention": dict(dtype="bfloat16", context_length=128),
}


STEP_GROUPS = {
  "sft": sft_view,
  "reward": reward_view,
  "model": model_view,
  "compute": model_view,
  "optim": optim_view,
  "policy_optim": optim_view,
  "value_optim": optim_view,
  "ppo": None,
}


def step_changes(group: str, field: str, old, new, monkeypatch) -> bool:
  """Whether the step, given another value of the field, is another program."""
  view = PPO_VIEWS[field] if group == "ppo" else STEP_GROUPS[group]
  if view is update_view:
    view = functools.partial(update_view, monkeypatch=monkeypatch)
  if group == "compute":
    shape = GROUPS["model"](**small_config("sft").model)
    old, new = (dataclasses.replace(shape, compute=compute) for compute in (old, new))
  replace = helpers.replace if view is model_view else dataclasses.replace
  switches = {"ppo": PPO_SWITCHES, optim_view: OPTIM_SWITCHES, model_view: MODEL_SWITCHES}
  for which in (group, view):
    if which in switches and field in switches[which]:
      old, new = (replace(p, **switches[which][field]) for p in (old, new))
  if view is model_view:  # the quick parts first: most fields show there
    return any(view(old, part) != view(new, part) for part in ("init", "gradient", "decode"))
  return view(old) != view(new)


# Read by `train` alone: the step does not see them.  Of these the dry run must differ.
BY_TRAIN = {
  "sft": {"batch_size", "num_epochs", "max_steps", "keep_epochs", "keep_rows"},
  "reward": {"batch_size", "num_epochs", "pairs"},
  "ppo": {"batch_size", "num_iterations", "max_prompt_tokens", "ptx_length"},
}
# Given whole to another room, which must read each field.
READERS = {
  "lora": ("model/lora.py", lora.LoraConfig),
  "loop": ("loop.py", LoopConfig),
  "checkpoint": ("checkpoint.py", checkpoint.CheckpointConfig),
  "mesh": ("sharding.py", MeshConfig),
}


@pytest.mark.parametrize(
  "name", ["sft", "reward_model", "ppo", pytest.param("truth_judge", marks=pytest.mark.slow)]
)
def test_no_knob_is_dead(name: str, tmp_path, capsys):
  algorithm = {"sft": sft, "reward_model": reward_model, "ppo": ppo, "truth_judge": truth_judge}[
    name
  ]
  config = small_config(name)

  def observe(config, number):
    with pytest.MonkeyPatch.context() as monkeypatch:
      return dry_run(algorithm, config, tmp_path / f"{number}", monkeypatch)

  (before, step), again = observe(config, 0), observe(config, 1)
  assert before == again[0]  # equal configs are seen as equal

  dead = []
  for number, leaf in enumerate(leaves(config), 2):
    if leaf == "kind":  # says which algorithm reads the config
      continue
    group, _, field = leaf.rpartition(".")
    base, other = (
      ml_collections.ConfigDict(config, convert_dict=True).copy_and_resolve_references()
      for _ in range(2)
    )
    for needed, into in ((NEEDED, (base, other)), (NEEDED_BY_CHANGE, (other,))):
      for needed_field, value in (needed[leaf] if leaf in needed else {}).items():
        for changing in into:
          set_leaf(changing, f"{group}.{needed_field}", value)
    if group == "lora" and name == "sft":  # adapters stand beside a trained network
      base.init_from = other.init_from = "base"
    if leaf == "demonstrations.weights":  # what a mixture has is read once
      base.sft.num_epochs = other.sft.num_epochs = 1
    set_leaf(other, leaf, changed(leaf, get_leaf(config, leaf)))
    unchanged = before
    if field == "prompt_format":  # the chat template leaves no room for the other two
      plain = ml_collections.ConfigDict(config, convert_dict=True).copy_and_resolve_references()
      for one in (plain, other):
        set_leaf(one, f"{group}.prompt_suffix", "")
        set_leaf(one, f"{group}.completion_prefix", "")
      unchanged, _ = observe(plain, f"{number}_plain")
    in_step = group in STEP_GROUPS and not (group in BY_TRAIN and field in BY_TRAIN[group])
    alive = True
    if in_step:
      with pytest.MonkeyPatch.context() as monkeypatch:
        alive = step_changes(
          group, field, *(GROUPS[group](**c[group]) for c in (base, other)), monkeypatch
        )
    if not in_step or "optim" in group:  # an optimizer is not among what the step is given
      seen = observe(base, -number)[0] if leaf in NEEDED or group == "lora" else unchanged
      alive = alive and observe(other, number)[0] != seen
    if not alive:
      dead.append(leaf)
  capsys.readouterr()
  assert not dead
  # What the views were given is what the step is given.
  given = {type(arg): arg for arg in step if dataclasses.is_dataclass(arg)}
  group = {"sft": "sft", "reward_model": "reward", "ppo": "ppo", "truth_judge": "sft"}[name]
  assert given[GROUPS[group]] == GROUPS[group](**config[group])
  cfg = given[ppo.Models].policy if name == "ppo" else given[transformer.ModelConfig]
  assert cfg == dataclasses.replace(
    networks.configured(config), vocab_size=cfg.vocab_size, pad_id=cfg.pad_id
  )


@pytest.mark.parametrize("reference_from,expected", [("", "init"), ("base", "base")])
def test_the_kl_reference_is_the_initial_policy_or_the_export_that_is_named(
  reference_from, expected, tmp_path, monkeypatch, capsys
):
  config = small_config("ppo")
  config.reference_from = reference_from
  _, step = dry_run(ppo, config, tmp_path, monkeypatch)
  capsys.readouterr()
  _, _, _, ref_params, reward_params, *_ = step
  assert (set(ref_params), set(reward_params)) == ({expected}, {"rm"})


@pytest.mark.parametrize("group", READERS)
def test_rooms_read_each_field_of_what_they_are_given(group: str):
  file, cls = READERS[group]
  tree = ast.parse((ROOT / "rlhf" / file).read_text(encoding="utf-8"))
  inside = {
    id(node)
    for definition in ast.walk(tree)
    if isinstance(definition, ast.ClassDef) and definition.name == cls.__name__
    for node in ast.walk(definition)
  }
  read = {
    node.attr
    for node in ast.walk(tree)
    if isinstance(node, ast.Attribute)
    and isinstance(node.ctx, ast.Load)
    and id(node) not in inside
    and "cfg" in ast.unparse(node.value)
  }
  assert {field.name for field in dataclasses.fields(cls)} <= read


def test_one_flag_gives_the_policy_its_shape_in_every_stage():
  config = pipeline_configs.get_config("tiny")
  config.base.model.width = 36
  stages = ("base", "sft", "ppo_init", "ppo", "base_more_pretraining")
  widths = {stage: config[stage].model.width for stage in (*stages, "reward_model")}
  assert widths == dict.fromkeys(stages, 36) | {"reward_model": 128}
