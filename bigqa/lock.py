"""One run at a time in a run folder. In: a folder. Out: it is held until the run ends, or a line that names who has it.

Two things hold it, since neither is enough alone:

`.lock`, under flock. The kernel drops it with the last process that has it, so a run that was killed leaves nothing to
clear up. Not fcntl's lock: that one is a process's own, is lost when the file is opened and closed anywhere in it, and
is not handed on. flock goes with the open file: the launcher hands it to its workers, and whichever lives longest
keeps the folder. NFS passes it on to its server; but other network file systems, and some mounts, keep it to one
machine or have none.

`.owner`, what that cannot tell: host, process, since when, and which boot of which kernel; its owner sets its time
every few seconds. Where flock was had and the owner is of this very boot and mount, the owner is gone: flock has said
so. Elsewhere the file's time tells, by the file system's own clock: one that is old, or that stands still while it is
watched, is of a run that is gone. It also names the lock file that it goes with (by inode), which a copy of the folder
does not have: a copy is free at once. Where each mount numbers files anew (FUSE: sshfs, s3fs, rclone), a copy is told
by its time as well; and flock says nothing there of another mount of the same folder, be it on the same machine.
An owner that finds another one's word there (it was suspended, and taken for dead) ends. Both files go when a run ends;
what is left of a killed one is taken over.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from bigqa.errors import BigqaError
from bigqa.files import write_error
from bigqa.interrupts import at_last, leave
from bigqa.language import Text, tr
from bigqa.who import boot, has_ended, room

LOCK, OWNER = ".lock", ".owner"
FILES = {LOCK, OWNER}
HANDED_ON = "BIGQA_LOCK_FD"
"""The open lock file of the launcher, in its workers."""
BEAT_S = 5.0
OLD_S = 60.0
"""Since the last beat: the owner is gone."""
WATCHED_S = 3 * BEAT_S
ENDS_S = 1.0
"""What an owner that has ended may leave behind for a moment: its threads and workers, which have its files open."""
_here: list[int] = []
"""Lock files that this process holds."""
MOUNTS = Path("/proc/self/mountinfo")
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Owner:
    """Who holds a folder."""

    host: str
    pid: int
    since: str
    boot: str
    """Of the kernel: the same for every container on it, another after a restart."""
    room: str
    """What process numbers are told apart in: a container has its own."""
    started: float
    """When the process began, which tells it from a later one of that number."""
    inode: int
    """Of the lock file; 0 where that is another one on each mount."""
    token: str
    mount: int = 0
    """The lock file's device: of its own for each mount of a network file system."""

    def __str__(self) -> str:
        return str(self.words)

    @property
    def words(self) -> Text:
        """Say who it is."""
        return tr("a run on {host}, process {pid}, since {since}", host=self.host, pid=self.pid, since=self.since)


class Held:
    """A folder that this process holds; or that its launcher does."""

    def __init__(self, folder: Path, file: int, made: list[Path]) -> None:
        self.folder, self.file, self._made = folder, file, made
        owner = read_owner(folder)
        self._token = owner.token if owner else None
        self._own = owner is not None and owner.pid == os.getpid()
        self._ended = threading.Event()
        at_last.append(self.release)
        _here.append(file)
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Let the folder go; nothing is left in it of the lock."""
        if self._ended.is_set():
            return
        self._ended.set()
        at_last.remove(self.release)
        _here.remove(self.file)
        if self._own:
            if _token(self.folder) == self._token:
                (self.folder / OWNER).unlink(missing_ok=True)
            (self.folder / LOCK).unlink(missing_ok=True)
        os.close(self.file)
        for path in self._made if self._own else ():  # for a run that came to nothing
            with contextlib.suppress(OSError):  # after the file: NFS and FUSE keep an open one under another name
                path.rmdir()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.folder / OWNER)
            found = _token(self.folder)
            if found not in (None, self._token) and not self._ended.is_set():
                leave(
                    tr(
                        "{folder} has been taken over by {owner}; this run ends",
                        folder=self.folder,
                        owner=_named(read_owner(self.folder)),
                    ),
                    1,
                )


@contextlib.contextmanager
def held(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[Held]:
    """Hold a folder, making it where it is missing. Raises: BigqaError where another run has it."""
    found = _handed_on(folder) or _taken(folder, say)
    try:
        yield found
    finally:
        found.release()


def check_free(folder: Path) -> None:
    """Look whether another run has a folder, without a trace. Raises: BigqaError that names it."""
    if not (folder / LOCK).is_file() or any(_is_open(folder, file) for file in (*_here, _handed())):
        return
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # what it cannot write there is told when it wants to
        return
    try:
        if _flocked_at_last(folder, file) is False:
            raise _in_use(folder)
    finally:
        os.close(file)


def read_owner(folder: Path) -> Owner | None:
    """Return who holds a folder, or held it."""
    try:
        return Owner(**json.loads((folder / OWNER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _token(folder: Path) -> str | None:
    owner = read_owner(folder)
    return owner.token if owner else None


def _in_use(folder: Path) -> BigqaError:
    owner = _named(read_owner(folder))
    return BigqaError(
        tr(
            "{folder} is in use by {owner}: wait for its end, stop it, or name another folder",
            folder=folder,
            owner=owner,
        )
    )


def _handed() -> int:
    """Return the open lock file that this process was started with; -1: none."""
    text = os.environ.get(HANDED_ON, "")
    return int(text) if text.isdecimal() else -1


def _is_open(folder: Path, file: int) -> bool:
    """Say whether an open file is a folder's lock."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file), (folder / LOCK).stat())
    return False


