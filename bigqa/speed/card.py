"""What a card reaches, measured in a process of its own: `python -m bigqa.speed.card INDEX`. In: CUDA's number of it.

Out: `Rates`, as a line of JSON. Whoever asks never touches the card: a context and what torch keeps would stay on it,
and be missing for what is measured or trained next.
"""

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bigqa.engine.pinned import CudaPinning, PinnedPool
from bigqa.engine.recovery import OutOfMemory
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.speed.throughput import Rates

GPU_ERROR = 0.1
LAYER_SHARE = 0.85
"""What a GPU's products of a layer's sizes keep of a large one's rate."""
HALF_SPEED_MEASURED = 256
LINK_BYTES = 2**27
"""Of host memory that is copied to the card: as what is streamed or offloaded, in pages that the engine pins."""


def measured_apart(index: int, name: str) -> Rates:
    """Measure a card in a child process. Raises: BigqaError with the last that it said."""
    command = [sys.executable, "-m", "bigqa.speed.card", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [tr("exit code {code}", code=done.returncode)]
        raise BigqaError(
            tr(
                "{name} (cuda:{index}) could not be measured: {said}; `nvidia-smi` shows who uses it",
                name=name,
                index=index,
                said=said[-1],
            )
        )
    return Rates(**json.loads(done.stdout.splitlines()[-1]))


def measure_gpu(device: torch.device) -> Rates:
    """Measure a card."""
    with torch.cuda.device(device):  # events, streams and pinned memory are the current one's
        return _measured(device)


def _measured(device: torch.device) -> Rates:
    low = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    size = 8192
    products = {}
    for dtype in (low, torch.float32):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        products[dtype] = 2 * size**3 / _gpu_time(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    shape = (16, 16, 512, 64)
    q, k, v = (torch.randn(shape, device=device, dtype=low) for _ in range(3))
    attention = torch.nn.functional.scaled_dot_product_attention
    attention_flops = 4 * 16 * 16 * 512 * 512 * 64 / _gpu_time(lambda: attention(q, k, v))
    big, out = (torch.empty(2**28, device=device, dtype=torch.uint8) for _ in range(2))
    tiny = torch.zeros(1, device=device)
    return Rates(
        low_flops_per_s=products[low] * LAYER_SHARE,
        fp32_flops_per_s=products[torch.float32] * 0.9,
        low_batched_flops_per_s=attention_flops * 0.7,  # with its backward pass
        fp32_batched_flops_per_s=min(attention_flops * 0.7, products[torch.float32] * 0.7),
        bytes_per_s=2 * 2**28 / _gpu_time(lambda: out.copy_(big)) * 0.9,
        link_bytes_per_s=_link(device),
        launch_s=_launch_time(tiny),
        half_speed_tokens=HALF_SPEED_MEASURED,
        source=f"measured on {torch.cuda.get_device_name(device)}",
        error=GPU_ERROR,
    )


def _link(device: torch.device) -> float:
    """Return the bytes per second of copies to a card; where nothing can be pinned, of those that are waited for."""
    try:
        lent = PinnedPool(CudaPinning(torch.cuda.current_stream(device))).lend(LINK_BYTES)
        here = lent.tensor.zero_()
    except OutOfMemory:
        here = torch.zeros(LINK_BYTES, dtype=torch.uint8)
    there = torch.empty(LINK_BYTES, dtype=torch.uint8, device=device)
    return LINK_BYTES / _gpu_time(lambda: there.copy_(here, non_blocking=True))


def _gpu_time(function: Callable[[], Tensor], repeats: int = 20) -> float:
    for _ in range(3):
        function()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1000 / repeats


def _launch_time(tensor: Tensor, repeats: int = 2000) -> float:
    """Return the host's time for one small operation, in Python, as a training loop launches them."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        tensor.add_(1)
    return (time.perf_counter() - started) / repeats


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure_gpu(torch.device("cuda", int(sys.argv[1]))))))
