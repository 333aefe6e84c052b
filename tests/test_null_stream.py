"""Streamed layers with torch's own CUDA build and allocator, beside their prediction."""

import json
from dataclasses import astuple
from typing import Any, get_args

import pytest
from null_gpu import ROOT, on_null_gpu

from benchmarks.streaming_gpu import LARGE, MOST, ROWS, Row, predicted, read_rows
from bigqa.nullgpu.cards import Bound
from bigqa.units import MIB

LIVE = (Row(LARGE, "stream-disk"), Row(LARGE, "stream", micro_batches=4), Row(LARGE, "stream", 4, 512, 4))
PROGRAM = """
import json, sys
sys.path.insert(0, ROOT)
from benchmarks import null_worker, streaming_gpu
rows = [streaming_gpu.Row(*fields) for fields in ROWS]
null_worker.prepare(rows[0].case(), True)
print(json.dumps([null_worker.in_a_fork(streaming_gpu.measured, row) for row in rows]))
"""
COPIES = 0.001
"""Of what crosses the link in a step: windows that come, and figures that are read."""


def assert_as_predicted(row: Row, found: dict[str, Any]) -> None:
    assert found["outcome"] == "ok", found
    memory, work = predicted(row)
    assert memory.allocated_bytes == pytest.approx(found["allocated"], rel=0.01)
    # All micro-batches are full here; where they are not, a segment more may be wanted.
    assert memory.least is not None and memory.least[1] == pytest.approx(found["reserved"], rel=0.01)
    assert memory.reserved_bytes == memory.least[1] + 2 * MIB
    assert memory.pinned_bytes == pytest.approx(found["pinned"], rel=0.01)
    assert found["reserved"] <= MOST[row.model, row.micro_batch, row.seq_len]
    assert work.arriving_bytes == pytest.approx(found["arrived"], rel=COPIES)
    assert work.leaving_bytes == pytest.approx(found["left"], rel=COPIES)


@pytest.mark.nullgpu
@pytest.mark.parametrize("bound", get_args(Bound))
def test_a_large_model_trains_in_what_two_of_its_layers_take(bound: Bound) -> None:
    """The link's bytes are those of the null GPU's own count, in the second step."""
    rows = json.dumps([astuple(row) for row in LIVE])
    measured = on_null_gpu(PROGRAM.replace("ROOT", repr(str(ROOT))).replace("ROWS", rows), bound=bound)
    for row, found in zip(LIVE, measured, strict=True):
        assert_as_predicted(row, found)


@pytest.mark.slow
def test_models_of_billions_were_measured_as_they_are_predicted() -> None:
    """The committed rows, with those whose states are on a disk, at both bounds."""
    measured = read_rows()
    assert set(measured) == set(ROWS)
    streamed = {row: found for row, found in measured.items() if row.axes.stream}
    assert {(row.model, row.bound) for row in streamed} == {
        (model, bound) for model, *_ in MOST for bound in get_args(Bound)
    }
    for row, found in streamed.items():
        assert_as_predicted(row, found)
    least = min(found["reserved"] for row, found in measured.items() if not row.axes.stream)
    most = max(found["reserved"] for row, found in streamed.items() if row.model == LARGE and row.micro_batch == 1)
    assert least > 2 * most  # DeepSpeed's best, at the same shape
