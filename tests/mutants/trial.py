"""A test session in a process of its own that begins warm. In: what pytest is asked. Out: how it ended, and its words.

The parent has imported torch and the libraries beside it, and nothing of bigqa; a forked child imports the code as it
is on the disk at that moment. So a session costs half a second and not five. Whatever a mutant does, its processes end:
the child leads a process group, and the group is killed when the child is done or late.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

LIBRARIES = (
    "torch", "torch._dynamo", "torch.distributed.fsdp", "torch.utils.tensorboard", "functorch.compile", "networkx",
    "transformers", "transformers.trainer_pt_utils", "transformers.convert_slow_tokenizer",
    "transformers.models.bert.modeling_bert", "transformers.models.electra.modeling_electra",
    "transformers.models.roberta.modeling_roberta", "transformers.models.modernbert.modeling_modernbert",
    "datasets", "tokenizers", "accelerate", "safetensors.torch", "peft", "bitsandbytes", "pydantic.main", "typer",
    "rich", "psutil", "bs4", "lxml", "jinja2", "hypothesis", "pytest", "xdist.plugin", "pytest_timeout",
    "matplotlib.pyplot",
)  # fmt: skip
PR_SET_PDEATHSIG = 1


def warm(tree: Path) -> None:
    """Import what every child needs, without threads: those would not live on in a fork."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tree), os.environ.get("PYTHONPATH"))))
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(name)
    import torch

    torch.set_num_threads(1)
    loaded = [name for name in sys.modules if name.partition(".")[0] == "bigqa"]
    assert not loaded, f"{loaded} would be the unbroken ones in every child"


def in_child(work: Callable[[], int], log: Path, *, limit_s: float, memory_gib: int) -> int | None:
    """Run in a forked child, its words in a file. Returns: its exit status, or None where it did not end in time."""
    child = os.fork()
    if child == 0:
        _be_a_child(work, log, memory_gib)
    end = time.monotonic() + limit_s
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _be_a_child(work: Callable[[], int], log: Path, memory_gib: int) -> None:
    status = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if sys.platform == "linux":  # the child of a parent that was killed ends with it
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (memory_gib << 30, memory_gib << 30))
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(words, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(status))
