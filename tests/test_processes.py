"""Several processes are one job: the same numbers, one that prints, and all end together."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import commands
import helpers
import jax
import numpy as np
import pytest
import test_mesh_equivalence as equivalence

from rlhf import metrics, processes, sharding
from rlhf.cli import local
from rlhf.cli.cluster import roll_call
from rlhf.cli.common import flags, join
from rlhf.data import batches as batches_lib
from rlhf.sharding import MeshConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent


# ----------------------------------------------------------------------------- launch.local: flags


def test_what_follows_the_dashes_is_for_the_processes():
  job = ["--config=c.py", "--workdir=x", "--config.seed=1"]
  given, command = local.parse(["local", "--num_processes=3", "--", "sft", *job])
  assert (given.num_processes, given.devices_per_process) == (3, 4)
  assert command == ["train", "sft", *job]
  assert local.parse(["local", "--", "pipeline", *job])[1] == ["pipeline", *job]


@pytest.mark.parametrize(
  "argv,sentence",
  [
    (["--num_processes=2"], "there is no job; write -- and the arguments of `rlhf train`"),
    (["--", "sft", "--config=c.py"], "the following arguments are required: --workdir"),
    (
      ["--", "sft", "--config=c.py", "--workdir=x", "--process_id=1"],
      "--process_id is given after --, but the launcher sets it",
    ),
    (["--num_processes=0", "--", "sft"], "argument --num_processes: 0 is below 1"),
    (["--processes=2", "--", "sft"], "unrecognized arguments: --processes=2"),
    (["sft", "--workdir=x"], "unrecognized arguments: sft --workdir=x"),
  ],
)
def test_wrong_flags_of_launch_local(capsys, argv, sentence):
  with pytest.raises(SystemExit) as stopped:
    local.main(["local", *argv])
  assert stopped.value.code == 2
  assert f"error: {sentence}" in capsys.readouterr().err


def test_each_process_is_told_its_place(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
  found = local.environment(1, 2, 4, 12345)
  assert found["XLA_FLAGS"].split() == ["--a=1", "--xla_force_host_platform_device_count=4"]
  assert [
    found[f"JAX_{name}"] for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
  ] == ["127.0.0.1:12345", "2", "1"]


def test_a_free_port_can_be_opened():
  with socket.create_server(("127.0.0.1", roll_call.free_port())):
    pass


# ----------------------------------------------------------------------------- launch.local: ends


def start_job(tmp_path, script: str, num_processes: int = 2) -> local.Job:
  """Processes that run `script`, with their number in `me`."""
  script = f"import os, sys, time; me = int(os.environ['JAX_PROCESS_ID'])\n{script}"
  return local.Job([sys.executable, "-c", script], num_processes, 1, tmp_path)


def test_the_output_of_process_0_is_shown(tmp_path, capsys):
  noise = (
    "[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
  )
  script = f"print('{noise}'); print('7{noise}of', me); print(me, file=sys.stderr)"
  assert local.wait(start_job(tmp_path, script)) == 0
  out, err = capsys.readouterr()
  assert (out, err) == ("7of 0\n", "0\n")


def test_the_first_failure_ends_all_and_is_shown(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(local, "SECONDS_AFTER_FAILURE", 0.2)
  job = start_job(tmp_path, "print('line of', me)\nif me == 1: sys.exit(7)\ntime.sleep(600)", 3)
  assert local.wait(job) == 7
  assert all(process.poll() is not None for process in job.processes)
  err = capsys.readouterr().err
  assert "process 1 of 3 ended with status 7; its last lines:\nline of 1\n" in err
  assert (
    "error: process 1 of 3 ended with status 7; 2 still ran and were ended; run the same "
    "command to resume"
  ) in err


def test_one_mistake_of_all_is_said_once(tmp_path, capsys):
  script = "time.sleep(0.3 * (1 - me)); print('error: x', file=sys.stderr); sys.exit(2)"
  assert local.wait(start_job(tmp_path, script)) == 2
  assert capsys.readouterr().err == "error: x\n"


def test_a_killed_process_counts_as_in_a_shell(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(local, "SECONDS_AFTER_FAILURE", 0.2)
  job = start_job(tmp_path, "time.sleep(600)")
  job.processes[1].kill()
  assert local.wait(job) == 128 + signal.SIGKILL
  assert "process 1 of 2 ended with status 137" in capsys.readouterr().err


def test_signals_reach_all_processes(tmp_path):
  script = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "open(sys.argv[1] + str(me), 'w'); time.sleep(600)"
  )
  job = local.Job(
    [
      sys.executable,
      "-c",
      f"import os, sys, time; me = os.environ['JAX_PROCESS_ID']\n{script}",
      str(tmp_path / "ready"),
    ],
    2,
    1,
    tmp_path,
  )
  commands.wait_until(lambda: len(list(tmp_path.glob("ready*"))) == 2, job.processes[0])
  with local.forwarding(job):
    signal.raise_signal(signal.SIGTERM)
    assert local.wait(job) == 143


# ----------------------------------------------------------------------------- a process's place


def place_of(monkeypatch, *argv, **environment):
  """What `join.find_place` makes of flags and environment."""
  for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
    monkeypatch.delenv(name, raising=False)
  for name, text in environment.items():
    monkeypatch.setenv(name, text)
  parser = flags.Parser("program", None)
  join.add_flags(parser)
  return join.find_place(parser.parse(["program", *argv]))


def test_flags_come_before_the_environment(monkeypatch):
  assert place_of(monkeypatch) is None
  assert place_of(
    monkeypatch,
    "--process_id=2",
    JAX_COORDINATOR_ADDRESS="a:1",
    JAX_NUM_PROCESSES="4",
    JAX_PROCESS_ID="3",
  ) == dict(coordinator_address="a:1", num_processes=4, process_id=2, local_device_ids=None)
  assert (
    place_of(monkeypatch, "--coordinator_address=a:1", "--num_processes=1", "--process_id=0")
    is None
  )


def test_the_cluster_is_asked_if_wanted(monkeypatch):
  slurm = dict(
    SLURM_JOB_ID="4097",
    SLURM_STEP_NODELIST="node[07-09]",
    SLURM_NTASKS="3",
    SLURM_PROCID="2",
    SLURM_LOCALID="0",
    SLURM_STEP_NUM_NODES="3",
  )
  assert place_of(monkeypatch, **slurm) is None
  place = place_of(monkeypatch, "--cluster=slurm", **slurm)
  assert (place["num_processes"], place["process_id"]) == (3, 2)
  assert place["coordinator_address"].startswith("node07:")


@pytest.mark.parametrize(
  "argv,sentence",
  [
    (
      ["--coordinator_address=a:1", "--process_id=0"],
      "--num_processes (or JAX_NUM_PROCESSES) is "
      "missing, but --coordinator_address and --process_id is given",
    ),
    (
      ["--coordinator_address=a", "--num_processes=2", "--process_id=0"],
      "--coordinator_address=a is not HOST:PORT",
    ),
    (
      ["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"],
      "--process_id=2 does not fit --num_processes=2; use 0 to 1",
    ),
    (
      ["--cluster=slurm"],
      "--cluster=slurm: jax cannot find this process's place in the environment (KeyError: 'SLURM_",
    ),
    (["--cluster=auto"], "--cluster=auto: jax finds no cluster in this environment; start the job"),
  ],
)
def test_wrong_places(monkeypatch, argv, sentence):
  with pytest.raises(ValueError) as error:
    place_of(monkeypatch, *argv)
  assert str(error.value).startswith(sentence)


def test_flags_of_a_place_are_checked_alone(monkeypatch, capsys):
  for flag in ("--cluster=slurn", "--connect_timeout=0", "--process_id=-1"):
    with pytest.raises(SystemExit):
      place_of(monkeypatch, flag)
    assert f"argument {flag.partition('=')[0]}: " in capsys.readouterr().err


def test_a_jax_that_cannot_be_asked_for_the_cluster(monkeypatch):
  monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
  monkeypatch.delattr("jax._src.clusters", raising=False)
  with pytest.raises(ValueError, match="give --coordinator_address, --num_processes and --proc"):
    place_of(monkeypatch, "--cluster=auto")


def test_a_number_in_the_environment_that_is_none(monkeypatch):
  with pytest.raises(ValueError, match="JAX_PROCESS_ID=x in the environment is not a whole number"):
    place_of(monkeypatch, JAX_PROCESS_ID="x")


# ----------------------------------------------------------------------------- the roll call


def call(process_ids, num_processes: int, seconds: float, *, totals=None) -> list[str]:
  """What each process that takes part ends with: "" or the sentence of its error."""
  address = f"127.0.0.1:{roll_call.free_port()}"
  totals = [num_processes] * len(process_ids) if totals is None else totals
  said = [None] * len(process_ids)

  def run(place: int):
    try:
      roll_call.hold(
        address, num_processes=totals[place], process_id=process_ids[place], seconds=seconds
      )
      said[place] = ""
    except (roll_call.MissingProcess, ValueError) as error:
      said[place] = str(error)

  threads = [threading.Thread(target=run, args=(place,)) for place in range(len(process_ids))]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return said


def test_all_go_on_when_all_are_there():
  assert call([2, 0, 1], 3, 30) == ["", "", ""]


def test_those_who_came_are_told_who_is_missing():
  for sentence in call([0, 2], 4, 1.0):
    assert sentence.startswith("processes 1, 3 of 4 did not connect to process 0 at 127.0.0.1:")
    assert "within 1 s; look at their logs" in sentence


def test_process_0_can_be_the_missing_one():
  (sentence,) = call([1], 2, 0.5)
  assert sentence.startswith("process 0 of 2 did not answer process 1 at 127.0.0.1:")
  assert "(" in sentence and "refused" in sentence


def test_one_that_came_and_went_is_missing():
  port = roll_call.free_port()
  said = []

  def process_0():  # of three: the last to come would end the roll call
    try:
      roll_call.hold(f"127.0.0.1:{port}", num_processes=3, process_id=0, seconds=2)
    except roll_call.MissingProcess as error:
      said.append(str(error))

  thread = threading.Thread(target=process_0)
  thread.start()
  for _ in range(100):
    try:
      with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b'{"process_id": 1, "num_processes": 3}\n')
        time.sleep(0.2)
      break
    except ConnectionRefusedError:
      time.sleep(0.02)
  thread.join()
  assert said[0].startswith("processes 1, 2 of 3 did not connect")


def test_two_processes_of_one_number():
  said = call([0, 1, 1], 3, 20)
  assert said == ["two processes were started with --process_id=1; give each its own"] * 3


def test_processes_that_disagree_on_their_number():
  process_0, process_1 = call([0, 1], 2, 1.5, totals=[2, 3])
  assert process_0.startswith("process 1 of 2 did not connect")
  assert process_1 == (
    "process 1 was started with --num_processes=3 and process 0 with 2; make them equal"
  )


def test_a_missing_process_is_one_sentence_and_status_1(tmp_path):
  """The whole way through launch.train, with the flags of a user."""
  flags_ = [
    f"--coordinator_address=127.0.0.1:{roll_call.free_port()}",
    "--num_processes=2",
    "--process_id=0",
    "--connect_timeout=1",
  ]
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "launch.train",
      "sft",
      "--config=configs/sft.py:test",
      f"--workdir={tmp_path / 'x'}",
      *flags_,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 1
  assert done.stderr.startswith("error: process 1 of 2 did not connect to process 0 at 127.0.0.1:")
  assert done.stderr.count("\n") == 1
  assert not (tmp_path / "x").exists()


# ----------------------------------------------------------------------------- rows of a batch


def rows_by_process(mesh, num_processes: int, num_rows: int) -> list[slice]:
  """`local_rows` of processes that hold the mesh's devices in their order."""
  devices = jax.devices()
  size = len(devices) // num_processes
  return [
    sharding.local_rows(mesh, num_rows, devices[p * size : (p + 1) * size])
    for p in range(num_processes)
  ]


