"""A lack of memory is seen in time: told from other errors, watched for, met under the kernel's limits, planned for."""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from commands import LIMIT_S, Done, run, until
from memory_limits import limited, place_of, why_none
from small_runs import metrics

from bigqa.engine.recovery import HostWatch, OutOfMemory, is_out_of_memory, which_memory
from bigqa.machine.hardware import detect, host_memory, planned_gpu
from bigqa.models.sources import load_config, resolve
from bigqa.plan.candidates import Workload, choose
from bigqa.plan.ladder import ladder_of, switches_of
from bigqa.plan.machine import machine_for
from bigqa.plan.planner import Planner, known_estimator
from bigqa.sample import FOLDER
from bigqa.strategy import STRATEGIES


def bigqa(under: list[str], *words: object) -> Done:
    return run([*under, sys.executable, "-m", "bigqa.cli", *map(str, words)])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError('NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":1154'), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "device"),
        (RuntimeError("CUDA error: out of memory"), "device"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), "host"),
        (MemoryError(), "host"),
        (OSError(12, "Cannot allocate memory"), "host"),
        (OutOfMemory("host", "no 2 MiB more of the host's memory can be pinned"), "host"),
    ],
)
def test_which_memory_ran_out_is_told(error: BaseException, place: str) -> None:
    assert which_memory(error) == place


def test_what_pins_tells_which_memory_it_lacked() -> None:
    """DeepSpeed's function has this name, and CUDA the same words for both memories."""

    def pin_memory() -> None:
        raise RuntimeError("CUDA error: out of memory")

    for call, place in ((pin_memory, "host"), (lambda: pin_memory(), "host"), (_lacks_memory, "device")):
        with pytest.raises(RuntimeError) as caught:
            call()
        assert which_memory(caught.value) == place
    short = torch.OutOfMemoryError("CUDA out of memory")
    assert which_memory(short) == "device"


def _lacks_memory() -> None:
    raise RuntimeError("CUDA error: out of memory")


PRIMITIVE = RuntimeError("could not create a primitive")


def test_a_word_that_may_mean_memory_does_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN says this where a process's own limit leaves it nothing, and of what a processor cannot do."""
    monkeypatch.setattr("bigqa.engine.recovery.host_memory", lambda: (20 * 2**30, 10 * 2**30))
    assert not is_out_of_memory(PRIMITIVE)
    monkeypatch.setattr("bigqa.engine.recovery.host_memory", lambda: (20 * 2**30, 20 * 2**20))
    assert is_out_of_memory(PRIMITIVE)
    assert which_memory(PRIMITIVE) == "host"


def test_a_watch_that_finds_no_memory_to_look_with_says_so() -> None:
    def nothing() -> tuple[int, int]:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="about to run out"), HostWatch(nothing):
        until(lambda: False)


def test_the_host_is_watched() -> None:
    free = [10 * 2**30]
    with pytest.raises(OutOfMemory, match="about to run out"), HostWatch(lambda: (20 * 2**30, free[0])):
        time.sleep(0.1)
        free[0] = 100 * 2**20
        until(lambda: False)


def test_the_plans_ladder_needs_less_from_rung_to_rung() -> None:
    estimator = known_estimator(load_config(resolve("tiny")))
    machine = machine_for(detect(), planned_gpu("T4", None), host_bytes=64 * 2**30)
    candidates = Planner(estimator, Workload(), machine).candidates()
    chosen = choose(candidates)
    assert chosen is not None
    ladder = ladder_of(candidates, chosen)
    peaks = {c.name: c.peak_bytes for c in candidates}
    on_gpu = [peaks[rung.name] for rung in ladder if rung.strategy.device == "cuda"]
    assert on_gpu and on_gpu == sorted(on_gpu, reverse=True) and on_gpu[0] < chosen.peak_bytes
    assert ladder[-1].strategy.device == "cpu" and STRATEGIES["lora"] not in [rung.strategy for rung in ladder]
    assert all(rung.strategy.seq_len is None for rung in ladder)


