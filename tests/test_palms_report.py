"""The page of a PALMS run: toxicity and capability over items and seeds, and what it says."""

import itertools

import numpy as np
import pytest

from rlhf import workdir as workdir_lib
from rlhf.palms import statistics, tinyworld
from rlhf.report import palms
from rlhf.tinyworld import world as world_lib

SETTINGS = dict(num_resamples=4000, seed=0, confidence=0.95)
BASE, TARGETED = np.array([0.4, 0.5, 0.9, 0.2, 0.6]), np.array([0.1, 0.3, 0.2, 0.2, 0.5])


def models(num_base: int, num_targeted: int) -> dict:
  """Every seed says the same of five probes."""
  return {
    (kind, 1000, seed): mean
    for kind, mean, count in (("base", BASE, num_base), ("targeted", TARGETED, num_targeted))
    for seed in range(count)
  }


def only(found: dict) -> dict:
  (difference,) = found["differences"]
  assert (difference["first"], difference["second"]) == ("targeted", "base")
  return difference


def test_equal_seeds_say_nothing_new_of_other_probes():
  one, three, beside = (
    only(palms.compare(models(*counts), crossed=True, **SETTINGS))
    for counts in ((1, 1), (3, 3), (1, 3))
  )
  for found in (one, three, beside):
    assert found["mean"] == pytest.approx(np.mean(TARGETED - BASE)) and found["n"] == 5
    half = (found["high"] - found["low"]) / 2
    assert half == pytest.approx(1.96 * np.std(TARGETED - BASE, ddof=1) / np.sqrt(5), rel=0.1)
  means = palms.compare(models(3, 3), crossed=True, **SETTINGS)["means"]
  assert [mean["mean"] for mean in means] == pytest.approx([BASE.mean(), TARGETED.mean()])
  half = (means[0]["high"] - means[0]["low"]) / 2
  assert half == pytest.approx(1.96 * BASE.std(ddof=1) / np.sqrt(5), rel=0.1)


def test_items_of_a_world_of_its_own_belong_to_their_seed():
  """Two seeds are drawn of three equal ones, each with items of its own: ten items vary."""
  found = only(palms.compare(models(3, 3), crossed=False, **SETTINGS))
  assert found["mean"] == pytest.approx(np.mean(TARGETED - BASE)) and found["n"] == 15
  half = (found["high"] - found["low"]) / 2
  assert half == pytest.approx(1.96 * np.std(TARGETED - BASE, ddof=1) / np.sqrt(10), rel=0.1)


def test_seeds_with_items_of_their_own_are_drawn():
  """Items do not vary within a seed: all the width is the seeds', of which two are drawn."""
  values = {("base", 1000, seed): [0.0] * 5 for seed in range(3)} | {
    ("targeted", 1000, seed): [float(seed)] * 5 for seed in range(3)
  }
  found = only(palms.compare(values, crossed=False, **SETTINGS))
  assert (found["mean"], found["low"], found["high"]) == (1.0, 0.0, 2.0)
  mean = palms.compare(values, crossed=False, **SETTINGS)["means"][1]
  assert (mean["mean"], mean["low"], mean["high"]) == (1.0, 0.0, 2.0)
  with pytest.raises(ValueError, match=r"base has the seeds \[0, 1\], the other \[0, 1, 2\]"):
    palms.compare(
      {key: rows for key, rows in values.items() if key != ("base", 1000, 2)},
      crossed=False,
      **SETTINGS,
    )


def test_the_smallest_size_comes_first():
  rows = [0.1, 0.3]
  found = palms.compare(
    {(kind, size, 0): rows for size in (1000, 50, 200) for kind in ("targeted", "base")},
    crossed=True,
    **SETTINGS,
  )
  assert [(mean["size"], mean["kind"]) for mean in found["means"]] == [
    (size, kind) for size in (50, 200, 1000) for kind in ("base", "targeted")
  ]
  assert [difference["size"] for difference in found["differences"]] == [50, 200, 1000]


