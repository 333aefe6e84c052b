"""ZeRO-3: weights, gradients and states of each process's part. In: gradients, modules. Out: events.

Source: DeepSpeed 0.19, `runtime/zero/stage3.py` and `partition_parameters.py`; methods say what they follow there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

from bigqa.engine.zero import NORMED_AT_ONCE, PERSISTENT, Buckets
from bigqa.memory.zero.device import GATHERING, MAIN, REDUCING, SCALAR, Device
from bigqa.memory.zero.gathering import Gathering
from bigqa.memory.zero.layout import Layout
from bigqa.strategy import Strategy

FP32, FP64 = 4, 8
SUB_GROUP = 10**9
"""Elements of a partition that are stepped at once (`sub_group_size`)."""
SWAP_BUFFERS = 4
"""For states on a disk, each of a group's fp32 part (`offload_config.py`: `buffer_count`)."""
SWAPPED_WEIGHTS = 5 * 10**8
"""Elements of the buffers for weights on a disk (`buffer_count`, `buffer_size`)."""


class ShardedWeights:
    """Makes weights whole, and lets go of them."""

    def __init__(self, device: Device, layout: Layout, world_size: int, *, on_host: bool) -> None:
        self.device, self.layout, self.world_size, self.on_host = device, layout, world_size, on_host
        self.low = layout.element_bytes
        self.whole: dict[int, int] = {}
        """Blocks, by parameter."""
        self.together: dict[int, list[int]] = {}
        """A gathered parameter -> all that were gathered into one buffer and are not waited for."""
        self.buffers: dict[int, int] = {}
        """Their buffers, by the list of them."""
        self.complete: set[int] = set()
        """Those lists whose weights are copied out already."""
        self.sent: dict[int, list[int]] = {}
        """What is sent for a parameter, which NCCL's work holds until it is waited for."""
        self.held: dict[int, int] = {}
        """Blocks that a recomputation holds, by parameter."""
        self.holds: Counter[int] = Counter()

    def part(self, number: int) -> int:
        """Return the elements of a process's part, padding included."""
        return -(-self.layout.numels[number] // self.world_size)

    def gather(self, numbers: Sequence[int]) -> None:
        """`all_gather_coalesced`."""
        if self.world_size == 1:
            for number in numbers:
                self._copy(number, GATHERING)
        elif len(numbers) == 1:
            number = numbers[0]
            self.whole[number] = self._room(number, GATHERING)
            self.sent[number] = self._parts(numbers, GATHERING)
        else:
            size = sum(map(self.part, numbers)) * self.world_size * self.low
            buffer = self.device.new(size, "weights", "gathered", GATHERING)
            self.device.free(*self._parts(numbers, GATHERING))
            members = list(numbers)
            self.together |= dict.fromkeys(members, members)
            self.buffers[id(members)] = buffer

    def wait(self, number: int) -> None:
        """`AllGatherCoalescedHandle.wait`: each weight is copied out of the buffer, which stays until all are taken."""
        self.device.free(*self.sent.pop(number, []))
        members = self.together.pop(number, None)
        if members is None:
            return
        if id(members) not in self.complete:
            self.complete.add(id(members))
            for member in members:
                size = self.layout.numels[member] * self.low
                self.whole[member] = self.device.new(size, "weights", "gathered", GATHERING)
        if not any(self.together.get(member) is members for member in members):
            self.complete.discard(id(members))
            self.device.free(self.buffers.pop(id(members)))

    def release(self, number: int) -> None:
        """`free_param`. What is held stays until it is let go of."""
        block = self.whole.pop(number, 0)
        if block != self.held.get(number):
            self.device.free(block)

    def hold(self, number: int) -> None:
        """Keep a whole weight as a recomputation does for its backward pass, which may hold it several times."""
        if not self.holds[number]:
            self.held[number] = self.whole.get(number, 0)
        self.holds[number] += 1

    def let_go(self, number: int) -> None:
        """End a hold."""
        self.holds[number] -= 1
        if not self.holds[number]:
            block = self.held.pop(number)
            if block != self.whole.get(number, 0):
                self.device.free(block)

    def gather_persistent(self, numbers: Sequence[int]) -> None:
        """`_allgather_params_coalesced`, on the main stream, after a step."""
        if self.world_size == 1:
            for number in numbers:
                self._copy(number, MAIN)
            return
        parts = self._parts(numbers, MAIN)
        for number in numbers:
            size = self.part(number) * self.world_size * self.low
            self.whole[number] = self.device.new(size, "weights", "gathered")
        self.device.free(*parts)

    def gather_for_a_moment(self, number: int) -> None:
        """`_allgather_params_sequential`, as where hooks are put."""
        block = self._room(number, MAIN)
        self.device.free(*self._parts([number], MAIN), block)

    def _room(self, number: int, stream: int) -> int:
        return self.device.new(self.part(number) * self.world_size * self.low, "weights", "gathered", stream)

    def _parts(self, numbers: Sequence[int], stream: int) -> list[int]:
        if not self.on_host:
            return []
        return [self.device.new(self.part(one) * self.low, "weights", "part", stream) for one in numbers]

    def _copy(self, number: int, stream: int) -> None:
        if self.on_host:
            size = self.layout.numels[number] * self.low
            self.whole[number] = self.device.new(size, "weights", "gathered", stream)


class ThirdStage:
    """The first process's part of stage 3."""

    def __init__(
        self, device: Device, layout: Layout, strategy: Strategy, world_size: int, buckets: Buckets,
        unused: frozenset[int],
    ) -> None:  # fmt: skip
        """`unused`: parameters that a loss does not reach."""
        self.device, self.layout, self.world_size = device, layout, world_size
        self.low, self.size = layout.element_bytes, buckets.reduced
        self.offloads = strategy.offload_optimizer != "none"
        self.swaps = strategy.offload_optimizer == "nvme"
        self.checks = strategy.precision == "fp16"
        self.weights_on_host = strategy.offload_parameters != "none"
        self.weights_on_disk = strategy.offload_parameters == "nvme"
        self.weights = ShardedWeights(device, layout, world_size, on_host=self.weights_on_host)
        self.persistent = [one for one, numel in enumerate(layout.numels) if numel <= PERSISTENT]
        self.gathering = Gathering(self.weights, layout, buckets, frozenset(self.persistent))
        self.groups = [group for whole in layout.groups for group in self._sub_groups(whole)]
        self.gradients: dict[int, int] = {}
        """Blocks that gradients have to themselves, by parameter."""
        self.waiting: list[int] = []
        self.elements = 0
        self.norms: dict[int, int] = {}
        self.boundary, self.has_states = True, False

    def _sub_groups(self, group: Sequence[int]) -> Iterator[list[int]]:
        """`_create_fp16_sub_groups`."""
        found: list[int] = []
        for number in group:
            found.append(number)
            if self._elements(found) >= SUB_GROUP:
                yield found
                found = []
        if found:
            yield found

    def _elements(self, numbers: Sequence[int]) -> int:
        return sum(map(self.weights.part, numbers))

    def start(self) -> None:
        """Partition the model parameter by parameter, make masters and buffers: `zero.Init`, `__init__`."""
        device, parts = self.device, []
        if self.weights_on_disk:
            device.pin(SWAPPED_WEIGHTS * self.low)
        for number, numel in enumerate(self.layout.numels):
            whole = device.new(numel * self.low, "weights")
            if self.weights_on_host:
                device.pin(self.weights.part(number) * self.low)
            else:
                parts.append(device.new(self.weights.part(number) * self.low, "weights", "part"))
            device.free(whole)
        for size in self.layout.buffers:
            device.new(size, "weights", "buffer")
        self._defragment(parts)
        self._make_masters()
        device.new(self.size * self.low, "gradients", "bucket")
        everything = self._elements(range(len(self.layout.numels))) * self.low
        if self.offloads:
            device.pin(everything)
        else:
            device.new(everything, "gradients", "grad_partitions_flat_buffer")
        for number in (one for group in self.groups for one in group):
            self.weights.gather_for_a_moment(number)

    def _defragment(self, parts: list[int]) -> None:
        if self.weights_on_host:
            for group in self.layout.groups:
                self.device.pin(self._elements(group) * self.low)
            return
        self.device.free(*parts)
        self.device.empty_cache()
        everything = self._elements(range(len(self.layout.numels))) * self.low
        self.device.new(everything, "weights", "lp_param_buffer")

    def _make_masters(self) -> None:
        """`_create_fp32_partitions`, `initialize_optimizer_states`."""
        sizes = [self._elements(group) * FP32 for group in self.groups]
        if self.swaps:
            self.device.pinned_bytes += SWAP_BUFFERS * max(sizes)  # locked by `async_io`, not by torch
            return
        if self.offloads:
            for size in sizes:
                self.device.pin(size)
                self.device.host_bytes += 3 * size  # masters, Adam's moments
            return
        converted = 0
        for size in sizes:
            fresh = self.device.new(size, "optimizer") if self.low < FP32 else 0
            self.device.free(converted)
            converted = fresh
            self.device.new(size, "optimizer", "master")
        self.device.free(converted)
        self.device.free(self.device.new(max(sizes), "gradients"))

    def begin(self, *, boundary: bool) -> None:
        """Begin a micro-batch. `boundary`: the step's last."""
        self.boundary = boundary
        self.gathering.begin_pass()

    def gradient(self, number: int, block: int) -> bool:
        """Take a parameter's gradient: `reduce_independent_p_g_buckets_and_remove_grads`.

        Returns: whether the block is kept beyond the hook.
        """
        numel = self.layout.numels[number]
        if self.elements and self.elements + numel > self.size:
            self._reduce()
        kept = self.elements + numel > self.size
        if kept:
            self.gradients[number] = block
        self.waiting.append(number)
        self.elements += numel
        return kept

    def _reduce(self) -> None:
        """`__reduce_and_partition_ipg_grads`, `reduce_scatter_coalesced`."""
        if not self.waiting:
            return
        flat = self._flatten()
        self._partition()
        self.device.free(flat)
        self.waiting, self.elements = [], 0

    def _flatten(self) -> int:
        if len(self.waiting) == 1 and self.layout.numels[self.waiting[0]] % self.world_size == 0:
            return 0  # as it is
        pads = []
        for rank in range(self.world_size):
            for number in self.waiting:
                part = self.weights.part(number)
                there = max(0, min(part, self.layout.numels[number] - rank * part))
                pads.append(self.device.new((part - there) * self.low, "temporaries", "pad", REDUCING))
        size = self._elements(self.waiting) * self.world_size * self.low
        flat = self.device.new(size, "gradients", "reduced", REDUCING)
        self.device.free(*pads)
        return flat

    def _partition(self) -> None:
        """`partition_grads`: on the way to the host a gradient is on the device once more, and once in fp32."""
        device, moved, sent = self.device, 0, []
        for number in sorted(self.waiting):
            part = min(self.weights.part(number), self.layout.numels[number])
            if self.offloads:
                device.free(moved)
                moved = device.new(part * self.low, "gradients", "part", REDUCING)
                if self.boundary:
                    self._norm(number, part)
                    if self.swaps:
                        sent.append(device.new(part * FP32, "gradients", "sent", REDUCING))
                    elif self.low < FP32:
                        device.passing(part * FP32, REDUCING)
            device.free(self.gradients.pop(number, 0))
        device.free(*sent, moved)

    def _norm(self, number: int, part: int) -> None:
        """`_constant_buffered_norm2`."""
        for begin in range(0, part, NORMED_AT_ONCE):
            self.device.passing(min(NORMED_AT_ONCE, part - begin) * FP64, REDUCING)
        fresh = self.device.new(SCALAR, "temporaries", "norm", REDUCING)
        self.device.free(self.norms.pop(number, 0))
        self.norms[number] = fresh

    def end_backward(self) -> None:
        """`independent_gradient_partition_epilogue`, `backward_epilogue`."""
        self._reduce()
        self.gathering.end_pass()

    def step(self) -> None:
        """`step`."""
        device = self.device
        self.gathering.release_all()
        if self.offloads:
            device.free(*self.norms.values())
            self.norms = {}
        else:
            self._check()
            self._norms()
            for group in self.groups:
                self._update(group)
            self.has_states = True
        if self.persistent:
            self.weights.gather_persistent(self.persistent)
            self.gathering.whole.update(self.persistent)

    def _check(self) -> None:
        """`has_overflow`: fp16 alone looks at all gradients at once."""
        everything = self._elements(range(len(self.layout.numels)))
        for _ in range(2 if self.checks else 0):
            absolute = self.device.new(everything * self.low, "temporaries", "isinf", REDUCING)
            self.device.free(self.device.new(everything, "temporaries", "isinf", REDUCING), absolute)

    def _norms(self) -> None:
        for group in self.groups:
            norms = []
            for number in group:
                wide = self.device.new(self.weights.part(number) * FP64, "temporaries", "norm")
                norms.append(self.device.new(SCALAR, "temporaries"))
                self.device.free(wide)
            self.device.free(*norms)

    def _update(self, group: Sequence[int]) -> None:
        device, elements = self.device, self._elements(group)
        flat = device.new(elements * self.low, "gradients", "flat") if len(group) > 1 else 0
        single = flat
        if self.low < FP32:
            single = device.new(elements * FP32, "gradients", "single_grad_partition")
            device.free(flat)
        if not self.has_states:
            for size in (FP32, elements * FP32, elements * FP32):
                device.new(size, "optimizer", "state")
        device.free(single)
