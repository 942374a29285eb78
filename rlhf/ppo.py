"""PPO-ptx: roll out, score, estimate advantages, update; InstructGPT section 3.5 and appendix C.4.

    objective = E_{(x,y) ~ pi} [ r(x, y) - beta * log(pi(y|x) / pi_ref(y|x)) ]
                + gamma * E_{x ~ pretraining} [ log pi(x) ]                          (eq. 2)

One iteration, in the order of the paper:

  1. `rollout`     sample a response per prompt with the live weights, rescore it with the update's
                   own function, score it by reference, value function and reward model
  2. `advantages`  per-token KL penalty, score on the last token, GAE, whitening
  3. `ppo_update`  epochs x minibatches in ONE jit; in each minibatch the PPO gradient and
                   gamma times the pretraining gradient are accumulated into one optimizer step,
                   and the moving average of the policy follows
  4. the KL coefficient moves, if its controller is adaptive

Everything but `train` is a pure function.  `p` is the frozen `PpoConfig`.
"""

import dataclasses
import functools
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf import checkpoint, loop, losses, networks, optim, processes, sharding
from rlhf import metrics as metrics_lib
from rlhf import workdir as workdir_lib
from rlhf.data import batches as batches_lib
from rlhf.data import cache, prepare, sources
from rlhf.data import packing as packing_lib
from rlhf.data import records as records_lib
from rlhf.inference import ensembles, sampling
from rlhf.loop import LoopConfig
from rlhf.model import lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch, Metric, Params, PpoBatch, PpoState, PromptBatch, Rollout

