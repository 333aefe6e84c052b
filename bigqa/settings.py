"""What one training run is told to do. In: options, over a model's published recipe. Out: one frozen record.

The record is written to `RUN/config.json`, and `--resume` reads it back: a run goes on as it was begun.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.strategy import Strategy

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda"]


class Rung(BaseModel):
    """A strategy that a run steps down to when memory runs out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    strategy: Strategy
    micro_batch: int = Field(ge=1)


class Settings(BaseModel):
    """One fine-tuning run. Lengths are in tokens; batches in windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """A preset, a folder, a config.json or a hub id."""
    tokenizer: str | None = None
    """A vocab.txt, folder or hub id, where the model has no vocabulary of its own."""
    train_file: Path
    dev_file: Path | None = None
    out: Path
    seed: int = 42
    """Fixes initial weights, data order and dropout."""
    epochs: float = Field(4.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps; the schedule ends there too."""
    global_batch: int = Field(16, ge=1)
    """Windows per optimizer step, over all processes: the number of processes never changes it."""
    micro_batch: int | None = Field(None, ge=1)
    """Windows per process and forward pass; none: the whole share of a process at once."""
    seq_len: int = Field(512, ge=16)
    doc_stride: int = Field(128, ge=1)
    """Tokens that each next window advances."""
    max_query_length: int = Field(64, ge=1)
    max_answer_length: int = Field(30, ge=1)
    lr: float = Field(5e-5, gt=0)
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0)
    """Not applied to biases and norms."""
    adam_eps: float = Field(1e-6, gt=0)
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Replaces every dropout of the model's configuration."""
    precision: PrecisionName = "auto"
    strategy: Strategy | None = None
    """As a plan gives it; none: plain, in `precision`."""
    ladder: tuple[Rung, ...] | None = None
    """What the run steps down to when memory runs out, in order; none: not decided yet, empty: used up."""
    deterministic: bool = False
    """Take from a GPU what gives the same bits each time, at a price; on a CPU that is so anyway."""
    check: bool = True
    """Refuse a strategy that is predicted not to fit."""
    nvme: Path | None = None
    """A folder on a fast disk, for strategies that offload to it."""
    device: DeviceName = "auto"
    save_every: int = Field(500, ge=1)
    """Optimizer steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept."""
    limit: int | None = Field(None, ge=1)
    """Train on the first so many questions of the file only."""

    def on_rung(self, rung: Rung, rest: tuple[Rung, ...]) -> "Settings":
        """Return the settings of the same run under another strategy."""
        device = self.device if rung.strategy.device == "cuda" else "cpu"
        update = {"strategy": rung.strategy, "micro_batch": rung.micro_batch, "device": device, "ladder": rest}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _lengths_agree(self) -> "Settings":
        if self.max_query_length + self.doc_stride > self.seq_len - 3:
            raise ValueError(
                f"--seq-len {self.seq_len} is too short for --max-query-length {self.max_query_length} and "
                f"--doc-stride {self.doc_stride}: need their sum and 3 special tokens"
            )
        return self


def make_settings(**values: object) -> Settings:
    """Validate options. Raises: UsageError in one line, naming the option."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError(_first_problem(error)) from None


def read_settings(path: Path) -> Settings:
    """Read a run's `config.json` back."""
    try:
        return Settings.model_validate(read_json(path, "the run's config"))
    except ValidationError as error:
        raise BigqaError(f"{path} is not a bigqa run's config: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    option = "--" + str(problem["loc"][0]).replace("_", "-")
    return f"{option}: {message} (given: {problem.get('input')})"