def test_under_a_limit_of_the_kernel(tmp_path: Path) -> None:
    """What does not fit is refused; tried all the same, the run steps down before the kernel kills it, and finishes."""
    if why := why_none():
        pytest.skip(why)
    long = tmp_path / "long.json"
    source = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))["data"]
    text = " ".join(part["context"] for article in source for part in article["paragraphs"])[:20000]
    qas = [
        {"id": str(n), "question": "누구인가?", "answers": [{"text": text[:2], "answer_start": 0}]} for n in range(32)
    ]
    long.write_text(json.dumps({"data": [{"title": "", "paragraphs": [{"context": text, "qas": qas}]}]}))
    words = ["train", "--model", "tiny", "--train-file", long, "--device", "cpu", "--strategy", "cpu-fp32"]
    words += ["--max-steps", 1, "--global-batch", 64, "--micro-batch", 64, "--out", tmp_path / "run"]
    with limited(900 * 2**20) as under:
        refused = bigqa(under, *words)
        assert refused.returncode == 1 and "of host memory" in refused.stderr and "--no-check" in refused.stderr
        assert not (tmp_path / "run").exists()
        done = bigqa(under, *words, "--no-check")
    assert done.returncode == 0, done.stdout + done.stderr
    switches = switches_of(tmp_path / "run")
    assert switches and all("about to run out" in switch["reason"] for switch in switches), switches
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]


GROUPS_1 = "9:name=systemd:/\n4:memory:/job/7\n0::/\n"
GROUPS_2 = "0::/user.slice/own.service\n"


@pytest.mark.parametrize(
    ("own", "folders", "handed_on", "place"),
    [
        (GROUPS_1, "memory/job/7", None, "memory/job/7"),
        (GROUPS_2, "user.slice/own.service", "user.slice", "user.slice"),  # its own hands nothing on: it has processes
        (GROUPS_2, "user.slice/own.service", ".", "."),
        (GROUPS_2, "user.slice/own.service", None, None),
        ("0::/\n", ".", ".", "."),  # in a container, which sees its own group as the root
    ],
    ids=["version 1", "a service", "the root", "nothing handed on", "a container"],
)
def test_where_a_group_with_a_limit_may_be_made(
    tmp_path: Path, own: str, folders: str, handed_on: str | None, place: str | None
) -> None:
    for folder in [tmp_path / folders, *(tmp_path / folders).parents]:
        if folder == tmp_path.parent:
            break
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.procs").touch()
        (folder / "cgroup.subtree_control").write_text("cpu pids\n")
    if handed_on is not None:
        (tmp_path / handed_on / "cgroup.subtree_control").write_text("cpu memory pids\n")
    found, limits = place_of(tmp_path, own)
    assert found == (None if place is None else tmp_path / place)
    assert list(limits) == [] if place is None else next(iter(limits)) in ("memory.max", "memory.limit_in_bytes")


def test_a_worker_that_the_kernel_kills_is_followed_by_the_next_rung(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--model", "tiny", "--train-file", str(FOLDER / "train.json"), "--device", "cpu", "--precision", "fp32"]
    words += ["--max-steps", "40", "--save-every", "5", "--global-batch", "8", "--out", str(out), "--limit", "32"]
    words += ["--seq-len", "64", "--doc-stride", "16", "--max-query-length", "24"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "bigqa.cli", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: bool(list((out / "checkpoints").glob("step-*"))), launcher)
    [worker] = psutil.Process(launcher.pid).children()
    worker.kill()
    said, _ = launcher.communicate(timeout=LIMIT_S)
    assert launcher.returncode == 0, said
    assert "A worker was killed" in said
    assert [line["step"] for line in metrics(out)] == list(range(1, 41))
    [switch] = switches_of(out)
    assert "SIGKILL" in switch["reason"] and switch["micro_batch"] == 4


def test_limits_of_the_process_count(tmp_path: Path) -> None:
    total, free = host_memory()
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (700 * 2**20,) * 2);"
        "from bigqa.machine.hardware import host_memory; print(*host_memory())"
    )
    done = run([sys.executable, "-c", code])
    limited_total, limited_free = map(int, done.stdout.split())
    assert limited_total == 700 * 2**20 < total and 0 < limited_free < limited_total
    assert free <= total
