"""One run of several: begun or gone on with, watched, told to stop. In: words of `bigqa train`. Out: how it ended.

Its processes are those of `bigqa train` (`run.launcher`), waited for in a thread; what they print is in a file beside
its folder. They end where this process is killed, and its folder is waited for until they have.
"""

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigqa import interrupts
from bigqa.errors import BigqaError, in_a_line
from bigqa.files import opened_to_add, read_json
from bigqa.language import tr
from bigqa.lock import FILES, Held, held, read_owner
from bigqa.run.folder import check_new
from bigqa.run.launcher import until_it_ends
from bigqa.run.workers import Workers
from bigqa.who import boot, has_ended, room

LEFT_OVER_S = 180.0
"""Longest wait for processes of a run whose launcher was killed: they finish a step, or save beside it, and end."""
TRIES = 3
"""Starts of a run whose processes die of a signal."""
TAIL_BYTES = 4096


class Member:
    """One run. `name`: what people call it; `words`: its options, without its folder."""

    def __init__(
        self, name: str, folder: Path, words: Sequence[str], *, num_processes: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.name, self.folder, self.words = name, folder, [*words, "--out", str(folder)]
        self.num_processes, self.environment = num_processes, dict(environment or {})
        self.output = folder.with_name(folder.name + ".txt")
        self.code: int | None = None
        """How it ended; none: it runs, or has not begun."""
        self.problem = ""
        """What it said when it failed."""
        self.is_stopped = False
        self._workers: Workers | None = None
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"run {name}", daemon=True)

    def start(self) -> None:
        """Begin it, or go on with it, beside the thread that asks."""
        self._thread.start()

    def stop(self) -> None:
        """Ask it to save and end; from any thread."""
        with self._turn:
            self.is_stopped = True
            if self._workers is not None:
                self._workers.stop()

    @property
    def has_ended(self) -> bool:
        """Whether its processes are gone."""
        return not self._thread.is_alive()

    @property
    def report(self) -> dict[str, Any] | None:
        """What it came to, if it is whole."""
        return whole_report(self.folder)

    def _run(self) -> None:
        try:
            for _ in range(TRIES):
                self.code = self._once()
                if self.code == 0 or self.is_stopped or self.code < 128 + signal.SIGHUP:
                    break
            if self.code != 0 and not self.problem:
                silent = tr("it ended with exit code {code}; see {output}", code=self.code, output=self.output)
                self.problem = last_word(self.output) or silent
        except BigqaError as error:
            self.code, self.problem = error.exit_code, error.args[0]
        except Exception as error:  # a thread's own traceback would be seen by nobody
            self.code, self.problem = 1, f"{type(error).__name__}: {in_a_line(error)}"

    def _once(self) -> int:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with _held_at_last(self.folder) as lock:
            if self.report is not None:
                return 0
            is_begun = (self.folder / "config.json").is_file()
            if not is_begun:
                _clear(self.folder)
                check_new(self.folder)
            workers = Workers(lock, self.num_processes, self.output, self.environment)
            with self._turn:
                if self.is_stopped:
                    return 1
                self._workers = workers
            interrupts.at_last.append(workers.kill)
            try:
                words = ["--resume", str(self.folder)] if is_begun else self.words
                return until_it_ends(words, self.folder, workers, self._note)
            finally:
                interrupts.at_last.remove(workers.kill)

    def _note(self, text: str) -> None:
        with open(opened_to_add(self.output), "a", encoding="utf-8") as file:
            file.write(text + "\n")


def whole_report(folder: Path) -> dict[str, Any] | None:
    """Return a run's report where it is over, with its scores where it has a file to be scored on."""
    if not (folder / "report.json").is_file():
        return None
    report = read_json(folder / "report.json", tr("a run's report"))
    wants = report.get("settings", {}).get("dev_file")
    return report if report.get("scores") or not wants else None


def last_line(file: Path) -> dict[str, Any] | None:
    """Return the last whole record of JSON lines, which may be written just now."""
    with contextlib.suppress(OSError, ValueError), file.open("rb") as opened:
        opened.seek(0, 2)
        opened.seek(max(0, opened.tell() - TAIL_BYTES))
        lines = opened.read().split(b"\n")
        found = next((line for line in reversed(lines[:-1]) if line.strip()), None)
        return json.loads(found) if found else None
    return None


def last_word(output: Path) -> str:
    """Return the last line that a run's processes said of an error, without the program's name."""
    with contextlib.suppress(OSError):
        lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.partition("bigqa: ")[2] for line in reversed(lines) if line.startswith("bigqa: ")), "")
    return ""


def _clear(folder: Path) -> None:
    """Remove what a start has left that was killed before the run was begun."""
    for path in folder.iterdir():
        if path.name not in FILES:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _held_at_last(folder: Path) -> Iterator[Held]:
    """Hold a folder; where its launcher was killed, when that one's processes have ended."""
    deadline = time.monotonic() + LEFT_OVER_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                lock = stack.enter_context(held(folder))
                break
            except BigqaError:
                owner = read_owner(folder)
                seen = owner is None or (owner.boot == boot() and owner.room == room())
                ended = owner is None or (seen and has_ended(owner.pid, owner.started))
                if not ended or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield lock
