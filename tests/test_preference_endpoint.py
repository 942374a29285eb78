"""A judge behind an endpoint, asked over HTTP from a small server of the test's own."""

import http.server
import json
import threading
import time

import pytest

from rlhf.evals.preference import endpoint, judges

PAIR = ("the prompt", "short", "a longer answer")
PROMPTS = [{"prompt": "p0"}, {"prompt": "p1"}, {"prompt": "p2"}]
ANSWERS = {"sft": ["aa", "bb", "same"], "ppo": ["aaaa", "b", "same"]}
KEY = "TEST_JUDGE_KEY"


class Server:
  """Answers chat completions with what `reply(messages, number of the request)` gives: a text, a
  status, (seconds to wait, text), or the bytes of the whole reply."""

  def __init__(self):
    self.requests = []
    self.reply = lambda messages, number: longer_wins(messages)
    self._lock = threading.Lock()
    outer = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_POST(self):  # pylint: disable=invalid-name
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with outer._lock:
          number = len(outer.requests)
          outer.requests.append(dict(body, path=self.path, key=self.headers["Authorization"]))
        said = outer.reply(body["messages"], number)
        if isinstance(said, tuple):
          time.sleep(said[0])
          said = said[1]
        status = said if isinstance(said, int) else 200
        answer = (
          {"error": {"message": f"no, {status}"}}
          if status != 200
          else {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
              {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": said},
              }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
          }
        )
        data = said if isinstance(said, bytes) else json.dumps(answer).encode()
        try:
          self.send_response(status)
          self.send_header("Content-Type", "application/json")
          self.send_header("retry-after-ms", "1")  # the client waits for no more
          self.send_header("Content-Length", str(len(data)))
          self.end_headers()
          self.wfile.write(data)
        except OSError:
          pass  # the client has given up, as it should

      def log_message(self, *unused):
        pass

    self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
    threading.Thread(
      target=self._http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True
    ).start()

  def close(self):
    self._http.shutdown()
    self._http.server_close()


def shown(messages):
  """(answer a, answer b) of a pairwise question."""
  text = messages[0]["content"]
  between = lambda start, end: text.partition(start)[2].partition(end)[0].strip()
  return (between("[Answer A]", "[End of answer A]"), between("[Answer B]", "[End of answer B]"))


def longer_wins(messages):
  if "[Answer]" in messages[0]["content"]:
    return "Fine.\nRating: 5"
  a, b = shown(messages)
  return f"Because.\nVerdict: {'tie' if len(a) == len(b) else 'A' if len(a) > len(b) else 'B'}"


@pytest.fixture
def server(monkeypatch):
  monkeypatch.setenv(KEY, "secret")
  monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
  found = Server()
  yield found
  found.close()


def config(server, **changes):
  return endpoint.EndpointConfig(
    **dict(
      base_url=server.url,
      model="judge-1",
      api_key_variable=KEY,
      pairwise_prompt="",
      likert=False,
      likert_prompt="",
      temperature=0.0,
      max_tokens=64,
      timeout=5.0,
      max_retries=2,
      max_attempts=2,
      num_parallel=2,
      input_price=2.0,
      output_price=10.0,
      currency="USD",
    )
    | changes
  )


def open_endpoint(server, tmp_path, **changes):
  return endpoint.Endpoint(config(server, **changes), tmp_path / "cache" / "endpoint.jsonl")


# ----------------------------------------------------------------------------- good answers


def test_a_pair_is_asked_with_the_key_and_the_settings(server, tmp_path):
  found = open_endpoint(server, tmp_path).ask("pairwise", [PAIR, PAIR])
  assert found == {PAIR: 0.0}
  (request,) = server.requests
  assert request["path"] == "/v1/chat/completions" and request["key"] == "Bearer secret"
  assert (request["model"], request["temperature"], request["max_tokens"]) == ("judge-1", 0.0, 64)
  assert shown(request["messages"]) == PAIR[1:]
  assert "[Instruction]\nthe prompt\n[End of instruction]" in request["messages"][0]["content"]


def test_settings_left_to_the_server_are_not_sent(server, tmp_path):
  open_endpoint(server, tmp_path, temperature=None, max_tokens=None).ask("pairwise", [PAIR])
  assert not {"temperature", "max_tokens"} & server.requests[0].keys()


def test_braces_of_a_text_are_text(server, tmp_path):
  open_endpoint(server, tmp_path).ask("pairwise", [("{prompt} {0}", "{answer_b}", "}{")])
  assert shown(server.requests[0]["messages"]) == ("{answer_b}", "}{")


