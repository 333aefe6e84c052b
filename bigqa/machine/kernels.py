"""Which cards a build of torch has kernels for, and what to install for the others. In: capabilities. Out: a line.

A build holds code for some compute capabilities (`torch.cuda.get_arch_list()`). Binary code (sm_XY) runs on cards of
its own major version from its minor version on, PTX (compute_XY) on every card from it on, since the driver compiles
it; code with an `a` runs on that one capability alone, with an `f` on its family (CUDA C++ Programming Guide, "Binary
Compatibility", "PTX Compatibility" and "Family-Specific Architecture Features").
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bigqa.language import Text, put, tr

Capability = tuple[int, int]

IN_CUDA_13 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""As the wheels of PyPI have it for x86-64: read out of torch 2.11.0, 2.12.1, 2.13.0 and 2.14.1, all of CUDA 13.0."""
IN_CUDA_12_6 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
"""PyTorch's RELEASE.md, "PyTorch CUDA Support Matrix", CUDA 12.6.3, the same for 2.11 to 2.14."""
LAST_CUDA_12_6 = (2, 14)
"""The last torch that there is a build for CUDA 12.6 of (pytorch/pytorch#190385)."""
INDEX_12_6 = "https://download.pytorch.org/whl/cu126"
"""The index that PyTorch's own "Get Started" page names for that build."""


@dataclass(frozen=True)
class Build:
    """A torch, as far as cards go."""

    version: str
    """Such as 2.13.0+cu130."""
    code: tuple[str, ...] | None
    """What it has code for; none where it is no build for NVIDIA's cards."""

    @property
    def public(self) -> str:
        """The version without its build."""
        return self.version.partition("+")[0]

    @property
    def numbers(self) -> tuple[int, int]:
        """Major and minor version."""
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found[1]), int(found[2])) if found else (0, 0)


def has_kernels(capability: Capability, code: Iterable[str]) -> bool:
    """Whether some of the code runs on cards of this capability."""
    return any(_runs_on(one, capability) for one in code)


def _runs_on(one: str, capability: Capability) -> bool:
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", one)
    if found is None:
        return False
    target, only = (int(found[2]), int(found[3])), found[4]
    if only == "a":
        return capability == target
    in_major = capability[0] == target[0] and capability >= target
    return in_major if found[1] == "sm" or only == "f" else capability >= target


def lacking(card: str, capability: Capability, build: Build) -> str | None:
    """Say that a torch has no kernels for a card, and what to install instead; nothing where it has them."""
    problem = no_kernels(card, capability, build)
    if problem is None:
        return None
    return put("{problem}: {remedy}", problem=problem, remedy=remedy(capability, build))


def no_kernels(card: str, capability: Capability, build: Build) -> Text | None:
    """Say that a torch has no kernels for a card; nothing where it has them.

    Of a build for the CPU, that of PyPI is meant in its place: it is what an installation on a GPU gets.
    """
    code = IN_CUDA_13 if build.code is None else build.code
    if has_kernels(capability, code):
        return None
    named = (
        tr("torch {version}", version=build.version)
        if build.code is not None
        else tr("torch {public} as PyPI has it (CUDA 13)", public=build.public)
    )
    of = tr("compute capability {major}.{minor}", major=capability[0], minor=capability[1])
    return tr("{named} has no kernels for the {card} ({of})", named=named, card=card, of=of)


def remedy(capability: Capability, build: Build) -> str:
    """Say which build has kernels for a card."""
    if has_kernels(capability, IN_CUDA_13):
        return tr("install PyPI's, which has: pip install torch=={public}", public=build.public)
    if not has_kernels(capability, IN_CUDA_12_6):
        return tr("no build of torch that this program runs with has; choose another card, or build torch from source")
    if build.numbers <= LAST_CUDA_12_6:
        return tr(
            "install the same torch for CUDA 12.6: pip install torch=={public} --index-url {index}",
            public=build.public,
            index=INDEX_12_6,
        )
    last = ".".join(map(str, LAST_CUDA_12_6))
    return tr(
        "install the last torch that was built for CUDA 12.6: pip install 'torch=={last}.*' --index-url {index}",
        last=last,
        index=INDEX_12_6,
    )
