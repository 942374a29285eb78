"""All processes of a job say that they are there, before jax connects them.

jax itself aborts with a stack trace where a process is missing, and does not say which.  Process 0
listens on the coordinator's port; the others connect and tell their number; when all are there it
lets them go on and leaves the port to jax.  No jax here.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterable

_RETRY_SECONDS = 0.2  # between attempts to reach process 0
_LINE_SECONDS = 5.0  # for a process that has connected to say its number


class MissingProcess(Exception):
  """Not all processes came in time; one sentence says which and what to check."""


def hold(address: str, *, num_processes: int, process_id: int, seconds: float) -> None:
  """Returns when all processes have come.

  Args:
    address: HOST:PORT of process 0.
    seconds: how long to wait for the last one.

  Raises:
    MissingProcess: they have not come in time; every process that has come raises it.
    ValueError: process 0 cannot open the port, or a process id is used twice.
  """
  if process_id == 0:
    _listen(address, num_processes, seconds)
  else:
    _report(address, num_processes, process_id, seconds)


def split_address(address: str) -> tuple[str, int]:
  """(host, port) of HOST:PORT.

  Raises:
    ValueError: it is not of this form.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdigit() or not 0 < int(port) < 2**16:
    raise ValueError(
      f"--coordinator_address={address} is not HOST:PORT; give the host of process "
      "0 and a free port there, for example node001:12345"
    )
  return host.strip("[]"), int(port)


def free_port() -> int:
  """A port of this machine that nothing listens on."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def _listen(address: str, num_processes: int, seconds: float) -> None:
  deadline = time.monotonic() + seconds
  connections: dict[socket.socket, int] = {}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_open(address))
    selector = stack.enter_context(selectors.DefaultSelector())
    selector.register(server, selectors.EVENT_READ)
    while len(connections) < num_processes - 1:
      left = deadline - time.monotonic()
      if left <= 0:
        missing = sorted(set(range(1, num_processes)) - set(connections.values()))
        sentence = (
          f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of "
          f"{num_processes} did not connect to process 0 at {address} within {seconds:g} s; look "
          "at their logs, and check that they were started with this --coordinator_address and "
          "--num_processes and that their hosts reach this port, or give them longer with "
          "--connect_timeout"
        )
        _answer(connections, sentence)
        raise MissingProcess(sentence)
      for key, _ in selector.select(left):
        if key.fileobj is not server:  # nothing is sent twice: that process has gone
          selector.unregister(key.fileobj)
          connections = {c: n for c, n in connections.items() if c is not key.fileobj}
          continue
        connection = stack.enter_context(server.accept()[0])
        number = _read_number(connection, num_processes)
        if number is None:
          continue
        if number in connections.values():
          sentence = f"two processes were started with --process_id={number}; give each its own"
          _answer([*connections, connection], sentence)
          raise ValueError(sentence)
        connections[connection] = number
        selector.register(connection, selectors.EVENT_READ)
    _answer(connections, "")


def _open(address: str) -> socket.socket:
  _, port = split_address(address)
  both = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
    )
  except OSError as error:
    raise ValueError(
      f"--coordinator_address={address}: process 0 cannot open port {port} on its "
      f"host ({error.strerror}); choose another port"
    ) from error


def _read_number(connection: socket.socket, num_processes: int) -> int | None:
  """The number that a process tells; None where it is not one of this job."""
  connection.settimeout(_LINE_SECONDS)
  try:
    with connection.makefile("r", encoding="utf-8") as lines:
      told = json.loads(lines.readline(1000))
    number, total = told["process_id"], told["num_processes"]
  except (OSError, ValueError, KeyError, TypeError):
    return None
  if total != num_processes:
    sentence = f"process {number} was started with --num_processes={total} and process 0 with "
    _answer([connection], f"{sentence}{num_processes}; make them equal")
    return None
  return number if isinstance(number, int) and 0 < number < num_processes else None


def _answer(connections: Iterable[socket.socket], sentence: str) -> None:
  for connection in connections:
    with contextlib.suppress(OSError):
      connection.sendall((json.dumps(sentence) + "\n").encode())


def _report(address: str, num_processes: int, process_id: int, seconds: float) -> None:
  deadline = time.monotonic() + seconds
  told = json.dumps({"process_id": process_id, "num_processes": num_processes}) + "\n"
  reason = ""
  while (left := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(split_address(address), timeout=left) as connection:
        connection.sendall(told.encode())
        # Process 0 may have started later, and decides when it is too late.
        connection.settimeout(left + seconds)
        with connection.makefile("r", encoding="utf-8") as lines:
          answer = lines.readline(10_000)
      if answer:
        if sentence := json.loads(answer):
          raise MissingProcess(sentence)
        return
      reason = "it hung up"
    except (OSError, ValueError) as error:
      reason = str(error)
    time.sleep(_RETRY_SECONDS)
  raise MissingProcess(
    f"process 0 of {num_processes} did not answer process {process_id} at {address} within "
    f"{seconds:g} s ({reason}); look at its log, and check --coordinator_address and that this "
    "host reaches it, or wait longer with --connect_timeout"
  )
