"""The first documents of a corpus, about as many tokens as asked for."""

from collections.abc import Iterator
from dataclasses import replace

from data.config import DataConfig
from data.documents import Corpus, Document
from data.splits import line_start, utf8
from data.tokenizer import train_at_most

SAMPLE = 1 << 22  # bytes from which the size of a token is judged


def limit_tokens(corpus: Corpus, config: DataConfig) -> Corpus:
    """Return the documents from the first on that hold about `max_tokens` tokens, the last cut to fit.

    What a tokenizer trained here makes of the corpus is known only once the corpus is. So the bytes of a token are
    those of the corpus's first 4 MiB, under a tokenizer of the same name trained on them, or of fewer tokens where they
    give no more; <|endoftext|> counts.
    """
    if not config.max_tokens:
        return corpus
    sample = [document.text for document in head(corpus.documents(), SAMPLE)]
    if not sample:
        return corpus
    tokenizer = train_at_most(config.tokenizer, iter(sample))
    n_bytes = sum(len(utf8(text)) for text in sample)
    n_tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(sample))
    budget = max(1, config.max_tokens * n_bytes // n_tokens)
    return replace(corpus, documents=lambda: head(corpus.documents(), budget))


def head(documents: Iterator[Document], n_bytes: int) -> Iterator[Document]:
    """Yield documents that hold text until they hold `n_bytes` of it, none read beyond; the last is cut to fit."""
    for document in documents:
        size = len(utf8(document.text))
        if size > n_bytes:
            end = line_start(document.text, 0, round(len(document.text) * n_bytes / size))
            yield replace(document, text=document.text[:end])
            return
        if size:
            yield document
        n_bytes -= size
        if not n_bytes:
            return
