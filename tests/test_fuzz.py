"""Whatever is in a file or behind an option, bigqa takes it or says in one line what is wrong; see `fuzzing`.

By default each kind gets so many inputs as its cost allows, the same each time; `make slow` draws 10,000 others.
`corpus/` holds those that were not told in a line once.
"""

import json
import shutil
from pathlib import Path

import fuzz_data
import fuzz_models
import fuzz_runs
import pytest
from fuzzing import Spoiling, Tally, tried
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).parent / "corpus"
SHARES = {
    "data": 150, "bytes": 120, "answers": 40, "settings": 60, "plan": 50, "checkpoint": 40, "config": 60,
    "tokenizer": 40, "weights": 30, "notes": 20, "report": 20, "options": 60,
}  # fmt: skip
"""Inputs of each kind by default: 690, in some ten seconds."""
MORE = 15
"""Times as many in `make slow`."""
KINDS = fuzz_data.KINDS | fuzz_models.KINDS | fuzz_runs.KINDS
QUIET = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


def _try(
    kind: str, which: int, drawn: list[Spoiling], folder: Path, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Spoilings also serve as damages: what is done has other names there.
    tried(KINDS[kind][0](which, drawn, folder), folder, tally)


def _fuzz(kind: str, count: int, folder: Path, monkeypatch: pytest.MonkeyPatch, *, always: bool) -> Tally:
    tally = Tally()

    @settings(max_examples=count, deadline=None, database=None, derandomize=always, suppress_health_check=QUIET)
    @given(st.integers(0, 10**4), KINDS[kind][1])
    def run(which: int, drawn: list[Spoiling]) -> None:
        _try(kind, which, drawn, folder, tally, monkeypatch)

    run()
    return tally


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_taken_or_told_in_one_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = _fuzz(kind, SHARES[kind], tmp_path / "case", monkeypatch, always=True)
    assert tally.refused >= SHARES[kind] // 5 or kind == "options"  # it is bad input


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_of_it(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tally = _fuzz(kind, SHARES[kind] * MORE, tmp_path / "case", monkeypatch, always=False)
    print(f"{kind}: {tally.refused} refused, {tally.taken} taken")


def test_there_are_enough() -> None:
    assert sum(SHARES.values()) >= 500 and sum(SHARES.values()) * MORE >= 10_000


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.json")), ids=lambda file: file.stem)
def test_what_was_a_fault_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = json.loads(file.read_text(encoding="utf-8"))
    drawn = [tuple(one) for one in case["drawn"]]
    _try(case["kind"], case["which"], drawn, tmp_path / "case", Tally(), monkeypatch)
