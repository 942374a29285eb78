"""Instructions and examples before an item: `prompts.toml`."""

import functools
import pathlib
import tomllib


@functools.cache
def variants(kind: str) -> dict[str, str]:
  """Variant -> the text before an item of "bias" or "truthfulqa"."""
  path = pathlib.Path(__file__).with_suffix(".toml")
  texts = tomllib.loads(path.read_text(encoding="utf-8"))[kind]
  if kind == "truthfulqa":
    texts["qa_instruction"] = texts["instruction"] + texts["qa"]
  return texts


def truthfulqa(question: str, variant: str) -> str:
  """The whole prompt of a question."""
  return f"{variants('truthfulqa')[variant]}Q: {question}\nA:"


def bias(text: str, variant: str) -> str:
  """A sentence's beginning (or nothing) behind the instruction."""
  return variants("bias")[variant] + text
