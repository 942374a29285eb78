"""The report: its schema, its sentences, and a page that needs nothing but itself."""

import copy
import html.parser
import json
import re

import pytest

from rlhf.evals.reward_models import calibration
from rlhf.report import figures
from rlhf.report import pipeline as report_lib

EVIL = "<script>alert('1')</script> & $\\no$"


def cell(mean, half=0.02, n=1200):
  return {"mean": mean, "low": mean - half, "high": mean + half, "n": n}


def interval(mean, low, high):
  return {"mean": mean, "low": low, "high": high, "n": 20}


def groups(training, heldout):
  return {"training_labelers": training, "heldout_labelers": heldout}


def a_report():
  models = ("base", "base_more_pretraining", "ppo_init", "sft", "ppo", "ppo_ptx")
  return {
    "win_rate_vs_sft": {
      "base": groups(cell(0.2), cell(0.21)),
      "ppo": groups(cell(0.62), None),
      "ppo_ptx": groups(cell(0.631), cell(0.609)),
    },
    "reward_model": {"accuracy": 0.72, "accuracy_heldout_labelers": 0.7, "n": 6000},
    "labelers": {"agreement_training": 0.73, "agreement_heldout": None},
    "pretraining_nll": dict(zip(models, (1.65, 1.64, 1.6, 2.3, 2.0, 1.64))),
    "few_shot_tasks": {
      "reverse": dict(zip(models, (0.8, 0.8, 0.8, 0.4, 0.6, 0.75))),
      "next_day": dict(zip(models, (0.5, 0.5, 0.4, 0.4, 0.4, 0.45))),
    },
    "gold_score": {"sft": {"total": 0.5, "true": 0.6}, "ppo_ptx": 0.7},
    "first_minibatch_ratio_max_error": 3e-7,
    "wall_seconds": {"base": 100.5},
    "seed": 7,
  }


def some_data():
  points = [{"step": s, "reward": 0.1 * s, "kl": 0.3 * s, "gold": 0.5} for s in range(5)]
  curve = calibration.calibration_curve(
    [[1.0, 0.0], [0.0, 2.0]], [[1, 2], [1, 2]], [[1, 1], [1, 1]]
  )
  return {
    "title": "A tiny run",
    "report": a_report(),
    "config_summary": {"kl_coef": 0.02},
    "prompt_format": "{prompt}\n\nAnswer:",
    "temperatures": {"evaluation": 0.7},
    "paired_difference": groups(cell(-0.01), None),
    "calibration": curve,
    "curves": {
      "base": [(s, 3 - 0.01 * s, 3 - 0.01 * s if s % 10 == 0 else None) for s in range(101)],
      "sft": [{"epoch": 1, "valid_nll": 1.2, "score": None}],
      "reward": {"ppo": points, "ppo_ptx": points},
    },
    "samples": [
      {
        "prompt": EVIL,
        "completions": {"base": "", "sft": EVIL, "ppo_ptx": "fine"},
        "gold": {"base": -0.125, "sft": None},
      }
    ],
    "notes": ["the note"],
  }


def real_data():
  """What a data set without labelers, gold scores and tasks can give."""
  report = {key: None for key in report_lib.REPORT_SCHEMA}
  report["reward_model"] = {
    "accuracy": 0.642,
    "accuracy_heldout_labelers": None,
    "n": 5120,
    "length_baseline_accuracy": 0.581,
  }
  report["pretraining_nll"] = {
    **a_report()["pretraining_nll"],
    "bigram": 5.1,
    "base_more_pretraining": None,
  }
  reward = {
    "ppo": [
      {"step": 0, "reward": 0.0, "kl": 0.0, "gold": None},
      {"step": 1, "reward": 0.1, "kl": 0.2, "gold": None},
    ]
  }
  return {
    "report": report,
    "curves": {"reward": reward},
    "samples": [{"prompt": "Hi", "completions": {"sft": "Ho"}, "gold": None}],
  }


