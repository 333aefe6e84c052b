"""Whether a tokenizer fits a model and a person's text. In: a tokenizer, a model's sizes, questions. Out: refusals, or
a line about what is unknown.

How much is unknown is counted in characters, not tokens: a whole word may be one unknown token. A character is known
when a token other than the unknown one covers it; white space is left out. Of the first questions and their contexts,
more than half unknown is refused (nothing can be learned), more than 5% is said. For comparison: of KorQuAD 1.0's dev
file 0.1% is unknown to KoBigBird's vocabulary, 0.3% to KoELECTRA's and mBERT's; Hangul that a tokenizer takes apart
into jamo, or drops, is nearly all unknown.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.tasks.squad import iter_questions
from bigqa.tasks.windows import learn_template

QUESTIONS = 200
CHARACTERS = 200_000
"""What is looked at: so many questions, and their contexts up to so many characters."""
SAID, REFUSED = 0.05, 0.5
"""Unknown share of the characters from which it is said, and refused."""
PARTS = (tr("first special token"), tr("question"), tr("middle special token"), tr("context"), tr("last special token"))


def check_template(tokenizer: Any, *, token_types: int, rows: int, name: str) -> None:
    """Refuse a tokenizer whose template of a pair asks for what a model has not.

    `token_types`: how many the model has, 0 or 1 where it takes none; `rows`: of its embedding. Raises: BigqaError.
    """
    template = learn_template(tokenizer)
    beyond = [(part, kind) for part, kind in zip(PARTS, template.types, strict=True) if kind >= max(1, token_types)]
    if token_types > 1 and beyond:
        part, kind = beyond[0]
        raise BigqaError(
            tr(
                "the tokenizer gives the {part} of a pair token type {kind}, and {name} has {token_types} (0 "
                'to {token_types_2}): set it in "post_processor" of tokenizer.json, or use the model\'s own '
                "tokenizer",
                part=part,
                kind=kind,
                name=name,
                token_types=token_types,
                token_types_2=token_types - 1,
            )
        )
    special = (*template.prefix, *template.middle, *template.suffix)
    if max(special, default=0) >= rows:
        raise BigqaError(
            tr(
                "the tokenizer's template of a pair holds id {special}, and {name} has {rows} embeddings: use "
                "the model's own tokenizer",
                special=max(special),
                name=name,
                rows=rows,
            )
        )


def template_doubts(tokenizer: Any, *, token_types: int, name: str) -> list[str | None]:
    """Return lines about a template that a model with these token types was hardly trained with."""
    template, lines = learn_template(tokenizer), []
    if token_types > 1 and template.types[1] == template.types[3]:
        lines.append(
            tr(
                "the tokenizer gives question and context the same token type, and {name} has {token_types}: "
                "was it trained so?",
                name=name,
                token_types=token_types,
            )
        )
    around = {*template.prefix, *template.middle, *template.suffix}
    for kind in ("cls_token", "sep_token"):
        token = getattr(tokenizer, kind)
        if token is not None and getattr(tokenizer, f"{kind}_id") not in around:
            lines.append(
                tr(
                    "the tokenizer has {token}, and its template of a pair does not: was {name} trained so?",
                    token=token,
                    name=name,
                )
            )
    return [*lines]


def check_text(path: Path, tokenizer: Any, *, refuse: bool = True) -> str | None:
    """Return a line about a data set's text that a tokenizer does not know; none where it knows nearly all.

    Raises: BigqaError where it knows less than half of it, if `refuse`.
    """
    questions = list(islice(iter_questions(path, need_answers=False), QUESTIONS))
    texts = [*(one.question for one in questions), *(one.context for one in questions)]
    return check_texts(texts, path, tokenizer, refuse)


def check_texts(found: Iterable[str], path: Path, tokenizer: Any, refuse: bool = True) -> str | None:
    """As `check_text`, of the texts of any file."""
    texts = dict.fromkeys(found)
    share, example = unknown_share(tokenizer, _first(texts))
    if share <= SAID:
        return None
    line = tr(
        "{share:.0%} of the characters of {path} are unknown to the tokenizer, {example!r} for one",
        share=share,
        path=path,
        example=example,
    )
    if share > REFUSED and refuse:
        raise BigqaError(
            tr("{line}: it is of another language, or takes Hangul apart (strip_accents); name another", line=line)
        )
    return line


def _first(texts: Iterable[str]) -> list[str]:
    found, size = [], 0
    for text in texts:
        found.append(text[: CHARACTERS - size])
        size += len(found[-1])
        if size >= CHARACTERS:
            break
    return found


def unknown_share(tokenizer: Any, texts: list[str]) -> tuple[float, str]:
    """Return the share of characters, without white space, that no known token covers, and the first such word."""
    unknown_id, unknown, total, example = tokenizer.unk_token_id, 0, 0, ""
    for text, found in zip(
        texts, tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        known = bytearray(len(text))
        for number, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if number != unknown_id:
                known[begin:end] = b"\1" * (end - begin)
        visible = [place for place, character in enumerate(text) if not character.isspace()]
        missed = [place for place in visible if not known[place]]
        total, unknown = total + len(visible), unknown + len(missed)
        if missed and not example:
            example = text[missed[0] :].split()[0][:20]
    return unknown / max(1, total), example
