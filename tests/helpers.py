"""Small models and made-up batches that several test files share."""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf import sharding
from rlhf.model import compute as compute_lib
from rlhf.model import transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.transformer import ModelConfig
from rlhf.networks import Network
from rlhf.optim import OptimConfig
from rlhf.ppo import PpoConfig
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.types import ComparisonBatch, LmBatch, PpoBatch, PromptBatch

# Inside the vocabulary and apart, so that no id works by accident of being the first or the last.
VOCAB, PAD, EOT = 20, 3, 7
GOLDEN = pathlib.Path(__file__).parent / "golden"
# RLHF_UPDATE_GOLDEN=1 pytest -k golden_step
UPDATE_GOLDEN = "RLHF_UPDATE_GOLDEN"


QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
QUICKER = QUICK | {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _compiler_options() -> dict[str, bool | int]:
  try:
    jax.jit(lambda x: x + 1, compiler_options=QUICKER).lower(0).compile()
  except jax.errors.JaxRuntimeError:  # a release of XLA that does not know an option
    return QUICK
  return QUICKER


def quick_jit(function, **options):
  """`jax.jit` for what runs once: compiling is what takes the time, so it optimizes less."""
  return jax.jit(function, compiler_options=_compiler_options(), **options)


def model_config(**changes) -> ModelConfig:
  """Two layers of width 16, the second banded; `changes` replace fields."""
  fields = dict(
    vocab_size=VOCAB,
    pad_id=PAD,
    context_length=16,
    num_layers=2,
    num_heads=2,
    width=16,
    band_width=3,
    init_std=0.1,
    compute=ComputeConfig(logprob_chunk=64, attention="reference"),
  )
  compute = {name: changes.pop(name) for name in compute_lib.FIELDS if name in changes}
  return replace(ModelConfig(**(fields | changes)), **compute)


def replace(cfg: ModelConfig, **changes) -> ModelConfig:
  """`dataclasses.replace`, of fields of the shape and of `compute` alike."""
  compute = {name: changes.pop(name) for name in compute_lib.FIELDS if name in changes}
  return dataclasses.replace(cfg, compute=dataclasses.replace(cfg.compute, **compute), **changes)


def optim_config(**changes) -> OptimConfig:
  """Adam at a constant rate, with a clip that never acts."""
  fields = dict(
    learning_rate=1e-2,
    schedule="constant",
    warmup_steps=0,
    warmup_init_ratio=0.1,
    final_ratio=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm=1e9,
  )
  return OptimConfig(**(fields | changes))


def ppo_config(**changes) -> PpoConfig:
  """Two minibatches of two microbatches, at a temperature that is not 1."""
  fields = dict(
    batch_size=8,
    minibatch_size=4,
    microbatch_size=2,
    num_epochs=1,
    num_iterations=10,
    max_prompt_tokens=6,
    max_response_tokens=5,
    rollout_slots=None,
    temperature=0.7,
    reward_ensemble="mean",
    reward_variance_coef=0.0,
    kl_coef=0.1,
    kl_controller="fixed",
    kl_target=6.0,
    kl_horizon=100.0,
    gamma=0.9,
    lam=0.8,
    policy_clip=0.2,
    value_clip=0.2,
    value_coef=0.5,
    value_network="separate",
    value_init="reward_model",
    whiten_advantages=True,
    whiten_rewards=False,
    missing_end="none",
    missing_end_penalty=0.0,
    policy_reduction="token_mean",
    ptx_coef=0.0,
    ptx_ratio=8,
    ptx_length=13,
    ptx_microbatch_size=16,
    ptx_reduction="token_mean",
    ema_decay=0.9,
    alarm_ratio_error=1e-3,
    alarm_kl=100.0,
    alarm_decode_gap=0.05,
  )
  return PpoConfig(**(fields | changes))


@functools.cache
def _param_shapes(cfg: ModelConfig):
  return jax.eval_shape(functools.partial(transformer.init_params, cfg), jax.random.key(0))


def make_params(cfg: ModelConfig, seed: int, *, head: bool = False):
  """Parameters at no special point: no bias is 0, no scale is 1, and the output is not flat."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    name = sharding.path_name(path)
    noise = rng.standard_normal(shape.shape).astype(np.float32)
    if name.endswith("scale"):
      return 1.0 - cfg.norm_offset + 0.2 * noise
    if name.endswith("bias"):
      return 0.2 * noise
    return 0.5 * noise if name.startswith("embed") else 0.3 * noise

  params = jax.tree_util.tree_map_with_path(draw, _param_shapes(cfg))
  if head:
    kernel_D1 = 0.3 * rng.standard_normal((cfg.width, 1))
    params["head"] = {"kernel": kernel_D1, "bias": np.asarray([0.4])}
  # jax arrays, also where a test first asks for them while it is being traced.
  with jax.ensure_compile_time_eval():
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def random_ids(rng: np.random.Generator, shape) -> np.ndarray:
  """Ids of the vocabulary, end-of-text among them and padding not."""
  return rng.choice([i for i in range(VOCAB) if i != PAD], size=shape).astype(np.int32)


def right_padded(sequences, length: int) -> tuple[np.ndarray, np.ndarray]:
  """(tokens_BT, mask_BT) of lists of ids."""
  tokens_BT = np.full((len(sequences), length), PAD, np.int32)
  mask_BT = np.zeros((len(sequences), length), np.float32)
  for row, ids in enumerate(sequences):
    tokens_BT[row, : len(ids)] = ids
    mask_BT[row, : len(ids)] = 1
  return tokens_BT, mask_BT


def left_padded(sequences, length: int) -> PromptBatch:
  """Prompts whose last token stands in the last slot."""
  tokens_BP = np.full((len(sequences), length), PAD, np.int32)
  mask_BP = np.zeros((len(sequences), length), np.float32)
  for row, ids in enumerate(sequences):
    tokens_BP[row, length - len(ids) :] = ids
    mask_BP[row, length - len(ids) :] = 1
  return PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP)


def make_prompts(num_rows: int, length: int, seed: int) -> PromptBatch:
  """Prompts of 1 to `length` tokens, end-of-text ids among them."""
  rng = np.random.default_rng(seed)
  return left_padded([random_ids(rng, 1 + row % length) for row in range(num_rows)], length)


def make_lm_batch(num_rows: int, length: int, seed: int) -> LmBatch:
  """Rows of two documents and some padding; the number of targets differs from row to row."""
  rng = np.random.default_rng(seed)
  tokens_BT = random_ids(rng, (num_rows, length))
  segment_BT = np.zeros((num_rows, length), np.int32)
  position_BT = np.zeros((num_rows, length), np.int32)
  loss_mask_BT = np.zeros((num_rows, length), np.float32)
  for row in range(num_rows):
    border, end = 3 + row % 3, length - row % 4
    segment_BT[row, :border], segment_BT[row, border:end] = 1, 2
    position_BT[row, :border] = np.arange(border)
    position_BT[row, border:end] = np.arange(end - border)
    loss_mask_BT[row, 1:border] = 1
    loss_mask_BT[row, border + 1 + row % 5 : end] = 1
    tokens_BT[row, end:] = PAD
  return LmBatch(
    tokens_BT=tokens_BT, loss_mask_BT=loss_mask_BT, segment_BT=segment_BT, position_BT=position_BT
  )


def make_comparisons(num_prompts: int, num_slots: int, length: int, seed: int) -> ComparisonBatch:
  """K = 2..num_slots completions with ties; the last prompt has no untied pair."""
  rng = np.random.default_rng(seed)
  shape = (num_prompts, num_slots)
  tokens_BKT = np.full((*shape, length), PAD, np.int32)
  mask_BKT = np.zeros((*shape, length), np.float32)
  rank_BK, valid_BK = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
  for b in range(num_prompts):
    num_shown = 2 + b % (num_slots - 1)
    rank_BK[b, :num_shown] = rng.integers(1, 4, num_shown)
    rank_BK[b, :2] = (2, 1)
    if b == num_prompts - 1:
      rank_BK[b, :num_shown] = 1
    valid_BK[b, :num_shown] = 1
    for k in range(num_shown):
      size = 2 + (3 * b + 2 * k) % (length - 1)
      tokens_BKT[b, k, :size] = random_ids(rng, size)
      mask_BKT[b, k, :size] = 1
  return ComparisonBatch(
    tokens_BKT=tokens_BKT, mask_BKT=mask_BKT, rank_BK=rank_BK, valid_BK=valid_BK
  )


def make_ppo_batch(num_rows: int, length: int, seed: int, *, logprob_BT=None) -> PpoBatch:
  """Episodes with prompts and responses of many lengths.

  Args:
    logprob_BT: (tokens_BT, mask_BT) -> log-probs of the policy, near which the old ones are drawn,
      so that some ratios are clipped and some are not.
  """
  rng = np.random.default_rng(seed)
  num_prompt_B = 1 + np.arange(num_rows) % 4
  num_response_B = 1 + (3 * np.arange(num_rows)) % 4
  slot_T = np.arange(length)
  mask_BT = (slot_T < (num_prompt_B + num_response_B)[:, None]).astype(np.float32)
  response_mask_BT = mask_BT * (slot_T >= num_prompt_B[:, None])
  tokens_BT = np.where(mask_BT > 0, random_ids(rng, (num_rows, length)), PAD).astype(np.int32)
  noise = lambda scale: (scale * rng.standard_normal((num_rows, length))).astype(np.float32)
  near_BT = -2.0 if logprob_BT is None else np.asarray(logprob_BT(tokens_BT, mask_BT))
  return PpoBatch(
    tokens_BT=tokens_BT,
    mask_BT=mask_BT,
    response_mask_BT=response_mask_BT.astype(np.float32),
    old_logprob_BT=(near_BT + noise(0.3)).astype(np.float32),
    old_value_BT=noise(1.0),
    advantage_BT=noise(1.0),
    return_BT=noise(1.0),
  )


def gae_loop(reward, value, mask, gamma: float, lam: float):
  """One row after the other, from the back, in float64."""
  advantage, returns = np.zeros(mask.shape), np.zeros(mask.shape)
  for row in range(mask.shape[0]):
    following_advantage = following_value = 0.0
    for t in reversed(np.flatnonzero(mask[row])):
      r, v = float(reward[row, t]), float(value[row, t])
      following_advantage = r + gamma * following_value - v + gamma * lam * following_advantage
      following_value = v
      advantage[row, t], returns[row, t] = following_advantage, following_advantage + v
  return advantage, returns


def record_gradient() -> optax.GradientTransformation:
  """An optimizer that moves nothing and whose state is the last gradient it saw."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, state, params=None: (jax.tree.map(jnp.zeros_like, grads), grads),
  )


