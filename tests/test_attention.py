"""The mask and attention against loops over their definitions; fused kernels against attention."""

import functools
import itertools
import math

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf import sharding
from rlhf.model import attention
from rlhf.sharding import MeshConfig

rng = np.random.default_rng(0)


def seen_loop(query_slots, key_mask, band_width, query_segment=None, key_segment=None):
  num_rows, num_keys = key_mask.shape
  seen = np.zeros((num_rows, len(query_slots), num_keys), bool)
  for row, (t, q), k in itertools.product(range(num_rows), enumerate(query_slots), range(num_keys)):
    here = key_mask[row, k] == 1 and k <= q
    if band_width is not None:
      here = here and k in range(q - band_width + 1, q + 1)  # itself and band_width - 1 before it
    if query_segment is not None:
      here = here and query_segment[row, t] == key_segment[row, k]
    seen[row, t, k] = here
  return seen


@pytest.mark.parametrize("band_width", [None, 1, 2, 3, 7, 20])
def test_the_mask_is_what_its_definition_says(band_width):
  # Padding right, left and none.
  key_mask = np.asarray([[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1], [1] * 7], np.float32)
  segment = np.asarray([[1, 1, 2, 2, 2, 0, 0], [0, 0, 1, 1, 1, 2, 2], [1, 2, 2, 3, 3, 3, 3]])
  slot_1S = jnp.arange(7)[None]
  for slots in (np.arange(7), np.asarray([5]), np.asarray([2, 3])):
    actual = attention.attention_mask(
      jnp.asarray(slots)[None], slot_1S, key_mask, band_width=band_width
    )
    np.testing.assert_array_equal(actual, seen_loop(slots, key_mask, band_width))
  actual = attention.attention_mask(
    slot_1S,
    slot_1S,
    key_mask,
    band_width=band_width,
    query_segment_BT=segment,
    key_segment_BS=segment,
  )
  np.testing.assert_array_equal(
    actual, seen_loop(np.arange(7), key_mask, band_width, segment, segment)
  )


def test_a_band_as_wide_as_the_row_is_dense_and_one_of_1_sees_itself_alone():
  key_mask = np.ones((1, 5), np.float32)
  mask = lambda width: np.asarray(
    attention.attention_mask(*[jnp.arange(5)[None]] * 2, key_mask, band_width=width)
  )[0]
  np.testing.assert_array_equal(mask(5), np.tril(np.ones((5, 5), bool)))
  np.testing.assert_array_equal(mask(None), mask(5))
  np.testing.assert_array_equal(mask(1), np.eye(5, dtype=bool))
  np.testing.assert_array_equal(mask(2).sum(axis=1), [1, 2, 2, 2, 2])


def arrays(num_rows=2, length=5, num_heads=3, size=4, dtype=np.float32):
  shape = (num_rows, length, num_heads, size)
  return [rng.normal(size=shape).astype(dtype) for _ in range(3)]


def heads_first(*parts):
  return [x.swapaxes(1, 2) for x in parts]


def test_attention_against_a_loop():
  query, key, value = arrays()
  seen = np.asarray(
    attention.attention_mask(*[jnp.arange(5)[None]] * 2, np.ones((2, 5)), band_width=3)
  )
  actual = attention.attend(query, *heads_first(key, value), seen, 0.5)
  for row, t, head in itertools.product(range(2), range(5), range(3)):
    keys = np.flatnonzero(seen[row, t])
    logit = [
      float(query[row, t, head].astype(np.float64) @ key[row, s, head]) / math.sqrt(4) for s in keys
    ]
    weight = np.exp(logit) / np.exp(logit).sum()
    expected = sum(w * value[row, s, head].astype(np.float64) for w, s in zip(weight, keys))
    np.testing.assert_allclose(actual[row, t, head], expected, rtol=2e-5, atol=1e-6)


