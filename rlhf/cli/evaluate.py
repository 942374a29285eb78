"""Compares checkpoints: preferences, public tasks, truth, toxicity, bias.

  rlhf evaluate --checkpoints=base=runs/base,sft=runs/sft,aligned=runs/ppo \\
      --suite=nlp,truth,toxicity,bias --workdir=runs/evaluation --config.nlp.data=hub
  rlhf evaluate --pool=runs/evaluation0,runs/evaluation1 --workdir=runs/pooled
  rlhf evaluate --samples=answers.jsonl --task=squadv2 --json=-

A checkpoint is `NAME=SOURCE` or SOURCE alone: an export directory or the workdir of its stage,
hf:DIR or gguf:FILE.  `METHOD@SIZE` as a name draws the methods as lines over the number of
parameters.  --prefixes=NAME=FILE puts the text of a file before every prompt of one checkpoint, in
the suite preference.

Suites: preference, nlp, truth, toxicity, bias; their settings are `--config.SUITE.FIELD` of
--config, which is configs/eval.py unless given.  Running again does only what is missing: another
task, another checkpoint, what was interrupted.  WORKDIR/report/ has the page and the numbers,
WORKDIR/SUITE/CHECKPOINT/TASK/items.jsonl what the model was asked and what it did.

--sheets=DIR, with the suite preference, writes blind rating sheets for people in place of asking
judges; what they hand in is read by --config.preference.judges="('ratings:FILE',)".  A task that a
checkpoint cannot do (a context that is too short) or a judge that fails is named, the others go on,
and the next run tries again; RLHF_TRACEBACK=1 shows where it failed.

The second form pools the preferences of evaluations of several training seeds, whose checkpoints
have the same names: intervals then resample seeds, and prompts within each.

The third form scores given outputs and needs no model; `rlhf evaluate_samples --help`.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from types import ModuleType
from typing import Any

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, models, startup

SUITES = ("preference", "nlp", "truth", "toxicity", "bias")
SHOWN_SAMPLES = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What the command line asks for."""

  candidates: list[Any]
  suites: list[str]
  config: Any
  workdir: pathlib.Path
  pooled: list[pathlib.Path] = dataclasses.field(default_factory=list)
  sheets: str | None = None


def read_request(argv: Sequence[str]) -> Request:
  """The flags, checked as far as they can be without loading a network.

  Raises:
    ValueError: a checkpoint, a suite or a prefix is wrong; one sentence says which.
  """
  parser = flags.Parser("rlhf evaluate", __doc__)
  parser.add_config("configs/eval.py", default="configs/eval.py")
  parser.add_workdir("directory of the evaluation")
  parser.flag("checkpoints", "NAME=SOURCE,NAME=SOURCE,...", flags.names, [])
  parser.flag("prefixes", "NAME=FILE,NAME=FILE,...", flags.names, [])
  parser.flag("suite", f"some of {','.join(SUITES)}", flags.names, [])
  parser.flag("sheets", "directory for blind rating sheets", flags.directory)
  parser.flag("pool", "workdirs of evaluations, one for each training seed", flags.names, [])
  arguments = parser.parse(argv)
  config = flags.load_config(arguments.config, arguments.overrides, "evaluation")
  from rlhf.evals import units  # after the flags: importing jax takes seconds

  for name in ("num_resamples", "batch_size"):
    if config[name] < 1:
      raise ValueError(f"--config.{name}={config[name]}; use 1 or more")
  workdir = pathlib.Path(arguments.workdir).absolute()
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a directory")
  if arguments.pool:
    for name in ("checkpoints", "prefixes", "suite", "sheets"):
      if getattr(arguments, name):
        raise ValueError(
          f"--{name} and --pool do not go together: what is pooled has been evaluated"
        )
    return Request(
      candidates=[],
      suites=[],
      config=config,
      workdir=workdir,
      pooled=[pathlib.Path(name).absolute() for name in arguments.pool],
    )
  wanted = arguments.suite
  for name in wanted:
    if name not in SUITES:
      raise ValueError(f"--suite: {name!r}; choose from {', '.join(SUITES)}")
  if not wanted:
    raise ValueError(f"--suite is missing; give some of {','.join(SUITES)}, separated by commas")
  if arguments.sheets is not None and "preference" not in wanted:
    raise ValueError(
      f"--sheets={arguments.sheets} needs the suite preference, whose answers "
      "are rated; add it to --suite"
    )
  candidates = units.parse_candidates(arguments.checkpoints)
  candidates = [
    dataclasses.replace(candidate, source=str(models.find_network(candidate.source, "checkpoints")))
    for candidate in candidates
  ]
  return Request(
    candidates=units.with_prefixes(candidates, arguments.prefixes),
    suites=[name for name in SUITES if name in wanted],
    config=config,
    workdir=workdir,
    sheets=arguments.sheets,
  )


