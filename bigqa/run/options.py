"""The options of `train`, written once for `bigqa train` and for `accelerate launch -m bigqa.train`.

In: words of a command line. Out: `TrainOptions`, and from it the settings of a run. Options left out come from the
model's published recipe, or with `--resume` from the run that goes on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bigqa.ranges import checked, duration, number

RESUME_HELP = (
    "Go on with this run folder from its last checkpoint. Data, model, tokenizer and recipe must be what the run began "
    "with; --train-file, --model and --tokenizer may name another place of the same. auto: go on with --out where it "
    "holds a run, else begin it."
)
UNTIL_HELP = "Save and end before this much time is up, such as 11h30m, 90m or 45s; the exit code is 124 then."
MODEL_HELP = "A preset, a Hugging Face folder or hub id, a released Enliple folder, or a config.json."


def ranged(name: str, help: str, option: str | None = None) -> Any:
    """Return the option of a number within the range of a name."""
    return typer.Option(*([option] if option else []), parser=number(name, option), help=help)


def parsed(read: Callable[[object], Any], help: str) -> Any:
    """Return the option of a text that holds sizes, or several numbers, within their range."""
    return typer.Option(parser=checked(read), help=help)


Model = Annotated[str | None, typer.Option("--model", help=MODEL_HELP)]
Tokenizer = Annotated[
    str | None, typer.Option(help="A vocab.txt, folder or hub id, where the model has no vocabulary.")
]
Task = Annotated[str | None, typer.Option(help="qa, classify, score or lm.  [default: qa]")]
TrainFile = Annotated[Path | None, typer.Option(help="Questions, or a table of texts: a file, folder, glob or id.")]
DevFile = Annotated[Path | None, typer.Option(help="What the result is scored on, of the same form.")]
Text = Annotated[str | None, typer.Option(help="classify, score: the column of texts.  [default: a usual name]")]
TextPair = Annotated[str | None, typer.Option(help="The column of second texts, or X for a file STEM.X.txt of lines.")]
Label = Annotated[str | None, typer.Option(help="The column of labels or numbers; several of 0 and 1 with commas.")]
TooLong = Annotated[str | None, typer.Option(help="lm: cut longer conversations at their end, or drop them.")]
ClassWeights = Annotated[str | None, typer.Option(help="classify: none, or balanced: rare labels count more.")]
Thresholds = Annotated[str | None, typer.Option(help="classify: none, or dev: each label's, chosen on the dev file.")]
Out = Annotated[Path | None, typer.Option(help="The run folder, made new.")]
Resume = Annotated[Path | None, typer.Option(help=RESUME_HELP)]
Seed = Annotated[int | None, ranged("seed", "Fixes weights, data order and dropout.  [default: 42]")]
Epochs = Annotated[float | None, ranged("epochs", "Passes over the data.  [default: the recipe's]")]
MaxSteps = Annotated[int | None, ranged("max_steps", "End after this many optimizer steps instead.")]
GlobalBatch = Annotated[int | None, ranged("global_batch", "Windows per optimizer step, over all processes.")]
MicroBatch = Annotated[int | None, ranged("micro_batch", "Windows per process and forward pass.")]
SeqLen = Annotated[int | None, ranged("seq_len", "Longest window, in tokens.")]
DocStride = Annotated[int | None, ranged("doc_stride", "Tokens that each next window advances.")]
QueryLength = Annotated[int | None, ranged("max_query_length", "Longest question, in tokens.")]
Lr = Annotated[float | None, ranged("lr", "Peak learning rate.")]
Warmup = Annotated[float | None, ranged("warmup", "Share of the steps that warm up.")]
WarmupSteps = Annotated[int | None, ranged("warmup_steps", "Steps that warm up, in place of the share.")]
Schedule = Annotated[str | None, typer.Option(help="linear, cosine or constant, from the peak on.  [default: linear]")]
Smoothing = Annotated[float | None, ranged("label_smoothing", "classify: share of a label given to all.")]
EvalEvery = Annotated[
    int | None, ranged("eval_every", "Score on the dev file every so many steps; 0: each epoch.  [default: at the end]")
]
EvalTimes = Annotated[
    int | None, ranged("eval_times", "The same so many times, evenly over the run, the last at its end.")
]
EvalOn = Annotated[int | None, ranged("eval_on", "As it trains, score on the first so many of the dev file alone.")]
Metric = Annotated[str | None, typer.Option(help="The score that tells the best.  [default: the task's]")]
KeepBest = Annotated[bool | None, typer.Option("--keep-best/--keep-last", help="Which model is handed over.")]
Patience = Annotated[int | None, ranged("patience", "End after so many scores that are no better than the best.")]
LayerDecay = Annotated[
    float | None,
    ranged("layer_decay", "Share of the next layer's rate that each layer learns at.  [default: all alike]"),
]
FreezeLayers = Annotated[
    int | None, ranged("freeze_layers", "The embeddings and so many first layers learn nothing; 0: embeddings alone.")
]
WeightDecay = Annotated[float | None, ranged("weight_decay", "Not on biases and norms.")]
Dropout = Annotated[float | None, ranged("dropout", "Replaces the model's dropouts.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan.json of `bigqa probe`: strategy and batches.")]
StrategyOption = Annotated[str | None, typer.Option("--strategy", help="A named strategy of `bigqa probe --all`.")]
PrecisionOption = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16 (both with fp32 masters).")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
Nvme = Annotated[Path | None, typer.Option(help="A folder on a fast disk, for strategies that offload to it.")]
Deterministic = Annotated[
    bool | None,
    typer.Option("--deterministic/--no-deterministic", help="The same bits each time on a GPU too: slower."),
]
Check = Annotated[bool | None, typer.Option("--check/--no-check", help="Refuse what is predicted not to fit.")]
SaveEvery = Annotated[int | None, ranged("save_every", "Steps between checkpoints.")]
Keep = Annotated[int | None, ranged("keep", "Checkpoints to keep.")]
Until = Annotated[float | None, typer.Option(parser=duration("until"), help=UNTIL_HELP)]
PushToHub = Annotated[
    str | None, typer.Option(metavar="OWNER/NAME", help="Put the result on the hub, private where it is made anew.")
]
Tracker = Annotated[str | None, typer.Option(help="Tell wandb, mlflow or trackio as well.  [default: none]")]
Limit = Annotated[int | None, ranged("limit", "Train on the first so many questions only.")]
NumProcesses = Annotated[int, ranged("num_processes", "Processes to launch (`bigqa train` only).")]


OF_THE_LAUNCH = ("num_processes", "resume", "until")
"""About one start of a run, and not about the run."""


def train_signature(
    model: Model = None,
    task: Task = None,
    train_file: TrainFile = None,
    dev_file: DevFile = None,
    out: Out = None,
    resume: Resume = None,
    tokenizer: Tokenizer = None,
    seed: Seed = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    global_batch: GlobalBatch = None,
    micro_batch: MicroBatch = None,
    seq_len: SeqLen = None,
    text: Text = None,
    text_pair: TextPair = None,
    label: Label = None,
    class_weights: ClassWeights = None,
    thresholds: Thresholds = None,
    too_long: TooLong = None,
    doc_stride: DocStride = None,
    max_query_length: QueryLength = None,
    lr: Lr = None,
    warmup: Warmup = None,
    warmup_steps: WarmupSteps = None,
    schedule: Schedule = None,
    layer_decay: LayerDecay = None,
    freeze_layers: FreezeLayers = None,
    label_smoothing: Smoothing = None,
    eval_every: EvalEvery = None,
    eval_times: EvalTimes = None,
    eval_on: EvalOn = None,
    metric: Metric = None,
    keep_best: KeepBest = None,
    patience: Patience = None,
    weight_decay: WeightDecay = None,
    dropout: Dropout = None,
    precision: PrecisionOption = None,
    strategy: StrategyOption = None,
    plan: PlanFile = None,
    nvme: Nvme = None,
    check: Check = None,
    deterministic: Deterministic = None,
    device: Device = None,
    save_every: SaveEvery = None,
    keep: Keep = None,
    limit: Limit = None,
    until: Until = None,
    tracker: Tracker = None,
    push_to_hub: PushToHub = None,
    num_processes: NumProcesses = 1,
) -> None:
    """Fine-tune a model on a task: question answering, classification, scores of pairs, or a language model's answers.

    The run folder explains itself: config, plan, versions, metrics, log, TensorBoard events, checkpoints, the final
    model in Hugging Face form, and report.json. Ctrl-C saves; --resume RUN goes on. One command for every session of a
    machine that is lent for some hours: bigqa train --resume auto --until 11h30m --out RUN and the rest.
    """


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run that were given, without those of the launch."""
    return {name: value for name, value in options.items() if value is not None and name not in OF_THE_LAUNCH}
