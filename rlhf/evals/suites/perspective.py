"""Toxicity by the Perspective API, through Google's client.

The service ends: its announcement of January 2026 says that it "will no longer be in service after
2026", that new keys and larger quotas are not given any more, and that there is no migration.  What
InstructGPT's Table 14 reports was measured with it; `toxicity.scores` works without it.

Needs the extra `evals` (google-api-python-client), a key in an environment variable, and a network.
Answers are kept line by line, so that a run that was interrupted asks for none of them twice.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Sequence

import numpy as np

ENDPOINT = "https://commentanalyzer.googleapis.com"
ATTRIBUTES = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")
# Too many requests, and the faults of a server that may be gone a moment later.
_RETRIED = (429, 500, 502, 503, 504)
_SECONDS_OF_FIRST_WAIT, _SECONDS_OF_LONGEST_WAIT = 1.0, 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerspectiveConfig:
  """How the API is asked.

  Attributes:
    attribute: of `ATTRIBUTES`; the paper's is TOXICITY.
    language: ISO 639-1 code of the texts.
    requests_per_second: the quota; a new key has 1.
    max_tries: of one request; between two of them the wait doubles, from a second to a minute.
    timeout_seconds: of one try.
    endpoint: another address, for a stand-in.
    key_variable: the environment variable that holds the key.
  """

  attribute: str = "TOXICITY"
  language: str = "en"
  requests_per_second: float = 1.0
  max_tries: int = 6
  timeout_seconds: float = 60.0
  endpoint: str = ENDPOINT
  key_variable: str = "PERSPECTIVE_API_KEY"

  def __post_init__(self):
    if self.attribute not in ATTRIBUTES:
      raise ValueError(f"attribute {self.attribute!r}; choose from {', '.join(ATTRIBUTES)}")
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?", self.language):
      raise ValueError(f"language {self.language!r}; give a code such as 'en'")
    for name in ("requests_per_second", "timeout_seconds"):
      if not 0 < getattr(self, name) < math.inf:
        raise ValueError(f"{name} {getattr(self, name)} must be above 0")
    if self.max_tries < 1:
      raise ValueError(f"max_tries {self.max_tries}; use 1 or more")


class PerspectiveError(ValueError):
  """The API gives no score: one sentence; what it gave before is kept."""


def check(p: PerspectiveConfig) -> None:
  """Raises ValueError where the client is not installed or there is no key."""
  try:
    import googleapiclient  # noqa: F401  pylint: disable=unused-import
  except ImportError as error:
    raise ValueError(
      "classifier perspective needs the package google-api-python-client; install "
      "the extra `evals`, or use the classifier profanity"
    ) from error
  if not os.environ.get(p.key_variable, "").strip():
    raise ValueError(
      f"the environment variable {p.key_variable} is not set; put the key of the "
      "Perspective API there, or use the classifier profanity, which needs none"
    )


def scores(
  p: PerspectiveConfig,
  texts: Sequence[str],
  cache: str | os.PathLike,
  *,
  progress: Callable[[int, int], None] | None = None,
  sleep: Callable[[float], None] = time.sleep,
  clock: Callable[[], float] = time.monotonic,
) -> np.ndarray:
  """The attribute's summary score of each text.

  Args:
    texts: a text of nothing but white space, which the API refuses, scores 0 unasked.
    cache: a JSON-lines file of answers; what it has is not asked, and each new one is added.
    progress: called with (texts done, texts in all).
    sleep, clock: in seconds.

  Returns:
    score_N, float64 in [0, 1].

  Raises:
    ValueError: as `check`, or a line of the cache that is no answer.
    PerspectiveError: the key is refused, every try failed, or an answer has no score.
  """
  check(p)
  known = _read(pathlib.Path(cache))
  client, next_time = None, -math.inf
  out = np.zeros(len(texts))
  for i, text in enumerate(texts):
    if text.strip():
      key = (p.attribute, p.language, text)
      if key not in known:
        client = _client(p, sleep) if client is None else client

        def ask():
          nonlocal next_time  # every try counts against the quota
          if (wait := next_time - clock()) > 0:
            sleep(wait)
          next_time = clock() + 1.0 / p.requests_per_second
          return _request(p, client, text)

        known[key] = _score(p, _tried(p, ask, sleep))
        _append(pathlib.Path(cache), key, known[key])
      out[i] = known[key]
    if progress is not None:
      progress(i + 1, len(texts))
  return out


def _client(p: PerspectiveConfig, sleep: Callable[[float], None]):
  """The service as its own description, which is fetched, says."""
  import httplib2
  from googleapiclient import discovery

  transport = httplib2.Http(timeout=p.timeout_seconds)

  def describe():
    return discovery.build(
      "commentanalyzer",
      "v1alpha1",
      developerKey=os.environ[p.key_variable].strip(),
      discoveryServiceUrl=f"{p.endpoint}/$discovery/rest?version=v1alpha1",
      static_discovery=False,
      cache_discovery=False,
      http=transport,
      num_retries=0,
    )

  return _tried(p, describe, sleep)


def _request(p: PerspectiveConfig, client, text: str) -> dict:
  return (
    client.comments()
    .analyze(
      body={
        "comment": {"text": text},
        "languages": [p.language],
        "doNotStore": True,
        "requestedAttributes": {p.attribute: {}},
      }
    )
    .execute()
  )


def _tried(p: PerspectiveConfig, call: Callable, sleep: Callable[[float], None]):
  """What `call` gives, tried again where that may help."""
  from googleapiclient import errors

  wait = _SECONDS_OF_FIRST_WAIT
  for number in range(1, p.max_tries + 1):
    try:
      return call()
    except errors.HttpError as error:
      status = int(error.resp.status)
      if status not in _RETRIED:
        raise PerspectiveError(
          f"{p.endpoint} answered {status} ({error.reason}); {_advice(status, p)}"
        ) from None
      what = f"{status} ({error.reason})"
    except (errors.UnknownApiNameOrVersion, errors.InvalidJsonError) as error:
      raise PerspectiveError(
        f"{p.endpoint} does not describe the Perspective API "
        f"({type(error).__name__}); is the service still there?"
      ) from None
    except (OSError, _network_error()) as error:
      what = f"{type(error).__name__} ({error})"
    if number < p.max_tries:
      sleep(wait)
      wait = min(2 * wait, _SECONDS_OF_LONGEST_WAIT)
  raise PerspectiveError(
    f"{p.endpoint} gave {what} at each of {p.max_tries} tries; run the same "
    "command again later, what was scored so far is kept"
  )


def _network_error():
  import httplib2

  return httplib2.HttpLib2Error


def _advice(status: int, p: PerspectiveConfig) -> str:
  if status in (401, 403):
    return f"the key in {p.key_variable} is refused; the API must be enabled for its project"
  return f"check the key in {p.key_variable} and the language {p.language!r}"


def _score(p: PerspectiveConfig, answer) -> float:
  try:
    value = answer["attributeScores"][p.attribute]["summaryScore"]["value"]
  except (KeyError, TypeError):
    value = None
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
    shown = json.dumps(answer)[:80]
    raise PerspectiveError(
      f"{p.endpoint} answered {shown}, which has no {p.attribute} score from "
      "0 to 1; what was scored before is kept"
    )
  return float(value)


# ---- the cache -----------------------------------------------------------------------------------


def _read(path: pathlib.Path) -> dict[tuple[str, str, str], float]:
  """The answers of a file; a last line that was cut off is as if it had not been written."""
  if not path.exists():
    return {}
  lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
  if lines and not lines[-1].endswith("\n"):
    path.write_text("".join(lines[:-1]), encoding="utf-8")
    lines.pop()
  known = {}
  for number, line in enumerate(lines, start=1):
    try:
      fields = json.loads(line)
      known[fields["attribute"], fields["language"], fields["text"]] = float(fields["score"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
      raise ValueError(
        f"{path}:{number} is no cached answer of the Perspective API; remove the "
        "line, its text is asked again"
      ) from error
  return known


def _append(path: pathlib.Path, key: tuple[str, str, str], score: float) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  attribute, language, text = key
  with open(path, "a", encoding="utf-8") as file:
    file.write(
      json.dumps(dict(attribute=attribute, language=language, text=text, score=score)) + "\n"
    )
