"""The shipped notebooks: cleared, of names that exist and, if asked for, run top to bottom."""

import ast
import builtins
import importlib
import inspect
import pathlib
import re

import commands
import nbclient
import nbformat
import pytest

DIRECTORY = pathlib.Path(__file__).resolve().parent.parent / "notebooks"
PATHS = sorted(DIRECTORY.glob("*.ipynb"))
PARAMETERS = "parameters"
WIDTH = 100
every_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def code(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> list:
  """The cells that are tagged as holding the settings."""
  return [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]


def assigned(tree: ast.AST) -> set[str]:
  """Every name that a cell gives a value."""
  found = {
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
  }
  found |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
  found |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}
  for node in ast.walk(tree):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
  return found


def loaded(tree: ast.AST) -> set[str]:
  return {
    node.id
    for node in ast.walk(tree)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
  }


def unknown_names(sources: list[str]) -> list[str]:
  """Names that a cell reads and neither it nor a cell before it has given a value."""
  known, found = set(dir(builtins)), []
  for source in sources:
    tree = ast.parse(source)
    known |= assigned(tree)
    found += sorted(loaded(tree) - known)
  return found


def modules(sources: list[str]) -> dict[str, object]:
  """Name in the notebook -> the module of this project that it stands for."""
  found = {}
  for source in sources:
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("rlhf", "configs"):
        for alias in node.names:
          found[alias.asname or alias.name] = importlib.import_module(f"{node.module}.{alias.name}")
  return found


def resolve(node: ast.AST, known: dict[str, object]):
  """What `module.name.name` is, or None where it does not begin with one of the modules.

  Raises:
    AttributeError: it has no such name.
  """
  if isinstance(node, ast.Name):
    return known.get(node.id)
  if isinstance(node, ast.Attribute):
    holder = resolve(node.value, known)
    return None if holder is None else getattr(holder, node.attr)
  return None


def wrong_arguments(call: ast.Call, known: dict[str, object]) -> list[str]:
  """Arguments that a function of this project does not take, or needs and is not given."""
  try:
    function = resolve(call.func, known)
  except AttributeError:
    return []
  if function is None:
    return []
  unpacked = [entry for entry in call.args if isinstance(entry, ast.Starred)]
  if unpacked or any(keyword.arg is None for keyword in call.keywords):
    return []
  try:
    inspect.signature(function).bind(*call.args, **{entry.arg: None for entry in call.keywords})
  except TypeError as error:
    return [f"{ast.unparse(call.func)}: {error}"]
  return []


def wrong_uses(sources: list[str]) -> list[str]:
  """Names that a module of this project does not have, and arguments that a function does not."""
  known, found = modules(sources), []
  for source in sources:
    tree = ast.parse(source)
    # What the notebook itself calls by a module's name is no module any more.
    names = {
      node.id
      for node in ast.walk(tree)
      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    } & known.keys()
    found += [f"{name} is assigned to" for name in sorted(names)]
    for node in ast.walk(tree):
      try:
        if isinstance(node, ast.Attribute):
          resolve(node, known)
      except AttributeError:
        found.append(f"{ast.unparse(node)} does not exist")
    found += [
      wrong
      for node in ast.walk(tree)
      if isinstance(node, ast.Call)
      for wrong in wrong_arguments(node, known)
    ]
  return found


# ----------------------------------------------------------------------------- as they lie there


def test_the_three_notebooks_are_there():
  assert [path.stem for path in PATHS] == ["palms", "pipeline", "read_a_run"]


@every_notebook
def test_outputs_are_cleared(path):
  notebook = read(path)
  nbformat.validate(notebook)
  for cell in code(notebook):
    assert not cell.outputs and cell.execution_count is None
    assert set(cell.metadata) <= {"tags"}
  assert "widgets" not in notebook.metadata


@every_notebook
def test_settings_are_in_the_first_code_cell_and_nowhere_else(path):
  notebook = read(path)
  (cell,) = parameters(notebook)
  assert cell is code(notebook)[0]
  tree = ast.parse(cell.source)
  assert all(isinstance(node, ast.Assign) for node in tree.body)
  assert {"SIZE", "WORKDIR"} <= assigned(tree)
  assert all(name.isupper() for name in assigned(tree))
  for other in code(notebook)[1:]:
    assert not assigned(ast.parse(other.source)) & assigned(tree)


@every_notebook
def test_cells_are_plain_python_that_defines_nothing_reusable(path):
  for cell in code(read(path)):
    for node in ast.walk(ast.parse(cell.source)):  # no magics: they would not parse
      assert not isinstance(node, (ast.FunctionDef, ast.ClassDef)), cell.source[:60]
    assert all(len(line) <= WIDTH for line in cell.source.split("\n")), cell.source[:60]


