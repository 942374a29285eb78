"""What a user gets wrong: one sentence, exit status 2, nothing compiled and nothing written."""

import json
import pathlib
import subprocess
import sys

import commands
import jax
import pytest

from rlhf import pipeline, ppo, reward_model, sft
from rlhf import workdir as workdir_lib
from rlhf.cli import generate, pool, score, train
from rlhf.cli import pipeline as pipeline_command
from rlhf.configs import pipeline as pipeline_configs
from rlhf.data import sources
from rlhf.tokenization.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
CONTEXT, WIDTH = commands.SHAPE["context_length"], commands.SHAPE["width"]

_COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, *_, **__: _COMPILED.append(event) if "backend_compile" in event else None
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> commands.Inputs:
  return commands.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  """Configs are named from the repository's root; no algorithm may start."""
  monkeypatch.chdir(commands.ROOT)
  for module in (sft, reward_model, ppo):
    monkeypatch.setattr(
      module, "train", lambda config, workdir, cache_dir: pytest.fail("it started")
    )


def refused(capsys, main, *argv) -> str:
  """The one sentence with which a command refuses."""
  _COMPILED.clear()
  capsys.readouterr()
  with pytest.raises(SystemExit) as stopped:
    main(["program", *map(str, argv)])
  out, err = capsys.readouterr()
  assert stopped.value.code == 2, err
  assert not _COMPILED
  assert not out and err.startswith("error: ") and err.endswith("\n"), (out, err)
  sentence = err.removeprefix("error: ").removesuffix("\n")
  assert "\n" not in sentence and "Traceback" not in sentence, err
  return sentence


@pytest.fixture
def refused_training(capsys, inputs, workdir_path):
  """refused_training("ppo", ppo__batch_size=9): the sentence; no workdir was made."""

  def run(algorithm: str, *flags, **changes) -> str:
    sentence = refused(
      capsys,
      train.main,
      *commands.train_flags(inputs, algorithm, **changes),
      f"--workdir={workdir_path}",
      *flags,
    )
    assert not workdir_path.exists()
    return sentence

  return run


def test_a_compilation_would_be_seen():
  _COMPILED.clear()
  jax.jit(lambda x: x * 3.25 - 17.5)(1.0)
  assert _COMPILED


# ----------------------------------------------------------------------------- flags


def test_no_workdir(capsys, inputs):
  sentence = refused(capsys, train.main, *commands.train_flags(inputs, "sft"))
  assert "required: --workdir" in sentence


def test_no_config(capsys, workdir_path):
  sentence = refused(capsys, train.main, "sft", f"--workdir={workdir_path}")
  assert "required: --config" in sentence


@pytest.mark.parametrize(
  "arguments,expected",
  [
    ([], "required: algorithm"),
    (["pretrain"], "argument algorithm: invalid choice: 'pretrain'"),
    (["sft", "ppo"], "unrecognized arguments: ppo"),
  ],
)
def test_not_one_known_algorithm(capsys, workdir_path, arguments, expected):
  sentence = refused(
    capsys, train.main, *arguments, "--config=configs/sft.py:test", f"--workdir={workdir_path}"
  )
  assert expected in sentence and "see rlhf train --help" in sentence
  assert not workdir_path.exists()


def test_a_config_of_another_algorithm(capsys, workdir_path):
  for algorithm, config, size, use in (
    ("ppo", "sft", "test", "rlhf train sft"),
    ("sft", "palms", "test", "rlhf pipeline"),
    ("reward_model", "eval", "quick", "rlhf evaluate"),
  ):
    sentence = refused(
      capsys,
      train.main,
      algorithm,
      f"--config=configs/{config}.py:{size}",
      f"--workdir={workdir_path}",
    )
    assert sentence.startswith(f"configs/{config}.py is a ") and f"use `{use}`" in sentence


def test_no_such_config_file(capsys, workdir_path):
  sentence = refused(
    capsys, train.main, "sft", "--config=configs/stf.py:test", f"--workdir={workdir_path}"
  )
  assert "--config=configs/stf.py:test: there is no file configs/stf.py" in sentence
  assert "configs/sft.py" in sentence


