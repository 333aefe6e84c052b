"""What this machine reaches, measured and kept: `bigqa probe --calibrate`. In: a device. Out: `Rates`.

Each rate is measured on what it stands for: products of the sizes that a layer has, in each precision; attention's
smaller ones; a sum, an activation and a norm for everything else; memory fresh from the kernel; dropout's bits; AdamW
on more parameters than the caches hold.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from bigqa.engine.bits import dropping_signs
from bigqa.files import cache_folder, read_json, write_json
from bigqa.language import tr
from bigqa.machine.hardware import Hardware, detect
from bigqa.machine.heap import give_back, hand_back, keep
from bigqa.speed.card import measured_apart
from bigqa.speed.throughput import STALE_S, Rates
from bigqa.speed.timing import undisturbed

SCHEMA = 6
QUICK_S, LONG_S = 0.04, 0.4
"""Of each rate: where a probe measures by the way, and where a person asked to measure."""
TOKENS, FP32_TOKENS, FEW_TOKENS = 2048, 512, 256
"""Of products: as many as a micro-batch has, or as take some milliseconds."""
WIDTH, LAYERS, HEADS, WINDOW, HEAD, ROWS = 1024, 64, 16, 320, 64, 2048
HUGE, SMALL, STALE_BYTES, DRAWN = 2**24, 2**20, 2**28, 2**20
EVERYTHING_ELSE = ("sum", "activation", "norm")
MOVED_BYTES = (3 + 2 + 2) * 2 * ROWS * WIDTH
"""Read and written by these three, in bf16."""
CPU_ERROR, QUICK_ERROR = 0.15, 0.3
MANY, QUICK_MANY, PART, PART_8BIT = 2**25, 2**23, 2**18, 2**20
"""Parameters that AdamW goes over, more than caches hold; and how many of them at a time."""
CHECK_S, RENEWED_FROM = 0.015, 0.1
"""Of each rate that is kept; and what it may be off by."""
CHECKED = ("low_flops_per_s", "fp32_flops_per_s", "bytes_per_s", "adam_per_s")
AS_KEPT = ("half_speed_tokens", "link_bytes_per_s", "disk_bytes_per_s", "launch_s", "source", "error")
BUSY = 0.25
"""Share of pieces that were disturbed, from which on that is said."""


def kept_rates(hardware: Hardware) -> dict[str, Rates]:
    """Return what was measured on this machine before: "cpu", or the name of a card -> rates."""
    path = _file(hardware)
    if not path.is_file():
        return {}
    kept = read_json(path, tr("the calibration"))
    if not isinstance(kept, dict) or kept.get("schema") != SCHEMA:
        return {}
    try:
        return {name: Rates(**values) for name, values in kept["devices"].items()}
    except TypeError:  # another version's
        return {}


def checked(kept: Rates) -> Rates:
    """Return rates of this CPU that were kept, if they still hold; else renewed: another kernel, or another host.

    Half a second on an idle machine. What takes longer to measure is kept as it was.
    """
    now = measure_cpu(CHECK_S)
    off = max(abs(getattr(now, name) / getattr(kept, name) - 1) for name in CHECKED)
    if off <= RENEWED_FROM:
        return kept
    quick = {name: value for name, value in vars(now).items() if value is not None and name not in AS_KEPT}
    source = tr("measured on this CPU; what was kept was off by {off:.0%}, and is renewed", off=off)
    return dataclasses.replace(kept, **quick | {"source": source})


def calibrate(hardware: Hardware, disk: Path | None = None) -> dict[str, Rates]:
    """Measure this machine's devices, and keep what was found; at most 30 s. Name of the device -> rates."""
    disk_rate = hardware.disk_bytes_per_s
    found = {"cpu": measure_cpu(LONG_S, whole=True)}
    for index, gpu in enumerate(hardware.gpus):
        if torch.cuda.is_available() and gpu.name not in found:
            # Offloaded states are stepped by the CPU's AdamW.
            found[gpu.name] = dataclasses.replace(measured_apart(index, gpu.name), adam_per_s=found["cpu"].adam_per_s)
    if disk is not None and disk_rate:
        found = {name: dataclasses.replace(rates, disk_bytes_per_s=disk_rate) for name, rates in found.items()}
    values = {name: dataclasses.asdict(rates) for name, rates in found.items()}
    write_json(_file(hardware), {"schema": SCHEMA, "devices": values})
    return found