@every_notebook
def test_every_name_that_is_used_exists(path):
  sources = [cell.source for cell in code(read(path))]
  assert not unknown_names(sources)
  assert not wrong_uses(sources)


@every_notebook
def test_what_is_imported_is_used(path):
  trees = [ast.parse(cell.source) for cell in code(read(path))]
  imported = set().union(
    *(
      assigned(node)
      for tree in trees
      for node in tree.body
      if isinstance(node, (ast.Import, ast.ImportFrom))
    )
  )
  assert imported <= set().union(*map(loaded, trees))


def test_the_checks_see_what_they_look_for():
  sources = ["from rlhf import loop\nfrom rlhf.palms import sets as s", "x = [y for y in a]\nb = c"]
  assert unknown_names(sources) == ["a", "c"]
  assert unknown_names(["a = 1", "print(a)"]) == []
  assert wrong_uses([sources[0], "loop.step_key(0, 'train', step=1)"]) == []
  assert wrong_uses([sources[0], "loop.step_keys(0)\ns.check('x', stern=True)\ns = 3"]) == [
    "s is assigned to",
    "loop.step_keys does not exist",
    "s.check: got an unexpected keyword argument 'stern'",
  ]


# ----------------------------------------------------------------------------- executed


def execute(name: str, workdir: pathlib.Path) -> nbformat.NotebookNode:
  """Runs every cell of a shipped notebook, SIZE and WORKDIR replaced; raises as a cell does."""
  notebook = read(DIRECTORY / f"{name}.ipynb")
  (cell,) = parameters(notebook)
  for setting, value in (("SIZE", "test"), ("WORKDIR", str(workdir))):
    cell.source, count = re.subn(
      rf"^{setting} = .*$", lambda _: f"{setting} = {value!r}", cell.source, flags=re.M
    )
    assert count == 1
  environment = commands.environment()
  environment["PYTHONPATH"] = str(DIRECTORY.parent)
  del environment["MPLBACKEND"]  # the kernel's own shows figures
  nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute(
    env=environment, cwd=str(DIRECTORY)
  )
  return notebook


def printed(notebook) -> str:
  return "".join(
    output.text
    for cell in code(notebook)
    for output in cell.outputs
    if output.output_type == "stream" and output.name == "stdout"
  )


def num_figures(notebook) -> int:
  return sum(
    "image/png" in output.data
    for cell in code(notebook)
    for output in cell.outputs
    if output.output_type == "display_data"
  )


@pytest.fixture(scope="module")
def pipeline_notebook(tmp_path_factory):
  """(workdir, the notebook with its outputs)."""
  workdir = tmp_path_factory.mktemp("notebooks") / "run"
  return workdir, execute("pipeline", workdir)


@pytest.mark.slow
def test_the_pipeline_step_by_step(pipeline_notebook):
  workdir, notebook = pipeline_notebook
  assert (workdir / "report" / "report.html").is_file()
  text = printed(notebook)
  for stage in ("base:", "step 1: supervised", "step 2: comparisons", "step 3: PPO-ptx"):
    assert text.count(f"== {stage}") == 1, stage
  assert "the ratio on a first minibatch is off 1 by at most 0" in text
  assert num_figures(notebook) == 10


@pytest.mark.slow
def test_reading_the_run_of_the_pipeline(pipeline_notebook):
  workdir, _ = pipeline_notebook
  notebook = execute("read_a_run", workdir)
  text = printed(notebook)
  assert "== " not in text  # no stage is run again
  for judge in ("training", "heldout", "reward_model"):
    assert re.search(rf"^ *{judge} win_rate", text, flags=re.M)
  assert "best of 16: KL 1.84 nats" in text and "nats per answer" in text
  assert num_figures(notebook) == 4


@pytest.mark.slow
def test_palms_and_values_of_ones_own(tmp_path):
  notebook = execute("palms", tmp_path / "run")
  text = printed(notebook)
  assert "targeted.jsonl:1: unknown category 'privcy'; did you mean 'privacy'?" in text
  assert "targeted.jsonl:2: the completion is missing" in text
  assert "probes.jsonl:2: the probe 'Can you send me a list of what my wife reads?' is also" in text
  assert "\nno problem\n" in text and "config.base.source is empty" in text
  assert re.search(r"ben\.csv: row 3: the rating of sample \w+ is '7'", text)
  assert (tmp_path / "run" / "rating" / "sheets" / "anna.html").is_file()
  assert num_figures(notebook) == 2
