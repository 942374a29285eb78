"""Choosing by reward: the known best wins, prefixes are put before prompts and cut off, and the
commands that choose."""

import json
import shutil

import commands
import numpy as np
import pytest

from rlhf.cli import best_of_n, select
from rlhf.cli import few_shot_prefix as launch_prefix
from rlhf.cli.common import models
from rlhf.data import prepare
from rlhf.evals.reward_models import best_of_n as estimator
from rlhf.evals.reward_models import selection
from rlhf.inference import completions, prefixes
from rlhf.inference.completions import CompletionConfig, Completions
from rlhf.inference.prefixes import Prefix
from rlhf.tokenization.tokenizer import Tokenizer

TEXT = "Name a fruit.\n\nAnswer: An apple.\n###\nName a town.\n\nAnswer: Utrecht.\n###\n"

# ----------------------------------------------------------------------------- the choice itself


def test_the_highest_mean_is_chosen_and_the_first_of_equals():
  answers = {"a": [1.0, 2.0], "b": [4.0, 0.0], "c": [2.0, 2.0], "d": [0.0, 3.9]}
  seen = []
  choice = selection.choose(
    answers, answers.get, on_scored=lambda name, mean: seen.append((name, mean))
  )
  assert choice.best == "b" and choice.mean("b") == 2.0 == choice.mean("c")
  assert seen == [("a", 1.5), ("b", 2.0), ("c", 2.0), ("d", 1.95)]
  intervals = choice.intervals(num_resamples=50, seed=0)
  assert intervals["b"].mean == 2.0 and intervals["b"].n == 2
  assert (intervals["b"].low, intervals["c"].low) == (0.0, 2.0)


@pytest.mark.parametrize(
  "candidates,scores,message",
  [
    ([], {}, "there is no candidate"),
    (["a", "a"], {"a": [1.0]}, "a is given twice"),
    (["a", "b"], {"a": [1.0], "b": [1.0, 2.0]}, "score the same prompts for all"),
  ],
)
def test_impossible_choices_are_refused(candidates, scores, message: str):
  with pytest.raises(ValueError, match=message):
    selection.choose(candidates, scores.get)


# ----------------------------------------------------------------------------- prefixes


def test_a_prefix_stands_before_the_prompt_and_ends_the_answer():
  prefix = Prefix(text=TEXT)
  assert prefix.separator == "###"
  assert prefix.prompts(["Name a cat."]) == [TEXT + "Name a cat."]
  assert prefix.cut("Tom.\n###\nName a dog.") == ("Tom.", True)
  assert prefix.cut("Tom.\n\n### Name") == ("Tom.", True)
  assert prefix.cut("###\nName a dog.") == ("", True)
  assert prefix.cut("Tom ### and Kim.") == ("Tom ### and Kim.", False)
  beginning = Prefix(text="Q: a\nA: b\n\nQ: c\nA: d\n\nQ: ")
  assert beginning.cut("Tom.\n\nQ: what") == ("Tom.", True)
  assert beginning.prompts(["e"])[0].endswith("\n\nQ: e")


@pytest.mark.parametrize(
  "text,message",
  [
    (" \n", "the prefix is empty"),
    ("Name a fruit.\n\nAnswer: An apple.\n", "'Answer: An apple.'"),
    (TEXT.removesuffix("###\n"), "occurs only once"),
  ],
)
def test_what_is_no_prefix_is_named_with_its_file(tmp_path, text, message: str):
  (tmp_path / "p.txt").write_text(text)
  with pytest.raises(ValueError, match=f"p.txt: .*{message}"):
    prefixes.read(tmp_path / "p.txt")
  (tmp_path / "p.txt").write_bytes(b"caf\xe9")
  with pytest.raises(ValueError, match="p.txt is not UTF-8 at byte 3"):
    prefixes.read(tmp_path / "p.txt")
  with pytest.raises(ValueError, match="none.txt does not exist"):
    prefixes.read(tmp_path / "none.txt")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
  return Tokenizer.train_bpe([TEXT], 300)


