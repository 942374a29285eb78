"""Models that others publish: golden logits, parity with `transformers`, round trips, bad files."""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import helpers
import interop_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from interop_models import GOLDEN, MODELS, NUM_ROWS, PAD

from rlhf import checkpoint, metrics, networks, ppo, reward_model, sft, sharding
from rlhf.cli import convert
from rlhf.cli.common import models as cli_models
from rlhf.configs import ppo as ppo_configs
from rlhf.configs import reward_model as reward_configs
from rlhf.configs import sft as sft_configs
from rlhf.inference import sampling
from rlhf.interop import families, layout, reading, writing
from rlhf.interop.layout import Row
from rlhf.model import transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.transformer import ModelConfig

NAMES = tuple(MODELS)


def one_device():
  return sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def eight_devices():
  return sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))


def load(directory, kind: str = "policy", mesh=None, scheme: str = "hf") -> networks.Network:
  mesh = one_device() if mesh is None else mesh
  return networks.load(f"{scheme}:{directory}", ComputeConfig(), mesh, kind=kind, flag="init_from")


def logits_of(network: networks.Network, tokens, mask) -> np.ndarray:
  """Logits of the rows of the file's embedding, without the id of padding, on real tokens."""

  def run(params, tokens, mask):
    return transformer.logits(
      network.cfg, params, transformer.forward(network.cfg, params, tokens, mask)
    )

  out = helpers.quick_jit(run)(network.params, jnp.asarray(tokens), jnp.asarray(mask, jnp.float32))
  return without_padding(np.asarray(out)[..., :NUM_ROWS], mask)


def without_padding(logits: np.ndarray, mask) -> np.ndarray:
  """Ours are -1e30 at the id of padding, which is never sampled."""
  return np.delete(logits, PAD, axis=-1)[mask.astype(bool)]


def export(network: networks.Network, directory, kind: str = "policy", **options) -> None:
  family = writing.choose_family(network.metadata, None)
  writing.write(
    directory, network.cfg, network.params, network.tokenizer, kind=kind, family=family, **options
  )


@functools.cache
def golden(name: str) -> networks.Network:
  return load(GOLDEN / name)


# ----------------------------------------------------------------------------- golden logits


@pytest.mark.parametrize("name", NAMES)
def test_golden_logits(name: str):
  """Made by `python -m tests.interop_models` with `transformers` 5.23; rows padded on the right."""
  tokens, mask = interop_models.batch()
  expected = without_padding(np.load(GOLDEN / name / "logits.npy"), mask)
  np.testing.assert_allclose(logits_of(golden(name), tokens, mask), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "gpt_neox", "opt_350m"])
def test_padding_on_the_left_changes_nothing(name: str):
  tokens, mask = interop_models.batch()
  left = [
    np.stack([np.roll(row, int((1 - row_mask).sum())) for row, row_mask in zip(x, mask)])
    for x in (tokens, mask)
  ]
  expected = without_padding(np.load(GOLDEN / name / "logits.npy"), mask)
  np.testing.assert_allclose(logits_of(golden(name), *left), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "opt_350m", "gpt2_untied", "gpt_neox"])
def test_shards_are_what_the_whole_is(name: str):
  """Every leaf over 8 devices, read slice by slice, is bit for bit the leaf read at once."""
  split = load(GOLDEN / name, mesh=eight_devices())
  for ours, whole in zip(
    jax.tree.leaves(split.params), jax.tree.leaves(golden(name).params), strict=True
  ):
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(whole))
  kernel = reading.named_leaves(split.params)["blocks/layer_0/mlp/in/kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_floating_dtype_is_read_as_float32(dtype: str, tmp_path):
  published = copied("llama", tmp_path / "in")
  change_tensors(
    published,
    lambda tensors: tensors.update(
      {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    ),
  )
  for ours, whole in zip(
    jax.tree.leaves(load(published).params), jax.tree.leaves(golden("llama").params), strict=True
  ):
    np.testing.assert_array_equal(ours, np.asarray(whole).astype(dtype).astype(np.float32))


# ----------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("name", NAMES)
def test_import_and_export_give_the_same_tensors(name: str, tmp_path):
  export(golden(name), tmp_path / "out")
  before = safetensors.numpy.load_file(GOLDEN / name / "model.safetensors")
  after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert before.keys() == after.keys()
  for tensor in before:
    np.testing.assert_array_equal(before[tensor], after[tensor], err_msg=tensor)
  again = reading.open_source(f"hf:{tmp_path / 'out'}")
  meaning = lambda fields: families._meaning(ModelConfig(**fields))
  assert meaning(again.model) == meaning(reading.open_source(f"hf:{GOLDEN / name}").model)
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert (
    config["vocab_size"],
    config["eos_token_id"],
    config["pad_token_id"],
    config["bos_token_id"],
  ) == (NUM_ROWS, interop_models.EOS, PAD, interop_models.BOS)
  generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert generation["eos_token_id"] == interop_models.EOS


def test_a_padding_row_of_ours_is_not_exported(tmp_path):
  """Without padding of its own a model pads with a row behind its embedding, and logits stay."""
  published = copied("llama", tmp_path / "in")
  settings = json.loads((published / "tokenizer_config.json").read_text())
  (published / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "</s>"}))
  network = load(published)
  assert (network.cfg.pad_id, network.cfg.vocab_size) == (NUM_ROWS, NUM_ROWS + 1)
  export(network, tmp_path / "out")
  after = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
  assert after["model.embed_tokens.weight"].shape[0] == NUM_ROWS
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["vocab_size"] == NUM_ROWS
  assert config["pad_token_id"] == interop_models.EOS
  assert load(tmp_path / "out").cfg == network.cfg


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
  before = os.umask(0o027)
  try:
    export(golden("llama"), tmp_path / "out", shard_bytes=8_000)
    export(golden("llama"), tmp_path / "one")
  finally:
    os.umask(before)
  for path in [*(tmp_path / "out").iterdir(), *(tmp_path / "one").iterdir()]:
    assert path.stat().st_mode & 0o777 == 0o640, path.name


