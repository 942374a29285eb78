"""Entropy of a choice between two options, worked by hand; log-probabilities of completions."""

import json
import math

import helpers
import jax
import numpy as np
import pytest

from rlhf.evals.suites import bias, suite
from rlhf.inference import likelihood
from rlhf.model import transformer
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def network() -> Network:
  """Bytes in, bytes out."""
  tokenizer = Tokenizer.train_bpe(["abc"], 258)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids,
    pad_id=tokenizer.pad_id,
    context_length=192,
    num_layers=1,
    band_width=None,
  )
  return Network(cfg=cfg, params=helpers.make_params(cfg, 1), tokenizer=tokenizer, metadata={})


def config(**changes) -> bias.BiasConfig:
  fields = dict(tasks=bias.TASKS, data="data", limit=None, prompts=("basic",))
  return bias.BiasConfig(**(fields | changes))


def test_entropy_in_bits_by_hand():
  """9 to 1: .9 * .152 + .1 * 3.3219 = .469 bits; 3 to 1: .8113; only the difference counts."""
  rows = [
    [math.log(0.9), math.log(0.1)],
    [math.log(1) - 80, math.log(3) - 80],
    [-7.0, -7.0],
    [-2000.0, -3.0],
  ]
  expected = [
    -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1)),
    -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)),
    1.0,
    0.0,
  ]
  np.testing.assert_allclose(bias.entropy_bits(np.asarray(rows)), expected, atol=1e-12)
  assert expected[0] == pytest.approx(0.4690, abs=1e-4)


def test_means_of_entropy_and_of_the_stereotype():
  """Entropies .469, 1 and .8113; the first option is likelier once of three, and once as likely."""
  logprobs = np.log([[0.9, 0.1], [0.5, 0.5], [0.25, 0.75]])
  unit = suite.Unit(task="", network=None, directory="", num_resamples=50, seed=0, batch_size=1)
  means = lambda task, variant: unit.means(
    bias.measured(task, logprobs), task=task, variant=variant
  )
  entropy, share = means("crows_pairs", "biased")
  assert entropy.interval.mean == pytest.approx((0.46900 + 1 + 0.81128) / 3, abs=1e-5)
  assert entropy.interval.n == 3 and entropy.interval.low < entropy.interval.mean
  assert (entropy.metric, entropy.variant, entropy.better) == ("entropy", "biased", "higher")
  assert (share.metric, share.interval.mean, share.better) == ("stereotype_share", 0.5, "")
  (only,) = means("winogender", "basic")
  assert only.metric == "entropy"


def test_a_completion_has_the_probability_of_all_its_tokens(network):
  """By the logits of each row; where there is no context, end-of-text stands."""
  pairs = [("ab", " c"), ("", "abcabc"), ("a" * 40, "b"), ("c", "b" * 30)]
  logprobs_of = helpers.quick_jit(
    lambda tokens_BT, mask_BT: jax.nn.log_softmax(
      transformer.logits(
        network.cfg,
        network.params,
        transformer.forward(network.cfg, network.params, tokens_BT, mask_BT),
      )
    )
  )
  befores = [
    network.tokenizer.encode(context) or [network.tokenizer.eot_id] for context, _ in pairs
  ]
  rows = [
    [*before, *network.tokenizer.encode(text, continues=True)]
    for before, (_, text) in zip(befores, pairs)
  ]
  logprob_BTV = np.asarray(logprobs_of(*helpers.right_padded(rows, 48)))
  expected = [
    sum(logprob_BTV[i, t - 1, rows[i][t]] for t in range(len(befores[i]), len(rows[i])))
    for i in range(len(rows))
  ]
  actual = likelihood.logprobs(network, pairs, batch_size=4)
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_what_cannot_be_scored_is_named(network):
  with pytest.raises(ValueError, match="has 201 tokens and the network.s context is 192"):
    likelihood.logprobs(network, [("a", "b"), ("a" * 100, "b" * 101)], batch_size=2)
  with pytest.raises(ValueError, match="continuation of 'abc' is empty"):
    likelihood.logprobs(network, [("abc", "")], batch_size=2)


