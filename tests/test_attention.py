"""The mask against a loop over its definition, and attention against a loop over keys."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import helpers
from rlhf import attention

rng = np.random.default_rng(0)


def seen_loop(query_slots, key_mask, band_width, query_segment=None, key_segment=None):
  num_rows, num_keys = key_mask.shape
  seen = np.zeros((num_rows, len(query_slots), num_keys), bool)
  for row, (t, q), k in itertools.product(
      range(num_rows), enumerate(query_slots), range(num_keys)):
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
  for slots in (np.arange(7), np.asarray([5]), np.asarray([2, 3])):
    actual = attention.attention_mask(jnp.asarray(slots), key_mask, band_width=band_width)
    np.testing.assert_array_equal(actual, seen_loop(slots, key_mask, band_width))
  actual = attention.attention_mask(jnp.arange(7), key_mask, band_width=band_width,
                                    query_segment_BT=segment, key_segment_BS=segment)
  np.testing.assert_array_equal(
      actual, seen_loop(np.arange(7), key_mask, band_width, segment, segment))


def test_a_band_as_wide_as_the_row_is_dense_and_one_of_1_sees_itself_alone():
  key_mask = np.ones((1, 5), np.float32)
  mask = lambda width: np.asarray(
      attention.attention_mask(jnp.arange(5), key_mask, band_width=width))[0]
  np.testing.assert_array_equal(mask(5), np.tril(np.ones((5, 5), bool)))
  np.testing.assert_array_equal(mask(None), mask(5))
  np.testing.assert_array_equal(mask(1), np.eye(5, dtype=bool))
  np.testing.assert_array_equal(mask(2).sum(axis=1), [1, 2, 2, 2, 2])


def arrays(num_rows=2, length=5, num_heads=3, size=4, dtype=np.float32):
  shape = (num_rows, length, num_heads, size)
  return [rng.normal(size=shape).astype(dtype) for _ in range(3)]


def test_attention_against_a_loop():
  query, key, value = arrays()
  seen = np.asarray(attention.attention_mask(jnp.arange(5), np.ones((2, 5)), band_width=3))
  actual = attention.attend(query, key, value, seen)
  for row, t, head in itertools.product(range(2), range(5), range(3)):
    keys = np.flatnonzero(seen[row, t])
    logit = [float(query[row, t, head].astype(np.float64) @ key[row, s, head]) / math.sqrt(4)
             for s in keys]
    weight = np.exp(logit) / np.exp(logit).sum()
    expected = sum(w * value[row, s, head].astype(np.float64) for w, s in zip(weight, keys))
    np.testing.assert_allclose(actual[row, t, head], expected, rtol=2e-5, atol=1e-6)


def test_a_query_that_sees_nothing_is_finite_and_so_are_gradients():
  query, key, value = arrays()
  seen = np.zeros((2, 5, 5), bool)
  seen[0] = np.tril(np.ones((5, 5), bool))
  total = lambda q, k, v: jnp.sum(attention.attend(q, k, v, seen)[0])
  assert np.isfinite(attention.attend(query, key, value, seen)).all()
  for gradient in jax.grad(total, argnums=(0, 1, 2))(query, key, value):
    assert np.isfinite(gradient).all()


def test_the_softmax_of_half_precision_runs_in_float32():
  query, key, value = (jnp.asarray(x, jnp.bfloat16) for x in arrays())
  seen = np.asarray(attention.attention_mask(jnp.arange(5), np.ones((2, 5)), band_width=None))
  jaxpr = jax.make_jaxpr(attention.attend)(query, key, value, seen)
  exps = [e for e in helpers.equations(jaxpr.jaxpr) if e.primitive.name == "exp"]
  assert exps and all(e.invars[0].aval.dtype == jnp.float32 for e in exps)
  products = [e for e in helpers.equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
  assert [e.invars[0].aval.dtype for e in products] == [jnp.bfloat16] * 2
  assert attention.attend(query, key, value, seen).dtype == jnp.bfloat16
