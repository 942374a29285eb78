import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from tensorboardX.proto import event_pb2

from rlhf import metrics, processes, types


def metric(total, weight):
  return types.Metric(total=jnp.float32(total), weight=jnp.float32(weight))


def lines_of(directory):
  return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_time(lines):
  return [
    {key: number for key, number in line.items() if not key.startswith(("time", "perf/"))}
    for line in lines
  ]


def tensorboard_points(directory):
  """(tag, step, value) as TensorBoard would show them: a purge hides what was there before."""
  points = []
  for path in sorted((directory / "tensorboard").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      length = int.from_bytes(data[at : at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      if event.session_log.status == event_pb2.SessionLog.START:
        points = [point for point in points if point[1] < event.step]
      points += [(item.tag, event.step, item.simple_value) for item in event.summary.value]
  return points


def test_a_metric_adds_before_it_divides():
  total = metric(6.0, 2.0) + metric(1.0, 3.0)
  assert metrics.summarise({"x": total})["x"] == pytest.approx(7 / 5)  # and not (3 + 1/3) / 2


def test_summarise_takes_metrics_and_scalars():
  summary = metrics.summarise(
    {"a": metric(6, 4), "b": jnp.float32(2), "c": 3, "d": np.int32(4), "nothing": metric(0, 0)}
  )
  assert all(isinstance(number, float) for number in summary.values())
  assert math.isnan(summary.pop("nothing"))
  assert summary == {"a": 1.5, "b": 2.0, "c": 3.0, "d": 4.0}


def test_summarise_transfers_once(monkeypatch):
  calls = []
  device_get = jax.device_get
  monkeypatch.setattr(jax, "device_get", lambda tree: calls.append(tree) or device_get(tree))
  metrics.summarise({str(i): metric(i, 1) for i in range(5)})
  assert len(calls) == 1


def test_a_line_is_on_disk_when_write_returns(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.write(1, {"loss": 0.5, "perf/tokens_per_second": 10.0, "episodes": 512})
  (line,) = lines_of(tmp_path)
  assert list(line) == ["step", "time", "loss", "perf/tokens_per_second", "episodes"]
  assert without_time([line]) == [{"step": 1, "loss": 0.5, "episodes": 512}]
  assert isinstance(line["episodes"], int)


def test_numbers_come_back_exactly(tmp_path):
  numbers = {"a": float(np.float32(0.1)), "b": 1e-300, "c": -0.0, "d": 2**53 + 1}
  with metrics.Writer(tmp_path) as writer:
    writer.write(0, numbers)
  (line,) = metrics.read(tmp_path / "metrics.jsonl")
  assert {name: line[name] for name in numbers} == numbers
  assert math.copysign(1, line["c"]) == -1


def test_what_is_not_finite_is_valid_json(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {"a": float("nan"), "b": float("-inf"), "c": np.float32("inf"), "d": 1.0})
  (line,) = [
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines()
  ]
  assert (line["a"], line["b"], line["c"], line["d"]) == (None, None, None, 1.0)
  assert line["nonfinite"] == {"a": "nan", "b": "-inf", "c": "inf"}
  (line,) = metrics.read(tmp_path / "metrics.jsonl")
  assert math.isnan(line["a"]) and (line["b"], line["c"]) == (-math.inf, math.inf)
  assert "nonfinite" not in line


def test_a_step_is_written_once_and_in_order(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(5, {"loss": 1.0})
    with pytest.raises(ValueError, match="step 5 comes after step 5"):
      writer.write(5, {"loss": 1.0})
  with metrics.Writer(tmp_path) as writer, pytest.raises(ValueError, match="after step 5"):
    writer.write(4, {"loss": 1.0})
  assert len(lines_of(tmp_path)) == 1


@pytest.mark.parametrize("name", ["step", "time", "nonfinite"])
def test_the_lines_own_names_are_refused(tmp_path, name):
  with metrics.Writer(tmp_path) as writer, pytest.raises(ValueError, match="choose other names"):
    writer.write(1, {name: 1.0})


@pytest.mark.parametrize(
  ("step", "kept"), [(3, [1, 2, 3]), (9, [1, 2, 3, 4]), (-1, []), (None, [1, 2, 3, 4])]
)
def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path, step, kept):
  with metrics.Writer(tmp_path) as writer:
    for i in range(1, 5):
      writer.write(i, {"loss": i})
  before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
  with metrics.Writer(tmp_path) as writer:
    writer.truncate_after(step)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(before[: len(kept)])
    next_step = len(kept) + 1
    writer.write(next_step, {"loss": 10 * next_step})
  assert [line["step"] for line in lines_of(tmp_path)] == kept + [next_step]
  assert tensorboard_points(tmp_path) == (
    [("loss", i, float(i)) for i in kept] + [("loss", next_step, 10.0 * next_step)]
  )


def test_a_half_written_last_line_is_dropped(tmp_path):
  with metrics.Writer(tmp_path) as writer:
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 2.0})
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(path.read_bytes()[:-3])
  assert [line["step"] for line in metrics.read(path)] == [1]
  with metrics.Writer(tmp_path) as writer:
    writer.write(2, {"loss": 2.5})
  assert without_time(lines_of(tmp_path)) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.5}]


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ('{"step": 1}\n{"step": \n{"step": 3}\n', r"metrics.jsonl:2: not JSON"),
    ('{"loss": 1}\n', r"metrics.jsonl:1: no object with a step"),
  ],
)
def test_a_damaged_line_is_named(tmp_path, text, message):
  path = tmp_path / "metrics.jsonl"
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    metrics.read(path)


