"""The programs of a PPO-ptx job as shapes: what `rlhf check` hands to a compiler.

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

from rlhf import ppo, ppo_setup, sharding
from rlhf.model import attention, lora, transformer
from rlhf.model import flops as flops_lib
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.ppo import Models, PpoConfig
from rlhf.types import LmBatch, Metric, PpoBatch, PromptBatch

GPT2_IDS = dict(vocab_size=50_258, pad_id=50_257)  # 50,257 of GPT-2's BPE and the pad id
_EOT_ID = 50_256
FLOP_FORMULA = (
  "FLOPs: a forward pass takes 2 per parameter outside the embeddings and token, 4 x "
  "heads x head size per layer and (query, key) that attends (half of a row's pairs, in a "
  "band at most its width for each query; a decode step is counted against a full cache), "
  "2 x vocabulary x width per token with logits (of PPO's rows, the response's); a backward pass "
  "twice that, and recomputing one more forward pass"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """Static shapes of a job, and its arrays as shapes with their layouts."""

  mesh: Mesh
  models: Models
  p: PpoConfig
  tx: Any
  init: Callable
  state: Any
  reference: Any
  reward: Any
  frozen: Any
  use_segments: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
  """One jitted function and the shapes it is called with.

  Attributes:
    holds: which of the job's resident arrays are among its arguments, as trees.
  """

  name: str
  function: Any
  arguments: tuple
  holds: tuple


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
  compute = ComputeConfig(**config.compute)
  shared: dict[str, Any] = dict(
    GPT2_IDS if ids is None else ids,
    lora_scale=lora.scale(lora_cfg),
    compute=dataclasses.replace(compute, attention=attention.choose(compute.attention, platform)),
  )
  models = Models(
    policy=ModelConfig(**shared, **config.model),
    # The reward model computes as the policy does, and has no output but its head.
    reward=ModelConfig(**shared, **reward_group | {"tied_output": True}),
  )
  ppo_setup.check_lengths(p, models)
  key = jax.random.key(0)
  policy = jax.eval_shape(functools.partial(transformer.init_params, models.policy), key)
  reward = jax.eval_shape(functools.partial(transformer.init_params, models.reward), key)
  reward["head"] = jax.eval_shape(functools.partial(transformer.init_head, models.reward), key)
  tx, _ = ppo_setup.make_optimizer(config, p)
  init = functools.partial(ppo_setup.init_state, models, p, tx, lora_cfg=lora_cfg)
  state = jax.eval_shape(init, policy, reward, key)
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
    state=_placed(state, sharding.state_shardings(mesh, state)),
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
  """Bytes of keys and values of all slots at full length and waiting prompts, on one device."""
  cfg, p = job.models.policy, job.p
  slots = p.num_slots * (p.max_prompt_tokens + p.max_response_tokens)
  if p.num_slots < p.batch_size:
    slots += p.batch_size * p.max_prompt_tokens
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


def _train_flops(cfg: ModelConfig, num_rows: int, length: int, *, num_logits: int) -> float:
  passes = 3 if cfg.compute.remat == "none" else 4
  return passes * flops_lib.forward_flops(cfg, num_rows, length, num_logits=num_logits)


def flops(models: Models, p: PpoConfig) -> dict[str, float]:
  """FLOPs of the whole mesh for one call of each program, counted as `FLOP_FORMULA` says."""
  policy, value = models.policy, models.value(p)
  length = p.max_prompt_tokens + p.max_response_tokens
  shape = (p.batch_size, length)
  num_values = 0 if p.value_network == "shared" else 1  # a shared head reads the policy's own pass
  prefill = flops_lib.forward_flops(policy, p.batch_size, p.max_prompt_tokens, num_logits=1)
  # Every query of a decode step is a row's last: it sees all, or its band.
  step = p.num_slots * (flops_lib.token_flops(policy, length) + flops_lib.logits_flops(policy))
  scoring = (
    2 * flops_lib.forward_flops(policy, *shape, num_logits=p.max_response_tokens)
    + flops_lib.forward_flops(models.reward, *shape, num_logits=0)
    + num_values * flops_lib.forward_flops(value, *shape, num_logits=0)
  )
  update = p.num_epochs * (
    _train_flops(policy, *shape, num_logits=p.max_response_tokens)
    + num_values * _train_flops(value, *shape, num_logits=0)
  )
  if p.ptx_coef > 0.0:
    num_examples = p.updates_per_iteration * p.num_ptx_per_minibatch
    update += _train_flops(policy, num_examples, p.ptx_length, num_logits=p.ptx_length)
  return {
    "restore": 0.0,
    "prefill": prefill,
    "decode step": step,
    "scoring": scoring,
    "rollout": prefill + p.batch_size // p.num_slots * p.max_response_tokens * step + scoring,
    "update": update,
  }


# ----------------------------------------------------------------------------- programs


def all_programs(job: Job) -> list[Program]:
  """The start, the parts of a rollout, and what PPO runs: "rollout" and "update"."""
  models, p, params = job.models, job.p, job.state.train.params
  # Adapters beside what they adapt.
  networks = lora.combine(job.frozen, params)
  key = _placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(job.mesh))
  prompt_shape = (p.batch_size, p.max_prompt_tokens)
  prompts = PromptBatch(
    tokens_BP=_rows(job, prompt_shape, jnp.int32), mask_BP=_rows(job, prompt_shape)
  )
  length = p.max_prompt_tokens + p.max_response_tokens
  tokens_BT = _rows(job, (p.batch_size, length), jnp.int32)
  floats_BT = _rows(job, (p.batch_size, length))

  def prefill(params, prompts):
    params = transformer.decoding_params(models.policy, params)
    return transformer.prefill(
      models.policy, params, prompts.tokens_BP, prompts.mask_BP, num_slots=length
    )

  names = [field.name for field in dataclasses.fields(PpoBatch)]
  batch = PpoBatch(**dict.fromkeys(names, floats_BT) | {"tokens_BT": tokens_BT})
  scalar = job.state.kl_coef
  update = functools.partial(
    ppo.update_and_control, models, p, job.tx, use_segments=job.use_segments
  )
  layout = jax.tree.map(lambda leaf: leaf.sharding, job.state)
  resident = (params, job.reference, job.reward, job.frozen)
  scored = (networks, job.reference, job.reward)
  return [
    Program(  # from exports to the state in its layout; a checkpoint is read into the same layout
      name="restore",
      function=jax.jit(job.init, out_shardings=layout),
      arguments=(job.reference, job.reward, key),
      holds=(job.reference, job.reward, job.state),
    ),
    Program(
      name="prefill",
      function=jax.jit(prefill),
      arguments=(networks["policy"], prompts),
      holds=(networks["policy"],),
    ),
    Program(
      name="decode step",
      function=jax.jit(functools.partial(transformer.decode_step, models.policy), donate_argnums=1),
      arguments=(*_decoding(job, length), _rows(job, (p.num_slots,), jnp.int32)),
      holds=(),
    ),
    Program(  # log-probs of policy and reference, values and scores of a batch
      name="scoring",
      function=jax.jit(functools.partial(ppo.score_rows, models, p)),
      arguments=(*scored, tokens_BT, floats_BT, floats_BT),
      holds=scored,
    ),
    Program(  # decoding layout, prefill, decoding, scoring, advantages
      name="rollout",
      function=jax.jit(functools.partial(ppo.collect, models, p, eot_id=_EOT_ID)),
      arguments=(*resident[:3], prompts, scalar, key, job.frozen),
      holds=resident,
    ),
    Program(  # all minibatches of PPO and pretraining gradients, and the optimizer
      name="update",
      function=jax.jit(update, donate_argnums=0, out_shardings=(layout, None)),
      arguments=(
        job.state,
        batch,
        _pretraining(job),
        Metric(total=scalar, weight=scalar),
        key,
        job.frozen,
      ),
      holds=(job.state, job.frozen),
    ),
  ]


def _rows(job: Job, shape, dtype=jnp.float32, leading: int = 0):
  spec = P(*(None,) * leading, sharding.BATCH_AXES)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(job.mesh, spec))


def _decoding(job: Job, length: int):
  """(weights, cache) of decoding; the cache is full but for one slot."""
  cfg = job.models.policy
  split, stacked = cfg.compute.decode_split, cfg.compute.decode_scan
  params = jax.eval_shape(functools.partial(transformer.decoding_params, cfg), job.reference)
  with jax.set_mesh(job.mesh):
    cache = jax.eval_shape(lambda: transformer.empty_cache(cfg, job.p.num_slots, length))

  def weight(path, leaf):
    return NamedSharding(
      job.mesh, sharding.decode_spec(sharding.path_name(path), split, stacked=stacked)
    )

  def slot(leaf):  # keys and values lead with layers, masks with rows; the index is a number
    heads = (None, *sharding.decode_layout(split).cache_BKSd)
    axes = {5: heads, 2: (sharding.BATCH_AXES,), 0: ()}[leaf.ndim]
    return NamedSharding(job.mesh, P(*axes))

  layout = jax.tree_util.tree_map_with_path(weight, params)
  return _placed(params, layout), _placed(cache, jax.tree.map(slot, cache))


def _pretraining(job: Job) -> LmBatch | None:
  """The pretraining rows of all updates of an iteration."""
  p = job.p
  if p.ptx_coef == 0.0:
    return None
  shape = (p.updates_per_iteration, p.num_ptx_per_minibatch, p.ptx_length)
  ints = _rows(job, shape, jnp.int32, leading=1)
  floats = _rows(job, shape, leading=1)
  return LmBatch(tokens_BT=ints, loss_mask_BT=floats, segment_BT=ints, position_BT=ints)


def lower(job: Job, program: Program):
  """The program, lowered for the mesh's devices."""
  with jax.set_mesh(job.mesh):
    return program.function.lower(*program.arguments)
