"""A trained model that answers. In: a model's folder. Out: what its task says of files, or of lines as they come.

A model folder written by bigqa holds `bigqa.json`: its task, and the options that it was trained with. Of other folders
the classes in their config tell the task, and options are the defaults.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import ValidationError

from bigqa.console import tell
from bigqa.engine import modules
from bigqa.engine.alike import without_bf16
from bigqa.engine.attention import kernels as attention
from bigqa.engine.build import choose_precision
from bigqa.engine.inference import window_logits
from bigqa.engine.optim.precision import DTYPES, cast
from bigqa.engine.processes import check_kernels
from bigqa.engine.recovery import is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.files import read_json, write_json
from bigqa.language import tr
from bigqa.machine.hardware import host_memory
from bigqa.machine.heap import keep_if_plenty
from bigqa.models.sources import (
    check_lengths,
    load_model,
    load_tokenizer,
    plain_config,
    resolve,
    usable_positions,
    with_labels,
)
from bigqa.models.tokenizers import rows_needed
from bigqa.run.job import give_padding, task_of
from bigqa.run.together import check_together
from bigqa.tasks.base import Answered, Progress, Row, Scored, TaskKind
from bigqa.tasks.registry import DEFAULT, kind_of, kind_of_config

OPTIONS_FILE = "bigqa.json"
BATCH_ROOM_BYTES = 2**31
"""What a forward pass of `engine.inference`'s batches may take: a wide feed-forward layer in fp32, ten times over."""


@dataclass
class Answerer:
    """A model on a device, and its task."""

    kind: TaskKind[Any]
    options: Any
    model: Any
    tokenizer: Any
    device: torch.device
    packs: bool | None = None
    """Whether the model takes packed windows; none: it is tried, once."""
    on_progress: Progress | None = None
    tell: Callable[[str], None] = tell
    """Is told what a person should know of it."""
    trains: bool = False
    """Whether the model is being trained."""
    _task: Any = field(default=None, repr=False)

    @property
    def task(self) -> Any:
        """The task as the engine sees it."""
        if self._task is None:
            self._task = task_of(self.kind, self.options, self.tokenizer, self.model)
        return self._task

    def predict(self, file: Path) -> Iterator[Row]:
        """Yield what the model answers to each entry of a file."""
        if not file.is_fifo():  # what flows is read once
            unknown = self.kind.check_text(file, self.tokenizer, self.options, refuse=False)
            if unknown is not None:
                self.tell(unknown)
        return self.kind.predict(*self._asked(file))

    def answers(self, lines: Iterator[str]) -> Iterator[Row]:
        """Yield what the model answers to each line."""
        return self.kind.answers(lines, *self._asked(Path())[1:])

    def score(self, file: Path, limit: int | None = None) -> Scored:
        """Score the model on a file, or on its first entries."""
        return self.kind.score(*self._asked(file), limit=limit)

    def _asked(self, file: Path) -> tuple[Any, ...]:
        return file, self.tokenizer, self.options, self.model.config, self._ask, self.task

    def _ask(self, task: Any, rows: Any, lengths: Sequence[int]) -> Iterator[Answered]:
        if self.packs is None and lengths:
            self.packs = can_pack_here(self.model, task, max(lengths))
        return window_logits(
            self.model, task, rows, lengths, self.device, self.on_progress, packs=self.packs, tell=self.tell,
            trains=self.trains,
        )  # fmt: skip


def can_pack_here(model: Any, task: Any, longest: int) -> bool:
    """Whether a model takes packed windows of up to so many tokens."""
    from bigqa.engine.attention.packing import can_pack

    return can_pack(model, task, longest)


def write_options(folder: Path, kind: TaskKind[Any], options: Any) -> None:
    """Write down in a model's folder what it was trained on, and how its texts were read."""
    kept = options.model_dump(mode="json", exclude_none=True)
    write_json(folder / OPTIONS_FILE, {"schema": 1, "task": kind.name, "options": kept})


