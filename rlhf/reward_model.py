"""The reward model: rankings of K completions in, one scalar per completion out.

    loss = -1/C(K,2) * E_{(x, y_w, y_l)} [ log sigmoid(r(x, y_w) - r(x, y_l)) ]   (eq. 1)

All comparisons of a prompt form one batch element, so that each completion passes through the
model once per epoch and one epoch does not overfit.  After training the bias is set so that
demonstrations have mean reward 0.  Source: InstructGPT section 3.5 and appendix C.2.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlhf import checks, loop, losses, networks, optim, processes, sharding, training
from rlhf import metrics as metrics_lib
from rlhf import workdir as workdir_lib
from rlhf.data import batches as batches_lib
from rlhf.data import prepare, sources
from rlhf.inference.rewards import score_comparisons, score_completions, score_rows
from rlhf.model import lora, transformer
from rlhf.model.architecture import ModelConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import ComparisonBatch, Params, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
  """Numbers of reward-model training; `configs/reward_model.py` says where defaults come from.

  Attributes:
    batch_size: prompts of an optimizer step, each with all its completions.
    microbatch_size: prompts whose activations exist at once.
    num_epochs: passes over the comparisons; the paper takes 1, more overfit.
    pairs: every untied pair becomes an element of its own, shuffled: the ablation that overfits.
  """

  batch_size: int
  microbatch_size: int
  num_epochs: int
  pairs: bool

  def __post_init__(self):
    checks.at_least("reward", self, batch_size=1, microbatch_size=1, num_epochs=1)
    checks.divides("reward", self, "batch_size", "microbatch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonData:
  """Comparisons and demonstrations: `FORMAT:PATH` or a tfds name.

  Attributes:
    train, valid: comparisons, disjoint in prompts.
    demonstrations: their mean reward is set to 0 after training.
    overlong, overlong_demonstrations: see `prepare.comparison_rows` and `demonstration_rows`.
    prompt_format, prompt_suffix, completion_prefix: see `prepare.PromptFormat`.
    on_bad: "stop" or "skip" at a malformed line.
  """

  train: str
  valid: str
  demonstrations: str
  overlong: str
  overlong_demonstrations: str
  prompt_format: str
  prompt_suffix: str
  completion_prefix: str
  on_bad: str

  def __post_init__(self):
    prepare.PromptFormat.of(self, "comparisons")  # checks its names
    checks.choices(
      "comparisons",
      self,
      overlong=prepare.OVERLONG_COMPARISONS,
      overlong_demonstrations=prepare.OVERLONG_DEMONSTRATIONS,
    )


def reward_loss(cfg: ModelConfig, params: Params, microbatch, *, frozen: Params | None = None):
  """Eq. 1 on one microbatch, divided by the whole batch's number of prompts with a pair.

  Args:
    params: what is trained; `frozen` is the rest (`lora.split`).
    microbatch: (ComparisonBatch, weight).
  """
  batch, weight = microbatch
  score_BK = score_completions(cfg, lora.combine(frozen, params), batch)
  loss, aux = losses.comparison_loss(score_BK, batch.rank_BK, batch.valid_BK)
  reward = losses.masked_metric(score_BK, batch.valid_BK)
  metrics = dict(loss=loss, **aux, reward=reward)
  return loss.total * weight, {f"train/{name}": metric for name, metric in metrics.items()}


def num_prompts_with_pair(batch: ComparisonBatch):
  """Prompts of the batch that have at least two completions of different rank."""
  zeros_BK = jnp.zeros(batch.rank_BK.shape, jnp.float32)
  return losses.comparison_loss(zeros_BK, batch.rank_BK, batch.valid_BK)[0].weight


def reward_update(
  cfg: ModelConfig,
  p: RewardConfig,
  tx,
  state: TrainState,
  batch: ComparisonBatch,
  key=None,
  frozen: Params | None = None,
) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step on `p.batch_size` prompts.

  Args:
    key: unused; nothing here is random.
    frozen: parameters beside `state.params` that are not trained; None where all are.
  """
  del key
  num_microbatches = p.batch_size // p.microbatch_size
  weight = 1.0 / jnp.maximum(num_prompts_with_pair(batch), 1.0)
  microbatches = (
    sharding.split_microbatches(batch, num_microbatches),
    jnp.full((num_microbatches,), weight),
  )
  grads, metrics = optim.accumulated_gradient(
    functools.partial(reward_loss, cfg, frozen=frozen), state.params, microbatches
  )
  metrics["train/grad_norm"] = optax.tree.norm(grads)
  return optim.apply_gradient(tx, state, grads), metrics


def with_zero_mean(params: Params, mean_score) -> Params:
  """Shifts the bias so that what scored `mean_score` on average scores 0.

  Differences of rewards, and so the loss, do not change.  Source: InstructGPT section 3.5.
  """
  head = dict(params["head"], bias=params["head"]["bias"] - mean_score)
  return dict(params, head=head)


