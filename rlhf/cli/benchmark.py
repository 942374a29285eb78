"""Measures the speed and memory of a case on this machine.

  rlhf benchmark --case=generate --config=configs/ppo.py:125m --config.ppo.batch_size=8 \\
      --config.ppo.minibatch_size=8 --config.ppo.microbatch_size=8 --json=generate.json

generate        `sampling.generate` on a batch of prompts; a config of configs/ppo.py

The config gives the architecture and the sizes; weights are random, from a seed. The case runs in a
process of its own, twice to warm up (to compile), then --pairs times. Numbers are medians with
their range:

seconds         of one run; own CPU seconds are the user and system time of the process and all its
                threads, which other programs on the machine hardly change
tokens/s        tokens that were computed, padding included; of generate, those that were sampled
useful tokens   of these, the ones that are no padding and do not follow a response's end
FLOP/s          model FLOPs: a forward pass takes 2 per parameter outside the embeddings and token,
                4 x heads x head size per layer and (query, key) that attends (causal attention is
                counted half), 2 x width x vocabulary per token with logits; a backward pass takes
                twice that, and what is computed a second time is not counted
shares          of what a float32 matmul and a copy (bytes read and written) reach in the same run;
                of the copy for generate, which reads all weights and the cache at each step
peak memory     of the process on the host, and of the device where it counts

--end_share=0.01 lets a hundredth of the vocabulary end a response; responses of random weights
otherwise have full length.
"""

import argparse
import functools
import pathlib

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, startup

GPT2_VOCABULARY = 50_257


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  from rlhf.benchmark import job

  parser = flags.Parser("rlhf benchmark", __doc__)
  parser.flag("case", "what is measured", choices=tuple(job.CASES), required=True)
  parser.add_config("configs/ppo.py:125m")
  parser.flag("pairs", "measured runs", flags.at_least(1), 7)
  parser.flag("vocab_size", "tokens; GPT-2's if not given", flags.at_least(16), GPT2_VOCABULARY)
  parser.flag("end_share", "share of the vocabulary that ends a response", share, 0.0)
  parser.flag("seed", "of weights, inputs and sampling", flags.at_least(0), 0)
  parser.flag("json", "file for the same numbers as JSON")
  return parser.parse(argv)


def share(text: str) -> float:
  """A flag's type: a number from 0, below 1."""
  if not 0.0 <= float(text) < 1.0:
    raise argparse.ArgumentTypeError(f"{text} must be 0 or above, and below 1")
  return float(text)


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  from rlhf.benchmark import drive, report
  from rlhf.benchmark.job import CASES, Job

  config = flags.load_config(arguments.config, arguments.overrides, *CASES[arguments.case])
  if arguments.json and not pathlib.Path(arguments.json).absolute().parent.is_dir():
    raise ValueError(
      f"--json={arguments.json}: there is no folder {pathlib.Path(arguments.json).parent}; make it "
      "first"
    )
  job = Job(
    case=arguments.case,
    config=workdir_lib.plain(config),
    vocab_size=arguments.vocab_size,
    end_share=arguments.end_share,
    seed=arguments.seed,
  )
  found = drive.run(job, pairs=arguments.pairs, note=functools.partial(print, flush=True))
  print(f"\n{report.describe(found)}", flush=True)
  if arguments.json:
    workdir_lib.write_json(arguments.json, found)
