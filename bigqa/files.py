"""Files read whole or not at all, and written aside and then renamed, so that nothing is ever half-written.

In: paths. Out: parsed JSON, or a finished file or folder; every failure is a `BigqaError` that names the path.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.contents import HEAD_BYTES, what_else, what_encoding
from bigqa.errors import BigqaError
from bigqa.interrupts import temporaries, undivided
from bigqa.language import shown, tr

AT_FDCWD, RENAME_EXCHANGE = -100, 2
PIECE_BYTES = 1 << 20


def read_text(path: Path, what: str) -> str:
    """Return a UTF-8 file's text (a byte-order mark is dropped). `what` names the file's role in an error."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BigqaError(tr("{what} not found: {path}", what=what, path=path)) from None
    except IsADirectoryError:
        raise BigqaError(tr("{what} is a folder, not a file: {path}", what=what, path=path)) from None
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise unreadable(path, what, error) from None
    return decoded(content, path, what)


def unreadable(path: Path, what: str, error: OSError | ValueError) -> BigqaError:
    """Return what says why a file cannot be read."""
    problem = getattr(error, "strerror", None) or error
    return BigqaError(tr("{what} cannot be read: {path}: {problem}", what=what, path=path, problem=problem))


def decoded(content: bytes, path: Path | str, what: str) -> str:
    """Return bytes as UTF-8 text. Raises: BigqaError where they are something else, or nothing."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _name_it(content, path, what)
        if error.reason == "unexpected end of data":
            raise BigqaError(
                tr("{what} is cut short, in the middle of a character: {path}", what=what, path=path)
            ) from None
        raise BigqaError(
            tr(
                "{what} is not UTF-8 at byte {start}: {path}: it is {encoding}",
                what=what,
                start=error.start,
                path=path,
                encoding=what_encoding(content),
            )
        ) from None
    if not text.strip():
        raise BigqaError(tr("{what} is empty: {path}", what=what, path=path))
    return text


def read_json(path: Path, what: str) -> Any:
    """Return a JSON file's value."""
    return parsed(read_text(path, what), path, what)


def sha256(path: Path) -> str:
    """Return the digest of a file. Raises: OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of ours with one on each line; none of a file that is not there.

    A line that is none (a disk failed, the power did) is passed over: what a run did is not worth more than the run.
    """
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [one for one in found if isinstance(one, dict)]


