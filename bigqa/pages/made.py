"""Templates of this room. In: a template's name, values. Out: a page, in the language of this process."""

from pathlib import Path
from typing import Any

from bigqa.console import page_environment

TEMPLATES = Path(__file__).parent / "templates"


def made(template: str, **values: Any) -> str:
    """Return a page."""
    return str(
        page_environment(TEMPLATES, trim_blocks=True, lstrip_blocks=True).get_template(template).render(**values)
    )
