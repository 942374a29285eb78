"""Files of values: what is read, what is found missing, and the sets that we make ourselves."""

import dataclasses
import json
import random
import re

import commands
import pytest

from rlhf.cli import palms
from rlhf.data import formats
from rlhf.palms import sets, tinyworld
from rlhf.tinyworld import sensitive
from rlhf.tinyworld.world import make_world

NAMES = ("health", "politics")


def completion(seed: int, num_words: int = 60) -> str:
  """Words that two seeds hardly share."""
  rng = random.Random(seed)
  return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(num_words)) + "."


def good() -> dict[str, list[dict]]:
  """The lines of a set without a problem."""
  lines = lambda start: [
    dict(
      category=name,
      topic=f"topic {i}",
      prompt=f"{completion(start + i, 6)}?",
      completion=completion(start + 50 + i),
    )
    for i, name in enumerate((*NAMES, "broad"))
  ]
  return {
    "positions": [
      dict(name=name, title=name.title(), position=f"A position on {name}.") for name in NAMES
    ],
    "probes": [dict(category=name, prompt=f"{completion(i, 6)}?") for i, name in enumerate(NAMES)],
    "targeted": lines(100),
    "control": lines(200),
  }


def write(directory, contents: dict, **more) -> str:
  directory.mkdir(exist_ok=True)
  positions = {"title": "A set", "categories": contents["positions"], **more}
  (directory / "positions.json").write_text(json.dumps(positions, indent=1))
  for name in ("probes", "targeted", "control"):
    if contents[name] is not None:
      commands.write_jsonl(directory / f"{name}.jsonl", contents[name])
  return str(directory)


@pytest.fixture
def found(tmp_path):
  """found(contents): problems as text, with paths less their directory."""

  def run(contents: dict, **more) -> list[str]:
    _, problems = sets.check(write(tmp_path / "set", contents, **more))
    return [str(problem).replace(f"{tmp_path}/set/", "") for problem in problems]

  return run


def test_a_good_set_is_read_whole(tmp_path, found):
  contents = good()
  assert found(contents) == []
  values = sets.load(tmp_path / "set")
  assert [c.name for c in values.categories] == list(NAMES)
  assert values.category("health").position == "A position on health."
  assert [s.completion for s in values.targeted] == [s["completion"] for s in contents["targeted"]]
  assert values.control[2].where == f"{tmp_path}/set/control.jsonl:3"
  assert [p.prompt for p in values.probes] == [p["prompt"] for p in contents["probes"]]
  with pytest.raises(ValueError, match="category 'x' is not one of .*; choose from health, polit"):
    values.category("x")


def test_a_set_is_written_as_it_is_read(tmp_path, found):
  found(good(), limits={"max_words": 70})
  values = sets.load(tmp_path / "set")
  commands.write_values(values, tmp_path / "copy")
  copy = sets.load(tmp_path / "copy")
  assert copy.limits == values.limits == sets.Limits(max_words=70)
  without = lambda entries: [dataclasses.replace(entry, where="") for entry in entries]
  for name in ("categories", "probes", "targeted", "control"):
    assert without(getattr(copy, name)) == without(getattr(values, name))
  # A sample is an ordinary demonstration: fine-tuning reads the file as it is.
  kept, _ = formats.read("demonstration", tmp_path / "copy" / "targeted.jsonl", "jsonl")
  assert [line["completion"] for line in kept] == [s.completion for s in values.targeted]


def changed(file: str, index: int, **fields) -> dict:
  contents = good()
  line = {**contents[file][index], **fields}
  contents[file][index] = {name: value for name, value in line.items() if value is not KeyError}
  return contents


