"""What people say: blind sheets out, filled sheets in, and how far the raters agree.

`write_sheets` writes

    blind/samples.csv   one sample a line, in random order: sample, prompt, answer, empty columns
    blind/pairs.csv     two samples of one prompt a line, sides at random
    key.jsonl           which policy wrote which sample; raters must not see it

and `read` reads them back, as CSV with a header or as JSONL with the same names:

    sample                a rating of one sample, with
      rater               who rated; a sample can have several raters
      group               "training" or "heldout", where labelers are told apart (optional)
      likert              overall quality, 1 (worst) to 7 (best)
      rank                among the samples of its prompt, 1 is best, equal ranks are ties
      METADATA labels     yes or no (InstructGPT Table 3, names as in `preference.METADATA`)
    sample_a, sample_b    a judgement of two samples of one prompt, with rater, group and
      preference          a, b or tie

A cell that is empty was not asked; a line in which a rater said nothing was skipped.
"""

import csv
import dataclasses
import difflib
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf import workdir as workdir_lib
from rlhf.data import records
from rlhf.evals import statistics
from rlhf.evals.preference import win_rates

KEY = "key.jsonl"
SHEETS = "blind"
PREFERENCES = {"a": 1.0, "tie": 0.5, "b": 0.0}
YES_NO = {"yes": True, "no": False}
_RATING = ("likert", "rank", *win_rates.METADATA)
_SHOWN = ("prompt", "answer", "answer_a", "answer_b", "notes")  # for the raters; not read
COLUMNS = ("sample", "sample_a", "sample_b", "rater", "group", *_RATING, "preference", *_SHOWN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One answer of one policy."""

  prompt_index: int
  policy: str
  prompt: str
  answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rating:
  """What one rater said of one sample; `likert` and `rank` are None where not asked."""

  where: str
  sample: str
  rater: str
  likert: int | None
  rank: int | None
  metadata: Mapping[str, bool | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
  """What one rater said of two samples: 1 the first is better, 0.5 a tie, 0 the second."""

  where: str
  sample_a: str
  sample_b: str
  rater: str
  win: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratings:
  """Filled sheets.

  Attributes:
    samples: name -> sample.
    raters: name -> group, one of `preference.JUDGE_GROUPS`.
    ratings: of samples.
    choices: of pairs, as they stand in the sheets; `choices` adds what ranks say.
    num_skipped: lines in which nothing was said.
  """

  samples: Mapping[str, Sample]
  raters: Mapping[str, str]
  ratings: Sequence[Rating]
  choices: Sequence[Choice]
  num_skipped: int = 0


# ----------------------------------------------------------------------------- sheets out


def write_sheets(
  directory,
  prompts: Sequence[Mapping[str, Any]],
  answers: Mapping[str, Sequence[str]],
  *,
  baseline: str,
  seed: int,
  limit: int | None = None,
) -> None:
  """Writes what raters fill in, blind: nothing in it tells which policy wrote a sample.

  Args:
    directory: receives `blind/samples.csv`, `blind/pairs.csv` (every policy against the baseline)
      and `key.jsonl`.
    prompts: P records with a "prompt".
    answers: policy -> P answers.
    baseline: one of the policies.
    seed: of the order, the names of the samples and the sides.
    limit: number of prompts, a random subset; None takes all.

  Raises:
    ValueError: there are sheets in the directory already: they may have been filled in.
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
  places = [(index, policy) for index in chosen for policy in answers]
  names = dict(zip(places, _random_names(len(places), rng), strict=True))
  key = {
    names[index, policy]: Sample(
      prompt_index=index,
      policy=policy,
      prompt=prompts[index]["prompt"],
      answer=answers[policy][index],
    )
    for index, policy in places
  }
  order = sorted(key)  # by their random names: no order of policies or prompts is left
  samples = [dict(sample=name, prompt=key[name].prompt, answer=key[name].answer) for name in order]
  pairs = []
  for index, policy in places:
    if policy != baseline:
      a, b = rng.permutation([names[index, policy], names[index, baseline]]).tolist()
      pairs.append(
        dict(
          sample_a=a,
          sample_b=b,
          prompt=prompts[index]["prompt"],
          answer_a=key[a].answer,
          answer_b=key[b].answer,
        )
      )
  pairs = [pairs[i] for i in rng.permutation(len(pairs))]
  workdir_lib.write_text(
    paths[2],
    "".join(
      json.dumps(dict(sample=name) | dataclasses.asdict(key[name]), ensure_ascii=False) + "\n"
      for name in order
    ),
  )
  _write_csv(
    paths[0],
    ("sample", "prompt", "answer", "rater", "likert", "rank", *win_rates.METADATA, "notes"),
    samples,
  )
  _write_csv(
    paths[1],
    ("sample_a", "sample_b", "prompt", "answer_a", "answer_b", "rater", "preference", "notes"),
    pairs,
  )


def _random_names(num: int, rng) -> list[str]:
  """Different names in random order."""
  width = max(4, len(str(num)))
  return [f"s{number:0{width}d}" for number in rng.permutation(num)]


def _write_csv(path, columns: Sequence[str], lines: Sequence[Mapping[str, str]]) -> None:
  text = io.StringIO(newline="")
  # Its line ends, "\r\n", are what makes it quote texts with either of them.
  writer = csv.DictWriter(text, columns)
  writer.writeheader()
  writer.writerows(lines)
  workdir_lib.write_text(path, text.getvalue())


# ----------------------------------------------------------------------------- sheets in


def read_key(path) -> dict[str, Sample]:
  """Name -> sample, of `key.jsonl`.

  Raises:
    ValueError: "path:line: ..." where it is not what `write_sheets` wrote.
  """
  path, found, places = pathlib.Path(path), {}, set()
  kinds = {"sample": str, **{field.name: field.type for field in dataclasses.fields(Sample)}}
  for where, line in records.read_lines(path):
    value, problem = records.parse_json(line)
    if problem is not None:
      raise ValueError(f"{where}: {problem.message}")
    for name, kind in kinds.items():
      if not isinstance(value, dict) or name not in value or type(value[name]) is not kind:
        raise ValueError(
          f'{where}: no field "{name}" of type {kind.__name__}; restore the key '
          "that was written with the sheets"
        )
    name = value.pop("sample")
    sample = Sample(**{field: value[field] for field in kinds if field != "sample"})
    place = sample.policy, sample.prompt_index
    if name in found or place in places:
      raise ValueError(
        f"{where}: sample {name} of {sample.policy} and prompt "
        f"{sample.prompt_index} stands there twice; restore the key that was "
        "written with the sheets"
      )
    found[name] = sample
    places.add(place)
  return found


def read(paths: Sequence[str | pathlib.Path], samples: Mapping[str, Sample]) -> Ratings:
  """Filled sheets, whoever filled them and into how many files.

  Args:
    paths: CSV with a header, or JSONL where the name ends in .jsonl; either may end in .gz.
    samples: of `read_key`.

  Raises:
    ValueError: "path:line: ..." at an unknown sample or column, a rating outside its scale, a
      rater who is not named or is in two groups, something rated twice by one rater, a pair of
      different prompts; or there is no rating.
  """
  raters: dict[str, str] = {}
  ratings: dict[tuple, Rating] = {}
  choices: dict[tuple, Choice] = {}
  num_skipped = 0
  for path in map(pathlib.Path, paths):
    for where, cells in _lines(path):
      try:
        said = _parse(where, cells, samples)
        if said is None:
          num_skipped += 1
          continue
        group = cells.get("group", "human")
        if raters.setdefault(said.rater, group) != group:
          raise ValueError(
            f"rater {said.rater} is of group {group}, and of group "
            f"{raters[said.rater]} before; a rater has one group"
          )
        is_rating = isinstance(said, Rating)
        known = ratings if is_rating else choices
        what = (
          (said.rater, said.sample)
          if is_rating
          else (said.rater, *sorted((said.sample_a, said.sample_b)))
        )
        if what in known:
          raise ValueError(
            f"{said.rater} rated {' and '.join(what[1:])} already at "
            f"{known[what].where}; leave one of the two lines"
          )
        known[what] = said
      except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
  if not raters:
    raise ValueError(
      f"{', '.join(map(str, paths))} has no rating ({num_skipped} empty lines); "
      "give a sheet that was filled in"
    )
  return Ratings(
    samples=samples,
    raters=raters,
    ratings=tuple(ratings.values()),
    choices=tuple(choices.values()),
    num_skipped=num_skipped,
  )


def _lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  """("path:line", column -> cell) of every line; cells that are empty are left out."""
  suffix = path.suffixes[-2:-1] if path.suffix == ".gz" else [path.suffix]
  read_as = _jsonl_lines if suffix == [".jsonl"] else _csv_lines
  for where, cells in read_as(path):
    for column in cells:
      if column not in COLUMNS:
        close = difflib.get_close_matches(str(column), COLUMNS, 1, 0.6)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(COLUMNS)}"
        raise ValueError(f"{where}: column {column!r} is unknown; {hint}")
    yield where, {column: cell.strip() for column, cell in cells.items() if cell.strip()}