class Page(html.parser.HTMLParser):
  """Collects what the tests ask about a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.links, self.ids, self.words = [], [], [], ""
    self._open = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name in ("href", "src", "xlink:href", "srcset", "data", "action", "poster"):
        self.links.append(value)
      if name == "id":
        self.ids.append(value)

  def handle_data(self, data):
    self.words += data


@pytest.fixture(scope="module")
def page():
  return report_lib.render_html(some_data())


@pytest.mark.parametrize("data", [some_data, real_data])
def test_page_needs_nothing_from_outside(data):
  text = report_lib.render_html(data())
  parsed = Page(text)
  assert all(link.startswith("#") for link in parsed.links)
  assert not {"script", "link", "img", "iframe", "base"} & set(parsed.tags)
  assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", text))
  assert "@import" not in text


def test_links_and_references_point_into_the_page(page):
  parsed = Page(page)
  assert len(parsed.ids) == len(set(parsed.ids))  # several figures share one page
  targets = {link[1:] for link in parsed.links} | set(re.findall(r"url\(#([^)]*)\)", page))
  assert targets and targets <= set(parsed.ids)


def test_text_of_models_and_people_is_escaped():
  data = some_data()
  data["title"] = data["notes"][0] = EVIL
  data["config_summary"] = {EVIL: EVIL}
  data["prompt_format"] = EVIL
  data["report"]["few_shot_tasks"][EVIL] = {"base": 0.5}
  data["report"]["win_rate_vs_sft"][EVIL] = groups(cell(0.5), None)
  data["curves"]["reward"][EVIL] = data["curves"]["reward"]["ppo"]
  data["samples"][0]["completions"][EVIL] = EVIL
  text = report_lib.render_html(data)
  assert "<script" not in text
  assert "script" not in Page(text).tags
  assert Page(text).words.count(EVIL) >= 10


def test_simulated_labelers_are_in_the_title_line(page):
  for tag in ("title", "h1"):
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page)[1]
    assert found.endswith("(simulated labelers)")
  assert "simulated" not in report_lib.render_html(real_data())


def test_every_section_shows_its_numbers(page):
  words = Page(page).words.replace("\u202f", " ")
  for shown in (
    "63.1 %",
    "61.1 to 65.1 %",
    "seed 7",
    "1,200",
    "−1.0",
    "72.0 %",
    "6,000",
    "0.700",
    "1.640",
    "{prompt}\n\nAnswer:",
    "kl_coef",
    "3.0e-07",
    "100.5",
    "the note",
    "empty completion",
    "fine",
    "−0.12",
  ):
    assert shown in words, shown
  assert page.count("<svg") == 11


def test_missing_parts_are_said_to_be_missing():
  words = Page(report_lib.render_html(real_data())).words
  for said in (
    "no labelers who could compare",
    "There is no gold score",
    "There is no gold curve",
    "There are no few-shot tasks",
    "No pretraining curve",
  ):
    assert said in words
  assert "None" not in words and "nan" not in words
  assert "No samples" not in words


def test_nothing_but_a_report_of_nulls_still_renders():
  empty = {"report": {key: None for key in report_lib.REPORT_SCHEMA}}
  words = Page(report_lib.render_html(empty)).words
  assert "neither labelers to ask nor a reward-model accuracy" in words
  assert "No samples were given" in words and "No reward curves were given" in words


def test_equal_data_give_equal_pages(page):
  assert report_lib.render_html(some_data()) == page


def test_write_report_writes_both_files(tmp_path):
  path = report_lib.write_report(tmp_path / "report", some_data())
  assert path == tmp_path / "report" / "report.html"
  written = json.loads((tmp_path / "report" / "report.json").read_text())
  report_lib.check_report_json(written)
  assert {key: written[key] for key in a_report()} == a_report()
  assert written["paired_difference"]["training_labelers"]["mean"] == -0.01
  assert written["alignment_tax"]["pretraining_nll"]["recovered"] == pytest.approx(0.9)


def test_a_bad_report_writes_nothing(tmp_path):
  data = some_data()
  del data["report"]["labelers"]
  with pytest.raises(ValueError, match="report has no key 'labelers'"):
    report_lib.write_report(tmp_path / "report", data)
  assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
  "keys, value, message",
  [
    (("win_rate_vs_sft", "ppo"), "drop", "report.win_rate_vs_sft has no key 'ppo'"),
    (
      ("win_rate_vs_sft", "ppo_ptx", "training_labelers", "low"),
      "drop",
      "report.win_rate_vs_sft.ppo_ptx.training_labelers has no key 'low'",
    ),
    (("win_rate_vs_sft", "ppo_live"), {}, "ppo_live has no key 'training_labelers'"),
    (("reward_model", "accuracy"), "high", "report.reward_model.accuracy is 'high'; use a number"),
    (("reward_model", "n"), 1.5, "report.reward_model.n is 1.5; use a whole number"),
    (("seed",), True, "report.seed is True; use a whole number"),
    (("pretraining_nll", "ppo"), float("nan"), "report.pretraining_nll.ppo is nan; use a finite"),
    (("few_shot_tasks", "reverse", "base"), "x", "report.few_shot_tasks.reverse.base is 'x'"),
    (("gold_score", "sft"), {"total": "x"}, "report.gold_score.sft.total is 'x'"),
    (("wall_seconds",), 3, "report.wall_seconds is 3; use an object or null"),
  ],
)
def test_schema_names_what_is_wrong(keys, value, message):
  report = a_report()
  report_lib.check_report_json(report)
  place = report
  for key in keys[:-1]:
    place = place[key]
  if value == "drop":
    del place[keys[-1]]
  else:
    place[keys[-1]] = value
  with pytest.raises(ValueError) as error:
    report_lib.check_report_json(report)
  assert message in str(error.value)


def test_schema_allows_null_everywhere_and_extra_keys():
  report = a_report()
  for key in report:
    report_lib.check_report_json({**report, key: None})
  report_lib.check_report_json({**report, "likert": "anything"})


def with_win_rates(training, heldout):
  report = a_report()
  report["win_rate_vs_sft"]["ppo_ptx"] = groups(training, heldout)
  return report


@pytest.mark.parametrize(
  "training, heldout, expected",
  [
    (cell(0.6), cell(0.6), "PPO-ptx is preferred to SFT by training and held-out labelers."),
    (cell(0.4), cell(0.4), "SFT is preferred to PPO-ptx by training and held-out labelers."),
    (
      cell(0.51),
      cell(0.49),
      "Training and held-out labelers show no clear preference between PPO-ptx and SFT.",
    ),
    (
      cell(0.6),
      cell(0.51),
      "Is PPO-ptx preferred to SFT? Training labelers: yes; "
      "held-out labelers: no clear preference.",
    ),
    (cell(0.6), None, "PPO-ptx is preferred to SFT by training labelers."),
    (None, None, "PPO is preferred to SFT by training labelers."),
  ],
)
def test_headline_follows_the_intervals(training, heldout, expected):
  assert report_lib.sentences(with_win_rates(training, heldout))[0] == expected


def test_verdict_needs_the_whole_interval():
  assert report_lib.verdict({"low": 0.51, "high": 0.6}) == 1
  assert report_lib.verdict({"low": 0.5, "high": 0.6}) == 0
  assert report_lib.verdict({"low": 0.4, "high": 0.5}) == 0
  assert report_lib.verdict({"low": 0.4, "high": 0.49}) == -1


def findings(report, paired=None):
  return [sentence.replace("\u202f", " ") for sentence in report_lib.sentences(report, paired)[1:]]


def test_findings_say_whether_the_interval_includes_half():
  first = findings(with_win_rates(cell(0.6), cell(0.51)))[0]
  assert first == (
    "Training labelers prefer PPO-ptx to SFT in 60.0 % of comparisons (95 % interval 58.0 to "
    "62.0 %, above 50 %); held-out labelers prefer PPO-ptx to SFT in 51.0 % of comparisons "
    "(95 % interval 49.0 to 53.0 %, which includes 50 %)."
  )


def test_findings_about_the_tax():
  said = findings(a_report(), groups(cell(-0.01), None))
  assert (
    "PPO-ptx minus PPO, paired over 1,200 prompts: −1.0 points with training labelers (−3.0 "
    "to +1.0)."
  ) in said
  assert (
    "PPO raised the loss on pretraining text from 1.600 to 2.000 nats per token; PPO-ptx "
    "ends at 1.640, which recovers 90 % of the rise; the base model given the same extra "
    "pretraining tokens reaches 1.640."
  ) in said
  # Means of the tasks: start 0.6, PPO 0.5, PPO-ptx 0.6.
  assert (
    "Few-shot accuracy, averaged over the tasks, fell with PPO from 60.0 % at the start to "
    "50.0 %; with PPO-ptx it is 60.0 %, which recovers 100 %."
  ) in said


@pytest.mark.parametrize("ppo_nll", [1.6, 1.5])
def test_no_tax_is_said_and_not_divided_by(ppo_nll):
  report = a_report()
  report["pretraining_nll"]["ppo"] = ppo_nll
  assert report_lib.alignment_tax(report)["pretraining_nll"]["recovered"] is None
  assert any("PPO did not raise the loss on pretraining text" in s for s in findings(report))
  assert "PPO lost nothing" in report_lib.render_html({"report": report})


def test_a_rise_that_may_be_none_is_not_called_a_loss():
  report = a_report()
  report["pretraining_nll"]["ppo"] = 1.607
  report["pretraining_nll_rise"] = dict(
    ppo=interval(0.007, -0.002, 0.016), ppo_ptx=interval(0.04, 0.03, 0.05)
  )
  assert report_lib.alignment_tax(report)["pretraining_nll"]["recovered"] is None
  assert (
    "The rise of the loss on pretraining text from 1.600 to 1.607 nats per token with PPO "
    "is not distinguishable from zero (95 % interval \u22120.002 to 0.016), so there is no alignment "
    "tax on it to recover; with PPO-ptx the loss changes by 0.040 (0.030 to 0.050)."
  ) in findings(report)
  html = report_lib.render_html({"report": report})
  assert "no clear loss" in html and "recovered by PPO-ptx" not in html
  report["pretraining_nll_rise"]["ppo"]["low"] = 0.001
  assert report_lib.alignment_tax(report)["pretraining_nll"]["recovered"] is not None


def test_far_more_than_a_small_loss_is_not_given_back_in_percent():
  report = a_report()
  report["pretraining_nll"] |= dict(ppo=1.604, ppo_ptx=1.5)
  assert any("which recovers > 200 % of the rise" in said for said in findings(report))
  assert report_lib.recovered_text(1.96) == "196\u202f%"
  assert report_lib.recovered_text(-0.25) == "\u221225\u202f%"


def test_rewards_stand_beside_those_of_sft():
  report = a_report()
  report["reward"] = dict(sft=interval(1.0, 0.8, 1.2), ppo=interval(1.5, 1.3, 1.75))
  report["reward_minus_sft"] = dict(ppo=interval(0.5, -0.125, 0.875))
  html = " ".join(report_lib.render_html({"report": report}).split())
  assert '1.50</td><td class="i">1.30 to 1.75</td>' in html
  assert '0.50</td><td class="i">\u22120.12 to 0.88</td>' in html
  assert "minus SFT" not in report_lib.render_html({"report": a_report()})


def test_the_reward_has_a_band_where_its_interval_is_known():
  points = [dict(step=step, reward=0.1 * step, kl=0.0) for step in range(3)]
  plain = figures.reward_curve({"ppo": points}, "reward", "score")
  known = [
    dict(point, reward_low=point["reward"] - 1, reward_high=point["reward"] + 1) for point in points
  ]
  banded = figures.reward_curve({"ppo": known}, "reward", "score")
  assert "PolyCollection" in banded and "PolyCollection" not in plain


def test_a_fall_of_less_than_a_point_is_not_called_a_loss():
  report = a_report()
  report["few_shot_tasks"] = {"reverse": {"ppo_init": 0.6, "ppo": 0.595, "ppo_ptx": 0.605}}
  assert (
    "Few-shot accuracy, averaged over the tasks, fell by no more than a point with PPO "
    "(60.0 % at the start to 59.5 %), so there is nothing to recover; with PPO-ptx it is "
    "60.5 %."
  ) in findings(report)
  assert report_lib.alignment_tax(report)["few_shot_tasks"]["reverse"]["recovered"] is None
  assert "no loss above a point" in report_lib.render_html({"report": report})


def test_alignment_tax_by_hand():
  tax = report_lib.alignment_tax(a_report())
  assert tax["pretraining_nll"]["recovered"] == pytest.approx(1 - 0.04 / 0.4)
  assert tax["few_shot_tasks"]["reverse"]["recovered"] == pytest.approx(1 - 0.05 / 0.2)
  assert tax["few_shot_tasks"]["next_day"]["recovered"] is None
  assert tax["few_shot_mean"]["recovered"] == pytest.approx(1.0)


def test_real_data_headline_and_bigram():
  report = real_data()["report"]
  assert report_lib.sentences(report)[0].replace("\u202f", " ") == (
    "The reward model ranks 64.2 % of held-out pairs as the labelers did; the longer-completion rule "
    "gets 58.1 %."
  )
  assert any("bigram counts reach 5.100" in sentence for sentence in findings(report))


def test_plateau_reads_the_last_quarter():
  points = [(s, 0.0, 2.0 - 0.01 * s) for s in range(0, 101, 5)]
  assert report_lib.plateau(points).replace("\u202f", " ") == (
    "From step 75 to 100 the held-out loss fell by 0.250 nats per token (20.0 %)."
  )
  assert report_lib.plateau([(0, 1.0, None)]) is None


def test_input_is_not_changed():
  data = some_data()
  before = copy.deepcopy(data)
  report_lib.render_html(data)
  assert data == before
