"""What a person asks of a plan, and what it comes to. In: options. Out: a `Question`; settled, what is to be judged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bigqa.errors import UsageError
from bigqa.language import tr
from bigqa.machine.hardware import Gpu, Hardware, capped, detect, planned_gpu
from bigqa.models.sources import ModelSource, check_lengths, load_config, load_tokenizer, resolve
from bigqa.plan.candidates import Workload
from bigqa.plan.machine import Machine, machine_for
from bigqa.ranges import RANGES, check, size
from bigqa.tasks.base import TaskKind
from bigqa.tasks.registry import DEFAULT, WANTS_DATA, kind_of


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a person asks of `bigqa probe`."""

    model: str
    task: str = DEFAULT
    """A folder of `bigqa/tasks/`, or a kind of question-answering data."""
    tokenizer: str | None = None
    seq_len: int | None = None
    global_batch: int | None = None
    gpu: str = "auto"
    gpu_memory: str | None = None
    gpus: int | None = None
    nodes: int = 1
    host_memory: str | None = None
    nvme: Path | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    strategy: str | None = None
    tier: int = 2
    train_file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse numbers out of range, wherever the question comes from. Raises: UsageError."""
        for name in RANGES.keys() & vars(self).keys():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))


def wanted(question: Question) -> tuple[ModelSource, Any, Workload]:
    """Return the model's source, its configuration, and the work. Raises: BigqaError where they do not go together."""
    kind = kind_of(question.task)
    source = resolve(question.model, tokenizer=question.tokenizer)
    config = load_config(source, kind.head)
    config.update(kind.learn(question.train_file, kind.options({})))
    recipe = source.recipe.model_dump() if source.recipe else {}
    asked = {"seq_len": question.seq_len, "global_batch": question.global_batch}
    fields = {name: recipe[name] for name in ("seq_len", "global_batch", "epochs") if name in recipe}
    workload = Workload.model_validate(fields | {name: value for name, value in asked.items() if value is not None})
    check_lengths(config, workload.seq_len)
    if question.train_file is not None:
        workload = _with_data(workload, kind, source, question.train_file)
    elif question.task in WANTS_DATA:
        raise UsageError(
            tr("--task {task} wants --train-file: its windows are known when they are counted", task=question.task)
        )
    return source, config, workload


def there(question: Question) -> tuple[Hardware, Machine]:
    """Return this machine, and what a plan may use: of it, or of the one that the question names."""
    gpu_bytes = _size(question.gpu_memory, "--gpu-memory")
    host_bytes = _size(question.host_memory, "--host-memory")
    hardware = detect(question.nvme)
    gpu, count = _gpus(question, hardware, gpu_bytes)
    counts = {"num_gpus": count, "num_nodes": question.nodes, "nvme": question.nvme is not None}
    return hardware, machine_for(hardware, gpu, host_bytes=host_bytes, **counts)


def _with_data(workload: Workload, kind: TaskKind[Any], source: ModelSource, file: Path) -> Workload:
    """Count the windows of a file, and what shorter ones lose."""
    found = kind.count(file, load_tokenizer(source), kind.options({"seq_len": workload.seq_len}))
    lost = {"out_of_reach": found.lost, "lost_words": kind.lost_words}
    return workload.model_copy(update={"num_windows": found.rows} | lost)


def _gpus(question: Question, hardware: Hardware, memory_bytes: int | None) -> tuple[Gpu | None, int]:
    """Return the card that is planned for, and how many of it."""
    if question.gpu not in ("auto", "none"):
        return planned_gpu(question.gpu, memory_bytes), question.gpus or 1
    if question.gpu == "auto" and hardware.gpus:
        # Processes of one run are alike, so the GPU with the least free memory decides.
        gpu = min(hardware.gpus, key=lambda card: card.free_bytes)
        return (capped(gpu, memory_bytes) if memory_bytes else gpu), question.gpus or len(hardware.gpus)
    if question.gpu == "auto" and memory_bytes is not None:
        raise UsageError(tr("--gpu-memory without a GPU here: name a card with --gpu NAME"))
    if question.gpus is not None or question.nodes > 1:
        raise UsageError(
            tr("--gpus and --nodes are for GPUs: name a card with --gpu NAME; a CPU's plan is for one process")
        )
    return None, 1


def _size(text: str | None, option: str) -> int | None:
    return None if text is None else size(option)(text)