def _handed_on(folder: Path) -> Held | None:
    return Held(folder, os.dup(_handed()), made=[]) if _is_open(folder, _handed()) else None


def _taken(folder: Path, say: Callable[[str], None]) -> Held:
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file, is_flocked = _locked(folder)
    except OSError as error:
        raise write_error(folder, error) from None
    try:
        before = read_owner(folder)
        if before is not None and _lives(before, folder, file, is_flocked, say):
            raise _in_use(folder)
        _write_owner(folder, file, before)
    except BaseException:
        os.close(file)
        raise
    return Held(folder, file, made)


def _locked(folder: Path) -> tuple[int, bool]:
    """Return the open lock file, and whether flock holds it: where the file system has none, it does not."""
    while True:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            flocked = _flocked_at_last(folder, file)
            if flocked is False:
                raise _in_use(folder)
            with contextlib.suppress(FileNotFoundError):  # its last owner has removed it since it was opened
                if os.path.samestat(os.fstat(file), (folder / LOCK).stat()):
                    return file, bool(flocked)
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _flocked_at_last(folder: Path, file: int) -> bool | None:
    """Take flock, waiting a moment for one whose owner has ended already."""
    deadline = time.monotonic() + ENDS_S
    while (flocked := _flocked(file)) is False:
        if time.monotonic() > deadline or not _has_ended(read_owner(folder)):
            break
        time.sleep(0.02)
    return flocked


def _flocked(file: int) -> bool | None:
    """Take flock: true; false where another has it; none where there is no such thing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in NO_FLOCK:
            return None
        raise
    return True


def _lives(owner: Owner, folder: Path, file: int, is_flocked: bool, say: Callable[[str], None]) -> bool:
    """Say whether the owner that a folder names still runs, in that folder."""
    number = _number_of(file)
    if owner.inode and number and owner.inode != number:
        return False  # a copy
    if owner.boot == boot():
        if is_flocked and owner.mount == os.fstat(file).st_dev:
            return False
        if owner.room == room():
            return not _has_ended(owner)
    return _beats(owner, folder, say)


def _number_of(file: int) -> int:
    """Return a lock file's number on its file system; 0 where each mount, or each client, numbers files by itself."""
    found = os.fstat(file)
    device = f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}"
    with contextlib.suppress(OSError):
        for line in MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            is_its_own = kind.startswith(("fuse ", "fuse.")) or "noserverino" in kind
            if is_its_own and mount.split()[2] == device:
                return 0
    return found.st_ino


def _named(owner: Owner | None) -> Text:
    return tr("another run") if owner is None else owner.words


def _has_ended(owner: Owner | None) -> bool:
    """Say of an owner whose process can be seen from here whether that has ended."""
    if owner is None or owner.boot != boot() or owner.room != room():
        return False
    return has_ended(owner.pid, owner.started)


def _beats(owner: Owner, folder: Path, say: Callable[[str], None]) -> bool:
    first = _beat_of(folder)
    if _now_at(folder) - first > OLD_S * 1e9:
        return False
    say(
        tr(
            "{folder} was left by {owner}: watching for {seconds:.0f} s whether it lives",
            folder=folder,
            owner=owner.words,
            seconds=WATCHED_S,
        )
    )
    end = time.monotonic() + WATCHED_S
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCHED_S / 3))
        if _beat_of(folder) != first:
            return True
    return False


def _beat_of(folder: Path) -> int:
    # Opened, so that NFS asks its server.
    with (folder / OWNER).open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns


def _now_at(folder: Path) -> int:
    """Return the time by the clock of a folder's file system."""
    probe = folder / f"{OWNER}-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink(missing_ok=True)


def _write_owner(folder: Path, file: int, before: Owner | None) -> None:
    """Name this process; of two that would, one does."""
    path, me = folder / OWNER, psutil.Process()
    owner = Owner(
        host=socket.gethostname(),
        pid=me.pid,
        since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        boot=boot(),
        room=room(),
        started=me.create_time(),
        inode=_number_of(file),
        token=uuid.uuid4().hex,
        mount=os.fstat(file).st_dev,
    )
    there = read_owner(folder)
    if there is not None and (before is None or there.token != before.token):
        raise _in_use(folder)
    path.unlink(missing_ok=True)
    try:
        with path.open("x", encoding="utf-8") as written:
            written.write(json.dumps(asdict(owner), ensure_ascii=False) + "\n")
    except FileExistsError:
        raise _in_use(folder) from None
