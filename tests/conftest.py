"""What the tests share: the folder of data and recorded cases that is kept outside the repository."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the shared folder: `BIGQA_SHARED`, else `shared` beside the checkout."""
    folder = Path(os.environ.get("BIGQA_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"{folder} not found: set BIGQA_SHARED")
    return folder
