"""Tokenizers of what a folder has. In: a vocab.txt and its settings, or a tokenizer.json alone. Out: a tokenizer.

The library would take the rules of its class, and of settings that are there no more than half.
"""

from pathlib import Path
from typing import Any

from bigqa.files import read_json, read_text
from bigqa.models import enliple
from bigqa.models.tokenizers import stored

WORDPIECES = ("BertTokenizer", "ElectraTokenizer", "DistilBertTokenizer", "PreTrainedTokenizer")
"""Classes of the library that are BERT's tokenizer."""


def wordpieces(vocabulary: Path, *, lower_case: bool) -> Any:
    """Return BERT's tokenizer of a vocab.txt, as the settings beside it have it; none where they are of another."""
    pieces = read_text(vocabulary, "the vocabulary").splitlines()
    beside = vocabulary.with_name("tokenizer_config.json")
    # Pieces that lower-cased text could never reach: the vocabulary was made of cased text, whoever uses it now.
    capitals = any(piece != piece.lower() for piece in pieces if not piece.startswith(("[", "<")))
    if not beside.is_file():
        return enliple.wordpiece(vocabulary, lower_case=lower_case and not capitals)
    settings = read_json(beside, "the tokenizer's config")
    if settings.get("tokenizer_class", "BertTokenizer").removesuffix("Fast") not in WORDPIECES:
        return None
    added = [str(token.get("content")) for token in settings.get("added_tokens_decoder", {}).values()]
    if vocabulary.with_name("added_tokens.json").is_file() or set(added) - set(pieces):
        return None
    lowers, strip = bool(settings.get("do_lower_case", not capitals)), settings.get("strip_accents")
    if strip is None:  # with lower case, as the library has it; but syllables would never be reached
        strip = lowers and not any("가" <= letter <= "힣" for piece in pieces for letter in piece)
    chinese = settings.get("tokenize_chinese_chars", True)
    return enliple.wordpiece(vocabulary, lower_case=lowers, strip_accents=strip, tokenize_chinese_chars=chinese)


def by_its_only_file(tokenizer: Any, name: str) -> Any:
    """Return the tokenizer of a tokenizer.json alone: the library would take its class's own rules instead."""
    from transformers import PreTrainedTokenizerFast

    file = stored(name, "tokenizer.json")
    if file is None or stored(name, "tokenizer_config.json") is not None:
        return tokenizer
    return PreTrainedTokenizerFast(tokenizer_file=str(file), **tokenizer.special_tokens_map)
