"""What a command prints to: narrow, of another encoding, closed at the start or in the middle; where it caches."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import rich.box
from rich.console import Console
from rich.table import Table

from bigqa import console, files, streams
from bigqa.errors import LONGEST_LINE, BigqaError
from bigqa.plan.candidates import Candidate
from bigqa.show.probe import reasons

# A command that prints what bigqa prints, without the seconds that it takes to import torch.
PRINTS = """
import sys, time
from bigqa.console import command, say, tell
def app(**_):
    say("한글 · 2 × 3…")
    tell("여기 —")
    if len(sys.argv) > 1:
        sys.stdin.read()  # until the reader is gone
        for _ in range(3):
            say("x" * 100_000)
            tell("x" * 100_000)
        with open(sys.argv[1], "w") as file:
            file.write("done")
            return file.fileno() if sys.argv[2:] else 0
command(app)
"""


def start(*words: str, **more: object) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", PRINTS, *words], **more)  # type: ignore[call-overload,no-any-return]


def test_signs_that_an_encoding_lacks_are_spelled_out() -> None:
    made = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    out, err = made.communicate()
    assert made.returncode == 0, err
    assert out.decode("ascii").rstrip() == r"\ud55c\uae00 - 2 x 3..."
    assert err.decode("ascii").rstrip() == r"\uc5ec\uae30 -"


def test_a_reader_that_goes_away_ends_nothing(tmp_path: Path) -> None:
    (ours, theirs), (ours_2, theirs_2) = os.pipe(), os.pipe()
    made = start(str(tmp_path / "end"), stdin=subprocess.PIPE, stdout=theirs, stderr=theirs_2)
    for number in (ours, ours_2, theirs, theirs_2):
        os.close(number)
    made.communicate(b"")
    assert made.returncode == 0 and (tmp_path / "end").read_text() == "done"


def test_streams_that_are_closed_from_the_start_are_no_files_numbers(tmp_path: Path) -> None:
    words = f'exec "{sys.executable}" -c "$CODE" "{tmp_path / "end"}" number <&- >&- 2>&-'
    made = subprocess.run(["sh", "-c", words], env=os.environ | {"CODE": PRINTS}, check=False)
    assert made.returncode > 2 and (tmp_path / "end").read_text() == "done"


def test_a_full_disk_behind_a_redirection_is_told() -> None:
    with open("/dev/full", "wb") as full:
        made = start(stdout=full, stderr=subprocess.PIPE)
        _, err = made.communicate()
    assert made.returncode == 1 and err.decode().count("No space left") == 1


def shown(table: Table, width: int) -> list[str]:
    file = io.StringIO()
    console.show(table, Console(width=width, file=file))
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def two_rows() -> Table:
    table = Table("strategy", "peak", "verdict", title="a title", box=None)
    table.add_row("zero3-offload-recompute", "11.5 GiB / 14.2 GiB", "fits")
    table.add_row("cpu", "", "too large")
    return table


def test_a_table_that_is_too_wide_is_lines() -> None:
    assert any(re.search(r"zero3-offload-recompute +11.5 GiB / 14.2 GiB +fits", line) for line in shown(two_rows(), 80))
    assert shown(two_rows(), 32) == [
        "a title",
        "zero3-offload-recompute",
        "  peak 11.5 GiB / 14.2 GiB,",
        "  verdict fits",
        "cpu",
        "  verdict too large",
    ]


def test_columns_that_can_be_spared_go_before_it_comes_to_lines() -> None:
    def widths(width: int) -> list[str]:
        file = io.StringIO()
        console.show(two_rows(), Console(width=width, file=file), ("verdict", "peak"))
        return [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]

    assert widths(80)[-1].split() == ["cpu", "too", "large"]
    without_verdict, without_both = widths(45), widths(25)
    assert without_verdict[1].split() == ["strategy", "peak"] and "too large" not in " ".join(without_verdict)
    assert without_verdict[-1] == "Left out, for a wider terminal or a pipe: verdict."
    assert without_both[1:4] == ["strategy", "zero3-offload-recompute", "cpu"]
    assert widths(10)[:2] == ["a title", "zero3-offl"]


@pytest.mark.parametrize("box", [None, rich.box.SIMPLE_HEAD])
@pytest.mark.parametrize("padding", [(0, 1), (0, 1, 0, 0)])
@pytest.mark.parametrize("pad_edge", [True, False])
def test_the_width_of_a_table_is_its_own(box: Any, padding: Any, pad_edge: bool) -> None:
    table = Table("strategy", "batch", "verdict", box=box, padding=padding, pad_edge=pad_edge)
    table.add_row("recompute-한글", "4 x 4", "not possible")
    wide = Console(width=200, file=io.StringIO())
    assert console._columns_of(table) == wide.measure(table).maximum


def test_strategies_share_a_line_for_their_reason() -> None:
    def candidate(name: str, verdict: str, reason: str) -> Candidate:
        return Candidate.model_construct(name=name, verdict=verdict, reason=reason)

    found = [candidate("a", "fits", ""), candidate("b", "not possible", "no X"), candidate("c", "too large", "1 GiB")]
    assert reasons([*found, candidate("d", "not possible", "no X")]) == [
        "b, d: not possible: no X",
        "c: too large: 1 GiB",
    ]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Have no cache named, and a folder of this test for temporary ones."""
    for name in ("BIGQA_CACHE", "XDG_CACHE_HOME", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    files._instead.cache_clear()
    return tmp_path / f"bigqa-{os.getuid()}"


def test_without_a_home_the_cache_is_a_temporary_one(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files.os.path, "expanduser", lambda path: path)
    assert files.cache_folder() == files.cache_folder() == cache
    assert capsys.readouterr().err.count("BIGQA_CACHE") == 1
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_is_no_folder_is_said(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "file" / "cache"))
    assert files.cache_folder() == cache
    assert f"{tmp_path / 'file'} is no folder" in capsys.readouterr().err


