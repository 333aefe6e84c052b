"""The null GPU: what is said where it cannot be, its clock and its memory by themselves, and torch on it.

What torch must find there are facts of real cards: workspaces and attention kernels by capability, the bytes of an
optimizer's state, and figures that others measured on an A100 and an H100 (Liger Kernel's published benchmark).
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_null_gpu

from bigqa.errors import BigqaError, UsageError
from bigqa.machine.chips import CHIPS, MULTIPROCESSORS
from bigqa.machine.gpus import GPUS
from bigqa.nullgpu import build, torch_build
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import Interpreter, TorchBuild, ask, interpreter_of, read_build
from bigqa.nullgpu.stubs import stub_source
from bigqa.units import MIB


def python_with(version: str, cuda: str | None = None, hip: str | None = None) -> Interpreter:
    torch = TorchBuild(Path("/nowhere"), version, cuda, hip)
    return Interpreter(Path(sys.executable), (3, 12), (), torch)


# ---- cards ----


def test_every_card_of_the_table_has_a_chip() -> None:
    assert CHIPS.keys() == {card.name for card in GPUS}
    assert {card.capability for card in GPUS} <= MULTIPROCESSORS.keys()
    for card in GPUS:
        assert 0.93 * card.memory_mib < CHIPS[card.name].cuda_mib <= card.memory_mib, card.name


def test_a_card_is_described_for_the_libraries() -> None:
    fields = dict(field.split("=") for field in NullGpu(find_card("T4")).description().split(";"))
    assert fields["name"] == "Tesla T4" and fields["capability"] == "7.5" and fields["sms"] == "40"
    assert int(fields["memory"]) == 15095 * MIB and int(fields["shared_sm"]) == 65536
    assert int(fields["context"]) == 164 * MIB  # 14.71 GiB in use, 14.54 allocated, 10.14 MiB kept


@pytest.mark.parametrize(("name", "says"), [("V100", "7.0, the oldest is 7.5"), ("GTX 9", "no such card; one of T4")])
def test_a_card_that_torch_has_no_code_for_is_refused(name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        find_card(name)


# ---- which torch ----


@pytest.mark.parametrize(
    ("version", "cuda", "hip", "says"),
    [
        ("2.13.0+cu126", "12.6", None, "built for CUDA 12.6, and the null GPU for CUDA 13"),
        ("2.13.0+rocm7.0", None, "7.0", "built for ROCm"),
        ("2.10.0+cpu", None, None, "2.11, 2.12, 2.13 and 2.14 can"),
        ("2.15.0", "13.0", None, "2.11, 2.12, 2.13 and 2.14 can"),
        ("2.13.0+cpu", None, None, "is a CPU build; .* --install .*600 MB"),
    ],
)
def test_other_builds_are_refused_with_a_reason(
    version: str, cuda: str | None, hip: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path))
    with pytest.raises(BigqaError, match=says) as error:
        torch_build.cuda_build(python_with(version, cuda, hip), install=False)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_cuda_build_that_is_here_is_used_as_it_is() -> None:
    python = python_with("2.14.1+cu130", "13.0")
    assert torch_build.cuda_build(python, install=True) == python.torch


def test_a_build_is_read_without_importing_it(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    text = "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\nhip = None\n"
    (tmp_path / "torch" / "version.py").write_text(text)
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('imported')")
    found = read_build(tmp_path / "torch")
    assert (found.version, found.public, found.cuda, found.hip) == ("2.13.0+cu130", "2.13.0", "13.0", None)


def test_the_installation_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A pip that gives a CPU build after all, as where the index has no other: nothing of it may stay.
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path))
    asked: list[list[str]] = []

    def pip(words: list[str], python: Interpreter) -> None:
        asked.append(words)
        folder = Path(words[words.index("--target") + 1]) / "torch"
        folder.mkdir()
        (folder / "version.py").write_text("__version__ = '2.13.0+cpu'\ncuda = None\nhip = None\n")

    monkeypatch.setattr(torch_build, "run_pip", pip)
    with pytest.raises(BigqaError, match=r"gives torch 2.13.0\+cpu"):
        torch_build.cuda_build(python_with("2.13.0+cpu"), install=True)
    assert "torch===2.13.0" in asked[0] and "--no-deps" in asked[0]
    assert [path.name for path in (tmp_path / "nullgpu").iterdir()] == [".lock"]


def test_what_is_kept_has_one_name_whatever_links_lead_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of these tests links to it: under each run's own name all that is built against it was built again."""
    (kept := tmp_path / "cache" / "nullgpu").mkdir(parents=True)
    (linked := tmp_path / "linked").mkdir()
    (linked / "nullgpu").symlink_to(kept)
    found = []
    for cache in (kept.parent, linked):
        monkeypatch.setenv("BIGQA_CACHE", str(cache))
        found.append(torch_build.folder())
    assert found == [kept.resolve()] * 2


