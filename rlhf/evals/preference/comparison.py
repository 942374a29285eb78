"""The suite `preference`: checkpoints complete the same prompts, and judges say which is better.

    complete(p, network, directory, ...)         one checkpoint's completions, one line a prompt
    judge_all(p, completions, directory, ...)    what the judges say of all of them
    summarise(rows, completions, names, ...)     their numbers, of one training seed or of several

Judges are named by specs:

    labelers        TinyWorld's simulated labelers, training and held-out; `world` says which
    reward:SOURCE   a reward model: an export, the workdir of its stage, or hf:DIR
    ratings:FILE    people's ratings in the sheets of `write_sheets`; several files are one group
    endpoint        a model behind an OpenAI-compatible endpoint, see `endpoint`

Source of what is measured: InstructGPT (arXiv:2203.02155) section 3.6, Table 3, Figures 1, 3, 4
and 31.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import jax.sharding
import numpy as np

from rlhf import checks, loop, networks
from rlhf import workdir as workdir_lib
from rlhf.data import prepare
from rlhf.evals import statistics, units
from rlhf.evals.measures import Measure
from rlhf.evals.preference import endpoint as endpoint_lib
from rlhf.evals.preference import judges as judges_lib
from rlhf.evals.preference import length_control, win_rates
from rlhf.evals.preference import ratings as ratings_lib
from rlhf.evals.reward_models import calibration
from rlhf.inference import completions, prefixes, rewards
from rlhf.networks import Network
from rlhf.tinyworld import labelers as labelers_lib
from rlhf.tinyworld import world as world_lib

COMPLETIONS = "completions.jsonl"
PREFERENCES = "preferences.jsonl"
PAIRS_FILE = "pairs.jsonl"
CACHE = "endpoint.jsonl"
ALL = "all"
LENGTH_MULTIPLE = 64  # of rows of prompts: few shapes to compile
_LABELS = win_rates.METADATA
_COMPARISONS = "config.preference.comparisons"
Progress = Callable[[int, int], None] | None  # called with (done, in all)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
  """What is asked, and who judges.

  Attributes:
    data: prompts, FORMAT:PATH; "labelers" need TinyWorld's prompts_test.jsonl.
    limit: size of a random subset of the prompts, the same for all checkpoints; None takes all.
    baseline: name of the checkpoint that the others are compared with; InstructGPT's is SFT.
    pairs: what is compared besides every checkpoint with the baseline: "A:B" names two of them,
      "all" alone means every pair.
    judges: specs, see the top of this file.
    max_prompt_tokens: of a prompt in its format, without a few-shot prefix; longer ones are left
      out for every checkpoint, and so are those that do not fit behind a prefix.
    max_response_tokens: of a completion.
    temperature: InstructGPT's samples are drawn at 1 (appendix F).
    temperatures: "NAME=TEMPERATURE" for single checkpoints; base models: 0.7 there.
    key: of the sheets that `ratings:` names; empty for key.jsonl in the directory above them.
    comparisons: ranked completions, FORMAT:PATH, on which the accuracy of every `reward:` judge is
      measured; empty for none.
    world: of `labelers`: the seed and the labelers of the run that made the prompts, as
      `labelers.LabelersConfig` has them.
    endpoint: of `endpoint`: see `endpoint.EndpointConfig`.
  """

  data: str
  limit: int | None
  baseline: str
  pairs: Sequence[str]
  judges: Sequence[str]
  max_prompt_tokens: int
  max_response_tokens: int
  temperature: float
  temperatures: Sequence[str]
  key: str
  comparisons: str
  world: Mapping[str, Any]
  endpoint: Mapping[str, Any]

  def __post_init__(self):
    for name in ("world", "endpoint"):  # plain, so that the config can be hashed and written
      object.__setattr__(self, name, dict(getattr(self, name).items()))
    for name in ("judges", "pairs", "temperatures"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    for spec in self.pairs if self.pairs != (ALL,) else ():
      policy, _, other = spec.partition(":")
      if not policy or not other or policy == other:
        raise ValueError(
          f"config.preference.pairs has {spec!r}; name two checkpoints as A:B, or use all alone"
        )
    least = dict(max_prompt_tokens=1, max_response_tokens=1, limit=1, temperature=0)
    checks.at_least("config.preference", self, **least)
    self.temperature_by_name  # pylint: disable=pointless-statement
    self._check_judges()
    try:
      if "labelers" in self.judges:
        labelers_lib.make_labelers(labelers_lib.LabelersConfig(**self.world))
      if "endpoint" in self.judges:
        endpoint_lib.EndpointConfig(**self.endpoint)
    except (ValueError, TypeError) as error:
      raise ValueError(f"config.preference: {error}") from None

  @property
  def temperature_by_name(self) -> dict[str, float]:
    """Of the checkpoints that have one of their own."""
    found = {}
    for spec in self.temperatures:
      name, equals, text = spec.partition("=")
      try:
        found[name] = float(text)
      except ValueError:
        equals = ""
      if not equals or not name or not 0 <= found[name] < float("inf"):
        raise ValueError(
          f"config.preference.temperatures has {spec!r}; write NAME=TEMPERATURE "
          "with a number that is 0 or more, such as base=0.7"
        )
    return found

  def temperature_of(self, name: str) -> float:
    """A checkpoint's own temperature, or everyone's."""
    return self.temperature_by_name.get(name, self.temperature)

  def _check_judges(self) -> None:
    specs = "labelers, endpoint, reward:SOURCE or ratings:FILE"
    if not self.judges:
      raise ValueError(f"config.preference.judges is empty; use {specs}")
    for spec in self.judges:
      if not re.fullmatch(r"labelers|endpoint|(reward|ratings):.+", spec):
        raise ValueError(f"config.preference.judges has {spec!r}; use {specs}")
      if self.judges.count(spec) > 1:
        raise ValueError(f"config.preference.judges has {spec!r} twice; leave one")

  def of(self, prefix: str) -> list[str]:
    """What follows `prefix` in the specs of the judges."""
    return [spec.removeprefix(prefix) for spec in self.judges if spec.startswith(prefix)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
  """What the judges said; `as_dict` can be written as JSON.

  Attributes:
    measures: checkpoint -> its numbers.  A variant is a group of judges, or one reward model.
    matrix: variant -> checkpoint -> other -> interval of the first's win rate, or None.
    length_controlled: the same at equal length, see `length_control`.
    agreement: of people who rated, see `ratings.agreement`; None without them.
    reward_models: name -> {"accuracy", "length_baseline_accuracy", "num_pairs", "calibration"} on
      `comparisons`.
    endpoint: requests and cost, see `Endpoint.summary`; None without an endpoint.
    num_prompts: how many were judged.
    num_left_out: prompts that were too long for a checkpoint.
    simulated: whether simulated labelers judged.
    failed: judge whose verdicts are missing -> why; not part of `as_dict`.
  """

  measures: Mapping[str, Sequence[Measure]]
  matrix: Mapping[str, Mapping[str, Mapping[str, statistics.Interval | None]]]
  length_controlled: Mapping[str, Mapping[str, Mapping[str, statistics.Interval | None]]]
  agreement: Mapping[str, Any] | None = None
  reward_models: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  endpoint: Mapping[str, Any] | None = None
  num_prompts: int
  num_left_out: int = 0
  simulated: bool = False
  failed: Mapping[str, Exception] = dataclasses.field(default_factory=dict)

  def as_dict(self) -> dict[str, Any]:
    found = dataclasses.asdict(dataclasses.replace(self, measures={}, failed={}))
    found["measures"] = {
      name: [measure.as_dict() for measure in measures] for name, measures in self.measures.items()
    }
    del found["failed"]
    return found


# ----------------------------------------------------------------------------- checks


def check(p: PreferenceConfig, names: Sequence[str] | None = None, *, judged: bool = True) -> None:
  """What can be found wrong before a network is loaded.

  Args:
    p: the config.
    names: of the checkpoints, where they are known.
    judged: False leaves out the judges, for sheets that people have yet to fill in.

  Raises:
    ValueError: one sentence: the prompts, a judge's files or key, or a name.
  """
  prompts = select_prompts(p, seed=0)
  paired = [] if names is None else [name for pair in pairs_of(p, names) for name in pair]
  wanted = [("baseline", p.baseline), *(("pairs", name) for name in paired)]
  for field, name in wanted + [("temperatures", name) for name in p.temperature_by_name]:
    if names is not None and name not in names:
      raise ValueError(
        f"config.preference.{field} names {name!r}, which is none of the "
        f"checkpoints {', '.join(names)}"
      )
  if not judged:
    return
  if "labelers" in p.judges and not all("task" in record for record in prompts):
    raise ValueError(
      f"config.preference.judges has labelers, but {p.data} has lines without "
      '"task"; only prompts that TinyWorld made can be judged by its labelers'
    )
  for source in p.of("reward:"):
    find_reward(source)
  if p.of("ratings:"):
    read_ratings(p)
  if "endpoint" in p.judges:
    endpoint_lib.check(endpoint_lib.EndpointConfig(**p.endpoint))
  if p.comparisons:
    units.read_records(p.comparisons, "comparison", _COMPARISONS)
    if not p.of("reward:"):
      raise ValueError(
        "config.preference.comparisons is given, but judges has no reward:SOURCE "
        "whose accuracy could be measured"
      )


def select_prompts(p: PreferenceConfig, *, seed: int) -> list[dict[str, Any]]:
  """The prompts, or a random subset of `limit` of them, in the order of the file."""
  found = units.read_records(p.data, "prompt", "config.preference.data")
  chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[: p.limit])
  return [found[index] for index in chosen]


def pairs_of(p: PreferenceConfig, names: Sequence[str]) -> list[tuple[str, str]]:
  """What is compared besides every checkpoint with the baseline."""
  if p.pairs == (ALL,):
    return list(itertools.combinations([name for name in names if name != p.baseline], 2))
  pairs = [spec.partition(":")[::2] for spec in dict.fromkeys(p.pairs)]
  return [(a, b) for a, b in pairs if b != p.baseline]


def completion_settings(p: PreferenceConfig, name: str) -> dict[str, Any]:
  """What decides a checkpoint's completions, besides its weights, its format and the seed."""
  path = pathlib.Path(p.data.partition(":")[2])
  return dict(
    data=p.data,
    limit=p.limit,
    max_prompt_tokens=p.max_prompt_tokens,
    max_response_tokens=p.max_response_tokens,
    temperature=p.temperature_of(name),
    contents=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
  )


