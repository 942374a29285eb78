"""GGUF files of Llama and Gemma 3: their configs, and slices of their tensors, dequantised.

Source of names and of what a converter does to the numbers: `convert_hf_to_gguf.py` of llama.cpp,
by whose writers the `gguf` package is.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gguf
import numpy as np

from rlhf.interop import families
from rlhf.interop.families import Family
from rlhf.interop.layout import Read, Row

ROPE_FACTORS = "rope_freqs.weight"
# What the converter writes for every Llama 3, beside the factor.
_LLAMA3 = dict(rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, rope_original_context=8192)


class GgufFile:
  """One GGUF file.

  Attributes:
    path: of the file.
    shapes: of each tensor, slowest axis first.
    reader: of the `gguf` package, for the tokenizer too.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads everything but the tensors.

    Raises:
      ValueError: not a GGUF file, or one that is cut off or damaged.
    """
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise ValueError(f"gguf:{path}: there is no such file")
    try:
      self.reader = gguf.GGUFReader(self.path)
    except Exception as error:  # the library raises what numpy does at the place where a file ends
      raise ValueError(
        f"{path} is not a whole GGUF file ({_one_line(error)}); download it again"
      ) from None
    self._tensors = {tensor.name: tensor for tensor in self.reader.tensors}
    self.shapes = {
      name: tuple(int(size) for size in reversed(tensor.shape))
      for name, tensor in self._tensors.items()
    }

  def field(self, name: str, default: Any) -> Any:
    """A value of the file's metadata."""
    found = self.reader.get_field(name)
    return default if found is None else found.contents()

  @contextlib.contextmanager
  def opened(self) -> Iterator[Read]:
    """See `files.Tensors`."""

    def read(name: str, index: tuple[slice, ...]) -> np.ndarray:
      tensor = self._tensors[name]
      data = tensor.data
      if data.ndim > 1:  # blocks of quantised numbers lie along the last axis
        data, index = data[index[0]], (slice(None), *index[1:])
      try:
        values = gguf.quants.dequantize(data, tensor.tensor_type)
      except NotImplementedError as error:
        raise ValueError(
          f"{self.path}: {name} is {tensor.tensor_type.name}, which the gguf "
          f"package does not dequantise ({_one_line(error)})"
        ) from None
      return np.asarray(values[index], np.float32)

    yield read


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
  """How GGUF writes a family: as `Family`, with names of its own.

  Attributes:
    family: what it is, and what it is exported as.
    top, rows, ignored: as in `Family`, whole names outside layers; layers are `blk.{}.`.
    read: config fields from the file.
  """

  family: Family
  top: tuple[Row, ...]
  rows: tuple[Row, ...]
  ignored: tuple[str, ...]
  read: Callable[[GgufFile, str], dict[str, Any]]


def _linear(leaf: str, tensor: str, into: str, out: str) -> tuple[Row, ...]:
  return (
    Row(f"{leaf}/kernel", (f"{tensor}.weight",), f"{out} {into} -> {into} {out}"),
    Row(f"{leaf}/bias", (f"{tensor}.bias",), f"{out} -> {out}"),
  )


def _attention(pair: bool) -> tuple[Row, ...]:
  """The rows of attention.

  Args:
    pair: the file keeps the two dimensions that are rotated together beside each other in queries
      and keys, as Llama's own code had them; ours are half a head apart.
  """
  file, ours = ("f t", "(t f)") if pair else ("e", "e")
  rows = []
  for kind, leaf, end, front in (("weight", "kernel", " D", "D "), ("bias", "bias", "", "")):
    query, key, value = (f"attn_{name}.{kind}" for name in "qkv")
    turned = lambda heads, stack: f"({heads} {file}){end} -> {front}{stack}{heads} {ours}"
    plain = lambda heads: f"({heads} e){end} -> {front}s {heads} e"
    rows += [
      Row(f"attention/q/{leaf}", (query,), turned("H", "")),
      Row(f"attention/kv/{leaf}", (key, value), (turned("K", "s "), plain("K"))),
      Row(
        f"attention/qkv/{leaf}",
        (query, key, value),
        (turned("H", "s "), turned("H", "s "), plain("H")),
      ),
    ]
  return (
    *rows,
    Row("attention/out/kernel", ("attn_output.weight",), "D (H e) -> H e D"),
    Row("attention/out/bias", ("attn_output.bias",), "D -> D"),
  )


def _norm(leaf: str, tensor: str, offset: float, axis: str = "D") -> Row:
  return Row(f"{leaf}/scale", (f"{tensor}.weight",), f"{axis} -> {axis}", offset)


def _rows(*, norm_offset: float, pair: bool) -> tuple[Row, ...]:
  return (
    _norm("attention_norm", "attn_norm", norm_offset),
    _norm("attention_post_norm", "post_attention_norm", norm_offset),
    _norm("mlp_norm", "ffn_norm", norm_offset),
    _norm("mlp_post_norm", "post_ffw_norm", norm_offset),
    _norm("attention/q_norm", "attn_q_norm", norm_offset, "e"),
    _norm("attention/k_norm", "attn_k_norm", norm_offset, "e"),
    *_attention(pair),
    *_linear("mlp/gate", "ffn_gate", "D", "F"),
    *_linear("mlp/in", "ffn_up", "D", "F"),
    *_linear("mlp/out", "ffn_down", "F", "D"),
  )


def _top(norm_offset: float) -> tuple[Row, ...]:
  return (
    Row("embed/token", ("token_embd.weight",), "V E -> V E"),
    Row("output/token", ("output.weight",), "V E -> V E"),
    _norm("final_norm", "output_norm", norm_offset),
  )


