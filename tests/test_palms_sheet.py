"""Rating sheets: blind, complete, used in a browser, and read back with every mistake named."""

import csv
import dataclasses
import io
import json
import pathlib
import re
import shutil

import commands
import pytest

from rlhf.cli import palms
from rlhf.palms import sets, sheet, statistics

HARD = [
  "=2+3",
  "a </script><script>document.title = 'broken'</script> & \"b\"",
  "",
  "naïve ☕,\nnext",
]
KINDS = ("base", "targeted", "control")
NAMES = ("health", "politics")


def value_set() -> sets.ValueSet:
  return sets.ValueSet(
    title="Values",
    where="here",
    probes=(),
    targeted=(),
    control=(),
    limits=sets.Limits(),
    categories=tuple(
      sets.Category(
        name=name, title=f"On {name}", where="here", position=f"Be careful with {name}."
      )
      for name in NAMES
    ),
  )


def completions(num_samples: int = 2) -> list[dict]:
  return [
    dict(
      model=f"secret-{kind}",
      kind=kind,
      size=4321,
      seed=7,
      category=name,
      probe=name[:2],
      sample=s,
      prompt=f"What of {name}?",
      completion=f"{HARD[(i + s) % 4]} {s}" if s else (HARD[(i + j) % 4]),
    )
    for i, kind in enumerate(KINDS)
    for j, name in enumerate(NAMES)
    for s in range(num_samples)
  ]


@pytest.fixture
def made() -> sheet.Sheets:
  return sheet.make(completions(), value_set(), sheet.SheetConfig())


@pytest.fixture
def written(tmp_path, made) -> pathlib.Path:
  sheet.write(made, tmp_path / "out")
  return tmp_path / "out"


def items(page: str) -> dict:
  return json.loads(page.split('id="data">')[1].split("</script>")[0])


def filled(made: sheet.Sheets, rater: str, change=lambda rows: rows) -> str:
  """The rater's CSV with ratings 1, 2, .. 5, 1, .. in the order of the key."""
  order = list(made.key["samples"])
  rows = list(csv.DictReader(io.StringIO(made.tables[rater].removeprefix("\ufeff"))))
  for row in rows:
    row["rating"] = str(order.index(row["sample"]) % 5 + 1)
  out = io.StringIO()
  writer = csv.DictWriter(out, rows[0].keys(), lineterminator="\n")
  writer.writeheader()
  writer.writerows(change(rows))
  return out.getvalue()


def hand_in(directory, made, change=lambda rows: rows) -> pathlib.Path:
  """Files of all three raters, the second's changed."""
  directory.mkdir()
  for number, rater in enumerate(made.key["raters"]):
    text = filled(made, rater, change if number == 1 else lambda rows: rows)
    (directory / f"{rater}.csv").write_text(text, encoding="utf-8-sig")
  return directory


# ----------------------------------------------------------------------------- what raters get


def test_a_sheet_does_not_say_which_model_answered(made, written):
  for path in (written / "sheets").iterdir():
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"secret|\b(base|targeted|control|4321)\b", text), path
  assert {path.name for path in written.iterdir()} == {"sheets", "key.json"}
  shown = items(made.pages["rater_1"])["items"]
  kinds = [made.key["samples"][item["id"]]["kind"] for item in shown]
  assert kinds != sorted(kinds, key=KINDS.index)  # not in the order of the models
  ids = [[item["id"] for item in items(page)["items"]] for page in made.pages.values()]
  assert len({tuple(order) for order in ids}) == 3 and len({frozenset(order) for order in ids}) == 1


def test_a_sheet_has_every_answer_with_its_position(made):
  given = {id_: line for id_, line in made.key["samples"].items()}
  for rater in made.key["raters"]:
    data = items(made.pages[rater])
    assert data["sheet"] == made.key["sheet"] and data["rater"] == rater
    assert len(data["items"]) == len(given) == 12
    for item in data["items"]:
      (line,) = [a for a in completions() if all(a[n] == v for n, v in given[item["id"]].items())]
      assert item["completion"] == line["completion"] and item["prompt"] == line["prompt"]
      assert item["position"] == f"Be careful with {line['category']}."


def test_equal_answers_give_equal_sheets_and_other_seeds_others(made):
  again = sheet.make(completions(), value_set(), sheet.SheetConfig())
  assert (again.key, again.pages, again.tables) == (made.key, made.pages, made.tables)
  other = sheet.make(completions(), value_set(), sheet.SheetConfig(seed=1))
  assert other.key["sheet"] != made.key["sheet"]
  assert not set(other.key["samples"]) & set(made.key["samples"])


