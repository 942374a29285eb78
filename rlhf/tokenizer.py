"""Text <-> token ids: a thin face over the `tokenizers` library, with named special ids.

Two ids have a meaning: end-of-text (`eot_id`), which ends every document and every response, and
padding (`pad_id`), which means nothing.  They are never the same: a model whose padding is its
end-of-text never learns to stop, and masks made from token ids go wrong.

Special tokens written out in a text ("<|endoftext|>") are ordinary characters here: only this
program places special ids.
"""

from collections.abc import Iterable, Sequence
import json
import os
import pathlib

import tokenizers

EOT_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256  # a byte-level vocabulary holds every byte, so that any text can be encoded

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
SPECS = ("bpe:VOCAB_SIZE", "json:PATH", "gpt2:DIR")


class Tokenizer:
  """Byte-pair encoding with an end-of-text id and a padding id.

  Attributes:
    vocab_size: ids that the tokenizer itself has: 0 .. vocab_size - 1.
    eot_id: ends a document or a response.
    pad_id: fills unused slots; the first row after the vocabulary where the tokenizer has no
      padding token of its own.
    num_ids: ids that a model must have an embedding row for.
  """

  def __init__(self, inner: tokenizers.Tokenizer, *, eot_token: str, pad_token: str | None):
    """Wraps `inner`.

    Args:
      inner: the library's tokenizer.
      eot_token: the vocabulary's token that ends a text.
      pad_token: the vocabulary's padding token; None adds a row behind the vocabulary.

    Raises:
      ValueError: a named token is not in the vocabulary, or the two are the same.
    """
    vocabulary = inner.get_vocab(with_added_tokens=True)
    if not vocabulary:
      raise ValueError("the tokenizer's vocabulary is empty; train it or load another")
    for name, token in (("end-of-text", eot_token), ("padding", pad_token)):
      if token is not None and token not in vocabulary:
        raise ValueError(f"{name} token {token!r} is not among the tokenizer's "
                         f"{len(vocabulary)} tokens; name one that is")
    if eot_token == pad_token:
      raise ValueError(f"end-of-text and padding are both {eot_token!r}; they must differ, "
                       "or the model never learns to stop (leave the padding token out)")
    # Specials that a user wrote out are split like any other characters.
    inner.encode_special_tokens = True
    inner.no_padding()
    inner.no_truncation()
    self._inner = inner
    self._eot_token = eot_token
    self._pad_token = pad_token
    self.vocab_size = max(vocabulary.values()) + 1
    self.eot_id = vocabulary[eot_token]
    self.pad_id = self.vocab_size if pad_token is None else vocabulary[pad_token]
    self.num_ids = max(self.vocab_size, self.pad_id + 1)

  def encode(self, text: str) -> list[int]:
    """Ids of a text; nothing is added before or after it."""
    return self._inner.encode(text, add_special_tokens=False).ids

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of many texts, on all cores; equal to `encode` of each."""
    encodings = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int]) -> str:
    """Text of ids; end-of-text and padding are left out, broken UTF-8 becomes U+FFFD."""
    kept = [int(i) for i in ids if i != self.eot_id and i != self.pad_id]
    return self._inner.decode(kept, skip_special_tokens=False)

  def same_as(self, other: "Tokenizer") -> bool:
    """Whether both turn every text into the same ids."""
    return ((self.eot_id, self.pad_id) == (other.eot_id, other.pad_id)
            and self._inner.to_str() == other._inner.to_str())

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` (names and ids of the specials)."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    self._inner.save(str(directory / _TOKENIZER_FILE))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": self._eot_token,
        "eos_token_id": self.eot_id,
        "pad_token": self._pad_token,
        "pad_token_id": self.pad_id,
    }
    (directory / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "Tokenizer":
    """Reads what `save` wrote.

    Raises:
      ValueError: a file is absent, is not a tokenizer, or contradicts the other.
    """
    path = pathlib.Path(directory) / _CONFIG_FILE
    config = _read_json_object(path)
    for field in ("eos_token", "eos_token_id", "pad_token", "pad_token_id"):
      if field not in config:
        raise ValueError(f"{path}: no field {field!r}; it must name the special tokens and ids")
    tokenizer = cls(_read_tokenizer(path.with_name(_TOKENIZER_FILE)),
                    eot_token=config["eos_token"], pad_token=config["pad_token"])
    found = (tokenizer.eot_id, tokenizer.pad_id)
    expected = (config["eos_token_id"], config["pad_token_id"])
    if found != expected:
      raise ValueError(f"{path}: end-of-text and padding ids are {expected} but "
                       f"{_TOKENIZER_FILE} beside it gives {found}; the files are not of one save")
    return tokenizer

  @classmethod
  def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Learns a byte-level BPE with GPT-2's pre-tokenizer; the same texts give the same result.

    Source: Radford et al. 2019 (GPT-2), section 2.2.

    Args:
      texts: what to learn from; too little text gives fewer ids than asked for.
      vocab_size: ids to learn, the 256 bytes and the two specials included.

    Raises:
      ValueError: `vocab_size` is below 258, or there is no text.
    """
    if vocab_size < NUM_BYTES + 2:
      raise ValueError(f"vocab_size {vocab_size} is too small for {NUM_BYTES} bytes and 2 special "
                       f"tokens; use at least {NUM_BYTES + 2}")
    texts = list(texts)
    if not any(texts):
      raise ValueError("a BPE tokenizer needs text to learn from, and there is none")
    inner = _byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT_TOKEN, PAD_TOKEN], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    inner.train_from_iterator(texts, trainer)
    return cls(inner, eot_token=EOT_TOKEN, pad_token=PAD_TOKEN)

  @classmethod
  def from_json(cls, path: str | os.PathLike, *, eot_token: str = EOT_TOKEN,
                pad_token: str | None = None) -> "Tokenizer":
    """Reads any `tokenizer.json` of the `tokenizers` library; see `__init__` for the tokens."""
    return cls(_read_tokenizer(pathlib.Path(path)), eot_token=eot_token, pad_token=pad_token)

  @classmethod
  def from_gpt2(cls, encoder_json: str | os.PathLike, vocab_bpe: str | os.PathLike) -> "Tokenizer":
    """Reads GPT-2's published files; GPT-3 and InstructGPT use the same encoding.

    There are 50,257 ids, end-of-text is 50,256, and padding is the added row 50,257.

    Raises:
      ValueError: a file is absent or is not GPT-2's format.
    """
    vocabulary = _read_json_object(pathlib.Path(encoder_json))
    for token, number in vocabulary.items():
      if not isinstance(number, int) or number < 0:
        raise ValueError(f"{encoder_json}: {token!r} has the id {number!r}; ids must be whole "
                         "numbers from 0")
    merges = _read_merges(pathlib.Path(vocab_bpe))
    for left, right in merges:  # the library would end the process here
      for token in (left, right, left + right):
        if token not in vocabulary:
          raise ValueError(f"{vocab_bpe} merges {left!r} and {right!r} but {encoder_json} has no "
                           f"{token!r}; give the two files of one tokenizer")
    inner = _byte_level(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    inner.add_special_tokens([EOT_TOKEN])
    return cls(inner, eot_token=EOT_TOKEN, pad_token=None)

  @classmethod
  def from_spec(cls, spec: str, texts: Iterable[str] | None = None) -> "Tokenizer":
    """A tokenizer by name, as configs give it.

    Args:
      spec: "bpe:VOCAB_SIZE" learns from `texts`; "json:PATH" reads a `tokenizer.json`, or a
        directory that holds one, with the special tokens that a `tokenizer_config.json` beside it
        names ("<|endoftext|>" and none where there is no such file); "gpt2:DIR" reads
        `encoder.json` and `vocab.bpe` of DIR.
      texts: what "bpe" learns from.

    Raises:
      ValueError: another spec, or what the constructors raise.
    """
    kind, _, value = spec.partition(":")
    if kind == "bpe" and value.isdecimal():
      if texts is None:
        raise ValueError(f"tokenizer {spec!r} needs text to learn from, and none was given")
      return cls.train_bpe(texts, int(value))
    if kind == "json" and value:
      path = pathlib.Path(value)
      path = path / _TOKENIZER_FILE if path.is_dir() else path
      eot_token, pad_token = _find_special_tokens(path.with_name(_CONFIG_FILE))
      return cls.from_json(path, eot_token=eot_token, pad_token=pad_token)
    if kind == "gpt2" and value:
      return cls.from_gpt2(pathlib.Path(value) / "encoder.json", pathlib.Path(value) / "vocab.bpe")
    raise ValueError(f"tokenizer {spec!r}; choose from {list(SPECS)}")


def _byte_level(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
  """A tokenizer that cuts text with GPT-2's regular expression and encodes its bytes."""
  inner = tokenizers.Tokenizer(model)
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  inner.decoder = tokenizers.decoders.ByteLevel()
  return inner


def _find_special_tokens(path: pathlib.Path) -> tuple[str, str | None]:
  """(end-of-text, padding) as a Hugging Face `tokenizer_config.json` names them."""
  if not path.exists():
    return EOT_TOKEN, None
  config = _read_json_object(path)
  tokens = []
  for field in ("eos_token", "pad_token"):
    token = config[field] if field in config else None
    tokens.append(token["content"] if isinstance(token, dict) else token)
  eot_token, pad_token = tokens
  if eot_token is None:
    raise ValueError(f"{path} names no eos_token; it must name the token that ends a text")
  # Many published tokenizers pad with end-of-text; here that gets a row of its own.
  return eot_token, None if pad_token == eot_token else pad_token


def _read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  text = _read_text(path)
  try:
    return tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # the library raises bare Exception
    raise ValueError(f"{path} is not a tokenizer.json of the tokenizers library ({error})"
                     ) from error


def _read_json_object(path: pathlib.Path) -> dict:
  text = _read_text(path)
  try:
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}:{error.lineno}: not JSON ({error.msg}); it must hold one object"
                     ) from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a JSON {type(value).__name__}; it must hold one object")
  return value


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
  merges = []
  for number, line in enumerate(_read_text(path).split("\n"), start=1):
    if (number == 1 and line.startswith("#version")) or not line:
      continue
    pair = tuple(line.split(" "))
    if len(pair) != 2:
      raise ValueError(f"{path}:{number}: {line!r} is not a merge; it must be two tokens with one "
                       "space between them")
    merges.append(pair)
  return merges


def _read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(f"{path} cannot be read ({error.strerror}); a tokenizer file must be there"
                     ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text; a tokenizer file must be") from error
