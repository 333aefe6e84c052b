"""Which split of a data set a file is of. In: its name. Out: "train", "validation" or "test"."""

import re

SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
"""Splits by the words that files' names have for them."""


def split_of(name: str) -> str | None:
    """Return the split of a file's name that begins with it, such as "train-00000-of-00001.parquet"."""
    word = re.match(r"([a-z]+)(?=[-_.])", name.lower())
    return SPLITS.get(word[1]) if word else None
