"""That no process outlives the tests: small suites that leave some, each run by a pytest of its own."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from commands import run, runs, until

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import leftovers
def pytest_configure(config):
    leftovers.watch(config, grace_s=0.5)
"""
START = """
import subprocess, sys, time
from pathlib import Path
def start(name, seconds="1000"):
    command = [sys.executable, "-c", "import sys, time; time.sleep(float(sys.argv[1]))", seconds, name]
    process = subprocess.Popen(command, start_new_session=True)
    Path(name).write_text(str(process.pid))
    return process
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are watched on Linux alone")


def suite(folder: Path, test: str, conftest: str = "") -> list[str]:
    """Write a suite of one file; return the command that runs it."""
    (folder / "conftest.py").write_text(CONFTEST + START + textwrap.dedent(conftest), encoding="utf-8")
    (folder / "test_it.py").write_text("from conftest import *\n" + textwrap.dedent(test), encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(folder)]


def is_left(folder: Path, name: str) -> bool:
    return runs(int((folder / name).read_text()))


LEAVES = """
def test_a():
    start("a-child")
def test_b():
    subprocess.run([sys.executable, "-c", {orphan!r}], check=True)  # its own child is nobody's then
def test_c():
    start("in-time", seconds="0.1")  # about to end by itself
"""
ORPHAN = START + "start('an-orphan')"


@pytest.mark.parametrize("flags", [["-p", "no:xdist"], ["-n2", "--dist", "loadfile"]], ids=["alone", "workers"])
def test_a_test_that_leaves_a_process_fails_and_the_process_is_killed(tmp_path: Path, flags: list[str]) -> None:
    command = suite(tmp_path, LEAVES.format(orphan=ORPHAN))
    done = run([*command, *flags], tmp_path)
    assert done.returncode == 1
    assert "3 passed, 2 errors" in done.stdout  # as tests they did nothing wrong; what ends them did not find it so
    for test, name in (("test_a", "a-child"), ("test_b", "an-orphan")):
        assert f"left running by test_it.py::{test}: " in done.stdout and f"1000 {name} (process" in done.stdout
        assert not is_left(tmp_path, name)
    assert "in-time (process" not in done.stdout


AT_THE_END = """
def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput") is WORKER:
        start("late")
"""


@pytest.mark.parametrize("worker", [True, False])
def test_what_is_left_at_the_end_fails_the_run(tmp_path: Path, worker: bool) -> None:
    """In a worker or in the controller, where no test is running any more."""
    command = suite(tmp_path, "def test_a(): pass", AT_THE_END.replace("WORKER", str(worker)))
    done = run([*command, "-n1"], tmp_path)
    assert done.returncode == 1 and "1 passed" in done.stdout
    assert done.stdout.count("left running when the tests had ended, and killed: ") == 1
    assert "1000 late (process" in done.stdout and not is_left(tmp_path, "late")


def test_a_suite_that_leaves_nothing_passes(tmp_path: Path) -> None:
    command = suite(tmp_path, "def test_a():\n    assert start('ends', seconds='0').wait() == 0\n")
    done = run([*command, "-n1"], tmp_path)
    assert done.returncode == 0 and "left running" not in done.stdout + done.stderr


@pytest.mark.parametrize("flags", [["-p", "no:xdist"], ["-n1"]], ids=["alone", "workers"])
def test_where_pytest_is_killed_its_processes_end(tmp_path: Path, flags: list[str]) -> None:
    command = suite(tmp_path, "def test_a():\n    start('runs').wait()\n")
    pytest_itself = subprocess.Popen([*command, *flags], cwd=tmp_path, stdout=subprocess.DEVNULL)
    until(lambda: (tmp_path / "runs").is_file() and (tmp_path / "runs").read_text() != "", pytest_itself)
    assert is_left(tmp_path, "runs")
    pytest_itself.kill()
    pytest_itself.wait()
    until(lambda: not is_left(tmp_path, "runs"))  # workers and guards as well: `leftovers` looks below this process
