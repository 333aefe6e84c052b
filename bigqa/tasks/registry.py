"""Tasks by name. In: a word of the command line, or a model's folder. Out: its `TaskKind`.

A folder of `bigqa/tasks/` that holds a `kind.py` is a task of that name. Today's words for kinds of question-answering
data are words for `qa`: what a file holds is told by its content, so that nothing else follows from them.
"""

import importlib
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError, UsageError
from bigqa.language import tr
from bigqa.tasks.base import TaskKind

FOLDER = Path(__file__).parent
DEFAULT = "qa"
"""Where nothing says which: what bigqa began with."""
OLDER = {"korquad1": "qa", "korquad2": "qa", "squad": "qa", "squad2": "qa"}
"""Words for kinds of data -> the task that reads them."""
WANTS_DATA = {"korquad2"}
"""Words for data whose windows cannot be told without them: whole articles."""
_added: dict[str, TaskKind[Any]] = {}


def names() -> list[str]:
    """Return the names of all tasks, those added last."""
    return [*sorted(file.parent.name for file in FOLDER.glob("*/kind.py")), *_added]


def add(kind: TaskKind[Any]) -> None:
    """Add a task of this process."""
    _added[kind.name] = kind


def kind_of(name: str) -> TaskKind[Any]:
    """Return a task by its name. Raises: UsageError where there is none."""
    name = OLDER.get(name, name)
    if name in _added:
        return _added[name]
    if name not in names():
        raise UsageError(tr("no task {name}; choose one of {names}", name=name, names=", ".join(names())))
    found: TaskKind[Any] = importlib.import_module(f"bigqa.tasks.{name}.kind").KIND
    return found


def kind_of_config(config: Any, what: str) -> TaskKind[Any]:
    """Return the task that a model was trained on, as the names of its classes tell. Raises: BigqaError."""
    classes = list(getattr(config, "architectures", None) or [])
    for kind in map(kind_of, names()):
        if any(kind.is_of(one, config) for one in classes):
            return kind
    told = tr("its classes are {classes}", classes=", ".join(classes)) if classes else tr("its config names no class")
    raise BigqaError(
        tr(
            "{what}: which task is it trained on? {told}; say --task {names}",
            what=what,
            told=told,
            names="|".join(names()),
        )
    )