def _read_common(file: GgufFile, name: str) -> dict[str, Any]:
  """What both families say in the same words, under their own name."""

  def number(key: str, default: int | float | None = None) -> Any:
    value = file.field(f"{name}.{key}", default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      raise ValueError(f"{file.path}: {name}.{key} is {value!r}; it must be a number")
    return value

  def size(key: str, default: int | None = None) -> int:
    if not isinstance(number(key, default), int) or number(key, default) < 1:
      raise ValueError(
        f"{file.path}: {name}.{key} is {number(key, default)!r}; it must be a whole number from 1"
      )
    return number(key, default)

  if number("expert_count", 0):
    raise ValueError(
      f"{file.path}: {name}.expert_count is {number('expert_count')}, which this "
      "model cannot express; only models without experts can be read"
    )
  num_heads, width = size("attention.head_count"), size("embedding_length")
  scaling = file.field(f"{name}.rope.scaling.type", "none")
  if scaling not in ("none", "linear"):
    raise ValueError(
      f"{file.path}: {name}.rope.scaling.type is {scaling!r}, which this model "
      "cannot express; only none and linear can be read"
    )
  biased = lambda tensor: f"blk.0.{tensor}.bias" in file.shapes
  return dict(
    num_layers=size("block_count"),
    num_heads=num_heads,
    width=width,
    num_kv_heads=size("attention.head_count_kv", num_heads),
    head_size=size("attention.key_length", size("rope.dimension_count", width // num_heads)),
    mlp_width=size("feed_forward_length"),
    context_length=size("context_length"),
    band_width=None,
    layer_pattern="dense",
    init_std=0.02,
    positions="rotary",
    rope_base=number("rope.freq_base", 10_000.0),
    rope_fraction=1.0,
    rope_scaling=scaling,
    rope_factor=number("rope.scaling.factor") if scaling == "linear" else None,
    norm="rms",
    norm_eps=number("attention.layer_norm_rms_epsilon"),
    qkv_bias=biased("attn_q"),
    attention_out_bias=biased("attn_output"),
    mlp_bias=biased("ffn_up"),
    tied_output="output.weight" not in file.shapes,
  )


def _read_llama(file: GgufFile, name: str) -> dict[str, Any]:
  fields = _read_common(file, name) | dict(activation="swiglu")
  if ROPE_FACTORS in file.shapes:
    fields |= _read_rope_factors(file, fields)
  return fields


def _read_rope_factors(file: GgufFile, fields: Mapping[str, Any]) -> dict[str, Any]:
  """Llama 3's scaling, of which the file keeps the divisor of each frequency.

  Raises:
    ValueError: the divisors are not Llama 3's.
  """
  with file.opened() as read:
    factor_f = read(ROPE_FACTORS, (slice(None),))
  found = dict(rope_scaling="llama3", rope_factor=float(factor_f.max()), **_LLAMA3)
  size = fields["head_size"]
  turns_f = (
    found["rope_original_context"]
    / (2 * math.pi)
    * fields["rope_base"] ** -(np.arange(0, size, 2) / size)
  )
  low, high = found["rope_low_freq_factor"], found["rope_high_freq_factor"]
  kept_f = np.clip((turns_f - low) / (high - low), 0.0, 1.0)
  expected_f = 1.0 / (kept_f + (1.0 - kept_f) / found["rope_factor"])
  if factor_f.shape != expected_f.shape or not np.allclose(factor_f, expected_f, rtol=1e-3):
    raise ValueError(
      f"{file.path}: {ROPE_FACTORS} does not hold Llama 3's divisors; this model "
      "can express no others"
    )
  return found


def _read_gemma3(file: GgufFile, name: str) -> dict[str, Any]:
  fields = _read_common(file, name)
  if file.field(f"{name}.final_logit_softcapping", 0.0):
    raise ValueError(
      f"{file.path}: {name}.final_logit_softcapping is set, which this model cannot "
      "express; only models without it can be read"
    )
  num_layers, num_heads, width = (fields[key] for key in ("num_layers", "num_heads", "width"))
  period = int(file.field(f"{name}.attention.sliding_window_pattern", 6))
  kinds = ["banded" if (layer + 1) % period else "dense" for layer in range(num_layers)]
  # The file does not say: of the published sizes only 27B, with 62 layers, divides otherwise.
  divisor = width / num_heads if num_layers == 62 else fields["head_size"]
  return fields | dict(
    activation="geglu",
    layer_pattern=families.shortest_pattern(kinds),
    band_width=int(file.field(f"{name}.attention.sliding_window", 512)),
    band_rope_base=float(file.field(f"{name}.rope.freq_base_swa", 10_000.0)),
    norm_offset=1.0,
    norm_placement="sandwich",
    qk_norm=True,
    embed_scale=width**0.5,
    attention_scale=divisor**-0.5,
  )


ARCHITECTURES = {
  "llama": Architecture(
    family=families.LLAMA,
    top=_top(0.0),
    rows=_rows(norm_offset=0.0, pair=True),
    ignored=(re.escape(ROPE_FACTORS),),
    read=_read_llama,
  ),
  # Its writer adds the 1 that Gemma's own norms add.
  "gemma3": Architecture(
    family=families.GEMMA3,
    top=_top(-1.0),
    rows=_rows(norm_offset=-1.0, pair=False),
    ignored=(),
    read=_read_gemma3,
  ),
}


def find(file: GgufFile) -> Architecture:
  """The architecture that the file names.

  Raises:
    ValueError: none, or one that is not known.
  """
  name = file.field("general.architecture", None)
  if name not in ARCHITECTURES:
    raise ValueError(
      f"{file.path}: unknown architecture {name!r}; of GGUF files, known are "
      f"{', '.join(ARCHITECTURES)}"
    )
  return ARCHITECTURES[name]
