"""What every `train` does alike: config groups, the network, the state, the loop, the export.

Plain functions: an algorithm calls those that it needs, in the order of its own story.  A training
of one network is `start` or `networks.create`, `adapt`, `train_network`, `export`; PPO, which trains
two, calls the parts.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf import checkpoint, checks, loop, networks, optim, sharding
from rlhf import workdir as workdir_lib
from rlhf.checkpoint import CheckpointConfig
from rlhf.data import batches as batches_lib
from rlhf.data import cache, prepare, sources
from rlhf.data import packing as packing_lib
from rlhf.data import records as records_lib
from rlhf.loop import LoopConfig
from rlhf.model import lora
from rlhf.model.architecture import ModelConfig
from rlhf.model.compute import ComputeConfig
from rlhf.model.lora import LoraConfig
from rlhf.networks import Network
from rlhf.optim import OptimConfig
from rlhf.sharding import MeshConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import LmBatch, Params, TrainState

# ----------------------------------------------------------------------------- config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
  """The groups that every training config has, as dataclasses, and the mesh they ask for."""

  mesh: Mesh
  compute: ComputeConfig
  lora: LoraConfig
  loop: LoopConfig
  checkpoint: CheckpointConfig


def groups(config) -> Groups:
  """Reads the shared groups; raises ValueError where one has an impossible value."""
  return Groups(
    mesh=sharding.make_mesh(MeshConfig(**config.mesh)),
    compute=ComputeConfig(**config.compute),
    lora=LoraConfig(**config.lora),
    loop=LoopConfig(**config.loop),
    checkpoint=CheckpointConfig(**config.checkpoint),
  )


def check_kind(config, kind: str) -> None:
  """Raises ValueError where the config is not one of this algorithm."""
  if config.kind != kind:
    raise ValueError(f"the config is {config.kind!r}, not {kind!r}; use configs/{kind}.py")


def check_groups(config, **rows: int) -> ModelConfig:
  """Checks the shared groups, the shape and the batch sizes against the mesh.

  Args:
    rows: name of a batch, with "__" for ".", -> its rows, which must divide over the mesh.

  Returns:
    The network's shape.

  Raises:
    ValueError: a value is impossible, or does not fit the mesh.
  """
  mesh = groups(config).mesh
  for name in config:
    if name.endswith("optim"):
      OptimConfig(**config[name])
  shape = networks.check_shape(config, mesh)
  for name, number in rows.items():
    sharding.check_rows(mesh, number, name.replace("__", "."))
  return shape


# ----------------------------------------------------------------------------- data


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextData:
  """Pretraining text: `FORMAT:PATH` or a tfds name.

  Attributes:
    train, valid: sources; PPO has no validation text.
    fraction: of all rows that are text; 1 where there are no demonstrations.
    max_tokens: tokens to read at most; None reads all.
    packing, attend_across_documents, reset_positions: see `prepare.text_rows`.
    on_bad: "stop" or "skip" at a malformed line.
  """

  train: str
  valid: str = ""
  fraction: float = 1.0
  max_tokens: int | None
  packing: str
  attend_across_documents: bool
  reset_positions: bool
  on_bad: str

  def __post_init__(self):
    checks.choices("text", self, packing=packing_lib.TEXT_PACKINGS)
    if not 0 <= self.fraction <= 1:
      raise ValueError(
        f"text.fraction {self.fraction}; use a number from 0 to 1, below 1 with demonstrations"
      )


def check_data(config, group: str, kind: str, *fields: str) -> None:
  """Reads the files that a config group names, line by line; raises as `sources.check`."""
  for field in fields:
    specs = config[group][field]
    for spec in (specs,) if isinstance(specs, str) else tuple(specs) or ("",):
      sources.check(spec, kind, field=f"config.{group}.{field}", on_bad=config[group].on_bad)


def printed(name: str, rows, counts: Mapping[str, int]):
  """`rows`, after a line that says what was kept of them and what was dropped."""
  print(records_lib.describe_counts(name, counts), flush=True)
  return rows


def text_rows(
  name: str,
  spec: str,
  text: TextData,
  tokenizer: Tokenizer,
  *,
  length: int,
  cache_dir: pathlib.Path | None,
) -> LmBatch:
  """The text of a source, packed into rows of `length` tokens."""
  return printed(
    name,
    *prepare.text_rows(
      sources.load(spec, "text", cache_dir=cache_dir, on_bad=text.on_bad),
      tokenizer,
      length=length,
      packing=text.packing,
      max_tokens=text.max_tokens,
      attend_across_documents=text.attend_across_documents,
      reset_positions=text.reset_positions,
      cache_dir=cache_dir,
    ),
  )


# ----------------------------------------------------------------------------- networks and state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trainee:
  """One network in training.

  Attributes:
    cfg: with the scale of its adapters.
    frozen: what adapters are added to; None where everything is trained.
    trained: what the optimizer changes; `train_network` donates these arrays.
    tokenizer, metadata: of the network that training starts from.
  """

  cfg: ModelConfig
  frozen: Params | None
  trained: Params
  tokenizer: Tokenizer
  metadata: dict[str, Any]


def start(config, groups: Groups) -> Network:
  """The policy that `init_from` names, laid out on the mesh; raises as `networks.load`."""
  return networks.load(
    config.init_from,
    groups.compute,
    groups.mesh,
    kind="policy",
    flag="init_from",
    shape=config.model,
  )


def adapt(config, groups: Groups, network: Network) -> Trainee:
  """A network with new adapters, or with every parameter to be trained where the rank is 0."""
  key = loop.step_key(config.seed, "lora", 0)
  frozen, trained = lora.split(groups.lora, network.params, key)
  return Trainee(
    cfg=dataclasses.replace(network.cfg, lora_scale=lora.scale(groups.lora)),
    frozen=frozen,
    trained=trained,
    tokenizer=network.tokenizer,
    metadata=networks.origin(network.metadata),
  )


def place(mesh: Mesh, init: Callable, *arguments, donate: tuple[int, ...] = ()):
  """(state, layout): what `init(*arguments)` returns, each leaf made in its layout on the mesh.

  Args:
    donate: arguments whose arrays the state takes over; they cannot be used afterwards.
  """
  layout = sharding.state_shardings(mesh, jax.eval_shape(init, *arguments))
  return jax.jit(init, out_shardings=layout, donate_argnums=donate)(*arguments), layout


# ----------------------------------------------------------------------------- training


def once(train: Callable, config, workdir, cache_dir) -> dict[str, Any]:
  """Runs `train(config, workdir, cache_dir)` unless the stage is finished; writes `done.json`.

  Args:
    train: returns what `done.json` holds, except for the seconds.
    cache_dir: of tokenised data; see `cache.directory`.
  """
  workdir = pathlib.Path(workdir)
  return workdir_lib.once(
    workdir, lambda: train(config, workdir, cache.directory(cache_dir, workdir))
  )


def run(config, workdir: pathlib.Path, groups: Groups, **arguments):
  """`loop.run` with the checkpoints of the workdir; `arguments` are its remaining ones."""
  with checkpoint.Checkpoints(workdir / "checkpoints", groups.checkpoint) as checkpoints:
    return loop.run(
      name=workdir.name,
      workdir=workdir,
      cfg=groups.loop,
      checkpoints=checkpoints,
      metadata=dict(seed=config.seed),
      **arguments,
    )


def train_network(
  config,
  workdir: pathlib.Path,
  groups: Groups,
  trainee: Trainee,
  update: Callable,
  batches: batches_lib.Batches,
  *,
  batch_size: int,
  total_steps: int,
  evaluate: Callable[[Params], Mapping[str, float]],
  after_step: Callable[[TrainState, int], None] | None = None,
  tokens_per_step: int,
  headline: tuple[str, ...],
) -> TrainState:
  """Trains one network on batches, from the newest checkpoint where there is one.

  Args:
    update: (tx, state, batch, key, frozen) -> (state, metrics); pure.
    evaluate: of the whole network's parameters.
    after_step, tokens_per_step, headline: see `loop.run`.
  """
  optim_cfg = OptimConfig(**config.optim)
  tx = optim.make_optimizer(optim_cfg, total_steps)
  schedule = jax.jit(optim.make_schedule(optim_cfg, total_steps))
  init = functools.partial(optim.init_train_state, tx)
  state, layout = place(groups.mesh, init, trainee.trained, donate=(0,))
  update = jax.jit(functools.partial(update, tx), donate_argnums=0, out_shardings=(layout, None))
  next_batch = loop.Stream(batches)

  def train_step(state, step):
    batch = sharding.put_batch(groups.mesh, next_batch(step), batch_size)
    key = loop.step_key(config.seed, "train", step)
    state, metrics = update(state, batch, key, trainee.frozen)
    return state, metrics | {
      "train/learning_rate": schedule(step),
      "train/epoch": (step + 1) / batches.num_steps(1),
    }

  def evaluate_state(state, step):
    del step
    return evaluate(lora.combine(trainee.frozen, state.params))

  return run(
    config,
    workdir,
    groups,
    state=state,
    total_steps=total_steps,
    train_step=train_step,
    evaluate=evaluate_state,
    after_step=after_step,
    tokens_per_step=tokens_per_step,
    headline=headline,
    guarded=("train/loss", "train/grad_norm", "validation/loss"),
  )


def export(
  directory: pathlib.Path,
  config,
  params: Params,
  *,
  cfg: ModelConfig,
  tokenizer: Tokenizer,
  kind: str,
  step: int,
  metadata: dict[str, Any],
  adapters: Params | None,
) -> None:
  """Writes a network to `directory` and, where it was trained by adapters, these to
  `DIRECTORY_adapter`.

  Args:
    params: with the adapters merged.
    adapters: what was trained of it; only written where `config.lora.rank` is above 0.
  """
  shared: dict[str, Any] = dict(
    model=dataclasses.replace(cfg, lora_scale=0.0).shape(),
    tokenizer=tokenizer,
    config=workdir_lib.plain(config),
    step=step,
  )
  checkpoint.export_params(directory, params, kind=kind, metadata=metadata, **shared)
  if config.lora.rank:
    base = config[networks.start_field(config)]
    checkpoint.export_params(
      directory.with_name(f"{directory.name}_adapter"),
      adapters,
      kind="adapter",
      metadata=metadata | dict(lora=config.lora.to_dict(), base=base),
      **shared,
    )
