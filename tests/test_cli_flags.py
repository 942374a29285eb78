"""The command line: one way to read flags, configs by kind, and what --help lists."""

import os
import pathlib
import subprocess
import sys

import ml_collections
import pytest

from rlhf.cli import main as cli_main
from rlhf.cli.common import fields, flags
from rlhf.configs import models

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = [
  *(f"configs/sft.py:{argument}" for argument in ("1.3b,init", "1.3b,t0", "imported,pretrain")),
  *(f"configs/{name}.py:1.3b" for name in ("reward_model", "ppo", "truth_judge")),
  "configs/reward_model.py:imported",
  "configs/eval.py",
  *(f"configs/pipeline.py:{name}" for name in ("tiny", "real", "smollm2")),
  *(f"configs/palms.py:{name}" for name in ("tiny", "smollm2")),
]


def leaves(config, path=""):
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f"{path}.{name}".lstrip("."))
    else:
      yield path, name


@pytest.mark.parametrize("spec", CONFIGS)
def test_every_field_of_a_shipped_config_is_described(spec):
  config = flags.load_config(spec)
  missing = [
    f"{path}.{name}" for path, name in leaves(config) if not fields.description(path, name)
  ]
  assert not missing
  help = " ".join(fields.describe(config).split())
  assert all(f" {name} (" in f" {help}" for _, name in leaves(config))


def test_attributes_are_read_from_the_source():
  assert fields.attributes("OptimConfig")["learning_rate"]
  parsed = fields._parse(
    "One.\n\nAttributes:\n  a: first\n    and more.\n  b, c: 0 or\n    above: none.\n\nMore:\n  d"
  )
  assert parsed == {"a": "first and more.", "b": "0 or above: none.", "c": "0 or above: none."}


def run(*words: str, cwd=ROOT) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "rlhf", *words],
    cwd=cwd,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )


def test_help_needs_no_jax():
  program = (
    "import contextlib, io, sys\n"
    "from rlhf.cli import main\n"
    "sys.argv = ['rlhf']\n"
    "main.run('--help')\n"
    "for words in (*([name] for name in main.COMMANDS), ['train', 'ppo'], ['palms', 'sheet']):\n"
    "  text = io.StringIO()\n"
    "  with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):\n"
    "    main.run(*words, '--help')\n"
    "  assert text.getvalue().startswith('usage: rlhf ' + words[0]), words\n"
    "assert not {'jax', 'tensorflow', 'scipy.stats'} & set(sys.modules)\n"
  )
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for name in cli_main.COMMANDS:
    assert f"\n  {name} " in done.stdout
    assert (ROOT / "launch" / f"{name}.py").is_file()


def test_every_line_of_the_list_of_commands_fits():
  lines = cli_main.describe().splitlines()
  assert max(map(len, lines)) <= 110


def test_help_lists_flags_and_fields():
  done = run("train", "ppo", "--help")
  assert done.returncode == 0
  assert "--coordinator_address" in done.stdout and "HOST:PORT of process 0" in done.stdout
  assert "kl_coef (0.02)" in done.stdout
  assert "(several values)" in run("pipeline", "--help", "--config=configs/pipeline.py:test").stdout
  assert "kl_coef" not in run("train", "--help").stdout


def test_an_unknown_command_is_named():
  done = run("trian")
  assert done.returncode == 2
  assert "no command 'trian'; choose from pipeline, train" in done.stderr


def test_a_config_is_found_from_anywhere(tmp_path):
  done = run("train", "sft", "--config=configs/sft.py:1.4b", "--workdir=x", cwd=tmp_path)
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: size '1.4b'; choose from ")
  assert not list(tmp_path.iterdir())


def test_ones_own_config_comes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  assert flags.load_config("configs/ppo.py:test").kind == "ppo"
  mine = tmp_path / "configs" / "ppo.py"
  mine.write_text("from rlhf.configs import sft\nget_config = sft.get_config\n")
  assert flags.load_config("configs/ppo.py:test").kind == "sft"
  with pytest.raises(ValueError, match="there is no file /configs/ppo.py"):
    flags.load_config("/configs/ppo.py")


def test_kinds_are_those_of_the_commands():
  for spec in CONFIGS:
    assert flags.load_config(spec).kind in flags.COMMANDS


def test_overrides_are_locked_and_typed():
  config = flags.load_config("configs/ppo.py:test", ["--config.ppo.kl_coef=1", "--config.seed=3"])
  assert (config.ppo.kl_coef, config.seed) == (1.0, 3) and config.is_locked
  assert isinstance(config.ppo.kl_coef, float)
  config = flags.load_config("configs/ppo.py:test", ["--noconfig.ppo.whiten_advantages"])
  assert config.ppo.whiten_advantages is False
  config = flags.load_config("configs/ppo.py:test", ["--config.ppo.value_clip=None"])
  assert config.ppo.value_clip is None and config.is_locked
  for override, sentence in (
    ("--config.ppo.kl_coef=high", "--config.ppo.kl_coef=high"),
    ("--config.ppo.batch_size=None", "--config.ppo.batch_size=None"),
    ("--config.ppo.kl_ceof=1", "did you mean 'kl_coef'?"),
    ("--config.ppo=1", "config.ppo"),
  ):
    with pytest.raises(ValueError, match=sentence):
      flags.load_config("configs/ppo.py:test", [override])


def test_a_value_may_follow_its_flag():
  assert flags.split_overrides(
    ["sft", "--config", "a.py", "--config.x", "-1", "--workdir=w", "--config.y=2", "--noconfig.z"]
  ) == (["sft", "--config=a.py", "--workdir=w"], ["--config.x=-1", "--config.y=2", "--noconfig.z"])


@pytest.mark.parametrize("name", models.TINY)
def test_a_size_of_the_tests_is_a_config(name):
  assert flags.load_config(f"configs/ppo.py:{name}", (), "ppo").kind == "ppo"
