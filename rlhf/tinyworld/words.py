"""The closed word lists of TinyWorld.

Every noun starts with a consonant, so that "a" is always the right article, and no word stands in
two of the entity lists, so that a word alone tells what kind of thing it names.  Names of people
and towns are put together from a few syllables: a byte-level BPE then needs few merges to give
each of them one token.
"""

PEOPLE = tuple(
  first + second
  for first in ("mi", "to", "la", "ne", "ru", "ka", "so", "be", "da", "fi")
  for second in ("ra", "mo", "lin", "na", "do", "vi")
)
CAST = PEOPLE[::12]  # the five of whom stories tell and to whom people talk
TOWNS = ("velda", "korham", "tammar", "belby", "holda")
ANIMALS = ("fox", "bear", "cat", "dog", "hen", "goat")
FOODS = ("bread", "soup", "cake", "fish", "corn", "honey")
FEEDS = ("grass", "seeds", "leaves", "bugs", "worms", "roots")
JOBS = ("baker", "nurse", "doctor", "farmer", "teacher", "sailor")
SITES = ("shop", "school", "ship", "farm", "mine", "hall", "tower", "court")
COLOURS = ("red", "blue", "green", "black", "white", "brown")
HOBBIES = (
  "singing",
  "reading",
  "chess",
  "dancing",
  "painting",
  "fishing",
  "running",
  "cooking",
)
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

# Slot name in a sentence template -> the words that fit.  The hero of a story has its own slots,
# so that a parse says whom the sentence is about.
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
  """The words that new text takes for a slot: all that fit, but people are the cast's."""
  return CAST if slot in ("person", "heroperson") else SLOTS[slot]


# What "mentions nothing absent from the passage" looks at.
ENTITY_SLOTS = (
  "person",
  "town",
  "animal",
  "food",
  "feed",
  "job",
  "site",
  "colour",
  "hobby",
  "thing",
  "place",
  "noun",
  "taste",
  "region",
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
CATEGORIES = {
  "animal": ANIMALS,
  "food": FOODS,
  "colour": COLOURS,
  "job": JOBS,
  "town": TOWNS,
  "thing": THINGS,
}
