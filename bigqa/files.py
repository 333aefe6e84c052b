"""Files read whole or not at all, and written aside and then renamed, so that nothing is ever half-written.

In: paths. Out: parsed JSON, or a finished file or folder; every failure is a `BigqaError` that names the path.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError


def read_text(path: Path, what: str) -> str:
    """Return a UTF-8 file's text (a byte-order mark is dropped). `what` names the file's role in an error."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise BigqaError(f"{what} not found: {path}") from None
    except IsADirectoryError:
        raise BigqaError(f"{what} is a folder, not a file: {path}") from None
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            raise BigqaError(f"{what} is cut short, in the middle of a character: {path}") from None
        raise BigqaError(f"{what} is not UTF-8 at byte {error.start}: {path}; convert it to UTF-8") from None
    except OSError as error:
        raise BigqaError(f"{what} cannot be read: {path}: {error.strerror}") from None
    if not text.strip():
        raise BigqaError(f"{what} is empty: {path}")
    return text


def read_json(path: Path, what: str) -> Any:
    """Return a JSON file's value."""
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut_short = error.pos >= len(text.rstrip()) - 1 or error.msg.startswith("Unterminated string")
        kind = "is cut short" if cut_short else "is not JSON"
        raise BigqaError(f"{what} {kind}: {path}, line {error.lineno} column {error.colno}: {error.msg}") from None
    except ValueError as error:
        raise BigqaError(f"{what} has a number that cannot be read: {path}: {error}") from None
    except RecursionError:
        raise BigqaError(f"{what} is nested too deep to be read: {path}") from None


def write_error(path: Path, error: OSError) -> BigqaError:
    """Say why nothing could be written at `path`."""
    advice = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.EACCES: "no permission to write there; choose another folder",
        errno.EPERM: "no permission to write there; choose another folder",
        errno.EROFS: "that file system is read-only; choose another folder",
        errno.ENOTDIR: "a part of that path is a file, not a folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return BigqaError(f"cannot write {path}: {advice}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, else remove it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise BigqaError(f"cannot write {path}: it is a folder")
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        _chmod_default(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` when the block ends well, else remove it.

    Raises: BigqaError where `path` exists and is not an empty folder, unless `replace`.
    """
    temporary = None
    try:
        if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
            raise BigqaError(f"{path} already exists; remove it or name another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file at once."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write a whole JSON file at once, Hangul kept readable."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _chmod_default(path: Path) -> None:
    path.chmod(0o666 & ~_umask())


def cache_folder() -> Path:
    """Where features are kept between runs: BIGQA_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("BIGQA_CACHE") or Path(base) / "bigqa")
