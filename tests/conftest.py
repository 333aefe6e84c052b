"""What the tests share: the folder of data and recorded cases that is kept outside the repository, and one rule.

A process that a test starts ends with the test; see `leftovers`.
"""

import contextlib
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leftovers
import pytest

from bigqa.files import asked_cache
from bigqa.machine import heap

# Test processes side by side share the cores: threads that wait for each other by spinning would cost each one tenfold.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    THREADS = str(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ |= {"OMP_NUM_THREADS": THREADS, "BIGQA_THREADS": THREADS, "BIGQA_WORKERS": THREADS}
os.environ.pop("COLUMNS", None)  # which says how wide the terminal of these tests is, and not of what they run
os.environ["BIGQA_LANG"] = "en"  # whatever the machine's locale is; tests of Korean ask for it
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, here or by a process that a test starts
KEPT = pytest.StashKey[tuple[Path, str | None]]()
MISSING = "the shared folder is not here"


CACHE = "BIGQA_CACHE"


def pytest_configure(config: pytest.Config) -> None:
    """Watch over processes. One cache for the whole suite, which is nobody's: what one test traced, no other does."""
    leftovers.watch(config)
    if not hasattr(config, "workerinput"):  # those have it from here
        folder = Path(tempfile.mkdtemp(prefix="bigqa-tests-"))
        with contextlib.suppress(OSError):  # torch's CUDA build of the null GPU is too large for one of its own
            (folder / "nullgpu").symlink_to(asked_cache() / "nullgpu")
        config.stash[KEPT] = folder, os.environ.get(CACHE)
        os.environ[CACHE] = str(folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what `pytest_configure` made."""
    if (found := config.stash.get(KEPT, None)) is not None:
        shutil.rmtree(found[0], ignore_errors=True)
        os.environ.pop(CACHE)
        if found[1] is not None:
            os.environ[CACHE] = found[1]


LONGEST = ["strategies", "probe", "bench", "planner", "train", "out_of_memory", "committed", "null_cells", "launch",
           "leftovers", "stream", "memory", "cli", "package", "korquad2", "on_disk", "inspection"]  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest go first: the last ones, which end alone, are short."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


def pytest_collection_finish() -> None:
    """What the tests import stays: no collection looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _heap() -> Iterator[None]:
    """A run within this process may keep freed memory: the next test finds it as it was."""
    yield
    heap.hand_back()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the shared folder: `BIGQA_SHARED`, else `shared` beside the checkout."""
    folder = Path(os.environ.get("BIGQA_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"{MISSING}: {folder}")
    return folder


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say once what could not be tested without the shared folder."""
    skipped = [one for one in terminalreporter.stats.get("skipped", []) if MISSING in str(one.longrepr)]
    if skipped:
        files = sorted({Path(one.nodeid.split("::")[0]).name for one in skipped})
        folder = str(skipped[0].longrepr[2]).rpartition(f"{MISSING}: ")[2]
        text = f"{len(skipped)} tests want {folder}, which is not there (BIGQA_SHARED names it): of {', '.join(files)}"
        terminalreporter.write_line(text, yellow=True)
