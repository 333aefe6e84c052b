"""Work in forked processes that make up one run. In: a function of `Processes`. Out: what it gave in each of them."""

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
import torch.fx.experimental.symbolic_shapes  # or each fork imports it: a second, twice
from accelerate.state import AcceleratorState
from commands import LIMIT_S, until

from bigqa.engine.processes import Processes


def _work(work: Callable[[Processes], Any], rank: int, world_size: int, port: int, sender: Any, device: str) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "BIGQA_THREADS": "1",
    }  # fmt: skip
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    processes = Processes(device)
    sender.send(work(processes))
    processes.close()
    sender.send(torch.distributed.is_initialized())


def _heard(receiver: Any, workers: list[Any]) -> Any:
    """Return what a process says; one that failed has said why on its own."""
    until(lambda: receiver.poll(0.1) or any(worker.exitcode for worker in workers))
    assert receiver.poll(), "a process failed"
    return receiver.recv()


def in_processes(work: Callable[[Processes], Any], world_size: int = 2, device: str = "cpu") -> list[Any]:
    """Return what the work gives in each of some forked processes; all of them end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
    workers = [
        context.Process(target=_work, args=(work, rank, world_size, port, pipes[rank][1], device), daemon=True)
        for rank in range(world_size)
    ]
    try:
        for worker in workers:
            worker.start()
        found = [_heard(receiver, workers) for receiver, _ in pipes]
        assert [_heard(receiver, workers) for receiver, _ in pipes] == [False] * world_size  # the group is left
        for worker in workers:
            worker.join(LIMIT_S)
        assert [worker.exitcode for worker in workers] == [0] * world_size
        return found
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
