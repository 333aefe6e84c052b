"""The libraries of the null GPU: called by themselves, and below torch's CUDA build."""

import ctypes
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from null_gpu import on_null_gpu

from bigqa.errors import BigqaError
from bigqa.machine.chips import CHIPS
from bigqa.nullgpu import build, torch_build
from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.nullgpu.environment import variables
from bigqa.nullgpu.python import ask
from bigqa.units import MIB


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return libcuda, libcudart and NVML, of what is written by hand alone; every warning is an error."""
    try:
        build.need_tools()
        include = build.find_headers(ask(Path(sys.executable)))
    except BigqaError as error:
        pytest.skip(str(error))
    place = tmp_path_factory.mktemp("libraries")
    for soname in ("libcuda.so.1", "libcudart.so.13", "libnvidia-ml.so.1"):
        build.build_library(place, soname, set(), None, ("-Werror", *build.include_flags(include)))
    return place


BASE = """
import ctypes, json, os
cuda = ctypes.CDLL("libcuda.so.1", ctypes.RTLD_GLOBAL)
rt = ctypes.CDLL("libcudart.so.13")
cuda.null_most.restype = cuda.null_most_of.restype = ctypes.c_size_t
def made(function, *arguments):
    out = ctypes.c_void_p()
    return function(ctypes.byref(out), *arguments), out
def malloc(size):
    return made(rt.cudaMalloc, ctypes.c_size_t(size))
"""
MIBS = 1 << 20


def alone(libraries: Path, program: str, card: str = "T4", visible: str | None = None, **fields: object) -> object:
    gpu = NullGpu(find_card(card), **{"context_bytes": 0, **fields})  # type: ignore[arg-type]
    env = variables(gpu, libraries, (), {"PATH": "/usr/bin"}) | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    done = subprocess.run([sys.executable, "-c", BASE + program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_ends_where_the_card_does(libraries: Path) -> None:
    program = """
size = 100 << 20
got = []
while True:
    status, at = malloc(size)
    if status: break
    got.append(at)
rt.cudaFree(got[0])
again = malloc(size)[0]
free, total = ctypes.c_size_t(), ctypes.c_size_t()
rt.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
print(json.dumps([status, len(got), len({a.value for a in got}), again, free.value, total.value, cuda.null_most(0)]))
"""
    status, count, places, again, free, total, most = alone(  # type: ignore[misc]
        libraries, program, memory_bytes=1000 * MIBS, context_bytes=50 * MIBS
    )
    assert (status, count, places, again) == (2, 9, 9, 0)  # cudaErrorMemoryAllocation; 950 MiB hold nine of 100
    assert (free, total, most) == (50 * MIBS, 1000 * MIBS, 950 * MIBS)


def test_the_host_reads_what_it_wrote_until_a_kernel_runs(libraries: Path) -> None:
    program = """
asked = []
answer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)(lambda size: asked.append(size) or 1)
cuda.null_on_read(answer)
at = malloc(1 << 21)[1]
back = (ctypes.c_char * 4)()
def read(size=4):
    back.raw = b"xxxx"
    rt.cudaMemcpy(back, at, ctypes.c_size_t(size), 2)
    return back.raw.decode("latin1")
