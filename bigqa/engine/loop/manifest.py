"""What seals a checkpoint: each file's size and SHA-256, and what wrote them. In: a folder. Out: `manifest.json`.

The manifest seals itself too, so that any byte of a checkpoint that changes is seen. Checkpoints of before have digests
alone, in `checksums.json`; they are read as ever.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.files import read_json, sha256, write_json
from bigqa.language import tr
from bigqa.versions import versions

FILE, BEFORE = "manifest.json", "checksums.json"
FILES = {"weights.safetensors", "adam.safetensors", "state.json"}
"""What every checkpoint holds."""


def write(
    folder: Path, digests: Mapping[str, str], settings: Mapping[str, Any], step: int, plan: Mapping[str, Any]
) -> None:
    """Seal the files of a folder. `digests`: of those that were told while they were written; others are read."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": digests.get(file.name) or sha256(file)}
        for file in sorted(folder.iterdir())
    }
    origin = settings.get("origin") or {}
    content = {
        "schema": 1,
        "step": step,
        "files": files,
        "versions": versions(),
        "plan": dict(plan),
        "data": origin.get("train_file"),
    }
    write_json(folder / FILE, content | {"seal": _seal(content)})


def check(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each file of a checkpoint, and what is wrong with it. Raises: BigqaError where it is not sealed."""
    for name, (digest, size) in _sealed(path).items():
        file = path / name
        if name != Path(name).name or not file.is_file():
            yield name, tr("it is not there")
        elif size is not None and file.stat().st_size != size:
            yield name, tr("it has {found} bytes, and had {size}", found=file.stat().st_size, size=size)
        else:
            yield name, None if sha256(file) == digest else tr("it does not match its checksum")


def check_all(path: Path) -> set[str]:
    """Return the names of a checkpoint's files. Raises: BigqaError where one of them is not as it was written."""
    names = set()
    for name, problem in check(path):
        if problem is not None:
            raise damaged(path, f"{name}: {problem}")
        names.add(name)
    return names


def damaged(path: Path, what: str) -> BigqaError:
    """Say that a checkpoint is not what was saved."""
    return BigqaError(tr("the checkpoint {path} is damaged: {what}", path=path, what=what))


def _sealed(path: Path) -> dict[str, tuple[Any, Any]]:
    """Return digest and size of each file, as they were when it was saved; a file may say anything."""
    files: dict[str, tuple[Any, Any]]
    if not (path / FILE).is_file() and (path / BEFORE).is_file():
        found = read_json(path / BEFORE, tr("the checkpoint's checksums"))
        files = {name: (digest, None) for name, digest in found.items()} if isinstance(found, dict) else {}
        name = BEFORE
    else:
        name = FILE
        found = read_json(path / FILE, tr("the checkpoint's manifest"))
        if not isinstance(found, dict) or found.pop("seal", None) != _seal(found):
            raise damaged(path, tr("{name} does not match its own seal", name=name))
        of_files = found.get("files")
        files = {}
        if isinstance(of_files, dict) and all(isinstance(one, dict) for one in of_files.values()):
            files = {name: (one.get("sha256"), one.get("bytes")) for name, one in of_files.items()}
    if not files.keys() >= FILES:
        raise damaged(path, tr("{name} does not seal {files}", name=name, files=", ".join(sorted(FILES))))
    return files


def _seal(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
