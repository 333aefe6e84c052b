"""A thread beside the one that trains. In: a device, a name. Out: an executor of one thread, for that device.

Which card CUDA means is each thread's own: the first, until it has said otherwise. Whatever a thread asks for that did
not would make a context on the first card, of hundreds of MiB, in every process of a run.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


def index_of(device: torch.device) -> int:
    """Return CUDA's number of a card; of one without a number, of the card that this thread means."""
    return torch.cuda.current_device() if device.index is None else device.index


def thread_of(device: torch.device, name: str) -> ThreadPoolExecutor:
    """Return one; it begins with its first piece of work."""
    if device.type != "cuda":
        return ThreadPoolExecutor(1, thread_name_prefix=name)
    return ThreadPoolExecutor(
        1, thread_name_prefix=name, initializer=torch.cuda.set_device, initargs=(index_of(device),)
    )
