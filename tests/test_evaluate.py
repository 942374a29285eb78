"""launch.evaluate: what the command line says, what is run again, and what comes out."""

import dataclasses
import json
import shutil
import subprocess
import sys
import types

import commands
import pytest
from test_preference_endpoint import longer_wins, server  # noqa: F401  # server is a fixture

from rlhf import workdir as workdir_lib
from rlhf.cli import evaluate
from rlhf.evals import evaluation as evaluation_lib
from rlhf.evals import measures, statistics
from rlhf.evals.preference import comparison


@dataclasses.dataclass(frozen=True, kw_only=True)
class NlpConfig:
  tasks: tuple[str, ...]
  data: str
  limit: int | None
  num_fewshot: int | None
  chat: bool


def fake_suite(ran: list, stop_at=None, written=0, error=KeyboardInterrupt):
  """A suite that notes what it runs and can be interrupted."""

  def run(p, unit):
    task = unit.task
    if task == stop_at:
      raise error("a context has 75 tokens")
    ran.append((task, unit.network.cfg.num_layers, unit.seed))
    (unit.directory / "items.jsonl").write_text("{}\n", encoding="utf-8")
    interval = statistics.Interval(mean=len(ran), low=0.0, high=9.0, n=unit.batch_size)
    return [measures.Measure(task=task, metric="accuracy", interval=interval, better="higher")]

  return types.SimpleNamespace(
    NlpConfig=NlpConfig,
    task_names=lambda p: p.tasks,
    check=lambda p: None,
    evaluate=run,
    data_files=lambda p, task: [("sst.tsv", written)] if task == "sst" else [],
    notes=lambda p: ["A note of the suite."],
  )


def use(monkeypatch, suite) -> None:
  """Puts a fake suite in the place of nlp, and no other suites that go task by task."""
  monkeypatch.setattr(evaluation_lib, "TASK_SUITES", ("nlp",))
  monkeypatch.setattr(evaluation_lib, "suite_module", lambda name: suite)


def argv(inputs, workdir, *more: str, suite="nlp") -> list[str]:
  return [
    "evaluate",
    f"--checkpoints=a={inputs.policy},b={inputs.policy}",
    f"--suite={suite}",
    f"--workdir={workdir}",
    "--config.num_resamples=50",
    "--config.batch_size=4",
    *more,
  ]


def measured(workdir) -> dict:
  saved = json.loads((workdir / "report" / "evaluation.json").read_text(encoding="utf-8"))
  return {
    (row["task"], name): cell["mean"]
    for row in saved["suites"]["nlp"]
    for name, cell in row["cells"].items()
  }


def test_only_what_is_missing_is_run(session_inputs, tmp_path, monkeypatch):
  ran = []

  def run(*more, **suite):
    ran.clear()
    use(monkeypatch, fake_suite(ran, **suite))
    evaluate.run(evaluate.read_request(argv(session_inputs, tmp_path, *more)))
    return [task for task, _, _ in ran]

  tasks = "--config.nlp.tasks=('sst','rte')"
  with pytest.raises(KeyboardInterrupt):
    run(tasks, stop_at="rte")  # after a's first task
  assert run(tasks) == ["rte", "sst", "rte"]
  assert run(tasks) == []
  assert run(tasks, written=1) == ["sst", "sst"] and run(tasks) == ["sst", "sst"]  # other files
  assert run("--config.nlp.tasks=('sst','wsc','rte')") == ["wsc", "wsc"]
  first = measured(tmp_path)
  assert (
    run("--config.nlp.tasks=('sst','wsc','rte')", "--config.nlp.limit=5")
    == ["sst", "wsc", "rte"] * 2
  )
  assert measured(tmp_path).keys() == first.keys()
  page = (tmp_path / "report" / "evaluation.html").read_text(encoding="utf-8")
  assert "A note of the suite." in page
  assert run("--config.nlp.tasks=('sst',)", "--config.seed=1") == ["sst", "sst"]
  assert ran[0][2] == 1
  assert run("--config.nlp.tasks=('sst',)", "--config.seed=1", "--config.batch_size=2") == []