def test_large_exports_are_several_files(tmp_path):
  export(golden("llama"), tmp_path / "out", shard_bytes=8_000)
  files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  before = safetensors.numpy.load_file(GOLDEN / "llama" / "model.safetensors")
  assert index["weight_map"].keys() == before.keys()
  assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in before.values())
  for ours, theirs in zip(
    jax.tree.leaves(load(tmp_path / "out").params),
    jax.tree.leaves(golden("llama").params),
    strict=True,
  ):
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def reward_network(name: str, bias: float) -> networks.Network:
  network = golden(name)
  head = transformer.init_head(network.cfg, jax.random.key(3))
  return dataclasses.replace(
    network, params=dict(network.params, head=head | {"bias": jnp.asarray([bias])})
  )


@pytest.mark.parametrize("name", ["gpt2_untied", "opt_350m", "gemma3"])
def test_reward_models_keep_head_and_offset(name: str, tmp_path):
  """The head's bias, which no family's `score` has, is the field score_bias of config.json."""
  network = reward_network(name, -0.75)
  export(network, tmp_path / "out", kind="reward")
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["score_bias"] == -0.75 and config["id2label"] == {"0": "LABEL_0"}
  assert config["architectures"][0].endswith("ForSequenceClassification")
  again = load(tmp_path / "out", kind="reward")
  tokens, mask = interop_models.batch()
  score = lambda n: helpers.quick_jit(functools.partial(transformer.scores, n.cfg))(
    n.params, jnp.asarray(tokens), jnp.asarray(mask, jnp.float32)
  )
  np.testing.assert_allclose(score(again), score(network), atol=1e-6)


def test_a_classifier_never_pads_with_end_of_text(tmp_path):
  """`transformers` scores the last token that is not padding; answers end in end-of-text."""
  published = copied("llama", tmp_path / "in")
  settings = json.loads((published / "tokenizer_config.json").read_text())
  del settings["pad_token"]
  (published / "tokenizer_config.json").write_text(json.dumps(settings))
  network = load(published)
  head = transformer.init_head(network.cfg, jax.random.key(0))
  export(
    dataclasses.replace(network, params=dict(network.params, head=head)),
    tmp_path / "out",
    kind="reward",
  )
  config = json.loads((tmp_path / "out" / "config.json").read_text())
  assert config["pad_token_id"] == interop_models.NUM_WORDS < config["vocab_size"] == NUM_ROWS
  settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
  assert (settings["pad_token"], settings["padding_row"]) == ("<|pad|>", NUM_ROWS)
  again = load(tmp_path / "out", kind="reward")
  assert (again.cfg.pad_id, again.cfg.vocab_size) == (NUM_ROWS, NUM_ROWS + 1)
  assert again.tokenizer.fingerprint == network.tokenizer.fingerprint


@pytest.mark.parametrize("spare", [True, False], ids=["rows to spare", "as many rows as words"])
def test_a_policy_and_a_reward_model_that_were_exported_agree_on_padding(spare: bool, tmp_path):
  """Their files differ, as `transformers` needs it; PPO needs one tokenizer."""
  published = copied("llama", tmp_path / "in")
  settings = json.loads((published / "tokenizer_config.json").read_text())
  (published / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "</s>"}))
  if not spare:
    change_tensors(
      published,
      lambda t: t.update(
        {
          name: t[name][: interop_models.NUM_WORDS]
          for name in ("model.embed_tokens.weight", "lm_head.weight")
        }
      ),
    )
  network = load(published)
  head = transformer.init_head(network.cfg, jax.random.key(0))
  export(network, tmp_path / "policy")
  export(
    dataclasses.replace(network, params=dict(network.params, head=head)),
    tmp_path / "reward",
    kind="reward",
  )
  policy, reward = load(tmp_path / "policy"), load(tmp_path / "reward", kind="reward")
  assert policy.tokenizer.fingerprint == network.tokenizer.fingerprint
  for field in ("pad_id", "vocab_size"):
    assert getattr(policy.cfg, field) == getattr(reward.cfg, field) == getattr(network.cfg, field)
  (tmp_path / "prompts.jsonl").write_text(json.dumps(dict(prompt="w4 w5")) + "\n")
  prompts = f"jsonl:{tmp_path / 'prompts.jsonl'}"
  config = imported_config(
    ppo_configs,
    policy_from=f"hf:{tmp_path / 'policy'}",
    reward_from=f"hf:{tmp_path / 'reward'}",
    prompts__train=prompts,
    prompts__valid=prompts,
    ppo__max_prompt_tokens=8,
    ppo__max_response_tokens=8,
    ppo__ptx_length=16,
    ppo__ptx_coef=0.0,
  )
  ppo.check_inputs(config)


