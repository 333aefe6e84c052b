"""What only a GPU runs of the trainer, on GPUs that are not there: every strategy, every place where memory runs out,
one process of eight. Torch's CUDA build, DeepSpeed's and bitsandbytes' own code; kernels are not run, so no number of a
loss is looked at: what is looked at is what was done, what was written, and what it can be gone on with from.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
from null_gpu import environment_of
from small_runs import metrics

from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.plan.ladder import AGAIN, switches_of
from bigqa.sample import FOLDER
from bigqa.settings import Rung
from bigqa.strategy import STRATEGIES
from bigqa.units import MIB

pytestmark = [pytest.mark.nullgpu, pytest.mark.slow]
WORKER = Path(__file__).with_name("null_jobs.py")
A100 = find_card("A100-80")
OPTIONS: dict[str, Any] = {
    "model": "tiny",
    "train_file": str(FOLDER / "train.json"),
    "limit": 32,
    "device": "cuda",
    "global_batch": 8,
    "micro_batch": 4,
    "seq_len": 64,
    "doc_stride": 16,
    "max_query_length": 24,
    "max_steps": 4,
    "save_every": 2,
    "check": False,
}
STEPS = [1, 2, 3, 4]


def job(out: Path, gpu: NullGpu, resume: bool = False, **more: Any) -> dict[str, Any]:
    """Return a job; with several cards, this is the first of as many processes."""
    options = OPTIONS | {"out": str(out)} | more
    cards = {"card": gpu.description(), "count": gpu.count, "ranks": gpu.count}
    return cards | {"options": options, "resume": resume}


def run_jobs(jobs: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield what became of each job."""
    environment = environment_of(NullGpu(A100, context_bytes=0)) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(WORKER)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        for one in jobs:
            print(json.dumps(one), file=worker.stdin, flush=True)
            yield json.loads(worker.stdout.readline())
        worker.stdin.close()