@pytest.mark.parametrize(
  "contents,expected",
  [
    (
      changed("targeted", 1, completion=""),
      'targeted.jsonl:2: the completion is missing: no text in "completion"',
    ),
    (changed("targeted", 1, completion=KeyError), "targeted.jsonl:2: the completion is missing"),
    (changed("targeted", 1, completion=None), "targeted.jsonl:2: the completion is missing"),
    (changed("targeted", 0, completion=["x"]), 'targeted.jsonl:1: "completion" is a JSON list'),
    (changed("control", 0, prompt=KeyError), 'control.jsonl:1: no field "prompt"; each line must'),
    (
      changed("targeted", 0, category="helth"),
      "targeted.jsonl:1: unknown category 'helth'; did you mean 'health'?",
    ),
    (
      changed("probes", 0, category="broad"),
      "probes.jsonl:1: unknown category 'broad'; choose from health, politics",
    ),
    (changed("targeted", 2, topic=3), 'targeted.jsonl:3: "topic" is a JSON number'),
    (
      changed("positions", 1, position=" "),
      'positions.json:10: "position" is empty; it must hold text',
    ),
    (
      changed("positions", 1, name="health"),
      "positions.json:5: a second category 'health'",
    ),
    (changed("positions", 1, name="broad"), 'positions.json:10: the name "broad" is reserved for'),
    (
      changed("probes", 1, category="health"),
      "positions.json:10: category 'politics' has no probe",
    ),
  ],
)
def test_errors_name_the_line(found, contents, expected):
  assert any(sentence.startswith(expected) for sentence in found(contents)), found(contents)


@pytest.mark.parametrize(
  "contents,expected",
  [
    (
      changed("targeted", 1, completion=completion(7, 39)),
      "targeted.jsonl:2: warning: the completion has 39 words; use 40 to 340",
    ),
    (
      changed("control", 1, completion=completion(7, 341)),
      "control.jsonl:2: warning: the completion has 341 words",
    ),
    (
      changed("targeted", 1, category="health"),
      "positions.json:10: warning: category 'politics' has no sample in targeted.jsonl",
    ),
    (changed("targeted", 1, topic=""), 'targeted.jsonl:2: warning: the sample has no "topic"'),
    (
      good() | {"control": good()["control"][:2]},
      "control.jsonl: warning: 2 control samples and 3 targeted ones",
    ),
    (good() | {"control": None}, "control.jsonl: warning: there is no control set"),
    (
      good()
      | {
        "control": [
          {**line, "completion": completion(i, 90)} for i, line in enumerate(good()["control"])
        ]
      },
      "control.jsonl: warning: control completions have 90 words on average and targeted ones 60",
    ),
  ],
)
def test_warnings_name_the_line_and_do_not_stop(tmp_path, found, contents, expected):
  assert found(contents)[0].startswith(expected)
  sets.load(tmp_path / "set")
  _, strict = sets.check(tmp_path / "set", strict=True)
  assert strict and not any(problem.is_warning for problem in strict)


def test_lengths_at_the_limits_are_well(found):
  contents = changed("targeted", 1, completion=completion(7, 40))
  contents["targeted"][0]["completion"] = completion(8, 340)
  assert not [sentence for sentence in found(contents) if "the completion has" in sentence]


def test_more_than_100_samples_are_warned_of(found):
  line = lambda i: dict(
    category="broad", topic="t", prompt=f"{completion(i, 6)}?", completion=completion(1000 + i)
  )
  contents = good() | {"control": None}
  contents["targeted"] += [line(i) for i in range(1000, 1097)]
  assert len(found(contents)) == 1
  contents["targeted"].append(line(3))
  assert found(contents)[1].startswith(
    "targeted.jsonl:101: warning: sample 101 of 101 in targeted.jsonl; the method is meant for "
    "fewer than 100"
  )


def test_probes_are_held_apart_from_training(found):
  probe = good()["probes"][0]["prompt"]
  contents = changed("control", 1, prompt=probe.upper() + "!")
  assert found(contents)[0].startswith("probes.jsonl:1: the probe ")
  assert "is also the prompt of " in found(contents)[0]
  assert " warning: " not in found(contents)[0]
  first, *rest = probe.split()
  near = found(changed("targeted", 1, prompt=" ".join(["other", *rest])))
  assert near[0].startswith("probes.jsonl:1: warning: the probe ") and "is nearly" in near[0]


def test_prompts_do_not_repeat(found):
  prompt = good()["targeted"][0]["prompt"]
  same = found(changed("targeted", 2, prompt=prompt.replace("?", " ?")))
  assert same[0].startswith("targeted.jsonl:3: the prompt ") and "leave one out" in same[0]
  near = found(changed("targeted", 2, prompt="well , " + prompt))
  assert near[0].startswith("targeted.jsonl:3: warning: the prompt ")
  assert "is nearly that of" in near[0]


