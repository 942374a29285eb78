"""Checks whether a PPO-ptx job fits a topology, on a machine without an accelerator.

  rlhf check --config=configs/ppo.py:175b --topology=v5p:4x4x8
  rlhf check --config=configs/ppo.py:1.3b --topology=h100:1x8 --json=check.json

Every program of the job is compiled by that hardware's own compiler (`pip install -e '.[tpu]'` or
`'.[cuda12]'`; no device is needed). A table shows the memory of each on a device; the last line is
`fits` or `does not fit`, and the exit status 0 or 1.

A config without a topology (`configs/ppo.py:175b`) takes what `configs/meshes.py` recommends for
--topology. A job fits where what is resident all the time (four networks, optimizer state, moving
average), plus the largest temporaries and outputs of a program that it runs (restore, rollout with
its key-value cache, update), is at most 95 % of a device's memory.
"""

import argparse
import functools
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence

from rlhf import extras
from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, startup
from rlhf.configs import meshes
from rlhf.configs import models as model_sizes

USABLE = 0.95  # of a device's memory: the rest is the runtime's
EXTRAS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda12_plugin", "cuda12")}
PROGRAMS = ("restore", "prefill", "decode step", "scoring", "rollout", "update")
RUN = ("restore", "rollout", "update")  # what a job starts; the others are parts of a rollout
GIB = 2**30
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED:? ?(.*)")