def validation_metrics(score_NK, rank_NK, valid_NK) -> dict[str, float]:
  """Loss and accuracy over all untied pairs of a validation set."""
  loss, aux = losses.comparison_loss(
    jnp.asarray(score_NK, jnp.float32), jnp.asarray(rank_NK), jnp.asarray(valid_NK)
  )
  numbers = metrics_lib.summarise(dict(loss=loss, **aux))
  return {f"validation/{name}": number for name, number in numbers.items()}


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  training.check_kind(config, "reward_model")
  ComparisonData(**config.comparisons)
  training.check_groups(config, reward__batch_size=RewardConfig(**config.reward).batch_size)


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing: exports by their JSON, data line by line.

  Raises:
    ValueError: as `train` would raise later.
  """
  export = networks.find_export(
    config.init_from, kind="policy", flag="init_from", shape=config.model
  )
  prepare.PromptFormat.of(config.comparisons).check(export.tokenizer)
  training.check_data(config, "comparisons", "comparison", "train", "valid")
  training.check_data(config, "comparisons", "demonstration", "demonstrations")


# ----------------------------------------------------------------------------- data


def load_data(config, tokenizer: Tokenizer, cache_dir: pathlib.Path | None):
  """Reads and tokenises; prints what was dropped and why.

  Returns:
    (comparisons, comparisons for validation, ids of demonstrations).
  """
  sets = ComparisonData(**config.comparisons)
  prompt_format = prepare.PromptFormat.of(sets)
  read = functools.partial(sources.load, cache_dir=cache_dir, on_bad=sets.on_bad)
  rows, valid_rows = (
    training.printed(
      name,
      *prepare.comparison_rows(
        read(spec, "comparison"),
        tokenizer,
        length=config.length,
        overlong=sets.overlong,
        prompt_format=prompt_format,
        cache_dir=cache_dir,
      ),
    )
    for name, spec in (("comparisons", sets.train), ("validation comparisons", sets.valid))
  )
  # One whole demonstration a row, as the reward model reads responses.
  demonstrations = training.printed(
    "demonstrations for the offset",
    *prepare.demonstration_rows(
      read(sets.demonstrations, "demonstration"),
      tokenizer,
      length=config.length,
      packing="one_per_row",
      overlong=sets.overlong_demonstrations,
      prompt_format=prompt_format,
    ),
  )
  sizes = (demonstrations.segment_BT > 0).sum(axis=1)
  ids = [row[:size] for row, size in zip(demonstrations.tokens_BT, sizes, strict=True)]
  return rows, valid_rows, ids


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains on rankings, validates, centres demonstrations at 0 and exports.

  Args:
    config: `configs/reward_model.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    What `done.json` holds: validation accuracy and loss, the offset, steps, seconds.
  """
  check_config(config)
  return training.once(_train, config, workdir, cache_dir)


def _train(config, workdir: pathlib.Path, cache_dir: pathlib.Path | None) -> dict[str, Any]:
  groups, p = training.groups(config), RewardConfig(**config.reward)
  policy = training.start(config, groups)
  with processes.main_first("data"):
    rows, valid_rows, demonstrations = load_data(config, policy.tokenizer, cache_dir)
  batches = batches_lib.Batches(
    rows.pairs() if p.pairs else rows,
    batch_size=p.batch_size,
    seed=config.seed,
    share=sharding.local_rows(groups.mesh, p.batch_size),
  )
  num_steps = batches.num_steps(p.num_epochs)
  cfg, trunk = transformer.without_output(policy.cfg, policy.params)
  print(
    f"{workdir.name}: {cfg.num_block_params:,} parameters outside the embeddings, "
    f"{num_steps:,} steps of {p.batch_size} prompts, up to {rows.num_slots} completions each",
    flush=True,
  )

  with jax.set_mesh(groups.mesh):
    head = transformer.init_head(cfg, loop.step_key(config.seed, "head", 0))
    network = dataclasses.replace(policy, cfg=cfg, params=dict(trunk, head=head))
    trainee = training.adapt(config, groups, network)
    cfg = trainee.cfg
    del policy, trunk, network

    def score_validation(params: Params):
      return score_comparisons(cfg, params, valid_rows, batch_size=p.batch_size)

    def evaluate(params: Params) -> dict[str, float]:
      return validation_metrics(*score_validation(params))

    state = training.train_network(
      config,
      workdir,
      groups,
      trainee,
      functools.partial(reward_update, cfg, p),
      batches,
      batch_size=p.batch_size,
      total_steps=num_steps,
      evaluate=evaluate,
      tokens_per_step=p.batch_size * rows.num_slots * config.length,
      headline=("train/loss", "train/accuracy", "validation/accuracy"),
    )

    params = lora.merged(groups.lora, trainee.frozen, state.params)
    score_N = score_rows(cfg, params, demonstrations, length=config.length, batch_size=p.batch_size)
    offset = float(np.mean(score_N))
    params = with_zero_mean(params, offset)
    score_NK, rank_NK, valid_NK = score_validation(params)
    training.export(
      workdir / "export",
      config,
      params,
      cfg=cfg,
      tokenizer=trainee.tokenizer,
      kind="reward",
      step=num_steps,
      metadata=trainee.metadata | dict(demonstration_offset=offset),
      adapters=dict(state.params, head=params["head"]),
    )
  workdir_lib.write_json(
    workdir / "validation_scores.json",
    dict(scores=score_NK.tolist(), ranks=rank_NK.tolist(), valid=valid_NK.tolist()),
  )
  return validation_metrics(score_NK, rank_NK, valid_NK) | dict(
    steps=num_steps, demonstration_offset=offset
  )
