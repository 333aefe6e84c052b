"""Texts that people see, and their catalogues. Run by `make messages`; the tests use what is here.

Texts are those that the code marks with `tr`, those that templates of pages mark, and all help of the command line.
"""

import ast
import inspect
import io
import string
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import typer
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_file
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

import bigqa
from bigqa import train
from bigqa.arguments import commands_of
from bigqa.cli.commands import app
from bigqa.language import LANGUAGES, LOCALE

ROOT = Path(bigqa.__file__).parent
MARK = "tr"


def extracted() -> Catalog:
    """Return every text, with the files that it is from."""
    catalogue = Catalog(domain="bigqa", fuzzy=False)
    for file, tree in trees().items():
        for text in marked(tree):
            catalogue.add(text, locations=[(file, 1)])
    for path in sorted(ROOT.rglob("*.j2")):
        for _, text, _, _ in extract_from_file("jinja2.ext:babel_extract", path, keywords={MARK: None}):
            catalogue.add(text, locations=[(f"bigqa/{path.relative_to(ROOT)}", 1)])
    for text, file in help_texts():
        catalogue.add(text, locations=[(file, 1)])
    return catalogue


@lru_cache
def trees() -> dict[str, ast.Module]:
    """Return the files of the package, read."""
    files = sorted(ROOT.rglob("*.py"))
    return {f"bigqa/{file.relative_to(ROOT)}": ast.parse(file.read_text(encoding="utf-8")) for file in files}


def marked(tree: ast.Module) -> Iterator[str]:
    """Return the texts that a file marks. In a file of thousands, Babel's own way takes ten times as long."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == MARK:
            if not (node.args and isinstance(node.args[0], ast.Constant)):
                raise ValueError(f"{MARK} takes a text as it stands, and no {ast.unparse(node.args[0])}")
            yield str(node.args[0].value)


def help_texts() -> Iterator[tuple[str, str]]:
    """Return the help of each command and option, and the file that it is from."""
    alone = typer.Typer(add_completion=False)
    alone.command()(train.train)
    for command in (*commands_of(typer.main.get_command(app)), typer.main.get_command(alone)):
        module = getattr(inspect.unwrap(command.callback), "__module__", "bigqa.cli.commands")
        for part in (command, *command.params):
            if part.help:
                yield inspect.cleandoc(part.help), module.replace(".", "/") + ".py"


def po_of(language: str) -> Path:
    """Return the catalogue that people write; gettext's own lies beside it."""
    return LOCALE / language / "LC_MESSAGES" / "bigqa.po"


def read(language: str) -> Catalog:
    """Return the catalogue of a language as it is."""
    with po_of(language).open("rb") as file:
        return read_po(file, locale=language, domain="bigqa")


def places_of(text: str) -> set[str] | None:
    """Return the places of a text, each with its conversion and its format; none, where braces are no places."""
    try:
        return {f"{name}!{how}:{form}" for _, name, form, how in string.Formatter().parse(text) if name is not None}
    except ValueError:
        return None


def update(language: str) -> tuple[list[str], list[str]]:
    """Bring a catalogue up to date; return the texts without a translation, and those that are gone."""
    catalogue, header = read(language), read(language).header_comment
    catalogue.update(extracted(), no_fuzzy_matching=True, keep_user_comments=True, update_creation_date=False)
    gone = [str(text) for text in catalogue.obsolete]
    catalogue.obsolete.clear()
    catalogue.header_comment = header
    text, compiled = io.BytesIO(), io.BytesIO()
    write_po(text, catalogue, width=120, sort_by_file=True, include_lineno=False)
    write_mo(compiled, catalogue)
    po_of(language).write_bytes(text.getvalue())
    po_of(language).with_suffix(".mo").write_bytes(compiled.getvalue())
    return [str(message.id) for message in catalogue if message.id and not message.string], gone


def main() -> None:
    """Bring every catalogue up to date."""
    for language in LANGUAGES[1:]:
        missing, gone = update(language)
        print(f"{po_of(language)}: {len(missing)} texts without a translation, {len(gone)} gone")
        for text in missing:
            print(f"  {text!r}")


if __name__ == "__main__":
    main()
