"""The commands that the pages for people show. In: a Markdown file. Out: its blocks, their commands, and their marks.

A block is fenced as bash, or indented as in README.md. A comment in the line before it says what the block cannot be
run without, `<!-- not run: WHY -->`, or which exit code it ends with, `<!-- ends with 3 -->`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs"
MARK = re.compile(r"<!-- (?:not run: (?P<why>\S.*)|ends with (?P<code>\d+)) -->")
SPAN = re.compile(r"(?<!`)`(bigqa [^`\n]+)`(?!`)")
ENDS = {"|", "&&", "||", ";", "<", ">", "2>", ">>", "&"}
"""Words of a shell after which the words of a command are over."""


@dataclass(frozen=True)
class Block:
    """Some lines of a shell."""

    page: Path
    line: int
    text: str
    why_not: str | None
    code: int

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the words of each command; what the shell itself is told is left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := words_of(line))]


def pages() -> list[Path]:
    """Return the pages that are in this checkout; beside an installed package there are none."""
    return [page for page in [*sorted(ROOT.glob("README*.md")), *sorted(FOLDER.rglob("*.md"))] if page.is_file()]


def words_of(line: str) -> list[str]:
    """Return the words of a line's first command, without what follows a pipe, and without a remark."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    end = next((i for i, word in enumerate(words) if word in ENDS or word.startswith("2>")), len(words))
    return words[:end]


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page: those fenced as bash, and in README.md those that are indented."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found, i = [], 0
    while i < len(lines):
        start = i
        if lines[i].startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
            body, i = (lines[i + 1 : end] if lines[i] == "```bash" else []), end + 1
        elif page.parent == ROOT and lines[i].startswith("    ") and (not i or not lines[i - 1].strip()
                                                                     or MARK.fullmatch(lines[i - 1])):  # fmt: skip
            end = next((j for j in range(i, len(lines)) if not lines[j].startswith("    ")), len(lines))
            body, i = [line[4:] for line in lines[i:end]], end
        else:
            body, i = [], i + 1
        if body:
            found.append(_block(page, lines, start, "\n".join(body)))
    return found


def _block(page: Path, lines: list[str], start: int, text: str) -> Block:
    before = next((line for line in reversed(lines[:start]) if line.strip()), "")
    mark = MARK.fullmatch(before)
    return Block(page, start + 1, text, mark["why"] if mark else None, int(mark["code"] or 0) if mark else 0)


def spans(page: Path) -> list[str]:
    """Return what a page says of commands within its sentences, such as `bigqa train --resume RUN`."""
    return SPAN.findall(page.read_text(encoding="utf-8"))
