"""bigqa: a memory-constrained training engine for large models.

Rooms: what is there (`machine`), what would it take (`memory`, `speed`), what to do (`plan`), do it (`engine`, `run`),
how good was it (`bench`, `table`), what people see (`show`, `cli`); and what it is about: `models`, `tasks`, `sample`.
Each says in its docstring what it knows and what it imports. Words that all rooms use lie at the door.

Public names are those of `__all__`; what else can be imported may change without notice.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.2.0"

PUBLIC = {
    "BigqaError": "bigqa.errors",
    "Question": "bigqa.plan.question",
    "probe": "bigqa.notebook.probing",
    "need": "bigqa.plan.need",
    "STRATEGIES": "bigqa.strategy",
    "Strategy": "bigqa.strategy",
    "Settings": "bigqa.settings",
    "fine_tune": "bigqa.run.fine_tuning",
}
"""Public name -> where it lives; imported when it is asked for, so that `import bigqa` costs nothing."""
CALLED = {"train": "bigqa.notebook.training", "rehearse": "bigqa.notebook.rehearsing"}
"""The same of functions whose names are those of modules: the module is called, and calls them."""
__all__ = ["__version__", *PUBLIC, *CALLED]


class _AlsoCalled(ModuleType):
    """A module that a public function has the name of."""

    def __call__(self, *words: Any, **options: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module(CALLED[name]), name)(*words, **options)


def also_called(name: str) -> None:
    """Let a module be called as the public function of its name."""
    sys.modules[name].__class__ = _AlsoCalled


def __getattr__(name: str) -> Any:
    if name in CALLED:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
