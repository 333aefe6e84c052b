"""One fine-tuning run, from settings to report. In: settings. Out: a run folder that holds the final model.

Decide (`run.planning`), read (`run.inputs`), build and fit (`engine`), hand over (`run.delivery`).
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bigqa import interrupts
from bigqa.console import console, say
from bigqa.engine.build import build, possible_strategy, share_of_batch, strategy_of
from bigqa.engine.deterministic import deterministic
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.beside import WrittenBeside
from bigqa.engine.loop.fit import Outcome, fit
from bigqa.engine.loop.order import DataOrder
from bigqa.engine.loop.recorder import Recorder, Silent
from bigqa.engine.loop.stop import ENDED_FILE, StopRequest, tell_end
from bigqa.engine.loop.training import Training
from bigqa.engine.processes import Processes
from bigqa.engine.recovery import HostWatch, OutOfMemory, is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.language import tr
from bigqa.lock import held
from bigqa.machine.hardware import host_memory
from bigqa.plan.ladder import AGAIN, step_down, switches_of
from bigqa.run.delivery import hand_over, tell_stopped
from bigqa.run.evaluating import back_to_best, check_whole, evaluation_of
from bigqa.run.folder import begin, record
from bigqa.run.inputs import check_dev_file, make_rows, model_and_tokenizer
from bigqa.run.job import Job, job_of
from bigqa.run.origin import check_checkpoint, remark, with_data, with_model
from bigqa.run.planning import check_fits, planned, with_ladder
from bigqa.run.pushing import check_may_push
from bigqa.run.tracking import Tracked, check_tracker
from bigqa.settings import Settings
from bigqa.versions import versions


def fine_tune(settings: Settings, *, resume: bool) -> None:
    """Run, or go on with, one fine-tuning run on this process and its peers.

    Raises: BigqaError where another run has the folder, or where the run cannot be had as it was asked for.
    """
    processes = Processes(settings.device)
    if processes.remark is not None and processes.is_main:
        say(processes.remark)
    with deterministic(settings.deterministic), _alone_in(settings.out, processes):
        _fine_tune(settings, processes, resume=resume)


@contextlib.contextmanager
def _alone_in(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the run folder, from the first process for all of them; or for the launcher that has it."""
    with contextlib.ExitStack() as stack:
        problem = None
        if processes.is_main:
            try:
                stack.enter_context(held(folder, say))
            except BigqaError as error:
                problem = str(error)
        refused = processes.from_main(problem)
        if refused is not None:
            raise BigqaError(str(refused))
        yield


def _fine_tune(settings: Settings, processes: Processes, *, resume: bool) -> None:
    settings = with_ladder(planned(settings, processes), processes)
    strategy = possible_strategy(settings, processes)  # what cannot be had is refused before anything is made
    processes.agree(strategy.precision, tr("the precision that their cards are best at (--precision names one)"))
    check_whole(settings, processes.device)
    check_tracker(settings.tracker)
    if settings.push_to_hub is not None:
        check_may_push(settings.push_to_hub)
    settings = with_data(settings, processes, resume=resume)
    job = job_of(settings)
    check_dev_file(settings, job)
    # A run that has stepped down goes on wherever the ladder leads: memory itself will tell.
    predicted = check_fits(settings, processes, refuse=settings.check and not (resume and switches_of(settings.out)))
    made = model_and_tokenizer(settings, job)
    model, tokenizer = made.loaded.model, made.tokenizer
    settings = with_model(settings, made, processes, resume=resume)
    remarks = [line for line in (made.loaded.says(), *made.doubts, remark(settings)) if line]
    for line in remarks if processes.is_main else ():
        say(line)
    rows = make_rows(settings, job, tokenizer, model.config, processes)
    order = DataOrder(num_windows=len(rows), global_batch=settings.global_batch, seed=settings.seed)
    steps = {"steps": order.num_steps(settings.epochs, settings.max_steps), "steps_per_epoch": order.steps_per_epoch}
    plan = _plan(settings, processes) | steps | {"predicted": predicted}
    recorder = _start_recording(settings, plan, processes, resume=resume)
    with contextlib.closing(recorder):
        for line in remarks:
            recorder.note(line)
        with _stepping_down(settings, recorder):
            training = _training(settings, processes, recorder, job, (model, tokenizer, rows))
            training.evaluation = evaluation_of(training, job, model, tokenizer)
            first_step = _restore(training) if resume else 0
            with HostWatch(host_memory), interrupts.taken_by(training.stop.take):
                outcome = fit(training, first_step)
            _leave_if_asked(training, outcome)
            if outcome.finished:
                back_to_best(training)
            trained = training.parts.update.finish() if outcome.finished else None
        training.parts.let_go()
        processes.close()
        if processes.is_main and trained is not None:
            hand_over(training, outcome, job, trained, tokenizer)
        elif processes.is_main:
            tell_stopped(training, outcome)
    if not outcome.finished:
        raise SystemExit(training.stop.exit_code)


