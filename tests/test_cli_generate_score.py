"""What the commands print and write where nothing is wrong."""

import argparse
import functools
import io
import json
import shutil

import commands
import jax
import numpy as np
import pytest

from rlhf import checkpoint, networks, sharding
from rlhf import workdir as workdir_lib
from rlhf.cli import generate, pool, score, train
from rlhf.cli.common import flags, models, startup
from rlhf.data import prepare
from rlhf.evals import pooling
from rlhf.inference import rewards as rewards_lib
from rlhf.model import transformer
from rlhf.model.compute import ComputeConfig
from rlhf.model.transformer import ModelConfig
from rlhf.tokenization.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
PROMPTS = [
  {
    "prompt": "who is dara ?",
    "user": "u1",
    "use_case": "open_qa",
    "ranks": [2, 1],
    "scores": [0.5, 0.25],
    "labeler": "l",
  },
  {"prompt": "name three goats .", "task": {"kind": "list"}},
  {"prompt": "tell a story about a loud goat ."},
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def answer(inputs, tmp_path, capsys):
  """answer(num_samples=3): the lines that launch.generate writes for PROMPTS."""
  prompts = commands.write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)

  def run(*more, name="answers.jsonl", **changes):
    flags = {
      "checkpoint": inputs.policy,
      "prompts": prompts,
      "output": tmp_path / name,
      "num_samples": 2,
      "max_response_tokens": 6,
      "batch_size": 4,
    } | changes
    generate.main(["generate", *(f"--{key}={value}" for key, value in flags.items()), *more])
    return commands.read_jsonl(tmp_path / name)

  return run


# ----------------------------------------------------------------------------- generate


def test_generate_writes_a_line_per_prompt(answer, capsys):
  lines = answer()
  assert [line["prompt"] for line in lines] == [line["prompt"] for line in PROMPTS]
  for line in lines:
    assert len(line["completions"]) == len(line["finished"]) == 2
    assert all(isinstance(text, str) for text in line["completions"])
    assert all(isinstance(flag, bool) for flag in line["finished"])
  out, err = capsys.readouterr()
  assert "answers.jsonl: lines: 3 kept" in out
  assert "prompt + '\\n\\nAnswer:', temperature 1, at most 58 + 6 tokens" in err


def test_other_fields_travel_but_not_those_of_other_answers(answer):
  first, second, third = answer()
  assert first.keys() == {"prompt", "completions", "finished", "user", "use_case"}
  assert (first["user"], first["use_case"]) == ("u1", "open_qa")
  assert second["task"] == {"kind": "list"}
  assert third.keys() == {"prompt", "completions", "finished"}


def test_answers_depend_on_the_seed_and_not_on_the_batch(answer):
  lines = answer(seed=3)
  assert answer(seed=3, batch_size=1, name="b.jsonl") == lines
  assert answer(seed=4, name="c.jsonl") != lines
  # More samples: the first are the same.
  more = answer(seed=3, num_samples=3, name="d.jsonl")
  assert [line["completions"][:2] for line in more] == [line["completions"] for line in lines]


def test_greedy_answers_are_all_the_same(answer, capsys):
  greedy = answer(temperature=0)
  for line in greedy:
    assert len(set(line["completions"])) == 1
  assert answer(top_p=1e-6, name="nucleus.jsonl") == greedy  # a nucleus of one token
  assert "temperature 1, top_p 1e-06, at most" in capsys.readouterr().err
  assert any(len(set(line["completions"])) > 1 for line in answer(name="b.jsonl"))


def test_an_output_is_replaced_if_asked(answer):
  before = answer(seed=1)
  assert answer("--overwrite", seed=2) != before


def test_the_workdir_of_a_stage_is_a_checkpoint_too(answer, inputs, tmp_path):
  shutil.copytree(inputs.policy, tmp_path / "stage" / "export")
  assert answer(checkpoint=tmp_path / "stage") == answer(name="b.jsonl")