# ----------------------------------------------------------------------------- completions


def complete(
  p: PreferenceConfig,
  network: Network,
  directory,
  *,
  name: str,
  prompt_format: prepare.PromptFormat,
  seed: int,
  batch_size: int,
  prefix: prefixes.Prefix | None = None,
  progress: Progress = None,
) -> list[str | None]:
  """One checkpoint's completions of the prompts, one each.

  Args:
    p: the config.
    network: a policy.
    directory: receives `items.jsonl`: prompt_index, prompt, completion, finished, and tokens, the
      ids of prompt and completion as they were sampled.
    name: of the checkpoint, for its temperature.
    prompt_format: that it was trained with.
    seed: of the subset of prompts and of the samples, the same for all checkpoints.
    batch_size: rows decoded at once; affects speed and memory only.
    prefix: examples before every prompt, which judges do not see.
    progress: called with (completions done, completions in all).

  Returns:
    Per prompt its completion, or None where the prompt is longer than `max_prompt_tokens`, or does
    not fit into the context behind the prefix.

  Raises:
    ValueError: no prompt fits, or prompt and completion exceed the context without any prefix.
  """
  records = select_prompts(p, seed=seed)
  prompts = [record["prompt"] for record in records]

  def num_tokens(texts):
    return np.array([len(ids) for ids in prompt_format.encode_prompts(network.tokenizer, texts)])

  own_P = num_tokens(prompts)
  fits_P = own_P <= p.max_prompt_tokens
  if not fits_P.any():
    raise ValueError(
      f"none of {len(records)} prompts of {p.data} fits into "
      f"config.preference.max_prompt_tokens {p.max_prompt_tokens}; the shortest has "
      f"{own_P.min()} tokens in {name}'s format"
    )
  room = network.cfg.context_length - p.max_response_tokens
  read_P, what = own_P, f"a prompt has {own_P[fits_P].max()} tokens"
  if prefix is not None:
    read_P = num_tokens(prefix.prompts(prompts))
    what = f"every prompt behind its prefix has {read_P[fits_P].min()} tokens or more"
    fits_P &= read_P <= room
  longest = read_P[fits_P].max(initial=0)
  if longest > room or not fits_P.any():
    raise ValueError(
      f"{name}: {what}, and {p.max_response_tokens} of a completion leave "
      f"{max(room, 0)} of the context of {network.cfg.context_length}; lower "
      "config.preference.max_prompt_tokens or max_response_tokens"
    )
  fits = np.flatnonzero(fits_P).tolist()
  width = min(-(-int(longest) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, room)
  config = completions.CompletionConfig(
    max_prompt_tokens=width if prefix is not None else min(width, p.max_prompt_tokens),
    max_response_tokens=p.max_response_tokens,
    temperature=p.temperature_of(name),
    batch_size=batch_size,
    **dataclasses.asdict(prompt_format),
  )
  drawn = prefixes.sample(
    network,
    prefix,
    [prompts[index] for index in fits],
    config,
    loop.step_key(seed, "validate", 1),
    on_batch=None if progress is None else lambda done, _: progress(done, len(fits)),
  )
  lines = [
    dict(prompt_index=index, prompt=prompt, completion=None, finished=None, tokens=None)
    for index, prompt in enumerate(prompts)
  ]
  for index, texts, ends, ids in zip(fits, drawn.texts, drawn.finished, drawn.ids, strict=True):
    lines[index] |= dict(completion=texts[0], finished=ends[0], tokens=np.asarray(ids[0]).tolist())
  workdir_lib.write_jsonl(pathlib.Path(directory) / units.ITEMS, lines)
  return [line["completion"] for line in lines]


def read_completions(directory) -> list[str | None]:
  """What `complete` returned and wrote."""
  lines = workdir_lib.read_jsonl(pathlib.Path(directory) / units.ITEMS)
  return [line["completion"] for line in lines]


def completed_by_all(
  p: PreferenceConfig, completions_by_name: Mapping[str, Sequence[str | None]], *, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
  """(prompts that every checkpoint completed, name -> completions of them).

  Raises:
    ValueError: there is none, or the completions are of other prompts.
  """
  records = select_prompts(p, seed=seed)
  for name, found in completions_by_name.items():
    if len(found) != len(records):
      raise ValueError(
        f"{name} has {len(found)} completions of the {len(records)} prompts of "
        f"{p.data}; sample them again"
      )
  kept = [
    index for index, texts in enumerate(zip(*completions_by_name.values())) if None not in texts
  ]
  if not kept:
    raise ValueError(
      f"no prompt of {p.data} was completed by every checkpoint; raise "
      "config.preference.max_prompt_tokens"
    )
  return (
    [records[index] for index in kept],
    {name: [found[index] for index in kept] for name, found in completions_by_name.items()},
  )


# ----------------------------------------------------------------------------- judges


def read_ratings(p: PreferenceConfig) -> ratings_lib.Ratings:
  """People's ratings of the specs `ratings:FILE`, read with their key."""
  paths = p.of("ratings:")
  key = pathlib.Path(p.key) if p.key else pathlib.Path(paths[0]).parent.parent / ratings_lib.KEY
  if not key.is_file():
    raise ValueError(
      f"config.preference.key: there is no key of the sheets at {key}; name the "
      f"{ratings_lib.KEY} that was written with them"
    )
  try:
    return ratings_lib.read(paths, ratings_lib.read_key(key))
  except ValueError as error:
    raise ValueError(f"config.preference.judges: {error}") from None


def find_reward(source: str, flag: str = "config.preference.judges"):
  """The export of a reward model; checks that its tokenizer can write its format."""
  found = networks.find_export(source, kind="reward", flag=flag)
  prepare.PromptFormat.trained_with(found.config).check(found.tokenizer)
  return found


def load_reward(
  source: str,
  flag: str = "config.preference.judges",
  *,
  mesh: jax.sharding.Mesh | None = None,
) -> tuple[Network, prepare.PromptFormat]:
  """A reward model, and the format that it was trained with; without a mesh, on every device."""
  found = find_reward(source, flag)
  network = networks.load(source, mesh=mesh, kind="reward", flag=flag)
  return network, prepare.PromptFormat.trained_with(found.config)


def reward_accuracy(
  records: Sequence[dict[str, Any]],
  network: Network,
  prompt_format: prepare.PromptFormat,
  *,
  batch_size: int,
  length: int | None = None,
  overlong: str = "drop_completion",
  **settings: Unpack[statistics.Settings],
) -> dict[str, Any]:
  """How a reward model ranks comparisons, and how well its confidence is calibrated.

  Args:
    records: comparisons.
    network, prompt_format: of `load_reward`.
    settings: of the bootstrap.
    batch_size: prompts at once; affects speed and memory only.
    length: tokens that are read; None takes the context.
    overlong: what becomes of longer completions, see `prepare.comparison_rows`; those that are left
      out are left out of the length baseline too.
  """
  rows, counts = prepare.comparison_rows(
    records,
    network.tokenizer,
    prompt_format=prompt_format,
    length=network.cfg.context_length if length is None else length,
    overlong=overlong,
  )
  arrays = rewards.score_comparisons(network.cfg, network.params, rows, batch_size=batch_size)
  return dict(
    accuracy=calibration.accuracy(*arrays, **settings).as_dict(),
    length_baseline_accuracy=calibration.accuracy(
      *calibration.length_arrays(rows.records), **settings
    ).as_dict(),
    num_pairs=calibration.num_untied_pairs(*arrays[1:]),
    counts=dict(counts),  # `dataclasses.asdict` cannot copy a Counter
    calibration=calibration.calibration_curve(*arrays),
  )


def judge_all(
  p: PreferenceConfig,
  completions_by_name: Mapping[str, Sequence[str | None]],
  directory,
  *,
  batch_size: int,
  mesh: jax.sharding.Mesh | None = None,
  progress: Progress = None,
  all_or_none: bool = False,
  **settings: Unpack[statistics.Settings],
) -> Comparison:
  """What every judge says of every checkpoint's completions.

  Args:
    p: the config.
    completions_by_name: checkpoint -> what `complete` returned, in the order wanted.
    directory: receives `completions.jsonl` (line prompt_index: the prompt and all its completions),
      `preferences.jsonl` (against the baseline), `pairs.jsonl` (the other pairs), and keeps
      `endpoint.jsonl`; a `result.json` of other verdicts is removed when these are written.
    batch_size: of reward models; affects speed and memory only.
    mesh: of reward models; None replicates them on every device.
    progress: of an endpoint, called with (questions done, questions in all) of each round.
    all_or_none: a judge that fails leaves the directory's verdicts as they are.
    settings: of the bootstrap; the seed also as in `complete`.

  The others go on when a judge fails; `failed` of what is returned has its error.

  Raises:
    ValueError: there is nothing to judge.
    Exception: of the first judge that failed, where all have or `all_or_none`; the replies of an
      endpoint are kept.
  """
  directory = pathlib.Path(directory)
  names = list(completions_by_name)
  prompts, texts = completed_by_all(p, completions_by_name, seed=settings["seed"])
  compared = units.read_records(p.comparisons, "comparison", _COMPARISONS) if p.comparisons else ()
  pairs = [pair for pair in pairs_of(p, names) if set(pair) <= set(names)]
  rows: list[judges_lib.Row] = []
  pair_rows: list[judges_lib.Row] = []
  reward_models: dict[str, Any] = {}
  failed: dict[str, Exception] = {}
  asker, agreement = None, None

  def ask(judge):
    found = judge(prompts, texts, p.baseline)
    pair_rows.extend(judges_lib.judge_pairs(judge, prompts, texts, pairs))
    rows.extend(found)

  if "labelers" in p.judges:
    with _going_on(failed, "labelers"):
      cfg = labelers_lib.LabelersConfig(**p.world)
      world = world_lib.make_world(cfg.seed)
      ask(judges_lib.simulated_labelers(world, *labelers_lib.make_labelers(cfg)))
  sources = p.of("reward:")
  for number, source in enumerate(sources, start=1):
    name = "reward_model" if len(sources) == 1 else f"reward_model_{number}"
    with _going_on(failed, f"reward:{source}"):
      network, prompt_format = load_reward(source, mesh=mesh)
      accuracy = {}
      if compared:
        accuracy[name] = reward_accuracy(
          compared, network, prompt_format, batch_size=batch_size, **settings
        )
      ask(judges_lib.reward_model(network, prompt_format, name=name, batch_size=batch_size))
      reward_models |= accuracy
  if p.of("ratings:"):
    with _going_on(failed, "ratings"):
      found = read_ratings(p)
      agreed = ratings_lib.agreement(found, **settings)
      ask(judges_lib.human_ratings(found))
      agreement = agreed
  if "endpoint" in p.judges:
    with _going_on(failed, "endpoint"):
      asker = endpoint_lib.Endpoint(
        endpoint_lib.EndpointConfig(**p.endpoint), directory / CACHE, on_answer=progress
      )
      try:
        ask(judges_lib.endpoint(asker))
      finally:
        print(asker.describe(), flush=True)  # what was answered before a failure was paid for too
  if failed and (all_or_none or not rows):
    raise next(iter(failed.values()))
  # Files of an earlier run stay whole until here, and count as unfinished from here on.
  units.begin(directory)
  workdir_lib.write_jsonl(
    directory / COMPLETIONS,
    (
      dict(record, completions={name: texts[name][index] for name in names})
      for index, record in enumerate(prompts)
    ),
  )
  workdir_lib.write_jsonl(directory / PREFERENCES, rows)
  workdir_lib.write_jsonl(directory / PAIRS_FILE, pair_rows)

  num_asked = len(next(iter(completions_by_name.values())))
  return Comparison(
    **summarise({0: rows + pair_rows}, {0: texts}, names, baseline=p.baseline, **settings),
    agreement=agreement,
    reward_models=reward_models,
    endpoint=None if asker is None else asker.summary(),
    num_prompts=len(prompts),
    num_left_out=num_asked - len(prompts),
    simulated="labelers" in p.judges and "labelers" not in failed,
    failed=failed,
  )


@contextlib.contextmanager
def _going_on(failed: dict[str, Exception], judge: str):
  """Keeps an error inside under the judge's name."""
  try:
    yield
  except Exception as error:  # pylint: disable=broad-exception-caught
    failed[judge] = error


def read(directory: pathlib.Path) -> tuple[list[judges_lib.Row], dict[str, list[str]]]:
  """(all rows, checkpoint -> completions) of a `judge_all`.

  Raises:
    ValueError: the directory holds none, or one of an earlier version.
  """
  if not (directory / COMPLETIONS).is_file():
    raise ValueError(
      f"{directory} has no {COMPLETIONS}: nothing was judged there, or by an earlier version; "
      "evaluate again"
    )
  files = (directory / PREFERENCES, directory / PAIRS_FILE)
  rows = [row for file in files for row in win_rates.read_preferences(file)]
  lines = workdir_lib.read_jsonl(directory / COMPLETIONS)
  names = lines[0]["completions"]
  return rows, {name: [line["completions"][name] for line in lines] for name in names}


def summarise(
  rows_by_seed: Mapping[int, Sequence[judges_lib.Row]],
  completions_by_seed: Mapping[int, Mapping[str, Sequence[str]]],
  names: Sequence[str],
  *,
  baseline: str,
  **settings: Unpack[statistics.Settings],
) -> dict[str, Any]:
  """`measures`, `matrix` and `length_controlled` of `Comparison` from the judges' rows.

  Args:
    rows_by_seed: training seed -> rows, including those of `pairs`.
    completions_by_seed: training seed -> checkpoint -> completions by prompt_index.
    names: checkpoints, in the order wanted.
    baseline: of rows that name none.
    settings: of the bootstrap.
  """
  fields = {"likert": "likert", "reward": "score"} | {name: name for name in sorted(_LABELS)}
  measures: dict[str, list[Measure]] = {name: [] for name in names}
  matrix, equal_length = {}, {}
  for variant, (group, own) in by_variant(rows_by_seed).items():
    shared: dict[str, Any] = dict(baseline=baseline, group=group, **settings)
    matrix[variant] = judges_lib.win_rate_matrix(own, names, **shared)
    equal_length[variant] = length_control.length_controlled_win_rates(
      own, completions_by_seed, names, **shared
    )
    against = {run: [row for row in rows if "baseline" not in row] for run, rows in own.items()}
    for name in names:
      found = dict(
        win_rate=matrix[variant][name][baseline],
        length_controlled_win_rate=equal_length[variant][name][baseline],
      )
      for metric, field in fields.items():
        values = win_rates.values_by_seed(against, policy=name, group=group, field=field)
        found[metric] = statistics.bootstrap_over_seeds(values, **settings) if values else None
      measures[name] += [
        Measure(
          task="metadata" if metric in _LABELS else "preference",
          metric=metric,
          interval=interval,
          variant=variant,
          better=_LABELS.get(metric, "higher"),
        )
        for metric, interval in found.items()
        if interval is not None
      ]
  return dict(measures=measures, matrix=matrix, length_controlled=equal_length)


def by_variant(
  rows_by_seed: Mapping[int, Sequence[judges_lib.Row]],
) -> dict[str, tuple[str, dict[int, list[judges_lib.Row]]]]:
  """Variant -> (group, seed -> rows): a group of judges, or each reward model alone, because the
  scores of two reward models have no common scale."""
  found: dict[str, tuple[str, dict[int, list]]] = {}
  for run, rows in rows_by_seed.items():
    for row in rows:
      variant = row["labeler"] if row["group"] == "reward_model" else row["group"]
      found.setdefault(variant, (row["group"], {}))[1].setdefault(run, []).append(row)
  return found
