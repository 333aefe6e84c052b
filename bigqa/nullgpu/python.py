"""The Python that a command runs in, without starting the command. In: its words. Out: the interpreter, and its torch.

Nothing here imports torch: what a build is stands in its `version.py`.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bigqa.errors import BigqaError, UsageError
from bigqa.language import tr

ASK = """
import importlib.util, json, sys
spec = importlib.util.find_spec("torch")
print(json.dumps([sys.executable, sys.version_info[:2], [p for p in sys.path if p], spec and spec.origin]))
"""


@dataclass(frozen=True)
class TorchBuild:
    """A torch as it is installed."""

    folder: Path
    """Where its package folder is."""
    version: str
    """Such as 2.13.0+cu130."""
    cuda: str | None
    hip: str | None

    @property
    def public(self) -> str:
        """The version without its build: 2.13.0."""
        return self.version.partition("+")[0]


@dataclass(frozen=True)
class Interpreter:
    """A Python and what it finds."""

    executable: Path
    version: tuple[int, int]
    paths: tuple[Path, ...]
    torch: TorchBuild | None


def ask(executable: Path) -> Interpreter:
    """Ask a Python what it is.

    Raises: BigqaError.
    """
    done = subprocess.run([str(executable), "-c", ASK], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BigqaError(
            tr(
                "{executable} is no Python that works: {problem}",
                executable=executable,
                problem=(done.stderr.strip().splitlines() or [""])[-1],
            )
        )
    name, version, paths, origin = json.loads(done.stdout.splitlines()[-1])
    torch = read_build(Path(origin).parent) if origin else None
    return Interpreter(Path(name), (version[0], version[1]), tuple(map(Path, paths)), torch)


def read_build(package: Path) -> TorchBuild:
    """Read `torch/version.py`."""
    found: dict[str, str | None] = {}
    try:
        tree = ast.parse((package / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError) as error:
        raise BigqaError(
            tr("no version in {package}: {error}; install torch anew", package=package, error=error)
        ) from None
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                found[target.id] = node.value.value  # type: ignore[assignment]
    return TorchBuild(package.parent, found.get("__version__") or "?", found.get("cuda"), found.get("hip"))


def interpreter_of(words: Sequence[str]) -> Interpreter:
    """Return the Python that a command's first word starts; this where that has no torch and was named by no path.

    Raises: UsageError where there is no such command.
    """
    program = shutil.which(words[0]) or shutil.which(words[0], path=str(Path(sys.executable).parent))
    if program is None:
        raise UsageError(tr("no such command: {words}", words=words[0]))
    found = ask(_python_of(Path(program)))
    is_by_name = os.sep not in words[0]
    return ask(Path(sys.executable)) if found.torch is None and is_by_name else found


def _python_of(program: Path) -> Path:
    """A Python is its own; a script's is in its first line; of anything else this one is taken."""
    if program.resolve().name.startswith(("python", "pypy")):
        return program
    with program.open("rb") as file:
        first = file.readline(4096).decode(errors="replace").strip()
    for word in first.removeprefix("#!").split() if first.startswith("#!") else ():
        name = Path(word).name
        if name.startswith("python"):
            found = word if os.sep in word else shutil.which(word)
            if found:
                return Path(found)
    return Path(sys.executable)
