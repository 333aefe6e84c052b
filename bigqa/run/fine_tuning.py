"""One fine-tuning run, from settings to report. In: settings. Out: a run folder that holds the final model."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import psutil
import torch

from bigqa.console import INTERRUPTED, console, progress
from bigqa.engine import adapters
from bigqa.engine.build import build, possible_strategy, share_of_batch, strategy_of
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.fit import Outcome, Training, fit
from bigqa.engine.loop.meter import MemoryMeter
from bigqa.engine.loop.recorder import Recorder, Silent
from bigqa.engine.loop.stop import ENDED_FILE, StopRequest, tell_end
from bigqa.engine.processes import Processes
from bigqa.engine.recovery import HostWatch, OutOfMemory, is_out_of_memory
from bigqa.errors import BigqaError
from bigqa.files import atomic_folder, cache_folder, write_json
from bigqa.machine.hardware import detect, free_space, host_memory
from bigqa.machine.heap import keep_if_plenty
from bigqa.models.sources import check_lengths, load_config, load_model, load_tokenizer, resolve
from bigqa.plan.candidates import Candidate, Workload, choose, machine_for
from bigqa.plan.ladder import AGAIN, ladder_of, plain_ladder, step_down, switches_of
from bigqa.plan.planner import Planner, estimator_for
from bigqa.run.folder import begin, record
from bigqa.run.prediction import LENGTHS_FILE, predict, qa_task, ready
from bigqa.settings import Rung, Settings
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.qa import COLUMNS
from bigqa.tasks.scoring import evaluate_files, metric_of, read_golds
from bigqa.tasks.squad import iter_questions
from bigqa.tasks.windows import Lengths
from bigqa.versions import versions

DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "embedding_dropout")
DROPOUTS_MORE = ("mlp_dropout", "classifier_dropout", "pooler_dropout", "residual_dropout")


def fine_tune(settings: Settings, *, resume: bool) -> None:
    """Run, or go on with, one fine-tuning run on this process and its peers."""
    processes = Processes(settings.device)
    settings = _with_ladder(_planned(settings, processes), processes)
    possible_strategy(settings, processes)  # what cannot be had is refused before anything is made
    _check_dev_file(settings)
    # A run that has stepped down goes on wherever the ladder leads: memory itself will tell.
    _check_fits(settings, processes, refuse=settings.check and not (resume and switches_of(settings.out)))
    model, tokenizer = _model_and_tokenizer(settings)
    lengths = lengths_of_settings(settings)
    windows = _windows(settings, tokenizer, lengths, processes)
    micro_batch = share_of_batch(settings, processes.world_size)
    recorder = _start_recording(settings, processes, micro_batch, resume=resume)
    with contextlib.closing(recorder), _stepping_down(settings, recorder):
        parts = build(model, qa_task(tokenizer, model), settings, processes)
        stop = StopRequest(settings.out)
        sizes = window_lengths(windows)
        inputs = windows.select_columns(list(COLUMNS)).with_format("numpy")
        training = Training(
            settings=settings,
            micro_batch=micro_batch,
            processes=processes,
            parts=parts,
            windows=inputs,
            lengths=sizes,
            recorder=recorder,
            stop=stop,
            packs=parts.packs,
        )
        if not parts.packs:
            recorder.say("this model does not keep packed windows apart: they are padded, sorted by length")
        first_step = _restore(training, recorder) if resume else 0
        with HostWatch(host_memory):
            outcome = fit(training, first_step)
        trained = parts.update.finish() if outcome.finished else None
        processes.close()
        if processes.is_main:
            _finish(training, outcome, trained, tokenizer, lengths)
    if not outcome.finished:
        raise SystemExit(INTERRUPTED)


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
        error = problem if isinstance(problem, OutOfMemory) else OutOfMemory("device", str(problem))
        if not tell_end(settings.out, AGAIN):  # another process of the run has stepped down
            raise SystemExit(AGAIN) from None
        rung = step_down(settings.out, error.where, error.reason, error.step)
        kept = "from the last checkpoint" if error.step is None else f"from step {error.step}"
        recorder.say(f"out of memory: {error}")
        recorder.say(f"going on {kept} with {rung.name}: micro-batches of {rung.micro_batch}")
        raise SystemExit(AGAIN) from None


def lengths_of_settings(settings: Settings) -> Lengths:
    """Return the lengths of windows that a run's settings ask for."""
    return Lengths.model_validate({name: getattr(settings, name) for name in Lengths.model_fields})


