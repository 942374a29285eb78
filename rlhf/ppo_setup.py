"""What PPO needs before its first iteration: its numbers, checks, networks, data and first state.

`ppo.py` is the algorithm.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from rlhf import checks, loop, networks, optim, sharding, training
from rlhf.configs import meshes
from rlhf.data import batches as batches_lib
from rlhf.data import packing, prepare, sources
from rlhf.inference import ensembles
from rlhf.model import lora, transformer
from rlhf.model.architecture import ModelConfig
from rlhf.model.lora import LoraConfig
from rlhf.networks import Network
from rlhf.optim import OptimConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.training import Groups, TextData
from rlhf.types import LmBatch, Params, PpoState, PromptBatch

REDUCTIONS = ("token_mean", "sequence_mean")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
  """The numbers of PPO-ptx.  `configs/ppo.py` says where each default comes from.

  Attributes:
    batch_size: episodes of an iteration.
    minibatch_size: episodes of an optimizer step.
    microbatch_size: episodes whose activations exist at once; the same in scoring and update, so
      that the ratio of the first minibatch is 1.
    num_epochs: passes over each batch.
    num_iterations: batches.
    max_prompt_tokens, max_response_tokens: P and R; their sum is within the context.
    rollout_slots: responses decoded together, the next prompt taking the place of one that ends;
      None decodes the whole batch at once.  Fewer slots do less work where lengths vary, and read
      the weights more often.
    temperature: of sampling; divides the logits of old, new and reference policy alike.
    reward_ensemble: how several reward models' scores become one, see `ensembles.combine`; with one
      reward model there is nothing to combine.
    reward_variance_coef: lambda of "mean_minus_variance".
    kl_coef: beta; where the adaptive controller starts.
    kl_controller: "fixed" or "adaptive".
    kl_target, kl_horizon: nats per response and episodes; used by "adaptive".
    gamma, lam: of GAE.
    policy_clip: clip range of the probability ratio.
    value_clip: clip range of the value update; None for none.
    value_coef: weight of the value loss.  Where the networks are separate, Adam divides it out
      again, but for eps and the gradient clip, which see the weighted gradient.
    value_network: "separate" starts as `value_init` says; "shared" puts a zero head on the policy.
    value_init: "reward_model" (InstructGPT C.4), or a zero head on a copy of the initial "policy"
      or on a network of the reward model's shape from "scratch".
    whiten_advantages, whiten_rewards: over the whole batch; rewards without moving their mean.
    missing_end: what happens to the score of a response without end-of-text: "none", "replace" it
      by `missing_end_penalty` or "subtract" the penalty from it.
    missing_end_penalty: in reward-model units.
    policy_reduction: "token_mean" divides the sum over tokens by the tokens of the minibatch;
      "sequence_mean" sums within a response and divides by the number of responses.
    ptx_coef: gamma of eq. 2; 0 is PPO without pretraining gradients, which costs nothing.
    ptx_ratio: pretraining examples per episode.
    ptx_length: tokens of a pretraining example.
    ptx_microbatch_size: pretraining examples whose activations exist at once.
    ptx_reduction: as `policy_reduction`, over pretraining tokens or examples.
    ema_decay: of the moving average of the policy, per optimizer step.
    alarm_ratio_error, alarm_kl, alarm_decode_gap: a line is printed where the first minibatch's
      |ratio - 1|, the KL per response (nats) or the gap between decode-time and rescored
      log-probs (nats per token, mean) exceeds these.
  """

  batch_size: int
  minibatch_size: int
  microbatch_size: int
  num_epochs: int
  num_iterations: int
  max_prompt_tokens: int
  max_response_tokens: int
  rollout_slots: int | None
  temperature: float
  reward_ensemble: str
  reward_variance_coef: float
  kl_coef: float
  kl_controller: str
  kl_target: float
  kl_horizon: float
  gamma: float
  lam: float
  policy_clip: float
  value_clip: float | None
  value_coef: float
  value_network: str
  value_init: str
  whiten_advantages: bool
  whiten_rewards: bool
  missing_end: str
  missing_end_penalty: float
  policy_reduction: str
  ptx_coef: float
  ptx_ratio: int
  ptx_length: int
  ptx_microbatch_size: int
  ptx_reduction: str
  ema_decay: float
  alarm_ratio_error: float
  alarm_kl: float
  alarm_decode_gap: float

  def __post_init__(self):
    checks.choices(
      "ppo",
      self,
      value_network=("separate", "shared"),
      value_init=("reward_model", "policy", "scratch"),
      kl_controller=("fixed", "adaptive"),
      missing_end=("none", "replace", "subtract"),
      policy_reduction=REDUCTIONS,
      ptx_reduction=REDUCTIONS,
    )
    ensembles.check_rule(self.reward_ensemble, self.reward_variance_coef, "ppo.reward_")
    checks.at_least(
      "ppo",
      self,
      batch_size=1,
      minibatch_size=1,
      microbatch_size=1,
      num_epochs=1,
      num_iterations=1,
      max_prompt_tokens=1,
      max_response_tokens=1,
      rollout_slots=1,
      ptx_ratio=1,
      ptx_microbatch_size=1,
    )
    checks.divides("ppo", self, "batch_size", "minibatch_size")
    checks.divides("ppo", self, "minibatch_size", "microbatch_size")
    if self.rollout_slots is not None:
      checks.divides("ppo", self, "batch_size", "rollout_slots")
    for name in ("gamma", "lam"):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ValueError(f"ppo.{name} {getattr(self, name)} must be at least 0 and at most 1")
    checks.above_zero("ppo", self, "policy_clip", "kl_target", "kl_horizon")
    if not 0.0 <= self.ema_decay < 1.0:
      raise ValueError(f"ppo.ema_decay {self.ema_decay} must be at least 0 and below 1")
    if self.ptx_coef < 0.0:
      raise ValueError(f"ppo.ptx_coef {self.ptx_coef} is negative; use 0 to switch ptx off")
    if self.ptx_coef > 0.0 and self.num_ptx_per_minibatch % self.ptx_microbatch_size:
      raise ValueError(
        f"ppo.minibatch_size * ppo.ptx_ratio = {self.num_ptx_per_minibatch} pretraining examples "
        f"do not divide into ppo.ptx_microbatch_size {self.ptx_microbatch_size}"
      )
    if self.temperature <= 0.0:
      raise ValueError(
        f"ppo.temperature {self.temperature} is not above 0; the policy that is "
        "updated is the one that is sampled"
      )

  @property
  def num_slots(self) -> int:
    return self.batch_size if self.rollout_slots is None else self.rollout_slots

  @property
  def num_minibatches(self) -> int:
    return self.batch_size // self.minibatch_size

  @property
  def updates_per_iteration(self) -> int:
    return self.num_epochs * self.num_minibatches

  @property
  def num_ptx_per_minibatch(self) -> int:
    return self.minibatch_size * self.ptx_ratio


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
  """The static shapes of the networks; the value network has one of the two."""

  policy: ModelConfig
  reward: ModelConfig

  def value(self, p: PpoConfig) -> ModelConfig:
    """The shape of a separate value network."""
    return self.policy if p.value_init == "policy" else self.reward


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptData:
  """Prompts to train on and held-out ones.

  Attributes:
    train, valid: `FORMAT:PATH` or tfds names, disjoint.
    overlong: prompts of more than `ppo.max_prompt_tokens`: see `prepare.prompt_rows`.
    num_valid: held-out prompts of each validation: the first ones of `valid`.
    prompt_format, prompt_suffix, completion_prefix: see `prepare.PromptFormat`.
    on_bad: "stop" or "skip" at a malformed line.
  """

  train: str
  valid: str
  num_valid: int
  overlong: str
  prompt_format: str
  prompt_suffix: str
  completion_prefix: str
  on_bad: str

  def __post_init__(self):
    prepare.PromptFormat.of(self, "prompts")  # checks its names
    checks.choices("prompts", self, overlong=prepare.OVERLONG_PROMPTS)
    checks.at_least("prompts", self, num_valid=1)


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  training.check_kind(config, "ppo")
  p = PpoConfig(**config.ppo)
  # Before `TextData`, which would name the group "text".
  checks.choices("pretraining", config.pretraining, packing=packing.TEXT_PACKINGS)
  PromptData(**config.prompts), TextData(**config.pretraining)
  if LoraConfig(**config.lora).rank and (p.value_network, p.value_init) == ("separate", "scratch"):
    raise ValueError(
      f"ppo.value_init 'scratch' with lora.rank {config.lora.rank}: adapters are added to a "
      "trained network; use 'reward_model' or 'policy'"
    )
  shape = training.check_groups(
    config, ppo__batch_size=p.batch_size, ppo__rollout_slots=p.num_slots
  )
  if shape is not None:
    check_lengths(p, Models(policy=shape, reward=shape))
  if p.ptx_coef > 0.0:
    sharding.check_rows(
      training.groups(config).mesh,
      p.num_ptx_per_minibatch,
      "pretraining text (ppo.minibatch_size * ppo.ptx_ratio)",
    )


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing: exports by their JSON, data line by line.

  Raises:
    ValueError: as `train` would raise later.
  """
  p = PpoConfig(**config.ppo)
  policy = networks.find_export(
    config.policy_from, kind="policy", flag="policy_from", shape=config.model
  )
  reward = networks.find_export(config.reward_from, kind="reward", flag="reward_from")
  tokenizer = policy.tokenizer
  others = {"reward_from": reward}
  for name in config.reward_others:
    other = networks.find_export(name, kind="reward", flag="reward_others")
    check_member(ModelConfig(**reward.model), ModelConfig(**other.model), name)
    others["reward_others"] = other
  if config.reference_from:
    others["reference_from"] = networks.find_export(
      config.reference_from, kind="policy", flag="reference_from", shape=config.model
    )
  for field, other in others.items():
    networks.check_same_tokenizer(tokenizer, other.tokenizer, f"policy_from and {field}")
  prompt_format = prepare.PromptFormat.of(config.prompts)
  prompt_format.check(tokenizer)
  check_read_as_trained(prompt_format, reward.config, config.reward_from)
  check_lengths(p, Models(policy=ModelConfig(**policy.model), reward=ModelConfig(**reward.model)))
  mesh = training.groups(config).mesh
  meshes.check_heads(reward.model, mesh.shape["tensor"], "the reward model's ")
  training.check_data(config, "prompts", "prompt", "train", "valid")
  if p.ptx_coef > 0.0:
    training.check_data(config, "pretraining", "text", "train")


