"""A model that others published, `hf:DIR` or `gguf:FILE`, as a network of ours on the mesh.

Every leaf is made shard by shard: of the files, only the slices that a shard needs are read, and
one shard is in the host's memory at a time.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlhf import sharding, workdir
from rlhf.interop import families, files, ggml, layout
from rlhf.interop.layout import Row
from rlhf.model import transformer as model_lib
from rlhf.model.architecture import NUMERICS, ModelConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import Params

SCHEMES = ("hf:", "gguf:")
_SHOWN = 12  # names in a message
_PIECE = 2**21  # numbers that are read at once: 8 MB on their way into a shard


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
  """What a published model says of itself; `load_params` reads its numbers.

  Attributes:
    name: `hf:DIR` or `gguf:FILE`.
    kind: "policy", or "reward" for a sequence classifier with one label.
    family: of `families.FAMILIES`.
    model: the arguments of `ModelConfig`.
    tokenizer: with the end-of-text and padding of the model.
    num_rows: rows of the file's embedding.
    tensors: where the numbers are.
    top, rows: the table; `layer` leads to a layer's names, `prefix` to all but the heads'.
    ignored: names that may be left over.
    head_bias: of a reward model.
  """

  name: str
  kind: str
  family: str
  model: dict[str, Any]
  tokenizer: Tokenizer
  num_rows: int
  tensors: files.Tensors
  top: tuple[Row, ...]
  rows: tuple[Row, ...]
  prefix: str
  layer: str
  ignored: tuple[str, ...]
  head_bias: float = 0.0

  @property
  def config(self) -> dict[str, Any]:
    """Of the run that made it: none of ours."""
    return {}

  @property
  def metadata(self) -> dict[str, Any]:
    """What an export of this network remembers of where it came from."""
    return {"imported": {"family": self.family, "source": self.name}}


def is_source(name: str | os.PathLike) -> bool:
  """Whether a name is `hf:DIR` or `gguf:FILE`, and not an export's directory."""
  return str(name).startswith(SCHEMES)


def guess_source(path: str | os.PathLike) -> str:
  """`hf:DIR` or `gguf:FILE` of a path without either.

  Raises:
    ValueError: there is no such path, or it is another kind of file.
  """
  path = pathlib.Path(path)
  if is_source(path):
    return str(path)
  if path.is_dir():
    return f"hf:{path}"
  if not path.exists():
    raise ValueError(f"{path} does not exist; name a Hugging Face directory or a GGUF file")
  files.refuse_pickles(path)
  if path.suffix != ".gguf":
    raise ValueError(
      f"{path} is neither a directory nor a .gguf file; name a Hugging Face "
      "directory or a GGUF file"
    )
  return f"gguf:{path}"


def meant_source(path: str | os.PathLike) -> str | None:
  """`hf:DIR` or `gguf:FILE` where a path without either is a published model, for messages."""
  path = pathlib.Path(path)
  if path.suffix == ".gguf" and path.is_file():
    return f"gguf:{path}"
  if not (path / files.CONFIG).is_file():
    return None
  try:
    values = workdir.read_json(path / files.CONFIG)
  except ValueError:
    return None
  # The directory of a run of ours has a config.json too.
  return f"hf:{path}" if isinstance(values, dict) and "model_type" in values else None


def open_source(name: str) -> Source:
  """Reads everything but the numbers, and checks every tensor's name and shape.

  Args:
    name: `hf:DIR` or `gguf:FILE`.

  Raises:
    ValueError: files that are missing, damaged or pickles, an unknown architecture, a config that
      our model cannot express, tensors that are missing, left over or of the wrong shape, or a
      tokenizer that is larger than the embedding.
  """
  return _open(name, _stamps(pathlib.Path(name.partition(":")[2])))


