"""The launch files: each is what `accelerate launch` of this version reads, and names this machine's topology."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from commands import LIMIT_S, train_here

from bigqa.configs import FOLDER as CONFIGS
from bigqa.sample import FOLDER as SAMPLE

FOLDER = CONFIGS / "launch"
LATE = """
import os
if "RANK" in os.environ:
    import time, torch, torch.distributed as group
    leave = group.destroy_process_group
    def late(of=None):
        time.sleep(2 if os.environ["RANK"] == "0" else 0)
        group.all_reduce(torch.ones(1), async_op=True)  # a thread of the group ends it, when its process has gone on
        leave(of)
    group.destroy_process_group = late
"""
PROCESSES = {"cpu_2.yaml": 2, "gpu_1.yaml": 1, "gpu_2.yaml": 2, "gpu_nodes.yaml": 8}
SCRIPTS = ("torchrun.sh", "slurm.sbatch")


def test_the_readme_names_every_file() -> None:
    assert {path.name for path in FOLDER.glob("*.yaml")} == PROCESSES.keys()
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in readme for name in (*PROCESSES, *SCRIPTS))
    assert {path.name for path in FOLDER.iterdir()} == {*PROCESSES, *SCRIPTS, "README.md"}


@pytest.mark.parametrize(("name", "processes"), PROCESSES.items())
def test_accelerate_reads_it(name: str, processes: int) -> None:
    config = load_config_from_file(str(FOLDER / name))
    assert config.num_processes == processes
    assert config.num_machines == (2 if name == "gpu_nodes.yaml" else 1)
    assert config.mixed_precision == "no"  # bigqa holds its own precision
    assert config.use_cpu is name.startswith("cpu")


def test_no_field_is_misspelt() -> None:
    for path in FOLDER.glob("*.yaml"):
        known = set(vars(load_config_from_file(str(path)))) | {"distributed_type"}
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_parse(name: str) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)


def test_slurm_starts_torchrun_on_every_node(tmp_path: Path) -> None:
    """With `scontrol`, `srun` and Python in the place of SLURM's and of torch: what would be run, on which node."""
    for tool, text in {
        "scontrol": "echo node-a; echo node-b",
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "python": 'echo "$@"',
    }.items():
        (tmp_path / tool).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (tmp_path / tool).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "4", "SLURM_JOB_ID": "77"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(FOLDER / "slurm.sbatch"), "--plan", "plan.json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"--nnodes 2 --node_rank {rank} --nproc_per_node 4 --master_addr node-a --master_port 29577" in line
        assert line.endswith("-m bigqa.train --plan plan.json")


def test_two_launchers_train_as_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two machines, simulated by two launchers on this one; the loss is that of one process.

    Both end, though threads of the group are still at work when they leave it (see `bigqa.engine.processes.LEFT`).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["--model", "tiny", "--train-file", str(SAMPLE / "train.json"), "--limit", "32", "--device", "cpu"]
    words += ["--max-steps", "3", "--global-batch", "8", "--precision", "fp32", "--dropout", "0"]
    (tmp_path / "sitecustomize.py").write_text(LATE, encoding="utf-8")
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    nodes = [
        subprocess.Popen(
            ["bash", str(FOLDER / "torchrun.sh"), *words, "--out", str(tmp_path / "two")],
            env=environment | {"NODES": "2", "NODE_RANK": str(rank), "PORT": port},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    alone = train_here(*words, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    for node in nodes:
        _, said = node.communicate(timeout=LIMIT_S)
        assert node.returncode == 0, said[-3000:]
    two, one = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("two", "one")
    )
    assert two == pytest.approx(one, rel=1e-4)
