"""`rlhf benchmark`: what a report holds, and what is said of wrong flags.  No test reads a clock."""

import importlib.util
import json
import math

import jax
import numpy as np
import pytest

from rlhf.benchmark import drive, inputs, measure
from rlhf.benchmark import job as job_lib
from rlhf.cli import benchmark
from rlhf.configs import ppo as configs_ppo
from rlhf.model import flops
from rlhf.model.architecture import ModelConfig

PPO = [
  "--config=configs/ppo.py:test",
  "--config.ppo.batch_size=4",
  "--config.ppo.minibatch_size=4",
  "--config.ppo.microbatch_size=2",
  "--config.ppo.ptx_ratio=1",
  "--config.ppo.ptx_length=8",
  "--config.ppo.ptx_microbatch_size=2",
  "--config.ppo.max_prompt_tokens=8",
  "--config.ppo.max_response_tokens=6",
  "--config.compute.dtype=float32",
]
SHAPE = dict(context_length=32, num_layers=2, num_heads=2, width=8, band_width=None, init_std=0.02)
SMALL = ["--vocab_size=61", "--pairs=2"]


@pytest.fixture(autouse=True)
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=1")


def run(tmp_path, *flags: str) -> dict:
  path = tmp_path / "report.json"
  benchmark.main(["benchmark", *SMALL, *flags, f"--json={path}"])
  return json.loads(path.read_text())


def check_spread(numbers: dict) -> None:
  assert 0 < numbers["low"] <= numbers["median"] <= numbers["high"] < math.inf


def check_side(side: dict, pairs: int = 2) -> None:
  """What every side of every report with a network has."""
  for name in ("wall_seconds", "cpu_seconds"):
    check_spread(side[name])
    assert len(side[name]["runs"]) == pairs
  for name in ("tokens_per_second", "useful_tokens_per_second", "flops_per_second"):
    check_spread(side[name])
  assert 0 < side["useful_tokens"] <= side["tokens"]
  assert side["peak_host_bytes"] > 2**20
  assert 0 < side["share_of_matmul"]


# ----------------------------------------------------------------------------- parts


def test_flops_of_generation_are_those_of_its_steps():
  cfg = ModelConfig(**SHAPE, vocab_size=50, pad_id=49)
  # One token after another: each sees itself and those before it.
  steps = [flops.token_flops(cfg, keys) + flops.logits_flops(cfg) for keys in (5, 6, 7)]
  prefill = flops.forward_flops(cfg, 3, 4, num_logits=1)
  assert flops.generate_flops(cfg, 3, 4, 3) == prefill + 3 * sum(steps)
  # 2 per parameter, 4 x heads x size x keys per layer.
  assert flops.token_flops(cfg, 5) == 2 * cfg.num_block_params + 2 * 4 * 8 * 5
  # Causal attention is counted half: a row's pairs are length^2 / 2.
  assert flops.forward_flops(cfg, 1, 10, num_logits=0) == 10 * flops.token_flops(cfg, 5)


def test_inputs_are_the_same_in_every_process():
  job = job_lib.Job(
    case="generate", config={}, vocab_size=61, end_share=0.25, completions=3, rows=1
  )
  tokens_BP, mask_BP = inputs.prompts(job, 5, 8)
  again_BP, _ = inputs.prompts(job, 5, 8)
  assert (tokens_BP == again_BP).all()
  assert (mask_BP[:, -1] == 1).all() and set(mask_BP.sum(axis=1)) <= set(range(4, 9))
  assert (tokens_BP[mask_BP == 0] == job.pad_id).all()
  assert tokens_BP[mask_BP == 1].max() < job.eot_id
  assert 0 < inputs.ending_tokens(job).sum() < 61
  tokens_BKT, mask_BKT, rank_BK = inputs.comparisons(job, 2, 3, 8)
  assert tokens_BKT.shape == mask_BKT.shape == (2, 3, 8)
  assert (np.sort(rank_BK, axis=1) == [1, 2, 3]).all()


def test_spreads_and_ratios():
  assert measure.spread([3.0, 1.0, 2.0]) == dict(median=2.0, low=1.0, high=3.0)
  assert measure.ratios([1.0, 3.0], [2.0, 2.0]) == dict(
    median=1.0, low=0.5, high=1.5, pairs=[0.5, 1.5]
  )


def test_a_worker_that_ends_is_one_sentence():
  with pytest.raises(ValueError, match="the process of ours ended with status 1 during 'jump'"):
    with drive.process("ours") as ask:
      ask("jump")