def assert_leaves_close(actual, expected, tolerance: float = 1e-5) -> None:
  """Each leaf within `tolerance` of its own norm; one that should be 0, of the whole tree's."""
  actual, expected = jax.device_get((actual, expected))
  whole = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))
  assert whole > 0

  def check(path, a, e):
    difference = np.linalg.norm(np.asarray(a, np.float64) - np.asarray(e, np.float64))
    limit = tolerance * max(np.linalg.norm(e), 1e-3 * whole)
    assert difference <= limit, (
      f"{sharding.path_name(path)}: differs by {difference:.3g}, more than {limit:.3g}"
    )

  jax.tree_util.tree_map_with_path(check, actual, expected)


def equations(jaxpr) -> list:
  """All equations of a jaxpr, inner ones included."""
  found = []
  for equation in jaxpr.eqns:
    found.append(equation)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      found += equations(inner)
  return found


def primitives(jaxpr) -> set[str]:
  """Names of the primitives of a (closed) jaxpr, inner ones included."""
  return {equation.primitive.name for equation in equations(jaxpr.jaxpr)}


def check_golden(name: str, numbers: dict[str, float]) -> None:
  """Compares with tests/golden/NAME.json, to 1e-4; writes it where RLHF_UPDATE_GOLDEN is set.

  A leaf's signed sum is compared to 1e-4 of the leaf's norm, not of itself: its terms cancel.
  """
  numbers = {key: float(f"{float(value):.6g}") for key, value in numbers.items()}
  path = GOLDEN / f"{name}.json"
  if os.environ.get(UPDATE_GOLDEN):
    GOLDEN.mkdir(exist_ok=True)
    path.write_text(json.dumps(numbers, indent=2, sort_keys=True) + "\n", encoding="utf-8")
  golden = json.loads(path.read_text(encoding="utf-8"))
  assert numbers.keys() == golden.keys()
  for key, expected in golden.items():
    scale = golden[key.removesuffix("signed") + "norm"] if key.endswith("/signed") else expected
    assert numbers[key] == pytest.approx(expected, rel=0, abs=1e-4 * abs(scale) + 1e-6), key


