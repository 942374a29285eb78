import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from rlhf import checkpoint, networks, sharding, types
from rlhf.model import compute, transformer

CONFIG = checkpoint.CheckpointConfig(
  every=1, keep_last=2, keep_every=None, best_metric="", best_is_lower=False
)


class Tokenizer:
  def save(self, directory):
    (pathlib.Path(directory) / "tokenizer.json").write_text("{}")


class BrokenTokenizer:
  def save(self, directory):
    raise OSError("disk full")


def ppo_state() -> types.PpoState:
  """Every kind of leaf that training makes, with bits that only an exact copy keeps."""
  odd_bits = np.array([0x7FC01234, 0x80000000, 0x00000001, 0xFF800000], np.uint32).view(np.float32)
  params = {
    "policy": {"w": jnp.arange(6.0).reshape(2, 3), "odd": jnp.asarray(odd_bits)},
    "value": {"b": jnp.array([1.0, 1 / 3], jnp.bfloat16)},
  }
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(1.0, 0.0, 5)))
  train = types.TrainState(step=jnp.int32(7), params=params, opt_state=tx.init(params))
  return types.PpoState(train=train, ema_params=params["policy"], kl_coef=jnp.float32(0.1))


def assert_same_bits(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype and x.shape == y.shape
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_steps(directory, cfg, metric_of_step):
  with checkpoint.Checkpoints(directory, cfg) as checkpoints:
    for step, number in metric_of_step.items():
      metrics = None if number is None else {"score": number, "other": 1.0}
      checkpoints.save(step, {"x": jnp.float32(step)}, metadata={}, metrics=metrics)
    checkpoints.wait()
    return checkpoints.steps()


def mesh_sharding(num_devices, spec):
  devices = np.array(jax.devices()[:num_devices])
  return jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("data",)), spec)


def test_a_state_comes_back_bit_for_bit(tmp_path):
  state = ppo_state()
  metadata = {"cursor": 12345678901, "seed": 0, "rate": 0.1, "names": ["a", None], "on": True}
  with checkpoint.Checkpoints(tmp_path / "c", CONFIG) as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(7, state, metadata=metadata)
  with checkpoint.Checkpoints(tmp_path / "c", CONFIG) as checkpoints:
    restored, restored_metadata = checkpoints.restore(jax.eval_shape(lambda: state))
    assert checkpoints.latest() == 7
  assert_same_bits(restored, state)
  assert isinstance(restored, types.PpoState)
  assert restored_metadata == metadata


def test_a_step_is_saved_once(tmp_path):
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(3, {"x": jnp.float32(1)}, metadata={})
    checkpoints.save(3, {"x": jnp.float32(2)}, metadata={})
    assert checkpoints.restore({"x": jnp.float32(0)})[0]["x"] == 1


def test_due_at_multiples_of_every(tmp_path):
  with checkpoint.Checkpoints(tmp_path, dataclasses.replace(CONFIG, every=3)) as checkpoints:
    assert [step for step in range(10) if checkpoints.due(step)] == [3, 6, 9]


@pytest.mark.parametrize(
  ("changes", "steps"),
  [
    ({"keep_last": 2}, [5, 6]),
    ({"keep_last": 1, "keep_every": 2}, [2, 4, 6]),
    ({"keep_last": 1, "best_metric": "score"}, [3, 6]),
    ({"keep_last": 1, "best_metric": "score", "best_is_lower": True}, [1, 6]),
  ],
)
def test_what_is_kept(tmp_path, changes, steps):
  metric_of_step = {1: 0.1, 2: 0.2, 3: 0.9, 4: float("inf"), 5: float("nan"), 6: None}
  cfg = dataclasses.replace(CONFIG, **changes)
  assert save_steps(tmp_path, cfg, metric_of_step) == steps
  with checkpoint.Checkpoints(tmp_path, cfg) as checkpoints:  # and as found on the disk
    assert checkpoints.steps() == steps
  assert sorted(os.listdir(tmp_path)) == [str(step) for step in steps]


def test_a_kept_step_without_the_metric_is_not_the_best(tmp_path):
  """Saved under a config that named no metric: it goes when its turn comes."""
  save_steps(tmp_path, CONFIG, {1: None})
  cfg = dataclasses.replace(CONFIG, keep_last=1, best_metric="score")
  assert save_steps(tmp_path, cfg, {2: 0.5, 3: 0.1}) == [2, 3]


def test_half_of_a_deleted_step_is_no_step(tmp_path):
  """A step is moved aside whole before it is deleted; a kill then leaves this."""
  (tmp_path / "deleted" / "9" / "state").mkdir(parents=True)
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    assert checkpoints.latest() is None
    assert not (tmp_path / "deleted").exists()
    for step in (1, 2, 3):
      checkpoints.save(step, {"x": jnp.float32(step)}, metadata={})
    checkpoints.wait()
    assert os.listdir(tmp_path / "deleted") == ["1"]
  assert sorted(os.listdir(tmp_path)) == ["2", "3"]


