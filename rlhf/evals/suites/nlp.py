"""Public NLP tasks: the paper's (InstructGPT appendix D), and any of lm-eval's own by name.

lm-eval runs both; `tasks/` has the task files with the paper's settings.  lm-eval gives the
prompts, the few-shot examples and the scores of single items; intervals are ours, from resampling
items.  An aggregate of lm-eval that is not a mean (TER, chrF, a perplexity) is computed again for
every resample, which can take seconds: at most MOST_RESAMPLES are drawn, as lm-eval does for BLEU,
chrF and TER, so the ends of such an interval are rough.  A prompt that does not fit into a model's
context loses its beginning, as in lm-eval: first the instruction, then the first examples.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf import checks, extras, workdir
from rlhf.evals import measures, statistics
from rlhf.evals.suites import suite, text_metrics
from rlhf.evals.suites.tasks import data as data_lib

TASK_DIR = pathlib.Path(__file__).parent / "tasks"
PREFIX = "instructgpt_"  # of the paper's tasks in lm-eval, which has others of the same names
LM_EVAL = "lm_eval:"  # of lm-eval's own tasks, in a config
TASKS = tuple(task for task in data_lib.SOURCES if (TASK_DIR / f"{PREFIX}{task}.yaml").is_file())
MOST_RESAMPLES = 100
_OF_A_HUNDRED = ("f1", "exact")
_ABILITY = ("acc", "acc_norm", "exact_match", *_OF_A_HUNDRED, "rouge_l")
_FIELD = "config.nlp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlpConfig:
  """Which tasks, and in which form.

  Attributes:
    tasks: of `TASKS`; or "lm_eval:NAME" for a task, group or tag of lm-eval's own, whose data come
      from the hub.
    data: "hub", or a directory; see `tasks.data`.
    limit: items of each task, drawn by the seed, the same for all checkpoints; None takes all.
    num_fewshot: examples in each prompt; None takes the paper's number, or that of lm-eval's task.
      A task whose file says 0 keeps it.  The files of the summaries (cnn_dm, tldr) say nothing, as
      the paper does: None is 0 there.
    chat: put prompts into the model's chat template, examples as turns of their own.
  """

  tasks: tuple[str, ...]
  data: str
  limit: int | None
  num_fewshot: int | None
  chat: bool

  def __post_init__(self):
    object.__setattr__(self, "tasks", tuple(self.tasks))
    own = [name for name in self.tasks if not name.startswith(LM_EVAL)]
    suite.check_variants(own if own else TASKS, TASKS, f"{_FIELD}.tasks")
    if not self.tasks or len(set(self.tasks)) < len(self.tasks):
      raise ValueError(f"{_FIELD}.tasks is {list(self.tasks)}; name one or more, each once")
    checks.at_least(_FIELD, self, limit=1, num_fewshot=0)


def task_names(p: NlpConfig) -> tuple[str, ...]:
  return p.tasks


def data_files(p: NlpConfig, task: str) -> list[tuple[str, int]]:
  """None of lm-eval's own tasks, which come from the hub."""
  return [] if task.startswith(LM_EVAL) else data_lib.files(task, p.data)


def check(p: NlpConfig) -> None:
  extras.require("lm_eval", "evals", "the suite nlp")
  for task in p.tasks:
    if not task.startswith(LM_EVAL):
      suite.check_data((task,), p.data, _FIELD)
    elif task.removeprefix(LM_EVAL) not in set(_their_tasks().all_tasks):
      raise ValueError(
        f"{_FIELD}.tasks names {task}, which lm-eval does not have; `lm_eval ls tasks` lists its "
        "tasks"
      )


@functools.cache
def item_metric(p: NlpConfig, task: str, seed: int) -> tuple[str, float]:
  """The first metric of a task, if its mean measures ability, and its value for a perfect item: 1,
  or 100 for our F1 and exact matches (see `measures.Measure`).

  Args:
    seed: as in `evaluate`; it draws the items.

  Raises:
    ValueError: the task cannot be loaded or is a group of tasks, or its metric is not a mean over
      items that is known to measure ability.
  """
  from lm_eval.api import metrics as lm_eval_metrics

  loaded, named = _load(p, task, seed)["tasks"], f"{_FIELD}.tasks names {task}"
  if len(loaded) != 1:
    raise ValueError(f"{named}, a group of {len(loaded)} tasks; name them one by one")
  (lm_task,) = loaded.values()
  ways = len(lm_task._filters)
  if ways > 1:
    raise ValueError(f"{named}, which reads each answer in {ways} ways; name a task with one")
  metric, aggregate = next(iter(lm_task.aggregation().items()))
  if metric not in _ABILITY or aggregate is not lm_eval_metrics.mean:
    raise ValueError(
      f"{named}, whose metric is {metric}; name a task that has a mean of one of "
      f"{', '.join(_ABILITY)}"
    )
  return metric, 100.0 if metric in _OF_A_HUNDRED and not task.startswith(LM_EVAL) else 1.0


def notes(p: NlpConfig) -> list[str]:
  found = [
    "A prompt that is longer than a model's context loses its beginning: the instruction first, "
    "then examples."
  ]
  released = [
    task for task in p.tasks if not task.startswith(LM_EVAL) and data_lib.is_released(task, p.data)
  ]
  if released:
    found.append(
      f"Of {', '.join(released)} only the 100 prompts that InstructGPT's authors released are "
      "used; few-shot examples are others of the hundred."
    )
  return found


