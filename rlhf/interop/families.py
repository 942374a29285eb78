"""The families of models that others publish: what their `config.json` says, and which tensors of
their files hold which leaves of ours.

A family is one table of `families.yaml`, and two functions for what a table cannot say.  Its rows
cover every variant (with biases or without, shared key heads or not): our own parameter tree, which
follows from `ModelConfig`, says which rows are used.  Reading and writing use the same rows.  A
config that our model cannot express is refused, naming the field; whether a model of ours can be
written as a family is decided by writing its config and reading that back.

Source of names and meanings: the modeling and configuration files of `transformers`.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

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
  """One architecture; see `families.yaml` for what is not listed here.

  Attributes:
    name: `model_type` of its `config.json`.
    rows: leaf -> where it is in a file.
    read: our other fields, from a config and the fields that are already read.
    write: the fields of a config that `fields` and `written` do not give, from ours.
  """

  name: str
  policy: str
  reward: str
  prefix: str
  layer: str
  rows: Mapping[str, Row]
  fields: Mapping[str, tuple[str, Any]]
  activations: tuple[str, str, Mapping[str, str]]
  model: Mapping[str, Any]
  defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ignored: Sequence[str] = ()
  written: Mapping[str, str] = dataclasses.field(default_factory=dict)
  read: Callable[[Fields, dict[str, Any]], dict[str, Any]]
  write: Callable[[ModelConfig], dict[str, Any]] | None = None

  def model_fields(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of our `ModelConfig`, except `compute`, vocabulary and padding.

    Raises:
      ValueError: a field is missing, or has a value that our model cannot express.
    """
    fields = Fields({**self.defaults, **values}, where)
    for name, allowed in {**_FIXED, **self.fixed}.items():
      if fields.get(name, allowed) != allowed:
        fields.refuse(name, values[name], repr(allowed))
    found = self.table_fields(fields) | {"activation": fields.choose(*self.activations)}
    return UNSET | found | self.read(fields, found)

  def table_fields(self, fields: Fields) -> dict[str, Any]:
    """The fields of ours that `model` and `fields` of the table give."""
    found = dict(self.model)
    readers: dict[Any, Callable] = {bool: fields.flag, int: fields.size}
    types = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    for ours, (theirs, default) in self.fields.items():
      found[ours] = readers.get(types[ours], fields.number)(theirs, default)
    return found

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
        **{theirs: getattr(cfg, ours) for theirs, ours in self.written.items()},
      }
      if cfg.positions == "rotary":
        written["rope_scaling"] = _write_rope_scaling(cfg)
      if self.write is not None:
        written |= self.write(cfg)
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


# rope_scaling -> our field -> its name in a config.
_SCALING = {"none": {}, "linear": {"rope_factor": "factor"}}
_SCALING["llama3"] = {
  "rope_factor": "factor",
  "rope_low_freq_factor": "low_freq_factor",
  "rope_high_freq_factor": "high_freq_factor",
}
_ROPE_CONTEXT = "original_max_position_embeddings"
_LAYER_TYPES = {"full_attention": "dense", "sliding_attention": "banded"}


def shortest_pattern(kinds: Sequence[str]) -> str:
  """The shortest `layer_pattern` that gives these kinds when it is repeated and cut off."""
  size = next(
    size
    for size in range(1, len(kinds) + 1)
    if all(kind == kinds[i % size] for i, kind in enumerate(kinds))
  )
  return ",".join(kinds[:size])


def _read_layers(fields: Fields, kinds: Sequence[str], band_width: int | None) -> dict[str, Any]:
  """layer_pattern and band_width from `layer_types`, if present, else from the family's `kinds`."""
  types = fields.get("layer_types", None)
  if types is not None:
    if not isinstance(types, list) or len(types) != len(kinds):
      raise ValueError(
        f"{fields.where}: layer_types is {types!r}; it must be a list of the kinds "
        f"of all {len(kinds)} layers"
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
    rope_scaling="none" if kind == "default" else kind,
  )
  for ours, theirs in _SCALING[found["rope_scaling"]].items():
    found[ours] = float(rope.positive(theirs, None))
  if kind == "llama3":
    found["rope_original_context"] = rope.size(_ROPE_CONTEXT, context_length)
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
  written = {theirs: getattr(cfg, ours) for ours, theirs in _SCALING[cfg.rope_scaling].items()}
  if cfg.rope_scaling == "llama3":
    written[_ROPE_CONTEXT] = cfg.rope_original_context
  return {"rope_type": cfg.rope_scaling, **written}


