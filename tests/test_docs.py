"""README, docs/, notebooks and docstrings name only what exists.

Links, commands, flags, configs and fields are looked up in sources and configs; nothing is run and
jax is not imported.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import pathlib
import re
import shlex

import pytest

from rlhf.cli import main

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
NOTEBOOKS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("notebooks/*.ipynb"))
MOST_README_LINES = 150
# Where a field that stands alone in the text may belong; a page of a stage need not repeat it.
CONFIGS = (
  "pipeline.py:tiny",
  "pipeline.py:smollm2",
  "sft.py:tiny",
  "sft.py:tiny,init",
  "reward_model.py:tiny",
  "ppo.py:tiny",
  "truth_judge.py:imported",
  "eval.py:default",
  "palms.py:smollm2",
)
# What follows these words is a command of its own: `rlhf local ... -- sft --config=...`.
LAUNCHERS = ("local", "slurm", "xpk", "jobset", "sky")


def text_of(name: str) -> str:
  """A page, or the text cells of a notebook."""
  text = (ROOT / name).read_text(encoding="utf-8")
  if not name.endswith(".ipynb"):
    return text
  cells = json.loads(text)["cells"]
  return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def code_of(text: str) -> tuple[str, str]:
  """(the fenced blocks, the rest) of a page."""
  blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.S | re.M)
  return "\n".join(blocks), re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)


def commands_of(code: str) -> list[list[str]]:
  """Every command of ours at the start of a line, as [name, argument, ...]."""
  found = []
  for line in re.sub(r"\\\n\s*", " ", code).split("\n"):
    for start in re.finditer(r"(?:^\s*|&& )(?:rlhf |python -m launch\.)(?=[a-z_]+(?:\s|$))", line):
      found.append(shlex.split(line[start.end() :], comments=True))
  return found


def code_lines(text: str) -> str:
  """What stands in a page's fenced blocks, and between backticks in its text."""
  blocks, prose = code_of(text)
  return "\n".join([blocks, *(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))])


def docstrings_of(path: pathlib.Path) -> list[str]:
  kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
  nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
  found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
  return [docstring for docstring in found if docstring]


def anchors_of(page: pathlib.Path) -> set[str]:
  """The anchors that GitHub gives the headings of a page."""
  _, prose = code_of(page.read_text(encoding="utf-8"))
  titles = [line.lstrip("#").strip() for line in prose.split("\n") if re.match(r"#+ ", line)]
  return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@functools.cache
def load_config(name: str):
  """The config of `FILE.py[:ARGUMENT]`, FILE among the shipped configs."""
  file, _, argument = name.partition(":")
  module = importlib.import_module(f"rlhf.configs.{file.removesuffix('.py').replace('/', '.')}")
  get = module.get_sweep if file.startswith("sweeps/") else module.get_config
  return get(argument) if argument else get()


def has_field(config, field: str) -> bool:
  for part in field.split("."):
    if not hasattr(config, "keys") or part not in config:
      return False
    config = config[part]
  return True


def groups_of(config) -> set[str]:
  return {name for name, value in config.items() if hasattr(value, "keys")}


def fields_of(text: str, groups: set[str]) -> list[str]:
  """Fields in a page: `--config.FIELD` anywhere, `config.FIELD` and `GROUP.FIELD` in its text."""
  named = re.findall(r"--config\.([a-z][\w.]*)|`config\.([a-z][\w.]*)`", text)
  found = [flag if flag else plain for flag, plain in named]
  found += re.findall(rf"`((?:{'|'.join(groups)})\.[a-z]\w*)`", text)
  return [field for field in found if field.rpartition(".")[2] not in ("py", "json", "jsonl")]


@functools.cache
def flags_of(*words: str) -> frozenset[str]:
  """The flags of a command, from the usage line of its --help."""
  printed = io.StringIO()
  with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    importlib.import_module(main.COMMANDS[words[0]]).main((*words, "--help"))
  usage, _, _ = printed.getvalue().partition("\n\n")
  return frozenset(re.findall(r"--(\w+)", usage))


def config_problems(words: list[str], default: str | None = None) -> list[str]:
  """What the config flags of a command name that does not exist."""
  given = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
  name = given[0].removeprefix("configs/") if given else default
  if name is None or re.search(r"[A-Z]{2}|\.\.\.", name):  # SIZE: a placeholder
    return []
  try:
    config = load_config(name)
  except (ImportError, AttributeError, ValueError) as error:
    return [f"--config={name}: {error}"]
  fields = [
    word.removeprefix("--config.").partition("=")[0] for word in words if "--config." in word
  ]
  return [
    f"--config.{field} is no field of {name}" for field in fields if not has_field(config, field)
  ]


