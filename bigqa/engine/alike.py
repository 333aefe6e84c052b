"""What the cards of a run have in common. In: a device. Out: what every process of the run decides alike by.

A run on an A100 and a T4 whose processes each looked at their own card would train one half in bf16 and the other in
fp16, or pack windows in one and pad them in the other.
"""

import os

import torch

FLASH_FROM = (8, 0)
"""Compute capability from which cards have bf16, and torch flash attention for them."""


def least_capability(device: torch.device) -> tuple[int, int]:
    """Return the lowest compute capability among the cards of this machine's processes: of one process, its own."""
    return min(torch.cuda.get_device_capability(card) for card in _cards(device))


def without_bf16(device: torch.device) -> str | None:
    """Return the name of a card of the run that has no bf16; none: all have it."""
    names = (torch.cuda.get_device_name(c) for c in _cards(device) if torch.cuda.get_device_capability(c) < FLASH_FROM)
    return next(names, None)


def _cards(device: torch.device) -> list[torch.device]:
    count = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count())
    return [torch.device("cuda", index) for index in range(count)] if count > 1 else [device]
