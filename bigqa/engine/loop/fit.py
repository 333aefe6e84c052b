"""The training loop. In: the parts of a step, windows, and the run's settings. Out: a trained model, or a checkpoint.

Each step is a function of (settings, step): its windows, its learning rate and its random numbers follow from them.
"""

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigqa.engine import pinned
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.meter import SpeedMeter
from bigqa.engine.loop.order import mix_seed
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.loop.saving import check_room, finish_saving, look, save, save_alone, save_late, steps_between
from bigqa.engine.loop.step import train_step
from bigqa.engine.loop.training import Training
from bigqa.engine.optim.optimizers import rate_at
from bigqa.engine.recovery import OutOfMemory, is_out_of_memory, which_memory
from bigqa.language import tr
from bigqa.machine.heap import collect_as_ever
from bigqa.tasks.base import Batch


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
    if run.saves:
        clock.expect_to_save(check_room(run))
    with contextlib.closing(run.feed()) as feed, contextlib.closing(reading) as reader, clock.watched(late):
        ended = _goes_no_further(run, first_step, reader)
        for step in range(first_step, first_step if ended else num_steps):
            with clock.timed("step"), _kept_when_memory_runs_out(run, step, reader):
                reader.launched(*_one_step(run, feed.take(step), step, num_steps))
            # Several processes stop after the same step: the one whose numbers said so.
            stopping = reader.stop_asked if run.processes.world_size > 1 else _stop_asked(run, step + 1)
            is_last = stopping or step + 1 == num_steps
            due = is_last or (step + 1) % steps_between(run) == 0
            if run.saves and due:
                reader.read()
                with _kept_when_memory_runs_out(run, step + 1, reader), run.parts.update.turn:
                    run.stop.obeyed = stopping
                    save(run, step + 1, must=is_last)
                reader.resume()
            look(run)
            steps = step + 1
            if step == first_step and (problem := pinned.refused()):  # a step has asked for all that it wants
                run.recorder.say(problem)
            ended = not stopping and _evaluated(run, steps, reader)
            if stopping or ended:
                break
    run.stop.late = None
    finish_saving(run)
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
    if save_alone(run, step):
        found.step = step
    raise found


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
