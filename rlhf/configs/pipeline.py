"""The three steps in a row: `configs/pipeline.py:NAME`.

  rlhf pipeline --config=configs/pipeline.py:tiny --workdir=runs/tiny

tiny         TinyWorld, 2 layers of width 128: every stage and the report in minutes on 2 cores.
real         one's own files (`config.files`), about 1M parameters outside the embeddings.
test         TinyWorld in seconds, for the tests: it shows that the stages fit, and nothing else.
sized        tiny, made for models of several sizes; sized_test is test, made so.
smollm2      SmolLM2-135M-Instruct with adapters, one's own files, its chat template.
gemma3_270m  Gemma 3 270M, a base model, likewise, with plain prompts.
"""

import ml_collections

from rlhf.configs import common, models, ppo, reward_model, sft

# Fields that the pipeline fills in: paths that its stages make, its seed and its one format.
FILLED = ("seed", "init_from", "policy_from", "reward_from", "reference_from")
# What makes the policy's shape: set for `base`, it holds for every stage that trains the policy.
SHAPE = ("context_length", "num_layers", "width", "num_heads", "init_std")
FORMAT = ("prompt_format", "prompt_suffix", "completion_prefix")
LANGUAGE_MODELS = ("base", "sft", "ppo_init", "base_more_pretraining")
NETWORKS = (*LANGUAGE_MODELS, "reward_model", "ppo")


