"""The facts of the world: who lives in it and what is true there."""

import dataclasses
import functools

import numpy as np

from rlhf.tinyworld import grammar, words


@dataclasses.dataclass(frozen=True)
class Fact:
  """A triple such as ("mira", "home", "velda"); `relation` is a key of grammar.RELATIONS."""

  subject: str
  relation: str
  value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
  """The facts of one world; every text is about them.  The entities are those of `words`."""

  seed: int
  facts: tuple[Fact, ...]

  @functools.cached_property
  def values(self) -> dict[tuple[str, str], str]:
    """(subject, relation) -> the one true value."""
    return {(fact.subject, fact.relation): fact.value for fact in self.facts}

  @functools.cached_property
  def facts_by_subject(self) -> dict[str, tuple[Fact, ...]]:
    return grammar.grouped((fact.subject, fact) for fact in self.facts)

  @functools.cached_property
  def subjects_by_value(self) -> dict[tuple[str, str], tuple[str, ...]]:
    """(relation, value) -> every subject of which it is true."""
    return grammar.grouped(((fact.relation, fact.value), fact.subject) for fact in self.facts)

  def fact(self, subject: str, relation: str) -> Fact:
    return Fact(subject, relation, self.values[subject, relation])

  def is_true(self, subject: str, relation: str, value: str) -> bool:
    return self.values[subject, relation] == value

  def sentence(self, rng, fact: Fact) -> str:
    """The fact in one of its relation's phrasings."""
    template = grammar.pick(rng, grammar.templates()[f"fact:{fact.relation}"])
    return grammar.fill(template, (fact.subject, fact.value))

  def wrong_value(self, rng, fact: Fact) -> str:
    """A value of the right kind that is not true."""
    candidates = words.SLOTS[grammar.RELATIONS[fact.relation].value]
    return grammar.pick(rng, candidates, (fact.value, fact.subject))


def make_world(seed: int) -> World:
  """Draws one value for every subject and relation; the same seed gives the same world."""
  rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
  facts = []
  for name, relation in grammar.RELATIONS.items():
    for subject in words.SLOTS[relation.subject]:
      value = grammar.pick(rng, words.SLOTS[relation.value], (subject,))
      facts.append(Fact(subject, name, value))
  return World(seed=seed, facts=tuple(facts))
