"""Small random models of every family, made by `transformers` in the real format.

  python -m tests.interop_models      writes tests/golden/interop/ anew (needs torch, transformers)

Every option of a family's config that our model can express differs from its default in at least
one of the family's models, and norms, biases and offsets are random: what is left out of a mapping,
or put in the wrong place, moves the logits.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import tokenizers

GOLDEN = pathlib.Path(__file__).parent / "golden" / "interop"
NUM_WORDS = 56  # ids of the tokenizer; embeddings have a few rows more
NUM_ROWS = 61
EOS, PAD, BOS = 2, 3, 1

_COMMON = dict(
  vocab_size=NUM_ROWS, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.05
)
_GATED = dict(
  _COMMON,
  num_attention_heads=4,
  num_key_value_heads=2,
  hidden_size=16,
  intermediate_size=20,
  num_hidden_layers=3,
  head_dim=6,
  max_position_embeddings=40,
  rms_norm_eps=1e-3,
)
_LLAMA3 = dict(
  rope_type="llama3",
  rope_theta=500.0,
  factor=4.0,
  low_freq_factor=1.5,
  high_freq_factor=3.0,
  original_max_position_embeddings=16,
)
_OPT = dict(
  {name: value for name, value in _COMMON.items() if name != "initializer_range"},
  hidden_size=16,
  num_hidden_layers=3,
  ffn_dim=20,
  num_attention_heads=4,
  max_position_embeddings=40,
  init_std=0.05,
)
# name: (class of the config, its arguments)
MODELS = {
  "gpt2": (
    "GPT2Config",
    dict(
      _COMMON,
      n_positions=40,
      n_embd=16,
      n_layer=3,
      n_head=4,
      n_inner=20,
      activation_function="gelu",
      layer_norm_epsilon=1e-3,
    ),
  ),
  "gpt2_untied": (
    "GPT2Config",
    dict(
      _COMMON,
      n_positions=40,
      n_embd=16,
      n_layer=3,
      n_head=4,
      scale_attn_weights=False,
      activation_function="relu",
      tie_word_embeddings=False,
    ),
  ),
  "opt": (
    "OPTConfig",
    dict(_OPT, activation_function="gelu", enable_bias=False, tie_word_embeddings=False),
  ),
  "opt_350m": ("OPTConfig", dict(_OPT, do_layer_norm_before=False, word_embed_proj_dim=8)),
  "opt_no_final_norm": ("OPTConfig", dict(_OPT, _remove_final_layer_norm=True)),
  "gpt_neox": (
    "GPTNeoXConfig",
    dict(
      _COMMON,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=20,
      hidden_act="gelu_new",
      max_position_embeddings=40,
      layer_norm_eps=1e-3,
      rope_parameters=dict(
        rope_type="linear", factor=2.0, rope_theta=500.0, partial_rotary_factor=0.5
      ),
    ),
  ),
  "gpt_neox_sequential": (
    "GPTNeoXConfig",
    dict(
      _COMMON,
      hidden_size=32,
      num_hidden_layers=2,
      num_attention_heads=4,
      intermediate_size=20,
      max_position_embeddings=40,
      use_parallel_residual=False,
      attention_bias=False,
      tie_word_embeddings=True,
    ),
  ),
  "llama": (
    "LlamaConfig",
    dict(_GATED, rope_parameters=_LLAMA3, attention_bias=True, mlp_bias=True),
  ),
  "llama_tied": (
    "LlamaConfig",
    dict(
      _GATED | dict(num_key_value_heads=4),
      tie_word_embeddings=True,
      hidden_act="gelu_pytorch_tanh",
      rope_parameters=dict(rope_type="linear", factor=3.0, rope_theta=300.0),
    ),
  ),
  "mistral": (
    "MistralConfig",
    dict(_GATED, sliding_window=5, rope_parameters=dict(rope_type="default", rope_theta=300.0)),
  ),
  "qwen2": (
    "Qwen2Config",
    dict(
      {name: value for name, value in _GATED.items() if name != "head_dim"},
      use_sliding_window=True,
      sliding_window=5,
      max_window_layers=1,
      tie_word_embeddings=True,
      rope_parameters=dict(rope_type="default", rope_theta=300.0),
    ),
  ),
  "qwen3": (
    "Qwen3Config",
    dict(
      _GATED,
      use_sliding_window=True,
      sliding_window=5,
      attention_bias=True,
      layer_types=["sliding_attention", "full_attention", "sliding_attention"],
      rope_parameters=dict(rope_type="default", rope_theta=300.0),
    ),
  ),
  "gemma3": (
    "Gemma3TextConfig",
    dict(
      _GATED | dict(num_hidden_layers=4),
      query_pre_attn_scalar=10,
      sliding_window=5,
      attention_bias=True,
      layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
      rope_parameters={
        "full_attention": dict(rope_type="linear", factor=2.0, rope_theta=300.0),
        "sliding_attention": dict(rope_type="default", rope_theta=50.0),
      },
    ),
  ),
}


def make_config(name: str):
  """The `transformers` config of one of `MODELS`."""
  import transformers

  class_name, fields = MODELS[name]
  config = getattr(transformers, class_name)(**fields)
  config._attn_implementation = "eager"
  return config


def randomise(model, seed: int) -> None:
  """Draws every parameter anew, norms and biases too."""
  import torch

  rng = np.random.default_rng(seed)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.tensor(rng.standard_normal(parameter.shape), dtype=torch.float32)
      is_norm = parameter.ndim == 1 and name.endswith("weight")
      parameter.copy_((1.0 if is_norm else 0.0) + 0.3 * noise)


def make_model(name: str, seed: int = 0, *, reward: bool = False):
  """A random model; with `reward` a sequence classifier with one label."""
  import transformers

  config = make_config(name)
  auto = transformers.AutoModelForCausalLM
  if reward:
    config.num_labels = 1
    auto = transformers.AutoModelForSequenceClassification
  model = auto.from_config(config).eval().float()
  randomise(model, seed)
  return model


def save_tokenizer(directory: pathlib.Path) -> None:
  """A tokenizer of words `w4 w5 ...` with special tokens of its own."""
  words = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<pad>": PAD}
  words |= {f"w{number}": number for number in range(len(words), NUM_WORDS)}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  inner.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
  inner.save(str(directory / "tokenizer.json"))
  (directory / "tokenizer_config.json").write_text(
    json.dumps(
      dict(
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
      ),
      indent=2,
    )
    + "\n"
  )


def batch() -> tuple[np.ndarray, np.ndarray]:
  """(tokens, mask) of rows that are padded on the right."""
  rng = np.random.default_rng(7)
  lengths = (13, 5, 9)
  tokens = np.full((len(lengths), max(lengths)), PAD)
  for row, length in zip(tokens, lengths):
    row[:length] = rng.integers(4, NUM_WORDS, length)
  return tokens, (np.arange(max(lengths)) < np.asarray(lengths)[:, None]).astype(np.int64)


def reference_logits(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """What `transformers` makes of a batch, float32; positions count the real tokens."""
  import inspect

  import torch

  extra = {}
  if "position_ids" in inspect.signature(model.forward).parameters:
    extra["position_ids"] = torch.tensor(np.maximum(mask.cumsum(1) - 1, 0))
  with torch.no_grad():
    return (
      model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask), **extra)
      .logits.float()
      .numpy()
    )


def write_golden(name: str) -> None:
  directory = GOLDEN / name
  shutil.rmtree(directory, ignore_errors=True)
  model = make_model(name)
  model.save_pretrained(directory)
  save_tokenizer(directory)
  np.save(directory / "logits.npy", reference_logits(model, *batch()))


if __name__ == "__main__":
  for each in sys.argv[1:] or MODELS:
    write_golden(each)
