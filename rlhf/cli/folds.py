"""Reward-model accuracy on labelers that were not trained on: folds over groups of labelers.

  python -m launch.folds --config=configs/reward_model.py:6b --workdir=runs/folds \\
      --config.init_from=runs/sft/export --config.comparisons.train=jsonl:ranked.jsonl \\
      --config.comparisons.demonstrations=jsonl:demos.jsonl --folds=5 --seeds=0,1,2

Labelers ("labeler" of each comparison) are dealt into groups of about equal data.  For each group
and seed a reward model is trained on the other groups' comparisons, and tested on comparisons of
their labelers that were left out, and on those of the group.  InstructGPT section 4.1: 72.4 ± 0.4
against 69.6 ± 0.9 per cent.

Run the same command again to go on: one directory per fold and seed, those that are done are
skipped.

  WORKDIR/fold_F/data/{train,own,heldout}.jsonl   the comparisons
  WORKDIR/fold_F/seed_S/                          a run of launch.train reward_model
  WORKDIR/folds.json                              the accuracies with their intervals

--config.seed and --config.comparisons.valid are filled in.  --test_fraction: of the prompts, left
out for testing.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from rlhf import workdir as workdir_lib
from rlhf.cli import setup

NUM_RESAMPLES = 2000


def parse(argv: list[str]) -> tuple[object, flags.FlagValues]:
  """(config, the other flags); ends the program with one sentence where one is wrong."""
  if {"--help", "-h", "--helpfull"} & set(argv):
    print(__doc__)
    sys.exit(0)
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
  flags.DEFINE_string("workdir", None, "Directory of all runs.", flag_values=values)
  flags.DEFINE_integer("folds", 5, "Groups of labelers.", flag_values=values)
  flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of each fold.", flag_values=values)
  flags.DEFINE_float("test_fraction", 0.1, "Of the prompts, for testing.", flag_values=values)
  rest = setup.parse_flags(argv, values)[1:]
  if rest:
    setup.fail(f"launch.folds was given {rest[0]!r}; it takes flags alone")
  for name, example in (("config", "configs/reward_model.py:6b"), ("workdir", "runs/folds")):
    if not values[name].value:
      setup.fail(f"--{name} is missing; give for example --{name}={example}")
  for seed in values.seeds:
    if not seed.isdigit() or values.seeds.count(seed) > 1:
      setup.fail(f"--seeds={','.join(values.seeds)}: give whole numbers from 0, each once")
  if not values.seeds:
    setup.fail("--seeds is empty; give for example --seeds=0,1,2")
  return config.value, values


def main(argv: list[str]) -> None:
  setup.quiet_logs()
  with setup.one_sentence_errors():
    config, values = parse(list(argv))
    from rlhf import reward_model  # after the flags: importing jax takes seconds
    from rlhf.evals.reward_models import folds as folds_lib

    reward_model.check_config(config)
    if config.comparisons.valid:
      raise ValueError(
        f"--config.comparisons.valid={config.comparisons.valid}: the folds say what "
        "is tested on; leave it empty"
      )
    workdir, seeds = pathlib.Path(values.workdir), [int(seed) for seed in values.seeds]
    claimed = workdir_lib.config_to_dict(config) | dict(
      folds=values.folds, test_fraction=values.test_fraction
    )
    workdir_lib.check(workdir, claimed)
    folds = split(config, workdir, values)
    workdir_lib.prepare(workdir, claimed, workdir_lib.default_command())
    write_data(workdir, folds)
    runs = {}
    for number, fold in enumerate(folds):
      for seed in seeds:
        print(
          f"\n== fold {number + 1} of {len(folds)} (held out: "
          f"{', '.join(fold.heldout_labelers)}), seed {seed}",
          flush=True,
        )
        runs[number, seed] = run(config, workdir, number, seed)
    summary = folds_lib.summarise(runs, num_resamples=NUM_RESAMPLES, seed=0)
    workdir_lib.write_json(
      workdir / "folds.json", summary | dict(groups=[fold.heldout_labelers for fold in folds])
    )
    print(f"\n{folds_lib.describe(summary)}\n{workdir}/folds.json", flush=True)


def split(config, workdir: pathlib.Path, values: flags.FlagValues):
  """The folds; everything that can be found wrong is, before anything is written."""
  from rlhf import reward_model
  from rlhf.data import sources
  from rlhf.evals.reward_models import folds as folds_lib

  checked = config.copy_and_resolve_references().unlock()
  checked.comparisons.valid = checked.comparisons.train
  reward_model.check_inputs(checked)
  records = list(
    sources.load(
      config.comparisons.train,
      "comparison",
      cache_dir=None,
      on_bad=config.comparisons.on_bad,
    )
  )
  return folds_lib.split(
    records, num_folds=values.folds, test_fraction=values.test_fraction, seed=0
  )


def write_data(workdir: pathlib.Path, folds) -> None:
  """The comparisons of each fold, which come out the same whenever this is run."""
  from rlhf.cli import jsonl

  for number, fold in enumerate(folds):
    for part in ("train", "own", "heldout"):
      jsonl.write(data_file(workdir, number, part), getattr(fold, part))


def data_file(workdir: pathlib.Path, number: int, part: str) -> pathlib.Path:
  return workdir / f"fold_{number}" / "data" / f"{part}.jsonl"


def run(config, workdir: pathlib.Path, number: int, seed: int):
  """Trains and tests one reward model; returns {test: what `folds.correct` returns}."""
  from rlhf import reward_model
  from rlhf.evals.reward_models import folds as folds_lib

  stage = workdir / f"fold_{number}" / f"seed_{seed}"
  config = config.copy_and_resolve_references().unlock()
  config.seed = seed
  config.comparisons.train = f"jsonl:{data_file(workdir, number, 'train')}"
  config.comparisons.valid = f"jsonl:{data_file(workdir, number, 'own')}"
  reward_model.train(config.lock(), stage, cache_dir=None)
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


if __name__ == "__main__":
  main(sys.argv)
