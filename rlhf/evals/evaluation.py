"""Runs suites on checkpoints: what is there is read, what is missing is made.

    WORKDIR/SUITE/CHECKPOINT/TASK/    a unit of work, see `units`
    WORKDIR/preference/               what the judges said of all completions, see `comparison`

`launch.evaluate` and the last stage of a pipeline both evaluate with `run`.
"""

import contextlib
import dataclasses
import functools
import importlib
import pathlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from rlhf import metrics, networks
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import units
from rlhf.evals.preference import comparison, ratings
from rlhf.evals.preference.comparison import PreferenceConfig
from rlhf.evals.suites.suite import Unit
from rlhf.evals.units import Candidate
from rlhf.inference import prefixes
from rlhf.model.architecture import ModelConfig
from rlhf.networks import Network

PREFERENCE, *TASK_SUITES = units.SUITES  # all but the first go task by task
COMPLETIONS = "completions"  # the task of the suite preference
# Called with what was not measured, and why.
OnFailure = Callable[[str, Exception], None]


def stop(what: str, error: Exception) -> None:
  """An `OnFailure` that ends the evaluation."""
  del what
  raise error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What all suites share.

  Attributes:
    seed: of samples and of the bootstrap.
    num_resamples: of the bootstrap.
    batch_size: rows at once; affects speed and memory only.
    mesh: on which networks are laid out.
    workdir: of the evaluation.
    on_failure: called with what a checkpoint or a judge could not do; the others go on.
  """

  seed: int
  num_resamples: int
  batch_size: int
  mesh: Mesh
  workdir: pathlib.Path
  on_failure: OnFailure = stop

  @property
  def bootstrap(self) -> dict[str, int]:
    return dict(num_resamples=self.num_resamples, seed=self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What was measured, in this run and earlier ones.

  Attributes:
    measures: suite -> checkpoint -> `Measure.as_dict()` of all its tasks.
    compared: as `comparison.Comparison.as_dict`, with "baseline"; None without preferences.
  """

  measures: dict[str, dict[str, list[dict[str, Any]]]]
  compared: dict[str, Any] | None


def suite_module(name: str) -> ModuleType:
  """The module of a suite of `TASK_SUITES`."""
  return importlib.import_module(f"rlhf.evals.suites.{name}")


def make_group(name: str, config: Mapping[str, Any]) -> Any:
  """The checked config of a suite.

  Raises:
    ValueError: as the suite's `check`.
  """
  module = suite_module(name)
  p = getattr(module, f"{name.capitalize()}Config")(**config)
  module.check(p)
  return p


def find_checkpoint(candidate: Candidate):
  """What a candidate's source says about itself.

  Raises:
    ValueError: it is no policy.
  """
  return networks.find_export(
    candidate.source, kind="policy", flag=f"--checkpoints={candidate.name}"
  )


def describe(candidate: Candidate) -> dict[str, Any]:
  """What the report says about a checkpoint."""
  shape = ModelConfig(**find_checkpoint(candidate).model)
  return dict(
    name=candidate.name,
    source=candidate.source,
    parameters=shape.num_block_params,
    prefix=candidate.prefix is not None,
  )


def load_network(candidate: Candidate, mesh: Mesh) -> Network:
  """A candidate's policy on the mesh, computed as its export says."""
  flag = f"--checkpoints={candidate.name}"
  return networks.load(candidate.source, mesh=mesh, kind="policy", flag=flag)


def run(
  candidates: Sequence[Candidate],
  groups: Mapping[str, Any],
  settings: Settings,
  *,
  wanted: Collection[str] | None = None,
  sheets: str | None = None,
) -> Found:
  """Evaluates every candidate with every suite.

  Args:
    candidates: checkpoints.
    groups: suite -> its checked config.
    settings: of all suites.
    wanted: suites whose missing units are made; of the others, only what was measured earlier with
      these settings is read.  None is all.
    sheets: a directory for blind rating sheets, which are written instead of asking judges.
  """
  wanted = groups if wanted is None else wanted
  preference = groups[PREFERENCE] if PREFERENCE in groups else None
  measures: dict[str, dict[str, list[dict[str, Any]]]] = {}
  completions: dict[str, list[str | None]] = {}
  for candidate in candidates:
    load = functools.cache(functools.partial(load_network, candidate, settings.mesh))
    for suite, p in groups.items():
      if suite != PREFERENCE:
        found = suite_measures(candidate, suite, p, settings, load, suite in wanted)
        if found:
          measures.setdefault(suite, {})[candidate.name] = found
    if preference is not None:
      try:
        completions[candidate.name] = completions_of(candidate, preference, settings, load)
      except Exception as error:  # pylint: disable=broad-exception-caught
        settings.on_failure(f"{candidate.name} has no completions to be judged", error)
  if preference is None or sheets is not None:
    compared = judged_earlier(candidates, settings)
  else:
    compared = judged(preference, candidates, completions, settings)
  if preference is not None and sheets is not None:
    hand_out(preference, candidates, completions, sheets, settings)
  return Found(measures=measures, compared=compared)


