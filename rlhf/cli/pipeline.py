"""Runs InstructGPT's three steps, or PALMS, and writes the report.

  rlhf pipeline --config=configs/pipeline.py:tiny --workdir=runs/tiny
  rlhf pipeline --config=configs/palms.py:tiny --workdir=runs/palms

Run the same command again to resume after an interruption; finished stages are skipped. Several
processes are started as for `rlhf train`.
"""

import argparse

from rlhf import processes, stages
from rlhf.cli.common import flags, join, startup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf pipeline", __doc__)
  parser.add_config("configs/pipeline.py:tiny")
  parser.add_workdir()
  parser.add_cache_dir()
  parser.add_profile()
  parser.flag("shared", "directory of stages that several runs share", flags.directory)
  parser.flag("last_stage", "stop after this stage (data, base, sft, ...), without a report")
  join.add_flags(parser)
  return parser.parse(argv)


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  config = flags.load_config(arguments.config, arguments.overrides, "pipeline", "palms")
  join.join(arguments)
  if arguments.shared is not None and processes.count() > 1:
    raise ValueError(
      f"--shared={arguments.shared}: only runs of one process each can share stages; leave it out, "
      "or run one process"
    )
  if config.kind == "palms":
    if arguments.last_stage is not None:
      raise ValueError(
        f"--last_stage={arguments.last_stage}: PALMS has no such stages; leave it out"
      )
    from rlhf import loop
    from rlhf.palms import process

    process.check_config(config)
    startup.claim(config, arguments.workdir)
    with loop.profiled(arguments.profile):
      process.run(config, arguments.workdir, shared=arguments.shared, cache_dir=arguments.cache_dir)
    return
  from rlhf import loop, pipeline  # after the flags: importing jax takes seconds

  last_stage = "evaluation" if arguments.last_stage is None else arguments.last_stage
  stages.check_workdir(arguments.workdir)
  pipeline.check_config(config)
  stages.check_name(config, last_stage)
  startup.claim(config, arguments.workdir, pipeline.check_inputs)
  with loop.profiled(arguments.profile):
    pipeline.run(
      config,
      arguments.workdir,
      last_stage=last_stage,
      shared=arguments.shared,
      cache_dir=arguments.cache_dir,
    )
