"""Supervised fine-tuning; pretraining and PALMS are this file with another config.

    loss = - sum over targets of log p(token | tokens before)  /  number of targets

One optimizer step reads one global batch of packed rows; its gradient is accumulated over
microbatches and divided by the targets of the whole batch.  Residual dropout is on here and
nowhere else.  Source: InstructGPT section 3.5 and appendix C.1 (16-epoch baseline), C.3 and E.8
(2-epoch initialisation of PPO with 10 % pretraining data).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf import checks, loop, networks, optim, processes, sharding, training
from rlhf.data import batches as batches_lib
from rlhf.data import mixtures, prepare, sources
from rlhf.data import packing as packing_lib
from rlhf.inference import likelihood
from rlhf.model import lora, transformer
from rlhf.model.architecture import ModelConfig
from rlhf.model.lora import LoraConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.training import Groups, TextData, Trainee
from rlhf.types import LmBatch, Params, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftConfig:
  """Numbers of LM training.

  Attributes:
    batch_size: rows of an optimizer step.
    microbatch_size: rows whose activations exist at once.
    num_epochs: passes over the demonstrations (over the text, where there are none).
    max_steps: ends the run, and its schedule, earlier; None runs all epochs.
    dropout_rate: on what each sub-block adds to the residual stream.
    keep_epochs: also export the parameters after every epoch, to `epochs/01`, `epochs/02`, ...
    keep_rows: also export them after every `keep_rows` rows, to `rows/00128000`, ...; a row is an
      example where packing is "one_per_row".  None: never.
  """

  batch_size: int
  microbatch_size: int
  num_epochs: int
  max_steps: int | None
  dropout_rate: float
  keep_epochs: bool
  keep_rows: int | None

  def __post_init__(self):
    checks.at_least(
      "sft", self, batch_size=1, microbatch_size=1, num_epochs=1, max_steps=1, keep_rows=1
    )
    checks.divides("sft", self, "batch_size", "microbatch_size")
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(f"sft.dropout_rate {self.dropout_rate} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemonstrationData:
  """Demonstrations, packed into rows.

  Attributes:
    train, valid: `FORMAT:PATH` or tfds names.  Where `train` is a tuple of them, it is a mixture,
      of which each example is read once.
    weights, max_examples: of that mixture, see `mixtures.mix`; `max_examples` also of one set.
      Examples that are too long for a row are dropped afterwards.
    prompt_format, prompt_suffix, completion_prefix: see `prepare.PromptFormat`.
    packing: "best_fit" puts several examples into a row; "one_per_row" does not.
    overlong: examples longer than a row: "drop", "truncate_left" or "truncate_right".
    prompt_loss_weight: of prompt tokens in the loss; completion tokens have weight 1.
    attend_across_documents: whether a row's examples see one another.
    reset_positions: whether each example of a row starts at position 0.
    on_bad: "stop" or "skip" at a malformed line.
  """

  train: str | Sequence[str]
  valid: str
  weights: Sequence[float]
  max_examples: int | None
  prompt_format: str
  prompt_suffix: str
  completion_prefix: str
  packing: str
  overlong: str
  prompt_loss_weight: float
  attend_across_documents: bool
  reset_positions: bool
  on_bad: str

  def __post_init__(self):
    prepare.PromptFormat.of(self, "demonstrations")  # checks its names
    if self.weights and len(self.weights) != len(self.sources):
      raise ValueError(
        f"demonstrations.weights has {len(self.weights)} numbers for "
        f"{len(self.sources)} sources in demonstrations.train; give one for each, "
        "or () for all examples"
      )
    if any(weight <= 0 for weight in self.weights):
      raise ValueError(f"demonstrations.weights {tuple(self.weights)}; each must be above 0")
    checks.at_least("demonstrations", self, max_examples=1)
    checks.choices(
      "demonstrations",
      self,
      packing=packing_lib.PACKINGS,
      overlong=prepare.OVERLONG_DEMONSTRATIONS,
    )

  @property
  def is_mixture(self) -> bool:
    return not isinstance(self.train, str)

  @property
  def sources(self) -> tuple[str, ...]:
    """What `train` names, one or several."""
    return (self.train,) if isinstance(self.train, str) else tuple(self.train)


def sft_loss(
  cfg: ModelConfig, p: SftConfig, params, microbatch, *, frozen=None, use_segments: bool
):
  """Loss of a microbatch, divided by the targets of the whole batch.

  Args:
    params: what is trained; `frozen` is the rest (`lora.split`).
    microbatch: (LmBatch, dropout_key_B, weight = 1 / targets of the batch).
  """
  batch, dropout_key_B, weight = microbatch
  nll = transformer.lm_loss(
    cfg,
    lora.combine(frozen, params),
    batch,
    use_segments=use_segments,
    dropout_rate=p.dropout_rate,
    dropout_key_B=dropout_key_B,
  )
  return nll.total * weight, {"train/loss": nll}


def sft_update(
  cfg: ModelConfig,
  p: SftConfig,
  tx,
  state: TrainState,
  batch: LmBatch,
  key,
  frozen=None,
  *,
  use_segments: bool,
) -> tuple[TrainState, dict[str, Any]]:
  """One optimizer step; dropout keys belong to the row's place in the global batch.

  Args:
    frozen: parameters beside `state.params` that are not trained; None where all are.
  """
  num_rows = batch.tokens_BT.shape[0]
  num_microbatches = num_rows // p.microbatch_size
  row_key_B = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(num_rows))
  weight = 1.0 / jnp.maximum(jnp.sum(batch.loss_mask_BT), 1.0)
  microbatches = (
    *sharding.split_microbatches((batch, row_key_B), num_microbatches),
    jnp.full((num_microbatches,), weight),
  )
  grads, metrics = optim.accumulated_gradient(
    functools.partial(sft_loss, cfg, p, frozen=frozen, use_segments=use_segments),
    state.params,
    microbatches,
  )
  metrics["train/grad_norm"] = optax.tree.norm(grads)
  return optim.apply_gradient(tx, state, grads), metrics


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong, before anything is read or compiled.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  training.check_kind(config, "sft")
  p = SftConfig(**config.sft)
  if LoraConfig(**config.lora).rank and not config.init_from:
    raise ValueError(
      f"lora.rank {config.lora.rank} without init_from: adapters are added to a trained network; "
      "name one, or set lora.rank to 0"
    )
  if "text" in config:
    TextData(**config.text)
  if "demonstrations" in config:
    demos = DemonstrationData(**config.demonstrations)
    if demos.is_mixture and p.num_epochs != 1:
      raise ValueError(
        f"sft.num_epochs is {p.num_epochs}, but each example of a mixture "
        "(demonstrations.train is a tuple) is read once; use 1"
      )
  training.check_groups(config, sft__batch_size=p.batch_size)


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing: exports by their JSON, data line by line.

  Raises:
    ValueError: as `train` would raise later.
  """
  if config.init_from:
    export = networks.find_export(
      config.init_from, kind="policy", flag="init_from", shape=config.model
    )
    if "demonstrations" in config:
      prepare.PromptFormat.of(config.demonstrations).check(export.tokenizer)
  elif "text" not in config:
    raise ValueError("init_from is empty; name the export directory of a policy")
  else:
    Tokenizer.from_spec(config.tokenizer, ["any text"])
  for group, kind in (("text", "text"), ("demonstrations", "demonstration")):
    if group in config:
      training.check_data(config, group, kind, "train", "valid")


