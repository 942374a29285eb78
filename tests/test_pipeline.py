"""The pipeline's own arithmetic: who is judged against whom, which epoch, how many tokens."""

import dataclasses
import pathlib
import types

import numpy as np
import pytest

from rlhf import pipeline, ppo, stages
from rlhf import workdir as workdir_lib
from rlhf.configs import pipeline as configs
from rlhf.data import splits
from rlhf.evals.preference import comparison, win_rates
from rlhf.evals.reward_models import calibration
from rlhf.evals.suites import pretraining
from rlhf.report import results
from rlhf.tinyworld import demonstrations, instructions
from rlhf.tinyworld.world import make_world


@pytest.fixture(scope="module")
def config():
  return configs.get_config("test")


@pytest.fixture(scope="module")
def judged(config, tmp_path_factory):
  """PPO-ptx completes without a flaw, the base model in word salad, all others as SFT does."""
  world, rng = make_world(config.seed), np.random.default_rng(0)
  records = [instructions.sample_prompt(world, rng, "open_qa", held_out=True) for _ in range(40)]
  good = [demonstrations.demonstration(world, r["task"], rng, errors={}) for r in records]
  fair = [f"{text} this is all i know . i hope this helps you ." for text in good]
  texts = {name: fair for name in pipeline.COMPARED}
  texts |= {"base": ["lamp lamp you fool"] * len(records), "ppo_ptx": good}
  workdir = tmp_path_factory.mktemp("run")
  workdir_lib.write_jsonl(workdir / "data" / "prompts_test.jsonl", records)
  p, settings = pipeline.preference_config(config, workdir), dict(num_resamples=100, seed=0)
  stage = workdir / "evaluation" / "preference"
  found = comparison.judge_all(p, texts, stage, batch_size=8, **settings)
  result = results.preferences(stage, dict(found.as_dict(), baseline=p.baseline), settings)
  result["gold_score"], _ = results.gold_scores(stage, world)
  return result, stage


def test_the_better_policy_wins_and_sft_is_not_compared_with_itself(judged):
  result, stage = judged
  wins, likert = result["win_rate_vs_sft"], result["likert"]
  assert set(wins) == set(pipeline.COMPARED) - {"sft"}
  for group in ("training_labelers", "heldout_labelers"):
    assert wins["ppo_ptx"][group]["mean"] > 0.8 and wins["base"][group]["mean"] < 0.1
    assert wins["ppo"][group]["mean"] == 0.5  # the same texts
    assert result["paired_difference"][group]["mean"] > 0.3
    means = [likert[name][group]["mean"] for name in ("base", "sft", "ppo_ptx")]
    assert means == sorted(set(means))
    assert wins["base"][group]["n"] == result["num_prompts"] == 40
  gold = result["gold_score"]
  for weights in ("training_weights", "evaluation_weights"):
    assert gold["base"][weights] < gold["sft"][weights] < gold["ppo_ptx"][weights]
  lines = win_rates.read_preferences(stage / "preferences.jsonl")
  assert {line["win"] for line in lines if line["policy"] == "sft"} == {None}
  assert np.isnan(
    win_rates.values_by_prompt(lines, policy="sft", group="training", field="win")
  ).all()
  assert result["metadata"]["base"]["denigrates"]["mean"] == 1
  assert result["metadata"]["ppo_ptx"]["denigrates"]["mean"] == 0


def test_the_epoch_with_the_highest_reward_is_chosen(config, tmp_path, monkeypatch):
  """Among all epochs, on as many prompts as fit; the number that was scored is kept."""
  config = config.copy_and_resolve_references().unlock()
  config.sft.sft.num_epochs = 4
  config.evaluation.num_selection_prompts = 3
  workdir_lib.write_jsonl(
    tmp_path / "data" / "prompts_ppo_valid.jsonl", [{"prompt": str(i)} for i in range(5)]
  )
  scores = {"01": -1.0, "02": 3.0, "03": 2.0, "04": 0.5}
  monkeypatch.setattr(pipeline, "load", lambda config, path, kind: path.name)
  monkeypatch.setattr(pipeline, "fitting", lambda config, network, records: records[1:])
  monkeypatch.setattr(
    pipeline.completions,
    "sample",
    lambda network, prompts, *rest: types.SimpleNamespace(ids=[[network]] * len(prompts)),
  )
  monkeypatch.setattr(
    pipeline, "score", lambda config, reward, ids: np.array([scores[name] for name in ids])
  )
  workdir_lib.mark_done(tmp_path / "selection", pipeline.select_sft(config, tmp_path))
  result = workdir_lib.done_result(tmp_path / "selection")
  assert result["epoch"] == 2 and result["scores"] == {
    str(int(epoch)): score for epoch, score in scores.items()
  }
  assert result["num_prompts"] == 3
  assert pipeline.policy_paths(config, tmp_path)["sft"].name == "02"
  note = results.notes(config, 2, 3)[0]
  assert "epoch 2 of 4" in note and " 3 validation" in note


