from dataclasses import replace

import pytest

from data import limit
from data.config import DataConfig
from data.dataset import prepare
from data.documents import Document
from data.limit import take_bytes


@pytest.mark.parametrize(
    ("texts", "n_bytes", "taken"),
    [
        (["ab\n", "cd\nef\n", "gh"], 3, ["ab\n"]),
        (["ab\n", "cd\nef\n", "gh"], 4, ["ab\n", "c"]),
        (["ab\n", "cd\nef\n", "gh"], 7, ["ab\n", "cd\n"]),
        (["ab\n", "", "cd\nef\n"], 9, ["ab\n", "cd\nef\n"]),
        (["éé\néé\n"], 5, ["éé\n"]),
        (["My Book\n" + "x" * 10_000], 5000, ["My Book\n" + "x" * 4992]),  # a long line is cut where the limit falls
    ],
)
def test_documents_by_hand_and_none_is_read_beyond_the_limit(texts, n_bytes, taken):
    def documents():
        for text in texts:
            yield Document("", text)
        pytest.fail("read beyond the limit")

    assert [document.text for document in take_bytes(documents(), n_bytes)] == taken


def count(config):
    """The tokens and the documents of all splits."""
    data = prepare(config)
    splits = [split for split in (data.train, data.val, data.test) if split]
    return sum(len(split.tokens_N) for split in splits), sum(split.n_documents for split in splits)


def test_the_limit_counts_tokens_and_separators_and_is_part_of_the_key(tmp_path, corpus):
    for i, line in enumerate(corpus.read_text().splitlines()[:200]):
        (tmp_path / f"{i:04}.txt").write_text(line)
    corpus.unlink()
    config = DataConfig(str(tmp_path / "*.txt"), "bytes", val_fraction=0.1, test_fraction=0.1)
    n_tokens, n_documents = count(config)
    assert n_documents == 200
    assert count(replace(config, max_tokens=2 * n_tokens)) == (n_tokens, 200)
    taken, n_documents = count(replace(config, max_tokens=2000))
    assert taken == pytest.approx(2000, rel=0.02)
    assert n_documents < 80
    folders = {prepare(replace(config, max_tokens=limit)).folder for limit in (0, 2000, 2000, 3000)}
    assert len(folders) == 3


@pytest.mark.parametrize("max_tokens", [3000, 12_000])  # below the sample, and beyond it
def test_a_tokenizer_trained_here_gives_about_as_many_tokens(corpus, monkeypatch, max_tokens):
    monkeypatch.setattr(limit, "SAMPLE", 20_000)
    taken, _ = count(DataConfig(str(corpus), "bpe:280", max_tokens=max_tokens))
    assert taken == pytest.approx(max_tokens, rel=0.03)


def test_the_sample_may_be_too_small_for_the_tokenizer(corpus, monkeypatch):
    monkeypatch.setattr(limit, "SAMPLE", 30)
    assert prepare(DataConfig(str(corpus), "bpe:280", max_tokens=10_000)).tokenizer.n_vocab == 280
