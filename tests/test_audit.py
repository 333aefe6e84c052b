"""A secret that is committed is found, and what only looks like one is not. See `audit`."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import audit
import pytest


def test_a_committed_secret_is_found(tmp_path: Path) -> None:
    pytest.importorskip("detect_secrets")
    key = "AKIA" + "IOSFODNN7EXAMPLF"
    (tmp_path / "held.py").write_text(f'key = "{key}"\n', encoding="utf-8")
    (tmp_path / "free.py").write_text(
        f'url = "postgresql://me:secret@host/db"\nsha = "{"0f" * 32}"\n', encoding="utf-8"
    )
    (tmp_path / "aside.py").write_text(f'key = "{key}"\n', encoding="utf-8")
    for words in (["init", "-q"], ["add", "held.py", "free.py"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert audit.secrets(tmp_path) == ["AWS Access Key: held.py:1"]


def test_a_known_fault_is_told_with_what_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In the form that pip-audit's own documentation gives for `--format json`."""
    fault = {"id": "PYSEC-2020-73", "fix_versions": ["1.16.1"], "aliases": [], "description": "d"}
    listed = [
        {"name": "flask", "version": "0.5", "vulns": [fault, fault | {"id": "X", "fix_versions": []}]},
        {"name": "attrs", "version": "1", "vulns": []},
        {"name": "torch", "skip_reason": "Dependency not found on PyPI"},
    ]

    def run(*_: Any, **__: Any) -> Any:
        return SimpleNamespace(returncode=1, stdout=json.dumps({"dependencies": listed, "fixes": []}), stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    lines = ["flask 0.5: PYSEC-2020-73, mended in 1.16.1", "flask 0.5: X, mended in no release"]
    assert audit.known_faults(tmp_path / "pins") == (lines, ["torch"])


def test_without_a_network_what_was_not_looked_up_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = SimpleNamespace(returncode=1, stdout="", stderr="a\nConnectionError: no route")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: away)
    assert audit.known_faults(tmp_path / "pins") == ([], ["all of them"])
    assert capsys.readouterr().out == "the list of known faults cannot be reached: ConnectionError: no route\n"