def check_read_as_trained(prompt_format: prepare.PromptFormat, trained, source: str) -> None:
  """A reward model must be asked as it was trained; one that others publish does not say how.

  Raises:
    ValueError: PPO would put prompts to it in another format.
  """
  if "comparisons" not in trained:
    return
  known = prepare.PromptFormat.trained_with(trained)
  if known != prompt_format:
    raise ValueError(
      f"reward_from={source} was trained on {known.describe()}, and config.prompts asks "
      f"{prompt_format.describe()}; set config.prompts' prompt_format, prompt_suffix and "
      "completion_prefix to what the reward model knows"
    )


def check_lengths(p: PpoConfig, models: Models) -> None:
  """Prompt and response must fit into both networks' learned positions.

  Raises:
    ValueError: they do not, or a pretraining example does not.
  """
  for name, cfg in (("policy", models.policy), ("reward model", models.reward)):
    if p.max_prompt_tokens + p.max_response_tokens > cfg.context_length:
      raise ValueError(
        f"ppo.max_prompt_tokens {p.max_prompt_tokens} + ppo.max_response_tokens "
        f"{p.max_response_tokens} is longer than the {name}'s context of {cfg.context_length}"
      )
  if p.ptx_coef > 0.0 and p.ptx_length > models.policy.context_length:
    raise ValueError(
      f"ppo.ptx_length {p.ptx_length} is longer than the policy's context of "
      f"{models.policy.context_length}"
    )


