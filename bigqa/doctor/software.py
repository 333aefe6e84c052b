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

TRIED = {"python": "3.13", "torch": "2.14", "transformers": "5.23"}
"""The newest that the tests were run with."""
NEEDED = ("transformers", "accelerate", "tokenizers", "safetensors", "pydantic")
OPTIONAL = {
    "deepspeed": ("ZeRO and optimizers that are offloaded (zero1 to zero3-offload)", "deepspeed"),
    "bitsandbytes": ("states of 8 bits and QLoRA (8bit, stream-8bit, qlora)", "8bit"),
    "peft": ("LoRA and QLoRA", "adapters"),
    "scikit-learn": ("scores of --task classify", "scores"),
}
"""Library -> what is not to be had without it, and the extra of bigqa that brings it."""
COMPILER_COST = "what DeepSpeed compiles (optimizers that are offloaded) and `bigqa rehearse` cannot be had"
COMPILER = "install one: apt-get install g++, or conda install gxx_linux-64"


def findings() -> Iterator[Finding]:
    """Look at all of it."""
    yield _python()
    yield _torch()
    for name in NEEDED:
        yield library(name)
    for name, (what, extra) in OPTIONAL.items():
        yield library(name, f"{what} cannot be had", f"pip install 'bigqa[{extra}]'")
    yield bitsandbytes_library()
    yield compiler()
    yield cpu_adam()
    yield libaio()


def _python() -> Finding:
    here = platform.python_version()
    if Version(here) < Version("3.10"):
        return Finding("Python", here, "this program wants 3.10 or later", "install another Python", broken=True)
    return Finding("Python", here + _untried("python", here))


def _torch() -> Finding:
    try:
        import torch
    except Exception as error:
        return Finding(
            "torch", f"cannot be imported: {bare(error)}", "nothing trains", "pip install --force-reinstall torch",
            broken=True,
        )  # fmt: skip
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
    build = f"ROCm {torch.version.hip}" if torch.version.hip else build
    found = library("torch")
    return Finding("torch", f"{found.found}, {build}", found.cost, found.mend, found.broken)


def library(name: str, without: str = "", mend: str = "") -> Finding:
    """Say which version is there, and whether it is supported. `without`: what that costs; nothing: all."""
    try:
        here = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        cost = without or "nothing trains"
        return Finding(name, "not installed", cost, mend or f"pip install {name}", broken=not without)
    wanted = supported().get(name, SpecifierSet())
    if not wanted.contains(here, prereleases=True):
        cost = without or "what this version does otherwise is not known"
        return Finding(name, f"{here}, and {wanted} is supported", cost, f"pip install -U '{name}{wanted}'")
    return Finding(name, here + _untried(name, here))


@functools.cache
def supported() -> dict[str, SpecifierSet]:
    """Return which versions of libraries bigqa says that it works with."""
    found = [Requirement(line) for line in importlib.metadata.requires("bigqa") or ()]
    return {one.name: one.specifier for one in found if one.specifier}


def _untried(name: str, here: str) -> str:
    newest = TRIED.get(name)
    if newest is None or Version(here).release[:2] <= Version(newest).release[:2]:
        return ""
    return f" (newer than {newest}, the newest that was tested)"


def bitsandbytes_library() -> Finding:
    """Say whether the compiled part of bitsandbytes, which does the work, is there for this torch."""
    name = "bitsandbytes' library"
    try:
        from bitsandbytes import cextension
    except ModuleNotFoundError:
        return Finding(name, "not installed: see above")
    except Exception as error:
        return _no_bitsandbytes(name, bare(error))
    kind = type(cextension.lib).__name__
    if "Mock" in kind:
        return _no_bitsandbytes(name, "not there for this torch")
    return Finding(name, "for CUDA" if "Cuda" in kind else "for the CPU")


def _no_bitsandbytes(name: str, found: str) -> Finding:
    return Finding(
        name, found, "states of 8 bits and QLoRA fail in their first step",
        "pip install -U bitsandbytes; `python -m bitsandbytes` says what it looks for",
    )  # fmt: skip


def compiler() -> Finding:
    """Say whether there is what compiles C and C++, and what it needs."""
    missing = [name for name in (os.environ.get("CC", "gcc"), os.environ.get("CXX", "c++")) if not shutil.which(name)]
    if missing:
        return Finding("compiler", f"no {' and no '.join(map(bare, missing))} on PATH", COMPILER_COST, COMPILER)
    return Finding("compiler", "gcc and c++ are there")


def cpu_adam() -> Finding:
    """Say whether DeepSpeed's Adam for the CPU is compiled, or can be."""
    name = "DeepSpeed's CPU Adam"
    try:
        importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "not installed: see above")
    if compiled("cpu_adam"):
        return Finding(name, "compiled")
    lacks = {
        "a compiler": shutil.which(os.environ.get("CXX", "c++")) is None,
        "Python's headers": not Path(sysconfig.get_path("include"), "Python.h").is_file(),
        "ninja": not (shutil.which("ninja") or Path(sys.executable).with_name("ninja").is_file()),
    }
    missing = [what for what, is_missing in lacks.items() if is_missing]
    if missing:
        mend = {"a compiler": COMPILER, "Python's headers": "apt-get install python3-dev", "ninja": "pip install ninja"}
        return Finding(
            name, f"not compiled, and it cannot be: {', '.join(missing)} missing",
            "optimizers that are offloaded by ZeRO (zero2-offload, zero3-offload) cannot be had",
            "; ".join(mend[what] for what in missing),
        )  # fmt: skip
    return Finding(name, "compiled at its first use, in a minute or two; now: python -m bigqa.engine.extensions")


def libaio() -> Finding:
    """Say whether what DeepSpeed reads and writes a disk with can be compiled, or is."""
    if compiled("async_io"):
        return Finding("libaio", "DeepSpeed's part for disks is compiled")
    folders = [Path(sysconfig.get_path("include")), Path("/usr/include"), Path("/usr/local/include")]
    folders += [Path(part) for part in os.environ.get("CPATH", "").split(os.pathsep) if part]
    if any((folder / "libaio.h").is_file() for folder in folders):
        return Finding("libaio", "its header is there")
    return Finding(
        "libaio", "its header (libaio.h) is not there", "strategies that offload to a disk (zero3-nvme) cannot be had",
        "apt-get install libaio-dev",
    )  # fmt: skip