def test_only_process_0_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, "is_main", lambda: False)
  with metrics.Writer(tmp_path / "run") as writer:
    writer.truncate_after(0)
    writer.write(1, {"loss": 1.0})
  assert not (tmp_path / "run").exists()


@pytest.fixture
def progress_text(monkeypatch):
  """progress_text(terminal=...): what the console shows of a short run."""

  def run(*, terminal, seconds_between_lines=0.0, num_tokens=100) -> str:
    text = io.StringIO()
    console = rich.console.Console(file=text, force_terminal=terminal, width=120, highlight=False)
    monkeypatch.setattr(metrics.rich.console, "Console", lambda **_: console)
    monkeypatch.setattr(metrics, "_SECONDS_BETWEEN_LINES", seconds_between_lines)
    with metrics.Progress("sft", 3) as progress:
      for step in range(1, 4):
        progress.update(step, {"loss": 1 / step, "[lr]": 1e-4}, num_tokens=num_tokens)
      progress.note("[note] saved")
    return text.getvalue()

  return run


def test_progress_prints_plain_lines_without_a_terminal(progress_text):
  text = progress_text(terminal=False)
  lines = text.splitlines()
  assert len(lines) == 4 and "\x1b" not in text
  assert lines[0] == "sft  1/3  starting  loss 1  [lr] 0.0001"
  assert lines[2].startswith("sft  3/3  ") and "tokens/s" in lines[2]
  assert lines[2].endswith("0:00:00 left  loss 0.3333  [lr] 0.0001")
  assert lines[3] == "[note] saved"


def test_progress_without_tokens_shows_no_rate_of_them(progress_text):
  text = progress_text(terminal=False, num_tokens=0)
  assert "tokens/s" not in text
  assert text.splitlines()[2] == "sft  3/3  0:00:00 left  loss 0.3333  [lr] 0.0001"


def test_progress_prints_the_first_and_the_last_line_at_least(progress_text):
  text = progress_text(terminal=False, seconds_between_lines=1e9)
  assert [line.split("  ")[1] for line in text.splitlines()[:-1]] == ["1/3", "3/3"]


def test_progress_draws_on_a_terminal(progress_text):
  text = progress_text(terminal=True)
  assert "3/3" in text and "loss 0.3333  [lr] 0.0001" in text and "[note] saved" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_silent_on_other_processes(terminal, monkeypatch, progress_text):
  monkeypatch.setattr(processes, "is_main", lambda: False)
  assert progress_text(terminal=terminal) == ""


def test_rates_leave_out_the_first_step(monkeypatch):
  clock = iter([100.0, 102.0, 104.0])  # the first ends at 100, whenever compilation began
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
  monkeypatch.setattr(processes, "is_main", lambda: False)
  with metrics.Progress("sft", 13, start=10) as progress:
    progress.update(11, {}, num_tokens=1_000_000)
    assert math.isnan(progress.tokens_per_second) and math.isnan(progress.seconds_left)
    progress.update(11, {}, num_tokens=60)
    progress.update(12, {}, num_tokens=40)
  assert progress.tokens_per_second == 100 / 4
  assert progress.seconds_left == 1 / (1 / 4)
