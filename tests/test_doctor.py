"""`bigqa doctor` on machines that lack something: what it finds is what is so, what it costs, and nothing private."""

import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from commands import here

from bigqa.doctor import around, cards, host, places, software
from bigqa.doctor.examination import _looked
from bigqa.doctor.finding import Finding, bare
from bigqa.language import VARIABLE, shown
from bigqa.machine.hardware import Cpu, Gpu, Hardware, detect
from bigqa.show.doctor import summary
from bigqa.units import GIB, MIB

ROOT = Path(__file__).parents[1]
SHM_MIB = 64
ASK_KOREAN = patch.dict("os.environ", {VARIABLE: "ko"})


def states(findings: list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


def without(*names: str, folder: Path) -> str:
    """Return a PATH that has all of this one's programs but some."""
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).iterdir() if Path(place).is_dir() else ():
            target = folder / program.name
            if program.name not in names:
                target.unlink(missing_ok=True)
                target.symlink_to(program)
    return str(folder)


def test_the_page_of_this_machine(tmp_path: Path) -> None:
    done = here("doctor", "--folder", tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    for name in ("Python", "torch", "compiler", "libaio", "memory", "locked memory", "/dev/shm", "run folder", "hub"):
        assert [line for line in lines if re.match(rf"(OK|COSTS) +{name} ", line)], name
    costs = [line for line in lines if line.startswith("COSTS")]
    assert done.stdout.count("Costs: ") == done.stdout.count("Mend: ") == len(costs)
    assert not list(tmp_path.iterdir())


def test_nothing_private_is_in_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kim-minsu-thesis"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-minsu"))
    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path / "cache-of-minsu"))
    monkeypatch.setenv("HF_TOKEN", "hf_secretword")
    done = here("doctor", "--folder", folder, "--json")
    found = json.loads(done.stdout)
    assert found["schema"] == 1 and len(found["findings"]) > 20
    for word in ("minsu", "secretword", str(tmp_path), str(ROOT)):
        assert word not in done.stdout
    assert bare("libx.so: cannot open /home/minsu/lib/libx.so: No such file") == (
        "libx.so: cannot open libx.so: No such file"
    )


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert software.compiler().state == ("ok" if shutil.which("gcc") and shutil.which("c++") else "costs")
    monkeypatch.setenv("PATH", without("gcc", "c++", folder=tmp_path))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "none"))
    found = software.compiler()
    assert (found.state, found.found) == ("costs", "no gcc and no c++ on PATH")
    assert "rehearse" in found.cost and "apt-get install g++" in found.mend
    adam = software.cpu_adam()
    if adam.found != "not installed: see above":
        assert adam.state == "costs" and adam.found.startswith("not compiled, and it cannot be: a compiler")
        (tmp_path / "none/cpu_adam").mkdir(parents=True)
        (tmp_path / "none/cpu_adam/cpu_adam.so").touch()
        assert software.cpu_adam() == Finding("DeepSpeed's CPU Adam", "compiled")


LOCKED = """
import json, mmap
try:
    mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000)  # MAP_LOCKED
    kernel_refuses = False
except OSError:
    kernel_refuses = True
from bigqa.doctor import host
from bigqa.machine.hardware import _memlock
found = host.locked(_memlock())
print(json.dumps([kernel_refuses, found.state, found.found, found.mend]))
"""
DROP_FROM_BOUNDING_SET, MAY_LOCK = 24, 14
"""`PR_CAPBSET_DROP`, `CAP_IPC_LOCK`: for a user who has it, no limit holds."""


def test_memory_that_may_not_be_locked() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 * 1024, 64 * 1024))
        ctypes.CDLL(None).prctl(DROP_FROM_BOUNDING_SET, MAY_LOCK, 0, 0, 0)

    done = subprocess.run([sys.executable, "-c", LOCKED], stdout=subprocess.PIPE, preexec_fn=limit, check=True)
    refused, state, found, mend = json.loads(done.stdout)
    if not refused:
        pytest.skip("this kernel lets everybody lock what they like")
    assert (state, found) == ("costs", "64 KiB (ulimit -l)") and "ulimit -l unlimited" in mend