@pytest.mark.parametrize("sizes", equivalence.MESHES, ids=equivalence.mesh_ids)
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_make_the_rows_that_their_devices_hold(sizes, num_processes):
  mesh, num_rows = equivalence.mesh_of(sizes), 16
  batch = helpers.make_lm_batch(40, 8, 0)
  whole = batches_lib.Batches(batch, batch_size=num_rows, seed=3)
  placed = sharding.put_batch(mesh, whole[5]).tokens_BT
  size = 8 // num_processes
  for process, rows in enumerate(rows_by_process(mesh, num_processes, num_rows)):
    part = batches_lib.Batches(batch, batch_size=num_rows, seed=3, share=rows)[5].tokens_BT
    np.testing.assert_array_equal(part, whole[5].tokens_BT[rows])
    # Rows are split over `data` and `fsdp`, of which a process has its share or all.
    parts = min(num_processes, sizes[0] * sizes[1])
    assert part.shape[0] == num_rows // parts
    for shard in placed.addressable_shards:
      if shard.device in jax.devices()[process * size : (process + 1) * size]:
        start, stop, _ = shard.index[0].indices(num_rows)
        np.testing.assert_array_equal(part[start - rows.start : stop - rows.start], shard.data)


def test_rows_may_be_the_second_axis():
  mesh = equivalence.mesh_of((2, 2, 2))
  x = np.arange(3 * 8 * 2).reshape(3, 8, 2)
  placed = sharding.put_batch(mesh, {"x": x}, 8, axis=1)["x"]
  np.testing.assert_array_equal(placed, x)
  assert placed.addressable_shards[0].data.shape == (3, 2, 2)


