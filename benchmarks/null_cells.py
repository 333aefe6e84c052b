"""Cells of the ground truth on a null GPU: which there are, how they are kept, and how far predictions are from them.

In: files in `runs/null-gpu/`, one for each model: a line that says what they are, and a line for each cell. Out: cells
and errors.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPORTS
from bigqa.bench.cases import rows_on
from bigqa.bench.report import Case
from bigqa.engine.build import not_together
from bigqa.machine.gpus import GpuModel, find_gpu
from bigqa.memory.cards import card_for
from bigqa.memory.estimate import Estimator, MemoryEstimate
from bigqa.strategy import Strategy

FOLDER = REPORTS / "null-gpu"
WHAT = "torch's allocator on a null GPU; kernels not run"
MODELS = ("enliple-small", "enliple-large-v1", "bert-base")
CARDS = ("A100-40", "T4", "H100", "3090")
SHAPES = ((16, 384), (1, 384))


@dataclass(frozen=True)
class Cell:
    """One case on one card."""

    model: str
    strategy: str
    card: str
    micro_batch: int
    seq_len: int
    accumulating: bool
    outcome: str = ""
    allocated: int = 0
    reserved: int = 0
    pinned: int = 0
    managed: int = 0
    """Of paged optimizers: torch does not count it, and the card may hold it or not."""
    traceback: str = ""

    @property
    def key(self) -> str:
        """What tells it from every other cell."""
        accumulating = "accumulating" if self.accumulating else "once"
        return f"{self.model} {self.strategy} {self.card} {self.micro_batch}x{self.seq_len} {accumulating}"

    @property
    def axes(self) -> Strategy:
        """The strategy as the card has it."""
        return rows_of(card_of(self.card))[self.strategy]

    def case(self) -> Case:
        """Return what is run: two optimizer steps."""
        return Case(
            model=self.model,
            strategy=self.strategy,
            axes=self.axes,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            global_batch=self.micro_batch * (2 if self.accumulating else 1),
            steps=0,
        )

    def line(self) -> dict[str, Any]:
        """Return what is written down: the model is in the file's name."""
        found = {name: value for name, value in vars(self).items() if value or name not in ("managed", "traceback")}
        del found["model"]
        return found


def card_of(name: str) -> GpuModel:
    """Return a card of the table."""
    card = find_gpu(name)
    assert card is not None
    return card


def rows_of(card: GpuModel) -> dict[str, Strategy]:
    """Return the strategies of one process of a card, without DeepSpeed."""
    has_bf16 = card.capability >= (8, 0)
    rows = rows_on("cuda", "bf16" if has_bf16 else "fp16")
    return {
        name: row
        for name, row in rows.items()
        if not (row.needs_deepspeed or row.seq_len or row.micro_batch or not_together(row))
        and (has_bf16 or row.precision != "bf16-sr")
    }


def wanted(models: Sequence[str], cards: Sequence[str], strategies: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells, those first that tell the most."""
    for model in models:
        for (micro_batch, seq_len), accumulating in zip((*SHAPES, *SHAPES), (False, True, True, False), strict=True):
            for card in cards:
                for name in rows_of(card_of(card)):
                    if not strategies or name in strategies:
                        yield Cell(model, name, card, micro_batch, seq_len, accumulating)


def read_cells(model: str, folder: Path = FOLDER) -> list[Cell]:
    """Return the cells of a model that are there."""
    file = folder / f"{model}.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    return [Cell(model=model, **json.loads(line)) for line in lines]


def predicted(estimator: Estimator, cell: Cell, *, whole: bool = True) -> MemoryEstimate:
    """Return what is predicted of a cell."""
    card = card_of(cell.card)
    return estimator.estimate(
        cell.axes,
        cell.micro_batch,
        cell.seq_len,
        accumulating=cell.accumulating,
        card=card_for(card.name, card.capability),
        whole=whole,
    )