def test_memory_that_may_be_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "can_lock", lambda size: True)
    assert host.locked(None) == Finding("locked memory", "no limit")
    assert host.locked(65536).found == "64 KiB, which does not hold for this user"


def in_a_namespace(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a script among mounts of its own; skip where that is not allowed."""
    try:
        probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if probe.returncode:
        pytest.skip("no mounts of one's own here: it takes root")
    return subprocess.run(["unshare", "-m", "sh", "-ec", script], capture_output=True, text=True, check=False)


PLACES = """
import json, sys
from pathlib import Path
from bigqa.doctor import host, places
from bigqa.machine.hardware import detect, free_space
found = [host.shared(detect().shm_bytes), places.run_folder(Path(sys.argv[1]))]
print(json.dumps([[one.state, one.found, one.cost, one.mend] for one in found]))
"""


def test_little_shared_memory_and_a_folder_without_space(tmp_path: Path) -> None:
    done = in_a_namespace(
        f"mount -t tmpfs -o size={SHM_MIB}m none /dev/shm\nmount -t tmpfs -o size=1m none {tmp_path}\n"
        f"{sys.executable} -c '{PLACES}' {tmp_path}"
    )
    if done.returncode and "mount" in done.stderr:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    shared, folder = json.loads(done.stdout)
    assert shared[:2] == ["costs", "64 MiB free"] and "--shm-size=8g" in shared[3]
    assert folder[:3] == ["broken", "1 MiB free", "no model can be saved there"]


def test_little_space_and_slow_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without root: what the system answers is what these functions are given."""
    assert host.shared(SHM_MIB * MIB).state == "costs" and host.shared(0).state == "costs"
    assert host.shared(GIB) == Finding("/dev/shm", "1.00 GiB free")
    for free, rate, state in ((100, 1e9, "broken"), (GIB, 1e9, "costs"), (9 * GIB, 1e6, "costs"), (9 * GIB, 1e9, "ok")):
        monkeypatch.setattr(places, "free_space", lambda folder, free=free: free)
        monkeypatch.setattr(places, "disk_rates", lambda folder, size, rate=rate: (rate, rate))
        assert places.run_folder(tmp_path).state == state
    monkeypatch.undo()
    file = tmp_path / "file"
    file.touch()
    assert places.run_folder(file / "under").state == "broken"
    assert places.cache(file / "under").found == "cannot be written"


def test_nothing_to_save_in_ends_with_a_code(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = here("doctor", "--folder", file / "under")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "Nothing trains before this is mended: run folder."


def test_versions_beside_what_is_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    here_ = {"transformers": "4.40.0", "torch": "2.99.0", "peft": None}

    def version(name: str) -> str:
        if here_[name] is None:
            raise software.importlib.metadata.PackageNotFoundError(name)
        return str(here_[name])

    monkeypatch.setattr(software.importlib.metadata, "version", version)
    old = software.library("transformers")
    assert old.found == "4.40.0, and >=5.17 is supported" and old.mend == "pip install -U 'transformers>=5.17'"
    assert software.library("torch") == Finding("torch", "2.99.0 (newer than 2.14, the newest that was tested)")
    missing = software.library("peft", "LoRA cannot be had", "pip install 'bigqa[adapters]'")
    assert (missing.state, missing.mend) == ("costs", "pip install 'bigqa[adapters]'")
    here_["torch"] = None
    assert software.library("torch").state == "broken"


@pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="not in a checkout")
def test_the_newest_that_were_tested_are_those_that_the_project_names() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("torch", "transformers"):
        assert re.search(rf"{name} [\d.]+ to {re.escape(software.TRIED[name])}\b", text), name
    assert f"Python :: {software.TRIED['python']}" in text.split("Typing")[0]
    listed = [line for line in text.splitlines() if "Programming Language :: Python :: 3." in line]
    assert listed[-1].count(software.TRIED["python"]) == 1


def machine(*gpus: Gpu, **more: object) -> Hardware:
    cpu = Cpu(name="x", cores=8, bf16=False, avx512=False, amx=False)
    values = {"host_total_bytes": 16 * GIB, "host_free_bytes": 8 * GIB, "swap_bytes": 0, "shm_bytes": GIB}
    return Hardware(gpus=gpus, cpu=cpu, memlock_bytes=None, **(values | more))


CARD = Gpu(name="Tesla V100", total_bytes=16 * GIB, free_bytes=15 * GIB, capability=(7, 0), driver="535.1", others=2)


def test_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "NODES", ())
    assert [one.state for one in cards.findings(machine())] == ["ok"]
    monkeypatch.setattr(cards, "NODES", ("/dev/null",))
    assert [(one.name, one.state) for one in cards.findings(machine())] == [("driver", "costs")]
    found = list(cards.findings(machine(CARD)))
    assert found[0].cost == "2 other processes are on it, and plans are for what is left"
    # A build for the CPU, or one of CUDA 13, which has no kernels for a V100; or none runs without a driver.
    assert found[1].state == "costs" and found[1].cost == "all is trained on the CPU"


