"""Cells of the ground truth on a null GPU: which there are, how they are kept, and what is predicted of them.

In: files in `runs/null-gpu/`, one for each model: a line that says what they are, and a line for each cell. Out: cells.

Every model x strategy x card x shape x accumulating or not would be 7,000 cells. What is measured is drawn from them,
evenly and always alike: a strategy of a model on every card, and on half of them a second time; which of the shapes,
and whether gradients are accumulated, is drawn for both.
"""

import functools
import itertools
import json
import random
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
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
from bigqa.strategy import Strategy

FOLDER = REPORTS / "null-gpu"
WHAT = "torch's allocator on a null GPU; kernels not run"
CONFIGS = Path(__file__).parent / "configs"
MODELS = (
    "enliple-small", "enliple-large-v1", "enliple-large-v2", "bert-base", "roberta-large", "xlm-roberta-large",
    "kobigbird", "deberta-v3-large", "modernbert-large", "qwen3-0.6b", "llama-1b", "llama-7b",
)  # fmt: skip
"""Presets, and folders of `configs/`."""
CARDS = ("A100-40", "T4", "H100", "3090", "L4", "B200")
SHAPES = ((16, 384), (1, 384), (4, 256))
KINDS = tuple(itertools.product(SHAPES, (False, True)))
"""Micro-batch and length; whether gradients are accumulated."""
PROCESSES = (1, 2, 4, 8)
SHARDED_CARDS = ("A100-40", "T4")
"""DeepSpeed's own memory does not hang on the card, only on whether it has bf16."""
KINDS_DRAWN = 3
"""Of a strategy of a model. Cells of one kind share a trace when they are predicted."""


@dataclass(frozen=True)
class Cell:
    """One case on one card."""

    model: str
    strategy: str
    card: str
    micro_batch: int
    seq_len: int
    accumulating: bool
    gpus: int = 1
    """Processes of the run; the first of them is measured."""
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
        gpus = f" of {self.gpus}" if self.gpus > 1 else ""
        return f"{self.model} {self.strategy} {self.card} {self.micro_batch}x{self.seq_len} {accumulating}{gpus}"

    @property
    def axes(self) -> Strategy:
        """The strategy as the card has it."""
        card = card_of(self.card)
        return (rows_of(card) | sharded_rows_of(card))[self.strategy]

    def case(self) -> Case:
        """Return what is run: two optimizer steps."""
        return Case(
            model=source_of(self.model),
            strategy=self.strategy,
            axes=self.axes,
            seq_len=self.seq_len,
            micro_batch=self.micro_batch,
            global_batch=self.gpus * self.micro_batch * (2 if self.accumulating else 1),
            steps=0,
        )

    def line(self) -> dict[str, Any]:
        """Return what is written down: the model is in the file's name."""
        spared = {"managed": 0, "traceback": "", "gpus": 1}
        return {k: v for k, v in vars(self).items() if k != "model" and (k not in spared or v != spared[k])}


def source_of(model: str) -> str:
    """Return what bigqa calls a model of these."""
    file = CONFIGS / model / "config.json"
    return str(file) if file.is_file() else model


def card_of(name: str) -> GpuModel:
    """Return a card of the table."""
    card = find_gpu(name)
    assert card is not None
    return card


@functools.cache
def rows_of(card: GpuModel) -> dict[str, Strategy]:
    """Return the strategies of one process of a card, without DeepSpeed."""
    rows = rows_on("cuda", "bf16" if card.has_bf16 else "fp16")
    return {name: row for name, row in rows.items() if not left_out(row, card)}


@functools.cache
def sharded_rows_of(card: GpuModel) -> dict[str, Strategy]:
    """Return DeepSpeed's strategies of a card that hold everything in memory."""
    rows = rows_on("cuda", "bf16" if card.has_bf16 else "fp16")
    return {name: row for name, row in rows.items() if row.needs_deepspeed}


def left_out(row: Strategy, card: GpuModel) -> str | None:
    """Say why there are no cells of a strategy on a card; none: there are."""
    if row.needs_deepspeed:
        return "DeepSpeed's: it has cells of its own"
    if row.stream:
        return "its layers come one after the other: tests/test_null_stream.py"
    if row.seq_len or row.micro_batch:
        return "another row at another shape"
    if row.precision == "bf16-sr" and not card.has_bf16:
        return "the card has no bf16"
    return not_together(row)


def wanted(models: Sequence[str], cards: Sequence[str], strategies: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells, one of each strategy on each card first."""
    drawn = [_drawn(model, name) for model in models for name in rows_of(card_of(CARDS[0]))]
    for turn in itertools.zip_longest(*drawn):
        for cell in turn:
            is_asked = cell and cell.card in cards and (not strategies or cell.strategy in strategies)
            if cell and is_asked and cell.strategy in rows_of(card_of(cell.card)):
                yield cell
    for model in models:
        for cell in _sharded(model):
            if cell.card in cards and (not strategies or cell.strategy in strategies):
                yield cell


TOO_LARGE_FOR_A_HOST = ("llama-7b",)
"""What is offloaded is real memory, on a null GPU too: states of 7B parameters are over 100 GB."""


def _sharded(model: str) -> Iterator[Cell]:
    """Yield the cells of DeepSpeed's strategies and of plain data-parallel training: each for 1 to 8 processes."""
    for name in ("plain", "recompute", *sharded_rows_of(card_of(CARDS[0]))):
        if name.endswith(("offload", "offload-recompute")) and model in TOO_LARGE_FOR_A_HOST:
            continue
        chance = random.Random(f"{model} {name} sharded")
        for gpus in PROCESSES if name.startswith("zero") else PROCESSES[1:]:
            shape, accumulating = chance.choice(KINDS)
            yield Cell(model, name, chance.choice(SHARDED_CARDS), *shape, accumulating, gpus)


def _drawn(model: str, strategy: str) -> list[Cell]:
    """Return the cells of a strategy of a model."""
    chance = random.Random(f"{model} {strategy}")
    kinds = itertools.cycle(chance.sample(KINDS, KINDS_DRAWN))
    cards = chance.sample(CARDS, len(CARDS))
    again = cards[1 : 1 + len(CARDS) // 2]  # where each meets another kind than before
    return [
        Cell(model, strategy, card, *shape, acc) for card, (shape, acc) in zip([*cards, *again], kinds, strict=False)
    ]


def read_cells(model: str, folder: Path = FOLDER) -> list[Cell]:
    """Return the cells of a model that are there."""
    file = folder / f"{model}.jsonl"
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    return [Cell(model=model, **json.loads(line)) for line in lines]


@functools.cache
def estimator_of(model: str) -> Estimator:
    """Return what predicts a model's memory."""
    return estimator_for(load_config(resolve(source_of(model))))


def predicted(cell: Cell, *, whole: bool = True) -> MemoryEstimate:
    """Return what is predicted of a cell."""
    card = card_of(cell.card)
    return estimator_of(cell.model).estimate(
        cell.axes,
        cell.micro_batch,
        cell.seq_len,
        accumulating=cell.accumulating,
        world_size=cell.gpus,
        card=card_for(card.name, card.capability),
        whole=whole,
        micro_batches=2 if cell.accumulating else 1,
    )
