"""Mixtures: exact proportions, nothing twice, whole batches, and exports along the way."""

import collections

import commands
import helpers
import numpy as np
import pytest

from rlhf import sft
from rlhf.cli import train
from rlhf.data import mixtures


def examples(name: str, count: int) -> list[dict]:
  return [{"prompt": f"{name}{i}", "completion": "x"} for i in range(count)]


SOURCES = [examples("a", 100), examples("b", 30), examples("c", 500)]


def drawn(records) -> collections.Counter:
  return collections.Counter(record["prompt"][0] for record in records)


@pytest.mark.parametrize(
  "weights,max_examples,expected",
  [
    ((1, 1, 2), 80, dict(a=20, b=20, c=40)),
    ((1, 1, 2), None, dict(a=30, b=30, c=60)),  # b has no more
    ((1, 1, 2), 1000, dict(a=30, b=30, c=60)),
    ((0.5, 0.2, 0.3), 7, dict(a=4, b=1, c=2)),  # 3.5, 1.4, 2.1
    ((), None, dict(a=100, b=30, c=500)),
    ((), 63, dict(a=10, b=3, c=50)),
  ],
  ids=str,
)
def test_proportions_hold_and_nothing_comes_twice(weights, max_examples, expected):
  records, counts = mixtures.mix(SOURCES, weights, max_examples=max_examples, seed=0)
  assert drawn(records) == expected
  assert len({record["prompt"] for record in records}) == len(records) == counts["kept"]
  left_out = 630 - len(records)
  assert counts.get("left out (weights, max_examples)", 0) == left_out
  again, _ = mixtures.mix(SOURCES, weights, max_examples=max_examples, seed=0)
  assert list(again) == list(records)
  other, _ = mixtures.mix(SOURCES, weights, max_examples=max_examples, seed=1)
  assert list(other) != list(records) and drawn(other) == expected


def test_the_order_is_mixed_and_any_example_may_be_drawn():
  records, _ = mixtures.mix(SOURCES, (), max_examples=None, seed=0)
  halves = [drawn(records[:315]), drawn(records[315:])]
  assert all(half["a"] > 25 and half["b"] > 5 for half in halves)
  seen = {
    record["prompt"]
    for seed in range(40)
    for record in mixtures.mix(SOURCES, (1, 1, 1), max_examples=60, seed=seed)[0]
    if record["prompt"][0] == "a"
  }
  assert len(seen) == 100


def test_equal_examples_are_taken_once_and_counted():
  twice = [
    examples("a", 5) + examples("a", 3),
    examples("b", 2) + examples("a", 4),
    [{"prompt": "a0", "completion": "another"}],
  ]
  records, counts = mixtures.mix(twice, (), max_examples=None, seed=0)
  assert counts == {"kept": 8, "dropped (the same example once more)": 7}
  assert len({(record["prompt"], record["completion"]) for record in records}) == 8


def test_an_impossible_mixture_is_named():
  with pytest.raises(ValueError, match="leave source 1 without an example among 20"):
    mixtures.mix(SOURCES, (1, 1, 500), max_examples=20, seed=0)


def test_rows_of_another_epoch_never_fill_the_last_batch():
  rows = helpers.make_lm_batch(8, 12, 0)
  kept = sft.whole_batches(rows, 3)
  np.testing.assert_array_equal(kept.tokens_BT, rows.tokens_BT[:6])
  assert len(sft.whole_batches(rows, 4).tokens_BT) == 8
  with pytest.raises(ValueError, match="the mixture has 8 rows and sft.batch_size is 9"):
    sft.whole_batches(rows, 9)


@pytest.fixture(scope="module")
def inputs(session_inputs) -> commands.Inputs:
  return session_inputs


def flags(inputs, workdir, **changes) -> list[str]:
  fields = {
    "init_from": inputs.policy,
    "demonstrations.train": repr(
      (inputs.spec("demonstrations_train"), inputs.spec("demonstrations_valid"))
    ),
    "demonstrations.valid": inputs.spec("demonstrations_valid"),
    "sft.batch_size": 8,
    "sft.microbatch_size": 8,
    "sft.keep_rows": 20,
  } | {name.replace("__", "."): value for name, value in changes.items()}
  return [
    "train",
    "sft",
    "--config=configs/sft.py:test,t0",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]


@pytest.mark.slow
def test_a_mixture_is_read_once_and_kept_along_the_way(inputs, tmp_path, capsys):
  """56 demonstrations, of which 3 : 1 makes at most 32; rows of 8 a step, kept every 20 rows."""
  train.main(
    flags(
      inputs,
      tmp_path / "run",
      demonstrations__weights="(3.0, 1.0)",
      demonstrations__overlong="truncate_left",
    )
  )
  out = capsys.readouterr().out
  assert "examples: 32 kept, 24 left out (weights, max_examples)" in out
  assert sorted(path.name for path in (tmp_path / "run" / "rows").iterdir()) == ["00000024"]
  assert "steps 4" in out and (tmp_path / "run" / "export" / "export.json").is_file()


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(demonstrations__train="()"), "config.demonstrations.train is empty"),
    (dict(sft__num_epochs=2), "example of a mixture (demonstrations.train is a tuple) is read"),
    (dict(demonstrations__weights="(1.0,)"), "has 1 numbers for 2 sources"),
    (dict(demonstrations__weights="(1.0, -1.0)"), "each must be above 0"),
    (dict(demonstrations__max_examples=0), "demonstrations.max_examples is 0"),
    (dict(sft__keep_rows=0), "sft.keep_rows is 0"),
    (dict(demonstrations__train="('jsonl:none.jsonl',)"), "none.jsonl"),
  ],
  ids=str,
)
def test_bad_mixtures_are_refused_before_anything_is_made(
  inputs, tmp_path, capsys, changes, message: str
):
  with pytest.raises(SystemExit) as stopped:
    train.main(flags(inputs, tmp_path / "run", **changes))
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
  assert not (tmp_path / "run").exists()
