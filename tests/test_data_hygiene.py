"""Dedup, cap, splits, disjointness."""

import pytest

from rlhf.data import hygiene


def prompts(*texts: str, **fields) -> list[dict]:
  return [{"prompt": text, **fields} for text in texts]


def test_long_common_prefixes_are_dropped():
  records = prompts("abcdX", "abcdY", "abc", "abceZ", "abc", "", "")
  kept, counts = hygiene.deduplicate_by_prefix(records, 4)
  assert [r["prompt"] for r in kept] == ["abcdX", "abc", "abceZ", ""]
  assert counts == {"kept": 4, "dropped (share their first 4 characters)": 3}
  assert hygiene.deduplicate_by_prefix(records, 5)[1]["kept"] == 5


def test_cap_per_user():
  records = (
    prompts("1", "2", "3", user="a")
    + prompts("4", user="b")
    + prompts("5", "6", "7")
    + prompts("8", user="a")
  )
  kept, counts = hygiene.cap_per_user(records, 2)
  assert [r["prompt"] for r in kept] == ["1", "2", "4", "5", "6", "7"]
  assert counts == {"kept": 6, "dropped (beyond 2 of one user)": 2}


FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def test_no_user_is_in_two_parts():
  records = [{"prompt": str(i), "user": f"u{i % 200}"} for i in range(1000)]
  parts = hygiene.split_by_user(records, FRACTIONS, seed=0)
  users = {name: {r["user"] for r in part} for name, part in parts.items()}
  assert not users["train"] & users["valid"] and not users["train"] & users["test"]
  assert not users["valid"] & users["test"]
  assert sum(map(len, parts.values())) == 1000 and 700 < len(parts["train"]) < 900


def test_a_user_stays_in_its_part_when_data_come_in():
  records = [{"prompt": str(i), "user": f"u{i % 50}"} for i in range(100)]
  more = records + [{"prompt": f"x{i}", "user": f"v{i}"} for i in range(100)]
  before = hygiene.split_by_user(records, FRACTIONS, seed=3)
  after = hygiene.split_by_user(more[::-1], FRACTIONS, seed=3)
  for name in FRACTIONS:
    assert {r["user"] for r in before[name]} <= {r["user"] for r in after[name]}


def test_without_users_equal_prompts_stay_together():
  records = prompts(*[str(i % 60) for i in range(120)])
  parts = hygiene.split_by_user(records, FRACTIONS, seed=0)
  hygiene.check_disjoint(**parts)
  assert sum(len({r["prompt"] for r in part}) for part in parts.values()) == 60
  other = hygiene.split_by_user(records, FRACTIONS, seed=1)
  assert list(other["train"]) != list(parts["train"])


def test_documents_split_by_their_text():
  parts = hygiene.split_by_user([{"text": str(i)} for i in range(50)], {"a": 0.5, "b": 0.5}, 0)
  assert len(parts["a"]) + len(parts["b"]) == 50


def test_an_empty_part_is_named():
  with pytest.raises(ValueError, match="of 1 records came out empty"):
    hygiene.split_by_user(prompts("a"), {"a": 0.5, "b": 0.5}, 0)


def test_overlap_is_removed():
  kept = hygiene.remove_overlap(prompts("a", "b ", "c"), prompts("b", "d"))
  assert [r["prompt"] for r in kept] == ["a", "c"]


def test_disjointness_is_checked():
  hygiene.check_disjoint(rm=prompts("a", "a"), ppo=prompts("b"), test=prompts("c"))
  with pytest.raises(ValueError, match="ppo and test share 1 prompts, for example 'c'"):
    hygiene.check_disjoint(rm=prompts("a"), ppo=prompts("b", "c"), test=prompts(" c"))
