"""The ladder: what a run goes down when memory runs out. In: a run's folder. Out: its settings, on the next rung.

A rung is a strategy and a micro-batch; global batch, data order and schedule stay. Each is used once, so a run ends.
"""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigqa.errors import BigqaError
from bigqa.files import parsed, read_text, write_json, write_text
from bigqa.language import tr
from bigqa.settings import Rung, read_settings
from bigqa.strategy import Strategy, missing_package

if TYPE_CHECKING:  # the launcher, which imports this, has no need of torch
    from bigqa.plan.candidates import Candidate

AGAIN = 75
"""The exit code of a process whose run is to be gone on with (EX_TEMPFAIL of sysexits.h)."""
SWITCHES = "switches.jsonl"


def ladder_of(candidates: "list[Candidate]", chosen: "Candidate") -> tuple[Rung, ...]:
    """Return what comes after the chosen candidate, in the planner's order.

    Left out: what changes more of what is learned, what has other windows, and what needs no less memory than the rung
    before it on the same device: of the GPU, or as much of it and less of the host's, as where states go to a disk. The
    CPU is the last resort of a GPU.
    """
    rungs, least = [], {chosen.strategy.device: chosen}
    for candidate in candidates:
        device = candidate.strategy.device
        same = candidate.seq_len == chosen.seq_len and candidate.strategy.adapters == chosen.strategy.adapters
        if not (candidate.fits and same) or not _takes_less(candidate, least.get(device)):
            continue
        least[device] = candidate
        rungs.append(Rung(name=candidate.name, strategy=candidate.strategy, micro_batch=candidate.micro_batch))
    return tuple(sorted(rungs, key=lambda rung: rung.strategy.device != chosen.strategy.device))


def _takes_less(one: "Candidate", other: "Candidate | None") -> bool:
    """Whether a candidate takes less memory than another of its device, if there is one."""
    if other is None:
        return True
    return _memory_of(one) < _memory_of(other)


def _memory_of(candidate: "Candidate") -> tuple[int, int]:
    return candidate.peak_bytes, candidate.memory.host_bytes if candidate.memory is not None else 0


def plain_ladder(strategy: Strategy, micro_batch: int) -> tuple[Rung, ...]:
    """Return the ladder of a run without a plan: smaller micro-batches, then recomputation, then 8-bit states.

    What streams its layers recomputes already, and has 8-bit states with other weights alone.
    """
    rungs = []
    while micro_batch > 1:
        micro_batch = -(-micro_batch // 2)
        rungs.append(Rung(name=f"micro-batches of {micro_batch}", strategy=strategy, micro_batch=micro_batch))
    if strategy.stream:
        return tuple(rungs)
    if strategy.recompute != "full":
        strategy = strategy.model_copy(update={"recompute": "full"})
        rungs.append(Rung(name=tr("recomputation"), strategy=strategy, micro_batch=1))
    smaller = strategy.model_copy(update={"optimizer": "adamw8bit"})
    if strategy.optimizer == "adamw" and not strategy.needs_deepspeed and missing_package(smaller) is None:
        rungs.append(Rung(name=tr("8-bit states"), strategy=smaller, micro_batch=1))
    return tuple(rungs)


def step_down(folder: Path, where: str, reason: str, step: int | None) -> Rung:
    """Take the next rung: write it into the run's config, and the switch beside it.

    `step`: the last completed step that is kept; none where it is the last checkpoint's.
    Raises: BigqaError where the ladder is used up.
    """
    settings = read_settings(folder / "config.json").model_copy(update={"out": folder})
    if not settings.ladder:
        raise BigqaError(
            tr(
                "out of memory ({where}), and there is no strategy left to step down to: `bigqa probe {model}` "
                "says what would fit; {folder} goes on from its last checkpoint with --resume {folder} "
                "--strategy NAME",
                where=where,
                model=settings.model,
                folder=folder,
            )
        )
    rung, *rest = _of_use(settings.strategy or Strategy(), settings.ladder, where)
    switch = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "after_step": step,
        "where": where,
        "reason": " ".join(reason.split())[:300],
        "to": rung.name,
        "strategy": rung.strategy.model_dump(),
        "micro_batch": rung.micro_batch,
    }
    write_json(folder / "config.json", settings.on_rung(rung, tuple(rest)).model_dump(mode="json"))
    lines = [*switches_of(folder), switch]
    write_text(folder / SWITCHES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return rung


def _of_use(strategy: Strategy, ladder: tuple[Rung, ...], where: str) -> tuple[Rung, ...]:
    """Leave out what keeps more on the host, where it is the host's memory that a GPU's run lacks; all, if all does."""
    if where != "host" or strategy.device == "cpu":
        return ladder
    less = (r for r in ladder if r.strategy.device != "cpu" and r.strategy.kept_on_host <= strategy.kept_on_host)
    return tuple(less) or ladder


def switches_of(folder: Path) -> list[dict[str, Any]]:
    """Return the switches of a run so far."""
    file = folder / SWITCHES
    if not file.is_file():
        return []
    what = tr("the run's list of switches")
    return [parsed(line, file, what) for line in read_text(file, what).splitlines()]