@pytest.mark.parametrize(
  "error, said",
  [
    (ValueError, ""),
    (FloatingPointError, "FloatingPointError: "),
    (lambda text: LookupError(f"\n*****\n  {text}\n*****\n"), "LookupError: "),
  ],
)
def test_what_one_checkpoint_cannot_do_stops_no_other(
  session_inputs, tmp_path, monkeypatch, capsys, error, said: str
):
  ran = []
  suite = fake_suite(ran, "rte", error=error)
  use(monkeypatch, suite)
  if said:
    monkeypatch.setenv("RLHF_TRACEBACK", "1")
  with pytest.raises(
    ValueError,
    match=f"nlp rte of a was not measured: {said}a context has 75 "
    r"tokens \(and 1 more\); the page has what was measured",
  ):
    evaluate.run(
      evaluate.read_request(argv(session_inputs, tmp_path, "--config.nlp.tasks=('rte','sst')"))
    )
  assert [task for task, _, _ in ran] == ["sst", "sst"]
  assert measured(tmp_path).keys() == {("sst", "a"), ("sst", "b")}
  page = (tmp_path / "report" / "evaluation.html").read_text(encoding="utf-8")
  assert "nlp rte of b was not measured" in page
  assert ("Traceback" in capsys.readouterr().err) == bool(said)


def test_sheets_are_written_for_people_in_place_of_judging(session_inputs, tmp_path, capsys):
  data = tmp_path / "prompts.jsonl"  # without TinyWorld's tasks
  commands.write_jsonl(data, [{"prompt": "who is rex ?"}, {"prompt": "what is a goat ?"}])
  common = (
    f"--config.preference.data=jsonl:{data}",
    "--config.preference.baseline=b",
    "--config.preference.max_prompt_tokens=52",
    "--config.preference.max_response_tokens=4",
    f"--sheets={tmp_path / 'sheets'}",
  )
  evaluate.run(
    evaluate.read_request(argv(session_inputs, tmp_path / "run", *common, suite="preference"))
  )
  assert "config.preference.key=" in capsys.readouterr().out
  blind = sorted(path.name for path in (tmp_path / "sheets" / "blind").iterdir())
  assert blind == ["pairs.csv", "samples.csv"] and (tmp_path / "sheets" / "key.jsonl").is_file()
  with pytest.raises(ValueError, match="may have been filled in"):
    evaluate.run(
      evaluate.read_request(argv(session_inputs, tmp_path / "run", *common, suite="preference"))
    )
  with pytest.raises(ValueError, match="--sheets=x needs the suite preference"):
    evaluate.read_request(argv(session_inputs, tmp_path, "--sheets=x"))


def preference_flags(inputs, *more: str) -> list[str]:
  return [
    f"--config.preference.data={inputs.spec('prompts_test')}",
    "--config.preference.baseline=b",
    "--config.preference.max_prompt_tokens=20",
    "--config.preference.max_response_tokens=4",
    *more,
  ]


def evaluation(workdir) -> dict:
  return json.loads((workdir / "report" / "evaluation.json").read_text(encoding="utf-8"))


def test_preferences_stay_on_the_page_of_a_run_without_them(session_inputs, tmp_path, monkeypatch):
  use(monkeypatch, fake_suite([]))
  tasks = "--config.nlp.tasks=('sst',)"

  def run(*more, suite):
    evaluate.run(evaluate.read_request(argv(session_inputs, tmp_path, tasks, *more, suite=suite)))
    return evaluation(tmp_path)

  first = run(*preference_flags(session_inputs), suite="preference,nlp")
  third = "--checkpoints=" + ",".join(f"{name}={session_inputs.policy}" for name in "abc")
  for more in ((), (third,)):  # whose settings need not be repeated
    again = run(*more, suite="nlp")
    assert again["preference"] == first["preference"]
    assert again["suites"]["preference"] == first["suites"]["preference"]
    pooled = tmp_path / "pooled"
    evaluate.pool(
      evaluate.read_request(
        ["evaluate", f"--pool={tmp_path}", f"--workdir={pooled}", "--config.num_resamples=50"]
      )
    )
    rates = lambda data: [row["cells"]["a"] for row in data["suites"]["preference"]]
    assert rates(evaluation(pooled)) == rates(first)
  assert run("--config.seed=1", suite="nlp")["preference"] is None
  prefix = tmp_path / "prefix.txt"
  prefix.write_text("rex .\n", encoding="utf-8")
  assert run(f"--prefixes=a={prefix}", suite="nlp")["preference"] is None
  assert run(f"--checkpoints=a={session_inputs.policy}", suite="nlp")["preference"] is None


