"""The small parts of the training loop: scale of the loss, seeds, records of steps, and who gets which windows."""

import io
import json
import math
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bigqa.engine.attention.packing import fill, split_padded
from bigqa.engine.loop import stop as stopping
from bigqa.engine.loop.checkpoint import _tensors, keep_last
from bigqa.engine.loop.feed import Feed
from bigqa.engine.loop.meter import MemoryMeter, SpeedMeter, peak_resident_bytes
from bigqa.engine.loop.order import DataOrder, mix_seed
from bigqa.engine.loop.reader import StepReader
from bigqa.engine.loop.recorder import Recorder, Silent
from bigqa.engine.loop.stop import PARENT_VARIABLE, StopRequest, tell_end
from bigqa.engine.optim.scaling import LossScaler
from bigqa.errors import BigqaError
from bigqa.tasks.qa.task import QuestionAnswering
from bigqa.tasks.rows import Rows

CPU = torch.device("cpu")


class Kept(Silent):
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)


@pytest.mark.parametrize("fates", [[True] * 2001, [False] * 20, [True, False, *[True] * 2003]])
def test_the_scale_of_the_loss_is_that_of_torch(fates: list[bool]) -> None:
    # The kernel that torch's GradScaler calls after each step.
    scale, good = torch.tensor([65536.0]), torch.tensor([0], dtype=torch.int32)
    ours = LossScaler()
    for finite in fates:
        torch._amp_update_scale_(scale, good, torch.tensor([0.0 if finite else 1.0]), 2.0, 0.5, 2000)
        ours.update(finite=finite)
        # Torch's goes below one, where nothing is left to scale.
        assert (ours.scale, ours.good_steps) == (max(1.0, scale.item()), good.item())
    assert ours.skipped == fates.count(False)


def test_seeds_are_those_of_splitmix64() -> None:
    # The first numbers of the published generator from the seed 0, and from 1234567, and what a second part does.
    assert mix_seed(0) == 0xE220A8397B1DCDAF >> 1
    assert mix_seed(1234567) == 6457827717110365317 >> 1
    assert mix_seed(0, 0) != mix_seed(0) and mix_seed(0, 1) != mix_seed(1, 0)
    assert mix_seed(-1) == mix_seed(2**64 - 1)


def test_the_windows_of_a_step_are_a_piece_of_a_shuffle_of_each_epoch() -> None:
    order = DataOrder(num_windows=10, global_batch=4, seed=3)
    steps = [order.batch(step) for step in range(6)]
    assert [len(step) for step in steps] == [4, 4, 2] * 2
    for epoch in (0, 1):
        expected = torch.randperm(10, generator=torch.Generator().manual_seed(mix_seed(3, epoch))).tolist()
        assert [window for step in steps[3 * epoch : 3 * epoch + 3] for window in step] == expected
    assert (order.num_steps(1.5, None), order.num_steps(2, 5)) == (5, 5)


def feed(lengths: list[int], **options: Any) -> Feed:
    rows = {
        "input_ids": [[number + 5] * length for number, length in enumerate(lengths)],
        "token_type_ids": [[0] * length for length in lengths],
        "start": list(range(len(lengths))),
        "end": list(range(len(lengths))),
    }
    order = DataOrder(num_windows=len(lengths), global_batch=options.pop("global_batch"), seed=1)
    task = QuestionAnswering(pad_token_id=0, takes_token_types=True)
    return Feed(order, Rows.of_columns(rows), lengths, task, device=CPU, **options)


def test_positions_begin_anew_in_each_window() -> None:
    rows = [{"input_ids": [5] * length, "token_type_ids": [0] * length} for length in (3, 2)]
    for first, task in ((0, QuestionAnswering(0, True)), (2, QuestionAnswering(1, False, 2))):
        batch = task.pack(rows)
        assert batch["position_ids"][0, :5].tolist() == [first + place for place in (0, 1, 2, 0, 1)]
        assert batch["cu_seq_lens_q"][:3].tolist() == [0, 3, 5]
        assert ("token_type_ids" in batch) is (first == 0)


