"""Answers of a fine-tuned model. In: a model, a data set. Out: `{id: text}` and n-best lists.

A model folder written by bigqa holds `bigqa.json`: the lengths it was trained at, and where it learned of questions
without an answer, when it gives none. Other folders get the defaults.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, Field, ValidationError

from bigqa.console import tell
from bigqa.engine import modules
from bigqa.engine.alike import without_bf16
from bigqa.engine.attention import kernels as attention
from bigqa.engine.build import choose_precision
from bigqa.engine.inference import span_logits
from bigqa.engine.optim.precision import DTYPES, cast
from bigqa.engine.processes import check_kernels
from bigqa.engine.recovery import is_out_of_memory, which_memory
from bigqa.errors import BigqaError
from bigqa.files import cache_folder, read_json, write_json
from bigqa.machine.hardware import host_memory
from bigqa.machine.heap import keep_if_plenty
from bigqa.models.sources import (
    check_lengths,
    first_position,
    load_config,
    load_model,
    load_tokenizer,
    resolve,
    usable_positions,
)
from bigqa.models.tokenizers import rows_needed
from bigqa.run.together import check_together
from bigqa.tasks.features import build_features, window_lengths
from bigqa.tasks.postprocess import decode
from bigqa.tasks.qa import COLUMNS, QuestionAnswering, separator_for
from bigqa.tasks.squad import iter_questions
from bigqa.tasks.windows import Lengths

TRAINED_FILE = "bigqa.json"
BATCH_ROOM_BYTES = 2**31
"""What a forward pass of `engine.inference`'s batches may take: a wide feed-forward layer in fp32, ten times over."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predictions:
    """What a model answers. `nbest`: id -> candidates, the best first, with probabilities."""

    answers: dict[str, str]
    nbest: dict[str, list[dict[str, Any]]]


def qa_task(tokenizer: Any, model: Any) -> QuestionAnswering:
    """Return the task for a model and its tokenizer."""
    takes_types = getattr(model.config, "type_vocab_size", 0) > 1
    separator = separator_for(model, tokenizer.sep_token_id)
    return QuestionAnswering(tokenizer.pad_token_id or 0, takes_types, first_position(model.config), separator)


class Trained(BaseModel):
    """How a model was trained, as far as predicting must know: what `bigqa.json` in its folder holds."""

    lengths: Lengths
    null_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """See `tasks.nulls`; none: every question has an answer."""

    def write(self, model_folder: Path) -> None:
        """Put it into a model's folder."""
        write_json(model_folder / TRAINED_FILE, {"schema": 1} | self.model_dump(mode="json"))


def trained_of(model_folder: Path, positions: int | None) -> Trained:
    """Return how a model folder was trained, or the defaults as far as its positions reach. Raises: BigqaError."""
    path = model_folder / TRAINED_FILE
    if not path.is_file():
        return Trained(lengths=Lengths(seq_len=min(512, positions or 512)))
    try:
        return Trained.model_validate(read_json(path, "the model's lengths"))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"])) or "it"
        raise BigqaError(f"{path} is not as `bigqa train` writes it: {place}: {problem['msg']}") from None


def lengths_of(model_folder: Path, positions: int | None) -> Lengths:
    """Return the lengths that a model folder was trained at, or the defaults as far as its positions reach."""
    return trained_of(model_folder, positions).lengths


def predict(
    model: Any,
    tokenizer: Any,
    file: Path,
    lengths: Lengths,
    device: torch.device,
    on_progress: Progress | None = None,
    n_best: int = 20,
    packs: bool | None = None,
    tell: Callable[[str], None] = tell,
    null_threshold: float | None = None,
) -> Predictions:
    """Answer every question of a data set: one forward pass over its windows, one document in memory at a time.

    `packs`: whether the model takes packed windows, where training has found that out. `tell` is told what a person
    should know of it. `null_threshold`: where a question may be without an answer; see `tasks.nulls`.
    """
    windows = build_features(file, tokenizer, lengths, training=False, cache_dir=cache_folder() / "features")
    sizes = window_lengths(windows)
    inputs = windows.only([name for name in COLUMNS if name in windows.names])
    task = qa_task(tokenizer, model)
    logits = span_logits(model, task, inputs, sizes, device, on_progress, packs=packs, tell=tell)
    questions = iter_questions(file, need_answers=False)
    answers, nbest = decode(questions, windows, logits, lengths, n_best=n_best, null_threshold=null_threshold)
    return Predictions(answers, nbest)


def load_for_prediction(
    name: str, device: str, seq_len: int | None, precision: str = "auto"
) -> tuple[Any, Any, Lengths, torch.device]:
    """Return model, tokenizer, lengths and device. Raises: BigqaError where the model has no trained QA head."""
    chosen = _device(device, precision)
    source = resolve(name)
    config = load_config(source)
    positions = usable_positions(config)
    lengths = lengths_of(Path(name), positions)
    if seq_len is not None:
        lengths = lengths.model_copy(update={"seq_len": seq_len})
    check_lengths(config, lengths.seq_len)
    tokenizer = load_tokenizer(source)
    check_together(source, tokenizer, config)
    model = load_model(source, config, vocabulary_size=rows_needed(tokenizer), require_qa_head=True)
    with said_where_memory_runs_out():
        ready(model, chosen, precision)
    if chosen.type == "cpu":
        resident = psutil.Process().memory_info().rss
        keep_if_plenty(resident + BATCH_ROOM_BYTES, resident + host_memory()[1])
    return model, tokenizer, lengths, chosen


@contextlib.contextmanager
def said_where_memory_runs_out() -> Iterator[None]:
    """Say in a line that memory does not reach for a model's answers. Raises: BigqaError."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        advice = "use --device cpu" if which_memory(error) == "device" else "free some, or use shorter --seq-len"
        raise BigqaError(f"out of memory ({which_memory(error)}) while predicting: {advice}") from error


def _device(asked: str, precision: str) -> torch.device:
    """Return the device asked for. Raises: BigqaError where it is not there, or has no kernels for what is wanted."""
    if asked == "cuda" and not torch.cuda.is_available():
        raise BigqaError("no CUDA GPU here: use --device cpu, or check the driver with nvidia-smi")
    device = torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")
    check_kernels(device)
    if device.type == "cuda" and precision == "bf16" and (lacking := without_bf16(device)):
        raise BigqaError(f"{lacking} has no bf16: use --precision fp16 or fp32")
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
