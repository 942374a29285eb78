"""The suite of preferences: checkpoints answer, judges say which is better."""

import dataclasses
import json
import pathlib
import shutil

import commands
import helpers
import ml_collections
import numpy as np
import pytest

from rlhf import checkpoint
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import statistics
from rlhf.evals.preference import comparison, judges, ratings, win_rates
from rlhf.inference import prefixes, rewards
from rlhf.networks import Network
from rlhf.tinyworld import instructions
from rlhf.tinyworld.world import make_world
from rlhf.tokenization.tokenizer import Tokenizer

SETTINGS = dict(num_resamples=200, seed=0)
RUN = dict(num_resamples=200, seed=0, batch_size=8)
WORLD = dict(
  num_training=2,
  num_heldout=2,
  weight_spread=0.3,
  length_taste_scale=0.03,
  leniency_scale=0.05,
  noise_scale=0.14,
  tie_margin=0.03,
  seed=0,
)
ENDPOINT = dict(
  base_url="http://127.0.0.1:1/v1",
  model="m",
  api_key_variable="",
  pairwise_prompt="",
  likert=False,
  likert_prompt="",
  temperature=0.0,
  max_tokens=8,
  timeout=1.0,
  max_retries=0,
  max_attempts=1,
  num_parallel=1,
  input_price=None,
  output_price=None,
  currency="USD",
)


@dataclasses.dataclass(frozen=True)
class Inputs:
  """A network that reads bytes, a reward model's export, and files of TinyWorld."""

  data: pathlib.Path
  reward: pathlib.Path
  network: Network

  def spec(self, name: str) -> str:
    return f"jsonl:{self.data / name}.jsonl"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
  directory = tmp_path_factory.mktemp("inputs")
  prompts = instructions.instruction_prompts(
    make_world(0), 40, np.random.default_rng(0), held_out=False, seen=set()
  )
  prompts.sort(key=lambda record: "passage" not in record["task"])  # some of each kind
  commands.write_jsonl(directory / "prompts_test.jsonl", [*prompts[:2], *prompts[-6:]])
  commands.write_jsonl(
    directory / "comparisons_valid.jsonl",
    [
      dict(
        prompt=f"who is {name} ?", completions=["a goat .", "no", "what"], ranks=[1, 2, 2 + i % 2]
      )
      for i, name in enumerate(("rex", "dara", "velda"))
    ],
  )
  tokenizer = Tokenizer.train_bpe(["abc"], 258)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids,
    pad_id=tokenizer.pad_id,
    context_length=192,
    attention="auto",
    num_layers=1,
  )
  checkpoint.export_params(
    directory / "reward",
    helpers.make_params(cfg, 1, head=True),
    model=cfg.shape(),
    kind="reward",
    tokenizer=tokenizer,
    config={"comparisons": commands.FORMAT},
    step=0,
    metadata={},
  )
  network = Network(cfg=cfg, params=helpers.make_params(cfg, 0), tokenizer=tokenizer, metadata={})
  return Inputs(data=directory, reward=directory / "reward", network=network)


@pytest.fixture(autouse=True)
def one_shape(monkeypatch):
  """Rows of prompts are as long as they can be, so that little is compiled."""
  monkeypatch.setattr(comparison, "LENGTH_MULTIPLE", 192)


@pytest.fixture(scope="module")
def network(inputs):
  return inputs.network


def config(inputs, **changes):
  return comparison.PreferenceConfig(
    **dict(
      data=inputs.spec("prompts_test"),
      limit=None,
      baseline="sft",
      pairs=(),
      judges=("labelers",),
      max_prompt_tokens=160,
      max_response_tokens=8,
      temperature=1.0,
      temperatures=("base=0",),
      key="",
      comparisons="",
      world=WORLD,
      endpoint=ENDPOINT,
    )
    | changes
  )


def texts_of(p, **more):
  """Answers of three policies, of different lengths."""
  prompts = comparison.select_prompts(p, seed=0)
  return {
    "base": ["what"] * len(prompts),
    "sft": [f"rex is a goat number {i} ." for i in range(len(prompts))],
    "ppo": [f"dara has {'a ' * i}hat ." for i in range(len(prompts))],
  } | more


# ----------------------------------------------------------------------------- answers


def ask(inputs, network, directory, *, name="sft", seed=0, prefix=None, **changes):
  return comparison.complete(
    config(inputs, **changes),
    network,
    directory,
    name=name,
    prompt_format=prepare.PLAIN,
    seed=seed,
    batch_size=4,
    prefix=prefix,
  )


