"""Cards and what drives them: does this torch have kernels for them, does the driver answer, is anyone else on them?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.doctor.finding import Finding, bare
from bigqa.language import Text, put, tr
from bigqa.machine.hardware import Gpu, Hardware
from bigqa.machine.kernels import no_kernels, remedy
from bigqa.units import MIB, format_bytes

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""Of NVIDIA's driver, on Linux and within WSL2."""
ON_CPU = tr("all is trained on the CPU")
PINNED_BYTES = 256 * MIB


def findings(hardware: Hardware) -> Iterator[Finding]:
    """Look at each card; where there is none, at the CPU that does its work."""
    if not hardware.gpus:
        if any(Path(node).exists() for node in NODES):
            mend = tr("restart, or install the driver again")
            yield Finding(tr("driver"), tr("is there, and does not answer"), ON_CPU, mend)
            return
        low = tr("with bf16") if hardware.cpu.bf16 else tr("without bf16")
        found = tr("none of NVIDIA's: plans are for the CPU, {cores} cores {low}", cores=hardware.cpu.cores, low=low)
        yield Finding(tr("card"), found)
        return
    yield from (_card(card) for card in hardware.gpus)
    try:
        yield _cuda(hardware.gpus[0])
    except Exception as error:  # torch cannot be imported: told elsewhere
        yield Finding("CUDA", bare(error), ON_CPU, tr("see torch"))


def _card(card: Gpu) -> Finding:
    free, total = format_bytes(card.free_bytes), format_bytes(card.total_bytes)
    found = tr("{name}, {free} of {total} free", name=card.name, free=free, total=total)
    if not card.others:
        return Finding(tr("card"), found)
    one = tr("another process is on it, and plans are for what is left")
    more = tr("{count} other processes are on it, and plans are for what is left", count=card.others)
    return Finding(tr("card"), found, one if card.others == 1 else more, tr("nvidia-smi names them"))


def _cuda(card: Gpu) -> Finding:
    import torch

    from bigqa.engine.processes import torch_here

    build = torch_here()
    if build.code is None:
        again = put("pip install --force-reinstall torch=={version}", version=build.public)
        return Finding("CUDA", tr("torch is built for the CPU alone"), ON_CPU, again)
    problem = no_kernels(card.name, card.capability, build)
    if problem is not None:
        return Finding("CUDA", problem, ON_CPU, remedy(card.capability, build))
    driver = tr("driver {version}", version=card.driver) if card.driver else tr("the driver")
    if not torch.cuda.is_available():
        return Finding(
            "CUDA",
            tr("{driver} does not run torch's CUDA {version}", driver=driver, version=torch.version.cuda),
            ON_CPU,
            tr(
                "install a driver that is made for CUDA {version}, or a torch for an older CUDA",
                version=torch.version.cuda,
            ),
        )
    return _pinned(torch, put("{version}, {driver}", version=torch.version.cuda, driver=driver))


def _pinned(torch: Any, found: Text) -> Finding:
    try:
        torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return Finding(
            "CUDA",
            tr("{found}; {size} of the host's memory cannot be pinned", found=found, size=format_bytes(PINNED_BYTES)),
            tr("what is streamed or offloaded is copied at a half of its speed, or not at all"),
            tr("free some memory; within WSL2 give it more in .wslconfig"),
        )
    return Finding("CUDA", found)
