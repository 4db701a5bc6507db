"""The tokenizer as Hugging Face's `tokenizers` reads it: a byte-level BPE given by its merges."""

import itertools
from typing import Any

from data.tokenizer import END_OF_TEXT, Tokenizer, byte_characters


def to_tokenizers(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a tokenizer.json that gives the same ids, except for "<|endoftext|>" in a text.

    `tokenizers` turns that special token into `eot`, as its users expect. `Tokenizer` takes it as text.

    Raises:
        ValueError: no merge gives one of the tokens.
    """
    character_of = byte_characters()

    def printable(token: bytes) -> str:
        return "".join(character_of[byte] for byte in token)

    order = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    merges = [_last_merge(token, tokenizer.ranks) for token in order if len(token) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "added_tokens": [{"id": tokenizer.eot, "content": END_OF_TEXT, **flags, "special": True}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            # A piece of text that is a token becomes that token, as in tiktoken, whatever the merges say.
            "ignore_merges": True,
            "vocab": {printable(token): tokenizer.ranks[token] for token in order},
            "merges": [[printable(left), printable(right)] for left, right in merges],
        },
    }


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that `token` is merged from."""
    # tiktoken keeps no merges. They follow from the ranks: all merges of a lower rank come first, and leave two parts.
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        if min(pairs) >= ranks[token]:
            raise ValueError(f"no merge gives the token {token!r}")
        first = pairs.index(min(pairs))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]
