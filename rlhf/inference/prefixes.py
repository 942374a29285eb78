"""A base model asked with examples before the prompt: the paper's GPT-3-prompted baseline.

A prefix is a text that is put before every prompt as it stands.  Its examples are written as the
model is asked (prompt, suffix, answer), and a line that separates them, such as "###", ends each
and ends the text:

    Name a fruit.

    Answer: An apple.
    ###
    Name a town.

    Answer: Utrecht.
    ###

A model that goes on in this way ends its answer with that line, so answers are cut there; a reward
model reads the prompt alone, without the prefix.  Source: InstructGPT section 3.5 and footnote 6:
several prefixes are tried, the one whose answers to validation prompts the reward model scores
highest is taken.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.data import prepare
from rlhf.inference import completions as answers_lib
from rlhf.inference.completions import AnswerConfig, Answers
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

SEPARATOR = "###"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
  """Examples before a prompt.

  Attributes:
    text: put before every prompt, as it stands.
  """

  text: str

  def __post_init__(self):
    starts = [line.rstrip() for line in self.text.split("\n")]
    if not any(starts):
      raise ValueError(
        "the prefix is empty; write examples, each ended by a line that separates "
        f"them, such as {SEPARATOR}"
      )
    if sum(line.startswith(self.separator) for line in starts) < 2:
      raise ValueError(
        f"the prefix ends with the line {self.separator[:40]!r}, which stands nowhere else in "
        "it; it must end with the line that separates its examples"
      )

  @property
  def separator(self) -> str:
    """The last line that is not blank, without trailing spaces: the next example's beginning."""
    return [line.rstrip() for line in self.text.split("\n") if line.strip()][-1]

  def prompts(self, prompts: Sequence[str]) -> list[str]:
    """What the model is asked in place of the prompts."""
    return [self.text + prompt for prompt in prompts]

  def cut(self, answer: str) -> tuple[str, bool]:
    """(the answer up to a line that starts with the separator, whether there was one)."""
    for end in ("\n" + self.separator, self.separator):  # the latter where nothing was answered
      place = answer.find(end) if end.startswith("\n") else 0 if answer.startswith(end) else -1
      if place >= 0:
        return answer[:place].rstrip(), True
    return answer, False


def read(path: str | pathlib.Path) -> Prefix:
  """A prefix from a text file.

  Raises:
    ValueError: the file cannot be read, is not UTF-8, or holds no prefix; names the file.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    return Prefix(text=text)
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror}); name a text file with a prefix"
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def answer(
  network: Network,
  prefix: Prefix | None,
  prompts: Sequence[str],
  p: AnswerConfig,
  key,
  *,
  num_samples: int | Sequence[int] = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> Answers:
  """`answers.answer` to the prompts behind the prefix, cut at its separator.

  The ids that come back are those of the prompt without the prefix and of the answer that was cut,
  as a reward model reads them: with its end where the answer came to one.

  Args:
    network, p, key, num_samples, on_batch: as in `answers.answer`; prefix and prompt together must
      fit into `p.max_prompt_tokens`.
    prefix: None asks as `answers.answer` does.
  """
  settings = dict(num_samples=num_samples, on_batch=on_batch)
  if prefix is None:
    return answers_lib.answer(network, prompts, p, key, **settings)
  drawn = answers_lib.answer(network, prefix.prompts(prompts), p, key, **settings)
  prompt_format = prepare.PromptFormat.of(p)
  out = Answers(texts=[], ids=[], finished=[])
  for prompt, texts, finished in zip(prompts, drawn.texts, drawn.finished, strict=True):
    cuts = [prefix.cut(text) for text in texts]
    ended = [was_cut or end for (_, was_cut), end in zip(cuts, finished, strict=True)]
    sequences = prepare.tokenize_demonstrations(
      [{"prompt": prompt, "completion": text} for text, _ in cuts],
      network.tokenizer,
      prompt_format=prompt_format,
    )
    out.texts.append([text for text, _ in cuts])
    out.ids.append(
      [
        sequence.ids if end else sequence.ids[:-1]
        for sequence, end in zip(sequences, ended, strict=True)
      ]
    )
    out.finished.append(ended)
  return out


def num_tokens(prefix: Prefix, tokenizer: Tokenizer) -> int:
  """Tokens by which a prefix makes a prompt longer, to within one where the two meet."""
  return len(tokenizer.encode(prefix.text))


def draw(
  demonstrations: Sequence[Mapping[str, str]],
  tokenizer: Tokenizer,
  *,
  num_prefixes: int,
  num_shots: int,
  max_tokens: int,
  prompt_format: prepare.PromptFormat = prepare.PLAIN,
  separator: str = SEPARATOR,
  seed: int = 0,
) -> list[Prefix]:
  """Prefixes of demonstrations, as candidates.

  Demonstrations are tried in a random order, another for each prefix; those that are longer than an
  even share of the room that is left are left out.

  Args:
    demonstrations: {"prompt", "completion"}.
    num_prefixes: how many.
    num_shots: examples of each.
    max_tokens: of a prefix, at most.
    prompt_format: "plain"; a chat template has no place for examples within a turn.
    separator: the line between examples; a demonstration that has such a line is left out.
    seed: of the orders.

  Raises:
    ValueError: so many examples do not fit into `max_tokens`, or another format than "plain".
  """
  if prompt_format.is_chat:
    raise ValueError(
      "examples before a prompt are for prompt_format plain; a chat template has no "
      "place for them within a turn"
    )
  written = [
    f"{record['prompt']}{prompt_format.prompt_suffix}{prompt_format.completion_prefix}"
    f"{record['completion']}"
    for record in demonstrations
  ]
  written = [
    text for text in written if not any(line.startswith(separator) for line in text.split("\n"))
  ]
  sizes = np.asarray(
    [len(ids) for ids in tokenizer.encode_batch([f"{text}\n{separator}\n" for text in written])]
  )
  prefixes = []
  for number in range(num_prefixes):
    order = np.random.default_rng((seed, number)).permutation(len(written))
    shots, room = [], max_tokens - len(tokenizer.encode(f"{separator}\n"))
    for index in order:
      if len(shots) < num_shots and sizes[index] * (num_shots - len(shots)) <= room:
        shots.append(written[index])
        room -= sizes[index]
    if len(shots) < num_shots:
      raise ValueError(
        f"{num_shots} demonstrations do not fit into the {max_tokens} tokens that a "
        "prefix may have; ask for fewer, or for shorter answers and prompts"
      )
    text = f"{separator}\n" + "".join(f"{shot}\n{separator}\n" for shot in shots)
    prefixes.append(Prefix(text=text))
  return prefixes
