"""A command run on a GPU that is not there. In: its words, the card. Out: what its processes wrote down.

The command's own output goes to standard error, so that a report alone is on standard output.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.files import atomic_path
from bigqa.language import tr
from bigqa.nullgpu.build import libraries_for
from bigqa.nullgpu.cards import NullGpu
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import Interpreter, TorchBuild, interpreter_of
from bigqa.nullgpu.torch_build import cuda_build
from bigqa.rehearse.facts import read_facts
from bigqa.rehearse.own import answered_yes
from bigqa.rehearse.report import Rehearsal, make_report

INSIDE = Path(__file__).parent / "inside"


class CommandError(BigqaError):
    """The command failed by itself."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Stage:
    """All that is needed for a command to run on a null GPU."""

    python: Interpreter
    torch: TorchBuild
    libraries: Path


def set_stage(words: Sequence[str], *, install: bool) -> Stage:
    """Find the command's Python, a CUDA build of torch for it, and the libraries for that.

    Raises: BigqaError with what is missing.
    """
    python = interpreter_of(words)
    torch = cuda_build(python, install=install)
    return Stage(python, torch, libraries_for(python, torch, install=install))


def rehearse(
    words: Sequence[str],
    gpu: NullGpu,
    stage: Stage,
    *,
    steps: int = 3,
    true: Sequence[str] = (),
    snapshot: Path | None = None,
) -> Rehearsal:
    """Run a command until it has made so many optimizer steps, or runs out of memory, or ends.

    Raises: CommandError where it fails of anything else, or never uses the GPU.
    """
    with tempfile.TemporaryDirectory(prefix="bigqa-rehearsal-") as name:
        folder = Path(name)
        begun = time.monotonic()
        code = _run(words, _environment(gpu, stage, folder, steps, true), stage.python)
        processes = read_facts(folder, command_failed=bool(code))
        is_short = any(process.is_short for process in processes)
        if code and not is_short:
            raise CommandError(
                tr("the command failed (exit code {code}) and not for lack of memory: see above", code=code),
                _own_code(code),
            )
        if not processes:
            raise CommandError(tr("the command ended without using the GPU: there is nothing to report"), 1)
        if snapshot is not None:
            with atomic_path(snapshot) as fresh:
                shutil.copyfile(processes[0].snapshot_file, fresh)
        return make_report(processes, gpu, time.monotonic() - begun)


def with_bound(gpu: NullGpu, bound: str) -> NullGpu:
    """Return the same cards with another bound."""
    return replace(gpu, bound="most" if bound == "most" else "least")


def _own_code(code: int) -> int:
    """0 and 3 mean something else here; a signal is as a shell tells it."""
    return 128 - code if code < 0 else 1 if code in (0, 3) else code


def _environment(gpu: NullGpu, stage: Stage, folder: Path, steps: int, true: Sequence[str]) -> dict[str, str]:
    own_torch = stage.python.torch
    is_elsewhere = own_torch is None or own_torch.folder != stage.torch.folder
    paths = (INSIDE, stage.torch.folder) if is_elsewhere else (INSIDE,)
    found = variables(gpu, stage.libraries, paths, os.environ)
    told = {"folder": str(folder), "steps": steps, "true": list(true), "known": answered_yes()}
    return found | {"BIGQA_REHEARSE": json.dumps(told)}


def _run(words: Sequence[str], environment: dict[str, str], python: Interpreter) -> int:
    """Run the command and all that it starts in a group of their own, and leave none of them behind."""
    bin_folder = str(python.executable.parent)
    environment = environment | {"PATH": f"{environment.get('PATH', os.defpath)}:{bin_folder}"}
    program = _program(words[0], python)
    process = subprocess.Popen(
        [program, *words[1:]], env=environment, stdout=sys.stderr.fileno(), start_new_session=True
    )
    with _group(process):
        return process.wait()


def _program(word: str, python: Interpreter) -> str:
    """Return the program of a word: of the Python that was looked at, which need not be the first in PATH."""
    if os.sep in word:
        return word
    if word.startswith("python"):
        return str(python.executable)
    beside = python.executable.parent / word
    return str(beside) if beside.exists() else word


@contextlib.contextmanager
def _group(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    def stop(how: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)

    try:
        yield
    except KeyboardInterrupt:
        stop(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        raise
    finally:
        stop(signal.SIGKILL)
        process.wait()