def test_answers_come_back_as_if_the_prompt_had_been_asked_alone(tokenizer, monkeypatch):
  p = CompletionConfig(
    max_prompt_tokens=99, max_response_tokens=9, temperature=1.0, batch_size=2, **commands.FORMAT
  )
  asked = []

  def sample(network, prompts, *unused, **also):
    asked.extend(prompts)
    return Completions(
      texts=[["Tom.\n###\nName"], ["Kim"], ["Ann"]],
      ids=[[None]] * 3,
      finished=[[False], [False], [True]],
    )

  monkeypatch.setattr(completions, "sample", sample)

  class Net:
    pass

  Net.tokenizer = tokenizer
  prompts = ["Name a cat.", "Name a dog.", "Name a hen."]
  drawn = prefixes.sample(Net, Prefix(text=TEXT), prompts, p, None)
  assert asked == [TEXT + prompt for prompt in prompts]
  assert drawn.texts == [["Tom."], ["Kim"], ["Ann"]]
  assert drawn.finished == [[True], [False], [True]]
  expected = prepare.tokenize_demonstrations(
    [{"prompt": prompt, "completion": text} for prompt, (text,) in zip(prompts, drawn.texts)],
    tokenizer,
  )
  for (ids,), whole, ended in zip(drawn.ids, expected, (True, False, True)):
    assert ids.tolist() == (whole.ids if ended else whole.ids[:-1]).tolist()
  prefixes.sample(Net, None, ["alone"], p, None)
  assert asked[-1] == "alone"


def test_drawn_prefixes_differ_fit_and_hold_so_many_examples(tokenizer):
  demonstrations = [
    {"prompt": f"p{i}" + "x" * 90 * (i % 7 == 0), "completion": f"c{i}"} for i in range(40)
  ] + [{"prompt": "bad\n### x", "completion": "c"}]
  found = prefixes.draw(
    demonstrations, tokenizer, num_prefixes=6, num_shots=3, max_tokens=90, seed=1
  )
  assert len({prefix.text for prefix in found}) == 6
  for prefix in found:
    assert len(tokenizer.encode(prefix.text)) <= 90
    shots = prefix.text.split("###\n")
    assert shots[0] == shots[-1] == "" and len(shots) == 5
    for shot in shots[1:-1]:
      prompt, completion = shot.removesuffix("\n").split("\n\nAnswer: ")
      assert {"prompt": prompt, "completion": completion} in demonstrations
  with pytest.raises(ValueError, match="30 demonstrations do not fit into max_tokens 90"):
    prefixes.draw(demonstrations, tokenizer, num_prefixes=1, num_shots=30, max_tokens=90)


# ----------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def inputs(session_inputs) -> commands.Inputs:
  return session_inputs


@pytest.fixture
def flags(inputs, tmp_path):
  return [
    f"--reward_model={inputs.reward}",
    f"--prompts={inputs.spec('prompts_ppo_valid')}",
    "--max_response_tokens=4",
    "--batch_size=8",
    f"--output={tmp_path / 'out'}",
  ]


def test_select_takes_a_directory_of_exports_and_writes_the_best(
  inputs, flags, tmp_path, monkeypatch, capsys
):
  """The known best: a reward that counts the letters that its candidate's name stands for."""
  for name in ("01", "02"):
    shutil.copytree(inputs.policy, tmp_path / "epochs" / name)
  values = {"01": 1.0, "02": 3.0, "policy": 2.0}
  loaded = []
  monkeypatch.setattr(models.Model, "load", lambda self: loaded.append(self.name))
  monkeypatch.setattr(
    completions,
    "sample",
    lambda network, prompts, *unused, **options: Completions(
      texts=[[loaded[-1].rpartition("/")[2]] for _ in prompts], ids=[], finished=[]
    ),
  )
  monkeypatch.setattr(
    models,
    "load_reward_model",
    lambda name, flag, batch_size: (
      lambda texts: np.asarray([values[answer] for _, answer in texts])
    ),
  )
  select.main(
    ["select", f"--candidates={tmp_path / 'epochs'},{inputs.policy}", *flags, "--num_prompts=5"]
  )
  found = json.loads((tmp_path / "out").read_text())
  assert loaded == [
    str(tmp_path / "epochs" / "01"),
    str(tmp_path / "epochs" / "02"),
    str(inputs.policy),
  ]
  assert found["best"] == str(tmp_path / "epochs" / "02") and found["num_prompts"] == 5
  assert [line["mean"] for line in found["candidates"]] == [1.0, 3.0, 2.0]
  assert "has the highest reward 3 over 5 prompts" in capsys.readouterr().out


