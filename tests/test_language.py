"""Each text that people see is there in Korean, and is shown where people look; machines read English."""

import ast
import gettext
import io
import json
import pickle
import re
from collections.abc import Iterator
from unittest.mock import patch

import pytest
from commands import bigqa, here
from messages import ROOT, extracted, places_of, po_of, read, trees
from rich.cells import cell_len

from bigqa import arguments, language
from bigqa.cli.commands import app
from bigqa.cli.examples import EXAMPLES, commands_of
from bigqa.errors import BigqaError
from bigqa.language import joined, put, shown, tr

KOREAN = {language.VARIABLE: "ko"}
ASK_KOREAN = patch.dict("os.environ", KOREAN)
LOCALE_VARIABLES = dict.fromkeys((language.VARIABLE, *language.LOCALE_VARIABLES), "")


def has_hangul(text: str) -> bool:
    return any("가" <= letter <= "힣" for letter in text)


def test_every_text_has_its_korean() -> None:
    korean, texts = read("ko"), extracted()
    missing = [text.id for text in texts if text.id and not (korean.get(text.id) and korean.get(text.id).string)]
    gone = [text.id for text in korean if text.id and texts.get(text.id) is None]
    assert missing == [], "translate them in bigqa.po; `make messages` writes them there"
    assert gone == [], "`make messages` takes them out"


def test_places_are_the_same_in_both_languages() -> None:
    wrong = [str(text.id) for text in read("ko") if text.id and places_of(str(text.id)) != places_of(str(text.string))]
    assert wrong == []


def test_what_gettext_reads_is_what_people_wrote() -> None:
    with po_of("ko").with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    stale = [text.id for text in read("ko") if text.id and text.string and compiled.gettext(text.id) != text.string]
    assert stale == [], "`make messages` compiles them"
    assert not [text.id for text in read("ko") if text.fuzzy and text.id]


