"""Which prompts are kept and who sees them (InstructGPT sections 3.2, A.1 and A.2).

Records are anything with a "prompt" and perhaps a "user" (a document's "text" serves as its
prompt).  Every function keeps the order, changes nothing in place, and says how many it dropped.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence


def deduplicate_by_prefix(
  records: Sequence[dict], prefix_length: int
) -> tuple[list[dict], dict[str, int]]:
  """Drops a prompt whose first `prefix_length` characters an earlier prompt has too.

  The paper drops "prompts that share a long common prefix" and gives no length.  A prompt shorter
  than that is dropped only where it equals an earlier one.

  Raises:
    ValueError: `prefix_length` is below 1.
  """
  if prefix_length < 1:
    raise ValueError(f"prefix_length {prefix_length} would call all prompts equal; use at least 1")
  seen, kept = set(), []
  for record in records:
    prefix = prompt_of(record)[:prefix_length]
    if prefix not in seen:
      seen.add(prefix)
      kept.append(record)
  return kept, _counts(kept, records, f"share their first {prefix_length} characters")


def cap_per_user(records: Sequence[dict], limit: int = 200) -> tuple[list[dict], dict[str, int]]:
  """Keeps the first `limit` records of every user; those without a user are all kept.

  200 prompts per user is InstructGPT's number (section 3.2).
  """
  if limit < 1:
    raise ValueError(f"{limit} prompts per user keeps nobody's; use at least 1")
  num_of_user: dict[str, int] = {}
  kept = []
  for record in records:
    user = record["user"] if "user" in record else None
    if user is not None:
      num_of_user[user] = num_of_user.get(user, 0) + 1
    if user is None or num_of_user[user] <= limit:
      kept.append(record)
  return kept, _counts(kept, records, f"beyond {limit} of one user")


def split_by_user(
  records: Sequence[dict], fractions: Mapping[str, float], seed: int
) -> tuple[dict[str, list[dict]], dict[str, int]]:
  """Splits so that no user is in two parts; where there is no user, by the prompt.

  A user's part depends on (seed, user) alone, so a user stays in it when more data come in; the
  sizes are therefore near the fractions, not equal to them.  Two users who wrote the same prompt
  may be in two parts: `remove_overlap` takes care of that.

  Args:
    records: to split.
    fractions: name of the part -> its share of the users; they add up to 1.
    seed: of the split.

  Returns:
    (part name -> records, part name -> how many).

  Raises:
    ValueError: the fractions are not shares, or a part comes out empty.
  """
  if any(share <= 0 for share in fractions.values()) or not math.isclose(
    sum(fractions.values()), 1, abs_tol=1e-6
  ):
    raise ValueError(f"fractions {dict(fractions)}; they must be positive and add up to 1")
  parts: dict[str, list[dict]] = {name: [] for name in fractions}
  for record in records:
    parts[_part_of(record, fractions, seed)].append(record)
  for name, part in parts.items():
    if not part:
      raise ValueError(
        f"the part {name!r} ({fractions[name]:.0%}) of {len(records)} records came "
        "out empty; give more users, a larger fraction or another seed"
      )
  return parts, {name: len(part) for name, part in parts.items()}


def _part_of(record: dict, fractions: Mapping[str, float], seed: int) -> str:
  owner = f"user:{record['user']}" if "user" in record else f"prompt:{prompt_of(record)}"
  digest = hashlib.sha256(f"{seed}\n{owner}".encode()).digest()
  point = int.from_bytes(digest[:8], "big") / 2**64
  border = 0.0
  for name, share in fractions.items():
    border += share
    if point < border:
      return name
  return name  # the shares add up to a hair less than 1


def remove_overlap(
  records: Sequence[dict], against: Sequence[dict]
) -> tuple[list[dict], dict[str, int]]:
  """Drops records whose prompt also occurs in `against`."""
  taken = {prompt_of(record) for record in against}
  kept = [record for record in records if prompt_of(record) not in taken]
  return kept, _counts(kept, records, "prompt is in another set")


def check_disjoint(**named_records: Sequence[dict]) -> dict[str, int]:
  """Checks that no prompt is in two of the sets; returns their numbers of different prompts.

  Raises:
    ValueError: two sets share a prompt.
  """
  prompts = {name: {prompt_of(r) for r in records} for name, records in named_records.items()}
  names = list(prompts)
  for i, first in enumerate(names):
    for second in names[i + 1 :]:
      shared = prompts[first] & prompts[second]
      if shared:
        raise ValueError(
          f"{first} and {second} share {len(shared)} prompts, for example "
          f"{min(shared)[:60]!r}; they must be disjoint (see remove_overlap)"
        )
  return {name: len(found) for name, found in prompts.items()}


def prompt_of(record: dict) -> str:
  """The prompt (or a document's text), without white space at its ends."""
  return (record["prompt"] if "prompt" in record else record["text"]).strip()


def _counts(kept: list, records: Sequence, reason: str) -> dict[str, int]:
  counts = {"kept": len(kept)}
  if len(kept) < len(records):
    counts[f"dropped ({reason})"] = len(records) - len(kept)
  return counts
