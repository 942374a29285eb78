"""A model that others published, `hf:DIR` or `gguf:FILE`, as a network of ours on the mesh.

Every leaf is made shard by shard: only the slices of the files that a shard needs are read, and one
shard at a time is in the host's memory.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rlhf import sharding
from rlhf.interop import families, files, ggml, layout
from rlhf.interop.families import Family
from rlhf.interop.layout import Row
from rlhf.model import transformer as model_lib
from rlhf.model.architecture import ModelConfig
from rlhf.model.compute import ComputeConfig
from rlhf.tokenization.published import read_json_object
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import Params

SCHEMES = ("hf:", "gguf:")
_MAX_NAMES_SHOWN = 12  # in an error message
_PIECE = 2**21  # numbers of a shard that are read at once: 8 MB


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
  """A published model; `load_params` reads its numbers.

  Attributes:
    name: `hf:DIR` or `gguf:FILE`.
    kind: "policy", or "reward" for a sequence classifier with one label.
    family: with the prefix and the names of tensors that these files use.
    model: the arguments of `ModelConfig`.
    tokenizer: with the end-of-text and padding of the model.
    num_rows: rows of the file's embedding.
    tensors: the numbers.
    head_bias: of a reward model.
    compute: the defaults, as a published model does not say.
    config: empty, as the model comes from no run of ours.
  """

  name: str
  kind: str
  family: Family
  model: dict[str, Any]
  tokenizer: Tokenizer
  num_rows: int
  tensors: files.SafetensorsFiles | ggml.GgufFile
  head_bias: float = 0.0
  compute: ComputeConfig = ComputeConfig()
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def metadata(self) -> dict[str, Any]:
    """The origin of this network, for its exports."""
    return {"imported": {"family": self.family.name, "source": self.name}}


def is_source(name: str | os.PathLike) -> bool:
  """Whether a name is `hf:DIR` or `gguf:FILE` rather than the directory of an export."""
  return str(name).startswith(SCHEMES)


def guess_source(path: str | os.PathLike) -> str:
  """`hf:DIR` or `gguf:FILE` for a path without a scheme.  Raises ValueError if it is neither."""
  path = pathlib.Path(path)
  if is_source(path):
    return str(path)
  if path.is_dir():
    return f"hf:{path}"
  if path.is_file() and path.suffix == ".gguf":
    return f"gguf:{path}"
  files.refuse_pickles(path)
  found = "is neither a directory nor a .gguf file" if path.exists() else "does not exist"
  raise ValueError(f"{path} {found}; name a Hugging Face directory or a GGUF file")


def meant_source(path: str | os.PathLike) -> str | None:
  """`hf:DIR` or `gguf:FILE` if a path without a scheme is a published model; for messages."""
  path = pathlib.Path(path)
  if path.suffix == ".gguf" and path.is_file():
    return f"gguf:{path}"
  try:
    values = read_json_object(path / files.CONFIG)
  except ValueError:
    return None
  return f"hf:{path}" if "model_type" in values else None  # a workdir has a config.json too


def open_source(name: str) -> Source:
  """Reads all of `hf:DIR` or `gguf:FILE` but the numbers, and checks every tensor's name and shape.

  Raises:
    ValueError: files that are missing, damaged or pickles, an unknown architecture, a config that
      our model cannot express, tensors that are missing, unexpected or of the wrong shape, or a
      tokenizer that is larger than the embedding.
  """
  return _open(name, _stamps(pathlib.Path(name.partition(":")[2])))


def _stamps(path: pathlib.Path) -> tuple:
  """Changes when a file of the source does."""
  paths = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
  return tuple(
    (file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in paths if file.is_file()
  )


@functools.lru_cache(maxsize=4)  # commands ask several times, and some files take seconds
def _open(name: str, stamps: tuple) -> Source:
  del stamps
  scheme, _, path = name.partition(":")
  source = _open_gguf(name, path) if scheme == "gguf" else _open_directory(name, pathlib.Path(path))
  _check_tensors(source)
  return source


def _open_directory(name: str, directory: pathlib.Path) -> Source:
  where = directory / files.CONFIG
  if not where.is_file():
    files.refuse_pickles(directory)
    found = f"holds no {files.CONFIG}" if directory.is_dir() else "is no directory"
    raise ValueError(f"{name}: {directory} {found}; name the directory of a Hugging Face model")
  values = read_json_object(where)
  family = families.find(values.get("model_type"), str(where))
  fields = family.model_fields(values, str(where))
  tensors = files.SafetensorsFiles(directory)
  if not any(tensor.startswith(family.prefix) for tensor in tensors.shapes):
    family = dataclasses.replace(family, prefix="")  # the base model alone, as GPT-2 was published
  kind, bias = "policy", 0.0
  if "score.weight" in tensors.shapes:
    num_labels = tensors.shapes["score.weight"][0]
    if num_labels != 1:
      raise ValueError(
        f"{directory}: score.weight has {num_labels} labels; a reward model has one (num_labels 1)"
      )
    kind = "reward"
    bias = float(families.Fields(values, str(where)).number(families.SCORE_BIAS, 0.0))
    fields["tied_output"] = True  # it has no other output
  if fields["tied_output"]:
    unused = (r"lm_head\.weight", r"embed_out\.weight")
    family = dataclasses.replace(family, ignored=(*family.ignored, *unused))
  read_tokenizer = functools.partial(Tokenizer.from_hf, directory)
  return _source(name, where, family, fields, tensors, read_tokenizer, kind=kind, head_bias=bias)


def _open_gguf(name: str, path: str) -> Source:
  file = ggml.GgufFile(path)
  family, fields = ggml.find(file), ggml.model_fields(file)
  read_tokenizer = functools.partial(Tokenizer.from_gguf, file.reader, name=path)
  return _source(name, file.path, family, fields, file, read_tokenizer, kind="policy")


def _source(
  name: str,
  where: pathlib.Path,
  family: Family,
  fields: dict[str, Any],
  tensors: files.SafetensorsFiles | ggml.GgufFile,
  read_tokenizer: Callable[..., Tokenizer],
  **others: Any,
) -> Source:
  """The source of a config's fields; adds a row for padding if the file has none."""
  embedding = family.prefix + next(iter(family.rows["embed/token"].tensors))
  if embedding not in tensors.shapes:
    raise ValueError(
      f"{where}: the model's files do not contain {embedding}; they must be of the architecture "
      "that the config names"
    )
  num_rows = tensors.shapes[embedding][0]
  tokenizer = read_tokenizer(num_embeddings=num_rows)
  try:
    cfg = ModelConfig(
      vocab_size=max(num_rows, tokenizer.pad_id + 1), pad_id=tokenizer.pad_id, **fields
    )
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  return Source(
    name=name,
    family=family,
    model=cfg.shape(),
    tokenizer=tokenizer,
    num_rows=num_rows,
    tensors=tensors,
    **others,
  )


