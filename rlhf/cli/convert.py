"""Converts published models to exports, and exports to published formats.

  rlhf convert import --source=DIR_OR_FILE --target=CKPT
  rlhf convert export --source=CKPT --target=DIR [--family=FAMILY]

`import` reads a Hugging Face directory (config.json, safetensors, tokenizer.json) or a GGUF file
and writes an export directory, which any config accepts as init_from, policy_from or reward_from.
These fields also accept `hf:DIR` and `gguf:FILE`; an export saves converting in every run.

`export` reads an export directory, or the workdir of a stage, and writes a directory that
`transformers` and vLLM load. Its family is the one it was imported from; a model trained from
scratch is written as gpt2, or as --family where that can express it. A reward model becomes an
AutoModelForSequenceClassification with one label; add `score_bias` of its config.json to its logit:

  reward = model(**inputs).logits[:, 0] + model.config.score_bias

A run with `lora.rank` above 0 leaves `export`, the merged network, and `export_adapter`, which
becomes PEFT's adapter_config.json and adapter_model.safetensors.

Both write the whole target or nothing, and never overwrite.
"""

import argparse
import os
import pathlib

from rlhf.cli.common import flags, startup


def parse(argv: list[str]) -> argparse.Namespace:
  """The flags."""
  parser = flags.Parser("rlhf convert", __doc__)
  parser.add_argument("direction", choices=("import", "export"), help="from or to published models")
  parser.flag("source", "what is read", required=True)
  parser.flag("target", "directory to write; must not exist", flags.directory, required=True)
  parser.flag("family", "export: the architecture to write, by its model_type")
  arguments = parser.parse(argv)
  if arguments.direction == "import" and arguments.family is not None:
    parser.error("--family is for export; an import has the family of its source")
  return arguments


@startup.command
def main(argv: list[str]) -> None:
  arguments = parse(argv)
  os.environ["JAX_PLATFORMS"] = "cpu"  # a host has room for a model that no single device holds
  from rlhf.interop import files

  files.check_target(pathlib.Path(arguments.target).absolute())
  {"import": run_import, "export": run_export}[arguments.direction](arguments)


def load(source, compute, kind: str):
  """The network, in the host's memory."""
  import jax

  from rlhf import networks, sharding

  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  return networks.load(source, compute, mesh, kind=kind, flag="--source")


def run_import(arguments: argparse.Namespace) -> None:
  from rlhf import checkpoint
  from rlhf.interop import files, reading

  source = reading.open_source(reading.guess_source(arguments.source))
  network = load(source.name, source.compute, source.kind)
  target = pathlib.Path(arguments.target).absolute()
  with files.new_directory(target) as temporary:
    checkpoint.export_params(
      temporary,
      network.params,
      model=network.cfg.shape(),
      kind=source.kind,
      tokenizer=network.tokenizer,
      config={},
      step=0,
      metadata=network.metadata,
    )
  print(
    f"{target}: a {source.kind} of the family {source.family.name}, "
    f"{network.cfg.num_block_params:,} parameters outside the embeddings, context of "
    f"{network.cfg.context_length:,} tokens",
    flush=True,
  )


def run_export(arguments: argparse.Namespace) -> None:
  from rlhf import checkpoint
  from rlhf.interop import writing
  from rlhf.model.architecture import ModelConfig

  try:
    found = checkpoint.load_export(arguments.source)
  except ValueError as error:
    raise ValueError(f"--source: {error}") from None
  family = writing.choose_family(found.metadata, arguments.family)
  if found.kind == "adapter":
    from rlhf.interop import peft

    peft.write(arguments.target, found, checkpoint.load_params(found.directory), family)
    print(
      f"{arguments.target}: a PEFT adapter for {family.name}, to be used with "
      f"{found.metadata['base']}",
      flush=True,
    )
    return
  writing.check(ModelConfig(**found.model), kind=found.kind, family=family)
  network = load(found.directory, found.compute, found.kind)
  writing.write(
    arguments.target, network.cfg, network.params, network.tokenizer, kind=found.kind, family=family
  )
  print(f"{arguments.target}: a {found.kind} of the family {family.name}", flush=True)
