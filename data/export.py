"""The tokenizer as Hugging Face's `tokenizers` reads it: a byte-level BPE given by its merges."""

import itertools
from typing import Any

from data.tokenizer import END_OF_TEXT, Tokenizer, byte_characters


def to_tokenizers(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of a tokenizer.json that gives the same ids, "<|endoftext|>" in a text apart.

    That is the one special token: `tokenizers` turns it into `eot`, as its users expect, `Tokenizer` never does.

    Raises:
        ValueError: merging never gives one of the tokens.
    """
    character = byte_characters()

    def written(token: bytes) -> str:
        return "".join(character[byte] for byte in token)

    order = sorted(tokenizer.ranks, key=tokenizer.ranks.__getitem__)
    merges = [_last_merge(token, tokenizer.ranks) for token in order if len(token) > 1]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": tokenizer.eot, "content": END_OF_TEXT, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token is that token, as in tiktoken
            "vocab": {written(token): tokenizer.ranks[token] for token in order},
            "merges": [[written(left), written(right)] for left, right in merges],
        },
    }


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that `token` is merged from: what all merges before its own leave of it."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        first = min(range(len(pairs)), key=pairs.__getitem__)
        if pairs[first] >= ranks[token]:
            raise ValueError(f"no merge gives the token {token!r}")
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts[0], parts[1]
