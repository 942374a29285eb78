"""The same work through PyTorch and `transformers`, with the weights that our side exports."""

import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from rlhf.benchmark import inputs, measure
from rlhf.benchmark.job import Case, Job, Work

_MATMUL_SIZE = {"cpu": 2048, "cuda": 8192}  # as our side's
_COPY_BYTES = 2**28
_CEILING_REPEATS = 10


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
  torch.set_num_threads(measure.num_cores())
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  return _MAKERS[job.case](job, pathlib.Path(directory), _device(platform), variant)


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
      _wait(array.device)

    once()
    return min(measure.timed(once)[1] for _ in range(_CEILING_REPEATS))

  return dict(
    matmul_flops_per_second=2 * size**3 / best(lambda: square @ square),
    copy_bytes_per_second=2 * _COPY_BYTES / best(lambda: target.copy_(array)),
  )


def _device(platform: str) -> torch.device:
  if platform == "cpu":
    return torch.device("cpu")
  if platform != "gpu" or not torch.cuda.is_available():
    raise ValueError(
      f"--against: PyTorch finds no device for the platform {platform!r} that we run on; install "
      "a build of torch that does, or set JAX_PLATFORMS=cpu"
    )
  return torch.device("cuda")


def _wait(device: torch.device) -> None:
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
  """`model.generate` by sampling from the same prompts to the same lengths."""
  p = job.config["ppo"]
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
    pad_token_id=job.pad_id,
  )
  if variant != "eager":
    compiled = transformers.CompileConfig(fullgraph=False)
    compiled._compile_all_devices = True  # without it, nothing is compiled on CPUs
    settings |= dict(cache_implementation="static", compile_config=compiled)

  @torch.inference_mode()
  def run(given: Mapping[str, Any]) -> Work:
    began = time.perf_counter()
    length_B = torch.tensor(given["lengths"], device=device)
    tokens = torch.from_numpy(tokens_BP).long().to(device)
    mask = torch.from_numpy(mask_BP).long().to(device)
    called = time.perf_counter()
    found = model.generate(
      tokens,
      attention_mask=mask,
      stopping_criteria=transformers.StoppingCriteriaList([_Lengths(tokens.shape[1], length_B)]),
      **settings,
    )
    _wait(device)
    rollout = time.perf_counter() - called
    num_steps = found.shape[1] - tokens.shape[1]
    return Work(
      tokens=tokens.shape[0] * num_steps,
      useful_tokens=int(length_B.sum()),
      flops=given["flops"],
      least_bytes=given["least_bytes"],
      seconds=dict(rollout=rollout, host=time.perf_counter() - began - rollout),
    )

  return Case(model={}, run=run)


_MAKERS = {
  "generate": _generate,
}
