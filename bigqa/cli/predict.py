"""`bigqa predict`: answers the questions of a file, labels its texts, or those that come as lines."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bigqa.console import progress, say, tell
from bigqa.errors import UsageError
from bigqa.language import put, tr
from bigqa.run.options import ranged

STREAM = "-"


def predict(
    model_dir: Annotated[Path, typer.Argument(help="A model folder, as `bigqa train` writes it.")],
    input_file: Annotated[
        str, typer.Argument(metavar="INPUT", help="A file of the model's task; - for texts, line by line.")
    ],
    output_file: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Written: {id: text}, or JSON lines; - for columns, as they come.")
    ] = STREAM,
    nbest: Annotated[Path | None, typer.Option(help="qa: also write n-best lists with probabilities.")] = None,
    task: Annotated[str | None, typer.Option(help="qa, classify or score.  [default: the model's]")] = None,
    text: Annotated[str | None, typer.Option(help="The column of texts.  [default: the training's]")] = None,
    text_pair: Annotated[str | None, typer.Option(help="The column of second texts.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    seq_len: Annotated[int | None, ranged("seq_len", "Longest window.  [default: the model's]")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        typer.Option(help="auto: the device's best; fp32 where fp16 overflows."),
    ] = "auto",
    null_threshold: Annotated[
        float | None,
        ranged(
            "null_threshold", "No answer where it scores above the best by more.  [default: chosen on the dev file]"
        ),
    ] = None,
) -> None:
    """Answer the questions of a file, or label texts: `tail -f comments | bigqa predict MODEL - | grep ^hate`."""
    from bigqa.files import check_outputs
    from bigqa.run.prediction import load_for_prediction, said_where_memory_runs_out

    if input_file != STREAM and output_file == STREAM and nbest is not None:
        raise UsageError(tr("--nbest wants OUTPUT to be a file too"))
    check_outputs(nbest, None if output_file == STREAM else Path(output_file))
    asked = {"text": text, "text_pair": text_pair, "null_threshold": null_threshold}
    answerer = load_for_prediction(str(model_dir), device, seq_len, precision, task, **asked)
    if STREAM in (input_file, output_file) and not answerer.kind.reads_lines:
        raise UsageError(
            tr("--task {kind} reads a file and writes one: name INPUT and OUTPUT", kind=answerer.kind.name)
        )
    if output_file == STREAM:
        found = answerer.answers(_lines()) if input_file == STREAM else answerer.predict(Path(input_file))
        with said_where_memory_runs_out():
            for answer in found:
                sys.stdout.write(answerer.kind.as_line(answer) + "\n")
                sys.stdout.flush()
        return
    with progress(tr("Predicting")) as on_progress, said_where_memory_runs_out():
        answerer.on_progress = on_progress
        found = answerer.answers(_lines()) if input_file == STREAM else answerer.predict(Path(input_file))
        more: dict[str, Any] = {} if nbest is None else {"nbest": nbest}
        count = answerer.kind.write(found, Path(output_file), more)
    say(put("{count} {what}: {path}", count=count, what=answerer.kind.answer_words, path=output_file))


def _lines() -> Iterator[str]:
    if sys.stdin.isatty():
        tell(tr("reading lines from the terminal; Ctrl-D ends"))
    sys.stdin.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    return (line.rstrip("\r\n") for line in sys.stdin)