def test_a_read_only_cache_and_a_stranger_s_folder_are_left_alone(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache.symlink_to(tmp_path)
    monkeypatch.setattr(files.os, "access", lambda place, mode: Path(place) != tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "kept"))
    assert files.cache_folder().parent == tmp_path and files.cache_folder() not in (cache, tmp_path / "kept")


def test_what_is_wrapped_is_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as sink:
        monkeypatch.setattr(sys, "stdout", sink)
        streams.secure()
        first = sys.stdout
        streams.secure()
        assert first is sys.stdout is not sink


def test_an_error_is_one_line_whatever_value_it_repeats() -> None:
    """A long value is cut in its middle, what to do stays, and nothing steers the terminal."""
    value = "x" * 3000
    told = str(BigqaError(f"no model {value}\nhere; name a folder"))
    assert told.startswith("no model xxx") and told.endswith("xxx here; name a folder") and "x...x" in told
    many = str(BigqaError(f"rows: {'word ' * 2000}; leave them out"))
    assert len(many) == LONGEST_LINE and many.endswith("word ; leave them out")
    assert str(BigqaError("id '\x1b[2Ja\u200b가\ud800'")) == r"id '\x1b[2Ja\u200b가\ud800'"


LEAVES = """
import atexit, os, sys, threading, time
from bigqa import console
atexit.register(lambda: os.write(1, b"registered "))
class Kept:
    def __del__(self):
        os.write(1, b"taken apart ")
kept = Kept()
def app(**_):
    threading.Thread(target=lambda: (time.sleep(0.1), os.write(1, b"thread "))).start()
    print("said ", end="")
    return 3
console.as_program(lambda: console.command(app))
"""


def test_a_command_ends_in_order_and_takes_nothing_apart() -> None:
    """Threads are waited for, what was registered for the end is done; torch's modules are left to the kernel."""
    done = subprocess.run([sys.executable, "-c", LEAVES], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "said thread registered ", "")
