"""How ZeRO is set up: what is reduced and gathered at once, and DeepSpeed's configuration.

In: a strategy, a model's size. Out: figures, and the configuration; `configs/deepspeed/` holds it as files.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.strategy import Strategy

MOST_IN_A_BUCKET = 50_000_000
"""Elements: 100 MB in low precision, a tenth of DeepSpeed's own default for big cards."""
LEAST_IN_A_BUCKET = 2**19
BUCKETS_OF_A_MODEL = 32
PERSISTENT = 100_000
"""Elements of a parameter that ZeRO-3 keeps whole between the passes of a step."""
NORMED_AT_ONCE = 2**22
"""Elements of a gradient that ZeRO-3 with offload widens to fp64 for its norm: embeddings at once took 250 MiB."""


@dataclass(frozen=True)
class Buckets:
    """What is reduced or gathered at once. Elements."""

    reduced: int
    prefetched: int
    live: int
    """Gathered weights in ZeRO-3."""


def buckets_of(num_parameters: int | None) -> Buckets:
    """Return what fits a model, about a layer of one with many; none: a large model.

    A bucket is there whether it is filled or not, so one made for large models outweighs a small one.
    """
    reduced = MOST_IN_A_BUCKET
    if num_parameters is not None:
        share = num_parameters // BUCKETS_OF_A_MODEL // 1024 * 1024
        reduced = max(LEAST_IN_A_BUCKET, min(share, MOST_IN_A_BUCKET))
    return Buckets(reduced, reduced // 2, 2 * reduced)


def deepspeed_config(
    strategy: Strategy, *, clip: float, global_batch: int, micro_batch: int, world_size: int, nvme: Path | None = None,
    num_parameters: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return DeepSpeed's configuration, every field on purpose; `configs/deepspeed/README.md` explains each."""
    on_gpu = strategy.device == "cuda"
    buckets = buckets_of(num_parameters)
    # Pinned memory serves copies to a GPU; without one it is only memory that cannot be swapped.
    zero: dict[str, Any] = {
        "stage": strategy.zero_stage,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": buckets.reduced,
        "allgather_bucket_size": buckets.reduced,
        "round_robin_gradients": False,
    }
    if strategy.zero_stage == 3:
        zero |= {
            "stage3_max_live_parameters": buckets.live,
            "stage3_max_reuse_distance": buckets.live,
            "stage3_prefetch_bucket_size": buckets.prefetched,
            "stage3_param_persistence_threshold": PERSISTENT,
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    for part, where in (("optimizer", strategy.offload_optimizer), ("param", strategy.offload_parameters)):
        if where != "none":
            zero[f"offload_{part}"] = {"device": where, "pin_memory": on_gpu}
        if where == "nvme":
            zero[f"offload_{part}"]["nvme_path"] = str(nvme or "FOLDER")
    share = -(-global_batch // world_size)
    config = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": -(-share // micro_batch),
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": False,
        "zero_force_ds_cpu_optimizer": strategy.offload_optimizer != "none",
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if strategy.precision == "bf16":
        config["bf16"] = {"enabled": True}
    if strategy.precision == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 2000,
                          "hysteresis": 1, "min_loss_scale": 1}  # fmt: skip
    if strategy.needs_disk:
        config["aio"] = {"block_size": 1048576, "queue_depth": 16, "intra_op_parallelism": 2, "single_submit": False,
                         "overlap_events": True}  # fmt: skip
    return config
