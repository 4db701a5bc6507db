"""A corpus on its way to tokens: peak memory, and speed against tiktoken's encode_ordinary_batch of the same documents.

The corpus is a .parquet of short documents, lines of the standard library drawn at random. In each round one process
prepares it, with an empty cache, and one encodes the documents, which it holds already; the order is swapped from round
to round. Memory is the peak of the process less what it held when its modules were imported.

python benchmarks/prepare.py
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

BATCH = 10_000  # documents given to tiktoken at a time, and of a row group; its lists of all would fill the memory


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
    import torch

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


def measure(megabytes: int, tokenizer: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the figures: bytes, peak of memory in bytes, megabytes a second of both, and the ratio of these."""
    from data.assets import GPT2, cache_folder, fetch

    if tokenizer == "gpt2":
        fetch(GPT2)
    path, cache, tokenizer_file = str(folder / "corpus.parquet"), folder / "cache", folder / "tokenizer.json"
    write(Path(path), megabytes)
    ours, theirs = [], []

    def ours_once() -> None:
        cache.mkdir()
        (cache / "assets").symlink_to(cache_folder() / "assets")  # what is fetched is no part of the work
        ours.append(alone(prepare_corpus, path, tokenizer, cache))
        shutil.copy(ours[-1].pop("folder") / "tokenizer.json", tokenizer_file)
        shutil.rmtree(cache)

    def theirs_once() -> None:
        theirs.append(alone(encode_alone, path, tokenizer_file))

    for turn in range(rounds):
        for once in (ours_once, theirs_once) if turn % 2 == 0 else (theirs_once, ours_once):
            once()
    assert {each["tokens"] for each in ours + theirs} == {ours[0]["tokens"]}
    size = ours[0]["bytes"]
    speeds = [[size / each["seconds"] / 1e6 for each in side] for side in (ours, theirs)]
    return {
        "bytes": size,
        "tokenizer": tokenizer,
        "peak_bytes": max(each["peak"] for each in ours),
        "mb_per_s": statistics.median(speeds[0]),
        "tiktoken_mb_per_s": statistics.median(speeds[1]),
        "ratio": statistics.median(speeds[0]) / statistics.median(speeds[1]),
        "ratios": [one / other for one, other in zip(*speeds, strict=True)],
    }


def main() -> None:
    """Print the figures, and write them where --json says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=300, help="size of the corpus (default: 300)")
    parser.add_argument("--tokenizer", default="gpt2", help="as --data.tokenizer; bpe:N is trained too (default: gpt2)")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each kind, in turn (default: 5)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options.megabytes, options.tokenizer, options.rounds, Path(folder))
    spread = f"{min(figures['ratios']):.2f} to {max(figures['ratios']):.2f}, {options.rounds} rounds"
    print(
        f"{figures['bytes'] / 1e6:.0f} MB, {options.tokenizer}: peak {figures['peak_bytes'] / 2**20:.0f} MiB above the "
        f"start; {figures['mb_per_s']:.1f} MB/s, tiktoken alone {figures['tiktoken_mb_per_s']:.1f} MB/s: "
        f"{figures['ratio']:.2f} times its speed ({spread})"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