def _csv_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  try:
    text = records.read_bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8") from None
  reader = csv.reader(io.StringIO(text, newline=""), strict=True)
  header, number = None, 1
  while True:
    number = reader.line_num + 1  # a line of CSV goes on inside quotes: where it begins counts
    try:
      cells = next(reader, None)
    except csv.Error as error:
      raise ValueError(f"{path}:{number}: not CSV ({error}); save the sheet anew") from None
    if cells is None:
      break
    if header is None:
      header = [cell.strip() for cell in cells]
      if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise ValueError(f"{path}:{number}: column {twice!r} stands there twice; leave one")
    elif any(cell.strip() for cell in cells):
      if len(cells) != len(header):
        raise ValueError(
          f"{path}:{number}: {len(cells)} cells under {len(header)} columns; give "
          "one cell for each column"
        )
      yield f"{path}:{number}", dict(zip(header, cells))


def _jsonl_lines(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
  for where, line in records.read_lines(path):
    value, problem = records.parse_json(line)
    if problem is None and not isinstance(value, dict):
      problem = records.Problem("not an object", "not an object; each line must be one")
    if problem is not None:
      raise ValueError(f"{where}: {problem.message}")
    yield where, {name: _cell_text(cell) for name, cell in value.items()}


def _cell_text(cell: Any) -> str:
  """JSON's true, false, null and numbers as a cell of CSV has them."""
  if cell is None:
    return ""
  if isinstance(cell, bool):
    return "yes" if cell else "no"
  return cell if isinstance(cell, str) else json.dumps(cell)


def _parse(
  where: str, cells: Mapping[str, str], samples: Mapping[str, Sample]
) -> Rating | Choice | None:
  """One line; None where nothing was said."""
  is_pair = "sample_a" in cells or "sample_b" in cells
  named = ("sample_a", "sample_b") if is_pair else ("sample",)
  said = [name for name in (("preference",) if is_pair else _RATING) if name in cells]
  for name in named:
    if name not in cells:
      raise ValueError(f'no "{name}"; name the sample that was rated')
    if cells[name] not in samples:
      raise ValueError(
        f"unknown sample {cells[name]!r}; the key of the sheets has {len(samples)} "
        f"samples, such as {next(iter(samples), None)!r}"
      )
  for name in (*_RATING, "sample") if is_pair else ("preference",):
    if name in cells:
      kind = "two samples" if is_pair else "one sample"
      raise ValueError(f'"{name}" on a line about {kind}; give it a line of its own')
  if not said:
    return None
  if "rater" not in cells:
    raise ValueError(f'no "rater" beside "{said[0]}"; say who rated')
  if "group" in cells and cells["group"] not in win_rates.GROUPS:
    raise ValueError(
      f'"group" is {cells["group"]!r}; choose from {", ".join(win_rates.GROUPS)}, or leave it empty'
    )
  if is_pair:
    a, b = (cells[name] for name in named)
    if a == b:
      raise ValueError(f"sample {a} is compared with itself; name two")
    if samples[a].prompt_index != samples[b].prompt_index:
      raise ValueError(f"samples {a} and {b} answer different prompts; compare two of one prompt")
    return Choice(
      where=where,
      sample_a=a,
      sample_b=b,
      rater=cells["rater"],
      win=_choose("preference", cells["preference"], PREFERENCES),
    )
  return Rating(
    where=where,
    sample=cells["sample"],
    rater=cells["rater"],
    likert=_whole(cells, "likert", 1, max(win_rates.LIKERT)),
    rank=_whole(cells, "rank", 1, None),
    metadata={
      name: _choose(name, cells[name], YES_NO) for name in win_rates.METADATA if name in cells
    },
  )


def _choose(name: str, cell: str, choices: Mapping[str, Any]) -> Any:
  if cell.lower() not in choices:
    raise ValueError(f'"{name}" is {cell!r}; choose from {", ".join(choices)}')
  return choices[cell.lower()]


def _whole(cells: Mapping[str, str], name: str, low: int, high: int | None) -> int | None:
  """A whole number on its scale, None where the cell is empty."""
  if name not in cells:
    return None
  cell = cells[name].removesuffix(".0")  # as spreadsheets write whole numbers beside empty cells
  inside = cell.isascii() and cell.isdigit() and low <= int(cell)
  if not inside or (high is not None and int(cell) > high):
    scale = f"from {low} to {high}" if high is not None else f"from {low} (the best)"
    raise ValueError(f'"{name}" is {cells[name]!r}, outside its scale; use a whole number {scale}')
  return int(cell)


def check_same_texts(
  found: Ratings, prompts: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[str]]
) -> None:
  """Raises ValueError where raters saw another prompt or answer than those that are judged now."""
  for name, sample in found.samples.items():
    if sample.policy not in answers:
      continue
    index = sample.prompt_index
    if index >= len(prompts) or prompts[index]["prompt"] != sample.prompt:
      raise ValueError(
        f"sample {name} was rated on another prompt than the prompt {index} of this "
        "evaluation; use the prompts that the sheets were made of"
      )
    if answers[sample.policy][index] != sample.answer:
      raise ValueError(
        f"sample {name} is not what {sample.policy} answers to prompt {index} now; "
        "use the answers that the sheets were made of"
      )


