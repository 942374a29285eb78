"""PALMS from positions to the report: what is refused, what is computed, and the whole run."""

import dataclasses
import json
import os
import pathlib
import shutil
import types

import commands
import numpy as np
import pytest

from rlhf import stages
from rlhf import workdir as workdir_lib
from rlhf.cli import palms as launch_palms
from rlhf.configs import common, models
from rlhf.configs import palms as palms_configs
from rlhf.configs import pipeline as pipeline_configs
from rlhf.configs.sweeps import model_size
from rlhf.inference import likelihood
from rlhf.model.compute import ComputeConfig
from rlhf.palms import process, raters, sets, statistics, tinyworld
from rlhf.report import palms
from rlhf.tinyworld import world as world_lib
from rlhf.workdir import read_jsonl

RATERS = dict(source="hf:nowhere", prompt="", dtype="float32", batch_size=4, endpoint={})


def changed(name: str, **changes):
  config = palms_configs.get_config(name).unlock()
  for path, value in changes.items():
    *groups, field = path.split("__")
    target = config
    for group in groups:
      target = target[group]
    target[field] = value
  return config.lock()


# ----------------------------------------------------------------------------- checks


@pytest.mark.parametrize("name", ["tiny", "test"])
def test_the_configs_of_tinyworld_pass_their_checks(name):
  process.check_config(palms_configs.get_config(name))


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(seeds=(0, 0)), r"config.seeds \[0, 0\]; give one or more, each once"),
    (dict(value_set="my_values"), "models of TinyWorld know only the world's own words"),
    (dict(sampling__top_p=0.0), "sampling: top_p is 0.0; use a number above 0"),
    (dict(sampling__num_samples=0), "sampling.num_samples is 0; use 1 or more"),
    (dict(statistics__alpha=2.0), "statistics.alpha 2.0"),
    (dict(world_raters__num_raters=0), "num_raters is 0; use 1 or more"),
    (dict(tune__sft__batch_size=3), "sft.batch_size 3"),
  ],
)
def test_what_a_config_shows_to_be_wrong_is_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    process.check_config(changed("test", **changes))


def test_the_world_takes_one_process(monkeypatch):
  monkeypatch.setattr(process.processes, "count", lambda: 2)
  with pytest.raises(ValueError, match="2 processes; PALMS on TinyWorld runs in one"):
    process.check_config(palms_configs.get_config("test"))


def test_a_base_model_must_be_named():
  with pytest.raises(ValueError, match="config.base.source is empty; name the base model"):
    process.check_config(palms_configs.get_config("1.3b"))


def test_every_size_fine_tunes_from_the_base_of_its_shape():
  config = palms_configs.get_config("tiny")
  for size in config.sizes:
    made = process.pipeline_config(config, size, 3)
    tuned = process.tune_config(config, size, 3, "base", sets.SHIPPED, "control")
    assert made.seed == tuned.seed == 3
    assert tuned.demonstrations.train == f"jsonl:{sets.SHIPPED}/control.jsonl"
    for field in ("num_layers", "width", "num_heads", "context_length"):
      assert made.base.model[field] == tuned.model[field]


def test_the_bases_are_those_of_the_sweep_over_sizes():
  """So `--shared` of the sweep's directory makes none of the three sizes again."""
  config = palms_configs.get_config("tiny")
  for size in model_size.SIZES:
    own = stages.fingerprints(process.pipeline_config(config, size, 1))
    sweep = pipeline_configs.get_config("sized").unlock()
    sweep.seed = 1
    for path, value in model_size.shape_trial(models.WORLD_SHAPES[size]).items():
      sweep.update_from_flattened_dict({path: value})
    assert {name: own[name] for name in ("data", "base")} == {
      name: stages.fingerprints(sweep)[name] for name in ("data", "base")
    }


# ----------------------------------------------------------------------------- a network as rater