def load_suites(names: Sequence[str]) -> dict[str, ModuleType]:
  """The modules of the suites that go task by task, in the order asked for."""
  from rlhf.evals.suites import bias, nlp, toxicity, truth

  known = {"nlp": nlp, "truth": truth, "toxicity": toxicity, "bias": bias}
  return {name: known[name] for name in names if name in known}


def config_class(suite: str, module: ModuleType) -> type:
  """`NlpConfig` of `nlp`, and so on."""
  return getattr(module, f"{suite.capitalize()}Config")


def settings_of(config) -> dict[str, Any]:
  """What decides numbers beside a suite's own group; `batch_size` is not among it."""
  return dict(num_resamples=config.num_resamples, seed=config.seed)


def find_checkpoint(candidate):
  """What a candidate's source says of itself, where it is a policy."""
  from rlhf import networks

  return networks.find_export(
    candidate.source, kind="policy", flag=f"--checkpoints={candidate.name}"
  )


def load_network(candidate, config):
  """A candidate's policy on the mesh; attention as the platform does it best."""
  from rlhf import networks, sharding

  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh))
  return networks.load(
    candidate.source,
    find_checkpoint(candidate).compute,
    mesh,
    kind="policy",
    flag=f"--checkpoints={candidate.name}",
  )


class Loader:
  """A candidate's network, loaded when it is first asked for."""

  def __init__(self, candidate, config):
    self._candidate, self._config, self._network = candidate, config, None

  def __call__(self):
    if self._network is None:
      self._network = load_network(self._candidate, self._config)
    return self._network


# ----------------------------------------------------------------------------- task by task


def evaluate_candidate(
  candidate,
  modules: Mapping[str, ModuleType],
  groups: Mapping[str, Any],
  request: Request,
  load: Loader,
  failed: list[str],
) -> dict[str, list[dict[str, Any]]]:
  """suite -> the measures of one checkpoint; what is not there yet is made.

  Suites that were not asked for give what was measured earlier with these settings.  What a
  checkpoint cannot do is added to `failed`, a sentence each.
  """
  from rlhf.evals import units

  settings, found = settings_of(request.config), {}
  for suite, module in modules.items():
    p, found[suite] = groups[suite], []
    for task in module.task_names(p):
      directory = units.task_directory(request.workdir, suite, candidate.name, task)
      wanted = units.fingerprint(
        candidate,
        task,
        settings
        | dict(suite=suite, group=units.group_settings(p), data=module.data_files(p, task)),
      )
      result = units.find_result(directory, wanted)
      if result is None and suite in request.suites:
        try:
          result = run_unit(
            candidate,
            suite,
            module,
            p,
            task,
            load,
            directory,
            wanted,
            settings | dict(batch_size=request.config.batch_size),
          )
        except Exception as error:  # pylint: disable=broad-exception-caught
          add_failure(failed, f"{suite} {task} of {candidate.name} was not measured", error)
      if result is not None:
        found[suite].extend(result["measures"])
  return found


def add_failure(failed: list[str], what: str, error: Exception) -> None:
  """Adds what did not come about and why to `failed`, a sentence, and says it on the console."""
  failed.append(f"{what}: {startup.sentence_of(error)}")
  print(f"  {failed[-1]}", file=sys.stderr, flush=True)
  if os.environ.get("RLHF_TRACEBACK"):
    traceback.print_exception(error)


def run_unit(
  candidate,
  suite: str,
  module: ModuleType,
  p,
  task: str,
  load: Loader,
  directory: pathlib.Path,
  wanted: str,
  settings: Mapping[str, Any],
) -> dict[str, Any]:
  """One task of one checkpoint, from nothing to its `result.json`."""
  from rlhf.evals import units

  network, began = load(), time.perf_counter()
  with bar(f"{suite} {task} {candidate.name}") as progress:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / units.RESULT).unlink(missing_ok=True)
    measured = module.evaluate(p, task, network, directory, progress=progress, **settings)
  result = units.write_result(directory, wanted, measured, seconds=time.perf_counter() - began)
  for measure in measured:
    name, interval = " ".join(filter(None, (measure.variant, measure.metric))), measure.interval
    print(
      f"  {name:<44}{interval.mean:10.4g}  [{interval.low:.4g}, {interval.high:.4g}]  "
      f"n {interval.n:,}",
      flush=True,
    )
  return result