@pytest.mark.parametrize(
  "row,message",
  [
    (NUM_ROWS + 1, "has padding_row 62; it must be a whole number from 1 to the 61 rows"),
    ("61", "has padding_row '61'; it must be a whole number"),
    (10, "ids up to 55"),
  ],
)
def test_a_padding_row_that_cannot_be(row, message, tmp_path):
  published = copied("llama", tmp_path / "in")
  settings = json.loads((published / "tokenizer_config.json").read_text())
  (published / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_row": row}))
  with pytest.raises(ValueError, match=message):
    load(published)


@pytest.mark.parametrize("pad", ["<pad>", "</s>", "<|end|>"])
def test_a_chat_model_keeps_the_end_of_its_turn(pad: str, tmp_path):
  """Other programs stop there by generation_config.json, and here it is never padding."""
  published = copied("llama", tmp_path / "in")
  inner = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
  inner.add_special_tokens(["<|end|>"])
  inner.save(str(published / "tokenizer.json"))
  settings = json.loads((published / "tokenizer_config.json").read_text())
  template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
  (published / "tokenizer_config.json").write_text(
    json.dumps(settings | {"pad_token": pad, "chat_template": template})
  )
  network = load(published)
  turn_end = inner.token_to_id("<|end|>")
  assert network.tokenizer.turn_end_id == turn_end != network.tokenizer.pad_id
  export(network, tmp_path / "out")
  for name in ("generation_config.json", "config.json"):
    written = json.loads((tmp_path / "out" / name).read_text())
    assert written["eos_token_id"] == [interop_models.EOS, turn_end]
  again = load(tmp_path / "out")
  assert again.tokenizer.fingerprint == network.tokenizer.fingerprint and again.cfg == network.cfg


def test_models_trained_here_become_gpt2_or_are_refused(tmp_path):
  dense = helpers.model_config(band_width=None)
  assert families.known()["gpt2"].config(dense)["n_layer"] == dense.num_layers
  banded = helpers.model_config()
  with pytest.raises(ValueError, match="gpt2 cannot express band_width 3 .*another --family"):
    families.known()["gpt2"].config(banded)
  with pytest.raises(ValueError, match="cannot be written as llama .activation is 'gelu'"):
    families.known()["llama"].config(dense)
  with pytest.raises(ValueError, match="--family=bert; choose from gpt2, opt, "):
    writing.choose_family({}, "bert")
  with pytest.raises(ValueError, match="a value network has no counterpart"):
    writing.check(dense, kind="value", family=families.known()["gpt2"])


@pytest.mark.parametrize("name", NAMES)
def test_no_other_family_takes_a_model_that_it_cannot_express(name: str):
  """A config that a family writes means the same when it is read back, or it is not written."""
  cfg = golden(name).cfg
  for family in families.known().values():
    try:
      written = family.config(cfg)
    except ValueError as error:
      assert "\n" not in str(error)
      continue
    again = dataclasses.replace(cfg, **family.model_fields(written, family.name))
    assert families._meaning(again) == families._meaning(cfg)


# ----------------------------------------------------------------------------- parts


def test_layouts_read_parts_and_write_wholes():
  rng = np.random.default_rng(0)
  sizes = dict(width=6, heads=4, head_size=4, part=2, frequency=2, qkv=3, vocab=5, embed=6)
  fused = "(heads {}) width -> width tensor heads {}"
  for layouts, shape, leaf_shape in (
    (["(heads qkv head_size) width -> width qkv heads head_size"], (48, 6), (6, 3, 4, 4)),
    (["width (qkv heads head_size) -> width qkv heads head_size"], (6, 48), (6, 3, 4, 4)),
    (
      [
        fused.format("frequency part", "(part frequency)"),
        fused.format("head_size", "head_size"),
      ],
      (16, 6),
      (6, 2, 4, 4),
    ),
    (["vocab embed -> vocab embed"], (5, 6), (8, 6)),
  ):
    row = Row("x", dict(zip("ab", layouts)))
    file = {name: rng.standard_normal(shape).astype(np.float32) for name in row.tensors}
    sizes_read = []

    def read(name, index):
      sizes_read.append(file[name][index].size)
      return file[name][index]

    whole = layout.read_block(row, sizes, [slice(None)] * len(leaf_shape), leaf_shape, read)
    for tensor, written in layout.write_tensors(row, sizes, whole).items():
      np.testing.assert_array_equal(written, file[tensor])
    for _ in range(20):
      index = []
      for axis, size in enumerate(leaf_shape):
        start = int(rng.integers(size))
        last = axis == len(leaf_shape) - 1 and len(leaf_shape) == 4
        index.append(slice(0, size) if last else slice(start, int(rng.integers(start, size)) + 1))
      sizes_read.clear()
      part = layout.read_block(row, sizes, index, leaf_shape, read)
      np.testing.assert_array_equal(part, whole[tuple(index)])
      if "qkv" not in layouts[0]:  # of these, no more than the part is read
        assert sum(sizes_read) <= part.size
  assert not whole[5:].any()


def test_a_pair_of_rotated_dimensions_is_half_a_head_apart():
  """llama.cpp keeps rows 2i and 2i + 1 of a head together; ours are i and i + head_size / 2."""
  row = families.known("gguf")["llama"].rows["attention/q/kernel"]
  file = np.arange(8, dtype=np.float32).reshape(8, 1)
  sizes = dict(heads=1, width=1, part=2, frequency=4)
  leaf = layout.read_block(
    row, sizes, [slice(None)] * 3, (1, 1, 8), lambda name, index: file[index]
  )
  np.testing.assert_array_equal(leaf.ravel(), [0, 2, 4, 6, 1, 3, 5, 7])


@pytest.mark.parametrize(
  "name,newer",
  [
    (
      "llama",
      dict(
        rope_parameters=dict(
          rope_type="llama3",
          rope_theta=500.0,
          factor=4.0,
          low_freq_factor=1.5,
          high_freq_factor=3.0,
          original_max_position_embeddings=16,
        )
      ),
    ),
    (
      "gemma3",
      dict(
        rope_parameters=dict(
          full_attention=dict(rope_type="linear", factor=2.0, rope_theta=300.0),
          sliding_attention=dict(rope_type="default", rope_theta=50.0),
        )
      ),
    ),
    (
      "gpt_neox",
      dict(
        rope_parameters=dict(
          rope_type="linear", factor=2.0, rope_theta=500.0, partial_rotary_factor=0.5
        )
      ),
    ),
  ],
)
def test_older_and_newer_words_for_rotary_positions(name: str, newer: dict):
  older = {
    "llama": dict(
      rope_theta=500.0,
      rope_scaling=dict(
        type="llama3",
        factor=4.0,
        low_freq_factor=1.5,
        high_freq_factor=3.0,
        original_max_position_embeddings=16,
      ),
    ),
    "gemma3": dict(
      rope_theta=300.0, rope_local_base_freq=50.0, rope_scaling=dict(rope_type="linear", factor=2.0)
    ),
    "gpt_neox": dict(
      rotary_emb_base=500, rotary_pct=0.5, rope_scaling=dict(type="linear", factor=2.0)
    ),
  }[name]
  values = json.loads((GOLDEN / name / "config.json").read_text())
  family = families.find(values["model_type"], name)
  assert values["rope_parameters"] == newer["rope_parameters"]
  del values["rope_parameters"]
  assert family.model_fields(values | older, name) == family.model_fields(values | newer, name)


def test_gemma_without_layer_types_has_every_sixth_layer_dense():
  values = json.loads((GOLDEN / "gemma3" / "config.json").read_text()) | dict(num_hidden_layers=18)
  del values["layer_types"], values["_sliding_window_pattern"]
  fields = families.known()["gemma3_text"].model_fields(values, "gemma3")
  assert fields["layer_pattern"] == "banded,banded,banded,banded,banded,dense"


# ----------------------------------------------------------------------------- bad input


def copied(name: str, directory: pathlib.Path) -> pathlib.Path:
  shutil.copytree(GOLDEN / name, directory)
  return directory


def change_config(directory: pathlib.Path, **fields) -> None:
  path = directory / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_tensors(directory: pathlib.Path, change) -> None:
  tensors = safetensors.numpy.load_file(directory / "model.safetensors")
  change(tensors)
  safetensors.numpy.save_file(tensors, directory / "model.safetensors")


def cut_off(directory: pathlib.Path) -> None:
  path = directory / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-100])