# ----------------------------------------------------------------------------- PandaLM's annotators


def read_pandalm(path: str | pathlib.Path) -> Ratings:
  """PandaLM's human-labelled test set: two responses, three annotators, as the authors publish it.

  A line has instruction, input, response1, response2, cmp_key (the two models), and annotator1 to
  annotator3: 0 a tie, 1 or 2 the better response.  Source: Wang et al. 2023, arXiv:2306.05087.

  Raises:
    ValueError: "path:line: ..." where a field is missing or no such number.
  """
  samples, choices, path = {}, [], pathlib.Path(path)
  raters = [f"annotator{number}" for number in (1, 2, 3)]
  for index, (where, line) in enumerate(records.read_lines(path)):
    value, problem = records.parse_json(line)
    if problem is not None:
      raise ValueError(f"{where}: {problem.message}")
    needed = ("instruction", "input", "response1", "response2", "cmp_key", *raters)
    for name in needed:
      if not isinstance(value, dict) or name not in value:
        raise ValueError(
          f'{where}: no field "{name}"; a line of PandaLM\'s test set has {", ".join(needed)}'
        )
    models = value["cmp_key"].split("_")
    if len(models) != 2:
      models = ["response1", "response2"]
    prompt = "\n\n".join(filter(None, (value["instruction"], value["input"])))
    names = [f"{index}:1", f"{index}:2"]
    for name, model, field in zip(names, models, ("response1", "response2")):
      # Among the published responses are JSON's own true and false.
      samples[name] = Sample(
        prompt_index=index, policy=model, prompt=prompt, answer=str(value[field])
      )
    for rater in raters:
      if type(value[rater]) is not int or value[rater] not in (0, 1, 2):
        raise ValueError(f'{where}: "{rater}" is {value[rater]!r}; use 0 for a tie, 1 or 2')
      choices.append(
        Choice(
          where=where,
          sample_a=names[0],
          sample_b=names[1],
          rater=rater,
          win=(0.5, 1.0, 0.0)[value[rater]],
        )
      )
  if not samples:
    raise ValueError(f"{path} is empty; give PandaLM's test set")
  return Ratings(
    samples=samples, raters=dict.fromkeys(raters, "human"), ratings=(), choices=tuple(choices)
  )


