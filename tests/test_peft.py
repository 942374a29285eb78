"""Adapters in PEFT's format compute there what they compute here."""

import dataclasses
import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from rlhf import checkpoint
from rlhf.interop import families, writing
from rlhf.interop import peft as peft_format
from rlhf.model import lora, transformer
from rlhf.tokenization.tokenizer import Tokenizer

RANK = 2
LORA = lora.LoraConfig(rank=RANK, alpha=6.0, targets="attention,mlp")
SHAPES = {
  "gpt2": dict(band_width=None),
  "gpt_neox": dict(
    band_width=None,
    positions="rotary",
    rope_base=1e4,
    rope_fraction=0.5,
    parallel_residual=True,
    tied_output=False,
    activation="gelu_exact",
  ),
  "llama": dict(
    band_width=None,
    positions="rotary",
    rope_base=1e4,
    rope_fraction=1.0,
    norm="rms",
    activation="swiglu",
    qkv_bias=False,
    attention_out_bias=False,
    mlp_bias=False,
    num_heads=4,
    num_kv_heads=2,
    head_size=8,
    mlp_width=24,
    tied_output=False,
  ),
}


def make(family: str, *, head: bool = False):
  """(config, frozen network, trained leaves), the adapters not 0."""
  tokenizer = Tokenizer.train_bpe(["some text to learn from, and more"], 300)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, num_layers=2, **SHAPES[family]
  )
  params = helpers.make_params(cfg, 0, head=head)
  frozen, trained = lora.split(LORA, params, jax.random.key(1))
  rng = np.random.default_rng(2)
  moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape, np.float32), trained)
  return cfg, tokenizer, frozen, moved


def export(directory, cfg, tokenizer, trained) -> checkpoint.Export:
  checkpoint.export_params(
    directory,
    trained,
    model=cfg.shape(),
    kind="adapter",
    tokenizer=tokenizer,
    config={},
    step=1,
    metadata=dict(lora=dataclasses.asdict(LORA), base="runs/base/export"),
  )
  return checkpoint.load_export(directory)


def test_an_adapter_of_a_fused_projection_becomes_one_of_each_tensor(tmp_path):
  """The file's A and B give the change of the file's matrices."""
  cfg, tokenizer, frozen, trained = make("llama")
  found = export(tmp_path / "ours", cfg, tokenizer, trained)
  peft_format.write(
    tmp_path / "theirs",
    found,
    checkpoint.load_params(tmp_path / "ours"),
    families.known()["llama"],
  )
  config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
  assert config["r"] == RANK and config["lora_alpha"] == 6.0
  assert config["target_modules"] == [
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
  ]
  tensors = safetensors.numpy.load_file(tmp_path / "theirs" / "adapter_model.safetensors")
  merged = lora.merged(LORA, frozen, trained)
  rows = writing.num_rows(cfg, "policy", tokenizer)
  weights = [
    dict(
      writing.tensors(cfg, params, kind="policy", family=families.known()["llama"], num_rows=rows)
    )
    for params in (merged, frozen)
  ]
  for name in config["target_modules"]:
    for layer in range(2):
      module = f"model.layers.{layer}.{name}"
      a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
      change = weights[0][f"{module}.weight"] - weights[1][f"{module}.weight"]
      np.testing.assert_allclose(3.0 * b @ a, change, atol=1e-5)


@pytest.mark.parametrize("kind", ["policy", "reward"])
@pytest.mark.parametrize("family", SHAPES)
def test_peft_computes_the_same(family: str, kind: str, tmp_path):
  torch, transformers, peft = (
    pytest.importorskip(name, reason="pip install -e '.[parity]'")
    for name in ("torch", "transformers", "peft")
  )
  cfg, tokenizer, frozen, trained = make(family, head=kind == "reward")
  base = dict(frozen, head=trained["head"]) if kind == "reward" else frozen
  writing.write(tmp_path / "base", cfg, base, tokenizer, kind=kind, family=families.known()[family])
  found = export(tmp_path / "ours", cfg, tokenizer, trained)
  peft_format.write(
    tmp_path / "theirs", found, checkpoint.load_params(tmp_path / "ours"), families.known()[family]
  )
  auto = (
    transformers.AutoModelForCausalLM
    if kind == "policy"
    else transformers.AutoModelForSequenceClassification
  )
  network = peft.PeftModel.from_pretrained(
    auto.from_pretrained(tmp_path / "base", attn_implementation="eager"), tmp_path / "theirs"
  )
  ids = helpers.random_ids(np.random.default_rng(0), (1, 9))
  with torch.no_grad():
    theirs = network(torch.tensor(ids)).logits.numpy()
  merged = lora.merged(LORA, frozen, trained)
  mask = np.ones(ids.shape, np.float32)
  if kind == "reward":
    bias = json.loads((tmp_path / "theirs" / "score.json").read_text())["score_bias"]
    np.testing.assert_allclose(
      theirs[:, 0] + bias, transformer.scores(cfg, merged, ids, mask), atol=1e-4
    )
  else:
    ours = transformer.logits(cfg, merged, transformer.forward(cfg, merged, jnp.asarray(ids), mask))
    rows = theirs.shape[-1]
    np.testing.assert_allclose(
      np.delete(theirs, cfg.pad_id, -1) if cfg.pad_id < rows else theirs,
      np.delete(ours[..., :rows], cfg.pad_id, -1) if cfg.pad_id < rows else ours[..., :rows],
      atol=1e-4,
    )


def test_a_family_without_a_place_for_an_adapter_is_refused(tmp_path):
  cfg, tokenizer, _, trained = make("llama")
  found = export(tmp_path / "ours", cfg, tokenizer, trained)
  with pytest.raises(ValueError, match="activation is 'swiglu'"):
    peft_format.write(
      tmp_path / "theirs",
      found,
      checkpoint.load_params(tmp_path / "ours"),
      families.known()["gpt2"],
    )
  assert not (tmp_path / "theirs").exists()


def test_a_reward_adapter_without_a_place_for_its_head_is_refused(tmp_path):
  """OPT-350m scores what its output projection leaves."""
  cfg, tokenizer, _, trained = make("gpt2", head=True)
  cfg = dataclasses.replace(
    cfg,
    embed_width=8,
    position_offset=2,
    activation="relu",
    norm_placement="post",
    final_norm=False,
  )
  found = export(tmp_path / "ours", cfg, tokenizer, trained)
  with pytest.raises(ValueError, match="export the merged network instead"):
    peft_format.write(
      tmp_path / "theirs",
      found,
      checkpoint.load_params(tmp_path / "ours"),
      families.known()["opt"],
    )
