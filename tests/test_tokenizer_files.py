"""Tokenizers as others publish them, and as transformers reads what we write."""

import functools
import json
import os
import pathlib

import pytest
import tokenizers

from rlhf.tokenization import published
from rlhf.tokenization.tokenizer import PAD_TOKEN, Tokenizer

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|turn|>", "<|end|>"]
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}\n"
  "{{ m['content'] | trim }}<|end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEXTS = ["The cat sat.", "a\n\nb  c", "naïve 猫", "x = 12  # </s>"]
NUM_IDS = 300
# Spaces, digits beside letters and spaces, code, tabs, other scripts, emoji, contractions.
VARIED = [
  "Hello  world\n\n x",
  "def f(x):\n    return x\n\n\n\tif  y:\n\t\tpass",
  "naïve 猫 你好，世界 🎉👩‍👧",
  "   leading",
  "trailing   ",
  "a" + " " * 40 + "b",
  "don't I'LL we've",
  "\r\n x\ty",
  "",
  "<h1>Title</h1> x",
  "e\u0301 𝄞 \x00",
  "The quick brown fox, again; " * 5,
]
DIGITS = ["12   345 6", "a   123", "x\n   7", "½ ² ٣٤ x2 3D"]


def make_directory(directory: pathlib.Path, *, bos: bool = True, **config) -> pathlib.Path:
  """A Hugging Face directory of a byte-level tokenizer with `SPECIALS`."""
  inner = published.byte_level(tokenizers.models.BPE(unk_token=None))
  inner.train_from_iterator(
    TEXTS * 20,
    tokenizers.trainers.BpeTrainer(
      vocab_size=NUM_IDS,
      special_tokens=SPECIALS,
      show_progress=False,
      initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    ),
  )
  assert inner.get_vocab_size() < NUM_IDS  # so that a row behind the vocabulary is another
  published.add_prefix(inner, "<s>" if bos else None)
  directory.mkdir(parents=True, exist_ok=True)
  inner.save(str(directory / "tokenizer.json"))
  named = dict(bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE)
  write(
    directory,
    "tokenizer_config.json",
    {name: value for name, value in (named | config).items() if value is not None},
  )
  return directory


def write(directory: pathlib.Path, name: str, value: dict) -> None:
  (directory / name).write_text(json.dumps(value))


def read(directory: pathlib.Path, num_embeddings: int = NUM_IDS) -> Tokenizer:
  return Tokenizer.from_hf(directory, num_embeddings=num_embeddings)


def test_a_directory_says_what_begins_ends_and_pads(tmp_path):
  tokenizer = read(make_directory(tmp_path))
  assert (tokenizer.prefix_ids, tokenizer.eot_id, tokenizer.pad_id) == ((1,), 2, 0)
  assert tokenizer.num_ids == NUM_IDS > tokenizer.vocab_size
  assert tokenizer.chat_template == TEMPLATE
  ids = tokenizer.encode("x = 12  # </s>")
  assert not {0, 1, 2} & set(ids)  # nothing is added, and a special written out is characters
  assert tokenizer.decode([1, *ids, 2, 0, 0]) == "x = 12  # </s>"


@pytest.mark.parametrize("pad", ["</s>", "<unk>", "<s>", "<|end|>", None])
def test_padding_that_means_something_else_gets_a_row_behind_the_embedding(tmp_path, pad):
  make_directory(tmp_path, pad_token=pad, unk_token="<unk>")
  write(tmp_path, "generation_config.json", {"eos_token_id": [2, 5]})  # a chat model stops at both
  tokenizer = read(tmp_path, 320)
  assert (tokenizer.pad_id, tokenizer.num_ids) == (320, 321)
  tokenizer.save(tmp_path / "saved")
  again = Tokenizer.load(tmp_path / "saved")
  assert again.fingerprint == tokenizer.fingerprint and (again.pad_id, again.num_ids) == (320, 321)


