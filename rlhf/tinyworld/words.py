"""The closed word lists of TinyWorld, from words.yaml."""

from rlhf.tinyworld import tables

_TABLE = tables.read("words")

# Slot of a sentence template -> the words that fit it.  The hero of a story has slots of its own,
# so that a parse says who the sentence is about.
SLOTS: dict[str, tuple[str, ...]] = {
  **_TABLE["slots"],
  "heroanimal": _TABLE["slots"]["animal"],
  "heroperson": _TABLE["slots"]["person"],
}
CAST: tuple[str, ...] = _TABLE["cast"]  # the five people that new stories and conversations use
RUDE = SLOTS["rude"] + SLOTS["rudeword"] + _TABLE["also_rude"]

# The slots whose words name a kind of thing: what a scorer looks for in a passage.
ENTITY_SLOTS: tuple[str, ...] = _TABLE["entity_slots"]
ENTITY_TYPE = {word: slot for slot in ENTITY_SLOTS for word in SLOTS[slot]}

# For the few-shot tasks.
OPPOSITES = tuple(tuple(pair.split()) for pair in _TABLE["opposites"])
SEQUENCES = tuple(tuple(sequence.split()) for sequence in _TABLE["sequences"])
CATEGORIES = {slot: SLOTS[slot] for slot in _TABLE["categories"]}


def choices(slot: str) -> tuple[str, ...]:
  """The words used for a slot in new text: all that fit, but only the cast of the people."""
  return CAST if slot in ("person", "heroperson") else SLOTS[slot]


def number(word: str) -> int:
  """The number that a word names: 2 for "two"."""
  return SLOTS["number"].index(word) + 1
