"""Writes the world as JSONL files, in the same formats as anyone's own data."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from rlhf import workdir
from rlhf.tinyworld import demonstrations, documents, few_shot, instructions, words
from rlhf.tinyworld.world import World, make_world


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """How much of the world to write.

  Every prompt has a user, and every user belongs to one pool: train, validation or test.

  Attributes:
    seed: of the world.
    num_pretraining_documents, num_validation_documents: about 20 words each.
    num_demonstrations, num_validation_demonstrations: for SFT.
    num_reward_prompts, num_reward_validation_prompts: to be compared.
    num_ppo_prompts, num_ppo_validation_prompts: to be answered by PPO's policy.
    num_test_prompts: for the evaluation.
    num_few_shot_items: of each few-shot task.
    num_few_shot_shots: examples before each item.
    num_users: of the training pool; the other two pools have a third of this number.
  """

  seed: int = 0
  num_pretraining_documents: int = 160_000
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
  num_users: int = 300

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value < 0 or (value == 0 and field.name != "seed"):
        raise ValueError(f"world.{field.name} {value}; use 1 or more")


# File -> (field with the number of its prompts, pool of its users).
_PROMPT_FILES = {
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

  pretraining_train, pretraining_valid: {"text"}
  demonstrations_*: {"prompt", "completion", "user", "use_case", "task"}
  prompts_*: {"prompt", "user", "use_case", "task"}
  few_shot_TASK: {"prompt", "choices", "answer"}
  world.json: the entities and facts

  No prompt is in two files, and only prompts_test contains held-out combinations.

  Returns:
    name without suffix -> path.

  Raises:
    ValueError: more prompts are asked for than the world has.
  """
  world = make_world(cfg.seed)
  # Everything that can fail comes before the first file is written.
  contents = prompt_sets(cfg, world)
  for task in few_shot.FEW_SHOT_TASKS:
    contents[f"few_shot_{task}"] = few_shot.few_shot_items(
      world, task, cfg.num_few_shot_items, cfg.num_few_shot_shots, seed=0
    )
  training = documents.pretraining_documents(world, cfg.num_pretraining_documents, seed=0)
  validation = _unseen_documents(world, cfg.num_validation_documents, set(training))
  contents["pretraining_train"] = [{"text": text} for text in training]
  contents["pretraining_valid"] = [{"text": text} for text in validation]
  directory = pathlib.Path(directory)
  paths = {name: directory / f"{name}.jsonl" for name in contents}
  for name, lines in contents.items():
    workdir.write_jsonl(paths[name], lines)
  paths["world"] = directory / "world.json"
  workdir.write_text(paths["world"], json.dumps(_describe(world), indent=1) + "\n")
  return paths


def _describe(world: World) -> dict[str, Any]:
  entities = ("people", "towns", "animals", "foods", "jobs", "colours", "things")
  return {
    "seed": world.seed,
    **{plural: words.SLOTS[instructions.PLURALS[plural]] for plural in entities},
    "facts": [dataclasses.asdict(fact) for fact in world.facts],
  }


def _unseen_documents(world: World, num_documents: int, seen: set[str]) -> list[str]:
  """Validation documents, drawn as the training ones are, without those that training has."""
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
  for index, (name, (field, pool)) in enumerate(_PROMPT_FILES.items()):
    rng = np.random.default_rng(np.random.SeedSequence([cfg.seed, 3, index]))
    items = instructions.instruction_prompts(
      world, getattr(cfg, field), rng, held_out=pool == "test", seen=seen
    )
    num_users = cfg.num_users if pool == "train" else -(-cfg.num_users // 3)
    for item, user in zip(items, draw_users(rng, pool, num_users, len(items))):
      item["user"] = user
      if name.startswith("demonstrations"):
        item["completion"] = demonstrations.demonstration(world, item["task"], rng)
    sets[name] = items
  return sets


def draw_users(rng, pool: str, num_users: int, num_prompts: int) -> list[str]:
  """A user for each prompt; a few users write many (user r has weight 1 / (r + 20))."""
  weights = 1.0 / (np.arange(num_users) + 20.0)
  drawn = rng.choice(num_users, size=num_prompts, p=weights / weights.sum())
  return [f"{pool}_user_{index:04d}" for index in drawn]