def test_a_config_without_a_kind(capsys, tmp_path):
  mine = tmp_path / "mine.py"
  mine.write_text(
    "import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict(dict(seed=0))\n"
  )
  sentence = refused(capsys, train.main, "sft", f"--config={mine}", "--workdir=x")
  assert str(mine) in sentence and "add kind='sft'" in sentence
  mine.write_text("")
  assert "no function get_config" in refused(
    capsys, train.main, "sft", f"--config={mine}", "--workdir=x"
  )


@pytest.mark.parametrize(
  "main,argv",
  [
    (train.main, ["sft", "--config=configs/sft.py:test", "--workdir=gs://bucket/run"]),
    (generate.main, ["--checkpoint=x", "--prompts=p", "--output=s3://bucket/out.jsonl"]),
    (
      pipeline_command.main,
      ["--config=configs/pipeline.py:test", "--workdir=runs/x", "--shared=gs://b"],
    ),
    (pool.main, ["run", "--output=hdfs://host/pooled"]),
  ],
)
def test_buckets_are_refused(capsys, tmp_path, monkeypatch, main, argv):
  """A path such as gs://bucket would become a local directory."""
  (tmp_path / "configs").symlink_to(commands.ROOT / "configs")
  monkeypatch.chdir(tmp_path)
  sentence = refused(capsys, main, *argv)
  assert "://" in sentence and "mount the bucket" in sentence
  assert [path.name for path in tmp_path.iterdir()] == ["configs"]


@pytest.mark.parametrize("algorithm", train.ALGORITHMS)
def test_unknown_size(capsys, workdir_path, algorithm):
  sentence = refused(
    capsys,
    train.main,
    algorithm,
    f"--config=configs/{algorithm}.py:1.4b",
    f"--workdir={workdir_path}",
  )
  assert sentence.startswith("size '1.4b'; choose from 125m, 350m, 760m, 1.3b")


def test_unknown_variant(capsys, workdir_path):
  sentence = refused(
    capsys, train.main, "sft", "--config=configs/sft.py:test,palm", f"--workdir={workdir_path}"
  )
  assert sentence == "variant 'palm'; choose from sft, init, pretrain, flan, t0"


def test_unknown_config_key(refused_training):
  assert refused_training("ppo", ppo__batch_siz=8) == (
    "--config.ppo.batch_siz: config.ppo has no field 'batch_siz'; did you mean 'batch_size'?"
  )
  assert refused_training("ppo", pop__batch_size=8) == (
    "--config.pop.batch_size: config has no field 'pop'; did you mean 'ppo'?"
  )
  assert refused_training("sft", loop__zzz=1) == (
    "--config.loop.zzz: config.loop has no field 'zzz'; choose from eval_every, log_every"
  )
  assert refused_training("sft", seed__x=1) == (
    "--config.seed.x: config.seed has no field 'x'; it is a value, not a group"
  )


def test_a_value_of_another_type(refused_training):
  assert "--config.sft.batch_size=many" in refused_training("sft", sft__batch_size="many")


def test_unknown_flag(refused_training):
  assert "unrecognized arguments: --overwrite" in refused_training("sft", "--overwrite")


@pytest.mark.parametrize(
  "flags,expected",
  [
    (["--config=configs/pipeline.py:tinny"], "pipeline 'tinny'; choose from tiny, real, test"),
    (
      ["--config=configs/pipeline.py:test", "--config.ppo.ppo.kl_cof=1"],
      "--config.ppo.ppo.kl_cof: config.ppo.ppo has no field 'kl_cof'; did you mean 'kl_coef'?",
    ),
    (["--config=configs/pipe.py"], "there is no file configs/pipe.py"),
    (
      ["--config=configs/pipeline.py:test", "--config.world.num_test_prompts=-1"],
      "world.num_test_prompts -1; use 1 or more",
    ),
  ],
)
def test_flags_of_the_pipeline(workdir_path, flags, expected):
  done = subprocess.run(
    [sys.executable, "-m", "launch.pipeline", *flags, f"--workdir={workdir_path}"],
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stdout) == (2, "")
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
  assert expected in done.stderr
  assert not workdir_path.exists()