def test_a_rating_is_an_expectation_over_the_five():
  logprob_NK = np.log([[0.2, 0.2, 0.2, 0.2, 0.2], [0.0 + 1e-300, 1e-300, 1e-300, 1e-300, 0.5]])
  assert raters.expected_ratings(logprob_NK) == pytest.approx([3.0, 5.0])
  assert raters.expected_ratings(logprob_NK - 700) == pytest.approx([3.0, 5.0])


@pytest.mark.parametrize(
  "changes, sentence",
  [
    (dict(source=""), "raters.source is ''; name who rates"),
    (dict(source="reward:"), "raters.source is 'reward:'; name who rates"),
    (dict(source="endpoint", endpoint=common.get_endpoint()), "endpoint.model is empty"),
    (dict(prompt="{question} {answer}"), "raters.prompt has no {position}"),
    (dict(batch_size=0), "raters.batch_size is 0; use 1 or more"),
  ],
)
def test_a_rater_without_what_it_needs(changes, sentence):
  with pytest.raises(ValueError, match=sentence):
    raters.RatersConfig(**RATERS | changes)


def test_a_judge_is_checked_by_answers_to_other_questions(monkeypatch, tmp_path):
  """A rater that sees whether question and answer belong together prefers every written answer."""
  values = sets.load(sets.SHIPPED)
  written = {(sample.prompt, sample.completion.strip()) for sample in values.targeted}
  asked = []

  def logprobs(network, pairs, *, batch_size, progress):
    contexts = [context for context, _ in pairs[::5]]
    asked.extend(contexts)
    assert [choice for _, choice in pairs[:5]] == [" 1", " 2", " 3", " 4", " 5"]
    fits = [
      any(
        f"Question: {prompt}\n" in context and f"Answer: {answer}\n" in context
        for prompt, answer in written
      )
      for context in contexts
    ]
    return np.log(
      [[0.1, 0.1, 0.1, 0.1, 0.6] if fit else [0.6, 0.1, 0.1, 0.1, 0.1] for fit in fits]
    ).reshape(-1)

  monkeypatch.setattr(likelihood, "logprobs", logprobs)
  found = types.SimpleNamespace(compute=ComputeConfig())
  monkeypatch.setattr(raters.networks, "find_export", lambda *a, **k: found)
  monkeypatch.setattr(raters.networks, "load", lambda *a, **k: None)
  found = raters.check_judge(raters.RatersConfig(**RATERS), values, tmp_path)
  assert found["num"] == 52 and len(asked) == 104 and len(set(asked)) == 104
  assert found["preferred"]["mean"] == 1.0
  assert found["written"] > found["swapped"]
  assert all("{" not in context for context in asked)


def test_a_judge_of_one_category_is_checked_within_it(monkeypatch, tmp_path):
  values = sets.load(sets.SHIPPED)
  name = values.categories[0].name
  one = dataclasses.replace(
    values,
    categories=values.categories[:1],
    targeted=tuple(sample for sample in values.targeted if sample.category == name),
  )
  written = {(sample.prompt, sample.completion) for sample in one.targeted}
  monkeypatch.setattr(
    raters,
    "rate",
    lambda p, asked, directory: [
      {"r": 5.0 if (prompt, answer) in written else 1.0} for _, prompt, answer in asked
    ],
  )
  p = raters.RatersConfig(**RATERS)
  found = raters.check_judge(p, one, tmp_path)
  assert (found["preferred"]["mean"], found["swapped"]) == (1.0, 1.0)
  alone = dataclasses.replace(one, targeted=one.targeted[:1])
  assert raters.check_judge(p, alone, tmp_path) is None


# ----------------------------------------------------------------------------- comparisons


SETTINGS = dict(num_resamples=200, seed=0, confidence=0.95)


