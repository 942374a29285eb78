"""Public NLP tasks: the paper's (InstructGPT appendix D), and any of lm-eval's own by name.

lm-eval runs both; the task files of the paper's settings are those of `tasks/`.  From it come the
prompts, the few-shot examples and the scores of single items; intervals are ours, from resampling
items.  A number of lm-eval's own that is no mean (TER, chrF, a perplexity) is computed anew for
every resample, some for seconds each: MOST_RESAMPLES of them are drawn at most, as in lm-eval of
BLEU, chrF and TER, and the ends of such an interval are rough.  A prompt that does not fit into a
model's context loses its beginning, as in lm-eval: first the instruction, then the first examples.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir
from rlhf.evals import measures, statistics
from rlhf.evals.suites import suite_checks, text_metrics
from rlhf.evals.suites.tasks import data as data_lib
from rlhf.networks import Network

TASK_DIR = pathlib.Path(__file__).parent / "tasks"
PREFIX = "instructgpt_"  # of the paper's tasks in lm-eval, which has others of the same names
LM_EVAL = "lm_eval:"  # of lm-eval's own tasks, in a config
PAPER_TASKS = (
  "squadv2",
  "drop",
  "quac",
  "hellaswag",
  "rte",
  "sst",
  "wsc",
  "fr_en",
  "cnn_dm",
  "tldr",
)
MOST_RESAMPLES = 100
_OF_A_HUNDRED = ("f1", "exact")
_ABILITY = ("acc", "acc_norm", "exact_match", *_OF_A_HUNDRED, "rouge_l")
_FIELD = "config.nlp"
Progress = Callable[[int, int], None] | None  # called with (requests done, requests in all)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlpConfig:
  """Which tasks, and how they are asked.

  Attributes:
    tasks: names of `own_tasks()`, such as "squadv2" or "truthfulqa_qa"; or "lm_eval:NAME" for a
      task, group or tag that comes with lm-eval, whose data are always those of the hub.
    data: "hub", or a directory; see `tasks.data`.
    limit: so many items of each task, drawn by the seed, the same for all checkpoints; None: all.
    num_fewshot: examples in each prompt; None: as many as in the paper, or as lm-eval's task says.
      A task whose file says 0 keeps it.  The summaries' files (cnn_dm, tldr) say nothing, as the
      paper does: None is 0 there.
    chat: put prompts into the model's chat template, examples as turns of their own.
  """

  tasks: tuple[str, ...]
  data: str
  limit: int | None
  num_fewshot: int | None
  chat: bool

  def __post_init__(self):
    object.__setattr__(self, "tasks", tuple(self.tasks))
    known = own_tasks()
    own = [name for name in self.tasks if not name.startswith(LM_EVAL)]
    suite_checks.check_variants(own if own else known[:1], known, f"{_FIELD}.tasks")
    if not self.tasks or len(set(self.tasks)) < len(self.tasks):
      raise ValueError(f"{_FIELD}.tasks is {list(self.tasks)}; name one or more, each once")
    suite_checks.check_at_least(self.limit, 1, f"{_FIELD}.limit")
    suite_checks.check_at_least(self.num_fewshot, 0, f"{_FIELD}.num_fewshot")


def own_tasks() -> tuple[str, ...]:
  """Names of the files of `tasks/`: the paper's ten, and variants of the other suites' tasks."""
  found = sorted(path.stem.removeprefix(PREFIX) for path in TASK_DIR.glob(f"{PREFIX}*.yaml"))
  return (*PAPER_TASKS, *(name for name in found if name not in PAPER_TASKS))


def task_names(p: NlpConfig) -> tuple[str, ...]:
  """One unit of work for each task of the config."""
  return p.tasks


def data_files(p: NlpConfig, task: str) -> list[tuple[str, int]]:
  """What a unit is read from, see `tasks.data.files`; lm-eval's own tasks come from the hub."""
  return [] if task.startswith(LM_EVAL) else data_lib.files(_data_of(task), p.data)


def check(p: NlpConfig) -> None:
  """What can be found wrong before a network is loaded.

  Raises:
    ValueError: lm-eval is not installed, it has no such task, or a task's data are not there.
  """
  if importlib.util.find_spec("lm_eval") is None:
    raise ValueError("the suite nlp needs the package lm-eval; pip install 'rlhf[evals]'")
  for task in p.tasks:
    if not task.startswith(LM_EVAL):
      suite_checks.check_data(_data_of(task), p.data, f"{_FIELD}.data")
  named = [task.removeprefix(LM_EVAL) for task in p.tasks if task.startswith(LM_EVAL)]
  if named:
    known = set(_their_tasks().all_tasks)
    for name in named:
      if name not in known:
        raise ValueError(
          f"{_FIELD}.tasks names {LM_EVAL}{name}, which lm-eval does not have; "
          "`lm_eval ls tasks` lists what it has"
        )


