"""Runs that are broken at random moments: those that are committed, and a sample that is broken here.

`python -m benchmarks.torture` goes on with them; `--only N` runs one of them again.
"""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.torture.cases import KINDS, drawn, pairs, sampled
from benchmarks.torture.damage import WAYS, damage
from benchmarks.torture.judge import not_once, windows_of
from benchmarks.torture.setups import Setup, band_of
from bigqa.table.torture import FILE, pairs_of, read_faults, torture_markdown

ROOT = Path(__file__).parents[1]
SAMPLE = 30


def test_the_committed_faults_came_to_what_they_must() -> None:
    faults = read_faults(ROOT / FILE)
    assert [fault for fault in faults if fault["outcome"] == "wrong"] == []
    numbers = [(fault["seed"], fault["number"]) for fault in faults]
    assert len(set(numbers)) == len(numbers)
    for fault in faults:
        case = drawn(fault["seed"], fault["number"])
        assert (case.kind, case.first.key, case.then.key) == (fault["kind"], fault["first"], fault["then"])


def test_a_sample_of_faults(tmp_path: Path) -> None:
    """One process imports all, and forks; each kind that needs no root and no torch of CUDA's is in it."""
    out = tmp_path / "torture.jsonl"
    words = ["--sample", "--cases", str(SAMPLE), "--out", str(out), "--quiet"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.torture", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = read_faults(out, met=False)
    assert len(found) == SAMPLE
    assert [fault for fault in found if fault["outcome"] == "wrong"] == []
    wanted = {kind.name for kind in KINDS.values() if not kind.needs}
    assert {fault["kind"] for fault in found} == wanted
    assert len([fault for fault in found if fault["met"]]) > SAMPLE * 0.8


def test_a_seed_gives_the_same_cases_everywhere() -> None:
    assert drawn(3, 14) == drawn(3, 14) != drawn(4, 14)
    cases = [drawn(25, number) for number in range(1150)]
    assert {case.kind for case in cases} == set(KINDS)
    assert len({(case.first, case.then) for case in cases}) >= 60
    assert all(case.first.axes.adapters == case.then.axes.adapters for case in cases)
    assert all((case.kind in ("device-memory",)) <= case.on_gpu for case in cases)
    assert {case.first.processes for case in cases} == {1, 2, 4}
    assert len(pairs(25, on_gpu=False)) == len(set(pairs(25, on_gpu=False)))


def test_the_sample_has_every_kind_that_needs_nothing() -> None:
    assert {sampled(1, number).kind for number in range(SAMPLE)} == {k.name for k in KINDS.values() if not k.needs}


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_damage(tmp_path: Path, seed: int) -> None:
    kept: dict[str, bytes] = {}
    for folder, content in (("one", b"weights" * 99), ("other", b"others!" * 99)):
        for name in ("a/x", "y"):
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            kept[f"{folder}/{name}"] = content
    said = damage(tmp_path / "one", random.Random(seed), tmp_path / "other")
    assert said.split()[0] in WAYS
    changed = [name for name, content in kept.items() if _read(tmp_path / name) != content]
    assert changed == [said.split()[1]]


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def fact(what: str, step: int, rank: int = 0, *windows: int) -> dict[str, Any]:
    return {"what": what, "step": step, "rank": rank} | ({"windows": list(windows)} if what == "step" else {})


def test_what_is_done_anew_takes_the_place_of_what_was_lost() -> None:
    first = [fact("first", 0), fact("step", 0, 0, 1, 2), fact("step", 1, 0, 3), fact("step", 2, 0, 4)]
    again = [fact("first", 1), fact("step", 1, 0, 0), fact("step", 1, 1, 3)]
    assert windows_of(first + again) == {0: [1, 2], 1: [0, 3]}
    epochs = [{"step": 1, "epoch": 0.5}, {"step": 2, "epoch": 1.0}]
    assert not_once({0: [1, 2], 1: [0, 3]}, epochs) == []
    assert not_once({0: [1, 2], 1: [2, 3]}, epochs) == ["epoch 1"]


def test_a_band_is_that_of_both() -> None:
    plain, low, released = Setup("plain", "fp32"), Setup("plain", "bf16"), Setup("cpu-least", "bf16")
    assert (band_of(plain, plain), band_of(plain, low), band_of(low, released)) == (1e-5, 0.01, None)


def test_the_table_counts_outcomes(tmp_path: Path) -> None:
    lines = [
        {"kind": "kill-all", "first": "a", "then": then, "outcome": outcome, "met": met, "seed": 1, "number": number}
        for number, (then, outcome, met) in enumerate(
            [("a", "survived", True), ("b", "said", True), ("b", "survived", True), ("c", "survived", False)]
        )
    ]
    file = tmp_path / "faults.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert len(pairs_of(read_faults(file))) == 2 and len(read_faults(file, met=False)) == 4
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in torture_markdown(read_faults(file)).splitlines()]
    assert rows[2:] == [["kill-all", "3", "2", "2", "1", "0"], ["1 kinds", "3", "2", "2", "1", "0"]]
