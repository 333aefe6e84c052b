"""Several and unlike cards: CUDA's numbers are not NVML's, and what hangs on a card is decided alike on all."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from null_gpu import on_null_gpu

from bigqa.bench.meters import _Nvml
from bigqa.engine.attention import kernels
from bigqa.engine.build import choose_precision
from bigqa.errors import BigqaError
from bigqa.machine import devices
from bigqa.machine.gpus import find_gpu
from bigqa.machine.hardware import detect_gpus
from bigqa.speed import calibration
from bigqa.speed.throughput import Rates

FIRST, SECOND = "11111111-1111-1111-1111-111111111111", "22222222-2222-2222-2222-222222222222"
SLICE = "33333333-3333-3333-3333-333333333333"
MIB = 2**20


class NvmlError(Exception):
    pass


class Nvml(SimpleNamespace):
    """A driver with a T4 and, behind it on the bus, an A100 of which one is cut: handles are UUIDs."""

    NVMLError = NvmlError
    cards: ClassVar = {f"GPU-{FIRST}": ("Tesla T4", 15), f"GPU-{SECOND}": ("NVIDIA A100-SXM4-80GB", 80)}
    cut: ClassVar = {f"MIG-{SLICE}": ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", 10)}

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def absent(*_: Any) -> Any:
            raise NvmlError(name)

        return absent

    def nvmlInit(self) -> None: ...
    def nvmlShutdown(self) -> None: ...
    def nvmlSystemGetDriverVersion(self) -> str:
        return "580"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return list(self.cards)[index]

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        if name not in self.cards | self.cut:
            raise NvmlError(name)
        return name

    def nvmlDeviceGetUUID(self, card: str) -> str:
        return card

    def nvmlDeviceGetName(self, card: str) -> str:
        return (self.cards | self.cut)[card][0]

    def nvmlDeviceGetMemoryInfo(self, card: str) -> Any:
        total = (self.cards | self.cut)[card][1] * 1024 * MIB
        return SimpleNamespace(total=total, free=total, used=0)

    def nvmlDeviceGetCudaComputeCapability(self, card: str) -> tuple[int, int]:
        if card in self.cut:
            raise NvmlError("of whole cards alone")
        return (7, 5) if "11" in card else (8, 0)

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, card: str) -> str:
        return f"GPU-{SECOND}"

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[Any]:
        return []


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    found = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "cuda_uuids", lambda: None)
    return found


def names(*_: Any) -> list[str]:
    return [gpu.name for gpu in detect_gpus()]


def test_cards_are_in_cudas_order(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA counts the fastest first: with a T4 on the bus before it, the A100 is cuda:0."""
    monkeypatch.setattr(devices, "cuda_uuids", lambda: [SECOND, FIRST])
    assert names() == ["NVIDIA A100-SXM4-80GB", "Tesla T4"]
    assert [_Nvml(index)._card for index in range(2)] == [f"GPU-{SECOND}", f"GPU-{FIRST}"]