@pytest.mark.parametrize("packs", [True, False])
def test_a_feed_gives_the_windows_of_the_step_that_is_asked_for(packs: bool) -> None:
    made = feed([8, 3, 5, 2, 7, 4], global_batch=3, tokens=8, packs=packs)
    for step in (0, 1, 0, 3):  # the next one, as it was made ahead; and others, as after a resume
        seen = sorted(int(one) for batch in made.take(step) for one in batch["start"])
        assert seen == sorted(made.order.batch(step))
        sizes = [batch["input_ids"].numel() for batch in made.take(step)]
        assert packs or max(sizes) <= 8
    made.close()
    with pytest.raises(RuntimeError):
        made.take(9)


def test_a_process_without_windows_runs_one_that_does_not_count() -> None:
    lengths = [8, 3, 5]
    feeds = [feed(lengths, global_batch=2, tokens=8, packs=False, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 1):  # the second has one window for two processes
        batches = [one.take(step) for one in feeds]
        assert len(batches[0]) == len(batches[1])
        weights = [float(batch.get("weight", 1.0)) for part in batches for batch in part]
        counted = [int(b["start"]) for part in batches for b in part if float(b.get("weight", 1.0))]
        assert sorted(counted) == sorted(feeds[0].order.batch(step))
        assert sum(weights) == len(feeds[0].order.batch(step))
    for one in feeds:
        one.close()


def test_a_step_is_recorded_with_its_speed_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.0, 110.0, 110.5])
    monkeypatch.setattr("bigqa.engine.loop.reader.time.perf_counter", lambda: next(clock))
    kept, speed = Kept(), SpeedMeter.__new__(SpeedMeter)
    speed.started, speed.windows, speed.tokens = 0.0, 0, 0
    reader = StepReader(CPU, kept, speed)
    reader.launched({"step": 1, "windows": 8, "tokens": 600}, torch.tensor([2.5, 0.0, 7.0]))
    assert not reader.stop_asked
    reader.resume()  # to save took until 110
    reader.launched({"step": 2, "windows": 4, "tokens": 100}, torch.tensor([1.5, 1.0, 3.0]))
    reader.read()
    first, second = kept.records
    assert (first["loss"], first["grad_norm"], first["seconds"]) == (2.5, 7.0, 2.0)
    assert (first["samples_per_s"], first["tokens_per_s"]) == (4.0, 300.0)
    assert (second["loss"], second["seconds"], second["tokens_per_s"]) == (1.5, 0.5, 200.0)
    assert reader.stop_asked and reader.last_loss == 1.5
    assert (speed.windows, speed.tokens) == (12, 700)
    assert 0 < first["memory_bytes"] <= first["peak_memory_bytes"]


def test_speed_counts_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([50.0, 54.0, 54.0])
    monkeypatch.setattr("bigqa.engine.loop.meter.time.perf_counter", lambda: next(clock))
    speed = SpeedMeter()
    speed.add(2, 100)
    speed.add(6, 300)
    assert speed.rates() == (2.0, 100.0)
    assert speed.elapsed_s() == 4.0


def test_a_peak_stays_when_the_memory_is_gone() -> None:
    import resource

    meter = MemoryMeter(CPU)
    before = meter.now_bytes()
    # Pages that are the process's own from now on, whatever its heap has kept of tests before this one.
    held = mmap.mmap(-1, 48 << 20)
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    during = meter.now_bytes()
    assert during - before > 40 << 20
    held.close()
    assert meter.peak_bytes() >= during - (8 << 20)
    # The kernel's two ways to say it: kibibytes both.
    assert math.isclose(peak_resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel_tol=0.2)


