"""Text <-> ids, special ids, files."""

import json
import subprocess
import sys

import pytest
import tokenizers

from rlhf.tokenization.tokenizer import EOT_TOKEN, PAD_TOKEN, Tokenizer

TEXTS = ["The cat sat on the mat. " * 20, "Ein Käse für 3 Personen, naïve 猫!\n" * 20]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
  return Tokenizer.train_bpe(TEXTS, 300)


def word_level(directory, vocabulary: dict[str, int]):
  path = directory / "tokenizer.json"
  tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?")).save(str(path))
  return path


def ids_of(tokenizer: Tokenizer) -> tuple[int, int, int, int]:
  return tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id, tokenizer.num_ids


def test_bpe_gives_back_every_text(trained: Tokenizer):
  for text in TEXTS + ["", "\x00\t\r\n", "𝄞 e\u0301", "  two  spaces ", "never seen: ж"]:
    assert trained.decode(trained.encode(text)) == text


def test_bpe_learns_words(trained: Tokenizer):
  assert len(trained.encode("The cat sat on the mat.")) < len(b"The cat sat on the mat.") / 2
  assert trained.vocab_size == trained.num_ids == 300


def test_a_batch_is_each_text_alone(trained: Tokenizer):
  texts = TEXTS + ["", "x"]
  assert trained.encode_batch(texts) == [trained.encode(text) for text in texts]


def test_specials_are_named_and_differ(trained: Tokenizer):
  assert trained.eot_id != trained.pad_id
  assert {trained.eot_id, trained.pad_id} == {0, 1}


def test_specials_written_in_a_text_are_ordinary_characters(trained: Tokenizer):
  text = f"a{EOT_TOKEN} b{PAD_TOKEN}"
  for ids in (trained.encode(text), trained.encode_batch([text])[0]):
    assert trained.eot_id not in ids and trained.pad_id not in ids
    assert trained.decode(ids) == text


def test_decode_skips_the_special_ids(trained: Tokenizer):
  ids = trained.encode("cat")
  assert trained.decode([trained.pad_id, *ids, trained.eot_id, trained.pad_id]) == "cat"


def test_training_is_deterministic_in_another_process(trained: Tokenizer, tmp_path, repository):
  trained.save(tmp_path / "here")
  program = (
    "from rlhf.tokenization.tokenizer import Tokenizer\nfrom tests.test_tokenizer import TEXTS\n"
    f"Tokenizer.train_bpe(TEXTS, 300).save({str(tmp_path / 'there')!r})"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=repository)
  here, there = ((tmp_path / d / "tokenizer.json").read_text() for d in ("here", "there"))
  assert here == there


def test_saved_and_loaded_is_the_same(trained: Tokenizer, tmp_path):
  trained.save(tmp_path)
  for loaded in (Tokenizer.load(tmp_path), Tokenizer.from_spec(f"json:{tmp_path}")):
    assert loaded.encode("The cat<|pad|>") == trained.encode("The cat<|pad|>")
    assert (loaded.eot_id, loaded.pad_id, loaded.num_ids) == (0, 1, 300)


def test_without_a_padding_token_the_first_added_row_pads(tmp_path):
  path = word_level(tmp_path, {"?": 0, EOT_TOKEN: 1, "a": 2})
  tokenizer = Tokenizer.from_spec(f"json:{path}")
  assert ids_of(tokenizer) == (3, 1, 3, 4)
  tokenizer.save(tmp_path / "again")
  assert Tokenizer.load(tmp_path / "again").pad_id == 3


@pytest.mark.parametrize(
  "config, ids",
  [
    ({"eos_token": "</s>", "pad_token": "<pad>"}, (6, 5, 3, 6)),
    ({"eos_token": {"content": "</s>"}, "pad_token": {"content": "</s>"}}, (6, 5, 6, 7)),
    ({"eos_token": "</s>"}, (6, 5, 6, 7)),
  ],
)
def test_published_tokenizers_name_their_tokens_in_a_file(tmp_path, config: dict, ids: tuple):
  path = word_level(tmp_path, {"?": 0, "</s>": 5, "<pad>": 3})
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  for spec in (f"json:{path}", f"json:{tmp_path}"):
    assert ids_of(Tokenizer.from_spec(spec)) == ids
  (tmp_path / "tokenizer_config.json").write_text("{}")
  with pytest.raises(ValueError, match="tokenizer_config.json names no eos_token"):
    Tokenizer.from_spec(f"json:{tmp_path}")


