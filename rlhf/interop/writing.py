"""Writes a network of ours as a directory that `transformers` and vLLM load.

    config.json  generation_config.json  tokenizer files
    model.safetensors, or model-00001-of-0000N.safetensors ... and their index, above `SHARD_BYTES`

A reward model becomes an `AutoModelForSequenceClassification` with one label.  Our head has a bias,
which centres the scores on the demonstrations, and the families' `score` has none: the bias is the
field `score_bias` of `config.json`, to be added to the logit:

    reward = model(**inputs).logits[:, 0] + model.config.score_bias
"""

import os
import pathlib
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

SHARD_BYTES = 5 * 2**30  # of a file; the default of the hub's own tools
DEFAULT_FAMILY = "gpt2"  # of models that were trained here


def choose_family(metadata: Mapping[str, Any], name: str | None) -> Family:
  """The family of a name (else ValueError); by default that of the imported model, else GPT-2."""
  if name is None:
    name = metadata["imported"]["family"] if "imported" in metadata else DEFAULT_FAMILY
  if name not in families.known():
    raise ValueError(f"--family={name}; choose from {', '.join(families.known())}")
  return families.known()[name]


def check(cfg: ModelConfig, *, kind: str, family: Family) -> None:
  """Raises ValueError if the family cannot express the model, or the network is of another kind."""
  if kind not in ("policy", "reward"):
    raise ValueError(
      f"a {kind} network has no counterpart in Hugging Face's format; export a "
      "policy or a reward model"
    )
  family.config(cfg)


def num_rows(cfg: ModelConfig, kind: str, tokenizer: Tokenizer) -> int:
  """Rows of the exported embedding.

  A row that was added for padding is not exported.  Only a reward model needs an id of padding,
  because `transformers` finds the end of a text by it: it takes the next free id.
  """
  if tokenizer.pad_id < tokenizer.vocab_size:
    return cfg.vocab_size
  return max(cfg.vocab_size - 1, tokenizer.vocab_size + 1 if kind == "reward" else 0)


def tensors(
  cfg: ModelConfig, params: Params, *, kind: str, family: Family, num_rows: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Every (name, tensor) of the files, in the order of our tree; raises as `reading.locate`."""
  sizes = layout.axis_sizes(cfg, num_rows)
  if kind == "reward":
    params = _scored(cfg, params)
  for name, leaf in reading.named_leaves(params).items():
    if name == "head/bias":
      continue  # config.json has it
    if name == "head/kernel" and cfg.embed_width is not None:
      yield "score.weight", np.asarray(leaf, np.float32).T
      continue
    found = reading.locate(name, cfg, family)
    for prefix, layer in found.layers(np.asarray(leaf, np.float32)):
      for tensor, written in layout.write_tensors(found.row, sizes, layer).items():
        yield reading.tensor_name(prefix, tensor), written


def _scored(cfg: ModelConfig, params: Params) -> Params:
  """The parameters of a reward model in the form of a sequence classifier."""
  params = dict(params)
  output = params.pop("output", None)
  if cfg.embed_width is not None:
    # OPT-350m scores the output of its last projection: our head becomes that projection's first
    # column.
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
  """Writes the directory atomically.

  Args:
    directory: absent or empty.
    cfg, params, tokenizer: of the network; adapters are merged into the kernels.
    kind: "policy" or "reward".
    family: from `choose_family`.
    shard_bytes: largest file, unless one tensor is larger.

  Raises:
    ValueError: the directory is not empty, or the family cannot express the model.
  """
  params = lora.merge(params, cfg.lora_scale)
  rows = num_rows(cfg, kind, tokenizer)
  config = {
    "architectures": [family.policy if kind == "policy" else family.reward],
    **family.config(cfg),
    "vocab_size": rows,
    "torch_dtype": "float32",
  }
  if kind == "reward":
    config |= {
      "id2label": {"0": "LABEL_0"},
      "label2id": {"LABEL_0": 0},
      families.SCORE_BIAS: float(np.asarray(params["head"]["bias"])[0]),
    }
  if not processes.is_main():
    return
  with files.new_directory(directory) as temporary:
    written = tensors(cfg, params, kind=kind, family=family, num_rows=rows)
    _write_tensors(temporary, written, shard_bytes)
    pad_id = tokenizer.save_hf(temporary, num_embeddings=rows, own_padding=kind == "reward")
    # A policy also stops at the end of a turn; a classifier has one end-of-text.
    ends = list(tokenizer.end_ids) if kind == "policy" else [tokenizer.eot_id]
    ids = {
      "bos_token_id": tokenizer.bos_id,
      "eos_token_id": ends if len(ends) > 1 else ends[0],
      "pad_token_id": pad_id,
    }
    workdir.write_json(temporary / files.CONFIG, config | ids)
    if kind == "policy":
      workdir.write_json(temporary / "generation_config.json", ids)


def _write_tensors(
  directory: pathlib.Path, tensors: Iterator[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
  """Writes one file, or several and their index, with the tensors of one file in memory."""
  parts: list[tuple[pathlib.Path, dict[str, int]]] = []  # file, bytes of each tensor in it
  pending: dict[str, np.ndarray] = {}

  def flush():
    path = directory / f"part-{len(parts):05d}.safetensors"
    files.save(path, pending)
    parts.append((path, {name: tensor.nbytes for name, tensor in pending.items()}))
    pending.clear()

  for name, tensor in tensors:
    size = sum(other.nbytes for other in pending.values())
    if pending and size + tensor.nbytes > shard_bytes:
      flush()
    pending[name] = np.ascontiguousarray(tensor)
  flush()
  if len(parts) == 1:
    os.replace(parts[0][0], directory / files.SINGLE)
    return
  weight_map: dict[str, str] = {}
  for number, (path, sizes) in enumerate(parts, start=1):
    final = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
    os.replace(path, directory / final)
    weight_map |= dict.fromkeys(sizes, final)
  total = sum(sum(sizes.values()) for _, sizes in parts)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  workdir.write_json(directory / files.INDEX, index)