def test_answers_are_written_one_line_a_prompt(inputs, network, tmp_path):
  seen = []
  p = config(inputs)
  found = comparison.complete(
    p,
    network,
    tmp_path,
    name="sft",
    prompt_format=prepare.PLAIN,
    seed=0,
    batch_size=4,
    progress=lambda done, total: seen.append((done, total)),
  )
  lines = commands.read_jsonl(tmp_path / "items.jsonl")
  records = comparison.select_prompts(p, seed=0)
  assert [line["prompt"] for line in lines] == [record["prompt"] for record in records]
  assert [line["completion"] for line in lines] == found == comparison.read_completions(tmp_path)
  assert [line["prompt_index"] for line in lines] == list(range(8)) and len(set(found)) == 8
  assert seen == [(8, 8)]
  # Samples at 1, greedy answers at 0.
  assert ask(inputs, network, tmp_path, seed=1) != found
  greedy = [ask(inputs, network, tmp_path, name="base", seed=seed) for seed in (0, 1)]
  assert greedy[0] == greedy[1] != found


def test_prompts_that_are_too_long_have_no_answer(inputs, network, tmp_path):
  p = config(inputs)
  lengths = [
    len(ids)
    for ids in prepare.PLAIN.encode_prompts(
      network.tokenizer, [record["prompt"] for record in comparison.select_prompts(p, seed=0)]
    )
  ]
  limit = sorted(lengths)[4]
  found = ask(inputs, network, tmp_path, max_prompt_tokens=limit)
  assert [answer is not None for answer in found] == [length <= limit for length in lengths]
  with pytest.raises(ValueError, match="none of 8 prompts .* fits into config.preference.max_pro"):
    ask(inputs, network, tmp_path, max_prompt_tokens=2)
  with pytest.raises(ValueError, match="sft: a prompt has .* lower config.preference.max_prompt"):
    ask(inputs, network, tmp_path, max_response_tokens=150)


def test_a_prefix_is_asked_and_not_shown(inputs, network, tmp_path):
  plain = ask(inputs, network, tmp_path, name="base")
  prefixed = ask(
    inputs, network, tmp_path, name="base", prefix=prefixes.Prefix(text="#\nrex .\n#\n")
  )
  assert prefixed != plain
  lines = commands.read_jsonl(tmp_path / "items.jsonl")
  assert all("#" not in line["prompt"] for line in lines)
  with pytest.raises(ValueError, match="sft: every prompt behind its prefix has"):
    ask(inputs, network, tmp_path, prefix=prefixes.Prefix(text="#\nrex .\n" * 30 + "#\n"))


def test_prompts_that_do_not_fit_behind_a_prefix_have_no_answer(inputs, network, tmp_path):
  """The fourth shortest just fits: 192 less 8 of an answer, less the prefix."""
  lengths = [
    len(ids)
    for ids in prepare.PLAIN.encode_prompts(
      network.tokenizer,
      [record["prompt"] for record in comparison.select_prompts(config(inputs), seed=0)],
    )
  ]
  limit = sorted(lengths)[3]
  room = 192 - 8 - limit - len("#\n#\n")
  found = ask(inputs, network, tmp_path, prefix=prefixes.Prefix(text=f"#\n{'x' * (room - 1)}\n#\n"))
  assert [answer is not None for answer in found] == [length <= limit for length in lengths]


def test_a_limit_is_the_same_subset_for_all(inputs):
  whole = comparison.select_prompts(config(inputs), seed=0)
  p = config(inputs, limit=3)
  some = comparison.select_prompts(p, seed=0)
  assert len(some) == 3 and some == [record for record in whole if record in some]
  assert some == comparison.select_prompts(p, seed=0)
  assert any(comparison.select_prompts(p, seed=seed) != some for seed in (1, 2, 3))


def test_settings_decide_answers(inputs, tmp_path):
  base = comparison.completion_settings(config(inputs), "sft")
  assert comparison.completion_settings(config(inputs, judges=("endpoint",)), "ppo") == base
  assert comparison.completion_settings(config(inputs), "base") != base  # its temperature
  copied = commands.write_jsonl(tmp_path / "p.jsonl", [{"prompt": "x"}])
  one = comparison.completion_settings(config(inputs, data=f"jsonl:{copied}"), "sft")
  commands.write_jsonl(copied, [{"prompt": "y"}])
  assert comparison.completion_settings(config(inputs, data=f"jsonl:{copied}"), "sft") != one


# ----------------------------------------------------------------------------- judges


