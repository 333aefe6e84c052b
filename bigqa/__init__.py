"""bigqa: a memory-constrained training engine for large models.

Rooms: what is there (`machine`), what would it take (`memory`, `speed`), what to do (`plan`), do it (`engine`, `run`),
how good was it (`bench`, `table`), what people see (`show`, `cli`); and what it is about: `models`, `tasks`, `sample`.
Each says in its docstring what it knows and what it imports. Words that all rooms use lie at the door.

Public names are those of `__all__`; what else can be imported may change without notice.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

PUBLIC = {
    "BigqaError": "bigqa.errors",
    "Question": "bigqa.plan.question",
    "probe": "bigqa.plan.probe",
    "need": "bigqa.plan.need",
    "STRATEGIES": "bigqa.strategy",
    "Strategy": "bigqa.strategy",
    "Settings": "bigqa.settings",
    "fine_tune": "bigqa.run.fine_tuning",
}
"""Public name -> where it lives; imported when it is asked for, so that `import bigqa` costs nothing."""
__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
