import hashlib
import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data.config import DataConfig
from data.dataset import prepare
from data.splits import cut_document, split_documents
from errors import UserError
from files import sha256_of

SPLITS = ("train", "val", "test")


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(text)
    return str(folder / "*.txt")


@pytest.fixture
def texts(tmp_path):
    """A corpus of 30 documents."""
    return write(tmp_path / "texts", [f"text {i} " * 20 for i in range(30)])


def documents(dataset, split):
    """The texts between the <|endoftext|> of a split."""
    part, text = getattr(dataset, split), dataset.tokenizer.decode(getattr(dataset, split).tokens_N)
    first, *texts = text.split("<|endoftext|>")
    assert first == ""
    assert len(texts) == part.n_documents
    assert sum(len(text.encode()) for text in texts) == part.n_bytes
    return texts


def test_one_document_is_cut_as_in_nanogpt(tmp_path):
    lines = [f"line {i:03}\n" for i in range(100)]
    config = DataConfig(write(tmp_path, ["".join(lines)]), "bytes", val_fraction=0.1, test_fraction=0)
    dataset = prepare(config)
    assert documents(dataset, "train") == ["".join(lines[:90])]
    assert documents(dataset, "val") == ["".join(lines[90:])]
    assert dataset.test is None
    assert not (dataset.folder / "test.bin").exists()


def test_tokens_of_a_hand_worked_corpus(tmp_path):
    dataset = prepare(DataConfig(write(tmp_path, ["ab\ncd\nef\ng"]), "bytes", val_fraction=0.3, test_fraction=0.2))
    assert dataset.train.tokens_N.tolist() == [256, *b"ab\n"]
    assert dataset.val.tokens_N.tolist() == [256, *b"cd\n"]
    assert dataset.test is not None
    assert dataset.test.tokens_N.tolist() == [256, *b"ef\ng"]
    assert dataset.train.tokens_N.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        dataset.train.tokens_N[0] = 1


def test_the_splits_together_are_the_corpus_and_share_no_document(tmp_path):
    texts = [f"document {i}: " + "é\n" * (i % 7 + 1) for i in range(200)]
    dataset = prepare(DataConfig(write(tmp_path, [*texts, *texts[:50], ""]), "bpe:270"))
    parts = {split: documents(dataset, split) for split in SPLITS}
    assert sorted(itertools.chain(*parts.values())) == sorted([*texts, *texts[:50]])
    for one, other in itertools.combinations(SPLITS, 2):
        assert not set(parts[one]) & set(parts[other])
    n_bytes = sum(len(text.encode()) for text in [*texts, *texts[:50]])
    for split in ("val", "test"):
        assert 0.03 <= sum(len(text.encode()) for text in parts[split]) / n_bytes < 0.05
    rows = [json.loads(line) for line in (dataset.folder / "documents.jsonl").read_text().splitlines()]
    assert [Path(row["name"]).name for row in rows] == [f"{i:03}.txt" for i in range(250)]
    for row, text in zip(rows, [*texts, *texts[:50]], strict=True):
        tokens = getattr(dataset, row["split"]).tokens_N[row["offset"] : row["offset"] + row["tokens"]]
        assert dataset.tokenizer.decode(tokens) == "<|endoftext|>" + text


