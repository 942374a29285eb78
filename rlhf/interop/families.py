"""The families of models that others publish: what their `config.json` says, and which tensor of
their files holds which leaf of ours.

A family is one table.  Its rows cover every variant (with biases or without, one key head for each
query head or for several): our own tree, which `ModelConfig` decides, says which of them are used.
Reading and writing go by the same rows.  A config that our model cannot express is refused with its
field; whether a model of ours can be written as a family is decided by writing its config and
reading that back.

Source of names and meanings: the modeling and configuration files of `transformers`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.interop.layout import Row
from rlhf.model.transformer import ModelConfig

# What a reward model of ours has and `score`, a matrix without a bias, has not: added to its logit.
SCORE_BIAS = "score_bias"


class Fields:
  """A `config.json`, read field by field; what is missing takes the family's own default."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values, self.where = values, where

  def get(self, name: str, default: Any) -> Any:
    """The field's value; null, like absent, is the default."""
    value = self.values[name] if name in self.values else None
    return default if value is None else value

  def number(self, name: str, default: int | float | None) -> Any:
    """As `get`.

    Raises:
      ValueError: absent without a default, or not a number.
    """
    value = self.get(name, default)
    if value is None:
      raise ValueError(f"{self.where}: no field {name!r}; it must be a number")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be a number")
    return value

  def positive(self, name: str, default: int | float | None) -> Any:
    """As `number`, above 0."""
    value = self.number(name, default)
    if value <= 0:
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be a number above 0")
    return value

  def size(self, name: str, default: int, low: int = 1) -> int:
    """As `number`, a whole one from `low`."""
    value = self.number(name, default)
    if not isinstance(value, int) or value < low:
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be a whole number from {low}")
    return value

  def flag(self, name: str, default: bool) -> bool:
    """As `get`.  Raises ValueError at anything but true and false."""
    value = self.get(name, default)
    if not isinstance(value, bool):
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be true or false")
    return value

  def text(self, name: str, default: str) -> str:
    """As `get`.  Raises ValueError at anything but a string."""
    value = self.get(name, default)
    if not isinstance(value, str):
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be a string")
    return value

  def group(self, name: str) -> Mapping[str, Any]:
    """A field that holds fields; empty where it is absent.  Raises ValueError at anything else."""
    value = self.get(name, {})
    if not isinstance(value, Mapping):
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be an object")
    return value

  def only(self, name: str, allowed: Any) -> None:
    """Raises ValueError where the field is there and has another value than the one we know."""
    if self.get(name, allowed) != allowed:
      self.refuse(name, self.values[name], repr(allowed))

  def refuse(self, name: str, value: Any, allowed: str) -> None:
    raise ValueError(
      f"{self.where}: {name} is {value!r}, which this model cannot express; "
      f"only {allowed} can be read"
    )

  def choose(self, name: str, default: str, table: Mapping[str, str]) -> str:
    """The entry of the table that the field names."""
    value = self.text(name, default)
    if value not in table:
      self.refuse(name, value, f"one of {', '.join(table)}")
    return table[value]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture.

  Attributes:
    name: `model_type` of its `config.json`.
    policy, reward: `architectures` of a language model and of a scalar head.
    prefix: in front of every name but the heads'; a base model's file leaves it out.
    layer: in front of the names of layer {}.
    top: rows outside the layers; names that begin with "/" have no prefix.
    rows: rows of one layer.
    numbers: our field -> (its name in `config.json`, default there; None: it must be given).
    fixed: fields of `config.json` with the only value that can be read.
    ignored: tensors that a file may hold and nobody needs, as regular expressions.
    read: the other fields of our config, from theirs.
    write: the other fields of theirs, from our config.
  """

  name: str
  policy: str
  reward: str
  prefix: str
  layer: str
  top: tuple[Row, ...]
  rows: tuple[Row, ...]
  numbers: Mapping[str, tuple[str, int | float | None]]
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()
  read: Callable[[Fields, dict[str, Any]], dict[str, Any]]
  write: Callable[[ModelConfig], dict[str, Any]]

  def model_fields(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our `ModelConfig`, less its numerics, its vocabulary and its padding.

    Raises:
      ValueError: a field is missing, or has a value that our model cannot express.
    """
    fields = Fields(values, where)
    for name, allowed in {**_FIXED, **self.fixed}.items():
      fields.only(name, allowed)
    found = {
      ours: fields.size(*theirs) if isinstance(theirs[1], int) else fields.number(*theirs)
      for ours, theirs in self.numbers.items()
    }
    return _UNSET | found | self.read(fields, found)

  def config(self, cfg: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model of ours, less its vocabulary and its special tokens.

    Raises:
      ValueError: the family cannot express the model.
    """
    written = {
      "model_type": self.name,
      **{theirs: getattr(cfg, ours) for ours, (theirs, _) in self.numbers.items()},
    }
    try:
      written |= {**self.write(cfg), "tie_word_embeddings": cfg.tied_output}
      again = dataclasses.replace(cfg, **self.model_fields(written, self.name))
    except ValueError as error:
      raise ValueError(f"the model cannot be written as {self.name} ({error})") from None
    wanted, found = _meaning(cfg), _meaning(again)
    for field in wanted:
      if wanted[field] != found[field]:
        raise ValueError(
          f"{self.name} cannot express {field} {wanted[field]!r} (as {self.name} it "
          f"would be {found[field]!r}); choose another --family"
        )
    return written


# Nothing that `transformers` reads for these families may have another value than here.
_FIXED = {"quantization_config": None, "is_encoder_decoder": False}
# Fields that a family need not name, as they are without it.
_UNSET = dict(
  band_width=None,
  layer_pattern="dense",
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
  norm_offset=0.0,
  norm_placement="pre",
  final_norm=True,
  qk_norm=False,
  qkv_bias=True,
  attention_out_bias=True,
  mlp_bias=True,
  parallel_residual=False,
  attention_scale=None,
  embed_scale=1.0,
  embed_width=None,
)


def layer_kinds(cfg: ModelConfig) -> list[str]:
  """The kind of every layer."""
  return [cfg.layer_kinds[layer % cfg.pattern] for layer in range(cfg.num_layers)]


def _meaning(cfg: ModelConfig) -> dict[str, Any]:
  """What a model computes: equal for configs that say the same in different words."""
  fields = dataclasses.asdict(cfg)
  kinds = layer_kinds(cfg)
  fields["layer_pattern"] = ",".join(kinds)
  if "banded" not in kinds:
    fields["band_width"] = fields["band_rope_base"] = None
  elif cfg.band_rope_base is None and cfg.rope_scaling == "none":
    fields["band_rope_base"] = cfg.rope_base
  if cfg.attention_scale is None:
    fields["attention_scale"] = cfg.head_size**-0.5
  if cfg.embed_width is None:
    fields["embed_width"] = cfg.width
  return fields


# ----------------------------------------------------------------------------- pieces of configs


_GELUS = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_fast": "gelu",
  "gelu": "gelu_exact",
  "relu": "relu",
}
_GATED = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
_WRITTEN_GELUS = {"gelu": "gelu_new", "gelu_exact": "gelu", "relu": "relu"}
_WRITTEN_GATED = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
_LAYER_TYPES = {"full_attention": "dense", "sliding_attention": "banded"}
_WRITTEN_LAYER_TYPES = {kind: name for name, kind in _LAYER_TYPES.items()}


def _written_activation(cfg: ModelConfig, table: Mapping[str, str]) -> str:
  if cfg.activation not in table:
    raise ValueError(f"activation is {cfg.activation!r}; only {', '.join(table)} can be written")
  return table[cfg.activation]


def shortest_pattern(kinds: Sequence[str]) -> str:
  """The `layer_pattern` of a list of kinds: its shortest repetition, the last cut off or not."""
  for size in range(1, len(kinds) + 1):
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds)):
      return ",".join(kinds[:size])
  raise ValueError("a model without layers")


def _read_layers(
  fields: Fields, num_layers: int, default: Sequence[str], band_width: int | None
) -> dict[str, Any]:
  """layer_pattern and band_width of `layer_types`, or of the family's rule where there are none."""
  types = fields.get("layer_types", None)
  kinds = list(default)
  if types is not None:
    if not isinstance(types, list) or len(types) != num_layers:
      raise ValueError(
        f"{fields.where}: layer_types is {types!r}; it must be a list of the kinds "
        f"of all {num_layers} layers"
      )
    for kind in types:
      if not isinstance(kind, str) or kind not in _LAYER_TYPES:
        fields.refuse("layer_types", kind, f"{' and '.join(_LAYER_TYPES)} layers")
    kinds = [_LAYER_TYPES[kind] for kind in types]
  banded = "banded" in kinds
  if banded and band_width is None:
    raise ValueError(
      f"{fields.where}: sliding_window is not set, and layer_types names "
      "sliding_attention; give its width"
    )
  return dict(layer_pattern=shortest_pattern(kinds), band_width=band_width if banded else None)


def _written_layers(cfg: ModelConfig) -> list[str]:
  return [_WRITTEN_LAYER_TYPES[kind] for kind in layer_kinds(cfg)]


def _read_rope(
  fields: Fields, rope: Mapping[str, Any], base: float, fraction: float, context_length: int
) -> dict[str, Any]:
  """Rotary positions of one set of parameters.

  Args:
    rope: `rope_scaling` as older releases write it, or `rope_parameters`, which hold the base too.
    base, fraction: where `rope` does not say.
  """
  rope = Fields(rope, f"{fields.where}: rotary positions")
  kind = rope.text("rope_type", rope.text("type", "default"))
  if kind not in ("default", "linear", "llama3"):
    rope.refuse("rope_type", kind, "default, linear and llama3")
  found = dict(
    positions="rotary",
    rope_base=float(rope.positive("rope_theta", base)),
    rope_fraction=float(rope.positive("partial_rotary_factor", fraction)),
    rope_scaling="none",
  )
  if kind != "default":
    found |= dict(rope_scaling=kind, rope_factor=float(rope.positive("factor", None)))
  if kind == "llama3":
    found |= dict(
      rope_low_freq_factor=float(rope.positive("low_freq_factor", None)),
      rope_high_freq_factor=float(rope.positive("high_freq_factor", None)),
      rope_original_context=rope.size("original_max_position_embeddings", context_length),
    )
  return found


def _rope_of(fields: Fields) -> Mapping[str, Any]:
  """The parameters of rotary positions, in the newer words or the older."""
  newer = fields.group("rope_parameters")
  return newer if newer else fields.group("rope_scaling")


def _written_scaling(cfg: ModelConfig) -> dict[str, Any] | None:
  if cfg.rope_scaling == "none":
    return None
  written = {"rope_type": cfg.rope_scaling, "factor": cfg.rope_factor}
  if cfg.rope_scaling == "llama3":
    written |= {
      "low_freq_factor": cfg.rope_low_freq_factor,
      "high_freq_factor": cfg.rope_high_freq_factor,
      "original_max_position_embeddings": cfg.rope_original_context,
    }
  return written


def _head_size(fields: Fields, found: Mapping[str, Any]) -> int:
  """Of a family that does not name it."""
  if found["width"] % found["num_heads"]:
    raise ValueError(
      f"{fields.where}: its {found['num_heads']} heads do not divide its width of "
      f"{found['width']}; they must"
    )
  return found["width"] // found["num_heads"]


# ----------------------------------------------------------------------------- pieces of tables


def _norm(leaf: str, tensor: str, offset: float = 0.0) -> tuple[Row, ...]:
  return (
    Row(f"{leaf}/scale", (f"{tensor}.weight",), "D -> D", offset),
    Row(f"{leaf}/bias", (f"{tensor}.bias",), "D -> D"),
  )


def _linear(leaf: str, tensor: str, into: str, out: str) -> tuple[Row, ...]:
  """A matrix that the file keeps transposed, as torch does."""
  return (
    Row(f"{leaf}/kernel", (f"{tensor}.weight",), f"{out} {into} -> {into} {out}"),
    Row(f"{leaf}/bias", (f"{tensor}.bias",), f"{out} -> {out}"),
  )


def _attention(query: str, key: str, value: str, out: str) -> tuple[Row, ...]:
  """Projections that the file keeps apart."""
  rows = []
  for kind, leaf, end, front in (("weight", "kernel", " D", "D "), ("bias", "bias", "", "")):
    names = [f"{name}.{kind}" for name in (query, key, value)]
    rows += [
      Row(f"attention/qkv/{leaf}", tuple(names), f"(H e){end} -> {front}s H e"),
      Row(f"attention/q/{leaf}", (names[0],), f"(H e){end} -> {front}H e"),
      Row(f"attention/kv/{leaf}", tuple(names[1:]), f"(K e){end} -> {front}s K e"),
    ]
  return (*rows, *_attention_out(out))


def _attention_out(out: str) -> tuple[Row, ...]:
  return (
    Row("attention/out/kernel", (f"{out}.weight",), "D (H e) -> H e D"),
    Row("attention/out/bias", (f"{out}.bias",), "D -> D"),
  )


def _top(embedding: str, norm: str, output: str = "/lm_head") -> tuple[Row, ...]:
  """Embedding, last norm, output and the scalar head."""
  return (
    Row("embed/token", (f"{embedding}.weight",), "V E -> V E"),
    Row("output/token", (f"{output}.weight",), "V E -> V E"),
    *_norm("final_norm", norm),
    Row("head/kernel", ("/score.weight",), "o D -> D o"),
  )


# ----------------------------------------------------------------------------- GPT-2


def _read_gpt2(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  return dict(
    num_kv_heads=found["num_heads"],
    head_size=_head_size(fields, found),
    mlp_width=fields.size("n_inner", 4 * found["width"]),
    norm="layer",
    activation=fields.choose("activation_function", "gelu_new", _GELUS),
    attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
    tied_output=fields.flag("tie_word_embeddings", True),
  )


def _write_gpt2(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "n_inner": cfg.mlp_width,
    "activation_function": _written_activation(cfg, _WRITTEN_GELUS),
    "scale_attn_weights": _meaning(cfg)["attention_scale"] != 1.0,
  }


GPT2 = Family(
  name="gpt2",
  policy="GPT2LMHeadModel",
  reward="GPT2ForSequenceClassification",
  prefix="transformer.",
  layer="h.{}.",
  top=(*_top("wte", "ln_f"), Row("embed/position", ("wpe.weight",), "T D -> T D")),
  rows=(
    *_norm("attention_norm", "ln_1"),
    *_norm("mlp_norm", "ln_2"),
    # Its matrices are not transposed (Conv1D).
    Row("attention/qkv/kernel", ("attn.c_attn.weight",), "D (c H e) -> D c H e"),
    Row("attention/qkv/bias", ("attn.c_attn.bias",), "(c H e) -> c H e"),
    Row("attention/out/kernel", ("attn.c_proj.weight",), "(H e) D -> H e D"),
    Row("attention/out/bias", ("attn.c_proj.bias",), "D -> D"),
    Row("mlp/in/kernel", ("mlp.c_fc.weight",), "D F -> D F"),
    Row("mlp/in/bias", ("mlp.c_fc.bias",), "F -> F"),
    Row("mlp/out/kernel", ("mlp.c_proj.weight",), "F D -> F D"),
    Row("mlp/out/bias", ("mlp.c_proj.bias",), "D -> D"),
  ),
  numbers=dict(
    num_layers=("n_layer", 12),
    num_heads=("n_head", 12),
    width=("n_embd", 768),
    context_length=("n_positions", 1024),
    norm_eps=("layer_norm_epsilon", 1e-5),
    init_std=("initializer_range", 0.02),
  ),
  fixed={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
  ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
  read=_read_gpt2,
  write=_write_gpt2,
)


# ----------------------------------------------------------------------------- OPT


def _read_opt(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  before = fields.flag("do_layer_norm_before", True)
  embed_width = fields.size("word_embed_proj_dim", found["width"])
  bias = fields.flag("enable_bias", True)
  return dict(
    num_kv_heads=found["num_heads"],
    head_size=_head_size(fields, found),
    position_offset=2,
    norm="layer",
    norm_eps=1e-5,
    norm_placement="pre" if before else "post",
    final_norm=before and not fields.flag("_remove_final_layer_norm", False),
    activation=fields.choose("activation_function", "relu", _GELUS),
    qkv_bias=bias,
    attention_out_bias=bias,
    mlp_bias=bias,
    embed_width=None if embed_width == found["width"] else embed_width,
    tied_output=fields.flag("tie_word_embeddings", True),
  )


def _write_opt(cfg: ModelConfig) -> dict[str, Any]:
  before = cfg.norm_placement != "post"
  return {
    "do_layer_norm_before": before,
    "_remove_final_layer_norm": before and not cfg.final_norm,
    "word_embed_proj_dim": cfg.width if cfg.embed_width is None else cfg.embed_width,
    "enable_bias": cfg.mlp_bias,
    "activation_function": _written_activation(cfg, _WRITTEN_GELUS),
  }


OPT = Family(
  name="opt",
  policy="OPTForCausalLM",
  reward="OPTForSequenceClassification",
  prefix="model.",
  layer="decoder.layers.{}.",
  top=(
    *_top("decoder.embed_tokens", "decoder.final_layer_norm"),
    Row("embed/position", ("decoder.embed_positions.weight",), "T D -> T D"),
    Row("embed/project/kernel", ("decoder.project_in.weight",), "D E -> E D"),
    Row("output/project/kernel", ("decoder.project_out.weight",), "E D -> D E"),
  ),
  rows=(
    *_norm("attention_norm", "self_attn_layer_norm"),
    *_norm("mlp_norm", "final_layer_norm"),
    *_attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *_linear("mlp/in", "fc1", "D", "F"),
    *_linear("mlp/out", "fc2", "F", "D"),
  ),
  numbers=dict(
    num_layers=("num_hidden_layers", 12),
    num_heads=("num_attention_heads", 12),
    width=("hidden_size", 768),
    mlp_width=("ffn_dim", 3072),
    context_length=("max_position_embeddings", 2048),
    init_std=("init_std", 0.02),
  ),
  fixed={"layer_norm_elementwise_affine": True},
  read=_read_opt,
  write=_write_opt,
)


# ----------------------------------------------------------------------------- GPT-NeoX


def _read_neox(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  bias = fields.flag("attention_bias", True)
  rope = _read_rope(
    fields,
    _rope_of(fields),
    fields.positive("rotary_emb_base", 10_000.0),
    fields.positive("rotary_pct", 0.25),
    found["context_length"],
  )
  return rope | dict(
    num_kv_heads=found["num_heads"],
    head_size=_head_size(fields, found),
    norm="layer",
    activation=fields.choose("hidden_act", "gelu", _GELUS),
    qkv_bias=bias,
    attention_out_bias=bias,
    parallel_residual=fields.flag("use_parallel_residual", True),
    tied_output=fields.flag("tie_word_embeddings", False),
  )


def _write_neox(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "rotary_emb_base": cfg.rope_base,
    "rotary_pct": cfg.rope_fraction,
    "rope_scaling": _written_scaling(cfg),
    "attention_bias": cfg.qkv_bias,
    "use_parallel_residual": cfg.parallel_residual,
    "hidden_act": _written_activation(cfg, _WRITTEN_GELUS),
  }


GPT_NEOX = Family(
  name="gpt_neox",
  policy="GPTNeoXForCausalLM",
  reward="GPTNeoXForSequenceClassification",
  prefix="gpt_neox.",
  layer="layers.{}.",
  top=_top("embed_in", "final_layer_norm", "/embed_out"),
  rows=(
    *_norm("attention_norm", "input_layernorm"),
    *_norm("mlp_norm", "post_attention_layernorm"),
    # Query, key and value of one head lie beside each other.
    Row("attention/qkv/kernel", ("attention.query_key_value.weight",), "(H c e) D -> D c H e"),
    Row("attention/qkv/bias", ("attention.query_key_value.bias",), "(H c e) -> c H e"),
    *_attention_out("attention.dense"),
    *_linear("mlp/in", "mlp.dense_h_to_4h", "D", "F"),
    *_linear("mlp/out", "mlp.dense_4h_to_h", "F", "D"),
  ),
  numbers=dict(
    num_layers=("num_hidden_layers", 44),
    num_heads=("num_attention_heads", 64),
    width=("hidden_size", 6144),
    mlp_width=("intermediate_size", 24576),
    context_length=("max_position_embeddings", 2048),
    norm_eps=("layer_norm_eps", 1e-5),
    init_std=("initializer_range", 0.02),
  ),
  ignored=(
    r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    r"rotary_emb\.inv_freq",
  ),
  read=_read_neox,
  write=_write_neox,
)


# ----------------------------------------------------------------------------- Llama and its kin


def _read_gated(
  fields: Fields, found: dict[str, Any], activation: str = "hidden_act", default: str = "silu"
) -> dict[str, Any]:
  """What Llama, Mistral, Qwen and Gemma share."""
  return dict(
    num_kv_heads=fields.size("num_key_value_heads", found["num_heads"]),
    head_size=fields.size("head_dim", found["width"] // found["num_heads"]),
    norm="rms",
    mlp_bias=False,
    activation=fields.choose(activation, default, _GATED),
  )


def _rope(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  rope = _read_rope(
    fields,
    _rope_of(fields),
    fields.positive("rope_theta", 10_000.0),
    fields.positive("partial_rotary_factor", 1.0),
    found["context_length"],
  )
  if rope["rope_fraction"] != 1.0:
    fields.refuse("partial_rotary_factor", rope["rope_fraction"], "1.0")
  return rope


def _write_gated(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_size,
    "rope_theta": cfg.rope_base,
    "rope_scaling": _written_scaling(cfg),
    "hidden_act": _written_activation(cfg, _WRITTEN_GATED),
  }


def _gated_numbers(
  num_layers: int, num_heads: int, width: int, mlp_width: int, context_length: int
) -> dict[str, tuple[str, int | float]]:
  """The numbers of such a config, with the family's defaults."""
  return dict(
    num_layers=("num_hidden_layers", num_layers),
    num_heads=("num_attention_heads", num_heads),
    width=("hidden_size", width),
    mlp_width=("intermediate_size", mlp_width),
    context_length=("max_position_embeddings", context_length),
    norm_eps=("rms_norm_eps", 1e-6),
    init_std=("initializer_range", 0.02),
  )


def _read_llama(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  bias = fields.flag("attention_bias", False)
  return (
    _rope(fields, found)
    | _read_gated(fields, found)
    | dict(
      qkv_bias=bias,
      attention_out_bias=bias,
      mlp_bias=fields.flag("mlp_bias", False),
      tied_output=fields.flag("tie_word_embeddings", False),
    )
  )


def _write_llama(cfg: ModelConfig) -> dict[str, Any]:
  return _write_gated(cfg) | {"attention_bias": cfg.qkv_bias, "mlp_bias": cfg.mlp_bias}


LLAMA = Family(
  name="llama",
  policy="LlamaForCausalLM",
  reward="LlamaForSequenceClassification",
  prefix="model.",
  layer="layers.{}.",
  top=_top("embed_tokens", "norm"),
  rows=(
    *_norm("attention_norm", "input_layernorm"),
    *_norm("mlp_norm", "post_attention_layernorm"),
    *_attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    Row("attention/q_norm/scale", ("self_attn.q_norm.weight",), "e -> e"),
    Row("attention/k_norm/scale", ("self_attn.k_norm.weight",), "e -> e"),
    *_linear("mlp/gate", "mlp.gate_proj", "D", "F"),
    *_linear("mlp/in", "mlp.up_proj", "D", "F"),
    *_linear("mlp/out", "mlp.down_proj", "F", "D"),
  ),
  numbers=_gated_numbers(32, 32, 4096, 11008, 2048),
  ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
  read=_read_llama,
  write=_write_llama,
)


def _read_mistral(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  # An absent window is Mistral 7B's, and a null one none; `Fields.get` cannot tell them apart.
  has_window = fields.values.get("sliding_window", 4096) is not None
  window = fields.size("sliding_window", 4096) if has_window else None
  kinds = ["dense" if window is None else "banded"] * found["num_layers"]
  fields = Fields({"num_key_value_heads": 8, **fields.values}, fields.where)
  return (
    _rope(fields, found)
    | _read_gated(fields, found)
    | dict(
      qkv_bias=False,
      attention_out_bias=False,
      tied_output=fields.flag("tie_word_embeddings", False),
      **_read_layers(fields, found["num_layers"], kinds, window),
    )
  )


def _write_mistral(cfg: ModelConfig) -> dict[str, Any]:
  return _write_gated(cfg) | {"sliding_window": cfg.band_width}


MISTRAL = dataclasses.replace(
  LLAMA,
  name="mistral",
  policy="MistralForCausalLM",
  reward="MistralForSequenceClassification",
  numbers=_gated_numbers(32, 32, 4096, 14336, 131_072),
  read=_read_mistral,
  write=_write_mistral,
)


# ----------------------------------------------------------------------------- Qwen


def _read_qwen(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  """What Qwen 2 and 3 share: layers from `max_window_layers` on have a window, if any has."""
  window, num_layers = None, found["num_layers"]
  if fields.flag("use_sliding_window", False):
    window = fields.size("sliding_window", 4096)
  first = fields.size("max_window_layers", 28, low=0) if window is not None else num_layers
  kinds = ["banded" if layer >= first else "dense" for layer in range(num_layers)]
  return (
    _rope(fields, found)
    | _read_gated(fields, found)
    | dict(
      tied_output=fields.flag("tie_word_embeddings", False),
      **_read_layers(fields, num_layers, kinds, window),
    )
  )


def _write_qwen(cfg: ModelConfig) -> dict[str, Any]:
  kinds = layer_kinds(cfg)
  banded = "banded" in kinds
  return _write_gated(cfg) | {
    "use_sliding_window": banded,
    "sliding_window": cfg.band_width if banded else None,
    "max_window_layers": kinds.index("banded") if banded else cfg.num_layers,
    "layer_types": _written_layers(cfg),
  }


def _read_qwen2(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  return _read_qwen(fields, found) | dict(qkv_bias=True, attention_out_bias=False)


def _read_qwen3(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  fields = Fields({"head_dim": 128, **fields.values}, fields.where)
  bias = fields.flag("attention_bias", False)
  return _read_qwen(fields, found) | dict(qkv_bias=bias, attention_out_bias=bias, qk_norm=True)


QWEN2 = dataclasses.replace(
  LLAMA,
  name="qwen2",
  policy="Qwen2ForCausalLM",
  reward="Qwen2ForSequenceClassification",
  numbers=_gated_numbers(32, 32, 4096, 22016, 32_768),
  read=_read_qwen2,
  write=_write_qwen,
)
QWEN3 = dataclasses.replace(
  QWEN2,
  name="qwen3",
  policy="Qwen3ForCausalLM",
  reward="Qwen3ForSequenceClassification",
  read=_read_qwen3,
  write=lambda cfg: _write_qwen(cfg) | {"attention_bias": cfg.qkv_bias},
)


# ----------------------------------------------------------------------------- Gemma 3


def _read_gemma3(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  num_layers, bias = found["num_layers"], fields.flag("attention_bias", False)
  period = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
  kinds = ["banded" if (layer + 1) % period else "dense" for layer in range(num_layers)]
  layers = _read_layers(fields, num_layers, kinds, fields.size("sliding_window", 4096))
  # One set of parameters for each kind of layer: nested in the newer words, two bases in the older.
  nested = Fields(fields.group("rope_parameters"), f"{fields.where}: rope_parameters")
  local = _read_rope(
    fields,
    nested.group("sliding_attention"),
    fields.positive("rope_local_base_freq", 10_000.0),
    1.0,
    found["context_length"],
  )
  if local["rope_scaling"] != "none":
    fields.refuse("rope_parameters.sliding_attention.rope_type", local["rope_scaling"], "default")
  dense = {**nested.group("full_attention"), **fields.group("rope_scaling")}
  rope = _read_rope(
    fields, dense, fields.positive("rope_theta", 1_000_000.0), 1.0, found["context_length"]
  )
  fields = Fields({"head_dim": 256, "num_key_value_heads": 4, **fields.values}, fields.where)
  gated = _read_gated(fields, found, "hidden_activation", "gelu_pytorch_tanh")
  return (
    rope
    | gated
    | layers
    | dict(
      band_rope_base=local["rope_base"] if layers["band_width"] is not None else None,
      norm_offset=1.0,
      norm_placement="sandwich",
      qk_norm=True,
      qkv_bias=bias,
      attention_out_bias=bias,
      embed_scale=found["width"] ** 0.5,
      attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
      tied_output=fields.flag("tie_word_embeddings", True),
    )
  )


def _write_gemma3(cfg: ModelConfig) -> dict[str, Any]:
  written = _write_gated(cfg)
  scale = _meaning(cfg)["attention_scale"]
  return written | {
    "hidden_activation": written.pop("hidden_act"),
    "query_pre_attn_scalar": round(scale**-2),
    "rope_local_base_freq": _meaning(cfg)["band_rope_base"],
    "sliding_window": cfg.band_width,
    "layer_types": _written_layers(cfg),
    "attention_bias": cfg.qkv_bias,
  }


GEMMA3 = dataclasses.replace(
  LLAMA,
  name="gemma3_text",
  policy="Gemma3ForCausalLM",
  reward="Gemma3TextForSequenceClassification",
  rows=(
    *_norm("attention_norm", "input_layernorm"),
    *_norm("attention_post_norm", "post_attention_layernorm"),
    *_norm("mlp_norm", "pre_feedforward_layernorm"),
    *_norm("mlp_post_norm", "post_feedforward_layernorm"),
    *(row for row in LLAMA.rows if "_norm/" not in row.leaf or "attention/" in row.leaf),
  ),
  numbers=_gated_numbers(26, 8, 2304, 9216, 131_072),
  fixed={
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "use_bidirectional_attention": False,
  },
  read=_read_gemma3,
  write=_write_gemma3,
)


# ----------------------------------------------------------------------------- the list


FAMILIES = {
  family.name: family for family in (GPT2, OPT, GPT_NEOX, LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3)
}


def find(model_type: Any, where: str) -> Family:
  """The family that a `config.json` names.

  Raises:
    ValueError: none, or one that is not known.
  """
  if not isinstance(model_type, str):
    raise ValueError(
      f"{where}: model_type is {model_type!r}; it must be a string, one of {', '.join(FAMILIES)}"
    )
  if model_type == "gemma3":
    raise ValueError(
      f"{where}: model_type 'gemma3' reads images too; save its language model alone (gemma3_text)"
    )
  if model_type not in FAMILIES:
    raise ValueError(
      f"{where}: unknown architecture {model_type!r}; known are {', '.join(FAMILIES)}"
    )
  return FAMILIES[model_type]