def test_seeds_that_do_not_go_together_are_refused():
  with pytest.raises(
    ValueError, match="has the seeds .* give the same seeds, or one model for all"
  ):
    palms.compare(models(2, 3), crossed=True, **SETTINGS)
  with pytest.raises(ValueError, match="the seeds 0, 1 have 1, 2 items"):
    statistics.crossed_interval({0: np.ones(1), 1: np.ones(2)}, **SETTINGS)
  with pytest.raises(ValueError, match="seed 0 has 1 items of the first and 2 of the second"):
    statistics.paired({0: np.ones(1)}, {0: np.ones(2)})


# ----------------------------------------------------------------------------- the page


PAGE = ("analysis", "lines", "values", "p", "capability_lead")  # of the page, not of palms.json


def write(directory, found: dict) -> str:
  """The text of the page."""
  data = {name: value for name, value in found.items() if name not in PAGE}
  page = palms.write(directory, data, **{name: found[name] for name in PAGE})
  return page.read_text(encoding="utf-8")


def contents(judge=None, num_probes=1, **changes) -> dict:
  """What `report.write` takes: two sizes, targeted better at the larger one alone."""
  values = tinyworld.value_set(tinyworld.SetConfig(num_probes=num_probes), world_lib.make_world(0))
  rng, rows, lines = np.random.default_rng(0), [], []
  for size, effect in ((1000, 0.0), (200_000, 1.5)):
    for kind, seed in itertools.product(statistics.KINDS, range(2)):
      name = f"{kind}@{size}, seed {seed}"
      for number, probe in enumerate(values.probes):
        line = dict(
          model=name,
          kind=kind,
          size=size,
          seed=seed,
          category=probe.category,
          probe=number,
          sample=0,
        )
        lines.append(
          dict(line, prompt=probe.prompt, completion=f"said {kind}", finished=kind != "control")
        )
        rows.append(
          dict(
            line, rater="r", rating=float(2 + effect * (kind == "targeted") + 0.1 * rng.normal())
          )
        )
  p = statistics.StatisticsConfig(num_resamples=200, num_flips=200)

  def compared(lower: float):
    return palms.compare(
      {
        (kind, size, seed): [0.5 - lower * (kind == "targeted")] * 4
        for size in (1000, 200_000)
        for kind in statistics.KINDS
        for seed in range(2)
      },
      crossed=True,
      **SETTINGS,
    )

  group = dict(
    axis="town",
    group="velda",
    num_texts=40,
    skewed=[],
    skewed_sentiment=None,
    sentiment=dict(mean=12.5, low=-3.0, high=28.0, n=40),
  )
  analysis, toxic = statistics.analyse(rows, p), compared(0.2)
  tasks = {"recall": compared(0.1), "successor": compared(0.0)}
  return (
    dict(
      title="A title",
      values=values,
      lines=palms.with_ratings(lines, rows[:-1]),
      rater="two people",
      analysis=analysis
      | dict(claims=[*analysis["claims"], *palms.claims(toxic, tasks, margin=2.0)]),
      judge=judge,
      own_rater=None,
      p=p,
      toxicity=toxic,
      capability=tasks,
      capability_lead="Of items.",
      cooccurrence={"base": [group]},
      settings={"seeds": "0, 1"},
    )
    | changes
  )


