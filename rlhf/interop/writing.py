"""A network of ours as a directory that `transformers` and vLLM load.

    config.json  generation_config.json  tokenizer files
    model.safetensors, or model-00001-of-0000N.safetensors ... and their index, above `SHARD_BYTES`

A reward model becomes an `AutoModelForSequenceClassification` with one label.  The families'
`score` is a matrix without a bias, and ours has one, which holds the demonstrations-at-zero offset:
it is the field `score_bias` of `config.json`, to be added to the logit:

    reward = model(**inputs).logits[:, 0] + model.config.score_bias
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlhf import processes, workdir
from rlhf.interop import families, files, layout, reading
from rlhf.interop.families import Family
from rlhf.model import lora
from rlhf.model.transformer import ModelConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import Params

SHARD_BYTES = 5 * 2**30  # of a file; what the hub's own tools cut at
DEFAULT_FAMILY = "gpt2"  # of models that were trained here


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What a directory will hold, decided before anything is written."""

  family: Family
  cfg: ModelConfig
  kind: str
  num_rows: int
  config: dict[str, Any]


def choose_family(metadata: Mapping[str, Any], name: str | None) -> Family:
  """The family that is asked for, else the one that the model was imported from, else GPT-2.

  Raises:
    ValueError: an unknown name.
  """
  if name is None:
    name = metadata["imported"]["family"] if "imported" in metadata else DEFAULT_FAMILY
  if name not in families.FAMILIES:
    raise ValueError(f"--family={name}; choose from {', '.join(families.FAMILIES)}")
  return families.FAMILIES[name]


def check(cfg: ModelConfig, *, kind: str, family: Family) -> None:
  """Raises ValueError where the family cannot express the model, or the network is another kind."""
  if kind not in ("policy", "reward"):
    raise ValueError(
      f"a {kind} network has no counterpart in Hugging Face's format; export a "
      "policy or a reward model"
    )
  family.config(cfg)


def plan(
  cfg: ModelConfig, *, kind: str, family: Family, tokenizer: Tokenizer, head_bias: float
) -> Plan:
  """What an export of the model holds besides its numbers; raises as `check`."""
  check(cfg, kind=kind, family=family)
  # A row that was added for padding is no part of the published vocabulary.  Of a reward model,
  # whose score is read before the padding, the padding must have an id, so it has the next free.
  num_rows = cfg.vocab_size
  if tokenizer.pad_id >= tokenizer.vocab_size:
    num_rows -= 1
    if kind == "reward":
      num_rows = max(num_rows, tokenizer.vocab_size + 1)
  config = {
    "architectures": [family.policy if kind == "policy" else family.reward],
    **family.config(cfg),
    "vocab_size": num_rows,
    "torch_dtype": "float32",
  }
  if kind == "reward":
    config |= {
      "id2label": {"0": "LABEL_0"},
      "label2id": {"LABEL_0": 0},
      families.SCORE_BIAS: head_bias,
    }
  return Plan(family=family, cfg=cfg, kind=kind, num_rows=num_rows, config=config)


def tensors(planned: Plan, params: Params) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor of the file, in the order of our tree.

  Raises:
    ValueError: a leaf has no place in the family's files.
  """
  cfg, family = planned.cfg, planned.family
  sizes = layout.axis_sizes(cfg, planned.num_rows)
  if planned.kind == "reward":
    params = _scored(cfg, params)
  for name, leaf in reading.named_leaves(params).items():
    if name == "head/bias":
      continue  # config.json has it
    if name == "head/kernel" and cfg.embed_width is not None:
      yield "score.weight", np.asarray(leaf, np.float32).T
      continue
    found = reading.locate(
      name, cfg, top=family.top, rows=family.rows, prefix=family.prefix, layer=family.layer
    )
    if found is None:
      raise ValueError(f"a {family.name} file has no place for {name}; choose another --family")
    values = np.asarray(leaf, np.float32)
    layers = [values] if found.layers is None else values
    for prefix, layer in zip(found.prefixes, layers, strict=True):
      for tensor, written in layout.write_tensors(found.row, sizes, layer).items():
        yield reading.tensor_name(prefix, tensor), written


def _scored(cfg: ModelConfig, params: Params) -> Params:
  """A reward model's parameters as a sequence classifier has them: no output but the score."""
  params = dict(params)
  output = params.pop("output", None)
  if cfg.embed_width is not None:
    # OPT-350m scores what its output projection leaves: the head is that projection's first column.
    kernel_DE = np.zeros(output["project"]["kernel"].shape, np.float32)
    kernel_DE[:, :1] = params["head"]["kernel"]
    params["output"] = {"project": {"kernel": kernel_DE}}
    params["head"] = {"kernel": np.eye(cfg.embed_width, 1, dtype=np.float32)}
  return params


