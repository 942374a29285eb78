"""Adapters of ours in the format of PEFT: adapter_config.json and adapter_model.safetensors.

A reward model's has its head too; the bias of it, which PEFT's `score` has not, is the `score_bias`
of `score.json`, to be added to the logit.

The adapter of a projection that a family keeps in several tensors (one `qkv` of ours, three
matrices of Llama's) becomes one adapter for each, with the same A and its own part of B.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np

from rlhf import workdir
from rlhf.checkpoint import Export
from rlhf.interop import files, layout, reading, writing
from rlhf.interop.families import SCORE_BIAS, Family
from rlhf.interop.layout import Row
from rlhf.model.transformer import ModelConfig
from rlhf.types import Params

_OURS = {"lora_a": "lora_A", "lora_b": "lora_B"}


def tensors(
  cfg: ModelConfig, family: Family, params: Params, rank: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Every tensor of the file.

  Raises:
    ValueError: an adapted projection has no place in the family's files.
  """
  sizes = layout.axis_sizes(cfg, 0) | {"r": rank}
  for name, leaf in reading.named_leaves(params).items():
    values = np.asarray(leaf, np.float32)
    kernel, _, part = name.rpartition("/")
    if kernel == "head":
      if cfg.embed_width is not None:
        raise ValueError(
          f"{family.name} scores what its output projection leaves, so that a "
          "reward adapter has no place there; export the merged network instead"
        )
      if part == "kernel":
        yield "base_model.model.score.weight", values.T
      continue
    found = reading.locate(
      f"{kernel}/kernel",
      cfg,
      top=family.top,
      rows=family.rows,
      prefix=family.prefix,
      layer=family.layer,
    )
    if found is None:
      raise ValueError(f"a {family.name} file has no place for {name}; choose another --family")
    layers = [values] if found.layers is None else values
    for prefix, layer in zip(found.prefixes, layers, strict=True):
      for row in _rows(found.row, part):
        for tensor, written in layout.write_tensors(row, sizes, layer).items():
          yield f"base_model.model.{reading.tensor_name(prefix, tensor)}", written


def _rows(row: Row, part: str) -> list[Row]:
  """Where `lora_a` or `lora_b` of a projection goes, from where its kernel does."""
  file_axes, leaf_axes = layout.parse(row.layouts[0])
  unstacked = [names[0] for names in leaf_axes if names != ("s",)]
  inputs = unstacked[:2] if row.leaf.endswith("attention/out/kernel") else unstacked[:1]
  names = [f"{tensor.removesuffix('.weight')}.{_OURS[part]}.weight" for tensor in row.tensors]
  if part == "lora_a":  # every tensor of the row reads the same inputs
    shared = " ".join(inputs)
    return [Row(part, (name,), f"r ({shared}) -> {shared} r") for name in names]
  outputs = next(names for names in file_axes if not set(names) & set(inputs))
  leaf = " ".join(names[0] for names in leaf_axes if names[0] not in inputs)
  return [Row(part, tuple(names), f"({' '.join(outputs)}) r -> r {leaf}")]


def config(cfg: ModelConfig, family: Family, export: Export, params: Params) -> dict[str, Any]:
  """`adapter_config.json`; raises as `tensors`."""
  lora_cfg = export.metadata["lora"]
  modules = set()
  for name, _ in tensors(cfg, family, params, lora_cfg["rank"]):
    if "lora_A" in name:
      layers = family.prefix + family.layer.partition("{")[0]
      inside = name.removeprefix(f"base_model.model.{layers}")
      modules.add(inside.partition(".")[2].removesuffix(".lora_A.weight"))
  is_reward = "head" in params
  return {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS" if is_reward else "CAUSAL_LM",
    "base_model_name_or_path": _published(export.metadata["base"]),
    "r": lora_cfg["rank"],
    "lora_alpha": lora_cfg["alpha"],
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": family.name == "gpt2",
    "inference_mode": True,
    "target_modules": sorted(modules),
    "modules_to_save": ["score"] if is_reward else None,
  }


def _published(base: str) -> str | None:
  """The base as PEFT can find it: a Hugging Face directory; another is named when loading."""
  return base.removeprefix("hf:") if base.startswith("hf:") else None


def write(directory: str | os.PathLike, export: Export, params: Params, family: Family) -> None:
  """Writes the directory, whole or not at all.

  The base model is the network that training started from: `launch.convert export` of it gives PEFT
  what the adapter stands beside.

  Args:
    directory: does not exist, or is empty.
    export: of kind "adapter".
    params: its parameters.
    family: of `writing.choose_family`.

  Raises:
    ValueError: the directory holds something, or the family cannot express the model.
  """
  directory = pathlib.Path(directory).absolute()
  writing.check_target(directory)
  cfg = ModelConfig(**export.model)
  family.config(cfg)
  written = config(cfg, family, export, params)
  temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    found = dict(tensors(cfg, family, params, export.metadata["lora"]["rank"]))
    files.save(temporary / "adapter_model.safetensors", found)
    workdir.write_json(temporary / "adapter_config.json", written)
    if "head" in params:
      bias = float(np.asarray(params["head"]["bias"])[0])
      workdir.write_json(temporary / "score.json", {SCORE_BIAS: bias})
    if directory.is_dir():
      directory.rmdir()
    os.replace(temporary, directory)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
