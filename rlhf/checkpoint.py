"""Checkpoints (everything that a run needs to go on) and exports (what the next stage loads).

A checkpoint holds a state (any tree of arrays) and a JSON object: the data cursor, the seed,
whatever else the run must not forget. It is written in the background under a temporary name
and renamed when whole, so a run killed in the middle of a save goes on from the one before.

An export holds one network's parameters in float32, its tokenizer and a JSON file:

    DIRECTORY/export.json             kind, model, config, step, metadata, name of the contents
    DIRECTORY/00000120/params/        orbax
    DIRECTORY/00000120/tokenizer/     whatever the tokenizer saves

`export.json` is replaced last and in one atomic step: until then the previous export stands.

Of several processes all call these functions; each writes and reads the parts of arrays that lie on
its devices, and process 0 everything else.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from rlhf import checks, processes, types, workdir
from rlhf.model import compute as compute_lib
from rlhf.model.compute import ComputeConfig
from rlhf.tokenization.tokenizer import Tokenizer

KINDS = ("policy", "reward", "value", "adapter")
_EXPORT = "export.json"
_DELETED = "deleted"  # where steps that are no longer kept are moved before they are deleted


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """Which steps are saved, and which saved ones are kept.

  Attributes:
    every: steps between saves.
    keep_last: how many of the newest are kept, at least 1.
    keep_every: steps that are multiples of this are kept as well; None for none.
    best_metric: the checkpoint with the best value of this metric is kept as well; "" for none.
    best_is_lower: whether the best value is the lowest.
  """

  every: int
  keep_last: int
  keep_every: int | None
  best_metric: str
  best_is_lower: bool

  def __post_init__(self):
    checks.at_least("checkpoint", self, every=1, keep_last=1, keep_every=1)


class Checkpoints:
  """The checkpoints of one run, one directory for each step. Use as a context manager."""

  def __init__(self, directory: str | os.PathLike, cfg: CheckpointConfig):
    """Opens `directory`, makes it where it is missing, and removes what a kill left half-saved."""
    self._cfg = cfg
    self._directory = pathlib.Path(directory).absolute()
    self._empty_deleted()
    self._manager = ocp.CheckpointManager(
      self._directory,
      options=ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        todelete_subdir=_DELETED,  # moved at once: a kill never leaves half of a listed step
        preservation_policy=_preservation_policy(cfg),
        best_fn=_quality(cfg) if cfg.best_metric else None,
        enable_async_checkpointing=True,
      ),
      item_handlers=dict(
        state=ocp.StandardCheckpointHandler(), metadata=ocp.JsonCheckpointHandler()
      ),
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def steps(self) -> list[int]:
    """The steps that can be restored, rising; one that is still being written counts."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest of `steps`, or None."""
    return self._manager.latest_step()

  def due(self, step: int) -> bool:
    """Whether the config asks for a save after `step`."""
    return step > 0 and step % self._cfg.every == 0

  def save(
    self,
    step: int,
    state: Any,
    *,
    metadata: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
  ) -> None:
    """Starts to save; returns before it is written, and first waits for the save before it.

    The arrays may be donated as soon as this returns: what is written is what they hold now.

    Args:
      step: of the state; a step that has been saved is not saved again.
      state: a tree of arrays.
      metadata: a JSON object, given back by `restore`.
      metrics: where `best_metric` is looked up; a save without it is never the best.

    Raises:
      ValueError: metadata that JSON cannot hold.
    """
    if step in self._manager.all_steps():
      return
    self.wait()
    self._empty_deleted()
    number = None if metrics is None else metrics.get(self._cfg.best_metric)
    if number is not None:
      number = float(number) if math.isfinite(number) else None
    self._manager.save(
      step,
      force=True,  # the caller has decided
      metrics={self._cfg.best_metric: number} if self._cfg.best_metric else None,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state),
        metadata=ocp.args.JsonSave(_json_copy("metadata", metadata)),
      ),
    )

  def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint back, bit for bit.

    Args:
      abstract_state: tree of ShapeDtypeStruct (`jax.eval_shape`) or of arrays. A leaf with a
        sharding is laid out so, whatever the layout it was saved from; a leaf without one
        comes back on the default device, free to move, like the result of an unsharded jit.
      step: the newest where None.

    Returns:
      (state, metadata).

    Raises:
      ValueError: there is no such checkpoint, or it holds other arrays.
    """
    self.wait()
    found = self.steps()
    if not found:
      raise ValueError(
        f"{self._directory} holds no checkpoint; train first, or name the directory "
        "of a run that has saved one"
      )
    step = found[-1] if step is None else step
    if step not in found:
      raise ValueError(f"{self._directory} holds no checkpoint of step {step}; choose from {found}")
    saved = self._manager.item_metadata(step)["state"]
    _check_same_arrays(f"{self._directory}/{step}", saved.tree, abstract_state)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_laid_out(abstract_state)), metadata=ocp.args.JsonRestore()
      ),
    )
    return _freed(restored["state"], abstract_state), restored["metadata"]

  def wait(self) -> None:
    """Returns when nothing is being written; raises what went wrong in the background."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits and closes; nothing can be saved or restored afterwards."""
    self._manager.close()
    self._empty_deleted()

  def _empty_deleted(self) -> None:
    if processes.is_main():
      shutil.rmtree(self._directory / _DELETED, ignore_errors=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
  """What an export says of itself; `load_params` reads the arrays.

  Attributes:
    model: the arguments of `ModelConfig`, except for `compute`.
    compute: how the run that wrote it computed, with the attention kernel of the platform.
  """

  directory: pathlib.Path
  kind: str
  model: dict[str, Any]
  compute: ComputeConfig
  config: dict[str, Any]
  step: int
  metadata: dict[str, Any]
  params_dir: pathlib.Path
  tokenizer_dir: pathlib.Path

  @property
  def tokenizer(self) -> Tokenizer:
    return Tokenizer.load(self.tokenizer_dir)


def export_params(
  directory: str | os.PathLike,
  params: types.Params,
  *,
  model: Mapping[str, Any],
  kind: str,
  tokenizer: Tokenizer,
  config: Mapping[str, Any],
  step: int,
  metadata: Mapping[str, Any],
) -> None:
  """Writes an export; one that is there already stands until the new one is whole.

  Args:
    params: one network's parameters; written as float32.
    model: `ModelConfig.shape()` of the network.
    kind: what the head means, one of KINDS.
    config: the resolved config of the run.
    metadata: anything else, JSON-able.

  Raises:
    ValueError: another kind, or a field that JSON cannot hold.
  """
  if kind not in KINDS:
    raise ValueError(f"{kind!r}; choose from {list(KINDS)}")
  directory = pathlib.Path(directory).absolute()
  fields = {"kind": kind, "model": model, "config": config, "step": step, "metadata": metadata}
  fields = {name: _json_copy(name, field) for name, field in fields.items()}
  contents = directory / _contents_name(directory, step)
  params_f32 = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(contents / "params", params_f32, force=True)
  if processes.is_main():
    (contents / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(contents / "tokenizer")
    workdir.write_json(directory / _EXPORT, {"contents": contents.name, **fields})
    for other in directory.iterdir():
      if other.is_dir() and other != contents:
        shutil.rmtree(other)
  processes.wait("export")


def find(directory: str | os.PathLike) -> str | os.PathLike:
  """The export in `directory`, where that is the workdir of a stage; else `directory` itself."""
  inside = pathlib.Path(directory) / "export"
  return inside if str(directory) and (inside / _EXPORT).is_file() else directory


def load_export(directory: str | os.PathLike) -> Export:
  """Reads what the export in `find(directory)` says of itself; only JSON is read.

  Raises:
    ValueError: there is none.
  """
  directory = pathlib.Path(find(directory)).absolute()
  if not (directory / _EXPORT).is_file():
    found = "holds no export.json" if directory.is_dir() else "does not exist"
    raise ValueError(
      f"{directory} {found}; name an export directory, or the workdir of a finished stage"
    )
  fields = workdir.read_json(directory / _EXPORT)
  contents = directory / fields.pop("contents")
  # Exports written before shape and compute were told apart hold both in `model`.
  model = fields["model"]
  computed = fields["config"]["compute"] if "compute" in fields["config"] else model
  compute = {name: computed[name] for name in compute_lib.FIELDS if name in computed}
  fields["model"] = {name: model[name] for name in model if name not in compute_lib.FIELDS}
  return Export(
    directory=directory,
    compute=ComputeConfig(**compute | {"attention": "auto"}),
    params_dir=contents / "params",
    tokenizer_dir=contents / "tokenizer",
    **fields,
  )


def load_params(
  directory: str | os.PathLike, abstract_params: types.Params | None = None
) -> types.Params:
  """The parameters of an export.

  Args:
    directory: as in `load_export`.
    abstract_params: as in `Checkpoints.restore`; None for float32 as saved, on the default device.

  Raises:
    ValueError: there is no export in `directory`, or it holds other arrays.
  """
  export = load_export(directory)
  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.metadata(export.params_dir).item_metadata.tree
    if abstract_params is None:
      abstract_params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), saved)
    _check_same_arrays(str(export.directory), saved, abstract_params)
    params = checkpointer.restore(export.params_dir, _laid_out(abstract_params))
  return _freed(params, abstract_params)