def figures(step: int) -> dict[str, Any]:
    names = ("loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "memory_bytes", "peak_memory_bytes")
    return {"step": step} | dict.fromkeys(names, 1.0)


def test_steps_that_are_run_again_are_recorded_once(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"step": step, "old": True}) + "\n" for step in (1, 2, 3, 4))
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 5', encoding="utf-8")
    recorder = Recorder(tmp_path, Console(file=io.StringIO()))
    recorder.start(2, 4)
    for step in (3, 4):
        recorder.step(figures(step))
        read = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(read[-1])["step"] == step  # on the disk after every step
    recorder.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(one["step"], "old" in one) for one in records] == [(1, True), (2, True), (3, False), (4, False)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_damaged_lines_are_dropped_and_said(tmp_path: Path) -> None:
    """A byte that changed on the disk kept a run from being gone on with, by an error that nobody foresaw."""
    good = [json.dumps({"step": step}).encode() for step in (1, 2, 3)]
    damaged = [b'{"step": 2\xce}', b"[]", b"{}", b'{"step": "2"}']
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([*damaged, *good]) + b"\n")
    shown = io.StringIO()
    recorder = Recorder(tmp_path, Console(file=shown))
    recorder.start(2, 4)
    recorder.close()
    assert file.read_bytes() == b"\n".join(good[:2]) + b"\n"
    assert f"{file} is damaged: 4 of its lines cannot be read and are dropped\n" in shown.getvalue()


def test_what_is_said_is_printed_as_it_is_and_logged(tmp_path: Path) -> None:
    shown = io.StringIO()
    recorder = Recorder(tmp_path, Console(file=shown, width=20))
    recorder.say("[red] a line that is longer than the console is wide")
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert shown.getvalue() == "[red] a line that is longer than the console is wide\n"
    assert logged.endswith(" [red] a line that is longer than the console is wide\n")
    recorder.close()


def test_a_plain_line_comes_every_ten_seconds_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("bigqa.engine.loop.recorder.time.perf_counter", lambda: now[0])
    shown = io.StringIO()
    recorder = Recorder(tmp_path, Console(file=shown, width=200))
    recorder.start(2, 8)
    for step, seconds in ((3, 1000.0), (4, 1004.0), (5, 1012.0), (8, 1013.0)):
        now[0] = seconds
        recorder.step(figures(step))
    recorder.close()
    lines = shown.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 3/8", "step 5/8", "step 8/8"]
    # 3 steps in 12 s, and 3 more to go.
    assert "12 s left" in lines[1] and "0 s left" in lines[2]


def test_a_stop_is_asked_for_by_a_file_or_by_the_launchers_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal
    import subprocess

    previous = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        launcher = subprocess.Popen(["sleep", "60"])
        monkeypatch.setenv(PARENT_VARIABLE, str(launcher.pid))
        monkeypatch.setattr(stopping, "LOOK_S", 0.0)
        stop = StopRequest(tmp_path)
        assert not stop.asked()
        (tmp_path / ".stop-requested").touch()
        assert stop.asked()
        stop.clear()
        stop.clear()  # of a run that no file asked to stop
        assert not stop.asked() and not list(tmp_path.iterdir())
        launcher.kill()
        launcher.wait()
        assert stop.asked()
        monkeypatch.delenv(PARENT_VARIABLE)
        for number in (signal.SIGINT, signal.SIGTERM):
            alone = StopRequest(tmp_path)
            assert not alone.asked()
            os.kill(os.getpid(), number)
            assert alone.asked()
    finally:
        for number, handler in previous:
            signal.signal(number, handler)


def test_only_the_first_process_that_ends_says_how(tmp_path: Path) -> None:
    assert tell_end(tmp_path, 3) and not tell_end(tmp_path, 4)
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["3"]
    assert not tell_end(tmp_path / "gone", 3)


def test_micro_batches_are_filled_to_the_last_token() -> None:
    assert fill([4, 4], 8) == [[0, 1]] and fill([3], 8) == [[0]]
    assert fill([4, 5], 8) == [[1], [0]]
    assert split_padded([4, 2], 8) == [[0, 1]] and split_padded([2, 5, 1], 8) == [[1], [0, 2]]


def test_a_file_that_holds_no_tensors_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(BigqaError, match=r"weights\.safetensors cannot be read"):
        _tensors(tmp_path / "weights.safetensors")


def test_what_cannot_be_removed_stops_no_run(tmp_path: Path) -> None:
    (tmp_path / ".step-00000004.tmp").write_text("a file where a folder was", encoding="utf-8")
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
    keep_last(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000002", "step-00000003"]