def test_labelers_judge_all(inputs, tmp_path):
  p = config(inputs, pairs=("ppo:base",))
  texts = texts_of(p)
  found = comparison.judge_all(p, texts, tmp_path, **RUN)
  rows = win_rates.read_preferences(tmp_path / "preferences.jsonl")
  assert len(rows) == 3 * 8 * 4
  measures = {(m.metric, m.variant): m for m in found.measures["ppo"]}
  for group in win_rates.GROUPS:
    values_PL = win_rates.values_by_prompt(rows, policy="ppo", group=group, field="win")
    direct = statistics.bootstrap_mean(values_PL, **SETTINGS)
    measure = measures["win_rate", group]
    assert measure.interval == direct and measure.better == "higher"
    assert found.matrix[group]["ppo"]["sft"] == measure.interval
    assert found.matrix[group]["ppo"]["base"].n == 8
    assert (
      found.length_controlled[group]["ppo"]["sft"]
      == measures["length_controlled_win_rate", group].interval
    )
    likert_PL = win_rates.values_by_prompt(rows, policy="ppo", group=group, field="likert")
    assert measures["likert", group].interval == statistics.bootstrap_mean(likert_PL, **SETTINGS)
    assert measures["satisfies_constraint", group].better == "higher"
    assert measures["hallucination", group].better == "lower"
  assert ("win_rate", "training") not in {(m.metric, m.variant) for m in found.measures["sft"]}
  pairs = commands.read_jsonl(tmp_path / "pairs.jsonl")
  assert {(row["policy"], row["baseline"]) for row in pairs} == {("ppo", "base")}
  lines = commands.read_jsonl(tmp_path / "completions.jsonl")
  assert [line["completions"]["ppo"] for line in lines] == texts["ppo"] and "task" in lines[0]
  assert (found.num_prompts, found.num_left_out) == (8, 0)
  json.dumps(found.as_dict(), allow_nan=False)


def test_prompts_that_someone_did_not_answer_are_left_out(inputs, tmp_path):
  p = config(inputs)
  texts = texts_of(p)
  texts["ppo"][2] = None
  found = comparison.judge_all(p, texts, tmp_path, **RUN)
  assert (found.num_prompts, found.num_left_out) == (7, 1)
  assert found.measures["base"][0].interval.n == 7
  with pytest.raises(ValueError, match="no prompt of .* was completed by every checkpoint"):
    comparison.judge_all(p, texts | {"ppo": [None] * 8}, tmp_path, **RUN)
  with pytest.raises(ValueError, match="ppo has 7 completions of the 8 prompts"):
    comparison.judge_all(p, texts | {"ppo": texts["ppo"][:7]}, tmp_path, **RUN)


def test_a_reward_model_judges_and_its_accuracy_is_told(inputs, tmp_path):
  p = config(
    inputs,
    judges=(f"reward:{inputs.reward}",),
    comparisons=inputs.spec("comparisons_valid"),
    pairs=("all",),
  )
  texts = texts_of(p)
  texts["ppo"][0] = texts["sft"][0]
  texts["base"][1] = "goat " * 100  # longer than the context: read up to there
  found = comparison.judge_all(p, texts, tmp_path, **RUN)
  reward, prompt_format = comparison.load_reward(str(inputs.reward))
  prompts = comparison.select_prompts(p, seed=0)
  score = {
    name: rewards.score_texts(
      reward,
      prompt_format,
      [(record["prompt"], text) for record, text in zip(prompts, column)],
      batch_size=3,
    )
    for name, column in texts.items()
  }
  rows = commands.read_jsonl(tmp_path / "preferences.jsonl")
  for row in rows:
    own, other = score[row["policy"]][row["prompt_index"]], score["sft"][row["prompt_index"]]
    assert row["score"] == pytest.approx(own, abs=1e-5)
    if row["policy"] != "sft" and abs(own - other) > 1e-4:
      assert row["win"] == (own > other)
  tie = next(row for row in rows if row["policy"] == "ppo")
  assert tie["win"] == 0.5  # the same text
  by_metric = {measure.metric: measure for measure in found.measures["ppo"]}
  assert by_metric["reward"].interval.mean == pytest.approx(score["ppo"].mean(), abs=1e-5)
  assert by_metric["win_rate"].variant == "reward_model" and "likert" not in by_metric
  assert found.matrix["reward_model"]["base"]["ppo"].mean == pytest.approx(
    np.mean(score["base"] > score["ppo"])
  )
  accuracy = found.reward_models["reward_model"]
  assert accuracy["num_pairs"] == sum(
    len(set(line["ranks"])) * (len(set(line["ranks"])) - 1) // 2 + (len(set(line["ranks"])) == 2)
    for line in commands.read_jsonl(inputs.data / "comparisons_valid.jsonl")
  )
  assert 0 <= accuracy["accuracy"]["low"] <= accuracy["length_baseline_accuracy"]["high"] <= 1
  json.dumps(found.as_dict(), allow_nan=False)


