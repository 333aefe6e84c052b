"""One thing that matters here. In: what was found. Out: whether it is well, or what it costs and how to mend it."""

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "costs", "broken"]
PATH = re.compile(r"(?<![\w.])~?(?:/[^\s:'\",)]+)+/?")


@dataclass(frozen=True)
class Finding:
    """One line of the page. `cost`: nothing where all is well."""

    name: str
    found: str
    cost: str = ""
    mend: str = ""
    broken: bool = False
    """Whether nothing can be trained like this."""

    @property
    def state(self) -> State:
        """Return how it is."""
        return "broken" if self.broken else "costs" if self.cost else "ok"


def bare(error: BaseException | str) -> str:
    """Return an error's first line without the folders that it names."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return PATH.sub(lambda path: path[0].rstrip("/").rpartition("/")[2], text)[:200]
