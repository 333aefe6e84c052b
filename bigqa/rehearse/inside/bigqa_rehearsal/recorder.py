"""One process of a rehearsed command. In: torch's hooks. Out: what happened, in a folder, and the process's end.

Every change of phase is a mark: its number is what torch writes beside each allocation from then on ("user metadata"),
so that the trace of allocations can be told apart by phase afterwards.
"""

import atexit
import contextlib
import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigqa_rehearsal.places import stack_of, stack_of_error
from bigqa_rehearsal.reads import Reads
from bigqa_rehearsal.tags import tagged

MOST_EVENTS = 4_000_000
"""Of the trace for each device; older ones are forgotten beyond it."""
STREAMING = "bigqa.engine.stream.update"
PATIENCE_S = 60.0
"""How long a process waits for the others of its machine to come as far as it has."""


def has_data(optimizer: Any) -> bool:
    """Whether what an optimizer steps is there: a command may try a step without data before it trains."""
    link = getattr(optimizer, "link", None)
    if link is not None:  # of streamed layers, whose weights are on the host in any case
        return bool(link.device.type != "meta")
    groups = getattr(optimizer, "param_groups", None) or []
    parameters = [parameter for group in groups for parameter in group["params"]]
    return not parameters or any(not parameter.is_meta for parameter in parameters)


