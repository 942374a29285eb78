"""What a transformer is: `ModelConfig`, with its checks and its counts.

The defaults are GPT-3's (Brown et al. 2020, section 2.1).  Other values of the same fields give
GPT-2, OPT, GPT-NeoX (Pythia), Llama, Qwen and Gemma 3; `interop/` reads them from published files.
"""

import dataclasses
from typing import Any

import jax

from rlhf import checks
from rlhf.model.compute import ComputeConfig

LAYER_KINDS = ("dense", "banded")
POSITIONS = ("learned", "rotary")
ROPE_SCALINGS = ("none", "linear", "llama3")
NORMS = ("layer", "rms")
NORM_PLACEMENTS = ("pre", "post", "sandwich")
# name: (function of the feed-forward layer, whether a second projection gates it)
ACTIVATIONS = {
  "gelu": (lambda x: jax.nn.gelu(x, approximate=True), False),
  "gelu_exact": (lambda x: jax.nn.gelu(x, approximate=False), False),
  "relu": (jax.nn.relu, False),
  "swiglu": (jax.nn.silu, True),
  "geglu": (lambda x: jax.nn.gelu(x, approximate=True), True),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
  """The shape of one transformer, and how it is computed here.

  Attributes:
    vocab_size: number of token ids that exist, the pad id included; 0 before a tokenizer is known.
    pad_id: never sampled: its logit is -inf, as are those of the rows added for alignment.
    context_length: tokens of a row; with learned positions, how many there are.
    num_layers, num_heads, width: as in GPT-3's Table 2.1.
    band_width: keys seen by a banded layer, itself included; None makes every layer dense.
      GPT-3 alternates dense and banded layers but does not disclose the width.
    init_std: standard deviation of matrices and token embedding; 0.02 in GPT-2.

    layer_pattern: kinds of layers in one repetition, of `LAYER_KINDS` and separated by commas.
      Which of GPT-3's layers are the banded ones is not disclosed; Gemma 3 has five banded (local)
      layers and a dense (global) one.  Whole repetitions are scanned, the rest is unrolled.
    num_kv_heads: key and value heads, each shared by a group of queries (Ainslie et al. 2023);
      None: one per query head.
    head_size: None: width / num_heads.
    mlp_width: of the feed-forward layer; None: 4 * width.
    positions: "learned", or "rotary" (Su et al. 2021, in the form that pairs the halves of a head).
    position_offset: rows of the learned table before position 0; OPT has 2.
    rope_base, rope_fraction: of rotary positions: the slowest wavelength's base, and the part of a
      head that is rotated.
    band_rope_base: the base of banded layers, which are then not scaled; None: as the others.
    rope_scaling: "none"; "linear" divides positions by `rope_factor`; "llama3" divides frequencies
      of wavelengths above `rope_original_context / rope_low_freq_factor` by it, keeps those below
      `rope_original_context / rope_high_freq_factor`, and blends between.
    rope_factor, rope_low_freq_factor, rope_high_freq_factor, rope_original_context: of
      `rope_scaling`; None where it does not use them.
    norm: "layer" (Ba et al. 2016) or "rms" (Zhang & Sennrich 2019).
    norm_eps: added to the variance or the mean square.
    norm_offset: is added to the scale; Gemma keeps scale - 1, so 1.
    norm_placement: "pre": x + f(norm(x)); "post": norm(x + f(x)), as OPT-350m; "sandwich":
      x + norm(f(norm(x))), as Gemma 3.
    final_norm: one more norm after the last layer.
    qk_norm: RMS norm of every query and key head, before positions.
    activation: one of `ACTIVATIONS`; "gelu" is GPT-2's tanh form.
    qkv_bias, attention_out_bias, mlp_bias: which projections have a bias.
    parallel_residual: x + attention(norm(x)) + mlp(norm'(x)), as GPT-NeoX.
    attention_scale: of query-key products; None: head_size ** -0.5.
    tied_output: the token embedding is the output's matrix too.
    embed_scale: multiplies token embeddings; Gemma has width ** 0.5.
    embed_width: of token embeddings, where a projection leads to and from `width`; None: width.
    lora_scale: alpha / rank of the low-rank adapters, where there are any beside the kernels.
    compute: how this network is computed here; not part of an export.

  Raises:
    ValueError: a value is unknown, or two values contradict each other.
  """

  vocab_size: int = 0
  pad_id: int = 0
  context_length: int
  num_layers: int
  num_heads: int
  width: int
  band_width: int | None
  init_std: float
  layer_pattern: str = "dense,banded"
  # None is replaced by `__post_init__`, so that whoever reads these fields finds a number.
  num_kv_heads: int = None  # type: ignore[assignment]
  head_size: int = None  # type: ignore[assignment]
  mlp_width: int = None  # type: ignore[assignment]
  positions: str = "learned"
  position_offset: int = 0
  rope_base: float | None = None
  rope_fraction: float | None = None
  band_rope_base: float | None = None
  rope_scaling: str = "none"
  rope_factor: float | None = None
  rope_low_freq_factor: float | None = None
  rope_high_freq_factor: float | None = None
  rope_original_context: int | None = None
  norm: str = "layer"
  norm_eps: float = 1e-5
  norm_offset: float = 0.0
  norm_placement: str = "pre"
  final_norm: bool = True
  qk_norm: bool = False
  activation: str = "gelu"
  qkv_bias: bool = True
  attention_out_bias: bool = True
  mlp_bias: bool = True
  parallel_residual: bool = False
  attention_scale: float | None = None
  tied_output: bool = True
  embed_scale: float = 1.0
  embed_width: int | None = None
  lora_scale: float = 0.0
  compute: ComputeConfig = ComputeConfig()

  def __post_init__(self):
    checks.choices(
      "",
      self,
      positions=POSITIONS,
      rope_scaling=ROPE_SCALINGS,
      norm=NORMS,
      norm_placement=NORM_PLACEMENTS,
      activation=ACTIVATIONS,
    )
    self._check_layers()
    self._check_heads()
    self._check_positions()
    if self.vocab_size and not 0 <= self.pad_id < self.vocab_size:
      raise ValueError(f"pad_id {self.pad_id} is outside the vocabulary of {self.vocab_size}")
    if self.parallel_residual and self.norm_placement != "pre":
      raise ValueError(f"norm_placement {self.norm_placement!r} with parallel_residual; use 'pre'")

  def _check_layers(self):
    unknown = set(self.layer_pattern.split(",")) - set(LAYER_KINDS)
    if unknown:
      raise ValueError(
        f"layer_pattern {self.layer_pattern!r} names {sorted(unknown)[0]!r}; "
        f"separate {' and '.join(LAYER_KINDS)} by commas"
      )
    if self.band_width is not None and "banded" not in self.layer_pattern:
      raise ValueError(
        f"band_width {self.band_width} without a banded layer in layer_pattern "
        f"{self.layer_pattern!r}; use None, or name banded layers"
      )

  def _check_heads(self):
    """Resolves what is derived from `width`, so that an export says it."""
    if self.head_size is None:
      if self.width % self.num_heads:
        raise ValueError(
          f"width {self.width} does not divide over num_heads {self.num_heads}; "
          "change one of them, or give head_size"
        )
      object.__setattr__(self, "head_size", self.width // self.num_heads)
    if self.num_kv_heads is None:
      object.__setattr__(self, "num_kv_heads", self.num_heads)
    if self.mlp_width is None:
      object.__setattr__(self, "mlp_width", 4 * self.width)
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f"num_heads {self.num_heads} does not divide into groups for num_kv_heads "
        f"{self.num_kv_heads}; use a divisor of {self.num_heads}"
      )

  def _check_positions(self):
    rotary = ("rope_base", "rope_fraction")
    llama3 = ("rope_low_freq_factor", "rope_high_freq_factor", "rope_original_context")
    needed = {name: self.positions == "rotary" for name in rotary}
    needed |= {"rope_factor": self.rope_scaling != "none"}
    needed |= {name: self.rope_scaling == "llama3" for name in llama3}
    for name, need in needed.items():
      if need != (getattr(self, name) is not None):
        raise ValueError(
          f"{name} is {getattr(self, name)}, with positions {self.positions!r} and "
          f"rope_scaling {self.rope_scaling!r}; "
          f"{'give a number' if need else 'use None'}"
        )
    scaled = self.rope_scaling != "none" or self.band_rope_base is not None
    if self.positions == "learned" and scaled:
      raise ValueError("rope_scaling and band_rope_base need positions='rotary'")
    if self.positions == "rotary":
      if self.position_offset:
        raise ValueError(f"position_offset {self.position_offset} with rotary positions; use 0")
      if self.rotary_size % 2 or not 0 < self.rotary_size <= self.head_size:
        raise ValueError(
          f"rope_fraction {self.rope_fraction} rotates {self.rotary_size} of "
          f"head_size {self.head_size}; it must be an even number of them"
        )

  def shape(self) -> dict[str, Any]:
    """What an export says of its network: every field but `compute`."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    del fields["compute"]
    return fields

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """Kinds of the layers of one repetition."""
    return ("dense",) if self.band_width is None else tuple(self.layer_pattern.split(","))

  @property
  def pattern(self) -> int:
    """Layers in one repetition of the scanned pattern."""
    return len(self.layer_kinds)

  @property
  def num_patterns(self) -> int:
    """Whole repetitions; what is left over is the tail."""
    return self.num_layers // self.pattern

  @property
  def num_tail_layers(self) -> int:
    return self.num_layers % self.pattern

  @property
  def num_banded_layers(self) -> int:
    return sum(
      self.layer_kinds[layer % self.pattern] == "banded" for layer in range(self.num_layers)
    )

  @property
  def rotary_size(self) -> int:
    """Dimensions of a head that are rotated."""
    return 0 if self.rope_fraction is None else int(self.head_size * self.rope_fraction)

  @property
  def is_gated(self) -> bool:
    return ACTIVATIONS[self.activation][1]

  @property
  def padded_vocab_size(self) -> int:
    """Embedding rows: a multiple of 128, because 50,257 divides over no mesh."""
    return -(-self.vocab_size // 128) * 128

  @property
  def num_block_params(self) -> int:
    """Parameters outside the embeddings; 12 L D^2 + 13 L D + 2 D for GPT-3's architecture."""
    queries, keys = (heads * self.head_size for heads in (self.num_heads, self.num_kv_heads))
    attends = 2 * self.width * (queries + keys)
    attends += (queries + 2 * keys) * self.qkv_bias + self.width * self.attention_out_bias
    inner = self.mlp_width * (2 if self.is_gated else 1)
    feeds = inner * self.width + self.mlp_width * self.width
    feeds += (inner + self.width) * self.mlp_bias
    norm = self.width * (2 if self.norm == "layer" else 1)
    norms = norm * (4 if self.norm_placement == "sandwich" else 2)
    norms += 2 * self.head_size * self.qk_norm
    return self.num_layers * (attends + feeds + norms) + norm * self.final_norm