def _leave_if_asked(training: Training, outcome: Outcome) -> None:
    """From here on all steps are saved, or the run is being stopped; a signal may have come when the last was saved."""
    to_go_on = tr("to go on: bigqa train --resume {out}", out=training.settings.out)
    interrupts.say_when_left(
        tr("interrupted; all steps are done and saved, the model is not written yet; {to_go_on}", to_go_on=to_go_on)
    )
    if outcome.finished and training.stop.number is not None and interrupts.listens():
        interrupts.leave(
            tr("interrupted after the last step, which is saved; {to_go_on}", to_go_on=to_go_on),
            training.stop.exit_code,
        )


@contextlib.contextmanager
def _stepping_down(settings: Settings, recorder: Silent) -> Iterator[None]:
    """When memory runs out, write the next rung into the run's config and end with the code that asks to go on.

    In a step it has been told already, with what was saved; while the model is placed or read out, it is told here.
    """
    try:
        yield
    except Exception as problem:
        if not is_out_of_memory(problem):
            raise
        error = problem if isinstance(problem, OutOfMemory) else OutOfMemory(which_memory(problem), str(problem))
        if not tell_end(settings.out, AGAIN):  # another process of the run has stepped down
            raise SystemExit(AGAIN) from None
        rung = step_down(settings.out, error.where, error.reason, error.step)
        kept = tr("from the last checkpoint") if error.step is None else tr("from step {step}", step=error.step)
        recorder.say(tr("out of memory: {error}", error=error))
        recorder.say(
            tr(
                "going on {kept} with {rung}: micro-batches of {micro_batch}",
                kept=kept,
                rung=rung.name,
                micro_batch=rung.micro_batch,
            )
        )
        raise SystemExit(AGAIN) from None


def _training(
    settings: Settings, processes: Processes, recorder: Silent, job: Job, trained: tuple[Any, Any, Any]
) -> Training:
    """Build the step, and put beside it what it is taken on. `trained`: model, tokenizer, rows."""
    model, tokenizer, rows = trained
    parts = build(model, job.task(tokenizer, model), settings, processes)
    processes.agree(parts.packs, tr("whether windows are packed, which hangs on the card"))
    if not parts.packs:
        recorder.say(tr("this model does not keep packed windows apart: they are padded, sorted by length"))
    return Training(
        settings=settings,
        micro_batch=share_of_batch(settings, processes.world_size),
        processes=processes,
        parts=parts,
        windows=rows.only(job.kind.columns),
        lengths=rows.lengths("input_ids"),
        weights=job.kind.weights(rows),
        recorder=recorder,
        stop=StopRequest(settings.out),
        packs=parts.packs,
        plan=_plan(settings, processes),
        beside=WrittenBeside(processes.device) if processes.device.type == "cuda" else None,
    )


def _start_recording(settings: Settings, plan: dict[str, Any], processes: Processes, *, resume: bool) -> Silent:
    if not processes.is_main:
        processes.wait()
        return Silent()
    write = record if resume else begin
    interrupts.say_when_left(
        tr(
            "interrupted before a step of this start: nothing to save; to go on: bigqa train --resume {out}",
            out=settings.out,
        )
    )
    write(settings, plan)
    (settings.out / ENDED_FILE).unlink(missing_ok=True)
    processes.wait()
    recorder = Recorder(settings.out, console)
    return recorder if settings.tracker is None else Tracked(recorder, settings)


def _plan(settings: Settings, processes: Processes) -> dict[str, Any]:
    micro_batch = share_of_batch(settings, processes.world_size)
    share = -(-settings.global_batch // processes.world_size)
    return {
        "schema": 1,
        "device": processes.device.type,
        "strategy": strategy_of(settings, processes.device).model_dump(),
        "num_processes": processes.world_size,
        "global_batch": settings.global_batch,
        "micro_batch": micro_batch,
        "grad_accum": -(-share // micro_batch),
        "versions": versions(),
    }


def _restore(training: Training) -> int:
    """Load the newest whole checkpoint; return the step to go on from."""
    recorder = training.recorder
    folder = training.settings.out / "checkpoints"
    found = checkpoint.load_newest(folder, recorder.say)
    on = tr("the checkpoint in {folder}, which all machines must see", folder=folder)
    training.processes.agree(found and found.step, on)
    if found is None:
        recorder.say(tr("no whole checkpoint yet: starting from the first step"))
        return 0
    check_checkpoint(found.settings, training.settings, f"{folder}/step-{found.step:08d}")
    checkpoint.restore(found, training.parts.update)
    recorder.say(tr("going on from step {step}", step=found.step))
    return found.step
