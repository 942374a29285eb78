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
TINY = {
    "tiny": (2, 128, 4),
    "small": (4, 144, 3),
    "test": (2, 32, 2),
}
ALIASES = {"6b": "6.7b"}  # InstructGPT's "6B" is GPT-3's 6.7B
# The reward and value model of each policy: 6B for 1.3B, 6B and 175B (InstructGPT C.2); else ours.
REWARD_SIZES = {name: "6.7b" for name in GPT3} | {
    "125m": "125m", "350m": "350m", "760m": "760m"} | {name: name for name in TINY}
SIZES = tuple(GPT3) + tuple(TINY) + tuple(ALIASES)


def get_model(size: str) -> ml_collections.ConfigDict:
  """The `model` group of a config.

  Raises:
    ValueError: an unknown size.
  """
  name = ALIASES[size] if size in ALIASES else size
  if name not in GPT3 and name not in TINY:
    raise ValueError(f"size {size!r}; choose from {', '.join(SIZES)}")
  large = name in GPT3
  num_layers, width, num_heads = GPT3[name] if large else TINY[name]
  model = ml_collections.ConfigDict(dict(
      context_length=2048 if large else 64,
      num_layers=num_layers,
      num_heads=num_heads,
      width=width,
      band_width=config_dict.placeholder(int),
      # Ours: two layers can only copy if the second, dense one sees the prompt.
      band_first=not large,
      init_std=0.02 if large else 0.06,  # ours for tiny widths: about 0.7 / sqrt(width)
      dtype="bfloat16" if large else "float32",
      remat="block" if large else "none",
      scan_unroll=1 if large else num_layers,  # ours: a loop over two layers costs CPUs a sixth
      logprob_chunk=256 if large else 128,
      attention="auto",
      shard_sequence=False,
      decode_split="tensor",
      decode_scan=large,
  ))
  model.band_width = 256 if large else 16
  return model