def test_rows_that_processes_cannot_share():
  mesh = sharding.make_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
  with pytest.raises(ValueError, match="12 rows does not divide over data.fsdp = 8 devices"):
    sharding.local_rows(mesh, 12)


# ----------------------------------------------------------------------------- alone


def test_one_process_is_alone():
  assert processes.count() == 1 and processes.is_main()
  processes.wait("nobody")
  with processes.main_first("nobody"):
    pass
  tree = {"x": jax.numpy.arange(3), "y": 2.0}
  assert processes.to_host(tree)["x"].tolist() == [0, 1, 2]


def test_counting_processes_needs_no_jax():
  code = (
    "import sys; from rlhf import workdir; from rlhf.cli import local; "
    "assert workdir.processes.is_main(); assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# ----------------------------------------------------------------------------- 2 x 1 devices

TOGETHER = """
import pathlib, sys, time
from rlhf.cli.common import flags, join, startup
parser = flags.Parser("program", None)
join.add_flags(parser)
with startup.end_at_once(), startup.one_sentence_errors():
  join.join(parser.parse(["program"]))
  import jax
  import numpy as np
  from rlhf import processes, sharding, workdir
  me = jax.process_index()
  print("process", me, "of", processes.count(), processes.is_main())
  path = pathlib.Path(sys.argv[1])
  workdir.write_text(path / f"written_by_{me}", "")
  with processes.main_first("file"):
    if me == 0:
      time.sleep(0.5)
      (path / "first").write_text("")
    assert (path / "first").exists()
  if me == 0:
    time.sleep(0.5)
  workdir.mark_done(path / "stage", {"me": me})
  assert workdir.done_result(path / "stage") == {"me": 0}
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=1, tensor=1))
  x = sharding.put_batch(mesh, np.arange(3.0)[None] + me, 2)  # a row of each process
  assert not x.is_fully_addressable
  np.testing.assert_array_equal(processes.to_host({"x": x})["x"], [[0, 1, 2], [1, 2, 3]])
  if me == 1:
    raise RuntimeError("process 1 has had enough")
  processes.wait("for process 1, which never comes")
"""


def test_two_processes_take_turns_and_end_together(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(local, "SECONDS_AFTER_FAILURE", 0.5)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  assert local.wait(local.Job([sys.executable, "-c", TOGETHER, str(tmp_path)], 2, 1, tmp_path)) == 1
  out, err = capsys.readouterr()
  assert out == "process 0 of 2 True\n"
  assert "process 1 of 2" not in (tmp_path / "process_1.log").read_text()
  assert "RuntimeError: process 1 has had enough" in err
  assert "process 1 of 2 ended with status 1; 1 still ran and were ended" in err
  assert {path.name for path in tmp_path.glob("written*")} == {"written_by_0"}


# ----------------------------------------------------------------------------- 2 x 4 devices


def check_two_processes(tmp_path, sizes, *, episodes: bool):
  """Gradients and metrics, and episodes if asked for, are those of one device."""
  output = tmp_path / "found.npz"
  command = [
    sys.executable,
    str(ROOT / "tests" / "one_of_many.py"),
    equivalence.mesh_ids(sizes),
    str(output),
    *["episodes"] * episodes,
  ]
  job = local.Job(command, 2, 4, tmp_path)
  assert local.wait(job) == 0
  with np.load(output) as found:
    found = dict(found)
  for name in equivalence.RUNS:
    expected_gradient, expected_metrics = equivalence.on_one_device(name)
    prefix = f"{name}/gradient/"
    gradient = jax.tree_util.tree_map_with_path(
      lambda path, _, prefix=prefix: found[prefix + sharding.path_name(path)], expected_gradient
    )
    helpers.assert_leaves_close(gradient, expected_gradient)
    assert {key: float(found[f"{name}/metric/{key}"]) for key in expected_metrics} == pytest.approx(
      expected_metrics, rel=1e-5, abs=1e-6
    ), name
  if not episodes:
    return
  expected = equivalence.episodes_on_one_device()
  np.testing.assert_array_equal(found["episodes/tokens_BT"], expected.tokens_BT)
  for name in ("logprob_BT", "value_BT", "ref_logprob_BT", "score_B", "finished_B"):
    np.testing.assert_allclose(found[f"episodes/{name}"], getattr(expected, name), atol=3e-5)


def test_two_processes_compute_what_one_device_does(tmp_path):
  check_two_processes(tmp_path, (2, 2, 2), episodes=False)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", equivalence.MESHES, ids=equivalence.mesh_ids)
def test_two_processes_on_all_meshes(tmp_path, sizes):
  check_two_processes(tmp_path, sizes, episodes=True)


# ----------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


RUNS = {
  "sft": dict(sft__max_steps=24, loop__eval_every=6, sft__keep_epochs=False),
  "reward_model": dict(reward__num_epochs=2, loop__eval_every=6),
  "ppo": dict(ppo__num_iterations=4, loop__eval_every=2, loop__log_every=1),
}


def train_command(inputs, algorithm: str, workdir) -> list[str]:
  return [*commands.train_flags(inputs, algorithm, **RUNS[algorithm]), f"--workdir={workdir}"]


def start_training(inputs, algorithm: str, workdir, logs) -> local.Job:
  """Two processes of four devices."""
  logs.mkdir(exist_ok=True)
  return local.Job(
    [sys.executable, "-m", "launch.train", *train_command(inputs, algorithm, workdir)], 2, 4, logs
  )


@pytest.fixture(scope="module")
def on_one_process(inputs, tmp_path_factory):
  """algorithm -> workdir of its run on one process of one device."""
  done = {}

  def get(algorithm: str) -> pathlib.Path:
    if algorithm not in done:
      done[algorithm] = tmp_path_factory.mktemp("one") / algorithm
      commands.finish("launch.train", *train_command(inputs, algorithm, done[algorithm]))
    return done[algorithm]

  return get


# The loss of a reward model does not see a shift of all rewards: what Adam does to the bias is made
# of rounding errors.
SHIFTED = ("train/reward", "demonstration_offset")


def assert_same_numbers(found, expected) -> None:
  """To 1e-5; differences of float32 noise do not count."""
  pick = lambda line: {key: value for key, value in line.items() if key not in SHIFTED}
  assert pick(found) == pytest.approx(pick(expected), rel=1e-5, abs=2e-6, nan_ok=True)


def assert_same_metrics(workdir, reference) -> None:
  """Every line and key but the timings."""
  found, expected = (commands.untimed(path / metrics.FILE) for path in (workdir, reference))
  assert [line["step"] for line in found] == [line["step"] for line in expected]
  for line, other in zip(found, expected):
    assert_same_numbers(line, other)


def validation_texts(workdir) -> dict[str, list]:
  return {
    path.name: [(line["prompt"], line["response"]) for line in commands.read_jsonl(path)]
    for path in sorted(workdir.glob("validation/*.jsonl"))
  }


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", RUNS)
def test_a_run_of_two_processes_writes_what_one_writes(
  inputs, on_one_process, tmp_path, capsys, algorithm
):
  workdir, reference = tmp_path / "run" / algorithm, on_one_process(algorithm)
  assert local.wait(start_training(inputs, algorithm, workdir, tmp_path)) == 0
  out = capsys.readouterr().out
  assert out.count(f"workdir {workdir}: new run") == 1 and out.count("export: ") == 1
  assert_same_metrics(workdir, reference)
  assert validation_texts(workdir) == validation_texts(reference)
  # The others wrote nothing: the same files as one process leaves, and one of TensorBoard.
  files = lambda path: sorted(
    str(file.relative_to(path)) for file in path.glob("*") if file.name != "tensorboard"
  )
  assert files(workdir) == files(reference)
  assert len(list((workdir / "tensorboard").iterdir())) == 1
  assert len((workdir / "command.txt").read_text().splitlines()) == 1
  done, expected = (json.loads((path / "done.json").read_text()) for path in (workdir, reference))
  done.pop("seconds"), expected.pop("seconds")
  assert_same_numbers(done, expected)
  other = (tmp_path / "process_1.log").read_text()
  assert not [line for line in other.splitlines() if line and "peer ranks" not in line], other


@pytest.mark.slow
def test_a_killed_process_ends_the_job_which_goes_on(inputs, on_one_process, tmp_path, capsys):
  workdir = tmp_path / "sft"
  job = start_training(inputs, "sft", workdir, tmp_path / "logs")
  commands.wait_until(lambda: commands.num_lines(workdir / metrics.FILE) >= 4, job.processes[0])
  job.processes[1].kill()
  assert local.wait(job) == 137
  assert "process 1 of 2 ended with status 137" in capsys.readouterr().err
  assert not (workdir / "done.json").exists()
  assert local.wait(start_training(inputs, "sft", workdir, tmp_path / "logs")) == 0
  out = capsys.readouterr().out
  assert f"workdir {workdir}: going on" in out and "goes on from step " in out
  assert_same_metrics(workdir, on_one_process("sft"))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["sft", "ppo"])
def test_sigterm_to_one_stops_both_and_one_process_goes_on(
  inputs, on_one_process, tmp_path, capsys, algorithm
):
  """The checkpoint of two processes, restored on one: the same batches follow."""
  workdir = tmp_path / algorithm
  job = start_training(inputs, algorithm, workdir, tmp_path / "logs")
  commands.wait_until(lambda: commands.num_lines(workdir / metrics.FILE) >= 2, job.processes[0])
  job.processes[1].terminate()
  assert local.wait(job) == 143
  out = capsys.readouterr().out
  saved = int(out.partition("SIGTERM; saved step ")[2].partition(",")[0])
  assert (workdir / "checkpoints" / str(saved)).is_dir()
  again = commands.finish("launch.train", *train_command(inputs, algorithm, workdir))
  assert f"goes on from step {saved} of" in again
  assert_same_metrics(workdir, on_one_process(algorithm))


@pytest.mark.slow
def test_sigterm_to_the_launcher_reaches_all(inputs, tmp_path):
  workdir = tmp_path / "sft"
  with commands.started(
    "launch.local",
    "--num_processes=2",
    "--devices_per_process=4",
    "--",
    *train_command(inputs, "sft", workdir),
  ) as process:
    commands.wait_until(lambda: commands.num_lines(workdir / metrics.FILE) >= 2, process)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=300)[0]
  assert process.returncode == 143, text
  assert text.count("run the same command to go on") == 1 and "Traceback" not in text
