"""Folds over labelers: balanced groups, no prompt both trained on and tested, the whole command."""

import collections
import json

import commands
import numpy as np
import pytest

from rlhf import metrics
from rlhf.cli import folds as launch_folds
from rlhf.evals.reward_models import folds

SETTINGS = dict(num_resamples=100, seed=0)


def comparisons(counts: dict[str, int], num_prompts: int) -> list[dict]:
  """Labeler by labeler; prompts are shared, so that some are ranked by several labelers."""
  rng = np.random.default_rng(0)
  return [
    dict(
      prompt=f"p{rng.integers(num_prompts)}", completions=["a", "b"], ranks=[1, 2], labeler=labeler
    )
    for labeler, count in counts.items()
    for _ in range(count)
  ]


def test_groups_hold_every_labeler_once_and_about_equal_data():
  rng = np.random.default_rng(1)
  counts = {f"l{i}": int(rng.integers(5, 60)) for i in range(23)}
  groups = folds.deal(counts, 5)
  assert sorted(labeler for group in groups for labeler in group) == sorted(counts)
  loads = [sum(counts[labeler] for labeler in group) for group in groups]
  assert max(loads) - min(loads) <= min(counts.values())
  assert folds.deal(dict(reversed(counts.items())), 5) == groups
  with pytest.raises(ValueError, match="4 labelers cannot be split into 5 groups"):
    folds.deal({f"l{i}": 1 for i in range(4)}, 5)
  with pytest.raises(ValueError, match="1 groups of labelers"):
    folds.deal(counts, 1)


def test_no_prompt_is_trained_on_and_tested_and_no_labeler_is_in_both_groups():
  records = comparisons({f"l{i}": 40 for i in range(7)}, num_prompts=150)
  assert len({r["prompt"] for r in records}) < len(records)
  found = folds.split(records, num_folds=5, test_fraction=0.2, seed=0)
  assert len(found) == 5
  labelers = lambda part: {record["labeler"] for record in part}
  prompts = lambda part: {record["prompt"] for record in part}
  for fold in found:
    group = set(fold.heldout_labelers)
    assert labelers(fold.heldout) == group
    assert not (labelers(fold.train) | labelers(fold.own)) & group
    assert not prompts(fold.train) & (prompts(fold.own) | prompts(fold.heldout))
    inside = [record for record in records if record["labeler"] not in group]
    assert len(fold.train) + len(fold.own) == len(inside)
    assert 0.1 < len(fold.own) / len(inside) < 0.3
  held_out = collections.Counter(labeler for fold in found for labeler in fold.heldout_labelers)
  assert set(held_out.values()) == {1} and len(held_out) == 7


def test_what_cannot_be_split_is_named():
  records = comparisons({f"l{i}": 4 for i in range(5)}, num_prompts=100)
  split = lambda records, fraction=0.2: folds.split(
    records, num_folds=5, test_fraction=fraction, seed=0
  )
  with pytest.raises(ValueError, match='comparison 3 has no "labeler"'):
    split([*records[:2], {"prompt": "p"}])
  with pytest.raises(ValueError, match="test_fraction 1.0"):
    split(records, 1.0)
  with pytest.raises(ValueError, match="holds out l0 has no comparison in its part 'train'"):
    split([dict(record, prompt="same") for record in records])


