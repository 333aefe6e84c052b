"""A result's model card. In: a run's settings, task, figures. Out: README.md, as the hub reads and shows it.

Data, recipe, plan, scores, and the command that makes it again. Files are named without their folders: a card is read
by others, and says nothing of the machine. It is in the language of who ran the run, since that person hands the model
on; its head, which the hub reads, the names of settings and scores, and the command stay as they are.
"""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigqa.files import write_text
from bigqa.language import Text, put, shown, tr
from bigqa.models.sources import Recipe
from bigqa.settings import Settings
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.base import TaskKind
from bigqa.tasks.registry import kind_of
from bigqa.tasks.windows import Lengths
from bigqa.units import format_bytes

NAME = "README.md"
RECIPE = (
    "epochs", "max_steps", "global_batch", "seq_len", "lr", "schedule", "warmup", "warmup_steps", "weight_decay",
    "layer_decay", "freeze_layers", "dropout", "clip", "adam_eps", "seed", "limit",
)  # fmt: skip
NO_OPTIONS = {"origin", "ladder", "strategy", "task_options", "out", "adam_eps", "clip", "max_answer_length",
              "push_to_hub", "tracker", "predicted_samples_per_s"}  # fmt: skip
"""Settings that no option of `bigqa train` has, or that are about the run's folder alone."""
SWITCHES = {"keep_best": "--keep-best", "check": "--no-check", "deterministic": "--deterministic"}


def write_card(folder: Path, kind: TaskKind[Any], settings: Settings, report: Mapping[str, Any]) -> None:
    """Write the card of a model's folder. `report`: of the run, with its scores where it has some."""
    write_text(folder / NAME, card(kind, settings, report))


def card(kind: TaskKind[Any], settings: Settings, report: Mapping[str, Any]) -> str:
    """Return the card's text."""
    base = settings.model if "/" in settings.model and not Path(settings.model).exists() else None
    head = {"library_name": "transformers", "pipeline_tag": kind.pipeline, "base_model": base}
    lines = ["---", *(f"{name}: {value}" for name, value in head.items() if value), "tags:", "- bigqa", "---", ""]
    title = tr("{base}, fine-tuned ({task})", base=_base_name(settings), task=kind.name)
    lines += [put("# {title}", title=title), ""]
    lines += [tr("Made by bigqa; loads in transformers, and answers in its pipelines."), ""]
    if "scores" in report:
        lines += [put("**{headline}**", headline=kind.headline(report["scores"])), ""]
    parts: dict[Text, dict[str, Any]] = {
        tr("Data"): _data(settings, report),
        tr("Scores"): _scores(report),
        tr("Recipe"): {name: value for name in RECIPE if (value := getattr(settings, name)) is not None}
        | settings.task_options,
        tr("Plan"): _plan(settings, report),
    }
    for title, rows in parts.items():
        if rows:
            lines += [
                put("## {title}", title=title),
                "",
                "| | |",
                "|---|---|",
                *(put("| {name} | {value} |", name=name, value=value) for name, value in rows.items()),
                "",
            ]
    lines += [put("## {title}", title=tr("Command")), "", "```", command(settings), "```", ""]
    return "\n".join(map(shown, lines))


def command(settings: Settings) -> str:
    """Return the command that makes the model again, with files by their names alone."""
    values = settings.model_dump(mode="json")
    of_task = set(kind_of(settings.task).options_type.model_fields)
    # What a model's recipe sets is said whatever it is; of windows on documents, where there are documents.
    recipe = {name for name in Recipe.model_fields if name in of_task or name not in Lengths.model_fields}
    words = ["bigqa", "train"]
    for name, field in Settings.model_fields.items():
        value = values[name]
        if name in NO_OPTIONS or value is None or (value == field.default and name not in recipe):
            continue
        if name in SWITCHES:
            words.append(SWITCHES[name])
        else:
            words += [f"--{name.replace('_', '-')}", _named(name, value)]
    for name, value in settings.task_options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if (named := _strategy_name(settings.strategy)) is not None:
        words += ["--strategy", named]
    return shlex.join([*words, "--out", "RUN"])


def _named(name: str, value: Any) -> str:
    """Return an option's value; of a path its last part."""
    is_path = name in ("train_file", "dev_file", "nvme") or (name in ("model", "tokenizer") and Path(value).exists())
    return Path(value).name if is_path else str(value)


def _base_name(settings: Settings) -> str:
    return _named("model", settings.model)


def _strategy_name(strategy: Strategy | None) -> str | None:
    """Return the name of a strategy, whatever device and precision it came to."""
    if strategy is None:
        return None
    same = {"device": strategy.device, "precision": strategy.precision, "micro_batch": None, "seq_len": None}
    wanted = strategy.model_copy(update=same)
    return next((name for name, one in STRATEGIES.items() if one.model_copy(update=same) == wanted), None)


def _data(settings: Settings, report: Mapping[str, Any]) -> dict[str, Any]:
    digests = settings.origin.model_dump() if settings.origin is not None else {}
    found: dict[str, Any] = {tr("windows trained on"): report["windows"]}
    for name, title in (("train_file", tr("train file")), ("dev_file", tr("dev file"))):
        file = getattr(settings, name)
        if file is not None:
            digest = f", blake2b {digests[name]}" if digests.get(name) else ""
            found[title] = f"{file.name}{digest}"
    return found


def _scores(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures among a report's scores, and the best as the run trained."""
    scores = {name: value for name, value in report.get("scores", {}).items() if isinstance(value, int | float)}
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in scores.items()}
    best = report.get("best")
    return rounded | ({tr("best as it trained"): json.dumps(best)} if best else {})


def _plan(settings: Settings, report: Mapping[str, Any]) -> dict[str, Any]:
    strategy = settings.strategy
    axes = {} if strategy is None else strategy.model_dump(exclude_defaults=True, exclude={"device", "precision"})
    return {
        tr("strategy"): _strategy_name(strategy) or "plain",
        tr("what it changes"): ", ".join(f"{name} {value}" for name, value in axes.items()) or tr("nothing"),
        tr("precision"): strategy.precision if strategy is not None else settings.precision,
        tr("micro-batch"): settings.micro_batch or tr("a process's whole share"),
        tr("processes"): report["num_processes"],
        tr("device"): report["device"],
        tr("peak memory"): format_bytes(report["peak_memory_bytes"]),
        tr("steps"): report["steps"],
        tr("seconds"): round(report["seconds"], 1),
        tr("versions"): ", ".join(f"{name} {one}" for name, one in report["versions"].items() if one),
    }
