"""What a run or a measurement depends on, in versions. In: nothing. Out: names and versions, and this code's commit."""

import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

from bigqa import __version__

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors")
PACKAGES_IF_THERE = ("deepspeed", "bitsandbytes", "peft")


def versions() -> dict[str, str]:
    """Return the versions that a run depends on."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"bigqa": __version__, "python": platform.python_version(), "platform": sys.platform}
    found |= {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in PACKAGES_IF_THERE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def code() -> str:
    """Return a digest of this package's own code, wherever it is installed, changed by hand or not."""
    folder, digest = Path(__file__).parent, hashlib.blake2b(digest_size=6)
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder).as_posix()}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """Return the commit of this code, marked where files differ from it; none where no repository holds it.

    An environment may lie within the repository of something else: that one does not hold this file.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", __file__)
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None
