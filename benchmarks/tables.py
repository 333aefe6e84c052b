"""Puts a generated table between its markers in benchmarks/README.md. In: a name and a text."""

from pathlib import Path

from bigqa.show import markers

README = Path(__file__).parent / "README.md"


def put_between(name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- /NAME -->`."""
    markers.put_between(README, name, text)
