"""What a process takes of a card besides torch's own memory: CUDA's context, kernels, cuBLAS. In: a card. Out: bytes.

NVML counts it, torch does not. Figures are worked out from torch's own out-of-memory messages that people have
published: "this process has 22.03 GiB memory in use. Of the allocated memory 20.51 GiB is allocated by PyTorch, and
1.22 GiB is reserved by PyTorch but unallocated". The rest is the context with what was loaded into it; two decimals of
a GiB leave 15 MiB of doubt. Taken are messages of one process on one card since CUDA 11.7, which loads kernels as they
are needed (before, it was over 1 GiB); of several the largest. NCCL is not in it.
"""

from dataclasses import dataclass

from bigqa.machine.chips import CHIPS
from bigqa.machine.gpus import GPUS, GpuModel, find_gpu
from bigqa.units import MIB


@dataclass(frozen=True)
class Message:
    """What one message says. GiB."""

    in_use: float
    allocated: float
    unallocated: float
    source: str
    """Where it was published; a message without a thread stands in a public repository, to be found by its figures."""

    @property
    def context_mib(self) -> int:
        """What is neither allocated nor kept by torch."""
        return round(1024 * (self.in_use - self.allocated - self.unallocated))


ALONE = "in a public repository"
MESSAGES: dict[str, tuple[Message, ...]] = {
    "T4": (Message(14.71, 14.54, 10.14 / 1024, ALONE), Message(14.37, 14.20, 59.17 / 1024, ALONE)),
    "P100": (Message(15.77, 15.44, 20.58 / 1024, ALONE),),
    "V100-16": (Message(15.75, 14.89, 497.13 / 1024, ALONE),),
    "V100-32": (Message(18.00, 17.61, 13.91 / 1024, ALONE),),
    "2080 Ti": (Message(10.69, 10.48, 29.33 / 1024, ALONE),),
    "3080-10": (Message(9.43, 9.04, 142.12 / 1024, "bcmi/libcom#54"),),
    "3090": (
        Message(22.10, 21.32, 310.45 / 1024, ALONE),
        Message(23.68, 23.04, 301.75 / 1024, ALONE),
        Message(19.81, 13.90, 5.61, ALONE),
    ),
    "4090": (
        Message(22.69, 21.72, 520.54 / 1024, "pinokiofactory/flux-webui#11"),
        Message(22.64, 20.64, 1.55, ALONE),
        Message(23.48, 23.11, 146 / 1024**2, ALONE),
    ),
    "5090": (Message(31.34, 30.74, 19.41 / 1024, "Wan-Video/Wan2.1#465"),),
    "L4": (Message(21.96, 21.65, 66.83 / 1024, ALONE), Message(21.96, 21.69, 65.15 / 1024, ALONE)),
    "A10G": (Message(22.03, 20.51, 1.22, ALONE),),
    "A100-40": (
        Message(39.12, 25.48, 13.11, ALONE),
        Message(14.25, 12.87, 912.01 / 1024, "TianheWu/CoSeR#10"),
        Message(39.19, 38.61, 102.73 / 1024, ALONE),
    ),
    "A100-80": (Message(66.91, 39.50, 26.91, ALONE), Message(16.54, 15.94, 205.65 / 1024, "HiDream-ai/VAREdit#6")),
    "L40S": (Message(23.32, 22.60, 215.14 / 1024, ALONE), Message(44.36, 36.83, 7.03, ALONE)),
    "H100": (Message(72.18, 36.69, 34.84, ALONE),),
    "H200": (Message(139.80 - 289.25 / 1024, 139.0, 0.0, "stas00/ml-engineering, debug: blocks of 1 GiB until full"),),
    "B200": (Message(168.34, 167.64, 4.62 / 1024, "stas00/ml-engineering, debug"),),
}


def context_bytes(card: GpuModel) -> int:
    """Return what a process takes of a card besides torch's memory.

    Where no figure is public: that of the card with the next more multiprocessors of the same major compute
    capability, since it grows with both; of the largest of all where there is none.
    """
    known = MESSAGES.get(card.name) or MESSAGES[_stand_in(card)]
    return max(message.context_mib for message in known) * MIB


def context_of(name: str, total_bytes: int | None = None) -> int:
    """The same by a name; of a card that the table has not, the most that any takes."""
    card = find_gpu(name, total_bytes)
    return context_bytes(card) if card is not None else max(map(context_bytes, GPUS))


def _stand_in(card: GpuModel) -> str:
    def size(other: GpuModel) -> int:
        return CHIPS[other.name].multiprocessors

    known = [other for other in GPUS if other.name in MESSAGES]
    alike = [other for other in known if other.capability[0] == card.capability[0] and size(other) >= size(card)]
    return min(alike, key=size).name if alike else max(known, key=size).name
