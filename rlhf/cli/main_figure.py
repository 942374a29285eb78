"""Makes the paper's main figure in miniature: preferences over model sizes.

  rlhf main_figure --workdir=runs/model_size --jobs=2 --output=results/model_size

On TinyWorld, for three sizes and three seeds: runs the sweep `configs/sweeps/model_size.py`,
chooses a few-shot prefix for every base model by reward, lets base, few-shot base, SFT, PPO and
PPO-ptx of every size answer the test prompts, compares all of them with the largest SFT model by
training and held-out labelers, and pools the seeds (InstructGPT Fig. 1, 3, 4, 30 and 31).  The
smallest aligned models are compared with the largest base models as well.  Every part is run once:
the same command goes on after an interruption.

A base model of TinyWorld reads 128 tokens, so that its prefix has two short examples; prompts that
do not fit behind it are left out for all models, and the page says how many.
"""

import dataclasses
import itertools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from rlhf import workdir as workdir_lib
from rlhf.cli import sweep as launch_sweep
from rlhf.cli.common import flags, startup

CONFIGS = pathlib.Path(__file__).resolve().parent.parent / "configs"
SWEEP, EVAL = CONFIGS / "sweeps" / "model_size.py", CONFIGS / "eval.py"
BASES, ALIGNED = ("base", "few_shot"), ("ppo", "ppo_ptx")
METHODS = (*BASES, "sft", *ALIGNED)
SEPARATOR = ";"  # one token of this world
NUM_PREFIXES = 6  # tried for each base model; ours
BASE_TEMPERATURE = 0.7  # InstructGPT appendix F, as in the pipeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
  """What a trial of the sweep has made: one size of one seed."""

  size: str
  seed: int
  workdir: pathlib.Path

  def export(self, method: str) -> pathlib.Path:
    """Of one of METHODS; SFT's is the epoch that the reward model chose."""
    if method == "sft":
      epoch = workdir_lib.done_result(self.workdir / "selection")["epoch"]
      return self.workdir / "sft" / "epochs" / f"{epoch:02d}"
    return self.workdir / ("base" if method == "few_shot" else method) / "export"


def command(module: str, *flags: str) -> None:
  """Runs one of our commands; ends the program with its status where that fails."""
  status = subprocess.run([sys.executable, "-m", "rlhf", module, *flags], check=False).returncode
  if status:
    startup.fail(f"rlhf {module} ended with status {status}; the same command goes on", status)


def find_models(form: str, workdir: pathlib.Path) -> list[Models]:
  """All trials, smallest first within a seed."""
  sweep = launch_sweep.load_sweep(f"{SWEEP}:{form}")
  from rlhf.configs.sweeps import model_size

  sizes = model_size.SIZES if form == "tiny" else tuple(model_size.TEST)
  trials = launch_sweep.make_trials(sweep, (), workdir)  # seed by seed, in the order of the sizes
  return [
    Models(size=size, seed=trial.seed, workdir=trial.workdir)
    for size, trial in zip(itertools.cycle(sizes), trials)
  ]


def link(models: Models, directory: pathlib.Path) -> Models:
  """The same models by a path without the commas of a trial's name, which part a flag's values."""
  path = directory / "models" / f"{models.size}-seed{models.seed}"
  path.parent.mkdir(parents=True, exist_ok=True)
  if not path.exists():
    path.unlink(missing_ok=True)  # a link whose target was deleted
    path.symlink_to(os.path.relpath(models.workdir, path.parent))
  return dataclasses.replace(models, workdir=path)


