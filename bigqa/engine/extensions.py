"""What DeepSpeed compiles of itself. In: torch's folder of compiled extensions. Out: the same, fit to be used.

It compiles a part at the part's first use, for a minute or two, under a lock that is a file (torch's `FileBaton`). A
build that is killed leaves the file behind, and whoever wants that part afterwards waits for it for ever and says
nothing. `python -m bigqa.engine.extensions` compiles ahead of the first use.
"""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from bigqa.language import shown, tr

PARTS = ("CPUAdamBuilder", "ShareMemCommBuilder")
"""Adam of optimizers that are offloaded; and what DeepSpeed's collectives on a CPU build as they start."""
LONGEST_BUILD_S = 600


def make_ready() -> None:
    """Let DeepSpeed find the ninja that is installed beside Python, and no lock that nobody holds.

    A Python that is called by its path, without its environment being activated, does not see it.
    """
    beside, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if beside not in path.split(os.pathsep):
        os.environ["PATH"] = f"{path}{os.pathsep}{beside}"
    drop_stale_locks()


def compile_ahead() -> None:
    """Compile what this machine's training may want, where it is not compiled. Raises: whatever compilers raise."""
    make_ready()
    from deepspeed.accelerator import get_accelerator

    builders: list[Any] = [get_accelerator().create_op_builder(name) for name in PARTS]
    for builder in builders:
        if builder is not None and builder.is_compatible(verbose=False):
            builder.load(verbose=False)


def compiled(name: str) -> bool:
    """Whether a part, such as cpu_adam, is compiled."""
    return any((root / f"{name}.so").is_file() for root in _roots() if root.name == name)


def drop_stale_locks() -> None:
    """Remove the locks that no process holds: a build keeps its lock open.

    Of several machines, which may share the folder, one that is not old may be another's.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    shared = int(count) > int(os.environ.get("LOCAL_WORLD_SIZE", count))
    locks = [lock for root in _roots() for lock in root.glob("lock")]
    for lock in locks:
        with contextlib.suppress(OSError):  # it was released meanwhile
            is_old = time.time() - lock.stat().st_mtime > LONGEST_BUILD_S
            if not _is_open(lock) and (is_old or not shared):
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


def main() -> None:
    """Compile, or say in a line why not: DeepSpeed tries again where a training wants it."""
    try:
        compile_ahead()
    except ImportError:
        print("bigqa: " + shown(tr("DeepSpeed is not installed: nothing to compile")))
    except Exception as error:  # a compiler that is missing or fails has many ways to say so
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        told = tr(
            "DeepSpeed's parts are not compiled ({reason}); optimizers that are offloaded will need them", reason=reason
        )
        print("bigqa: " + shown(told))


if __name__ == "__main__":
    main()
