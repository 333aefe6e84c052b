"""Which language people are told things in. In: English texts with places, {name}. Out: the same, or Korean.

A text is made in English and stays English where machines read it, in JSON and in logs: `tr` returns a string. What
shows it to people, the console and pages, asks `shown` for it in their language. Catalogues are gettext's,
`locale/LANGUAGE/LC_MESSAGES/bigqa.mo`; `make messages` brings them up to date.
"""

import contextlib
import gettext
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "ko")
"""The first is that of the texts in the code, and of whoever wants one that is not here."""
VARIABLE = "BIGQA_LANG"
LOCALE_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""As POSIX has it: the first that is set tells."""
LOCALE = Path(__file__).parent / "locale"
LETTERS = {"ko": "가힣"}
"""What a terminal must be able to write, for a language to be shown on it."""


class Text(str):
    """An English text that knows how it was put together, so that it can be shown in another language."""

    template: str
    places: Mapping[str, Any]

    def __reduce__(self) -> tuple[Callable[..., "Text"], tuple[str, dict[str, Any]]]:
        return _made, (self.template, dict(self.places))


def _made(template: str, places: Mapping[str, Any]) -> Text:
    text = Text(template.format(**places) if places else template)
    text.template, text.places = template, places
    return text


def tr(text: str, /, **places: Any) -> Text:
    """Return a text of the catalogues with its places filled in. Without places, braces stand for themselves."""
    return _made(text, places)


def put(form: str, /, **places: Any) -> Text:
    """Return the same of a form that has no words of its own, such as "{name}: {problem}"; no catalogue has it."""
    return _made(form, places)


def joined(between: str, texts: Iterable[str]) -> Text:
    """Return texts with `between` between them; each keeps its own languages."""
    places = {f"_{i}": text for i, text in enumerate(texts)}
    return _made(between.replace("{", "{{").replace("}", "}}").join(f"{{{name}}}" for name in places), places)


def shown(text: str) -> str:
    """Return a text in the language of this process."""
    catalogue = _catalogue(spoken())
    if catalogue is None:
        return str(text)
    if not isinstance(text, Text):
        return text
    # Of nothing, a catalogue tells about itself.
    template = catalogue.gettext(text.template) if text.template else text.template
    if not text.places:
        return template
    return fitted(template.format(**{name: _shown_place(value) for name, value in text.places.items()}))


PARTICLES = {
    "은(는)": ("은", "는"), "이(가)": ("이", "가"), "을(를)": ("을", "를"),
    "과(와)": ("과", "와"), "(이)라": ("이라", "라"), "(으)로": ("으로", "로"),
}  # fmt: skip
"""Korean particles as a catalogue has them behind a place -> behind a consonant, and behind a vowel."""
READ_DIGITS = "영일이삼사오육칠팔구"
L_FINAL, FINALS = 8, 28
"""Of the finals that a Hangul syllable may have, the number of ㄹ, behind which -로 stands; and how many there are."""


def fitted(text: str) -> str:
    """Return Korean in which each particle fits the syllable or digit before it; behind other letters both stay."""
    if not any(particle in text for particle in PARTICLES):
        return text
    choices = "|".join(map(re.escape, PARTICLES))
    return re.sub(rf"([가-힣0-9])({choices})", lambda found: found[1] + _particle(found[1], found[2]), text)


def _particle(before: str, particle: str) -> str:
    syllable = READ_DIGITS[int(before)] if before.isdigit() else before
    final = (ord(syllable) - ord("가")) % FINALS
    as_vowel = final == 0 or (final == L_FINAL and particle == "(으)로")
    return PARTICLES[particle][as_vowel]


def _shown_place(value: Any) -> Any:
    if isinstance(value, Exception) and len(value.args) == 1 and isinstance(value.args[0], Text):
        return shown(value.args[0])
    return shown(value) if isinstance(value, Text) else value


def spoken() -> str:
    """Return the language of this process, one of `LANGUAGES`."""
    return _spoken(os.environ.get(VARIABLE, ""))


@lru_cache
def _spoken(asked: str) -> str:
    found = asked or next((value for name in LOCALE_VARIABLES if (value := os.environ.get(name))), "")
    language = found.split(".")[0].split("_")[0].lower()
    return language if language in LANGUAGES and _can_be_written(LETTERS.get(language, "")) else LANGUAGES[0]


@contextlib.contextmanager
def in_english() -> Iterator[None]:
    """Show English for a while: for files that everybody shares, whoever writes them."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = LANGUAGES[0]
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _can_be_written(letters: str) -> bool:
    """Whether both streams can write letters: a terminal without them would show signs that nobody reads."""
    try:
        for stream in (sys.stdout, sys.stderr):
            letters.encode(getattr(stream, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def take_option(words: list[str]) -> str | None:
    """Take `--lang LANGUAGE` out of a command's words, wherever it stands, and return the language.

    What follows `--` is another program's. The processes that this one starts speak the same.
    """
    end = words.index("--") if "--" in words else len(words)
    found = None
    for i in reversed(range(end)):
        if words[i].startswith("--lang="):
            found = found or words[i].partition("=")[2]
            del words[i]
        elif words[i] == "--lang" and i + 1 < len(words):
            found = found or words[i + 1]
            del words[i : i + 2]
    if found in LANGUAGES:
        os.environ[VARIABLE] = str(found)
    return found


@lru_cache
def _catalogue(language: str) -> gettext.NullTranslations | None:
    if language == LANGUAGES[0]:
        return None
    try:
        return gettext.translation("bigqa", LOCALE, [language])
    except (OSError, UnicodeDecodeError):
        return None