# ----------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True)
class SftRows:
  """What `train` reads: main rows, and text rows where demonstrations are mixed with text."""

  main: LmBatch
  main_valid: LmBatch | None = None
  mixed: LmBatch | None = None
  mixed_valid: LmBatch | None = None
  _: dataclasses.KW_ONLY
  fraction: float = 0.0
  use_segments: bool = True


def load_rows(
  config, tokenizer: Tokenizer | None, cache_dir: pathlib.Path | None
) -> tuple[Tokenizer, SftRows]:
  """Reads, tokenises and packs; prints what was dropped and why.

  Args:
    config: has `text`, `demonstrations` or both, and `tokenizer` where `tokenizer` is None.

  Raises:
    ValueError: neither group, or a mixture without a fraction between 0 and 1.
  """
  text = TextData(**config.text) if "text" in config else None
  demos = DemonstrationData(**config.demonstrations) if "demonstrations" in config else None
  if text is None and demos is None:
    raise ValueError("config has neither `text` nor `demonstrations`; give one or both")
  if text is not None and demos is None and text.fraction != 1.0:
    raise ValueError(f"text.fraction is {text.fraction} without demonstrations; use 1")
  if tokenizer is None:
    if text is None:
      raise ValueError("a new tokenizer is trained on text; give `text`, or set init_from")
    records = sources.load(text.train, "text", cache_dir=cache_dir, on_bad=text.on_bad)
    tokenizer = Tokenizer.from_spec(config.tokenizer, (record["text"] for record in records))
  sets: list[LmBatch] = []
  if demos is not None:
    sets += demonstration_sets(config, demos, tokenizer, cache_dir)
  if text is not None:
    sets += [
      training.text_rows(name, spec, text, tokenizer, length=config.length, cache_dir=cache_dir)
      for name, spec in (("text", text.train), ("validation text", text.valid))
    ]
  groups = [group for group in (text, demos) if group is not None]
  return tokenizer, SftRows(
    *sets,
    fraction=0.0 if text is None or demos is None else text.fraction,
    use_segments=not all(group.attend_across_documents for group in groups),
  )