@pytest.mark.parametrize("crossed", [True, False])
def test_differences_are_paired_by_item_and_seed(crossed):
  values = {
    ("base", 10, 0): [0.0, 0.5],
    ("targeted", 10, 0): [1.0, 1.5],
    ("targeted", 10, 1): [2.0, 2.5],
    ("control", 10, 0): [0.0, 0.5],
    ("control", 10, 1): [0.0, 0.5],
  }
  found = palms.compare(values, crossed=crossed, **SETTINGS)
  mean = {(row["kind"], row["size"]): row["mean"] for row in found["means"]}
  assert mean == {("base", 10): 0.25, ("targeted", 10): 1.75, ("control", 10): 0.25}
  by = {(row["first"], row["second"]): row for row in found["differences"]}
  assert by["targeted", "base"]["mean"] == 1.5  # the one base stands beside both seeds
  assert by["control", "base"]["low"] == by["control", "base"]["high"] == 0.0


def test_completions_go_to_their_probes():
  lines = [
    dict(kind="base", size=10, seed=seed, probe=probe, toxicity=score)
    for seed, probe, score in ((0, 1, 0.3), (0, 0, 0.1), (0, 1, 0.5), (1, 0, 0.2))
  ]
  found = palms.by_probe(lines, "toxicity")
  assert found == {("base", 10, 0): [0.1, 0.4], ("base", 10, 1): [0.2]}


# ----------------------------------------------------------------------------- what a run began with


@pytest.fixture
def own(tmp_path) -> pathlib.Path:
  """A set of one's own: that of this project, copied."""
  return shutil.copytree(sets.SHIPPED, tmp_path / "own")


def config_of(directory: pathlib.Path):
  config = palms_configs.get_config("smollm2").unlock()
  config.value_set = str(directory)
  return config


def test_values_that_were_changed_need_a_run_of_their_own(own, tmp_path):
  config, workdir = config_of(own), tmp_path / "run"
  values, directory = process.make_values(config, workdir, 0)
  assert sets.load(directory).probes[3].prompt == values.probes[3].prompt
  (directory / sets.CONTROL).unlink()  # as if it had been stopped while it wrote
  process.make_values(config, workdir, 1)
  assert len(sets.load(directory).control) == 80
  lines = (own / sets.PROBES).read_text(encoding="utf-8").replace("?", " ?", 1)
  (own / sets.PROBES).write_text(lines, encoding="utf-8")
  with pytest.raises(
    ValueError, match="probes.jsonl of .*own differs from what this run began with"
  ):
    process.make_values(config, workdir, 0)
  process.make_values(config, tmp_path / "other", 0)


def test_a_base_or_a_rater_that_was_replaced_needs_a_run_of_its_own(tmp_path):
  config = palms_configs.get_config("smollm2").unlock()
  for name in ("base", "raters"):
    file = tmp_path / f"{name}.gguf"
    file.write_bytes(b"weights")
    config[name].source = f"gguf:{file}"
  process.hold_sources(config, tmp_path / "run")
  process.hold_sources(config, tmp_path / "run")
  os.utime(tmp_path / "raters.gguf", ns=(1, 1))
  with pytest.raises(
    ValueError, match="config.raters.source=gguf:.*raters.gguf was written after this run"
  ):
    process.hold_sources(config, tmp_path / "run")
  process.hold_sources(config, tmp_path / "other")


def test_the_world_of_each_seed_has_its_control_samples(tmp_path):
  config = palms_configs.get_config("test")
  directories = [process.make_values(config, tmp_path, seed)[1] for seed in (0, 1, 0)]
  texts = [(directory / sets.CONTROL).read_text(encoding="utf-8") for directory in directories]
  assert texts[0] == texts[2] != texts[1]


def test_a_set_without_control_samples_is_refused(own):
  (own / sets.CONTROL).unlink()
  with pytest.raises(ValueError, match="own has no control.jsonl to train control models on"):
    process.check_config(config_of(own))


@pytest.mark.parametrize(
  "tasks, sentence",
  [
    (("sts",), "config.capability.tasks names 'sts'"),
    (
      ("sst", "fr_en"),
      "config.capability.tasks names fr_en, whose metric is bleu; name a task that",
    ),
  ],
)
def test_a_task_that_says_nothing_of_capability_is_refused_first(shared_data, tasks, sentence):
  group = dict(palms_configs.get_config("smollm2").capability, data=str(shared_data / "evals"))
  process.check_capability(group)
  with pytest.raises(ValueError, match=sentence):
    process.check_capability(group | dict(tasks=tasks))