def test_grouped_queries_share_keys_and_values_in_order():
  """Query heads 0 and 1 read key head 0, 2 and 3 head 1; the scale is the caller's."""
  query, (key, value) = arrays(num_heads=4)[0], arrays(num_heads=2)[:2]
  mask = np.ones((2, 5))
  run = functools.partial(attention.attention, "reference", key_mask_BS=mask, band_width=None)
  repeated = run(query, *(np.repeat(x, 2, axis=2) for x in (key, value)), scale=0.3)
  np.testing.assert_allclose(run(query, key, value, scale=0.3), repeated, atol=1e-6)
  assert np.abs(run(query, key, value, scale=0.5) - repeated).max() > 1e-2
  np.testing.assert_allclose(run(query, key, value), run(query, key, value, scale=0.5), atol=1e-6)


def test_a_query_that_sees_nothing_is_finite_and_so_are_gradients():
  query, key, value = arrays()
  seen = np.zeros((2, 5, 5), bool)
  seen[0] = np.tril(np.ones((5, 5), bool))
  total = lambda q, k, v: jnp.sum(attention.attend(q, *heads_first(k, v), seen, 0.5)[0])
  assert np.isfinite(attention.attend(query, *heads_first(key, value), seen, 0.5)).all()
  for gradient in jax.grad(total, argnums=(0, 1, 2))(query, key, value):
    assert np.isfinite(gradient).all()


