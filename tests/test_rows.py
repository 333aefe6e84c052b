"""Rows of a memory-mapped file, against pyarrow's own reading of it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

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
