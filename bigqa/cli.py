"""The command line. In: arguments. Out: functions called and text printed; no arithmetic here.

bigqa probe | train | predict | evaluate | table | data | convert
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from bigqa import __version__
from bigqa.console import command, console, progress, stderr
from bigqa.errors import UsageError
from bigqa.files import write_text
from bigqa.machine.heap import hold_tight
from bigqa.run.options import MODEL_HELP, given, train_signature

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
data = typer.Typer(no_args_is_help=True, help="Get data, and look at it.")
convert = typer.Typer(no_args_is_help=True, help="Turn released checkpoints into Hugging Face folders.")
app.add_typer(data, name="data")
app.add_typer(convert, name="convert")

NOTHING_FITS = 3
"""The exit code of `bigqa probe` where no strategy fits."""
BUDGET_USED = 75
"""Of `bigqa bench`, where its budget ended before its cases (EX_TEMPFAIL of sysexits.h)."""
DEFAULT_LENGTHS = {"seq_len": 512, "doc_stride": 128, "max_query_length": 64}


def _version(asked: bool) -> None:
    if asked:
        console.print(f"bigqa {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Train large models in the memory you have."""


@app.command("train")
@functools.wraps(train_signature)
def train(**options: Any) -> None:
    """Launch the training processes; they run `bigqa/train.py` with the same options."""
    from bigqa.run.folder import settings_from
    from bigqa.run.launcher import launch

    settings = settings_from(given(options), options["resume"])  # refused here before any process starts
    words = sys.argv[sys.argv.index("train") + 1 :]
    raise typer.Exit(launch(words, settings.out, options["num_processes"]))


