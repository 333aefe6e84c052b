"""Commands rehearsed as a person types them, with torch's CUDA build on a GPU that is not there."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from null_gpu import INSTALL
from rehearsals import near, plan_file

from bigqa.nullgpu.cards import NullGpu, find_card
from bigqa.sample import FOLDER as SAMPLE
from bigqa.units import MIB

T4 = NullGpu(find_card("T4"), context_bytes=430 * MIB)
"""As the run was recorded."""


def rehearsed(words: list[str], tmp_path: Path, *options: str, exit_code: int = 0) -> dict[str, Any]:
    install = ("--install",) if INSTALL else ()
    program = "import typer; from bigqa.cli.rehearse import rehearse as c; typer.run(c)"
    command = [sys.executable, "-c", program, "--json", *install, *options, "--", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


PROGRAM = """
import sys, torch
wide, keep = int(sys.argv[1]), len(sys.argv) > 2
first, second = torch.nn.Linear(wide, 4 * wide).cuda(), torch.nn.Linear(4 * wide, wide).cuda()
optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters()], foreach=False)
for step in range(50):
    loss = second(first(torch.empty(64, wide, device="cuda")).relu()).square().mean()
    loss.backward()
    if keep and loss == 0:
        raise SystemExit(9)
    optimizer.step()
    optimizer.zero_grad()
raise SystemExit("was not ended")
"""


@pytest.mark.nullgpu
def test_a_plain_loop_is_ended_after_its_steps_and_told(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(PROGRAM)
    options = ("--gpu", "T4", "--steps", "2", "--html", "page.html", "--snapshot", "memory.pickle")
    found = rehearsed(["python", "loop.py", "1024"], tmp_path, *options)
    run = found["runs"][0]
    weights = 4 * (2 * 1024 * 4096 + 4096 + 1024)
    assert found["fits"] and run["steps"] == 2
    assert run["by_kind"]["weights"] == near(weights) and run["by_kind"]["optimizer"] == near(2 * weights)
    assert sum(run["by_kind"].values()) == run["allocated_bytes"]
    assert any(group["own"].endswith("loop.py:4 <module>") for group in run["largest"])
    assert "<polygon" in (tmp_path / "page.html").read_text()
    assert (tmp_path / "memory.pickle").stat().st_size > 10_000


@pytest.mark.nullgpu
def test_too_small_a_card_is_told_with_torchs_message(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(PROGRAM)
    # 256 MiB of weights, of gradients and of the first moments; the second moments do not fit.
    options = ("--gpu", "T4", "--gpu-memory", "1064MiB")
    run = rehearsed(["python", "loop.py", "2896"], tmp_path, *options, exit_code=3)["runs"][0]
    assert not run["fits"] and run["shortage"]["is_end"]
    assert run["shortage"]["message"].startswith("CUDA out of memory. Tried to allocate 128.00 MiB")
    assert (run["shortage"]["phase"], run["shortage"]["step"]) == ("optimizer", 1)
    assert run["shortage"]["own"].endswith("loop.py:11 <module>")
    assert run["by_kind"]["weights"] == run["by_kind"]["gradients"]


@pytest.mark.nullgpu
def test_an_answer_can_be_changed_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(PROGRAM)
    run = rehearsed(["python", "loop.py", "64", "keep"], tmp_path, "--gpu", "T4")["runs"][0]
    (question,) = (read for read in run["reads"] if read["size_bytes"] == 1)
    assert question["where"].split(" ")[0].endswith("loop.py:9") and question["answer"] == 0
    words = ["--gpu", "T4", "--true", "loop.py:9", "--", "python", "loop.py", "64", "keep"]
    program = "import typer; from bigqa.cli.rehearse import rehearse as c; typer.run(c)"
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=tmp_path, capture_output=True, check=False)
    assert b"exit code 9" in done.stderr


@pytest.mark.nullgpu
def test_two_processes_of_torchrun_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "ddp.py").write_text("""
import os, torch
torch.distributed.init_process_group("nccl")
rank = int(os.environ["LOCAL_RANK"])
torch.cuda.set_device(rank)
held = torch.empty(rank << 26, dtype=torch.uint8, device="cuda")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1024, 1024).cuda())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(50):
    model(torch.empty(8, 1024, device="cuda")).sum().backward()
    optimizer.step()
""")
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "ddp.py"]
    run = rehearsed(words, tmp_path, "--gpu", "L4", "--gpus", "2")["runs"][0]
    (other,) = run["other_processes"]
    # In each of them NCCL's own thread lets go of what was sent when it comes to it: one bucket more or less.
    bucket = 4 * 1024 * 1025 + 512
    assert other["rank"] == 0 and abs(run["allocated_bytes"] - other["allocated_bytes"] - (1 << 26)) <= bucket
    assert run["steps"] == 3 and run["by_kind"]["gradients"] >= 4 * 1024 * 1025


@pytest.mark.nullgpu
def test_steps_without_data_are_no_steps(tmp_path: Path) -> None:
    """As `bigqa train` tries its step before it trains."""
    (tmp_path / "tried.py").write_text("""
