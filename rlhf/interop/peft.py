"""Writes our adapters in the format of PEFT: adapter_config.json and adapter_model.safetensors.

The adapter of a reward model includes its head.  PEFT's `score` has no bias: ours is the field
`score_bias` of `score.json`, to be added to the logit.

The adapter of a projection that a family keeps in several tensors (our `qkv` is three matrices of
Llama) becomes one adapter for each of them, with the same A and its own part of B.
"""

import os
from collections.abc import Iterator, Mapping

import numpy as np

from rlhf import workdir
from rlhf.checkpoint import Export
from rlhf.interop import files, layout, reading
from rlhf.interop.families import SCORE_BIAS, Family
from rlhf.interop.layout import Row
from rlhf.model.transformer import ModelConfig
from rlhf.types import Params

_PARTS = {"lora_a": "lora_A", "lora_b": "lora_B"}  # our names -> PEFT's
# Families with kernels [inputs, outputs]; PEFT's B is [outputs, rank] for all.
_FAN_IN_FAN_OUT = ("gpt2",)
_PREFIX = "base_model.model."  # of every tensor's name, because PEFT wraps the model


def tensors(
  cfg: ModelConfig, family: Family, params: Params, rank: int
) -> Iterator[tuple[str, np.ndarray]]:
  """Every (name, tensor) of the file; raises as `reading.locate`."""
  sizes = layout.axis_sizes(cfg, 0)
  for name, leaf in reading.named_leaves(params).items():
    values = np.asarray(leaf, np.float32)
    parent, _, part = name.rpartition("/")
    if parent == "head":
      if cfg.embed_width is not None:
        raise ValueError(
          f"the score of {family.name} reads the output of a projection that a reward adapter "
          "does not have; export the merged network instead"
        )
      if part == "kernel":
        yield f"{_PREFIX}score.weight", values.T
      continue
    found = reading.locate(f"{parent}/kernel", cfg, family)
    for prefix, layer in found.layers(values):
      for tensor, adapter in _split(found.row, part, layer, sizes, rank).items():
        if part == "lora_b" and family.name in _FAN_IN_FAN_OUT:
          adapter = adapter.T
        module = reading.tensor_name(prefix, tensor).removesuffix(".weight")
        yield f"{_PREFIX}{module}.{_PARTS[part]}.weight", np.ascontiguousarray(adapter)


def _split(
  row: Row, part: str, values: np.ndarray, sizes: Mapping[str, int], rank: int
) -> dict[str, np.ndarray]:
  """Tensor of the row -> its share of an adapter, in the layout of the file.

  Args:
    row: of the adapted kernel; the axes of its inputs come first in our leaf.
    part: "lora_a" or "lora_b".
    values: A [*inputs, rank], or B [rank, *outputs], where several tensors are stacked.
  """
  if part == "lora_a":  # all tensors of the row have the same inputs
    return dict.fromkeys(row.tensors, values.reshape(-1, rank).T)
  # B has the shape of a kernel with `rank` inputs.
  if row.leaf == "attention/out/kernel":
    return layout.write_tensors(row, {**sizes, "heads": rank, "head_size": 1}, values[:, None])
  inputs = "mlp" if row.leaf == "mlp/out/kernel" else "width"
  return layout.write_tensors(row, {**sizes, inputs: rank}, values)


def write(directory: str | os.PathLike, export: Export, params: Params, family: Family) -> None:
  """Writes the directory atomically.

  The base model is the network that training started from, which `launch.convert export` writes.

  Args:
    directory: absent or empty.
    export: of kind "adapter".
    params: its parameters.
    family: from `writing.choose_family`.

  Raises:
    ValueError: the directory is not empty, or the family cannot express the model.
  """
  cfg, lora_cfg = ModelConfig(**export.model), export.metadata["lora"]
  family.config(cfg)
  found = dict(tensors(cfg, family, params, lora_cfg["rank"]))
  layers = _PREFIX + family.prefix + family.layer.partition("{")[0]
  modules = {
    name.removeprefix(layers).partition(".")[2].removesuffix(".lora_A.weight")
    for name in found
    if "lora_A" in name
  }
  is_reward, base = "head" in params, export.metadata["base"]
  config = {
    "peft_type": "LORA",
    "task_type": "SEQ_CLS" if is_reward else "CAUSAL_LM",
    # PEFT can only find a Hugging Face directory; another base is named when loading.
    "base_model_name_or_path": base.removeprefix("hf:") if base.startswith("hf:") else None,
    "r": lora_cfg["rank"],
    "lora_alpha": lora_cfg["alpha"],
    "lora_dropout": 0.0,
    "bias": "none",
    "fan_in_fan_out": family.name in _FAN_IN_FAN_OUT,
    "inference_mode": True,
    "target_modules": sorted(modules),
    "modules_to_save": ["score"] if is_reward else None,
  }
  with files.new_directory(directory) as temporary:
    files.save(temporary / "adapter_model.safetensors", found)
    workdir.write_json(temporary / "adapter_config.json", config)
    if is_reward:
      bias = float(np.asarray(params["head"]["bias"])[0])
      workdir.write_json(temporary / "score.json", {SCORE_BIAS: bias})
