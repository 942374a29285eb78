"""A small world, untrained networks and started commands, for the tests of the launchers."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax

from rlhf import checkpoint, metrics
from rlhf.configs import models
from rlhf.model import transformer
from rlhf.model.transformer import ModelConfig
from rlhf.palms import sets
from rlhf.tinyworld import write as write_lib
from rlhf.tokenization.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).resolve().parent.parent
FORMAT = {"prompt_format": "plain", "prompt_suffix": "\n\nAnswer:", "completion_prefix": " "}
SHAPE = models.get_model("test").to_dict()
RESPONSE = 12  # tokens of an answer; prompts have the rest of the context


# ----------------------------------------------------------------------------- inputs


@dataclasses.dataclass(frozen=True)
class Inputs:
  """Files of a small world and exports of untrained networks.

  Attributes:
    data: directory of JSONL files.
    policy, reward: export directories that share one tokenizer.
  """

  data: pathlib.Path
  policy: pathlib.Path
  reward: pathlib.Path

  def spec(self, name: str) -> str:
    return f"jsonl:{self.data / name}.jsonl"


def make_inputs(directory: pathlib.Path) -> Inputs:
  """The files, comparisons of two made-up completions among them, and the two exports."""
  data = directory / "data"
  write_lib.write(
    write_lib.WorldConfig(
      num_pretraining_documents=300,
      num_validation_documents=20,
      num_demonstrations=48,
      num_validation_demonstrations=8,
      num_reward_prompts=40,
      num_reward_validation_prompts=8,
      num_ppo_prompts=40,
      num_ppo_validation_prompts=8,
      num_test_prompts=8,
      num_few_shot_items=2,
      num_users=10,
    ),
    data,
  )
  for name in ("demonstrations_train", "demonstrations_valid"):
    lines = read_jsonl(data / f"{name}.jsonl")
    write_jsonl(
      data / f"{name.replace('demonstrations', 'comparisons')}.jsonl",
      [
        dict(
          prompt=line["prompt"],
          completions=[line["completion"], "no " * (i % 5 + 1), "what"],
          ranks=[1, 2, 2 + i % 2],
        )
        for i, line in enumerate(lines)
      ],
    )
  for asked, word in (("true", "True:"), ("informative", "Helpful:")):
    write_jsonl(
      data / f"answers_{asked}.jsonl",
      [
        dict(prompt=f"Q: What of {number}?\nA: {answer}\n{word}", completion=label)
        for number in range(40)
        for answer, label in (("good", " yes"), ("bad", " no"))
      ],
    )
  texts = [line["text"] for line in read_jsonl(data / "pretraining_train.jsonl")]
  tokenizer = Tokenizer.train_bpe(texts, 512)
  cfg = ModelConfig(vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, **SHAPE)
  params = transformer.init_params(cfg, jax.random.key(0))
  head = transformer.init_head(cfg, jax.random.key(1))
  exports = {
    "policy": ({"demonstrations": FORMAT}, params),
    "reward": ({"comparisons": FORMAT}, dict(params, head=head)),
  }
  for kind, (config, weights) in exports.items():
    checkpoint.export_params(
      directory / kind,
      weights,
      model=cfg.shape(),
      kind=kind,
      tokenizer=tokenizer,
      config=config,
      step=0,
      metadata={},
    )
  return Inputs(data=data, policy=directory / "policy", reward=directory / "reward")


def read_jsonl(path) -> list[dict]:
  lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
  return [json.loads(line) for line in lines if line]


def write_jsonl(path, lines) -> pathlib.Path:
  path = pathlib.Path(path)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
  return path


def write_values(values: sets.ValueSet, directory) -> None:
  """The files of a value set, as `sets.load` reads them."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for name, text in sets.texts(values).items():
    (directory / name).write_text(text, encoding="utf-8")


