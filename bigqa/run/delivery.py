"""What a run hands over at its end. In: a trained model, how training went. Out: `RUN/model`, report.json, scores.

No rung of the ladder helps here: a run that lacks memory to score its model has trained it, and says where it is.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from bigqa import interrupts
from bigqa.console import progress
from bigqa.engine import adapters
from bigqa.engine.build import choose_precision, strategy_of
from bigqa.engine.loop.deadline import TIME_IS_UP
from bigqa.engine.loop.evaluation import BEST
from bigqa.engine.loop.fit import Outcome
from bigqa.engine.loop.meter import MemoryMeter
from bigqa.engine.loop.training import Training
from bigqa.engine.optim.precision import DTYPES
from bigqa.engine.recovery import is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, atomic_path, write_json
from bigqa.language import tr
from bigqa.pages.run_page import write_page
from bigqa.plan.ladder import switches_of
from bigqa.run.card import write_card
from bigqa.run.job import Job
from bigqa.run.prediction import Answerer, ready, write_options
from bigqa.run.pushing import push
from bigqa.settings import Settings
from bigqa.tasks.base import Scored
from bigqa.versions import versions

ADAPTER = "adapter"
"""Of a run's folder: LoRA's matrices by themselves, as PEFT loads them beside the model that they were trained on."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")
SHARD = "1GB"
"""Of the files that hold a model's weights."""
Result = TypeVar("Result")


def tell_stopped(training: Training, outcome: Outcome) -> None:
    """Say how a run that was asked to stop is gone on with."""
    training.stop.clear()
    why = tr("the time is up: ") if training.stop.exit_code == TIME_IS_UP else ""
    training.recorder.say(
        tr(
            "{why}stopped and saved at step {steps}/{num_steps}; to go on:",
            why=why,
            steps=outcome.steps,
            num_steps=training.num_steps,
        )
    )
    training.recorder.say(tr("  bigqa train --resume {out}", out=training.settings.out))


def hand_over(training: Training, outcome: Outcome, job: Job, model: Any, tokenizer: Any) -> None:
    """Merge, save, report, and score on the dev file if there is one."""
    settings, recorder = training.settings, training.recorder
    if strategy_of(settings, training.processes.device).adapters != "none":
        with atomic_folder(settings.out / ADAPTER, replace=True) as temporary, _told_by_the_disk():
            adapters.save(model, temporary, settings.model)
    adapters.merge(model)
    job = settled(job, settings)
    _save_model(model, training, job, tokenizer)
    interrupts.say_when_left(
        tr("interrupted; the model is written to {out}, and not scored", out=settings.out / "model")
    )
    report = _report(training, outcome)
    report["switches"] = switches_of(settings.out)
    if training.evaluation is not None:
        report |= {"evaluations": training.evaluation.history, "best": training.evaluation.best}
    if settings.dev_file is not None:
        write_json(settings.out / "report.json", report)  # hours of training are not lost with a score
        with _no_room_to_score(settings):
            report["scores"] = _score(training, job, model, tokenizer)
    write_json(settings.out / "report.json", report)
    write_card(settings.out / "model", job.kind, settings, report)
    write_page(settings.out)
    shutil.rmtree(settings.out / BEST, ignore_errors=True)  # at last: until all is written, a run may have to go back
    recorder.say(
        tr("model: {model} · report: {report}", model=settings.out / "model", report=settings.out / "report.html")
    )
    if "scores" in report:
        recorder.scored(outcome.steps, report["scores"], "final")
        recorder.say(job.kind.headline(report["scores"]))
    if settings.push_to_hub is not None:
        recorder.say(tr("on the hub: {address}", address=push(settings.out / "model", settings.push_to_hub)))


def settled(job: Job, settings: Settings) -> Job:
    """Return a job whose options no longer hang on the run's data."""
    files = [file for file in (settings.train_file, settings.dev_file) if file is not None]
    return dataclasses.replace(job, options=job.kind.settled(job.options, files))


