"""The reward model: rankings of K completions in, one scalar per answer out.

    loss = -1/C(K,2) * E_{(x, y_w, y_l)} [ log sigmoid(r(x, y_w) - r(x, y_l)) ]   (eq. 1)

All comparisons of a prompt form one batch element, so that each completion passes through the
model once per epoch and one epoch does not overfit.  After training the bias is set so that
demonstrations have mean reward 0.  Source: InstructGPT section 3.5 and appendix C.2.
"""

import dataclasses
import functools
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
from rlhf.data import records as records_lib
from rlhf.inference.rewards import score_comparisons, score_completions, score_rows
from rlhf.loop import LoopConfig
from rlhf.model import lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
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
    for name in ("batch_size", "microbatch_size", "num_epochs"):
      if getattr(self, name) < 1:
        raise ValueError(f"reward.{name} is {getattr(self, name)}; use 1 or more")
    if self.batch_size % self.microbatch_size:
      raise ValueError(
        f"reward.batch_size {self.batch_size} does not divide into "
        f"reward.microbatch_size {self.microbatch_size}"
      )


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
    for field, choices in (
      ("overlong", prepare.OVERLONG_COMPARISONS),
      ("overlong_demonstrations", prepare.OVERLONG_DEMONSTRATIONS),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(
          f"comparisons.{field} {getattr(self, field)!r}; choose from {sorted(choices)}"
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
  metrics = {
    "train/loss": loss,
    "train/accuracy": aux["accuracy"],
    "train/log_loss": aux["log_loss"],
    "train/margin": aux["margin"],
    "train/reward": losses.masked_metric(score_BK, batch.valid_BK),
  }
  return loss.total * weight, metrics


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
  frozen: Params | None = None,
) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step on `p.batch_size` prompts.

  Args:
    frozen: parameters beside `state.params` that are not trained; None where all are.
  """
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
  return metrics_lib.summarise(
    {
      "validation/loss": loss,
      "validation/accuracy": aux["accuracy"],
      "validation/log_loss": aux["log_loss"],
      "validation/margin": aux["margin"],
    }
  )


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  if "reward" not in config:
    raise ValueError("the config has no group `reward`; use configs/reward_model.py")
  p, _, _ = RewardConfig(**config.reward), LoopConfig(**config.loop), OptimConfig(**config.optim)
  checkpoint.CheckpointConfig(**config.checkpoint)
  LoraConfig(**config.lora)
  ComparisonData(**config.comparisons)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  networks.check_shape(config, mesh)
  sharding.check_rows(mesh, p.batch_size, "reward.batch_size")


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing: exports by their JSON, data line by line.

  Raises:
    ValueError: as `train` would raise later.
  """
  export = networks.find_export(
    config.init_from, kind="policy", flag="init_from", shape=config.model
  )
  prepare.PromptFormat.of(config.comparisons).check(networks.tokenizer_of(export))
  for name, kind in (
    ("train", "comparison"),
    ("valid", "comparison"),
    ("demonstrations", "demonstration"),
  ):
    sources.check(
      config.comparisons[name],
      kind,
      field=f"config.comparisons.{name}",
      on_bad=config.comparisons.on_bad,
    )


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains on rankings, validates, centres demonstrations at 0 and exports.

  Args:
    config: `configs/reward_model.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    what `done.json` holds: validation accuracy and loss, the offset, steps, seconds.
  """
  workdir = pathlib.Path(workdir)
  cache_dir = cache.directory(cache_dir, workdir)
  if workdir_lib.is_done(workdir):
    return workdir_lib.done_result(workdir)
  began = time.perf_counter()
  check_config(config)
  p, loop_cfg = RewardConfig(**config.reward), LoopConfig(**config.loop)
  optim_cfg, keep = OptimConfig(**config.optim), checkpoint.CheckpointConfig(**config.checkpoint)
  sets, lora_cfg = ComparisonData(**config.comparisons), LoraConfig(**config.lora)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  network = networks.load(
    config.init_from,
    ComputeConfig(**config.compute),
    mesh,
    kind="policy",
    flag="init_from",
    shape=config.model,
  )
  tokenizer = network.tokenizer
  cfg, trunk = transformer.without_output(network.cfg, network.params)
  network = dataclasses.replace(network, cfg=cfg, params=None)
  prompt_format = prepare.PromptFormat.of(sets)

  def comparison_rows(name, spec):
    with processes.main_first(name):
      source = sources.load(spec, "comparison", cache_dir=cache_dir, on_bad=sets.on_bad)
      rows, counts = prepare.comparison_rows(
        source,
        tokenizer,
        length=config.length,
        overlong=sets.overlong,
        prompt_format=prompt_format,
        cache_dir=cache_dir,
      )
    print(records_lib.describe_counts(name, counts), flush=True)
    return rows

  rows = comparison_rows("comparisons", sets.train)
  valid_rows = comparison_rows("validation comparisons", sets.valid)
  with processes.main_first("demonstrations"):
    source = sources.load(
      sets.demonstrations, "demonstration", cache_dir=cache_dir, on_bad=sets.on_bad
    )
  demonstrations = demonstration_ids(
    source,
    tokenizer,
    length=config.length,
    overlong=sets.overlong_demonstrations,
    prompt_format=prompt_format,
  )

  batches = batches_lib.comparison_batches(
    rows,
    batch_size=p.batch_size,
    seed=config.seed,
    pairs=p.pairs,
    share=sharding.local_rows(mesh, p.batch_size),
  )
  total_steps = batches.num_steps(p.num_epochs)
  tx = optim.make_optimizer(optim_cfg, total_steps)
  schedule = optim.make_schedule(optim_cfg, total_steps)
  print(
    f"{workdir.name}: {cfg.num_block_params:,} parameters outside the embeddings, "
    f"{total_steps:,} steps of {p.batch_size} prompts, up to {rows.num_slots} completions each",
    flush=True,
  )

  with jax.set_mesh(mesh):
    head = transformer.init_head(cfg, loop.step_key(config.seed, "head", 0))
    frozen, trained = lora.split(
      lora_cfg, dict(trunk, head=head), loop.step_key(config.seed, "lora", 0)
    )
    cfg = dataclasses.replace(network.cfg, lora_scale=lora.scale(lora_cfg))
    init = functools.partial(optim.init_train_state, tx)
    layout = sharding.state_shardings(mesh, jax.eval_shape(init, trained))
    state = jax.jit(init, out_shardings=layout)(trained)
    del trunk, trained  # only what is frozen is still needed
    update = jax.jit(
      functools.partial(reward_update, cfg, p, tx), donate_argnums=0, out_shardings=(layout, None)
    )
    next_batch = loop.Stream(batches)

    def train_step(state, step):
      batch = sharding.put_batch(mesh, next_batch(step), p.batch_size)
      state, metrics = update(state, batch, frozen)
      return state, metrics | {
        "train/learning_rate": schedule(step),
        "train/epoch": (step + 1) / batches.num_batches_per_epoch,
      }

    def evaluate(state, step):
      del step
      return validation_metrics(
        *score_comparisons(
          cfg, lora.combine(frozen, state.params), valid_rows, batch_size=p.batch_size
        )
      )

    with checkpoint.Checkpoints(workdir / "checkpoints", keep) as checkpoints:
      state = loop.run(
        name=workdir.name,
        workdir=workdir,
        cfg=loop_cfg,
        checkpoints=checkpoints,
        state=state,
        total_steps=total_steps,
        train_step=train_step,
        evaluate=evaluate,
        tokens_per_step=p.batch_size * rows.num_slots * config.length,
        headline=("train/loss", "train/accuracy", "validation/accuracy"),
        guarded=("train/loss", "train/grad_norm", "validation/loss"),
        metadata=dict(seed=config.seed),
      )

    params = lora.merged(lora_cfg, frozen, state.params)
    offset = float(
      np.mean(
        score_rows(cfg, params, demonstrations, length=config.length, batch_size=p.batch_size)
      )
    )
    params = with_zero_mean(params, offset)
    score_NK, rank_NK, valid_NK = score_comparisons(
      cfg, params, valid_rows, batch_size=p.batch_size
    )
    shared = dict(
      model=network.cfg.shape(),
      tokenizer=tokenizer,
      config=workdir_lib.config_to_dict(config),
      step=total_steps,
    )
    metadata = networks.origin(network.metadata) | dict(demonstration_offset=offset)
    checkpoint.export_params(workdir / "export", params, kind="reward", metadata=metadata, **shared)
    if lora_cfg.rank:
      checkpoint.export_params(
        workdir / "export_adapter",
        dict(state.params, head=params["head"]),
        kind="adapter",
        metadata=metadata | dict(lora=dataclasses.asdict(lora_cfg), base=config.init_from),
        **shared,
      )
  workdir_lib.write_json(
    workdir / "validation_scores.json",
    dict(scores=score_NK.tolist(), ranks=rank_NK.tolist(), valid=valid_NK.tolist()),
  )
  result = validation_metrics(score_NK, rank_NK, valid_NK) | dict(
    steps=total_steps, demonstration_offset=offset, seconds=time.perf_counter() - began
  )
  workdir_lib.mark_done(workdir, result)
  return result


def demonstration_ids(
  records, tokenizer, *, length: int, overlong: str, prompt_format: prepare.PromptFormat
) -> list[np.ndarray]:
  """Whole demonstrations, one sequence each, as the reward model will read responses."""
  rows, counts = prepare.demonstration_rows(
    records,
    tokenizer,
    length=length,
    packing="one_per_row",
    overlong=overlong,
    prompt_format=prompt_format,
  )
  print(records_lib.describe_counts("demonstrations for the offset", counts), flush=True)
  sizes = (rows.segment_BT > 0).sum(axis=1)
  return [row[:size] for row, size in zip(rows.tokens_BT, sizes, strict=True)]
