"""From a corpus to tokens: peak memory, and speed against tiktoken's encode_ordinary_batch of the same documents.

The corpus is a .parquet of short documents, lines of the standard library drawn at random. In each round, one process
prepares it with an empty cache, and another one encodes the documents, which it holds already. Their order is swapped
from round to round. Memory is the peak of the process above what it held when its modules were imported.

python benchmarks/prepare.py [--megabytes 300] [--tokenizer gpt2] [--rounds 5]
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import tiktoken
import tyro
from pyarrow import parquet
from rounds import CPU, ROUNDS, ratio, run_alone, show

from data.config import DataConfig
from data.dataset import prepare
from data.tokenizer import Tokenizer
from training.device import peak_memory

DOCUMENTS = 10_000  # of a row group, and given to tiktoken at a time: its lists of all would fill the memory


class Prepared(NamedTuple):
    """What one preparation took and made."""

    seconds: float
    peak: int
    n_bytes: int
    n_tokens: int
    folder: Path


def documents(megabytes: int) -> Iterator[str]:
    """Yield the same documents in every call, until they hold that many million bytes."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    lines = [
        line for file in files for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.strip()
    ]
    draw, n_bytes = random.Random(0), 0
    while n_bytes < megabytes * 1_000_000:
        text = "".join(draw.choices(lines, k=draw.randint(5, 50)))
        n_bytes += len(text.encode())
        yield text


def prepare_corpus(path: Path, tokenizer: str, cache: Path) -> Prepared:
    """Prepare the corpus in a cache."""
    os.environ["ACTGPT_CACHE"] = str(cache)
    before, started = peak_memory(CPU), time.perf_counter()
    data = prepare(DataConfig(str(path), tokenizer))
    seconds, peak = time.perf_counter() - started, peak_memory(CPU) - before
    splits = [split for split in (data.train, data.val, data.test) if split]
    # Every document ends with a token that tiktoken does not write.
    n_tokens = sum(len(split.tokens_N) - split.n_documents for split in splits)
    return Prepared(seconds, peak, sum(split.n_bytes for split in splits), n_tokens, data.folder)


def encode_with_tiktoken(path: Path, tokenizer_file: Path) -> tuple[float, int]:
    """Give the documents to tiktoken; return the seconds that it takes, reading not counted, and its tokens."""
    ours = Tokenizer.load(tokenizer_file)
    encoding = tiktoken.Encoding("peer", pat_str=ours.pattern, mergeable_ranks=ours.ranks, special_tokens={})
    seconds, n_tokens = 0.0, 0
    for batch in parquet.ParquetFile(path).iter_batches(DOCUMENTS):
        texts = batch.column(0).to_pylist()
        started = time.perf_counter()
        encoded = encoding.encode_ordinary_batch(texts)
        seconds += time.perf_counter() - started
        n_tokens += sum(map(len, encoded))
    return seconds, n_tokens


def main(megabytes: int = 300, tokenizer: str = "gpt2", rounds: int = ROUNDS) -> None:
    """Print the peak of memory, both speeds and their ratio.

    Args:
        megabytes: size of the corpus
        tokenizer: as --data.tokenizer; bpe:N is trained too, which tiktoken is spared
        rounds: processes of each side
    """
    ours: list[Prepared] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        path, cache, tokenizer_file = Path(name) / "corpus.parquet", Path(name) / "cache", Path(name) / "tokenizer.json"
        table = pa.table({"text": list(documents(megabytes))})
        parquet.write_table(table, path, row_group_size=DOCUMENTS)

        def our_turn() -> None:
            shutil.rmtree(cache / "datasets", ignore_errors=True)  # what is fetched (gpt2's vocabulary) stays
            ours.append(run_alone(prepare_corpus, path, tokenizer, cache))
            shutil.copy(ours[-1].folder / "tokenizer.json", tokenizer_file)

        def their_turn() -> None:
            seconds, n_tokens = run_alone(encode_with_tiktoken, path, tokenizer_file)
            assert n_tokens == ours[0].n_tokens
            theirs.append(seconds)

        our_turn()  # fetches what is needed, and makes the tokenizer
        ours.clear()
        for n in range(rounds):
            for turn in (our_turn, their_turn) if n % 2 == 0 else (their_turn, our_turn):
                turn()
    our_seconds = [each.seconds for each in ours]
    n_megabytes, peak = ours[0].n_bytes / 1e6, max(each.peak for each in ours)
    print(f"{n_megabytes:.0f} MB, {tokenizer}: {peak / 2**20:.0f} MiB above the start")
    for who, seconds in {"ours": our_seconds, "tiktoken": theirs}.items():
        print(f"{who:8s} {n_megabytes / statistics.median(seconds):6.1f} MB/s")
    show("speed, ours against tiktoken", ratio(theirs, our_seconds))


if __name__ == "__main__":
    tyro.cli(main, prog="python benchmarks/prepare.py", description=__doc__)