def test_the_softmax_of_half_precision_runs_in_float32():
  query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
  seen = np.asarray(
    attention.attention_mask(*[jnp.arange(5)[None]] * 2, np.ones((2, 5)), band_width=None)
  )
  jaxpr = jax.make_jaxpr(attention.attend)(query, *heads_first(key, value), seen, 0.5)
  exps = [e for e in helpers.equations(jaxpr.jaxpr) if e.primitive.name == "exp"]
  assert exps and all(e.invars[0].aval.dtype == jnp.float32 for e in exps)
  products = [e for e in helpers.equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
  assert [e.invars[0].aval.dtype for e in products] == [jnp.bfloat16] * 2
  assert attention.attend(query, *heads_first(key, value), seen, 0.5).dtype == jnp.bfloat16


# ----------------------------------------------------------------------------- fused kernels


@pytest.mark.parametrize(
  "head_size,num_kv_heads", [(64, 2), (80, 2), (96, 2), (128, 2), (64, 1), (64, 4)]
)
@pytest.mark.parametrize("band_width", [None, 100])
def test_splash_is_the_reference_in_values_and_gradients(
  head_size: int, num_kv_heads: int, band_width: int | None
):
  """Padding left and right, two documents in a row; the kernel's program is interpreted."""
  num_heads = 2 if num_kv_heads == 2 else 4
  query, key, value, weight = (
    jax.random.normal(k, (2, 256, heads, head_size))
    for k, heads in zip(
      jax.random.split(jax.random.key(head_size), 4),
      (num_heads, num_kv_heads, num_kv_heads, num_heads),
    )
  )
  mask_BT = jnp.ones((2, 256)).at[0, :30].set(0).at[1, 200:].set(0)
  segment_BT = jnp.where(jnp.arange(256) < 120, 1, 2) * mask_BT.astype(jnp.int32)

  def loss(run, query, key, value):
    return jnp.sum(run(query, key, value) * weight * mask_BT[..., None, None])

  reference = lambda *parts: attention.attention(
    "reference",
    *parts,
    key_mask_BS=mask_BT,
    band_width=band_width,
    query_segment_BT=segment_BT,
    key_segment_BS=segment_BT,
    scale=0.1,
  )
  splash = lambda *parts: attention.splash(
    *parts, segment_BT, band_width=band_width, scale=0.1, interpret=True
  )
  gradient = lambda run: jax.value_and_grad(lambda *parts: loss(run, *parts), argnums=(0, 1, 2))(
    query, key, value
  )
  (expected, expected_grads), (actual, actual_grads) = gradient(reference), gradient(splash)
  assert float(actual) == pytest.approx(float(expected), rel=1e-5, abs=1e-3)
  helpers.assert_leaves_close(actual_grads, expected_grads)


def test_splash_keeps_rows_and_heads_on_their_devices():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
  parts = [jax.random.normal(k, (4, 128, 2, 64)) for k in jax.random.split(jax.random.key(0), 3)]
  segment_BT = jnp.ones((4, 128), jnp.int32)
  run = functools.partial(attention.splash, band_width=None, scale=0.125, interpret=True)
  expected = run(*parts, segment_BT)
  with jax.set_mesh(mesh):
    placed = [
      jax.device_put(x, NamedSharding(mesh, P(("data", "fsdp"), None, "tensor"))) for x in parts
    ]
    actual = jax.jit(run)(*placed, sharding.put_batch(mesh, segment_BT))
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  assert actual.addressable_shards[0].data.shape == (1, 128, 1, 64)


@pytest.mark.parametrize("band_width", [None, 3])
def test_left_padded_rows_for_a_kernel_that_masks_by_length(band_width: int | None):
  """Rows are moved to the front and their results moved back; cuDNN itself needs a GPU."""
  parts = [jax.random.normal(k, (3, 16, 2, 8)) for k in jax.random.split(jax.random.key(0), 3)]
  mask_BT = jnp.ones((3, 16)).at[1, :5].set(0).at[2, :15].set(0)
  run = functools.partial(attention.attention, "reference", band_width=band_width)
  expected = run(*parts, key_mask_BS=mask_BT)
  actual = attention._right_padded(  # pylint: disable=protected-access
    functools.partial(run, key_mask_BS=jnp.ones((3, 16))), *parts, mask_BT
  )
  np.testing.assert_allclose(
    actual * mask_BT[..., None, None], expected * mask_BT[..., None, None], atol=1e-6
  )


def test_what_a_fused_kernel_refuses():
  fine = dict(dtype=jnp.bfloat16, num_queries=256, num_keys=256, head_size=64, has_segments=False)
  for kernel in ("splash", "cudnn"):
    assert attention.refusal(kernel, **fine) is None
    assert attention.refusal(kernel, **fine | dict(dtype=jnp.float32)) == "float32"
    assert "cache" in attention.refusal(kernel, **fine | dict(num_queries=1))
  assert "128" in attention.refusal("splash", **fine | dict(num_queries=100, num_keys=100))
  assert attention.refusal("cudnn", **fine | dict(has_segments=True)) == "segments"
  assert attention.refusal("splash", **fine | dict(has_segments=True)) is None
  for head_size in (12, 256):
    assert "heads" in attention.refusal("cudnn", **fine | dict(head_size=head_size))
  assert attention.refusal("reference", **fine | dict(dtype=jnp.float32)) is None


def test_each_platform_has_its_kernel():
  assert [attention.choose("auto", name) for name in ("tpu", "gpu", "cuda", "cpu")] == [
    "splash",
    "cudnn",
    "cudnn",
    "reference",
  ]
  assert attention.choose("reference", "tpu") == "reference"
  with pytest.raises(ValueError, match="attention 'flash'; choose from auto"):
    attention.choose("flash", "tpu")


def test_rows_that_do_not_divide_over_the_mesh_go_to_the_reference():
  parts = [
    jax.random.normal(k, (2, 128, 2, 64), jnp.bfloat16)
    for k in jax.random.split(jax.random.key(0), 3)
  ]
  run = functools.partial(
    attention.attention, "splash", band_width=None, key_mask_BS=jnp.ones((2, 128))
  )
  text = lambda: str(jax.make_jaxpr(run)(*parts))
  with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))):
    assert "pallas_call" not in text()  # 2 rows on 4 shards
  with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))):
    assert "pallas_call" not in text()  # 2 heads on 4 devices
  with jax.set_mesh(sharding.make_mesh(MeshConfig(data=2, fsdp=1, tensor=2), jax.devices()[:4])):
    assert "pallas_call" in text()
