"""Several seeds in one table."""

import json

import helpers
import numpy as np
import pytest

from rlhf import workdir as workdir_lib
from rlhf.evals import pooling
from rlhf.evals.preference import win_rates
from rlhf.report import pipeline as report_lib


def run_of(seed, ppo, ptx, nll_ptx=1.1, accuracy=0.7, num_pairs=100):
  """A run in which every labeler of 40 prompts gives one constant judgement per policy."""
  rows = []
  for policy, win in (("ppo", ppo), ("ppo_ptx", ptx)):
    for group in win_rates.GROUPS:
      values = np.full((40, 2), float(win))
      rows += helpers.preference_rows(policy, group, ["a", "b"], values, np.full((40, 2), 4.0))
  report = {key: None for key in report_lib.REPORT_SCHEMA}
  report["seed"] = seed
  report["reward_model"] = {"accuracy": accuracy, "accuracy_heldout_labelers": None, "n": num_pairs}
  report["pretraining_nll"] = {
    "base": 1.0,
    "base_more_pretraining": None,
    "ppo_init": 1.0,
    "sft": None,
    "ppo": 2.0,
    "ppo_ptx": nll_ptx,
  }
  return {"report": report, "preferences": rows}


def runs_of_two():
  return [run_of(1, 1, 0.5, nll_ptx=1.3, accuracy=0.6, num_pairs=300), run_of(0, 1, 1)]


def test_per_seed_rows_and_a_nested_pooled_row():
  pooled = pooling.pool_reports(runs_of_two(), num_resamples=1000)
  assert pooled["seeds"] == [0, 1]
  cell = pooled["win_rate_vs_sft"]["ppo_ptx"]["training_labelers"]
  assert cell["per_seed"][0] == {"mean": 1, "low": 1, "high": 1, "n": 40}
  assert cell["per_seed"][1]["mean"] == 0.5
  assert cell["pooled"] == {"mean": 0.75, "low": 0.5, "high": 1.0, "n": 80}  # seeds redrawn
  paired = pooled["paired_difference"]["heldout_labelers"]
  assert paired["per_seed"][1]["mean"] == -0.5
  assert paired["pooled"] == {"mean": -0.25, "low": -0.5, "high": 0.0, "n": 80}


def test_other_numbers_pool_as_ratios_of_sums():
  pooled = pooling.pool_reports(runs_of_two(), num_resamples=100)
  assert pooled["reward_model_accuracy"]["pooled"] == pytest.approx((0.6 * 300 + 0.7 * 100) / 400)
  assert pooled["recovered"]["pretraining_nll"]["per_seed"][1] == pytest.approx(0.7)
  assert pooled["recovered"]["pretraining_nll"]["pooled"] == pytest.approx(1 - 0.4 / 2.0)
  assert pooled["recovered"]["few_shot_mean"]["pooled"] is None


def test_few_shot_losses_are_falls():
  runs = runs_of_two()
  for run, ptx in zip(runs, (0.7, 0.8)):
    run["report"]["few_shot_tasks"] = {"t": {"ppo_init": 0.8, "ppo": 0.6, "ppo_ptx": ptx}}
  pooled = pooling.pool_reports(runs, num_resamples=100)
  assert pooled["recovered"]["few_shot_mean"]["pooled"] == pytest.approx(1 - 0.1 / 0.4)


def write_run(workdir, run, with_preferences=True):
  report_lib.write_report(workdir / "report", {"report": run["report"]})
  if with_preferences:
    workdir_lib.write_jsonl(
      workdir / "evaluation" / "preference" / "preferences.jsonl", run["preferences"]
    )
  return workdir


def test_pooled_table_reads_workdirs_and_is_written(tmp_path):
  workdirs = [write_run(tmp_path / str(i), run) for i, run in enumerate(runs_of_two())]
  pooled = pooling.pooled_table(workdirs, num_resamples=1000)
  assert pooled == pooling.pool_reports(runs_of_two(), num_resamples=1000)
  path = pooling.write_pooled(tmp_path / "out", pooled, title="<b>")
  page = path.read_text()
  assert "&lt;b&gt;" in page and "<svg" in page and "<script" not in page
  markdown = (tmp_path / "out" / "pooled.md").read_text().replace("\u202f", " ").splitlines()
  assert markdown[0] == "|  | seed 0 | seed 1 | pooled | n |"
  assert (
    "| PPO-ptx against SFT, training labelers | 100.0 % [100.0 to 100.0 %] | "
    "50.0 % [50.0 to 50.0 %] | 75.0 % [50.0 to 100.0 %] | 80 |"
  ) in markdown
  assert "| Pretraining loss recovered by PPO-ptx | 90.0 % | 70.0 % | 80.0 % |  |" in markdown
  assert json.loads((tmp_path / "out" / "pooled.json").read_text())["seeds"] == [0, 1]


def test_runs_without_preferences_pool_their_reports(tmp_path):
  workdirs = [write_run(tmp_path / str(i), run, False) for i, run in enumerate(runs_of_two())]
  pooled = pooling.pooled_table(workdirs, num_resamples=100)
  assert pooled["win_rate_vs_sft"] == {}
  assert pooled["paired_difference"]["training_labelers"] is None
  assert "Reward-model accuracy" in pooling.pooled_markdown(pooled)
  assert "<svg" not in pooling.write_pooled(tmp_path / "out", pooled).read_text()


@pytest.mark.parametrize("runs", [[], [run_of(0, 1, 1)] * 2, [run_of(None, 1, 1)]])
def test_seeds_must_differ(runs):
  with pytest.raises(ValueError, match="each of its own seed"):
    pooling.pool_reports(runs)
