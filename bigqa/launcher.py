"""Starts the training processes and waits for them. In: the words of `bigqa train`. Out: the exit code.

The workers run in a session of their own, so that Ctrl-C reaches this process alone; it asks them to stop after the
step in progress, and a second Ctrl-C ends them at once.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bigqa.console import INTERRUPTED, stderr
from bigqa.engine.stop import PARENT_VARIABLE, STOP_FILE

TRAIN_FILE = Path(__file__).resolve().with_name("train.py")


def launch(words: list[str], folder: Path, num_processes: int, device: str | None) -> int:
    """Run `bigqa/train.py` with these words in one process, or in several through `accelerate launch`."""
    workers = subprocess.Popen(
        [*_command(num_processes, device), str(TRAIN_FILE), *words],
        env=os.environ | {PARENT_VARIABLE: str(os.getpid())},
        start_new_session=True,
    )
    interrupted = False
    while True:
        try:
            code = workers.wait()
            return INTERRUPTED if interrupted and code == 0 else _as_exit_code(code)
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


def _command(num_processes: int, device: str | None) -> list[str]:
    if num_processes == 1:
        return [sys.executable]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1"]
    flags = ["--num_processes", str(num_processes), "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launcher, *flags, *(["--cpu"] if device == "cpu" else [])]


def _as_exit_code(code: int) -> int:
    return 128 - code if code < 0 else code
