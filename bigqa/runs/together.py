"""What several runs have in common: one plan for all, how many at once, what is kept of each. In: options. Out: these.

With a plan of its own each run would decide by the memory that is free when it begins; runs that differ in more than
what is asked of them cannot be compared.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigqa.errors import BigqaError
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.run.folder import settings_from
from bigqa.settings import Settings
from bigqa.tasks.registry import kind_of
from bigqa.units import format_bytes

PLAN = "plan.json"
DECIDED = ("plan", "strategy", "micro_batch", "precision", "num_processes")
"""Options that say themselves what a run trains under."""


def checked(options: Mapping[str, Any], folder: Path) -> Settings:
    """Return the settings of a run with these options, refused where `bigqa train` would. Raises: BigqaError."""
    known = {name: value for name, value in options.items() if name != "num_processes" and value is not None}
    return settings_from(known | {"out": folder}, None)


def metric_of(settings: Settings) -> tuple[str, bool]:
    """Return the score that tells the best, and whether the least is."""
    kind = kind_of(settings.task)
    metric = settings.metric or kind.watched_on(settings.dev_file)
    return metric, metric in kind.smaller_is_better


def value_of(report: Mapping[str, Any], metric: str) -> float | None:
    """Return a run's score; none where it was not scored. Raises: BigqaError where it has other scores."""
    scores = report.get("scores")
    if not scores:
        return None
    if not isinstance(scores.get(metric), int | float):
        known = [name for name, value in scores.items() if isinstance(value, int | float)]
        raise BigqaError(
            tr(
                "--metric {metric} is none of the scores on this dev file: {known}",
                metric=metric,
                known=", ".join(sorted(known)),
            )
        )
    return float(scores[metric])


@dataclass(frozen=True)
class AtOnce:
    """How many runs of a plan go on at a time."""

    by_memory: int
    cards: int
    """GPUs here."""
    words: str
    """What a person should know of it."""


def made_plan(settings: Settings, options: Mapping[str, Any], folder: Path, name: str = PLAN) -> Any:
    """Plan for all runs as `bigqa probe --out` does, once; return the `Candidate`. None: options decide it themselves.

    Raises: BigqaError where nothing fits.
    """
    if any(options.get(name) is not None for name in DECIDED) or options.get("check") is False:
        return None
    from bigqa.plan.candidates import Candidate
    from bigqa.plan.files import write_plan
    from bigqa.plan.probe import probe
    from bigqa.plan.question import Question

    file = folder / name
    if not file.is_file():
        found = probe(
            Question(
                model=settings.model,
                task=settings.task,
                tokenizer=settings.tokenizer,
                seq_len=settings.seq_len,
                global_batch=settings.global_batch,
                gpu="none" if settings.device == "cpu" else "auto",
                gpus=None if settings.device == "cpu" else _one_card(),
                nvme=settings.nvme,
            )
        )
        if found.chosen is None:
            raise BigqaError(
                tr("no strategy fits {model} here: `bigqa probe {model} --all` shows why", model=settings.model)
            )
        write_plan(found, file)
    return Candidate.model_validate(read_json(file, tr("the plan of these runs"))["predicted"])


def at_once(candidate: Any) -> AtOnce:
    """Say how many runs of a plan memory holds at a time, and how many there is a processor for."""
    from bigqa.machine.hardware import detect
    from bigqa.plan.machine import HEADROOM, HOST_HEADROOM

    hardware, memory = detect(), candidate.memory
    in_host = int(hardware.host_free_bytes * (1 - HOST_HEADROOM) // max(1, memory.host_bytes))
    each = tr("{size} of host memory", size=format_bytes(memory.host_bytes))
    if candidate.strategy.device != "cuda":
        count = max(1, in_host)
        words = tr("{each} a run; memory holds {count} at once, and one already uses all cores", each=each, count=count)
        return AtOnce(count, 0, words)
    on_a_card = [int(card.free_bytes * (1 - HEADROOM) // max(1, memory.device_bytes)) for card in hardware.gpus]
    count = max(1, min(sum(on_a_card), in_host))
    each = tr("{size} of a GPU and {host}", size=format_bytes(memory.device_bytes), host=each)
    one = tr("{each} a run; memory holds {count} at once on 1 GPU", each=each, count=count)
    cards = len(on_a_card)
    more = tr("{each} a run; memory holds {count} at once on {cards} GPUs", each=each, count=count, cards=cards)
    return AtOnce(count, cards, more if cards > 1 else one)


def places(asked: int | None, found: AtOnce | None) -> int:
    """Return how many runs go on at a time: as asked for, else one for each GPU. Raises: BigqaError."""
    if asked is not None:
        if found is not None and asked > found.by_memory:
            raise BigqaError(tr("--at-once {asked} does not fit: {words}", asked=asked, words=found.words))
        return asked
    return max(1, min(found.cards, found.by_memory)) if found is not None else 1


def environment_of(slot: int, count: int) -> dict[str, str]:
    """Return what gives one of several runs a GPU of its own, in turn, where there are several."""
    cards = visible_cards()
    return {"CUDA_VISIBLE_DEVICES": cards[slot % len(cards)]} if count > 1 and len(cards) > 1 else {}


def visible_cards() -> list[str]:
    """Return what CUDA would name the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one.strip() for one in named.split(",") if one.strip()]
    from bigqa.machine.hardware import detect

    return [str(number) for number in range(len(detect().gpus))]


def _one_card() -> int | None:
    return 1 if visible_cards() else None


def drop_checkpoints(folder: Path) -> None:
    """Remove what a run that is over goes on from: of several runs it would fill a disk."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def drop_model(folder: Path) -> None:
    """Remove a model that is not the best; its scores, answers and options stay."""
    for name in ("model", "adapter"):
        shutil.rmtree(folder / name, ignore_errors=True)


def best_of(values: Mapping[str, float], *, least: bool) -> str:
    """Return the name of the best value; of equals, the first."""
    return (min if least else max)(values, key=lambda name: values[name])


def check_same(folder: Path, name: str, asked: Mapping[str, Any], what: str, free: Sequence[str] = ()) -> None:
    """Write down what was asked for; refuse a folder where something else was. Raises: BigqaError that names it.

    `free`: fields that may change from one start to the next.
    """
    file = folder / name
    if not file.is_file():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise BigqaError(
                tr(
                    "{folder} is there, and is not a folder of `bigqa {what}`: name another --out",
                    folder=folder,
                    what=what,
                )
            )
        write_json(file, asked)
        return
    begun = read_json(file, tr("what `bigqa {what}` was begun with", what=what))
    if not isinstance(begun, dict):
        raise BigqaError(tr("{file} is not as `bigqa {what}` writes it: name another --out", file=file, what=what))
    for part in ("options", *asked):
        one, other = begun.get(part), asked.get(part)
        if part in free or one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            key = next(key for key in (*other, *one) if one.get(key) != other.get(key))
            raise BigqaError(
                tr(
                    "{folder} was begun with {key} {before}, and is now asked for {now}: name another --out",
                    folder=folder,
                    key=key.replace("_", "-"),
                    before=one.get(key, tr("left out")),
                    now=other.get(key, "none"),
                )
            )
        raise BigqaError(
            tr(
                "{folder} was begun with {part} {one}, and is now asked for {other}: name another --out",
                folder=folder,
                part=part,
                one=one,
                other=other,
            )
        )
    write_json(file, asked)