def calibration_lines(nvme: Path | None = None) -> Iterator[str]:
    """Measure this machine and keep it for every later probe; say what was found, a line a device."""
    hardware = detect(nvme)
    yield tr("measuring this machine")
    for name, rates in calibrate(hardware, nvme).items():
        adam = tr(", AdamW {rate:,.0f} million parameters/s", rate=rates.adam_per_s / 1e6) if rates.adam_per_s else ""
        yield tr(
            "{device}: products {low:,.0f} and in fp32 {full:,.0f} GFLOP/s, memory {memory:.1f} GB/s{adam}",
            device="CPU" if name == "cpu" else name,
            low=rates.low_flops_per_s / 1e9,
            full=rates.fp32_flops_per_s / 1e9,
            memory=rates.bytes_per_s / 1e9,
            adam=adam,
        )


def measure_cpu(seconds: float, *, whole: bool = False) -> Rates:
    """Measure this CPU, each rate for so many seconds. `whole`: what takes longer too, the 8-bit AdamW among it."""
    give_back()
    pieces = _pieces(MANY if whole else QUICK_MANY)
    pieces |= {"few tokens": _product_of_few()} if whole else {}
    timed = undisturbed(pieces, seconds)
    took = timed.seconds
    if whole and _has_bitsandbytes():  # with freed memory kept: what it costs is a rate of its own
        keep()
        took |= undisturbed({"8-bit AdamW": _adam_8bit()}, seconds).seconds
        hand_back()
    low_rate, fp32_rate = (_flops(tokens) / took[name] for name, tokens in (("low", TOKENS), ("fp32", FP32_TOKENS)))
    half_speed_tokens = _half_speed_tokens(low_rate, took["few tokens"]) if whole else 0
    batched = 2 * HEADS * WINDOW * WINDOW * HEAD
    return Rates(
        low_flops_per_s=low_rate * (1 + half_speed_tokens / TOKENS),
        half_speed_tokens=half_speed_tokens,
        fp32_flops_per_s=fp32_rate * (1 + half_speed_tokens / FP32_TOKENS),
        low_batched_flops_per_s=batched / took["low, batched"],
        fp32_batched_flops_per_s=batched / took["fp32, batched"],
        bytes_per_s=MOVED_BYTES / sum(took[name] for name in EVERYTHING_ELSE),
        link_bytes_per_s=1e12,
        launch_s=4e-6,
        fresh_bytes_per_s=_fresh_rate(HUGE, took["fresh"], took["filled"]),
        small_fresh_bytes_per_s=_fresh_rate(SMALL, took["fresh, small"], took["filled, small"]),
        stale_bytes_per_s=_stale_rate() if whole else None,
        drawn_per_s=DRAWN / took["drawn"],
        adam_per_s=PART / took["AdamW"],
        adam8bit_per_s=PART_8BIT / took["8-bit AdamW"] if "8-bit AdamW" in took else None,
        source=tr("measured on this CPU beside other work") if timed.disturbed > BUSY else tr("measured on this CPU"),
        error=CPU_ERROR if whole else QUICK_ERROR,
    )


def _pieces(many: int) -> dict[str, Callable[[], object]]:
    """Return a short piece of each kind of work; see `timing`."""
    huge, small = (torch.empty(size, dtype=torch.uint8) for size in (HUGE, SMALL))
    low, fp32 = torch.bfloat16, torch.float32
    return {
        "low": _product(low, TOKENS),
        "fp32": _product(fp32, FP32_TOKENS),
        "low, batched": _batched(low),
        "fp32, batched": _batched(fp32),
        **_everything_else(),
        "fresh": _alone(lambda: torch.empty(HUGE, dtype=torch.uint8).fill_(1)),
        "filled": _alone(lambda: huge.fill_(1)),
        "fresh, small": _alone(lambda: torch.empty(SMALL, dtype=torch.uint8).fill_(1)),
        "filled, small": _alone(lambda: small.fill_(1)),
        "drawn": lambda: dropping_signs((DRAWN,), 0.1, (1, 2), torch.empty(0, dtype=low)),
        "AdamW": _adam(many),
    }


def _flops(tokens: int) -> int:
    return 2 * tokens * WIDTH * WIDTH


