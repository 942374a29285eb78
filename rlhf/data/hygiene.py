"""Which prompts are kept and who sees them (InstructGPT sections 3.2, A.1 and A.2).

Records are anything with a "prompt" and perhaps a "user" (a document's "text" serves as its
prompt).  What comes back are views of the records, in their order; prompts are compared by hash, so
that memory holds neither records nor prompts.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rlhf.data.records import LazySequence, subset


def deduplicate_by_prefix(
  records: Sequence[dict], prefix_length: int
) -> tuple[LazySequence, dict[str, int]]:
  """Drops a prompt whose first `prefix_length` characters an earlier prompt has too.

  The paper drops "prompts that share a long common prefix" and gives no length.  A prompt shorter
  than that is dropped only where it equals an earlier one.
  """
  prefixes = (text_hash(prompt_of(record)[:prefix_length]) for record in records)
  return _kept(records, are_new(prefixes, set()), f"share their first {prefix_length} characters")


def are_new(hashes: Iterable[bytes], seen: set[bytes]) -> list[bool]:
  """Which of the hashes neither came before nor are in `seen`, to which they are added."""
  is_new = []
  for text in hashes:
    is_new.append(text not in seen)
    seen.add(text)
  return is_new


def cap_per_user(records: Sequence[dict], limit: int) -> tuple[LazySequence, dict[str, int]]:
  """Keeps the first `limit` records of every user; those without a user are all kept."""
  num_of_user: Counter[str | None] = Counter()
  is_kept = []
  for record in records:
    user = record.get("user")
    num_of_user[user] += 1
    is_kept.append(user is None or num_of_user[user] <= limit)
  return _kept(records, is_kept, f"beyond {limit} of one user")


def split_by_user(
  records: Sequence[dict], fractions: Mapping[str, float], seed: int
) -> dict[str, LazySequence]:
  """Splits so that no user is in two parts; where there is no user, by the prompt.

  A user's part depends on (seed, user) alone, so a user stays in it when more data come in; the
  sizes are therefore near the fractions, not equal to them.  Two users who wrote the same prompt
  may be in two parts: `remove_overlap` takes care of that.

  Args:
    fractions: name of the part -> its share of the users; they add up to 1.

  Raises:
    ValueError: a part comes out empty.
  """
  borders = np.cumsum(list(fractions.values()))
  # The shares may add up to slightly less than 1.
  part = np.minimum([_part_of(record, borders, seed) for record in records], len(fractions) - 1)
  parts = {name: subset(records, np.flatnonzero(part == i)) for i, name in enumerate(fractions)}
  for name, found in parts.items():
    if not found:
      raise ValueError(
        f"the part {name!r} ({fractions[name]:.0%}) of {len(records)} records came "
        "out empty; give more users, a larger fraction or another seed"
      )
  return parts


def _part_of(record: dict, borders: np.ndarray, seed: int) -> int:
  owner = f"user:{record['user']}" if "user" in record else f"prompt:{prompt_of(record)}"
  digest = hashlib.sha256(f"{seed}\n{owner}".encode()).digest()
  point = int.from_bytes(digest[:8], "big") / 2**64
  return int(np.searchsorted(borders, point, side="right"))


def remove_overlap(records: Sequence[dict], against: Sequence[dict]) -> LazySequence:
  """The records whose prompt does not occur in `against`."""
  taken = _prompt_hashes(against)
  is_kept = [text_hash(prompt_of(record)) not in taken for record in records]
  return subset(records, np.flatnonzero(is_kept))


def check_disjoint(**named_records: Sequence[dict]) -> None:
  """Raises ValueError where a prompt is in two of the sets."""
  prompts = {name: _prompt_hashes(records) for name, records in named_records.items()}
  for first, second in itertools.combinations(prompts, 2):
    shared = prompts[first] & prompts[second]
    if shared:
      found = (prompt_of(record) for record in named_records[first])
      example = min(prompt for prompt in found if text_hash(prompt) in shared)
      raise ValueError(
        f"{first} and {second} share {len(shared)} prompts, for example "
        f"{example[:60]!r}; they must be disjoint (see remove_overlap)"
      )


def prompt_of(record: dict) -> str:
  """The prompt (or a document's text), without white space at its ends."""
  return (record["prompt"] if "prompt" in record else record["text"]).strip()


def text_hash(*texts: str) -> bytes:
  """16 bytes that stand for some texts where they are compared."""
  return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()


def _prompt_hashes(records: Sequence[dict]) -> set[bytes]:
  return {text_hash(prompt_of(record)) for record in records}


def _kept(
  records: Sequence[dict], is_kept: list[bool], reason: str
) -> tuple[LazySequence, dict[str, int]]:
  kept = subset(records, np.flatnonzero(is_kept))
  counts = {"kept": len(kept)}
  if len(kept) < len(records):
    counts[f"dropped ({reason})"] = len(records) - len(kept)
  return kept, counts