def _all_heads(fields: Fields, found: Mapping[str, Any]) -> dict[str, Any]:
  """The heads of a family without shared key heads or a head size of its own."""
  num_heads, width = found["num_heads"], found["width"]
  if width % num_heads:
    raise ValueError(
      f"{fields.where}: its {num_heads} heads do not divide its width of {width}; they must"
    )
  return dict(num_kv_heads=num_heads, head_size=width // num_heads)


# ----------------------------------------------------------------------------- families


def _read_gpt2(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  return _all_heads(fields, found) | dict(
    mlp_width=fields.size("n_inner", 4 * found["width"]),
    attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
  )


def _write_gpt2(cfg: ModelConfig) -> dict[str, Any]:
  return {"scale_attn_weights": _meaning(cfg)["attention_scale"] != 1.0}


def _read_opt(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  before = fields.flag("do_layer_norm_before", True)
  embed_width = fields.size("word_embed_proj_dim", found["width"])
  return _all_heads(fields, found) | dict(
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


def _read_neox(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  rope = _read_only_rope(fields, found, "rotary_emb_base", "rotary_pct", 0.25)
  return rope | _all_heads(fields, found)


def _read_gated(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  """What Llama, Mistral, Qwen and Gemma have in common."""
  return dict(
    num_kv_heads=fields.size("num_key_value_heads", found["num_heads"]),
    head_size=fields.size("head_dim", found["width"] // found["num_heads"]),
  )


def _read_llama(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  rope = _read_only_rope(fields, found, "rope_theta", "partial_rotary_factor", 1.0)
  if rope["rope_fraction"] != 1.0:
    fields.refuse("partial_rotary_factor", rope["rope_fraction"], "1.0")
  return rope | _read_gated(fields, found)


def _read_mistral(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  # An absent window is Mistral 7B's, and null means none; `Fields.get` cannot tell them apart.
  has_window = fields.values.get("sliding_window", 4096) is not None
  window = fields.size("sliding_window", 4096) if has_window else None
  kinds = ["dense" if window is None else "banded"] * found["num_layers"]
  return _read_llama(fields, found) | _read_layers(fields, kinds, window)


def _read_qwen(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  """What Qwen 2 and 3 share: layers from `max_window_layers` on have a window, if any has."""
  window, num_layers = None, found["num_layers"]
  if fields.flag("use_sliding_window", False):
    window = fields.size("sliding_window", 4096)
  first = fields.size("max_window_layers", 28, low=0) if window is not None else num_layers
  kinds = ["banded" if layer >= first else "dense" for layer in range(num_layers)]
  return _read_llama(fields, found) | _read_layers(fields, kinds, window)


def _write_qwen(cfg: ModelConfig) -> dict[str, Any]:
  kinds = layer_kinds(cfg)
  banded = "banded" in kinds
  return {
    "use_sliding_window": banded,
    "sliding_window": cfg.band_width if banded else None,
    "max_window_layers": kinds.index("banded") if banded else cfg.num_layers,
    "layer_types": _write_layers(cfg),
  }


def _read_gemma3(fields: Fields, found: dict[str, Any]) -> dict[str, Any]:
  num_layers, context_length = found["num_layers"], found["context_length"]
  period = fields.size("sliding_window_pattern", fields.size("_sliding_window_pattern", 6))
  kinds = ["banded" if (layer + 1) % period else "dense" for layer in range(num_layers)]
  layers = _read_layers(fields, kinds, fields.size("sliding_window", 4096))
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
      embed_scale=found["width"] ** 0.5,
      attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
    )
  )


def _write_gemma3(cfg: ModelConfig) -> dict[str, Any]:
  meaning = _meaning(cfg)
  return {
    "query_pre_attn_scalar": round(meaning["attention_scale"] ** -2),
    "rope_local_base_freq": meaning["band_rope_base"],
    "layer_types": _write_layers(cfg),
  }


# ----------------------------------------------------------------------------- the list

_FUNCTIONS: dict[str, tuple[Callable, Callable | None]] = {
  "gpt2": (_read_gpt2, _write_gpt2),
  "opt": (_read_opt, _write_opt),
  "gpt_neox": (_read_neox, None),
  "llama": (_read_llama, None),
  "mistral": (_read_mistral, None),
  "qwen2": (_read_qwen, _write_qwen),
  "qwen3": (_read_qwen, _write_qwen),
  "gemma3_text": (_read_gemma3, _write_gemma3),
}


def _rows(
  names: Mapping[str, str | list[str]], layouts: Mapping[str, str | list[str]], norm_offset: float
) -> dict[str, Row]:
  """The rows of the modules that a family names."""
  rows = {}
  for leaf, layout in layouts.items():
    tensors = names.get(leaf, names.get(leaf.rpartition("/")[0], []))
    tensors = [tensors] if isinstance(tensors, str) else tensors
    layout = [layout] * len(tensors) if isinstance(layout, str) else layout
    suffix = "bias" if leaf.endswith("/bias") else "weight"
    if tensors:
      named = {f"{name}.{suffix}": part for name, part in zip(tensors, layout, strict=True)}
      rows[leaf] = Row(leaf, named, norm_offset if leaf.endswith("/scale") else 0.0)
  return rows


@functools.cache
def known(files: str = "hugging_face") -> dict[str, Family]:
  """`model_type` of a `config.json` -> its family; with "gguf", architecture of a file -> family."""
  tables = yaml.safe_load(pathlib.Path(__file__).with_name("families.yaml").read_text("utf-8"))
  families = {}
  for name, table in tables[files].items():
    layouts = tables["layouts"] | table.pop("layouts", {})
    rows = _rows(table.pop("names"), layouts, table.pop("norm_offset", 0.0))
    table = {"name": name, "rows": rows, **table}
    read, write = _FUNCTIONS[table["name"]]
    families[name] = Family(**table, read=read, write=write)
  return families


def find(model_type: Any, where: str) -> Family:
  """The family that a `config.json` names.  Raises ValueError for none or an unknown one."""
  if model_type == "gemma3":
    raise ValueError(
      f"{where}: model_type 'gemma3' reads images too; save its language model alone (gemma3_text)"
    )
  if not isinstance(model_type, str) or model_type not in known():
    raise ValueError(
      f"{where}: model_type is {model_type!r}; the known architectures are {', '.join(known())}"
    )
  return known()[model_type]
