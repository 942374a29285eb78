"""Causal attention, dense or locally banded.

The reference kernel below is plain `jax.numpy`; it is what any fused kernel is tested against.
"""

import jax
import jax.numpy as jnp


def attention_mask(query_slot_T, key_mask_BS, *, band_width: int | None,
                   query_segment_BT=None, key_segment_BS=None):
  """Which keys each query may see, as bool [B, T, S].

  The key in slot k is seen from slot q when it is real, k <= q, both belong to the same segment
  (where segments are given), and, in a banded layer, q - k < band_width.  Real tokens of a row are
  contiguous, so padding on either side changes no distance.  Source of the band: Child et al. 2019
  ("local" attention of the Sparse Transformer), to which GPT-3 section 2.1 refers.
  """
  distance_TS = query_slot_T[:, None] - jnp.arange(key_mask_BS.shape[1])[None, :]
  near_TS = distance_TS >= 0
  if band_width is not None:
    near_TS &= distance_TS < band_width
  seen_BTS = near_TS[None] & (key_mask_BS[:, None, :] > 0)
  if query_segment_BT is not None:
    seen_BTS &= query_segment_BT[:, :, None] == key_segment_BS[:, None, :]
  return seen_BTS


def attend(query_BTHd, key_BSHd, value_BSHd, seen_BTS):
  """softmax(q k^T / sqrt(d)) v over the keys that are seen.

  Softmax runs in float32: bfloat16 loses its tail.  A query that sees no key (padding) returns a
  finite value that nothing reads.
  """
  scale = query_BTHd.shape[-1] ** -0.5
  logits_BHTS = jnp.einsum("BTHd,BSHd->BHTS", query_BTHd * scale, key_BSHd,
                           preferred_element_type=jnp.float32)
  logits_BHTS = jnp.where(seen_BTS[:, None], logits_BHTS, -1e30)
  weight_BHTS = jax.nn.softmax(logits_BHTS, axis=-1).astype(value_BSHd.dtype)
  return jnp.einsum("BHTS,BSHd->BTHd", weight_BHTS, value_BSHd)