def summary(name: str, tree) -> dict[str, float]:
  """Two numbers for each leaf: its norm, and a sum whose weights tell the entries apart."""
  numbers = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
    flat = np.asarray(leaf, np.float64).reshape(-1)
    numbers[f"{name}/{sharding.path_name(path)}/norm"] = np.linalg.norm(flat)
    numbers[f"{name}/{sharding.path_name(path)}/signed"] = flat @ np.cos(np.arange(flat.size))
  return numbers


def line_network(context_length: int = 40) -> Network:
  """A policy over bytes, with some tokens that hold a line break and more."""
  tokenizer = Tokenizer.train_bpe(["ab ab\n\nab ab\n\n"] * 3, 264)
  cfg = model_config(
    vocab_size=tokenizer.num_ids,
    pad_id=tokenizer.pad_id,
    context_length=context_length,
    logprob_chunk=3,
    num_layers=1,
  )
  return Network(cfg=cfg, params=make_params(cfg, seed=0), tokenizer=tokenizer, metadata={})


def byte_network() -> Network:
  """A policy over bytes; a context of 16 holds prompts of a few letters."""
  tokenizer = Tokenizer.train_bpe(["abc"], 258)
  cfg = model_config(vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id)
  return Network(cfg=cfg, params=make_params(cfg, 1), tokenizer=tokenizer, metadata={})


