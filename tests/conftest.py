"""What every test runs under: 8 simulated CPU devices, exact matmuls, one compilation cache.

The settings are environment variables, made before jax is imported, so that programs which a
test starts run under them too. A variable that is set already is left alone.
"""

import atexit
import os
import pathlib
import shutil
import tempfile

import pytest

_ROOT = pathlib.Path(__file__).resolve().parent.parent


def _set_environment() -> None:
  flags = os.environ.get("XLA_FLAGS", "")
  if "--xla_force_host_platform_device_count" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
  # Data caches of this session alone: an entry does not know the code that made it.
  cache_home = os.environ.get("XDG_CACHE_HOME", "")
  if "rlhf_tests_" not in cache_home:
    cache_home = tempfile.mkdtemp(prefix="rlhf_tests_")
    atexit.register(shutil.rmtree, cache_home, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = cache_home
  defaults = {
    "MPLCONFIGDIR": str(_ROOT / ".jax_cache" / "matplotlib"),  # it would go to XDG_CACHE_HOME
    "JAX_PLATFORMS": "cpu",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "JAX_COMPILATION_CACHE_DIR": str(_ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TFDS_DISABLE_PROGRESS_BAR": "1",
    "MPLBACKEND": "agg",
    # Its configuration closes the handlers that are there, and pytest's streams with them.
    "SUBMITIT_LOG_LEVEL": "NOCONFIG",
  }
  for name, setting in defaults.items():
    os.environ.setdefault(name, setting)


_set_environment()


@pytest.fixture
def workdir_path(tmp_path: pathlib.Path) -> pathlib.Path:
  """A run's directory that does not exist yet."""
  return tmp_path / "workdir"


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
  """The root of this repository."""
  return _ROOT


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """Real data beside the repository; optional, so a test that wants it is skipped without."""
  path = _ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip("the real data of ../shared/data is not there; this test needs it")
  return path


@pytest.fixture(scope="session")
def session_inputs(tmp_path_factory):
  """`commands.make_inputs`, once for all files whose tests only read them."""
  import commands  # after the environment is set: it imports jax

  return commands.make_inputs(tmp_path_factory.mktemp("session_inputs"))
