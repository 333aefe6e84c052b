"""Generated text between markers of a written page. In: a page, a name, a text. Out: the page with the text in it.

A page that people write holds tables that programs make; each knows its place by `<!-- NAME -->` and `<!-- /NAME -->`.
"""

from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.files import read_text, write_text
from bigqa.language import tr


def between(page: str, name: str) -> str:
    """Return what stands between a name's markers. Raises: BigqaError where they are not there."""
    return _parts(page, name)[1].strip("\n")


def replaced(page: str, name: str, text: str) -> str:
    """Return the page with another text between a name's markers."""
    before, _, after = _parts(page, name)
    begin, end = _markers(name)
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def put_between(file: Path, name: str, text: str) -> None:
    """Replace what a file has between a name's markers."""
    write_text(file, replaced(read_text(file, tr("the page")), name, text))


def _parts(page: str, name: str) -> tuple[str, str, str]:
    begin, end = _markers(name)
    before, found, rest = page.partition(begin)
    inside, closed, after = rest.partition(end)
    if not found or not closed:
        raise BigqaError(
            tr("the page has no place for a table: write {begin} and {end} where it belongs", begin=begin, end=end)
        )
    return before, inside, after


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- /{name} -->"
