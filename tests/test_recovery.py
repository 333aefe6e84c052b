"""Out of memory at every place of a run: it goes on with the next rung, loses no step and repeats none, and ends."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bigqa.engine import inference
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.loop.stop import StopRequest
from bigqa.engine.optim.update import Update
from bigqa.engine.recovery import HostWatch, OutOfMemory, is_out_of_memory
from bigqa.errors import BigqaError
from bigqa.machine.hardware import host_memory
from bigqa.plan.candidates import Workload, choose
from bigqa.plan.ladder import AGAIN, ladder_of, plain_ladder, switches_of
from bigqa.plan.machine import machine_for
from bigqa.plan.planner import Planner, estimator_for
from bigqa.run import fine_tuning
from bigqa.run.fine_tuning import fine_tune
from bigqa.run.folder import begin, settings_from
from bigqa.sample import FOLDER
from bigqa.settings import make_settings
from bigqa.strategy import STRATEGIES, Strategy
from bigqa.tasks.qa import QuestionAnswering

STEPS = 6
FAILS_AT = 3
"""The step, counted from 0, at which memory runs out."""
CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """A run takes SIGINT and SIGTERM for itself."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("BIGQA_CACHE", str(folder))
        yield folder


def options(out: Path, **more: Any) -> dict[str, Any]:
    words = {"model": "tiny", "train_file": FOLDER / "train.json", "limit": 32, "out": out, "device": "cpu"}
    words |= {"max_steps": STEPS, "global_batch": 8, "micro_batch": 8, "precision": "fp32", "dropout": 0.0}
    return words | {"save_every": 2, "check": False} | more


def train(out: Path, **more: Any) -> int:
    """Run to the end, as a launcher does; return how often the run was taken up again."""
    settings, resume = settings_from(options(out, **more), None), False
    for starts in range(10):
        try:
            fine_tune(settings, resume=resume)
        except SystemExit as stop:
            assert stop.code == AGAIN
            settings, resume = settings_from({}, out), True
        else:
            return starts
    raise AssertionError("the run never ends")


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> list[float]:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert train(out) == 0
    return [line["loss"] for line in metrics(out)]


def is_prediction(args: tuple[Any, ...]) -> bool:
    """Whether a call is of a step that is traced: on tensors without data."""
    tensors = [one for arg in args for one in (arg.values() if isinstance(arg, dict) else [arg])]
    return any(isinstance(one, torch.Tensor) and one.is_meta for one in tensors)


def fail_at(call: int, function: Any) -> Any:
    """Return a function that runs out of memory once, at its so-manieth call; calls of a prediction do not count."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if is_prediction(args):
            return function(*args, **kwargs)
        calls[0] += 1
        if calls[0] == call + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    ("owner", "name", "kept"),
    [
        (QuestionAnswering, "loss_sum", FAILS_AT),
        (Update, "backward", FAILS_AT),
        (torch.optim.AdamW, "step", None),
        (fine_tuning, "build", None),
        (checkpoint, "save", 2),
    ],
    ids=["forward", "backward", "optimizer", "building", "saving"],
)
def test_a_run_goes_on_with_the_next_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float], owner: Any, name: str, kept: int | None
) -> None:
    call = FAILS_AT if owner not in (checkpoint, fine_tuning) else 0
    monkeypatch.setattr(owner, name, fail_at(call, getattr(owner, name)))
    out = tmp_path / "run"
    assert train(out) == 1
    lines = metrics(out)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))  # none lost, none twice
    assert [line["loss"] for line in lines] == pytest.approx(unbroken, rel=1e-5)
    [switch] = switches_of(out)
    assert switch["after_step"] == kept and switch["micro_batch"] == 4
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["switches"] == [switch] and report["settings"]["micro_batch"] == 4
    assert report["settings"]["global_batch"] == 8
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert "out of memory" in log and "micro-batches of 4" in log


def test_a_step_whose_weights_are_changed_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    """Memory runs out between a step's update and its record, which alone is lost."""
    monkeypatch.setattr(StepReader, "launched", fail_at(FAILS_AT, StepReader.launched))
    out = tmp_path / "run"
    assert train(out) == 1
    lines = metrics(out)
    assert [line["step"] for line in lines] == [step for step in range(1, STEPS + 1) if step != FAILS_AT + 1]
    assert [line["loss"] for line in lines] == pytest.approx(
        [loss for step, loss in enumerate(unbroken) if step != FAILS_AT], rel=1e-5
    )
    assert [switch["after_step"] for switch in switches_of(out)] == [FAILS_AT + 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"strategy": STRATEGIES["zero3-nvme"]}, "--nvme DIR"),
        ({"strategy": STRATEGIES["8bit"]}, "pip install 'bigqa[8bit]'"),
        ({"strategy": STRATEGIES["release-recompute"], "precision": "fp16"}, "use bf16"),
        ({"dev_file": FOLDER / "no-such.json"}, "no-such.json"),
        ({"dev_file": FOLDER / "vocab.txt"}, "vocab.txt"),
    ],
    ids=["no folder", "no package", "axes", "no file", "not data"],
)
def test_what_cannot_end_well_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, changes: dict[str, Any], said: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "bitsandbytes" else found(name))
    settings = make_settings(**(options(tmp_path / "run") | changes))
    with pytest.raises(BigqaError, match=re.escape(said)):
        fine_tune(settings, resume=False)
    assert not (tmp_path / "run").exists()


