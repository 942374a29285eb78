"""Few-shot tasks that no instruction asks for: they measure the alignment tax.

Each is written "x : y ; x : y ; x :".  Pretraining documents use this format; instructions and
demonstrations never do (they contain no ";").  An item is scored by the mean log probability per
token of each choice after the prompt.
"""

from collections.abc import Callable

import numpy as np

from rlhf.tinyworld import instructions, words
from rlhf.tinyworld.grammar import pick
from rlhf.tinyworld.world import World

NUM_CHOICES = 4

Pair = tuple[str, str]


def _opposite(rng, num_pairs: int) -> tuple[list[Pair], list[str]]:
  """The other word of a pair of opposites, in either direction."""
  order = rng.permutation(len(words.OPPOSITES))[:num_pairs]
  pairs = [words.OPPOSITES[i] if rng.random() < 0.5 else words.OPPOSITES[i][::-1] for i in order]
  pool = [word for pair in words.OPPOSITES for word in pair]
  return pairs, pool


def _category(rng, num_pairs: int) -> tuple[list[Pair], list[str]]:
  """What kind of thing a word names."""
  names = tuple(words.CATEGORIES)
  pairs: list[Pair] = []
  while len(pairs) < num_pairs:
    name = pick(rng, names)
    pair = (pick(rng, words.CATEGORIES[name]), name)
    if pair not in pairs:
      pairs.append(pair)
  return pairs, list(names)


def _successor(rng, num_pairs: int) -> tuple[list[Pair], list[str]]:
  """The next of the numbers, the days or the seasons; one sequence per item."""
  sequence = pick(rng, [s for s in words.SEQUENCES if len(s) > num_pairs])
  starts = rng.permutation(len(sequence) - 1)[:num_pairs]
  return [(sequence[i], sequence[i + 1]) for i in starts], list(sequence)


def _recall(rng, num_pairs: int) -> tuple[list[Pair], list[str]]:
  """Pairs made up on the spot; the last asks again for an earlier one."""
  pool = words.SLOTS["animal"] + words.SLOTS["thing"] + words.SLOTS["colour"]
  num_shown = max(1, num_pairs - 1)
  order = rng.permutation(len(pool))[: 2 * num_shown]
  shown = [(pool[order[2 * i]], pool[order[2 * i + 1]]) for i in range(num_shown)]
  asked = pick(rng, shown)
  values = [value for _, value in shown]
  fill = [word for word in pool if all(word not in pair for pair in shown)]
  return shown + [asked], values + fill[:NUM_CHOICES]


# Task -> function of (generator, number of pairs), which returns right pairs and a pool of choices.
FEW_SHOT_TASKS: dict[str, Callable[[np.random.Generator, int], tuple[list[Pair], list[str]]]] = {
  "opposite": _opposite,
  "category": _category,
  "successor": _successor,
  "recall": _recall,
}


def _held_out_steps(task: str, pairs: list[Pair]) -> list[bool]:
  """For each pair after the first, whether it is held out as a successor of the pair before it."""
  return [
    instructions.is_held_out(["few_shot", task, *before, *after])
    for before, after in zip(pairs, pairs[1:])
  ]


def few_shot_document(rng) -> str:
  """A pretraining document of two to six pairs of one task, without a held-out step."""
  while True:
    task = pick(rng, tuple(FEW_SHOT_TASKS))
    pairs, _ = FEW_SHOT_TASKS[task](rng, 2 + int(rng.random() * 5))
    if not any(_held_out_steps(task, pairs)):
      return " ; ".join(f"{left} : {right}" for left, right in pairs) + " ."


def few_shot_items(
  world: World, task: str, num_items: int, num_shots: int, seed: int
) -> list[dict]:
  """Distinct items of a task; the last step of each is in no pretraining document.

  Args:
    num_shots: solved pairs before the one that is asked, at least 1.

  Returns:
    [{"prompt": "hot : cold ; tall :", "choices": [words], "answer": index of the right one}]

  Raises:
    ValueError: the task does not exist, there are no shots, or there are too few such items.
  """
  if num_shots < 1:
    raise ValueError(f"num_shots {num_shots}; use at least 1")
  if task not in FEW_SHOT_TASKS:
    raise ValueError(f"few-shot task {task!r}; choose from {sorted(FEW_SHOT_TASKS)}")
  index = sorted(FEW_SHOT_TASKS).index(task)
  rng = np.random.default_rng(np.random.SeedSequence([world.seed, seed, 6, index]))
  items: list[dict] = []
  seen: set[str] = set()
  tries = 0
  while len(items) < num_items:
    tries += 1
    if tries > 1000 * num_items + 1000:
      raise ValueError(
        f"only {len(items)} of {num_items} {task} items with {num_shots} shots could be made; "
        "ask for fewer"
      )
    pairs, pool = FEW_SHOT_TASKS[task](rng, num_shots + 1)
    shots, (asked, answer) = pairs[:-1], pairs[-1]
    prompt = " ; ".join([f"{left} : {right}" for left, right in shots] + [f"{asked} :"])
    if prompt in seen or not _held_out_steps(task, pairs)[-1]:
      continue
    seen.add(prompt)
    # Wrong choices: for recall the other values shown come first, else any of the pool.
    if task == "recall":
      candidates = [value for _, value in shots] + pool
    else:
      candidates = [pool[i] for i in rng.permutation(len(pool))]
    wrong = [word for word in dict.fromkeys(candidates) if word not in (answer, asked)]
    choices = [*wrong[: NUM_CHOICES - 1], answer]
    choices = [choices[i] for i in rng.permutation(len(choices))]
    items.append({"prompt": prompt, "choices": choices, "answer": choices.index(answer)})
  return items
