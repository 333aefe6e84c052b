"""Memory of the process around torch's tensors. In: live tensors. Out: resident memory. Bytes."""

from bigqa.strategy import Strategy

MIB = 2**20
CPU_BASELINE_BYTES = 475 * MIB
"""Python, torch, transformers, accelerate, TensorBoard, thread stacks, and oneDNN's kernels."""
CUDA_BASELINE_BYTES = 2600 * MIB
"""The same with CUDA's libraries loaded. From public reports; not measured by this project yet."""


BITSANDBYTES_BYTES = 55 * MIB
"""bitsandbytes, once it is loaded."""


def pinned_block(size_bytes: int) -> int:
    """Return what torch's allocator of pinned memory takes for a tensor: a power of two.

    Source: torch, `CachingHostAllocator.h`, `allocate`: `c10::llvm::PowerOf2Ceil`.
    """
    return 1 << max(0, size_bytes - 1).bit_length()


def loading_bytes(strategy: Strategy, num_parameters: int) -> int:
    """Return what weights take in host memory before they are on the GPU: in fp32, and where there are masters, twice.

    The masters are copies made before the model is rounded; see `engine.precision` and `engine.build`.
    """
    if strategy.weights_on_disk:  # `engine.stream.loading`: one at a time, in fp32 and in what it is loaded as
        return 0
    if strategy.stream:  # each weight goes as it is taken apart
        return 4 * num_parameters
    twice = strategy.needs_deepspeed or (strategy.precision in ("bf16", "fp16") and strategy.adapters == "none")
    return (8 if twice else 4) * num_parameters


def resident_bytes(live_bytes: int, strategy: Strategy) -> int:
    """Return the resident memory of a CPU run whose tensors hold `live_bytes` at their peak."""
    extra = BITSANDBYTES_BYTES if strategy.optimizer != "adamw" or strategy.adapters != "none" else 0
    return CPU_BASELINE_BYTES + extra + live_bytes