def write(
  directory: str | os.PathLike,
  cfg: ModelConfig,
  params: Params,
  tokenizer: Tokenizer,
  *,
  kind: str,
  family: Family,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes the directory, whole or not at all.

  Args:
    directory: does not exist, or is empty.
    cfg, params, tokenizer: of the network; adapters are multiplied out.
    kind: "policy" or "reward".
    family: of `choose_family`.
    shard_bytes: a file is not larger, unless one tensor is.

  Raises:
    ValueError: the directory holds something, or the family cannot express the model.
  """
  directory = pathlib.Path(directory).absolute()
  check_target(directory)
  params = lora.merge(params, cfg.lora_scale)
  head_bias = float(np.asarray(params["head"]["bias"])[0]) if kind == "reward" else 0.0
  planned = plan(cfg, kind=kind, family=family, tokenizer=tokenizer, head_bias=head_bias)
  if not processes.is_main():
    return
  temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    _write_tensors(temporary, planned, params, shard_bytes)
    pad_id = tokenizer.save_hf(
      temporary, num_embeddings=planned.num_rows, own_padding=kind == "reward"
    )
    # A policy stops at the end of a turn too; a classifier has one end-of-text.
    ends = list(tokenizer.end_ids) if kind == "policy" else [tokenizer.eot_id]
    ids = {
      "bos_token_id": tokenizer.bos_id,
      "eos_token_id": ends if len(ends) > 1 else ends[0],
      "pad_token_id": pad_id,
    }
    workdir.write_json(temporary / files.CONFIG, planned.config | ids)
    if kind == "policy":
      workdir.write_json(temporary / "generation_config.json", ids)
    if directory.is_dir():
      directory.rmdir()
    os.replace(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def check_target(directory: pathlib.Path) -> None:
  """Raises ValueError where something would be overwritten."""
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise ValueError(f"{directory} exists already; name a new directory")


def _write_tensors(
  directory: pathlib.Path, planned: Plan, params: Params, shard_bytes: int
) -> None:
  """One file, or several and their index; one file's tensors are in memory at a time."""
  written: list[dict[str, int]] = []  # tensor -> bytes, of each file
  pending: dict[str, np.ndarray] = {}

  def flush():
    path = directory / _part_name(len(written))
    files.save(path, pending)
    written.append({name: tensor.nbytes for name, tensor in pending.items()})
    pending.clear()

  for name, tensor in tensors(planned, params):
    size = sum(other.nbytes for other in pending.values())
    if pending and size + tensor.nbytes > shard_bytes:
      flush()
    pending[name] = np.ascontiguousarray(tensor)
  flush()
  if len(written) == 1:
    os.replace(directory / _part_name(0), directory / files.SINGLE)
    return
  weight_map = {}
  for number, names in enumerate(written):
    final = f"model-{number + 1:05d}-of-{len(written):05d}.safetensors"
    os.replace(directory / _part_name(number), directory / final)
    weight_map |= {name: final for name in names}
  total = sum(size for names in written for size in names.values())
  workdir.write_json(
    directory / files.INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
  )


def _part_name(number: int) -> str:
  return f"part-{number:05d}.safetensors"