def test_a_failing_judge_or_checkpoint_takes_nothing_else_away(
  session_inputs, tmp_path, monkeypatch, capsys
):
  ran = []
  use(monkeypatch, fake_suite(ran))
  down = [
    f"--config.preference.endpoint.{setting}"
    for setting in (
      "base_url=http://127.0.0.1:9/v1",
      "model=m",
      "api_key_variable=",
      "max_retries=0",
    )
  ]

  def run(*more):
    with pytest.raises(ValueError, match="the page has what was measured") as error:
      evaluate.run(
        evaluate.read_request(
          argv(
            session_inputs,
            tmp_path,
            *preference_flags(session_inputs, "--config.nlp.tasks=('sst',)", *more),
            suite="preference,nlp",
          )
        )
      )
    saved = evaluation(tmp_path)
    assert measured(tmp_path).keys() == {("sst", "a"), ("sst", "b")}
    assert any(str(error.value).startswith(note.partition(";")[0]) for note in saved["notes"])
    variants = {row["variant"] for row in saved["suites"].get("preference", ())}
    return str(error.value), variants, saved["preference"]

  # One judge of two, all judges, one checkpoint, the one that all are compared with.
  sentence, variants, _ = run("--config.preference.judges=('labelers','endpoint')", *down)
  assert "preferences were not judged by endpoint: the endpoint http://127.0.0.1:9" in sentence
  assert "training" in variants and not (tmp_path / "preference" / "result.json").exists()
  assert "preference completions a" in capsys.readouterr().out
  with pytest.raises(ValueError, match="that have finished"):
    evaluate.pool(evaluate.read_request(["evaluate", f"--pool={tmp_path}", "--workdir=x"]))
  sentence, _, preference = run("--config.preference.judges=('endpoint',)", *down)
  assert "preferences were not judged: the endpoint" in sentence and preference is None
  assert "preference completions" not in capsys.readouterr().out  # drawn by then
  real = comparison.complete

  def completions_but(broken):
    def draw(*args, name, **more):
      if name == broken:
        raise ValueError("a prompt has 75 tokens")
      return real(*args, name=name, **more)

    return draw

  for broken, judged in (("a", {"training", "heldout"}), ("b", set())):
    monkeypatch.setattr(comparison, "complete", completions_but(broken))
    sentence, variants, _ = run("--config.seed=1", "--config.preference.max_response_tokens=3")
    assert sentence.startswith(f"{broken} has no completions to be judged: a prompt has 75 tokens")
    assert variants == judged
    for path in (tmp_path / "preference").glob("?"):
      shutil.rmtree(path)
  assert any(
    "preferences were not judged: there are no completions of b" in note
    for note in evaluation(tmp_path)["notes"]
  )
  with pytest.raises(ValueError, match=r"b has no completions.* \(and 1 more\)"):
    evaluate.run(
      evaluate.read_request(
        argv(
          session_inputs,
          tmp_path,
          *preference_flags(session_inputs),
          "--config.seed=1",
          f"--sheets={tmp_path / 'sheets'}",
          suite="preference",
        )
      )
    )
  assert not (tmp_path / "sheets").exists()  # which would lack a checkpoint