rt.cudaMemcpy(at, b"abcd", ctypes.c_size_t(4), 1)
found = [read()]
cuda.null_ran()
found += [read(), read(1)]
print(json.dumps([found, asked]))
"""
    found, asked = alone(libraries, program)  # type: ignore[misc]
    assert found == ["abcd", "\0\0\0\0", "\1xxx"]  # one byte is a question, which the callback answered with yes
    assert asked == [4, 1]


CLOCK = """
a, b = (made(rt.cudaStreamCreateWithFlags, 1)[1] for _ in range(2))
e, f, g = (made(rt.cudaEventCreateWithFlags, 2)[1] for _ in range(3))
rt.cudaEventRecord(e, a)
rt.cudaStreamWaitEvent(b, e, 0)
rt.cudaEventRecord(f, b)
rt.cudaEventRecord(g, a)
states = [[rt.cudaEventQuery(x) == 0 for x in (e, f, g)]]
rt.cudaEventSynchronize(f)
states.append([rt.cudaEventQuery(x) == 0 for x in (e, f, g)])
rt.cudaStreamSynchronize(b)
states.append([rt.cudaEventQuery(x) == 0 for x in (e, f, g)])
rt.cudaDeviceSynchronize()
states.append([rt.cudaEventQuery(x) == 0 for x in (e, f, g)])
rt.cudaEventRecord(g, a)
states.append(next((n for n in range(10_000) if rt.cudaEventQuery(g) == 0), None))
print(json.dumps(states))
"""


def test_what_is_done_when_nothing_is_until_the_host_waits(libraries: Path) -> None:
    before, after_f, after_b, after_all, polls = alone(libraries, CLOCK, bound="most")  # type: ignore[misc]
    assert before == [False, False, False]
    assert after_f == after_b == [True, True, False]  # b waits for e of a, so e is done; g, later on a, is not
    assert after_all == [True, True, True]
    assert polls  # a host that does nothing but ask is waiting


def test_everything_is_done_at_once_in_the_other_bound(libraries: Path) -> None:
    *states, polls = alone(libraries, CLOCK, bound="least")  # type: ignore[misc]
    assert all(all(state) for state in states) and polls == 0


def test_a_copy_to_ordinary_memory_waits_and_one_to_pinned_memory_does_not(libraries: Path) -> None:
    program = """
at, a, e = malloc(1 << 21)[1], made(rt.cudaStreamCreateWithFlags, 1)[1], made(rt.cudaEventCreateWithFlags, 2)[1]
pinned = made(rt.cudaHostAlloc, ctypes.c_size_t(3 << 20), 0)[1]
found = []
for to in (pinned, (ctypes.c_char * 8)()):
    rt.cudaEventRecord(e, a)
    rt.cudaMemcpyAsync(to, at, ctypes.c_size_t(8), 2, a)
    found.append(rt.cudaEventQuery(e) == 0)
print(json.dumps([found, cuda.null_most_of(2)]))
"""
    assert alone(libraries, program, bound="most") == [[False, True], 3 << 20]


def test_nvml_counts_all_cards_and_cuda_the_visible_ones(libraries: Path) -> None:
    program = """
nvml = ctypes.CDLL("libnvidia-ml.so.1")
count, cards = ctypes.c_int(), ctypes.c_uint()
rt.cudaGetDeviceCount(ctypes.byref(count)); nvml.nvmlDeviceGetCount_v2(ctypes.byref(cards))
malloc(8 << 20)
used = []
for i in range(cards.value):
    memory = (ctypes.c_ulonglong * 3)()
    handle = ctypes.c_void_p()
    nvml.nvmlDeviceGetHandleByIndex_v2(i, ctypes.byref(handle))
    nvml.nvmlDeviceGetMemoryInfo(handle, memory)
    used.append(memory[2] >> 20)
print(json.dumps([count.value, cards.value, used]))
"""
    assert alone(libraries, program, count=4, visible="2,1,9,0") == [
        2,
        4,
        [0, 0, 8, 0],
    ]  # CUDA stops at what is no card
    assert alone(libraries, program, count=4, visible="GPU-44444444-4444-4444") == [1, 4, [0, 0, 0, 8]]


def test_a_fork_has_the_cards_of_its_own_environment(libraries: Path) -> None:
    """NVML may be asked before a fork, as the planner does; the driver begins in the fork, as in a worker."""
    program = """
nvml = ctypes.CDLL("libnvidia-ml.so.1")
nvml.nvmlInit_v2()
installed, total, free = ctypes.c_int(), ctypes.c_size_t(), ctypes.c_size_t()
nvml.nvmlDeviceGetCount_v2(ctypes.byref(installed))
here, there = os.pipe()
if not os.fork():
    os.environ["BIGQA_NULL_COUNT"] = "3"
    os.environ["BIGQA_NULL_CARD"] = os.environ["BIGQA_NULL_CARD"].replace(str(1000 << 20), str(500 << 20))
    nvml.nvmlDeviceGetCount_v2(ctypes.byref(installed))
    rt.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    os.write(there, json.dumps([installed.value, total.value]).encode())
    os._exit(0)