def test_memory_threads_and_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no more (cgroup or ulimit)" in host.memory(machine(host_total_bytes=MIB)).found
    assert host.memory(machine(host_free_bytes=GIB)).state == "costs"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("BIGQA_THREADS", raising=False)
    assert host.threads(8).mend == "unset OMP_NUM_THREADS" and host.threads(1).state == "ok"
    assert (host.wsl(is_there=True).state, host.wsl(is_there=False).state) == ("costs", "ok")


def test_letters_and_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    assert around.letters("utf-8").state == "ok" and around.letters("ANSI_X3.4-1968").mend == "export LANG=C.UTF-8"
    assert around.hub().found.startswith("not asked")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the port that discards, where nothing listens
    found = around.hub()
    assert found.state == "costs" and found.found.startswith("cannot be reached (")


def test_what_fails_is_one_finding_of_many(tmp_path: Path) -> None:
    def broken() -> list[Finding]:
        raise RuntimeError(f"no {tmp_path}/secret")

    assert _looked("cards", broken)[0].found == "could not be looked at: RuntimeError: no secret"
    assert summary([Finding("a", "")]) == "All is well."
    assert detect().shm_bytes >= 0


def test_each_finding_is_told_in_korean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "NODES", ("/dev/null",))
    monkeypatch.setattr(places, "free_space", lambda folder: GIB // 2)
    monkeypatch.setattr(software, "compiled", lambda part: False)
    monkeypatch.setattr(host, "can_lock", lambda size: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = [*cards.findings(machine()), *cards.findings(machine(CARD)), *host.findings(machine(host_free_bytes=GIB))]
    found += [*places.findings(tmp_path), *software.findings(), *around.findings(), around.letters("ascii")]
    found += [host.wsl(is_there=True), host.shared(0), *_looked("cards", lambda: 1 / 0)]  # type: ignore[arg-type,list-item]
    costs = {one.name for one in found if one.state == "costs"}
    assert costs >= {"driver", "card", "memory", "locked memory", "compiler", "hub", "locale"}
    with ASK_KOREAN:
        for one in found:
            for text in filter(None, (one.cost, one.mend)):
                is_command = re.match(r"(pip|apt-get|export|unset) ", text)
                assert is_command or any("가" <= letter <= "힣" for letter in shown(text)), text
        page = here("doctor", "--folder", tmp_path)
        report = json.loads(here("doctor", "--folder", tmp_path, "--json").stdout)
    assert "고치는 법: " in page.stdout and not {"Costs", "Mend", "free", "there"} & set(
        re.findall("[A-Za-z]+", page.stdout)
    )
    assert {"memory", "run folder"} <= {row["name"] for row in report["findings"]}  # machines read English
