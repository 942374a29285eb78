"""The same work through PyTorch and `transformers`, with the weights that our side exports."""

import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from rlhf.benchmark import inputs, measure
from rlhf.benchmark.job import Case, Job, Work

_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}  # as our side's
_COPY_BYTES = 2**28
_CEILING_REPEATS = 10
Losses = Callable[[int], Iterator[torch.Tensor]]


def make(job: Job, *, directory: str, platform: str, variant: str) -> Case:
  """The case with the network of a directory.

  Args:
    job: as our side's.
    directory: with the Hugging Face checkpoints `policy` and `reward`, or one of them.
    platform: jax's name of the platform that our side runs on.
    variant: one of `job.PEERS["transformers"]`.

  Raises:
    ValueError: PyTorch has no such device.
  """
  return _MAKERS[job.case](job, pathlib.Path(directory), set_up(platform), variant)


def describe() -> dict[str, Any]:
  """Of the libraries and the device."""
  return dict(
    num_cores=torch.get_num_threads(),
    versions=dict(torch=torch.__version__, transformers=transformers.__version__),
  )


def peak_device_bytes() -> int | None:
  return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None


def ceilings() -> dict[str, float]:
  """As our side's: the best of several runs of a square float32 matmul, and of a copy."""
  device = "cuda" if torch.cuda.is_initialized() else "cpu"
  size = _MATMUL_SIZE[device]
  square = torch.ones(size, size, device=device)
  array = torch.ones(_COPY_BYTES // 4, device=device)
  target = torch.empty_like(array)

  def best(function: Callable[[], Any]) -> float:
    def once() -> None:
      function()
      wait(array.device)

    once()
    return min(measure.timed(once)[1] for _ in range(_CEILING_REPEATS))

  return dict(
    matmul_flops_per_second=2 * size**3 / best(lambda: square @ square),
    copy_bytes_per_second=2 * _COPY_BYTES / best(lambda: target.copy_(array)),
  )


def set_up(platform: str) -> torch.device:
  """As many threads as cores, no progress bars; returns the device of a platform of jax's.

  Raises:
    ValueError: PyTorch has no such device.
  """
  torch.set_num_threads(measure.num_cores())
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  if platform == "cpu":
    return torch.device("cpu")
  if platform != "gpu" or not torch.cuda.is_available():
    raise ValueError(
      f"--against: PyTorch finds no device for the platform {platform!r} that we run on; install "
      "a build of torch that does, or set JAX_PLATFORMS=cpu"
    )
  return torch.device("cuda")


def on_device(job: Job, tokens: Any, device: torch.device) -> torch.Tensor:
  """Token ids; where ours has padding, they have end-of-text."""
  return torch.from_numpy(tokens).long().clamp(max=job.eot_id).to(device)


def wait(device: torch.device) -> None:
  if device.type == "cuda":
    torch.cuda.synchronize()


# ----------------------------------------------------------------------------- generate


class _Lengths(transformers.StoppingCriteria):
  """Ends each row after its own number of sampled tokens."""

  def __init__(self, prompt_length: int, length_B: torch.Tensor):
    self._end_B = prompt_length + length_B

  def __call__(self, input_ids, scores, **unused):
    return self._end_B <= input_ids.shape[1]


def _generate(job: Job, directory: pathlib.Path, device: torch.device, variant: str) -> Case:
  """`model.generate` by sampling from the same prompts to the same lengths, as many at once as ours
  decodes."""
  p = job.config["ppo"]
  num_slots = p["batch_size"] if p["rollout_slots"] is None else p["rollout_slots"]
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory / "policy", dtype=torch.float32
  )
  model = model.to(device).eval()
  tokens_BP, mask_BP = inputs.prompts(job, p["batch_size"], p["max_prompt_tokens"])
  settings: dict[str, Any] = dict(
    do_sample=True,
    temperature=p["temperature"],
    top_k=0,
    top_p=1.0,
    max_new_tokens=p["max_response_tokens"],
    pad_token_id=job.eot_id,
  )
  if variant != "eager":
    compiled = transformers.CompileConfig(fullgraph=False)
    compiled._compile_all_devices = True  # without it, nothing is compiled on CPUs
    settings |= dict(cache_implementation="static", compile_config=compiled)

  @torch.inference_mode()
  def run(given: Mapping[str, Any]) -> Work:
    began = time.perf_counter()
    length_B = torch.tensor(given["lengths"], device=device)
    tokens = on_device(job, tokens_BP, device)
    mask = torch.from_numpy(mask_BP).long().to(device)
    called = time.perf_counter()
    num_tokens = 0
    for batch in (slice(n, n + num_slots) for n in range(0, len(tokens), num_slots)):
      ends = _Lengths(tokens.shape[1], length_B[batch])
      found = model.generate(
        tokens[batch],
        attention_mask=mask[batch],
        stopping_criteria=transformers.StoppingCriteriaList([ends]),
        **settings,
      )
      num_tokens += found.shape[0] * (found.shape[1] - tokens.shape[1])
    wait(device)
    rollout = time.perf_counter() - called
    return Work(
      tokens=num_tokens,
      useful_tokens=int(length_B.sum()),
      flops=given["flops"],
      least_bytes=given["least_bytes"],
      seconds=dict(rollout=rollout, host=time.perf_counter() - began - rollout),
    )

  return Case(model={}, run=run)


# ----------------------------------------------------------------------------- score


def classifier(directory: pathlib.Path, device: torch.device, **config: Any) -> Any:
  """The reward model, as a classifier with one label."""
  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    directory / "reward", dtype=torch.float32, num_labels=1, **config
  )
  return model.to(device)