def test_the_page_says_what_was_found_and_what_not(tmp_path):
  html = write(tmp_path, contents())
  found = workdir_lib.read_json(tmp_path / "palms.json")
  claims = {claim["claim"]: claim for claim in found["analysis"]["claims"]}
  assert [claim["held"] for claim in claims.values()] == [
    False,
    False,
    True,
    False,
    False,
    True,
    True,
    True,
    False,
  ]
  assert "<h1>4 of 9 findings of the paper are reproduced, as rated by two people</h1>" in html
  assert claims["values-targeted completions are less toxic than those of base, at every size"][
    "evidence"
  ].startswith("-0.200 (-0.200 to -0.200) at 200k; the interval is below 0 at 2 of 2")
  assert claims["values-targeted fine-tuning costs no more than 2 points of capability"][
    "evidence"
  ] == (
    "a loss of more than 2 is ruled out in 0 of 4 comparisons with base; a loss of any size is "
    "shown in 2 (recall at 1.0k -10.0, recall at 200k -10.0); the largest loss that 4 items leave "
    "open is recall at 1.0k -75.0"
  )
  text = " ".join(html.split())
  assert "5 matches the position best, by two people" in text
  assert "95 % intervals from resampling the 8 probes and 2 seeds" in text
  assert "base 0.0 %, values-targeted 0.0 %, control 100.0 %" in text.replace("\u202f", " ")
  lines = contents()["lines"]
  ends = palms.by_kind(lines)["by_end"]
  assert ends["control"]["ended"] is None and ends["base"]["cut"] is None
  assert ends["base"]["ended"] == pytest.approx(
    np.mean([rating for line in lines if line["kind"] == "base" for rating in line["ratings"]])
  )
  assert f"base {ends['base']['ended']:.2f}, –; values-targeted" in text
  assert "-3.0 to 28.0 (40)" in text.replace("\u2212", "-")
  assert (
    "The rater is a network" not in html and "[–] said control [cut]" in html
  )  # one was not rated
  assert html.index("200k parameters</h2>") < html.index("1.0k parameters</summary>")


def test_a_rater_at_chance_is_named_in_the_first_sentence(tmp_path):
  judge = dict(
    num=52, preferred=dict(mean=0.55, low=0.42, high=0.68, n=52), written=3.1, swapped=3.0
  )
  html = write(tmp_path, contents(judge))
  assert "rated by two people, which was not shown to prefer written completions" in html
  assert "This is a low bar" in html
  judge["preferred"]["low"] = 0.51
  html = write(tmp_path, contents(judge))
  assert "reproduced, as rated by two people</h1>" in html


EVEN, LESS = [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
  "base, targeted, held, evidence",
  [
    (
      EVEN,
      LESS,
      False,
      "ruled out in 0 of 1 comparisons with base; a loss of any size is shown in "
      "none; the largest loss that 3 items leave open is sst at 100 -",
    ),
    # On three items both were right; of others three in three may be lost.
    (
      [1.0] * 3,
      [1.0] * 3,
      False,
      "shown in none; the largest loss that 3 items leave open is sst at 100 -100.0",
    ),
    ([1.0] * 150, [1.0] * 150, True, "ruled out in 1 of 1 comparisons with base"),
    (EVEN * 10_000, LESS * 10_000, True, "a loss of any size is shown in none"),
  ],
)
def test_few_items_do_not_show_that_nothing_is_lost(base, targeted, held, evidence):
  same = {("base", 100, 0): base, ("targeted", 100, 0): targeted}
  capability = {"sst": palms.compare(same, crossed=True, **SETTINGS | {"num_resamples": 300})}
  (claim,) = palms.claims(dict(differences=[]), capability, margin=2.0)
  assert claim["held"] == held and evidence in claim["evidence"]


def test_the_page_says_what_was_not_rated_and_how_raters_agree(tmp_path):
  made = contents(num_probes=2, own_rater=dict(rater="a network, x", correlation=0.314, num=96))
  rows = [
    dict(line, rater=rater, rating=min(rating + more, 5))
    for rater, more in (("r", 0), ("s", 0.5))
    for line in made["lines"]
    for rating in line["ratings"]
    if line["kind"] != "control" or line["probe"] % 4
  ]
  analysis = statistics.analyse(rows, made["p"])
  lines = palms.with_ratings(made["lines"], rows)
  made |= dict(lines=lines, analysis=analysis)
  html = " ".join(write(tmp_path, made).split()).replace("\u202f", " ")
  assert "base 0.0 %, values-targeted 0.0 %, control 26.6 %. Their ratings are unknown" in html
  assert (
    "Left out: probe 0 (violence) has no rating of control of size 1000, seed 0"
    " and 3 more; probe 4" in html
  )
  assert f"alpha {analysis['raters']['alpha']:.2f} over {len(rows) // 2} completions" in html
  assert (
    "own rater, a network, x: its ratings and the means of these have Spearman's correlation "
    "0.31 over 96 completions" in html
  )
