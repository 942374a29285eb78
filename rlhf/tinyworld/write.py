"""Writes the whole world as JSONL files that the data room reads like anyone's."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from rlhf.tinyworld import demonstrations, documents, few_shot, instructions
from rlhf.tinyworld.world import World, make_world


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """How much of the world is written.  Users write prompts; each belongs to one of the three
  pools train, validation and test, and so do all the prompts of that user."""

  seed: int = 0
  num_pretraining_documents: int = 160_000  # about 20 words each
  num_validation_documents: int = 1_000
  num_demonstrations: int = 2_000
  num_validation_demonstrations: int = 200
  num_reward_prompts: int = 2_000
  num_reward_validation_prompts: int = 200
  num_ppo_prompts: int = 3_000
  num_ppo_validation_prompts: int = 200
  num_test_prompts: int = 1_200
  num_few_shot_items: int = 200
  num_few_shot_shots: int = 3
  num_users: int = 300  # of the training pool; the other two pools are a third as large

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 0 or (value == 0 and field.name != "seed"):
        raise ValueError(f"world.{field.name} {value}; use 1 or more")


_FILES = {  # name -> (field with the size, pool of users)
  "demonstrations_train": ("num_demonstrations", "train"),
  "demonstrations_valid": ("num_validation_demonstrations", "validation"),
  "prompts_reward_model": ("num_reward_prompts", "train"),
  "prompts_reward_model_valid": ("num_reward_validation_prompts", "validation"),
  "prompts_ppo": ("num_ppo_prompts", "train"),
  "prompts_ppo_valid": ("num_ppo_validation_prompts", "validation"),
  "prompts_test": ("num_test_prompts", "test"),
}


def write(cfg: WorldConfig, directory: str | pathlib.Path) -> dict[str, pathlib.Path]:
  """Writes every file of a world; the same config gives the same bytes.

  pretraining_train and pretraining_valid hold {"text"}; demonstrations_* hold {"prompt",
  "completion", "user", "use_case", "task"}; prompts_* the same without "completion";
  few_shot_TASK holds {"prompt", "choices", "answer"}; world.json the facts.  No prompt text
  stands in two files, and prompts_test alone holds held-out combinations.

  Returns:
    name without suffix -> path.

  Raises:
    ValueError: more prompts are asked for than the world has.
  """
  world = make_world(cfg.seed)
  # Everything that can fail comes before the first file.
  contents = dict(prompt_sets(cfg, world))
  for task in few_shot.FEW_SHOT_TASKS:
    contents[f"few_shot_{task}"] = few_shot.few_shot_items(
      world, task, cfg.num_few_shot_items, cfg.num_few_shot_shots, seed=0
    )
  training = documents.pretraining_documents(world, cfg.num_pretraining_documents, seed=0)
  validation = _unseen_documents(world, cfg.num_validation_documents, set(training))
  contents["pretraining_train"] = [{"text": text} for text in training]
  contents["pretraining_valid"] = [{"text": text} for text in validation]

  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  paths = {
    name: _write_lines(directory / f"{name}.jsonl", lines) for name, lines in contents.items()
  }
  paths["world"] = directory / "world.json"
  paths["world"].write_text(json.dumps(dataclasses.asdict(world), indent=1) + "\n")
  return paths


def _unseen_documents(world: World, num_documents: int, seen: set[str]) -> list[str]:
  """Validation documents: as the training ones, but none that the training text repeats."""
  unseen: list[str] = []
  seed = 1
  while len(unseen) < num_documents:
    drawn = documents.pretraining_documents(world, num_documents, seed)
    unseen += [text for text in drawn if text not in seen]
    seed += 1
  return unseen[:num_documents]


def prompt_sets(cfg: WorldConfig, world: World) -> dict[str, list[dict]]:
  """The lines of the seven demonstration and prompt files, by name."""
  seen: set[str] = set()
  sets = {}
  for index, (name, (field, pool)) in enumerate(_FILES.items()):
    rng = np.random.default_rng(np.random.SeedSequence([cfg.seed, 3, index]))
    items = instructions.instruction_prompts(
      world, getattr(cfg, field), rng, held_out=pool == "test", seen=seen
    )
    users = draw_users(
      rng, pool, cfg.num_users if pool == "train" else -(-cfg.num_users // 3), len(items)
    )
    for item, user in zip(items, users):
      item["user"] = user
      if name.startswith("demonstrations"):
        item["completion"] = demonstrations.demonstration(world, item["task"], rng)
    sets[name] = items
  return sets


def draw_users(rng, pool: str, num_users: int, num_prompts: int) -> list[str]:
  """A user for each prompt; a few users write much, most little (weight 1 / (rank + 20))."""
  weights = 1.0 / (np.arange(num_users) + 20.0)
  drawn = rng.choice(num_users, size=num_prompts, p=weights / weights.sum())
  return [f"{pool}_user_{index:04d}" for index in drawn]


def _write_lines(path: pathlib.Path, lines: Sequence[dict]) -> pathlib.Path:
  with open(path, "w", encoding="utf-8") as file:
    for line in lines:
      file.write(json.dumps(line) + "\n")
  return path