def test_the_score_of_an_item_is_from_0_to_1(shared_data, tmp_path, monkeypatch):
  config = palms_configs.get_config("smollm2").unlock()
  config.capability.update(data=str(shared_data / "evals"), tasks=("sst", "squadv2"))
  model = process.Model(size="given", seed=0, kind="base", export=tmp_path, directory=tmp_path)

  def evaluate(p, unit):
    scores = {"sst": {"acc": 1.0}, "squadv2": {"f1": 40.0, "exact": 0.0}}[unit.task]
    workdir_lib.write_jsonl(unit.directory / "items.jsonl", [dict(scores=scores)] * 2)

  monkeypatch.setattr(process.nlp, "evaluate", evaluate)
  assert process.public_tasks(config, model, None) == {
    "sst, acc": [1.0, 1.0],
    "squadv2, f1": [0.4, 0.4],
  }


def test_a_run_of_an_older_version_is_one_sentence(tmp_path):
  config = palms_configs.get_config("smollm2")
  (model, *_) = process.find_models(config, tmp_path)
  workdir_lib.write_text(model.directory / "answers.jsonl", "")
  with pytest.raises(ValueError, match="answers.jsonl is of an older version.*another --workdir"):
    process.find_models(config, tmp_path)


# ----------------------------------------------------------------------------- the whole


@pytest.mark.slow
def test_the_whole_process_and_then_nothing(tmp_path, capsys):
  config = palms_configs.get_config("test")
  page = process.run(config, tmp_path)
  html = page.read_text(encoding="utf-8")
  assert "Words of groups" in html and html.count("<svg") >= 4
  data = json.loads((page.parent / "palms.json").read_text(encoding="utf-8"))
  kinds = {(mean["kind"], mean["size"]) for mean in data["analysis"]["means"]}
  assert len(kinds) == 6  # three kinds at two sizes
  rows = [json.loads(line) for line in (tmp_path / "ratings.jsonl").open(encoding="utf-8")]
  assert len(rows) == 2 * 2 * 3 * 40 * 2 * 3  # sizes, seeds, kinds, probes, samples, raters
  assert set(data["capability"]) and data["toxicity"]["differences"]
  # The bases of a seed answer the same probes whatever their size.
  assert len({(row["category"], row["probe"]) for row in rows}) == 40
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}
  capsys.readouterr()
  process.run(config, tmp_path)
  assert "words of groups\n" not in capsys.readouterr().out  # none is drawn again
  assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl")}


