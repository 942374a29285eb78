"""From an export, a published model or from scratch to a network on the mesh: config, parameters,
tokenizer.

Where a network comes from is the directory of an export, `hf:DIR` (a Hugging Face directory) or
`gguf:FILE`.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from rlhf import checkpoint, sharding
from rlhf.configs import meshes
from rlhf.interop import reading
from rlhf.model import transformer
from rlhf.model.architecture import ModelConfig
from rlhf.model.compute import ComputeConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  cfg: ModelConfig
  params: Params
  tokenizer: Tokenizer
  metadata: dict[str, Any]


def configured(config) -> ModelConfig:
  """The groups `model` and `compute` of a config; the tokenizer is yet to give the vocabulary."""
  return ModelConfig(**config.model, compute=ComputeConfig(**config.compute))


def start_field(config) -> str:
  """The field of a training config that names the network it starts from."""
  return "policy_from" if config.kind == "ppo" else "init_from"


def config_shape(config) -> ModelConfig:
  """The shape of a stage's network: of its `model` group or, with `:imported`, of its source.

  Raises:
    ValueError: an impossible shape, no source, or one that cannot be read.
  """
  if config.model:
    return configured(config)
  field = start_field(config)
  if not config[field]:
    raise ValueError(
      f"{field} is empty, and config.model has no shape of its own (:imported); "
      "name hf:DIR, gguf:FILE or the export directory of a policy"
    )
  found = find_export(config[field], kind="policy", flag=field)
  return ModelConfig(**found.model, compute=ComputeConfig(**config.compute))


def check_shape(config, mesh: Mesh) -> ModelConfig:
  """`config_shape`, checked against the mesh and, where the config has one, its `length`.

  Raises:
    ValueError: as `config_shape`, or rows or heads that do not fit.
  """
  shape = config_shape(config)
  if "length" in config and not 2 <= config.length <= shape.context_length:
    raise ValueError(
      f"length {config.length} must be at least 2 and at most model.context_length "
      f"{shape.context_length}"
    )
  meshes.check_heads(shape.shape(), mesh.shape["tensor"], "model.")
  return shape


def create(cfg: ModelConfig, tokenizer: Tokenizer, key, mesh: Mesh) -> Network:
  """A policy from scratch with the tokenizer's vocabulary, each leaf made in its layout."""
  cfg = dataclasses.replace(cfg, vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id)
  init = functools.partial(transformer.init_params, cfg)
  shardings = sharding.param_shardings(mesh, jax.eval_shape(init, key))
  params = jax.jit(init, out_shardings=shardings)(key)
  return Network(cfg=cfg, params=params, tokenizer=tokenizer, metadata={})


def find_export(
  directory: str | os.PathLike, *, kind: str, flag: str, shape: Mapping[str, Any] | None = None
) -> checkpoint.Export | reading.Source:
  """What an export or a published model says of itself; arguments as in `load`.

  Raises:
    ValueError: there is none, or it has another kind or another shape than was asked for.
  """
  if not str(directory):
    raise ValueError(f"{flag} is empty; name the export directory of a {kind}, hf:DIR or gguf:FILE")
  published = reading.is_source(directory)
  found: checkpoint.Export | reading.Source
  try:
    load_from = reading.open_source if published else checkpoint.load_export
    found = load_from(str(directory))
  except ValueError as error:
    problem = str(error)
    if not published and (meant := reading.meant_source(directory)) is not None:
      problem = f"{directory} is a published model; write {flag}={meant}"
    raise ValueError(f"{flag}: {problem}") from None
  if found.kind != kind:
    what = "model" if published else "export"
    raise ValueError(f"{flag}={directory} is a {found.kind} {what}; it must be a {kind}")
  _check_fields(found.model, f"{flag}={directory}")
  if shape:
    _check_shape(found.model, shape, f"{flag}={directory}")
  return found


def _check_shape(saved: dict[str, Any], shape: Mapping[str, Any], where: str) -> None:
  """Raises ValueError where the config's shape is not the saved one."""
  have = ModelConfig(**saved).shape()
  wanted = ModelConfig(**shape).shape()
  for name in sorted(shape, key=lambda name: shape[name] is None):  # derived fields come last
    if have[name] != wanted[name]:
      raise ValueError(
        f"{where} has {name} {have[name]}, but config.model.{name} is {wanted[name]}; make them "
        "equal, or take the shape from the source with :imported in place of the config's size"
      )


def origin(metadata: dict[str, Any]) -> dict[str, Any]:
  """Of a network's metadata, what every network that is trained from it keeps: which published
  model it once was, so that it can be written as one again."""
  return {"imported": metadata["imported"]} if "imported" in metadata else {}


def _check_fields(saved: dict[str, Any], where: str) -> None:
  """Raises ValueError where an export lacks a field of the shape, or has one that is not known."""
  fields = dataclasses.fields(ModelConfig)
  needed = {field.name for field in fields if field.default is dataclasses.MISSING}
  missing = sorted((needed | {"vocab_size", "pad_id"}) - saved.keys())
  unknown = sorted(saved.keys() - {field.name for field in fields})
  if missing or unknown:
    what = f"does not say its {missing[0]}" if missing else f"has an unknown field {unknown[0]!r}"
    raise ValueError(
      f"{where} was written by another version: its model {what}; read it with the "
      "version that wrote it, or export it anew"
    )


def load(
  directory: str | os.PathLike,
  compute: ComputeConfig | None = None,
  mesh: Mesh | None = None,
  *,
  kind: str,
  flag: str,
  shape: Mapping[str, Any] | None = None,
) -> Network:
  """A network from an export or a published model, laid out on the mesh.

  Args:
    directory: of the export or its stage, or `hf:DIR`, or `gguf:FILE`.
    compute: how the network is computed here; None as the source says.
    mesh: None replicates it on every device.
    kind: "policy" or "reward", what the source must be.
    flag: the config field that named the directory, for error messages.
    shape: fields that the source's shape must have, such as a config's `model` group; none where
      it is empty.

  Raises:
    ValueError: as `find_export`, or the mesh does not divide a parameter.
  """
  found = find_export(directory, kind=kind, flag=flag, shape=shape)
  cfg = ModelConfig(**found.model, compute=found.compute if compute is None else compute)
  if mesh is None:
    mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  shapes = reading.abstract_params(cfg, kind)
  sharding.check_divides(mesh, shapes)
  abstract = jax.tree.map(
    lambda shape, layout: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=layout),
    shapes,
    sharding.param_shardings(mesh, shapes),
  )
  if isinstance(found, reading.Source):
    params = reading.load_params(found, abstract)
  else:
    params = checkpoint.load_params(directory, abstract)
  return Network(cfg=cfg, params=params, tokenizer=found.tokenizer, metadata=found.metadata)


def check_same_tokenizer(first: Tokenizer, second: Tokenizer, names: str) -> None:
  """Networks that read one another's token ids must agree on what an id is.

  Raises:
    ValueError: the tokenizers differ; two of one size that were trained on different text do.
  """
  if first.fingerprint != second.fingerprint:
    raise ValueError(
      f"{names} use different tokenizers ({first.num_ids} and {second.num_ids} ids); train both "
      "from one base"
    )