def evaluate(p: NlpConfig, unit: suite.Unit) -> list[measures.Measure]:
  """Measures a policy on one task; see `suite`.

  `items.jsonl` has each item's prompt, the completion or the log-probabilities of the choices, and
  its scores.

  Raises:
    ValueError: the task's data cannot be read, or it needs what the model cannot do.
  """
  from lm_eval import evaluator

  from rlhf.evals.suites import harness

  loaded = _load(p, unit.task, unit.seed)
  drawn = None  # items of ours are drawn when they are loaded
  if p.limit is not None and unit.task.startswith(LM_EVAL):
    drawn = {
      name: data_lib.draw_indices([{}] * len(lm_task.eval_docs), p.limit, unit.seed)
      for name, lm_task in loaded["tasks"].items()
    }
  found = evaluator.evaluate(
    lm=harness.HarnessModel(
      unit.network,
      batch_size=unit.batch_size,
      seed=unit.seed,
      chat=p.chat,
      progress=unit.progress,
    ),
    task_dict=loaded,
    samples=drawn,
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
    out += _measures(unit, variant, lm_task, samples)
  unit.write(items)
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
  except Exception as error:  # there are as many kinds as data sets
    if is_own:
      raise
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    raise ValueError(
      f"task {task} cannot be loaded ({reason}); its data come from the hub, so try again where "
      "there is a network"
    ) from error
  for lm_task in loaded["tasks"].values():
    usual = lm_task.get_config("num_fewshot")
    if usual is None or (usual and p.num_fewshot is not None):  # a 0 in a task's file stays
      lm_task.set_config("num_fewshot", p.num_fewshot if p.num_fewshot is not None else 0)
    if is_own and not data_lib.load(task, p.data, data_lib.TRAIN):
      # Examples are items of the test set: with this split lm-eval passes the item in question.
      lm_task.fewshot_cfg.split = lm_task.config.test_split
      lm_task.sampler = harness.OtherItems(list(lm_task.fewshot_docs()))
    lm_task.set_fewshot_seed(seed)
  return loaded


@functools.cache
def _their_tasks():
  """lm-eval's own tasks; reading their thousands of files takes seconds."""
  from lm_eval import tasks as lm_eval_tasks

  return lm_eval_tasks.TaskManager()


def _item(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
  """A line of `items.jsonl`."""
  doc, arguments, replies = sample["doc"], sample["arguments"], sample["filtered_resps"]
  line = dict(task=name, id=doc["id"] if "id" in doc else sample["doc_id"], prompt=arguments[0][0])
  if isinstance(replies[0], (str, list)):
    line["sample"] = replies[0]
  else:
    logprobs = [reply[0] if isinstance(reply, tuple) else reply for reply in replies]
    line["choices"] = [argument[-1] for argument in arguments]
    line["logprobs"] = logprobs
    line["num_tokens"] = [getattr(logprob, "num_tokens", None) for logprob in logprobs]
  line["references"] = doc["references"] if "references" in doc else sample["target"]
  line["scores"] = {metric: sample[metric] for metric in sample["metrics"]}
  return {key: _plain(value) for key, value in line.items()}


def _plain(value: Any) -> Any:
  """As JSON; other tasks' values that JSON cannot hold become text."""
  try:
    return workdir.plain(value)
  except ValueError:
    return str(value)


def _measures(
  unit: suite.Unit, variant: str, lm_task: Any, samples: Sequence[Mapping[str, Any]]
) -> list[measures.Measure]:
  """Every metric of a task, and of each of its filters."""
  out = []
  filters = list(dict.fromkeys(sample["filter"] for sample in samples))
  for kind in filters:
    chosen = [sample for sample in samples if sample["filter"] == kind]
    for metric in chosen[0]["metrics"]:
      higher = lm_task.higher_is_better().get(metric)
      interval, values = _interval(
        [sample[metric] for sample in chosen],
        lm_task.aggregation().get(metric),
        **unit.bootstrap,
      )
      out.append(
        measures.Measure(
          task=unit.task,
          variant=variant,
          metric=metric if len(filters) == 1 else f"{metric}, {kind}",
          interval=interval,
          better="" if higher is None else "higher" if higher else "lower",
          values=values,
        )
      )
  return out


def _interval(
  values: Sequence[Any], aggregate: Callable | None, **settings: Unpack[statistics.Settings]
) -> tuple[statistics.Interval, tuple[float, ...]]:
  """(interval, values of the items if it is of their mean)."""
  from lm_eval.api import metrics as lm_eval_metrics

  is_mean = aggregate is None or aggregate is lm_eval_metrics.mean
  if is_mean and all(np.isscalar(value) for value in values):
    value_N = np.asarray(values, np.float64)
    return statistics.bootstrap_mean(value_N[:, None], **settings), tuple(value_N.tolist())
  assert aggregate is not None, "lm-eval aggregates every metric"
  if getattr(aggregate, "__name__", "") == "corpus_bleu":  # as below, but from sums
    sums = np.asarray(values, float)
    return statistics.bootstrap_statistic(sums, text_metrics.bleu, **settings), ()
  settings["num_resamples"] = min(settings["num_resamples"], MOST_RESAMPLES)
  return statistics.bootstrap_function(values, aggregate, **settings), ()
