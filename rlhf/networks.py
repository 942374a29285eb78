"""From an export or from scratch to a network on the mesh: config, parameters, tokenizer."""

import dataclasses
import functools
import os
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf import checkpoint
from rlhf import model
from rlhf import sharding
from rlhf.model import ModelConfig
from rlhf.tokenizer import Tokenizer
from rlhf.types import Params

# How a network computes, as against what it is: these come from the run, not from the export.
# The values stand for what an export of an older version does not name; none changes the function
# but for rounding.
NUMERICS = dict(dtype="float32", remat="none", scan_unroll=1, logprob_chunk=128, attention="auto",
                shard_sequence=False, decode_split="tensor", decode_scan=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  cfg: ModelConfig
  params: Params
  tokenizer: Tokenizer
  metadata: dict[str, Any]


def model_config(group: dict[str, Any], tokenizer: Tokenizer) -> ModelConfig:
  """The `model` group of a config, completed by the tokenizer's sizes."""
  return ModelConfig(vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, **group)


def shape_of(group: dict[str, Any]) -> ModelConfig:
  """The `model` group of a config before any tokenizer is known: its checks and its counts."""
  return ModelConfig(vocab_size=1, pad_id=0, **group)


def create(cfg: ModelConfig, key, mesh: Mesh) -> Params:
  """A policy from scratch, each leaf born in its layout."""
  init = functools.partial(model.init_params, cfg)
  shardings = sharding.param_shardings(mesh, jax.eval_shape(init, key))
  return jax.jit(init, out_shardings=shardings)(key)


def find_export(directory: str | os.PathLike, group: dict[str, Any], *, kind: str,
                flag: str) -> checkpoint.Export:
  """What an export says of itself, where it is the one asked for; arguments as in `load`.

  Raises:
    ValueError: no export, another kind, another shape than the config says, or a shape that this
      version does not describe in the same words.
  """
  if not str(directory):
    raise ValueError(f"{flag} is empty; name the export directory of a {kind}")
  try:
    export = checkpoint.load_export(directory)
  except ValueError as error:
    raise ValueError(f"{flag}: {error}") from None
  if export.kind != kind:
    raise ValueError(f"{flag}={directory} is a {export.kind} export; it must be a {kind}")
  _check_fields(export, f"{flag}={directory}")
  for name, wanted in group.items():
    if name not in NUMERICS and export.model[name] != wanted:
      raise ValueError(f"{flag}={directory} has {name} {export.model[name]}, but "
                       f"config.model.{name} is {wanted}; make them equal")
  return export


def _check_fields(export: checkpoint.Export, where: str) -> None:
  """Raises ValueError where an export lacks a field of the shape, or has one that is not known."""
  known = {field.name for field in dataclasses.fields(ModelConfig)}
  missing = sorted(known - set(NUMERICS) - export.model.keys())
  unknown = sorted(export.model.keys() - known)
  if missing or unknown:
    what = f"does not say its {missing[0]}" if missing else f"has an unknown field {unknown[0]!r}"
    raise ValueError(f"{where} was written by another version: its model {what}; read it with the "
                     "version that wrote it, or export it anew")


def export_numerics(export: checkpoint.Export) -> dict[str, Any]:
  """How an export's network was computed; where it does not say, as `NUMERICS` does."""
  return {name: export.model[name] if name in export.model else default
          for name, default in NUMERICS.items()}


def load(directory: str | os.PathLike, group: dict[str, Any], mesh: Mesh, *, kind: str,
         flag: str) -> Network:
  """A network from an export, laid out on the mesh.

  Args:
    directory: of the export.
    group: the config's `model` group; its `NUMERICS` are used, and where it names a shape, that
      must be the export's (an empty dict of shapes takes the export's).
    kind: "policy" or "reward", what the export must be.
    flag: the config field that named the directory, for error messages.

  Raises:
    ValueError: as `find_export`.
  """
  export = find_export(directory, group, kind=kind, flag=flag)
  numerics = {name: group[name] for name in NUMERICS}
  cfg = ModelConfig(**(export.model | numerics))
  shapes = jax.eval_shape(functools.partial(model.init_params, cfg), jax.random.key(0))
  if kind != "policy":
    shapes["head"] = jax.eval_shape(functools.partial(model.init_head, cfg), jax.random.key(0))
  abstract = jax.tree.map(
      lambda shape, layout: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout),
      shapes, sharding.param_shardings(mesh, shapes))
  return Network(cfg=cfg, params=checkpoint.load_params(directory, abstract),
                 tokenizer=Tokenizer.load(export.tokenizer_dir), metadata=export.metadata)


def check_same_tokenizer(first: Tokenizer, second: Tokenizer, names: str) -> None:
  """Networks that read one another's token ids must agree on what an id is.

  Raises:
    ValueError: the tokenizers differ; two of one size that were trained on different text do.
  """
  if not first.same_as(second):
    raise ValueError(
        f"{names} use different tokenizers ({first.num_ids} and {second.num_ids} ids); train both "
        "from one base")