def tensors(run: Path) -> dict[str, list[int]]:
    """Return the names and shapes of what a run handed over."""
    with safetensors.safe_open(run / "model" / "model.safetensors", "pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


# ---- every strategy ----

ADAPTED = ["lora", "lora-recompute", "qlora-recompute"]
SHARDED = ["zero1", "zero2", "zero3", "zero2-offload", "zero2-offload-recompute", "zero3-offload"]
WHOLE = [
    name
    for name, row in STRATEGIES.items()
    if row.device == "cuda" and not row.needs_deepspeed and row.adapters == "none" and row.seq_len is None
]
"""Rows of shorter windows have the axes of others. NVMe wants libaio, and is tried where CPUs train."""
GROUPS = {
    "whole": (WHOLE, "plain"),
    "adapters": (["plain", *ADAPTED], "plain"),
    "sharded": (["plain", *SHARDED], "plain"),
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_strategy_trains_saves_and_is_gone_on_with_under_the_next(group: str, tmp_path: Path) -> None:
    names, reference = GROUPS[group]
    gpu = NullGpu(A100, context_bytes=0)
    jobs, runs = [], []
    for name in names:
        runs.append((name, tmp_path / name))
        micro_batch = STRATEGIES[name].micro_batch or 4
        jobs.append(job(tmp_path / name, gpu, strategy=name, micro_batch=micro_batch, **_disk(name, tmp_path)))
    following = [name for name in names if (name in ADAPTED) == (names[-1] in ADAPTED)]
    pairs = list(zip(following, [*following[1:], following[0]], strict=True))
    for before, after in pairs:
        runs.append((f"{before}, then {after}", tmp_path / f"{before}-{after}"))
        micro_batch = STRATEGIES[after].micro_batch or 2
        disk = _disk(after, tmp_path)
        jobs.append(job(runs[-1][1], gpu, resume=True, strategy=after, micro_batch=micro_batch, **disk))
    failed = {}
    for (name, out), one, done in zip(runs, jobs, _one_by_one(jobs, pairs, tmp_path), strict=True):
        (start,) = done["starts"]
        if start["code"]:
            failed[name] = start["traceback"]
            continue
        assert [line["step"] for line in metrics(out)] == STEPS, name
        assert [folder.name[-1] for folder in sorted((out / "checkpoints").iterdir())] == ["2", "4"], name
        assert tensors(out) == tensors(tmp_path / reference), name  # adapters are merged, shards gathered
        assert one["options"]["strategy"] and start["used"] > 0
    assert not failed, "\n".join(f"{name}:\n{trace}" for name, trace in failed.items())


def _disk(name: str, folder: Path) -> dict[str, Any]:
    return {"nvme": str(folder / "disk")} if STRATEGIES[name].needs_disk else {}


def _one_by_one(jobs: list[dict[str, Any]], pairs: list[tuple[str, str]], folder: Path) -> Iterator[dict[str, Any]]:
    """Run the jobs; before one that resumes, lay its run as it was after two steps."""

    def laid() -> Iterator[dict[str, Any]]:
        before = iter(pairs)
        for one in jobs:
            if one["resume"]:
                name, after = next(before)
                copy = folder / f"{name}-{after}"
                shutil.copytree(folder / name, copy)
                shutil.rmtree(max((copy / "checkpoints").iterdir()))
            yield one

    return run_jobs(laid())


# ---- where memory runs out ----


def dev_file(folder: Path) -> Path:
    """Write a few questions."""
    data = json.loads((FOLDER / "dev.json").read_text(encoding="utf-8"))
    data["data"] = data["data"][:4]
    for article in data["data"]:
        article["paragraphs"] = article["paragraphs"][:1]
    file = folder / "dev.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    return file


def test_the_ladder_is_gone_down_wherever_memory_runs_out(tmp_path: Path) -> None:
    """By the card's size alone: in forward, backward, step and evaluation, and no step is lost or taken twice."""
    dev, seen = str(dev_file(tmp_path)), set()
    sizes = [40, 36, 34, 32, 30]
    cards = [NullGpu(A100, memory_bytes=size * MIB, context_bytes=0) for size in sizes]
    outs = [tmp_path / str(size) for size in sizes]
    jobs = [job(out, card, dev_file=dev, micro_batch=8) for out, card in zip(outs, cards, strict=True)]
    for size, out, done in zip(sizes, outs, run_jobs(jobs), strict=True):
        starts = done["starts"]
        assert starts[-1]["code"] == 0, starts[-1]["traceback"]
        assert [line["step"] for line in metrics(out)] == STEPS, size
        switches = switches_of(out)
        assert len(switches) == len(starts) - 1 and all("CUDA out of memory" in one["reason"] for one in switches)
        assert all(start["used"] <= size * MIB for start in starts)
        assert json.loads((out / "report.json").read_text())["scores"]["total"] > 0
        # A start steps down by the last shortage that it met; evaluation takes halves instead.
        assert all(start["short"] for start in starts[:-1])
        assert set(starts[-1]["short"]) <= {"evaluation"}
        seen |= {phase for start in starts for phase in start["short"]}
    assert seen >= {"forward", "backward", "step", "evaluation"}, seen


FILLED = "other"
"""What memory ran out for as the card was filled up."""


def test_the_ladder_is_gone_down_where_there_is_no_room_to_place_a_model(tmp_path: Path) -> None:
    """Masters and weights are more than the card has: weights alone are not."""
    rungs = [Rung(name="adapters", strategy=STRATEGIES["lora-recompute"], micro_batch=4)]
    ladder = [rung.model_dump(mode="json") for rung in rungs]
    card = NullGpu(A100, memory_bytes=90 * MIB, context_bytes=0)
    small = {"model": "enliple-small", "tokenizer": str(FOLDER), "max_steps": 2, "strategy": "plain", "ladder": ladder}
    (done,) = run_jobs([job(tmp_path / "run", card, **small)])
    first, second = done["starts"]
    assert set(first["short"]) == {"placing"} and first["code"] == AGAIN, first
    assert second["code"] == 0 and second["short"] == [], second
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2]
    assert [switch["after_step"] for switch in switches_of(tmp_path / "run")] == [None]


def test_saving_takes_nothing_of_a_full_card(tmp_path: Path) -> None:
    """Another program takes what is left while checkpoints are written; one process saves all the same."""
    one = NullGpu(A100, context_bytes=0)
    names = ["plain", "8bit", "stochastic", "zero1", "zero3", "zero2-offload", "zero3-offload"]
    jobs = [job(tmp_path / name, one, strategy=name) | {"crowded": "save"} for name in names]
    for name, done in zip(names, run_jobs(jobs), strict=True):
        (start,) = done["starts"]
        assert start["code"] == 0 and set(start["short"]) == {FILLED}, name
        assert (tmp_path / name / "checkpoints" / "step-00000004" / "weights.safetensors").is_file(), name


def test_the_ladder_is_gone_down_where_there_is_no_room_to_save(tmp_path: Path) -> None:
    """Of processes that share states, each lacks the little that passes over the card, from one to the first.

    The run goes on from the checkpoint before, of which there is none, with the next rung.
    """
    two = NullGpu(A100, context_bytes=0, count=2)
    shared = {"model": "enliple-small", "tokenizer": str(FOLDER), "strategy": "zero3"}
    (done,) = run_jobs([job(tmp_path / "run", two, **shared) | {"crowded": "save"}])
    first, second = done["starts"]
    assert first["short"] == [FILLED, "saving"] and first["code"] == AGAIN, first
    assert second["code"] == 0 and second["short"] == [], second
    assert [line["step"] for line in metrics(tmp_path / "run")] == STEPS
    assert [switch["after_step"] for switch in switches_of(tmp_path / "run")] == [None]


def test_a_full_card_scores_on_the_host(tmp_path: Path) -> None:
    dev = str(dev_file(tmp_path))
    card = NullGpu(A100, memory_bytes=64 * MIB, context_bytes=0)
    (done,) = run_jobs([job(tmp_path / "run", card, dev_file=dev) | {"crowded": "score"}])
    (start,) = done["starts"]
    assert start["code"] == 0, start["traceback"]
    assert start["short"] == ["hand-over"]  # as it was filled up
    assert json.loads((tmp_path / "run" / "report.json").read_text())["scores"]["total"] > 0


# ---- several processes ----

RANKS = 8
OF_EIGHT = ["plain", "8bit-recompute", "zero1", "zero2", "zero3"]


def test_one_process_of_eight_trains_and_saves(tmp_path: Path) -> None:
    """DistributedDataParallel and ZeRO, as the first of eight: it does its share, and holds its part."""
    one, eight = NullGpu(A100, context_bytes=0), NullGpu(A100, context_bytes=0, count=RANKS)
    jobs = [job(tmp_path / name, eight, strategy=name, global_batch=16, micro_batch=2) for name in OF_EIGHT]
    jobs.append(job(tmp_path / "alone", one, strategy="zero3", global_batch=16, micro_batch=2))
    used = {}
    for name, done in zip([*OF_EIGHT, "alone"], run_jobs(jobs), strict=True):
        (start,) = done["starts"]
        assert start["code"] == 0, f"{name}: {start['traceback']}"
        lines = metrics(tmp_path / name)
        assert [line["step"] for line in lines] == STEPS and {line["windows"] for line in lines} == {16}
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        assert (plan["num_processes"], plan["grad_accum"]) == ((1, 8) if name == "alone" else (RANKS, 1))
        assert (tmp_path / name / "checkpoints" / "step-00000004" / "weights.safetensors").is_file()
        assert tensors(tmp_path / name) == tensors(tmp_path / OF_EIGHT[0])
        used[name] = start["allocated"]
    assert used["zero3"] < used["zero1"] < used["plain"]
    assert used["zero3"] < used["alone"]  # an eighth of the states, and all of the windows of a step's share