def _preservation_policy(cfg: CheckpointConfig) -> checkpoint_managers.PreservationPolicy:
  policies = [checkpoint_managers.LatestN(cfg.keep_last)]
  if cfg.keep_every is not None:
    policies.append(checkpoint_managers.EveryNSteps(cfg.keep_every))
  if cfg.best_metric:
    policies.append(
      checkpoint_managers.BestN(
        get_metric_fn=_quality(cfg), n=1, keep_checkpoints_without_metrics=False
      )
    )
  return checkpoint_managers.AnyPreservationPolicy(policies)


def _quality(cfg: CheckpointConfig):
  """What orbax ranks by, higher is better; a checkpoint without the metric comes last."""
  sign = -1.0 if cfg.best_is_lower else 1.0

  def quality(metrics: Mapping[str, float | None]) -> float:
    number = metrics[cfg.best_metric]
    return -math.inf if number is None else sign * number

  return quality


def _contents_name(directory: pathlib.Path, step: int) -> str:
  """A name that the export in place, if any, does not use."""
  name = f"{step:08d}"
  used = ""
  if (directory / _EXPORT).is_file():
    used = workdir.read_json(directory / _EXPORT)["contents"]
  return f"{name}-again" if used == name else name


def _json_copy(what: str, fields: Any) -> Any:
  """A copy, so that the caller may change its own while the save goes on."""
  try:
    return json.loads(json.dumps(fields, allow_nan=False))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{what} is not JSON: {error}; use finite numbers, strings, booleans, None, lists and dicts"
    ) from None


