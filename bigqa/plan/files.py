"""A plan as files. In: what `bigqa probe` found. Out: plan.json, what launches it, and the command that does.

The trainer reads plan.json, `accelerate launch` the YAML beside it.
"""

import shlex
from pathlib import Path
from typing import Any

import yaml

from bigqa.engine.zero import deepspeed_config
from bigqa.errors import BigqaError
from bigqa.files import write_json, write_text
from bigqa.language import tr
from bigqa.plan.candidates import Candidate
from bigqa.plan.ladder import ladder_of
from bigqa.plan.probe import Probe
from bigqa.settings import Settings
from bigqa.tasks.registry import kind_of
from bigqa.versions import versions

SCHEMA = 1
"""Of plan.json, and of what `bigqa probe --json` prints."""
CLIP = Settings.model_fields["clip"].default


def write_plan(found: Probe, path: Path) -> list[Path]:
    """Write plan.json, and beside it the Accelerate YAML that launches it; return what was written."""
    if found.chosen is None:
        raise BigqaError(tr("nothing fits, so there is no plan to write to {path}", path=path))
    launch = path.with_name(path.stem + ".accelerate.yaml")
    write_json(path, plan_of(found))
    write_text(launch, yaml.safe_dump(_accelerate(found), sort_keys=False))
    written = [path, launch]
    if found.chosen.strategy.needs_deepspeed:
        # What the trainer gives to DeepSpeed itself; written to be read, and for other trainers.
        written.append(path.with_name(path.stem + ".deepspeed.json"))
        write_json(written[-1], _deepspeed(found, found.chosen))
    return written


def plan_of(found: Probe) -> dict[str, Any]:
    """Return the plan as plain values."""
    chosen = found.chosen
    assert chosen is not None
    return {
        "schema": SCHEMA,
        "strategy": chosen.name,
        "settings": _settings(found, chosen)
        | {"ladder": [rung.model_dump(mode="json") for rung in ladder_of(found.candidates, chosen)]},
        "predicted": chosen.model_dump(mode="json"),
        "hardware": found.hardware.model_dump(mode="json"),
        "gpu": found.gpu.model_dump(mode="json") if found.gpu else None,
        "num_gpus": found.num_gpus,
        "versions": versions(),
    }


def launch_words(found: Probe, plan: Path | str = "plan.json") -> str:
    """Return the command that carries the chosen plan out; of several machines, each with its rank."""
    path = Path(plan)
    config = path.with_name(path.stem + ".accelerate.yaml")
    question = found.question
    words = ["accelerate", "launch", "--config_file", config]
    if found.question.nodes > 1 and found.chosen is not None and found.chosen.strategy.device == "cuda":
        words += ["--machine_rank", "RANK", "--main_process_ip", "ADDRESS"]
    words += ["-m", "bigqa.train", "--plan", path]  # from any folder, with or without a checkout
    words += ["--train-file", question.train_file or "FILE", "--out", "RUN"]
    if not found.has_vocabulary:
        words += ["--tokenizer", "VOCAB"]
    return shlex.join(map(str, words))


def _settings(found: Probe, candidate: Candidate) -> dict[str, Any]:
    settings = {
        "model": found.question.model,
        "task": kind_of(found.question.task).name,
        "strategy": candidate.strategy.model_dump(mode="json"),
        "seq_len": candidate.seq_len,
        "global_batch": found.workload.global_batch,
        "micro_batch": candidate.micro_batch,
        "device": candidate.strategy.device,
    }
    question = found.question
    asked = {
        "nvme": str(question.nvme) if question.nvme else None,
        "tokenizer": question.tokenizer,
        # Else the run takes what its device is best at: it may go on elsewhere.
        "precision": question.precision if question.precision != "auto" else None,
    }
    return settings | {name: value for name, value in asked.items() if value is not None}


def _deepspeed(found: Probe, chosen: Candidate) -> dict[str, Any]:
    return deepspeed_config(
        chosen.strategy,
        clip=CLIP,
        global_batch=found.workload.global_batch,
        micro_batch=chosen.micro_batch,
        world_size=found.num_gpus * found.question.nodes,
        nvme=found.question.nvme,
        num_parameters=found.num_parameters,
    )


def _accelerate(found: Probe) -> dict[str, Any]:
    assert found.chosen is not None
    on_cpu = found.chosen.strategy.device == "cpu"
    nodes = 1 if on_cpu else found.question.nodes
    processes = 1 if on_cpu else found.num_gpus * nodes
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "NO" if processes == 1 else "MULTI_GPU",
        "use_cpu": on_cpu,
        "num_machines": nodes,
        "machine_rank": 0,
        "num_processes": processes,
        "mixed_precision": "no",
    }
    # As configs/launch/gpu_nodes.yaml; address and rank are each machine's own to give on the command line.
    if nodes > 1:
        config |= {"main_process_ip": "127.0.0.1", "main_process_port": 29500}
        config |= {"rdzv_backend": "static", "same_network": False}
    return config