def test_the_summary_by_hand():
  """Two folds of two seeds; accuracies pool pairs, the standard error is between seeds."""
  ones = lambda right, wrong: np.asarray([[1.0]] * right + [[0.0]] * wrong)
  runs = {
    (0, 0): dict(own=ones(3, 1), heldout=ones(1, 3)),
    (0, 1): dict(own=ones(2, 2), heldout=ones(1, 3)),
    (1, 0): dict(own=ones(4, 0), heldout=ones(1, 1)),
    (1, 1): dict(own=ones(3, 1), heldout=ones(2, 0)),
  }
  summary = folds.summarise(runs, **SETTINGS)
  assert summary["own"]["mean"] == pytest.approx(12 / 16) and summary["own"]["n"] == 8
  assert summary["heldout"]["mean"] == pytest.approx(5 / 12) and summary["heldout"]["n"] == 6
  # Own: seed 0 has (0.75 + 1) / 2, seed 1 (0.5 + 0.75) / 2: standard deviation 0.25 / sqrt(2).
  assert summary["own"]["standard_error"] == pytest.approx(0.25 / 2)
  assert summary["difference"]["mean"] == pytest.approx(12 / 16 - 5 / 12)
  assert [(row["fold"], row["seed"]) for row in summary["runs"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
  text = folds.describe(summary)
  assert "75.0 %" in text and "72.4 ± 0.4" in text and "69.6 ± 0.9" in text


def test_more_seeds_are_no_more_labelers():
  """A seed that says the same again moves no interval; the difference draws folds."""
  rng = np.random.default_rng(0)
  draw = lambda share: (rng.random((20, 3)) < share).astype(float)
  base = {fold: dict(own=draw(0.7), heldout=draw(0.4 + 0.1 * fold)) for fold in range(4)}
  base[0]["own"][::4, 1] = np.nan
  one, many = (
    folds.summarise(
      {(fold, seed): base[fold] for fold in base for seed in range(seeds)}, **SETTINGS
    )
    for seeds in (1, 6)
  )
  for name in ("own", "heldout", "difference"):
    assert {key: one[name][key] for key in ("low", "high", "n")} == pytest.approx(
      {key: many[name][key] for key in ("low", "high", "n")}
    )
  assert one["difference"]["n"] == 4 and one["own"]["n"] == 80
  with pytest.raises(ValueError, match=r"the seeds of fold 0 have \[20, 19\] prompts"):
    folds.summarise({(0, 0): base[0], (0, 1): base[0] | dict(own=base[0]["own"][1:])}, **SETTINGS)


def test_correct_leaves_ties_and_unused_slots_out():
  found = folds.correct(dict(scores=[[2.0, 1.0, 0.0]], ranks=[[1, 2, 2]], valid=[[1, 1, 1]]))
  np.testing.assert_array_equal(found, [[1, 1, np.nan]])


@pytest.fixture(scope="module")
def inputs(session_inputs) -> commands.Inputs:
  return session_inputs


@pytest.mark.slow
def test_the_command_goes_on_and_compares_with_the_paper(inputs, tmp_path, capsys):
  lines = commands.read_jsonl(inputs.data / "comparisons_train.jsonl")
  ranked = commands.write_jsonl(
    tmp_path / "ranked.jsonl", [dict(line, labeler=f"l{i % 3}") for i, line in enumerate(lines)]
  )
  workdir = tmp_path / "folds"
  argv = [
    "folds",
    "--config=configs/reward_model.py:test",
    f"--workdir={workdir}",
    "--folds=2",
    f"--config.init_from={inputs.policy}",
    f"--config.comparisons.train=jsonl:{ranked}",
    f"--config.comparisons.demonstrations={inputs.spec('demonstrations_train')}",
    "--config.reward.batch_size=8",
    "--config.reward.microbatch_size=8",
  ]
  launch_folds.main([*argv, "--seeds=0"])
  first = metrics.read(workdir / "fold_0" / "seed_0" / metrics.FILE)
  launch_folds.main([*argv, "--seeds=0,3"])
  assert metrics.read(workdir / "fold_0" / "seed_0" / metrics.FILE) == first  # not trained again
  summary = json.loads((workdir / "folds.json").read_text())
  assert {(row["fold"], row["seed"]) for row in summary["runs"]} == {(0, 0), (0, 3), (1, 0), (1, 3)}
  assert summary["groups"] == [["l0", "l2"], ["l1"]]
  assert 0 <= summary["heldout"]["low"] <= summary["heldout"]["mean"] <= 1
  assert "held-out group" in capsys.readouterr().out
  for path in (workdir / "fold_0" / "data").glob("*.jsonl"):
    assert path.stem in ("train", "own", "heldout")


@pytest.mark.parametrize(
  "flags,message",
  [
    (["--seeds=0,0"], "'0' is given twice"),
    (["--folds=9"], "2 labelers cannot be split into 9 groups"),
    (["--config.comparisons.valid=jsonl:x"], "leave it empty"),
    (["extra"], "unrecognized arguments: extra"),
    (["--config.init_from="], "init_from is empty"),
  ],
)
def test_bad_flags(inputs, tmp_path, capsys, flags, message: str):
  lines = commands.read_jsonl(inputs.data / "comparisons_train.jsonl")
  ranked = commands.write_jsonl(
    tmp_path / "ranked.jsonl", [dict(line, labeler=f"l{i % 2}") for i, line in enumerate(lines)]
  )
  with pytest.raises(SystemExit) as stopped:
    launch_folds.main(
      [
        "folds",
        "--config=configs/reward_model.py:test",
        f"--workdir={tmp_path / 'w'}",
        f"--config.init_from={inputs.policy}",
        f"--config.comparisons.train=jsonl:{ranked}",
        f"--config.comparisons.demonstrations={inputs.spec('demonstrations_train')}",
        *flags,
      ]
    )
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1
  assert not (tmp_path / "w" / "config.json").exists()