def parsed(text: str, path: Path | str, what: str) -> Any:
    """Return the value of JSON text. Raises: BigqaError that says where it breaks off, or what it is instead."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        _name_it(text[:HEAD_BYTES].encode("utf-8", "replace"), path, what)
        place = tr("{path}, line {line} column {column}", path=path, line=error.lineno, column=error.colno)
        if error.msg == "Extra data" and text.lstrip().startswith(("{", "[")):
            advice = tr("write each on a line of its own (JSON lines), or all in one list")
            raise BigqaError(
                tr(
                    "{what} is more than one JSON value: the next is at {place}; {advice}",
                    what=what,
                    place=place,
                    advice=advice,
                )
            ) from None
        kind = _kind_of(error, text)
        raise BigqaError(
            tr("{what} {kind}: {place}: {problem}", what=what, kind=kind, place=place, problem=error.msg)
        ) from None
    except ValueError as error:
        raise BigqaError(
            tr("{what} has a number that cannot be read: {path}: {error}", what=what, path=path, error=error)
        ) from None
    except RecursionError:
        raise BigqaError(tr("{what} is nested too deep to be read: {path}", what=what, path=path)) from None


def _kind_of(error: json.JSONDecodeError, text: str) -> str:
    """Say whether JSON breaks off, or is none: a bracket too many is at its end as well."""
    text = text.rstrip()
    at_the_end = error.pos >= len(text) or (error.pos == len(text) - 1 and text[-1] not in "}]")
    return tr("is cut short") if at_the_end or error.msg.startswith("Unterminated string") else tr("is not JSON")


def _name_it(content: bytes, path: Path | str, what: str) -> None:
    """Raise what is known of a file that is no JSON."""
    said = what_else(content[:HEAD_BYTES], str(path))
    if said is not None:
        raise BigqaError(tr("{what} is {said}: {path}", what=what, said=said, path=path))


def as_it_lies(path: str) -> str:
    """Return a path by the names that are on the disk: a Mac takes Hangul apart (NFD), and what is typed is whole."""
    if path.isascii() or os.path.lexists(path):
        return path
    there = Path(Path(path).anchor)
    for part in Path(path).relative_to(there).parts:
        names = os.listdir(there) if there.is_dir() and not os.path.lexists(there / part) else []
        form = unicodedata.normalize("NFC", part)
        there /= next((name for name in names if unicodedata.normalize("NFC", name) == form), part)
    return str(there) if os.path.lexists(there) or os.path.lexists(there.parent) else path


def write_error(path: Path, error: OSError) -> BigqaError:
    """Say why nothing could be written at `path`."""
    advice = {
        errno.ENOSPC: tr("the disk is full; free some space or choose another folder"),
        errno.EDQUOT: tr("the disk quota is used up; free some space or choose another folder"),
        errno.EACCES: tr("no permission to write there; choose another folder"),
        errno.EPERM: tr("no permission to write there; choose another folder"),
        errno.EROFS: tr("that file system is read-only; choose another folder"),
        errno.ENOTDIR: tr("a part of that path is a file, not a folder"),
        errno.ELOOP: tr("it is a symbolic link, which could lead out of its folder; remove it"),
    }.get(error.errno or 0, error.strerror or str(error))
    return BigqaError(tr("cannot write {path}: {advice}", path=path, advice=advice))


def check_outputs(*paths: Path | None) -> None:
    """Refuse files that could not be written, before minutes are spent on what they should hold. Raises: BigqaError."""
    for path in filter(None, paths):
        if path.is_dir():
            raise BigqaError(tr("cannot write {path}: it is a folder", path=path))
        there = next(parent for parent in path.absolute().parents if parent.exists())
        if not there.is_dir():
            raise write_error(path, NotADirectoryError(errno.ENOTDIR, ""))
        if not os.access(there, os.W_OK):
            raise write_error(path, PermissionError(errno.EACCES, ""))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well, else remove it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise BigqaError(tr("cannot write {path}: it is a folder", path=path))
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        temporaries.add(temporary)
        yield temporary
        _chmod_default(temporary)
        durable(temporary)
        os.replace(temporary, path)
        durable(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
            temporaries.discard(temporary)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` when the block ends well, else remove it.

    Raises: BigqaError where `path` exists and is not an empty folder, unless `replace`.
    """
    temporary = None
    try:
        if path.exists() and not replace and (not path.is_dir() or any(path.iterdir())):
            raise BigqaError(tr("{path} already exists; remove it or name another folder", path=path))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        temporaries.add(temporary)
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in (*names, ""):
                durable(Path(folder, name))
        with undivided():
            put_in_place(temporary, path)
        durable(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
            temporaries.discard(temporary)


def opened_to_add(path: Path) -> int:
    """Open a file to be added to, by its descriptor. A link is not followed: a folder may be somebody else's.

    Raises: OSError; ELOOP of a link.
    """
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def durable(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on the disk itself: a rename may get there before.

    After a power cut a file that was renamed at once is there under its name, empty. Raises: OSError of a disk that
    fails; what a file system does not offer (drives over a network know no folders to wait for) is passed over.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a folder to `path`; one that is there is never gone before the new one is there, and goes afterwards."""
    if not path.exists():
        os.replace(temporary, path)
    elif _exchanged(temporary, path):
        shutil.rmtree(temporary)
    else:
        aside = temporary.with_name(f"{temporary.stem}.old{temporary.suffix}")
        os.replace(path, aside)
        os.replace(temporary, path)
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once, where system and file system can.

    Source: https://man7.org/linux/man-pages/man2/renameat2.2.html
    """
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) == 0


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


def asked_cache() -> Path:
    """Return the folder that is asked for to keep things in: BIGQA_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.path.expanduser(os.environ.get("BIGQA_CACHE") or Path(base) / "bigqa"))


def cache_folder() -> Path:
    """Return the folder that features are kept in between runs: the one asked for where it can be written.

    Else a temporary folder of this user; that is said once, on standard error.
    """
    folder = asked_cache()
    reason = tr("there is no home folder") if folder.parts[0] == "~" else _unwritable(folder)
    return _instead(folder, reason) if reason else folder


def _unwritable(folder: Path) -> str:
    """Say why nothing can be written into a folder, which may not be there yet; or nothing."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        return tr("{there} is no folder", there=there)
    return "" if os.access(there, os.W_OK | os.X_OK) else tr("it cannot be written")


@functools.cache
def _instead(folder: Path, reason: str) -> Path:
    temporary = Path(tempfile.gettempdir()) / f"bigqa-{os.getuid()}"
    with contextlib.suppress(OSError):
        temporary.mkdir(mode=0o700)
    # Its name can be foretold: a folder that another user made under it is none of ours.
    is_ours = temporary.is_dir() and not temporary.is_symlink() and temporary.stat().st_uid == os.getuid()
    chosen = temporary if is_ours and not _unwritable(temporary) else Path(tempfile.mkdtemp(prefix="bigqa-"))
    if os.environ.get("RANK", "0") == "0":
        told = tr(
            "no cache in {folder} ({reason}): {chosen} instead; BIGQA_CACHE names another",
            folder=folder,
            reason=reason,
            chosen=chosen,
        )
        print("bigqa: " + shown(told), file=sys.stderr)
    return chosen
