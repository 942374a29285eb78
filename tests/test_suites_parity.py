"""Our adapter against lm-eval's own `hf` model, for the same weights; needs torch, transformers."""

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra (torch) is not installed")
transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
pytest.importorskip("lm_eval")

import interop_models
import tokenizers
from lm_eval import evaluator
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from rlhf import networks, sharding
from rlhf.evals.suites import harness, nlp
from rlhf.model.compute import ComputeConfig

# Importing transformers, torch and compiling take long.
pytestmark = pytest.mark.slow
CONTEXT = 128
TEXT = "The painter sold the paintings. Is it so, or is it not? yes no\nQuestion: Answer: 2,5 é\n\n"


def make_model(directory: pathlib.Path, name: str, *, adds_bos: bool) -> None:
  """A small random model of a family with a byte-level tokenizer that may write begin-of-text."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE())
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = tokenizers.decoders.ByteLevel()
  inner.train_from_iterator(
    [TEXT] * 4,
    tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      special_tokens=["<s>", "</s>", "<pad>"],
      show_progress=False,
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    ),
  )
  if adds_bos:
    inner.post_processor = tokenizers.processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", inner.token_to_id("<s>"))]
    )
  bos = dict(bos_token="<s>") if adds_bos else {}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, eos_token="</s>", pad_token="<pad>", **bos
  ).save_pretrained(directory)
  config = interop_models.make_config(name)
  config.vocab_size = inner.get_vocab_size()
  config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, 2
  setattr(config, "n_positions" if name.startswith("gpt2") else "max_position_embeddings", CONTEXT)
  model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
  interop_models.randomise(model, seed=0)
  model.save_pretrained(directory)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def pair(request, tmp_path_factory):
  """(lm-eval's model, ours) of one directory."""
  directory = tmp_path_factory.mktemp(request.param)
  make_model(directory, request.param, adds_bos=request.param == "llama")
  theirs = HFLM(
    pretrained=str(directory), device="cpu", batch_size=3, dtype="float32", max_length=CONTEXT
  )
  mesh = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))
  source = f"hf:{directory}"
  network = networks.load(source, ComputeConfig(), mesh, kind="policy", flag="source")
  return theirs, harness.HarnessModel(network, batch_size=8)


def requests(kind: str, arguments) -> list[Instance]:
  return [Instance(request_type=kind, doc={}, arguments=each, idx=0) for each in arguments]


def test_log_likelihoods_are_those_of_the_hf_model(pair):
  theirs, ours = pair
  asked = requests(
    "loglikelihood",
    [
      ("The painter sold", " the paintings."),
      ("Question: Is it so? Answer:", " yes"),
      ("Question: Is it so? Answer:", " no"),
      ("spaces move to the continuation  ", "yes"),
      ("a line\n", "Answer: 12"),
      ("", "no context at all"),
      ("", " "),
      ("é", "é\n\nyes"),
      ("x" * 150, " the context is cut from the left"),
      ("cut " * 40, " a" * 60),
      ("half a word, pain", "tings"),
    ],
  )
  expected, found = theirs.loglikelihood(asked), ours.loglikelihood(asked)
  np.testing.assert_allclose([x for x, _ in found], [x for x, _ in expected], rtol=2e-5, atol=2e-4)
  assert [x for _, x in found] == [x for _, x in expected]


def test_what_would_be_written_is_greedy_for_both(pair):
  theirs, ours = pair
  options = dict(until=["\n\n"], max_gen_toks=12, do_sample=False)
  context = "The painter sold"
  (text,) = theirs.generate_until(requests("generate_until", [(context, dict(options))]))
  asked = requests("loglikelihood", [(context, text), (context, text + "zq")])
  assert [x for _, x in ours.loglikelihood(asked)] == [x for _, x in theirs.loglikelihood(asked)]


def test_whole_texts_have_the_same_likelihood(pair):
  theirs, ours = pair
  asked = requests(
    "loglikelihood_rolling", [("The painter.",), (TEXT * 5,), ("y" * (CONTEXT + 1),)]
  )
  np.testing.assert_allclose(
    ours.loglikelihood_rolling(asked), theirs.loglikelihood_rolling(asked), rtol=2e-5
  )


def test_the_same_texts_are_written(pair):
  theirs, ours = pair
  contexts = ["The painter sold", "Question: Is it so? Answer:", "x" * 200, "no\n", "é"]
  options = dict(until=["\n", "it"], max_gen_toks=24, do_sample=False, temperature=0.0)
  ask = lambda: requests("generate_until", [(text, dict(options)) for text in contexts])
  expected, found = theirs.generate_until(ask()), ours.generate_until(ask())
  assert any(expected)
  assert found == expected


def test_a_task_scores_the_same(pair, shared_data):
  theirs, ours = pair

  def run(lm, name: str):
    manager = lm_eval_tasks.TaskManager(
      include_path=str(nlp.TASK_DIR),
      include_defaults=False,
      metadata=dict(data=str(shared_data / "evals"), limit=6, seed=3),
    )
    return evaluator.simple_evaluate(
      model=lm, tasks=[name], task_manager=manager, num_fewshot=1, bootstrap_iters=0
    )

  for name, metric in (
    ("instructgpt_rte", "acc_norm,none"),
    ("instructgpt_truthfulqa_qa", "rouge_l_difference,none"),
    ("instructgpt_crows_pairs_basic", "entropy,none"),
  ):
    expected, found = run(theirs, name), run(ours, name)
    assert found["results"][name][metric] == pytest.approx(
      expected["results"][name][metric], abs=1e-4
    )
    answers = lambda result: [
      answer for sample in result["samples"][name] for answer in sample["filtered_resps"]
    ]
    texts = [
      [answer for answer in answers(result) if isinstance(answer, str)]
      for result in (found, expected)
    ]
    assert texts[0] == texts[1]
    logprobs = [
      [answer[0] for answer in answers(result) if not isinstance(answer, str)]
      for result in (found, expected)
    ]
    np.testing.assert_allclose(*logprobs, rtol=2e-5, atol=2e-4)
