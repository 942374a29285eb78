"""The programs of a PPO-ptx job as shapes: what `launch.check` hands to a compiler.

Nothing is allocated: parameters, states and batches are `jax.ShapeDtypeStruct`s with the shardings
that the job gives them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf import optim, ppo, ppo_setup, sharding
from rlhf.model import attention, lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.optim import OptimConfig
from rlhf.ppo import Models, PpoConfig
from rlhf.types import LmBatch, Metric, PpoBatch, PromptBatch

GPT2_IDS = dict(vocab_size=50_258, pad_id=50_257)  # 50,257 of GPT-2's BPE and the pad id
_EOT_ID = 50_256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """Static shapes of a job, and its arrays as shapes with their layouts."""

  mesh: Mesh
  models: Models
  p: PpoConfig
  tx: Any
  init: Callable
  state: Any
  state_layout: Any
  reference: Any
  reward: Any
  frozen: Any
  use_segments: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One jitted function and the shapes it is called with.

  Attributes:
    flops: of the whole mesh for one call (`flop_formula` says how they are counted).
    holds: which of the job's resident arrays are among its arguments, as trees.
  """

  name: str
  function: Any
  arguments: tuple
  flops: float
  holds: tuple


def model_configs(
  config, reward_group: dict[str, Any], platform: str, lora_scale: float, ids: dict[str, int]
) -> Models:
  """Policy and reward model; the reward model computes as the policy does."""
  compute = ComputeConfig(**config.compute)
  compute = dataclasses.replace(compute, attention=attention.choose(compute.attention, platform))
  fixed: dict[str, Any] = dict(ids, lora_scale=lora_scale, compute=compute)
  # The reward model has no output but its head.
  reward = ModelConfig(**fixed, **dict(reward_group) | {"tied_output": True})
  return Models(policy=ModelConfig(**fixed, **config.model), reward=reward)


def make_job(
  config, reward_group: dict[str, Any], mesh: Mesh, platform: str, ids: dict[str, int] | None = None
) -> Job:
  """The arrays that are resident through a whole job, as shapes.

  Args:
    ids: `vocab_size` and `pad_id` of the tokenizer; None for GPT-2's.

  Raises:
    ValueError: a parameter has no sharding rule, or a row is longer than a context.
  """
  p, lora_cfg = PpoConfig(**config.ppo), LoraConfig(**config.lora)
  models = model_configs(
    config, reward_group, platform, lora.scale(lora_cfg), GPT2_IDS if ids is None else ids
  )
  ppo_setup.check_lengths(p, models)
  key = jax.random.key(0)
  policy = jax.eval_shape(functools.partial(transformer.init_params, models.policy), key)
  reward = jax.eval_shape(functools.partial(transformer.init_params, models.reward), key)
  reward["head"] = jax.eval_shape(functools.partial(transformer.init_head, models.reward), key)
  steps = p.num_iterations * p.updates_per_iteration
  tx = optim.per_network(
    dict(
      policy=optim.make_optimizer(OptimConfig(**config.policy_optim), steps),
      value=optim.make_optimizer(OptimConfig(**config.value_optim), steps),
    )
  )
  init = functools.partial(ppo_setup.init_state, models, p, tx, lora_cfg=lora_cfg)
  state = jax.eval_shape(init, policy, reward, key)
  layout = sharding.state_shardings(mesh, state)
  reference = _placed(policy, sharding.param_shardings(mesh, policy))
  reward = _placed(reward, sharding.param_shardings(mesh, reward))
  frozen = ppo_setup.frozen_networks(p, lora_cfg, reference, reward)
  if config.reward_others:
    reward = (reward,) * (1 + len(config.reward_others))
  return Job(
    mesh=mesh,
    models=models,
    p=p,
    tx=tx,
    init=init,
    state=_placed(state, layout),
    state_layout=layout,
    reference=reference,
    reward=reward,
    frozen=frozen,
    use_segments=not config.pretraining.attend_across_documents,
  )


def _placed(shapes, layout):
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, layout
  )


