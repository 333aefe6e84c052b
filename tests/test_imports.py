"""Each room keeps what its docstring says: what it imports of bigqa, and what it never imports; nothing in a circle."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bigqa

ROOT = Path(bigqa.__file__).parent
ENTRIES = {
    "train": "console, errors, interrupts, machine, engine, plan, run",
    "demo": "console, errors, files, interrupts, lock, models, sample, show, tasks, units",
}
"""At the door too, since their names come from outside; they import rooms."""
EVERYWHERE = {"language"}
"""What every room may import without saying so: whoever has something to say needs it."""
FILES = sorted(ROOT.rglob("*.py"))
ROOMS = sorted(file.parent for file in FILES if file.name == "__init__.py" and file.parent != ROOT)


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file) for file in FILES}


def imported(file: Path) -> set[str]:
    """Return what a file imports, wherever in it: bigqa's modules without "bigqa.", others by their first name."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    ours = {name.removeprefix("bigqa.") for name in names if name.startswith("bigqa.")} & MODULES
    return ours | {name.split(".")[0] for name in names if name.split(".")[0] != "bigqa"}


def rule(room: Path, kind: str) -> set[str]:
    """Return the names that a room's docstring gives after "Imports:" or "Never:"."""
    text = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    found = re.search(rf"\b{kind}: ([\w.,\s]*\w)\.(?:\s|$)", text)
    return {name.strip() for name in found[1].split(",")} if found else set()


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("room", ROOMS, ids=module_of)
def test_a_room_imports_what_it_says(room: Path) -> None:
    own = {module_of(room / "__init__.py")} | EVERYWHERE
    allowed = rule(room, "Imports")
    assert allowed, f"{room.name}/__init__.py does not say what it imports"
    for file in room.rglob("*.py"):
        ours = imported(file) & MODULES
        strange = {name for name in ours if not within(name, own | allowed) and name not in parents(allowed)}
        assert not strange, f"{module_of(file)} imports {sorted(strange)}"
        assert not imported(file) & rule(room, "Never"), module_of(file)


def parents(names: set[str]) -> set[str]:
    """Return the packages that lie around: `from bigqa.engine import lazy` names engine too."""
    return {name.rpartition(".")[0] for name in names}


def test_what_lies_at_the_door_imports_no_room() -> None:
    door = {module_of(file) for file in ROOT.glob("*.py")} - set(ENTRIES)
    for file in ROOT.glob("*.py"):
        name = module_of(file)
        allowed = EVERYWHERE | ({one.strip() for one in ENTRIES[name].split(",")} if name in ENTRIES else door)
        assert all(within(other, allowed) for other in imported(file) & MODULES), name


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {module_of(file): imported(file) & MODULES - parents({module_of(file)}) for file in FILES}
    graph.pop("__init__", None)
    tuple(graphlib.TopologicalSorter({name: others - {name} for name, others in graph.items()}).static_order())


def test_the_engine_knows_no_concrete_task() -> None:
    concrete = {"tasks.qa.task", "tasks.features"}
    assert not [file for file in (ROOT / "engine").rglob("*.py") if imported(file) & concrete]


def test_no_module_hides_one_of_the_standard_library() -> None:
    # Run as a file, bigqa/train.py puts bigqa/ first on sys.path until train.py takes it off again.
    # A folder that is no package, such as that of the catalogues, hides none.
    names = {path.stem for path in ROOT.iterdir() if path.is_file() or (path / "__init__.py").is_file()}
    assert not names & set(sys.stdlib_module_names)


def test_files_and_functions_are_small() -> None:
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, module_of(file)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{module_of(file)}: {node.name}"


def test_public_names_are_there_and_cost_nothing() -> None:
    assert all(getattr(bigqa, name) is not None for name in bigqa.__all__)
    with pytest.raises(AttributeError):
        _ = bigqa.no_such_name
    code = "import bigqa, sys; assert bigqa.__version__; sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