def unfilled(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A stage's config, unlocked, without what the pipeline fills in."""
  config.unlock()
  for name in FILLED:
    if name in config:
      del config[name]
  for group, fields in (
    ("text", ("train", "valid")),
    ("demonstrations", ("train", "valid", *FORMAT)),
    ("comparisons", ("train", "valid", "demonstrations", *FORMAT)),
    ("prompts", ("train", "valid", *FORMAT)),
    ("pretraining", ("train",)),
  ):
    if group in config:
      for field in fields:
        del config[group][field]
  return config


def _assemble(size: str) -> ml_collections.ConfigDict:
  """All stages at one size, with the numbers that tiny, real and test share.

  `reward_init`: the reward model starts from the last "sft" epoch or, as one of another shape must,
  from a "base" model of its own shape (InstructGPT C.2: similar results from GPT-3 and from SFT).
  `kl_reference`: PPO's penalty is towards its own start, "ppo_init", or towards the "base" model
  (InstructGPT Fig. 34).
  """
  config = ml_collections.ConfigDict(
    dict(
      kind="pipeline",
      title="",
      seed=0,
      format=common.get_format(),
      reward_init="sft",
      kl_reference="ppo_init",
      base=unfilled(sft.get_config(f"{size},pretrain")),
      sft=unfilled(sft.get_config(size)),
      ppo_init=unfilled(sft.get_config(f"{size},init")),
      reward_model=unfilled(reward_model.get_config(size)),
      ppo=unfilled(ppo.get_config(size)),
      base_more_pretraining=unfilled(sft.get_config(f"{size},pretrain")),
      evaluation=dict(
        temperature=1.0,
        base_temperature=0.7,
        num_selection_prompts=200,
        num_resamples=2000,
        batch_size=200,
      ),
    )
  )
  for name in ("sft", "ppo_init", "base_more_pretraining"):
    del config[name]["tokenizer"]  # the base model's
  del config.base_more_pretraining.sft["max_steps"]  # as many tokens as PPO-ptx reads
  config.base_more_pretraining.sft.num_epochs = 100
  return config


def _continue_base(config: ml_collections.ConfigDict) -> None:
  """The base model's continuation: its optimizer without warm-up and decay, at the rate where
  pretraining ended."""
  optim = config.base_more_pretraining.optim
  optim.update(config.base.optim)
  optim.warmup_steps = 0
  optim.schedule = "constant"
  optim.learning_rate = config.base.optim.learning_rate * config.base.optim.final_ratio


def _share_shape(config: ml_collections.ConfigDict) -> None:
  """One shape for the policy: --config.base.model.width=64 is every stage's, but the reward model's."""
  for stage in ("sft", "ppo_init", "ppo", "base_more_pretraining"):
    for name in SHAPE:
      config[stage].model[name] = config.base.model.get_ref(name)


def get_labelers() -> dict[str, float]:
  """TinyWorld's labelers, but for the seed."""
  return dict(
    num_training=5,
    num_heldout=5,
    weight_spread=0.3,
    length_taste_scale=0.03,
    leniency_scale=0.05,
    noise_scale=0.14,
    tie_margin=0.03,
  )


def get_tiny() -> ml_collections.ConfigDict:
  """TinyWorld in minutes.

  What differs from the paper, and why: 64 episodes an iteration and a minibatch of 32, because
  2,560 episodes are what minutes allow, and much fewer than 80 optimizer steps would not leave the
  starting point; five epochs of pretraining, because such a network learns to take words over from
  its prompt sooner from repeated documents than from new ones, without weight decay, with beta2
  0.99 and a clip of 10 for the same reason (loss of copied words after 1.3M tokens: 1.41 nats with
  GPT-3's settings, 1.24 with these); learning rates of 2e-3 and below, because a 2-layer network
  needs them where 1.3B parameters need 1e-5; EMA 0.95, so that it forgets its start within the
  run; KL coefficient 0.15, which holds the policy about 1 nat per response from its reference,
  because at 0.05 it over-optimised such a reward model (in an earlier form of this world, gold
  score 0.60 at a KL of 0.3 nats and 0.29 at 10); ptx coefficient 1, because 27.8 belongs to
  rewards and losses of another scale.

  Kept from the paper: 8 pretraining examples per episode, one optimizer step for both gradients,
  one inner epoch, K = 4..9, 16 SFT epochs, one reward-model epoch.
  """
  config = _assemble("tiny")
  config.title = "TinyWorld, 2 layers of width 128"
  config.world = dict(
    num_pretraining_documents=24_000,
    num_validation_documents=1_000,
    num_demonstrations=1_800,
    num_validation_demonstrations=200,
    num_reward_prompts=2_000,
    num_reward_validation_prompts=300,
    num_ppo_prompts=3_000,
    num_ppo_validation_prompts=200,
    num_test_prompts=1_200,
    num_few_shot_items=200,
    num_few_shot_shots=3,
    num_users=300,
  )
  config.labelers = get_labelers()
  config.comparisons = dict(min_completions=4, max_completions=9, temperature=1.0)
  for name in NETWORKS:
    # Both layers dense: two layers can match answer to prompt only if the first sees the prompt.
    config[name].model.band_width = None
  for group in (
    config.base.text,
    config.ppo_init.text,
    config.base_more_pretraining.text,
    config.ppo.pretraining,
  ):
    # Each document is read whole and from position 0, as prompts will be: rows are hardly longer
    # than documents, and cutting at their ends would part most answers from their questions.
    group.update(packing="best_fit", attend_across_documents=False, reset_positions=True)
  config.base.tokenizer = "bpe:1024"
  config.base.sft.num_epochs = 5
  config.base.optim.update(learning_rate=2e-3, weight_decay=0.0, b2=0.99, max_grad_norm=10.0)
  config.base.loop.eval_every = 500
  for name in LANGUAGE_MODELS:
    config[name].sft.batch_size = config[name].sft.microbatch_size = 8
  config.sft.sft.batch_size = 16
  config.ppo_init.text.max_tokens = 300_000  # it mixes in a tenth of what it reads
  config.sft.loop.eval_every = 60
  config.reward_model.reward.batch_size, config.reward_model.reward.microbatch_size = 8, 2
  config.reward_model.optim.learning_rate = 1e-3
  config.ppo.ppo.update(batch_size=64, minibatch_size=32, microbatch_size=16, num_iterations=40)
  config.ppo.ppo.update(max_prompt_tokens=36, max_response_tokens=28, rollout_slots=16)
  config.ppo.ppo.update(ptx_coef=1.0, ptx_length=48, ptx_microbatch_size=16)
  config.ppo.ppo.update(kl_coef=0.15, ema_decay=0.95, alarm_kl=50.0)
  config.ppo.policy_optim.learning_rate = 3e-4
  config.ppo.value_optim.learning_rate = 1e-3
  ppo.warm_up(config.ppo)
  config.ppo.loop.eval_every = 10
  config.ppo.prompts.num_valid = 192
  return config


def get_test() -> ml_collections.ConfigDict:
  """Everything once, in seconds."""
  config = get_tiny()
  config.title = "TinyWorld, test size"
  for name in NETWORKS:
    config[name].model = models.get_model("test")
  for name in LANGUAGE_MODELS:
    config[name].loop.update(eval_every=4, log_every=1)
    config[name].checkpoint.every = 4
  config.world.update(
    num_pretraining_documents=400,
    num_validation_documents=40,
    num_demonstrations=60,
    num_validation_demonstrations=20,
    num_reward_prompts=32,
    num_reward_validation_prompts=16,
    num_ppo_prompts=40,
    num_ppo_validation_prompts=16,
    num_test_prompts=24,
    num_few_shot_items=8,
    num_users=20,
  )
  config.base.tokenizer = "bpe:512"
  config.base.sft.batch_size = config.base.sft.microbatch_size = 16
  config.sft.sft.num_epochs = 2
  for name in ("sft", "ppo_init", "base_more_pretraining"):
    config[name].sft.batch_size, config[name].sft.microbatch_size = 8, 4
  config.reward_model.reward.batch_size = config.reward_model.reward.microbatch_size = 8
  config.reward_model.loop.eval_every = config.reward_model.checkpoint.every = 2
  config.ppo.ppo.update(batch_size=8, minibatch_size=4, microbatch_size=2, num_iterations=4)
  config.ppo.ppo.update(max_prompt_tokens=52, max_response_tokens=12, rollout_slots=8)
  config.ppo.loop.eval_every = config.ppo.checkpoint.every = 2
  config.ppo.prompts.num_valid = 12
  config.evaluation.update(num_selection_prompts=8, num_resamples=200, batch_size=16)
  return config


def _make_sized(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """A TinyWorld pipeline for policies of several sizes (`configs/sweeps/model_size.py`, PALMS).

  The context is twice as long and the base model reads rows of several documents, with attention
  across them, as GPT-3 did: so it can be asked with examples before the prompt.  The reward model
  keeps its size whatever the policy's, as the paper's 6B one does, and starts from a base model.
  """
  config.title += ", a context of 128"
  config.reward_init = "base"
  for name in NETWORKS:
    config[name].model.context_length = 128
  config.base.length = 128
  config.base.text.attend_across_documents, config.base.text.reset_positions = True, False
  return config


def get_real() -> ml_collections.ConfigDict:
  """One's own text, demonstrations, rankings and prompts, on 4 layers of width 144 (1.0M parameters
  outside the embeddings) with a context of 160 tokens: every stage within about an hour on 2 cores.

    rlhf pipeline --config=configs/pipeline.py:real --workdir=runs/real \\
        --config.files.text="('text:c4.txt','text:gutenberg.txt')" \\
        --config.files.demonstrations="('t0:p3.jsonl','alpaca:alpaca_data.json')" \\
        --config.files.comparisons="('alpaca_eval:alpaca_eval.jsonl',)" \\
        --config.files.prompts="('alpaca:roleplay-instruct.json',)"

  Public sets of these layouts: plain text of C4 and Project Gutenberg; prompts of P3 and Stanford
  Alpaca; outputs and annotations of AlpacaEval; GPTeacher's role play.  `docs/data_formats.md`
  describes the fields of each format.

  The tokenizer is a BPE of 4,096 trained on the text; --config.base.tokenizer=gpt2:DIR takes
  GPT-2's encoder.json and vocab.bpe instead.  Learning rates, sizes and the number of iterations
  are ours, as in `tiny`.
  A network of this size cannot follow such instructions: what this run shows is that every stage
  works on real files, and what each learns is in its report.
  """
  config = _assemble("small")
  config.title = "Real preference data, 4 layers of width 144"
  config.files = _files(max_demonstrations=2_000)
  for name in NETWORKS:
    config[name].model.update(context_length=160, band_width=32)
    if "length" in config[name]:
      config[name].length = 160
  config.base.tokenizer = "bpe:4096"
  config.base.text.max_tokens = 1_600_000
  config.base.optim.learning_rate = 2e-3
  for name in LANGUAGE_MODELS:
    config[name].sft.batch_size = config[name].sft.microbatch_size = 16
    config[name].loop.eval_every = 200
  config.sft.optim.learning_rate = config.ppo_init.optim.learning_rate = 1e-3
  config.sft.demonstrations.overlong = config.ppo_init.demonstrations.overlong = "truncate_left"
  reward = config.reward_model
  reward.reward.batch_size = reward.reward.microbatch_size = 8
  reward.optim.learning_rate = 5e-4
  reward.comparisons.overlong = "truncate_completion"  # most answers of this set are longer
  reward.comparisons.overlong_demonstrations = "truncate_left"
  config.ppo.ppo.update(batch_size=64, minibatch_size=32, microbatch_size=32, num_iterations=20)
  config.ppo.ppo.update(max_prompt_tokens=96, max_response_tokens=64, ema_decay=0.92)
  config.ppo.ppo.update(ptx_coef=2.0, ptx_length=96, ptx_microbatch_size=32)
  config.ppo.policy_optim.learning_rate = 2e-4
  config.ppo.value_optim.learning_rate = 5e-4
  ppo.warm_up(config.ppo)
  config.ppo.loop.eval_every = 5
  config.ppo.prompts.num_valid = 128
  config.evaluation.batch_size = 100
  return config


def _get_imported(title: str) -> ml_collections.ConfigDict:
  """A published model (`config.base.source`: hf:DIR, gguf:FILE or an export) with adapters of
  rank 16 in every stage, small enough for 2 cores: 16 episodes an iteration, answers of 64 tokens,
  20 iterations.

  All numbers here are ours.  So few episodes prove that the path works, and no more.
  """
  config = _assemble("imported")
  config.title = title
  kept = {name: config.base[name] for name in ("mesh", "model", "compute", "length", "text")}
  config.base = dict(source="", **kept, sft=dict(batch_size=16))
  config.files = _files(
    max_demonstrations=160, max_comparisons=120, max_prompts=400, max_completions=4
  )
  config.files.valid_fraction = 0.15
  for name in NETWORKS:
    config[name].compute.update(dtype="float32", remat="none", logprob_chunk=64)
    if "length" in config[name]:
      config[name].length = 144
    if "lora" in config[name]:
      config[name].lora.update(rank=16, alpha=32.0)
  for group in (config.base.text, config.ppo_init.text, config.base_more_pretraining.text):
    group.max_tokens = 60_000
  for name in ("sft", "ppo_init", "base_more_pretraining"):
    stage = config[name]
    stage.sft.batch_size = stage.sft.microbatch_size = 16
    stage.loop.update(eval_every=10, log_every=1)
    stage.checkpoint.every = 5
    stage.optim.learning_rate = 2e-4
    if "demonstrations" in stage:
      stage.demonstrations.overlong = "truncate_right"
  config.sft.sft.num_epochs, config.ppo_init.sft.num_epochs = 2, 1
  config.base_more_pretraining.optim.update(schedule="constant", learning_rate=1e-4, warmup_steps=0)
  reward = config.reward_model
  reward.reward.batch_size, reward.reward.microbatch_size = 8, 4
  reward.optim.learning_rate = 2e-4
  reward.comparisons.overlong = "truncate_completion"  # most answers of AlpacaEval are longer
  reward.comparisons.overlong_demonstrations = "truncate_right"
  reward.loop.update(eval_every=5, log_every=1)
  reward.checkpoint.every = 3
  config.ppo.ppo.update(batch_size=16, minibatch_size=16, microbatch_size=16, num_iterations=20)
  config.ppo.ppo.update(max_prompt_tokens=80, max_response_tokens=64, kl_coef=0.05, ema_decay=0.8)
  config.ppo.ppo.update(ptx_coef=1.0, ptx_ratio=1, ptx_length=96, ptx_microbatch_size=16)
  config.ppo.pretraining.max_tokens = 60_000
  config.ppo.policy_optim.update(learning_rate=1e-4, warmup_steps=2)
  config.ppo.value_optim.update(learning_rate=2e-4, warmup_steps=2)
  config.ppo.loop.eval_every, config.ppo.checkpoint.every = 10, 2
  config.ppo.prompts.num_valid = 32
  config.evaluation.update(num_selection_prompts=32, batch_size=16)
  return config


def get_smollm2() -> ml_collections.ConfigDict:
  """SmolLM2-135M-Instruct, already instruction-tuned, by its own chat template.

    rlhf pipeline --config=configs/pipeline.py:smollm2 --workdir=runs/smollm2 \\
        --config.base.source=gguf:SmolLM2-135M-Instruct.Q4_1.gguf \\
        --config.files.text="('text:c4.txt',)" \\
        --config.files.demonstrations="('alpaca:alpaca_data.json',)" \\
        --config.files.comparisons="('alpaca_eval:alpaca_eval.jsonl',)" \\
        --config.files.prompts="('alpaca:roleplay-instruct.json',)"

  The files are as for `get_real`; `docs/published_models.md` says where to get the model.
  """
  config = _get_imported("SmolLM2-135M-Instruct, adapters of rank 16")
  config.format.update(prompt_format="chat", prompt_suffix="", completion_prefix="")
  return config


def get_gemma3_270m() -> ml_collections.ConfigDict:
  """Gemma 3 270M, which has seen no demonstrations: as `get_smollm2`, with
  `--config.base.source=gguf:gemma-3-270m-q4_k_m.gguf` and plain prompts."""
  return _get_imported("Gemma 3 270M, adapters of rank 16")


def _files(**limits: int) -> dict:
  """One's own files, with their cleaning and splits; see `splits.FilesConfig`."""
  names = ("max_demonstrations", "max_comparisons", "max_prompts", "max_completions")
  return dict(
    text=("",),
    demonstrations=("",),
    comparisons=("",),
    prompts=("",),
    valid_fraction=0.1,
    test_fraction=0.1,
    **{name: common.filled(limits.get(name), int) for name in names},
    prefix_length=60,
    max_prompts_per_user=200,
    on_bad="stop",
  )


_NAMED = dict(
  tiny=get_tiny,
  real=get_real,
  test=get_test,
  smollm2=get_smollm2,
  gemma3_270m=get_gemma3_270m,
  sized=lambda: _make_sized(get_tiny()),
  sized_test=lambda: _make_sized(get_test()),
)
NAMES = tuple(_NAMED)


def get_config(name: str = "tiny") -> ml_collections.ConfigDict:
  """A complete config for `rlhf.pipeline.run`.

  Raises:
    ValueError: an unknown name.
  """
  if name not in _NAMED:
    raise ValueError(f"pipeline {name!r}; choose from {', '.join(NAMES)}")
  config = _NAMED[name]()
  if "source" not in config.base:
    _share_shape(config)
    _continue_base(config)
  return config.lock()