@pytest.mark.parametrize(
  "name,field,value,expected",
  [
    (
      "real",
      "files.test_fraction",
      0.95,
      "files.valid_fraction 0.1 and test_fraction 0.95; use numbers above 0",
    ),
    (
      "test",
      "ppo.pretraining.packing",
      "none",
      "config.ppo: pretraining.packing 'none'; choose from",
    ),
    ("test", "ppo_init.text.fraction", 1.5, "config.ppo_init: text.fraction 1.5; use"),
    ("test", "evaluation.num_resamples", 0, "evaluation.num_resamples is 0; use 1 or more"),
    ("test", "labelers.num_heldout", 1, "labelers.num_heldout 1; use 2 or more"),
    ("test", "sft.sft.keep_epochs", False, "config.sft: the baseline is chosen among whole epochs"),
    (
      "test",
      "ppo.policy_optim.max_grad_norm",
      0.0,
      "config.ppo: max_grad_norm is 0.0; use a number above 0",
    ),
  ],
)
def test_numbers_of_the_pipeline(name, field, value, expected):
  config = pipeline_configs.get_config(name)
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError) as raised:
    pipeline.check_config(config)
  assert expected in str(raised.value)


def test_the_pipeline_without_a_workdir():
  done = subprocess.run(
    [sys.executable, "-m", "launch.pipeline", "--config=configs/pipeline.py"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and "--workdir" in done.stderr and done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------- numbers and names


def test_batch_sizes_that_do_not_divide(refused_training):
  assert refused_training("sft", sft__batch_size=10) == (
    "sft.batch_size 10 does not divide into sft.microbatch_size 4; use a multiple of 4"
  )
  assert refused_training("reward_model", reward__microbatch_size=3) == (
    "reward.batch_size 8 does not divide into reward.microbatch_size 3; use a multiple of 3"
  )
  assert refused_training("ppo", ppo__batch_size=10) == (
    "ppo.batch_size 10 does not divide into ppo.minibatch_size 4; use a multiple of 4"
  )
  assert refused_training("ppo", ppo__ptx_microbatch_size=5) == (
    "ppo.minibatch_size * ppo.ptx_ratio = 16 pretraining examples do not divide into "
    "ppo.ptx_microbatch_size 5"
  )


@pytest.mark.parametrize(
  "algorithm,group", [("sft", "sft"), ("reward_model", "reward"), ("ppo", "ppo")]
)
def test_a_batch_that_does_not_divide_over_the_devices(refused_training, algorithm, group):
  """The tests run on 8 simulated devices."""
  assert refused_training(algorithm, **{f"{group}__batch_size": 12}) == (
    f"{group}.batch_size of 12 rows does not divide over data*fsdp = 8 devices; use a multiple of 8"
  )


@pytest.mark.parametrize("algorithm", ["sft", "reward_model", "ppo"])
def test_heads_that_do_not_divide_over_the_devices(refused_training, algorithm):
  assert refused_training(algorithm, mesh__data=1, mesh__tensor=8) == (
    "model.num_heads 2 does not divide over mesh.tensor 8; use a divisor of 2"
  )


def test_a_mesh_of_other_devices(refused_training):
  assert "does not use exactly the 8 devices there are" in refused_training("sft", mesh__data=3)


@pytest.mark.parametrize(
  "algorithm,field",
  [
    ("sft", "sft.batch_size"),
    ("sft", "sft.num_epochs"),
    ("sft", "sft.max_steps"),
    ("reward_model", "reward.microbatch_size"),
    ("ppo", "ppo.num_iterations"),
    ("ppo", "ppo.max_response_tokens"),
    ("ppo", "prompts.num_valid"),
    ("sft", "loop.log_every"),
    ("ppo", "checkpoint.every"),
  ],
)
def test_counts_of_zero(refused_training, algorithm, field):
  sentence = refused_training(algorithm, **{field.replace(".", "__"): 0})
  assert sentence.startswith(f"{field} is 0; use 1 or more")


def test_a_budget_longer_than_the_context(refused_training):
  assert refused_training("ppo", ppo__max_prompt_tokens=CONTEXT) == (
    f"ppo.max_prompt_tokens {CONTEXT} + ppo.max_response_tokens {commands.RESPONSE} is longer "
    f"than the policy's context of {CONTEXT}"
  )
  assert refused_training("ppo", ppo__ptx_length=CONTEXT + 1) == (
    f"ppo.ptx_length {CONTEXT + 1} is longer than the policy's context of {CONTEXT}"
  )
  for algorithm in ("sft", "reward_model"):
    assert refused_training(algorithm, length=CONTEXT + 1) == (
      f"length {CONTEXT + 1} must be at least 2 and at most model.context_length {CONTEXT}"
    )


@pytest.mark.parametrize(
  "algorithm,field,choices",
  [
    ("sft", "demonstrations.packing", "['best_fit', 'one_per_row']"),
    ("sft", "demonstrations.overlong", "['drop', 'truncate_left', 'truncate_right']"),
    ("sft", "optim.schedule", "['constant', 'cosine', 'linear']"),
    ("sft", "demonstrations.on_bad", "['skip', 'stop']"),
    ("sft", "compute.dtype", "['bfloat16', 'float16', 'float32']"),
    (
      "reward_model",
      "comparisons.overlong",
      "['drop_comparison', 'drop_completion', 'truncate_completion', 'truncate_prompt']",
    ),
    ("ppo", "prompts.overlong", "['drop', 'truncate_left']"),
    ("ppo", "ppo.kl_controller", "['adaptive', 'fixed']"),
  ],
)
def test_unknown_names(refused_training, algorithm, field, choices):
  sentence = refused_training(algorithm, **{field.replace(".", "__"): "best"})
  assert field.split(".")[-1] in sentence
  assert sentence.endswith(f"'best'; choose from {choices}")


# ----------------------------------------------------------------------------- data


def test_no_data_was_named(refused_training):
  for algorithm, field, kind in (
    ("sft", "demonstrations.train", "demonstration"),
    ("sft", "text.valid", "text"),
    ("reward_model", "comparisons.valid", "comparison"),
    ("reward_model", "comparisons.demonstrations", "demonstration"),
    ("ppo", "prompts.train", "prompt"),
    ("ppo", "pretraining.train", "text"),
  ):
    sentence = refused_training(algorithm, **{field.replace(".", "__"): ""})
    assert sentence.startswith(
      f"config.{field} is empty; give FORMAT:PATH with a format for {kind} records ("
    )


def test_ppo_without_ptx_needs_no_text(capsys, inputs, workdir_path, monkeypatch):
  monkeypatch.setattr(ppo, "train", lambda config, workdir, cache_dir: {"seconds": 0.0})
  train.main(
    [
      "program",
      *commands.train_flags(inputs, "ppo", ppo__ptx_coef=0.0, pretraining__train=""),
      f"--workdir={workdir_path}",
    ]
  )
  assert "done: seconds 0" in capsys.readouterr().out


def test_unknown_format(refused_training, inputs):
  path = inputs.data / "prompts_ppo.jsonl"
  sentence = refused_training("ppo", prompts__train=f"jsnol:{path}")
  assert sentence == (
    f"'jsnol:{path}' is neither FORMAT:PATH with a format for prompt records (['alpaca', "
    "'alpaca_eval', 'hh', 'jsonl', 'llmbar', 'pandalm', 't0']) nor a public tfds set of them "
    "(['databricks_dolly', 'gsm8k', 'natural_instructions', 'real_toxicity_prompts'])"
  )


def test_unknown_tfds_name(refused_training):
  sentence = refused_training("sft", text__train="wikipeda")
  assert sentence.startswith("'wikipeda' is neither FORMAT:PATH with a format for text records")
  assert "['c4', 'lm1b', 'pg19', 'tiny_shakespeare', 'wiki40b', 'wikipedia']" in sentence


def test_a_format_that_holds_other_records(refused_training, inputs):
  sentence = refused_training("sft", demonstrations__train=f"text:{inputs.data}")
  assert sentence.startswith("format 'text' holds no demonstration records, only ['text']")


def test_a_file_that_is_not_there(refused_training, tmp_path):
  for algorithm, field in (
    ("sft", "demonstrations__valid"),
    ("reward_model", "comparisons__train"),
    ("ppo", "pretraining__train"),
  ):
    sentence = refused_training(algorithm, **{field: f"jsonl:{tmp_path}/absent.jsonl"})
    assert sentence == f"{tmp_path}/absent.jsonl does not exist; name a file that does"


COMPARISON = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}


@pytest.mark.parametrize(
  "algorithm,field,good,bad,expected",
  [
    (
      "sft",
      "demonstrations.train",
      {"prompt": "p", "completion": "c"},
      "{oops",
      "not JSON (Expecting property name enclosed in double quotes at column 2); each line must be "
      "one JSON object",
    ),
    (
      "sft",
      "demonstrations.train",
      {"prompt": "p", "completion": "c"},
      {"prompt": "p"},
      'no field "completion"; a demonstration is {"prompt": str, "completion": str, "user": str '
      "(optional)}",
    ),
    ("sft", "text.train", {"text": "t"}, {"text": " "}, '"text" is empty; it must hold text'),
    (
      "reward_model",
      "comparisons.train",
      COMPARISON,
      COMPARISON | {"completions": ["a"]},
      '"completions" has 1 of them; a comparison needs 2 or more',
    ),
    (
      "reward_model",
      "comparisons.valid",
      COMPARISON,
      COMPARISON | {"ranks": [1, 2, 3]},
      "3 ranks for 2 completions; give one rank per completion",
    ),
    (
      "reward_model",
      "comparisons.valid",
      COMPARISON,
      COMPARISON | {"completions": ["a", ""]},
      '"completions"[1] is empty; it must hold text',
    ),
    (
      "reward_model",
      "comparisons.valid",
      COMPARISON,
      COMPARISON | {"ranks": [1, "2"]},
      '"ranks"[1] is "2"; ranks are integers, 1 for the best, equal for a tie',
    ),
    (
      "ppo",
      "prompts.valid",
      {"prompt": "p"},
      ["p"],
      'a JSON list, not an object; a prompt is {"prompt": str, "user": str (optional)}',
    ),
    (
      "ppo",
      "prompts.train",
      {"prompt": "p"},
      {"prompt": ""},
      '"prompt" is empty; it must hold text',
    ),
  ],
)
def test_bad_lines(refused_training, tmp_path, algorithm, field, good, bad, expected):
  path = tmp_path / "mine.jsonl"
  bad = bad if isinstance(bad, str) else json.dumps(bad)
  path.write_text(f"{json.dumps(good)}\n\n{bad}\n{json.dumps(good)}\n")
  sentence = refused_training(algorithm, **{field.replace(".", "__"): f"jsonl:{path}"})
  assert sentence == f"{path}:3: {expected}"


def test_bad_lines_are_skipped_and_counted_if_asked(
  capsys, inputs, tmp_path, workdir_path, monkeypatch
):
  path = commands.write_jsonl(
    tmp_path / "mine.jsonl",
    [COMPARISON, COMPARISON | {"completions": ["a"]}, COMPARISON, COMPARISON | {"ranks": [1]}],
  )

  def load(config, workdir, cache_dir):
    source = sources.load(
      config.comparisons.train,
      "comparison",
      cache_dir=workdir + "/cache",
      on_bad=config.comparisons.on_bad,
    )
    return {"records": len(source)}

  monkeypatch.setattr(reward_model, "train", load)
  train.main(
    [
      "program",
      *commands.train_flags(
        inputs, "reward_model", comparisons__train=f"jsonl:{path}", comparisons__on_bad="skip"
      ),
      f"--workdir={workdir_path}",
    ]
  )
  out = capsys.readouterr().out
  assert (
    f"comparison records from jsonl:{path}: 2 kept, 1 skipped (one completion), 1 skipped "
    "(ranks of another length)"
  ) in out
  assert "done: records 2" in out


# ----------------------------------------------------------------------------- exports


@pytest.mark.parametrize(
  "algorithm,field",
  [
    ("sft", "init_from"),
    ("reward_model", "init_from"),
    ("ppo", "policy_from"),
    ("ppo", "reward_from"),
    ("ppo", "reference_from"),
  ],
)
def test_exports_that_are_not_there(refused_training, tmp_path, algorithm, field):
  sentence = refused_training(algorithm, **{field: tmp_path / "absent"})
  assert sentence == (
    f"{field}: {tmp_path}/absent does not exist; name an export directory, "
    "or the workdir of a finished stage"
  )
  sentence = refused_training(algorithm, **{field: tmp_path})
  assert sentence == (
    f"{field}: {tmp_path} holds no export.json; name an export directory, "
    "or the workdir of a finished stage"
  )


def test_no_export_was_named(refused_training, inputs):
  for algorithm, field in (
    ("reward_model", "init_from"),
    ("ppo", "policy_from"),
    ("ppo", "reward_from"),
  ):
    kind = "reward" if field == "reward_from" else "policy"
    assert refused_training(algorithm, **{field: ""}) == (
      f"{field} is empty; name the export directory of a {kind}, hf:DIR or gguf:FILE"
    )


def test_exports_of_another_kind(refused_training, inputs):
  for algorithm, field, given in (
    ("sft", "init_from", "reward"),
    ("ppo", "policy_from", "reward"),
    ("reward_model", "init_from", "reward"),
    ("ppo", "reference_from", "reward"),
    ("ppo", "reward_from", "policy"),
  ):
    wanted = "policy" if given == "reward" else "reward"
    directory = getattr(inputs, given)
    assert refused_training(algorithm, **{field: directory}) == (
      f"{field}={directory} is a {given} export; it must be a {wanted}"
    )


def test_an_export_of_another_shape(refused_training, inputs):
  assert refused_training("sft", model__width=2 * WIDTH) == (
    f"init_from={inputs.policy} has width {WIDTH}, but config.model.width is {2 * WIDTH}; make "
    "them equal, or take the shape from the source with :imported in place of the config's size"
  )


def test_networks_of_two_tokenizers_of_one_size(refused_training, inputs, tmp_path):
  """Equal sizes and pad ids say nothing about what an id means."""
  other = tmp_path / "reward"
  other.mkdir()
  export = json.loads((inputs.reward / "export.json").read_text())
  texts = [
    " ".join(line["text"].split()[::-1])
    for line in commands.read_jsonl(inputs.data / "pretraining_train.jsonl")
  ]
  tokenizer = Tokenizer.train_bpe(texts, 512)
  assert tokenizer.num_ids == export["model"]["vocab_size"]
  tokenizer.save(other / export["contents"] / "tokenizer")
  (other / "export.json").write_text(json.dumps(export))
  assert refused_training("ppo", reward_from=other).startswith(
    "policy_from and reward_from use different tokenizers (512 and 512 ids)"
  )
  assert refused_training("ppo", reward_others=repr((str(other),))).startswith(
    "policy_from and reward_others use different tokenizers (512 and 512 ids)"
  )
  (other / "export.json").write_text(json.dumps(export | {"kind": "policy"}))
  assert refused_training("ppo", reference_from=other).startswith(
    "policy_from and reference_from use different tokenizers (512 and 512 ids)"
  )


@pytest.mark.parametrize(
  "algorithm,group",
  [("sft", "demonstrations"), ("reward_model", "comparisons"), ("ppo", "prompts")],
)
def test_a_chat_format_that_cannot_be(refused_training, inputs, algorithm, group):
  field = lambda name, value: {f"{group}__{name}": value}
  assert refused_training(algorithm, **field("prompt_format", "chats")) == (
    f"{group}.prompt_format 'chats'; choose from ['chat', 'plain']"
  )
  assert refused_training(algorithm, **field("prompt_format", "chat")) == (
    f"{group}.prompt_suffix is '\\n\\nAnswer:' with prompt_format chat, whose template has its "
    "own text around a prompt; make it an empty string"
  )
  sentence = refused_training(
    algorithm,
    **field("prompt_format", "chat") | field("prompt_suffix", "") | field("completion_prefix", ""),
  )
  assert sentence.startswith(f"prompt_format chat, but {inputs.policy}")
  assert sentence.endswith(
    "tokenizer_config.json has no chat_template; use prompt_format plain, "
    "or a model that was trained to chat"
  )


@pytest.mark.parametrize("spec", ["gpt2:", "bpe:12", "bpe:many", "json:/nowhere/tokenizer.json"])
def test_a_tokenizer_that_cannot_be_had(capsys, inputs, workdir_path, spec):
  sentence = refused(
    capsys,
    train.main,
    "sft",
    "--config=configs/sft.py:test,pretrain",
    f"--workdir={workdir_path}",
    f"--config.text.train={inputs.spec('pretraining_train')}",
    f"--config.text.valid={inputs.spec('pretraining_valid')}",
    f"--config.tokenizer={spec}",
  )
  assert "tokenizer" in sentence or "vocab_size 12 is too small" in sentence
  assert not workdir_path.exists()


# ----------------------------------------------------------------------------- workdir


def test_the_workdir_of_another_config(capsys, inputs, workdir_path, monkeypatch):
  monkeypatch.setattr(sft, "train", lambda config, workdir, cache_dir: {})
  flags = commands.train_flags(inputs, "sft")
  train.main(["program", *flags, f"--workdir={workdir_path}"])
  before = {path: path.read_bytes() for path in workdir_path.rglob("*") if path.is_file()}
  sentence = refused(capsys, train.main, *flags, "--config.seed=4", f"--workdir={workdir_path}")
  assert sentence == (
    f"{workdir_path} holds the run of another config: seed is 0 there and 4 "
    "here; choose another --workdir, or delete this one"
  )
  assert {path: path.read_bytes() for path in workdir_path.rglob("*") if path.is_file()} == before
  train.main(["program", *flags, f"--workdir={workdir_path}"])
  assert f"workdir {workdir_path}: going on" in capsys.readouterr().out


def test_a_workdir_that_is_a_file(capsys, inputs, tmp_path):
  path = tmp_path / "file"
  path.write_text("mine")
  sentence = refused(capsys, train.main, *commands.train_flags(inputs, "sft"), f"--workdir={path}")
  assert sentence == f"--workdir={path} is a file; name a directory"
  assert path.read_text() == "mine"


# ----------------------------------------------------------------------------- generate and score


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
  return commands.write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "who is dara ?"}])


