"""configs/palms.py: the numbers that its docstring names, at every size and on every topology."""

import pathlib

import pytest

from rlhf import sft, sharding
from rlhf.configs import meshes, models, palms
from rlhf.configs import sft as sft_configs
from rlhf.evals.suites import nlp
from rlhf.palms import cooccurrence, process, statistics

LAID_OUT = [f"{size},{topology}" for size in models.GPT3 for topology in meshes.SMALLEST[size]]


@pytest.mark.parametrize("argument", ["smollm2", "6b", *models.GPT3, *LAID_OUT])
def test_the_numbers_are_those_of_the_docstring_wherever_it_runs(argument: str):
  config = palms.get_config(argument)
  tune, (size, _, topology) = config.tune, argument.partition(",")
  p = sft.SftConfig(**tune.sft)
  assert (p.batch_size, p.num_epochs, p.max_steps) == (8, 4, None)
  assert (tune.demonstrations.packing, tune.demonstrations.prompt_loss_weight) == (
    "one_per_row",
    0.01,
  )
  if size != "smollm2":
    assert tune.optim.learning_rate == pytest.approx(
      sft_configs.PRETRAIN_LR[models.gpt3_name(size)] / 10
    )
  sampling = process.completion_config(config)
  assert (config.sampling.num_samples, sampling.temperature, sampling.top_p) == (3, 1.0, 0.9)
  statistics.StatisticsConfig(**config.statistics)
  cooccurrence.CooccurrenceConfig(**config.cooccurrence)
  nlp.NlpConfig(**config.capability)
  assert config.base.mesh == tune.mesh and config.is_locked
  if topology:
    meshes.check_config(tune, meshes.parse_topology(topology))
  elif size != "smollm2":  # whose shape is that of a file
    sft.check_config(
      process.tune_config(config, "given", 0, "base", pathlib.Path("values"), "targeted")
    )


@pytest.mark.parametrize("argument", ["tiny", "test"])
def test_tinyworld_passes_its_own_checks(argument: str, monkeypatch):
  monkeypatch.setattr(sharding, "check_rows", lambda *args: None)  # of one device; here are eight
  process.check_config(palms.get_config(argument))


@pytest.mark.parametrize(
  "argument, message",
  [
    ("huge", "size 'huge'; choose from tiny, test, smollm2, 125m"),
    ("1.3b,h200:1x8", "topology 'h200:1x8' has no known kind"),
  ],
)
def test_an_unknown_argument_is_one_sentence(argument, message):
  with pytest.raises(ValueError, match=message):
    palms.get_config(argument)


def test_a_base_model_and_a_rater_have_to_be_named(tmp_path):
  config = palms.get_config("125m").unlock()
  with pytest.raises(ValueError, match="config.base.source is empty; name the base model"):
    process.check_config(config)
  config.base.source = str(tmp_path)
  with pytest.raises(ValueError, match="config.base.source: .* holds no export.json"):
    process.check_config(config)
