"""What one training run is told to do. In: options, over a model's published recipe. Out: one frozen record.

The record is written to `RUN/config.json`, and `--resume` reads it back: a run goes on as it was begun.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from bigqa.errors import BigqaError, UsageError
from bigqa.files import read_json
from bigqa.language import put, tr
from bigqa.ranges import Ranged, option_of
from bigqa.strategy import Strategy

PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
DeviceName = Literal["auto", "cpu", "cuda"]


class Rung(Ranged):
    """A strategy that a run steps down to when memory runs out."""

    name: str
    strategy: Strategy
    micro_batch: int


class Origin(BaseModel):
    """What a run began with: digests of what it read, its recipe, and the versions of what read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train_file: str | None = None
    dev_file: str | None = None
    config: str | None = None
    """Of the model's configuration."""
    tokenizer: str | None = None
    weights: str | None = None
    recipe: dict[str, JsonValue] | None = None
    versions: dict[str, str] = {}


class Settings(Ranged):
    """One fine-tuning run. Lengths are in tokens; batches in windows."""

    model: str
    """A preset, a folder, a config.json or a hub id."""
    tokenizer: str | None = None
    """A vocab.txt, folder or hub id, where the model has no vocabulary of its own."""
    task: str = "qa"
    """A folder of `bigqa/tasks/`."""
    task_options: dict[str, Any] = Field(default_factory=dict)
    """What the task alone has of options, such as the columns of its tables."""
    train_file: Path
    dev_file: Path | None = None
    out: Path
    seed: int = 42
    """Fixes initial weights, data order and dropout."""
    epochs: float = 4.0
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule ends there too."""
    global_batch: int = 16
    """Windows per optimizer step, over all processes: the number of processes never changes it."""
    micro_batch: int | None = None
    """Windows per process and forward pass; none: the whole share of a process at once."""
    seq_len: int = 512
    doc_stride: int = 128
    """Tokens that each next window advances."""
    max_query_length: int = 64
    max_answer_length: int = 30
    lr: float = 5e-5
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises from zero."""
    warmup_steps: int | None = None
    """The same in steps; takes the place of the share."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on from its peak: to zero, along a line or half a cosine; or it stays."""
    layer_decay: float | None = None
    """What the rate of each layer is of the next one's; none: all learn at one rate."""
    freeze_layers: int | None = None
    """Layers, the first, that learn nothing, and the embeddings with them; none: everything learns."""
    weight_decay: float = 0.01
    """Not applied to biases and norms."""
    adam_eps: float = 1e-6
    clip: float = 1.0
    """Largest global gradient norm."""
    dropout: float | None = None
    """Replaces every dropout of the model's configuration."""
    precision: PrecisionName = "auto"
    strategy: Strategy | None = None
    """As a plan gives it; none: plain, in `precision`."""
    ladder: tuple[Rung, ...] | None = None
    """What the run steps down to when memory runs out, in order; none: not decided yet, empty: used up."""
    planned_for: str | None = None
    """The machine that bigqa chose the strategy for; none: a person chose it."""
    predicted_samples_per_s: float | None = None
    """By the plan, of full windows; none where no plan said."""
    deterministic: bool = False
    """Take from a GPU what gives the same bits each time, at a price; on a CPU that is so anyway."""
    check: bool = True
    """Refuse a strategy that is predicted not to fit."""
    nvme: Path | None = None
    """A folder on a fast disk, for strategies that offload to it."""
    device: DeviceName = "auto"
    eval_every: int | None = None
    """Optimizer steps between scores on the dev file as the run trains; 0: each epoch. None: at its end alone."""
    eval_times: int | None = None
    """The same by how often, evenly over the run and the last time at its end."""
    eval_on: int | None = None
    """Score on the first so many texts or questions of the dev file as the run trains; at its end, on all of them."""
    metric: str | None = None
    """The score that tells the best; none: the task's own."""
    keep_best: bool = False
    """Hand over the model of the best score instead of the last."""
    patience: int | None = None
    """End after so many scores in a row that are no better than the best."""
    save_every: int = 500
    """Optimizer steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    tracker: str | None = None
    """A tracker of experiments that is told as well; none: the run's folder alone."""
    push_to_hub: str | None = None
    """A repository of the hub that the result is put into."""
    origin: Origin | None = None
    """What the run began with; none before that is known, and for runs that an older bigqa began."""
    limit: int | None = None
    """Train on the first so many questions of the file only."""

    def on_rung(self, rung: Rung, rest: tuple[Rung, ...]) -> "Settings":
        """Return the settings of the same run under another strategy."""
        device = self.device if rung.strategy.device == "cuda" else "cpu"
        update = {"strategy": rung.strategy, "micro_batch": rung.micro_batch, "device": device, "ladder": rest}
        left = {"planned_for": None} if device == "cpu" else {}  # it stays there, on whatever machine
        return self.model_copy(update=update | left | {"predicted_samples_per_s": None})


def make_settings(**values: object) -> Settings:
    """Validate options. Raises: UsageError in one line, naming the option."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise UsageError(first_problem(error)) from None


def read_settings(path: Path) -> Settings:
    """Read a run's `config.json` back."""
    try:
        return Settings.model_validate(read_json(path, tr("the run's config")))
    except ValidationError as error:
        raise BigqaError(
            tr("{path} is not a bigqa run's config: {first_problem}", path=path, first_problem=first_problem(error))
        ) from None


def first_problem(error: ValidationError) -> str:
    """Say in a line which setting is wrong, and how."""
    problem = error.errors()[0]
    ours = problem.get("ctx", {}).get("error")  # with its languages, where it is one of ours
    message = put("{error}", error=ours) if ours is not None else problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    option = option_of(str(problem["loc"][0]))
    return tr("{option}: {message} (given: {given})", option=option, message=message, given=problem.get("input"))
