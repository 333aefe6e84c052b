"""What a notebook calls, and what it shows: bigqa.probe, bigqa.train, bigqa.rehearse."""

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import WORDS, train

import bigqa
from bigqa.errors import BigqaError, UsageError
from bigqa.notebook import command, rehearsing, training
from bigqa.notebook.shown import curve
from bigqa.notebook.words import words_of
from bigqa.run.options import train_signature


def test_arguments_are_a_commands_options() -> None:
    given = {"lr": 1e-3, "train_file": Path("a b.json"), "keep_best": False, "check": False, "dev_file": None}
    assert words_of(train_signature, given) == ["--lr=0.001", "--train-file=a b.json", "--keep-last", "--no-check"]
    assert words_of(train_signature, {"deterministic": True}) == ["--deterministic"]
    with pytest.raises(UsageError, match="there is no option epoch; epochs"):
        words_of(train_signature, {"epoch": 1})


def test_a_public_function_may_have_a_modules_name() -> None:
    code = """
import bigqa
assert callable(bigqa.train) and callable(bigqa.rehearse)
from bigqa.train import main
from bigqa.rehearse import report
assert main and bigqa.rehearse.report is report
for call in (bigqa.train, bigqa.rehearse):
    try:
        call()
    except bigqa.BigqaError as error:
        print(error)
import sys
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "name the run folder: out='runs/first'",
        "no command to rehearse: bigqa.rehearse('python my_script.py', gpu='T4')",
    ], done.stderr


def test_a_probe_shows_a_table_and_its_chart() -> None:
    found = bigqa.probe("tiny", gpu="T4", seq_len=64, strategy="plain")
    page = html.unescape(found._repr_html_())
    assert "Plan: plain" in repr(found) and repr(found).splitlines()[0] in page
    assert "<table" in page and "<svg" in page and "on T4" in page
    assert found.chosen is not None and found.chosen.name == "plain"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shown") / "run"
    train(out, max_steps=3)
    return out


def test_a_run_shows_its_figures_and_curves(folder: Path) -> None:
    run = training.Run(folder)
    page = run._repr_html_()
    assert run.is_complete and len(run.metrics) == 3
    assert "<td" in page and page.count("<svg") == 3 and f"{run.metrics[-1]['loss']:.4f}" in page
    assert f"model: {folder / 'model'}" in repr(run)
    unfinished = training.Run(folder / "no")
    assert "the same bigqa.train(...) with resume='auto' goes on" in repr(unfinished) and unfinished.scores == {}
    assert unfinished._repr_html_()


def test_a_command_shows_its_lines_and_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    display = pytest.importorskip("IPython.display")

    class Handle:
        def update(self, page: Any) -> None:
            pages.append(page.data)

    def shown(page: Any, display_id: bool) -> Handle:
        pages.append(page.data)
        return Handle()

    monkeypatch.setattr(command, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "display", shown)
    screen = command._Screen(quiet=False)
    for line in ("step 1/8 · loss 2.0 · <b>", "step 8/8 · loss 1.0"):
        screen.show(line)
    assert len(pages) == 2 and 'value="1" max="8"' in pages[0] and "&lt;b&gt;" in pages[0] and "8 / 8" in pages[1]


def test_a_kernels_wish_for_colours_makes_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    code = "from bigqa.console import console; print(console.is_terminal)"
    for piped, is_terminal in ((True, "False"), (False, "True")):
        env = command.environment(piped=piped)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
        assert done.stdout.strip() == is_terminal, done.stderr


def test_a_run_that_cannot_be_is_an_error_told_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BigqaError, match=r"--lr 9\.0: .* was begun with 0\.001"):
        bigqa.train(resume="auto", out=folder, lr=9, model=WORDS["model"], train_file=WORDS["train_file"])
    assert "was begun with" not in capsys.readouterr().out


def test_a_rehearsal_is_read_from_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(words: list[str], *, quiet: bool) -> tuple[int, str, str]:
        assert words[:2] == ["rehearse", "--gpu=T4"] and words[-4:] == ["--", "python", "x.py", "a b"]
        page = next(word for word in words if word.startswith("--html="))
        Path(page.removeprefix("--html=")).write_text("<p>page</p>", encoding="utf-8")
        record = {"fits": False, "gpu": "T4", "gpus": 1, "command": ["python", "x.py"]}
        return rehearsing.DOES_NOT_FIT, "noise\n" + json.dumps(record), ""

    monkeypatch.setattr(rehearsing, "run", run)
    found = bigqa.rehearse("python x.py 'a b'", gpu="T4")
    assert not found.fits and repr(found) == "python x.py on 1 x T4: does not fit"
    assert "&lt;p&gt;page&lt;/p&gt;" in found._repr_html_()
    monkeypatch.setattr(rehearsing, "run", lambda words, quiet: (1, "", "no GPU x in the table"))
    with pytest.raises(BigqaError, match="no GPU x in the table"):
        bigqa.rehearse("python x.py", gpu="x")


def test_curves_of_few_and_of_many_points() -> None:
    assert curve("loss", [(1, 2.0)]) == ""
    many = curve("loss", [(step, 1.0) for step in range(10_000)])
    assert many.count(",") < 1000 and "nan" not in many
