"""How fast a strategy trains. In: the work of a step, and a device's rates. Out: seconds and samples per second.

A micro-batch costs its products at the rate that products reach, everything else at the rate of memory, and the
launches of its kernels, which a GPU's work hides. A step adds clipping and the optimizer, and with offload the way to
the host. Rates come from a datasheet, or from `bigqa.speed.calibration`, which measures them.
"""

from dataclasses import dataclass

from bigqa.machine.gpus import GpuModel
from bigqa.memory.scaling import Footprint
from bigqa.strategy import Strategy

MATMUL_SHARE = 0.72
"""Of a datasheet's matrix rate that training's products reach at full size. This and the next two were fitted on what
others measured of stock code on four cards, and tested on three more: `python -m benchmarks.public_speed`."""
HALF_SPEED_TOKENS = 512
"""Tokens of a micro-batch at which a GPU's products reach half of that."""
BANDWIDTH_SHARE = 0.8
MOST_BYTES_PER_S = 6e12
"""Of everything else, on a card of any bandwidth: kernels as small as a layer's do not keep a large card busy."""
LAUNCH_S = 8e-6
"""Of one kernel from Python."""
ADAM_BYTES = {"adamw": 28, "adamw8bit": 18, "paged-adamw8bit": 18}
"""Read and written per parameter on a GPU: gradient, master, moments, and the low-precision weight."""
STALE_S = 2.0
"""After which Linux, in a virtual machine, hands free memory back to the host, which must make it anew. Source: the
kernel's mm/page_reporting.c, PAGE_REPORTING_DELAY."""
STREAMED_ADAM, MASTERS_IN_PARTS = 1.5, 3.0
"""Times that an AdamW on the host takes longer where each piece of the gradient is scaled into a copy; and where fp32
masters are put together of two parts besides, and taken apart. Measured: benchmarks/LOG.md."""
SUMMED_BYTES_PER_S = 1e9
"""Sent and received by a process that adds host tensors up with others (gloo). Assumed, not measured."""
CPU_ADAM_PARAMETERS_PER_S = 2.5e8
"""Of an fp32 AdamW on the host, per core, where it was not measured. From DeepSpeed's documentation."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device reaches. Units: FLOP/s, bytes/s, elements/s, parameters/s, seconds."""

    low_flops_per_s: float
    """Of products with weights, in the device's low precision."""
    fp32_flops_per_s: float
    low_batched_flops_per_s: float
    """Of attention's own products."""
    fp32_batched_flops_per_s: float
    bytes_per_s: float
    """Read and written by everything else."""
    link_bytes_per_s: float
    """Between host and device."""
    launch_s: float
    """Of one operation, however small."""
    half_speed_tokens: int = 0
    fresh_bytes_per_s: float | None = None
    """Handed out by the kernel in huge pages, with zeros, where a CPU's freed memory goes back; none: at no cost."""
    small_fresh_bytes_per_s: float | None = None
    """The same in small pages; none: as fast as in huge ones."""
    stale_bytes_per_s: float | None = None
    """The same of memory that has been free for longer than `STALE_S`; none: as fast as any."""
    drawn_per_s: float | None = None
    """Elements of dropout on a CPU; none: at no cost of its own."""
    adam_per_s: float | None = None
    """Parameters of an fp32 AdamW on the host, all cores; none: not measured."""
    adam8bit_per_s: float | None = None
    """The same with 8-bit states, on a CPU."""
    disk_bytes_per_s: float = 2.0e9
    """Of the offload folder; a guess until it is measured."""
    source: str
    error: float
    """What a predicted step time may be off by, as a share of it."""


@dataclass(frozen=True)
class Speed:
    """Of one process's step, and of the run."""

    step_s: float
    samples_per_s: float


def bandwidth_of(card: GpuModel, share: float = BANDWIDTH_SHARE, most: float = MOST_BYTES_PER_S) -> float:
    """Return the bytes per second that a card's kernels read and write, all but products."""
    return 1.0 / (1.0 / (card.bandwidth_gb_per_s * 1e9 * share) + 1.0 / most)


def gpu_rates(card: GpuModel) -> Rates:
    """Return a card's rates from its datasheet."""
    low, fp32 = card.half_tflops * 1e12 * MATMUL_SHARE, card.fp32_tflops * 1e12 * 0.8
    return Rates(
        low_flops_per_s=low,
        fp32_flops_per_s=fp32,
        low_batched_flops_per_s=low,
        fp32_batched_flops_per_s=fp32,
        bytes_per_s=bandwidth_of(card),
        link_bytes_per_s=card.link_gb_per_s * 1e9,
        launch_s=LAUNCH_S,
        half_speed_tokens=HALF_SPEED_TOKENS,
        source=card.source,
        error=0.25,
    )


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a step: one process's micro-batches, and who else takes part."""

    micro_batch: int
    seq_len: int
    num_micro_batches: int
    num_parameters: int
    world_size: int = 1
    host_cores: int = 8
    keeps_memory: bool = False
    """Whether a CPU's freed memory is kept; see `bigqa.machine.heap`."""


def speed_of(work: Footprint, strategy: Strategy, rates: Rates, shape: Shape) -> Speed:
    """Return the time of one optimizer step."""
    micro_s = _micro_batch_s(work, strategy, rates, shape) + _gathering_s(strategy, rates, shape)
    passes_s = shape.num_micro_batches * micro_s
    if strategy.stream:
        weights_s = work.weights_read_bytes / rates.disk_bytes_per_s
        passes_s = max(passes_s, link_s(work, strategy, rates), _summed_s(strategy, shape), weights_s)
    step_s = passes_s + _update_s(work, strategy, rates, shape)
    return Speed(step_s, shape.world_size * shape.micro_batch * shape.num_micro_batches / step_s)