forked = json.loads(os.read(here, 99))
nvml.nvmlDeviceGetCount_v2(ctypes.byref(installed))
print(json.dumps([installed.value, *forked]))
"""
    assert alone(libraries, program, memory_bytes=1000 * MIBS) == [1, 3, 500 * MIBS]


# ---- torch on it ----


@pytest.mark.nullgpu
@pytest.mark.parametrize(
    ("card", "workspace", "attention"),
    [
        ("T4", 8 * MIB + 128 * 1024, "ToCopy"),  # the mathematical form: no flash attention in bf16 before 8.0
        ("A100-80", 8 * MIB + 128 * 1024, "ScaledDotProductFlashAttention"),
        ("H100", 32 * MIB, "ScaledDotProductCudnnAttention"),
    ],
)
def test_torch_chooses_by_the_card(card: str, workspace: int, attention: str) -> None:
    program = """
import json, torch
import torch.nn.functional as F
square = torch.empty(64, 64, device="cuda")
before = torch.cuda.memory_allocated()
product = square @ square
workspace = torch.cuda.memory_allocated() - before - 64 * 64 * 4
q = torch.empty(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
out = F.scaled_dot_product_attention(q, q, q)
out.backward(torch.empty_like(out))
layer = torch.nn.Linear(1024, 1024, device="cuda")
optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
layer(torch.empty(8, 1024, device="cuda")).sum().backward()
before = torch.cuda.memory_allocated()
optimizer.step()
state = torch.cuda.memory_allocated() - before
read = torch.ones(3, device="cuda").sum().item()
print(json.dumps([torch.cuda.get_device_name(), workspace, out.grad_fn.name(), state, read]))
"""
    name, got, kernel, state, read = on_null_gpu(program, card)
    assert name == CHIPS[card].cuda_name and got == workspace and kernel.startswith(attention)
    assert state == 2 * (1024 * 1024 + 1024) * 4 + 2 * 512  # two moments, and a step count each, rounded up
    assert read == 0


@pytest.mark.nullgpu
def test_figures_that_others_measured_on_an_a100() -> None:
    # Liger Kernel's benchmark_data/all_benchmark_data.csv, A100-SXM4-80GB, plain torch: cross entropy of 8 x 2048 rows,
    # SwiGLU of width 4096 and 11008 in bf16, 4 x 1024 rows; forward and backward, MiB of max_memory_allocated.
    program = """
import json, torch
def most(run):
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        run()
    return torch.cuda.max_memory_allocated() / 2**20
found = []
logits = torch.randn(8 * 2048, 4096, requires_grad=True, device="cuda")
target = torch.randint(4096, (8 * 2048,), device="cuda")
loss = torch.nn.CrossEntropyLoss()
found.append(most(lambda: loss(logits, target).backward()))
print(json.dumps(found))
"""
    assert on_null_gpu(program)[0] == pytest.approx(1280.1260, abs=0.0011)


@pytest.mark.nullgpu
@pytest.mark.parametrize(("bound", "reserved"), [("least", 64), ("most", 256)])
def test_memory_that_waits_for_a_stream_is_free_at_once_or_when_the_host_waits(bound: str, reserved: int) -> None:
    program = """
import json, torch
stream = torch.cuda.Stream()
def once():
    tensor = torch.empty(64 << 20, device="cuda", dtype=torch.uint8)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        tensor.add_(1)
    tensor.record_stream(stream)
for _ in range(4):
    once()
first = torch.cuda.memory_reserved() >> 20
stream.synchronize()
for _ in range(4):
    once()
print(json.dumps([first, torch.cuda.memory_reserved() >> 20]))
"""
    assert on_null_gpu(program, bound=bound) == [reserved, reserved]


@pytest.mark.nullgpu
def test_out_of_memory_is_torchs_own_error() -> None:
    program = """
import json, torch
try:
    torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
except torch.OutOfMemoryError as error:
    print(json.dumps(str(error)))
"""
    text = on_null_gpu(program, "T4", memory_bytes=1 << 30)
    assert "Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1024.00 MiB" in text


@pytest.mark.nullgpu
def test_two_builds_at_once_make_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = ask(Path(sys.executable))
    torch = torch_build.cuda_build(python, install=False)
    monkeypatch.setattr(build, "folder", lambda: tmp_path)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(build.libraries_for(python, torch))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(list(tmp_path.glob("libraries-*"))) == 1
    assert ctypes.CDLL(str(found[0] / "libcuda.so.1")).null_count() == 0  # no card is described here
