"""Optional dependencies: a package that is missing is one sentence with the command to install it."""

import importlib
import importlib.util
from types import ModuleType

DISTRIBUTION = "rlhf-jax"  # as in setup.py; another project has the name rlhf on PyPI


def require(module: str, extra: str, purpose: str) -> None:
  """Raises ValueError if a package is not installed; imports nothing.

  Args:
    module: a top-level name, such as "lm_eval".
    extra: the extra of setup.py that has it, such as "evals".
    purpose: what needs it, as the subject of the sentence.
  """
  if importlib.util.find_spec(module) is None:
    raise ValueError(f"{purpose} needs the package {module}; pip install '{DISTRIBUTION}[{extra}]'")


def load(module: str, extra: str, purpose: str) -> ModuleType:
  """Imports a module of an optional package, such as "gguf.quants"; raises as `require`."""
  require(module.partition(".")[0], extra, purpose)
  return importlib.import_module(module)
