"""The paper's main figure in miniature: which models it compares, and once through at test size."""

import json
import pathlib

import pytest

from rlhf.cli import main_figure


def test_every_size_and_seed_of_the_sweep_is_found(tmp_path):
  found = main_figure.find_models("tiny", tmp_path)
  assert [(models.size, models.seed) for models in found] == [
    (size, seed) for seed in (0, 1, 2) for size in ("32k", "397k", "1M")
  ]
  linked = main_figure.link(found[0], tmp_path / "figure")
  assert "," not in str(linked.workdir.relative_to(tmp_path))
  assert linked.workdir.readlink() == pathlib.Path("../../trials") / found[0].workdir.name
  assert main_figure.link(found[0], tmp_path / "figure") == linked


def test_sft_is_the_epoch_that_was_chosen(tmp_path):
  (tmp_path / "selection").mkdir()
  (tmp_path / "selection" / "done.json").write_text('{"epoch": 3}', encoding="utf-8")
  models = main_figure.Models(size="1M", seed=0, workdir=tmp_path)
  assert models.export("sft") == tmp_path / "sft" / "epochs" / "03"
  assert models.export("few_shot") == models.export("base") == tmp_path / "base" / "export"


@pytest.mark.slow
def test_the_figure_once_through(tmp_path, monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
  for _ in range(2):  # the second time nothing is left to do
    main_figure.main(
      [
        "main_figure",
        "--form=test",
        f"--workdir={tmp_path / 'run'}",
        f"--output={tmp_path / 'out'}",
      ]
    )
  data = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
  assert len(data["checkpoints"]) == 10 and data["preference"]["num_prompts"] > 0
  rows = {(row["metric"], row["variant"]): row["cells"] for row in data["suites"]["preference"]}
  assert rows["win_rate", "training"]["sft@25k"]["mean"] == 0.5
  assert "over the size" in (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