def _score(job: Job, directory: pathlib.Path, device: torch.device, variant: str) -> Case:
  """Scores of the same sequences, padded to the same length, in batches of the same size."""
  del variant
  batch_size, length = job.config["reward"]["batch_size"], job.config["length"]
  model = classifier(directory, device).eval()
  sequences = inputs.sequences(job, batch_size * job.completions, length)

  @torch.inference_mode()
  def run(given: Mapping[str, Any]) -> Work:
    began = time.perf_counter()
    for start in range(0, len(sequences), batch_size):
      tokens_BT, mask_BT = inputs.padded(job, sequences[start : start + batch_size], length)
      tokens = on_device(job, tokens_BT, device)
      mask = torch.from_numpy(mask_BT).long().to(device)
      model(tokens, attention_mask=mask, use_cache=False).logits[:, 0].cpu()
    return Work(
      tokens=len(sequences) * length,
      useful_tokens=sum(map(len, sequences)),
      flops=given["flops"],
      least_bytes=given["least_bytes"],
      seconds=dict(score=time.perf_counter() - began),
    )

  return Case(model={}, run=run)


# ----------------------------------------------------------------------------- training


def _train_step(
  job: Job,
  model: Any,
  losses: Losses,
  device: torch.device,
  tokens: int,
  useful_tokens: int,
) -> Case:
  """An optimizer step by Adam with the config's numbers, clipped by the global norm.

  Args:
    model: in training.
    losses: step -> the losses of its microbatches, which add up.
    tokens, useful_tokens: of a step.
  """
  cfg = job.config["optim"]
  if job.config["compute"]["remat"] != "none":
    model.gradient_checkpointing_enable()
  make = torch.optim.AdamW if cfg["weight_decay"] else torch.optim.Adam
  optimizer = make(
    model.parameters(),
    lr=cfg["learning_rate"],
    betas=(cfg["b1"], cfg["b2"]),
    eps=cfg["eps"],
    weight_decay=cfg["weight_decay"],
  )
  steps = itertools.count()

  def run(given: Mapping[str, Any]) -> Work:
    began = time.perf_counter()
    for loss in losses(next(steps)):
      loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), cfg["max_grad_norm"])
    optimizer.step()
    optimizer.zero_grad()
    wait(device)
    return Work(
      tokens=tokens,
      useful_tokens=useful_tokens,
      flops=given["flops"],
      least_bytes=given["least_bytes"],
      seconds=dict(update=time.perf_counter() - began),
    )

  return Case(model={}, run=run)


def sft_losses(job: Job, directory: pathlib.Path, device: torch.device) -> tuple[Any, Losses]:
  """(model, losses of a step's microbatches): `sft.sft_loss` on the same rows."""
  p, length = job.config["sft"], job.config["length"]
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory / "policy",
    dtype=torch.float32,
    resid_pdrop=p["dropout_rate"],
    embd_pdrop=0.0,
    attn_pdrop=0.0,
  )
  model = model.to(device).train()
  rows_NT = inputs.tokens(job, inputs.NUM_BATCHES * p["batch_size"], length, stream=3)
  num_targets = p["batch_size"] * (length - 1)

  def losses(step: int) -> Iterator[torch.Tensor]:
    first = step % inputs.NUM_BATCHES * p["batch_size"]
    batch = on_device(job, rows_NT[first : first + p["batch_size"]], device)
    for tokens in batch.split(p["microbatch_size"]):
      logits = model(tokens, use_cache=False).logits[:, :-1]
      targets = tokens[:, 1:].flatten()
      yield F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum") / num_targets

  return model, losses


def rm_losses(job: Job, directory: pathlib.Path, device: torch.device) -> tuple[Any, Losses]:
  """(model, losses of a step's microbatches): `reward_model.reward_loss` on the same comparisons."""
  p, length = job.config["reward"], job.config["length"]
  model = classifier(directory, device, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).train()
  tokens_BKT, mask_BKT, rank_BK = inputs.comparisons(job, p["batch_size"], job.completions, length)
  arrays = [
    on_device(job, tokens_BKT, device),
    *(torch.from_numpy(array).long().to(device) for array in (mask_BKT, rank_BK)),
  ]
  first, second = torch.combinations(torch.arange(job.completions)).unbind(1)

  def losses(step: int) -> Iterator[torch.Tensor]:
    del step
    microbatches = (array.split(p["microbatch_size"]) for array in arrays)
    for tokens, mask, rank in zip(*microbatches, strict=True):
      logits = model(
        tokens.flatten(0, 1), attention_mask=mask.flatten(0, 1), use_cache=False
      ).logits
      score = logits.view(rank.shape)
      sign = torch.sign(rank[:, second] - rank[:, first])  # 1 where the first is better
      margin = sign * (score[:, first] - score[:, second])
      yield -F.logsigmoid(margin).mean(dim=1).sum() / p["batch_size"]

  return model, losses


def _sft_step(job: Job, directory: pathlib.Path, device: torch.device, variant: str) -> Case:
  """As `training_cases.sft_step`."""
  del variant
  num_tokens = job.config["sft"]["batch_size"] * job.config["length"]
  return _train_step(job, *sft_losses(job, directory, device), device, num_tokens, num_tokens)


def _rm_step(job: Job, directory: pathlib.Path, device: torch.device, variant: str) -> Case:
  """As `training_cases.rm_step`."""
  del variant
  batch_size, length = job.config["reward"]["batch_size"], job.config["length"]
  _, mask_BKT, _ = inputs.comparisons(job, batch_size, job.completions, length)
  losses = rm_losses(job, directory, device)
  return _train_step(job, *losses, device, mask_BKT.size, int(mask_BKT.sum()))


_MAKERS = {
  "generate": _generate,
  "score": _score,
  "sft_step": _sft_step,
  "rm_step": _rm_step,
}