def turn_into_pickle(directory: pathlib.Path) -> None:
  (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


LAST = "model.layers.2.mlp.up_proj.weight"
BAD = {
  "cut off": (cut_off, "model.safetensors is not a complete safetensors file"),
  "not safetensors": (lambda d: (d / "model.safetensors").write_text("no"), "is not a complete"),
  "pickle": (turn_into_pickle, "pytorch_model.bin is a pickle"),
  "no config": (lambda d: (d / "config.json").unlink(), "holds no config.json"),
  "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "config.json:1: not JSON"),
  "unknown architecture": (
    lambda d: change_config(d, model_type="mamba"),
    "model_type is 'mamba'; .*gpt2, opt, ",
  ),
  "images": (lambda d: change_config(d, model_type="gemma3"), "reads images too"),
  "yarn": (
    lambda d: change_config(d, rope_parameters=dict(rope_type="yarn", factor=2.0)),
    "rope_type is 'yarn'.*only default, linear and llama3",
  ),
  "activation": (lambda d: change_config(d, hidden_act="relu2"), "hidden_act is 'relu2'"),
  "quantised": (
    lambda d: change_config(d, quantization_config=dict(bits=4)),
    "quantization_config is",
  ),
  "no heads": (
    lambda d: change_config(d, num_attention_heads=0),
    "num_attention_heads is 0; it must be a whole number from 1",
  ),
  "rope is a list": (lambda d: change_config(d, rope_parameters=[1]), "rope_parameters is \\[1\\]"),
  "no number": (lambda d: change_config(d, hidden_size="16"), "hidden_size is '16'"),
  "missing": (lambda d: change_tensors(d, lambda t: t.pop(LAST)), f"missing: {LAST}$"),
  "left over": (
    lambda d: change_tensors(d, lambda t: t.update(extra=t[LAST])),
    "left over: extra$",
  ),
  "wrong shape": (
    lambda d: change_tensors(d, lambda t: t.update({LAST: t[LAST][:7]})),
    rf"of the wrong shape: {LAST} \[7, 16\] \(must be \[20, 16\]\)",
  ),
  "integers": (
    lambda d: change_tensors(d, lambda t: t.update({LAST: t[LAST].astype(np.int8)})),
    f"{LAST} is I8",
  ),
  "tokenizer": (
    lambda d: change_tensors(
      d,
      lambda t: t.update(
        {name: t[name][:50] for name in ("model.embed_tokens.weight", "lm_head.weight")}
      ),
    ),
    "ids up to 55 and the model's embedding 50 rows",
  ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_directories_are_one_sentence(case: str, tmp_path, capsys):
  change, message = BAD[case]
  directory = copied("llama", tmp_path / "in")
  change(directory)
  with pytest.raises(ValueError, match=message) as caught:
    reading.open_source(f"hf:{directory}")
  assert "\n" not in str(caught.value)
  with pytest.raises(SystemExit) as stopped:
    convert.main(["convert", "import", f"--source={directory}", f"--target={tmp_path / 'out'}"])
  assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
  "family,field,value",
  [
    ("gpt2", "scale_attn_by_inverse_layer_idx", True),
    ("gpt2", "add_cross_attention", True),
    ("opt", "layer_norm_elementwise_affine", False),
    ("gemma3", "final_logit_softcapping", 30.0),
    ("gemma3", "attn_logit_softcapping", 50.0),
    ("gemma3", "use_bidirectional_attention", True),
    ("gpt_neox", "hidden_act", "silu"),
    ("qwen2", "layer_types", ["linear_attention"] * 3),
  ],
)
def test_options_that_cannot_be_expressed_are_named(family: str, field: str, value):
  values = json.loads((GOLDEN / family / "config.json").read_text()) | {field: value}
  with pytest.raises(ValueError, match=f"config.json: {field} is ") as caught:
    families.find(values["model_type"], "").model_fields(values, "config.json")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "family,field,value,wanted",
  [
    ("llama", "num_attention_heads", 0, "a whole number from 1"),
    ("llama", "num_attention_heads", 4.0, "a whole number from 1"),
    ("llama", "num_hidden_layers", 2.5, "a whole number from 1"),
    ("llama", "num_hidden_layers", -1, "a whole number from 1"),
    ("llama", "num_key_value_heads", 0, "a whole number from 1"),
    ("llama", "head_dim", 0, "a whole number from 1"),
    ("gpt2", "n_inner", 2.5, "a whole number from 1"),
    ("opt", "word_embed_proj_dim", -8, "a whole number from 1"),
    ("mistral", "sliding_window", "5", "a whole number"),
    ("qwen2", "max_window_layers", -1, "a whole number from 0"),
    ("gemma3", "sliding_window_pattern", 0, "a whole number from 1"),
    ("gemma3", "query_pre_attn_scalar", 0, "a number above 0"),
    ("gemma3", "rms_norm_eps", float("nan"), "a number"),
    ("gpt_neox", "rotary_pct", -0.5, "a number above 0"),
    ("qwen3", "layer_types", 5, "a list of the kinds of all 3 layers"),
    ("qwen3", "layer_types", [["full_attention"]] * 3, "only full_attention and"),
    ("llama", "hidden_act", ["silu"], "a string"),
    ("llama", "model_type", ["llama"], "gpt2"),
    ("llama", "attention_bias", "yes", "true or false"),
    ("llama", "mlp_bias", 1, "true or false"),
    ("llama", "tie_word_embeddings", "true", "true or false"),
    ("gpt2", "scale_attn_weights", "false", "true or false"),
    ("opt", "do_layer_norm_before", 0, "true or false"),
    ("gpt_neox", "use_parallel_residual", [], "true or false"),
  ],
)
def test_damaged_fields_are_one_sentence(family: str, field: str, value, wanted: str, tmp_path):
  directory = copied(family, tmp_path / "in")
  change_config(directory, **{field: value})
  path = directory / "config.json"
  if family == "gpt_neox" and field == "rotary_pct":
    change_config(directory, rope_parameters=None)
  with pytest.raises(ValueError, match=f"^{path}: {field} is .*{wanted}") as caught:
    reading.open_source(f"hf:{directory}")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  "family,fields,message",
  [
    ("llama", dict(num_key_value_heads=3), "num_heads 4 does not divide into groups for"),
    ("gpt2", dict(n_head=5), "its 5 heads do not divide its width of 16; they must"),
    (
      "llama",
      dict(rope_parameters=dict(rope_type=["linear"])),
      r"rotary positions: rope_type is \['linear'\]; it must be a string",
    ),
  ],
)
def test_fields_that_contradict_one_another_are_one_sentence(family, fields, message, tmp_path):
  directory = copied(family, tmp_path / "in")
  change_config(directory, **fields)
  with pytest.raises(ValueError, match=f"^{directory / 'config.json'}: {message}"):
    reading.open_source(f"hf:{directory}")


