"""Damage to one file: any file, any byte. In: a folder, random numbers. Out: what was done, in words.

Whatever lies in the folder is drawn from, so that another form of it needs nothing new here.
"""

import os
import random
import shutil
from pathlib import Path

WAYS = ("flip", "cut", "zero", "append", "delete", "empty", "swap")


def damage(folder: Path, draw: random.Random, other: Path | None = None) -> str:
    """Damage one file of a folder. `other`: a folder whose file of that name may take its place."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    file, way = draw.choice(files), draw.choice(WAYS)
    size = file.stat().st_size
    at = draw.randrange(max(1, size))
    theirs = other / file.relative_to(folder) if other is not None else None
    if way == "swap" and (theirs is None or not theirs.is_file() or theirs.read_bytes() == file.read_bytes()):
        way = "flip"
    if size == 0 and way not in ("append", "delete"):
        way = "append"
    content = file.read_bytes()
    if way == "flip":
        content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    elif way == "cut":
        content = content[:at]
    elif way == "zero":
        length = min(size - at, draw.choice((1, 512, 4096)))
        if not any(content[at : at + length]):
            content = content[:at] + b"\1" + content[at + 1 :]
        else:
            content = content[:at] + bytes(length) + content[at + length :]
    elif way == "append":
        content += draw.randbytes(draw.choice((1, 4096)))
    elif way == "empty":
        content = b""
    if way == "delete":
        file.unlink()
    elif way == "swap" and theirs is not None:
        _replaced(file, theirs.read_bytes())
    else:
        _replaced(file, content)
    return f"{way} {file.relative_to(folder.parent)} at {at} of {size}"


def _replaced(file: Path, content: bytes) -> None:
    """Write under the same name, and not into the same file: a copy of it may be a link."""
    new = file.with_name(file.name + ".new")
    new.write_bytes(content)
    shutil.copymode(file, new)
    os.replace(new, file)
