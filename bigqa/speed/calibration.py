"""What this machine reaches, measured and kept: `bigqa probe --calibrate`. In: a device. Out: `Rates`.

Each rate is measured on what it stands for: products of the sizes that a layer has, in each precision; attention's
smaller ones; a sum, an activation and a norm for everything else; memory fresh from the kernel; dropout's bits; AdamW
on more parameters than the caches hold.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from bigqa.engine.bits import dropping_signs
from bigqa.files import cache_folder, read_json, write_json
from bigqa.language import tr
from bigqa.machine.hardware import Hardware, detect
from bigqa.machine.heap import give_back, hand_back, keep
from bigqa.speed.card import measured_apart
from bigqa.speed.throughput import STALE_S, Rates

SCHEMA = 5
QUICK_S, LONG_S = 0.04, 0.5
"""Of each rate: where a probe measures by the way, and where a person asked to measure."""
TOKENS, WIDTH, HEADS, WINDOW, HEAD = 2048, 1024, 16, 320, 64
FEW_TOKENS, LAYERS = 256, 64
CPU_ERROR, QUICK_ERROR = 0.15, 0.3
MANY, QUICK_MANY, MANY_8BIT = 2**25, 2**23, 2**24
"""Parameters that AdamW is timed on: more than caches hold, or few enough to make in passing."""


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


def calibrate(hardware: Hardware, disk: Path | None = None) -> dict[str, Rates]:
    """Measure this machine's devices, and keep what was found; at most 30 s. Name of the device -> rates."""
    disk_rate = min(filter(None, (hardware.disk_write_bytes_per_s, hardware.disk_read_bytes_per_s)), default=None)
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
    flops, batched = 2 * TOKENS * WIDTH * WIDTH, 2 * HEADS * WINDOW * WINDOW * HEAD
    many, fresh_bytes = (MANY, FRESH_BYTES) if whole else (QUICK_MANY, QUICK_FRESH_BYTES)
    low_rate, fp32_rate = (flops / _time(_product(dtype), seconds) for dtype in (torch.bfloat16, torch.float32))
    half_speed_tokens = _half_speed_tokens(low_rate, seconds) if whole else 0
    at_full_size = 1 + half_speed_tokens / TOKENS
    return Rates(
        low_flops_per_s=low_rate * at_full_size,
        half_speed_tokens=half_speed_tokens,
        fp32_flops_per_s=fp32_rate * at_full_size,
        low_batched_flops_per_s=batched / _time(_batched(torch.bfloat16), seconds),
        fp32_batched_flops_per_s=batched / _time(_batched(torch.float32), seconds),
        bytes_per_s=MOVED_BYTES / _time(_everything_else(), seconds),
        link_bytes_per_s=1e12,
        launch_s=4e-6,
        fresh_bytes_per_s=_fresh_rate(2**24, fresh_bytes, seconds),
        small_fresh_bytes_per_s=_fresh_rate(2**20, fresh_bytes, seconds),
        stale_bytes_per_s=_stale_rate() if whole else None,
        drawn_per_s=2**20 / _time(_drawing(), seconds),
        adam_per_s=many / _time(_adam(many), seconds),
        adam8bit_per_s=_adam_8bit_rate(seconds) if whole and _has_bitsandbytes() else None,
        source=tr("measured on this CPU"),
        error=CPU_ERROR if whole else QUICK_ERROR,
    )


FRESH_BYTES, QUICK_FRESH_BYTES, STALE_BYTES = 2**26, 2**24, 2**28
MOVED_BYTES = (3 + 2 + 2) * 2 * TOKENS * WIDTH
"""Read and written by a sum, an activation and a norm, in bf16."""


def _product(dtype: torch.dtype) -> Callable[[], object]:
    # Into memory that is there already: what fresh memory costs is a rate of its own.
    a, b = torch.randn(TOKENS, WIDTH).to(dtype), torch.randn(WIDTH, WIDTH).to(dtype)
    out = torch.empty(TOKENS, WIDTH, dtype=dtype)
    return lambda: torch.mm(a, b, out=out)