# ----------------------------------------------------------------------------- task by task


def notes(found: Found, groups: Mapping[str, Any]) -> list[str]:
  """What a reader must know about the measures: how good the judges and classifiers are."""
  modules = {suite: suite_module(suite) for suite in groups if suite in found.measures}
  return [
    note
    for suite, module in modules.items()
    if hasattr(module, "notes")
    for note in module.notes(groups[suite])
  ]


def suite_measures(
  candidate: Candidate,
  suite: str,
  p: Any,
  settings: Settings,
  load: Callable[[], Network],
  make: bool,
) -> list[dict[str, Any]]:
  """The measures of one checkpoint in one suite; tasks that are missing are run if `make`."""
  module, found = suite_module(suite), []
  for task in module.task_names(p):
    directory = units.task_directory(settings.workdir, suite, candidate.name, task)
    wanted = units.fingerprint(
      candidate,
      task,
      settings.bootstrap
      | dict(suite=suite, group=units.group_settings(p), data=module.data_files(p, task)),
    )
    result = units.find_result(directory, wanted)
    if result is None and make:
      try:
        network, began = load(), time.perf_counter()
        with bar(f"{suite} {task} {candidate.name}") as progress:
          units.begin(directory)
          unit = Unit(
            task=task,
            network=network,
            directory=directory,
            batch_size=settings.batch_size,
            progress=progress,
            **settings.bootstrap,
          )
          measured = module.evaluate(p, unit)
        seconds = time.perf_counter() - began
        result = units.write_result(directory, wanted, measured, seconds=seconds)
        units.print_measures(measured)
      except Exception as error:  # pylint: disable=broad-exception-caught
        settings.on_failure(f"{suite} {task} of {candidate.name} was not measured", error)
    if result is not None:
      found.extend(result["measures"])
  return found


@contextlib.contextmanager
def bar(name: str):
  """A live line on the console; gives a function of (items done, items in all).

  It starts again when no more items are done than before: the next round of an endpoint's
  questions.
  """
  shown, before = None, 0
  with contextlib.ExitStack() as stack:

    def update(done: int, total: int) -> None:
      nonlocal shown, before
      if shown is None or done <= before:
        stack.close()  # a console has room for one
        shown = stack.enter_context(metrics.Progress(name, total))
      shown.update(done, {}, num_tokens=0)
      before = done

    print(name, flush=True)
    yield update


# ----------------------------------------------------------------------------- preference


def completions_of(
  candidate: Candidate,
  p: PreferenceConfig,
  settings: Settings,
  load: Callable[[], Network],
) -> list[str | None]:
  """One checkpoint's completions of the prompts, sampled unless they are there."""
  prompt_format = prepare.PromptFormat.trained_with(find_checkpoint(candidate).config)
  directory = units.task_directory(settings.workdir, PREFERENCE, candidate.name, COMPLETIONS)
  decides = dict(
    comparison.completion_settings(p, candidate.name),
    seed=settings.seed,
    format=dataclasses.asdict(prompt_format),
  )
  wanted = units.fingerprint(candidate, COMPLETIONS, decides)
  if units.find_result(directory, wanted) is not None:
    return comparison.read_completions(directory)
  network, began = load(), time.perf_counter()
  with bar(f"{PREFERENCE} {COMPLETIONS} {candidate.name}") as progress:
    found = comparison.complete(
      p,
      network,
      directory,
      name=candidate.name,
      prompt_format=prompt_format,
      prefix=None if candidate.prefix is None else prefixes.Prefix(text=candidate.prefix),
      seed=settings.seed,
      batch_size=settings.batch_size,
      progress=progress,
    )
  units.write_result(directory, wanted, [], seconds=time.perf_counter() - began)
  return found