def test_prefixes_are_drawn_chosen_and_written(inputs, flags, tmp_path, monkeypatch):
  (tmp_path / "mine.txt").write_text("##\na\n##\n")
  monkeypatch.setattr(
    prefixes,
    "sample",
    lambda network, prefix, prompts, *unused: Completions(
      texts=[[prefix.text] for _ in prompts], ids=[], finished=[]
    ),
  )
  monkeypatch.setattr(
    models,
    "load_reward_model",
    lambda name, flag, batch_size: (
      lambda texts: np.asarray([float(answer.count("#")) for _, answer in texts])
    ),
  )
  launch_prefix.main(
    [
      "few_shot_prefix",
      f"--checkpoint={inputs.policy}",
      f"--prefixes={tmp_path / 'mine.txt'}",
      f"--demonstrations={inputs.spec('demonstrations_train')}",
      "--num_prefixes=2",
      "--num_shots=1",
      "--separator=#",
      "--max_prefix_tokens=40",
      *flags,
      "--overwrite",
    ]
  )
  out = tmp_path / "out"
  found = json.loads((out / "selection.json").read_text())
  assert [line["prefix"] for line in found["candidates"]] == [
    str(tmp_path / "mine.txt"),
    "drawn 1",
    "drawn 2",
  ]
  assert found["best"] == str(tmp_path / "mine.txt")
  assert (out / "best.txt").read_text() == (out / "candidate_1.txt").read_text() == "##\na\n##\n"
  assert (out / "candidate_3.txt").read_text().count("#") == 2


@pytest.fixture
def ppo_run(tmp_path):
  (tmp_path / "ppo" / "validation").mkdir(parents=True)
  commands.write_jsonl(
    tmp_path / "ppo" / "validation" / "step_000000.jsonl",
    [dict(prompt="p", response="r", reward=0.5, kl=0.0)],
  )
  return tmp_path / "ppo"


def test_best_of_n_writes_curves_of_each_rule_and_of_ppo(inputs, ppo_run, tmp_path, capsys):
  samples = commands.write_jsonl(
    tmp_path / "samples.jsonl",
    [
      dict(
        prompt=f"who is {name} ?",
        completions=["a goat .", "no", "what", "a big goat ."],
        gold=[1.0, 0.0, 0.5, 2],
      )
      for name in ("dara", "rura", "mira")
    ],
  )
  other = tmp_path / "other"
  shutil.copytree(inputs.reward, other)
  best_of_n.main(
    [
      "best_of_n",
      f"--samples={samples}",
      f"--reward_model={inputs.reward},{other}",
      f"--ppo={ppo_run}",
      f"--output={tmp_path / 'out'}",
    ]
  )
  found = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
  assert list(found["curves"]) == [
    "best of n, one model",
    "best of n, mean of 2",
    "best of n, min of 2",
    "best of n, mean minus variance of 2",
    "ppo",
  ]
  one, least = (found["curves"][f"best of n, {name}"] for name in ("one model", "min of 2"))
  assert one == least  # two members that agree
  assert [point["n"] for point in one] == [1, 2, 3, 4]
  assert one[0]["gold"]["mean"] == pytest.approx(3.5 / 4)
  assert found["curves"]["ppo"][0]["proxy"]["mean"] == 0.5
  scored = commands.read_jsonl(tmp_path / "out" / "scored.jsonl")
  best = [line["gold"][int(np.argmax(line["scores"][str(inputs.reward)]))] for line in scored]
  assert one[-1]["gold"]["mean"] == pytest.approx(np.mean(best))
  law = found["gold_laws"]["best of n, one model"]
  gold_M = np.asarray([point["gold"]["mean"] for point in one])
  alpha, beta = estimator.fit(
    np.sqrt([point["kl"] for point in one]), gold_M - gold_M[0], "best_of_n"
  )
  assert law == {"form": "best_of_n", "alpha": pytest.approx(alpha), "beta": pytest.approx(beta)}
  assert "ppo" not in found["gold_laws"]  # one point at 0
  assert (tmp_path / "out" / "over_optimization.png").read_bytes().startswith(b"\x89PNG")
  assert "best of n, min of 2" in capsys.readouterr().out


def test_an_answer_beyond_the_reward_models_context_is_read_up_to_there(inputs, capsys):
  score = models.load_reward_model(str(inputs.reward), "reward_model", 4)
  length = commands.SHAPE["context_length"]
  long = "goat " * 2 * length
  alone, cut, longer = score([("who ?", "a goat ."), ("who ?", long), ("who ?", long + "no")])
  assert cut == longer != alone
  assert "2 of 3 completions are cut to the context of" in capsys.readouterr().out
  with pytest.raises(ValueError, match="whose context is 64; leave it out"):
    score([(long, "a goat .")])