@pytest.mark.parametrize("wanted", ["1, 0", f"GPU-{SECOND[:6]},0", f"1,GPU-{FIRST[:4]}"])
def test_where_cuda_cannot_be_asked_its_variable_is_read(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert names() == ["NVIDIA A100-SXM4-80GB", "Tesla T4"]
    assert [_Nvml(index)._card for index in range(2)] == [f"GPU-{SECOND}", f"GPU-{FIRST}"]


def test_a_slice_is_a_card_of_its_own(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cuda_uuids", lambda: [SLICE])
    (gpu,) = detect_gpus()
    assert gpu.total_bytes == 10 * 1024 * MIB and gpu.capability == (8, 0)
    assert gpu.model is None and find_gpu("NVIDIA A100-SXM4-80GB") is not None  # a whole A100's figures are not its
    assert _Nvml(0)._card == f"MIG-{SLICE}"


UUIDS, SLICES = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbcc-3"], ["MIG-cc-1", "MIG-dd-2"]


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        ("GPU-bbcc", [2]),
        ("1, GPU-aaaa-1", [1, 0]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-bb", []),
        ("0,1,0", []),
        ("MIG-dd, 0", [4, 0]),
        (" 1 ,0", [1, 0]),
    ],
)
def test_cards_that_cuda_does_not_see_are_none(wanted: str | None, indices: list[int]) -> None:
    """As the CUDA programming guide has it: an index or a prefix that fits no card, or several, ends the list."""
    assert devices.visible(wanted, UUIDS, SLICES) == indices


@pytest.fixture
def unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A100 and a T4, a process on each."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(8, 0), (7, 5)][device.index])


@pytest.mark.usefixtures("unlike")
@pytest.mark.parametrize("rank", [0, 1])
def test_unlike_cards_decide_alike(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device, config = (
        torch.device("cuda", rank),
        SimpleNamespace(local_attention=8, num_attention_heads=2, hidden_size=8),
    )
    assert choose_precision("auto", device) == "fp16"
    assert not kernels.packs_on(device, torch.float16, config, 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert choose_precision("auto", device) == ("fp16" if rank else "bf16")
    assert kernels.packs_on(device, torch.float16, config, 16) == (rank == 0)


def test_who_asks_cuda_needs_nothing_but_python() -> None:
    """It runs without the packages beside it: what it imported of ours once ended it, and CUDA was never asked."""
    command = [sys.executable, "-I", "-S", devices.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "ImportError" not in done.stderr and "ModuleNotFoundError" not in done.stderr, done.stderr
    assert done.returncode == 0 or devices.DRIVER in done.stderr or not done.stderr, done.stderr  # a driver or none


@pytest.mark.nullgpu
def test_cards_that_cuda_counts_are_found_by_nvml() -> None:
    program = """
import json
from bigqa.bench.meters import _Nvml
from bigqa.machine import devices
import pynvml
pynvml.nvmlInit()
index = pynvml.nvmlDeviceGetIndex
print(json.dumps([[index(card) for card in devices.handles(pynvml)], [index(_Nvml(i)._card) for i in range(2)],
                  len(devices.cuda_uuids())]))
"""
    environment = {"CUDA_VISIBLE_DEVICES": "2, 0"}
    assert on_null_gpu(program, count=3, environment=environment) == [[2, 0], [2, 0], 2]


@pytest.mark.nullgpu
def test_a_second_card_is_timed_on_its_own_stream() -> None:
    program = """
import json, torch
from bigqa.speed import card
seen = set()
record = torch.cuda.Event.record
def recorded(self, stream=None):
    seen.add((torch.cuda.current_stream() if stream is None else stream).device.index)
    record(self, stream)
torch.cuda.Event.record = recorded
torch.cuda.Event.elapsed_time = lambda start, end: 1.0
card.measure_gpu(torch.device("cuda", 1))
print(json.dumps(sorted(seen)))
"""
    assert on_null_gpu(program, count=2) == [1]


RATES = Rates(
    low_flops_per_s=1, fp32_flops_per_s=1, low_batched_flops_per_s=1, fp32_batched_flops_per_s=1, bytes_per_s=1,
    link_bytes_per_s=1, launch_s=1, source="", error=0.1, adam_per_s=7,
)  # fmt: skip


def test_who_calibrates_has_each_card_measured_by_another_process(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A context would stay on the card, and be missing for what is measured or trained next."""
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        started.append(command[1:])
        told = json.dumps(dataclasses.asdict(RATES) | {"bytes_per_s": 5 + len(started)})
        return SimpleNamespace(returncode=0, stdout=f"a library's word\n{told}\n", stderr="")

    monkeypatch.setenv("BIGQA_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("CUDA is begun here"))
    monkeypatch.setattr(calibration, "measure_cpu", lambda *_, **__: RATES)
    monkeypatch.setattr(subprocess, "run", run)
    here: Any = SimpleNamespace(
        gpus=detect_gpus(), cpu=SimpleNamespace(name="a processor", cores=2), disk_bytes_per_s=None
    )
    found = calibration.calibrate(here)
    assert started == [["-m", "bigqa.speed.card", "0"], ["-m", "bigqa.speed.card", "1"]]
    assert {name: one.bytes_per_s for name, one in found.items()} == {
        "cpu": 1, "Tesla T4": 6, "NVIDIA A100-SXM4-80GB": 7,
    }  # fmt: skip
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="a\nCUDA error: busy\n")
    )
    with pytest.raises(BigqaError, match=r"cuda:0.*CUDA error: busy"):
        calibration.calibrate(here)


@pytest.mark.nullgpu
def test_who_calibrates_leaves_leaves_the_card_as_it_was() -> None:
    program = """
import json, tempfile, os
os.environ["BIGQA_CACHE"] = tempfile.mkdtemp()
import torch
from bigqa.machine.hardware import detect
from bigqa.speed import calibration
from bigqa.speed.throughput import Rates
calibration.measure_cpu = lambda *_, **__: Rates(
    low_flops_per_s=1, fp32_flops_per_s=1, low_batched_flops_per_s=1, fp32_batched_flops_per_s=1, bytes_per_s=1,
    link_bytes_per_s=1, launch_s=1, source="", error=0.1, adam_per_s=7)
rates = calibration.calibrate(detect())
import pynvml
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(0)
running = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
print(json.dumps([sorted(rates), rates["NVIDIA A100-SXM4-80GB"].adam_per_s, torch.cuda.is_initialized(),
                  torch.cuda.memory_reserved(), [one.usedGpuMemory for one in running]]))
"""
    found = on_null_gpu(program)
    assert found[:4] == [["NVIDIA A100-SXM4-80GB", "cpu"], 7, False, 0] and not any(found[4])
