"""Floating-point operations of a network's passes, counted by a formula.

A multiplication and an addition count as two.  A forward pass takes

    2 N                per token, N the parameters outside the embeddings
    4 H d              per layer and (query, key) that attends, H heads of size d; a causal row of
                       T tokens has T^2 / 2 such pairs, a banded layer at most its width per query
    2 D V              per token whose logits are computed, D the width and V the padded vocabulary

and a backward pass twice that.  Norms, activations and the softmax are left out.
"""

from rlhf.model.architecture import ModelConfig


def token_flops(cfg: ModelConfig, dense_keys: float) -> float:
  """Of one token's forward pass without logits.

  Args:
    cfg: the network.
    dense_keys: keys of a query in a dense layer; a banded one has at most its width.
  """
  assert cfg.head_size is not None
  banded = cfg.num_banded_layers
  band_keys = 0 if cfg.band_width is None else min(cfg.band_width, dense_keys)
  keys = (cfg.num_layers - banded) * dense_keys + banded * band_keys
  return 2 * cfg.num_block_params + 4 * cfg.num_heads * cfg.head_size * keys


def logits_flops(cfg: ModelConfig) -> float:
  """Of one token's logits."""
  return 2 * cfg.padded_vocab_size * cfg.width


def forward_flops(cfg: ModelConfig, num_rows: int, length: int, *, num_logits: int) -> float:
  """Of rows of which each has logits at `num_logits` places."""
  return num_rows * (length * token_flops(cfg, length / 2) + num_logits * logits_flops(cfg))


def generate_flops(cfg: ModelConfig, num_rows: int, prompt_length: int, num_steps: int) -> float:
  """Of a prefill and `num_steps` decode steps, of which each sees the tokens before it."""
  prefill = forward_flops(cfg, num_rows, prompt_length, num_logits=1)
  steps = sum(token_flops(cfg, prompt_length + step + 1) for step in range(num_steps))
  return prefill + num_rows * (steps + num_steps * logits_flops(cfg))
