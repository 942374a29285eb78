"""Sizes of the GPT-3 family, and tiny ones for a laptop.

Source: Brown et al. 2020, Table 2.1, with its two misprints corrected after Stiennon et al. 2020,
Table 3 (the same family of models): XL has 16 heads (24 * 128 is not 2048) and 13B has width 5120
(5140 is not 40 * 128).  Context 2,048 and 50,257 BPE tokens throughout.

GPT-3 alternates dense and locally banded layers, but its paper discloses neither the band width
nor which parity comes first: `band_width` 256 on the odd layers is our choice (one eighth of the
context).
"""

import ml_collections
from ml_collections import config_dict

# name: (num_layers, width, num_heads)
GPT3 = {
  "125m": (12, 768, 12),
  "350m": (24, 1024, 16),
  "760m": (24, 1536, 16),
  "1.3b": (24, 2048, 16),
  "2.7b": (32, 2560, 32),
  "6.7b": (32, 4096, 32),
  "13b": (40, 5120, 40),
  "175b": (96, 12288, 96),
}
# Ours, for laptops and tests: 397k, 1.0M and 25k parameters outside the embeddings.
TINY = {"tiny": (2, 128, 4), "small": (4, 144, 3), "test": (2, 32, 2)}
# TinyWorld's policies by their parameters outside the embeddings, for sweeps over size:
# (num_layers, width, num_heads, init_std, about 0.7 / sqrt(width)).  Ours.
WORLD_SHAPES = {
  "32k": (2, 36, 3, 0.117),
  "100k": (2, 64, 4, 0.0875),
  "223k": (2, 96, 4, 0.0714),
  "397k": (*TINY["tiny"], 0.06),
  "1M": (*TINY["small"], 0.06),
}
# GPT-3's architecture, which is the default of every field; `rlhf/model/architecture.py` documents
# them.
# Which parity is banded is not disclosed.
GPT3_ARCHITECTURE = dict(
  layer_pattern="dense,banded",
  num_kv_heads=None,
  head_size=None,
  mlp_width=None,
  positions="learned",
  position_offset=0,
  rope_base=None,
  rope_fraction=None,
  band_rope_base=None,
  rope_scaling="none",
  rope_factor=None,
  rope_low_freq_factor=None,
  rope_high_freq_factor=None,
  rope_original_context=None,
  norm="layer",
  norm_eps=1e-5,
  norm_offset=0.0,
  norm_placement="pre",
  final_norm=True,
  qk_norm=False,
  activation="gelu",
  qkv_bias=True,
  attention_out_bias=True,
  mlp_bias=True,
  parallel_residual=False,
  attention_scale=None,
  tied_output=True,
  embed_scale=1.0,
  embed_width=None,
)
_WHOLE = ("num_kv_heads", "head_size", "mlp_width", "rope_original_context", "embed_width")
# In place of a size: the shape is that of the network that training starts from (`hf:DIR`,
# `gguf:FILE` or an export), and the config has no shape.
IMPORTED = "imported"
IMPORTED_LENGTH = 1024  # ours: tokens of a row, where no context of our own sets it
ALIASES = {"6b": "6.7b"}  # InstructGPT's "6B" is GPT-3's 6.7B
# The reward and value model of each policy: 6B for 1.3B, 6B and 175B (InstructGPT C.2); else ours.
REWARD_SIZES = (
  {name: "6.7b" for name in GPT3}
  | {"125m": "125m", "350m": "350m", "760m": "760m"}
  | {name: name for name in TINY}
)
# Models that others publish, as their `config.json` has them, for a layout before there are
# weights: OPT is Zhang et al. 2022, Table 1, Llama 3.1 the published files.  `like` is the GPT-3
# size whose mesh and learning rates they take; `ids` are (rows of the embedding and of padding,
# padding's row).
_OPT = dict(band_width=None, positions="learned", position_offset=2, activation="relu")
_LLAMA = dict(
  band_width=None,
  positions="rotary",
  rope_base=500_000.0,
  rope_fraction=1.0,
  rope_scaling="llama3",
  rope_factor=8.0,
  rope_low_freq_factor=1.0,
  rope_high_freq_factor=4.0,
  rope_original_context=8192,
  norm="rms",
  activation="swiglu",
  qkv_bias=False,
  attention_out_bias=False,
  mlp_bias=False,
  tied_output=False,
  num_kv_heads=8,
  head_size=128,
)
PUBLISHED: dict[str, dict] = {
  "opt-6.7b": dict(like="6.7b", ids=(50_272, 1), fields=_OPT),
  "opt-175b": dict(like="175b", ids=(50_272, 1), fields=_OPT),
  "llama3.1-8b": dict(like="6.7b", ids=(128_257, 128_256), fields=_LLAMA | dict(mlp_width=14_336)),
  "llama3.1-70b": dict(
    like="175b",
    ids=(128_257, 128_256),
    fields=_LLAMA | dict(num_layers=80, width=8192, num_heads=64, mlp_width=28_672),
  ),
}
REWARD_SIZES |= {
  "opt-6.7b": "opt-6.7b",
  "opt-175b": "opt-6.7b",
  "llama3.1-8b": "llama3.1-8b",
  "llama3.1-70b": "llama3.1-8b",
}
SIZES = tuple(GPT3) + tuple(TINY) + tuple(ALIASES) + tuple(PUBLISHED)


