"""What DeepSpeed keeps where there is no GPU, and on a disk: a sum. On a GPU, where each block counts: `memory.zero`.

In: a strategy, parameters, processes. Out: bytes. The states of ZeRO are those of its paper (arXiv:1910.02054, section
3): 2 bytes of weights, 2 of gradients, 12 of fp32 master and Adam moments. Checked against measured runs on a CPU.
"""

from dataclasses import dataclass, replace

from bigqa.engine.zero import buckets_of
from bigqa.memory.scaling import Footprint
from bigqa.strategy import Strategy
from bigqa.units import MIB

LOW_BYTES, MASTER_BYTES, MOMENT_BYTES = 2, 4, 8

IMPORTED_BYTES = 20 * MIB
"""Of DeepSpeed itself, and of its Adam: what importing them adds to a process, as measured."""


@dataclass(frozen=True)
class States:
    """Bytes of one process, or of one node's host for all of its processes."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    host_bytes: int
    pinned_bytes: int
    disk_bytes: int


def states(strategy: Strategy, num_parameters: int, largest_layer: int, world_size: int) -> States:
    """Return what one process keeps."""
    share = -(-num_parameters // world_size)
    stage, buckets = strategy.zero_stage, buckets_of(num_parameters)
    bucket, gathered = buckets.reduced, min(num_parameters, max(buckets.live, largest_layer))
    weights = LOW_BYTES * (share + gathered if stage == 3 else num_parameters)
    if stage == 3 and strategy.offload_parameters != "none":
        weights = LOW_BYTES * gathered
    gradients = LOW_BYTES * (num_parameters if stage == 1 else share)
    optimizer = (MASTER_BYTES + MOMENT_BYTES) * share
    host = pinned = disk = 0
    if strategy.offload_optimizer != "none":
        # fp32 gradients come to the host beside masters and moments.
        moved, optimizer = optimizer + MASTER_BYTES * share, 0
        if stage == 3:  # its gradients come by a flat buffer, and the largest parameter's is there besides
            gradients += LOW_BYTES * largest_layer
        else:  # one more copy of the flat weights, and a buffer each for a gradient on its way and on its return
            gradients = LOW_BYTES * (share + 2 * largest_layer)
        if strategy.offload_optimizer == "nvme":
            disk, pinned = disk + moved, 4 * 4 * min(bucket, share)
        else:
            pinned += moved
    if strategy.offload_parameters == "cpu":
        pinned += LOW_BYTES * share
    elif strategy.offload_parameters == "nvme":
        disk += LOW_BYTES * share
        pinned += 5 * LOW_BYTES * min(bucket, largest_layer)
    # Two buckets while gradients are reduced as others are made, and one to gather updated weights in fp32.
    buffers = LOW_BYTES * bucket * 2 + (LOW_BYTES * bucket if stage < 3 else 0)
    host += IMPORTED_BYTES + LOW_BYTES * num_parameters // 4
    return States(weights, gradients, optimizer, buffers, host, pinned, disk)


def with_states(found: Footprint, kept: States) -> Footprint:
    """Return a footprint with DeepSpeed's states in place of those that were traced."""
    categories = dict(found.by_category)
    traced = categories["weights"] + categories["gradients"] + categories["optimizer"]
    categories |= {
        "weights": kept.weights_bytes,
        "gradients": kept.gradients_bytes,
        "optimizer": kept.optimizer_bytes,
        "temporaries": categories["temporaries"] + kept.buffers_bytes,
    }
    change = kept.weights_bytes + kept.gradients_bytes + kept.optimizer_bytes + kept.buffers_bytes - traced
    return replace(
        found,
        allocated_bytes=found.allocated_bytes + change,
        reserved_bytes=found.reserved_bytes + change,
        by_category=categories,
    )