# ----------------------------------------------------------------------------- agreement


def choices(found: Ratings) -> list[Choice]:
  """Every judgement of two samples: of pairs, and of ranks that one rater gave to one prompt.

  Where a rater did both, what was said of the pair counts.
  """
  pairs = list(found.choices)
  said = {(choice.rater, frozenset((choice.sample_a, choice.sample_b))) for choice in pairs}
  ranked: dict[tuple[str, int], list[Rating]] = {}
  for rating in found.ratings:
    if rating.rank is not None:
      place = rating.rater, found.samples[rating.sample].prompt_index
      ranked.setdefault(place, []).append(rating)
  for (rater, _), of_prompt in ranked.items():
    for a, b in itertools.combinations(of_prompt, 2):
      if (rater, frozenset((a.sample, b.sample))) not in said:
        pairs.append(
          Choice(
            where=b.where,
            sample_a=a.sample,
            sample_b=b.sample,
            rater=rater,
            win=0.5 * (1 + float(np.sign(b.rank - a.rank))),
          )
        )
  return pairs


def comparison_table(found: Ratings) -> tuple[list[tuple[str, str]], np.ndarray]:
  """(pairs of samples, preference_CL): 1 the first is better, 0.5 tie, 0, NaN not judged.

  Columns are in the order of `found.raters`.
  """
  column = {rater: number for number, rater in enumerate(found.raters)}
  table: dict[tuple[str, str], np.ndarray] = {}
  for choice in choices(found):
    pair = tuple(sorted((choice.sample_a, choice.sample_b)))
    row_L = table.setdefault(pair, np.full(len(column), np.nan))
    row_L[column[choice.rater]] = choice.win if pair[0] == choice.sample_a else 1 - choice.win
  return list(table), np.array(list(table.values())).reshape(len(table), len(column))


