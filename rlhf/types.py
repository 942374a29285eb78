"""The data that flows between rooms, and the key to the dimension letters.

  B batch   T time, prompt + response   P prompt   R response   K completions of a prompt
  C pairs of completions   V vocabulary (padded)   D model width   F feed-forward width
  H heads   L layers   M microbatches   S key/value slots of a cache
  U optimizer steps of an iteration   E members of an ensemble   N rows of a whole data set

An array's name ends in its dimensions: `logits_BTV`, `mask_BT`, `score_BK`.

**One index convention.** Entry `t` of `logprob_BT` and `value_BT` belongs to token `t`: the log
probability of token `t` given the tokens before it, and the value of the state before token `t`
was chosen; entry 0 is 0.  Every `[B, T]` array shares that index.

**Masks are data.** They are made once, in `rlhf.data` or `rlhf.inference.sampling`, and are never
recomputed from token ids: a prompt may contain end-of-text, and so may a response's first token.
"""

from typing import Any

import jax
from flax import struct

Array = jax.Array
Params = Any  # a nested dict of float32 arrays


@struct.dataclass(kw_only=True)
class TrainState:
  """What one optimizer owns.

  There are no functions inside, so that two states of identical optimizers have one tree
  structure and a checkpoint restores into either.
  """

  step: Array  # int32, optimizer steps taken
  params: Params
  opt_state: Any


@struct.dataclass(kw_only=True)
class LmBatch:
  """Packed rows for language-model training: pretraining, SFT, PALMS and ptx."""

  tokens_BT: Array  # int32
  loss_mask_BT: Array  # float32; entry t weighs the prediction OF token t; entry 0 is 0
  segment_BT: Array  # int32; 1, 2, ... number the documents of a row, 0 is padding
  position_BT: Array  # int32


@struct.dataclass(kw_only=True)
class ComparisonBatch:
  """All K completions of a prompt in one batch element (InstructGPT section 3.5)."""

  tokens_BKT: Array  # int32; prompt + completion + end-of-text, right-padded
  mask_BKT: Array  # 1 on real tokens
  rank_BK: Array  # int32; 1 is best, equal ranks are ties
  valid_BK: Array  # 1 where a completion was shown, 0 on unused slots


@struct.dataclass(kw_only=True)
class PromptBatch:
  """Left-padded prompts: slot P-1 holds the last prompt token."""

  tokens_BP: Array  # int32
  mask_BP: Array  # 1 on real tokens


@struct.dataclass(kw_only=True)
class Generation:
  """What `sampling.generate` returns."""

  tokens_BR: Array  # int32; the end-of-text that finished a row is kept, pad ids follow
  mask_BR: Array  # float32; 1 up to and including the end-of-text
  logprob_BR: Array  # float32; at the sampling temperature, from the decode path
  finished_B: Array  # bool; end-of-text was sampled


@struct.dataclass(kw_only=True)
class Rollout:
  """One batch of episodes, right-padded, scored and ready for `ppo.advantages`."""

  tokens_BT: Array
  mask_BT: Array  # 1 on prompt and response tokens
  response_mask_BT: Array  # 1 on response tokens, end-of-text included
  logprob_BT: Array  # of the policy that sampled, rescored by the update's own function
  decode_logprob_BT: Array  # as seen while decoding; only for the gap metric
  ref_logprob_BT: Array
  value_BT: Array
  score_B: Array  # reward model, bias included, before any missing-end penalty
  finished_B: Array


@struct.dataclass(kw_only=True)
class PpoBatch:
  """What the update consumes; every array has the rollout's rows."""

  tokens_BT: Array
  mask_BT: Array
  response_mask_BT: Array
  old_logprob_BT: Array
  old_value_BT: Array
  advantage_BT: Array
  return_BT: Array


@struct.dataclass(kw_only=True)
class PpoState:
  """`train.params` is {"policy": ..., "value": ...}, each with its own learning rate."""

  train: TrainState
  ema_params: Params  # of the policy
  kl_coef: Array  # float32 scalar


@struct.dataclass(kw_only=True)
class Metric:
  """A weighted sum that adds exactly over microbatches, devices and hosts: value = total/weight."""

  total: Array
  weight: Array

  def __add__(self, other: "Metric") -> "Metric":
    return Metric(total=self.total + other.total, weight=self.weight + other.weight)
