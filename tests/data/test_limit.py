from dataclasses import replace

import pytest

from data import limit
from data.config import DataConfig
from data.dataset import prepare
from data.documents import Document
from data.limit import head
from errors import UserError


def given(*texts):
    return (Document(str(i), text) for i, text in enumerate(texts))


def then_fail(*texts):
    yield from given(*texts)
    pytest.fail("read beyond the limit")


@pytest.mark.parametrize(
    ("texts", "n_bytes", "kept"),
    [
        (["ab\n", "cd\nef\n", "gh"], 3, ["ab\n"]),
        (["ab\n", "cd\nef\n", "gh"], 4, ["ab\n", "c"]),
        (["ab\n", "cd\nef\n", "gh"], 7, ["ab\n", "cd\n"]),
        (["ab\n", "cd\nef"], 8, ["ab\n", "cd\nef"]),
        (["ab\n", "", "cd\nef\n"], 9, ["ab\n", "cd\nef\n"]),
        (["éé\néé\n"], 5, ["éé\n"]),
    ],
)
def test_documents_by_hand(texts, n_bytes, kept):
    assert [document.text for document in head(then_fail(*texts), n_bytes)] == kept


def test_a_long_line_is_cut_where_the_limit_falls():
    assert [document.text for document in head(given("My Book\n" + "x" * 10_000), 5000)] == ["My Book\n" + "x" * 4992]


def test_a_limit_beyond_the_corpus_takes_all_of_it():
    assert [document.text for document in head(given("ab", "", "c"), 4)] == ["ab", "c"]


def tokens_and_documents(config):
    data = prepare(config)
    splits = [split for split in (data.train, data.val, data.test) if split]
    return sum(len(split.tokens_N) for split in splits), sum(split.n_documents for split in splits)


@pytest.fixture
def lines(tmp_path, corpus):
    """The lines of the corpus as documents of their own."""
    folder = tmp_path / "lines"
    folder.mkdir()
    for i, line in enumerate(corpus.read_text().splitlines()[:200]):
        (folder / f"{i:04}.txt").write_text(line)
    return str(folder / "*.txt")


def test_tokens_are_those_of_the_tokenizer_and_the_separator_counts(lines):
    config = DataConfig(lines, "bytes", val_fraction=0.1, test_fraction=0.1)
    n_tokens, n_documents = tokens_and_documents(config)
    assert n_documents == 200
    for max_tokens in (n_tokens, 2 * n_tokens):
        assert tokens_and_documents(replace(config, max_tokens=max_tokens)) == (n_tokens, 200)
    taken, n_documents = tokens_and_documents(replace(config, max_tokens=2000))
    assert taken == pytest.approx(2000, rel=0.02)
    assert n_documents < 80


def test_of_a_tokenizer_trained_here_about_so_many_are_made(corpus, monkeypatch):
    monkeypatch.setattr(limit, "SAMPLE", 20_000)
    whole, _ = tokens_and_documents(DataConfig(str(corpus), "bpe:280"))
    assert whole > 15_000
    for max_tokens in (3000, 12_000):  # below the sample, and beyond it
        taken, _ = tokens_and_documents(DataConfig(str(corpus), "bpe:280", max_tokens=max_tokens))
        assert taken == pytest.approx(max_tokens, rel=0.03)


def test_the_first_documents_may_give_fewer_tokens_than_the_whole_does(corpus, monkeypatch):
    monkeypatch.setattr(limit, "SAMPLE", 30)
    data = prepare(DataConfig(str(corpus), "bpe:280", max_tokens=10_000))
    assert data.tokenizer.n_vocab == 280
    with pytest.raises(UserError, match=r"tokenizer 'bpe:1024': the training split is so small.*: use bpe:\d+\."):
        prepare(DataConfig(str(corpus), "bpe:1024", max_tokens=10_000))


def test_the_limit_is_part_of_the_key(lines):
    one, two = (prepare(DataConfig(lines, "bytes", max_tokens=n)) for n in (2000, 3000))
    assert one.folder != two.folder
    assert prepare(DataConfig(lines, "bytes", max_tokens=2000)).folder == one.folder


def test_an_empty_corpus_is_still_called_empty(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="is empty"):
        prepare(DataConfig(str(tmp_path / "empty.txt"), "bytes", max_tokens=10))
