"""Networks of our side with random weights, and their Hugging Face checkpoints."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf import networks, sharding, workdir
from rlhf.benchmark.job import Job
from rlhf.interop import files, writing
from rlhf.model import transformer
from rlhf.model.architecture import ModelConfig
from rlhf.types import Params


def policy(job: Job, config, mesh: Mesh, *, stream: int = 0) -> tuple[ModelConfig, Params]:
  """A policy, each leaf made in its layout.

  Args:
    stream: networks of different streams have different weights.
  """
  cfg = dataclasses.replace(
    networks.configured(config), vocab_size=job.vocab_size + 1, pad_id=job.pad_id
  )
  init = functools.partial(transformer.init_params, cfg)
  key = jax.random.fold_in(jax.random.key(job.seed), stream)
  layout = sharding.param_shardings(mesh, jax.eval_shape(init, key))
  return cfg, jax.jit(init, out_shardings=layout)(key)


def describe(cfg: ModelConfig, params: Params) -> dict[str, Any]:
  """What a report says of a network."""
  return dict(
    num_layers=cfg.num_layers,
    width=cfg.width,
    num_heads=cfg.num_heads,
    vocab_size=cfg.vocab_size - 1,
    layer_pattern=",".join(cfg.layer_kinds),
    dtype=cfg.compute.dtype,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    block_parameters=cfg.num_block_params,
  )


def export(cfg: ModelConfig, params: Params, kind: str, directory: str) -> None:
  """Writes a network as a GPT-2 of Hugging Face, without a tokenizer and without the row for padding.

  That row has no logit in our networks, and would have one there; end-of-text pads instead.

  Args:
    cfg, params: of the network.
    kind: "policy" or "reward"; the checkpoint becomes the folder of this name in `directory`.
    directory: may exist.
  """
  family = writing.choose_family({}, None)
  num_rows = cfg.vocab_size - 1
  config = {
    "architectures": [family.policy if kind == "policy" else family.reward],
    **family.config(cfg),
    "vocab_size": num_rows,
    "pad_token_id": num_rows - 1,
    "bos_token_id": None,
    "eos_token_id": None,
  }
  if kind == "reward":
    config |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
  tensors = dict(writing.tensors(cfg, params, kind=kind, family=family, num_rows=num_rows))
  with files.new_directory(pathlib.Path(directory) / kind) as temporary:
    files.save(
      temporary / files.SINGLE, {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    )
    workdir.write_json(temporary / files.CONFIG, config)


def reward(job: Job, config, mesh: Mesh) -> tuple[ModelConfig, Params]:
  """A reward model of the policy's shape."""
  cfg, trunk = transformer.without_output(*policy(job, config, mesh, stream=1))
  head = transformer.init_head(cfg, jax.random.key(job.seed))
  return cfg, dict(trunk, head=jax.device_put(head, sharding.replicated(mesh)))