def test_a_judge_whose_accuracy_fails_is_not_on_the_page(inputs, tmp_path, monkeypatch):
  def fails(*unused, **more_unused):
    raise ValueError("none of the comparisons fits")

  monkeypatch.setattr(comparison, "reward_accuracy", fails)
  p = config(
    inputs,
    judges=("labelers", f"reward:{inputs.reward}"),
    comparisons=inputs.spec("comparisons_valid"),
  )
  found = comparison.judge_all(p, texts_of(p), tmp_path, **RUN)
  assert list(found.failed) == [f"reward:{inputs.reward}"] and not found.reward_models
  assert {measure.variant for measure in found.measures["ppo"]} == {"training", "heldout"}


def test_seeds_are_pooled(inputs, tmp_path):
  p = config(inputs, pairs=("ppo:base",))
  one = texts_of(p)
  other = texts_of(p, ppo=["what"] * 8)
  found = {
    run: comparison.judge_all(p, texts, tmp_path / str(run), **RUN)
    for run, texts in enumerate((one, other))
  }

  def pool(*runs):
    names = ["base", "sft", "ppo"]
    files = {run: comparison.read(tmp_path / str(run)) for run in runs}
    rows, completions = ({run: files[run][part] for run in runs} for part in (0, 1))
    return comparison.Comparison(
      **comparison.summarise(rows, completions, names, baseline="sft", **SETTINGS), num_prompts=16
    )

  pooled = pool(*found)
  for task, metric in (
    ("preference", "win_rate"),
    ("preference", "likert"),
    ("metadata", "fails_to_follow_instruction"),
  ):
    cells = [
      {(m.task, m.metric, m.variant): m.interval for m in of.measures["ppo"]}[
        task, metric, "heldout"
      ]
      for of in (*found.values(), pooled)
    ]
    assert cells[2].mean == pytest.approx((cells[0].mean + cells[1].mean) / 2)  # equal counts
    assert cells[2].n == 16 and cells[2].low <= cells[2].mean <= cells[2].high
  assert pooled.matrix["training"]["ppo"]["base"].mean == pytest.approx(
    np.mean([found[run].matrix["training"]["ppo"]["base"].mean for run in found])
  )
  assert pooled.length_controlled["training"]["ppo"]["sft"].n == 16
  again = pool(0)
  assert again.measures == found[0].measures and again.matrix == found[0].matrix


def test_the_length_baseline_is_of_the_pairs_that_the_reward_model_read(inputs, tmp_path):
  """Context 192: the long completion, which is the worst, is read by neither; the other pair of the
  first prompt, and that of the second, are won by the longer."""
  path = commands.write_jsonl(
    tmp_path / "c.jsonl",
    [
      dict(prompt="q", completions=["x" * 400, "longer", "short"], ranks=[3, 1, 2]),
      dict(prompt="r", completions=["yes .", "no"], ranks=[1, 2]),
      dict(prompt="s", completions=["y" * 400, "z"], ranks=[2, 1]),
    ],
  )
  found = comparison.reward_accuracy(
    commands.read_jsonl(path),
    *comparison.load_reward(str(inputs.reward)),
    batch_size=4,
    **SETTINGS,
  )
  assert found["num_pairs"] == 2
  baseline = found["length_baseline_accuracy"]
  assert (baseline["mean"], baseline["n"], found["accuracy"]["n"]) == (1.0, 2, 2)