def check_member(first: ModelConfig, other: ModelConfig, name: str) -> None:
  """Raises ValueError where a further reward model has another shape than the first."""
  for field, value in first.shape().items():
    if getattr(other, field) != value:
      raise ValueError(
        f"reward_others: {name} has {field} {getattr(other, field)}, but reward_from has {value}; "
        "the members of an ensemble have one shape"
      )


# ----------------------------------------------------------------------------- networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
  """What an iteration reads besides its own state.

  Attributes:
    models: shapes, with the scale of the adapters.
    policy, reward: where policy and value network start.
    ref_params: the frozen policy of the KL penalty; the initial policy's own arrays by default.
    reward_params: the reward model's or, with `reward_others`, a tuple of all members'.
  """

  models: Models
  policy: Network
  reward: Network
  ref_params: Params
  reward_params: Params | tuple[Params, ...]


def load_networks(config, groups: Groups) -> Networks:
  """Loads the networks that the config names.

  InstructGPT's reference is the initial policy (appendix C.4); its Fig. 34 takes the pretrained
  model instead, as `reference_from` can.

  Raises:
    ValueError: two networks differ in tokenizer, or members of an ensemble in shape.
  """

  def load(name: str, field: str, kind: str, policy: Network | None = None) -> Network:
    shape = config.model if kind == "policy" else None
    found = networks.load(name, groups.compute, groups.mesh, kind=kind, flag=field, shape=shape)
    if policy is not None:
      networks.check_same_tokenizer(policy.tokenizer, found.tokenizer, f"policy_from and {field}")
    return found

  policy = load(config.policy_from, "policy_from", "policy")
  reward = load(config.reward_from, "reward_from", "reward", policy)
  reference = policy
  if config.reference_from:
    reference = load(config.reference_from, "reference_from", "policy", policy)
  members = [reward.params]
  for name in config.reward_others:
    other = load(name, "reward_others", "reward", policy)
    check_member(reward.cfg, other.cfg, name)
    members.append(other.params)
  scale = lora.scale(groups.lora)
  return Networks(
    models=Models(
      policy=dataclasses.replace(policy.cfg, lora_scale=scale),
      reward=dataclasses.replace(reward.cfg, lora_scale=scale),
    ),
    policy=policy,
    reward=reward,
    ref_params=reference.params,
    reward_params=tuple(members) if config.reward_others else reward.params,
  )


