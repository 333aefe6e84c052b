"""Locks of builds that were killed. In: torch's folder of compiled extensions. Out: the same, without them.

DeepSpeed compiles parts of itself at their first use, under a lock that is a file (torch's `FileBaton`). A build that
is killed leaves the file behind, and whoever wants that part afterwards waits for it for ever and says nothing.
"""

import contextlib
import os
from pathlib import Path


def drop_stale_locks() -> None:
    """Remove the locks that no process holds: a build keeps its lock open."""
    locks = [lock for root in _roots() for lock in root.glob("lock")]
    for lock in locks:
        with contextlib.suppress(OSError):  # it was released meanwhile
            if not _is_open(lock):
                lock.unlink()


def _roots() -> list[Path]:
    """Return the folders of extensions, each of a part; as `torch.utils.cpp_extension._get_build_directory`."""
    from torch.utils.cpp_extension import get_default_build_root

    own = os.environ.get("TORCH_EXTENSIONS_DIR")
    return list(Path(own).glob("*") if own else Path(get_default_build_root()).glob("*/*"))


def _is_open(file: Path) -> bool:
    """Whether a process of this machine has a file open; true where that cannot be told."""
    known = file.stat()
    processes = list(Path("/proc").glob("[0-9]*/fd"))
    for folder in processes:
        with contextlib.suppress(OSError):  # another user's, or gone
            for opened in folder.iterdir():
                with contextlib.suppress(OSError):
                    if os.path.samestat(opened.stat(), known):
                        return True
    return not processes
