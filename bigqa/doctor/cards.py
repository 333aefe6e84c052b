"""Cards and what drives them: does this torch have kernels for them, does the driver answer, is anyone else on them?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa.doctor.finding import Finding, bare
from bigqa.machine.hardware import Gpu, Hardware
from bigqa.machine.kernels import lacking
from bigqa.units import MIB, format_bytes

NODES = ("/dev/nvidiactl", "/dev/dxg")
"""Of NVIDIA's driver, on Linux and within WSL2."""
ON_CPU = "all is trained on the CPU"
PINNED_BYTES = 256 * MIB


def findings(hardware: Hardware) -> Iterator[Finding]:
    """Look at each card; where there is none, at the CPU that does its work."""
    if not hardware.gpus:
        if any(Path(node).exists() for node in NODES):
            yield Finding("driver", "is there, and does not answer", ON_CPU, "restart, or install the driver again")
            return
        low = "with bf16" if hardware.cpu.bf16 else "without bf16"
        yield Finding("card", f"none of NVIDIA's: plans are for the CPU, {hardware.cpu.cores} cores {low}")
        return
    yield from (_card(card) for card in hardware.gpus)
    try:
        yield _cuda(hardware.gpus[0])
    except Exception as error:  # torch cannot be imported: told elsewhere
        yield Finding("CUDA", bare(error), ON_CPU, "see torch")


def _card(card: Gpu) -> Finding:
    found = f"{card.name}, {format_bytes(card.free_bytes)} of {format_bytes(card.total_bytes)} free"
    if card.others:
        of = "another process is" if card.others == 1 else f"{card.others} other processes are"
        return Finding("card", found, f"{of} on it, and plans are for what is left", "nvidia-smi names them")
    return Finding("card", found)


def _cuda(card: Gpu) -> Finding:
    import torch

    from bigqa.engine.processes import torch_here

    build = torch_here()
    if build.code is None:
        return Finding(
            "CUDA", "torch is built for the CPU alone", ON_CPU, f"pip install --force-reinstall torch=={build.public}"
        )
    problem = lacking(card.name, card.capability, build)
    if problem is not None:
        found, _, mend = problem.partition(": ")
        return Finding("CUDA", found, ON_CPU, mend)
    driver = f"driver {card.driver}" if card.driver else "the driver"
    if not torch.cuda.is_available():
        return Finding(
            "CUDA", f"{driver} does not run torch's CUDA {torch.version.cuda}", ON_CPU,
            f"install a driver that is made for CUDA {torch.version.cuda}, or a torch for an older CUDA",
        )  # fmt: skip
    return _pinned(torch, f"{torch.version.cuda}, {driver}")


def _pinned(torch: Any, found: str) -> Finding:
    try:
        torch.empty(PINNED_BYTES, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return Finding(
            "CUDA", f"{found}; {format_bytes(PINNED_BYTES)} of the host's memory cannot be pinned",
            "what is streamed or offloaded is copied at a half of its speed, or not at all",
            "free some memory; within WSL2 give it more in .wslconfig",
        )  # fmt: skip
    return Finding("CUDA", found)