def test_saved_and_loaded_keeps_all_of_it(tmp_path):
  tokenizer = read(make_directory(tmp_path / "hf"))
  tokenizer.save(tmp_path / "saved")
  again = Tokenizer.load(tmp_path / "saved")
  assert again.fingerprint == tokenizer.fingerprint
  assert (again.prefix_ids, again.num_ids, again.turn_end_id) == ((1,), NUM_IDS, 5)
  assert again.encode_chat(TEXTS) == tokenizer.encode_chat(TEXTS)
  other = read(make_directory(tmp_path / "other", bos=False))
  assert other.fingerprint != tokenizer.fingerprint


def test_what_was_saved_before_there_were_prefixes_is_read(tmp_path):
  trained = Tokenizer.train_bpe(TEXTS, 270)
  trained.save(tmp_path)
  path = tmp_path / "tokenizer_config.json"
  config = json.loads(path.read_text())
  old = {name: config[name] for name in ("eos_token", "eos_token_id", "pad_token", "pad_token_id")}
  path.write_text(json.dumps(old))
  assert Tokenizer.load(tmp_path).fingerprint == trained.fingerprint


@pytest.mark.parametrize(
  "bos, flag, prefix",
  [(True, None, (1,)), (False, None, ()), (True, False, ()), (False, True, (1,))],
)
def test_add_bos_token_overrules_the_post_processor(tmp_path, bos, flag, prefix):
  assert read(make_directory(tmp_path, bos=bos, add_bos_token=flag)).prefix_ids == prefix


def test_special_tokens_are_looked_for_in_every_file(tmp_path):
  make_directory(tmp_path, bos_token=None, eos_token=None, pad_token=None)
  with pytest.raises(ValueError, match="tokenizer_config.json names no eos_token"):
    read(tmp_path)
  write(tmp_path, "config.json", {"eos_token_id": 5})
  assert read(tmp_path).eot_id == 5
  write(tmp_path, "generation_config.json", {"eos_token_id": [2, 5]})
  assert read(tmp_path).eot_id == 2
  write(
    tmp_path, "special_tokens_map.json", {"eos_token": {"content": "<|end|>"}, "pad_token": "<pad>"}
  )
  tokenizer = read(tmp_path)
  assert (tokenizer.eot_id, tokenizer.pad_id) == (5, 0)


def test_a_template_has_a_file_of_its_own_or_a_name(tmp_path):
  make_directory(
    tmp_path,
    chat_template=[{"name": "tools", "template": "no"}, {"name": "default", "template": TEMPLATE}],
  )
  assert read(tmp_path).chat_template == TEMPLATE
  (tmp_path / "chat_template.jinja").write_text("other")
  assert read(tmp_path).chat_template == "other"


def test_vocab_and_merges_are_read_as_opt_has_them(tmp_path):
  make_directory(tmp_path, bos_token="</s>", add_bos_token=True)
  whole = json.loads((tmp_path / "tokenizer.json").read_text())
  expected = read(tmp_path)
  (tmp_path / "tokenizer.json").unlink()
  write(tmp_path, "vocab.json", whole["model"]["vocab"])
  (tmp_path / "merges.txt").write_text(
    "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in whole["model"]["merges"])
  )
  tokenizer = read(tmp_path)
  assert (tokenizer.prefix_ids, tokenizer.eot_id, tokenizer.pad_id) == ((2,), 2, 0)
  assert tokenizer.encode_batch(TEXTS) == expected.encode_batch(TEXTS)


