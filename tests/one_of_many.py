"""One process of the equivalence test of test_processes.py, on 4 of 8 simulated devices.

  python tests/one_of_many.py DATAxFSDPxTENSOR OUTPUT.npz [episodes]

Runs one update of each algorithm, and one rollout if asked to, with this process's rows of the
batch alone; process 0 writes gradients, metrics and episodes.  Its place comes from the
environment.
"""

import dataclasses
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parent.parent)]

import conftest  # noqa: F401  pylint: disable=unused-import  (its settings come before jax)

from rlhf.cli.common import flags, join, startup

parser = flags.Parser("one_of_many", __doc__)
join.add_flags(parser)
join.join(parser.parse([sys.argv[0]]))

import helpers  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import test_mesh_equivalence as equivalence  # noqa: E402

from rlhf import metrics as metrics_lib  # noqa: E402
from rlhf import (
  processes,  # noqa: E402
  sharding,  # noqa: E402
)


def put_own_rows(mesh, batch):
  """The batch on the mesh, from the rows alone that this process has to make."""
  rows = sharding.local_rows(mesh, equivalence.ROWS)
  own = jax.tree.map(lambda x: np.asarray(x)[rows], batch)
  return sharding.put_batch(mesh, own, equivalence.ROWS)


def run_all(mesh) -> dict[str, np.ndarray]:
  found = {}
  for name, run in equivalence.RUNS.items():
    state, batch = equivalence.start(name)
    layout = sharding.state_shardings(mesh, state)
    state = jax.device_put(state, layout)
    update = helpers.quick_jit(run, out_shardings=(layout, None))
    state, metrics = update(state, put_own_rows(mesh, batch), jax.random.key(0))
    gradient = processes.to_host(equivalence.gradient_of(state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
      found[f"{name}/gradient/{sharding.path_name(path)}"] = leaf
    for metric, number in metrics_lib.summarise(metrics).items():
      found[f"{name}/metric/{metric}"] = np.asarray(number)
  return found


def roll_out(mesh) -> dict[str, np.ndarray]:
  nets, prompts, run = equivalence.episodes()
  placed = [jax.device_put(net, sharding.state_shardings(mesh, net)) for net in nets]
  rollout = processes.to_host(
    helpers.quick_jit(run)(*placed, put_own_rows(mesh, prompts), jax.random.key(0))
  )
  return {
    f"episodes/{field.name}": getattr(rollout, field.name) for field in dataclasses.fields(rollout)
  }


def main(sizes: str, output: str, *more: str) -> None:
  assert jax.process_count() == 2 and jax.local_device_count() == 4 and jax.device_count() == 8
  mesh = equivalence.mesh_of(tuple(map(int, sizes.split("x"))))
  with jax.set_mesh(mesh):
    found = run_all(mesh) | (roll_out(mesh) if "episodes" in more else {})
  if processes.is_main():
    np.savez(output, **found)


if __name__ == "__main__":
  with startup.end_at_once():
    main(*sys.argv[1:])
