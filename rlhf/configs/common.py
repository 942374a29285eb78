"""Groups that every training config shares."""

from ml_collections import config_dict

from rlhf.configs import models


def get_optim(learning_rate: float, *, schedule: str = "cosine") -> dict:
  """Adam as in InstructGPT appendix C (beta 0.9 / 0.95, cosine to 10 %, no warm-up).

  eps 1e-8 and the clip of 1.0 are GPT-3's (Brown et al. 2020, appendix B); weight decay is not
  stated for any step of InstructGPT, so it is 0.
  """
  return dict(
    learning_rate=learning_rate,
    schedule=schedule,
    warmup_steps=0,
    warmup_init_ratio=0.1,
    final_ratio=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    weight_decay=0.0,
    max_grad_norm=1.0,
  )


def get_mesh() -> dict:
  """All devices as replicas; -1 takes what the other axes leave."""
  return dict(data=-1, fsdp=1, tensor=1)


def get_training(kind: str, size: str) -> dict:
  """What every training config has: its kind, the seed, and the network with its layout.

  No adapters; `lora.rank` 8 or 16 trains these beside a frozen network.  alpha 16 on all
  projections is ours; Hu et al. 2021 adapt attention alone.
  """
  return dict(
    kind=kind,
    seed=0,
    model=models.get_model(size),
    compute=models.get_compute(size),
    mesh=get_mesh(),
    lora=dict(rank=0, alpha=16.0, targets="attention,mlp"),
  )


def get_sft(batch_size: int, num_epochs: int, *, dropout_rate: float = 0.0) -> dict:
  """The numbers of `rlhf.sft.SftConfig`; microbatches are whole batches, and no export is kept."""
  return dict(
    batch_size=batch_size,
    microbatch_size=batch_size,
    num_epochs=num_epochs,
    max_steps=config_dict.placeholder(int),
    dropout_rate=dropout_rate,
    keep_epochs=False,
    keep_rows=config_dict.placeholder(int),
  )


def get_checkpoint(*, every: int) -> dict:
  return dict(
    every=every,
    keep_last=2,
    keep_every=config_dict.placeholder(int),
    best_metric="",
    best_is_lower=True,
  )


def get_format() -> dict:
  """How a prompt becomes an answer's context; ours: the paper's prompts are free text.

  prompt_format "chat" takes the chat template of the model's tokenizer, with both texts empty.
  """
  return dict(prompt_format="plain", prompt_suffix="\n\nAnswer:", completion_prefix=" ")


def get_text() -> dict:
  """Pretraining text, packed as GPT-3 packs it: no mask between documents, no position reset."""
  return dict(
    train="",
    max_tokens=config_dict.placeholder(int),
    packing="cut",
    attend_across_documents=True,
    reset_positions=False,
    on_bad="stop",
  )


def get_demonstrations(train: str | tuple[str, ...] = "") -> dict:
  """Demonstrations; packing, its mask and the loss on the completion alone are ours.

  Args:
    train: what the field holds until it is given, "" for one source or () for a mixture.
  """
  return dict(
    train=train,
    valid="",
    weights=(),
    max_examples=config_dict.placeholder(int),
    **get_format(),
    packing="best_fit",
    overlong="drop",
    prompt_loss_weight=0.0,
    attend_across_documents=False,
    reset_positions=True,
    on_bad="stop",
  )


def filled(value, kind: type):
  """A field that holds a value and may be set to None."""
  field = config_dict.placeholder(kind)
  field.set(value)
  return field


def get_endpoint() -> dict:
  """An OpenAI-compatible endpoint as judge: `rlhf.evals.endpoint.EndpointConfig`."""
  return dict(
    base_url="http://localhost:8000/v1",
    model="",
    api_key_variable="OPENAI_API_KEY",
    pairwise_prompt="",
    likert=True,
    likert_prompt="",
    temperature=filled(0.0, float),
    max_tokens=filled(512, int),
    timeout=60.0,
    max_retries=6,
    max_attempts=3,
    num_parallel=4,
    input_price=config_dict.placeholder(float),
    output_price=config_dict.placeholder(float),
    currency="USD",
  )
