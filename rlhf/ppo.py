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

Everything but `train` and `validate` is a pure function.  `p` is the frozen `PpoConfig`.
`ppo_setup.py` has its fields, the checks, and what is loaded before the first iteration.
"""

import functools
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf import loop, losses, networks, optim, ppo_setup, processes, sharding, training
from rlhf import metrics as metrics_lib
from rlhf import workdir as workdir_lib
from rlhf.data import batches as batches_lib
from rlhf.data import prepare
from rlhf.inference import ensembles, sampling
from rlhf.model import lora, transformer
from rlhf.ppo_setup import Models, PpoConfig, check_config, check_inputs
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch, Metric, Params, PpoBatch, PpoState, PromptBatch, Rollout

__all__ = ["check_config", "check_inputs", "train"]


# ----------------------------------------------------------------------------- 1. rollout


def policy_logprobs(
  models: Models, p: PpoConfig, policy_params: Params, tokens_BT, mask_BT, response_mask_BT
):
  """Log-probs and entropy of responses: the one way in which any policy is scored.

  Returns:
    (logprob_BT, entropy_BT, hidden_BTD); the first two are 0 outside responses.
  """
  hidden_BTD = transformer.forward(models.policy, policy_params, tokens_BT, mask_BT)
  logprob_BT, entropy_BT = transformer.response_logprobs(
    models.policy,
    policy_params,
    hidden_BTD,
    tokens_BT,
    response_mask_BT,
    max_tokens=p.max_response_tokens,
    temperature=p.temperature,
  )
  return logprob_BT, entropy_BT, hidden_BTD


def policy_and_values(
  models: Models, p: PpoConfig, params: Params, tokens_BT, mask_BT, response_mask_BT
):
  """Log-probs, entropy and values of one microbatch: what scoring and update both call."""
  logprob_BT, entropy_BT, hidden_BTD = policy_logprobs(
    models, p, params["policy"], tokens_BT, mask_BT, response_mask_BT
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
    (rows, finished_B); `rows` as `sampling.join` returns them.
  """
  return sampling.sample(
    models.policy,
    policy_params,
    prompts,
    key,
    np.arange(prompts.tokens_BP.shape[0]),
    eot_id=eot_id,
    max_new_tokens=p.max_response_tokens,
    temperature=p.temperature,
    num_slots=p.num_slots,
  )


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
  response_mask_BT,
):
  """What the four networks say of whole rows, in microbatches of the update's shape.

  Returns:
    (logprob_BT, value_BT, ref_logprob_BT, score_B).
  """

  def score(*rows):
    with jax.named_scope("score/policy"):
      logprob_BT, _, value_BT = policy_and_values(models, p, params, *rows)
    with jax.named_scope("score/reference"):
      ref_logprob_BT, _, _ = policy_logprobs(models, p, ref_params, *rows)
    with jax.named_scope("score/reward"):
      score_B = reward_scores(models, p, reward_params, *rows[:2])
    return logprob_BT, value_BT, ref_logprob_BT, score_B

  return _by_microbatch(p, score, tokens_BT, mask_BT, response_mask_BT)


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
  """One batch of episodes: two programs, of which validation has the first in common.

  Args:
    params: {"policy", "value"}: the live weights.
    ref_params, reward_params: frozen; the latter as in `reward_scores`.
  """
  rows, finished_B = sample(models, p, params["policy"], prompts, key, eot_id=eot_id)
  return scored(models, p, params, ref_params, reward_params, rows, finished_B)