def test_a_text_is_english_and_shown_in_korean() -> None:
    inner = tr("at its start")
    text = tr("the command has an empty word {where}: is a variable of the shell not set?", where=inner)
    assert text == "the command has an empty word at its start: is a variable of the shell not set?"
    assert json.loads(json.dumps({"text": text})) == {"text": str(text)} and shown(text) == text
    for one in (text, pickle.loads(pickle.dumps(text))):
        with ASK_KOREAN:
            assert has_hangul(shown(one)) and not set(shown(one)) & set("{}") and shown(inner) in shown(one)
            assert shown(put("{name}: {problem}", name="a.json", problem=one)) == f"a.json: {shown(one)}"
            assert shown(joined(" {} ", [one, "b"])) == f"{shown(one)} {{}} b"
    with ASK_KOREAN:
        assert shown("no text of the catalogue") == "no text of the catalogue" and shown("") == ""
        assert shown(put("{error}", error=BigqaError(inner))) == shown(inner) == BigqaError(inner).shown
        assert str(BigqaError(inner)) == "at its start"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("계획은(는) 표이(가) 칸을(를)", "계획은 표가 칸을"),
        ("3과(와) 4과(와)", "3과 4와"),
        ("서울(으)로 부산(으)로 1(으)로 6(으)로 2(으)로", "서울로 부산으로 1로 6으로 2로"),
        ("a.json을(를)", "a.json을(를)"),
    ],
)
def test_particles_fit_what_comes_before_them(written: str, read: str) -> None:
    assert language.fitted(written) == read


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "C.UTF-8", "LC_ALL": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "C.UTF-8", "LC_MESSAGES": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "BIGQA_LANG": "en"}, "en"),
        ({"LANG": "C", "BIGQA_LANG": "ko"}, "ko"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
        ({}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale_unless_one_is_asked_for(variables: dict[str, str], expected: str) -> None:
    language._spoken.cache_clear()
    with patch.dict("os.environ", LOCALE_VARIABLES | variables):
        assert language.spoken() == expected
    language._spoken.cache_clear()


def test_a_terminal_without_hangul_is_told_in_english() -> None:
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    language._spoken.cache_clear()
    with patch.multiple("sys", **streams), ASK_KOREAN:
        assert language.spoken() == "en"
    language._spoken.cache_clear()
    done = bigqa("probe", "--gpx", LANG="ko_KR.UTF-8", PYTHONIOENCODING="ascii", **{language.VARIABLE: ""})
    assert done.returncode == 2 and "No such option" in done.stderr


def test_the_option_stands_anywhere_before_another_programs_words() -> None:
    with patch.dict("os.environ"):
        words = ["bigqa", "rehearse", "--lang", "ko", "--", "script.py", "--lang", "en"]
        assert language.take_option(words) == "ko"
        assert words == ["bigqa", "rehearse", "--", "script.py", "--lang", "en"] and language.spoken() == "ko"
    for words in (["--lang", "ko", "probe", "--gpx"], ["probe", "--gpx", "--lang=ko"]):
        done = here(*words)
        assert done.returncode == 2 and has_hangul(done.stderr) and "--gpx" in done.stderr
    refused = here("--lang", "xx", "probe", "tiny")
    assert refused.returncode == 2 and refused.stderr == "bigqa: --lang: 'xx' is none of en, ko\n"


@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_korean_within_the_columns_of_the_terminal(columns: int) -> None:
    with ASK_KOREAN, patch.dict("os.environ", COLUMNS=str(columns)):
        for name in ("probe", "train", "data"):
            lines = here(name, "--help").stdout.splitlines()
            assert has_hangul(lines[0]) and "Options" not in lines
            assert max(map(cell_len, lines)) <= 80  # as the parser does in English, however wide the terminal is
            assert "  예:" in lines or name == "data"


def test_what_the_parser_says_is_korean() -> None:
    with ASK_KOREAN:
        for words in (["prob"], ["probe"], ["probe", "a", "b"], ["probe", "a", "--gpu"], ["probe", "a", "--all=1"],
                      ["probe", "a", "--precision", "fp1"], ["evaluate", "a"], ["probe", "a", "--tier", "7"],
                      ["", "a"]):  # fmt: skip
            done = here(*words)
            said = done.stderr.replace("--help", "")
            assert done.returncode == 2 and has_hangul(said), words
            assert not {"option", "command", "value", "argument", "is"} & set(said.split()), said


def test_every_command_has_an_example_that_its_parser_takes() -> None:
    parser = arguments.parser_of(app)
    assert {name for name, _ in commands_of(app)} == set(EXAMPLES)
    for name, examples in EXAMPLES.items():
        for _, words in examples:
            assert f"{words} ".startswith(f"{name} ")
            command, rest = parser, words.split()
            while hasattr(command, "commands"):
                command, rest = command.commands[rest[0]], rest[1:]
            taken = rest[: rest.index("<")] if "<" in rest else rest
            with command.make_context(name, taken, resilient_parsing=False) as context:
                assert context.params


TELLING = {
    "say",
    "tell",
    "note",
    "BigqaError",
    "UsageError",
    "fail",
    "progress",
    "add_column",
    "say_when_left",
    "leave",
}
"""Calls whose first words people see."""


def bare_texts(tree: ast.Module) -> Iterator[str]:
    """Return texts that are given as they are to what shows them: no catalogue can have them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name(node.func) in TELLING and node.args:
            for part in _parts(node.args[0]):
                words = part.values if isinstance(part, ast.JoinedStr) else [part]
                if any(isinstance(one, ast.Constant) and has_words(str(one.value)) for one in words):
                    yield f"{part.lineno}: {ast.unparse(part)}"


SHOWING = ("bigqa/doctor/", "bigqa/show/doctor.py", "bigqa/table/", "bigqa/run/card.py", "bigqa/pages/", "bigqa/runs/")
"""Files of which every text is for people, whatever it is handed to: findings, headings, cells, pages."""
MARKS = {"tr", "put", "joined"}
RECORDED = {
    *("bold red", "bold green", "upper left", "offset points"),
    *("false fit", "false no", "nothing fits", "out of memory", "full precision", "already exists"),
}
"""Words in those files that are read by programs alone: styles, and what reports call things."""


def unmarked_texts(tree: ast.Module) -> Iterator[str]:
    """Return the texts of a file that neither a mark nor a docstring has: no catalogue can have them."""
    seen: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            seen.add(node.value)
        if isinstance(node, ast.Call) and _name(node.func) in MARKS:
            seen.update(node.args)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in seen
        if is_text and has_words(str(node.value)) and str(node.value) not in RECORDED:  # type: ignore[attr-defined]
            yield f"{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined]


def _parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return _parts(node.left) + _parts(node.right)
    return _parts(node.body) + _parts(node.orelse) if isinstance(node, ast.IfExp) else [node]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def has_words(text: str) -> bool:
    return sum(word.isalpha() for word in text.split()) > 1


def test_no_text_is_shown_unmarked() -> None:
    assert len(list(bare_texts(ast.parse('say(f"no such {x}")\ntell("a" + "is gone")\nsay(tr("a text"))')))) == 2
    found = [f"{file}:{text}" for file, tree in trees().items() for text in bare_texts(tree)]
    assert found == [], "mark them: tr('no such {x}', x=x)"


def words_of_page(template: str) -> list[str]:
    """Return the words that a page shows whatever the language is: those outside of what jinja2 puts in."""
    text = re.sub(r"(?s)<style>.*?</style>|<script>.*?</script>|\{%.*?%\}|\{#.*?#\}", " ", template)
    text = re.sub(r"(?s)\{\{.*?\}\}", " ", text)
    attributes = re.findall(r'(?:aria-label|title|alt|placeholder)="([^"]*)"', text)
    return re.findall(r"[A-Za-z]{2,}", " ".join([*attributes, re.sub(r"<[^>]*>", " ", text)]))


def test_pages_have_no_words_but_those_of_a_mark() -> None:
    assert words_of_page('<h1 class="a" title="Of it">{{ tr("Runs") }} of <b>{{ x }}</b></h1>') == ["Of", "it", "of"]
    names = {"bigqa"}
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.j2"))}
    assert {path.name for path in pages} >= {"bench.html.j2", "probe.html.j2", "run.html.j2"}
    found = {path.name: words for path, text in pages.items() if (words := sorted(set(words_of_page(text)) - names))}
    assert found == {}, "mark them: {{ tr('...') }}"
    assert all('<html lang="{{ lang }}">' in text for text in pages.values() if "<html" in text)


def test_no_text_of_what_is_for_people_is_unmarked() -> None:
    wrong = '"""Of a file."""\nrow = Finding("memory", f"{size} is free", tr("it costs"), put("pip install x"))'
    assert list(unmarked_texts(ast.parse(wrong))) == ["2: ' is free'"]
    shown_to_people = {file: tree for file, tree in trees().items() if file.startswith(SHOWING)}
    assert {"/".join(file.split("/")[:2]) for file in shown_to_people} == {"/".join(f.split("/")[:2]) for f in SHOWING}
    found = [f"{file}:{text}" for file, tree in shown_to_people.items() for text in unmarked_texts(tree)]
    assert found == [], "mark them: tr('no such {x}', x=x)"