def test_an_endpoint_judges_beside_a_real_suite(session_inputs, tmp_path, server, capsys):
  """It fails, comes back, is silent once, and is done; then the other suite runs alone."""
  (tmp_path / "winogender").mkdir()
  (tmp_path / "winogender" / "all_sentences.tsv").write_text(
    "sentid\tsentence\n"
    + "".join(
      f"cook.guest.{answer}.{gender}.txt\tthe cook saw that {pronoun} {rest}\n"
      for answer, rest in enumerate(("sat .", "ran ."))
      for gender, pronoun in (("male", "he"), ("female", "she"))
    ),
    encoding="utf-8",
  )
  bias = (
    f"--config.bias.data={tmp_path}",
    "--config.bias.tasks=('winogender',)",
    "--config.bias.prompts=('basic',)",
  )
  judges = preference_flags(
    session_inputs,
    "--config.preference.judges=('labelers','endpoint')",
    "--config.preference.temperatures=('a=0.0',)",
    *(
      f"--config.preference.endpoint.{setting}"
      for setting in (
        f"base_url={server.url}",
        "model=m",
        "api_key_variable=",
        "num_parallel=1",
        "max_attempts=1",
        "max_retries=0",
        "likert=False",
      )
    ),
  )
  workdir = tmp_path / "run"

  def run(*more, suite="preference,bias"):
    """(what was printed, variants of win rates on the page, tasks of bias on it, questions)"""
    before = len(server.requests)
    evaluate.run(evaluate.read_request(argv(session_inputs, workdir, *bias, *more, suite=suite)))
    return (capsys.readouterr().out, *on_page(), len(server.requests) - before)

  def on_page():
    suites = evaluation(workdir)["suites"]
    return (
      {row["variant"] for row in suites["preference"] if row["metric"] == "win_rate"},
      [row["task"] for row in suites["bias"]],
    )

  server.reply = lambda messages, number: longer_wins(messages) if number < 2 else 401
  with pytest.raises(ValueError, match="preferences were not judged by endpoint: .*refused the "):
    run(*judges)
  printed = capsys.readouterr().out
  assert on_page() == ({"training", "heldout"}, ["winogender"])
  assert "bias winogender-basic a" in printed
  assert "preference judged by labelers, endpoint  1/" in printed
  assert "endpoint m: 2 questions" in printed and "200 + 20 tokens" in printed

  silent = []

  def reply(messages, number):
    if not silent or messages == silent[0]:
      silent[:] = [messages]
      return ""
    return longer_wins(messages)

  server.reply = reply
  printed, variants, tasks, asked = run(*judges)
  assert variants == {"training", "heldout", "endpoint"} and tasks == ["winogender"]
  assert asked > 1 and "2 from the cache" in printed
  assert f"preference judged by labelers, endpoint  {asked}/{asked}" in printed
  assert (
    "bias winogender-basic a" not in printed and "completions a" not in printed
  )  # they are there
  finished = (workdir / "preference" / "result.json").read_bytes()
  server.reply = lambda messages, number: 401  # what is there stays
  with pytest.raises(ValueError, match="empty replies were not asked for again: .*refused"):
    run(*judges)
  assert on_page()[0] == {"training", "heldout", "endpoint"}
  assert (workdir / "preference" / "result.json").read_bytes() == finished
  server.reply = lambda messages, number: longer_wins(messages)
  assert run(*judges)[3] == 1 and run(*judges)[3] == 0
  whole = evaluation(workdir)
  assert run(suite="bias")[3] == 0 and evaluation(workdir) == whole
  assert whole["preference"]["endpoint"]["without_text"] == 0


def test_a_bar_begins_anew_with_every_round(capsys):
  with evaluation_lib.bar("x") as update:
    for total in (2, 3, 1, 1):
      for done in range(1, total + 1):
        update(done, total)
  shown = capsys.readouterr().out
  assert "x  2/2" in shown and "x  3/3" in shown and shown.count("x  1/1") == 2


def test_preferences_are_judged_and_pooled_over_seeds(session_inputs, tmp_path, capsys):
  common = (
    f"--config.preference.data={session_inputs.spec('prompts_test')}",
    "--config.preference.baseline=b",
    "--config.preference.max_prompt_tokens=20",
    "--config.preference.max_response_tokens=12",
    f"--config.preference.judges=('labelers','reward:{session_inputs.reward}')",
    "--config.preference.temperatures=('a=0.0',)",
  )
  for seed in (0, 1):
    evaluate.run(
      evaluate.read_request(
        argv(
          session_inputs, tmp_path / str(seed), *common, f"--config.seed={seed}", suite="preference"
        )
      )
    )
  drawn = capsys.readouterr().out
  assert drawn.splitlines().count("preference completions a") == 2
  evaluate.run(
    evaluate.read_request(argv(session_inputs, tmp_path / "0", *common, suite="preference"))
  )
  assert "completions" not in capsys.readouterr().out  # drawn and judged once
  evaluate.pool(
    evaluate.read_request(
      [
        "evaluate",
        f"--pool={tmp_path / '0'},{tmp_path / '1'}",
        f"--workdir={tmp_path / 'pooled'}",
        "--config.num_resamples=50",
      ]
    )
  )
  read = lambda name: json.loads(
    (tmp_path / name / "report" / "evaluation.json").read_text(encoding="utf-8")
  )
  pooled = read("pooled")
  result = tmp_path / "1" / "preference" / "result.json"
  whole = workdir_lib.read_json(result)
  workdir_lib.write_json(result, dict(whole, weights={"b": whole["weights"]["b"]}))
  with pytest.raises(
    ValueError, match=r"1 has the judged checkpoints \['b'\], the first has \['a', 'b'\]"
  ):
    evaluate.pool(
      evaluate.read_request(
        ["evaluate", f"--pool={tmp_path / '0'},{tmp_path / '1'}", f"--workdir={tmp_path / 'other'}"]
      )
    )
  workdir_lib.write_json(result, whole)
  single = [read(seed) for seed in "01"]
  rate = lambda data: next(
    row["cells"]["a"]
    for row in data["suites"]["preference"]
    if (row["metric"], row["variant"]) == ("win_rate", "training")
  )
  assert rate(pooled)["n"] == sum(rate(data)["n"] for data in single) > 0
  left_out = [data["preference"]["num_left_out"] for data in (pooled, *single)]
  assert left_out[0] == left_out[1] + left_out[2] > 0
  assert (
    min(rate(d)["mean"] for d in single)
    <= rate(pooled)["mean"]
    <= max(rate(d)["mean"] for d in single)
  )
  with pytest.raises(SystemExit):
    evaluate.read_request(["evaluate", "--pool=x,x", "--workdir=y"])
  assert "--pool: x,x: 'x' is given twice" in capsys.readouterr().err
  with pytest.raises(ValueError, match="holds no report with preferences"):
    evaluate.pool(evaluate.read_request(["evaluate", f"--pool={tmp_path}", "--workdir=x"]))


