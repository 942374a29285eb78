"""A model's chat template: how one prompt becomes the ids that the model answers.

The template is Jinja source that came with the tokenizer.  It is rendered once, in a sandbox, with
a marker where the prompt will stand: so no prompt is ever read as a template, the result depends on
the prompt alone (a template that asks for today's date takes the one it has for programs without a
clock), and a special token written out in a prompt stays ordinary characters.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence

import jinja2
from jinja2 import ext, sandbox

_PROMPT, _ANSWER = "\ue000prompt\ue001", "\ue000answer\ue001"
# What a template raises that is wrong, or refuses what it is given.
_FAILURES = (
  jinja2.TemplateError,
  ArithmeticError,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
)
_EDGE = " \n"  # around the marker: shows whether the template strips what it is given


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
  """A template as pieces, each a special token or text.

  Attributes:
    head, tail: pieces before and after the one that holds the prompt.
    before, after: text of that piece on either side of the prompt.
    strips_left, strips_right: whether white space at the prompt's ends is taken off.
    answer_prefix: white space that the template puts before an answer.
    end: the special token behind an answer; None where there is none.
  """

  head: tuple[str, ...]
  before: str
  after: str
  tail: tuple[str, ...]
  strips_left: bool
  strips_right: bool
  answer_prefix: str
  end: str | None

  def text_around(self, prompt: str) -> str:
    """The piece that holds the prompt."""
    prompt = prompt.lstrip() if self.strips_left else prompt
    prompt = prompt.rstrip() if self.strips_right else prompt
    return self.before + prompt + self.after


def read_template(
  source: str, specials: Sequence[str], variables: dict[str, str], where: str
) -> ChatTemplate:
  """Renders a template and takes the result apart.

  Args:
    source: Jinja.
    specials: the tokenizer's special tokens.
    variables: bos_token and the like.
    where: the file that holds the template, for error messages.

  Raises:
    ValueError: the template fails, or does not write the prompt exactly once.
  """
  try:
    template = _environment().from_string(source)
    question = {"role": "user", "content": _EDGE + _PROMPT + _EDGE}
    render = lambda messages, generate: template.render(
      messages=messages, add_generation_prompt=generate, tools=None, documents=None, **variables
    )
    asked = render([question], True)
    answered = render([question, {"role": "assistant", "content": _ANSWER}], False)
  except _FAILURES as error:
    raise ValueError(
      f"{where}: the chat template cannot be rendered for one prompt "
      f"({' '.join(str(error).split())}); use prompt_format plain"
    ) from error
  if asked.count(_PROMPT) != 1:
    raise ValueError(
      f"{where}: the chat template writes the prompt {asked.count(_PROMPT)} times; "
      "it must be there once (or use prompt_format plain)"
    )
  left, right = asked.split(_PROMPT)
  strips_left, strips_right = not left.endswith(_EDGE), not right.startswith(_EDGE)
  left = left if strips_left else left.removesuffix(_EDGE)
  right = right if strips_right else right.removeprefix(_EDGE)
  left_pieces, right_pieces = split_specials(left, specials), split_specials(right, specials)
  before = left_pieces.pop() if left_pieces and left_pieces[-1] not in specials else ""
  after = right_pieces.pop(0) if right_pieces and right_pieces[0] not in specials else ""
  answer_prefix, end = _around_answer(answered, asked, specials)
  return ChatTemplate(
    head=tuple(left_pieces),
    before=before,
    after=after,
    tail=tuple(right_pieces),
    strips_left=strips_left,
    strips_right=strips_right,
    answer_prefix=answer_prefix,
    end=end,
  )


def render(
  source: str,
  messages: Sequence[Mapping[str, str]],
  variables: dict[str, str],
  where: str,
  *,
  add_generation_prompt: bool,
) -> str:
  """The text of any turns.

  Args:
    source, variables, where: as in `read_template`.
    messages: {"role", "content"} each; system turns are left out where the template knows none.
    add_generation_prompt: end where the model answers; else behind the last turn's content.

  Raises:
    ValueError: the template fails.
  """

  def rendered(messages):
    return (
      _environment()
      .from_string(source)
      .render(
        messages=list(messages),
        add_generation_prompt=add_generation_prompt,
        tools=None,
        documents=None,
        **variables,
      )
    )

  try:
    try:
      text = rendered(messages)
    except jinja2.TemplateError:
      text = rendered([message for message in messages if message["role"] != "system"])
  except _FAILURES as error:
    raise ValueError(
      f"{where}: the chat template cannot be rendered for these turns "
      f"({' '.join(str(error).split())})"
    ) from error
  if add_generation_prompt or not messages:
    return text
  last = messages[-1]["content"].strip()
  return text[: text.rindex(last) + len(last)] if last in text else text


def _around_answer(answered: str, asked: str, specials: Sequence[str]) -> tuple[str, str | None]:
  """(white space before an answer, special token behind it)."""
  if _ANSWER not in answered:
    return "", None
  before, behind = answered.split(_ANSWER, 1)
  gap = before.removeprefix(asked) if before.startswith(asked) else ""
  ends = [piece for piece in split_specials(behind, specials) if piece in specials]
  return gap if not gap.strip() else "", ends[0] if ends else None


def split_specials(text: str, specials: Sequence[str]) -> list[str]:
  """A text cut at special tokens, which stay as pieces; no piece is empty."""
  if not specials:
    return [text] if text else []
  longest_first = sorted(specials, key=len, reverse=True)
  pattern = "(" + "|".join(re.escape(token) for token in longest_first) + ")"
  return [piece for piece in re.split(pattern, text) if piece]


class _Generation(ext.Extension):
  """`{% generation %}` marks what an assistant wrote; rendering needs no mark."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  """Jinja as transformers sets it up for chat templates, but without a clock."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation]
  )
  environment.filters["tojson"] = lambda value, indent=None: json.dumps(
    value, ensure_ascii=False, indent=indent
  )
  environment.globals["raise_exception"] = _raise_exception
  return environment


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)
