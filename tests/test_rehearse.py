"""`bigqa rehearse`: figures from a recorded run, the command around it, and whole commands on a null GPU.

The recorded run (`recorded/rehearsal.json.gz`) is two steps of two linear layers, 1000 x 4000 x 1000 with biases, 100
rows of input, fp32 and AdamW: every size of it can be worked out by hand.
"""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rehearsals import near, plan_file
from rich.console import Console
from typer.testing import CliRunner

from bigqa.cli.rehearse import as_object, gpu_of, rehearse
from bigqa.errors import BigqaError, UsageError
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.rehearse import run as running
from bigqa.rehearse.facts import Facts
from bigqa.rehearse.own import answered_yes
from bigqa.rehearse.page import rehearsal_page
from bigqa.rehearse.planned import plan_lines, read_planned, training_command
from bigqa.rehearse.render import headline, read_lines, show_rehearsals
from bigqa.rehearse.report import Rehearsal, _text, curves_of, make_report
from bigqa.rehearse.trace import name_phases, read_trace
from bigqa.units import MIB

T4 = NullGpu(find_card("T4"), context_bytes=430 * MIB)
"""As the run was recorded."""
RECORDED = Path(__file__).parent / "recorded" / "rehearsal.json.gz"
IN_BLOCKS = 4 * (4000 + 1000) + 2 * 16 * MIB
"""As torch takes them: of a segment of 16 MiB, 16,000,000 bytes leave too little to be split off."""


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Facts:
    """Return the facts of the recorded run."""
    found = json.loads(gzip.decompress(RECORDED.read_bytes()))
    monkeypatch.setattr(Facts, "snapshot", lambda self: {"device_traces": [found["events"]]})
    return Facts(found["facts"], Path("nowhere.pickle"))


@pytest.fixture
def report(recorded: Facts) -> Rehearsal:
    return make_report([recorded], T4, 1.0)


# ---- the recorded run ----


def test_the_peak_is_told_by_kind(report: Rehearsal) -> None:
    # The first step, and the second as much: weights, gradients, two moments, and what the update makes on its way.
    assert report.by_kind["weights"] == near(IN_BLOCKS)
    assert report.by_kind["optimizer"] == near(2 * IN_BLOCKS)
    assert report.by_kind["workspaces"] // (8 * MIB + 128 * 1024) == 2  # of the main thread and of autograd's
    total = sum(report.by_kind.values())
    assert total == report.allocated_bytes  # torch's own figure
    assert (report.step, report.phase) == (1, "optimizer")
    assert 2 * 16_000_000 < report.by_kind["gradients"] <= IN_BLOCKS  # some rests are of use to others
    assert report.nvml_bytes == report.reserved_bytes + T4.context_bytes
    assert report.fits and report.steps == 2


def test_every_allocation_is_told_by_kind_at_the_end_of_a_forward_pass(recorded: Facts) -> None:
    trace = read_trace(recorded.snapshot()["device_traces"][0], recorded.marks, recorded.tags)
    backward = next(n for n, phase in enumerate(trace.phases) if phase.name == "backward" and phase.step == 2)
    event = next(n for n, mark in enumerate(trace.mark_of_event) if mark == backward) - 1
    sizes: dict[str, int] = {}
    for allocation in trace.live_at(event):
        sizes[allocation.kind] = sizes.get(allocation.kind, 0) + allocation.size
    hidden, inputs, outputs = 100 * 4000 * 4, 100 * 1000 * 4, 100 * 1000 * 4
    assert sizes["activations"] == near(inputs + hidden + outputs + 512)  # the loss too; relu keeps its output alone
    assert sizes["weights"] == near(IN_BLOCKS) and sizes["optimizer"] == near(2 * IN_BLOCKS)
    assert "gradients" not in sizes and sizes.get("temporaries", 0) <= 4096


