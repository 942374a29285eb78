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
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf import checkpoint, loop, networks, optim, processes, sharding
from rlhf import workdir as workdir_lib
from rlhf.data import batches as batches_lib
from rlhf.data import cache, mixtures, prepare, sources
from rlhf.data import packing as packing_lib
from rlhf.data import records as records_lib
from rlhf.inference import likelihood
from rlhf.loop import LoopConfig
from rlhf.model import lora, transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.model.transformer import ModelConfig
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch, TrainState


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
    keep_rows: also export them whenever so many more rows were read, to `rows/00128000`, ...; a row
      is an example where packing is "one_per_row".  None: never.
  """

  batch_size: int
  microbatch_size: int
  num_epochs: int
  max_steps: int | None
  dropout_rate: float
  keep_epochs: bool
  keep_rows: int | None

  def __post_init__(self):
    for name in ("batch_size", "microbatch_size", "num_epochs"):
      if getattr(self, name) < 1:
        raise ValueError(f"sft.{name} is {getattr(self, name)}; use 1 or more")
    for name, none in (("max_steps", "for all epochs"), ("keep_rows", "to keep none")):
      if getattr(self, name) is not None and getattr(self, name) < 1:
        raise ValueError(f"sft.{name} is {getattr(self, name)}; use 1 or more, or None {none}")
    if self.batch_size % self.microbatch_size:
      raise ValueError(
        f"sft.batch_size {self.batch_size} does not divide into "
        f"sft.microbatch_size {self.microbatch_size}"
      )
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(f"sft.dropout_rate {self.dropout_rate} must be at least 0 and below 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData:
  """Pretraining text: `FORMAT:PATH` or a tfds name for training and validation.

  Attributes:
    fraction: of all rows that are text; 1 where there are no demonstrations.
    max_tokens: what comes after so many tokens is left out; None takes all.
    packing, attend_across_documents, reset_positions: see `prepare.text_rows`.
    on_bad: "stop" or "skip" at a malformed line.
  """

  train: str
  valid: str
  fraction: float
  max_tokens: int | None
  packing: str
  attend_across_documents: bool
  reset_positions: bool
  on_bad: str

  def __post_init__(self):
    if self.packing not in packing_lib.TEXT_PACKINGS:
      raise ValueError(
        f"text.packing {self.packing!r}; choose from {sorted(packing_lib.TEXT_PACKINGS)}"
      )
    if not 0 <= self.fraction <= 1:
      raise ValueError(
        f"text.fraction {self.fraction}; use a number from 0 to 1, below 1 beside demonstrations"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemonstrationData:
  """Demonstrations, packed; see `prepare.demonstration_rows` for the other named choices.

  Attributes:
    train, valid: `FORMAT:PATH` or tfds names.  Where `train` is a tuple of them, it is a mixture,
      of which each example is read once.
    weights, max_examples: of that mixture, see `mixtures.mix`; `max_examples` also of one set.
      What is then too long for a row is dropped, so a source of long examples gives fewer.
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
    if self.max_examples is not None and self.max_examples < 1:
      raise ValueError(
        f"demonstrations.max_examples {self.max_examples}; use 1 or more, or None for all"
      )
    for field, choices in (
      ("packing", packing_lib.PACKINGS),
      ("overlong", prepare.OVERLONG_DEMONSTRATIONS),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(
          f"demonstrations.{field} {getattr(self, field)!r}; choose from {sorted(choices)}"
        )

  @property
  def is_mixture(self) -> bool:
    return not isinstance(self.train, str)

  @property
  def sources(self) -> tuple[str, ...]:
    """What `train` names, one or several."""
    return tuple(self.train) if self.is_mixture else (self.train,)


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
  if "sft" not in config:
    raise ValueError("the config has no group `sft`; use configs/sft.py")
  p, _, _ = SftConfig(**config.sft), LoopConfig(**config.loop), OptimConfig(**config.optim)
  checkpoint.CheckpointConfig(**config.checkpoint)
  if LoraConfig(**config.lora).rank and not config.init_from:
    raise ValueError(
      f"lora.rank {config.lora.rank} without init_from: adapters stand beside a "
      "trained network; name one, or set lora.rank to 0"
    )
  for group, data in (("text", TextData), ("demonstrations", DemonstrationData)):
    if group in config:
      data(**config[group])
  if (
    "demonstrations" in config
    and DemonstrationData(**config.demonstrations).is_mixture
    and p.num_epochs != 1
  ):
    raise ValueError(
      f"sft.num_epochs is {p.num_epochs}, but each example of a mixture "
      "(demonstrations.train is a tuple) is read once; use 1"
    )
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  networks.check_shape(config, mesh)
  sharding.check_rows(mesh, p.batch_size, "sft.batch_size")


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
      prepare.PromptFormat.of(config.demonstrations).check(networks.tokenizer_of(export))
  elif "text" not in config:
    raise ValueError("init_from is empty; name the export directory of a policy")
  else:
    Tokenizer.from_spec(config.tokenizer, ["any text"])
  for group, kind, data in (
    ("text", "text", TextData),
    ("demonstrations", "demonstration", DemonstrationData),
  ):
    if group in config:
      data(**config[group])
      for name in ("train", "valid"):
        specs = config[group][name]
        for spec in (specs,) if isinstance(specs, str) else tuple(specs) or ("",):
          sources.check(spec, kind, field=f"config.{group}.{name}", on_bad=config[group].on_bad)


# ----------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRows:
  """What `train` reads: main rows, and text rows where demonstrations are mixed with text."""

  tokenizer: Tokenizer
  main: LmBatch
  main_valid: LmBatch
  mixed: LmBatch | None
  mixed_valid: LmBatch | None
  fraction: float
  use_segments: bool


def load_rows(config, tokenizer: Tokenizer | None, cache_dir: pathlib.Path | None) -> SftRows:
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
  texts = demo_sources = None
  if text is not None:
    texts = [
      sources.load(spec, "text", cache_dir=cache_dir, on_bad=text.on_bad)
      for spec in (text.train, text.valid)
    ]
  if demos is not None:
    read = functools.partial(
      sources.load, kind="demonstration", cache_dir=cache_dir, on_bad=demos.on_bad
    )
    demo_sources = [
      training_demonstrations(demos, [read(spec) for spec in demos.sources], config.seed),
      read(demos.valid),
    ]
  if tokenizer is None:
    if texts is None:
      raise ValueError("a new tokenizer is trained on text; give `text`, or set init_from")
    tokenizer = Tokenizer.from_spec(config.tokenizer, (record["text"] for record in texts[0]))
  length = config.length
  text_sets = demo_sets = (None, None)
  if text is not None:
    text_sets = [
      _printed(
        name,
        prepare.text_rows(
          source,
          tokenizer,
          length=length,
          packing=text.packing,
          max_tokens=text.max_tokens,
          attend_across_documents=text.attend_across_documents,
          reset_positions=text.reset_positions,
          cache_dir=cache_dir,
        ),
      )
      for name, source in zip(("text", "validation text"), texts)
    ]
  if demos is not None:
    fields = dataclasses.asdict(demos)
    choices = {
      name: fields[name]
      for name in (
        "packing",
        "overlong",
        "prompt_loss_weight",
        "attend_across_documents",
        "reset_positions",
      )
    }
    demo_sets = [
      _printed(
        name,
        prepare.demonstration_rows(
          source,
          tokenizer,
          length=length,
          prompt_format=prepare.PromptFormat.of(demos),
          cache_dir=cache_dir,
          **choices,
        ),
      )
      for name, source in zip(("demonstrations", "validation demonstrations"), demo_sources)
    ]
    if demos.is_mixture:
      demo_sets[0] = whole_batches(demo_sets[0], config.sft.batch_size)
  given = [group for group in (text, demos) if group is not None]
  main, main_valid = text_sets if demos is None else demo_sets
  mixed, mixed_valid = (None, None) if demos is None else text_sets
  return SftRows(
    tokenizer=tokenizer,
    main=main,
    main_valid=main_valid,
    mixed=mixed,
    mixed_valid=mixed_valid,
    fraction=0.0 if mixed is None else text.fraction,
    use_segments=not all(group.attend_across_documents for group in given),
  )


def training_demonstrations(
  demos: DemonstrationData, found: Sequence[Sequence[dict]], seed: int
) -> Sequence[dict]:
  """One set as it is, or a mixture; prints what was left out."""
  if not demos.is_mixture and demos.max_examples is None:
    return found[0]
  return _printed(
    "examples", mixtures.mix(found, demos.weights, max_examples=demos.max_examples, seed=seed)
  )


def whole_batches(rows: LmBatch, batch_size: int) -> LmBatch:
  """As many rows as fill batches: the last batch would be filled with rows of another epoch.

  Raises:
    ValueError: they fill none.
  """
  num_rows = batches_lib.num_rows(rows)
  kept = num_rows - num_rows % batch_size
  if not kept:
    raise ValueError(
      f"the mixture has {num_rows} rows and sft.batch_size is {batch_size}; use "
      "more examples or a smaller batch, as each is read once"
    )
  return jax.tree.map(lambda array: array[:kept], rows)


def _printed(name: str, rows_and_counts):
  rows, counts = rows_and_counts
  print(records_lib.describe_counts(name, counts), flush=True)
  return rows


# ----------------------------------------------------------------------------- training


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains, validates, checkpoints and exports; the only impure function here.

  Args:
    config: `configs/sft.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    what `done.json` holds: validation losses, steps, tokens, seconds.
  """
  workdir = pathlib.Path(workdir)
  cache_dir = cache.directory(cache_dir, workdir)
  if workdir_lib.is_done(workdir):
    return workdir_lib.done_result(workdir)
  began = time.perf_counter()
  check_config(config)
  p, loop_cfg = SftConfig(**config.sft), LoopConfig(**config.loop)
  optim_cfg, keep = OptimConfig(**config.optim), checkpoint.CheckpointConfig(**config.checkpoint)
  lora_cfg = LoraConfig(**config.lora)
  mesh = sharding.make_mesh(MeshConfig(**config.mesh))
  network = None
  if config.init_from:
    network = networks.load(
      config.init_from,
      ComputeConfig(**config.compute),
      mesh,
      kind="policy",
      flag="init_from",
      shape=config.model,
    )
  with processes.main_first("data"):
    rows = load_rows(config, None if network is None else network.tokenizer, cache_dir)
  if network is None:
    ids = dict(vocab_size=rows.tokenizer.num_ids, pad_id=rows.tokenizer.pad_id)
    cfg = dataclasses.replace(networks.configured(config), **ids)
    params = networks.create(cfg, loop.step_key(config.seed, "init", 0), mesh)
  else:
    cfg, params = network.cfg, network.params
  origin = {} if network is None else networks.origin(network.metadata)
  frozen, trained = lora.split(lora_cfg, params, loop.step_key(config.seed, "lora", 0))
  exported, cfg = cfg, dataclasses.replace(cfg, lora_scale=lora.scale(lora_cfg))

  stream = dict(
    batch_size=p.batch_size, seed=config.seed, share=sharding.local_rows(mesh, p.batch_size)
  )
  batches = (
    batches_lib.lm_batches(rows.main, **stream)
    if rows.mixed is None
    else batches_lib.mixed_lm_batches(rows.main, rows.mixed, fraction=rows.fraction, **stream)
  )
  total_steps = batches.num_steps(p.num_epochs)
  if p.max_steps is not None:
    total_steps = min(total_steps, p.max_steps)
  tx = optim.make_optimizer(optim_cfg, total_steps)
  schedule = optim.make_schedule(optim_cfg, total_steps)
  epoch_ends = {batches.num_steps(epoch): epoch for epoch in range(1, p.num_epochs + 1)}
  print(
    f"{workdir.name}: {cfg.num_block_params:,} parameters outside the embeddings, "
    f"{total_steps:,} steps of {p.batch_size} rows of {config.length} tokens",
    flush=True,
  )

  with jax.set_mesh(mesh):
    init = functools.partial(optim.init_train_state, tx)
    layout = sharding.state_shardings(mesh, jax.eval_shape(init, trained))
    state = jax.jit(init, out_shardings=layout)(trained)
    del params, trained, network  # only what is frozen is still needed
    update = jax.jit(
      functools.partial(sft_update, cfg, p, tx, use_segments=rows.use_segments),
      donate_argnums=0,
      out_shardings=(layout, None),
    )
    next_batch = loop.Stream(batches)

    def train_step(state, step):
      batch = sharding.put_batch(mesh, next_batch(step), p.batch_size)
      state, metrics = update(state, batch, loop.step_key(config.seed, "train", step), frozen)
      return state, metrics | {
        "train/learning_rate": schedule(step),
        "train/epoch": (step + 1) / batches.num_batches_per_epoch,
      }

    def evaluate(state, step):
      del step
      nll = functools.partial(
        likelihood.negative_log_likelihood,
        cfg,
        lora.combine(frozen, state.params),
        batch_size=p.batch_size,
        use_segments=rows.use_segments,
      )
      numbers = {"validation/loss": nll(rows.main_valid)}
      if rows.mixed_valid is not None:
        numbers["validation/text_loss"] = nll(rows.mixed_valid)
      return numbers

    def export(directory, state, step):
      shared = dict(
        model=exported.shape(),
        tokenizer=rows.tokenizer,
        config=workdir_lib.config_to_dict(config),
        step=step,
      )
      checkpoint.export_params(
        directory,
        lora.merged(lora_cfg, frozen, state.params),
        kind="policy",
        metadata=origin,
        **shared,
      )
      if lora_cfg.rank:
        checkpoint.export_params(
          directory.with_name(f"{directory.name}_adapter"),
          state.params,
          kind="adapter",
          metadata=origin | dict(lora=dataclasses.asdict(lora_cfg), base=config.init_from),
          **shared,
        )

    def after_step(state, step):
      if p.keep_epochs and step in epoch_ends:
        export(workdir / "epochs" / f"{epoch_ends[step]:02d}", state, step)
      num_rows = step * p.batch_size
      if p.keep_rows is not None and num_rows % p.keep_rows < p.batch_size:
        export(workdir / "rows" / f"{num_rows:08d}", state, step)

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
        after_step=after_step,
        tokens_per_step=p.batch_size * config.length,
        headline=("train/loss", "validation/loss"),
        guarded=("train/loss", "train/grad_norm", "validation/loss"),
        metadata=dict(seed=config.seed),
      )
    export(workdir / "export", state, total_steps)
    result = evaluate(state, total_steps) | dict(
      steps=total_steps,
      tokens=total_steps * p.batch_size * config.length,
      seconds=time.perf_counter() - began,
    )
  workdir_lib.mark_done(workdir, result)
  return result
