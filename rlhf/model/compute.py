"""How a network is computed here, as against what it is: `ComputeConfig`.

No field changes the function that a network computes, except for rounding.  Exports therefore do
not hold these fields: each run states its own, in the group `compute` of its config.
"""

import dataclasses

import jax

from rlhf import checks, sharding
from rlhf.model import attention as attention_lib

DTYPES = ("float32", "bfloat16", "float16")
# Which intermediate results of a block survive until its backward pass.
REMAT_POLICIES = {
  "none": None,
  "block": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
  """Precision, memory and layout of a network's computation.

  Attributes:
    dtype: of matrix products, one of `DTYPES`.
    remat: what is recomputed in the backward pass, one of `REMAT_POLICIES`.
    scan_unroll: repetitions of the layer pattern that the compiler sees at once, at most all.
      It affects speed, memory and compile time.  Ignored with remat: what is recomputed must stay
      in the loop, where the compiler cannot merge it with what it repeats.
    logprob_chunk: tokens of a row whose logits exist at once; [B, T, V] is never kept.
    attention: one of `attention.KERNELS`, or "auto" for the platform's.  A call that the kernel
      refuses falls back to the reference.
    shard_sequence: splits the residual stream along time over the mesh axis `tensor`.
    decode_split: one of `sharding.DECODE_SPLITS`.
    decode_scan: sampling loops over the layers instead of unrolling them, which saves minutes of
      compilation for a deep model and is slower where a layer is small.

  Raises:
    ValueError: a name is unknown or a number is out of range.
  """

  dtype: str = "float32"
  remat: str = "none"
  scan_unroll: int = 1
  logprob_chunk: int = 128
  attention: str = "auto"
  shard_sequence: bool = False
  decode_split: str = "tensor"
  decode_scan: bool = False

  def __post_init__(self):
    checks.choices(
      "compute",
      self,
      dtype=DTYPES,
      remat=REMAT_POLICIES,
      attention=("auto", *attention_lib.KERNELS),
      decode_split=sharding.DECODE_SPLITS,
    )
    checks.at_least("compute", self, scan_unroll=1, logprob_chunk=1)


FIELDS = tuple(field.name for field in dataclasses.fields(ComputeConfig))