def row_length(model: ml_collections.ConfigDict) -> int:
  """Tokens of a row: the model's context or, with `imported`, a length of ours within it."""
  return model.context_length if "context_length" in model else IMPORTED_LENGTH


def gpt3_name(size: str) -> str:
  """The GPT-3 size whose numbers a size takes: its own, by its own name, or that of a published
  model's like."""
  if size in PUBLISHED:
    return PUBLISHED[size]["like"]
  return ALIASES.get(size, size)


def get_compute(size: str) -> dict:
  """The `compute` group of a config: how a network of this size is computed."""
  tiny = size in TINY
  return dict(
    dtype="float32" if tiny else "bfloat16",
    remat="none" if tiny else "block",
    scan_unroll=8 if tiny else 1,  # ours: a loop over two layers costs CPUs a sixth
    logprob_chunk=128 if tiny else 256,
    attention="auto",
    shard_sequence=False,
    decode_split="tensor",
    decode_scan=not tiny and size != IMPORTED,
  )


def get_model(size: str) -> ml_collections.ConfigDict:
  """The `model` group of a config, which is empty with `imported`.

  Raises:
    ValueError: an unknown size.
  """
  if size == IMPORTED:
    return ml_collections.ConfigDict()
  if size in PUBLISHED:
    model = get_model(PUBLISHED[size]["like"]).unlock()
    model.update(PUBLISHED[size]["fields"])
    return model
  name = ALIASES.get(size, size)
  if name not in GPT3 and name not in TINY:
    raise ValueError(f"size {size!r}; choose from {', '.join((*SIZES, IMPORTED))}")
  large = name in GPT3
  num_layers, width, num_heads = GPT3[name] if large else TINY[name]
  model = ml_collections.ConfigDict(
    dict(
      context_length=2048 if large else 64,
      num_layers=num_layers,
      num_heads=num_heads,
      width=width,
      band_width=config_dict.placeholder(int),
      init_std=0.02 if large else 0.06,  # ours for tiny widths: about 0.7 / sqrt(width)
    )
  )
  model.band_width = 256 if large else 16
  for name, value in GPT3_ARCHITECTURE.items():
    model[name] = (
      value if value is not None else config_dict.placeholder(int if name in _WHOLE else float)
    )
  if not large:  # ours: two layers can only copy if the second, dense one sees the prompt
    model.layer_pattern = "banded,dense"
  return model
