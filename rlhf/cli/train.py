"""Runs one stage on one's own data.

  python -m launch.train sft          --config=configs/sft.py:SIZE[,VARIANT]  --workdir=DIR ...
  python -m launch.train reward_model --config=configs/reward_model.py:SIZE   --workdir=DIR ...
  python -m launch.train ppo          --config=configs/ppo.py:SIZE            --workdir=DIR ...
  python -m launch.train truth_judge  --config=configs/truth_judge.py:SIZE    --workdir=DIR ...

`...` stands for --config.GROUP.FIELD=VALUE; the docstring of each config file shows a whole
command.  Run the same command again to go on after an interruption.  What can be known to be wrong
is said before the workdir is made; WORKDIR/export is what the next stage takes.

Several processes: start one on every host with the same flags and --coordinator_address=HOST:PORT
--num_processes=N --process_id=I, or with --cluster=auto under SLURM, Kubernetes or on TPUs.  All
see one WORKDIR; process 0 prints.  --connect_timeout, --heartbeat_timeout and --shutdown_timeout
are in seconds.  `launch.local` does it on one machine.
"""

import sys
from types import ModuleType

from rlhf import workdir as workdir_lib
from rlhf.cli import setup

ALGORITHMS = ("sft", "reward_model", "ppo", "truth_judge")


def load_algorithm(arguments: list[str]) -> ModuleType:
  """The algorithm's module.

  Raises:
    ValueError: not exactly one name, or an unknown one.
  """
  if len(arguments) != 1 or arguments[0] not in ALGORITHMS:
    raise ValueError(
      f"launch.train was given {' '.join(arguments)!r}; choose one algorithm from "
      f"{', '.join(ALGORITHMS)}"
    )
  # After the flags: importing jax takes seconds.
  from rlhf import ppo, reward_model, sft, truth_judge

  return {"sft": sft, "reward_model": reward_model, "ppo": ppo, "truth_judge": truth_judge}[
    arguments[0]
  ]


def sizes(config) -> str:
  """What the config comes to on these devices, as a table."""
  import jax

  from rlhf import networks, sharding

  shape = networks.config_shape(config)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh))
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
  rows = [
    ("devices", f"{mesh.size} ({jax.devices()[0].platform})"),
    ("mesh", " x ".join(f"{name} {mesh.shape[name]}" for name in sharding.AXES)),
    ("parameters outside the embeddings", f"{shape.num_block_params:,}"),
    ("context", f"{shape.context_length:,} tokens"),
    ("matrix products in", shape.compute.dtype),
    ("attention", _kernel(config, shape)),
  ]
  for group, what in (
    ("sft", "rows"),
    ("reward", "prompts"),
    ("ppo", "episodes"),
    ("judge", "rows"),
  ):
    if group in config:
      batch_size, microbatch_size = config[group].batch_size, config[group].microbatch_size
      rows += [
        ("batch", f"{batch_size:,} {what}, {batch_size // num_shards:,} on a device"),
        ("microbatch", f"{microbatch_size:,} {what}"),
      ]
  return "\n".join(f"  {name:<38}{value:>30}" for name, value in rows)


def _kernel(config, shape) -> str:
  """The kernel that trains, and why it is not the platform's own where it is not."""
  import jax

  from rlhf.model import attention

  name = attention.choose(shape.compute.attention, jax.default_backend())
  length = (
    config.length
    if "length" in config
    else config.ppo.max_prompt_tokens + config.ppo.max_response_tokens
  )
  packed = "judge" in config or any(
    group in config and not config[group].attend_across_documents
    for group in ("text", "demonstrations", "pretraining")
  )
  why = attention.refusal(
    name,
    dtype=shape.compute.dtype,
    num_queries=length,
    num_keys=length,
    head_size=shape.head_size,
    has_segments=packed,
  )
  return name if why is None else f"reference ({why})"


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  with setup.ends_at_once(), setup.one_sentence_errors():
    arguments, config, workdir = setup.read_config(argv, __doc__)
    algorithm = load_algorithm(arguments)
    algorithm.check_config(config)
    if not workdir_lib.check(workdir, workdir_lib.config_to_dict(config)):
      algorithm.check_inputs(config)
    setup.claim(config, workdir)
    print(sizes(config), flush=True)
    result = algorithm.train(config, workdir)
    print(f"done: {', '.join(f'{name} {_text(value)}' for name, value in result.items())}")
    print(f"export: {workdir}/export", flush=True)


def _text(value) -> str:
  return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
  main(sys.argv)