def command_problems(words: list[str]) -> list[str]:
  """What a command names that does not exist."""
  command, arguments = words[0], words[1:]
  if command not in main.COMMANDS:
    return [f"there is no command {command}"]
  problems = []
  if command in LAUNCHERS and "--" in arguments:
    place = arguments.index("--")
    job, arguments = arguments[place + 1 :], arguments[:place]
    problems += command_problems(job if job[0] == "pipeline" else ["train", *job])
  action = arguments[:1] if command == "palms" else []
  action += [word for word in arguments if word.startswith("--samples=") and command == "evaluate"]
  known = flags_of(command, *action) | {"help"}
  for word in arguments:
    flag = re.match(r"\[?--([a-z]\w*)", word)
    if flag and not word.startswith("--config.") and flag.group(1) not in known:
      problems.append(f"{command} has no flag --{flag.group(1)}")
    if word.startswith("configs/sweeps/") and not re.search(r"[A-Z]{2}", word):
      load_config(word.removeprefix("configs/"))
  problems += config_problems(arguments, "eval.py" if command == "evaluate" else None)
  return [f"{' '.join(words)[:80]}: {problem}" for problem in problems]


@pytest.mark.parametrize("name", [*NAMES, *NOTEBOOKS])
def test_every_command_flag_config_and_field_exists(name):
  text = text_of(name)
  problems = [
    problem for words in commands_of(code_lines(text)) for problem in command_problems(words)
  ]
  configs = [load_config(config) for config in CONFIGS]
  for field in fields_of(text, {group for config in configs for group in groups_of(config)}):
    if not any(has_field(config, field) for config in configs):
      problems.append(f"{field} is no field of any of {', '.join(CONFIGS)}")
  assert not problems, "\n".join(problems)


def defined_in(path: pathlib.Path) -> set[str]:
  """What a module defines or imports at its top."""
  names = set()
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      names |= {target.id for target in targets if isinstance(target, ast.Name)}
  return names


@pytest.mark.parametrize("name", NAMES)
def test_every_function_in_a_python_block_exists(name):
  for block in re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text("utf-8"), re.S | re.M):
    tree, modules = ast.parse(block), {}
    for node in ast.walk(tree):
      if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "rlhf":
        folder = ROOT / node.module.replace(".", "/")
        modules |= {alias.asname or alias.name: folder / f"{alias.name}.py" for alias in node.names}
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.value.id in modules:
          path = modules[node.value.id]
          assert node.attr in defined_in(path), f"{name}: {path.name} has no {node.attr}"


@pytest.mark.parametrize("package", ("configs", "cli"))
def test_every_command_in_a_docstring_exists(package):
  problems = [
    f"{path.relative_to(ROOT)}: {problem}"
    for path in sorted((ROOT / "rlhf" / package).rglob("*.py"))
    for docstring in docstrings_of(path)
    for words in commands_of(docstring)
    for problem in command_problems(words)
  ]
  assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name):
  page = ROOT / name
  _, prose = code_of(page.read_text(encoding="utf-8"))
  for target in re.findall(r"\]\(([^)\s]+)\)", prose):
    if "://" in target:
      continue
    file, _, anchor = target.partition("#")
    path = (page.parent / file).resolve() if file else page
    assert path.exists(), f"{name} links to {target}, which does not exist"
    if anchor:
      assert anchor in anchors_of(path), f"{name} links to {target}, a heading that does not exist"


@pytest.mark.parametrize("name", NAMES)
def test_every_path_of_the_repository_exists(name):
  text = (ROOT / name).read_text(encoding="utf-8")
  for path in re.findall(r"`((?:rlhf|configs|launch|tests|results|notebooks)/[a-z][\w./]+)`", text):
    assert (ROOT / path).exists(), f"{name} names {path}, which does not exist"


def test_readme_is_short_and_every_page_is_listed():
  readme = PAGES[0].read_text(encoding="utf-8")
  assert len(readme.splitlines()) <= MOST_README_LINES
  listed = readme + (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
  for page in PAGES[1:]:
    assert page.name == "README.md" or f"({page.name})" in listed, (
      f"docs/README.md lacks {page.name}"
    )


def test_nothing_names_a_folder_that_no_reader_has():
  sources = [path for top in ("rlhf", "configs", "launch") for path in (ROOT / top).rglob("*.py")]
  notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
  for path in (*PAGES, *sources, *notebooks):
    assert "../shared" not in path.read_text(encoding="utf-8"), path


def test_the_check_sees_what_is_wrong():
  assert command_problems(["train", "ppo", "--config=configs/ppo.py:tiny", "--config.ppo.kl=1"])
  assert command_problems(["generate", "--checkpoints=runs/ppo"])
  assert command_problems(["jump"])
  assert command_problems(["slurm", "--", "ppo", "--config=configs/ppo.py:9b"])
  assert not command_problems(["generate", "--checkpoint=runs/ppo", "--num_samples=4"])