def test_directories_without_a_tokenizer_that_fits(tmp_path):
  with pytest.raises(ValueError, match="has no tokenizer.json, nor vocab.json with merges.txt"):
    read(tmp_path)
  (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
  with pytest.raises(ValueError, match=r"has tokenizer.model \(SentencePiece\) but no tokenizer"):
    read(tmp_path)
  make_directory(tmp_path)
  size = read(tmp_path).vocab_size
  with pytest.raises(ValueError, match=f"ids up to {size - 1} and the model's embedding 200 rows"):
    read(tmp_path, 200)
  make_directory(tmp_path, bos_token="<nowhere>")
  with pytest.raises(ValueError, match="has bos_token '<nowhere>', which is not in the vocabulary"):
    read(tmp_path)


def llama2(kind: str, **fields) -> Tokenizer:
  """A tokenizer that writes a space before a text: each, or "first" in what it is given."""
  vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2, "a": 3, "▁a": 4, "\n": 5}
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>")
  )
  if kind == "each":
    inner.normalizer = tokenizers.normalizers.Sequence(
      [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
  else:
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
  inner.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace("▁", " "),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(" ", 1, 0),
    ]
  )
  inner.add_special_tokens(["</s>"])
  return Tokenizer(inner, eot_token="</s>", pad_token=None, **fields)


@pytest.mark.parametrize("kind", ["each", "first"])
def test_a_space_before_a_text_is_written_once(kind: str):
  """Llama 2's tokenizer writes a space before a text: not before one that goes on."""
  tokenizer = llama2(kind)
  assert tokenizer.encode("a a") == [4, 4] and tokenizer.decode([4, 4]) == "a a"
  assert tokenizer.encode(" a", continues=True) == [4]
  assert tokenizer.encode("a", continues=True) == [3]
  assert tokenizer.decode([4], continues=True) == " a"


# ----------------------------------------------------------------------------- GGUF


class Reader:
  """What of `gguf.GGUFReader` is read: fields with contents."""

  class Field:
    def __init__(self, value):
      self._value = value

    def contents(self):
      return self._value

  def __init__(self, **fields):
    self.fields = {
      "tokenizer." + name.replace("__", "."): self.Field(value)
      for name, value in fields.items()
      if value is not None
    }


ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())


def bpe_reader(**changes) -> Reader:
  tokens = ["<eos>", "<bos>", "<tool>", *ALPHABET, "ĠĠ", "Ġ1", "ab", "abc"]
  return Reader(
    **{
      "ggml__model": "gpt2",
      "ggml__pre": "gpt-2",
      "ggml__tokens": tokens,
      "ggml__token_type": [3, 3, 4] + [1] * (len(tokens) - 3),
      "ggml__merges": ["Ġ Ġ", "Ġ 1", "a b", "ab c"],
      "ggml__eos_token_id": 0,
      "ggml__bos_token_id": 1,
      "chat_template": TEMPLATE,
    }
    | changes
  )


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
  return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


def test_byte_pairs_of_gguf_are_cut_as_their_name_says():
  cut = {
    name: pieces(
      Tokenizer.from_gguf(bpe_reader(ggml__pre=name), num_embeddings=300, name="m.gguf"),
      "abc  1<tool><eos>",
    )
    for name in ("gpt-2", "smollm", "qwen2", "llama-bpe")
  }
  ordinary = list("<eos>")
  assert cut["gpt-2"] == ["abc", " ", " 1", "<tool>", *ordinary]
  assert cut["smollm"] == ["abc", "  ", "1", "<tool>", *ordinary]
  assert cut["qwen2"] == cut["llama-bpe"] == ["abc", " ", " ", "1", "<tool>", *ordinary]
  tokenizer = Tokenizer.from_gguf(bpe_reader(), num_embeddings=300, name="m.gguf")
  assert (tokenizer.eot_id, tokenizer.pad_id, tokenizer.prefix_ids) == (0, 300, ())
  llama = Tokenizer.from_gguf(bpe_reader(ggml__pre="llama-bpe"), num_embeddings=300, name="m.gguf")
  assert llama.prefix_ids == (1,)  # llama.cpp's own default for this pre-tokenizer


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(ggml__pre="dbrx"), "tokenizer.ggml.pre 'dbrx'; known are gpt-2, llama-bpe"),
    (dict(ggml__model="t5"), "tokenizer.ggml.model 't5'; known are gpt2, llama"),
    (dict(ggml__tokens=None), "has no tokenizer.ggml.tokens"),
    (dict(ggml__merges=None), "has no tokenizer.ggml.merges"),
    (dict(ggml__merges=["a x"]), "m.gguf: 'a' and 'x' are merged, but 'ax'"),
    (dict(ggml__eos_token_id=None), "has no tokenizer.ggml.eos_token_id"),
    (dict(ggml__eos_token_id=999), "tokenizer.ggml.eos_token_id 999, and 263 tokens"),
  ],
)
def test_gguf_that_cannot_be_read(changes: dict, message: str):
  with pytest.raises(ValueError, match=message):
    Tokenizer.from_gguf(bpe_reader(**changes), num_embeddings=300, name="m.gguf")
  with pytest.raises(ValueError, match="ids up to 262 and the model's embedding 100 rows"):
    Tokenizer.from_gguf(bpe_reader(), num_embeddings=100, name="m.gguf")


