"""One direction of imports: a module imports only from rows above its own."""

import ast
import sys
from pathlib import Path

import pytest

import bigqa

ROOT = Path(bigqa.__file__).parent
ROWS = (
    {"errors", "units", "strategy", "versions"},
    {"files", "console"},
    {"machine", "sample"},
    {"nullgpu"},
    {"rehearse"},
    {"settings", "tasks"},
    {"models"},
    {"engine"},
    {"memory"},
    {"speed"},
    {"plan"},
    {"show"},
    {"run"},
    {"bench"},
    {"table"},
    {"cli", "train", "demo"},
)
TASKS_MAY_IMPORT = {"errors", "units", "files", "console", "tasks"}


def part_of(name: str) -> str:
    return name.removeprefix("bigqa.").split(".")[0]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bigqa."):
            names.add(part_of(node.module))
        elif isinstance(node, ast.Import):
            names |= {part_of(alias.name) for alias in node.names if alias.name.startswith("bigqa.")}
    return names


def row_of(part: str) -> int:
    return next(number for number, row in enumerate(ROWS) if part in row)


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(ROOT)) for file in FILES])
def test_imports_point_one_way(file: Path) -> None:
    part = file.relative_to(ROOT).with_suffix("").parts[0]
    if part == "__init__":
        assert not imported(file)
        return
    others = imported(file) - {part}
    assert all(row_of(other) < row_of(part) for other in others), f"{part} imports {sorted(others)}"
    if part == "tasks":
        assert others <= TASKS_MAY_IMPORT


def test_the_engine_knows_no_concrete_task() -> None:
    for file in (ROOT / "engine").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "bigqa.tasks.qa" not in text and "bigqa.tasks.features" not in text, file.name


def test_no_module_hides_one_of_the_standard_library() -> None:
    # `accelerate launch bigqa/train.py` puts bigqa/ first on sys.path until train.py takes it off again.
    assert not {file.stem for file in ROOT.glob("*.py")} & set(sys.stdlib_module_names)