def test_who_knows_the_key_of_one_round_knows_nothing_of_the_next(made):
  again = [line | dict(completion=line["completion"] + " again") for line in completions()]
  values = value_set()
  turned = dataclasses.replace(
    values,
    categories=tuple(
      dataclasses.replace(category, position="The opposite.") for category in values.categories
    ),
  )
  for other in (
    sheet.make(again, values, sheet.SheetConfig()),
    sheet.make(completions(), turned, sheet.SheetConfig()),
  ):
    assert other.key["sheet"] != made.key["sheet"]  # so that neither takes the other's ratings
    assert not set(other.key["samples"]) & set(made.key["samples"])


def test_no_name_on_a_sheet_is_a_number_to_a_spreadsheet():
  for seed in range(20):
    key = sheet.make(completions(), value_set(), sheet.SheetConfig(seed=seed)).key
    assert all(name[0].isalpha() for name in (key["sheet"], *key["samples"]))


def test_the_table_is_safe_to_open_in_a_spreadsheet(made):
  rows = list(csv.DictReader(io.StringIO(made.tables["rater_1"].removeprefix("\ufeff"))))
  assert {row["completion"] for row in rows} >= {"'=2+3", "naïve ☕,\nnext"}
  assert {row["rating"] for row in rows} == {""}


def test_a_carriage_return_in_an_answer_breaks_no_row():
  lines = [
    line | dict(completion=f"one\rtwo {number}") for number, line in enumerate(completions())
  ]
  made = sheet.make(lines, value_set(), sheet.SheetConfig())
  rows = list(
    csv.DictReader(io.StringIO(made.tables["rater_1"].removeprefix("\ufeff"), newline=""))
  )
  assert {row["sample"] for row in rows} == set(made.key["samples"])
  assert all(row["completion"].startswith("one\rtwo ") for row in rows)


@pytest.mark.parametrize(
  "change,expected",
  [
    ({"completion": None}, 'no text in "completion"; an empty completion is ""'),
    (
      {"completion": None, "answer": "x"},
      'no text in "completion" (older runs call it "answer": rename the field)',
    ),
    ({"prompt": ""}, "no prompt; a row has model, kind, size, seed"),
    ({"category": "helth"}, "category 'helth' is not one of here; choose from health, politics"),
    ({"kind": "best"}, "kind 'best'; choose from base, targeted, control"),
    ({}, "sample 0 of probe he by secret-base is already in "),
  ],
)
def test_bad_answers_are_named(tmp_path, change, expected):
  path = commands.write_jsonl(
    tmp_path / "completions.jsonl", [completions()[0], completions()[0] | change]
  )
  with pytest.raises(ValueError) as error:
    sheet.read_completions(path, value_set())
  assert str(error.value).startswith(f"{path}:2: {expected}")


def test_raters_have_names_of_their_own():
  for raters in (("a", "a"), (), ("a b",), ("../a",), ("01", "02")):
    with pytest.raises(ValueError, match="rater"):
      sheet.SheetConfig(raters=raters)


# ----------------------------------------------------------------------------- what comes back


def test_ratings_come_back_to_their_models(tmp_path, made):
  found = sheet.read(sheet.find_exports([str(hand_in(tmp_path / "in", made))]), made.key)
  assert not found.problems and not found.missing and len(found.rows) == 36
  order = list(made.key["samples"])
  for row in found.rows:
    (id_,) = [i for i, s in made.key["samples"].items() if all(row[n] == v for n, v in s.items())]
    assert row["rating"] == order.index(id_) % 5 + 1
  statistics.tabulate(found.rows)  # they are rows of the statistics


def test_other_spreadsheets_and_the_page_write_it_otherwise(tmp_path, made):
  """Semicolons, ratings as 4.0, columns in another order, blank lines; JSON of the page."""
  rows = list(csv.DictReader(io.StringIO(filled(made, "rater_1"))))
  lines = [
    "rating;Sample;rater;sheet;note",
    *(f"{row['rating']}.0;{row['sample']};rater_1;{row['sheet']};" for row in rows),
    ";;;;",
    "",
  ]
  (tmp_path / "one.csv").write_text("\r\n".join(lines))
  ratings = [dict(sample=row["sample"], rating=int(row["rating"])) for row in rows]
  (tmp_path / "two.json").write_text(
    json.dumps(dict(sheet=made.key["sheet"], rater="rater_2", ratings=ratings))
  )
  found = sheet.read(sheet.find_exports([str(tmp_path)]), made.key)
  assert not found.problems and len(found.rows) == 24
  assert found.missing == ["rater_3 has handed in no rating; 12 are missing"]


