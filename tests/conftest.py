"""What the tests share: the folder of data and recorded cases that is kept outside the repository, and one rule.

A process that a test starts ends with the test; see `leftovers`.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import leftovers
import pytest

from bigqa.machine import heap

# Test processes side by side share the cores: threads that wait for each other by spinning would cost each one tenfold.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    THREADS = str(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ |= {"OMP_NUM_THREADS": THREADS, "BIGQA_THREADS": THREADS, "BIGQA_WORKERS": THREADS}
os.environ.pop("COLUMNS", None)  # which says how wide the terminal of these tests is, and not of what they run
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is fetched, here or by a process that a test starts
MISSING = "the shared folder is not here"


def pytest_configure(config: pytest.Config) -> None:
    """Watch over processes."""
    leftovers.watch(config)


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