@pytest.mark.slow
def test_a_given_base_and_a_network_as_rater(session_inputs, tmp_path, capsys):
  """The path of real models, with an export in their place, and then people's ratings."""
  values, own = (
    tinyworld.value_set(tinyworld.SetConfig(num_probes=1, num_samples=16), world_lib.make_world(0)),
    tmp_path / "own",
  )
  short = [dataclasses.replace(category, position=category.name) for category in values.categories]
  commands.write_values(dataclasses.replace(values, categories=tuple(short)), own)
  config = config_of(own)
  config.format = common.get_format()
  config.base.source = str(session_inputs.policy)
  config.raters.update(source=str(session_inputs.policy), prompt="{position} {question} {answer}")
  config.tune.length = 64
  config.tune.lora.rank = 2
  config.tune.sft.num_epochs = 1
  config.sampling.update(max_prompt_tokens=24, max_response_tokens=8, batch_size=8)
  config.cooccurrence.update(num_samples=1, max_response_tokens=2)
  config.statistics.update(num_resamples=200, num_flips=200)
  config.capability.data = str(tmp_path)
  with pytest.raises(ValueError, match="config.capability.data"):
    process.check_config(config)
  config.capability.tasks = ()
  process.check_config(config)
  workdir = tmp_path / "run"
  assert not workdir_lib.check(workdir, workdir_lib.plain(config))
  workdir_lib.prepare(workdir, workdir_lib.plain(config))
  html = process.run(config, workdir).read_text(encoding="utf-8")
  assert f"by a network, {session_inputs.policy}" in html
  assert "There is one seed: they do not cover another fine-tuning." in html
  assert "The rater is a network" in html and "Completions cut at" in html
  assert "values-targeted completions are less toxic than those of base" in html
  assert "FAILED: values-targeted completions are less toxic" in capsys.readouterr().out
  completions = [
    line
    for path in sorted((workdir / "models").rglob("completions.jsonl"))
    for line in read_jsonl(path)
  ]
  assert len(completions) == 3 * 8 * 3 and {line["kind"] for line in completions} == set(
    statistics.KINDS
  )
  assert not all(line["finished"] for line in completions)  # an untrained network does not end
  people = [
    dict(
      {name: line[name] for name in statistics.COMPLETION_FIELDS},
      rater=rater,
      rating=5 if line["kind"] == "targeted" else 2,
    )
    for line in completions
    for rater in ("anna", "ben")
  ]
  (own / sets.TARGETED).write_text("", encoding="utf-8")  # the next turn of the loop has begun
  path = tmp_path / "people.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in people), encoding="utf-8")
  flags = [f"--workdir={workdir}", f"--ratings={path}"]
  launch_palms.main(["palms", "report", *flags, f"--output={tmp_path / 'page'}"])
  html = (tmp_path / "page" / "palms.html").read_text(encoding="utf-8")
  assert "by 2 raters (anna, ben)" in html and "The rater is a network" not in html
  assert "alpha 1.00 over 72 completions" in html
  assert f"The run's own rater, a network, {session_inputs.policy}" in html
  found = workdir_lib.read_json(tmp_path / "page" / "palms.json")["analysis"]
  assert found["comparisons"][0]["difference"]["mean"] == 3

  # The same judge again says the same; another one is checked before anything is written.
  def rate_again(source, output):
    launch_palms.main(
      [
        "palms",
        "report",
        f"--workdir={workdir}",
        f"--rater={source}",
        f"--output={tmp_path / output}",
      ]
    )

  rate_again(session_inputs.policy, "again")
  assert read_jsonl(tmp_path / "again" / "ratings.jsonl") == read_jsonl(workdir / "ratings.jsonl")
  html = (tmp_path / "again" / "palms.html").read_text(encoding="utf-8")
  assert (
    "Spearman's correlation 1.00 over 72 completions" in html and "The rater is a network" in html
  )
  capsys.readouterr()
  with pytest.raises(SystemExit):
    rate_again(session_inputs.reward, "no")
  assert "--rater=" in capsys.readouterr().err and not (tmp_path / "no").exists()
  with pytest.raises(SystemExit):
    rate_again("endpoint", "no")
  assert "--rater=endpoint; name a network" in capsys.readouterr().err
  # Raters who have seen the answers of two models alone.
  part = tmp_path / "part.jsonl"
  part.write_text("".join(json.dumps(row) + "\n" for row in people if row["kind"] != "control"))
  launch_palms.main(
    [
      "palms",
      "report",
      f"--workdir={workdir}",
      f"--ratings={part}",
      f"--output={tmp_path / 'part'}",
    ]
  )
  assert "Left out: control@given, seed 0 has no rating at all" in (
    tmp_path / "part" / "palms.html"
  ).read_text(encoding="utf-8")
  path.write_text(path.read_text(encoding="utf-8").replace('"kind": "control"', '"kind": "base"'))
  with pytest.raises(SystemExit):
    launch_palms.main(["palms", "report", *flags, f"--output={tmp_path / 'other'}"])
  assert "the rating of model 'control@given, seed 0', kind 'base'" in capsys.readouterr().err
  path.write_text(path.read_text(encoding="utf-8").replace('"sample": 0', '"sample": 7'))
  with pytest.raises(SystemExit):
    launch_palms.main(["palms", "report", *flags, f"--output={tmp_path / 'other'}"])
  assert "is not of a completion of" in capsys.readouterr().err
  assert not (tmp_path / "other").exists()
