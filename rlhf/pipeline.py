"""The three steps of InstructGPT in a row, and the report.

    data -> base -> sft (16 epochs) -> comparisons -> reward_model -> best SFT epoch
                 -> init (2 epochs + pretraining mix) -> ppo, ppo_ptx
                 -> base_more_pretraining
                                                      -> evaluation -> report

`stages.py` has the table of stages: what each reads and builds on.  Each stage has a directory
under the workdir; a stage that is done there is skipped, one that was interrupted goes on.  The
data are TinyWorld's (`config.world`) or one's own files (`config.files`); from there on the stages
are the same, but only TinyWorld has labelers that can be asked again.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import checkpoint, loop, networks, ppo, processes, reward_model, sft, sharding
from rlhf import metrics as metrics_lib
from rlhf import stages as stages_lib
from rlhf import workdir as workdir_lib
from rlhf.data import cache, hygiene, prepare, sources
from rlhf.data import records as records_lib
from rlhf.evals import statistics
from rlhf.evals.preference import judges, win_rates
from rlhf.evals.reward_models import calibration, selection
from rlhf.evals.suites import bigram
from rlhf.inference import completions, likelihood
from rlhf.inference.completions import CompletionConfig
from rlhf.model.compute import ComputeConfig
from rlhf.networks import Network
from rlhf.report import pipeline as report_lib
from rlhf.sharding import MeshConfig
from rlhf.tinyworld import gold
from rlhf.tinyworld import labelers as labelers_lib
from rlhf.tinyworld import world as world_lib
from rlhf.tinyworld import write as write_lib
from rlhf.tokenization.tokenizer import Tokenizer
from rlhf.workdir import read_jsonl

# What stands between a few-shot prompt, which ends in ":", and a choice, as in pretraining text.
FEW_SHOT_DELIMITER = " "
POLICIES = ("base", "sft", "ppo", "ppo_ptx")
COMPARED = (*POLICIES, "sft_last", "ppo_live", "ppo_ptx_live")  # on the test prompts
LIKELIHOOD_MODELS = ("base", "base_more_pretraining", "init", "sft", "ppo", "ppo_ptx")
SHOWN_SAMPLES = 30
REWARD_INITS = ("sft", "base")
KL_REFERENCES = ("init", "base")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonsConfig:
  """How outputs are drawn for ranking: K from `min_completions` to `max_completions` a prompt
  (InstructGPT: 4 to 9, section 3.5) from the last SFT epoch."""

  min_completions: int
  max_completions: int
  temperature: float

  def __post_init__(self):
    if not 2 <= self.min_completions <= self.max_completions:
      raise ValueError(
        f"comparisons.min_completions {self.min_completions} and max_completions "
        f"{self.max_completions}; use 2 <= min_completions <= max_completions"
      )
    if self.temperature <= 0:
      raise ValueError(
        f"comparisons.temperature {self.temperature}; use a number above 0, or all "
        "completions of a prompt are the same"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
  """The final comparison.

  Attributes:
    temperature: of every fine-tuned policy; InstructGPT's samples are drawn at 1 (appendix F).
    base_temperature: of the base model; 0.7 there.
    num_selection_prompts: validation prompts on which the SFT epoch is chosen by reward.
    num_resamples: of the bootstrap.
    batch_size: rows at once; changes nothing but speed and memory.
  """

  temperature: float
  base_temperature: float
  num_selection_prompts: int
  num_resamples: int
  batch_size: int

  def __post_init__(self):
    for name in ("temperature", "base_temperature"):
      if getattr(self, name) < 0:
        raise ValueError(f"evaluation.{name} {getattr(self, name)}; use 0 or more")
    for name in ("num_selection_prompts", "num_resamples", "batch_size"):
      if getattr(self, name) < 1:
        raise ValueError(f"evaluation.{name} {getattr(self, name)}; use 1 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilesConfig:
  """One's own data: `FORMAT:PATH` or tfds names, several where a field is a tuple.

  Attributes:
    text, demonstrations, comparisons, prompts: where each kind comes from; `base.text.max_tokens`
      says how much of the text is read.
    valid_fraction, test_fraction: of users (of prompts, where there are no users; of documents for
      text).
    max_demonstrations, max_comparisons, max_prompts: a random subset of so many; None takes all.
    max_completions: of a comparison; a random subset of so many where it has more.
    prefix_length: prompts that share so many first characters are duplicates; not stated in the
      paper.
    max_prompts_per_user: 200 in InstructGPT section 3.2.
    on_bad: "stop" or "skip" at a malformed line.
  """

  text: Sequence[str]
  demonstrations: Sequence[str]
  comparisons: Sequence[str]
  prompts: Sequence[str]
  valid_fraction: float
  test_fraction: float
  max_demonstrations: int | None
  max_comparisons: int | None
  max_prompts: int | None
  max_completions: int | None
  prefix_length: int
  max_prompts_per_user: int
  on_bad: str

  def __post_init__(self):
    if not (
      0 < self.valid_fraction
      and 0 < self.test_fraction
      and self.valid_fraction + self.test_fraction < 1
    ):
      raise ValueError(
        f"files.valid_fraction {self.valid_fraction} and test_fraction {self.test_fraction}; use "
        "numbers above 0 that leave something to train on"
      )
    if self.on_bad not in ("stop", "skip"):
      raise ValueError(f"files.on_bad {self.on_bad!r}; use stop or skip")
    for name, least in (
      ("max_demonstrations", 1),
      ("max_comparisons", 1),
      ("max_prompts", 1),
      ("max_completions", 2),
      ("prefix_length", 1),
      ("max_prompts_per_user", 1),
    ):
      if getattr(self, name) is not None and getattr(self, name) < least:
        raise ValueError(f"files.{name} {getattr(self, name)}; use {least} or more")


# ----------------------------------------------------------------------------- data


def write_jsonl(path, lines) -> None:
  """Whole or not at all."""
  workdir_lib.write_text(
    path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
  )


def files_to_data(
  cfg: FilesConfig, directory: pathlib.Path, seed: int, cache_dir: pathlib.Path | None = None
) -> dict[str, int]:
  """Reads, cleans and splits one's own files into the names that TinyWorld writes.

  Prompts are deduplicated by long common prefix, capped per user and split by user; the
  reward model's, PPO's and the test prompts share none (InstructGPT section 3.2 and A.2).

  Returns:
    name -> lines written.
  """

  def read(specs, kind):
    found = []
    for spec in specs:
      found.extend(sources.load(spec, kind, cache_dir=cache_dir, on_bad=cfg.on_bad))
    return found

  def clean(what, records):
    for step in (
      functools.partial(hygiene.deduplicate_by_prefix, prefix_length=cfg.prefix_length),
      functools.partial(hygiene.cap_per_user, limit=cfg.max_prompts_per_user),
    ):
      records, counts = step(records)
      print(records_lib.describe_counts(what, counts), flush=True)
    return records

  def some(records, limit):
    if limit is None:
      return records
    return [records[int(i)] for i in np.random.default_rng(seed).permutation(len(records))[:limit]]

  fractions = dict(
    train=1.0 - cfg.valid_fraction - cfg.test_fraction,
    valid=cfg.valid_fraction,
    test=cfg.test_fraction,
  )
  two = dict(train=1.0 - cfg.valid_fraction, valid=cfg.valid_fraction)
  prompts, comparisons, demonstrations = (
    hygiene.split_by_user(some(clean(f"{kind}s", read(specs, kind)), limit), parts, seed)[0]
    for kind, specs, limit, parts in (
      ("prompt", cfg.prompts, cfg.max_prompts, fractions),
      ("comparison", cfg.comparisons, cfg.max_comparisons, two),
      ("demonstration", cfg.demonstrations, cfg.max_demonstrations, two),
    )
  )
  if cfg.max_completions is not None:
    comparisons = {
      name: [
        fewer_completions(record, cfg.max_completions, seed + number)
        for number, record in enumerate(records)
      ]
      for name, records in comparisons.items()
    }
  texts = read(cfg.text, "text")
  texts = some(texts, len(texts))
  num_valid = max(1, int(len(texts) * cfg.valid_fraction))

  # Test and validation prompts keep what they have; training sets give way.
  held_out = prompts["test"] + prompts["valid"]
  comparisons["valid"], _ = hygiene.remove_overlap(comparisons["valid"], held_out)
  reserved = held_out + comparisons["valid"]
  comparisons["train"], _ = hygiene.remove_overlap(comparisons["train"], reserved)
  prompts["train"], _ = hygiene.remove_overlap(prompts["train"], reserved + comparisons["train"])
  demonstrations["train"], _ = hygiene.remove_overlap(demonstrations["train"], reserved)
  demonstrations["valid"], _ = hygiene.remove_overlap(
    demonstrations["valid"], demonstrations["train"]
  )
  hygiene.check_disjoint(
    reward_model=comparisons["train"] + comparisons["valid"],
    ppo=prompts["train"],
    test=prompts["test"],
    validation=prompts["valid"],
  )
  written = {
    "pretraining_train": texts[num_valid:],
    "pretraining_valid": texts[:num_valid],
    "demonstrations_train": demonstrations["train"],
    "demonstrations_valid": demonstrations["valid"],
    "comparisons_train": comparisons["train"],
    "comparisons_valid": comparisons["valid"],
    "prompts_ppo": prompts["train"],
    "prompts_ppo_valid": prompts["valid"],
    "prompts_test": prompts["test"],
  }
  for name, lines in written.items():
    if not lines:
      raise ValueError(
        f"nothing is left for {name} after cleaning and splitting; give more data "
        "or other fractions"
      )
    write_jsonl(directory / f"{name}.jsonl", lines)
  return {name: len(lines) for name, lines in written.items()}


def fewer_completions(record: Mapping[str, Any], limit: int, seed: int) -> dict[str, Any]:
  """A comparison with at most `limit` of its completions; their ranks stay what they were."""
  kept = np.sort(np.random.default_rng(seed).permutation(len(record["completions"]))[:limit])
  return dict(
    record, **{name: [record[name][int(i)] for i in kept] for name in ("completions", "ranks")}
  )


def prepare_data(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `data`: process 0 writes the files, the others read them."""
  stage = workdir / "data"
  with processes.main_first("data"):
    if not workdir_lib.is_done(stage):
      write_data(config, stage)
  return workdir_lib.done_result(stage)


