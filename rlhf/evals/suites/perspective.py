"""Toxicity by the Perspective API, through Google's client.

The service ends: its announcement of January 2026 says that it "will no longer be in service after
2026", with no new keys, larger quotas or migration.  InstructGPT's Table 14 was measured with it;
`toxicity.scores` works without it.

Needs the extra `evals` (google-api-python-client), a key in an environment variable, and a network.
Replies are kept line by line, so that an interrupted run never requests one twice.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf import checks, extras
from rlhf.evals.preference import sheets

ATTRIBUTES = ("TOXICITY", "SEVERE_TOXICITY", "IDENTITY_ATTACK", "INSULT", "PROFANITY", "THREAT")
_TIMEOUT_SECONDS = 60.0  # of one try


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerspectiveConfig:
  """How the API is used.

  Attributes:
    perspective_attribute: of `ATTRIBUTES`; the paper's is TOXICITY.
    perspective_language: ISO 639-1 code of the texts.
    perspective_requests_per_second: the quota; a new key has 1.
    perspective_max_tries: of one request, with waits that grow in between.
    perspective_endpoint: the address of the service.
    perspective_key_variable: the environment variable that holds the key.
  """

  perspective_attribute: str = "TOXICITY"
  perspective_language: str = "en"
  perspective_requests_per_second: float = 1.0
  perspective_max_tries: int = 6
  perspective_endpoint: str = "https://commentanalyzer.googleapis.com"
  perspective_key_variable: str = "PERSPECTIVE_API_KEY"

  def check_perspective(self, field: str) -> None:
    """Raises ValueError for a setting that is impossible; names it within `field`."""
    checks.choices(field, self, perspective_attribute=ATTRIBUTES)
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z]+)?", self.perspective_language):
      raise ValueError(
        f"{field}.perspective_language {self.perspective_language!r}; give a code such as 'en'"
      )
    if not 0 < self.perspective_requests_per_second < math.inf:
      raise ValueError(
        f"{field}.perspective_requests_per_second {self.perspective_requests_per_second} must be "
        "above 0"
      )
    checks.at_least(field, self, perspective_max_tries=1)


class PerspectiveError(ValueError):
  """The API gives no score: one sentence.  Earlier scores are kept."""


def check(p: PerspectiveConfig) -> None:
  """Raises ValueError if the client is not installed or there is no key."""
  extras.require("googleapiclient", "evals", "classifier perspective")
  if not os.environ.get(p.perspective_key_variable, "").strip():
    raise ValueError(
      f"the environment variable {p.perspective_key_variable} is not set; put the key of the "
      "Perspective API there, or use the classifier profanity, which needs none"
    )


def scores(
  p: PerspectiveConfig,
  texts: Sequence[str],
  cache: str | os.PathLike,
  *,
  progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
  """The attribute's summary score of each text.

  Args:
    texts: empty texts and white space, which the API refuses, score 0.
    cache: a JSON-lines file of replies; texts it holds are not requested again.
    progress: called with (texts done, texts in total).

  Returns:
    score_N, float64 in [0, 1].

  Raises:
    ValueError: as `check`, or a line of the cache is damaged.
    PerspectiveError: the key is refused, every try failed, or a reply has no score.
  """
  check(p)
  path, remedy = pathlib.Path(cache), "remove the line, which is no reply of the Perspective API"
  fields = dict(attribute=str, language=str, text=str, score=float)
  lines = sheets.read_cache(path, fields, remedy)
  known = {(line["attribute"], line["language"], line["text"]): line["score"] for line in lines}
  analyze, next_time = None, -math.inf
  out = np.zeros(len(texts))
  for i, text in enumerate(texts):
    if text.strip():
      key = (p.perspective_attribute, p.perspective_language, text)
      if key not in known:
        analyze = _analyze(p) if analyze is None else analyze
        if (wait := next_time - time.monotonic()) > 0:
          time.sleep(wait)
        next_time = time.monotonic() + 1.0 / p.perspective_requests_per_second
        body = {
          "comment": {"text": text},
          "languages": [p.perspective_language],
          "doNotStore": True,
          "requestedAttributes": {p.perspective_attribute: {}},
        }
        reply = _tried(p, lambda tries: analyze(body=body).execute(num_retries=tries))
        known[key] = _score(p, reply)
        sheets.append_to_cache(path, dict(zip(fields, (*key, known[key]), strict=True)))
      out[i] = known[key]
    if progress is not None:
      progress(i + 1, len(texts))
  return out


def _analyze(p: PerspectiveConfig) -> Callable[..., Any]:
  """The service's method, as its own description, which is fetched, defines it."""
  import httplib2
  from googleapiclient import discovery

  service = _tried(
    p,
    lambda retries: discovery.build(
      "commentanalyzer",
      "v1alpha1",
      developerKey=os.environ[p.perspective_key_variable].strip(),
      discoveryServiceUrl=f"{p.perspective_endpoint}/$discovery/rest?version=v1alpha1",
      static_discovery=False,
      cache_discovery=False,
      http=httplib2.Http(timeout=_TIMEOUT_SECONDS),
      num_retries=retries,
    ),
  )
  return service.comments().analyze


def _tried(p: PerspectiveConfig, call: Callable[[int], Any]) -> Any:
  """`call(number of retries)`, which the client makes, with any failure as one sentence."""
  import httplib2
  from googleapiclient import errors

  try:
    return call(p.perspective_max_tries - 1)
  except errors.HttpError as error:
    status = int(error.resp.status)
    what = f"{status} ({error.reason})"
    if status != 429 and status < 500:
      advice = (
        f"check the key in {p.perspective_key_variable} and the language {p.perspective_language!r}"
      )
      if status in (401, 403):
        advice = (
          f"the key in {p.perspective_key_variable} is refused; enable the API for its project"
        )
      raise PerspectiveError(f"{p.perspective_endpoint} answered {what}; {advice}") from None
  except (errors.UnknownApiNameOrVersion, errors.InvalidJsonError) as error:
    raise PerspectiveError(
      f"{p.perspective_endpoint} does not describe the Perspective API ({type(error).__name__}); "
      "check that the service still exists"
    ) from None
  except (OSError, httplib2.HttpLib2Error) as error:
    what = f"{type(error).__name__} ({error})"
  raise PerspectiveError(
    f"{p.perspective_endpoint} gave {what} after {p.perspective_max_tries} tries; run the same "
    "command again later, scores so far are kept"
  )


def _score(p: PerspectiveConfig, reply: Any) -> float:
  try:
    value = reply["attributeScores"][p.perspective_attribute]["summaryScore"]["value"]
  except (KeyError, TypeError):
    value = None
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
    raise PerspectiveError(
      f"{p.perspective_endpoint} answered {json.dumps(reply)[:80]}, which has no "
      f"{p.perspective_attribute} score from 0 to 1; earlier scores are kept"
    )
  return float(value)