def test_index_files_that_are_missing_or_elsewhere(tmp_path):
  export(golden("llama"), tmp_path / "out", shard_bytes=8_000)
  index = tmp_path / "out" / "model.safetensors.index.json"
  fields = json.loads(index.read_text())
  fields["weight_map"][LAST] = "../in/model.safetensors"
  index.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="it must name safetensors files beside it"):
    reading.open_source(f"hf:{tmp_path / 'out'}")
  fields["weight_map"][LAST] = "model-00009-of-00009.safetensors"
  index.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match="model-00009-of-00009.safetensors, which is not there"):
    reading.open_source(f"hf:{tmp_path / 'out'}")


def test_a_config_of_another_shape_points_to_imported():
  group = golden("llama").cfg.shape()
  for name in ("vocab_size", "pad_id"):
    del group[name]
  source = f"hf:{GOLDEN / 'llama'}"
  found = networks.find_export(source, kind="policy", flag="init_from", shape=group)
  assert found.kind == "policy"
  with pytest.raises(
    ValueError, match="has mlp_width 20, but config.model.mlp_width is 24; .*:imported"
  ):
    networks.find_export(source, kind="policy", flag="init_from", shape=dict(group, mlp_width=24))
  with pytest.raises(ValueError, match="is a policy model; it must be a reward"):
    networks.find_export(f"hf:{GOLDEN / 'llama'}", kind="reward", flag="reward_from")
  with pytest.raises(ValueError, match="init_from: hf:nowhere: nowhere is no directory"):
    networks.find_export("hf:nowhere", kind="policy", flag="init_from")


def test_a_mesh_that_does_not_divide_is_told_first():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=8, tensor=1))
  with pytest.raises(ValueError, match=r"mlp/out.*|.*does not divide over mesh.tensor 8"):
    load(GOLDEN / "llama", mesh=sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, tensor=8)))
  load(GOLDEN / "llama", mesh=mesh)


# ----------------------------------------------------------------------------- GGUF


