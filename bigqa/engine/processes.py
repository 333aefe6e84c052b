"""The processes of a run, through Accelerate. In: the device asked for. Out: rank, device, and what they agree on."""

import gc
import os
import zlib
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, check_cuda_p2p_ib_support
from torch import Tensor, nn

from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.machine.hardware import usable_cores
from bigqa.machine.kernels import Build, lacking
from bigqa.ranges import of_environment

THREADS_VARIABLE = "BIGQA_THREADS"
"""Threads of each process on the CPU; else the cores that it may use, shared out among the processes."""
LONGEST_WAIT = timedelta(hours=2)
"""For the process that makes the features, while the others wait."""
LEFT: list[object] = []
"""Groups that this process has left, kept until it ends. A wrapped model holds its group too; where it is the last to,
torch (2.13, gloo) waits for the group's threads with Python's lock in hand, and a thread that is still to let go of a
tensor waits for that lock: the process never ends."""
PEERS = ("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE")
SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""In which launchers say how many processes there are: torchrun and Accelerate, and those of MPI."""
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited")


def lost_a_peer(error: BaseException) -> bool:
    """Tell whether another process of the run is gone: its end is the cause, and this error only what follows."""
    return isinstance(error, RuntimeError) and any(mark in str(error).lower() for mark in LOST)


def torch_here() -> Build:
    """Return the torch of this process, and what it has code for."""
    flags = torch._C._cuda_getArchFlags() if torch.version.cuda is not None else None
    return Build(torch.__version__, tuple(flags.split()) if flags is not None else None)


def check_kernels(device: torch.device) -> None:
    """Refuse a card that this torch has no kernels for: the first of them would fail. Raises: BigqaError."""
    if device.type == "cuda" and torch.version.hip is None:
        found = lacking(torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), torch_here())
        if found is not None:
            raise BigqaError(tr("{found}; or use the CPU: --device cpu", found=found))


def without_peers() -> str | None:
    """Let NCCL go without what some cards have not, before it starts; return a line that says so.

    Of RTX 40 cards drivers before 550.40.07 say that they reach each other, and they do not. Accelerate refuses them,
    for a single process too, unless it launches the processes itself.
    """
    missing = [name for name in PEERS if name not in os.environ]
    if not missing or check_cuda_p2p_ib_support():
        return None
    os.environ |= dict.fromkeys(missing, "1")
    return tr(
        "these cards cannot reach each other with this driver (550.40.07 can): {missing}=1",
        missing="=1, ".join(missing),
    )


def _started() -> int:
    """Return how many processes of this run a launcher says that it started."""
    for variable in SIZE_VARIABLES:
        if variable in os.environ:
            return of_environment(variable, "world", 1)
    return 1


def _check_cards() -> None:
    """Refuse more processes than cards. Raises: BigqaError."""
    here, cards = of_environment("LOCAL_WORLD_SIZE", "world", 1), torch.cuda.device_count()
    if here > cards:
        raise BigqaError(
            tr("{here} processes on {cards} GPUs: each wants one; fewer, or --device cpu", here=here, cards=cards)
        )


def _settle_buckets(wrapped: Any) -> None:
    """Have the gradients in their buckets for good before the first step.

    torch puts them into others after it, as they came, and sums of more than two processes are then of another order: a
    run that was gone on with would not be what it was. On GPUs that order is worth more: they send as they compute.
    Source: torch, `reducer.cpp`, `rebuild_buckets`.
    """
    push = getattr(getattr(wrapped, "reducer", None), "_push_all_rebuilt_params", None)
    if push is not None:
        push()  # they are rebuilt as the first forward pass begins, and not again


class Processes:
    """This process among those of the run."""

    def __init__(self, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise BigqaError(tr("no CUDA GPU here: use --device cpu, or check the driver with nvidia-smi"))
        # Without a GPU Accelerate makes a group of the processes for a CPU alone, and of each a run of its own else.
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        started = _started()
        if not on_cpu:
            _check_cards()
        self.remark = None if on_cpu else without_peers()
        """What a person should know of how the processes run."""
        patience = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[patience])
        if started != self.accelerator.num_processes:
            raise BigqaError(
                tr(
                    "a launcher started {started} processes, and this one sees {num_processes}: each would "
                    "train a run of its own; start them with bigqa train --num-processes N, or with torchrun",
                    started=started,
                    num_processes=self.accelerator.num_processes,
                )
            )
        self.device: torch.device = self.accelerator.device
        check_kernels(self.device)
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self.on_this_machine = min(self.world_size, int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size)))
        self._share_cores()

    def _share_cores(self) -> None:
        # A launcher of several processes gives each one thread; the cores are there to be used: beside a GPU too, where
        # they step what is offloaded.
        shared = max(1, usable_cores() // self.on_this_machine)
        torch.set_num_threads(of_environment(THREADS_VARIABLE, "threads", shared))

    def wrap(self, model: nn.Module) -> nn.Module:
        """Prepare a model for training on these processes."""
        wrapped: nn.Module = self.accelerator.prepare_model(model.to(self.device))
        if self.world_size > 1 and self.device.type == "cpu":
            _settle_buckets(wrapped)
        return wrapped

    def sum(self, value: Tensor) -> Tensor:
        """Add a tensor up over the processes."""
        if self.world_size == 1:
            return value
        total: Tensor = self.accelerator.reduce(value, reduction="sum")
        return total

    def host_group(self) -> Any:
        """Make a group of the processes for tensors in host memory; one process needs none. All must call."""
        if self.world_size == 1:
            return None
        LEFT.append(torch.distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))
        return LEFT[-1]

    def agree(self, value: object, on: str) -> None:
        """Make sure that all processes have the same value. Raises: BigqaError, on all of them, where they have not.

        Machines of one run may have other cards, and other files.
        """
        if self.world_size == 1:
            return
        digest = zlib.crc32(repr(value).encode())
        most = torch.tensor([digest, -digest], device=self.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        if int(most.sum()):
            raise BigqaError(
                tr("the processes of this run do not agree on {on}: the first has {value}", on=on, value=value)
            )

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def from_main(self, value: object) -> object:
        """Return the main process's value, on every process."""
        if self.world_size == 1:
            return value
        values = [value]
        broadcast_object_list(values)
        return values[0]

    def close(self) -> None:
        """Leave the group of processes."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            LEFT.append(torch.distributed.group.WORLD)
        self.accelerator.free_memory()  # it keeps every model that it has wrapped, with what that has on a device
        gc.collect()
        self.accelerator.end_training()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