def _half_speed_tokens(rate_of_many: float, seconds: float) -> int:
    """Return at how many tokens products reach half of their rate: few tokens wait for weights, which no cache holds.

    Rates are taken as a n / (n + h) of n tokens; two of them give h.
    """
    x = torch.randn(FEW_TOKENS, WIDTH).bfloat16()
    weights = [torch.randn(WIDTH, WIDTH).bfloat16() for _ in range(LAYERS)]
    out = torch.empty(FEW_TOKENS, WIDTH, dtype=torch.bfloat16)
    taken_s = _time(lambda: [torch.mm(x, weight, out=out) for weight in weights], seconds)
    ratio = rate_of_many / (2 * FEW_TOKENS * WIDTH * WIDTH * LAYERS / taken_s)
    most = TOKENS / FEW_TOKENS
    return round(TOKENS * max(0.0, ratio - 1) / max(1.0, most - ratio))


def _batched(dtype: torch.dtype) -> Callable[[], object]:
    a, b = torch.randn(HEADS, WINDOW, HEAD).to(dtype), torch.randn(HEADS, HEAD, WINDOW).to(dtype)
    out = torch.empty(HEADS, WINDOW, WINDOW, dtype=dtype)
    return lambda: torch.bmm(a, b, out=out)


def _everything_else() -> Callable[[], object]:
    """A sum, an activation and a norm, as a layer has them: on a CPU they cost more than the bytes they move."""
    aten = torch.ops.aten
    x, y, out = (torch.randn(TOKENS, WIDTH).bfloat16() for _ in range(3))
    weight = torch.ones(WIDTH, dtype=torch.bfloat16)
    mean, rstd = (torch.empty(TOKENS, 1, dtype=torch.bfloat16) for _ in range(2))

    def run() -> None:
        torch.add(x, y, out=out)
        aten.gelu.out(x, approximate="none", out=out)
        aten.native_layer_norm.out(x, [WIDTH], weight, weight, 1e-12, out0=out, out1=mean, out2=rstd)

    return run


def _fresh_rate(size_bytes: int, all_bytes: int, seconds: float) -> float:
    """Return how fast the kernel hands out memory, filled with zeros, in blocks of a size. Bytes/s.

    To one thread: in training, several hinder each other at the process's page table, and are hardly faster together.
    """
    give_back()
    threads, count = torch.get_num_threads(), all_bytes // size_bytes
    torch.set_num_threads(1)

    def made() -> list[Tensor]:
        return [torch.empty(size_bytes, dtype=torch.uint8).fill_(1) for _ in range(count)]

    there = made()
    extra_s = _time(made, seconds) - _time(lambda: [one.fill_(1) for one in there], seconds)
    torch.set_num_threads(threads)
    return count * size_bytes / max(1e-6, extra_s)


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


def _drawing() -> Callable[[], object]:
    like = torch.empty(0, dtype=torch.bfloat16)
    return lambda: dropping_signs((2**20,), 0.1, (1, 2), like)


def _adam(count: int) -> Callable[[], object]:
    weight, gradient, first, second = (torch.rand(count) for _ in range(4))
    step = torch.tensor(1.0)
    return lambda: torch._fused_adamw_(
        [weight], [gradient], [first], [second], [], [step], lr=1e-5, beta1=0.9, beta2=0.999, weight_decay=0.01,
        eps=1e-6, amsgrad=False, maximize=False,
    )  # fmt: skip


def _adam_8bit_rate(seconds: float) -> float:
    """Return how many parameters are stepped, with freed memory kept: what it costs is a rate of its own."""
    from bigqa.engine.optim.eight_bit import PiecewiseAdamW8bit

    parameter = torch.nn.Parameter(torch.rand(MANY_8BIT))
    parameter.grad = torch.rand(MANY_8BIT)
    optimizer = PiecewiseAdamW8bit([parameter], lr=1e-5)
    keep()
    taken_s = _time(optimizer.step, seconds)
    hand_back()
    return MANY_8BIT / taken_s


def _has_bitsandbytes() -> bool:
    import importlib.util

    return importlib.util.find_spec("bitsandbytes") is not None


def _time(function: Callable[[], object], seconds: float) -> float:
    """Return the median time of a call: what training gets, on a machine that others use too."""
    function()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        started = time.perf_counter()
        function()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


def _file(hardware: Hardware) -> Path:
    names = [hardware.cpu.name, str(hardware.cpu.cores), *(gpu.name for gpu in hardware.gpus)]
    key = "".join(letter if letter.isalnum() else "-" for letter in "_".join(names))
    return cache_folder() / "calibration" / f"{key}.json"