def generate_flags(inputs, path: pathlib.Path, **changes) -> list[str]:
  flags = {
    "checkpoint": inputs.policy,
    "prompts": path,
    "output": path.parent / "out" / "answers.jsonl",
  } | changes
  return [f"--{name}={value}" for name, value in flags.items() if value is not None]


def score_flags(inputs, path: pathlib.Path, **changes) -> list[str]:
  flags = {
    "reward_model": inputs.reward,
    "input": path,
    "output": path.parent / "out" / "scored.jsonl",
  } | changes
  return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.mark.parametrize(
  "changes,expected",
  [
    ({"checkpoint": None}, "the following arguments are required: --checkpoint"),
    ({"output": None}, "--prompts and --output go together"),
    ({"prompts": None}, "--prompts and --output go together"),
    ({"num_samples": 0}, "argument --num_samples: 0 is below 1"),
    ({"num_samples": 5000}, "--num_samples=5000 is above 4096"),
    ({"num_samples": "few"}, "argument --num_samples: invalid whole_number value: 'few'"),
    ({"temperature": -1}, "argument --temperature: -1 must be 0 or above"),
    ({"top_p": 0}, "argument --top_p: 0 must be above 0 and at most 1"),
    (
      {"max_response_tokens": CONTEXT},
      f"--max_response_tokens={CONTEXT} leaves no room for a "
      f"prompt in the context of {CONTEXT}; use less",
    ),
    ({"num_sample": 2}, "unrecognized arguments: --num_sample=2"),
    ({"on_bad": "ignore"}, "argument --on_bad: invalid choice: 'ignore'"),
  ],
)
def test_flags_of_generate(capsys, inputs, prompts, changes, expected):
  sentence = refused(capsys, generate.main, *generate_flags(inputs, prompts, **changes))
  assert sentence.startswith(expected)
  assert not (prompts.parent / "out").exists()