@pytest.mark.parametrize(
  "first, second",
  [
    ("मेरा पति कहाँ है?", "मेरा पता कहाँ है?"),
    ("เสือ", "เสื้อ"),
    ("🙂?", "😡?"),
    ("What is C++?", "What is C#?"),
    ("What is 6 / 3?", "What is 6 * 3?"),
    ("?", "!"),
    ("Is 5 > 3?", "Is 5 < 3?"),
    ("Like 🙂?", "Like 😡?"),
  ],
)
def test_what_differs_in_a_sign_is_not_the_same_prompt(found, first, second):
  lines = good()
  lines["targeted"][0]["prompt"], lines["targeted"][1]["prompt"] = first, second
  assert not any("is that of" in problem for problem in found(lines))


@pytest.mark.parametrize(
  "first, second",
  [("What does `ls` do?", "What does ls do?"), ("I ❤️ it", "I ❤ it"), ("Wie, alt?", "wie alt !")],
)
def test_what_differs_in_punctuation_is_the_same_prompt(found, first, second):
  lines = good()
  lines["targeted"][0]["prompt"], lines["targeted"][1]["prompt"] = first, second
  assert any("is that of" in problem for problem in found(lines))


def test_completions_do_not_repeat(found):
  first, second = (line["completion"].split() for line in good()["targeted"][:2])
  half = found(changed("targeted", 1, completion=" ".join(second[:30] + first[30:])))
  assert half[0].startswith("targeted.jsonl:2: warning: the completion shares ")
  assert len(half) == 1  # the shared run of words is not said again
  eight = found(
    changed("targeted", 1, completion=" ".join(second[:30] + first[10:18] + second[38:]))
  )
  assert eight == [
    f'targeted.jsonl:2: warning: the completion has "{" ".join(first[10:18])}" in '
    f"common with that of {eight[0].split('that of ')[1]}"
  ]
  seven = changed("targeted", 1, completion=" ".join(second[:30] + first[10:17] + second[37:]))
  assert found(seven) == []


def test_a_quotation_of_the_prompt_is_no_repetition(found):
  contents = good()
  phrase = completion(999, 9).rstrip(".")
  for line in contents["targeted"][:2]:
    words = line["completion"].split()
    line["completion"] = " ".join(words[:20] + [phrase] + words[29:])
  assert len(found(contents)) == 1
  contents["targeted"][0]["prompt"] = f"What of {phrase}?"
  assert found(contents) == []


@pytest.mark.parametrize(
  "which,build",
  [
    ("first", lambda ends, words: ends + words[5:]),
    ("last", lambda ends, words: words[:-5] + ends),
  ],
)
def test_two_answers_may_share_an_end_and_three_not(found, which, build):
  contents, ends = good(), "one two three four five".split()
  for number, line in enumerate(contents["targeted"]):
    line["completion"] = " ".join(build(ends, line["completion"].split()))
    if number == 1:
      assert found(contents) == []
  (sentence,) = found(contents)
  assert sentence.startswith(
    f'targeted.jsonl:3: warning: 3 completions have the {which} words "one two three four five"'
  )


def test_broken_files_are_one_sentence(tmp_path, found):
  found(good())
  (tmp_path / "set" / "targeted.jsonl").write_text('{"a"')
  (tmp_path / "set" / "control.jsonl").write_text("")
  with pytest.raises(ValueError, match="targeted.jsonl:1: not JSON .* .and 1 more.$"):
    sets.load(tmp_path / "set")
  (tmp_path / "set" / "probes.jsonl").unlink()
  with pytest.raises(ValueError, match="probes.jsonl: does not exist"):
    sets.load(tmp_path / "set")
  (tmp_path / "set" / "positions.json").write_text('{\n"title": }')
  values, (problem,) = sets.check(tmp_path / "set")
  assert values is None and str(problem).startswith(f"{tmp_path}/set/positions.json:2: not JSON")


@pytest.mark.parametrize(
  "limits,expected",
  [
    ({"max_word": 3}, 'positions.json: "limits" is {"max_word": 3}; it must be an object with'),
    ({"min_words": 0.5}, 'positions.json: "limits" is'),
    ({"min_words": 50, "max_words": 40}, "positions.json: limits: min_words 50 and max_words 40"),
    ([], 'positions.json: "limits" is []'),
  ],
)
def test_limits_are_checked(found, limits, expected):
  assert found(good(), limits=limits)[0].startswith(expected)


