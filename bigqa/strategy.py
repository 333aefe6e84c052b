"""How a model is trained within a memory: axes, not names. In: nothing. Out: `Strategy`, and named rows.

Engine and predictor read the axes; only tables and `--strategy` know the names.
"""

import importlib.util
from typing import Literal

from pydantic import BaseModel, ConfigDict

from bigqa.language import tr

Precision = Literal["fp32", "bf16", "fp16", "bf16-sr"]
Optimizer = Literal["adamw", "adamw8bit", "paged-adamw8bit"]
Recompute = Literal["none", "selective", "full"]
Offload = Literal["none", "cpu", "nvme"]
Adapters = Literal["none", "lora", "qlora"]


class Strategy(BaseModel):
    """One point on every axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Precision = "fp32"
    """fp32; bf16 or fp16 weights with fp32 masters in the optimizer; bf16 with stochastic rounding and no masters."""
    optimizer: Optimizer = "adamw"
    release: bool = False
    """Each parameter steps as soon as its gradient is complete, and the gradient is freed."""
    recompute: Recompute = "none"
    activation_offload: bool = False
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Offload = "none"
    offload_parameters: Offload = "none"
    adapters: Adapters = "none"
    stream: bool = False
    """Weights, gradients and states on the host, or on a disk as the offload axes say; layers come to the device one
    after the other, for all micro-batches of a step."""
    micro_batch: int | None = None
    """Held at this size, where that is the strategy's point."""
    seq_len: int | None = None
    """Windows cut to this length."""
    device: Literal["cuda", "cpu"] = "cuda"

    @property
    def needs_deepspeed(self) -> bool:
        """Whether DeepSpeed runs it."""
        return self.zero_stage > 0

    @property
    def kept_on_host(self) -> frozenset[str]:
        """What of a step a GPU's run keeps in the host's memory."""
        held = {
            "weights": self.stream or self.offload_parameters == "cpu",
            "states": self.stream or self.offload_optimizer == "cpu" or self.optimizer == "paged-adamw8bit",
            "activations": self.stream or self.activation_offload,
        }
        return frozenset(name for name, is_held in held.items() if is_held)

    @property
    def needs_disk(self) -> bool:
        """Whether a part of it lies on a disk."""
        return "nvme" in (self.offload_optimizer, self.offload_parameters)

    @property
    def weights_on_disk(self) -> bool:
        """Whether streamed weights lie on a disk: then the model need never be in memory whole."""
        return self.stream and self.offload_parameters == "nvme"

    @property
    def tier(self) -> int:
        """What it changes: 0 nothing, 1 rounding only, 2 what is learned.

        Low precision with fp32 masters is the published recipe, and so changes nothing against it.
        """
        if self.adapters != "none" or self.seq_len is not None:
            return 2
        # Released gradients are clipped by the norm of the step before: not the same to the last digit.
        return 1 if self.optimizer != "adamw" or self.precision == "bf16-sr" or self.release else 0


LOW = "bf16"
"""Low precision as tables mean it; a card without bf16 gets fp16 in its place, see `for_capability`."""


def _row(**axes: object) -> Strategy:
    return Strategy.model_validate({"precision": LOW} | axes)


STRATEGIES: dict[str, Strategy] = {
    "plain": _row(),
    "plain-fp32": _row(precision="fp32"),
    "batch-1": _row(micro_batch=1),
    "selective": _row(recompute="selective"),
    "recompute": _row(recompute="full"),
    "zero1": _row(zero_stage=1),
    "zero2": _row(zero_stage=2),
    "zero3": _row(zero_stage=3),
    "zero2-offload": _row(zero_stage=2, offload_optimizer="cpu"),
    "zero2-offload-recompute": _row(zero_stage=2, offload_optimizer="cpu", recompute="full"),
    "zero3-offload": _row(zero_stage=3, offload_optimizer="cpu", offload_parameters="cpu", recompute="full"),
    "zero3-nvme": _row(zero_stage=3, offload_optimizer="nvme", offload_parameters="nvme", recompute="full"),
    "8bit": _row(optimizer="adamw8bit"),
    "8bit-recompute": _row(optimizer="adamw8bit", recompute="full"),
    "paged-8bit-recompute": _row(optimizer="paged-adamw8bit", recompute="full"),
    "stochastic": _row(precision="bf16-sr"),
    "stochastic-8bit-recompute": _row(precision="bf16-sr", optimizer="adamw8bit", recompute="full"),
    "offload-activations": _row(activation_offload=True),
    "8bit-recompute-offload": _row(optimizer="adamw8bit", recompute="full", activation_offload=True),
    "release-recompute": _row(release=True, recompute="full"),
    "stochastic-release-recompute": _row(precision="bf16-sr", optimizer="adamw8bit", release=True, recompute="full"),
    "stream": _row(stream=True),
    "stream-8bit": _row(stream=True, precision="bf16-sr", optimizer="adamw8bit"),
    "stream-disk": _row(stream=True, offload_optimizer="nvme", offload_parameters="nvme"),
    "stream-disk-8bit": _row(
        stream=True, precision="bf16-sr", optimizer="adamw8bit", offload_optimizer="nvme", offload_parameters="nvme"
    ),
    "seq-384": _row(seq_len=384),
    "seq-384-recompute": _row(seq_len=384, recompute="full"),
    "lora": _row(adapters="lora"),
    "lora-recompute": _row(adapters="lora", recompute="full"),
    "qlora-recompute": _row(adapters="qlora", recompute="full"),
    "cpu": _row(device="cpu"),
    "cpu-fp32": _row(device="cpu", precision="fp32"),
    "cpu-recompute": _row(device="cpu", recompute="full"),
    "cpu-8bit": _row(device="cpu", optimizer="adamw8bit"),
    "cpu-8bit-recompute": _row(device="cpu", optimizer="adamw8bit", recompute="full"),
    "cpu-least": _row(
        device="cpu", precision="bf16-sr", optimizer="adamw8bit", release=True, recompute="full", micro_batch=1
    ),
    "cpu-seq-384": _row(device="cpu", seq_len=384, recompute="full"),
}


EXTRAS = {"bitsandbytes": "8bit", "deepspeed": "deepspeed", "peft": "adapters"}
"""Packages that not every installation has -> the extra of bigqa that brings them."""


def missing_package(strategy: Strategy) -> str | None:
    """Say what a strategy needs that is not installed here; none: it has all."""
    needed = {
        "bitsandbytes": "8bit" in strategy.optimizer or strategy.adapters == "qlora",
        "deepspeed": strategy.needs_deepspeed,
        "peft": strategy.adapters != "none",
    }
    missing = [name for name, wanted in needed.items() if wanted and importlib.util.find_spec(name) is None]
    return (
        tr("needs {missing}: pip install 'bigqa[{extras}]'", missing=missing[0], extras=EXTRAS[missing[0]])
        if missing
        else None
    )


def can_be_traced(strategy: Strategy) -> bool:
    """Whether a plan can be made here, for this machine or another: adapters are PEFT's own modules."""
    return strategy.adapters == "none" or missing_package(strategy) is None


def with_low_precision(strategy: Strategy, low: Precision) -> Strategy:
    """Return the strategy in a device's own low precision instead of bf16: fp16 before Ampere, fp32 on an old CPU."""
    if strategy.precision != LOW or low == LOW:
        return strategy
    return strategy.model_copy(update={"precision": low})