def agreement(found: Ratings, *, num_resamples: int, seed: int) -> dict[str, Any]:
  """How far raters agree.

  Args:
    found: of `read` or `read_pandalm`.
    num_resamples, seed: of the bootstrap over prompts.

  Returns:
    {"preference": {"agreement": interval (below), "with_ties": interval, "alpha": number,
                    "kappa": {"rater & rater": number}, "num_comparisons": judged by two or more},
     "likert": {"alpha", "kappa", "num_samples"}, "metadata": {label: the same}}
    "agreement" is how often two raters who both decided chose alike (InstructGPT section 3.4, which
    reports 72.6 %), ties left out; "with_ties" is how often two raters said the same of three.
    alpha is Krippendorff's (any number of raters, not all of whom rated everything; Likert
    distances squared); kappa is Cohen's, for each two raters, of Likert with quadratic weights.
    None where nothing was rated by two.
  """
  pairs, preference_CL = comparison_table(found)
  prompts = [found.samples[a].prompt_index for a, _ in pairs]
  raters = list(found.raters)
  row, column = (
    {name: number for number, name in enumerate(names)} for names in (found.samples, raters)
  )

  def rated(of):
    value_SL = np.full((len(row), len(column)), np.nan)
    for rating in found.ratings:
      if (value := of(rating)) is not None:
        value_SL[row[rating.sample], column[rating.rater]] = value
    return reliability(value_SL, raters, ordered=of is likert)

  def likert(rating):
    return rating.likert

  asked = sorted({label for rating in found.ratings for label in rating.metadata})
  decided_CL = np.where(preference_CL == 0.5, np.nan, preference_CL)
  settings = dict(num_resamples=num_resamples, seed=seed)
  result = dict(
    preference=None,
    likert=rated(likert),
    metadata={
      label: rated(lambda rating, label=label: rating.metadata.get(label)) for label in asked
    },
  )
  if (found_reliable := reliability(preference_CL, raters, ordered=False)) is not None:
    result["preference"] = dict(
      agreement=_pair_agreement(decided_CL, prompts, **settings),
      with_ties=_pair_agreement(preference_CL, prompts, **settings),
      alpha=found_reliable["alpha"],
      kappa=found_reliable["kappa"],
      num_comparisons=found_reliable["num_samples"],
    )
  return result