@contextlib.contextmanager
def bar(name: str):
  """A live line on the console; gives a function of (items done, items in all).

  It begins anew where no more are done than before: the next round of an endpoint's questions.
  """
  from rlhf import metrics

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


def answers_of(candidate, p, request: Request, load: Loader) -> list[str | None]:
  """One checkpoint's answers to the prompts, drawn unless they are there."""
  from rlhf.data import prepare
  from rlhf.evals import units
  from rlhf.evals.preference import comparison
  from rlhf.inference import prefixes

  prompt_format = prepare.PromptFormat.trained_with(find_checkpoint(candidate).config)
  directory = units.task_directory(request.workdir, "preference", candidate.name, "answers")
  settings = dict(
    comparison.answer_settings(p, candidate.name),
    seed=request.config.seed,
    format=dataclasses.asdict(prompt_format),
  )
  wanted = units.fingerprint(candidate, "answers", settings)
  if units.find_result(directory, wanted) is None:
    network, began = load(), time.perf_counter()
    with bar(f"preference answers {candidate.name}") as progress:
      comparison.answers(
        p,
        network,
        directory,
        name=candidate.name,
        prompt_format=prompt_format,
        prefix=None if candidate.prefix is None else prefixes.Prefix(text=candidate.prefix),
        seed=request.config.seed,
        batch_size=request.config.batch_size,
        progress=progress,
      )
    units.write_result(directory, wanted, [], seconds=time.perf_counter() - began)
  return comparison.read_answers(directory)


def judged(
  p, answers: Mapping[str, list], request: Request, failed: list[str]
) -> dict[str, Any] | None:
  """What the judges say of all answers, as `comparison.Comparison.as_dict` has it.

  A judge that fails is added to `failed` and asked again by the next run; None where all do.
  """
  from rlhf.evals import units
  from rlhf.evals.preference import comparison

  directory = request.workdir / "preference"
  wanted = workdir_lib.config_hash(
    dict(
      group=dataclasses.asdict(p),
      answers=answers,
      settings=settings_of(request.config),
      files=[
        units.identity(units.Candidate(name="file", source=spec.partition(":")[2]))
        for spec in (*p.judges, p.comparisons, f"key:{p.key}")
        if spec.partition(":")[2]
      ],
    )
  )
  result = units.find_result(directory, wanted)
  if result is None or was_silent(result["comparison"]["endpoint"]):
    try:
      check_answered(answers, [p.baseline])
      with bar(f"preference judged by {', '.join(p.judges)}") as progress:
        found = comparison.judge_all(
          p,
          answers,
          directory,
          batch_size=request.config.batch_size,
          progress=progress,
          all_or_none=result is not None,
          **settings_of(request.config),
        )
    except Exception as error:  # pylint: disable=broad-exception-caught
      if result is not None:
        add_failure(failed, "what an endpoint had left without a text was not asked again", error)
        return result["comparison"]
      add_failure(failed, "preferences were not judged", error)
      return None
    compared = workdir_lib.plain(dict(found.as_dict(), baseline=p.baseline))
    for judge, error in found.failed.items():
      add_failure(failed, f"preferences were not judged by {judge}", error)
    if found.failed:
      return compared  # and nothing says that it is done
    result = units.write_result(
      directory, wanted, [], **comparable(request, answers), comparison=compared
    )
  return result["comparison"]


def was_silent(endpoint: Mapping[str, Any] | None) -> bool:
  """Whether questions to an endpoint had replies without any text: they are asked again."""
  return endpoint is not None and "without_text" in endpoint and endpoint["without_text"] > 0


def judged_earlier(request: Request) -> dict[str, Any] | None:
  """What `judged` returned in a run before this one, where its checkpoints are still the same.

  The suite's own group is not compared: a command without the suite need not repeat it.
  """
  from rlhf.evals import units

  path = request.workdir / "preference" / units.RESULT
  result = workdir_lib.read_json(path) if path.is_file() else {}
  if "weights" not in result:
    return None
  names = {candidate.name for candidate in request.candidates}
  same = result["weights"].keys() <= names and comparable(request, result["weights"]) == {
    key: result[key] for key in ("weights", "settings")
  }
  return result["comparison"] if same else None


