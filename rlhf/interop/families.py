"""The families of models that others publish: what their `config.json` says, and which tensors of
their files hold which leaves of ours.

A family is one table.  Its rows cover every variant (with biases or without, shared key heads or
not): our own parameter tree, which follows from `ModelConfig`, says which rows are used.  Reading
and writing use the same rows.  A config that our model cannot express is refused, naming the field;
whether a model of ours can be written as a family is decided by writing its config and reading that
back.

Source of names and meanings: the modeling and configuration files of `transformers`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf.interop.layout import Row
from rlhf.model.transformer import ModelConfig

# Field of config.json with the bias of a reward head, which the families' `score` does not have.
SCORE_BIAS = "score_bias"


class Fields:
  """A `config.json`, read field by field; absent and null fields take the family's default."""

  def __init__(self, values: Mapping[str, Any], where: str):
    self.values, self.where = values, where

  def get(self, name: str, default: Any) -> Any:
    value = self.values.get(name)
    return default if value is None else value

  def _checked(self, name: str, default: Any, must_be: str, is_valid: Callable) -> Any:
    value = self.get(name, default)
    if value is None:
      raise ValueError(f"{self.where}: no field {name!r}; it must be {must_be}")
    if not is_valid(value):
      raise ValueError(f"{self.where}: {name} is {value!r}; it must be {must_be}")
    return value

  # The methods below raise ValueError for a value of another kind, and for an absent field if the
  # default is None.

  def number(self, name: str, default: int | float | None) -> Any:
    return self._checked(name, default, "a number", _is_number)

  def positive(self, name: str, default: int | float | None) -> Any:
    return self._checked(name, default, "a number above 0", lambda x: _is_number(x) and x > 0)

  def size(self, name: str, default: int | None, low: int = 1) -> int:
    is_size = lambda x: _is_number(x) and isinstance(x, int) and x >= low
    return self._checked(name, default, f"a whole number from {low}", is_size)

  def flag(self, name: str, default: bool) -> bool:
    return self._checked(name, default, "true or false", lambda x: isinstance(x, bool))

  def text(self, name: str, default: str) -> str:
    return self._checked(name, default, "a string", lambda x: isinstance(x, str))

  def group(self, name: str) -> Mapping[str, Any]:
    """A field that contains fields; empty if absent."""
    return self._checked(name, {}, "an object", lambda x: isinstance(x, Mapping))

  def refuse(self, name: str, value: Any, allowed: str) -> None:
    """Raises the ValueError of a value that our model has no counterpart for."""
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


