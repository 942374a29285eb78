"""What the launchers share: a checked job, the commit that it runs, and its command.

  rlhf ENGINE --topology=KIND:SHAPE ... -- ALGORITHM --config=... --workdir=... ...

After `--` come the arguments of `rlhf train`, or `pipeline` and those of `rlhf pipeline`. A job
runs the commit that is checked out here, so uncommitted changes are refused. Mistakes are reported
before anything is printed or submitted, without importing jax.
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
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jinja2
import yaml

from rlhf import workdir as workdir_lib
from rlhf.cli import pipeline, train
from rlhf.cli.common import flags, join, startup
from rlhf.configs import meshes

ROOT = pathlib.Path(__file__).resolve().parents[3]
PORT = 8476  # of process 0, where the engine does not choose one
MAX_NAME = 40  # xpk's limit; a JobSet's pods append their own suffixes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A training command that has been checked against its topology.

  Attributes:
    words: its command line, behind `rlhf`.
    workdir: as given.
    config: the resolved config as plain JSON.
    topology: the hardware.
    name: lower case letters, digits and dashes, at most `MAX_NAME`.
    commit: of its code, 40 hex digits.
  """

  words: tuple[str, ...]
  workdir: str
  config: dict
  topology: meshes.Topology
  name: str
  commit: str

  @property
  def on_tpu(self) -> bool:
    return self.topology.platform == "tpu"

  def check_hardware(self, engine: str, kinds: Collection[str]) -> None:
    """Raises ValueError where an engine has no such hardware."""
    if self.topology.kind not in kinds:
      raise ValueError(
        f"--topology={self.topology.name}: {engine} has no {self.topology.kind}; choose from "
        f"{', '.join(kinds)}"
      )

  def command(
    self, python: str = "python", *, config_file: Callable[[str], str] = str
  ) -> list[str]:
    """What every process runs, without the flags of its place.

    Args:
      python: the interpreter.
      config_file: from the config file's path as given here to its path there.
    """
    return [python, "-m", "rlhf", *with_config_file(self.words, config_file)]

  def join_flags(self, cluster: str, address: str, process_id: str) -> list[str]:
    """How the process of each host finds the others; nothing where there is one host.

    Args:
      cluster: jax's name of one that it can ask where the job is on TPUs.
      address: HOST:PORT of process 0; as `process_id`, it may be a shell's words.
      process_id: of this host.
    """
    if self.topology.num_hosts == 1:
      return []
    if self.on_tpu:
      return [f"--cluster={cluster}"]
    return place_flags(address, self.topology.num_hosts, process_id)


def place_flags(address: str, num_processes: int, process_id: str) -> list[str]:
  """The flags that tell a process its place."""
  return [
    f"--coordinator_address={address}",
    f"--num_processes={num_processes}",
    f"--process_id={process_id}",
  ]


# ----------------------------------------------------------------------------- the command line


def parser(engine: str, doc: str | None) -> flags.Parser:
  """The flags that every engine has."""
  found = flags.Parser(f"rlhf {engine}", doc)
  found.flag("topology", "for example h100:4x8 or v5p:4x4x4", required=True)
  found.flag("name", "of the job; made from the algorithm and the workdir if not given")
  found.switch("dry_run", "print what would be submitted, and submit nothing")
  add_commit_and_restarts(found)
  return found


def add_commit_and_restarts(parser: flags.Parser) -> None:
  """The flags of every job that runs a commit."""
  parser.switch("allow_dirty", "run the commit, without the changes that are not committed")
  parser.flag("max_restarts", "restarts into the same workdir", flags.at_least(0), 100)


def add_repository(parser: flags.Parser) -> None:
  """--repository, of engines whose machines fetch the code."""
  parser.flag("repository", "address of the code; the remote origin if not given")


def add_remote(parser: flags.Parser, volume: str) -> None:
  """The flags of engines whose machines fetch the code and mount volumes."""
  add_repository(parser)
  parser.flag("output", "file to write instead of submitting the job")
  parser.add_argument(
    "--volume",
    action="append",
    default=[],
    metavar="SOURCE:PATH",
    help=f"{volume}, and where it is mounted; may be repeated",
  )