def comparable(request: Request, names: Collection[str]) -> dict[str, Any]:
  """Equal where what was judged belongs on the page of this run."""
  from rlhf.evals import units

  return workdir_lib.plain(
    dict(
      weights={
        candidate.name: units.identity(candidate)
        for candidate in request.candidates
        if candidate.name in names
      },
      settings=settings_of(request.config),
    )
  )


# ----------------------------------------------------------------------------- the run


def run(request: Request) -> pathlib.Path:
  """Everything that was asked for; returns the page."""
  modules, groups = checked_suites(request)
  preference = None if "preference" not in request.suites else checked_preference(request)
  checkpoints = [describe(candidate) for candidate in request.candidates]
  measures, answers, failed = {}, {}, []
  for candidate in request.candidates:
    load = Loader(candidate, request.config)
    for suite, found in evaluate_candidate(
      candidate, modules, groups, request, load, failed
    ).items():
      if found:
        measures.setdefault(suite, {})[candidate.name] = found
    if preference is not None:
      try:
        answers[candidate.name] = answers_of(candidate, preference, request, load)
      except Exception as error:  # pylint: disable=broad-exception-caught
        add_failure(failed, f"{candidate.name} gave no answers to be judged", error)
  if preference is None or request.sheets is not None:
    compared = judged_earlier(request)
  else:
    compared = judged(preference, answers, request, failed)
  if request.sheets is not None:
    hand_out(preference, answers, request, failed)
  notes = notes_of({name: modules[name] for name in modules if name in measures}, groups)
  page = write_report(request, checkpoints, measures, compared, [*notes, *failed])
  print(f"report: {page}", flush=True)
  if failed:
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    raise ValueError(f"{failed[0]}{more}; the page has what was measured")
  return page


def checked_suites(request: Request) -> tuple[dict[str, ModuleType], dict[str, Any]]:
  """(modules, configs) of the suites asked for, checked, and of those whose settings are whole.

  Raises:
    ValueError: as the suite's `check`.
  """
  modules, groups = load_suites(SUITES), {}
  for name in list(modules):
    try:
      groups[name] = config_class(name, modules[name])(**request.config[name])
      modules[name].check(groups[name])
    except ValueError:
      if name in request.suites:
        raise
      del modules[name]  # cannot have been measured with these settings
  return modules, groups


def checked_preference(request: Request):
  """The config of the suite preference; with --sheets its judges are people yet to be asked."""
  from rlhf.evals.preference import comparison

  names = [candidate.name for candidate in request.candidates]
  group = dict(request.config.preference)
  if request.sheets is None:
    p = comparison.PreferenceConfig(**group)
    comparison.check(p, names)
    return p
  p = comparison.PreferenceConfig(**group | dict(judges=(f"ratings:{request.sheets}",)))
  comparison.check_asked(p, names)
  return p


def check_answered(answers: Mapping[str, list], names: Sequence[str]) -> None:
  """Raises ValueError where one of the checkpoints has no answers."""
  missing = [name for name in names if name not in answers]
  if missing:
    raise ValueError(
      f"there are no answers of {', '.join(missing)}; see above why, or name other checkpoints"
    )


def hand_out(p, answers: Mapping[str, list], request: Request, failed: list[str]) -> None:
  """Writes blind sheets, and says what to do with them; where that fails, adds why to `failed`."""
  from rlhf.evals.preference import comparison

  try:
    check_answered(answers, [candidate.name for candidate in request.candidates])
    comparison.write_sheets(p, answers, request.sheets, seed=request.config.seed)
  except Exception as error:  # pylint: disable=broad-exception-caught
    add_failure(failed, f"the sheets of --sheets={request.sheets} were not written", error)
    return
  print(
    f"sheets: {request.sheets}/blind for the raters, {request.sheets}/key.jsonl not for them; "
    "then --config.preference.judges=\"('ratings:FILE',)\" with every file handed in and "
    f"--config.preference.key={request.sheets}/key.jsonl",
    flush=True,
  )


