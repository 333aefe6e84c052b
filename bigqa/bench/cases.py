"""Which runs a benchmark is made of. In: what a person asks for. Out: `Case`s, each once.

A strategy's row is taken to the device that is measured; rows that are the same there are one case.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigqa.bench.report import Case, Heap, short_name
from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.models.sources import check_lengths, load_config, resolve
from bigqa.strategy import STRATEGIES, Precision, Strategy, with_low_precision

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What a person asks of `bigqa bench`; empty: all there is, or the model's recipe."""

    models: tuple[str, ...]
    strategies: tuple[str, ...] = ()
    seq_lens: tuple[int, ...] = ()
    micro_batches: tuple[int, ...] = ()
    global_batch: int | None = None
    precision: Precision | None = None
    """What low precision is; none: the device's best."""
    caps: tuple[int, ...] = ()
    steps: int = 2
    heap: Heap = "tight"
    nvme: Path | None = None
    """A folder on a fast disk; none: no row that offloads to one."""


def cases_of(grid: Grid, device: Device, low: Precision) -> list[Case]:
    """Return the cases, the quickest models first as they were named.

    Raises: UsageError for an unknown strategy, or one that wants a disk where none is named.
    """
    unknown = [name for name in grid.strategies if name not in STRATEGIES]
    if unknown:
        raise UsageError(
            tr("no strategy {unknown}; choose from {strategies}", unknown=unknown[0], strategies=", ".join(STRATEGIES))
        )
    if grid.nvme is None and any(STRATEGIES[name].needs_disk for name in grid.strategies):
        raise UsageError(tr("this strategy offloads to a disk: say where with --nvme DIR"))
    short_names = [short_name(model) for model in dict.fromkeys(grid.models)]
    twice = [name for name in short_names if short_names.count(name) > 1]
    if twice:
        raise UsageError(
            tr("two models are called {twice}, and so would be their reports: one --out for each", twice=twice[0])
        )
    found: dict[str, Case] = {}
    for model in grid.models:
        for case in _of_model(model, grid, device, low):
            found.setdefault(case.name, case)
    return list(found.values())


def _of_model(model: str, grid: Grid, device: Device, low: Precision) -> Iterator[Case]:
    source = resolve(model)
    config, recipe = load_config(source), source.recipe
    global_batch = grid.global_batch or (recipe.global_batch if recipe else 16)
    for seq_len in grid.seq_lens or (recipe.seq_len if recipe else 512,):
        check_lengths(config, seq_len)
        for name, axes in _rows(grid, device, low).items():
            if axes.seq_len and axes.seq_len >= seq_len:
                continue  # windows are as short already
            for micro_batch in (axes.micro_batch,) if axes.micro_batch else grid.micro_batches or (global_batch,):
                for cap in grid.caps or (None,):
                    yield Case(
                        model=model,
                        strategy=name,
                        axes=axes,
                        seq_len=min(seq_len, axes.seq_len or seq_len),
                        micro_batch=min(micro_batch, global_batch),
                        global_batch=global_batch,
                        steps=grid.steps,
                        heap=grid.heap,
                        cap_bytes=cap,
                    )


def _rows(grid: Grid, device: Device, low: Precision) -> dict[str, Strategy]:
    return rows_on(device, grid.precision or low, grid.strategies, has_disk=grid.nvme is not None)


def rows_on(
    device: Device, low: Precision, names: tuple[str, ...] = (), *, has_disk: bool = False
) -> dict[str, Strategy]:
    """Return the strategies that one process of a device can run, by name, each once."""
    found: dict[Any, str] = {}
    # A row that is named for the device keeps its name: "cpu-recompute", not "recompute" on a CPU.
    own_first = sorted(STRATEGIES, key=lambda name: STRATEGIES[name].device != device)
    for name in own_first:
        row = STRATEGIES[name]
        if (names and name not in names) or not (names or _runs_alone(row, device, has_disk=has_disk)):
            continue
        axes = with_low_precision(row, low).model_copy(update={"device": device})
        found.setdefault(axes, name)
    order = list(STRATEGIES)
    return {name: axes for axes, name in sorted(found.items(), key=lambda item: order.index(item[1]))}


def _runs_alone(row: Strategy, device: Device, *, has_disk: bool) -> bool:
    """Whether one process can run a row and gains by it."""
    if row.needs_disk and not has_disk:
        return False
    if row.needs_disk and row.stream:
        return True  # from a disk it saves memory on a CPU as well
    if device == "cuda":
        return row.device == "cuda"
    # Beside a GPU's: sharding, offload and streaming save nothing where all is one memory.
    moves = row.needs_deepspeed or row.activation_offload or row.stream
    return not moves and row.optimizer != "paged-adamw8bit"
