"""Which tests go through which lines, in this process or in one that they start. In: test files. Out: `Lines`.

Each test file is run once under coverage, with the test as the context, and again when its text changes. Lines are
known by function and text, so that they are found again when others above them come and go.
"""

import ast
import hashlib
import json
import os
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from trial import in_child

RC = """[run]
source = bigqa
parallel = true
patch = _exit
data_file = {data}
context = ${{MUTANTS_CONTEXT-}}
"""
"""Coverage's configuration, of a process that a test starts as well: the variable says which test that is."""
FIXTURE = "fixture "


class Lines:
    """What all mapped test files know together."""

    def __init__(self) -> None:
        self.tests: dict[str, set[str]] = defaultdict(set)
        """Of a line, by `_key`."""
        self.seconds: dict[str, float] = {}
        """Of a test that passes."""

    def add(self, found: dict) -> None:
        """Take in what one test file showed."""
        self.seconds |= found["seconds"]
        for key, tests in found["lines"].items():
            self.tests[key].update(tests)

    def reaching(self, tree: Path, module: str, line: int) -> list[str]:
        """Return the tests that run a statement, the quickest first; of one run by imports those of all its module."""
        first, last, function = _statement(tree / module, line)
        text = (tree / module).read_text(encoding="utf-8").splitlines()
        if function:
            keys = {_key(module, function, text[number - 1]) for number in range(first, last + 1)}
            found = set().union(*(self.tests.get(key, ()) for key in keys))
        else:
            found = set().union(*(tests for key, tests in self.tests.items() if key.startswith(f"{module}\t")))
        return sorted(found & self.seconds.keys(), key=lambda test: (self.seconds[test], test))


def mapped(tree: Path, test: Path, kept: Path, *, slow_s: float, memory_gib: int) -> dict:
    """Return what one test file goes through; run it unless that is known."""
    digest = hashlib.sha256((tree / test).read_bytes()).hexdigest()[:12]
    file = kept / f"{test.stem}-{digest}.json"
    if not file.is_file():
        file.write_text(json.dumps(_run(tree, test, kept, slow_s, memory_gib)), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def _run(tree: Path, test: Path, kept: Path, slow_s: float, memory_gib: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "found.json"

        def session() -> int:
            return _under_coverage(tree, test, Path(folder), slow_s)

        status = in_child(session, kept / f"{test.stem}.log", limit_s=1800, memory_gib=memory_gib)
        if not made.is_file():
            raise SystemExit(f"{test}: no lines found, status {status}; see {kept / test.stem}.log")
        return json.loads(made.read_text(encoding="utf-8"))


def _under_coverage(tree: Path, test: Path, folder: Path, slow_s: float) -> int:
    import coverage
    import pytest

    rc = folder / "rc"
    rc.write_text(RC.format(data=folder / "data"), encoding="utf-8")
    os.environ["COVERAGE_PROCESS_START"] = str(rc)
    measured = coverage.Coverage(config_file=str(rc))
    measured.start()
    watch = Watch(measured)
    words = [str(test), "-q", "-n0", "-p", "no:cacheprovider", f"--timeout={slow_s}"]
    status = int(pytest.main(words, plugins=[watch]))
    measured.stop()
    measured.save()
    measured.combine()
    found = {"seconds": watch.seconds, "lines": _tests_of_lines(tree, measured.get_data(), watch.users)}
    (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    return status


class Watch:
    """A plugin of pytest: tells coverage which test runs, or which fixture that several share."""

    def __init__(self, measured) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = defaultdict(float)
        """Of each test that passed."""
        self.users: dict[str, list[str]] = defaultdict(list)
        """Of each fixture."""
        self._failed: set[str] = set()

    def pytest_collection_modifyitems(self, items):
        """See which test uses which fixture."""
        for item in items:
            for name in getattr(item, "fixturenames", ()):
                self.users[FIXTURE + name].append(item.nodeid)

    def pytest_runtest_logstart(self, nodeid, location):
        """A test begins."""
        self._switch(nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef, request):
        """What a shared fixture goes through is gone through for all that use it, not for the first alone."""
        if fixturedef.scope == "function":
            return (yield)
        self._switch(FIXTURE + fixturedef.argname)
        try:
            return (yield)
        finally:
            self._switch(os.environ["MUTANTS_TEST"])

    def pytest_runtest_logreport(self, report):
        """Add up a test's time, and leave out those that do not pass."""
        if not report.passed:
            self._failed.add(report.nodeid)
        if report.nodeid in self._failed:
            self.seconds.pop(report.nodeid, None)
        else:
            self.seconds[report.nodeid] += report.duration

    def _switch(self, context: str) -> None:
        self.measured.switch_context(context)
        os.environ["MUTANTS_CONTEXT"] = context
        if not context.startswith(FIXTURE):
            os.environ["MUTANTS_TEST"] = context


def _tests_of_lines(tree: Path, data, users: dict[str, list[str]]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for file in data.measured_files():
        path = Path(file)
        if not path.is_relative_to(tree):
            continue
        module, text = str(path.relative_to(tree)), path.read_text(encoding="utf-8").splitlines()
        for line, contexts in data.contexts_by_lineno(file).items():
            _, _, function = _statement(path, line)
            if function and any(contexts):
                for context in filter(None, contexts):
                    found[_key(module, function, text[line - 1])].update(users.get(context, [context]))
    return {key: sorted(tests) for key, tests in found.items()}


def _key(module: str, function: str, text: str) -> str:
    return f"{module}\t{function}\t{text.strip()}"


def _statement(path: Path, line: int) -> tuple[int, int, str]:
    """Return the first and last line of the statement at a line, and its function; of a block only its head."""
    found = [one for one in _statements(path, path.stat().st_mtime_ns) if one[0] <= line <= one[1]]
    return max(found, default=(line, line, ""))


@cache
def _statements(path: Path, _changed: int) -> list[tuple[int, int, str]]:
    found: list[tuple[int, int, str]] = []

    def go(node: ast.AST, function: str, name: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner, full = function, name
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case) and hasattr(child, "lineno"):
                body = getattr(child, "body", None)
                last = body[0].lineno - 1 if body and isinstance(body, list) else child.end_lineno or child.lineno
                found.append((child.lineno, max(child.lineno, last), function))
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                full = f"{name}.{child.name}".strip(".")
                inner = function if isinstance(child, ast.ClassDef) else full
            go(child, inner, full)

    go(ast.parse(path.read_text(encoding="utf-8")), "", "")
    return found
