"""Rows of a memory-mapped file, against pyarrow's own reading of it."""

import os
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.order import DataOrder
from bigqa.errors import BigqaError
from bigqa.tasks.caching import write_rows
from bigqa.tasks.rows import Rows


@pytest.fixture
def table() -> pa.Table:
    """Seven rows in batches of three; arrays of unlike lengths, an empty one too."""
    ids = [list(range(number, 2 * number)) for number in range(7)]
    table = pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "start": pa.array(range(7), pa.int32())})
    return pa.Table.from_batches(table.to_batches(max_chunksize=3))


def plain(rows: Rows, chosen: list[int]) -> dict[str, list[object]]:
    return {name: [np.asarray(value).tolist() for value in column] for name, column in rows[chosen].items()}


@pytest.mark.parametrize("chosen", [[0], [6, 0, 3], [2, 2, 5], []])
def test_rows_are_those_of_the_file_in_the_order_asked_for(table: pa.Table, tmp_path: Path, chosen: list[int]) -> None:
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for rows in (Rows.of_file(tmp_path / "rows.arrow"), Rows(table)):
        assert plain(rows, chosen) == table.take(pa.array(chosen, pa.int64())).to_pydict()


def test_a_part_of_a_table_is_its_own_rows(table: pa.Table) -> None:
    part = table.slice(1, 4)
    rows = Rows(part)
    assert len(rows) == 4 and plain(rows, [0, 3]) == part.take([0, 3]).to_pydict()
    assert [len(row["ids"]) for row in rows] == rows.lengths("ids") == [1, 2, 3, 4]
    assert rows.only(["start"])[[2]] == {"start": [3]}


@pytest.mark.parametrize("index", [-1, 7])
def test_a_row_that_is_not_there_is_an_error(table: pa.Table, index: int) -> None:
    with pytest.raises(IndexError, match=f"row {index} of 7"):
        Rows(table)[[index]]


def test_nothing_is_copied(table: pa.Table) -> None:
    assert not Rows(table)[[6]]["ids"][0].flags.owndata


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path: Path) -> None:
    """What was cut off reads as zeros to the end of a page: a run trained on them and said nothing."""
    file = tmp_path / "rows.arrow"
    write_rows(file, iter([{"numbers": [1] * 9000}]), pa.schema({"numbers": pa.list_(pa.int32())}))
    rows = Rows.of_file(file).only(["numbers"])
    rows.check_whole()
    os.truncate(file, file.stat().st_size - 2000)
    assert rows[[0]]["numbers"][0][-1] == 0
    with pytest.raises(BigqaError, match=r"rows.arrow was cut short while it was read: start again"):
        rows.check_whole()
    feed = Feed(DataOrder(num_windows=1, global_batch=1, seed=1), rows, [9], cast(Any, Whole()), tokens=9, packs=True,
                device=torch.device("cpu"))  # fmt: skip
    with pytest.raises(BigqaError, match="was cut short"), closing(feed):
        feed.take(0)


class Whole:
    def pack(self, rows: list[Any]) -> dict[str, Any]:
        return {}