def test_own_templates_are_used(server, tmp_path):
  asker = open_endpoint(
    server,
    tmp_path,
    pairwise_prompt="{prompt}|{answer_a}|{answer_b}",
    likert=True,
    likert_prompt="{{}} {answer} to {prompt}",
  )
  server.reply = lambda messages, number: "Verdict: B" if number == 0 else "Rating: 2"
  assert asker.ask("pairwise", [PAIR]) == {PAIR: 0.0}
  assert asker.ask("likert", [("p", "x")]) == {("p", "x"): 2}
  assert [request["messages"][0]["content"] for request in server.requests] == [
    "the prompt|short|a longer answer",
    "{} x to p",
  ]


def test_the_judge_compares_in_both_orders_and_rates(server, tmp_path):
  asker = open_endpoint(server, tmp_path, likert=True)
  rows = judges.endpoint(asker)(PROMPTS, ANSWERS, "sft")
  wins = {(row["policy"], row["prompt_index"]): row["win"] for row in rows}
  assert wins == {
    ("sft", 0): None,
    ("sft", 1): None,
    ("sft", 2): None,
    ("ppo", 0): 1,
    ("ppo", 1): 0,
    ("ppo", 2): 0.5,
  }
  assert {row["likert"] for row in rows} == {5}
  assert {(row["labeler"], row["group"]) for row in rows} == {("judge-1", "endpoint")}
  # 2 pairs in 2 orders and 5 different texts; nothing is asked of two equal answers.
  assert len(server.requests) == 4 + 5


def test_a_judge_that_prefers_a_place_gives_ties(server, tmp_path):
  server.reply = lambda messages, number: "Verdict: A"
  rows = judges.endpoint(open_endpoint(server, tmp_path))(PROMPTS, ANSWERS, "sft")
  assert [row["win"] for row in rows if row["policy"] == "ppo"] == [0.5, 0.5, 0.5]
  assert all(row["likert"] is None for row in rows)


def test_cost_is_tokens_times_prices(server, tmp_path):
  asker = open_endpoint(server, tmp_path)
  judges.endpoint(asker)(PROMPTS, ANSWERS, "sft")
  assert asker.summary() == dict(
    model="judge-1",
    questions=4,
    asked=4,
    from_cache=0,
    not_judged=0,
    without_text=0,
    prompt_tokens=400,
    completion_tokens=40,
    cost=pytest.approx((400 * 2 + 40 * 10) / 1e6),
    currency="USD",
  )
  assert "4 questions, 0 from the cache" in asker.describe()
  assert "0.0012 USD" in asker.describe()
  unpriced = open_endpoint(server, tmp_path, output_price=None)
  judges.endpoint(unpriced)(PROMPTS, ANSWERS, "sft")
  assert unpriced.summary()["cost"] is None and "USD" not in unpriced.describe()
  assert "400 + 40 tokens" in unpriced.describe()


@pytest.mark.parametrize(
  "text, win",
  [
    ("Verdict: A", 1),
    ("**Verdict: B**", 0),
    ("verdict: Tie.", 0.5),
    ("A", 1),
    ("**B**", 0),
    ("Verdict: A or\nVerdict: B?\nVerdict: tie", 0.5),
    ("A is better", None),
    ("Verdict: both", None),
    ("Verdict: Answer", None),
    ("", None),
  ],
)
def test_verdicts(text, win):
  assert endpoint.parse_verdict(text) == win


@pytest.mark.parametrize(
  "text, rating",
  [
    ("Good.\nRating: 6", 6),
    ("**Rating:** 7", 7),
    ("3", 3),
    ("Rating: 3/7", 3),
    ("Rating: 2\nRating: 4", 4),
    ("Rating (1 to 7): 4", 4),
    ("Rating (1-7) 5", 5),
    ("Rating: 8", None),
    ("Rating: 0", None),
    ("Rating: 3.5", None),
    ("Rating: -3", None),
    ("Rating: five", None),
    ("10", None),
    ("", None),
  ],
)
def test_ratings(text, rating):
  assert endpoint.parse_rating(text) == rating


# ----------------------------------------------------------------------------- the cache


def test_a_second_run_asks_only_what_is_missing(server, tmp_path):
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  again = open_endpoint(server, tmp_path)
  other = ("the prompt", "x", "yy")
  assert again.ask("pairwise", [PAIR, other]) == {PAIR: 0.0, other: 0.0}
  assert len(server.requests) == 2
  assert again.summary() | dict(cost=0) == dict(
    model="judge-1",
    questions=2,
    asked=1,
    from_cache=1,
    not_judged=0,
    without_text=0,
    prompt_tokens=200,
    completion_tokens=20,
    cost=0,
    currency="USD",
  )


