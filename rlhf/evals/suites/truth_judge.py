"""The judge of TruthfulQA's answers: SFT on labelled answers, to say yes or no.

    loss = - mean log p(" yes" or " no", end-of-text | "Q: ...\\nA: ...\\nTrue:" or "...Helpful:")

Source: Lin et al. 2021 (TruthfulQA), section 2.3 and appendix B, who fine-tune GPT-3 6.7B on the
labelled answers that they publish, and judge by p(yes).  They train one network for truth and one
for informativeness; here **one network learns both**, because the last word of the prompt names the
aspect and the labelled questions are the same.  Leaving a file empty trains a judge of the other
aspect alone.

The export lists the questions of training and validation; `truth.py` refuses or leaves out those.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax

from rlhf import networks, processes, sft, training
from rlhf.evals.suites import truth, truth_answers
from rlhf.evals.suites.truth_answers import AnswerData
from rlhf.model import lora
from rlhf.sft import SftConfig, SftRows
from rlhf.types import Params


def check_config(config) -> None:
  """What the config alone can show to be wrong; raises ValueError as `sft.check_config`."""
  training.check_kind(config, "truth_judge")
  AnswerData(**config.answers)
  training.check_groups(config, sft__batch_size=SftConfig(**config.sft).batch_size)


def check_inputs(config) -> None:
  """Reads what the config names, and keeps nothing; raises ValueError as `train` would later."""
  networks.find_export(config.init_from, kind="policy", flag="init_from", shape=config.model)
  truth_answers.check(AnswerData(**config.answers))


def train(config, workdir, *, cache_dir=None) -> dict[str, Any]:
  """Trains a judge, measures it on questions that it has not seen, and exports it.

  Args:
    config: `configs/truth_judge.py` documents it.
    workdir: of this stage; a finished stage returns its result at once.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    What `done.json` holds: accuracy on the test questions (on those of validation where there are
    none), balanced accuracy and the majority's, each with its interval; steps and seconds.
  """
  check_config(config)
  return training.once(_train, config, workdir, cache_dir)


def _train(config, workdir: pathlib.Path, cache_dir: pathlib.Path | None) -> dict[str, Any]:
  groups, data = training.groups(config), AnswerData(**config.answers)
  with processes.main_first("data"):
    parts = truth_answers.split_answers(truth_answers.load_answers(data, cache_dir), data)
  network = training.start(config, groups)
  rows = truth_answers.tokenise(parts["train"], network.tokenizer, length=config.length)
  for name in ("valid", "test"):
    parts[name] = truth_answers.that_fit(parts[name], network.tokenizer, length=config.length)
  counts = (f"{len(answers):,} for {name}" for name, answers in parts.items())
  print(f"{workdir.name}: labelled answers: {', '.join(counts)}", flush=True)
  # The export's accuracy is on the test, if it has answers of every aspect.
  aspects = {answer.aspect for answer in parts["test"]}
  held_out = "test" if aspects == set(data.specs) else "valid"
  valid = truth_answers.draw(parts["valid"], data.num_valid, config.seed)
  last = truth_answers.draw(parts[held_out], data.num_test, config.seed)
  trainee = training.adapt(config, groups, network)
  network = dataclasses.replace(network, cfg=trainee.cfg, params=None)
  measure = functools.partial(
    truth_answers.accuracy, batch_size=config.sft.batch_size, seed=config.seed
  )

  def evaluate(params: Params) -> dict[str, float]:
    found = measure(dataclasses.replace(network, params=params), valid)
    return {
      f"validation/{aspect}_{name}": numbers[name].mean
      for aspect, numbers in found.items()
      for name in ("accuracy", "balanced_accuracy")
    }

  with jax.set_mesh(groups.mesh):
    state, num_steps = sft.fine_tune(
      config,
      workdir,
      groups,
      trainee,
      SftRows(main=rows),
      evaluate,
      headline=("train/loss", *(f"validation/{aspect}_accuracy" for aspect in data.specs)),
    )
    judge = dataclasses.replace(network, params=lora.combine(trainee.frozen, state.params))
    found = measure(judge, last)
    judgements = {
      aspect: dict(
        questions=_questions(parts, aspect),
        held_out=held_out,
        **{name: interval.as_dict() for name, interval in numbers.items()},
      )
      for aspect, numbers in found.items()
    }
    sft.export(
      workdir / "export",
      config,
      groups,
      trainee,
      state.params,
      num_steps,
      **{truth.METADATA: judgements},
    )
  return {
    f"{held_out}/{aspect}_{name}{end}": number
    for aspect, numbers in found.items()
    for name, interval in numbers.items()
    for end, number in (("", interval.mean), ("_low", interval.low), ("_high", interval.high))
  } | dict(steps=num_steps)


def _questions(parts, aspect: str) -> list[str]:
  """Ids of the questions of an aspect that training or validation has read."""
  read = (answer for name in ("train", "valid") for answer in parts[name])
  return sorted({answer.question for answer in read if answer.aspect == aspect})