def demonstration_sets(
  config, demos: DemonstrationData, tokenizer: Tokenizer, cache_dir: pathlib.Path | None
) -> tuple[LmBatch, LmBatch]:
  """Rows of demonstrations to train on, and of those for validation."""
  read = functools.partial(
    sources.load, kind="demonstration", cache_dir=cache_dir, on_bad=demos.on_bad
  )
  found = [read(spec) for spec in demos.sources]
  examples = found[0]
  if demos.is_mixture or demos.max_examples is not None:
    mixed = mixtures.mix(found, demos.weights, max_examples=demos.max_examples, seed=config.seed)
    examples = training.printed("examples", *mixed)
  rows, valid_rows = (
    training.printed(
      name,
      *prepare.demonstration_rows(
        records,
        tokenizer,
        length=config.length,
        prompt_format=prepare.PromptFormat.of(demos),
        packing=demos.packing,
        overlong=demos.overlong,
        prompt_loss_weight=demos.prompt_loss_weight,
        attend_across_documents=demos.attend_across_documents,
        reset_positions=demos.reset_positions,
        cache_dir=cache_dir,
      ),
    )
    for name, records in (
      ("demonstrations", examples),
      ("validation demonstrations", read(demos.valid)),
    )
  )
  return whole_batches(rows, config.sft.batch_size) if demos.is_mixture else rows, valid_rows


