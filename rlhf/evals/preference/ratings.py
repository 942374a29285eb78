"""Human ratings: writes blind sheets, reads filled ones, and measures the raters' agreement.

`write_sheets` writes

    blind/samples.csv   one sample per row, in random order, with empty columns
    blind/pairs.csv     two samples of one prompt per row, sides at random
    key.jsonl           which policy wrote which sample; raters must not see it

and `read` reads them back, as CSV with a header or as JSONL with the same names:

    sample                a rating of one sample, with
      rater               who rated; a sample can have several raters
      group               "training" or "heldout", where labelers are distinguished (optional)
      likert              overall quality, 1 (worst) to 7 (best)
      rank                among the samples of its prompt; 1 is best, equal ranks are ties
      METADATA labels     yes or no (InstructGPT Table 3, names as in `win_rates.METADATA`)
    sample_a, sample_b    a comparison of two samples of one prompt, with rater, group and
      preference          a, b or tie

Empty cells and rows without any rating are skipped.
"""

import dataclasses
import difflib
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.evals import statistics
from rlhf.evals.preference import agreement as agreement_lib
from rlhf.evals.preference import sheets, win_rates

KEY = "key.jsonl"
SHEETS = "blind"
YES_NO = {"yes": True, "no": False}
_RATING = ("likert", "rank", *win_rates.METADATA)
_SHOWN = ("prompt", "completion", "completion_a", "completion_b", "notes")  # not read
_OLD = ("answer", "answer_a", "answer_b")  # what older sheets call completions
_CELLS: dict[str, Mapping[str, Any]] = {  # column -> what its cells may say
  "likert": {str(number): number for number in win_rates.LIKERT},
  **dict.fromkeys(win_rates.METADATA, YES_NO),
  "preference": {"a": 1.0, "tie": 0.5, "b": 0.0},
  "group": {name: name for name in win_rates.GROUPS},
}
COLUMNS = ("sample", "sample_a", "sample_b", "rater", "group", *_RATING, "preference", *_SHOWN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One completion of one policy."""

  prompt_index: int
  policy: str
  prompt: str
  completion: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
  """One rater's rating of one sample; `likert` and `rank` are None where not given."""

  where: str
  sample: str
  rater: str
  likert: int | None
  rank: int | None
  metadata: Mapping[str, bool | None]

  @property
  def samples(self) -> tuple[str, ...]:
    return (self.sample,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """One rater's comparison of two samples: 1 where the first is better, 0.5 a tie, 0 the second."""

  where: str
  sample_a: str
  sample_b: str
  rater: str
  win: float

  @property
  def samples(self) -> tuple[str, ...]:
    return tuple(sorted((self.sample_a, self.sample_b)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings:
  """Filled sheets.

  Attributes:
    samples: name -> sample.
    raters: name -> group, one of `win_rates.JUDGE_GROUPS`.
    ratings: of samples.
    choices: of pairs, as in the sheets; the function `choices` adds those that ranks imply.
  """

  samples: Mapping[str, Sample]
  raters: Mapping[str, str]
  ratings: Sequence[Rating]
  choices: Sequence[Choice]


# ----------------------------------------------------------------------------- writing sheets


def write_sheets(
  directory,
  prompts: Sequence[Mapping[str, Any]],
  completions: Mapping[str, Sequence[str]],
  *,
  baseline: str,
  seed: int,
  limit: int | None = None,
) -> None:
  """Writes blind sheets: nothing in them says which policy wrote a sample.

  Args:
    directory: receives `blind/samples.csv`, `blind/pairs.csv` (every policy against the baseline)
      and `key.jsonl`.
    prompts: P records with a "prompt".
    completions: policy -> P completions.
    baseline: one of the policies.
    seed: of the order, the names of the samples and the sides.
    limit: number of prompts, a random subset; None takes all.

  Raises:
    ValueError: the directory already has sheets, which may have been filled in.
  """
  directory = pathlib.Path(directory)
  paths = directory / SHEETS / "samples.csv", directory / SHEETS / "pairs.csv", directory / KEY
  for path in paths:
    if path.exists():
      raise ValueError(
        f"{path} exists and may have been filled in; move it away, or name another directory"
      )
  rng = np.random.default_rng(seed)
  chosen = np.sort(rng.permutation(len(prompts))[:limit]).tolist()
  places = [(index, policy) for index in chosen for policy in completions]
  width = max(4, len(str(len(places))))
  numbers = rng.permutation(len(places))
  names = {place: f"s{number:0{width}d}" for place, number in zip(places, numbers, strict=True)}
  key = {
    name: dict(
      sample=name,
      prompt_index=index,
      policy=policy,
      prompt=prompts[index]["prompt"],
      completion=completions[policy][index],
    )
    for (index, policy), name in names.items()
  }
  samples = [key[name] for name in sorted(key)]  # no order of policies or prompts is left
  pairs = []
  for index, policy in places:
    if policy != baseline:
      a, b = rng.permutation([names[index, policy], names[index, baseline]]).tolist()
      texts = dict(completion_a=key[a]["completion"], completion_b=key[b]["completion"])
      pairs.append(dict(sample_a=a, sample_b=b, prompt=key[a]["prompt"], **texts))
  pairs = [pairs[i] for i in rng.permutation(len(pairs))]
  workdir_lib.write_jsonl(paths[2], samples)
  columns = ("sample", "prompt", "completion", "rater", *_RATING, "notes")
  workdir_lib.write_text(paths[0], sheets.csv_text(columns, samples))
  sides = ("sample_a", "sample_b", "prompt", "completion_a", "completion_b")
  workdir_lib.write_text(paths[1], sheets.csv_text((*sides, "rater", "preference", "notes"), pairs))


# ----------------------------------------------------------------------------- reading sheets


def read_key(path) -> dict[str, Sample]:
  """Name -> sample, of `key.jsonl`.

  Raises:
    ValueError: names the line that `write_sheets` did not write.
  """
  found: dict[str, Sample] = {}
  places = set()
  remedy = "restore the key that was written with the sheets"
  fields = dict(sample=str, prompt_index=int, policy=str, prompt=str)
  for where, value in sheets.read_objects(path, fields, remedy):
    completion = value.get("completion", value.get("answer"))  # its name in older keys
    if not isinstance(completion, str):
      raise ValueError(f'{where}: no text in "completion"; {remedy}')
    name = value.pop("sample")
    sample = Sample(
      completion=completion, **{field: value[field] for field in value if field in fields}
    )
    place = sample.policy, sample.prompt_index
    if name in found or place in places:
      raise ValueError(
        f"{where}: a second sample {name}, or of {sample.policy} and prompt {sample.prompt_index}; "
        f"{remedy}"
      )
    found[name] = sample
    places.add(place)
  return found


def read(paths: Sequence[str | pathlib.Path], samples: Mapping[str, Sample]) -> Ratings:
  """Reads filled sheets, of any number of raters and files.

  Args:
    paths: CSV with a header, or JSONL where the name ends in .jsonl; either may end in .gz.
    samples: of `read_key`.

  Raises:
    ValueError: names the row of an unknown sample or column, a rating outside its scale, a rater
      who has no name or two groups, something rated twice by one rater, a pair of different
      prompts; or there is no rating.
  """
  raters: dict[str, str] = {}
  found: dict[tuple[str, ...], Rating | Choice] = {}
  num_skipped = 0
  for path in map(pathlib.Path, paths):
    for where, cells in _rows(path):
      try:
        rating = _parse(where, cells, samples)
        if rating is None:
          num_skipped += 1
          continue
        group = _said("group", cells["group"]) if "group" in cells else "human"
        if raters.setdefault(rating.rater, group) != group:
          raise ValueError(
            f"rater {rating.rater} is of group {group} here and of group {raters[rating.rater]} "
            "before; give a rater one group"
          )
        first = found.setdefault((rating.rater, *rating.samples), rating)
        if first is not rating:
          raise ValueError(
            f"{rating.rater} rated {' and '.join(rating.samples)} already at {first.where}; remove "
            "one of the two rows"
          )
      except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
  if not raters:
    raise ValueError(
      f"{', '.join(map(str, paths))} has no rating ({num_skipped} empty rows); give a sheet that "
      "was filled in"
    )
  return Ratings(
    samples=samples,
    raters=raters,
    ratings=tuple(rating for rating in found.values() if isinstance(rating, Rating)),
    choices=tuple(choice for choice in found.values() if isinstance(choice, Choice)),
  )


def _rows(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  """(where, column -> cell) of every row; empty cells are left out."""
  is_jsonl = path.name.removesuffix(".gz").endswith(".jsonl")
  for where, row in sheets.read_objects(path) if is_jsonl else sheets.read_csv(path):
    if not isinstance(row, dict):
      raise ValueError(f"{where}: not an object; each line must be one")
    for column in row:
      if column not in (*COLUMNS, *_OLD):
        close = difflib.get_close_matches(str(column), COLUMNS, 1, 0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(COLUMNS)}"
        raise ValueError(f"{where}: column {column!r} is unknown; {hint}")
    yield where, {column: text for column, cell in row.items() if (text := sheets.cell_text(cell))}


def _parse(
  where: str, cells: Mapping[str, str], samples: Mapping[str, Sample]
) -> Rating | Choice | None:
  """One row; None where it has no rating."""
  is_pair = "sample_a" in cells or "sample_b" in cells
  named: tuple[str, ...] = ("sample_a", "sample_b") if is_pair else ("sample",)
  of_one, of_two = (*_RATING, "sample"), ("preference",)
  columns, others = (of_two, of_one) if is_pair else (_RATING, of_two)
  for name in named:
    if name not in cells:
      raise ValueError(f'no "{name}"; name the sample that was rated')
    if cells[name] not in samples:
      raise ValueError(
        f"unknown sample {cells[name]!r}; the key of the sheets has {len(samples)} samples, such "
        f"as {next(iter(samples), None)!r}"
      )
  for name in others:
    if name in cells:
      kind = "two samples" if is_pair else "one sample"
      raise ValueError(f'"{name}" in a row about {kind}; use a row of its own')
  given = [name for name in columns if name in cells]
  if not given:
    return None
  if "rater" not in cells:
    raise ValueError(f'no "rater" for "{given[0]}"; name who rated')
  said = {name: _said(name, cells[name]) for name in given}
  about: dict[str, Any] = dict(where=where, rater=cells["rater"])
  if not is_pair:
    likert, rank = said.pop("likert", None), said.pop("rank", None)
    return Rating(sample=cells["sample"], likert=likert, rank=rank, metadata=said, **about)
  a, b = (cells[name] for name in named)
  if a == b:
    raise ValueError(f"sample {a} is compared with itself; name two")
  if samples[a].prompt_index != samples[b].prompt_index:
    raise ValueError(f"samples {a} and {b} have different prompts; compare two of one prompt")
  return Choice(sample_a=a, sample_b=b, win=said["preference"], **about)


def _said(column: str, text: str) -> Any:
  """What a cell says; raises ValueError where it is outside the column's scale."""
  cell = text.lower().removesuffix(".0")  # spreadsheets write 3.0 in a column with empty cells
  if column == "rank" and cell.isascii() and cell.isdigit() and int(cell) > 0:
    return int(cell)
  if column != "rank" and cell in _CELLS[column]:
    return _CELLS[column][cell]
  scale = "the whole numbers, 1 the best" if column == "rank" else ", ".join(_CELLS[column])
  raise ValueError(f'"{column}" is {text!r}, outside its scale; choose from {scale}')


def check_same_texts(
  found: Ratings, prompts: Sequence[Mapping[str, Any]], completions: Mapping[str, Sequence[str]]
) -> None:
  """Raises ValueError where raters saw other prompts or completions than those judged now."""
  for name, sample in found.samples.items():
    if sample.policy not in completions:
      continue
    index = sample.prompt_index
    if index >= len(prompts) or prompts[index]["prompt"] != sample.prompt:
      raise ValueError(
        f"sample {name} was rated on a prompt other than prompt {index} of this evaluation; use "
        "the prompts of the sheets"
      )
    if completions[sample.policy][index] != sample.completion:
      raise ValueError(
        f"sample {name} is not the completion of prompt {index} by {sample.policy} now; use the "
        "completions of the sheets"
      )


# ----------------------------------------------------------------------------- PandaLM's annotators


def read_pandalm(path: str | pathlib.Path) -> Ratings:
  """PandaLM's human-labelled test set as published: two responses, three annotators.

  A line has instruction, input, response1, response2, cmp_key (the two models), and annotator1 to
  annotator3: 0 a tie, 1 or 2 the better response.  Source: Wang et al. 2023, arXiv:2306.05087.

  Raises:
    ValueError: names the line with a missing field or an unknown number.
  """
  samples, choices = {}, []
  raters = [f"annotator{number}" for number in (1, 2, 3)]
  fields: dict[str, type] = dict(instruction=str, input=str, cmp_key=str)
  fields |= dict(response1=object, response2=object) | dict.fromkeys(raters, int)
  remedy = f"a line of PandaLM has {', '.join(fields)}"
  for index, (where, value) in enumerate(sheets.read_objects(path, fields, remedy)):
    models = value["cmp_key"].split("_")
    if len(models) != 2:
      models = ["response1", "response2"]
    prompt = "\n\n".join(filter(None, (value["instruction"], value["input"])))
    for number, model in enumerate(models, start=1):
      # Some published responses are JSON's true and false.
      text = str(value[f"response{number}"])
      samples[f"{index}:{number}"] = Sample(
        prompt_index=index, policy=model, prompt=prompt, completion=text
      )
    for rater in raters:
      if value[rater] not in (0, 1, 2):
        raise ValueError(f'{where}: "{rater}" is {value[rater]!r}; use 0 for a tie, 1 or 2')
      win, a, b = (0.5, 1.0, 0.0)[value[rater]], f"{index}:1", f"{index}:2"
      choices.append(Choice(where=where, sample_a=a, sample_b=b, rater=rater, win=win))
  if not samples:
    raise ValueError(f"{path} is empty; give PandaLM's test set")
  return Ratings(
    samples=samples, raters=dict.fromkeys(raters, "human"), ratings=(), choices=tuple(choices)
  )


# ----------------------------------------------------------------------------- agreement


def choices(found: Ratings) -> list[Choice]:
  """Every comparison of two samples: of pairs, and of ranks that a rater gave to one prompt.

  Where a rater gave both, the comparison of the pair counts.
  """
  pairs = list(found.choices)
  compared = {(choice.rater, choice.samples) for choice in pairs}
  ranked: dict[tuple[str, int], list[tuple[int, Rating]]] = {}
  for rating in found.ratings:
    if rating.rank is not None:
      place = rating.rater, found.samples[rating.sample].prompt_index
      ranked.setdefault(place, []).append((rating.rank, rating))
  for (rater, _), of_prompt in ranked.items():
    for (rank_a, a), (rank_b, b) in itertools.combinations(of_prompt, 2):
      win = 0.5 * (1 + float(np.sign(rank_b - rank_a)))
      choice = Choice(where=b.where, sample_a=a.sample, sample_b=b.sample, rater=rater, win=win)
      if (rater, choice.samples) not in compared:
        pairs.append(choice)
  return pairs


def comparison_table(found: Ratings) -> tuple[list[tuple[str, str]], np.ndarray]:
  """(pairs of samples, preference_CL): 1 the first is better, 0.5 tie, 0, NaN not judged.

  Columns are in the order of `found.raters`.
  """
  return agreement_lib.table(
    (
      (
        choice.samples,
        choice.rater,
        choice.win if choice.samples[0] == choice.sample_a else 1 - choice.win,
      )
      for choice in choices(found)
    ),
    list(found.raters),
  )


def agreement(found: Ratings, **settings: Unpack[statistics.Settings]) -> dict[str, Any]:
  """Agreement of the raters.

  Args:
    found: of `read` or `read_pandalm`.
    settings: of the bootstrap over prompts.

  Returns:
    {"preference": {"agreement": interval (below), "with_ties": interval, "alpha": number,
                    "kappa": {"rater & rater": number}, "num_comparisons": judged by two or more},
     "likert": {"alpha", "kappa", "num_samples"}, "metadata": {label: the same}}
    "agreement" is how often two raters who both decided chose alike (InstructGPT section 3.4, which
    reports 72.6 %), without ties; "with_ties" is how often two raters said the same of three.
    alpha is Krippendorff's (any number of raters, missing ratings allowed; Likert distances
    squared); kappa is Cohen's, for each two raters, of Likert with quadratic weights.  None where
    nothing was rated by two.
  """
  raters = list(found.raters)

  def rated(values: Mapping[tuple[str, str], float | None], ordered: bool):
    entries = [(*place, value) for place, value in values.items() if value is not None]
    return agreement_lib.reliability(
      agreement_lib.table(entries, raters)[1], raters, ordered=ordered
    )

  by_place = {(rating.sample, rating.rater): rating for rating in found.ratings}
  labels = sorted({label for rating in found.ratings for label in rating.metadata})
  pairs, preference_CL = comparison_table(found)
  preference = agreement_lib.reliability(preference_CL, raters, ordered=False)
  if preference is not None:
    prompts = [found.samples[a].prompt_index for a, _ in pairs]
    decided_CL = np.where(preference_CL == 0.5, np.nan, preference_CL)
    preference = dict(
      agreement=agreement_lib.same_choice(decided_CL, prompts, **settings),
      with_ties=agreement_lib.same_choice(preference_CL, prompts, **settings),
      alpha=preference["alpha"],
      kappa=preference["kappa"],
      num_comparisons=preference["num_samples"],
    )
  return dict(
    preference=preference,
    likert=rated({place: rating.likert for place, rating in by_place.items()}, True),
    metadata={
      label: rated({place: r.metadata.get(label) for place, r in by_place.items()}, False)
      for label in labels
    },
  )
