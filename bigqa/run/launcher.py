"""Starts the training processes and waits for them. In: the words of `bigqa train`. Out: the exit code.

The workers run in a session of their own, so that Ctrl-C reaches this process alone; it asks them to stop after the
step in progress, and a second Ctrl-C ends them at once.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from bigqa.console import INTERRUPTED, stderr
from bigqa.engine.loop.stop import ENDED_FILE, PARENT_VARIABLE, STOP_FILE
from bigqa.errors import UsageError
from bigqa.plan.ladder import AGAIN, step_down

TRAIN_FILE = Path(__file__).resolve().parents[1] / "train.py"
"""As a file and not `-m bigqa.train`: workers run this code, whatever lies in the folder that they are started from."""
KILLED = 128 + signal.SIGKILL
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launch(words: list[str], folder: Path, num_processes: int) -> int:
    """Run `bigqa/train.py` with these words in one process, or in several through `accelerate launch`.

    A run that stepped down, or whose workers the kernel killed, is gone on with on the next rung of its ladder.
    """
    while True:
        code = _run(words, folder, num_processes)
        if code == KILLED and (folder / "config.json").is_file():
            rung = step_down(folder, "host", "a worker was killed (SIGKILL), as the kernel does without memory", None)
            stderr.print(f"A worker was killed; going on from the last checkpoint with {rung.name}.", highlight=False)
        elif code != AGAIN:
            return code
        words = ["--resume", str(folder)]


def go_on(folder: Path) -> None:
    """Take a run up again that stepped down, where no launcher of ours does; returns where that is another's."""
    if PARENT_VARIABLE in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(TRAIN_FILE), "--resume", str(folder)])


def _run(words: list[str], folder: Path, num_processes: int) -> int:
    for name in (STOP_FILE, ENDED_FILE):  # of a launch that ended badly
        (folder / name).unlink(missing_ok=True)
    workers = subprocess.Popen(
        [*_command(num_processes), str(TRAIN_FILE), *words],
        env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
        start_new_session=True,
    )
    interrupted = False
    while True:
        try:
            code = workers.wait()
            return INTERRUPTED if interrupted and code == 0 else _as_exit_code(code, folder, num_processes)
        except KeyboardInterrupt:
            _stop(workers, folder, at_once=interrupted)
            interrupted = True


def _stop(workers: "subprocess.Popen[bytes]", folder: Path, *, at_once: bool) -> None:
    if at_once:
        os.killpg(workers.pid, signal.SIGKILL)
    elif (folder / "config.json").is_file():
        stderr.print("\nStopping after this step; Ctrl-C again to stop at once.")
        (folder / STOP_FILE).touch()
    else:  # nothing to save yet
        os.killpg(workers.pid, signal.SIGINT)


def _command(num_processes: int) -> list[str]:
    if num_processes == 1:
        return [sys.executable]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    flags = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    # Accelerate's name for its launcher of several local processes, with or without GPUs.
    return [*launcher, *flags, "--multi_gpu"]


def spread_out() -> None:
    """Become as many processes as `accelerate launch --num_processes N` was asked for on a machine without a GPU.

    There Accelerate (1.15) wants MPI and, without it, starts one process and says nothing. It leaves MASTER_ADDR behind
    when N > 1, and N itself only in its own command line or configuration.
    """
    environment = os.environ
    alone = "MASTER_ADDR" in environment and not any(name in environment for name in RANK_VARIABLES)
    if not alone or "ACCELERATE_MIXED_PRECISION" not in environment:
        return
    count = _asked_of_accelerate(psutil.Process(os.getppid()).cmdline())
    if count is None:
        raise UsageError("accelerate started one process of several: add --multi_gpu to `accelerate launch`")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    os.execv(sys.executable, [*torchrun, str(TRAIN_FILE), *sys.argv[1:]])


def _asked_of_accelerate(words: list[str]) -> int | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", dest="count", type=int)
    parser.add_argument("--config_file", "--config-file", dest="config", type=Path)
    found, _ = parser.parse_known_args(words)
    if found.count is None and found.config is not None:
        return int(yaml.safe_load(found.config.read_text(encoding="utf-8"))["num_processes"])
    return found.count


def _as_exit_code(code: int, folder: Path, num_processes: int) -> int:
    """Return how a run ended; several processes tell their launcher's code, and in a file how the first one ended."""
    if num_processes > 1 and code not in (0, INTERRUPTED):
        ended = folder / ENDED_FILE
        # No word of its own: it was killed.
        return int(ended.read_text(encoding="utf-8")) if ended.is_file() else KILLED
    return 128 - code if code < 0 else code
