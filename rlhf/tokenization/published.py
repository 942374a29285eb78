"""Tokenizers that others publish, in Hugging Face directories and GGUF files, read into one form.

Only JSON, Jinja and GGUF metadata are read; nothing in a file is executed except a chat template,
in Jinja's sandbox (`chat.py`).
"""

import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Field of an exported tokenizer_config.json: see `read_hf`.
PADDING_ROW = "padding_row"
# GPT-2's pre-tokenizer cuts with one regular expression; these are Llama 3's and Qwen 2's, which
# differ in how they cut digits.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r"|\s+(?!\S)|\s+"
)
# Kinds of GGUF tokens (`tokenizer.ggml.token_type`).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"  # how SentencePiece writes a space


def read_json_object(path: pathlib.Path) -> dict:
  """Reads a JSON file.  Raises ValueError if it is missing or is not an object."""
  try:
    value = json.loads(read_text(path))
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path}:{error.lineno}: not JSON ({error.msg}); it must hold one object"
    ) from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a JSON {type(value).__name__}; it must hold one object")
  return value


def read_text(path: pathlib.Path) -> str:
  """Reads a UTF-8 file.  Raises ValueError if that fails."""
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} cannot be read ({error}); it must be a UTF-8 text file") from error


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a `tokenizer.json`.  Raises ValueError if it is missing or damaged."""
  try:
    return tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises bare Exception
    raise ValueError(
      f"{path} is not a tokenizer.json of the tokenizers library ({error})"
    ) from error


def byte_level(model: tokenizers.models.Model) -> tokenizers.Tokenizer:
  """A tokenizer that cuts text with GPT-2's regular expression and encodes its bytes."""
  inner = tokenizers.Tokenizer(model)
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  inner.decoder = decoders.ByteLevel()
  return inner


def read_gpt2(vocabulary_path: pathlib.Path, merges_path: pathlib.Path) -> tokenizers.Tokenizer:
  """GPT-2's two files; special tokens are not named in them.

  Raises:
    ValueError: a file is missing, is not in GPT-2's format, or belongs to another tokenizer.
  """
  where = f"{vocabulary_path} and {merges_path}"
  try:
    vocabulary, merges = tokenizers.models.BPE.read_file(str(vocabulary_path), str(merges_path))
  except Exception as error:  # the library raises bare Exception
    raise ValueError(f"{where} are not the two files of a GPT-2 tokenizer ({error})") from error
  _check_merges(vocabulary, merges, where)
  return byte_level(tokenizers.models.BPE(vocab=vocabulary, merges=merges))


def _check_merges(
  vocabulary: Mapping[str, int], merges: Iterable[tuple[str, str]], where: str
) -> None:
  """Raises ValueError for a merge of unknown tokens, at which the library would panic."""
  for left, right in merges:
    for token in (left, right, left + right):
      if token not in vocabulary:
        raise ValueError(f"{where}: {left!r} and {right!r} are merged, but {token!r} is no token")


def add_prefix(inner: tokenizers.Tokenizer, bos_token: str | None) -> None:
  """Makes the library's tokenizer put `bos_token` before a text when it adds special tokens."""
  prefix = [bos_token] if bos_token is not None else []
  inner.post_processor = processors.TemplateProcessing(
    single=[*prefix, "$A"],
    pair=[*prefix, "$A", "$B"],
    special_tokens=[(token, inner.token_to_id(token)) for token in prefix],
  )