def test_a_missing_peer_is_one_sentence(monkeypatch, capsys):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit):
    benchmark.main(["benchmark", "--case=generate", "--against=transformers", *PPO])
  assert "pip install 'rlhf-jax[peers]'" in capsys.readouterr().err


# ----------------------------------------------------------------------------- cases


def test_generate(tmp_path, capsys):
  report = run(tmp_path, "--case=generate", *PPO, "--end_share=0.2")
  assert report["case"] == "generate" and report["model"]["num_layers"] == 2
  assert report["peer"] is None and report["ratio_cpu"] is None
  ours = report["ours"]
  check_side(ours)
  assert ours["tokens"] % 4 == 0 and ours["useful_tokens"] < ours["tokens"] <= 4 * 6
  assert set(ours["phases"]) == {"rollout", "host"}
  assert 0 < ours["share_of_copy"]
  assert report["ceilings"]["matmul_flops_per_second"] > 0
  printed = capsys.readouterr().out
  assert "own CPU seconds" in printed and "ceilings of this machine" in printed


RM = [
  "--config=configs/reward_model.py:test",
  "--config.length=16",
  "--config.reward.batch_size=4",
  "--config.reward.microbatch_size=2",
  "--completions=3",
]
SFT = [
  "--config=configs/sft.py:test",
  "--config.length=16",
  "--config.sft.batch_size=4",
  "--config.sft.microbatch_size=2",
]
CASES = {  # case: (flags, tokens of a run, phases)
  "score": (RM, 4 * 3 * 16, {"score"}),
  "rm_step": (RM, 4 * 3 * 16, {"update", "host"}),
  "sft_step": (SFT, 4 * 16, {"update", "host"}),
  "ppo_iteration": (PPO, 4 * (8 + 6), {"rollout", "score", "update", "ptx", "host"}),
}


@pytest.mark.parametrize(
  "case",
  [
    "sft_step",
    *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "sft_step"),
  ],
)
def test_case(case, tmp_path):
  flags, num_tokens, phases = CASES[case]
  ours = run(tmp_path, f"--case={case}", *flags)["ours"]
  check_side(ours)
  assert ours["tokens"] == num_tokens and set(ours["phases"]) == phases
  assert (ours["useful_tokens"] == num_tokens) == (case == "sft_step")


def test_data(tmp_path):
  flags = ["--config=configs/sft.py:test", "--config.tokenizer=bpe:300", "--rows=40"]
  report = run(tmp_path, "--case=data", *flags, "--config.length=64")
  parts = {"in memory", "new cache", "from the cache"}
  ours = report["ours"]
  assert report["model"] is None and ours["amount"] == 40 and ours["unit"] == "rows"
  for name in ("phases", "amount_per_second", "peak_host_bytes_of_phases"):
    assert set(ours[name]) == parts
  assert ours["tokens_per_second"] is None and ours["share_of_matmul"] is None


@pytest.mark.parametrize(
  "flags",
  [
    SFT,
    pytest.param(RM, marks=pytest.mark.slow),
    pytest.param(PPO, marks=pytest.mark.slow),
  ],
  ids=["sft", "reward_model", "ppo"],
)
def test_checkpoint(flags, tmp_path):
  report = run(tmp_path, "--case=checkpoint", *flags)
  ours, num_parameters = report["ours"], report["model"]["parameters"]
  assert set(ours["amount_per_second"]) == set(ours["phases"]) and len(ours["phases"]) == 3
  # Adam keeps two numbers beside each; PPO also has a value network and a moving average.
  copies = {"ppo": 7}.get(flags[0].rpartition("/")[2].partition(".")[0], 3)
  assert ours["amount"] == pytest.approx(4 * copies * num_parameters, rel=0.02)


@pytest.mark.slow
def test_startup(tmp_path, monkeypatch):
  monkeypatch.setattr(drive, "WARM_UPS", 1)
  report = run(tmp_path, "--case=startup", *SFT, "--pairs=1")
  assert list(report["ours"]["phases"]) == [
    "import rlhf.ppo",
    "--help",
    "first start",
    "second start",
  ]
  assert all(peak > 2**20 for peak in report["ours"]["peak_host_bytes_of_phases"].values())


