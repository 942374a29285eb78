"""`launch.check`: what a job holds, what its programs move, and what is said of wrong flags."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf import extras, sharding
from rlhf.cli.memory import check, check_table, hlo, programs
from rlhf.configs import meshes
from rlhf.configs import models as model_sizes
from rlhf.configs import ppo as ppo_configs
from rlhf.configs import reward_model as reward_configs
from rlhf.configs import sft as sft_configs
from rlhf.sharding import MeshConfig

SIZES = [size for size in model_sizes.GPT3]


def run(*flags: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "launch.check", *flags], capture_output=True, text=True, check=False
  )


# ----------------------------------------------------------------------------- bytes


def abstract_job(size: str, topology: str):
  config = ppo_configs.get_config(f"{size},{topology}")
  parsed = meshes.parse_topology(topology)
  meshes.check_config(config, parsed)
  reward = model_sizes.get_model(model_sizes.REWARD_SIZES[size])
  mesh = check.make_mesh(config, parsed, shapes_only=True)
  return programs.make_job(config, dict(reward), mesh, parsed.platform)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("platform", [0, 1], ids=["tpu", "gpu"])
def test_what_is_resident_is_in_as_many_parts_as_devices(size: str, platform: int):
  topology = meshes.SMALLEST[size][platform]
  job = abstract_job(size, topology)
  num_devices = meshes.parse_topology(topology).num_devices
  held = programs.resident(job)
  whole = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  # All but biases and norms is split over every device.
  assert held["policy"] == pytest.approx(whole(job.reference) / num_devices, rel=0.05)
  assert held["moving average"] == held["reference"] == held["policy"]
  assert held["optimizer state"] == pytest.approx(
    2 * (held["policy"] + held["value network"]), rel=1e-3
  )
  assert held["value network"] == held["reward model"]


def test_reward_models_are_6b_where_the_paper_says_so():
  assert [model_sizes.REWARD_SIZES[size] for size in ("1.3b", "6.7b", "175b")] == ["6.7b"] * 3


def test_the_cache_is_that_of_a_whole_batch():
  job = abstract_job("1.3b", "h100:1x8")
  # 512 rows, 2,048 slots, 24 layers, keys and values of width 2,048 in two bytes, on 8 devices.
  assert programs.cache_bytes_per_device(job) == 512 * 2048 * 24 * 2 * 2048 * 2 // 8


def test_a_topology_changes_the_layout_and_nothing_else():
  plain, laid_out = ppo_configs.get_config("175b"), ppo_configs.get_config("175b,v5p:4x4x8")
  changed = {
    f"{group}.{field}"
    for group in plain
    for field in (plain[group] if hasattr(plain[group], "keys") else ())
    if plain[group][field] != laid_out[group][field]
  }
  assert changed <= {
    "mesh.data",
    "mesh.fsdp",
    "mesh.tensor",
    "compute.shard_sequence",
    "compute.decode_split",
    "ppo.microbatch_size",
    "ppo.ptx_microbatch_size",
  }
  assert laid_out.mesh.to_dict() == dict(data=1, fsdp=16, tensor=8)


# ----------------------------------------------------------------------------- programs


def small_job(devices):
  config = ppo_configs.get_config("test").unlock()
  config.model.update(num_heads=4, context_length=16, num_layers=4)
  config.compute.update(
    decode_split="fsdp_tensor",
    shard_sequence=True,
    remat="block",
    logprob_chunk=4,
    decode_scan=True,
    scan_unroll=1,
  )
  config.ppo.update(
    batch_size=8,
    minibatch_size=4,
    microbatch_size=4,
    max_prompt_tokens=8,
    max_response_tokens=8,
    ptx_ratio=1,
    ptx_length=16,
    ptx_microbatch_size=4,
  )
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), devices)
  return programs.make_job(config, dict(config.model), mesh, "cpu")


def test_every_program_of_a_job_compiles_and_takes_what_it_is_said_to_hold():
  job = small_job(jax.devices()[:4])
  rows = [check.measure(job, program) for program in programs.all_programs(job)]
  assert [row["program"] for row in rows] == list(check.PROGRAMS)
  for row in rows:
    assert row["error"] is None and row["extra"] >= 0
  update = rows[-1]
  held = programs.bytes_per_device(job.state)
  batch = update["arguments"] - held  # the state is most of what the update is given
  assert 0 < batch < held
  assert {"all-gather", "all-reduce"} <= set(update["collectives"])


def test_no_logits_of_a_whole_batch_exist_in_the_update():
  job = small_job(jax.devices()[:4])
  text = programs.lower(job, programs.all_programs(job)[-1]).compile().as_text()
  vocabulary = job.models.policy.padded_vocab_size
  shapes = {
    tuple(int(size) for size in dims.split(",")) for _, dims in hlo._SHAPE.findall(text) if dims
  }  # pylint: disable=protected-access
  logits = [
    shape for shape in shapes if shape[-1] in (vocabulary, vocabulary // 2) and len(shape) == 3
  ]
  assert logits  # those of a chunk are there
  assert max(shape[1] for shape in logits) <= job.models.policy.compute.logprob_chunk


# ----------------------------------------------------------------------------- collectives


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_runs():
  mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=1), jax.devices()[:4])
  split = NamedSharding(mesh, P("fsdp"))

  def gathered(x):
    one = lambda carry, _: (
      jax.lax.with_sharding_constraint(
        jnp.sin(jax.lax.with_sharding_constraint(carry, NamedSharding(mesh, P()))), split
      ),
      None,
    )
    return jax.lax.scan(one, x, length=7)[0]

  text = (
    jax.jit(gathered, in_shardings=split, out_shardings=split)
    .lower(jax.ShapeDtypeStruct((4, 8), jnp.float32))
    .compile()
    .as_text()
  )
  found = hlo.collectives(text)["all-gather"]
  assert found == {"calls": 7, "bytes": 7 * 4 * 8 * 4}


def test_the_bound_of_a_condition_counts_where_the_compiler_says_nothing():
  text = """HloModule made_up, is_scheduled=true, entry_computation_layout={(f32[8])->f32[8]}

