"""GGUF files of Llama and Gemma 3: their configs, and slices of their tensors, dequantised.

Source of names and of what a converter does to the numbers: `convert_hf_to_gguf.py` of llama.cpp.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlhf import extras
from rlhf.interop import families
from rlhf.interop.families import Family, Fields
from rlhf.interop.layout import Read

ROPE_FACTORS = "rope_freqs.weight"
# What the converter writes for every Llama 3; the factor varies.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, _ORIGINAL_CONTEXT = 1.0, 4.0, 8192


class GgufFile:
  """One GGUF file.

  Attributes:
    path: of the file.
    shapes: of each tensor, slowest axis first.
    reader: of the `gguf` package, which maps the file into memory.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads everything except the tensors.

    Raises:
      ValueError: not a GGUF file, or one that is incomplete or damaged.
    """
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise ValueError(f"gguf:{path}: there is no such file")
    gguf = extras.load("gguf", "gguf", f"gguf:{path}")
    try:
      self.reader = gguf.GGUFReader(self.path)
    except Exception as error:  # the library raises what numpy does at the place where a file ends
      raise ValueError(
        f"{path} is not a complete GGUF file ({_one_line(error)}); download it again"
      ) from None
    self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}
    self.shapes = {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }

  def fields(self) -> Fields:
    """The metadata of the model; names without the architecture that begins each of them."""
    prefix = f"{self.architecture}."
    values = {
      name.removeprefix(prefix): field.contents()
      for name, field in self.reader.fields.items()
      if name.startswith(prefix)
    }
    return Fields(values, f"{self.path}: {self.architecture}")

  @property
  def architecture(self) -> Any:
    """The name of the architecture, or None."""
    found = self.reader.get_field("general.architecture")
    return None if found is None else found.contents()

  @contextlib.contextmanager
  def opened(self) -> Iterator[Read]:
    """A function that reads slices until the context ends."""
    dequantize = extras.load("gguf.quants", "gguf", f"gguf:{self.path}").dequantize

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
      tensor = self._tensors[name]
      data = tensor.data
      if data.ndim > 1:  # blocks of quantised numbers lie along the last axis
        data, index = data[index[0]], (slice(None), *index[1:])
      try:
        values = dequantize(data, tensor.tensor_type)
      except NotImplementedError as error:
        raise ValueError(
          f"{self.path}: {name} is {tensor.tensor_type.name}, which the gguf "
          f"package cannot dequantise ({_one_line(error)})"
        ) from None
      return np.asarray(values[index], np.float32)

    yield read


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())


def find(file: GgufFile) -> Family:
  """The family that the file names.  Raises ValueError for none or an unknown one."""
  known = families.known("gguf")
  if file.architecture not in known:
    raise ValueError(
      f"{file.path}: unknown architecture {file.architecture!r}; GGUF files must be of "
      f"{' or '.join(known)}"
    )
  return known[file.architecture]


def model_fields(file: GgufFile) -> dict[str, Any]:
  """The fields of our `ModelConfig`; raises as `Family.model_fields`."""
  fields = file.fields()
  if fields.number("expert_count", 0):
    fields.refuse("expert_count", fields.get("expert_count", 0), "models without experts")
  found = families.UNSET | find(file).table_fields(fields)
  scaling = fields.get("rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    fields.refuse("rope.scaling.type", scaling, "none and linear")
  has_bias = lambda tensor: f"blk.0.{tensor}.bias" in file.shapes
  found |= dict(
    num_kv_heads=fields.size("attention.head_count_kv", found["num_heads"]),
    head_size=fields.size(
      "attention.key_length",
      fields.size("rope.dimension_count", found["width"] // found["num_heads"]),
    ),
    rope_scaling=scaling,
    rope_factor=fields.number("rope.scaling.factor", None) if scaling == "linear" else None,
    qkv_bias=has_bias("attn_q"),
    attention_out_bias=has_bias("attn_output"),
    mlp_bias=has_bias("ffn_up"),
    tied_output="output.weight" not in file.shapes,
  )
  if file.architecture == "gemma3":
    return found | _gemma3_fields(fields, found)
  return found | (_rope_factors(file, found) if ROPE_FACTORS in file.shapes else {})


def _rope_factors(file: GgufFile, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Llama 3's scaling, where the file has its divisor of each frequency and no others."""
  with file.opened() as read:
    factor_f = read(ROPE_FACTORS, (slice(None),))
  factor = float(factor_f.max())
  size = fields["head_size"]
  frequency_f = fields["rope_base"] ** -(np.arange(0, size, 2) / size)
  turns_f = _ORIGINAL_CONTEXT / (2 * math.pi) * frequency_f
  kept_f = np.clip((turns_f - _LOW_FREQ_FACTOR) / (_HIGH_FREQ_FACTOR - _LOW_FREQ_FACTOR), 0.0, 1.0)
  expected_f = 1.0 / (kept_f + (1.0 - kept_f) / factor)
  if factor_f.shape != expected_f.shape or not np.allclose(factor_f, expected_f, rtol=1e-3):
    raise ValueError(
      f"{file.path}: {ROPE_FACTORS} does not hold Llama 3's divisors, the only ones that this "
      "model can express"
    )
  return dict(
    rope_scaling="llama3",
    rope_factor=factor,
    rope_low_freq_factor=_LOW_FREQ_FACTOR,
    rope_high_freq_factor=_HIGH_FREQ_FACTOR,
    rope_original_context=_ORIGINAL_CONTEXT,
  )


def _gemma3_fields(fields: Fields, found: Mapping[str, Any]) -> dict[str, Any]:
  if fields.get("final_logit_softcapping", 0.0):
    fields.refuse("final_logit_softcapping", fields.values["final_logit_softcapping"], "0")
  num_layers, width = found["num_layers"], found["width"]
  period = fields.size("attention.sliding_window_pattern", 6)
  kinds = ["banded" if (layer + 1) % period else "dense" for layer in range(num_layers)]
  # The file does not say it.  Of the published sizes only 27B, with 62 layers, does not divide by
  # the root of the head size.
  divisor = width / found["num_heads"] if num_layers == 62 else found["head_size"]
  return dict(
    layer_pattern=families.shortest_pattern(kinds),
    band_width=fields.size("attention.sliding_window", 512),
    band_rope_base=float(fields.number("rope.freq_base_swa", 10_000.0)),
    embed_scale=width**0.5,
    attention_scale=divisor**-0.5,
  )