def test_flops_of_ppo_are_those_of_its_parts():
  from rlhf.benchmark import ppo_case
  from rlhf.cli.memory import programs
  from rlhf.ppo_setup import Models, PpoConfig

  config = configs_ppo.get_config("test")
  cfg = ModelConfig(**config.model, vocab_size=62, pad_id=61)
  models, p = Models(policy=cfg, reward=cfg), PpoConfig(**config.ppo)
  parts = programs.flops(models, p)  # counts a full cache at each decode step
  full = parts["scoring"] + parts["update"]
  sampling = flops.generate_flops(cfg, p.batch_size, p.max_prompt_tokens, p.max_response_tokens)
  assert ppo_case.ppo_flops(models, p) == pytest.approx(full + sampling)


@pytest.mark.slow
def test_generate_against_transformers(tmp_path, capsys):
  """The peer samples from the weights that were exported, to the same lengths."""
  pytest.importorskip("transformers")
  flags = [*PPO, "--end_share=0.2", "--config.model.band_width=None"]
  report = run(tmp_path, "--case=generate", "--against=transformers", *flags)
  assert list(report["peers"]) == ["transformers, eager", "transformers, static cache, compiled"]
  for peer in report["peers"].values():
    check_side(peer)
    for name in ("tokens", "useful_tokens", "flops"):
      assert peer[name] == report["ours"][name]
    for name in ("ratio_cpu", "ratio_wall"):
      check_spread(peer[name])
  assert report["peer"]["name"] in report["peers"]
  assert len(report["ratio_cpu"]["pairs"]) == 2
  assert "CPU seconds, ours / it" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["score", "rm_step", "sft_step"])
def test_case_against_transformers(case, tmp_path):
  pytest.importorskip("transformers")
  flags, num_tokens, _ = CASES[case]
  flags = [*flags, "--config.model.band_width=None", "--against=transformers"]
  report = run(tmp_path, f"--case={case}", *flags)
  ours, peer = report["ours"], report["peer"]
  check_side(peer)
  assert peer["tokens"] == num_tokens
  assert peer["useful_tokens"] == ours["useful_tokens"] and peer["flops"] == ours["flops"]


TRL = ["--against=trl", "--config.model.band_width=None", "--config.ppo.ptx_coef=0"]


def test_ppo_against_trl(tmp_path):
  pytest.importorskip("trl")
  report = run(tmp_path, "--case=ppo_iteration", *PPO, *TRL)
  ours, peer = report["ours"], report["peer"]
  assert peer["name"] == "trl, PPOTrainer" and peer["flops_per_second"] is None
  assert peer["tokens"] == ours["tokens"] == 4 * (8 + 6)
  assert 4 * (4 + 6) <= peer["useful_tokens"] <= peer["tokens"]
  assert set(ours["phases"]) == {"rollout", "score", "update", "host"}
  check_spread(report["ratio_cpu"])


def test_trl_takes_as_many_optimizer_steps(tmp_path):
  torch = pytest.importorskip("torch")
  pytest.importorskip("trl")
  from rlhf import workdir
  from rlhf.benchmark import random_networks, trl_peer
  from rlhf.cli.common import flags
  from rlhf.model import transformer

  numbers = [*PPO[1:], "--config.ppo.minibatch_size=2", "--config.ppo.microbatch_size=1"]
  config = workdir.plain(flags.load_config("configs/ppo.py:test", numbers))
  cfg = ModelConfig(**SHAPE, vocab_size=62, pad_id=61)
  params = transformer.init_params(cfg, jax.random.key(0))
  head = transformer.init_head(cfg, jax.random.key(1))
  random_networks.export(cfg, params, "policy", str(tmp_path))
  random_networks.export(cfg, dict(params, head=head), "reward", str(tmp_path))
  job = job_lib.Job(
    case="ppo_iteration", config=config, vocab_size=61, end_share=0.0, completions=3, rows=1
  )
  trainer = trl_peer.make_trainer(job, tmp_path, torch.device("cpu"), trl_peer.Collator(job))
  for number in (1, 2):
    trainer.train()
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {2 * number}  # two minibatches


def test_transformers_computes_what_we_do(tmp_path):
  """Logits of the exported policy."""
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  from rlhf.benchmark import random_networks
  from rlhf.model import transformer

  cfg = ModelConfig(**SHAPE, vocab_size=62, pad_id=61)
  params = transformer.init_params(cfg, jax.random.key(0))
  random_networks.export(cfg, params, "policy", str(tmp_path))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
  tokens_BT = np.arange(12).reshape(2, 6)
  hidden_BTD = transformer.forward(cfg, params, tokens_BT, np.ones((2, 6)))
  expected_BTV = np.asarray(transformer.logits(cfg, params, hidden_BTD))[..., :61]
  with torch.inference_mode():
    found_BTV = model(torch.from_numpy(tokens_BT)).logits[..., :61].numpy()
  np.testing.assert_allclose(found_BTV, expected_BTV, atol=2e-5)


