"""What each field of a config is: the "Attributes:" of the dataclass that reads it.

The sources are parsed and not imported, so that --help needs no jax and takes a fraction of a
second.
"""

import ast
import functools
import pathlib
import re
import textwrap

import ml_collections

SOURCES = pathlib.Path(__file__).resolve().parents[2]
WIDTH, INDENT = 100, 34  # columns of a line, and those before a description
# The dataclasses that read a group of a config.
GROUPS = {
  "model": ("ModelConfig", "ComputeConfig"),
  "sizes": ("ModelConfig", "ComputeConfig"),
  "compute": ("ComputeConfig",),
  "mesh": ("MeshConfig",),
  "lora": ("LoraConfig",),
  "optim": ("OptimConfig",),
  "policy_optim": ("OptimConfig",),
  "value_optim": ("OptimConfig",),
  "loop": ("LoopConfig",),
  "checkpoint": ("CheckpointConfig",),
  "format": ("PromptFormat",),
  "sft": ("SftConfig",),
  "reward": ("RewardConfig",),
  "ppo": ("PpoConfig",),
  "text": ("TextData",),
  "pretraining": ("TextData", "PretrainingConfig"),
  "demonstrations": ("DemonstrationData",),
  "comparisons": ("ComparisonData",),
  "prompts": ("PromptData",),
  "answers": ("AnswerData",),
  "files": ("FilesConfig",),
  "world": ("WorldConfig", "LabelersConfig"),
  "labelers": ("LabelersConfig",),
  "evaluation": ("EvaluationConfig",),
  "preference": ("PreferenceConfig",),
  "endpoint": ("EndpointConfig",),
  "nlp": ("NlpConfig",),
  "capability": ("NlpConfig",),
  "truth": ("TruthConfig",),
  "toxicity": ("ToxicityConfig", "PerspectiveConfig"),
  "bias": ("BiasConfig",),
  "sampling": ("CompletionConfig",),
  "cooccurrence": ("CooccurrenceConfig",),
  "statistics": ("StatisticsConfig",),
  "raters": ("RatersConfig",),
  "world_raters": ("RatersConfig",),
  "world_set": ("SetConfig",),
}
# Fields that are in no dataclass, or whose dataclass does not describe them.
FIELDS = {
  "kind": "what the config is, which decides the command that runs it",
  "title": "of the report",
  "seed": "of initialization, data order and sampling",
  "seeds": "one run each",
  "length": "tokens of a row",
  "tokenizer": "for a network from scratch: bpe:SIZE (trained on its text), gpt2: or json:FILE",
  "init_from": "network to start from: an export directory, hf:DIR or gguf:FILE; empty for scratch",
  "policy_from": "policy to start from: an export directory, hf:DIR or gguf:FILE",
  "reference_from": "policy that the KL penalty pulls towards; policy_from if empty",
  "reward_from": "reward model, and where the value network starts: an export directory or hf:DIR",
  "reward_others": "further reward models of an ensemble",
  "source": "published model to start from: hf:DIR or gguf:FILE",
  "reward_init": "start of the reward model: the last sft epoch, or a base model of its own shape",
  "kl_reference": "what PPO's KL penalty pulls towards: init (its own start) or base",
  "value_set": "directory of the set of values; tinyworld, or empty for the shipped one",
  "num_samples": "of each prompt",
  "temperature": "0 is greedy",
  "train": "FORMAT:PATH or tfds name of the training data; several are a mixture",
  "valid": "FORMAT:PATH or tfds name of the validation data",
  "packing": "how sequences share a row: see `rlhf.data.packing`",
  "attend_across_documents": "whether tokens of a row see earlier documents",
  "reset_positions": "whether every document of a row starts at position 0",
  "overlong": "what happens to what does not fit: see `rlhf.data.prepare`",
  "prompt_loss_weight": "weight of the loss on prompt tokens",
  "on_bad": "stop or skip at a malformed line",
  "prompt_format": "plain, or chat for the tokenizer's chat template",
  "prompt_suffix": "text after every prompt",
  "completion_prefix": "text before every completion",
  "min_completions": "of a compared prompt",
  "max_completions": "of a compared prompt",
  "norm_eps": "added to the variance in norms",
  "rope_factor": "of rope_scaling",
  "rope_low_freq_factor": "of rope_scaling llama3",
  "rope_high_freq_factor": "of rope_scaling llama3",
  "rope_original_context": "of rope_scaling llama3",
  "batch_size": "prompts or rows at once; changes only speed and memory",
  "num_resamples": "of each bootstrap",
}