def test_a_gguf_file_without_a_template_is_named():
  tokenizer = Tokenizer.from_gguf(bpe_reader(chat_template=None), num_embeddings=300, name="m.gguf")
  with pytest.raises(ValueError, match="^prompt_format chat, but m.gguf has no chat_template; use"):
    tokenizer.encode_chat(["a"])


def test_sentencepiece_of_gguf_joins_what_scores_highest():
  tokens = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "\n\n",
    "  ",
    "▁",
    "a",
    "b",
    "c",
    "ab",
    "bc",
    "▁a",
    *(f"<0x{i:02X}>" for i in range(256)),
  ]
  kinds = [3, 3, 3, 2, 4, 4] + [1] * 7 + [6] * 256
  scores = dict.fromkeys(tokens, -9.0) | {"ab": -2.0, "bc": -1.0, "▁a": -3.0}
  fields = dict(
    ggml__model="llama",
    ggml__tokens=tokens,
    ggml__token_type=kinds,
    ggml__scores=[scores[token] for token in tokens],
    ggml__eos_token_id=1,
    ggml__bos_token_id=2,
    ggml__padding_token_id=0,
    ggml__unknown_token_id=3,
  )
  at = {token: i for i, token in enumerate(tokens)}
  gemma = Tokenizer.from_gguf(
    Reader(**fields, ggml__add_space_prefix=False), num_embeddings=280, name="m.gguf"
  )
  assert (gemma.pad_id, gemma.eot_id, gemma.prefix_ids, gemma.num_ids) == (0, 1, (2,), 280)
  assert gemma.encode("abc") == [at["a"], at["bc"]]  # a better score than "ab"
  assert gemma.encode("a   b\n\nz") == [
    at["a"],
    at["  "],
    at["▁"],
    at["b"],
    at["\n\n"],
    at["<0x7A>"],
  ]
  assert gemma.encode("b  a") == [at["b"], at["  "], at["a"]]  # user-defined before any score
  llama = Tokenizer.from_gguf(Reader(**fields), num_embeddings=280, name="m.gguf")
  assert llama.encode("a a") == [at["▁a"], at["▁a"]] and llama.decode([at["▁a"]] * 2) == "a a"


# ----------------------------------------------------------------------------- transformers


