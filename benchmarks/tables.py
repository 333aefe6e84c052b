"""Puts a generated table between its markers in benchmarks/README.md. In: a name and a text."""

from pathlib import Path

from bigqa.files import write_text

README = Path(__file__).parent / "README.md"


def put_between(name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = README.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    write_text(README, f"{before}{begin}\n\n{text}\n\n{end}{after}")
