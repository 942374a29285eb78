"""Compares checkpoints by preferences, pretraining loss, public tasks, truth, toxicity, bias.

  rlhf evaluate --checkpoints=base=runs/base,sft=runs/sft,aligned=runs/ppo \\
      --suite=nlp,truth,toxicity,bias --workdir=runs/evaluation --config.nlp.data=hub
  rlhf evaluate --pool=runs/evaluation0,runs/evaluation1 --workdir=runs/pooled
  rlhf evaluate --samples=answers.jsonl --task=squadv2 --json=-

A checkpoint is `NAME=SOURCE` or SOURCE alone: an export directory or the workdir of its stage,
hf:DIR or gguf:FILE.  Names like `METHOD@SIZE` draw a line per method over the number of parameters.
--prefixes=NAME=FILE puts the text of a file before every prompt of one checkpoint, in the suite
preference.

Suites: preference, pretraining, nlp, truth, toxicity, bias; their settings are
`--config.SUITE.FIELD` of --config, by default configs/eval.py.  Running again does only what is
missing: another task, another checkpoint, what was interrupted.  WORKDIR/report/ has the page and
the numbers, WORKDIR/SUITE/CHECKPOINT/TASK/items.jsonl what the model was asked and what it did.

--sheets=DIR, with the suite preference, writes blind rating sheets for people instead of asking
judges; --config.preference.judges="('ratings:FILE',)" reads what they hand in.  A task that a
checkpoint cannot do (a context that is too short) or a judge that fails is named, the others go on,
and the next run tries again; RLHF_TRACEBACK=1 shows where it failed.

The second form pools the preferences of evaluations of several training seeds, whose checkpoints
have the same names: intervals then resample seeds, and prompts within each.

The third form scores given outputs and needs no model; `rlhf evaluate_samples --help`.
"""

