"""Cards that plans can be made for without having them. In: a name. Out: its datasheet's figures.

A card is one row. Matrix rates are dense, with fp32 accumulation where the datasheet tells them apart, and without
sparsity. `memory_mib` is what NVML shows as the total, a little below the nominal size.
"""

import re

from pydantic import BaseModel, ConfigDict


class GpuModel(BaseModel):
    """One row. Rates in 10^12 floating-point operations per second, bandwidths in 10^9 bytes per second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_mib: int
    capability: tuple[int, int]
    half_tflops: float
    """fp16, and bf16 where the card has it."""
    fp32_tflops: float
    """TF32 is not counted: fp32 means fp32."""
    bandwidth_gb_per_s: float
    link_gb_per_s: float
    """To the host, one direction, as achieved by pinned copies: about 80% of the nominal PCIe rate."""
    source: str

    @property
    def memory_bytes(self) -> int:
        """Total memory."""
        return self.memory_mib * 2**20

    @property
    def has_bf16(self) -> bool:
        """Whether the card multiplies in bf16."""
        return self.capability >= (8, 0)


PCIE3, PCIE4, PCIE5 = 12.5, 25.0, 50.0


def _row(
    name: str,
    memory_mib: int,
    capability: tuple[int, int],
    half: float,
    fp32: float,
    bandwidth: float,
    link: float,
    source: str,
) -> GpuModel:
    return GpuModel(
        name=name,
        memory_mib=memory_mib,
        capability=capability,
        half_tflops=half,
        fp32_tflops=fp32,
        bandwidth_gb_per_s=bandwidth,
        link_gb_per_s=link,
        source=source,
    )


GPUS: tuple[GpuModel, ...] = (
    _row("T4", 15360, (7, 5), 65, 8.1, 320, PCIE3, "NVIDIA T4 datasheet (2019)"),
    _row("P100", 16276, (6, 0), 18.7, 9.3, 732, PCIE3, "NVIDIA Tesla P100 PCIe datasheet (2016)"),
    _row("V100-16", 16160, (7, 0), 112, 14, 900, PCIE3, "NVIDIA V100 PCIe datasheet (2020)"),
    _row("V100-32", 32510, (7, 0), 112, 14, 900, PCIE3, "NVIDIA V100 PCIe datasheet (2020)"),
    _row("1080 Ti", 11264, (6, 1), 11.3, 11.3, 484, PCIE3, "GeForce GTX 1080 Ti specifications (2017)"),
    _row("2080 Ti", 11264, (7, 5), 53.8, 13.4, 616, PCIE3, "NVIDIA Turing architecture whitepaper (2018)"),
    _row("3060-12", 12288, (8, 6), 25.5, 12.7, 360, PCIE4, "NVIDIA GA102 whitepaper (2021), GeForce RTX 3060 page"),
    _row("3080-10", 10240, (8, 6), 59.5, 29.8, 760, PCIE4, "NVIDIA GA102 whitepaper (2021)"),
    _row("3090", 24576, (8, 6), 71.0, 35.6, 936, PCIE4, "NVIDIA GA102 whitepaper (2021)"),
    _row("4060 Ti-16", 16380, (8, 9), 44.1, 22.1, 288, PCIE4, "NVIDIA Ada whitepaper (2023)"),
    _row("4090", 24564, (8, 9), 165.2, 82.6, 1008, PCIE4, "NVIDIA Ada whitepaper (2023)"),
    _row("5090", 32607, (12, 0), 209.5, 104.8, 1792, PCIE5, "NVIDIA RTX Blackwell whitepaper (2025)"),
    _row("L4", 23034, (8, 9), 121, 30.3, 300, PCIE4, "NVIDIA L4 datasheet (2023)"),
    _row("A10G", 23028, (8, 6), 70, 35, 600, PCIE4, "AWS G5 and NVIDIA A10 datasheets (2021)"),
    _row("A100-40", 40960, (8, 0), 312, 19.5, 1555, PCIE4, "NVIDIA A100 datasheet (2021)"),
    _row("A100-80", 81920, (8, 0), 312, 19.5, 1935, PCIE4, "NVIDIA A100 80GB PCIe datasheet (2021)"),
    _row("L40S", 46068, (8, 9), 362, 91.6, 864, PCIE4, "NVIDIA L40S datasheet (2023)"),
    _row("H100", 81559, (9, 0), 989, 67, 3350, PCIE5, "NVIDIA H100 SXM datasheet (2023)"),
    _row("H200", 143771, (9, 0), 989, 67, 4800, PCIE5, "NVIDIA H200 SXM datasheet (2024)"),
    _row("B200", 183359, (10, 0), 2250, 80, 8000, PCIE5, "NVIDIA DGX B200 datasheet (2024)"),
)


def find_gpu(name: str, total_bytes: int | None = None) -> GpuModel | None:
    """Return the row that a name means ("Tesla T4", "NVIDIA GeForce RTX 3090", "a100"), or none.

    Where a name fits cards of several sizes, the memory decides, and without one the smallest is taken. A name that
    says more of a card than the row does ("3060 Ti", "4090 Laptop", "3080 12GB") is of another card.
    """
    words = _words(name)
    fitting = [card for card in GPUS if _words(card.name.split("-")[0]) <= words]
    fitting = [card for card in fitting if not (words & KINDS) - _words(card.name)]
    fitting = [card for card in fitting if all(_is_size_of(int(size), card) for size in _sizes(name))]
    exact = [card for card in fitting if _words(card.name) <= words | _sizes(name)]
    # "Ti" and "S" tell cards apart: the row that names most of the words is meant.
    most = max((len(_words(card.name.split("-")[0])) for card in fitting), default=0)
    fitting = [card for card in exact or fitting if len(_words(card.name.split("-")[0])) == most]
    if total_bytes is not None:
        return min(fitting, key=lambda card: abs(card.memory_bytes - total_bytes), default=None)
    return min(fitting, key=lambda card: card.memory_bytes, default=None)


KINDS = {"ti", "super", "laptop", "mobile", "max", "mig"}
"""Words that make another card of a name."""


def _is_size_of(gigabytes: int, card: GpuModel) -> bool:
    return abs(card.memory_mib / 1024 - gigabytes) <= max(1.0, 0.07 * gigabytes)


def _words(name: str) -> set[str]:
    return set(re.sub(r"(\d)(Ti)\b", r"\1 \2", name, flags=re.IGNORECASE).lower().replace("-", " ").split())


def _sizes(name: str) -> set[str]:
    return {size for size in re.findall(r"(\d+)\s*gi?b", name.lower())}
