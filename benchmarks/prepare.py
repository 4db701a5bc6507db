"""A corpus on its way to tokens: peak memory, and speed against tiktoken's encode_ordinary_batch of the same documents.

The corpus is a .parquet of short documents, lines of the standard library drawn at random. In each round one process
prepares it, with an empty cache, and one encodes the documents, which it holds already; the order is swapped from round
to round. Memory is the peak of the process less what it held when its modules were imported.

python benchmarks/prepare.py [--megabytes 300] [--json figures.json]
"""

import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rounds import ROUNDS, Output, ratio, save, say

BATCH = 10_000  # documents given to tiktoken at a time, and of a row group; its lists of all would fill the memory


@dataclass(frozen=True)
class Command(Output):
    """Measure what preparing a corpus takes."""

    megabytes: int = 300
    """size of the corpus"""
    tokenizer: str = "gpt2"
    """as --data.tokenizer; bpe:N is trained too, which tiktoken is spared"""
    rounds: int = ROUNDS
    """processes of each kind, in turn"""


def documents(megabytes: int) -> Iterator[str]:
    """Yield the same documents in every call, until they hold that many million bytes."""
    from data.config import DataConfig
    from data.corpus import open_corpus

    stdlib = open_corpus(DataConfig("stdlib")).documents()
    lines = [line for document in stdlib for line in document.text.splitlines(keepends=True) if line.strip()]
    draw, size = random.Random(0), 0
    while size < megabytes * 1_000_000:
        text = "".join(draw.choices(lines, k=draw.randint(5, 50)))
        size += len(text.encode())
        yield text


def write(path: Path, megabytes: int) -> None:
    """Write the corpus, some documents at a time."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema, rows = pa.schema([("text", pa.string())]), []
    with ParquetWriter(path, schema) as file:
        for text in documents(megabytes):
            rows.append({"text": text})
            if len(rows) == BATCH:
                file.write_table(pa.Table.from_pylist(rows, schema))
                rows.clear()
        file.write_table(pa.Table.from_pylist(rows, schema))


def prepare_corpus(path: str, tokenizer: str, cache: Path) -> dict[str, Any]:
    """Prepare the corpus; return the seconds, the peak of memory, and what was made."""
    from data.config import DataConfig
    from data.dataset import prepare
    from training.device import peak_memory

    os.environ["ACTGPT_CACHE"] = str(cache)
    before, began = peak_memory(torch.device("cpu")), time.perf_counter()
    data = prepare(DataConfig(path, tokenizer))
    seconds, peak = time.perf_counter() - began, peak_memory(torch.device("cpu")) - before
    splits = [split for split in (data.train, data.val, data.test) if split]
    n_tokens = sum(len(split.tokens_N) - split.n_documents for split in splits)
    n_bytes = sum(split.n_bytes for split in splits)
    return {"seconds": seconds, "peak": peak, "bytes": n_bytes, "tokens": n_tokens, "folder": data.folder}


def encode_alone(path: str, tokenizer_file: Path) -> dict[str, Any]:
    """Give the documents to tiktoken; return the seconds that it took, reading them not counted."""
    import tiktoken
    from pyarrow.parquet import ParquetFile

    from data.tokenizer import Tokenizer

    ours = Tokenizer.load(tokenizer_file)
    encoding = tiktoken.Encoding("peer", pat_str=ours.pattern, mergeable_ranks=ours.ranks, special_tokens={})
    seconds, n_tokens = 0.0, 0
    for batch in ParquetFile(path).iter_batches(BATCH):
        texts = batch.column(0).to_pylist()
        began = time.perf_counter()
        ids = encoding.encode_ordinary_batch(texts)
        seconds += time.perf_counter() - began
        n_tokens += sum(map(len, ids))
    return {"seconds": seconds, "tokens": n_tokens}


def alone(work: Callable[..., dict[str, Any]], *arguments: object) -> dict[str, Any]:
    """Return what a function gives in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def measure(command: Command, folder: Path) -> dict[str, Any]:
    """Return the figures: bytes, peak of memory in bytes, bytes a second of both, and the ratio of these."""
    from data.assets import GPT2, cache_folder, fetch

    if command.tokenizer == "gpt2":
        fetch(GPT2)
    path, cache, tokenizer_file = str(folder / "corpus.parquet"), folder / "cache", folder / "tokenizer.json"
    write(Path(path), command.megabytes)
    ours, theirs = [], []

    def ours_once() -> None:
        cache.mkdir()
        (cache / "assets").symlink_to(cache_folder() / "assets")  # what is fetched is no part of the work
        ours.append(alone(prepare_corpus, path, command.tokenizer, cache))
        shutil.copy(ours[-1].pop("folder") / "tokenizer.json", tokenizer_file)
        shutil.rmtree(cache)

    def theirs_once() -> None:
        theirs.append(alone(encode_alone, path, tokenizer_file))

    for turn in range(command.rounds):
        for once in (ours_once, theirs_once) if turn % 2 == 0 else (theirs_once, ours_once):
            once()
    assert {each["tokens"] for each in ours + theirs} == {ours[0]["tokens"]}
    our_times, their_times = ([each["seconds"] for each in side] for side in (ours, theirs))
    size = ours[0]["bytes"]
    return {
        "bytes": size,
        "tokenizer": command.tokenizer,
        "peak_bytes": max(each["peak"] for each in ours),
        "bytes_per_s": size / statistics.median(our_times),
        "tiktoken_bytes_per_s": size / statistics.median(their_times),
        "ours / tiktoken": ratio(their_times, our_times),
    }


def main() -> None:
    """Print the figures, and write them where --json says."""
    command = tyro.cli(Command, prog="python benchmarks/prepare.py")
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(command, Path(folder))
    print(
        f"{figures['bytes'] / 1e6:.0f} MB, {command.tokenizer}: {figures['peak_bytes'] / 2**20:.0f} MiB above the start"
    )
    for name, key in {"ours": "bytes_per_s", "tiktoken": "tiktoken_bytes_per_s"}.items():
        print(f"{name:8s} {figures[key] / 1e6:6.1f} MB/s")
    say("speed, ours against tiktoken", figures["ours / tiktoken"])
    save(command.json, figures)


if __name__ == "__main__":
    main()