@pytest.mark.parametrize("name", configs.NAMES)
def test_more_pretraining_goes_on_where_pretraining_ended(name):
  """At its last learning rate, with its optimizer, over as many tokens as PPO-ptx reads."""
  config = configs.get_config(name)
  more = config.base_more_pretraining.optim
  assert (more.schedule, more.warmup_steps) == ("constant", 0)
  if "source" not in config.base:  # a published model does not say how it was trained
    base = config.base.optim
    assert more.learning_rate == base.learning_rate * base.final_ratio
    for field in ("b1", "b2", "eps", "weight_decay", "max_grad_norm"):
      assert more[field] == base[field]
  p = ppo.PpoConfig(**config.ppo.ppo)
  read = p.num_iterations * p.updates_per_iteration * p.num_ptx_per_minibatch * p.ptx_length
  per_step = config.base_more_pretraining.sft.batch_size * config.base_more_pretraining.length
  assert 0 <= stages.extra_steps(config) * per_step - read < per_step


@pytest.mark.parametrize(
  "field,value,message",
  [
    ("kl_reference", "sft", "config.kl_reference 'sft'; choose from ppo_init, base"),
    ("reward_init", "gpt", "config.reward_init 'gpt'; choose from sft, base"),
  ],
)
def test_unknown_choices_are_named(field, value, message):
  config = configs.get_config("test").copy_and_resolve_references()
  with config.unlocked():
    config[field] = value
  with pytest.raises(ValueError, match=message):
    pipeline.check_config(config)


def test_only_a_reward_model_with_a_base_of_its_own_has_a_size_of_its_own():
  config = configs.get_config("test").copy_and_resolve_references().lock()
  config.reward_model.compute.logprob_chunk = 7  # no part of the shape
  pipeline.check_config(config)
  config.reward_model.model.width = 16
  with pytest.raises(ValueError, match="width 16 is not the 32 of the SFT model.*reward_init"):
    pipeline.check_config(config)
  config.reward_init = "base"
  pipeline.check_config(config)


def test_a_run_may_end_early_but_only_at_a_stage_that_it_has(config, tmp_path, monkeypatch):
  ran = []
  monkeypatch.setattr(
    pipeline, "run_stage", lambda view, stage, *rest: ran.append((stage.name, set(view)))
  )
  assert pipeline.run(config, tmp_path, last_stage="base") is None
  assert ran == [("data", {"seed", "world"}), ("base", {"seed", "base"})]
  with pytest.raises(ValueError, match="last_stage 'reward_base'; choose from data, base, sft"):
    pipeline.run(config, tmp_path, last_stage="reward_base")
  (tmp_path / "init").mkdir()
  with pytest.raises(ValueError, match="stage ppo_init was called init"):
    pipeline.run(config, tmp_path, last_stage="base")


def test_a_stage_gets_what_earlier_stages_made(config, tmp_path):
  table = stages.table(config)
  made = {
    name: stages.stage_config(stages.view(config, name), stage, tmp_path)
    for name, stage in table.items()
    if stage.algorithm
  }
  assert made["base"].init_from == "" and made["sft"].init_from == f"{tmp_path}/base/export"
  assert made["reward_model"].init_from == f"{tmp_path}/sft/epochs/02"
  assert made["reward_model"].comparisons.train == f"jsonl:{tmp_path}/comparisons/train.jsonl"
  assert made["ppo"].reference_from == "" and made["ppo"].ppo.ptx_coef == 0.0
  assert made["ppo_ptx"].policy_from == f"{tmp_path}/ppo_init/export"
  assert made["ppo_ptx"].prompts.prompt_suffix == config.format.prompt_suffix
  assert made["base_more_pretraining"].seed == config.seed + 1
  for name, stage in table.items():  # what is read was made by an input
    if stage.algorithm:
      fields = stage.fields(stages.view(config, name)).values()
      read = {path.parts[0] for path in fields if isinstance(path, pathlib.PurePath)}
      assert read == set(stage.inputs), name


def test_lengths_are_those_of_whole_completions():
  length_NK, rank_NK, valid_NK = calibration.length_arrays(
    [
      {"prompt": "p", "completions": ["a" * 5000, "b" * 4000, "c"], "ranks": [1, 2, 3]},
      {"prompt": "q", "completions": ["d", "ee"], "ranks": [1, 2]},
    ]
  )
  assert length_NK.tolist() == [[5000, 4000, 1], [1, 2, 0]]
  assert rank_NK.tolist() == [[1, 2, 3], [1, 2, 0]]
  assert valid_NK.tolist() == [[1, 1, 1], [1, 1, 0]]
  assert calibration.accuracy(length_NK, rank_NK, valid_NK, num_resamples=10, seed=0).mean == 3 / 4