def _save_model(model: Any, training: Training, job: Job, tokenizer: Any) -> None:
    """Write `RUN/model`."""
    # transformers has a file's weights in memory as it writes them: those of a disk need not fit there.
    on_disk = strategy_of(training.settings, training.processes.device).weights_on_disk
    with atomic_folder(training.settings.out / "model", replace=True) as temporary, _told_by_the_disk():
        write_model(temporary, model, tokenizer, job, in_shards=on_disk)


def write_model(folder: Path, model: Any, tokenizer: Any, job: Job, *, in_shards: bool = False) -> None:
    """Write a model as it is handed over: fp32 weights, config, tokenizer, and the task with its options."""
    model.config.dtype = torch.float32
    if hasattr(model.config, "use_cache"):  # which training has no use for, and answering has
        model.config.use_cache = job.config().use_cache
    model.save_pretrained(folder, **({"max_shard_size": SHARD} if in_shards else {}))
    tokenizer.save_pretrained(folder)
    write_options(folder, job.kind, job.options)


@contextlib.contextmanager
def _told_by_the_disk() -> Iterator[None]:
    """Raise an error of the disk as what it is: libraries in Rust (safetensors, tokenizers) have it in words alone."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        found = OS_ERROR.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


@contextlib.contextmanager
def _no_room_to_score(settings: Settings) -> Iterator[None]:
    """Say what is there where memory does not reach for the scores. Raises: BigqaError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        model, where = settings.out / "model", which_memory(error)
        raise BigqaError(
            tr(
                "out of memory ({where}) while scoring; the model is trained, and in {model}: with more "
                "memory, `bigqa predict {model} {dev_file} answers.json` and `bigqa evaluate` score it",
                where=where,
                model=model,
                dev_file=settings.dev_file,
            )
        ) from error


def on_the_host_if_it_must(
    work: Callable[[torch.device], Result], model: Any, device: torch.device, precision: str
) -> Result:
    """Work with a model on a device, within what training took of it; where that does not do, in all that is free.

    Whole and in low precision the model may be larger than all that training held: QLoRA's was in 4 bits. Where the
    device has no room for it, the work is done on the host.
    """
    if device.type != "cuda":
        return work(device)
    torch.cuda.empty_cache()
    width = DTYPES[choose_precision(precision, device)].itemsize
    needed = torch.cuda.memory_reserved(device) + width * sum(parameter.numel() for parameter in model.parameters())
    free, total = torch.cuda.mem_get_info(device)
    for limit in (torch.cuda.max_memory_reserved(device), total):
        if needed > min(limit, torch.cuda.memory_reserved(device) + free):
            continue
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total))
        try:
            return work(device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        model.to("cpu")
        torch.cuda.empty_cache()
    model.to("cpu")
    return work(torch.device("cpu"))


def _report(training: Training, outcome: Outcome) -> dict[str, Any]:
    memory = MemoryMeter(training.processes.device)
    return {
        "schema": 1,
        "settings": training.settings.model_dump(mode="json"),
        "windows": len(training.lengths),
        "steps": outcome.steps,
        "seconds": outcome.seconds,
        "samples_per_s": outcome.samples_per_s,
        "tokens_per_s": outcome.tokens_per_s,
        "last_loss": outcome.last_loss,
        "peak_memory_bytes": memory.peak_bytes(),
        "device": str(training.processes.device),
        "num_processes": training.processes.world_size,
        "versions": versions(),
    }


def _score(training: Training, job: Job, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Score on the dev file; write what was predicted, and keep what was chosen by it."""
    settings, device = training.settings, training.processes.device
    dev_file = settings.dev_file
    assert dev_file is not None
    precision = "fp32" if strategy_of(settings, device).precision == "fp32" else "auto"
    with progress(tr("Predicting")) as on_progress:

        def scored_on(device: torch.device) -> Scored:
            ready(model, device, precision)
            say, packs = training.recorder.say, training.packs
            answerer = Answerer(job.kind, job.options, model, tokenizer, device, packs, on_progress, say)
            return answerer.score(dev_file)

        found = on_the_host_if_it_must(scored_on, model, device, precision)
    for name, write in found.files.items():
        with atomic_path(settings.out / name) as temporary:
            write(temporary)
    if found.chosen:
        write_options(settings.out / "model", job.kind, job.options.model_copy(update=dict(found.chosen)))
    return found.scores
