"""Embeddings that never come to a device: rows are looked up, and their gradients added up, on the host.

In: the parameters that rows are looked up in. Out: modes to run a model in, and gradients by row.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from bigqa.engine.stream.shelf import Shelf
from bigqa.engine.stream.sums import Sums


@dataclass
class RowGradient:
    """The gradient of a table: of the rows that a step looked at; the others' is zero."""

    count: int
    """Elements of the table."""
    width: int
    rows: Tensor
    """[R], int64: which, in order."""
    values: Tensor
    """[R, width], fp32."""
    tensors: tuple[Tensor, ...] = ()
    """None that is as long as the table."""

    def piece(self, piece: slice) -> Tensor:
        """Return a piece of the flat gradient, fp32."""
        stop = min(piece.stop, self.count)
        begin, end = piece.start // self.width, -(-stop // self.width)
        first, last = torch.searchsorted(self.rows, torch.tensor([begin, end])).tolist()
        dense = torch.zeros(end - begin, self.width)
        dense[self.rows[first:last] - begin] = self.values[first:last]
        start = piece.start - begin * self.width
        return dense.view(-1)[start : start + stop - piece.start]

    def norm(self) -> Tensor:
        """Return the norm: rows of zeros would add nothing, in no order."""
        return torch.linalg.vector_norm(self.values, 2.0)

    def add(self, ids: Tensor, values: Tensor) -> None:
        """Add the gradients of looked up rows: summed by themselves first, as a dense gradient of a micro-batch is."""
        rows, places = ids.unique(return_inverse=True)
        sums = torch.zeros(len(rows), self.width).index_add_(0, places, values)
        self.values.index_add_(0, torch.searchsorted(self.rows, rows), sums)


@dataclass
class Table:
    """One embedding."""

    name: str
    weight: Tensor
    """[rows, width], on the host."""
    gradient: RowGradient | None = None


@dataclass
class _LookUp:
    table: Table
    ids: Tensor
    """On the host."""
    padding: int | None
    rows: Tensor | None = None
    """On the device; a leaf."""


@dataclass
class Tables:
    """All of a model's."""

    shelf: Shelf
    by_parameter: Mapping[int, Table]
    """By the identity of what stands for it in the model."""
    sums: Sums = field(default_factory=Sums)
    seen: dict[int, list[_LookUp]] = field(default_factory=dict)
    """What each micro-batch looked up, in order."""

    @contextmanager
    def first(self, micro_batch: int) -> Iterator[None]:
        """Look rows up, and note which."""
        self.seen[micro_batch] = []
        with _Mode(self, lambda table, ids, padding: self._look_up(micro_batch, table, ids, padding)):
            yield

    @contextmanager
    def again(self, micro_batch: int) -> Iterator[None]:
        """Look the same rows up, for their gradients."""
        turn = iter(self.seen[micro_batch])
        with _Mode(self, lambda table, ids, padding: self._rows(next(turn))):
            yield

    @contextmanager
    def blank(self) -> Iterator[None]:
        """Look nothing up: what is computed of it is not wanted."""
        with _Mode(self, self._blank):
            yield

    def begin_gradients(self) -> None:
        """Make room for the gradients of all rows that were looked up in this step."""
        for table in self.by_parameter.values():
            ids = [one.ids.reshape(-1) for looks in self.seen.values() for one in looks if one.table is table]
            count, width = sum(map(len, ids)), table.weight.shape[1]
            if self.shelf.link.device.type == "meta":
                self.shelf.link.kept_bytes += min(count, len(table.weight)) * width * torch.float32.itemsize
            elif ids:
                rows = self.sums.rows(torch.cat(ids), len(table.weight))
                table.gradient = RowGradient(table.weight.numel(), width, rows, torch.zeros(len(rows), width))

    def collect(self, micro_batch: int) -> None:
        """Add up the gradients of a micro-batch, in the order in which a backward pass comes to them."""
        for look in reversed(self.seen.pop(micro_batch)):
            gradient, rows = look.table.gradient, look.rows
            if rows is None or rows.grad is None:
                continue
            self.shelf.link.bytes_out += rows.grad.nbytes
            if gradient is None:
                continue
            values, ids = rows.grad.to("cpu").float().view(-1, gradient.width), look.ids.reshape(-1)
            if look.padding is not None:
                values[ids == look.padding] = 0.0
            gradient.add(ids, values)

    def forget(self) -> None:
        """Drop what a step left."""
        self.seen.clear()
        for table in self.by_parameter.values():
            table.gradient = None

    def _look_up(self, micro_batch: int, table: Table, ids: Tensor, padding: int | None) -> Tensor:
        on_host = torch.zeros(ids.shape, dtype=torch.long, device="cpu") if ids.is_meta else ids.to("cpu")
        look = _LookUp(table, on_host, padding)
        self.seen[micro_batch].append(look)
        return self._rows(look)

    def _rows(self, look: _LookUp) -> Tensor:
        shape = (*look.ids.shape, look.table.weight.shape[1])
        if self.shelf.link.device.type == "meta":
            rows = torch.empty(shape, dtype=look.table.weight.dtype, device="meta")
        else:
            rows = look.table.weight.index_select(0, look.ids.reshape(-1)).view(shape).to(self.shelf.link.device)
            self.shelf.leave([look.table.weight])
        self.shelf.link.bytes_in += rows.nbytes
        look.rows = rows.requires_grad_() if torch.is_grad_enabled() else None
        return rows

    def _blank(self, table: Table, ids: Tensor, padding: int | None) -> Tensor:
        nothing = torch.zeros((), dtype=table.weight.dtype, device=self.shelf.link.device)
        return nothing.expand(*ids.shape, table.weight.shape[1])


class _Mode(TorchFunctionMode):
    """Answers for `torch.nn.functional.embedding` where the weight stands for a table."""

    def __init__(self, tables: Tables, answer: Any) -> None:
        super().__init__()
        self.tables, self.answer = tables, answer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look up on the host what lies there, and run everything else."""
        kwargs = kwargs or {}
        table = self.tables.by_parameter.get(id(args[1])) if func is functional.embedding and len(args) > 1 else None
        if table is None:
            return func(*args, **kwargs)
        padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
        return self.answer(table, args[0], padding)
