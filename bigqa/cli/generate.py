"""`bigqa generate`: a language model's answers to a file of prompts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from bigqa.console import say
from bigqa.language import tr
from bigqa.run.options import ranged


def generate(
    model_dir: Annotated[Path, typer.Argument(help="A model folder, as `bigqa train --task lm` writes it.")],
    input_file: Annotated[Path, typer.Argument(metavar="INPUT", help="JSON lines with messages, or a prompt.")],
    output_file: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Written: the same lines with a completion.")],
    max_new_tokens: Annotated[int, ranged("max_new_tokens", "Longest answer, in tokens.")] = 256,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto: the device's best.")
    ] = "auto",
) -> None:
    """Answer prompts, the likeliest token each time."""
    from bigqa.files import check_outputs
    from bigqa.run.generation import generated
    from bigqa.run.prediction import load_for_prediction, said_where_memory_runs_out

    check_outputs(output_file)
    answerer = load_for_prediction(str(model_dir), device, None, precision, "lm")
    with said_where_memory_runs_out():
        count = answerer.kind.write(generated(answerer, input_file, max_new_tokens), output_file, {})
    say(tr("{count} answers: {path}", count=count, path=output_file))
