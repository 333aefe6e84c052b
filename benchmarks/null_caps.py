"""Cells of the null GPU again, on cards of the size that is predicted. Run by `python -m benchmarks.null_gpu --caps`.

In: committed cells, of which some are drawn, one of each strategy first. Out: `runs/null-caps.jsonl`, a line for each;
what is there is not run again. Each is run on a card of what is predicted to be reserved and 1%, where it must end, and
on one of the least with which it is predicted to get by, less 3%, where it must not. The two are not the same: torch
gives back what it caches before it fails. Of DeepSpeed and of several processes the least is not predicted.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS
from benchmarks.null_cells import MODELS, Cell, card_of, estimator_of, predicted, read_cells
from bigqa.memory.cards import card_for
from bigqa.nullgpu.cards import NullGpu

FILE = REPORTS / "null-caps.jsonl"
WHAT = "cells on null GPUs of the predicted size; kernels not run"
ROUNDS = 2
"""Cells of each strategy."""
MORE, LESS = 1.01, 0.97
SAID = {"ok": "ended", "out of memory": "ran out of memory"}
Run = Callable[[Cell, NullGpu], str]
"""Runs a cell on a card; returns what became of it."""


@dataclass(frozen=True)
class Capped:
    """A cell on cards of predicted sizes."""

    cell: str
    """What tells it from others."""
    reserved: int
    """Predicted, with room."""
    smallest: int | None = None
    """Predicted: with how little it gets by."""
    outcomes: dict[str, str] = field(default_factory=dict)
    """Card -> what became of it."""


def drawn(rounds: int = ROUNDS) -> list[Cell]:
    """Return cells of every strategy, from all over the models and cards, always the same."""
    by_strategy: dict[str, list[Cell]] = {}
    for model in MODELS:
        for cell in read_cells(model):
            if cell.outcome == "ok":
                by_strategy.setdefault(cell.strategy, []).append(cell)
    found = []
    for turn in range(rounds):
        for place, name in enumerate(sorted(by_strategy)):
            of_model = MODELS[(place + turn * (len(MODELS) // rounds)) % len(MODELS)]
            able = [cell for cell in by_strategy[name] if cell.model == of_model] or by_strategy[name]
            found.append(sorted(able, key=lambda cell: cell.key)[(place + turn) % len(able)])
    return list(dict.fromkeys(found))


def sizes_of(cell: Cell) -> tuple[int, int | None]:
    """Return what is predicted to be reserved, and with how little a cell gets by."""
    reserved = predicted(cell).reserved_bytes
    if cell.gpus > 1 or cell.axes.needs_deepspeed:
        return reserved, None
    model, shape = card_of(cell.card), (cell.micro_batch, cell.seq_len)
    card = card_for(model.name, model.capability)
    return reserved, estimator_of(cell.model).smallest_bytes(
        cell.axes, *shape, accumulating=cell.accumulating, card=card
    )


def measure(cell: Cell, run: Run) -> Capped:
    """Run a cell on cards of the sizes that are predicted."""
    reserved, smallest = sizes_of(cell)
    cards = {"reserved and 1%": int(reserved * MORE)}
    if smallest is not None:
        cards |= {"smallest and 1%": int(smallest * MORE), "smallest less 3%": int(smallest * LESS)}
    kind = card_of(cell.card)
    outcomes = {
        name: run(cell, NullGpu(kind, count=cell.gpus, memory_bytes=size, context_bytes=0))
        for name, size in cards.items()
    }
    return Capped(cell.key, reserved, smallest, outcomes)


def read_capped(file: Path = FILE) -> list[Capped]:
    """Return the cells that are there."""
    lines = file.read_text(encoding="utf-8").splitlines()[1:] if file.is_file() else []
    return [Capped(**json.loads(line)) for line in lines]


def append(capped: Capped, head: dict[str, Any], file: Path = FILE) -> None:
    """Write a cell down; `head`: what the file begins with."""
    lines = [] if file.is_file() else [{"what": WHAT, **head}]
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(line) + "\n" for line in [*lines, vars(capped)])


def told(found: Sequence[Capped]) -> str:
    """Return in lines how many ended where they are said to, and which did not."""
    parts = (("reserved and 1%", "ok"), ("smallest and 1%", "ok"), ("smallest less 3%", "out of memory"))
    lines, strange = [], []
    for card, wanted in parts:
        there = [one for one in found if card in one.outcomes]
        right = [one for one in there if one.outcomes[card] == wanted]
        lines.append(f"On a card of {card}: {len(right)} of {len(there)} {SAID[wanted]}.")
        strange += [f"  {one.cell}, {card}: {one.outcomes[card]}" for one in there if one not in right]
    return "\n".join([*lines, *strange])
