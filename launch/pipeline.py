"""Runs the three steps and writes the report.

  python -m launch.pipeline --config=configs/pipeline.py:tiny --workdir=runs/tiny

Run the same command again to go on after an interruption; a stage that is done is skipped.

  --shared=DIR        stages that come out equal are run once for all pipelines that name DIR
  --last_stage=NAME   ends after that stage (data, base, sft, init, comparisons, reward_model, ...),
                      without a report

Several processes: as `launch.train`.
"""

from absl import app
from absl import flags
from ml_collections import config_flags

from launch import setup
from rlhf import processes
from rlhf import stages
from rlhf import workdir as workdir_lib

_CONFIG = config_flags.DEFINE_config_file("config", None, "Path of a config file, with :ARGUMENT.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_SHARED = flags.DEFINE_string("shared", None, "Directory of stages that several runs share.")
_LAST_STAGE = flags.DEFINE_string("last_stage", "evaluation", "The stage after which to end.")
setup.define_process_flags(flags.FLAGS)


def main(argv):
  del argv
  setup.quiet_logs()
  with setup.ends_at_once(), setup.one_sentence_errors():
    setup.join_processes()
    from rlhf import pipeline  # after the flags have been read: importing jax takes seconds
    config, workdir = _CONFIG.value, _WORKDIR.value
    if _SHARED.value is not None and processes.count() > 1:
      raise ValueError(f"--shared={_SHARED.value}: stages are shared by pipelines of one process "
                       "each; leave it out, or run one process")
    pipeline.check_config(config)
    stages.check_name(config, _LAST_STAGE.value)
    if not workdir_lib.check(workdir, workdir_lib.config_to_dict(config)):
      pipeline.check_inputs(config)
    setup.claim(config, workdir)
    pipeline.run(config, workdir, last_stage=_LAST_STAGE.value, shared=_SHARED.value)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=setup.parse_flags)
