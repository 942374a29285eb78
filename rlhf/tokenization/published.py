"""Tokenizers as others publish them: Hugging Face directories and GGUF files, read into one form.

Only JSON, Jinja and GGUF metadata are read; nothing in a file is run but a chat template, in
Jinja's sandbox (`rlhf/chat.py`).
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from rlhf import extras

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Field of an exported tokenizer_config.json: see `TokenizerParts.padding_row`.
PADDING_ROW = "padding_row"
# GPT-2's pre-tokenizer cuts by one regular expression; these are Llama 3's and Qwen 2's.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = _CONTRACTIONS + (
  r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r"|\s+(?!\S)|\s+"
)
# Kinds of GGUF tokens (`tokenizer.ggml.token_type`).
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_SPACE = "\u2581"  # SentencePiece writes a space so


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerParts:
  """What a published tokenizer says of itself.

  Attributes:
    inner: the library's tokenizer.
    eot_token: ends a text.
    pad_token: its own padding token, where nothing else is written with it.
    bos_token: the token named so, whether or not texts begin with it.
    prefix_ids: ids that it puts before a text.
    chat_template: Jinja source.
    source: the file that says which token is which, for error messages.
    padding_row: id of padding in the network that was exported with a token added for it, which
      `inner` is without; None of all others.
  """

  inner: tokenizers.Tokenizer
  eot_token: str
  pad_token: str | None
  bos_token: str | None
  prefix_ids: tuple[int, ...]
  chat_template: str | None
  source: str
  padding_row: int | None = None


def read_json_object(path: pathlib.Path) -> dict:
  text = read_text(path)
  try:
    value = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(
      f"{path}:{error.lineno}: not JSON ({error.msg}); it must hold one object"
    ) from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a JSON {type(value).__name__}; it must hold one object")
  return value


def read_text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except OSError as error:
    raise ValueError(
      f"{path} cannot be read ({error.strerror}); a tokenizer file must be there"
    ) from error
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is not UTF-8 text; a tokenizer file must be") from error


def read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  text = read_text(path)
  try:
    return tokenizers.Tokenizer.from_str(text)
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
  """GPT-2's two files, whatever their names; special tokens are not yet named.

  Raises:
    ValueError: a file is absent or is not GPT-2's format.
  """
  vocabulary = read_json_object(vocabulary_path)
  for token, number in vocabulary.items():
    if not isinstance(number, int) or number < 0:
      raise ValueError(
        f"{vocabulary_path}: {token!r} has the id {number!r}; ids must be whole numbers from 0"
      )
  merges = _read_merges(merges_path)
  _check_merges(
    vocabulary,
    merges,
    f"{vocabulary_path} has",
    str(merges_path),
    "give the two files of one tokenizer",
  )
  return byte_level(tokenizers.models.BPE(vocab=vocabulary, merges=merges))


def _read_merges(path: pathlib.Path) -> list[tuple[str, str]]:
  merges = []
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if (number == 1 and line.startswith("#version")) or not line:
      continue
    pair = tuple(line.split(" "))
    if len(pair) != 2:
      raise ValueError(
        f"{path}:{number}: {line!r} is not a merge; it must be two tokens with one "
        "space between them"
      )
    merges.append(pair)
  return merges


def _check_merges(
  vocabulary: dict[str, int],
  merges: Sequence[tuple[str, str]],
  holder: str,
  source: str,
  remedy: str,
) -> None:
  """The library would end the process at a merge of unknown tokens."""
  for left, right in merges:
    for token in (left, right, left + right):
      if token not in vocabulary:
        raise ValueError(
          f"{source} merges {left!r} and {right!r} but {holder} no {token!r}; {remedy}"
        )


def add_prefix(inner: tokenizers.Tokenizer, bos_token: str | None) -> None:
  """Makes the library's tokenizer put `bos_token` before a text when it adds special tokens."""
  if bos_token is None:
    inner.post_processor = processors.TemplateProcessing(
      single="$A", pair="$A $B", special_tokens=[]
    )
  else:
    inner.post_processor = processors.TemplateProcessing(
      single=[bos_token, "$A"],
      pair=[bos_token, "$A", "$B"],
      special_tokens=[(bos_token, inner.token_to_id(bos_token))],
    )


