"""Checkpoints as a run trains: when there is room, beside the steps, and on a disk that may be away. In: a run, a step.

Out: `checkpoints/step-N`, or a word why not. What was learned is in memory as long as the run lasts, so neither a disk
that is away nor one that is full ends it: the checkpoint is owed, and tried again soon.
"""

import errno
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bigqa import interrupts
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.disk import WAIT_S, Away, tried, waited_for
from bigqa.engine.loop.training import Training
from bigqa.engine.optim.update import State
from bigqa.errors import BigqaError
from bigqa.language import Text, tr
from bigqa.machine.hardware import free_space, host_memory
from bigqa.units import format_bytes

AGAIN_STEPS = 10
"""Until a checkpoint that the disk was away for, or had no room for, is tried again."""
SHARE_BESIDE = 0.5
"""Of the host's free memory, at most so much for a copy that is written while the steps go on."""

_writing = threading.RLock()
"""One checkpoint at a time: whoever drops old ones drops what is left of those that were never finished too."""


def save_late(run: Training, first_step: int) -> None:
    """End a run that was asked to stop while its step goes on, with what is whole saved; beside the training thread.

    A step of a large model takes longer than whoever asked may wait. Where states are shared out over the processes,
    or others have to be told, the step's end is waited for all the same.
    """
    update = run.parts.update
    if not (run.saves and run.processes.is_main and interrupts.listens()):
        return
    if not update.holds_all:
        run.recorder.say(tr("stopping when this step is over: its states are spread over the processes until then"))
        return
    with update.turn:
        if run.stop.obeyed or update.changing:
            return
        step = first_step + update.completed
        end = tr(": nothing is new since the run was started, and nothing to save")
        if update.completed:
            try:
                _write(run, step, update.state())
                end = tr("; saved at step {step}", step=step)
            except (OSError, RuntimeError, MemoryError, BigqaError) as problem:
                end = tr(", which could not be saved ({problem}): the last checkpoint is left", problem=problem)
        on = tr("; to go on: bigqa train --resume {folder}", folder=run.settings.out)
        interrupts.leave(tr("stopped within step {step}{end}{on}", step=step + 1, end=end, on=on), run.stop.exit_code)


def save_alone(run: Training, step: int) -> bool:
    """Save what is whole, if it is, without a word to the other processes: they may wait for this one for ever.
    Returns: whether the state after `step` steps is saved; else only an older checkpoint is left.
    """
    update, alone = run.parts.update, run.processes.world_size == 1
    if not run.saves or update.changing or not (alone or update.holds_all):
        return False
    update.forget_gradients()
    if alone and run.processes.device.type == "cuda":
        torch.cuda.empty_cache()  # which waits for the device: of several, for averages that another never joins
    try:
        finish_saving(run)  # and its copy is let go of
        _write(run, step, update.state())
    except (OSError, RuntimeError, MemoryError, BigqaError) as problem:
        run.recorder.say(
            tr(
                "step {step} could not be saved ({problem}); going back to the last checkpoint",
                step=step,
                problem=problem,
            )
        )
        return False
    return True