def judged(
  p: PreferenceConfig,
  candidates: Sequence[Candidate],
  completions: Mapping[str, list[str | None]],
  settings: Settings,
) -> dict[str, Any] | None:
  """What the judges say of all completions, as `comparison.Comparison.as_dict`.

  A judge that fails is asked again by the next run; None where all fail.
  """
  directory = settings.workdir / PREFERENCE
  wanted = workdir_lib.config_hash(
    dict(
      group=dataclasses.asdict(p),
      completions=completions,
      settings=settings.bootstrap,
      files=[
        units.identity(Candidate(name="file", source=spec.partition(":")[2]))
        for spec in (*p.judges, p.comparisons, f"key:{p.key}")
        if spec.partition(":")[2]
      ],
    )
  )
  result = units.find_result(directory, wanted)
  if result is not None:
    asked = result["comparison"]["endpoint"]
    # An endpoint's replies without any text are asked for again.
    if asked is None or not asked.get("without_text", 0):
      return result["comparison"]
  try:
    _check_complete(completions, [p.baseline])
    with bar(f"{PREFERENCE} judged by {', '.join(p.judges)}") as progress:
      found = comparison.judge_all(
        p,
        completions,
        directory,
        batch_size=settings.batch_size,
        mesh=settings.mesh,
        progress=progress,
        all_or_none=result is not None,
        **settings.bootstrap,
      )
  except Exception as error:  # pylint: disable=broad-exception-caught
    if result is not None:
      settings.on_failure("the endpoint's empty replies were not asked for again", error)
      return result["comparison"]
    settings.on_failure("preferences were not judged", error)
    return None
  compared = workdir_lib.plain(dict(found.as_dict(), baseline=p.baseline))
  for judge, failure in found.failed.items():
    settings.on_failure(f"preferences were not judged by {judge}", failure)
  if not found.failed:  # else nothing says that it is done
    weights = comparable(candidates, completions, settings)
    units.write_result(directory, wanted, [], **weights, comparison=compared)
  return compared


def judged_earlier(candidates: Sequence[Candidate], settings: Settings) -> dict[str, Any] | None:
  """What `judged` returned in an earlier run, where its checkpoints are still the same.

  The suite's own group is not compared: a command without the suite need not repeat it.
  """
  path = settings.workdir / PREFERENCE / units.RESULT
  result = workdir_lib.read_json(path) if path.is_file() else {}
  if "weights" not in result:
    return None
  names = {candidate.name for candidate in candidates}
  now = comparable(candidates, result["weights"], settings)
  same = result["weights"].keys() <= names and now == {name: result[name] for name in now}
  return result["comparison"] if same else None


def comparable(
  candidates: Sequence[Candidate], names: Collection[str], settings: Settings
) -> dict[str, Any]:
  """Equal where earlier verdicts belong on the page of this run."""
  weights = {
    candidate.name: units.identity(candidate) for candidate in candidates if candidate.name in names
  }
  return workdir_lib.plain(dict(weights=weights, settings=settings.bootstrap))


def _check_complete(completions: Mapping[str, list], names: Sequence[str]) -> None:
  missing = [name for name in names if name not in completions]
  if missing:
    raise ValueError(
      f"there are no completions of {', '.join(missing)}; see above why, or name other checkpoints"
    )


def hand_out(
  p: PreferenceConfig,
  candidates: Sequence[Candidate],
  completions: Mapping[str, list],
  sheets: str,
  settings: Settings,
) -> None:
  """Writes blind sheets, and prints what to do with them."""
  try:
    _check_complete(completions, [candidate.name for candidate in candidates])
    prompts, texts = comparison.completed_by_all(p, completions, seed=settings.seed)
    ratings.write_sheets(sheets, prompts, texts, baseline=p.baseline, seed=settings.seed)
  except Exception as error:  # pylint: disable=broad-exception-caught
    settings.on_failure(f"the sheets of --sheets={sheets} were not written", error)
    return
  print(
    f"sheets: {sheets}/blind for the raters, {sheets}/key.jsonl not for them; "
    "then --config.preference.judges=\"('ratings:FILE',)\" with every file handed in and "
    f"--config.preference.key={sheets}/key.jsonl",
    flush=True,
  )