def test_a_line_without_text_that_is_in_the_cache_counts_for_nothing(server, tmp_path):
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  path = tmp_path / "cache" / "endpoint.jsonl"
  path.write_text(json.dumps(json.loads(path.read_text()) | dict(text="")) + "\n")
  assert open_endpoint(server, tmp_path).ask("pairwise", [PAIR]) == {PAIR: 0.0}
  assert len(server.requests) == 2


@pytest.mark.parametrize(
  "change",
  [
    dict(model="judge-2"),
    dict(temperature=1.0),
    dict(max_tokens=65),
    dict(pairwise_prompt="{prompt}{answer_a}{answer_b}"),
  ],
)
def test_another_question_is_not_answered_from_the_cache(server, tmp_path, change):
  server.reply = lambda messages, number: "Verdict: A"
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  open_endpoint(server, tmp_path, **change).ask("pairwise", [PAIR])
  assert len(server.requests) == 2


def test_another_server_with_a_model_of_that_name_is_asked_itself(server, tmp_path):
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  open_endpoint(server, tmp_path, base_url=f"{server.url}/").ask("pairwise", [PAIR])
  assert len(server.requests) == 1
  open_endpoint(server, tmp_path, base_url=server.url.replace("127.0.0.1", "localhost")).ask(
    "pairwise", [PAIR]
  )
  assert len(server.requests) == 2


def test_a_line_that_a_killed_run_left_half_is_asked_again(server, tmp_path):
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  path = tmp_path / "cache" / "endpoint.jsonl"
  whole = path.read_text()
  path.write_text(whole + whole[:40])
  assert open_endpoint(server, tmp_path).ask("pairwise", [PAIR]) == {PAIR: 0.0}
  assert path.read_text() == whole and len(server.requests) == 1
  path.write_text("not json\n" + whole)
  with pytest.raises(ValueError, match=r"endpoint.jsonl:1: not JSON .*; delete the line, and"):
    open_endpoint(server, tmp_path)


# ----------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_refusal_that_passes_is_repeated(server, tmp_path, status):
  server.reply = lambda messages, number: status if number < 2 else longer_wins(messages)
  assert open_endpoint(server, tmp_path).ask("pairwise", [PAIR]) == {PAIR: 0.0}
  assert len(server.requests) == 3


def test_a_timeout_that_passes_is_repeated(server, tmp_path):
  server.reply = lambda messages, number: (1.6 if number == 0 else 0, longer_wins(messages))
  assert open_endpoint(server, tmp_path, timeout=0.8).ask("pairwise", [PAIR]) == {PAIR: 0.0}
  assert len(server.requests) == 2


@pytest.mark.parametrize(
  "reply, changes, sentence",
  [
    (lambda messages, number: 429, {}, "is over its rate limit or quota (429) in 3 tries"),
    (lambda messages, number: 401, {}, "refused the API key (401: Error code: 401"),
    (lambda messages, number: 404, {}, "returned 404"),
    (
      lambda messages, number: (1.0, "x"),
      dict(timeout=0.5, max_retries=0),
      "did not reply within 0.5 s in 1 tries; raise endpoint.timeout",
    ),
  ],
)
def test_a_failure_for_good_is_one_sentence_and_keeps_what_was_answered(
  server, tmp_path, reply, changes, sentence
):
  asker = open_endpoint(server, tmp_path, num_parallel=1, **changes)
  server.reply = lambda messages, number: (
    longer_wins(messages) if number == 0 else reply(messages, number)
  )
  others = [PAIR, ("p", "x", "yy"), ("p", "x", "zz")]
  with pytest.raises(ValueError) as error:
    asker.ask("pairwise", others)
  assert sentence in str(error.value) and "\n" not in str(error.value)
  assert "the same command asks for the others" in str(error.value)
  assert "1 questions" in asker.describe() and "100 + 10 tokens" in asker.describe()  # was paid for
  server.reply = lambda messages, number: longer_wins(messages)
  before = len(server.requests)
  open_endpoint(server, tmp_path).ask("pairwise", others)
  assert len(server.requests) == before + 2


def test_an_endpoint_that_is_not_there(server, tmp_path):
  asker = open_endpoint(server, tmp_path, max_retries=0)
  server.close()
  with pytest.raises(ValueError, match="could not be reached .* check endpoint.base_url"):
    asker.ask("pairwise", [PAIR])


def test_nonsense_is_asked_once_more_in_the_conversation(server, tmp_path):
  server.reply = lambda messages, number: "Hm." if number == 0 else "Verdict: A"
  asker = open_endpoint(server, tmp_path)
  assert asker.ask("pairwise", [PAIR]) == {PAIR: 1.0}
  assert [m["role"] for m in server.requests[1]["messages"]] == ["user", "assistant", "user"]
  assert server.requests[1]["messages"][1]["content"] == "Hm."
  assert asker.summary()["prompt_tokens"] == 200  # both were paid for


