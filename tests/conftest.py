"""What the tests share: the folder of data and recorded cases that is kept outside the repository."""

import os
from pathlib import Path

import pytest

# Test processes side by side share the cores: threads that wait for each other by spinning would cost each one tenfold.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    THREADS = str(max(1, (os.cpu_count() or 1) // WORKERS))
    os.environ |= {"OMP_NUM_THREADS": THREADS, "BIGQA_THREADS": THREADS, "BIGQA_WORKERS": THREADS}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the shared folder: `BIGQA_SHARED`, else `shared` beside the checkout."""
    folder = Path(os.environ.get("BIGQA_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"{folder} not found: set BIGQA_SHARED")
    return folder