def test_files_of_two_runs_never_lie_side_by_side_as_if_finished(inputs, tmp_path):
  names = ("result.json", "completions.jsonl", "preferences.jsonl", "pairs.jsonl")
  read = lambda: {
    name: (tmp_path / name).read_text() for name in names if (tmp_path / name).is_file()
  }
  p = config(inputs)
  comparison.judge_all(p, texts_of(p), tmp_path, **RUN)
  (tmp_path / "result.json").write_text("{}")  # as launch.evaluate marks it
  before = read()
  other = texts_of(p, ppo=["no"] * 8)
  with pytest.raises(ValueError, match="the endpoint http://127.0.0.1:1/v1"):
    comparison.judge_all(config(inputs, judges=("endpoint",)), other, tmp_path, **RUN)
  assert read() == before
  found = comparison.judge_all(
    config(inputs, judges=("endpoint", "labelers")), other, tmp_path, **RUN
  )
  assert list(found.failed) == ["endpoint"] and "failed" not in found.as_dict()
  after = read()
  assert (
    list(after) == list(names[1:]) and after["completions.jsonl"] != before["completions.jsonl"]
  )
  assert {row["policy"] for row in win_rates.read_preferences(tmp_path / "preferences.jsonl")} == {
    "base",
    "sft",
    "ppo",
  }


def test_two_reward_models_are_two_variants(inputs, tmp_path, monkeypatch):
  p = config(inputs, judges=("labelers", "reward:a", "reward:b"))

  def fake(network, prompt_format, *, name, batch_size):
    sign = {"reward_model_1": 1.0, "reward_model_2": 0.0}[name]
    return lambda prompts, answers, baseline: [
      dict(
        prompt_index=i,
        policy=policy,
        labeler=name,
        group="reward_model",
        likert=None,
        win=None if policy == baseline else sign,
        score=sign,
      )
      for policy in answers
      for i in range(len(prompts))
    ]

  monkeypatch.setattr(judges, "reward_model", fake)
  monkeypatch.setattr(comparison, "load_reward", lambda source, mesh: (None, None))
  found = comparison.judge_all(p, texts_of(p), tmp_path, **RUN)
  rates = {m.variant: m.interval.mean for m in found.measures["ppo"] if m.metric == "win_rate"}
  assert rates["reward_model_1"] == 1 and rates["reward_model_2"] == 0
  assert set(rates) == {"training", "heldout", "reward_model_1", "reward_model_2"}


def test_people_judge_the_sheets_that_were_written(inputs, tmp_path):
  p = config(inputs)
  texts = texts_of(p)
  prompts, given = comparison.completed_by_all(p, texts, seed=0)
  ratings.write_sheets(tmp_path / "people", prompts, given, baseline="sft", seed=0, limit=2)
  sheet = tmp_path / "people" / "blind" / "filled.jsonl"
  key = ratings.read_key(tmp_path / "people" / "key.jsonl")
  ids = {(s.policy, s.prompt_index): name for name, s in key.items()}
  index = next(iter(key.values())).prompt_index
  pair = dict(sample_a=ids["ppo", index], sample_b=ids["sft", index], preference="a")
  lines = [pair | dict(rater=rater) for rater in ("ann", "bob")]
  commands.write_jsonl(
    sheet, [*lines, dict(sample=ids["sft", index], rater="ann", likert=3, expresses_opinion=True)]
  )
  p = config(inputs, judges=(f"ratings:{sheet}",))
  comparison.check(p)
  found = comparison.judge_all(p, texts, tmp_path, **RUN)
  assert [(m.metric, m.variant, m.interval.mean) for m in found.measures["ppo"]][0] == (
    "win_rate",
    "human",
    1,
  )
  assert [(m.metric, m.interval.mean) for m in found.measures["sft"]] == [
    ("likert", 3),
    ("expresses_opinion", 1),
  ]
  assert found.agreement["preference"]["agreement"]["mean"] == 1
  elsewhere = tmp_path / "elsewhere.jsonl"
  sheet.rename(elsewhere)
  comparison.check(
    config(inputs, judges=(f"ratings:{elsewhere}",), key=str(tmp_path / "people" / "key.jsonl"))
  )