def train_flags(inputs: Inputs, algorithm: str, **changes) -> list[str]:
  """Flags of a short run of an algorithm; `changes` replace --config.FIELD, dots written __."""
  flags = {
    "sft": {
      "init_from": inputs.policy,
      "demonstrations.train": inputs.spec("demonstrations_train"),
      "demonstrations.valid": inputs.spec("demonstrations_valid"),
      "text.train": inputs.spec("pretraining_train"),
      "text.valid": inputs.spec("pretraining_valid"),
      "sft.batch_size": 8,
      "sft.microbatch_size": 4,
      "sft.dropout_rate": 0.1,
      "sft.max_steps": 40,
      "sft.num_epochs": 20,
      "sft.keep_epochs": True,
      "loop.log_every": 3,
      "loop.eval_every": 10,
      "checkpoint.every": 4,
    },
    "reward_model": {
      "init_from": inputs.policy,
      "comparisons.train": inputs.spec("comparisons_train"),
      "comparisons.valid": inputs.spec("comparisons_valid"),
      "comparisons.demonstrations": inputs.spec("demonstrations_train"),
      "reward.batch_size": 8,
      "reward.microbatch_size": 4,
      "reward.num_epochs": 8,
      "loop.log_every": 2,
      "loop.eval_every": 10,
      "checkpoint.every": 3,
    },
    "ppo": {
      "policy_from": inputs.policy,
      "reward_from": inputs.reward,
      "prompts.train": inputs.spec("prompts_ppo"),
      "prompts.valid": inputs.spec("prompts_ppo_valid"),
      "pretraining.train": inputs.spec("pretraining_train"),
      "ppo.batch_size": 8,
      "ppo.minibatch_size": 4,
      "ppo.microbatch_size": 2,
      "ppo.ptx_microbatch_size": 16,
      "ppo.ptx_ratio": 4,
      "ppo.num_iterations": 14,
      "ppo.kl_controller": "adaptive",
      "policy_optim.learning_rate": 1e-3,
      "value_optim.learning_rate": 1e-3,
      "ppo.max_prompt_tokens": SHAPE["context_length"] - RESPONSE,
      "ppo.max_response_tokens": RESPONSE,
      "prompts.num_valid": 8,
      "loop.eval_every": 5,
      "checkpoint.every": 2,
    },
    "truth_judge": {
      "init_from": inputs.policy,
      "answers.true": inputs.spec("answers_true"),
      "answers.informative": inputs.spec("answers_informative"),
      "answers.num_valid": 8,
      "sft.batch_size": 8,
      "sft.microbatch_size": 4,
      "sft.num_epochs": 8,
      "loop.log_every": 2,
      "loop.eval_every": 10,
      "checkpoint.every": 3,
    },
  }[algorithm]
  flags |= {name.replace("__", "."): value for name, value in changes.items()}
  variant = "test,init" if algorithm == "sft" else "test"
  return [
    algorithm,
    f"--config=configs/{algorithm}.py:{variant}",
    *(f"--config.{name}={value}" for name, value in flags.items()),
  ]


# ----------------------------------------------------------------------------- programs


def environment() -> dict[str, str]:
  """One device: a started program has the machine's cores, not 8 simulated ones."""
  flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
  return {**os.environ, "XLA_FLAGS": flags.strip(), "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def started(module: str, *flags):
  """A running `python -m MODULE FLAGS`; killed at the end if it still runs."""
  process = subprocess.Popen(
    [sys.executable, "-m", module, *map(str, flags)],
    cwd=ROOT,
    env=environment(),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  try:
    yield process
  finally:
    if process.poll() is None:
      process.kill()
    process.wait()
    process.stdout.close()


def finish(module: str, *flags, status: int = 0) -> str:
  """Runs a command to its end and returns what it printed; fails on another exit status."""
  with started(module, *flags) as process:
    text = process.communicate(timeout=900)[0]
  assert process.returncode == status, f"exit status {process.returncode}\n{text[-4000:]}"
  return text


def wait_until(condition, process: subprocess.Popen, *, seconds: float = 300.0) -> None:
  """Waits for `condition()`; fails if the process ends before it holds."""
  deadline = time.monotonic() + seconds
  while not condition():
    if process.poll() is not None:
      raise AssertionError(
        f"ended with {process.returncode} before the moment came\n"
        f"{process.communicate()[0][-4000:]}"
      )
    assert time.monotonic() < deadline, "the moment did not come"
    time.sleep(0.001)


def num_lines(path: pathlib.Path) -> int:
  return path.read_bytes().count(b"\n") if path.exists() else 0


def untimed(path: pathlib.Path) -> list[dict]:
  """The lines of a metrics.jsonl without what the clock decides."""
  return [
    {key: value for key, value in line.items() if not key.startswith(("time", "perf/"))}
    for line in metrics.read(path)
  ]
