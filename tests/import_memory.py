"""How much memory an import needs beside its result: `python -m tests.import_memory DIR GIGABYTES`.

Writes a random Llama of about so many float32 gigabytes to DIR, once, in files of at most 1 GB, and
imports it over 8 simulated devices.  Prints JSON: bytes of the result and of its largest shard, and
the peak of this process's own memory above what it had before, less the result.  Pages of a mapped
file do not count: they are the system's to take back.  MALLOC_MMAP_THRESHOLD_=1000000 in the
environment makes freed memory leave the process, as glibc else may keep a few shards' worth of it.
"""

import json
import os
import pathlib
import sys
import threading
import time

FIELDS = dict(
  model_type="llama",
  vocab_size=32_000,
  hidden_size=2048,
  intermediate_size=5632,
  num_attention_heads=16,
  num_key_value_heads=8,
  max_position_embeddings=2048,
  rms_norm_eps=1e-5,
  tie_word_embeddings=False,
)


def own_memory() -> int:
  """Bytes of this process that are no file's."""
  for line in open("/proc/self/status", encoding="ascii"):
    if line.startswith("RssAnon:"):
      return int(line.split()[1]) * 1024
  raise ValueError("/proc/self/status says no RssAnon")


class Peak:
  """The largest `own_memory` while it is open, looked at every few milliseconds."""

  def __enter__(self):
    self.bytes, self._open = own_memory(), True
    self._thread = threading.Thread(target=self._watch)
    self._thread.start()
    return self

  def _watch(self):
    while self._open:
      self.bytes = max(self.bytes, own_memory())
      time.sleep(0.002)

  def __exit__(self, *unused):
    self._open = False
    self._thread.join()


def write_model(directory: pathlib.Path, gigabytes: float) -> None:
  """A random checkpoint in the published form."""
  import numpy as np
  import safetensors.numpy

  from rlhf.interop import families, layout, reading
  from rlhf.model.transformer import ModelConfig
  from tests import interop_models

  family = families.known()["llama"]

  def config(num_layers):
    fields = family.model_fields(FIELDS | {"num_hidden_layers": num_layers}, "this test")
    return ModelConfig(vocab_size=FIELDS["vocab_size"], pad_id=interop_models.PAD, **fields)

  one = config(1).num_block_params
  outside = 2 * FIELDS["vocab_size"] * FIELDS["hidden_size"]
  num_layers = max(1, round((gigabytes * 2**30 / 4 - outside) / one))
  cfg = config(num_layers)
  directory.mkdir(parents=True)
  noise = np.random.default_rng(0).standard_normal(2**24).astype(np.float32)
  sizes = layout.axis_sizes(cfg, FIELDS["vocab_size"])
  shapes = {}
  for name in reading.named_leaves(reading.abstract_params(cfg, "policy")):
    leaf = reading.locate(name, cfg, family)
    for prefix in leaf.prefixes:
      for tensor, shape in layout.file_shapes(leaf.row, sizes).items():
        shapes[reading.tensor_name(prefix, tensor)] = shape
  parts, pending, weight_map = 0, {}, {}
  for name, shape in [*shapes.items(), (None, None)]:
    if pending and (name is None or sum(x.nbytes for x in pending.values()) > 0.8 * 2**30):
      file = f"model-{parts:05d}.safetensors"
      safetensors.numpy.save_file(pending, directory / file, metadata={"format": "pt"})
      weight_map |= {other: file for other in pending}
      parts, pending = parts + 1, {}
    if name is not None:
      pending[name] = np.resize(noise, shape)
  (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  (directory / "config.json").write_text(json.dumps(FIELDS | {"num_hidden_layers": num_layers}))
  interop_models.save_tokenizer(directory)


def measure(directory: pathlib.Path) -> dict[str, int]:
  """Imports it over 8 devices, 4 of `fsdp` and 2 of `tensor`."""
  import jax

  from rlhf import networks, sharding
  from rlhf.interop import reading
  from rlhf.model.compute import ComputeConfig

  mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))
  reading.open_source(f"hf:{directory}")  # what is imported and compiled on the way does not count
  before = own_memory()
  with Peak() as peak:
    network = networks.load(f"hf:{directory}", ComputeConfig(), mesh, kind="policy", flag="DIR")
    jax.block_until_ready(network.params)
  leaves = jax.tree.leaves(network.params)
  result = sum(leaf.nbytes for leaf in leaves)
  shard = max(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
  return dict(
    result=result,
    largest_shard=shard,
    largest_leaf=max(leaf.nbytes for leaf in leaves),
    peak_less_result=peak.bytes - before - result,
  )


def main(directory: str, gigabytes: str) -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
  path = pathlib.Path(directory)
  if not path.exists():
    write_model(path, float(gigabytes))
  print(json.dumps(measure(path)))


if __name__ == "__main__":
  main(*sys.argv[1:])
