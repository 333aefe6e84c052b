"""What the command line's parser says, in the language of whoever reads it. In: a Typer application. Out: its parser.

Typer and click have words of their own, in English: the headings of help, and what is wrong with a command. Those are
here. The help of commands and options is in the catalogues as it stands in the code, and needs no mark there.
"""

import inspect
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.cells import cell_len

from bigqa.language import put, shown, tr

AS_IT_STANDS = "\b"
"""The line before lines that are kept, as click has it."""
HEADINGS = (tr("Arguments"), tr("Options"), tr("Commands"), tr("Show this message and exit."))
USAGE, DEFAULT, REQUIRED = tr("Usage: "), tr("[default: {default}]"), tr("[required]")
KINDS = (tr("argument"), tr("option"), tr("parameter"))
PROBLEMS = (
    tr("No such option: {option} (Possible options: {others})"),
    tr("No such option: {option} Did you mean {others}?"),
    tr("No such option: {option}"),
    tr("No such command {command}. Did you mean {others}?"),
    tr("No such command {command}."),
    tr("Missing command."),
    tr("Missing {kind} {name}. Choose from: {choices}"),
    tr("Missing {kind} {name}."),
    tr("Got unexpected extra argument(s) ({words})"),
    tr("Option {option} requires an argument."),
    tr("Option {option} does not take a value."),
    tr("Invalid value for {name}: {problem}"),
    tr("Value error, {value} is not one of {choices}."),
    tr("Input should be {choices}"),
)


def parser_of(app: typer.Typer) -> Any:
    """Return the parser of an application, which shows its help in the language of this process."""
    command = typer.main.get_command(app)
    for one in commands_of(command):
        one.context_class = _context_class(one.context_class)
        own = one.get_help_option(one.context_class(one))
        for part in (one, *one.params, *([own] if own is not None else [])):
            if getattr(part, "help", None):
                part.help = shown(put(inspect.cleandoc(part.help)))
        one.short_help = (one.help or "").partition("\n\n")[0]  # whole, where the parser's own would be cut
        one.epilog = shown(one.epilog) if one.epilog else None
    return command


def commands_of(command: Any) -> Iterator[Any]:
    """Return a parser's command, and all that lie below it."""
    yield command
    for one in getattr(command, "commands", {}).values():
        yield from commands_of(one)


def problem(text: str) -> str:
    """Return what the parser says is wrong with a command as a text that has other languages, where it is known."""
    line = " ".join(text.split())
    for template in PROBLEMS:
        found = re.fullmatch(_pattern(template), line)
        if found is not None:
            return put(template, **{name: problem(value) for name, value in found.groupdict().items()})
    return put(line) if line in KINDS else text


def _pattern(template: str) -> str:
    parts = string.Formatter().parse(template)
    return "".join(re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name, _, _ in parts)


def _context_class(plain: Any) -> Any:
    """Return a parser's class of contexts whose help is laid out by the columns that letters take on the screen."""
    return type("Context", (plain,), {"formatter_class": _formatter_class(plain.formatter_class)})


def _formatter_class(plain: Any) -> Any:
    class Formatter(plain):  # type: ignore[misc]
        """A Hangul letter takes two columns; the parser's own class counts letters."""

        def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
            super().write_usage(prog, args, shown(USAGE) if prefix is None else prefix)

        def write_heading(self, heading: str) -> None:
            super().write_heading(shown(put(heading)))

        def write_text(self, text: str) -> None:
            indent = " " * self.current_indent
            for line in broken(text, self.width - self.current_indent):
                self.write(f"{indent}{line}".rstrip() + "\n")

        def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
            indent = " " * self.current_indent
            first = min(max((cell_len(name) for name, _ in rows), default=0), col_max) + col_spacing
            for name, text in rows:
                lines = broken(_with_its_remarks(text), max(self.width - first - self.current_indent, 10))
                if cell_len(name) + col_spacing > first:
                    self.write(f"{indent}{name}\n")
                    name = ""
                for line in lines or [""]:
                    self.write(f"{indent}{name}{' ' * (first - cell_len(name))}{line}".rstrip() + "\n")
                    name = ""

    return Formatter


def _with_its_remarks(text: str) -> str:
    """Return an option's help in which the parser's remark behind it is in its reader's language too."""
    text = re.sub(r"\[default: ([^\]]*)\]$", lambda found: shown(put(DEFAULT, default=found[1])), text)
    return re.sub(re.escape(REQUIRED) + "$", shown(REQUIRED), text)


def broken(text: str, width: int) -> list[str]:
    """Return the lines of a text of paragraphs, none wider than `width` columns unless one word is."""
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        before, mark, kept = paragraph.partition(AS_IT_STANDS + "\n")
        lines += [""] if lines else []
        lines += kept.splitlines() if mark and not before else _filled(paragraph, width)
    return lines


def _filled(paragraph: str, width: int) -> list[str]:
    lines: list[str] = []
    for spaces, word in re.findall(r"(\s*)(\S+)", paragraph):
        between = " " * max(1, spaces.count(" ")) if "\n" not in spaces else " "
        if lines and cell_len(lines[-1] + between + word) <= width:
            lines[-1] += between + word
        else:
            lines.append(word)
    return lines
