"""A model behind an OpenAI-compatible endpoint as a judge.

Two completions are compared, or one is rated, by a chat completion whose last line is a verdict.
The openai client retries after 408, 409, 429, 5xx, timeouts and lost connections, with growing
pauses; a reply without a verdict is followed by a reminder in the same conversation.

Replies are appended to a JSONL cache under a hash of server, model, messages and sampling settings,
so that a second run asks only what is missing and nothing is paid for twice.  Empty replies are not
cached and are retried in the next run.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import string
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

from rlhf import checks, extras
from rlhf.evals.preference import sheets, win_rates

# Criteria and their order follow InstructGPT's final evaluation (arXiv:2203.02155, section 3.4):
# truthful and harmless before helpful.  The wording is this project's.
_PROMPTS = pathlib.Path(__file__).with_name("prompts")
POSITION_SCALE = (1, 2, 3, 4, 5)  # of PALMS
_WINS = {"a": 1.0, "b": 0.0, "tie": 0.5}
_VERDICT = re.compile(r"verdict\W*\b(A|B|tie)\b", re.IGNORECASE)
# Also reads 4 in "Rating (1 to 5): 4".
_RATING = re.compile(r"rating\W*?(?:\([^)]*\)\W*?)?(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_TOKENS = ("prompt_tokens", "completion_tokens")


def parse_verdict(text: str) -> float | None:
  """1 for A, 0 for B, 0.5 for a tie, None without a verdict; the last one counts."""
  return _WINS.get(_last(_VERDICT, text).lower())


def parse_rating(text: str, scale: Sequence[int] = win_rates.LIKERT) -> int | None:
  """A number of the scale, None without one; the last one counts."""
  cell = _last(_RATING, text)
  return int(cell) if cell in map(str, scale) else None


def _last(pattern: re.Pattern, text: str) -> str:
  """The last match, or the whole text without emphasis where there is none."""
  found = pattern.findall(text)
  return found[-1] if found else text.strip(" \n.*'\"")


class _Kind(NamedTuple):
  """A kind of question: the fields of its template, and what its reply says."""

  fields: tuple[str, ...]
  parse: Callable[[str], float | None]
  noun: str  # what the reply must have
  form: str  # of that


_KINDS = {
  "pairwise": _Kind(
    ("prompt", "answer_a", "answer_b"),
    parse_verdict,
    "verdict",
    "Verdict: A, Verdict: B or Verdict: tie",
  ),
  "likert": _Kind(
    ("prompt", "answer"), parse_rating, "rating", "Rating: and a whole number from 1 to 7"
  ),
  "position": _Kind(
    ("question",),
    functools.partial(parse_rating, scale=POSITION_SCALE),
    "rating",
    "Rating: and a whole number from 1 to 5",
  ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
  """An endpoint and how it is used.

  Attributes:
    base_url: of the API, without "/chat/completions".
    model: its name there.
    api_key_variable: environment variable with the key; empty for a server that needs none.
    pairwise_prompt: has {prompt}, {answer_a} and {answer_b}; empty for prompts/pairwise.txt.
    likert: whether every completion is also rated from 1 to 7.
    likert_prompt: has {prompt} and {answer}; empty for prompts/likert.txt.
    temperature: None leaves it to the server.
    max_tokens: of a reply; None leaves it to the server.
    timeout: of a request, in seconds.
    max_retries: how often the client repeats a failed request.
    max_attempts: how often a question is asked until a reply has a verdict.
    num_parallel: concurrent requests.
    input_price, output_price: per million tokens; None reports tokens only.
    currency: of the prices.
  """

  base_url: str
  model: str
  api_key_variable: str
  pairwise_prompt: str
  likert: bool
  likert_prompt: str
  temperature: float | None
  max_tokens: int | None
  timeout: float
  max_retries: int
  max_attempts: int
  num_parallel: int
  input_price: float | None
  output_price: float | None
  currency: str

  def __post_init__(self):
    if not self.base_url.startswith(("http://", "https://")):
      raise ValueError(
        f"endpoint.base_url {self.base_url!r}; give a URL that begins with http:// or https://"
      )
    if not self.model:
      raise ValueError("endpoint.model is empty; name a model that the endpoint serves")
    checks.at_least("endpoint", self, max_tokens=1, max_attempts=1, num_parallel=1)
    checks.at_least("endpoint", self, max_retries=0, temperature=0, input_price=0, output_price=0)
    if not 0 < self.timeout < math.inf:
      raise ValueError(f"endpoint.timeout {self.timeout}; use a number of seconds above 0")
    for kind in _KINDS:
      _check_template(f"endpoint.{kind}_prompt", self.template(kind), _KINDS[kind].fields)

  def template(self, kind: str) -> str:
    """The prompt of one kind of question, with the fields of `_KINDS`."""
    own = dict(pairwise=self.pairwise_prompt, likert=self.likert_prompt, position="{question}")
    return own[kind] if own[kind] else _default_prompt(kind)


@functools.cache
def _default_prompt(kind: str) -> str:
  return (_PROMPTS / f"{kind}.txt").read_text(encoding="utf-8").removesuffix("\n")


def _check_template(name: str, template: str, fields: Sequence[str]) -> None:
  try:
    parsed = list(string.Formatter().parse(template))
  except ValueError as error:
    raise ValueError(f"{name} is not a template ({error}); double each literal brace") from None
  found = sorted({field for _, field, _, _ in parsed if field is not None})
  plain = all(spec in ("", None) and conversion is None for _, _, spec, conversion in parsed)
  if found != sorted(fields) or not plain:
    needed = ", ".join(f"{{{field}}}" for field in fields)
    raise ValueError(f"{name} has the fields {found}; it needs exactly {needed}")


def check(p: EndpointConfig):
  """An openai client for the endpoint; sends nothing.

  Raises:
    ValueError: the package is not installed, or the environment holds no key.
  """
  openai = extras.load("openai", "evals", "a judge behind an endpoint")
  key = "none"  # the client insists on one
  if p.api_key_variable:
    key = os.environ.get(p.api_key_variable, "").strip()
  if not key:
    raise ValueError(
      f"{p.api_key_variable} is not set in the environment; set it to the API key of {p.base_url}, "
      "or make endpoint.api_key_variable empty for a server that needs none"
    )
  return openai.OpenAI(
    base_url=p.base_url, api_key=key, timeout=p.timeout, max_retries=p.max_retries
  )


class Endpoint:
  """Asks an endpoint what is not in the cache yet.

  Attributes:
    p: its config.
  """

  def __init__(
    self,
    p: EndpointConfig,
    cache: str | os.PathLike,
    *,
    on_answer: Callable[[int, int], None] | None = None,
  ):
    """Reads the cache.

    Args:
      p: see `EndpointConfig`.
      cache: JSONL file; created with its directory where missing.
      on_answer: called with (questions done, their number) of each call.

    Raises:
      ValueError: as `check`, or a line of the cache is malformed.
    """
    self.p, self._client, self._on_answer = p, check(p), on_answer
    self._cache, self._lock = pathlib.Path(cache), threading.Lock()
    fields = dict.fromkeys(("key", "text"), str) | dict.fromkeys(_TOKENS, int)
    remedy = "delete the line, and the question is asked again"
    lines = sheets.read_cache(self._cache, fields, remedy)
    self._lines = {line["key"]: line for line in lines if line["text"].strip()}
    self._used: dict[str, str] = {}  # key -> kind, of every question answered so far
    self._num_asked = 0

  def ask(self, kind: str, texts: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], Any]:
    """What the replies to questions say, from the cache or the endpoint.

    Args:
      kind: "pairwise" for (prompt, completion a, completion b), "likert" for (prompt, completion)
        or "position" for (the whole message,).
      texts: of the questions.

    Returns:
      text -> 1, 0.5 or 0 for a, or 1 to 7, or 1 to 5; None without a verdict.

    Raises:
      ValueError: the endpoint fails permanently, or all replies are empty.
    """
    template, fields = self.p.template(kind), _KINDS[kind].fields
    contents = {text: template.format(**dict(zip(fields, text, strict=True))) for text in texts}
    keys = {name: question_key(self.p, content) for name, content in contents.items()}
    questions = {keys[name]: content for name, content in contents.items()}
    missing = [key for key in questions if key not in self._lines]
    self._used |= {key: kind for key in questions if key in self._lines}
    with futures.ThreadPoolExecutor(self.p.num_parallel) as pool:
      running = [pool.submit(self._answer, kind, key, questions[key]) for key in missing]
      try:
        for done, future in enumerate(futures.as_completed(running), start=1):
          future.result()
          if self._on_answer is not None:
            self._on_answer(done, len(missing))
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)  # keeps what is under way
        raise
    if questions and not any(self._lines[key]["text"] for key in questions):
      raise ValueError(
        f"the endpoint {self.p.base_url} (model {self.p.model}) sent an empty reply to all of "
        f"{len(questions):,} questions; check endpoint.base_url, and run the same command again"
      )
    return {name: self._verdict(kind, key) for name, key in keys.items()}

  def _verdict(self, kind: str, key: str) -> float | None:
    return _KINDS[kind].parse(self._lines[key]["text"])

  def summary(self) -> dict[str, Any]:
    """Questions, tokens and cost of this evaluation, cached replies included; JSON-able."""
    lines = [self._lines[key] for key in self._used]
    tokens = {name: sum(line[name] for line in lines) for name in _TOKENS}
    cost = None
    if self.p.input_price is not None and self.p.output_price is not None:
      prices = self.p.input_price, self.p.output_price
      cost = sum(count * price for count, price in zip(tokens.values(), prices)) / 1e6
    return dict(
      model=self.p.model,
      questions=len(lines),
      asked=self._num_asked,
      from_cache=len(lines) - self._num_asked,
      not_judged=sum(self._verdict(kind, key) is None for key, kind in self._used.items()),
      without_text=sum(not line["text"] for line in lines),
      **tokens,
      cost=cost,
      currency=None if cost is None else self.p.currency,
    )

  def describe(self) -> str:
    """`summary` as one line for the console."""
    s = self.summary()
    cost = "" if s["cost"] is None else f", {s['cost']:.4g} {s['currency']}"
    return (
      f"endpoint {s['model']}: {s['questions']:,} questions, {s['from_cache']:,} from the cache, "
      f"{s['not_judged']:,} without a verdict, {s['without_text']:,} of these with an empty reply; "
      f"{s['prompt_tokens']:,} + {s['completion_tokens']:,} tokens{cost}"
    )

  def _answer(self, kind: str, key: str, content: str) -> None:
    """Asks one question until a reply has a verdict, and caches the reply."""
    line: dict[str, Any] = dict(key=key, kind=kind, model=self.p.model, text="", attempts=0)
    line |= dict.fromkeys(_TOKENS, 0)
    asked = _KINDS[kind]
    messages = question = [dict(role="user", content=content)]
    while line["attempts"] < self.p.max_attempts:
      text, tokens = self._request(messages)
      line["attempts"] += 1
      for name in _TOKENS:
        line[name] += tokens[name]
      if text:
        line["text"] = text
        reminder = (
          f"That had no {asked.noun} in the form asked for. Write one line and nothing else: "
          f"{asked.form}"
        )
        messages = [
          *question,
          dict(role="assistant", content=text),
          dict(role="user", content=reminder),
        ]
      if asked.parse(text) is not None:
        break
    with self._lock:
      if line["text"]:
        sheets.append_to_cache(self._cache, line)
      self._lines[key], self._used[key] = line, kind
      self._num_asked += 1

  def _request(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, dict[str, int]]:
    """(text, tokens) of one chat completion; the text is empty where the reply has none."""
    import openai

    settings = dict(temperature=self.p.temperature, max_tokens=self.p.max_tokens)
    try:
      reply = self._client.chat.completions.create(
        model=self.p.model,
        messages=list(messages),
        **{name: value for name, value in settings.items() if value is not None},
      )
    except openai.OpenAIError as error:
      raise ValueError(self._describe_failure(error)) from error
    except (json.JSONDecodeError, UnicodeDecodeError):
      reply = None
    # Servers that claim compatibility leave fields out, and the client does not check them.
    try:
      # Half of a surrogate pair can be read from JSON, but not sent back in the conversation.
      text = reply.choices[0].message.content.encode("utf-8", "replace").decode()
    except (AttributeError, IndexError, KeyError, TypeError):
      text = ""
    counts = {name: getattr(getattr(reply, "usage", None), name, 0) for name in _TOKENS}
    tokens = {name: count if isinstance(count, int) else 0 for name, count in counts.items()}
    return text if text.strip() else "", tokens

  def _describe_failure(self, error: Exception) -> str:
    """One sentence: what failed, and what to do."""
    import openai

    tries = f"{self.p.max_retries + 1} tries"
    status, message = getattr(error, "status_code", None), " ".join(str(error).split())[:200]
    key = self.p.api_key_variable if self.p.api_key_variable else "a key"
    if isinstance(error, openai.APITimeoutError):
      what = f"did not reply within {self.p.timeout:g} s in {tries}; raise endpoint.timeout"
    elif status == 429:
      what = f"is over its rate limit or quota (429) in {tries}; lower endpoint.num_parallel"
    elif status in (401, 403):
      what = f"refused the API key ({status}: {message}); check {key}"
    elif status is not None:
      what = f"returned {status} ({message}); check endpoint.base_url and endpoint.model"
    else:
      what = f"could not be reached ({message}) in {tries}; check endpoint.base_url"
    return (
      f"the endpoint {self.p.base_url} (model {self.p.model}) {what}; replies so far are in "
      f"{self._cache}, and the same command asks for the others"
    )


def question_key(p: EndpointConfig, content: str) -> str:
  """Name of a question in the cache: server, model, messages and sampling settings."""
  asked = dict(
    base_url=p.base_url.rstrip("/"),
    model=p.model,
    messages=[dict(role="user", content=content)],
    temperature=p.temperature,
    max_tokens=p.max_tokens,
  )
  return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