def test_the_tokenizer_sees_the_training_split_alone(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    config = DataConfig(write(tmp_path, [f"{letter}{letter} " * 100 for letter in letters]), "bpe:278", test_fraction=0)
    dataset = prepare(config)  # 21 merges: fewer than the 22 letters of train, and each letter of train is as frequent
    held_out = {text[0] for text in documents(dataset, "val")}
    merged = {letter for letter in letters if len(dataset.tokenizer.encode(letter * 2)) == 1}
    assert (len(merged), len(held_out)) == (21, 4)
    assert not held_out & merged


def test_split_documents_by_hand():
    keys, sizes = np.array([40, 10, 30, 20, 50], np.uint64), np.array([30, 10, 20, 10, 30], np.uint64)
    assert split_documents(keys, sizes, 0.1, 0.1, 1) == (10, 20)
    assert split_documents(keys, sizes, 0.15, 0.1, 1) == (20, 30)
    assert split_documents(keys, sizes, 0.01, 0, 1) == (10, 10)
    assert split_documents(keys, sizes, 0.2, 0.2, 1) == (20, 30)
    assert split_documents(keys, sizes, 0.2, 0.2, 2) is None  # val 10 and 20, test 30 and 40: train would get 30 of 100
    assert split_documents(keys, sizes, 0.1, 0, 2) == (20, 20)  # 5 bytes of each
    assert split_documents(keys, sizes, 0.1, 0.05, 2) is None
    assert split_documents(keys[:2], sizes[:2], 0.1, 0.1, 1) is None  # two documents, three splits
    assert split_documents(keys[:2], np.array([10, 90], np.uint64), 0.1, 0, 1) is None  # train would get 10 %
    equal = np.array([7, 7, 7, 9], np.uint64)
    assert split_documents(equal, np.full(4, 10, np.uint64), 0.1, 0, 1) is None  # 30 of 40 bytes would be val's
    some_equal = np.array([7, 7, *range(8, 20)], np.uint64)
    assert split_documents(some_equal, np.full(14, 10, np.uint64), 0.05, 0, 1) == (7, 7)


def plays(folder, count=40):
    """A corpus of long documents, as plays are: 100 lines each, no two of them equal."""
    return write(folder, ["".join(f"play {i} line {j}\n" for j in range(100)) for i in range(count)])


def test_four_long_documents_give_their_first_lines_to_each_split_and_the_rest_to_none(tmp_path):
    dataset = prepare(DataConfig(plays(tmp_path), "bytes", val_fraction=0.04, test_fraction=0.02))
    parts = {split: documents(dataset, split) for split in SPLITS}
    originals = [path.read_text() for path in tmp_path.glob("*.txt")]
    total = sum(map(len, originals))
    for split, share in (("val", 0.04), ("test", 0.02)):
        assert len(parts[split]) == 4
        assert sum(map(len, parts[split])) == pytest.approx(share * total, rel=0.05)
        assert all(any(play.startswith(text) for play in originals) and text.endswith("\n") for text in parts[split])
    assert len(parts["train"]) == 32
    assert set(parts["train"]) <= set(originals)
    titles = {split: {text.partition(" line")[0] for text in parts[split]} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not titles[one] & titles[other]


def test_few_long_documents_give_one_to_a_split_and_fewer_are_cut(tmp_path):
    several = prepare(DataConfig(plays(tmp_path / "several", 8), "bytes"))
    assert several.test is not None
    assert [several.train.n_documents, several.val.n_documents, several.test.n_documents] == [6, 1, 1]
    few = prepare(DataConfig(plays(tmp_path / "few", 3), "bytes"))
    assert few.test is not None
    assert [few.train.n_documents, few.val.n_documents, few.test.n_documents] == [3, 3, 3]


def test_the_split_seed_chooses_which_documents_are_held_out(tmp_path):
    config = DataConfig(plays(tmp_path), "bytes")
    held_out = []
    for seed in range(4):
        dataset = prepare(replace(config, split_seed=seed))
        parts = {split: documents(dataset, split) for split in SPLITS}
        titles = {split: {text.partition(" line")[0] for text in parts[split]} for split in SPLITS}
        assert sum(len(found) for found in titles.values()) == len(set().union(*titles.values())) == 40
        held_out.append(titles["val"])
    assert all(one != other for one, other in itertools.combinations(held_out, 2))
    following = replace(config, split_seed=-1)
    assert prepare(following, seed=3).folder == prepare(replace(config, split_seed=3)).folder
    assert prepare(config, seed=3).folder == prepare(config).folder


@given(
    text=st.text("ab\né", min_size=1),
    val=st.floats(0.01, 0.49),
    test=st.one_of(st.just(0.0), st.floats(0.01, 0.49)),
)
def test_a_cut_document_loses_nothing(text, val, test):
    parts = cut_document(text, val, test)
    assert "".join(parts) == text
    if not test:
        assert parts[2] == ""


def test_only_a_long_line_is_cut_so_that_each_split_has_its_share(corpus):
    for lines, line in (
        ("a line\n" * 500, "word " * 50_000),
        ("My Book\n", "é" * 1000),
        ("a line\n" * 9000, "x" * 37_000),
    ):
        text = lines + line
        for part, share in zip(cut_document(text, 0.1, 0.2), (0.7, 0.1, 0.2), strict=True):
            assert len(part) == pytest.approx(share * len(text), abs=1)
    text = corpus.read_text()
    train, val, _ = cut_document(text, 0.03, 0.03)
    for end, share in ((len(train), 0.94), (len(train + val), 0.97)):
        assert end == text.rfind("\n", 0, round(share * len(text))) + 1


def test_a_second_call_makes_nothing_and_another_process_makes_the_same(texts, tmp_path, monkeypatch):
    config = DataConfig(texts, "bpe:270")
    first = prepare(config)
    before = {path.name: path.stat().st_ino for path in first.folder.iterdir()}
    assert prepare(config).fingerprint == first.fingerprint
    assert {path.name: path.stat().st_ino for path in first.folder.iterdir()} == before
    script = (
        "import sys; from data.config import DataConfig; from data.dataset import prepare\n"
        "d = prepare(DataConfig(sys.argv[1], 'bpe:270')); print(d.fingerprint); print(d.folder)"
    )
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "other"))
    command = [sys.executable, "-c", script, config.corpus]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    fingerprint, folder = run.stdout.split()
    assert fingerprint == first.fingerprint
    for name in before:
        assert (Path(folder) / name).read_bytes() == (first.folder / name).read_bytes()
    assert run.stderr == ""