def test_nothing_is_best_without_the_metric(tmp_path):
  cfg = dataclasses.replace(CONFIG, keep_last=1, best_metric="score")
  assert save_steps(tmp_path, cfg, {1: None, 2: float("nan"), 3: None}) == [3]


@pytest.mark.parametrize("changes", [{"every": 0}, {"keep_last": 0}, {"keep_every": 0}])
def test_a_count_below_one_is_refused(changes):
  with pytest.raises(ValueError, match=f"checkpoint.{next(iter(changes))} is 0; use 1 or more"):
    dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_saved_arrays_may_be_donated_at_once(tmp_path, num_devices):
  """The CPU's buffers are host memory: a save that only points at them would write the update."""
  sharding = mesh_sharding(num_devices, P("data"))
  state = {
    "big": jax.device_put(jnp.arange(1 << 23, dtype=jnp.float32), sharding),
    "small": jnp.zeros(3),
  }
  want = jax.tree.map(np.array, state)
  step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
  jax.block_until_ready(step(jax.tree.map(jnp.copy, state)))  # compiled: the next is immediate
  metadata = {"cursor": 1}
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(1, state, metadata=metadata)
    metadata["cursor"] = 2
    for _ in range(3):
      state = step(state)
    jax.block_until_ready(state)
    restored, restored_metadata = checkpoints.restore(want)
  assert_same_bits(restored, want)
  assert restored_metadata == {"cursor": 1}


