"""What the suites share.

A suite is a module with the dataclass of its config group, such as `BiasConfig`, and

  task_names(p)         names of its units of work
  data_files(p, task)   the files of a unit, see `tasks.data.files`
  check(p)              raises ValueError for what is wrong before a network is loaded
  notes(p)              sentences that a reader of its numbers needs
  evaluate(p, unit)     measures a policy: returns `Measure`s and writes `items.jsonl`, a line each
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from numpy.typing import ArrayLike

from rlhf import workdir
from rlhf.evals import statistics, units
from rlhf.evals.measures import Measure
from rlhf.evals.suites.tasks import data as data_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
  """One task on one checkpoint.

  Attributes:
    task: of the suite's `task_names`.
    network: the policy.
    directory: where `items.jsonl` is written.
    num_resamples: of the bootstrap over items.
    seed: of the bootstrap, and of the items that are drawn: all checkpoints get the same ones.
    batch_size: rows at once.
    progress: called with (items done, items in total).
  """

  task: str
  network: Any
  directory: pathlib.Path
  num_resamples: int
  seed: int
  batch_size: int
  progress: Callable[[int, int], None] = lambda done, total: None

  @property
  def bootstrap(self) -> statistics.Settings:
    return dict(num_resamples=self.num_resamples, seed=self.seed)

  def write(self, items: Iterable[Mapping[str, Any]]) -> None:
    """Writes `items.jsonl`."""
    workdir.write_jsonl(self.directory / units.ITEMS, items)

  def means(
    self, values: Mapping[str, tuple[ArrayLike, str]], *, task: str, variant: str = ""
  ) -> list[Measure]:
    """The mean of each metric over items.

    Args:
      values: metric -> (one value for each item, which way is better; see `Measure.better`).
    """
    return [
      Measure.of_mean(
        value_N, self.bootstrap, task=task, variant=variant, metric=metric, better=better
      )
      for metric, (value_N, better) in values.items()
    ]


def check_choice(name: str, choices: Iterable[str], field: str) -> None:
  """Raises ValueError if a config's value is unknown."""
  if name not in choices:
    raise ValueError(f"{field} {name!r}; choose from {', '.join(choices)}")


def check_variants(names: Iterable[str], choices: Iterable[str], field: str) -> None:
  """Raises ValueError if a config's list is empty or names something unknown, or twice."""
  if isinstance(names, str) or not list(names):
    raise ValueError(f"{field} is {names!r}; give a list of one or more of {', '.join(choices)}")
  for name in names:
    check_choice(name, choices, f"{field} names")
  if len(set(names)) < len(list(names)):
    raise ValueError(f"{field} is {', '.join(names)}; name each once")


def check_data(tasks: Iterable[str], data: str, field: str) -> None:
  """Raises ValueError if the data of a task cannot be there; names the config's field."""
  try:
    for task in tasks:
      data_lib.check(task, data)
  except ValueError as error:
    raise ValueError(f"{field}.data: {error}") from None


def task_names(p: Any) -> tuple[str, ...]:
  """One unit for each of `p.tasks` and `p.prompts`, such as "winogender-basic"."""
  return tuple(f"{task}-{variant}" for task in p.tasks for variant in p.prompts)


def data_files(p: Any, task: str) -> list[tuple[str, int]]:
  """The files of a unit of `task_names`."""
  return data_lib.files(task.rpartition("-")[0], p.data)
