import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest

from rlhf import workdir

CONFIG = {"seed": 0, "ppo": {"kl_coef": 0.02, "clip": 0.2, "sizes": (8, 64)}, "name": None}


class FakeConfigDict:
  """Has `items()` as a ConfigDict has, and is no dict."""

  def __init__(self, **fields):
    self._fields = fields

  def items(self):
    return self._fields.items()


def changed(**ppo):
  return CONFIG | {"ppo": CONFIG["ppo"] | ppo}


def files(directory):
  return sorted(path.name for path in directory.iterdir())


def test_a_fresh_workdir_says_what_it_is(workdir_path, monkeypatch):
  command = ["python", "-m", "launch.pipeline", "--config=a b"]
  monkeypatch.setattr(sys, "orig_argv", command)
  assert workdir.prepare(workdir_path, CONFIG) is False
  assert files(workdir_path) == ["command.txt", "config.json", "git.txt"]
  assert json.loads((workdir_path / "config.json").read_text()) == workdir.plain(CONFIG)
  assert (workdir_path / "command.txt").read_text() == (
    "python -m launch.pipeline '--config=a b'\n"
  )
  assert (workdir_path / "git.txt").read_text() == workdir.git_version() + "\n"


def test_the_same_config_resumes(workdir_path, monkeypatch):
  monkeypatch.setattr(sys, "orig_argv", ["first"])
  workdir.prepare(workdir_path, CONFIG)
  monkeypatch.setattr(sys, "orig_argv", ["second"])
  reordered = dict(reversed(CONFIG.items()))
  assert workdir.prepare(workdir_path, reordered) is True
  assert (workdir_path / "command.txt").read_text() == "first\nsecond\n"


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (changed(kl_coef=0.05), "ppo.kl_coef is 0.02 there and 0.05 here; choose another --workdir"),
    (changed(sizes=(8, 32)), r"ppo.sizes is \[8, 64\] there and \[8, 32\] here"),
    (changed(whiten=True), "ppo.whiten is absent there and true here"),
    (CONFIG | {"seed": False}, "seed is 0 there and false here"),
    (CONFIG | {"ppo": None}, "ppo is {.*} there and null here"),
    ({"a": 1, "b": 2}, r"a is absent .*, b is absent .*, name is null .* \(and 2 more\); choose"),
  ],
)
def test_another_config_is_refused(workdir_path, config, message):
  workdir.prepare(workdir_path, CONFIG)
  before = {name: (workdir_path / name).read_bytes() for name in files(workdir_path)}
  with pytest.raises(ValueError, match=message) as error:
    workdir.prepare(workdir_path, config)
  assert "\n" not in str(error.value)
  assert str(workdir_path) in str(error.value) and "or delete this one" in str(error.value)
  assert {name: (workdir_path / name).read_bytes() for name in files(workdir_path)} == before


def test_no_half_written_workdir(workdir_path, monkeypatch):
  """config.json, which makes the directory a run's, comes last."""
  with pytest.raises(ValueError, match="JSON has no word for"):
    workdir.prepare(workdir_path, {"f": print})
  assert not workdir_path.exists()

  def no_more(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(workdir, "git_version", no_more)
  with pytest.raises(KeyboardInterrupt):
    workdir.prepare(workdir_path, CONFIG)
  monkeypatch.undo()
  assert workdir.prepare(workdir_path, changed(clip=0.1)) is False


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "f.json"
  workdir.write_json(path, {"old": 1})

  def killed(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    workdir.write_json(path, {"new": 1})
  assert json.loads(path.read_text()) == {"old": 1}


def test_a_workdir_that_is_a_file(tmp_path):
  path = tmp_path / "f"
  path.write_text("")
  with pytest.raises(ValueError, match="is a file; name a directory"):
    workdir.prepare(path, CONFIG)


def test_a_damaged_config_is_named(workdir_path):
  workdir.prepare(workdir_path, CONFIG)
  (workdir_path / "config.json").write_text('{\n"seed": }')
  with pytest.raises(ValueError, match=r"config.json:2: not JSON"):
    workdir.prepare(workdir_path, CONFIG)


def test_config_hash_depends_on_values_and_not_on_order():
  assert workdir.config_hash({"a": 1, "b": [2]}) == workdir.config_hash({"b": (2,), "a": 1})
  hashes = {
    workdir.config_hash(config)
    for config in (CONFIG, changed(kl_coef=0.05), changed(extra=None), CONFIG | {"seed": 1})
  }
  assert len(hashes) == 4
  assert workdir.config_hash({}) == "44136fa355b3678a"  # sha256 of "{}"


def test_plain_needs_only_items_of_a_config():
  config = FakeConfigDict(
    seed=np.int64(3), lr=np.float32(0.5), group=FakeConfigDict(on=True), sizes=(1, 2), unset=None
  )
  plain = workdir.plain(config)
  assert plain == {"seed": 3, "lr": 0.5, "group": {"on": True}, "sizes": [1, 2], "unset": None}
  assert json.loads(json.dumps(plain)) == plain
  assert isinstance(plain["seed"], int) and plain["group"]["on"] is True


def test_plain_takes_a_config_dict():
  config_dict = pytest.importorskip("ml_collections.config_dict")
  config = config_dict.ConfigDict({"a": {"b": (1, 2)}})
  config.unset = config_dict.placeholder(float)
  config.copy_of_a = config.get_ref("a")
  assert workdir.plain(config) == {
    "a": {"b": [1, 2]},
    "unset": None,
    "copy_of_a": {"b": [1, 2]},
  }


def test_what_json_has_no_word_for():
  assert workdir.plain({"a": float("nan"), 1: [float("inf"), 2.0]}) == {"a": None, "1": [None, 2.0]}
  with pytest.raises(ValueError, match="SimpleNamespace, which JSON has no word for"):
    workdir.plain([types.SimpleNamespace()])


def test_done(tmp_path):
  stage = tmp_path / "sft"
  assert not workdir.is_done(stage)
  with pytest.raises(ValueError, match="sft holds no done.json: its stage has not finished"):
    workdir.done_result(stage)
  workdir.mark_done(stage, {"loss": np.float32(0.5), "accuracy": float("nan")})
  assert workdir.is_done(stage)
  assert workdir.done_result(stage) == {"loss": 0.5, "accuracy": None}
  assert files(stage) == ["done.json"]


def test_git_version(tmp_path, monkeypatch):

  def git(*args):
    subprocess.run(
      ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *args],
      check=True,
      capture_output=True,
    )

  monkeypatch.setattr(workdir, "__file__", str(tmp_path / "rlhf" / "workdir.py"))
  assert workdir.git_version() == "unknown"
  git("init")
  assert workdir.git_version() == "unknown"
  git("commit", "--allow-empty", "-m", "x")
  commit = workdir.git_version()
  assert len(commit) == 40
  (tmp_path / "new.py").write_text("")
  assert workdir.git_version() == f"{commit} dirty"
  (tmp_path / "site-packages").mkdir()
  monkeypatch.setattr(workdir, "__file__", str(tmp_path / "site-packages" / "rlhf" / "workdir.py"))
  assert workdir.git_version() == "unknown"


def test_lines_hold_whatever_a_text_may_hold(tmp_path):
  lines = [{"text": "a\u2028b\x85c\rd\ne"}, {"text": "\u2029"}]
  workdir.write_jsonl(tmp_path / "lines.jsonl", lines)
  assert workdir.read_jsonl(tmp_path / "lines.jsonl") == lines
  written = (tmp_path / "lines.jsonl").read_bytes().splitlines()
  assert [json.loads(line) for line in written] == lines
