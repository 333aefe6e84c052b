"""`bigqa predict`: answers the questions of a file."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigqa.console import progress, say
from bigqa.run.options import ranged


def predict(
    model_dir: Annotated[Path, typer.Argument(help="A model folder, as `bigqa train` writes it.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="Questions: a file, a folder, a glob or an id.")],
    output_file: Annotated[Path, typer.Argument(metavar="OUTPUT", help='Written: {id: text}; "" for no answer.')],
    nbest: Annotated[Path | None, typer.Option(help="Also write n-best lists with probabilities.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    seq_len: Annotated[int | None, ranged("seq_len", "Longest window.  [default: the model's]")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto: the device's best.")
    ] = "auto",
    null_threshold: Annotated[
        float | None,
        ranged(
            "null_threshold", "No answer where it scores above the best by more.  [default: chosen on the dev file]"
        ),
    ] = None,
) -> None:
    """Answer the questions of a file."""
    from bigqa.files import write_json
    from bigqa.run.prediction import load_for_prediction, said_where_memory_runs_out, trained_of
    from bigqa.run.prediction import predict as predict_file

    if null_threshold is None:
        null_threshold = trained_of(model_dir, None).null_threshold
    model, tokenizer, lengths, torch_device = load_for_prediction(str(model_dir), device, seq_len, precision)
    with progress("Predicting") as on_progress, said_where_memory_runs_out():
        found = predict_file(
            model, tokenizer, input_file, lengths, torch_device, on_progress, null_threshold=null_threshold
        )
    write_json(output_file, found.answers)
    if nbest is not None:
        write_json(nbest, found.nbest)
    say(f"{len(found.answers)} answers: {output_file}")
