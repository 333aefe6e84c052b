"""A secret that is committed is found, and what only looks like one is not. See `audit`."""

import subprocess
from pathlib import Path

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