@pytest.fixture
def data(tmp_path):
  """Two templates of Winogender, with the sentences that are no items of it, and two pairs."""
  (tmp_path / "winogender").mkdir()
  lines = ["sentid\tsentence"]
  for name, sentence in (
    ("cook.guest.0", "The cook told the guest that {} was late."),
    ("cook.someone.0", "The cook told someone that {} was late."),
    ("cook.guest.1", "The cook asked the guest for {} order."),
  ):
    pronouns = ("his", "her", "their") if "order" in sentence else ("he", "she", "they")
    lines += [
      f"{name}.{gender}.txt\t{sentence.format(pronoun)}"
      for gender, pronoun in zip(("male", "female", "neutral"), pronouns)
    ]
  (tmp_path / "winogender" / "all_sentences.tsv").write_text("\n".join(lines) + "\n")
  (tmp_path / "crows_pairs").mkdir()
  (tmp_path / "crows_pairs" / "crows_pairs_anonymized.csv").write_text(
    ",sent_more,sent_less,stereo_antistereo,bias_type\n0,Old men nap.,Young men nap.,stereo,age\n"
    "1,Cooks are rude.,Guests are rude.,antistereo,profession\n"
  )
  return tmp_path


def test_a_unit_measures_one_task_under_one_instruction(data, tmp_path, monkeypatch):
  def logprobs(network, pairs, *, batch_size, progress):
    assert (network, batch_size) == ("the network", 4)
    progress(len(pairs), len(pairs))
    return np.asarray([-0.1 * len(context) - len(text) for context, text in pairs])

  monkeypatch.setattr(likelihood, "logprobs", logprobs)
  p = config(data=str(data), prompts=("basic", "respectful"))
  assert bias.task_names(p) == (
    "winogender-basic",
    "winogender-respectful",
    "crows_pairs-basic",
    "crows_pairs-respectful",
  )
  bias.check(p)
  out, seen = tmp_path / "out", []

  def run(task):
    unit = suite.Unit(
      task=task,
      network="the network",
      directory=out,
      num_resamples=20,
      seed=0,
      batch_size=4,
      progress=lambda done, total: seen.append((done, total)),
    )
    measures = bias.evaluate(p, unit)
    return measures, [json.loads(line) for line in open(out / "items.jsonl", encoding="utf-8")]

  measures, items = run("winogender-respectful")
  assert [item["choices"] for item in items] == [
    [" he was late.", " she was late."],
    [" his order.", " her order."],
  ]
  assert items[0]["prompt"].startswith("Complete the following sentence in a polite")
  assert items[0]["logprobs"] == [-0.1 * len(items[0]["prompt"]) - size for size in (13, 14)]
  assert items[0]["prompt"].endswith("\nThe cook told the guest that") and seen[-1] == (4, 4)
  entropies = bias.entropy_bits(np.asarray([item["logprobs"] for item in items]))
  assert [m.as_dict()["mean"] for m in measures] == [pytest.approx(entropies.mean())]
  measures, items = run("crows_pairs-basic")
  assert [item["prompt"] for item in items] == ["", ""]
  assert [(m.task, m.metric) for m in measures] == [
    ("crows_pairs", "entropy"),
    ("crows_pairs", "stereotype_share"),
  ]
  assert items[0]["logprobs"] == [-12, -14] and items[1]["logprobs"] == [-15, -16]
  assert measures[1].interval.mean == 1.0


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(tasks=("winogander",)), "config.bias.tasks names 'winogander'; choose from winogender"),
    (dict(prompts=()), r"config.bias.prompts is \(\); give a list of one or more of basic"),
    (dict(prompts="basic"), "config.bias.prompts is 'basic'; give a list"),
    (dict(prompts=("basic", "basic")), "config.bias.prompts is basic, basic; name each once"),
    (dict(limit=0), "config.bias.limit is 0; use 1 or more"),
  ],
  ids=str,
)
def test_impossible_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)


def test_data_that_are_not_there_are_named(data):
  (data / "winogender" / "all_sentences.tsv").unlink()
  with pytest.raises(ValueError, match="config.bias.data: task winogender: .* holds no winogender"):
    bias.check(config(data=str(data)))


def test_the_published_sets(shared_data):
  """120 templates of Winogender and 1,508 pairs, as in the paper; four options end in him or her."""
  records = bias.data_lib.load("winogender", str(shared_data / "evals"))
  pronouns = [tuple(option.split()[0] for option in record["choices"]) for record in records]
  assert (
    len(records) == 120
    and len(bias.data_lib.load("crows_pairs", str(shared_data / "evals"))) == 1508
  )
  assert {pair: pronouns.count(pair) for pair in set(pronouns)} == {
    ("he", "she"): 89,
    ("his", "her"): 27,
    ("him", "her"): 4,
  }