def _pair_agreement(
  value_CL: np.ndarray, prompts: Sequence[int], *, num_resamples: int, seed: int
) -> dict[str, Any] | None:
  """Share of pairs of raters of one comparison who said the same, with its interval.

  sum_c sum_values C(n_cv, 2) / sum_c C(n_c, 2)
  """
  counts_VC = np.array([(value_CL == value).sum(axis=1) for value in win_rates.WINS])
  two = lambda count: count * (count - 1) // 2
  agreed_C, all_C = two(counts_VC).sum(axis=0), two(counts_VC.sum(axis=0))
  _, prompt_C = np.unique(prompts, return_inverse=True)
  table_P2 = np.stack(
    [np.bincount(prompt_C, weights=column) for column in (agreed_C, all_C)], axis=1
  )
  table_P2 = table_P2[table_P2[:, 1] > 0]
  if not len(table_P2):
    return None
  return statistics.bootstrap_statistic(
    table_P2, lambda sums: sums[..., 0] / sums[..., 1], num_resamples=num_resamples, seed=seed
  ).as_dict()


def reliability(
  value_SL: np.ndarray, raters: Sequence[str], *, ordered: bool
) -> dict[str, Any] | None:
  """Krippendorff's alpha and Cohen's kappas of S items by L raters; None without two raters.

  Args:
    value_SL: NaN where a rater has not rated an item.
    raters: their L names.
    ordered: values are numbers, whose distances are squared; else labels.
  """
  # Imported here: together they take seconds.
  from nltk.metrics import agreement as nltk_agreement
  from sklearn.metrics import cohen_kappa_score

  known_SL = ~np.isnan(value_SL)
  several_S = known_SL.sum(axis=1) > 1
  if not several_S.any():
    return None
  triples = [(raters[l], int(s), float(value_SL[s, l])) for s, l in np.argwhere(known_SL)]
  distance = (lambda a, b: (a - b) ** 2) if ordered else nltk_agreement.binary_distance
  alpha = nltk_agreement.AnnotationTask(triples, distance=distance).alpha()
  kappa = {}
  for i, j in itertools.combinations(range(len(raters)), 2):
    both_S = known_SL[:, i] & known_SL[:, j]
    # Twice the value is a whole number: sklearn wants labels.
    a, b = (np.rint(2 * value_SL[both_S, l]).astype(int) for l in (i, j))
    if len(set(a) | set(b)) > 1:
      kappa[f"{raters[i]} & {raters[j]}"] = float(
        cohen_kappa_score(a, b, weights="quadratic" if ordered else None)
      )
  return dict(alpha=float(alpha), kappa=kappa, num_samples=int(several_S.sum()))