@pytest.mark.parametrize(
  "more, sentence",
  [
    (["--suite=nlp,poetry"], "--suite: 'poetry'; choose from preference, pretraining, nlp"),
    (["--suite="], "--suite: : a name is empty"),
    (["--workdir="], "--workdir is empty"),
    (["--checkpoints="], "--checkpoints: : a name is empty"),
    (["--prefixes=c=x.txt"], "a NAME of --checkpoints: a, b"),
    (["--pool=x"], "--checkpoints and --pool do not go together"),
    (["also"], "unrecognized arguments: also"),
    (["--config.batch_size=0"], "--config.batch_size=0; use 1 or more"),
    (["--config.num_resamples=0"], "--config.num_resamples=0; use 1 or more"),
  ],
)
def test_a_wrong_flag_is_one_sentence(session_inputs, tmp_path, capsys, more, sentence):
  with pytest.raises((ValueError, SystemExit)) as error:
    evaluate.read_request(argv(session_inputs, tmp_path, *more))
  assert sentence in str(error.value) + capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "more, sentence",
  [
    (["--config.nlp.data=/nowhere", "--config.nlp.tasks=('sst',)"], "/nowhere"),
    (["--config.nlp.tasks=('sst','poetry')"], "config.nlp.tasks names 'poetry'; choose from"),
    (["--checkpoints=nowhere"], "--checkpoints=nowhere: .*/nowhere does not exist; name an export"),
    (["--suite=preference"], "config.preference.data"),
    (["--suite=truth", "--config.truth.data=/nowhere"], "/nowhere"),
  ],
)
def test_what_cannot_be_done_is_said_before_a_network_is_loaded(
  session_inputs, tmp_path, monkeypatch, more, sentence
):
  monkeypatch.setattr(evaluation_lib, "load_network", None)
  with pytest.raises(ValueError, match=sentence):
    evaluate.run(evaluate.read_request(argv(session_inputs, tmp_path, *more)))


@pytest.mark.parametrize(
  "more, sentence",
  [
    (["--config.nlp.dta=x"], "config.nlp has no field 'dta'; did you mean 'data'?"),
    (["--workdir=FILE"], "is a file; name a directory"),
  ],
)
def test_a_slip_is_no_traceback(session_inputs, tmp_path, capsys, more, sentence):
  (tmp_path / "file").write_text("", encoding="utf-8")
  more = [flag.replace("FILE", str(tmp_path / "file")) for flag in more]
  with pytest.raises(SystemExit) as ended:
    evaluate.main(argv(session_inputs, tmp_path / "run", *more))
  assert ended.value.code == 2 and sentence in capsys.readouterr().err


def test_given_outputs_are_scored_without_jax(tmp_path):
  commands.write_jsonl(
    tmp_path / "samples.jsonl",
    [
      dict(prompt="q", sample="the cat", references=["cat", "a dog"]),
      dict(prompt="r", sample="", references=[]),
    ],
  )
  program = (
    "import sys; from rlhf.cli import evaluate\n"
    f"evaluate.main(['evaluate', '--samples={tmp_path / 'samples.jsonl'}', "
    "'--task=squadv2', '--json=-'])\n"
    "assert 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=commands.ROOT, capture_output=True, text=True, check=True
  )
  last = json.loads(done.stdout.splitlines()[-1])
  assert list(last) == ["task", "metric", "mean", "low", "high", "n"]
  assert (last["task"], last["mean"], last["n"]) == ("squadv2", 100.0, 2)