def _product(dtype: torch.dtype, tokens: int) -> Callable[[], object]:
    # Into memory that is there already: what fresh memory costs is a rate of its own.
    a, b = torch.randn(tokens, WIDTH).to(dtype), torch.randn(WIDTH, WIDTH).to(dtype)
    out = torch.empty(tokens, WIDTH, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def _product_of_few() -> Callable[[], object]:
    """A product of few tokens with weights that no cache holds: each time with another layer's."""
    x = torch.randn(FEW_TOKENS, WIDTH).bfloat16()
    weights = itertools.cycle([torch.randn(WIDTH, WIDTH).bfloat16() for _ in range(LAYERS)])
    out = torch.empty(FEW_TOKENS, WIDTH, dtype=torch.bfloat16)
    return lambda: torch.mm(x, next(weights), out=out)


def _half_speed_tokens(rate_of_many: float, few_s: float) -> int:
    """Return at how many tokens products reach half of their rate: few tokens wait for weights, which no cache holds.

    Rates are taken as a n / (n + h) of n tokens; two of them give h.
    """
    ratio = rate_of_many / (_flops(FEW_TOKENS) / few_s)
    most = TOKENS / FEW_TOKENS
    return round(TOKENS * max(0.0, ratio - 1) / max(1.0, most - ratio))


def _batched(dtype: torch.dtype) -> Callable[[], object]:
    a, b = torch.randn(HEADS, WINDOW, HEAD).to(dtype), torch.randn(HEADS, HEAD, WINDOW).to(dtype)
    out = torch.empty(HEADS, WINDOW, WINDOW, dtype=dtype)
    return lambda: torch.bmm(a, b, out=out)


def _everything_else() -> dict[str, Callable[[], object]]:
    """A sum, an activation and a norm, as a layer has them: on a CPU they cost more than the bytes they move."""
    aten = torch.ops.aten
    x, y, out = (torch.randn(ROWS, WIDTH).bfloat16() for _ in range(3))
    weight = torch.ones(WIDTH, dtype=torch.bfloat16)
    mean, rstd = (torch.empty(ROWS, 1, dtype=torch.bfloat16) for _ in range(2))
    norm = functools.partial(aten.native_layer_norm.out, out0=out, out1=mean, out2=rstd)
    made = (
        lambda: torch.add(x, y, out=out),
        lambda: aten.gelu.out(x, approximate="none", out=out),
        lambda: norm(x, [WIDTH], weight, weight, 1e-12),
    )
    return dict(zip(EVERYTHING_ELSE, made, strict=True))


def _alone(fill: Callable[[], object]) -> Callable[[], object]:
    """Return a piece for one thread: in training, several hinder each other at the process's page table, and are hardly
    faster together.
    """

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        fill()
        torch.set_num_threads(threads)

    return run


def _fresh_rate(size_bytes: int, fresh_s: float, filled_s: float) -> float:
    """Return how fast the kernel hands out memory, filled with zeros, in blocks of a size. Bytes/s."""
    return size_bytes / max(1e-6, fresh_s - filled_s)


def _stale_rate() -> float:
    """Return the same for memory that nobody has touched for a while: a virtual machine's may be its host's again."""
    give_back()
    torch.empty(STALE_BYTES, dtype=torch.uint8).fill_(1)
    taken = []
    for _ in range(2):
        time.sleep(2 * STALE_S)
        started = time.perf_counter()
        torch.empty(STALE_BYTES, dtype=torch.uint8).fill_(1)
        taken.append(time.perf_counter() - started)
    return STALE_BYTES / (sum(taken) / len(taken))


def _adam(count: int) -> Callable[[], object]:
    """AdamW on the next part of so many parameters."""
    states = (torch.rand(count).split(PART) for _ in range(4))
    parts = itertools.cycle(zip(*states, strict=True))
    step = torch.tensor(1.0)

    def run() -> None:
        weight, gradient, first, second = next(parts)
        torch._fused_adamw_(
            [weight], [gradient], [first], [second], [], [step], lr=1e-5, beta1=0.9, beta2=0.999, weight_decay=0.01,
            eps=1e-6, amsgrad=False, maximize=False,
        )  # fmt: skip

    return run


def _adam_8bit() -> Callable[[], object]:
    from bigqa.engine.optim.eight_bit import PiecewiseAdamW8bit

    parameter = torch.nn.Parameter(torch.rand(PART_8BIT))
    parameter.grad = torch.rand(PART_8BIT)
    return PiecewiseAdamW8bit([parameter], lr=1e-5).step


def _has_bitsandbytes() -> bool:
    import importlib.util

    return importlib.util.find_spec("bitsandbytes") is not None


def _file(hardware: Hardware) -> Path:
    names = [hardware.cpu.name, str(hardware.cpu.cores), *(gpu.name for gpu in hardware.gpus)]
    key = "".join(letter if letter.isalnum() else "-" for letter in "_".join(names))
    return cache_folder() / "calibration" / f"{key}.json"
