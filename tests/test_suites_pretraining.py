"""The loss on held-out text and the share of right few-shot choices, worked by hand."""

import json

import helpers
import jax
import numpy as np
import pytest

from rlhf.evals.suites import pretraining, suite
from rlhf.model import transformer
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

LENGTH = 16


@pytest.fixture(scope="module")
def network() -> Network:
  """A model of bytes that has not been trained."""
  tokenizer = Tokenizer.train_bpe(["abc"], 258)
  cfg = helpers.model_config(
    vocab_size=tokenizer.num_ids, pad_id=tokenizer.pad_id, num_layers=1, band_width=None
  )
  return Network(cfg=cfg, params=helpers.make_params(cfg, 1), tokenizer=tokenizer, metadata={})


def config(**changes) -> pretraining.PretrainingConfig:
  fields = dict(
    text="",
    train="",
    max_train_tokens=None,
    length=LENGTH,
    packing="cut",
    attend_across_documents=True,
    reset_positions=False,
    few_shot=(),
    text_batch_size=2,
  )
  return pretraining.PretrainingConfig(**(fields | changes))


def evaluate(p, task, network, root):
  """(metric -> measure, items) of a unit."""
  told = []
  unit = suite.Unit(
    task=task,
    network=network,
    directory=root / "pretraining" / "a" / task,
    num_resamples=20,
    seed=0,
    batch_size=2,
    progress=lambda *numbers: told.append(numbers),
  )
  found = pretraining.evaluate(p, unit)
  items = [json.loads(line) for line in (unit.directory / "items.jsonl").open()]
  assert told == [(len(items), len(items))]
  return {measure.metric: measure for measure in found}, items


def logprobs(network, rows) -> list[np.ndarray]:
  """log p of every token of each row but its first, from the model's logits."""
  logprobs_of = helpers.quick_jit(
    lambda tokens_BT, mask_BT: jax.nn.log_softmax(
      transformer.logits(
        network.cfg,
        network.params,
        transformer.forward(network.cfg, network.params, tokens_BT, mask_BT),
      )
    )
  )
  logprob_BTV = np.asarray(logprobs_of(*helpers.right_padded(rows, LENGTH)))
  return [
    np.asarray([logprob_TV[t - 1, ids[t]] for t in range(1, len(ids))])
    for ids, logprob_TV in zip(rows, logprob_BTV)
  ]


def test_the_loss_is_that_of_every_token_of_the_text(network, tmp_path):
  texts = ["ab" * 12, "cab", "bcbcb"]
  (tmp_path / "text.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in texts))
  spec = f"jsonl:{tmp_path / 'text.jsonl'}"
  found, items = evaluate(config(text=spec, train=spec), "loss", network, tmp_path)
  eot = network.tokenizer.eot_id
  stream = [token for text in texts for token in (*network.tokenizer.encode(text), eot)]
  rows = [stream[start : start + LENGTH] for start in range(0, len(stream), LENGTH)]
  losses = [-logprob for logprob in logprobs(network, rows)]
  np.testing.assert_allclose([item["loss"] for item in items], list(map(sum, losses)), rtol=1e-4)
  assert [item["targets"] for item in items] == list(map(len, losses))
  nll, bigram_nll = found["nll"].interval, found["bigram_nll"].interval
  assert nll.mean == pytest.approx(np.concatenate(losses).mean(), rel=1e-4)
  assert nll.n == len(losses) == bigram_nll.n and nll.low < nll.mean < nll.high
  assert 0 < bigram_nll.mean < nll.mean and found["nll"].better == "lower"
  again, _ = evaluate(config(text=spec, train=spec), "loss", network, tmp_path)
  assert again == found and len(list(tmp_path.rglob("bigram-*.json"))) == 1
  rows_N2 = pretraining.read_loss(tmp_path / "pretraining" / "a" / "loss")
  rise = pretraining.rise(rows_N2, rows_N2 * [2, 1], dict(num_resamples=20, seed=0))
  assert rise.mean == pytest.approx(nll.mean)


def test_a_choice_is_right_if_its_tokens_are_likeliest_on_average(network, tmp_path):
  """Each item's answer is found from the logits; one of four is then marked wrong."""
  items = [
    dict(prompt=prompt, choices=choices)
    for prompt, choices in (
      ("a:", ["b", "cc"]),
      ("ab:", ["ccccc", "a"]),
      ("b c:", ["a", "bb", "ccc"]),
      ("c:", ["ab", "ba"]),
    )
  ]
  pairs = [(item["prompt"], f" {choice}") for item in items for choice in item["choices"]]
  ids = [
    (network.tokenizer.encode(prompt), network.tokenizer.encode(choice, continues=True))
    for prompt, choice in pairs
  ]
  found = logprobs(network, [[*before, *after] for before, after in ids])
  means = iter([logprob[-len(after) :].mean() for logprob, (_, after) in zip(found, ids)])
  for item in items:
    item["answer"] = int(np.argmax([next(means) for _ in item["choices"]]))
  items[3]["answer"] = 1 - items[3]["answer"]
  path = tmp_path / "few_shot_letters.jsonl"
  path.write_text("".join(json.dumps(item) + "\n" for item in items))
  p = config(few_shot=(str(path),))
  pretraining.check(p)
  assert pretraining.task_names(p) == ("letters",)
  found, lines = evaluate(p, "letters", network, tmp_path)
  assert [line["correct"] for line in lines] == [True, True, True, False]
  assert found["accuracy"].interval.mean == 0.75 and found["accuracy"].better == "higher"
  assert found["chance"].interval.mean == pytest.approx((3 / 2 + 1 / 3) / 4)


@pytest.mark.parametrize(
  "line, message",
  [
    ("", "letters.jsonl is empty"),
    ('{"prompt": "a", "choices": ["b"]}', r"letters.jsonl:1: a few-shot item needs .*found \["),
    ('{"prompt": "a", "choices": ["b"], "answer": 1}', "letters.jsonl:1: a few-shot item needs"),
  ],
)
def test_bad_items_are_named(tmp_path, line: str, message: str):
  path = tmp_path / "letters.jsonl"
  path.write_text(line)
  with pytest.raises(ValueError, match=message):
    pretraining.check(config(few_shot=(str(path),)))
  path.unlink()
  with pytest.raises(ValueError, match="config.pretraining.few_shot: .* does not exist"):
    pretraining.check(config(few_shot=(str(path),)))


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(), "text and few_shot are empty"),
    (dict(text="jsonl:x", packing="tight"), "packing 'tight'; choose from"),
    (dict(text="jsonl:x", length=1), "config.pretraining.length is 1; use 2 or more"),
    (dict(few_shot=("a/x.jsonl", "b/few_shot_x.jsonl")), "give files of different names"),
  ],
)
def test_impossible_settings_are_refused(changes, message: str):
  with pytest.raises(ValueError, match=message):
    config(**changes)
