"""A tokenizer as bigqa wants it: its vocabulary and rules, and nothing of the state that it was saved in.

In: a fast tokenizer as it was loaded. Out: the same, settled; or why it cannot serve. What is bigqa's to set is set
back: truncation and padding (saved by whoever used it last; they cut contexts or fail), and BPE's dropout, which makes
other tokens each time. `model_max_length` and `padding_side` are never asked: the model's positions limit windows, and
they are padded on the right, behind a mask.
"""

import json
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, as_a_line
from bigqa.language import tr

LEAST_ENTRIES = 16
"""Fewer than so many, without the special ones, are no vocabulary: the library makes one of special tokens alone where
a folder has none, and says nothing."""
LEAST_SHARE = 0.75
"""Of an embedding's rows that a vocabulary has; models round rows up, by a few hundred at most."""


def settled(tokenizer: Any, name: str) -> Any:
    """Return the tokenizer without saved state. Raises: BigqaError where it has no vocabulary."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    for text in PROBES:  # one that fails on a text, as for want of an unknown token, is no use
        backend.encode(*text)
    entries = set(backend.get_vocab(with_added_tokens=False)) - set(tokenizer.all_special_tokens)
    if len(entries) < LEAST_ENTRIES:
        raise no_vocabulary(name, tr("{count} entries beside the special tokens", count=len(entries)))
    return tokenizer


def no_vocabulary(name: str, found: str) -> BigqaError:
    """Say that a folder has no vocabulary, and what was found."""
    return BigqaError(
        tr(
            "{name} holds no vocabulary ({found}): every word would be unknown; name one with --tokenizer "
            "(vocab.txt, folder or hub id)",
            name=name,
            found=found,
        )
    )


def rows_needed(tokenizer: Any) -> int:
    """Return how many rows an embedding must have: the greatest id and one; ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def check_rows(tokenizer: Any, rows: int, name: str) -> None:
    """Refuse a vocabulary that is larger than a model's embedding. Raises: BigqaError naming tokens without a row."""
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    if beyond:
        tokens = ", ".join(tr("{token!r} (id {number})", token=token, number=number) for number, token in beyond[:3])
        more = tr(" and {count} more", count=len(beyond) - 3) if len(beyond) > 3 else ""
        raise BigqaError(
            tr(
                "the vocabulary does not fit {name}: {rows_needed} entries, and weights for {rows}: nothing "
                "for {tokens}{more}; use the model's own tokenizer",
                name=name,
                rows_needed=rows_needed(tokenizer),
                rows=rows,
                tokens=tokens,
                more=more,
            )
        )


def doubts(tokenizer: Any, rows: int) -> list[str]:
    """Return what looks as if a vocabulary were another model's, each in a line."""
    found: list[str] = []
    entries = rows_needed(tokenizer)
    if entries < LEAST_SHARE * rows:
        found.append(
            tr(
                "the vocabulary has {entries} entries and the model's embedding {rows}: is it this model's?",
                entries=entries,
                rows=rows,
            )
        )
    if _lowers(tokenizer) and _has_capitals(tokenizer):
        found.append(
            tr(
                "the tokenizer lower-cases, and its vocabulary has capitals that no text reaches then: was the "
                'model trained on cased text? ("do_lower_case" in tokenizer_config.json)'
            )
        )
    return found


def disagreement(tokenizer: Any, name: str) -> str | None:
    """Say whether a folder's tokenizer.json gives other tokens than the library's class that was made of its settings.

    Such a class reads tokenizer_config.json, and no normalizer and template of tokenizer.json.
    """
    from tokenizers import Tokenizer

    file = stored(name, "tokenizer.json")
    if file is None:
        return None
    with as_a_line(tr("{file} cannot be read", file=file)):
        saved = Tokenizer.from_file(str(file))
        saved.no_truncation()
        saved.no_padding()
        encoded = [saved.encode(*text) for text in PROBES]
    for text, theirs in zip(PROBES, encoded, strict=True):
        mine = tokenizer.backend_tokenizer.encode(*text)
        if (mine.ids, mine.type_ids) != (theirs.ids, theirs.type_ids):
            return tr(
                "tokenizer.json and tokenizer_config.json of {name} disagree: {given!r} is {tokens} by the "
                "one, and {tokens_2} by the other, which is used",
                name=name,
                given=" + ".join(text),
                tokens=theirs.tokens,
                tokens_2=mine.tokens,
            )
    return None


PROBES = (("서울은 Seoul", "나라"), ("CAFÉ ①", "a"))
"""Pairs of texts that show case, accents, composed Hangul, forms of compatibility, and the template of a pair."""


def stored(name: str, file: str) -> Path | None:
    """Return a file of a folder, or of a hub id as far as it has been fetched; none where it has no such file."""
    from huggingface_hub import try_to_load_from_cache

    if Path(name).exists() or name.count("/") != 1:
        path = Path(name) / file
        return path if path.is_file() else None
    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None


def _lowers(tokenizer: Any) -> bool:
    normalizer = tokenizer.backend_tokenizer.normalizer
    return normalizer is not None and normalizer.normalize_str("A") == "a"


def _has_capitals(tokenizer: Any) -> bool:
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    plain = (piece for piece in tokenizer.get_vocab() if piece not in special and not piece.startswith(("[", "<")))
    return any(piece != piece.lower() for piece in plain)


def description(tokenizer: Any) -> str:
    """Return all that decides on tokens, in one text that is the same for the same tokenizer."""
    values = json.loads(tokenizer.backend_tokenizer.to_str())
    kept = {name: value for name, value in values.items() if name not in ("version", "truncation", "padding")}
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return json.dumps([kept, special], sort_keys=True)
