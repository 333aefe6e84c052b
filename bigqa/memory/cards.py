"""What of a card torch's memory hangs on. In: a name, a compute capability. Out: `Card`."""

from dataclasses import dataclass

from bigqa.machine.chips import MULTIPROCESSORS, chip_of
from bigqa.machine.contexts import context_of
from bigqa.machine.gpus import find_gpu


@dataclass(frozen=True)
class Card:
    """A card as torch's kernels see it."""

    capability: tuple[int, int] = (8, 0)
    multiprocessors: int = 108
    threads: int = 2048
    """That a multiprocessor holds at once."""
    context_bytes: int = context_of("A100-80")
    """What a process takes of it besides torch's memory."""


A100 = Card()


def card_for(name: str, capability: tuple[int, int], total_bytes: int | None = None) -> Card:
    """Return a card by its name; one that the table has not is taken to have as many multiprocessors as an A100."""
    per = MULTIPROCESSORS.get(capability)
    model = find_gpu(name, total_bytes)
    multiprocessors = A100.multiprocessors if model is None else chip_of(model).multiprocessors
    threads = per.threads if per else A100.threads
    return Card(capability, multiprocessors, threads, context_of(name, total_bytes))