def add_grace(parser: flags.Parser) -> None:
  """--grace_seconds."""
  help = "from the SIGTERM of a preemption to the end, where the cloud allows it"
  parser.flag("grace_seconds", help, flags.at_least(1), 600)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """(the launcher's command line, the words after --)."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  return argv[:cut], argv[cut + 1 :]


def parse_command(words: list[str]) -> tuple[list[str], argparse.Namespace]:
  """(words behind `rlhf`, arguments) of a job's command line.

  Raises:
    ValueError: there is none, or it has a flag that the launcher sets.
  """
  if not words:
    raise ValueError(
      "there is no job; write -- and the arguments of `rlhf train`, for example "
      "-- ppo --config=configs/ppo.py:1.3b --workdir=runs/ppo"
    )
  words = words if words[0] == "pipeline" else ["train", *words]
  arguments = {"pipeline": pipeline, "train": train}[words[0]].parse(words)
  join.check_no_place(arguments)
  return words, arguments


def read(parser: flags.Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, Job]:
  """The engine's flags and the job after `--`.

  Raises:
    ValueError: any mistake that is known before the job starts.
  """
  own, words = split(argv)
  arguments = parser.parse(own)
  command, given = parse_command(words)
  topology = meshes.parse_topology(arguments.topology)
  kinds = ("pipeline", "palms") if words[0] == "pipeline" else (given.algorithm,)
  config = flags.load_config(given.config, given.overrides, *kinds)
  if config.kind == "palms" and "pipeline" in config:
    raise ValueError(
      f"--config={given.config}: PALMS on TinyWorld runs in one process on one machine; run it "
      "there with `rlhf pipeline`, and submit the other sizes"
    )
  meshes.check_config(config, topology)
  return arguments, Job(
    words=tuple(command),
    workdir=given.workdir,
    topology=topology,
    config=workdir_lib.plain(config),
    commit=commit(arguments.allow_dirty),
    name=_job_name(arguments.name, words[0], given.workdir),
  )


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


def volumes(given: Sequence[str], source: str, job: Job) -> list[tuple[str, str]]:
  """(source, mount path) of each --volume.

  Args:
    given: SOURCE:PATH each.
    source: regular expression of a source.
    job: whose workdir must lie on one of them.

  Raises:
    ValueError: a volume of another form, or a workdir that would be lost.
  """
  found = []
  for text in given:
    match = re.fullmatch(rf"({source}):(/.+)", text)
    if not match:
      raise ValueError(f"--volume={text} is not SOURCE:/PATH, such as gs://BUCKET:/runs")
    found.append((match.group(1), match.group(2)))
  if not any(pathlib.PurePosixPath(job.workdir).is_relative_to(path) for _, path in found):
    raise ValueError(
      f"--workdir={job.workdir} would be lost with its machine; mount a volume with "
      "--volume=gs://BUCKET:/PATH and give a workdir below its path"
    )
  return found


# ----------------------------------------------------------------------------- the commit


def commit(allow_dirty: bool) -> str:
  """The commit that is checked out.

  Raises:
    ValueError: this is not a git repository, or something is not committed.
  """
  if _git("rev-parse", "--show-toplevel", missing="") != str(ROOT):
    raise ValueError(
      f"{ROOT} is not the top of a git repository, and a job runs a commit; start it from a clone "
      "of the repository, installed with pip install -e ."
    )
  head = _git("rev-parse", "--verify", "HEAD")
  changed = _git("status", "--porcelain").splitlines()
  if changed and not allow_dirty:
    raise ValueError(
      f"{len(changed)} files are not committed ({changed[0].split()[-1]} is the "
      "first); commit them, or add --allow_dirty to run the commit without them"
    )
  if _git("status", "--porcelain", "--", "configs", "rlhf/configs"):
    raise ValueError(
      "the configs have changes that are not committed; commit them, so that the job reads what "
      "was checked here"
    )
  return head


def source(job: Job, given: str | None) -> str:
  """Address of a repository from which a machine elsewhere fetches the job's commit.

  Args:
    job: whose commit it is.
    given: --repository, or None for the remote `origin`.

  Raises:
    ValueError: no remote, a password in its address, or a commit that no remote branch has.
  """
  url = given if given is not None else _git("remote", "get-url", "origin", missing="")
  if not url:
    raise ValueError(
      "there is no remote named origin; name the repository that the job fetches with "
      "--repository=URL"
    )
  parts = urllib.parse.urlsplit(url)
  if parts.password or (parts.username and parts.scheme in ("http", "https")):
    raise ValueError(
      "the repository's address holds a user name or password, which would be written into the "
      "job; name one without with --repository=URL"
    )
  if given is None and not _git("branch", "--remotes", "--contains", job.commit):
    raise ValueError(
      f"commit {job.commit[:12]} is on no remote branch; push it, so that the job can fetch it"
    )
  return url


def check_out(revision: str, directory: pathlib.Path) -> None:
  """Clones this repository at a commit, unless the directory exists."""
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
  """Environment variables that make Python import the clone's code, wherever it is started."""
  # Without PYTHONSAFEPATH `python -m` would import from the current directory first.
  return {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1"}


def committed(code: pathlib.Path, config_file: str) -> str:
  """The commit's copy of a config file; the file itself where it lies outside the repository."""
  found = flags.find_file(config_file)[0].resolve()
  return str(code / found.relative_to(ROOT) if found.is_relative_to(ROOT) else found)


def _git(*words: str, missing: str | None = None) -> str:
  """What git prints; `missing` where it fails and that is not an error."""
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


def with_config_file(words: Sequence[str], config_file: Callable[[str], str]) -> list[str]:
  """A command line whose --config names another path of the same file."""
  changed = list(words)
  for i, word in enumerate(words):
    if word == "--config" or word.startswith("--config="):
      place, given = (i, word[9:]) if "=" in word else (i + 1, words[i + 1])
      path, colon, argument = given.partition(":")
      start = "--config=" if place == i else ""
      changed[place] = f"{start}{config_file(path)}{colon}{argument}"
  return changed


def fetch_and_train(job: Job, repository: str, join: Sequence[str]) -> str:
  """One line for a container's shell, which fetches the commit and becomes the program.

  `exec` gives the program the shell's process id, so that it gets the SIGTERM of a preemption.
  """
  program = shlex.join(job.command(config_file=in_repository))
  return (
    f"git clone --quiet {shlex.quote(repository)} /tmp/rlhf && cd /tmp/rlhf && "
    f"git checkout --quiet --detach {job.commit} && exec {' '.join([program, *join])}"
  )


def in_repository(path: str) -> str:
  """A config file's path from the repository's top.

  Raises:
    ValueError: git does not have it, so the job would not either.
  """
  resolved = flags.find_file(path)[0].resolve()
  if not resolved.is_relative_to(ROOT) or not _git("ls-files", "--", str(resolved)):
    raise ValueError(
      f"--config={path} is not in the repository, and the job fetches no other "
      "file; commit it under configs/"
    )
  return str(resolved.relative_to(ROOT))


def fill_in(template: str, **values: Any) -> str:
  """The YAML of a template of this package; text of several lines becomes a block."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "templates"),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )

  class Dumper(yaml.SafeDumper):
    pass

  def text(dumper, value):
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

  Dumper.add_representer(str, text)
  data = yaml.safe_load(environment.get_template(template).render(values))
  return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=1000)


def hand_over(
  arguments: argparse.Namespace, text: str, command: Sequence[str], install: str
) -> None:
  """Prints (--dry_run) or writes (--output) a job's YAML, or pipes it into an engine's program.

  Args:
    arguments: of `parser` and `add_remote`.
    text: the YAML.
    command: the program and its arguments but the last, the file's name.
    install: how to get the program.
  """
  if arguments.dry_run:
    print(f"# {shlex.join([*command, 'FILE'])}\n{text}", end="")
  elif arguments.output is not None:
    workdir_lib.write_text(arguments.output, text)
    print(f"{arguments.output}: {shlex.join([*command, arguments.output])} starts the job")
  else:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      run([*command, file.name], install)


def run(command: Sequence[str], install: str) -> None:
  """Runs an engine's program; ends with its exit status where that is not 0."""
  try:
    status = subprocess.run(command, check=False).returncode
  except FileNotFoundError:
    raise ValueError(f"there is no program {command[0]!r}; {install}, or add --dry_run") from None
  if status:
    startup.fail(f"{command[0]} ended with status {status}", 1)