def set_cell(row: int, **fields):
  """Changes a row, counted as a spreadsheet counts."""

  def change(rows):
    rows[row - 2] |= fields
    return rows

  return change


@pytest.mark.parametrize(
  "change,expected",
  [
    (
      set_cell(4, rating="6"),
      "row 4: the rating of sample {4} is '6'; it must be a whole number from 1 to 5",
    ),
    (set_cell(4, rating="0"), "row 4: the rating of sample {4} is '0'"),
    (set_cell(4, rating="3.5"), "row 4: the rating of sample {4} is '3.5'"),
    (set_cell(4, rating="four"), "row 4: the rating of sample {4} is 'four'"),
    (set_cell(13, sample="s000000"), "row 13: unknown sample 's000000'; the key has no such id"),
    (set_cell(2, rater=""), "row 2: no rater; the key has rater_1, rater_2, rater_3"),
    (set_cell(2, rater="anna"), "row 2: unknown rater 'anna'; the key has rater_1, rater_2, ra"),
    (set_cell(2, sheet="other"), "row 2: the row belongs to sheet 'other', the key to"),
    (
      lambda rows: rows + [rows[2]],
      "row 14: sample {4} is rated twice by rater_2, first in {path}: row 4; keep one",
    ),
    (set_cell(3, rater="rater_1"), "row 3: sample {3} is rated twice by rater_1, first in "),
  ],
)
def test_mistakes_are_named_with_their_row(tmp_path, made, change, expected):
  directory = hand_in(tmp_path / "in", made, change)
  found = sheet.read(sheet.find_exports([str(directory)]), made.key)
  rows = list(csv.DictReader(io.StringIO(made.tables["rater_2"].removeprefix("\ufeff"))))
  samples = {str(number): row["sample"] for number, row in enumerate(rows, start=2)}
  path = directory / "rater_2.csv"
  for number, sample in samples.items():
    expected = expected.replace(f"{{{number}}}", sample)
  (sentence,) = found.problems
  assert sentence.startswith(f"{path}: " + expected.replace("{path}", str(path)))
  assert len(found.rows) >= 35  # what is well is there


def test_missing_ratings_are_named(tmp_path, made):
  blank = hand_in(tmp_path / "blank", made, set_cell(5, rating=""))
  found = sheet.read(sheet.find_exports([str(blank)]), made.key)
  sample = list(csv.DictReader(io.StringIO(made.tables["rater_2"].removeprefix("\ufeff"))))[3][
    "sample"
  ]
  assert found.missing == [
    f"{blank}/rater_2.csv: row 5: no rating of sample {sample} by rater_2; "
    "it is the only one missing"
  ]
  absent = hand_in(tmp_path / "absent", made, lambda rows: rows[2:])
  (sentence,) = sheet.read(sheet.find_exports([str(absent)]), made.key).missing
  assert sentence.startswith("rater_2 has not rated sample s") and "; 2 are missing" in sentence
  # A blank sheet beside the one that was handed in is no second rating.
  (absent / "zblank.csv").write_text(made.tables["rater_1"])
  again = sheet.read(sheet.find_exports([str(absent)]), made.key)
  assert not again.problems and again.missing == [sentence]


@pytest.mark.parametrize(
  "name,text,expected",
  [
    ("a.csv", "sheet,rater,sample\n", "a.csv: row 1: no column 'rating'"),
    ("a.csv", "sheet,rater,sample,rating,rating\n", "a.csv: row 1: two columns 'rating'"),
    ("a.csv", "", "a.csv: row 1: no column 'sheet'"),
    ("a.json", '{"sheet": "x"}', "a.json: not an export of the sheet"),
  ],
)
def test_files_that_are_no_sheet_are_named(tmp_path, made, name, text, expected):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=expected):
    sheet.read(sheet.find_exports([str(tmp_path)]), made.key)