def _planned(settings: Settings, processes: Processes) -> Settings:
    """Choose strategy and micro-batch where neither a plan nor the command line did, as `bigqa probe` would."""
    if settings.strategy is not None or settings.micro_batch is not None or settings.precision != "auto":
        return settings
    found = processes.from_main(_choice(settings, processes) if processes.is_main else None)
    if isinstance(found, str):
        raise BigqaError(found)
    assert isinstance(found, tuple)
    found, ladder = found
    if processes.is_main:
        console.print(f"plan: {found.name} in {found.strategy.precision}, micro-batches of {found.micro_batch}")
    update = {"strategy": found.strategy, "micro_batch": found.micro_batch, "seq_len": found.seq_len}
    return settings.model_copy(update=update | {"ladder": ladder})


def _with_ladder(settings: Settings, processes: Processes) -> Settings:
    if settings.ladder is not None:
        return settings
    ladder = plain_ladder(strategy_of(settings, processes.device), share_of_batch(settings, processes.world_size))
    return settings.model_copy(update={"ladder": ladder})


def _choice(settings: Settings, processes: Processes) -> tuple[Candidate, tuple[Rung, ...]] | str:
    candidates = _planner(settings, processes).candidates()
    chosen = choose([candidate for candidate in candidates if candidate.strategy.device == processes.device.type])
    if chosen is None:
        other = "; the CPU would do: --device cpu" if choose(candidates) else ""
        return f"no strategy fits {settings.model} here: `bigqa probe {settings.model} --all` shows why{other}"
    return chosen, ladder_of(candidates, chosen)


def _planner(settings: Settings, processes: Processes) -> Planner:
    config = load_config(resolve(settings.model, tokenizer=settings.tokenizer))
    check_lengths(config, settings.seq_len)
    hardware = detect()
    gpu = hardware.gpus[processes.device.index or 0] if processes.device.type == "cuda" and hardware.gpus else None
    machine = machine_for(
        hardware,
        gpu,
        num_gpus=processes.on_this_machine,
        num_nodes=processes.world_size // processes.on_this_machine,
        nvme=settings.nvme is not None,
        disk_free_bytes=free_space(settings.nvme) if settings.nvme else None,
        # What this process holds already is part of what is predicted.
        host_bytes=hardware.host_free_bytes + psutil.Process().memory_info().rss,
    )
    workload = Workload(seq_len=settings.seq_len, global_batch=settings.global_batch)
    return Planner(estimator_for(config), workload, machine)


def _check_dev_file(settings: Settings) -> None:
    """Read what the run will be scored on: a mistake in it would show after hours. Raises: BigqaError."""
    if settings.dev_file is not None:
        read_golds(settings.dev_file, metric_of(settings.dev_file))
        for _ in iter_questions(settings.dev_file, need_answers=False):
            pass


def _check_fits(settings: Settings, processes: Processes, *, refuse: bool) -> None:
    """Refuse a strategy that is predicted not to fit, before anything is made. Raises: BigqaError."""
    problem = shortfall(settings, processes)
    if problem and refuse:
        raise BigqaError(
            f"{problem}; choose another strategy (`bigqa probe {settings.model}` shows what fits), or --no-check to "
            "try, stepping down when memory runs out"
        )


def shortfall(settings: Settings, processes: Processes) -> str | None:
    """Say what a run lacks on this machine, or nothing; on a CPU, keep freed memory where there is plenty."""
    strategy = strategy_of(settings, processes.device)
    problem = need_bytes = None
    if processes.is_main:
        planner = _planner(settings, processes)
        micro_batch = share_of_batch(settings, processes.world_size)
        memory = planner.need(strategy, micro_batch, settings.seq_len, processes.world_size)
        problem, need_bytes = planner.shortfall(strategy, memory), memory.host_bytes
    problem, need_bytes = processes.from_main((problem, need_bytes))  # type: ignore[misc]
    if processes.device.type == "cpu" and need_bytes is not None:
        keep_if_plenty(need_bytes * processes.world_size, host_memory()[1])
    return problem