# ----------------------------------------------------------------------------- leaves and tensors


@dataclasses.dataclass(frozen=True)
class Leaf:
  """Where one leaf of our tree comes from.

  Attributes:
    row: of the family's table.
    prefixes: of the names of the row's tensors, one for each layer along the leading axis.
    is_layered: whether the leaf has that axis; if not, there is one prefix.
  """

  row: Row
  prefixes: tuple[str, ...]
  is_layered: bool

  def layers(self, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """(prefix, its part of the leaf's values)."""
    return zip(self.prefixes, values if self.is_layered else [values], strict=True)


def locate(name: str, cfg: ModelConfig, family: Family) -> Leaf:
  """Where a leaf, named by its path, is in a file.  Raises ValueError if it has no place there."""
  found = re.fullmatch(r"(blocks|tail)/layer_(\d+)/(.*)", name)
  row = family.rows.get(name if found is None else found[3])
  if row is None:
    raise ValueError(f"a {family.name} file has no place for {name}; choose another --family")
  if found is None:
    return Leaf(row, (family.prefix,), is_layered=False)
  # Whole repetitions of the pattern of layers are stacked; the layers after them are not.
  step, num_stacked = int(found[2]), cfg.num_patterns * cfg.pattern
  stacked = found[1] == "blocks"
  numbers = range(step, num_stacked, cfg.pattern) if stacked else [num_stacked + step]
  prefixes = tuple(family.prefix + family.layer.format(number) for number in numbers)
  return Leaf(row, prefixes, is_layered=stacked)


def tensor_name(prefix: str, name: str) -> str:
  """The name of a tensor in the file; a name that begins with "/" takes no prefix."""
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


def _check_tensors(source: Source) -> None:
  """Raises ValueError with the names that are missing, unexpected or of the wrong shape."""
  cfg, family = ModelConfig(**source.model), source.family
  sizes = layout.axis_sizes(cfg, source.num_rows)
  expected: dict[str, tuple[int, ...]] = {}
  for name in named_leaves(abstract_params(cfg, source.kind)):
    if name == "head/bias":
      continue  # config.json has it
    leaf = locate(name, cfg, family)
    for tensor, shape in layout.file_shapes(leaf.row, sizes).items():
      expected |= {tensor_name(prefix, tensor): shape for prefix in leaf.prefixes}
  if source.kind == "reward" and cfg.embed_width is not None:
    expected["score.weight"] = (1, cfg.embed_width)  # see `_through_projection`
  found = source.tensors.shapes
  ignored = re.compile("|".join(f"(.*\\.)?{pattern}" for pattern in family.ignored) or "(?!)")
  problems = {
    "missing": [name for name in expected if name not in found],
    "left over": [name for name in found if name not in expected and not ignored.fullmatch(name)],
    "of the wrong shape": [
      f"{name} {list(found[name])} (must be {list(shape)})"
      for name, shape in expected.items()
      if name in found and found[name] != shape
    ],
  }
  if any(problems.values()):
    raise ValueError(
      f"{source.name}: the tensors are not those of this {family.name}; "
      + "; ".join(f"{what}: {_listed(names)}" for what, names in problems.items() if names)
    )


def _listed(names: list[str]) -> str:
  shown, num_more = names[:_MAX_NAMES_SHOWN], len(names) - _MAX_NAMES_SHOWN
  return ", ".join(shown) + (f" and {num_more} more" if num_more > 0 else "")


# ----------------------------------------------------------------------------- numbers


def load_params(source: Source, abstract: Params) -> Params:
  """The parameters, float32, on the mesh; `abstract` has ShapeDtypeStructs with shardings."""
  cfg = ModelConfig(**source.model)

  def load(path, spec):
    name = sharding.path_name(path)
    if name == "head/bias":
      return _place(spec, lambda index: np.full((1,), source.head_bias, np.float32))
    if name == "head/kernel" and cfg.embed_width is not None:
      kernel_D1 = _through_projection(source)
      return _place(spec, lambda index: kernel_D1[index])
    leaf = locate(name, cfg, source.family)
    sizes = layout.axis_sizes(cfg, source.num_rows)
    with source.tensors.opened() as read:
      return _place(spec, functools.partial(_read_shard, leaf, sizes, spec.shape, read))

  return jax.tree_util.tree_map_with_path(load, abstract)


def _read_shard(
  leaf: Leaf,
  sizes: Mapping[str, int],
  shape: tuple[int, ...],
  read: layout.Read,
  index: tuple[slice, ...],
) -> np.ndarray:
  """The part of a leaf at `index`, read in small pieces."""
  shard = np.empty([part.stop - part.start for part in index], np.float32)
  first, *others = index[leaf.is_layered :]
  shape = shape[leaf.is_layered :]
  for prefix, part in leaf.layers(shard):
    read_own = lambda name, where: read(tensor_name(prefix, name), where)
    rows = max(1, _PIECE * len(part) // max(part.size, 1))
    for start in range(0, len(part), rows):
      piece = part[start : start + rows]
      here = slice(first.start + start, first.start + start + len(piece))
      piece[:] = layout.read_block(leaf.row, sizes, (here, *others), shape, read_own)
  return shard


def _place(spec: jax.ShapeDtypeStruct, read_shard) -> jax.Array:
  """An array whose shards are read and put on their devices one after another.

  `jax.make_array_from_callback` would hold all shards of this process before it places the first.
  """
  indices = spec.sharding.addressable_devices_indices_map(spec.shape)
  devices_of: dict[tuple, list[jax.Device]] = {}
  for device, index in indices.items():
    bounds = tuple(part.indices(size)[:2] for part, size in zip(index, spec.shape, strict=True))
    devices_of.setdefault(bounds, []).append(device)
  shards = {}
  for bounds, devices in devices_of.items():
    shard = read_shard(tuple(slice(*bound) for bound in bounds))
    for device in devices:
      shards[device] = jax.device_put(shard, device)
    jax.block_until_ready([shards[device] for device in devices])
    del shard  # before the next one is read
  arrays = [shards[device] for device in indices]
  return jax.make_array_from_single_device_arrays(spec.shape, spec.sharding, arrays)


def _through_projection(source: Source) -> np.ndarray:
  """The reward head of OPT-350m, [width, 1]: its score reads the output of the last projection.

  Our head reads the hidden states before that projection, so it is the product of both.
  """
  row = source.family.rows["output/project/kernel"]
  project = tensor_name(source.family.prefix, next(iter(row.tensors)))
  whole = (slice(None), slice(None))
  with source.tensors.opened() as read:
    return read(project, whole).T @ read("score.weight", whole).T