def init_value(
  models: Models, p: PpoConfig, policy_params: Params, reward_params: Params, key
) -> Params:
  """Where the value network starts: the reward model (InstructGPT C.4), or a zero head, as Ziegler
  et al. 2019 have it, on another trunk."""
  if p.value_network == "separate" and p.value_init == "reward_model":
    return jax.tree.map(jnp.copy, reward_params)
  if p.value_network == "shared":
    trunk: Params = {}
    width = models.policy.width
  elif p.value_init == "policy":
    _, trunk = transformer.without_output(models.policy, policy_params)
    trunk, width = jax.tree.map(jnp.copy, trunk), models.policy.width
  else:
    trunk, width = transformer.init_params(models.reward, key), models.reward.width
  return dict(trunk, head={"kernel": jnp.zeros((width, 1)), "bias": jnp.zeros(1)})


def init_state(
  models: Models,
  p: PpoConfig,
  tx,
  policy_params: Params,
  reward_params: Params,
  key,
  lora_cfg: LoraConfig = lora.NO_ADAPTERS,
) -> PpoState:
  """Policy, value network, moving average and optimizer, in buffers of their own.

  With adapters the state holds these alone, and the value head; `frozen_networks` has the rest.

  Args:
    key: for a value network from scratch, or for the adapters.
  """
  value = init_value(models, p, policy_params, reward_params, key)
  params = {"policy": jax.tree.map(jnp.copy, policy_params), "value": value}
  if lora_cfg.rank:
    params = {
      name: lora.split(lora_cfg, params[name], jax.random.fold_in(key, number))[1]
      for number, name in enumerate(sorted(params))
    }
  return PpoState(
    train=optim.init_train_state(tx, params),
    ema_params=jax.tree.map(jnp.copy, params["policy"]),
    kl_coef=jnp.float32(p.kl_coef),
  )


