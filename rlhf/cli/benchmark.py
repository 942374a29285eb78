"""Measures the speed and memory of a case on this machine.

  rlhf benchmark --case=generate --config=configs/ppo.py:125m --config.ppo.batch_size=8 \\
      --config.ppo.minibatch_size=8 --config.ppo.microbatch_size=8 --json=generate.json

generate        sampling of a batch of prompts; a config of configs/ppo.py
score           a reward model on completions; configs/reward_model.py
sft_step        one optimizer step on full rows of text; configs/sft.py
rm_step         one optimizer step on ranked completions; configs/reward_model.py
ppo_iteration   rollout, scores, advantages and all optimizer steps; configs/ppo.py
data            reads, tokenises and packs config.demonstrations.train, or --rows made-up lines: in
                memory, with a new cache, and from that cache; configs/sft.py
checkpoint      saves and restores a run's state where temporary files go (TMPDIR); any of the three
startup         new programs: `import rlhf.ppo`, `rlhf --help`, and the first step with an empty and
                with a filled compilation cache; any of the three

The config gives the architecture and the sizes; weights are random, from a seed. The case runs in a
process of its own, twice to warm up (to compile), then --pairs times. Numbers are medians with
their range over these:

seconds         of one run; own CPU seconds are the user and system time of the process and all its
                threads, which other programs on the machine hardly change
tokens/s        tokens of the rows, padding included; of generate, those that were sampled, and of
                ppo_iteration, those of prompts and responses
useful tokens   of these, the ones that are no padding and do not follow a response's end
phases          rollout, score, update, ptx (what the update takes longer with pretraining text) and
                host, the rest. Those of ppo_iteration but for host come from programs that hold one
                phase each, since its two programs do not tell them apart
FLOP/s          model FLOPs: a forward pass takes 2 per parameter outside the embeddings and token,
                4 x heads x head size per layer and (query, key) that attends (causal attention is
                counted half), 2 x width x vocabulary per token with logits; a backward pass takes
                twice that, and what is computed a second time is not counted
shares          of what a float32 matmul and a copy (bytes read and written) reach in the same run;
                of the copy for generate, which reads all weights and the cache at each step
peak memory     of the process on the host, and of the device where it counts

--against=transformers does the same work (same weights, inputs, shapes and sampled lengths) through
`transformers` in float32, in a process of its own with as many threads as there are cores, and the
two alternate. --against=trl runs ppo_iteration through TRL's PPO trainer, with the same batch,
minibatch and lengths, and --config.ppo.ptx_coef=0. Of several ways to run it the fastest is the peer of the report. Ratios are our
seconds divided by the peer's, pair by pair. Both need pip install 'rlhf-jax[peers]', and
--config.model.band_width=None --config.compute.dtype=float32: an architecture that GPT-2 can express.

--end_share=0.01 lets a hundredth of the vocabulary end a response; responses of random weights
otherwise have full length.
"""

import argparse
import functools
import pathlib

from rlhf import extras
from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, startup

GPT2_VOCABULARY = 50_257


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  from rlhf.benchmark import job

  parser = flags.Parser("rlhf benchmark", __doc__)
  parser.flag("case", "what is measured", choices=tuple(job.CASES), required=True)
  parser.add_config("configs/ppo.py:125m")
  parser.flag("against", "what is measured beside it", choices=tuple(job.PEERS))
  parser.flag("pairs", "measured runs of each side", flags.at_least(1), 7)
  parser.flag("vocab_size", "tokens; GPT-2's if not given", flags.at_least(16), GPT2_VOCABULARY)
  parser.flag("completions", "of a prompt, in score and rm_step", flags.at_least(2), 4)
  parser.flag("rows", "made-up lines of the case data", flags.at_least(1), 10_000)
  parser.flag("end_share", "share of the vocabulary that ends a response of generate", share, 0.0)
  parser.flag("seed", "of weights, inputs and sampling", flags.at_least(0), 0)
  parser.flag("json", "file for the same numbers as JSON")
  return parser.parse(argv)


def share(text: str) -> float:
  """A flag's type: a number from 0, below 1."""
  if not 0.0 <= float(text) < 1.0:
    raise argparse.ArgumentTypeError(f"{text} must be 0 or above, and below 1")
  return float(text)


def check_peer(against: str, case: str, config) -> None:
  """What keeps a case from being compared, before anything is compiled.

  Raises:
    ValueError: a package is missing, the peer has no such case, or cannot run the architecture.
  """
  from rlhf.benchmark.job import PEERS

  if case not in PEERS[against]:
    raise ValueError(
      f"--against={against} has no counterpart of --case={case}; it runs {', '.join(PEERS[against])}"
    )
  for module in ("torch", "transformers", against):
    extras.require(module, "peers", f"--against={against}")
  if config.compute.dtype != "float32":
    raise ValueError(
      f"--against={against} runs in float32, but config.compute.dtype is {config.compute.dtype}; "
      "add --config.compute.dtype=float32"
    )
  if against == "trl" and config.ppo.ptx_coef:
    raise ValueError(
      f"--against=trl has no pretraining text, but config.ppo.ptx_coef is {config.ppo.ptx_coef}; "
      "add --config.ppo.ptx_coef=0"
    )
  if against == "trl" and config.ppo.value_network != "separate":
    raise ValueError(
      "--against=trl has a value network of its own, but config.ppo.value_network is "
      f"{config.ppo.value_network!r}; use 'separate'"
    )
  from rlhf import networks
  from rlhf.interop import writing

  cfg = networks.configured(config)
  try:
    writing.choose_family({}, None).config(cfg)
  except ValueError as error:
    hint = "change config.model" if cfg.band_width is None else "add --config.model.band_width=None"
    problem = str(error).partition(";")[0]
    raise ValueError(f"--against={against}: {problem}; {hint}") from None


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
  if arguments.against is not None:
    check_peer(arguments.against, arguments.case, config)
  job = Job(
    case=arguments.case,
    config=workdir_lib.plain(config),
    vocab_size=arguments.vocab_size,
    end_share=arguments.end_share,
    completions=arguments.completions,
    rows=arguments.rows,
    seed=arguments.seed,
  )
  note = functools.partial(print, flush=True)
  found = drive.run(job, against=arguments.against, pairs=arguments.pairs, note=note)
  print(f"\n{report.describe(found)}", flush=True)
  if arguments.json:
    workdir_lib.write_json(arguments.json, found)
