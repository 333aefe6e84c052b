"""Break the code in many small ways and see that a test fails each time. In: config.toml. Out: `.mutants/`, a table.

    make mutants                                     all modules; goes on where it was interrupted
    make mutants MODULE=bigqa/tasks SAMPLE=30        those whose path begins so, more places of each
    make mutants AGAIN=1                             also what survived before: after new tests

Works on a copy of the checkout, so that an interrupted run leaves no broken file behind. What was tried is kept in
cosmic-ray's own database, `.mutants/session.sqlite`, which its tools read.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lines
import toml
from cosmic_ray.mutating import use_mutation
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkItem, WorkResult
from sample import operator, sample
from table import write_table
from trial import in_child, warm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KEPT = ROOT / ".mutants"
TREE = KEPT / "tree"


def main() -> int:
    """Map, sample, try, and write the table."""
    asked = _arguments()
    config = toml.load(HERE / "config.toml")
    trials = config["trials"] | ({"sample": asked.sample} if asked.sample else {})
    KEPT.mkdir(exist_ok=True)
    _copy()
    os.environ.setdefault("BIGQA_SHARED", str(ROOT.parent / "shared"))
    os.chdir(TREE)
    with use_db(str(KEPT / "session.sqlite"), WorkDB.Mode.create) as database:
        wanted = _wanted(config, trials, asked.module)
        known = {item.job_id for item in database.work_items}
        database.add_work_items(item for item in wanted.values() if item.job_id not in known)
        if not asked.table:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended on the way out
            warm(TREE)
            known = _lines(trials)
            if asked.map:
                return 0
            _try_all(database, wanted, known, trials, again=asked.again)
        return write_table(database, wanted, HERE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--module", default="", help="only modules whose path begins so")
    parser.add_argument("--sample", type=int, default=0, help="places of a module that are broken")
    parser.add_argument("--again", action="store_true", help="try once more what survived")
    parser.add_argument("--map", action="store_true", help="only find which tests run which lines")
    parser.add_argument("--table", action="store_true", help="write the table of what is known, and try nothing")
    return parser.parse_args()


def _copy() -> None:
    """Make the copy as the checkout is now."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (TREE / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, TREE / name)


def _wanted(config: dict, trials: dict, prefix: str) -> dict[str, WorkItem]:
    """Return the mutants of this run, by their names."""
    part = config["cosmic-ray"]
    files = [file for path in part["module-path"] for file in sorted([TREE / path, *(TREE / path).rglob("*.py")])]
    found = {}
    for file in files:
        module = str(file.relative_to(TREE))
        if file.is_file() and module.startswith(prefix):
            items = sample(TREE, module, part["operators"], config["left-out"], trials["seed"], trials["sample"])
            found |= {item.job_id: item for item in items}
    return found


def _lines(trials: dict) -> lines.Lines:
    found, kept = lines.Lines(), KEPT / "lines"
    kept.mkdir(exist_ok=True)
    for test in sorted((TREE / "tests").glob("test_*.py")):
        if test.stem.removeprefix("test_") in trials["other_tests"]:
            continue
        begun = time.monotonic()
        one = lines.mapped(TREE, test.relative_to(TREE), kept, slow_s=trials["slow_s"], memory_gib=trials["memory_gib"])
        found.add(one)
        if time.monotonic() - begun > 1:
            print(f"{test.name}: {len(one['seconds'])} tests mapped, {time.monotonic() - begun:.0f} s", flush=True)
    return found


def _try_all(database: WorkDB, wanted: dict[str, WorkItem], known: lines.Lines, trials: dict, *, again: bool) -> None:
    done = {job: result for job, result in database.results if not (again and not result.is_killed)}
    left = [item for job, item in wanted.items() if job not in done]
    in_child(_compile, KEPT / "trial.log", limit_s=300, memory_gib=trials["memory_gib"])
    for number, item in enumerate(left, 1):
        begun = time.monotonic()
        result = _try(item, known, trials)
        database.set_result(item.job_id, result)
        place = f"{item.mutations[0].module_path}:{item.mutations[0].start_pos[0]}"
        name = item.mutations[0].operator_name
        outcome = result.test_outcome.value if result.test_outcome else result.worker_outcome.value
        print(
            f"{number}/{len(left)} {outcome} {time.monotonic() - begun:.1f} s {item.job_id} {place} {name}", flush=True
        )


def _compile() -> int:
    """Leave bytecode of the unbroken code and of the tests for all children, which write none themselves."""
    import pytest

    sys.dont_write_bytecode = False
    return int(pytest.main(["tests", "-q", "-n0", "--collect-only", "-p", "no:cacheprovider"]))


def _try(item: WorkItem, known: lines.Lines, trials: dict) -> WorkResult:
    spec = item.mutations[0]
    tests = _affordable(known, known.reaching(TREE, str(spec.module_path), spec.start_pos[0]), trials["tests_s"])
    log = KEPT / "trial.log"
    status: int | None = 0
    times = (TREE / spec.module_path).stat()
    with use_mutation(TREE / spec.module_path, operator(spec.operator_name), spec.occurrence) as (before, after):
        if tests:
            limit_s = 30 + 4 * sum(known.seconds[test] for test in tests)
            status = in_child(lambda: _session(tests, limit_s), log, limit_s=limit_s, memory_gib=trials["memory_gib"])
    os.utime(TREE / spec.module_path, ns=(times.st_atime_ns, times.st_mtime_ns))  # its bytecode is good again
    killed = status != 0
    words = log.read_text(encoding="utf-8", errors="replace")[-4000:] if tests else "no test runs this line"
    return WorkResult(
        worker_outcome=WorkerOutcome.NORMAL if tests else WorkerOutcome.NO_TEST,
        test_outcome=TestOutcome.KILLED if killed else TestOutcome.SURVIVED,
        output=f"{len(tests)} tests, status {status}\n{words}",
        diff=_diff(before, after or "", str(spec.module_path)),
    )


def _affordable(known: lines.Lines, tests: list[str], seconds: float) -> list[str]:
    """Return the quickest tests that fit, at least one."""
    spent, found = 0.0, []
    for test in tests:
        spent += known.seconds[test]
        if found and spent > seconds:
            break
        found.append(test)
    return found


def _session(tests: list[str], limit_s: float) -> int:
    import pytest

    status = int(
        pytest.main([*tests, "-q", "-x", "-n0", "-p", "no:cacheprovider", f"--timeout={limit_s}", "--tb=short"])
    )
    # A test that is no more where it was is no test that failed: 4 is pytest's word for what it could not understand.
    return 0 if status == 5 else status


def _diff(before: str, after: str, module: str) -> str:
    import difflib

    return "\n".join(difflib.unified_diff(before.split("\n"), after.split("\n"), module, module, lineterm="", n=1))


if __name__ == "__main__":
    sys.exit(main())
