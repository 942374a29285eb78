"""Text <-> token ids: a thin wrapper of the `tokenizers` library with named special ids.

Two ids have a meaning: end-of-text (`eot_id`) ends every document and every response, and padding
(`pad_id`) fills unused slots.  They always differ: a model whose padding is its end-of-text never
learns to stop, and masks made from token ids go wrong.  Some tokenizers also begin every text with
ids of their own (`prefix_ids`: begin-of-text of Llama 3 and Gemma, "</s>" of OPT).

Special tokens that a text spells out ("<|endoftext|>") are ordinary characters here: only this
program places special ids.
"""

import functools
import hashlib
import itertools
import json
import operator
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from rlhf.tokenization import chat
from rlhf.tokenization import published as files

EOT_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
NUM_BYTES = 256  # a byte-level vocabulary holds every byte, so that any text can be encoded

SPECS = ("bpe:VOCAB_SIZE", "json:PATH", "gpt2:DIR")


class Tokenizer:
  """Byte-pair encoding with an end-of-text id and a padding id.

  Attributes:
    vocab_size: number of ids of the tokenizer itself: 0 .. vocab_size - 1.
    eot_id: ends a document or a response.
    pad_id: fills unused slots.  For a tokenizer without a padding token it is the first row after
      the vocabulary, or after the embedding that the tokenizer came with.
    num_ids: rows that a model's embedding must have.
    prefix_ids: ids that begin every document and every prompt; often empty.
    chat_template: Jinja source, or None; see `chat`.
  """

  def __init__(
    self,
    inner: tokenizers.Tokenizer,
    *,
    eot_token: str,
    pad_token: str | None,
    num_embeddings: int | None = None,
    bos_token: str | None = None,
    prefix_ids: Sequence[int] = (),
    chat_template: str | None = None,
    source: str = files.CONFIG_FILE,
  ):
    """Wraps `inner`.

    Args:
      inner: the library's tokenizer.
      eot_token: the vocabulary's token that ends a text.
      pad_token: the vocabulary's padding token; None adds a row after the embedding.
      num_embeddings: rows of the embedding that the tokenizer came with; default `vocab_size`.
      bos_token: the vocabulary's begin-of-text token, for chat templates and exports.
      prefix_ids, chat_template: see the class.
      source: the file of the chat template, for error messages.

    Raises:
      ValueError: a named token is not in the vocabulary, end-of-text and padding are the same, or
        the vocabulary is larger than the embedding.
    """
    vocabulary = inner.get_vocab(with_added_tokens=True)
    if not vocabulary:
      raise ValueError("the tokenizer's vocabulary is empty; train it or load another")
    for name, token in (("end-of-text", eot_token), ("padding", pad_token)):
      if token is not None and token not in vocabulary:
        raise ValueError(
          f"{name} token {token!r} is not among the tokenizer's "
          f"{len(vocabulary)} tokens; name one that is"
        )
    if eot_token == pad_token:
      raise ValueError(
        f"end-of-text and padding are both {eot_token!r}; they must differ, "
        "or the model never learns to stop (leave the padding token out)"
      )
    # Special tokens that a text spells out are split like any other characters.
    inner.encode_special_tokens = True
    inner.no_padding()
    inner.no_truncation()
    self._inner = inner
    self._eot_token = eot_token
    self._pad_token = pad_token
    self._bos_token = bos_token
    self._source = source
    self.vocab_size = max(vocabulary.values()) + 1
    num_embeddings = self.vocab_size if num_embeddings is None else num_embeddings
    if self.vocab_size > num_embeddings:
      raise ValueError(
        f"the tokenizer has ids up to {self.vocab_size - 1} and the model's "
        f"embedding {num_embeddings} rows; give the tokenizer that the model "
        "was trained with"
      )
    self.eot_id = vocabulary[eot_token]
    self.pad_id = num_embeddings if pad_token is None else vocabulary[pad_token]
    self.num_ids = max(num_embeddings, self.pad_id + 1)
    self.prefix_ids = tuple(prefix_ids)
    self.chat_template = chat_template

  def encode(self, text: str, *, continues: bool = False) -> list[int]:
    """Ids of a text, without special ids.

    Args:
      continues: the text continues another, so a tokenizer that writes a space before a text
        (Llama 2) writes none.
    """
    return self.encode_batch([text], continues=continues)[0]

  def encode_batch(self, texts: Sequence[str], *, continues: bool = False) -> list[list[int]]:
    """Ids of many texts, encoded on all cores."""
    inner = self._continuing if continues else self._inner
    encodings = inner.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]

  def decode(self, ids: Iterable[int], *, continues: bool = False) -> str:
    """Text of ids, without end-of-text, padding and begin-of-text; `continues` as in `encode`.

    Incomplete UTF-8 becomes U+FFFD.
    """
    dropped = {self.eot_id, self.pad_id, *self.prefix_ids}
    kept = [int(i) for i in ids if int(i) not in dropped]
    inner = self._continuing if continues else self._inner
    return inner.decode(kept, skip_special_tokens=False)

  @functools.cached_property
  def _continuing(self) -> tokenizers.Tokenizer:
    inner = files.without_leading_space(self._inner)
    inner.encode_special_tokens = True
    return inner

  # ---- the model's chat template

  @functools.cached_property
  def chat(self) -> chat.ChatTemplate:
    """The chat template, taken apart.

    Raises:
      ValueError: there is none, or it cannot be used; see `chat.read_template`.
    """
    if self.chat_template is None:
      raise ValueError(
        f"prompt_format chat, but {self._source} has no chat_template; use "
        "prompt_format plain, or a model that was trained to chat"
      )
    return chat.read_template(
      self.chat_template, self._special_tokens, self._template_variables, self._source
    )

  @property
  def turn_end_id(self) -> int:
    """The id that ends a completion in the chat template; end-of-text if it has no other.

    For example Gemma's "<end_of_turn>" and Llama 3's "<|eot_id|>".  Raises as `chat`.
    """
    return self.eot_id if self.chat.end is None else _id_of(self._inner, self.chat.end)

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Ids that end a completion: end-of-text, and the chat template's `turn_end_id`."""
    try:
      return tuple(dict.fromkeys((self.eot_id, self.turn_end_id)))
    except ValueError:
      return (self.eot_id,)

  def encode_chat(self, prompts: Sequence[str]) -> list[list[int]]:
    """Ids of each prompt as a conversation of one turn, up to where the model writes.

    Equal to the text of the template with its special tokens as ids, except that special tokens
    spelled out in a prompt stay characters.  Raises as `chat`.
    """
    template = self.chat
    head = self._encode_pieces(template.head, is_start=True)
    tail = self._encode_pieces(template.tail, is_start=False)
    # A pre-tokenizer that writes spaces "first" writes none after a special token.
    middle = self.encode_batch(
      [template.text_around(prompt) for prompt in prompts],
      continues=bool(head) and self._spaces_first_only,
    )
    return [[*head, *ids, *tail] for ids in middle]

  @functools.cached_property
  def num_around_chat(self) -> tuple[int, int]:
    """Numbers of ids of `encode_chat` before and after those of the prompt.  Raises as `chat`."""
    head = self._encode_pieces((*self.chat.head, self.chat.before), is_start=True)
    after = self.encode(self.chat.after, continues=True)
    return len(head), len(after) + len(self._encode_pieces(self.chat.tail, is_start=False))

  def render_chat(
    self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
  ) -> str:
    """The text of a conversation, special tokens spelled out; for `encode_with_specials`.

    Args:
      messages: {"role", "content"} each.
      add_generation_prompt: end where the model writes; else the last turn stays open.

    Raises:
      ValueError: as `chat`, or the template refuses these turns.
    """
    self.chat  # raises if the template cannot be used
    return chat.render_turns(
      self.chat_template or "",
      messages,
      self._template_variables,
      self._source,
      add_generation_prompt=add_generation_prompt,
    )

  def encode_with_specials(self, text: str) -> list[int]:
    """Ids of a text whose spelled-out special tokens become special ids."""
    return self._encode_pieces(chat.split_specials(text, self._special_tokens), is_start=True)

  def _encode_pieces(self, pieces: Sequence[str], *, is_start: bool) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
      if piece in self._special_tokens:
        ids.append(_id_of(self._inner, piece))
      else:
        ids += self.encode(piece, continues=self._spaces_first_only and not (is_start and not ids))
    return ids

  @functools.cached_property
  def _template_variables(self) -> dict[str, str]:
    return dict(
      bos_token=self._bos_token or "",
      eos_token=self._eot_token,
      pad_token=self._pad_token or "",
      unk_token=getattr(self._inner.model, "unk_token", None) or "",
    )

  @functools.cached_property
  def _special_tokens(self) -> frozenset[str]:
    added = self._inner.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special)

  @functools.cached_property
  def _spaces_first_only(self) -> bool:
    return files.spaces_first_only(self._inner)

  # ---- files

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of everything that the ids of a text depend on: equal if every text has the same ids."""
    facts = (self.eot_id, self.pad_id, self.num_ids, self.prefix_ids, self.chat_template)
    return hashlib.sha256(f"{facts}{self._inner.to_str()}".encode()).hexdigest()

  def save(self, directory: str | os.PathLike) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which names the special tokens."""
    config = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": self._eot_token,
      "eos_token_id": self.eot_id,
      "pad_token": self._pad_token,
      "pad_token_id": self.pad_id,
      "bos_token": self._bos_token,
      "prefix_ids": list(self.prefix_ids),
      "num_ids": self.num_ids,
      "chat_template": self.chat_template,
    }
    _write(directory, self._inner, config)

  @property
  def bos_id(self) -> int | None:
    """Id of the begin-of-text token, or None."""
    return None if self._bos_token is None else self._inner.token_to_id(self._bos_token)

  def save_hf(
    self, directory: str | os.PathLike, *, num_embeddings: int, own_padding: bool = False
  ) -> int:
    """Writes the tokenizer for `transformers.AutoTokenizer.from_pretrained(directory)`.

    A padding row that this program added has no token in the vocabulary.  If the exported embedding
    has that row right after the vocabulary, the row is named "<|pad|>"; else the exported model
    pads with its end-of-text, as most published ones do.

    Args:
      num_embeddings: rows of the exported embedding.
      own_padding: give padding the first id after the vocabulary if it has none.  A sequence
        classifier scores the last token that is not padding, so it cannot pad with end-of-text.

    Returns:
      the id of padding in what was written.

    Raises:
      ValueError: the vocabulary is larger than the exported embedding.
    """
    if self.vocab_size + (own_padding and self._pad_token is None) > num_embeddings:
      raise ValueError(
        f"the tokenizer has ids up to {self.vocab_size - 1} and the exported "
        f"embedding {num_embeddings} rows; export all rows of the vocabulary"
      )
    inner, pad_token = self._inner, self._pad_token
    if pad_token is None and (own_padding or self.pad_id == self.vocab_size < num_embeddings):
      inner, pad_token = tokenizers.Tokenizer.from_str(inner.to_str()), PAD_TOKEN
      inner.add_special_tokens([PAD_TOKEN])
    written_pad_token = self._eot_token if pad_token is None else pad_token
    config: dict[str, Any] = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "bos_token": self._bos_token,
      "eos_token": self._eot_token,
      "pad_token": written_pad_token,
      "clean_up_tokenization_spaces": False,
    }
    if inner is not self._inner:
      config[files.PADDING_ROW] = self.pad_id  # so that `from_hf` gives this tokenizer back
    if self.chat_template is not None:
      config["chat_template"] = self.chat_template
    _write(directory, inner, config)
    if self.chat_template is not None:
      template_path = pathlib.Path(directory) / files.TEMPLATE_FILE
      template_path.write_text(self.chat_template, encoding="utf-8")
    return _id_of(inner, written_pad_token)

  @classmethod
  def load(cls, directory: str | os.PathLike) -> "Tokenizer":
    """Reads what `save` wrote.

    Raises:
      ValueError: a file is missing, is not a tokenizer's, or contradicts the other.
    """
    path = pathlib.Path(directory) / files.CONFIG_FILE
    config = files.read_json_object(path)
    for field in ("eos_token", "eos_token_id", "pad_token", "pad_token_id"):
      if field not in config:
        raise ValueError(f"{path}: no field {field!r}; it must name the special tokens and ids")
    # Older versions wrote only the fields above.
    config = dict(bos_token=None, prefix_ids=[], num_ids=None, chat_template=None) | config
    num_embeddings = config["num_ids"]
    if config["pad_token"] is None and num_embeddings is not None:
      num_embeddings -= 1  # the last row is padding's
    tokenizer = cls(
      files.read_tokenizer(path.with_name(files.TOKENIZER_FILE)),
      eot_token=config["eos_token"],
      pad_token=config["pad_token"],
      num_embeddings=num_embeddings,
      bos_token=config["bos_token"],
      prefix_ids=config["prefix_ids"],
      chat_template=config["chat_template"],
      source=str(path),
    )
    found = (tokenizer.eot_id, tokenizer.pad_id)
    expected = (config["eos_token_id"], config["pad_token_id"])
    if found != expected:
      raise ValueError(
        f"{path}: end-of-text and padding ids are {expected}, but {files.TOKENIZER_FILE} gives "
        f"{found}; restore the files of one export"
      )
    return tokenizer

  @classmethod
  def from_hf(cls, directory: str | os.PathLike, *, num_embeddings: int) -> "Tokenizer":
    """The tokenizer of a Hugging Face directory; see `published.read_hf`.

    Args:
      num_embeddings: rows of the model's embedding.  Padding is the row after them if the tokenizer
        has no padding token, or one with another meaning.

    Raises:
      ValueError: the directory has no readable tokenizer, or it has more ids than rows.
    """
    return cls._published(files.read_hf(directory, num_embeddings), str(directory))

  @classmethod
  def from_gguf(cls, reader, *, num_embeddings: int, name: str) -> "Tokenizer":
    """The tokenizer in an open `gguf.GGUFReader`, whose file is `name`; otherwise as `from_hf`."""
    arguments = files.read_gguf(reader, name) | {"num_embeddings": num_embeddings}
    return cls._published(arguments, name)

  @classmethod
  def _published(cls, arguments: dict[str, Any], name: str) -> "Tokenizer":
    try:
      tokenizer = cls(**arguments)
      if tokenizer.pad_id in tokenizer.end_ids:  # padding is never sampled, so nothing would end
        tokenizer = cls(**arguments | {"pad_token": None})
      return tokenizer
    except ValueError as error:
      raise ValueError(f"{name}: {error}") from None

  @classmethod
  def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
    """Learns a byte-level BPE with GPT-2's pre-tokenizer; the same texts give the same result.

    Source: Radford et al. 2019 (GPT-2), section 2.2.

    Args:
      texts: what to learn from; too little text gives fewer ids.
      vocab_size: ids to learn, including the 256 bytes and the two special tokens.

    Raises:
      ValueError: `vocab_size` is below 258, or there is no text.
    """
    if vocab_size < NUM_BYTES + 2:
      raise ValueError(
        f"vocab_size {vocab_size} is too small for {NUM_BYTES} bytes and 2 special "
        f"tokens; use at least {NUM_BYTES + 2}"
      )
    texts = itertools.dropwhile(operator.not_, texts)  # not a list: the text may be large
    first = next(texts, None)
    if first is None:
      raise ValueError("a BPE tokenizer learns from text, and there is none")
    inner = files.byte_level(tokenizers.models.BPE())
    trainer = tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[EOT_TOKEN, PAD_TOKEN],
      show_progress=False,
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )
    inner.train_from_iterator(itertools.chain([first], texts), trainer)
    return cls(inner, eot_token=EOT_TOKEN, pad_token=PAD_TOKEN)

  @classmethod
  def from_spec(cls, spec: str, texts: Iterable[str] | None = None) -> "Tokenizer":
    """A tokenizer by name, as configs give it.

    Args:
      spec: "bpe:VOCAB_SIZE" learns from `texts`; "json:PATH" reads a `tokenizer.json`, or a
        directory that has one, with the special tokens that `tokenizer_config.json` next to it
        names (without that file "<|endoftext|>" and no padding token); "gpt2:DIR" reads
        GPT-2's `encoder.json` and `vocab.bpe` in DIR, which GPT-3 and InstructGPT use too.
      texts: for "bpe".

    Raises:
      ValueError: another spec, or as the constructors.
    """
    kind, _, value = spec.partition(":")
    if kind == "bpe" and value.isdecimal():
      if texts is None:
        raise ValueError(f"tokenizer {spec!r} learns from text, and none was given")
      return cls.train_bpe(texts, int(value))
    if kind == "json" and value:
      path = pathlib.Path(value)
      path = path / files.TOKENIZER_FILE if path.is_dir() else path
      eot_token, pad_token = _find_special_tokens(path.with_name(files.CONFIG_FILE))
      return cls(files.read_tokenizer(path), eot_token=eot_token, pad_token=pad_token)
    if kind == "gpt2" and value:
      inner = files.read_gpt2(pathlib.Path(value, "encoder.json"), pathlib.Path(value, "vocab.bpe"))
      inner.add_special_tokens([EOT_TOKEN])
      return cls(inner, eot_token=EOT_TOKEN, pad_token=None)
    raise ValueError(f"tokenizer {spec!r}; choose from {list(SPECS)}")


def _id_of(inner: tokenizers.Tokenizer, token: str) -> int:
  """The id of a token that exists."""
  number = inner.token_to_id(token)
  assert number is not None, token
  return number


def _find_special_tokens(path: pathlib.Path) -> tuple[str, str | None]:
  """(end-of-text, padding) as a Hugging Face `tokenizer_config.json` names them."""
  if not path.exists():
    return EOT_TOKEN, None
  config = files.read_json_object(path)
  eot_token, pad_token = files.token_of(config, "eos_token"), files.token_of(config, "pad_token")
  if eot_token is None:
    raise ValueError(f"{path} names no eos_token; it must name the token that ends a text")
  # Many published tokenizers pad with end-of-text; here padding gets a row of its own.
  return eot_token, None if pad_token == eot_token else pad_token


def _write(
  directory: str | os.PathLike, inner: tokenizers.Tokenizer, config: dict[str, Any]
) -> None:
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  inner.save(str(directory / files.TOKENIZER_FILE))
  text = json.dumps(config, indent=2) + "\n"
  (directory / files.CONFIG_FILE).write_text(text, encoding="utf-8")
