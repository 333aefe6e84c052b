"""Forks of a process whose threads have worked: they end, and their results come in order."""

import subprocess
import sys

PROGRAM = """
import torch
from bigqa.memory.forks import in_forks
threads = torch.get_num_threads()
torch.ones(2**22).mul(2)
torch.set_num_threads(1)
torch.set_num_threads(threads)
torch.ones(2**22).mul(2)
print(in_forks(lambda number: int(torch.full((2**22,), float(number)).mul(2)[-1]), [1, 2, 3]))
"""


def test_forks_do_not_wait_for_threads_that_they_do_not_have() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["[2,", "4,", "6]"]