class Recorder:
    """Looks on."""

    def __init__(self, folder: str, steps: int, true: list[str], known: list[str]) -> None:
        self.folder = Path(folder)
        self.steps = steps
        self.reads = Reads(true, known)
        self.marks: list[tuple[str, int]] = [("set-up", 0)]
        """(phase, steps done when it began)."""
        self.tags: dict[int, dict[int, str]] = {}
        """For some marks: what was at an address when it was made."""
        self.done: dict[int, int] = {}
        """Steps of each optimizer."""
        self.depth = 0
        """Of backward passes within each other."""
        self.in_engine = False
        self.ends_after_backward = False
        self.peaks: dict[int, dict[str, int]] = {}
        self.shortages: list[dict[str, Any]] = []
        self.failure: dict[str, Any] | None = None
        self.is_on = False
        self.first_call: Any = None

    # ---- what torch calls ----

    def on_torch(self) -> None:
        """Hook into torch, once it is imported."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(lambda optimizer, *_: self._begin_step(optimizer))
        register_optimizer_step_post_hook(lambda optimizer, *_: self._end_step(optimizer))
        torch.autograd._engine_run_backward = self._watched(torch.autograd._engine_run_backward)
        torch.cuda._lazy_call(self.on_cuda)
        for name in ("_cuda_resetPeakMemoryStats", "_accelerator_resetPeakStats"):
            if hasattr(torch._C, name):
                setattr(torch._C, name, self._after_keeping_peaks(getattr(torch._C, name)))

    def on_cuda(self) -> None:
        """Begin to record, once the process uses CUDA."""
        import torch

        self.is_on = True
        torch.cuda.memory._record_memory_history(max_entries=MOST_EVENTS, stacks="python")
        torch._C._cuda_attach_out_of_memory_observer(self._out_of_memory)  # type: ignore[attr-defined]
        self.reads.start()
        self._mark(*self.marks[-1])
        self._await_forward()
        atexit.register(self.write)
        self._write_before(os._exit)
        self._listen_for_failure()

    def on_deepspeed(self) -> None:
        """Count DeepSpeed's own steps: its optimizers are not all torch's, and may call one of torch's often."""
        from deepspeed.runtime.engine import DeepSpeedEngine

        self._count_steps(DeepSpeedEngine, "_take_model_step")

    def on_streaming(self) -> None:
        """Count the steps of layers that bigqa's own trainer streams: none of torch's optimizers takes them."""
        self._count_steps(sys.modules[STREAMING].StreamedUpdate, "step")

    def _count_steps(self, owner: type, name: str) -> None:
        """Take each call of a method for a step of what it is called on."""
        take = getattr(owner, name)

        def take_watched(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self._begin_step(optimizer)
            self.in_engine = True
            try:
                result = take(optimizer, *args, **kwargs)
            finally:
                self.in_engine = False
            self._end_step(optimizer)
            return result

        setattr(owner, name, take_watched)

    def on_deepspeed_checks(self) -> None:
        """Let DeepSpeed's checks pass that all processes have the same list: no card carries the first one's to them.

        They ask all the same, for what asking takes is the command's.
        """
        from deepspeed.runtime.zero import utils

        ask, compare_lengths = utils.get_lst_from_rank0, utils.assert_lst_len_same_as_other_ranks

        def ask_and_return_own(own: list[int]) -> list[int]:
            ask(own)
            return own

        def compare_lengths_in_vain(own: list[int]) -> None:
            with contextlib.suppress(RuntimeError):
                compare_lengths(own)

        utils.get_lst_from_rank0 = ask_and_return_own
        utils.assert_lst_len_same_as_other_ranks = compare_lengths_in_vain

    def _write_before(self, end: Callable[[int], Any]) -> None:
        """A program may end without Python's own end: it is written down all the same."""

        def write_and_end(code: int) -> None:
            try:
                self.write()
            finally:
                end(code)

        os._exit = write_and_end  # type: ignore[assignment]

    def disable(self) -> None:
        """A fork of a process is not watched."""
        self.is_on = False
        atexit.unregister(self.write)

    # ---- phases ----

    def _mark(self, phase: str, step: int) -> None:
        import torch

        self.marks.append((phase, step))
        torch._C._cuda_setMemoryMetadata(str(len(self.marks) - 1))

    def _phase(self, phase: str, *, tags: bool = False) -> None:
        if not self.is_on:
            return
        self._mark(phase, max(self.done.values(), default=0))
        if tags:
            self.tags[len(self.marks) - 1] = tagged()

    def _await_forward(self) -> None:
        """The next call of a module begins a forward pass. One hook for one call: it costs nothing after that."""
        from torch.nn.modules import module

        if self.first_call is None:

            def begin(*_: Any) -> None:
                self.first_call.remove()
                self.first_call = None
                if self.depth == 0:
                    self._phase("forward")

            self.first_call = module.register_module_forward_pre_hook(begin)

    def _watched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def run_watched(*args: Any, **kwargs: Any) -> Any:
            if self.depth == 0:
                self._phase("backward", tags=not self.tags)
            self.depth += 1
            try:
                return run(*args, **kwargs)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self._phase("after backward")
                    self._await_forward()
                    if self.ends_after_backward:
                        self.finish()

        return run_watched

    def _begin_step(self, optimizer: Any) -> None:
        if not self.in_engine and self.is_on and has_data(optimizer):
            self._phase("optimizer", tags=self.depth == 0)

    def _end_step(self, optimizer: Any) -> None:
        if self.in_engine or not self.is_on or not has_data(optimizer):
            return
        self.done[id(optimizer)] = self.done.get(id(optimizer), 0) + 1
        self._phase("after step" if self.depth == 0 else "backward", tags=self.depth == 0)
        self._await_forward()
        if self.done[id(optimizer)] >= self.steps:
            if self.depth == 0:
                self.finish()
            self.ends_after_backward = True  # an optimizer that steps within the backward pass: let it end

    # ---- what goes wrong ----

    def _out_of_memory(self, device: int, wanted: int, total: int, free: int) -> None:
        """Torch calls this before it raises its error."""
        self._phase("out of memory", tags=not self.shortages)
        found = {"device": device, "wanted_bytes": wanted, "free_bytes": free, "stack": stack_of(sys._getframe())}
        phases = [phase for phase, _ in self.marks[:-1] if phase != "out of memory"]
        self.shortages.append(found | {"phase": phases[-1], "step": self.marks[-1][1] + 1})

    def _listen_for_failure(self) -> None:
        say = sys.excepthook

        def hear(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            self.failure = {"type": kind.__name__, "message": str(error), "stack": stack_of_error(trace)}
            say(kind, error, trace)

        sys.excepthook = hear

    # ---- the end ----

    def _after_keeping_peaks(self, reset: Callable[..., Any]) -> Callable[..., Any]:
        def keep_and_reset(*args: Any) -> Any:
            self._keep_peaks()
            return reset(*args)

        return keep_and_reset

    def _keep_peaks(self) -> None:
        import torch

        if not torch.cuda.is_initialized():
            return
        for device in range(torch.cuda.device_count()):
            kept = self.peaks.setdefault(device, {"allocated_bytes": 0, "reserved_bytes": 0})
            kept["allocated_bytes"] = max(kept["allocated_bytes"], torch.cuda.max_memory_allocated(device))
            kept["reserved_bytes"] = max(kept["reserved_bytes"], torch.cuda.max_memory_reserved(device))

    def write(self) -> None:
        """Write what happened: figures as JSON, torch's record of all allocations as torch's viewer opens it."""
        import torch

        if not self.is_on:
            return
        self.is_on = False
        self.reads.stop()
        self.reads.library.null_threads_stay()  # from here on no thread of torch's ends the program by its own end
        self._keep_peaks()
        snapshot = torch.cuda.memory._snapshot()
        torch.cuda.memory._record_memory_history(enabled=None)
        name = f"{os.environ.get('RANK', '0')}-{os.getpid()}"
        with (self.folder / f"{name}.pickle").open("wb") as file:
            pickle.dump(snapshot, file, protocol=4)
        gpu = torch.cuda.get_device_properties(0)
        found = {
            "pid": os.getpid(),
            "rank": int(os.environ.get("RANK", "0")),
            "torch": torch.__version__,
            "torch_folder": str(Path(torch.__file__).parent),
            "card": gpu.name,
            "capability": [gpu.major, gpu.minor],
            "steps": max(self.done.values(), default=0),
            "devices": [
                peaks | {"device": d, "used_bytes": self.reads.most_used(d)} for d, peaks in self.peaks.items()
            ],
            "pinned_bytes": self.reads.most_pinned(),
            "managed_bytes": self.reads.most_managed(),
            "host_bytes": _host_peak(),
            "marks": self.marks,
            "tags": [[mark, list(tags.items())] for mark, tags in self.tags.items()],
            "is_cut": any(len(trace) >= MOST_EVENTS for trace in snapshot["device_traces"]),
            "shortages": self.shortages,
            "failure": self.failure,
            "reads": self.reads.found(),
        }
        temporary = self.folder / f"{name}.tmp"
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.rename(self.folder / f"{name}.json")

    def finish(self) -> None:
        """End this process, once those of the same machine have come as far."""
        self.write()
        with contextlib.suppress(Exception):
            import multiprocessing

            for child in multiprocessing.active_children():
                child.terminate()
        together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        patience = time.monotonic() + PATIENCE_S
        while len(list(self.folder.glob("*.json"))) < together and time.monotonic() < patience:
            time.sleep(0.05)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)


def _host_peak() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