def check_room(run: Training) -> int:
    """Refuse a run whose checkpoints and model do not fit onto its disk. Returns: bytes of a checkpoint.

    Raises: BigqaError, on every process, before anything is trained.
    """
    settings, values = run.settings, run.parts.update.numel()
    size = checkpoint.size_of(values)
    saves = -(-run.num_steps // settings.save_every)
    # A new one is whole before the oldest goes; the best is one of its own as soon as others have come after it.
    count = min(saves, settings.keep + 1) + int(settings.keep_best and run.evaluation is not None)
    model = checkpoint.VALUE_BYTES * max(values, sum(parameter.numel() for parameter in run.parts.model.parameters()))
    there = sum(file.stat().st_size for file in (settings.out / "checkpoints").glob("step-*/*"))
    needed, free = count * size + model - there, free_space(settings.out)
    problem = None
    if run.processes.is_main and free is not None and needed > free:
        problem = tr(
            "{out} has {free} free, and this run writes up to {needed}: {count} checkpoints of {size}, and the "
            "model; free some space, or choose another --out, or a smaller --keep",
            out=settings.out, free=format_bytes(free), needed=format_bytes(needed), count=count,
            size=format_bytes(size),
        )  # fmt: skip
    refused = run.processes.from_main(problem)
    if refused is not None:
        raise BigqaError(str(refused))
    return size


def steps_between(run: Training) -> int:
    """Return the steps from one checkpoint to the next."""
    return min(run.settings.save_every, AGAIN_STEPS) if run.owes else run.settings.save_every


def save(run: Training, step: int, *, must: bool) -> None:
    """Write a checkpoint from the main process, and drop old ones; every process must call.

    `must`: it is there when this returns, if the disk is or comes back; else the run goes on, and it is tried again.
    """
    state = run.parts.update.state()
    is_saved = run.processes.from_main(_saved(run, step, state, must=must) if run.processes.is_main else None)
    if must and not is_saved:
        raise BigqaError(
            tr("{out} is away, and did not come back: the steps since its last save are lost", out=run.settings.out)
        )
    run.owes = not is_saved


def look(run: Training) -> None:
    """See whether what was written beside the steps is there; of several processes, they learn of it at the next."""
    if run.beside is not None and run.processes.world_size == 1 and run.beside.is_over():
        run.owes = not run.beside.end()


def finish_saving(run: Training) -> None:
    """Wait for what is being written beside the steps."""
    if run.beside is not None:
        run.beside.end()


def _saved(run: Training, step: int, state: State, *, must: bool) -> bool:
    """Save, or begin to. Returns: whether it is there; of what has only begun, whether the one before is."""
    clock = run.stop.deadline
    before = run.beside.end() if run.beside is not None else None
    if must:
        # A full disk is waited for as one that is away is; but not by a run that was told to stop.
        write = _writer(run, step, state)
        with clock.timed("save"):
            return waited_for(run.settings.out, write, run.recorder.say, WAIT_S, for_room=not run.stop.obeyed)
    if run.beside is None or not _has_room_beside(run):
        with clock.timed("save"):
            return _tried(run, step, state)
    copy = _copied(state)

    def write_beside() -> bool:
        with clock.timed("save"):
            return _tried(run, step, copy)

    run.beside.begin(write_beside)
    return not run.owes if before is None else before


def _tried(run: Training, step: int, state: State) -> bool:
    """Write, where the disk is there and has room; say so where it is not, or is again."""
    folder, say = run.settings.out, run.recorder.say
    why = tried(folder, _writer(run, step, state))
    if why is None and run.owes:
        say(tr("{folder} is there again: step {step} is saved", folder=folder, step=step))
    elif why is not None and not run.owes:
        say(_owed(folder, step, why))
    return why is None


def _owed(folder: Path, step: int, why: Away) -> Text:
    words = {"folder": folder, "step": step, "again_steps": AGAIN_STEPS}
    if why is Away.FULL:
        return tr(
            "{folder} is full: step {step} is not saved; going on, and trying again every {again_steps} steps", **words
        )
    return tr(
        "{folder} is away: step {step} is not saved; going on, and trying again every {again_steps} steps", **words
    )


def _writer(run: Training, step: int, state: State) -> Callable[[], None]:
    """Return what writes a checkpoint, and drops old ones then; there is room for it, or nothing is begun."""
    folder = run.settings.out

    def write() -> None:
        free = free_space(folder)
        if free is not None and free < checkpoint.size_of(run.parts.update.numel()):
            raise OSError(errno.ENOSPC, "no room for a checkpoint")
        with _writing:
            _write(run, step, state)
            checkpoint.keep_last(folder / "checkpoints", run.settings.keep)

    return write


def _write(run: Training, step: int, state: State) -> None:
    settings = run.settings
    with _writing:
        checkpoint.save(settings.out / "checkpoints", step, state, settings.model_dump(mode="json"), run.plan)


def _has_room_beside(run: Training) -> bool:
    """Whether the host's memory takes a copy of the state."""
    return checkpoint.size_of(run.parts.update.numel()) <= SHARE_BESIDE * host_memory()[1]


def _copied(state: State) -> State:
    """Return a state as it is now, in host memory, that no step changes."""

    def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in tensors.items()
        }

    weights, moments, scales = (copied(part) for part in (state.weights, state.moments, state.scales))
    return State(weights=weights, moments=moments, scales=scales, extras=dict(state.extras))
