"""Run folders. In: options. Out: the settings of a new run, or of one that goes on; and what is in a folder.

RUN/config.json, plan.json, versions.json, metrics.jsonl, log.txt, tensorboard/, checkpoints/, model/, report.json
"""

import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json, write_error, write_json
from bigqa.language import tr
from bigqa.lock import FILES, check_free
from bigqa.models.sources import resolve
from bigqa.settings import Settings, first_problem, make_settings, read_settings
from bigqa.strategy import STRATEGIES
from bigqa.tasks.base import check_metric, refuse_unknown
from bigqa.tasks.documents import check_there
from bigqa.tasks.registry import kind_of
from bigqa.versions import versions

CHANGEABLE = {
    "strategy",
    "plan",
    "precision",
    "micro_batch",
    "device",
    "save_every",
    "keep",
    "nvme",
    "check",
    "deterministic",
    "dev_file",
    "push_to_hub",
    "tracker",
}
"""What a resumed run may change: how it is trained, and what it is scored on. The data, their order and the schedule
stay."""


MOVABLE = {"model", "tokenizer", "train_file"}
"""What a resumed run may find in another place: it must be the same, byte for byte or weight for weight."""


def settings_from(options: dict[str, Any], resume: Path | None) -> Settings:
    """Return a run's settings: options over the model's published recipe, or the resumed run's own."""
    if resume is not None:
        return _resumed(options, resume)
    options = _planned(options)
    for name in ("model", "train_file", "out"):
        if options.get(name) is None:
            raise UsageError(
                tr("--{name} is missing (or --resume RUN to go on with a run)", name=name.replace("_", "-"))
            )
    for name in ("model", "tokenizer"):
        if not isinstance(options.get(name), str | None):  # of a plan: a command line has words alone
            raise BigqaError(tr("--{name}: {options} is not text", name=name, options=options[name]))
    source = resolve(options["model"], tokenizer=options.get("tokenizer"))
    recipe = source.recipe.model_dump(exclude_none=True) if source.recipe else {}
    known = {name: value for name, value in recipe.items() if name in Settings.model_fields}
    settings = make_settings(**_sorted_out(known | options))
    check_new(settings.out)
    for file in filter(None, (settings.train_file, settings.dev_file)):
        check_there(file)  # what is in it is read later; a slip of the pen is told before torch is imported
    check_options(settings)
    return settings


def _sorted_out(options: dict[str, Any]) -> dict[str, Any]:
    """Put the options that a task alone has apart from those of every run."""
    of_task = {name: value for name, value in options.items() if name not in Settings.model_fields}
    rest = {name: value for name, value in options.items() if name not in of_task}
    kept = dict(rest.pop("task_options", {})) | of_task
    return rest | ({"task_options": kept} if kept else {})


def check_options(settings: Settings) -> None:
    """Refuse options that a run's task does not have, or that do not go together. Raises: UsageError."""
    kind = kind_of(settings.task)
    refuse_unknown(list(settings.task_options), kind)
    check_metric(settings.metric, kind)
    try:
        kind.check(kind.options(settings.model_dump() | settings.task_options))
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None


def _planned(options: dict[str, Any]) -> dict[str, Any]:
    """Put the axes in place of a plan's file, or of a strategy's name."""
    rest = {name: value for name, value in options.items() if name not in ("plan", "strategy")}
    if "plan" in options and "strategy" in options:
        raise UsageError(tr("--plan and --strategy exclude each other: a plan holds its strategy"))
    if "plan" in options:
        return read_plan(options["plan"]) | rest
    if "strategy" in options:
        return strategy_options(options["strategy"]) | rest
    return rest


def read_plan(path: Path) -> dict[str, Any]:
    """Return the settings that a plan of `bigqa probe` stands for."""
    plan = read_json(path, tr("the plan"))
    if not isinstance(plan, dict) or not isinstance(plan.get("settings"), dict):
        raise BigqaError(tr("{path} is not a plan of `bigqa probe --out`: it has no settings", path=path))
    predicted = plan.get("predicted")
    speed = predicted.get("samples_per_s") if isinstance(predicted, dict) else None
    return dict(plan["settings"]) | ({"predicted_samples_per_s": speed} if isinstance(speed, int | float) else {})


