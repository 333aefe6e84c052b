"""What a run hands over at its end. In: a trained model, how training went. Out: `RUN/model`, report.json, scores.

No rung of the ladder helps here: a run that lacks memory to score its model has trained it, and says where it is.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from bigqa.console import progress
from bigqa.engine import adapters
from bigqa.engine.build import choose_precision, strategy_of
from bigqa.engine.loop.fit import Outcome, Training
from bigqa.engine.loop.meter import MemoryMeter
from bigqa.engine.optim.precision import DTYPES
from bigqa.engine.recovery import is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, write_json
from bigqa.plan.ladder import switches_of
from bigqa.run.prediction import Predictions, Trained, predict, ready
from bigqa.settings import Settings
from bigqa.tasks import nulls
from bigqa.tasks.scoring import METRICS, as_record, evaluate_files, key_of, measure_of, metric_of
from bigqa.tasks.squad import has_impossible
from bigqa.tasks.windows import Lengths
from bigqa.versions import versions

Result = TypeVar("Result")


def tell_stopped(training: Training, outcome: Outcome) -> None:
    """Say how a run that was asked to stop is gone on with."""
    training.stop.clear()
    training.recorder.say(f"stopped and saved at step {outcome.steps}/{training.num_steps}; to go on:")
    training.recorder.say(f"  bigqa train --resume {training.settings.out}")


def hand_over(training: Training, outcome: Outcome, model: Any, tokenizer: Any, lengths: Lengths) -> None:
    """Merge, save, report, and score on the dev file if there is one."""
    settings, recorder = training.settings, training.recorder
    adapters.merge(model)
    trained = Trained(lengths=lengths, null_threshold=nulls.DEFAULT if _learned_nulls(settings) else None)
    _save_model(model, training, tokenizer, trained)
    report = _report(training, outcome)
    report["switches"] = switches_of(settings.out)
    if settings.dev_file is not None:
        write_json(settings.out / "report.json", report)  # hours of training are not lost with a score
        with _no_room_to_score(settings):
            report["scores"] = _score(training, model, tokenizer, trained)
    write_json(settings.out / "report.json", report)
    recorder.say(f"model: {settings.out / 'model'} · report: {settings.out / 'report.json'}")
    if "scores" in report:
        scores = report["scores"]
        overlap = METRICS[scores["metric"]].overlap
        figures = f"EM {scores['exact_match']:.2f} · {overlap} {scores[key_of(overlap)]:.2f}"
        recorder.say(f"{figures} on {scores['total']} questions")


def _learned_nulls(settings: Settings) -> bool:
    """Say whether a run has met questions without an answer, or is to be scored on such."""
    return any(has_impossible(file) for file in (settings.train_file, settings.dev_file) if file is not None)


def _save_model(model: Any, training: Training, tokenizer: Any, trained: Trained) -> None:
    """Write `RUN/model`: fp32 weights, config, tokenizer, and how it was trained."""
    with atomic_folder(training.settings.out / "model", replace=True) as temporary:
        model.config.dtype = torch.float32
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        trained.write(temporary)


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
            f"out of memory ({where}) while scoring; the model is trained, and in {model}: with more memory, "
            f"`bigqa predict {model} {settings.dev_file} answers.json` and `bigqa evaluate` score it"
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


def _score(training: Training, model: Any, tokenizer: Any, trained: Trained) -> dict[str, Any]:
    """Return the scores on the dev file; on it the threshold is chosen from which on there is no answer, and kept."""
    settings, device = training.settings, training.processes.device
    dev_file = settings.dev_file
    assert dev_file is not None
    precision = "fp32" if strategy_of(settings, device).precision == "fp32" else "auto"
    with progress("Predicting") as on_progress:

        def predicted_on(device: torch.device) -> Predictions:
            ready(model, device, precision)
            return predict(
                model, tokenizer, dev_file, trained.lengths, device, on_progress, packs=training.packs,
                tell=training.recorder.say, null_threshold=trained.null_threshold,
            )  # fmt: skip

        found = on_the_host_if_it_must(predicted_on, model, device, precision)
    metric, answers = metric_of(dev_file), found.answers
    if trained.null_threshold is not None:
        threshold = nulls.best_threshold(found.nbest, measure_of(dev_file, metric))
        trained.model_copy(update={"null_threshold": threshold}).write(settings.out / "model")
        answers = {name: nulls.answer_of(candidates, threshold) for name, candidates in found.nbest.items()}
    write_json(settings.out / "predictions.json", answers)
    return as_record(evaluate_files(dev_file, settings.out / "predictions.json", metric), metric)