def next_logprobs(network: Network):
  """ids -> [T, V] next-token log-probs, one row of one shape."""

  @quick_jit
  def run(tokens_1T, mask_1T):
    hidden_1TD = transformer.forward(network.cfg, network.params, tokens_1T, mask_1T)
    return jax.nn.log_softmax(transformer.logits(network.cfg, network.params, hidden_1TD))[0]

  def of(ids) -> np.ndarray:
    length = network.cfg.context_length
    tokens_1T, mask_1T = np.zeros((1, length), np.int32), np.zeros((1, length), np.float32)
    tokens_1T[0, : len(ids)], mask_1T[0, : len(ids)] = ids, 1
    return np.asarray(run(tokens_1T, mask_1T))[: len(ids)]

  return of


def split_over(network: Network, **axes: int) -> Network:
  """The network on a mesh of simulated devices."""
  mesh = sharding.make_mesh(sharding.MeshConfig(**axes), jax.devices()[: np.prod([*axes.values()])])
  return dataclasses.replace(
    network, params=jax.device_put(network.params, sharding.param_shardings(mesh, network.params))
  )


def preference_rows(policy, group, labelers, win_PL, likert_PL) -> list[dict]:
  """Lines of `preferences.jsonl`; NaN is not judged, and a judgement of neither has no line."""
  known = lambda value, kind: None if np.isnan(value) else kind(value)
  return [
    dict(
      prompt_index=index,
      policy=policy,
      labeler=labeler,
      group=group,
      win=known(win, float),
      likert=known(likert, int),
    )
    for index, (win_L, likert_L) in enumerate(zip(win_PL, likert_PL, strict=True))
    for labeler, win, likert in zip(labelers, win_L, likert_L, strict=True)
    if not (np.isnan(win) and np.isnan(likert))
  ]