def find_prefix(inner: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Ids that the tokenizer's own post-processor puts before a text."""
  bare = inner.encode("a", add_special_tokens=False).ids
  full = inner.encode("a", add_special_tokens=True).ids
  for start in range(len(full) - len(bare) + 1):
    if full[start : start + len(bare)] == bare:
      return tuple(full[:start])
  return ()


def spaces_first_only(inner: tokenizers.Tokenizer) -> bool:
  """Whether a space is written before the first word of a text, but not behind special tokens."""
  return any(
    step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first"
    for step in _steps(_settings(inner)["pre_tokenizer"], "pretokenizers")
  )


def without_leading_space(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """A copy that writes no space before a text and takes none off when it decodes; `inner` itself
  where it does neither."""
  settings = _settings(inner)
  changed = False
  for step in _steps(settings["pre_tokenizer"], "pretokenizers"):
    for field, never in (("prepend_scheme", "never"), ("add_prefix_space", False)):
      if field in step and step[field] != never:
        step[field], changed = never, True
  for step in _steps(settings["decoder"], "decoders"):
    if step["type"] == "Strip" and step["content"] == " " and step["start"]:
      step["start"], changed = 0, True
    if step["type"] == "Metaspace" and step["prepend_scheme"] != "never":
      step["prepend_scheme"], changed = "never", True
  for step in _steps(settings["normalizer"], "normalizers"):
    if step["type"] == "Prepend" and step["prepend"] == _SPACE:
      step["prepend"], changed = "", True
  if not changed:
    return inner
  return tokenizers.Tokenizer.from_str(json.dumps(json.loads(inner.to_str()) | settings))


def _settings(inner: tokenizers.Tokenizer) -> dict:
  """What `tokenizer.json` says but for the vocabulary, which takes seconds to write."""
  whole = tokenizers.Tokenizer(tokenizers.models.BPE())
  for field in ("normalizer", "pre_tokenizer", "decoder"):
    if getattr(inner, field) is not None:
      setattr(whole, field, getattr(inner, field))
  settings = json.loads(whole.to_str())
  return {field: settings[field] for field in ("normalizer", "pre_tokenizer", "decoder")}


def _steps(setting: dict | None, inside: str) -> list[dict]:
  """The steps of a normalizer, pre-tokenizer or decoder, one or a sequence."""
  if setting is None:
    return []
  return setting[inside] if setting["type"] == "Sequence" else [setting]


# ----------------------------------------------------------------------------- Hugging Face


def read_hf(directory: str | os.PathLike) -> TokenizerParts:
  """The tokenizer of a Hugging Face directory.

  `tokenizer.json`, or GPT-2's `vocab.json` and `merges.txt`; the special tokens by
  `tokenizer_config.json`, then `special_tokens_map.json`, then the ids of `generation_config.json`
  and `config.json`; the chat template by `chat_template.jinja`, then `tokenizer_config.json`.

  Raises:
    ValueError: a file that is missing or no such file, a form that is not read here, or no
      end-of-text.
  """
  directory = pathlib.Path(directory)
  settings = {
    name: read_json_object(directory / name) if (directory / name).exists() else {}
    for name in (CONFIG_FILE, "special_tokens_map.json", "generation_config.json", "config.json")
  }
  inner = _read_hf_vocabulary(directory)
  end_ids = _end_ids(settings)
  tokens = {
    field: _named_token(settings, field)
    for field in ("eos_token", "pad_token", "bos_token", "unk_token")
  }
  if tokens["eos_token"] is None and end_ids:
    tokens["eos_token"] = inner.id_to_token(end_ids[0])
  if tokens["eos_token"] is None:
    raise ValueError(
      f"{directory / CONFIG_FILE} names no eos_token; it must name the token that ends a text"
    )
  padding_row = _find_padding_row(directory, settings[CONFIG_FILE])
  if padding_row is not None:
    inner, tokens["pad_token"] = _without_added(inner, tokens["pad_token"]), None
  _add_named_tokens(inner, settings[CONFIG_FILE], tokens)
  for field in ("bos_token", "eos_token"):
    if tokens[field] is not None and inner.token_to_id(tokens[field]) is None:
      raise ValueError(
        f"{directory / CONFIG_FILE} has {field} {tokens[field]!r}, which is not in "
        f"the vocabulary of {directory}; name a token that is"
      )
  add_bos = settings[CONFIG_FILE].get("add_bos_token")
  if isinstance(add_bos, bool) and add_bos != bool(find_prefix(inner)):
    add_prefix(inner, tokens["bos_token"] if add_bos else None)
  return TokenizerParts(
    inner=inner,
    eot_token=tokens["eos_token"],
    pad_token=_own_padding(inner, tokens, end_ids),
    bos_token=tokens["bos_token"],
    prefix_ids=find_prefix(inner),
    chat_template=_find_template(directory, settings[CONFIG_FILE]),
    source=str(directory / CONFIG_FILE),
    padding_row=padding_row,
  )


def _find_padding_row(directory: pathlib.Path, config: dict) -> int | None:
  value = config.get(PADDING_ROW)
  if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
    raise ValueError(
      f"{directory / CONFIG_FILE} has {PADDING_ROW} {value!r}; it must be a whole number from 1"
    )
  return value


def _without_added(inner: tokenizers.Tokenizer, token: str | None) -> tokenizers.Tokenizer:
  """A copy without a token that was added to the vocabulary, if it was."""
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
        f"{directory} has {name} (SentencePiece) but no {TOKENIZER_FILE}; write that file beside "
        "it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
      )
  raise ValueError(
    f"{directory} has no {TOKENIZER_FILE}, nor vocab.json with merges.txt; a "
    "tokenizer must come with the model"
  )


def _named_token(settings: dict[str, dict], field: str) -> str | None:
  for name in (CONFIG_FILE, "special_tokens_map.json"):
    token = settings[name].get(field)
    token = token.get("content") if isinstance(token, dict) else token
    if isinstance(token, str):
      return token
  return None


def _end_ids(settings: dict[str, dict]) -> list[int]:
  """Ids at which the model is said to stop; the first is its end-of-text."""
  for name in ("generation_config.json", "config.json"):
    ids = settings[name].get("eos_token_id")
    ids = ids if isinstance(ids, list) else [ids]
    if ids and all(isinstance(i, int) for i in ids):
      return ids
  return []


def _add_named_tokens(inner: tokenizers.Tokenizer, config: dict, tokens: dict) -> None:
  """Makes the named tokens special, as `vocab.json` and old `tokenizer.json`s do not say it."""
  special = [token for token in tokens.values() if token is not None]
  listed = config.get("added_tokens_decoder")
  for value in listed.values() if isinstance(listed, dict) else ():
    if isinstance(value, dict) and value.get("special") and isinstance(value.get("content"), str):
      special.append(value["content"])
  known = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
  missing = [
    token
    for token in dict.fromkeys(special)
    if token not in known and inner.token_to_id(token) is not None
  ]
  inner.add_special_tokens(
    [tokenizers.AddedToken(token, special=True, normalized=False) for token in missing]
  )


def _own_padding(inner: tokenizers.Tokenizer, tokens: dict, end_ids: Sequence[int]) -> str | None:
  """The padding token, unless it has another meaning too: then padding gets a row of its own."""
  token = tokens["pad_token"]
  in_use = {tokens[field] for field in ("eos_token", "bos_token", "unk_token")}
  number = None if token is None else inner.token_to_id(token)
  if number is None or token in in_use or number in end_ids or number in find_prefix(inner):
    return None
  return token


def _find_template(directory: pathlib.Path, config: dict) -> str | None:
  if (directory / TEMPLATE_FILE).exists():
    return read_text(directory / TEMPLATE_FILE)
  template = config.get("chat_template")
  if isinstance(template, list):  # several, by name
    named = {
      item["name"]: item["template"]
      for item in template
      if isinstance(item, dict) and {"name", "template"} <= item.keys()
    }
    template = named.get("default")
  return template if isinstance(template, str) else None


# ----------------------------------------------------------------------------- GGUF


def read_gguf(source, name: str) -> TokenizerParts:
  """The tokenizer in a GGUF file's metadata.

  Args:
    source: a path, or an open `gguf.GGUFReader`.
    name: of the file, for error messages.

  Raises:
    ValueError: not a GGUF file, no tokenizer in it, or a kind that is not read here.
  """
  get = _gguf_fields(source, name)
  kind = get("tokenizer.ggml.model")
  if kind not in _GGUF_MODELS:
    raise ValueError(
      f"{name} has tokenizer.ggml.model {kind!r}; known are {', '.join(sorted(_GGUF_MODELS))}"
    )
  for field in ("tokens", "token_type"):
    if get(f"tokenizer.ggml.{field}") is None:
      raise ValueError(f"{name} has no tokenizer.ggml.{field}; a tokenizer must be in the file")
  tokens, kinds = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
  inner, starts_with_bos = _GGUF_MODELS[kind](name, get, tokens, kinds)
  _add_gguf_tokens(inner, tokens, kinds)
  named = {
    field: _gguf_token(name, get, tokens, field) for field in ("eos", "padding", "bos", "unknown")
  }
  if named["eos"] is None:
    raise ValueError(
      f"{name} has no tokenizer.ggml.eos_token_id; it must name the token that ends a text"
    )
  add_bos = get("tokenizer.ggml.add_bos_token")
  add_bos = starts_with_bos if add_bos is None else bool(add_bos)
  if add_bos and named["bos"] is not None:
    add_prefix(inner, named["bos"])
  own = dict(
    eos_token=named["eos"],
    pad_token=named["padding"],
    bos_token=named["bos"],
    unk_token=named["unknown"],
  )
  return TokenizerParts(
    inner=inner,
    eot_token=named["eos"],
    pad_token=_own_padding(inner, own, ()),
    bos_token=named["bos"],
    prefix_ids=find_prefix(inner),
    chat_template=get("tokenizer.chat_template"),
    source=name,
  )


def _gguf_fields(source, name: str):
  """Function from a field's name to its value or None."""
  if isinstance(source, (str, os.PathLike)):
    gguf = extras.load("gguf", "gguf", f"gguf:{source}")
    try:
      reader = gguf.GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:
      raise ValueError(f"{name} is not a GGUF file that can be read ({error})") from error
  else:
    reader = source

  def get(field: str) -> Any:
    return reader.fields[field].contents() if field in reader.fields else None

  return get


def _gguf_token(name: str, get, tokens: Sequence[str], field: str) -> str | None:
  number = get(f"tokenizer.ggml.{field}_token_id")
  if number is None:
    return None
  if not 0 <= number < len(tokens):
    raise ValueError(
      f"{name} has tokenizer.ggml.{field}_token_id {number}, and {len(tokens)} "
      "tokens; it must be one of them"
    )
  return tokens[number]


def _add_gguf_tokens(
  inner: tokenizers.Tokenizer, tokens: Sequence[str], kinds: Sequence[int]
) -> None:
  """Tokens that are found in a text before it is cut."""
  added = []
  for token, kind in zip(tokens, kinds, strict=True):
    if kind in (_UNKNOWN, _CONTROL):
      added.append(tokenizers.AddedToken(token, special=True, normalized=False))
    elif kind == _USER_DEFINED and token.strip(" "):  # runs of spaces are merged like others
      added.append(tokenizers.AddedToken(token, special=False, normalized=False))
  inner.add_tokens(added)


def _gguf_bpe(
  name: str, get, tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[tokenizers.Tokenizer, bool]:
  """GPT-2's byte-level BPE with the pre-tokenizer that the file names."""
  del kinds
  pre = get("tokenizer.ggml.pre")
  if pre not in PRE_TOKENIZERS:
    raise ValueError(
      f"{name} has tokenizer.ggml.pre {pre!r}; known are {', '.join(sorted(PRE_TOKENIZERS))}"
    )
  if get("tokenizer.ggml.merges") is None:
    raise ValueError(f"{name} has no tokenizer.ggml.merges; a tokenizer must be in the file")
  merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
  vocabulary = {token: i for i, token in enumerate(tokens)}
  if not all(len(merge) == 2 for merge in merges):
    raise ValueError(
      f"{name}: a line of tokenizer.ggml.merges is not two tokens with one space between them"
    )
  _check_merges(vocabulary, merges, "its vocabulary has", name, "the file is damaged")
  steps, normalizer, is_llama3 = PRE_TOKENIZERS[pre]
  inner = byte_level(
    tokenizers.models.BPE(vocab=vocabulary, merges=merges, ignore_merges=is_llama3)
  )
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
# tokenizer.ggml.pre -> (steps, None for GPT-2's; normalizer; Llama 3: a whole word that is a token
# needs no merges, and texts begin with begin-of-text).  The regular expressions are those of the
# models' own tokenizer.json.
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


def _gguf_sentencepiece(
  name: str, get, tokens: Sequence[str], kinds: Sequence[int]
) -> tuple[tokenizers.Tokenizer, bool]:
  """SentencePiece's BPE: of two neighbours, those whose union scores highest are joined first."""
  scores = get("tokenizer.ggml.scores")
  if scores is None:
    raise ValueError(f"{name} has no tokenizer.ggml.scores; a tokenizer must be in the file")
  # llama.cpp writes the runs of spaces that are tokens of their own with plain spaces.
  tokens = [
    token.replace(" ", _SPACE) if kind == _USER_DEFINED and not token.strip(" ") else token
    for token, kind in zip(tokens, kinds, strict=True)
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
  unknown = _gguf_token(name, get, tokens, "unknown")
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=vocabulary,
      merges=[pair for _, pair in ranked],
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  replace = normalizers.Replace(" ", _SPACE)
  decode = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  if get("tokenizer.ggml.add_space_prefix") is False:
    inner.normalizer = replace
  else:  # SentencePiece's own default
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
    decode.append(decoders.Strip(" ", 1, 0))
  inner.decoder = decoders.Sequence(decode)
  return inner, True


_GGUF_MODELS = {"gpt2": _gguf_bpe, "llama": _gguf_sentencepiece}