@functools.partial(jax.jit, static_argnames=("models", "p"))
def scored(
  models: Models,
  p: PpoConfig,
  params: Params,
  ref_params: Params,
  reward_params: Params | tuple[Params, ...],
  rows: dict[str, Any],
  finished_B,
) -> Rollout:
  """What `sample` returns, with log-probs, values and scores.

  Old log-probs are not the decoder's: they are computed by `policy_and_values` in microbatches of
  the update's shape, so that the first minibatch's ratio is 1.
  """
  mask_BT = rows["response_mask_BT"]
  logprob_BT, value_BT, ref_logprob_BT, score_B = score_rows(
    models, p, params, ref_params, reward_params, rows["tokens_BT"], rows["mask_BT"], mask_BT
  )
  return Rollout(
    logprob_BT=logprob_BT,
    value_BT=losses.masked(value_BT, mask_BT),
    ref_logprob_BT=ref_logprob_BT,
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


@functools.partial(jax.jit, static_argnames="p")
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
    models, p, params, batch.tokens_BT, batch.mask_BT, mask_BT
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
  with jax.named_scope("update/ppo"):
    grads, (metrics, ratio_error_sum) = _ppo_gradient(
      models, p, params, frozen, sharding.split_microbatches((batch, weight_BT), num_microbatches)
    )
  if p.ptx_coef > 0.0:
    assert ptx_batch is not None
    examples = ptx_batch.tokens_BT.shape[0]
    weight = (
      1.0 / jnp.maximum(jnp.sum(ptx_batch.loss_mask_BT), 1.0)
      if p.ptx_reduction == "token_mean"
      else jnp.float32(1.0 / examples)
    )
    num_ptx = examples // p.ptx_microbatch_size
    microbatches = (sharding.split_microbatches(ptx_batch, num_ptx), jnp.full((num_ptx,), weight))
    with jax.named_scope("update/ptx"):
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
    with jax.named_scope("update/optimizer"):
      train = optim.apply_gradient(tx, state.train, grads)
    # decay * average + (1 - decay) * new
    ema_params = optax.incremental_update(
      state.ema_params, train.params["policy"], step_size=p.ema_decay
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
  kl_coef = losses.next_kl_coef(
    state.kl_coef,
    observed_kl,
    target=p.kl_target,
    horizon=p.kl_horizon,
    num_episodes=p.batch_size,
  )
  return PpoState(train=state.train, ema_params=state.ema_params, kl_coef=kl_coef)


# ----------------------------------------------------------------------------- one iteration


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
  """Steps 1 and 2: a rollout and its advantages."""
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
  """Steps 3 and 4, one program: all optimizer steps, and the KL coefficient's move."""
  state, metrics = ppo_update(
    models, p, tx, state, batch, ptx_batches, key, frozen, use_segments=use_segments
  )
  return next_state(p, state, kl.total / kl.weight), metrics


# ----------------------------------------------------------------------------- validation


def validation_rollout(
  models: Models,
  p: PpoConfig,
  policy_params: Params,
  ref_params: Params,
  reward_params: Params | tuple[Params, ...],
  prompts: PromptBatch,
  key,
  *,
  eot_id: int,
) -> dict[str, Any]:
  """Responses with their reward and KL: a rollout without values."""
  rows, finished_B = sample(models, p, policy_params, prompts, key, eot_id=eot_id)
  return _validated(models, p, policy_params, ref_params, reward_params, rows, finished_B)


@functools.partial(jax.jit, static_argnames=("models", "p"))
def _validated(models, p, policy_params, ref_params, reward_params, rows, finished_B):
  mask_BT = rows["response_mask_BT"]

  def score(*rows):
    logprobs = (
      policy_logprobs(models, p, params, *rows)[0] for params in (policy_params, ref_params)
    )
    return *logprobs, reward_scores(models, p, reward_params, *rows[:2])

  logprob_BT, ref_logprob_BT, score_B = _by_microbatch(
    p, score, rows["tokens_BT"], rows["mask_BT"], mask_BT
  )
  return dict(
    tokens_BT=rows["tokens_BT"],
    mask_BT=mask_BT,
    reward=score_B,
    kl=jnp.sum(logprob_BT - ref_logprob_BT, axis=1),
    response_tokens=jnp.sum(mask_BT, axis=1),
    finished=finished_B,
  )


VALIDATION = ("reward", "kl", "response_tokens", "finished")


def validate(
  run_rollout: Callable[..., dict[str, Any]],
  rows: PromptBatch,
  records,
  tokenizer: Tokenizer,
  *,
  batch_size: int,
  key,
  prompt_format: prepare.PromptFormat,
) -> list[dict[str, Any]]:
  """One response to each held-out prompt, with its `VALIDATION` numbers.

  Args:
    run_rollout: (prompts, key) -> what `validation_rollout` returns.
  """
  lines: list[dict[str, Any]] = []
  for index, (batch, valid_B) in enumerate(batches_lib.fixed_batches(rows, batch_size)):
    out = processes.to_host(run_rollout(batch, jax.random.fold_in(key, index)))
    for row in np.flatnonzero(valid_B):
      ids = out["tokens_BT"][row][out["mask_BT"][row] > 0]
      numbers = {name: float(out[name][row]) for name in VALIDATION}
      response = prompt_format.decode_completion(tokenizer, ids)
      lines.append(dict(prompt=records[len(lines)]["prompt"], response=response, **numbers))
  return lines


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Runs PPO-ptx from an initial policy and a reward model; exports the moving average.

  Writes `validation/step_*.jsonl` (held-out prompts, responses, reward, KL), `export/` (moving
  average) and `export_live/`, next to the usual files.

  Args:
    config: `configs/ppo.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    What `done.json` holds.
  """
  check_config(config)
  return training.once(_train, config, workdir, cache_dir)


def _train(config, workdir: pathlib.Path, cache_dir: pathlib.Path | None) -> dict[str, Any]:
  groups, p = training.groups(config), PpoConfig(**config.ppo)
  nets = ppo_setup.load_networks(config, groups)
  models, tokenizer, origin = nets.models, nets.policy.tokenizer, nets.policy.metadata
  ppo_setup.check_lengths(p, models)
  with processes.main_first("data"):
    data = ppo_setup.load_data(config, p, tokenizer, cache_dir, groups.mesh)
  prompt_format = prepare.PromptFormat.of(config.prompts)
  end_id = prompt_format.end_id(tokenizer)
  tx, schedule = ppo_setup.make_optimizer(config, p)
  warning = ppo_setup.warn_short_run(p)
  if warning:
    print(warning, flush=True)
  print(ppo_setup.resolved_sizes(p), flush=True)

  with jax.set_mesh(groups.mesh):
    policy_params, reward_params = nets.policy.params, nets.reward.params
    frozen = ppo_setup.frozen_networks(p, groups.lora, policy_params, reward_params)
    state, layout = training.place(
      groups.mesh,
      functools.partial(ppo_setup.init_state, models, p, tx, lora_cfg=groups.lora),
      policy_params,
      reward_params,
      loop.step_key(config.seed, "value", 0),
    )
    ref_params, reward_params = nets.ref_params, nets.reward_params
    del nets, policy_params  # with `reference_from`, nobody needs the initial policy any more
    roll_out = functools.partial(collect, models, p, eot_id=end_id)
    update = jax.jit(
      functools.partial(update_and_control, models, p, tx, use_segments=data.use_segments),
      donate_argnums=0,
      out_shardings=(layout, None),
    )
    roll_out_validation = functools.partial(validation_rollout, models, p, eot_id=end_id)
    frozen_policy = None if frozen is None else frozen["policy"]

    def iteration(state: PpoState, step: int):
      rollout_key, update_key = jax.random.split(loop.step_key(config.seed, "rollout", step))
      started = time.perf_counter()
      # 1, 2: episodes with the live weights, their rewards and advantages.
      batch, metrics = roll_out(
        state.train.params,
        ref_params,
        reward_params,
        data.prompts(step),
        state.kl_coef,
        rollout_key,
        frozen,
      )
      jax.block_until_ready(batch)
      rolled_out = time.perf_counter()
      # 3, 4: the optimizer steps, the moving average and the KL coefficient.
      ptx_batches = None if data.ptx is None else data.ptx(step)
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
      for line in ppo_setup.alarms(p, metrics_lib.summarise(metrics)):
        print(f"{workdir.name} iteration {step + 1}: {line}", flush=True)
      return state, metrics

    def evaluate(state: PpoState, step: int) -> dict[str, float]:
      policy_params = lora.combine(frozen_policy, state.ema_params)
      lines = validate(
        functools.partial(roll_out_validation, policy_params, ref_params, reward_params),
        data.valid_rows,
        data.valid_records,
        tokenizer,
        batch_size=p.batch_size,
        key=loop.step_key(config.seed, "validate", step),
        prompt_format=prompt_format,
      )
      text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
      workdir_lib.write_text(workdir / "validation" / f"step_{step:06d}.jsonl", text)
      return {
        f"validation/{name}": float(np.mean([line[name] for line in lines])) for name in VALIDATION
      }

    state = training.run(
      config,
      workdir,
      groups,
      state=state,
      total_steps=p.num_iterations,
      train_step=iteration,
      evaluate=evaluate,
      tokens_per_step=ppo_setup.tokens_per_iteration(p),
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
    )
    for name, weights, params in (
      ("export", "ema", state.ema_params),
      ("export_live", "live", state.train.params["policy"]),
    ):
      training.export(
        workdir / name,
        config,
        lora.merged(groups.lora, frozen_policy, params),
        cfg=models.policy,
        tokenizer=tokenizer,
        kind="policy",
        step=p.num_iterations,
        metadata=networks.origin(origin) | {"weights": weights},
        adapters=params,
      )
  lines = metrics_lib.read(workdir / metrics_lib.FILE)
  ratio_errors = [line.get("ppo/ratio_error_first", 0.0) for line in lines]
  return dict(
    iterations=p.num_iterations,
    updates=p.num_iterations * p.updates_per_iteration,
    first_minibatch_ratio_max_error=max(ratio_errors),
  ) | {name: value for name, value in lines[-1].items() if name.startswith("validation/")}
