"""Which cells of the null GPU there are to be, and the table of how near predictions are to them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.null_cells import CARDS, FOLDER, MODELS, WHAT, wanted
from benchmarks.null_grade import beyond_bars
from bigqa.models.sources import load_config, resolve
from bigqa.plan.planner import estimator_for
from bigqa.strategy import Strategy
from bigqa.table.command import null_gpu_part
from bigqa.table.null_gpu import ALONE, error_of, null_markdown, predicted, read_counted, sample_of


def test_cells_are_drawn_evenly_and_always_alike() -> None:
    drawn = list(wanted(MODELS, CARDS, []))
    assert drawn == list(wanted(MODELS, CARDS, [])) and len({cell.key for cell in drawn}) == len(drawn) >= 1500
    alone = [cell for cell in drawn if cell.gpus == 1 and not cell.axes.needs_deepspeed]
    by_row = Counter((cell.model, cell.strategy) for cell in alone)
    assert set(by_row.values()) == {7, 8, 9}  # fewer than nine where the T4 has no bf16
    by_kind = Counter((cell.micro_batch, cell.seq_len, cell.accumulating) for cell in alone)
    assert max(by_kind.values()) < 1.5 * min(by_kind.values())
    assert {cell.card for cell in drawn if cell.strategy == "stochastic"} == set(CARDS) - {"T4"}


def _recomputes(axes: Strategy) -> bool:
    return axes.recompute == "full" and not axes.activation_offload and not axes.needs_deepspeed


def test_the_table_is_of_cells_evenly_drawn() -> None:
    known = read_counted(FOLDER)
    drawn = sample_of(known, 9)
    assert len(drawn) == 9 and len({cell.name for cell in drawn}) == 9
    few = [cell for cell in known if cell.model == "enliple-small" and _recomputes(cell.axes)][:2]
    estimator = estimator_for(load_config(resolve("enliple-small")))
    found = [error_of(cell, predicted(estimator, cell)) for cell in few]
    assert all(abs(error.of["allocated"]) < ALONE["allocated"][1] for error in found)
    near = [replace(error, of={"allocated": 0.0005, "reserved": 0.001}) for error in found]
    short = replace(found[0], of={"allocated": -0.0011, "reserved": 0.0})
    assert beyond_bars([*near, short]) == [f"{short.cell.name}: allocated -0.11%"]
    table = null_markdown(known, [*near, short])
    assert WHAT in table and f"3 of {len(known)} cells" in table
    assert [line.split("|")[-2].strip() for line in table.splitlines() if "without DeepSpeed" in line] == [
        "FAIL",
        "pass",
    ]


def test_the_part_of_the_table_is_predicted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FOLDER / "enliple-small.jsonl"
    head, first = file.read_text(encoding="utf-8").splitlines()[:2]
    away = json.dumps(json.loads(first) | {"reserved": 1})
    here = tmp_path / "benchmarks" / "runs" / "null-gpu" / file.name
    here.parent.mkdir(parents=True)
    here.write_text("\n".join((head, first, away)) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGQA_WORKERS", "1")
    lines = null_gpu_part().splitlines()
    assert "2 of 2 cells of 1 models, evenly drawn." in lines
    marks = {line.split("|")[2].strip(): line.split("|")[-2].strip() for line in lines if "without DeepSpeed" in line}
    assert marks == {"allocated": "pass", "reserved": "FAIL"}
