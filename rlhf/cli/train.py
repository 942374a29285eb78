"""Trains one stage on your own data: sft, reward_model, ppo or truth_judge.

  rlhf train sft          --config=configs/sft.py:SIZE[,VARIANT]  --workdir=DIR ...
  rlhf train reward_model --config=configs/reward_model.py:SIZE   --workdir=DIR ...
  rlhf train ppo          --config=configs/ppo.py:SIZE            --workdir=DIR ...
  rlhf train truth_judge  --config=configs/truth_judge.py:SIZE    --workdir=DIR ...

`...` stands for --config.GROUP.FIELD=VALUE; the docstring of each config file shows a whole
command. Run the same command again to resume after an interruption. Errors in flags, config and
data are reported before the workdir is made; the next stage starts from WORKDIR/export.

For several processes, start one on every host with the same flags and
--coordinator_address=HOST:PORT --num_processes=N --process_id=I, or with --cluster=auto under
SLURM, Kubernetes or on TPUs. All need one WORKDIR; process 0 prints. `rlhf local` starts them on
one machine.
"""

import argparse
import importlib
from types import ModuleType

from rlhf.cli.common import flags, join, startup

ALGORITHMS = ("sft", "reward_model", "ppo", "truth_judge")
# The group of each algorithm's batch sizes, and what they count.
_BATCHES = {
  "sft": ("sft", "rows"),
  "reward_model": ("reward", "prompts"),
  "ppo": ("ppo", "episodes"),
  "truth_judge": ("sft", "rows"),
}


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf train", __doc__)
  parser.add_argument("algorithm", choices=ALGORITHMS, help="what is trained")
  parser.add_config({name: f"configs/{name}.py:1.3b" for name in ALGORITHMS})
  parser.add_workdir()
  parser.add_cache_dir()
  parser.add_profile()
  join.add_flags(parser)
  return parser.parse(argv)


def load_algorithm(name: str) -> ModuleType:
  """The algorithm's module; importing jax takes seconds."""
  package = "rlhf.evals.suites" if name == "truth_judge" else "rlhf"
  return importlib.import_module(f"{package}.{name}")


def sizes(config) -> str:
  """The sizes that the config has on these devices, as a table."""
  import jax

  from rlhf import networks, sharding

  shape = networks.config_shape(config)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh))
  num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
  group, what = _BATCHES[config.kind]
  batch_size, microbatch_size = config[group].batch_size, config[group].microbatch_size
  rows = [
    ("devices", f"{mesh.size} ({jax.devices()[0].platform})"),
    ("mesh", " x ".join(f"{name} {mesh.shape[name]}" for name in sharding.AXES)),
    ("parameters outside the embeddings", f"{shape.num_block_params:,}"),
    ("context", f"{shape.context_length:,} tokens"),
    ("matrix products in", shape.compute.dtype),
    ("attention", _kernel(config, shape)),
    ("batch", f"{batch_size:,} {what}, {batch_size // num_shards:,} on a device"),
    ("microbatch", f"{microbatch_size:,} {what}"),
  ]
  return "\n".join(f"  {name:<38}{value:>30}" for name, value in rows)


def _kernel(config, shape) -> str:
  """The attention kernel, and why it is not the platform's own where it is not."""
  import jax

  from rlhf.model import attention

  name = attention.choose(shape.compute.attention, jax.default_backend())
  is_ppo = config.kind == "ppo"
  length = (
    config.ppo.max_prompt_tokens + config.ppo.max_response_tokens if is_ppo else config.length
  )
  packed = config.kind == "truth_judge" or any(
    group in config and not config[group].attend_across_documents
    for group in ("text", "demonstrations", "pretraining")
  )
  return attention.describe(name, shape, length, length, has_segments=packed)


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  config = flags.load_config(arguments.config, arguments.overrides, arguments.algorithm)
  join.join(arguments)
  algorithm = load_algorithm(arguments.algorithm)
  algorithm.check_config(config)
  startup.claim(config, arguments.workdir, algorithm.check_inputs)
  print(sizes(config), flush=True)
  from rlhf import loop

  with loop.profiled(arguments.profile):
    result = algorithm.train(config, arguments.workdir, cache_dir=arguments.cache_dir)
  text = lambda value: f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
  print(f"done: {', '.join(f'{name} {text(value)}' for name, value in result.items())}")
  print(f"export: {arguments.workdir}/export", flush=True)