def layout(leaf: Any) -> jax.sharding.Sharding | None:
  """The layout asked for; an array that jit may move freely asks for none."""
  if isinstance(leaf, jax.Array) and not leaf.committed:
    return None
  return getattr(leaf, "sharding", None)


def _laid_out(abstract: Any) -> Any:
  """Every leaf with the sharding it is read into."""
  default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

  def leaf_spec(leaf):
    sharding = layout(leaf)
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=default if sharding is None else sharding
    )

  return jax.tree.map(leaf_spec, abstract)


def _freed(restored: Any, abstract: Any) -> Any:
  """Leaves without an asked-for sharding, uncommitted, so that they mix with arrays on a mesh."""
  return jax.tree.map(
    lambda leaf, array: array if layout(leaf) is not None else jnp.array(np.asarray(array)),
    abstract,
    restored,
  )


def _check_same_arrays(where: str, saved: Any, abstract: Any) -> None:
  """Orbax's own errors print whole trees; one leaf says it."""
  have, want = _shapes(saved), _shapes(abstract)
  for name in sorted(have.keys() | want.keys()):
    if have.get(name) != want.get(name):
      raise ValueError(
        f"{where}: {name} is {have.get(name, 'absent')} in the checkpoint, "
        f"and the config makes it {want.get(name, 'absent')}; use the config that "
        "it was saved with"
      )


def _shapes(tree: Any) -> dict[str, str]:
  return {
    name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
    for name, leaf in ocp.tree.to_flat_dict(tree, sep="/").items()
    if hasattr(leaf, "shape")
  }