def bytes_per_device(tree) -> int:
  """Bytes of the shards that one device holds."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def cache_bytes_per_device(job: Job) -> int:
  """Bytes of keys and values of a whole batch at full length, on one device."""
  cfg, p = job.models.policy, job.p
  slots = p.batch_size * (p.max_prompt_tokens + p.max_response_tokens)
  itemsize = jnp.dtype(cfg.compute.dtype).itemsize
  assert cfg.num_kv_heads is not None and cfg.head_size is not None
  size = cfg.num_kv_heads * cfg.head_size
  return 2 * cfg.num_layers * slots * size * itemsize // job.mesh.size


def resident(job: Job) -> dict[str, int]:
  """Bytes on one device of what lives through the whole job."""
  train = job.state.train
  return {
    "policy": bytes_per_device(train.params["policy"]),
    "value network": bytes_per_device(train.params["value"]),
    "optimizer state": bytes_per_device(train.opt_state),
    "moving average": bytes_per_device(job.state.ema_params),
    "reference": bytes_per_device(job.reference),
    "reward model": bytes_per_device(job.reward),
  }


# ----------------------------------------------------------------------------- FLOPs


def flop_formula() -> str:
  return (
    "FLOPs: a forward pass takes 2 per parameter outside the embeddings and token, 4 x "
    "heads x head size per layer and (query, key) that attends (half of a row's pairs, in a "
    "band at most its width for each query; a decode step is counted against a full cache), "
    "2 x vocabulary x width per token with logits; a backward pass twice that, and "
    "recomputing one more forward pass"
  )


def _token_flops(cfg: ModelConfig, dense_keys: float, *, logits: bool) -> float:
  """Of one token's forward pass.

  Args:
    cfg: the network.
    dense_keys: keys of a query in a dense layer; a banded one has at most its width.
    logits: whether the token has logits.
  """
  assert cfg.head_size is not None
  banded = cfg.num_banded_layers
  band_keys = 0 if cfg.band_width is None else min(cfg.band_width, dense_keys)
  keys = (cfg.num_layers - banded) * dense_keys + banded * band_keys
  return (
    2 * cfg.num_block_params
    + 4 * cfg.num_heads * cfg.head_size * keys
    + (2 * cfg.padded_vocab_size * cfg.width if logits else 0)
  )


def _forward_flops(cfg: ModelConfig, num_rows: int, length: int, *, logits: bool) -> float:
  return num_rows * length * _token_flops(cfg, length / 2, logits=logits)


def _train_flops(cfg: ModelConfig, num_rows: int, length: int, *, logits: bool) -> float:
  passes = 3 if cfg.compute.remat == "none" else 4
  return passes * _forward_flops(cfg, num_rows, length, logits=logits)


def _value_passes(p: PpoConfig) -> int:
  """A shared value head reads the policy's own pass."""
  return 0 if p.value_network == "shared" else 1


# ----------------------------------------------------------------------------- programs


def all_programs(job: Job) -> list[Program]:
  """The two programs that PPO runs ("rollout", "update"), the parts of the first, and the start."""
  return [
    _restore(job),
    _prefill(job),
    _decode_step(job),
    _scoring(job),
    _rollout(job),
    _update(job),
  ]


def lower(job: Job, program: Program):
  """The program, lowered for the mesh's devices."""
  with jax.set_mesh(job.mesh):
    return program.function.lower(*program.arguments)


def _rows(job: Job, shape, dtype=jnp.float32, leading: int = 0):
  spec = P(*(None,) * leading, sharding.BATCH_AXES)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(job.mesh, spec))


def _whole(job: Job, shape=(), dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.replicated(job.mesh))


def _key(job: Job):
  key = jax.eval_shape(lambda: jax.random.key(0))
  return _whole(job, key.shape, key.dtype)


def _prompts(job: Job) -> PromptBatch:
  shape = (job.p.batch_size, job.p.max_prompt_tokens)
  return PromptBatch(tokens_BP=_rows(job, shape, jnp.int32), mask_BP=_rows(job, shape))


def _length(job: Job) -> int:
  return job.p.max_prompt_tokens + job.p.max_response_tokens


def _networks(job: Job) -> dict[str, Any]:
  """Policy and value network, adapters beside what they adapt."""
  return lora.combine(job.frozen, job.state.train.params)


def _restore(job: Job) -> Program:
  """From exports to the state in its layout; a checkpoint is read into the same layout."""
  function = jax.jit(job.init, out_shardings=job.state_layout)
  return Program(
    name="restore",
    function=function,
    arguments=(job.reference, job.reward, _key(job)),
    flops=0.0,
    holds=(job.reference, job.reward, job.state),
  )


def _prefill(job: Job) -> Program:
  cfg, p = job.models.policy, job.p

  def prefill(params, prompts):
    return transformer.prefill(
      cfg,
      transformer.decoding_params(cfg, params),
      prompts.tokens_BP,
      prompts.mask_BP,
      num_slots=_length(job),
    )

  policy = _networks(job)["policy"]
  return Program(
    name="prefill",
    function=jax.jit(prefill),
    arguments=(policy, _prompts(job)),
    holds=(policy,),
    flops=_forward_flops(cfg, p.batch_size, p.max_prompt_tokens, logits=False),
  )