@functools.cache
def item_metric(p: NlpConfig, task: str, seed: int) -> tuple[str, float]:
  """The first metric of a task, if its mean over items says how able a model is, and what it is for
  a perfect item: 1, or 100 for the F1 and the exact matches of ours (see `measures.Measure`).

  Args:
    seed: as `evaluate` takes it; it draws the items.

  Raises:
    ValueError: the task cannot be loaded or is a group of tasks, or its metric is no mean of one
      number for each item, or none that is known to say that.
  """
  from lm_eval.api import metrics as lm_eval_metrics

  loaded, told = _load(p, task, seed)["tasks"], f"{_FIELD}.tasks names {task}"
  if len(loaded) != 1:
    raise ValueError(f"{told}, a group of {len(loaded)} tasks; name them one by one")
  (lm_task,) = loaded.values()
  ways = len(lm_task._filters)
  if ways > 1:
    raise ValueError(f"{told}, which reads each answer in {ways} ways; name a task with one")
  metric, aggregate = next(iter(lm_task.aggregation().items()))
  if metric not in _ABILITY or aggregate is not lm_eval_metrics.mean:
    raise ValueError(
      f"{told}, whose metric is {metric}; name a task that has a mean of one of "
      f"{', '.join(_ABILITY)}"
    )
  return metric, 100.0 if metric in _OF_A_HUNDRED and not task.startswith(LM_EVAL) else 1.0


def notes(p: NlpConfig) -> list[str]:
  """What a reader of the numbers must know."""
  found = [
    "A prompt that is longer than a model's context loses its beginning: the instruction "
    "first, then examples."
  ]
  released = [
    task
    for task in p.tasks
    if not task.startswith(LM_EVAL) and data_lib.is_released(_data_of(task), p.data)
  ]
  if released:
    found.append(
      f"Of {', '.join(released)} there are the 100 prompts that InstructGPT's authors "
      "released; examples are others of the hundred."
    )
  return found


def _data_of(task: str) -> str:
  """The task of `tasks.data` that a task of `own_tasks` asks."""
  return next(name for name in data_lib.FILES if task == name or task.startswith(f"{name}_"))


def evaluate(
  p: NlpConfig,
  task: str,
  network: Network,
  directory: str | os.PathLike,
  *,
  num_resamples: int,
  seed: int,
  batch_size: int,
  progress: Progress = None,
) -> list[measures.Measure]:
  """One checkpoint on one task.

  Args:
    task: of `task_names`.
    directory: gets `items.jsonl`: each item's prompt, what the model wrote or how likely it found
      the choices, and its scores.
    num_resamples, seed: of the bootstrap over items; the seed also draws items and examples.
    batch_size: rows at once; results do not depend on it.
    progress: called while the model works.

  Raises:
    ValueError: the task's data cannot be read, or it asks for what the model cannot do.
  """
  from lm_eval import evaluator

  from rlhf.evals.suites import harness

  loaded = _load(p, task, seed)
  found = evaluator.evaluate(
    lm=harness.HarnessModel(
      network, batch_size=batch_size, seed=seed, chat=p.chat, progress=progress
    ),
    task_dict=loaded,
    samples=_drawn(p, task, loaded["tasks"], seed),
    bootstrap_iters=0,
    apply_chat_template=p.chat,
    fewshot_as_multiturn=p.chat,
  )
  items, out = [], []
  for name, lm_task in loaded["tasks"].items():
    samples = found["samples"][name]
    items += [_item(name, sample) for sample in samples]
    variant = f"{lm_task.get_config('num_fewshot')}-shot"
    if len(loaded["tasks"]) > 1:  # of a group
      variant = f"{name}, {variant}"
    out += _measures(task, variant, lm_task, samples, num_resamples=num_resamples, seed=seed)
  suite_checks.write_items(directory, items)
  return out


