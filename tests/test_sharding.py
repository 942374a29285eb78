"""The mesh, the table of rules, and rows on their way through microbatches."""

import functools

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf import optim, sharding
from rlhf.model import transformer
from rlhf.sharding import MeshConfig


def mesh_of(data: int, fsdp: int, tensor: int):
  return sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor))


def test_axes_of_the_mesh():
  assert dict(mesh_of(2, 2, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert dict(mesh_of(-1, 2, 1).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
  one = sharding.make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  assert one.size == 1


@pytest.mark.parametrize("sizes", [(3, 1, 1), (2, 2, 1), (-1, 3, 1), (-1, 16, 1), (0, 8, 1)])
def test_sizes_that_do_not_use_all_devices_are_refused(sizes):
  with pytest.raises(ValueError, match="does not use exactly the 8 devices there are; choose"):
    mesh_of(*sizes)


# What the axes split, leaf by leaf: shapes of one device's part on a mesh of 2 x 2 x 2.
WHOLE_AND_PART = {
  "embed/token": ((128, 16), (64, 8)),
  "embed/position": ((16, 16), (16, 8)),
  "blocks/layer_0/attention/qkv/kernel": ((1, 16, 3, 2, 8), (1, 8, 3, 1, 8)),
  "blocks/layer_0/attention/qkv/bias": ((1, 3, 2, 8), (1, 3, 1, 8)),
  "blocks/layer_0/attention/out/kernel": ((1, 2, 8, 16), (1, 1, 8, 8)),
  "blocks/layer_0/attention/out/bias": ((1, 16), (1, 16)),
  "blocks/layer_0/mlp/in/kernel": ((1, 16, 64), (1, 8, 32)),
  "blocks/layer_0/mlp/in/bias": ((1, 64), (1, 32)),
  "blocks/layer_0/mlp/out/kernel": ((1, 64, 16), (1, 32, 8)),
  "blocks/layer_0/mlp/out/bias": ((1, 16), (1, 16)),
  "blocks/layer_0/attention_norm/scale": ((1, 16), (1, 16)),
  "blocks/layer_0/mlp_norm/bias": ((1, 16), (1, 16)),
  "final_norm/scale": ((16,), (16,)),
  "head/kernel": ((16, 1), (16, 1)),
  "head/bias": ((1,), (1,)),
}


def test_each_leaf_is_split_as_its_rule_says():
  params = helpers.make_params(helpers.model_config(), 0, head=True)
  mesh = mesh_of(2, 2, 2)
  placed = jax.device_put(params, sharding.param_shardings(mesh, params))
  leaves = {
    sharding.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
  }
  assert WHOLE_AND_PART.keys() < leaves.keys()
  for name, (whole, part) in WHOLE_AND_PART.items():
    assert leaves[name].shape == whole and leaves[name].addressable_shards[0].data.shape == part
  twin = lambda name: name.replace("layer_1", "layer_0").replace("mlp_norm", "attention_norm")
  assert {twin(name) for name in leaves} == {twin(name) for name in WHOLE_AND_PART} | {
    "blocks/layer_0/attention_norm/bias",
    "final_norm/bias",
  }


def test_a_parameter_without_a_rule_is_named():
  with pytest.raises(ValueError, match="'blocks/layer_0/gate/kernel' has no sharding rule"):
    sharding.param_spec("blocks/layer_0/gate/kernel")
  for name in ("token", "embed/token/extra", "my_embed/token"):  # a rule is of the whole path
    with pytest.raises(ValueError, match="no sharding rule"):
      sharding.param_spec(name)
  with pytest.raises(ValueError, match="'rotary' has no sharding rule"):
    sharding.param_shardings(mesh_of(8, 1, 1), {"rotary": jnp.zeros(4)})


def test_network_names_are_no_part_of_a_path():
  params = {"policy": {"head": {"bias": jnp.zeros(1)}}}
  shardings = sharding.state_shardings(mesh_of(2, 2, 2), params)
  assert shardings["policy"]["head"]["bias"].spec == P(None)


def test_the_state_follows_its_parameters():
  params = {
    "policy": helpers.make_params(helpers.model_config(), 0),
    "value": helpers.make_params(helpers.model_config(), 1, head=True),
  }
  optimizer = optim.make_optimizer(helpers.optim_config(schedule="cosine"), 10)
  tx = optim.per_network({"policy": optimizer, "value": optimizer})
  state = jax.eval_shape(functools.partial(optim.init_train_state, tx), params)
  layout = sharding.state_shardings(mesh_of(2, 2, 2), state)
  specs = {
    sharding.path_name(path): leaf.spec
    for path, leaf in jax.tree_util.tree_leaves_with_path(
      layout, is_leaf=lambda x: isinstance(x, NamedSharding)
    )
  }
  for leaf, spec in (
    ("embed/token", P("tensor", "fsdp")),
    ("blocks/layer_1/mlp/in/kernel", P(None, "fsdp", "tensor")),
  ):
    for network in ("policy", "value"):
      found = {name: s for name, s in specs.items() if network in name and name.endswith(leaf)}
      assert len(found) == 3  # the parameter and its two moments
      assert set(found.values()) == {spec}
  assert specs["step"] == P()
  assert len(jax.tree.leaves(state)) == len(specs)


def test_a_state_leaf_that_follows_no_parameter_is_named():
  with pytest.raises(ValueError, match="'running_mean' follows no parameter"):
    sharding.state_shardings(mesh_of(8, 1, 1), {"running_mean": jnp.zeros(3)})


# ----------------------------------------------------------------------------- batches


def test_rows_go_over_data_and_fsdp_and_must_divide():
  mesh = mesh_of(2, 2, 2)
  placed = sharding.put_batch(mesh, {"x": np.arange(24).reshape(8, 3)})["x"]
  assert placed.sharding.spec == P(("data", "fsdp"))
  assert placed.addressable_shards[0].data.shape == (2, 3)
  with pytest.raises(
    ValueError, match="6 rows does not divide over data.fsdp = 4 devices; use a multiple of 4"
  ):
    sharding.put_batch(mesh, {"a": np.zeros((8, 2)), "b": np.zeros((6, 2))})


def test_microbatches_take_turns_and_go_back_to_their_places():
  tree = {"a": np.arange(12), "b": np.arange(24).reshape(12, 2)}
  split = sharding.split_microbatches(tree, 3)
  # Row r goes to microbatch r mod 3.
  np.testing.assert_array_equal(split["a"], [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]])
  np.testing.assert_array_equal(split["b"][1], [[2, 3], [8, 9], [14, 15], [20, 21]])
  merged = sharding.merge_microbatches(split)
  for name, leaf in tree.items():
    np.testing.assert_array_equal(merged[name], leaf)
  with pytest.raises(ValueError, match="12 rows do not divide into 5 microbatches"):
    sharding.split_microbatches(tree, 5)


def test_splitting_moves_no_row_to_another_device():
  mesh = mesh_of(4, 2, 1)
  x = sharding.put_batch(mesh, np.arange(16))
  split = jax.jit(
    lambda x: sharding.split_microbatches(x, 2),
    out_shardings=NamedSharding(mesh, P(None, sharding.BATCH_AXES)),
  )(x)
  before = {shard.device: set(np.asarray(shard.data).tolist()) for shard in x.addressable_shards}
  after = {
    shard.device: set(np.asarray(shard.data).reshape(-1).tolist())
    for shard in split.addressable_shards
  }
  assert before == after


def test_activations_are_pinned_on_a_mesh_and_left_alone_elsewhere():
  x = jnp.ones((8, 4))
  assert sharding.constrain(x, sharding.BATCH_AXES) is x
  mesh = mesh_of(4, 2, 1)
  with jax.set_mesh(mesh):
    pinned = jax.jit(lambda x: sharding.constrain(x * 2, sharding.BATCH_AXES))(x)
  assert pinned.addressable_shards[0].data.shape == (1, 4)


def test_hidden_states_are_split_by_row_on_a_mesh():
  cfg = helpers.model_config()
  forward = lambda p, t: transformer.forward(cfg, p, t, jnp.ones((8, 4)))
  with jax.set_mesh(mesh_of(2, 2, 2)):
    jaxpr = jax.make_jaxpr(forward)(helpers.make_params(cfg, 0), jnp.ones((8, 4), jnp.int32))
  pins = [e for e in helpers.equations(jaxpr.jaxpr) if e.primitive.name == "sharding_constraint"]
  # Embedding and last norm; in each of two layers q, k, v, what attention mixed, the feed-forward
  # width, and the residual stream.
  assert [e.params["sharding"].spec[0] for e in pins] == [("data", "fsdp")] * 14


def test_evaluation_runs_on_the_mesh_of_its_network():
  mesh = mesh_of(2, 2, 2)
  params = {"a": jax.device_put(jnp.ones(8), sharding.batch_sharding(mesh))}
  with sharding.on_mesh_of(params) as put:
    assert not jax.sharding.get_abstract_mesh().empty
    even, odd = put((np.arange(8.0), np.arange(6.0)))
  assert even.addressable_shards[0].data.shape == (2,)
  np.testing.assert_array_equal(even, np.arange(8.0))
  assert isinstance(odd, np.ndarray)  # 6 rows do not divide over 4 shards
  with sharding.on_mesh_of({"a": np.ones(8)}) as put:
    assert jax.sharding.get_abstract_mesh().empty
    assert put(odd) is odd