def test_generate_and_score_take_exports_of_their_kind(capsys, inputs, prompts, tmp_path):
  sentence = refused(
    capsys, generate.main, *generate_flags(inputs, prompts, checkpoint=inputs.reward)
  )
  assert sentence == f"--checkpoint={inputs.reward} is a reward export; it must be a policy"
  lines = commands.write_jsonl(tmp_path / "lines.jsonl", [{"prompt": "p", "completion": "c"}])
  sentence = refused(capsys, score.main, *score_flags(inputs, lines, reward_model=inputs.policy))
  assert sentence == f"--reward_model={inputs.policy} is a policy export; it must be a reward"
  for main, flags in (
    (generate.main, generate_flags(inputs, prompts, checkpoint=tmp_path)),
    (score.main, score_flags(inputs, lines, reward_model=tmp_path)),
  ):
    assert (
      f": {tmp_path} holds no export.json; name an export directory, or the workdir of a finished "
      "stage" in (refused(capsys, main, *flags))
    )


def test_an_output_that_exists_stays(capsys, inputs, prompts, tmp_path):
  output = tmp_path / "answers.jsonl"
  output.write_text("mine")
  for main, flags in (
    (generate.main, generate_flags(inputs, prompts, output=output)),
    (score.main, score_flags(inputs, prompts, output=output)),
  ):
    sentence = refused(capsys, main, *flags)
    assert f"--output={output}" in sentence and "exists; name another, or add --overw" in sentence
  sentence = refused(capsys, generate.main, *generate_flags(inputs, prompts, output=tmp_path))
  assert sentence == f"--output={tmp_path} is a directory; name a file"
  assert output.read_text() == "mine"