def describe(config: ml_collections.ConfigDict) -> str:
  """Every field with its value and description; groups with equal fields are listed once."""
  sections: dict[tuple, list[tuple[str, ml_collections.ConfigDict]]] = {}
  _collect(config, "", sections)
  return "".join(_section(found) for found in sections.values())


def _collect(group: ml_collections.ConfigDict, path: str, sections: dict) -> None:
  subgroups = [name for name in group if isinstance(group[name], ml_collections.ConfigDict)]
  leaves = tuple(name for name in group if name not in subgroups)
  if leaves:
    sections.setdefault((path.rpartition(".")[2], leaves), []).append((path, group))
  for name in subgroups:
    _collect(group[name], f"{path}.{name}".lstrip("."), sections)


def _section(found: list[tuple[str, ml_collections.ConfigDict]]) -> str:
  """The fields of one group, or of equal groups at several places."""
  paths = [path for path, _ in found]
  lines = textwrap.wrap(", ".join(paths), WIDTH, initial_indent="  ", subsequent_indent="  ")
  for name in found[0][1]:
    values = {repr(group[name]) for _, group in found}
    if not isinstance(found[0][1][name], ml_collections.ConfigDict):
      shown = f"    {name} ({values.pop() if len(values) == 1 else 'several values'})"
      text = description(paths[0], name)
      body = textwrap.wrap(text if text else "", WIDTH - INDENT)
      fits = len(shown) < INDENT - 1
      lines += [shown.ljust(INDENT) + "".join(body[:1])] if fits else [shown]
      lines += [" " * INDENT + line for line in body[fits:]]
  return "\n" + "\n".join(lines) + "\n"


def description(path: str, field: str) -> str | None:
  """What the field of the group at `path` is; None where nothing says it."""
  for group in reversed(path.split(".")):
    for name in GROUPS[group] if group in GROUPS else ():
      if field in attributes(name):
        return attributes(name)[field]
  return FIELDS[field] if field in FIELDS else None


@functools.cache
def attributes(class_name: str) -> dict[str, str]:
  """Field -> description, from the "Attributes:" of every class of rlhf with this name."""
  found: dict[str, str] = {}
  for text in _sources():
    for match in re.finditer(rf"^class {class_name}\b.*\n(?:[ \t].*\n|\n)*", text, re.MULTILINE):
      node = ast.parse(match.group()).body[0]
      assert isinstance(node, ast.ClassDef)
      found |= _parse(ast.get_docstring(node) or "")
  return found


@functools.cache
def _sources() -> list[str]:
  return [path.read_text(encoding="utf-8") for path in sorted(SOURCES.rglob("*.py"))]


def _parse(docstring: str) -> dict[str, str]:
  """The entries `name, name: text` below "Attributes:"."""
  _, _, section = docstring.partition("Attributes:\n")
  found: dict[str, str] = {}
  names: list[str] = []
  for line in section.splitlines():
    entry = re.match(r"  (\w+(?:, \w+)*): +(.*)|  (\w+(?:, \w+)*):$", line)
    if entry:
      names = (entry.group(1) or entry.group(3)).split(", ")
      found |= {name: entry.group(2) or "" for name in names}
    elif line and not line.startswith("  "):
      break
    else:
      for name in names:
        found[name] = f"{found[name]} {line.strip()}".strip()
  return found