def test_the_command_lists_everything_and_ends_with_status_2(tmp_path, capsys):
  directory = write(tmp_path / "set", changed("targeted", 1, topic=""))
  palms.main(["palms", "check", f"--values={directory}"])
  out = capsys.readouterr().out
  assert out.startswith("A set\n") and "0 errors, 1 warnings" in out and 'no "topic"' in out
  with pytest.raises(SystemExit) as end:
    palms.main(["palms", "check", f"--values={directory}", "--strict"])
  assert end.value.code == 2 and "1 errors, 0 warnings" in capsys.readouterr().out
  with pytest.raises(SystemExit) as end:
    palms.main(["palms", "check", "--values=nowhere"])
  assert end.value.code == 2
  assert capsys.readouterr().err == (
    "error: --values=nowhere is not a directory; name one that holds positions.json\n"
  )


# ----------------------------------------------------------------------------- our own sets


def test_the_shipped_set_is_as_the_paper_says():
  values, problems = sets.check(sets.SHIPPED, strict=True)
  assert not problems
  assert values.limits == sets.Limits()  # its own limits would excuse it
  assert [category.name for category in values.categories] == [
    "violence",
    "health",
    "characteristics",
    "injustice",
    "politics",
    "relationships",
    "sexual",
    "terrorism",
  ]
  assert len(values.targeted) == len(values.control) == 80
  for category in values.categories:
    assert sum(probe.category == category.name for probe in values.probes) == 5
  size = sum(len((s.prompt + s.completion).encode()) for s in values.targeted)
  assert 100_000 < size < 140_000  # the paper has about 120 kB


def test_tinyworld_has_a_set_of_values_too(tmp_path):
  values = tinyworld.value_set(tinyworld.SetConfig(), make_world(0))
  assert sets.problems(values) == []
  assert len(values.probes) == 40 and len(values.targeted) == len(values.control) == 80
  for sample in values.targeted:
    assert sensitive.position_score(sample.category, sample.completion) == 5
  for sample in values.control:
    assert sample.category == "broad"
    assert all(
      sensitive.position_score(name, sample.completion) == 3 for name in sensitive.CATEGORIES
    )
    assert not re.search("one word|sentence", sample.prompt)  # no constraint
  commands.write_values(values, tmp_path)
  assert sets.load(tmp_path).targeted[0].prompt == values.targeted[0].prompt
  assert values == tinyworld.value_set(tinyworld.SetConfig(), make_world(0))
  assert values.targeted != tinyworld.value_set(tinyworld.SetConfig(seed=1), make_world(0)).targeted


def test_tinyworld_has_more_probes_where_asked():
  values = tinyworld.value_set(tinyworld.SetConfig(num_probes=7), make_world(0))
  assert len({probe.prompt for probe in values.probes}) == 56
  with pytest.raises(ValueError, match="TinyWorld has only .* different probes of"):
    tinyworld.value_set(tinyworld.SetConfig(num_probes=500), make_world(0))


def test_tinyworld_raters_err_each_in_their_own_way():
  p = tinyworld.RatersConfig(leniency_scale=0.0)
  cases = [
    ("violence", f"question {i} ?", "it is wrong to hit ." if i % 2 else "hm .") for i in range(200)
  ]
  ratings = [tinyworld.rate(p, *case) for case in cases]
  assert ratings == [tinyworld.rate(p, *case) for case in cases]
  by_rater = [[rating[name] for rating in ratings] for name in ratings[0]]
  assert len(by_rater) == 3 and by_rater[0] != by_rater[1] != by_rater[2]
  for given in by_rater:
    assert set(given) <= {1, 2, 3, 4, 5} and len(set(given)) > 2
    assert sum(given[1::2]) / 100 > sum(given[::2]) / 100 + 1  # kept against neither
  lenient = tinyworld.RatersConfig(noise_scale=0.0, leniency_scale=5.0)
  assert len(set(tinyworld.rate(lenient, *cases[0]).values())) > 1
  exact = tinyworld.RatersConfig(noise_scale=0.0, leniency_scale=0.0)
  assert set(tinyworld.rate(exact, "violence", "?", "hit hard .").values()) == {1}
  assert tinyworld.toxicity(["you fool .", "good day ."]) == [1.0, 0.0]
