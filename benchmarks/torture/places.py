"""Where a run lies, and what can be done to that. In: a folder. Out: a disk that fills, goes away and comes back.

As root a disk is a file system of its own in memory, mounted where no other process sees it, and a group of processes
has a limit of memory. Otherwise it is a folder that is renamed, and kinds that need more are left out (`is_root`).
"""

import contextlib
import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

MS_BIND, MS_PRIVATE, MS_REC, MNT_DETACH, CLONE_NEWNS = 4096, 1 << 18, 16384, 2, 0x20000
SIZE_MIB = 96
GROUPS = Path("/sys/fs/cgroup/memory")
"""Version 1's hierarchy of memory; version 2's is the folder above it."""
_libc = ctypes.CDLL(None, use_errno=True)


def own_mounts() -> bool:
    """Give this process and its forks mounts that nobody else sees; return whether they may have any."""
    if os.geteuid() != 0 or _libc.unshare(CLONE_NEWNS) != 0:
        return False
    return bool(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0)


def has_groups() -> bool:
    """Whether a group of processes can be made that has a limit of memory."""
    return os.geteuid() == 0 and (GROUPS / "memory.limit_in_bytes").is_file()


def _mount(source: Path | str, target: Path, kind: str, flags: int, options: str = "") -> None:
    words = (str(source).encode(), str(target).encode(), kind.encode())
    if _libc.mount(*words, flags, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


class Place:
    """One case's folders: `disk` with the run and the cache, `data` beside it."""

    def __init__(self, folder: Path, *, mounts: bool, groups: bool) -> None:
        self.folder, self.mounts, self.groups = folder, mounts, groups
        self.disk, self.under = folder / "disk", folder / "under"
        self.run, self.cache = self.disk / "run", self.disk / "cache"
        self.data = folder / "train.json"
        self._group = GROUPS / f"bigqa-torture-{os.getpid()}-{folder.name}"

    def make(self, data: Path) -> None:
        """Make it anew."""
        self.remove()
        self.disk.mkdir(parents=True)
        shutil.copyfile(data, self.data)
        if self.mounts:
            self.under.mkdir()
            _mount("none", self.under, "tmpfs", 0, f"size={SIZE_MIB}m")
            _mount(self.under, self.disk, "", MS_BIND)
        if self.groups:
            self._group.mkdir(exist_ok=True)

    def remove(self) -> None:
        """Leave nothing behind."""
        for target in (self.disk, self.disk, self.under):
            _libc.umount2(str(target).encode(), MNT_DETACH)
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._group.is_dir():
            self._empty_group()

    def mend(self, data: Path) -> None:
        """Undo what is wrong with disk and data; the run's own files stay as they are."""
        self.bring_back()
        self.make_room()
        shutil.copyfile(data, self.data)

    def fill(self, left: int) -> None:
        """Fill the disk up to so many bytes."""
        found = os.statvfs(self.disk)
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - left))

    def make_room(self) -> None:
        """Do what a full disk's owner does who is asked for room."""
        (self.disk / "ballast").unlink(missing_ok=True)

    def take_away(self) -> None:
        """Take the disk away: what is left is an empty folder."""
        if self.mounts:
            _libc.umount2(str(self.disk).encode(), MNT_DETACH)
        else:
            self.disk.rename(self.under)
            self.disk.mkdir()

    def bring_back(self) -> None:
        """Put the disk back where it is away."""
        if self.mounts:
            if not os.path.ismount(self.disk):
                shutil.rmtree(self.disk)
                self.disk.mkdir()
                _mount(self.under, self.disk, "", MS_BIND)
        elif self.under.is_dir():
            shutil.rmtree(self.disk)
            self.under.rename(self.disk)

    def enter_group(self, limit: int) -> None:
        """Put this process into a group of processes with little memory: the kernel kills what wants more."""
        (self._group / "memory.limit_in_bytes").write_text(str(limit), encoding="utf-8")
        (self._group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")

    def cached(self) -> list[Path]:
        """Return the files of features."""
        return sorted(self.cache.rglob("*.arrow"))

    def _empty_group(self) -> None:
        for _ in range(100):
            for pid in (self._group / "cgroup.procs").read_text(encoding="utf-8").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                self._group.rmdir()
                return
            time.sleep(0.02)