def kind_and_options(folder: Path, config: Any, asked: str | None = None, **changed: Any) -> tuple[TaskKind[Any], Any]:
    """Return a model folder's task and options. `asked`: the task, where a person named it; `changed`: options."""
    path = folder / OPTIONS_FILE
    found = read_json(path, tr("the model's options")) if path.is_file() else {}
    if not isinstance(found, dict) or not isinstance(found.get("task", ""), str):
        raise BigqaError(tr("{path} is not as `bigqa train` writes it: it names no task", path=path))
    name = asked or found.get("task") or (DEFAULT if "lengths" in found else None)
    kind = kind_of(name) if name else kind_of_config(config, tr("the model {folder}", folder=folder))
    kept = found.get("options", found.get("lengths"))
    if kept is None or (asked and kind.name != kind_of(found.get("task", DEFAULT)).name):
        kept = {"seq_len": min(512, usable_positions(config) or 512)}
    if not isinstance(kept, dict):
        raise BigqaError(tr("{path} is not as `bigqa train` writes it: its options are no object", path=path))
    known = {name: value for name, value in changed.items() if value is not None}
    try:
        return kind, kind.options(kept | known)
    except ValidationError as error:
        raise BigqaError(
            tr(
                "{path} does not fit --task {kind}: {problem}",
                path=path,
                kind=kind.name,
                problem=error.errors()[0]["msg"],
            )
        ) from None


def load_for_prediction(
    name: str, device: str, seq_len: int | None, precision: str = "auto", task: str | None = None, **options: Any
) -> Answerer:
    """Return a trained model that answers. Raises: BigqaError where it has no trained head of its task."""
    chosen = _device(device, precision)
    source = resolve(name)
    config = plain_config(source)
    kind, found = kind_and_options(Path(name), config, task, seq_len=seq_len, **options)
    check_lengths(with_labels(config, kind.head), found.seq_len)
    tokenizer = load_tokenizer(source)
    give_padding(config, tokenizer)
    for line in check_together(source, tokenizer, config, kind):
        tell(line)
    model = load_model(source, config, head=kind.head, vocabulary_size=rows_needed(tokenizer), require_head=True)
    with said_where_memory_runs_out():
        ready(model, chosen, precision)
    if chosen.type == "cpu":
        resident = psutil.Process().memory_info().rss
        keep_if_plenty(resident + BATCH_ROOM_BYTES, resident + host_memory()[1])
    return Answerer(kind, found, model, tokenizer, chosen)


@contextlib.contextmanager
def said_where_memory_runs_out() -> Iterator[None]:
    """Say in a line that memory does not reach for a model's answers. Raises: BigqaError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = (
            tr("use --device cpu") if which_memory(error) == "device" else tr("free some, or use shorter --seq-len")
        )
        raise BigqaError(
            tr(
                "out of memory ({which}) while predicting: {advice}",
                which=which_memory(error),
                advice=advice,
            )
        ) from error


def _device(asked: str, precision: str) -> torch.device:
    """Return the device asked for. Raises: BigqaError where it is not there, or has no kernels for what is wanted."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise BigqaError(tr("no CUDA GPU here: use --device cpu, or check the driver with nvidia-smi"))
    device = torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")
    check_kernels(device)
    if device.type == "cuda" and precision == "bf16" and (lacking := without_bf16(device)):
        raise BigqaError(tr("{lacking} has no bf16: use --precision fp16 or fp32", lacking=lacking))
    return device


def ready(model: Any, device: torch.device, precision: str = "auto") -> Any:
    """Return a model on a device, in a precision ("auto": the device's best), its attention and modules swapped.

    A model that has weights which fp16 does not know stays in fp32 where fp16 would have been the device's best.
    """
    attention.use(model)
    modules.swap(model, device.type)
    chosen = DTYPES[choose_precision(precision, device)]
    if precision == "auto" and chosen == torch.float16 and not fits_fp16(model):
        chosen = torch.float32
    cast(model, chosen)
    return model.to(device)


def fits_fp16(model: Any) -> bool:
    """Whether all weights are finite in fp16: what was trained in bf16 or fp32 may be larger."""
    most = torch.finfo(torch.float16).max
    weights = (p.detach() for p in model.parameters() if p.is_floating_point())
    return all(bool(torch.linalg.vector_norm(one, float("inf")) <= most) for one in weights)