def test_the_loss_of_an_epoch_is_that_of_the_evaluation_nearest_to_its_end():
  losses = {0: 9.0, 26: 1.0, 49: 2.0, 80: 3.0, 100: 4.0}
  assert [results.epoch_loss(losses, epoch, 4) for epoch in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 4.0]
  assert results.epoch_loss({0: 9.0, 100: 4.0}, 2, 4) is None


def test_files_share_no_prompt_where_they_must_not(tmp_path):
  """Training sets give way to validation and test sets, and demonstrations as well."""

  def write(name, lines):
    workdir_lib.write_jsonl(tmp_path / f"{name}.jsonl", lines)
    return (f"jsonl:{tmp_path / name}.jsonl",)

  texts = [f"{i} question" for i in range(120)]
  cfg = splits.FilesConfig(
    text=write("text", [{"text": f"text {i}"} for i in range(20)]),
    demonstrations=write("demos", [{"prompt": text, "completion": "x"} for text in texts]),
    comparisons=write(
      "ranked",
      [{"prompt": text, "completions": ["x", "y"], "ranks": [1, 2]} for text in texts[40:]],
    ),
    prompts=write("prompts", [{"prompt": text} for text in texts[:80]]),
    valid_fraction=0.2,
    test_fraction=0.2,
    max_demonstrations=100,
    max_comparisons=None,
    max_prompts=None,
    max_completions=None,
    prefix_length=60,
    max_prompts_per_user=200,
    on_bad="stop",
  )
  for field in ("max_demonstrations", "prefix_length", "max_prompts_per_user"):
    with pytest.raises(ValueError, match=f"files.{field} is 0; use 1 or more"):
      dataclasses.replace(cfg, **{field: 0})
  splits.write(cfg, tmp_path / "data", seed=0)
  prompts = {
    name: {line["prompt"] for line in workdir_lib.read_jsonl(tmp_path / "data" / f"{name}.jsonl")}
    for name in (
      "demonstrations_train",
      "demonstrations_valid",
      "comparisons_train",
      "comparisons_valid",
      "prompts_ppo",
      "prompts_ppo_valid",
      "prompts_test",
    )
  }
  held_out = ("prompts_test", "prompts_ppo_valid", "comparisons_valid")
  for trained in ("demonstrations_train", "comparisons_train", "prompts_ppo"):
    for name in held_out:
      assert not prompts[trained] & prompts[name], (trained, name)
  assert not prompts["comparisons_train"] & prompts["prompts_ppo"]
  assert not prompts["demonstrations_train"] & prompts["demonstrations_valid"]
  for first, second in zip(held_out, held_out[1:]):
    assert not prompts[first] & prompts[second]


# ----------------------------------------------------------------------------- published models


def test_a_published_base_must_be_named():
  config = configs.get_config("smollm2")
  with pytest.raises(ValueError, match="config.base.source is empty; name the published"):
    pipeline.check_config(config)
  with config.unlocked():
    config.base.source = "hf:/nowhere"
  with pytest.raises(ValueError, match="/nowhere"):
    pipeline.check_config(config)


def test_a_comparison_keeps_some_of_its_completions_and_their_ranks():
  record = dict(prompt="p", completions=list("abcdef"), ranks=[1, 2, 3, 4, 5, 6], user="u")
  fewer = splits.fewer_completions(record, 4, seed=1)
  assert len(fewer["completions"]) == len(fewer["ranks"]) == 4 and fewer["user"] == "u"
  assert all("abcdef"[rank - 1] == text for rank, text in zip(fewer["ranks"], fewer["completions"]))
  assert fewer["ranks"] == sorted(fewer["ranks"])  # their order is kept
  assert splits.fewer_completions(record, 9, seed=1) == record


def test_rewards_are_compared_with_those_of_sft_on_the_same_prompts():
  sft = np.asarray([0.0, 10.0, -10.0, 3.0])
  found = results.compare_rewards(
    {"sft": sft, "ppo": sft + 0.5, "base": sft[::-1]}, dict(num_resamples=50, seed=0)
  )
  assert {name: cell["mean"] for name, cell in found["reward"].items()} == {
    "sft": 0.75,
    "ppo": 1.25,
    "base": 0.75,
  }
  assert found["reward_minus_sft"]["ppo"] == dict(mean=0.5, low=0.5, high=0.5, n=4)
  assert sorted(found["reward_minus_sft"]) == ["base", "ppo"]


def test_a_rise_of_the_loss_is_after_minus_before_over_all_tokens():
  before, after = np.asarray([[10.0, 5], [2.0, 1]]), np.asarray([[15.0, 5], [3.0, 1]])
  settings = dict(num_resamples=50, seed=0)
  assert pretraining.rise(before, after, settings).as_dict() == dict(
    mean=1.0, low=1.0, high=1.0, n=2
  )
  uneven = pretraining.rise(before, np.asarray([[15.0, 5], [2.0, 1]]), settings)
  assert uneven.mean == pytest.approx(5 / 6)  # tokens weigh, not rows