_KILLED = """
  import os, signal, sys
  import jax.numpy as jnp
  from rlhf import checkpoint
  cfg = checkpoint.CheckpointConfig(every=1, keep_last=1, keep_every=None, best_metric="",
                                    best_is_lower=False)
  checkpoints = checkpoint.Checkpoints(sys.argv[1], cfg)
  checkpoints.save(1, {"x": jnp.full(1 << 25, 1.0)}, metadata={"cursor": 1})
  checkpoints.wait()
  checkpoints.save(2, {"x": jnp.full(1 << 25, 2.0)}, metadata={"cursor": 2})
  while not [name for name in os.listdir(sys.argv[1]) if name.startswith("2.")]:
    assert not os.path.exists(os.path.join(sys.argv[1], "2")), "saved before it could be killed"
  os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path, repository):
  program = [sys.executable, "-c", textwrap.dedent(_KILLED), str(tmp_path)]
  killed = subprocess.run(program, cwd=repository, capture_output=True, text=True, check=False)
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert len(os.listdir(tmp_path)) == 2

  state = {"x": jax.ShapeDtypeStruct((1 << 25,), jnp.float32)}
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    assert (checkpoints.steps(), checkpoints.latest()) == ([1], 1)
    restored, metadata = checkpoints.restore(state)
    assert metadata == {"cursor": 1} and bool((restored["x"] == 1.0).all())
    checkpoints.save(3, {"x": jnp.float32(3)}, metadata={})
    checkpoints.wait()
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]


def test_another_layout_reads_what_one_layout_wrote(tmp_path):
  x = np.arange(32, dtype=np.float32).reshape(8, 4)
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    checkpoints.save(1, {"x": jax.device_put(x, mesh_sharding(8, P("data")))}, metadata={})
    asked = mesh_sharding(4, P(None, "data"))
    leaf = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=asked)
    on_four = checkpoints.restore({"x": leaf})[0]["x"]
    free = checkpoints.restore({"x": jax.ShapeDtypeStruct(x.shape, x.dtype)})[0]["x"]
  assert on_four.sharding == asked
  np.testing.assert_array_equal(on_four, x)
  np.testing.assert_array_equal(free, x)
  np.testing.assert_array_equal(free + on_four, 2 * x)  # a committed array would refuse to mix


@pytest.mark.parametrize(
  ("state", "message"),
  [
    ({"a": {"w": jnp.zeros((2, 4))}}, r"a/w is float32\[2, 3\] in the checkpoint, .*\[2, 4\]"),
    ({"a": {"w": jnp.zeros((2, 3), jnp.int32)}}, r"a/w is float32\[2, 3\] .* int32\[2, 3\]"),
    ({"a": {"v": jnp.zeros((2, 3))}}, r"a/v is absent in the checkpoint"),
    ({"a": {"w": jnp.zeros((2, 3)), "z": jnp.zeros(1)}}, r"a/z is absent in the checkpoint"),
    ({}, r"a/w is float32\[2, 3\] in the checkpoint, and the config makes it absent"),
  ],
)
def test_other_arrays_are_refused_in_one_sentence(tmp_path, state, message):
  with checkpoint.Checkpoints(tmp_path / "c", CONFIG) as checkpoints:
    checkpoints.save(1, {"a": {"w": jnp.zeros((2, 3))}}, metadata={})
    with pytest.raises(ValueError, match=message) as error:
      checkpoints.restore(state)
  assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_not_there(tmp_path):
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    with pytest.raises(ValueError, match="holds no checkpoint; train first"):
      checkpoints.restore({"x": jnp.zeros(1)})
    checkpoints.save(4, {"x": jnp.zeros(1)}, metadata={})
    with pytest.raises(ValueError, match=r"no checkpoint of step 3; choose from \[4\]"):
      checkpoints.restore({"x": jnp.zeros(1)}, step=3)


@pytest.mark.parametrize("metadata", [{"x": object()}, {"x": float("nan")}])
def test_metadata_that_json_cannot_hold_is_refused(tmp_path, metadata):
  with checkpoint.Checkpoints(tmp_path, CONFIG) as checkpoints:
    with pytest.raises(ValueError, match="metadata is not JSON"):
      checkpoints.save(1, {"x": jnp.zeros(1)}, metadata=metadata)
    assert checkpoints.latest() is None


def export(directory, params, *, step=120, tokenizer_class=Tokenizer, kind="reward"):
  checkpoint.export_params(
    directory,
    params,
    model={"num_layers": 2},
    kind=kind,
    tokenizer=tokenizer_class(),
    config={"seed": 0},
    step=step,
    metadata={"bias": -0.5},
  )


def test_an_export_comes_back(tmp_path):
  params = {"block": {"w": jnp.array([[1.0, 1 / 3]], jnp.bfloat16)}, "b": jnp.array([0.1])}
  export(tmp_path / "export", params)
  found = checkpoint.load_export(tmp_path / "export")
  assert (found.kind, found.model, found.config, found.step, found.metadata) == (
    "reward",
    {"num_layers": 2},
    {"seed": 0},
    120,
    {"bias": -0.5},
  )
  assert (found.tokenizer_dir / "tokenizer.json").is_file()
  want = jax.tree.map(lambda x: x.astype(jnp.float32), params)
  assert_same_bits(checkpoint.load_params(tmp_path / "export"), want)
  sharding = mesh_sharding(8, P())
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), want)
  laid_out = checkpoint.load_params(tmp_path / "export", abstract)
  assert laid_out["b"].sharding == sharding
  assert_same_bits(laid_out, want)


def test_load_export_reads_no_arrays(tmp_path):
  export(tmp_path, {"w": jnp.zeros(2)})
  params_dir = checkpoint.load_export(tmp_path).params_dir
  params_dir.rename(tmp_path / "elsewhere")
  assert checkpoint.load_export(tmp_path).params_dir == params_dir


@pytest.mark.parametrize("step", [120, 240])
def test_an_export_stands_until_the_next_is_whole(tmp_path, step):
  export(tmp_path, {"w": jnp.zeros(2)})
  with pytest.raises(OSError, match="disk full"):
    export(tmp_path, {"w": jnp.ones(2)}, step=step, tokenizer_class=BrokenTokenizer)
  assert checkpoint.load_export(tmp_path).step == 120
  np.testing.assert_array_equal(checkpoint.load_params(tmp_path)["w"], [0.0, 0.0])

  export(tmp_path, {"w": jnp.ones(2)}, step=step)
  assert checkpoint.load_export(tmp_path).step == step
  np.testing.assert_array_equal(checkpoint.load_params(tmp_path)["w"], [1.0, 1.0])
  assert len(os.listdir(tmp_path)) == 2, "leftovers of the export before"


def test_no_export_is_said_in_one_sentence(tmp_path):
  with pytest.raises(ValueError, match=r"no_such does not exist; name an export directory"):
    checkpoint.load_export(tmp_path / "no_such")
  with pytest.raises(ValueError, match="holds no export.json; name an export directory"):
    checkpoint.load_params(tmp_path)


def test_other_params_and_kinds_are_refused(tmp_path):
  export(tmp_path, {"w": jnp.zeros(2)})
  with pytest.raises(ValueError, match=r"w is float32\[2\] in the checkpoint"):
    checkpoint.load_params(tmp_path, {"w": jnp.zeros(3)})
  with pytest.raises(ValueError, match="'critic'; choose from"):
    export(tmp_path, {"w": jnp.zeros(2)}, kind="critic")


def test_export_json_is_plain_json(tmp_path):
  export(tmp_path, {"w": jnp.zeros(2)})
  fields = json.loads((tmp_path / "export.json").read_text())
  assert sorted(fields) == ["config", "contents", "kind", "metadata", "model", "step"]


def test_an_export_of_the_time_when_shape_and_compute_were_one_still_loads():
  """`golden/old_export` was written by commit c7474ac; its `model` holds dtype, remat and so on."""
  directory = pathlib.Path(__file__).parent / "golden" / "old_export"
  assert "remat" in json.loads((directory / "export.json").read_text())["model"]
  golden = json.loads((directory / "logits.json").read_text())
  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  found = checkpoint.load_export(directory)
  assert not set(found.model) & set(compute.FIELDS) and found.compute.logprob_chunk == 64
  network = networks.load(directory, found.compute, mesh, kind="policy", flag="x")
  tokens_BT = np.asarray(golden["tokens"], np.int32)
  hidden_BTD = transformer.forward(
    network.cfg, network.params, tokens_BT, np.ones(tokens_BT.shape, np.float32)
  )
  logits_BV = transformer.logits(network.cfg, network.params, hidden_BTD[:, -1])
  np.testing.assert_allclose(
    logits_BV[0, : network.cfg.vocab_size], golden["logits"], rtol=1e-5, atol=1e-6
  )
