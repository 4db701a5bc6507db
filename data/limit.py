"""The first documents of a corpus, with about as many tokens as asked for."""

from collections.abc import Iterator
from dataclasses import replace

from data.config import DataConfig
from data.documents import Corpus, Document
from data.splits import first_bytes
from data.tokenizer import train_at_most

SAMPLE = 1 << 22  # bytes from which the size of a token is estimated


def limit_tokens(corpus: Corpus, config: DataConfig) -> Corpus:
    """Return the first documents, with about `max_tokens` tokens. The last document is cut to fit.

    The tokenizer is trained on the documents that this function chooses, so the bytes of a token have to be estimated:
    by a tokenizer of the same size, trained on the corpus's first 4 MiB, or a smaller one if they are too little text.
    """
    if not config.max_tokens:
        return corpus
    sample = [document.text for document in take_bytes(corpus.documents(), SAMPLE)]
    if not sample:
        return corpus
    tokenizer = train_at_most(config.tokenizer, iter(sample))
    n_bytes = sum(len(text.encode()) for text in sample)
    # Each document starts with <|endoftext|>, which counts too.
    n_tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(sample))
    budget = max(1, config.max_tokens * n_bytes // n_tokens)
    return replace(corpus, documents=lambda: take_bytes(corpus.documents(), budget))


def take_bytes(documents: Iterator[Document], n_bytes: int) -> Iterator[Document]:
    """Yield documents until they hold `n_bytes`, without reading further. The last document is cut to fit."""
    for document in documents:
        size = len(document.text.encode())
        if size > n_bytes:
            yield replace(document, text=first_bytes(document.text, n_bytes))
            return
        if size:
            yield document
        n_bytes -= size
        # Asking for one more document than needed could download a file.
        if not n_bytes:
            return