def choose_prefix(models: Models, directory: pathlib.Path, config) -> pathlib.Path:
  """The few-shot prefix of a base model."""
  output = directory / f"prefix-{models.size}-seed{models.seed}"
  if not (output / "selection.json").is_file():
    command(
      "few_shot_prefix",
      f"--checkpoint={models.export('base')}",
      f"--reward_model={models.workdir / 'reward_model'}",
      f"--prompts=jsonl:{models.workdir / 'data' / 'prompts_ppo_valid.jsonl'}",
      f"--demonstrations=jsonl:{models.workdir / 'data' / 'demonstrations_train.jsonl'}",
      f"--output={output}",
      f"--num_prefixes={NUM_PREFIXES}",
      "--num_shots=2",
      f"--separator={SEPARATOR}",
      f"--max_prefix_tokens={config.base.model.context_length // 2}",
      "--on_bad=skip",
      f"--max_response_tokens={config.ppo.ppo.max_response_tokens}",
      f"--temperature={BASE_TEMPERATURE}",
      f"--seed={models.seed}",
    )
  return output / "best.txt"


def evaluate(found: Sequence[Models], directory: pathlib.Path, config) -> pathlib.Path:
  """All models of one seed, compared with the largest SFT model."""
  seed, smallest, largest = found[0].seed, found[0].size, found[-1].size
  output = directory / f"evaluation-seed{seed}"
  exports = [f"{method}@{m.size}={m.export(method)}" for m in found for method in METHODS]
  prefixes = [f"few_shot@{m.size}={choose_prefix(m, directory, config)}" for m in found]
  temperatures = [f"{method}@{m.size}={BASE_TEMPERATURE}" for m in found for method in BASES]
  pairs = [f"{small}@{smallest}:{large}@{largest}" for small in ALIGNED for large in BASES]
  # The test size has other labelers' worlds and lengths than `tiny`: both come from the config.
  p = config.ppo.ppo
  command(
    "evaluate",
    f"--config={EVAL}:tinyworld",
    f"--checkpoints={','.join(exports)}",
    f"--prefixes={','.join(prefixes)}",
    "--suite=preference",
    f"--workdir={output}",
    f"--config.preference.data=jsonl:{found[0].workdir / 'data' / 'prompts_test.jsonl'}",
    f"--config.preference.baseline=sft@{largest}",
    f"--config.preference.pairs={tuple(pairs)!r}",
    f"--config.preference.temperatures={tuple(temperatures)!r}",
    f"--config.preference.max_prompt_tokens={p.max_prompt_tokens}",
    f"--config.preference.max_response_tokens={p.max_response_tokens}",
    f"--config.preference.world.seed={seed}",
    f"--config.seed={seed}",
  )
  return output


@startup.command
def main(argv: list[str]) -> None:
  parser = flags.Parser("rlhf main_figure", __doc__)
  parser.add_workdir("directory of the sweep and all that follows")
  parser.flag("form", "size of the sweep", choices=("tiny", "test"), default="tiny")
  parser.flag("jobs", "trials at once", flags.at_least(1), 1)
  parser.flag("output", "directory to copy the page and the numbers to", flags.directory)
  arguments = parser.parse(argv)
  workdir = pathlib.Path(arguments.workdir).absolute()
  found = find_models(arguments.form, workdir)
  spec, directory = f"{SWEEP}:{arguments.form}", workdir / "main_figure"
  sweep = launch_sweep.load_sweep(spec)
  config = flags.load_config(sweep.config, (), sweep.command)
  command("sweep", spec, "--local", f"--jobs={arguments.jobs}", f"--workdir={workdir}")
  linked = [link(models, directory) for models in found]
  evaluations = [
    evaluate([models for models in linked if models.seed == seed], directory, config)
    for seed in sweep.seeds
  ]
  pooled = directory / "pooled"
  command(
    "evaluate",
    f"--pool={','.join(map(str, evaluations))}",
    f"--workdir={pooled}",
    "--config.title=Preferred to the largest SFT model, over the size of the policy",
  )
  if arguments.output is not None:
    output = pathlib.Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    for file in ("evaluation.html", "evaluation.json"):
      shutil.copy(pooled / "report" / file, output / file)
    print(f"copied to {output}", flush=True)
