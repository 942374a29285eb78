"""The closed word lists of TinyWorld.

Every noun starts with a consonant, so that "a" is always the right article.  No word is in two of
the entity lists, so that a word alone says what kind of thing it names.  Names of people are built
from a few syllables: a byte-level BPE then needs few merges to give each of them one token.
"""

PEOPLE = tuple(
  first + second
  for first in ("mi", "to", "la", "ne", "ru", "ka", "so", "be", "da", "fi")
  for second in ("ra", "mo", "lin", "na", "do", "vi")
)
CAST = PEOPLE[::12]  # the five people that new stories and conversations use
TOWNS = ("velda", "korham", "tammar", "belby", "holda")
ANIMALS = ("fox", "bear", "cat", "dog", "hen", "goat")
FOODS = ("bread", "soup", "cake", "fish", "corn", "honey")
FEEDS = ("grass", "seeds", "leaves", "bugs", "worms", "roots")
JOBS = ("baker", "nurse", "doctor", "farmer", "teacher", "sailor")
SITES = ("shop", "school", "ship", "farm", "mine", "hall", "tower", "court")
COLOURS = ("red", "blue", "green", "black", "white", "brown")
HOBBIES = tuple("singing reading chess dancing painting fishing running cooking".split())
THINGS = ("lamp", "hat", "drum", "book", "ring", "boat")
PLACES = ("forest", "river", "hill", "lake", "field")
NOUNS = ("moon", "star", "rain", "snow", "wind", "fire")
ADJECTIVES = ("small", "big", "old", "young", "kind", "brave")
MOODS = ("happy", "sad", "tired", "hungry", "calm", "glad")
TASTES = ("sweet", "salty", "sour", "bitter", "mild", "hot")
REGIONS = ("north", "south", "east", "west")
DEEDS = ("lost", "found", "sold", "broke")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
RUDE_NAMES = ("fool", "dunce", "pest", "brute")
RUDE_WORDS = ("stupid", "ugly", "nasty", "dumb")
RUDE = RUDE_NAMES + RUDE_WORDS + ("hate", "shut")

# Slot of a sentence template -> the words that fit it.  The hero of a story has slots of its own,
# so that a parse says who the sentence is about.
SLOTS = {
  "person": PEOPLE,
  "town": TOWNS,
  "animal": ANIMALS,
  "food": FOODS,
  "feed": FEEDS,
  "job": JOBS,
  "site": SITES,
  "colour": COLOURS,
  "hobby": HOBBIES,
  "thing": THINGS,
  "place": PLACES,
  "noun": NOUNS,
  "adj": ADJECTIVES,
  "mood": MOODS,
  "taste": TASTES,
  "region": REGIONS,
  "deed": DEEDS,
  "number": NUMBERS,
  "rude": RUDE_NAMES,
  "rudeword": RUDE_WORDS,
  "heroanimal": ANIMALS,
  "heroperson": PEOPLE,
}


def choices(slot: str) -> tuple[str, ...]:
  """The words used for a slot in new text: all that fit, but only the cast of the people."""
  return CAST if slot in ("person", "heroperson") else SLOTS[slot]


# The slots whose words name a kind of thing: what a scorer looks for in a passage.
ENTITY_SLOTS = tuple(
  "person town animal food feed job site colour hobby thing place noun taste region".split()
)
ENTITY_TYPE = {word: slot for slot in ENTITY_SLOTS for word in SLOTS[slot]}

OPPOSITES = (
  ("cold", "warm"),
  ("big", "small"),
  ("tall", "short"),
  ("old", "young"),
  ("quick", "slow"),
  ("happy", "sad"),
  ("loud", "quiet"),
  ("wet", "dry"),
  ("hard", "soft"),
  ("rich", "poor"),
  ("good", "bad"),
  ("early", "late"),
  ("up", "down"),
  ("full", "bare"),
  ("near", "far"),
  ("day", "night"),
)
SEQUENCES = (NUMBERS, DAYS, ("spring", "summer", "autumn", "winter"))
CATEGORIES = {slot: SLOTS[slot] for slot in ("animal", "food", "colour", "job", "town", "thing")}