@pytest.mark.slow
def test_networks_answer_and_score_in_every_command(inputs, flags, tmp_path):
  """Untrained networks, nothing replaced: what is written is what they say."""
  shutil.copytree(inputs.policy, tmp_path / "twin")
  select.main(
    ["select", f"--candidates={inputs.policy},{tmp_path / 'twin'}", *flags, "--num_prompts=6"]
  )
  found = json.loads((tmp_path / "out").read_text())
  first, twin = found["candidates"]
  assert first["mean"] == twin["mean"] and found["best"] == str(inputs.policy)
  shots = commands.write_jsonl(
    tmp_path / "shots.jsonl", [dict(prompt=letter, completion="a") for letter in "abc"]
  )
  launch_prefix.main(
    [
      "few_shot_prefix",
      f"--checkpoint={inputs.policy}",
      *flags,
      f"--output={tmp_path / 'prefix'}",
      f"--demonstrations={shots}",
      "--num_prefixes=2",
      "--num_shots=1",
      "--num_prompts=4",
      "--temperature=0",
    ]
  )
  found = json.loads((tmp_path / "prefix" / "selection.json").read_text())
  assert found["num_prompts"] == 4 and len(found["candidates"]) == 2
  assert prefixes.read(tmp_path / "prefix" / "best.txt").separator == "###"
  world = [line for line in commands.read_jsonl(inputs.data / "prompts_test.jsonl")][:3]
  samples = commands.write_jsonl(
    tmp_path / "samples.jsonl",
    [dict(line, completions=["yes .", "a goat .", line["prompt"]]) for line in world],
  )
  validation = tmp_path / "ppo" / "validation"
  validation.mkdir(parents=True)
  commands.write_jsonl(
    validation / "step_000000.jsonl",
    [
      dict(prompt=line["prompt"], response="yes .", reward=0.0, kl=0.0)
      for line in commands.read_jsonl(inputs.data / "prompts_ppo_valid.jsonl")
    ],
  )
  best_of_n.main(
    [
      "best_of_n",
      f"--samples={samples}",
      f"--reward_model={inputs.reward}",
      "--gold=tinyworld:0",
      f"--ppo={tmp_path / 'ppo'}",
      f"--output={tmp_path / 'curves'}",
      f"--ppo_prompts={inputs.data / 'prompts_ppo_valid.jsonl'}",
    ]
  )
  curves = json.loads((tmp_path / "curves" / "best_of_n.json").read_text())["curves"]
  assert list(curves) == ["best of n", "ppo"]
  assert all(0 <= point["gold"]["mean"] <= 1 for points in curves.values() for point in points)


@pytest.mark.parametrize(
  "command,more,message",
  [
    (select.main, ["--candidates=nowhere"], "nowhere does not exist"),
    (select.main, ["--candidates=POLICY,POLICY"], "is given twice"),
    (select.main, ["--candidates=REWARD"], "is a reward export; it must be a policy"),
    (select.main, ["--candidates=POLICY", "--prompts=pandalm:none.jsonl"], "none.jsonl does not"),
    (select.main, ["--candidates=POLICY", "--max_response_tokens=64"], "prompts fits with"),
    (launch_prefix.main, ["--checkpoint=POLICY"], "there is no candidate"),
    (launch_prefix.main, ["--checkpoint=POLICY", "--prefixes=none.txt"], "none.txt does not exist"),
    (
      launch_prefix.main,
      ["--checkpoint=POLICY", "--demonstrations=DEMOS", "--num_shots=40"],
      "40 demonstrations do not fit",
    ),
  ],
)
def test_bad_flags_end_with_one_sentence_and_write_nothing(
  inputs, flags, tmp_path, capsys, command, more, message: str
):
  names = dict(
    POLICY=inputs.policy, REWARD=inputs.reward, DEMOS=inputs.spec("demonstrations_train")
  )
  for name, path in names.items():
    more = [flag.replace(name, str(path)) for flag in more]
  with pytest.raises(SystemExit) as stopped:
    command(["program", *flags, *more])
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "lines,more,message",
  [
    ([dict(prompt="p", completion="c")], [], 'has no list "completions" of two or more samples'),
    (
      [dict(prompt="p", completions=["a", "b"]), dict(prompt="q", completions=["a"])],
      [],
      "samples.jsonl:2 has 1 completions, but the first line has 2",
    ),
    ([dict(prompt="p", completions=["a", "b"], gold=[1.0])], [], '"gold" must be a list of 2'),
    ([dict(prompt="p", completions=["a", "b"])], ["--gold=tinyworld:x"], "give the world's seed"),
    ([dict(prompt="p", completions=["a", "b"])], ["--gold=tinyworld:0"], 'has no "task"'),
  ],
  ids=str,
)
def test_bad_samples(inputs, tmp_path, capsys, lines, more, message: str):
  path = commands.write_jsonl(tmp_path / "samples.jsonl", lines)
  with pytest.raises(SystemExit) as stopped:
    best_of_n.main(
      [
        "best_of_n",
        f"--samples={path}",
        f"--reward_model={inputs.reward}",
        f"--output={tmp_path / 'out'}",
        *more,
      ]
    )
  error = capsys.readouterr().err
  assert stopped.value.code == 2 and message in error and error.count("\n") == 1, error
  assert not (tmp_path / "out").exists()