def test_affixes_are_those_of_training_unless_given(answer, inputs, tmp_path, capsys):
  with_default = answer()
  assert answer("--prompt_suffix= so", name="b.jsonl") != with_default
  directory = tmp_path / "other"
  shutil.copytree(inputs.policy, directory)
  export = json.loads((directory / "export.json").read_text())
  export["config"] = {"prompts": {"prompt_suffix": " so", "completion_prefix": ""}}
  (directory / "export.json").write_text(json.dumps(export))
  capsys.readouterr()
  from_export = answer(checkpoint=directory, name="c.jsonl")
  assert "prompt + ' so'" in capsys.readouterr().err
  assert from_export == answer("--prompt_suffix= so", "--completion_prefix=", name="d.jsonl")
  # A chat template that writes the same is the same.
  export["config"] = {
    "prompts": {"prompt_format": "chat", "prompt_suffix": "", "completion_prefix": ""}
  }
  (directory / "export.json").write_text(json.dumps(export))
  with pytest.raises(SystemExit):
    answer(checkpoint=directory, name="f.jsonl")
  assert "tokenizer_config.json has no chat_template; use prompt_format" in capsys.readouterr().err
  path = checkpoint.load_export(directory).tokenizer_dir / "tokenizer_config.json"
  tokenizer_config = json.loads(path.read_text())
  path.write_text(json.dumps(tokenizer_config | {"chat_template": "{{ messages[0].content }} so"}))
  assert from_export == answer(checkpoint=directory, name="g.jsonl")
  assert "prompt in the model's chat template" in capsys.readouterr().err
  # A base model was trained without prompts: the plain format.
  export["config"] = {"text": {}}
  (directory / "export.json").write_text(json.dumps(export))
  assert answer(checkpoint=directory, name="e.jsonl") == with_default


def test_prompts_that_are_bad_or_too_long_are_skipped_and_counted(answer, tmp_path, capsys):
  path = commands.write_jsonl(
    tmp_path / "mixed.jsonl", [{"prompt": "goat " * 200}, PROMPTS[1], {"text": "x"}]
  )
  lines = answer("--on_bad=skip", prompts=path)
  assert [line["prompt"] for line in lines] == [PROMPTS[1]["prompt"]]
  assert (
    "lines: 1 kept, 1 skipped (missing field), 1 skipped (prompt too long)"
    in capsys.readouterr().out
  )


@pytest.fixture
def long_policy(inputs, tmp_path):
  """A policy with room for much more than anybody asks."""
  found = checkpoint.load_export(inputs.policy)
  cfg = ModelConfig(**found.model | {"context_length": 2048})
  tokenizer = Tokenizer.load(found.tokenizer_dir)
  checkpoint.export_params(
    tmp_path / "long",
    transformer.init_params(cfg, jax.random.key(0)),
    model=cfg.shape(),
    kind="policy",
    tokenizer=tokenizer,
    config=found.config,
    step=0,
    metadata={},
  )
  return tmp_path / "long"


@pytest.fixture
def sampled(monkeypatch):
  """(B, P, R) of everything that is sampled."""
  from rlhf.inference import sampling

  shapes, sample = [], sampling.sample

  def spy(cfg, params, prompts, *args, max_new_tokens, **kwargs):
    shapes.append((*prompts.tokens_BP.shape, max_new_tokens))
    return sample(cfg, params, prompts, *args, max_new_tokens=max_new_tokens, **kwargs)

  monkeypatch.setattr(sampling, "sample", spy)
  return shapes


def test_rows_are_as_long_and_as_many_as_the_prompts_need(answer, long_policy, sampled, tmp_path):
  longer = commands.write_jsonl(tmp_path / "longer.jsonl", [*PROMPTS, {"prompt": "goat " * 80}])
  flags = dict(checkpoint=long_policy, num_samples=1, batch_size=64)
  first = answer(**flags)
  assert answer(**flags, prompts=longer, name="b.jsonl")[:3] == first
  assert sampled == [(4, 64, 6), (4, 128, 6)]