# ----------------------------------------------------------------------------- flags


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags; --config gets the topology where it names none."""
  parser = flags.Parser("rlhf check", __doc__)
  parser.add_config("configs/ppo.py:1.3b")
  parser.flag("topology", "v5e:4x4, v5p:4x4x8, v6e:4x4 or h100:NODESxGPUS", required=True)
  parser.flag("reward_size", "of reward and value model; as configs/models.py says if not given")
  parser.switch("shapes_only", "rules and resident bytes, without compiling: takes seconds")
  parser.flag(
    "programs",
    f"compile only these of {', '.join(PROGRAMS)}; a verdict needs {', '.join(RUN)}",
    functools.partial(flags.names, choices=PROGRAMS),
    list(PROGRAMS),
  )
  parser.flag("json", "file for the same numbers as JSON")
  arguments = parser.parse(argv)
  arguments.topology = meshes.parse_topology(arguments.topology)
  if arguments.topology.platform not in EXTRAS:
    accelerators = ", ".join(kind for kind in meshes.KINDS if kind != "cpu")
    raise ValueError(
      f"--topology={arguments.topology.name} is no accelerator; choose from {accelerators}"
    )
  file, _, argument = arguments.config.partition(":")
  if "," not in argument:
    arguments.config = f"{file}:{argument if argument else '1.3b'},{arguments.topology.name}"
  return arguments


def read(arguments: argparse.Namespace):
  """(config, `model` group of the reward model, ids of a published tokenizer or None)."""
  config = flags.load_config(arguments.config, arguments.overrides, "ppo")
  name = arguments.config.partition(":")[2].partition(",")[0]
  size = model_sizes.ALIASES.get(name, name)
  if not config.model:
    raise ValueError(
      f"--config={arguments.config} takes its shape from the network that it starts from; "
      "rlhf check compiles the sizes of configs/models.py"
    )
  reward_size = arguments.reward_size
  if reward_size is None:
    if size not in model_sizes.REWARD_SIZES:
      raise ValueError(
        f"--reward_size is missing: configs/models.py has no reward model for {size!r}; give for "
        "example --reward_size=6b"
      )
    reward_size = model_sizes.REWARD_SIZES[size]
  ids = None
  if size in model_sizes.PUBLISHED:
    ids = dict(zip(("vocab_size", "pad_id"), model_sizes.PUBLISHED[size]["ids"]))
  return config, model_sizes.get_model(reward_size), ids


# ----------------------------------------------------------------------------- measuring


def devices_of(topology: meshes.Topology):
  """The topology's devices, as its compiler describes them.

  Raises:
    ValueError: the compiler knows no such slice.
  """
  import jax
  from jax.experimental import topologies

  if topology.platform == "tpu":
    try:
      described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name)
    except jax.errors.JaxRuntimeError as error:
      said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ").replace('"', "'")
      example = {2: "4x4", 3: "4x4x4"}[len(topology.shape)]
      raise ValueError(
        f"--topology={topology.name}: the compiler knows no such slice ({said}); "
        f"use one that the cloud has, for example {topology.kind}:{example}"
      ) from None
  else:
    nodes, gpus = topology.shape
    target = (pathlib.Path(__file__).parent / "h100.txtpb").read_text(encoding="utf-8")
    described = topologies.get_topology_desc(
      platform="cuda", topology=f"{nodes}x{gpus}x1", target_config=target
    )
  return described.devices


def make_mesh(config, topology: meshes.Topology, *, shapes_only: bool):
  """The job's mesh on the topology's devices; an abstract one where nothing is compiled."""
  import jax

  from rlhf import sharding

  axes = meshes.check_mesh(config.mesh, topology.num_devices)
  if shapes_only:
    return jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))
  return sharding.make_mesh(sharding.MeshConfig(**axes), devices_of(topology))


def measure(job, program) -> dict:
  """Bytes, FLOPs and collectives of one program on one device."""
  import jax

  from rlhf.cli.memory import hlo, programs

  began = time.perf_counter()
  flops = programs.flops(job.models, job.p)[program.name]
  row = dict(program=program.name, flops=flops / job.mesh.size, error=None)
  try:
    compiled = programs.lower(job, program).compile()
  except jax.errors.JaxRuntimeError as error:
    found = _OUT_OF_MEMORY.search(str(error))
    if found is None:
      raise
    return row | dict(error=found.group(1).strip(), seconds=time.perf_counter() - began)
  memory = compiled.memory_analysis()
  outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  held = sum(programs.bytes_per_device(tree) for tree in program.holds)
  return row | dict(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    outputs=outputs,
    # Memory in addition to what is resident: a restored state is resident, not an output.
    extra=memory.temp_size_in_bytes
    + (0 if program.name == "restore" else outputs)
    + max(memory.argument_size_in_bytes - held, 0),
    collectives=hlo.collectives(compiled.as_text()),
    seconds=time.perf_counter() - began,
  )


def check(arguments: argparse.Namespace, config, reward_group, ids) -> dict:
  """All numbers, as --json has them, of what `read` found; prints each as soon as it is known."""
  from rlhf.cli.memory import programs

  show = functools.partial(print, flush=True)
  topology = arguments.topology
  mesh = make_mesh(config, topology, shapes_only=arguments.shapes_only)
  job = programs.make_job(config, dict(reward_group), mesh, topology.platform, ids)
  resident = programs.resident(job)
  report = dict(
    topology=topology.name,
    mesh={name: int(mesh.shape[name]) for name in mesh.axis_names},
    microbatch_size=config.ppo.microbatch_size,
    memory=topology.memory_bytes,
    resident=resident,
    cache=programs.cache_bytes_per_device(job),
    attention=kernels(job, not config.pretraining.attend_across_documents),
    programs=[],
    fits=None,
    formula=programs.FLOP_FORMULA,
  )
  show(describe(report, config))
  if arguments.shapes_only:
    return report | dict(total=sum(resident.values()))
  show(header())
  for program in programs.all_programs(job):
    if program.name in arguments.programs:
      report["programs"].append(measure(job, program))
      show(line(report["programs"][-1]))
  return report | judge(report, arguments.programs)


def judge(report: dict, chosen: Sequence[str]) -> dict:
  """Total bytes on a device and whether they fit; None where that is not known."""
  run = [row for row in report["programs"] if row["program"] in RUN]
  if any(row["error"] is not None for row in run):
    return dict(total=None, fits=False)
  total = sum(report["resident"].values()) + max((row["extra"] for row in run), default=0)
  fits = total <= USABLE * report["memory"]
  return dict(total=total, fits=fits if set(RUN) <= set(chosen) or not fits else None)


def kernels(job, segments: bool) -> dict[str, str]:
  """Which kernel attends in each program, and why where it is not the platform's own."""
  from rlhf.model import attention

  cfg, p = job.models.policy, job.p
  total = p.max_prompt_tokens + p.max_response_tokens
  calls = {
    "prefill": (p.max_prompt_tokens, p.max_prompt_tokens),
    "decode step": (1, total),
    "scoring, update": (total, total),
    "pretraining text": (p.ptx_length, p.ptx_length),
  }
  return {
    name: attention.describe(
      cfg.compute.attention, cfg, *sizes, has_segments=name.endswith("text") and segments
    )
    for name, sizes in calls.items()
  }