def test_the_largest_are_told_with_the_persons_own_lines(report: Rehearsal) -> None:
    by_line = {group.own.split(" ")[0]: group for group in report.largest}
    first = by_line["me/tiny.py:3"]
    assert (first.kind, first.count) == ("weights", 4) and first.size_bytes == near(IN_BLOCKS)
    assert by_line["me/tiny.py:11"].kind in ("optimizer", "temporaries")
    assert all("site-packages" not in group.where for group in report.largest)
    assert [g.size_bytes for g in report.largest] == sorted((g.size_bytes for g in report.largest), reverse=True)
    assert any(not group.where and group.kind == "gradients" for group in report.largest)  # autograd's own thread


def test_a_question_to_the_gpu_is_told_with_the_switch(report: Rehearsal) -> None:
    (question,) = (read for read in report.reads if read.is_question)
    assert (question.text, question.times, question.answer) == ("if loss > 1:", 2, 0)
    assert any("--true me/tiny.py:9 answers yes" in line for line in read_lines(report.reads))


def test_phases_behind_a_backward_pass_are_known_by_what_follows() -> None:
    marks = [("set-up", 0), ("forward", 0), ("backward", 0), ("after backward", 0), ("forward", 0), ("backward", 0)]
    marks += [("after backward", 0), ("optimizer", 0), ("after step", 1), ("forward", 1)]
    found = [(phase.name, phase.step) for phase in name_phases(marks)]
    assert found[3] == ("between", 1) and found[6] == ("before the step", 1)
    assert found[0] == ("set-up", 0) and found[7:] == [("optimizer", 1), ("between", 2), ("forward", 2)]


def test_the_buckets_of_ddp_are_gradients(recorded: Facts) -> None:
    frame = {"filename": "/venv/site-packages/torch/nn/parallel/distributed.py", "line": 1, "name": "_ddp_init_helper"}
    inner = frame | {"filename": "/venv/site-packages/torch/nn/modules/linear.py", "name": "forward"}
    events = [
        {"action": "alloc", "addr": number, "size": 100, "user_metadata": "0", "frames": frames}
        for number, frames in ((512, [frame]), (1024, [inner, frame]))
    ]
    found = read_trace(events, [("forward", 0)], {})
    assert [one.kind for one in found.allocations] == ["gradients", "activations"]  # it calls the model itself, too


def test_what_is_as_large_as_a_workspace_is_none_for_that() -> None:
    """Where memory ran out nothing is freed: a GPT-2 of 4 x 1024 tokens has 24 tensors of 32 MiB then, a T4 no such."""
    sizes = [(32, "0"), (8.125, "0"), (32, "0"), (8.125, ""), (8.125, ""), (32, "")]
    events = [
        {"action": "alloc", "addr": number << 30, "size": int(size * MIB), "user_metadata": mark, "frames": []}
        for number, (size, mark) in enumerate(sizes, 1)
    ]
    kinds = [a.kind for a in read_trace(events, [("forward", 0)], {}, (7, 5)).allocations]
    assert [number for number, kind in enumerate(kinds) if kind == "workspaces"] == [1, 3]  # of either thread the first
    kinds = [a.kind for a in read_trace(events, [("forward", 0)], {}, (9, 0)).allocations]
    assert [number for number, kind in enumerate(kinds) if kind == "workspaces"] == [0, 5]