def test_answers_are_short_unless_asked_for(inputs, long_policy, capsys):
  for policy_dir, responses, rooms in (
    (long_policy, 512, {1: 64, 64: 64, 65: 128, 1500: 1536}),
    (inputs.policy, 32, {5: 32}),
  ):
    arguments = generate.parse(["generate", f"--checkpoint={policy_dir}"])
    policy = generate.find(arguments)
    assert arguments.max_response_tokens == responses
    for longest, room in rooms.items():
      assert models.completion_config(policy, longest, arguments).max_prompt_tokens == room
  with pytest.raises(SystemExit):
    generate.parse(["generate", "--help"])
  assert "if not given 512" in " ".join(capsys.readouterr().out.split())


def test_a_conversation_has_as_much_room_as_it_needs(long_policy, sampled, monkeypatch):
  lines = ["who ?", "goat " * 50, "bye", "goat " * 60, "goat " * 200]
  monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
  generate.main(["generate", f"--checkpoint={long_policy}", "--max_response_tokens=2"])
  rooms = [room for _, room, _ in sampled]
  assert {num for num, _, _ in sampled} == {1}
  assert rooms[0] == 64 and rooms == sorted(rooms) and len(set(rooms)) == 3 and rooms[-1] == 256


def test_empty_answers_are_left_out_where_people_rank():
  kept = {"prompt": "p", "completions": ["a", "", "b"], "finished": [True, True, False], "u": "u"}
  one = {"prompt": "q", "completions": ["a", " ", ""], "finished": [True, True, True]}
  counts = {"kept": 2}
  assert generate.drop_empty([kept, one], counts) == [
    {"prompt": "p", "completions": ["a", "b"], "finished": [True, False], "u": "u"}
  ]
  assert counts == {
    "kept": 1,
    "dropped (fewer than two completions)": 1,
    "empty completions dropped": 3,
  }


def test_nothing_is_written_where_sampling_fails(answer, tmp_path, monkeypatch):
  from rlhf.inference import completions

  def fail(*args, **kwargs):
    raise RuntimeError("no memory")

  monkeypatch.setattr(completions, "sample", fail)
  with pytest.raises(RuntimeError, match="no memory"):
    answer()
  assert not (tmp_path / "answers.jsonl").exists()


def test_a_conversation(inputs, capsys, monkeypatch):
  monkeypatch.setattr("sys.stdin", io.StringIO("who is dara ?\n\n" + "goat " * 200 + "\nbye\n"))
  generate.main(
    ["generate", f"--checkpoint={inputs.policy}", "--max_response_tokens=6", "--num_samples=2"]
  )
  out, err = capsys.readouterr()
  assert out.count(" [...]") == 4  # an untrained network does not end: two answers to each of two
  assert err.count("error: the prompt has ") == 1


# ----------------------------------------------------------------------------- score


@pytest.fixture
def scored(inputs, tmp_path):
  """scored([lines]): the lines that launch.score writes."""

  def run(lines, *more, **changes):
    path = commands.write_jsonl(tmp_path / "lines.jsonl", lines)
    flags = {
      "reward_model": inputs.reward,
      "input": path,
      "output": tmp_path / "scored.jsonl",
      "batch_size": 3,
    } | changes
    score.main(
      ["score", *(f"--{key}={value}" for key, value in flags.items()), "--overwrite", *more]
    )
    return commands.read_jsonl(tmp_path / "scored.jsonl")

  return run


@functools.cache
def reward_of(directory):
  """(tokenizer, function of one row and its mask) of a reward export."""
  export = checkpoint.load_export(directory)
  cfg, params = ModelConfig(**export.model), checkpoint.load_params(directory)
  return (
    Tokenizer.load(export.tokenizer_dir),
    jax.jit(lambda tokens_T, mask_T: transformer.scores(cfg, params, tokens_T[None], mask_T[None])),
  )


def by_hand(inputs, prompt: str, completion: str, suffix: str = "\n\nAnswer:") -> float:
  """The reward of one sequence alone."""
  tokenizer, score_row = reward_of(inputs.reward)
  ids = [*tokenizer.encode(prompt + suffix), *tokenizer.encode(" " + completion), tokenizer.eot_id]
  length = commands.SHAPE["context_length"]
  tokens_T = np.asarray(ids + [tokenizer.pad_id] * (length - len(ids)))
  return float(score_row(tokens_T, (np.arange(length) < len(ids)).astype(np.float32))[0])


