"""The pages for people: each command that they show is one, links lead somewhere, and the reference is made of code.

`-m slow` runs the commands too, page by page in a fresh folder with the embedded sample, but for those that a comment
says the reason of; and builds the site, which takes nothing from other hosts.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from commands import LIMIT_S
from pages import FOLDER, ROOT, Block, blocks, pages, spans, words_of

import bigqa
from bigqa.language import take_option
from bigqa.machine.gpus import find_gpu
from bigqa.ranges import RANGES
from bigqa.settings import Settings, make_settings
from bigqa.strategy import STRATEGIES
from bigqa.tasks.base import refuse_unknown
from bigqa.tasks.registry import kind_of
from bigqa.tasks.scoring import METRICS

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no docs/ beside an installed package")
ALL = [block for page in pages() for block in blocks(page)]
HOSTS = re.compile(
    r"""<(?:link|script|img|iframe)[^>]*(?:href|src)=["']?(https?:)?//[^>]*>|@import[^;]*//|url\(["']?https?:"""
)


@cache
def hooks() -> ModuleType:
    """Import what MkDocs imports."""
    spec = importlib.util.spec_from_file_location("hooks", FOLDER / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def leaves() -> dict[str, Any]:
    found: dict[str, Any] = dict(hooks().leaves(hooks().parser()))
    return found


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the words of `bigqa ...` name, and the rest of them."""
    for count in (2, 3):
        name = " ".join(words[:count])
        if name in leaves():
            return leaves()[name], words[count:]
    raise AssertionError(f"no such command: {' '.join(words)}")


def read(words: list[str]) -> dict[str, Any]:
    """Return the options of a command line as bigqa reads it. Raises: what the parser does."""
    if words[1].startswith("-"):
        return {}  # of bigqa itself
    command, rest = command_of(words)
    if "--help" in rest:
        return {}
    with patch.dict(os.environ):
        take_option(rest)  # --lang, which every command has
    options = dict(command.make_context(" ".join(words), rest).params)
    if words[1] == "train":
        check_settings({name: value for name, value in options.items() if value is not None})
    assert options.get("strategy") in (None, *STRATEGIES), words
    assert options.get("gpu") in (None, "", "auto", "none") or find_gpu(options["gpu"]), words
    if words[1] != "train" and "metric" in options:
        assert options["metric"] in (None, *METRICS), words
    kind_of(options.get("task") or "qa")
    return options


def check_settings(options: dict[str, Any]) -> None:
    """Refuse what a run would refuse, whatever its files are."""
    kind = kind_of(options.get("task", "qa"))
    known = {name: value for name, value in options.items() if name in Settings.model_fields and name != "strategy"}
    make_settings(**({"model": "tiny", "train_file": "a", "out": "b"} | known))
    apart = {"resume", "until", "plan", "num_processes", *Settings.model_fields}
    own = {name: value for name, value in options.items() if name in kind.options_type.model_fields}
    refuse_unknown([name for name in options if name not in apart], kind)
    kind.check(kind.options(known | own))


def as_bigqa(words: list[str]) -> list[str] | None:
    """Return a command of bigqa as `bigqa ...`, however it is started; none of another program."""
    if words[0] == "bigqa":
        return words
    if "bigqa.train" in words:
        return ["bigqa", "train", *words[words.index("bigqa.train") + 1 :]]
    return None


def test_pages_show_commands() -> None:
    assert {page.relative_to(ROOT).as_posix() for page in pages()} >= {"README.md", "README.ko.md", "docs/tutorial.md"}
    assert sum(as_bigqa(words) is not None for block in ALL for words in block.commands()) > 40


@pytest.mark.parametrize("block", ALL, ids=str)
def test_each_command_is_one(block: Block) -> None:
    for words in block.commands():
        ours = as_bigqa(words)
        if ours is not None:
            read(ours)
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            for target in (word for word in words[1:] if "=" not in word):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), words
        elif words[:2] == ["python", "-m"] and words[2].startswith("benchmarks."):
            source = (ROOT / "benchmarks" / f"{words[2].split('.')[1]}.py").read_text(encoding="utf-8")
            common = (ROOT / "benchmarks" / "common.py").read_text(encoding="utf-8")
            assert [word for word in words if word.startswith("--") and f'"{word}"' not in source + common] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_within_sentences_are_commands(page: Path) -> None:
    for span in spans(page):
        words = words_of(span)
        if words[1].startswith("-"):
            continue  # of bigqa itself
        groups = {name.split()[1] for name in leaves() if name.count(" ") == 2}
        if len(words) == 2 and words[1] in groups:
            continue
        command, rest = command_of(words)
        options = {option for one in command.params for option in (*one.opts, *one.secondary_opts)} | {
            "--help",
            "--lang",
        }
        ours = rest[: rest.index("--")] if "--" in rest else rest
        assert [word for word in ours if word.startswith("--") and word.split("=")[0] not in options] == [], span


@pytest.mark.parametrize(
    "wrong",
    [
        "bigqa trian --model tiny", "bigqa train --modle tiny", "bigqa train --lr 11", "bigqa train --strategy zero9",
        "bigqa train --schedule cosin", "bigqa train --task clasify", "bigqa probe tiny --gpu T40", "bigqa probe",
        "bigqa data inspect dev.json", "bigqa evaluate a b --metric bleu", "bigqa train --task lm --label kind",
    ],
)  # fmt: skip
def test_a_command_that_is_none_would_be_seen(wrong: str) -> None:
    with pytest.raises((Exception, AssertionError)):  # the parser's errors, bigqa's, or ours
        read(words_of(wrong))


def test_a_block_says_why_it_is_not_run() -> None:
    """A mark that is misspelt would run the block, or hide it."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        marks = [line for line in text.splitlines() if re.search(r"<!--.*(not run|ends with)", line)]
        assert len(marks) == sum(block.why_not is not None or block.code != 0 for block in blocks(page)), page


def without_remarks(block: Block) -> list[str]:
    return [re.sub(r"\s+#\s.*", "", line) for line in block.text.splitlines()]


def test_both_readmes_say_the_same() -> None:
    """Commands to the letter but for the remarks behind them, links in one order, and every figure as often."""
    one, other = ROOT / "README.md", ROOT / "README.ko.md"
    assert [without_remarks(block) for block in blocks(one)] == [without_remarks(block) for block in blocks(other)]
    assert [block.why_not for block in blocks(one)] == [block.why_not for block in blocks(other)]
    texts = [page.read_text(encoding="utf-8") for page in (one, other)]
    links = [re.findall(r"\]\(([^)\s]+)\)", text) for text in texts]
    assert links[0][1:] == links[1][1:] and [links[1][0], links[0][0]] == [one.name, other.name]
    assert len(set(links[0])) > 25
    code = [
        {" ".join(span.split()) for span in re.findall(r"`[^`]+`", re.sub(r"(?s)```.*?```", "", text))}
        for text in texts
    ]
    assert code[1] - code[0] == {"`--lang ko`"} and code[0] < code[1]
    figures = [Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\([^)]*\)", "", text))) for text in texts]
    assert figures[0] == figures[1] and figures[0].total() > 30
    marks = [re.findall(r"^(#+|- |```|<!--)", text, re.MULTILINE) for text in texts]
    assert marks[0] == marks[1]


def test_links_lead_somewhere() -> None:
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            path, _, heading = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            other = (page.parent / path) if path else page
            assert other.exists(), f"{page}: {target}"
            assert page.parent == ROOT or other.is_relative_to(FOLDER) or ".." not in path, f"{page}: {target}"
            if heading and other.suffix == ".md":
                heads = re.findall(r"^#+ (.*)$", hooks().on_page_markdown(other.read_text("utf-8")), re.MULTILINE)
                assert heading in {re.sub(r"[^\w가-힣 -]", "", head).lower().replace(" ", "-") for head in heads}, (
                    target
                )


def test_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {page.relative_to(FOLDER).as_posix() for page in FOLDER.rglob("*.md")} == set(re.findall(r"\S+\.md", text))


def test_the_reference_is_made_of_the_code() -> None:
    late = {"candidate"}  # imports torch; the site has it
    made = {name: function() for name, function in hooks().MADE.items() if name not in late}
    for name, command in leaves().items():
        assert f"## {name}\n" in made["commands"]
        for option in (option for one in command.params if one.param_type_name == "option" for option in one.opts):
            assert option in made["commands"]
    assert all(f"| `{name}` | {one.tier}: " in made["strategies"] for name, one in STRATEGIES.items())
    assert all(f"| `{name}` |" in made["settings"] for name in Settings.model_fields)
    assert all(f"| `{name}` |" in made["metrics"] for name in METRICS)
    assert all(f"| `{name}` |" in made["ranges"] for name in RANGES)
    assert all(f"bigqa.{name}" in made["python"] for name in bigqa.__all__)
    assert "Fixes initial weights, data order and dropout." in made["settings"]
    used = {
        name for page in FOLDER.rglob("*.md") for name in re.findall(r"<!-- made: (\S+) -->", page.read_text("utf-8"))
    }
    assert used == made.keys() | late


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with `bigqa` and `python` in it, as an environment has them on the way."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, words in {
        "bigqa": "-m bigqa.cli",
        "python": "",
        "accelerate": "-m accelerate.commands.accelerate_cli",
    }.items():
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if any(b.why_not is None for b in blocks(page))],
                         ids=lambda page: page.relative_to(ROOT).as_posix())  # fmt: skip
def test_each_command_runs(page: Path, programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the top of a page to its end, in one folder: a page is a way that somebody goes."""
    here = tmp_path / "here"
    shutil.copytree(Path(bigqa.__file__).parent / "sample", here / "bigqa" / "sample")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for block in blocks(page):
        if block.why_not is None:
            words = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(words, cwd=here, capture_output=True, text=True, check=False, timeout=LIMIT_S)
            assert done.returncode == block.code, f"{block}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


@pytest.mark.slow
def test_the_site_is_built_and_takes_nothing_from_other_hosts(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install 'bigqa[docs]'")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    for file in (tmp_path / "site").rglob("*"):
        if file.suffix in (".html", ".css"):
            found = HOSTS.search(file.read_text(encoding="utf-8"))
            assert found is None, f"{file}: {found}"
