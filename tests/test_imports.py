"""The import graph, drawn from the sources: no arrow runs up, and some names appear nowhere."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the bottom up.  A module imports modules of lower rows.  A package counts as one module unless
# its parts have rows of their own.
LAYERS = [
  {"processes", "configs", "extras", "checks"},
  {"types", "workdir"},
  {"losses", "stages", "tokenization.chat", "tokenization.published"},
  {"sharding", "optim", "tokenization.tokenizer", "metrics"},
  {"model.attention"},
  {"model.compute"},
  {"model.architecture"},
  {"model.layers", "model.lora", "model.flops"},
  {"model.transformer"},
  {"data", "checkpoint"},
  {"interop"},
  {"networks"},
  {"inference"},
  {"loop", "tinyworld"},
  {"training"},
  {"ppo_setup"},
  {"sft", "reward_model", "ppo"},
  {"evals.statistics"},
  {"evals.measures"},
  {"evals.units"},
  {"evals.reward_models"},
  {"evals.preference"},
  {"report.figures"},
  {"evals.suites"},
  {"evals.evaluation"},
  {"palms"},
  {"report"},
  {"evals.pooling"},
  {"pipeline"},
  {"palms.process", "benchmark"},
  {"cli"},
  {"__main__"},
]
ROW = {module: row for row, modules in enumerate(LAYERS) for module in modules}
HOST_SIDE = ("data", "tinyworld")
FORBIDDEN_NAMES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "eval", "exec"}


def sources(package: str) -> list[pathlib.Path]:
  return sorted((ROOT / package).rglob("*.py"))


def dotted(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(text: str, module: str, is_package: bool = False) -> set[str]:
  """Every module that the source imports, function bodies included, as absolute dotted names.

  `from a import b` counts as both `a` and `a.b`, because b may be a module.
  """
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module if node.module else ""
      if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        parents = package[: len(package) - node.level + 1]
        base = ".".join(parents + ([base] if base else []))
      found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
  return found


def imports_of(path: pathlib.Path) -> set[str]:
  return imported(path.read_text(encoding="utf-8"), dotted(path), path.name == "__init__.py")


def room(name: str) -> str | None:
  """`rlhf.data.jsonl` -> `data`; None for names without a row, such as those outside rlhf."""
  parts = name.split(".")
  if parts[0] != "rlhf":
    return None
  found = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
  return next((candidate for candidate in found if candidate in ROW), None)


def upward(importer: str, names: set[str]) -> list[str]:
  """The arrows from the room `importer` that do not run down."""
  rooms = {room(name) for name in names} - {None, importer}
  return [
    f"{importer} -> {other}"
    for other in sorted(rooms)
    if other in ROW and ROW[other] >= ROW[importer]
  ]


def names_used(text: str) -> set[str]:
  """Every bare name, and the first part of every import."""
  tree = ast.parse(text)
  return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
    name.split(".")[0] for name in imported(text, "")
  }


def test_the_drawing_sees_every_form_of_import():
  text = "import a.b\nfrom rlhf import ppo as p\ndef f():\n  from . import loop\n  import rlhf.sft"
  assert imported(text, "rlhf.model") == {"a.b", "rlhf", "rlhf.ppo", "rlhf.loop", "rlhf.sft"}
  assert imported("from ..data import x", "rlhf.evals.y") == {"rlhf.data", "rlhf.data.x"}
  assert imported("from .z import x", "rlhf.evals", True) == {"rlhf.evals.z", "rlhf.evals.z.x"}


def test_the_judgement_finds_arrows_that_run_up():
  assert upward("ppo", {"rlhf.sft.train"}) == ["ppo -> sft"]
  assert upward("model.layers", {"rlhf.ppo", "rlhf.types"}) == ["model.layers -> ppo"]
  assert upward("data", {"rlhf.data.pack", "rlhf.tokenization.tokenizer"}) == []


def test_no_import_runs_up_the_layers():
  arrows = []
  for path in sources("rlhf"):
    importer = room(dotted(path))
    if path.name == "__init__.py" and importer is None:
      assert not imports_of(path), path
      continue
    assert importer is not None, f"{path} has no row in LAYERS; say where it belongs"
    arrows += [f"{path.relative_to(ROOT)}: {arrow}" for arrow in upward(importer, imports_of(path))]
  assert not arrows


@pytest.mark.parametrize("package", ["launch", "tests", "notebooks"])
def test_rlhf_never_imports(package: str):
  for path in sources("rlhf"):
    assert package not in {name.split(".")[0] for name in imports_of(path)}, path


def test_configs_import_only_ml_collections_and_the_standard_library():
  allowed = {"ml_collections"} | sys.stdlib_module_names
  for path in sources("rlhf/configs"):
    for name in imports_of(path) - {"rlhf"}:
      assert name.startswith("rlhf.configs") or name.split(".")[0] in allowed, path


def test_the_host_side_imports_no_jax():
  for package in HOST_SIDE:
    for path in sources(f"rlhf/{package}"):
      found = {name.split(".")[0] for name in imports_of(path)} & {"jax", "jaxlib", "flax", "optax"}
      assert not found, path


def test_the_package_is_empty():
  assert not (ROOT / "rlhf" / "__init__.py").read_text().strip()


@pytest.mark.parametrize("package", ["rlhf", "configs", "launch", "tests"])
def test_nothing_runs_data_as_code(package: str):
  for path in sources(package):
    found = names_used(path.read_text(encoding="utf-8")) & FORBIDDEN_NAMES
    assert not found, path
  assert names_used("import pickle\nx = eval(y)") & FORBIDDEN_NAMES == {"pickle", "eval"}


def test_no_module_is_named_utils():
  assert not [
    path
    for package in ("rlhf", "configs", "launch")
    for path in sources(package)
    if "util" in path.stem
  ]