%body (p: (s32[], /*index=1*/f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), replica_groups={}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[] constant(5)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %s = (f32[2], f32[4], f32[8], f32[16]) all-gather-start(%y, %y2), dimensions={0}
  %u = (f32[8], f32[8]) all-reduce-start(%y, %y2)
  %f = f32[4,2]{1,0} fusion(%z), kind=kCustom, calls=%all-reduce-scatter.3
}
"""
  assert hlo.collectives(text) == {
    "all-reduce": {"bytes": 5 * 32 + 64, "calls": 6},
    "all-gather": {"bytes": 96, "calls": 1},
    "reduce-scatter": {"bytes": 32, "calls": 1},
  }


# ----------------------------------------------------------------------------- the command


def test_shapes_only_needs_no_compiler(tmp_path):
  out = run(
    "--config=configs/ppo.py:175b",
    "--topology=v5p:8x8x16",
    "--shapes_only",
    f"--json={tmp_path / 'check.json'}",
  )
  assert out.returncode == 0, out.stderr
  report = json.loads((tmp_path / "check.json").read_text())
  assert report["mesh"] == {"data": 1, "fsdp": 64, "tensor": 16} and report["fits"] is None
  assert sum(report["resident"].values()) == report["total"]


def test_a_config_gets_the_topology_unless_it_names_one():
  for given, expected in (
    ("configs/ppo.py", "configs/ppo.py:1.3b,h100:1x8"),
    ("configs/ppo.py:6b", "configs/ppo.py:6b,h100:1x8"),
    ("configs/ppo.py:6b,h100:2x8", "configs/ppo.py:6b,h100:2x8"),
  ):
    arguments = check.parse(["check", "--config", given, "--topology", "h100:1x8"])
    assert (arguments.config, arguments.topology.num_devices) == (expected, 8)


def test_shapes_that_are_larger_than_the_device_are_status_1():
  assert run("--config=configs/ppo.py:175b", "--topology=v5e:4x4", "--shapes_only").returncode == 1


@pytest.mark.parametrize(
  "flags,sentence",
  [
    (["--config=configs/ppo.py:1.3b"], "required: --topology"),
    (["--topology=v5p:4x4x4"], "required: --config"),
    (["--config=configs/ppo.py:1.3b", "--topology=v9:4x4"], "no known kind; choose from cpu, v5e"),
    (["--config=configs/ppo.py:1.3b", "--topology=v5p:4x4"], "needs 3 numbers"),
    (["--config=configs/ppo.py:1.3b", "--topology=cpu:8"], "is no accelerator"),
    (["--config=configs/ppo.py:1.4b", "--topology=h100:1x8"], "size '1.4b'; choose from"),
    (["--config=configs/ppo.py:1.3b", "--topology=h100:3x8"], "use a power of two"),
    (
      [
        "--config=configs/ppo.py:1.3b",
        "--topology=h100:1x8",
        "--json=nowhere/check.json",
        "--shapes_only",
      ],
      "there is no folder nowhere",
    ),
    (
      [
        "--config=configs/ppo.py:1.3b",
        "--topology=h100:1x8",
        "--shapes_only",
        "--config.ppo.max_prompt_tokens=4000",
      ],
      "is longer than the policy's context of 2048",
    ),
    (
      ["--config=configs/sft.py:1.3b,sft", "--topology=h100:1x8"],
      "is a sft config, not ppo; use `rlhf train sft`",
    ),
    (
      ["--config=configs/ppo.py:1.3b", "--topology=h100:1x8", "--config.mesh.fsdp=3"],
      "does not use exactly the 8 devices",
    ),
    (
      [
        "--config=configs/ppo.py:1.3b",
        "--topology=h100:1x8",
        "--config.model.num_heads=4",
        "--config.mesh.tensor=8",
        "--config.mesh.fsdp=1",
      ],
      "does not divide over mesh.tensor 8",
    ),
    (
      ["--config=configs/ppo.py:1.3b", "--topology=h100:1x8", "--programs=rollout,updates"],
      "'updates'; choose from restore",
    ),
    (["--config=configs/ppo.py:1.3b", "--topology=h100:1x8", "--reward_size=7b"], "size '7b'"),
    (
      ["--config=configs/ppo.py:llama3.1-70b", "--topology=v5p:8x8x16", "--shapes_only"],
      "model.num_kv_heads 8 does not divide over mesh.tensor 16",
    ),
    (
      [
        "--config=configs/ppo.py:llama3.1-8b",
        "--topology=h100:2x8",
        "--shapes_only",
        "--config.mesh.tensor=16",
        "--config.mesh.fsdp=1",
      ],
      "model.num_kv_heads 8 does not divide over mesh.tensor 16",
    ),
    (
      [
        "--config=configs/ppo.py:13b",
        "--topology=h100:4x8",
        "--reward_size=125m",
        "--config.mesh.tensor=8",
        "--config.mesh.fsdp=4",
      ],
      "--reward_size: its num_heads 12 does not divide over mesh.tensor 8",
    ),
  ],
)
def test_bad_flags_are_one_sentence(flags: list[str], sentence: str, monkeypatch, capsys):
  monkeypatch.setattr(os, "environ", dict(os.environ))  # the command sets some of it
  monkeypatch.chdir(pathlib.Path(__file__).resolve().parent.parent)
  with pytest.raises(SystemExit) as stopped:
    check.main(["launch.check", *flags])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and error.count("\n") == 1 and sentence in error


def test_a_slice_that_the_compiler_does_not_know_is_one_sentence(monkeypatch):
  """As libtpu says it; nothing but it knows which slices there are."""

  def refuse(**_):
    raise jax.errors.JaxRuntimeError(
      'INVALID_ARGUMENT: Topology layout "v5p:8x1x1" is not divisible by the bounds "2x2x1"\nmore'
    )

  monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
  with pytest.raises(ValueError) as refused:
    check.devices_of(meshes.parse_topology("v5p:8x1x1"))
  assert str(refused.value) == (
    "--topology=v5p:8x1x1: the compiler knows no such slice (Topology layout 'v5p:8x1x1' is not "
    "divisible by the bounds '2x2x1'); use one that the cloud has, for example v5p:4x4x4"
  )


@pytest.mark.parametrize(
  "topology, module, extra",
  [("v5p:2x2x1", "libtpu", "tpu"), ("h100:1x8", "jax_cuda12_plugin", "cuda12")],
)
def test_a_missing_compiler_is_named_with_its_extra(topology, module, extra, monkeypatch, capsys):
  monkeypatch.setattr(os, "environ", dict(os.environ))  # the command sets some of it
  monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit):
    check.main(["launch.check", "--config=configs/ppo.py:1.3b", f"--topology={topology}"])
  assert capsys.readouterr().err == (
    f"error: compiling for {topology} (--shapes_only does without) needs the package {module}; "
    f"pip install 'rlhf-jax[{extra}]'\n"
  )


def report_of(total: int, **changes) -> dict:
  """100 GiB of memory, so many of them needed."""
  return dict(memory=100 * check.GIB, total=total * check.GIB, fits=True) | changes


def test_the_verdict():
  assert check.verdict(report_of(90)) == "fits: 90.00 GiB of 95.00 usable GiB on a device"
  assert check.verdict(report_of(96, fits=False)).startswith("does not fit: 96.00 GiB")
  out_of_memory = check.verdict(report_of(0) | dict(total=None))
  assert out_of_memory.startswith("does not fit: the compiler ran out")
  assert check.verdict(report_of(9, fits=None)).startswith("not decided")


def test_only_what_a_job_runs_decides():
  extra = dict(restore=1, prefill=80, rollout=40, update=20)
  rows = [dict(program=name, extra=size * check.GIB, error=None) for name, size in extra.items()]
  report = dict(resident={"policy": 50 * check.GIB}, memory=100 * check.GIB, programs=rows)
  assert check.judge(report, check.PROGRAMS) == dict(total=90 * check.GIB, fits=True)
  assert check.judge(report | dict(memory=94 * check.GIB), check.PROGRAMS)["fits"] is False
  assert check.judge(report, ("rollout",))["fits"] is None  # the update was not compiled
  rows[1]["error"] = "out of memory"  # of a part, where the whole can still do with less
  assert check.judge(report, check.PROGRAMS)["fits"] is True
  rows[2]["error"] = "out of memory"
  assert check.judge(report, check.PROGRAMS) == dict(total=None, fits=False)


def test_the_table_has_a_row_for_each_answer(tmp_path):
  rows = [dict(program=name, extra=check.GIB, error=None) for name in ("rollout", "update")]
  report = dict(
    topology="v5p:2x2x2",
    mesh=dict(data=1, fsdp=8, tensor=1),
    microbatch_size=16,
    resident={"policy": 2 * check.GIB},
    programs=rows,
    total=3 * check.GIB,
    memory=95 * check.GIB,
    fits=True,
  )
  check_table.path_of(tmp_path, "1.3b", "v5p:2x2x2").write_text(json.dumps(report))
  assert check_table.table(tmp_path).splitlines()[-1] == (
    "| 1.3b | v5p:2x2x2 | 1 x 8 x 1 | 16 | 2.0 | 1.0 | 1.0 | 3.0 | 95 | fits |"
  )


@pytest.mark.parametrize(
  "argument,get_config,group",
  [
    ("175b,sft,v5p:4x4x8", sft_configs.get_config, "sft"),
    ("6b,init,h100:2x8", sft_configs.get_config, "sft"),
    ("6b,h100:2x8", reward_configs.get_config, "reward"),
  ],
)
def test_each_stage_has_a_layout(argument: str, get_config, group: str):
  topology = meshes.parse_topology(argument.rpartition(",")[2])
  config = get_config(argument)
  meshes.check_config(config, topology)
  assert config.mesh.data * config.mesh.fsdp <= config[group].batch_size
  with pytest.raises(ValueError, match="has no recommended mesh"):
    get_config(argument.replace("175b", "tiny").replace("6b", "tiny"))


def test_a_microbatch_fills_the_devices():
  config = ppo_configs.get_config("6b,v5p:4x4x4").unlock()
  config.ppo.microbatch_size = 16
  sentence = "ppo.microbatch_size 16 does not divide over data.fsdp = 64"
  with pytest.raises(ValueError, match=sentence):
    meshes.check_config(config, meshes.parse_topology("v5p:4x4x4"))