VALUE_NETWORKS = ("separate", "shared")
VALUE_INITS = ("reward_model", "policy", "scratch")
KL_CONTROLLERS = ("fixed", "adaptive")
MISSING_END = ("none", "replace", "subtract")
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
    for field, choices in (
      ("value_network", VALUE_NETWORKS),
      ("value_init", VALUE_INITS),
      ("kl_controller", KL_CONTROLLERS),
      ("missing_end", MISSING_END),
      ("policy_reduction", REDUCTIONS),
      ("ptx_reduction", REDUCTIONS),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(f"ppo.{field} {getattr(self, field)!r}; choose from {sorted(choices)}")
    ensembles.check_rule(self.reward_ensemble, self.reward_variance_coef, "ppo.reward_")
    for whole, part in (("batch_size", "minibatch_size"), ("minibatch_size", "microbatch_size")):
      if getattr(self, part) < 1 or getattr(self, whole) % getattr(self, part):
        raise ValueError(
          f"ppo.{whole} {getattr(self, whole)} does not divide into ppo.{part} "
          f"{getattr(self, part)}; use a multiple of {getattr(self, part)}"
        )
    for name in (
      "batch_size",
      "num_epochs",
      "num_iterations",
      "max_prompt_tokens",
      "max_response_tokens",
      "ptx_ratio",
      "ptx_microbatch_size",
    ):
      if getattr(self, name) < 1:
        raise ValueError(f"ppo.{name} is {getattr(self, name)}; use 1 or more")
    for name in ("gamma", "lam"):
      if not 0.0 <= getattr(self, name) <= 1.0:
        raise ValueError(f"ppo.{name} {getattr(self, name)} must be at least 0 and at most 1")
    for name in ("policy_clip", "kl_target", "kl_horizon"):
      if getattr(self, name) <= 0.0:
        raise ValueError(f"ppo.{name} {getattr(self, name)} must be above 0")
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


# ----------------------------------------------------------------------------- 1. rollout


def policy_and_values(models: Models, p: PpoConfig, params: Params, tokens_BT, mask_BT):
  """Log-probs, entropy and values of one microbatch: what scoring and update both call."""
  hidden_BTD = transformer.forward(models.policy, params["policy"], tokens_BT, mask_BT)
  logprob_BT, entropy_BT = transformer.token_logprobs(
    models.policy, params["policy"], hidden_BTD, tokens_BT, temperature=p.temperature
  )
  if p.value_network == "shared":
    value_BT = transformer.state_values(params["value"], hidden_BTD)
  else:
    value_BT = transformer.values(models.value(p), params["value"], tokens_BT, mask_BT)
  return logprob_BT, entropy_BT, value_BT


def _by_microbatch(p: PpoConfig, function, *arrays):
  """Applies `function` to microbatches of the update's size and puts the rows back in order."""
  num_microbatches = arrays[0].shape[0] // p.microbatch_size
  if num_microbatches <= 1:
    return function(*arrays)
  split = sharding.split_microbatches(arrays, num_microbatches)
  return sharding.merge_microbatches(jax.lax.map(lambda parts: function(*parts), split))


def sample(
  models: Models, p: PpoConfig, policy_params: Params, prompts: PromptBatch, key, *, eot_id: int
):
  """Responses at `p.temperature`, joined to their prompts; one random key per global row.

  Returns:
    (rows, finished_B); `rows` as `generate.join` returns them.
  """
  key_B = sampling.row_keys(key, 0, prompts.tokens_BP.shape[0])
  generation = sampling.generate(
    models.policy,
    policy_params,
    prompts,
    key_B,
    eot_id=eot_id,
    max_new_tokens=p.max_response_tokens,
    temperature=p.temperature,
  )
  return sampling.join(prompts, generation, models.policy.pad_id), generation.finished_B


def reward_scores(
  models: Models, p: PpoConfig, reward_params: Params | tuple[Params, ...], tokens_BT, mask_BT
):
  """score_B of one reward model, or of an ensemble of them as `p.reward_ensemble` says.

  Source of ensembles: Coste et al. 2023, arXiv:2310.02743; InstructGPT has one.

  Args:
    reward_params: of one, or a tuple of several of one shape.
  """
  if not isinstance(reward_params, tuple):
    return transformer.scores(models.reward, reward_params, tokens_BT, mask_BT)
  score_EB = jnp.stack(
    [transformer.scores(models.reward, member, tokens_BT, mask_BT) for member in reward_params]
  )
  return ensembles.combine(score_EB, p.reward_ensemble, variance_coef=p.reward_variance_coef)


def score_rows(
  models: Models,
  p: PpoConfig,
  params: Params,
  ref_params: Params,
  reward_params: Params | tuple[Params, ...],
  tokens_BT,
  mask_BT,
):
  """What the four networks say of whole rows, in microbatches of the update's shape.

  Returns:
    (logprob_BT, value_BT, ref_logprob_BT, score_B).
  """

  def score(tokens_BT, mask_BT):
    logprob_BT, _, value_BT = policy_and_values(models, p, params, tokens_BT, mask_BT)
    ref_logprob_BT, _ = transformer.policy_logprobs(
      models.policy, ref_params, tokens_BT, mask_BT, temperature=p.temperature
    )
    return (
      logprob_BT,
      value_BT,
      ref_logprob_BT,
      reward_scores(models, p, reward_params, tokens_BT, mask_BT),
    )

  return _by_microbatch(p, score, tokens_BT, mask_BT)


def rollout(
  models: Models,
  p: PpoConfig,
  params: Params,
  ref_params: Params,
  reward_params: Params | tuple[Params, ...],
  prompts: PromptBatch,
  key,
  *,
  eot_id: int,
) -> Rollout:
  """One batch of episodes.

  Old log-probs are not the decoder's: they are computed by `policy_and_values` in microbatches of
  the update's shape, so that the first minibatch's ratio is 1.

  Args:
    params: {"policy", "value"}: the live weights.
    ref_params, reward_params: frozen; the latter as in `reward_scores`.
  """
  rows, finished_B = sample(models, p, params["policy"], prompts, key, eot_id=eot_id)

  logprob_BT, value_BT, ref_logprob_BT, score_B = score_rows(
    models, p, params, ref_params, reward_params, rows["tokens_BT"], rows["mask_BT"]
  )
  mask_BT = rows["response_mask_BT"]
  return Rollout(
    logprob_BT=losses.masked(logprob_BT, mask_BT),
    value_BT=losses.masked(value_BT, mask_BT),
    ref_logprob_BT=losses.masked(ref_logprob_BT, mask_BT),
    score_B=score_B,
    finished_B=finished_B,
    **rows,
  )


# ----------------------------------------------------------------------------- 2. advantages


def final_scores(p: PpoConfig, score_B, finished_B):
  """Scores after the missing-end penalty."""
  if p.missing_end == "none":
    return score_B
  penalised_B = (
    jnp.full_like(score_B, p.missing_end_penalty)
    if p.missing_end == "replace"
    else score_B - p.missing_end_penalty
  )
  return jnp.where(finished_B, score_B, penalised_B)


def advantages(p: PpoConfig, rollout_batch: Rollout, kl_coef) -> tuple[PpoBatch, dict[str, Metric]]:
  """Rewards, returns and advantages of a batch, and its `objective/*` metrics."""
  mask_BT = rollout_batch.response_mask_BT
  score_B = final_scores(p, rollout_batch.score_B, rollout_batch.finished_B)
  reward_BT, kl_BT = losses.shaped_rewards(
    score_B, rollout_batch.logprob_BT, rollout_batch.ref_logprob_BT, mask_BT, kl_coef
  )
  used_BT = losses.whiten(reward_BT, mask_BT, shift_mean=False) if p.whiten_rewards else reward_BT
  advantage_BT, return_BT = losses.gae(
    used_BT, rollout_batch.value_BT, mask_BT, gamma=p.gamma, lam=p.lam
  )
  if p.whiten_advantages:
    advantage_BT = losses.whiten(advantage_BT, mask_BT, shift_mean=True)
  batch = PpoBatch(
    tokens_BT=rollout_batch.tokens_BT,
    mask_BT=rollout_batch.mask_BT,
    response_mask_BT=mask_BT,
    old_logprob_BT=rollout_batch.logprob_BT,
    old_value_BT=rollout_batch.value_BT,
    advantage_BT=advantage_BT,
    return_BT=return_BT,
  )

  per_row = lambda x_B: Metric(total=jnp.sum(x_B), weight=jnp.float32(x_B.shape[0]))
  gap_BT = jnp.abs(rollout_batch.logprob_BT - rollout_batch.decode_logprob_BT)
  kl_B = jnp.sum(kl_BT, axis=1)
  # k3 = exp(-d) - 1 + d is never negative: a healthy lower-variance check on the plain estimate.
  k3_BT = losses.masked(jnp.expm1(-kl_BT) + kl_BT, mask_BT)
  metrics = {
    "objective/kl": per_row(kl_B),
    "objective/kl_k3": per_row(jnp.sum(k3_BT, axis=1)),
    "objective/kl_token_min": jnp.min(kl_BT),
    "objective/kl_coef": kl_coef,
    "objective/score": per_row(rollout_batch.score_B),
    "objective/score_after_penalty": per_row(score_B),
    "objective/reward": per_row(jnp.sum(reward_BT, axis=1)),
    "objective/entropy": per_row(-jnp.sum(rollout_batch.logprob_BT * mask_BT, axis=1)),
    "rollout/response_tokens": per_row(jnp.sum(mask_BT, axis=1)),
    "rollout/finished": per_row(rollout_batch.finished_B.astype(jnp.float32)),
    "rollout/decode_gap": losses.masked_metric(gap_BT, mask_BT),
    "rollout/decode_gap_max": jnp.max(losses.masked(gap_BT, mask_BT)),
    "ppo/returns/mean": losses.masked_metric(return_BT, mask_BT),
    "ppo/value/old": losses.masked_metric(rollout_batch.value_BT, mask_BT),
  }
  return batch, metrics


# ----------------------------------------------------------------------------- 3. update


def _policy_weight_BT(p: PpoConfig, mask_BT):
  """Weights that turn a sum over a minibatch's tokens into the named reduction."""
  total = jnp.sum(mask_BT) if p.policy_reduction == "token_mean" else mask_BT.shape[0]
  return mask_BT / jnp.maximum(total, 1.0)


def ppo_loss(models: Models, p: PpoConfig, params: Params, microbatch):
  """Policy and value loss of one microbatch, already divided by the minibatch's weights.

  Args:
    microbatch: (PpoBatch, weight_BT), the weights from the whole minibatch.

  Returns:
    (loss, metrics).
  """
  batch, weight_BT = microbatch
  mask_BT = batch.response_mask_BT
  logprob_BT, entropy_BT, value_BT = policy_and_values(
    models, p, params, batch.tokens_BT, batch.mask_BT
  )
  policy_BT, aux = losses.policy_loss(
    logprob_BT, batch.old_logprob_BT, batch.advantage_BT, mask_BT, clip=p.policy_clip
  )
  value_BT_loss, value_clipped_BT = losses.value_loss(
    value_BT, batch.old_value_BT, batch.return_BT, mask_BT, clip=p.value_clip
  )
  loss = jnp.sum((policy_BT + p.value_coef * value_BT_loss) * weight_BT)
  mean = functools.partial(losses.masked_metric, mask=mask_BT)
  metrics = {
    "ppo/loss/policy": mean(policy_BT),
    "ppo/loss/value": mean(value_BT_loss),
    "ppo/policy/approxkl": mean(aux["approx_kl_BT"]),
    "ppo/policy/clipfrac": mean(aux["clipped_BT"]),
    "ppo/policy/entropy": mean(entropy_BT),
    "ppo/policy/ratio": mean(aux["ratio_BT"]),
    "ppo/value/clipfrac": mean(value_clipped_BT),
    "ppo/value/error": mean(jnp.square(value_BT - batch.return_BT)),
  }
  ratio_error = jnp.max(jnp.abs(aux["ratio_BT"] - 1.0))
  return loss, (metrics, ratio_error)


def ptx_loss(
  models: Models,
  p: PpoConfig,
  policy_params: Params,
  microbatch,
  *,
  frozen: Params | None = None,
  use_segments: bool,
):
  """gamma times the negative log-likelihood of pretraining text, divided as the reduction says.

  Args:
    microbatch: (LmBatch, weight): 1 / (tokens or examples of the whole minibatch).
  """
  batch, weight = microbatch
  nll = transformer.lm_loss(
    models.policy, lora.combine(frozen, policy_params), batch, use_segments=use_segments
  )
  metrics = {"ppo/ptx/nll": nll, "ppo/ptx/sequences": jnp.float32(batch.tokens_BT.shape[0])}
  return p.ptx_coef * nll.total * weight, metrics


def minibatch_gradient(
  models: Models,
  p: PpoConfig,
  params: Params,
  batch: PpoBatch,
  ptx_batch: LmBatch | None,
  frozen: Params | None = None,
  *,
  use_segments: bool,
):
  """The gradient of PPO-ptx on one minibatch: PPO's plus gamma times the pretraining text's.

  Source: InstructGPT appendix C.4: "we compute the PPO gradient and pretraining gradient in
  consecutive steps and accumulate them both"; ONE optimizer step follows.

  Args:
    params: {"policy", "value"}: what is trained of them.
    frozen: the rest of them, in the same form (`lora.split`); None where all is trained.

  Returns:
    (gradient of {"policy", "value"}, metrics, largest |ratio - 1|).
  """
  weight_BT = _policy_weight_BT(p, batch.response_mask_BT)
  num_microbatches = batch.tokens_BT.shape[0] // p.microbatch_size
  grads, (metrics, ratio_error_sum) = _ppo_gradient(
    models, p, params, frozen, sharding.split_microbatches((batch, weight_BT), num_microbatches)
  )
  if p.ptx_coef > 0.0:
    examples = ptx_batch.tokens_BT.shape[0]
    weight = (
      1.0 / jnp.maximum(jnp.sum(ptx_batch.loss_mask_BT), 1.0)
      if p.ptx_reduction == "token_mean"
      else jnp.float32(1.0 / examples)
    )
    num_ptx = examples // p.ptx_microbatch_size
    microbatches = (sharding.split_microbatches(ptx_batch, num_ptx), jnp.full((num_ptx,), weight))
    ptx_grads, ptx_metrics = optim.accumulated_gradient(
      functools.partial(
        ptx_loss,
        models,
        p,
        use_segments=use_segments,
        frozen=None if frozen is None else frozen["policy"],
      ),
      params["policy"],
      microbatches,
    )
    grads = dict(grads, policy=jax.tree.map(jnp.add, grads["policy"], ptx_grads))
    metrics |= ptx_metrics
  return grads, metrics, ratio_error_sum


def _ppo_gradient(models, p, params, frozen, microbatches):
  """PPO's part, with the ratio error reduced by max where everything else adds."""

  def loss_fn(params, microbatch):
    microbatch, slot_M = microbatch
    loss, (metrics, ratio_error) = ppo_loss(models, p, lora.combine(frozen, params), microbatch)
    return loss, (metrics, slot_M * ratio_error)

  num_microbatches = microbatches[1].shape[0]
  grads, (metrics, ratio_error_M) = optim.accumulated_gradient(
    loss_fn, params, (microbatches, jnp.eye(num_microbatches))
  )
  return grads, (metrics, jnp.max(ratio_error_M))


def ppo_update(
  models: Models,
  p: PpoConfig,
  tx,
  state: PpoState,
  batch: PpoBatch,
  ptx_batches: LmBatch | None,
  key,
  frozen: Params | None = None,
  *,
  use_segments: bool,
) -> tuple[PpoState, dict[str, Any]]:
  """All optimizer steps of one iteration: `num_epochs` passes over shuffled minibatches.

  Args:
    frozen: as in `minibatch_gradient`.
    ptx_batches: [num updates, minibatch_size * ptx_ratio, T] leaves; None where ptx_coef is 0.
    key: shuffles the rows, one draw per epoch.

  Returns:
    (state, metrics); metrics hold sums over the updates, "ppo/ratio_error_first" of the first
    minibatch of the first epoch, and the largest gradient norms.
  """

  def one_update(state, inputs):
    row_b, ptx_batch = inputs
    minibatch = jax.tree.map(lambda x: x[row_b], batch)
    params = state.train.params
    grads, metrics, ratio_error = minibatch_gradient(
      models, p, params, minibatch, ptx_batch, frozen, use_segments=use_segments
    )
    train = optim.apply_gradient(tx, state.train, grads)
    ema_params = jax.tree.map(
      lambda ema, new: p.ema_decay * ema + (1.0 - p.ema_decay) * new,
      state.ema_params,
      train.params["policy"],
    )
    norms = {f"ppo/grad_norm/{name}": optax.tree.norm(grads[name]) for name in grads}
    return state.replace(train=train, ema_params=ema_params), (metrics, ratio_error, norms)

  def epoch_rows(epoch_key):
    row_B = jax.random.permutation(epoch_key, p.batch_size)
    return row_B.reshape(p.num_minibatches, p.minibatch_size)

  rows_Ub = jax.vmap(epoch_rows)(jax.random.split(key, p.num_epochs))
  rows_Ub = rows_Ub.reshape(p.updates_per_iteration, p.minibatch_size)
  state, (metrics_U, ratio_error_U, norms_U) = jax.lax.scan(
    one_update, state, (rows_Ub, ptx_batches)
  )
  metrics = jax.tree.map(lambda x_U: jnp.sum(x_U, axis=0), metrics_U)
  metrics |= {name: jnp.max(norm_U) for name, norm_U in norms_U.items()}
  metrics["ppo/ratio_error_first"] = ratio_error_U[0]
  return state, metrics


# ----------------------------------------------------------------------------- 4. KL coefficient


def next_state(p: PpoConfig, state: PpoState, observed_kl) -> PpoState:
  """Moves the KL coefficient after an iteration, if its controller is adaptive."""
  if p.kl_controller == "fixed":
    return state
  return state.replace(
    kl_coef=losses.next_kl_coef(
      state.kl_coef,
      observed_kl,
      target=p.kl_target,
      horizon=p.kl_horizon,
      num_episodes=p.batch_size,
    )
  )


# ----------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptData:
  """Prompts to train on and held-out ones: `FORMAT:PATH` or a tfds name.

  Attributes:
    overlong: prompts of more than `ppo.max_prompt_tokens`: see `prepare.prompt_rows`.
    num_valid: held-out prompts of each validation; the first so many.
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
    if self.overlong not in prepare.OVERLONG_PROMPTS:
      raise ValueError(
        f"prompts.overlong {self.overlong!r}; choose from {sorted(prepare.OVERLONG_PROMPTS)}"
      )
    if self.num_valid < 1:
      raise ValueError(f"prompts.num_valid is {self.num_valid}; use 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtxData:
  """Pretraining text for ptx; see `prepare.text_rows`."""

  train: str
  max_tokens: int | None
  packing: str
  attend_across_documents: bool
  reset_positions: bool
  on_bad: str

  def __post_init__(self):
    if self.packing not in packing_lib.TEXT_PACKINGS:
      raise ValueError(
        f"pretraining.packing {self.packing!r}; choose from {sorted(packing_lib.TEXT_PACKINGS)}"
      )


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


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  if "ppo" not in config or "prompts" not in config:
    raise ValueError("the config has no groups `ppo` and `prompts`; use configs/ppo.py")
  p, _ = PpoConfig(**config.ppo), LoopConfig(**config.loop)
  OptimConfig(**config.policy_optim), OptimConfig(**config.value_optim)
  checkpoint.CheckpointConfig(**config.checkpoint)
  PromptData(**config.prompts), PtxData(**config.pretraining)
  if LoraConfig(**config.lora).rank and (p.value_network, p.value_init) == ("separate", "scratch"):
    raise ValueError(
      f"ppo.value_init 'scratch' with lora.rank {config.lora.rank}: adapters stand "
      "beside a trained network; use 'reward_model' or 'policy'"
    )
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  shape = networks.check_shape(config, mesh)
  if shape is not None:
    check_lengths(p, Models(policy=shape, reward=shape))
  sharding.check_rows(mesh, p.batch_size, "ppo.batch_size")
  if p.ptx_coef > 0.0:
    sharding.check_rows(
      mesh, p.num_ptx_per_minibatch, "pretraining text (ppo.minibatch_size * ppo.ptx_ratio)"
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
  tokenizer = networks.tokenizer_of(policy)
  networks.check_same_tokenizer(
    tokenizer, networks.tokenizer_of(reward), "policy_from and reward_from"
  )
  for name in config.reward_others:
    other = networks.find_export(name, kind="reward", flag="reward_others")
    check_member(ModelConfig(**reward.model), ModelConfig(**other.model), name)
    networks.check_same_tokenizer(
      tokenizer, networks.tokenizer_of(other), "policy_from and reward_others"
    )
  prompt_format = prepare.PromptFormat.of(config.prompts)
  prompt_format.check(tokenizer)
  check_read_as_trained(prompt_format, reward.config, config.reward_from)
  if config.reference_from:
    reference = networks.find_export(
      config.reference_from, kind="policy", flag="reference_from", shape=config.model
    )
    networks.check_same_tokenizer(
      tokenizer, networks.tokenizer_of(reference), "policy_from and reference_from"
    )
  check_lengths(p, Models(policy=ModelConfig(**policy.model), reward=ModelConfig(**reward.model)))
  sharding.check_heads(
    sharding.make_mesh(MeshConfig(**config.mesh)),
    reward.model["num_heads"],
    "the reward model's num_heads",
  )
  for name in ("train", "valid"):
    sources.check(
      config.prompts[name], "prompt", field=f"config.prompts.{name}", on_bad=config.prompts.on_bad
    )
  if p.ptx_coef > 0.0:
    sources.check(
      config.pretraining.train,
      "text",
      field="config.pretraining.train",
      on_bad=config.pretraining.on_bad,
    )


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


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Runs PPO-ptx from an initial policy and a reward model; exports the moving average.

  Writes `validation/step_*.jsonl` (held-out prompts, responses, reward, KL) beside the usual files,
  `export/` (moving average) and `export_live/`.

  Args:
    config: `configs/ppo.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    what `done.json` holds.
  """
  workdir = pathlib.Path(workdir)
  cache_dir = cache.directory(cache_dir, workdir)
  if workdir_lib.is_done(workdir):
    return workdir_lib.done_result(workdir)
  began = time.perf_counter()
  check_config(config)
  p, loop_cfg = PpoConfig(**config.ppo), LoopConfig(**config.loop)
  policy_optim, value_optim = OptimConfig(**config.policy_optim), OptimConfig(**config.value_optim)
  keep = checkpoint.CheckpointConfig(**config.checkpoint)
  prompts_cfg, mesh = PromptData(**config.prompts), sharding.make_mesh(MeshConfig(**config.mesh))
  lora_cfg = LoraConfig(**config.lora)
  compute = ComputeConfig(**config.compute)
  policy = networks.load(
    config.policy_from, compute, mesh, kind="policy", flag="policy_from", shape=config.model
  )
  reward = networks.load(config.reward_from, compute, mesh, kind="reward", flag="reward_from")
  networks.check_same_tokenizer(policy.tokenizer, reward.tokenizer, "policy_from and reward_from")
  reference = load_reference(config, policy, mesh)
  judges = load_ensemble(config, reward, mesh)
  adapted = lambda cfg: dataclasses.replace(cfg, lora_scale=lora.scale(lora_cfg))
  models = Models(policy=adapted(policy.cfg), reward=adapted(reward.cfg))
  tokenizer = policy.tokenizer
  check_lengths(p, models)

  prompt_format = prepare.PromptFormat.of(prompts_cfg)
  end_id = prompt_format.end_id(tokenizer)
  prompt_sets = []
  for name, spec in (("prompts", prompts_cfg.train), ("validation prompts", prompts_cfg.valid)):
    with processes.main_first(name):
      source = sources.load(spec, "prompt", cache_dir=cache_dir, on_bad=prompts_cfg.on_bad)
      rows, kept, counts = prepare.prompt_rows(
        source,
        tokenizer,
        max_prompt_tokens=p.max_prompt_tokens,
        prompt_format=prompt_format,
        overlong=prompts_cfg.overlong,
        cache_dir=cache_dir,
      )
    print(records_lib.describe_counts(name, counts), flush=True)
    prompt_sets.append((rows, kept))
  (rows, _), (valid_rows, valid_records) = prompt_sets
  prompt_stream = loop.Stream(
    batches_lib.prompt_batches(
      rows, batch_size=p.batch_size, seed=config.seed, share=sharding.local_rows(mesh, p.batch_size)
    )
  )
  ptx_stream, use_segments = None, False
  if p.ptx_coef > 0.0:
    ptx_stream, use_segments = load_ptx(
      p, PtxData(**config.pretraining), tokenizer, cache_dir, mesh, seed=config.seed
    )

  total_updates = p.num_iterations * p.updates_per_iteration
  tx = optim.per_network(
    dict(
      policy=optim.make_optimizer(policy_optim, total_updates),
      value=optim.make_optimizer(value_optim, total_updates),
    )
  )
  schedule = optim.make_schedule(policy_optim, total_updates)
  warning = warn_short_run(p)
  if warning:
    print(warning, flush=True)
  print(resolved_sizes(p), flush=True)

  with jax.set_mesh(mesh):
    frozen = frozen_networks(p, lora_cfg, policy.params, reward.params)
    init = functools.partial(init_state, models, p, tx, lora_cfg=lora_cfg)
    starts = policy.params, reward.params, loop.step_key(config.seed, "value", 0)
    layout = sharding.state_shardings(mesh, jax.eval_shape(init, *starts))
    state = jax.jit(init, out_shardings=layout)(*starts)
    del starts
    if reference is not policy:  # nobody needs the initial policy any more
      policy = dataclasses.replace(policy, params=None)
    roll_out = jax.jit(functools.partial(collect, models, p, eot_id=end_id))
    update = jax.jit(
      functools.partial(update_and_control, models, p, tx, use_segments=use_segments),
      donate_argnums=0,
      out_shardings=(layout, None),
    )

    def train_step(state, step):
      rollout_key, update_key = jax.random.split(loop.step_key(config.seed, "rollout", step))
      started = time.perf_counter()
      prompts = sharding.put_batch(mesh, prompt_stream(step), p.batch_size)
      batch, metrics = roll_out(
        state.train.params, reference.params, judges, prompts, state.kl_coef, rollout_key, frozen
      )
      jax.block_until_ready(batch)
      rolled_out = time.perf_counter()
      ptx_batches = None if ptx_stream is None else ptx_stream(step)
      state, update_metrics = update(
        state, batch, ptx_batches, metrics["objective/kl"], update_key, frozen
      )
      metrics |= update_metrics
      jax.block_until_ready(metrics)
      metrics |= {
        "ppo/learning_rate": schedule(step * p.updates_per_iteration),
        "ppo/episodes": (step + 1) * p.batch_size,
        "perf/rollout_seconds": rolled_out - started,
        "perf/update_seconds": time.perf_counter() - rolled_out,
      }
      for line in alarms(p, metrics_lib.summarise(metrics)):
        print(f"{workdir.name} iteration {step + 1}: {line}", flush=True)
      return state, metrics

    frozen_policy = None if frozen is None else frozen["policy"]
    judge = jax.jit(functools.partial(_judge, models, p, eot_id=end_id))

    def evaluate(state, step):
      lines = validate(
        p,
        judge,
        lora.combine(frozen_policy, state.ema_params),
        reference.params,
        judges,
        valid_rows,
        valid_records,
        tokenizer,
        key=loop.step_key(config.seed, "validate", step),
        num_prompts=prompts_cfg.num_valid,
        prompt_format=prompt_format,
      )
      text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
      workdir_lib.write_text(workdir / "validation" / f"step_{step:06d}.jsonl", text)
      return {
        f"validation/{name}": float(np.mean([line[name] for line in lines]))
        for name in ("reward", "kl", "response_tokens", "finished")
      }

    with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
      state = loop.run(
        name=workdir.name,
        workdir=workdir,
        cfg=loop_cfg,
        checkpoints=checkpoints,
        state=state,
        total_steps=p.num_iterations,
        train_step=train_step,
        evaluate=evaluate,
        tokens_per_step=tokens_per_iteration(p),
        headline=(
          "objective/score",
          "objective/kl",
          "ppo/policy/clipfrac",
          "ppo/ptx/nll",
          "validation/reward",
        ),
        guarded=(
          "ppo/loss/policy",
          "ppo/loss/value",
          "ppo/ptx/nll",
          "ppo/grad_norm/policy",
          "ppo/grad_norm/value",
          "objective/kl",
          "objective/score",
        ),
        metadata=dict(seed=config.seed),
      )
    live = state.train.params["policy"]
    for name, params in (("export", state.ema_params), ("export_live", live)):
      shared = dict(
        model=policy.cfg.shape(),
        tokenizer=tokenizer,
        config=workdir_lib.config_to_dict(config),
        step=p.num_iterations,
      )
      weights = networks.origin(policy.metadata) | {
        "weights": "ema" if name == "export" else "live"
      }
      checkpoint.export_params(
        workdir / name,
        lora.merged(lora_cfg, frozen_policy, params),
        kind="policy",
        metadata=weights,
        **shared,
      )
      if lora_cfg.rank:
        checkpoint.export_params(
          workdir / f"{name}_adapter",
          params,
          kind="adapter",
          metadata=weights | dict(lora=dataclasses.asdict(lora_cfg), base=config.policy_from),
          **shared,
        )
  lines = metrics_lib.read(workdir / metrics_lib.FILE)
  result = dict(
    iterations=p.num_iterations,
    updates=total_updates,
    first_minibatch_ratio_max_error=max(
      line["ppo/ratio_error_first"] for line in lines if "ppo/ratio_error_first" in line
    ),
    seconds=time.perf_counter() - began,
  )
  result |= {name: lines[-1][name] for name in lines[-1] if name.startswith("validation/")}
  workdir_lib.mark_done(workdir, result)
  return result


def load_reference(config, policy: networks.Network, mesh) -> networks.Network:
  """The frozen policy of the KL penalty: the initial policy, or another export of its shape.

  InstructGPT's reference is the initial policy (appendix C.4); its Fig. 34 takes the pretrained
  model instead.

  Raises:
    ValueError: another shape or tokenizer than the policy's.
  """
  if not config.reference_from:
    return policy
  reference = networks.load(
    config.reference_from,
    policy.cfg.compute,
    mesh,
    kind="policy",
    flag="reference_from",
    shape=config.model,
  )
  networks.check_same_tokenizer(
    policy.tokenizer, reference.tokenizer, "policy_from and reference_from"
  )
  return reference


def check_member(first: ModelConfig, other: ModelConfig, name: str) -> None:
  """Raises ValueError where a further reward model has another shape than the first."""
  for field, value in first.shape().items():
    if getattr(other, field) != value:
      raise ValueError(
        f"reward_others: {name} has {field} {getattr(other, field)}, but reward_from has {value}; "
        "the members of an ensemble have one shape"
      )


def load_ensemble(config, reward: networks.Network, mesh) -> Params | tuple[Params, ...]:
  """The parameters that score: the reward model's or, with `reward_others`, a tuple of all.

  The value network starts from the first alone.

  Raises:
    ValueError: one is of another shape or tokenizer than the first.
  """
  if not config.reward_others:
    return reward.params
  others = [
    networks.load(name, reward.cfg.compute, mesh, kind="reward", flag="reward_others")
    for name in config.reward_others
  ]
  for name, other in zip(config.reward_others, others, strict=True):
    check_member(reward.cfg, other.cfg, name)
    networks.check_same_tokenizer(
      reward.tokenizer, other.tokenizer, "reward_from and reward_others"
    )
  return (reward.params, *(other.params for other in others))


def init_value(
  models: Models, p: PpoConfig, policy_params: Params, reward_params: Params, key
) -> Params:
  """Where the value network starts: the reward model (InstructGPT C.4), or a zero head, as Ziegler
  et al. 2019 have it, on another trunk."""
  if p.value_network == "separate" and p.value_init == "reward_model":
    return jax.tree.map(jnp.copy, reward_params)
  if p.value_network == "shared":
    trunk, width = {}, models.policy.width
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


def collect(
  models: Models,
  p: PpoConfig,
  params: Params,
  ref_params: Params,
  reward_params: Params | tuple[Params, ...],
  prompts: PromptBatch,
  kl_coef,
  key,
  frozen: Params | None = None,
  *,
  eot_id: int,
):
  """The first of the two programs of an iteration: a rollout and its advantages."""
  rollout_batch = rollout(
    models, p, lora.combine(frozen, params), ref_params, reward_params, prompts, key, eot_id=eot_id
  )
  return advantages(p, rollout_batch, kl_coef)


def update_and_control(
  models: Models,
  p: PpoConfig,
  tx,
  state: PpoState,
  batch: PpoBatch,
  ptx_batches: LmBatch | None,
  kl: Metric,
  key,
  frozen: Params | None = None,
  *,
  use_segments: bool,
):
  """The second: all optimizer steps, and the KL coefficient's."""
  state, metrics = ppo_update(
    models, p, tx, state, batch, ptx_batches, key, frozen, use_segments=use_segments
  )
  return next_state(p, state, kl.total / kl.weight), metrics


def _judge(models, p, policy_params, ref_params, reward_params, prompts, key, *, eot_id):
  """Responses with their reward and KL, for validation."""
  rows, finished_B = sample(models, p, policy_params, prompts, key, eot_id=eot_id)
  mask_BT = rows["response_mask_BT"]

  def score(tokens_BT, mask_BT):
    logprobs = (
      transformer.policy_logprobs(
        models.policy, params, tokens_BT, mask_BT, temperature=p.temperature
      )[0]
      for params in (policy_params, ref_params)
    )
    return *logprobs, reward_scores(models, p, reward_params, tokens_BT, mask_BT)

  logprob_BT, ref_logprob_BT, score_B = _by_microbatch(p, score, rows["tokens_BT"], rows["mask_BT"])
  return dict(
    tokens_BT=rows["tokens_BT"],
    mask_BT=mask_BT,
    reward=score_B,
    kl=jnp.sum(losses.masked(logprob_BT - ref_logprob_BT, mask_BT), axis=1),
    response_tokens=jnp.sum(mask_BT, axis=1),
    finished=finished_B,
  )


def validate(
  p: PpoConfig,
  judge,
  policy_params,
  ref_params,
  reward_params,
  rows: PromptBatch,
  records,
  tokenizer: Tokenizer,
  *,
  key,
  num_prompts: int,
  prompt_format: prepare.PromptFormat,
) -> list[dict[str, Any]]:
  """One response to each of the first held-out prompts, with the numbers of `_judge`."""
  rows = jax.tree.map(lambda x: x[:num_prompts], rows)
  lines = []
  for index, (batch, valid_B) in enumerate(batches_lib.fixed_batches(rows, p.batch_size)):
    out = processes.to_host(
      judge(policy_params, ref_params, reward_params, batch, jax.random.fold_in(key, index))
    )
    for row in np.flatnonzero(valid_B):
      ids = out["tokens_BT"][row][out["mask_BT"][row] > 0]
      lines.append(
        dict(
          prompt=records[len(lines)]["prompt"],
          response=prompt_format.decode_completion(tokenizer, ids),
          **{
            name: float(out[name][row]) for name in ("reward", "kl", "response_tokens", "finished")
          },
        )
      )
  return lines


def load_ptx(
  p: PpoConfig, cfg: PtxData, tokenizer: Tokenizer, cache_dir: pathlib.Path, mesh, *, seed: int
):
  """A function of the iteration that gives [updates, minibatch_size * ptx_ratio, T] rows, the
  second axis split over the mesh."""
  with processes.main_first("pretraining"):
    source = sources.load(cfg.train, "text", cache_dir=cache_dir, on_bad=cfg.on_bad)
    rows, counts = prepare.text_rows(
      source,
      tokenizer,
      length=p.ptx_length,
      packing=cfg.packing,
      max_tokens=cfg.max_tokens,
      attend_across_documents=cfg.attend_across_documents,
      reset_positions=cfg.reset_positions,
      cache_dir=cache_dir,
    )
  print(records_lib.describe_counts("pretraining text", counts), flush=True)
  num_updates, num_rows = p.updates_per_iteration, p.num_ptx_per_minibatch
  place_Ub = np.arange(num_updates * num_rows).reshape(num_updates, num_rows)
  # A stream of its own: the first ptx rows are not those that pretraining saw first.
  stream = loop.Stream(
    batches_lib.lm_batches(
      rows,
      batch_size=place_Ub.size,
      seed=seed + 1,
      share=place_Ub[:, sharding.local_rows(mesh, num_rows)].reshape(-1),
    )
  )

  def batches(step: int) -> LmBatch:
    split = jax.tree.map(lambda x: x.reshape(num_updates, -1, *x.shape[1:]), stream(step))
    return sharding.put_batch(mesh, split, num_rows, axis=1)

  return batches, not cfg.attend_across_documents


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