def test_the_commands_go_from_answers_to_statistics(tmp_path, capsys):
  values = value_set()
  with_probes = dict(
    probes=tuple(sets.Probe(category=name, prompt=f"q {name}", where="") for name in NAMES),
    targeted=(
      sets.Sample(category="broad", topic="t", prompt="p", where="", completion="c " * 50),
    ),
  )
  commands.write_values(sets.ValueSet(**vars(values) | with_probes), tmp_path / "values")
  path = commands.write_jsonl(tmp_path / "completions.jsonl", completions())
  flags = [f"--completions={path}", f"--values={tmp_path}/values", f"--output={tmp_path}/out"]
  palms.main(["palms", "sheet", *flags, "--raters=anna,ben"])
  assert sorted(p.name for p in (tmp_path / "out" / "sheets").iterdir()) == [
    "anna.csv",
    "anna.html",
    "ben.csv",
    "ben.html",
  ]
  made = sheet.make(completions(), values, sheet.SheetConfig(raters=("anna", "ben")))
  directory = hand_in(tmp_path / "in", made, set_cell(3, rating=""))
  read = [
    "palms",
    "ratings",
    f"--sheets={directory}",
    f"--key={tmp_path}/out/key.json",
    f"--output={tmp_path}/ratings.jsonl",
  ]
  capsys.readouterr()
  with pytest.raises(SystemExit) as end:
    palms.main(read)
  assert end.value.code == 2 and "ben.csv: row 3: no rating" in capsys.readouterr().err
  assert not (tmp_path / "ratings.jsonl").exists()
  palms.main([*read, "--incomplete"])
  assert "23 ratings of 12 samples by 2 raters" in capsys.readouterr().out
  palms.main(["palms", "statistics", f"--ratings={tmp_path}/ratings.jsonl"])
  assert "targeted - base at 4.3k" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    palms.main(["palms", "sheet", *flags])
  assert "exists; name a new directory" in capsys.readouterr().err


# ----------------------------------------------------------------------------- in a browser


@pytest.fixture
def page(written):
  """rater_1's sheet in headless Chromium, which must ask the network for nothing."""
  playwright = pytest.importorskip("playwright.sync_api")
  browser = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
  )
  if browser is None:
    pytest.skip("there is no Chromium on this machine")
  with playwright.sync_playwright() as driver:
    chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
    opened = chromium.new_page()
    opened.asked, opened.wrong = [], []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("pageerror", lambda error: opened.wrong.append(str(error)))
    opened.on("console", lambda message: opened.wrong.append(message.text))
    opened.goto((written / "sheets" / "rater_1.html").as_uri())
    yield opened
    assert not opened.wrong
    assert {url.split(":")[0] for url in opened.asked} <= {"file", "blob"}
    chromium.close()


def test_a_rater_works_through_the_sheet(tmp_path, made, page):
  """Rates by key and by mouse, goes back, closes the page, comes back, hands in both exports."""
  expected, data = {}, items(made.pages["rater_1"])["items"]

  def shown() -> dict:
    number = int(page.inner_text("#place").split()[1]) - 1
    assert page.inner_text("#position") == data[number]["position"]
    assert page.inner_text("#prompt") == data[number]["prompt"]
    text = data[number]["completion"].strip()
    assert page.inner_text("#completion") == (text if text else "(The completion is empty.)")
    return data[number]

  def rate(rating: int, by_mouse: bool) -> None:
    expected[shown()["id"]] = rating
    if by_mouse:
      page.click(f"#scale button:nth-child({rating})")
    else:
      page.keyboard.press(str(rating))

  for number in range(4):
    rate(number + 1, by_mouse=number % 2 == 0)

  def progress() -> tuple[str, str]:
    return page.inner_text("#count"), page.inner_text("#place")

  assert progress() == ("4 of 12 rated", "Sample 5 of 12")
  page.keyboard.press("ArrowLeft")
  assert page.get_attribute("#scale button:nth-child(4)", "aria-pressed") == "true"
  rate(5, by_mouse=False)  # another mind
  page.keyboard.press("6")
  page.keyboard.press("ArrowRight")
  page.reload()
  assert progress() == ("4 of 12 rated", "Sample 6 of 12")
  assert page.title() == "Rating sheet: rater_1"  # no answer ran as a script
  while len(expected) < 12:
    page.keyboard.press("u")
    rate(len(expected) % 5 + 1, by_mouse=False)
  assert page.inner_text("#status").startswith("All samples are rated.")

  for button in ("csv", "json"):
    with page.expect_download() as download:
      page.click(f"#{button}")
    assert download.value.suggested_filename == f"rater_1.{button}"
    download.value.save_as(tmp_path / button / f"rater_1.{button}")
    found = sheet.read(sheet.find_exports([str(tmp_path / button)]), made.key)
    assert not found.problems and len(found.rows) == 12
    samples = {id_: tuple(s.items()) for id_, s in made.key["samples"].items()}
    for id_, rating in expected.items():
      (row,) = [r for r in found.rows if all(r[name] == value for name, value in samples[id_])]
      assert row["rating"] == rating and row["rater"] == "rater_1"
    statistics.analyse(found.rows, statistics.StatisticsConfig(num_resamples=10))

  page.evaluate("localStorage.clear()")
  page.reload()
  assert page.inner_text("#count") == "0 of 12 rated"
  page.set_input_files("#load", tmp_path / "csv" / "rater_1.csv")
  page.wait_for_function("document.getElementById('count').textContent === '12 of 12 rated'")