def test_a_statement_is_shown_until_its_brackets_are_closed(tmp_path: Path) -> None:
    file = tmp_path / "asks.py"
    file.write_text("if (\n    a\n    and not (b or c)\n):\n    x = f(1)\n")
    assert _text({"file": str(file), "line": 1}) == "if (a and not (b or c)):"
    assert _text({"file": str(file), "line": 5}) == "x = f(1)"
    assert _text({"file": str(tmp_path / "gone.py"), "line": 1, "text": "y = 2"}) == "y = 2"


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_it_in_so_many_columns(report: Rehearsal, width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_rehearsals([report], T4, console)
    text = console.export_text()
    tables = [line for line in text.splitlines() if re.match(r" *[\d.]+ (MiB|GiB)  ", line)]
    assert len(tables) == len(report.largest) and all(len(line) <= width for line in tables)
    assert text.startswith("Fits: T4 (14.74 GiB), 618 MiB at most as NVML shows it (4%).")
    assert "tiny.py:3" in text and "kernels were not run" in text


def test_both_bounds_stand_side_by_side(report: Rehearsal) -> None:
    import dataclasses

    worse = dataclasses.replace(report, bound="most", nvml_bytes=900 * MIB)
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_rehearsals([report, worse], T4, console)
    text = console.export_text()
    assert "at least" in text and "at most" in text
    assert re.search(r"as NVML shows it.* 618 MiB +900 MiB", text)
    assert headline(worse, T4) in text  # the worse one in full


def test_the_page_shows_memory_over_the_steps(report: Rehearsal) -> None:
    page = rehearsal_page([report], T4, ["python", "tiny.py"])
    assert page.count("<polygon") == len([kind for kind, sizes in report.curves.by_kind.items() if any(sizes)])
    assert "step 1" in page and "step 2" in page and 'class="peak"' in page
    assert "http" not in page.replace("http://www.w3.org", "")
    totals = [sum(sizes) for sizes in zip(*report.curves.by_kind.values(), strict=True)]
    assert totals[report.curves.peak] == max(totals) == sum(report.by_kind.values())


def test_json_has_all_but_the_curves(report: Rehearsal) -> None:
    found = json.loads(json.dumps(as_object([report], T4, ["python", "x.py"])))
    assert found["fits"] is True and found["gpu"] == "T4" and len(found["runs"]) == 1
    assert found["runs"][0]["largest"][0]["size_bytes"] == report.largest[0].size_bytes
    assert "curves" not in found["runs"][0]


def test_a_short_peak_among_many_events_is_in_the_curves() -> None:
    events = [{"action": "alloc", "addr": n << 20, "size": 512, "user_metadata": "0"} for n in range(5000)]
    spike = [{"action": name, "addr": 1 << 40, "size": 1 << 30} for name in ("alloc", "free_requested")]
    trace = read_trace([*events[:3001], *spike, *events[3001:]], [("set-up", 0)], {})
    curves = curves_of(trace)
    totals = [sum(sizes) for sizes in zip(*curves.by_kind.values(), strict=True)]
    assert totals[curves.peak] == max(totals) == 3001 * 512 + (1 << 30) and len(totals) <= 600


# ---- the command ----

APP = typer.Typer()
APP.command()(rehearse)


def asked(*words: str) -> Exception | None:
    found = CliRunner().invoke(APP, list(words))
    assert found.exit_code
    return found.exception if isinstance(found.exception, Exception) else None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--", "python", "x.py"], "--gpu is missing"),
        (["--gpu", "T4"], "no command to rehearse"),
        (["--gpu", "T4", "--gpu-memory", "much", "--", "python", "x.py"], "not a size"),
        (["--gpu", "T4", "--gpu-memory", "160MiB", "--", "python", "x.py"], "alone takes 164 MiB"),
        (["--gpu", "P100", "--", "python", "x.py"], "no code for the P100"),
        (["--plan", "plan.json"], "--train-file is missing"),
        (["--plan", "plan.json", "--train-file", "x", "--", "python", "x.py"], "--plan and a command exclude"),
    ],
)
def test_wrong_words_are_told_in_a_line(words: list[str], says: str) -> None:
    error = asked(*words)
    assert isinstance(error, UsageError) and says in str(error)


