"""Runs the three steps, or PALMS, and writes the report.

  python -m launch.pipeline --config=configs/pipeline.py:tiny --workdir=runs/tiny
  python -m launch.pipeline --config=configs/palms.py:tiny --workdir=runs/palms

Run the same command again to go on after an interruption; a stage that is done is skipped.

  --shared=DIR        stages that come out equal are run once for all pipelines that name DIR
  --last_stage=NAME   ends after that stage (data, base, sft, init, comparisons, reward_model, ...),
                      without a report; not with PALMS

Several processes: as `launch.train`.
"""

import sys

from absl import app, flags
from ml_collections import config_flags

from rlhf import processes, stages
from rlhf import workdir as workdir_lib
from rlhf.cli import setup

_CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, with :ARGUMENT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_SHARED = flags.DEFINE_string("shared", None, "Directory of stages that several runs share.")
_LAST_STAGE = flags.DEFINE_string("last_stage", None, "The stage after which to end.")
setup.define_process_flags(flags.FLAGS)


def main(argv):
  del argv
  setup.quiet_logs()
  with setup.ends_at_once(), setup.one_sentence_errors():
    setup.join_processes()
    config, workdir = _CONFIG.value, _WORKDIR.value
    if _SHARED.value is not None and processes.count() > 1:
      raise ValueError(
        f"--shared={_SHARED.value}: stages are shared by pipelines of one process "
        "each; leave it out, or run one process"
      )
    if "tune" in config:
      run_palms(config, workdir)
    else:
      run_steps(config, workdir)


def run_steps(config, workdir: str) -> None:
  """The three steps of InstructGPT."""
  from rlhf import pipeline  # after the flags have been read: importing jax takes seconds

  last_stage = "evaluation" if _LAST_STAGE.value is None else _LAST_STAGE.value
  pipeline.check_config(config)
  stages.check_name(config, last_stage)
  if not workdir_lib.check(workdir, workdir_lib.config_to_dict(config)):
    pipeline.check_inputs(config)
  setup.claim(config, workdir)
  pipeline.run(config, workdir, last_stage=last_stage, shared=_SHARED.value)


def run_palms(config, workdir: str) -> None:
  """A set of values from positions to the report."""
  from rlhf.palms import process

  if _LAST_STAGE.value is not None:
    raise ValueError(f"--last_stage={_LAST_STAGE.value}: PALMS has no such stages; leave it out")
  process.check_config(config)
  setup.claim(config, workdir)
  process.run(config, workdir, shared=_SHARED.value)


def command(argv):
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, argv=argv, flags_parser=setup.parse_flags)


if __name__ == "__main__":
  command(sys.argv)
