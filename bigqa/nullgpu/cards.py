"""Which card is not there. In: a name of the table, and what differs. Out: its description for the libraries."""

from dataclasses import dataclass
from typing import Literal

from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.machine.chips import chip_of, multiprocessor_of
from bigqa.machine.contexts import context_bytes
from bigqa.machine.gpus import GPUS, GpuModel, find_gpu
from bigqa.machine.kernels import IN_CUDA_13, has_kernels
from bigqa.units import MIB

Bound = Literal["least", "most"]


AS_KNOWN = -1
SIGN, COUNT = "BIGQA_NULL_CARD", "BIGQA_NULL_COUNT"
"""Set where a program runs on a null GPU: the card, and how many there are."""


@dataclass(frozen=True)
class NullGpu:
    """Cards of one kind, and when what they do is done."""

    card: GpuModel
    count: int = 1
    memory_bytes: int | None = None
    """Total memory as CUDA reports it; none: the card's own."""
    context_bytes: int = AS_KNOWN
    """What CUDA's context takes of it; by itself as `machine.contexts` knows it of the card."""
    bound: Bound = "least"

    def __post_init__(self) -> None:
        if self.context_bytes == AS_KNOWN:
            object.__setattr__(self, "context_bytes", context_bytes(self.card))

    @property
    def total_bytes(self) -> int:
        """What CUDA reports as total memory."""
        return self.memory_bytes if self.memory_bytes is not None else chip_of(self.card).cuda_mib * MIB

    @property
    def free_bytes(self) -> int:
        """What is left of it for torch."""
        return self.total_bytes - self.context_bytes

    def variables(self) -> dict[str, str]:
        """Return the environment variables that say so."""
        return {SIGN: self.description(), COUNT: str(self.count)}

    def description(self) -> str:
        """Return what `src/card.c` reads."""
        chip, per = chip_of(self.card), multiprocessor_of(self.card)
        fields = {
            "name": chip.cuda_name,
            "capability": "{}.{}".format(*self.card.capability),
            "memory": self.total_bytes,
            "context": self.context_bytes,
            "sms": chip.multiprocessors,
            "l2": chip.l2_kib * 1024,
            "bus": chip.bus_bits,
            "shared_sm": per.shared_kib * 1024,
            "shared_block": per.block_shared_kib * 1024,
            "threads_sm": per.threads,
            "blocks_sm": per.blocks,
        }
        return ";".join(f"{name}={value}" for name, value in fields.items())


def find_card(name: str) -> GpuModel:
    """Return the card that a name means.

    Raises: UsageError where the table has no such card, or torch's builds no code for it.
    """
    card = find_gpu(name)
    if card is None:
        raise UsageError(
            tr("--gpu {name}: no such card; one of {gpus}", name=name, gpus=", ".join(c.name for c in GPUS if runs(c)))
        )
    if not runs(card):
        capability = "{}.{}".format(*card.capability)
        raise UsageError(
            tr(
                "--gpu {name}: since CUDA 13 torch has no code for the {card} (compute capability "
                "{capability}, the oldest is 7.5); it runs torch built for CUDA 12.6 (`bigqa probe --gpu "
                "{card!r}` says which, and predicts), and that cannot be rehearsed",
                name=name,
                card=card.name,
                capability=capability,
            )
        )
    return card


def runs(card: GpuModel) -> bool:
    """Whether torch's builds for CUDA 13 have code for it."""
    return has_kernels(card.capability, IN_CUDA_13)