def frozen_networks(
  p: PpoConfig, lora_cfg: LoraConfig, policy_params: Params, reward_params: Params
) -> dict[str, Params] | None:
  """What stands beside the adapters of policy and value network; None where there are none.

  These are the arrays of the reference and of the reward model themselves, not copies.
  """
  if not lora_cfg.rank:
    return None
  value = policy_params if p.value_init == "policy" else reward_params
  trunk = {name: leaf for name, leaf in value.items() if name not in ("head", "output")}
  return {"policy": policy_params, "value": {} if p.value_network == "shared" else trunk}


# ----------------------------------------------------------------------------- optimizer


def make_optimizer(config, p: PpoConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """One optimizer for both networks, and the schedule of the policy's learning rate."""
  num_updates = p.num_iterations * p.updates_per_iteration
  policy_optim = OptimConfig(**config.policy_optim)
  tx = optim.per_network(
    dict(
      policy=optim.make_optimizer(policy_optim, num_updates),
      value=optim.make_optimizer(OptimConfig(**config.value_optim), num_updates),
    )
  )
  return tx, jax.jit(optim.make_schedule(policy_optim, num_updates))


# ----------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoData:
  """Prompts and pretraining text.

  Attributes:
    prompts: iteration -> PromptBatch of `batch_size` rows.
    ptx: iteration -> LmBatch of [updates, minibatch_size * ptx_ratio, T]; None without ptx.
    use_segments: whether attention stops at the documents of a row of pretraining text.
    valid_rows, valid_records: of the held-out prompts.
  """

  prompts: Callable[[int], PromptBatch]
  ptx: Callable[[int], LmBatch] | None
  use_segments: bool
  valid_rows: PromptBatch
  valid_records: list[dict[str, Any]]


def load_data(
  config, p: PpoConfig, tokenizer: Tokenizer, cache_dir: pathlib.Path | None, mesh: Mesh
) -> PpoData:
  """Reads and tokenises; prints what was dropped and why."""
  cfg = PromptData(**config.prompts)
  (rows, _), (valid_rows, valid_records) = (
    _prompt_rows(name, spec, cfg, p, tokenizer, cache_dir)
    for name, spec in (("prompts", cfg.train), ("validation prompts", cfg.valid))
  )
  stream = loop.Stream(
    batches_lib.Batches(
      rows, batch_size=p.batch_size, seed=config.seed, share=sharding.local_rows(mesh, p.batch_size)
    )
  )
  text = TextData(**config.pretraining)
  with_ptx = p.ptx_coef > 0.0
  return PpoData(
    prompts=lambda step: sharding.put_batch(mesh, stream(step), p.batch_size),
    ptx=load_ptx(p, text, tokenizer, cache_dir, mesh, seed=config.seed) if with_ptx else None,
    use_segments=with_ptx and not text.attend_across_documents,
    valid_rows=jax.tree.map(lambda x: x[: cfg.num_valid], valid_rows),
    valid_records=valid_records,
  )


def _prompt_rows(name, spec, cfg: PromptData, p: PpoConfig, tokenizer, cache_dir):
  rows, kept, counts = prepare.prompt_rows(
    sources.load(spec, "prompt", cache_dir=cache_dir, on_bad=cfg.on_bad),
    tokenizer,
    max_prompt_tokens=p.max_prompt_tokens,
    prompt_format=prepare.PromptFormat.of(cfg),
    overlong=cfg.overlong,
    cache_dir=cache_dir,
  )
  return training.printed(name, rows, counts), kept


def load_ptx(
  p: PpoConfig,
  text: TextData,
  tokenizer: Tokenizer,
  cache_dir: pathlib.Path | None,
  mesh,
  *,
  seed: int,
) -> Callable[[int], LmBatch]:
  """The pretraining rows of each iteration: [updates, minibatch_size * ptx_ratio, T], the second
  axis split over the mesh."""
  rows = training.text_rows(
    "pretraining text", text.train, text, tokenizer, length=p.ptx_length, cache_dir=cache_dir
  )
  num_updates, num_rows = p.updates_per_iteration, p.num_ptx_per_minibatch
  place_Ub = np.arange(num_updates * num_rows).reshape(num_updates, num_rows)
  # A seed of its own: the first ptx rows are not those that pretraining saw first.
  stream = loop.Stream(
    batches_lib.Batches(
      rows,
      batch_size=place_Ub.size,
      seed=seed + 1,
      share=place_Ub[:, sharding.local_rows(mesh, num_rows)].reshape(-1),
    )
  )

  def batches(step: int) -> LmBatch:
    split = jax.tree.map(lambda x: x.reshape(num_updates, -1, *x.shape[1:]), stream(step))
    return sharding.put_batch(mesh, split, num_rows, axis=1)

  return batches


# ----------------------------------------------------------------------------- what a run prints


def alarms(p: PpoConfig, numbers: dict[str, float]) -> list[str]:
  """One sentence for each quantity that has left its healthy range."""
  limits = (
    (
      "ppo/ratio_error_first",
      p.alarm_ratio_error,
      "scoring and update disagree on the same weights",
    ),
    ("objective/kl", p.alarm_kl, "the policy is far from its reference (nats per response)"),
    ("rollout/decode_gap", p.alarm_decode_gap, "decoding and scoring disagree (nats per token)"),
  )
  return [
    f"ALARM {name} = {numbers[name]:.4g} is above {limit:g}: {meaning}"
    for name, limit, meaning in limits
    if numbers[name] > limit
  ]


def warn_short_run(p: PpoConfig) -> str | None:
  """The moving average needs about 3 / (1 - decay) updates to forget where it started."""
  num_updates, needed = p.num_iterations * p.updates_per_iteration, 3.0 / (1.0 - p.ema_decay)
  if num_updates >= needed:
    return None
  return (
    f"WARNING ppo: {num_updates} updates are fewer than 3/(1 - ema_decay) = {needed:.0f}; "
    "the exported moving average lags behind the live weights: lower ppo.ema_decay or train "
    "longer"
  )


def tokens_per_iteration(p: PpoConfig) -> int:
  """Tokens that an iteration trains on, padding included."""
  ppo = p.num_epochs * p.batch_size * (p.max_prompt_tokens + p.max_response_tokens)
  ptx = p.updates_per_iteration * p.num_ptx_per_minibatch * p.ptx_length
  return ppo + (ptx if p.ptx_coef > 0.0 else 0)


def resolved_sizes(p: PpoConfig) -> str:
  """The batch sizes and what they come to, as a table."""
  ptx = p.num_ptx_per_minibatch if p.ptx_coef > 0.0 else 0
  rows = (
    ("episodes per iteration", p.batch_size),
    ("episodes per optimizer step", p.minibatch_size),
    ("episodes per microbatch", p.microbatch_size),
    ("optimizer steps per iteration", p.updates_per_iteration),
    ("pretraining examples per optimizer step", ptx),
    ("iterations", p.num_iterations),
    ("episodes in all", p.num_iterations * p.batch_size),
  )
  return "\n".join(f"  {name:<42}{number:>10,}" for name, number in rows)