def write_gguf(
  path: pathlib.Path,
  *,
  architecture: str = "llama",
  rope_factors=None,
  head_count: int = 4,
  head_count_kv: int = 2,
  block_count: int = 2,
  key_length: int = 6,
) -> None:
  """The golden Llama's shapes as llama.cpp's converter writes them, float32."""
  import gguf

  writer = gguf.GGUFWriter(path, architecture)
  writer.add_context_length(40)
  writer.add_embedding_length(16)
  writer.add_block_count(block_count)
  writer.add_feed_forward_length(20)
  writer.add_head_count(head_count)
  writer.add_head_count_kv(head_count_kv)
  writer.add_key_length(key_length)
  writer.add_rope_freq_base(500.0)
  writer.add_layer_norm_rms_eps(1e-3)
  writer.add_tokenizer_model("gpt2")
  writer.add_tokenizer_pre("gpt-2")
  tokens = ["<unk>", "<s>", "</s>", "<pad>", "a", "b", "ab"]
  writer.add_token_list(tokens)
  writer.add_token_types([2, 3, 3, 3, 1, 1, 1])
  writer.add_token_merges(["a b"])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_pad_token_id(3)
  rng = np.random.default_rng(0)
  shapes = {"token_embd": (9, 16), "output_norm": (16,)}
  for layer in range(2):
    shapes |= {
      f"blk.{layer}.{name}": shape
      for name, shape in dict(
        attn_norm=(16,),
        ffn_norm=(16,),
        attn_q=(24, 16),
        attn_k=(12, 16),
        attn_v=(12, 16),
        attn_output=(16, 24),
        ffn_gate=(20, 16),
        ffn_up=(20, 16),
        ffn_down=(16, 20),
      ).items()
    }
  for name, shape in shapes.items():
    writer.add_tensor(f"{name}.weight", rng.standard_normal(shape).astype(np.float32))
  if rope_factors is not None:
    writer.add_tensor("rope_freqs.weight", np.asarray(rope_factors, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def test_gguf_files_are_read(tmp_path):
  write_gguf(tmp_path / "m.gguf")
  network = load(tmp_path / "m.gguf", scheme="gguf")
  assert (network.cfg.num_kv_heads, network.cfg.head_size, network.cfg.tied_output) == (2, 6, True)
  assert (network.cfg.vocab_size, network.tokenizer.eot_id, network.cfg.pad_id) == (9, 2, 3)
  split = load(tmp_path / "m.gguf", scheme="gguf", mesh=eight_devices())
  for ours, whole in zip(jax.tree.leaves(split.params), jax.tree.leaves(network.params)):
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(whole))
  export(network, tmp_path / "out")  # as a Llama of Hugging Face's
  assert load(tmp_path / "out").cfg == network.cfg


def test_rope_factors_of_gguf_files_are_llama3s_or_refused(tmp_path):
  frequency_f = 500.0 ** -(np.arange(0, 6, 2) / 6)
  kept_f = np.clip((8192 * frequency_f / (2 * np.pi) - 1) / 3, 0, 1)
  write_gguf(tmp_path / "m.gguf", rope_factors=1 / (kept_f + (1 - kept_f) / 1.0))
  cfg = ModelConfig(**reading.open_source(f"gguf:{tmp_path / 'm.gguf'}").model)
  assert (cfg.rope_scaling, cfg.rope_original_context) == ("llama3", 8192)
  write_gguf(tmp_path / "n.gguf", rope_factors=[1.0, 7.0, 3.0])
  with pytest.raises(ValueError, match="rope_freqs.weight does not hold Llama 3's divisors"):
    reading.open_source(f"gguf:{tmp_path / 'n.gguf'}")


@pytest.mark.parametrize(
  "field,value", [("head_count", 0), ("head_count_kv", 0), ("block_count", 0), ("key_length", 0)]
)
def test_sizes_of_gguf_files_are_whole_numbers(field: str, value: int, tmp_path):
  write_gguf(tmp_path / "m.gguf", **{field: value})
  with pytest.raises(ValueError, match=f"m.gguf: llama.*{field} is 0; it must be a whole number"):
    reading.open_source(f"gguf:{tmp_path / 'm.gguf'}")


def test_bad_gguf_files_are_one_sentence(tmp_path):
  write_gguf(tmp_path / "m.gguf")
  whole = (tmp_path / "m.gguf").read_bytes()
  write_gguf(tmp_path / "other.gguf", architecture="falcon")
  (tmp_path / "cut.gguf").write_bytes(whole[:-500])
  (tmp_path / "shorter.gguf").write_bytes(whole[:700])
  (tmp_path / "none.gguf").write_bytes(b"GGUFno")
  (tmp_path / "model.bin").write_bytes(b"x")
  for name, message in (
    ("cut.gguf", "is not a complete GGUF file"),
    ("shorter.gguf", "is not a complete GGUF file"),
    ("none.gguf", "is not a complete GGUF file"),
    ("absent.gguf", "there is no such file"),
    ("other.gguf", "unknown architecture 'falcon'.*llama or gemma3"),
  ):
    with pytest.raises(ValueError, match=message) as caught:
      reading.open_source(f"gguf:{tmp_path / name}")
    assert "\n" not in str(caught.value)
  with pytest.raises(ValueError, match="model.bin is a pickle"):
    reading.guess_source(tmp_path / "model.bin")


# ----------------------------------------------------------------------------- the command


def test_convert_goes_there_and_back(tmp_path, capsys):
  source, made, back = GOLDEN / "qwen3", tmp_path / "export", tmp_path / "back"
  convert.main(["convert", "import", f"--source={source}", f"--target={made}"])
  found = checkpoint.load_export(made)
  assert found.kind == "policy" and found.metadata["imported"]["family"] == "qwen3"
  convert.main(["convert", "export", f"--source={made}", f"--target={back}"])
  before, after = (safetensors.numpy.load_file(d / "model.safetensors") for d in (source, back))
  assert before.keys() == after.keys()
  assert all(np.array_equal(before[name], after[name]) for name in before)
  capsys.readouterr()
  for flags, message in (
    (["export", f"--source={made}", f"--target={back}"], "exists already"),
    (
      ["export", f"--source={made}", f"--target={tmp_path / 'x'}", "--family=gpt2"],
      "cannot be written as gpt2",
    ),
    (["export", f"--source={GOLDEN}", f"--target={tmp_path / 'x'}"], "holds no export"),
    (
      ["import", f"--source={source}", f"--target={tmp_path / 'x'}", "--family=gpt2"],
      "--family is for export",
    ),
  ):
    with pytest.raises(SystemExit) as stopped:
      convert.main(["convert", *flags])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
  assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "export"]


def test_a_published_model_without_its_scheme_is_recognised(tmp_path):
  write_gguf(tmp_path / "m.gguf")
  run = tmp_path / "run"
  run.mkdir()
  (run / "config.json").write_text(json.dumps(dict(init_from="")))  # of a run of ours
  for path, meant in (
    (tmp_path / "m.gguf", f"gguf:{tmp_path / 'm.gguf'}"),
    (GOLDEN / "llama", f"hf:{GOLDEN / 'llama'}"),
  ):
    with pytest.raises(
      ValueError, match=f"--checkpoint: {path} is a published model; write --checkpoint={meant}$"
    ):
      cli_models.find(str(path), "checkpoint", "policy")
    with pytest.raises(
      ValueError, match=f"init_from: {path} is a published model; write init_from={meant}$"
    ):
      networks.find_export(str(path), kind="policy", flag="init_from")
  for path, message in ((run, "holds no export"), (tmp_path / "no.gguf", "does not exist")):
    with pytest.raises(ValueError, match=message):
      cli_models.find(str(path), "checkpoint", "policy")
    with pytest.raises(ValueError, match=message):
      networks.find_export(str(path), kind="policy", flag="init_from")


# ----------------------------------------------------------------------------- runs


