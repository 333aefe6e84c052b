"""The training loop. In: the parts of a step, windows, and the run's settings. Out: a trained model, or a checkpoint.

Each step is a function of (settings, step): its windows, its learning rate and its random numbers follow from them.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bigqa.engine import checkpoint
from bigqa.engine.meter import MemoryMeter, SpeedMeter
from bigqa.engine.optimizers import linear_rate
from bigqa.engine.order import DataOrder, mix_seed, share_of_process, split
from bigqa.engine.processes import Processes
from bigqa.engine.recorder import Silent
from bigqa.engine.recovery import OutOfMemory, is_out_of_memory
from bigqa.engine.step import Parts, train_step
from bigqa.engine.stop import StopRequest
from bigqa.errors import BigqaError
from bigqa.settings import Settings
from bigqa.tasks.base import Batch


@dataclass(kw_only=True)
class Training:
    """Everything that a run needs."""

    settings: Settings
    micro_batch: int
    processes: Processes
    parts: Parts
    windows: Any
    """A `datasets.Dataset` of features: rows by index, memory-mapped."""
    lengths: Sequence[int]
    """Tokens of each window."""
    recorder: Silent
    stop: StopRequest

    @property
    def order(self) -> DataOrder:
        """The data order of the run."""
        settings = self.settings
        return DataOrder(num_windows=len(self.lengths), global_batch=settings.global_batch, seed=settings.seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.order.num_steps(self.settings.epochs, self.settings.max_steps)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    steps: int
    finished: bool
    seconds: float
    """Of this start of the run, not counting what went before a resume."""
    samples_per_s: float
    tokens_per_s: float
    last_loss: float | None


def fit(training: Training, first_step: int = 0) -> Outcome:
    """Train from a step to the end, or until a stop is asked for."""
    run, num_steps = training, training.num_steps
    run.recorder.start(first_step, num_steps)
    memory, speed = MemoryMeter(run.processes.device), SpeedMeter()
    loss, step = None, first_step
    run.parts.model.train()
    for step in range(first_step, num_steps):
        with _kept_when_memory_runs_out(run, step):
            loss, record = _one_step(run, step, num_steps, speed)
        record |= {"memory_bytes": memory.now_bytes(), "peak_memory_bytes": memory.peak_bytes()}
        run.recorder.step(record)
        stopping = _all_stop(run)
        if stopping or (step + 1) % run.settings.save_every == 0 or step + 1 == num_steps:
            with _kept_when_memory_runs_out(run, step + 1):
                save(run, step + 1)
        if stopping:
            break
    steps = step + 1 if num_steps > first_step else first_step
    windows_rate, tokens_rate = speed.rates()
    return Outcome(
        steps=steps,
        finished=steps >= num_steps,
        seconds=speed.elapsed_s(),
        samples_per_s=windows_rate,
        tokens_per_s=tokens_rate,
        last_loss=loss,
    )


@contextlib.contextmanager
def _kept_when_memory_runs_out(run: Training, step: int) -> Iterator[None]:
    """Turn a lack of memory into `OutOfMemory`, with `step` completed steps saved if they can be."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = OutOfMemory("host" if isinstance(error, OutOfMemory) else "device", str(error))
        error.__traceback__ = None  # it holds the activations of the step
        error.__context__ = None
    else:
        return
    if _save_alone(run, step):
        found.step = step
    raise found


def _save_alone(run: Training, step: int) -> bool:
    """Save what is whole, if it is, without a word to the other processes: they may wait for this one for ever.

    Returns: whether the state after `step` steps is saved; else only an older checkpoint is left.
    """
    update, alone = run.parts.update, run.processes.world_size == 1
    if update.changing or not (alone or update.holds_all):
        return False
    update.forget_gradients()
    if run.processes.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        checkpoint.save(run.settings.out / "checkpoints", step, update.state(), run.settings.model_dump(mode="json"))
    except (OSError, RuntimeError, MemoryError, BigqaError) as problem:
        run.recorder.say(f"step {step} could not be saved ({problem}); going back to the last checkpoint")
        return False
    return True


def save(run: Training, step: int) -> None:
    """Write a checkpoint from the main process, and drop old ones; every process must call."""
    state = run.parts.update.state()
    if run.processes.is_main:
        folder = run.settings.out / "checkpoints"
        checkpoint.save(folder, step, state, run.settings.model_dump(mode="json"))
        checkpoint.keep_last(folder, run.settings.keep)
    run.processes.wait()


def _one_step(run: Training, step: int, num_steps: int, speed: SpeedMeter) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    positions = run.order.batch(step)
    warmup_steps = round(run.settings.warmup * num_steps)
    # A step that overflowed in fp16 changed nothing, and does not advance the schedule.
    lr = run.settings.lr * linear_rate(step - run.parts.update.skipped, num_steps, warmup_steps)
    run.parts.update.set_rate(lr)
    run.parts.update.begin(step, run.settings.seed)
    torch.manual_seed(mix_seed(run.settings.seed, step, run.processes.rank))
    share, norm = train_step(run.parts, _batches(run, positions), len(positions))
    loss = float(run.processes.sum(share))
    tokens = sum(run.lengths[position] for position in positions)
    speed.add(len(positions), tokens)
    seconds = time.perf_counter() - started
    return loss, {
        "step": step + 1,
        "epoch": (step + 1) / run.order.steps_per_epoch,
        "loss": loss,
        "lr": lr,
        "grad_norm": float(norm),
        "windows": len(positions),
        "tokens": tokens,
        "seconds": seconds,
        "samples_per_s": len(positions) / seconds,
        "tokens_per_s": tokens / seconds,
    }


def _batches(run: Training, positions: list[int]) -> list[Batch]:
    lengths = [run.lengths[position] for position in positions]
    mine = share_of_process(lengths, run.processes.rank, run.processes.world_size)
    if not mine:
        return [_weightless(run, positions[0])]
    chosen = [positions[index] for index in mine]
    return [_collate(run, part) for part in split(chosen, run.micro_batch)]


def _collate(run: Training, positions: list[int]) -> Batch:
    columns = run.windows[positions]
    rows = [{name: values[index] for name, values in columns.items()} for index in range(len(positions))]
    batch = run.parts.task.collate(rows)
    return {name: tensor.to(run.processes.device) for name, tensor in batch.items()}


def _weightless(run: Training, position: int) -> Batch:
    # Every process must run a backward pass, or the others wait for its gradients for ever.
    batch = _collate(run, [position])
    return batch | {"weight": torch.zeros((), device=run.processes.device)}


def _all_stop(run: Training) -> bool:
    asked = torch.tensor(float(run.stop.asked()), device=run.processes.device)
    return bool(run.processes.sum(asked) > 0)