@pytest.mark.parametrize(
  "pad, num_embeddings, exported",
  [("<pad>", 320, "<pad>"), (None, 320, "</s>"), ("</s>", "rows", "</s>")],
)
def test_transformers_reads_what_is_written_for_it(tmp_path, pad, num_embeddings, exported):
  auto = pytest.importorskip("transformers", reason="transformers is not installed").AutoTokenizer
  make_directory(tmp_path / "hf", pad_token=pad)
  rows = read(tmp_path / "hf").vocab_size if num_embeddings == "rows" else num_embeddings
  tokenizer = read(tmp_path / "hf", rows)
  tokenizer.save_hf(tmp_path / "out", num_embeddings=rows)
  theirs = auto.from_pretrained(tmp_path / "out")
  assert (theirs.eos_token, theirs.bos_token, theirs.pad_token) == ("</s>", "<s>", exported)
  for text in TEXTS[:3]:
    assert theirs(text).input_ids == [*tokenizer.prefix_ids, *tokenizer.encode(text)]
    asked = theirs.apply_chat_template(
      [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert theirs(asked, add_special_tokens=False).input_ids == tokenizer.encode_chat([text])[0]
  assert read(tmp_path / "out", rows).fingerprint == tokenizer.fingerprint or pad == "</s>"


def test_an_added_padding_row_is_named_where_it_is_exported(tmp_path):
  make_directory(tmp_path / "hf", pad_token=None)
  tokenizer = Tokenizer.from_spec(f"json:{tmp_path / 'hf'}")
  assert tokenizer.pad_id == tokenizer.vocab_size
  for rows, expected in ((tokenizer.num_ids, PAD_TOKEN), (tokenizer.vocab_size, "</s>")):
    tokenizer.save_hf(tmp_path / "out", num_embeddings=rows)
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["pad_token"] == expected
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    vocabulary = inner.get_vocab()
    assert vocabulary.get(PAD_TOKEN) == (tokenizer.pad_id if expected == PAD_TOKEN else None)
    again = read(tmp_path / "out", rows)
    assert (again.pad_id, again.num_ids, again.vocab_size) == (
      tokenizer.pad_id,
      tokenizer.num_ids,
      tokenizer.vocab_size,
    )
  with pytest.raises(ValueError, match="and the exported embedding 100 rows"):
    tokenizer.save_hf(tmp_path / "out", num_embeddings=100)


# ----------------------------------------------------------------------------- real models


@functools.cache
def real(name: str, num_embeddings: int):
  """(tokenizer of a real GGUF file, transformers' own reading of the file)."""
  directory = pathlib.Path(
    os.environ.get("RLHF_MODELS", pathlib.Path(__file__).resolve().parents[2] / "shared" / "models")
  )
  if not (directory / name).exists():
    pytest.skip(f"{name} is not in {directory}; ../shared/data/get_models.sh fetches it")
  gguf = pytest.importorskip("gguf", reason="this test reads a real file with it")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  return (
    Tokenizer.from_gguf(
      gguf.GGUFReader(directory / name), num_embeddings=num_embeddings, name=name
    ),
    transformers.AutoTokenizer.from_pretrained(directory, gguf_file=name),
  )


@pytest.mark.slow  # transformers reads the file in Python
def test_smollm2():
  ours, theirs = real("SmolLM2-135M-Instruct.Q4_1.gguf", 49152)
  assert (ours.eot_id, ours.pad_id, ours.num_ids, ours.prefix_ids) == (2, 49152, 49153, ())
  assert ours.turn_end_id == 2
  for text in VARIED:
    assert ours.encode(text) == theirs(text).input_ids
    assert ours.decode(ours.encode(text)) == text
    asked = theirs.apply_chat_template(
      [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert ours.encode_chat([text])[0] == theirs(asked).input_ids
  # transformers' reading of GGUF leaves out the model's first cut, at every digit, which its own
  # tokenizer.json and llama.cpp have: with it, texts with numbers are equal too.
  steps = tokenizers.pre_tokenizers
  assert any(ours.encode(text) != theirs(text).input_ids for text in DIGITS)
  theirs.backend_tokenizer.pre_tokenizer = steps.Sequence(
    [steps.Digits(individual_digits=True), steps.ByteLevel(add_prefix_space=False)]
  )
  for text in DIGITS:
    assert ours.encode(text) == theirs(text).input_ids


@pytest.mark.slow  # a quarter of a million tokens, read twice from the file
def test_gemma3():
  ours, theirs = real("gemma-3-270m-q4_k_m.gguf", 262144)
  assert (ours.eot_id, ours.pad_id, ours.num_ids, ours.prefix_ids) == (1, 0, 262144, (2,))
  assert ours.chat_template is None
  for text in VARIED + DIGITS:
    assert [2, *ours.encode(text)] == theirs(text).input_ids
    assert ours.decode(ours.encode(text)) == text
