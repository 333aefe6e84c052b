"""What freed tensors leave behind: nothing at first, their memory where there is plenty. In processes of their own."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from bigqa.heap import hold_tight, keep_if_plenty
hold_tight()
kept = keep_if_plenty(*(int(word) for word in sys.argv[1:]))
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
tensors = [torch.ones(2**20) for _ in range(64)]
full = resident()
del tensors
print(int(kept), full - resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")
@pytest.mark.parametrize(
    ("need", "free", "asked", "kept"),
    [(100, 299, None, False), (100, 300, None, True), (100, 300, "tight", False), (100, 0, "fast", True)],
)
def test_freed_memory_is_kept_where_three_times_the_need_is_free(
    need: int, free: int, asked: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BIGQA_HEAP", raising=False)
    if asked:
        monkeypatch.setenv("BIGQA_HEAP", asked)
    command = [sys.executable, "-c", PROGRAM, str(need), str(free)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said, given_back = (int(word) for word in done.stdout.split())
    assert bool(said) is kept
    all_bytes = 64 * 4 * 2**20
    assert given_back < 0.1 * all_bytes if kept else given_back > 0.9 * all_bytes