def whole_batches(rows: LmBatch, batch_size: int) -> LmBatch:
  """The rows that fill whole batches: a last, partial batch would read rows a second time.

  Raises:
    ValueError: there are fewer rows than one batch.
  """
  num_rows = batches_lib.num_rows(rows)
  kept = num_rows - num_rows % batch_size
  if not kept:
    raise ValueError(
      f"the mixture has {num_rows} rows and sft.batch_size is {batch_size}; use "
      "more examples or a smaller batch, as each is read once"
    )
  return jax.tree.map(lambda array: array[:kept], rows)


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains, validates, checkpoints and exports.

  Args:
    config: `configs/sft.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    What `done.json` holds: validation losses, steps, tokens, seconds.
  """
  check_config(config)
  return training.once(_train, config, workdir, cache_dir)


def _train(config, workdir: pathlib.Path, cache_dir: pathlib.Path | None) -> dict[str, Any]:
  groups = training.groups(config)
  network = training.start(config, groups) if config.init_from else None
  with processes.main_first("data"):
    tokenizer, rows = load_rows(config, None if network is None else network.tokenizer, cache_dir)
  if network is None:
    network = networks.create(
      networks.configured(config), tokenizer, loop.step_key(config.seed, "init", 0), groups.mesh
    )
  trainee = training.adapt(config, groups, network)

  def evaluate(params: Params) -> dict[str, float]:
    nll = functools.partial(
      likelihood.negative_log_likelihood,
      trainee.cfg,
      params,
      batch_size=config.sft.batch_size,
      use_segments=rows.use_segments,
    )
    valid = {"validation/loss": rows.main_valid, "validation/text_loss": rows.mixed_valid}
    return {name: nll(found) for name, found in valid.items() if found is not None}

  with jax.set_mesh(groups.mesh):
    state, num_steps = fine_tune(
      config, workdir, groups, trainee, rows, evaluate, headline=("train/loss", "validation/loss")
    )
    export(workdir / "export", config, groups, trainee, state.params, num_steps)
    numbers = evaluate(lora.combine(trainee.frozen, state.params))
  return numbers | dict(steps=num_steps, tokens=num_steps * config.sft.batch_size * config.length)


def fine_tune(
  config,
  workdir: pathlib.Path,
  groups: Groups,
  trainee: Trainee,
  rows: SftRows,
  evaluate: Callable[[Params], Mapping[str, float]],
  *,
  headline: tuple[str, ...],
) -> tuple[TrainState, int]:
  """The training itself: (last state, steps).

  Args:
    evaluate: of the whole network's parameters.
    headline: metrics of the progress line.
  """
  p = SftConfig(**config.sft)
  batches = batches_lib.Batches(
    rows.main,
    other_rows=rows.mixed,
    fraction=rows.fraction,
    batch_size=p.batch_size,
    seed=config.seed,
    share=sharding.local_rows(groups.mesh, p.batch_size),
  )
  num_steps = batches.num_steps(p.num_epochs)
  if p.max_steps is not None:
    num_steps = min(num_steps, p.max_steps)
  epoch_ends = {batches.num_steps(epoch): epoch for epoch in range(1, p.num_epochs + 1)}
  print(
    f"{workdir.name}: {trainee.cfg.num_block_params:,} parameters outside the embeddings, "
    f"{num_steps:,} steps of {p.batch_size} rows of {config.length} tokens",
    flush=True,
  )

  def export_along(state, step):
    if p.keep_epochs and step in epoch_ends:
      directory = workdir / "epochs" / f"{epoch_ends[step]:02d}"
      export(directory, config, groups, trainee, state.params, step)
    num_rows = step * p.batch_size
    if p.keep_rows is not None and num_rows % p.keep_rows < p.batch_size:
      directory = workdir / "rows" / f"{num_rows:08d}"
      export(directory, config, groups, trainee, state.params, step)

  state = training.train_network(
    config,
    workdir,
    groups,
    trainee,
    functools.partial(sft_update, trainee.cfg, p, use_segments=rows.use_segments),
    batches,
    batch_size=p.batch_size,
    total_steps=num_steps,
    evaluate=evaluate,
    after_step=export_along,
    tokens_per_step=p.batch_size * config.length,
    headline=headline,
  )
  return state, num_steps


def export(
  directory: pathlib.Path,
  config,
  groups: Groups,
  trainee: Trainee,
  params: Params,
  step: int,
  **metadata,
) -> None:
  """Writes the policy, given what was trained of it."""
  training.export(
    directory,
    config,
    lora.merged(groups.lora, trainee.frozen, params),
    cfg=trainee.cfg,
    tokenizer=trainee.tokenizer,
    kind="policy",
    step=step,
    metadata=trainee.metadata | metadata,
    adapters=params,
  )