def imported_config(module, **fields):
  config = module.get_config("imported").unlock()
  for name, value in fields.items():
    *groups, leaf = name.split("__")
    target = config
    for group in groups:
      target = target[group]
    target[leaf] = value
  return config


def test_imported_configs_take_their_shape_from_the_source():
  source = f"hf:{GOLDEN / 'opt'}"
  for module, algorithm, field in (
    (sft_configs, sft, "init_from"),
    (reward_configs, reward_model, "init_from"),
    (ppo_configs, ppo, "policy_from"),
  ):
    config = imported_config(module, **{field: source})
    assert not config.model
    assert networks.config_shape(config).mlp_width == 20
    too_long = "at most model.context_length 40" if field == "init_from" else "40"
    with pytest.raises(ValueError, match=too_long):
      algorithm.check_config(config)
    with pytest.raises(ValueError, match=f"{field} is empty, and config.model has no shape"):
      algorithm.check_config(imported_config(module))
    with pytest.raises(ValueError, match="num_heads 4 does not divide over mesh.tensor 8"):
      algorithm.check_config(
        imported_config(
          module,
          mesh__data=1,
          mesh__tensor=8,
          **{field: source},
          **(
            dict(length=40)
            if field == "init_from"
            else dict(ppo__max_prompt_tokens=8, ppo__max_response_tokens=8, ppo__ptx_length=16)
          ),
        )
      )


