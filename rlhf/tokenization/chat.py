"""A model's chat template: how a prompt becomes the ids that the model completes.

The template is Jinja source that came with the tokenizer.  It is rendered once, in a sandbox, with
a marker in place of the prompt.  So a prompt is never read as a template, the result depends on the
prompt alone (a template that asks for today's date falls back to its default), and a special token
that a prompt spells out stays ordinary characters.
"""

import dataclasses
import json
import re
from collections.abc import Collection, Mapping, Sequence

import jinja2
from jinja2 import ext, sandbox

# Characters for private use, which no template contains.
_PROMPT, _COMPLETION = "\ue000prompt\ue001", "\ue000completion\ue001"
# What is raised by a template that is wrong or refuses its input.
_FAILURES = (
  jinja2.TemplateError,
  ArithmeticError,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChatTemplate:
  """A template as pieces, each of which is a special token or text.

  Attributes:
    head, tail: pieces before and after the one that contains the prompt.
    before, after: text of that piece on either side of the prompt.
    strips_left, strips_right: whether white space at the ends of the prompt is removed.
    completion_prefix: white space before a completion.
    end: the special token after a completion, or None.
  """

  head: tuple[str, ...]
  before: str
  after: str
  tail: tuple[str, ...]
  strips_left: bool
  strips_right: bool
  completion_prefix: str
  end: str | None

  def text_around(self, prompt: str) -> str:
    """The piece that contains the prompt."""
    prompt = prompt.lstrip() if self.strips_left else prompt
    prompt = prompt.rstrip() if self.strips_right else prompt
    return self.before + prompt + self.after


def read_template(
  source: str, specials: Collection[str], variables: dict[str, str], where: str
) -> ChatTemplate:
  """Renders a template with markers and takes the result apart.

  Args:
    source: Jinja.
    specials: the tokenizer's special tokens.
    variables: bos_token and the like.
    where: the file of the template, for error messages.

  Raises:
    ValueError: the template fails, or does not contain the prompt exactly once.
  """
  user = lambda text: {"role": "user", "content": text}
  assistant = {"role": "assistant", "content": _COMPLETION}
  try:
    asked = _render(source, [user(_PROMPT)], variables, True)
    spaced = _render(source, [user(f" \n{_PROMPT} \n")], variables, True)
    answered = _render(source, [user(_PROMPT), assistant], variables, False)
  except _FAILURES as error:
    raise ValueError(
      f"{where}: the chat template cannot be rendered for one prompt ({_one_line(error)}); use "
      "prompt_format plain"
    ) from error
  if asked.count(_PROMPT) != 1:
    raise ValueError(
      f"{where}: the chat template writes the prompt {asked.count(_PROMPT)} times; "
      "it must be there once (or use prompt_format plain)"
    )
  left, right = asked.split(_PROMPT)
  left_pieces, right_pieces = split_specials(left, specials), split_specials(right, specials)
  before = left_pieces.pop() if left_pieces and left_pieces[-1] not in specials else ""
  after = right_pieces.pop(0) if right_pieces and right_pieces[0] not in specials else ""
  # A template that strips the prompt gives the same text for a prompt with white space around it.
  spaced_left, _, spaced_right = spaced.partition(_PROMPT)
  completion_prefix, end = "", None
  if _COMPLETION in answered:
    before_completion, behind = answered.split(_COMPLETION, 1)
    gap = before_completion.removeprefix(asked) if before_completion.startswith(asked) else ""
    completion_prefix = "" if gap.strip() else gap
    end = next((piece for piece in split_specials(behind, specials) if piece in specials), None)
  return ChatTemplate(
    head=tuple(left_pieces),
    before=before,
    after=after,
    tail=tuple(right_pieces),
    strips_left=spaced_left == left,
    strips_right=spaced_right == right,
    completion_prefix=completion_prefix,
    end=end,
  )


def render_turns(
  source: str,
  messages: Sequence[Mapping[str, str]],
  variables: dict[str, str],
  where: str,
  *,
  add_generation_prompt: bool,
) -> str:
  """The text of a conversation.

  Args:
    source, variables, where: as in `read_template`.
    messages: {"role", "content"} each; system turns are left out if the template has none.
    add_generation_prompt: end where the model writes; else after the last turn's content.

  Raises:
    ValueError: the template fails.
  """
  try:
    try:
      text = _render(source, messages, variables, add_generation_prompt)
    except jinja2.TemplateError:
      messages_without_system = [turn for turn in messages if turn["role"] != "system"]
      text = _render(source, messages_without_system, variables, add_generation_prompt)
  except _FAILURES as error:
    raise ValueError(
      f"{where}: the chat template cannot be rendered for these turns ({_one_line(error)})"
    ) from error
  if add_generation_prompt or not messages:
    return text
  last = messages[-1]["content"].strip()
  return text[: text.rindex(last) + len(last)] if last in text else text


def _render(
  source: str,
  messages: Sequence[Mapping[str, str]],
  variables: dict[str, str],
  add_generation_prompt: bool,
) -> str:
  """Renders in Jinja as `transformers` sets it up for chat templates, but without a clock."""
  environment = sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, _Generation]
  )
  environment.filters["tojson"] = lambda value, indent=None: json.dumps(
    value, ensure_ascii=False, indent=indent
  )
  environment.globals["raise_exception"] = _raise_exception
  return environment.from_string(source).render(
    messages=list(messages),
    add_generation_prompt=add_generation_prompt,
    tools=None,
    documents=None,
    **variables,
  )


class _Generation(ext.Extension):
  """`{% generation %}` marks what an assistant wrote; it renders as its content."""

  tags = {"generation"}

  def parse(self, parser):
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())


def split_specials(text: str, specials: Collection[str]) -> list[str]:
  """Cuts a text at special tokens, which are pieces too; no piece is empty."""
  if not specials:
    return [text] if text else []
  longest_first = sorted(specials, key=len, reverse=True)
  pattern = "(" + "|".join(re.escape(token) for token in longest_first) + ")"
  return [piece for piece in re.split(pattern, text) if piece]