def find_prefix(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Ids that the tokenizer's own post-processor puts before a text."""
  bare = inner.encode("a", add_special_tokens=False).ids
  full = inner.encode("a", add_special_tokens=True).ids
  for start in range(len(full) - len(bare) + 1):
    if full[start : start + len(bare)] == bare:
      return tuple(full[:start])
  return ()


# ----------------------------------------------------------------------------- leading spaces


def spaces_first_only(inner: tokenizers.Tokenizer) -> bool:
  """Whether it writes a space before the first word of a text, but not after special tokens."""
  return any(
    step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"
    for step in _steps(_settings(inner), "pre_tokenizer")
  )


def without_leading_space(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """A copy that neither writes a space before a text nor removes one when it decodes.

  Returns `inner` itself if it does neither.
  """
  settings = _settings(inner)
  before = json.dumps(settings)
  for step in _steps(settings, "pre_tokenizer"):
    if "prepend_scheme" in step:
      step["prepend_scheme"] = "never"
    if "add_prefix_space" in step:
      step["add_prefix_space"] = False
  for step in _steps(settings, "decoder"):
    if step["type"] == "Strip" and step["content"] == " ":
      step["start"] = 0
    if step["type"] == "Metaspace":
      step["prepend_scheme"] = "never"
  for step in _steps(settings, "normalizer"):
    if step["type"] == "Prepend" and step["prepend"] == _SPACE:
      step["prepend"] = ""
  if json.dumps(settings) == before:
    return inner
  return tokenizers.Tokenizer.from_str(json.dumps(json.loads(inner.to_str()) | settings))


def _settings(inner: tokenizers.Tokenizer) -> dict[str, dict | None]:
  """Parts of its `tokenizer.json`, without the vocabulary, which takes seconds to write."""
  empty = tokenizers.Tokenizer(tokenizers.models.BPE())
  fields = ("normalizer", "pre_tokenizer", "decoder")
  for field in fields:
    if getattr(inner, field) is not None:
      setattr(empty, field, getattr(inner, field))
  settings = json.loads(empty.to_str())
  return {field: settings[field] for field in fields}


def _steps(settings: dict[str, dict | None], field: str) -> list[dict]:
  """The steps of a normalizer, pre-tokenizer or decoder, which is one step or a sequence."""
  setting = settings[field]
  if setting is None:
    return []
  steps = {"pre_tokenizer": "pretokenizers"}.get(field, f"{field}s")
  return setting[steps] if setting["type"] == "Sequence" else [setting]


# ----------------------------------------------------------------------------- Hugging Face


def read_hf(directory: str | os.PathLike, num_embeddings: int) -> dict[str, Any]:
  """The arguments of `Tokenizer`, from a Hugging Face directory.

  The vocabulary is in `tokenizer.json`, or in GPT-2's `vocab.json` and `merges.txt`.  Special
  tokens are named by `tokenizer_config.json`, then `special_tokens_map.json`, then the ids of
  `generation_config.json` and `config.json`; the chat template is `chat_template.jinja`, or in
  `tokenizer_config.json`.

  Our exports of a network that pads with a row behind its embedding name that row: `num_embeddings`
  becomes its number, and its token, added for other programs, is left out.

  Raises:
    ValueError: a file is missing or damaged, the format is not supported, or there is no
      end-of-text.
  """
  directory = pathlib.Path(directory)
  path = directory / CONFIG_FILE
  config, named, generation, model = (
    read_json_object(directory / name) if (directory / name).exists() else {}
    for name in (CONFIG_FILE, "special_tokens_map.json", "generation_config.json", "config.json")
  )
  inner = _read_hf_vocabulary(directory)
  end_ids = _end_ids(generation) or _end_ids(model)
  eot_token, pad_token, bos_token, unk_token = (
    token_of(config, field) or token_of(named, field)
    for field in ("eos_token", "pad_token", "bos_token", "unk_token")
  )
  if eot_token is None and end_ids:
    eot_token = inner.id_to_token(end_ids[0])
  if eot_token is None:
    raise ValueError(f"{path} names no eos_token; it must name the token that ends a text")
  padding_row = config.get(PADDING_ROW)
  if padding_row is not None:
    if type(padding_row) is not int or not 1 <= padding_row <= num_embeddings:
      raise ValueError(
        f"{path} has {PADDING_ROW} {padding_row!r}; it must be a whole number from 1 to the "
        f"{num_embeddings} rows of the model's embedding"
      )
    inner, pad_token, num_embeddings = _without_added(inner, pad_token), None, padding_row
  special = [eot_token, pad_token, bos_token, unk_token]
  _add_special_tokens(inner, config, [token for token in special if token is not None])
  for field, token in (("bos_token", bos_token), ("eos_token", eot_token)):
    if token is not None and inner.token_to_id(token) is None:
      raise ValueError(
        f"{path} has {field} {token!r}, which is not in the vocabulary of {directory}"
      )
  add_bos = config.get("add_bos_token")
  if isinstance(add_bos, bool) and add_bos != bool(find_prefix(inner)):
    add_prefix(inner, bos_token if add_bos else None)
  return dict(
    inner=inner,
    num_embeddings=num_embeddings,
    eot_token=eot_token,
    pad_token=_own_padding(inner, pad_token, {eot_token, bos_token, unk_token}, end_ids),
    bos_token=bos_token,
    prefix_ids=find_prefix(inner),
    chat_template=_find_template(directory, config),
    source=str(path),
  )


def token_of(config: Mapping[str, Any], field: str) -> str | None:
  """A special token that a config names, as a string or as an object with its content."""
  token = config.get(field)
  token = token.get("content") if isinstance(token, dict) else token
  return token if isinstance(token, str) else None


def _end_ids(config: Mapping[str, Any]) -> list[int]:
  """Ids at which the model stops; the first is its end-of-text."""
  ids = config.get("eos_token_id")
  ids = ids if isinstance(ids, list) else [ids]
  return ids if all(isinstance(i, int) for i in ids) else []


def _without_added(inner: tokenizers.Tokenizer, token: str | None) -> tokenizers.Tokenizer:
  """A copy without a token that was added to the vocabulary."""
  whole = json.loads(inner.to_str())
  whole["added_tokens"] = [added for added in whole["added_tokens"] if added["content"] != token]
  return tokenizers.Tokenizer.from_str(json.dumps(whole))


def _read_hf_vocabulary(directory: pathlib.Path) -> tokenizers.Tokenizer:
  if (directory / TOKENIZER_FILE).exists():
    return read_tokenizer(directory / TOKENIZER_FILE)
  if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
    return read_gpt2(directory / "vocab.json", directory / "merges.txt")
  for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
    if (directory / name).exists():
      raise ValueError(
        f"{directory} has {name} (SentencePiece) but no {TOKENIZER_FILE}; write that file with "
        "transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
      )
  raise ValueError(
    f"{directory} has no {TOKENIZER_FILE}, nor vocab.json with merges.txt; a "
    "tokenizer must come with the model"
  )


def _add_special_tokens(
  inner: tokenizers.Tokenizer, config: Mapping[str, Any], special: list[str]
) -> None:
  """Marks tokens as special, which `vocab.json` and old `tokenizer.json`s do not."""
  listed = config.get("added_tokens_decoder")
  for value in listed.values() if isinstance(listed, dict) else ():
    if isinstance(value, dict) and value.get("special") and isinstance(value.get("content"), str):
      special = [*special, value["content"]]
  known = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
  inner.add_special_tokens(
    [
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token in dict.fromkeys(special)
      if token not in known and inner.token_to_id(token) is not None
    ]
  )


def _own_padding(
  inner: tokenizers.Tokenizer, token: str | None, in_use: set[str | None], end_ids: Sequence[int]
) -> str | None:
  """The padding token, unless it has another meaning as well."""
  number = None if token is None else inner.token_to_id(token)
  if number is None or token in in_use or number in end_ids or number in find_prefix(inner):
    return None
  return token


def _find_template(directory: pathlib.Path, config: Mapping[str, Any]) -> str | None:
  if (directory / TEMPLATE_FILE).exists():
    return read_text(directory / TEMPLATE_FILE)
  template = config.get("chat_template")
  if isinstance(template, list):  # several templates with names
    named = {item.get("name"): item.get("template") for item in template if isinstance(item, dict)}
    template = named.get("default")
  return template if isinstance(template, str) else None


# ----------------------------------------------------------------------------- GGUF


class _Metadata:
  """The tokenizer's metadata in the GGUF file `name`."""

  def __init__(self, reader, name: str):
    self.reader, self.name = reader, name
    # The token of every id, and the kind of each.
    self.tokens: list[str] = self.need("ggml.tokens")
    self.kinds: list[int] = self.need("ggml.token_type")

  def get(self, field: str) -> Any:
    """The value of the field, or None."""
    found = self.reader.fields.get(f"tokenizer.{field}")
    return None if found is None else found.contents()

  def need(self, field: str, choices: Mapping[str, Any] | None = None) -> Any:
    """As `get`, or the entry of `choices` that the field names.  Raises ValueError without one."""
    value = self.get(field)
    if choices is not None and value not in choices:
      raise ValueError(
        f"{self.name} has tokenizer.{field} {value!r}; known are {', '.join(sorted(choices))}"
      )
    if value is None:
      raise ValueError(f"{self.name} has no tokenizer.{field}; its tokenizer cannot be read")
    return value if choices is None else choices[value]

  def token(self, kind: str) -> str | None:
    """The special token of a kind such as "eos"."""
    number = self.get(f"ggml.{kind}_token_id")
    if number is not None and not 0 <= number < len(self.tokens):
      raise ValueError(
        f"{self.name} has tokenizer.ggml.{kind}_token_id {number}, and {len(self.tokens)} tokens; "
        "it must be one of them"
      )
    return None if number is None else self.tokens[number]


def read_gguf(reader, name: str) -> dict[str, Any]:
  """The arguments of `Tokenizer`, from the metadata of the GGUF file `name`, open in `reader`.

  Raises:
    ValueError: there is no tokenizer in the file, or one of an unknown kind.
  """
  metadata = _Metadata(reader, name)
  read = metadata.need("ggml.model", {"gpt2": _gguf_bpe, "llama": _gguf_sentencepiece})
  inner, starts_with_bos = read(metadata)
  # These are found in a text before it is cut; runs of spaces are merged like other tokens.
  added = [
    tokenizers.AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
    for token, kind in zip(metadata.tokens, metadata.kinds, strict=True)
    if kind in (_UNKNOWN, _CONTROL) or (kind == _USER_DEFINED and token.strip(" "))
  ]
  inner.add_tokens(added)
  eot_token, bos_token = metadata.token("eos"), metadata.token("bos")
  if eot_token is None:
    raise ValueError(f"{name} has no tokenizer.ggml.eos_token_id; it must name the end of a text")
  add_bos = metadata.get("ggml.add_bos_token")
  if (starts_with_bos if add_bos is None else add_bos) and bos_token is not None:
    add_prefix(inner, bos_token)
  return dict(
    inner=inner,
    eot_token=eot_token,
    pad_token=_own_padding(
      inner, metadata.token("padding"), {eot_token, bos_token, metadata.token("unknown")}, ()
    ),
    bos_token=bos_token,
    prefix_ids=find_prefix(inner),
    chat_template=metadata.get("chat_template"),
    source=name,
  )


def _gguf_bpe(metadata: _Metadata) -> tuple[tokenizers.Tokenizer, bool]:
  """(GPT-2's byte-level BPE with the pre-tokenizer that the file names, whether it adds BOS)."""
  steps, normalizer, is_llama3 = metadata.need("ggml.pre", PRE_TOKENIZERS)
  merges = [tuple(merge.split(" ")) for merge in metadata.need("ggml.merges")]
  vocabulary = {token: i for i, token in enumerate(metadata.tokens)}
  if not all(len(merge) == 2 for merge in merges):
    raise ValueError(
      f"{metadata.name}: tokenizer.ggml.merges has a line that is not two tokens with one space "
      "between them"
    )
  _check_merges(vocabulary, merges, metadata.name)
  model = tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=is_llama3)
  inner = byte_level(model)
  if steps is not None:
    inner.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if normalizer is not None:
    inner.normalizer = normalizer
  return inner, is_llama3


def _split(pattern: str) -> list:
  """Cuts with `pattern`, then encodes bytes without cutting again."""
  return [
    pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  ]


_DIGITS = [
  pre_tokenizers.Digits(individual_digits=True),
  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
]
_LLAMA3 = (_split(_WORDS % r"\p{N}{1,3}"), None, True)
# tokenizer.ggml.pre -> (steps, None for GPT-2's; normalizer; whether it is Llama 3's, where a word
# that is a token needs no merges and texts begin with begin-of-text).  The regular expressions are
# those of the models' own tokenizer.json.
PRE_TOKENIZERS = {
  "gpt-2": (None, None, False),
  "smollm": (_DIGITS, None, False),
  "starcoder": (_DIGITS, None, False),
  "refact": (_DIGITS, None, False),
  "llama-bpe": _LLAMA3,
  "llama3": _LLAMA3,
  "llama-v3": _LLAMA3,
  "qwen2": (_split(_WORDS % r"\p{N}"), normalizers.NFC(), False),
}


def _gguf_sentencepiece(metadata: _Metadata) -> tuple[tokenizers.Tokenizer, bool]:
  """(SentencePiece's BPE, whether it adds BOS); merges that give a higher score come first."""
  kinds, scores = metadata.kinds, metadata.need("ggml.scores")
  # llama.cpp writes the runs of spaces that are tokens with plain spaces.
  tokens = [
    token.replace(" ", _SPACE) if kind == _USER_DEFINED and not token.strip(" ") else token
    for token, kind in zip(metadata.tokens, kinds, strict=True)
  ]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  ranked = []
  for i, (token, kind, score) in enumerate(zip(tokens, kinds, scores, strict=True)):
    if kind not in (_NORMAL, _USER_DEFINED):
      continue
    for cut in range(1, len(token)):
      left, right = token[:cut], token[cut:]
      if left in vocabulary and right in vocabulary:
        ranked.append(((kind == _NORMAL, -score, i, cut), (left, right)))
  ranked.sort()
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=vocabulary,
      merges=[pair for _, pair in ranked],
      unk_token=metadata.token("unknown"),
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  replace = normalizers.Replace(" ", _SPACE)
  decode = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if metadata.get("ggml.add_space_prefix") is False:
    inner.normalizer = replace
  else:  # SentencePiece's own default
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
    decode.append(decoders.Strip(" ", 1, 0))
  inner.decoder = decoders.Sequence(decode)
  return inner, True