def _stamps(path: pathlib.Path) -> tuple:
  """What changes when a file of the source does."""
  paths = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
  return tuple(
    (file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in paths if file.is_file()
  )


@functools.lru_cache(maxsize=4)  # a command asks several times, and some files take seconds
def _open(name: str, stamps: tuple) -> Source:
  del stamps
  scheme, _, path = name.partition(":")
  source = _open_gguf(name, path) if scheme == "gguf" else _open_directory(name, pathlib.Path(path))
  _check_tensors(source)
  return source


def _open_directory(name: str, directory: pathlib.Path) -> Source:
  if not directory.is_dir():
    files.refuse_pickles(directory)
    raise ValueError(
      f"{name}: there is no directory {directory}; name that of a Hugging Face model"
    )
  where = directory / files.CONFIG
  if not where.is_file():
    files.refuse_pickles(directory)
    raise ValueError(
      f"{directory} holds no {files.CONFIG}; name the directory of a Hugging Face model"
    )
  values = workdir.read_json(where)
  if not isinstance(values, dict):
    raise ValueError(f"{where} holds no JSON object; it must be a model's config")
  family = families.find(values.get("model_type"), str(where))
  fields = family.model_fields(values, str(where))
  tensors = files.SafetensorsFiles(directory)
  prefix = family.prefix
  if not any(tensor.startswith(prefix) for tensor in tensors.shapes):
    prefix = ""  # the base model alone, as GPT-2 was published
  kind, bias = "policy", 0.0
  if "score.weight" in tensors.shapes:
    kind, bias = "reward", _head_bias(values, tensors.shapes["score.weight"], where)
    fields["tied_output"] = True  # it has no other output
  num_rows = _num_rows(tensors, prefix + _embedding(family.top), where)
  tokenizer = Tokenizer.from_hf(directory, num_embeddings=num_rows)
  return Source(
    name=name,
    kind=kind,
    family=family.name,
    model=_complete(where, fields, tokenizer, num_rows),
    tokenizer=tokenizer,
    num_rows=num_rows,
    tensors=tensors,
    top=family.top,
    rows=family.rows,
    prefix=prefix,
    layer=family.layer,
    head_bias=bias,
    ignored=(*family.ignored, r"lm_head\.weight", r"embed_out\.weight")
    if fields["tied_output"]
    else family.ignored,
  )


def _open_gguf(name: str, path: str) -> Source:
  file = ggml.GgufFile(path)
  architecture = ggml.find(file)
  fields = architecture.read(file, file.field("general.architecture", ""))
  num_rows = _num_rows(file, _embedding(architecture.top), file.path)
  tokenizer = Tokenizer.from_gguf(file.reader, num_embeddings=num_rows, name=str(file.path))
  return Source(
    name=name,
    kind="policy",
    family=architecture.family.name,
    model=_complete(file.path, fields, tokenizer, num_rows),
    tokenizer=tokenizer,
    num_rows=num_rows,
    tensors=file,
    top=architecture.top,
    rows=architecture.rows,
    prefix="",
    layer="blk.{}.",
    ignored=architecture.ignored,
  )


def _embedding(top: tuple[Row, ...]) -> str:
  return next(row.tensors[0] for row in top if row.leaf == "embed/token")


def _num_rows(tensors: files.Tensors, name: str, where: pathlib.Path) -> int:
  if name not in tensors.shapes:
    raise ValueError(
      f"{where}: the model's files hold no {name}; they must be of the architecture "
      "that the config names"
    )
  return tensors.shapes[name][0]


def _head_bias(values: Mapping[str, Any], shape: tuple[int, ...], where: pathlib.Path) -> float:
  if shape[0] != 1:
    raise ValueError(
      f"{where.parent}: score.weight has {shape[0]} labels; a reward model has one (num_labels 1)"
    )
  return float(families.Fields(values, str(where)).number(families.SCORE_BIAS, 0.0))


def _complete(
  where: pathlib.Path, fields: dict[str, Any], tokenizer: Tokenizer, num_rows: int
) -> dict[str, Any]:
  """The arguments of `ModelConfig`; a row for padding is added where the file has none."""
  try:
    cfg = ModelConfig(
      vocab_size=max(num_rows, tokenizer.pad_id + 1), pad_id=tokenizer.pad_id, **NUMERICS, **fields
    )
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  return dataclasses.asdict(cfg)


# ----------------------------------------------------------------------------- leaves and tensors


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where one leaf of our tree comes from.

  Attributes:
    row: of the table.
    layers: numbers of the layers along the leading axis; None for a leaf without one.
    prefixes: what leads to the row's tensors, for each layer.
  """

  row: Row
  layers: tuple[int, ...] | None
  prefixes: tuple[str, ...]


def locate(
  name: str,
  cfg: ModelConfig,
  *,
  top: tuple[Row, ...],
  rows: tuple[Row, ...],
  prefix: str,
  layer: str,
) -> Leaf | None:
  """Where the leaf with this path in our tree is in a file; None where the table has none."""
  found = re.fullmatch(r"(blocks|tail)/layer_(\d+)/(.*)", name)
  if found is None:
    row = next((row for row in top if row.leaf == name), None)
    return None if row is None else Leaf(row, None, (prefix,))
  row = next((row for row in rows if row.leaf == found[3]), None)
  if row is None:
    return None
  step = int(found[2])
  if found[1] == "tail":
    return Leaf(row, None, (prefix + layer.format(cfg.num_patterns * cfg.pattern + step),))
  layers = tuple(range(step, cfg.num_patterns * cfg.pattern, cfg.pattern))
  return Leaf(row, layers, tuple(prefix + layer.format(number) for number in layers))


def tensor_name(prefix: str, name: str) -> str:
  """A tensor's name in the file; a name that begins with "/" has no prefix."""
  return name.removeprefix("/") if name.startswith("/") else prefix + name


def abstract_params(cfg: ModelConfig, kind: str) -> Params:
  """Shapes of a network's parameters."""
  key = jax.random.key(0)
  shapes = jax.eval_shape(functools.partial(model_lib.init_params, cfg), key)
  if kind != "policy":
    shapes["head"] = jax.eval_shape(functools.partial(model_lib.init_head, cfg), key)
  return shapes


def named_leaves(tree: Params) -> dict[str, Any]:
  """Path -> leaf."""
  return {
    sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _locate(source: Source, name: str, cfg: ModelConfig) -> Leaf | None:
  return locate(
    name, cfg, top=source.top, rows=source.rows, prefix=source.prefix, layer=source.layer
  )


def _check_tensors(source: Source) -> None:
  """Raises ValueError with the names that are missing, left over or of the wrong shape."""
  cfg = ModelConfig(**source.model)
  sizes = layout.axis_sizes(cfg, source.num_rows)
  expected: dict[str, tuple[int, ...]] = {}
  for name in named_leaves(abstract_params(cfg, source.kind)):
    leaf = _locate(source, name, cfg)
    if leaf is None:
      if name != "head/bias":
        raise ValueError(f"{source.name}: a {source.family} file has no place for {name}")
      continue
    for prefix in leaf.prefixes:
      expected |= {
        tensor_name(prefix, tensor): shape
        for tensor, shape in layout.file_shapes(leaf.row, sizes).items()
      }
  if source.kind == "reward" and cfg.embed_width is not None:
    expected["score.weight"] = (1, cfg.embed_width)  # see `_through_projection`
  found = source.tensors.shapes
  ignored = re.compile("|".join(f"(.*\\.)?{pattern}" for pattern in source.ignored) or "(?!)")
  problems = {
    "missing": [name for name in expected if name not in found],
    "left over": [name for name in found if name not in expected and not ignored.fullmatch(name)],
    "of the wrong shape": [
      f"{name} {list(found[name])} (must be {list(shape)})"
      for name, shape in expected.items()
      if name in found and found[name] != shape
    ],
  }
  said = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
  if said:
    raise ValueError(
      f"{source.name}: the tensors are not those of this {source.family}; " + "; ".join(said)
    )


def _listed(names: list[str]) -> str:
  more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + more


# ----------------------------------------------------------------------------- numbers


def load_params(source: Source, abstract: Params) -> Params:
  """The parameters, float32, each leaf in its layout.

  Args:
    source: of `open_source`.
    abstract: tree of ShapeDtypeStruct with shardings.
  """
  cfg = ModelConfig(**source.model)

  def load(path, spec):
    name = sharding.path_name(path)
    if name == "head/bias":
      return _place(spec, lambda index: np.full((1,), source.head_bias, np.float32))
    if name == "head/kernel" and cfg.embed_width is not None:
      kernel_D1 = _through_projection(source)
      return _place(spec, lambda index: kernel_D1[index])
    leaf = _locate(source, name, cfg)
    with source.tensors.opened() as read:
      return _place(
        spec,
        functools.partial(
          _read_shard, leaf, layout.axis_sizes(cfg, source.num_rows), spec.shape, read
        ),
      )

  return jax.tree_util.tree_map_with_path(load, abstract)


def _read_shard(
  leaf: Leaf,
  sizes: Mapping[str, int],
  shape: tuple[int, ...],
  read: layout.Read,
  index: tuple[slice, ...],
) -> np.ndarray:
  """The part of a leaf at `index`, from one small piece of the file after the other."""
  shard = np.empty([part.stop - part.start for part in index], np.float32)

  def fill(prefix: str, target, index, shape):
    rows = max(1, _PIECE * target.shape[0] // max(target.size, 1))
    for start in range(0, target.shape[0], rows):
      stop = min(start + rows, target.shape[0])
      part = slice(index[0].start + start, index[0].start + stop)
      target[start:stop] = layout.read_block(
        leaf.row,
        sizes,
        (part, *index[1:]),
        shape,
        lambda name, where: read(tensor_name(prefix, name), where),
      )

  if leaf.layers is None:
    fill(leaf.prefixes[0], shard, index, shape)
  else:
    for number, prefix in enumerate(leaf.prefixes):
      fill(prefix, shard[number], index[1:], shape[1:])
  return shard


def _place(spec: jax.ShapeDtypeStruct, read_shard) -> jax.Array:
  """An array of which one shard after the other is read and put on its devices.

  `jax.make_array_from_callback` would hold all of this process's shards before it puts the first.
  """
  devices_of: dict[tuple, list[jax.Device]] = {}
  for device, index in spec.sharding.addressable_devices_indices_map(spec.shape).items():
    bounds = tuple(part.indices(size)[:2] for part, size in zip(index, spec.shape, strict=True))
    devices_of.setdefault(bounds, []).append(device)
  shards = {}
  for bounds, devices in devices_of.items():
    shard = read_shard(tuple(slice(*bound) for bound in bounds))
    for device in devices:
      shards[device] = jax.device_put(shard, device)
    jax.block_until_ready([shards[device] for device in devices])
    del shard  # before the next one is read
  order = spec.sharding.addressable_devices_indices_map(spec.shape)
  return jax.make_array_from_single_device_arrays(
    spec.shape, spec.sharding, [shards[device] for device in order]
  )


def _through_projection(source: Source) -> np.ndarray:
  """OPT-350m scores what its output projection leaves; our head reads the hidden states before.

  Returns:
    the product of both, [D, 1].
  """
  project = next(row.tensors[0] for row in source.top if row.leaf == "output/project/kernel")
  whole = (slice(None), slice(None))
  with source.tensors.opened() as read:
    return read(tensor_name(source.prefix, project), whole).T @ read("score.weight", whole).T
