"""How fast a strategy trains. In: the work of a step, and a device's rates. Out: seconds and samples per second.

A micro-batch costs its matrix products at the rate that products reach, everything else at the rate of memory, and
never less than the launches of its kernels. A step adds clipping and the optimizer, and with offload the way to the
host.
"""

import time
from dataclasses import dataclass

import torch

from bigqa.gpus import GpuModel
from bigqa.memory.scaling import Footprint
from bigqa.strategy import Strategy

MATMUL_SHARE = 0.55
"""Of a datasheet's matrix rate that training's products reach at full size."""
HALF_SPEED_TOKENS = 512
"""Tokens of a micro-batch at which products reach half of that."""
BANDWIDTH_SHARE = 0.75
LAUNCH_S = 8e-6
"""Of one kernel from Python."""
ADAM_BYTES = {"adamw": 28, "adamw8bit": 18, "paged-adamw8bit": 18}
"""Read and written per parameter: gradient, master, moments, and the low-precision weight."""
CPU_ADAM_PARAMETERS_PER_S = 2.5e8
"""Of DeepSpeed's CPU Adam, per core. From its documentation; not measured by this project yet."""


@dataclass(frozen=True)
class Rates:
    """What a device reaches. Units: FLOP/s, bytes/s, seconds."""

    low_flops_per_s: float
    fp32_flops_per_s: float
    bytes_per_s: float
    link_bytes_per_s: float
    launch_s: float
    half_speed_tokens: int
    source: str
    disk_bytes_per_s: float = 2.0e9
    """Of the offload folder; a guess until it is measured."""


@dataclass(frozen=True)
class Speed:
    """Of one process's step, and of the run."""

    step_s: float
    samples_per_s: float


def gpu_rates(card: GpuModel) -> Rates:
    """Return a card's rates from its datasheet."""
    return Rates(
        low_flops_per_s=card.half_tflops * 1e12 * MATMUL_SHARE,
        fp32_flops_per_s=card.fp32_tflops * 1e12 * 0.8,
        bytes_per_s=card.bandwidth_gb_per_s * 1e9 * BANDWIDTH_SHARE,
        link_bytes_per_s=card.link_gb_per_s * 1e9,
        launch_s=LAUNCH_S,
        half_speed_tokens=HALF_SPEED_TOKENS,
        source=card.source,
    )


def measure_cpu(seconds: float = 0.12) -> Rates:
    """Measure this CPU: products of the size that a layer has, and additions too large for its caches."""
    a, b = torch.randn(2048, 1024), torch.randn(1024, 1024)
    low_a, low_b = a.bfloat16(), b.bfloat16()
    flops = 2 * a.shape[0] * a.shape[1] * b.shape[1]
    big, out = torch.randn(2**23), torch.empty(2**23)
    return Rates(
        low_flops_per_s=flops / _time(lambda: low_a @ low_b, seconds),
        fp32_flops_per_s=flops / _time(lambda: a @ b, seconds),
        bytes_per_s=3 * 4 * 2**23 / _time(lambda: torch.add(big, out, out=out), seconds),
        link_bytes_per_s=1e12,
        launch_s=4e-6,
        half_speed_tokens=32,
        source="measured on this CPU",
    )


def speed_of(
    work: Footprint,
    strategy: Strategy,
    rates: Rates,
    *,
    num_parameters: int,
    micro_batch: int,
    seq_len: int,
    num_micro_batches: int,
    world_size: int = 1,
    host_cores: int = 8,
) -> Speed:
    """Return the time of one optimizer step."""
    tokens = micro_batch * seq_len
    rate = rates.fp32_flops_per_s if strategy.precision == "fp32" else rates.low_flops_per_s
    products_s = work.flops / (rate * tokens / (tokens + rates.half_speed_tokens))
    micro_s = max(products_s + work.moved_bytes / rates.bytes_per_s, work.operations * rates.launch_s)
    if strategy.activation_offload:
        # Kept activations go out and come back while other layers compute; the slower of the two counts.
        micro_s = max(micro_s, 2 * work.offloaded_bytes / rates.link_bytes_per_s)
    if strategy.adapters == "qlora":
        micro_s *= 1.35  # 4-bit weights are unpacked for each product
    micro_s += _gathering_s(strategy, rates, num_parameters, world_size)
    step_s = num_micro_batches * micro_s + _update_s(work, strategy, rates, num_parameters, world_size, host_cores)
    return Speed(step_s, world_size * micro_batch * num_micro_batches / step_s)


def _gathering_s(strategy: Strategy, rates: Rates, num_parameters: int, world_size: int) -> float:
    """Return what ZeRO-3 adds to a micro-batch: weights are fetched for the forward and for the backward pass."""
    if strategy.zero_stage < 3 or (world_size == 1 and strategy.offload_parameters == "none"):
        return 0.0
    rate = rates.disk_bytes_per_s if strategy.offload_parameters == "nvme" else rates.link_bytes_per_s
    return 2 * 2 * num_parameters / rate


def _update_s(
    work: Footprint, strategy: Strategy, rates: Rates, num_parameters: int, world_size: int, host_cores: int
) -> float:
    share = num_parameters / (world_size if strategy.zero_stage else 1)
    if strategy.adapters != "none":
        share *= 0.01
    if strategy.offload_optimizer == "none":
        return work.step_bytes / rates.bytes_per_s + ADAM_BYTES[strategy.optimizer] * share / rates.bytes_per_s
    transfer_s = (2 + 2) * share / rates.link_bytes_per_s
    disk_s = 2 * 16 * share / rates.disk_bytes_per_s if strategy.offload_optimizer == "nvme" else 0.0
    return transfer_s + share * world_size / (CPU_ADAM_PARAMETERS_PER_S * host_cores) + disk_s


def _time(function: object, seconds: float) -> float:
    assert callable(function)
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - started)
    return best