def strategy_options(name: str) -> dict[str, Any]:
    """Return the settings that a named strategy stands for."""
    if name not in STRATEGIES:
        raise UsageError(
            tr("no strategy {name}; choose one of {strategies}", name=name, strategies=", ".join(STRATEGIES))
        )
    strategy = STRATEGIES[name]
    fixed = {"micro_batch": strategy.micro_batch, "seq_len": strategy.seq_len}
    found: dict[str, Any] = {key: value for key, value in fixed.items() if value is not None}
    return found | {"strategy": strategy, "device": "cpu" if strategy.device == "cpu" else "auto"}


def _resumed(options: dict[str, Any], resume: Path) -> Settings:
    fixed = sorted(set(options) - CHANGEABLE - MOVABLE)
    if fixed:
        name = fixed[0].replace("_", "-")
        raise UsageError(
            tr(
                "--{name} cannot be changed on --resume: {resume} goes on with the data it was begun with",
                name=name,
                resume=resume,
            )
        )
    if not (resume / "config.json").is_file():
        raise BigqaError(tr("{resume} is not a bigqa run folder: it has no config.json", resume=resume))
    check_free(resume)
    begun = read_settings(resume / "config.json").model_copy(update={"out": resume})
    moved = {name: value for name, value in options.items() if name in MOVABLE}
    if moved and (begun.origin is None or begun.origin.weights is None):
        name = min(moved).replace("_", "-")
        raise UsageError(
            tr(
                "--{name} cannot be changed on --resume: what {resume} was begun with is not known",
                name=name,
                resume=resume,
            )
        )
    begun = make_settings(**(begun.model_dump() | moved))
    rest = {name: value for name, value in options.items() if name not in MOVABLE}
    begun = _changed(begun, rest) if rest else begun
    if "dev_file" in options and begun.origin is not None:
        begun = begun.model_copy(update={"origin": begun.origin.model_copy(update={"dev_file": None})})
    return begun


def _changed(begun: Settings, options: dict[str, Any]) -> Settings:
    """Return a run's settings under another strategy: what is trained, and on what, stays."""
    asked = _planned(options)
    if asked.get("seq_len", begun.seq_len) != begun.seq_len or asked.get("model", begun.model) != begun.model:
        raise UsageError(tr("the plan is for another model or other windows than {out} was begun with", out=begun.out))
    known = {name: value for name, value in asked.items() if name in CHANGEABLE | {"ladder", "predicted_samples_per_s"}}
    if "strategy" in known:
        known = {"micro_batch": None, "ladder": None, "predicted_samples_per_s": None} | known
    if known.keys() & {"strategy", "micro_batch", "precision", "device"}:
        known |= {"planned_for": None}
    return make_settings(**(begun.model_dump() | known))


def dev_file_of(run: Path) -> Path | None:
    """Return the file that a run is scored on, where it is still there."""
    if not (run / "config.json").is_file():
        raise BigqaError(tr("{run} is not a bigqa run folder: it has no config.json", run=run))
    found = read_settings(run / "config.json").dev_file
    return found if found is not None and found.is_file() else None


def check_new(out: Path) -> None:
    """Refuse a folder that holds anything, or that another run has. Raises: BigqaError."""
    check_free(out)
    if (out / "config.json").is_file():
        raise BigqaError(tr("{out} already holds a run: go on with --resume {out}, or name another --out", out=out))
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - FILES):
        raise BigqaError(tr("{out} already exists and is not empty; name another --out", out=out))


def begin(settings: Settings, plan: dict[str, Any]) -> None:
    """Make the run folder and write down how the run was begun."""
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(settings.out, error) from None
    record(settings, plan)


def record(settings: Settings, plan: dict[str, Any]) -> None:
    """Write down how the run goes on: a resumed one may have another strategy."""
    sweep(settings.out)
    write_json(settings.out / "config.json", settings.model_dump(mode="json"))
    write_json(settings.out / "plan.json", plan)
    write_json(settings.out / "versions.json", versions())


def sweep(folder: Path) -> None:
    """Remove what a run that was killed was writing aside, such as its model; the folder is held."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