def _is_number(value: Any) -> bool:
  is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_real and math.isfinite(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture.

  Attributes:
    name: `model_type` of its `config.json`.
    policy, reward: `architectures` of a language model and of a model with a scalar head.
    prefix: of every tensor's name except the heads'; the file of a base model leaves it out.
    layer: prefix of the names of layer {}.
    top: rows outside the layers; a name that begins with "/" has no prefix.
    rows: rows of one layer.
    fields: our field -> (its name in `config.json`, its default there, which also gives its type).
    activations: (name of the field, its default, its values -> ours); the first of several values
      with one meaning is written.
    defaults: further fields of `config.json` that are not absent by default.
    fixed: fields of `config.json` that can only have this value.
    ignored: tensors that a file may contain and nobody needs, as regular expressions.
    read: our other fields, from a config and the fields that are already read.
    write: the other fields of a config, from ours.
  """

  name: str
  policy: str
  reward: str
  prefix: str
  layer: str
  top: tuple[Row, ...]
  rows: tuple[Row, ...]
  fields: Mapping[str, tuple[str, Any]]
  activations: tuple[str, str, Mapping[str, str]]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: tuple[str, ...] = ()
  read: Callable[[Fields, dict[str, Any]], dict[str, Any]]
  write: Callable[[ModelConfig], dict[str, Any]]

  def model_fields(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our `ModelConfig`, except `compute`, vocabulary and padding.

    Raises:
      ValueError: a field is missing, or has a value that our model cannot express.
    """
    fields = Fields({**self.defaults, **values}, where)
    for name, allowed in {**_FIXED, **self.fixed}.items():
      if fields.get(name, allowed) != allowed:
        fields.refuse(name, values[name], repr(allowed))
    found: dict[str, Any] = {"activation": fields.choose(*self.activations)}
    for ours, (theirs, default) in self.fields.items():
      is_flag, is_size = isinstance(default, bool), isinstance(default, int)
      read = fields.flag if is_flag else fields.size if is_size else fields.number
      found[ours] = read(theirs, default)
    return UNSET | found | self.read(fields, found)

  def config(self, cfg: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a model of ours, except its vocabulary and its special tokens.

    Raises:
      ValueError: the family cannot express the model.
    """
    name, _, table = self.activations
    values = [theirs for theirs, ours in table.items() if ours == cfg.activation]
    try:
      if not values:
        raise ValueError(
          f"activation is {cfg.activation!r}; only {', '.join(dict.fromkeys(table.values()))} can "
          "be written"
        )
      written = {
        "model_type": self.name,
        name: values[0],
        **{theirs: getattr(cfg, ours) for ours, (theirs, _) in self.fields.items()},
        **self.write(cfg),
      }
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


# Fields that `transformers` reads for every family.
_FIXED = {"quantization_config": None, "is_encoder_decoder": False}
# Fields of ours with the value they have unless a family sets them.
_NOT_OF_A_FAMILY = ("vocab_size", "pad_id", "lora_scale", "compute")
UNSET = {
  field.name: field.default
  for field in dataclasses.fields(ModelConfig)
  if field.default is not dataclasses.MISSING and field.name not in _NOT_OF_A_FAMILY
} | dict(band_width=None, layer_pattern="dense")


def layer_kinds(cfg: ModelConfig) -> list[str]:
  """The kind of every layer."""
  return [cfg.layer_kinds[layer % cfg.pattern] for layer in range(cfg.num_layers)]


def _meaning(cfg: ModelConfig) -> dict[str, Any]:
  """What a model computes: equal for configs that say the same thing differently."""
  fields = cfg.shape()
  kinds = layer_kinds(cfg)
  fields["layer_pattern"] = ",".join(kinds)
  if "banded" not in kinds:
    fields["band_width"] = fields["band_rope_base"] = None
  elif cfg.band_rope_base is None and cfg.rope_scaling == "none":
    fields["band_rope_base"] = cfg.rope_base
  if cfg.attention_scale is None:
    assert cfg.head_size is not None  # ModelConfig resolves it
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
_LAYER_TYPES = {"full_attention": "dense", "sliding_attention": "banded"}


def shortest_pattern(kinds: Sequence[str]) -> str:
  """The shortest `layer_pattern` that gives these kinds when it is repeated and cut off."""
  size = next(
    size
    for size in range(1, len(kinds) + 1)
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds))
  )
  return ",".join(kinds[:size])


def _read_layers(
  fields: Fields, num_layers: int, kinds: Sequence[str], band_width: int | None
) -> dict[str, Any]:
  """layer_pattern and band_width from `layer_types`, if present, else from the family's `kinds`."""
  types = fields.get("layer_types", None)
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


def _write_layers(cfg: ModelConfig) -> list[str]:
  names = {kind: name for name, kind in _LAYER_TYPES.items()}
  return [names[kind] for kind in layer_kinds(cfg)]


def _read_rope(
  fields: Fields, values: Mapping[str, Any], base: float, fraction: float, context_length: int
) -> dict[str, Any]:
  """Rotary positions of one set of parameters.

  Args:
    values: `rope_scaling` of older releases, or `rope_parameters`, which include the base.
    base, fraction: defaults of `rope_theta` and `partial_rotary_factor`.
  """
  rope = Fields(values, f"{fields.where}: rotary positions")
  kind = rope.text("rope_type", rope.text("type", "default"))
  if kind not in ("default", "linear", "llama3"):
    rope.refuse("rope_type", kind, "default, linear and llama3")
  found: dict[str, Any] = dict(
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


def _read_only_rope(
  fields: Fields, found: dict[str, Any], base_field: str, fraction_field: str, fraction: float
) -> dict[str, Any]:
  """Rotary positions of a family with one set of parameters, as newer or older releases say it."""
  rope = fields.group("rope_parameters") or fields.group("rope_scaling")
  base = fields.positive(base_field, 10_000.0)
  fraction = fields.positive(fraction_field, fraction)
  return _read_rope(fields, rope, base, fraction, found["context_length"])


def _write_rope_scaling(cfg: ModelConfig) -> dict[str, Any] | None:
  if cfg.rope_scaling == "none":
    return None
  written: dict[str, Any] = {"rope_type": cfg.rope_scaling, "factor": cfg.rope_factor}
  if cfg.rope_scaling == "llama3":
    written |= {
      "low_freq_factor": cfg.rope_low_freq_factor,
      "high_freq_factor": cfg.rope_high_freq_factor,
      "original_max_position_embeddings": cfg.rope_original_context,
    }
  return written


def _usual_fields(
  sizes: tuple[int, int, int, int, int], **others: tuple[str, Any]
) -> dict[str, tuple[str, Any]]:
  """`Family.fields` with the usual names; `others` replace or extend them.

  Args:
    sizes: defaults of num_layers, num_heads, width, mlp_width and context_length.
  """
  num_layers, num_heads, width, mlp_width, context_length = sizes
  usual = dict(
    num_layers=("num_hidden_layers", num_layers),
    num_heads=("num_attention_heads", num_heads),
    width=("hidden_size", width),
    mlp_width=("intermediate_size", mlp_width),
    context_length=("max_position_embeddings", context_length),
    norm_eps=("rms_norm_eps", 1e-6),
    init_std=("initializer_range", 0.02),
    tied_output=("tie_word_embeddings", False),
  )
  return usual | others


def _all_heads(fields: Fields, found: Mapping[str, Any]) -> dict[str, Any]:
  """The heads of a family without shared key heads or a head size of its own."""
  num_heads, width = found["num_heads"], found["width"]
  if width % num_heads:
    raise ValueError(
      f"{fields.where}: its {num_heads} heads do not divide its width of {width}; they must"
    )
  return dict(num_kv_heads=num_heads, head_size=width // num_heads)


# ----------------------------------------------------------------------------- pieces of tables


def norm(leaf: str, tensor: str, offset: float = 0.0, axis: str = "width") -> tuple[Row, ...]:
  """A norm's scale and bias."""
  return (
    Row(f"{leaf}/scale", {f"{tensor}.weight": f"{axis} -> {axis}"}, offset),
    Row(f"{leaf}/bias", {f"{tensor}.bias": f"{axis} -> {axis}"}),
  )


def linear(leaf: str, tensor: str, inputs: str, outputs: str) -> tuple[Row, ...]:
  """A projection whose matrix the file keeps transposed, as torch does."""
  return (
    Row(f"{leaf}/kernel", {f"{tensor}.weight": f"{outputs} {inputs} -> {inputs} {outputs}"}),
    Row(f"{leaf}/bias", {f"{tensor}.bias": f"{outputs} -> {outputs}"}),
  )


def attention(
  query: str, key: str, value: str, out: str, *, adjacent_pairs: bool = False
) -> tuple[Row, ...]:
  """Attention whose file has a tensor for each of query, key and value.

  Args:
    query, key, value, out: names of the tensors.
    adjacent_pairs: the two dimensions that are rotated together are adjacent in the queries and
      keys of the file, as in Llama's original code; ours are half a head apart.
  """
  file_head, our_head = ("head_size", "head_size")
  if adjacent_pairs:
    file_head, our_head = ("frequency part", "(part frequency)")
  rows = []
  for kind, leaf, width in (("weight", "kernel", "width "), ("bias", "bias", "")):
    q, k, v = (f"{name}.{kind}" for name in (query, key, value))
    rotated = lambda heads, stack: (
      f"({heads} {file_head}) {width}-> {width}{stack}{heads} {our_head}"
    )
    plain = lambda heads: f"({heads} head_size) {width}-> {width}tensor {heads} head_size"
    rows += [
      Row(f"attention/q/{leaf}", {q: rotated("heads", "")}),
      Row(f"attention/kv/{leaf}", {k: rotated("kv_heads", "tensor "), v: plain("kv_heads")}),
      # Where every query head has its own key head, ours are in one leaf.
      Row(
        f"attention/qkv/{leaf}",
        {q: rotated("heads", "tensor "), k: rotated("heads", "tensor "), v: plain("heads")},
      ),
    ]
  return (*rows, *_attention_out(out))


def _attention_out(out: str) -> tuple[Row, ...]:
  kernel = {f"{out}.weight": "width (heads head_size) -> heads head_size width"}
  return (
    Row("attention/out/kernel", kernel),
    Row("attention/out/bias", {f"{out}.bias": "width -> width"}),
  )


def top(
  embedding: str, final_norm: str, output: str = "/lm_head", norm_offset: float = 0.0
) -> tuple[Row, ...]:
  """Embedding, last norm, output and the scalar head."""
  return (
    Row("embed/token", {f"{embedding}.weight": "vocab embed -> vocab embed"}),
    Row("output/token", {f"{output}.weight": "vocab embed -> vocab embed"}),
    *norm("final_norm", final_norm, norm_offset),
    Row("head/kernel", {"/score.weight": "one width -> width one"}),
  )


def _position_table(tensor: str) -> Row:
  return Row("embed/position", {f"{tensor}.weight": "positions width -> positions width"})


# ----------------------------------------------------------------------------- GPT-2


def _read_gpt2(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  return _all_heads(fields, found) | dict(
    mlp_width=fields.size("n_inner", 4 * found["width"]),
    norm="layer",
    attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
  )


def _write_gpt2(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "n_inner": cfg.mlp_width,
    "scale_attn_weights": _meaning(cfg)["attention_scale"] != 1.0,
  }


GPT2 = Family(
  name="gpt2",
  policy="GPT2LMHeadModel",
  reward="GPT2ForSequenceClassification",
  prefix="transformer.",
  layer="h.{}.",
  top=(*top("wte", "ln_f"), _position_table("wpe")),
  rows=(
    *norm("attention_norm", "ln_1"),
    *norm("mlp_norm", "ln_2"),
    # GPT-2's matrices (Conv1D) are not transposed.
    Row(
      "attention/qkv/kernel",
      {"attn.c_attn.weight": "width (qkv heads head_size) -> width qkv heads head_size"},
    ),
    Row("attention/qkv/bias", {"attn.c_attn.bias": "(qkv heads head_size) -> qkv heads head_size"}),
    Row(
      "attention/out/kernel",
      {"attn.c_proj.weight": "(heads head_size) width -> heads head_size width"},
    ),
    Row("attention/out/bias", {"attn.c_proj.bias": "width -> width"}),
    Row("mlp/in/kernel", {"mlp.c_fc.weight": "width mlp -> width mlp"}),
    Row("mlp/in/bias", {"mlp.c_fc.bias": "mlp -> mlp"}),
    Row("mlp/out/kernel", {"mlp.c_proj.weight": "mlp width -> mlp width"}),
    Row("mlp/out/bias", {"mlp.c_proj.bias": "width -> width"}),
  ),
  fields=dict(
    num_layers=("n_layer", 12),
    num_heads=("n_head", 12),
    width=("n_embd", 768),
    context_length=("n_positions", 1024),
    norm_eps=("layer_norm_epsilon", 1e-5),
    init_std=("initializer_range", 0.02),
    tied_output=("tie_word_embeddings", True),
  ),
  activations=("activation_function", "gelu_new", _GELUS),
  fixed={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
  ignored=(r"h\.\d+\.attn\.(bias|masked_bias)",),
  read=_read_gpt2,
  write=_write_gpt2,
)


# ----------------------------------------------------------------------------- OPT


def _read_opt(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  before = fields.flag("do_layer_norm_before", True)
  embed_width = fields.size("word_embed_proj_dim", found["width"])
  return _all_heads(fields, found) | dict(
    position_offset=2,
    norm="layer",
    norm_eps=1e-5,
    norm_placement="pre" if before else "post",
    final_norm=before and not fields.flag("_remove_final_layer_norm", False),
    embed_width=None if embed_width == found["width"] else embed_width,
  )


def _write_opt(cfg: ModelConfig) -> dict[str, Any]:
  before = cfg.norm_placement != "post"
  return {
    "do_layer_norm_before": before,
    "_remove_final_layer_norm": before and not cfg.final_norm,
    "word_embed_proj_dim": cfg.width if cfg.embed_width is None else cfg.embed_width,
  }


OPT = Family(
  name="opt",
  policy="OPTForCausalLM",
  reward="OPTForSequenceClassification",
  prefix="model.",
  layer="decoder.layers.{}.",
  top=(
    *top("decoder.embed_tokens", "decoder.final_layer_norm"),
    _position_table("decoder.embed_positions"),
    Row("embed/project/kernel", {"decoder.project_in.weight": "width embed -> embed width"}),
    Row("output/project/kernel", {"decoder.project_out.weight": "embed width -> width embed"}),
  ),
  rows=(
    *norm("attention_norm", "self_attn_layer_norm"),
    *norm("mlp_norm", "final_layer_norm"),
    *attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    *linear("mlp/in", "fc1", "width", "mlp"),
    *linear("mlp/out", "fc2", "mlp", "width"),
  ),
  fields=dict(
    num_layers=("num_hidden_layers", 12),
    num_heads=("num_attention_heads", 12),
    width=("hidden_size", 768),
    mlp_width=("ffn_dim", 3072),
    context_length=("max_position_embeddings", 2048),
    init_std=("init_std", 0.02),
    qkv_bias=("enable_bias", True),
    attention_out_bias=("enable_bias", True),
    mlp_bias=("enable_bias", True),
    tied_output=("tie_word_embeddings", True),
  ),
  activations=("activation_function", "relu", _GELUS),
  fixed={"layer_norm_elementwise_affine": True},
  read=_read_opt,
  write=_write_opt,
)


# ----------------------------------------------------------------------------- GPT-NeoX


def _read_neox(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  rope = _read_only_rope(fields, found, "rotary_emb_base", "rotary_pct", 0.25)
  return rope | _all_heads(fields, found) | dict(norm="layer")


def _write_neox(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "rotary_emb_base": cfg.rope_base,
    "rotary_pct": cfg.rope_fraction,
    "rope_scaling": _write_rope_scaling(cfg),
  }


GPT_NEOX = Family(
  name="gpt_neox",
  policy="GPTNeoXForCausalLM",
  reward="GPTNeoXForSequenceClassification",
  prefix="gpt_neox.",
  layer="layers.{}.",
  top=top("embed_in", "final_layer_norm", "/embed_out"),
  rows=(
    *norm("attention_norm", "input_layernorm"),
    *norm("mlp_norm", "post_attention_layernorm"),
    # Query, key and value of a head are adjacent.
    Row(
      "attention/qkv/kernel",
      {
        "attention.query_key_value.weight": (
          "(heads qkv head_size) width -> width qkv heads head_size"
        )
      },
    ),
    Row(
      "attention/qkv/bias",
      {"attention.query_key_value.bias": "(heads qkv head_size) -> qkv heads head_size"},
    ),
    *_attention_out("attention.dense"),
    *linear("mlp/in", "mlp.dense_h_to_4h", "width", "mlp"),
    *linear("mlp/out", "mlp.dense_4h_to_h", "mlp", "width"),
  ),
  fields=_usual_fields(
    (44, 64, 6144, 24576, 2048),
    norm_eps=("layer_norm_eps", 1e-5),
    attention_out_bias=("attention_bias", True),
    qkv_bias=("attention_bias", True),
    parallel_residual=("use_parallel_residual", True),
  ),
  activations=("hidden_act", "gelu", _GELUS),
  ignored=(
    r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    r"rotary_emb\.inv_freq",
  ),
  read=_read_neox,
  write=_write_neox,
)


# ----------------------------------------------------------------------------- Llama and relatives


def _read_gated(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  """What Llama, Mistral, Qwen and Gemma have in common."""
  return dict(
    num_kv_heads=fields.size("num_key_value_heads", found["num_heads"]),
    head_size=fields.size("head_dim", found["width"] // found["num_heads"]),
    norm="rms",
    mlp_bias=False,
  )


def _read_llama(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  rope = _read_only_rope(fields, found, "rope_theta", "partial_rotary_factor", 1.0)
  if rope["rope_fraction"] != 1.0:
    fields.refuse("partial_rotary_factor", rope["rope_fraction"], "1.0")
  return rope | _read_gated(fields, found)


def _write_llama(cfg: ModelConfig) -> dict[str, Any]:
  return {
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_size,
    "rope_theta": cfg.rope_base,
    "rope_scaling": _write_rope_scaling(cfg),
  }


# Biases of the query, key, value and output projections.
_ATTENTION_BIAS = dict(
  attention_out_bias=("attention_bias", False), qkv_bias=("attention_bias", False)
)

LLAMA = Family(
  name="llama",
  policy="LlamaForCausalLM",
  reward="LlamaForSequenceClassification",
  prefix="model.",
  layer="layers.{}.",
  top=top("embed_tokens", "norm"),
  rows=(
    *norm("attention_norm", "input_layernorm"),
    *norm("mlp_norm", "post_attention_layernorm"),
    *attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *norm("attention/q_norm", "self_attn.q_norm", axis="head_size"),
    *norm("attention/k_norm", "self_attn.k_norm", axis="head_size"),
    *linear("mlp/gate", "mlp.gate_proj", "width", "mlp"),
    *linear("mlp/in", "mlp.up_proj", "width", "mlp"),
    *linear("mlp/out", "mlp.down_proj", "mlp", "width"),
  ),
  fields=_usual_fields(
    (32, 32, 4096, 11008, 2048), **_ATTENTION_BIAS, mlp_bias=("mlp_bias", False)
  ),
  activations=("hidden_act", "silu", _GATED),
  ignored=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"rotary_emb\.inv_freq"),
  read=lambda fields, found: _read_llama(fields, found) | dict(mlp_bias=found["mlp_bias"]),
  write=_write_llama,
)


def _read_mistral(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  # An absent window is Mistral 7B's, and null means none; `Fields.get` cannot tell them apart.
  has_window = fields.values.get("sliding_window", 4096) is not None
  window = fields.size("sliding_window", 4096) if has_window else None
  kinds = ["dense" if window is None else "banded"] * found["num_layers"]
  return (
    _read_llama(fields, found)
    | dict(qkv_bias=False, attention_out_bias=False)
    | _read_layers(fields, found["num_layers"], kinds, window)
  )


MISTRAL = dataclasses.replace(
  LLAMA,
  name="mistral",
  policy="MistralForCausalLM",
  reward="MistralForSequenceClassification",
  fields=_usual_fields((32, 32, 4096, 14336, 131_072)),
  defaults={"num_key_value_heads": 8},
  read=_read_mistral,
  write=lambda cfg: _write_llama(cfg) | {"sliding_window": cfg.band_width},
)


# ----------------------------------------------------------------------------- Qwen


def _read_qwen(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  """What Qwen 2 and 3 share: layers from `max_window_layers` on have a window, if any has."""
  window, num_layers = None, found["num_layers"]
  if fields.flag("use_sliding_window", False):
    window = fields.size("sliding_window", 4096)
  first = fields.size("max_window_layers", 28, low=0) if window is not None else num_layers
  kinds = ["banded" if layer >= first else "dense" for layer in range(num_layers)]
  return _read_llama(fields, found) | _read_layers(fields, num_layers, kinds, window)


def _write_qwen(cfg: ModelConfig) -> dict[str, Any]:
  kinds = layer_kinds(cfg)
  banded = "banded" in kinds
  return _write_llama(cfg) | {
    "use_sliding_window": banded,
    "sliding_window": cfg.band_width if banded else None,
    "max_window_layers": kinds.index("banded") if banded else cfg.num_layers,
    "layer_types": _write_layers(cfg),
  }


QWEN2 = dataclasses.replace(
  LLAMA,
  name="qwen2",
  policy="Qwen2ForCausalLM",
  reward="Qwen2ForSequenceClassification",
  fields=_usual_fields((32, 32, 4096, 22016, 32_768)),
  read=lambda fields, found: (
    _read_qwen(fields, found) | dict(qkv_bias=True, attention_out_bias=False)
  ),
  write=_write_qwen,
)
QWEN3 = dataclasses.replace(
  QWEN2,
  name="qwen3",
  policy="Qwen3ForCausalLM",
  reward="Qwen3ForSequenceClassification",
  fields=_usual_fields((32, 32, 4096, 22016, 32_768), **_ATTENTION_BIAS),
  defaults={"head_dim": 128},
  read=lambda fields, found: _read_qwen(fields, found) | dict(qk_norm=True),
)


# ----------------------------------------------------------------------------- Gemma 3


def _read_gemma3(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  num_layers, context_length = found["num_layers"], found["context_length"]
  period = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
  kinds = ["banded" if (layer + 1) % period else "dense" for layer in range(num_layers)]
  layers = _read_layers(fields, num_layers, kinds, fields.size("sliding_window", 4096))
  # Each kind of layer has its own positions: newer releases nest two groups, older ones give a
  # second base.
  nested = Fields(fields.group("rope_parameters"), f"{fields.where}: rope_parameters")
  local_base = fields.positive("rope_local_base_freq", 10_000.0)
  local = _read_rope(fields, nested.group("sliding_attention"), local_base, 1.0, context_length)
  if local["rope_scaling"] != "none":
    fields.refuse("rope_parameters.sliding_attention.rope_type", local["rope_scaling"], "default")
  dense = {**nested.group("full_attention"), **fields.group("rope_scaling")}
  base = fields.positive("rope_theta", 1_000_000.0)
  return (
    _read_rope(fields, dense, base, 1.0, context_length)
    | _read_gated(fields, found)
    | layers
    | dict(
      band_rope_base=local["rope_base"] if layers["band_width"] is not None else None,
      norm_offset=1.0,
      norm_placement="sandwich",
      qk_norm=True,
      embed_scale=found["width"] ** 0.5,
      attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    )
  )


def _write_gemma3(cfg: ModelConfig) -> dict[str, Any]:
  meaning = _meaning(cfg)
  return _write_llama(cfg) | {
    "query_pre_attn_scalar": round(meaning["attention_scale"] ** -2),
    "rope_local_base_freq": meaning["band_rope_base"],
    "sliding_window": cfg.band_width,
    "layer_types": _write_layers(cfg),
  }


GEMMA3 = dataclasses.replace(
  LLAMA,
  name="gemma3_text",
  policy="Gemma3ForCausalLM",
  reward="Gemma3TextForSequenceClassification",
  rows=(
    *norm("attention_norm", "input_layernorm"),
    *norm("attention_post_norm", "post_attention_layernorm"),
    *norm("mlp_norm", "pre_feedforward_layernorm"),
    *norm("mlp_post_norm", "post_feedforward_layernorm"),
    *(row for row in LLAMA.rows if row.leaf.startswith(("attention/", "mlp/"))),
  ),
  fields=_usual_fields(
    (26, 8, 2304, 9216, 131_072), **_ATTENTION_BIAS, tied_output=("tie_word_embeddings", True)
  ),
  activations=("hidden_activation", "gelu_pytorch_tanh", _GATED),
  defaults={"head_dim": 256, "num_key_value_heads": 4},
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
    ValueError: it names none, or an unknown one.
  """
  if model_type == "gemma3":
    raise ValueError(
      f"{where}: model_type 'gemma3' reads images too; save its language model alone (gemma3_text)"
    )
  if not isinstance(model_type, str) or model_type not in FAMILIES:
    raise ValueError(
      f"{where}: model_type is {model_type!r}; the known architectures are {', '.join(FAMILIES)}"
    )
  return FAMILIES[model_type]