import torch
torch.cuda.init()
for device, steps in (("meta", 9), ("cuda", 50)):
    model = torch.nn.Linear(1024, 1024, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for _ in range(steps):
        model(torch.empty(8, 1024, device=device)).sum().backward()
        optimizer.step()
""")
    run = rehearsed(["python", "tried.py"], tmp_path, "--gpu", "L4", "--steps", "2")["runs"][0]
    assert run["steps"] == 2 and run["by_kind"]["weights"] == near(4 * 1024 * 1025)


@pytest.mark.nullgpu
def test_a_plan_is_rehearsed_with_our_own_trainer(tmp_path: Path) -> None:
    """In fp16, whose steps hang on an answer of the GPU; and on a card where its own words tell of the shortage."""
    settings = {"model": "tiny", "strategy": {"precision": "fp16"}, "device": "cuda", "micro_batch": 4, "seq_len": 128}
    file = plan_file(tmp_path, settings=settings | {"ladder": [{"name": "less", "micro_batch": 2}]}, num_gpus=1)
    words = ["--plan", str(file), "--train-file", str(SAMPLE / "train.json"), "--steps", "2"]
    found = planned_run(words, tmp_path)
    run = found["runs"][0]
    assert found["fits"] and run["steps"] == 2 and found["plan"]["device_bytes"] == 170 * MIB
    assert run["by_kind"]["optimizer"] > 2 * run["by_kind"]["weights"]  # moments and masters: the step was taken
    assert not [read for read in run["reads"] if read["size_bytes"] == 1]
    size = (run["nvml_bytes"] - 4 * MIB) // MIB
    short = planned_run([*words, "--gpu", "T4", "--gpu-memory", f"{size}MiB"], tmp_path, exit_code=3)["runs"][0]
    assert not short["fits"] and short["shortage"]["is_end"]


@pytest.mark.nullgpu
@pytest.mark.parametrize("precision", ["fp16", "bf16-sr"])
def test_a_plan_of_streamed_layers_on_a_disk_ends_after_its_steps(precision: str, tmp_path: Path) -> None:
    """None of torch's optimizers takes them."""
    disk = {"offload_optimizer": "nvme", "offload_parameters": "nvme"}
    settings = {"model": "tiny", "strategy": {"precision": precision, "stream": True} | disk, "nvme": str(tmp_path)}
    settings |= {"device": "cuda", "micro_batch": 4, "seq_len": 128}
    file = plan_file(tmp_path, settings=settings, num_gpus=1, gpu={"name": "A100"})
    run = planned_run(["--plan", str(file), "--train-file", str(SAMPLE / "train.json"), "--steps", "2"], tmp_path)
    (found,) = run["runs"]
    assert found["steps"] == 2 and found["by_kind"]["weights"] > 0
    assert "optimizer" not in found["by_kind"]  # it is on the host


def planned_run(words: list[str], folder: Path, exit_code: int = 0) -> dict[str, Any]:
    program = "import typer; from bigqa.cli.rehearse import rehearse as c; typer.run(c)"
    command = [sys.executable, "-c", program, "--json", *(("--install",) if INSTALL else ()), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.nullgpu
def test_memory_that_runs_out_in_the_backward_pass_is_told_too(tmp_path: Path) -> None:
    """Autograd runs it in a thread of its own, which has no Python below it."""
    (tmp_path / "wide.py").write_text("""
import torch
layers = [torch.nn.Linear(2048, 2048).cuda() for _ in range(8)]
hidden = torch.empty(64, 2048, device="cuda")
for layer in layers:
    hidden = layer(hidden)
hidden.sum().backward()
""")
    # 8 x 16 MiB of weights and some activations fit, as many gradients do not.
    run = rehearsed(["python", "wide.py"], tmp_path, "--gpu", "T4", "--gpu-memory", "400MiB", exit_code=3)["runs"][0]
    assert run["shortage"]["message"].startswith("CUDA out of memory. Tried to allocate 16.00 MiB")
    assert run["shortage"]["phase"] == "backward"


SHARDED = """
import deepspeed, torch
deepspeed.init_distributed()
model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024, bias=False) for _ in range(4)))
settings = {"train_micro_batch_size_per_gpu": 4, "bf16": {"enabled": True}, "zero_optimization": {"stage": 3}}
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
for _ in range(50):
    engine.backward(engine(torch.ones(4, 1024, device=engine.device, dtype=torch.bfloat16)).square().mean())
    engine.step()
raise SystemExit("was not ended")
"""


@pytest.mark.nullgpu
def test_sharded_weights_of_two_processes_pass_deepspeeds_own_checks(tmp_path: Path) -> None:
    """Before its second pass it compares the order of modules by a broadcast, which carries nothing here."""
    (tmp_path / "sharded.py").write_text(SHARDED)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "sharded.py"]
    (run,) = rehearsed(words, tmp_path, "--gpu", "T4", "--gpus", "2")["runs"]
    assert run["fits"] and run["steps"] == 3 and len(run["other_processes"]) == 1
    part = 4 * 1024 * 1024 // 2
    assert run["by_kind"]["optimizer"] >= 3 * 4 * part  # masters and two moments of its own part
