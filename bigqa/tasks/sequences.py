"""Texts and pairs of texts as one window each. In: texts, a tokenizer. Out: tokens.

Texts longer than a window are cut, of a pair the longer one first.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from bigqa.tasks.base import Counted

Text = str | tuple[str, str]
"""A text, or a pair of them."""
BATCH_TEXTS = 1024
"""Texts that are tokenized at once."""
SHORTER = (128, 256)
"""Longest windows that a plan may fall back on."""


def encoded(texts: Iterable[Text], tokenizer: Any, seq_len: int | None) -> Iterator[Any]:
    """Yield the encoding of each text, cut to `seq_len` tokens; none: whole."""
    backend = tokenizer.backend_tokenizer
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH_TEXTS)):
        with _cutting(backend, seq_len):
            yield from backend.encode_batch(batch)


@contextlib.contextmanager
def _cutting(backend: Any, seq_len: int | None) -> Iterator[None]:
    """Let a tokenizer cut inside the block, and leave it as it was."""
    truncation, padding = backend.truncation, backend.padding
    backend.no_padding()
    if seq_len is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(seq_len, strategy="longest_first")
    try:
        yield
    finally:
        backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
        if padding:
            backend.enable_padding(**padding)


def first_texts(texts: Iterable[Text], count: int = 200) -> list[str]:
    """Return the first texts, those of pairs one by one."""
    found = ((text,) if isinstance(text, str) else text for text in islice(texts, count))
    return [one for several in found for one in several]


def tokens_of(encoding: Any) -> dict[str, list[int]]:
    """Return an encoding as columns of a row."""
    return {"input_ids": encoding.ids, "token_type_ids": encoding.type_ids}


def count_cut(texts: Iterable[Text], tokenizer: Any, seq_len: int) -> Counted:
    """Count texts, and those that windows of `seq_len`, 128 and 256 tokens cut."""
    sizes = [len(encoding.ids) for encoding in encoded(texts, tokenizer, None)]
    wanted = sorted({*(one for one in SHORTER if one < seq_len), seq_len})
    return Counted(len(sizes), {one: sum(size > one for size in sizes) / max(1, len(sizes)) for one in wanted})


def number_rows(names: Sequence[str], count: int, seq_len: int, vocabulary_size: int) -> dict[str, Any]:
    """Return columns of random tokens, all rows of one length, and zeros under `names`."""
    ids = np.random.default_rng(42).integers(0, vocabulary_size, (count, seq_len))
    columns: dict[str, Any] = {"input_ids": list(ids), "token_type_ids": [[0] * seq_len] * count}
    return columns | {name: [0] * count for name in names}
