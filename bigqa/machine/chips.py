"""What programs ask a card for: multiprocessors, caches, memory as CUDA says it. In: a row of `gpus`. Out: its chip.

Apart from `gpus`, whose rows go into plans and reports: torch chooses kernels, and the size of what they write down
between their parts, by these.
"""

from dataclasses import dataclass

from bigqa.machine.gpus import GpuModel


@dataclass(frozen=True)
class Chip:
    """One card."""

    cuda_name: str
    """As CUDA and NVML give it."""
    cuda_mib: int
    """Total memory as CUDA reports it, from published out-of-memory messages of torch ("a total capacity of
    14.74 GiB"): a little below NVML's, and a few MiB more or less by driver."""
    multiprocessors: int
    l2_kib: int
    bus_bits: int
    source: str
    """Of the multiprocessors, L2 and bus."""


@dataclass(frozen=True)
class Multiprocessor:
    """One of a compute capability (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")."""

    shared_kib: int
    block_shared_kib: int
    """The most that a block may ask for."""
    threads: int
    blocks: int


CHIPS: dict[str, Chip] = {
    "T4": Chip("Tesla T4", 15095, 40, 4096, 256, "NVIDIA Turing architecture whitepaper (2018)"),
    "P100": Chip("Tesla P100-PCIE-16GB", 16276, 56, 4096, 4096, "NVIDIA Tesla P100 whitepaper (2016)"),
    "V100-16": Chip("Tesla V100-PCIE-16GB", 16151, 80, 6144, 4096, "NVIDIA Tesla V100 whitepaper (2017)"),
    "V100-32": Chip("Tesla V100-PCIE-32GB", 32501, 80, 6144, 4096, "NVIDIA Tesla V100 whitepaper (2017)"),
    "1080 Ti": Chip("NVIDIA GeForce GTX 1080 Ti", 11172, 28, 2816, 352, "GeForce GTX 1080 Ti specifications (2017)"),
    "2080 Ti": Chip("NVIDIA GeForce RTX 2080 Ti", 11011, 68, 5632, 352, "NVIDIA Turing architecture whitepaper (2018)"),
    "3060-12": Chip("NVIDIA GeForce RTX 3060", 12044, 28, 2304, 192, "GeForce RTX 3060 page; L2: deviceQuery"),
    "3080-10": Chip("NVIDIA GeForce RTX 3080", 10009, 68, 5120, 320, "NVIDIA GA102 whitepaper (2021)"),
    "3090": Chip("NVIDIA GeForce RTX 3090", 24259, 82, 6144, 384, "NVIDIA GA102 whitepaper (2021)"),
    "4060 Ti-16": Chip("NVIDIA GeForce RTX 4060 Ti", 15974, 34, 32768, 128, "NVIDIA Ada whitepaper (2023)"),
    "4090": Chip("NVIDIA GeForce RTX 4090", 24210, 128, 73728, 384, "NVIDIA Ada whitepaper (2023)"),
    "5090": Chip("NVIDIA GeForce RTX 5090", 32111, 170, 98304, 512, "NVIDIA RTX Blackwell whitepaper (2025)"),
    "L4": Chip("NVIDIA L4", 22561, 58, 49152, 192, "NVIDIA L4 datasheet (2023), Ada whitepaper"),
    "A10G": Chip("NVIDIA A10G", 22587, 80, 6144, 384, "AWS G5 page (2021), NVIDIA GA102 whitepaper"),
    "A100-40": Chip("NVIDIA A100-SXM4-40GB", 40338, 108, 40960, 5120, "NVIDIA A100 whitepaper (2020)"),
    "A100-80": Chip("NVIDIA A100-SXM4-80GB", 81153, 108, 40960, 5120, "NVIDIA A100 whitepaper (2020)"),
    "L40S": Chip("NVIDIA L40S", 45458, 142, 98304, 384, "NVIDIA L40S datasheet (2023), Ada whitepaper"),
    "H100": Chip("NVIDIA H100 80GB HBM3", 81004, 132, 51200, 5120, "NVIDIA H100 whitepaper (2022)"),
    "H200": Chip("NVIDIA H200", 143156, 132, 61440, 6144, "H100 whitepaper; L2 as CUDA reports it"),
    "B200": Chip("NVIDIA B200", 182640, 148, 129536, 7680, "what CUDA reports, in pytorch/ao#4002"),
}
"""Compute capabilities are in `gpus` (NVIDIA's list "CUDA GPUs"); what a process takes besides torch in `contexts`."""

MULTIPROCESSORS: dict[tuple[int, int], Multiprocessor] = {
    (6, 0): Multiprocessor(64, 48, 2048, 32),
    (6, 1): Multiprocessor(96, 48, 2048, 32),
    (7, 0): Multiprocessor(96, 96, 2048, 32),
    (7, 5): Multiprocessor(64, 64, 1024, 16),
    (8, 0): Multiprocessor(164, 163, 2048, 32),
    (8, 6): Multiprocessor(100, 99, 1536, 16),
    (8, 9): Multiprocessor(100, 99, 1536, 24),
    (9, 0): Multiprocessor(228, 227, 2048, 32),
    (10, 0): Multiprocessor(228, 227, 2048, 32),
    (12, 0): Multiprocessor(100, 99, 1536, 24),
}


def chip_of(card: GpuModel) -> Chip:
    """Return a card's chip."""
    return CHIPS[card.name]


def multiprocessor_of(card: GpuModel) -> Multiprocessor:
    """Return what a multiprocessor of the card has."""
    return MULTIPROCESSORS[card.capability]
