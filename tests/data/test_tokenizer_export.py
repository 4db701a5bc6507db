"""The tokenizer as transformers reads it, against our own: the same ids and the same text."""

import functools
import json
import random

import pytest
from helpers import texts_of_all_kinds
from hypothesis import example, given
from hypothesis import strategies as st

from data.export import to_tokenizers
from data.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer


@functools.cache
def bytes_tokenizer():
    return train_tokenizer("bytes", iter(()))


@functools.cache
def bpe_tokenizer():
    return train_tokenizer("bpe:600", iter(texts_of_all_kinds(10_000)))


@functools.cache
def fast(tokenizer: Tokenizer):
    """The file as the library that reads it sees it."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps(to_tokenizers(tokenizer)))


def same_ids(tokenizer, texts):
    for text in texts:
        assert fast(tokenizer).encode(text).ids == tokenizer.encode(text), text
        assert fast(tokenizer).decode([tokenizer.eot, *tokenizer.encode(text)]) == text  # it leaves the special one out


def random_unicode(count):
    """Texts of characters of every plane, surrogates apart."""
    draw = random.Random(0)
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    return ["".join(map(chr, draw.choices(points, k=20))) for _ in range(count)]


@pytest.mark.parametrize("make", [bytes_tokenizer, bpe_tokenizer])
def test_ids_are_the_same_on_lines_and_on_random_unicode(make):
    same_ids(make(), texts_of_all_kinds(10_000) + random_unicode(500))


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="x" * 100 + "\n" * 40)
def test_ids_are_the_same_on_any_text(text):
    for tokenizer in (bytes_tokenizer(), bpe_tokenizer()):
        same_ids(tokenizer, [text.replace(END_OF_TEXT, "")])


def test_ids_are_the_same_where_merges_compete():
    draw = random.Random(0)
    for _ in range(10):
        texts = ["".join(draw.choices("ab", k=draw.randint(5, 60))) for _ in range(40)]
        same_ids(train_tokenizer(f"bpe:{draw.randint(270, 300)}", iter(texts)), texts)


def test_gpt2_ids_are_the_same(wheels):
    same_ids(train_tokenizer("gpt2", iter(())), texts_of_all_kinds(10_000) + random_unicode(500))


def test_a_token_that_nothing_merges_to_is_no_silent_difference():
    ranks = bytes_tokenizer().ranks | {b"abc": 256}
    with pytest.raises(ValueError, match="b'abc'"):
        to_tokenizers(Tokenizer("bpe:258", ranks))