def test_an_export_of_an_older_version_is_read_or_named(inputs, scored, answer, tmp_path, capsys):
  """What does not change the function is filled in; a shape that is not said is an error."""
  line = {"prompt": "who is dara ?", "completions": ["a goat .", ""]}
  scores = scored([line])[0]["scores"]
  older = {}
  for name in ("policy", "reward"):
    older[name] = tmp_path / name
    shutil.copytree(getattr(inputs, name), older[name])

  def without(name: str, *fields: str) -> None:
    export = workdir_lib.read_json(getattr(inputs, name) / "export.json")
    export["model"] = {key: value for key, value in export["model"].items() if key not in fields}
    (older[name] / "export.json").write_text(json.dumps(export))

  for name in older:
    without(name, "decode_scan", "decode_split", "scan_unroll", "shard_sequence", "attention")
  assert scored([line], reward_model=older["reward"])[0]["scores"] == scores
  assert answer(checkpoint=older["policy"], name="older.jsonl") == answer()
  capsys.readouterr()
  without("policy", "band_width")
  without("reward", "band_width")
  for run in (
    lambda: scored([line], reward_model=older["reward"]),
    lambda: answer(checkpoint=older["policy"], name="none.jsonl"),
  ):
    with pytest.raises(SystemExit) as stopped:
      run()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "was written by another version: its model does not say its band_width; read it" in error


def test_published_comparisons_are_scored_against_their_ranks(inputs, scored, tmp_path, capsys):
  votes = [
    dict(
      instruction="who is dara ?",
      input="",
      response1="a goat .",
      response2="no",
      annotator1=first,
      annotator2=first,
      annotator3=0,
    )
    for first in (1, 1, 2)
  ]
  path = commands.write_jsonl(tmp_path / "votes.jsonl", votes)
  lines = scored([], input=f"pandalm:{path}", calibration=tmp_path / "calibration.svg")
  assert [line["ranks"] for line in lines] == [[1, 2], [1, 2], [2, 1]]
  right = lines[0]["scores"][0] > lines[0]["scores"][1]
  out = capsys.readouterr().out
  assert f"accuracy {'66.7%' if right else '33.3%'}" in out and "3 untied pairs of 3 prompts" in out
  assert "lines: 3 kept" in out
  assert "expected calibration error" in out and "over 3 untied pairs" in out
  assert ">pairs ranked as predicted" in (tmp_path / "calibration.svg").read_text()


def test_scores_are_those_of_each_sequence_alone(inputs, scored):
  lines = scored(
    [
      {"prompt": "who is dara ?", "completions": ["a goat .", "", "long " * 9], "x": 1},
      {"prompt": "name a goat .", "completion": "rex .", "user": "u"},
    ]
  )
  assert lines[0]["scores"] == pytest.approx(
    [by_hand(inputs, "who is dara ?", text) for text in ("a goat .", "", "long " * 9)], abs=1e-5
  )
  assert lines[1]["score"] == pytest.approx(by_hand(inputs, "name a goat .", "rex ."), abs=1e-5)
  assert lines[0].keys() == {"prompt", "completions", "x", "scores"}
  assert lines[1].keys() == {"prompt", "completion", "user", "score"}


def test_a_long_text_does_not_pad_the_others(inputs, monkeypatch):
  network = networks.load(
    inputs.reward,
    ComputeConfig(),
    sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1)),
    kind="reward",
    flag="--reward_model",
  )
  lengths, score_rows = [], rewards_lib.score_rows
  monkeypatch.setattr(
    rewards_lib,
    "score_rows",
    lambda cfg, params, ids, *, length, batch_size: (
      lengths.append((length, len(ids))),
      score_rows(cfg, params, ids, length=length, batch_size=batch_size),
    )[1],
  )
  longest = network.cfg.context_length
  ids = [[7] * length for length in (longest, 3, 8, 20, 1, 9, 5)]
  scores = rewards_lib.score_sequences(network, ids, batch_size=2)
  assert lengths == [(longest, 2), (16, 2), (16, 2), (16, 1)]
  alone = [
    score_rows(network.cfg, network.params, [row], length=longest, batch_size=2)[0] for row in ids
  ]
  np.testing.assert_allclose(scores, alone, atol=1e-5)