@pytest.mark.parametrize(
  "said",
  [
    "I cannot say.",
    "",
    " \n",
    None,
    b"<html>",
    b"{}",
    b"[1]",
    b'{"choices": []}',
    b'{"choices": {"a": 1}}',
    b'{"choices": 5}',
    b'{"choices": [null]}',
    b"5",
    b"\xff\xfe",
  ],
)
def test_what_stays_nonsense_is_not_judged_and_counted(server, tmp_path, said):
  server.reply = lambda messages, number: said if "aaaa" in str(messages) else longer_wins(messages)
  asker = open_endpoint(server, tmp_path, num_parallel=1)
  rows = judges.endpoint(asker)(PROMPTS, ANSWERS, "sft")
  assert [row["win"] for row in rows if row["policy"] == "ppo"] == [None, 0, 0.5]
  assert asker.summary()["not_judged"] == 2  # both orders
  assert len(server.requests) == 2 * 2 + 2
  has_text = said == "I cannot say."
  assert asker.summary()["without_text"] == (0 if has_text else 2)
  server.reply = lambda messages, number: longer_wins(messages)
  rows = judges.endpoint(open_endpoint(server, tmp_path))(PROMPTS, ANSWERS, "sft")
  assert len(server.requests) == (6 if has_text else 8)  # what was paid for is kept
  assert [row["win"] for row in rows if row["policy"] == "ppo"] == [None if has_text else 1, 0, 0.5]


def test_a_server_that_says_nothing_is_no_judge(server, tmp_path):
  server.reply = lambda messages, number: b"<html>down for maintenance</html>"
  asker = open_endpoint(server, tmp_path)
  for ask in (
    lambda: asker.ask("pairwise", [PAIR]),
    lambda: asker.ask("position", [("a",), ("b",)]),
  ):
    with pytest.raises(ValueError, match="sent an empty reply to all of [12] questions"):
      ask()
  assert not (tmp_path / "cache" / "endpoint.jsonl").exists()
  assert asker.ask("pairwise", []) == {}


def test_a_reply_without_text_does_not_undo_one_with(server, tmp_path):
  server.reply = lambda messages, number: "" if number else "Hm."
  assert open_endpoint(server, tmp_path).ask("pairwise", [PAIR]) == {PAIR: None}
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  assert len(server.requests) == 2


@pytest.mark.parametrize("last", ["Verdict: A", "No."])
def test_half_of_a_surrogate_pair_is_read_sent_back_and_kept(server, tmp_path, last):
  server.reply = lambda messages, number: f"Hm \ud800. {last if number else ''}"
  assert open_endpoint(server, tmp_path).ask("pairwise", [PAIR]) == {
    PAIR: 1.0 if "A" in last else None
  }
  open_endpoint(server, tmp_path).ask("pairwise", [PAIR])
  assert len(server.requests) == 2


def test_without_a_key_nothing_begins(server, tmp_path, monkeypatch):
  monkeypatch.setenv(KEY, " ")
  for begin in (lambda: endpoint.check(config(server)), lambda: open_endpoint(server, tmp_path)):
    with pytest.raises(ValueError, match=f"{KEY} is not set in the environment; set it to the API"):
      begin()
  endpoint.check(config(server, api_key_variable=""))
  assert not server.requests and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "change, sentence",
  [
    (dict(base_url="api.example.org"), "endpoint.base_url 'api.example.org'; give a URL"),
    (dict(model=""), "endpoint.model is empty"),
    (dict(timeout=0.0), "endpoint.timeout 0.0; use a number of seconds above 0"),
    (dict(max_attempts=0), "endpoint.max_attempts is 0; use 1 or more"),
    (dict(num_parallel=0), "endpoint.num_parallel is 0"),
    (dict(temperature=-1.0), "endpoint.temperature is -1.0; use 0 or more"),
    (dict(input_price=-1.0), "endpoint.input_price is -1.0"),
    (dict(pairwise_prompt="{prompt} {answer_a}"), "endpoint.pairwise_prompt has the fields"),
    (dict(pairwise_prompt="{prompt.x} {answer_a} {answer_b}"), "has the fields"),
    (dict(pairwise_prompt="{prompt!r} {answer_a} {answer_b}"), "has the fields"),
    (dict(likert_prompt="{prompt} {answer} {"), "endpoint.likert_prompt is not a template"),
  ],
)
def test_wrong_settings_are_one_sentence(server, change, sentence):
  with pytest.raises(ValueError) as error:
    config(server, **change)
  assert sentence in str(error.value)
