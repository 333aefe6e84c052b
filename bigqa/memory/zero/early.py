"""ZeRO-1 and ZeRO-2: states, or gradients too, of each process's partition. In: gradients as they come. Out: events.

Source: DeepSpeed 0.19, `runtime/zero/stage_1_and_2.py`; methods say what they follow there.
"""

from dataclasses import dataclass, field

from bigqa.engine.zero import Buckets
from bigqa.memory.zero.device import REDUCING, SCALAR, Device
from bigqa.memory.zero.layout import Layout, partitions_of
from bigqa.strategy import Strategy

FP32, FP64 = 4, 8


@dataclass
class _Bucket:
    """Gradients that wait for their reduction: `IPGBucket`."""

    parameters: list[int] = field(default_factory=list)
    elements: int = 0
    buffers: tuple[int, ...] = ()


class EarlyStages:
    """The first process's part of stages 1 and 2."""

    def __init__(
        self, device: Device, layout: Layout, strategy: Strategy, world_size: int, buckets: Buckets,
        unused: frozenset[int],
    ) -> None:  # fmt: skip
        """`unused`: parameters that a loss does not reach."""
        self.device, self.layout, self.world_size = device, layout, world_size
        self.low = layout.element_bytes
        self.offloads = strategy.offload_optimizer != "none"
        self.shards_gradients = strategy.zero_stage == 2
        self.size = buckets.reduced
        self.groups = [partitions_of({n: layout.numels[n] for n in group}, world_size) for group in layout.groups]
        self.mine = [group.of(0) for group in self.groups]
        self.slices = {number: slices for group in self.groups for number, slices in group.slices.items()}
        self.held = {number: one for mine in self.mine for number, one in mine.items()}
        self.bucket = _Bucket()
        self.gradients: dict[int, int] = {}
        """Blocks that gradients have to themselves, by parameter."""
        self.partition = 0
        """`grads_in_partition`: all of this process's gradients of a micro-batch."""
        self.summed: list[int] = []
        """What an earlier micro-batch of the step left: `all_grad_tensors`."""
        self.has_states, self.boundary = False, True
        self.unused = unused
        self.micro_batches = 0
        self.accumulated: set[int] = set()
        self.norms: list[int] = []

    def start(self) -> None:
        """Place the model, flatten it, make masters: `__init__`.

        A group is flattened on the GPU where there is room for it twice, else in host memory: more than once it is not
        needed, and torch's peaks are reset there (`utils.py`, `empty_cache`).
        """
        device, weights = self.device, {}
        for number, size in self.layout.placed:
            block = device.new(size if number < 0 else self.layout.numels[number] * self.low, "weights", "weight")
            weights[number] = block
        for numbers, group in zip(self.layout.groups, self.groups, strict=True):
            device.empty_cache(forget=True)
            pad = device.new(group.padding * self.low, "weights")
            if len(numbers) > 1 or pad:
                device.new(group.size * self.world_size * self.low, "weights", "flat")
                device.free(pad, *(weights[number] for number in numbers))
            self._make_master(group.size)
        if self.offloads:
            largest = max(self.layout.numels) * self.low
            device.pin(largest)
            device.new(largest, "temporaries", "temp_grad_buffer")
        self._initialize_states()

    def _make_master(self, size: int) -> None:
        clone = self.device.new(size * self.low, "optimizer", "master")
        if self.offloads:
            self.device.pin(size * FP32)
            self.device.pin(size * self.low)
        elif self.low < FP32:
            self.device.new(size * FP32, "optimizer", "master")
        else:
            return
        self.device.free(clone)

    def _initialize_states(self) -> None:
        if self.offloads:
            for group in self.groups:
                self.device.pin(group.size * FP32)
                self.device.host_bytes += group.size * 2 * FP32  # Adam's moments
            return
        self.device.free(*[self.device.new(group.size * FP32, "gradients") for group in self.groups])

    def begin(self, *, boundary: bool) -> None:
        """Begin a micro-batch. `boundary`: the step's last."""
        self.boundary = boundary

    def gradient(self, number: int, block: int) -> bool:
        """Take a parameter's gradient: `reduce_independent_p_g_buckets_and_remove_grads`.

        Returns: whether the block is kept beyond the hook.
        """
        self._set_up_buckets()
        if not (self.shards_gradients or self.boundary):
            return self._keep(number, block)
        numel, bucket = self.layout.numels[number], self.bucket
        if bucket.elements + numel > self.size:
            self._reduce()
        kept = False
        if numel > self.size:
            kept = self._keep(number, block)
            if self.offloads and kept:  # a clone is reduced
                self.gradients[number] = self.device.new(numel * self.low, "gradients", "gradient")
                kept = False
        else:
            self._drop(number)
        bucket.elements += numel
        bucket.parameters.append(number)
        return kept

    def _keep(self, number: int, block: int) -> bool:
        """Keep a gradient; where an earlier micro-batch left one, the new one is added to it and goes."""
        if number in self.gradients:
            return False
        self.gradients[number] = block
        return True

    def _drop(self, number: int) -> None:
        self.device.free(self.gradients.pop(number, 0))

    def _set_up_buckets(self) -> None:
        if not self.bucket.buffers:
            self.micro_batches += 1
            size = self.size * self.low
            self.bucket.buffers = tuple(self.device.new(size, "gradients", "bucket") for _ in range(2))

    def _reduce(self) -> None:
        """Reduce what is in the bucket: `reduce_ipg_grads`, `average_tensor`."""
        bucket = self.bucket
        self._average()
        for number in bucket.parameters:
            if number in self.held:
                self._move_to_partition(number)
            elif self.shards_gradients:
                self._drop(number)
        bucket.parameters, bucket.elements = [], 0

    def _average(self) -> None:
        """All gradients of a bucket are flattened once more, where they belong to several processes."""
        runs: list[tuple[int, int]] = []
        for number in self.bucket.parameters:
            for one in self.slices[number]:
                if runs and runs[-1][0] == one.partition:
                    runs[-1] = (one.partition, runs[-1][1] + one.size)
                else:
                    runs.append((one.partition, one.size))
        sent: list[int] = []
        for _, size in runs:
            sent.append(size)
            if sum(sent) > self.size:
                self._flatten(sent)
                sent = []
        self._flatten(sent)

    def _flatten(self, sizes: list[int]) -> None:
        if len(sizes) > 1:  # a single tensor is flat already
            self.device.passing(sum(sizes) * self.low, REDUCING)

    def _move_to_partition(self, number: int) -> None:
        """`copy_grads_in_partition`."""
        if self.offloads:
            self._move_to_host(number)
            return
        if not self.partition:
            total = sum(self.layout.numels[one] for one in self.held)
            self.partition = self.device.new(total * self.low, "gradients", "grads_in_partition", REDUCING)
        self._drop(number)

    def _move_to_host(self, number: int) -> None:
        device, size = self.device, self.held[number].size
        if (self.micro_batches > 1 or not self.boundary) and number not in self.accumulated:
            self.accumulated.add(number)
            device.pin(self.layout.numels[number] * self.low)
        if self.boundary:
            device.passing(size * FP64, REDUCING)
            self.norms.append(device.new(SCALAR, "temporaries", "norm", REDUCING))
            if self.low < FP32:
                device.passing(size * FP32, REDUCING)
            self._drop(number)

    def end_backward(self) -> None:
        """`independent_gradient_partition_epilogue`."""
        if not (self.shards_gradients or self.boundary):
            return
        self._reduce()
        if not self.offloads:
            self._take_partition()
        self.device.free(*self.bucket.buffers)
        self.bucket.buffers = ()
        for number in list(self.gradients):
            self._drop(number)

    def _take_partition(self) -> None:
        missing = [
            self.device.new(self.layout.numels[n] * self.low, "gradients") for n in self.held if n in self.unused
        ]
        if self.summed:
            self.device.free(self.partition, *missing)
        else:
            self.summed = [self.partition, *missing]
        self.partition = 0
        if self.boundary:
            for group, mine in zip(self.groups, self.mine, strict=True):
                rest = group.size - sum(one.size for one in mine.values())
                self.summed.append(self.device.new(rest * self.low, "gradients"))

    def step(self) -> None:
        """`step`: norms, then each group's fp32 gradient, states and weights."""
        device = self.device
        self.micro_batches = 0
        if not self.offloads:
            self._norms()
        for index, (group, mine) in enumerate(zip(self.groups, self.mine, strict=True)):
            if self.offloads:
                continue
            parts = len(mine) + (group.size > sum(one.size for one in mine.values()))
            flat = device.new(group.size * self.low, "gradients", "flat") if parts > 1 else 0
            if self.low < FP32:
                single = device.new(group.size * FP32, "gradients", "single_grad_partition")
                device.free(flat)
            else:
                single = flat
            if index == len(self.groups) - 1:
                device.free(*self.summed)
                self.summed = []
            self._update(group.size)
            device.free(single)
        self.has_states = True
        device.free(*self.norms)
        self.norms = []

    def _norms(self) -> None:
        for mine in self.mine:
            norms = []
            for one in mine.values():
                wide = self.device.new(one.size * FP64, "temporaries", "norm")
                norms.append(self.device.new(SCALAR, "temporaries"))
                self.device.free(wide)
            self.device.free(*norms)

    def _update(self, size: int) -> None:
        if not self.has_states:
            for bytes_ in (FP32, size * FP32, size * FP32):
                self.device.new(bytes_, "optimizer", "state")
