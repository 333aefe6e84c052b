"""The training loop. In: the parts of a step, windows, and the run's settings. Out: a trained model, or a checkpoint.

Each step is a function of (settings, step): its windows, its learning rate and its random numbers follow from them.
"""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigqa import interrupts
from bigqa.engine import pinned
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.disk import WAIT_S, tried, waited_for
from bigqa.engine.loop.evaluation import Evaluation
from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.meter import SpeedMeter
from bigqa.engine.loop.order import DataOrder, mix_seed
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.loop.recorder import Silent
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.loop.stop import StopRequest
from bigqa.engine.optim.optimizers import rate_at
from bigqa.engine.optim.update import State
from bigqa.engine.processes import Processes
from bigqa.engine.recovery import OutOfMemory, is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.machine.heap import collect_as_ever
from bigqa.settings import Settings
from bigqa.tasks.base import Batch

AGAIN_STEPS = 10
"""Until a checkpoint that the disk was away for is tried again."""
STATE_BYTES = 12
"""Of a checkpoint, for each parameter: its weight and two moments in fp32."""


@dataclass(kw_only=True)
class Training:
    """Everything that a run needs."""

    settings: Settings
    micro_batch: int
    processes: Processes
    parts: Parts
    windows: Any
    """Features, as `bigqa.tasks.rows.Rows`: memory-mapped."""
    lengths: Sequence[int]
    """Tokens of each window."""
    packs: bool
    """Whether windows are put end to end; else they are padded to the longest."""
    recorder: Silent
    stop: StopRequest
    weights: Sequence[int] | None = None
    """What each window counts in the mean loss of a step; none: all alike."""
    evaluation: Evaluation | None = None
    """Scores as the run trains; none: at its end alone."""
    owes: bool = False
    """Whether a checkpoint could not be written, since the disk was away."""
    saves: bool = True
    """Whether checkpoints are written: a benchmark's run leaves nothing behind."""

    @property
    def order(self) -> DataOrder:
        """The data order of the run."""
        settings = self.settings
        return DataOrder(num_windows=len(self.lengths), global_batch=settings.global_batch, seed=settings.seed)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.order.num_steps(self.settings.epochs, self.settings.max_steps)

    def feed(self) -> Feed:
        """Return this process's batches."""
        return Feed(
            self.order,
            self.windows,
            self.lengths,
            self.parts.task,
            tokens=self.micro_batch * self.settings.seq_len,
            packs=self.packs,
            device=self.processes.device,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    steps: int
    finished: bool
    """Whether all steps are done, and nobody asked to stop."""
    seconds: float
    """Of this start of the run, not counting what went before a resume."""
    samples_per_s: float
    tokens_per_s: float
    last_loss: float | None


def fit(training: Training, first_step: int = 0) -> Outcome:
    """Train from a step to the end, or until a stop is asked for."""
    collect_as_ever()
    run, num_steps = training, training.num_steps
    run.recorder.start(first_step, num_steps)
    speed, steps = SpeedMeter(), first_step
    ended = False
    run.parts.model.train()
    reading = StepReader(run.processes.device, run.recorder, speed)
    late = run.stop.late = lambda: save_late(run, first_step)
    clock = run.stop.deadline
    clock.expect_to_save(STATE_BYTES * sum(parameter.numel() for parameter in run.parts.model.parameters()))
    with contextlib.closing(run.feed()) as feed, contextlib.closing(reading) as reader, clock.watched(late):
        ended = _goes_no_further(run, first_step, reader)
        for step in range(first_step, first_step if ended else num_steps):
            with clock.timed("step"), _kept_when_memory_runs_out(run, step, reader):
                reader.launched(*_one_step(run, feed.take(step), step, num_steps))
            # Several processes stop after the same step: the one whose numbers said so.
            stopping = reader.stop_asked if run.processes.world_size > 1 else _stop_asked(run, step + 1)
            is_last = stopping or step + 1 == num_steps
            every = min(run.settings.save_every, AGAIN_STEPS) if run.owes else run.settings.save_every
            due = is_last or (step + 1) % every == 0
            if run.saves and due:
                reader.read()
                with _kept_when_memory_runs_out(run, step + 1, reader), run.parts.update.turn, clock.timed("save"):
                    run.stop.obeyed = stopping
                    save(run, step + 1, must=is_last)
                reader.resume()
            steps = step + 1
            if step == first_step and (problem := pinned.refused()):  # a step has asked for all that it wants
                run.recorder.say(problem)
            ended = not stopping and _evaluated(run, steps, reader)
            if stopping or ended:
                break
    run.stop.late = None
    stopped = run.stop.obeyed
    windows_rate, tokens_rate = speed.rates()
    return Outcome(
        steps=steps,
        finished=(steps >= num_steps or ended) and not stopped,
        seconds=speed.elapsed_s(),
        samples_per_s=windows_rate,
        tokens_per_s=tokens_rate,
        last_loss=reader.last_loss,
    )


def _stop_asked(run: Training, done: int) -> bool:
    """Say whether the run should stop after so many steps: asked to, or with no time for what comes before the next."""
    found = run.evaluation
    is_scored = found is not None and found.due(done, run.num_steps)
    # The wish of one of several processes is read when the next step has been launched.
    return run.stop.asked(step=min(2, run.processes.world_size), scores=int(is_scored))


def _goes_no_further(run: Training, first_step: int, reader: StepReader) -> bool:
    """Take up the scores of a run that goes on; return whether its patience was at its end already."""
    if run.evaluation is None:
        return False
    run.evaluation.begin(first_step)
    if first_step == 0:
        return False
    return _evaluated(run, first_step, reader) or run.evaluation.ended


def _evaluated(run: Training, done: int, reader: StepReader) -> bool:
    """Score the model after so many steps where that is due; return whether the run is to end, on every process."""
    found = run.evaluation
    if found is None or not found.due(done, run.num_steps):
        return False
    reader.read()
    is_best = ended = False
    with run.stop.deadline.timed("scores"), _kept_when_memory_runs_out(run, done, reader):
        if run.processes.is_main:
            is_best = found.add(done, found.score())
            run.recorder.scored(done, found.history[-1])
            run.recorder.say(
                tr(
                    "step {done}: {metric} {score:.4g}",
                    done=done,
                    metric=found.metric,
                    score=found.history[-1][found.metric],
                )
                + tr(" (best)") * is_best
            )
        run.parts.model.train()
        is_best, ended = run.processes.from_main((is_best, found.ended))  # type: ignore[misc]
        if is_best and found.keep_best and run.saves:
            with run.parts.update.turn:
                save(run, done, must=True)  # a run never goes on from before its best
            if run.processes.is_main:
                found.keep(checkpoint.path_of(run.settings.out / "checkpoints", done))
        if ended and run.processes.is_main:
            run.recorder.say(
                tr(
                    "ended after step {done}: no better {metric} in {patience} scores",
                    done=done,
                    metric=found.metric,
                    patience=found.patience,
                )
            )
    reader.resume()
    return bool(ended)


@contextlib.contextmanager
def _kept_when_memory_runs_out(run: Training, step: int, reader: StepReader) -> Iterator[None]:
    """Turn a lack of memory into `OutOfMemory`, with `step` completed steps saved if they can be."""
    update, before = run.parts.update, run.parts.update.completed
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        found = OutOfMemory(which_memory(error), str(error))
        # Its frames hold the activations of the step, and whoever waits for this block's end holds the frames.
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error.__context__ = None
    else:
        return
    reader.read()
    step += update.completed - before  # it may have been what came after the update that failed
    if _save_alone(run, step):
        found.step = step
    raise found


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


def _save_alone(run: Training, step: int) -> bool:
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


def save(run: Training, step: int, *, must: bool) -> None:
    """Write a checkpoint from the main process, and drop old ones; every process must call.

    `must`: wait for a disk that is away; else the run goes on, and it is tried again soon.
    """
    state = run.parts.update.state()
    is_saved = run.processes.from_main(_saved(run, step, state, must=must) if run.processes.is_main else None)
    if must and not is_saved:
        raise BigqaError(
            tr("{out} is away, and did not come back: the steps since its last save are lost", out=run.settings.out)
        )
    run.owes = not is_saved


def _saved(run: Training, step: int, state: State, *, must: bool) -> bool:
    folder, say = run.settings.out, run.recorder.say

    def write() -> None:
        _write(run, step, state)
        checkpoint.keep_last(folder / "checkpoints", run.settings.keep)

    if must:
        return waited_for(folder, write, say, WAIT_S)
    is_saved = tried(folder, write)
    if is_saved and run.owes:
        say(tr("{folder} is there again: step {step} is saved", folder=folder, step=step))
    elif not is_saved and not run.owes:
        say(
            tr(
                "{folder} is away: step {step} is not saved; going on, and trying again every {again_steps} steps",
                folder=folder,
                step=step,
                again_steps=AGAIN_STEPS,
            )
        )
    return is_saved


def _write(run: Training, step: int, state: State) -> None:
    checkpoint.save(run.settings.out / "checkpoints", step, state, run.settings.model_dump(mode="json"))


def _one_step(run: Training, batches: list[Batch], step: int, num_steps: int) -> tuple[dict[str, Any], Tensor]:
    """Launch a step. Returns: what is known of it already, and the numbers that `StepReader` takes."""
    positions = run.order.batch(step)
    settings = run.settings
    warmup_steps = round(settings.warmup * num_steps) if settings.warmup_steps is None else settings.warmup_steps
    # A step that overflowed in fp16 changed nothing, and does not advance the schedule.
    lr = settings.lr * rate_at(settings.schedule, step - run.parts.update.skipped, num_steps, warmup_steps)
    run.parts.update.set_rate(lr)
    run.parts.update.begin(step, run.settings.seed)
    torch.manual_seed(mix_seed(run.settings.seed, step, run.processes.rank))
    counted = len(positions) if run.weights is None else sum(run.weights[position] for position in positions)
    share, norm = train_step(run.parts, batches, counted)
    known = {
        "step": step + 1,
        "epoch": (step + 1) / run.order.steps_per_epoch,
        "lr": lr,
        "windows": len(positions),
        "tokens": sum(run.lengths[position] for position in positions),
    }
    asked = torch.full_like(share, float(_stop_asked(run, step + 1)))
    over_all = run.processes.sum(torch.stack([share, asked]))
    return known, torch.cat([over_all, norm.detach().to(over_all).reshape(1)])