def test_a_published_model_is_trained_without_dropout(workdir_path, tmp_path):
  """The first batch holds every row, so its loss is that of validation before the first step."""
  for variant in sft_configs.VARIANTS:
    assert sft_configs.get_config(f"imported,{variant}").sft.dropout_rate == 0.0
  lines = [
    json.dumps({"prompt": f"w{i}", "completion": f"w{i + 1} w{i + 2}"}) for i in range(8, 16)
  ]
  (tmp_path / "demos.jsonl").write_text("\n".join(lines) + "\n")
  spec = f"jsonl:{tmp_path / 'demos.jsonl'}"
  config = imported_config(
    sft_configs,
    init_from=f"hf:{GOLDEN / 'llama'}",
    length=16,
    compute__dtype="float32",
    compute__remat="none",
    sft__batch_size=8,
    sft__microbatch_size=8,
    sft__max_steps=1,
    sft__keep_epochs=False,
    demonstrations__train=spec,
    demonstrations__valid=spec,
    demonstrations__packing="one_per_row",
    loop__log_every=1,
  )
  sft.train(config.lock(), workdir_path)
  before, first = metrics.read(workdir_path / metrics.FILE)
  assert first["train/loss"] == pytest.approx(before["validation/loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_starts_from_a_published_model_and_is_published_again(workdir_path, tmp_path):
  """One step of SFT on a Mistral: its export knows its family and is loaded as one."""
  lines = [
    json.dumps({"prompt": f"w{i}", "completion": f"w{i + 1} w{i + 2}"}) for i in range(8, 40)
  ]
  (tmp_path / "demos.jsonl").write_text("\n".join(lines) + "\n")
  spec = f"jsonl:{tmp_path / 'demos.jsonl'}"
  config = imported_config(
    sft_configs,
    init_from=f"hf:{GOLDEN / 'mistral'}",
    length=16,
    compute__dtype="float32",
    compute__remat="none",
    sft__batch_size=8,
    sft__microbatch_size=8,
    sft__max_steps=1,
    demonstrations__train=spec,
    demonstrations__valid=spec,
  )
  sft.check_inputs(config)
  sft.train(config.lock(), workdir_path)
  found = checkpoint.load_export(workdir_path / "export")
  assert found.metadata["imported"]["family"] == "mistral"
  convert.main(["convert", "export", f"--source={workdir_path}", f"--target={tmp_path / 'out'}"])
  trained, start = load(tmp_path / "out"), golden("mistral")
  assert trained.cfg == start.cfg
  gaps = [
    float(jnp.abs(ours - theirs).max())
    for ours, theirs in zip(
      jax.tree.leaves(trained.params), jax.tree.leaves(start.params), strict=True
    )
  ]
  assert 0.0 < max(gaps) < 1e-3


# ----------------------------------------------------------------------------- parity


@pytest.fixture(scope="module")
def torch():
  pytest.importorskip("transformers", reason="parity needs `pip install -e .[parity]`")
  return pytest.importorskip("torch", reason="parity needs `pip install -e .[parity]`")


def publish(name: str, directory: pathlib.Path, *, reward: bool = False):
  made = interop_models.make_model(name, seed=11, reward=reward)
  made.save_pretrained(directory)
  interop_models.save_tokenizer(directory)
  return made


def continuation(network: networks.Network, tokens: np.ndarray, count: int) -> np.ndarray:
  """Greedy tokens after rows without padding."""
  from rlhf.types import PromptBatch

  prompts = PromptBatch(tokens_BP=jnp.asarray(tokens), mask_BP=jnp.ones(tokens.shape, jnp.float32))
  drawn = sampling.generate(
    network.cfg,
    network.params,
    prompts,
    sampling.row_keys(jax.random.key(0), jnp.arange(len(tokens))),
    eot_id=network.tokenizer.eot_id,
    max_new_tokens=count,
    temperature=0.0,
  )
  return np.asarray(drawn.tokens_BR)


@pytest.mark.parametrize("name", NAMES)
def test_parity_with_transformers(name: str, torch, tmp_path):
  """Logits, padded on either side, greedy continuations, and what from_pretrained loads again."""
  import transformers

  theirs = publish(name, tmp_path / "in")
  network = load(tmp_path / "in")
  tokens, mask = interop_models.batch()
  expected = without_padding(interop_models.reference_logits(theirs, tokens, mask), mask)
  np.testing.assert_allclose(logits_of(network, tokens, mask), expected, atol=1e-4)
  left = [
    np.stack([np.roll(row, int((1 - row_mask).sum())) for row, row_mask in zip(x, mask)])
    for x in (tokens, mask)
  ]
  expected = without_padding(interop_models.reference_logits(theirs, *left), left[1])
  np.testing.assert_allclose(logits_of(network, *left), expected, atol=1e-4)

  prompts = tokens[:1, :6]
  with torch.no_grad():
    drawn = theirs.generate(
      torch.tensor(prompts), max_new_tokens=12, do_sample=False, suppress_tokens=[PAD]
    ).numpy()[0, 6:]
  ours = continuation(network, prompts, 12)[0][: len(drawn)]
  np.testing.assert_array_equal(ours, drawn)

  export(network, tmp_path / "out")
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
  assert type(again) is type(theirs)
  before, after = theirs.state_dict(), again.state_dict()
  assert before.keys() == after.keys()
  assert all(torch.equal(before[key], after[key]) for key in before)
  again.config._attn_implementation = "eager"
  np.testing.assert_array_equal(
    interop_models.reference_logits(again.eval(), tokens, mask),
    interop_models.reference_logits(theirs, tokens, mask),
  )


@pytest.mark.parametrize("name", NAMES)
def test_reward_parity_with_transformers(name: str, torch, tmp_path):
  import transformers

  theirs = publish(name, tmp_path / "in", reward=True)
  network = load(tmp_path / "in", kind="reward")
  tokens, mask = interop_models.batch()
  expected = interop_models.reference_logits(theirs, tokens, mask)[:, 0]
  score = helpers.quick_jit(functools.partial(transformer.scores, network.cfg))(
    network.params, jnp.asarray(tokens), jnp.asarray(mask, jnp.float32)
  )
  np.testing.assert_allclose(score, expected, atol=1e-4)
  params = dict(network.params, head=network.params["head"] | {"bias": jnp.asarray([1.5])})
  export(dataclasses.replace(network, params=params), tmp_path / "out", kind="reward")
  again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
  assert type(again) is type(theirs) and again.config.score_bias == 1.5
  again.config._attn_implementation = "eager"
  found = interop_models.reference_logits(again, tokens, mask)[:, 0]
  np.testing.assert_allclose(found + again.config.score_bias, expected + 1.5, atol=1e-5)


# ----------------------------------------------------------------------------- slow


@pytest.fixture(scope="module")
def real_models(repository) -> pathlib.Path:
  path = pathlib.Path(os.environ.get("RLHF_MODELS", repository.parent / "shared" / "models"))
  if not path.is_dir():
    pytest.skip(
      "no $RLHF_MODELS and no ../shared/models; get_models.sh of the shared data fetches "
      "the two GGUF files that this test needs"
    )
  return path


PAGE = """The water cycle describes how water moves above, on, and below the surface of the Earth. \
The sun heats the oceans, and some of their water evaporates into the air. Rising air \
currents take the vapor up into the atmosphere, where cooler temperatures cause it to \
condense into clouds. Winds move the clouds around the globe, and the particles in them \
collide, grow, and fall out of the sky as rain or snow. Most of it falls back into the \
oceans or onto land, where, due to gravity, it flows over the ground. A part of it enters \
rivers, with streamflow moving the water towards the oceans. Another part soaks into the \
ground and is stored as fresh water in lakes and aquifers."""


@pytest.mark.slow
@pytest.mark.parametrize("file", ["SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"])
def test_real_models(file: str, real_models, torch):
  """Logits and a greedy continuation against `transformers` loading the same file; perplexity."""
  import transformers

  prompt = "The capital of France is"
  if not (real_models / file).is_file():
    pytest.skip(f"{real_models} holds no {file}")
  network = load(real_models / file, scheme="gguf")
  tokenizer = network.tokenizer
  ids = np.asarray([[*tokenizer.prefix_ids, *tokenizer.encode(PAGE)]])
  run = jax.jit(
    lambda params, tokens: transformer.logits(
      network.cfg, params, transformer.forward(network.cfg, params, tokens, jnp.ones(tokens.shape))
    )
  )
  num_rows = reading.open_source(f"gguf:{real_models / file}").num_rows
  ours = np.asarray(run(network.params, jnp.asarray(ids)))[..., :num_rows]
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    real_models, gguf_file=file, dtype=torch.float32
  ).eval()
  with torch.no_grad():
    expected = theirs(torch.tensor(ids)).logits.numpy()
  kept = np.arange(num_rows) != network.cfg.pad_id
  gap = np.abs(ours - expected)[..., kept].max()
  logprob = np.asarray(jax.nn.log_softmax(ours[0, :-1], axis=-1))
  perplexity = np.exp(-np.mean(logprob[np.arange(ids.shape[1] - 1), ids[0, 1:]]))
  start = np.asarray([[*tokenizer.prefix_ids, *tokenizer.encode(prompt)]])
  ours_drawn = continuation(network, start, 24)[0]
  with torch.no_grad():
    drawn = theirs.generate(torch.tensor(start), max_new_tokens=24, do_sample=False)
  drawn = drawn.numpy()[0, start.shape[1] :]
  text = tokenizer.decode(ours_drawn)
  print(
    f"{file}: largest difference {gap:.2g} of logits up to {np.abs(expected).max():.3g}; "
    f"perplexity {perplexity:.2f} over {ids.shape[1]} tokens; {prompt}{text!r}"
  )
  np.testing.assert_allclose(ours[..., kept], expected[..., kept], atol=1e-3, rtol=1e-4)
  assert perplexity < 20
  np.testing.assert_array_equal(ours_drawn[: len(drawn)], drawn)


@pytest.mark.slow
def test_an_import_needs_little_more_than_its_largest_shard(tmp_path, repository):
  """4 GB over 8 simulated devices; `tests/import_memory.py` says what is counted."""
  environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "PYTHONPATH": str(repository)}
  done = subprocess.run(
    [sys.executable, "-m", "tests.import_memory", tmp_path / "model", "4"],
    env=environment,
    cwd=repository,
    capture_output=True,
    text=True,
    check=True,
  )
  found = json.loads(done.stdout)
  print(found)
  assert found["result"] > 3.9 * 2**30
  assert found["peak_less_result"] < 2 * found["largest_shard"]