def test_the_suffix_can_be_given(inputs, scored):
  (line,) = scored([{"prompt": "who ?", "completion": "rex ."}], "--prompt_suffix= so")
  assert line["score"] == pytest.approx(by_hand(inputs, "who ?", "rex .", " so"), abs=1e-5)


def test_accuracy_over_untied_pairs(inputs, scored, capsys):
  texts = ["a goat .", "rex rex", "no", "the red hat ."]
  rewards = np.asarray([by_hand(inputs, "who ?", text) for text in texts])
  right = (np.argsort(np.argsort(-rewards)) + 1).tolist()
  lines = [
    {"prompt": "who ?", "completions": texts, "ranks": right},
    {"prompt": "who ?", "completions": texts[:2], "ranks": [1, 1]},
    {"prompt": "who ?", "completions": texts},
  ]
  scored(lines)
  assert "accuracy 100.0% (95 % interval 100.0% to 100.0%) over 6 untied pairs of 1 prompts" in (
    capsys.readouterr().out
  )
  lines[1]["ranks"] = [2, 1] if rewards[0] > rewards[1] else [1, 2]  # wrong
  scored(lines)
  out = capsys.readouterr().out
  assert f"accuracy {6 / 7:.1%}" in out and "over 7 untied pairs of 2 prompts" in out


