"""Python, torch and the libraries: are they there, of versions that are supported, with what they have to compile?"""

import functools
import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from bigqa.doctor.finding import Finding, bare
from bigqa.engine.extensions import compiled
from bigqa.language import joined, put, tr

TRIED = {"python": "3.13", "torch": "2.14", "transformers": "5.23"}
"""The newest that the tests were run with."""
NEEDED = ("transformers", "accelerate", "tokenizers", "safetensors", "pydantic")
OPTIONAL = {
    "deepspeed": (tr("ZeRO and optimizers that are offloaded (zero1 to zero3-offload)"), "deepspeed"),
    "bitsandbytes": (tr("states of 8 bits and QLoRA (8bit, stream-8bit, qlora)"), "8bit"),
    "peft": (tr("LoRA and QLoRA"), "adapters"),
    "scikit-learn": (tr("scores of --task classify"), "scores"),
}
"""Library -> what is not to be had without it, and the extra of bigqa that brings it."""
COMPILER_COST = tr("what DeepSpeed compiles (optimizers that are offloaded) and `bigqa rehearse` cannot be had")
COMPILER = tr("install one: apt-get install g++, or conda install gxx_linux-64")
ABSENT, NOTHING = tr("not installed: see above"), tr("nothing trains")


def findings() -> Iterator[Finding]:
    """Look at all of it."""
    yield _python()
    yield _torch()
    for name in NEEDED:
        yield library(name)
    for name, (what, extra) in OPTIONAL.items():
        mend = put("pip install 'bigqa[{extra}]'", extra=extra)
        yield library(name, tr("{what} cannot be had", what=what), mend)
    yield bitsandbytes_library()
    yield compiler()
    yield cpu_adam()
    yield libaio()


def _python() -> Finding:
    here = platform.python_version()
    if Version(here) < Version("3.10"):
        cost = tr("this program wants 3.10 or later")
        return Finding("Python", here, cost, tr("install another Python"), broken=True)
    return Finding("Python", _untried("python", here))


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        text = tr("cannot be imported: {error}", error=bare(error))
        return Finding("torch", text, NOTHING, put("pip install --force-reinstall torch"), broken=True)
    build = put("CUDA {version}", version=torch.version.cuda) if torch.version.cuda else tr("for the CPU alone")
    build = put("ROCm {version}", version=torch.version.hip) if torch.version.hip else build
    found = library("torch")
    text = put("{found}, {build}", found=found.found, build=build)
    return Finding("torch", text, found.cost, found.mend, found.broken)


def library(name: str, without: str = "", mend: str = "") -> Finding:
    """Say which version is there, and whether it is supported. `without`: what that costs; nothing: all."""
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        install = mend or put("pip install {name}", name=name)
        return Finding(name, tr("not installed"), without or NOTHING, install, broken=not without)
    wanted = supported().get(name, SpecifierSet())
    if not wanted.contains(here, prereleases=True):
        text = tr("{here}, and {wanted} is supported", here=here, wanted=wanted)
        cost = without or tr("what this version does otherwise is not known")
        return Finding(name, text, cost, put("pip install -U '{name}{wanted}'", name=name, wanted=wanted))
    return Finding(name, _untried(name, here))


@functools.cache
def supported() -> dict[str, SpecifierSet]:
    """Return which versions of libraries bigqa says that it works with."""
    found = [Requirement(line) for line in importlib.metadata.requires("bigqa") or ()]
    return {one.name: one.specifier for one in found if one.specifier}


def _untried(name: str, here: str) -> str:
    """Return a version, and whether it is newer than all that were tested."""
    newest = TRIED.get(name)
    if newest is None or Version(here).release[:2] <= Version(newest).release[:2]:
        return here
    return tr("{here} (newer than {newest}, the newest that was tested)", here=here, newest=newest)


def bitsandbytes_library() -> Finding:
    """Say whether the compiled part of bitsandbytes, which does the work, is there for this torch."""
    name = tr("bitsandbytes' library")
    try:
        from bitsandbytes import cextension
    except ModuleNotFoundError:
        return Finding(name, ABSENT)
    except Exception as error:
        return _no_bitsandbytes(name, bare(error))
    kind = type(cextension.lib).__name__
    if "Mock" in kind:
        return _no_bitsandbytes(name, tr("not there for this torch"))
    return Finding(name, tr("for CUDA") if "Cuda" in kind else tr("for the CPU"))


def _no_bitsandbytes(name: str, found: str) -> Finding:
    return Finding(
        name,
        found,
        tr("states of 8 bits and QLoRA fail in their first step"),
        tr("pip install -U bitsandbytes; `python -m bitsandbytes` says what it looks for"),
    )


def compiler() -> Finding:
    """Say whether there is what compiles C and C++, and what it needs."""
    missing = [name for name in (os.environ.get("CC", "gcc"), os.environ.get("CXX", "c++")) if not shutil.which(name)]
    if missing:
        first, last = bare(missing[0]), bare(missing[-1])
        one, both = tr("no {name} on PATH", name=first), tr("no {first} and no {last} on PATH", first=first, last=last)
        return Finding(tr("compiler"), one if len(missing) == 1 else both, COMPILER_COST, COMPILER)
    return Finding(tr("compiler"), tr("gcc and c++ are there"))


def cpu_adam() -> Finding:
    """Say whether DeepSpeed's Adam for the CPU is compiled, or can be."""
    name = tr("DeepSpeed's CPU Adam")
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, ABSENT)
    if compiled("cpu_adam"):
        return Finding(name, tr("compiled"))
    wanted = (
        (tr("a compiler"), COMPILER, bool(shutil.which(os.environ.get("CXX", "c++")))),
        (
            tr("Python's headers"),
            put("apt-get install python3-dev"),
            Path(sysconfig.get_path("include"), "Python.h").is_file(),
        ),
        (
            put("ninja"),
            put("pip install ninja"),
            bool(shutil.which("ninja")) or Path(sys.executable).with_name("ninja").is_file(),
        ),
    )
    missing = {what: mend for what, mend, is_there in wanted if not is_there}
    if missing:
        return Finding(
            name,
            tr("not compiled, and it cannot be: {what} missing", what=joined(", ", missing)),
            tr("optimizers that are offloaded by ZeRO (zero2-offload, zero3-offload) cannot be had"),
            joined("; ", missing.values()),
        )
    return Finding(name, tr("compiled at its first use, in a minute or two; now: python -m bigqa.engine.extensions"))


def libaio() -> Finding:
    """Say whether what DeepSpeed reads and writes a disk with can be compiled, or is."""
    if compiled("async_io"):
        return Finding("libaio", tr("DeepSpeed's part for disks is compiled"))
    folders = [Path(sysconfig.get_path("include")), Path("/usr/include"), Path("/usr/local/include")]
    folders += [Path(part) for part in os.environ.get("CPATH", "").split(os.pathsep) if part]
    if any((folder / "libaio.h").is_file() for folder in folders):
        return Finding("libaio", tr("its header is there"))
    return Finding(
        "libaio",
        tr("its header (libaio.h) is not there"),
        tr("strategies that offload to a disk (zero3-nvme) cannot be had"),
        put("apt-get install libaio-dev"),
    )