def test_the_key_follows_content_and_config_not_names(texts, tmp_path):
    config = DataConfig(texts, "bytes")
    shutil.copytree(Path(texts).parent, tmp_path / "copy")
    same = prepare(DataConfig(str(tmp_path / "copy" / "*.txt"), "bytes"))
    assert same.folder == prepare(config).folder
    assert same.folder == prepare(replace(config, column="body")).folder  # files of text have no columns
    (tmp_path / "copy" / "000.txt").unlink()
    others = [
        DataConfig(texts, "bpe:260"),
        DataConfig(texts, "bytes", val_fraction=0.2),
        DataConfig(str(tmp_path / "copy" / "*.txt"), "bytes"),
    ]
    assert len({same.fingerprint, *(prepare(other).fingerprint for other in others)}) == 4


def flip(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("val.bin", flip),
        ("val.bin", lambda content: content[:-2]),
        ("val.bin", lambda content: None),
        ("meta.json", lambda content: b"{"),
        ("meta.json", lambda content: b'{"sha256": []}'),
        ("meta.json", lambda content: content.replace(b'"documents": 4', b'"documents": 5')),
    ],
)
def test_damaged_files_are_made_again(texts, name, damage, capsys):
    config = DataConfig(texts, "bytes")
    path = prepare(config).folder / name
    before = path.read_bytes()
    path.unlink()
    if (damaged := damage(before)) is not None:
        path.write_bytes(damaged)
        assert damaged != before
    prepare(config)
    assert path.read_bytes() == before
    assert f"{path.parent} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", ["a token of nobody", "other counts"])
def test_foreign_tokens_under_honest_hashes_are_made_again(texts, foreign):
    folder = prepare(DataConfig(texts, "bytes")).folder
    before = (folder / "val.bin").read_bytes()
    meta = json.loads((folder / "meta.json").read_text())
    if foreign == "other counts":
        meta["splits"]["val"]["tokens"] += 1
    else:
        np.array([257], np.uint16).tofile(folder / "val.bin")  # bytes has the ids 0 to 256
        meta["splits"]["val"]["tokens"] = 1
        meta["sha256"]["val.bin"] = sha256_of(folder / "val.bin")
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "meta.sha256").write_text(sha256_of(folder / "meta.json"))
    prepare(DataConfig(texts, "bytes"))
    assert (folder / "val.bin").read_bytes() == before
    assert json.loads((folder / "meta.json").read_text())["splits"]["val"]["tokens"] == len(before) / 2


@pytest.mark.parametrize(
    ("content", "tokenizer", "said"),
    [("", "bytes", "is empty: it holds no text"), ("a", "bytes", "too small: "), ("a" * 99, "bpe:999", "so small")],
)
def test_too_small_a_corpus_is_refused_and_leaves_nothing_behind(tmp_path, cache, content, tokenizer, said):
    corpus = write(tmp_path / "small", [content])
    for max_tokens in (0, 1000):
        with pytest.raises(UserError, match=said):
            prepare(DataConfig(corpus, tokenizer, max_tokens=max_tokens))
    assert {path.suffix for path in (cache / "datasets").iterdir()} == {".lock"}


def test_the_plays_are_without_markup_and_their_tokens_are_pinned(wheels):
    dataset = prepare(DataConfig())
    assert dataset.test is not None
    assert (dataset.train.n_documents, dataset.val.n_documents, dataset.test.n_documents) == (30, 4, 4)
    plays = "".join(text for split in SPLITS for text in documents(dataset, split))
    assert "HAMLET:\nTo be, or not to be: that is the question:\n" in plays
    assert not re.search(r"[*_\\#]| \n|\n\n\n", plays)
    # A change here is a change of the default corpus: no result before and after it can be compared.
    assert dataset.fingerprint == "b971bda960289b35fe54dc37afb612b078e4f2d4ff51bfd5deb575a97bfee4e7"
    first = dataset.train.tokens_N[:1000].astype("<u2").tobytes()
    assert hashlib.sha256(first).hexdigest() == "1f34e15a6a41acf9ebfc186f2fc3d3006724cf6dc3518fe5208636faebd38c55"