def _decode_step(job: Job) -> Program:
  """One token for every row, from a cache that is full but for one slot."""
  cfg, p = job.models.policy, job.p
  with jax.set_mesh(job.mesh):
    cache = jax.eval_shape(lambda: transformer.empty_cache(cfg, p.batch_size, _length(job)))
  params = jax.eval_shape(functools.partial(transformer.decoding_params, cfg), job.reference)

  def place(path, leaf):
    spec = sharding.decoding_spec(path, cfg.compute.decode_split, stacked=cfg.compute.decode_scan)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(job.mesh, spec))

  params = jax.tree_util.tree_map_with_path(place, params)
  heads = NamedSharding(
    job.mesh, P(None, *sharding.decode_layout(cfg.compute.decode_split).heads_BTHd)
  )
  layers, tail = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=heads), (cache.layers, cache.tail)
  )
  cache = transformer.Cache(
    layers=layers,
    tail=tail,
    mask_BS=_rows(job, cache.mask_BS.shape),
    length=_whole(job, (), jnp.int32),
  )
  function = jax.jit(functools.partial(transformer.decode_step, cfg), donate_argnums=1)
  # Every query of a decode step is a row's last: it sees all, or its band.
  flops = p.batch_size * _token_flops(cfg, _length(job), logits=True)
  return Program(
    name="decode step",
    function=function,
    holds=(),
    arguments=(params, cache, _rows(job, (p.batch_size,), jnp.int32)),
    flops=flops,
  )


def _scoring(job: Job) -> Program:
  """Log-probs of policy and reference, values and scores of a batch."""
  p, models = job.p, job.models
  params, shape = _networks(job), (job.p.batch_size, _length(job))
  function = jax.jit(functools.partial(ppo.score_rows, models, p))
  flops = (
    2 * _forward_flops(models.policy, *shape, logits=True)
    + _forward_flops(models.reward, *shape, logits=False)
    + _value_passes(p) * _forward_flops(models.value(p), *shape, logits=False)
  )
  return Program(
    name="scoring",
    function=function,
    flops=flops,
    holds=(params, job.reference, job.reward),
    arguments=(params, job.reference, job.reward, _rows(job, shape, jnp.int32), _rows(job, shape)),
  )


def _rollout(job: Job) -> Program:
  """What PPO runs first: decoding layout, prefill, decoding, scoring, advantages."""
  function = jax.jit(functools.partial(ppo.collect, job.models, job.p, eot_id=_EOT_ID))
  params = job.state.train.params
  decoding = job.p.max_response_tokens * _decode_step(job).flops
  return Program(
    name="rollout",
    function=function,
    holds=(params, job.reference, job.reward, job.frozen),
    arguments=(
      params,
      job.reference,
      job.reward,
      _prompts(job),
      _whole(job),
      _key(job),
      job.frozen,
    ),
    flops=_prefill(job).flops + decoding + _scoring(job).flops,
  )


def _update(job: Job) -> Program:
  """What PPO runs second: all minibatches of PPO and pretraining gradients, and the optimizer."""
  p, models = job.p, job.models
  shape = (p.batch_size, _length(job))
  floats = (
    "mask_BT",
    "response_mask_BT",
    "old_logprob_BT",
    "old_value_BT",
    "advantage_BT",
    "return_BT",
  )
  batch = PpoBatch(
    tokens_BT=_rows(job, shape, jnp.int32), **{name: _rows(job, shape) for name in floats}
  )
  flops = p.num_epochs * (
    _train_flops(models.policy, *shape, logits=True)
    + _value_passes(p) * _train_flops(models.value(p), *shape, logits=False)
  )
  ptx = None
  if p.ptx_coef > 0.0:
    rows = (p.updates_per_iteration, p.num_ptx_per_minibatch, p.ptx_length)
    whole = lambda dtype: _rows(job, rows, dtype, leading=1)
    ptx = LmBatch(
      tokens_BT=whole(jnp.int32),
      loss_mask_BT=whole(jnp.float32),
      segment_BT=whole(jnp.int32),
      position_BT=whole(jnp.int32),
    )
    flops += _train_flops(models.policy, rows[0] * rows[1], rows[2], logits=True)
  function = jax.jit(
    functools.partial(ppo.update_and_control, models, p, job.tx, use_segments=job.use_segments),
    donate_argnums=0,
    out_shardings=(job.state_layout, None),
  )
  kl = Metric(total=_whole(job), weight=_whole(job))
  return Program(
    name="update",
    function=function,
    holds=(job.state, job.frozen),
    flops=flops,
    arguments=(job.state, batch, ptx, kl, _key(job), job.frozen),
  )
