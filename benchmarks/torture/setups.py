"""What runs are trained under, and which of them go on with which. In: nothing. Out: setups, pairs, bands.

A pair begins under one setup and goes on under the other. Bands are those of tests/test_strategies.py: how far the loss
of a step may be from the same step under another setup.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigqa.strategy import STRATEGIES, Strategy

FP32_BAND, LOW_BAND = 1e-5, 0.01
MICRO_BATCH = 2
ZERO = ("zero1", "zero2", "zero3", "zero2-offload", "zero3-offload")
EXACT = ("plain", "recompute", "selective", "offload-activations")
ROUNDED = ("8bit", "stochastic", "stream")
RELEASED = ("release-recompute", "cpu-least", "stream-8bit")
"""Clipped by the norm of the step before: how far a step's loss may be is stated nowhere."""
ADAPTERS = ("lora", "qlora-recompute")
DISK = ("stream-disk",)


@dataclass(frozen=True)
class Setup:
    """How one start of a run is trained."""

    strategy: str
    precision: str
    processes: int = 1
    device: str = "cpu"

    @property
    def key(self) -> str:
        """What tells it from every other."""
        return f"{self.strategy}-{self.precision}-{self.processes}-{self.device}"

    @property
    def axes(self) -> Strategy:
        """The strategy's axes on this device and in this precision."""
        row = STRATEGIES[self.strategy]
        precision = "bf16-sr" if row.precision == "bf16-sr" else self.precision
        return row.model_copy(update={"device": self.device, "precision": precision})

    @property
    def plan(self) -> dict[str, Any]:
        """What `--plan` gives."""
        axes = self.axes
        settings = {"strategy": axes.model_dump(), "micro_batch": axes.micro_batch or MICRO_BATCH}
        if axes.precision != "bf16-sr":
            settings["precision"] = axes.precision  # and not what this processor is best at
        return {"settings": settings}

    @property
    def scores(self) -> bool:
        """Whether it can be scored as it trains."""
        return not (self.axes.stream or self.axes.zero_stage == 3)

    @property
    def is_released(self) -> bool:
        """Whether no band is stated for the losses of its steps."""
        return self.strategy in RELEASED


def setups_on_cpu() -> Iterator[Setup]:
    """Yield all setups of a CPU."""
    for name in (*EXACT, "stream"):
        yield Setup(name, "fp32")
    for name in (*EXACT, *ROUNDED, *RELEASED, *ADAPTERS, *DISK):
        yield Setup(name, "bf16")
    for count in (2, 4):
        for name, precision in (("plain", "fp32"), ("recompute", "fp32"), ("plain", "bf16"), ("8bit", "bf16")):
            yield Setup(name, precision, count)
    for name in ZERO:
        yield Setup(name, "fp32" if name == "zero1" else "bf16", 2)
    yield Setup("lora", "bf16", 2)
    yield Setup("zero2", "fp32", 4)
    yield Setup("zero3", "bf16", 1)


def setups_on_gpu() -> Iterator[Setup]:
    """Yield all setups of a GPU that is not there."""
    for name in (*EXACT, "8bit", "stochastic", "stream", "release-recompute", "lora", "paged-8bit-recompute"):
        yield Setup(name, "bf16", device="cuda")
    for name in ("plain", "recompute"):
        yield Setup(name, "fp32", device="cuda")


def pairs_of(setups: list[Setup]) -> list[tuple[Setup, Setup]]:
    """Return which setups go on with which: what is trained must be the same."""
    return [(one, other) for one in setups for other in setups if one.axes.adapters == other.axes.adapters]


def band_of(one: Setup, other: Setup) -> float | None:
    """Return how far a step's loss may be from another setup's, relative to it; none: it is not stated."""
    if one.is_released or other.is_released:
        return None
    both = {one.axes.precision, other.axes.precision}
    return FP32_BAND if both == {"fp32"} else LOW_BAND