def _model_and_tokenizer(settings: Settings) -> tuple[Any, Any]:
    source = resolve(settings.model, tokenizer=settings.tokenizer)
    tokenizer = load_tokenizer(source)
    config = load_config(source)
    check_lengths(config, settings.seq_len)
    if settings.dropout is not None:
        for name in (*DROPOUTS, *DROPOUTS_MORE):
            if getattr(config, name, None) is not None:
                setattr(config, name, settings.dropout)
    return load_model(source, config, vocabulary_size=len(tokenizer), seed=settings.seed), tokenizer


def _windows(settings: Settings, tokenizer: Any, lengths: Lengths, processes: Processes) -> Any:
    def make() -> Any:
        with progress("Reading windows", shown=processes.is_main) as on_progress:
            return build_features(
                settings.train_file,
                tokenizer,
                lengths,
                training=True,
                cache_dir=cache_folder() / "features",
                limit=settings.limit,
                on_progress=on_progress,
            )

    with processes.accelerator.main_process_first():
        windows = make()
    if len(windows) == 0:
        raise BigqaError(f"{settings.train_file} has no questions to train on")
    return windows


def _start_recording(settings: Settings, processes: Processes, micro_batch: int, *, resume: bool) -> Silent:
    if not processes.is_main:
        processes.wait()
        return Silent()
    if resume:
        record(settings, _plan(settings, processes, micro_batch))
    else:
        begin(settings, _plan(settings, processes, micro_batch))
    (settings.out / ENDED_FILE).unlink(missing_ok=True)
    processes.wait()
    return Recorder(settings.out, console)


def _plan(settings: Settings, processes: Processes, micro_batch: int) -> dict[str, Any]:
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


def _restore(training: Training, recorder: Silent) -> int:
    folder = training.settings.out / "checkpoints"
    found = checkpoint.load_newest(folder, recorder.say)
    if found is None:
        recorder.say("no whole checkpoint yet: starting from the first step")
        return 0
    checkpoint.restore(found, training.parts.update)
    recorder.say(f"going on from step {found.step}")
    return found.step


def _finish(training: Training, outcome: Outcome, model: Any, tokenizer: Any, lengths: Lengths) -> None:
    settings, recorder = training.settings, training.recorder
    if model is None:
        training.stop.clear()
        recorder.say(f"stopped and saved at step {outcome.steps}/{training.num_steps}; to go on:")
        recorder.say(f"  bigqa train --resume {settings.out}")
        return
    adapters.merge(model)
    _save_model(model, training, tokenizer, lengths)
    report = _report(training, outcome)
    report["switches"] = switches_of(settings.out)
    if settings.dev_file is not None:
        write_json(settings.out / "report.json", report)  # hours of training are not lost with a score
        report["scores"] = _score(model, tokenizer, settings, lengths, training.processes.device)
    write_json(settings.out / "report.json", report)
    recorder.say(f"model: {settings.out / 'model'} · report: {settings.out / 'report.json'}")
    if "scores" in report:
        scores = report["scores"]
        recorder.say(f"EM {scores['exact_match']:.2f} · F1 {scores['f1']:.2f} on {scores['total']} questions")


def _save_model(model: Any, training: Training, tokenizer: Any, lengths: Lengths) -> None:
    """Write `RUN/model`: fp32 weights, config, tokenizer, and the lengths it was trained at."""
    with atomic_folder(training.settings.out / "model", replace=True) as temporary:
        model.config.dtype = torch.float32
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_json(temporary / LENGTHS_FILE, {"schema": 1, "lengths": lengths.model_dump(mode="json")})


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


def _score(model: Any, tokenizer: Any, settings: Settings, lengths: Lengths, device: torch.device) -> dict[str, Any]:
    assert settings.dev_file is not None
    precision = "fp32" if strategy_of(settings, device).precision == "fp32" else "auto"
    with progress("Predicting") as on_progress:
        found = predict(ready(model, device, precision), tokenizer, settings.dev_file, lengths, device, on_progress)
    write_json(settings.out / "predictions.json", found.answers)
    score = evaluate_files(settings.dev_file, settings.out / "predictions.json", metric_of(settings.dev_file))
    return dataclasses.asdict(score)
