"""What the launchers of every engine share: a checked job, the commit that it runs, its command.

  python -m launch.ENGINE --topology=KIND:SHAPE ... -- ALGORITHM --config=... --workdir=... ...

Behind `--` is what `launch.train` takes, or `pipeline` and what `launch.pipeline` takes.  A job
runs the code of the commit that is checked out here, so uncommitted changes are refused.  All that
can be known to be wrong is said before anything is printed or submitted, and without importing jax.
"""

import argparse
import contextlib
import dataclasses
import pathlib
import re
import shlex
import subprocess
import tempfile
import urllib.parse
from collections.abc import Callable, Sequence

import yaml

from rlhf import workdir as workdir_lib
from rlhf.cli import setup, train
from rlhf.configs import meshes

ROOT = pathlib.Path(__file__).resolve().parents[3]
PORT = 8476  # of the process that the others join, where the engine does not choose one
MAX_NAME = 40  # xpk's limit; a JobSet's pods add their own suffixes to it
# What shows that a config belongs to the command: a group of its own.
_GROUPS = {
  "sft": "sft",
  "reward_model": "reward",
  "ppo": "ppo",
  "truth_judge": "judge",
  "pipeline": "base",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A training command that has been checked against its topology.

  Attributes:
    arguments: the command line behind `--`.
    config_file: what `--config` names, as a path without its `:ARGUMENT`.
    workdir: as given.
    config: the resolved config as plain JSON.
    name: lower case letters, digits and dashes, at most `MAX_NAME`.
    commit: of the code that it runs, 40 hex digits.
  """

  arguments: tuple[str, ...]
  config_file: str
  workdir: str
  config: dict
  topology: meshes.Topology
  name: str
  commit: str


# ----------------------------------------------------------------------------- the command line


def parser(doc: str) -> setup.Parser:
  """The flags that every engine has."""
  flags = setup.Parser(doc)
  flags.add_argument("--topology", required=True, help="for example h100:4x8 or v5p:4x4x4")
  flags.add_argument("--name", help="of the job; made from the algorithm and the workdir")
  flags.add_argument(
    "--dry_run", action="store_true", help="print what would be submitted, and submit nothing"
  )
  add_commit_and_restarts(flags)
  return flags


def add_commit_and_restarts(flags: setup.Parser) -> None:
  """The flags that a job has however it was made."""
  flags.add_argument(
    "--allow_dirty",
    action="store_true",
    help="run the commit, without the changes that are not committed",
  )
  flags.add_argument(
    "--max_restarts", type=setup.at_least(0), default=100, help="restarts into the same workdir"
  )


def read(flags: setup.Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, Job]:
  """The engine's flags and the job behind `--`.

  Raises:
    ValueError: anything that is known to be wrong before the job starts.
  """
  own = list(argv[1:])
  behind = own[own.index("--") + 1 :] if "--" in own else []
  arguments = flags.parse_args(own[: own.index("--")] if "--" in own else own)
  if not behind:
    raise ValueError(
      "there is no job; write -- and what launch.train takes, for example "
      "-- ppo --config=configs/ppo.py:1.3b,h100:1x8 --workdir=runs/ppo"
    )
  setup.check_no_place(behind)
  topology = meshes.parse_topology(arguments.topology)
  names, config, workdir = setup.read_config(["launch.train", *behind], train.__doc__, join=False)
  if len(names) != 1 or names[0] not in _GROUPS or behind[0] != names[0]:
    raise ValueError(f"the job is {' '.join(names)!r}; begin it with one of {', '.join(_GROUPS)}")
  file = _config_value(behind).partition(":")[0]
  if names[0] == "pipeline" and "pipeline" in config:
    raise ValueError(
      f"--config={file}: PALMS on TinyWorld is one process on one machine; run it by "
      "`python -m launch.pipeline` there, and submit the sizes, such as "
      f"--config={file}:1.3b,{arguments.topology}"
    )
  if _GROUPS[names[0]] not in config:
    raise ValueError(
      f"--config={file} has no group {_GROUPS[names[0]]!r}, which {names[0]} needs; "
      "name its own file of configs/"
    )
  meshes.check_config(config, topology)
  return arguments, Job(
    arguments=tuple(behind),
    config_file=file,
    workdir=workdir,
    topology=topology,
    config=workdir_lib.config_to_dict(config),
    commit=commit(arguments.allow_dirty),
    name=_job_name(arguments.name, names[0], workdir),
  )


def _config_value(arguments: Sequence[str]) -> str:
  return [
    following if argument in ("--config", "-config") else argument.partition("=")[2]
    for argument, following in zip(arguments, [*arguments[1:], ""])
    if re.fullmatch("--?config(=.*)?", argument)
  ][-1]


def _job_name(given: str | None, algorithm: str, workdir: str) -> str:
  if given is None:
    words = f"{algorithm}-{pathlib.PurePath(workdir).name}".lower()
    return re.sub("[^a-z0-9]+", "-", words)[:MAX_NAME].strip("-")
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,%d}[a-z0-9])?" % (MAX_NAME - 2), given):
    raise ValueError(
      f"--name={given} must be at most {MAX_NAME} lower case letters, digits and "
      "dashes, start with a letter and not end with a dash"
    )
  return given


def one_of(flag: str, choices: Sequence[str], found: str, engine: str) -> None:
  """Raises ValueError where an engine has no such hardware."""
  if found not in choices:
    raise ValueError(f"{flag}: {engine} has no {found}; choose from {', '.join(choices)}")


# ----------------------------------------------------------------------------- the commit


def commit(allow_dirty: bool) -> str:
  """The commit that is checked out.

  Raises:
    ValueError: this is no git repository, or something is not committed.
  """
  head = _git("rev-parse", "--verify", "HEAD")
  if _git("rev-parse", "--show-toplevel") != str(ROOT):
    raise ValueError(
      f"{ROOT} is not the top of a git repository; a job runs a commit: start it from a clone"
    )
  changed = _git("status", "--porcelain").splitlines()
  if changed and not allow_dirty:
    raise ValueError(
      f"{len(changed)} files are not committed ({changed[0].split()[-1]} is the "
      "first); commit them, or add --allow_dirty to run the commit without them"
    )
  if _git("status", "--porcelain", "--", "configs"):
    raise ValueError(
      "configs/ has changes that are not committed; commit them: what was checked "
      "here would not be what the job reads"
    )
  return head


def source(job: Job, given: str | None) -> str:
  """Address of a repository from which a machine elsewhere fetches the job's commit.

  Args:
    given: --repository, or None for the remote `origin`.

  Raises:
    ValueError: no remote, a password in its address, or a commit that no remote branch has.
  """
  url = given if given is not None else _git("remote", "get-url", "origin", missing="")
  if not url:
    raise ValueError(
      "there is no remote named origin; name the address from which the job fetches "
      "its code with --repository=URL"
    )
  parts = urllib.parse.urlsplit(url)
  if parts.password or (parts.username and parts.scheme in ("http", "https")):
    raise ValueError(
      "the repository's address holds a user name or password, which would be "
      "written into the job; name one without with --repository=URL"
    )
  if given is None and not _git("branch", "--remotes", "--contains", job.commit):
    raise ValueError(
      f"commit {job.commit[:12]} is on no remote branch; push it, so that the job can fetch it"
    )
  return url


def check_out(revision: str, directory: pathlib.Path) -> None:
  """A clone of this repository at a commit; one that is there already is kept."""
  if directory.is_dir():
    return
  directory.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
    clone = pathlib.Path(temporary) / "clone"
    _git("clone", "--quiet", "--no-checkout", str(ROOT), str(clone))
    _git("-C", str(clone), "checkout", "--quiet", "--detach", revision)
    with contextlib.suppress(OSError):  # another launcher was faster
      clone.rename(directory)


def code_environment(code: pathlib.Path) -> dict[str, str]:
  """What makes Python import the code that `check_out` put there, wherever it is started."""
  # Without PYTHONSAFEPATH `python -m` would import from the current directory first.
  return {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}


def committed(code: pathlib.Path, config_file: str) -> str:
  """The commit's copy of a config file; the file itself where it lies outside the repository."""
  found = pathlib.Path(config_file).resolve()
  inside = found.is_relative_to(ROOT)
  return str(code / found.relative_to(ROOT) if inside else found)


def _git(*words: str, missing: str | None = None) -> str:
  """What git prints; `missing` where it fails and that is no error."""
  try:
    return subprocess.run(
      ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True
    ).stdout.strip()
  except OSError:
    raise ValueError("git is not installed; a job runs a commit") from None
  except subprocess.CalledProcessError as error:
    if missing is not None:
      return missing
    last = error.stderr.strip().splitlines()[-1:] or ["no message"]
    raise ValueError(f"git {words[0]} in {ROOT}: {last[0]}") from None


# ----------------------------------------------------------------------------- the command


def train_command(
  job: Job, python: str = "python", *, config_file: Callable[[str], str] = str
) -> list[str]:
  """The program that every process of the job runs, and its flags but those of `join_flags`.

  Args:
    config_file: from the config file's path as given here to its path there.
  """
  arguments = with_config_file(job.arguments, config_file)
  if arguments[0] == "pipeline":
    return [python, "-m", "launch.pipeline", *arguments[1:]]
  return [python, "-m", "launch.train", *arguments]


def with_config_file(arguments: Sequence[str], config_file: Callable[[str], str]) -> list[str]:
  """A command line whose --config names another place of the same file."""
  arguments = list(arguments)
  for i, argument in enumerate(arguments):
    flag, equals, value = argument.partition("=")
    if flag in ("--config", "-config"):
      place, text = (i, value) if equals else (i + 1, arguments[i + 1])
      path, colon, rest = text.partition(":")
      arguments[place] = (flag + equals if equals else "") + config_file(path) + colon + rest
  return arguments


def join_flags(
  num_hosts: int,
  *,
  cluster: str | None = None,
  coordinator: str | None = None,
  process_id: str | None = None,
  even_alone: bool = False,
) -> list[str]:
  """How one process of each host finds the others; nothing where there is one host.

  Args:
    cluster: jax's name of a cluster where it finds out the others by itself; else
    coordinator: HOST:PORT of process 0, and
    process_id: of this host.  Both may be a shell's words.
    even_alone: say that there is one host, against an environment that says less than that.
  """
  if num_hosts == 1 and not even_alone:
    return []
  if cluster is not None:
    return [f"--cluster={cluster}"]
  return [
    f"--coordinator_address={coordinator}",
    f"--num_processes={num_hosts}",
    f"--process_id={process_id}",
  ]


def fetch_and_train(job: Job, repository: str, join: Sequence[str]) -> str:
  """One line for a container's shell: the code of the commit, then the program in its place.

  `exec` gives the program the shell's process id, so that it gets the SIGTERM of a preemption.
  """
  url, where = shlex.quote(repository), "/tmp/rlhf"
  program = shlex.join(train_command(job, config_file=in_repository))
  return " ".join(
    [
      f"git clone --quiet {url} {where} && cd {where} &&",
      f"git checkout --quiet --detach {job.commit} && exec",
      program,
      *join,
    ]
  )


def in_repository(path: str) -> str:
  """A config file's path from the repository's top.

  Raises:
    ValueError: git does not have it, so the job would not either.
  """
  resolved = pathlib.Path(path).resolve()
  if not resolved.is_relative_to(ROOT) or not _git("ls-files", "--", str(resolved)):
    raise ValueError(
      f"--config={path} is not in the repository, and the job fetches no other "
      "file; commit it under configs/"
    )
  return str(resolved.relative_to(ROOT))


def to_yaml(data: dict) -> str:
  """YAML in the order of the data; text of several lines as a block."""

  class Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data) -> bool:
      return True

  def text(dumper, value):
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

  Dumper.add_representer(str, text)
  return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=1000)


def run(command: Sequence[str], install: str, text: str | None = None) -> None:
  """Runs an engine's program; ends with its exit status where that is not 0."""
  try:
    status = subprocess.run(command, input=text, text=True, check=False).returncode
  except FileNotFoundError:
    raise ValueError(f"there is no program {command[0]!r}; {install}, or add --dry_run") from None
  if status:
    setup.fail(f"{command[0]} ended with status {status}", 1)
