"""Several sets of examples as one, in given proportions, no example twice.

For fine-tunes on a collection of instruction data sets, as the FLAN and T0 baselines of InstructGPT
appendix C.5.
"""

from collections.abc import Sequence

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.data import hygiene
from rlhf.data.records import LazySequence, concatenate, subset


def mix(
  sources: Sequence[Sequence[dict]],
  weights: Sequence[float],
  *,
  max_examples: int | None,
  seed: int,
) -> tuple[LazySequence, dict[str, int]]:
  """Examples drawn from each source without replacement, in a random order.

  Args:
    sources: demonstrations; what is equal in prompt and completion, also across sources, is taken
      once, from the first source that has it.
    weights: above 0, of each source's number of examples; they hold to within one example, so the
      mixture ends where a source has no more to give.  Empty: all examples of all sources.
    max_examples: of the mixture, at most; None for as many as there are.
    seed: of the draw.

  Returns:
    (records, counts): "kept", then what was dropped and why.

  Raises:
    ValueError: the weights leave a source without an example.
  """
  # Of each source, the places of examples that did not come before.
  seen: set[bytes] = set()
  hashes = lambda source: (hygiene.text_hash(r["prompt"], r["completion"]) for r in source)
  distinct = [np.flatnonzero(hygiene.are_new(hashes(source), seen)) for source in sources]
  sizes = np.asarray([len(indices) for indices in distinct])
  share = np.asarray(weights if weights else sizes, np.float64)
  share = share / share.sum()
  total = int(np.floor((sizes / share).min() + 1e-9)) if weights else int(sizes.sum())
  if max_examples is not None:
    total = min(total, max_examples)
  # Largest remainders: the counts add up to `total`, each within one of its share.
  counts = np.floor(total * share + 1e-9).astype(int)
  order = np.argsort(-(total * share - counts), kind="stable")
  counts[order[: total - counts.sum()]] += 1
  counts = np.minimum(counts, sizes)
  if weights and not counts.all():
    raise ValueError(
      f"weights {tuple(weights)} leave source {int(np.argmin(counts)) + 1} without "
      f"an example among {total}; give it more weight, or raise max_examples"
    )
  rng = np.random.default_rng(seed)
  drawn = [indices[rng.permutation(len(indices))[:n]] for indices, n in zip(distinct, counts)]
  records = concatenate(*(subset(source, rows) for source, rows in zip(sources, drawn)))
  records = subset(records, rng.permutation(len(records)))
  fingerprints = [getattr(source, "fingerprint", None) for source in sources]
  if None not in fingerprints:
    records.fingerprint = workdir_lib.config_hash(
      dict(mixture=fingerprints, weights=weights, max_examples=max_examples, seed=seed)
    )
  found = {"kept": len(records)}
  num_repeated = sum(map(len, sources)) - int(sizes.sum())
  if num_repeated:
    found["dropped (the same example once more)"] = num_repeated
  if len(records) < sizes.sum():
    found["left out (weights, max_examples)"] = int(sizes.sum()) - len(records)
  return records, found
