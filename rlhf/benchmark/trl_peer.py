"""An iteration of PPO through TRL's trainer, from the networks that our side exports.

Batch, minibatch, microbatch, lengths and epochs are those of our config. What TRL does otherwise, it
cannot be told: old log-probs are the sampler's own, so that the policy does not score its responses
again; there is no moving average, no clip by the gradient's norm and one learning rate; responses
are drawn anew, and all have full length.
"""

import contextlib
import io
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import datasets
import tokenizers
import torch
import transformers
import trl
from trl.experimental import ppo

from rlhf.benchmark import inputs, transformers_peer
from rlhf.benchmark.job import Case, Job, Work
from rlhf.benchmark.transformers_peer import ceilings, peak_device_bytes

__all__ = ["ceilings", "describe", "make", "peak_device_bytes"]


def describe() -> dict[str, Any]:
  """Of the libraries and the device."""
  found = transformers_peer.describe()
  return found | dict(versions=found["versions"] | dict(trl=trl.__version__))


def make(job: Job, *, directory: str, platform: str, variant: str) -> Case:
  """The case; arguments as in `transformers_peer.make`."""
  del variant
  device = transformers_peer.set_up(platform)
  datasets.disable_progress_bars()
  collator = Collator(job)
  trainer = make_trainer(job, pathlib.Path(directory), device, collator)
  p = job.config["ppo"]

  def run(given: Mapping[str, Any]) -> Work:
    del given
    collator.num_tokens.clear()
    with contextlib.redirect_stdout(io.StringIO()):
      trainer.train()
    transformers_peer.wait(device)
    num_responses = p["batch_size"] * p["max_response_tokens"]
    return Work(
      tokens=p["batch_size"] * p["max_prompt_tokens"] + num_responses,
      # The loader is one batch ahead of the trainer.
      useful_tokens=collator.num_tokens[0] + num_responses,
    )

  return Case(model={}, run=run)


class Collator:
  """Joins prompts of one length, and notes how many of their tokens are no padding."""

  def __init__(self, job: Job):
    self._pad_id = job.eot_id
    self.num_tokens: list[int] = []

  def __call__(self, features: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    tokens = torch.tensor([feature["input_ids"] for feature in features])
    self.num_tokens.append(int((tokens != self._pad_id).sum()))
    return {"input_ids": tokens}


def make_trainer(
  job: Job, directory: pathlib.Path, device: torch.device, collator: Collator
) -> ppo.PPOTrainer:
  """A trainer whose `train` is one iteration of the job's config."""
  p, optim = job.config["ppo"], job.config["policy_optim"]
  tokens_BP, _ = inputs.prompts(job, inputs.NUM_BATCHES * p["batch_size"], p["max_prompt_tokens"])
  prompts = transformers_peer.on_device(job, tokens_BP, torch.device("cpu"))
  rows = datasets.Dataset.from_dict({"input_ids": prompts.tolist()})
  load = transformers.AutoModelForCausalLM.from_pretrained
  arguments = ppo.PPOConfig(
    output_dir=tempfile.mkdtemp(dir=directory),  # which is a temporary directory itself
    seed=job.seed,
    use_cpu=device.type == "cpu",
    bf16=False,
    gradient_checkpointing=job.config["compute"]["remat"] != "none",
    disable_tqdm=True,
    report_to=[],
    save_strategy="no",
    num_sample_generations=0,
    total_episodes=p["batch_size"],
    per_device_train_batch_size=p["microbatch_size"],
    gradient_accumulation_steps=p["batch_size"] // p["microbatch_size"],
    num_mini_batches=p["batch_size"] // p["minibatch_size"],
    local_rollout_forward_batch_size=p["batch_size"],
    num_ppo_epochs=p["num_epochs"],
    response_length=p["max_response_tokens"],
    temperature=p["temperature"],
    kl_coef=p["kl_coef"],
    cliprange=p["policy_clip"],
    cliprange_value=p["value_clip"] if p["value_clip"] is not None else float("inf"),
    vf_coef=p["value_coef"],
    gamma=p["gamma"],
    lam=p["lam"],
    whiten_rewards=p["whiten_rewards"],
    learning_rate=optim["learning_rate"],
    lr_scheduler_type="constant",
    adam_beta1=optim["b1"],
    adam_beta2=optim["b2"],
    adam_epsilon=optim["eps"],
  )
  trainer = ppo.PPOTrainer(
    args=arguments,
    processing_class=_tokenizer(job),
    model=load(directory / "policy", dtype=torch.float32),
    ref_model=load(directory / "policy", dtype=torch.float32),
    reward_model=transformers_peer.classifier(directory, device),
    value_model=transformers_peer.classifier(directory, device),
    train_dataset=rows,
    eval_dataset=rows,
    data_collator=collator,
  )
  # It would take one optimizer step for a whole batch: it counts microbatches over minibatches.
  trainer.accelerator.gradient_accumulation_steps = p["minibatch_size"] // p["microbatch_size"]
  return trainer


def _tokenizer(job: Job) -> transformers.PreTrainedTokenizerFast:
  """A tokenizer whose tokens are numbers, for its ids of padding and end-of-text."""
  vocabulary = {str(number): number for number in range(job.vocab_size)}
  model = tokenizers.models.WordLevel(vocabulary, unk_token="0")
  end = str(job.eot_id)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model), pad_token=end, eos_token=end, padding_side="left"
  )