def test_the_python_of_a_command_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ask(Path(sys.executable))
    script = tmp_path / "launcher"
    script.write_text(f"#!{sys.executable}\nprint('not run')\n")
    script.chmod(0o755)
    assert interpreter_of([str(script), "x.py"]) == here
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "[\\"$0\\", [3, 11], [], null]"\n')
    bare.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert interpreter_of(["python", "x.py"]) == here  # the first in PATH has no torch
    assert interpreter_of([str(bare), "x.py"]).torch is None  # named by its path: it is meant
    with pytest.raises(UsageError, match="no such command: nothing-here"):
        interpreter_of(["nothing-here"])


# ---- building ----


def test_a_missing_compiler_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    python = python_with("2.13.0+cu130", "13.0")
    assert python.torch is not None
    with pytest.raises(BigqaError, match="gcc, readelf, nm; install them"):
        build.libraries_for(python, python.torch)


def test_missing_headers_are_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "TOOLKITS", ())
    monkeypatch.delenv("CUDA_HOME", raising=False)
    with pytest.raises(BigqaError, match=r"install the package nvidia-cuda-runtime \(3 MB\)"):
        build.find_headers(python_with("2.13.0+cu130", "13.0"))
    for version, fits in (("12080", False), ("13000", True)):
        include = tmp_path / version / "include"
        include.mkdir(parents=True)
        (include / "cuda.h").write_text(f"#define CUDA_VERSION {version}\n")
        (include / "cuda_runtime_api.h").touch()
        monkeypatch.setenv("CUDA_HOME", str(include.parent))
        if fits:
            assert build.find_headers(python_with("2.13.0+cu130", "13.0")) == include
        else:
            with pytest.raises(BigqaError, match="headers of CUDA 13"):
                build.find_headers(python_with("2.13.0+cu130", "13.0"))


def test_a_stub_gives_a_handle_or_says_that_it_cannot() -> None:
    text = stub_source(["cusolverDnCreate", "nvmlDeviceGetPowerUsage", "cudnnGetStream", "cublasDestroy_v2"])
    answers = {line.split("(")[0].split()[1]: line for line in text.splitlines()[1:]}
    assert "*out = null_handle()" in answers["cusolverDnCreate"]
    assert "return 3;" in answers["nvmlDeviceGetPowerUsage"]
    assert "return 3000;" in answers["cudnnGetStream"]
    assert "return 0;" in answers["cublasDestroy_v2"]


def test_the_environment_leads_to_the_null_gpu_and_to_no_other(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so.1").touch()
    gpu = NullGpu(find_card("L4"), count=4, bound="most")
    inherited = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": "/a", "LD_PRELOAD": "libx.so"}
    found = variables(gpu, tmp_path, (Path("/torch"),), inherited)
    assert "CUDA_VISIBLE_DEVICES" not in found and found["DS_ACCELERATOR"] == "cuda"
    assert found["PYTHONPATH"] == "/torch:/a" and found["LD_PRELOAD"] == "libcuda.so.1:libx.so"
    assert found["LD_LIBRARY_PATH"] == str(tmp_path)
    assert (found["BIGQA_NULL_COUNT"], found["BIGQA_NULL_BOUND"]) == ("4", "most")


# ---- the libraries by themselves, without torch ----


def test_without_a_network_the_tests_of_the_null_gpu_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing else is: what cannot be built is an error."""

    def pip(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, int("install" in words), "", "ERROR: no route to the index\n")

    monkeypatch.setattr(run_null_gpu, "ask", lambda python: python_with("2.13.0+cpu"))
    monkeypatch.setattr(torch_build, "folder", lambda: tmp_path)
    monkeypatch.setattr(torch_build.subprocess, "run", pip)
    assert run_null_gpu.main() == 0
    said = capsys.readouterr()
    assert "passed over" in said.out and "no route to the index" in said.out and len(said.out.splitlines()) == 1
    monkeypatch.setattr(run_null_gpu, "ask", lambda python: python_with("2.4.0"))
    assert run_null_gpu.main() == 2 and "2.4.0 cannot be rehearsed" in capsys.readouterr().err


ENDS = """
import ctypes, sys, threading, time
library = ctypes.CDLL(sys.argv[1])
if sys.argv[2] == "stays":
    library.null_threads_stay()
thread = threading.Thread(target=ctypes.CDLL("libstdc++.so.6")._ZSt9terminatev, daemon=True)
if sys.argv[2] == "main":
    thread.run()
thread.start()
time.sleep(0.5)
raise SystemExit(9)
"""


@pytest.mark.skipif(shutil.which("gcc") is None or not sys.platform.startswith("linux"), reason="no compiler")
@pytest.mark.parametrize(("how", "code"), [("stays", 9), ("goes", -6), ("main", -6)])
def test_a_thread_that_cannot_go_on_takes_no_program_with_it(how: str, code: int, tmp_path: Path) -> None:
    """What Python's own end does to a thread that wants its lock comes to std::terminate; see `end.c`."""
    source, library = build.SOURCES / "end.c", tmp_path / "end.so"
    subprocess.run(["gcc", "-shared", "-fPIC", *build.WARNINGS, "-o", library, source, "-ldl"], check=True)
    program = "import ctypes; ctypes.CDLL('libstdc++.so.6')\n" + ENDS
    done = subprocess.run([sys.executable, "-c", program, library, how], capture_output=True, check=False)
    assert done.returncode == code, done.stderr