def test_a_run_may_be_scored_on_another_file_when_it_goes_on(tmp_path: Path) -> None:
    begin(make_settings(**options(tmp_path / "run")), {})
    found = settings_from({"dev_file": FOLDER / "dev.json"}, tmp_path / "run")
    assert found.dev_file == FOLDER / "dev.json" and found.train_file == options(tmp_path)["train_file"]


def test_only_a_second_interrupt_is_impatience(tmp_path: Path) -> None:
    """A scheduler and a launcher may both send SIGTERM."""
    stop = StopRequest(tmp_path)
    for _ in range(2):
        signal.raise_signal(signal.SIGTERM)
    assert stop.asked()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_evaluation_goes_on_with_smaller_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    whole = inference._forward
    refused: list[int] = []

    def forward(model: Any, inputs: Any, chosen: list[int]) -> Any:
        if len(chosen) > 4:
            refused.append(len(chosen))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
        return whole(model, inputs, chosen)

    monkeypatch.setattr(inference, "_forward", forward)
    out = tmp_path / "run"
    assert train(out, dev_file=FOLDER / "dev.json") == 0
    assert refused
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["scores"]["total"] == 240


def test_a_ladder_that_is_used_up_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    loss_sum = QuestionAnswering.loss_sum

    def always(*args: Any) -> Any:
        if is_prediction(args):
            return loss_sum(*args)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(QuestionAnswering, "loss_sum", always)
    with pytest.raises(BigqaError, match="no strategy left to step down to"):
        train(tmp_path / "run")
    # 8 -> 4 -> 2 -> 1, then recomputation, then 8-bit states: each once.
    assert [line["micro_batch"] for line in switches_of(tmp_path / "run")] == [4, 2, 1, 1, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbroken: list[float]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(QuestionAnswering, "loss_sum", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        train(tmp_path / "run")
    assert switches_of(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_a_lack_of_memory_is_told_from_other_errors(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_the_host_is_watched() -> None:
    free = [10 * 2**30]
    with pytest.raises(OutOfMemory, match="about to run out"), HostWatch(lambda: (20 * 2**30, free[0])):
        time.sleep(0.1)
        free[0] = 100 * 2**20
        for _ in range(500):
            time.sleep(0.01)


def test_the_plans_ladder_needs_less_from_rung_to_rung() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("bert", num_hidden_layers=4, hidden_size=64, num_attention_heads=4, vocab_size=1000)
    from bigqa.machine.hardware import detect, planned_gpu

    machine = machine_for(detect(), planned_gpu("T4", None), host_bytes=64 * 2**30)
    candidates = Planner(estimator_for(config), Workload(seq_len=128), machine).candidates()
    chosen = choose(candidates)
    assert chosen is not None
    ladder = ladder_of(candidates, chosen)
    peaks = {c.name: c.peak_bytes for c in candidates}
    on_gpu = [peaks[rung.name] for rung in ladder if rung.strategy.device == "cuda"]
    assert on_gpu and on_gpu == sorted(on_gpu, reverse=True) and on_gpu[0] < chosen.peak_bytes
    assert ladder[-1].strategy.device == "cpu" and STRATEGIES["lora"] not in [rung.strategy for rung in ladder]
    assert all(rung.strategy.seq_len is None for rung in ladder)


def test_a_run_without_a_plan_has_a_ladder_too() -> None:
    ladder = plain_ladder(Strategy(precision="fp32"), 3)
    assert [rung.micro_batch for rung in ladder] == [2, 1, 1, 1]
    assert [rung.strategy.recompute for rung in ladder] == ["none", "none", "full", "full"]


needs_limits = pytest.mark.skipif(
    sys.platform != "linux" or not os.access(CGROUP, os.W_OK), reason="no memory cgroup that this user may make"
)


@contextlib.contextmanager
def limited(limit_bytes: int) -> Iterator[Path]:
    own = CGROUP / f"bigqa-test-{os.getpid()}"
    own.mkdir()
    try:
        (own / "memory.limit_in_bytes").write_text(str(limit_bytes))
        yield own
    finally:
        time.sleep(0.2)
        own.rmdir()


def bigqa_under(group: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bigqa.cli", *map(str, words)]
    return subprocess.run(
        ["bash", "-c", f'echo $BASHPID > {group}/cgroup.procs; exec "$@"', "bash", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs_limits
def test_under_a_limit_of_the_kernel(tmp_path: Path, cache: Path) -> None:
    """What does not fit is refused; tried all the same, the run steps down before the kernel kills it, and finishes."""
    long = tmp_path / "long.json"
    source = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))["data"]
    text = " ".join(part["context"] for article in source for part in article["paragraphs"])[:20000]
    qas = [
        {"id": str(n), "question": "누구인가?", "answers": [{"text": text[:2], "answer_start": 0}]} for n in range(32)
    ]
    long.write_text(json.dumps({"data": [{"title": "", "paragraphs": [{"context": text, "qas": qas}]}]}))
    words = ["train", "--model", "tiny", "--train-file", long, "--device", "cpu", "--strategy", "cpu-fp32"]
    words += ["--max-steps", 2, "--global-batch", 128, "--micro-batch", 128, "--out", tmp_path / "run"]
    with limited(900 * 2**20) as group:
        refused = bigqa_under(group, *words)
        assert refused.returncode == 1 and "of host memory" in refused.stderr and "--no-check" in refused.stderr
        assert not (tmp_path / "run").exists()
        done = bigqa_under(group, *words, "--no-check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(switches_of(tmp_path / "run")) >= 1
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]


def test_a_worker_that_the_kernel_kills_is_followed_by_the_next_rung(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "run"
    words = ["--model", "tiny", "--train-file", str(FOLDER / "train.json"), "--device", "cpu", "--precision", "fp32"]
    words += ["--max-steps", "60", "--save-every", "5", "--global-batch", "8", "--out", str(out)]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "bigqa.cli", "train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob("step-*")):
        assert launcher.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    [worker] = [int(pid) for pid in _children(launcher.pid)]
    os.kill(worker, signal.SIGKILL)
    said, _ = launcher.communicate(timeout=200)
    assert launcher.returncode == 0, said
    assert "A worker was killed" in said
    assert [line["step"] for line in metrics(out)] == list(range(1, 61))
    [switch] = switches_of(out)
    assert "SIGKILL" in switch["reason"] and switch["micro_batch"] == 4


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()


def test_limits_of_the_process_count(tmp_path: Path) -> None:
    total, free = host_memory()
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (700 * 2**20,) * 2);"
        "from bigqa.machine.hardware import host_memory; print(*host_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    limited_total, limited_free = map(int, done.stdout.split())
    assert limited_total == 700 * 2**20 < total and 0 < limited_free < limited_total
    assert free <= total
