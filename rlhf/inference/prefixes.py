"""Few-shot prefixes for a base model: the paper's GPT-3-prompted baseline.

A prefix is a text that is put before every prompt unchanged.  Its examples are written in the
prompt format (prompt, suffix, completion), and a separator line such as "###" ends each of them and
the whole text:

    Name a fruit.

    Answer: An apple.
    ###
    Name a town.

    Answer: Utrecht.
    ###

A model that continues the pattern ends its completion with that line, so completions are cut there;
the reward model reads the prompt without the prefix.  Source: InstructGPT section 3.5 and footnote
6: of several prefixes, the one with the highest mean reward on validation prompts is used.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf.data import prepare, records
from rlhf.inference import completions
from rlhf.inference.completions import CompletionConfig, Completions
from rlhf.networks import Network
from rlhf.tokenization.tokenizer import Tokenizer

SEPARATOR = "###"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
  """Examples before a prompt.

  Attributes:
    text: put before every prompt, unchanged.
  """

  text: str

  def __post_init__(self):
    starts = [line.rstrip() for line in self.text.split("\n")]
    if not any(starts):
      raise ValueError(
        "the prefix is empty; write examples, each followed by a separator line such as "
        f"{SEPARATOR}"
      )
    if sum(line.startswith(self.separator) for line in starts) < 2:
      raise ValueError(
        f"the last line of the prefix, {self.separator[:40]!r}, occurs only once; the prefix must "
        "end with the line that separates its examples"
      )

  @property
  def separator(self) -> str:
    """The last line that is not blank, without trailing spaces; it starts the next example."""
    return [line.rstrip() for line in self.text.split("\n") if line.strip()][-1]

  def prompts(self, prompts: Sequence[str]) -> list[str]:
    """The prompts with the prefix before each."""
    return [self.text + prompt for prompt in prompts]

  def cut(self, completion: str) -> tuple[str, bool]:
    """(the completion up to a line that starts with the separator, whether there was one)."""
    place = completion.find("\n" + self.separator)
    if place < 0 and completion.startswith(self.separator):
      place = 0
    return (completion[:place].rstrip(), True) if place >= 0 else (completion, False)


def read(path: str | pathlib.Path) -> Prefix:
  """A prefix from a text file.

  Raises:
    ValueError: the file cannot be read, is not UTF-8 or is not a prefix; names the file.
  """
  contents = records.read_bytes(pathlib.Path(path))
  try:
    return Prefix(text=contents.decode("utf-8-sig").replace("\r\n", "\n"))
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 at byte {error.start}; convert it to UTF-8") from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from None


def sample(
  network: Network,
  prefix: Prefix | None,
  prompts: Sequence[str],
  p: CompletionConfig,
  key,
  *,
  num_samples: int | Sequence[int] = 1,
  on_batch: Callable[[int, int], None] | None = None,
) -> Completions:
  """`completions.sample` of the prompts after the prefix, cut at its separator.

  The ids returned are those of the prompt without the prefix and of the cut completion, as a reward
  model reads them: with end-of-text if the completion reached its end.

  Args:
    network, p, key, num_samples, on_batch: as in `completions.sample`; prefix and prompt together
      must fit into `p.max_prompt_tokens`.
    prefix: None is `completions.sample`.
  """
  asked = prompts if prefix is None else prefix.prompts(prompts)
  drawn = completions.sample(network, asked, p, key, num_samples=num_samples, on_batch=on_batch)
  if prefix is None:
    return drawn
  prompt_format = prepare.PromptFormat.of(p)
  out = Completions(texts=[], ids=[], finished=[])
  for prompt, texts, finished in zip(prompts, drawn.texts, drawn.finished, strict=True):
    cuts = [prefix.cut(text) for text in texts]
    ended = [was_cut or end for (_, was_cut), end in zip(cuts, finished, strict=True)]
    sequences = prepare.tokenize_demonstrations(
      [{"prompt": prompt, "completion": text} for text, _ in cuts],
      network.tokenizer,
      prompt_format=prompt_format,
    )
    out.texts.append([text for text, _ in cuts])
    out.ids.append([x.ids if end else x.ids[:-1] for x, end in zip(sequences, ended, strict=True)])
    out.finished.append(ended)
  return out


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
  """Candidate prefixes made of demonstrations.

  Demonstrations are tried in a random order, a different one for each prefix; those longer than an
  even share of the remaining room are skipped.

  Args:
    demonstrations: {"prompt", "completion"}.
    num_prefixes: number of prefixes.
    num_shots: examples in each.
    max_tokens: the most tokens of a prefix.
    prompt_format: "plain"; a chat template has no place for examples within a turn.
    separator: the line between examples; demonstrations with such a line are left out.
    seed: of the random orders.

  Raises:
    ValueError: `num_shots` examples do not fit into `max_tokens`, or the format is not "plain".
  """
  if prompt_format.is_chat:
    raise ValueError(
      "few-shot prefixes need prompt_format plain; a chat template has no place for examples "
      "within a turn"
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
    shots: list[str] = []
    room = max_tokens - len(tokenizer.encode(f"{separator}\n"))
    for index in order:
      if len(shots) < num_shots and sizes[index] * (num_shots - len(shots)) <= room:
        shots.append(written[index])
        room -= sizes[index]
    if len(shots) < num_shots:
      raise ValueError(
        f"{num_shots} demonstrations do not fit into max_tokens {max_tokens} of a prefix; use "
        "fewer shots, or lower the room for prompts and completions"
      )
    text = f"{separator}\n" + "".join(f"{shot}\n{separator}\n" for shot in shots)
    prefixes.append(Prefix(text=text))
  return prefixes
