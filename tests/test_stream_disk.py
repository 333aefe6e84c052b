"""Streamed weights and states in a file on a disk: the same learning, in less memory, and nothing left over."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import metrics, train
from streaming import CONFIGS, PLAIN, SMALL, STREAM, learned, off, parts_of, runs_of, task_of
from transformers import BertConfig

from bigqa.engine.build import not_together
from bigqa.engine.loop import checkpoint
from bigqa.engine.loop.step import Parts, train_step
from bigqa.engine.processes import Processes
from bigqa.engine.stream import disk, loading
from bigqa.engine.stream.disk import IN_PLAY_BYTES, MappedDisk, merged
from bigqa.errors import BigqaError
from bigqa.memory.cards import A100
from bigqa.memory.stream import Shape
from bigqa.run import delivery

ALL = {"offload_optimizer": "nvme", "offload_parameters": "nvme"}
TIERS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "8bit": {"precision": "bf16-sr", "optimizer": "adamw8bit"},
}


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes("cpu")


@pytest.mark.parametrize(
    ("tier", "where"),
    [
        *((tier, ALL) for tier in TIERS),
        ("bf16", {"offload_optimizer": "nvme"}),
        ("8bit", {"offload_parameters": "nvme"}),
    ],
)
def test_on_a_disk_is_learned_to_the_bit_what_is_learned_in_memory(
    tier: str, where: dict[str, str], processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out and given back again and again: a page that is not in the file is not in memory either."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(disk, "BATCH_BYTES", 2**14)
    config = CONFIGS["bert"]()
    here = parts_of(config, STREAM.model_copy(update=TIERS[tier]), processes)
    there = parts_of(config, STREAM.model_copy(update=TIERS[tier] | where), processes, nvme=tmp_path)
    assert stepped(here, config) == stepped(there, config)
    states = [one.update.state() for one in (here, there)]
    for one, other in zip(*((state.weights, state.moments, state.scales) for state in states), strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert list(tmp_path.iterdir()) == []  # the file has no name


def stepped(parts: Parts, config: Any) -> list[float]:
    """Take two steps of two micro-batches, of windows that are alike: each other length takes a CPU a while."""
    window = {"input_ids": list(range(1, 25)), "token_type_ids": [0] * 24, "start": 1, "end": 2}
    batch, found = task_of(config).pack([window]), []
    for step in range(2):
        parts.update.set_rate(5e-3)
        parts.update.begin(step, 42)
        torch.manual_seed(step)
        found += [float(one) for one in train_step(parts, [batch] * 2, 2)]
    return found


@pytest.mark.parametrize(("here", "there"), [("stream", "stream-disk"), ("stream-8bit", "stream-disk-8bit")])
def test_a_run_hands_over_the_model_that_it_would_in_memory(
    here: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From weights that come by files to those that are written a few at a time."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(loading, "LARGE_BYTES", 2**12)
    monkeypatch.setattr(delivery, "SHARD", "200KB")
    options = {"precision": "auto", "max_steps": 2, "save_every": 1, "micro_batch": 4}
    for name in (here, there):
        assert train(tmp_path / name, strategy=name, nvme=tmp_path / "disk", **options) == 0
    assert [line["step"] for line in metrics(tmp_path / there)] == [1, 2]
    assert [folder.name[-1] for folder in sorted((tmp_path / there / "checkpoints").iterdir())] == ["1", "2"]
    one, other = (weights_in(tmp_path / name / "model") for name in (here, there))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert len(list((tmp_path / there / "model").glob("*.safetensors"))) > 1
    assert list((tmp_path / "disk").iterdir()) == []


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def test_runs_go_on_from_a_disk_and_onto_one(processes: Processes, tmp_path: Path) -> None:
    config, on_disk = CONFIGS["bert"](), STREAM.model_copy(update=ALL)
    unbroken = learned(parts_of(config, PLAIN, processes), config, 0, 2, packed=True)
    for first, second in ((PLAIN, on_disk), (on_disk, PLAIN)):
        parts = parts_of(config, first, processes, nvme=tmp_path / "disk")
        learned(parts, config, 0, 1, packed=True)
        checkpoint.save(tmp_path / first.offload_optimizer, 1, parts.update.state(), {})
        other = parts_of(config, second, processes, nvme=tmp_path / "disk")
        found = checkpoint.load_newest(tmp_path / first.offload_optimizer, pytest.fail)
        assert found is not None
        checkpoint.restore(found, other.update)
        assert off(learned(other, config, 1, 2, packed=True), unbroken[1:]) < 1e-6


@pytest.mark.parametrize("tier", ["bf16", "8bit"])
def test_what_a_disk_holds_and_moves_is_predicted_to_the_byte(tier: str, processes: Processes, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = BertConfig(**SMALL | {"num_hidden_layers": 5, "vocab_size": 400})
    strategy = STREAM.model_copy(update=TIERS[tier] | ALL)
    parts: Any = parts_of(config, strategy, processes, nvme=tmp_path)
    row = {"input_ids": list(range(1, 33)), "token_type_ids": [0] * 32, "start": 1, "end": 2}
    full = [task_of(config).collate([row, row])] * 7
    shelf, link = parts.passes.slots.shelf, parts.passes.link
    before = shelf.bytes_read, shelf.bytes_written  # of putting weights in place
    train_step(parts, full, 14)
    found = runs_of(config).footprint(strategy, Shape(2, 32, 7, packed=False), A100)
    assert found.read_bytes == shelf.bytes_read - before[0]
    assert found.written_bytes == shelf.bytes_written - before[1]
    assert 0 < found.weights_read_bytes < found.read_bytes
    if tier == "bf16":  # gradients of layers that wait, then a weight, what fp32 has more, and two moments
        placed = parts.update.placed
        waiting = sum(2 * unit.flat.numel() for unit in placed.layer_units)
        stepped_bytes = sum((2 + 2 + 4 + 4) * one.low.numel() for one in placed.weights.values())
        in_memory = sum(2 * one.low.numel() for one in placed.outer.weights.values())
        assert found.written_bytes == waiting + stepped_bytes - in_memory
    of_rows = sum(min(7 * 64, count) for count in (400, 64, 2)) * 32 * 4
    in_play = min(found.disk_bytes, IN_PLAY_BYTES) + parts.passes.slots.ahead_bytes
    assert found.kept_bytes + found.pinned_bytes - in_play == pytest.approx(link.kept_bytes + of_rows, rel=0.05)
    parts.update.finish()
    assert found.disk_bytes == shelf.disk_bytes


def test_pages_that_are_left_are_in_the_file_and_not_in_memory(tmp_path: Path) -> None:
    there = MappedDisk(tmp_path, 2**30)
    flat = there.make(2 * IN_PLAY_BYTES // 4, torch.float32)
    before, most, step = mapped_bytes(), 0, 2**20
    for begin in range(0, len(flat), step):
        flat[begin : begin + step] = begin
        there.leave([flat[begin : begin + step]], changed=True)
        most = max(most, mapped_bytes() - before)
    assert 0 < most < IN_PLAY_BYTES
    there.settle()
    assert mapped_bytes() == before
    assert all(flat[begin] == begin for begin in range(0, len(flat), step))


def mapped_bytes() -> int:
    """Return what is in memory of files that have no name any more."""
    counts, size = False, 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split()[0]:
            counts = line.endswith("(deleted)")
        elif counts and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def test_what_cannot_be_written_is_told_in_a_line(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk, config = STREAM.model_copy(update=ALL), CONFIGS["bert"]()
    (tmp_path / "file").write_text("")
    with pytest.raises(BigqaError, match="File exists"):
        parts_of(config, on_disk, processes, nvme=tmp_path / "file")

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BigqaError, match="the disk is full") as caught:
        parts_of(config, on_disk, processes, nvme=tmp_path / "new")
    assert str(tmp_path / "new") in str(caught.value) and "\n" not in str(caught.value)
    assert list((tmp_path / "new").iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from bigqa.engine.stream.disk import MappedDisk
there = MappedDisk(Path(sys.argv[1]), 2**24)
there.make(2**20, torch.float32).fill_(1.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    assert done.returncode < 0 and list(tmp_path.iterdir()) == []


def test_ranges_that_touch_are_one() -> None:
    assert merged([(8, 12), (0, 4), (4, 6), (11, 14), (20, 20)]) == [(0, 6), (8, 14)]


def test_streamed_layers_are_offloaded_to_a_disk_or_not_at_all() -> None:
    assert not_together(STREAM.model_copy(update=ALL)) is None
    assert "nvme" in str(not_together(STREAM.model_copy(update={"offload_optimizer": "cpu"})))
