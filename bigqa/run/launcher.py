"""Starts the training processes and waits for them. In: the words of `bigqa train`. Out: the exit code.

The first signal asks the workers to save and end, a second Ctrl-C ends them at once; a run that was asked to stop is
never gone on with.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import yaml

from bigqa import interrupts
from bigqa.console import tell
from bigqa.engine.loop import deadline
from bigqa.engine.loop.stop import ENDED_FILE, PARENT_VARIABLE, STOP_FILE
from bigqa.errors import UsageError
from bigqa.language import put, tr
from bigqa.lock import HANDED_ON, held
from bigqa.plan.ladder import AGAIN, step_down
from bigqa.run.folder import check_new
from bigqa.run.workers import Workers

TRAIN_FILE = Path(__file__).resolve().parents[1] / "train.py"
"""As a file and not `-m bigqa.train`: workers run this code, whatever lies in the folder that they are started from."""
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")
"""Set by torchrun and by Accelerate."""
RANK_VARIABLES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launch(words: Sequence[str], folder: Path, num_processes: int, *, resume: bool, until: float | None = None) -> int:
    """Run `bigqa/train.py` with these words in one process or several; return the exit code.

    `until`: when its time is up, in seconds since the epoch.
    A run that stepped down, or a worker of which the kernel killed, is gone on with on the next rung of its ladder.
    """
    deadline.give(until)
    with held(folder, tell) as lock:
        if not resume:
            check_new(folder)  # another may have ended since it was looked at
        workers = Workers(lock, num_processes)
        interrupts.at_last.append(workers.kill)
        with interrupts.taken_by(lambda _: _stop(workers)):
            code = until_it_ends(words, folder, workers)
        interrupts.at_last.remove(workers.kill)
    asked = interrupts.first()
    return code if asked is None else interrupts.code_of(asked)


def until_it_ends(words: Sequence[str], folder: Path, workers: Workers, tell: Callable[[str], None] = tell) -> int:
    """Start a run's processes, and again on each next rung, until it ends; return the exit code.

    The folder is held, and new or that of a run which the words go on with. Raises: BigqaError where no rung is left.
    """
    try:
        return _started_again(words, folder, workers, tell)
    finally:
        _forget(folder)


def _started_again(words: Sequence[str], folder: Path, workers: Workers, tell: Callable[[str], None]) -> int:
    while True:
        _forget(folder)  # of a launch that ended badly
        ended = workers.run([sys.executable, str(TRAIN_FILE), *words])
        if ended is None or workers.told:
            if ended in (None, AGAIN):
                tell(tr("bigqa: stopped before the next start; to go on: bigqa train --resume {folder}", folder=folder))
            elif ended == 0:
                tell(tr("bigqa: the run was over before it could be stopped: all is written"))
            return 1
        code = ended if ended >= 0 else interrupts.code_of(-ended)
        begun = (folder / "config.json").is_file()
        if ended == -signal.SIGKILL and begun:
            rung = step_down(
                folder, "host", tr("a worker was killed (SIGKILL), as the kernel does without memory"), None
            )
            tell(tr("A worker was killed; going on from the last checkpoint with {rung}.", rung=rung.name))
        elif ended != AGAIN:
            if ended < 0:
                on = tr("; to go on: bigqa train --resume {folder}", folder=folder) if begun else ""
                tell(put("bigqa: {death}{on}", death=_death(-ended), on=on))
            return code
        words = ["--resume", str(folder)]


def _forget(folder: Path) -> None:
    for name in (STOP_FILE, ENDED_FILE):
        (folder / name).unlink(missing_ok=True)


def _death(number: int) -> str:
    """Say what a worker died of that has said nothing itself. Only SIGKILL is what the kernel does without memory."""
    if number == signal.SIGKILL:
        return tr("a worker was killed (SIGKILL), as the kernel does without memory, before the run had begun")
    return tr(
        "a worker died of {signals} without a word; nothing says that memory ran out",
        signals=signal.Signals(number).name,
    )


def _stop(workers: Workers) -> None:
    workers.stop()
    tell(tr("\nStopping; Ctrl-C again to stop at once."))


def go_on(folder: Path) -> None:
    """Take a run up again that stepped down, where no launcher of ours does; returns where that is another's."""
    if PARENT_VARIABLE in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    if interrupts.first() is not None:
        raise SystemExit(interrupts.code_of(interrupts.first() or 0))
    sys.stdout.flush()
    with interrupts.held_back():  # until the new program listens
        os.execv(sys.executable, [sys.executable, str(TRAIN_FILE), "--resume", str(folder)])


def watch_launcher() -> None:
    """Take the death of what started this process for a signal, where that is a launcher."""
    environment, parent = os.environ, os.getppid()
    ours = environment.get(PARENT_VARIABLE)
    if interrupts.listens() and (ours or any(name in environment for name in LAUNCHED)):
        expected = int(ours) if ours else parent
        interrupts.looks.append(lambda: None if os.getppid() == expected else interrupts.receive(signal.SIGTERM))


def started_alone() -> int | None:
    """Return how many processes `accelerate launch` was asked for, where it started this one alone.

    On a machine without a GPU Accelerate (1.15) wants MPI for several, and without it starts one process and says
    nothing. It leaves MASTER_ADDR behind when N > 1, and N itself only in its own command line or configuration.
    """
    environment = os.environ
    alone = "MASTER_ADDR" in environment and not any(name in environment for name in RANK_VARIABLES)
    if not alone or "ACCELERATE_MIXED_PRECISION" not in environment or HANDED_ON in environment:
        return None
    count = _asked_of_accelerate(psutil.Process(os.getppid()).cmdline())
    if count is None:
        raise UsageError(tr("accelerate started one process of several: add --multi_gpu to `accelerate launch`"))
    return count


def _asked_of_accelerate(words: list[str]) -> int | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--num_processes", "--num-processes", dest="count", type=int)
    parser.add_argument("--config_file", "--config-file", dest="config", type=Path, default=_own_config())
    found, _ = parser.parse_known_args(words)
    if found.count is None and found.config is not None:
        count = yaml.safe_load(found.config.read_text(encoding="utf-8")).get("num_processes")
        return None if count is None else int(count)
    return found.count


def _own_config() -> Path | None:
    """Return the configuration that `accelerate config` writes, if it is there."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "accelerate"
    return next((file for file in (home / "default_config.yaml", home / "default_config.json") if file.is_file()), None)
