"""The notebook, run whole on the CPU with the sample: a session that ends by its time, and the next in a new kernel."""

import ast
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from bigqa.errors import UsageError
from bigqa.notebook.words import words_of
from bigqa.run.options import train_signature
from bigqa.sample import FOLDER

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "bigqa_colab.ipynb"
PARAMETERS = "parameters"
SHORT = {"max_steps": 4, "seq_len": 64, "doc_stride": 32, "max_query_length": 24, "limit": 40, "device": "cpu"}


def cells() -> list[dict[str, Any]]:
    return list(json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"])


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def plain(text: str) -> str:
    """Return a cell's code without what is the notebook's own."""
    return "\n".join(
        line[: len(line) - len(line.lstrip())] + "pass" if line.lstrip().startswith(("!", "%")) else line
        for line in text.splitlines()
    )


def test_the_notebook_is_committed_without_outputs_and_can_be_read() -> None:
    for cell in cells():
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(plain(source(cell)))
        else:
            assert any("가" <= letter <= "힣" for letter in source(cell)) and "*" in source(cell)


def test_its_calls_have_options_that_are_there() -> None:
    calls = [
        node
        for cell in cells()
        if cell["cell_type"] == "code"
        for node in ast.walk(ast.parse(plain(source(cell))))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "train"
    ]
    (call,) = calls
    names = [keyword.arg for keyword in call.keywords if keyword.arg is not None]
    assert words_of(train_signature, dict.fromkeys(names)) == []
    with pytest.raises(UsageError):
        words_of(train_signature, {"no_such": None})


def session(folder: Path, until: str) -> Any:
    """Run the notebook from its first cell to its last in a new kernel; return it with what it shows."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", ())]
    cell.source = cell.source.replace('UNTIL, MORE = "11h30m", {}', f"UNTIL, MORE = {until!r}, {SHORT!r}")
    assert until in cell.source
    client = nbclient.NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return notebook


def shown(notebook: Any) -> str:
    """Return all that a notebook shows, as text."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            found.append(output.get("text", "") or json.dumps(output.get("data", {}), ensure_ascii=False))
    return "\n".join(found)


@pytest.mark.slow
def test_a_session_that_ends_and_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))
    assert shutil.which("bigqa"), "the command is not installed"
    first, second = session(tmp_path, "1s"), session(tmp_path, "5h")
    keep = os.environ.get("BIGQA_KEEP_NOTEBOOKS")
    for name, notebook in (("first", first), ("second", second)) if keep else ():
        Path(str(keep), f"{name}.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    assert "아직 학습 중입니다" in shown(first) and "goes on" in shown(first)
    text = shown(second)
    assert "Plan: " in text and "<svg" in text and "<progress" in text
    assert "EM" in text and "정답" in text and "아직 학습 중입니다" not in text
    report = json.loads((tmp_path / "bigqa-runs/run/report.json").read_text(encoding="utf-8"))
    assert report["steps"] == SHORT["max_steps"] and "scores" in report


TRAIN = f"""
import bigqa
run = bigqa.train(model="tiny", device="cpu", train_file={str(FOLDER / "train.json")!r}, limit=40, global_batch=4,
                  max_steps=MOST, save_every=1000, out="run", resume="auto", check=False)
print(run.is_complete, len(run.metrics))
"""


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "ko"])
def test_an_interrupted_kernel_has_saved(language: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own interrupt, as its button sends it, while a cell trains."""
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("BIGQA_LANG", language)
    kernel, client = manager.start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    said: list[str] = []
    try:
        started = False

        def heard(message: dict[str, Any]) -> None:
            nonlocal started
            content = message["content"]
            data = content.get("data", {}).get("text/html", "")
            said.append(content.get("text", "") or data or "".join(content.get("traceback", ())))
            if "<progress" in data and not started:
                started = True
                kernel.interrupt_kernel()

        client.execute_interactive(TRAIN.replace("MOST", "100000"), timeout=600, output_hook=heard)
        assert started, said  # a bar is shown in each language
        metrics = tmp_path / "run" / "metrics.jsonl"
        steps = len(metrics.read_text(encoding="utf-8").splitlines())
        assert f"False {steps}\n" in said and not any("Traceback" in text for text in said)
        assert any(("멈추는 중" if language == "ko" else "stopping: the step is finished") in text for text in said)
        assert [folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step-*")] == [f"step-{steps:08d}"]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
