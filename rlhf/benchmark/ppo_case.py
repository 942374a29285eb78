"""The case of our side that is an iteration of PPO, and its phases."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from rlhf import loop, ppo, ppo_setup, sharding, training
from rlhf import metrics as metrics_lib
from rlhf.benchmark import inputs, random_networks
from rlhf.benchmark.job import Case, Job, Work
from rlhf.benchmark.training_cases import TRAINED, check_whole, lm_rows
from rlhf.data import batches as batches_lib
from rlhf.model import flops
from rlhf.ppo_setup import Models, PpoConfig
from rlhf.types import PromptBatch


def ppo_iteration(job: Job, config) -> Case:
  """One iteration of `ppo.train`: rollout, scores, advantages, all optimizer steps."""
  ppo.check_config(config)
  check_whole(config)
  iteration = _Iteration(job, config)
  return Case(
    model=random_networks.describe(iteration.models.policy, iteration.ref_params),
    run=iteration.run,
    phases=iteration.phases,
    export=iteration.export,
  )


class _Iteration:
  """Networks, state and programs, as `ppo._train` makes them, on random inputs."""

  def __init__(self, job: Job, config):
    self.job, self.config = job, config
    self.p, self.mesh = PpoConfig(**config.ppo), training.groups(config).mesh
    policy, self.ref_params = random_networks.policy(job, config, self.mesh)
    reward, self.reward_params = random_networks.reward(job, config, self.mesh)
    self.models, p = Models(policy=policy, reward=reward), self.p
    ppo_setup.check_lengths(p, self.models)
    self.tx, _ = ppo_setup.make_optimizer(config, p)
    tokens_BP, mask_BP = inputs.prompts(job, inputs.NUM_BATCHES * p.batch_size, p.max_prompt_tokens)
    self.next_prompts = loop.Stream(
      batches_lib.Batches(
        PromptBatch(tokens_BP=tokens_BP, mask_BP=mask_BP),
        batch_size=p.batch_size,
        seed=job.seed,
        share=sharding.local_rows(self.mesh, p.batch_size),
      )
    )
    self.ptx_rows = None
    if p.ptx_coef > 0.0:
      shape = (p.updates_per_iteration, p.num_ptx_per_minibatch)
      flat = lm_rows(job, shape[0] * shape[1], p.ptx_length, stream=3)
      self.ptx_rows = jax.tree.map(lambda x: x.reshape(*shape, -1), flat)
    with jax.set_mesh(self.mesh):
      self.state, self.layout = training.place(
        self.mesh,
        functools.partial(ppo_setup.init_state, self.models, p, self.tx),
        self.ref_params,
        self.reward_params,
        loop.step_key(config.seed, "value", 0),
      )
    self.step = 0
    self.collect = functools.partial(ppo.collect, self.models, p, eot_id=job.eot_id)
    self.update = self.make_update(p)
    self.parts: dict[str, Callable] = {}  # programs of `phases`, made when it is first asked

  def make_update(self, p: PpoConfig):
    """The last program of an iteration."""
    return jax.jit(
      functools.partial(ppo.update_and_control, self.models, p, self.tx, use_segments=False),
      donate_argnums=0,
      out_shardings=(self.layout, None),
    )

  def put_prompts(self) -> PromptBatch:
    return sharding.put_batch(self.mesh, self.next_prompts(self.step), self.p.batch_size)

  def put_ptx(self):
    if self.ptx_rows is None:
      return None
    return sharding.put_batch(self.mesh, self.ptx_rows, self.p.num_ptx_per_minibatch, axis=1)

  def run_collect(self, prompts: PromptBatch, key):
    state = self.state
    arguments = (self.ref_params, self.reward_params, prompts, state.kl_coef, key, None)
    return jax.block_until_ready(self.collect(state.train.params, *arguments))

  def run_update(self, update: Callable, batch, ptx, kl, key) -> Mapping[str, Any]:
    """Moves the state on; returns metrics."""
    self.state, metrics = update(self.state, batch, ptx, kl, key, None)
    jax.block_until_ready((self.state, metrics))
    return metrics

  def run(self, given: Mapping[str, Any]) -> Work:
    """An iteration as `ppo._train` has it; all but its programs is the host's time."""
    del given
    p, began = self.p, time.perf_counter()
    with jax.set_mesh(self.mesh):
      keys = jax.random.split(loop.step_key(self.config.seed, "rollout", self.step))
      prompts = self.put_prompts()
      called = time.perf_counter()
      batch, metrics = self.run_collect(prompts, keys[0])
      device = time.perf_counter() - called
      ptx = self.put_ptx()
      called = time.perf_counter()
      metrics |= self.run_update(self.update, batch, ptx, metrics["objective/kl"], keys[1])
      device += time.perf_counter() - called
    self.step += 1
    numbers = metrics_lib.summarise(metrics)
    host = time.perf_counter() - began - device
    num_tokens = np.asarray(prompts.mask_BP).sum()
    num_tokens += numbers["rollout/response_tokens"] * p.batch_size
    return Work(
      tokens=p.batch_size * (p.max_prompt_tokens + p.max_response_tokens),
      useful_tokens=round(float(num_tokens)),
      flops=ppo_flops(self.models, p),
      seconds=dict(host=host),
    )

  def phases(self) -> dict[str, float]:
    """Seconds of programs that hold one phase each, as an iteration's programs do not tell them all
    apart; "ptx" is what the update takes longer with pretraining text."""
    p, models = self.p, self.models
    first = not self.parts
    if first:
      self.parts = dict(
        rollout=functools.partial(ppo.sample, models, p, eot_id=self.job.eot_id),
        score=jax.jit(functools.partial(ppo.score_rows, models, p)),
        update=self.make_update(dataclasses.replace(p, ptx_coef=0.0)),
      )
    seconds: dict[str, float] = {}

    def clock(name: str, function: Callable[[], Any]) -> Any:
      if first:
        function()  # compiles
      began = time.perf_counter()
      found = jax.block_until_ready(function())
      seconds[name] = time.perf_counter() - began
      return found

    with jax.set_mesh(self.mesh):
      keys = jax.random.split(loop.step_key(self.config.seed, "rollout", self.step))
      prompts, ptx = self.put_prompts(), self.put_ptx()
      batch, metrics = self.run_collect(prompts, keys[0])
      kl = metrics["objective/kl"]
      # The state is read anew for each: the update takes its arrays over.
      rows, _ = clock(
        "rollout",
        lambda: self.parts["rollout"](self.state.train.params["policy"], prompts, keys[0]),
      )
      arrays = [rows[name] for name in ("tokens_BT", "mask_BT", "response_mask_BT")]
      clock(
        "score",
        lambda: self.parts["score"](
          self.state.train.params, self.ref_params, self.reward_params, *arrays
        ),
      )
      update = lambda program, ptx: self.run_update(program, batch, ptx, kl, keys[1])
      clock("update", lambda: update(self.parts["update"], None))
      if ptx is not None:
        clock("ptx", lambda: update(self.update, ptx))
        seconds["ptx"] -= seconds["update"]
    return seconds

  def export(self, directory: str) -> None:
    random_networks.export(self.models.policy, self.ref_params, "policy", directory)
    random_networks.export(self.models.reward, self.reward_params, "reward", directory)


def ppo_flops(models: Models, p: PpoConfig) -> float:
  """Model FLOPs of an iteration: sampling, scoring by four networks, and all updates."""
  policy, value = models.policy, models.value(p)
  length = p.max_prompt_tokens + p.max_response_tokens
  shape = (p.batch_size, length)
  separate = p.value_network == "separate"
  policy_pass = flops.forward_flops(policy, *shape, num_logits=p.max_response_tokens)
  value_pass = flops.forward_flops(value, *shape, num_logits=0) if separate else 0.0
  scoring = 2 * policy_pass + value_pass + flops.forward_flops(models.reward, *shape, num_logits=0)
  total = scoring + TRAINED * p.num_epochs * (policy_pass + value_pass)
  total += flops.generate_flops(policy, p.batch_size, p.max_prompt_tokens, p.max_response_tokens)
  if p.ptx_coef > 0.0:
    num_rows = p.updates_per_iteration * p.num_ptx_per_minibatch
    total += TRAINED * flops.forward_flops(policy, num_rows, p.ptx_length, num_logits=p.ptx_length)
  return total