# ----------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(judges=()), "config.preference.judges is empty"),
    (dict(judges=("labeler",)), "judges has 'labeler'; use labelers, endpoint, reward:SOURCE"),
    (dict(judges=("reward:",)), "judges has 'reward:'"),
    (dict(judges=("labelers", "labelers")), "judges has 'labelers' twice"),
    (dict(pairs=("ppo",)), "pairs has 'ppo'; name two checkpoints as A:B"),
    (dict(pairs=("all", "a:b")), "pairs has 'all'"),
    (dict(limit=0), "config.preference.limit is 0; use 1 or more"),
    (dict(max_response_tokens=0), "config.preference.max_response_tokens is 0"),
    (dict(temperature=-1.0), "config.preference.temperature is -1.0; use 0 or more"),
    (dict(temperatures=("base",)), "temperatures has 'base'; write NAME=TEMPERATURE"),
    (dict(temperatures=("base=hot",)), "temperatures has 'base=hot'"),
    (dict(temperatures=("base=-1",)), "temperatures has 'base=-1'"),
    (dict(world=WORLD | dict(num_training=0)), "config.preference: num_training 0"),
    (dict(world=WORLD | dict(typo=0)), "config.preference: .*typo"),
    (dict(judges=("endpoint",), endpoint=ENDPOINT | dict(model="")), "endpoint.model is empty"),
  ],
)
def test_wrong_settings_are_one_sentence(inputs, change, sentence):
  with pytest.raises(ValueError, match=sentence) as error:
    config(inputs, **change)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(data="prompts.jsonl"), "config.preference.data 'prompts.jsonl'; give FORMAT:PATH"),
    (dict(data="jsonl:none.jsonl"), "config.preference.data: none.jsonl does not exist"),
    (dict(baseline="x"), "config.preference.baseline names 'x', which is none of the checkpoints"),
    (dict(temperatures=("x=1",)), "config.preference.temperatures names 'x'"),
    (dict(pairs=("ppo:x",)), "config.preference.pairs names 'x'"),
    (dict(judges=("reward:none",)), "config.preference.judges: .*none"),
    (dict(judges=("ratings:none.csv",)), "config.preference.key: there is no key of the sheets"),
    (dict(comparisons="jsonl:none.jsonl"), "config.preference.comparisons: none.jsonl does not"),
    (
      dict(judges=("endpoint",), endpoint=ENDPOINT | dict(api_key_variable="RLHF_NO_SUCH_KEY")),
      "RLHF_NO_SUCH_KEY is not set in the environment",
    ),
  ],
)
def test_what_is_missing_is_found_before_anything_runs(inputs, change, sentence, monkeypatch):
  monkeypatch.delenv("RLHF_NO_SUCH_KEY", raising=False)
  names = ["base", "sft", "ppo"]
  comparison.check(config(inputs), names)
  with pytest.raises(ValueError, match=sentence) as error:
    comparison.check(config(inputs, **change), names)
  assert "\n" not in str(error.value)


def test_a_policy_is_no_reward_model_and_own_prompts_no_world(inputs, tmp_path):
  shutil.copytree(inputs.reward, tmp_path / "policy")
  export = json.loads((tmp_path / "policy" / "export.json").read_text())
  (tmp_path / "policy" / "export.json").write_text(json.dumps(export | dict(kind="policy")))
  with pytest.raises(ValueError, match="is a policy export; it must be a reward"):
    comparison.check(config(inputs, judges=(f"reward:{tmp_path / 'policy'}",)))
  own = commands.write_jsonl(tmp_path / "own.jsonl", [{"prompt": "hello"}])
  with pytest.raises(ValueError, match='lines without "task"; only prompts that TinyWorld made'):
    comparison.check(config(inputs, data=f"jsonl:{own}"))
  with pytest.raises(ValueError, match="judges has no reward:SOURCE whose accuracy"):
    comparison.check(config(inputs, comparisons=inputs.spec("comparisons_valid")))


def test_a_wrong_rating_keeps_what_the_endpoint_answered(inputs, tmp_path):
  """Ratings are read by `check`, before anything is asked."""
  (tmp_path / "key.jsonl").write_text(
    json.dumps(dict(sample="s1", prompt_index=0, policy="sft", prompt="p", answer="a")) + "\n"
  )
  sheet = tmp_path / "blind" / "sheet.csv"
  sheet.parent.mkdir()
  sheet.write_text("sample,rater,likert\ns1,ann,9\n")
  with pytest.raises(ValueError, match=r"sheet.csv: row 2: \"likert\" is '9', outside its scale"):
    comparison.check(config(inputs, judges=(f"ratings:{sheet}", "endpoint")))


def test_the_config_can_be_hashed_and_written(inputs):
  p = config(
    inputs,
    judges=["labelers"],
    pairs=["all"],
    world=ml_collections.ConfigDict(WORLD),
    endpoint=ml_collections.ConfigDict(ENDPOINT),
  )
  assert dataclasses.asdict(p)["world"] == WORLD and p.pairs == ("all",)
  assert workdir_lib.config_hash(dataclasses.asdict(p)) == workdir_lib.config_hash(
    dataclasses.asdict(config(inputs, pairs=("all",)))
  )
  assert comparison.pairs_of(p, ["sft", "a", "b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
  assert comparison.pairs_of(config(inputs, pairs=("a:b", "a:sft", "sft:a")), []) == [
    ("a", "b"),
    ("sft", "a"),
  ]
