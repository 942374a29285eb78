"""The data room: files and public sets -> records -> rows of tokens -> batches.  numpy only.

  records    the four kinds of record and their checks
  formats    files as their authors published them -> records
  builders   tfds builders: records <-> array_record
  sources    `load`: a config's data field -> records
  hygiene    dedup, cap per user, splits, disjointness
  packing    token sequences -> rows of a fixed length
  prepare    records -> rows
  batches    rows -> batches, a function of (seed, step) alone
"""

from rlhf.data.batches import (
    Batches, comparison_batches, fixed_batches, lm_batches, mixed_lm_batches, num_rows,
    prompt_batches, split_rows, take_rows)
from rlhf.data.formats import FormatOptions
from rlhf.data.hygiene import (
    cap_per_user, check_disjoint, deduplicate_by_prefix, remove_overlap, split_by_user)
from rlhf.data.prepare import (
    ComparisonRows, PromptFormat, comparison_rows, demonstration_rows, prompt_rows, text_rows)
from rlhf.data.records import describe_counts
from rlhf.data.sources import RecordSource, load

__all__ = [
    "Batches", "ComparisonRows", "FormatOptions", "PromptFormat", "RecordSource", "cap_per_user",
    "check_disjoint", "comparison_batches", "comparison_rows",
    "deduplicate_by_prefix", "demonstration_rows", "describe_counts", "fixed_batches",
    "lm_batches", "load", "mixed_lm_batches", "num_rows", "prompt_batches", "prompt_rows",
    "remove_overlap", "split_by_user", "split_rows", "take_rows", "text_rows",
]
