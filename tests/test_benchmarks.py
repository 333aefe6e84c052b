"""The benchmarks' own arithmetic and their sessions: stages that fail, rows that fail, tables that say so."""

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
from commands import runs, until

from benchmarks import compare, gpu_session, growth, labels, peers
from benchmarks.common import speeds, write_report
from benchmarks.gpu_session import OUT_OF_TIME, Stage
from bigqa.files import write_json

SCRIPT = """
import sys
import ast
import importlib
from pathlib import Path
file, code = sys.argv[1:]
with Path(file).open("a") as runs:
    runs.write("x")
sys.exit(int(code))
"""
HANGS = """
import subprocess, sys, time
import ast
import importlib
from pathlib import Path
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2000)"])
Path("new").write_text(str(other.pid))
Path("new").rename("pid")
time.sleep(2000)
"""


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes stages that count their runs and end with a code."""
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    (tmp_path / "stage.py").write_text(SCRIPT, encoding="utf-8")

    def make(**codes: int) -> list[Stage]:
        return [Stage(name, ("stage", str(tmp_path / name), str(code))) for name, code in codes.items()]

    return make


def runs_of(folder: Path, name: str) -> int:
    file = folder / name
    return len(file.read_text()) if file.is_file() else 0


def test_a_stage_that_failed_is_tried_again_and_one_that_is_done_is_not(stages: Any, tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "session.json"
    assert gpu_session.run(stages(bad=3, good=0, late=OUT_OF_TIME), file, 1000, {}, said.append) == {
        "bad": "failed with exit code 3",
        "late": "out of time",
    }
    assert gpu_session.run(stages(bad=0, good=0, late=0), file, 1000, {}, said.append) == {}
    assert [runs_of(tmp_path, name) for name in ("bad", "good", "late")] == [2, 1, 2]
    assert [line.split(":")[0] for line in said] == ["bad", "good", "late", "late", "bad"]  # what failed comes last


def test_a_session_without_time_begins_nothing(stages: Any, tmp_path: Path) -> None:
    missing = gpu_session.run(stages(one=0), tmp_path / "session.json", 1.0, {}, lambda _: None)
    assert list(missing) == ["one"] and runs_of(tmp_path, "one") == 0


def test_what_a_stage_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_session, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_session, "LEAST_S", 0)
    (tmp_path / "stage.py").write_text(HANGS, encoding="utf-8")
    for budget_s in (2.0, 20.0, 200.0):  # as much as it takes here until it has started one
        missing = gpu_session.run([Stage("hangs", ("stage",))], tmp_path / "session.json", budget_s, {}, lambda _: None)
        assert missing == {"hangs": "out of time"}
        if (tmp_path / "pid").is_file():
            break
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not runs(pid))  # a kill takes effect when the kernel comes to it


def test_the_comparison_says_which_row_failed(tmp_path: Path) -> None:
    """Figures worked by hand: 4 and 8 samples/s; 2 x 10^9 FLOP/s of a rate of 10^12 are 0%."""
    run = {"samples_per_s": 4.0, "tokens_per_s": 400.0, "peak_bytes": 2**31}
    fast = {"samples_per_s": 8.0, "tokens_per_s": 800.0, "peak_bytes": 2**30}
    case = {"model": "tiny", "name": "small-512"}
    rows: dict[str, list[dict[str, float]]] = {"published loop": [run], "Trainer": [], "bigqa": [fast]}
    report = {"case": case, "rows": rows, "failed": {"Trainer": "exit code -9"}, "matrix_flops_per_s": 1e12}
    write_json(tmp_path / "small-512.json", report)
    loop, trainer, bigqa = compare.table(tmp_path).splitlines()[2:]
    assert loop.startswith("| small-512 | published loop | 4 (4-4) | 1.0 x | 400 | 2.0 |")
    assert trainer == "| small-512 | Trainer | failed: exit code -9 | - | - | - | - |"
    assert bigqa.startswith("| small-512 | bigqa | 8 (8-8) | 2.0 x | 800 | 1.0 |")


def test_a_row_that_failed_once_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run_row(row: str, *_: Any) -> dict[str, Any]:
        asked.append(row)
        return {"error": "killed"} if row == "published loop" else {"samples_per_s": 1.0}

    monkeypatch.setattr(compare, "run_row", run_row)
    monkeypatch.setattr(compare, "matrix_rate", lambda device: 1e12)
    found = compare.measure("small-512", type("Options", (), {"turns": 3})())  # type: ignore[arg-type]
    assert asked.count("published loop") == 1 and asked.count("bigqa") == 3
    assert found["failed"] == {"published loop": "killed"} and len(found["rows"]["bigqa"]) == 3
    assert found["cpu"]["cores"] and "commit" in found


def test_steps_count_after_the_warm_up() -> None:
    """15 s: the first step in any case, then as many as it takes; the last one always counts."""
    assert speeds([20.0, 1.0, 2.0], [4, 4, 4], [40, 40, 40]) == {"samples_per_s": 3.0, "tokens_per_s": 80 / 3}
    assert speeds([1.0] * 4, [4] * 4, [40] * 4) == {"samples_per_s": 4.0, "tokens_per_s": 40.0}


def test_growth_is_told_beside_the_smallest_data_set(tmp_path: Path) -> None:
    built = {"seconds": 0.5, "windows": 1000, "risen_bytes": 0}
    train = {"samples_per_s": 100.0, "peak_bytes": 2**29, "anonymous_bytes": 2**28}
    more = [built | {"windows": 2000, "risen_bytes": 2**21}], [train | {"samples_per_s": 95.0, "peak_bytes": 2**30}]
    sizes = {"1000": {"build": [built], "train": [train]}, "2000": {"build": more[0], "train": more[1]}}
    write_report(tmp_path / "growth.json", {}, {"sizes": sizes})
    first, second = growth.table(tmp_path).splitlines()[2:]
    assert first == "| 1,000 | 100 (100-100) | 100.0% | 512 | 256 | 0.50 | 2,000 | 0 |"
    assert second == "| 2,000 | 95 (95-95) | 95.0% | 1,024 | 256 | 0.50 | 4,000 | 2 |"


def test_benchmarks_import_what_is_there() -> None:
    """Nobody runs most of them for weeks: names that have moved are found here."""
    for file in sorted(Path(compare.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("bigqa", "benchmarks"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    folders = [Path(one) for one in getattr(module, "__path__", [])]
                    inside = any((folder / f"{alias.name}.py").is_file() for folder in folders)
                    known = hasattr(module, alias.name) or inside
                    assert known, f"{file.name}: {node.module} has no {alias.name}"


def test_the_peers_are_compared_turn_by_turn(tmp_path: Path) -> None:
    """By hand: 300 to 100 and 500 to 250 tokens in a second are 3.0 and 2.0 times as many."""
    rows = {
        row: [{peers.SHOWN: speed, "peak_bytes": peak} for speed, peak in runs]
        for row, runs in {"Trainer": [(100, 2**31), (250, 2**30)], "bigqa": [(300, 2**29), (500, 2**29)]}.items()
    }
    write_json(tmp_path / "comments.json", {"rows": rows})
    trainer, bigqa = peers.table(tmp_path).splitlines()[2:]
    assert trainer == "| comments | Trainer | 175 (100-250) | 1.00 (1.00-1.00) | 2.00 |"
    assert bigqa == "| comments | bigqa | 400 (300-500) | 2.50 (2.00-3.00) | 0.50 |"


def test_every_fifth_question_of_an_article_is_held_out(tmp_path: Path) -> None:
    articles = [
        {"title": title, "paragraphs": [{"qas": [{"question": f"{title}{n}?"} for n in range(6)]}]} for title in "ab"
    ]
    write_json(tmp_path / "data.json", {"data": articles})
    labels.write_questions(tmp_path / "data.json", tmp_path)
    assert (tmp_path / "dev.tsv").read_text().splitlines() == ["text\ttitle", *["a0?\ta", "a5?\ta", "b0?\tb", "b5?\tb"]]
    assert len((tmp_path / "train.tsv").read_text().splitlines()) == 9
