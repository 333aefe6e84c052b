"""A CUDA build of torch for a Python. In: the Python. Out: the build that is there, or one made in bigqa's cache.

The null GPU stands in for what lies below torch: it needs torch's CUDA build, and nothing of NVIDIA's packages.
"""

import contextlib
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bigqa.errors import BigqaError
from bigqa.files import asked_cache, atomic_folder, cache_folder, write_error
from bigqa.language import shown, tr
from bigqa.nullgpu.python import Interpreter, TorchBuild, read_build

OLDEST, NEWEST = (2, 11), (2, 14)
CUDA = "13"


def folder() -> Path:
    """Where what the null GPU needs is kept; a cache that it lies in already need not be writable.

    Under its own name, whatever links lead there: what is built against it is built anew where it is called otherwise,
    our libraries in seconds, DeepSpeed's Adam in minutes.
    """
    there = asked_cache() / "nullgpu"
    return (there if there.is_dir() else cache_folder() / "nullgpu").resolve()


class NotInstalled(BigqaError):
    """A package that could not be had: no network, or an index without it."""


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Let one process at a time make what is in a folder."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with (place / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise write_error(place, error) from error


def cuda_build(python: Interpreter, *, install: bool) -> TorchBuild:
    """Return the torch to rehearse with.

    Raises: BigqaError where the torch at hand is another build than one for the CPU or CUDA 13, or none is at hand and
    `install` is not asked for.
    """
    build = python.torch
    if build is None:
        raise BigqaError(
            tr(
                "{executable} has no torch; install it there, or name another Python in the command",
                executable=python.executable,
            )
        )
    _refuse(build)
    if build.cuda is not None:
        return build
    made = _place_of(build, python)
    if not made.exists():
        if not install:
            raise BigqaError(
                tr(
                    "torch {version} is a CPU build; to rehearse, torch's CUDA build of the same version is "
                    "needed beside it: `bigqa rehearse --install ...` puts it into {made} (about 600 MB to "
                    "download, 1.4 GB on disk, none of NVIDIA's packages)",
                    version=build.version,
                    made=made,
                )
            )
        _install(f"torch==={build.public}", made, python)
    found = read_build(made / "torch")
    if found.cuda is None or not found.cuda.startswith(f"{CUDA}."):
        shutil.rmtree(made)
        raise BigqaError(
            tr(
                "the package index gives torch {version} for torch {public}, not its build for CUDA {cuda}; "
                "install that into the environment yourself",
                version=found.version,
                public=build.public,
                cuda=CUDA,
            )
        )
    return found


def _refuse(build: TorchBuild) -> None:
    numbers = tuple(int(part) for part in build.public.split(".")[:2] if part.isdigit())
    if build.hip:
        raise BigqaError(
            tr(
                "torch {version} is built for ROCm, and the null GPU is one of NVIDIA's: use an environment "
                "with torch's build for CUDA {cuda} or for the CPU",
                version=build.version,
                cuda=CUDA,
            )
        )
    if not OLDEST <= numbers <= NEWEST:
        raise BigqaError(
            tr("torch {version} cannot be rehearsed: 2.11, 2.12, 2.13 and 2.14 can", version=build.version)
        )
    if build.cuda is not None and not build.cuda.startswith(f"{CUDA}."):
        raise BigqaError(
            tr(
                "torch {version} is built for CUDA {cuda}, and the null GPU for CUDA {cuda_2}: install torch's "
                "build for CUDA {cuda_2} (what PyPI has), or its build for the CPU",
                version=build.version,
                cuda=build.cuda,
                cuda_2=CUDA,
            )
        )


def _place_of(build: TorchBuild, python: Interpreter) -> Path:
    return folder() / "torch-{}-cp{}{}".format(build.public, *python.version)


def _install(requirement: str, place: Path, python: Interpreter) -> None:
    """Install one package, without what it needs, into a folder of its own, whole or not at all.

    `===`: the version as PyPI has it, which is the CUDA build, and not a local one such as 2.13.0+cpu.
    """
    with locked(place.parent):
        if place.exists():  # another process was first
            return
        told = tr("installing {requirement} into {place} (once)", requirement=requirement, place=place)
        print("bigqa: " + shown(told), file=sys.stderr)
        with atomic_folder(place) as fresh:
            options = ["install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(fresh)]
            run_pip([*options, requirement], python)


def install_package(requirement: str, place: Path, python: Interpreter) -> None:
    """Install a small package that only files are wanted of."""
    _install(requirement, place, python)


def run_pip(words: Sequence[str], python: Interpreter) -> None:
    """Run pip for a Python: its own, or the one of this Python.

    Raises: NotInstalled with the last line of what pip says.
    """
    own = [str(python.executable), "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode:
        own = [sys.executable, "-m", "pip", "--python", str(python.executable)]
    done = subprocess.run([*own, "--disable-pip-version-check", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (
            [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or [""]
        )
        raise NotInstalled(
            tr("pip cannot install {words}: {said}", words=words[-1], said=said[-1].removeprefix("ERROR: "))
        )