@app.command()
def probe(
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " Only its configuration is used.")],
    task: Annotated[Literal["korquad1", "korquad2"], typer.Option(help="What is trained.")] = "korquad1",
    tokenizer: Annotated[str | None, typer.Option(help="For --train-file, where the model has no vocabulary.")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Longest window.  [default: the recipe's]")] = None,
    global_batch: Annotated[int | None, typer.Option(help="Windows per step.  [default: the recipe's]")] = None,
    gpu: Annotated[str, typer.Option(help="auto, none, or a card that is not here, such as T4 or 3090.")] = "auto",
    gpu_memory: Annotated[str | None, typer.Option(help="Use at most this much of a GPU, such as 8GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="GPUs of a machine.  [default: those here]")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    host_memory: Annotated[str | None, typer.Option(help="RAM to plan for.  [default: what is free here]")] = None,
    nvme: Annotated[Path | None, typer.Option(help="A folder on a fast disk to offload to.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of weights.")] = "auto",
    strategy: Annotated[str | None, typer.Option(help="Judge this one alone.")] = None,
    tier: Annotated[int, typer.Option(min=0, max=2, help="Change at most: 0 nothing, 1 rounding, 2 learning.")] = 2,
    train_file: Annotated[Path | None, typer.Option(help="Count the windows and lost answers of this file.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show what does not fit as well.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    least: Annotated[bool, typer.Option("--need", help="How much GPU memory is enough, and on which cards.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the plan, and the files that launch it.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as a page of its own.")] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="First measure this machine (30 s), and keep it.")] = (
        False
    ),
) -> None:
    """Say what fits, how fast, and what it gives up, before anything runs."""
    from bigqa.plan import question as probing
    from bigqa.show.render import show_need, show_probe

    question = probing.Question(
        model=model,
        task=task,
        tokenizer=tokenizer,
        seq_len=seq_len,
        global_batch=global_batch,
        gpu=gpu,
        gpu_memory=gpu_memory,
        gpus=gpus,
        nodes=nodes,
        host_memory=host_memory,
        nvme=nvme,
        precision=precision,
        strategy=strategy,
        tier=tier,
        train_file=train_file,
    )
    if calibrate:
        for line in probing.calibration_lines(nvme):
            stderr.print(line, markup=False, highlight=False, soft_wrap=True)
    if least:
        rows = probing.need(question)
        print(json.dumps([dataclasses.asdict(row) for row in rows])) if as_json else show_need(rows, console)
        return
    found = probing.probe(question)
    if as_json:
        print(probing.as_json(found))
    else:
        show_probe(found, out, console, show_all=show_all or strategy is not None)
    _write_probe(found, out, html)
    if found.chosen is None:
        raise typer.Exit(NOTHING_FITS)


def _write_probe(found: Any, out: Path | None, html: Path | None) -> None:
    from bigqa.plan.files import write_plan
    from bigqa.show.page import probe_page

    if html is not None:
        write_text(html, probe_page(found))
    if out is not None and found.chosen is not None:
        for path in write_plan(found, out):
            stderr.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL_HELP + " Weights are random.")],
    strategies: Annotated[str, typer.Option(help="Names, with commas between.  [default: all of the device]")] = "",
    seq_len: Annotated[str, typer.Option(help="Lengths of windows, with commas.  [default: the recipe's]")] = "",
    micro_batch: Annotated[str, typer.Option(help="Sizes, with commas.  [default: the global batch]")] = "",
    global_batch: Annotated[int | None, typer.Option(min=1, help="Windows per step.  [default: the recipe's]")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="Of weights.")] = "auto",
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option()] = "auto",
    caps: Annotated[str, typer.Option(help="Limits of memory, with commas, such as 8GiB,4GiB.")] = "",
    steps: Annotated[int, typer.Option(min=0, help="Timed steps after one that warms up; 0: memory alone.")] = 2,
    heap: Annotated[Literal["tight", "kept"], typer.Option(help="Whether a CPU's freed memory is kept.")] = "tight",
    budget_s: Annotated[float | None, typer.Option("--budget-s", min=1, help="Begin no case after so long.")] = None,
    case_s: Annotated[float, typer.Option("--case-s", min=1, help="Cut a case that takes longer.")] = 900,
    out: Annotated[Path, typer.Option(help="Where reports go; a case that has one is not run again.")] = Path("bench"),
) -> None:
    """Measure speed and peak memory of each strategy on this machine, beside what was predicted."""
    from bigqa.bench import command as bench_command
    from bigqa.bench.cases import Grid
    from bigqa.bench.sweep import Limits

    grid = Grid(
        models=tuple(models),
        strategies=tuple(name.strip() for name in strategies.split(",") if name.strip()),
        seq_lens=bench_command.parse_counts(seq_len, "--seq-len"),
        micro_batches=bench_command.parse_counts(micro_batch, "--micro-batch"),
        global_batch=global_batch,
        precision=None if precision == "auto" else precision,
        caps=bench_command.parse_caps(caps),
        steps=steps,
        heap=heap,
    )

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    left = bench_command.bench(grid, device, out, Limits(case_s=case_s, budget_s=budget_s), say)
    say(f"bigqa table {out} shows them")
    if left:
        say(f"the budget is used up: {len(left)} cases are left; the same command goes on with them")
        raise typer.Exit(BUDGET_USED)


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(help="A model folder, as `bigqa train` writes it.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Questions, KorQuAD or SQuAD JSON.")],
    output_file: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Written: {id: text}.")],
    nbest: Annotated[Path | None, typer.Option(help="Also write n-best lists with probabilities.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    seq_len: Annotated[int | None, typer.Option(help="Longest window.  [default: the model's]")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto: the device's best.")
    ] = "auto",
) -> None:
    """Answer the questions of a file."""
    from bigqa.files import write_json
    from bigqa.run.prediction import load_for_prediction
    from bigqa.run.prediction import predict as predict_file

    model, tokenizer, lengths, torch_device = load_for_prediction(str(model_dir), device, seq_len, precision)
    with progress("Predicting") as on_progress:
        found = predict_file(model, tokenizer, input_file, lengths, torch_device, on_progress)
    write_json(output_file, found.answers)
    if nbest is not None:
        write_json(nbest, found.nbest)
    console.print(f"{len(found.answers)} answers: {output_file}", markup=False, highlight=False)


@app.command()
def evaluate(
    gold: Annotated[Path, typer.Argument(help="Questions with answers; for 2.x also a folder or a zip.")],
    predictions: Annotated[Path, typer.Argument(help="{id: text}")],
    metric: Annotated[str, typer.Option(help="korquad1 or korquad2.")] = "korquad1",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score predictions as the official KorQuAD scripts do."""
    from bigqa.tasks.scoring import evaluate_files

    score = evaluate_files(gold, predictions, metric)
    if as_json:
        print(json.dumps(dataclasses.asdict(score)))
        return
    table = Table("metric", "EM", "F1", "questions", "missing")
    table.add_row(metric, f"{score.exact_match:.2f}", f"{score.f1:.2f}", str(score.total), str(score.missing))
    console.print(table)


@app.command()
def table(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Of run reports.  [default: benchmarks/runs/cpu and gpu]"),
    ] = None,
    grade: Annotated[bool, typer.Option("--grade", help="Print the planner's marks instead.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print what in benchmarks/ is stale; with --grade, which bars do not hold.")
    ] = False,
    update: Annotated[bool, typer.Option("--update", help="Write benchmarks/ anew: tables, charts, page.")] = False,
    form: Annotated[
        Literal["md", "csv", "json", "html"] | None, typer.Option("--format", help="[default: as --out ends, or md]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a file instead of the screen.")] = None,
    charts: Annotated[Path | None, typer.Option(help="Write the charts into this folder.")] = None,
) -> None:
    """Show what was predicted and what was measured, and grade the planner by it."""
    from bigqa.table.command import form_of, tabled, write_all

    if update and (check or grade or form or out):
        raise UsageError(
            "--update writes all that is in benchmarks/: it goes with no --check, --grade, --format, --out"
        )
    with progress("Predicting anew") as on_row:
        found = tabled(folders or [], on_row)
    if update:
        written = found.update()
    else:
        written = write_all(found.charts(charts)) if charts else []
        if grade or not check:
            text = found.text(form_of(form, out), graded=grade)
            written += write_all({out: text + "\n"}) if out else []
            if out is None:
                print(text)
    for path in written:
        stderr.print(f"written: {path}", markup=False, highlight=False, soft_wrap=True)
    if check:
        wrong = found.failed if grade else found.stale()
        for name in wrong:
            stderr.print(f"{'FAIL' if grade else 'stale'}: {name}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(bool(wrong))


@data.command("inspect")
def inspect_data(
    file: Annotated[Path, typer.Argument(help="Questions with answers.")],
    model: Annotated[str, typer.Argument(help=MODEL_HELP + " Only its vocabulary is used.")],
    tokenizer: Annotated[str | None, typer.Option(help="A vocab.txt, folder or hub id.")] = None,
    seq_len: Annotated[int, typer.Option()] = 512,
    doc_stride: Annotated[int, typer.Option()] = 128,
    max_query_length: Annotated[int, typer.Option()] = 64,
    max_answer_length: Annotated[int, typer.Option()] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count windows and padding, and give the best score that the vocabulary allows."""
    from bigqa.models.sources import load_tokenizer, resolve
    from bigqa.show.render import inspection_table
    from bigqa.tasks.inspection import inspect_file
    from bigqa.tasks.windows import Lengths

    lengths = Lengths(
        seq_len=seq_len,
        doc_stride=doc_stride,
        max_query_length=max_query_length,
        max_answer_length=max_answer_length,
    )
    found = inspect_file(file, load_tokenizer(resolve(model, tokenizer=tokenizer)), lengths)
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        console.print(inspection_table(found))


def _download(name: str, out: Path) -> None:
    from bigqa.tasks.download import download

    for line in download(name, out):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@data.command()
def korquad1(out: Annotated[Path, typer.Option(help="Where the files go.")]) -> None:
    """Download KorQuAD 1.0 from its authors."""
    _download("korquad1", out)


@data.command()
def korquad2(out: Annotated[Path, typer.Option(help="Where the files go.")]) -> None:
    """Download KorQuAD 2.1 from its authors."""
    _download("korquad2", out)


@convert.command()
def enliple(
    src: Annotated[Path, typer.Argument(help="A released folder: config, .bin and vocab.txt.")],
    out: Annotated[Path, typer.Argument(help="The Hugging Face folder, made new.")],
    activation: Annotated[str, typer.Option(help="auto, gelu or gelu_new.")] = "auto",
    qa_head: Annotated[Path | None, typer.Option(help="A QA head kept in a file of its own.")] = None,
) -> None:
    """Turn a released Enliple checkpoint into a Hugging Face folder."""
    from bigqa.models.enliple import convert as convert_enliple

    if activation not in ("auto", "gelu", "gelu_new"):
        raise UsageError(f"--activation is auto, gelu or gelu_new, not {activation}")
    convert_enliple(src, out, activation=activation, qa_head=qa_head)
    console.print(f"written: {out}", markup=False, highlight=False)


def main() -> None:
    """Run as a program."""
    hold_tight()
    command(app)


if __name__ == "__main__":
    main()
