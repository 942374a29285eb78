"""Measures reward models on labelers they were not trained on, by folds.

  rlhf folds --config=configs/reward_model.py:6b --workdir=runs/folds \\
      --config.init_from=runs/sft/export --config.comparisons.train=jsonl:ranked.jsonl \\
      --config.comparisons.demonstrations=jsonl:demos.jsonl --folds=5 --seeds=0,1,2

Labelers ("labeler" of each comparison) are dealt into groups of about equal data. For each group
and seed a reward model is trained on the other groups' comparisons, and tested on held-out
comparisons of their labelers and on those of the group. InstructGPT section 4.1: 72.4 ± 0.4 against
69.6 ± 0.9 per cent.

Run the same command again to resume: finished folds and seeds are skipped. --config.seed and
--config.comparisons.valid are filled in.

  WORKDIR/fold_F/data/{train,own,heldout}.jsonl   the comparisons
  WORKDIR/fold_F/seed_S/                          a run of `rlhf train reward_model`
  WORKDIR/folds.json                              the accuracies with their intervals
"""

import argparse
import pathlib

from rlhf import workdir as workdir_lib
from rlhf.cli.common import flags, models, startup
from rlhf.evals.reward_models import folds as folds_lib


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf folds", __doc__)
  parser.add_config("configs/reward_model.py:6b")
  parser.add_workdir("directory of all runs")
  parser.add_cache_dir()
  parser.add_profile()
  parser.flag("folds", "groups of labelers", flags.at_least(2), 5)
  parser.flag("seeds", "of each fold, joined by commas", flags.names, ["0", "1", "2"])
  parser.flag("test_fraction", "share of the prompts to test on", flags.share, 0.1)
  arguments = parser.parse(argv)
  if not all(seed.isdigit() for seed in arguments.seeds):
    parser.error(f"--seeds={','.join(arguments.seeds)}: give whole numbers from 0")
  return arguments


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  config = flags.load_config(arguments.config, arguments.overrides, "reward_model")
  from rlhf import loop, reward_model  # after the flags: importing jax takes seconds

  reward_model.check_config(config)
  if config.comparisons.valid:
    raise ValueError(
      f"--config.comparisons.valid={config.comparisons.valid}: the folds are what is tested on; "
      "leave it empty"
    )
  workdir = pathlib.Path(arguments.workdir)
  claimed = workdir_lib.plain(config) | dict(
    folds=arguments.folds, test_fraction=arguments.test_fraction
  )
  workdir_lib.check(workdir, claimed)
  folds = split(config, arguments)
  workdir_lib.prepare(workdir, claimed)
  for number, fold in enumerate(folds):
    for part in ("train", "own", "heldout"):
      workdir_lib.write_jsonl(data_file(workdir, number, part), getattr(fold, part))
  runs = {}
  for number, fold in enumerate(folds):
    for seed in map(int, arguments.seeds):
      print(
        f"\n== fold {number + 1} of {len(folds)} (held out: "
        f"{', '.join(fold.heldout_labelers)}), seed {seed}",
        flush=True,
      )
      with loop.profiled(arguments.profile):
        runs[number, seed] = run(config, workdir, number, seed, arguments.cache_dir)
  summary = folds_lib.summarise(runs, num_resamples=models.NUM_RESAMPLES, seed=0)
  workdir_lib.write_json(
    workdir / "folds.json", summary | dict(groups=[fold.heldout_labelers for fold in folds])
  )
  print(f"\n{folds_lib.describe(summary)}\n{workdir}/folds.json", flush=True)


def split(config, arguments: argparse.Namespace):
  """The folds; raises ValueError for every mistake that can be found before anything is written."""
  from rlhf import reward_model
  from rlhf.data import sources

  checked = config.copy_and_resolve_references().unlock()
  checked.comparisons.valid = checked.comparisons.train
  reward_model.check_inputs(checked)
  records = sources.load(
    config.comparisons.train,
    "comparison",
    cache_dir=arguments.cache_dir,
    on_bad=config.comparisons.on_bad,
  )
  return folds_lib.split(
    list(records), num_folds=arguments.folds, test_fraction=arguments.test_fraction, seed=0
  )


def data_file(workdir: pathlib.Path, number: int, part: str) -> pathlib.Path:
  return workdir / f"fold_{number}" / "data" / f"{part}.jsonl"


def run(config, workdir: pathlib.Path, number: int, seed: int, cache_dir: str | None):
  """Trains and tests one reward model; returns {test: what `folds.correct` returns}."""
  from rlhf import reward_model

  stage = workdir / f"fold_{number}" / f"seed_{seed}"
  config = config.copy_and_resolve_references().unlock()
  config.seed = seed
  config.comparisons.train = f"jsonl:{data_file(workdir, number, 'train')}"
  config.comparisons.valid = f"jsonl:{data_file(workdir, number, 'own')}"
  reward_model.train(config.lock(), stage, cache_dir=cache_dir)
  scores = stage / "heldout_scores.json"
  if not scores.is_file():
    workdir_lib.write_json(scores, score(config, stage, data_file(workdir, number, "heldout")))
  return {
    "own": folds_lib.correct(workdir_lib.read_json(stage / "validation_scores.json")),
    "heldout": folds_lib.correct(workdir_lib.read_json(scores)),
  }


def score(config, stage: pathlib.Path, path: pathlib.Path) -> dict[str, list]:
  """Scores, ranks and valid slots of the comparisons of a file."""
  from rlhf import networks, sharding
  from rlhf.data import prepare
  from rlhf.inference import rewards

  compute = networks.ComputeConfig(**config.compute)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh))
  network = networks.load(stage / "export", compute, mesh, kind="reward", flag="reward_model")
  rows, _ = prepare.comparison_rows(
    workdir_lib.read_jsonl(path),
    network.tokenizer,
    length=config.length,
    overlong=config.comparisons.overlong,
    prompt_format=prepare.PromptFormat.of(config.comparisons),
  )
  arrays = rewards.score_comparisons(
    network.cfg, network.params, rows, batch_size=config.reward.batch_size
  )
  return {name: array.tolist() for name, array in zip(("scores", "ranks", "valid"), arrays)}