def pool(request: Request) -> pathlib.Path:
  """The preferences of several evaluations on one page.

  Raises:
    ValueError: an evaluation has no preferences, or other checkpoints or another baseline than the
      first, or is named twice.
  """
  from rlhf.evals import units
  from rlhf.evals.preference import comparison
  from rlhf.report import evaluation

  found = []
  if len(set(request.pooled)) < len(request.pooled):
    raise ValueError("--pool names a directory twice; name each evaluation once")
  for directory in request.pooled:
    path = directory / "report" / "evaluation.json"
    data = workdir_lib.read_json(path) if path.is_file() else {"preference": None}
    result = directory / "preference" / units.RESULT  # there where its files are of one run
    if data["preference"] is None or not result.is_file():
      raise ValueError(
        f"--pool: {directory} holds no report with preferences; name workdirs of "
        "rlhf evaluate --suite=preference that have finished"
      )
    result = workdir_lib.read_json(result)
    judged_names = (
      list(result["weights"])
      if "weights" in result
      else [one["name"] for one in data["checkpoints"]]
    )  # a failed one is on the page
    found.append(data | dict(preference=result["comparison"], judged=sorted(judged_names)))
  names = lambda data: [one["name"] for one in data["checkpoints"]]
  for directory, data in zip(request.pooled, found):
    for what, of in (
      ("checkpoints", names),
      ("judged checkpoints", lambda data: data["judged"]),
      ("baseline", lambda data: data["preference"]["baseline"]),
    ):
      if of(data) != of(found[0]):
        raise ValueError(
          f"--pool: {directory} has the {what} {of(data)}, the first has "
          f"{of(found[0])}; pool evaluations of the same models of several seeds"
        )
  pooled = comparison.pool(
    {run: directory / "preference" for run, directory in enumerate(request.pooled)},
    names(found[0]),
    baseline=found[0]["preference"]["baseline"],
    seed=request.config.seed,
    num_resamples=request.config.num_resamples,
  )
  compared = dict(
    pooled.as_dict(),
    baseline=found[0]["preference"]["baseline"],
    num_left_out=sum(data["preference"]["num_left_out"] for data in found),
  )
  page = evaluation.write(
    request.workdir / "report",
    title=request.config.title,
    checkpoints=found[0]["checkpoints"],
    measures={"preference": compared["measures"]},
    compared=compared,
    notes=[f"{len(found)} training seeds: intervals resample seeds, and prompts within each."],
  )
  print(f"report: {page}", flush=True)
  return page


def describe(candidate) -> dict[str, Any]:
  """What the report says of a checkpoint."""
  from rlhf.model.architecture import ModelConfig

  shape = ModelConfig(**find_checkpoint(candidate).model)
  return dict(
    name=candidate.name,
    source=candidate.source,
    parameters=shape.num_block_params,
    prefix=candidate.prefix is not None,
  )


def notes_of(modules: Mapping[str, ModuleType], groups: Mapping[str, Any]) -> list[str]:
  """What a reader must know of the measures: how good the judges and classifiers are."""
  return [
    note
    for name, module in modules.items()
    if hasattr(module, "notes")
    for note in module.notes(groups[name])
  ]


def write_report(request: Request, checkpoints, measures, compared, notes) -> pathlib.Path:
  """The page, from what all suites found."""
  from rlhf.evals import units
  from rlhf.report import evaluation

  samples, settings = [], settings_of(request.config)
  differences = {
    suite: units.differences(found, checkpoints[0]["name"], **settings)
    for suite, found in measures.items()
  }
  if compared is not None:
    measures = {"preference": compared["measures"]} | measures
    samples = [
      dict(prompt=line["prompt"], answers=line["answers"])
      for line in workdir_lib.read_jsonl(request.workdir / "preference" / "answers.jsonl")
    ]
  return evaluation.write(
    request.workdir / "report",
    title=request.config.title,
    checkpoints=checkpoints,
    measures=measures,
    compared=compared,
    samples=samples[:SHOWN_SAMPLES],
    notes=notes,
    differences=differences,
  )


@startup.command
def main(argv: list[str]) -> None:
  if any(
    argument.lstrip("-").partition("=")[0] == "samples"
    for argument in argv[1:]
    if argument.startswith("-")
  ):
    from rlhf.cli import evaluate_samples

    evaluate_samples.main(argv)
    return
  request = read_request(argv)
  if request.pooled:
    pool(request)
  else:
    run(request)