def test_a_plan_brings_its_card_and_is_trained_without_its_ladder(tmp_path: Path) -> None:
    planned = read_planned(plan_file(tmp_path))
    card = gpu_of("", None, None, planned)
    assert (card.card.name, card.count, card.total_bytes) == ("T4", 2, 8192 * MIB)
    other = gpu_of("L4", 1, None, planned)
    assert (other.card.name, other.count, other.memory_bytes) == ("L4", 1, None)
    with training_command(planned, tmp_path / "data.json", "vocab.txt", 2) as words:
        run = Path(words[words.index("--out") + 1])
        trained = json.loads(Path(words[words.index("--plan") + 1]).read_text())["settings"]
        assert trained == planned.plan["settings"] | {"ladder": []} and planned.plan["settings"]["ladder"]
        assert words[words.index("--nproc-per-node") + 1] == "2" and words[-1] == "vocab.txt"
        assert any(word.endswith("bigqa/train.py") for word in words) and "--no-check" in words
        assert not run.exists() and run.parent.is_dir()
    assert not run.parent.exists()
    with training_command(planned, tmp_path / "data.json", None, 1) as words:
        assert words[1].endswith("bigqa/train.py") and "--tokenizer" not in words
    assert plan_lines(planned, fits=True) == [
        "The plan's own figures, for windows that are all full: 5 MiB allocated, 170 MiB of the card."
    ]
    assert plan_lines(planned, fits=False)[1:] == [
        "A run of this plan would step down to recompute, micro-batches of 3."
    ]


def test_a_plan_for_the_cpu_is_refused(tmp_path: Path) -> None:
    file = plan_file(tmp_path, settings={"device": "cpu"})
    with pytest.raises(UsageError, match="a plan for the CPU"):
        read_planned(file)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(BigqaError, match=r"other\.json is not a plan"):
        read_planned(tmp_path / "other.json")


def test_the_trainers_own_questions_are_where_they_are_looked_for() -> None:
    for place in answered_yes():
        file, _, number = place.rpartition(":")
        line = Path(file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert "isfinite(norm)" in line or ".abs().max() <=" in line


def test_a_command_that_says_it_in_its_own_words_ran_out_of_memory_too(recorded: Facts) -> None:
    def facts(steps: int, failed: bool, failure: Any = None) -> Facts:
        shortage = {"step": 2, "phase": "forward", "wanted_bytes": MIB, "stack": []}
        found = {**recorded.found, "steps": steps, "shortages": [shortage], "failure": failure}
        return Facts(found, recorded.snapshot_file, failed)

    assert facts(1, failed=True).is_short
    assert not facts(1, failed=False).is_short  # it went on and ended well
    assert not facts(2, failed=True).is_short  # a step followed: something else ended it
    other = {"type": "ValueError", "message": "", "stack": []}
    assert not facts(1, failed=True, failure=other).is_short
    shortage = make_report([facts(1, failed=True)], T4, 1.0).shortage
    assert shortage is not None and shortage.is_end and shortage.message == "1 MiB were wanted of the GPU"


def stage() -> running.Stage:
    python = running.interpreter_of([sys.executable])
    assert python.torch is not None
    return running.Stage(python, python.torch, Path("/nowhere"))


@pytest.mark.parametrize(("code", "exit_code"), [(7, 7), (3, 1), (0, 1)])
def test_a_commands_own_failure_is_not_taken_for_too_little_memory(code: int, exit_code: int) -> None:
    with pytest.raises(running.CommandError) as error:
        running.rehearse([sys.executable, "-c", f"raise SystemExit({code})"], T4, stage())
    assert error.value.exit_code == exit_code
    assert ("without using the GPU" if code == 0 else f"exit code {code}") in str(error.value)


def test_what_the_command_prints_does_not_mix_with_the_report(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BigqaError):
        running.rehearse([sys.executable, "-c", "print('a line of its own')"], T4, stage())
    out, err = capfd.readouterr()
    assert out == "" and "a line of its own" in err


def test_the_environments_own_sitecustomize_is_started_too(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import builtins\nbuiltins.WAS_STARTED = True\n")
    program = "import sys, sitecustomize; print(WAS_STARTED, sitecustomize.__file__)"
    env = {"PYTHONPATH": f"{running.INSIDE}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(tmp_path / "sitecustomize.py")]


# ---- whole commands ----