def _load(p: NlpConfig, task: str, seed: int) -> dict[str, Any]:
  """lm-eval's tasks of one unit: one of ours, or those of a group."""
  from lm_eval import tasks as lm_eval_tasks

  from rlhf.evals.suites import harness

  is_own = not task.startswith(LM_EVAL)
  name = PREFIX + task if is_own else task.removeprefix(LM_EVAL)
  manager = (
    lm_eval_tasks.TaskManager(
      include_path=str(TASK_DIR),
      include_defaults=False,
      metadata=dict(data=p.data, limit=p.limit, seed=seed),
    )
    if is_own
    else _their_tasks()
  )
  try:
    loaded = manager.load([name])
  except Exception as error:  # as many kinds as there are data sets and ways to miss them
    if is_own:
      raise
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(
      f"task {task} cannot be loaded ({reason}); its data come from the hub, so try "
      "again where there is a network"
    ) from error
  for lm_task in loaded["tasks"].values():
    usual = lm_task.get_config("num_fewshot")
    if usual is None or (usual and p.num_fewshot is not None):  # 0 in a task's file is meant
      lm_task.set_config("num_fewshot", p.num_fewshot if p.num_fewshot is not None else 0)
    if is_own and not data_lib.load(_data_of(task), p.data, data_lib.TRAIN):
      # Examples are items of the test set: being told so, lm-eval says which one is asked.
      lm_task.fewshot_cfg.split = lm_task.config.test_split
      lm_task.sampler = harness.OtherItems(list(lm_task.fewshot_docs()))
    lm_task.set_fewshot_seed(seed)
  return loaded


@functools.cache
def _their_tasks():
  """lm-eval's own tasks; their files are thousands, and reading them takes seconds."""
  from lm_eval import tasks as lm_eval_tasks

  return lm_eval_tasks.TaskManager()


def _drawn(p: NlpConfig, task: str, lm_tasks: Mapping[str, Any], seed: int):
  """Indices of the items by task, where lm-eval has to draw them; ours are drawn by then."""
  if p.limit is None or not task.startswith(LM_EVAL):
    return None
  return {
    name: data_lib.draw_indices([{}] * len(lm_task.eval_docs), p.limit, seed)
    for name, lm_task in lm_tasks.items()
  }


def _item(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
  """A line of `items.jsonl`."""
  doc, arguments, answers = sample["doc"], sample["arguments"], sample["filtered_resps"]
  line = dict(task=name, id=doc["id"] if "id" in doc else sample["doc_id"], prompt=arguments[0][0])
  if isinstance(answers[0], (str, list)):
    line["sample"] = answers[0]
  else:
    pairs = [answer if isinstance(answer, tuple) else (answer, False) for answer in answers]
    line["choices"] = [argument[-1] for argument in arguments]
    line["logprobs"] = [logprob for logprob, _ in pairs]
    line["num_tokens"] = [getattr(logprob, "num_tokens", None) for logprob, _ in pairs]
  line["references"] = doc["references"] if "references" in doc else sample["target"]
  line["scores"] = {metric: sample[metric] for metric in sample["metrics"]}
  return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any) -> Any:
  """As JSON has it; what JSON has no word for (of tasks of others) as text."""
  try:
    return workdir.plain(value)
  except ValueError:
    return str(value)


def _measures(
  task: str,
  variant: str,
  lm_task: Any,
  samples: Sequence[Mapping[str, Any]],
  *,
  num_resamples: int,
  seed: int,
) -> list[measures.Measure]:
  """Every metric of a task, and of each filter of it."""
  out = []
  filters = list(dict.fromkeys(sample["filter"] for sample in samples))
  for kind in filters:
    chosen = [sample for sample in samples if sample["filter"] == kind]
    for metric in chosen[0]["metrics"]:
      higher = lm_task.higher_is_better().get(metric)
      out.append(
        _measure(
          [sample[metric] for sample in chosen],
          lm_task.aggregation().get(metric),
          dict(num_resamples=num_resamples, seed=seed),
          task=task,
          variant=variant,
          metric=metric if len(filters) == 1 else f"{metric}, {kind}",
          better="" if higher is None else "higher" if higher else "lower",
        )
      )
  return out


def _measure(
  values: Sequence[Any], aggregate: Callable | None, settings: Mapping[str, int], **fields: str
) -> measures.Measure:
  """A mean, or any other number that lm-eval makes of the items' values."""
  from lm_eval.api import metrics as lm_eval_metrics

  is_mean = aggregate in (None, lm_eval_metrics.mean)
  if is_mean and all(np.isscalar(value) for value in values):
    return measures.Measure.of_mean(values, **settings, **fields)
  return measures.Measure(interval=_interval(values, aggregate, **settings), **fields)


def _interval(
  values: Sequence[Any], aggregate: Callable, *, num_resamples: int, seed: int
) -> statistics.Interval:
  """Of BLEU, or of any other number that is no mean."""
  if getattr(aggregate, "__name__", "") == "corpus_bleu":  # as below, but from sums
    return statistics.bootstrap_statistic(
      np.asarray(values, float), text_metrics.bleu, num_resamples=num_resamples, seed=seed
    )
  return statistics.bootstrap_function(
    values, aggregate, seed=seed, num_resamples=min(num_resamples, MOST_RESAMPLES)
  )