import dataclasses
import functools
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from rlhf.cli.common import flags, startup
from rlhf.evals import units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What the command line asks for."""

  candidates: list[Any]
  suites: list[str]
  config: Any
  workdir: pathlib.Path
  pooled: list[pathlib.Path]
  sheets: str | None


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
  one_of_each = functools.partial(flags.names, choices=units.SUITES)
  parser.flag("suite", f"some of {','.join(units.SUITES)}", one_of_each, [])
  parser.flag("sheets", "directory for blind rating sheets", flags.directory)
  parser.flag("pool", "workdirs of evaluations, one for each training seed", flags.names, [])
  arguments = parser.parse(argv)
  config = flags.load_config(arguments.config, arguments.overrides, "evaluation")
  from rlhf import checkpoint  # after the flags: importing jax takes seconds

  for name in ("num_resamples", "batch_size"):
    if config[name] < 1:
      raise ValueError(f"--config.{name}={config[name]}; use 1 or more")
  if not arguments.workdir:
    raise ValueError("--workdir is empty; give for example --workdir=runs/evaluation")
  workdir = pathlib.Path(arguments.workdir).absolute()
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} is a file; name a directory")
  candidates: list[units.Candidate] = []
  if arguments.pool:
    for name in ("checkpoints", "prefixes", "suite", "sheets"):
      if getattr(arguments, name):
        raise ValueError(
          f"--{name} and --pool do not go together: what is pooled has been evaluated"
        )
  else:
    _check_suites(arguments)
    candidates = [
      dataclasses.replace(one, source=str(checkpoint.find(one.source)))
      for one in units.parse_candidates(arguments.checkpoints)
    ]
  return Request(
    candidates=units.with_prefixes(candidates, arguments.prefixes),
    suites=[name for name in units.SUITES if name in arguments.suite],
    config=config,
    workdir=workdir,
    pooled=[pathlib.Path(name).absolute() for name in arguments.pool],
    sheets=arguments.sheets,
  )


def _check_suites(arguments) -> None:
  if not arguments.suite:
    raise ValueError(
      f"--suite is missing; give some of {','.join(units.SUITES)}, separated by commas"
    )
  if arguments.sheets is not None and "preference" not in arguments.suite:
    raise ValueError(
      f"--sheets={arguments.sheets} needs the suite preference, whose completions "
      "are rated; add it to --suite"
    )


# ----------------------------------------------------------------------------- the run


class Failures:
  """What was not measured, a sentence each; the evaluation goes on with the rest."""

  def __init__(self):
    self.sentences: list[str] = []

  def __call__(self, what: str, error: Exception) -> None:
    self.sentences.append(f"{what}: {startup.sentence_of(error)}")
    print(f"  {self.sentences[-1]}", file=sys.stderr, flush=True)
    if os.environ.get("RLHF_TRACEBACK"):
      traceback.print_exception(error)


def run(request: Request) -> pathlib.Path:
  """Everything that was asked for; returns the page.

  Raises:
    ValueError: a setting is wrong, or at the end, something was not measured.
  """
  from rlhf import sharding
  from rlhf.evals import evaluation
  from rlhf.report import evaluation as page_lib

  groups, config = checked_groups(request), request.config
  failures = Failures()
  settings = evaluation.Settings(
    seed=config.seed,
    num_resamples=config.num_resamples,
    batch_size=config.batch_size,
    mesh=sharding.make_mesh(sharding.MeshConfig(**config.mesh)),
    workdir=request.workdir,
    on_failure=failures,
  )
  checkpoints = [evaluation.describe(candidate) for candidate in request.candidates]
  found = evaluation.run(
    request.candidates, groups, settings, wanted=request.suites, sheets=request.sheets
  )
  page = page_lib.write(
    request.workdir,
    title=config.title,
    checkpoints=checkpoints,
    measures=found.measures,
    compared=found.compared,
    notes=[*evaluation.notes(found, groups), *failures.sentences],
    bootstrap=settings.bootstrap,
  )
  print(f"report: {page}", flush=True)
  if failures.sentences:
    more = len(failures.sentences) - 1
    raise ValueError(
      f"{failures.sentences[0]}{f' (and {more} more)' if more else ''}; "
      "the page has what was measured"
    )
  return page


def checked_groups(request: Request) -> dict[str, Any]:
  """The configs of the suites asked for, and of others that have complete settings, so that what
  they measured earlier is on the page.

  Raises:
    ValueError: as the `check` of a suite that was asked for.
  """
  from rlhf.evals import evaluation
  from rlhf.evals.preference import comparison

  groups: dict[str, Any] = {}
  for name in evaluation.TASK_SUITES:
    try:
      groups[name] = evaluation.make_group(name, request.config[name])
    except (ValueError, ImportError):
      if name in request.suites:
        raise
  if "preference" in request.suites:
    names = [candidate.name for candidate in request.candidates]
    group = dict(request.config.preference)
    if request.sheets is not None:
      group["judges"] = (f"ratings:{request.sheets}",)  # people yet to be asked
    p = comparison.PreferenceConfig(**group)
    comparison.check(p, names, judged=request.sheets is None)
    groups["preference"] = p
  return groups


def pool(request: Request) -> pathlib.Path:
  """The preferences of several training seeds on one page; returns it."""
  from rlhf.evals import pooling
  from rlhf.report import evaluation as page_lib

  config = request.config
  checkpoints, compared = pooling.pool_evaluations(
    request.pooled, num_resamples=config.num_resamples, seed=config.seed
  )
  page = page_lib.write(
    request.workdir,
    title=config.title,
    checkpoints=checkpoints,
    measures={},
    compared=compared,
    notes=[
      f"{len(request.pooled)} training seeds: intervals resample seeds, and prompts within each."
    ],
  )
  print(f"report: {page}", flush=True)
  return page


@startup.command
def main(argv: list[str]) -> None:
  if any(re.match("-+samples(=|$)", argument) for argument in argv[1:]):
    from rlhf.cli import evaluate_samples

    evaluate_samples.main(argv)
    return
  request = read_request(argv)
  if request.pooled:
    pool(request)
  else:
    run(request)
