"""The commands in a row, as a user runs them."""

import json
import pathlib
import re
import signal

import commands
import pytest

PIPELINE = ("launch.pipeline", "--config=configs/pipeline.py:test")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.slow
def test_a_second_round_of_comparisons(inputs, tmp_path):
  """Answers of a policy, ranked, train a reward model, whose scores agree with the ranks."""
  commands.finish(
    "launch.generate",
    f"--checkpoint={inputs.policy}",
    "--num_samples=4",
    "--drop_empty",
    f"--max_response_tokens={commands.RESPONSE}",
    f"--output={tmp_path / 'to_rank.jsonl'}",
    f"--prompts={inputs.data / 'prompts_reward_model.jsonl'}",
    "--on_bad=skip",
  )
  lines = commands.read_jsonl(tmp_path / "to_rank.jsonl")
  assert len(lines) > 20 and all("user" in line for line in lines)
  for line in lines:  # people who like the letter e
    likes = [text.count("e") for text in line["completions"]]
    line["ranks"] = [sorted(likes, reverse=True).index(number) + 1 for number in likes]
  ranked = commands.write_jsonl(tmp_path / "ranked.jsonl", lines)
  flags = commands.train_flags(
    inputs,
    "reward_model",
    comparisons__train=f"jsonl:{ranked}",
    reward__num_epochs=16,
    checkpoint__every=40,
    loop__eval_every=40,
  )
  commands.finish("launch.train", *flags, f"--workdir={tmp_path / 'rm'}")
  text = commands.finish(
    "launch.score",
    f"--reward_model={tmp_path / 'rm'}",
    f"--input={ranked}",
    f"--output={tmp_path / 'scored.jsonl'}",
    "--on_bad=skip",
  )
  accuracy = float(re.search(r"accuracy ([\d.]+)%", text)[1])
  assert accuracy > 75, text
  scored = commands.read_jsonl(tmp_path / "scored.jsonl")
  assert len(scored) > 20  # half-learned letters take more tokens when they are read again
  assert all(line["ranks"] in [other["ranks"] for other in lines] for line in scored)
  assert all(len(line["scores"]) == len(line["completions"]) for line in scored)


# ----------------------------------------------------------------------------- the pipeline


@pytest.fixture(scope="module")
def pipeline_run(tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished run of the test size."""
  workdir = tmp_path_factory.mktemp("pipeline") / "run"
  text = commands.finish(*PIPELINE, f"--workdir={workdir}")
  assert "Traceback" not in text
  return workdir


def report_of(workdir: pathlib.Path, *, timed: bool = False) -> dict:
  report = json.loads((workdir / "report" / "report.json").read_text())
  return report if timed else {key: value for key, value in report.items() if key != "wall_seconds"}


def stages(workdir: pathlib.Path) -> dict[str, list[dict]]:
  """Stage -> its metrics without times."""
  return {
    str(path.parent.relative_to(workdir)): commands.untimed(path)
    for path in sorted(workdir.rglob("metrics.jsonl"))
  }


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(pipeline_run):
  files = {
    path: path.stat().st_mtime_ns
    for path in pipeline_run.rglob("*")
    if path.is_file() and path.suffix in (".jsonl", ".json") and path.parts[-2] not in ("report",)
  }
  before = report_of(pipeline_run, timed=True)
  commands.finish(*PIPELINE, f"--workdir={pipeline_run}")
  assert {path: path.stat().st_mtime_ns for path in files} == files
  assert report_of(pipeline_run, timed=True) == before


@pytest.mark.slow
def test_two_runs_of_one_config_give_one_report(pipeline_run, tmp_path):
  commands.finish(*PIPELINE, f"--workdir={tmp_path / 'run'}")
  assert report_of(tmp_path / "run") == report_of(pipeline_run)
  assert stages(tmp_path / "run") == stages(pipeline_run)


@pytest.mark.slow
@pytest.mark.parametrize(
  "stage,with_signal,status",
  [
    ("sft", signal.SIGTERM, 143),
    ("ppo_ptx", signal.SIGKILL, -9),
    ("evaluation", signal.SIGKILL, -9),
  ],
)
def test_an_interrupted_run_gives_the_same_report(
  pipeline_run, tmp_path, stage, with_signal, status
):
  workdir = tmp_path / "run"
  moments = {
    "sft": lambda: commands.num_lines(workdir / "sft" / "metrics.jsonl") >= 3,
    "ppo_ptx": lambda: commands.num_lines(workdir / "ppo_ptx" / "metrics.jsonl") >= 3,
    "evaluation": lambda: (workdir / "evaluation" / "preference" / "completions.jsonl").exists(),
  }
  with commands.started(*PIPELINE, f"--workdir={workdir}") as process:
    commands.wait_until(moments[stage], process, seconds=900)
    process.send_signal(with_signal)
    process.communicate()
  assert process.returncode == status
  assert not (workdir / stage / "done.json").exists()
  commands.finish(*PIPELINE, f"--workdir={workdir}")
  assert report_of(workdir) == report_of(pipeline_run)
  assert stages(workdir) == stages(pipeline_run)


@pytest.mark.slow
def test_another_seed_is_another_run(pipeline_run):
  text = commands.finish(*PIPELINE, "--config.seed=1", f"--workdir={pipeline_run}", status=2)
  assert text == (
    f"error: {pipeline_run} holds the run of another config: seed is 0 there and 1 "
    "here; choose another --workdir, or delete this one\n"
  )


@pytest.mark.slow
def test_the_report_page_stands_alone(pipeline_run):
  page = (pipeline_run / "report" / "report.html").read_text(encoding="utf-8")
  references = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']|url\(["']?([^"')]*)""", page)
  outside = [a or b for a, b in references if not (a or b).startswith(("data:", "#"))]
  assert not outside
  assert "@import" not in page and "<script src" not in page
  prompts = commands.read_jsonl(pipeline_run / "evaluation" / "preference" / "completions.jsonl")
  assert len(prompts) > 5


@pytest.mark.slow
def test_the_pipeline_s_exports_answer_and_score(pipeline_run, tmp_path):
  """Every policy of the run is a checkpoint of launch.generate, with the run's own format."""
  for stage in ("base", "ppo_init", "sft/epochs/01", "ppo", "ppo_ptx", "ppo_ptx/export_live"):
    output = tmp_path / f"{stage.replace('/', '_')}.jsonl"
    commands.finish(
      "launch.generate",
      f"--checkpoint={pipeline_run / stage}",
      "--max_response_tokens=4",
      f"--prompts={pipeline_run / 'data' / 'prompts_ppo_valid.jsonl'}",
      f"--output={output}",
      "--on_bad=skip",
    )
    assert commands.num_lines(output) > 5
  text = commands.finish(
    "launch.score",
    f"--reward_model={pipeline_run / 'reward_model'}",
    f"--input={pipeline_run / 'comparisons' / 'valid.jsonl'}",
    "--on_bad=skip",
    f"--output={tmp_path / 'scored.jsonl'}",
  )
  assert "untied pairs" in text