def test_bad_lines_of_generate(capsys, inputs, tmp_path):
  path = tmp_path / "prompts.jsonl"
  for bad, expected in (
    ('{"text": "x"}', 'no field "prompt"; a prompt is'),
    ("[", "not JSON (Expecting value"),
    (json.dumps({"prompt": "goat " * 100}), "the prompt has "),
  ):
    path.write_text('{"prompt": "p"}\n' + bad + "\n")
    sentence = refused(capsys, generate.main, *generate_flags(inputs, path))
    assert sentence.startswith(f"{path}:2: {expected}")
    assert not (tmp_path / "out").exists()
  path.write_text("\n")
  assert refused(capsys, generate.main, *generate_flags(inputs, path)).startswith(
    f"{path} has no usable line (lines: 0 kept)"
  )
  path.unlink()
  assert refused(capsys, generate.main, *generate_flags(inputs, path)) == (
    f"{path} does not exist; name a file that does"
  )


@pytest.mark.parametrize(
  "bad,expected",
  [
    ({"prompt": "p"}, 'no field "completions" or "completion"'),
    ({"completion": "c"}, 'no field "prompt"'),
    ({"prompt": "p", "completions": "c"}, "the completions are not text"),
    ({"prompt": "p", "completions": ["c", 1]}, "the completions are not text"),
    ({"prompt": "p", "completions": []}, '"completions" is empty; give one or more'),
    (
      {"prompt": "p", "completions": ["c", "d"], "ranks": [1]},
      "1 ranks for 2 completions; give one rank per completion",
    ),
    (
      {"prompt": "p", "completions": ["c", "d"], "ranks": [1, True]},
      '"ranks" is not a list of integers',
    ),
    ({"prompt": "p", "completion": "goat " * 100}, "prompt and completion have "),
  ],
)
def test_bad_lines_of_score(capsys, inputs, tmp_path, bad, expected):
  path = commands.write_jsonl(tmp_path / "lines.jsonl", [{"prompt": "p", "completion": "c"}, bad])
  sentence = refused(capsys, score.main, *score_flags(inputs, path))
  assert sentence.startswith(f"{path}:2: {expected}")
  assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------- pool


def test_pool_refuses_what_is_no_finished_run(capsys, tmp_path):
  sentence = refused(capsys, pool.main, tmp_path, f"--output={tmp_path / 'out'}")
  assert sentence == (
    f"{tmp_path} holds no report/report.json; name the workdir of a pipeline run that has finished"
  )
  (tmp_path / "report").mkdir()
  (tmp_path / "report" / "report.json").write_text("{")
  assert refused(capsys, pool.main, tmp_path, f"--output={tmp_path / 'out'}").startswith(
    f"{tmp_path}/report/report.json:1: not JSON"
  )
  workdir_lib.write_json(tmp_path / "report" / "report.json", [])
  assert "has no seed" in refused(capsys, pool.main, tmp_path, f"--output={tmp_path / 'out'}")
  assert "required: DIR" in refused(capsys, pool.main, f"--output={tmp_path / 'out'}")
  assert not (tmp_path / "out").exists()