# ----------------------------------------------------------------------------- printing


def describe(report: dict, config) -> str:
  mesh = " x ".join(f"{name} {size}" for name, size in report["mesh"].items())
  p = config.ppo
  rows = [
    ("topology", f"{report['topology']}, {report['memory'] / GIB:.1f} GiB a device"),
    ("mesh", mesh),
    ("context", f"{p.max_prompt_tokens} + {p.max_response_tokens} tokens"),
    (
      "batch / minibatch / microbatch",
      f"{p.batch_size} / {p.minibatch_size} / {p.microbatch_size} episodes",
    ),
    (
      "pretraining examples a minibatch",
      f"{p.minibatch_size * p.ptx_ratio if p.ptx_coef > 0.0 else 0}",
    ),
  ]
  rows += [(f"attention, {name}", kernel) for name, kernel in report["attention"].items()]
  rows += [
    (f"resident: {name}", f"{size / GIB:.2f} GiB") for name, size in report["resident"].items()
  ]
  rows += [
    ("resident in all", f"{sum(report['resident'].values()) / GIB:.2f} GiB"),
    ("key-value cache (in a rollout)", f"{report['cache'] / GIB:.2f} GiB"),
  ]
  return "\n".join(f"  {name:<34}{text:>36}" for name, text in rows)


def header() -> str:
  return (
    f"\n  {'on one device':<14}{'arguments':>11}{'temporary':>11}{'outputs':>9}"
    f"{'TFLOP':>10}  collectives (GiB, calls)"
  )


def line(row: dict) -> str:
  if row["error"] is not None:
    return f"  {row['program']:<14}the compiler: {row['error']}"
  moved = ", ".join(
    f"{kind} {found['bytes'] / GIB:.3g} ({found['calls']:,.0f})"
    for kind, found in row["collectives"].items()
  )
  return (
    f"  {row['program']:<14}{row['arguments'] / GIB:>11.2f}{row['temporaries'] / GIB:>11.2f}"
    f"{row['outputs'] / GIB:>9.2f}{row['flops'] / 1e12:>10.1f}  {moved if moved else 'none'}"
  )


def verdict(report: dict) -> str:
  usable = USABLE * report["memory"] / GIB
  if report["total"] is None:
    return "does not fit: the compiler ran out of a device's memory"
  numbers = f"{report['total'] / GIB:.2f} GiB of {usable:.2f} usable GiB on a device"
  if report["fits"] is None:
    return f"not decided: some programs were not compiled ({numbers} so far)"
  return f"{'fits' if report['fits'] else 'does not fit'}: {numbers}"


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  topology = arguments.topology
  os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs: the compilers are asked by name
  os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # it cannot hold what no device has loaded
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
  config, reward_group, ids = read(arguments)
  meshes.check_config(config, topology)
  axes = meshes.check_mesh(config.mesh, topology.num_devices)
  meshes.check_heads(reward_group, axes["tensor"], "--reward_size: its ")
  if not arguments.shapes_only:
    what = f"compiling for {topology.name} (--shapes_only does without)"
    extras.require(*EXTRAS[topology.platform], what)
  if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
    raise ValueError(
      f"--json={arguments.json}: there is no folder {pathlib.Path(arguments.json).parent}; make it "
      "first"
    )
  report = check(arguments, config, reward_group, ids)
  if arguments.json:
    workdir_lib.write_json(arguments.json, report)
  if arguments.shapes_only:
    share = report["total"] / topology.memory_bytes
    print(f"rules and bytes only: {share:.0%} of a device's memory is resident")
    sys.exit(0 if share <= USABLE else 1)
  print(f"\n{report['formula']}\n{verdict(report)}", flush=True)
  sys.exit(0 if report["fits"] else 1)