def test_gpt2(shared_data):
  tokenizer = Tokenizer.from_spec(f"gpt2:{shared_data / 'tokenizer'}")
  assert tokenizer.encode("Hello world") == [15496, 995]
  assert (tokenizer.vocab_size, tokenizer.eot_id, tokenizer.pad_id) == (50257, 50256, 50257)
  assert tokenizer.num_ids == 50258
  text = "naïve 猫 <|endoftext|>\n\n  x"
  assert tokenizer.eot_id not in tokenizer.encode(text)
  assert tokenizer.decode([*tokenizer.encode(text), 50256, 50257]) == text


def test_gpt2_saved_and_loaded(shared_data, tmp_path):
  Tokenizer.from_spec(f"gpt2:{shared_data / 'tokenizer'}").save(tmp_path)
  loaded = Tokenizer.load(tmp_path)
  assert loaded.encode("Hello world") == [15496, 995]
  assert (loaded.eot_id, loaded.pad_id) == (50256, 50257)


def test_specs():
  assert Tokenizer.from_spec("bpe:260", TEXTS).vocab_size == 260


@pytest.mark.parametrize(
  "spec, message",
  [
    ("bpe", r"tokenizer 'bpe'; choose from \['bpe:VOCAB_SIZE', 'json:PATH', 'gpt2:DIR'\]"),
    ("bpe:many", "tokenizer 'bpe:many'; choose from"),
    ("sentencepiece:x", "choose from"),
    ("bpe:257", "vocab_size 257 is too small for 256 bytes and 2 special tokens; use at least 258"),
    ("json:absent.json", "absent.json"),
    ("gpt2:absent", "absent/encoder.json"),
  ],
)
def test_bad_specs(spec: str, message: str):
  with pytest.raises(ValueError, match=message):
    Tokenizer.from_spec(spec, TEXTS)


def test_bpe_without_text():
  with pytest.raises(ValueError, match="'bpe:300' learns from text"):
    Tokenizer.from_spec("bpe:300")
  with pytest.raises(ValueError, match="learns from text"):
    Tokenizer.train_bpe(["", ""], 300)


def test_special_tokens_must_exist_and_differ(tmp_path):
  path = word_level(tmp_path, {"?": 0, "</s>": 1})
  with pytest.raises(
    ValueError,
    match=r"end-of-text token '<\|endoftext\|>' is not among the "
    "tokenizer's 2 tokens",
  ):
    Tokenizer.from_spec(f"json:{path}")
  inner = tokenizers.Tokenizer.from_file(str(path))
  with pytest.raises(ValueError, match="padding token 'p' is not among"):
    Tokenizer(inner, eot_token="</s>", pad_token="p")
  with pytest.raises(ValueError, match="end-of-text and padding are both '</s>'"):
    Tokenizer(inner, eot_token="</s>", pad_token="</s>")


def test_files_that_are_no_tokenizer(tmp_path):
  (tmp_path / "t.json").write_text("{}")
  with pytest.raises(ValueError, match="t.json is not a tokenizer.json"):
    Tokenizer.from_spec(f"json:{tmp_path / 't.json'}")
  (tmp_path / "encoder.json").write_text('{"a": 0,\n"b": }')
  (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b\n")
  with pytest.raises(ValueError, match="encoder.json and .*vocab.bpe .*line 2"):
    Tokenizer.from_spec(f"gpt2:{tmp_path}")
  (tmp_path / "encoder.json").write_text('{"a": 0, "b": 1}')
  with pytest.raises(ValueError, match="vocab.bpe: 'a' and 'b' are merged, but 'ab'"):
    Tokenizer.from_spec(f"gpt2:{tmp_path}")
  (tmp_path / "encoder.json").write_text('{"a": "0"}')
  with pytest.raises(ValueError, match="encoder.json and "):
    Tokenizer.from_spec(f"gpt2:{tmp_path}")
  (tmp_path / "encoder.json").write_text('{"a": 0, "b": 1}')
  (tmp_path / "vocab.bpe").write_text("#version: 0.2\na b c\n")
  with pytest.raises(ValueError, match="vocab.bpe .*line"):
    Tokenizer.from_spec(f"gpt2:{tmp_path}")


def test_a_save_whose_files_disagree(trained: Tokenizer, tmp_path):
  trained.save(tmp_path)
  config = json.loads((tmp_path / "tokenizer_config.json").read_text())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(config, pad_token_id=7)))
  with pytest.raises(
    ValueError, match=r"tokenizer_config.json: .*\(0, 7\), but tokenizer.json gives \(0, 1\)"
  ):
    Tokenizer.load(tmp_path)