def link_s(work: Footprint, strategy: Strategy, rates: Rates) -> float:
    """Return how long the link of streamed layers is busy in a step: both ways at once, but for a CPU's copies."""
    if strategy.device == "cpu":
        return 2 * (work.arriving_bytes + work.leaving_bytes) / rates.bytes_per_s
    return max(work.arriving_bytes, work.leaving_bytes) / rates.link_bytes_per_s


def _summed_s(strategy: Strategy, shape: Shape) -> float:
    """Return how long several processes add up streamed gradients on the host, beside their passes."""
    if shape.world_size == 1:
        return 0.0
    return 2 * (4 if strategy.precision == "fp32" else 2) * shape.num_parameters / SUMMED_BYTES_PER_S


def _micro_batch_s(work: Footprint, strategy: Strategy, rates: Rates, shape: Shape) -> float:
    tokens = shape.micro_batch * shape.seq_len
    in_fp32 = strategy.precision == "fp32"
    rate, batched_rate = (
        (rates.fp32_flops_per_s, rates.fp32_batched_flops_per_s)
        if in_fp32
        else (rates.low_flops_per_s, rates.low_batched_flops_per_s)
    )
    filled = tokens / (tokens + rates.half_speed_tokens)
    products_s = (work.flops - work.batched_flops) / (rate * filled) + work.batched_flops / (batched_rate * filled)
    moved_s = work.moved_bytes / rates.bytes_per_s + _seconds(work.drawn, rates.drawn_per_s)
    moved_s += _fresh_s(work.fresh, rates, shape)
    launches_s = work.operations * rates.launch_s
    # A GPU works while the host launches; a CPU does one after the other.
    micro_s = max(products_s + moved_s, launches_s) if strategy.device == "cuda" else products_s + moved_s + launches_s
    micro_s += _stale_s(work.swing_bytes, micro_s, rates, shape)
    if strategy.activation_offload:
        # Kept activations go out and come back while other layers compute; the slower of the two counts.
        micro_s = max(micro_s, 2 * work.offloaded_bytes / rates.link_bytes_per_s)
    # On a GPU, 4-bit weights are unpacked for each product; on a CPU that is little beside the product.
    return micro_s * 1.35 if strategy.adapters == "qlora" and strategy.device == "cuda" else micro_s


def _gathering_s(strategy: Strategy, rates: Rates, shape: Shape) -> float:
    """Return what ZeRO-3 adds to a micro-batch: weights are fetched for the forward and for the backward pass."""
    if strategy.zero_stage < 3 or (shape.world_size == 1 and strategy.offload_parameters == "none"):
        return 0.0
    rate = rates.disk_bytes_per_s if strategy.offload_parameters == "nvme" else rates.link_bytes_per_s
    return 2 * 2 * shape.num_parameters / rate


def _update_s(work: Footprint, strategy: Strategy, rates: Rates, shape: Shape) -> float:
    share = shape.num_parameters / (shape.world_size if strategy.zero_stage else 1)
    if strategy.adapters != "none":
        share *= 0.01
    host_adam_per_s = rates.adam_per_s or CPU_ADAM_PARAMETERS_PER_S * shape.host_cores
    if strategy.stream:  # nothing else runs beside it
        adam_s = _adam_s(strategy.model_copy(update={"device": "cpu"}), rates, share, host_adam_per_s)
        states_bytes = work.read_bytes - work.weights_read_bytes + work.written_bytes
        if strategy.optimizer == "adamw" and strategy.precision != "bf16-sr":
            adam_s *= MASTERS_IN_PARTS if strategy.precision == "bf16" else STREAMED_ADAM
        return max(adam_s, states_bytes / rates.disk_bytes_per_s)
    if strategy.offload_optimizer != "none":
        transfer_s = (2 + 2) * share / rates.link_bytes_per_s
        disk_s = 2 * 16 * share / rates.disk_bytes_per_s if strategy.offload_optimizer == "nvme" else 0.0
        return transfer_s + share * shape.world_size / host_adam_per_s + disk_s
    fresh_s = _fresh_s(work.step_fresh, rates, shape)
    return work.step_bytes / rates.bytes_per_s + fresh_s + _adam_s(strategy, rates, share, host_adam_per_s)


def _adam_s(strategy: Strategy, rates: Rates, parameters: float, host_adam_per_s: float) -> float:
    if strategy.device == "cuda":
        return ADAM_BYTES[strategy.optimizer] * parameters / rates.bytes_per_s
    if strategy.optimizer == "adamw":
        return parameters / host_adam_per_s
    return parameters / (rates.adam8bit_per_s or host_adam_per_s / 10)


def _fresh_s(fresh: tuple[int, int], rates: Rates, shape: Shape) -> float:
    if shape.keeps_memory:
        return 0.0
    huge, small = fresh
    small_rate = rates.small_fresh_bytes_per_s or rates.fresh_bytes_per_s
    return _seconds(huge, rates.fresh_bytes_per_s) + _seconds(small, small_rate)


def _stale_s(swing_bytes: int, micro_s: float, rates: Rates, shape: Shape) -> float:
    """Return what memory costs that was free for too long.

    What layers keep is given back in the backward pass and wanted again in the next forward pass, the last freed first:
    at a share x of the forward pass, a third of the time, what comes next was freed x of the whole time ago.
    """
    if shape.keeps_memory or not rates.stale_bytes_per_s or not rates.fresh_bytes_per_s:
        return 0.0
    share = max(0.0, 1.0 - STALE_S / micro_s)
    return share * max(0.0, swing_bytes / rates.stale_bytes_per_s - swing_bytes / rates.fresh_bytes_per_s)


def _seconds(amount: float, rate: float | None) -> float:
    return amount / rate if rate else 0.0