def test_transformers_takes_the_step_that_we_take(tmp_path):
  """The losses of the peer are ours, on the exported weights."""
  torch = pytest.importorskip("torch")
  pytest.importorskip("transformers")
  from rlhf import reward_model, sft
  from rlhf.benchmark import random_networks, training_cases, transformers_peer
  from rlhf.model import transformer
  from rlhf.types import ComparisonBatch

  cfg = ModelConfig(**SHAPE, vocab_size=62, pad_id=61)
  params = transformer.init_params(cfg, jax.random.key(0))
  reward = dict(params, head=transformer.init_head(cfg, jax.random.key(1)))
  random_networks.export(cfg, params, "policy", str(tmp_path))
  random_networks.export(cfg, reward, "reward", str(tmp_path))
  optim = dict(learning_rate=0.1, weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8, max_grad_norm=1.0)
  config = dict(
    length=8,
    optim=optim,
    compute=dict(remat="none"),
    sft=dict(batch_size=4, microbatch_size=2, dropout_rate=0.0),
    reward=dict(batch_size=4, microbatch_size=2),
  )
  job = job_lib.Job(
    case="rm_step", config=config, vocab_size=61, end_share=0.0, completions=3, rows=1
  )
  device = torch.device("cpu")

  rows = training_cases.lm_rows(job, inputs.NUM_BATCHES * 4, 8, stream=3)
  first = jax.tree.map(lambda x: x[:4], rows)
  p = sft.SftConfig(
    batch_size=4,
    microbatch_size=2,
    num_epochs=1,
    max_steps=None,
    dropout_rate=0.0,
    keep_epochs=False,
    keep_rows=None,
  )
  keys = jax.random.split(jax.random.key(0), 4)
  loss, _ = sft.sft_loss(cfg, p, params, (first, keys, 1 / 28), use_segments=False)
  found = sum(transformers_peer.sft_losses(job, tmp_path, device)[1](0)).item()
  assert found == pytest.approx(float(loss), abs=2e-5)

  tokens_BKT, mask_BKT, rank_BK = inputs.comparisons(job, 4, 3, 8)
  batch = ComparisonBatch(
    tokens_BKT=tokens_BKT, mask_BKT=mask_BKT, rank_BK=rank_BK, valid_BK=np.ones_like(rank_BK)
  )
  loss, _ = reward_model.reward_loss(cfg, reward, (batch, 1 / 4))
  found = sum(transformers_peer.rm_losses(job, tmp_path, device)[1](0)).item()
  assert found == pytest.approx(float(loss), abs=2e-5)


# ----------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
  "flags, sentence",
  [
    (["--case=jump", *PPO], "choose from"),
    (["--case=generate", "--config=configs/sft.py:test"], "sft.py is a sft config, not ppo"),
    (["--case=generate", *PPO, "--end_share=1"], "1 must be 0 or above, and below 1"),
    (["--case=generate", *PPO, "--json=nowhere/report.json"], "there is no folder nowhere"),
    (["--case=generate", *PPO, "--config.ppo.minibatch_size=3"], "ppo.batch_size 4 does not"),
    (["--case=data", *SFT, "--against=transformers"], "no counterpart of --case=data"),
    (["--case=data", *SFT, "--config.tokenizer=gpt2:"], "add --config.tokenizer=bpe:1024"),
    (["--case=data", "--config=configs/sft.py:test,pretrain"], "packs demonstrations"),
    (["--case=ppo_iteration", *PPO, "--against=trl"], "add --config.ppo.ptx_coef=0"),
    (["--case=generate", *PPO, "--against=trl"], "it runs ppo_iteration"),
    (["--case=generate", *PPO, "--against=jump"], "choose from"),
    (
      ["--case=generate", "--config=configs/ppo.py:125m", "--against=transformers"],
      "add --config.compute.dtype=float32",
    ),
    (
      ["--case=generate", *PPO, "--against=transformers"],
      "gpt2 cannot express band_width 16",
    ),
  ],
)
def test_mistakes_are_one_sentence(flags, sentence, capsys, monkeypatch):
  monkeypatch.setattr(benchmark.extras, "require", lambda *arguments: None)
  with pytest.raises(SystemExit) as stopped:
    benchmark.main(["benchmark", *flags])
  assert stopped.value.code == 2
  error = capsys.readouterr().err.strip()
  assert sentence in error and "Traceback" not in error and len(error.splitlines()) == 1