def write_data(config, stage: pathlib.Path) -> None:
  began = time.perf_counter()
  stage.mkdir(parents=True, exist_ok=True)
  if "world" in config:
    paths = write_lib.write(world_config(config), stage)
    counts = {name: sum(1 for _ in open(path, encoding="utf-8")) for name, path in paths.items()}
  else:
    counts = files_to_data(FilesConfig(**config.files), stage, config.seed)
  print("data: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()), flush=True)
  # Not `mark_done`, in which every process takes part.
  workdir_lib.write_json(
    stage / workdir_lib.DONE, dict(counts=counts, seconds=time.perf_counter() - began)
  )


def world_config(config) -> write_lib.WorldConfig:
  return write_lib.WorldConfig(seed=config.seed, **config.world)


def make_world(config) -> world_lib.World:
  return world_lib.make_world(config.seed)


def make_labelers(config):
  """(training, held-out) labelers of TinyWorld."""
  return labelers_lib.make_labelers(
    labelers_lib.LabelersConfig(seed=config.seed, **config.labelers)
  )


# ----------------------------------------------------------------------------- stages


def stage_config(config, name: str, **fields):
  """A stage's complete config: the pipeline's group, its seed, and what earlier stages made."""
  stage = config[name].copy_and_resolve_references()
  stage.unlock()
  stage.seed = config.seed
  for path, value in fields.items():
    *groups, leaf = path.split("__")
    target = stage
    for group in groups:
      target = target[group]
    target[leaf] = value
  return stage.lock()


def prompt_format(config) -> prepare.PromptFormat:
  """How prompts are put to every model: the pipeline's one format."""
  return prepare.PromptFormat.of(config.format, "config.format")


def format_fields(config, group: str = "") -> dict[str, str]:
  """The format as fields of a config group, or bare."""
  return {
    f"{group}__{name}" if group else name: text
    for name, text in dataclasses.asdict(prompt_format(config)).items()
  }


def load_policy(config, directory) -> Network:
  mesh = sharding.make_mesh(MeshConfig(**config.base.mesh))
  compute = ComputeConfig(**config.base.compute)
  return networks.load(directory, compute, mesh, kind="policy", flag="policy")


def load_reward(config, directory) -> Network:
  mesh = sharding.make_mesh(MeshConfig(**config.base.mesh))
  compute = ComputeConfig(**config.base.compute)
  return networks.load(directory, compute, mesh, kind="reward", flag="reward_model")


def answer_config(config, temperature: float) -> CompletionConfig:
  return CompletionConfig(
    max_prompt_tokens=config.ppo.ppo.max_prompt_tokens,
    max_response_tokens=config.ppo.ppo.max_response_tokens,
    temperature=temperature,
    batch_size=config.evaluation.batch_size,
    **format_fields(config),
  )


def fitting(config, network: Network, records: Sequence[dict]) -> list[dict]:
  """Records whose prompt fits into `max_prompt_tokens`; the others are counted."""
  _, kept, counts = prepare.prompt_rows(
    records,
    network.tokenizer,
    max_prompt_tokens=config.ppo.ppo.max_prompt_tokens,
    prompt_format=prompt_format(config),
    overlong="drop",
  )
  if len(kept) < len(records):
    print(records_lib.describe_counts("prompts", counts), flush=True)
  return kept


def last_epoch(config, workdir: pathlib.Path) -> pathlib.Path:
  return workdir / "sft" / "epochs" / f"{config.sft.sft.num_epochs:02d}"


def collect_comparisons(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `comparisons`: outputs of the last SFT epoch, ranked by simulated labelers.

  One training labeler ranks each prompt (InstructGPT section 3.4: "most comparisons are only
  labeled by 1 contractor"); held-out labelers rank the validation outputs once more.
  """
  stage = workdir / "comparisons"
  if workdir_lib.is_done(stage):
    return workdir_lib.done_result(stage)
  began = time.perf_counter()
  p = ComparisonsConfig(**config.comparisons)
  world, (training, heldout) = make_world(config), make_labelers(config)
  network = load_policy(config, last_epoch(config, workdir))
  sets = (
    ("train", "prompts_reward_model", training, 0),
    ("valid", "prompts_reward_model_valid", training, 1),
  )
  counts: dict[str, Any] = {}
  for name, source, group, stream in sets:
    records = fitting(config, network, read_jsonl(workdir / "data" / f"{source}.jsonl"))
    rng = np.random.default_rng([config.seed, stream])
    num_completions = rng.integers(p.min_completions, p.max_completions + 1, size=len(records))
    with metrics_lib.Progress(f"comparisons {name}", int(num_completions.sum())) as progress:
      drawn = completions.sample(
        network,
        [record["prompt"] for record in records],
        answer_config(config, p.temperature),
        loop.step_key(config.seed, "rollout", stream),
        num_samples=num_completions.tolist(),
        on_batch=lambda done, num: progress.update(done, {}, num_tokens=num),
      )
    who = rng.integers(len(group), size=len(records))
    rankings, again = [], []
    num_empty = 0
    for index, record in enumerate(records):
      texts = [text for text in drawn.texts[index] if text.strip()]
      num_empty += len(drawn.texts[index]) - len(texts)
      if len(texts) < 2:
        continue
      rankings.append(ranked(world, group[who[index]], record, texts))
      if name == "valid":
        again.append(ranked(world, heldout[index % len(heldout)], record, texts))
    write_jsonl(stage / f"{name}.jsonl", rankings)
    if again:
      write_jsonl(stage / "valid_heldout.jsonl", again)
      items = [
        labelers_lib.mark_item(world, line["task"], line["prompt"], line["completions"])
        for line in rankings
      ]
      counts |= {
        f"agreement_{label}": labelers_lib.agreement(people, items, evaluation=False)[0]
        for label, people in (("training", training), ("heldout", heldout))
      }
    counts[name] = dict(
      prompts=len(rankings), completions=int(num_completions.sum()), dropped_empty=num_empty
    )
  result = counts | dict(seconds=time.perf_counter() - began)
  print(f"comparisons: {counts}", flush=True)
  workdir_lib.mark_done(stage, result)
  return result


def ranked(world, labeler, record: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
  """One comparison record."""
  ranks = labelers_lib.rank(
    labeler, world, record["task"], record["prompt"], texts, evaluation=False
  )
  return dict(
    prompt=record["prompt"],
    completions=list(texts),
    ranks=ranks,
    labeler=labeler.id,
    user=record["user"],
    task=record["task"],
  )


def comparison_paths(config, workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  if "world" in config:
    return {name: workdir / "comparisons" / f"{name}.jsonl" for name in ("train", "valid")}
  return {name: workdir / "data" / f"comparisons_{name}.jsonl" for name in ("train", "valid")}


def select_sft(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `selection`: the epoch whose answers to validation prompts score highest.

  Source: InstructGPT appendix C.1: "final SFT model selection based on the RM score on the
  validation set", because validation loss overfits after one epoch while preference goes on rising.
  """
  stage = workdir / "selection"
  if workdir_lib.is_done(stage):
    return workdir_lib.done_result(stage)
  began = time.perf_counter()
  reward = load_reward(config, workdir / "reward_model" / "export")
  records = read_jsonl(workdir / "data" / "prompts_ppo_valid.jsonl")
  load = lambda epoch: load_policy(config, workdir / "sft" / "epochs" / f"{epoch:02d}")
  records = fitting(config, load(1), records)[: config.evaluation.num_selection_prompts]

  def answers_of(epoch: int) -> completions.Completions:
    return completions.sample(
      load(epoch),
      [record["prompt"] for record in records],
      answer_config(config, config.evaluation.temperature),
      loop.step_key(config.seed, "validate", 0),
    )

  choice = selection.choose(
    range(1, config.sft.sft.num_epochs + 1),
    answers_of,
    functools.partial(score_answers, config, reward),
  )
  print(
    f"sft: epoch {choice.best} of {len(choice.scores)} has the highest reward "
    f"{choice.mean(choice.best):.3f}",
    flush=True,
  )
  result = dict(
    epoch=choice.best,
    num_prompts=len(records),
    scores={str(epoch): choice.mean(epoch) for epoch in choice.scores},
    seconds=time.perf_counter() - began,
  )
  workdir_lib.mark_done(stage, result)
  return result


def score_answers(config, reward: Network, drawn: completions.Completions) -> np.ndarray:
  """Reward of each first sample."""
  return reward_model.score_rows(
    reward.cfg,
    reward.params,
    [ids[0] for ids in drawn.ids],
    length=config.ppo.ppo.max_prompt_tokens + config.ppo.ppo.max_response_tokens,
    batch_size=config.evaluation.batch_size,
  )


def selected_sft(workdir: pathlib.Path) -> pathlib.Path:
  epoch = workdir_lib.done_result(workdir / "selection")["epoch"]
  return workdir / "sft" / "epochs" / f"{epoch:02d}"


def policy_paths(config, workdir: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name of every compared model -> its export."""
  return dict(
    base=workdir / "base" / "export",
    base_more_pretraining=workdir / "base_more_pretraining" / "export",
    init=workdir / "init" / "export",
    sft=selected_sft(workdir),
    sft_last=last_epoch(config, workdir),
    ppo=workdir / "ppo" / "export",
    ppo_live=workdir / "ppo" / "export_live",
    ppo_ptx=workdir / "ppo_ptx" / "export",
    ppo_ptx_live=workdir / "ppo_ptx" / "export_live",
  )


# ----------------------------------------------------------------------------- evaluation


def evaluate(config, workdir: pathlib.Path) -> dict[str, Any]:
  """The stage `evaluation`: answers to test prompts, judgements, likelihoods, few-shot tasks."""
  stage = workdir / "evaluation"
  if workdir_lib.is_done(stage):
    return workdir_lib.done_result(stage)
  began = time.perf_counter()
  p = EvaluationConfig(**config.evaluation)
  paths = policy_paths(config, workdir)
  records = None
  reward = load_reward(config, workdir / "reward_model" / "export")
  texts, scores = {}, {}
  with metrics_lib.Progress("evaluation answers", len(COMPARED)) as progress:
    for number, name in enumerate(COMPARED, 1):
      network = load_policy(config, paths[name])
      if records is None:
        records = fitting(config, network, read_jsonl(workdir / "data" / "prompts_test.jsonl"))
      drawn = completions.sample(
        network,
        [record["prompt"] for record in records],
        answer_config(config, p.base_temperature if name == "base" else p.temperature),
        loop.step_key(config.seed, "validate", 1),
      )
      texts[name] = [samples[0] for samples in drawn.texts]
      scores[name] = score_answers(config, reward, drawn)
      progress.update(number, {}, num_tokens=0)
  write_jsonl(
    stage / "answers.jsonl",
    (
      dict(
        prompt=record["prompt"],
        answers={name: texts[name][i] for name in COMPARED},
        **{key: record[key] for key in ("task", "use_case") if key in record},
      )
      for i, record in enumerate(records)
    ),
  )
  settings = dict(num_resamples=p.num_resamples, seed=config.seed)
  result = dict(num_prompts=len(records)) | compare_rewards(scores, settings)
  result |= likelihoods(config, workdir, paths, settings)
  if "world" in config:
    result |= judge(config, p, records, texts, stage)
  result["seconds"] = time.perf_counter() - began
  workdir_lib.mark_done(stage, result)
  return result


def compare_rewards(scores: Mapping[str, np.ndarray], settings) -> dict[str, Any]:
  """Mean reward-model score of each policy's answers, and what it has more than SFT's to the same
  prompts, with intervals over prompts."""
  column = {name: np.asarray(score_N)[:, None] for name, score_N in scores.items()}
  return dict(
    reward={
      name: statistics.bootstrap_mean(score_N1, **settings).as_dict()
      for name, score_N1 in column.items()
    },
    reward_less_sft={
      name: statistics.paired_difference(score_N1, column["sft"], **settings).as_dict()
      for name, score_N1 in column.items()
      if name != "sft"
    },
  )


def likelihoods(config, workdir: pathlib.Path, paths, settings) -> dict[str, Any]:
  """Held-out pretraining loss, its rise with PPO, and few-shot accuracy where there are tasks.

  The rise is against PPO's start on the same rows of text, with intervals over rows.
  """
  text = sft.TextData(**config.base.text, train="", valid="")
  tasks = {}
  for path in sorted((workdir / "data").glob("few_shot_*.jsonl")):
    tasks[path.stem.removeprefix("few_shot_")] = read_jsonl(path)
  nll: dict[str, float] = {}
  by_row: dict[str, np.ndarray] = {}
  accuracy: dict[str, dict[str, float]] = {name: {} for name in tasks}
  rows = None
  for name in LIKELIHOOD_MODELS:
    network = load_policy(config, paths[name])
    if rows is None:
      pack = functools.partial(
        prepare.text_rows,
        tokenizer=network.tokenizer,
        length=config.base.length,
        packing=text.packing,
        attend_across_documents=text.attend_across_documents,
        reset_positions=text.reset_positions,
      )
      rows, _ = pack(read_jsonl(workdir / "data" / "pretraining_valid.jsonl"))
      train_rows, _ = pack(
        read_jsonl(workdir / "data" / "pretraining_train.jsonl"), max_tokens=text.max_tokens
      )
      nll["bigram"] = bigram.bigram_nll(train_rows, rows, vocab_size=network.cfg.vocab_size)
    by_row[name] = likelihood.loss_by_row(
      network.cfg,
      network.params,
      rows,
      batch_size=config.base.sft.batch_size,
      use_segments=not text.attend_across_documents,
    )
    total, num_targets = by_row[name].sum(axis=0)
    nll[name] = float(total / num_targets)
    for task, items in tasks.items():
      accuracy[task][name] = float(
        np.mean(
          likelihood.few_shot_correct(
            network,
            items,
            delimiter=FEW_SHOT_DELIMITER,
            batch_size=config.evaluation.batch_size,
          )
        )
      )
  for task, items in tasks.items():
    accuracy[task]["chance"] = float(np.mean([1 / len(item["choices"]) for item in items]))
  return dict(
    pretraining_nll=nll,
    few_shot_tasks=accuracy if tasks else None,
    pretraining_nll_rise={
      name: loss_rise(by_row["init"], by_row[name], settings) for name in ("ppo", "ppo_ptx")
    },
  )


def loss_rise(before_N2: np.ndarray, after_N2: np.ndarray, settings) -> dict[str, Any]:
  """Mean loss after less before, on the same rows of `likelihood.loss_by_row`, with its interval."""
  return statistics.bootstrap_statistic(
    np.concatenate([after_N2, before_N2], axis=1),
    lambda sums: sums[..., 0] / sums[..., 1] - sums[..., 2] / sums[..., 3],
    **settings,
  ).as_dict()


def judge(config, p: EvaluationConfig, records, texts, stage: pathlib.Path) -> dict[str, Any]:
  """Every labeler compares every policy's answer with SFT's, under the evaluation's weights."""
  world, (training, heldout) = make_world(config), make_labelers(config)
  rows = judges.simulated_labelers(world, training, heldout)(records, texts, "sft")
  write_jsonl(
    stage / "preferences.jsonl",
    ({name: value for name, value in row.items() if name != "metadata"} for row in rows),
  )
  marks = {
    name: [
      gold.components(world, record["task"], record["prompt"], text)
      for record, text in zip(records, texts[name], strict=True)
    ]
    for name in COMPARED
  }
  write_jsonl(
    stage / "gold.jsonl",
    ({name: gold.gold_score(marks[name][i]) for name in COMPARED} for i in range(len(records))),
  )
  gold_scores = {
    name: {
      label: float(np.mean([gold.gold_score(mark, weights) for mark in marks[name]]))
      for label, weights in (
        ("training_weights", gold.GOLD_WEIGHTS),
        ("evaluation_weights", gold.EVALUATION_WEIGHTS),
      )
    }
    for name in COMPARED
  }
  # Labels say what an answer is, not who reads it: one labeler's are everyone's.
  of_one = [row for row in rows if row["labeler"] == training[0].id]
  settings = dict(num_resamples=p.num_resamples, seed=config.seed)
  return dict(
    gold_score=gold_scores,
    metadata={
      name: {
        label: interval.as_dict()
        for label, interval in win_rates.metadata_rates(
          win_rates.metadata_by_prompt(of_one, policy=name, group="training"), **settings
        ).items()
      }
      for name in COMPARED
    },
  )


# ----------------------------------------------------------------------------- report


def reward_accuracy(config, workdir: pathlib.Path, settings) -> tuple[dict[str, Any], dict]:
  """Accuracy on validation comparisons, by training and held-out labelers, and calibration."""
  saved = workdir_lib.read_json(workdir / "reward_model" / "validation_scores.json")
  scores, ranks, valid = (np.asarray(saved[name]) for name in ("scores", "ranks", "valid"))
  interval = calibration.accuracy(scores, ranks, valid, **settings)
  heldout = None
  path = workdir / "comparisons" / "valid_heldout.jsonl"
  reward = load_reward(config, workdir / "reward_model" / "export")
  choices = dict(
    length=config.reward_model.length,
    overlong=config.reward_model.comparisons.overlong,
    prompt_format=prompt_format(config),
  )
  shown, _ = prepare.comparison_rows(  # of the same completions as the scores
    read_jsonl(comparison_paths(config, workdir)["valid"]), reward.tokenizer, **choices
  )
  lengths = calibration.accuracy(*calibration.length_arrays(shown.records), **settings).mean
  if path.exists():
    rows, _ = prepare.comparison_rows(read_jsonl(path), reward.tokenizer, **choices)
    heldout = calibration.accuracy(
      *reward_model.score_comparisons(
        reward.cfg, reward.params, rows, batch_size=config.reward_model.reward.batch_size
      ),
      **settings,
    ).mean
  return (
    dict(
      accuracy=interval.mean,
      accuracy_heldout_labelers=heldout,
      n=calibration.num_untied_pairs(ranks, valid),
      accuracy_interval=interval.as_dict(),
      length_baseline_accuracy=lengths,
    ),
    calibration.calibration_curve(scores, ranks, valid),
  )


def judged_win_rates(stage: pathlib.Path, settings) -> tuple[Any, Any, Any]:
  """(win rates, Likert ratings, paired difference of PPO-ptx and PPO) from the judgements."""
  lines = win_rates.read_preferences(stage / "preferences.jsonl")
  values = functools.partial(win_rates.values_by_prompt, lines)
  groups = (("training_labelers", "training"), ("heldout_labelers", "heldout"))
  names = [name for name in COMPARED if name != "sft"]
  wins = {
    name: {
      label: win_rates.win_rate(values(policy=name, group=group, field="win"), **settings).as_dict()
      for label, group in groups
    }
    for name in names
  }
  likert = {
    name: {
      label: win_rates.likert_mean(
        values(policy=name, group=group, field="likert"), **settings
      ).as_dict()
      for label, group in groups
    }
    for name in ("base", "sft", "ppo", "ppo_ptx")
  }
  difference = {
    label: statistics.paired_difference(
      values(policy="ppo_ptx", group=group, field="win"),
      values(policy="ppo", group=group, field="win"),
      **settings,
    ).as_dict()
    for label, group in groups
  }
  return wins, likert, difference


def reward_curve(config, workdir: pathlib.Path, name: str) -> list[dict[str, Any]]:
  """Reward with its interval, KL and gold score on held-out prompts, along a PPO run."""
  settings = dict(num_resamples=config.evaluation.num_resamples, seed=config.seed)
  tasks = {}
  if "world" in config:
    world = make_world(config)
    tasks = {
      record["prompt"]: record["task"]
      for record in read_jsonl(workdir / "data" / "prompts_ppo_valid.jsonl")
    }
  points = []
  for path in sorted((workdir / name / "validation").glob("step_*.jsonl")):
    lines = read_jsonl(path)
    score = None
    if tasks:
      score = float(
        np.mean(
          [
            gold.gold_score(
              gold.components(world, tasks[line["prompt"]], line["prompt"], line["response"])
            )
            for line in lines
          ]
        )
      )
    reward = statistics.bootstrap_mean([[line["reward"]] for line in lines], **settings)
    points.append(
      dict(
        step=int(path.stem.removeprefix("step_")),
        gold=score,
        reward=reward.mean,
        reward_low=reward.low,
        reward_high=reward.high,
        kl=float(np.mean([line["kl"] for line in lines])),
      )
    )
  return points


def loss_curve(stage: pathlib.Path) -> list[tuple[int, float | None, float | None]]:
  """(step, training loss, validation loss) of an LM stage; nothing of a base that was imported."""
  if not (stage / metrics_lib.FILE).is_file():
    return []
  lines = metrics_lib.read(stage / metrics_lib.FILE)
  pick = lambda line, name: line[name] if name in line else None
  return [(line["step"], pick(line, "train/loss"), pick(line, "validation/loss")) for line in lines]


def write_report(config, workdir: pathlib.Path) -> pathlib.Path:
  """`report/report.json` and `report/report.html` from what the stages left."""
  p = EvaluationConfig(**config.evaluation)
  settings = dict(num_resamples=p.num_resamples, seed=config.seed)
  stage = workdir / "evaluation"
  evaluated = workdir_lib.done_result(stage)
  has_world = "world" in config
  wins = likert = difference = None
  if has_world:
    wins, likert, difference = judged_win_rates(stage, settings)
  reward, curve = reward_accuracy(config, workdir, settings)
  results = {name: workdir_lib.done_result(workdir / name) for name in stages_lib.names(config)}
  seconds = {name: result["seconds"] for name, result in results.items()}
  compared = results["comparisons"] if has_world else None
  report = dict(
    win_rate_vs_sft=wins,
    reward_model=reward,
    labelers=None
    if compared is None
    else dict(
      agreement_training=compared["agreement_training"],
      agreement_heldout=compared["agreement_heldout"],
    ),
    pretraining_nll=evaluated["pretraining_nll"],
    few_shot_tasks=evaluated["few_shot_tasks"],
    gold_score=evaluated["gold_score"] if has_world else None,
    first_minibatch_ratio_max_error=max(
      results[name]["first_minibatch_ratio_max_error"] for name in ("ppo", "ppo_ptx")
    ),
    wall_seconds=seconds | {"total": sum(seconds.values())},
    seed=config.seed,
    likert=likert,
    metadata=evaluated["metadata"] if has_world else None,
    reward=evaluated["reward"],
    reward_less_sft=evaluated["reward_less_sft"],
    pretraining_nll_rise=evaluated["pretraining_nll_rise"],
    paired_difference_ppo_ptx_minus_ppo=difference,
    num_test_prompts=evaluated["num_prompts"],
  )
  answers = read_jsonl(stage / "answers.jsonl")[:SHOWN_SAMPLES]
  golds = read_jsonl(stage / "gold.jsonl") if has_world else [None] * len(answers)
  selection = results["selection"]
  sft_losses = {
    line["step"]: line["validation/loss"]
    for line in metrics_lib.read(workdir / "sft" / metrics_lib.FILE)
    if "validation/loss" in line
  }
  epochs = [
    dict(
      epoch=int(epoch),
      score=score,
      valid_nll=epoch_loss(sft_losses, int(epoch), len(selection["scores"])),
    )
    for epoch, score in selection["scores"].items()
  ]
  contents = dict(
    title=config.title,
    report=report,
    config_summary=summary(config),
    prompt_format=f"{prompt_format(config).describe()}, for every model alike",
    temperatures={
      "base": p.base_temperature,
      "sft, ppo, ppo_ptx": p.temperature,
      "rollouts": config.ppo.ppo.temperature,
    },
    paired_difference=difference,
    curves=dict(
      base=loss_curve(workdir / "base"),
      base_more_pretraining=loss_curve(workdir / "base_more_pretraining"),
      sft=epochs,
      reward={name: reward_curve(config, workdir, name) for name in ("ppo", "ppo_ptx")},
    ),
    calibration=curve,
    samples=[
      dict(
        prompt=line["prompt"],
        answers={name: line["answers"][name] for name in POLICIES},
        gold=None if scores is None else {name: scores[name] for name in POLICIES},
      )
      for line, scores in zip(answers, golds)
    ],
    notes=notes(config, selection["epoch"], selection["num_prompts"]),
  )
  if processes.is_main():
    report_lib.write_report(workdir / "report", contents)
  return workdir / "report" / "report.html"


def notes(config, epoch: int, num_prompts: int) -> list[str]:
  """What a reader must know of how the compared models came about."""
  return [
    f"SFT is epoch {epoch} of {config.sft.sft.num_epochs}, the one whose answers to "
    f"{num_prompts} validation prompts the reward model scored highest; the last epoch is shown "
    "beside it.",
    f"PPO and PPO-ptx are the exponential moving averages of their weights (decay "
    f"{config.ppo.ppo.ema_decay} per optimizer step); the live weights are shown beside them.",
  ]


def epoch_loss(losses: Mapping[int, float], epoch: int, num_epochs: int) -> float | None:
  """Validation loss at the end of an epoch, from the evaluation nearest to it."""
  last = max(losses)
  target = last * epoch / num_epochs
  nearest = min(losses, key=lambda step: abs(step - target))
  return losses[nearest] if abs(nearest - target) <= last / num_epochs / 2 else None


def summary(config) -> dict[str, Any]:
  """The few settings that a reader of the report wants first."""
  p = config.ppo.ppo
  if "source" in config.base:
    found = networks.find_export(config.base.source, kind="policy", flag="config.base.source")
    shape = networks.ModelConfig(**found.model)
  else:
    shape = networks.configured(config.base)
  return {
    "non-embedding parameters": f"{shape.num_block_params:,}",
    **({"base model": config.base.source} if "source" in config.base else {}),
    **({"adapters": f"rank {config.ppo.lora.rank}"} if config.ppo.lora.rank else {}),
    "PPO batch / minibatch / iterations": f"{p.batch_size} / {p.minibatch_size} / "
    f"{p.num_iterations}",
    "KL coefficient": p.kl_coef,
    "ptx coefficient": p.ptx_coef,
    "pretraining examples per episode": p.ptx_ratio,
    "EMA decay": p.ema_decay,
    "policy learning rate": config.ppo.policy_optim.learning_rate,
    "seed": config.seed,
  }


# ----------------------------------------------------------------------------- checks


def check_config(config) -> None:
  """What the config alone can show to be wrong in any stage, before the first one runs.

  Raises:
    ValueError: a number or a name is wrong; one sentence says which and what would be right.
  """
  if "source" in config.base and not config.base.source:
    raise ValueError(
      "config.base.source is empty; name the published model with "
      "--config.base.source=hf:DIR, gguf:FILE or an export directory"
    )
  specs = lambda group, *names: {f"{group}__{name}": "" for name in names}
  formats = functools.partial(format_fields, config)
  text = specs("text", "train", "valid")
  demos = specs("demonstrations", "train", "valid") | formats("demonstrations")
  stages = (
    ("base", sft, text),
    ("sft", sft, demos),
    ("init", sft, text | demos),
    (
      "reward_model",
      reward_model,
      specs("comparisons", "train", "valid", "demonstrations") | formats("comparisons"),
    ),
    (
      "ppo",
      ppo,
      specs("prompts", "train", "valid")
      | specs("pretraining", "train")
      | formats("prompts")
      | dict(reference_from=""),
    ),
    ("base_more_pretraining", sft, text | dict(sft__max_steps=extra_steps(config))),
  )
  for name, algorithm, fields in stages:
    try:
      if name == "base" and "source" in config.base:
        continue  # nothing is trained
      if "source" in config.base:  # whose shape every stage has
        fields |= {"policy_from" if name == "ppo" else "init_from": config.base.source}
      elif algorithm is sft and name != "base":
        fields |= {"init_from": "base"}
      algorithm.check_config(stage_config(config, name, **fields))
    except ValueError as error:
      raise ValueError(f"config.{name}: {error}") from None
  for field, choices in (("reward_init", REWARD_INITS), ("kl_reference", KL_REFERENCES)):
    if config[field] not in choices:
      raise ValueError(f"config.{field} {config[field]!r}; choose from {', '.join(choices)}")
  for name, size in config.reward_model.model.items():
    if config.reward_init == "sft" and (
      name not in config.sft.model or size != config.sft.model[name]
    ):
      raise ValueError(
        f"config.reward_model.model.{name} {size} is not the {config.sft.model.get(name)} of the "
        "SFT model that it starts from; make them equal, or set --config.reward_init=base"
      )
  if not config.sft.sft.keep_epochs or config.sft.sft.max_steps is not None:
    raise ValueError(
      "config.sft: the baseline is chosen among whole epochs; leave "
      "sft.keep_epochs True and sft.max_steps None"
    )
  prompt_format(config).check(base_tokenizer(config))
  EvaluationConfig(**config.evaluation)
  if "world" in config:
    world_config(config)
    for name, people in zip(("num_training", "num_heldout"), make_labelers(config)):
      if len(people) < 2:
        raise ValueError(
          f"labelers.{name} {len(people)}; use 2 or more, so that agreement between "
          "labelers can be told"
        )
    ComparisonsConfig(**config.comparisons)
  else:
    FilesConfig(**config.files)


def base_tokenizer(config) -> Tokenizer:
  """The tokenizer of a published base model, or one of the kind that the base stage will make."""
  if "source" in config.base:
    return networks.tokenizer_of(
      networks.find_export(config.base.source, kind="policy", flag="config.base.source")
    )
  return Tokenizer.from_spec(config.base.tokenizer, ["any text"])


def check_inputs(config) -> None:
  """Reads one's own files line by line and keeps nothing.

  Raises:
    ValueError: as the stage `data` would raise.
  """
  if "files" not in config:
    return
  for field, kind in (
    ("text", "text"),
    ("demonstrations", "demonstration"),
    ("comparisons", "comparison"),
    ("prompts", "prompt"),
  ):
    for spec in config.files[field]:
      sources.check(spec, kind, field=f"config.files.{field}", on_bad=config.files.on_bad)


# ----------------------------------------------------------------------------- the run


def jsonl(workdir: pathlib.Path, name: str) -> str:
  return f"jsonl:{workdir / 'data' / name}.jsonl"


def text_fields(workdir: pathlib.Path) -> dict[str, str]:
  return dict(
    text__train=jsonl(workdir, "pretraining_train"), text__valid=jsonl(workdir, "pretraining_valid")
  )


def demonstration_fields(config, workdir: pathlib.Path) -> dict[str, str]:
  return dict(
    demonstrations__train=jsonl(workdir, "demonstrations_train"),
    demonstrations__valid=jsonl(workdir, "demonstrations_valid"),
    **format_fields(config, "demonstrations"),
  )


def pretrain(config, workdir: pathlib.Path, cache_dir: pathlib.Path, *, stage: str) -> None:
  if "source" in config.base:
    import_base(config, workdir / stage)
    return
  sft.train(
    stage_config(config, "base", init_from="", **text_fields(workdir)),
    workdir / stage,
    cache_dir=cache_dir,
  )


def import_base(config, stage: pathlib.Path) -> None:
  """The base model that others have trained, as an export: read once, for all stages."""
  if workdir_lib.is_done(stage):
    return
  began = time.perf_counter()
  network = load_policy(config, config.base.source)
  checkpoint.export_params(
    stage / "export",
    network.params,
    model=network.cfg.shape(),
    kind="policy",
    tokenizer=network.tokenizer,
    config=workdir_lib.config_to_dict(config),
    step=0,
    metadata=network.metadata,
  )
  print(
    f"base: {network.cfg.num_block_params:,} parameters outside the embeddings, from "
    f"{config.base.source}",
    flush=True,
  )
  workdir_lib.mark_done(stage, dict(seconds=time.perf_counter() - began))


def finetune(config, workdir: pathlib.Path, cache_dir: pathlib.Path, *, stage: str) -> None:
  """`sft`, on demonstrations, or `init`, PPO's start, on pretraining text as well."""
  sft.train(
    stage_config(
      config,
      stage,
      init_from=str(workdir / "base" / "export"),
      tokenizer="",
      **demonstration_fields(config, workdir),
      **(text_fields(workdir) if stage == "init" else {}),
    ),
    workdir / stage,
    cache_dir=cache_dir,
  )


def train_reward_model(config, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  start = stages_lib.reward_start(config)
  init_from = last_epoch(config, workdir) if start == "sft" else workdir / start / "export"
  paths = comparison_paths(config, workdir)
  reward_model.train(
    stage_config(
      config,
      "reward_model",
      init_from=str(init_from),
      comparisons__train=f"jsonl:{paths['train']}",
      comparisons__valid=f"jsonl:{paths['valid']}",
      comparisons__demonstrations=jsonl(workdir, "demonstrations_train"),
      **format_fields(config, "comparisons"),
    ),
    workdir / "reward_model",
    cache_dir=cache_dir,
  )


def train_ppo(config, workdir: pathlib.Path, cache_dir: pathlib.Path, *, stage: str) -> None:
  """`ppo`, whose view of the config has no pretraining gradients, or `ppo_ptx`."""
  reference = str(workdir / "base" / "export") if config.kl_reference == "base" else ""
  ppo.train(
    stage_config(
      config,
      "ppo",
      policy_from=str(workdir / "init" / "export"),
      reward_from=str(workdir / "reward_model" / "export"),
      reference_from=reference,
      prompts__train=jsonl(workdir, "prompts_ppo"),
      prompts__valid=jsonl(workdir, "prompts_ppo_valid"),
      pretraining__train=jsonl(workdir, "pretraining_train"),
      **format_fields(config, "prompts"),
    ),
    workdir / stage,
    cache_dir=cache_dir,
  )


def pretrain_more(config, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  # Another seed than the base's: not the order of its first epoch once more.
  sft.train(
    stage_config(
      config,
      "base_more_pretraining",
      seed=config.seed + 1,
      init_from=str(workdir / "base" / "export"),
      tokenizer="",
      **text_fields(workdir),
      sft__max_steps=extra_steps(config),
    ),
    workdir / "base_more_pretraining",
    cache_dir=cache_dir,
  )


# Stage -> (what it is, function of config, workdir and directory of array_record files).
STAGES = {
  "data": ("data", lambda config, workdir, _: prepare_data(config, workdir)),
  "base": (
    "base: pretraining from scratch, or a published model",
    functools.partial(pretrain, stage="base"),
  ),
  "sft": ("step 1: supervised fine-tuning, the baseline", functools.partial(finetune, stage="sft")),
  "init": ("step 1: PPO's initialisation", functools.partial(finetune, stage="init")),
  "comparisons": (
    "step 2: comparisons",
    lambda config, workdir, _: collect_comparisons(config, workdir),
  ),
  "reward_base": (
    "step 2: pretraining of the reward model's own base",
    functools.partial(pretrain, stage="reward_base"),
  ),
  "reward_model": ("step 2: reward model", train_reward_model),
  "selection": (
    "step 2: the SFT epoch of highest reward",
    lambda config, workdir, _: select_sft(config, workdir),
  ),
  "ppo": ("step 3: PPO", functools.partial(train_ppo, stage="ppo")),
  "ppo_ptx": ("step 3: PPO-ptx", functools.partial(train_ppo, stage="ppo_ptx")),
  "base_more_pretraining": (
    "the base model on as many more tokens of pretraining text",
    pretrain_more,
  ),
  "evaluation": ("evaluation", lambda config, workdir, _: evaluate(config, workdir)),
}


def run(
  config, workdir, *, last_stage: str = "evaluation", shared=None, cache_dir=None
) -> pathlib.Path | None:
  """Runs what is not done yet; returns the path of the report page.

  Args:
    config: `configs/pipeline.py` documents it.
    workdir: of the whole run, already claimed by `workdir.prepare`.
    last_stage: one of `stages.names(config)`, after which the run ends; the report needs them all.
    shared: a directory in which stages of equal fingerprint are run once for all pipelines that
      name it; the workdir then links to them.  One process per pipeline: it waits for a stage that
      another pipeline is running.
    cache_dir: of tokenised data; see `cache.directory`.

  Returns:
    the page, or None where the run ended at an earlier stage.

  Raises:
    ValueError: `last_stage` is no stage of this config.
  """
  workdir = pathlib.Path(workdir).absolute()
  shared = None if shared is None else pathlib.Path(shared).absolute()
  cache_dir = cache.directory(cache_dir, workdir if shared is None else shared)
  stages_lib.check_name(config, last_stage)
  names = stages_lib.names(config)
  for name in names[: names.index(last_stage) + 1]:
    title, function = STAGES[name]
    if not workdir_lib.is_done(workdir / name):
      print(f"\n== {title}", flush=True)
    with contextlib.ExitStack() as stack:
      if shared is not None and name != "evaluation":
        stack.enter_context(shared_stage(config, name, workdir, shared))
      # Only what the stage is known to read: so equal fingerprints mean equal stages.
      function(stages_lib.view(config, name), workdir, cache_dir)
  if last_stage != "evaluation":
    return None
  page = write_report(config, workdir)
  print(f"report: {page}", flush=True)
  return page


@contextlib.contextmanager
def shared_stage(config, name: str, workdir: pathlib.Path, shared: pathlib.Path):
  """Makes WORKDIR/NAME a link to the stage's directory under `shared`, and keeps others out of it.

  The lock is the operating system's: it ends with the process that holds it, whatever ends that.
  A stage that the workdir already holds itself stays where it is.
  """
  directory = shared / stages_lib.fingerprints(config)[name]
  directory.mkdir(parents=True, exist_ok=True)
  link = workdir / name
  if not link.exists():
    link.unlink(missing_ok=True)  # a link whose target was deleted
    link.symlink_to(os.path.relpath(directory, workdir))
  with workdir_lib.alone(shared / f"{directory.name}.lock", name):
    yield


def extra_steps(config) -> int:
  """Steps in which the base model reads as many tokens of text as PPO-ptx does, padding included,
  rounded up."""
  p = config.ppo.ppo
  updates = p.num_iterations * p.num_epochs * (p.batch_size // p.minibatch_size)
  tokens = updates * p.minibatch_size * p.ptx_ratio * p.ptx_length
  more = config.base_more_pretraining
  return -(-tokens // (more.sft.batch_size * more.length))