def test_scores_that_are_not_finite_are_not_written(scored, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(rewards_lib, "score_rows", lambda *_, **__: np.asarray([1.0, np.nan]))
  with pytest.raises(SystemExit) as stopped:
    scored([{"prompt": "p", "completions": ["a", "b"]}])
  assert stopped.value.code == 1
  assert "error: 1 of 2 scores of the reward model are not finite" in capsys.readouterr().err
  assert not (tmp_path / "scored.jsonl").exists()


def test_ties_alone_have_no_accuracy(scored, capsys):
  scored([{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}])
  assert "accuracy: the ranks have no untied pair" in capsys.readouterr().out


def test_lines_without_ranks_have_no_accuracy(scored, capsys):
  scored([{"prompt": "p", "completions": ["a", "b"]}])
  assert "accuracy" not in capsys.readouterr().out


# ----------------------------------------------------------------------------- jsonl


def test_lines_are_written_whole_and_in_unicode(tmp_path):
  path = tmp_path / "deep" / "out.jsonl"
  workdir_lib.write_jsonl(path, [{"text": "né\n☃"}, {"n": 1}])
  assert path.read_text(encoding="utf-8") == '{"text": "né\\n☃"}\n{"n": 1}\n'
  assert [item.name for item in path.parent.iterdir()] == ["out.jsonl"]


# ----------------------------------------------------------------------------- train


def test_the_table_of_sizes(inputs, monkeypatch):
  monkeypatch.chdir(commands.ROOT)
  words = commands.train_flags(inputs, "sft", sft__batch_size=16)
  arguments = train.parse(["train", *words, "--workdir=x"])
  config = flags.load_config(arguments.config, arguments.overrides)
  table = {line[:40].strip(): line[40:].strip() for line in train.sizes(config).splitlines()}
  shape = ModelConfig(**commands.SHAPE)
  assert table == {
    "devices": "8 (cpu)",
    "mesh": "data 8 x fsdp 1 x tensor 1",
    "parameters outside the embeddings": f"{shape.num_block_params:,}",
    "context": f"{shape.context_length} tokens",
    "matrix products in": "float32",
    "attention": "reference",
    "batch": "16 rows, 2 on a device",
    "microbatch": "4 rows",
  }


@pytest.mark.parametrize("size", ["1.3b", "6b", "175b", "tiny"])
def test_configs_pass_their_own_checks(monkeypatch, size):
  """No number of a shipped config is refused; what is missing is data."""
  monkeypatch.chdir(commands.ROOT)
  for name in train.ALGORITHMS:
    config = flags.load_config(f"configs/{name}.py:{size}", (), name)
    train.load_algorithm(name).check_config(config)


# ----------------------------------------------------------------------------- errors


def test_errors_of_the_user_are_one_sentence(capsys, monkeypatch):
  monkeypatch.delenv("RLHF_TRACEBACK", raising=False)
  for error, status in ((ValueError("x is 3; use 4"), 2), (FloatingPointError("step 3: nan"), 1)):
    with pytest.raises(SystemExit) as stopped, startup.one_sentence_errors():
      raise error
    assert stopped.value.code == status
    assert capsys.readouterr().err == f"error: {error}\n"


def test_errors_of_the_program_keep_their_traceback(monkeypatch):
  monkeypatch.delenv("RLHF_TRACEBACK", raising=False)
  for error in (ValueError("many\nlines"), KeyError("x"), RuntimeError("y")):
    with pytest.raises(type(error)), startup.one_sentence_errors():
      raise error
  monkeypatch.setenv("RLHF_TRACEBACK", "1")
  with pytest.raises(ValueError), startup.one_sentence_errors():
    raise ValueError("x is 3; use 4")


def test_the_format_is_that_of_the_group_of_each_algorithm_unless_given():
  given = dict(prompt_format=None, prompt_suffix=None, completion_prefix=None)
  ask = lambda config, **more: models.prompt_format(
    prepare.PromptFormat.trained_with(config), argparse.Namespace(**given | more)
  )
  for group in ("demonstrations", "prompts", "comparisons"):
    config = {group: {"prompt_suffix": "?", "completion_prefix": "="}}  # before there were formats
    trained = prepare.PromptFormat(prompt_suffix="?", completion_prefix="=")
    assert ask(config) == trained
    config[group]["prompt_format"] = "plain"
    assert ask(config) == ask(config, prompt_format="plain") == trained
  assert ask({"text": {}}) == prepare.PLAIN
  assert ask(config, prompt_suffix="") == prepare.PromptFormat(
    prompt_suffix="", completion_prefix="="
  )
  in_chat = prepare.PromptFormat(prompt_format="chat", prompt_suffix="", completion_prefix="")
  chat = {"prompts": dict(prompt_format="chat", prompt_suffix="", completion_prefix="")}
  assert ask(chat) == ask({"text": {}}, prompt_format="chat") == in_chat
  assert ask(config, prompt_format="chat") == in_chat
  assert ask(chat, prompt_format="plain") == prepare.PLAIN
  with pytest.raises(ValueError, match="prompt_suffix is ':' with prompt_format chat"):
    ask(chat, prompt_suffix=":")


# ----------------------------------------------------------------------------- pool


def test_pool_prints_and_writes_the_table(tmp_path, monkeypatch, capsys):
  workdirs = [tmp_path / f"seed{seed}" for seed in range(2)]
  for seed, workdir in enumerate(workdirs):
    workdir_lib.write_json(workdir / "report" / "report.json", {"seed": seed})
  seen = []
  pooled = {
    "seeds": [0, 1],
    "win_rate_vs_sft": {},
    "paired_difference": {},
    "reward_model_accuracy": {"per_seed": {0: 0.5, 1: 0.75}, "pooled": 0.625, "n": 8},
    "labeler_agreement": {"per_seed": {0: None, 1: None}},
    "recovered": {
      name: {"per_seed": {0: None, 1: None}, "pooled": None}
      for name in ("pretraining_nll", "few_shot_mean")
    },
  }
  monkeypatch.setattr(pooling, "pooled_table", lambda paths: seen.append(paths) or pooled)
  flags = ["pool", *map(str, workdirs), f"--output={tmp_path / 'out'}"]
  pool.main(flags)
  assert seen == [list(map(str, workdirs))]
  assert "Reward-model accuracy" in capsys.readouterr().out
  assert {path.name for path in (tmp_path / "out").iterdir()} == {
    "pooled.json",
    "pooled.md",
    "pooled.html",
  }
  with pytest.raises(SystemExit):
    pool.main(flags)
  assert "pooled.json exists; name another, or add --overwrite" in capsys.readouterr().err
  pool.main([*flags, "--overwrite"])
